"""Training problems as NumPy arrays, in the order they are drawn: a seeded permutation each epoch."""

import hashlib
from collections.abc import Callable, Mapping, Sized
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

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


class Problems(NamedTuple):
    """Problems as they were drawn; R of them, N trajectories each.

    Fields:
        x: `[R, ...]`.
        answers: known answers, padded, `[R, M, L]`.
        counts: how many are known, `[R]`.
        target: an answer drawn uniformly for each trajectory, `[N, R]`.
    """

    x: NDArray[np.int64]
    answers: NDArray[np.int64]
    counts: NDArray[np.int64]
    target: NDArray[np.int64]


class Drawing:
    """Hands out problems in a seeded order, and says which rows of a rollout are to have new ones.

    Args:
        known: the problems.
        batch: B, rows of a rollout.
        particles: N.
        depth: S, depth steps after which a row ends.
        seed: of the order.
        staggered: start rows at different ages, so that every optimiser step sees all depths.
        shared: give all particles of a problem the same answer to start with.
        by_pair: hand out a problem as often as it has known answers, else once an epoch.
        augment: what problems `[M, ...]` and their answers `[M, A, L]` are replaced by, drawn by a generator.
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
    ) -> None:
        self.known, self.batch, self.particles, self.depth, self.seed = known, batch, particles, depth, seed
        rows = np.arange(len(known.x))
        self.rows = np.repeat(rows, known.counts) if by_pair else rows  # what an epoch is made of
        self.shared, self.augment = shared, augment
        self.drawn = 0  # problems drawn so far: the whole state of the order
        self.life = np.arange(batch) % depth + 1 if staggered else np.full(batch, depth)

    def ended(self, age: NDArray[np.int64], also: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
        """Indices of the rows that have lived their time (and those of `also`, bool `[B]`); they live anew."""
        ended = age >= self.life
        if also is not None:
            ended = ended | also
        rows = ended.nonzero()[0]
        self.life[rows] = self.depth
        return rows

    def draw(self, rows: int) -> Problems:
        """The next problems, their answers, the counts, and an answer drawn uniformly for each trajectory."""
        positions = self.drawn + np.arange(rows)
        self.drawn += rows
        index = self._order(positions)
        count = self.known.counts[index]
        draws = np.random.default_rng([self.seed, 1, int(positions[0])]).random(
            (1 if self.shared else self.particles, rows)
        )
        target = np.broadcast_to((draws * count).astype(np.int64), (self.particles, rows)).copy()
        parts = self.known.x[index], self.known.answers[index]
        if self.augment is not None:
            parts = self.augment(*parts, np.random.default_rng([self.seed, 2, int(positions[0])]))
        return Problems(*parts, count, target)

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
