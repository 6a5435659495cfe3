"""PTRM: the trained chain in noise; the law of the noise, where it enters, what stays the chain's own."""

import copy
import math

import pytest
import torch
from pyro import poutine
from torch import nn

from probgram import Chain, solve, tasks
from probgram.checkpoint import load_chain, save_chain
from probgram.inference import best, evaluate, sample, smc
from probgram.inference.potentials import halt
from probgram.models import GRAM, TRM, LoopedTransformer, Perturbed

TASK = tasks.Queens(5)
X = torch.from_numpy(TASK.examples("train")[0][:3])


def make(kind=TRM, **choices):
    torch.manual_seed(0)
    chain = kind.for_task(TASK, dim=16, heads=2, hidden=24, **choices)
    nn.init.normal_(chain.judge.out.weight)
    return chain.eval()


def sites(chain, depth=2):
    trace = poutine.trace(chain.model).get_trace(X, None, depth)
    return {name: site for name, site in trace.nodes.items() if name.startswith("noise_")}


def test_there_is_one_site_a_depth_step_over_the_named_leaves():
    found = sites(Perturbed(make(transitions=3), 0.3))
    assert list(found) == ["noise_0", "noise_1"]
    assert found["noise_0"]["value"].shape == (3, 2 * 5 * 16)
    assert sites(Perturbed(make(), 0.3, on=("l",)))["noise_0"]["value"].shape == (3, 5 * 16)
    assert found["noise_0"]["fn"].base_dist.scale.unique().tolist() == pytest.approx([0.3])


@pytest.mark.parametrize("on", [("h",), ("l",), ("l", "h")])
def test_a_depth_step_is_the_chains_own_from_the_state_with_noise_added(on):
    chain = make()
    perturbed = Perturbed(chain, 0.3, on)
    context = chain.encode(X)
    state = chain.initial(context)
    noise = torch.randn(3, len(on), 5, 16)
    with poutine.condition(data={"noise_0": noise.flatten(1)}):
        moved = perturbed.step(state, 0, context)
    named = state._asdict()
    shifted = state._replace(**{name: named[name] + noise[:, i] for i, name in enumerate(on)})
    expected = chain.step(shifted, 0, context)
    assert torch.equal(moved.h, expected.h) and torch.equal(moved.l, expected.l)


def test_trajectories_spread_with_sigma_and_the_chain_is_the_limit():
    chain = make()
    alone = sample(chain, X, width=1, depth=3, keep="latents").state.h
    small, large = (sample(Perturbed(chain, s), X, 16, 3, keep="latents").state.h for s in (1e-5, 0.5))
    assert torch.allclose(small, alone.expand_as(small), atol=1e-2)
    assert bool((large.std(0).mean((-1, -2)) > 10 * small.std(0).mean((-1, -2))).all())


def test_it_runs_wherever_a_chain_does_and_the_halt_head_chooses():
    perturbed = Perturbed(make(), 0.5)
    run = sample(perturbed, X, width=6, depth=3)
    chosen = best(run, head="halt")
    assert torch.equal(chosen.slot, run.heads["halt"][-1].argmax(0))
    filtered = smc.run(perturbed, X, width=6, depth=3, potential=halt, ess_threshold=1.0)
    assert filtered.ancestors is not None and filtered.log_normalizer.shape == (3, 3)
    assert evaluate(perturbed, TASK, width=2, depth=2, seeds=(0,), problems=4).mean("valid") <= 1
    assert solve(perturbed, "0 . . . .", width=3, depth=2, task=TASK).answers.shape[1] == 5
    halted = sample(perturbed, X, width=6, depth=3, halt_probability=0.5)
    assert halted.halted is not None


def test_problems_that_have_ended_leave_the_batch_and_the_others_see_the_noise_they_would_have_seen():
    perturbed, x = Perturbed(make(), 0.5), torch.from_numpy(TASK.examples("train")[0][:4])
    depth = torch.tensor([2, 2, 2, 8])
    widths = []
    choices = {"width": 6, "potential": halt, "ess_threshold": 1.0}
    mixed = smc.run(perturbed, x, depth=depth, callback=lambda s, _: widths.append(s.ess.shape[0]), **choices)
    whole = smc.run(perturbed, x, depth=8, **choices)
    assert widths == [4] * 4 + [1] * 4
    assert torch.equal(mixed.answers[:, :, 3], whole.answers[:, :, 3])


def test_any_chain_can_be_perturbed():
    flat = Perturbed(make(LoopedTransformer), 0.3, on=("h",))
    noisy = Perturbed(make(GRAM), 0.3)
    embed = nn.Embedding(6, 8)
    bare = Chain.from_module(
        lambda h, e: torch.tanh(h + e), nn.Linear(8, 5), state_shape=(5, 8), encode=embed, sigma=0.0
    )
    for chain in (flat, noisy, Perturbed(bare, 0.3, on=("state",))):
        assert sample(chain, X, width=4, depth=2).answers.shape == (2, 4, 3, 5)


def test_padding_changes_nothing():
    perturbed = Perturbed(make(), 0.3)
    small = torch.tensor([[0, 4, 4, 1], [4, 4, 2, 4]])
    noise = torch.randn(2, 2, 4, 16)
    wide = nn.functional.pad(small, (0, 1), value=-1), nn.functional.pad(noise, (0, 0, 0, 1), value=9.0)
    states = []
    for x, eps in ((small, noise), wide):
        context = perturbed.encode(x)
        with poutine.condition(data={"noise_0": eps.flatten(1)}):
            states.append(perturbed.step(perturbed.initial(context), 0, context))
    assert torch.allclose(states[1].h[:, :4], states[0].h, atol=1e-4) and not states[1].h[:, 4:].any()
    for name, logits in perturbed.heads(states[0]).items():
        assert torch.allclose(perturbed.heads(states[1])[name], logits, atol=1e-4)


def test_it_is_saved_with_the_chain_inside(tmp_path):
    perturbed = Perturbed(make(), 0.25, on=("l",))
    save_chain(tmp_path / "weights.safetensors", perturbed, about={"task": "queens5"})
    again = load_chain(tmp_path / "weights.safetensors")
    assert (again.sigma, again.on, again.about["task"]) == (0.25, ("l",), "queens5")
    before, after = (sample(chain, X, width=4, depth=2, seed=1) for chain in (perturbed, again))
    assert torch.equal(before.answers, after.answers)


def test_it_knows_the_task_of_its_chain():
    chain = make()
    chain.about = {"task": "queens5"}
    assert solve(Perturbed(chain, 0.1), "0 . . . .", width=2, depth=1).run.task == "queens5"


@pytest.mark.parametrize("sigma", [0, -1.0, math.nan])
def test_a_sigma_that_is_no_noise_is_one_clear_sentence(sigma):
    with pytest.raises(ValueError, match="sigma must be above 0, got"):
        Perturbed(make(), sigma)


def test_a_leaf_that_the_state_lacks_is_named():
    with pytest.raises(ValueError, match="on must name leaves of the state, h, got 'l'"):
        sample(Perturbed(make(LoopedTransformer), 0.1), X, width=2, depth=1)
    with pytest.raises(ValueError, match="on must be a sequence of leaf names, got 'h'"):
        Perturbed(make(), 0.1, on="h")


def test_a_copy_has_a_chain_of_its_own():
    ptrm = Perturbed(make(), 0.5)
    copied = copy.deepcopy(ptrm)
    before = ptrm.encode(X).embedded.clone()
    with torch.no_grad():
        copied.chain.embed.weight.zero_()
    torch.testing.assert_close(ptrm.encode(X).embedded, before, rtol=0, atol=0)
    assert not copied.encode(X).embedded.any()
