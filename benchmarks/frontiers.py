"""Depth or width, measured on shipped weights: one task with several answers, one that is serial.

python -m benchmarks.frontiers queens8 pointers

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


def queens8() -> tuple[Any, Any]:
    """Several answers a problem."""
    return GRAM.from_pretrained("queens8"), tasks.Queens(8)


def pointers() -> tuple[Any, Any]:
    """Serial: a loop is a depth step, in noise of a tenth."""
    chain = LoopedTransformer.from_pretrained("pointers-looped")
    chain.transitions = 1
    return Perturbed(chain, 0.1, on=("h",)), tasks.from_name(chain.about["task"])


CASES = {"queens8": queens8, "pointers": pointers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=[*CASES])
    parser.add_argument("--problems", type=int, default=128)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    for name in chosen.names:
        chain, task = CASES[name]()
        found = frontier(chain, task, (1, 2, 4, 8, 16), (1, 2, 4, 8, 16), (0, 1, 2), chosen.problems)
        print(found.table(), found.verdict, sep="\n\n", flush=True)
        text = json.dumps(found.as_dict() | {"table": found.table()}, indent=1) + "\n"
        checkpoint.write_bytes(RESULTS / f"{name}.json", text.encode())
        found.plot().savefig(PICTURES / f"frontier_{name}.png", dpi=110)


if __name__ == "__main__":
    main()
