"""Pictures: a training run's curves, and coverage against width beside its limits."""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANELS = (
    ("nats a problem", ("reconstruction", "kl")),
    ("share right", ("right_at_end", "valid_held_out")),
    ("sigma of the prior", ("sigma_amin", "sigma_mean", "sigma_amax")),
    ("gradient norm", ("gradient_norm",)),
)


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
        lines: Sequence[Mapping[str, float]] = [json.loads(line) for line in path.read_text().splitlines()]
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


def width_curve(widths: Sequence[int], found: Mapping[str, Sequence[float]], axis: "Axes | None" = None) -> "Axes":
    """Draw shares of solutions found against width; names that hold "limit" are dashed.

    Args:
        widths: numbers of trajectories, drawn on a base-2 scale.
        found: label -> share in [0, 1] for each width.
        axis: drawn on, or a new one.
    """
    import matplotlib.pyplot as plt

    if axis is None:
        axis = plt.subplots(figsize=(6, 4), layout="constrained")[1]
    dashes = itertools.cycle(("--", ":", "-."))
    for label, values in found.items():
        style: dict[str, Any] = {"marker": "o"}
        if "limit" in label:
            style = {"linestyle": next(dashes), "color": "0.5"}
        axis.plot(widths, values, label=label, **style)
    axis.set_xscale("log", base=2)
    axis.set_xticks(widths, [str(width) for width in widths])
    axis.set_ylim(0, 1.02)
    axis.set_xlabel("width (trajectories)")
    axis.set_ylabel("share of all solutions found")
    axis.legend(frameon=False, loc="lower right")
    return axis
