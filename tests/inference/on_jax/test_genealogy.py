"""Lines and smoothing in JAX: Kalman's smoother, a chain by enumeration, and the torch twin's moments."""

import itertools

import numpy as np
import pytest

pytest.importorskip("numpyro", reason="needs probgram[jax]")

import jax.numpy as jnp
import torch

from probgram.inference import genealogy as twins
from probgram.inference.on_jax import genealogy, smc
from probgram.inference.on_jax.genealogy import (
    backward_simulation,
    fixed_lag,
    genealogical,
    mean,
    quantiles,
    unique_ancestors,
    variance,
)
from probgram.models.on_jax import HiddenMarkov

TABLES = np.array([0.6, 0.4]), np.array([[0.7, 0.3], [0.2, 0.8]]), np.array([[0.8, 0.2], [0.25, 0.75]])
SYMBOLS = np.array([0, 1, 1, 0])
REPLICATES = 200


@pytest.fixture(scope="module")
def run() -> smc.Trajectories:
    x = np.repeat(SYMBOLS[None], REPLICATES, 0)
    return smc.run(HiddenMarkov(*TABLES), x, width=50, depth=4, keep="latents", ess_threshold=0.9, key=1)


def smoothed() -> np.ndarray:
    """P(state_t = 1 | all symbols) for each t, by enumeration."""
    first, rows, emission = TABLES
    total = np.zeros(5)
    for path in itertools.product(range(2), repeat=4):
        p = first[path[0]] * np.prod([rows[a, b] for a, b in itertools.pairwise(path)])
        p *= np.prod([emission[state, symbol] for state, symbol in zip(path, SYMBOLS, strict=True)])
        total += p * np.array([*path, 1])
    return total[:4] / total[4]


def check(found: np.ndarray) -> None:
    """A mean over replicates, `[4, R]`, within 4 standard errors, and the bias of N = 50 particles, of order 1 / N.

    False alarm 2.5e-4 a test.
    """
    error = found.std(1) / REPLICATES**0.5
    assert (abs(found.mean(1) - smoothed()) < 4 * error + 0.005).all() and error.max() < 0.02


def share(state, weights):
    return (weights * (state == 1)).sum(0)


def test_paths_along_the_lines_estimate_the_smoothing_law(run):
    check(np.asarray(genealogical(run).collect(share)))
    assert (unique_ancestors(run)[-1] == 50).all() and (unique_ancestors(run)[0] < 45).all()


def test_a_lag_to_the_end_is_the_line_and_none_the_filter(run):
    whole, lines = fixed_lag(run, 3), genealogical(run)
    np.testing.assert_array_equal(np.asarray(whole.states), np.asarray(lines.states))
    np.testing.assert_array_equal(np.asarray(fixed_lag(run, 0).states), np.asarray(run.states))
    one = fixed_lag(run, 1)
    index = np.broadcast_to(run.ancestors[1:].astype(int), (3, 50, REPLICATES))
    np.testing.assert_array_equal(
        np.asarray(one.states)[:3], np.take_along_axis(np.asarray(run.states)[:3], index, 1)
    )
    np.testing.assert_array_equal(one.weights[:3], run.weights[1:])
    with pytest.raises(ValueError, match="lag must be at least 0"):
        fixed_lag(run, -1)


def test_backward_simulation_draws_from_the_smoothing_law(run):
    x = np.repeat(SYMBOLS[None], REPLICATES, 0)
    paths = np.asarray(backward_simulation(HiddenMarkov(*TABLES), run, 30, x, key=2))
    assert paths.shape == (4, 30, REPLICATES)
    check((paths == 1).mean(1))
    with pytest.raises(ValueError, match="draws must be at least 1"):
        backward_simulation(HiddenMarkov(*TABLES), run, 0, x)
    with pytest.raises(ValueError, match="has no log_transition"):
        backward_simulation(object(), run, 1, x)


def test_moments_are_those_of_the_torch_twin():
    rng = np.random.default_rng(0)
    state, weights = rng.normal(size=(40, 3, 2)), rng.random((40, 3))
    weights[:, 2] = weights[::2, 1] = 0
    weights /= weights.sum(0).clip(min=1e-30)
    for name, arguments in (("mean", ()), ("variance", ()), ("quantiles", ([0, 0.1, 0.5, 1],))):
        theirs = getattr(twins, name)(*arguments)(torch.tensor(state), torch.tensor(weights))
        ours = getattr(genealogy, name)(*arguments)(jnp.asarray(state), jnp.asarray(weights))
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert mean() == mean() and variance() != mean() and quantiles(0.5) == quantiles([0.5])
    with pytest.raises(ValueError, match="levels must be probabilities"):
        quantiles(1.5)
    with pytest.raises(ValueError, match="mean needs an array"):
        mean(lambda state: state[0])(jnp.asarray(state), jnp.asarray(weights))
