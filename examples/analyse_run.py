"""Load a saved run, say in words what is fine and what is not, and write the pictures and the report.

python examples/analyse_run.py run.nc --out analysis      any file that `Trajectories.save` wrote
python examples/analyse_run.py                            makes a run first: three boards of eight queens

The exit code is 1 where something is in trouble, so that a pipeline can stop there.
"""

import argparse
import sys
from pathlib import Path

import arviz
import matplotlib
import numpy as np

from probgram import Trajectories, plots, report, tasks
from probgram.inference import diagnose, sample
from probgram.inference.diagnostics import distinct_answers, settled
from probgram.models import GRAM


def make(path: Path) -> Path:
    """Three boards with one, few and many answers, 64 trajectories of 16 depth steps."""
    task = tasks.Queens(8)
    x = np.stack([task.encode(board) for board in ("0 4 . . . . . 3", "2 . . . . . . 5", ". . . 0 . . . .")])
    run = sample(GRAM.from_pretrained("queens8"), x, width=64, depth=16, seed=0, task=task.name)
    return run.save(path)


def main() -> int:
    """Load, look, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, help=".nc, .zarr or .safetensors")
    parser.add_argument("--problem", type=int, default=1, help="whose pictures are drawn")
    parser.add_argument("--out", type=Path, default=Path("analysis"))
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    matplotlib.use("Agg")
    path = chosen.run or make(chosen.out / "run.nc")
    run = Trajectories.load(path)
    task = tasks.from_name(run.task)

    diagnosis = diagnose(run, task)
    print(diagnosis)
    print("\nproblem  different answers  settled at  ESS")
    for b in range(run.problems):
        print(f"{b:7}  {distinct_answers(run)[-1, b]:17}  {settled(run)[b]:10}  {run.ess[-1, b]:.1f}")
    print()
    print(arviz.summary(run.to_arviz(), var_names=["answer_number"]))

    lines = [plots.answers_over_depth] if run.ancestors is None else [plots.answers_over_depth, plots.genealogy]
    for draw in lines:
        draw(run, task, problem=chosen.problem).figure.savefig(chosen.out / f"{draw.__name__}.png", dpi=120)
    for draw in (plots.answer_posterior, plots.boards_over_depth):
        axes = draw(run, task, problem=chosen.problem)
        axes.flat[0].figure.savefig(chosen.out / f"{draw.__name__}.png", dpi=120)
    (chosen.out / "report.html").write_text(report.report(run, task, diagnosis=diagnosis), encoding="utf-8")
    print(f"\npictures and report.html are in {chosen.out}")
    return int(diagnosis.status == "trouble")


if __name__ == "__main__":
    sys.exit(main())
