"""Chains and their guides: one family a file."""

if not __name__.startswith("probgram."):
    raise ImportError("import probgram.models, not models: from here every class would exist twice")

from typing import TYPE_CHECKING

from probgram.lazy import lazy

if TYPE_CHECKING:
    from probgram.models.config import GRAMConfig as GRAMConfig
    from probgram.models.direct import Direct as Direct
    from probgram.models.eqr import EqR as EqR
    from probgram.models.exact import exact_sums as exact_sums
    from probgram.models.flow import LoopedFlow as LoopedFlow
    from probgram.models.flow import LoopedFlowGuide as LoopedFlowGuide
    from probgram.models.gram import GRAM as GRAM
    from probgram.models.gram import GRAMGuide as GRAMGuide
    from probgram.models.gram import widened as widened
    from probgram.models.gram import without as without
    from probgram.models.looped import LoopedTransformer as LoopedTransformer
    from probgram.models.perturbed import Perturbed as Perturbed
    from probgram.models.published import PublishedTRM as PublishedTRM
    from probgram.models.published import load_published_trm as load_published_trm
    from probgram.models.state_space import HiddenMarkov as HiddenMarkov
    from probgram.models.state_space import HiddenMarkovSmoother as HiddenMarkovSmoother
    from probgram.models.state_space import LinearGaussian as LinearGaussian
    from probgram.models.state_space import LinearGaussianSmoother as LinearGaussianSmoother
    from probgram.models.trm import HRM as HRM
    from probgram.models.trm import TRM as TRM

_HOMES = {
    "GRAM": "probgram.models.gram",
    "GRAMConfig": "probgram.models.config",
    "GRAMGuide": "probgram.models.gram",
    "widened": "probgram.models.gram",
    "without": "probgram.models.gram",
    "exact_sums": "probgram.models.exact",
    "TRM": "probgram.models.trm",
    "HRM": "probgram.models.trm",
    "LoopedTransformer": "probgram.models.looped",
    "Direct": "probgram.models.direct",
    "Perturbed": "probgram.models.perturbed",
    "PublishedTRM": "probgram.models.published",
    "load_published_trm": "probgram.models.published",
    "EqR": "probgram.models.eqr",
    "LoopedFlow": "probgram.models.flow",
    "LoopedFlowGuide": "probgram.models.flow",
    "LinearGaussian": "probgram.models.state_space",
    "LinearGaussianSmoother": "probgram.models.state_space",
    "HiddenMarkov": "probgram.models.state_space",
    "HiddenMarkovSmoother": "probgram.models.state_space",
}
__all__ = list(_HOMES)
__getattr__, __dir__ = lazy(__name__, _HOMES)
