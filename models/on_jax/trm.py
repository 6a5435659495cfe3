"""TRM and HRM: hierarchical recursions without noise, trained by deep supervision.

    l <- f(l + h + e_x)          K refinements of the low-level state
    h <- f(h + l)                a transition; T of them are a depth step, of which only the last has a gradient
    y ~ Categorical(decode(h))   observed after every depth step, which starts where the last one ended

TRM has one f for both levels. HRM has two: f_L refines l, f_H updates h on the slower of two time scales, and its
gradient is that of the last application of each, as if both levels stood at their fixed point.

The twin of `probgram.models.trm`.

Sources: TRM: Jolicoeur-Martineau, "Less is More: Recursive Reasoning with Tiny Networks", arXiv 2510.04871, figure
3; HRM: Wang et al., "Hierarchical Reasoning Model", arXiv 2506.21734, section 2.
"""

from typing import Any, ClassVar

import jax
from jax import Array

from probgram.models.config import ReasonerConfig, TRMConfig
from probgram.models.on_jax.blocks import Body
from probgram.models.on_jax.reasoner import Context, Levels, Proposal, Reasoner, body_of, reached


class TRM(Reasoner):
    """The chain of this file's first lines. GRAM with mean=False and noise=False is the same function."""

    Config: ClassVar[type[ReasonerConfig]] = TRMConfig
    levels: ClassVar[int] = 2

    @property
    def transitions(self) -> int:
        """T, transitions in a depth step."""
        return self.config.transitions

    def propose(self, state: Any, context: Context, t: Any) -> Proposal:
        """Refine l K times, then propose u."""
        h, l = state
        for _ in range(self.config.refinements):
            l = self.f(l + h + context.embedded, context.mask)
        u = self.f(h + l, context.mask)
        return Proposal(u, l, reached(context.mask, u))


class HRM(TRM):
    """The same with a network a level, `f` for l and `f_high` for h, and the one-step gradient."""

    f_high: Body

    def __init__(self, config: TRMConfig, key: Array | None = None) -> None:
        key = jax.random.key(0) if key is None else key
        Reasoner.__init__(self, config, key)
        self.f_high = body_of(config, jax.random.fold_in(key, 1))

    def propose(self, state: Levels, context: Context, t: Any) -> Proposal:
        """Refine l K times by f_L, then propose u by f_H; the last application of each has a gradient."""
        cut = jax.lax.stop_gradient
        h, l = cut(state.h), state.l
        for _ in range(self.config.refinements):
            l = self.f(cut(l) + h + context.embedded, context.mask)
        u = self.f_high(h + l, context.mask)
        return Proposal(u, l, reached(context.mask, u))
