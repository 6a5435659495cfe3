"""What every reasoner keeps (shapes, padding, gradients, training, files), and each one's own equation."""

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, TraceMeanField_ELBO
from pyro.optim import Adam
from torch import nn
from torch.distributions import kl_divergence

from probgram import Guide, solve, tasks
from probgram.checkpoint import save_chain
from probgram.inference import best, evaluate, fit, fit_heads, guided, sample
from probgram.inference.batches import Batches, as_known_answers
from probgram.inference.handlers import start
from probgram.inference.objective import Objective, ObjectiveConfig
from probgram.inference.recipes import bridged, deep_supervision, end_to_end
from probgram.models import GRAM, HRM, TRM, Direct, EqR, LoopedFlow, LoopedFlowGuide, LoopedTransformer, Perturbed

TASK = tasks.Queens(5)
SIZES = {"dim": 16, "heads": 2, "hidden": 24}
RECIPES = {
    Direct: (end_to_end(), {"blocks": 3}),
    LoopedTransformer: (end_to_end(), {"transitions": 3}),
    TRM: (deep_supervision(depth=4), {}),
    HRM: (deep_supervision(depth=4), {}),
    EqR: (deep_supervision(depth=4), {}),
    LoopedFlow: (bridged(depth=4), {"steps": 4}),
}
LEVELS = {
    EqR: ("z_0", (2,)),
    LoopedFlow: ("path", ()),
}  # the site before the first step, and dimensions before [L, D]
every_reasoner = pytest.mark.parametrize("kind", RECIPES, ids=lambda kind: kind.__name__)


def make(kind, **choices):
    """A small chain with no parameter left at zero."""
    torch.manual_seed(0)
    _, own = RECIPES.get(kind, (None, {}))
    chain = kind.for_task(TASK, **(SIZES | own | choices))
    nn.init.normal_(chain.judge.out.weight)
    return chain


def make_guide(chain) -> Guide | None:
    """What its recipe needs beside it."""
    return LoopedFlowGuide(chain) if isinstance(chain, LoopedFlow) else None


def draws(chain, depth, width, x) -> dict[str, torch.Tensor]:
    """Noise for every site that has some, by name, `[N, B, ...]`."""
    if type(chain) not in LEVELS:
        return {}
    first, levels = LEVELS[type(chain)]
    names = [first, *(f"eps_{t}" for t in range(depth * chain.transitions))]
    return {name: torch.randn(width, len(x), *levels, x.shape[1], 16) for name in names}


def problems(b: int = 3) -> torch.Tensor:
    return torch.from_numpy(TASK.examples("train")[0][:b])


def run(chain, x, depth, width, data=None):
    """The state after some depth steps; `data` fixes sites by name."""
    context = chain.encode(x)
    with poutine.condition(data=data or {}), torch.no_grad():
        with pyro.plate("particles", width, dim=-2), pyro.plate("problems", len(x), dim=-1):
            state = start(chain, (width, len(x)), context)
            for t in range(depth):
                state = chain.step(state, t, context)
    return state


# -- what all keep --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [(), (4,), (2, 4)], ids=str)
@every_reasoner
def test_every_method_keeps_any_number_of_batch_dimensions(kind, left):
    chain, x = make(kind), problems()
    context = chain.encode(x)
    state = chain.initial(context)
    state = type(state)(*(leaf.expand(*left, *leaf.shape) for leaf in state))
    proposal = chain.propose(state, context, 0)
    prior = chain.prior(proposal, 0)
    assert prior.batch_shape == (*left, 3)
    moved = chain.move(proposal, prior.sample())
    assert [leaf.shape for leaf in moved] == [leaf.shape for leaf in state]
    readout = chain.readout(moved)
    assert readout.batch_shape == (*left, 3) and readout.event_shape == (5,)
    assert all(logits.shape == (*left, 3) for logits in chain.heads(moved).values())
    assert {"value", "halt"} <= set(chain.heads(moved))


@every_reasoner
def test_a_padded_problem_is_answered_as_the_small_one(kind):
    """Noise at padded tokens changes nothing."""
    chain = make(kind).eval()
    small, y = torch.tensor([[0, 4, 4, 1], [4, 4, 2, 4]]), torch.tensor([[0, 2, 4, 1], [1, 3, 2, 0]])
    data = draws(chain, 2, 2, small)
    wide = {name: nn.functional.pad(value, (0, 0, 0, 1), value=7.0) for name, value in data.items()}
    alone = run(chain, small, 2, 2, data)
    padded = run(chain, nn.functional.pad(small, (0, 1), value=-1), 2, 2, wide)
    assert torch.allclose(padded.h[..., :4, :], alone.h, atol=1e-4) and not padded.h[..., 4:, :].any()
    for name, logits in chain.heads(alone).items():
        assert torch.allclose(chain.heads(padded)[name], logits, atol=1e-4)
    y_padded = nn.functional.pad(y, (0, 1), value=-1)
    assert torch.allclose(chain.readout(padded).log_prob(y_padded), chain.readout(alone).log_prob(y), atol=1e-4)


@every_reasoner
def test_particles_and_problems_do_not_see_each_other(kind):
    """As many particles as problems as tokens: nothing may take one for another."""
    chain, x = make(kind).eval(), problems(5)
    data = draws(chain, 2, 5, x)
    together = chain.readout(run(chain, x, 2, 5, data)).logits
    for b in range(5):
        own = {name: value[:, b : b + 1] for name, value in data.items()}
        alone = chain.readout(run(chain, x[b : b + 1], 2, 5, own)).logits
        assert torch.allclose(together[:, b], alone[:, 0], atol=1e-5)


def gradients(chain, config: ObjectiveConfig, depth_steps: int) -> dict[str, torch.Tensor | None]:
    """Those of a depth step of training, the last of some."""
    guide = make_guide(chain)
    objective = Objective(chain, guide, config, TASK)
    batches = Batches(as_known_answers(TASK), 8, 1, config.depth, 0, staggered=False)
    rollout = batches.start(torch.device("cpu"))
    for _ in range(depth_steps):
        result = objective(rollout)
        rollout = result.rollout
    chain.zero_grad()
    result.loss.backward()
    return {name: parameter.grad for name, parameter in chain.named_parameters()}


@every_reasoner
def test_under_its_recipe_a_gradient_reaches_every_parameter(kind):
    config, _ = RECIPES[kind]
    found = gradients(make(kind), config, min(2, config.depth))
    if kind is LoopedFlow:  # the guide's path says nothing of prior states, which heads are trained on
        found = {name: gradient for name, gradient in found.items() if not name.startswith("judge.")}
    assert all(gradient is not None and bool(gradient.any()) for gradient in found.values()), [
        name for name, gradient in found.items() if gradient is None or not gradient.any()
    ]


@every_reasoner
def test_twenty_steps_of_training_lower_the_loss(kind):
    config, _ = RECIPES[kind]
    chain = make(kind)
    settings = {"batch": 32, "lr": 3e-3, "warm_up": 1, "log_every": 1, "validate_every": 0, "progress": False}
    result = fit(chain, make_guide(chain), TASK, 20, objective=config, **settings)
    loss = [line["reconstruction"] for line in result.history]
    assert sum(loss[-4:]) < 0.85 * sum(loss[:4])
    assert not chain.training


@every_reasoner
def test_it_is_trained_in_half_precision_as_well(kind):
    settings = {"batch": 8, "precision": "bf16", "validate_every": 0, "progress": False, "log_every": 1}
    chain = make(kind)
    result = fit(chain, make_guide(chain), TASK, 3, objective=RECIPES[kind][0], **settings)
    assert all(line["loss"] < 100 for line in result.history)
    assert {parameter.dtype for parameter in chain.parameters()} == {torch.float32}


@every_reasoner
def test_weights_are_saved_and_found_again(kind, tmp_path):
    chain = make(kind)
    save_chain(tmp_path / "weights.safetensors", chain, about={"task": "queens5"})
    again = kind.from_pretrained(tmp_path / "weights.safetensors")
    assert again.configuration() == chain.configuration() and again.about["task"] == "queens5"
    x = problems()
    chain.eval()
    before, after = (sample(c, x, width=2, depth=2, seed=3) for c in (chain, again))
    assert torch.equal(before.answers, after.answers) and torch.equal(before.heads["halt"], after.heads["halt"])


@every_reasoner
def test_it_is_evaluated_like_any_chain(kind):
    report = evaluate(make(kind).eval(), TASK, width=3, depth=2, seeds=(0,), problems=5)
    assert 0 <= report.mean("valid") <= report.mean("pass_at_n") <= 1


@every_reasoner
def test_it_is_a_pyro_program(kind):
    chain, x = make(kind), problems()
    trace = poutine.trace(chain.model).get_trace(x, None, 2)
    sites = [name for name, site in trace.nodes.items() if site["type"] == "sample" and name != "problems"]
    own = [name for name in sites if name.startswith("eps_")]
    assert own == [f"eps_{t}" for t in range(2 * chain.transitions)] and sites[-1] == "y_1"


# -- direct prediction and the looped transformer -------------------------------------------------------------


def test_direct_prediction_applies_its_blocks_once_and_deeper_runs_repeat_the_answer():
    chain, x = make(Direct, blocks=4), problems()
    once, deeper = run(chain, x, 1, width=2), run(chain, x, 3, width=2)
    assert len(chain.f.blocks) == 4
    assert torch.allclose(once.h[0], chain.f(chain.embed(x)), atol=1e-6) and torch.equal(once.h, deeper.h)


def test_a_looped_transformer_injects_its_input_at_every_loop():
    chain, x = make(LoopedTransformer, transitions=3), problems()
    h = chain.z0[0].expand(3, 5, 16)
    for _ in range(6):
        h = chain.f(h + chain.embed(x))
    assert torch.allclose(run(chain, x, 2, width=1).h[0], h, atol=1e-5)


def test_a_looped_transformer_is_trained_through_all_its_loops():
    shallow, deep = (gradients(make(LoopedTransformer, transitions=t), end_to_end(), 1) for t in (1, 3))
    cut = gradients(make(LoopedTransformer, transitions=3), end_to_end(gradient="transition"), 1)
    name = "f.blocks.0.mix.qkv.weight"
    assert not torch.allclose(deep[name], cut[name], rtol=0.05)
    assert not torch.allclose(deep[name], shallow[name], rtol=0.05)


# -- TRM and HRM ----------------------------------------------------------------------------------------------


def test_trm_is_gram_without_mean_and_noise():
    gram = make(GRAM, mean=False, noise=False, refinements=2, transitions=3)
    trm = make(TRM, refinements=2, transitions=3)
    trm.load_state_dict(gram.state_dict())
    x = problems()
    one, other = (run(chain, x, 3, width=2) for chain in (gram, trm))
    assert torch.equal(one.h, other.h) and torch.equal(one.l, other.l)
    config = deep_supervision(depth=3)
    a, b = (gradients(chain, config, 2) for chain in (gram, trm))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_hrm_has_a_network_a_level():
    chain, x = make(HRM, refinements=2, transitions=2), problems()
    h, l = (z.expand(3, 5, 16) for z in chain.z0)
    for _ in range(2):
        for _ in range(2):
            l = chain.f(l + h + chain.embed(x))
        h = chain.f_high(h + l)
    state = run(chain, x, 1, width=1)
    assert torch.allclose(state.h[0], h, atol=1e-5) and torch.allclose(state.l[0], l, atol=1e-5)


def test_hrm_sends_its_gradient_through_the_last_application_of_each_network():
    chain, x = make(HRM, refinements=3), problems()
    context = chain.encode(x)
    with torch.no_grad():
        h, l = chain.initial(context)
        before = l
        for _ in range(2):
            before = chain.f(before + h + context.embedded)
    weight = chain.f.blocks[0].mix.qkv.weight
    loss = chain.f_high(h + chain.f(before + h + context.embedded)).square().mul(torch.arange(16)).sum()
    (expected,) = torch.autograd.grad(loss, weight)
    proposal = chain.propose(chain.initial(context), chain.encode(x), 0)
    (found,) = torch.autograd.grad(proposal.u.square().mul(torch.arange(16)).sum(), weight)
    assert torch.allclose(found, expected, atol=1e-5) and expected.any()


# -- EqR ------------------------------------------------------------------------------------------------------


def test_eqr_is_a_damped_trm_from_a_random_start_in_noise():
    chain, x = make(EqR, refinements=2, transitions=2, damping=0.7, sigma=0.2).eval(), problems()
    data = draws(chain, 2, 1, x)
    assert set(draws(chain, 2, 1, x)) == {"z_0", "eps_0", "eps_1", "eps_2", "eps_3"}
    states = [run(chain, x, depth, 1, data) for depth in (1, 2)]
    h, l = data["z_0"][0].unbind(1)
    for depth in range(2):
        before = torch.stack([h, l])
        for t in (2 * depth, 2 * depth + 1):
            for _ in range(2):
                l = 0.3 * l + 0.7 * chain.f(l + h + chain.embed(x))
            h = 0.3 * h + 0.7 * chain.f(h + l)
            h, l = h + data[f"eps_{t}"][0, :, 0], l + data[f"eps_{t}"][0, :, 1]
        assert torch.allclose(states[depth].h[0], h, atol=1e-5) and torch.allclose(states[depth].l[0], l, atol=1e-5)
        residual = (torch.stack([h, l]) - before).square().mean((0, 2, 3)).sqrt()
        assert torch.allclose(states[depth].residual[0], residual, atol=1e-5)
    trace = poutine.trace(chain.model).get_trace(x, None, 1)
    assert trace.nodes["z_0"]["fn"].base_dist.scale.unique().item() == 1
    assert trace.nodes["eps_0"]["fn"].base_dist.scale.unique().item() == pytest.approx(0.2)


def test_the_restart_that_moves_least_is_chosen():
    sampled = sample(make(EqR).eval(), problems(), width=8, depth=3, keep="latents")
    assert torch.equal(best(sampled, head="residual").slot, sampled.state.residual.argmin(0))
    assert bool((sampled.state.residual > 0).all()) and len(sampled.state.residual.unique()) == 24


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"damping": 0.0}, "damping must be above 0 and at most 1, got 0.0"),
        ({"sigma": -0.1}, "sigma must be at least 0, got -0.1"),
    ],
)
def test_senseless_settings_of_eqr_are_one_clear_sentence(choices, message):
    with pytest.raises(ValueError, match=message):
        make(EqR, **choices)


# -- looped flow ----------------------------------------------------------------------------------------------


def flow_path(chain, x, y, depth):
    """States of a guided run, the first included."""
    guide, context = LoopedFlowGuide(chain), chain.encode(x)
    with torch.no_grad(), guided(guide, guide.encode(y)) as q, pyro.plate("problems", len(x), dim=-1):
        states = [chain.init(context)]
        for t in range(depth):
            states.append(chain.step(states[-1], t, context))
    return states, q.sites


@pytest.mark.parametrize("training", [False, True])
def test_the_guides_path_is_the_straight_line_from_noise_to_the_answer(training):
    chain, x = make(LoopedFlow, sigma=1e-6).train(training), problems()
    y = torch.from_numpy(TASK.examples("train")[1][:3])
    states, _ = flow_path(chain, x, y, 4)
    times = states[0].times
    if training:
        assert bool((times.diff() >= 0).all()) and len(times.unique()) == 3 * 3 + 2
        assert not times[:, 0].any() and bool((times[:, -1] == 1).all())
    else:
        assert torch.allclose(times, torch.tensor([0, 0.25, 0.5, 0.75, 1]).expand(3, -1))
    for n, state in enumerate(states):
        t = times[:, n, None, None]
        assert torch.allclose(state.path, (1 - t) * states[0].path + t * chain.codes[y], atol=1e-3)


def test_the_priors_path_goes_to_the_answer_that_is_expected_and_stays_there():
    chain, x = make(LoopedFlow, sigma=1e-6).eval(), problems()
    states = [run(chain, x, depth, 1, {"path": torch.ones(1, 3, 5, 16)}) for depth in range(7)]
    expected = [chain.readout(state).logits.softmax(-1) @ chain.codes for state in states]
    for n in range(1, 5):
        t, before = (n - 1) / 4, states[n - 1].path
        velocity = (expected[n] - before) / (1 - t)
        assert torch.allclose(states[n].path, before + velocity / 4, atol=1e-3)
    for n in (4, 5, 6):
        assert torch.allclose(states[n].path, expected[n], atol=2e-3)


def test_prior_and_guide_differ_by_the_squared_error_of_the_velocity():
    chain, x = make(LoopedFlow, sigma=0.5).eval(), problems()
    y = torch.from_numpy(TASK.examples("train")[1][:3])
    states, sites = flow_path(chain, x, y, 3)
    for n, site in enumerate(sites):
        error = chain.codes[y] - chain.readout(states[n + 1]).logits.softmax(-1) @ chain.codes
        velocity = error / (1 - n / 4)
        assert torch.allclose(site.kl, velocity.square().sum((-1, -2)) * 0.25 / (2 * 0.5**2), rtol=1e-4)


def test_padding_and_task_tokens_of_a_flow_are_not_charged():
    chain = make(LoopedFlow, tasks=2).eval()
    x = torch.tensor([[0, 0, 4, 4, 1, -1], [1, 4, 4, 2, 4, -1]])
    y = torch.tensor([[0, 2, 4, 1, -1], [1, 3, 2, 0, -1]])
    states, sites = flow_path(chain, x, y, 2)
    assert states[-1].path.shape == (2, 6, 16) and chain.readout(states[-1]).logits.shape == (2, 5, 5)
    charged = kl_divergence(sites[0].posterior.base_dist, sites[0].prior.base_dist).sum(-1)
    assert not charged[:, 0].any() and not charged[:, 5].any() and bool((charged[:, 1:5] > 0).all())


def test_a_flow_and_its_guide_are_trained_by_pyros_own_svi():
    chain = make(LoopedFlow)
    x, y = (torch.from_numpy(part[:8]) for part in TASK.examples("train"))
    elbo = TraceMeanField_ELBO(max_plate_nesting=1)
    svi = SVI(chain.model, chain.guide(LoopedFlowGuide(chain)), Adam({"lr": 3e-3}), elbo)
    losses = [svi.step(x, y, depth=4) for _ in range(10)]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


def test_the_heads_of_a_flow_are_trained_on_prior_states_afterwards():
    chain = make(LoopedFlow)
    before = {name: value.clone() for name, value in chain.state_dict().items()}
    fit_heads(chain, ("judge",), TASK, 5, depth=4, batch=8, validate_every=0, progress=False)
    moved = {name for name, value in chain.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and all(name.startswith("judge.") for name in moved)


@pytest.mark.parametrize(
    ("choices", "message"),
    [({"steps": 0}, "steps must be at least 1 .* got 0 and 0.1"), ({"sigma": 0.0}, "sigma above 0, got 4 and 0.0")],
)
def test_senseless_settings_of_a_flow_are_one_clear_sentence(choices, message):
    with pytest.raises(ValueError, match=message):
        make(LoopedFlow, **choices)


# -- recipes --------------------------------------------------------------------------------------------------


def test_a_recipe_takes_any_other_option():
    assert (
        deep_supervision(depth=5, heads=0.5).heads == 0.5 and deep_supervision(gradient="step").gradient == "step"
    )
    assert end_to_end(particles=3).particles == 3 and end_to_end().depth == 1
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        deep_supervision(depth=0)


def test_a_flow_draws_its_times_in_training_only():
    """`sample` is the law of inference in a chain that is being trained; heads are trained on that law, too."""
    chain, x = make(LoopedFlow).train(), problems()
    even = torch.linspace(0, 1, 5)
    seen = []
    sample(chain, x, width=3, depth=2, callback=lambda view: seen.append(view.state.times))
    torch.testing.assert_close(seen[-1], even.expand(3, len(x), -1))
    assert all(part.training for part in chain.modules())

    initial, times = LoopedFlow.initial, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LoopedFlow, "initial", lambda *given: times.append(initial(*given)) or times[-1])
        fit_heads(chain, ("judge",), TASK, steps=2, depth=4, progress=False, validate_every=0)
        heads = [state.times for state in times]
        times.clear()
        fit(chain, make_guide(chain), TASK, steps=2, objective=bridged(depth=4), progress=False, validate_every=0)
    assert all(bool((t == even).all()) for t in heads)
    assert not any(bool((t == even).all()) for t in [state.times for state in times][-2:])


def test_a_flow_is_trained_and_asked_at_its_own_depth():
    chain = make(LoopedFlow)
    assert solve(chain, [None] * 5, task=TASK, width=2).run.depth == 4
    assert solve(Perturbed(chain, 0.1), [None] * 5, task=TASK, width=2).run.depth == 4
    with pytest.raises(ValueError, match="LoopedFlow is made for 4 depth steps, .* must be 4, got 8"):
        fit(chain, make_guide(chain), TASK, steps=1, objective=bridged(depth=8), progress=False)


def test_eqr_without_path_noise_settles():
    """f = 0 halves the state in each of three updates of h, so the residual goes to zero."""
    chain, x = make(EqR, damping=0.5, sigma=0.0).eval(), problems()
    for block in chain.f.modules():
        if isinstance(block, nn.Linear):
            nn.init.zeros_(block.weight)
    chain.f.forward = lambda h, mask: torch.zeros_like(h)
    run = sample(chain, x, width=2, depth=20)
    assert float(run.heads["residual"][-1].abs().max()) < 1e-6 < float(run.heads["residual"][0].abs().min())


def test_noise_on_padded_tokens_is_no_residual():
    chain, x = make(EqR).eval(), problems()
    padded = torch.cat([x, torch.full((len(x), 0), -1)], 1)
    padded[:, -2:] = -1
    state = chain.initial(chain.encode(padded))
    moved = chain.step(state, 0, chain.encode(padded))
    shaken = state._replace(h=state.h + 9.0 * (padded < 0)[..., None])
    torch.manual_seed(1)
    one = chain.step(state, 0, chain.encode(padded)).residual
    torch.manual_seed(1)
    other = chain.step(shaken, 0, chain.encode(padded)).residual
    assert moved.h.shape == state.h.shape
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"transitions": 0}, "transitions must be at least 1, got 0"),
        ({"refinements": -1}, "refinements must be at least 1, got -1"),
        ({"blocks": 0}, "blocks must be at least 1, got 0"),
        ({"heads": 0}, "heads must be at least 1, got 0"),
        ({"hidden": 24.0}, "hidden must be an integer, got 24.0"),
        ({"tasks": -1}, "tasks must be at least 0, got -1"),
    ],
)
def test_sizes_that_make_no_network_are_one_clear_sentence(choice, message):
    with pytest.raises(ValueError, match=message):
        make(GRAM, **choice)
