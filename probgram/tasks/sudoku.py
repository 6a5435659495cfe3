"""Sudoku of any box size: fill a board so that every row, column and box holds every digit once.

One token a cell, row by row: 0 for a blank, 1 … n for a digit, in problems and in answers alike, so that a board
is its own tokens; an answer with a 0 in it is wrong.

Data sets: boards of files (`sudoku_data`), or boards made here, 4x4 ones with several answers, all of them known
(3 to 7 clues of the 288 grids, 3.7 answers a board on average), larger ones with one.
"""

import math
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from probgram.tasks import sudoku_data
from probgram.tasks.board import Board, Cells, Marks, crowded
from probgram.tasks.sudoku_data import SYMBOLS, Boards, read_boards
from probgram.tasks.sudoku_solver import solve
from probgram.tasks.sudoku_symmetry import orbit_keys, random_symmetries
from probgram.tasks.task import Array, Split, UnknownAnswers, check_length

SplitRule = Literal["orbit", "input"]
Paths = str | Path | Sequence[str | Path]

HELD_OUT = 0.15  # share of the orbits (or boards) in the test split
LIMIT = 1_000  # answers of one board beyond which they are not listed


class _Known(NamedTuple):
    """Boards of a data set.

    Fields:
        x: `[I, L]`.
        counts: how many answers each has, at least 1, `[I]`.
        answers: those of the first board first, `[F, L]`.
        rating: what a file says of each, nan where it says nothing, `[I]`.
        in_train, in_test: which of them are in a split, `[I]`; symmetric images of test boards are in neither.
    """

    x: NDArray[np.int64]
    counts: NDArray[np.int64]
    answers: NDArray[np.int64]
    rating: NDArray[np.float64]
    in_train: NDArray[np.bool_]
    in_test: NDArray[np.bool_]


class Sudoku:
    """Sudoku as a `Task`.

    Args:
        box: side of a box (2: 4x4 boards, 3: 9x9), or its rows and columns: (2, 3) are 6x6 boards.
        data: files of boards, text with one a line or Sudoku-Extreme's CSV; None: boards are made.
        test: files of boards to be held out, of which `data` then loses every symmetric image; None: 15%.
        problems: how many boards are made (equal ones are merged), or drawn from the data; None: all of the
            data, 5,000 made 4x4 boards or 1,000 made larger ones.
        clues: given cells of the boards that are made, a number or the least and the most; None: 3 to 7 of a 4x4
            board, 35 to 45% of a larger one, 50 to 60% above 16x16.
        unique: every board has one answer, which is checked; False: those with more than 1,000 are left out.
            None: False for 4x4 boards that are made, else True.
        reveal: in `augment`, up to so large a share of a board's blanks is filled, a uniform draw a board: easier
            boards, from which training on hard ones can start. Only cells on which all its answers agree; and none
            where that makes an image of a board that is held out.
        split: "orbit" holds out whole symmetry orbits of boards, "input" single boards. Either way the board is
            held out, not the grid it leads to.
        seed: of the boards that are made or drawn, and of which are held out.

    Raises:
        ValueError: a box that is too small or too large, or an unknown split. Files are read when they are first
            needed, and errors name the line.
    """

    def __init__(
        self,
        box: int | tuple[int, int] = 3,
        data: Paths | None = None,
        test: Paths | None = None,
        *,
        problems: int | None = None,
        clues: int | tuple[int, int] | None = None,
        unique: bool | None = None,
        reveal: float = 0.0,
        split: SplitRule = "orbit",
        seed: int = 0,
    ) -> None:
        sides = tuple(box) if isinstance(box, tuple | list) else (box, box)
        if len(sides) != 2 or not all(isinstance(side, int | np.integer) for side in sides):
            raise ValueError(f"box must be the side of a box or its rows and columns, got {box!r}")
        if min(sides) < 2 or sides[0] * sides[1] > len(SYMBOLS):
            raise ValueError(f"box must have at least 2 rows and columns and at most 25 cells, got {box!r}")
        if split not in ("orbit", "input"):
            raise ValueError(f'split must be "orbit" or "input", got {split!r}')
        if test is not None and data is None:
            raise ValueError("test names boards to be held out, which needs data to train on")
        if not 0 <= reveal <= 1:
            raise ValueError(f"reveal must be from 0 to 1, got {reveal}")
        if problems is not None and problems < 2:
            raise ValueError(f"problems must be at least 2, got {problems}")
        self.box = (int(sides[0]), int(sides[1]))
        self.n = self.box[0] * self.box[1]
        self.data, self.test, self.problems, self.split, self.seed = data, test, problems, split, seed
        self.reveal = reveal
        self.unique = (data is not None or self.n > 4) if unique is None else unique
        self.length, self.input_size, self.output_size = self.n**2, self.n + 1, self.n + 1
        self.name = f"sudoku{self.n}" if sides[0] == sides[1] else f"sudoku{sides[0]}x{sides[1]}"
        least, most = (0.35, 0.45) if self.n <= 16 else (0.5, 0.6)  # fewer take minutes a board to be made
        low, high = (3, 7) if self.n == 4 else (round(least * self.length), round(most * self.length))
        self.clue_range = self._read_clues((low, high) if clues is None else clues)

    @classmethod
    def from_name(cls, name: str, split: str | None = None) -> "Sudoku | None":
        """Build "sudoku4", "sudoku9", "sudoku2x3" with boards made here; None for another family's name."""
        square, oblong = re.fullmatch(r"sudoku(\d+)", name), re.fullmatch(r"sudoku(\d+)x(\d+)", name)
        if square is not None:
            side = math.isqrt(int(square[1]))
            box = (side, side) if side**2 == int(square[1]) else None
        else:
            box = None if oblong is None else (int(oblong[1]), int(oblong[2]))
        if box is None:
            return None
        return cls(box, split=split or "orbit")  # type: ignore[arg-type]

    @property
    def about(self) -> dict[str, Any]:
        """Where the boards come from: files, or made here with so many given cells."""
        if self.data is None:
            return {"boards": "made here, {} to {} given cells".format(*self.clue_range)}
        paths = [self.data] if isinstance(self.data, str | Path) else self.data
        return {"boards": ", ".join(Path(path).name for path in paths)}

    def __repr__(self) -> str:
        return f"Sudoku({self.box}, data={self.data!r}, split={self.split!r}, seed={self.seed})"

    # -- reading and drawing ----------------------------------------------------------------------------------

    def encode(self, problem: str | Sequence[Any] | Array) -> NDArray[np.int64]:
        """Read a board.

        Args:
            problem: text with a symbol a cell, in one line or several, `.` or 0 for a blank, letters from A for
                10, with or without lines between boxes; numbers with spaces or commas between them; or a list or
                array, flat or a row a list, with 0 or None for a blank.

        Returns:
            The board, int64 `[L]`.

        Raises:
            ValueError: not a board of this size, or a digit is twice in a row, column or box.
        """
        x = sudoku_data.read_cells(problem, self.box) if isinstance(problem, str) else self._read_list(problem)
        sentence = sudoku_data.clash(x, self.box)
        if sentence:
            raise ValueError(sentence)
        return x

    def decode(self, y: Array) -> str:
        """Draw one board `[L]` with lines between its boxes; `.` is a blank, `?` no digit."""
        height, width = self.box
        symbols = ["." if t == 0 else SYMBOLS[t - 1] if 0 < t <= self.n else "?" for t in map(int, y)]
        lines = []
        for row in range(self.n):
            cells = symbols[row * self.n : (row + 1) * self.n]
            lines.append(" | ".join(" ".join(cells[i : i + width]) for i in range(0, self.n, width)))
        between = "-+-".join(["-" * (2 * width - 1)] * height)
        bands = ["\n".join(lines[i : i + height]) for i in range(0, self.n, height)]
        return f"\n{between}\n".join(bands)

    @property
    def board(self) -> Board:
        """Digits in cells, given ones apart from others, and the boxes."""
        symbols = ("", *SYMBOLS[: self.n])
        return Board(symbols, self._cells, self._cells, lambda x: self._cells(x) > 0, self._clashing, box=self.box)

    def _cells(self, tokens: NDArray[np.int64]) -> Cells:
        return tokens.reshape(*tokens.shape[:-1], self.n, self.n)

    def _clashing(self, x: NDArray[np.int64], y: NDArray[np.int64]) -> Marks:
        """Digits that their row, column or box has twice, and given ones that are changed, `[M, n, n]`."""
        height, width = self.box
        row, column = np.divmod(np.arange(self.length), self.n)
        units = (row, column, row // height * height + column // width)
        lines = np.concatenate([number == np.arange(self.n)[:, None] for number in units])
        wrong = (x != 0) & (x != y)
        for digit in range(1, self.n + 1):
            wrong |= crowded(y == digit, lines)
        return wrong.reshape(-1, self.n, self.n)

    # -- truth ------------------------------------------------------------------------------------------------

    def verify(self, x: Array, y: Array) -> Array:
        """Whether y fills x: every digit in every row, column and box, all given digits kept; bool `[...]`.

        Raises:
            ValueError: y does not have L tokens.
        """
        return self.violations(x, y) == 0

    def violations(self, x: Array, y: Array) -> Array:
        """Digits that a row, column or box lacks, plus given digits that are changed; integers `[...]`."""
        check_length(y, self.length)
        height, width = self.box
        total = ((x != 0) & (x != y)).sum(-1) + 3 * self.length
        for digit in range(1, self.n + 1):
            here = (y == digit).reshape(*y.shape[:-1], width, height, height, width)  # band, row, stack, column
            rows, columns, boxes = here.any(-1).any(-1), here.any(-3).any(-3), here.any(-1).any(-2)
            total = total - rows.sum(-1).sum(-1) - columns.sum(-1).sum(-1) - boxes.sum(-1).sum(-1)
        return total

    def solutions(self, x: Array, limit: int = LIMIT) -> NDArray[np.int64]:
        """Every way to fill one board `[L]`, `[M, L]` in lexicographic order.

        Raises:
            UnknownAnswers: there are more than `limit`; or the board is so large and open that CP-SAT is needed,
                and OR-Tools is not installed.
        """
        answers = self._answers(x, limit + 1)
        if len(answers) > limit:
            raise UnknownAnswers(f"the board has more than {limit:,} solutions")
        return answers

    def count(self, x: Array, limit: int = LIMIT) -> int:
        """How many ways there are to fill one board `[L]`; `limit` where there are as many or more.

        Raises:
            UnknownAnswers: as `solutions`, when CP-SAT is needed.
        """
        return len(self._answers(x, limit))

    def clues(self, x: Array) -> Array:
        """Given cells of boards `[..., L]`, `[...]`."""
        return (x != 0).sum(-1)

    # -- data -------------------------------------------------------------------------------------------------

    def examples(self, split: Split) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pairs (x `[M, L]`, y `[M, L]`) of the training or the test boards, one row an answer.

        Raises:
            ValueError: a file cannot be read, or a line in it is wrong.
            UnknownAnswers: as `solutions`, when CP-SAT is needed.
        """
        if split not in ("train", "test"):
            raise ValueError(f'split must be "train" or "test", got {split!r}')
        known = self.known
        chosen = known.in_train if split == "train" else known.in_test
        kept = np.repeat(chosen, known.counts)
        return np.repeat(known.x, known.counts, axis=0)[kept], known.answers[kept]

    def generate(
        self, count: int, clues: int | tuple[int, int] | None = None, unique: bool = True, seed: int = 0
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Make boards from random grids: about a second for one of 16x16, ten for one of 25x25.

        With one solution and fewer clues than half the cells, one of 25x25 takes minutes.

        Args:
            count: P, how many.
            clues: given cells, a number or the least and the most; None: as the task's.
            unique: with one solution; False: given cells are drawn uniformly and there may be several.
            seed: same seed, same boards.

        Returns:
            Boards, and a solution of each, both `[P, L]`.

        Raises:
            ValueError: clues that no board has, or too few of them for one solution.
        """
        low, high = self.clue_range if clues is None else self._read_clues(clues)
        generator = np.random.default_rng(seed)
        wanted = generator.integers(low, high + 1, size=count)
        if unique:
            return sudoku_data.unique_boards(self.box, wanted, generator)
        grids = self._draw_grids(count, generator)
        return sudoku_data.remove_cells(grids, wanted, generator), grids

    def grids(self, count: int | None = None, seed: int = 0) -> NDArray[np.int64]:
        """Solved grids, answers to the blank board.

        Args:
            count: how many to draw, 4x4 ones uniformly, for larger ones see `sudoku_data.random_grids`; None: all
                288 of 4x4.
            seed: same seed, same grids.

        Returns:
            Grids, `[count, L]`; all of them in lexicographic order.

        Raises:
            ValueError: no count, and too many grids to list.
        """
        if count is not None:
            return self._draw_grids(count, np.random.default_rng(seed))
        if self.n > 4:
            raise ValueError(f"{self.name} has too many grids to list them all: say how many, as in grids(1_000)")
        return self._all_grids

    def augment(
        self, x: NDArray[Any], y: NDArray[Any], generator: np.random.Generator
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Replace each board, and its answers with it, by a random symmetric image; then `reveal`.

        Args:
            x: boards, `[M, L]`.
            y: an answer to each `[M, L]`, or several `[M, A, L]`.
            generator: same state, same images.

        Raises:
            ValueError: one answer to boards that may have several, of which `reveal` asks all.
        """
        if not len(x):
            return x, y
        if self.reveal and y.ndim == 2 and not self.unique:
            raise ValueError(f"reveal needs all answers of each board, [M, A, L], got one, {list(y.shape)}")
        symmetries = random_symmetries(self.box, len(x), generator)
        x, y = symmetries.of(x), symmetries.of(y)
        if self.reveal:
            several = y.reshape(len(y), -1, self.length)
            agreed = (several == several[:, :1]).all(1)
            shown = generator.random(x.shape) < self.reveal * generator.random((len(x), 1))
            revealed = np.where((x == 0) & shown & agreed, several[:, 0], x)
            seen = np.isin(self.orbits(revealed), self._held_out_orbits)
            x = np.where(seen[:, None], x, revealed)
        return x, y

    def orbits(self, x: NDArray[Any]) -> NDArray[np.uint64]:
        """A number for each board `[M, L]` that its symmetric images share (see `sudoku_symmetry.orbit_keys`)."""
        return orbit_keys(np.asarray(x, np.int64), self.box)

    def ratings(self, x: Array) -> NDArray[np.float64]:
        """What the files say of boards `[M, L]`, Sudoku-Extreme's difficulty; nan where they say nothing, `[M]`."""
        boards = np.asarray(x.cpu() if hasattr(x, "cpu") else x).astype(np.int64)
        return np.array([self._rating.get(board.tobytes(), np.nan) for board in boards])

    @cached_property
    def known(self) -> _Known:
        """All boards of the data set with all their answers.

        Raises:
            ValueError: a file cannot be read, a line in it is wrong, or there are too few boards to hold any out.
            UnknownAnswers: as `solutions`, when CP-SAT is needed.
        """
        generator = np.random.default_rng(self.seed)
        parts = [self._boards(generator)] + ([] if self.test is None else [self._read_files(self.test)])
        boards = Boards.joined(parts)
        x = boards.x.astype(np.int64)
        answers, counts = solve(x, self.box, 2 if self.unique else LIMIT + 1)
        self._check(boards, counts)
        groups = (
            self.orbits(x) if self.split == "orbit" else np.unique(x, axis=0, return_inverse=True)[1].reshape(-1)
        )
        names = np.unique(groups)
        if self.test is None:
            drawn = generator.permutation(names)[: max(1, round(HELD_OUT * len(names)))]
            in_test = held_out = np.isin(groups, drawn)
        else:
            in_test = np.arange(len(x)) >= len(parts[0].x)
            held_out = np.isin(groups, groups[in_test])
        if held_out.all():
            raise ValueError(f"of {len(parts[0].x)} boards none are left to train on when some are held out")
        listed = counts <= LIMIT
        answers = answers[np.repeat(listed, counts)]
        for name, part in (("train", ~held_out), ("test", in_test)):
            if not (part & listed).any():
                raise ValueError(f"no board of the {name} split has at most {LIMIT:,} answers")
        return _Known(x[listed], counts[listed], answers, boards.rating[listed], ~held_out[listed], in_test[listed])

    def _boards(self, generator: np.random.Generator) -> Boards:
        """The boards to train on, and without `test` to hold out from."""
        if self.data is None:
            count = self.problems or (5_000 if self.n == 4 else 1_000)
            x = np.unique(self.generate(count, None, self.unique, self.seed)[0], axis=0).astype(np.int8)
            none = np.full(len(x), np.nan)
            return Boards(x, np.zeros_like(x), none, np.arange(len(x)), np.full(len(x), "boards made here", object))
        boards = self._read_files(self.data)
        if self.problems is None or self.problems >= len(boards.x):
            return boards
        return boards.chosen(np.sort(generator.permutation(len(boards.x))[: self.problems]))

    def _read_files(self, paths: Paths) -> Boards:
        """The different boards of some files, in lexicographic order."""
        names = [paths] if isinstance(paths, str | Path) else paths
        boards = Boards.joined([read_boards(path, self.box) for path in names])
        return boards.chosen(np.unique(boards.x, axis=0, return_index=True)[1])

    def _check(self, boards: Boards, counts: NDArray[np.int64]) -> None:
        answered = (boards.y != 0).any(1)
        for i in np.flatnonzero(counts == 0):
            raise ValueError(f"{boards.place(i)}: the board has no solution")
        for i in np.flatnonzero(answered & (self.violations(boards.x, boards.y) > 0)):
            raise ValueError(f"{boards.place(i)}: the answer does not solve the board")
        for i in np.flatnonzero(counts > 1) if self.unique else ():
            raise ValueError(f"{boards.place(i)}: the board has several solutions, which needs unique=False")

    @cached_property
    def _held_out_orbits(self) -> NDArray[np.uint64]:
        return np.unique(self.orbits(self.known.x[~self.known.in_train]))

    @cached_property
    def _rating(self) -> dict[bytes, float]:
        return {x.tobytes(): float(r) for x, r in zip(self.known.x, self.known.rating, strict=True)}

    @cached_property
    def _all_grids(self) -> NDArray[np.int64]:
        return solve(np.zeros((1, self.length), np.int64), self.box, LIMIT)[0]

    def _draw_grids(self, count: int, generator: np.random.Generator) -> NDArray[np.int64]:
        if self.n == 4:
            return self._all_grids[generator.integers(len(self._all_grids), size=count)]
        return sudoku_data.random_grids(self.box, count, generator)

    # -- input ------------------------------------------------------------------------------------------------

    def _read_list(self, problem: Any) -> NDArray[np.int64]:
        values = problem.tolist() if hasattr(problem, "tolist") else problem
        if not isinstance(values, Sequence):
            raise ValueError(f"a board must be text or {self.length} cells, got {problem!r}")
        cells = [cell for row in values for cell in (row if isinstance(row, Sequence) else [row])]
        if len(cells) != self.length:
            raise ValueError(f"a board of {self.name} must have {self.length} cells, got {len(cells)}")
        for i, cell in enumerate(cells):
            known = cell is None or (not isinstance(cell, bool) and cell in range(self.n + 1))
            if not known:
                raise ValueError(
                    f"the cell in row {i // self.n}, column {i % self.n} must be 1 to {self.n}, or 0 or None for a "
                    f"blank, got {cell!r} (rows and columns count from 0)"
                )
        return np.array([cell or 0 for cell in cells], dtype=np.int64)

    def _read_clues(self, clues: int | tuple[int, int]) -> tuple[int, int]:
        low, high = (clues, clues) if isinstance(clues, int | np.integer) else clues
        if not 0 <= low <= high <= self.length:
            raise ValueError(f"clues must be from 0 to {self.length}, the least before the most, got {clues!r}")
        return int(low), int(high)

    def _answers(self, x: Array, limit: int) -> NDArray[np.int64]:
        """At most `limit` solutions of one board; 4x4 boards are looked up in the list of grids."""
        board = self._one(x)
        if self.n == 4:
            return self._all_grids[((board == 0) | (board == self._all_grids)).all(1)][:limit]
        return solve(board[None], self.box, limit)[0]

    def _one(self, x: Array) -> NDArray[np.int64]:
        board = np.asarray(x.cpu() if hasattr(x, "cpu") else x)
        if board.shape != (self.length,) or board.min() < 0 or board.max() > self.n:
            raise ValueError(
                f"x must be one board of {self.name}, [{self.length}] tokens from 0 to {self.n}, got {board.shape}"
            )
        return board.astype(np.int64)
