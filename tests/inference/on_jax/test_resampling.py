"""The schemes in JAX: the ancestors of their torch twins, and what float32 makes of them."""

import math

import numpy as np
import pytest

pytest.importorskip("numpyro", reason="needs probgram[jax]")

import jax
import jax.numpy as jnp
import torch

from probgram.inference import resampling as twins
from probgram.inference.on_jax import resampling
from probgram.inference.on_jax.resampling import adaptive, draw_uniforms, killing, systematic

SCHEMES = list(resampling.SCHEMES.values())
COMPILED = {scheme.__name__: jax.jit(scheme) for scheme in SCHEMES}
N, B = 1200, 3  # several blocks of the cumulative sum; one shape for most tests, since compiling takes the time


def names(scheme) -> str:
    return scheme.__name__


SOME = [scheme if scheme is systematic else pytest.param(scheme, marks=pytest.mark.slow) for scheme in SCHEMES]


def run(scheme, log_weights, seed: int = 0) -> np.ndarray:
    log_weights = jnp.asarray(log_weights)
    uniforms = jax.jit(draw_uniforms, static_argnums=0)(scheme, log_weights, jax.random.key(seed))
    return np.asarray(COMPILED[scheme.__name__](log_weights, uniforms))


def copies(ancestors: np.ndarray) -> np.ndarray:
    """How often each slot was chosen, `[N, B]`."""
    found = np.zeros_like(ancestors)
    np.add.at(found, (ancestors, np.arange(ancestors.shape[1])), 1)
    return found


def share(log_weights: np.ndarray) -> np.ndarray:
    """N·W, float64."""
    weights = np.exp(log_weights.astype(np.float64) - log_weights.max(0))
    return len(weights) * weights / weights.sum(0)


@pytest.mark.parametrize("scheme", SCHEMES, ids=names)
def test_the_same_weights_and_uniforms_give_the_ancestors_of_the_torch_scheme(scheme):
    rng = np.random.default_rng(0)
    log_weights = 2 * rng.normal(size=(N, B))
    log_weights[rng.random((N, B)) < 0.1] = -np.inf
    log_weights[:, -1] = -np.inf  # the last problem is dead
    uniforms = rng.random((scheme.rows(N), B))
    twin = twins.SCHEMES[scheme.__name__](torch.tensor(log_weights), torch.tensor(uniforms)).numpy()
    with jax.enable_x64(True):
        ancestors = np.asarray(COMPILED[scheme.__name__](jnp.asarray(log_weights), jnp.asarray(uniforms)))
    assert ancestors.dtype == np.int32
    np.testing.assert_array_equal(ancestors, twin)


@pytest.mark.parametrize("scheme", SCHEMES, ids=names)
@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.slow
def test_a_few_particles_have_the_ancestors_of_the_torch_scheme(scheme, n):
    rng = np.random.default_rng(n)
    log_weights, uniforms = rng.normal(size=(n, 50)), rng.random((scheme.rows(n), 50))
    twin = twins.SCHEMES[scheme.__name__](torch.tensor(log_weights), torch.tensor(uniforms)).numpy()
    with jax.enable_x64(True):
        ancestors = COMPILED[scheme.__name__](jnp.asarray(log_weights), jnp.asarray(uniforms))
    np.testing.assert_array_equal(np.asarray(ancestors), twin)


@pytest.mark.parametrize("scheme", SOME, ids=names)
def test_the_expected_number_of_copies_is_n_times_the_weight(scheme):
    """40,000 replicates as problems. A slot's copies have a variance of at most N·W (multinomial's, and the
    others' is smaller; killing's is at most N·W + N), so 5 standard errors give a false alarm below 1 in
    100,000 for the 7 slots, a scheme.
    """
    n, replicates = 7, 40_000
    log_weights = 1.5 * np.random.default_rng(n).normal(size=(n, 1)).astype(np.float32)
    expected = share(log_weights)
    found = copies(run(scheme, np.repeat(log_weights, replicates, 1))).mean(1, keepdims=True)
    spread = expected + (n if scheme is killing else 0)
    assert (abs(found - expected) <= 5 * np.sqrt(spread / replicates)).all()


@pytest.mark.parametrize("scheme", SCHEMES, ids=names)
def test_one_slot_with_all_the_weight_is_every_ancestor(scheme):
    log_weights = np.full((N, B), -np.inf, np.float32)
    log_weights[0, 0] = log_weights[-1, 1] = log_weights[600, 2] = -80.0
    ancestors = run(scheme, log_weights)
    assert (ancestors == [0, N - 1, 600]).all()


@pytest.mark.parametrize("scheme", SCHEMES, ids=names)
@pytest.mark.parametrize("beginning", [0, 1])
def test_a_slot_without_weight_is_never_chosen(scheme, beginning):
    """Blocks of the cumulative sum that hold nothing but zeros among them."""
    log_weights = np.random.default_rng(0).normal(size=(N, B)).astype(np.float32)
    log_weights[beginning::2] = -np.inf
    log_weights[:600, 0] = log_weights[400:1100, 1] = log_weights[900:, 2] = -np.inf
    ancestors = run(scheme, log_weights)
    assert np.isfinite(np.take_along_axis(log_weights, ancestors, 0)).all()


@pytest.mark.parametrize("scheme", SCHEMES, ids=names)
def test_a_problem_does_not_see_those_beside_it(scheme):
    log_weights = jnp.asarray(np.random.default_rng(2).normal(size=(N, B)), jnp.float32)
    uniforms = draw_uniforms(scheme, log_weights, jax.random.key(5))
    compiled = COMPILED[scheme.__name__]
    together = np.asarray(compiled(log_weights, uniforms))
    changed = log_weights.at[:, 1].set(-jnp.inf).at[:, 2].multiply(3.0)
    beside = np.asarray(compiled(changed, uniforms))
    assert beside[:, 0].tolist() == together[:, 0].tolist()
    assert beside[:, 1].tolist() == list(range(N))  # it has no weights, and keeps its slots
    assert beside[:, 2].tolist() != together[:, 2].tolist()


def test_a_million_float32_particles_have_the_ancestors_of_float64():
    """But for those whose point is a rounding error away; a plain sum in float32 moves a fifth, by up to 17."""
    log_weights = np.random.default_rng(0).normal(size=(1_000_000, 1)).astype(np.float32)
    uniforms = np.full((1, 1), 0.3, np.float32)
    narrow = np.asarray(COMPILED["systematic"](jnp.asarray(log_weights), jnp.asarray(uniforms)))
    wide = twins.systematic(torch.tensor(log_weights), torch.tensor(uniforms).double()).numpy()
    assert abs(narrow - wide).max() <= 1 and (narrow != wide).mean() < 2e-3
    assert (abs(copies(narrow) - share(log_weights)) < 1.05).all()


def test_a_threshold_says_when_a_scheme_acts():
    rule = adaptive(systematic, 0.5, first=2, last=4)
    assert [bool(rule.acts_at(t)) for t in range(6)] == [False, False, True, True, True, False]
    assert rule.due(jnp.array([4.0, 5.0, 6.0]), 10).tolist() == [True, True, False]
    assert adaptive(systematic, 1.0).due(jnp.array([10.0 + 1e-5]), 10).all()
    assert rule.describe() == "systematic, ESS at most 0.5, depth from 2 to 4"
    assert rule == adaptive(systematic, 0.5, 2, 4) and hash(rule) == hash(adaptive(systematic, 0.5, 2, 4))
    for wrong in (lambda: adaptive(systematic, -1), lambda: adaptive(systematic, first=3, last=2)):
        with pytest.raises(ValueError, match="must be"):
            wrong()
    with pytest.raises(ValueError, match="must be a scheme"):
        adaptive(math.exp)
