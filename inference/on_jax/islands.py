"""Islands that exchange particles: a filter on many devices whose messages stay between neighbours.

    run = smc.run(model, series, width=1000, depth=100, islands=8, exchange=ring(every=4, share=0.25))

Each island is a particle filter of its own. Every few depth steps, before it resamples, it hands a share of its
particles to the next island of a ring, and they take their weights along: particle n of island i weighs Z_i·W_i^n
among all, wherever it goes, and the Z_i of an island is the sum of what it then holds. So the weighted particles of
all islands together, and with them the mean of the Z_i, are what they were, and Z stays unbiased; but no island is
left behind for good with particles that weigh nothing.

Global resampling needs the weights of all at every step; this needs `share`·N particles of one neighbour, now and
then. Islands lie on the problem axis of a mesh: `device_mesh(particles=1, problems=8)`.

Sources: Bolić, Djurić and Hong, IEEE Transactions on Signal Processing 53(7), 2005 (local exchange); Míguez and
Vázquez, arXiv 1504.01079 (its weights, and convergence); Whiteley, Lee and Heine, arXiv 1309.2918, algorithm 1, of
which this is the case of a matrix alpha that first permutes and then resamples within blocks.
"""

from dataclasses import dataclass
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


@dataclass(frozen=True)
class Exchange:
    """When islands exchange particles, and how many: `ring` makes it."""

    every: int = 4
    share: float = 0.25

    def __post_init__(self) -> None:
        if isinstance(self.every, bool) or not isinstance(self.every, Integral) or self.every < 1:
            raise ValueError(f"every must be an integer of at least 1, got {self.every!r}")
        if not 0 < self.share <= 0.5:
            raise ValueError(f"share must be above 0 and at most 0.5, got {self.share}")

    def acts_at(self, depth: Any) -> Any:
        """Whether it acts after so many depth steps, a number or a traced one."""
        return (depth > 0) & (depth % self.every == 0)

    def swap(self, tree: Any, islands: int) -> Any:
        """Take every (1 / share)-th slot from the island before, in a ring.

        Args:
            tree: leaves `[N, B·I, ...]`, the islands of a problem side by side.
            islands: I.
        """
        stride = round(1 / self.share)

        def swapped(leaf: Array) -> Array:
            going = leaf[::stride]
            rings = going.reshape(going.shape[0], -1, islands, *leaf.shape[2:])  # [N / stride, B, I, ...]
            return leaf.at[::stride].set(jnp.roll(rings, 1, axis=2).reshape(going.shape))

        return jax.tree.map(swapped, tree)

    def describe(self) -> str:
        """Settings in a line."""
        return f"ring, a share of {self.share:g} every {self.every}"


def ring(every: int = 4, share: float = 0.25) -> Exchange:
    """Let islands hand particles to the next one, in a ring.

    Args:
        every: depth steps between two exchanges.
        share: of its particles that an island hands on, above 0 and at most 0.5; rounded to one in so many.

    Raises:
        ValueError: every is below 1, or share out of range.
    """
    return Exchange(every, share)


def joint_slots(width: int, columns: int, islands: int) -> Array:
    """Each slot's number among all islands of its problem, island by island: int32 `[N, B·I]`."""
    island = jnp.arange(columns, dtype=jnp.int32) % islands
    return island * width + jnp.arange(width, dtype=jnp.int32)[:, None]
