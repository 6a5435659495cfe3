"""Rotary positions (Su et al., arXiv 2104.09864): the tables that both backends rotate by."""

import numpy as np
from numpy.typing import NDArray


def rotary_tables(
    length: int, size: int, theta: float = 10_000.0
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines, and sines with the sign of x·cos + roll(x)·sin, of each position and feature.

    Computed in float64 and rounded once, so that every backend has the same numbers.

    Args:
        length: L.
        size: features of a head, even.
        theta: the base of the wave lengths.

    Returns:
        `(cos, sin)`, `[L, size]` each.
    """
    half = size // 2
    angle = np.arange(length)[:, None] * theta ** (-np.arange(half) / half)
    cos, sin = np.cos(angle), np.sin(angle)
    return (
        np.concatenate([cos, cos], 1).astype(np.float32),
        np.concatenate([-sin, sin], 1).astype(np.float32),
    )
