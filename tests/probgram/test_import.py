"""What an import costs, what it brings, and what it refuses."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import probgram

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "pyro", "jax", "matplotlib", "arviz", "rich", "typer", "lightning_fabric", "safetensors")


def python(code: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=120)


def brought(code: str) -> set[str]:
    """The heavy packages that are imported after `code`."""
    done = python(f"{code}\nimport sys; print(*[m for m in {HEAVY} if m in sys.modules])")
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


LIGHT = [
    "import probgram",
    "import probgram; dir(probgram)",
    "import probgram.tasks; probgram.tasks.Queens(8).examples('test')",
    "import probgram.metrics",
    "import probgram.checkpoint",
    "import probgram.inference.calibration, probgram.inference.frontier",
]


@pytest.mark.parametrize("code", LIGHT)
def test_the_language_of_tasks_and_files_brings_nothing_heavy(code):
    assert brought(code) == set()


def test_chain_and_trajectories_bring_no_plots_and_no_terminal():
    code = "from probgram import Chain, Guide, Trajectories; import probgram.state"
    assert not brought(code) & {"matplotlib", "arviz", "rich", "typer", "jax", "lightning_fabric"}


@pytest.mark.parametrize("folder", ["models", "inference"])
def test_the_folders_at_the_root_refuse_to_be_imported_under_their_bare_name(folder):
    done = python(f"import {folder}", cwd=ROOT)
    assert done.returncode != 0
    assert done.stderr.strip().splitlines()[-1].startswith(f"ImportError: import probgram.{folder}, not {folder}")
    assert python(f"import probgram.{folder}", cwd=ROOT).returncode == 0


@pytest.mark.parametrize("module", ["probgram", "probgram.models", "probgram.inference", "probgram.tasks"])
def test_every_public_name_resolves_and_is_listed(module):
    package = importlib.import_module(module)
    for name in package.__all__:
        assert getattr(package, name) is not None
        assert name in dir(package)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = package.nonsense


def test_a_class_is_the_same_however_it_is_reached():
    from probgram.chain import Chain
    from probgram.inference.svi import fit
    from probgram.models.gram import GRAM

    assert probgram.Chain is Chain and probgram.fit is fit
    assert probgram.models.GRAM is GRAM


@pytest.mark.parametrize(
    "first", ["import probgram.solve", "from probgram.solve import Solution", "import probgram"]
)
def test_solve_is_the_function_whatever_was_imported_first(first):
    code = (
        "from probgram import solve\nassert callable(solve)\nimport probgram.solve\nassert callable(probgram.solve)"
    )
    done = python(f"{first}\n{code}")
    assert done.returncode == 0, done.stderr
