"""A run in JAX says what its torch twin says, of the same numbers; files of either side load in the other."""

import subprocess
import sys
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch

pytest.importorskip("jax", reason="needs probgram[jax]")

import jax
import jax.numpy as jnp

import probgram
from probgram import fields, plots, tasks
from probgram.checkpoint import CheckpointError
from probgram.inference import diagnose
from probgram.inference.on_jax import Trajectories
from probgram.inference.on_jax.handlers import as_key
from probgram.inference.on_jax.trajectories import seed_of
from probgram.report import report

S, N, B, L = 5, 12, 3, 4
TASK = tasks.Queens(4)
ENDINGS = ("safetensors", "nc", "zarr")


class Pair(NamedTuple):
    h: object
    l: object


def make_run(seed: int = 0, **changes) -> Trajectories:
    """Everything that a filter may record, few answers, so that they repeat."""
    draw = np.random.default_rng(seed)
    weights = draw.normal(size=(S, N, B)).astype(np.float32)
    weights[:, 2] = -np.inf
    found = {
        "x": np.full((B, L), 4),
        "answers": draw.integers(0, 2, (S, N, B, L)).astype(np.uint8),
        "log_weights": weights,
        "ancestors": draw.integers(0, N, (S, N, B)).astype(np.int32),
        "heads": {name: draw.normal(size=(S, N, B)).astype(np.float32) for name in ("value", "halt")},
        "kl": draw.random((S, N, B)).astype(np.float32),
        "log_normalizer": draw.normal(size=(S, B)),
        "log_potential": np.where(draw.random((N, B)) < 0.2, -np.inf, draw.normal(size=(N, B))).astype(np.float32),
        "collected": {"mean": draw.normal(size=(S, B, 2))},
        "states": {"h": draw.normal(size=(S, N, B, 2)).astype(np.float32)},
        "halted": draw.random((N, B)) < 0.5,
        "ended": np.array([5, 4, 5], np.int32),
        "state": Pair(jnp.asarray(draw.normal(size=(N, B, 2)), jnp.float32), jnp.ones((N, B), jnp.bfloat16)),
        "task": "queens4",
        "seed": 5,
        "settings": {"width": N},
    }
    return Trajectories(**(found | changes))


def equal(left, right) -> bool:
    """Whether two runs, of whichever library, hold the same arrays of the same types, bit for bit."""
    a, b = fields.flat(left), fields.flat(right)
    same = a.keys() == b.keys() and fields.about(left) == fields.about(right)
    return same and all(
        fields.type_of(a[name]) == fields.type_of(b[name])
        and fields.as_array(a[name]).tobytes() == fields.as_array(b[name]).tobytes()
        for name in a
    )


# -- the same as the torch twin -------------------------------------------------------------------------------

RUNS = {
    "filtered": make_run(),
    "independent": make_run(1, ancestors=None, log_weights=np.zeros((S, N, B), np.float32), log_potential=None),
    "one problem dead": make_run(2, log_weights=np.where(np.arange(B) == 1, -np.inf, np.zeros((S, N, B)))),
}


@pytest.mark.parametrize("name", RUNS)
def test_weights_lines_and_answers_are_those_of_the_torch_twin(name):
    run = RUNS[name]
    twin = run.to_torch()
    assert isinstance(twin, probgram.Trajectories) and repr(run) == repr(twin) and len(run) == B
    assert (run.depth, run.width, run.problems) == (twin.depth, twin.width, twin.problems)
    np.testing.assert_allclose(run.weights, twin.weights, rtol=1e-12)
    np.testing.assert_allclose(run.ess, twin.ess, rtol=1e-12)
    np.testing.assert_array_equal(run.lines(), twin.lines())
    np.testing.assert_array_equal(run.answers_along_lines(), twin.answers_along_lines())
    for step in (0, -1):
        for ours, theirs in zip(run.answer_shares(step), twin.answer_shares(step), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-12)
        for problem in range(B):
            ours, theirs = run.distinct(problem, step), twin.distinct(problem, step)
            np.testing.assert_array_equal(ours.answers, theirs.answers)
            np.testing.assert_allclose(ours.shares, theirs.shares, rtol=1e-12)


@pytest.mark.filterwarnings("ignore:without the potential")
def test_untilted_weights_are_those_of_the_torch_twin_and_a_dead_particle_stays_dead():
    run = RUNS["filtered"]
    np.testing.assert_allclose(run.untilted.weights, run.to_torch().untilted.weights, rtol=1e-6)
    assert not run.untilted.weights[:, 2].any()
    assert RUNS["independent"].untilted is RUNS["independent"]


def test_untilted_weights_of_few_effective_particles_are_warned_of():
    steep = np.zeros((N, B), np.float32)
    steep[0] = -30
    run = make_run(log_weights=np.zeros((S, N, B), np.float32), log_potential=steep)
    with pytest.warns(RuntimeWarning, match=r"without the potential problems \[0, 1, 2\] have an effective sample"):
        _ = run.untilted


@pytest.mark.parametrize("problem", [1, -1, slice(0, 2), np.array([2, 0])])
def test_some_problems_are_those_of_the_torch_twin(problem):
    run = RUNS["filtered"]
    assert equal(run[problem], run.to_torch()[problem])


def test_evidence_is_there_only_where_every_factor_is_a_likelihood():
    with pytest.raises(ValueError, match="log_evidence exists only where every factor is a likelihood"):
        _ = make_run().log_evidence
    run = make_run(likelihoods_only=True)
    np.testing.assert_array_equal(run.log_evidence, run.log_normalizer)
    last = make_run(likelihoods_only=True, settings={"evidence": "last"})
    assert np.isnan(last.log_evidence[:-1]).all()
    np.testing.assert_array_equal(last.log_evidence[-1], last.log_normalizer[-1])


def test_arrays_that_do_not_fit_are_one_clear_sentence():
    with pytest.raises(ValueError, match=r"answers must be \[S, N, B, L\] and log_weights \[S, N, B\], got"):
        make_run(log_weights=np.zeros((S, N)))
    with pytest.raises(IndexError, match="problem must be below 3, got 3"):
        _ = make_run()[3]


def test_the_torch_twin_shares_its_memory():
    run = make_run()
    twin = run.to_torch()
    assert np.shares_memory(run.answers, twin.answers.numpy())
    assert twin.state.h.dtype == torch.float32 and twin.state.l.dtype == torch.bfloat16


@pytest.mark.parametrize("seed", [0, 5, 2**32 - 1])
def test_the_seed_of_a_key_is_what_the_key_was_made_of(seed):
    assert seed_of(as_key(seed)) == seed
    other = jax.random.fold_in(as_key(seed), 1)
    assert seed_of(other) == seed_of(other) != seed


# -- files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_of_either_side_loads_in_the_other_bit_for_bit(tmp_path, ending):
    pytest.importorskip({"nc": "h5netcdf", "zarr": "zarr"}.get(ending, "safetensors"))
    run = make_run()
    twin, kept = run.to_torch(), run if ending != "safetensors" else replace(run, state=None, states=None)
    ours, theirs = run.save(tmp_path / f"jax.{ending}"), twin.save(tmp_path / f"torch.{ending}")
    for path in (ours, theirs):
        for kind in (Trajectories, probgram.Trajectories):
            loaded = kind.load(path)
            assert type(loaded) is kind and equal(loaded, kept)
        assert equal(Trajectories.load(path, slice(1, 3)), kept[1:3])
    if ending != "safetensors":
        assert Trajectories.load(theirs).state._fields == ("h", "l")
        assert isinstance(Trajectories.load(ours).states["h"], np.ndarray)


def test_a_state_that_a_file_has_no_place_for_is_named(tmp_path):
    pytest.importorskip("h5netcdf")
    run = make_run(state=[np.zeros((N, B))])
    with pytest.raises(CheckpointError, match="a state that is saved must be an array, .* got list"):
        run.save(tmp_path / "run.nc")
    with pytest.raises(CheckpointError, match="saved as .safetensors, .nc or .zarr"):
        run.save(tmp_path / "run.pickle")


# -- at the edge ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["particles", "depth"])
def test_arviz_sees_the_groups_of_the_torch_twin(layout):
    pytest.importorskip("arviz")
    run = make_run()
    ours, theirs = run.to_arviz(layout), run.to_torch().to_arviz(layout)
    for group in ("posterior", "sample_stats", "particles", "observed_data", "constant_data"):
        left, right = ours[group], theirs[group]
        assert set(left.data_vars) == set(right.data_vars)
        for name in left.data_vars:
            assert left[name].dims == right[name].dims and left[name].dtype == right[name].dtype
            np.testing.assert_array_equal(left[name].values, right[name].values, err_msg=name)
    assert "jax" in ours.attrs["versions"] and "torch" not in ours.attrs["versions"]


def test_pictures_a_report_and_a_diagnosis_take_a_run_as_it_is():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    run = make_run(log_weights=np.zeros((S, N, B), np.float32), ended=None)
    twin = run.to_torch()
    axis = plots.answers_over_depth(run, TASK, 1)
    np.testing.assert_array_equal(
        axis.images[0].get_array(), plots.answers_over_depth(twin, TASK, 1).images[0].get_array()
    )
    for draw in (plots.boards_over_depth, plots.genealogy, plots.latent_paths, plots.answer_posterior):
        draw(run, TASK)
    plots.ess_and_evidence(run)
    pyplot.close("all")
    assert str(diagnose(run, TASK)) == str(diagnose(twin, TASK))
    assert report(run, TASK) == report(twin, TASK)


def test_a_run_is_made_saved_loaded_and_handed_to_arviz_without_torch(tmp_path):
    code = f"""
import sys
import numpy as np
from probgram.models.on_jax import GRAM
from probgram.inference.on_jax import Trajectories, sample, vote, best, first_verified, posterior, evaluate
import probgram.plots.answers
run = Trajectories(np.zeros((2, 3), int), np.zeros((2, 4, 2, 3), np.uint8), np.zeros((2, 4, 2), np.float32))
for ending in {ENDINGS}:
    Trajectories.load(run.save(f"{tmp_path}/run.{{ending}}"))
run.to_arviz()
vote(run)
print([name for name in ("torch", "pyro", "lightning_fabric") if name in sys.modules])
"""
    for needed in ("h5netcdf", "zarr", "arviz"):
        pytest.importorskip(needed)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_numpy_seeds_are_seeds_and_those_of_more_than_32_bits_are_their_own():
    def word(seed):
        return jax.random.key_data(as_key(seed)).tolist()

    assert word(np.int64(3)) == word(3) == jax.random.key_data(jax.random.key(3)).tolist()
    assert seed_of(as_key(2**32 + 1)) == 2**32 + 1
    assert len({tuple(word(seed)) for seed in (1, 2**32 + 1, -1, 2**32 - 1)}) == 4
    for wrong in (True, 2**63, 1.0):
        with pytest.raises(ValueError, match="key must be an integer seed"):
            as_key(wrong)
