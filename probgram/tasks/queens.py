"""N-Queens completion: place the missing queens so that none attacks another.

Two encodings. "rows" (default): one token a row, the queen's column 0 … n−1, or n for a blank row.
"board": one token a square, 1 for a queen; in a problem 0 means open, in an answer it means empty.

Data set: remove k queens, k in {n−3, n−2, n−1}, from every solution (n = 8: 5,148 unique problems with
8,464 answers in 648 symmetry orbits). Source: Baek et al., arXiv 2605.19376, section 5.1.
"""

import itertools
import re
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from probgram.tasks.board import Board, Cells, Marks, crowded
from probgram.tasks.task import Array, KnownAnswers, Split, UnknownAnswers, check_length, group_answers

Encoding = Literal["rows", "board"]
SplitRule = Literal["orbit", "input"]


LARGEST = 11  # n beyond which the problems of a data set fill tens of gigabytes
NODES = 10_000_000  # of a search for all completions, after which they are too many: some ten seconds


class Queens:
    """N-Queens completion as a `Task`.

    Args:
        n: the board's side, at least 4 (smaller boards have no solution or a trivial one).
        encoding: "rows" (L = n) or "board" (L = n²).
        split: "orbit" holds out whole symmetry orbits of problems, "input" single problems; either way
            15% of them, and no test problem is ever seen in training.
        seed: which ones are held out.

    Raises:
        ValueError: n is below 4, or an unknown encoding or split.
    """

    def __init__(self, n: int = 8, encoding: Encoding = "rows", split: SplitRule = "orbit", seed: int = 0) -> None:
        if isinstance(n, bool) or not isinstance(n, int | np.integer):
            raise ValueError(f"n must be an integer, got {n!r}")
        if n < 4:
            raise ValueError(f"n must be at least 4, got {n}")
        if encoding not in ("rows", "board"):
            raise ValueError(f'encoding must be "rows" or "board", got {encoding!r}')
        if split not in ("orbit", "input"):
            raise ValueError(f'split must be "orbit" or "input", got {split!r}')
        self.n, self.encoding, self.split, self.seed = int(n), encoding, split, seed
        self.name = f"queens{n}" + ("-board" if encoding == "board" else "")
        self.length = n if encoding == "rows" else n * n
        self.input_size = n + 1 if encoding == "rows" else 2
        self.output_size = n if encoding == "rows" else 2

    @classmethod
    def from_name(cls, name: str, split: str | None = None) -> "Queens | None":
        """Build "queens8", "queens8-board"; None for another family's name."""
        found = re.fullmatch(r"queens(\d+)(-board)?", name)
        if found is None:
            return None
        return cls(int(found[1]), encoding="board" if found[2] else "rows", split=split or "orbit")  # type: ignore[arg-type]

    def __repr__(self) -> str:
        return f"Queens({self.n}, encoding={self.encoding!r}, split={self.split!r}, seed={self.seed})"

    # -- reading and drawing ----------------------------------------------------------------------------------

    def encode(self, problem: str | Sequence[Any] | Array) -> NDArray[np.int64]:
        """Read a board: `Q` and `.` row by row, or a list of columns.

        Args:
            problem: text with n rows of `Q` and `.` (rows apart by newlines, spaces or `/`), text with n
                columns such as "0 . . 3 . . . .", or a list of n columns with None, -1 or n for a blank row;
                in the "board" encoding also its own n² tokens.

        Returns:
            The problem, int64 `[L]`.

        Raises:
            ValueError: not a board of this size, or two of its queens attack each other.
        """
        columns = self._read_text(problem) if isinstance(problem, str) else self._read_columns(problem)
        for (r, c), (s, d) in itertools.combinations([(r, c) for r, c in enumerate(columns) if c < self.n], 2):
            if c == d or abs(c - d) == s - r:
                line = f"column {c}" if c == d else "a diagonal"
                raise ValueError(
                    f"the queens in rows {r} and {s} clash: they share {line} (rows and columns count from 0)"
                )
        return self._from_columns(np.array(columns, dtype=np.int64))

    def decode(self, y: Array) -> str:
        """Draw one board `[L]` with `Q` and `.`, a line a row."""
        columns = self._columns(np.asarray(y))
        return "\n".join(" ".join("Q" if c == column else "." for c in range(self.n)) for column in columns)

    @property
    def board(self) -> Board:
        """Squares with and without a queen."""
        return Board(
            ("", "♛"), self._squares, self._squares, lambda x: self._squares(x) > 0, self._attacked, chequered=True
        )

    # -- truth ------------------------------------------------------------------------------------------------

    def verify(self, x: Array, y: Array) -> Array:
        """Whether y completes x: n queens, none attacked, all given queens kept; bool `[...]`.

        Raises:
            ValueError: y does not have L tokens.
        """
        return self.violations(x, y) == 0

    def violations(self, x: Array, y: Array) -> Array:
        """Attacked pairs, plus given queens that are gone, plus rows without exactly one queen; int `[...]`."""
        check_length(y, self.length)
        if self.encoding == "board":
            return self._board_violations(x, y)
        if hasattr(y, "long"):  # columns and distances may add up to 2n, beyond uint8
            y = y if y.is_floating_point() else y.long()
        elif y.dtype.kind != "f":
            y = y.astype(np.int32)
        total = ((x != self.n) & (x != y)).sum(-1) + ((y < 0) | (y >= self.n) | (y % 1 != 0)).sum(-1)
        for d in range(1, self.n):
            upper, lower = y[..., d:], y[..., :-d]
            total = total + ((upper == lower) | (upper == lower + d) | (upper + d == lower)).sum(-1)
        return total

    def _board_violations(self, x: Array, y: Array) -> Array:
        queens = (y == 1).reshape(*y.shape[:-1], self.n, self.n)
        total = ((x == 1) & (y != 1)).sum(-1) + ((y != 0) & (y != 1)).sum(-1)
        total = total + (queens.sum(-1) != 1).sum(-1)
        for d in range(1, self.n):
            above, below = queens[..., d:, :], queens[..., :-d, :]
            total = total + (above & below).sum(-1).sum(-1)
            total = total + (above[..., d:] & below[..., :-d]).sum(-1).sum(-1)
            total = total + (above[..., :-d] & below[..., d:]).sum(-1).sum(-1)
        return total

    def solutions(self, x: Array) -> NDArray[np.int64]:
        """Every completion of one problem, `[M, L]` in lexicographic order of the columns.

        Raises:
            UnknownAnswers: there are too many to be listed, as of a blank board from 14 rows on.
        """
        given = self._columns(np.asarray(x))
        if given.ndim != 1 or ((given < 0) | (given > self.n)).any():
            raise ValueError(
                f"x must be one problem of {self.name}, [{self.length}] known tokens, got {np.shape(x)}"
            )
        found = _completions(tuple(int(c) for c in given), self.n)
        return self._from_columns(np.array(found, dtype=np.int64).reshape(-1, self.n))

    # -- data -------------------------------------------------------------------------------------------------

    def examples(self, split: Split) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pairs (x `[M, L]`, y `[M, L]`) of the training or the test problems, one row an answer."""
        if split not in ("train", "test"):
            raise ValueError(f'split must be "train" or "test", got {split!r}')
        known = self.known
        chosen = np.flatnonzero(self._held_out if split == "test" else ~self._held_out)
        count = known.counts[chosen]
        problems = np.repeat(chosen, count)
        slots = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        return self._from_columns(known.x[problems]), self._from_columns(known.answers[problems, slots])

    @cached_property
    def known(self) -> KnownAnswers:
        """All problems of the data set with all their answers, in the "rows" encoding."""
        if self.n > LARGEST:
            raise ValueError(f"all problems of {self.n} queens are too many to list; up to {LARGEST} can be")
        boards = np.array(_completions((self.n,) * self.n, self.n), dtype=np.int64)
        removals = [rows for k in range(self.n - 3, self.n) for rows in itertools.combinations(range(self.n), k)]
        x = np.repeat(boards[:, None], len(removals), 1)  # [boards, removals, n]
        for i, rows in enumerate(removals):
            x[:, i, rows] = self.n
        y = np.broadcast_to(boards[:, None], x.shape)
        return group_answers(x.reshape(-1, self.n), y.reshape(-1, self.n))

    @cached_property
    def orbits(self) -> NDArray[np.int64]:
        """The symmetry orbit of each problem of `known` (eight rotations and reflections), `[I]` from 0."""
        images = np.stack([self._key(image) for image in symmetric(self.known.x, self.n)])  # [8, I]
        return np.unique(images.min(0), return_inverse=True)[1].reshape(-1)

    @cached_property
    def _held_out(self) -> NDArray[np.bool_]:
        groups = self.orbits if self.split == "orbit" else np.arange(len(self.known.x))
        order = np.random.default_rng(self.seed).permutation(groups.max() + 1)
        return np.isin(groups, order[: round(0.15 * len(order))])

    def _key(self, columns: NDArray[np.int64]) -> NDArray[np.int64]:
        """A number for each board, base n + 1 (fits int64 up to n = 15)."""
        digits = (self.n + 1) ** np.arange(self.n, dtype=np.int64)
        return (columns * digits).sum(-1)

    # -- encodings --------------------------------------------------------------------------------------------

    def _read_text(self, text: str) -> list[int]:
        squares = re.sub(r"[\s/|]+", "", text)
        if set(squares) <= {"Q", "q", "."} and len(squares) == self.n**2:
            rows = [squares[i : i + self.n].upper() for i in range(0, len(squares), self.n)]
            for r, row in enumerate(rows):
                if row.count("Q") > 1:
                    raise ValueError(
                        f"the queens in row {r} clash: the row has {row.count('Q')} (rows count from 0)"
                    )
            return [row.index("Q") if "Q" in row else self.n for row in rows]
        words = re.split(r"[\s,]+", text.strip(" \n\t[]()"))
        if len(words) == self.n and all(re.fullmatch(r"-?\d+|[._]|None", w) for w in words):
            return self._read_columns([None if w in (".", "_", "None") else int(w) for w in words])
        raise ValueError(
            f"a board must be {self.n} rows of {self.n} squares written Q and ., or {self.n} columns with . for "
            f"a blank row, got {text.strip()[:60]!r}"
        )

    def _read_columns(self, columns: Sequence[Any] | Array) -> list[int]:
        values = columns.tolist() if hasattr(columns, "tolist") else columns
        if self.encoding == "board" and isinstance(values, Sequence) and len(values) == self.length:
            if set(values) <= {0, 1} and all(
                sum(values[i : i + self.n]) <= 1 for i in range(0, self.length, self.n)
            ):
                return self._columns(np.array(values)).tolist()
        if not isinstance(values, Sequence):
            raise ValueError(f"a board must be text or a list of {self.n} columns, got {columns!r}")
        if len(values) != self.n:
            raise ValueError(f"a board of {self.n} rows must have {self.n} columns, got {len(values)}")
        result = []
        for row, value in enumerate(values):
            blank = value is None or value == -1
            if not blank and (isinstance(value, bool) or value not in range(self.n + 1)):
                raise ValueError(
                    f"row {row} must hold a column from 0 to {self.n - 1}, or None for a blank row, got {value!r}"
                )
            result.append(self.n if blank else int(value))
        return result

    def _columns(self, tokens: NDArray[Any]) -> NDArray[np.int64]:
        """From this task's encoding to columns; a row without a queen, or with several, counts as blank."""
        if tokens.shape[-1] != self.length:
            raise ValueError(f"a board of {self.name} must have {self.length} tokens, got {tokens.shape[-1]}")
        if self.encoding == "rows":
            return tokens.astype(np.int64)
        queens = tokens.reshape(*tokens.shape[:-1], self.n, self.n) == 1
        return np.where(queens.sum(-1) == 1, queens.argmax(-1), self.n)

    def _squares(self, tokens: NDArray[np.int64]) -> Cells:
        """1 where a queen stands, `[..., n, n]`."""
        if self.encoding == "rows":
            return (tokens[..., None] == np.arange(self.n)).astype(np.int64)
        return (tokens == 1).reshape(*tokens.shape[:-1], self.n, self.n).astype(np.int64)

    def _attacked(self, x: NDArray[np.int64], y: NDArray[np.int64]) -> Marks:
        """Squares of queens that are attacked, and of given ones that are gone, bool `[M, n, n]`."""
        row, column = np.divmod(np.arange(self.n**2), self.n)
        through = (row, column, row + column, row - column + self.n - 1)
        lines = np.concatenate([number == np.arange(2 * self.n - 1)[:, None] for number in through])
        queens = self._squares(y) > 0
        attacked = crowded(queens.reshape(-1, self.n**2), lines).reshape(queens.shape)
        return attacked | (~queens & (self._squares(x) > 0))

    def _from_columns(self, columns: NDArray[np.int64]) -> NDArray[np.int64]:
        if self.encoding == "rows":
            return columns
        board = columns[..., None] == np.arange(self.n)
        return board.reshape(*columns.shape[:-1], self.n * self.n).astype(np.int64)


def symmetric(columns: NDArray[np.int64], n: int) -> list[NDArray[np.int64]]:
    """The eight rotations and reflections of boards `[..., n]` in the "rows" encoding, the identity first."""

    def transpose(boards: NDArray[np.int64]) -> NDArray[np.int64]:
        square = boards[..., None] == np.arange(n)  # [..., row, column]
        return np.where(square.any(-2), square.argmax(-2), n)

    images = []
    for board in (columns, transpose(columns)):
        for flipped in (board, board[..., ::-1]):
            images += [flipped, np.where(flipped < n, n - 1 - flipped, n)]
    return images


@lru_cache(maxsize=4096)
def _completions(given: tuple[int, ...], n: int) -> tuple[tuple[int, ...], ...]:
    """Every way to finish a board, by backtracking over rows with bit masks of attacked columns."""
    found: list[tuple[int, ...]] = []
    full, nodes = (1 << n) - 1, 0

    def place(row: int, columns: int, left: int, right: int, board: tuple[int, ...]) -> None:
        nonlocal nodes
        nodes += 1
        if nodes > NODES:
            raise UnknownAnswers(f"completions of a board of {n} queens are too many to be listed")
        if row == n:
            found.append(board)
            return
        free = full & ~(columns | left | right)
        if given[row] < n:
            free &= 1 << given[row]
        while free:
            bit = free & -free
            free ^= bit
            place(
                row + 1,
                columns | bit,
                (left | bit) << 1 & full,
                (right | bit) >> 1,
                (*board, bit.bit_length() - 1),
            )

    place(0, 0, 0, 0, ())
    return tuple(found)
