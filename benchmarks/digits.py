"""Digits: draw them, and finish half of one by the filter, with a generator that never saw a half.

    python -m benchmarks.digits --data FOLDER --weights FILE    FOLDER has mnist/; weights of benchmarks.trainings

The upper four of seven rows of patches of a held-out picture are observed; trajectories are weighed by the
likelihood of those tokens (`potentials.likelihood`), and the readout draws the rest. What is measured is how
many of the pixels below agree with the picture: of drawings under the filter, of as many drawings that saw
nothing, and of the training picture whose upper part is nearest. ± is the standard error over pictures.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.trainings import provenance
from probgram import checkpoint, tasks
from probgram.inference import sample, smc
from probgram.inference.potentials import likelihood
from probgram.models import GRAM
from probgram.solve import usual_depth
from probgram.tasks.digits import ACROSS, PATCH

RESULTS = Path(__file__).parent / "results"
PICTURES = Path(__file__).parent.parent / "docs" / "pictures"
SEEN = 4 * ACROSS  # tokens
WIDTH = 200


def measure(chain: Any, task: tasks.Digits, count: int, depth: int, seed: int) -> tuple[dict[str, Any], list[Any]]:
    """Figures, and what the picture shows: drawings, then for some pictures themselves and what finished them."""
    held_out = task.examples("test")[1]
    chosen = held_out[np.random.default_rng(seed).permutation(len(held_out))[:count]]
    given = torch.as_tensor(chosen)
    given = torch.where(torch.arange(task.length) < SEEN, given, -1)  # below 0: not observed
    free = sample(chain, task.encode(), WIDTH, depth, seed, decode="sample", keep="last").answers[-1, :, 0].numpy()
    below = task.picture(chosen)[:, 4 * PATCH :]
    agree: dict[str, list[float]] = {"filter": [], "nothing seen": [], "nearest training picture": []}
    ess, shown = [], []
    train = task.picture(task.examples("train")[1])
    for one, tokens, picture in zip(given, chosen, below, strict=True):
        run = smc.run(
            chain, torch.as_tensor(task.encode())[None], width=WIDTH, depth=depth, seed=seed,
            potential=likelihood(one), decode="sample", keep="last",
        )  # fmt: skip
        answers, weights = run.answers[-1, :, 0].numpy(), run.weights[-1, :, 0].numpy()
        drawings = task.picture(answers)[:, 4 * PATCH :]
        agree["filter"].append(float(weights @ (drawings == picture).mean((1, 2))))
        agree["nothing seen"].append(float((task.picture(free)[:, 4 * PATCH :] == picture).mean()))
        upper = task.picture(tokens)[: 4 * PATCH]
        nearest = (train[:, : 4 * PATCH] != upper).sum((1, 2)).argmin()
        agree["nearest training picture"].append(float((train[nearest, 4 * PATCH :] == picture).mean()))
        ess.append(float(run.ess[-1, 0]))
        best = np.random.default_rng(seed).choice(WIDTH, 4, p=weights / weights.sum())
        finished = np.where(np.arange(task.length) < SEEN, tokens, answers[best])
        shown.append([task.picture(tokens), *task.picture(finished)])
    figures = {
        name: {"mean": round(float(np.mean(v)), 4), "se": round(float(np.std(v, ddof=1) / np.sqrt(count)), 4)}
        for name, v in agree.items()
    }
    figures["ess of the filter"] = {"mean": round(float(np.mean(ess)), 1)}
    return figures, [list(task.picture(free[:20])), *shown[:4]]


def draw(rows: list[Any], path: Path) -> None:
    """Twenty drawings above; below them four pictures, each with four ways to finish its upper part."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(4, 10, figsize=(8, 3.6), layout="constrained")
    for axis, picture in zip(axes[:2].flat, rows[0], strict=True):
        axis.imshow(~picture, cmap="gray", vmin=0, vmax=1)
    for axis, (k, picture) in zip(
        axes[2:].flat, ((k, p) for row in rows[1:] for k, p in enumerate(row)), strict=True
    ):
        axis.imshow(~picture, cmap="gray", vmin=0, vmax=1)
        axis.axhline(4 * PATCH - 0.5, color="C1", linewidth=1, linestyle="-" if k else ":")
    for axis in axes.flat:
        axis.set_axis_off()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--weights", required=True, help="a shipped name or a file")
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    task = tasks.Digits(chosen.data / "mnist")
    chain = GRAM.from_pretrained(chosen.weights)
    depth = usual_depth(chain)
    figures, rows = measure(chain, task, chosen.pictures, depth, chosen.seed)
    about = {"pictures": chosen.pictures, "width": WIDTH, "depth": depth, "seed": chosen.seed}
    about |= provenance(chosen.weights)
    found = {"about": about, "pixels below that agree": figures}
    checkpoint.write_bytes(RESULTS / "digits" / "half.json", (json.dumps(found, indent=1) + "\n").encode())
    PICTURES.mkdir(parents=True, exist_ok=True)
    draw(rows, PICTURES / "digits.png")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
