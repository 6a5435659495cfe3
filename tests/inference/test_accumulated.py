"""Accumulated potentials beside the enumeration of `test_potentials`: what a trajectory carries, halting, moves."""

import math

import pytest
import torch
from pyro import distributions as dist
from torch import Tensor

from probgram import Chain
from probgram.inference import smc
from probgram.inference.potentials import Potential, View, accumulated, halt, likelihood, look_ahead, value
from probgram.inference.rejuvenation import pcn

ROWS = torch.tensor([[0.7, 0.3, 0.0], [0.1, 0.6, 0.3], [0.3, 0.3, 0.4]], dtype=torch.float64)
HALT = torch.tensor([1.0, -1.0, 0.3], dtype=torch.float64)
X = torch.zeros(3, 1, dtype=torch.long)


class Small(Chain):
    """Three states, from the first; a halt head that looks at the state."""

    def initial(self, context: Tensor) -> Tensor:
        return torch.zeros(len(context), dtype=torch.long)

    def propose(self, state: Tensor, context: Tensor, t: int) -> Tensor:
        return ROWS[state].log()

    def prior(self, proposal: Tensor, t: int) -> dist.TorchDistribution:
        return dist.Categorical(logits=proposal)

    def move(self, proposal: Tensor, eps: Tensor) -> Tensor:
        return eps

    def readout(self, state: Tensor) -> dist.TorchDistribution:
        return dist.Delta(state[..., None], event_dim=1)

    def heads(self, state: Tensor) -> dict[str, Tensor]:
        return {"halt": HALT[state]}


def said(states: Tensor) -> Tensor:
    """Σ_s log sigmoid(halt_s) over the first dimension."""
    return torch.nn.functional.logsigmoid(HALT[states]).sum(0)


def test_a_trajectory_carries_what_its_own_ancestors_were_given():
    run = smc.run(Small(), X, width=30, depth=5, potential=accumulated(halt), ess_threshold=1.0, keep="latents")
    assert run.ancestors is not None
    traced = run.states.gather(1, run.lines().long())
    torch.testing.assert_close(run.log_potential, said(traced), rtol=0, atol=1e-5, check_dtype=False)


def test_untilting_divides_all_of_it_out():
    run = smc.run(Small(), X, width=50, depth=4, potential=accumulated(halt**0.2), resample=None, keep="latents")
    torch.testing.assert_close(run.untilted.weights[-1], torch.full((50, 3), 1 / 50).double())


def test_the_normaliser_is_the_mean_product_where_nothing_is_resampled():
    run = smc.run(Small(), X, width=50, depth=4, potential=accumulated(halt), resample=None, keep="latents")
    for t in range(1, 5):
        expected = said(run.states[:t]).exp().mean(0).log()
        torch.testing.assert_close(run.log_normalizer[t - 1], expected, rtol=0, atol=1e-5, check_dtype=False)
    with pytest.raises(ValueError, match="log_evidence exists only where every factor is a likelihood"):
        run.log_evidence  # noqa: B018


def test_a_halted_trajectory_goes_on_being_asked_and_an_ended_problem_is_not():
    choices = {"width": 20, "potential": accumulated(halt), "resample": None, "keep": "latents"}
    halted = smc.run(Small(), X, depth=4, halt_probability=0.6, **choices)
    torch.testing.assert_close(halted.log_potential, said(halted.states), rtol=0, atol=1e-5, check_dtype=False)
    assert halted.halted.any() and not halted.halted.all()
    ended = smc.run(Small(), X, depth=torch.tensor([1, 3, 4]), **choices)
    whole = smc.run(Small(), X, depth=4, **choices)
    for b, depth in enumerate((1, 3, 4)):
        torch.testing.assert_close(
            ended.log_potential[:, b], said(whole.states[:depth])[:, b], rtol=0, atol=1e-5, check_dtype=False
        )
        assert ended.log_normalizer[-1, b] == whole.log_normalizer[depth - 1, b]


def test_a_run_goes_on_with_what_it_had_accumulated():
    choices = {"width": 20, "potential": accumulated(halt), "keep": "latents", "seed": 4, "ess_threshold": 0.9}
    whole = smc.run(Small(), X, depth=5, **choices)
    further = smc.run(Small(), X, depth=2, start=smc.run(Small(), X, depth=3, **choices), **choices)
    torch.testing.assert_close(further.log_potential, whole.log_potential)
    torch.testing.assert_close(further.log_normalizer[-1], whole.log_normalizer[-1])


class Walk(Small):
    """h_t = 0.8 h_{t-1} + eps, eps ~ N(0.1, 1), from 0."""

    homogeneous = True

    def initial(self, context: Tensor) -> Tensor:
        return torch.zeros(context.shape, dtype=torch.float64)

    def propose(self, state: Tensor, context: Tensor, t: int) -> Tensor:
        return 0.8 * state

    def prior(self, proposal: Tensor, t: int) -> dist.TorchDistribution:
        return dist.Normal(torch.full_like(proposal, 0.1), 1.0).to_event(1)

    def move(self, proposal: Tensor, eps: Tensor) -> Tensor:
        return proposal + eps

    def readout(self, state: Tensor) -> dist.TorchDistribution:
        return dist.Delta(state, event_dim=1)

    def heads(self, state: Tensor) -> dict[str, Tensor]:
        return {}


def near(view: View) -> Tensor:
    """log g = -(h - 1.5)² / 2."""
    return -0.5 * (view.state[..., 0] - 1.5) ** 2


def test_rejuvenation_leaves_the_accumulated_target_invariant():
    """Z, and Z times the tilted mean of the last state, against Kalman's recursion.

    Within four standard errors, two comparisons: 1e-4 false alarms.
    """
    mean = variance = 0.0
    z = 1.0
    for _ in range(3):
        mean, variance = 0.8 * mean + 0.1, 0.64 * variance + 1
        z *= math.exp(-0.5 * (mean - 1.5) ** 2 / (1 + variance)) / math.sqrt(1 + variance)
        mean, variance = (mean + variance * 1.5) / (1 + variance), variance / (1 + variance)
    run = smc.run(
        Walk(), torch.zeros(4_000, 1), width=6, depth=3, potential=accumulated(near), ess_threshold=1.0,
        rejuvenate=pcn(0.3, moves=2), keep="latents", seed=2,
    )  # fmt: skip
    estimates = run.log_normalizer[-1].exp()
    for estimate, exact in (
        (estimates, z),
        (estimates * (run.weights[-1] * run.states[-1][..., 0]).sum(0), z * mean),
    ):
        error = float(estimate.std()) / 4_000**0.5
        assert abs(float(estimate.mean()) - exact) < 4 * error and error < 0.05 * z


def test_it_multiplies_only_its_own_kind():
    def plain(view: View) -> Tensor:
        return view.state

    for mixed in (lambda: accumulated(halt) * value, lambda: plain * accumulated(halt)):
        with pytest.raises(ValueError, match="an accumulated potential multiplies accumulated ones only"):
            mixed()
    both: Potential = accumulated(halt) * accumulated(plain)
    assert both.accumulates and (both**2).accumulates and accumulated(halt * plain).accumulates
    assert not (halt * value).accumulates and not (halt**2).accumulates


def test_only_a_likelihood_at_every_step_makes_it_evidence():
    observed = likelihood([1])
    assert accumulated(likelihood([1], anneal=False)).evidence == "every"
    assert accumulated(observed).evidence is None and accumulated(halt).evidence is None
    ahead = accumulated(look_ahead(near))
    assert ahead.evidence is None and not ahead.look_ahead and not ahead.neutral
