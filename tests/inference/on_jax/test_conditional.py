"""Conditional SMC in JAX leaves the smoothing law alone: tested against all paths of a small model.

References of many replicate problems are drawn from the exact law of the 16 paths; the frequencies after a sweep
are compared with the same law: chi-square with 15 degrees of freedom, whose bound a correct sweep exceeds with
probability 1e-4.
"""

import itertools

import numpy as np
import pytest
import scipy.stats

pytest.importorskip("numpyro", reason="needs probgram[jax]")

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import torch

from probgram.inference import conditional as twins
from probgram.inference.on_jax import conditional as schemes
from probgram.inference.on_jax import resampling
from probgram.inference.on_jax.conditional import conditional, particle_gibbs
from probgram.inference.on_jax.resampling import adaptive
from probgram.inference.on_jax.smc import PlainModel
from probgram.models.on_jax import HiddenMarkov

SCHEMES = [schemes.multinomial, schemes.killing, schemes.systematic]
REPLICATES, TIME = 30_000, 4
BOUND = scipy.stats.chi2(15).isf(1e-4)  # 44.3

FIRST, ROWS = np.array([0.6, 0.4]), np.array([[0.7, 0.3], [0.2, 0.8]])
EMISSION, SYMBOLS = np.array([[0.8, 0.2], [0.25, 0.75]]), np.array([0, 1, 1, 0])
PATHS = np.array(list(itertools.product(range(2), repeat=TIME)))  # [16, 4]


def names(scheme) -> str:
    return scheme.__name__


def exact(last=(1.0, 1.0)) -> np.ndarray:
    """Probability of each path given the symbols, `[16]`, with a factor for the last state."""
    p = FIRST[PATHS[:, 0]] * EMISSION[PATHS[:, 0], SYMBOLS[0]]
    for t in range(1, TIME):
        p = p * ROWS[PATHS[:, t - 1], PATHS[:, t]] * EMISSION[PATHS[:, t], SYMBOLS[t]]
    p = p * np.array(last)[PATHS[:, -1]]
    return p / p.sum()


def chi_square(states, law: np.ndarray) -> float:
    """Of paths `[4, replicates]`."""
    number = (np.asarray(states).T * [8, 4, 2, 1]).sum(1)
    expected = len(number) * law
    return float((np.square(np.bincount(number, minlength=16) - expected) / expected).sum())


def sweep(scheme, law: np.ndarray | None = None, replicates: int = REPLICATES, **choices):
    """One conditional sweep with 4 particles, from draws of the law."""
    chain = HiddenMarkov(FIRST, ROWS, EMISSION)
    law = exact() if law is None else law
    drawn = PATHS[np.random.default_rng(1).choice(16, size=replicates, p=law)]
    noise = {}, {"eps_0": jnp.asarray(drawn.T)}
    x = np.repeat(SYMBOLS[None], replicates, 0)
    return conditional(chain, x, reference=noise, **({"resample": scheme, "width": 4, "depth": TIME} | choices))


@pytest.mark.parametrize(
    ("scheme", "ess_threshold", "ancestor_sampling"),
    [
        (schemes.multinomial, 0.6, False),
        pytest.param(schemes.killing, 1.0, False, marks=pytest.mark.slow),
        (schemes.systematic, 1.0, True),
        pytest.param(schemes.systematic, 0.6, False, marks=pytest.mark.slow),
        pytest.param(schemes.killing, 0.6, True, marks=pytest.mark.slow),
        pytest.param(schemes.multinomial, 1.0, True, marks=pytest.mark.slow),
    ],
)
def test_a_sweep_leaves_the_smoothing_law_invariant(scheme, ess_threshold, ancestor_sampling):
    result = sweep(scheme, ess_threshold=ess_threshold, ancestor_sampling=ancestor_sampling)
    assert chi_square(result.path.states, exact()) < BOUND
    assert (np.asarray(result.renewed).mean(1) > 0.2).all()  # it is not the reference that came back


@schemes._scheme(lambda n: 1)
def overwritten(log_weights, uniforms):
    """Put the reference back into slot 0 of an unconditional draw."""
    return resampling.systematic(log_weights, uniforms).at[0].set(0)


@pytest.mark.slow
def test_overwriting_a_slot_of_an_unconditional_draw_does_not():
    """The test above can fail."""
    assert (
        chi_square(sweep(overwritten, replicates=2 * REPLICATES, ess_threshold=1.0).path.states, exact())
        > 2 * BOUND
    )


def test_a_potential_tilts_the_law_that_is_left_invariant():
    law, log_psi = exact(last=(1.0, 3.0)), jnp.log(jnp.array([1.0, 3.0]))
    found = sweep(
        schemes.systematic,
        law,
        ancestor_sampling=True,
        potential=lambda view: log_psi[view.state],
        ess_threshold=1.0,
    )
    assert chi_square(found.path.states, law) < BOUND
    assert chi_square(found.path.states, exact()) > 3 * BOUND


def test_particle_gibbs_converges_to_the_smoothing_law():
    """From a filter of 2 particles, whose line is far from the law, in 8 sweeps of 4."""
    chain, x = HiddenMarkov(FIRST, ROWS, EMISSION), np.repeat(SYMBOLS[None], 12_000, 0)
    choices = {"depth": TIME, "ess_threshold": 1.0}
    start = conditional(chain, x, width=2, **choices)
    assert start.renewed.all() and chi_square(start.path.states, exact()) > 3 * BOUND
    states = particle_gibbs(
        chain, x, iterations=8, reference=start.path, width=4, resample=schemes.systematic, **choices
    )
    assert states.shape == (8, TIME, 12_000)
    assert chi_square(states[-1], exact()) < BOUND


@pytest.mark.parametrize("scheme", SCHEMES, ids=names)
def test_schemes_are_those_of_the_torch_twin_and_keep_slot_0(scheme):
    rng = np.random.default_rng(0)
    log_weights, uniforms = 2 * rng.normal(size=(40, 60)), rng.random((scheme.rows(40), 60))
    log_weights[0, ::2], log_weights[:, 5] = -800.0, -np.inf
    twin = getattr(twins, scheme.__name__)(torch.tensor(log_weights), torch.tensor(uniforms)).numpy()
    with jax.enable_x64(True):
        ancestors = np.asarray(jax.jit(scheme)(jnp.asarray(log_weights), jnp.asarray(uniforms)))
    np.testing.assert_array_equal(ancestors, twin)
    assert (ancestors[0] == 0).all()


def test_a_reference_is_simulated_again_from_its_noise():
    """Width 2, and weights that no other path can have: the reference comes back, noise and states."""

    def step(state, t, noise, y):
        state = 0.5 * state + noise
        return state, -100.0 * jnp.square(state - y[..., t])

    model = PlainModel(lambda noise, y: noise, step)
    noise = jnp.asarray(np.random.default_rng(0).normal(size=(7, 1)), jnp.float32)
    states = [noise[0]]
    for value in noise[1:]:
        states.append(0.5 * states[-1] + value)
    y = jnp.stack(states[1:])[:, 0]
    reference = {"noise": noise[0]}, {"noise": noise[1:]}
    found = conditional(model, y, reference=reference, width=2, depth=6)
    assert not found.renewed.any()
    np.testing.assert_allclose(found.path.states, jnp.stack(states[1:]), rtol=1e-6)
    np.testing.assert_array_equal(found.path.noise[1]["noise"], noise[1:])
    np.testing.assert_array_equal(found.path.noise[0]["noise"], noise[0])
    for wrong, words in [
        ({"depth": 5}, "the reference has 6 steps, and depth is 5"),
        ({"width": 1}, "width must be at least 2"),
        ({"reference": ({}, {"noise": noise[1:]})}, "no value for the site 'noise' of init"),
        ({"reference": ({"noise": noise[0]}, {"noise": noise[1:, 0]})}, r"must be \[1\], got \[\]"),
    ]:
        with pytest.raises(ValueError, match=words):
            conditional(model, y, **({"reference": reference, "width": 2, "depth": 6} | wrong))
    with pytest.raises(TypeError, match="which keeps slot 0, got systematic"):
        conditional(model, y, width=2, depth=6, resample=adaptive(resampling.systematic))


class Deterministic:
    """A state that is not its noise."""

    def init(self, y):
        return jnp.zeros(())

    def step(self, state, t, y):
        state = 0.5 * state + numpyro.sample("v", dist.Normal(jnp.zeros_like(state), 1.0))
        numpyro.sample("y", dist.Normal(state, 1.0), obs=y[t])
        return state

    def log_transition(self, state, next_state, t, y):
        return dist.Normal(0.5 * state, 1.0).log_prob(next_state)


def test_ancestor_sampling_is_refused_where_it_would_change_the_states():
    choices = {"width": 4, "depth": 3, "key": 1}
    start = conditional(Deterministic(), jnp.zeros(3), **choices).path
    with pytest.raises(ValueError, match="a model whose state is the value of its one latent site"):
        conditional(Deterministic(), jnp.zeros(3), reference=start, ancestor_sampling=True, **choices)
