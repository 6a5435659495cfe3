"""The looped transformer: one flat state, one f, the input injected at every iteration.

    h <- f(h + e_x)              a loop; `transitions` of them are a depth step
    y ~ Categorical(decode(h))   observed after the last loop only: no deep supervision

It is trained through all its loops (depth=1, gradient="step"). A run of S depth steps loops S · transitions times.

Source: Yang, Lee, Nowak and Papailiopoulos, "Looped Transformers are Better at Learning Learning Algorithms", arXiv
2311.12424, section 3.
"""

from probgram.models.config import LoopedConfig
from probgram.models.reasoner import Context, Flat, Proposal, Reasoner, reached


class LoopedTransformer(Reasoner):
    """The chain of this file's first lines. Tokens of x below 0 are padding."""

    Config = LoopedConfig
    config: LoopedConfig

    def _build(self) -> None:
        self.transitions = self.config.transitions

    def propose(self, state: Flat, context: Context, t: int) -> Proposal:
        """Propose f(h + e_x)."""
        u = self.f(state.h + context.embedded, context.mask)
        return Proposal(u, None, reached(context.mask, u))
