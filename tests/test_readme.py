"""Every Python snippet of the README runs, in order and in one namespace, as a reader would paste them."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SNIPPETS = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)


def test_the_readme_has_snippets() -> None:
    assert len(SNIPPETS) >= 5


@pytest.fixture(scope="module")
def namespace() -> dict[str, object]:
    return {"__name__": "readme"}


@pytest.mark.parametrize("index", range(len(SNIPPETS)))
def test_snippet_runs(index: int, namespace: dict[str, object], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(SNIPPETS[index], f"README.md, snippet {index}", "exec"), namespace)


def test_a_task_and_a_chain_of_ones_own_take_under_30_lines_each() -> None:
    text = "\n".join(SNIPPETS)
    for name in ("Complement", "Differ"):
        body = re.search(rf"^class {name}.*?(?=^\S)", text, re.MULTILINE | re.DOTALL)
        assert body is not None
        assert len([line for line in body.group().splitlines() if line.strip()]) < 30


def test_the_links_of_the_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text()):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
