"""GRAM: shapes, ablations, padding that changes nothing; chains of one's own."""

import inspect
import math

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro import poutine
from torch import nn
from torch.distributions import kl_divergence

from probgram import Chain, Guide, tasks
from probgram.checkpoint import save_chain
from probgram.inference import fit, guided, sample
from probgram.models import GRAM, GRAMConfig, GRAMGuide
from probgram.models.gram import widened, without

SIZES = {"dim": 16, "heads": 2, "blocks": 2, "hidden": 24}
TASK = tasks.Queens(5)


def make_chain(**choices) -> GRAM:
    """A small chain with no parameter left at zero, so that every path is alive."""
    torch.manual_seed(0)
    chain = GRAM(GRAMConfig(**({"length": 5, "input_size": 6, "output_size": 5} | SIZES | choices)))
    for name in ("mu", "sigma"):
        if getattr(chain, name) is not None:
            nn.init.normal_(getattr(chain, name).weight, std=0.2)
    nn.init.normal_(chain.judge.out.weight)
    return chain


def make_guide(chain: GRAM) -> GRAMGuide:
    guide = GRAMGuide(chain)
    nn.init.normal_(guide.mu.weight, std=0.2)
    nn.init.normal_(guide.sigma.weight, std=0.2)
    return guide


def problems(b: int = 3) -> torch.Tensor:
    return torch.from_numpy(TASK.examples("train")[0][:b])


# -- shapes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", ["attention", "mixer"])
@pytest.mark.parametrize("left", [(), (4,), (2, 4)], ids=str)
def test_every_method_keeps_any_number_of_batch_dimensions(left, body):
    chain = make_chain(body=body)
    guide, x = make_guide(chain), problems()
    context = chain.encode(x)
    z = chain.initial(context)
    assert z.h.shape == z.l.shape == (3, 5, 16)
    z = type(z)(*(leaf.expand(*left, 3, 5, 16) for leaf in z))
    proposal = chain.propose(z, context, 0)
    assert proposal.u.shape == (*left, 3, 5, 16)
    for density in (chain.prior(proposal, 0), guide.posterior(proposal, guide.encode(problems()), 0)):
        assert density.batch_shape == (*left, 3) and density.event_shape == (5, 16)
    z = chain.move(proposal, chain.prior(proposal, 0).sample())
    readout = chain.readout(z)
    assert readout.batch_shape == (*left, 3) and readout.event_shape == (5,)
    assert {name: value.shape for name, value in chain.heads(z).items()} == {
        "value": (*left, 3),
        "halt": (*left, 3),
    }


@pytest.mark.parametrize("body", ["attention", "mixer"])
def test_particles_and_problems_do_not_see_each_other(body):
    chain, x = make_chain(body=body, noise=False), problems(4)
    together = chain.readout(run(chain, x, 2, width=3)).logits
    for b in range(4):
        alone = chain.readout(run(chain, x[b : b + 1], 2, width=1)).logits
        assert torch.allclose(together[:, b], alone[:, 0].expand_as(together[:, b]), atol=1e-5)


def run(chain: GRAM, x: torch.Tensor, depth: int, width: int, eps: torch.Tensor | None = None):
    """The state after some depth steps, with the noise given, `[S·T, ...]`, where there is any."""
    data = {} if eps is None else {f"eps_{t}": value for t, value in enumerate(eps)}
    context = chain.encode(x)
    z = type(chain.initial(context))(*(leaf.expand(width, *leaf.shape) for leaf in chain.initial(context)))
    with poutine.condition(data=data), torch.no_grad():
        with pyro.plate("particles", width, dim=-2), pyro.plate("problems", len(x), dim=-1):
            for t in range(depth):
                z = chain.step(z, t, context)
    return z


def test_a_depth_step_has_one_site_a_transition_numbered_through():
    chain, x = make_chain(transitions=3), problems()
    trace = poutine.trace(chain.model).get_trace(x, None, 2)
    sites = [name for name, site in trace.nodes.items() if site["type"] == "sample" and name != "problems"]
    assert sites == ["eps_0", "eps_1", "eps_2", "y_0", "eps_3", "eps_4", "eps_5", "y_1"]
    assert trace.nodes["eps_0"]["value"].shape == (3, 5, 16)
    assert trace.nodes["y_1"]["value"].shape == (3, 5)


def test_the_transition_is_the_equation_of_the_paper():
    chain, x = make_chain(refinements=2), problems()
    context = chain.encode(x)
    h, l = chain.initial(context)
    e = chain.embed(x)
    l = chain.f(l + h + e)
    l = chain.f(l + h + e)
    u = chain.f(h + l)
    proposal = chain.propose(chain.initial(context), context, 0)
    assert torch.equal(proposal.u, u) and torch.equal(proposal.l, l)
    prior = chain.prior(proposal, 0).base_dist
    assert torch.allclose(prior.loc, chain.mu(u))
    config = chain.config
    assert torch.allclose(prior.scale, config.sigma_min + config.sigma_max * torch.sigmoid(chain.sigma(u)))
    eps = torch.randn_like(u)
    assert torch.equal(chain.move(proposal, eps).h, u + eps) and torch.equal(chain.move(proposal, eps).l, l)


def test_training_starts_from_the_deterministic_update():
    chain = GRAM.for_task(TASK, **SIZES)
    guide = GRAMGuide(chain)
    context = chain.encode(problems())
    proposal = chain.propose(chain.initial(context), context, 0)
    prior = chain.prior(proposal, 0)
    posterior = guide.posterior(proposal, guide.encode(problems()), 0)
    assert not prior.base_dist.loc.any()
    assert kl_divergence(posterior, prior).tolist() == [0.0, 0.0, 0.0]


# -- choices --------------------------------------------------------------------------------------------------


def test_an_unknown_body_and_sizes_that_do_not_divide_are_one_clear_sentence():
    with pytest.raises(ValueError, match='body must be "attention" or "mixer", got \'mlp\''):
        make_chain(body="mlp")
    with pytest.raises(ValueError, match="dim must be a multiple of twice the heads, got dim 18 and 4 heads"):
        make_chain(dim=18, heads=4)


def test_without_mean_the_prior_is_centred_and_without_noise_the_chain_is_deterministic():
    chain, x = make_chain(), problems()
    context = chain.encode(x)
    proposal = chain.propose(chain.initial(context), context, 0)
    centred = without(chain, mean=False).prior(proposal, 0).base_dist
    assert not centred.loc.any()
    assert torch.equal(centred.scale, chain.prior(proposal, 0).base_dist.scale)
    still = without(chain, noise=False).prior(proposal, 0)
    assert torch.equal(still.sample(), chain.mu(proposal.u)) and torch.equal(still.sample(), still.sample())


@pytest.mark.parametrize(
    ("mean", "noise", "distinct"), [(True, True, True), (False, True, True), (True, False, False)]
)
def test_ablations_run_and_only_noise_makes_trajectories_differ(mean, noise, distinct):
    chain = without(make_chain(), mean=mean, noise=noise)
    latents = sample(chain, problems(), width=4, depth=3, keep="latents").state.h
    assert bool((latents.std(0) > 1e-4).all()) == distinct
    assert bool((latents.std(0) == 0).all()) != distinct


def test_ablations_keep_the_trained_weights():
    chain = make_chain()
    ablated = without(chain, mean=False, noise=False)
    assert torch.equal(ablated.decode.weight, chain.decode.weight) and torch.equal(ablated.z0, chain.z0)
    assert ablated.mu is None and ablated.sigma is None


def test_a_widened_chain_has_its_noise_scaled_and_nothing_else(tmp_path):
    chain, x = make_chain(), problems()
    context = chain.encode(x)
    proposal = chain.propose(chain.initial(context), context, 0)
    before, after = (c.prior(proposal, 0).base_dist for c in (chain, widened(chain, 1.5)))
    torch.testing.assert_close(after.scale, 1.5 * before.scale, rtol=1e-6, atol=0)
    assert torch.equal(after.loc, before.loc)
    again = GRAM.from_pretrained(save_chain(tmp_path / "wide.safetensors", widened(chain, 1.5)))
    assert torch.equal(again.prior(proposal, 0).base_dist.scale, after.scale)


def test_noise_is_widened_in_the_first_depth_steps_alone(tmp_path):
    chain, x = make_chain(transitions=2), problems()
    early = widened(chain, 2.0, steps=2)
    assert chain.homogeneous and not early.homogeneous
    context = chain.encode(x)
    proposal = chain.propose(chain.initial(context), context, 0)
    plain = chain.prior(proposal, 0).base_dist.scale
    for t, factor in enumerate((2, 2, 2, 2, 1, 1)):
        torch.testing.assert_close(early.prior(proposal, t).base_dist.scale, factor * plain, rtol=1e-6, atol=0)
    again = GRAM.from_pretrained(save_chain(tmp_path / "early.safetensors", early))
    wide = sample(widened(chain, 2.0), x, width=4, depth=2, seed=1, keep="latents")
    expected = sample(chain, x, width=4, depth=3, seed=1, start=wide, keep="latents").state
    for found in (early, again):
        state = sample(found, x, width=4, depth=5, seed=1, keep="latents").state
        assert torch.equal(state.h, expected.h) and torch.equal(state.l, expected.l)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        widened(chain, 2.0, steps=0)
    with pytest.raises(ValueError, match="widening must be above 0 and finite, got -1"):
        make_chain(widening=-1.0)


@pytest.mark.parametrize("factor", [0.0, -1.0, math.inf, math.nan])
def test_what_cannot_be_widened_is_one_clear_sentence(factor):
    with pytest.raises(ValueError, match="factor must be above 0 and finite, got"):
        widened(make_chain(), factor)
    with pytest.raises(ValueError, match="a chain without noise .* has none to widen"):
        widened(make_chain(noise=False), 1.5)


def test_a_chain_without_noise_has_no_guide():
    with pytest.raises(ValueError, match="noise=False"):
        GRAMGuide(make_chain(noise=False))


def test_a_task_token_tells_tasks_apart_and_is_no_part_of_the_answer():
    chain = make_chain(tasks=2)
    board = problems(1).expand(2, -1)
    x = torch.cat([torch.tensor([[0], [1]]), board], 1)
    guide = make_guide(chain)
    done = sample(without(chain, noise=False), x, width=1, depth=2, keep="latents")
    assert done.answers.shape == (2, 1, 2, 5)
    assert done.state.h.shape == (1, 2, 6, 16)
    assert not torch.allclose(done.state.h[0, 0], done.state.h[0, 1])
    assert torch.equal(chain.readout(done.state).logits, chain.decode(done.state.h[:, :, 1:]))
    assert guide.encode(board).shape == (2, 6, 16)
    with guided(guide, guide.encode(board)) as q, pyro.plate("problems", 2):
        chain.step(chain.initial(chain.encode(x)), 0, chain.encode(x))
    assert q.kl.shape == (2,) and (q.kl > 0).all()
    with pytest.raises(ValueError, match=r"x must be \[B, L\] tokens, L = 6 or fewer"):
        chain.encode(torch.zeros(2, 7, dtype=torch.long))


@pytest.mark.parametrize("x", [torch.zeros(2, 6, dtype=torch.long), torch.zeros(2, 1, 5, dtype=torch.long),
                               torch.zeros(5, dtype=torch.long), torch.zeros(2, 0, dtype=torch.long)])  # fmt: skip
def test_problems_of_a_wrong_shape_are_one_clear_sentence(x):
    with pytest.raises(ValueError, match=r"x must be \[B, L\] tokens, L = 5 or fewer, got shape"):
        make_chain().encode(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bool])
def test_problems_of_a_wrong_type_are_one_clear_sentence(dtype):
    with pytest.raises(ValueError, match=f"x must hold integers \\(tokens\\), got {dtype}"):
        make_chain().encode(torch.zeros(2, 5, dtype=dtype))


# -- padding --------------------------------------------------------------------------------------------------

SMALL = torch.tensor([[0, 4, 4, 1], [4, 4, 2, 4], [4, 4, 4, 4]])


def pad(x: torch.Tensor, front: int, back: int, value: float = -1) -> torch.Tensor:
    return nn.functional.pad(x, (front, back), value=value)


@pytest.mark.parametrize(("front", "back"), [(0, 1), (0, 3), (1, 0), (2, 1)])
def test_a_padded_problem_is_answered_as_the_small_one(front, back):
    """At the end, or in front: rotary positions are relative. Noise at padded tokens changes nothing."""
    chain = make_chain(length=7)
    torch.manual_seed(1)
    eps = torch.randn(4, 2, 3, 4, 16)
    padded_eps = nn.functional.pad(eps, (0, 0, front, back), value=7.0)
    small = run(chain, SMALL, 2, width=2, eps=eps)
    padded = run(chain, pad(SMALL, front, back), 2, width=2, eps=padded_eps)
    real = slice(front, front + 4)
    assert torch.allclose(padded.h[..., real, :], small.h, atol=1e-4)
    assert torch.allclose(chain.readout(padded).logits[..., real, :], chain.readout(small).logits, atol=1e-4)
    assert not padded.h[..., :front, :].any() and not padded.h[..., front + 4 :, :].any()
    for name, logits in chain.heads(small).items():
        assert torch.allclose(chain.heads(padded)[name], logits, atol=1e-4)


def test_padding_changes_neither_kl_nor_likelihood():
    chain = make_chain(length=7)
    guide, y = make_guide(chain), torch.tensor([[0, 2, 4, 1], [4, 0, 2, 1], [1, 3, 0, 2]])
    torch.manual_seed(1)
    eps = torch.randn(3, 3, 4, 16)

    def terms(x, y, eps):
        context, evidence = chain.encode(x), guide.encode(y)
        z, result = chain.initial(context), []
        for t, noise in enumerate(eps):
            proposal = chain.propose(z, context, t)
            prior, posterior = chain.prior(proposal, t), guide.posterior(proposal, evidence, t)
            result.append(kl_divergence(posterior, prior))
            z = chain.move(proposal, noise)
        return torch.stack([*result, chain.readout(z).log_prob(y)])

    small = terms(SMALL, y, eps)
    padded = terms(pad(SMALL, 0, 3), pad(y, 0, 3), nn.functional.pad(eps, (0, 0, 0, 3), value=7.0))
    assert small.abs().min() > 1e-3
    assert torch.allclose(padded, small, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("body", ["attention", "mixer"])
def test_what_stands_at_padded_tokens_of_the_state_is_never_read(body):
    chain = make_chain(length=7, body=body, noise=False)
    context = chain.encode(pad(SMALL, 0, 3))
    z = chain.initial(context)
    other = z._replace(l=torch.where(context.mask[..., None], z.l, 5.0))
    left, right = (chain.step(start, 0, context) for start in (z, other))
    assert torch.allclose(left.h, right.h, atol=1e-5) and torch.isfinite(left.h).all()


def test_boards_of_two_sizes_share_a_batch():
    chain = make_chain(length=7, noise=False)
    large = torch.tensor([[0, 5, 5, 5, 5, 5, 5]])
    mixed = run(chain, torch.cat([pad(SMALL, 0, 3), large]), 2, width=1)
    assert torch.allclose(mixed.h[:, 3:], run(chain, large, 2, width=1).h, atol=1e-4)
    assert torch.allclose(mixed.h[:, :3, :4], run(chain, SMALL, 2, width=1).h, atol=1e-4)


# -- heads and z0 ---------------------------------------------------------------------------------------------


def test_heads_send_no_gradient_into_the_core():
    chain = make_chain()
    context = chain.encode(problems())
    with pyro.plate("problems", 3):
        z = chain.step(chain.initial(context), 0, context)
    sum(value.sum() for value in chain.heads(z).values()).backward()
    moved = {name for name, parameter in chain.named_parameters() if parameter.grad is not None}
    assert moved and all(name.startswith("judge.") for name in moved)


def test_the_readout_does_send_one():
    chain = make_chain()
    context = chain.encode(problems())
    with pyro.plate("problems", 3):
        z = chain.step(chain.initial(context), 0, context)
    chain.readout(z).log_prob(problems() % 5).sum().backward()
    still = {name for name, parameter in chain.named_parameters() if parameter.grad is None}
    assert all(name.startswith("judge.") for name in still)


def test_z0_is_one_draw_stored_with_the_weights_and_shared_by_all_problems():
    first, second = (GRAM.for_task(TASK, **SIZES) for _ in range(2))
    assert "z0" in first.state_dict() and "z0" not in dict(first.named_parameters())
    assert not torch.equal(first.z0, second.z0)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.z0, second.z0)
    h, l = first.initial(first.encode(problems()))
    assert torch.equal(h, first.z0[0].expand(3, 5, 16)) and torch.equal(l, first.z0[1].expand(3, 5, 16))


# -- chains of one's own --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.0, 0.3])
def test_an_existing_recursion_becomes_a_chain(sigma):
    torch.manual_seed(0)
    f, embed, readout = nn.Linear(8, 8), nn.Embedding(6, 8), nn.Linear(8, 5)
    chain = Chain.from_module(
        lambda h, e: torch.tanh(f(h) + e), readout, state_shape=(5, 8), encode=embed, sigma=sigma, transitions=2
    )
    run = sample(chain, problems(), width=6, depth=3, keep="latents")
    assert run.answers.shape == (3, 6, 3, 5) and run.answers.dtype == torch.uint8
    assert run.heads == {}
    assert bool((run.state.std(0) > 0).all()) == (sigma > 0)
    assert {name for name, _ in chain.named_parameters()} == {
        "to_context.weight", "to_logits.weight", "to_logits.bias"}  # fmt: skip
    if sigma == 0:  # then a step is the recursion itself, twice
        h = chain.z0.expand(3, 5, 8)
        for _ in range(6):
            h = torch.tanh(f(h) + embed(problems()))
        assert torch.allclose(run.state[0], h, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigma": -0.1}, "sigma must be at least 0, got -0.1"),
        ({"transitions": 0}, "transitions must be at least 1, got 0"),
    ],
)
def test_a_recursion_with_senseless_settings_is_one_clear_sentence(changes, message):
    with pytest.raises(ValueError, match=message):
        Chain.from_module(lambda h, e: h, nn.Linear(8, 5), (5, 8), **changes)


class Walk(Chain):
    """A user's whole chain."""

    homogeneous = True

    def __init__(self, dim=12):
        super().__init__()
        self.embed, self.f, self.out = nn.Embedding(6, dim), nn.Linear(2 * dim, dim), nn.Linear(dim, 5)

    def encode(self, x):
        return self.embed(x)

    def initial(self, context):
        return torch.zeros_like(context)

    def propose(self, state, context, t):
        return torch.tanh(self.f(torch.cat([state, context.expand_as(state)], -1)))

    def prior(self, proposal, t):
        return dist.Normal(torch.zeros_like(proposal), 0.5).to_event(2)

    def readout(self, state):
        return dist.Categorical(logits=self.out(state)).to_event(1)


class WalkGuide(Guide):
    """And its guide."""

    def __init__(self, dim=12):
        super().__init__()
        self.embed, self.mu = nn.Embedding(5, dim), nn.Linear(2 * dim, dim)

    def encode(self, y):
        return self.embed(y)

    def posterior(self, proposal, evidence, t):
        return dist.Normal(self.mu(torch.cat([proposal, evidence.expand_as(proposal)], -1)), 0.5).to_event(2)


def test_a_chain_of_ones_own_takes_under_thirty_lines_and_trains_and_samples():
    assert len(inspect.getsource(Walk).splitlines()) < 30
    torch.manual_seed(0)
    chain, guide = Walk(), WalkGuide()
    before = {name: value.clone() for name, value in (*chain.named_parameters(), *guide.named_parameters())}
    result = fit(
        chain, guide, TASK, 30, batch=32, log_every=10, validate_every=0, warm_up=1, progress=False, ema=0.5
    )
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    after = dict((*chain.named_parameters(), *guide.named_parameters()))
    assert all(not torch.equal(before[name], after[name]) for name in before)
    run = sample(chain, problems(), width=5, depth=4)
    assert run.answers.shape == (4, 5, 3, 5) and run.answers.max() < 5


def test_a_method_that_is_missing_is_named():
    class Unfinished(Chain):
        def initial(self, context):
            return torch.zeros(len(context), 2)

    with pytest.raises(NotImplementedError, match=r"Unfinished must define propose\(state, context, t\)"):
        sample(Unfinished(), [[0, 1]], width=1, depth=1)
