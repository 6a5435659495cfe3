"""The report in a real browser, offline: what it shows are the run's numbers, by keyboard and on a phone."""

import os
import re
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from probgram import tasks
from probgram.report import report
from probgram.trajectories import Trajectories

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUEENS = tasks.Queens(6)
STEPS, WIDTH = 6, 14


def run_of(problems: int = 2, seed: int = 0) -> Trajectories:
    """Answers that become right with depth, weights and ancestors drawn: a run of no model."""
    rng = np.random.default_rng(seed)
    x = np.array([[6] * 6, [1, 6, 6, 6, 6, 6]])[:problems]
    answers = rng.integers(0, 6, (STEPS, WIDTH, problems, 6))
    for b, one in enumerate(x):
        right = QUEENS.solutions(one)
        chosen = right[rng.integers(len(right), size=(STEPS, WIDTH))]
        known = rng.random((STEPS, WIDTH, 1)) < np.linspace(0.1, 0.9, STEPS)[:, None, None]
        answers[:, :, b] = np.where(known, chosen, answers[:, :, b])
    ancestors = np.sort(rng.integers(0, WIDTH, (STEPS, WIDTH, problems)), axis=1)
    return Trajectories(
        torch.as_tensor(x),
        torch.as_tensor(answers.astype(np.uint8)),
        torch.as_tensor(rng.normal(size=(STEPS, WIDTH, problems))),
        torch.as_tensor(ancestors.astype(np.int32)),
        heads={"value": torch.as_tensor(rng.normal(size=(STEPS, WIDTH, problems)))},
        task="queens6",
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window; no file of it is fetched here."""
    with api.sync_playwright() as driver:
        found = next(filter(None, map(shutil.which, BROWSERS)), None) or driver.chromium.executable_path
        if not Path(found).exists():
            pytest.skip("no Chromium is installed")
        root = hasattr(os, "geteuid") and os.geteuid() == 0
        started = driver.chromium.launch(executable_path=found, args=["--no-sandbox"] if root else [])
        yield started
        started.close()


@pytest.fixture
def opened(browser, tmp_path) -> Iterator[Any]:
    """Opens a run's report from a file, offline; nothing may be said on the console, nothing else asked for."""
    said: list[str] = []
    contexts: list[Any] = []
    path = tmp_path / "report.html"

    def show(run: Trajectories, task: Any = None, **view: Any) -> Any:
        path.write_text(report(run, task), encoding="utf-8")
        if not contexts:
            contexts.append(
                browser.new_context(offline=True, **{"viewport": {"width": 1200, "height": 900}} | view)
            )
            page = contexts[0].new_page()
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            page.on("request", lambda asked: said.append(asked.url) if asked.url != path.as_uri() else None)
        page = contexts[0].pages[0]
        page.goto(path.as_uri())
        return page

    yield show
    for context in contexts:
        context.close()
    assert said == []


def stopped(page: Any) -> Any:
    """The page's clock, which from now on goes only when told to."""
    page.clock.install(time=datetime(2026, 1, 1))
    page.clock.pause_at(datetime(2026, 1, 2))
    return page.clock


def summary_of(run: Trajectories, problem: int, s: int) -> str:
    distinct = run.distinct(problem, s)
    right = QUEENS.verify(run.x[problem], distinct.answers)
    share = 100 * float((distinct.shares * right).sum())
    return (
        f"{len(distinct.answers)} different answers, {int(right.sum())} verified; {share:.1f}% of the weight is on "
        f"verified ones; effective sample size {float(run.ess[s, problem]):.1f} of {run.width}."
    )


def marks(page: Any) -> list[tuple[str, str]]:
    """Number and sign of every tile."""
    return [tuple(text.split("\n")) for text in page.locator("#tiles .caption").all_inner_texts()]


def expected_marks(run: Trajectories, problem: int, s: int) -> dict[str, str]:
    right = QUEENS.verify(run.x[problem], run.answers_along_lines()[s, :, problem])
    return {str(slot): "✓" if valid else "✗" for slot, valid in enumerate(right.tolist())}


def test_the_slider_replays_the_run_by_keyboard_and_the_numbers_are_the_runs(opened):
    run = run_of(1)
    page = opened(run)
    page.keyboard.press("Tab")  # the link to the diagnosis
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "depth"
    for key, s in [("Home", 0), ("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", STEPS - 1)]:
        page.keyboard.press(key)
        assert page.inner_text("#depth-now") == f"depth step {s + 1} of {STEPS}"
        assert page.get_attribute("#depth", "aria-valuetext") == f"depth step {s + 1} of {STEPS}"
        assert page.inner_text("#summary") == summary_of(run, 0, s)
        assert dict(marks(page)) == expected_marks(run, 0, s)
        shares = [float(text.split("%")[0]) for text in page.locator("#answers .share").all_inner_texts()]
        np.testing.assert_allclose(shares, 100 * run.distinct(0, s).shares[:24], atol=0.051)
        assert page.inner_text("#figures figure:first-child b") == f"{float(run.ess[s, 0]):.1f} of {WIDTH}"
    page.click("summary")
    assert page.locator("#table tbody tr").count() == STEPS


def test_the_boards_are_drawn_cell_by_cell(opened):
    """A queen's square is darker than its empty neighbours; the chosen board is read back pixel by pixel."""
    run = run_of(1)
    page = opened(run)
    slot = int(page.locator("#tiles .caption span").first.inner_text())
    queens = QUEENS.board.cells(run.answers[-1, slot, 0].numpy()[None].astype(int))[0]
    ink = page.evaluate(
        """() => {
        const canvas = document.querySelector("#chosen-board canvas");
        const wide = canvas.width, side = (wide - 2) / 6;
        const pixels = canvas.getContext("2d").getImageData(0, 0, wide, wide).data;
        const dark = new Array(36).fill(0);
        for (let y = 1; y < wide - 1; y++) for (let x = 1; x < wide - 1; x++) {
            const [r, c] = [(y - 1) / side, (x - 1) / side];
            const inside = Math.min(r % 1, c % 1) > 0.2 && Math.max(r % 1, c % 1) < 0.8;
            if (inside && pixels[4 * (y * wide + x)] < 100) dark[6 * Math.floor(r) + Math.floor(c)]++;
        }
        return dark;
    }"""
    )
    np.testing.assert_array_equal(np.array(ink).reshape(6, 6) > 20, queens > 0)


def test_space_plays_to_the_end_and_pauses(opened):
    page = opened(run_of(1))
    clock = stopped(page)
    page.focus("#depth")
    page.keyboard.press("Space")
    assert page.inner_text("#play") == "Pause" and page.get_attribute("#play", "aria-pressed") == "true"
    assert page.inner_text("#depth-now") == f"depth step 1 of {STEPS}"  # from the end it begins anew
    clock.run_for(1300)
    assert page.inner_text("#depth-now") == f"depth step 3 of {STEPS}"
    page.keyboard.press("Space")
    clock.run_for(2000)
    assert page.inner_text("#depth-now") == f"depth step 3 of {STEPS}" and page.inner_text("#play") == "Play"
    page.click("#play")
    clock.run_for(10_000)
    assert page.inner_text("#depth-now") == f"depth step {STEPS} of {STEPS}" and page.inner_text("#play") == "Play"


def test_it_plays_slowly_for_those_who_asked_for_less_motion(opened):
    page = opened(run_of(1), reduced_motion="reduce")
    clock = stopped(page)
    page.keyboard.press("Space")
    clock.run_for(1400)
    assert page.inner_text("#depth-now") == f"depth step 1 of {STEPS}"
    clock.run_for(200)
    assert page.inner_text("#depth-now") == f"depth step 2 of {STEPS}"


def test_a_trajectory_is_chosen_by_arrows_and_its_line_is_drawn(opened):
    run = run_of(1)
    page = opened(run)
    order = [int(number) for number, _ in marks(page)]
    page.focus("#tiles [tabindex='0']")
    for key, at in [("ArrowRight", 1), ("End", WIDTH - 1), ("Home", 0), ("ArrowDown", None)]:
        page.keyboard.press(key)
        chosen = page.locator("#tiles [aria-selected='true']")
        assert chosen.count() == 1 and chosen.evaluate("it => it === document.activeElement")
        number = int(chosen.locator(".caption span").first.inner_text())
        assert at is None or number == order[at]
        assert page.inner_text("#chosen-caption").startswith(f"trajectory {number} ")
    assert number != order[0]
    line = page.get_attribute("#genealogy .followed", "d")
    heights = [float(y) for y in re.findall(r"L\S+ (\S+?)(?=M|$)", line)]
    slots = run.lines()[:, number, 0]
    top = float(re.search(r"M\S+ (\S+?)L", line)[1])
    steps = np.diff([top, *heights]) / np.where(np.diff(slots) == 0, 1, np.diff(slots))
    moved = np.diff(slots) != 0
    assert np.ptp(steps[moved]) < 0.2 and (steps[~moved] == 0).all()  # as high as its slot; written to 0.1
    facts = dict(
        zip(*(page.locator(f"#chosen-facts {tag}").all_inner_texts() for tag in ("dt", "dd")), strict=True)
    )
    assert facts["weight"] == f"{100 * float(run.weights[-1, number, 0]):.1f}%"
    assert facts["value head"] == f"{100 * float(run.heads['value'][-1, number, 0].sigmoid()):.1f}%"


def test_another_problem_is_chosen_from_the_list(opened):
    run = run_of(2)
    page = opened(run)
    assert page.locator("#problem option").all_inner_texts() == ["problem 0", "problem 1"]
    assert page.inner_text("#summary") == summary_of(run, 0, STEPS - 1)
    page.select_option("#problem", "1")
    assert page.inner_text("#summary") == summary_of(run, 1, STEPS - 1)
    assert dict(marks(page)) == expected_marks(run, 1, STEPS - 1)


def test_every_line_that_was_dropped_is_pale(opened):
    run = run_of(1)
    page = opened(run)
    alive = sum(len(set(zip(*run.lines()[s - 1 : s + 1, :, 0].tolist(), strict=True))) for s in range(1, STEPS))
    assert page.get_attribute("#genealogy .alive", "d").count("M") == alive
    assert page.get_attribute("#genealogy .dead", "d").count("M") == WIDTH * (STEPS - 1) - alive


def test_a_phone_scrolls_down_but_not_across(opened):
    rng = np.random.default_rng(0)
    text = tasks.Pairs(np.zeros((1, 60), int), np.zeros((1, 60), int) + 12)
    for task in (QUEENS, tasks.Sudoku(3), tasks.Permutations(), text, tasks.Colouring(10)):
        x = torch.zeros(1, task.length, dtype=torch.long)
        answers = torch.as_tensor(rng.integers(0, task.output_size, (3, 20, 1, task.length)).astype(np.uint8))
        run = Trajectories(x, answers, torch.zeros(3, 20, 1), task=task.name)
        page = opened(run, task, viewport={"width": 360, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") == 360, task
        page.focus("summary")
        page.keyboard.press("Enter")  # the table, too
        page.focus("#depth")
        page.keyboard.press("Home")
        assert page.evaluate("document.documentElement.scrollWidth") == 360, task
        assert page.inner_text("#depth-now") == "depth step 1 of 3" and page.is_visible("#table")
        assert page.locator("#controls").bounding_box()["height"] < 740 / 4  # it stays in sight, and in its place


def test_a_run_without_answers_shows_its_lines_and_figures(opened):
    ancestors = torch.tensor([[0, 1, 2], [0, 0, 2], [1, 1, 1]], dtype=torch.int32)[..., None]
    none = torch.zeros(3, 3, 1, 0, dtype=torch.uint8)
    page = opened(Trajectories(torch.zeros(1, 4), none, torch.zeros(3, 3, 1), ancestors))
    assert not page.is_visible("#boards-part") and not page.is_visible("#answers-part")
    assert page.inner_text("#summary") == "effective sample size 3 of 3."
    assert "the 3 final trajectories come from 1 slot of the first depth step" in page.inner_text("#genealogy-note")


def test_markup_in_a_run_stays_text(opened):
    evil = "<img src=x onerror=alert(1)>"
    run = run_of(1)
    object.__setattr__(run, "settings", {"note": evil})
    page = opened(run)
    assert evil in page.inner_text("#about") and page.locator("img").count() == 0
