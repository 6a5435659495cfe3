"""Rejuvenation: copies that resampling made become different again, without leaving the target.

    eps' = m + rho (eps - m) + sqrt(1 - rho²) s xi,   xi ~ N(0, 1)        the prior N(m, s²) is left invariant
    accepted with probability min(1, psi_t(h') / psi_t(h))                so gamma_t is, too

Only the noise of the last transition moves: a move costs the decoder and the heads, no evaluation of f. *All*
trajectories of a resampled problem move: to move only the copies would favour some weights, and bias Z.

Sources: Gilks and Berzuini 2001 (resample-move); Cotter, Roberts, Stuart and White, arXiv 1202.0709 (pCN).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from probgram import state as trees
from probgram.chain import Chain
from probgram.inference.choices import check_counts
from probgram.inference.kernels import LastMove

if TYPE_CHECKING:
    from probgram.inference.smc import Filter, SMCState


class Rejuvenation(NamedTuple):
    """What a rejuvenation move sees, after resampling and before the next step."""

    algorithm: "Filter"
    state: "SMCState"
    resampled: Tensor  # bool [B]
    ancestors: Tensor  # int64 [N, B]
    last: LastMove
    generator: torch.Generator

    @property
    def movable(self) -> Tensor:
        """Trajectories of resampled problems that are not halted, bool `[N, B]`."""
        slots = self.resampled.expand(self.state.log_psi.shape)
        return slots if self.state.halted is None else slots & ~self.state.halted

    @property
    def prior(self) -> Any:
        """The law that the last noise came from."""
        chain: Chain = self.algorithm.kernel.model  # type: ignore[assignment]
        return chain.prior(self.last.proposal, self.state.t * chain.transitions - 1)

    def move(self, noise: Tensor) -> Any:
        """The state that other noise would have led to."""
        chain: Chain = self.algorithm.kernel.model  # type: ignore[assignment]
        return chain.move(self.last.proposal, noise)

    def log_psi(self, latent: Any) -> Tensor:
        """The potential of other states at this depth, `[N, B]`."""
        algorithm = self.algorithm
        if algorithm.potential is None:
            return torch.zeros_like(self.state.log_psi)
        log_psi = algorithm.potential(algorithm.view(latent, None, self.state.t)).to(self.state.log_psi)
        if not algorithm.potential.accumulates:
            return log_psi
        own = algorithm.potential(algorithm.view(self.state.latent, None, self.state.t)).to(log_psi)
        before = torch.where(self.state.log_psi.isneginf(), -torch.inf, self.state.log_psi - own)
        return before + log_psi


@dataclass(frozen=True)
class Pcn:
    """Preconditioned Crank-Nicolson moves on the last noise; `pcn` is its name in calls.

    Attributes:
        rho: correlation of the proposal with what was, in [0, 1); 0 draws anew.
        moves: how many, one after the other.
    """

    rho: float = 0.7
    moves: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rho < 1:
            raise ValueError(f"rho must be at least 0 and below 1, got {self.rho}")
        check_counts({"moves": self.moves})

    def __call__(self, seen: Rejuvenation) -> tuple[Any, Tensor, Tensor]:
        """The latent, its log psi and its last noise after the moves."""
        loc, scale = gaussian_prior(seen)
        latent, log_psi, noise = seen.state.latent, seen.state.log_psi, seen.last.noise
        for _ in range(self.moves):
            fresh = torch.empty_like(noise).normal_(generator=seen.generator)
            proposed = loc + self.rho * (noise - loc) + (1 - self.rho**2) ** 0.5 * scale * fresh
            moved = seen.move(proposed)
            moved_psi = seen.log_psi(moved)
            uniform = torch.empty_like(log_psi).uniform_(generator=seen.generator)
            accepted = (uniform.log() < moved_psi - log_psi) & seen.movable
            latent = trees.where(accepted, moved, latent)
            noise = trees.where(accepted, proposed, noise)
            log_psi = torch.where(accepted, moved_psi, log_psi)
        return latent, log_psi, noise


pcn = Pcn


def gaussian_prior(seen: Rejuvenation) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the last transition's prior.

    Raises:
        ValueError: it is no Gaussian with independent elements.
    """
    prior = seen.prior
    base = prior.base_dist if isinstance(prior, Independent) else prior
    if not isinstance(base, Normal):
        raise ValueError(f"rejuvenation moves Gaussian noise, and the prior is {type(base).__name__}")
    return base.loc, base.scale
