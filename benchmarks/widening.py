"""What wider noise does to trained weights: `probgram.models.widened`, an inference-time temperature.

python -m benchmarks.widening [queens8 colouring8]    writes results/widening/NAME.json; half an hour each

Noise is widened in every depth step, or in the first quarter of them. Settings are compared on training problems,
where one is chosen: the one of the highest coverage among those whose draws are right as often as those of factor
1, but for `PRICE`. Held-out problems, three sampling seeds, then show what every setting does there; they choose
nothing. What has been measured of the same weights is not measured again.
"""

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.trainings import RECIPES
from probgram import checkpoint, metrics, tasks
from probgram.inference import sample, vote
from probgram.models import GRAM, widened

RESULTS = Path(__file__).parent / "results" / "widening"
# Factors of sigma(u), each with the share of the depth steps, the first ones, in which it holds.
SETTINGS = {
    "1": (1.0, 1.0),
    "1.2": (1.2, 1.0),
    "1.4": (1.4, 1.0),
    "1.7": (1.7, 1.0),
    "1.7 at first": (1.7, 0.25),
    "2 at first": (2.0, 0.25),
}
PRICE = 0.005
PROBLEMS, WIDTH, SEEDS = 256, 20, (0, 1, 2)
FIGURES = ("valid", "pass_at_n", "vote", "conflicts_vote", "coverage_macro_all", "coverage_macro_several",
           "total_variation_several")  # fmt: skip


def problems_of(task: Any, split: str) -> np.ndarray:
    """At most `PROBLEMS` problems of a split, the same for every factor."""
    x = np.unique(task.examples(split)[0], axis=0)
    return x[np.random.default_rng(0).permutation(len(x))[:PROBLEMS]]


def figures(chain: GRAM, task: Any, x: np.ndarray, solutions: Any, depth: int, seed: int) -> dict[str, float]:
    """Of one run, and how often its vote is right."""
    run = sample(chain, x, WIDTH, depth, seed, keep="last")
    found = metrics.summarize(task, x, run.answers[-1].numpy(), solutions)
    found["vote"] = float(np.asarray(task.verify(x, vote(run).answers.numpy())).mean())
    if isinstance(task, tasks.Colouring):
        found["conflicts_vote"] = float(np.asarray(task.conflicts(x, vote(run).answers.numpy())).sum())
    return {key: value for key, value in found.items() if key in FIGURES}


def chosen(by_setting: dict[str, dict[str, float]]) -> str:
    """The setting of the highest coverage whose draws are right nearly as often as those of factor 1."""
    least = by_setting["1"]["valid"] - PRICE
    return max(
        (setting for setting, found in by_setting.items() if found["valid"] >= least),
        key=lambda setting: by_setting[setting]["coverage_macro_all"],
    )


def measured(weights: str, settings: dict[str, tuple[float, float]]) -> dict[str, Any]:
    """Settings on training problems and on held-out ones, with those that were measured before."""
    name = Path(weights).stem
    chain, depth = GRAM.from_pretrained(weights), RECIPES[name].depth
    task = tasks.from_name(chain.about["task"], chain.about["split"])
    path = RESULTS / f"{name}.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if before.get("about", {}).get("weights") != checkpoint.weights_of(chain):
        before = {}
    found: dict[str, Any] = {}
    for split, seeds in (("train", SEEDS[:1]), ("test", SEEDS)):
        x = problems_of(task, split)
        solutions = metrics.all_solutions(task, x)
        rows = found[split] = dict(before.get(split, {}))
        for setting, (factor, share) in settings.items():
            if setting in rows:
                continue
            wide = widened(chain, factor, None if share == 1 else round(share * depth))
            runs = [figures(wide, task, x, solutions, depth, seed) for seed in seeds]
            rows[setting] = {key: [run[key] for run in runs] for key in runs[0]}
            print(name, split, setting, runs, flush=True)
        found[f"{split} problems"] = len(x)
    about = {"weights": checkpoint.weights_of(chain), "width": WIDTH, "depth": depth, "seeds": list(SEEDS)}
    about |= {"training problems": found.pop("train problems"), "held-out problems": found.pop("test problems")}
    about |= {"machine": f"{platform.machine()}, one thread"}
    training = {setting: {key: row[key][0] for key in row} for setting, row in found["train"].items()}
    return {"about": about, "chosen": chosen(training)} | found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["queens8", "colouring8"], help="shipped names, or files")
    parser.add_argument("--settings", nargs="+", choices=[*SETTINGS], default=[*SETTINGS])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for weights in asked.names:
        text = json.dumps(measured(weights, {s: SETTINGS[s] for s in ("1", *asked.settings)}), indent=1) + "\n"
        checkpoint.write_bytes(RESULTS / f"{Path(weights).stem}.json", text.encode())


if __name__ == "__main__":
    main()
