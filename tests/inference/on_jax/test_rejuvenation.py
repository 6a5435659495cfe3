"""Rejuvenation in JAX leaves the filter's target invariant, and moves what the torch side moves.

Averages over independent problems are compared within four standard errors: 6e-5 false alarms a comparison.
"""

import math
from functools import partial
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numpyro", reason="needs probgram[jax]")

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import torch
from jax import Array

from probgram import models
from probgram.inference import rejuvenation as torch_rejuvenation
from probgram.inference import smc as torch_smc
from probgram.inference.kernels import LastMove as TorchLastMove
from probgram.inference.on_jax import smc
from probgram.inference.on_jax.islands import ring
from probgram.inference.on_jax.kernels import LastMove
from probgram.inference.on_jax.potentials import Potential, View, accumulated
from probgram.inference.on_jax.rejuvenation import Rejuvenation, gaussian_prior, pcn
from probgram.models.on_jax import GRAM, Chain, HiddenMarkov

CENTRE, DEPTH, DRIFT, PROBLEMS = 1.5, 3, 0.8, 4_000


class Walk(Chain):
    """h_t = 0.8 h_{t-1} + eps, eps ~ N(0.1, 1), from 0."""

    def initial(self, context: Array) -> Array:
        return jnp.zeros_like(context)

    def propose(self, state: Array, context: Array, t: Any) -> Array:
        return DRIFT * state

    def prior(self, proposal: Array, t: Any) -> dist.Distribution:
        return dist.Normal(jnp.full_like(proposal, 0.1), 1.0).to_event(1)

    def readout(self, state: Array) -> dist.Distribution:
        return dist.Delta(state, event_dim=1)


def near_centre(view: View) -> Array:
    """log psi = -(h - 1.5)² / 2: the target tilts the last state only."""
    return -0.5 * (view.state[..., 0] - CENTRE) ** 2


def closed_form(every: bool) -> tuple[float, float]:
    """Z, and the mean of h_S under the law tilted at the last depth step or at every one."""
    mean = variance = 0.0
    z = 1.0
    for t in range(1, DEPTH + 1):
        mean, variance = DRIFT * mean + 0.1, DRIFT**2 * variance + 1
        if every or t == DEPTH:
            z *= math.exp(-0.5 * (mean - CENTRE) ** 2 / (1 + variance)) / math.sqrt(1 + variance)
            mean, variance = (mean + variance * CENTRE) / (1 + variance), variance / (1 + variance)
    return z, mean


EVERY = accumulated(near_centre)


def run(problems: int = PROBLEMS, width: int = 6, **choices: Any) -> Any:
    choices = {
        "depth": DEPTH,
        "potential": near_centre,
        "ess_threshold": 1.0,
        "key": 2,
        "keep": "latents",
    } | choices
    return smc.run(Walk(), np.zeros((problems, 1), np.float32), width=width, **choices)


CHOICES: dict[str, dict[str, Any]] = {
    "anew": {"rejuvenate": pcn(0.0, moves=3)},
    "near": {"rejuvenate": pcn(0.7, moves=3)},
    "accumulated": {"rejuvenate": pcn(0.3, moves=2), "potential": EVERY},
    "exchanged": {
        "rejuvenate": pcn(0.5, moves=2), "islands": 2, "exchange": ring(every=1, share=0.5), "problems": 2_000
    },
}  # fmt: skip


@pytest.mark.parametrize(
    "choices",
    [pytest.param(c, id=name, marks=[] if name == "near" else pytest.mark.slow) for name, c in CHOICES.items()],
)
def test_z_and_the_tilted_mean_stay_unbiased(choices: dict[str, Any]) -> None:
    """Two two-sided comparisons each."""
    problems = choices.get("problems", PROBLEMS)
    found = run(**choices)
    z, tilted = closed_form(choices.get("potential") is EVERY)
    estimates = np.exp(found.log_normalizer[-1].astype(np.float64))
    means = (found.weights[-1] * np.asarray(found.states)[-1, ..., 0]).sum(0)
    for values, exact in ((estimates, z), (estimates * means, z * tilted)):
        error = values.std() / problems**0.5
        assert abs(values.mean() - exact) < 4 * error and error < 0.05 * z


def test_copies_become_different_and_the_first_step_of_a_continuation_moves_nothing() -> None:
    def distinct(**choices: Any) -> float:
        """Of 20 trajectories a problem, as the second step saw them."""
        seen: list[Array] = []
        run(50, 20, callback=lambda state, info: seen.append(info.view.previous[..., 0]), **choices)
        return sum(len(np.unique(column)) for column in np.asarray(seen[1]).T) / 1_000

    assert distinct(depth=2) < 0.8
    assert distinct(depth=2, rejuvenate=pcn(0.5, moves=4)) > 0.9
    half = run(50, 20, depth=1)
    seen: list[Array] = []
    run(50, 20, depth=1, rejuvenate=pcn(0.5), start=half, callback=lambda _, info: seen.append(info.view.previous))
    copied = np.take_along_axis(np.asarray(half.state)[..., 0], run(50, 20, depth=1, start=half).ancestors[0], 0)
    np.testing.assert_array_equal(np.asarray(seen[0])[..., 0], copied)


class Halting(Potential):
    """A potential of a head."""

    def __call__(self, view: View) -> Array:
        return 4 * jax.nn.log_sigmoid(view.heads["halt"])


def board() -> np.ndarray:
    x = np.full((3, 8), 8)
    x[:, 0] = [0, 1, 2]
    return x


@pytest.mark.slow
def test_the_answers_and_heads_of_moved_states_are_their_own() -> None:
    """A potential of the heads: log psi after the moves is that of the moved states."""
    chain = GRAM.from_pretrained("queens8")
    algorithm = smc.build(
        chain, board(), width=8, depth=3, potential=Halting(), ess_threshold=1.0, rejuvenate=pcn(0.2, moves=2)
    )
    state, step = smc.init(algorithm), eqx.filter_jit(smc.step)
    for _ in range(2):
        state, _ = step(algorithm, state)
    moved, ancestors, _ = eqx.filter_jit(smc._resample)(algorithm, state, jax.random.key(1))
    log_psi = Halting()(algorithm.view(moved.latent, None, 2, state.key))
    np.testing.assert_allclose(moved.log_psi, log_psi, atol=1e-4)
    again = chain.move(moved.last.proposal, moved.last.noise)
    np.testing.assert_allclose(again.h, moved.latent.h, atol=1e-5)
    copied = state.latent.h[ancestors, jnp.arange(3)]
    assert not np.array_equal(copied, moved.latent.h)


@pytest.mark.slow
def test_the_torch_side_moves_the_same_noise_to_the_same_states() -> None:
    """Of one transition: its prior, the state that other noise leads to, and that state's potential."""
    there, here, x = models.GRAM.from_pretrained("queens8"), GRAM.from_pretrained("queens8"), board()
    ours = smc.build(here, x, width=4, depth=3, potential=Halting(), rejuvenate=pcn())
    state, _ = eqx.filter_jit(smc.step)(ours, smc.init(ours))
    noise = np.random.default_rng(0).normal(size=state.last.noise.shape).astype(np.float32)
    last = LastMove(state.last.proposal, state.last.noise, state.last.taken)
    seen = Rejuvenation(ours, state, jnp.ones(3, bool), jnp.zeros((4, 3), jnp.int32), last, jax.random.key(0))

    def halting(view: Any) -> torch.Tensor:
        return 4 * torch.nn.functional.logsigmoid(view.heads["halt"])

    theirs = torch_smc.build(
        there, torch.as_tensor(x), width=4, depth=3, potential=halting, rejuvenate=torch_rejuvenation.pcn()
    )
    with torch.no_grad():
        other, _ = torch_smc.step(theirs, torch_smc.init(theirs))
        as_tensor = partial(jax.tree.map, lambda leaf: torch.tensor(np.asarray(leaf)))
        proposal = other.last.proposal._replace(**as_tensor(last.proposal)._asdict())
        other = other._replace(log_psi=as_tensor(state.log_psi))
        twin = torch_rejuvenation.Rejuvenation(
            theirs, other, torch.ones(3, dtype=torch.bool), torch.zeros(4, 3).long(),
            TorchLastMove(proposal, as_tensor(last.noise)), torch.Generator(),
        )  # fmt: skip
        for a, b in zip(gaussian_prior(seen), torch_rejuvenation.gaussian_prior(twin), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
        moved, expected = seen.move(jnp.asarray(noise)), twin.move(torch.tensor(noise))
        np.testing.assert_allclose(moved.h, expected.h, atol=1e-5)
        np.testing.assert_allclose(seen.log_psi(moved), twin.log_psi(expected), atol=1e-4)


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
    table = np.full((2, 2), 0.5)
    markov = HiddenMarkov(table[0], table, table)
    with pytest.raises(ValueError, match="rejuvenate needs a step that observes nothing"):
        smc.run(markov, np.zeros((1, 3), int), width=4, depth=3, rejuvenate=pcn())
    plain = smc.PlainModel(lambda noise: noise, lambda state, t, noise: (noise, noise))
    with pytest.raises(ValueError, match="needs a Chain"):
        smc.run(plain, width=4, depth=3, rejuvenate=pcn())
    with pytest.raises(ValueError, match="rejuvenate must be a move such as pcn"):
        run(rejuvenate=pcn)
    with pytest.raises(ValueError, match="rejuvenate cannot weigh a sampled answer anew"):
        run(rejuvenate=pcn(), decode="sample")
