"""What trajectories answer after each depth step: as colours, and as boards."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from probgram.fields import as_array
from probgram.plots import axes
from probgram.plots.answers import WRONG, NamedAnswers, named_answers, percent
from probgram.plots.boards import board, frame
from probgram.plots.palette import GREY, INK, ink_on, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from probgram.run import Run
    from probgram.tasks import Task

CELLS_WITH_LETTERS = 1_000  # cells beyond which letters would be specks
STAYS = "•"  # at the same wrong answer
LABELS = 40  # share labels that fit beside a picture


def answers_over_depth(
    run: "Run[Any]", task: "Task | None", problem: int = 0, axis: "Axes | None" = None
) -> "Axes":
    """Draw what each trajectory answers after each depth step: a row a trajectory, a colour a right answer.

    Rows are lines of descent, the most probable last answer on top. A letter stands where a trajectory comes to an
    answer. Wrong answers are grey, with a cross where a trajectory comes to one and a dot where it stays at it.

    Args:
        run: made with `keep="paths"`.
        task: verifies the answers; None: all have colours.
        problem: index among the B problems.
        axis: drawn on, or a new one.
    """
    named, depths = named_answers(run, task, problem), run.depths
    order = np.argsort(named.along[-1], kind="stable")
    number = named.along[:, order].T  # [N, S]
    width, steps = number.shape
    axis = axes.one(axis, 6, 0.9 + 0.17 * min(width, 100))
    axis.imshow(_colours(named)[number], aspect="auto", interpolation="none")
    if number.size <= CELLS_WITH_LETTERS:
        changed = np.diff(number, axis=1, prepend=-1) != 0
        size = min(8.0, 160 / width)
        for row, s in np.argwhere(changed | named.wrong[number]):
            k = number[row, s]
            ink = "0.45" if named.wrong[k] else ink_on(style(k).colour)
            word = named.letter(k) if changed[row, s] else STAYS
            axis.text(s, row, word, color=ink, size=size, ha="center", va="center_baseline")
    last = number[:, -1]
    kept = np.where(named.wrong[last], len(named.answers), last)  # wrong ones are one group
    for k in np.unique(kept):
        rows = np.flatnonzero(kept == k)
        if rows[0]:
            axis.axhline(rows[0] - 0.5, color="white", linewidth=1.5)
    _label_groups(axis, named, kept)
    axes.number(axis.xaxis, range(steps), depths)
    axis.set_yticks([])
    axis.set_xlabel("depth step")
    axis.set_ylabel("trajectory")
    return axis


def _label_groups(axis: "Axes", named: NamedAnswers, kept: NDArray[np.int64]) -> None:
    """Write letter and share of each last answer to the right of its rows."""
    wrong = len(named.answers)
    for k, count in zip(*np.unique(kept, return_counts=True), strict=True):
        if count < len(kept) / LABELS:
            continue  # its label would touch the next one
        label = f"{WRONG} {percent(named.shares[named.wrong].sum())}" if k == wrong else named.label(k)
        middle = np.flatnonzero(kept == k).mean()
        axis.annotate(
            label, (1.01, middle), xycoords=("axes fraction", "data"), va="center", size=9, annotation_clip=False
        )


def _colours(named: NamedAnswers) -> NDArray[np.float64]:
    """A colour for each answer, `[M, 4]`."""
    from matplotlib.colors import to_rgba

    rows = [GREY if wrong else to_rgba(style(k).colour) for k, wrong in enumerate(named.wrong)]
    return np.array(rows)


def boards_over_depth(
    run: "Run[Any]",
    task: "Task",
    problem: int = 0,
    by: Literal["answer", "trajectory"] = "answer",
    rows: int = 5,
    steps: Sequence[int] | None = None,
    axis: Any = None,
) -> NDArray[Any]:
    """Draw answers over depth as small boards: a row a trajectory, a column a depth step.

    Boards of right answers have a solid frame, wrong ones dashes, and rings around the cells that break a rule.

    Args:
        run: made with `keep="paths"`.
        task: verifies the answers, and says how they look.
        problem: index among the B problems.
        by: "answer": for each last answer the heaviest of the trajectories that came to it; "trajectory": the
            heaviest trajectories, whatever they answer.
        rows: at most so many, the most probable ones.
        steps: which depth steps; None: the first, the last and up to five between, closer together at the start.
        axis: array of axes to draw on, as many as there are boards; or new ones.

    Returns:
        The axes, `[rows, columns]`.

    Raises:
        ValueError: another `by`, rows below 1, a depth step that was not recorded, or axes of another number.
    """
    if by not in ("answer", "trajectory"):
        raise ValueError(f'by must be "answer" or "trajectory", got {by!r}')
    if rows < 1:
        raise ValueError(f"rows must be at least 1, got {rows}")
    columns = _steps(run.depths, steps)
    named, x = named_answers(run, task, problem), as_array(run[problem].x[0])
    chosen = _chosen(named, by)[:rows]
    grid = axes.many(axis, len(chosen), len(columns), 1.15, 1.25)
    for row, i in zip(grid, chosen, strict=True):
        for drawn, s in zip(row, columns, strict=True):
            k = int(named.along[s, i])
            board(task, x, named.answers[k], drawn)
            frame(drawn, None if named.right is None else bool(named.right[k]))
            drawn.set_xlabel(named.letter(k), size=9, color=INK, labelpad=2)
        last = int(named.along[-1, i])
        label = named.label(last) if by == "answer" else f"trajectory {i}"
        row[0].set_ylabel(label, size=10, rotation=0, ha="right", va="center", labelpad=6)
    for drawn, s in zip(grid[0], columns, strict=True):
        drawn.set_title(f"depth {run.depths[s]}", size=10)
    return grid


def _chosen(named: NamedAnswers, by: str) -> list[int]:
    """Trajectories to be shown, the most probable answers first."""
    heaviest = np.argsort(-named.weights, kind="stable")
    if by == "trajectory":
        return heaviest.tolist()
    last = named.along[-1][heaviest]
    return [int(heaviest[last == k][0]) for k in named.probable]


def _steps(depths: Sequence[int], steps: Sequence[int] | None) -> list[int]:
    """Rows of the record that are shown."""
    if steps is None:
        count = len(depths)
        return sorted({round(float(place)) - 1 for place in np.geomspace(1, count, min(7, count))})
    unknown = [step for step in steps if step not in depths]
    if unknown:
        raise ValueError(f"steps must be among the recorded depth steps {list(depths)}, got {unknown[0]}")
    return [depths.index(step) for step in steps]
