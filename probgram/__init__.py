"""probgram: latent recursive reasoning as probabilistic programs, scaled wide.

The transition of a recursive reasoning model, written as a generative Markov chain over latents, run
as many weighted trajectories at once. `solve` answers a puzzle, `fit` trains a chain, `tasks` holds
the problem families, `Chain` and `Guide` are what a model of your own implements.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probgram import tasks as tasks
    from probgram.chain import Chain as Chain
    from probgram.chain import Guide as Guide
    from probgram.inference.svi import fit as fit
    from probgram.solve import Solution as Solution
    from probgram.solve import solve as solve
    from probgram.trajectories import Trajectories as Trajectories

__version__ = "0.1.0"

_HOMES = {
    "Chain": "probgram.chain",
    "Guide": "probgram.chain",
    "Trajectories": "probgram.trajectories",
    "solve": "probgram.solve",
    "Solution": "probgram.solve",
    "fit": "probgram.inference.svi",
}
_MODULES = ("tasks", "models", "inference", "metrics", "plots")
__all__ = [*_HOMES, *_MODULES, "__version__"]


class _Package(ModuleType):
    """`probgram.solve` is a module and a function of it: the function wins, whichever is imported first."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):  # the import system binds submodules here
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import probgram` stays light (PEP 562)."""
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    elif name in _MODULES:
        value = import_module(f"probgram.{name}")
    else:
        raise AttributeError(f"module 'probgram' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Names for completion, imported or not."""
    return sorted(__all__)
