"""Who descends from whom in a run that was resampled."""

from typing import TYPE_CHECKING, Any

import numpy as np

from probgram.fields import as_array
from probgram.plots import axes
from probgram.plots.answers import named_answers
from probgram.plots.palette import BLUE, INK, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from probgram.run import Run
    from probgram.tasks import Task

SLOTS = 100  # beyond which a picture does not grow, and letters would touch
_DROPPED, _KEPT = ("0.8", 0.8), (INK, 1.2)  # colours and widths of lines


def genealogy(run: "Run[Any]", task: "Task | None" = None, problem: int = 0, axis: "Axes | None" = None) -> "Axes":
    """Draw who descends from whom: a dot a slot and depth step, a line to its ancestor.

    Lines that reach the last depth step are dark, those that were dropped on the way pale. The area of a dot is its
    weight; with a task, right answers are filled in the colour of their letter, wrong ones hollow.

    Args:
        run: made with `keep="paths"`.
        task: verifies the answers; None: all dots are filled.
        problem: index among the B problems.
        axis: drawn on, or a new one.
    """
    from matplotlib.collections import LineCollection
    from matplotlib.ticker import MaxNLocator

    one = run[problem]
    weights = as_array(one.weights[..., 0])  # [S, N]
    steps, width = weights.shape
    own = np.broadcast_to(np.arange(width), (steps, width))
    ancestors = own if one.ancestors is None else as_array(one.ancestors[..., 0])
    alive = np.zeros((steps, width), dtype=bool)
    np.put_along_axis(alive, as_array(one.lines()[..., 0]), True, 1)
    right, colours = alive | True, np.full((steps, width), BLUE, dtype=object)
    axis = axes.one(axis, max(5.0, 0.4 * min(steps, 40) + 1.2), 0.17 * min(width, SLOTS) + 1.2)
    depths = np.asarray(one.depths)
    if task is not None:
        named = named_answers(run, task, problem)
        right = ~named.wrong[named.number]
        colours = np.array([style(k).colour for k in range(len(named.answers))], dtype=object)[named.number]
        for i, k in enumerate(named.number[-1] if width <= SLOTS else ()):
            axis.annotate(
                named.letter(k), (depths[-1], i), (7, 0), textcoords="offset points", va="center_baseline", size=8
            )
    pairs = [
        (((depths[s - 1], ancestors[s, i]), (depths[s], i)), alive[s, i])
        for s in range(1, steps)
        for i in range(width)
    ]
    for kept, (colour, thickness) in ((False, _DROPPED), (True, _KEPT)):
        segments = [segment for segment, living in pairs if living == kept]
        axis.add_collection(LineCollection(segments, colors=colour, linewidths=thickness, zorder=1 + kept))
    x, y = np.meshgrid(depths, np.arange(width), indexing="ij")
    for filled in (False, True):
        chosen = right == filled
        face = colours[chosen] if filled else "white"
        area = 3 + 10 * weights[chosen] * width  # of a mean weight a dot that leaves its neighbours room
        axis.scatter(x[chosen], y[chosen], area, c=face, edgecolors=INK, linewidths=0.6, zorder=3)
    _explain(axis, task is not None)
    axes.number(axis.xaxis, depths.tolist(), one.depths)
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_ylim(width - 0.4, -0.6)
    axis.set_xlabel("depth step")
    axis.set_ylabel("slot")
    return axis


def _explain(axis: "Axes", verified: bool) -> None:
    """Say above the picture what lines and dots are."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour, linewidth=width, label=label)
        for (colour, width), label in ((_KEPT, "reaches the last step"), (_DROPPED, "dropped on the way"))
    ]
    if verified:
        handles += [
            Line2D([], [], marker="o", linestyle="", markersize=5, color=face, markeredgecolor=INK, label=label)
            for face, label in ((BLUE, "right answer, its colour"), ("white", "wrong answer"))
        ]
    axis.legend(
        handles=handles,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=2,
        frameon=False,
        fontsize=8,
    )
