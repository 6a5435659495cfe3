"""Graph colouring: give the vertices colours so that no edge joins two of one colour.

A problem is a graph, an answer one colour a vertex. Renaming colours changes nothing, so among colourings that are
renamings of each other one is the answer: the *canonical* one, whose colours are numbered in order of first
appearance. The others fail to verify, or a graph would have up to six times the answers that are enumerated;
`conflicts`, the published measure, does not look at names.

Two encodings. "vertices" (default): one token a vertex, its edges to earlier vertices as an integer (see
`graphs`), of which there are 2^(n - 1). "matrix": one token an entry of the adjacency, 2 on the diagonal; in the
answer each entry of a row repeats the colour of its vertex, so that nothing is padded.

All colourings of a graph are found a vertex at a time, the conflicting ones dropped as soon as they conflict.

Data set: Erdős–Rényi graphs, those kept that can be coloured, 7,002 for training and 255 held out (n = 8) or 13,465
and 192 (n = 10). The published edge probability is not known: it is an argument here, and belongs beside every
figure, since it decides how many colourings a graph has. Source: Baek et al., arXiv 2605.19376, section 5.1.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from probgram.tasks import graphs
from probgram.tasks.board import Board, Cells, Marks
from probgram.tasks.drawn import (
    NUMBER,
    check_between,
    check_whole,
    check_word,
    drawn_apart,
    named_arguments,
    written,
)
from probgram.tasks.task import Array, Split, check_length

Encoding = Literal["vertices", "matrix"]
SplitRule = Literal["orbit", "input"]

Colourings = tuple[NDArray[np.int64], NDArray[np.int64]]  # the graph of each, `[M]`, and its colours, `[M, n]`

PUBLISHED = {8: (7_002, 255), 10: (13_465, 192)}  # training and test graphs of the source, by n
LARGEST = {"vertices": 16, "matrix": 62}  # n: 32,768 tokens to embed; vertices are bits of one integer
BLOCK, MOST = 1 << 12, 1 << 20  # graphs coloured at a time, and colourings of them that are held at most


class Colouring:
    """Graph colouring as a `Task`.

    Args:
        n: vertices, from 3 to 16, with encoding="matrix" to 62; many sparse ones have too many colourings to list.
        edge_probability: with which two vertices are joined; unpublished, 0.4 has been used by others.
        colours: how many colours there are, at least 2.
        train: training graphs; None: as published for n = 8 and 10, else 10,000.
        test: held-out graphs; None: as published, else 200.
        encoding: "vertices" (L = n) or "matrix" (L = n²).
        split: "orbit" holds out whole isomorphism classes, so that no test graph is a relabelled training graph;
            "input", as published, single graphs.
        seed: of the graphs, and of which are held out.

    Raises:
        ValueError: a number out of range, or an unknown encoding or split.
    """

    def __init__(
        self,
        n: int = 8,
        edge_probability: float = 0.4,
        colours: int = 3,
        train: int | None = None,
        test: int | None = None,
        encoding: Encoding = "vertices",
        split: SplitRule = "orbit",
        seed: int = 0,
    ) -> None:
        self.fewer = train is None and test is None  # where there are not so many
        check_whole(3, n=n)
        published = PUBLISHED.get(n, (10_000, 200))
        train, test = (p if given is None else given for p, given in zip(published, (train, test), strict=True))
        check_whole(2, colours=colours)
        check_whole(train=train, test=test)
        check_between(0, 1, edge_probability=edge_probability)
        check_word("encoding", encoding, "vertices", "matrix")
        if n > LARGEST[encoding]:
            raise ValueError(f'n must be at most {LARGEST[encoding]} with encoding="{encoding}", got {n}')
        check_word("split", split, "orbit", "input")
        self.n, self.edge_probability, self.colours = int(n), float(edge_probability), int(colours)
        self.train, self.test, self.encoding, self.split, self.seed = train, test, encoding, split, seed
        self.name = f"colouring{n}" + ("" if colours == 3 else f"-{colours}colours")
        self.name += "" if edge_probability == 0.4 else f"-p{written(edge_probability)}"
        self.name += "-matrix" if encoding == "matrix" else ""
        self.length = n if encoding == "vertices" else n * n
        self.input_size = 1 << (n - 1) if encoding == "vertices" else 3
        self.output_size = self.colours

    @classmethod
    def from_name(cls, name: str, split: str | None = None) -> "Colouring | None":
        """Build "colouring8", "colouring10-p0.5", "colouring8-4colours-matrix"; None for another family's name."""
        pattern = (
            rf"colouring(?P<n>\d+)(?:-(?P<colours>\d+)colours)?(?:-p(?P<edge_probability>{NUMBER}))?"
            r"(?:-(?P<encoding>matrix))?"
        )
        arguments = named_arguments(pattern, name)
        if arguments is None:
            return None
        return cls(**(arguments if split is None else arguments | {"split": split}))

    @property
    def about(self) -> dict[str, Any]:
        """What belongs beside every figure: edge probability and colours."""
        return {"edge probability": self.edge_probability, "colours": self.colours}

    def __repr__(self) -> str:
        return (
            f"Colouring({self.n}, edge_probability={self.edge_probability}, colours={self.colours}, "
            f"train={self.train}, test={self.test}, encoding={self.encoding!r}, split={self.split!r}, "
            f"seed={self.seed})"
        )

    # -- reading and drawing ----------------------------------------------------------------------------------

    def encode(self, problem: str | Sequence[Any] | Array) -> NDArray[np.int64]:
        """Read a graph: edges such as "0-1 1-2", pairs of vertices, its adjacency, or its own tokens.

        Returns:
            The problem, int64 `[L]`.

        Raises:
            ValueError: not a graph of n vertices.
        """
        if self.encoding == "matrix" and not isinstance(problem, str):
            values = problem.tolist() if hasattr(problem, "tolist") else problem
            if isinstance(values, Sequence) and len(values) == self.length and isinstance(values[0], int):
                matrix = np.array(values).reshape(self.n, self.n)
                problem = np.where(np.eye(self.n) * (matrix == 2), 0, matrix)
        return self._encoded(graphs.to_tokens(graphs.read(problem, self.n)))

    def decode(self, y: Array) -> str:
        """Draw one colouring `[L]`: a line for each colour, with its vertices."""
        colours = np.asarray(self._colours(y))
        return "\n".join(
            f"colour {colour}: {' '.join(map(str, np.flatnonzero(colours == colour)))}"
            for colour in np.unique(colours)
        )

    @property
    def board(self) -> Board:
        """A cell for each vertex with the number of its colour, and the edges between them."""
        return Board(
            tuple(map(str, range(self.colours))), self._vertices, broken=self._in_conflict, edges=self._pairs
        )

    def _vertices(self, y: NDArray[np.int64]) -> Cells:
        return self._colours(y)[..., None, :]

    def _in_conflict(self, x: NDArray[np.int64], y: NDArray[np.int64]) -> Marks:
        """Vertices that an edge joins to one of their colour, `[M, 1, n]`."""
        colours = self._colours(y)
        alike = (colours[..., :, None] == colours[..., None, :]) & self._adjacency(x)
        return alike.any(-1)[..., None, :]

    def _pairs(self, x: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.argwhere(np.triu(self._adjacency(x)))

    # -- truth ------------------------------------------------------------------------------------------------

    def verify(self, x: Array, y: Array) -> Array:
        """Whether y colours x properly and canonically; bool `[...]`.

        Raises:
            ValueError: y does not have L tokens.
        """
        return self.violations(x, y) == 0

    def violations(self, x: Array, y: Array) -> Array:
        """Conflicts, plus tokens that are no colour, that skip a colour, or differ within a row; int `[...]`."""
        total = self.conflicts(x, y)
        colours = self._colours(y)
        total = total + ((colours < 0) | (colours >= self.colours)).sum(-1)
        for i in range(self.n):
            # In order of first appearance, colour c needs a c - 1 before it. To add never wraps below 0.
            follows = (colours[..., :i] + 1 == colours[..., i : i + 1]).any(-1)
            total = total + ((colours[..., i] != 0) & ~follows) * 1
        if self.encoding == "matrix":
            rows = y.reshape(*y.shape[:-1], self.n, self.n)
            total = total + (rows != colours[..., None]).sum(-1).sum(-1)
        return total

    def conflicts(self, x: Array, y: Array) -> Array:
        """Edges of x whose two ends have one colour in y, the published measure; int `[...]`."""
        check_length(y, self.length)
        colours = self._colours(y)
        total = 0
        for i in range(1, self.n):
            for j in range(i):
                total = total + self._edge(x, i, j) * (colours[..., i] == colours[..., j])
        return total

    def solutions(self, x: Array) -> NDArray[np.int64]:
        """Every canonical colouring of one graph, `[M, L]` in lexicographic order."""
        tokens = np.asarray(x)
        if tokens.shape != (self.length,) or tokens.min() < 0 or tokens.max() >= self.input_size:
            raise ValueError(
                f"x must be one problem of {self.name}, [{self.length}] known tokens, got {tokens.shape}"
            )
        graph = tokens if self.encoding == "vertices" else graphs.to_tokens(tokens.reshape(self.n, self.n) == 1)
        (_, (_, colours)) = next(self._coloured(graph[None]))
        return self._answered(colours)

    # -- data -------------------------------------------------------------------------------------------------

    def examples(self, split: Split) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pairs (x `[M, L]`, y `[M, L]`) of the training or the test graphs, one row a colouring."""
        if split not in ("train", "test"):
            raise ValueError(f'split must be "train" or "test", got {split!r}')
        chosen = self.problems[split == "test"]
        x, y = [], []
        for block, (graph, colours) in self._coloured(chosen):
            x.append(block[graph])
            y.append(colours)
        return self._encoded(np.concatenate(x)), self._answered(np.concatenate(y))

    @cached_property
    def problems(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Training and test graphs in the "vertices" encoding, `[train, n]` and `[test, n]`."""
        return drawn_apart(self._draw, self._kind, self.train, self.test, self.seed, self.name, self.fewer)

    def _kind(self, graph: NDArray[np.int64]) -> NDArray[Any]:
        if self.split == "input":
            return np.arange(len(graph))
        return graphs.invariant(graphs.from_tokens(graph))

    def _draw(self, rng: np.random.Generator, rows: int) -> NDArray[np.int64]:
        drawn = graphs.to_tokens(graphs.erdos_renyi(rng, rows, self.n, self.edge_probability))
        return np.concatenate([block[np.unique(graph)] for block, (graph, _) in self._coloured(drawn)])

    # -- colourings -------------------------------------------------------------------------------------------

    def _coloured(self, graph: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], Colourings]]:
        """Graphs `[G, n]` in parts whose colourings fit into memory, with those."""
        parts = [graph[start : start + BLOCK] for start in range(0, len(graph), BLOCK)][::-1]
        while parts:
            part = parts.pop()
            found = self._colourings(part)
            if found is not None:
                yield part, found
            elif len(part) > 1:
                parts += [part[len(part) // 2 :], part[: len(part) // 2]]
            else:
                raise ValueError(
                    f"a graph of {self.name} has more than {MOST:,} colourings or beginnings of one, which are too "
                    "many to list: take fewer vertices or a higher edge_probability"
                )

    def _colourings(self, graph: NDArray[np.int64]) -> Colourings | None:
        """All canonical colourings of graphs `[G, n]`, in order; None where they are more than `MOST`."""
        earlier = np.tril(graphs.from_tokens(graph), -1) @ (1 << np.arange(self.n))  # bits of earlier neighbours
        which = np.arange(len(graph))
        most = min(self.colours, self.n)
        members = np.zeros((len(graph), most), np.int64)  # the vertices of each colour, as bits
        for i in range(self.n):
            new = np.arange(most) <= (members != 0).sum(1, keepdims=True)  # an old colour or the next one
            row, colour = (new & (members & earlier[which, i, None] == 0)).nonzero()
            if len(row) > MOST:
                return None
            which, members = which[row], members[row]
            members[np.arange(len(row)), colour] |= 1 << i
        colours = np.zeros((len(which), self.n), np.int64)
        for c in range(1, most):
            colours += c * (members[:, c, None] >> np.arange(self.n) & 1)
        return which, colours

    # -- encodings --------------------------------------------------------------------------------------------

    def _adjacency(self, x: NDArray[np.int64]) -> NDArray[np.bool_]:
        """The graph of one problem, `[n, n]`."""
        return graphs.from_tokens(x) if self.encoding == "vertices" else x.reshape(self.n, self.n) == 1

    def _edge(self, x: Array, i: int, j: int) -> Array:
        """Whether x joins vertices j < i, `[...]`."""
        return graphs.edge(x, i, j) if self.encoding == "vertices" else x[..., i * self.n + j] == 1

    def _colours(self, y: Array) -> Array:
        """The colour of each vertex, `[..., n]`: in a matrix those on the diagonal."""
        return y if self.encoding == "vertices" else y[..., :: self.n + 1]

    def _encoded(self, graph: NDArray[np.int64]) -> NDArray[np.int64]:
        """From vertex tokens `[..., n]` to this task's problems `[..., L]`; a matrix has 2 on its diagonal."""
        if self.encoding == "vertices":
            return graph
        matrix = graphs.from_tokens(graph) + 2 * np.eye(self.n, dtype=np.int64)
        return matrix.reshape(*graph.shape[:-1], self.length)

    def _answered(self, colours: NDArray[np.int64]) -> NDArray[np.int64]:
        """From colours `[..., n]` to this task's answers `[..., L]`."""
        return colours if self.encoding == "vertices" else np.repeat(colours, self.n, axis=-1)
