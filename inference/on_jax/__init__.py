"""Inference for the JAX chains: sampling, the particle filter, training, evaluation (extra `jax`)."""

from typing import TYPE_CHECKING

from probgram.lazy import lazy

if TYPE_CHECKING:
    from probgram.inference.frontier import frontier as frontier
    from probgram.inference.on_jax.devices import device_mesh as device_mesh
    from probgram.inference.on_jax.evaluation import evaluate as evaluate
    from probgram.inference.on_jax.evaluation import evidence_bound as evidence_bound
    from probgram.inference.on_jax.handlers import guided as guided
    from probgram.inference.on_jax.handlers import weighted as weighted
    from probgram.inference.on_jax.islands import ring as ring
    from probgram.inference.on_jax.objective import Objective as Objective
    from probgram.inference.on_jax.sampling import sample as sample
    from probgram.inference.on_jax.selection import best as best
    from probgram.inference.on_jax.selection import first_verified as first_verified
    from probgram.inference.on_jax.selection import posterior as posterior
    from probgram.inference.on_jax.selection import vote as vote
    from probgram.inference.on_jax.svi import fit as fit
    from probgram.inference.on_jax.svi import fit_heads as fit_heads
    from probgram.inference.on_jax.trajectories import Trajectories as Trajectories

_HOMES = {
    "device_mesh": "probgram.inference.on_jax.devices",
    "ring": "probgram.inference.on_jax.islands",
    "guided": "probgram.inference.on_jax.handlers",
    "weighted": "probgram.inference.on_jax.handlers",
    "Objective": "probgram.inference.on_jax.objective",
    "fit": "probgram.inference.on_jax.svi",
    "fit_heads": "probgram.inference.on_jax.svi",
    "Trajectories": "probgram.inference.on_jax.trajectories",
    "sample": "probgram.inference.on_jax.sampling",
    "vote": "probgram.inference.on_jax.selection",
    "best": "probgram.inference.on_jax.selection",
    "first_verified": "probgram.inference.on_jax.selection",
    "posterior": "probgram.inference.on_jax.selection",
    "evaluate": "probgram.inference.on_jax.evaluation",
    "evidence_bound": "probgram.inference.on_jax.evaluation",
    "frontier": "probgram.inference.frontier",
}
__all__ = list(_HOMES)
__getattr__, __dir__ = lazy(__name__, _HOMES)
