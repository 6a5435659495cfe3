"""What wider noise does to trained weights: `probgram.models.widened`, an inference-time temperature.

python -m benchmarks.widening [queens8 colouring8]    writes results/widening/NAME.json; a quarter of an hour each

Factors are compared on training problems, where one is chosen: the one of the highest coverage among those whose
draws are right as often as those of factor 1, but for `PRICE`. Held-out problems, three sampling seeds, then show
what every factor does there; they choose nothing.
"""

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch

from probgram import checkpoint, metrics, tasks
from probgram.inference import sample, vote
from probgram.models import GRAM, widened

RESULTS = Path(__file__).parent / "results" / "widening"
FACTORS, PRICE = (1.0, 1.2, 1.4, 1.7), 0.005
PROBLEMS, WIDTH, DEPTH, SEEDS = 256, 20, 16, (0, 1, 2)
FIGURES = ("valid", "pass_at_n", "vote", "conflicts_vote", "coverage_macro_all", "coverage_macro_several",
           "total_variation_several")  # fmt: skip


def problems_of(task: Any, split: str) -> np.ndarray:
    """At most `PROBLEMS` problems of a split, the same for every factor."""
    x = np.unique(task.examples(split)[0], axis=0)
    return x[np.random.default_rng(0).permutation(len(x))[:PROBLEMS]]


def figures(chain: GRAM, task: Any, x: np.ndarray, solutions: Any, seed: int) -> dict[str, float]:
    """Of one run, and how often its vote is right."""
    run = sample(chain, x, WIDTH, DEPTH, seed, keep="last")
    found = metrics.summarize(task, x, run.answers[-1].numpy(), solutions)
    found["vote"] = float(np.asarray(task.verify(x, vote(run).answers.numpy())).mean())
    if isinstance(task, tasks.Colouring):
        found["conflicts_vote"] = float(np.asarray(task.conflicts(x, vote(run).answers.numpy())).sum())
    return {key: value for key, value in found.items() if key in FIGURES}


def chosen(by_factor: dict[float, dict[str, float]]) -> float:
    """The factor of the highest coverage whose draws are right nearly as often as those of factor 1."""
    least = by_factor[1.0]["valid"] - PRICE
    return max(
        (factor for factor, found in by_factor.items() if found["valid"] >= least),
        key=lambda factor: by_factor[factor]["coverage_macro_all"],
    )


def measured(name: str) -> dict[str, Any]:
    """All factors on training problems and on held-out ones."""
    chain = GRAM.from_pretrained(name)
    task = tasks.from_name(chain.about["task"], chain.about["split"])
    found: dict[str, Any] = {}
    training: dict[float, dict[str, float]] = {}
    for split, seeds in (("train", SEEDS[:1]), ("test", SEEDS)):
        x = problems_of(task, split)
        solutions = metrics.all_solutions(task, x)
        for factor in FACTORS:
            rows = [figures(widened(chain, factor), task, x, solutions, seed) for seed in seeds]
            found.setdefault(split, {})[str(factor)] = {key: [row[key] for row in rows] for key in rows[0]}
            if split == "train":
                training[factor] = rows[0]
            print(name, split, factor, rows, flush=True)
        found[f"{split} problems"] = len(x)
    about = {"weights": checkpoint.weights_of(chain), "width": WIDTH, "depth": DEPTH, "seeds": list(SEEDS)}
    about |= {"training problems": found.pop("train problems"), "held-out problems": found.pop("test problems")}
    about |= {"machine": f"{platform.machine()}, one thread"}
    return {"about": about, "chosen": chosen(training)} | found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["queens8", "colouring8"])
    torch.set_num_threads(1)
    for name in parser.parse_args().names:
        text = json.dumps(measured(name), indent=1) + "\n"
        checkpoint.write_bytes(RESULTS / f"{name}.json", text.encode())


if __name__ == "__main__":
    main()
