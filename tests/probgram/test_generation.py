"""Generation from a blank x: one problem, every answer of it, and how its draws are judged and trained on."""

from functools import partial

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import chi2

from probgram import Chain, fit, metrics, tasks
from probgram.inference import evaluate, sample, svi
from probgram.inference.batches import Batches, as_known_answers
from probgram.inference.objective import ObjectiveConfig
from probgram.models import GRAM, GRAMGuide

BOARDS = tasks.Queens(6).solutions(np.full(6, 6))  # four of them


def even(x, y):
    return (y.sum(-1) % 2) == 0


def bits(**choices) -> tasks.Generation:
    """The four even answers of three bits."""
    answers = np.array([[0, 1, 1], [0, 0, 0], [1, 1, 0], [1, 0, 1]])
    return tasks.Generation("bits", answers, even, lambda y: "".join(str(int(token)) for token in y), **choices)


# -- what it is -----------------------------------------------------------------------------------------------


def test_eight_queens_from_nothing_has_the_92_boards_and_one_problem():
    task = tasks.Generation.of(tasks.Queens(8), [None] * 8)
    assert isinstance(task, tasks.Task)
    assert (task.name, task.length, task.input_size, task.output_size) == ("queens8-blank", 8, 9, 8)
    assert repr(task) == "Generation('queens8-blank', 92 answers of 8 tokens)"
    for split in ("train", "test"):
        x, y = task.examples(split)
        assert np.array_equal(np.unique(x, axis=0), np.full((1, 8), 8))
        assert np.array_equal(y, tasks.Queens(8).solutions(np.full(8, 8))) and y.shape == (92, 8)
    assert np.array_equal(task.solutions(task.encode()), y)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy], ids=["array", "tensor"])
def test_answers_verify_as_the_task_verifies_them(kind):
    queens = tasks.Queens(6)
    task = tasks.Generation.of(queens, [None] * 6)
    y = np.random.default_rng(0).integers(6, size=(7, 300, 6))
    y[:, :4] = BOARDS
    x = kind(task.encode())
    assert np.array_equal(np.asarray(task.verify(x, kind(y))), queens.violations(task.encode(), y) == 0)
    assert np.array_equal(np.asarray(task.violations(x, kind(y))), queens.violations(task.encode(), y))
    assert task.decode(y[0, 0]) == queens.decode(y[0, 0])


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy], ids=["array", "tensor"])
def test_a_task_of_answers_and_a_rule_needs_no_more(kind):
    task = bits()
    assert (task.length, task.input_size, task.output_size) == (3, 1, 2)
    assert task.solutions(task.encode()).tolist() == [[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]]
    y = np.array([[0, 0, 1], [1, 1, 0]])
    assert np.asarray(task.verify(kind(task.encode()), kind(y))).tolist() == [False, True]
    assert np.asarray(task.violations(kind(task.encode()), kind(y))).tolist() == [1, 0]
    assert task.decode(y[1]) == "110"


def test_the_blank_problem_may_be_written_in_any_way_and_nothing_else_can_be_asked():
    task = tasks.Generation.of(tasks.Queens(6), [None] * 6)
    for blank in (None, "", " \n", task.blank, task.blank.tolist(), torch.from_numpy(task.blank)):
        assert task.encode(blank).tolist() == [6] * 6
    for other in ([0, 6, 6, 6, 6, 6], "0 . . . . .", 3, [6]):
        with pytest.raises(ValueError, match="queens6-blank has one problem, the blank one"):
            task.encode(other)
    with pytest.raises(ValueError, match="queens6-blank has one problem"):
        task.solutions([0, 6, 6, 6, 6, 6])
    with pytest.raises(ValueError, match='split must be "train" or "test"'):
        task.examples("validation")


def test_given_answers_need_not_be_all_there_are():
    task = tasks.Generation.of(tasks.Queens(6), [None] * 6, BOARDS[:2], name="half")
    assert task.name == "half" and np.array_equal(task.examples("test")[1], BOARDS[:2])
    assert task.verify(task.encode(), BOARDS).all()
    with pytest.raises(tasks.UnknownAnswers, match="the 2 answers of half are not all that are right"):
        task.solutions(task.encode())
    whole = tasks.Generation.of(tasks.Queens(6), [None] * 6, np.tile(BOARDS[::-1], (2, 1)), complete=True)
    assert np.array_equal(whole.solutions(None), BOARDS)


def test_solved_sudoku_grids_are_generated_from_a_blank_board():
    sudoku = tasks.from_name("sudoku9")
    task = tasks.Generation.of(sudoku, "." * 81, sudoku.grids(20))
    assert len(task.answers) == 20 and task.verify(task.encode(), task.answers).all()
    assert (task.violations(task.encode(), np.roll(task.answers, 1, -1)) > 0).all()
    assert (task.input_size, task.output_size, task.complete) == (10, 10, False)


@pytest.mark.parametrize(
    ("answers", "blank", "message"),
    [
        (np.zeros((2, 3)), None, "answers must be integers [M, L], got float64 of shape [2, 3]"),
        (np.zeros(3, int), None, "answers must be integers [M, L], got int64 of shape [3]"),
        (np.zeros((0, 3), int), None, "answers must be integers [M, L], got int64 of shape [0, 3]"),
        (np.full((2, 3), -1), None, "answers must hold tokens from 0, got -1"),
        (np.zeros((2, 3), int), [0, 0], "blank must be [3] as the answers are, got [2]"),
    ],
)
def test_what_is_no_set_of_answers_is_one_clear_sentence(answers, blank, message):
    with pytest.raises(ValueError) as caught:
        tasks.Generation("own", answers, even, str, blank=blank)
    assert str(caught.value) == message


def test_it_is_found_by_the_name_it_carries():
    for name, count in (("queens6-blank", 4), ("queens6-board-blank", 4), ("sudoku4-blank", 288)):
        task = tasks.from_name(name)
        assert task.name == name and len(task.answers) == count
        assert task.verify(task.encode(), task.answers).all()
    with pytest.raises(ValueError, match="more than 1,000 solutions"):
        tasks.from_name("sudoku9-blank")
    for name in ("-blank", "queens-blank", "queens6-blank-blank", "blank", "digits-blank"):
        with pytest.raises(ValueError, match="no task is called"):
            tasks.from_name(name)


# -- training data --------------------------------------------------------------------------------------------


def test_each_answer_is_a_row_of_its_own_unless_they_are_to_be_grouped():
    separate, grouped = (as_known_answers(bits(grouped=grouped)) for grouped in (False, True))
    assert separate.answers.shape == (4, 1, 3) and separate.counts.tolist() == [1, 1, 1, 1]
    assert grouped.answers.shape == (1, 4, 3) and grouped.counts.tolist() == [4]
    assert np.array_equal(separate.answers[:, 0], grouped.answers[0])
    assert not separate.x.any() and separate.x.shape == (4, 3)


def test_ten_thousand_answers_make_batches_of_one_answer_a_row():
    answers = np.random.default_rng(0).integers(9, size=(10_000, 16))
    task = tasks.Generation("many", answers, even, str, complete=False)
    known = as_known_answers(task)
    batches = Batches(known, 8, 1, 2, 0, staggered=False, by_pair=True)
    rows = [batches.start(torch.device("cpu")).answers for _ in range(10_000 // 8)]
    assert rows[0].shape == (8, 1, 16)
    seen = {tuple(y) for answers in rows for y in answers[:, 0].tolist()}
    assert seen == {tuple(y) for y in answers.tolist()}  # an epoch holds every answer


def test_a_tasks_grouped_attribute_is_all_that_decides():
    class Separate(tasks.Pairs):
        grouped = False

    x, y = np.array([[1, 0], [1, 0], [1, 0], [0, 0]]), np.array([[1, 1], [0, 1], [1, 1], [0, 0]])
    known = tasks.separate_answers(x, y)
    assert np.array_equal(known.x, x) and np.array_equal(
        known.answers[:, 0], y
    )  # a pair given twice is there twice
    task = Separate(x, y, seed=1)
    train = task.examples("train")
    for found, expected in zip(as_known_answers(task), tasks.separate_answers(*train), strict=True):
        assert np.array_equal(found, expected)
    for found, expected in zip(as_known_answers(train), tasks.group_answers(*train), strict=True):
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("grouped", [False, True])
def test_a_chain_learns_to_generate_either_way(grouped):
    """One token that is to be odd: half of all tokens are, and every odd one is to be found."""
    task = tasks.Generation("odd", [[1], [3], [5]], lambda x, y: (y % 2 == 1).all(-1), str, grouped=grouped)
    torch.manual_seed(0)
    chain = GRAM.for_task(task, dim=8, heads=1, hidden=16, refinements=1, transitions=1)
    objective = ObjectiveConfig(depth=2, carry=0.0, beta=0.1)
    fit(chain, GRAMGuide(chain), task, 60, objective=objective, batch=16, lr=1e-2, ema=0.95, progress=False)
    report = evaluate(chain, task, width=400, depth=2, seeds=(0,))
    assert report.mean("valid") > 0.95 and report.mean("coverage_macro_all") == 1.0


def test_held_out_validity_in_training_rests_on_as_many_draws_of_the_one_problem(monkeypatch):
    """Four draws of each of 128 problems, or 512 of one."""
    seen = []

    def recorded(chain, x, width, **choices):
        seen.append((len(x), width))
        return sample(chain, x, width, **choices)

    monkeypatch.setattr(svi, "sample", recorded)
    for task in (bits(), tasks.Queens(6)):
        chain = GRAM.for_task(task, dim=8, heads=1, hidden=8, refinements=1, transitions=1)
        fit(chain, GRAMGuide(chain), task, 1, objective=ObjectiveConfig(depth=1), batch=4, progress=False)
    held_out = len(np.unique(tasks.Queens(6).examples("test")[0], axis=0))
    assert seen[1::2] == [(1, 512), (held_out, max(4, 512 // held_out))]  # after a look at the untrained chain


# -- evaluation -----------------------------------------------------------------------------------------------


class Uniform(Chain):
    """Reads boards out of a uniform choice among answers: a perfect sampler, or one that prefers some."""

    def __init__(self, answers: np.ndarray, probabilities: np.ndarray) -> None:
        super().__init__()
        self.answers, self.law = torch.from_numpy(answers), torch.from_numpy(probabilities)

    def initial(self, context):
        return context.new_zeros(len(context))

    def propose(self, state, context, t):
        return state

    def prior(self, proposal, t):
        return dist.Categorical(self.law.expand(*proposal.shape, -1))

    def move(self, proposal, eps):
        return eps

    def readout(self, state):
        logits = torch.nn.functional.one_hot(self.answers[state], 8).double() * 1e3
        return dist.Categorical(logits=logits).to_event(1)


def test_a_perfect_sampler_of_the_92_boards_is_judged_perfect():
    """Coverage, variation and chi-square of 2,000 uniform draws a seed, within 4 standard errors of exact values.

    The mean over 8 seeds of total variation has a standard deviation of about 0.002; chi-square(91) has mean 91
    and standard deviation 13.5, its mean over 8 seeds 4.8. False alarm 1e-4 each.
    """
    task = tasks.from_name("queens8-blank")
    chain = Uniform(task.answers, np.full(92, 1 / 92))
    report = evaluate(chain, task, width=2000, depth=1, seeds=range(8))
    assert report.about["problems"] == 1 and report.about["several answers"] == 1
    assert report.mean("valid") == pytest.approx(1.0) and report.mean("pass_at_n") == 1.0
    assert report.mean("coverage_macro_all") == 1.0  # a board is missed with probability 3e-8
    floor = report.limits["uniform"]["total_variation_all"]
    assert floor == pytest.approx(0.084, abs=0.004)
    assert report.mean("total_variation_all") == pytest.approx(floor, abs=0.008)
    runs = [sample(chain, task.encode(), width=2000, depth=1, seed=seed) for seed in range(8)]
    found = [metrics.uniformity(run.answers[-1][:, 0], task.solutions(None)) for run in runs]
    assert np.mean([f.chi_square for f in found]) == pytest.approx(91, abs=4 * 4.8)
    assert all(f.draws == 2000 and f.found == f.answers == 92 for f in found)
    assert all(f.p_value == pytest.approx(chi2.sf(f.chi_square, 91)) for f in found)


def test_a_sampler_that_knows_half_of_the_boards_is_found_out():
    task = tasks.from_name("queens8-blank")
    law = np.where(np.arange(92) % 2, 1 / 46, 0.0)
    chain = Uniform(task.answers, law)
    report = evaluate(chain, task, width=2000, depth=1, seeds=(0,))
    assert report.mean("coverage_macro_all") == 0.5 and report.mean("valid") == pytest.approx(1)
    assert 0.5 <= report.mean("total_variation_all") < 0.6
    found = metrics.uniformity(sample(chain, task.blank, 2000, 1).answers[-1][:, 0], task.answers)
    assert found.found == 46 and found.chi_square > 1_900 and found.p_value < 1e-100


class Hesitant(Uniform):
    """One state, whose readout has its mode at a right answer and all its tokens at even odds otherwise."""

    def readout(self, state):
        return dist.Categorical(logits=torch.tensor([[0.1, 0.0]]).expand(*state.shape, 3, 2)).to_event(1)


def test_evaluate_can_draw_answers_from_the_readout():
    """Half of all three-bit words are even; 4,000 draws are within 0.032 of it but once in 2e4 times."""
    task = bits()
    chain = Hesitant(task.answers, np.array([1.0]))
    mode = evaluate(chain, task, width=4000, depth=1, seeds=(0,))
    assert mode.mean("valid") == pytest.approx(1) and mode.mean("coverage_macro_all") == 0.25
    drawn = evaluate(chain, task, width=4000, depth=1, seeds=(0,), run=partial(sample, decode="sample"))
    assert drawn.mean("valid") == pytest.approx(0.5, abs=0.035) and drawn.mean("coverage_macro_all") == 1.0


# -- the exact histogram --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy], ids=["array", "tensor"])
def test_the_histogram_counts_right_draws_only(kind):
    solutions = bits().answers
    draws = solutions[[0, 0, 2, 3, 0]].astype(np.uint8)
    draws = np.concatenate([draws, [[1, 1, 1]]]).astype(np.uint8)
    assert metrics.histogram(kind(draws), solutions).tolist() == [3, 0, 1, 1]
    found = metrics.uniformity(kind(draws), solutions)
    assert found[:3] == (5, 3, 4)
    assert found.chi_square == pytest.approx(((3 - 1.25) ** 2 + 1.25**2 + 2 * 0.25**2) / 1.25)
    assert found.p_value == pytest.approx(chi2.sf(found.chi_square, 3))


@pytest.mark.parametrize(("draws", "solutions"), [([[1, 1, 1]], bits().answers), ([[0, 0, 0]], [[0, 0, 0]])])
def test_nothing_to_compare_is_one_clear_sentence(draws, solutions):
    with pytest.raises(ValueError, match="uniformity needs a right draw and at least two solutions"):
        metrics.uniformity(np.array(draws), np.array(solutions))
