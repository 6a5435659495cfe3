"""netCDF and Zarr: a run comes back bit for bit, ArviZ and xarray read it, and what is wrong is one sentence."""

import os
import shutil
import stat
import sys
from collections import namedtuple
from dataclasses import replace

import arviz
import numpy as np
import pytest
import torch
import xarray

from probgram import Trajectories, fields
from probgram.checkpoint import CheckpointError

pytest.importorskip("zarr")

S, N, B, L = 5, 8, 3, 4
State = namedtuple("State", ["h", "l"])
FORMATS = pytest.mark.parametrize("ending", ["nc", "zarr"])


def make_run(**changes) -> Trajectories:
    """Every field there is, weights that are -inf, types of every kind."""
    g = torch.Generator().manual_seed(0)
    log_weights = torch.randn(S, N, B, generator=g)
    log_weights[:, 2] = -torch.inf
    ancestors = torch.randint(N, (S, N, B), generator=g, dtype=torch.int32)
    made = {
        "x": torch.randint(-5, 400, (B, 6), generator=g),
        "answers": torch.randint(9, (S, N, B, L), generator=g, dtype=torch.uint8),
        "log_weights": log_weights,
        "ancestors": ancestors,
        "heads": {
            "value": torch.randn(S, N, B, generator=g),
            "halt": torch.randn(S, N, B, generator=g).bfloat16(),
            "depth": torch.randn(S, N, B, generator=g).half(),  # a name that is a dimension too
        },
        "kl": torch.rand(S, N, B, generator=g),
        "log_normalizer": torch.randn(S, B, generator=g, dtype=torch.float64),
        "log_potential": log_weights[-1].clone(),
        "effective": torch.rand(S, B, generator=g),
        "collected": {"mean": torch.randn(S, B, 2, 3, generator=g), "value": torch.randn(S, B, generator=g)},
        "states": State(
            torch.randn(S, N, B, 2, generator=g), {"a": torch.rand(S, N, B, generator=g) > 0.5, 3: None}
        ),
        "likelihoods_only": True,
        "halted": torch.rand(N, B, generator=g) > 0.5,
        "ended": torch.tensor([3, 5, 5], dtype=torch.int32),
        "state": State(torch.randn(N, B, 2, generator=g), (torch.rand(N, B, generator=g), torch.ones(N, B).long())),
        "depths": (2, 3, 4, 5, 6),
        "task": "queens4",
        "seed": 5,
        "settings": {"width": N, "halt_probability": None, "potential": "ψ", "weights": "ab", "evidence": "last"},
    }
    return Trajectories(**(made | changes))


def assert_same(a: Trajectories, b: Trajectories) -> None:
    """Every tensor with its bits, type and name, and all the rest."""
    left, right = fields.flat(a), fields.flat(b)
    assert list(left) == list(right)
    for name, value in left.items():
        assert value.dtype == right[name].dtype and value.shape == right[name].shape, name
        bits = [v.contiguous().reshape(-1).view(torch.uint8) for v in (value, right[name])]
        assert torch.equal(*bits), name
    assert fields.header(a) == fields.header(b)


RUNS = {
    "everything": make_run(),
    "bare": Trajectories(torch.zeros(B, 6), torch.zeros(S, N, B, L), torch.zeros(S, N, B)),
    "seven trajectories": Trajectories(torch.zeros(2, 1), torch.zeros(1, 7, 2, 1), torch.zeros(1, 7, 2)),
    "islands": make_run(settings={"islands": 2}),
    "one problem": make_run()[1],
    "summary": make_run(
        answers=torch.zeros(1, N, B, 0, dtype=torch.uint8),
        x=torch.zeros(B, 0),
        log_weights=torch.zeros(1, N, B),
        **dict.fromkeys(["ancestors", "kl", "states"]),
        heads={},
        depths=(6,),
    ),
    "no weight": make_run(log_weights=torch.full((S, N, B), -torch.inf), state=torch.zeros(N, B)),
    "pictures": make_run(x=torch.rand(B, 2, 3, 4), answers=torch.rand(S, N, B, L)),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """`make_run()` in each format."""
    folder = tmp_path_factory.mktemp("saved")
    return {ending: make_run().save(folder / f"run.{ending}") for ending in ("nc", "zarr")}


# -- there and back -------------------------------------------------------------------------------------------


@FORMATS
@pytest.mark.parametrize("name", RUNS)
def test_a_run_comes_back_bit_for_bit(name, ending, tmp_path):
    run = RUNS[name]
    again = Trajectories.load(run.save(tmp_path / f"run.{ending}"))
    assert_same(run, again)
    assert repr(again) == repr(run)
    if isinstance(run.state, State):
        assert type(again.state).__name__ == "State" and torch.equal(again.state.h, run.state.h)
        assert torch.equal(again.state.l[1], run.state.l[1])


@FORMATS
def test_nan_and_signed_zero_keep_their_bits(ending, tmp_path):
    odd = torch.tensor([torch.nan, -0.0, torch.inf, 1e-42, 0.0, -torch.nan, 1.0, -1e30])
    run = replace(RUNS["bare"], heads={"value": odd[:, None].expand(S, N, B)})
    assert_same(run, Trajectories.load(run.save(tmp_path / f"run.{ending}")))


@FORMATS
def test_rows_larger_than_a_chunk_and_rows_that_share_one_come_back(ending, tmp_path, monkeypatch):
    monkeypatch.setattr(fields, "CHUNK", 100)
    monkeypatch.setattr(fields, "SMALL_CHUNK", 60)
    assert_same(make_run(), Trajectories.load(make_run().save(tmp_path / f"run.{ending}")))


@pytest.mark.parametrize("problems", [slice(1, 2), slice(None, 2), slice(None, None, 2)])
@FORMATS
def test_some_problems_are_read_alone(ending, problems, saved):
    assert_same(Trajectories.load(saved[ending], problems), make_run()[problems])


def test_some_problems_of_a_safetensors_file_are_read_alone(tmp_path):
    run = make_run(state=None, states=None)
    path = run.save(tmp_path / "run.safetensors")
    part = Trajectories.load(path, slice(1, 3))
    assert torch.equal(part.answers, run[1:3].answers) and torch.equal(part.kl, run[1:3].kl)
    with pytest.raises(ValueError, match="problems must keep some of the 3 problems, in their order, got slice"):
        Trajectories.load(path, slice(5, 9))


@FORMATS
def test_a_slice_that_keeps_nothing_is_one_sentence(ending, saved):
    with pytest.raises(ValueError, match="problems must keep some of the 3 problems, in their order, got slice"):
        Trajectories.load(saved[ending], slice(5, 9))
    with pytest.raises(ValueError, match="problems must be a slice such as"):
        Trajectories.load(saved[ending], 1)


# -- read by others -------------------------------------------------------------------------------------------


def test_arviz_reads_the_groups_of_a_netcdf_file(saved):
    run = make_run()
    data, direct = arviz.from_netcdf(saved["nc"]), run.to_arviz()
    for group, name in [
        ("posterior", "answer"),
        ("posterior", "answer_number"),
        ("posterior_predictive", "answer"),
        ("sample_stats", "ancestor"),
        ("constant_data", "x"),
        ("observed_data", "x"),
    ]:
        assert data[group][name].dims == direct[group][name].dims
        assert np.array_equal(data[group][name], direct[group][name]), (group, name)
    particles = data["particles"]
    assert particles["answer"].dims == ("depth", "chain", "draw", "problem", "position")
    assert np.array_equal(particles["depth"], [2, 3, 4, 5, 6])
    assert np.array_equal(particles["answer"].values.reshape(S, N, B, L), run.answers.numpy())
    assert data["latest"]["halted"].dtype == bool
    assert data.attrs["task"] == "queens4" and data.attrs["weights"] == "ab"
    data.close()


def test_xarray_reads_the_groups_of_a_zarr_folder(saved):
    run = make_run()
    with xarray.open_datatree(saved["zarr"], engine="zarr", consolidated=False) as data:
        assert np.array_equal(data["posterior"]["answer"], run.to_arviz()["posterior"]["answer"])
        assert np.array_equal(data["particles"]["answer"].values.reshape(S, N, B, L), run.answers.numpy())
        assert str(data["constant_data"]["task"].values) == "queens4" and data.attrs["seed"] == 5


# -- writing --------------------------------------------------------------------------------------------------


@FORMATS
def test_a_run_takes_the_place_of_another(ending, tmp_path):
    path = tmp_path / "new" / f"run.{ending}"
    RUNS["bare"].save(path)
    RUNS["seven trajectories"].save(path)
    assert_same(RUNS["seven trajectories"], Trajectories.load(path))
    assert os.listdir(path.parent) == [path.name]  # nothing temporary is left
    if ending == "nc":
        assert stat.S_IMODE(path.stat().st_mode) == 0o644


@FORMATS
def test_a_failure_in_the_middle_leaves_what_was_there(ending, tmp_path, monkeypatch):
    path = RUNS["bare"].save(tmp_path / f"run.{ending}")
    count, as_array = [], fields.as_array

    def full(values):
        count.append(1)
        if len(count) > 12:
            raise OSError(28, "No space left on device")
        return as_array(values)

    with monkeypatch.context() as patch:
        patch.setattr(fields, "as_array", full)
        with pytest.raises(CheckpointError) as caught:
            make_run().save(path)
    assert str(caught.value).endswith(f"run.{ending} could not be written: No space left on device")
    assert_same(RUNS["bare"], Trajectories.load(path))
    assert os.listdir(tmp_path) == [path.name]


def test_a_netcdf_file_is_written_a_row_at_a_time(tmp_path):
    """The copies made of a run are never larger than one of its rows."""
    answers = torch.randint(250, (8, 64, 1000, 16), dtype=torch.uint8)
    run = Trajectories(torch.zeros(1000, 1), answers, torch.zeros(1, 1, 1).expand(8, 64, 1000))
    sizes, as_array = [], fields.as_array

    class Seen:
        def __call__(self, values):
            sizes.append(values.numel() * values.element_size())
            return as_array(values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fields, "as_array", Seen())
        run.save(tmp_path / "run.nc")
    assert max(sizes) <= 64 * 1000 * 16


def test_something_else_is_not_overwritten_by_a_folder(tmp_path):
    (tmp_path / "mine.zarr").mkdir()
    (tmp_path / "mine.zarr" / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="mine.zarr exists and holds no run: it was left as it is"):
        make_run().save(tmp_path / "mine.zarr")
    assert (tmp_path / "mine.zarr" / "thesis.txt").read_text() == "years of work"


# -- refused --------------------------------------------------------------------------------------------------


def sentence(call) -> str:
    with pytest.raises(CheckpointError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_unknown_ending_is_one_sentence(tmp_path):
    assert sentence(lambda: make_run().save(tmp_path / "run.h5")).startswith(
        "a run is saved as .safetensors, .nc or .zarr, got"
    )


@FORMATS
def test_what_is_not_there_is_one_sentence(ending, tmp_path):
    assert sentence(lambda: Trajectories.load(tmp_path / f"run.{ending}")).endswith("does not exist")


def test_a_damaged_file_is_one_sentence(saved, tmp_path):
    path = shutil.copy(saved["nc"], tmp_path / "run.nc")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "is not a whole netCDF file of a run" in sentence(lambda: Trajectories.load(path))
    path.write_bytes(b"not HDF5 at all")
    assert "is not a whole netCDF file of a run" in sentence(lambda: Trajectories.load(path))
    xarray.Dataset({"a": 1}).to_netcdf(path, engine="h5netcdf")
    assert "is not a saved run" in sentence(lambda: Trajectories.load(path))


def test_a_damaged_folder_is_one_sentence(saved, tmp_path):
    path = shutil.copytree(saved["zarr"], tmp_path / "run.zarr")
    chunk = path / "particles" / "value" / "c" / "0" / "0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:20])
    assert "is not a whole run" in sentence(lambda: Trajectories.load(path))
    shutil.rmtree(path / "particles" / "answer")
    assert "is not a whole run" in sentence(lambda: Trajectories.load(path))
    shutil.rmtree(path / "particles")
    assert "is not a saved run" in sentence(lambda: Trajectories.load(path))
    (tmp_path / "empty.zarr").mkdir()
    assert "is not a saved run" in sentence(lambda: Trajectories.load(tmp_path / "empty.zarr"))


def test_without_zarr_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    message = "a run as a .zarr folder needs zarr: pip install 'probgram[zarr]'"
    assert sentence(lambda: make_run().save(tmp_path / "run.zarr")) == message
    assert sentence(lambda: Trajectories.load(tmp_path / "run.zarr")) == message
