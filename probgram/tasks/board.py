"""How a task's answers look as boards of cells; of a task without a `Board`, `decode` is the picture."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Cells = NDArray[np.int64]  # values of cells, [..., rows, columns]; -1 where there is no cell
Marks = NDArray[np.bool_]


class Board(NamedTuple):
    """What a cell shows, and which cells an answer fills.

    Fields:
        symbols: text of a cell, by its value.
        cells: values of the cells of answers `[M, L]`, `[M, rows, columns]`; -1 where there is no cell.
        problem: likewise of one problem, `[rows, columns]`; None: a problem is no such board.
        given: cells of a problem that every answer must keep, bool `[rows, columns]`; None: there are none.
        broken: `(x, y [M, L]) -> bool [M, rows, columns]`, cells that break a rule; None: not known cell by cell.
        colours: "#rrggbb" behind a cell, by its value; (): none.
        box: rows and columns between two thicker lines; None: no such lines.
        chequered: whether the squares are light and dark by turns.
        edges: pairs of cells of a problem, counted row by row, `[E, 2]`, where cells are vertices of a graph; None:
            cells lie side by side.
    """

    symbols: tuple[str, ...]
    cells: Callable[[NDArray[np.int64]], Cells]
    problem: Callable[[NDArray[np.int64]], Cells] | None = None
    given: Callable[[NDArray[np.int64]], Marks] | None = None
    broken: Callable[[NDArray[np.int64], NDArray[np.int64]], Marks] | None = None
    colours: tuple[str, ...] = ()
    box: tuple[int, int] | None = None
    chequered: bool = False
    edges: Callable[[NDArray[np.int64]], NDArray[np.int64]] | None = None


def crowded(marked: Marks, lines: Marks) -> Marks:
    """Which of the marked cells share a line with another marked one.

    Args:
        marked: `[M, cells]`.
        lines: which cells lie on each line, `[lines, cells]`.
    """
    on = lines.astype(np.float32)  # a product of floats: of integers it would be slow
    full = marked.astype(np.float32) @ on.T > 1
    return marked & (full.astype(np.float32) @ on > 0)


def in_rows(values: NDArray[np.int64], columns: int) -> Cells:
    """Break rows of tokens `[M, L]` into lines of at most `columns`, `[M, rows, columns]`."""
    length = values.shape[-1]
    columns = min(columns, length)
    padded = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, -length % columns)], constant_values=-1)
    return padded.reshape(*values.shape[:-1], -1, columns)
