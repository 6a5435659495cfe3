"""A filter in JAX that is looked at and written as it goes: equal to one in memory, whole where it is stopped."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numpyro", reason="needs probgram[jax]")
pytest.importorskip("zarr")


import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array

from probgram import fields, tasks
from probgram.checkpoint import CheckpointError
from probgram.inference.on_jax import smc
from probgram.inference.on_jax.genealogy import mean
from probgram.inference.on_jax.islands import ring
from probgram.inference.on_jax.potentials import Likelihood
from probgram.inference.on_jax.trajectories import Trajectories
from probgram.models.on_jax import GRAM, Chain, LinearGaussian, LinearGaussianSmoother

X = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)


class Climb(Chain):
    """Climbs at random from x; says halt above 3."""

    def initial(self, context: Array) -> Array:
        return context[:, 0]

    def propose(self, state: Array, context: Array, t: Any) -> Array:
        return 0.9 * state + 0.1 * context[:, 1]

    def prior(self, proposal: Array, t: Any) -> dist.Distribution:
        return dist.Normal(proposal + 0.5, jnp.full_like(proposal, 1.0))

    def move(self, proposal: Array, eps: Array) -> Array:
        return eps

    def readout(self, state: Array) -> dist.Distribution:
        return dist.Categorical(logits=jnp.stack([state, 1 - state], -1)[..., None, :]).to_event(1)

    def heads(self, state: Array) -> dict[str, Array]:
        return {"halt": 10 * (state - 3), "value": -jnp.square(state - 1)}


def high(view: Any) -> Array:
    return view.heads["value"]


def late(view: Any) -> Array:
    return view.heads["value"] * (view.t > 2)


FILTERS: dict[str, dict[str, Any]] = {
    "plain": {"potential": high, "ess_threshold": 0.9},
    "latents": {"potential": high, "keep": "latents", "decode": "sample"},
    "islands": {"potential": high, "islands": 2, "collect": {"mean": mean()}},
    "exchange": {"potential": high, "islands": 2, "exchange": ring(every=2, share=0.25)},
    "resampled late": {"potential": late, "ess_threshold": 1.0},
    "halting": {"potential": high, "halt_probability": 0.5, "depth": 9},
    "uneven": {"potential": high, "depth": [2, 7, 3]},
    "nothing": {"resample": None},
}


def assert_same(a: Any, b: Any) -> None:
    """The same arrays of the same types; numbers that two compilations may round differently within float32."""
    left, right = fields.flat(a), fields.flat(b)
    assert left.keys() == right.keys()
    for name, value in left.items():
        one, other = np.asarray(value), np.asarray(right[name])
        assert one.dtype == other.dtype, name
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5, err_msg=name)
    assert fields.about(a) == fields.about(b)


def run(**choices: Any) -> Any:
    return smc.run(Climb(), X, **({"width": 8, "depth": 5, "key": 2} | choices))


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n == "islands" else pytest.mark.slow) for n in FILTERS],
)
def test_what_a_filter_writes_equals_the_run_in_memory(name: str, tmp_path: Path) -> None:
    choices, seen = FILTERS[name], []
    whole = run(**choices)
    last = run(store=tmp_path / "run.zarr", callback=lambda state, info: seen.append(int(state.t)), **choices)
    again = Trajectories.load(tmp_path / "run.zarr")
    assert seen == list(whole.depths)
    if choices.get("keep") != "latents":
        assert again.state is None
        whole = replace(whole, state=None)
    assert_same(whole, again)
    np.testing.assert_allclose(last.log_normalizer, whole.log_normalizer, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(last.answers, whole.answers[-1:])
    assert last.depths == whole.depths[-1:]
    if name == "resampled late":
        own = np.arange(8)[:, None]
        assert (whole.ancestors[:2] == own).all() and not (whole.ancestors == own).all()


@pytest.mark.slow
def test_the_kl_of_a_guided_run_and_the_states_of_a_foreign_model_are_written(tmp_path: Path) -> None:
    chain, x = LinearGaussian(*(np.eye(1, dtype=np.float32) for _ in range(4))), X[:, :, None]
    choices = {"width": 6, "depth": 2, "guide": LinearGaussianSmoother(chain), "evidence": x}
    whole = replace(smc.run(chain, x, keep="paths", **choices), state=None)
    smc.run(chain, x, keep="paths", store=tmp_path / "guided.zarr", **choices)
    assert whole.kl is not None
    assert_same(whole, Trajectories.load(tmp_path / "guided.zarr"))
    plain = smc.PlainModel(lambda noise: noise, lambda state, t, noise: (state + noise, -jnp.square(state)))
    choices = {"width": 6, "depth": 2, "keep": "paths"}
    smc.run(plain, store=tmp_path / "plain.zarr", **choices)
    assert_same(replace(smc.run(plain, **choices), state=None), Trajectories.load(tmp_path / "plain.zarr"))


def test_a_run_that_was_stopped_leaves_its_depth_steps_and_goes_on_in_its_folder(tmp_path: Path) -> None:
    path, choices = tmp_path / "run.zarr", {"potential": high, "keep": "latents", "ess_threshold": 1.0}

    def killed(state: smc.SMCState, info: smc.SMCInfo) -> None:
        assert Trajectories.load(path).depths == tuple(range(1, int(state.t) + 1))
        if state.t == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(store=path, callback=killed, **choices)
    last = run(store=path, start=Trajectories.load(path), depth=3, **choices)
    assert last.depths == (5,)
    assert_same(run(**choices), Trajectories.load(path))


def test_problems_that_were_still_running_when_a_run_was_stopped_go_on(tmp_path: Path) -> None:
    path, choices = tmp_path / "run.zarr", {"potential": high, "keep": "latents", "halt_probability": 0.9}
    run(store=path, depth=6, callback=lambda state, info: state.t == 2, **choices)
    left = Trajectories.load(path)
    assert left.depth == 2 and not left.halted.all(0).all()
    run(store=path, depth=4, start=left, **choices)
    whole, again = run(depth=6, **choices), Trajectories.load(path)
    np.testing.assert_allclose(again.log_normalizer, whole.log_normalizer, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(again.halted, whole.halted)


def test_a_callback_stops_the_run_by_returning_true_and_all_steps_are_one_program() -> None:
    traced: list[int] = []

    def counted(state: Array, t: Any, noise: Array) -> tuple[Array, Array]:
        traced.append(1)
        return 0.9 * state + noise, -jnp.square(state)

    model = smc.PlainModel(lambda noise: noise, counted)
    before: list[int] = []

    def look(state: smc.SMCState, info: smc.SMCInfo) -> bool:
        before.append(len(traced))
        return bool(state.t == 4)

    for keep in ("summary", "latents"):
        before.clear()
        found = smc.run(model, width=20, depth=9, keep=keep, callback=look, collect={"mean": mean()})
        whole = smc.run(model, width=20, depth=4, keep=keep, collect={"mean": mean()})
        assert len(before) == 4 and before[0] == before[-1]
        assert not found.settings["complete"]
        assert_same(whole, replace(found, settings=found.settings | {"complete": True}))


def test_what_does_not_fit_the_folder_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    run(depth=1, store=path, potential=high, keep="latents")
    with pytest.raises(CheckpointError, match="run.zarr exists: remove it, or go on with its run by start="):
        run(depth=1, store=path)
    for keep in ("last", "summary"):
        with pytest.raises(ValueError, match='store needs keep="paths" or "latents"'):
            run(keep=keep, store=tmp_path / "new.zarr")
    assert not (tmp_path / "new.zarr").exists()


def test_strict_says_at_once_which_site_it_was(tmp_path: Path) -> None:
    def steep(view: Any) -> Array:
        return jnp.where(view.t < 3, 0.0, jnp.where(view.problem == 1, -jnp.inf, 0.0) + 0 * view.state)

    seen: list[int] = []
    with pytest.raises(smc.FilterError, match=r"^the potential left no weight at depth 3 in problems \[1\]$"):
        run(strict=True, potential=steep, callback=lambda state, info: seen.append(int(state.t)))
    assert seen == [1, 2]


def test_a_stored_run_of_a_state_that_is_a_tuple_goes_on(tmp_path: Path) -> None:
    """A file knows the leaves of a state, not the class that it was."""
    chain = GRAM.for_task(tasks.Queens(5), key=jax.random.key(0), dim=16, heads=2, hidden=24)
    x = np.zeros((2, 5), int)
    choices: dict[str, Any] = {"width": 4, "potential": high, "keep": "latents"}
    smc.run(chain, x, depth=2, store=tmp_path / "run.zarr", **choices)
    start = Trajectories.load(tmp_path / "run.zarr")
    gone_on, whole = smc.run(chain, x, depth=2, start=start, **choices), smc.run(chain, x, depth=4, **choices)
    np.testing.assert_allclose(gone_on.log_normalizer, whole.log_normalizer[2:], rtol=1e-5)


def test_a_likelihood_is_known_by_what_it_observes() -> None:
    one, same, other = (repr(Likelihood(np.array(y))) for y in ([1, 2, -1], [1, 2, -5], [1, 3, -1]))
    assert one == same != other


def test_a_run_that_was_stopped_has_no_evidence_yet() -> None:
    y = np.zeros((3, 1), int)
    choices: dict[str, Any] = {"width": 8, "potential": Likelihood(y)}
    stopped = smc.run(Climb(), X, depth=4, callback=lambda state, info: int(state.t) == 2, **choices)
    with pytest.raises(ValueError, match="was stopped before its last depth step"):
        _ = stopped.log_evidence
    assert np.isfinite(smc.run(Climb(), X, depth=2, **choices).log_evidence[-1]).all()
