"""Training data in the order it is seen: a seeded permutation each epoch, and rows refilled as they end."""

import hashlib
from collections.abc import Callable, Mapping, Sized
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probgram.inference.objective import Rollout
from probgram.tasks import KnownAnswers, Task, group_answers, separate_answers


def as_known_answers(data: Any) -> KnownAnswers:
    """Bring training data to problems with their known answers.

    Args:
        data: a `Task` (its training examples; those of one with `grouped = False` a row a pair), `KnownAnswers`, a
            pair of integer arrays (x `[P, ...]`, y `[P, L]`), or a torch `Dataset` of such pairs.

    Raises:
        ValueError: none of these, or arrays that do not fit together.
    """
    if isinstance(data, KnownAnswers):
        return data
    if isinstance(data, Task):
        together = group_answers if getattr(data, "grouped", True) else separate_answers
        return together(*data.examples("train"))
    if (
        isinstance(data, tuple | list)
        and len(data) == 2
        and (isinstance(data, tuple) or all(hasattr(part, "ndim") and part.ndim > 1 for part in data))
    ):
        return group_answers(*(np.asarray(part) for part in data))
    if isinstance(data, Sized) and hasattr(data, "__getitem__") and not isinstance(data, Mapping):
        rows = [data[i] for i in range(len(data))]
        if rows and all(isinstance(row, tuple | list) and len(row) == 2 for row in rows):
            return group_answers(*(np.stack([np.asarray(row[k]) for row in rows]) for k in (0, 1)))
    raise ValueError(
        "data must be a Task, KnownAnswers, a pair (x, y) of integer arrays or a Dataset of such pairs, "
        f"got {type(data).__name__}"
    )


def fingerprint_of(known: KnownAnswers) -> str:
    """SHA-256 of training data, 16 hexadecimal digits: a run must go on with the data it began with."""
    digest = hashlib.sha256()
    for part in known:
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()[:16]


class Batches:
    """Hands out problems in a seeded order, and keeps a `Rollout`'s rows filled.

    Args:
        known: the problems.
        batch: B, rows of this rank's rollout.
        particles: N.
        depth: S, depth steps after which a row ends.
        seed: of the order.
        staggered: start rows at different ages, so that every optimiser step sees all depths.
        shared: give all particles of a problem the same answer to start with.
        by_pair: hand out a problem as often as it has known answers, else once an epoch.
        augment: what problems `[M, ...]` and their answers `[M, A, L]` are replaced by, drawn by a generator.
        rank: this process among `world`; each takes its own share of every global batch.
        world: number of processes.
    """

    def __init__(
        self,
        known: KnownAnswers,
        batch: int,
        particles: int,
        depth: int,
        seed: int,
        staggered: bool,
        shared: bool = False,
        by_pair: bool = False,
        augment: Callable[..., tuple[NDArray[np.int64], NDArray[np.int64]]] | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.known, self.batch, self.particles, self.depth, self.seed = known, batch, particles, depth, seed
        rows = np.arange(len(known.x))
        self.rows = np.repeat(rows, known.counts) if by_pair else rows  # what an epoch is made of
        self.shared, self.augment, self.rank, self.world = shared, augment, rank, world
        self.drawn = 0  # problems drawn so far by all ranks: the whole state of the order
        self.life = torch.arange(batch) % depth + 1 if staggered else torch.full((batch,), depth)

    def start(self, device: torch.device) -> Rollout:
        """A rollout whose rows are all at age 0."""
        x, answers, count, target = self._draw(self.batch, device)
        return Rollout(x, answers, count, target, torch.zeros(self.batch, dtype=torch.long))

    def refill(self, rollout: Rollout, also: Tensor | None = None) -> Rollout:
        """Replace the rows that have ended (and those of `also`, bool `[B]` on the host) by new problems."""
        ended = rollout.age >= self.life
        if also is not None:
            ended = ended | also
        rows = ended.nonzero()[:, 0]
        if not len(rows):
            return rollout
        self.life[rows] = self.depth
        x, answers, count, target = self._draw(len(rows), rollout.x.device)
        place = rows.to(rollout.x.device)
        return rollout._replace(
            x=rollout.x.index_copy(0, place, x),
            answers=rollout.answers.index_copy(0, place, answers),
            counts=rollout.counts.index_copy(0, rows, count),
            target=rollout.target.index_copy(1, place, target),
            age=rollout.age.index_fill(0, rows, 0),
        )

    def _draw(self, rows: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The next problems, their answers, the counts, and an answer drawn uniformly for each trajectory."""
        positions = self.drawn + self.rank + self.world * np.arange(rows)
        self.drawn += rows * self.world
        index = self._order(positions)
        count = self.known.counts[index]
        draws = np.random.default_rng([self.seed, 1, int(positions[0])]).random(
            (1 if self.shared else self.particles, rows)
        )
        target = torch.from_numpy((draws * count).astype(np.int64)).to(device).expand(self.particles, rows)
        parts = self.known.x[index], self.known.answers[index]
        if self.augment is not None:
            parts = self.augment(*parts, np.random.default_rng([self.seed, 2, int(positions[0])]))
        x, answers = (torch.from_numpy(part).to(device) for part in parts)
        return x, answers, torch.from_numpy(count), target

    def _order(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Problem at each position of the endless sequence of seeded permutations."""
        size = len(self.rows)
        index = np.empty(len(positions), dtype=np.int64)
        epochs = positions // size
        for epoch in np.unique(epochs):  # two at most, unless the data set is smaller than a batch
            inside = epochs == epoch
            index[inside] = self._permutation(int(epoch))[positions[inside] % size]
        return index

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        if getattr(self, "_cached", (-1, None))[0] != epoch:
            self._cached = (epoch, np.random.default_rng([self.seed, 0, epoch]).permutation(self.rows))
        return self._cached[1]
