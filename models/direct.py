"""Direct prediction: no recursion, the blocks are all different.

    h = f(e_x)                   one depth step; running deeper repeats the same answer
    y ~ Categorical(decode(h))

The baseline with 8 or 32 blocks of Wang et al., "Hierarchical Reasoning Model", arXiv 2506.21734, figure 2.
"""

from dataclasses import dataclass

from probgram.models.config import ReasonerConfig
from probgram.models.reasoner import Context, Flat, Proposal, Reasoner, reached


@dataclass(frozen=True)
class DirectConfig(ReasonerConfig):
    """Sizes of a feed-forward network."""

    blocks: int = 8  # different blocks, each applied once


class Direct(Reasoner):
    """The chain of this file's first lines. Tokens of x below 0 are padding."""

    Config = DirectConfig
    config: DirectConfig

    def propose(self, state: Flat, context: Context, t: int) -> Proposal:
        """Propose f(e_x), whatever the state is; computed once a problem, not once a particle."""
        u = self.f(context.embedded, context.mask).expand(state.h.shape)
        return Proposal(u, None, reached(context.mask, u))
