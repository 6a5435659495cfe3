"""Conditional SMC leaves the smoothing law alone: tested against all paths of a small model, and Kalman's smoother.

The test of a discrete model draws the references of many replicate problems from the exact law of its 16 paths,
makes one sweep, and compares the frequencies of the outcome with the same law: chi-square with 15 degrees of
freedom, whose bound a correct sweep exceeds with probability 1e-4.
"""

import itertools

import numpy as np
import pyro
import pytest
import scipy.stats
import torch
from pyro import distributions as dist
from torch import Tensor

from probgram import Chain
from probgram.inference import conditional as schemes
from probgram.inference import resampling, smc
from probgram.inference.conditional import Path, conditional, particle_gibbs
from probgram.inference.kernels import PlainModel
from probgram.inference.potentials import Head, accumulated
from probgram.inference.resampling import adaptive, draw_uniforms
from probgram.models import GRAM, GRAMConfig, HiddenMarkov, LinearGaussian, LinearGaussianSmoother
from probgram.state import leaves

SCHEMES = [schemes.multinomial, schemes.killing, schemes.systematic]
UNCONDITIONAL = [resampling.multinomial, resampling.killing, resampling.systematic]
REPLICATES, TIME = 40_000, 4
BOUND = scipy.stats.chi2(15).isf(1e-4)  # 44.3

FIRST = torch.tensor([0.6, 0.4], dtype=torch.float64)
ROWS = torch.tensor([[0.7, 0.3], [0.2, 0.8]], dtype=torch.float64)
EMISSION = torch.tensor([[0.8, 0.2], [0.25, 0.75]], dtype=torch.float64)
SYMBOLS = torch.tensor([0, 1, 1, 0])
PATHS = torch.tensor(list(itertools.product(range(2), repeat=TIME)))  # [16, 4]


def names(scheme) -> str:
    return scheme.__name__


def exact(last: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """Probability of each path given the symbols, `[16]`, with a factor for the last state."""
    p = FIRST[PATHS[:, 0]] * EMISSION[PATHS[:, 0], SYMBOLS[0]]
    for t in range(1, TIME):
        p = p * ROWS[PATHS[:, t - 1], PATHS[:, t]] * EMISSION[PATHS[:, t], SYMBOLS[t]]
    p = p * torch.tensor(last, dtype=torch.float64)[PATHS[:, -1]]
    return p / p.sum()


def chi_square(states: Tensor, law: Tensor) -> float:
    """Of paths `[4, replicates]`."""
    counts = torch.bincount((states.T * torch.tensor([8, 4, 2, 1])).sum(1), minlength=16)
    expected = states.shape[1] * law
    return float(((counts - expected).square() / expected).sum())


def references(law: Tensor, replicates: int) -> list[dict[str, Tensor]]:
    drawn = PATHS[torch.multinomial(law, replicates, True, generator=torch.Generator().manual_seed(1))]
    return [{}, *({f"eps_{t}": drawn[:, t]} for t in range(TIME))]


def sweep(scheme, law: Tensor | None = None, replicates: int = REPLICATES, **choices):
    """One conditional sweep with 4 particles, from draws of the law."""
    chain = HiddenMarkov(FIRST, ROWS, EMISSION)
    x, law = SYMBOLS.expand(replicates, TIME), exact() if law is None else law
    choices = {"resample": scheme, "width": 4, "depth": TIME} | choices
    return conditional(chain, x, reference=references(law, replicates), **choices)


# -- the law of discrete paths --------------------------------------------------------------------------------


@pytest.mark.parametrize("ancestor_sampling", [False, True], ids=["", "ancestor sampling"])
@pytest.mark.parametrize("ess_threshold", [1.0, 0.6], ids=["always", "adaptive"])
@pytest.mark.parametrize("scheme", SCHEMES, ids=names)
def test_a_sweep_leaves_the_smoothing_law_invariant(scheme, ess_threshold, ancestor_sampling):
    result = sweep(scheme, ess_threshold=ess_threshold, ancestor_sampling=ancestor_sampling)
    assert chi_square(result.path.states, exact()) < BOUND
    assert (result.renewed.float().mean(1) > 0.2).all()  # it is not the reference that came back


def overwritten(scheme):
    """Put the reference back into slot 0 of an unconditional draw."""

    @schemes._scheme(scheme.rows)
    def naive(log_weights, uniforms):
        ancestors = scheme(log_weights, uniforms)
        return torch.cat([torch.zeros_like(ancestors[:1]), ancestors[1:]])

    return naive


@pytest.mark.parametrize("scheme", [resampling.systematic, resampling.killing], ids=names)
def test_overwriting_a_slot_of_an_unconditional_draw_does_not(scheme):
    """The test above can fail: twice the replicates put the wrong schemes beyond its bound several times over."""
    result = sweep(overwritten(scheme), replicates=2 * REPLICATES, ess_threshold=1.0)
    assert chi_square(result.path.states, exact()) > 3 * BOUND


def test_a_potential_tilts_the_law_that_is_left_invariant():
    law = exact(last=(1.0, 3.0))
    tilt = {"potential": lambda view: torch.tensor([1.0, 3.0]).log()[view.state], "ess_threshold": 1.0}
    for ancestor_sampling in (False, True):
        found = sweep(schemes.systematic, law, ancestor_sampling=ancestor_sampling, **tilt)
        assert chi_square(found.path.states, law) < BOUND
    assert chi_square(found.path.states, exact()) > 3 * BOUND


def test_an_accumulated_potential_tilts_every_state_of_the_law_that_is_left_invariant():
    tilt = torch.tensor([1.0, 3.0])
    law = exact() * tilt[PATHS].prod(1)
    law = law / law.sum()
    for ancestor_sampling in (False, True):
        found = sweep(
            schemes.systematic,
            law,
            ancestor_sampling=ancestor_sampling,
            potential=accumulated(lambda view: tilt.log()[view.state]),
            ess_threshold=1.0,
        )
        assert chi_square(found.path.states, law) < BOUND
    assert chi_square(found.path.states, exact(last=(1.0, 3.0))) > 3 * BOUND


def test_particle_gibbs_converges_to_the_smoothing_law():
    """From a filter of 2 particles, whose line is far from the law, in 8 sweeps of 4."""
    chain = HiddenMarkov(FIRST, ROWS, EMISSION)
    x, number = SYMBOLS.expand(12_000, TIME), 8
    choices = {"depth": TIME, "ess_threshold": 1.0}
    start = conditional(chain, x, width=2, **choices)
    assert start.renewed.all() and chi_square(start.path.states, exact()) > 3 * BOUND
    states = particle_gibbs(
        chain, x, iterations=number, reference=start.path, width=4, resample=schemes.systematic, **choices
    )
    assert states.shape == (number, TIME, 12_000)
    assert chi_square(states[-1], exact()) < BOUND


def test_ancestor_sampling_renews_early_states_of_a_long_series():
    chain = HiddenMarkov(FIRST, ROWS, EMISSION)
    x = torch.randint(2, (80, 40), generator=torch.Generator().manual_seed(0))
    start = conditional(chain, x, width=8, depth=40).path
    choices = {"reference": start, "width": 8, "depth": 40, "ess_threshold": 1.0}
    rate = [
        float(conditional(chain, x, ancestor_sampling=on, **choices).renewed[0].float().mean())
        for on in (False, True)
    ]
    assert rate[0] < 0.1 and rate[1] > 0.6


# -- schemes --------------------------------------------------------------------------------------------------


def run(scheme, log_weights: Tensor, seed: int = 0) -> Tensor:
    return scheme(log_weights, draw_uniforms(scheme, log_weights, torch.Generator().manual_seed(seed)))


def numbered(ancestors: Tensor, ordered: bool) -> Tensor:
    """A number for the ancestors of all slots, or for the copies of all particles, `[B]`."""
    copies = torch.zeros_like(ancestors).scatter_add_(0, ancestors, torch.ones_like(ancestors))
    what = ancestors if ordered else copies
    return (what * (len(what) + 1) ** torch.arange(len(what))[:, None]).sum(0)


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("scheme", SCHEMES, ids=names)
def test_a_conditional_scheme_is_its_unconditional_one_given_slot_0(scheme, n):
    """Against rejection: unconditional ancestors turned by a random number of slots, where slot 0 has ancestor 0.

    Chi-square of the two samples, rare outcomes pooled; false alarm 1e-4. The order of the slots is a part of the
    systematic scheme, and no part of the others.
    """
    replicates, ordered = 60_000, scheme is schemes.systematic
    log_weights = torch.randn(n, 1, generator=torch.Generator().manual_seed(n)).expand(n, replicates)
    ancestors = run(getattr(resampling, scheme.__name__), log_weights, seed=1)
    turn = torch.randint(n, (replicates,), generator=torch.Generator().manual_seed(2))
    ancestors = ancestors.gather(0, (torch.arange(n)[:, None] + turn) % n)
    wanted = numbered(ancestors[:, ancestors[0] == 0], ordered)
    found = numbered(run(scheme, log_weights), ordered)
    table = np.stack([np.bincount(sample.numpy(), minlength=(n + 1) ** n) for sample in (found, wanted)])
    rare = table.sum(0) < 40
    table = np.concatenate([table[:, ~rare], table[:, rare].sum(1, keepdims=True)], 1)
    table = table[:, table.sum(0) > 0]
    assert table.shape[1] > 1
    assert scipy.stats.chi2_contingency(table).pvalue > 1e-4


@pytest.mark.parametrize("scheme", SCHEMES, ids=names)
@pytest.mark.parametrize("n", [1, 2, 7, 1000])
def test_slot_0_is_its_own_ancestor_whatever_its_weight(scheme, n):
    log_weights = 3 * torch.randn(n, 50, generator=torch.Generator().manual_seed(n))
    log_weights[0, ::2] = -800.0
    log_weights[0, 1::7] = 800.0
    log_weights[:, 5] = -torch.inf
    ancestors = run(scheme, log_weights)
    assert ancestors.shape == (n, 50) and ancestors.dtype == torch.int64
    assert (ancestors[0] == 0).all() and ancestors.min() >= 0 and ancestors.max() < n
    assert ancestors[:, 5].tolist() == list(range(n))  # nothing to go by: every slot stays


@pytest.mark.parametrize("scheme", SCHEMES, ids=names)
def test_problems_side_by_side_are_resampled_as_each_alone(scheme):
    log_weights = torch.randn(33, 6, generator=torch.Generator().manual_seed(2))
    uniforms = draw_uniforms(scheme, log_weights, torch.Generator().manual_seed(5))
    together = scheme(log_weights, uniforms)
    for b in range(6):
        assert (scheme(log_weights[:, b : b + 1], uniforms[:, b : b + 1])[:, 0] == together[:, b]).all()


# -- any model ------------------------------------------------------------------------------------------------

A, Q, C, R, P = 0.9, 0.5, 1.0, 0.6, 0.8
SERIES = torch.tensor([1.2, 0.1, -0.8, 0.7, 1.5], dtype=torch.float64)


def smoothing_law() -> tuple[Tensor, Tensor]:
    """Means and variances of h_1 … h_5 given the series, from their joint Gaussian."""
    n = len(SERIES)
    prior = np.zeros((n, n))
    for t in range(n):
        variance = P if t == 0 else A**2 * prior[t - 1, t - 1] + Q
        for s in range(t, n):
            prior[t, s] = prior[s, t] = A ** (s - t) * variance
    gain = prior * C @ np.linalg.inv(C**2 * prior + R * np.eye(n))
    return torch.tensor(gain @ SERIES.numpy()), torch.tensor(np.diag(prior - C * gain @ prior))


class Foreign:
    """The same model in Pyro, its first state sampled by init and two sites a step, with a plate of its own."""

    max_plate_nesting = 1

    def init(self, series):
        # The step to h_1 starts from 0, whatever this is: an idle site must not hurt.
        return {"h": pyro.sample("idle", dist.Normal(series.new_tensor(0.0), 1.0))}

    def step(self, state, t, series):
        with pyro.plate("halves", 2, dim=-1):
            parts = pyro.sample(f"part_{t}", dist.Normal(torch.zeros_like(series[:, t])[:, None], 1.0))
        scale = (P if t == 0 else Q) ** 0.5
        h = (0.0 if t == 0 else A) * state["h"] + scale * parts.sum(-1, keepdim=True) / 2**0.5
        pyro.sample(f"x_{t}", dist.Normal(C * h, R**0.5), obs=series[:, t][:, None])
        return {"h": h}


def plain() -> PlainModel:
    def step(h, t, noise, series):
        h = noise * P**0.5 if t == 0 else A * h + noise * Q**0.5
        return h, dist.Normal(C * h, R**0.5).log_prob(series[:, t])

    return PlainModel(init=lambda noise, series: torch.zeros_like(noise), step=step, dtype=torch.float64)


def gaussian() -> LinearGaussian:
    tables = ([[A]], [[Q]], [[C]], [[R]], [0.0], [[P]])
    return LinearGaussian(*(torch.tensor(table, dtype=torch.float64) for table in tables))


def exact_noise(problems: int) -> list[Tensor]:
    """Noise of every step, `[B, 1]`, drawn from its exact law given the series."""
    chain, x = gaussian(), SERIES[:, None].expand(problems, 5, 1)
    guide = LinearGaussianSmoother(chain)
    path = conditional(chain, x, width=1, depth=5, guide=guide, evidence=x, resample=None, seed=9).path
    return [path.noise[t + 1][f"eps_{t}"] for t in range(5)]


@pytest.mark.parametrize("kind", ["chain", "foreign", "plain"])
def test_chains_foreign_and_plain_models_keep_the_law_of_the_kalman_smoother(kind):
    """Means and variances of 5 states over 20,000 replicates within 5 standard errors: false alarm below 1e-5."""
    b = 20_000
    noise, x = exact_noise(b), SERIES.expand(b, 5)
    unit = [eps / (P if t == 0 else Q) ** 0.5 for t, eps in enumerate(noise)]
    generator = torch.Generator().manual_seed(3)
    if kind == "chain":
        model, args, more = gaussian(), x[..., None], {}
        reference = [{}, *({f"eps_{t}": eps} for t, eps in enumerate(noise))]
    elif kind == "foreign":
        model, args, more = Foreign(), x, {"problems": b}
        idle = [torch.randn(b, 1, generator=generator, dtype=torch.float64) for _ in range(6)]
        parts = [torch.cat([u + v, u - v], 1) / 2**0.5 for u, v in zip(unit, idle[1:], strict=True)]
        reference = [{"idle": idle[0]}, *({f"part_{t}": part} for t, part in enumerate(parts))]
    else:
        model, args, more = plain(), x, {"problems": b}
        reference = [{"noise": eps[:, 0]} for eps in [torch.zeros_like(unit[0]), *unit]]
    result = conditional(
        model, args, reference=reference, width=4, depth=5, resample=schemes.systematic, seed=4, **more
    )
    states = result.path.states["h"] if kind == "foreign" else result.path.states
    states = states.reshape(5, b)
    mean, variance = smoothing_law()
    assert ((states.mean(1) - mean).abs() < 5 * (variance / b) ** 0.5).all()
    assert ((states.var(1) / variance - 1).abs() < 5 * (2 / b) ** 0.5).all()
    assert 0.2 < float(result.renewed[0].float().mean()) < 0.95


class Folded(Chain):
    """Two transitions a step with a deterministic part, so that no transition density exists."""

    transitions = 2

    def initial(self, context):
        return torch.zeros(len(context), 3)

    def propose(self, state, context, t):
        return (2 * state + context).tanh()

    def prior(self, proposal, t):
        return dist.Normal(torch.zeros_like(proposal), 0.5).to_event(1)

    def move(self, proposal, eps):
        return proposal.cumsum(-1) * eps.abs()

    def readout(self, state):
        return dist.Categorical(logits=state[..., None] * torch.tensor([-1.0, 1.0])).to_event(1)


def energy(view):
    return -view.state.abs().sum(-1)


def test_retained_states_are_simulated_again_from_the_retained_noise():
    chain, x = Folded(), torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    path = conditional(chain, x, width=5, depth=3, potential=energy).path
    for seed in range(5):
        result = conditional(chain, x, reference=path, width=3, depth=3, potential=energy, seed=seed)
        state = chain.initial(x)
        for t in range(3):
            for transition in (2 * t, 2 * t + 1):
                eps = result.path.noise[t + 1][f"eps_{transition}"]
                state = chain.move(chain.propose(state, x, transition), eps)
            torch.testing.assert_close(state, result.path.states[t])
        stayed = ~result.renewed[-1]  # the reference itself was drawn
        assert torch.equal(result.path.states[:, stayed], path.states[:, stayed])
        path = result.path


def test_a_reasoner_can_be_sampled_given_a_potential():
    torch.manual_seed(0)
    chain = GRAM(GRAMConfig(length=4, input_size=3, output_size=3, dim=8, hidden=16, heads=2))
    choices = {"width": 4, "depth": 2, "potential": Head("value"), "ess_threshold": 1.0}
    states = particle_gibbs(chain, torch.tensor([[0, 1, 2, 0]]), iterations=2, **choices)
    assert all(leaf.shape[:3] == (2, 2, 1) for _, leaf in leaves(states))


def test_same_seed_same_path_and_another_seed_another():
    chain, x = gaussian(), SERIES.expand(3, 5)[..., None]
    runs = [particle_gibbs(chain, x, iterations=2, width=5, depth=5, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    before = torch.random.get_rng_state()
    conditional(chain, x, width=5, depth=5)
    assert torch.equal(before, torch.random.get_rng_state())


def test_without_a_reference_it_is_the_filter():
    chain, x = gaussian(), SERIES.expand(3, 5)[..., None]
    ordinary = smc.run(chain, x, width=50, depth=5, seed=7)
    found = conditional(chain, x, width=50, depth=5, seed=7)
    assert torch.equal(found.log_normalizer, ordinary.log_normalizer) and torch.equal(found.ess, ordinary.ess)


def test_update_moves_parameters_between_sweeps():
    x, seen = SERIES.expand(2, 5)[..., None], []

    def update(path: Path, model: LinearGaussian) -> LinearGaussian:
        seen.append((path.states.shape, float(model.noise)))
        moved = gaussian()
        moved.noise.mul_(len(seen) + 1)
        return moved

    particle_gibbs(gaussian(), x, iterations=3, width=5, depth=5, update=update)
    assert [shape for shape, _ in seen] == [(5, 2, 1)] * 3
    assert [noise for _, noise in seen] == pytest.approx([Q, 2 * Q, 3 * Q])


# -- bad input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", [*UNCONDITIONAL, adaptive(resampling.ssp)], ids=lambda s: type(s).__name__)
def test_unconditional_schemes_are_refused(scheme):
    chain, x = gaussian(), SERIES[None, :, None]
    with pytest.raises(TypeError, match="conditional SMC needs a scheme of probgram.inference.conditional, .* got"):
        conditional(chain, x, width=4, depth=5, resample=scheme)


@pytest.mark.parametrize("scheme", [*SCHEMES, adaptive(schemes.systematic)], ids=lambda s: type(s).__name__)
def test_conditional_schemes_are_refused_by_the_filter(scheme):
    with pytest.raises(TypeError, match="resample must be a scheme of probgram.inference.resampling"):
        smc.run(gaussian(), SERIES[None, :, None], width=4, depth=5, resample=scheme)


def test_a_reference_that_does_not_fit_is_named():
    chain, x = gaussian(), SERIES.expand(2, 5)[..., None]
    path = conditional(chain, x, width=4, depth=5).path
    with pytest.raises(ValueError, match="the reference has 5 steps, and depth is 4"):
        conditional(chain, x, reference=path, width=4, depth=4)
    with pytest.raises(ValueError, match="depth must be one integer for all problems"):
        conditional(chain, x, width=4, depth=torch.tensor([4, 5]))
    with pytest.raises(ValueError, match="width must be at least 2, one slot is the reference's, got 1"):
        conditional(chain, x, reference=path, width=1, depth=5)
    with pytest.raises(ValueError, match="the reference has no value for the site 'eps_2' of step 2"):
        conditional(chain, x, reference=[*path.noise[:3], {}, *path.noise[4:]], width=4, depth=5)
    with pytest.raises(ValueError, match=r"the reference's 'eps_0' of step 0 must be \[1, 1\], got \[2, 1\]"):
        conditional(chain, x[:1], reference=path, width=4, depth=5)
    with pytest.raises(ValueError, match="iterations must be at least 1, got 0"):
        particle_gibbs(chain, x, iterations=0)


def test_ancestor_sampling_is_refused_where_the_state_is_not_the_noise():
    x = SERIES[None, :, None]
    with pytest.raises(ValueError, match=r"ancestor sampling needs log p\(next \| state\), and Folded has no"):
        conditional(Folded(), torch.zeros(1, 3), depth=2, ancestor_sampling=True)
    with pytest.raises(ValueError, match="needs a model whose state is the value of its one latent site"):
        conditional(gaussian(), x, depth=5, ancestor_sampling=True)
