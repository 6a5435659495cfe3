"""The shipped weights, each from nothing: train, judge on held-out problems, write weights and figures.

    python -m benchmarks.trainings queens8                the shipped recipe, about an hour on one CPU core
    python -m benchmarks.trainings queens10 colouring8    several, one after the other
    python -m benchmarks.trainings queens8 --steps 200 --out runs/quick
    python -m benchmarks.trainings sudoku9 digits --data FOLDER   which has sudoku/sudoku10k.txt and mnist/
    python -m benchmarks.trainings colouring8 --start colouring8 --steps 20000 --seed 1     goes on from weights

A training that was stopped goes on from its folder when the same command is given again. Figures are of prior
samples on problems that were held out, with three sampling seeds.
"""

import argparse
import json
import platform
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from probgram import checkpoint, fit, metrics, plots, tasks
from probgram.inference import evaluate, evidence_bound, fit_heads, recipes, sample
from probgram.inference.figures import Report
from probgram.inference.objective import ObjectiveConfig
from probgram.inference.svi import FitView
from probgram.models import GRAM, TRM, GRAMGuide, LoopedTransformer

WEIGHTS, RESULTS = Path("models/pretrained"), Path(__file__).parent / "results"
FIGURES = ("valid", "selected_vote", "selected_first_verified", "pass_at_n", "coverage_macro_all",
           "coverage_macro_several", "total_variation_several")  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """How weights are made."""

    task: Callable[..., Any]
    steps: int
    reads: dict[str, str] = field(default_factory=dict)  # arguments of the task: files in the folder of data
    model: Any = GRAM
    guided: bool = True
    choices: dict[str, Any] = field(default_factory=dict)  # fields of the model's configuration
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    settings: dict[str, Any] = field(default_factory=dict)  # fields of `FitConfig`
    head_steps: int = 1_500
    kept: tuple[int, ...] = ()  # early states of the network that are kept beside its checkpoints
    width: int = 20
    depth: int = 16


# The answer tells every intermediate result: few hops are learned on the way to many. Products are a table of 120
# by 120, most of which has to be seen: 20,000 words are too few. Of words of 8 nothing is learned in 3,000 steps.
SERIAL: dict[str, tuple[Any, int, dict[str, Any]]] = {  # task, transitions of the loop, changes of the recipe
    "pointers": (partial(tasks.Pointers, 8, hops=6, targets="every", maps="permutation"), 8, {"steps": 4_000}),
    "permutations": (
        partial(tasks.Permutations, 4, targets="every", train=400_000),
        4,
        {"steps": 6_000, "settings": {"batch": 256}},
    ),
}
RECURSIONS: dict[str, Callable[[int], dict[str, Any]]] = {
    "looped": lambda transitions: {
        "model": LoopedTransformer,
        "guided": False,
        "choices": {"blocks": 1, "transitions": transitions},
        "objective": recipes.end_to_end(),
        "width": 1,
        "depth": 1,  # as trained: a loop without deep supervision does not keep its answer
    },
    "trm": lambda _: {
        "model": TRM,
        "guided": False,
        "choices": {"blocks": 1, "refinements": 1, "transitions": 1},
        "objective": recipes.deep_supervision(8),
        "width": 1,
        "depth": 8,
    },
    "gram": lambda _: {"choices": {"blocks": 1, "refinements": 1, "transitions": 1}, "depth": 8},
}
# Short transitions leave time for many more optimiser steps, which pays where problems are large; 64 depth steps of
# them pass through f as often as 16 of the usual ones. Rows of a board have fixed places, and a mixer has a weight
# for every two of them; a graph's vertices have none.
SHORT = {"refinements": 1, "transitions": 1}
RECIPES = {
    # One draw is right in a little over half, and in three quarters, of the cases in the early states, of which
    # benchmarks/filter_vs_independent.py asks what a filter does for a reasoner that is not finished.
    "queens8": Recipe(partial(tasks.Queens, 8), 15_000, kept=(1_500, 2_500)),
    "queens10": Recipe(
        partial(tasks.Queens, 10), 66_000, choices=SHORT | {"body": "mixer"}, settings={"lr": 2e-3}, depth=64
    ),
    "colouring8": Recipe(partial(tasks.Colouring, 8, 0.5), 10_000),
    "colouring10": Recipe(partial(tasks.Colouring, 10, 0.5), 40_000),
    "sudoku4": Recipe(partial(tasks.Sudoku, 2), 4_000),
    "queens8-blank": Recipe(
        partial(tasks.from_name, "queens8-blank"), 6_000, objective=recipes.generation(), head_steps=0, width=2_000
    ),
    "sudoku9": Recipe(
        partial(tasks.Sudoku, 3, reveal=1.0),
        24_000,
        {"data": "sudoku/sudoku10k.txt"},
        choices={"dim": 64, "hidden": 172, "refinements": 2, "transitions": 1, "body": "mixer"},
        settings={"augment": True, "batch": 64, "lr": 2e-3},
        head_steps=500,
        depth=64,  # the hard boards are still being solved there: `benchmarks.frontiers sudoku9`
    ),
    # The noise of tokens is independent within a transition, so it takes several to draw what belongs together;
    # with one to a depth step whatever a guide says costs as much as it saves, and it learns to say nothing.
    "digits": Recipe(
        tasks.Digits,
        5_000,
        {"folder": "mnist"},
        choices={"dim": 64, "hidden": 172, "refinements": 1, "transitions": 3},
        objective=recipes.generation(4, warm_up=1_500),
        settings={"batch": 64},
        head_steps=0,
        width=500,
        depth=4,
    ),
    **{
        f"{serial}-{name}": Recipe(task, head_steps=300, **changes, **of(transitions))
        for serial, (task, transitions, changes) in SERIAL.items()
        for name, of in RECURSIONS.items()
    },
}


def reached(step: int, view: FitView) -> bool:
    """Whether training has come to this step; what `fit` does with True is stop."""
    return view.step == step


def train(recipe: Recipe, task: Any, folder: Path, seed: int, start: str | None) -> tuple[Any, Any, bool]:
    """Train a recipe's chain, new or from the weights `start`, then its heads alone; False where it was stopped."""
    torch.manual_seed(seed)
    if start is None:
        chain = recipe.model.for_task(task, **recipe.choices)
        guide = GRAMGuide(chain) if recipe.guided else None
    else:
        chain = checkpoint.load_chain(start, recipe.model)
        guide = checkpoint.load_guide(start, GRAMGuide(chain)) if recipe.guided else None
    at = {"seed": seed, "precision": "bf16"} | recipe.settings
    for stop in (*(step for step in recipe.kept if step < recipe.steps), recipe.steps):
        result = fit(
            chain, guide, task, recipe.steps, objective=recipe.objective, folder=folder,
            callbacks=[partial(reached, stop)], **at,
        )  # fmt: skip
        if result.finished or result.steps != stop:  # done, or Ctrl-C
            break
        checkpoint.save_chain(folder / f"step-{stop}.safetensors", chain, guide, {"task": task.name, "steps": stop})
    if result.finished and recipe.head_steps:
        where = folder / f"heads-{result.steps}"
        depth = recipe.objective.depth
        result = fit_heads(chain, ("judge",), task, recipe.head_steps, depth=depth, folder=where, **at)
    return chain, guide, result.finished


def seconds(metrics_file: Path) -> float:
    """What a training has taken, over all its calls."""
    return json.loads(metrics_file.read_text(encoding="utf-8").splitlines()[-1])["seconds"]


def parts_and_seeds(before: dict[str, Any], steps: int, seed: int) -> dict[str, Any]:
    """Seed and steps of a training, and of its parts where it went on from the weights described `before`."""
    if not before:
        return {"seed": seed, "steps": steps, "parts": None}
    parts = before.get("parts") or before["steps"]
    return {"seed": f"{before['seed']}, {seed}", "steps": before["steps"] + steps, "parts": f"{parts}, {steps}"}


def provenance(weights: str | Path) -> dict[str, Any]:
    """How large a network is and how it was trained, as its file says, and what measures it."""
    content = checkpoint.describe(weights)
    trained = {f"training {key}": content["about"].get(key) for key in ("steps", "parts", "seed", "minutes")}
    return {"parameters": content["parameters"]} | trained | {"machine": f"{platform.machine()}, one thread"}


def drawn(chain: Any, guide: Any, task: tasks.Digits, width: int, depth: int) -> Report:
    """What can be said of drawings that nothing verifies: how far they are from the nearest training picture.

    Beside it the same of held-out pictures, of blank ones, and of drawings whose tokens come each from another
    held-out picture; and the bound on log p(y) of 1,000 held-out pictures.
    """
    seeds, held_out = (0, 1, 2), task.examples("test")[1][:1_000]
    figures: dict[str, list[float]] = {"distance_drawn": []}
    for seed in seeds:
        run = sample(chain, task.encode(), width, depth, seed, keep="last", decode="sample")
        figures["distance_drawn"].append(float(task.distance(run.answers[-1, :, 0].numpy()).mean()))
    shuffled = np.random.default_rng(0).permuted(held_out, axis=0)
    blank = np.full_like(held_out[:1], task.tokens(np.zeros((28, 28), bool))[0])
    for kind, pictures in (("held_out", held_out), ("tokens_shuffled", shuffled), ("blank", blank)):
        figures[f"distance_{kind}"] = [float(task.distance(pictures).mean())]
    bound = evidence_bound(chain, guide, np.zeros_like(held_out), held_out, depth)
    figures["bound_nats"] = [float(bound.mean())]
    about = {"task": task.name, "split": "picture test", "problems": len(held_out), "width": width, "depth": depth}
    return Report(figures, {}, about | {"seeds": list(seeds)})


def make(
    which: str,
    recipe: Recipe,
    task: Any,
    folder: Path,
    out: Path,
    seed: int,
    start: str | None,
    problems: int | None,
) -> None:
    """Train, evaluate, write."""
    before = {} if start is None else checkpoint.describe(start)["about"]
    chain, guide, finished = train(recipe, task, folder, seed, start)
    if not finished:
        return
    minutes = sum(seconds(path) for path in folder.glob("**/metrics.jsonl")) / 60 + before.get("minutes", 0)
    plots.training_curve(folder).savefig(folder / "training.png", dpi=120)
    if isinstance(task, tasks.Digits):
        report = drawn(chain, guide, task, recipe.width, recipe.depth)
    else:
        report = evaluate(chain, task, width=recipe.width, depth=recipe.depth, seeds=(0, 1, 2), problems=problems)
    print(report.table())
    about = {
        "task": task.name,
        "split": getattr(task, "split", None),
        **parts_and_seeds(before, recipe.steps, seed),
        "minutes": round(minutes, 1),
        "processor": platform.machine(),
        "evaluation": report.about,
        "figures": {key: round(report.mean(key), 5) for key in report.figures if key in FIGURES or recipe.reads},
    }
    if isinstance(task, tasks.Generation) and report.mean("valid"):
        draws = sample(chain, task.blank, recipe.width, recipe.depth, seed=0, keep="last").answers[-1, :, 0]
        about["uniformity"] = metrics.uniformity(draws, task.answers)._asdict()
    trained = provenance(checkpoint.save_chain(out / f"{which}.safetensors", chain, guide, about))
    trained |= {"uniformity": about["uniformity"]} if "uniformity" in about else {}
    report = replace(report, about=report.about | trained)
    checkpoint.write_bytes(RESULTS / f"{which}.json", (report.to_json() + "\n").encode())
    print(f"{which}: {json.dumps(about['figures'])}, {minutes:.1f} minutes", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=[*RECIPES])
    parser.add_argument("--steps", type=int, default=None, help="optimiser steps; default those of the recipe")
    parser.add_argument("--split", default=None, help="how problems are held out; default the task's own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", default=None, help="weights to go on from, a name or a file; give another seed")
    parser.add_argument("--folder", type=Path, default=None, help="checkpoints and metrics; default runs/NAME")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder of the weights")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data that recipes read")
    parser.add_argument("--problems", type=int, default=None, help="held-out problems evaluated; default all")
    chosen = parser.parse_args()
    torch.set_num_threads(1)  # these products are small: a second thread buys little
    for name in chosen.names:
        recipe = RECIPES[name]
        recipe = recipe if chosen.steps is None else replace(recipe, steps=chosen.steps)
        task = recipe.task(
            **{argument: chosen.data / file for argument, file in recipe.reads.items()},
            **({} if chosen.split is None else {"split": chosen.split}),
        )
        which = name if chosen.split is None else f"{name}-{chosen.split}"
        folder = chosen.folder or Path("runs") / which
        make(which, recipe, task, folder, chosen.out, chosen.seed, chosen.start, chosen.problems)


if __name__ == "__main__":
    main()
