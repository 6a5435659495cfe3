"""probgram: latent recursive reasoning as probabilistic programs, scaled wide.

The transition of a recursive reasoning model, written as a generative Markov chain over latents, run
as many weighted trajectories at once. `solve` answers a puzzle, `fit` trains a chain, `tasks` holds
the problem families, `Chain` and `Guide` are what a model of your own implements.
"""

from typing import TYPE_CHECKING

from probgram.lazy import lazy

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
    "tasks": None,
    "models": None,
    "inference": None,
    "metrics": None,
    "plots": None,
    "report": None,
}
__all__ = [*_HOMES, "__version__"]
__getattr__, __dir__ = lazy(__name__, _HOMES)
