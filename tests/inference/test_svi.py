"""Training: it learns, resumes bit for bit, survives Ctrl-C and a kill, and says what is wrong in a sentence."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
import torch

from probgram import fit, tasks
from probgram.checkpoint import CheckpointError, read_tensors, write_tensors
from probgram.inference import svi
from probgram.inference.interrupts import HeldBack
from probgram.inference.objective import Objective, ObjectiveConfig
from probgram.inference.svi import DivergedError, FitConfig, FitResult, fit_heads, learning_rate
from probgram.inference.targets import dealt
from probgram.models import GRAM, GRAMGuide

TASK = tasks.Queens(5)
OBJECTIVE = ObjectiveConfig(depth=4)
SETTINGS = {
    "batch": 16,
    "log_every": 5,
    "validate_every": 5,
    "validation": 8,
    "progress": False,
    "accelerator": "cpu",
}
VARYING = ("seconds", "problems_per_second")


def make(**choices) -> tuple[GRAM, GRAMGuide]:
    torch.manual_seed(0)
    chain = GRAM.for_task(TASK, **({"dim": 16, "heads": 2, "blocks": 1, "hidden": 24} | choices))
    return chain, GRAMGuide(chain)


def run(steps: int, data=TASK, model=None, **changes) -> FitResult:
    return fit(*(model or make()), data, steps, **({"objective": OBJECTIVE} | SETTINGS | changes))


def weights(result: FitResult) -> dict[str, torch.Tensor]:
    return {f"chain.{k}": v.clone() for k, v in result.chain.state_dict().items()} | {
        f"guide.{k}": v.clone() for k, v in result.guide.state_dict().items()
    }


def same(a: FitResult, b: FitResult) -> bool:
    left, right = weights(a), weights(b)
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def measured(lines) -> list[dict[str, float]]:
    return [{k: v for k, v in line.items() if k not in VARYING} for line in lines]


def written(folder) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def stop_at(step: int):
    return lambda view: view.step == step


@pytest.fixture(scope="module")
def whole() -> FitResult:
    """Twenty steps in one go."""
    return run(20)


def sentence(error: type[Exception], call) -> str:
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and 10 < len(message) < 600
    return message


# -- learning -------------------------------------------------------------------------------------------------


def test_the_loss_goes_down_and_the_result_is_the_chain_that_was_given():
    chain, guide = make()
    result = run(150, model=(chain, guide), lr=5e-3, warm_up=10, ema=0.9, batch=32)
    assert result.chain is chain and result.guide is guide and not chain.training
    assert (result.steps, result.finished) == (150, True)
    loss = [line["reconstruction"] for line in result.history]
    assert np.mean(loss[-5:]) < 0.75 * loss[0]


def test_every_parameter_of_chain_and_guide_moves():
    chain, guide = make()
    before = weights(FitResult(chain, guide, 0, False))
    after = weights(run(12, model=(chain, guide), lr=1e-2, warm_up=1))
    assert [k for k in before if k != "chain.z0" and torch.equal(before[k], after[k])] == []
    assert torch.equal(before["chain.z0"], after["chain.z0"])


def test_metrics_name_what_is_measured_and_held_out_problems_are_looked_at(whole):
    assert [line["step"] for line in whole.history] == [5, 10, 15, 20]
    names = {"loss", "reconstruction", "kl", "heads", "right", "lr", "beta", "gradient_norm", "seconds"}
    assert all(names <= line.keys() for line in whole.history)
    assert all(np.isfinite(value) for line in whole.history for value in line.values())
    assert 0 <= whole.history[-1]["valid_held_out"] <= 1


def test_the_same_seed_trains_the_same_weights_and_another_others(whole):
    torch.manual_seed(77)  # where the global generator stands does not matter
    assert same(run(20), whole)
    assert not same(run(20, seed=1), whole)


def test_a_chain_without_noise_trains_without_a_guide():
    torch.manual_seed(0)
    chain = GRAM.for_task(TASK, dim=16, heads=2, blocks=1, hidden=24, noise=False)
    settings = SETTINGS | {"validate_every": 0}
    result = fit(chain, None, TASK, 60, lr=5e-3, warm_up=5, **settings)
    assert result.guide is None and result.finished
    assert result.history[-1]["loss"] < result.history[0]["loss"]


def test_arrays_train_as_their_task_does(whole):
    x, y = TASK.examples("train")
    result = run(20, data=(x, y))
    assert "valid_held_out" not in result.history[-1]
    order = np.random.default_rng(0).permutation(len(x))
    assert same(run(20, data=(torch.from_numpy(x[order]), torch.from_numpy(y[order]))), result)
    labels = {"right", "heads", "loss", "valid_held_out"}  # known answers label as verify does: all are known
    for mine, theirs in zip(measured(result.history), measured(whole.history), strict=True):
        assert {k: v for k, v in mine.items() if k not in labels} == {
            k: v for k, v in theirs.items() if k not in labels}  # fmt: skip
        assert mine["right"] == theirs["right"]


def test_the_result_is_the_average_of_the_weights():
    chain, guide = make()
    average = weights(FitResult(chain, guide, 0, False))
    ema = 0.6

    def follow(view):
        decay = min(ema, view.step / (9 + view.step))
        for name, value in weights(FitResult(view.chain, view.guide, 0, False)).items():
            average[name] = decay * average[name] + (1 - decay) * value

    result = run(8, model=(chain, guide), ema=ema, log_every=1, lr=1e-2, warm_up=1, callbacks=[follow])
    for name, value in weights(result).items():
        assert torch.allclose(value, average[name], atol=1e-6), name


def test_accumulated_gradients_are_the_mean_of_the_depth_steps(monkeypatch):
    seen, step = [], torch.optim.AdamW.step

    def record(optimiser, *arguments, **keywords):
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        seen.append([None if p.grad is None else p.grad.clone() for p in parameters])
        return step(optimiser, *arguments, **keywords)

    monkeypatch.setattr(torch.optim.AdamW, "step", record)
    still = {"lr": 0.0, "weight_decay": 0.0, "clip": 1e9, "validate_every": 0}  # so that nothing moves
    run(4, **still)
    run(2, accumulate=2, **still)
    single, double = seen[:4], seen[4:]
    assert len(double) == 2
    for k in range(2):
        for a, b, both in zip(single[2 * k], single[2 * k + 1], double[k], strict=True):
            if both is not None:
                mean = (torch.zeros_like(both) if a is None else a) / 2 + (
                    torch.zeros_like(both) if b is None else b
                ) / 2
                assert torch.allclose(both, mean, atol=1e-6)


class AlwaysHalted(GRAM):
    """Says of every state that its answer is right."""

    def heads(self, state):
        return {"halt": torch.full(state.h.shape[:-2], 9.0)}


def test_halted_rows_are_handed_a_new_problem_every_second_time(tmp_path):
    drawn = {}
    for swap in (False, True):
        torch.manual_seed(0)
        chain = AlwaysHalted.for_task(TASK, dim=16, heads=2, blocks=1, hidden=24)
        run(20, model=(chain, GRAMGuide(chain)), swap_halted=swap, folder=tmp_path / str(swap), validate_every=0)
        drawn[swap] = json.loads(read_tensors(tmp_path / str(swap) / "training.safetensors")[1]["plain"])["drawn"]
    assert drawn[False] == 16 + 20 * 16 / 4
    assert drawn[True] == pytest.approx(
        16 + 20 * 16 * 0.55, rel=0.2
    )  # ends at each step with probability ½, or at 4


def test_heads_alone_train_and_nothing_else_moves():
    chain, guide = make()
    before = weights(FitResult(chain, guide, 0, False))
    result = svi.fit_heads(chain, ("judge",), TASK, 10, depth=3, lr=1e-2, warm_up=1, **SETTINGS)
    moved = {k for k, v in weights(FitResult(chain, guide, 0, False)).items() if not torch.equal(v, before[k])}
    assert result.finished and moved
    assert all(name.startswith("chain.judge.") for name in moved)
    assert all(parameter.requires_grad for parameter in chain.parameters())


def test_the_network_may_compute_in_bfloat16(whole):
    result = run(20, precision="bf16")
    assert result.finished and not same(result, whole)
    assert all(value.dtype == torch.float32 for value in weights(result).values())
    for line, full in zip(result.history, whole.history, strict=True):
        assert np.isfinite(list(line.values())).all()
        assert line["reconstruction"] == pytest.approx(full["reconstruction"], rel=0.05)


# -- the rate -------------------------------------------------------------------------------------------------


def test_the_rate_rises_linearly_and_falls_as_a_cosine():
    config = FitConfig(lr=2.0, schedule="cosine", warm_up=10, lr_final=0.1)
    assert [learning_rate(config, step, 1000) for step in (0, 4)] == pytest.approx([0.2, 1.0], rel=1e-3)
    assert learning_rate(config, 500, 1000) == pytest.approx(2.0 * (0.1 + 0.9 / 2))
    assert learning_rate(config, 1000, 1000) == pytest.approx(0.2)
    assert learning_rate(config, 5000, 1000) == pytest.approx(0.2)
    rates = [learning_rate(config, step, 1000) for step in range(10, 1000)]
    assert rates == sorted(rates, reverse=True)


def test_a_constant_rate_stays_after_the_warm_up():
    config = FitConfig(lr=2.0, warm_up=10, schedule="constant")
    assert [learning_rate(config, step, 1000) for step in (0, 4, 9, 10, 999)] == [0.2, 1.0, 2.0, 2.0, 2.0]
    assert learning_rate(FitConfig(lr=2.0, warm_up=0, schedule="constant"), 0, 10) == 2.0


def test_a_trapezoid_stays_and_falls_at_the_end():
    config = FitConfig(lr=2.0, warm_up=10, cool_down=0.2, lr_final=0.1)
    assert config.schedule == "trapezoid"
    rates = [learning_rate(config, step, 1000) for step in (4, 9, 500, 800, 900, 1000)]
    assert rates == pytest.approx([1.0, 2.0, 2.0, 2.0, 2.0 * (0.1 + 0.9 / 2), 0.2])


# -- going on -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"swap_halted": True, "accumulate": 2},
        {"objective": ObjectiveConfig(depth=3, carry=0.5, particles=2)},
        {"objective": ObjectiveConfig(depth=3, gradient="full")},
    ],
    ids=["default", "swap", "particles", "full"],
)
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, changes):
    uninterrupted = run(20, **changes)
    first = run(20, folder=tmp_path, callbacks=[stop_at(10)], **changes)
    assert (first.steps, first.finished) == (10, False)
    torch.manual_seed(99)  # another process stands elsewhere
    second = run(20, folder=tmp_path, **changes)
    assert (second.steps, second.finished) == (20, True)
    assert same(second, uninterrupted)
    assert measured(first.history + second.history) == measured(uninterrupted.history)
    assert measured(written(tmp_path)) == measured(uninterrupted.history)


def test_a_finished_run_is_returned_as_it_was(tmp_path, whole):
    run(20, folder=tmp_path)
    again = run(20, folder=tmp_path)
    assert again.finished and again.history == [] and same(again, whole)
    assert measured(written(tmp_path)) == measured(whole.history)


def test_what_is_only_shown_may_change_on_the_way(tmp_path, whole):
    run(20, folder=tmp_path, callbacks=[stop_at(10)])
    assert same(run(20, folder=tmp_path, log_every=1, validate_every=0, checkpoint_every=0.0), whole)


def interrupt_at(step: int):
    def callback(view):
        if view.step == step:
            raise KeyboardInterrupt

    return callback


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path, whole, caplog):
    with caplog.at_level(logging.WARNING, "probgram"):
        first = run(20, folder=tmp_path, callbacks=[interrupt_at(10)])
    assert (first.steps, first.finished) == (10, False)
    assert f"training stopped at step 10 of 20: the same call goes on from {tmp_path}" in caplog.text
    assert same(run(20, folder=tmp_path), whole)


def test_ctrl_c_without_a_folder_says_so(caplog):
    with caplog.at_level(logging.WARNING, "probgram"):
        result = run(20, callbacks=[interrupt_at(5)])
    assert (result.steps, result.finished) == (5, False)
    assert "give folder= to go on later" in caplog.text


def test_ctrl_c_in_the_very_first_step_can_be_gone_on_from(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Objective, "forward", interrupted)
        first = run(20, folder=tmp_path)
    assert (first.steps, first.finished) == (0, False)
    second = run(20, folder=tmp_path)
    assert second.steps == 20 and second.finished


def test_ctrl_c_within_a_step_waits_for_its_end(tmp_path, whole, monkeypatch):
    """It comes where noise has been drawn and nothing learned."""
    forward, held = Objective.forward, []

    class Held(HeldBack):
        def __enter__(self):
            held.append(self)
            return self

    def seventh(self, rollout):
        held.append(1)
        if len(held) == 8:
            held[0]._note(signal.SIGINT, None)
        return forward(self, rollout)

    with monkeypatch.context() as patch:
        patch.setattr(svi, "HeldBack", Held)
        patch.setattr(Objective, "forward", seventh)
        first = run(20, folder=tmp_path)
    assert (first.steps, first.finished) == (7, False)
    assert same(run(20, folder=tmp_path), whole)


SIGNALS = """
import os, signal
from probgram.inference.interrupts import HeldBack
python, mine = signal.default_int_handler, lambda *_: None
signal.signal(signal.SIGINT, python)
try:
    with HeldBack() as ctrl_c:
        os.kill(os.getpid(), signal.SIGINT)
        assert ctrl_c.asked
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("a second one interrupts")
except KeyboardInterrupt:
    assert signal.getsignal(signal.SIGINT) is python
signal.signal(signal.SIGINT, mine)
with HeldBack() as ctrl_c:
    os.kill(os.getpid(), signal.SIGINT)
    assert not ctrl_c.asked and signal.getsignal(signal.SIGINT) is mine
"""


def test_a_signal_is_held_back_once():
    """In a process of its own: tests may run beside the main thread, which alone sees signals."""
    done = subprocess.run([sys.executable, "-c", SIGNALS], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_ctrl_c_while_held_out_problems_are_looked_at_changes_no_weights(tmp_path, whole, monkeypatch):
    calls, real = [], svi.sample

    def interrupted(*arguments, **keywords):
        calls.append(1)
        if len(calls) == 3:  # the first is the look at the chain before it is trained
            raise KeyboardInterrupt
        return real(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(svi, "sample", interrupted)
        first = run(20, folder=tmp_path)
    assert (first.steps, first.finished) == (10, False)
    assert same(run(20, folder=tmp_path), whole)


KILLED = """
import sys, torch
torch.set_num_threads(1)
from probgram import fit, tasks
from probgram.inference.objective import ObjectiveConfig
from probgram.models import GRAM, GRAMGuide
torch.manual_seed(0)
chain = GRAM.for_task(tasks.Queens(5), dim=16, heads=2, blocks=1, hidden=24)
objective = ObjectiveConfig(depth=4, settle=0.0)
fit(chain, GRAMGuide(chain), tasks.Queens(5), 1_000_000, objective=objective, folder=sys.argv[1], batch=16,
    log_every=5, validate_every=0, progress=False, accelerator="cpu", schedule="constant", checkpoint_every=0.0)
"""


def test_a_killed_process_leaves_a_checkpoint_to_go_on_from(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)])
    metrics, deadline = tmp_path / "metrics.jsonl", time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and metrics.read_text().count("\n") >= 2:
            break
        time.sleep(0.01)
    alive = process.poll() is None
    process.kill()  # SIGKILL: nothing of the process runs any more
    process.wait()
    assert alive and process.returncode == -signal.SIGKILL
    tensors, metadata = read_tensors(tmp_path / "training.safetensors")
    reached = json.loads(metadata["plain"])["step"]
    assert reached >= 9 and "objective.chain.decode.weight" in tensors
    # No phases: how far along a step is depends on how many there will be.
    changes = {"schedule": "constant", "validate_every": 0, "objective": ObjectiveConfig(depth=4, settle=0.0)}
    resumed = run(reached + 7, folder=tmp_path, **changes)
    whole = run(reached + 7, **changes)
    assert resumed.finished and same(resumed, whole)
    assert measured(written(tmp_path)) == measured(whole.history)


def test_lines_of_steps_that_a_kill_lost_are_dropped(tmp_path, whole):
    run(20, folder=tmp_path, callbacks=[stop_at(10)])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 15, "loss": 1.0}\n{"step": 2')  # measured after the checkpoint; and cut in the middle
    run(20, folder=tmp_path)
    assert measured(written(tmp_path)) == measured(whole.history)


def test_lines_of_a_run_that_was_killed_before_its_first_checkpoint_are_dropped(tmp_path, whole):
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "loss": 1.0}\n{"step": 1')
    run(20, folder=tmp_path)
    assert measured(written(tmp_path)) == measured(whole.history)


# -- what can be wrong ----------------------------------------------------------------------------------------


def test_a_run_that_diverges_says_so_and_keeps_the_last_good_checkpoint(tmp_path):
    run(5, folder=tmp_path, lr=1e-3)
    before = (tmp_path / "training.safetensors").read_bytes()

    def break_a_weight(view):
        with torch.no_grad():
            view.chain.decode.weight.fill_(float("nan"))

    with pytest.raises(DivergedError, match="training diverged by step"):
        run(20, folder=tmp_path, lr=1e-3, callbacks=[break_a_weight])
    assert (tmp_path / "training.safetensors").read_bytes() == before


def test_a_folder_of_another_frozen_core_is_refused(tmp_path):
    chain, _ = make()
    fit_heads(chain, ("judge",), TASK, 2, folder=tmp_path, **SETTINGS)
    with torch.no_grad():
        chain.decode.bias += 1.0
    with pytest.raises(CheckpointError, match="frozen"):
        fit_heads(chain, ("judge",), TASK, 4, folder=tmp_path, **SETTINGS)


def test_the_number_of_refinements_tells_runs_apart(tmp_path):
    chain = GRAM.for_task(TASK, dim=16, heads=2, blocks=1, hidden=24, refinements=2)
    run(2, folder=tmp_path)
    with pytest.raises(CheckpointError, match="GRAM.refinements"):
        run(4, folder=tmp_path, model=(chain, GRAMGuide(chain)))


def test_answers_that_the_chain_cannot_give_are_refused():
    x, y = TASK.examples("train")
    with pytest.raises(ValueError, match="y must be .* tokens below 5"):
        run(2, data=(x, y + 3))


def test_only_must_name_submodules():
    chain, guide = make()
    with pytest.raises(ValueError, match="only must be a sequence of names, got the string 'judge'"):
        fit(chain, guide, TASK, 2, only="judge", **SETTINGS)
    with pytest.raises(ValueError, match="only must name submodules of GRAM, and 'jury' is none"):
        fit(chain, guide, TASK, 2, only=("jury",), **SETTINGS)


def test_a_rule_with_arguments_is_named_with_them(tmp_path):
    few, many = (ObjectiveConfig(depth=4, target=partial(dealt, rounds=rounds)) for rounds in (2, 9))
    run(2, folder=tmp_path, objective=few)
    with pytest.raises(CheckpointError, match="target"):
        run(4, folder=tmp_path, objective=many)


def test_an_infinite_gradient_is_a_sentence_of_ours():
    with pytest.raises(DivergedError, match="training diverged by step"):
        run(20, lr=1e30)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lr": 5e-4}, "lr"),
        ({"seed": 3}, "seed"),
        ({"batch": 8}, "batch"),
        ({"objective": ObjectiveConfig(depth=5)}, "depth"),
        ({"model": make(dim=32)}, "GRAM.dim"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_folder_of_a_run_with_other_settings_is_refused_and_left_alone(tmp_path, changes, named):
    run(5, folder=tmp_path)
    before = (tmp_path / "training.safetensors").read_bytes()
    message = sentence(CheckpointError, lambda: run(20, folder=tmp_path, **changes))
    assert "belongs to a run with other settings" in message and named in message
    assert "use them, or another folder" in message
    assert (tmp_path / "training.safetensors").read_bytes() == before


def forget(path, *names):
    """Make a checkpoint of a time at which there were no such settings yet."""
    tensors, metadata = read_tensors(path)
    plain = json.loads(metadata["plain"])
    choices = plain["settings"]["model"][1]
    for name in names:
        del (choices if name.startswith("GRAM.") else plain["settings"])[name.removeprefix("GRAM.")]
    write_tensors(path, tensors, metadata | {"plain": json.dumps(plain)})


def test_a_setting_younger_than_the_run_counts_as_having_its_default(tmp_path):
    run(5, folder=tmp_path)
    forget(tmp_path / "training.safetensors", "FitConfig.augment", "ObjectiveConfig.settle", "GRAM.sigma_max")
    assert run(6, folder=tmp_path).steps == 6


@pytest.mark.parametrize(
    ("changes", "name", "default", "now"),
    [
        ({"draw": "problem"}, "FitConfig.draw", "pair", "problem"),
        ({"objective": ObjectiveConfig(depth=4, settle=0.1)}, "ObjectiveConfig.settle", "0.3", "0.1"),
        ({"model": make(sigma_max=0.4)}, "GRAM.sigma_max", "0.5", "0.4"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_younger_setting_that_is_no_longer_at_its_default_is_refused_by_name(
    tmp_path, changes, name, default, now
):
    run(2, folder=tmp_path)
    forget(tmp_path / "training.safetensors", name)
    message = sentence(CheckpointError, lambda: run(6, folder=tmp_path, **changes))
    assert f"(was {{{name!r}: {default!r}}}, now {{{name!r}: {now!r}}})" in message


def test_a_damaged_or_foreign_checkpoint_is_one_sentence(tmp_path):
    run(5, folder=tmp_path)
    path = tmp_path / "training.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    assert "is not a whole safetensors file" in sentence(CheckpointError, lambda: run(20, folder=tmp_path))
    from probgram.checkpoint import save_chain

    save_chain(path, make()[0])
    assert "is not a training state" in sentence(CheckpointError, lambda: run(20, folder=tmp_path))


def test_a_full_disk_is_one_sentence_and_the_last_checkpoint_stays(tmp_path, monkeypatch, whole):
    run(20, folder=tmp_path, callbacks=[stop_at(10)])
    before = (tmp_path / "training.safetensors").read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        (tmp_path / "metrics.jsonl").rename(tmp_path / "kept")
        message = sentence(CheckpointError, lambda: run(20, folder=tmp_path))
    assert "No space left on device" in message
    assert (tmp_path / "training.safetensors").read_bytes() == before
    (tmp_path / "kept").rename(tmp_path / "metrics.jsonl")
    assert sorted(os.listdir(tmp_path)) == ["metrics.jsonl", "training.safetensors"]
    assert same(run(20, folder=tmp_path), whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 1}, "unknown settings ['learning_rate']: expected fields of FitConfig"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"accumulate": 0}, "accumulate must be at least 1, got 0"),
        ({"ema": 1.0}, "ema must be at least 0 and below 1, got 1.0"),
        ({"schedule": "step"}, "schedule must be one of trapezoid, cosine, constant, got 'step'"),
        ({"precision": "16"}, "precision must be one of 32, bf16, got '16'"),
        ({"draw": "answer"}, "draw must be one of pair, problem, got 'answer'"),
        ({"cool_down": 0.0}, "cool_down must be above 0 and at most 1, got 0.0"),
        ({"batch": 9, "devices": 2}, "batch must be a multiple of devices, got 9 and 2"),
        ({"steps": 0}, "steps must be at least 1 and whole, got 0"),
        ({"data": None}, None),
        ({"data": (np.zeros((3, 5)), np.zeros((3, 5), int))}, "x must hold integers (tokens), got float64"),
        ({"data": (np.zeros((3, 6), int), np.zeros((3, 6), int))}, None),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_and_data_that_make_no_sense_are_one_clear_sentence(changes, message):
    found = sentence(ValueError, lambda: run(**({"steps": 5} | changes)))
    assert message is None or found == message


# -- several processes, compilation ---------------------------------------------------------------------------


RANKS = """
import os, sys, torch
torch.set_num_threads(1)
from probgram import checkpoint, fit, tasks
from probgram.inference.objective import ObjectiveConfig
from probgram.models import GRAM, GRAMGuide
torch.manual_seed(0)
chain = GRAM.for_task(tasks.Queens(5), dim=16, heads=2, blocks=1, hidden=24)
fit(chain, GRAMGuide(chain), tasks.Queens(5), 6, objective=ObjectiveConfig(depth=4), batch=16, progress=False,
    validate_every=0, accelerator="cpu", devices=2, strategy="ddp_find_unused_parameters_true")
checkpoint.save_chain(f"{sys.argv[1]}/{os.environ['RANK']}.safetensors", chain)
"""


@pytest.mark.slow
def test_two_ranks_end_with_equal_weights_that_have_moved(tmp_path):
    (tmp_path / "ranks.py").write_text(RANKS)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launcher, str(tmp_path / "ranks.py"), str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    first, second = (read_tensors(tmp_path / f"{rank}.safetensors")[0] for rank in (0, 1))
    torch.manual_seed(0)
    fresh = {f"chain.{name}": value for name, value in make_like_ranks().state_dict().items()}
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["chain.embed.weight"], fresh["chain.embed.weight"])


def make_like_ranks() -> GRAM:
    return GRAM.for_task(tasks.Queens(5), dim=16, heads=2, blocks=1, hidden=24)


@pytest.mark.slow
def test_a_compiled_network_trains_as_the_plain_one_and_is_put_back():
    chain, guide = make()
    compiled = run(3, model=(chain, guide), compile=True)
    assert "propose" not in vars(chain)
    for name, value in weights(compiled).items():
        torch.testing.assert_close(value, weights(run(3))[name], rtol=1e-3, atol=1e-4)
