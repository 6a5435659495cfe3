"""Both backends are the same model, a depth step at a time and over whole runs; files of either load in both.

The limits are those of `benchmarks.agreement`, which also says what a difference is divided by.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("numpyro", reason="needs probgram[jax]")

import jax

from benchmarks import agreement
from benchmarks.agreement import ANSWERS_EQUAL, EXACT, LIMITS, RUN_LIMIT, Compared, largest, runs, steps, too_far
from probgram import checkpoint, models
from probgram.models import on_jax
from probgram.models.on_jax import weights

B, L, V = 3, 5, 6
SIZES = dict(length=L, input_size=V, output_size=V, dim=8, heads=2, blocks=1, hidden=8)
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "GRAM with tasks": ("GRAM", SIZES | dict(refinements=1, transitions=2, tasks=2)),
    "GRAM with a mixer": ("GRAM", SIZES | dict(refinements=1, transitions=1, body="mixer")),
    "GRAM without its mean": ("GRAM", SIZES | dict(refinements=1, transitions=1, mean=False)),
    "GRAM without noise": ("GRAM", SIZES | dict(refinements=1, transitions=1, noise=False)),
    "TRM": ("TRM", SIZES | dict(refinements=2, transitions=1)),
    "HRM": ("HRM", SIZES | dict(refinements=2, transitions=2)),
    "looped": ("LoopedTransformer", SIZES | dict(transitions=2)),
}


def written(name: str, folder: Path) -> Path:
    """A file that the torch side wrote: a chain, and a guide where it has one; no array is zero."""
    kind, sizes = TINY[name]
    torch.manual_seed(0)
    chain: Any = getattr(models, kind).from_configuration(sizes)
    guide = models.GRAMGuide(chain) if kind == "GRAM" and sizes.get("noise", True) else None
    for module in (chain, guide):
        for parameter in [] if module is None else module.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
    return checkpoint.save_chain(folder / "torch.safetensors", chain, guide, {"seed": 0})


def problems(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Random tokens, some of them padding."""
    generator = np.random.default_rng(0)
    x, y = generator.integers(V, size=(2, B, L))
    x[0, 3:] = y[0, 3:] = -1
    if TINY[name][1].get("tasks"):
        x = np.concatenate([generator.integers(2, size=(B, 1)), x], 1)
    return x, y


QUICK = ("GRAM with tasks", "TRM")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in TINY])
def test_a_depth_step_of_any_choice_is_the_same(name: str, tmp_path: Path) -> None:
    x, y = problems(name)
    with jax.enable_x64(True):
        pair = agreement.load(written(name, tmp_path), "float64")
        compared = list(steps(pair, x, y, "float64", depth=2))
    found = largest(compared)
    assert not too_far(found, "float64"), found
    guided = pair.jax_guide is not None
    kinds = set(agreement.QUANTITIES) - (set() if guided else {"log p", "log q", "KL"})
    assert found["differences"].keys() == kinds
    still = {name for name, value in compared[0].torch.items() if name.startswith("gradient") and not value.any()}
    assert all(".judge." in name for name in still)  # heads send no gradient; everything else was compared


def test_a_whole_run_is_the_same(tmp_path: Path) -> None:
    x, _ = problems("GRAM with tasks")
    with jax.enable_x64(True):
        pair = agreement.load(written("GRAM with tasks", tmp_path), "float64")
        latents, equal, answers = runs(pair, x, "float64", width=5)
    assert latents < RUN_LIMIT and equal == answers == agreement.DEPTH * 5 * B


@pytest.mark.slow
@pytest.mark.parametrize("name", agreement.shipped())
@pytest.mark.parametrize("dtype", [*LIMITS, EXACT])
def test_a_depth_step_of_every_shipped_file_is_the_same(name: str, dtype: str) -> None:
    x, y = agreement.problems_of(name, 2)
    found = agreement.compared(name, x, y, dtype, depth=2)
    assert not too_far(found, dtype), found
    assert max(found["differences"].values()) < 1e-4  # float32's own rounding has a limit, too


@pytest.mark.slow
@pytest.mark.parametrize("name", agreement.shipped())
def test_whole_runs_of_every_shipped_file_are_the_same(name: str) -> None:
    x, _ = agreement.problems_of(name, 2)
    with jax.enable_x64(True):
        latents, _, _ = runs(agreement.load(name, "float64"), x, "float64", width=4)
    assert latents < RUN_LIMIT
    _, equal, answers = runs(agreement.load(name, "float32"), x, "float32", width=4)
    assert equal >= ANSWERS_EQUAL * answers


def test_a_difference_is_seen() -> None:
    """Every quantity, off by more than its limit, is named; off by less, it is not."""
    names = [
        "latent 0",
        "readout",
        "head value",
        "log p(y)",
        "log p 0",
        "log q 0",
        "KL",
        "bound",
        "gradient chain.f",
    ]
    theirs = {name: np.array([0.5, 30.0]) for name in names}
    for far, factor in ((True, 1.5), (False, 0.5)):
        ours = {name: value + 30 * factor * 1e-10 for name, value in theirs.items()}
        found = largest([Compared(theirs, ours, theirs)])
        assert too_far(found, "float64") == (list(agreement.QUANTITIES) if far else [])
    with pytest.raises(ValueError, match="only one backend has"):
        largest([Compared(theirs, {}, theirs)])


def test_the_report_covers_every_shipped_file_and_keeps_the_limits() -> None:
    files = agreement.read()["files"]
    assert sorted(files) == agreement.shipped(), "python -m benchmarks.agreement measures them"
    for found in files.values():
        assert not any(too_far(found[dtype], dtype) for dtype in (*LIMITS, EXACT))
        assert max(found[EXACT]["differences"].values()) <= LIMITS["float32"]  # nothing excused
        assert found[EXACT]["rounding"]["gradient"] < found["float32"]["rounding"]["gradient"]  # it does something
        run = found["float32"]["run"]
        assert found["float64"]["run"]["h"] < RUN_LIMIT
        assert run["answers equal"] >= ANSWERS_EQUAL * run["answers"]


@pytest.mark.parametrize("name", ["GRAM with tasks", "TRM", "looped"])
def test_files_of_either_side_load_in_the_other(name: str, tmp_path: Path) -> None:
    path = written(name, tmp_path)
    theirs, ours = checkpoint.load_chain(path), weights.load_chain(path)
    guide = twin = None
    if name == "GRAM with tasks":
        guide = checkpoint.load_guide(path, models.GRAMGuide(theirs))
        twin = weights.load_guide(path, on_jax.GRAMGuide(ours))
    again = weights.save_chain(tmp_path / "jax.safetensors", ours, twin, ours.about)
    first, second = (checkpoint.read_tensors(file, "np") for file in (path, again))
    assert first[1] == second[1]
    assert first[0].keys() == second[0].keys()
    for key, value in first[0].items():
        np.testing.assert_array_equal(value, second[0][key])
        assert value.dtype == second[0][key].dtype
    back = checkpoint.load_chain(again)
    assert type(back) is type(theirs) and back.config == theirs.config and dict(back.about) == {"seed": 0}
    assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in back.state_dict().items())
    if guide is not None:
        reloaded = checkpoint.load_guide(again, models.GRAMGuide(back))
        assert all(torch.equal(value, guide.state_dict()[key]) for key, value in reloaded.state_dict().items())


def test_a_file_of_another_model_or_without_a_guide_is_refused(tmp_path: Path) -> None:
    path = written("TRM", tmp_path)
    with pytest.raises(checkpoint.CheckpointError, match="holds a TRM, not a GRAM"):
        on_jax.GRAM.from_pretrained(path)
    with pytest.raises(checkpoint.CheckpointError, match="has no guide of this kind: missing arrays"):
        weights.load_guide(path, on_jax.GRAMGuide(on_jax.GRAM.from_configuration(TINY["GRAM with tasks"][1])))
