"""Which training recipe keeps all answers and gets them right? Short runs on 8-queens, judged at the prior.

Every arm trains the same chain for the same number of optimiser steps on one thread and is evaluated on
held-out problems (orbit split) by validity, pass@20, coverage@20 and total variation on problems with several
answers. Results are appended to queens8_recipes.jsonl, one line an arm and seed; what is there is not run
again. `--table` prints them as Markdown.

    python -m benchmarks.queens8_recipes --steps 1500 --group carry --seed 0
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from probgram import fit, tasks
from probgram.inference import evaluate, targets
from probgram.inference.objective import ObjectiveConfig
from probgram.models import GRAM, GRAMGuide

RESULTS = Path(__file__).with_suffix(".jsonl")
FIGURES = ("valid", "pass_at_n", "coverage_macro_all", "coverage_macro_several", "total_variation_several")


@dataclass(frozen=True)
class Arm:
    target: str = "attributed"
    carry: float = 0.7
    beta: float = 0.16
    gradient: str = "step"
    kl: str = "every"
    sigma_max: float = 0.5
    particles: int = 1
    draw: str = "problem"
    settle: float = 0.0


BASE = Arm()
BEST = replace(BASE, target="responsibilities", draw="pair")  # of runs as short as these
GROUPS = {
    "carry": [replace(BASE, carry=carry) for carry in (0.0, 0.5, 0.7, 0.85, 1.0)],
    "target": [
        *(replace(BASE, target=target) for target in ("fixed", "nearest", "responsibilities")),
        replace(BASE, target="dealt", particles=4),
        replace(BASE, target="nearest", carry=1.0),
        replace(BASE, target="fixed", carry=0.0, gradient="transition", kl="last"),
    ],
    "rules": [replace(BASE, target=target) for target in ("responsibilities", "attributed", "nearest")],
    "beta": [replace(BASE, beta=beta) for beta in (0.05, 0.5)],
    "gradient": [
        replace(BASE, gradient="transition"),
        replace(BASE, kl="last"),
    ],
    "draw": [
        *(
            replace(BASE, target=target, draw="pair")
            for target in ("attributed", "responsibilities", "nearest", "fixed")
        ),
        replace(BASE, draw="pair", settle=0.25),  # the defaults of the library
    ],
    "best": [  # the other choices again, around the best rule
        *(replace(BEST, carry=carry) for carry in (0.0, 0.5, 0.85, 1.0)),
        replace(BEST, gradient="transition"),
        *(replace(BEST, beta=beta) for beta in (0.05, 0.5)),
    ],
}


def train(arm: Arm, steps: int, seed: int, problems: int) -> dict[str, object]:
    """Train one arm and evaluate it at the prior."""
    torch.manual_seed(seed)
    task = tasks.Queens(8)
    chain = GRAM.for_task(task, sigma_max=arm.sigma_max)
    guide = GRAMGuide(chain)
    objective = ObjectiveConfig(
        target=getattr(targets, arm.target),
        carry=arm.carry,
        settle=arm.settle,
        beta=arm.beta,
        gradient=arm.gradient,
        kl=arm.kl,
        particles=arm.particles,
        heads=0.0,
    )
    started = time.perf_counter()
    batch = 128 // arm.particles  # equal numbers of trajectories, so equal cost
    result = fit(
        chain, guide, task, steps, objective=objective, batch=batch, seed=seed, precision="bf16",
        draw=arm.draw, schedule="constant", validate_every=0, progress=False, accelerator="cpu",
    )  # fmt: skip
    minutes = (time.perf_counter() - started) / 60
    report = evaluate(chain, task, width=20, depth=8, seeds=(0,), problems=problems)
    last = result.history[-1]
    return asdict(arm) | {
        "seed": seed,
        "steps": steps,
        "minutes": round(minutes, 2),
        "kl_nats": round(last["kl"], 3),
        "sigma_mean": round(last.get("sigma_mean", float("nan")), 3),
        **{name: round(report.mean(name), 4) for name in FIGURES},
    }


def table() -> str:
    """All results as Markdown: mean over seeds, with the standard deviation where there are several."""
    rows: dict[tuple, list[dict]] = {}
    for line in RESULTS.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        rows.setdefault((*(row[name] for name in asdict(BASE)), row["steps"]), []).append(row)
    head = [*asdict(BASE), "steps", "seeds", "minutes", "kl_nats", *FIGURES]
    lines = ["| " + " | ".join(name.replace("_", " ") for name in head) + " |", "|---" * len(head) + "|"]
    for key, seeds in rows.items():
        cells = [*map(str, key), str(len(seeds))]
        for name in ("minutes", "kl_nats", *FIGURES):
            values = [row[name] for row in seeds]
            spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 and name in FIGURES else ""
            cells.append(f"{np.mean(values):.3f}{spread}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", choices=[*GROUPS, "all", "base"], default="all")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--problems", type=int, default=256, help="held-out problems evaluated")
    parser.add_argument("--table", action="store_true", help="print what has been measured")
    chosen = parser.parse_args()
    if chosen.table:
        print(table())
        return
    torch.set_num_threads(1)
    arms = (
        [BASE]
        if chosen.group == "base"
        else GROUPS.get(chosen.group) or list(dict.fromkeys(sum(GROUPS.values(), [BASE])))
    )
    for arm in arms:
        key = asdict(arm) | {"seed": chosen.seed, "steps": chosen.steps}
        done = (
            [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
            if RESULTS.exists()
            else []
        )
        if any(key.items() <= row.items() for row in done):
            continue
        row = train(arm, chosen.steps, chosen.seed, chosen.problems)
        with open(RESULTS, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
