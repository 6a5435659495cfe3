"""Generation: with a blank x the chain that answers problems is p(y), and its draws are new answers.

One problem, and all its answers wanted, as often as each other: what a run is judged by is the histogram of its
draws (`probgram.metrics.uniformity`), beside the share of them that verify.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probgram.tasks.board import Board
from probgram.tasks.task import Array, Split, Task, UnknownAnswers, from_name, group_answers


class Generation:
    """A `Task` whose only problem is blank.

    Both splits are that one problem with every answer given: nothing can be held out, and nothing need be, since
    an answer is never shown at inference.

    Args:
        name: how the task is called in files and messages.
        answers: what is to be generated, integers from 0, `[M, L]`.
        verify: `(x, y) -> bool [...]`, broadcasting over leading dimensions, with operators that NumPy and torch
            share.
        decode: draws one answer `[L]` as text.
        violations: `(x, y) -> integers [...]`, 0 exactly where `verify` is true; None: 1 where it is false.
        blank: the blank problem, `[L]`; None: all zeros.
        input_size: number of different tokens in problems; None: as many as `blank` needs.
        output_size: number of different tokens in answers; None: as many as `answers` need.
        complete: whether the answers are all there are, so that coverage and the exact histogram are known.
        grouped: train on one problem with M answers, which `attributed` and other choosing targets need, but which
            carries all M in every row of a batch; False: every answer is a row of its own.
        board: how answers look as boards of cells; None: as `decode` draws them.

    Raises:
        ValueError: answers that are not rows of integers from 0, or a blank problem of another length.
    """

    def __init__(
        self,
        name: str,
        answers: Array,
        verify: Callable[[Array, Array], Array],
        decode: Callable[[Array], str],
        *,
        violations: Callable[[Array, Array], Array] | None = None,
        blank: Array | None = None,
        input_size: int | None = None,
        output_size: int | None = None,
        complete: bool = True,
        grouped: bool = False,
        board: Board | None = None,
    ) -> None:
        answers = np.asarray(answers)
        if answers.ndim != 2 or not len(answers) or not np.issubdtype(answers.dtype, np.integer):
            raise ValueError(f"answers must be integers [M, L], got {answers.dtype} of shape {list(answers.shape)}")
        if answers.min() < 0:
            raise ValueError(f"answers must hold tokens from 0, got {answers.min()}")
        self.blank = np.zeros(answers.shape[1], np.int64) if blank is None else np.asarray(blank, np.int64)
        if self.blank.shape != answers.shape[1:]:
            raise ValueError(f"blank must be [{answers.shape[1]}] as the answers are, got {list(self.blank.shape)}")
        self.name, self.length, self.complete, self.grouped = name, answers.shape[1], complete, grouped
        self.input_size = input_size or int(self.blank.max()) + 1
        self.output_size = output_size or int(answers.max()) + 1
        self.answers: NDArray[np.int64] = group_answers(np.zeros_like(answers), answers).answers[
            0
        ]  # unique, sorted
        self._verify, self._violations, self._decode = verify, violations, decode
        self.board = board

    @classmethod
    def of(
        cls,
        task: Task,
        blank: Any,
        answers: Array | None = None,
        *,
        name: str | None = None,
        complete: bool | None = None,
        grouped: bool = False,
    ) -> "Generation":
        """Take a task's empty problem: `Generation.of(tasks.Queens(8), [None] * 8)`.

        Args:
            task: verifies and draws; problems and answers keep its tokens.
            blank: its empty problem, as `task.encode` reads it.
            answers: what to train on, `[M, L]`; None: every solution of `blank`.
            name: None: the task's, with "-blank".
            complete: as for the class; None: only where `answers` is None.
            grouped: as for the class.
        """
        x = task.encode(blank)
        return cls(
            name or f"{task.name}-blank",
            task.solutions(x) if answers is None else answers,
            task.verify,
            task.decode,
            violations=task.violations,
            blank=x,
            input_size=task.input_size,
            output_size=task.output_size,
            complete=answers is None if complete is None else complete,
            grouped=grouped,
            board=getattr(task, "board", None),
        )

    @classmethod
    def from_name(cls, name: str, split: str | None = None) -> "Generation | None":
        """Build "queens8-blank" or "sudoku4-blank" with every answer there is; None for another name.

        Raises:
            ValueError: such a task has no name, or too many answers to be listed (`sudoku9-blank`).
        """
        from probgram.tasks.queens import Queens
        from probgram.tasks.sudoku import Sudoku

        if not name.endswith("-blank"):
            return None
        task = from_name(name.removesuffix("-blank"))
        if isinstance(task, Queens):
            return cls.of(task, [None] * task.n)
        return cls.of(task, "." * task.length) if isinstance(task, Sudoku) else None

    def __repr__(self) -> str:
        return f"Generation({self.name!r}, {len(self.answers)} answers of {self.length} tokens)"

    # -- reading and drawing ----------------------------------------------------------------------------------

    def encode(self, problem: Any = None) -> NDArray[np.int64]:
        """The blank problem, `[L]`.

        Args:
            problem: None, text of nothing but blanks and dots, or the blank problem itself: nothing else can be
                asked.

        Raises:
            ValueError: something was given; to hold part of an answer fast, filter under a `likelihood` of it.
        """
        nothing = problem is None or (isinstance(problem, str) and not problem.strip(". \n"))
        if not nothing and not np.array_equal(np.asarray(problem), self.blank):
            raise ValueError(f"{self.name} has one problem, the blank one; got {problem!r}")
        return self.blank.copy()

    def decode(self, y: Array) -> str:
        """Draw one answer `[L]`."""
        return self._decode(y)

    # -- truth ------------------------------------------------------------------------------------------------

    def verify(self, x: Array, y: Array) -> Array:
        """Whether y is right, bool `[...]`."""
        return self._verify(x, y)

    def violations(self, x: Array, y: Array) -> Array:
        """How many constraints y breaks, integers `[...]`."""
        return 1 - self._verify(x, y) * 1 if self._violations is None else self._violations(x, y)

    def solutions(self, x: Array) -> NDArray[np.int64]:
        """Every answer there is, `[M, L]` in lexicographic order.

        Raises:
            UnknownAnswers: the answers given are not all there are.
            ValueError: x is not the blank problem.
        """
        self.encode(x)
        if not self.complete:
            raise UnknownAnswers(f"the {len(self.answers)} answers of {self.name} are not all that are right")
        return self.answers

    def examples(self, split: Split) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The blank problem with every answer: (x `[M, L]`, y `[M, L]`), the same for both splits."""
        if split not in ("train", "test"):
            raise ValueError(f'split must be "train" or "test", got {split!r}')
        return np.tile(self.blank, (len(self.answers), 1)), self.answers
