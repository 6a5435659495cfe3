"""Draw the pictures of the page "Ideas in pictures": of the shipped weights, and of a chain of one number.

    python docs/pictures.py

Seconds on one core; same seeds, same pictures.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor

from probgram import Chain, plots, tasks
from probgram.inference import sample, smc
from probgram.inference.potentials import energy
from probgram.models import GRAM

FOLDER = Path(__file__).parent / "pictures"
BLUE, VERMILLION = "#0072B2", "#D55E00"


class Valleys(Chain):
    """One number in two valleys, at -1 and 1; a trajectory starts a little to the right of the ridge."""

    homogeneous = True

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma

    def initial(self, context: Tensor) -> Tensor:
        """Start at 0.1, `[B, 1]`."""
        return torch.full((len(context), 1), 0.1)

    def propose(self, state: Tensor, context: Tensor, t: int) -> Tensor:
        """A step downhill."""
        return state + 0.3 * (state - state**3)

    def prior(self, proposal: Tensor, t: int) -> dist.TorchDistribution:
        """The same noise everywhere."""
        return dist.Normal(torch.zeros_like(proposal), self.sigma).to_event(1)

    def readout(self, state: Tensor) -> dist.TorchDistribution:
        """The valley a number lies in: 0 on the left, 1 on the right."""
        return dist.Bernoulli(logits=20 * state).to_event(1)


def trapped() -> None:
    """A path without noise, and forty with it."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), sharey=True, layout="constrained")
    for axis, sigma, width in zip(axes, (1e-6, 0.15), (1, 40), strict=True):
        paths = [torch.full((width,), 0.1)]
        sample(
            Valleys(sigma),
            torch.zeros(1, 1),
            width=width,
            depth=16,
            callback=lambda view, paths=paths: paths.append(view.state[:, 0, 0]),
        )
        path = torch.stack(paths).numpy()  # [S + 1, N]
        left = path[-1] < 0
        axis.plot(path[:, left], color=BLUE, linewidth=0.9)
        axis.plot(path[:, ~left], color=VERMILLION, linewidth=0.9 if width > 1 else 2, linestyle="--")
        axis.axhline(0, color="0.7", linewidth=0.8)
        axis.set_xticks(range(0, 17, 4))
        axis.set_xlabel("depth step")
        axis.set_title(f"no noise, {width} path" if width == 1 else f"noise, {width} paths: {left.sum()} get away")
    axes[0].set_yticks([-1, 0, 1], ["the answer", "ridge", "the trap"])
    figure.savefig(FOLDER / "trapped.png", dpi=110)


def queens() -> None:
    """Trajectories of the held-out board that has the most answers."""
    task, chain = tasks.Queens(8), GRAM.from_pretrained("queens8")
    boards = np.unique(task.examples("test")[0], axis=0)
    x = boards[np.argmax([len(task.solutions(one)) for one in boards])]

    run = sample(chain, x, width=4, depth=4, seed=5)  # a seed that shows three different answers
    plots.boards_over_depth(run, task, by="trajectory", rows=4, steps=range(1, 5))
    plt.savefig(FOLDER / "depth_and_width.png", dpi=110)

    plots.answer_posterior(sample(chain, x, width=64, depth=8, seed=0), task)
    plt.savefig(FOLDER / "answers.png", dpi=110)

    figure, axes = plt.subplots(1, 2, figsize=(9.5, 4), layout="constrained")
    for axis, title, choice in zip(axes, ("weighed", "and resampled"), ({"resample": None}, {}), strict=True):
        run = smc.run(chain, x, width=16, depth=6, seed=3, potential=energy(task, 0.5), **choice)
        plots.genealogy(run, task, axis=axis)
        first = len(np.unique(run.lines()[0, :, 0]))
        axis.get_legend().remove()  # wider than half a picture; the page says what lines and dots are
        axis.set_title(f"{title}: {first} first-step ancestors are left", size=10)
    figure.savefig(FOLDER / "resampling.png", dpi=110)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    trapped()
    queens()
