"""Figures of merit of a run, for arrays of any backend: validity, pass@N, coverage, total variation, chi-square.

Two averages of coverage, since the literature defines neither: *macro*, the mean over problems of the
share of its solutions that were found; *pooled*, solutions found over solutions there are. Beside them
stand what 20 uniform draws would reach (the ceiling) and what one right answer a problem would (the floor).
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Solutions(NamedTuple):
    """Every solution of every problem, padded: `answers` `[B, M, L]`, `counts` `[B]` (0: no solution)."""

    answers: NDArray[np.int64]
    counts: NDArray[np.int64]


def all_solutions(task: Any, x: Any) -> Solutions:
    """Enumerate the solutions of problems `[B, L]` with `task.solutions`."""
    found = [task.solutions(problem) for problem in np.asarray(x)]
    count = np.array([len(rows) for rows in found], dtype=np.int64)
    answers = np.full((len(found), max(1, count.max(initial=0)), task.length), -1, dtype=np.int64)
    for rows, out in zip(found, answers, strict=True):
        out[: len(rows)] = rows
    return Solutions(answers, count)


def solution_weights(solutions: Solutions, answers: Any, weights: Any = None) -> NDArray[np.float64]:
    """Probability that a run puts on each solution, `[B, M]`.

    Args:
        solutions: of the same problems.
        answers: `[N, B, L]`.
        weights: normalised `[N, B]`; None: equal.
    """
    answers = np.asarray(answers)
    result = np.zeros(solutions.answers.shape[:2])
    for m in range(solutions.answers.shape[1]):  # M is small; [N, B, M, L] at once would not be
        hit = (answers == solutions.answers[:, m]).all(-1) & (m < solutions.counts)
        result[:, m] = hit.mean(0) if weights is None else (hit * np.asarray(weights)).sum(0)
    return result


def coverage(found: NDArray[np.bool_], count: NDArray[np.int64]) -> tuple[float, float]:
    """Macro and pooled coverage of `found` `[B, M]`, over problems that have a solution."""
    solvable = count > 0
    hits = found.sum(-1)
    macro = float((hits[solvable] / count[solvable]).mean())
    return macro, float(hits.sum() / count.sum())


def uniform_coverage(count: NDArray[np.int64], width: int) -> tuple[float, float]:
    """Expected macro and pooled coverage of `width` independent uniform draws over the solutions."""
    count = count[count > 0]
    expected = 1 - (1 - 1 / count) ** width
    return float(expected.mean()), float((expected * count).sum() / count.sum())


def one_answer_coverage(count: NDArray[np.int64]) -> tuple[float, float]:
    """Macro and pooled coverage of always giving the same right answer."""
    count = count[count > 0]
    return float((1 / count).mean()), float(len(count) / count.sum())


def total_variation(probabilities: NDArray[np.float64], count: NDArray[np.int64]) -> NDArray[np.float64]:
    """Distance from a run's answers to the uniform law over solutions, `[B]`; invalid answers count."""
    real = np.arange(probabilities.shape[1]) < count[:, None]
    uniform = np.where(real, 1 / np.maximum(count, 1)[:, None], 0.0)
    invalid = 1 - probabilities.sum(-1)
    return 0.5 * (np.abs(probabilities - uniform).sum(-1) + invalid)


def uniform_total_variation(count: NDArray[np.int64], width: int) -> NDArray[np.float64]:
    """Expected distance of `width` uniform draws to the uniform law, `[B]`: the floor a perfect sampler has.

    Exact: half of M times the mean absolute deviation of a Binomial(width, 1/M) share.
    """
    from scipy.stats import binom

    floor = np.zeros(len(count))
    draws = np.arange(width + 1)
    for m in np.unique(count[count > 0]):
        deviation = (binom.pmf(draws, width, 1 / m) * np.abs(draws / width - 1 / m)).sum()
        floor[count == m] = 0.5 * m * deviation
    return floor


class Uniformity(NamedTuple):
    """How close independent draws come to the uniform law over all right answers.

    Fields:
        draws: right ones among them.
        found: different right answers among them.
        answers: how many right answers there are, M.
        chi_square: Σ (count - draws / M)² / (draws / M), over all M answers.
        p_value: probability that uniform draws give so large a chi-square or a larger one (M - 1 degrees of
            freedom).
    """

    draws: int
    found: int
    answers: int
    chi_square: float
    p_value: float


def histogram(answers: Any, solutions: Any) -> NDArray[np.int64]:
    """How often each solution was drawn, `[M]`; draws that are none of them are not counted.

    Args:
        answers: of one problem, `[N, L]`.
        solutions: all there are, `[M, L]`, such as `task.solutions(x)`.
    """
    one = Solutions(np.asarray(solutions)[None], np.array([len(solutions)]))
    drawn = np.asarray(answers)[:, None]
    return np.rint(solution_weights(one, drawn)[0] * len(drawn)).astype(np.int64)


def uniformity(answers: Any, solutions: Any) -> Uniformity:
    """Pearson's chi-square of the right ones among independent draws against the uniform law.

    The p-value is good from about five expected draws an answer on. Draws that share ancestors (a filter that
    resampled) are not independent: their chi-square is larger whatever their law.

    Args:
        answers: of one problem, `[N, L]`.
        solutions: all there are, `[M, L]`.

    Raises:
        ValueError: no draw is right, or there are fewer than two solutions.
    """
    from scipy.stats import chisquare

    count = histogram(answers, solutions)
    if len(count) < 2 or not count.any():
        raise ValueError(
            f"uniformity needs a right draw and at least two solutions, got {count.sum()} and {len(count)}"
        )
    test = chisquare(count)
    return Uniformity(
        int(count.sum()), int((count > 0).sum()), len(count), float(test.statistic), float(test.pvalue)
    )


def summarize(
    task: Any, x: Any, answers: Any, solutions: Solutions | None, weights: Any = None
) -> dict[str, float]:
    """All figures of one run's answers at one depth.

    Args:
        task: verifies.
        x: problems `[B, L]`.
        answers: `[N, B, L]`.
        solutions: every solution of `x`; None where they are not known.
        weights: normalised `[N, B]`; None: equal.

    Returns:
        Shares in [0, 1]: `valid` (one draw), `pass_at_n`, coverage macro and pooled on all problems and on
        those with several solutions, and total variation likewise (without solutions: the first two).
    """
    x, answers = np.asarray(x), np.asarray(answers)
    valid = np.asarray(task.verify(x, answers))  # [N, B]
    shares = np.full(valid.shape, 1 / len(valid)) if weights is None else np.asarray(weights)
    alive = shares > 0
    result = {
        "valid": float((shares * valid).sum(0).mean()),
        "pass_at_n": float((valid & alive).any(0).mean()),
    }
    if solutions is None:
        return result
    probabilities = solution_weights(solutions, answers, shares)
    several = solutions.counts > 1
    variation = total_variation(probabilities, solutions.counts)
    for name, rows in (("all", solutions.counts > 0), ("several", several)):
        if rows.any():
            macro, pooled = coverage(probabilities[rows] > 0, solutions.counts[rows])
            result |= {f"coverage_macro_{name}": macro, f"coverage_pooled_{name}": pooled}
            result[f"total_variation_{name}"] = float(variation[rows].mean())
    return result


def limits(solutions: Solutions, width: int) -> dict[str, dict[str, float]]:
    """The same figures for `width` uniform draws over the solutions, and for one fixed right answer."""
    uniform: dict[str, float] = {"valid": 1.0, "pass_at_n": 1.0}
    single: dict[str, float] = {"valid": 1.0, "pass_at_n": 1.0}
    floor = uniform_total_variation(solutions.counts, width)
    for name, rows in (("all", solutions.counts > 0), ("several", solutions.counts > 1)):
        if not rows.any():
            continue
        count = solutions.counts[rows]
        for target, (macro, pooled) in (
            (uniform, uniform_coverage(count, width)),
            (single, one_answer_coverage(count)),
        ):
            target |= {f"coverage_macro_{name}": macro, f"coverage_pooled_{name}": pooled}
        uniform[f"total_variation_{name}"] = float(floor[rows].mean())
        single[f"total_variation_{name}"] = float((1 - 1 / count).mean())
    return {"uniform": uniform, "one answer": single}
