"""The JAX filter against exact answers (Kalman, forward algorithm, enumeration), then its promises about itself.

Replicates run side by side as problems. An average over R of them is compared with the exact value within four
standard errors, estimated from the replicates: a correct filter with another seed fails one comparison with
probability 6e-5 (normal approximation, as in the tests of the torch filter). The fast tests make about 15 such
comparisons, false alarm 1e-3 for all of them. Filtering means are compared at every time within five standard
errors of R - 1 = 49 degrees of freedom, 8e-6 a comparison, 100 of them: 8e-4. All other tests are exact.
"""

import itertools
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numpyro", reason="needs probgram[jax]")

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array

from probgram.inference.on_jax import resampling, smc
from probgram.inference.on_jax.genealogy import mean
from probgram.inference.on_jax.potentials import Potential, View, look_ahead
from probgram.inference.on_jax.resampling import adaptive, systematic
from probgram.models.on_jax import (
    Chain,
    HiddenMarkov,
    HiddenMarkovSmoother,
    LinearGaussian,
    LinearGaussianSmoother,
)

REPLICATES, TIME = 1000, 10
SERIES = 1.2 * np.random.default_rng(1).normal(size=(1, TIME, 1))
SYMBOLS = np.array([[0, 3, 1, 2, 1, 1, 3, 3, 0, 2]])


def line() -> LinearGaussian:
    def one(value: float) -> np.ndarray:
        return np.full((1, 1), value)

    return LinearGaussian(one(0.9), one(0.6), one(1.0), one(0.8), one(0.5)[0], one(1.5))


def markov() -> HiddenMarkov:
    """Three states, four symbols; one transition is impossible."""
    first = np.array([0.5, 0.2, 0.3])
    rows = np.array([[0.7, 0.3, 0.0], [0.1, 0.6, 0.3], [0.3, 0.3, 0.4]])
    emission = np.array([[0.4, 0.3, 0.2, 0.1], [0.1, 0.1, 0.1, 0.7], [0.05, 0.55, 0.3, 0.1]])
    return HiddenMarkov(first, rows, emission)


class Guess(Potential):
    """log p(x_{t+1:} | h_t) up to a constant, times a power, from the smoother's backward pass."""

    chain: LinearGaussian
    message: Any
    x: Array
    power: float = 1.0

    def __call__(self, view: View) -> Array:
        row = jnp.minimum(view.t, self.x.shape[1]) - 1
        h, precision, shift = view.state, self.message.precision[row], self.message.shift[row, 0]
        whole = h @ shift - 0.5 * ((h @ precision) * h).sum(-1)  # of x_t and what follows
        return self.power * (whole - self.chain.readout(h).log_prob(self.x[0, row]))


def guess(chain: LinearGaussian, power: float) -> Potential:
    x = jnp.asarray(SERIES, chain.mean.dtype)
    return look_ahead(Guess(chain, LinearGaussianSmoother(chain).encode(x), x, power))


def score(estimates: np.ndarray, exact: Any) -> float:
    """Standard errors between the mean of replicates and the exact value."""
    estimates = np.asarray(estimates, np.float64)
    return float((estimates.mean() - exact) / (estimates.std() / len(estimates) ** 0.5))


def check_unbiased(log_z: np.ndarray, exact: float) -> None:
    """Z over its exact value has mean 1."""
    log_ratio = log_z.astype(np.float64) - exact
    assert 0.01 < log_ratio.std() <= 0.5  # an estimate, and one whose mean the replicates can tell
    assert abs(score(np.exp(log_ratio), 1.0)) < 4


# -- truth ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "proposal",
    ["bootstrap", "both", *(pytest.param(one, marks=pytest.mark.slow) for one in ("guided", "look-ahead"))],
)
def test_z_is_unbiased_with_every_proposal(proposal):
    chain, x, choices = line(), np.repeat(SERIES, REPLICATES, 0), {}
    if proposal in ("guided", "both"):
        choices |= {"guide": LinearGaussianSmoother(chain, 0.5), "evidence": x}
    if proposal in ("look-ahead", "both"):
        choices |= {"potential": guess(chain, 0.5)}
    run = smc.run(chain, x, width=60, depth=TIME, keep="summary", key=3, **choices)
    check_unbiased(run.log_evidence[-1], chain.log_evidence(SERIES)[0])
    if proposal == "bootstrap":  # and every row is the evidence of the series so far
        for t in (1, 4):
            check_unbiased(run.log_evidence[t - 1], chain.log_evidence(SERIES[:, :t])[0])
    if proposal == "both":
        assert np.isnan(run.log_evidence[:-1]).all() and run.kl is not None


@pytest.mark.slow
@pytest.mark.parametrize("scheme", list(resampling.SCHEMES.values()), ids=lambda scheme: scheme.__name__)
@pytest.mark.parametrize("threshold", [0.5, 1.0])
def test_z_is_unbiased_with_every_scheme(scheme, threshold):
    chain, x = line(), np.repeat(SERIES, REPLICATES, 0)
    choices = {"resample": scheme, "ess_threshold": threshold}
    run = smc.run(chain, x, width=60, depth=TIME, keep="summary", key=5, **choices)
    check_unbiased(run.log_evidence[-1], chain.log_evidence(SERIES)[0])


def test_means_and_evidence_of_a_long_series_are_those_of_the_kalman_filter():
    chain, replicates = line(), 50
    x = 1.2 * np.random.default_rng(2).normal(size=(1, 100, 1))
    run = smc.run(
        chain, np.repeat(x, replicates, 0), width=400, depth=100, keep="summary", collect={"mean": mean()}
    )
    # E log Z = log Z - var / 2 where log Z is close to normal; s² / 2 has its own error.
    log_z, exact = run.log_evidence[-1].astype(np.float64), chain.log_evidence(x)[0]
    variance = log_z.var(ddof=1)
    error = np.sqrt(variance / replicates + variance**2 / (2 * replicates))
    assert abs(log_z.mean() - (exact - variance / 2)) < 4 * error
    a, q, c, r, m, p = (float(np.asarray(getattr(chain, name)).reshape(())) for name in LinearGaussian.buffers)
    found, means = run.collected["mean"][..., 0].astype(np.float64), []
    for y in x[0, :, 0]:
        gain = p * c / (c * c * p + r)
        m, p = m + gain * (y - c * m), p - gain * c * p
        means.append(m)
        m, p = a * m, a * a * p + q
    error = found.std(1, ddof=1) / replicates**0.5
    assert error.max() < 0.05  # against latents of about 1: the comparison says something
    assert (abs(found.mean(1) - means) / error).max() < 5


def test_evidence_and_smoother_of_a_hidden_markov_model_are_exact():
    chain, x = markov(), np.repeat(SYMBOLS, REPLICATES, 0)
    exact = chain.log_evidence(SYMBOLS)[0]
    run = smc.run(chain, x, width=100, depth=TIME, keep="summary", key=3)
    check_unbiased(run.log_evidence[-1], exact)
    guide = {"guide": HiddenMarkovSmoother(chain), "evidence": SYMBOLS}
    run = smc.run(chain, SYMBOLS, width=7, depth=TIME, resample=None, **guide)
    np.testing.assert_allclose(run.log_evidence[-1], exact, atol=1e-4)
    assert run.ancestors is None and run.answers.dtype == np.uint8


def test_the_exact_guide_under_the_exact_look_ahead_has_no_error_where_all_is_resampled():
    with jax.enable_x64(True):
        chain = line()
        exact = chain.log_evidence(SERIES)
        guide = {"guide": LinearGaussianSmoother(chain), "evidence": SERIES, "ess_threshold": 1.0}
        run = smc.run(chain, SERIES, width=7, depth=TIME, potential=guess(chain, 1.0), **guide)
        np.testing.assert_allclose(run.log_evidence[-1], exact, rtol=0, atol=1e-9)
        np.testing.assert_allclose(run.ess, 7.0)
        assert run.ancestors is not None and run.log_weights.dtype == np.float64
        # Without the look-ahead the same guide resampled at every step is no longer exact: the test can fail.
        noisy = smc.run(chain, SERIES, width=7, depth=TIME, **guide)
        assert abs(noisy.log_evidence[-1] - exact) > 1e-3


def test_a_potential_telescopes_under_resampling_against_the_sum_over_all_paths():
    """psi_t depends on the state and on t, and is 0 for some states: only that of the last step is left."""
    chain, time = markov(), 4
    psi = np.array([[1.0, 0.3, 2.0], [0.2, 1.0, 0.0], [1.0, 2.0, 0.5], [3.0, 0.5, 1.0]])
    first, rows, emission = (
        np.exp(np.asarray(table, np.float64)) for table in (chain.first, chain.rows, chain.emission)
    )
    exact = 0.0
    for path in itertools.product(range(3), repeat=time):
        p = first[path[0]] * np.prod([rows[a, b] for a, b in itertools.pairwise(path)])
        alive = all(psi[t, state] > 0 for t, state in enumerate(path))  # psi = 0 is absorbing
        exact += (
            alive
            * p
            * np.prod([emission[state, SYMBOLS[0, t]] for t, state in enumerate(path)])
            * psi[-1, path[-1]]
        )
    log_psi = jnp.log(jnp.asarray(psi))
    x = np.repeat(SYMBOLS[:, :time], REPLICATES, 0)
    run = smc.run(
        chain, x, width=50, depth=time, potential=lambda view: log_psi[view.t - 1][view.state], ess_threshold=1.0
    )
    check_unbiased(run.log_normalizer[-1], np.log(exact))
    assert not np.isnan(run.log_weights).any() and np.isneginf(run.log_weights[1]).any()
    with pytest.raises(ValueError, match="log_evidence exists only where"):
        _ = run.log_evidence


# -- foreign models -------------------------------------------------------------------------------------------


class Walk(eqx.Module):
    """The line as a NumPyro program, with a plate of its own over two sensors, or a factor."""

    sensors: bool = False
    factor: bool = False
    max_plate_nesting: int = eqx.field(static=True, default=0)

    def init(self, series: Array) -> dict[str, Array]:
        return {"h": jnp.zeros(())}

    def step(self, state: Any, t: Any, series: Array) -> dict[str, Array]:
        loc, scale = jnp.where(t == 0, 0.5, 0.9 * state["h"]), jnp.sqrt(jnp.where(t == 0, 1.5, 0.6))
        if self.sensors:  # their states are [N, B], and inside the plate [N, B, 1]
            loc = loc[..., None]
        h = numpyro.sample("h", dist.Normal(loc, scale))
        if self.sensors:
            with numpyro.plate("sensors", 2, dim=-1):
                numpyro.sample("obs", dist.Normal(h, 1.0), obs=series[:, None, :, t].swapaxes(0, 1))
            h = h[..., 0]
        elif self.factor:
            numpyro.factor("score", dist.Normal(h, 0.8**0.5).log_prob(series[:, t]))
        else:
            numpyro.sample("obs", dist.Normal(h, 0.8**0.5), obs=series[:, t])
        return {"h": h}


class Wide:
    """Proposes h with twice the standard deviation."""

    def init(self, series: Array) -> None:
        pass

    def step(self, state: Any, t: Any, series: Array) -> None:
        loc, scale = jnp.where(t == 0, 0.5, 0.9 * state["h"]), jnp.sqrt(jnp.where(t == 0, 1.5, 0.6))
        numpyro.sample("h", dist.Normal(loc, 2 * scale))


@pytest.mark.parametrize("kind", ["guided", "missing", pytest.param("plain", marks=pytest.mark.slow)])
def test_a_foreign_model_has_the_evidence_of_the_chain(kind):
    series = np.repeat(SERIES[:, :6, 0], REPLICATES, 0)
    guide = Wide() if kind == "guided" else None
    if kind == "missing":
        series[:, 2] = np.nan
    run = smc.run(Walk(), series, problems=REPLICATES, width=60, depth=6, guide=guide, key=2)
    check_unbiased(run.log_evidence[-1], line().log_evidence(series[:1, :, None])[0])


def test_a_factor_is_no_evidence_and_a_guide_must_sample_what_the_model_does():
    run = smc.run(Walk(factor=True), SERIES[:, :6, 0], problems=1, width=50, depth=6)
    assert np.isfinite(run.log_normalizer).all()
    with pytest.raises(ValueError, match="log_evidence exists only where"):
        _ = run.log_evidence

    class Other(Wide):
        def step(self, state: Any, t: Any, series: Array) -> None:
            numpyro.sample("velocity", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="'velocity', which the model's step does not"):
        smc.run(Walk(), SERIES[:, :6, 0], problems=1, width=50, depth=6, guide=Other())


# -- one program, problems side by side -----------------------------------------------------------------------

TRACES: list[int] = []


def walk(state: Any, t: Any, noise: Array, series: Array) -> tuple[Array, Array]:
    TRACES.append(1)
    state = 0.9 * state + noise
    return state, -0.5 * jnp.square(series[..., t] - state)


def begin(noise: Array, series: Array) -> Array:
    return jnp.zeros_like(noise)


PLAIN = smc.PlainModel(begin, walk)
OBSERVED = 2 * np.random.default_rng(9).normal(size=(4, 12)).astype(np.float32)


def test_new_data_and_keys_do_not_compile_again_and_problems_do_not_see_each_other():
    run = smc.run(PLAIN, OBSERVED, width=30, depth=12, problems=4, keep="latents")
    traced = len(TRACES)
    changed = OBSERVED.copy()
    changed[1:] *= -0.3
    other = smc.run(PLAIN, changed, width=30, depth=12, problems=4, keep="latents")
    again = smc.run(PLAIN, OBSERVED, width=30, depth=12, problems=4, keep="latents", key=jax.random.key(0))
    smc.run(PLAIN, OBSERVED, width=30, depth=12, problems=4, keep="latents", key=1)
    assert len(TRACES) == traced
    moved = (run.ancestors != np.arange(30)[:, None]).any(1)  # [S, B]
    assert moved.any() and not moved.all() and not (moved == moved[:, :1]).all()  # each has its own test
    for name in ("log_weights", "ancestors", "states"):
        values = np.asarray(getattr(run, name))
        np.testing.assert_array_equal(values[:, :, 0], np.asarray(getattr(other, name))[:, :, 0])
        np.testing.assert_array_equal(values, np.asarray(getattr(again, name)))
    assert (other.log_normalizer[-1, 1:] != run.log_normalizer[-1, 1:]).all()
    # Weights are normalised and recorded before resampling, which acted exactly where the last ess was low.
    np.testing.assert_allclose(np.exp(run.log_weights).sum(1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(run.ess, 1 / np.square(run.weights).sum(1), rtol=1e-4)
    assert (moved[1:] <= (run.ess[:-1] <= 15)).all()


def test_islands_are_problems_whose_z_is_averaged():
    """The same problems one by one, in the same order, see the same noise."""
    apart = smc.run(PLAIN, np.repeat(OBSERVED, 3, 0), width=20, depth=12, problems=12, keep="latents")
    pooled = smc.run(
        PLAIN, OBSERVED, width=20, depth=12, problems=4, islands=3, keep="latents", collect={"mean": mean()}
    )
    log_z = apart.log_normalizer.astype(np.float64).reshape(12, 4, 3)
    np.testing.assert_allclose(pooled.log_normalizer, np.log(np.exp(log_z).mean(-1)), rtol=1e-4)
    share = np.exp(log_z) / np.exp(log_z).sum(-1, keepdims=True)  # [S, B, I]
    weights = (apart.weights.reshape(12, 20, 4, 3) * share[:, None]).transpose(0, 3, 1, 2).reshape(12, 60, 4)
    np.testing.assert_allclose(pooled.weights, weights, rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(pooled.ess, 1 / np.square(weights).sum(1), rtol=1e-3)
    states = np.asarray(apart.states).reshape(12, 20, 4, 3).transpose(0, 3, 1, 2).reshape(12, 60, 4)
    np.testing.assert_array_equal(np.asarray(pooled.states), states)
    np.testing.assert_allclose(pooled.collected["mean"], (weights * states).sum(1), rtol=1e-3, atol=1e-5)
    # Ancestors stay on their island.
    assert ((pooled.ancestors // 20) == np.repeat(np.arange(3), 20)[:, None]).all()


def test_series_of_different_lengths_stop_where_each_alone_would():
    run = smc.run(PLAIN, OBSERVED, width=30, depth=12, problems=4, keep="latents")
    uneven = smc.run(PLAIN, OBSERVED, width=30, depth=[12, 3, 7, 12], problems=4, keep="latents")
    assert uneven.ended.tolist() == [12, 3, 7, 12]
    for b, depth in enumerate(uneven.ended):
        for name in ("log_normalizer", "ess"):
            ours, whole = getattr(uneven, name)[:, b], getattr(run, name)[:, b]
            np.testing.assert_array_equal(ours[:depth], whole[:depth])
            assert (ours[depth:] == ours[depth - 1]).all()
        np.testing.assert_array_equal(np.asarray(uneven.state)[:, b], np.asarray(run.states)[depth - 1, :, b])
        assert (uneven.ancestors[depth:, :, b] == np.arange(30)).all()


def test_a_run_goes_on_where_it_ended_and_step_by_step_is_the_same():
    whole = smc.run(PLAIN, OBSERVED, width=30, depth=12, problems=4, keep="latents")
    half = smc.run(PLAIN, OBSERVED, width=30, depth=5, problems=4, keep="latents")
    rest = smc.run(PLAIN, OBSERVED, width=30, depth=7, problems=4, keep="latents", start=half)
    assert rest.depths == tuple(range(6, 13))
    np.testing.assert_allclose(rest.log_normalizer, whole.log_normalizer[5:], rtol=1e-5)
    np.testing.assert_array_equal(rest.ancestors, whole.ancestors[5:])
    with pytest.raises(ValueError, match="start has key 0"):
        smc.run(PLAIN, OBSERVED, width=30, depth=7, problems=4, start=half, key=1)
    with pytest.raises(ValueError, match="^depth must be at least 1, got 0$"):
        smc.run(PLAIN, OBSERVED, width=30, depth=0, problems=4, start=half)
    algorithm = smc.build(PLAIN, OBSERVED, width=30, depth=12, problems=4)
    state, step = smc.init(algorithm, key=0), eqx.filter_jit(smc.step)
    for t in range(3):
        state, info = step(algorithm, state)
        np.testing.assert_allclose(state.log_normalizer, whole.log_normalizer[t], rtol=1e-5)
        np.testing.assert_array_equal(info.ancestors, whole.ancestors[t])


def test_what_is_kept_says_how_much_there_is():
    last = smc.run(PLAIN, OBSERVED, width=30, depth=12, problems=4, keep="last")
    assert last.log_weights.shape == (1, 30, 4) and last.depths == (12,)
    assert last.log_normalizer.shape == last.ess.shape == (12, 4)
    assert last.states is None and last.ancestors is None
    paths = smc.run(PLAIN, OBSERVED, width=30, depth=12, problems=4, keep="paths")
    assert paths.states.shape == (12, 30, 4)  # a model without answers records its states
    np.testing.assert_array_equal(paths.log_weights[-1], last.log_weights[0])


class Stops(Chain):
    """Climbs at random; says halt above 2."""

    def initial(self, context: Array) -> Array:
        return jnp.zeros(len(context))

    def propose(self, state: Array, context: Array, t: Any) -> Array:
        return state

    def prior(self, proposal: Array, t: Any) -> dist.Distribution:
        return dist.Normal(jnp.full(proposal.shape, 0.5), 1.0)

    def readout(self, state: Array) -> dist.Distribution:
        return dist.Categorical(logits=jnp.stack([state, 1 - state], -1)[..., None, :]).to_event(1)

    def heads(self, state: Array) -> dict[str, Array]:
        return {"halt": 10 * (state - 2)}


def test_halted_trajectories_stand_still_and_stopping_early_equals_running_on():
    x, potential = np.zeros((5, 1)), lambda view: jnp.minimum(view.state, 2.0)
    choices = {"width": 4, "keep": "latents", "potential": potential, "halt_probability": 0.5}
    run = smc.run(Stops(), x, depth=24, **choices)
    assert run.halted.any() and run.ended.min() < run.ended.max()
    lines, states = run.lines(), np.asarray(run.states)
    along = np.take_along_axis(states, lines, 1)
    for b in range(5):
        for i in range(4):
            above = np.flatnonzero(along[:, i, b] > 2)
            assert not len(above) or (along[above[0] :, i, b] == along[above[0], i, b]).all()
        ended = run.ended[b]
        assert (run.log_normalizer[ended - 1 :, b] == run.log_normalizer[ended - 1, b]).all()
        assert (states[ended - 1 :, :, b] == states[ended - 1, :, b]).all()
    longer = smc.run(Stops(), x, depth=48, **choices)
    over = run.ended < 24
    assert over.any()
    np.testing.assert_array_equal(longer.log_normalizer[-1, over], run.log_normalizer[-1, over])


# -- faults ---------------------------------------------------------------------------------------------------


def test_nan_is_an_error_and_death_a_warning_in_one_sentence():
    bad = OBSERVED.copy()
    bad[2, 5] = np.nan
    with pytest.raises(smc.FilterError, match=r"NaN or \+inf at depth 6 in problems \[2\]"):
        smc.run(PLAIN, bad, width=30, depth=12, problems=4, keep="latents")
    bad[2, 5] = np.inf  # a weight of 0 for everybody
    with pytest.warns(RuntimeWarning, match="all weights vanished in problem 2 at depth 6"):
        run = smc.run(PLAIN, bad, width=30, depth=12, problems=4, keep="latents")
    assert np.isneginf(run.log_normalizer[5:, 2]).all() and (run.ess[5:, 2] == 0).all()
    assert np.isfinite(np.delete(run.log_normalizer, 2, 1)).all() and not np.isnan(np.asarray(run.states)).any()


class Begins(Walk):
    """Observes something before the first step."""

    def init(self, series: Array) -> dict[str, Array]:
        numpyro.sample("first", dist.Normal(0.0, 1.0), obs=series[:, 0])
        return {"h": jnp.zeros(())}


def test_strict_names_the_factor_that_took_the_last_weight_or_is_nan():
    """The sentences of the torch side."""
    bad = OBSERVED.copy()
    bad[2, 5] = np.inf
    with pytest.raises(
        smc.FilterError, match=r"^the step's log weight left no weight at depth 6 in problems \[2\]$"
    ):
        smc.run(PLAIN, bad, width=30, depth=12, problems=4, islands=2, strict=True)
    with pytest.raises(smc.FilterError, match=r"^site 'obs' left no weight at depth 6 in problems \[2\]$"):
        smc.run(Walk(), bad, width=30, depth=12, problems=4, strict=True)

    for what in (jnp.nan, jnp.inf):

        def spoiled(view: View, what: float = what) -> Array:
            return jnp.where((view.problem == 1) & (view.t > 3), what, 0.0) + 0 * view.state["h"]

        with pytest.raises(smc.FilterError, match=r"^the potential is NaN or \+inf at depth 4 in problems \[1\]$"):
            smc.run(Walk(), bad, width=30, depth=12, problems=4, potential=spoiled, strict=True)
    bad[3, 0] = np.inf
    with pytest.raises(smc.FilterError, match=r"^site 'first' left no weight at depth 0 in problems \[3\]$"):
        smc.run(Begins(), bad, width=30, depth=12, problems=4, strict=True)
    run = smc.run(Begins(), OBSERVED, width=30, depth=12, problems=4)
    strict = smc.run(Begins(), OBSERVED, width=30, depth=12, problems=4, strict=True)
    np.testing.assert_allclose(strict.log_normalizer, run.log_normalizer, rtol=1e-5)


def test_choices_that_make_no_sense_are_refused_in_one_sentence():
    for choices, words in [
        ({"width": 0}, "width must be an integer of at least 1, got 0"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"depth": [3, 4]}, "or 4 of them"),
        ({"islands": 1.5}, "islands must be an integer"),
        ({"keep": "all"}, "keep must be"),
        ({"problems": 3}, r"every array argument must be \[3, ...\]"),
        ({"guide": object()}, "a PlainModel proposes in its own step"),
        ({"potential": 3}, "a potential must be a function of the view"),
        ({"potential": lambda view: view.state[0]}, r"must return log psi \[30, 4\]"),
        ({"key": "a"}, "key must be an integer seed"),
        ({"collect": {"top": lambda state, weights: state}}, r"collect\['top'\] must return an array \[4, ...\]"),
    ]:
        with pytest.raises(ValueError, match=words):
            smc.run(PLAIN, OBSERVED, **({"width": 30, "depth": 12, "problems": 4} | choices))
    with pytest.raises(ValueError, match="depth must be given"):
        smc.run(PLAIN, OBSERVED, problems=4)
    with pytest.raises(ValueError, match="object has no init"):
        smc.run(object(), OBSERVED, depth=3)
    with pytest.raises(ValueError, match="a chain's guide needs evidence="):
        smc.run(line(), SERIES, guide=LinearGaussianSmoother(line()))
    with pytest.raises(ValueError, match="needs a halt head, and LinearGaussian has none"):
        smc.run(line(), SERIES, halt_probability=0.5)


def test_resampling_acts_only_at_the_depths_it_is_given():
    run = smc.run(
        PLAIN, OBSERVED, width=30, depth=12, problems=4, keep="latents", resample=adaptive(systematic, 1.0, 4, 6)
    )
    moved = (run.ancestors != np.arange(30)[:, None]).any((1, 2))
    assert np.flatnonzero(moved).tolist() == [4, 5, 6]  # rows count from 0: at the beginning of steps 5, 6 and 7


def test_the_filter_needs_no_torch():
    program = "import sys, probgram.inference.on_jax.conditional; assert not {'torch', 'pyro'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)
