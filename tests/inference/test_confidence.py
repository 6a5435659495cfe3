"""Confidences of hand-made runs; risk, coverage and AUROC against their definitions, case by case."""

import itertools

import numpy as np
import pytest
import torch

from probgram import Trajectories, tasks
from probgram.inference import auroc, best, risk_coverage, sample, smc, vote
from probgram.inference.confidence import expected, halt, share, usual, value
from probgram.inference.potentials import accumulated, energy, likelihood
from probgram.inference.potentials import value as value_potential
from probgram.models import GRAM

QUEENS = tasks.Queens(4)
RIGHT, SWAPPED, ROW = [1, 3, 0, 2], [3, 1, 0, 2], [0, 0, 0, 0]  # of four queens: 0, 1 and 6 violations


def make_run(**changes) -> Trajectories:
    """Four trajectories of two problems at two depth steps; only the last step is not all [0, 0, 0, 0]."""
    last = torch.tensor([[RIGHT, ROW], [SWAPPED, ROW], [RIGHT, SWAPPED], [ROW, ROW]], dtype=torch.uint8)
    logits = torch.tensor([[0.0, 1.0], [2.0, 3.0], [-1.0, 0.5], [4.0, -2.0]])
    fields = {
        "x": torch.full((2, 4), 4),
        "answers": torch.stack([torch.zeros_like(last), last]),
        "log_weights": torch.zeros(2, 4, 2),
        "heads": {"value": torch.stack([-logits, logits]), "halt": torch.stack([logits, 2 * logits])},
    }
    return Trajectories(**(fields | changes))


def weighted(*rows: tuple[float, float]) -> Trajectories:
    return make_run(log_weights=torch.stack([torch.zeros(4, 2), torch.tensor(rows).log()]))


def sigmoid(*logits: float) -> np.ndarray:
    return 1 / (1 + np.exp(-np.array(logits)))


# -- of a run -------------------------------------------------------------------------------------------------


def test_the_share_is_the_weight_that_agrees_with_the_votes_answer():
    assert share(make_run()).tolist() == [0.5, 0.75]
    assert share(make_run(), step=0).tolist() == [1.0, 1.0]
    assert share(weighted((1, 1), (6, 1), (1, 8), (2, 0))).tolist() == pytest.approx([0.6, 0.8])
    run = make_run()
    assert torch.equal(share(run), vote(run).score)


def test_a_confidence_is_asked_about_the_answer_that_was_chosen():
    run, chosen = make_run(), torch.tensor([ROW, SWAPPED])
    assert share(run, chosen).tolist() == [0.25, 0.25]
    assert value(run, chosen).tolist() == pytest.approx(sigmoid(4.0, 0.5))
    assert share(run, best(run).answers).tolist() == [0.25, 0.75]
    assert (
        share(run, torch.tensor([[9] * 4] * 2)).tolist()
        == value(run, torch.tensor([[9] * 4] * 2)).tolist()
        == [0, 0]
    )


def test_a_head_speaks_for_the_trajectories_that_gave_the_answer_by_weight():
    run = make_run()
    assert value(run).tolist() == pytest.approx([sigmoid(0, -1).mean(), sigmoid(1, 3, -2).mean()])
    assert halt(run).tolist() == pytest.approx([sigmoid(0, -2).mean(), sigmoid(2, 6, -4).mean()])
    assert halt(run, step=0)[0] == pytest.approx(sigmoid(0, 2, -1, 4).mean())
    heavy = weighted((3, 1), (1, 1), (1, 1), (1, 0))
    assert value(heavy).tolist() == pytest.approx([(3 * sigmoid(0)[0] + sigmoid(-1)[0]) / 4, sigmoid(1, 3).mean()])


def test_the_usual_confidence_is_the_halt_head_where_there_is_one():
    run = make_run()
    assert torch.equal(usual(run), halt(run))
    assert torch.equal(usual(make_run(heads={})), share(run))


def test_the_mean_potential_is_of_all_trajectories():
    confidence = expected(energy(QUEENS, 2.0))
    psi = np.exp(-np.array([0, 1, 6]) / 2)
    assert QUEENS.violations(torch.full((4,), 4), torch.tensor([RIGHT, SWAPPED, ROW])).tolist() == [0, 1, 6]
    mean = [(2 * psi[0] + psi[1] + psi[2]) / 4, (psi[1] + 3 * psi[2]) / 4]
    assert confidence(make_run()).tolist() == pytest.approx(mean)
    assert confidence(make_run(), torch.tensor([ROW, ROW])).tolist() == pytest.approx(mean)
    assert confidence(make_run(), step=0).tolist() == pytest.approx([psi[2], psi[2]])
    heavy = weighted((1, 0), (3, 4), (0, 1), (1, 0))
    assert confidence(heavy)[0] == pytest.approx((psi[0] + 3 * psi[1] + psi[2]) / 5)
    product = expected(energy(QUEENS, 2.0) * value_potential)
    of_first = (psi[[0, 1, 0, 2]] * sigmoid(0, 2, -1, 4)).mean()
    assert product(make_run())[0] == pytest.approx(of_first)


def test_the_mean_potential_is_the_normaliser_of_a_filter_that_only_weighs():
    """Under weights that are the prior's, E[psi] = Z: exactly, on the same trajectories."""
    torch.manual_seed(0)
    chain = GRAM.for_task(QUEENS, dim=16, heads=2, hidden=16, refinements=1, transitions=1, blocks=1).eval()
    x = torch.full((3, 4), 4)
    filtered = smc.run(chain, x, width=8, depth=2, potential=energy(QUEENS), resample=None)
    plain = filtered.untilted
    psi = expected(energy(QUEENS))(plain)
    assert torch.allclose(psi, filtered.log_normalizer[-1].exp().to(psi), rtol=1e-4)


def test_nothing_is_certain_where_all_weights_vanished():
    run = weighted((0, 1), (0, 1), (0, 1), (0, 1))
    for confidence in (share, value, halt, expected(energy(QUEENS))):
        assert confidence(run)[0] == 0 and confidence(run)[1] > 0


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: value(make_run(heads={})), "the confidence needs the head 'value': the run has none"),
        (lambda: share(make_run(), torch.tensor([ROW])), r"one answer a problem, \[2, 4\], got \[1, 4\]"),
        (lambda: expected(lambda view: view.answer[..., 0] + 1.0)(make_run()), "at most 1 to be a confidence"),
        (lambda: expected(accumulated(energy(QUEENS))), "of one depth step"),
        (
            lambda: expected(likelihood(torch.tensor([RIGHT])))(make_run()),
            "a run keeps answers and heads, no readouts",
        ),
    ],
)
def test_bad_input_is_one_sentence(act, message):
    with pytest.raises(ValueError, match=message):
        act()


def test_a_task_that_knows_the_answers_is_not_asked():
    """Its violations would be labels."""
    listed = tasks.Pairs(np.array([[0, 1]]), np.array([[1, 0]]))
    for task in (tasks.Pointers(4, hops=2), listed):
        for potential in (energy(task), value_potential * energy(task), energy(task) ** 2):
            with pytest.raises(ValueError, match=f"must not look at labels: {task.name}"):
                expected(potential)
    ruled = tasks.Pairs(np.array([[0, 1]]), np.array([[1, 0]]), verify=lambda x, y: (x != y).all(-1))
    for task in (QUEENS, tasks.Sudoku(2), tasks.Colouring(5), ruled):
        expected(energy(task))


def test_no_confidence_changes_with_what_the_task_says_is_right():
    """A task whose verification would fail is never asked to verify."""

    class Untouchable(tasks.Queens):
        def verify(self, x, y):
            raise AssertionError("a confidence looked at a label")

    for confidence in (share, value, halt, usual, expected(energy(Untouchable(4)))):
        confidence(make_run())


# -- risk and coverage ----------------------------------------------------------------------------------------


def test_risk_and_coverage_of_four_cases():
    curve = risk_coverage([0.2, 0.9, 0.5, 0.7], [False, True, True, False])
    assert curve.coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert curve.risk.tolist() == pytest.approx([0, 1 / 2, 1 / 3, 1 / 2])
    assert curve.area == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    assert curve.least == pytest.approx((0 + 0 + 1 / 3 + 1 / 2) / 4)


def test_ties_are_answered_in_random_order():
    """The mean over all orders of cases whose confidence decreases weakly, by listing every one."""
    rng = np.random.default_rng(0)
    for _ in range(5):
        confidence, correct = rng.integers(3, size=6) / 2, rng.random(6) < 0.5
        curves = []
        for order in map(list, itertools.permutations(range(6))):
            if (np.diff(confidence[order]) <= 0).all():
                curves.append(np.cumsum(~correct[order]) / np.arange(1, 7))
        curve = risk_coverage(confidence, correct)
        assert curve.risk == pytest.approx(np.mean(curves, 0))
        assert curve.area == pytest.approx(np.mean(curves))


def test_the_area_lies_between_the_best_ranking_and_the_error_rate_of_one_that_says_nothing():
    rng = np.random.default_rng(0)
    correct = rng.random(50) < 0.7
    assert risk_coverage(np.zeros(50), correct).area == pytest.approx(1 - correct.mean())
    perfect = risk_coverage(correct.astype(float), correct)
    assert perfect.area == pytest.approx(perfect.least)
    assert risk_coverage(rng.random(50), correct).area > perfect.least
    assert risk_coverage(rng.random(50), np.ones(50)).area == 0


def test_auroc_is_the_share_of_pairs_in_the_right_order():
    """Brute force over all pairs, with many ties and with none."""
    rng = np.random.default_rng(0)
    for levels in (2, 5, 1_000):
        for _ in range(10):
            confidence, correct = rng.integers(levels, size=40) / levels, rng.random(40) < 0.6
            right, wrong = confidence[correct][:, None], confidence[~correct]
            assert auroc(confidence, correct) == pytest.approx(np.mean((right > wrong) + 0.5 * (right == wrong)))
    assert auroc([0.1, 0.2, 0.3], [False, True, True]) == 1
    assert auroc([0.3, 0.3], [False, True]) == 0.5


def test_auroc_of_one_kind_alone_is_nan():
    assert np.isnan(auroc([0.1, 0.2], [True, True])) and np.isnan(auroc([0.1, 0.2], [False, False]))


def test_tensors_are_taken_like_arrays():
    confidence, correct = torch.tensor([0.3, 0.1, 0.2], requires_grad=True), torch.tensor([True, False, True])
    assert auroc(confidence, correct) == 1
    assert risk_coverage(confidence, correct).risk.tolist() == pytest.approx([0, 0, 1 / 3])


@pytest.mark.parametrize(
    ("confidence", "correct", "message"),
    [
        ([0.1], [True, False], r"same size, at least 1, got shapes \[1\] and \[2\]"),
        ([], [], "at least 1"),
        ([[0.1]], [[True]], "two rows"),
        ([0.1, np.nan], [True, False], "some are NaN"),
        ([0.1, 0.2], [0, 2], "true or false"),
    ],
)
@pytest.mark.parametrize("judge", [risk_coverage, auroc])
def test_bad_cases_are_one_sentence(judge, confidence, correct, message):
    with pytest.raises(ValueError, match=message):
        judge(confidence, correct)


# -- the shipped weights --------------------------------------------------------------------------------------


def test_boards_without_a_solution_are_told_from_others_by_the_halt_head_and_the_energy():
    """24 held-out boards, and 24 of two queens with which no solution begins; one fixed seed."""
    task = tasks.Queens(8)
    chain, rng = GRAM.from_pretrained("queens8"), np.random.default_rng(0)
    solvable = np.unique(task.examples("test")[0], axis=0)
    solvable = solvable[rng.choice(len(solvable), 24, replace=False)]
    dead = np.full((0, 8), 8)
    while len(dead) < 24:
        board = np.full(8, 8)
        board[rng.choice(8, 2, replace=False)] = rng.integers(8, size=2)
        if not len(task.solutions(board)):
            dead = np.vstack([dead, board])
    run = sample(chain, np.vstack([solvable, dead]), width=4, depth=4)
    has_solution = np.arange(48) < 24
    for confidence in (halt, expected(energy(task))):
        assert auroc(confidence(run), has_solution) > 0.95
