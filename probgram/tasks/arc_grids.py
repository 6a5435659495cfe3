"""ARC grids: as tokens, under symmetries and exchanged colours, by majority, drawn.

A grid has up to 30x30 cells of ten colours, 0 (black) to 9. As tokens it lies in the upper left corner of a square
canvas, read row by row, and two markers say its size: the token EDGE right of the first row's last cell and below
the first column's last cell (none where the grid fills the canvas). What lies beyond is free.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.text import Text

    from probgram.tasks.task import Array

Grid = NDArray[np.int64]  # [rows, columns]

COLOURS = 10
EDGE = 10  # the token that ends the first row and the first column
LARGEST = 30  # cells a side
PALETTE = (
    "#000000",
    "#0074D9",
    "#FF4136",
    "#2ECC40",
    "#FFDC00",
    "#AAAAAA",
    "#F012BE",
    "#FF851B",
    "#7FDBFF",
    "#870C25",
)
OFF_PALETTE = "#FFFFFF"  # an EDGE inside of a grid: no colour, so never right


def as_grid(cells: Any) -> Grid:
    """Bring a grid to an array, int64 `[rows, columns]`.

    Raises:
        ValueError: not 1 to 30 rows of equal length with colours from 0 to 9.
    """
    try:
        grid = np.asarray(cells)
    except ValueError:
        raise ValueError("a grid must have rows of one length") from None
    if grid.ndim != 2 or not 1 <= min(grid.shape) <= max(grid.shape) <= LARGEST:
        raise ValueError(f"a grid must have 1 to {LARGEST} rows and columns, got shape {list(grid.shape)}")
    if not np.issubdtype(grid.dtype, np.integer) or grid.min() < 0 or grid.max() >= COLOURS:
        raise ValueError(f"a grid must hold colours from 0 to {COLOURS - 1}")
    return grid.astype(np.int64)


def tokens(grid: Grid, side: int, beyond: int) -> NDArray[np.int64]:
    """Lay a grid on a canvas of `side` times `side` tokens, `[side²]`.

    Args:
        grid: no larger than the canvas.
        side: of the canvas.
        beyond: what stands outside of the grid, apart from the two markers.
    """
    canvas = np.full((side, side), beyond, dtype=np.int64)
    rows, columns = grid.shape
    canvas[:rows, :columns] = grid
    if rows < side:
        canvas[rows, 0] = EDGE
    if columns < side:
        canvas[0, columns] = EDGE
    return canvas.reshape(-1)


def grid_of(y: "Array") -> Grid:
    """Read the grid off a canvas `[side²]`, as far as its first two markers; without any, all of it.

    A marker in the very first cell, which no grid has, gives a grid of one cell that holds it.
    """
    flat = np.asarray(y.cpu() if hasattr(y, "cpu") else y).astype(np.int64)
    side = round(flat.size**0.5)
    if side * side != flat.size:
        raise ValueError(f"tokens of a grid must fill a square canvas, got {flat.size}")
    canvas = flat.reshape(side, side)
    ends = [np.append(np.flatnonzero(line == EDGE), side)[0] for line in (canvas[:, 0], canvas[0])]
    return canvas[: max(1, ends[0]), : max(1, ends[1])]


def canonical(y: "Array") -> "Array":
    """Canvases `[..., side²]`, of any library and type, with EDGE wherever they lie beyond their grids."""
    side = round(y.shape[-1] ** 0.5)
    canvas = y.reshape(*y.shape[:-1], side, side)
    first: Any = np.arange(side) == 0  # that row and column always belong to the grid
    if hasattr(y, "new_tensor"):
        first = y.new_tensor(first) > 0
    rows, columns = (((line == EDGE).cumsum(-1) == 0) | first for line in (canvas[..., 0], canvas[..., 0, :]))
    inside = rows[..., :, None] & columns[..., None, :]
    return ((canvas - EDGE) * inside + EDGE).reshape(y.shape)  # a number below 0 of an unsigned type comes back


# -- symmetries and colours -----------------------------------------------------------------------------------


class Augmentation(NamedTuple):
    """One of the square's eight symmetries, then an exchange of colours.

    Fields:
        turn: 0 to 7: so many quarter turns modulo 4, transposed first from 4 on.
        colours: what each of the ten colours becomes.
    """

    turn: int = 0
    colours: tuple[int, ...] = tuple(range(COLOURS))

    @classmethod
    def draw(cls, generator: np.random.Generator) -> Self:
        """One of the eight symmetries and 9! exchanges that keep black, the background, uniformly."""
        return cls(int(generator.integers(8)), (0, *(int(c) for c in 1 + generator.permutation(COLOURS - 1))))

    def apply(self, grid: Grid) -> Grid:
        """The grid so changed."""
        turned = np.rot90(grid.T if self.turn >= 4 else grid, self.turn % 4)
        return _recoloured(turned, np.array(self.colours))

    def undo(self, grid: Grid) -> Grid:
        """The grid that `apply` makes this one of."""
        turned = np.rot90(grid, -(self.turn % 4))
        return _recoloured(turned.T if self.turn >= 4 else turned, np.argsort(self.colours))


def _recoloured(grid: Grid, table: NDArray[np.int64]) -> Grid:
    return np.append(table, [EDGE, EDGE + 1])[grid]  # what is no colour stays what it is


def draw_augmentations(count: int, seed: Any) -> list[Augmentation]:
    """The identity, then `count` different augmentations, none of them the identity."""
    generator = np.random.default_rng(seed)
    found = {Augmentation(): None}  # in the order of the draws
    while len(found) <= count:
        found[Augmentation.draw(generator)] = None
    return list(found)


# -- majority -------------------------------------------------------------------------------------------------


class Voted(NamedTuple):
    """A grid and the share of the votes it got."""

    grid: Grid
    share: float


def majority(grids: Iterable[Grid], weights: Iterable[float] | None = None) -> list[Voted]:
    """The different grids, the most voted first; of equals the one that came first.

    Args:
        grids: predictions; equal ones are of one size and have equal cells.
        weights: of each, at least 0; None: equal.

    Raises:
        ValueError: no grid, or weights that are all 0.
    """
    kept = list(grids)
    total: dict[tuple[Any, ...], float] = {}
    first: dict[tuple[Any, ...], Grid] = {}
    for grid, weight in zip(kept, [1.0] * len(kept) if weights is None else weights, strict=True):
        key = (grid.shape, grid.tobytes())
        first.setdefault(key, grid)
        total[key] = total.get(key, 0.0) + float(weight)
    everything = sum(total.values())
    if not everything > 0:
        raise ValueError("a vote needs a grid with a weight above 0")
    ranked = sorted(total, key=lambda key: -total[key])  # stable
    return [Voted(first[key], total[key] / everything) for key in ranked]


# -- drawing --------------------------------------------------------------------------------------------------


def text(grid: Grid) -> str:
    """The colours' numbers, a line a row; X for a marker, which is no colour."""
    return "\n".join(" ".join("X" if cell == EDGE else str(int(cell)) for cell in row) for row in grid)


def blocks(grid: Grid) -> "Text":
    """Coloured blocks for a terminal, to be printed by a `rich` console."""
    from rich.text import Text

    lines = [Text("".join("  " for _ in row)) for row in grid]
    for line, row in zip(lines, grid, strict=True):
        for column, cell in enumerate(row):
            line.stylize(f"on {(*PALETTE, OFF_PALETTE)[cell]}", 2 * column, 2 * column + 2)
    return Text("\n").join(lines)


def picture(grid: Grid, axes: "Axes | None" = None) -> "Axes":
    """Draw a grid in the usual colours.

    Args:
        grid: colours `[rows, columns]`.
        axes: where; None: of a new figure.

    Returns:
        The axes drawn on.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    axes = Figure().subplots() if axes is None else axes
    rows, columns = grid.shape
    colours = ListedColormap([*PALETTE, OFF_PALETTE])
    axes.pcolormesh(grid, cmap=colours, vmin=-0.5, vmax=COLOURS + 0.5, edgecolors="#555555", linewidth=0.5)
    axes.set(xlim=(0, columns), ylim=(rows, 0), aspect="equal", xticks=[], yticks=[])
    return axes
