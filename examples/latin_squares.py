"""Data of your own in ten lines: fill the blanks of 4×4 Latin squares, trained in two CPU minutes.

python examples/latin_squares.py                  about two minutes on one CPU core
python examples/latin_squares.py --steps 20       a look at the code path
"""

import argparse
from itertools import permutations, product

import numpy as np
import torch

from probgram import fit, solve, tasks
from probgram.inference import evaluate
from probgram.models import GRAM, GRAMGuide


def latin_squares() -> np.ndarray:
    """All 576 squares with 1 … 4 once in every row and column, `[576, 16]`."""
    rows = list(permutations(range(1, 5)))
    squares = [s for s in product(rows, repeat=4) if all(len(set(column)) == 4 for column in zip(*s, strict=True))]
    return np.array(squares).reshape(-1, 16)


def right(x, y):
    """Whether y keeps what x gives (0: blank) and holds 1 … 4 once in every row and column; for any array."""
    square = y.reshape(*y.shape[:-1], 4, 4)
    once = [(square == symbol).sum(axis) == 1 for symbol in (1, 2, 3, 4) for axis in (-1, -2)]
    kept = ((x == 0) | (x == y)).all(-1)
    return sum(line.all(-1) * 1 for line in once) + kept * 1 == 9


def main() -> None:
    """Make the data, train, solve, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2500)
    steps = parser.parse_args().steps
    torch.manual_seed(0)

    # The ten lines.
    y = np.repeat(latin_squares(), 30, axis=0)
    x = np.where(np.random.default_rng(0).random(y.shape) < 0.6, 0, y)
    task = tasks.Pairs(x, y, verify=right, columns=4)
    chain = GRAM.for_task(task, dim=64, hidden=128, refinements=2, transitions=1, body="mixer")
    fit(chain, GRAMGuide(chain), task, steps, batch=64, lr=2e-3)
    print(solve(chain, "1 0 0 0  0 0 0 0  0 0 3 0  0 0 0 0", task=task))

    print(evaluate(chain, task, width=20, depth=8, seeds=(0, 1, 2), problems=100).table())


if __name__ == "__main__":
    main()
