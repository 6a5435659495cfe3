"""TRM: a hierarchical recursion without noise, trained by deep supervision.

    l <- f(l + h + e_x)          K refinements of the low-level state
    h <- f(h + l)                a transition; T of them are a depth step, of which only the last has a gradient
    y ~ Categorical(decode(h))   observed after every depth step, which starts where the last one ended

The twin of `probgram.models.trm`.

Source: Jolicoeur-Martineau, "Less is More: Recursive Reasoning with Tiny Networks", arXiv 2510.04871, figure 3.
"""

from typing import Any, ClassVar

from probgram.models.config import ReasonerConfig, TRMConfig
from probgram.models.on_jax.reasoner import Context, Proposal, Reasoner, reached


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
