"""Chains and their guides: one family a file."""

if not __name__.startswith("probgram."):
    raise ImportError("import probgram.models, not models: from here every class would exist twice")

from typing import TYPE_CHECKING

from probgram.lazy import lazy

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
    "GRAM": "probgram.models.gram",
    "GRAMConfig": "probgram.models.gram",
    "GRAMGuide": "probgram.models.gram",
    "without": "probgram.models.gram",
    "LinearGaussian": "probgram.models.state_space",
    "LinearGaussianSmoother": "probgram.models.state_space",
    "HiddenMarkov": "probgram.models.state_space",
    "HiddenMarkovSmoother": "probgram.models.state_space",
}
__all__ = list(_HOMES)
__getattr__, __dir__ = lazy(__name__, _HOMES)
