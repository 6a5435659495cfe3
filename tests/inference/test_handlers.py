"""The handlers agree with Pyro: same bound, same gradients, same weights; and any chain is a Pyro program.

Equalities are to rounding in float64, on a small GRAM whose every layer is away from zero. The one comparison
of averages states its false-alarm rate.
"""

import math
from contextlib import ExitStack, nullcontext
from typing import Any

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.infer import SVI, Predictive, RenyiELBO, TraceMeanField_ELBO
from pyro.optim import Adam
from torch import Tensor

from probgram.inference import guided, sample, weighted
from probgram.inference.handlers import BLOCK, seeded
from probgram.inference.objective import Objective, ObjectiveConfig, Rollout
from probgram.inference.targets import fixed
from probgram.models import GRAM, GRAMConfig, GRAMGuide
from probgram.state import expand, leaves

B, L, S = 3, 4, 2  # problems, tokens, depth steps
ELBO = {"max_plate_nesting": 1}


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """GRAM widens with `.float()` before a density; here it widens to float64, so that rounding is 1e-16."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


@pytest.fixture
def one_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every reparameterised Gaussian draw uses the same standard noise, however many other draws there are."""
    noise = torch.randn(B, L, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    monkeypatch.setattr(
        "torch.distributions.normal._standard_normal", lambda shape, dtype, device: noise.to(dtype).expand(shape)
    )


def network(layers: str = "random") -> tuple[GRAM, GRAMGuide]:
    """A small GRAM with T = 2; layers that start at zero are drawn too, unless `layers` is "as trained"."""
    torch.manual_seed(0)
    chain = GRAM(GRAMConfig(L, 5, 4, dim=8, heads=2, blocks=1, hidden=8, refinements=1)).double()
    guide = GRAMGuide(chain).double()
    if layers == "random":
        for parameter in (*chain.parameters(), *guide.parameters()):
            torch.nn.init.normal_(parameter, std=0.3)
    return chain, guide


def problems() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (torch.randint(5, (B, L), generator=generator), torch.randint(4, (B, L), generator=generator))


def named(chain: GRAM, guide: GRAMGuide) -> dict[str, Tensor]:
    return {
        f"{side}.{name}": parameter
        for side, module in (("chain", chain), ("guide", guide))
        for name, parameter in module.named_parameters()
    }


def gradients(loss: Tensor, chain: GRAM, guide: GRAMGuide) -> dict[str, Tensor | None]:
    parameters = named(chain, guide)
    return dict(
        zip(parameters, torch.autograd.grad(loss, list(parameters.values()), allow_unused=True), strict=True)
    )


def assert_same_gradients(ours: dict[str, Tensor | None], theirs: dict[str, Tensor | None]) -> None:
    """All equal to 1e-8 of their largest entry; only the heads take no part."""
    for name, gradient in theirs.items():
        other = ours[name]
        if name.startswith("chain.judge"):
            assert gradient is None and (other is None or not bool(other.any()))
            continue
        assert gradient is not None and other is not None and bool(gradient.any()), name
        assert float((other - gradient).abs().max()) <= 1e-8 * float(gradient.abs().max()), name


def observed(trace: poutine.Trace) -> Tensor:
    """Σ log p of observed sites, [..., B], from `poutine.trace`."""
    trace.compute_log_prob()
    sites = [site for site in trace.nodes.values() if site["type"] == "sample" and site["is_observed"]]
    return torch.stack([site["log_prob"] for site in sites if site["name"] not in ("problems", "particles")]).sum(0)


def bound(chain: GRAM, guide: GRAMGuide, outside: Any = None, inside: Any = None, particles: int = 0) -> Tensor:
    """Σ log p(observed) - Σ KL, [..., B], of `chain.model` under `guided`, other handlers on either side of it."""
    x, y = problems()
    plate = pyro.plate("particles", particles, dim=-2) if particles else nullcontext()
    with ExitStack() as stack:
        if outside is not None:
            stack.enter_context(outside)
        q = stack.enter_context(guided(guide, guide.encode(y)))
        if inside is not None:
            stack.enter_context(inside)
        stack.enter_context(plate)
        trace = poutine.trace(chain.model).get_trace(x, y, S)
    return observed(trace) - q.kl


# -- Pyro's bound -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("particles", [1, 3])
def test_guided_gives_the_bound_and_all_gradients_of_trace_mean_field_elbo(float64: None, particles: int) -> None:
    chain, guide = network()
    torch.manual_seed(2)
    elbo = TraceMeanField_ELBO(num_particles=particles, vectorize_particles=particles > 1, **ELBO)
    theirs = elbo.differentiable_loss(chain.model, chain.guide(guide), *problems(), S)
    torch.manual_seed(2)
    ours = -bound(chain, guide, particles=particles if particles > 1 else 0).sum() / particles
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
    assert_same_gradients(gradients(ours, chain, guide), gradients(theirs, chain, guide))


def test_the_objective_of_a_whole_trajectory_is_trace_mean_field_elbo(float64: None, one_noise: None) -> None:
    chain, guide = network()
    x, y = problems()
    theirs = TraceMeanField_ELBO(**ELBO).differentiable_loss(chain.model, chain.guide(guide), x, y, S) / B
    config = ObjectiveConfig(depth=S, target=fixed, carry=0.0, kl="every", gradient="full", beta=1.0, heads=0.0)
    ones, zeros = torch.ones(B, dtype=torch.long), torch.zeros(B, dtype=torch.long)
    rollout = Rollout(x, y[:, None], ones, zeros[None], zeros)
    ours = Objective(chain, guide, config)(rollout).loss
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
    assert_same_gradients(gradients(ours, chain, guide), gradients(theirs, chain, guide))


def test_renyi_bound_is_the_importance_weighted_bound_of_weighted(float64: None) -> None:
    chain, guide = network()
    x, y = problems()
    torch.manual_seed(3)
    elbo = RenyiELBO(num_particles=5, vectorize_particles=True, **ELBO)
    theirs = elbo.loss(chain.model, chain.guide(guide), x, y, S)
    torch.manual_seed(3)
    with weighted() as w, guided(guide, guide.encode(y)), pyro.plate("particles", 5, dim=-2):
        chain.model(x, y, S)
    ours = -(torch.as_tensor(w.log_weight).logsumexp(0) - math.log(5)).sum()
    assert ours.item() == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize("parallel", [True, False])
def test_predictive_runs_the_model_unmodified(parallel: bool) -> None:
    chain, _ = network()
    draws = Predictive(chain.model, num_samples=6, parallel=parallel)(problems()[0], depth=S)
    assert draws[f"y_{S - 1}"].reshape(6, B, L).shape == (6, B, L)
    eps = draws[f"eps_{2 * S - 1}"].reshape(6, B, L, 8)
    assert len(eps.unique(dim=0)) == 6  # every sample has noise of its own


def unmoved_after(steps: int, layers: str) -> set[str]:
    """Names of parameters that so many SVI steps leave exactly where they were."""
    pyro.clear_param_store()  # or the modules of the last call would be trained in place of these
    chain, guide = network(layers)
    svi = SVI(chain.model, chain.guide(guide), Adam({"lr": 1e-2}), TraceMeanField_ELBO(**ELBO))
    before = {name: value.detach().clone() for name, value in named(chain, guide).items()}
    for _ in range(steps):
        svi.step(*problems(), S)
    return {name for name, value in named(chain, guide).items() if torch.equal(value, before[name])}


HEADS = {"chain.judge.hidden.weight", "chain.judge.hidden.bias", "chain.judge.out.weight", "chain.judge.out.bias"}


def test_one_svi_step_moves_every_parameter_of_the_bound() -> None:
    """All but the heads, which take no part in it."""
    assert unmoved_after(1, "random") == HEADS


def test_layers_that_start_at_zero_hold_others_back_for_one_step_only() -> None:
    """At the start q = p: the KL is at its minimum in p's layers, and q's zero layers pass no gradient on."""
    prior = {f"chain.{layer}.{kind}" for layer in ("mu", "sigma") for kind in ("weight", "bias")}
    behind_zeros = {"guide.embed.weight", "guide.hidden.weight", "guide.hidden.bias"}
    assert unmoved_after(1, "as trained") == HEADS | prior | behind_zeros
    assert unmoved_after(2, "as trained") == HEADS


# -- composition ------------------------------------------------------------------------------------------


def test_particles_differ_after_one_transition() -> None:
    chain, guide = network()
    x, y = problems()
    with guided(guide, guide.encode(y)) as q, pyro.plate("particles", 6, dim=-2), pyro.plate("problems", B, dim=-1):
        chain.transition(chain.init(chain.encode(x)), 0, chain.encode(x))  # the state has no particles yet
    assert q.sites[0].value.shape == (6, B, L, 8) and q.kl.shape == (6, B)
    assert len(q.sites[0].value.unique(dim=0)) == 6


@pytest.mark.filterwarnings("ignore:Found non-auxiliary vars in guide:UserWarning")  # condition's own
@pytest.mark.parametrize("order", ["outside", "inside"])
@pytest.mark.parametrize("handler", ["condition", "mask", "scale"])
def test_guided_composes_with_pyro_handlers(float64: None, one_noise: None, handler: str, order: str) -> None:
    chain, guide = network()
    value = torch.linspace(-1, 1, B * L * 8, dtype=torch.float64).reshape(B, L, 8)
    wrap = {
        "condition": lambda f=None: poutine.condition(f, data={"eps_1": value}),
        "mask": lambda f=None: poutine.mask(f, mask=torch.tensor([True, False, True])),
        "scale": lambda f=None: poutine.scale(f, scale=0.25),
    }[handler]
    elbo = TraceMeanField_ELBO(**ELBO)
    theirs = elbo.differentiable_loss(wrap(chain.model), wrap(chain.guide(guide)), *problems(), S)
    ours = -bound(chain, guide, **{order: wrap()}).sum()
    plain = -bound(chain, guide).sum()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
    assert abs((ours - plain).item()) > 1  # the handler did something
    assert_same_gradients(gradients(ours, chain, guide), gradients(theirs, chain, guide))


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("data", [{}, {"eps_0": torch.full((B, L, 8), 0.1)}], ids=["free", "conditioned"])
def test_weighted_is_the_log_prob_sum_of_poutine_trace(
    float64: None, scale: float, data: dict[str, Tensor]
) -> None:
    chain, guide = network()
    x, y = problems()
    with poutine.scale(scale=scale), poutine.condition(data=data), weighted() as w:
        with guided(guide, guide.encode(y)) as q, poutine.trace() as trace, pyro.plate("particles", 4, dim=-2):
            chain.model(x, y, S)
    assert len(q.sites) == 2 * S - len(data)
    trace.trace.compute_log_prob()
    sites = {name: site["log_prob"] for name, site in trace.trace.nodes.items() if name.startswith(("eps", "y"))}
    log_q = sum(site.posterior.log_prob(site.value) for site in q.sites if site.posterior is not None)
    expected = sum(value.expand(4, B) for value in sites.values()) - scale * log_q
    torch.testing.assert_close(w.log_weight, expected, rtol=1e-12, atol=0)
    total = trace.trace.log_prob_sum() - (scale * log_q).sum()
    assert total.item() == pytest.approx(torch.as_tensor(w.log_weight).sum().item(), rel=1e-10)


def test_weighted_counts_observed_sites_alone_without_a_guide() -> None:
    chain, _ = network()
    x, y = problems()
    with weighted() as w, poutine.trace() as trace:
        chain.model(x, y, S)
    torch.testing.assert_close(w.log_weight, observed(trace.trace))


@pytest.mark.parametrize("order", [0, 1], ids=["weighted outside", "guided outside"])
def test_rows_left_to_the_prior_cost_no_kl_and_weigh_nothing(order: int) -> None:
    chain, guide = network()
    x, y = problems()
    rows = torch.tensor([[True, False, True], [False, False, True]])
    w, q = weighted(), guided(guide, guide.encode(y), rows)
    with (w, q)[order], (q, w)[order], pyro.plate("particles", 2, dim=-2), pyro.plate("problems", B, dim=-1):
        chain.step(expand(chain.init(chain.encode(x)), (2, B)), 0, chain.encode(x))
    assert isinstance(w.log_weight, Tensor)
    assert torch.equal(w.log_weight != 0, rows) and torch.equal(q.kl > 0, rows)


def test_rows_left_to_the_prior_are_prior_draws(one_noise: None) -> None:
    chain, guide = network()
    x, y = problems()
    rows = torch.tensor([[True, False, True]])
    with guided(guide, guide.encode(y), rows) as q, pyro.plate("particles", 1, dim=-2):
        with pyro.plate("problems", B, dim=-1):
            chain.transition(chain.init(chain.encode(x)), 0, chain.encode(x))
    site = q.sites[0]
    assert site.posterior is not None
    from_prior, from_guide = site.prior.rsample(), site.posterior.rsample()
    assert torch.equal(site.value, torch.where(rows[..., None, None], from_guide, from_prior))
    assert not torch.equal(from_prior, from_guide)


def test_the_kl_is_the_mean_log_ratio() -> None:
    """Two-sided at 4 standard errors for each of 3 problems: false-alarm rate 2e-4."""
    chain, guide = network()
    x, y = problems()
    with weighted() as w, guided(guide, guide.encode(y)) as q:
        with pyro.plate("particles", 20_000, dim=-2), pyro.plate("problems", B, dim=-1):
            chain.transition(chain.init(chain.encode(x)), 0, chain.encode(x))
    log_ratio = -torch.as_tensor(w.log_weight)  # log q - log p, [N, B]
    error = log_ratio.std(0) / 20_000**0.5
    assert bool(((log_ratio.mean(0) - q.kl[0]).abs() < 4 * error).all())
    assert bool((error < 0.05 * q.kl[0]).all())


# -- seeded noise -----------------------------------------------------------------------------------------


def two_sites(width: int, seed: int, step: int = 0, first: int = 0) -> tuple[Tensor, Tensor]:
    """A Gaussian and a categorical site of `width` particles for B problems."""
    with seeded(seed, first).at(step):
        with pyro.plate("particles", width, dim=-2), pyro.plate("problems", B, dim=-1):
            eps = pyro.sample("eps", dist.Normal(torch.zeros(width, B, 2), 1.0).to_event(1))
            k = pyro.sample("k", dist.Categorical(logits=torch.zeros(width, B, 1000)))
    return eps, k


def test_same_seed_same_draws_and_nothing_else() -> None:
    for ours, again in zip(two_sites(100, seed=7), two_sites(100, seed=7), strict=True):
        assert torch.equal(ours, again)
    for other in (two_sites(100, seed=8), two_sites(100, seed=7, step=1), two_sites(100, seed=7, first=BLOCK)):
        for ours, theirs in zip(two_sites(100, seed=7), other, strict=True):
            assert float((ours == theirs).double().mean()) < 0.02
    eps, _ = two_sites(200, seed=7)
    assert len(eps.flatten().unique()) == eps.numel()  # blocks, particles and problems all differ


def test_later_sites_of_a_step_draw_anew() -> None:
    with seeded(0).at(0), pyro.plate("particles", 10, dim=-2), pyro.plate("problems", B, dim=-1):
        draws = [pyro.sample(f"eps_{t}", dist.Normal(torch.zeros(10, B), 1.0)) for t in range(3)]
    assert len(torch.stack(draws).flatten().unique()) == 3 * 10 * B


@pytest.mark.parametrize("chunk", [BLOCK, 2 * BLOCK])
def test_chunks_see_the_noise_of_the_whole(chunk: int) -> None:
    whole = two_sites(150, seed=7)[0]
    parts = [two_sites(min(chunk, 150 - first), seed=7, first=first)[0] for first in range(0, 150, chunk)]
    assert torch.equal(torch.cat(parts), whole)


def test_a_run_in_chunks_is_the_run_in_one_piece(float64: None) -> None:
    chain, _ = network()
    settings: dict[str, Any] = {"width": 150, "depth": 3, "seed": 4, "keep": "latents"}
    whole = sample(chain, problems()[0], **settings)
    parts = sample(chain, problems()[0], **settings, chunk=BLOCK)
    assert torch.equal(whole.answers, parts.answers)
    for (name, ours), (_, theirs) in zip(leaves(whole.state), leaves(parts.state), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9, msg=name)


def test_the_global_generator_is_left_alone() -> None:
    chain, _ = network()
    before = torch.get_rng_state()
    two_sites(100, seed=7)
    sample(chain, problems()[0], width=3, depth=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_chunks_start_at_whole_blocks() -> None:
    with pytest.raises(ValueError, match="a chunk must start at a multiple of 64 particles, got 10"):
        seeded(0, first_particle=10)


def test_plates_of_a_model_and_wrapped_distributions_are_seeded_too() -> None:
    def draw() -> tuple[Tensor, ...]:
        with seeded(3).at(0), pyro.plate("rows", 5, dim=-1):
            normal = dist.Normal(torch.zeros(5), 1.0)
            return (
                pyro.sample("a", normal),
                pyro.sample("b", normal.mask(True)),
                pyro.sample("c", dist.Gamma(2.0, 1.0)),
            )

    for ours, again in zip(draw(), draw(), strict=True):
        assert torch.equal(ours, again)
