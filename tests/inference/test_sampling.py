"""Sampling: same seed same run, chunks and continuations that change nothing, bad input in one sentence."""

import re

import numpy as np
import pytest
import torch
from pyro import distributions as dist
from torch import nn

from probgram import Chain, fit, tasks
from probgram.checkpoint import weights_of
from probgram.inference import sample
from probgram.models import GRAM

TASK = tasks.Queens(5)


def make_chain(**choices) -> GRAM:
    """A small chain whose noise matters."""
    torch.manual_seed(0)
    chain = GRAM.for_task(TASK, **({"dim": 16, "heads": 2, "blocks": 1, "hidden": 24} | choices))
    for parameter in chain.parameters():
        nn.init.normal_(parameter, std=0.3)
    return chain.eval()


CHAIN = make_chain()
X = torch.from_numpy(TASK.examples("train")[0][:3])


def same(a, b) -> bool:
    return (
        torch.equal(a.answers, b.answers)
        and torch.equal(a.log_weights, b.log_weights)
        and all(torch.equal(a.heads[k], b.heads[k]) for k in a.heads)
    )


# -- what a run holds -----------------------------------------------------------------------------------------


def test_a_run_has_every_shape_that_is_documented():
    run = sample(CHAIN, X, width=7, depth=4, task="queens5")
    assert run.answers.shape == (4, 7, 3, 5) and run.answers.dtype == torch.uint8
    assert run.log_weights.shape == (4, 7, 3) and not run.log_weights.any()
    assert run.log_normalizer.shape == (4, 3) and not run.log_normalizer.any()
    assert {k: v.shape for k, v in run.heads.items()} == {"value": (4, 7, 3), "halt": (4, 7, 3)}
    assert torch.equal(run.x, X) and run.ancestors is run.halted is run.state is None
    assert (run.depths, run.depth, run.task, run.seed) == ((1, 2, 3, 4), 4, "queens5", 0)
    settings = {"width": 7, "depth": 4, "seed": 0, "decode": "mode", "halt_probability": None}
    assert run.settings == settings | {"weights": weights_of(CHAIN)}
    assert not run.answers.requires_grad and not run.heads["value"].requires_grad


def test_the_answer_is_the_readouts_mode_and_heads_are_the_chains():
    run = sample(CHAIN, X, width=4, depth=2, keep="latents")
    assert torch.equal(run.answers[-1].long(), CHAIN.readout(run.state).mode)
    for name, logits in CHAIN.heads(run.state).items():
        assert torch.equal(run.heads[name][-1], logits)


def test_one_problem_may_be_given_without_a_batch_dimension_as_a_list_or_an_array():
    whole = sample(CHAIN, X[:1], width=4, depth=2)
    for x in (X[0], X[0].tolist(), X[0].numpy(), X[0].to(torch.uint8), X[:1].numpy().astype(np.uint8)):
        assert same(sample(CHAIN, x, width=4, depth=2), whole)


def test_keep_last_records_the_last_depth_step_only():
    paths, last = sample(CHAIN, X, 4, 5), sample(CHAIN, X, 4, 5, keep="last")
    assert last.depths == (5,) and last.answers.shape == (1, 4, 3, 5) and last.depth == 5
    assert torch.equal(last.answers[-1], paths.answers[-1])
    assert torch.equal(last.heads["value"][-1], paths.heads["value"][-1])


def test_depth_may_exceed_any_depth_of_training():
    run = sample(CHAIN, X, width=2, depth=60, keep="latents")
    assert run.depth == 60 and all(torch.isfinite(leaf).all() for leaf in run.state)


def test_a_callback_sees_every_depth_step():
    seen = []
    run = sample(CHAIN, X, 4, 3, callback=seen.append)
    assert [view.depth for view in seen] == [1, 2, 3]
    assert all(torch.equal(view.answers, answers) for view, answers in zip(seen, run.answers, strict=True))
    assert seen[0].state.h.shape == (4, 3, 5, 16)


# -- randomness -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decode", ["mode", "sample"])
def test_the_same_seed_gives_the_same_run_and_another_another(decode):
    first, again = (sample(CHAIN, X, 8, 4, seed=3, decode=decode) for _ in range(2))
    other = sample(CHAIN, X, 8, 4, seed=4, decode=decode)
    assert same(first, again) and not same(first, other)


@pytest.mark.parametrize("decode", ["mode", "sample"])
def test_the_global_generators_are_neither_read_nor_moved(decode):
    torch.manual_seed(11)
    before, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = sample(CHAIN, X, 8, 3, decode=decode)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], legacy)  # noqa: NPY002
    torch.manual_seed(12)
    assert same(sample(CHAIN, X, 8, 3, decode=decode), first)


def test_trajectories_and_depth_steps_all_have_noise_of_their_own():
    """A chain that does nothing but add noise shows what it was given."""

    class Noise(Chain):
        transitions = 2

        def initial(self, context):
            return torch.zeros(len(context), 3)

        def propose(self, state, context, t):
            self.seen.append(state)
            return torch.zeros_like(state)

        def prior(self, proposal, t):
            return dist.Normal(torch.zeros_like(proposal), 1.0).to_event(1)

        def readout(self, state):
            return dist.Normal(state, 1.0).to_event(1)

    chain = Noise()
    chain.seen = []
    run = sample(chain, torch.zeros(5, 1), width=130, depth=3, keep="latents")
    values = torch.cat([*(state.flatten() for state in chain.seen[1:]), run.state.flatten()])
    assert len(values.unique()) == len(values) == 130 * 5 * 3 * 6
    assert abs(values.mean()) < 4 / len(values) ** 0.5 and abs(values.var() - 1) < 4 * (2 / len(values)) ** 0.5
    assert torch.equal(run.answers[-1], run.state)  # a continuous readout answers with its mean
    assert run.answers.is_floating_point()


def test_more_trajectories_leave_the_first_blocks_as_they_were():
    narrow, wide = (sample(CHAIN, X, width, 3) for width in (64, 192))
    assert torch.equal(wide.answers[:, :64], narrow.answers)


@pytest.mark.parametrize("chunk", [64, 128])
def test_a_width_in_chunks_agrees_with_the_whole(chunk):
    chain = make_chain().double()
    whole = sample(chain, X, width=160, depth=6, keep="latents")
    parts = sample(chain, X, width=160, depth=6, keep="latents", chunk=chunk)
    assert whole.state.h.dtype == torch.float64
    assert torch.equal(parts.answers, whole.answers)
    for a, b in zip(parts.state, whole.state, strict=True):
        assert torch.allclose(a, b, atol=1e-9)
    for name, value in whole.heads.items():
        assert torch.allclose(parts.heads[name], value, atol=1e-9)


def test_drawn_answers_are_as_frequent_as_the_readout_says():
    chain = make_chain(noise=False)
    run = sample(chain, X, width=4000, depth=1, decode="sample", keep="latents")
    found = nn.functional.one_hot(run.answers[0].long(), 5).float().mean(0)  # [B, L, V]
    expected = chain.readout(run.state).logits[0].softmax(-1)
    assert ((found - expected).abs() <= 4.5 * (expected * (1 - expected) / 4000).sqrt()).all()


# -- going deeper ---------------------------------------------------------------------------------------------


def test_a_run_continued_deeper_equals_one_long_run():
    long = sample(CHAIN, X, 6, 7, seed=2, keep="latents")
    first = sample(CHAIN, X, 6, 3, seed=2, keep="latents")
    second = sample(CHAIN, X, 6, 4, seed=2, keep="latents", start=first)
    assert second.depths == (4, 5, 6, 7) and second.settings["depth"] == 7
    assert torch.equal(torch.cat([first.answers, second.answers]), long.answers)
    assert torch.equal(second.heads["halt"], long.heads["halt"][3:])
    assert all(torch.equal(a, b) for a, b in zip(second.state, long.state, strict=True))


def test_a_continuation_may_be_chunked():
    long = sample(CHAIN, X, 128, 4, keep="latents")
    first = sample(CHAIN, X, 128, 2, keep="latents", chunk=64)
    assert torch.equal(sample(CHAIN, X, 128, 2, start=first, chunk=64).answers, long.answers[2:])


def test_a_start_that_does_not_fit_is_one_clear_sentence():
    start = sample(CHAIN, X, 4, 2, keep="latents")
    for arguments, message in [
        ({"start": sample(CHAIN, X, 4, 2)}, 'start must be a run made with keep="latents": this one has no state'),
        ({"width": 5}, "start has width 4, so width must be 4, got 5"),
        ({"seed": 1}, "start has seed 0, so seed must be 0, got 1"),
        ({"x": X[:1]}, "start is a run of other problems than x"),
        ({"x": X.flip(0)}, "start is a run of other problems than x"),
    ]:
        with pytest.raises(ValueError) as caught:
            sample(CHAIN, **({"x": X, "width": 4, "depth": 2, "start": start} | arguments))
        assert str(caught.value) == message


# -- stopping -------------------------------------------------------------------------------------------------


class Countdown(Chain):
    """A trajectory counts depth steps; its halt head fires at its own target, given in x."""

    homogeneous = True

    def encode(self, x):
        return x

    def initial(self, context):
        return torch.zeros(len(context), 1)

    def propose(self, state, context, t):
        self.target = context
        return state + 1

    def prior(self, proposal, t):
        return dist.Delta(torch.zeros_like(proposal)).to_event(1)

    def readout(self, state):
        return dist.Categorical(logits=nn.functional.one_hot(state.long(), 50) * 9.0).to_event(1)

    def heads(self, state):
        return {"halt": (state - self.target)[..., 0] + 0.5}


def test_halted_trajectories_freeze_and_the_others_go_on():
    x = torch.tensor([[2], [5], [100]])
    run = sample(Countdown(), x, width=3, depth=9, halt_probability=0.5, keep="latents")
    assert run.answers[:, 0, 0, 0].tolist() == [1, 2, 2, 2, 2, 2, 2, 2, 2]
    assert run.answers[:, 0, 1, 0].tolist() == [1, 2, 3, 4, 5, 5, 5, 5, 5]
    assert run.answers[:, 0, 2, 0].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert run.halted.tolist() == [[True, True, False]] * 3
    assert run.state[0, :, 0].tolist() == [2.0, 5.0, 9.0]


def test_a_run_stops_early_once_everything_has_halted():
    run = sample(Countdown(), [[2], [5]], width=3, depth=30, halt_probability=0.5)
    assert run.halted.all() and 5 <= run.depth < 30
    assert run.settings["depth"] == run.depth
    assert run.answers[-1, 0, :, 0].tolist() == [2, 5]
    full = sample(Countdown(), [[2], [5]], width=3, depth=30)
    assert full.depth == 30 and full.halted is None and full.answers[-1, 0, :, 0].tolist() == [30, 30]


class Uneven(Countdown):
    """The second chunk of particles takes longer."""

    def heads(self, state):
        return {"halt": torch.full(state.shape[:2], 1.0 if self.chunk_halts(state) else -1.0)}

    def chunk_halts(self, state):
        self.started = getattr(self, "started", 0) + int(state.max() == 1)
        return self.started == 1 or bool(state.max() >= 6)


@pytest.mark.parametrize("keep", ["paths", "last"])
def test_chunks_that_halt_at_different_depths_are_put_side_by_side(keep):
    run = sample(Uneven(), [[0]], width=128, depth=20, chunk=64, halt_probability=0.5, keep=keep)
    assert run.depth == run.settings["depth"] == 8
    assert run.answers[-1, :, 0, 0].tolist() == [1] * 64 + [6] * 64
    assert run.halted.all()


def test_stopping_goes_on_in_a_continued_run():
    x = [[2], [5]]
    first = sample(Countdown(), x, width=2, depth=3, halt_probability=0.5, keep="latents")
    second = sample(Countdown(), x, width=2, depth=3, halt_probability=0.5, start=first)
    assert second.answers[:, 0, :, 0].tolist() == [[2, 4], [2, 5], [2, 5]]
    assert second.halted.all()
    plain = sample(Countdown(), x, width=2, depth=3, keep="latents")  # its first part did not stop
    late = sample(Countdown(), x, width=2, depth=3, halt_probability=0.5, start=plain)
    assert late.halted.all() and late.answers[-1, 0, :, 0].tolist() == [4, 5]


def test_stopping_without_a_halt_head_is_one_clear_sentence():
    chain = Chain.from_module(lambda h, e: h, nn.Linear(4, 3), (2, 4), lambda x: x.float())
    with pytest.raises(ValueError, match="halt_probability needs a halt head, and _ModuleChain has none"):
        sample(chain, [[0, 1]], width=2, depth=2, halt_probability=0.5)


# -- bad input ------------------------------------------------------------------------------------------------

FEWER = "x must be [B, L] tokens, L = 5 or fewer, got shape "


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"width": -3}, "width must be at least 1, got -3"),
        ({"width": 2.0}, "width must be an integer, got 2.0"),
        ({"width": "4"}, "width must be an integer, got '4'"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"depth": None}, "depth must be an integer, got None"),
        ({"keep": "all"}, 'keep must be "paths", "last" or "latents", got \'all\''),
        ({"decode": "beam"}, 'decode must be "mode" or "sample", got \'beam\''),
        ({"chunk": 100}, "chunk must be a multiple of 64, got 100"),
        ({"chunk": 0}, "chunk must be a multiple of 64, got 0"),
        ({"x": torch.zeros(2, 6, dtype=torch.long)}, FEWER + "[2, 6]"),
        ({"x": torch.zeros(1, 2, 5, dtype=torch.long)}, FEWER + "[1, 2, 5]"),
        ({"x": torch.zeros(0, 5, dtype=torch.long)}, "x must hold at least one problem, got shape [0, 5]"),
        ({"x": 3}, "x must hold at least one problem, got shape []"),
        ({"x": torch.zeros(2, 5)}, "x must hold integers (tokens), got torch.float32"),
        ({"x": torch.zeros(2, 5, dtype=torch.bool)}, "x must hold integers (tokens), got torch.bool"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_input_is_one_clear_sentence(arguments, message):
    with pytest.raises(ValueError) as caught:
        sample(CHAIN, **({"x": X, "width": 4, "depth": 2} | arguments))
    assert str(caught.value) == message


@pytest.mark.parametrize("x", ["Q....", [[1, 2], [1]], [None] * 5, {"a": 1}], ids=repr)
def test_what_is_no_array_is_one_clear_sentence(x):
    with pytest.raises(ValueError, match=r"^x must be an array of tokens \[L\] or \[B, L\]") as caught:
        sample(CHAIN, x, 4, 2)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["decode.weight", "f.blocks.0.feed_forward.down.weight", "judge.out.bias", "z0"])
def test_weights_that_are_nan_are_named(name):
    chain = make_chain()
    chain.state_dict()[name].view(-1)[0] = torch.nan
    with pytest.raises(
        ValueError, match=f"^the chain's {name} is NaN: its training diverged or its file is damaged$"
    ):
        sample(chain, X, 4, 2)


def test_a_state_that_becomes_nan_is_named():
    class Overflow(Countdown):
        def move(self, proposal, eps):
            return {"h": proposal, "l": proposal * torch.nan}

        def propose(self, state, context, t):
            return state

    with pytest.raises(ValueError, match=r"^state\['l'\] is NaN$"):
        sample(Overflow(), [[1]], width=2, depth=2)


def test_a_state_that_loses_its_particles_is_named():
    class Mean(Countdown):
        def move(self, proposal, eps):
            return proposal.mean(0)

    with pytest.raises(
        ValueError, match=r"^state must begin with the batch dimensions \[4, 2\], got shape \[2, 1\]$"
    ):
        sample(Mean(), [[1], [2]], width=4, depth=2)


class Unsure(GRAM):
    """Says with probability 0.8, whatever the state, that its answer is right."""

    def heads(self, state):
        return {"halt": torch.full(state.h.shape[:-2], 0.8).logit()}


def test_a_trajectory_halts_only_where_the_head_is_as_sure_as_asked():
    chain = Unsure(make_chain().config)
    x = torch.zeros(2, 5, dtype=torch.long)
    for probability, halts in ((0.5, True), (0.79, True), (0.81, False), (0.95, False)):
        run = sample(chain, x, 3, 2, halt_probability=probability)
        assert bool(run.halted.all()) is halts and bool(run.halted.any()) is halts
    with pytest.raises(ValueError, match="halt_probability must be between 0 and 1, got 1.0"):
        sample(chain, x, halt_probability=1.0)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"readout": lambda state: dist.Categorical(logits=state)}, "readout must have the batch shape [3, 2]"),
        ({"readout": lambda state: state}, "readout must return a distribution over answers, got Tensor"),
        ({"heads": lambda state: {"value": state[..., :1, 0]}}, "head 'value' must be [3, 2], got shape [3, 2, 1]"),
    ],
)
def test_what_a_chain_of_ones_own_gets_wrong_is_said_before_anything_is_made_of_it(broken, message):
    chain = Chain.from_module(lambda h, context: h + context[..., None], lambda h: h, (4, 5), lambda x: x.float())
    for name, method in broken.items():
        setattr(chain, name, method)
    x = torch.zeros(2, 4, dtype=torch.long)
    with pytest.raises(ValueError, match=re.escape(message)):
        sample(chain, x, width=3, depth=1)
    with pytest.raises(ValueError, match=re.escape(message.replace("[3, 2", "[2, 2"))):
        fit(chain, None, (x + torch.arange(2)[:, None], x), steps=1, progress=False)
