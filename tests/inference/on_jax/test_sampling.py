"""Sampling in JAX: the torch twin where nothing is random, one noise however it is cut, bad input in one sentence.

Bounds of four standard errors: a right program with another seed fails each with probability 6e-5.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numpyro", reason="needs probgram[jax]")

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from probgram import inference, models, tasks
from probgram.checkpoint import CheckpointError, save_chain, weights_of
from probgram.inference.on_jax import Trajectories, sample
from probgram.inference.on_jax import sampling as module
from probgram.models.on_jax import GRAM, Chain

TASK = tasks.Queens(4)
X = TASK.examples("train")[0][:2]
TRACED = []
STEP_BY_STEP = {"callback": lambda view: None}  # one small program for every depth


def make_chain(**choices) -> GRAM:
    """A small chain whose noise matters."""
    sizes = {"dim": 8, "heads": 2, "blocks": 1, "hidden": 12, "transitions": 1, "refinements": 1}
    chain = GRAM.for_task(TASK, **(sizes | choices))
    leaves, structure = jax.tree.flatten(chain)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    drawn = [0.5 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, drawn)


CHAIN = make_chain()


class Walk(Chain):
    """h <- scale·h + eps; halts above 1; says the sign of h, in two tokens."""

    scale: jax.Array = eqx.field(default_factory=lambda: jnp.asarray(1.0))
    homogeneous = True

    def initial(self, context):
        return {"h": jnp.zeros(len(context))}

    def propose(self, state, context, t):
        TRACED.append(t)
        return self.scale * state["h"]

    def prior(self, proposal, t):
        return dist.Normal(jnp.zeros_like(proposal), 1.0)

    def move(self, proposal, eps):
        return {"h": proposal + eps}

    def readout(self, state):
        logits = jnp.stack([-state["h"], state["h"]], -1)
        return dist.Categorical(logits=jnp.stack([logits, -logits], -2)).to_event(1)

    def heads(self, state):
        return {"halt": state["h"]}


WALK = Walk()
SERIES = np.zeros((3, 1), np.float32)


def same(a, b, rows=slice(None)) -> bool:
    return np.array_equal(a.answers[rows], b.answers) and all(
        np.array_equal(a.heads[name][rows], b.heads[name]) for name in a.heads
    )


# -- the same network -----------------------------------------------------------------------------------------


def test_without_noise_every_answer_and_head_is_that_of_the_torch_twin(tmp_path):
    chain = make_chain(noise=False)
    twin = models.GRAM.from_pretrained(save_chain(tmp_path / "chain.safetensors", chain))
    ours, theirs = sample(chain, X, 3, 4), inference.sample(twin, X, 3, 4)
    np.testing.assert_array_equal(ours.answers, theirs.answers)
    assert ours.answers.dtype == np.uint8
    for name in theirs.heads:
        np.testing.assert_allclose(ours.heads[name], theirs.heads[name], atol=1e-4)
    assert ours.settings["weights"] == theirs.settings["weights"] == weights_of(twin)
    assert ours.settings == theirs.settings | {"backend": "jax"}


def test_the_answer_is_the_most_probable_one_of_whatever_the_readout_is():
    run = sample(WALK, SERIES, 5, 2)
    up = run.heads["halt"] > 0
    np.testing.assert_array_equal(run.answers, np.stack([up, ~up], -1))
    assert run.answers.dtype == np.uint8


def test_a_run_has_every_shape_that_is_documented():
    run = sample(CHAIN, X, width=3, depth=4, task="queens4", keep="latents", **STEP_BY_STEP)
    assert isinstance(run, Trajectories)
    assert run.answers.shape == (4, 3, 2, 4) and run.answers.dtype == np.uint8
    assert run.log_weights.shape == (4, 3, 2) and not run.log_weights.any()
    assert run.log_normalizer.shape == (4, 2) and not run.log_normalizer.any()
    assert {k: v.shape for k, v in run.heads.items()} == {"value": (4, 3, 2), "halt": (4, 3, 2)}
    assert run.ancestors is run.halted is None and run.state.h.shape == (3, 2, 4, 8)
    assert (run.depths, run.depth, run.task, run.seed) == ((1, 2, 3, 4), 4, "queens4", 0)
    np.testing.assert_array_equal(CHAIN.readout(run.state).mode, run.answers[-1])


# -- noise ----------------------------------------------------------------------------------------------------


def test_a_walk_has_the_law_that_its_definition_says():
    run = sample(WALK, SERIES, width=4_000, depth=4)
    for s, head in enumerate(run.heads["halt"]):
        variance = s + 1
        assert abs(head.mean()) < 4 * np.sqrt(variance / head.size)
        assert abs(head.var() - variance) < 4 * variance * np.sqrt(2 / head.size)
    steps = np.diff(run.heads["halt"], axis=0)  # independent, across slots and problems too
    for a, b in ((steps[0], steps[1]), (steps[0, 1:], steps[0, :-1]), (steps[0, :, 1:], steps[0, :, :-1])):
        assert abs((a * b).mean()) < 4 / np.sqrt(a.size)


def test_the_same_key_the_same_run_and_another_key_another():
    run = sample(WALK, SERIES, 5, 3, key=7)
    assert same(run, sample(WALK, SERIES, 5, 3, key=jax.random.key(7))) and run.seed == 7
    assert not same(run, sample(WALK, SERIES, 5, 3, key=8))


def test_chunks_see_the_noise_of_the_whole_and_a_narrow_run_that_of_a_wide_one():
    whole = sample(WALK, SERIES, width=150, depth=2)
    chunks, narrow = (sample(WALK, SERIES, w, depth=2, chunk=64) for w in (150, 20))
    for run in (chunks, narrow):  # up to rounding: they are other programs
        np.testing.assert_allclose(run.heads["halt"], whole.heads["halt"][:, : run.width], rtol=1e-5, atol=1e-6)


def test_sampled_answers_have_the_readouts_probabilities():
    run = sample(WALK, SERIES, width=4_000, depth=1, decode="sample")
    logit = 2 * run.heads["halt"][0].astype(np.float64)
    first, second = run.answers[0, ..., 0], run.answers[0, ..., 1].astype(int)
    probability = 1 / (1 + np.exp(-logit))
    error = np.sqrt((probability * (1 - probability)).mean() / first.size)
    assert abs((first - probability).mean()) < 4 * error and abs((second - 1 + probability).mean()) < 4 * error
    assert not np.array_equal(first, 1 - second)


# -- depth ----------------------------------------------------------------------------------------------------


def test_a_run_that_goes_on_is_the_run_that_went_on_from_a_file_too(tmp_path):
    whole = sample(CHAIN, X, 3, 4, **STEP_BY_STEP)
    begun = sample(CHAIN, X, 3, 2, keep="latents", **STEP_BY_STEP)
    pytest.importorskip("h5netcdf")
    saved = Trajectories.load(begun.save(tmp_path / "run.nc"))  # its state is a tuple of another class
    for start in (begun, saved):
        more = sample(CHAIN, X, 3, 2, start=start, **STEP_BY_STEP)
        assert same(whole, more, slice(2, 4)) and more.depths == (3, 4)


def test_the_last_depth_step_alone_is_the_last_of_all():
    whole, last = sample(WALK, SERIES, 5, 3), sample(WALK, SERIES, 5, 3, keep="last")
    assert same(whole, last, slice(2, 3)) and last.depths == (3,)


def test_halted_trajectories_stand_still_and_the_run_ends_when_all_have():
    free = sample(WALK, SERIES, 6, 40)
    run = sample(WALK, SERIES, 6, 40, halt_probability=0.6)
    head, over = free.heads["halt"], np.log(0.6 / 0.4)
    first = np.where((head > over).any(0), (head > over).argmax(0), 39)  # when each crosses
    rows = np.minimum(np.arange(run.depth)[:, None, None], first)
    np.testing.assert_array_equal(run.heads["halt"], np.take_along_axis(head, rows, 0))
    np.testing.assert_array_equal(run.halted, run.heads["halt"][-1] > over)
    assert run.depth == min(40, -(-(first.max() + 1) // 4) * 4)
    quick = sample(WALK, SERIES, 6, 40, halt_probability=1e-6)
    assert quick.depth == 4 and quick.halted.all()


def test_a_callback_sees_every_depth_step_and_changes_nothing():
    seen = []
    run = sample(WALK, SERIES, 5, 3, callback=seen.append)
    assert same(sample(WALK, SERIES, 5, 3), run)
    assert [view.depth for view in seen] == [1, 2, 3]
    np.testing.assert_array_equal([view.answers for view in seen], run.answers)


def test_a_store_holds_the_run_and_its_continuation(tmp_path):
    pytest.importorskip("zarr")
    path, whole = tmp_path / "run.zarr", sample(WALK, SERIES, 5, 3, keep="latents")
    last = sample(WALK, SERIES, 5, 2, keep="latents", store=path)
    assert last.depths == (2,) and same(whole, Trajectories.load(path), slice(0, 2))
    sample(WALK, SERIES, 5, 1, keep="latents", store=path, start=Trajectories.load(path))
    assert same(whole, Trajectories.load(path))
    with pytest.raises(CheckpointError, match="exists: remove it, or go on"):
        sample(WALK, SERIES, 5, 2, store=path)


# -- one program ----------------------------------------------------------------------------------------------


def test_new_weights_problems_and_keys_are_not_compiled_again():
    sample(WALK, SERIES, 5, 3)
    before = len(TRACED)
    sample(Walk(jnp.asarray(0.5)), SERIES + 1, 5, 3, key=4)
    started = sample(WALK, SERIES, 5, 3, keep="latents")
    for _ in range(2):
        started = sample(WALK, SERIES, 5, 3, start=started, keep="latents")
    assert len(TRACED) == before


@pytest.mark.slow
def test_several_devices_draw_what_one_draws():
    code = """
import jax, numpy as np
from test_sampling import SERIES, WALK, sample
from probgram.inference.on_jax import device_mesh
assert len(jax.devices()) == 8
one = sample(WALK, SERIES[[0, 1]], 128, 3, halt_probability=0.9)
many = sample(WALK, SERIES[[0, 1]], 128, 3, halt_probability=0.9, mesh=device_mesh(4, 2), keep="latents")
assert len(many.state["h"].sharding.device_set) == 8
np.testing.assert_array_equal(one.answers, many.answers)
np.testing.assert_allclose(one.heads["halt"], many.heads["halt"], rtol=1e-5, atol=1e-6)
try:
    sample(WALK, SERIES, 6, 3, mesh=device_mesh(4, 2))
except ValueError as error:
    print(error)
"""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | flags, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("width must be a multiple of the 4 devices on the particles axis")


# -- bad input ------------------------------------------------------------------------------------------------

BAD = [
    ({"width": 0}, "width must be at least 1, got 0"),
    ({"depth": 0}, "depth must be at least 1, got 0"),
    ({"depth": 2.0}, "depth must be an integer, got 2.0"),
    ({"width": True}, "width must be an integer, got True"),
    ({"key": 1.5}, "key must be an integer seed or a JAX key, got 1.5"),
    ({"keep": "all"}, 'keep must be "paths", "last" or "latents", got \'all\''),
    ({"decode": "argmax"}, 'decode must be "mode" or "sample", got \'argmax\''),
    ({"chunk": 10}, "chunk must be a multiple of 64, got 10"),
    ({"halt_probability": 1.0}, "halt_probability must be between 0 and 1, got 1.0"),
    ({"x": np.zeros((2, 5), int)}, "x must be [B, L] tokens, L = 4"),
    ({"x": np.zeros((0, 4), int)}, "x must hold at least one problem, got shape [0, 4]"),
    ({"x": np.full((1, 4), 0.5)}, "x must hold integers (tokens), got float64"),
    ({"x": np.full((1, 4), 9)}, "x must hold tokens below 5, got 9"),
    ({"x": [["a"] * 4]}, "x must be an array of tokens [L] or [B, L]"),
    ({"x": [[0, 1], [2]]}, "x must be an array of tokens [L] or [B, L]"),
    ({"keep": "last", "store": "run.zarr"}, 'leave out keep="last"'),
]


@pytest.mark.parametrize(("bad", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input_is_one_clear_sentence_before_anything_is_compiled(bad, message, monkeypatch):
    monkeypatch.setattr(module, "_begin", None)
    with pytest.raises(ValueError, match=re.escape(message)):
        sample(CHAIN, **({"x": X} | bad))


def test_a_start_that_does_not_fit_is_refused():
    begun = sample(WALK, SERIES, 5, 2, keep="latents")
    for change, message in (
        ({"width": 6}, "start has width 5, so width must be 5, got 6"),
        ({"key": 1}, "start has key 0, so key must be 0, got 1"),
        ({"x": SERIES + 1}, "start is a run of other problems than x"),
        ({"start": sample(WALK, SERIES, 5, 2)}, "start must be a run made with keep="),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            sample(WALK, **({"x": SERIES, "width": 5, "start": begun} | change))


def test_numbers_that_are_none_are_named():
    with pytest.raises(ValueError, match=r"the chain's scale is NaN: its training diverged"):
        sample(Walk(jnp.asarray(jnp.nan)), SERIES)
    with pytest.raises(ValueError, match=r"state\['h'\] is NaN"):
        sample(Walk(jnp.asarray(jnp.inf)), SERIES, 5, 3)
    with pytest.raises(ValueError, match="halt_probability needs a halt head, and Silent has none"):
        sample(Silent(), SERIES, halt_probability=0.5)


class Silent(Walk):
    def heads(self, state):
        return {}
