"""State-space chains: exact evidence against direct computation, exact smoothers, unbiased weights.

Tests of averages allow four standard errors, estimated from the draws: a correct program with another seed
fails a one-sided comparison with probability 3e-5 and a two-sided one with 6e-5 (normal approximation).
"""

import itertools
import math

import pyro
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from probgram import Chain, Guide
from probgram.inference import guided, sample, weighted
from probgram.models import HiddenMarkov, HiddenMarkovSmoother, LinearGaussian, LinearGaussianSmoother
from probgram.state import expand

B, TIME = 3, 5  # problems, length of the series


def linear_gaussian() -> tuple[LinearGaussian, Tensor]:
    """Three latent dimensions seen in two; every matrix dense, P unlike Q, m unlike 0."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def covariance(size: int) -> Tensor:
        root = normal(size, size)
        return 0.3 * root @ root.T + 0.5 * torch.eye(size)

    chain = LinearGaussian(
        dynamics=0.6 * normal(3, 3),
        noise=covariance(3),
        emission=0.7 * normal(2, 3),
        emission_noise=covariance(2) + 2 * torch.eye(2),
        mean=normal(3),
        covariance=covariance(3),
    )
    return chain, 1.5 * normal(B, TIME, 2)


def hidden_markov(rare: float = 0.0) -> tuple[HiddenMarkov, Tensor]:
    """Three states, four symbols; one transition is impossible, and so is one emission unless `rare` is above 0."""
    first = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    rows = torch.tensor([[0.7, 0.3, 0.0], [0.1, 0.6, 0.3], [0.3, 0.3, 0.4]], dtype=torch.float64)
    emission = torch.tensor(
        [[0.4, 0.3, 0.2, 0.1], [0.1, 0.1, 0.1, 0.7], [rare, 0.6 - rare, 0.3, 0.1]], dtype=torch.float64
    )
    series = torch.tensor([[0, 3, 1, 2, 1], [1, 1, 3, 3, 0], [2, 0, 0, 3, 2]])
    return HiddenMarkov(first, rows, emission), series


def both(power: float = 1.0, rare: float = 0.0) -> list[tuple[Chain, Guide, Tensor]]:
    gaussian, series = linear_gaussian()
    markov, symbols = hidden_markov(rare)
    return [
        (gaussian, LinearGaussianSmoother(gaussian, power), series),
        (markov, HiddenMarkovSmoother(markov, power), symbols),
    ]


NAMES = ["linear_gaussian", "hidden_markov"]


def log_weights(chain: Chain, guide: Guide | None, x: Tensor, particles: int, depth: int = TIME) -> Tensor:
    """Run the step program with weights: [N, B]."""
    torch.manual_seed(0)
    context, evidence = chain.encode(x), None if guide is None else guide.encode(x)
    with weighted() as w, guided(guide, evidence):
        with pyro.plate("particles", particles, dim=-2), pyro.plate("problems", len(x), dim=-1):
            state = expand(chain.init(context), (particles, len(x)))
            for t in range(depth):
                state = chain.step(state, t, context)
    assert isinstance(w.log_weight, Tensor)
    return w.log_weight


def test_kalman_evidence_is_the_joint_gaussian_density() -> None:
    chain, x = linear_gaussian()
    a, q, c, r, m, p = (table.detach() for table in chain.buffers())
    size, powers = 3, [torch.linalg.matrix_power(a, k) for k in range(TIME)]
    # h_t = A^t m + Σ_{s <= t} A^{t-s} eps_s, so x is Gaussian with a mean and covariance in closed form.
    mean = torch.cat([c @ powers[t] @ m for t in range(TIME)])
    paths = torch.zeros(TIME * size, TIME * size, dtype=torch.float64)
    for t, s in itertools.product(range(TIME), repeat=2):
        if s <= t:
            paths[t * size : (t + 1) * size, s * size : (s + 1) * size] = powers[t - s]
    noise = torch.block_diag(p, *[q] * (TIME - 1))
    seen = torch.block_diag(*[c] * TIME) @ paths
    joint = MultivariateNormal(mean, seen @ noise @ seen.T + torch.block_diag(*[r] * TIME))
    torch.testing.assert_close(chain.log_evidence(x), joint.log_prob(x.flatten(1)), rtol=0, atol=1e-10)


def test_forward_algorithm_is_the_sum_over_all_paths() -> None:
    chain, x = hidden_markov()
    first, rows, emission = (table.exp() for table in chain.buffers())
    for series, log_evidence in zip(x, chain.log_evidence(x), strict=True):
        total = 0.0
        for path in itertools.product(range(3), repeat=TIME):
            p = first[path[0]] * emission[path[0], series[0]]
            for t in range(1, TIME):
                p = p * rows[path[t - 1], path[t]] * emission[path[t], series[t]]
            total += float(p)
        assert float(log_evidence) == pytest.approx(math.log(total), abs=1e-12)


@pytest.mark.parametrize("case", both(), ids=NAMES)
@pytest.mark.parametrize("time", [1, 2, TIME])
def test_every_draw_of_the_exact_smoother_weighs_the_evidence(case: tuple, time: int) -> None:
    chain, guide, x = case
    x = x[:, :time]
    weights = log_weights(chain, guide, x, particles=7, depth=time)
    assert weights.shape == (7, B)
    torch.testing.assert_close(weights, chain.log_evidence(x).expand(7, B), rtol=0, atol=1e-10)


@pytest.mark.parametrize("case", both(), ids=NAMES)
def test_particles_of_the_smoother_are_different_draws(case: tuple) -> None:
    chain, guide, x = case
    with guided(guide, guide.encode(x)) as q:
        with pyro.plate("particles", 50, dim=-2), pyro.plate("problems", B, dim=-1):
            chain.step(expand(chain.init(chain.encode(x)), (50, B)), 0, chain.encode(x))
    draws = q.sites[0].value.reshape(50, B, -1)
    assert (draws.unique(dim=0).shape[0]) > 1
    assert all(len(draws[:, b].unique(dim=0)) > 1 for b in range(B))


@pytest.mark.parametrize("index", [0, 1], ids=NAMES)
@pytest.mark.parametrize("power", [None, 0.5], ids=["no guide", "half the look-ahead"])
def test_weights_of_other_guides_are_unbiased_and_their_logs_below(index: int, power: float | None) -> None:
    """Twelve one-sided and twelve two-sided comparisons: false alarm 1e-3 over all of them."""
    chain, guide, x = both(power or 0.0, rare=0.05)[index]
    exact = chain.log_evidence(x)  # type: ignore[operator]
    draws = 20_000
    logs = log_weights(chain, None if power is None else guide, x, draws)
    error = logs.std(0) / draws**0.5
    assert bool((logs.mean(0) < exact + 4 * error).all())
    assert bool((logs.std(0) > 0.01).all())  # the guide is not exact, so the inequality says something
    ratio = (logs - exact).exp()
    relative = ratio.std(0) / draws**0.5
    assert bool((relative < 0.05).all())
    assert bool(((ratio.mean(0) - 1).abs() < 4 * relative).all())


@pytest.mark.parametrize("index", [0, 1], ids=NAMES)
def test_power_zero_is_the_prior_and_more_look_ahead_weighs_more(index: int) -> None:
    """The bound rises with power; gaps are tens of standard errors, so the false-alarm rate is nil."""
    means = []
    for power in (0.0, 0.5, 0.9):
        chain, guide, x = both(power, rare=0.05)[index]
        logs = log_weights(chain, guide, x, 2_000)
        means.append(logs.mean())
        if power == 0:
            torch.testing.assert_close(logs, log_weights(chain, None, x, 2_000), rtol=0, atol=1e-10)
    assert means[0] < means[1] < means[2]


def test_impossible_symbols_weigh_nothing_and_make_no_nan() -> None:
    chain, x = hidden_markov()
    guided_logs = log_weights(chain, HiddenMarkovSmoother(chain, power=0.0), x, 200)
    assert bool(guided_logs.isneginf().any()) and not bool(guided_logs.isnan().any())
    torch.testing.assert_close(guided_logs, log_weights(chain, None, x, 200), rtol=0, atol=1e-10)


@pytest.mark.parametrize("case", both(), ids=NAMES)
def test_past_its_end_a_series_weighs_nothing(case: tuple) -> None:
    chain, guide, x = case
    forecast = log_weights(chain, guide, x, particles=2, depth=TIME + 3)
    torch.testing.assert_close(forecast, chain.log_evidence(x).expand(2, B), rtol=0, atol=1e-10)


@pytest.mark.parametrize("case", both(), ids=NAMES)
def test_sampling_runs_any_state_space_model(case: tuple) -> None:
    chain, _, x = case
    run = sample(chain, x, width=4, depth=TIME)
    assert run.answers.shape == (TIME, 4, B, 2 if x.dim() == 3 else 1)


def test_float32_models_agree_to_their_precision() -> None:
    chain, x = linear_gaussian()
    exact = chain.log_evidence(x)
    chain.float()
    guide = LinearGaussianSmoother(chain)
    torch.testing.assert_close(log_weights(chain, guide, x, 3), exact.float().expand(3, B), rtol=0, atol=1e-3)


def test_tables_and_series_that_do_not_fit_are_named() -> None:
    chain, x = linear_gaussian()
    eye = torch.eye(3)
    with pytest.raises(ValueError, match=r"dynamics must have shape \[2, 2\], got \[3, 3\]"):
        LinearGaussian(eye, torch.eye(2), torch.ones(1, 2), torch.eye(1))
    with pytest.raises(ValueError, match=r"first must have shape \[3\], got \[2\]"):
        HiddenMarkov(torch.ones(2) / 2, eye, eye)
    with pytest.raises(ValueError, match=r"x must be \[B, time, 2\], got shape \[3, 5, 1\]"):
        chain.log_evidence(x[..., :1])
    with pytest.raises(ValueError, match=r"x must be integers \[B, time\]"):
        hidden_markov()[0].log_evidence(torch.zeros(2, 3))


def test_one_tensor_may_stand_for_several_tables():
    one = torch.eye(2, dtype=torch.float64)
    shared = LinearGaussian(one, one, one, one, torch.zeros(2, dtype=torch.float64), one)
    apart = LinearGaussian(*(one.clone() for _ in range(4)), torch.zeros(2, dtype=torch.float64), one.clone())
    series = torch.randn(B, TIME, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(shared.log_evidence(series), apart.log_evidence(series))
