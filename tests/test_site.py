"""The documentation site: every module is on a reference page, and a built page needs nothing from elsewhere."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import pytest

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs" / "reference"
COMMANDS = ("probgram.cli.", "probgram.demo")  # described by `--help`, and in a table


def modules() -> set[str]:
    """Names of all modules of the package."""
    folders = [
        ROOT / "probgram",
        ROOT / "probgram" / "models",
        ROOT / "probgram" / "inference",
    ]  # through the links
    files = {file for folder in folders for file in folder.rglob("*.py") if file.name != "__init__.py"}
    return {".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files}


def test_every_module_is_on_a_reference_page() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in REFERENCE.glob("*.md"))
    documented = set(re.findall(r"^::: (\S+)", text, re.MULTILINE))
    whole = re.findall(r"^::: (\S+)\n    options:\n      show_submodules: true", text, re.MULTILINE)
    missing = {
        name
        for name in modules() - documented
        if not name.startswith((*COMMANDS, *(f"{package}." for package in whole)))
    }
    assert not missing, f"on no page of docs/reference: {sorted(missing)}"


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mkdocs") is None, reason="mkdocs is not installed: make docs installs it")
def test_the_built_site_reads_and_searches_from_files_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True)
    pages = [page for page in tmp_path.rglob("*.html") if page.name != "404.html"]  # which a server alone shows
    assert len(pages) > 30
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe)[^>]* src=[\"']?([^\"' >]+)", text)
        loaded += re.findall(
            r"<link[^>]* rel=[\"']?(?:stylesheet|icon|preconnect)[^>]* href=[\"']?([^\"' >]+)", text
        )
        assert not [link for link in loaded if re.match(r"(?:https?:)?//|/", link)], page
        assert not re.findall(r"<a[^>]* href=[\"']?(?!https?:)[^\"'#> ]*/[\"'#> ]", text), page
    training = (tmp_path / "reference" / "training.html").read_text(encoding="utf-8")
    assert "largest gradient norm" in training  # a comment beside a field of FitConfig
    browser = next(filter(None, map(which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is not None:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'browser'}"]
        searched = f"{(tmp_path / 'howto' / 'scripts.html').as_uri()}?q=genealogy"
        command = [browser, *flags, "--virtual-time-budget=20000", "--dump-dom", searched]
        found = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
        assert re.search(r"\d+ matching documents", found), "search found nothing from file://"
