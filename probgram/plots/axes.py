"""Where a picture is drawn: on the axes that were given, or on new ones."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

TICKS = 24  # labels beyond which they would touch


def one(axis: "Axes | None", width: float, height: float) -> "Axes":
    """The axes given, or those of a new figure of so many inches."""
    if axis is not None:
        return axis
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def many(axis: Any, rows: int, columns: int, width: float, height: float) -> NDArray[Any]:
    """The array of axes given, or a new figure's: `[rows, columns]`, each of so many inches.

    Raises:
        ValueError: the array has another shape.
    """
    if axis is not None:
        given = np.asarray(axis)
        if given.size != rows * columns:
            raise ValueError(f"axis must hold {rows} x {columns} axes, got shape {list(given.shape)}")
        return given.reshape(rows, columns)
    import matplotlib.pyplot as plt

    size = (width * columns, height * rows)
    return plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)[1]


def number(axis: "Axis", places: Sequence[float], labels: Sequence[int]) -> None:
    """Label places with numbers, every second or so where there are many."""
    every = slice(None, None, 1 + (len(places) - 1) // TICKS)
    axis.set_ticks(list(places)[every], labels=[str(label) for label in labels[every]])
