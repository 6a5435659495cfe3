"""docs/results.md says what was measured, and nothing else."""

import json
from pathlib import Path

from benchmarks.results import PAGE, page


def test_the_page_of_results_is_what_the_measurements_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m benchmarks.results writes it"


def test_the_table_of_scaling_is_what_was_measured() -> None:
    """The columns `devices` to `sampling, ms`, without the two that are of the paper."""
    root = Path(__file__).resolve().parents[1]
    report = json.loads((root / "benchmarks/results/scaling/forced_devices.json").read_text(encoding="utf-8"))
    text = (root / "docs/scaling.md").read_text(encoding="utf-8")
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
