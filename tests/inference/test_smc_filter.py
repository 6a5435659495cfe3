"""Pyro's published filter models run unchanged, agree with Kalman and with Pyro's filter, and scale further."""

import math

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro.infer import SMCFilter as PyroFilter
from torch import Tensor

from probgram.inference.smc import FilterError
from probgram.inference.smc_filter import SMCFilter

ROTATION = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])


class Oscillator:
    """The noisy harmonic oscillator of Pyro's tutorial: z' ~ N(z A, 3 I), y ~ N(z_0, 1)."""

    def init(self, state, initial):
        self.t = 0
        state["z"] = pyro.sample("z_init", dist.Delta(initial, event_dim=1))

    def step(self, state, y=None):
        self.t += 1
        state["z"] = pyro.sample(
            f"z_{self.t}", dist.Normal(state["z"] @ ROTATION, torch.full((2,), 3.0)).to_event(1)
        )
        return pyro.sample(f"y_{self.t}", dist.Normal(state["z"][..., 0], 1.0), obs=y)


class OscillatorGuide:
    """A proposal that knows the next y."""

    def init(self, state, initial):
        self.t = 0
        pyro.sample("z_init", dist.Delta(initial, event_dim=1))

    def step(self, state, y=None):
        self.t += 1
        loc = state["z"] @ ROTATION
        loc = torch.stack([0.2 * loc[..., 0] + 0.8 * y, loc[..., 1]], -1)
        scale = torch.tensor([1.5, 3.5])
        pyro.sample(f"z_{self.t}", dist.Normal(loc, scale).to_event(1))


class WritingGuide(OscillatorGuide):
    """The same, and writes what it drew into the state."""

    def step(self, state, y=None):
        super().step(state, y)
        state["z"] = state["z"] + 100.0
        state["seen"] = y.expand(len(state["z"]))


INITIAL = torch.tensor([1.0, 0.0])
SERIES = torch.tensor([0.5, 2.0, -3.0, -4.5, 1.0, 6.0, 2.5, -5.0, -1.0, 3.0])


def kalman(series: Tensor) -> tuple[Tensor, Tensor]:
    """Exact mean of the last state and log evidence."""
    a, mean, cov = ROTATION.double(), INITIAL.double(), torch.zeros(2, 2).double()
    total = torch.zeros(()).double()
    for y in series.double():
        mean, cov = mean @ a, a.T @ cov @ a + 9 * torch.eye(2).double()
        spread = cov[0, 0] + 1
        total += dist.Normal(mean[0], spread.sqrt()).log_prob(y)
        gain = cov[:, 0] / spread
        mean, cov = mean + gain * (y - mean[0]), cov - gain[:, None] * cov[None, 0]
    return mean, total


def filtered(filter_class, guide, n: int, **options):
    smc = filter_class(Oscillator(), guide, num_particles=n, max_plate_nesting=0, **options)
    smc.init(INITIAL)
    for y in SERIES:
        smc.step(y=y)
    return smc


def within(values: Tensor, expected, errors: float = 4.0) -> None:
    """The mean over runs (first dimension) is within so many standard errors."""
    error = values.std(0) / math.sqrt(len(values))
    assert ((values.mean(0) - expected).abs() <= errors * error + 1e-9).all(), (values.mean(0), expected, error)


@pytest.mark.parametrize("guide", [None, OscillatorGuide(), WritingGuide()])
def test_the_oscillator_has_kalmans_mean_and_an_unbiased_normaliser(guide):
    mean, log_evidence = kalman(SERIES)
    runs = [filtered(SMCFilter, guide, 2000, seed=seed) for seed in range(20)]
    within(torch.stack([run.get_empirical()["z"].mean for run in runs]), mean.float())
    within((torch.stack([run.log_evidence for run in runs]) - log_evidence).exp(), 1.0)


def test_it_agrees_with_pyros_filter_in_law():
    theirs = torch.stack(
        [filtered(PyroFilter, OscillatorGuide(), 1000).get_empirical()["z"].mean for _ in range(12)]
    )
    ours = torch.stack(
        [filtered(SMCFilter, OscillatorGuide(), 1000, seed=s).get_empirical()["z"].mean for s in range(12)]
    )
    error = ((theirs.var(0) + ours.var(0)) / 12).sqrt()
    assert ((theirs.mean(0) - ours.mean(0)).abs() < 4 * error).all()


def test_what_a_guide_writes_stays_but_the_model_does_not_see_it():
    run = filtered(SMCFilter, WritingGuide(), 500, seed=0)
    assert (run.state["seen"] == SERIES[-1]).all()
    assert run.state["z"].abs().max() < 50


def test_a_hundred_thousand_particles_work():
    mean, log_evidence = kalman(SERIES)
    run = filtered(SMCFilter, None, 100_000, seed=0, ess_threshold=1.0)
    assert torch.allclose(run.get_empirical()["z"].mean, mean.float(), atol=0.05)
    assert abs(run.log_evidence - log_evidence) < 0.05


class Plated:
    """Pyro's own test model: constants drawn by `init`, a plate in the step, keyword arguments."""

    size, plate = 2, 3

    def init(self, state):
        self.t = 0
        state["x_mean"] = pyro.sample("x_mean", dist.Normal(0.0, 1.0))
        state["y_mean"] = pyro.sample(
            "y_mean", dist.MultivariateNormal(torch.zeros(self.size), torch.eye(self.size))
        )

    def step(self, state, x=None, y=None):
        v = pyro.sample(f"v_{self.t}", dist.Normal(0.0, 1.0))
        with pyro.plate("plate", self.plate):
            w = pyro.sample(f"w_{self.t}", dist.Normal(v, 1.0))
            x = pyro.sample(f"x_{self.t}", dist.Normal(state["x_mean"] + w, 1.0), obs=x)
            loc = state["y_mean"] + w.unsqueeze(-1)
            y = pyro.sample(f"y_{self.t}", dist.MultivariateNormal(loc, torch.eye(self.size)), obs=y)
        self.t += 1
        return x, y


class PlatedGuide(Plated):
    def init(self, state):
        self.t = 0
        pyro.sample("x_mean", dist.Normal(0.0, 2.0))
        pyro.sample("y_mean", dist.MultivariateNormal(torch.zeros(self.size), 2 * torch.eye(self.size)))

    def step(self, state, x=None, y=None):
        v = pyro.sample(f"v_{self.t}", dist.Normal(0.0, 2.0))
        with pyro.plate("plate", self.plate):
            pyro.sample(f"w_{self.t}", dist.Normal(v, 2.0))
        self.t += 1


@pytest.mark.parametrize("nesting", [1, 2])
def test_plates_of_the_model_are_summed_over(nesting):
    """One step is a Gaussian whose evidence is known: x and y are jointly normal."""
    x, y = torch.tensor([0.3, -0.5, 1.0]), torch.tensor([[0.2, 0.1], [1.0, -1.0], [0.0, 2.0]])
    # Columns: x_mean, y_mean (2), v, w (3), each N(0, 1) before; rows: x (3), then y (3 x 2).
    design = torch.zeros(9, 7).double()
    for i in range(3):
        rows = [i, 3 + 2 * i, 4 + 2 * i]
        design[rows, 3] = 1.0
        design[rows, 4 + i] = 1.0
        for row, column in zip(rows, range(3), strict=True):
            design[row, column] = 1.0
    covariance = design @ design.T + torch.eye(9).double()
    seen = torch.cat([x, y.flatten()]).double()
    exact = dist.MultivariateNormal(torch.zeros(9).double(), covariance).log_prob(seen)
    for guide in (None, PlatedGuide()):
        runs = []
        for seed in range(20):
            smc = SMCFilter(Plated(), guide, 2000, nesting, seed=seed)
            smc.init()
            assert set(smc.state) == {"x_mean", "y_mean"}
            smc.step(x, y=y)
            assert smc.state["y_mean"].shape == (2000, *[1] * nesting, 2)
            runs.append((smc.log_evidence - exact).exp())
        within(torch.stack(runs), 1.0)


class RandomWalk:
    """Pyro's Gaussian filter test: a walk in four dimensions, all of them seen."""

    def init(self, state):
        state["z"] = pyro.sample("z_init", FIRST)
        self.t = 0

    def step(self, state, datum=None):
        state["z"] = pyro.sample(f"z_{self.t}", dist.MultivariateNormal(state["z"], scale_tril=torch.eye(4)))
        state[f"z_{self.t}"] = state["z"]  # a state may grow
        pyro.sample(f"obs_{self.t}", dist.MultivariateNormal(state["z"], scale_tril=2 * torch.eye(4)), obs=datum)
        self.t += 1


FIRST = dist.MultivariateNormal(torch.zeros(4), scale_tril=3 * torch.eye(4))


def test_a_gaussian_walk_matches_pyros_exact_filter_at_every_step():
    eye = torch.eye(4)
    noise, seen = dist.MultivariateNormal(torch.zeros(4), eye), dist.MultivariateNormal(torch.zeros(4), 4 * eye)
    data = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).cumsum(0) * 2
    runs = [SMCFilter(RandomWalk(), None, 2000, 0, seed=seed) for seed in range(16)]
    for run in runs:
        run.init()
    for t, datum in enumerate(data):
        for run in runs:
            run.step(datum)
        exact = dist.GaussianHMM(FIRST, eye, noise, eye, seen).filter(data[: t + 1])
        empirical = [run.get_empirical() for run in runs]
        assert set(empirical[0]) == {"z", *(f"z_{s}" for s in range(t + 1))}
        within(torch.stack([e["z"].mean for e in empirical]), exact.mean, 4.5)
    hmm = dist.GaussianHMM(FIRST, eye, noise, eye, seen, duration=6)
    within((torch.stack([run.log_evidence for run in runs]) - hmm.log_prob(data)).exp(), 1.0)


def test_several_series_are_filtered_side_by_side():
    series = torch.stack([SERIES, SERIES.flip(0), 0.5 * SERIES])
    exact = torch.stack([kalman(y)[1] for y in series])
    errors = []
    for seed in range(12):
        smc = SMCFilter(Oscillator(), None, 1000, problems=3, seed=seed)
        smc.init(INITIAL.expand(3, 2))
        for y in series.T:
            smc.step(y)
        assert smc.state["z"].shape == (1000, 3, 2) and smc.state.log_weights.shape == (1000, 3)
        assert smc.get_empirical()["z"].mean.shape == (3, 2)
        errors.append((smc.log_evidence - exact).exp())
    within(torch.stack(errors), 1.0)


def test_missing_observations_weigh_nothing():
    smc = SMCFilter(Oscillator(), None, 50, seed=0)
    smc.init(INITIAL)
    smc.step(torch.tensor(math.nan))
    assert smc.log_normalizer == 0


class Counter:
    """Keeps no state: only the normaliser is of interest."""

    def init(self, state):
        pass

    def step(self, state, y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)
        pyro.factor("bonus", torch.zeros_like(z))


def test_a_model_may_keep_no_state_and_a_factor_is_no_evidence():
    smc = SMCFilter(Counter(), None, 100_000, seed=0)
    smc.init()
    smc.step(torch.tensor(0.5))
    smc.step(torch.tensor(0.5))
    exact = 2 * dist.Normal(0.0, math.sqrt(2)).log_prob(torch.tensor(0.5))
    assert abs(smc.log_normalizer - exact) < 0.02 and not smc.state
    with pytest.raises(ValueError, match="use log_normalizer"):
        smc.log_evidence  # noqa: B018


def test_the_seed_is_pyros_unless_one_is_given():
    means = []
    for _ in range(2):
        pyro.set_rng_seed(3)
        means.append(filtered(SMCFilter, None, 50).get_empirical()["z"].mean)
    assert torch.equal(means[0], means[1])
    assert not torch.equal(means[0], filtered(SMCFilter, None, 50).get_empirical()["z"].mean)


def test_what_is_written_between_steps_counts():
    smc = SMCFilter(Oscillator(), None, 200, seed=0)
    smc.init(INITIAL)
    smc.state["z"] = torch.full((200, 2), 1000.0)
    smc.step(torch.tensor(1000.0))
    assert smc.state["z"][:, 1].min() > 900


class Misspelled(OscillatorGuide):
    def step(self, state, y=None):
        pyro.sample("zz", dist.Normal(state["z"], 1.0).to_event(1))


class Forgetful(OscillatorGuide):
    """Leaves out a site: it comes from the prior, as in Pyro."""

    def step(self, state, y=None):
        pass


class Shapeless(Oscillator):
    def init(self, state, initial):
        self.t = 0
        state["z"] = initial


def test_wrong_use_says_what_is_wrong():
    smc = SMCFilter(Oscillator(), None, 10)
    for use in (lambda: smc.step(SERIES[0]), smc.get_empirical, lambda: smc.log_evidence):
        with pytest.raises(ValueError, match="comes after init"):
            use()
    with pytest.raises(ValueError, match="guide must have init and step, object has no init"):
        SMCFilter(Oscillator(), object(), 10)
    with pytest.raises(ValueError, match="num_particles must be an integer of at least 1, got 0"):
        SMCFilter(Oscillator(), None, 0)
    with pytest.raises(ValueError, match="ess_threshold must be above 0"):
        SMCFilter(Oscillator(), None, 10, ess_threshold=0)
    smc = SMCFilter(Oscillator(), Misspelled(), 10)
    smc.init(INITIAL)
    with pytest.raises(ValueError, match="the guide samples 'zz', which the model's step does not"):
        smc.step(SERIES[0])
    with pytest.raises(ValueError, match=r"state\['z'\] must begin with the particles, \[10\], got shape \[2\]"):
        SMCFilter(Shapeless(), None, 10).init(INITIAL)


def test_a_site_that_the_guide_leaves_out_comes_from_the_prior():
    plain, left_out = (filtered(SMCFilter, guide, 50, seed=0) for guide in (None, Forgetful()))
    assert torch.equal(plain.state["z"], left_out.state["z"])


class Impossible(Oscillator):
    def step(self, state, y=None):
        z = super().step(state, y)
        pyro.sample("inside", dist.Delta(torch.zeros(())), obs=y)
        return z


def test_the_site_that_leaves_no_weight_is_named():
    smc = SMCFilter(Impossible(), None, 10)
    smc.init(INITIAL)
    smc.step(torch.tensor(0.0))
    with pytest.raises(FilterError, match="after step 2: site 'inside' gives none"):
        smc.step(torch.tensor(1.0))
