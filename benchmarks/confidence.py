"""Does a run know when it is wrong? Confidence, calibration and what was never a board, on the shipped weights.

    python -m benchmarks.confidence

Held-out problems, three sampling seeds, prior samples. queens8 is nearly always right at its usual depth, so its
early depth steps are here too; looped pointers are shown in the noise of `benchmarks/frontiers.py` and as they are.
Labels judge the confidences, and no confidence sees any. Writes confidence.md; about four minutes of one core.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from probgram import checkpoint, tasks
from probgram.inference import auroc, reliability, risk_coverage, sample, vote
from probgram.inference.calibration import distance_to_uniform, of_answers, of_head
from probgram.inference.confidence import Confidence, expected, halt, share, value
from probgram.inference.figures import chosen_problems
from probgram.inference.potentials import energy
from probgram.models import GRAM, LoopedTransformer, Perturbed
from probgram.trajectories import Trajectories

PAGE = Path(__file__).with_suffix(".md")
SEEDS, WIDTH, BOARDS = (0, 1, 2), 20, 192
QUEENS = tasks.Queens(8)
HEADS: dict[str, Confidence] = {"value head": value, "halt head": halt}
QUEENS_BY: dict[str, Confidence] = {"vote share": share, **HEADS, "E[energy]": expected(energy(QUEENS))}
POINTERS_BY: dict[str, Confidence] = {"vote share": share, **HEADS}

Board = NDArray[np.int64]


class Setting(NamedTuple):
    """A row of runs, one a seed, looked at after `depth` depth steps."""

    name: str
    task: Any
    runs: list[Trajectories]
    depth: int
    by: dict[str, Confidence]


def main() -> None:
    torch.set_num_threads(1)
    started = time.process_time()
    settings = [*queens(), *pointers()]
    sections = [chosen_answers(settings), heads(settings), answers(settings), unsolvable(settings[0].runs[0])]
    seconds = time.process_time() - started
    text = f"{HEAD}\n" + "\n\n".join(sections) + "\n"
    print(text, f"\n{seconds:.0f} seconds")
    checkpoint.write_bytes(PAGE, text.encode())


# -- runs -----------------------------------------------------------------------------------------------------


def queens() -> Iterator[Setting]:
    """Held-out boards; a run of eight depth steps holds those of one, two and four."""
    chain, x = GRAM.from_pretrained("queens8"), chosen_problems(QUEENS, problems=BOARDS)
    runs = [sample(chain, x, WIDTH, 8, seed) for seed in SEEDS]
    for depth in (1, 2, 4, 8):
        yield Setting(f"queens8, {depth} depth step{'s' * (depth > 1)}", QUEENS, runs, depth, QUEENS_BY)


def pointers() -> Iterator[Setting]:
    """All held-out problems: a loop is a depth step, in noise of a tenth; and without noise, one trajectory."""
    chain = LoopedTransformer.from_pretrained("pointers-looped")
    task = tasks.from_name(chain.about["task"])
    x = chosen_problems(task)
    chain.transitions = 1
    noisy = [sample(Perturbed(chain, 0.1, on=("h",)), x, WIDTH, 8, seed) for seed in SEEDS]
    for depth in (7, 8):
        yield Setting(f"pointers in noise, {depth} loops", task, noisy, depth, POINTERS_BY)
    yield Setting("pointers as they are, 8 loops", task, [sample(chain, x, 1, 8)], 8, HEADS)


# -- tables ---------------------------------------------------------------------------------------------------


def chosen_answers(settings: list[Setting]) -> str:
    """Each confidence of the vote's answer against whether it is right."""
    rows = []
    for setting in settings:
        for name, confidence in setting.by.items():
            figures = []
            for run in setting.runs:
                answer = vote(run, setting.depth - 1).answers
                right = setting.task.verify(run.x, answer)
                sure = confidence(run, answer, setting.depth - 1)
                measured, curve = reliability(sure, right), risk_coverage(sure, right)
                half = curve.risk[len(right) // 2 - 1]
                errors = int((~right).sum())
                figures.append(
                    (errors, auroc(sure, right), measured.error, measured.floor, half, curve.area, curve.least)
                )
            columns = [pm([f[i] for f in figures], 0 if i == 0 else 3) for i in range(7)]
            rows.append([setting.name, name, str(len(setting.runs[0])), *columns])
    head = ["setting", "confidence", "problems", "wrong", "AUROC", "ECE", "floor", "risk at 50%", "area", "least"]
    return "## The vote's answer: is it right?\n\n" + table(head, rows)


def heads(settings: list[Setting]) -> str:
    """Both heads over all trajectories, against what each predicts."""
    rows = []
    for setting in settings:
        step = setting.depth - 1
        for head in ("value", "halt"):
            figures = []
            for run in setting.runs:
                said = run.heads[head][step].sigmoid().flatten()
                right = setting.task.verify(run.x, run.answers[-1 if head == "value" else step]).flatten()
                wide, even = (
                    of_head(run, setting.task, head, step, adaptive=adaptive) for adaptive in (False, True)
                )
                errors = (wide.error, wide.floor, even.error, even.floor)
                figures.append((float(said.mean()), float(right.float().mean()), auroc(said, right), *errors))
            rows.append([setting.name, head, *(pm(list(column)) for column in zip(*figures, strict=True))])
    head_row = ["setting", "head", "mean said", "right", "AUROC", "ECE", "floor", "equal-mass ECE", "floor"]
    return "## The heads: over all trajectories\n\n" + table(head_row, rows)


def answers(settings: list[Setting]) -> str:
    """Shares of answers against the uniform law over solutions."""
    rows = []
    for setting in settings:
        step, figures = setting.depth - 1, []
        for run in setting.runs:
            shares, distance = of_answers(run, setting.task, step), distance_to_uniform(run, setting.task, step)
            row = [shares.error, shares.floor]
            for kept in (distance.solutions > 0, distance.solutions > 1):
                for part in (distance.total_variation, distance.floor):
                    row.append(float(part[kept].mean()) if kept.any() else np.nan)
            figures.append(row)
        rows.append([setting.name, *(pm(list(column)) for column in zip(*figures, strict=True))])
    head = ["setting", "ECE", "floor", "total variation", "floor", "several solutions", "floor"]
    return "## Shares of answers: are the solutions equally frequent?\n\n" + table(head, rows)


def unsolvable(solvable: Trajectories) -> str:
    """Boards without a solution and noise against held-out boards: AUROC of having a solution."""
    chain, rng = GRAM.from_pretrained("queens8"), np.random.default_rng(0)
    runs = {
        name: sample(chain, draw(solvable.x.numpy(), rng, 64), WIDTH, 8)
        for name, draw in (("attacking", attacking), ("no completion", without_completion), ("random", noise))
    }
    rows = []
    for name, run in runs.items():
        for depth in (2, 8):
            labels = np.repeat([True, False], [len(solvable), len(run)])
            row = [name, str(depth)]
            for confidence in QUEENS_BY.values():
                sure = [confidence(part, None, depth - 1).numpy() for part in (solvable, run)]
                row.append(
                    f"{auroc(np.concatenate(sure), labels):.3f} ({sure[0].mean():.2f}, {sure[1].mean():.2f})"
                )
            rows.append(row)
    head = ["64 boards", "depth", *QUEENS_BY]
    return (
        f"## Is there a solution at all? {len(solvable)} held-out boards against others\n\n"
        "AUROC (mean confidence in held-out boards, in the others).\n\n" + table(head, rows)
    )


def pm(values: list[float], digits: int = 3) -> str:
    """Mean ± standard deviation over seeds."""
    if np.isnan(values).all():
        return "–"
    spread = f" ± {np.nanstd(values, ddof=1):.{digits}f}" if np.isfinite(values).sum() > 1 else ""
    return f"{np.nanmean(values):.{digits}f}{spread}"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# -- boards without a solution --------------------------------------------------------------------------------


def attacking(x: Board, rng: np.random.Generator, rows: int) -> Board:
    """One to three queens given, as in training, of which two attack each other."""
    return _drawn(x, rng, rows, lambda board: not consistent(board))


def without_completion(x: Board, rng: np.random.Generator, rows: int) -> Board:
    """One to three queens given, none attacked, and no way to place the others."""
    return _drawn(x, rng, rows, lambda board: consistent(board) and not len(QUEENS.solutions(board)))


def noise(x: Board, rng: np.random.Generator, rows: int) -> Board:
    """Every row blank or any of eight columns, alike: seven queens in the mean."""
    return rng.integers(9, size=(rows, 8))


def consistent(board: Board) -> bool:
    """Whether no two of the queens given attack each other."""
    (row,) = np.nonzero(board < 8)
    column = board[row]
    apart = np.abs(row[:, None] - row), np.abs(column[:, None] - column)
    return not ((apart[1] == 0) | (apart[0] == apart[1]))[~np.eye(len(row), dtype=bool)].any()


def _drawn(x: Board, rng: np.random.Generator, rows: int, wanted: Callable[[Board], bool]) -> Board:
    """Given queens put on random squares, as many as a held-out board has, until so many boards are wanted."""
    found: list[Board] = []
    while len(found) < rows:
        given = int((x[rng.integers(len(x))] < 8).sum())
        board = np.full(8, 8)
        board[rng.choice(8, given, replace=False)] = rng.integers(8, size=given)
        if wanted(board) and not any((board == other).all() for other in found):
            found.append(board)
    return np.array(found)


HEAD = """# Does a run know when it is wrong?

`python -m benchmarks.confidence`: shipped weights, held-out problems, prior samples, 20 trajectories; mean ±
standard deviation over three sampling seeds (0, 1, 2) of the one trained network. Three and a half minutes of one
core of a 2-core x86-64 machine. Labels judge the confidences; no confidence sees one.

*wrong*: problems whose vote is wrong. *AUROC*: probability that a right answer is surer than a wrong one. *ECE*:
expected calibration error, ten bins; *floor*: what a perfectly calibrated forecaster of the same confidences would
have (over all trajectories: one whose trajectories of a problem are right together; of shares: as many uniform
draws). *risk at 50%*: share of wrong answers among the surer half. *area*: mean risk over all coverages; *least*:
that of a perfect ranking.

## What it says

* **queens8 at its usual depth gives nothing to tell apart**: no vote of 3 × 192 was wrong from two depth steps on.
  After one step a tenth is, and vote share, halt head and mean energy all put right before wrong (AUROC 0.97);
  answering the surer half risks nothing. The value head speaks of the end, where all will be right, and ranks worse
  (0.85).
* **The halt head of queens8 is calibrated** over trajectories at every depth (error about the floor or below it),
  and ranks them (AUROC 0.94 after one step, 0.985 after two; from four on so few are wrong that AUROC says little).
  The vote share is not calibrated, and need not be: where a board has several solutions it is low although the
  answer is right.
* **The heads of the looped pointers are far too sure**: they say 0.998 where 0.90 are right, on problems they were
  not trained on; on those of training nearly all were right. They rank well all the same (0.87), so a threshold has
  to be read off the risk, not off the probability. In noise the vote share ranks better (0.93) and is nearer to
  calibrated.
* **Boards without a solution** are told apart by the mean energy without exception. The halt head does it after two
  depth steps (0.94 to 0.98) and less well after eight (0.65 to 0.93): its mean on such boards, none of which it saw
  in training, rises from about 0.55 to 0.9. The value head says nearly 1 of every board.
* **So**: where the task counts violations without knowing the answer, take `expected(energy(task))`; else the halt
  head, and with one right answer the vote share, at a threshold read off the risk on problems with known answers.
"""


if __name__ == "__main__":
    main()
