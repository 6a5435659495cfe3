"""The frontier: exact laws of chains whose escape from a trap is known, and the verdicts that follow from them."""

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from pyro import distributions as dist
from scipy.stats import binom

from probgram import Chain, metrics
from probgram.inference import frontier, sample, vote
from probgram.inference.cost import multiply_adds
from probgram.inference.frontier import selection
from probgram.inference.timing import interleaved
from probgram.inference.verdict import Gain, Verdict, gain, judge
from probgram.models import GRAM
from probgram.tasks import UnknownAnswers

DEPTHS, WIDTHS = (1, 2, 4, 8), (1, 2, 4, 8, 16)


class Echo:
    """Problems of two tokens; the answer is the problem, and there is no other."""

    name, length, input_size, output_size = "echo", 2, 16, 17

    def verify(self, x, y):
        return (x == y).all(-1)

    def solutions(self, x):
        return np.asarray(x)[None]

    def examples(self, split):
        x = np.stack(np.meshgrid(np.arange(16), np.arange(16), indexing="ij"), -1).reshape(-1, 2)
        return x, x


class Escape(Chain):
    """Wrong until a trajectory escapes, with probability hazard(t) at depth step t; right ever after.

    Wrong answers are all the same one; `judged` adds a head that knows.
    """

    homogeneous = False

    def __init__(self, hazard, judged=False):
        super().__init__()
        self.hazard, self.judged = hazard, judged

    def initial(self, context):
        return context.new_zeros(context.shape[:-1], dtype=torch.float64), context

    def propose(self, state, context, t):
        return state[0], context, self.hazard(t)

    def prior(self, proposal, t):
        return dist.Normal(torch.zeros_like(proposal[0]), 1.0)

    def move(self, proposal, eps):
        right, x, hazard = proposal
        uniform = 0.5 * (1 + torch.erf(eps / math.sqrt(2)))
        return torch.maximum(right, (uniform < hazard).double()), x.expand(*right.shape, 2)

    def readout(self, state):
        right, x = state
        tokens = torch.where(right[..., None] > 0, x.expand(*right.shape, 2), 16)
        return dist.Categorical(logits=100.0 * torch.nn.functional.one_hot(tokens, 17)).to_event(1)

    def heads(self, state):
        return {"value": state[0]} if self.judged else {}


def serial(t):
    return float(t == 3)  # right from depth 4 on, whatever the draw


def trapped(t):
    return 0.2 * (t == 0)  # a trajectory is right from the first depth step, or never


def escaping(t):
    return 0.08


def measured(hazard, judged=False, **how):
    how = {"depths": DEPTHS, "widths": WIDTHS, "seeds": (0, 1), "problems": 128, "rounds": 0} | how
    return frontier(Escape(hazard, judged), Echo(), **how)


def expected(hazard) -> np.ndarray:
    """Probability that a trajectory is right after each depth, `[D]`."""
    return np.array([1 - np.prod([1 - hazard(t) for t in range(depth)]) for depth in DEPTHS])


# -- the grid ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hazard", [trapped, escaping])
def test_every_cell_is_an_unbiased_estimate_of_its_exact_law(hazard):
    """Of 3 × 20 cells one is further off than 5 standard errors by chance in 1 of 25,000 runs."""
    result = measured(hazard, problems=None)
    right = expected(hazard)[:, None]
    width = np.array(WIDTHS)
    # The vote is right where more than half are, and in a tie where the first slot is: half of the ties.
    majority = binom.sf(width // 2, width, right) + 0.5 * binom.pmf(width / 2, width, right) * (width % 2 == 0)
    laws = {"valid": right + 0 * width, "pass_at_n": 1 - (1 - right) ** width, "selected_vote": majority}
    for name, law in laws.items():
        scores = result.scores[name].mean(0)  # problems are independent, draws of different cells are not
        error = scores.std(-1, ddof=1) / math.sqrt(scores.shape[-1])
        assert error.mean() < 0.01
        assert (np.abs(result.mean(name) - law) < 5 * error + 1e-3).all(), name  # near 1 no problem may fail
    assert (result.scores["selected_first_verified"] == result.scores["pass_at_n"]).all()


def test_a_cell_is_the_mean_over_runs_of_its_own_size():
    """Depths are read from one run, widths are disjoint groups of its draws: what smaller runs would give."""
    result = measured(escaping, seeds=(3,), problems=32)
    x = result_problems(32)
    run = sample(Escape(escaping), x, WIDTHS[-1], DEPTHS[-1], 3)
    for (i, depth), (j, width) in product(enumerate(DEPTHS), enumerate(WIDTHS)):
        passed, chosen = [], []
        for first in range(0, WIDTHS[-1], width):
            part = replace(
                run, answers=run.answers[:depth, first : first + width], depths=(),
                log_weights=run.log_weights[:depth, first : first + width], log_normalizer=None,
            )  # fmt: skip
            passed.append(Echo().verify(part.x, part.answers[-1]).any(0))
            chosen.append(Echo().verify(part.x, vote(part).answers))
        assert torch.stack(passed).double().mean(0).tolist() == result.scores["pass_at_n"][0, i, j].tolist()
        assert torch.stack(chosen).double().mean(0).tolist() == result.scores["selected_vote"][0, i, j].tolist()


def result_problems(count):
    x = np.unique(Echo().examples("test")[0], axis=0)
    return x[np.sort(np.random.default_rng(0).choice(len(x), count, replace=False))]


def test_a_width_that_does_not_divide_the_greatest_leaves_draws_out():
    result = measured(escaping, widths=(2, 3, 7), seeds=(0,), problems=16)
    run = sample(Escape(escaping), result_problems(16), 7, DEPTHS[-1], 0)
    right = Echo().verify(run.x, run.answers[-1]).double()  # [7, B]
    by_hand = right[:6].reshape(2, 3, 16).amax(1).mean(0)
    assert by_hand.tolist() == result.scores["pass_at_n"][0, -1, 1].tolist()


def test_batches_of_problems_do_not_share_their_noise(monkeypatch):
    monkeypatch.setattr("probgram.inference.grid.BATCH", 16 * WIDTHS[-1])
    scores = measured(escaping, problems=64, seeds=(0,)).scores["valid"][0, 0, 0]
    batches = scores.reshape(4, 16)
    assert all((batches[0] != other).any() for other in batches[1:])


def test_the_same_seeds_give_the_same_frontier():
    first, again = (measured(escaping, problems=16, seeds=(0, 1)) for _ in range(2))
    other = measured(escaping, problems=16, seeds=(2, 3))
    assert first.to_json() == again.to_json() != other.to_json()


def test_the_best_by_a_head_that_knows_reaches_the_oracle():
    result = measured(escaping, judged=True, problems=32)
    assert (result.scores["selected_best_by_value"] == result.scores["pass_at_n"]).all()
    assert result.measures["selected"] == "selected_best_by_value"


def test_a_rule_of_ones_own_is_measured_under_its_name():
    def last(run, step):
        chosen = vote(run, step)
        slot = torch.full_like(chosen.slot, run.width - 1)
        return chosen._replace(slot=slot, answers=run.answers[step, -1])

    result = measured(escaping, problems=32, select={"last": last})
    assert [name for name in result.scores if name.startswith("selected")] == ["selected_last"]
    assert np.allclose(result.scores["selected_last"].mean((0, 3)), result.mean("valid"), atol=0.1)
    assert result.measures["selected"] == "selected_last"


# -- verdicts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["selected", "pass_at_n"])
def test_a_serial_chain_is_depth_bound_with_vertical_contours(by):
    result = measured(serial, by=by)
    assert result.kind == "depth-bound"
    for name in ("pass_at_n", "selected_vote"):
        assert (result.mean(name) == np.array([0, 0, 1, 1])[:, None]).all()  # columns of equal height
    found = result.verdicts[by]
    assert found.depth.share == pytest.approx(
        0.5
    )  # of 1 + 1 + 0 missing before three doublings, the second removes 1
    assert found.width.share == 0 and found.width.high < 0.05
    assert (found.corner, found.cheapest) == ("solved", (4, 1))
    assert "depth-bound" in result.verdict and "already at depth 4 and width 1" in result.verdict


def test_a_trapped_chain_is_width_bound_where_its_answers_can_be_told():
    result = measured(trapped, judged=True)
    assert result.kind == "width-bound"
    found = result.verdicts["selected"]
    assert found.depth.share == 0 and found.depth.high < 0.05
    assert found.corner == "width-bound" and "more width still pays" in str(found)
    left = 0.8 ** np.array(WIDTHS)
    assert found.width.share == pytest.approx(1 - left[1:].sum() / left[:-1].sum(), abs=0.05)
    assert found.width.low < 1 - left[1:].sum() / left[:-1].sum() < found.width.high


def test_width_that_only_the_oracle_sees_is_no_help_to_a_user():
    """A vote among mostly wrong, equal answers is wrong: the oracle asks for width, the user for a verifier."""
    result = measured(trapped)
    assert result.kind == "neither: train more"
    assert result.verdicts["pass_at_n"].kind == "width-bound"
    assert "Selection, not sampling, is the bottleneck: pass@16 lacks 0.0" in result.verdict
    gap, low, high = result.selection_gap()
    assert low < gap < high and gap == pytest.approx(1 - 0.8**16, abs=0.06)
    assert "Selection, not sampling" not in measured(trapped, judged=True).verdict


def test_a_chain_that_escapes_at_every_step_is_bound_by_both_alike():
    result = measured(escaping, judged=True, depths=(1, 2, 4, 8), widths=(1, 2, 4, 8))
    assert result.kind == "both"
    found = result.verdicts["selected"]
    # Depth times width tries: the laws are symmetric, and the contours diagonal.
    assert found.depth.share == pytest.approx(found.width.share, abs=0.05)
    points = result.equal_cost("pass_at_n")
    assert [(p.depth, p.width) for p in points] == [(1, 8), (2, 4), (4, 2), (8, 1)]
    assert np.ptp([p.score for p in points]) < 0.1
    assert "At equal cost, depth x width = 8" in result.verdict


def test_a_hopeless_chain_needs_training():
    result = measured(lambda t: 0.0)
    assert result.kind == "neither: train more"
    assert all(verdict.corner == "neither: train more" for verdict in result.verdicts.values())
    assert "neither pays any more, train more" in result.verdict


def test_a_solved_task_lacks_nothing():
    result = measured(lambda t: 1.0)
    assert result.kind == "solved"
    assert result.verdicts["selected"].cheapest == (1, 1)
    assert "nothing more is needed" in result.verdict and "NaN" not in result.to_json()


def test_what_paid_on_the_grid_and_what_still_pays_are_told_apart():
    """Right in four of ten problems from depth 4 on, never in the others: more depth was needed, and is no more."""
    scores = np.zeros((4, 3, 100))
    scores[2:, :, :40] = 1
    found = judge(scores, (1, 2, 4, 8), (1, 2, 4))
    assert (found.kind, found.corner) == ("depth-bound", "neither: train more")
    assert "At depth 8 and width 4 the score is 0.400: neither pays any more, train more" in str(found)


def test_width_that_pays_from_some_depth_on_is_said():
    result = measured(lambda t: 0.2 * (t == 3), judged=True)
    assert result.kind == "both"
    assert "Width pays from depth 4 on." in result.verdict
    assert "Width pays from" not in measured(escaping, judged=True).verdict


def test_few_problems_leave_a_small_gain_undecided():
    scores = np.zeros((2, 2, 12))
    scores[1, :, 0] = 1  # one of twelve
    found = judge(scores, (1, 2), (1, 2))
    assert found.kind == "undecided" and "(depth and width unclear)" in str(found)
    many = judge(np.tile(scores, 20), (1, 2), (1, 2))
    assert many.kind == "depth-bound"


def test_harm_is_no_help():
    scores = np.full((2, 2, 100), 0.9)
    scores[1] = np.linspace(0.3, 0.5, 100)
    found = judge(scores, (1, 2), (1, 2))
    assert found.depth.high < 0 and found.kind == "neither: train more"
    assert "More depth does harm." in str(found) and "More width does harm" not in str(found)


def test_harm_of_the_last_doubling_is_said_at_the_corner():
    """Depth pays over the grid, the last doubling of it does harm, and width goes on to pay."""
    scores = np.zeros((4, 3, 100))
    scores[1] = np.linspace(0.4, 0.6, 100)
    scores[2] = 0.9
    scores[3] = np.array([0.2, 0.4, 0.6])[:, None] + np.linspace(-0.1, 0.1, 100)
    found = judge(scores, (1, 2, 4, 8), (1, 2, 4))
    assert found.corner == "width-bound" and found.last_depth.high < 0
    corner = str(found).partition("the score is 0.600: ")[2]
    share, low, high = (round(-100 * figure) for figure in (found.last_depth.share, *found.last_depth[:0:-1]))
    harm = f"more depth does harm (the last doubling added {share}% [{low}, {high}] to what depth 4 leaves missing)"
    assert corner == f"{harm}, more width still pays (the last doubling removed {found.last_width})."
    assert (share, low < share < high) == (300, True)
    flat = judge(scores[:, [2, 2]], (1, 2, 4, 8), (1, 2))
    assert flat.corner == "neither: train more" and "train more;" not in str(flat)
    assert "more depth does harm" in str(flat) and "more width pays nothing" in str(flat)


def test_where_nothing_was_missing_before_the_last_doubling_it_is_said_plainly():
    scores = np.ones((2, 2, 200))
    scores[1, :, :80] = 0
    found = judge(scores, (1, 2), (1, 2))
    assert "A doubling of depth removes nothing of what is missing" in str(found)
    assert "Before the last doubling of depth nothing is missing." in str(found)
    assert "the score is 0.600: at depth 1 nothing was missing, more width pays nothing" in str(found)


def test_a_verdict_comes_back_from_its_plain_values():
    scores = np.ones((2, 2, 50))
    scores[0, 0] = 0
    found = judge(scores, (1, 2), (1, 2))
    read = Verdict.from_dict(json.loads(json.dumps(found.as_dict())))
    assert str(read) == str(found) and read.as_dict() == found.as_dict()


# -- gains ------------------------------------------------------------------------------------------------------


def resamples(problems, seed=0):
    pool = problems + 2
    return np.random.default_rng(seed).multinomial(pool, [1 / pool] * pool, 1_000)


def test_a_gain_is_the_share_of_what_is_missing_per_doubling():
    left = np.array([0.8, 0.4, 0.2])[:, None, None] * np.ones((3, 2, 10))
    assert gain(1 - left, (1, 2, 4), resamples(10), 0.95).share == pytest.approx(0.5)
    fourfold = gain(1 - left[::2], (1, 4), resamples(10), 0.95)  # 0.8 to 0.2 in two doublings
    assert fourfold.share == pytest.approx(0.5)
    assert gain(1 - left[::-1], (1, 2, 4), resamples(10), 0.95).share == pytest.approx(-1.0)


def test_saturated_cells_do_not_dilute_a_gain():
    left = np.array([0.8, 0.4, 0.0])[:, None, None] * np.ones((3, 1, 10))
    deeper = np.concatenate([left, np.zeros((5, 1, 10))])
    assert gain(1 - left, (1, 2, 4), resamples(10), 0.95) == gain(
        1 - deeper, (1, 2, 4, 8, 16, 32, 64, 128), resamples(10), 0.95
    )
    assert math.isnan(gain(np.ones((2, 1, 10)), (1, 2), resamples(10), 0.95).share)


def test_the_interval_covers_the_true_gain_as_often_as_it_says():
    """500 samples: coverage 0.95 would fall below 0.91 in 1 of 10,000 runs (Bernoulli bound).

    With 4 or 6 problems that lack something, whose resamples alone would cover 0.6 to 0.8, intervals are wide.
    """
    rng, draws, sure = np.random.default_rng(0), resamples(60), 0
    for lacking, truth in ((0.6, 0.25), (0.1, 0.8), (0.06, 0.9), (0.6, 0.0)):
        hits = 0
        for _ in range(500):
            wrong = rng.random(60) < lacking
            helped = wrong & (rng.random(60) < truth)
            scores = np.stack([~wrong, ~wrong | helped])[:, None].astype(float)
            found = gain(scores, (1, 2), draws, 0.95)
            hits += not wrong.any() or found.low <= truth <= found.high
            sure += found.helps(0.05) == "yes" and truth == 0
        assert 0.91 < hits / 500, (lacking, truth)
    assert sure == 0


def test_few_problems_make_no_verdict():
    """Two problems that a doubling answers, four that it spoils: either may be chance."""
    answered = gain(np.stack([np.zeros((1, 2)), np.ones((1, 2))]), (1, 2), resamples(2), 0.95)
    assert (answered.share, answered.high) == (1, 1) and answered.helps(0.05) == "unclear"
    spoiled = gain(np.stack([np.full((1, 4), 0.5), np.zeros((1, 4))]), (1, 2), resamples(4), 0.95)
    assert spoiled.share == -1 and spoiled.high >= 0
    many = gain(np.stack([np.zeros((1, 20)), np.ones((1, 20))]), (1, 2), resamples(20), 0.95)
    assert many.helps(0.05) == "yes"


def test_problems_that_never_change_bound_the_gain_by_how_many_there_are():
    few, many = (gain(np.zeros((2, 1, n)), (1, 2), resamples(n), 0.95) for n in (10, 100))
    assert few.share == many.share == 0
    # About two or three of all, as many as one may well miss.
    assert 2 <= round(12 * few.high, 9) <= 3 and 2 <= round(102 * many.high, 9) <= 3
    assert -few.high - 1 / 12 <= few.low <= -few.high + 1 / 12


def test_one_problem_gives_no_interval_and_no_verdict():
    found = judge(np.array([0.2, 0.9])[:, None, None] * np.ones((2, 2, 1)), (1, 2), (1, 2))
    assert found.kind == "undecided" and "no interval" in str(found)
    assert json.loads(json.dumps(found.as_dict()))["depth"]["low"] is None


@pytest.mark.parametrize(
    ("found", "helps"),
    [
        (Gain(0.3, 0.1, 0.5), "yes"),
        (Gain(0.02, 0.01, 0.03), "no"),
        (Gain(0.045, 0.001, 0.4), "unclear"),
        (Gain(0.045, -0.001, 0.4), "unclear"),
        (Gain(0.0, -0.02, 0.02), "no"),
        (Gain(0.2, -0.1, 0.5), "unclear"),
        (Gain(0.2, math.nan, math.nan), "unclear"),
        (Gain(math.nan, math.nan, math.nan), "no"),
        (Gain(-0.3, -0.5, -0.1), "no"),
    ],
)
def test_a_gain_helps_where_it_is_sure_and_large_enough(found, helps):
    assert found.helps(0.05) == helps


# -- several answers --------------------------------------------------------------------------------------------


class Several(Echo):
    """Four first tokens are right where that of x is even, one where it is odd; the second is x's own."""

    name = "several"

    def verify(self, x, y):
        return ((y[..., 0] < 4) & (x[..., 0] % 2 == 0) | (y[..., 0] == 0)) & (y[..., 1] == x[..., 1])

    def solutions(self, x):
        return np.array([[first, x[1]] for first in range(4 if x[0] % 2 == 0 else 1)])


class Uniform(Chain):
    """A uniform draw over the answers in the first depth step, kept from then on."""

    def initial(self, context):
        return context.double()

    def propose(self, state, context, t):
        return state, context, t

    def prior(self, proposal, t):
        return dist.Normal(torch.zeros_like(proposal[0][..., 0]), 1.0)

    def move(self, proposal, eps):
        state, x, t = proposal
        count = torch.where(x[..., 0] % 2 == 0, 4, 1)
        drawn = (0.5 * (1 + torch.erf(eps / math.sqrt(2))) * count).floor()
        first = drawn if t == 0 else state[..., 0]
        return torch.stack([first.double(), x[..., 1].double().expand_as(first)], -1)

    def readout(self, state):
        return dist.Categorical(logits=100.0 * torch.nn.functional.one_hot(state.long(), 17)).to_event(1)


def test_coverage_is_that_of_uniform_draws_and_shows_that_width_is_needed():
    """5 standard errors at 5 widths: a false alarm in 1 of 300,000 runs."""
    result = frontier(Uniform(), Several(), (1, 2), WIDTHS, (0, 1), None, by="coverage", rounds=0)
    assert result.kind == "width-bound" and result.verdicts["selected"].kind == "solved"
    scores = result.scores["coverage_macro_several"].mean(0)[0]  # [W, B]
    known = ~np.isnan(scores[0])
    assert known.sum() == 128  # half of the problems have several answers
    error = scores[:, known].std(-1, ddof=1) / math.sqrt(128)
    law = np.array([metrics.uniform_coverage(np.full(128, 4), width)[0] for width in WIDTHS])
    assert (np.abs(result.mean("coverage_macro_several")[0] - law) <= 5 * error + 1e-12).all()
    assert (result.scores["coverage_macro_all"][..., ~known] == 1).all()
    assert len(result.plot().axes) == 9  # three measures: contours, colour bar, curves


def test_a_task_that_cannot_enumerate_has_no_coverage():
    class Unknown(Echo):
        def solutions(self, x):
            raise UnknownAnswers("too many")

    how = {"depths": (1, 2), "widths": (1, 2), "seeds": (0,), "problems": 8, "rounds": 0}
    result = frontier(Escape(escaping), Unknown(), **how)
    assert set(result.measures) == {"selected", "pass_at_n"}
    assert not any(name.startswith("coverage") for name in result.scores)
    with pytest.raises(ValueError, match='by="coverage" needs problems with several known answers'):
        frontier(Escape(escaping), Unknown(), **how, by="coverage")
    with pytest.raises(ValueError, match='by="coverage" needs problems with several known answers'):
        frontier(Escape(escaping), Echo(), **how, by="coverage")


# -- cost and latency -------------------------------------------------------------------------------------------


def test_the_envelope_only_rises_and_leaves_out_what_is_dearer_and_no_better():
    result = measured(serial)
    assert [(p.cost, p.depth, p.width, p.score) for p in result.envelope("pass_at_n")] == [
        (1, 1, 1, 0),
        (4, 4, 1, 1),
    ]


def test_latency_is_measured_in_every_cell_and_compared_at_four_times_the_size():
    result = measured(escaping, depths=(1, 4), widths=(1, 4), problems=4, seeds=(0,), rounds=2)
    assert result.seconds.shape == (2, 2, 2) and (result.seconds > 0).all()
    made = replace(result, seconds=np.array([[[1.0, 2.0], [4.0, 8.0]], [[1.0, 3.0], [4.0, 8.0]]]))
    ratios = made.quadrupled()
    assert (ratios["depth"], ratios["width"]) == (1, 1)
    assert ratios["width x4"] == [2.25, 2.5, 2.75] and ratios["depth x4"] == [4.0, 4.0, 4.0]
    assert "four times the width takes 2.50" in made.verdict
    assert "Latency" not in measured(escaping, depths=(1, 2), widths=(1, 2), problems=4, rounds=1).verdict


def test_work_is_that_of_a_trajectory_times_the_width():
    task = Echo()
    chain = GRAM.for_task(task, dim=16, heads=2, hidden=16, refinements=1, transitions=1)
    result = frontier(chain, task, (1, 3), (1, 2), (0,), 4, rounds=0)
    one = multiply_adds(chain, task.examples("test")[0][:1], 3)
    assert result.multiply_adds[1].tolist() == [one, 2 * one]
    assert f"| {2 * one / 1e6:.4g} |" in result.table()
    assert measured(escaping, problems=2).multiply_adds is None  # no matrix products


def test_candidates_take_turns_and_the_first_round_is_not_counted():
    order, ticks = [], iter(range(100))
    seconds = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2, lambda: next(ticks))
    assert order == ["a", "b"] * 3
    assert {name: values.tolist() for name, values in seconds.items()} == {"a": [1, 1], "b": [1, 1]}


# -- out --------------------------------------------------------------------------------------------------------


def test_the_table_has_a_row_a_cell_and_the_json_is_plain():
    result = measured(escaping, problems=16, depths=(1, 2), widths=(1, 4), rounds=1)
    rows = [line for line in result.table().splitlines() if re.match(r"\| \d", line)]
    assert [tuple(map(int, row.split("|")[1:4])) for row in rows] == [(1, 1, 1), (1, 4, 4), (2, 1, 2), (2, 4, 8)]
    for words in ("task echo", "| ms |", "pass@N", "| vote |", "first verified", "| coverage |"):
        assert words in result.table()
    content = json.loads(result.to_json(), parse_constant=pytest.fail)
    assert np.shape(content["figures"]["pass_at_n"]) == (2, 2, 2)
    assert content["verdicts"]["pass_at_n"]["width"]["share"] > 0
    assert content["cost"] == [[1, 4], [2, 8]]


def test_the_page_stands_alone(tmp_path):
    result = measured(escaping, problems=16, depths=(1, 2), widths=(1, 4))
    result.about["task"] = "<echo>"
    path = result.to_html(tmp_path / "pages" / "frontier.html")
    page = path.read_text()
    assert "data:image/png;base64,iVBOR" in page and "&lt;echo&gt;" in page and "<echo>" not in page
    assert not re.search(r"https?:|src=\"(?!data:)|<link|<script", page)
    assert page.count("<tr>") == 5 and result.verdicts["selected"].kind in page
    assert [file.name for file in path.parent.iterdir()] == ["frontier.html"]


@pytest.mark.parametrize(
    ("found", "gap", "said"),
    [
        (0.99, (0.1, 0.05, 0.2), "Selection, not sampling, is the bottleneck: pass@8 lacks 0.010, vote 0.100 "),
        (
            0.67,
            (0.08, 0.04, 0.11),
            "Selection loses something, too: pass@8 lacks 0.330, vote 0.080 [0.040, ",
        ),
        (0.99, (0.04, 0.01, 0.2), ""),
        (0.99, (0.1, -0.01, 0.2), ""),
    ],
)
def test_selection_is_the_bottleneck_where_it_loses_more_than_sampling(found, gap, said):
    sentence = selection(found, *gap, "vote", 8)
    assert sentence.startswith(said) and bool(sentence) == bool(said)


def test_what_is_encoded_once_is_counted_once():
    class Encodes(Uniform):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Linear(2, 50, bias=False)

        def encode(self, x):
            self.embed(x.float())
            return x

    found = frontier(Encodes(), Several(), (1, 2), (1, 4), (0,), problems=4, rounds=0)
    assert found.multiply_adds.tolist() == [[100, 100], [100, 100]]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"seeds": ()}, "seeds must be at least one, and different"),
        ({"seeds": (0, 0)}, r"seeds must be at least one, and different, got \[0, 0\]"),
        ({"problems": 0}, "problems must be an integer of at least 1, got 0"),
        ({"rounds": -1}, "rounds must be at least 0, got -1"),
        ({"level": 95}, "level must be between 0 and 1, got 95"),
        ({"depths": (4,)}, r"depths must name at least two different sizes to tell a gain, got \[4\]"),
        ({"widths": (2, 2)}, r"widths must name at least two different sizes to tell a gain, got \[2\]"),
        ({"depths": (0, 1)}, "depths must be integers from 1, got 0"),
        ({"widths": (1, 2.5)}, "widths must be integers from 1, got 2.5"),
        ({"select": {}}, "select must name at least one rule"),
        ({"by": "luck"}, 'by must be "selected", "pass_at_n" or "coverage", got \'luck\''),
    ],
)
def test_bad_input_is_one_clear_sentence(how, message):
    with pytest.raises(ValueError, match=message):
        measured(escaping, **how)


def test_scores_of_another_shape_are_one_clear_sentence():
    with pytest.raises(ValueError, match=r"scores must be \[2 depths, 3 widths, problems\], got \[3, 2, 5\]"):
        judge(np.zeros((3, 2, 5)), (1, 2), (1, 2, 4))
    with pytest.raises(ValueError, match=r"widths must name at least two sizes to tell a gain, got \[1\]"):
        judge(np.zeros((2, 1, 5)), (1, 2), (1,))


def test_frontier_is_the_function_even_where_its_module_was_imported_first():
    code = "import probgram.inference.frontier\nfrom probgram.inference import frontier\nassert callable(frontier)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
