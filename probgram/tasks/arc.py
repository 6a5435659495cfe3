"""ARC, the Abstraction and Reasoning Corpus: a rule shown by a few pairs of grids, to be applied to another grid.

How the pairs enter x: they do not. As in HRM and TRM every task has an embedding, learned from its demonstration
pairs as training examples, those of the evaluation tasks included (their test inputs are held out): x is
`[task, grid]`, 1 + L tokens, for `GRAM.for_task(arc, tasks=arc.tasks)`. Under an augmentation a task is another
task with an id of its own; at the end the predictions for all augmentations of a test input are undone and vote.

Tokens are those of `arc_grids`: colours 0 to 9, EDGE = 10; outside of the grid x has BLANK = 11, and y -1, which is
no part of the loss: what a chain answers there is free, and `Run.canonical` makes it the same in all answers.

Sources: Chollet, arXiv 1911.01547; files as in the ARC Prize's competition; Wang et al., arXiv 2506.21734 (HRM).
"""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from probgram.tasks.arc_grids import (
    COLOURS,
    EDGE,
    LARGEST,
    OFF_PALETTE,
    PALETTE,
    Augmentation,
    Grid,
    Voted,
    as_grid,
    canonical,
    draw_augmentations,
    grid_of,
    majority,
    text,
    tokens,
)
from probgram.tasks.board import Board, Cells
from probgram.tasks.task import Array, Split, UnknownAnswers, check_length

ArcSet = Literal["training", "evaluation", "evaluation2"]

BLANK = EDGE + 1  # x outside of its grid
ATTEMPTS = 2  # that count for a test input
MOST = 10_000  # augmentations, of the 2.9 million there are


class Pair(NamedTuple):
    """An input grid and its output grid."""

    input: Grid
    output: Grid


class Puzzle(NamedTuple):
    """One task of the corpus.

    Fields:
        name: eight hexadecimal digits.
        demonstrations: the pairs that show the rule.
        tests: the pairs it is asked for.
        augmentations: the identity, then how else it is shown.
    """

    name: str
    demonstrations: list[Pair]
    tests: list[Pair]
    augmentations: list[Augmentation]


class Arc:
    """ARC as a `Task`.

    Args:
        folder: with `arc-agi_SET_challenges.json` and `arc-agi_SET_solutions.json`.
        set: whose test inputs are the test split. The tasks of "training" are trained on with every set.
        augmentations: A, in how many more ways each task is shown, drawn for each task of its own. The arrays of
            the training split grow with it.
        side: of the canvas; tasks with a larger grid are left out.
        seed: of the augmentations.

    Attributes:
        tasks: number of task ids, (1 + A) for each task.

    Raises:
        ValueError: an unknown set, files that are missing or of another format, no task that fits, a bad size.
    """

    knows_answers = True  # it verifies by comparing with the solution of the file

    def __init__(
        self,
        folder: str | Path,
        set: ArcSet = "training",  # noqa: A002
        augmentations: int = 0,
        side: int = LARGEST,
        seed: int = 0,
    ) -> None:
        if set not in ("training", "evaluation", "evaluation2"):
            raise ValueError(f'set must be "training", "evaluation" or "evaluation2", got {set!r}')
        for name, value, lowest, highest in (("side", side, 1, LARGEST), ("augmentations", augmentations, 0, MOST)):
            if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
                raise ValueError(f"{name} must be an integer from {lowest} to {highest}, got {value!r}")
        self.set, self.side, self.seed = set, side, seed
        self.name, self.length, self.input_size, self.output_size = f"arc-{set}", side * side, BLANK + 1, EDGE + 1
        found = {kind: _read(Path(folder), kind, side) for kind in dict.fromkeys(("training", set))}
        self.puzzles = [
            Puzzle(*parts, draw_augmentations(augmentations, [seed, number]))
            for number, parts in enumerate(parts for kind in found.values() for parts in kind)
        ]
        self._first = len(self.puzzles) - len(found[set])  # where the set's own begin
        if not found[set]:
            raise ValueError(f"no task of {set} fits on a canvas of {side} cells a side")
        self.tasks = len(self.puzzles) * (1 + augmentations)

    def __repr__(self) -> str:
        return f"Arc({self.set}, {len(self.puzzles)} tasks, {self.tasks} ids, side={self.side})"

    # -- reading and drawing ----------------------------------------------------------------------------------

    def encode(self, problem: Any) -> NDArray[np.int64]:
        """Read a test input of the set, "007bbfb7" or "007bbfb7:1" (from 0), a grid ("007bbfb7", grid), or tokens.

        Returns:
            The task's id and the grid's tokens, `[1 + L]`.

        Raises:
            ValueError: no such task, no such test input, or no grid.
        """
        if isinstance(problem, str):
            name, _, number = problem.strip().partition(":")
            index = self._index(name)
            tests = self.puzzles[index].tests
            if number and not (number.isdecimal() and int(number) < len(tests)):
                raise ValueError(f"task {name} has {len(tests)} test inputs, counted from 0, got {number!r}")
            grid = tests[int(number or 0)].input
        elif isinstance(problem, tuple | list) and len(problem) == 2 and isinstance(problem[0], str):
            index, grid = self._index(problem[0]), as_grid(problem[1])
            if max(grid.shape) > self.side:
                raise ValueError(f"the grid must fit on {self.side}x{self.side} cells, got {list(grid.shape)}")
        elif np.shape(problem) == (1 + self.length,):
            index, view, grid = self._read_x(np.asarray(problem).astype(np.int64))
            return self._x(index, view, as_grid(grid))
        else:
            raise ValueError(f'a problem must be "TASK", "TASK:NUMBER", (TASK, grid) or tokens, got {problem!r}')
        return self._x(index, 0, grid)

    def decode(self, y: Array) -> str:
        """The grid of an answer `[L]` or a problem `[1 + L]` as numbers, a line a row."""
        return text(grid_of(y[-self.length :]))

    def canonical(self, y: Array) -> Array:
        """Answers `[..., L]` with one value beyond their grids: those that show the same grid are then equal."""
        return canonical(y)

    @property
    def board(self) -> Board:
        """The grids in the usual colours, X where a cell holds none."""
        symbols = (*map(str, range(COLOURS)), "X")
        return Board(symbols, self._grids, lambda x: self._grids(x[None, 1:])[0], colours=(*PALETTE, OFF_PALETTE))

    def _grids(self, y: NDArray[np.int64]) -> Cells:
        """Grids of canvases `[M, L]`, with -1 beyond the smaller ones, `[M, rows, columns]`."""
        grids = [grid_of(one) for one in y]
        shape = np.max([grid.shape for grid in grids], axis=0)
        cells = np.full((len(grids), *shape), -1, dtype=np.int64)
        for cell, grid in zip(cells, grids, strict=True):
            cell[: grid.shape[0], : grid.shape[1]] = grid
        return cells

    # -- truth ------------------------------------------------------------------------------------------------

    def verify(self, x: Array, y: Array) -> Array:
        """Whether y shows exactly the right grid, its size included; bool `[...]`.

        Raises:
            ValueError: y does not have L tokens.
            UnknownAnswers: x is neither a demonstration nor a test input.
        """
        return self.violations(x, y) == 0

    def violations(self, x: Array, y: Array) -> Array:
        """Cells and markers of the right grid that y has wrong; integers `[...]`."""
        check_length(y, self.length)
        right = self.answers(x)
        if hasattr(y, "new_tensor"):
            right = y.long().new_tensor(right)  # a type as small as uint8 would wrap its -1 around
        return ((y != right) & (right >= 0)).sum(-1)

    def answers(self, x: Array) -> NDArray[np.int64]:
        """The answer to each problem `[..., 1 + L]`, -1 outside of its grid, `[..., L]`.

        Raises:
            UnknownAnswers: a problem is neither a demonstration nor a test input.
        """
        problems = np.asarray(x.cpu() if hasattr(x, "cpu") else x).astype(np.int64)
        if not problems.ndim or problems.shape[-1] != 1 + self.length:
            raise ValueError(f"x must be [..., {1 + self.length}], a task and a grid, got {list(problems.shape)}")
        rows = [self._answer(row) for row in problems.reshape(-1, 1 + self.length)]
        return np.array(rows, dtype=np.int64).reshape(*problems.shape[:-1], self.length)

    def solutions(self, x: Array) -> NoReturn:
        """Raise UnknownAnswers: tokens outside of the grid are free, so right answers cannot be listed."""
        raise UnknownAnswers("an answer says nothing of the tokens outside of its grid: use answers(x) and verify")

    # -- data -------------------------------------------------------------------------------------------------

    def examples(self, split: Split) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Demonstration pairs of all tasks under all their augmentations, or the set's test pairs as they are.

        Returns:
            x `[M, 1 + L]` and y `[M, L]`.
        """
        if split == "train":
            return self._pairs(
                (index, view, pair)
                for index, puzzle in enumerate(self.puzzles)
                for view in range(len(puzzle.augmentations))
                for pair in puzzle.demonstrations
            )
        if split == "test":
            return self._pairs((index, 0, pair) for index in self._own for pair in self.puzzles[index].tests)
        raise ValueError(f'split must be "train" or "test", got {split!r}')

    def views(self, x: Array) -> NDArray[np.int64]:
        """One problem `[1 + L]` under every augmentation of its task, itself first, `[1 + A, 1 + L]`."""
        index, view, grid = self._read_x(np.asarray(x))
        augmentations = self.puzzles[index].augmentations
        original = augmentations[view].undo(grid)
        return np.stack([self._x(index, a, way.apply(original)) for a, way in enumerate(augmentations)])

    # -- attempts ---------------------------------------------------------------------------------------------

    def vote(self, views: Array, answers: Array, weights: Array | None = None) -> list[Voted]:
        """Undo the augmentation of every prediction, and count the votes for each grid.

        Args:
            views: problems that are one problem augmented, from `views`, `[V, 1 + L]`.
            answers: predictions, `[N, V, L]`.
            weights: of each, `[N, V]`; None: equal.

        Returns:
            The different grids with their shares, the most voted first: the first two are the attempts.
        """
        ways = [self._read_x(x)[:2] for x in np.asarray(views)]
        grids = [
            self.puzzles[index].augmentations[view].undo(grid_of(y))
            for row in answers
            for (index, view), y in zip(ways, row, strict=True)
        ]
        return majority(grids, None if weights is None else np.asarray(weights).reshape(-1).tolist())

    def score(self, attempts: Mapping[str, Sequence[Sequence[Any]]]) -> float:
        """The corpus's own figure: the mean over the set's tasks of the share of their test inputs that are solved.

        Args:
            attempts: for each task's name a list for each test input: grids, of which the first two count. A
                task or an input without attempts is unsolved.

        Raises:
            ValueError: the set has no such task.
        """
        own = {self.puzzles[index].name: self.puzzles[index] for index in self._own}
        unknown = sorted(name for name in attempts if name not in own)
        if unknown:
            raise ValueError(f"{self.set} has no task {unknown[0]!r}")
        solved = []
        for name, puzzle in own.items():
            tried = [*attempts.get(name, []), *[[]] * len(puzzle.tests)]
            right = [
                any(np.array_equal(np.asarray(grid), pair.output) for grid in grids[:ATTEMPTS])
                for pair, grids in zip(puzzle.tests, tried, strict=False)
            ]
            solved.append(float(np.mean(right)))
        return float(np.mean(solved))

    # -- tokens -----------------------------------------------------------------------------------------------

    @property
    def _own(self) -> range:
        """The puzzles of the set itself."""
        return range(self._first, len(self.puzzles))

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {puzzle.name: index for index, puzzle in enumerate(self.puzzles)}  # of two of one name the set's own

    def _index(self, name: str) -> int:
        if name not in self._numbers:
            raise ValueError(f"{self.name} has no task {name!r}")
        return self._numbers[name]

    def _x(self, index: int, view: int, grid: Grid) -> NDArray[np.int64]:
        number = index * len(self.puzzles[0].augmentations) + view
        return np.concatenate([[number], tokens(grid, self.side, BLANK)])

    def _read_x(self, x: NDArray[np.int64]) -> tuple[int, int, Grid]:
        """The puzzle, the augmentation and the grid of a problem `[1 + L]`."""
        if not 0 <= x[0] < self.tasks:
            raise UnknownAnswers(f"the first token of x must name a task from 0 to {self.tasks - 1}, got {x[0]}")
        index, view = divmod(int(x[0]), len(self.puzzles[0].augmentations))
        return index, view, grid_of(x[1:])

    def _answer(self, x: NDArray[np.int64]) -> NDArray[np.int64]:
        index, view, grid = self._read_x(x)
        puzzle = self.puzzles[index]
        original = puzzle.augmentations[view].undo(grid)
        for pair in (*puzzle.demonstrations, *puzzle.tests):
            if np.array_equal(pair.input, original):
                return tokens(puzzle.augmentations[view].apply(pair.output), self.side, -1)
        raise UnknownAnswers(f"a problem is neither a demonstration nor a test input of task {puzzle.name}")

    def _pairs(self, chosen: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        x, y = [], []
        for index, view, pair in chosen:
            way = self.puzzles[index].augmentations[view]
            x.append(self._x(index, view, way.apply(pair.input)))
            y.append(tokens(way.apply(pair.output), self.side, -1))
        return np.stack(x), np.stack(y)


def _read(folder: Path, kind: str, side: int) -> list[tuple[str, list[Pair], list[Pair]]]:
    """The tasks of a set that fit: name, demonstrations, tests."""
    challenges, solutions = (_json(folder / f"arc-agi_{kind}_{part}.json") for part in ("challenges", "solutions"))
    found = []
    for name, content in challenges.items():
        try:
            shown = [Pair(as_grid(pair["input"]), as_grid(pair["output"])) for pair in content["train"]]
            outputs = solutions[name]
            asked = [Pair(as_grid(t["input"]), as_grid(y)) for t, y in zip(content["test"], outputs, strict=True)]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"task {name} of {kind} is not of ARC's format: {error}") from error
        if not asked:
            raise ValueError(f"task {name} of {kind} is not of ARC's format: it has no test input")
        if max(max(grid.shape) for pair in (*shown, *asked) for grid in pair) <= side:
            found.append((name, shown, asked))
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold an object with a task for each name")
    return content
