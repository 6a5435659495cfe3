"""Inference for any chain: training, sampling, selection, evaluation."""

if not __name__.startswith("probgram."):
    raise ImportError("import probgram.inference, not inference: from here every class would exist twice")

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probgram.inference.evaluation import Report as Report
    from probgram.inference.evaluation import evaluate as evaluate
    from probgram.inference.evaluation import evidence_bound as evidence_bound
    from probgram.inference.handlers import guided as guided
    from probgram.inference.handlers import weighted as weighted
    from probgram.inference.objective import Objective as Objective
    from probgram.inference.sampling import sample as sample
    from probgram.inference.selection import best as best
    from probgram.inference.selection import first_verified as first_verified
    from probgram.inference.selection import posterior as posterior
    from probgram.inference.selection import vote as vote
    from probgram.inference.svi import fit as fit
    from probgram.inference.svi import fit_heads as fit_heads

_HOMES = {
    "guided": "handlers",
    "weighted": "handlers",
    "Objective": "objective",
    "fit": "svi",
    "fit_heads": "svi",
    "sample": "sampling",
    "vote": "selection",
    "best": "selection",
    "first_verified": "selection",
    "posterior": "selection",
    "evaluate": "evaluation",
    "evidence_bound": "evaluation",
    "Report": "evaluation",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a routine when it is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'probgram.inference' has no attribute {name!r}")
    value = getattr(import_module(f"probgram.inference.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Names for completion, imported or not."""
    return sorted(__all__)
