"""KL of a guided run, against closed forms and the objective's own."""

import pyro
import pytest
import torch
from pyro import distributions as dist

from probgram import Chain, Guide
from probgram.inference import Objective
from probgram.inference.diagnostics import guidance
from probgram.inference.handlers import guided, keyed, start
from probgram.inference.objective import ObjectiveConfig, Rollout
from probgram.models import GRAM, GRAMGuide, LinearGaussian, LinearGaussianSmoother


class Still(Chain):
    """h <- eps, eps ~ N(0, 1) at every position and feature: nothing depends on what was drawn."""

    homogeneous, transitions = True, 2

    def initial(self, context):
        return torch.zeros(len(context), 3, 2)

    def propose(self, state, context, t):
        return torch.zeros_like(state)

    def prior(self, proposal, t):
        return dist.Normal(proposal, 1.0).to_event(2)

    def readout(self, state):
        return dist.Delta(state[..., 0], event_dim=1)


class Shifted(Guide):
    """q = N(y_l, 2²) at position l."""

    def posterior(self, proposal, evidence, t):
        return dist.Normal(proposal + evidence[..., None], 2.0).to_event(2)


def test_kl_of_gaussians_is_the_closed_form_at_every_position():
    y = torch.tensor([[0.0, 1.0, -2.0], [3.0, 0.0, 0.0]])
    kl = guidance(Still(), Shifted(), torch.zeros(2, 1), y, width=5, depth=4)
    # Two transitions of two features each: log(1 / 2) + (4 + y²) / 2 - 1 / 2 of one.
    expected = 4 * (0.5 * (4 + y**2) - 0.5 - torch.tensor(2.0).log())
    assert kl.shape == (4, 5, 2, 3)
    torch.testing.assert_close(kl, expected.expand(4, 5, 2, 3))


def tiny() -> tuple[GRAM, GRAMGuide]:
    torch.manual_seed(0)
    chain = GRAM(GRAM.Config(4, 5, 4, dim=16, heads=2, blocks=1, hidden=16, transitions=1))
    guide = GRAMGuide(chain)
    for layer in (guide.mu, guide.sigma, chain.mu, chain.sigma):
        torch.nn.init.normal_(layer.weight, std=0.3)
    return chain, guide


def test_kl_is_the_objectives_own():
    """After the first transition, whose proposal nothing random went into, both have the same."""
    chain, guide = tiny()
    x = torch.tensor([[0, 1, 2, 3], [4, 4, 1, 0]])
    y = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]])
    target = torch.zeros(1, 2, dtype=torch.long)
    rollout = Rollout(x, y[:, None], torch.ones(2, dtype=torch.long), target, torch.zeros(2, dtype=torch.long))
    objective = Objective(chain, guide, ObjectiveConfig(carry=0.0, particles=1))
    theirs = objective(rollout).metrics["kl"]
    ours = guidance(chain, guide, x, y, width=3, depth=2)
    assert theirs.item() == pytest.approx(ours[0].sum(-1).mean().item(), rel=1e-5)
    assert ours[0, 0].sum() > 1 and torch.equal(ours[0, 0], ours[0, 1])
    assert not torch.equal(ours[1, 0], ours[1, 1])


def test_summed_over_positions_it_is_what_the_handler_collects():
    chain, guide = tiny()
    x, y = torch.tensor([[0, 1, 2, -1]]), torch.tensor([[0, 1, 2, -1]])  # the last is padding
    kl = guidance(chain, guide, x, y, width=2, depth=3, seed=4)
    assert kl[..., 3].abs().max() == 0
    context, collected = chain.encode(x), []
    with (
        guided(guide, guide.encode(y)) as q,
        pyro.plate("n", 2, dim=-2),
        pyro.plate("b", 1, dim=-1),
        torch.no_grad(),
    ):
        state = start(chain, (2, 1), context)
        for t in range(3):
            q.sites.clear()
            with keyed(4, t, x.device):
                state = chain.step(state, t, context)
            collected.append(q.kl)
    torch.testing.assert_close(kl.sum(-1), torch.stack(collected))


def test_events_without_independent_positions_have_one():
    """The exact smoother of a linear-Gaussian chain, against the closed form of two Gaussians at the first step."""
    chain = LinearGaussian(0.5 * torch.eye(2), torch.eye(2), torch.eye(2), torch.eye(2))
    series = torch.tensor([[[1.0, -1.0], [0.5, 0.0], [0.0, 2.0]]])
    guide = LinearGaussianSmoother(chain)
    kl = guidance(chain, guide, series, series, width=2, depth=3)
    assert kl.shape == (3, 2, 1, 1)
    zero = torch.zeros(1, 2)
    q, p = guide.posterior(zero, guide.encode(series), 0), chain.prior(zero, 0)
    assert kl[0, 0, 0, 0].item() == pytest.approx(torch.distributions.kl_divergence(q, p).item(), rel=1e-5)


def test_bad_input_is_named_and_the_global_generator_left_alone():
    chain, guide = tiny()
    x = torch.tensor([[0, 1, 2, 3]])
    with pytest.raises(ValueError, match="x and y must have the same number of rows, got 1 and 2"):
        guidance(chain, guide, x, x.expand(2, -1))
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        guidance(chain, guide, x, x, depth=0)
    state = torch.random.get_rng_state()
    first = guidance(chain, guide, x, x % 4, seed=1)
    assert torch.equal(first, guidance(chain, guide, x, x % 4, seed=1))
    assert torch.equal(state, torch.random.get_rng_state())
