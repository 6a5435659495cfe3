"""How weights fare over depth: the effective sample size, and the running normaliser."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from probgram.fields import as_array
from probgram.plots import axes
from probgram.plots.palette import BLUE, GREEN, INK, VERMILLION

if TYPE_CHECKING:
    from probgram.run import Run


def ess_and_evidence(run: "Run[Any]", problem: int = 0, axis: Any = None) -> NDArray[Any]:
    """Draw effective sample size and log normaliser over depth, one below the other.

    Beside the effective sample size, before resampling, stands how many slots of a depth step have a line to the
    last one: where that is 1, all trajectories share their past. Triangles say where there was resampling.

    Args:
        run: of the filter; in a run of `sample` nothing weighs.
        problem: index among the B problems.
        axis: two axes to draw on, or new ones.

    Returns:
        The axes, `[2]`.

    Raises:
        ValueError: not two axes.
    """
    from matplotlib.ticker import MaxNLocator

    single = run[problem]
    upper, lower = pair = axes.many(axis, 2, 1, 6, 2.1)[:, 0]
    ess = as_array(single.ess[:, 0])
    lines = as_array(single.lines()[..., 0])
    ancestors = [len(np.unique(row)) for row in lines]
    upper.plot(_depths(run, len(ess)), ess, "o-", color=BLUE, label="effective sample size", zorder=3)
    hollow = {"markersize": 9, "markerfacecolor": "none"}  # seen around the dots where both are equal
    upper.plot(run.depths, ancestors, "s--", color=GREEN, label="slots with a line to the end", **hollow)
    upper.axhline(run.width, color="0.5", linestyle=":", linewidth=1, label=f"width {run.width}")
    resampled = [depth for depth, moved in zip(run.depths, _resampled(single), strict=True) if moved]
    if resampled:
        marks = upper.plot(resampled, np.zeros(len(resampled)), "^", color=VERMILLION, label="resampled before it")
        marks[0].set(markeredgecolor="black", markeredgewidth=0.6, clip_on=False)
    upper.set_ylim(0, 1.08 * run.width)
    upper.set_ylabel("trajectories")
    upper.legend(frameon=False, fontsize=8, loc="best")
    values, name = np.zeros(len(ess)), "log normaliser (nats)"
    if run.likelihoods_only and run.log_normalizer is not None:
        values, name = as_array(single.log_evidence[:, 0]), "log evidence (nats)"
    elif single.log_normalizer is not None:
        values = as_array(single.log_normalizer[:, 0])
    lower.plot(_depths(run, len(values)), values, "o-", color=INK, clip_on=False)
    lower.set_ylabel(name)
    lower.set_xlabel("depth step")
    for drawn in pair:
        drawn.xaxis.set_major_locator(MaxNLocator(integer=True))
    upper.set_xlim(lower.get_xlim())
    upper.tick_params(labelbottom=False)
    return pair


def _depths(run: "Run[Any]", rows: int) -> range | tuple[int, ...]:
    """The depth step of each row: the recorded ones, or all up to the last."""
    return run.depths if rows == len(run.depths) else range(run.depth - rows + 1, run.depth + 1)


def _resampled(single: "Run[Any]") -> list[bool]:
    """Whether slots were copied on the way to each recorded depth step."""
    if single.ancestors is None:
        return [False] * len(single.depths)
    ancestors = as_array(single.ancestors[..., 0])
    return (ancestors != np.arange(single.width)).any(1).tolist()
