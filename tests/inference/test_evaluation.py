"""Evaluation: a perfect sampler reaches the limits, the bound stays below what quadrature says."""

import json
import math

import numpy as np
import pytest
import torch
from pyro import distributions as dist

from probgram import Chain, Guide, metrics, tasks
from probgram.inference import evaluate, evidence_bound, sample, vote
from probgram.inference.figures import Report, chosen_problems
from probgram.models import GRAM

TASK = tasks.Queens(7)  # the smallest board with several answers to most problems


class Lookup(Chain):
    """Knows every solution and answers with one of them, uniformly drawn or always the first."""

    homogeneous = True

    def __init__(self, task, one_answer=False):
        super().__init__()
        known = task.known
        self.table = {x.tobytes(): i for i, x in enumerate(known.x)}
        self.answers, self.counts = torch.from_numpy(known.answers), torch.from_numpy(known.counts)
        self.one_answer = one_answer

    def encode(self, x):
        return torch.tensor([self.table[row.tobytes()] for row in x.numpy()])

    def initial(self, context):
        return context

    def propose(self, state, context, t):
        return context

    def prior(self, proposal, t):
        return dist.Normal(torch.zeros(proposal.shape, dtype=torch.float64), 1.0)

    def move(self, proposal, eps):
        uniform = 0.5 * (1 + torch.erf(eps / math.sqrt(2)))
        index = (uniform * self.counts[proposal]).long()
        return self.answers[proposal, torch.zeros_like(index) if self.one_answer else index]

    def readout(self, state):
        return dist.Categorical(logits=100.0 * torch.nn.functional.one_hot(state, TASK.n)).to_event(1)


def test_a_chain_that_draws_uniformly_over_the_solutions_reaches_the_limits():
    seeds = range(24)
    report = evaluate(Lookup(TASK), TASK, split="train", width=5, depth=2, seeds=seeds)
    assert report.mean("valid") == pytest.approx(1.0) and report.mean("pass_at_n") == 1.0
    limits = report.limits["uniform"]
    names = [name for name in report.figures if name.startswith(("coverage", "total"))]
    assert len(names) == 6
    for name in names:
        error = report.spread(name) / math.sqrt(len(seeds))
        assert 0 < error < 0.01
        assert abs(report.mean(name) - limits[name]) < 4 * error, name
    assert abs(report.mean("coverage_macro_several") - report.limits["one answer"]["coverage_macro_several"]) > 0.1


def test_a_chain_that_always_gives_the_same_right_answer_reaches_the_floor():
    report = evaluate(Lookup(TASK, one_answer=True), TASK, width=4, depth=1, seeds=(0, 1))
    for name, value in report.limits["one answer"].items():
        assert report.mean(name) == pytest.approx(value), name
        assert report.spread(name) == pytest.approx(0.0)
    assert report.mean("selected_vote") == report.mean("selected_first_verified") == 1.0


def test_hand_made_uniform_draws_agree_with_the_limits():
    known = TASK.known
    solutions = metrics.Solutions(known.answers, known.counts)
    rng = np.random.default_rng(0)
    width, runs = 20, 30
    found = []
    for _ in range(runs):
        index = rng.integers(known.counts, size=(width, len(known.x)))
        answers = np.stack([known.answers[i, row] for i, row in enumerate(index.T)], 1)
        found.append(metrics.summarize(TASK, known.x, answers, solutions))
    for name, limit in metrics.limits(solutions, width)["uniform"].items():
        values = np.array([figures[name] for figures in found])
        assert abs(values.mean() - limit) <= 4 * values.std(ddof=1) / math.sqrt(runs) + 1e-9, name


def test_conflicts_of_the_most_frequent_colouring_are_summed_over_graphs():
    """The measure that is published for graph colouring."""
    task = tasks.Colouring(5, train=100, test=20)
    torch.manual_seed(0)
    chain = GRAM.for_task(task, dim=8, heads=2, hidden=8, blocks=1)
    report = evaluate(chain, task, width=3, depth=1, seeds=(0,), problems=8)
    run = sample(chain, chosen_problems(task, problems=8), width=3, depth=1, seed=0, keep="last")
    conflicts = task.conflicts(run.x, vote(run).answers)
    assert conflicts.shape == (8,) and report.figures["conflicts_vote"] == [conflicts.sum().item()] != [0.0]
    assert "conflicts_vote" not in evaluate(Lookup(TASK), TASK, width=2, depth=1, seeds=(0,)).figures


def test_a_report_says_what_it_is_about():
    report = evaluate(Lookup(TASK), TASK, split="test", width=3, depth=1, seeds=(4, 5), problems=7)
    about = report.about
    assert (about["task"], about["split"], about["problems"]) == ("queens7", "orbit test", 7)
    assert (about["width"], about["depth"], about["seeds"]) == (3, 1, [4, 5])
    assert 0 <= about["several answers"] <= 7 and about["seconds a seed"] >= 0
    assert all(len(values) == 2 for values in report.figures.values())
    table = report.table()
    assert "| coverage macro all | " in table and "task queens7" in table
    assert json.loads(report.to_json())["figures"] == report.figures


def test_evaluation_in_small_batches_changes_nothing(monkeypatch):
    whole = evaluate(Lookup(TASK, one_answer=True), TASK, width=2, depth=1, seeds=(0,))
    monkeypatch.setattr("probgram.inference.figures.BATCH", 10)
    parts = evaluate(Lookup(TASK, one_answer=True), TASK, width=2, depth=1, seeds=(0,))
    for name, values in whole.figures.items():
        assert parts.figures[name] == pytest.approx(values), name


def test_spread_is_the_standard_deviation_over_seeds():
    report = Report({"a": [1.0, 2.0, 4.0], "b": [3.0]})
    assert report.mean("a") == pytest.approx(7 / 3) and report.spread("a") == pytest.approx(
        np.std([1, 2, 4], ddof=1)
    )
    assert report.spread("b") == 0.0


def test_no_seeds_and_unknown_splits_are_one_clear_sentence():
    with pytest.raises(ValueError, match="seeds must name at least one seed"):
        evaluate(Lookup(TASK), TASK, seeds=())
    with pytest.raises(ValueError, match='split must be "train" or "test", got \'dev\''):
        evaluate(Lookup(TASK), TASK, split="dev")


# -- the bound ------------------------------------------------------------------------------------------------


class Coin(Chain):
    """One scalar of noise: y = 1 with probability σ(2 ε + x)."""

    def initial(self, context):
        return torch.zeros(context.shape, dtype=torch.float64)

    def encode(self, x):
        return x.double()

    def propose(self, state, context, t):
        return context.expand(state.shape)

    def prior(self, proposal, t):
        return dist.Normal(torch.zeros_like(proposal), 1.0).to_event(1)

    def move(self, proposal, eps):
        return proposal + 2 * eps

    def readout(self, state):
        return dist.Categorical(logits=torch.stack([torch.zeros_like(state), state], -1)).to_event(1)


class CoinGuide(Guide):
    """A guide that is near the posterior, not at it."""

    def encode(self, y):
        return y.double()

    def posterior(self, proposal, evidence, t):
        return dist.Normal((1.2 * evidence - 0.1).expand(proposal.shape), 1.3).to_event(1)


X, Y = torch.tensor([[0], [1], [-2]]), torch.tensor([[1], [0], [1]])


def quadrature() -> tuple[torch.Tensor, torch.Tensor]:
    """Log p(y | x) and the ELBO of the guide, on a fine grid."""
    grid = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    width = grid[1] - grid[0]
    sign = 2 * Y.double() - 1
    log_joint = torch.distributions.Normal(0.0, 1.0).log_prob(grid) + torch.nn.functional.logsigmoid(
        sign * (2 * grid + X.double())
    )
    q = torch.distributions.Normal(1.2 * Y.double() - 0.1, 1.3).log_prob(grid)
    return (log_joint.logsumexp(1) + width.log()), (q.exp() * (log_joint - q)).sum(1) * width


def test_one_particle_gives_the_elbo_and_many_the_likelihood():
    log_p, elbo = quadrature()
    estimates = torch.stack([evidence_bound(Coin(), CoinGuide(), X, Y, depth=1, seed=s) for s in range(1500)])
    error = estimates.std(0) / math.sqrt(len(estimates))
    assert estimates.shape == (1500, 3)
    assert ((estimates.mean(0) - elbo).abs() < 4 * error).all()
    assert (elbo < log_p - 0.1).all()
    many = evidence_bound(Coin(), CoinGuide(), X, Y, depth=1, particles=200_000)
    assert torch.allclose(many, log_p, atol=0.01)


def test_more_particles_tighten_the_bound_and_never_pass_the_likelihood():
    log_p, elbo = quadrature()
    few = torch.stack(
        [evidence_bound(Coin(), CoinGuide(), X, Y, depth=1, particles=10, seed=s) for s in range(600)]
    )
    error = few.std(0) / math.sqrt(len(few))
    assert (few.mean(0) > elbo + 4 * error).all() and (few.mean(0) < log_p + 4 * error).all()


def test_the_bound_leaves_the_global_generator_alone_and_follows_its_seed():
    before = torch.get_rng_state()
    first, again, other = (evidence_bound(Coin(), CoinGuide(), X, Y, depth=3, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_answers_of_another_number_are_one_clear_sentence():
    with pytest.raises(ValueError, match="x and y must have the same number of rows, got 3 and 2"):
        evidence_bound(Coin(), CoinGuide(), X, Y[:2], depth=1)


def test_a_task_that_cannot_enumerate_has_no_coverage():
    x = np.repeat(np.array([[0, 1], [1, 0], [1, 1]]), 4, axis=0)
    task = tasks.Pairs(x, 1 - x, verify=lambda x, y: (x != y).all(-1))
    chain = GRAM.for_task(task, dim=16, heads=2, hidden=16, refinements=1, transitions=1)
    report = evaluate(chain, task, width=3, depth=1, seeds=(0,))
    assert {"valid", "pass_at_n", "selected_vote"} <= set(report.figures)
    assert not any(name.startswith(("coverage", "total")) for name in report.figures)
    assert "valid" in report.table()
