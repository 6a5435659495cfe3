"""The command line: what it prints, where, with which exit code; bad input is one sentence, never a traceback."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from typer.testing import CliRunner, Result

from probgram import tasks
from probgram.checkpoint import WEIGHTS_FORMAT, read_tensors
from probgram.cli import app

ROW = "0 . . . . . . ."
DRAWN = "\n".join(["Q......."] + ["........"] * 7)
FULL = "0 4 7 5 2 6 1 3"  # a solution: nothing is left to find
SMALL = ["--width", 4, "--depth", 2]
TINY = ["--steps", 3, "--head-steps", 2, "--batch", 4, "--depth", 2, "--dim", 16]
COMMANDS = ["solve", "train", "evaluate", "frontier", "report", "info", "demo"]

X = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), -1).reshape(-1, 3)
Y = X[:, ::-1]

MODULE = '''
import numpy as np
from probgram import tasks

class Reversed(tasks.Pairs):
    """Three tokens, any answer being right; drawn with what a terminal could take for markup."""

    def __init__(self):
        x = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), -1).reshape(-1, 3)
        super().__init__(x, x[:, ::-1], verify=lambda x, y: (x + y >= 0).all(-1), name="mine")

    def decode(self, y):
        return "[bold] [/] :x: " + super().decode(y)

made = Reversed()
number = 5

class NeedsSize(Reversed):
    def __init__(self, size):
        super().__init__()
'''


def probgram(*arguments: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], input=stdin)


def parsed(result: Result) -> dict:
    """What was printed, which is JSON and nothing else."""
    assert result.exit_code in (0, 1) and result.stderr == "", result.output
    assert result.stdout.count("\n") == 1
    return json.loads(result.stdout, parse_constant=pytest.fail)  # NaN is no JSON


def complaint(result: Result) -> str:
    """The one line that bad input gets."""
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stdout == ""
    assert isinstance(result.exception, SystemExit)  # any other would have been a traceback
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    return result.stderr.removeprefix("Error: ").strip()


def content_of(path: Path) -> tuple[dict, dict]:
    """Tensors and metadata; safetensors writes the same metadata in any order of its keys."""
    tensors, metadata = read_tensors(path)
    return {name: value.tolist() for name, value in tensors.items()}, metadata


@pytest.fixture(autouse=True)
def at_home(tmp_path, monkeypatch):
    """Run in an empty folder, and forget what a command imports from there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("mine", None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path, Result]:
    """Weights trained a little on an archive; the archive; what was printed."""
    folder = tmp_path_factory.mktemp("trained")
    data, out = folder / "backwards.npz", folder / "weights.safetensors"
    np.savez(data, x=X, y=Y)
    return out, data, probgram("train", data, *TINY, "--out", out, "--folder", folder / "run", "--json")


# -- help -----------------------------------------------------------------------------------------------------


def test_the_package_runs_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "probgram.cli", "--help"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and done.stderr == ""
    for command in COMMANDS:
        assert command in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_has_an_example(command):
    result = probgram(command, "--help")
    assert result.exit_code == 0
    assert "Example" in result.stdout
    assert f"probgram {command} " in result.stdout


def test_without_a_command_there_is_help():
    assert "Usage" in probgram().output


# -- solve ----------------------------------------------------------------------------------------------------


def test_a_board_is_solved_and_drawn():
    result = probgram("solve", "queens8", "--board", ROW, *SMALL)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "Q . . . . . . ." in result.stdout
    assert "verified answers from 4 trajectories" in result.stdout


def test_json_names_its_schema_and_holds_every_answer():
    content = parsed(probgram("solve", "queens8", "--board", ROW, *SMALL, "--seed", 5, "--json"))
    (problem,) = content.pop("problems")
    settings = {"weights": "queens8", "width": 4, "depth": 2, "seed": 5, "potential": None, "resample": None}
    settings |= {"abstain_below": None, "confidence_by": None, "backend": "torch"}
    assert content == {"schema": "probgram.solve/1"} | settings
    task = tasks.Queens(8)
    assert problem["task"] == "queens8" and problem["x"] == task.encode(ROW).tolist()
    assert sum(answer["share"] for answer in problem["answers"]) == pytest.approx(1)
    for answer in problem["answers"]:
        assert answer["verified"] == bool(task.verify(np.array(problem["x"]), np.array(answer["y"])))


def test_a_potential_filters_the_trajectories():
    """An energy leaves wrong boards hardly any weight: exp(-2) or less of a right one's."""
    board = ["solve", "queens8", "--board", ROW, "--width", 32, "--depth", 2, "--json"]
    plain = parsed(probgram(*board))
    content = parsed(probgram(*board, "--potential", "energy*value^0", "--resample", "none", "--ess", 0.7))
    assert (content["potential"], content["resample"]) == ("energy*value^0", "none")

    def right(of: dict) -> float:
        return sum(answer["share"] for answer in of["problems"][0]["answers"] if answer["verified"])

    assert 0.05 < right(plain) < 0.95  # two depth steps: some are wrong
    odds = right(content) / (1 - right(content)) * (1 - right(plain)) / right(plain)
    assert odds > np.exp(2) - 1e-3


def test_the_same_seed_prints_the_same():
    first, again, other = (
        probgram("solve", "queens8", "--board", ROW, *SMALL, "--json", "--seed", seed).stdout for seed in (3, 3, 4)
    )
    assert first == again
    assert json.loads(first)["problems"] != json.loads(other)["problems"]


def test_a_file_holds_problems_with_blank_lines_between(tmp_path):
    file = tmp_path / "boards.txt"
    file.write_text(f"\n{DRAWN}\n\n  \n{FULL}\n\n")
    content = parsed(probgram("solve", "queens8", "--file", file, *SMALL, "--json"))
    read = tasks.Queens(8).encode
    assert [problem["x"] for problem in content["problems"]] == [read(ROW).tolist(), read(FULL).tolist()]
    drawn = probgram("solve", "queens8", "--file", file, *SMALL)
    assert drawn.stdout.count("from 4 trajectories") == 2


@pytest.mark.parametrize("arguments", [[], ["--file", "-"]], ids=["default", "dash"])
def test_problems_are_read_from_standard_input(arguments):
    content = parsed(probgram("solve", "queens8", *arguments, *SMALL, "--json", stdin=DRAWN))
    expected = parsed(probgram("solve", "queens8", "--board", ROW, *SMALL, "--json"))
    assert content == expected


def test_quiet_prints_nothing_and_the_exit_code_tells():
    result = probgram("solve", "queens8", "--board", ROW, *SMALL, "--quiet")
    assert (result.exit_code, result.output) == (0, "")


def test_a_board_without_a_right_answer_exits_with_one(tmp_path):
    queens = [0, 2] + [None] * 6  # legal so far; no solution begins so
    assert len(tasks.Queens(8).solutions(tasks.Queens(8).encode(queens))) == 0
    result = probgram("solve", "queens8", "--board", "0 2 . . . . . .", *SMALL)
    assert (result.exit_code, result.stderr) == (1, "")
    assert "0 verified answers from 4" in result.stdout and "100%" in result.stdout
    (tmp_path / "both.txt").write_text(f"{ROW}\n\n0 2 . . . . . .")
    both = probgram("solve", "queens8", "--file", "both.txt", *SMALL, "--json")
    assert both.exit_code == 1
    assert any(answer["verified"] for answer in parsed(both)["problems"][0]["answers"])


@pytest.mark.parametrize("word", [None, "vote", "value", "halt", "energy"])
def test_every_confidence_has_a_word(word):
    named = [] if word is None else ["--confidence", word]
    content = parsed(probgram("solve", "queens8", "--board", ROW, *SMALL, *named, "--abstain-below", 0, "--json"))
    assert (content["confidence_by"], content["abstain_below"]) == (word, 0)
    (problem,) = content["problems"]
    assert 0 < problem["confidence"] <= 1 and not problem["abstained"]
    if word == "vote":
        assert problem["confidence"] == pytest.approx(problem["answers"][0]["share"])


def test_a_problem_that_is_not_answered_exits_with_one():
    dead = ["solve", "queens8", "--board", "0 2 . . . . . .", *SMALL, "--abstain-below", 0.9]
    drawn = probgram(*dead)
    assert (drawn.exit_code, drawn.stderr) == (1, "")
    assert re.fullmatch(r"no answer: a confidence of 0\.\d+ is below 0\.9\n", drawn.stdout)
    (problem,) = parsed(probgram(*dead, "--json"))["problems"]
    assert problem["abstained"] and problem["confidence"] < 0.9 and problem["answers"]
    assert (probgram(*dead, "--quiet").exit_code, probgram(*dead, "--quiet").output) == (1, "")
    assert probgram("solve", "queens8", "--board", ROW, *SMALL, "--abstain-below", 0.9).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["queens8", "--board", "0 0 . . . . . ."], "rows 0 and 1 clash: they share column 0"),
        (["queens8", "--board", "nonsense"], "a board "),
        (["queens8", "--board", ""], "a board "),
        (["queens8", "--file", "missing.txt"], "missing.txt cannot be read: .*No such file"),
        (["queens8", "--file", "bytes.txt"], "bytes.txt cannot be read: .*utf-8"),
        (["queens8", "--file", "blank.txt"], "blank.txt holds no problem"),
        (["queens8", "--file", "blank.txt", "--board", ROW], "--board TEXT or --file PATH, not both"),
        (["queens8"], "standard input holds no problem"),
        (["queens9", "--board", ROW], r"no weights are called 'queens9': expected .* \[.*'queens8'.*\]"),
        (["blank.txt", "--board", ROW], "blank.txt is not a whole safetensors file"),
        (["queens8", "--board", ROW, "--potential", "luck"], "made of value, halt and energy, got 'luck'"),
        (
            ["queens8", "--board", ROW, "--potential", "value^x"],
            "the power in potential 'value.x' must be a number",
        ),
        (["queens8", "--board", ROW, "--potential", "value", "--resample", "all"], "resample must be one of syst"),
        (["queens8", "--board", ROW, "--device", "toaster"], "device must be cpu, cuda or mps, got 'toaster'"),
        (["queens8", "--board", ROW, "--confidence", "luck"], "must be vote, value, halt or energy, got 'luck'"),
        (["queens8", "--board", ROW, "--task", "chess"], "no task is called 'chess'"),
        (["queens8", "--board", "5 . . . . .", "--task", "queens6:"], "the task 'queens6:' cannot be imported"),
        (["queens8", "--board", "0" + 9 * " .", "--task", "queens10"], "answers of queens10 have 10 different"),
    ],
)
def test_bad_input_to_solve_is_one_line_on_standard_error(arguments, message, tmp_path):
    (tmp_path / "blank.txt").write_text("\n \n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00Q")
    assert re.search(message, complaint(probgram("solve", *arguments, *SMALL, stdin="")))


# -- train, and what its weights are good for -----------------------------------------------------------------


def test_training_says_what_it_wrote(trained):
    out, _, result = trained
    content = parsed(result)
    assert content["schema"] == "probgram.train/1"
    assert (content["weights"], content["folder"]) == (str(out), str(out.parent / "run"))
    assert (content["task"], content["split"], content["steps"]) == ("pairs:backwards", "input", 3)
    assert content["metrics"]["step"] == 3 and content["metrics"]["loss"] > 0
    assert out.is_file() and (out.parent / "run" / "metrics.jsonl").is_file()


def test_the_same_command_keeps_what_a_finished_run_trained(trained):
    out, data, _ = trained
    before = content_of(out)
    content = parsed(probgram("train", data, *TINY, "--out", out, "--folder", out.parent / "run", "--json"))
    assert content["steps"] == 3 and content["metrics"] == {}  # no step was taken
    assert content_of(out) == before


def test_a_folder_of_another_run_is_refused(trained):
    out, data, _ = trained
    before = out.read_bytes()
    said = complaint(
        probgram("train", data, *TINY, "--seed", 1, "--out", out, "--folder", out.parent / "run", "-q")
    )
    assert str(out.parent / "run") in said
    assert out.read_bytes() == before


def test_an_interrupted_run_exits_with_one_and_the_same_command_goes_on(trained, tmp_path, monkeypatch):
    from probgram.inference import svi

    out, data, _ = trained
    command = ["train", data, *TINY, "--out", "again.safetensors", "--folder", "again", "--json"]
    optimise, taken = svi._Run._optimise, []

    def interrupted(run):
        if len(taken) == 2:
            raise KeyboardInterrupt
        taken.append(run.step)
        return optimise(run)

    with monkeypatch.context() as patch:
        patch.setattr(svi._Run, "_optimise", interrupted)
        stopped = probgram(*command)
    assert (stopped.exit_code, stopped.stdout) == (1, "")
    assert taken == [0, 1] and not Path("again.safetensors").exists()
    assert parsed(probgram(*command))["steps"] == 3
    assert content_of(Path("again.safetensors")) == content_of(out)  # as if never stopped


def test_training_ends_with_the_next_command_to_type(trained):
    out, data, _ = trained
    result = probgram("train", data, *TINY, "--out", out, "--folder", out.parent / "run")
    assert f"next: probgram evaluate {out} --task {data}" in result.stdout
    quiet = probgram("train", data, *TINY, "--out", out, "--folder", out.parent / "run", "--quiet")
    assert (quiet.exit_code, quiet.output) == (0, "")


def test_info_says_what_a_file_holds(trained):
    out, _, _ = trained
    content = parsed(probgram("info", out, "--json"))
    assert content["schema"] == "probgram.info/1"
    assert (content["path"], content["bytes"], content["model"]) == (str(out), out.stat().st_size, "GRAM")
    assert (content["configuration"]["dim"], content["configuration"]["length"]) == (16, 3)
    assert len(content["about"].pop("data")) == 16  # which data: held-out problems are refused of others
    assert content["about"] == {"task": "pairs:backwards", "split": "input", "seed": 0, "steps": 3}
    drawn = probgram("info", out)
    assert drawn.exit_code == 0
    for words in ("parameters", str(content["parameters"]), "backwards"):
        assert words in drawn.stdout


def test_info_prints_a_path_as_it_is(trained, tmp_path):
    path = tmp_path / "[bold] :x:.safetensors"
    path.write_bytes(trained[0].read_bytes())
    assert path.name in probgram("info", path.name).stdout


def test_info_counts_parameters_and_not_the_fixed_draws_beside_them(tmp_path):
    from probgram.checkpoint import load_chain, save_chain
    from probgram.models import LoopedFlow

    flow = save_chain(
        tmp_path / "flow.safetensors", LoopedFlow.for_task(tasks.Queens(4), dim=16, hidden=16, heads=2)
    )
    for weights in ("queens8", "pointers-looped", flow):
        content = parsed(probgram("info", weights, "--json"))
        assert content["parameters"] == sum(value.numel() for value in load_chain(weights).parameters())


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"format": "other"}, "holds no probgram weights"),
        ({"format": WEIGHTS_FORMAT}, "does not say what its weights are: 'model'"),
        ({"format": WEIGHTS_FORMAT, "model": "GRAM", "configuration": "{"}, "does not say what its weights are"),
    ],
)
def test_a_file_that_says_too_little_is_refused(metadata, message, tmp_path):
    save_file({"chain.a": np.zeros(1)}, tmp_path / "odd.safetensors", metadata=metadata)
    assert message in complaint(probgram("info", "odd.safetensors"))


def test_weights_are_evaluated_on_the_archive_they_were_trained_on(trained):
    out, data, _ = trained
    content = parsed(probgram("evaluate", out, "--task", data, *SMALL, "--problems", 2, "--seeds", "0,7", "--json"))
    assert content["schema"] == "probgram.evaluate/1"
    assert {"valid", "pass_at_n", "coverage_macro_all"} <= set(content["figures"])
    assert all(len(values) == 2 and 0 <= min(values) <= max(values) <= 1 for values in content["figures"].values())
    assert content["limits"]["uniform"]["valid"] == 1.0
    about = content["about"]
    assert (about["task"], about["problems"], about["seeds"]) == ("pairs:backwards", 2, [0, 7])
    assert about["split"] == "input test"


def test_problems_that_may_have_been_trained_on_are_not_called_held_out(trained, tmp_path):
    np.savez(tmp_path / "grown.npz", x=np.concatenate([X, X[:1]]), y=np.concatenate([Y, Y[1:2]]))
    said = complaint(probgram("evaluate", trained[0], "--task", "grown.npz", *SMALL))
    assert "the weights were not trained on the training problems of" in said


def test_shipped_weights_are_not_judged_on_problems_that_were_split_otherwise(tmp_path):
    Path("otherwise.py").write_text(
        "from probgram.tasks import Queens\n\n\ndef T():\n    return Queens(8, split='input')\n"
    )
    said = complaint(probgram("evaluate", "queens8", "--task", "otherwise:T", *SMALL))
    assert "trained with queens8 split by orbit, so what is held out by input may not be" in said


def test_a_misspelt_scheme_is_refused_without_a_potential_too():
    said = complaint(probgram("evaluate", "queens8", "--resample", "sistematic", *SMALL))
    assert "resample must be one of" in said and "sistematic" in said


def test_a_core_that_is_trained_further_keeps_what_it_learned(tmp_path):
    """Heads trained on the old core must not bring it back."""
    np.savez("few.npz", x=X, y=Y)
    command = ["train", "few.npz", *TINY, "--out", "w.safetensors", "-q"]
    assert probgram(*command).exit_code == 0
    before = read_tensors("w.safetensors")[0]["chain.embed.weight"]
    assert probgram(*command, "--steps", 8).exit_code == 0
    assert not torch.equal(read_tensors("w.safetensors")[0]["chain.embed.weight"], before)


def test_diverging_exits_with_one():
    np.savez("few.npz", x=X, y=Y)
    result = probgram("train", "few.npz", *TINY, "--lr", 1e30, "--steps", 20, "-q")
    assert result.exit_code == 1 and "training diverged by step" in result.stderr


def test_evaluation_finds_the_task_of_shipped_weights_and_prints_a_table():
    result = probgram("evaluate", "queens8", *SMALL, "--problems", 2, "--seeds", "0")
    assert (result.exit_code, result.stderr) == (0, "")
    for words in ("queens8", "pass at n", "one answer"):
        assert words in result.stdout
    filtered = probgram("evaluate", "queens8", *SMALL, "--problems", 2, "--seeds", "0", "--potential", "value^2")
    assert "potential value^2" in " ".join(filtered.stdout.split()), filtered.output
    quiet = probgram("evaluate", "queens8", *SMALL, "--problems", 1, "--seeds", "0", "--quiet")
    assert (quiet.exit_code, quiet.output) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0,x"], "seeds must be integers with commas between them, got '0,x'"),
        (["--seeds", ""], "seeds must be integers with commas between them, got ''"),
        (["--split", "all"], 'split must be "train" or "test", got \'all\''),
        (["--task", "chess"], "no task is called 'chess'; expected for instance"),
        (["--task", "missing.npz"], "missing.npz cannot be read as an .npz archive"),
    ],
)
def test_bad_input_to_evaluate_is_one_line_on_standard_error(arguments, message):
    assert message in complaint(probgram("evaluate", "queens8", *arguments, *SMALL))


GRID = ["--depths", "1,2", "--widths", "1,4", "--seeds", "0,7", "--problems", 4, "--rounds", 1]


def test_the_frontier_is_printed_with_its_verdict_and_written_as_a_page():
    result = probgram("frontier", "queens8", *GRID, "--out", "pages/frontier.html")
    assert (result.exit_code, result.stderr) == (0, "")
    for words in ("queens8", "pass@N", "By pass@N:", "A doubling of depth removes", "Brackets: 95% intervals"):
        assert words in " ".join(result.stdout.split()), result.stdout
    page = Path("pages/frontier.html").read_text()
    assert "data:image/png;base64," in page and page.count("<tr>") == 5
    quiet = probgram("frontier", "queens8", *GRID, "--quiet")
    assert (quiet.exit_code, quiet.output) == (0, "")


def test_no_cell_of_the_frontier_is_cut_in_a_narrow_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    wide = ["--depths", "1,2", "--widths", "1,2,4,8,16,32", "--seeds", "0", "--problems", 2, "--rounds", 0]
    result = probgram("frontier", "queens8", *wide)
    assert result.exit_code == 0 and "…" not in result.stdout, result.stdout
    row = next(line for line in result.stdout.splitlines() if re.match(r" 2 +\d\.", line))
    assert all(re.fullmatch(r"\d\.\d{3}", word) for word in row.split()[1:]) and len(row.split()) == 7


def test_depth_of_a_looped_network_counts_loops_in_noise():
    looped = ["frontier", "pointers-looped", "--transitions", 1, "--seeds", "0", "--problems", 4, "--rounds", 0]
    content = parsed(probgram(*looped, "--noise", 0.5, "--depths", "1,8", "--widths", "1,2", "--json"))
    assert content["about"]["transitions"] == 1 and content["about"]["noise"] == 0.5
    one, eight = (work[0] for work in content["multiply_adds"])
    assert 4 * one < eight < 8 * one + 1  # a step is one loop, not eight
    assert "--transitions and --noise are PyTorch's" in complaint(probgram(*looped, "--backend", "jax"))
    assert "sigma must be above 0, got 0.0" in complaint(probgram(*looped, "--noise", 0))


def test_the_frontier_as_json_names_its_schema_and_holds_every_cell():
    content = parsed(probgram("frontier", "queens8", *GRID, "--by", "pass_at_n", "--json"))
    assert content["schema"] == "probgram.frontier/1"
    assert (content["depths"], content["widths"], content["cost"]) == ([1, 2], [1, 4], [[1, 4], [2, 8]])
    assert np.shape(content["figures"]["selected_best_by_value"]) == (2, 2, 2)  # seeds, depths, widths
    assert np.shape(content["seconds"]) == np.shape(content["multiply_adds"]) == (2, 2)
    assert content["about"]["seeds"] == [0, 7] and content["html"] is None
    assert content["kind"] == content["verdicts"]["pass_at_n"]["kind"] and content["kind"] in content["verdict"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--depths", "1;2"], "depths must be integers with commas between them, got '1;2'"),
        (["--widths", "4"], "widths must name at least two different sizes to tell a gain, got [4]"),
        (["--depths", "0,1"], "depths must be integers from 1, got 0"),
        (["--by", "luck"], 'by must be "selected", "pass_at_n" or "coverage", got \'luck\''),
        (["--split", "all"], 'split must be "train" or "test", got \'all\''),
        (["--out", "file/page.html", "--problems", 2, "--rounds", 0], "file/page.html could not be written"),
    ],
)
def test_bad_input_to_the_frontier_is_one_line_on_standard_error(arguments, message):
    Path("file").touch()
    assert message in complaint(probgram("frontier", "queens8", *GRID, *arguments))


@pytest.mark.parametrize("command", [["evaluate"], ["solve", "--board", "0 1 2"]], ids=["evaluate", "solve"])
def test_weights_of_a_task_that_is_not_built_in_ask_for_it(command, trained):
    said = complaint(probgram(*command, trained[0], *SMALL))
    assert said.startswith("--task must be given: the weights were trained on 'pairs:backwards'")
    assert "module:Task or data.npz" in said


def test_a_task_with_the_blank_problem_alone_needs_none():
    result = probgram("solve", "queens8-blank", *SMALL, "--json")
    assert len(parsed(result)["problems"]) == 1
    assert "holds no problem" in complaint(probgram("solve", "queens8", *SMALL))


def test_problems_of_an_archive_are_solved(trained):
    out, data, _ = trained
    result = probgram("solve", out, "--task", data, "--board", "0 1 2", *SMALL, "--json")
    (problem,) = parsed(result)["problems"]
    assert problem["x"] == [0, 1, 2]
    right = [answer["y"] == [2, 1, 0] for answer in problem["answers"]]
    assert [answer["verified"] for answer in problem["answers"]] == right
    assert result.exit_code == (0 if any(right) else 1)


def test_answers_that_cannot_be_verified_are_all_drawn(trained, tmp_path):
    np.savez(tmp_path / "few.npz", x=X[-2:], y=Y[-2:])
    arguments = ["solve", trained[0], "--task", "few.npz", "--board", "0 1 2", *SMALL]
    (problem,) = parsed(probgram(*arguments, "--json"))["problems"]
    assert {answer["verified"] for answer in problem["answers"]} == {None}
    drawn = probgram(*arguments)
    assert drawn.exit_code == 0
    count = len(problem["answers"])
    assert f"{count} unverified (the task has no rule for it) answers" in drawn.stdout
    assert drawn.stdout.count("share") == count


def test_bad_input_to_train_is_one_line_and_writes_nothing(tmp_path):
    np.savez("few.npz", x=X[:1], y=Y[:1])
    for arguments, message in [
        (["chess"], "no task is called 'chess'"),
        (["missing.npz"], "missing.npz cannot be read"),
        (["few.npz"], "the data have 1 groups of problems, too few to hold any out"),
        (["queens5", "--dim", 12], "dim must be a multiple of twice the heads, got dim 12 and 4 heads"),
        (["queens5", "--body", "soul"], 'body must be "attention" or "mixer", got \'soul\''),
        (["queens5", "--precision", 16], "precision must be one of 32, bf16, got '16'"),
        (["queens5", "--lr", -1], "lr must be at least 0, got -1"),
        (["queens5", "--device", "toaster"], "device must be cpu, cuda or mps, got 'toaster'"),
        (["queens5", "--folder", "few.npz/run"], "few.npz/run"),
    ]:
        assert message in complaint(probgram("train", *TINY, *arguments, "-q", "--out", "never.safetensors"))
    assert not Path("never.safetensors").exists()


# -- a task of one's own --------------------------------------------------------------------------------------


def test_a_task_of_ones_own_is_trained_on_and_drawn_as_it_draws_itself(tmp_path):
    (tmp_path / "mine.py").write_text(MODULE)
    result = probgram("train", "mine:Reversed", *TINY, "--out", "own.safetensors")
    assert result.exit_code == 0, result.output
    assert "next: probgram evaluate own.safetensors --task mine:Reversed" in result.stdout
    assert (tmp_path / "runs" / "own" / "metrics.jsonl").is_file()  # where it goes unless told otherwise
    drawn = probgram("solve", "own.safetensors", "--task", "mine:made", "--board", "0 1 2", *SMALL)
    assert drawn.exit_code == 0, drawn.output
    assert "[bold] [/] :x: " in drawn.stdout


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere:Task", "the task 'nowhere:Task' cannot be imported: No module named 'nowhere'"),
        ("mine:Missing", "the task 'mine:Missing' cannot be imported: module 'mine' has no attribute 'Missing'"),
        ("mine:", "the task 'mine:' cannot be imported"),
        (":Task", "the task ':Task' cannot be imported: Empty module name"),
        (".mine:Reversed", "the task '.mine:Reversed' cannot be imported"),
        ("mine:NeedsSize", "the task 'mine:NeedsSize' cannot be made without arguments"),
        ("mine:number", "mine:number is no task: expected the attributes and methods of probgram.tasks.Task"),
    ],
)
def test_a_module_without_that_task_is_one_line_on_standard_error(name, message, tmp_path):
    (tmp_path / "mine.py").write_text(MODULE)
    assert message in complaint(probgram("evaluate", "queens8", "--task", name, *SMALL))
