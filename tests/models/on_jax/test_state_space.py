"""State-space chains in JAX: exact evidence, smoothers whose every draw weighs it, all equal to the torch twins.

Averages allow four standard errors, estimated from the draws: a correct program with another seed fails a one-sided
comparison with probability 3e-5 and a two-sided one with 6e-5 (normal approximation).
"""

import itertools
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("numpyro", reason="needs probgram[jax]")

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
from scipy.stats import multivariate_normal

from probgram import models
from probgram.inference.on_jax.handlers import divergence, guided, seeded, start, weighted
from probgram.models.on_jax import HiddenMarkov, HiddenMarkovSmoother, LinearGaussian, LinearGaussianSmoother

B, TIME = 3, 5  # problems, length of the series
NAMES = ["linear_gaussian", "hidden_markov"]
TORCH: dict[type, Any] = {
    LinearGaussian: models.LinearGaussian,
    LinearGaussianSmoother: models.LinearGaussianSmoother,
    HiddenMarkov: models.HiddenMarkov,
    HiddenMarkovSmoother: models.HiddenMarkovSmoother,
}


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@cache
def gaussian_tables() -> dict[str, np.ndarray]:
    """Three latent dimensions seen in two; every matrix dense, P unlike Q, m unlike 0."""
    normal = np.random.default_rng(0).standard_normal

    def covariance(size: int) -> np.ndarray:
        root = normal((size, size))
        return 0.3 * root @ root.T + 0.5 * np.eye(size)

    return {
        "dynamics": 0.6 * normal((3, 3)),
        "noise": covariance(3),
        "emission": 0.7 * normal((2, 3)),
        "emission_noise": covariance(2) + 2 * np.eye(2),
        "mean": normal(3),
        "covariance": covariance(3),
    }


@cache
def markov_tables(rare: float = 0.0) -> dict[str, np.ndarray]:
    """Three states, four symbols; one transition is impossible, and so is one emission unless `rare` is above 0."""
    return {
        "first": np.array([0.5, 0.2, 0.3]),
        "rows": np.array([[0.7, 0.3, 0.0], [0.1, 0.6, 0.3], [0.3, 0.3, 0.4]]),
        "emission": np.array([[0.4, 0.3, 0.2, 0.1], [0.1, 0.1, 0.1, 0.7], [rare, 0.6 - rare, 0.3, 0.1]]),
    }


def case(name: str, rare: float = 0.0) -> tuple[type, type, dict[str, np.ndarray], np.ndarray]:
    """The chain's class, its smoother's, the tables and B series."""
    if name == "linear_gaussian":
        series = 1.5 * np.random.default_rng(1).standard_normal((B, TIME, 2))
        return LinearGaussian, LinearGaussianSmoother, gaussian_tables(), series
    series = np.array([[0, 3, 1, 2, 1], [1, 1, 3, 3, 0], [2, 0, 0, 3, 2]])
    return HiddenMarkov, HiddenMarkovSmoother, markov_tables(rare), series


def torch_chain(kind: type, tables: dict[str, np.ndarray]) -> Any:
    return TORCH[kind](**{name: torch.from_numpy(table) for name, table in tables.items()})


@eqx.filter_jit
def log_weights(
    chain: Any, guide: Any, x: Any, key: Any, particles: int, depth: int, missing: bool = False
) -> tuple[Any, Any]:
    """Filter without resampling: the last state and the log weights `[N, B]`."""
    context, evidence = chain.encode(x), None if guide is None else guide.encode(x)
    state = start(chain, (particles, len(x)), context)

    def depth_step(carry: Any, t: Any) -> Any:
        state, total = carry
        with seeded(jax.random.fold_in(key, t)), weighted(missing=missing) as w, guided(guide, evidence):
            with numpyro.plate("particles", particles, dim=-2), numpyro.plate("problems", len(x), dim=-1):
                state = chain.step(state, t, context)
        return (state, total + w.log_weight), None

    first = state, jnp.zeros((particles, len(x)))
    return jax.lax.scan(depth_step, first, jnp.arange(depth))[0]


def test_kalman_evidence_is_the_joint_gaussian_density_with_and_without_missing_elements() -> None:
    kind, _, tables, x = case("linear_gaussian")
    a, q, c, r, m, p = (tables[name] for name in LinearGaussian.buffers)
    power = np.linalg.matrix_power
    # h_t = A^t m + Σ_{s <= t} A^{t-s} eps_s, so x is Gaussian with a mean and covariance in closed form.
    mean = np.concatenate([c @ power(a, t) @ m for t in range(TIME)])
    paths, noise = np.zeros((15, 15)), np.zeros((15, 15))
    for t, s in itertools.product(range(TIME), repeat=2):
        if s <= t:
            paths[3 * t : 3 * t + 3, 3 * s : 3 * s + 3] = power(a, t - s)
    for t in range(TIME):
        noise[3 * t : 3 * t + 3, 3 * t : 3 * t + 3] = p if t == 0 else q
    seen = np.kron(np.eye(TIME), c) @ paths
    covariance = seen @ noise @ seen.T + np.kron(np.eye(TIME), r)
    x[1, 2, 0] = x[2, 3] = np.nan
    found = kind(**tables).log_evidence(x)
    for series, log_evidence in zip(x.reshape(B, -1), found, strict=True):
        there = ~np.isnan(series)
        joint = multivariate_normal(mean[there], covariance[np.ix_(there, there)])
        assert log_evidence == pytest.approx(joint.logpdf(series[there]), abs=1e-10)


def test_forward_algorithm_is_the_sum_over_all_paths() -> None:
    kind, _, tables, x = case("hidden_markov")
    first, rows, emission = tables.values()
    x[2, 1] = -1  # not observed
    for series, log_evidence in zip(x, kind(**tables).log_evidence(x), strict=True):
        seen = [np.ones(3) if symbol < 0 else emission[:, symbol] for symbol in series]
        total = 0.0
        for path in itertools.product(range(3), repeat=TIME):
            factors = [rows[h, k] * seen[t + 1][k] for t, (h, k) in enumerate(itertools.pairwise(path))]
            total += first[path[0]] * seen[0][path[0]] * np.prod(factors)
        assert log_evidence == pytest.approx(np.log(total), abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_evidence_and_transitions_equal_those_of_the_torch_twin(name: str) -> None:
    kind, _, tables, x = case(name)
    chain, twin = kind(**tables), torch_chain(kind, tables)
    if name == "linear_gaussian":
        x[0, 1, 1] = x[1, 4] = np.nan
        states = np.random.default_rng(2).standard_normal((2, 7, B, 3))
    else:
        x[0, 1] = -1
        states = np.random.default_rng(2).integers(3, size=(2, 7, B))
    np.testing.assert_allclose(chain.log_evidence(x), twin.log_evidence(torch.from_numpy(x)), rtol=0, atol=1e-10)
    context, before = chain.encode(x), twin.encode(torch.from_numpy(x))
    for t in (0, 1):
        ours = chain.log_transition(*map(jnp.asarray, states), t, context)
        theirs = twin.log_transition(*map(torch.from_numpy, states), t, before)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10)
    assert chain.state_dict().keys() == twin.state_dict().keys()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("power", [pytest.param(1.0, marks=pytest.mark.slow), 0.4])
def test_the_smoothers_posterior_equals_that_of_the_torch_twin(name: str, power: float) -> None:
    kind, smoother, tables, x = case(name, rare=0.05)
    chain, twin = kind(**tables), torch_chain(kind, tables)
    guide, other = smoother(chain, power), TORCH[smoother](twin, power)
    evidence, before = guide.encode(x), other.encode(torch.from_numpy(x))
    generator = np.random.default_rng(3)
    for t in (0, TIME - 1, TIME + 1):  # the last is past the end
        if name == "linear_gaussian":
            u, eps = generator.standard_normal((2, 7, B, 3))
        else:
            u, eps = chain.rows[generator.integers(3, size=(7, B))], generator.integers(3, size=(7, B))
        ours, prior = guide.posterior(jnp.asarray(u), evidence, jnp.asarray(t)), chain.prior(jnp.asarray(u), t)
        proposal = torch.from_numpy(np.array(u))
        theirs, twin_prior = other.posterior(proposal, before, t), twin.prior(proposal, t)
        densities = ours.log_prob(eps), prior.log_prob(eps)
        expected = theirs.log_prob(torch.from_numpy(eps)), twin_prior.log_prob(torch.from_numpy(eps))
        for density, known in zip(densities, expected, strict=True):
            np.testing.assert_allclose(density, known, rtol=0, atol=1e-10)
        kl = torch.distributions.kl_divergence(theirs, twin_prior)
        np.testing.assert_allclose(divergence(ours, prior), kl, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_every_draw_of_the_exact_smoother_weighs_the_evidence_and_nothing_past_the_end(name: str) -> None:
    kind, smoother, tables, x = case(name)
    chain = kind(**tables)
    state, weights = log_weights(chain, smoother(chain), x, jax.random.key(0), 7, TIME + 3)
    exact = np.broadcast_to(chain.log_evidence(x), (7, B))
    np.testing.assert_allclose(weights, exact, rtol=0, atol=1e-10)
    assert all(len(np.unique(np.asarray(state)[:, b], axis=0)) > 1 for b in range(B))  # different draws


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("power", [None, 0.5], ids=["no guide", "half the look-ahead"])
def test_weights_of_other_guides_are_unbiased_and_their_logs_below(name: str, power: float | None) -> None:
    """Twelve one-sided and twelve two-sided comparisons: false alarm 1e-3 over all of them."""
    kind, smoother, tables, x = case(name, rare=0.05)
    chain, draws = kind(**tables), 20_000
    exact = chain.log_evidence(x)
    guide = None if power is None else smoother(chain, power)
    logs = np.asarray(log_weights(chain, guide, x, jax.random.key(1), draws, TIME)[1])
    assert (logs.mean(0) < exact + 4 * logs.std(0) / draws**0.5).all()
    assert (logs.std(0) > 0.01).all()  # the guide is not exact, so the inequality says something
    ratio = np.exp(logs - exact)
    relative = ratio.std(0) / draws**0.5
    assert (relative < 0.05).all()
    assert (abs(ratio.mean(0) - 1) < 4 * relative).all()


def test_power_zero_is_the_prior_and_impossible_symbols_make_no_nan() -> None:
    kind, smoother, tables, x = case("hidden_markov")
    chain, guide = kind(**tables), smoother(kind(**tables), 0.0)
    u, evidence = chain.rows[:, None], guide.encode(x)
    for eps in range(3):
        ours = guide.posterior(u, evidence, 2).log_prob(jnp.full((3, B), eps))
        np.testing.assert_allclose(ours, np.broadcast_to(chain.rows[:, [eps]], (3, B)), rtol=0, atol=1e-12)
    logs = np.asarray(log_weights(chain, guide, x, jax.random.key(0), 200, TIME)[1])
    assert np.isneginf(logs).any() and not np.isnan(logs).any()


@pytest.mark.parametrize("name", NAMES)
def test_what_was_not_observed_weighs_nothing(name: str) -> None:
    """The weights of prior draws, against the densities of what is there, state by state."""
    kind, _, tables, x = case(name)
    chain = kind(**tables)
    whole = log_weights(chain, None, x, jax.random.key(0), 7, 1, missing=True)
    state = whole[0]
    if name == "linear_gaussian":
        x[0, 0], x[1, 0, 0] = np.nan, np.nan
        c, r = tables["emission"], tables["emission_noise"]
        second = multivariate_normal.logpdf(x[1, 0, 1] - np.asarray(state)[:, 1] @ c[1], 0, r[1, 1])
    else:
        x[0, 0] = -1
        second = np.asarray(chain.emission)[np.asarray(state)[:, 1], x[1, 0]]
    again, weights = log_weights(chain, None, x, jax.random.key(0), 7, 1, missing=True)
    np.testing.assert_array_equal(again, state)
    np.testing.assert_array_equal(weights[:, 0], 0)
    np.testing.assert_allclose(weights[:, 1], second, rtol=0, atol=1e-12)
    np.testing.assert_allclose(weights[:, 2], whole[1][:, 2], rtol=0, atol=1e-12)


@pytest.mark.slow
def test_float32_models_agree_to_their_precision() -> None:
    kind, smoother, tables, x = case("linear_gaussian")
    exact = kind(**tables).log_evidence(x)
    with jax.enable_x64(False):
        chain = kind(**{name: table.astype(np.float32) for name, table in tables.items()})
        weights = log_weights(chain, smoother(chain), x, jax.random.key(0), 3, TIME)[1]
    assert weights.dtype == jnp.float32
    np.testing.assert_allclose(weights, np.broadcast_to(exact, (3, B)), rtol=0, atol=1e-3)


def test_tables_and_series_that_do_not_fit_are_named() -> None:
    kind, smoother, tables, x = case("linear_gaussian")
    chain, eye = kind(**tables), np.eye(3)
    with pytest.raises(ValueError, match=r"dynamics must have shape \[2, 2\], got \[3, 3\]"):
        LinearGaussian(eye, np.eye(2), np.ones((1, 2)), np.eye(1))
    with pytest.raises(ValueError, match=r"first must have shape \[3\], got \[2\]"):
        HiddenMarkov(np.ones(2) / 2, eye, eye)
    with pytest.raises(ValueError, match=r"x must be \[B, time, 2\], got shape \[3, 5, 1\]"):
        chain.log_evidence(x[..., :1])
    with pytest.raises(ValueError, match=r"x must be integers \[B, time\]"):
        HiddenMarkov(**markov_tables()).log_evidence(np.zeros((2, 3)))
    x[0, 0] = np.nan
    with pytest.raises(ValueError, match="must be observed throughout"):
        smoother(chain).encode(x)
