"""The posterior over answers, drawn as boards with their shares."""

from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from probgram.fields import as_array
from probgram.plots import axes
from probgram.plots.answers import named_answers, percent
from probgram.plots.boards import board, frame
from probgram.plots.palette import INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from probgram.run import Run
    from probgram.tasks import Task


def answer_posterior(
    run: "Run[Any]", task: "Task", problem: int = 0, most: int = 8, axis: Any = None
) -> NDArray[Any]:
    """Draw the different last answers, the most probable first, each with its share as a bar below it.

    Verified ones have a tick and a solid frame, wrong ones a cross, a dashed frame, and rings around the cells that
    break a rule.

    Args:
        run: with its last depth step recorded.
        task: verifies the answers, and says how they look.
        problem: index among the B problems.
        most: at most so many boards; what the others have together is said beside the last.
        axis: array of axes to draw on, as many as there are boards; or new ones.

    Returns:
        The axes, `[answers]`.

    Raises:
        ValueError: most is below 1, or axes of another number.
    """
    if most < 1:
        raise ValueError(f"most must be at least 1, got {most}")
    named = named_answers(run, task, problem)
    x = as_array(run[problem].x[0])
    shown, rest = named.probable[:most], named.probable[most:]
    grid = axes.many(axis, 1, len(shown), 1.6, 2.1)[0]
    for drawn, k in zip(grid, shown, strict=True):
        board(task, x, named.answers[k], drawn)
        frame(drawn, None if named.right is None else bool(named.right[k]))
        drawn.set_title(named.label(k), size=10)
        _bar(drawn, float(named.shares[k]))
    if rest:
        others = f"and {len(rest)} more: {percent(named.shares[rest].sum())}"
        grid[-1].annotate(others, (1.06, 0.5), xycoords="axes fraction", va="center", size=9, annotation_clip=False)
    return grid


def _bar(axis: "Axes", share: float) -> None:
    """A bar below a board, as long as the share of its width."""
    for length, colour in ((1.0, "0.88"), (share, INK)):
        axis.plot(
            [0, length], [-0.09, -0.09], color=colour, linewidth=4, solid_capstyle="butt", clip_on=False,
            transform=axis.transAxes, scalex=False, scaley=False,
        )  # fmt: skip
