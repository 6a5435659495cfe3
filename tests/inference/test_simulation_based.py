"""Ranks of the truth are uniform where the inference is right, and give a wrong one away.

A right inference is called wrong where the smallest p-value, times their number, is below 1e-3: that is the
probability of a false alarm, at most. Wrong ones are asked to be far below it.
"""

import pyro
import pytest
import torch
from pyro import distributions as dist
from torch import Tensor

from probgram.inference import conditional as schemes
from probgram.inference import simulation_based, smc
from probgram.inference.genealogy import backward_simulation
from probgram.inference.kernels import PlainModel
from probgram.inference.simulation_based import Simulated, _sweeps, conditioned, filtered, simulate
from probgram.models import HiddenMarkov, LinearGaussian

ALARM = 1e-3
A, Q, R, DEPTH, B = 0.9, 0.5, 0.3, 3, 1_000
BLANK = torch.zeros(B, 0, 1, dtype=torch.float64)


def chain(q: float = Q, r: float = R) -> LinearGaussian:
    def one(number: float) -> Tensor:
        return torch.tensor([[number]], dtype=torch.float64)

    return LinearGaussian(one(A), one(q), one(1.0), one(r))


def markov(stay: float = 0.8) -> HiddenMarkov:
    rows = torch.tensor([[stay, 1 - stay, 0], [0.1, stay, 0.9 - stay], [0.3, 0.3, 0.4]], dtype=torch.float64)
    emission = torch.tensor([[0.7, 0.3], [0.4, 0.6], [0.1, 0.9]], dtype=torch.float64)
    return HiddenMarkov(torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64), rows, emission)


def kalman(q: float = Q, r: float = R, shift: float = 0.0):
    """An inference that draws from the exact filtering law of every step."""

    def infer(simulated: Simulated, draws: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        mean, variance, rows = torch.zeros(len(simulated.series), dtype=torch.float64), q, []
        for observed in simulated.series[..., 0].T:
            gain = variance / (variance + r)
            mean, variance = mean + gain * (observed - mean), (1 - gain) * variance
            noise = torch.randn(draws, len(mean), generator=generator, dtype=torch.float64)
            rows.append(mean + shift + variance**0.5 * noise)
            mean, variance = A * mean, A * A * variance + q
        return torch.stack(rows, 1)[..., None]

    return infer


class LocalLevel:
    """A Pyro model that is no chain."""

    def __init__(self, noise: float = 0.5) -> None:
        self.noise = noise

    def init(self, y):
        return pyro.sample("x", dist.Normal(0.0, 1.0))

    def step(self, x, t, y):
        x = pyro.sample(f"x_{t}", dist.Normal(x, 0.3))
        pyro.sample(f"y_{t}", dist.Normal(x, self.noise), obs=y[..., t] if t < y.shape[-1] else None)
        return x


# -- what is simulated ----------------------------------------------------------------------------------------


def test_truths_and_series_have_the_moments_of_the_model():
    """Four standard errors of 1,000 replicates, four comparisons: a false alarm with probability 3e-4."""
    series, truth = simulate(chain(), BLANK, DEPTH)
    assert series.shape == (B, DEPTH, 1) and truth.states.shape == (DEPTH, B, 1)
    variance = Q
    for t in range(DEPTH):
        squares = truth.states[t, :, 0] ** 2
        assert abs(squares.mean() - variance) < 4 * squares.std() / B**0.5
        variance = A * A * variance + Q
    errors = (series[..., 0] - truth.states[..., 0].T).reshape(-1) ** 2
    assert abs(errors.mean() - R) < 4 * errors.std() / len(errors) ** 0.5


def test_a_truth_carries_the_noise_that_made_it():
    _, truth = simulate(chain(), BLANK, DEPTH)
    state = torch.zeros(B, 1, dtype=torch.float64)
    assert [list(sites) for sites in truth.noise] == [[], ["eps_0"], ["eps_1"], ["eps_2"]]
    for t in range(DEPTH):
        state = A * state + truth.noise[t + 1][f"eps_{t}"]
        assert torch.allclose(state, truth.states[t])


def test_the_same_seed_simulates_the_same():
    first, again, other = (simulate(chain(), BLANK, DEPTH, seed=seed).series for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


# -- ranks ----------------------------------------------------------------------------------------------------


def test_ranks_count_the_draws_below_the_truth():
    """An inference that says -1, -1 and 1 where the truth is 0: rank 2."""

    def infer(simulated, draws, seed):
        rows = torch.tensor([-1.0, -1.0, 1.0])[:, None, None, None]
        return simulated.truth.states + rows

    found = simulation_based(chain(), BLANK[:50], infer, DEPTH, draws=3)
    assert found.ranks.shape == (DEPTH, 1, 50) and (found.ranks == 2).all() and found.draws == 3
    assert found.chi_square.shape == (DEPTH, 1) and found.chi_square[0, 0] == pytest.approx(3 * 50)
    assert found.smallest < 1e-20


def test_ties_are_broken_by_chance():
    """Draws that equal the truth: every rank alike, which the chi-square sees as uniform."""

    def infer(simulated, draws, seed):
        return simulated.truth.states.expand(draws, *simulated.truth.states.shape)

    assert ALARM < simulation_based(chain(), BLANK, infer, DEPTH, draws=9).smallest


def test_exact_draws_of_kalmans_filter_have_uniform_ranks():
    assert simulation_based(chain(), BLANK, kalman(), DEPTH).smallest > ALARM


@pytest.mark.parametrize(
    ("wrong", "where"),
    [({"r": 0.1}, "ends"), ({"r": 0.9}, "middle"), ({"q": 0.25}, "ends"), ({"shift": 0.2}, "low")],
    ids=["noise too small", "noise too large", "too stiff", "shifted"],
)
def test_a_wrong_posterior_is_caught_and_its_histogram_says_how_it_is_wrong(wrong, where):
    found = simulation_based(chain(), BLANK, kalman(**wrong), DEPTH)
    assert found.smallest < 1e-6
    rank = found.ranks / 19
    if where == "low":
        assert rank.mean() < 0.45
    else:
        assert (rank.var() > 1 / 12) == (where == "ends")


def test_the_particle_filter_has_uniform_ranks_and_one_with_a_wrong_noise_is_caught():
    assert simulation_based(chain(), BLANK, filtered(chain(), 300), DEPTH, draws=9).smallest > ALARM
    assert simulation_based(chain(), BLANK, filtered(chain(r=0.9), 300), DEPTH, draws=9).smallest < 1e-6
    assert simulation_based(chain(), BLANK, filtered(chain(), 2), DEPTH, draws=9).smallest < 1e-6  # far too narrow


def test_discrete_states_are_ranked_with_their_ties():
    blank = torch.zeros(B, 0, dtype=torch.long)
    assert simulation_based(markov(), blank, filtered(markov(), 300), 4, draws=9).smallest > ALARM
    assert simulation_based(markov(), blank, filtered(markov(0.4), 300), 4, draws=9).smallest < 1e-6


def test_a_model_that_is_no_chain_is_tested_likewise():
    blank = torch.zeros(B, 0)
    assert simulation_based(LocalLevel(), blank, filtered(LocalLevel(), 300), 3, 9, site="y").smallest > ALARM
    wrong = filtered(LocalLevel(1.5), 300)
    assert simulation_based(LocalLevel(), blank, wrong, 3, 9, site="y").smallest < 1e-6


def test_backward_simulation_is_an_inference_of_ones_own():
    def smoothed(simulated, draws, seed):
        run = smc.run(chain(), simulated.series, width=300, depth=DEPTH, seed=seed, keep="latents")
        return backward_simulation(chain(), run, draws, simulated.series, seed=seed).movedim(1, 0)

    assert simulation_based(chain(), BLANK, smoothed, DEPTH, draws=9).smallest > ALARM


# -- the conditional filter -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", [schemes.multinomial, schemes.killing, schemes.systematic])
def test_the_conditional_filter_has_uniform_ranks_at_any_width(scheme):
    """Three particles: nothing like a posterior, and yet the ranks are exactly uniform."""
    infer = conditioned(chain(), 3, resample=scheme, ess_threshold=1.0)
    assert simulation_based(chain(), BLANK, infer, DEPTH, draws=9).smallest > ALARM


def test_a_conditional_filter_with_a_wrong_noise_is_caught():
    """Sweeps start from the truth and leave it slowly: more of them see more."""
    infer = conditioned(chain(r=1.5), 8)
    assert simulation_based(chain(), BLANK, infer, DEPTH, draws=19).smallest < 1e-6


def test_a_truth_that_always_came_first_would_not_do():
    """Why it is put at a random place: sweeps that depend on each other stray to one side of where they began."""

    def infer(simulated, draws, seed):
        return _sweeps(chain(), 2, simulated, draws, seed, {})

    blank = torch.zeros(10_000, 0, 1, dtype=torch.float64)
    assert simulation_based(chain(), blank, conditioned(chain(), 2), DEPTH, draws=4).smallest > ALARM
    assert simulation_based(chain(), blank, infer, DEPTH, draws=4).smallest < 1e-6


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: simulate(chain(), torch.zeros(4, 2, 1), 3), r"a series of no length .* got shape \[4, 2, 1\]"),
        (lambda: simulate(chain(), torch.zeros(1, 0, 1), 3), "at least 2 replicates"),
        (lambda: simulate(chain(), BLANK, 0), "depth must be at least 1"),
        (lambda: simulate(chain(), BLANK, 3, site="y"), "step 0 must sample one site 'y' .* got eps_0, obs_0"),
        (
            lambda: simulate(PlainModel(lambda n, y: n, lambda s, t, n, y: (s, s)), BLANK, 3),
            "a PlainModel does not draw observations",
        ),
        (lambda: simulation_based(chain(), BLANK, kalman(), 3, draws=0), "draws must be at least 1, got 0"),
        (
            lambda: simulation_based(chain(), BLANK, lambda *a: torch.zeros(2, 2), 3),
            r"the inference must return states \[19, 3, 1000, 1\]",
        ),
        (lambda: conditioned(chain(), 3, ancestor_sampling=True), "need reversible sweeps"),
    ],
)
def test_bad_input_is_one_sentence(act, message):
    with pytest.raises(ValueError, match=message):
        act()
