"""Every snippet and command of the README and of docs/ runs, in order, as a reader would paste them.

Long trainings take a few steps. `make demo` and `make test` are stages of CI itself.
"""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from probgram.cli import app

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ("README.md", *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md"))))
SNIPPETS = {
    page: re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    for page in PAGES
}
COMMANDS = [
    line
    for block in re.findall(r"^```bash\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]


def shortened(text: str) -> str:
    """Trainings of a thousand steps and more become one of three; evaluations look at five problems."""
    text = re.sub(r"(steps[ =])\d{4,}", r"\g<1>3", text)
    return re.sub(r"(--problems )\d+", r"\g<1>5", text)


def test_the_readme_has_snippets_and_commands() -> None:
    assert len(SNIPPETS["README.md"]) >= 5
    assert {line.split()[0] for line in COMMANDS} == {"make", "probgram"}


def test_the_commands_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for line in (line for line in COMMANDS if line.startswith("probgram")):
        result = CliRunner().invoke(app, shlex.split(shortened(line))[1:])
        untrained = "queens6.safetensors" in line and "solve" in line  # three steps solve nothing
        assert result.exit_code in ((0, 1) if untrained else (0,)), (line, result.output)
        assert result.stdout.strip(), line


@pytest.fixture(scope="module")
def namespaces() -> dict[str, dict[str, object]]:
    return {page: {"__name__": "page"} for page in PAGES}


@pytest.mark.parametrize(
    ("page", "index"), [(page, index) for page in PAGES for index in range(len(SNIPPETS[page]))]
)
def test_snippet_runs(
    page: str, index: int, namespaces: dict[str, dict[str, object]], tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(shortened(SNIPPETS[page][index]), f"{page}, snippet {index}", "exec"), namespaces[page])


def test_a_task_and_a_chain_of_ones_own_take_under_30_lines_each() -> None:
    text = "\n".join(SNIPPETS["README.md"])
    for name in ("Complement", "Differ"):
        body = re.search(rf"^class {name}.*?(?=^\S)", text, re.MULTILINE | re.DOTALL)
        assert body is not None
        assert len([line for line in body.group().splitlines() if line.strip()]) < 30


def test_the_links_of_the_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
