"""The different answers of one problem, named by letters that all its pictures share."""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from probgram.fields import as_array
from probgram.tasks.task import UnknownAnswers

if TYPE_CHECKING:
    from probgram.run import Run
    from probgram.tasks import Task

WRONG = "✗"


class NamedAnswers(NamedTuple):
    """The different answers of a problem at any recorded depth step: right ones first, then by share.

    Fields:
        answers: `[M, L]`.
        shares: posterior probability of each after the last depth step, `[M]`.
        right: bool `[M]`; None: the task cannot tell.
        number: which answer each slot gave, `[S, N]`.
        along: the same along the lines of the final trajectories, `[S, N]`.
        weights: of the final trajectories, `[N]`.
    """

    answers: NDArray[Any]
    shares: NDArray[np.float64]
    right: NDArray[np.bool_] | None
    number: NDArray[np.int64]
    along: NDArray[np.int64]
    weights: NDArray[np.float64]

    @property
    def wrong(self) -> NDArray[np.bool_]:
        """Which answers are known to be wrong, `[M]`."""
        return np.zeros(len(self.answers), bool) if self.right is None else ~self.right

    @property
    def probable(self) -> list[int]:
        """The answers of the last depth step, the most probable first, of equals the right ones.

        Raises:
            ValueError: all weights of the problem vanished.
        """
        if not self.weights.any():
            raise ValueError("all weights of the problem vanished, so none of its answers has a share")
        order = np.argsort(-_rounded(self.shares), kind="stable")
        return [int(k) for k in order if self.shares[k] > 0]

    def letter(self, k: int) -> str:
        """A, B, … Z, then 27, 28, …; a cross for a wrong answer."""
        if self.wrong[k]:
            return WRONG
        return chr(ord("A") + k) if k < 26 else str(k + 1)

    def label(self, k: int) -> str:
        """The letter, whether it is right, and the share after the last depth step: "A ✓ 35%"."""
        sign = " ✓" if self.right is not None and self.right[k] else ""
        return f"{self.letter(k)}{sign} {percent(self.shares[k])}"


def percent(share: float) -> str:
    """A share in whole percent; one that is not nothing is never 0%, one that is not all never 100%."""
    if 0 < share < 0.005:
        return "<1%"
    if 0.995 < share < 1 - 1e-6:
        return ">99%"
    return f"{share:.0%}"


def named_answers(run: "Run[Any]", task: "Task | None", problem: int) -> NamedAnswers:
    """Name the answers of one problem.

    Args:
        run: made with `keep="paths"`, so that answers have ancestors.
        task: verifies; None: nothing is known to be wrong.
        problem: index among the B problems.

    Raises:
        ValueError: the run has no answers.
    """
    single = run[problem]
    given = as_array(single.answers[:, :, 0])  # [S, N, L]
    steps, width, length = given.shape
    if not length:
        raise ValueError("the run has no answers: its model reads none out of its states")
    answers, first, number = np.unique(
        given.reshape(-1, length), axis=0, return_index=True, return_inverse=True
    )  # numbered in lexicographic order
    number = number.reshape(steps, width)
    weights = as_array(single.weights[-1, :, 0]).astype(np.float64)
    shares = np.bincount(number[-1], weights, len(answers)).astype(np.float64)
    right = None if task is None else _verified(task, as_array(single.x[0]), answers)
    # Right, then probable, then early; lexicographic where all are equal, as `Trajectories.distinct` has it.
    before = np.where(shares > 0, 0, first // width)
    order = np.lexsort((before, -_rounded(shares), np.zeros(len(answers)) if right is None else ~right))
    number = np.argsort(order)[number]
    lines = as_array(single.lines()[..., 0])
    return NamedAnswers(
        answers[order],
        shares[order],
        None if right is None else right[order],
        number,
        np.take_along_axis(number, lines, 1),
        weights,
    )


def _rounded(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    return shares.round(6)  # sums of float32 weights that should be equal are


def _verified(task: "Task", x: NDArray[Any], answers: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Whether each answer is right, `[M]`; None where the task cannot tell."""
    try:
        return np.asarray(task.verify(x, answers))
    except UnknownAnswers:
        return None
