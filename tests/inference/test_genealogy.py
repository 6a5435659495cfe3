"""Lines and smoothing: against tracing by hand, an independent Kalman smoother, and NumPy.

Smoothing estimates are biased by O(1/N), but Z times the estimate of a run is unbiased for Z times the truth. So
the tests average Z_b (estimate_b - exact) over replicate runs, which has mean exactly 0, and allow 5 standard
errors: a false alarm below 2e-5 for the up to 24 figures of a test together (normal approximation).
"""

import math

import numpy as np
import pyro
import pytest
import torch
from pyro import distributions as dist
from torch import Tensor

from probgram.inference import smc
from probgram.inference.genealogy import (
    backward_simulation,
    fixed_lag,
    genealogical,
    mean,
    quantiles,
    unique_ancestors,
    variance,
)
from probgram.inference.kernels import PlainModel
from probgram.models import HiddenMarkov, LinearGaussian

TIME, REPLICATES, WIDTH = 6, 2_000, 30
TABLES = {
    "dynamics": [[0.8, 0.3], [-0.2, 0.7]],
    "noise": [[0.5, 0.1], [0.1, 0.3]],
    "emission": [[1.0, 0.5]],
    "emission_noise": [[0.4]],
    "mean": [0.5, -0.5],
    "covariance": [[1.0, 0.2], [0.2, 0.8]],
}
SERIES = [[0.3], [1.4], [-0.7], [0.9], [2.0], [-0.4]]


def gaussian() -> tuple[LinearGaussian, Tensor]:
    chain = LinearGaussian(**{name: torch.tensor(rows, dtype=torch.float64) for name, rows in TABLES.items()})
    return chain, torch.tensor(SERIES, dtype=torch.float64)


def rauch_tung_striebel(series: list[list[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Means and variances of p(h_t | x_{1:T}), `[T, D]`, by the textbook, in NumPy (Rauch et al. 1965)."""
    a, q, c, r, m, p = (np.array(rows) for rows in TABLES.values())
    predicted, filtered = [], []
    for t, x in enumerate(series):
        if t:
            m, p = a @ m, a @ p @ a.T + q
        predicted.append((m, p))
        gain = p @ c.T @ np.linalg.inv(c @ p @ c.T + r)
        m, p = m + gain @ (np.array(x) - c @ m), p - gain @ c @ p
        filtered.append((m, p))
    smoothed = [filtered[-1]]
    for t in reversed(range(len(series) - 1)):
        (m, p), (ahead_m, ahead_p), (next_m, next_p) = filtered[t], predicted[t + 1], smoothed[-1]
        back = p @ a.T @ np.linalg.inv(ahead_p)
        smoothed.append((m + back @ (next_m - ahead_m), p + back @ (next_p - ahead_p) @ back.T))
    return np.array([m for m, _ in smoothed[::-1]]), np.array([np.diag(p) for _, p in smoothed[::-1]])


@pytest.fixture(scope="module")
def replicates():
    """The same series many times, as problems side by side."""
    chain, series = gaussian()
    x = series.expand(REPLICATES, TIME, 1)
    return chain, x, smc.run(chain, x, width=WIDTH, depth=TIME, keep="latents", seed=1)


def errors(estimates: Tensor, exact: np.ndarray, log_normalizer: Tensor) -> Tensor:
    """Z-weighted mean error in standard errors; estimates `[S, B, D]`, exact `[S, D]`, log Z `[S, B]`."""
    share = (log_normalizer - log_normalizer.max()).exp()
    weighted = share[..., None] * (estimates - torch.as_tensor(exact)[:, None])
    return weighted.mean(1) / (weighted.std(1) / REPLICATES**0.5)


def small_run(seed: int = 0, **choices):
    chain, series = gaussian()
    x = torch.stack([series, series.flip(0), -series])
    return smc.run(chain, x, width=7, depth=TIME, keep="latents", seed=seed, **choices)


# -- lines ----------------------------------------------------------------------------------------------------


def test_paths_are_what_tracing_ancestors_by_hand_gives():
    run = small_run()
    assert run.ancestors is not None
    paths = genealogical(run)
    assert paths.states.shape == (TIME, 7, 3, 2) and paths.weights.shape == (7, 3)
    assert torch.equal(paths.weights, run.weights[-1])
    for lag in range(TIME + 2):
        lagged = fixed_lag(run, lag)
        for b in range(3):
            for t in range(TIME):
                end = min(t + lag, TIME - 1)
                assert torch.equal(lagged.weights[t, :, b], run.weights[end, :, b])
                for i in range(7):
                    slot = i
                    for s in range(end, t, -1):
                        slot = int(run.ancestors[s, slot, b])
                    assert torch.equal(lagged.states[t, i, b], run.states[t, slot, b])
    assert torch.equal(paths.states, lagged.states)  # a lag past the end is the whole line


def test_unique_ancestors_are_counted():
    run = small_run()
    lines, counts = run.lines(), unique_ancestors(run)
    assert counts.tolist() == [[len(set(lines[s, :, b].tolist())) for b in range(3)] for s in range(TIME)]
    assert counts[-1].tolist() == [7, 7, 7] and counts[0].max() < 7
    assert unique_ancestors(small_run(resample=None)).eq(7).all()


def test_without_resampling_lines_are_slots():
    run = small_run(resample=None)
    assert torch.equal(genealogical(run).states, run.states)
    assert torch.equal(fixed_lag(run, 2).states, run.states)


# -- smoothing ------------------------------------------------------------------------------------------------


def test_genealogical_means_and_variances_are_those_of_the_kalman_smoother(replicates):
    _, _, run = replicates
    means, variances = rauch_tung_striebel(SERIES)
    paths, z = genealogical(run), run.log_normalizer[-1].expand(TIME, -1)
    assert (errors(paths.collect(mean()), means, z).abs() < 5).all()
    second = paths.collect(mean(lambda h: h.square()))
    assert (errors(second, variances + means**2, z).abs() < 5).all()
    # What the test can tell: the filter, which has not seen what comes after, is far off.
    assert errors(fixed_lag(run, 0).collect(mean()), means, z)[:-1].abs().max() > 20


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_fixed_lag_means_are_those_of_a_kalman_smoother_that_saw_as_much(replicates, lag):
    _, _, run = replicates
    exact = [rauch_tung_striebel(SERIES[: min(t + lag + 1, TIME)])[0][t] for t in range(TIME)]
    seen = [min(t + lag, TIME - 1) for t in range(TIME)]
    found = errors(fixed_lag(run, lag).collect(mean()), np.array(exact), run.log_normalizer[seen])
    assert (found.abs() < 5).all()


def test_backward_simulation_draws_the_kalman_smoother_s_law(replicates):
    chain, x, run = replicates
    means, variances = rauch_tung_striebel(SERIES)
    paths = backward_simulation(chain, run, 10, x, seed=3)
    assert paths.shape == (TIME, 10, REPLICATES, 2)
    z = run.log_normalizer[-1].expand(TIME, -1)
    assert (errors(paths.mean(1), means, z).abs() < 5).all()
    assert (errors(paths.square().mean(1), variances + means**2, z).abs() < 5).all()


def test_backward_simulation_has_many_early_states_where_lines_have_few():
    chain, series = gaussian()
    run = smc.run(chain, series[None], width=100, depth=TIME, keep="latents", ess_threshold=1)
    paths = backward_simulation(chain, run, 100, series[None])
    assert len(paths[0, :, 0].unique(dim=0)) > 2 * int(unique_ancestors(run)[0, 0])
    assert torch.equal(paths, backward_simulation(chain, run, 100, series[None], seed=0))
    assert not torch.equal(paths, backward_simulation(chain, run, 100, series[None], seed=1))


class Walk:
    """A foreign model whose state is a dict, with two leaves."""

    def init(self, series):
        return {"level": torch.zeros(len(series)), "steps": torch.zeros(len(series), 3)}

    def step(self, state, t, series):
        level = pyro.sample(f"level_{t}", dist.Normal(state["level"], 1.0))
        pyro.sample(f"x_{t}", dist.Normal(level, 0.5), obs=series[:, t])
        return {"level": level, "steps": state["steps"] + 1}

    def log_transition(self, state, next_state, t, series):
        assert series.shape == (2, 4)
        self.asked = [*getattr(self, "asked", []), t]
        return dist.Normal(state["level"], 1.0).log_prob(next_state["level"])


def plain_walk() -> PlainModel:
    def step(level, t, noise, series):
        level = level + noise
        return level, dist.Normal(level, 0.5).log_prob(series[:, t])

    return PlainModel(
        init=lambda noise, series: torch.zeros_like(noise),
        step=step,
        log_transition=lambda level, after, t, series: dist.Normal(level, 1.0).log_prob(after),
    )


def test_backward_simulation_serves_foreign_and_plain_models():
    series = torch.tensor([[0.5, 1.0, 2.0, 1.0], [0.0, -1.0, -1.0, 0.0]])
    run = smc.run(Walk(), series, width=50, depth=4, problems=2, keep="latents")
    model = Walk()
    paths = backward_simulation(model, run, 20, series)
    assert model.asked == [3, 2, 1]  # the first state comes from step 0, from nothing
    assert paths["level"].shape == (4, 20, 2) and paths["steps"].shape == (4, 20, 2, 3)
    assert paths["steps"][:, 0, 0, 0].tolist() == [1, 2, 3, 4]
    run = smc.run(plain_walk(), series, width=50, depth=4, problems=2, keep="latents")
    assert backward_simulation(plain_walk(), run, 20, series).shape == (4, 20, 2)


def test_impossible_transitions_are_never_drawn():
    rows = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5], [0.5, 0.0, 0.5]])
    chain = HiddenMarkov(torch.ones(3) / 3, rows, torch.tensor([[0.6, 0.4], [0.5, 0.5], [0.3, 0.7]]))
    x = torch.tensor([[0, 1, 1, 0, 1], [1, 1, 0, 0, 0]])
    run = smc.run(chain, x, width=10, depth=5, keep="latents")
    paths = backward_simulation(chain, run, 500, x)
    assert (rows[paths[:-1], paths[1:]] > 0).all()


def test_a_problem_that_ended_stands_still_going_backwards_too():
    chain, series = gaussian()
    depth = torch.tensor([3, TIME])
    run = smc.run(chain, series.expand(2, TIME, 1), width=8, depth=depth, keep="latents")
    paths = backward_simulation(chain, run, 5, series.expand(2, TIME, 1))
    assert (paths[2:, :, 0] == paths[2, :, 0]).all() and not (paths[2:, :, 1] == paths[2, :, 1]).all()


def test_transition_densities_of_state_space_chains_are_their_priors():
    chain, series = gaussian()
    before, after = torch.randn(4, 1, 3, 2).double(), torch.randn(1, 5, 3, 2).double()
    tables = {name: torch.tensor(rows, dtype=torch.float64) for name, rows in TABLES.items()}
    first = dist.MultivariateNormal(tables["mean"], tables["covariance"]).log_prob(after).expand(4, 5, 3)
    torch.testing.assert_close(chain.log_transition(before, after, 0, series), first)
    later = dist.MultivariateNormal(before @ tables["dynamics"].T, tables["noise"]).log_prob(after)
    torch.testing.assert_close(chain.log_transition(before, after, 2, series), later)
    rows = torch.tensor([[0.9, 0.1], [0.3, 0.7]])
    markov = HiddenMarkov(torch.tensor([0.2, 0.8]), rows, rows)
    state, following = torch.tensor([0, 1])[:, None], torch.tensor([0, 1])[None]
    torch.testing.assert_close(markov.log_transition(state, following, 1, series).exp(), rows)
    start = torch.tensor([[0.2, 0.8], [0.2, 0.8]])
    torch.testing.assert_close(markov.log_transition(state, following, 0, series).exp(), start)


# -- moments --------------------------------------------------------------------------------------------------


def test_moments_are_numpy_s():
    generator = torch.Generator().manual_seed(0)
    state = torch.randn(31, 4, 3, generator=generator, dtype=torch.float64)
    weights = torch.rand(31, 4, generator=generator, dtype=torch.float64)
    weights[::5] = 0
    weights /= weights.sum(0)
    levels = [0.0, 0.05, 0.5, 0.9, 1.0]
    first, second, spread = mean()(state, weights), variance()(state, weights), quantiles(levels)(state, weights)
    assert first.shape == second.shape == (4, 3) and spread.shape == (4, 5, 3)
    for b in range(4):
        for d in range(3):
            values, w = state[:, b, d].numpy(), weights[:, b].numpy()
            average = np.average(values, weights=w)
            assert float(first[b, d]) == pytest.approx(average, abs=1e-12)
            assert float(second[b, d]) == pytest.approx(np.average((values - average) ** 2, weights=w), abs=1e-12)
            order = values[w > 0].argsort()
            cumulative = w[w > 0][order].cumsum()
            for k, level in enumerate(levels):
                index = min(int(np.searchsorted(cumulative, level - 1e-9)), len(order) - 1)
                assert float(spread[b, k, d]) == values[w > 0][order][index]


def test_a_level_that_equal_weights_reach_exactly_is_reached():
    state = torch.tensor([3.0, 1.0, 2.0, 4.0])[:, None]
    weights = torch.full((4, 1), -math.log(4.0)).exp()
    assert quantiles([0.25, 0.5, 0.75, 0.76])(state, weights)[0].tolist() == [1, 2, 3, 4]
    assert quantiles(0.5)(torch.tensor([5, 7, 6, 8])[:, None], weights).tolist() == [[6.0]]


def test_moments_are_collected_and_pick_a_part_of_the_state():
    series = torch.tensor([[0.5, 1.0, 2.0, 1.0], [0.0, -1.0, -1.0, 0.0]])
    collect = {
        "mean": mean(lambda s: s["level"]),
        "variance": variance(lambda s: s["steps"]),
        "median": quantiles([0.5], of=lambda s: s["level"]),
    }
    run = smc.run(Walk(), series, width=50, depth=4, problems=2, keep="latents", collect=collect)
    shapes = {name: tuple(value.shape) for name, value in run.collected.items()}
    assert shapes == {"mean": (4, 2), "variance": (4, 2, 3), "median": (4, 2, 1)}
    assert run.collected["variance"].abs().max() < 1e-6  # all particles have made as many steps
    by_hand = (run.weights * run.states["level"]).sum(1)
    torch.testing.assert_close(run.collected["mean"].double(), by_hand, rtol=0, atol=1e-5)


def test_a_problem_without_weights_has_no_moments_and_leaves_others_alone():
    state, weights = torch.arange(6.0).reshape(3, 2), torch.tensor([[0.0, 0.5], [0.0, 0.5], [0.0, 0.0]])
    for moment in (mean(), variance(), quantiles([0.1, 0.9])):
        found = moment(state, weights)
        assert found[0].isnan().all() and not found[1].isnan().any()


# -- bad input ------------------------------------------------------------------------------------------------


def test_what_cannot_be_smoothed_is_said_in_a_sentence():
    chain, series = gaussian()
    x = series[None]
    summary = smc.run(chain, x, width=5, depth=3, keep="last")
    for smooth in (genealogical, lambda run: fixed_lag(run, 1), lambda run: backward_simulation(chain, run, 2, x)):
        with pytest.raises(ValueError, match='the run did not keep its states: run the filter with keep="latents"'):
            smooth(summary)
    run = smc.run(chain, x, width=5, depth=3, keep="latents")
    with pytest.raises(ValueError, match="lag must be at least 0, got -1"):
        fixed_lag(run, -1)
    with pytest.raises(ValueError, match="draws must be at least 1, got 0"):
        backward_simulation(chain, run, 0, x)
    with pytest.raises(ValueError, match=r"needs log p\(next \| state\), and PlainModel has no log_transition"):
        backward_simulation(PlainModel(lambda noise: noise, lambda s, t, noise: (noise, s)), run, 2)
    with pytest.raises(ValueError, match="the run has 1 problems, and the arguments 2"):
        backward_simulation(chain, run, 2, x.expand(2, -1, -1))
    tilted = smc.run(chain, x, width=5, depth=3, keep="latents", potential=lambda view: view.state[..., 0].tanh())
    with pytest.raises(ValueError, match="needs a run of the model alone, and this one has a potential"):
        backward_simulation(chain, tilted, 2, x)

    class Wrong(Walk):
        def log_transition(self, state, next_state, t, series):
            return state["level"]

    series = torch.zeros(2, 4)
    run = smc.run(Wrong(), series, width=5, depth=4, problems=2, keep="latents")
    with pytest.raises(ValueError, match=r"must return \[5, 3, 2\] here, \[N, M, B\], got shape \[5, 1, 2\]"):
        backward_simulation(Wrong(), run, 3, series)


def test_moments_name_what_they_cannot_average():
    weights = torch.full((3, 2), 1 / 3)
    with pytest.raises(ValueError, match=r"mean needs a tensor that begins with \[N, B\] = \[3, 2\], got a dict"):
        mean()({"h": weights}, weights)
    with pytest.raises(ValueError, match=r"quantiles needs a tensor .* got \[2, 3\]"):
        quantiles(0.5)(torch.zeros(2, 3), weights)
    for levels in ([], [1.2], [float("nan")]):
        with pytest.raises(ValueError, match="levels must be probabilities between 0 and 1"):
            quantiles(levels)
