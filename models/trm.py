"""TRM and HRM: hierarchical recursions without noise, trained by deep supervision.

    l <- f(l + h + e_x)          K refinements of the low-level state
    h <- f(h + l)                a transition; T of them are a depth step, of which only the last has a gradient
    y ~ Categorical(decode(h))   observed after every depth step, which starts where the last one ended

TRM has one f for both levels. HRM has two: f_L refines l, f_H updates h on the slower of two time scales, and its
gradient is that of the last application of each, as if both levels stood at their fixed point.

Sources: TRM: Jolicoeur-Martineau, "Less is More: Recursive Reasoning with Tiny Networks", arXiv 2510.04871, figure
3; HRM: Wang et al., "Hierarchical Reasoning Model", arXiv 2506.21734, section 2.
"""

from typing import Any

from torch import Tensor

from probgram.models.config import TRMConfig
from probgram.models.reasoner import Context, Levels, Proposal, Reasoner, reached


class TRM(Reasoner):
    """The chain of this file's first lines. GRAM with mean=False and noise=False is the same function."""

    Config = TRMConfig
    levels = 2
    config: TRMConfig

    def _build(self) -> None:
        self.transitions = self.config.transitions

    def propose(self, state: Any, context: Context, t: int) -> Proposal:
        """Refine l K times, then propose u."""
        u, l = self._recurse(state.h, state.l, context.embedded, context.mask)
        return Proposal(u, l, reached(context.mask, u))

    def _recurse(self, h: Tensor, l: Tensor, problem: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """The next h and l."""
        for _ in range(self.config.refinements):
            l = self.f(l + h + problem, mask)
        return self.f(h + l, mask), l


class HRM(TRM):
    """The same with a network a level, `f` for l and `f_high` for h, and the one-step gradient."""

    def _build(self) -> None:
        super()._build()
        self.f_high = self._body()

    def propose(self, state: Levels, context: Context, t: int) -> Proposal:
        """Refine l K times by f_L, then propose u by f_H; the last application of each has a gradient."""
        h, l = state.h.detach(), state.l
        for _ in range(self.config.refinements):
            l = self.f(l.detach() + h + context.embedded, context.mask)
        u = self.f_high(h + l, context.mask)
        return Proposal(u, l, reached(context.mask, u))
