"""Training in JAX: it learns, resumes bit for bit, survives Ctrl-C, leaves files that torch reads.

All runs share one compiled step, unless a test says otherwise.
"""

import json
import logging
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numpyro", reason="needs probgram[jax]")
pytest.importorskip("optax", reason="needs probgram[jax]")

import jax.numpy as jnp
import torch

from probgram import models, tasks
from probgram.checkpoint import CheckpointError, read_tensors, save_chain, write_tensors
from probgram.inference import recipes
from probgram.inference import svi as torch_svi
from probgram.inference.interrupts import HeldBack
from probgram.inference.objective_config import ObjectiveConfig
from probgram.inference.on_jax import svi
from probgram.inference.on_jax.svi import DivergedError, FitConfig, FitResult, fit, fit_heads
from probgram.models.on_jax import GRAM, HRM, TRM, GRAMGuide, LoopedTransformer

TASK = tasks.Queens(5)
SIZES = {"dim": 16, "heads": 2, "blocks": 1, "hidden": 24, "transitions": 2, "refinements": 1}
OBJECTIVE = ObjectiveConfig(depth=4, settle=0.0)
SETTINGS = {"batch": 16, "log_every": 5, "validate_every": 5, "validation": 8, "progress": False}
VARYING = ("seconds", "problems_per_second")
CHAIN = GRAM.for_task(TASK, **SIZES)
GUIDE = GRAMGuide(CHAIN)


def run(steps: int, data: Any = TASK, **changes: Any) -> FitResult:
    return fit(CHAIN, GUIDE, data, steps, **({"objective": OBJECTIVE} | SETTINGS | changes))


def weights(chain: Any, guide: Any) -> dict[str, np.ndarray]:
    parts = [("chain", chain)] + ([("guide", guide)] if guide is not None else [])
    return {f"{n}.{k}": np.asarray(v) for n, part in parts for k, v in part.state_dict().items()}


def same(a: FitResult, b: FitResult) -> bool:
    left, right = weights(a.chain, a.guide), weights(b.chain, b.guide)
    return left.keys() == right.keys() and all(np.array_equal(left[k], right[k]) for k in left)


def measured(lines: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: v for k, v in line.items() if k not in VARYING} for line in lines]


def written(folder: Any) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def stop_at(step: int) -> Any:
    return lambda view: view.step == step


@pytest.fixture(scope="module")
def whole() -> FitResult:
    """Twenty steps in one go."""
    return run(20)


# -- learning -------------------------------------------------------------------------------------------------


def test_the_loss_goes_down_and_the_chain_that_was_given_stays() -> None:
    before = weights(CHAIN, GUIDE)
    result = run(150, lr=5e-3, warm_up=10, ema=0.9)
    assert (result.steps, result.finished) == (150, True)
    loss = [line["reconstruction"] for line in result.history]
    assert np.mean(loss[-5:]) < 0.75 * loss[0]
    after = weights(CHAIN, GUIDE)
    assert all(np.array_equal(before[k], after[k]) for k in before)


def test_every_parameter_moves_and_a_buffer_does_not() -> None:
    before, result = weights(CHAIN, GUIDE), run(12, lr=1e-2, warm_up=1)
    after = weights(result.chain, result.guide)
    assert [k for k in before if np.array_equal(before[k], after[k])] == ["chain.z0"]


def test_metrics_have_the_names_that_torch_gives_them(whole: FitResult) -> None:
    torch.manual_seed(0)
    chain = models.GRAM.for_task(TASK, **SIZES)
    theirs = torch_svi.fit(chain, models.GRAMGuide(chain), TASK, 20, objective=OBJECTIVE, **SETTINGS)
    assert [sorted(line) for line in whole.history] == [sorted(line) for line in theirs.history]
    for mine, other in zip(whole.history, theirs.history, strict=True):
        assert [mine[k] for k in ("step", "beta", "lr")] == [other[k] for k in ("step", "beta", "lr")]
    assert all(np.isfinite(value) for line in whole.history for value in line.values())


def test_the_same_seed_trains_the_same_weights_and_another_others(whole: FitResult) -> None:
    assert same(run(20), whole)
    assert not same(run(20, seed=1), whole)


def test_new_batches_seeds_and_rates_compile_nothing_again(whole: FitResult) -> None:
    before = svi._depth_step._cached._cache_size()
    run(10, seed=5, lr=1e-2, ema=0.5)
    assert svi._depth_step._cached._cache_size() == before


def test_the_result_is_the_average_of_the_weights() -> None:
    average, ema = weights(CHAIN, GUIDE), 0.6

    def follow(view: Any) -> None:
        decay = min(ema, view.step / (9 + view.step))
        for name, value in weights(view.chain, view.guide).items():
            average[name] = decay * average[name] + (1 - decay) * value

    result = run(8, ema=ema, log_every=1, lr=1e-2, warm_up=1, validate_every=0, callbacks=[follow])
    for name, value in weights(result.chain, result.guide).items():
        np.testing.assert_allclose(value, average[name], atol=1e-6, err_msg=name)


def test_optax_steps_as_torch_s_adamw_with_clipping() -> None:
    """Five steps on the same gradients, some above the largest norm."""
    config = FitConfig(lr=0.1, clip=0.5, weight_decay=0.3)
    start = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    theirs = torch.nn.Parameter(torch.from_numpy(start.copy()))
    optimiser = torch.optim.AdamW([theirs], lr=0.1, betas=config.betas, weight_decay=0.3)
    mine, ours = jnp.asarray(start), svi.adamw(svi._Fixed.of(config))
    slots = ours.init(mine)
    for k in range(5):
        gradient = np.random.default_rng(k).normal(size=(3, 4)).astype(np.float32) * 10.0 ** -(k % 3)
        theirs.grad = torch.from_numpy(gradient)
        torch.nn.utils.clip_grad_norm_([theirs], 0.5)
        optimiser.step()
        direction, slots = ours.update(jnp.asarray(gradient), slots, mine)
        mine = mine - 0.1 * direction
    np.testing.assert_allclose(mine, theirs.detach().numpy(), rtol=2e-5)


def test_trained_weights_are_torch_s_to_read(whole: FitResult, tmp_path: Any) -> None:
    path = save_chain(tmp_path / "weights.safetensors", whole.chain, whole.guide, {"task": TASK.name})
    chain = models.GRAM.from_pretrained(path)
    for name, value in chain.state_dict().items():
        assert np.array_equal(value.numpy(), weights(whole.chain, None)[f"chain.{name}"]), name
    assert chain.about["task"] == TASK.name


@pytest.mark.slow
def test_a_chain_without_noise_trains_without_a_guide() -> None:
    chain = GRAM.for_task(TASK, **SIZES, noise=False)
    result = fit(chain, None, TASK, 60, lr=5e-3, warm_up=5, **SETTINGS)
    assert result.guide is None and result.finished
    assert result.history[-1]["loss"] < result.history[0]["loss"]


@pytest.mark.slow
def test_heads_alone_train_and_nothing_else_moves() -> None:
    before = weights(CHAIN, None)
    result = fit_heads(CHAIN, ("judge",), TASK, 10, depth=3, lr=1e-2, warm_up=1, **SETTINGS)
    after = weights(result.chain, None)
    moved = {k for k in before if not np.array_equal(before[k], after[k])}
    assert moved and all(name.startswith("chain.judge.") for name in moved)


# -- going on -------------------------------------------------------------------------------------------------


def resumes(folder: Any, **changes: Any) -> None:
    uninterrupted = run(20, **changes)
    first = run(20, folder=folder, callbacks=[stop_at(10)], **changes)
    assert (first.steps, first.finished) == (10, False)
    second = run(20, folder=folder, **changes)
    assert (second.steps, second.finished) == (20, True)
    assert same(second, uninterrupted)
    assert measured(first.history + second.history) == measured(uninterrupted.history)
    assert measured(written(folder)) == measured(uninterrupted.history)


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Any) -> None:
    resumes(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"swap_halted": True, "accumulate": 2},
        {"objective": ObjectiveConfig(depth=3, carry=0.5, particles=2)},
        {"objective": ObjectiveConfig(depth=3, gradient="full")},
    ],
    ids=["swap", "particles", "full"],
)
def test_whatever_the_objective_it_goes_on_bit_for_bit(tmp_path: Any, changes: dict[str, Any]) -> None:
    resumes(tmp_path, **changes)


def test_a_finished_run_is_returned_as_it_was(tmp_path: Any, whole: FitResult) -> None:
    run(20, folder=tmp_path)
    again = run(20, folder=tmp_path)
    assert again.finished and again.history == [] and same(again, whole)


def interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Any, whole: FitResult, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING, "probgram"):
        first = run(20, folder=tmp_path, callbacks=[lambda view: view.step == 10 and interrupted()])
    assert (first.steps, first.finished) == (10, False)
    assert f"training stopped at step 10 of 20: the same call goes on from {tmp_path}" in caplog.text
    assert same(run(20, folder=tmp_path), whole)


def test_ctrl_c_within_a_step_takes_back_what_was_drawn(tmp_path: Any, whole: FitResult, monkeypatch: Any) -> None:
    step, taken = svi._depth_step, []

    def seventh(*given: Any) -> Any:
        taken.append(1)
        return interrupted() if len(taken) == 7 else step(*given)

    with monkeypatch.context() as patch:
        patch.setattr(svi, "_depth_step", seventh)
        first = run(20, folder=tmp_path)
    assert (first.steps, first.finished) == (6, False)
    assert same(run(20, folder=tmp_path), whole)


def test_ctrl_c_that_is_held_back_ends_after_its_step(tmp_path: Any, whole: FitResult, monkeypatch: Any) -> None:
    step, taken, held = svi._depth_step, [], []

    class Held(HeldBack):
        def __enter__(self) -> HeldBack:
            held.append(self)
            return self

    def seventh(*given: Any) -> Any:
        taken.append(1)
        held[0].asked = len(taken) == 7
        return step(*given)

    with monkeypatch.context() as patch:
        patch.setattr(svi, "HeldBack", Held)
        patch.setattr(svi, "_depth_step", seventh)
        first = run(20, folder=tmp_path)
    assert (first.steps, first.finished) == (7, False)
    assert same(run(20, folder=tmp_path), whole)


def test_ctrl_c_while_held_out_problems_are_looked_at_changes_no_weights(
    tmp_path: Any, whole: FitResult, monkeypatch: Any
) -> None:
    calls, real = [], svi.sample

    def third(*given: Any, **named: Any) -> Any:
        calls.append(1)
        return interrupted() if len(calls) == 3 else real(*given, **named)  # the first is the look at the chain

    with monkeypatch.context() as patch:
        patch.setattr(svi, "sample", third)
        first = run(20, folder=tmp_path)
    assert (first.steps, first.finished) == (10, False)
    assert same(run(20, folder=tmp_path), whole)


# -- what can be wrong ----------------------------------------------------------------------------------------


def test_a_run_that_diverges_says_so_and_keeps_the_last_good_checkpoint(tmp_path: Any) -> None:
    run(20, folder=tmp_path, callbacks=[stop_at(5)], lr=1e30, warm_up=10**32)
    before = (tmp_path / "training.safetensors").read_bytes()
    with pytest.raises(DivergedError, match="training diverged by step"):
        run(20, lr=1e30)
    assert (tmp_path / "training.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"lr": 5e-4}, "lr"), ({"seed": 3}, "seed"), ({"objective": ObjectiveConfig(depth=5)}, "depth")],
    ids=["lr", "seed", "depth"],
)
def test_a_folder_of_a_run_with_other_settings_is_refused_and_left_alone(
    tmp_path: Any, changes: dict[str, Any], named: str
) -> None:
    run(1, folder=tmp_path, validate_every=0)
    before = (tmp_path / "training.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match=f"belongs to a run with other settings .*{named}.* another folder"):
        run(20, folder=tmp_path, **changes)
    assert (tmp_path / "training.safetensors").read_bytes() == before


def test_a_setting_younger_than_the_run_counts_as_having_its_default(tmp_path: Any) -> None:
    run(1, folder=tmp_path, validate_every=0)
    path = tmp_path / "training.safetensors"
    arrays, metadata = read_tensors(path, "np")
    plain = json.loads(metadata["plain"])
    del plain["settings"]["FitConfig.draw"], plain["settings"]["model"][1]["sigma_max"]
    write_tensors(path, arrays, metadata | {"plain": json.dumps(plain)})
    with pytest.raises(CheckpointError, match="was {'FitConfig.draw': 'pair'}, now {'FitConfig.draw': 'problem'}"):
        run(2, folder=tmp_path, draw="problem")
    assert run(2, folder=tmp_path, validate_every=0).steps == 2


def test_neither_backend_goes_on_with_the_other_s_training_state(tmp_path: Any) -> None:
    torch.manual_seed(0)
    chain = models.GRAM.for_task(TASK, **SIZES)
    guide = models.GRAMGuide(chain)
    run(1, folder=tmp_path / "jax", validate_every=0)
    torch_svi.fit(chain, guide, TASK, 1, objective=OBJECTIVE, folder=tmp_path / "torch", **SETTINGS)
    with pytest.raises(CheckpointError, match="is not a training state of the JAX backend"):
        run(2, folder=tmp_path / "torch")
    with pytest.raises(CheckpointError, match="is not a training state"):
        torch_svi.fit(chain, guide, TASK, 2, objective=OBJECTIVE, folder=tmp_path / "jax", **SETTINGS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 1}, "unknown settings ['learning_rate']: expected fields of FitConfig"),
        ({"steps": 0}, "steps must be at least 1 and whole, got 0"),
        ({"precision": "bf16"}, 'precision="bf16" is for the torch backend: here it must be "32"'),
        ({"devices": 2}, "devices and strategy are for the torch backend: here mesh= names the devices"),
        ({"only": "judge"}, "only must be a sequence of names, got the string 'judge'"),
        ({"only": ("jury",)}, "only must name submodules of GRAM, and 'jury' is none"),
        ({"augment": True}, "augment needs a task with symmetric images, such as tasks.Sudoku(3)"),
        ({"data": (np.zeros((3, 5)), np.zeros((3, 5), int))}, "x must hold integers (tokens), got float64"),
        ({"data": (np.zeros((3, 5), int), np.full((3, 5), 9))}, None),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_and_data_that_make_no_sense_are_one_clear_sentence(
    changes: dict[str, Any], message: str | None
) -> None:
    with pytest.raises(ValueError) as caught:
        run(**({"steps": 5} | changes))
    assert "\n" not in str(caught.value)
    assert message is None or str(caught.value) == message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "choices", "objective"),
    [
        (TRM, {}, recipes.deep_supervision(4)),
        (HRM, {}, recipes.deep_supervision(4)),
        (LoopedTransformer, {"refinements": None}, recipes.end_to_end()),
    ],
)
def test_chains_without_noise_learn(model: Any, choices: dict[str, Any], objective: ObjectiveConfig) -> None:
    sizes = {k: v for k, v in (SIZES | choices).items() if v is not None}
    chain = model.for_task(TASK, **sizes)
    loss = [
        line["reconstruction"]
        for line in fit(chain, None, TASK, 150, objective=objective, lr=5e-3, warm_up=10, **SETTINGS).history
    ]
    assert np.mean(loss[-5:]) < 0.75 * loss[0]


# -- other processes ------------------------------------------------------------------------------------------


def python(code: str, **environment: str) -> str:
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment, timeout=500
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_training_needs_no_torch() -> None:
    code = (
        "import sys, probgram.inference.on_jax.svi\nprint({'torch', 'pyro', 'lightning_fabric'} & set(sys.modules))"
    )
    assert python(code).strip() == "set()"


MESHED = """
import numpy as np
from probgram import tasks
from probgram.inference.objective_config import ObjectiveConfig
from probgram.inference.on_jax.devices import device_mesh
from probgram.inference.on_jax.svi import fit
from probgram.models.on_jax import GRAM, HRM, TRM, GRAMGuide, LoopedTransformer
chain = GRAM.for_task(tasks.Queens(5), dim=16, heads=2, blocks=1, hidden=24, transitions=2, refinements=1)
runs = [
    fit(chain, GRAMGuide(chain), tasks.Queens(5), 20, objective=ObjectiveConfig(depth=4, settle=0.0), batch=16,
        log_every=5, validate_every=0, progress=False, mesh=mesh)
    for mesh in (None, device_mesh(1, 4))
]
one, four = ([line["loss"] for line in run.history] for run in runs)
np.testing.assert_allclose(four, one, rtol=1e-4)
print("the same")
"""


@pytest.mark.slow
def test_four_devices_follow_the_loss_of_one() -> None:
    """20 steps within 1e-4: the noise does not depend on the devices, the order of sums does."""
    assert python(MESHED, XLA_FLAGS="--xla_force_host_platform_device_count=4").strip() == "the same"


@pytest.mark.slow
def test_the_command_line_trains_and_its_weights_are_torch_s_to_read(tmp_path: Any, monkeypatch: Any) -> None:
    from typer.testing import CliRunner

    from probgram.cli import app

    monkeypatch.chdir(tmp_path)
    small = "--steps 3 --head-steps 2 --dim 16 --batch 8 --depth 2 --json".split()
    result = CliRunner().invoke(app, ["train", "queens5", "--backend", "jax", *small])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["metrics"]["step"] == 3
    assert models.GRAM.from_pretrained(tmp_path / "weights.safetensors").about["steps"] == 3
    refused = CliRunner().invoke(app, ["train", "queens5", "--backend", "jax", "--device", "cpu"])
    assert refused.exit_code == 2 and "--device is PyTorch's" in refused.output
