"""Chains and their guides: one family a file."""

if not __name__.startswith("probgram."):
    raise ImportError("import probgram.models, not models: from here every class would exist twice")

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probgram.models.gram import GRAM as GRAM
    from probgram.models.gram import GRAMConfig as GRAMConfig
    from probgram.models.gram import GRAMGuide as GRAMGuide
    from probgram.models.gram import without as without
    from probgram.models.state_space import HiddenMarkov as HiddenMarkov
    from probgram.models.state_space import HiddenMarkovSmoother as HiddenMarkovSmoother
    from probgram.models.state_space import LinearGaussian as LinearGaussian
    from probgram.models.state_space import LinearGaussianSmoother as LinearGaussianSmoother

_HOMES = {
    "GRAM": "gram",
    "GRAMConfig": "gram",
    "GRAMGuide": "gram",
    "without": "gram",
    "LinearGaussian": "state_space",
    "LinearGaussianSmoother": "state_space",
    "HiddenMarkov": "state_space",
    "HiddenMarkovSmoother": "state_space",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a chain when it is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'probgram.models' has no attribute {name!r}")
    value = getattr(import_module(f"probgram.models.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Names for completion, imported or not."""
    return sorted(__all__)
