"""When does resampling between depth steps help a reasoner? 8-queens, at equal cost, on networks of one run.

Independent trajectories; the same, reweighed at the end only; the particle filter by potential, threshold and
first depth; with rejuvenation; deeper and narrower. On the shipped weights and on two early states of the same
run (`make train-queens8` keeps them). A network's evaluations of f are N·S·T·(K+1) in every row of a table.

    python -m benchmarks.filter_vs_independent --folder runs/queens8
    python -m benchmarks.filter_vs_independent --table

Results are appended to filter_vs_independent.jsonl, a line a network, width, arm and seed; what is there is not run
again. Half of the held-out problems drawn have several answers. Two arms are no exact filters, and say so:
"inflated" and "restart".
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probgram import checkpoint, metrics, tasks
from probgram import state as trees
from probgram.inference import best, first_verified, fit_heads, smc, vote
from probgram.inference.genealogy import unique_ancestors
from probgram.inference.potentials import View, as_potential, energy, halt, value
from probgram.inference.rejuvenation import gaussian_prior, pcn
from probgram.inference.resampling import adaptive, systematic
from probgram.models import GRAM
from probgram.trajectories import Trajectories

RESULTS = Path(__file__).with_suffix(".jsonl")
TASK = tasks.Queens(8)
DEPTH = 8
FIGURES = {
    "valid": "one draw",
    "vote": "vote",
    "best_by_value": "best by value",
    "pass_at_n": "pass@N",
    "coverage_macro_several": "coverage, several",
    "ancestors": "ancestors",
    "ess": "ESS",
}


# -- arms -----------------------------------------------------------------------------------------------------


def copies(seen: smc.Rejuvenation) -> Tensor:
    """Slots that hold a copy of the slot before: systematic ancestors are in order."""
    same = torch.zeros_like(seen.ancestors, dtype=torch.bool)
    same[1:] = seen.ancestors[1:] == seen.ancestors[:-1]
    return same & seen.resampled


def inflated(factor: float) -> Callable[[smc.Rejuvenation], tuple[Any, Tensor, Tensor]]:
    """Give copies a new last noise, `factor` times wider than the prior's, unweighed: no exact filter."""

    def move(seen: smc.Rejuvenation) -> tuple[Any, Tensor, Tensor]:
        loc, scale = gaussian_prior(seen)
        fresh = torch.empty_like(scale).normal_(generator=seen.generator)
        noise = trees.where(copies(seen), loc + factor * scale * fresh, seen.last.noise)
        latent = seen.move(noise)
        return latent, seen.log_psi(latent), noise

    return move


def restart(seen: smc.Rejuvenation) -> tuple[Any, Tensor, Tensor]:
    """Start the trajectories that would be copies from z_0 instead, unweighed: no exact filter."""
    kernel = seen.algorithm.kernel
    first = kernel.start(seen.algorithm.width, seen.state.seed).latent
    latent = trees.where(copies(seen), first, seen.state.latent)
    return latent, seen.log_psi(latent), seen.last.noise


def arms(width: int) -> dict[str, dict[str, Any]]:
    """Name -> arguments of `smc.run`; names without resampling end in "end"."""
    strong, weak, judge = energy(TASK, 0.5), energy(TASK, 2.0), value**4

    def rule(threshold: float = 0.5, first: int = 1, last: int | None = None) -> Any:
        return adaptive(systematic, threshold, first, last)

    chosen: dict[str, dict[str, Any]] = {
        "value": {"potential": value, "resample": rule()},
        "value^4": {"potential": judge, "resample": rule()},
        "value^4 from 4": {"potential": judge, "resample": rule(first=4)},
        "halt^4": {"potential": halt**4, "resample": rule()},
        "energy 0.5": {"potential": strong, "resample": rule()},
        "energy 0.5 from 4": {"potential": strong, "resample": rule(first=4)},
        "energy 0.5, ESS 0.2": {"potential": strong, "resample": rule(0.2)},
        "energy 2": {"potential": weak, "resample": rule()},
        "energy 0.5 pCN": {"potential": strong, "resample": rule(), "rejuvenate": pcn(0.5, 2)},
        "energy 0.5 inflated": {"potential": strong, "resample": rule(last=6), "rejuvenate": inflated(2.0)},
        "energy 0.5 restart": {"potential": strong, "resample": rule(last=4), "rejuvenate": restart},
    }
    if width > 4:
        deeper = {"depth": 2 * DEPTH, "width": width // 2}
        chosen |= {
            "independent, half as wide, twice as deep": deeper,
            "energy 0.5 from 4, half as wide, twice as deep": {
                "potential": strong, "resample": rule(first=4), **deeper,
            },
        }  # fmt: skip
    return chosen


AT_THE_END = {"value^4 end": value**4, "halt^4 end": halt**4, "energy 0.5 end": energy(TASK, 0.5)}
SHORT = (
    "value^4",
    "energy 0.5",
    "energy 0.5 from 4",
    "energy 0.5 pCN",
)  # of the widest, and of the shipped network


# -- measuring ------------------------------------------------------------------------------------------------


def figures(run: Trajectories, solutions: metrics.Solutions) -> dict[str, float]:
    """What a run is worth at its last depth step."""
    weights = run.weights[-1].numpy()
    row = metrics.summarize(TASK, run.x.numpy(), run.answers[-1].numpy(), solutions, weights)
    rules = {"vote": vote(run), "best_by_value": best(run), "first_verified": first_verified(run, TASK)}
    row |= {name: float(TASK.verify(run.x, rule.answers).float().mean()) for name, rule in rules.items()}
    row["ancestors"] = float(unique_ancestors(run)[0].float().mean()) / run.width
    row["ess"] = float(run.ess[-1].mean()) / run.width
    return {name: round(number, 4) for name, number in row.items()}


def reweighed(run: Trajectories, chain: GRAM, potential: Any) -> Trajectories:
    """The same draws, weighed by a potential of the last depth step."""
    view = View(chain, run.state, None, None, run.depth, run.depth, torch.arange(run.problems), run.x)
    with torch.no_grad():
        log_weights = run.log_weights.clone()
        log_weights[-1] = as_potential(potential)(view)
    return Trajectories(
        x=run.x, answers=run.answers, log_weights=log_weights, heads=run.heads, task=run.task, seed=run.seed
    )


def problems(count: int) -> tuple[np.ndarray, metrics.Solutions]:
    """Held-out problems, half of them with several answers."""
    x = np.unique(TASK.examples("test")[0], axis=0)
    several = metrics.all_solutions(TASK, x).counts > 1
    generator = np.random.default_rng(0)
    rows = [generator.choice(np.flatnonzero(kind), count // 2, replace=False) for kind in (several, ~several)]
    chosen = x[np.sort(np.concatenate(rows))]
    return chosen, metrics.all_solutions(TASK, chosen)


def with_heads(path: Path) -> GRAM:
    """An early network with heads trained on its own prior trajectories, made once."""
    judged = path.with_stem(path.stem + "-judged")
    if not judged.exists():
        chain = GRAM.from_pretrained(path)
        fit_heads(chain, ("judge",), TASK, 300, precision="bf16", validate_every=0, accelerator="cpu")
        checkpoint.save_chain(judged, chain, None, {"task": TASK.name})
    return GRAM.from_pretrained(judged)


def measure(name: str, chain: GRAM, width: int, seed: int, x: np.ndarray, solutions: metrics.Solutions) -> None:
    """Run what is missing of a network, width and seed."""
    done = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    have = {row["arm"] for row in done if (row["network"], row["width"], row["seed"]) == (name, width, seed)}

    def write(arm: str, run: Trajectories, seconds: float) -> None:
        row = {"network": name, "width": width, "seed": seed, "arm": arm, "problems": len(x)}
        row |= {"seconds": round(seconds, 2)} | figures(run, solutions)
        with open(RESULTS, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)

    if not have >= {"independent", *AT_THE_END}:
        started = time.perf_counter()
        run = smc.run(chain, x, width=width, depth=DEPTH, seed=seed, resample=None)
        seconds = time.perf_counter() - started
        write("independent", run, seconds)
        for arm, potential in AT_THE_END.items():
            write(arm, reweighed(run, chain, potential), seconds)
    for arm, choices in arms(width).items():
        short = width == 64 or name == "shipped"
        if arm in have or (short and arm not in SHORT):
            continue
        started = time.perf_counter()
        run = smc.run(chain, x, **{"width": width, "depth": DEPTH, "seed": seed} | choices)
        write(arm, run, time.perf_counter() - started)


def table() -> str:
    """All results as Markdown, a table a network and width: mean over seeds ± standard deviation."""
    groups: dict[tuple[str, int], dict[str, list[dict[str, Any]]]] = {}
    for line in RESULTS.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        groups.setdefault((row["network"], row["width"]), {}).setdefault(row["arm"], []).append(row)
    lines = []
    for (network, width), rows in sorted(groups.items()):
        seeds = len(next(iter(rows.values())))
        lines += [f"**{network}, N = {width}**, {seeds} seeds", ""]
        lines += ["| arm | " + " | ".join(FIGURES.values()) + " |", "|---" * (len(FIGURES) + 1) + "|"]
        for arm, runs in rows.items():
            cells = [arm]
            for name in FIGURES:
                numbers = [run[name] for run in runs]
                spread = f" ± {np.std(numbers, ddof=1):.3f}" if len(numbers) > 1 else ""
                cells.append(f"{np.mean(numbers):.3f}{spread}")
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Measure what is missing, or print what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/queens8"), help="a run with its early states")
    parser.add_argument("--widths", default="20,4,64")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--problems", type=int, default=64)
    parser.add_argument("--table", action="store_true", help="print what has been measured")
    chosen = parser.parse_args()
    if chosen.table:
        print(table())
        return
    torch.set_num_threads(1)
    early = sorted(path for path in chosen.folder.glob("step-*.safetensors") if "judged" not in path.stem)
    if not early:
        print(f"nothing measured: {chosen.folder} has no step-*.safetensors, which make train-queens8 keeps")
        return
    networks = {path.stem: with_heads(path) for path in early} | {"shipped": GRAM.from_pretrained("queens8")}
    x, solutions = problems(chosen.problems)
    for width in map(int, chosen.widths.split(",")):
        for seed in map(int, chosen.seeds.split(",")):
            for name, chain in networks.items():
                if width > 20 and name == "shipped":  # finds nearly everything at 20 already
                    continue
                measure(name, chain, width, seed, x, solutions)


if __name__ == "__main__":
    main()
