"""The family on 8-queens: one size, equal multiply-adds in training, prior samples, equal cost at inference.

Every network has about 0.25M parameters and takes as many optimiser steps of 128 problems as cost what GRAM's
cost, forward and backward, counted by PyTorch. It is then evaluated on problems held out by symmetry orbit: width
20 where trajectories differ; a deterministic one, where it has depth to use, gets the same 20 shares as depth
instead. The noise of PTRM and of BIGR is chosen on training problems, each for itself. A result that is there is
not made again:

    python -m benchmarks.reasoners --rows trm gram --seeds 0 1 2
    python -m benchmarks.reasoners --table
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from probgram import checkpoint, fit, tasks
from probgram.inference import evaluate, fit_heads, recipes, sample, smc
from probgram.inference.batches import Batches, as_known_answers
from probgram.inference.cost import multiply_adds
from probgram.inference.figures import Report
from probgram.inference.objective import Objective, ObjectiveConfig
from probgram.inference.potentials import accumulated, halt
from probgram.models import (
    GRAM,
    HRM,
    TRM,
    Direct,
    EqR,
    GRAMGuide,
    LoopedFlow,
    LoopedFlowGuide,
    LoopedTransformer,
    Perturbed,
)

RESULTS = Path(__file__).parent / "results" / "reasoners"
GRAM_STEPS, HEAD_STEPS, BATCH = 2_000, 300, 128
WIDTH = 20
SIZE = {"dim": 96, "hidden": 256}  # with two blocks 0.25M parameters
SIGMAS = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
FIGURES = ("valid", "selected_vote", "selected_best_by_halt", "selected_best_by_residual", "pass_at_n",
           "coverage_macro_all", "coverage_pooled_all", "coverage_macro_several",
           "total_variation_several")  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A reasoner, how it is trained, and where it is evaluated.

    `alone` are the depths of one trajectory: first as trained or as one of GRAM's costs, last as all 20 cost.
    """

    model: Any
    choices: dict[str, Any] = field(default_factory=dict)
    objective: Callable[[], ObjectiveConfig] = ObjectiveConfig
    guide: Any = None
    alone: tuple[int, ...] = (16, 320)
    together: int = 0  # the depth of 20 trajectories; 0: all of them would be the same


DEEP = partial(recipes.deep_supervision, 8)
ROWS = {
    "direct-8": Row(Direct, {"dim": 48, "hidden": 144}, recipes.end_to_end, alone=(1,)),
    "direct-32": Row(Direct, {"dim": 24, "hidden": 72, "blocks": 32}, recipes.end_to_end, alone=(1,)),
    "looped": Row(LoopedTransformer, SIZE | {"transitions": 16}, recipes.end_to_end, alone=(1, 8, 160)),
    "trm": Row(TRM, SIZE, DEEP),
    "gram": Row(GRAM, SIZE, guide=GRAMGuide, alone=(), together=16),
    "gram mu=0": Row(GRAM, SIZE | {"mean": False}, guide=GRAMGuide, alone=(), together=16),
    "hrm": Row(HRM, {"dim": 72, "hidden": 168}, DEEP, alone=(16, 640)),
    "gram sigma=0": Row(GRAM, SIZE | {"noise": False}, DEEP),
    "eqr": Row(EqR, SIZE, DEEP, alone=(), together=16),
    "looped flow": Row(
        LoopedFlow, SIZE | {"transitions": 4, "steps": 8}, partial(recipes.bridged, 8), LoopedFlowGuide, (), 8
    ),
}
# Inference alone, on the trained TRM: noise, and noise with a filter under all that the halt head has said.
NOISY = {"ptrm": sample, "bigr": partial(smc.run, potential=accumulated(halt), ess_threshold=0.5)}


def build(row: Row, task: Any, seed: int) -> tuple[Any, Any]:
    """The untrained chain and its guide."""
    torch.manual_seed(seed)
    chain = row.model.for_task(task, **row.choices)
    return chain, row.guide(chain) if row.guide else None


def step_cost(row: Row, task: Any) -> int:
    """Multiply-adds of an optimiser step, a problem: the second depth step, forward and backward."""
    chain, guide = build(row, task, 0)
    config = row.objective()
    objective = Objective(chain, guide, config, task)
    batches = Batches(as_known_answers(task), 8, config.particles, config.depth, 0, staggered=True)
    rollout = batches.refill(objective(batches.start(torch.device("cpu"))).rollout)
    with FlopCounterMode(display=False) as counter:
        objective(rollout).loss.backward()
    return counter.get_total_flops() // 2 // 8


def train(name: str, seed: int, gram_steps: int, folder: Path) -> dict[str, Any]:
    """Train a row and evaluate it."""
    row, task = ROWS[name], tasks.Queens(8)
    chain, guide = build(row, task, seed)
    steps = round(gram_steps * step_cost(ROWS["gram"], task) / step_cost(row, task))
    started = time.perf_counter()
    at = {"batch": BATCH, "seed": seed, "precision": "bf16", "accelerator": "cpu", "validate_every": 0}
    where = folder / f"{name.replace(' ', '-')}-{seed}"
    fit(chain, guide, task, steps, objective=row.objective(), folder=where, **at)
    depth = row.objective().depth
    fit_heads(chain, ("judge",), task, HEAD_STEPS, depth=depth, folder=where / "heads", **at)
    result = {
        "model": name,
        "seed": seed,
        "parameters": sum(p.numel() for p in chain.parameters()),
        "steps": steps,
        "minutes": round((time.perf_counter() - started) / 60, 1),
        "rows": {},
    }
    checkpoint.save_chain(where / "weights.safetensors", chain, guide, {"task": task.name, "seed": seed})
    judge = partial(judged, result["rows"], seed, task=task)
    for depth in row.alone:
        judge(name if depth == row.alone[0] else f"{name}, {depth} deep", chain, 1, depth)
    if row.together:
        judge(name, chain, WIDTH, row.together)
    if name == "trm":
        for noisy, run in NOISY.items():
            sigma = max(SIGMAS, key=partial(pilot, chain, task, run))
            judge(noisy, Perturbed(chain, sigma), WIDTH, row.alone[0], run=run)
            result["rows"][noisy]["sigma"] = sigma
    return result


def pilot(chain: Any, task: Any, run: Any, sigma: float) -> float:
    """pass@N of some training problems."""
    noisy = Perturbed(chain, sigma)
    return evaluate(noisy, task, "train", WIDTH, 16, seeds=(0,), problems=128, run=run).mean("pass_at_n")


def judged(
    rows: dict[str, Any], seed: int, name: str, chain: Any, width: int, depth: int, task: Any, run: Any = sample
) -> None:
    """Evaluate on all held-out problems, sampled with the seed of training."""
    report: Report = evaluate(chain, task, width=width, depth=depth, seeds=(seed,), run=run)
    x = task.examples("test")[0][0]
    rows[name] = {
        "width": width,
        "depth": depth,
        "multiply_adds": width * multiply_adds(chain, x, depth),
        "figures": {k: round(report.mean(k), 5) for k in FIGURES if k in report.figures},
        "limits": report.limits,
    }


def table(results: Sequence[dict[str, Any]]) -> str:
    """Mean over training seeds, with the standard deviation where there are several."""
    head = ["reasoner", "parameters", "steps", "seeds", "width × depth", "M multiply-adds", *FIGURES]
    lines = ["| " + " | ".join(name.replace("_", " ") for name in head) + " |", "|---" * len(head) + "|"]
    runs: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {}
    for result in results:
        for name, row in result["rows"].items():
            runs.setdefault(name, []).append((result, row))
    for name, pairs in runs.items():
        result, row = pairs[0]
        cells = [name, f"{result['parameters']:,}", f"{result['steps']:,}", str(len(pairs))]
        cells += [f"{row['width']} × {row['depth']}", f"{row['multiply_adds'] / 1e6:,.0f}"]
        for figure in FIGURES:
            values = [r["figures"][figure] for _, r in pairs if figure in r["figures"]]
            spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.3f}{spread}" if values else "–")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def read() -> list[dict[str, Any]]:
    """What has been measured, in the order of `ROWS`."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))]
    return sorted(found, key=lambda result: list(ROWS).index(result["model"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=[*ROWS], default=[*ROWS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--gram-steps", type=int, default=GRAM_STEPS, help="optimiser steps of the GRAM row")
    parser.add_argument("--folder", type=Path, default=Path("runs/reasoners"))
    parser.add_argument("--table", action="store_true", help="print what has been measured")
    chosen = parser.parse_args()
    if chosen.table:
        print(table(read()))
        return
    torch.set_num_threads(1)
    for seed in chosen.seeds:
        for name in chosen.rows:
            path = RESULTS / f"{name.replace(' ', '-').replace('=', '')}-{seed}.json"
            if path.exists():
                continue
            result = train(name, seed, chosen.gram_steps, chosen.folder)
            checkpoint.write_bytes(path, (json.dumps(result, indent=1) + "\n").encode())
            print(path, flush=True)


if __name__ == "__main__":
    main()
