"""Inference for the JAX chains: sampling, the particle filter, training, evaluation (extra `jax`)."""

from typing import TYPE_CHECKING

from probgram.lazy import lazy

if TYPE_CHECKING:
    from probgram.inference.on_jax.handlers import guided as guided
    from probgram.inference.on_jax.handlers import weighted as weighted

_HOMES = {
    "guided": "probgram.inference.on_jax.handlers",
    "weighted": "probgram.inference.on_jax.handlers",
}
__all__ = list(_HOMES)
__getattr__, __dir__ = lazy(__name__, _HOMES)
