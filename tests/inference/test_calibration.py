"""Calibration against counts by hand; the floor against exact enumeration of all outcomes.

Simulated floors have 400 replicates: they are held to four standard errors, which a right program exceeds with
probability 6e-5 a comparison (normal approximation).
"""

import itertools

import numpy as np
import pytest
import torch

from probgram import Trajectories, metrics, tasks
from probgram.inference import Reliability, reliability
from probgram.inference.calibration import SIMULATIONS, distance_to_uniform, of_answers, of_head

QUEENS = tasks.Queens(4)  # the empty board has two solutions, [1, 3, 0, 2] and [2, 0, 3, 1]
ONE, OTHER, WRONG, WORSE = [1, 3, 0, 2], [2, 0, 3, 1], [3, 1, 0, 2], [0, 0, 0, 0]


def make_run(answers: list, x: list | None = None, **changes) -> Trajectories:
    """Answers `[S, N, B, L]` as nested lists."""
    answers = torch.tensor(answers, dtype=torch.uint8)
    x = torch.full((answers.shape[2], 4), 4) if x is None else torch.tensor(x)
    fields = {"x": x, "answers": answers, "log_weights": torch.zeros(answers.shape[:3])}
    return Trajectories(**(fields | changes))


# -- bins -----------------------------------------------------------------------------------------------------


def test_a_diagram_by_hand():
    diagram = reliability([0.1, 0.3, 0.3, 0.9, 1.0], [False, True, False, True, True], bins=4)
    assert isinstance(diagram, Reliability)
    assert diagram.count.tolist() == [1, 2, 0, 2]
    assert diagram.confidence == pytest.approx([0.1, 0.3, np.nan, 0.95], nan_ok=True)
    assert diagram.accuracy == pytest.approx([0, 0.5, np.nan, 1], nan_ok=True)
    assert diagram.error == pytest.approx((1 * 0.1 + 2 * 0.2 + 2 * 0.05) / 5)


def test_a_bin_begins_at_its_lower_edge_whatever_rounding_did():
    shares = np.array([sum([0.05] * k) for k in range(21)])  # 0.15000000000000002, 0.3, 0.7999999999999999, ...
    assert (shares != np.arange(21) / 20).any()
    assert reliability(shares, np.ones(21)).count.tolist() == [2] * 9 + [3]


def test_adaptive_bins_have_equal_mass_and_keep_ties_together():
    confidence = np.linspace(0.9, 1, 40)
    diagram = reliability(np.random.default_rng(0).permutation(confidence), np.ones(40), bins=8, adaptive=True)
    assert diagram.count.tolist() == [5] * 8
    assert (np.diff(diagram.confidence) > 0).all()
    tied = reliability([0.2] * 6 + [0.5, 0.6], [True] * 8, bins=4, adaptive=True)
    assert sorted(tied.count[tied.count > 0].tolist()) == [2, 6] and tied.count.sum() == 8
    assert reliability([0.2] * 6, [True] * 6, bins=3, adaptive=True).error == pytest.approx(0.8)


def test_the_order_of_the_cases_does_not_matter():
    rng = np.random.default_rng(0)
    confidence, correct = rng.integers(5, size=60) / 4, rng.random(60) < 0.5
    order = rng.permutation(60)
    for adaptive in (False, True):
        one = reliability(confidence, correct, adaptive=adaptive)
        other = reliability(confidence[order], correct[order], adaptive=adaptive)
        assert one.count.tolist() == other.count.tolist() and one.error == pytest.approx(other.error)


# -- the floor ------------------------------------------------------------------------------------------------


def exact_floor(confidence: np.ndarray, bins: int, groups: np.ndarray | None = None) -> tuple[float, float]:
    """Mean and standard deviation of a calibrated forecaster's error, over all outcomes of independent cases."""
    errors, chances = [], []
    for outcome in itertools.product([False, True], repeat=len(confidence)):
        errors.append(reliability(confidence, outcome, bins).error)
        chances.append(np.prod(np.where(outcome, confidence, 1 - confidence)))
    mean = np.dot(chances, errors)
    return mean, np.sqrt(np.dot(chances, np.square(errors)) - mean**2)


def test_the_floor_is_the_mean_error_of_a_calibrated_forecaster():
    confidence = np.array([0.1, 0.15, 0.4, 0.7, 0.72, 0.74, 0.9])
    mean, deviation = exact_floor(confidence, 5)
    diagram = reliability(confidence, np.ones(7), 5)
    assert abs(diagram.floor - mean) < 4 * deviation / SIMULATIONS**0.5
    assert mean > 0.1  # seven cases: far from 0 however calibrated


def test_the_floor_of_one_bin_is_the_mean_absolute_deviation_of_a_binomial():
    from scipy.stats import binom

    for m, p in ((20, 0.5), (200, 0.9)):
        k = np.arange(m + 1)
        deviation = np.abs(k / m - p)
        mean = np.dot(binom.pmf(k, m, p), deviation)
        spread = np.sqrt(np.dot(binom.pmf(k, m, p), deviation**2) - mean**2)
        floor = reliability(np.full(m, p), np.ones(m), 1).floor
        assert abs(floor - mean) < 4 * spread / SIMULATIONS**0.5


def test_cases_that_belong_together_have_the_floor_of_one():
    """Ten trajectories of each problem that are right together are worth one case a problem."""
    confidence = np.array([0.1, 0.15, 0.4, 0.7, 0.72, 0.74, 0.9])
    mean, deviation = exact_floor(confidence, 5)
    many, group = np.repeat(confidence, 10), np.repeat(np.arange(7) + 100, 10)
    together = reliability(many, np.ones(70), 5, groups=group)
    assert abs(together.floor - mean) < 4 * deviation / SIMULATIONS**0.5
    assert reliability(many, np.ones(70), 5).floor < 0.5 * together.floor


def test_a_calibrated_forecaster_has_an_ordinary_p_value_and_an_overconfident_one_has_not():
    """Of 200 calibrated forecasters 5% may fall below 0.05: 26 or more with probability 2e-5 (binomial tail)."""
    rng = np.random.default_rng(0)
    p_values = []
    for seed in range(200):
        confidence = rng.random(80)
        p_values.append(reliability(confidence, rng.random(80) < confidence, seed=seed).p_value)
    assert (np.array(p_values) < 0.05).sum() < 26
    confidence = rng.uniform(0.8, 1, 200)
    over = reliability(confidence, rng.random(200) < confidence - 0.2)
    assert over.p_value == pytest.approx(1 / (1 + SIMULATIONS)) and over.error > 2 * over.floor


def test_the_same_seed_gives_the_same_floor():
    confidence = np.linspace(0, 1, 30)
    first, again, other = (reliability(confidence, np.ones(30), seed=seed).floor for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.5, 1.2], [True, False]), "within 0 and 1, got 0.5 to 1.2"),
        (([0.5], [True], 0), "bins must be an integer of at least 1, got 0"),
        (([0.5], [True], 2.5), "bins must be an integer"),
        (([0.5, 0.6], [True]), "two rows of the same size"),
        (([0.5, 0.6], [True, True], 2, False, [1]), r"groups must be a number for each of 2 cases, got \[1\]"),
    ],
)
def test_bad_input_is_one_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        reliability(*arguments)


# -- heads ----------------------------------------------------------------------------------------------------


def test_each_head_is_compared_with_what_it_predicts():
    """Halt: right at this step. Value: right at the end, whatever the answer is now."""
    run = make_run(
        [[[WRONG], [ONE], [WRONG], [ONE]], [[ONE], [ONE], [WRONG], [WORSE]]],
        heads={name: torch.full((2, 4, 1), 8.0) for name in ("value", "halt", "mine")},
    )
    said = float(torch.tensor(8.0).sigmoid())
    now, end = [1, 3], [0, 1]  # right: at the first step slots 1 and 3, at the last slots 0 and 1
    for head, step, right in (
        ("halt", 0, now),
        ("halt", 1, end),
        ("value", 0, end),
        ("value", 1, end),
        ("mine", 0, now),
    ):
        diagram = of_head(run, QUEENS, head, step)
        assert diagram.accuracy[-1] == pytest.approx(len(right) / 4), (head, step)
        assert diagram.error == pytest.approx(said - 0.5)
    apart = torch.tensor([[8.0, -8, -8, -8], [0, 0, 0, 0]])[..., None]  # sure of slot 0 alone
    heads = {"value": apart, "halt": apart}
    differing = make_run(run.answers.tolist(), heads=heads)
    assert of_head(differing, QUEENS, "value", 0).accuracy[[0, -1]] == pytest.approx([1 / 3, 1])
    assert of_head(differing, QUEENS, "halt", 0).accuracy[[0, -1]] == pytest.approx([2 / 3, 0])
    assert of_head(differing, QUEENS, "value", 0, at_end=False).accuracy[[0, -1]] == pytest.approx([2 / 3, 0])


def test_a_value_is_followed_along_the_lines_and_the_dead_are_left_out():
    """Slots 1 and 2 at the end come from slot 0, which was sure; slot 0 comes from slot 2 and is dead."""
    sure = torch.tensor([[6.0, 0, -6], [0, 0, 0]])[..., None]
    run = make_run(
        [[[WRONG], [WRONG], [WRONG]], [[WRONG], [ONE], [ONE]]],
        heads={"value": sure},
        ancestors=torch.tensor([[0, 1, 2], [2, 0, 0]], dtype=torch.int32)[..., None],
        log_weights=torch.tensor([[0.0, 0, 0], [-torch.inf, 0, 0]])[..., None],
    )
    diagram = of_head(run, QUEENS, "value", 0)
    assert diagram.count.tolist() == [0] * 9 + [2] and diagram.accuracy[-1] == 1


def test_trajectories_of_one_problem_are_one_group():
    answers = [[[ONE] * 3] * 5]  # [1, 5, 3, 4]
    run = make_run(answers, heads={"halt": torch.tensor([0.0, 1.0, 2.0]).expand(1, 5, 3)})
    confidence = torch.tensor([0.0, 1.0, 2.0]).sigmoid().numpy()
    mean, deviation = exact_floor(confidence, 10)
    assert abs(of_head(run, QUEENS, "halt").floor - mean) < 4 * deviation / SIMULATIONS**0.5


def test_a_head_that_is_missing_is_named():
    with pytest.raises(ValueError, match="no head 'halt': it has value"):
        of_head(make_run([[[ONE]]], heads={"value": torch.zeros(1, 1, 1)}), QUEENS, "halt")


# -- answers --------------------------------------------------------------------------------------------------


def test_shares_are_compared_with_one_over_the_number_of_solutions():
    """First problem: both solutions, 5 and 2 of 10, and a wrong answer, 3. Second: its one solution was missed."""
    first = [ONE] * 5 + [OTHER] * 2 + [WRONG] * 3
    second = [WRONG] * 6 + [WORSE] * 4
    run = make_run([[list(pair) for pair in zip(first, second, strict=True)]], [[4] * 4, [1, 4, 4, 4]])
    diagram = of_answers(run, QUEENS, bins=10)
    cases = {0.5: [0.5], 0.2: [0.5], 0.3: [0], 0.6: [0], 0.4: [0], 0.0: [1]}  # share -> outcome
    assert diagram.count.tolist() == [1, 0, 1, 1, 1, 1, 1, 0, 0, 0]
    for share, outcome in cases.items():
        assert diagram.accuracy[round(share * 10)] == pytest.approx(outcome[0])
        assert diagram.confidence[round(share * 10)] == pytest.approx(share)
    assert diagram.error == pytest.approx((0 + 0.3 + 0.3 + 0.6 + 0.4 + 1) / 2 / 2)  # half of it, a problem
    assert (diagram.confidence * diagram.count)[diagram.count > 0].sum() == pytest.approx(2)  # 1 a problem
    assert (diagram.accuracy * diagram.count)[diagram.count > 0].sum() == pytest.approx(2)


def test_the_floor_of_answers_is_that_of_uniform_draws():
    """One problem with two solutions, three draws, one bin that holds both: enumerated with two bins."""
    run = make_run([[[ONE], [ONE], [OTHER]]])
    chances = {0: 1 / 8, 1: 3 / 8, 2: 3 / 8, 3: 1 / 8}  # of the first solution
    errors = {k: abs(k / 3 - 0.5) for k in chances}  # both answers are as far from a half, in different bins
    mean = sum(chances[k] * errors[k] for k in chances)
    spread = np.sqrt(sum(chances[k] * errors[k] ** 2 for k in chances) - mean**2)
    assert abs(of_answers(run, QUEENS, bins=2).floor - mean) < 4 * spread / SIMULATIONS**0.5
    assert of_answers(run, QUEENS, bins=1).floor == 0  # in one bin shares and outcomes add up to the same


def test_the_error_of_answers_is_at_most_the_total_variation_and_the_same_where_every_answer_has_its_bin():
    first = [ONE] * 5 + [OTHER] * 2 + [WRONG] * 3
    run = make_run([[[one] for one in first]])
    variation = distance_to_uniform(run, QUEENS).total_variation[0]
    assert of_answers(run, QUEENS, bins=10).error == pytest.approx(variation) == pytest.approx(0.3)
    rng = np.random.default_rng(0)
    drawn = np.array([ONE, OTHER, WRONG, WORSE])[rng.integers(4, size=(1, 7, 6))]
    run = make_run(drawn.tolist())
    for bins in (1, 2, 5, 20):
        mean = distance_to_uniform(run, QUEENS).total_variation.mean()
        assert of_answers(run, QUEENS, bins=bins).error <= mean + 1e-9


def test_weights_count():
    run = make_run([[[ONE], [OTHER]]], log_weights=torch.tensor([3.0, 1.0]).log()[None, :, None])
    assert of_answers(run, QUEENS, bins=4).confidence == pytest.approx([np.nan, 0.25, np.nan, 0.75], nan_ok=True)


def test_problems_without_a_solution_are_left_out():
    x = [[4] * 4, [0, 4, 4, 4]]
    run = make_run([[[ONE, WRONG], [OTHER, WORSE]]], x)
    alone = make_run([[[ONE], [OTHER]]])
    assert of_answers(run, QUEENS).count.tolist() == of_answers(alone, QUEENS).count.tolist()
    with pytest.raises(ValueError, match="no problem has a solution"):
        of_answers(run[1], QUEENS)
    with pytest.raises(ValueError, match="bins must be"):
        of_answers(run, QUEENS, bins=0)


def test_the_distance_to_uniform_stands_beside_its_floor():
    first = [ONE] * 3 + [OTHER]
    run = make_run([[[one, WRONG, WORSE] for one in first]], [[4] * 4, [1, 4, 4, 4], [0, 4, 4, 4]])
    found = distance_to_uniform(run, QUEENS)
    assert found.solutions.tolist() == [2, 1, 0]
    assert found.total_variation == pytest.approx([0.25, 1, np.nan], nan_ok=True)
    floor = metrics.uniform_total_variation(np.array([2, 1]), 4)
    assert found.floor == pytest.approx([*floor, np.nan], nan_ok=True)


def test_a_task_that_cannot_enumerate_says_so():
    run = make_run([[[ONE]]])
    ruled = tasks.Pairs(np.array([[4] * 4]), np.array([ONE]), verify=QUEENS.verify)
    for judge in (of_answers, distance_to_uniform):
        with pytest.raises(tasks.UnknownAnswers):
            judge(run, ruled)
