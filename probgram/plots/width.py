"""What width brings: shares of solutions found against the number of trajectories, beside their limits."""

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from probgram.plots import axes
from probgram.plots.palette import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
    axis = axes.one(axis, 6, 4)
    for k, (label, values) in enumerate(found.items()):
        axis.plot(widths, values, label=label, marker=style(k).marker, color=style(k).colour)
    for (label, values), dashes in zip(limits.items(), itertools.cycle(("--", ":", "-.")), strict=False):
        axis.plot(widths, values, label=label, linestyle=dashes, color="0.4", zorder=1)
    axis.set_xscale("log", base=2)
    axis.set_xticks(widths, [str(width) for width in widths])
    axis.set_ylim(0, 1.02)
    axis.set_xlabel("width (trajectories)")
    axis.set_ylabel("share of all solutions found")
    axis.legend(frameon=False, loc="lower right")
    return axis
