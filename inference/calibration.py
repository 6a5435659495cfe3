"""Calibration: of the cases with confidence c, is a share c right?

    error = Σ_b M_b / M |accuracy_b - confidence_b|              expected calibration error, over bins b
    floor = E[error] of a perfect forecaster, at this sample size

The error of finitely many cases is never 0, not even for a forecaster who is perfectly calibrated, and the finer
the bins the larger it is. So the floor stands beside it: the mean error when each case is right with exactly the
probability that was said, by simulation, and the p-value, the share of such simulations with an error as large.

    what is forecast                          who forecasts                     right is
    the chosen answer is right                a confidence of confidence.py     task.verify
    this trajectory's answer is right         the head "halt"                   at this depth step
    it will be right at the end               the head "value"                  at the last depth step of the run
    the answer is y                           the posterior share of y          1 / (number of solutions), or 0

The last row asks more than rightness: that solutions come in equal shares. Its distance to that, problem by
problem, is `distance_to_uniform`.

Sources: Naeini, Cooper and Hauskrecht, "Obtaining well calibrated probabilities using Bayesian binning", AAAI 2015
(the error); Bröcker and Smith, "Increasing the reliability of reliability diagrams", 2007 (simulated forecasters);
Roelofs et al., arXiv 2012.08668 (its bias, and equal-mass bins).
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probgram import metrics
from probgram.fields import as_array
from probgram.inference.confidence import checked_cases, sigmoid
from probgram.run import Run

SIMULATIONS = 400  # of a calibrated forecaster: the floor is known to 2 or 3%, a p-value to steps of 1 / 401
CELLS = 4_000_000  # simulated cases at a time: bounds memory, changes no number
TIE = 1e-6  # a share of 6 / 20 that rounding has put below 0.3 still belongs to the bin that begins there

Array = NDArray[np.float64]


class Reliability(NamedTuple):
    """A reliability diagram.

    Fields:
        confidence: mean confidence of each bin, `[bins]`; NaN where it is empty.
        accuracy: share of right cases, `[bins]`; NaN likewise.
        count: cases, int64 `[bins]`.
        error: expected calibration error, in [0, 1].
        floor: mean error of a calibrated forecaster of the same confidences, at this number of cases.
        p_value: probability that such a forecaster has an error at least as large.
    """

    confidence: Array
    accuracy: Array
    count: NDArray[np.int64]  # type: ignore[assignment]  # of cases, not tuple's method
    error: float
    floor: float = float("nan")
    p_value: float = float("nan")


def reliability(
    confidence: ArrayLike,
    correct: ArrayLike,
    bins: int = 10,
    adaptive: bool = False,
    groups: ArrayLike | None = None,
    seed: int = 0,
) -> Reliability:
    """Bin forecasts by their confidence, and compare it with how often they were right.

    Bins are of equal width, bin b from b / bins up to but not including (b + 1) / bins, 1 being in the last one;
    with `adaptive` of equal mass, between quantiles of the confidences. Equal confidences are never put apart, so
    that adaptive bins may be fewer, and the rest empty. Where confidences pile up near 1 equal widths leave all
    bins but the last nearly empty; adaptive ones look closer there.

    Args:
        confidence: in [0, 1], `[M]`.
        correct: bool `[M]`.
        bins: at least 1.
        adaptive: equal mass in the place of equal width.
        groups: which cases belong together, integers `[M]`, such as the trajectories of one problem: the calibrated
            forecaster is then right or wrong in all of a group together, as far as its confidences allow. So its
            floor is the largest there can be, and without groups (None, independent cases) the least.
        seed: of the simulated forecasters.

    Returns:
        The diagram, its error, and the floor of the error.

    Raises:
        ValueError: sizes that differ, a confidence outside of [0, 1], fewer than one bin.
    """
    confidence, correct = checked_cases(confidence, correct)
    _check_bins(bins)
    if confidence.min() < -TIE or confidence.max() > 1 + TIE:
        raise ValueError(f"confidence must be within 0 and 1, got {confidence.min():g} to {confidence.max():g}")
    confidence = confidence.clip(0, 1)
    number = np.arange(len(confidence)) if groups is None else np.asarray(groups)
    if number.shape != confidence.shape:
        raise ValueError(f"groups must be a number for each of {len(confidence)} cases, got {list(number.shape)}")
    index = _bin(confidence, bins, adaptive)
    error = float(_errors(index, confidence, correct[None].astype(float), bins)[0])
    simulated = _calibrated_errors(index, confidence, number, bins, np.random.default_rng(seed))
    return _diagram(index, confidence, correct.astype(float), bins, error, simulated)


def of_head(
    run: Run[Any],
    task: Any,
    head: str,
    step: int = -1,
    bins: int = 10,
    adaptive: bool = False,
    at_end: bool | None = None,
) -> Reliability:
    """Calibration of a head over all living trajectories, each counted once whatever its weight.

    Trajectories of one problem are right or wrong together more often than not, so the floor treats them as one
    group (`reliability`). A value head has learned what becomes of a trajectory in as many depth steps as it was
    trained with: a run that ends earlier or later asks it about something else.

    Args:
        run: recorded its paths where `step` is not the last.
        task: verifies the answers, for which it may use labels: this judges the head.
        head: its name.
        step: row of the recorded depth steps at which the head is asked.
        bins: as in `reliability`.
        adaptive: likewise.
        at_end: whether the head predicts that the trajectory's answer will be right at the end of the run (followed
            along its line, where there was resampling), rather than that it is right at this step. None: for
            "value".

    Raises:
        ValueError: the run has no such head, or no trajectory of positive weight.
    """
    if head not in run.heads:
        raise ValueError(f"the run has no head {head!r}: it has {', '.join(sorted(run.heads)) or 'none'}")
    said, last = sigmoid(run.heads[head][step]), step
    if head == "value" if at_end is None else at_end:
        said, last = np.take_along_axis(said, as_array(run.lines()[step]), 0), -1
    correct = as_array(task.verify(run.x, run.answers[last]))
    alive = as_array(run.weights[last]) > 0
    problem = np.broadcast_to(np.arange(run.problems), alive.shape)
    return reliability(said[alive], correct[alive], bins, adaptive, problem[alive], seed=run.seed)


def of_answers(
    run: Run[Any], task: Any, step: int = -1, bins: int = 10, adaptive: bool = False, seed: int = 0
) -> Reliability:
    """Calibration of the posterior over answers: does y come with the probability of its share?

    A case is an answer of a problem: every different one that was drawn, its share against 1 / (number of
    solutions) where it is right and 0 where it is not; and every solution that was missed, 0 against 1 / (number of
    solutions). So the confidences of a problem add up to 1, and what they are compared with does, too; the accuracy
    of a bin is the mean of the latter. The error is per problem, half the sum over bins of |Σ outcomes - Σ shares|:
    the weight that stands in the wrong bin, at most the mean total variation. (Per case, many rare wrong answers
    would dilute it.) The floor is the error of as many uniform draws over the solutions as the run has
    trajectories.

    Args:
        run: its problems without any solution are left out.
        task: enumerates the solutions.
        step: row of the recorded depth steps.
        bins: as in `reliability`.
        adaptive: likewise.
        seed: of the simulated draws.

    Raises:
        UnknownAnswers: the task cannot enumerate the solutions.
        ValueError: no problem has a solution.
    """
    _check_bins(bins)
    solutions, shares = _solution_shares(run, task, step)
    counts = solutions.counts
    if not counts.any():
        raise ValueError("the posterior over answers has nothing to be compared with: no problem has a solution")
    real = np.arange(shares.shape[1]) < counts[:, None]  # [B, M]
    target = np.where(real, 1 / np.maximum(counts, 1)[:, None], 0.0)
    wrong = _wrong_shares(run, task, step, counts > 0)
    confidence = np.concatenate([shares[real], wrong]).clip(0, 1)
    outcome = np.concatenate([target[real], np.zeros(len(wrong))])
    index = _bin(confidence, bins, adaptive)
    per_problem = 0.5 / np.count_nonzero(counts)
    error = float(_errors(index, confidence, outcome[None], bins)[0]) * len(index) * per_problem
    rng, simulated = np.random.default_rng(seed), []
    for _ in range(SIMULATIONS):
        drawn = np.concatenate([rng.multinomial(run.width, np.full(m, 1 / m)) for m in counts[counts > 0]])
        uniform = drawn / run.width
        errors = _errors(_bin(uniform, bins, adaptive), uniform, target[real][None], bins)
        simulated.append(errors[0] * len(uniform) * per_problem)
    return _diagram(index, confidence, outcome, bins, error, np.array(simulated))


class Distance(NamedTuple):
    """How far the answers of each problem are from the uniform law over its solutions.

    Fields:
        total_variation: `[B]`; NaN where a problem has no solution.
        floor: its mean for as many uniform draws, `[B]`, exactly; NaN likewise.
        solutions: how many there are, int64 `[B]`.
    """

    total_variation: Array
    floor: Array
    solutions: NDArray[np.int64]


def distance_to_uniform(run: Run[Any], task: Any, step: int = -1) -> Distance:
    """Total variation between a run's answers and the uniform law over solutions; wrong answers count in full.

    The floor is that of N independent draws of equal weight (`metrics.uniform_total_variation`): for weighted
    trajectories it is too low.

    Raises:
        UnknownAnswers: the task cannot enumerate the solutions.
    """
    solutions, shares = _solution_shares(run, task, step)
    known = solutions.counts > 0
    distance = metrics.total_variation(shares, solutions.counts)
    floor = metrics.uniform_total_variation(solutions.counts, run.width)
    return Distance(np.where(known, distance, np.nan), np.where(known, floor, np.nan), solutions.counts)


# -- bins -----------------------------------------------------------------------------------------------------


def _check_bins(bins: int) -> None:
    if isinstance(bins, bool) or not isinstance(bins, int | np.integer) or bins < 1:
        raise ValueError(f"bins must be an integer of at least 1, got {bins!r}")


def _bin(confidence: Array, bins: int, adaptive: bool) -> NDArray[np.int64]:
    """The bin of each case, `[M]` from 0."""
    inner = np.arange(1, bins)
    edges = np.sort(confidence)[inner * len(confidence) // bins] if adaptive else inner / bins
    return np.searchsorted(edges - TIE, confidence, side="right")


def _errors(index: NDArray[np.int64], confidence: Array, outcomes: Array, bins: int) -> Array:
    """The error for each row of outcomes, `[R, M]` to `[R]`."""
    said = np.bincount(index, confidence, bins)
    order = np.argsort(index, kind="stable")
    filled, first = np.unique(index[order], return_index=True)
    happened = np.add.reduceat(outcomes[:, order], first, axis=1)  # [R, bins that are not empty]
    return np.abs(happened - said[filled]).sum(1) / len(index)


def _calibrated_errors(
    index: NDArray[np.int64], confidence: Array, groups: NDArray[Any], bins: int, rng: np.random.Generator
) -> Array:
    """Errors of a forecaster who is right with the probability that it says, `[SIMULATIONS]`."""
    group = np.unique(groups, return_inverse=True)[1].reshape(-1)
    rows = max(1, CELLS // len(index))
    parts = []
    for first in range(0, SIMULATIONS, rows):
        luck = rng.random((min(rows, SIMULATIONS - first), group.max() + 1))
        parts.append(_errors(index, confidence, (luck[:, group] < confidence).astype(float), bins))
    return np.concatenate(parts)


def _diagram(
    index: NDArray[np.int64], confidence: Array, outcome: Array, bins: int, error: float, simulated: Array
) -> Reliability:
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        said, happened = (np.bincount(index, values, bins) / count for values in (confidence, outcome))
    as_large = int((simulated >= error - TIE).sum())
    return Reliability(said, happened, count, error, float(simulated.mean()), (1 + as_large) / (1 + len(simulated)))


# -- answers of a run -----------------------------------------------------------------------------------------


def _solution_shares(run: Run[Any], task: Any, step: int) -> tuple[metrics.Solutions, Array]:
    """All solutions of the run's problems, and the weight on each, `[B, M]`."""
    solutions = metrics.all_solutions(task, as_array(run.x))
    answers, weights = as_array(run.answers[step]), as_array(run.weights[step])
    return solutions, metrics.solution_weights(solutions, answers, weights)


def _wrong_shares(run: Run[Any], task: Any, step: int, kept: NDArray[np.bool_]) -> Array:
    """The share of every different wrong answer that has weight, in the problems that are kept `[B]`."""
    number, shares = (as_array(part) for part in run.answer_shares(step))  # [N, B]
    right = as_array(task.verify(run.x, run.answers[step]))
    slots = np.unique(number, return_index=True)[1]  # one slot for each answer of each problem
    wrong = (~right & (shares > 0) & kept).reshape(-1)[slots]
    return shares.reshape(-1)[slots][wrong]
