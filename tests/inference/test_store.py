"""A run that is written as it goes: equal to one in memory, whole up to the last depth step when it is killed."""

import signal
import subprocess
import sys
import textwrap
import weakref
from dataclasses import replace
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch

from probgram import Trajectories, fields, tasks
from probgram.checkpoint import CheckpointError
from probgram.inference import sample, smc
from probgram.inference.genealogy import mean
from probgram.models import GRAM, GRAMGuide

pytest.importorskip("zarr")

TASK = tasks.Queens(5)
X = torch.from_numpy(TASK.examples("train")[0][:3])
Y = torch.from_numpy(TASK.examples("train")[1][:3])


def make_chain(seed: int = 0) -> GRAM:
    torch.manual_seed(seed)
    chain = GRAM.for_task(TASK, dim=16, heads=2, blocks=1, hidden=24)
    for parameter in chain.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return chain.eval()


CHAIN = make_chain()


def assert_same(a: Trajectories, b: Trajectories) -> None:
    left, right = fields.flat(a), fields.flat(b)
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert value.dtype == right[name].dtype and torch.equal(value, right[name]), name
    assert fields.about(a) == fields.about(b)


# -- as it goes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "choices", [{}, {"keep": "latents"}, {"halt_probability": 0.9, "decode": "sample"}], ids=str
)
def test_what_is_in_the_folder_equals_the_run_in_memory(choices, tmp_path):
    path = tmp_path / "run.zarr"
    whole = sample(CHAIN, X, 6, 5, task="queens5", **choices)
    last = sample(CHAIN, X, 6, 5, task="queens5", store=path, **choices)
    assert_same(whole, Trajectories.load(path))
    assert last.depths == (5,) and torch.equal(last.answers, whole.answers[-1:]) and last.settings == whole.settings


FILTERS = {
    "plain": {"potential": lambda view: view.heads["value"], "ess_threshold": 0.9},
    "latents": {"potential": lambda view: view.heads["value"], "keep": "latents"},
    "islands": {
        "potential": lambda view: view.heads["value"],
        "islands": 2,
        "collect": {"mean": mean(lambda s: s.h)},
    },
    "resampled late": {"potential": lambda view: view.heads["value"] * (view.t > 2), "ess_threshold": 1.0},
    "halting": {"potential": lambda view: view.heads["value"], "halt_probability": 0.7},
    "uneven": {"potential": lambda view: view.heads["value"], "depth": torch.tensor([2, 8, 3])},
    "guided": {"guide": GRAMGuide(CHAIN), "evidence": Y},
    "nothing": {"resample": None},
}


@pytest.mark.parametrize("name", FILTERS)
def test_what_a_filter_writes_equals_the_run_in_memory(name, tmp_path):
    choices = {"width": 8, "depth": 5, "seed": 2} | FILTERS[name]
    whole = smc.run(CHAIN, X, **choices)
    last = smc.run(CHAIN, X, store=tmp_path / "run.zarr", **choices)
    again = Trajectories.load(tmp_path / "run.zarr")
    if choices.get("keep") != "latents":
        assert again.state is None
        whole = replace(whole, state=None)
    assert_same(whole, again)
    assert torch.equal(last.log_normalizer, whole.log_normalizer) and torch.equal(last.ess, whole.ess)
    assert torch.equal(last.answers, whole.answers[-1:])
    if name == "resampled late":
        own = torch.arange(8, dtype=torch.int32)[:, None]
        assert (whole.ancestors[:2] == own).all() and not (whole.ancestors == own).all()
    assert (whole.kl is not None) == (name == "guided")


def test_the_kl_of_a_guided_run_is_that_of_its_transitions():
    """After one step all trajectories of a problem have the KL of the same two distributions, by hand."""
    guide = FILTERS["guided"]["guide"]
    torch.nn.init.normal_(guide.mu.weight)
    run = smc.run(CHAIN, X, width=4, depth=1, guide=guide, evidence=Y)
    seen = []

    class Watched(GRAMGuide):
        def posterior(self, proposal, evidence, t):
            seen.append((proposal, super().posterior(proposal, evidence, t)))
            return seen[-1][1]

    watched = Watched(CHAIN)
    watched.load_state_dict(guide.state_dict())
    smc.run(CHAIN, X, width=4, depth=1, guide=watched, evidence=Y)
    by_hand = sum(
        torch.distributions.kl_divergence(q.base_dist, CHAIN.prior(u, t).base_dist).sum((-1, -2))
        for t, (u, q) in enumerate(seen)
    )
    assert run.kl.shape == (1, 4, 3) and float(run.kl.min()) > 0
    torch.testing.assert_close(run.kl[0], by_hand.expand(4, 3))


def test_a_depth_step_is_in_the_folder_as_soon_as_it_is_done(tmp_path):
    seen = []
    path = tmp_path / "run.zarr"
    sample(CHAIN, X, 6, 4, store=path, callback=lambda view: seen.append(Trajectories.load(path).depths))
    assert seen == [(1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)]


def test_a_stored_run_keeps_one_depth_step_in_memory(tmp_path):
    counts = {}
    for name, store in (("memory", None), ("stored", tmp_path / "run.zarr")):
        seen = []

        def look(view, name=name, seen=seen):
            seen.append(weakref.ref(view.answers))
            counts[name] = sum(answers() is not None for answers in seen)

        sample(CHAIN, X, 7, 6, store=store, callback=look)
    assert counts == {"memory": 6, "stored": 1}


# -- killed ---------------------------------------------------------------------------------------------------

LONG_RUN = """
    import sys
    import torch
    sys.path.insert(0, {folder!r})
    from test_store import CHAIN, X, sample
    choices = {{"seed": 3, "keep": "latents", "store": {path!r}}}
    sample(CHAIN, X, 6, 100_000, callback=lambda view: print(view.depth, flush=True), **choices)
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A process that the system killed in the middle of a run: its folder, and the last depth step it told."""
    path = tmp_path_factory.mktemp("killed") / "run.zarr"
    code = textwrap.dedent(LONG_RUN).format(folder=str(Path(__file__).parent), path=str(path))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    told = 0
    for line in process.stdout:
        told = int(line)
        if told >= 9:
            break
    process.send_signal(signal.SIGKILL)
    rest = process.communicate()[0].split()
    assert process.returncode == -signal.SIGKILL
    return path, int(rest[-1]) if rest else told


def test_a_killed_run_loses_at_most_the_depth_step_it_was_in(killed):
    path, told = killed
    left = Trajectories.load(path)
    assert told <= left.depth <= told + 1 and left.depths == tuple(range(1, left.depth + 1))
    assert_same(left, sample(CHAIN, X, 6, left.depth, seed=3, keep="latents"))


def test_what_is_left_goes_on_in_the_same_folder(killed):
    path, _ = killed
    left = Trajectories.load(path)
    last = sample(CHAIN, X, 6, 3, seed=3, keep="latents", start=left, store=path)
    assert last.depths == (left.depth + 3,)
    assert_same(Trajectories.load(path), sample(CHAIN, X, 6, left.depth + 3, seed=3, keep="latents"))


# -- going on -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 4, 7, "the end"])
def test_wherever_writing_a_depth_step_is_broken_off_the_ones_before_are_whole(step, tmp_path, monkeypatch):
    """The power of the test above, without its luck: stop among the seven writes of the third depth step."""
    path = tmp_path / "run.zarr"
    sample(CHAIN, X, 6, 2, seed=3, keep="latents", store=path)
    name = "header" if step == "the end" else "as_array"
    calls, written = [], getattr(fields, name)

    def broken(values):
        calls.append(1)
        if len(calls) == step or step == "the end":
            raise KeyboardInterrupt
        return written(values)

    choices = {"seed": 3, "keep": "latents"}
    with monkeypatch.context() as patch:
        patch.setattr(fields, name, broken)
        with pytest.raises(KeyboardInterrupt):
            sample(CHAIN, X, 6, 1, start=Trajectories.load(path), store=path, **choices)
    assert_same(Trajectories.load(path), sample(CHAIN, X, 6, 2, **choices))
    sample(CHAIN, X, 6, 2, start=Trajectories.load(path), store=path, **choices)
    assert_same(Trajectories.load(path), sample(CHAIN, X, 6, 4, **choices))


@pytest.mark.parametrize("ending", ["nc", "zarr"])
def test_a_loaded_run_with_its_latents_goes_on_as_one_in_memory(ending, tmp_path):
    first = sample(CHAIN, X, 6, 3, keep="latents")
    loaded = Trajectories.load(first.save(tmp_path / f"run.{ending}"))
    again, direct = (sample(CHAIN, X, 6, 2, start=start, keep="latents") for start in (loaded, first))
    assert torch.equal(again.answers, direct.answers) and torch.equal(again.state.h, direct.state.h)
    choices = {"width": 6, "keep": "latents", "potential": smc_potential, "ess_threshold": 1.0}
    first = smc.run(CHAIN, X, depth=3, **choices)
    loaded = Trajectories.load(first.save(tmp_path / f"filter.{ending}"))
    again, direct = (smc.run(CHAIN, X, depth=2, start=start, **choices) for start in (loaded, first))
    assert_same(again, direct)


def smc_potential(view):
    return view.heads["value"]


def test_a_filter_goes_on_in_its_folder(tmp_path):
    path = tmp_path / "run.zarr"
    choices = {"width": 6, "keep": "latents", "potential": smc_potential, "ess_threshold": 1.0}
    smc.run(CHAIN, X, depth=3, store=path, **choices)
    smc.run(CHAIN, X, depth=2, store=path, start=Trajectories.load(path), **choices)
    whole = smc.run(CHAIN, X, depth=5, **choices)
    assert_same(whole, Trajectories.load(path))


def test_problems_that_were_still_running_when_a_filter_was_stopped_go_on(tmp_path):
    path = tmp_path / "run.zarr"
    choices = {"width": 6, "keep": "latents", "potential": smc_potential, "halt_probability": 0.9, "store": path}
    seen = []
    smc.run(CHAIN, X, depth=6, callback=lambda state, info: seen.append(state.t) or state.t == 2, **choices)
    left = Trajectories.load(path)
    assert seen == [1, 2] and left.depth == 2 and not left.halted.all(0).all()
    smc.run(CHAIN, X, depth=4, start=left, **choices)
    whole = smc.run(CHAIN, X, depth=6, **(choices | {"store": None}))
    assert_same(whole, Trajectories.load(path))


def test_a_saved_run_can_grow_and_leaves_no_groups_of_its_shorter_self(tmp_path):
    import zarr

    first = sample(CHAIN, X, 6, 3, keep="latents")
    path = first.save(tmp_path / "run.zarr")
    assert "posterior" in zarr.open_group(path, mode="r")
    sample(CHAIN, X, 6, 2, keep="latents", start=first, store=path)
    assert set(zarr.open_group(path, mode="r").group_keys()) == {"particles", "latest"}
    assert_same(Trajectories.load(path), sample(CHAIN, X, 6, 5, keep="latents"))
    last = smc.run(CHAIN, X, width=6, depth=3, keep="last", potential=smc_potential)
    path = last.save(tmp_path / "last.zarr")
    with pytest.raises(CheckpointError, match="last.zarr holds the last depth step of a run alone: it cannot grow"):
        smc.run(
            CHAIN,
            X,
            width=6,
            depth=1,
            keep="paths",
            potential=smc_potential,
            start=Trajectories.load(path),
            store=path,
        )


def test_a_run_without_latents_cannot_go_on(tmp_path):
    path = tmp_path / "run.zarr"
    sample(CHAIN, X, 6, 3, store=path)
    with pytest.raises(ValueError, match='start must be a run made with keep="latents": this one has no state'):
        sample(CHAIN, X, 6, 3, start=Trajectories.load(path), store=path)
    smc.run(CHAIN, X, width=6, depth=3, store=tmp_path / "filter.zarr")
    with pytest.raises(ValueError, match="start must be a run of this filter that has its last state"):
        smc.run(CHAIN, X, width=6, depth=3, start=Trajectories.load(tmp_path / "filter.zarr"))


def test_a_continuation_may_have_a_folder_of_its_own(tmp_path):
    first = sample(CHAIN, X, 6, 3, keep="latents")
    sample(CHAIN, X, 6, 2, keep="latents", start=first, store=tmp_path / "more.zarr")
    assert Trajectories.load(tmp_path / "more.zarr").depths == (4, 5)


def test_what_does_not_fit_the_folder_is_one_sentence(tmp_path):
    path = tmp_path / "run.zarr"
    first = sample(CHAIN, X, 6, 2, keep="latents", store=path)
    with pytest.raises(CheckpointError, match="run.zarr exists: remove it, or go on with its run by start="):
        sample(CHAIN, X, 6, 2, store=path)
    loaded = Trajectories.load(path)
    other = sample(CHAIN, X, 6, 4, keep="latents")
    with pytest.raises(
        CheckpointError, match="run.zarr holds depth steps 1 to 2 of seed 0, and start 1 to 4 of seed 0"
    ):
        sample(CHAIN, X, 6, 2, keep="latents", start=other, store=path)
    with pytest.raises(ValueError, match="start has weights [0-9a-f]+, so weights must be [0-9a-f]+, got"):
        sample(make_chain(1), X, 6, 2, keep="latents", start=loaded, store=path)
    with pytest.raises(CheckpointError, match="run.zarr was run with decode mode, got sample"):
        sample(CHAIN, X, 6, 2, keep="latents", decode="sample", start=loaded, store=path)
    with pytest.raises(CheckpointError, match="a store is a folder that ends in .zarr, got run.nc"):
        sample(CHAIN, X, 6, 2, store="run.nc")
    for choices in ({"keep": "last"}, {"chunk": 64}):
        with pytest.raises(ValueError, match="store takes every depth step of all trajectories as it is done"):
            sample(CHAIN, X, 6, 2, store=tmp_path / "new.zarr", **choices)
    for keep in ("last", "summary"):
        with pytest.raises(ValueError, match='store needs keep="paths" or "latents"'):
            smc.run(CHAIN, X, width=6, depth=2, keep=keep, store=tmp_path / "new.zarr")
    assert not (tmp_path / "new.zarr").exists() and first.depth == 2
    assert_same(loaded, Trajectories.load(path))


def test_a_run_stopped_in_its_first_depth_step_is_one_sentence(tmp_path, monkeypatch):
    def broken(values):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fields, "as_array", broken)
        with pytest.raises(KeyboardInterrupt):
            sample(CHAIN, X, 6, 2, store=tmp_path / "run.zarr")
    with pytest.raises(CheckpointError, match="holds no whole depth step: its run was stopped in the first one"):
        Trajectories.load(tmp_path / "run.zarr")


def test_a_model_without_answers_writes_its_states(tmp_path):
    class Walk:
        def init(self, y):
            return pyro.sample("h", dist.Normal(0.0, 1.0))

        def step(self, h, t, y):
            h = pyro.sample(f"h_{t}", dist.Normal(h, 0.3))
            pyro.sample(f"y_{t}", dist.Normal(h, 0.5), obs=y[..., t])
            return h

    choices = {"width": 20, "depth": 6, "problems": 2, "keep": "paths", "task": "walk"}
    y = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    whole = replace(smc.run(Walk(), y, **choices), state=None)
    smc.run(Walk(), y, store=tmp_path / "run.zarr", **choices)
    again = Trajectories.load(tmp_path / "run.zarr")
    assert_same(whole, again)
    assert torch.equal(again.log_evidence, whole.log_evidence)


def test_a_run_that_fails_before_its_first_row_leaves_no_folder(tmp_path):
    path = tmp_path / "run.zarr"
    with pytest.raises(ValueError, match="the potential must return log psi"):
        smc.run(CHAIN, X, width=6, depth=2, potential=lambda view: view.state.h, store=path)
    assert not path.exists()
    smc.run(CHAIN, X, width=6, depth=2, store=path)
    assert Trajectories.load(path).depth == 2
