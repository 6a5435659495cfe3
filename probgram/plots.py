"""Pictures: training curves, coverage against width, answers and ancestry over depth, depth against width."""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

    from probgram.tasks import Task
    from probgram.trajectories import Trajectories

_PANELS = (
    ("nats a problem", ("reconstruction", "kl")),
    ("share right", ("right_at_end", "valid_held_out")),
    ("sigma of the prior", ("sigma_amin", "sigma_mean", "sigma_amax")),
    ("gradient norm", ("gradient_norm",)),
)

_ISO = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)  # scores with a contour; every second is labelled


def training_curve(metrics: str | Path | Sequence[Mapping[str, float]]) -> "Figure":
    """Draw what `fit` measured, against optimiser steps.

    Args:
        metrics: a `metrics.jsonl`, its folder, or `FitResult.history`.

    Raises:
        ValueError: there are no lines.
    """
    import matplotlib.pyplot as plt

    if isinstance(metrics, str | Path):
        path = Path(metrics)
        path = path / "metrics.jsonl" if path.is_dir() else path
        lines: Sequence[Mapping[str, float]] = [
            json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")
        ]
    else:
        lines = metrics
    if not lines:
        raise ValueError("metrics must hold at least one line")
    figure, axes = plt.subplots(2, 2, figsize=(10, 6), sharex=True, layout="constrained")
    for axis, (label, names) in zip(axes.flat, _PANELS, strict=True):
        for name in names:
            points = [(line["step"], line[name]) for line in lines if name in line]
            if points:
                axis.plot(*zip(*points, strict=True), label=name.replace("_", " "), linewidth=1)
        axis.set_ylabel(label)
        axis.legend(frameon=False)
    for axis in axes[-1]:
        axis.set_xlabel("optimiser steps")
    return figure


def width_curve(
    widths: Sequence[int],
    found: Mapping[str, Sequence[float]],
    limits: Mapping[str, Sequence[float]],
    axis: "Axes | None" = None,
) -> "Axes":
    """Draw shares of solutions found against width, beside their limits.

    Args:
        widths: numbers of trajectories, drawn on a base-2 scale.
        found: label -> share in [0, 1] for each width.
        limits: likewise, drawn dashed: a ceiling, a floor.
        axis: drawn on, or a new one.
    """
    import matplotlib.pyplot as plt

    if axis is None:
        axis = plt.subplots(figsize=(6, 4), layout="constrained")[1]
    for label, values in found.items():
        axis.plot(widths, values, label=label, marker="o")
    for (label, values), dashes in zip(limits.items(), itertools.cycle(("--", ":", "-.")), strict=False):
        axis.plot(widths, values, label=label, linestyle=dashes, color="0.5")
    axis.set_xscale("log", base=2)
    axis.set_xticks(widths, [str(width) for width in widths])
    axis.set_ylim(0, 1.02)
    axis.set_xlabel("width (trajectories)")
    axis.set_ylabel("share of all solutions found")
    axis.legend(frameon=False, loc="lower right")
    return axis


def answers_over_depth(run: "Trajectories", task: "Task", problem: int = 0, axis: "Axes | None" = None) -> "Axes":
    """Draw what each trajectory answers after each depth step: a row a trajectory, a colour a valid answer.

    Rows are lines of descent, ordered by their last answer; invalid answers are grey.

    Args:
        run: made with `keep="paths"`.
        task: verifies the answers.
        problem: index among the B problems.
        axis: drawn on, or a new one.
    """
    import matplotlib.pyplot as plt
    import numpy as np

    one = run[problem]
    answers = one.answers_along_lines()[:, :, 0].cpu().numpy()  # [S, N, L]
    valid = np.asarray(task.verify(one.x[0].cpu().numpy(), answers))
    kinds, index = np.unique(answers[valid], axis=0, return_inverse=True)
    number = np.full(valid.shape, -1)
    number[valid] = index.reshape(-1)
    number = number[:, np.argsort(number[-1], kind="stable")]
    if axis is None:
        axis = plt.subplots(figsize=(6, 0.6 + 0.12 * one.width), layout="constrained")[1]
    colours = plt.get_cmap("turbo")(np.linspace(0.05, 0.95, max(1, len(kinds))))
    picture = np.where((number >= 0)[..., None], colours[number.clip(min=0)], (0.85, 0.85, 0.85, 1.0))
    axis.imshow(picture.swapaxes(0, 1), aspect="auto", interpolation="none")
    axis.set_xticks(range(len(one.depths)), [str(depth) for depth in one.depths])
    axis.set_xlabel("depth step")
    axis.set_ylabel("trajectory")
    return axis


def genealogy(
    run: "Trajectories", task: "Task | None" = None, problem: int = 0, axis: "Axes | None" = None
) -> "Axes":
    """Draw who descends from whom: a dot a trajectory and depth step, a line to its ancestor.

    Lines that reach the last depth step are dark, those that were dropped on the way pale. Dots are as large as
    their weight; with a task, those whose answer is right are filled.

    Args:
        run: made with `keep="paths"`.
        task: verifies the answers; None: all dots are filled.
        problem: index among the B problems.
        axis: drawn on, or a new one.
    """
    import matplotlib.pyplot as plt
    import numpy as np
    from matplotlib.collections import LineCollection

    one = run[problem]
    weights = one.weights[..., 0].cpu().numpy()  # [S, N]
    steps, width = weights.shape
    own = np.broadcast_to(np.arange(width), (steps, width))
    ancestors = own if one.ancestors is None else one.ancestors[..., 0].cpu().numpy()
    alive = np.zeros((steps, width), dtype=bool)
    np.put_along_axis(alive, one.lines()[..., 0].cpu().numpy(), True, 1)
    right = alive | True
    if task is not None:
        right = np.asarray(task.verify(one.x[0].cpu().numpy(), one.answers[:, :, 0].cpu().numpy()))
    if axis is None:
        axis = plt.subplots(figsize=(0.6 * steps + 1, 0.15 * width + 1), layout="constrained")[1]
    depths = np.asarray(one.depths)
    pairs = [
        (((depths[s - 1], ancestors[s, i]), (depths[s], i)), alive[s, i])
        for s in range(1, steps)
        for i in range(width)
    ]
    for kept, colour, thickness in ((False, "0.85", 0.8), (True, "0.25", 1.2)):
        segments = [segment for segment, living in pairs if living == kept]
        axis.add_collection(LineCollection(segments, colors=colour, linewidths=thickness, zorder=1 + kept))
    x, y = np.meshgrid(depths, np.arange(width), indexing="ij")
    for filled in (False, True):
        chosen = right == filled
        face = "C0" if filled else "white"
        axis.scatter(x[chosen], y[chosen], 4 + 40 * weights[chosen] * width / 4, face, edgecolors="C0", zorder=3)
    axis.set_xticks(depths)
    axis.set_xlabel("depth step")
    axis.set_ylabel("trajectory")
    return axis


def iso_accuracy(
    depths: Sequence[int], widths: Sequence[int], values: "ArrayLike", axis: "Axes | None" = None
) -> "Axes":
    """Draw a score over depth and width, with contours of equal score.

    Vertical contours: only depth counts. Horizontal ones: only width. Diagonal: one buys what the other does.

    Args:
        depths: increasing, drawn on a base-2 scale to the right.
        widths: increasing, likewise upwards.
        values: in [0, 1], `[depths, widths]`.
        axis: drawn on, or a new one.
    """
    import matplotlib.pyplot as plt
    import numpy as np

    values = np.asarray(values)
    if axis is None:
        axis = plt.subplots(figsize=(5, 4), layout="constrained")[1]
    across, up = np.meshgrid(np.log2(depths), np.log2(widths), indexing="ij")
    filled = axis.contourf(across, up, values, levels=np.linspace(0, 1, 21), cmap="viridis", antialiased=True)
    filled.set_rasterized(True)
    axis.figure.colorbar(filled, ax=axis, ticks=np.linspace(0, 1, 6))
    levels = [level for level in _ISO if values.min() < level < values.max()]
    if levels:  # a flat score has no contours
        lines = axis.contour(across, up, values, levels=levels, colors="white", linewidths=1.2)
        axis.clabel(lines, [level for level in levels if level in _ISO[::2]], fmt="%g", fontsize=8)
    axis.plot(across.ravel(), up.ravel(), ".", color="white", markersize=3, alpha=0.6)
    axis.set_xticks(np.log2(depths), [str(depth) for depth in depths])
    axis.set_yticks(np.log2(widths), [str(width) for width in widths])
    axis.set_xlabel("depth (steps)")
    axis.set_ylabel("width (trajectories)")
    return axis


def cost_curves(
    depths: Sequence[int], widths: Sequence[int], values: "ArrayLike", axis: "Axes | None" = None
) -> "Axes":
    """Draw a score against cost, depth steps times width: a line a depth along its widths, and their envelope.

    Args:
        depths: increasing.
        widths: increasing.
        values: in [0, 1], `[depths, widths]`.
        axis: drawn on, or a new one.
    """
    import matplotlib.pyplot as plt
    import numpy as np

    values, costs = np.asarray(values), np.outer(depths, widths)
    if axis is None:
        axis = plt.subplots(figsize=(5, 4), layout="constrained")[1]
    colours = plt.get_cmap("viridis")(np.linspace(0.1, 0.9, len(depths)))
    for depth, cost, value, colour in zip(depths, costs, values, colours, strict=True):
        axis.plot(cost, value, marker="o", markersize=4, color=colour, label=f"depth {depth}")
    order = np.argsort(costs, axis=None, kind="stable")
    best = np.maximum.accumulate(values.ravel()[order])
    axis.step(costs.ravel()[order], best, where="post", color="0.3", linestyle="--", label="envelope", zorder=1)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_ylim(-0.02, 1.02)
    axis.set_xlabel("cost (depth steps × width)")
    axis.set_ylabel("score")
    axis.legend(frameon=False, fontsize=8)
    return axis
