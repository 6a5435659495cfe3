"""Depth or width, measured on shipped weights: one task with several answers, one that is serial, one that is hard.

    python -m benchmarks.frontiers queens8 pointers
    python -m benchmarks.frontiers sudoku9 --data FOLDER        which has sudoku/sudoku10k.txt

Held-out problems, three sampling seeds. Looped pointers are deterministic: noise on the state at every loop (PTRM)
makes trajectories differ, so that width has something to work with.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from probgram import checkpoint, tasks
from probgram.inference import frontier
from probgram.models import GRAM, LoopedTransformer, Perturbed

RESULTS, PICTURES = Path(__file__).parent / "results" / "frontiers", Path(__file__).parent.parent / "docs"
Case = tuple[Any, Any, tuple[int, ...]]  # chain, task, depths


def queens8(data: Path) -> Case:
    """Several answers a problem."""
    return GRAM.from_pretrained("queens8"), tasks.Queens(8), (1, 2, 4, 8, 16)


def pointers(data: Path) -> Case:
    """Serial: a loop is a depth step, in noise of a tenth."""
    chain = LoopedTransformer.from_pretrained("pointers-looped")
    chain.transitions = 1
    return Perturbed(chain, 0.1, on=("h",)), tasks.from_name(chain.about["task"]), (1, 2, 4, 8, 16)


def sudoku9(data: Path) -> Case:
    """One answer a problem, many steps away: trained at depth 8."""
    return GRAM.from_pretrained("sudoku9"), tasks.Sudoku(3, data / "sudoku" / "sudoku10k.txt"), (4, 8, 16, 32, 64)


CASES = {"queens8": queens8, "pointers": pointers, "sudoku9": sudoku9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=[*CASES])
    parser.add_argument("--problems", type=int, default=128)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data that tasks read")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    for name in chosen.names:
        chain, task, depths = CASES[name](chosen.data)
        found = frontier(chain, task, depths, (1, 2, 4, 8, 16), (0, 1, 2), chosen.problems)
        print(found.table(), found.verdict, sep="\n\n", flush=True)
        text = json.dumps(found.as_dict() | {"table": found.table()}, indent=1) + "\n"
        checkpoint.write_bytes(RESULTS / f"{name}.json", text.encode())
        found.plot().savefig(PICTURES / f"frontier_{name}.png", dpi=110)


if __name__ == "__main__":
    main()
