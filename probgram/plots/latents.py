"""Latent trajectories over depth, in the plane in which a problem's latents vary most."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from probgram.fields import as_array, leaves, widened
from probgram.plots import axes
from probgram.plots.answers import WRONG, named_answers, percent
from probgram.plots.palette import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from probgram.run import Run
    from probgram.tasks import Task


class Plane(NamedTuple):
    """Two principal components of latents.

    Fields:
        places: of every latent, `[S, N, 2]`.
        explained: share of the variance that each component has, `[2]`.
    """

    places: NDArray[np.float64]
    explained: NDArray[np.float64]


def latent_paths(
    run: "Run[Any]",
    task: "Task | None",
    problem: int = 0,
    of: "Callable[[Any], Any] | None" = None,
    axis: "Axes | None" = None,
) -> "Axes":
    """Draw the latents of each trajectory over depth, projected onto two principal components.

    A line follows one final trajectory through its ancestors, from an open dot after the first depth step to a
    large marker after the last. Colour, marker and letter say what it answers in the end; wrong ones are grey.

    Args:
        run: kept its states, as `smc.run(chain, x, potential=None, keep="latents")` does.
        task: verifies the answers; None: all have colours.
        problem: index among the B problems.
        of: picks an array `[S, N, 1, ...]` out of the states; None: all of them, side by side.
        axis: drawn on, or a new one.

    Raises:
        ValueError: the run did not keep its states.
    """
    if run.states is None:
        raise ValueError('the run did not keep its states: run the filter with keep="latents"')
    single, named = run[problem], named_answers(run, task, problem)
    plane = principal_plane(_rows(single.states if of is None else of(single.states)))
    lines = as_array(single.lines()[..., 0])
    paths = np.take_along_axis(plane.places, lines[..., None], 1)  # [S, N, 2]
    axis = axes.one(axis, 6.5, 5)
    last = np.where(named.wrong[named.along[-1]], len(named.answers), named.along[-1])  # wrong ones are one group
    for k in np.unique(last).tolist():
        wrong, look, of_answer = k == len(named.answers), style(k), paths[:, last == k]
        colour, edge, label = look.colour, "black", "" if wrong else named.label(k)
        if wrong:
            colour, edge, label = "0.6", "0.6", f"{WRONG} {percent(named.shares[named.wrong].sum())}"
        above = 2 - wrong
        axis.plot(*of_answer.transpose(2, 0, 1), color=colour, linewidth=1, alpha=0.8, zorder=above)
        axis.plot(*of_answer.reshape(-1, 2).T, ".", color=colour, markersize=3, zorder=above)
        ends = axis.plot(
            *of_answer[-1].T, "x" if wrong else look.marker, color=colour, label=label, zorder=above + 2
        )
        ends[0].set(markersize=8, markeredgecolor=edge, markeredgewidth=1.5 if wrong else 0.6)
    axis.plot(*paths[0].T, "o", color="white", markeredgecolor="0.25", markersize=4, zorder=5, label="first step")
    axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axis.set_aspect("equal", adjustable="datalim")
    for name, share, letter in zip(("first", "second"), plane.explained, "xy", strict=True):
        axis.set(**{f"{letter}label": f"{name} principal component ({share:.0%} of the variance)"})
    return axis


def principal_plane(latents: NDArray[np.float64]) -> Plane:
    """Project latents `[S, N, D]` onto their two principal components.

    A component points so that its largest entry is positive: same latents, same picture.
    """
    steps, width, size = latents.shape
    centred = latents.reshape(-1, size) - latents.mean((0, 1))
    _, scales, directions = np.linalg.svd(centred, full_matrices=False)
    two = np.zeros((2, size))
    two[: min(2, len(directions))] = directions[:2]
    largest = np.take_along_axis(two, np.abs(two).argmax(1)[:, None], 1)
    two *= np.where(largest < 0, -1, 1)
    variance = np.zeros(max(2, len(scales)))
    variance[: len(scales)] = scales**2
    return Plane((centred @ two.T).reshape(steps, width, 2), variance[:2] / max(variance.sum(), 1e-300))


def _rows(states: Any) -> NDArray[np.float64]:
    """All leaves `[S, N, 1, ...]` side by side, `[S, N, D]`."""
    parts = [widened(leaf).astype(np.float64) for _, leaf in leaves(states)]
    parts = [part.reshape(*part.shape[:2], -1) for part in parts]
    return np.concatenate(parts, -1)
