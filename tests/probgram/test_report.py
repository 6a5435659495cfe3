"""The report: what it holds agrees with the run; it is one small file, needs no network, and escapes all text."""

import base64
import hashlib
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from probgram import tasks
from probgram.cli import app
from probgram.inference.diagnosis import Diagnosis, Finding
from probgram.page import document
from probgram.report import MOST_PROBLEMS, report
from probgram.report.content import MOST_ANSWERS, MOST_TRAJECTORIES
from probgram.report.packing import packed
from probgram.trajectories import Trajectories

SILENT = Diagnosis((Finding("settled", "fine", "0.00 still changing", "Answers have settled."),))
QUEENS = tasks.Queens(6)


def drawn(
    task=QUEENS, width: int = 12, depth: int = 5, problems: int = 1, seed: int = 0, resampled: bool = True
) -> Trajectories:
    """Right answers mixed with random ones, weights and ancestors drawn: a run of no model."""
    rng = np.random.default_rng(seed)
    x = np.unique(task.examples("train")[0], axis=0)[:problems]
    answers = rng.integers(0, task.output_size, (depth, width, problems, task.length))
    for b, one in enumerate(x):
        right = task.solutions(one)
        if len(right):
            chosen = right[rng.integers(len(right), size=(depth, width))]
            answers[:, :, b] = np.where(rng.random((depth, width, 1)) < 0.4, chosen, answers[:, :, b])
    log_weights = torch.as_tensor(rng.normal(size=(depth, width, problems)))
    log_weights[:, 0] = -torch.inf
    ancestors = np.sort(rng.integers(1, width, (depth, width, problems)), axis=1).astype(np.int32)
    return Trajectories(
        torch.as_tensor(x),
        torch.as_tensor(answers.astype(np.uint8)),
        log_weights,
        torch.as_tensor(ancestors) if resampled else None,
        heads={"value": torch.as_tensor(rng.normal(size=log_weights.shape))},
        task=task.name,
        settings={"potential": "energy", "halt": None, "guided": True},
    )


def content_of(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


def unpacked(packing: dict) -> np.ndarray:
    """Read what `packed` wrote, one bit after another."""
    bits = np.unpackbits(np.frombuffer(base64.b64decode(packing["data"]), np.uint8))
    numbers = bits[: packing["count"] * packing["bits"]].reshape(packing["count"], packing["bits"])
    return numbers.astype(np.int64) @ (1 << np.arange(packing["bits"])[::-1])


# -- packing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("largest", [0, 1, 2, 9, 255, 256, 70_000])
def test_numbers_come_back_from_as_few_bits_as_the_largest_needs(largest):
    values = np.random.default_rng(0).integers(0, largest + 1, (7, 13))
    values[0, 0] = largest
    packing = packed(values)
    assert packing["bits"] == max(1, len(f"{largest:b}")) and packing["count"] == 91
    assert len(base64.b64decode(packing["data"])) == -(-91 * packing["bits"] // 8)
    np.testing.assert_array_equal(unpacked(packing), values.reshape(-1))


# -- what it holds --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resampled", [True, False])
def test_boards_follow_the_lines_of_the_run(resampled):
    run = drawn(resampled=resampled)
    (problem,) = content_of(report(run, diagnosis=SILENT))["problems"]
    answers, shown = problem["answers"], problem["shown"]
    slots = unpacked(problem["slots"]).reshape(-1, shown)
    assert sorted(slots[-1]) == list(range(run.width))
    np.testing.assert_array_equal(slots, run.lines()[:, slots[-1], 0])
    index = unpacked(answers["index"]).reshape(-1, shown)
    along = run.answers_along_lines()[:, slots[-1], 0].numpy().astype(int)
    cells = unpacked(answers["cells"]).reshape(-1, 6, 6) - 1
    np.testing.assert_array_equal(cells[index], QUEENS.board.cells(along))
    x = run.x[0].numpy()
    np.testing.assert_array_equal(unpacked(answers["verified"])[index], QUEENS.verify(x, along))
    broken = unpacked(answers["broken"]).reshape(-1, 6, 6)[index].reshape(-1, 6, 6)
    np.testing.assert_array_equal(broken, QUEENS.board.broken(x, along.reshape(-1, 6)))
    np.testing.assert_array_equal(unpacked(answers["given"]).reshape(6, 6), QUEENS.board.given(x))
    np.testing.assert_allclose(problem["weights"], run.weights.gather(1, run.lines())[:, slots[-1], 0], rtol=1e-5)
    heads = run.heads["value"].gather(1, run.lines()).sigmoid()[:, slots[-1], 0]
    np.testing.assert_allclose(problem["heads"]["value"], heads, rtol=1e-5)
    if resampled:
        ancestors = unpacked(problem["ancestors"]).reshape(-1, run.width)
        np.testing.assert_array_equal(ancestors[1:], run.ancestors[1:, :, 0])
    else:
        assert problem["ancestors"] is None


def test_equal_last_answers_stand_side_by_side_the_most_probable_first():
    run = drawn(width=40)
    run = replace(run, answers=run.answers[:, :, :, :].clone())
    run.answers[-1, ::3] = run.answers[-1, 1].clone()
    (problem,) = content_of(report(run, diagnosis=SILENT))["problems"]
    last = unpacked(problem["answers"]["index"]).reshape(-1, 40)[-1]
    runs = [answer for i, answer in enumerate(last) if i == 0 or answer != last[i - 1]]
    assert len(runs) == len(set(runs))
    listed = [answer for answer, _ in problem["answers"]["posterior"][-1]]
    assert [answer for answer in runs if answer in listed][: len(listed)] == listed


def test_shares_and_figures_over_depth_are_those_of_the_run():
    run = drawn(problems=2)
    for b, problem in enumerate(content_of(report(run, diagnosis=SILENT))["problems"]):
        figures = {figure["name"]: figure["values"] for figure in problem["figures"]}
        np.testing.assert_allclose(figures["effective sample size"], run.ess[:, b], rtol=1e-5)
        right = QUEENS.verify(run.x[b], run.answers[:, :, b])
        share = (run.weights[:, :, b] * right).sum(1)
        np.testing.assert_allclose(figures["share verified"], 100 * share, rtol=1e-5)
        cells = unpacked(problem["answers"]["cells"]).reshape(-1, 6, 6) - 1
        for s in range(len(run.depths)):
            distinct = run.distinct(b, s)
            assert figures["distinct answers"][s] == len(distinct.answers)
            valid = QUEENS.verify(run.x[b], distinct.answers)
            assert figures["distinct verified answers"][s] == int(valid.sum())
            index, shares = zip(*problem["answers"]["posterior"][s], strict=True)
            expected = {tuple(a.tolist()): float(p) for a, p in zip(distinct.answers, distinct.shares, strict=True)}
            found = {tuple(np.argmax(cells[i], -1)): p for i, p in zip(index, shares, strict=True)}
            assert found == pytest.approx(expected, rel=1e-5) and sorted(shares, reverse=True) == list(shares)


def test_a_very_wide_run_shows_its_heaviest_trajectories_and_the_figures_of_all():
    run = drawn(width=400, depth=3, problems=2)[1]
    (problem,) = content_of(report(run, diagnosis=SILENT))["problems"]
    last = unpacked(problem["slots"]).reshape(3, -1)[-1]
    assert (problem["width"], problem["shown"], problem["ancestors"]) == (400, MOST_TRAJECTORIES, None)
    assert run.weights[-1, last, 0].min() >= np.sort(run.weights[-1, :, 0])[::-1][MOST_TRAJECTORIES - 1]
    figures = {figure["name"]: figure["values"] for figure in problem["figures"]}
    assert figures["distinct answers"] == [len(run.distinct(0, s).answers) for s in range(3)]
    assert max(map(len, problem["answers"]["posterior"])) == MOST_ANSWERS
    index = unpacked(problem["answers"]["index"]).reshape(3, -1)
    cells = unpacked(problem["answers"]["cells"]).reshape(-1, 6, 6) - 1
    np.testing.assert_array_equal(cells[index[-1]].argmax(-1), run.answers[-1, last, 0])


def test_a_run_that_kept_its_last_step_only_has_curves_where_it_has_figures():
    run = drawn(depth=1, resampled=False)
    run = replace(run, depths=(4,), effective=torch.arange(4.0)[:, None], log_normalizer=torch.ones(4, 1))
    (problem,) = content_of(report(run, diagnosis=SILENT))["problems"]
    curves = {figure["name"]: figure for figure in problem["figures"]}
    assert curves["effective sample size"]["depths"] == curves["log Z"]["depths"] == [1, 2, 3, 4]
    assert curves["distinct answers"]["depths"] == problem["depths"] == [4]


def test_a_run_without_answers_is_shown_without_boards():
    run = Trajectories(torch.zeros(1, 3), torch.zeros(4, 6, 1, 0, dtype=torch.uint8), torch.zeros(4, 6, 1))
    page = report(run)
    content = content_of(page)
    (problem,) = content["problems"]
    assert problem["answers"] is None and content["runs"][0]["findings"] == []
    assert [figure["name"] for figure in problem["figures"]] == ["effective sample size"]
    assert "<h1>A run: 6 trajectories × 4 depth steps</h1>" in page


def test_a_task_that_only_draws_text_gets_text_and_one_that_cannot_verify_no_marks():
    x = np.array([[0, 1, 2], [1, 1, 1]])
    task = tasks.Pairs(x, x[:, ::-1], name="mine")
    answers = torch.tensor([[[[2, 1, 0]], [[0, 0, 0]]]], dtype=torch.uint8)
    run = Trajectories(torch.as_tensor(x[:1]), answers, torch.zeros(1, 2, 1), task="mine")
    content = content_of(report(run, task, diagnosis=SILENT))
    (problem,) = content["problems"]
    assert content["board"] is None and problem["answers"]["texts"] == ["2 1 0", "0 0 0"]
    assert unpacked(problem["answers"]["verified"]).tolist() == [1, 0]
    unlisted = replace(run, x=torch.tensor([[2, 2, 2]]))
    (problem,) = content_of(report(unlisted, task, diagnosis=SILENT))["problems"]
    assert problem["answers"]["verified"] is None
    page = report(run, diagnosis=SILENT)
    assert "The run&#x27;s task, &#x27;mine&#x27;, is not built in, and none was given" in page
    assert content_of(page)["problems"][0]["answers"]["texts"] == ["2 1 0", "0 0 0"]


@pytest.mark.parametrize(
    "task",
    [tasks.Sudoku(2), tasks.Colouring(6), tasks.Rule110(), tasks.Queens(6, encoding="board"), tasks.Pointers()],
    ids=lambda task: task.name,
)
def test_every_kind_of_board_is_written(task):
    (problem,) = content_of(report(drawn(task, width=4, depth=2), task, diagnosis=SILENT))["problems"]
    answers = problem["answers"]
    cells = unpacked(answers["cells"]).reshape(-1, answers["rows"], answers["columns"])
    assert cells.max() <= len(task.board.symbols)
    assert answers["broken"]["count"] == cells.size
    assert (answers["edges"] is not None) == task.name.startswith("colouring")


def test_what_was_found_stands_worst_first_with_what_was_left_out():
    found = Diagnosis(
        (
            Finding("one", "fine", "1", "A."),
            Finding("two", "trouble", "2", "B.", "more"),
            Finding("three", "look", "3", "C.", "less"),
        ),
        ("stability: that needs the chain",),
    )
    (told,) = content_of(report(drawn(), diagnosis=found))["runs"]
    assert [row[0] for row in told["findings"]] == ["two", "three", "one"]
    assert told["findings"][0] == ["two", "trouble", "2", "B.", "more"]
    assert told["left_out"] == ["stability: that needs the chain"]
    assert ["potential", "energy"] in told["about"] and ["guided", "yes"] in told["about"]
    assert "halt" not in dict(told["about"])


def test_without_a_diagnosis_the_run_is_diagnosed():
    run = drawn(resampled=False)
    (told,) = content_of(report(run))["runs"]
    from probgram.inference import diagnose

    expected = diagnose(run, QUEENS)
    assert sorted(row[0] for row in told["findings"]) == sorted(finding.name for finding in expected.findings)
    assert told["left_out"] == list(expected.left_out)


# -- which problems -------------------------------------------------------------------------------------------


def test_problems_are_chosen_or_the_first_are_shown():
    run = drawn(width=2, depth=1, problems=MOST_PROBLEMS + 2)
    page = report(run, diagnosis=SILENT)
    assert len(content_of(page)["problems"]) == MOST_PROBLEMS
    assert f"Shown are the first {MOST_PROBLEMS} of {MOST_PROBLEMS + 2} problems." in page
    page = report(run, problem=[13, 0], diagnosis=SILENT)
    content = content_of(page)
    assert [problem["label"] for problem in content["problems"]] == ["problem 13", "problem 0"]
    assert "Shown are" not in page
    first = unpacked(content["problems"][1]["answers"]["problem"]["cells"]).reshape(6, 6) - 1
    np.testing.assert_array_equal(first, QUEENS.board.problem(run.x[0].numpy()))


def test_several_runs_stand_in_one_page_each_with_its_diagnosis():
    other = replace(SILENT, left_out=("nothing",))
    runs = [drawn(depth=3), drawn(depth=5, problems=2, seed=1)]
    content = content_of(report(runs, diagnosis=[SILENT, other]))
    assert [(one["label"], one["run"], len(one["depths"])) for one in content["problems"]] == [
        ("problem 0", 0, 3),
        ("problem 1", 1, 5),
        ("problem 2", 1, 5),
    ]
    assert content["runs"][1]["left_out"] == ["nothing"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"run": []}, "at least one run, got none"),
        ({"problem": 1}, "problem must be from 0 to 0, got 1"),
        ({"problem": []}, "problem must name at least one problem, got none"),
        ({"problem": [0, -1]}, "problem must be from 0 to 0, got -1"),
        ({"task": "chess"}, "no task is called 'chess'"),
        ({"task": "queens8"}, "task must be the run's: queens8 has answers of 8 tokens, the run's have 6"),
        ({"diagnosis": [SILENT, SILENT]}, "a diagnosis of each run, got 2 for 1"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        report(**{"run": drawn(), "diagnosis": SILENT} | arguments)


# -- the file -------------------------------------------------------------------------------------------------


def test_a_large_run_of_answers_that_never_agree_stays_small():
    rng = np.random.default_rng(0)
    task = tasks.Sudoku(3)
    answers = torch.as_tensor(rng.integers(1, 10, (32, 64, 1, 81)).astype(np.uint8))
    x = torch.zeros(1, 81, dtype=torch.long)
    heads = {name: torch.as_tensor(rng.normal(size=(32, 64, 1))) for name in ("value", "halt")}
    ancestors = torch.as_tensor(rng.permuted(np.tile(np.arange(64), (32, 1)), axis=1)[:, :, None].astype(np.int32))
    log_weights = torch.as_tensor(rng.normal(size=(32, 64, 1)))
    page = report(Trajectories(x, answers, log_weights, ancestors, heads), task, diagnosis=SILENT)
    cells = content_of(page)["problems"][0]["answers"]["cells"]
    assert cells["count"] == 32 * 64 * 81  # nothing to gain from answers that return
    assert len(page.encode()) < 400_000  # 3 MB is what it must not exceed
    assert len(page.encode()) < 3_000_000


def test_the_page_names_no_address_but_the_name_of_svg():
    page = report(drawn(), diagnosis=SILENT)
    rest = page.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(
        r"https?:|//www|\bsrc=|url\(|@import|<link|<iframe|fetch\(|XMLHttp|WebSocket|import\(", rest
    )
    assert "default-src 'none'" in page and "unsafe" not in page


def test_the_policy_lets_in_exactly_the_style_and_the_script_of_the_page():
    page = document("t", "<p>b</p>", style="p { color: red; }", script="let a = 1;", data={"a": "</script>"})
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    for tag in ("style", "script"):
        inside = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.S)[1]
        hashed = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{hashed}'" in policy
    assert page.count("</script>") == 2 and json.loads(re.search(r'id="data">(.*?)<', page)[1]) == {
        "a": "</script>"
    }
    assert "script" not in document("t", "<p>b</p>")


def test_what_comes_from_the_run_is_escaped():
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"

    class Evil(tasks.Pairs):
        def decode(self, y):
            return evil

    x = np.array([[0, 1, 2]])
    task = Evil(x, x, name=evil)
    answers = torch.zeros(1, 2, 1, 3, dtype=torch.uint8)
    run = Trajectories(torch.as_tensor(x), answers, torch.zeros(1, 2, 1), task=evil, settings={evil: evil})
    found = Diagnosis((Finding(evil, "fine", evil, evil),), (evil,))
    for page in (report(run, task, diagnosis=found), report(run, diagnosis=found)):
        assert "<img" not in page and page.count("<script") == 2 and page.count("</script>") == 2
        assert "&lt;/script&gt;" in page
        assert content_of(page)["runs"][0]["findings"][0][0] == evil
    assert content_of(report(run, task, diagnosis=found))["problems"][0]["answers"]["texts"] == [evil]


# -- the command line -----------------------------------------------------------------------------------------


def test_a_saved_run_becomes_a_page(tmp_path):
    path = drawn(problems=3).save(tmp_path / "run.safetensors")
    result = CliRunner().invoke(app, ["report", str(path), "--json"])
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    page = tmp_path / "run.html"
    assert said == {
        "schema": "probgram.report/1",
        "run": str(path),
        "html": str(page),
        "bytes": page.stat().st_size,
    }
    assert len(content_of(page.read_text(encoding="utf-8"))["problems"]) == 3
    out = tmp_path / "two.html"
    result = CliRunner().invoke(
        app, ["report", str(path), "--problem", "2", "--out", str(out), "--task", "queens6"]
    )
    assert (result.exit_code, result.stdout.replace("\n", "")) == (0, f"{out} written")
    assert len(content_of(out.read_text(encoding="utf-8"))["problems"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.safetensors"], "missing.safetensors"),
        (["run.safetensors", "--problem", "a"], "problem must be integers with commas between them, got 'a'"),
        (["run.safetensors", "--problem", "9"], "problem must be from 0 to 0, got 9"),
        (["run.safetensors", "--task", "queens8"], "queens8 has answers of 8 tokens"),
        (["run.safetensors", "--out", "run.safetensors/page.html"], "run.safetensors/page.html"),
    ],
)
def test_bad_input_to_report_is_one_line_on_standard_error(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    drawn().save("run.safetensors")
    result = CliRunner().invoke(app, ["report", *arguments])
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1 and message in result.stderr


def test_solving_writes_a_report_of_every_problem(tmp_path):
    boards = tmp_path / "boards.txt"
    boards.write_text("0 . . . . . . .\n\n. 0 . . . . . .\n")
    out = tmp_path / "out.html"
    arguments = ["solve", "queens8", "--file", boards, "--width", 4, "--depth", 2, "--report", out, "--quiet"]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code in (0, 1) and result.output == ""
    content = content_of(out.read_text(encoding="utf-8"))
    assert [(problem["run"], problem["shown"]) for problem in content["problems"]] == [(0, 4), (1, 4)]
    assert all(run["findings"] for run in content["runs"])
