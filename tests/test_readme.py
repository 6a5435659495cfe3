"""Every snippet and command of the README and of docs/ runs, in order, as a reader would paste them.

Long trainings take a few steps. `make demo` and `make test` are stages of CI itself, and so is `pip install`. A
snippet below `<!-- needs cuda -->`, or another word of `THERE`, is skipped where there is none.
"""

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from probgram.cli import app

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ("README.md", *sorted(page.relative_to(ROOT).as_posix() for page in (ROOT / "docs").rglob("*.md")))
THERE = {
    "cuda": torch.cuda.is_available(),
    "mps": torch.backends.mps.is_available(),
    "jax": find_spec("numpyro") is not None,
}


def fences(page: str, language: str) -> list[tuple[str, str]]:
    """Blocks of a page: what each needs, "" for nothing, and its text."""
    text = (ROOT / page).read_text(encoding="utf-8")
    block = rf"^(?:<!-- needs (\w+) -->\n)?```{language}\n(.*?)^```"
    return re.findall(block, text, re.MULTILINE | re.DOTALL)


SNIPPETS = {page: fences(page, "python") for page in PAGES}
COMMANDS = {page: [line for _, text in fences(page, "bash") for line in text.splitlines()] for page in PAGES}


def shortened(text: str) -> str:
    """Trainings of a thousand steps and more become one of three; evaluations look at five problems."""
    text = re.sub(r"(steps[ =])\d{4,}", r"\g<1>3", text)
    return re.sub(r"(--problems )\d+", r"\g<1>5", text)


def test_the_readme_has_snippets_and_commands() -> None:
    assert len(SNIPPETS["README.md"]) >= 5
    assert {line.split()[0] for line in COMMANDS["README.md"]} == {"make", "probgram"}


def test_no_snippet_of_a_page_escapes() -> None:
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        marked = len(SNIPPETS[page]) + len(fences(page, "bash"))
        assert len(re.findall(r"^[ \t>]*(?:```|~~~)[ \t]*\S", text, re.MULTILINE)) == marked, page
        assert {line.split()[0] for line in COMMANDS[page]} <= {"make", "pip", "probgram"}, page
        assert {need for need, _ in SNIPPETS[page] if need} <= set(THERE), page


@pytest.mark.parametrize("page", [page for page in PAGES if COMMANDS[page]])
def test_the_commands_run(page: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for line in (line for line in COMMANDS[page] if line.startswith("probgram")):
        result = CliRunner().invoke(app, shlex.split(shortened(line))[1:])
        untrained = "queens6.safetensors" in line and "solve" in line  # three steps solve nothing
        assert result.exit_code in ((0, 1) if untrained else (0,)), (line, result.output)
        assert result.stdout.strip(), line


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, object]]]:
    """A folder and a namespace for each page: its snippets follow each other."""
    return {page: (tmp_path_factory.mktemp("page"), {"__name__": "page"}) for page in PAGES}


@pytest.mark.parametrize(
    ("page", "index"), [(page, index) for page in PAGES for index in range(len(SNIPPETS[page]))]
)
def test_snippet_runs(
    page: str, index: int, readers: dict[str, tuple[Path, dict[str, object]]], monkeypatch
) -> None:
    needs, text = SNIPPETS[page][index]
    if needs and not THERE[needs]:
        pytest.skip(f"the snippet needs {needs}, which is not here")
    folder, namespace = readers[page]
    monkeypatch.chdir(folder)
    exec(compile(shortened(text), f"{page}, snippet {index}", "exec"), namespace)


def test_a_task_and_a_chain_of_ones_own_take_under_30_lines_each() -> None:
    text = "\n".join(text for _, text in SNIPPETS["README.md"])
    for name in ("Complement", "Differ"):
        body = re.search(rf"^class {name}.*?(?=^\S)", text, re.MULTILINE | re.DOTALL)
        assert body is not None
        assert len([line for line in body.group().splitlines() if line.strip()]) < 30


def test_the_links_of_the_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
