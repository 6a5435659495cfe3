"""The looped transformer: one flat state, one f, the input injected at every iteration.

    h <- f(h + e_x)              a loop; `transitions` of them are a depth step
    y ~ Categorical(decode(h))   observed after the last loop only: no deep supervision

The twin of `probgram.models.looped`. A run of S depth steps loops S · transitions times.

Source: Yang, Lee, Nowak and Papailiopoulos, "Looped Transformers are Better at Learning Learning Algorithms", arXiv
2311.12424, section 3.
"""

from typing import Any, ClassVar

from probgram.models.config import LoopedConfig, ReasonerConfig
from probgram.models.on_jax.reasoner import Context, Flat, Proposal, Reasoner, reached


class LoopedTransformer(Reasoner):
    """The chain of this file's first lines. Tokens of x below 0 are padding."""

    Config: ClassVar[type[ReasonerConfig]] = LoopedConfig

    @property
    def transitions(self) -> int:
        """T, loops in a depth step."""
        return self.config.transitions

    def propose(self, state: Flat, context: Context, t: Any) -> Proposal:
        """Propose f(h + e_x)."""
        u = self.f(state.h + context.embedded, context.mask)
        return Proposal(u, None, reached(context.mask, u))
