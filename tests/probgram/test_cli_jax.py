"""`--backend jax`: the same weights and output as in torch, one sentence where it cannot be."""

import json
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("numpyro", reason="needs probgram[jax]")

import jax

from probgram import backends, models, solve, tasks
from probgram.checkpoint import save_chain
from probgram.cli import app
from probgram.inference.on_jax import Trajectories
from probgram.models.on_jax import GRAM

TASK = tasks.Queens(4)
ROW = ". . . ."
SMALL = ("--width", "3", "--depth", "2", "--backend", "jax")
GRID = ("--depths", "1,2", "--widths", "1,3", "--split", "train", "--seeds", "0")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    """An untrained chain without noise, so that both backends answer alike."""
    sizes = {"dim": 8, "heads": 2, "blocks": 1, "hidden": 12, "transitions": 1, "refinements": 1, "noise": False}
    chain = GRAM.for_task(TASK, key=jax.random.key(3), **sizes)
    path = tmp_path_factory.mktemp("weights") / "chain.safetensors"
    return str(save_chain(path, chain, about={"task": "queens4", "split": TASK.split}))


def probgram(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_solve_prints_what_it_prints_in_torch(weights):
    ours = probgram("solve", weights, "--board", ROW, *SMALL, "--json")
    theirs = probgram("solve", weights, "--board", ROW, *SMALL[:4], "--json")
    assert ours.exit_code == theirs.exit_code, ours.output
    ours, theirs = json.loads(ours.stdout), json.loads(theirs.stdout)
    assert (ours.pop("backend"), theirs.pop("backend")) == ("jax", "torch")
    for one, other in zip(ours["problems"], theirs["problems"], strict=True):
        assert one.pop("confidence") == pytest.approx(other.pop("confidence"), abs=1e-5)
    assert ours == theirs


def test_solve_takes_a_chain_of_either_backend(weights):
    run = solve(weights, ROW, 3, 2, backend="jax").run
    assert isinstance(run, Trajectories)
    solution = solve(GRAM.from_pretrained(weights), ROW, 3, 2)  # the backend is the chain's
    np.testing.assert_array_equal(solution.run.answers, run.answers)
    theirs = solve(models.GRAM.from_pretrained(weights), ROW, 3, 2)
    np.testing.assert_array_equal(solution.answers, theirs.answers)
    assert isinstance(solution.answers, np.ndarray) and str(solution) == str(theirs)
    with pytest.raises(ValueError, match="backend must be 'jax', which the chain is of, got 'torch'"):
        solve(GRAM.from_pretrained(weights), ROW, backend="torch")


def test_a_report_is_written_of_a_run_in_jax(weights, tmp_path):
    page = tmp_path / "run.html"
    probgram("solve", weights, "--board", ROW, *SMALL, "--report", page, "--quiet")
    assert "3 trajectories" in page.read_text(encoding="utf-8")


def test_evaluate_gives_the_figures_of_torch(weights):
    small = ("--split", "train", "--width", 3, "--depth", 2, "--seeds", "0,1", "--json")
    ours, theirs = probgram("evaluate", weights, *small, "--backend", "jax"), probgram("evaluate", weights, *small)
    assert ours.exit_code == theirs.exit_code == 0, ours.output
    ours, theirs = json.loads(ours.stdout), json.loads(theirs.stdout)
    assert ours["about"].pop("backend") == "jax"
    for name, values in theirs["figures"].items():
        assert ours["figures"][name] == pytest.approx(values), name
    assert ours["limits"] == theirs["limits"] and ours["about"].keys() == theirs["about"].keys()


@pytest.mark.parametrize(
    ("shipped", "board"), [(None, ROW), pytest.param("queens8", "0 . . . . . . .", marks=pytest.mark.slow)]
)
def test_neither_solving_nor_the_command_line_needs_torch(weights, shipped, board):
    weights = shipped or weights
    commands = [
        ("solve", weights, "--board", board, *SMALL, "--confidence", "energy"),
        ("solve", weights, "--board", board, *SMALL, "--potential", "energy"),
        ("evaluate", weights, *SMALL, "--problems", "1", "--split", "train", "--seeds", "0"),
        ("frontier", weights, *GRID, "--problems", "1", "--rounds", "0", "--backend", "jax"),
    ]
    code = f"""
import sys
from probgram import solve, tasks
from probgram.cli import app
from probgram.inference.confidence import expected
from probgram.inference.on_jax.potentials import energy
near = energy(tasks.from_name({shipped or TASK.name!r}))
for choices in ({{}}, {{"potential": near, "confidence": expected(near), "resample": None}}):
    assert 0 < solve({weights!r}, {board!r}, 3, 2, backend="jax", **choices).confidence <= 1
for words in {commands!r}:
    assert app(list(words), standalone_mode=False) in (None, 0, 1)  # 1: no answer is right
print([name for name in ("torch", "pyro", "lightning", "lightning_fabric") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_training_on_the_command_line_needs_no_torch(tmp_path):
    words = ("train", "queens5", "--steps", "2", "--head-steps", "1", "--depth", "1", "--batch", "2", "--dim", "16")
    words += ("--backend", "jax", "--quiet", "--out", str(tmp_path / "w.safetensors"), "--folder", str(tmp_path))
    code = f"""
import sys
from probgram.cli import app
app({words!r}, standalone_mode=False)
print([name for name in ("torch", "pyro", "lightning", "lightning_fabric") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert models.GRAM.from_pretrained(tmp_path / "w.safetensors").config.dim == 16


def test_the_frontier_is_that_of_torch(weights, tmp_path):
    page = tmp_path / "frontier.html"
    small = ("frontier", weights, *GRID, "--rounds", "1", "--json")
    ours, theirs = probgram(*small, "--backend", "jax", "--out", page), probgram(*small)
    assert ours.exit_code == theirs.exit_code == 0, ours.output
    assert "data:image/png;base64," in page.read_text(encoding="utf-8")
    ours, theirs = json.loads(ours.stdout), json.loads(theirs.stdout)
    assert ours.keys() == theirs.keys() and ours["about"].pop("backend") == "jax"
    assert np.shape(ours["seconds"]) == (2, 2) and np.min(ours["seconds"]) > 0
    theirs["about"].pop("threads")
    for name in ("figures", "multiply_adds", "kind", "verdicts", "about"):
        assert ours[name] == theirs[name], name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--backend", "tpu"), "backend must be torch or jax, got 'tpu'"),
        (("--backend", "jax", "--device", "cpu"), "--device is PyTorch's"),
        (
            ("--backend", "jax", "--potential", "luck"),
            "potential must be made of value, halt and energy, got 'luck'",
        ),
    ],
)
def test_bad_input_is_one_line(weights, words, message):
    result = probgram("solve", weights, "--board", ROW, *words)
    assert result.exit_code == 2 and result.stdout == "" and result.stderr.count("\n") == 1
    assert message in result.stderr


def test_without_the_extra_it_says_what_to_install(weights, monkeypatch):
    monkeypatch.setattr(backends, "find_spec", lambda name: None if name == "numpyro" else find_spec(name))
    result = probgram("solve", weights, "--board", ROW, "--backend", "jax")
    assert result.exit_code == 2
    assert result.stderr == "Error: the backend jax needs numpyro: pip install 'probgram[jax]'\n"


def test_a_potential_filters_the_trajectories(weights):
    words = ("--potential", "value", "--resample", "systematic", "--json")
    result = probgram("solve", weights, "--board", ROW, *SMALL, *words)
    assert result.exit_code in (0, 1), result.output
    (problem,) = json.loads(result.stdout)["problems"]
    assert sum(answer["share"] for answer in problem["answers"]) == pytest.approx(1)
