"""Reachability: does a path of a graph join one vertex, the start, to another, the goal?

Serial: a search knows the vertices at distance d only once it knows those at d − 1. The problem is complete for L,
logarithmic space, and out of reach of any fixed number of layers, however wide, unless TC⁰ = L; depth has to grow
with the distance, for which its logarithm is enough (by joining ways of doubled length).

Source: Reingold, "Undirected connectivity in log-space", J. ACM 55, 2008; for transformers Merrill and Sabharwal,
arXiv 2207.00729.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from probgram.tasks import graphs
from probgram.tasks.drawn import NUMBER, Problems, check_between, check_whole, check_word, drawn_apart, written
from probgram.tasks.single import SingleAnswer
from probgram.tasks.task import Array

Targets = Literal["last", "every"]


class Reachability(SingleAnswer):
    """Reachability as a `Task`: from vertex 0 to vertex n − 1.

    A problem is a graph, one token a vertex (see `graphs`); start and goal are its first and its last vertex.

    Half of the problems have a path. Of these every distance from 1 to `longest` has an equal share; of the others
    so has every number of steps after which the search from the start finds nothing new, and the goal is not alone
    either. An answer that is always the same is right half the time, the neighbours of start and goal tell little
    (62% can be had from their numbers), those and the numbers of edges and of lone vertices more (75%). Below about
    ten vertices there are too few different graphs of some kinds, and shares are what `examples` shows (with n = 6,
    95% have a path).

    Args:
        n: vertices, from 4 to 24.
        longest: the largest distance, at most n − 3, which is the difficulty; see `distance`. None: 6, or n − 3
            where that is less.
        targets: "last", every token of the answer is 1 where there is a path and 0 where there is none; "every",
            token i is the distance from the start to vertex i, n where there is none. A guess of the former is
            right half the time, so judge it by one draw or by the vote, not by pass@N.
        degree: mean number of neighbours of a vertex in the graphs (Erdős–Rényi) that problems are picked from.
        train: training problems; None: 20,000.
        test: held-out problems, none of them a training problem; None: 1,000. With neither given, where
            there are fewer, all there are, 15% of them held out.
        seed: of the problems.

    Raises:
        ValueError: a number out of range, or unknown targets.
    """

    pattern = (
        rf"reachability(?P<n>\d+)(?:-to(?P<longest>\d+))?(?:-degree(?P<degree>{NUMBER}))?(?:-(?P<targets>every))?"
    )

    def __init__(
        self,
        n: int = 12,
        longest: int | None = None,
        targets: Targets = "last",
        degree: float = 1.5,
        train: int | None = None,
        test: int | None = None,
        seed: int = 0,
    ) -> None:
        check_whole(4, n=n)
        longest = min(6, n - 3) if longest is None else longest
        check_whole(longest=longest)
        check_word("targets", targets, "last", "every")
        if n > 24:
            raise ValueError(f"n must be at most 24, got {n}")
        if longest > n - 3:
            raise ValueError(f"longest must be at most n - 3 = {n - 3}, got {longest}")
        check_between(0, n - 1, "n - 1 = ", degree=degree)
        self.n, self.longest, self.targets, self.degree = n, longest, targets, float(degree)
        self.repeats = targets == "last"
        name = f"reachability{n}-to{longest}" + ("" if degree == 1.5 else f"-degree{written(degree)}")
        name += "-every" if targets == "every" else ""
        super().__init__(name, n, 1 << (n - 1), 2 if self.repeats else n + 1, train, test, seed)

    @property
    def about(self) -> dict[str, Any]:
        """Vertices, longest distance, targets and mean degree."""
        return {"n": self.n, "longest": self.longest, "targets": self.targets, "degree": self.degree}

    def distance(self, x: Array) -> NDArray[np.int64]:
        """Edges on the shortest path from start to goal, `[..., L]` to `[...]`; −1 where there is none."""
        return graphs.distances(graphs.from_tokens(self._checked(x)))[..., -1]

    def answer(self, x: Problems) -> NDArray[np.int64]:
        """Whether there is a path, at every token, or the distances of all vertices, `[..., L]`."""
        distance = graphs.distances(graphs.from_tokens(x))
        if self.repeats:
            return np.repeat((distance[..., -1:] >= 0).astype(np.int64), self.n, axis=-1)
        return np.where(distance < 0, self.n, distance)

    @cached_property
    def problems(self) -> tuple[Problems, Problems]:
        """Training and test problems, `[train, L]` and `[test, L]`, balanced by distance."""
        parts: tuple[list[Problems], list[Problems]] = ([], [])
        classes = [(steps, joined) for steps in range(1, self.longest + 1) for joined in (True, False)]
        for i, (steps, joined) in enumerate(classes):
            train, test = ((size + len(classes) - 1 - i) // len(classes) for size in (self.train, self.test))
            name = f"{self.name} ({'a path' if joined else 'no path'}, {steps} steps)"
            found = drawn_apart(self._pick(steps, joined), self.kind, train, test, [self.seed, i], name, self.fewer)
            for part, rows in zip(parts, found, strict=True):
                part.append(rows)
        rng = np.random.default_rng(self.seed)
        x_train, x_test = (rng.permutation(np.concatenate(part)) for part in parts)
        return x_train, x_test

    def draw(self, rng: np.random.Generator, rows: int) -> Problems:
        """Problems of random graphs as they come, `[rows, L]`: not balanced by distance, as `problems` are."""
        return graphs.to_tokens(graphs.erdos_renyi(rng, rows, self.n, self.degree / (self.n - 1)))

    def _pick(self, steps: int, joined: bool) -> Callable[[np.random.Generator, int], Problems]:
        """Return a function that draws problems of one class: random graphs with such a pair, made its ends."""

        def draw(rng: np.random.Generator, rows: int) -> Problems:
            adjacency = graphs.erdos_renyi(rng, rows, self.n, self.degree / (self.n - 1))
            distance = np.stack([graphs.distances(adjacency, source) for source in range(self.n)], 1)  # [M, n, n]
            fits = distance == steps
            if not joined:
                searched = distance.max(-1, keepdims=True) == steps
                fits = (distance < 0) & searched & (adjacency.sum(-1) > 0)[:, None]
            # The largest of independent uniforms is a fair choice among the pairs that fit.
            pair = (rng.random(fits.shape) * fits).reshape(rows, -1).argmax(-1)
            order = self._ends(pair // self.n, pair % self.n)
            graph = np.take_along_axis(np.take_along_axis(adjacency, order[:, :, None], 1), order[:, None, :], 2)
            return graphs.to_tokens(graph[fits.any((-1, -2))])

        return draw

    def _ends(self, start: NDArray[np.int64], goal: NDArray[np.int64]) -> NDArray[np.int64]:
        """An order of the vertices, `[M, n]`: `start` `[M]`, the others as they were, `goal` `[M]`."""
        places = np.arange(self.n)
        key = np.where(places == start[:, None], -1, np.where(places == goal[:, None], self.n, places))
        return key.argsort(-1)

    def encode(self, problem: str | Sequence[Any] | Array) -> NDArray[np.int64]:
        """Read a graph: edges such as "0-1 1-2", pairs of vertices, its adjacency, or its own tokens; `[L]`.

        Raises:
            ValueError: not a graph of n vertices.
        """
        return graphs.to_tokens(graphs.read(problem, self.n))

    def word(self, token: int) -> str:
        """Yes or no, or a distance, "-" where there is no path."""
        if self.repeats:
            return "yes" if token else "no"
        return "-" if token == self.n else str(token)
