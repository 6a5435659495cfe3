"""Figures of merit: hand-made cases, brute force, and the published limits of the data sets."""

import itertools

import numpy as np
import pytest
import torch

from probgram import metrics, tasks

COUNTS = np.array([1, 1, 2, 3, 6])


def known_counts(n: int) -> np.ndarray:
    return tasks.Queens(n).known.counts


# -- published limits -----------------------------------------------------------------------------------------


def percent(*values: float) -> list[float]:
    return [round(100 * value, 1) for value in values]


def test_the_limits_of_eight_queens_with_twenty_draws_are_the_published_ones():
    counts = known_counts(8)
    several = counts[counts > 1]
    assert percent(*metrics.uniform_coverage(counts, 20)) == [99.7, 98.0]
    assert percent(*metrics.uniform_coverage(several, 20)) == [99.3, 96.7]
    assert percent(metrics.one_answer_coverage(counts)[0]) == [80.0]
    assert metrics.uniform_total_variation(counts, 20).mean() == pytest.approx(0.039, abs=5e-4)
    assert metrics.uniform_total_variation(several, 20).mean() == pytest.approx(0.113, abs=5e-4)


def test_one_answer_a_problem_covers_the_published_share_of_ten_queens():
    assert percent(metrics.one_answer_coverage(known_counts(10))[0]) == [58.9]


# -- limits against enumeration and simulation ----------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_expected_coverage_and_variation_equal_the_enumeration_of_all_draws(count, width):
    draws = np.array(list(itertools.product(range(count), repeat=width)))  # every outcome is as likely
    shares = np.stack([(draws == m).mean(1) for m in range(count)], 1)
    macro, pooled = metrics.uniform_coverage(np.array([count]), width)
    assert macro == pytest.approx((shares > 0).mean())
    assert pooled == pytest.approx((shares > 0).mean())
    floor = metrics.uniform_total_variation(np.array([count]), width)
    assert floor == pytest.approx([0.5 * np.abs(shares - 1 / count).sum(1).mean()])


def simulate(counts: np.ndarray, width: int, runs: int, seed: int = 0) -> list[np.ndarray]:
    """Shares `[I, M]` of uniform draws, a run each."""
    rng = np.random.default_rng(seed)
    result = []
    for _ in range(runs):
        shares = np.zeros((len(counts), counts.max()))
        for i, count in enumerate(counts):
            shares[i, :count] = np.bincount(rng.integers(count, size=width), minlength=count) / width
        result.append(shares)
    return result


def test_limits_agree_with_simulation():
    runs, width = 600, 7
    found = simulate(COUNTS, width, runs)
    simulated = np.array([metrics.coverage(shares > 0, COUNTS) for shares in found])
    error = simulated.std(0, ddof=1) / np.sqrt(runs)
    assert (np.abs(simulated.mean(0) - metrics.uniform_coverage(COUNTS, width)) < 4 * error).all()
    variation = np.array([metrics.total_variation(shares, COUNTS) for shares in found])  # [runs, I]
    floor = metrics.uniform_total_variation(COUNTS, width)
    assert (np.abs(variation.mean(0) - floor) <= 4 * variation.std(0) / np.sqrt(runs) + 1e-12).all()
    assert floor[:2].tolist() == [0.0, 0.0]


def test_problems_without_solution_are_left_out():
    with_none = np.array([0, 2, 0, 3])
    without = np.array([2, 3])
    assert metrics.uniform_coverage(with_none, 5) == metrics.uniform_coverage(without, 5)
    assert metrics.one_answer_coverage(with_none) == metrics.one_answer_coverage(without)
    found = np.array([[False] * 3, [True, False, False], [False] * 3, [True, True, False]])
    assert metrics.coverage(found, with_none) == pytest.approx(((1 / 2 + 2 / 3) / 2, 3 / 5))


# -- one run, by hand -----------------------------------------------------------------------------------------


class Sums:
    """y answers x when its two tokens sum to x: x = 2 has (0, 2), (1, 1), (2, 0)."""

    length = 2

    def verify(self, x, y):
        return y.sum(-1) == x[..., 0]

    def solutions(self, x):
        total = int(x[0])
        return np.array([(a, total - a) for a in range(total + 1)]).reshape(-1, 2)


X = np.array([[0], [1], [2]])
ANSWERS = np.array(
    [
        [[0, 0], [0, 1], [1, 1]],
        [[0, 0], [0, 1], [1, 1]],
        [[0, 1], [0, 1], [0, 2]],
        [[0, 0], [1, 0], [2, 2]],
    ]
)  # [N, B, L]


def test_all_solutions_are_padded_and_counted():
    solutions = metrics.all_solutions(Sums(), X)
    assert solutions.counts.tolist() == [1, 2, 3]
    assert solutions.answers[2].tolist() == [[0, 2], [1, 1], [2, 0]]
    assert solutions.answers[0].tolist() == [[0, 0], [-1, -1], [-1, -1]]


def test_solution_weights_are_what_one_counts():
    solutions = metrics.all_solutions(Sums(), X)
    shares = metrics.solution_weights(solutions, ANSWERS)
    assert shares.tolist() == [[0.75, 0, 0], [0.75, 0.25, 0], [0.25, 0.5, 0]]
    weights = np.array([[0.1, 0.0, 1.0], [0.2, 0.0, 0.0], [0.3, 0.0, 0.0], [0.4, 1.0, 0.0]])
    weighted = metrics.solution_weights(solutions, ANSWERS, weights)
    assert np.allclose(weighted, [[0.7, 0, 0], [0, 1, 0], [0, 1, 0]])


def test_every_figure_of_a_run_is_what_one_computes_by_hand():
    figures = metrics.summarize(Sums(), X, ANSWERS, metrics.all_solutions(Sums(), X))
    expected = {
        "valid": (0.75 + 1 + 0.75) / 3,
        "pass_at_n": 1.0,
        "coverage_macro_all": (1 + 1 + 2 / 3) / 3,
        "coverage_pooled_all": 5 / 6,
        "coverage_macro_several": (1 + 2 / 3) / 2,
        "coverage_pooled_several": 4 / 5,
        "total_variation_all": (0.25 + 0.25 + 5 / 12) / 3,
        "total_variation_several": (0.25 + 5 / 12) / 2,
    }
    assert figures == pytest.approx(expected)


def test_weights_count_and_what_has_weight_zero_covers_nothing():
    weights = np.zeros((4, 3))
    weights[2] = 1.0  # only the third trajectory: wrong, right, right
    figures = metrics.summarize(Sums(), X, ANSWERS, metrics.all_solutions(Sums(), X), weights)
    assert figures["valid"] == figures["pass_at_n"] == pytest.approx(2 / 3)
    assert figures["coverage_macro_all"] == pytest.approx((0 + 1 / 2 + 1 / 3) / 3)
    assert figures["total_variation_all"] == pytest.approx((1 + 1 / 2 + 2 / 3) / 3)


def test_tensors_give_the_same_figures():
    solutions = metrics.all_solutions(Sums(), X)
    as_tensors = metrics.summarize(Sums(), torch.from_numpy(X), torch.from_numpy(ANSWERS), solutions)
    assert as_tensors == metrics.summarize(Sums(), X, ANSWERS, solutions)


def test_a_run_that_is_right_everywhere_and_uniform_has_no_variation():
    solutions = metrics.all_solutions(Sums(), X[1:])
    answers = np.array([[[0, 1], [0, 2]], [[1, 0], [1, 1]], [[0, 1], [2, 0]], [[1, 0], [0, 2]], [[0, 1], [1, 1]],
                        [[1, 0], [2, 0]]])  # fmt: skip
    figures = metrics.summarize(Sums(), X[1:], answers, solutions)
    assert figures["coverage_macro_all"] == 1.0 and figures["valid"] == pytest.approx(1.0)
    assert figures["total_variation_all"] == pytest.approx(0.0)


def test_limits_name_the_same_figures_as_a_run():
    solutions = metrics.all_solutions(Sums(), X)
    limits = metrics.limits(solutions, 4)
    figures = metrics.summarize(Sums(), X, ANSWERS, solutions)
    assert limits["uniform"].keys() == limits["one answer"].keys() == figures.keys()
    single = metrics.summarize(Sums(), X, np.stack([[[0, 0], [0, 1], [1, 1]]] * 4), solutions)
    assert limits["one answer"] == pytest.approx(single)
