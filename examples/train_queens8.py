"""Train the shipped 8-queens weights from nothing, evaluate them, and write them with their card.

    python examples/train_queens8.py                      the shipped recipe, about an hour on one CPU core
    python examples/train_queens8.py --steps 200 --out runs/quick.safetensors

Two early states of the network are kept beside the run's checkpoints: benchmarks/filter_vs_independent.py
asks what a filter does for a reasoner that is not finished. A run that was stopped goes on from its folder
when the same command is given again.
"""

import argparse
import platform
import time
from functools import partial
from pathlib import Path

import torch

from probgram import checkpoint, fit, plots, tasks
from probgram.inference import evaluate, fit_heads
from probgram.inference.objective import ObjectiveConfig
from probgram.inference.svi import FitView
from probgram.models import GRAM, GRAMGuide

STEPS = 15_000
HEAD_STEPS = 1_500
KEPT = (1_500, 2_500)  # one draw is right in a little over half, and in three quarters, of the cases
FIGURES = ("valid", "selected_first_verified", "pass_at_n", "coverage_macro_all", "coverage_macro_several",
           "total_variation_several")  # fmt: skip


def reached(step: int, view: FitView) -> bool:
    """Whether training has come to this step; what `fit` does with True is stop."""
    return view.step == step


def main() -> None:
    """Train, evaluate, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS, help="optimiser steps")
    parser.add_argument("--split", choices=("orbit", "input"), default="orbit", help="how problems are held out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder", type=Path, default=None, help="checkpoints and metrics; default runs/queens8-SPLIT"
    )
    parser.add_argument("--out", type=Path, default=Path("models/pretrained/queens8.safetensors"))
    parser.add_argument("--problems", type=int, default=None, help="held-out problems evaluated; default all")
    chosen = parser.parse_args()
    folder = chosen.folder or Path(f"runs/queens8-{chosen.split}")
    torch.set_num_threads(1)  # these products are small: a second thread buys little
    torch.manual_seed(chosen.seed)

    task = tasks.Queens(8, split=chosen.split)
    chain = GRAM.for_task(task)
    guide = GRAMGuide(chain)
    started = time.perf_counter()
    for stop in (*(step for step in KEPT if step < chosen.steps), chosen.steps):
        result = fit(
            chain, guide, task, chosen.steps, objective=ObjectiveConfig(), folder=folder, seed=chosen.seed,
            precision="bf16", callbacks=[partial(reached, stop)],
        )  # fmt: skip
        if result.finished or result.steps != stop:  # done, or Ctrl-C
            break
        checkpoint.save_chain(folder / f"step-{stop}.safetensors", chain, guide, {"task": task.name, "steps": stop})
    if not result.finished:
        return
    fit_heads(
        chain,
        ("judge",),
        task,
        HEAD_STEPS,
        folder=folder / f"heads-{result.steps}",
        seed=chosen.seed,
        precision="bf16",
    )
    minutes = (time.perf_counter() - started) / 60
    plots.training_curve(folder).savefig(folder / "training.png", dpi=120)
    report = evaluate(chain, task, width=20, depth=16, seeds=(0, 1, 2), problems=chosen.problems)
    print(report.table())
    about = {
        "task": task.name,
        "split": chosen.split,
        "seed": chosen.seed,
        "steps": result.steps,
        "minutes": round(minutes, 1),
        "processor": platform.machine(),
        "evaluation": report.about,
        "figures": {name: round(report.mean(name), 5) for name in FIGURES if name in report.figures},
    }
    checkpoint.save_chain(chosen.out, chain, guide, about)
    chosen.out.with_suffix(".evaluation.json").write_text(report.to_json(), encoding="utf-8")
    print(f"{chosen.out} written after {minutes:.1f} minutes")


if __name__ == "__main__":
    main()
