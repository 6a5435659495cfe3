"""The chains in JAX: Equinox networks, NumPyro programs, the weights of the torch side (extra `jax`)."""

from typing import TYPE_CHECKING

from probgram.lazy import lazy

if TYPE_CHECKING:
    from probgram.models.config import GRAMConfig as GRAMConfig
    from probgram.models.on_jax.chain import Chain as Chain
    from probgram.models.on_jax.chain import Guide as Guide
    from probgram.models.on_jax.exact import exact_sums as exact_sums
    from probgram.models.on_jax.gram import GRAM as GRAM
    from probgram.models.on_jax.gram import GRAMGuide as GRAMGuide
    from probgram.models.on_jax.gram import widened as widened
    from probgram.models.on_jax.gram import without as without
    from probgram.models.on_jax.looped import LoopedTransformer as LoopedTransformer
    from probgram.models.on_jax.state_space import HiddenMarkov as HiddenMarkov
    from probgram.models.on_jax.state_space import HiddenMarkovSmoother as HiddenMarkovSmoother
    from probgram.models.on_jax.state_space import LinearGaussian as LinearGaussian
    from probgram.models.on_jax.state_space import LinearGaussianSmoother as LinearGaussianSmoother
    from probgram.models.on_jax.trm import HRM as HRM
    from probgram.models.on_jax.trm import TRM as TRM

_HOMES = {
    "Chain": "probgram.models.on_jax.chain",
    "Guide": "probgram.models.on_jax.chain",
    "GRAM": "probgram.models.on_jax.gram",
    "GRAMConfig": "probgram.models.config",
    "GRAMGuide": "probgram.models.on_jax.gram",
    "widened": "probgram.models.on_jax.gram",
    "without": "probgram.models.on_jax.gram",
    "exact_sums": "probgram.models.on_jax.exact",
    "LoopedTransformer": "probgram.models.on_jax.looped",
    "TRM": "probgram.models.on_jax.trm",
    "HRM": "probgram.models.on_jax.trm",
    "LinearGaussian": "probgram.models.on_jax.state_space",
    "LinearGaussianSmoother": "probgram.models.on_jax.state_space",
    "HiddenMarkov": "probgram.models.on_jax.state_space",
    "HiddenMarkovSmoother": "probgram.models.on_jax.state_space",
}
__all__ = list(_HOMES)
__getattr__, __dir__ = lazy(__name__, _HOMES)
