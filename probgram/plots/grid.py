"""A score on the grid of depth and width: contours, and against cost."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from probgram.plots import axes
from probgram.plots.palette import MARKERS, ink_on

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

_ISO = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)  # scores with a contour; every second is labelled


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
    from matplotlib.patheffects import withStroke

    values = np.asarray(values)
    axis = axes.one(axis, 5, 4)
    across, up = np.meshgrid(np.log2(depths), np.log2(widths), indexing="ij")
    filled = axis.contourf(across, up, values, levels=np.linspace(0, 1, 21), cmap="viridis", antialiased=True)
    filled.set_rasterized(True)
    axis.figure.colorbar(filled, ax=axis, ticks=np.linspace(0, 1, 6))
    levels = [level for level in _ISO if values.min() < level < values.max()]
    if levels:  # a flat score has no contours
        lines = axis.contour(across, up, values, levels=levels, colors="white", linewidths=1.2)
        # White with a rim: read on any colour.
        lines.set_path_effects([withStroke(linewidth=2.4, foreground="0.15")])
        for label in axis.clabel(lines, [level for level in levels if level in _ISO[::2]], fmt="%g", fontsize=8):
            label.set_color(ink_on(filled.cmap(float(label.get_text()))))
    axis.plot(
        across.ravel(), up.ravel(), ".", color="white", markeredgecolor="0.15", markersize=4, markeredgewidth=0.5
    )
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
    from matplotlib import colormaps

    values, costs = np.asarray(values), np.outer(depths, widths)
    axis = axes.one(axis, 5, 4)
    colours = colormaps["viridis"](np.linspace(0.0, 0.85, len(depths)))
    for k, (depth, cost, value) in enumerate(zip(depths, costs, values, strict=True)):
        marker = MARKERS[k % len(MARKERS)]
        axis.plot(cost, value, marker=marker, markersize=4, color=colours[k], label=f"depth {depth}")
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
