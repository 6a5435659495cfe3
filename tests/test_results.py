"""docs/results.md says what was measured, and nothing else."""

import json
from pathlib import Path

import pytest

from benchmarks.results import PAGE, command, noise_widened, page
from benchmarks.trainings import parts_and_seeds
from benchmarks.widening import chosen

TRAININGS = "python -m benchmarks.trainings"


def test_the_page_of_results_is_what_the_measurements_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m benchmarks.results writes it"


@pytest.mark.parametrize(
    ("name", "about", "said"),
    [
        ("queens8", {}, f"`{TRAININGS} queens8 --problems 256`"),
        (
            "queens8-input",
            {"training steps": 8_000, "split": "input test"},
            f"`{TRAININGS} queens8 --split input --steps 8000 --problems 256`",
        ),
        (
            "queens8-blank",
            {"task": "queens8-blank", "training steps": 6_000, "problems": 1},
            f"`{TRAININGS} queens8-blank`",
        ),
        (
            "queens8-long",
            {
                "split": "orbit test",
                "training seed": "0, 1, 2",
                "training steps": 47_000,
                "training parts": "15000, 12000, 20000",
            },
            f"`{TRAININGS} queens8`, "
            f"then `{TRAININGS} queens8 --start FILE --folder runs/queens8-long-1 --seed 1 --steps 12000`, "
            f"then `{TRAININGS} queens8 --start FILE --folder runs/queens8-long-2 --seed 2 --steps 20000 "
            "--problems 256`, where FILE is what the command before has made",
        ),
        (
            "queens8",
            {"task": "queens7"},
            f"Of an earlier recipe, on other problems; today's is `{TRAININGS} queens8`",
        ),
        (
            "sudoku9",
            {"task": "sudoku9", "training seed": 2},
            f"`{TRAININGS} sudoku9 --data FOLDER --seed 2 --steps 15000 --problems 256`, where FOLDER has "
            "sudoku/sudoku10k.txt",
        ),
    ],
)
def test_the_command_says_what_is_not_the_recipe_s_own(name: str, about: dict[str, object], said: str) -> None:
    common = {
        "task": "queens8",
        "problems": 256,
        "several answers": 9,
        "training steps": 15_000,
        "training seed": 0,
    }
    assert command(name, common | about) == said


def test_parts_of_a_training_are_told_one_by_one() -> None:
    first = {"seed": 0, "steps": 10, "parts": None}
    assert parts_and_seeds({}, 10, 0) == {"seed": 0, "steps": 10, "parts": None}
    second = parts_and_seeds(first, 20, 1)
    assert second == {"seed": "0, 1", "steps": 30, "parts": "10, 20"}
    assert parts_and_seeds(second, 5, 2) == {"seed": "0, 1, 2", "steps": 35, "parts": "10, 20, 5"}


def test_a_factor_of_noise_is_chosen_by_coverage_among_those_nearly_as_valid(tmp_path: Path) -> None:
    figures = {
        factor: {"valid": valid, "coverage_macro_all": coverage}
        for factor, valid, coverage in (
            ("1", 0.99, 0.8),
            ("1.2", 0.987, 0.9),
            ("1.4", 0.98, 0.92),
            ("2", 0.986, 0.85),
        )
    }
    assert chosen(figures) == "1.2"
    split = {factor: {key: [value] for key, value in row.items()} for factor, row in figures.items()}
    about = {"width": 20, "depth": 16, "training problems": 3, "held-out problems": 2}
    path = tmp_path / "queens8.json"
    path.write_text(json.dumps({"about": about, "chosen": "1.2", "train": split, "test": split}))
    said = noise_widened([path])
    assert "python -m benchmarks.widening queens8`" in said
    assert "| queens8 | 16 | 3 training | **1.2** | **0.9870** | – | – | **0.9000** | – | – |" in said


def test_the_table_of_scaling_is_what_was_measured() -> None:
    """The columns `devices` to `sampling, ms`, without the two that are of the paper."""
    root = Path(__file__).resolve().parents[1]
    report = json.loads((root / "benchmarks/results/scaling/forced_devices.json").read_text(encoding="utf-8"))
    text = (root / "docs/scaling.md").read_text(encoding="utf-8")
    million = report["a million particles"]
    assert f"ancestor was {million['farthest']:,} slots away" in text
    assert f"{million['turns']['1024']:.2f} on average over 1,024" in text
    table = text.split("| devices | weights, kB |")[1].split("\n\n")[0].splitlines()[2:]
    rows = [[float(cell.replace(",", "")) for cell in line.strip("|").split("|")] for line in table]
    assert [row[0] for row in rows] == [int(name) for name in report if name.isdigit()]
    for devices, weights, _, turns, states, _, ring, _, *times in rows:
        run = report[f"{devices:.0f}"]
        sent, between = run["filter"]["bytes"], run["islands"]["bytes"]
        measured = [
            sent.get("all-gather", 0),
            sent.get("collective-permute", 0),
            between.get("collective-permute", 0),
        ]
        assert [weights, states, ring] == [round(number / 1e3, 1) for number in measured]
        assert turns == run["filter"]["turns"]
        assert times == [round(run[what]["seconds"] * 1e3) for what in ("filter", "islands", "sampling")]
