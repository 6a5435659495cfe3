"""The same task with its tokens counted from another number, as the weights of other code may have them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from probgram.tasks.board import Board
from probgram.tasks.drawn import check_whole
from probgram.tasks.task import Array, Split, Task


class Shifted:
    """A `Task` whose tokens are those of another one plus `by`.

    The published TRM counts the tokens of Sudoku from 1, its 0 is padding: `Shifted(Sudoku(3), 1)`. A token below
    `by` answers nothing; tokens below 0 are padding and stay.

    Args:
        task: whose problems these are.
        by: the token that stands for its token 0, at least 1.
        symbols: V, how many tokens there are then, in x as in y; None: as many as needed.

    Raises:
        ValueError: by is no integer from 1, symbols are fewer than needed, or problems begin with the number of
            their puzzle, which is no token (`Arc`).
    """

    def __init__(self, task: Task, by: int = 1, symbols: int | None = None) -> None:
        check_whole(by=by)
        if getattr(task, "tasks", 0):
            raise ValueError(f"{task.name} cannot be shifted: its problems begin with the number of their puzzle")
        needed = max(task.input_size, task.output_size) + by
        if symbols is not None:
            check_whole(needed, symbols=symbols)
        self.task, self.by = task, int(by)
        self.name, self.length = f"{task.name}-shifted{by}", task.length
        self.input_size = symbols or task.input_size + by
        self.output_size = symbols or task.output_size + by
        for optional in ("knows_answers", "grouped", "split", "about"):
            if hasattr(task, optional):
                setattr(self, optional, getattr(task, optional))
        if hasattr(task, "augment"):
            self.augment = self._augment

    def __repr__(self) -> str:
        return f"Shifted({self.task!r}, by={self.by})"

    def encode(self, problem: Any) -> NDArray[np.int64]:
        """Read a problem as the task does, `[L]`."""
        return self.task.encode(problem) + self.by

    def decode(self, y: Array) -> str:
        """Draw one answer (or problem) `[L]` as the task does, tokens below `by` as its token 0."""
        return self.task.decode(self._own(y))

    @property
    def board(self) -> Board | None:
        """Answers as boards of cells, where the task's are."""
        board: Board | None = getattr(self.task, "board", None)
        if board is None:
            return None
        cells, problem, given, broken, edges = board.cells, board.problem, board.given, board.broken, board.edges
        return board._replace(
            cells=lambda y: cells(self._own(y)),
            problem=problem and (lambda x: problem(self._own(x))),
            given=given and (lambda x: given(self._own(x))),
            broken=broken and (lambda x, y: broken(self._own(x), self._own(y))),
            edges=edges and (lambda x: edges(self._own(x))),
        )

    def verify(self, x: Array, y: Array) -> Array:
        """Whether y answers x, bool `[...]`; may raise `UnknownAnswers`."""
        return self.task.verify(self._own(x), self._own(y)) & (y >= self.by).all(-1)

    def violations(self, x: Array, y: Array) -> Array:
        """Constraints that y breaks, and its tokens below `by`; integers `[...]`."""
        return self.task.violations(self._own(x), self._own(y)) + (y < self.by).sum(-1)

    def solutions(self, x: Array) -> NDArray[np.int64]:
        """Every answer of one problem `[L]`, `[M, L]`; may raise `UnknownAnswers`."""
        return self.task.solutions(self._own(x)) + self.by

    def examples(self, split: Split) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pairs (x `[M, L]`, y `[M, L]`), a row for each known answer of each problem."""
        x, y = self.task.examples(split)
        return self._theirs(x), self._theirs(y)

    def _augment(
        self, x: NDArray[Any], y: NDArray[Any], generator: np.random.Generator
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Symmetric images, as the task draws them."""
        x, y = self.task.augment(self._own(x), self._own(y), generator)  # type: ignore[attr-defined]
        return self._theirs(x), self._theirs(y)

    def _theirs(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of the task as they are here; padding stays."""
        return np.where(tokens < 0, tokens, tokens + self.by)

    def _own(self, tokens: Array) -> Array:
        """Tokens as the task has them; unsigned ones would not go below 0."""
        if hasattr(tokens, "long"):
            return (tokens.long() - self.by).clip(min=0)
        return (tokens.astype(np.int32) - self.by).clip(min=0)
