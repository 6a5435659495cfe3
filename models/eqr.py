"""EqR: a TRM that starts anywhere, is damped and shaken on its way, and says how far it still moves.

    z_0 ~ N(0, I)                                       each restart from its own draw: width is B restarts
    l   <- (1 - lambda) l + lambda f(l + h + e_x)       K damped refinements
    u    = (1 - lambda) h + lambda f(h + l)             damped, too
    (h, l) <- (u, l) + eps,   eps ~ N(0, sigma² I)      path noise, one site a transition
    residual_n = ||z_n - z_{n-1}||                      over a depth step; the restart with the smallest is chosen

Its authors' code adds the noise after every application of f, in training and at inference, and takes the residual
of logits; here noise enters once a transition, at both levels. The residual is the root mean square over tokens and
features, and is a head, with its sign turned: `best(run, head="residual")` chooses.

Source: Huang, Geng and Kolter, "Equilibrium Reasoners", arXiv 2605.21488.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import torch
from pyro import distributions as dist
from torch import Tensor

from probgram.models.config import TRMConfig
from probgram.models.reasoner import Context, Proposal, masked, reached
from probgram.models.trm import TRM


@dataclass(frozen=True)
class EqRConfig(TRMConfig):
    """Sizes, time scales, and what shapes the attractors."""

    damping: float = 0.95  # lambda; 1: none
    sigma: float = 0.01  # standard deviation of the path noise; 0: none

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.damping <= 1:
            raise ValueError(f"damping must be above 0 and at most 1, got {self.damping}")
        if not self.sigma >= 0:
            raise ValueError(f"sigma must be at least 0, got {self.sigma}")


class Settling(NamedTuple):
    """Both levels `[..., L, D]`, and how far the last depth step moved them, `[...]`."""

    h: Tensor
    l: Tensor
    residual: Tensor


class EqR(TRM):
    """The chain of this file's first lines. Tokens of x below 0 are padding."""

    Config = EqRConfig
    config: EqRConfig

    def initial(self, context: Context) -> Settling:
        """Draw z_0, a site of two levels."""
        zeros = torch.zeros_like(context.embedded)
        z = pyro.sample("z_0", dist.Normal(torch.stack([zeros, zeros], -3), 1.0).to_event(3))  # [..., 2, L, D]
        h, l = z.unbind(-3)
        return Settling(masked(h, context.mask), masked(l, context.mask), h.new_zeros(h.shape[:-2]))

    def propose(self, state: Settling, context: Context, t: int) -> Proposal:
        """Refine l K times, then propose u, damped; padded tokens of l stay zero, for the residual."""
        h, l, a = state.h, state.l, self.config.damping
        for _ in range(self.config.refinements):
            l = (1 - a) * l + a * self.f(l + h + context.embedded, context.mask)
        u = (1 - a) * h + a * self.f(h + l, context.mask)
        return Proposal(u, l, reached(context.mask, u))

    def prior(self, proposal: Proposal, t: int) -> dist.TorchDistribution:
        """p(eps) = N(0, sigma²) for both levels, event `[2, L, D]`."""
        zeros = torch.zeros_like(proposal.u)
        zeros = torch.stack([zeros, zeros], -3)
        law = dist.Normal(zeros, self.config.sigma) if self.config.sigma else dist.Delta(zeros)
        return law.to_event(3)

    def move(self, proposal: Any, eps: Tensor) -> Settling:
        """Add the noise to both levels."""
        h, l = (masked(z, proposal.mask) for z in (proposal.u + eps[..., 0, :, :], proposal.l + eps[..., 1, :, :]))
        return Settling(h, l, h.new_zeros(h.shape[:-2]))

    def step(self, state: Settling, t: int, context: Context) -> Settling:
        """One depth step, and how far it moved the state."""
        moved = super().step(state, t, context)
        mask = reached(context.mask, state.h)  # of tokens that others may have shaken, such as `Perturbed`
        by = [masked(moved.h - state.h, mask), masked(moved.l - state.l, mask)]
        square = torch.stack(by).square().sum((0, -1, -2))
        tokens = state.h.shape[-2] if context.mask is None else context.mask.sum(-1)
        return moved._replace(residual=(square / (2 * tokens * self.config.dim)).sqrt())

    def heads(self, state: Any) -> dict[str, Tensor]:
        """Those of all reasoners, and "residual": minus how far the last depth step moved the state."""
        return super().heads(state) | {"residual": -state.residual}
