"""Training curves: what `fit` measured on its way."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from probgram.plots.palette import style

if TYPE_CHECKING:
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
        lines: Sequence[Mapping[str, float]] = [
            json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")
        ]
    else:
        lines = metrics
    if not lines:
        raise ValueError("metrics must hold at least one line")
    figure, axes = plt.subplots(2, 2, figsize=(10, 6), sharex=True, layout="constrained")
    for axis, (label, names) in zip(axes.flat, _PANELS, strict=True):
        for k, name in enumerate(names):
            points = [(line["step"], line[name]) for line in lines if name in line]
            if points:
                colour, _, dashes = style(k)
                axis.plot(
                    *zip(*points, strict=True),
                    label=name.replace("_", " "),
                    color=colour,
                    linestyle=dashes,
                    linewidth=1,
                )
        axis.set_ylabel(label)
        axis.legend(frameon=False)
    for axis in axes[-1]:
        axis.set_xlabel("optimiser steps")
    return figure
