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
    `by` answers nothing.

    Args:
        task: whose problems these are.
        by: the token that stands for its token 0, at least 1.
        symbols: V, how many tokens there are then, in x as in y; None: as many as needed.

    Raises:
        ValueError: by is no integer from 1, or symbols are fewer than needed.
    """

    def __init__(self, task: Task, by: int = 1, symbols: int | None = None) -> None:
        check_whole(by=by)
        needed = max(task.input_size, task.output_size) + by
        if symbols is not None:
            check_whole(needed, symbols=symbols)
        self.task, self.by = task, int(by)
        self.name, self.length = f"{task.name}-shifted{by}", task.length
        self.input_size = symbols or task.input_size + by
        self.output_size = symbols or task.output_size + by
        self.knows_answers = getattr(task, "knows_answers", False)

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
        return x + self.by, y + self.by

    def _own(self, tokens: Array) -> Array:
        """Tokens as the task has them; unsigned ones would not go below 0."""
        if hasattr(tokens, "long"):
            return (tokens.long() - self.by).clip(min=0)
        return (tokens.astype(np.int32) - self.by).clip(min=0)
