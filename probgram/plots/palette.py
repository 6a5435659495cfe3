"""Colours that colour-blind readers tell apart, and what tells the same things apart without colour.

The seven colours are those of Okabe and Ito, "Color Universal Design", 2008, without black, in an order in which
neighbours differ in a grey print too. Beside a colour always stands a marker, a letter, a ring or a dash.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

BLUE, ORANGE, GREEN, SKY, VERMILLION, YELLOW, PURPLE = COLOURS = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#56B4E9",
    "#D55E00",
    "#F0E442",
    "#CC79A7",
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")  # one more than colours: 56 pairs before one returns
DASHES: tuple[str | tuple[int, tuple[float, ...]], ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
GREY = (0.85, 0.85, 0.85, 1.0)  # wrong answers
INK = "0.25"  # lines and letters beside the colours


class Style(NamedTuple):
    """How the k-th of several things is drawn."""

    colour: str
    marker: str
    dashes: str | tuple[int, tuple[float, ...]]


def style(k: int) -> Style:
    """Of the k-th thing, from 0."""
    return Style(COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)], DASHES[k % len(DASHES)])


def luminance(colour: ArrayLike | str) -> NDArray[np.float64]:
    """Relative luminance of colours, 0 black to 1 white.

    Args:
        colour: a name or code of matplotlib, or sRGB in [0, 1], `[..., 3 or 4]`.

    Source: W3C, Web Content Accessibility Guidelines 2.2, "relative luminance".
    """
    from matplotlib.colors import to_rgb

    values = np.asarray(to_rgb(colour) if isinstance(colour, str) else colour, dtype=np.float64)[..., :3]
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return linear @ np.array([0.2126, 0.7152, 0.0722])


def ink_on(colour: ArrayLike | str) -> str:
    """Black or white, whichever is read better on a colour."""
    return "black" if luminance(colour) > 0.179 else "white"  # there both have a contrast of 4.6 to 1
