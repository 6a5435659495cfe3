"""Knowing when it does not know: how sure a run is of an answer, and whether that tells right from wrong.

    share            posterior share of the answer                              any run
    value, halt      mean of the head's probability over the answer's slots     chains with that head
    expected(psi)    E[psi]: mean of a potential over all trajectories          say, exp(-violations / alpha)

A confidence is any function `(run, answers [B, L], step) -> [B]` with values in [0, 1]. Those here take the runs of
both libraries, compute on the host, and return what the run's arrays are. No confidence looks at a label: shares
and heads come from the run alone. A potential may look at the task, and stays free of labels where the task counts
violations from x and y alone (queens, colouring, Sudoku), not where it compares y with an answer that it knows
(pointers, `Pairs` without a rule): there `expected(energy(task))` would be told the result, and refuses.

With several right answers a share says how the answer ranks among them, not whether it is right: 20 trajectories
that are all right, and all different, give each answer a share of 0.05. Heads and potentials are asked about
rightness itself. On its own, a low share is a reason to abstain only where one answer is right.

`risk_coverage` and `auroc` judge a confidence, and these do need labels.

Sources: El-Yaniv and Wiener, "On the foundations of noise-free selective classification", JMLR 11, 2010 (risk and
coverage); Geifman, Uziel and El-Yaniv, arXiv 1805.08206, section 2 (the area under the curve, its least value);
Hanley and McNeil, "The meaning and use of the area under a ROC curve", 1982 (AUROC as the statistic of Wilcoxon).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probgram.backends import inference
from probgram.fields import as_array, widened
from probgram.run import Array, Run
from probgram.tasks import Task

Confidence = Callable[[Run[Any], Any, int], Any]


# -- of an answer ---------------------------------------------------------------------------------------------


def share(run: Run[Array], answers: Any = None, step: int = -1) -> Array:
    """Posterior share of the chosen answer, that is, how much of the weight agrees with it.

    Args:
        run: of `sample` or the filter.
        answers: the chosen one of each problem, `[B, L]`; None: the vote's.
        step: row of the recorded depth steps.

    Returns:
        `[B]`, float64 on the host; 0 for an answer that no trajectory gave.
    """
    return _of_kind(run, (_weights(run, step) * _gave(run, answers, step)).sum(0))


@dataclass(frozen=True)
class Head:
    """Mean probability of a head over the slots that gave the chosen answer, by weight.

    "halt" was trained to say whether the answer is right at this depth step, "value" whether the trajectory's
    answer will be right at the end, which in training was so many depth steps away.
    """

    name: str

    def __call__(self, run: Run[Array], answers: Any = None, step: int = -1) -> Array:
        """Confidence `[B]`; 0 for an answer that no trajectory gave. Arguments are those of `share`.

        Raises:
            ValueError: the run has no such head.
        """
        if self.name not in run.heads:
            raise ValueError(
                f"the confidence needs the head {self.name!r}: the run has {', '.join(sorted(run.heads)) or 'none'}"
            )
        weights = _weights(run, step) * _gave(run, answers, step)  # [N, B]
        total = weights.sum(0)
        mean = (weights * sigmoid(run.heads[self.name][step])).sum(0) / np.where(total > 0, total, 1.0)
        return _of_kind(run, mean)


value = Head("value")
halt = Head("halt")


def usual(run: Run[Array], answers: Any = None, step: int = -1) -> Array:
    """What `solve` asks unless told otherwise: the halt head where the run has one, else the share."""
    return (halt if "halt" in run.heads else share)(run, answers, step)


@dataclass(frozen=True)
class Expected:
    """E[psi]: the mean of a potential with psi <= 1 over all trajectories of a problem, under the run's weights.

    It speaks of the problem, not of one answer: with the energy it is low where hardly any trajectory came near an
    answer, so that the board may have none. (Of a filter's run under psi itself the mean over the prior is
    `exp(run.log_normalizer[-1])`.)

    Args:
        potential: of the run's library, from `probgram.inference.potentials` or
            `probgram.inference.on_jax.potentials`, or a function of the view; it sees the problems, the answers and
            the heads that the run recorded.

    Raises:
        ValueError: the energy of a task that compares with an answer it knows (`knows_answers`), which would be a
            label; an accumulated potential, or one that a run tells too little for.
    """

    potential: Callable[[Any], Any]

    def __post_init__(self) -> None:
        if getattr(self.potential, "accumulates", False):
            raise ValueError("a confidence is of one depth step: give the potential that was accumulated")
        for task in _tasks(self.potential):
            if getattr(task, "knows_answers", False):
                raise ValueError(
                    f"a confidence must not look at labels: {task.name} counts violations by comparing with answers"
                )

    def __call__(self, run: Run[Array], answers: Any = None, step: int = -1) -> Array:
        """Confidence `[B]`, whatever the answers; 0 where all weights vanished.

        Raises:
            ValueError: the potential is of the other library, or above 1.
        """
        library = getattr(self.potential, "library", run.library)
        if library != run.library:
            raise ValueError(f"the run is of {run.library}, so the potential must be, too, and it is of {library}")
        potentials = inference(run.library, "potentials")
        log_psi = potentials.as_potential(self.potential)(potentials.Recorded(run, step))
        weights, psi = _weights(run, step), np.exp(widened(log_psi).astype(np.float64))
        if (psi > 1 + 1e-6).any():
            raise ValueError(f"a potential must be at most 1 to be a confidence, got {psi.max():.4g}")
        return _of_kind(run, np.where(weights > 0, weights * psi, 0.0).sum(0))


expected = Expected


def _tasks(potential: Any) -> Iterator[Any]:
    """The tasks that a potential of either library, or a factor of it, looks at."""
    for part in vars(potential).values() if hasattr(potential, "library") else ():
        for one in part if isinstance(part, tuple) else (part,):
            yield from (one,) if isinstance(one, Task) else _tasks(one)


def sigmoid(logits: Any) -> NDArray[np.float64]:
    """Probabilities of logits of either library; of any size, without overflow."""
    return np.exp(-np.logaddexp(0.0, -widened(logits).astype(np.float64)))


def _weights(run: Run[Any], step: int) -> NDArray[np.float64]:
    return as_array(run.weights[step]).astype(np.float64)  # [N, B]


def _of_kind(run: Run[Array], confidence: NDArray[np.float64]) -> Array:
    """A confidence `[B]` as the run's kind of array, on the host; rounding may have made a sum exceed 1."""
    return run.as_stored(confidence.clip(max=1.0), "float64")


def _gave(run: Run[Any], answers: Any, step: int) -> NDArray[np.bool_]:
    """Which slots gave the chosen answer, bool `[N, B]`."""
    if answers is None:
        answers = inference(run.library, "selection").vote(run, step).answers
    given, answers = as_array(run.answers[step]), as_array(answers)  # [N, B, L] and [B, L]
    if answers.shape != given.shape[1:]:
        raise ValueError(
            f"answers must be one answer a problem, {list(given.shape[1:])}, got {list(answers.shape)}"
        )
    return (given == answers).all(-1)


# -- judged by labels -----------------------------------------------------------------------------------------


class RiskCoverage(NamedTuple):
    """What is risked when only the most confident cases are answered.

    Fields:
        coverage: share of cases answered, m / M for m = 1 … M, `[M]`.
        risk: share of wrong ones among the m answered, `[M]`.
        area: mean of the risk over all coverages; 0 where nothing is wrong.
        least: the area if every right case came before every wrong one, which no confidence can undercut. One that
            says nothing has the area risk[-1].
    """

    coverage: NDArray[np.float64]
    risk: NDArray[np.float64]
    area: float
    least: float = float("nan")


def risk_coverage(confidence: ArrayLike, correct: ArrayLike) -> RiskCoverage:
    """Risk against coverage, the most confident case first.

    Cases of equal confidence are answered in random order, and the risk is its mean: the order of the arrays does
    not matter.

    Args:
        confidence: `[M]`, larger is surer.
        correct: bool `[M]`.

    Raises:
        ValueError: sizes that differ, no case, or NaN.
    """
    confidence, correct = checked_cases(confidence, correct)
    answered = np.arange(1, len(confidence) + 1)
    block, size = np.unique(-confidence, return_inverse=True, return_counts=True)[1:]
    wrong = np.bincount(block, ~correct)  # in each block of ties, the surest first
    before = np.cumsum(size) - size
    block = np.sort(block)
    errors = (np.cumsum(wrong) - wrong)[block] + (answered - before[block]) * (wrong / size)[block]
    right = int(correct.sum())
    least = np.maximum(answered - right, 0) / answered
    risk = errors / answered
    return RiskCoverage(answered / len(confidence), risk, float(risk.mean()), float(least.mean()))


def auroc(confidence: ArrayLike, correct: ArrayLike) -> float:
    """Probability that a right case is surer than a wrong one, half of it where they tie.

    By ranks: (R - n(n + 1) / 2) / (n m), R being the sum of the mid-ranks of the n right cases, m wrong.

    Args:
        confidence: `[M]`, larger is surer.
        correct: bool `[M]`.

    Returns:
        Within [0, 1], 0.5 for a confidence that says nothing; NaN where all cases are right, or all wrong.

    Raises:
        ValueError: sizes that differ, no case, or NaN.
    """
    confidence, correct = checked_cases(confidence, correct)
    right = int(correct.sum())
    wrong = len(correct) - right
    if not right or not wrong:
        return float("nan")
    block, size = np.unique(confidence, return_inverse=True, return_counts=True)[1:]
    rank = (np.cumsum(size) - (size - 1) / 2)[block]
    return float((rank[correct].sum() - right * (right + 1) / 2) / (right * wrong))


def checked_cases(confidence: ArrayLike, correct: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Confidences as float64 and labels as bool, `[M]` each, on the host.

    Raises:
        ValueError: sizes that differ, no case, NaN, or labels that are neither 0 nor 1.
    """
    confidence = np.asarray(_host(confidence), dtype=np.float64)
    labels = np.asarray(_host(correct))
    if confidence.ndim != 1 or confidence.shape != labels.shape or not len(labels):
        raise ValueError(
            f"confidence and correct must be two rows of the same size, at least 1, got shapes "
            f"{list(confidence.shape)} and {list(labels.shape)}"
        )
    if np.isnan(confidence).any():
        raise ValueError("confidence must be numbers, and some are NaN")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("correct must be true or false")
    return confidence, labels.astype(bool)


def _host(values: Any) -> Any:
    return values.detach().cpu() if hasattr(values, "detach") else values
