"""Rejuvenation leaves the filter's target invariant, against a Gaussian chain whose answer is in closed form.

Averages over independent problems are compared within four standard errors: 6e-5 false alarms a comparison.
"""

import math
from typing import Any

import pytest
import torch
from pyro import distributions as dist
from torch import Tensor

from probgram import Chain
from probgram.inference import smc
from probgram.inference.potentials import View
from probgram.inference.rejuvenation import pcn
from probgram.models import GRAM, HiddenMarkov

CENTRE, DEPTH, DRIFT = 1.5, 3, 0.8


class Walk(Chain):
    """h_t = 0.8 h_{t-1} + eps, eps ~ N(0.1, 1), from 0."""

    homogeneous = True

    def encode(self, x: Tensor) -> Tensor:
        return x.double()

    def initial(self, context: Tensor) -> Tensor:
        return torch.zeros_like(context)

    def propose(self, state: Tensor, context: Tensor, t: int) -> Tensor:
        return DRIFT * state

    def prior(self, proposal: Tensor, t: int) -> dist.TorchDistribution:
        return dist.Normal(torch.full_like(proposal, 0.1), 1.0).to_event(1)

    def readout(self, state: Tensor) -> dist.TorchDistribution:
        return dist.Delta(state, event_dim=1)


def near_centre(view: View) -> Tensor:
    """log psi = -(h - 1.5)² / 2: the target tilts the last state only."""
    return -0.5 * (view.state[..., 0] - CENTRE) ** 2


def closed_form() -> tuple[float, float]:
    """Z = E[psi(h_S)], and the mean of h_S under the tilted law."""
    mean = variance = 0.0
    for _ in range(DEPTH):
        mean, variance = DRIFT * mean + 0.1, DRIFT**2 * variance + 1
    z = math.exp(-0.5 * (mean - CENTRE) ** 2 / (1 + variance)) / math.sqrt(1 + variance)
    return z, (mean + variance * CENTRE) / (1 + variance)


def mean_and_error(values: Tensor) -> tuple[float, float]:
    return values.mean().item(), values.std().item() / len(values) ** 0.5


@pytest.mark.parametrize("rho", [0.0, 0.7])
def test_z_and_the_tilted_mean_stay_unbiased(rho: float) -> None:
    """Two two-sided comparisons each."""
    run = smc.run(
        Walk(), torch.zeros(4_000, 1), width=6, depth=DEPTH, potential=near_centre, ess_threshold=1.0,
        rejuvenate=pcn(rho, moves=3), keep="latents", seed=2,
    )  # fmt: skip
    assert run.log_normalizer is not None
    z, tilted = closed_form()
    estimates = run.log_normalizer[-1].exp()
    mean, error = mean_and_error(estimates)
    assert abs(mean - z) < 4 * error
    means = (run.weights[-1] * run.states[-1][..., 0]).sum(0)
    mean, error = mean_and_error(estimates * means)
    assert abs(mean - z * tilted) < 4 * error


def test_copies_become_different() -> None:
    """What a potential sees as the state before a step: with pCN hardly any two of a problem are the same."""

    def distinct(**choices: Any) -> float:
        seen: list[Tensor] = []

        def look(state: smc.SMCState, info: smc.SMCInfo) -> None:
            seen.append(info.view.previous[..., 0])

        smc.run(
            Walk(), torch.zeros(50, 1), width=20, depth=2, potential=near_centre, ess_threshold=1.0,
            callback=look, **choices,
        )  # fmt: skip
        return sum(len(column.unique()) for column in seen[1].T) / 1_000

    assert distinct() < 0.8
    assert distinct(rejuvenate=pcn(0.5, moves=4)) > 0.9


def test_the_answers_and_heads_of_moved_states_are_their_own() -> None:
    """A potential of the heads: log psi after the moves is that of the moved states."""
    chain = GRAM.from_pretrained("queens8")
    x = torch.full((3, 8), 8)
    x[:, 0] = torch.tensor([0, 1, 2])

    def halting(view: View) -> Tensor:
        return 4 * torch.nn.functional.logsigmoid(view.heads["halt"])

    states: list[smc.SMCState] = []
    algorithm = smc.build(
        chain, x, width=8, depth=3, potential=halting, ess_threshold=1.0, rejuvenate=pcn(0.2, moves=2)
    )
    state = smc.init(algorithm)
    with torch.no_grad():
        for _ in range(2):
            state, _ = smc.step(algorithm, state)
            states.append(state)
        moved, ancestors, _ = smc._resample(algorithm, state)
        assert ancestors is not None
        view = View(chain, moved.latent, None, None, 2, 3, torch.arange(3))
        assert torch.allclose(moved.log_psi, halting(view), atol=1e-5)
        again = chain.move(moved.last.proposal, moved.last.noise)
        assert torch.allclose(again.h, moved.latent.h, atol=1e-6)
        copied = state.latent.h[ancestors, torch.arange(3)]
        assert not torch.equal(copied, moved.latent.h)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"rho": 1.0}, "rho must be at least 0 and below 1, got 1.0"),
        ({"moves": 0}, "moves must be an integer of at least 1, got 0"),
    ],
)
def test_bad_moves_are_named(choices: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pcn(**choices)


def test_what_cannot_be_moved_says_so() -> None:
    table = torch.full((2, 2), 0.5)
    markov = HiddenMarkov(table[0], table, table)
    with pytest.raises(ValueError, match="rejuvenate needs a step that observes nothing"):
        smc.run(markov, torch.zeros(1, 3, dtype=torch.long), width=4, depth=3, rejuvenate=pcn())
    plain = smc.PlainModel(lambda noise: noise, lambda state, t, noise: (noise, noise))
    with pytest.raises(ValueError, match="needs a Chain"):
        smc.run(plain, width=4, depth=3, rejuvenate=pcn())
