"""Forecasts against the Kalman predictive law; averages within four standard errors (6e-5 false alarms each)."""

from typing import Any

import pyro
import pytest
import torch
from pyro import distributions as dist
from torch import Tensor

from probgram.inference import smc
from probgram.inference.forecasting import forecast
from probgram.models import LinearGaussian

A, Q, R, STEPS = 0.9, 0.5, 0.3, 4


def chain() -> LinearGaussian:
    def one(number: float) -> Tensor:
        return torch.tensor([[number]], dtype=torch.float64)

    return LinearGaussian(one(A), one(Q), one(1.0), one(R))


def kalman(series: Tensor) -> tuple[Tensor, float]:
    """Filtering mean `[B]` and variance after the last observation."""
    mean, variance = torch.zeros(len(series), dtype=torch.float64), Q
    for t in range(series.shape[1]):
        gain = variance / (variance + R)
        mean, variance = mean + gain * (series[:, t, 0] - mean), (1 - gain) * variance
        if t + 1 < series.shape[1]:
            mean, variance = A * mean, A * A * variance + Q
    return mean, variance


def test_states_and_observations_follow_the_predictive_law() -> None:
    """3,000 replicates of one series: means of state and observation at every step, and the variance at the last.

    A filter's means are biased by O(1/N), Z times its means is not: E[Z (mean - exact)] = 0. Nine comparisons.
    """
    series = torch.tensor([0.3, -0.5, 1.0, 1.5], dtype=torch.float64).reshape(1, -1, 1).expand(3_000, -1, -1)
    run = smc.run(chain(), series, width=50, depth=4)
    ahead = forecast(chain(), run, STEPS, series, seed=1)
    assert ahead.states.shape == (STEPS, 50, 3_000, 1) and ahead.sites["obs"].shape == ahead.states.shape
    z = run.log_evidence[-1].exp()

    def centred(errors: Tensor) -> bool:
        errors = z * errors
        return bool(errors.mean().abs() < 4 * errors.std() / len(errors) ** 0.5)

    mean, variance = kalman(series[:1])
    for step in range(STEPS):
        mean, variance = A * mean, A * A * variance + Q
        assert centred(ahead.mean("obs")[step, :, 0] - mean)
        assert centred((ahead.weights * ahead.states[step, ..., 0]).sum(0) - mean)
        assert not centred(ahead.mean("obs")[step, :, 0] - mean - 0.05)  # the test sees that much
    squares = (ahead.weights * (ahead.sites["obs"][-1, ..., 0] - mean) ** 2).sum(0)
    assert centred(squares - (variance + R))


class Guarded:
    """A model of a user's own that observes as far as its series goes."""

    def init(self, series: Tensor) -> Tensor:
        return pyro.sample("z", dist.Normal(0.0, 1.0))

    def step(self, state: Tensor, t: int, series: Tensor) -> Tensor:
        state = pyro.sample(f"z_{t}", dist.Normal(A * state, 1.0))
        pyro.sample(f"y_{t}", dist.Normal(state, 1.0), obs=series[t] if t < len(series) else None)
        return state


class Unguarded(Guarded):
    """The same, without a look at the end."""

    def step(self, state: Tensor, t: int, series: Tensor) -> Tensor:
        state = pyro.sample(f"z_{t}", dist.Normal(A * state, 1.0))
        pyro.sample(f"y_{t}", dist.Normal(state, 1.0), obs=series[t])
        return state


def test_a_model_of_ones_own_forecasts() -> None:
    series = torch.ones(3)
    run = smc.run(Guarded(), series, width=100, depth=3)
    ahead = forecast(Guarded(), run, 2, series)
    assert ahead.sites["y"].shape == (2, 100, 1)
    assert torch.equal(ahead.weights, run.weights[-1])


@pytest.mark.parametrize(
    ("model", "depth", "steps", "message"),
    [
        (Unguarded(), 3, 2, "step 3 reads past the end of the series: give its observed sites obs=None there"),
        (Guarded(), 2, 1, "step 2 observes something: a forecast begins where the series ends"),
        (Guarded(), 3, 0, "steps must be at least 1, got 0"),
    ],
)
def test_what_is_no_forecast_says_so(model: Any, depth: int, steps: int, message: str) -> None:
    run = smc.run(model, torch.ones(3), width=10, depth=depth)
    with pytest.raises(ValueError, match=message):
        forecast(model, run, steps, torch.ones(3))
