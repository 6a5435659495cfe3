"""Where a guide knows better than the prior: KL over depth and position."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from probgram.plots import axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def kl_map(kl: ArrayLike, axis: "Axes | None" = None) -> "Axes":
    """Draw KL(guide ‖ prior) in nats as a heat map: depth steps to the right, positions downwards.

    Args:
        kl: `[S, L]`, averaged over whatever else there was; NaN is hatched.
        axis: drawn on, or a new one.

    Raises:
        ValueError: not `[S, L]`, or nothing but NaN.
    """
    values = np.asarray(kl, dtype=np.float64)
    if values.ndim != 2 or not np.isfinite(values).any():
        raise ValueError(f"kl must be numbers [S, L], got shape {list(values.shape)}")
    steps, length = values.shape
    axis = axes.one(axis, 1.8 + 0.3 * min(steps, 32), 1.0 + 0.3 * min(length, 20))
    top = max(float(np.nanmax(values)), 1e-12)  # from 0: a KL of nothing is white, whatever the others are
    image = axis.imshow(values.T, aspect="auto", interpolation="none", cmap="Blues", vmin=0, vmax=top)
    axis.patch.set(facecolor="white", edgecolor="0.6", hatch="////")  # seen where there is no number
    axis.figure.colorbar(image, ax=axis, label="KL (nats)")
    axes.number(axis.xaxis, range(steps), range(1, steps + 1))
    axes.number(axis.yaxis, range(length), range(length))
    axis.set_xlabel("depth step")
    axis.set_ylabel("position")
    return axis
