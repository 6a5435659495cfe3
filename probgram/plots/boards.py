"""One answer as a board: squares with their symbols, or a graph with its vertices on a circle.

What a board looks like is the task's to say (`probgram.tasks.board.Board`); an answer of a task that says nothing
is a row of cells with the words of `decode`. Symbols are outlines in units of a cell: they fit whatever its size.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probgram.plots import axes
from probgram.plots.palette import BLUE, COLOURS, INK, VERMILLION, ink_on

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.path import Path

    from probgram.tasks import Task

SYMBOLS_UP_TO = 12  # rows or columns beyond which coloured cells are too small for a symbol
_DARK, _GIVEN = "#E4E4E4", "#C8C8C8"  # dark squares, cells that the problem tells


class Look(NamedTuple):
    """What is seen of one answer.

    Fields:
        symbols: text of each cell, "" for none, `[rows, columns]`.
        fills: colour behind each cell, "" for none, `[rows, columns]`.
        there: whether there is a cell, bool `[rows, columns]`.
        given: whether the problem tells it, likewise.
        broken: whether it breaks a rule, likewise.
        box: rows and columns between two thicker lines, or None.
        edges: pairs of cells that are vertices of a graph, `[E, 2]`; None: cells lie side by side.
    """

    symbols: NDArray[Any]
    fills: NDArray[Any]
    there: NDArray[np.bool_]
    given: NDArray[np.bool_]
    broken: NDArray[np.bool_]
    box: tuple[int, int] | None = None
    edges: NDArray[np.int64] | None = None


def board(task: "Task", x: ArrayLike, y: ArrayLike, axis: "Axes | None" = None) -> "Axes":
    """Draw one answer.

    What the problem gave is black and bold on grey, what the answer adds blue; cells that break a rule have a ring,
    edges of a graph that do are dashed.

    Args:
        task: says how its answers look.
        x: the problem, `[L]`.
        y: the answer, `[L]`.
        axis: drawn on, or a new one.
    """
    axis = axes.one(axis, 2.2, 2.2)
    look = look_of(task, np.asarray(x), np.asarray(y))
    if look.edges is None:
        _draw_cells(axis, look)
    else:
        _draw_graph(axis, look, look.edges)
    axis.set(aspect="equal", xticks=[], yticks=[])
    return axis


def frame(axis: "Axes", right: bool | None) -> None:
    """Frame a board: a solid line around a right answer, dashes around a wrong one, a thin line where unknown."""
    for spine in axis.spines.values():
        spine.set(linewidth=1.6 if right else 1.0, color=INK if right else "0.45", zorder=5)
        spine.set_linestyle("--" if right is False else "-")


def look_of(task: "Task", x: NDArray[Any], y: NDArray[Any]) -> Look:
    """How the answer y `[L]` of the problem x looks."""
    drawn = getattr(task, "board", None)
    if drawn is None:
        symbols = _words(task, y)
        nowhere = np.zeros(symbols.shape, bool)
        return Look(symbols, np.full(symbols.shape, "", object), ~nowhere, nowhere, nowhere)
    values = drawn.cells(y[None])[0]
    known = (values >= 0) & (values < len(drawn.symbols))
    symbols = np.where(known, np.array([*drawn.symbols, "?"], object)[np.where(known, values, -1)], "?")
    fills = np.full(values.shape, "", object)
    if drawn.chequered:
        fills[np.indices(values.shape).sum(0) % 2 == 1] = _DARK
    if drawn.colours:
        fills[known] = np.array(drawn.colours, object)[values[known]]
    nowhere = np.zeros(values.shape, bool)
    return Look(
        symbols,
        fills,
        values >= 0,
        nowhere if drawn.given is None else drawn.given(x),
        nowhere if drawn.broken is None else drawn.broken(x, y[None])[0],
        drawn.box,
        None if drawn.edges is None else drawn.edges(x),
    )


def _words(task: "Task", y: NDArray[Any]) -> NDArray[Any]:
    """The words of `decode` in their lines, or its characters, or the tokens, `[rows, columns]`."""
    text = task.decode(y)
    lines = [line.split() for line in text.splitlines()]
    if sum(map(len, lines)) == len(y) and len({len(line) for line in lines}) == 1:
        return np.array(lines, object)
    return np.array([list(text) if len(text) == len(y) else [str(token) for token in y.tolist()]], object)


def _draw_cells(axis: "Axes", look: Look) -> None:
    from matplotlib.collections import LineCollection, PolyCollection

    rows, columns = look.symbols.shape
    corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1)])
    where = np.argwhere(look.there)[:, ::-1]  # x, y of the upper left corners
    coloured = look.fills != ""
    fills = np.where(look.given & (look.symbols != ""), _GIVEN, np.where(coloured, look.fills, "white"))
    squares = where[:, None] + corners
    axis.add_collection(
        PolyCollection(list(squares), facecolors=fills[look.there], edgecolors="0.6", linewidths=0.4)
    )
    if look.box is not None:
        height, width = look.box
        lines = [((0, r), (columns, r)) for r in range(0, rows + 1, height)]
        lines += [((c, 0), (c, rows)) for c in range(0, columns + 1, width)]
        axis.add_collection(LineCollection(lines, colors="black", linewidths=1.2))
    if not coloured.all() or max(rows, columns) <= SYMBOLS_UP_TO:
        _draw_symbols(axis, look, np.indices(look.symbols.shape)[::-1].transpose(1, 2, 0) + 0.5)
    rings = np.argwhere(look.broken & look.there)[:, None, ::-1] + 0.1 + 0.8 * corners
    axis.add_collection(PolyCollection(list(rings), facecolors="none", edgecolors=VERMILLION, linewidths=1.5))
    axis.set(xlim=(0, columns), ylim=(rows, 0))


def _draw_graph(axis: "Axes", look: Look, edges: NDArray[np.int64]) -> None:
    from matplotlib.collections import LineCollection, PatchCollection
    from matplotlib.patches import Circle

    symbols, broken = look.symbols.reshape(-1), look.broken.reshape(-1)
    angle = 2 * np.pi * np.arange(len(symbols)) / len(symbols)
    places = 2.6 * np.stack([np.sin(angle), -np.cos(angle)], -1)  # vertex 0 at the top, then clockwise
    bad = broken[edges].all(-1) & (symbols[edges[:, 0]] == symbols[edges[:, 1]])
    for chosen, colour, width, dashes in ((~bad, "0.5", 1.0, "-"), (bad, VERMILLION, 2.0, (0, (2, 1)))):
        axis.add_collection(
            LineCollection(places[edges[chosen]], colors=colour, linewidths=width, linestyles=[dashes], zorder=1)
        )
    numbers = {symbol: k for k, symbol in enumerate(sorted(set(symbols)))}
    fills = np.array([COLOURS[numbers[symbol] % len(COLOURS)] for symbol in symbols], object)
    circles = [Circle((float(x), float(y)), 0.55) for x, y in places]
    edge = np.where(broken, VERMILLION, "black")
    widths = np.where(broken, 2.0, 0.6)
    axis.add_collection(PatchCollection(circles, facecolors=fills, edgecolors=edge, linewidths=widths, zorder=2))
    _draw_symbols(axis, look._replace(fills=fills.reshape(look.symbols.shape)), places[None])
    axis.set(xlim=(-3.3, 3.3), ylim=(3.3, -3.3))


def _draw_symbols(axis: "Axes", look: Look, centres: NDArray[Any]) -> None:
    """Draw the symbols, one patch for each colour of ink, centred at `[rows, columns, 2]`."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    outlines: dict[str, list[Path]] = {}
    words = {word for word in look.symbols[look.there] if word}
    shapes = {(word, bold): _outline(word, bold) for word in words for bold in (False, True)}
    if not shapes:
        return
    extents = [shape.get_extents() for shape in shapes.values()]
    size = min(0.64 / max(extent.height for extent in extents), 0.8 / max(extent.width for extent in extents))
    for r, c in np.argwhere(look.there & (look.symbols != "")):
        given, fill = bool(look.given[r, c]), look.fills[r, c]
        ink = "black" if given else BLUE if fill in ("", _DARK) else ink_on(fill)
        shape = shapes[look.symbols[r, c], given]
        middle = shape.get_extents().get_points().mean(0)
        outline = Path((shape.vertices - middle) * (size, -size) + centres[r, c], shape.codes)  # rows count down
        outlines.setdefault(ink, []).append(outline)
    for ink, paths in outlines.items():
        axis.add_patch(PathPatch(Path.make_compound_path(*paths), facecolor=ink, linewidth=0, zorder=3))


def _outline(word: str, bold: bool) -> "Path":
    """The outline of a word, one unit high from line to line, in the font that matplotlib brings."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    return TextPath((0, 0), word, 1.0, FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal"))
