"""Sudoku 9x9: what the weights solve, by the number of given cells and on the field's hard collections.

    python -m benchmarks.sudoku9 --data FOLDER

The folder has sudoku/sudoku10k.txt, easy50.txt, top95.txt and sudokus_17.txt.
Boards are those of held-out symmetry orbits; of the other collections, those no image of which was trained on.
"With cells given" are held-out boards some of whose blanks were filled from their answers, at random, the same
boards in each of these rows. One network, prior samples, width 20, depth 64; ± is the standard error over
problems. A row that is there is not measured again, unless the weights or the most boards of a row are others.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.trainings import provenance
from probgram import checkpoint, tasks
from probgram.inference import best, sample, vote
from probgram.models import GRAM
from probgram.tasks.sudoku_data import read_boards

RESULT = Path(__file__).parent / "results" / "sudoku9" / "by_clues.json"
WIDTH, DEPTH, ROWS = 20, 64, 32
BANDS = ((17, 17), (21, 23), (24, 26), (27, 34))  # the collection has next to none with 18 to 20
GIVEN = (25, 33)


def measure(chain: Any, task: tasks.Sudoku, x: NDArray[np.int64], seed: int) -> dict[str, Any]:
    """Figures of boards `[M, 81]`."""
    right: dict[str, list[NDArray[np.bool_]]] = {}
    for row in range(0, len(x), ROWS):
        run = sample(chain, x[row : row + ROWS], WIDTH, DEPTH, seed, keep="last")
        valid = task.verify(run.x, run.answers[-1]).numpy()  # [N, B]
        parts = {"one draw": valid.mean(0), "pass@20": valid.any(0)}
        for name, chosen in (("vote", vote(run)), ("best by value", best(run))):
            parts[name] = task.verify(run.x, chosen.answers).numpy()
        for name, part in parts.items():
            right.setdefault(name, []).append(part)
    figures = {name: np.concatenate(parts).astype(float) for name, parts in right.items()}
    error = figures["one draw"].std(ddof=1) / np.sqrt(len(x))
    return {"problems": len(x), "se": round(float(error), 4)} | {
        name: round(float(values.mean()), 4) for name, values in figures.items()
    }


def boards(task: tasks.Sudoku, folder: Path, most: int) -> dict[str, NDArray[np.int64]]:
    """The rows of the table, at most so many boards each."""
    generator = np.random.default_rng(0)
    x, y = task.examples("test")
    clues = task.clues(x)
    trained = np.unique(task.orbits(task.examples("train")[0]))

    def few(chosen: NDArray[np.int64]) -> NDArray[np.int64]:
        return generator.permutation(chosen)[:most]

    rows = {
        f"held out, {low} clues" if low == high else f"held out, {low} to {high} clues": x[
            few(np.flatnonzero((clues >= low) & (clues <= high)))
        ]
        for low, high in BANDS
    }
    some = few(np.flatnonzero(clues == 17))
    order = generator.random((len(some), 81)) + (x[some] == 0)  # given cells come first
    for given in GIVEN:
        shown = order.argsort(1).argsort(1) < given
        rows[f"held out, 17 clues, with {given} cells given"] = np.where(shown, y[some], 0)
    for name in ("easy50", "top95", "sudokus_17"):
        others = read_boards(folder / f"{name}.txt", (3, 3)).x.astype(np.int64)
        others = others[few(np.arange(len(others)))]
        rows[name] = others[~np.isin(task.orbits(others), trained)]
    return rows


def table(found: dict[str, Any]) -> str:
    """What was measured, as Markdown."""
    names = ("one draw", "vote", "best by value", "pass@20")
    lines = ["| boards | problems | " + " | ".join(names) + " |", "|---" * (2 + len(names)) + "|"]
    for row, figures in found["rows"].items():
        cells = [f"{figures[name]:.3f}" for name in names]
        cells[0] += f" ± {figures['se']:.3f}"
        lines.append(f"| {row} | {figures['problems']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--weights", default="sudoku9", help="a shipped name or a file")
    parser.add_argument("--problems", type=int, default=48, help="the most boards in a row of the table")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    chain = GRAM.from_pretrained(chosen.weights)
    task = tasks.Sudoku(3, chosen.data / "sudoku" / "sudoku10k.txt")
    made = {"weights": checkpoint.fingerprint(chain.state_dict()), "width": WIDTH, "depth": DEPTH}
    made |= {"seed": chosen.seed, "boards a row": chosen.problems, "data": "sudoku/sudoku10k.txt"}
    made |= provenance(chosen.weights)
    found = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    if found.get("about") != made:
        found = {"about": made, "rows": {}}
    for name, x in boards(task, chosen.data / "sudoku", chosen.problems).items():
        if name not in found["rows"]:
            found["rows"][name] = measure(chain, task, x, chosen.seed)
            checkpoint.write_bytes(RESULT, (json.dumps(found, indent=1) + "\n").encode())
            print(name, found["rows"][name], flush=True)
    print(table(found))


if __name__ == "__main__":
    main()
