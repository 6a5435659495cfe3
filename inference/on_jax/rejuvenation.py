"""Rejuvenation: copies that resampling made become different again, without leaving the target.

    eps' = m + rho (eps - m) + sqrt(1 - rho²) s xi,   xi ~ N(0, 1)        the prior N(m, s²) is left invariant
    accepted with probability min(1, psi_t(h') / psi_t(h))                so gamma_t is, too

Only the noise of the last transition moves: a move costs the decoder and the heads, no evaluation of f. *All*
trajectories of a resampled problem move: to move only the copies would favour some weights, and bias Z.

The twin of `probgram.inference.rejuvenation`, inside the compiled loop over depth; where no problem was resampled
nothing is computed.

Sources: Gilks and Berzuini 2001 (resample-move); Cotter, Roberts, Stuart and White, arXiv 1202.0709 (pCN).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array

from probgram.inference.choices import check_counts
from probgram.inference.on_jax.handlers import inner, where
from probgram.inference.on_jax.kernels import LastMove

if TYPE_CHECKING:
    from probgram.inference.on_jax.smc import Filter, SMCState


class Rejuvenation(NamedTuple):
    """What a rejuvenation move sees, after resampling and before the next step."""

    algorithm: "Filter"
    state: "SMCState"
    resampled: Array  # bool [B]
    ancestors: Array  # int32 [N, B]
    last: LastMove
    key: Array  # of this step's moves

    @property
    def movable(self) -> Array:
        """Trajectories of resampled problems that are not halted, bool `[N, B]`; none before the first step."""
        slots = self.resampled & self.last.taken
        return slots if self.state.halted is None else slots & ~self.state.halted

    @property
    def prior(self) -> dist.Distribution:
        """The law that the last noise came from."""
        chain = self.algorithm.given.model
        return chain.prior(self.last.proposal, self.state.t * chain.transitions - 1)

    def move(self, noise: Array) -> Any:
        """The state that other noise would have led to."""
        return self.algorithm.given.model.move(self.last.proposal, noise)

    def log_psi(self, latent: Any) -> Array:
        """The potential of other states at this depth, `[N, B]`."""
        algorithm, state = self.algorithm, self.state
        if algorithm.potential is None:
            return jnp.zeros_like(state.log_psi)

        def psi(latent: Any) -> Array:
            view = algorithm.view(latent, None, state.t, state.key)
            return algorithm.potential(view).astype(state.log_psi.dtype)  # type: ignore[misc]

        if not algorithm.potential.accumulates:
            return psi(latent)
        alive = ~jnp.isneginf(state.log_psi)
        return jnp.where(alive, jnp.where(alive, state.log_psi, 0.0) - psi(state.latent) + psi(latent), -jnp.inf)


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

    def __call__(self, seen: Rejuvenation) -> tuple[Any, Array, Array]:
        """The latent, its log psi and its last noise after the moves."""
        loc, scale = gaussian_prior(seen)
        start = (seen.state.latent, seen.state.log_psi, seen.last.noise)

        def move(number: Any, now: tuple[Any, Array, Array]) -> tuple[Any, Array, Array]:
            latent, log_psi, noise = now
            fresh, chance = jax.random.split(jax.random.fold_in(seen.key, number))
            xi = jax.random.normal(fresh, noise.shape, noise.dtype)
            proposed = loc + self.rho * (noise - loc) + (1 - self.rho**2) ** 0.5 * scale * xi
            moved = seen.move(proposed)
            moved_psi = seen.log_psi(moved)
            uniform = jax.random.uniform(chance, log_psi.shape, log_psi.dtype)
            accepted = (jnp.log(uniform) < moved_psi - log_psi) & seen.movable
            chosen = where(accepted, (moved, proposed), (latent, noise))
            return chosen[0], jnp.where(accepted, moved_psi, log_psi), chosen[1]

        return jax.lax.fori_loop(0, self.moves, move, start)


pcn = Pcn


def gaussian_prior(seen: Rejuvenation) -> tuple[Array, Array]:
    """Mean and standard deviation of the last transition's prior.

    Raises:
        ValueError: it is no Gaussian with independent elements.
    """
    base = inner(seen.prior)
    if not isinstance(base, dist.Normal):
        raise ValueError(f"rejuvenation moves Gaussian noise, and the prior is {type(base).__name__}")
    return base.loc, base.scale
