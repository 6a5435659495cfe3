"""Symmetries of Sudoku: a board's symmetric images, and keys that all images of a board share.

A symmetry exchanges bands, rows within a band, stacks, columns within a stack, for square boxes rows with
columns, and relabels the digits (for 9x9 boards 3,359,232 geometries times 9! relabellings: Russell and
Jarvis, 2006). Images of a puzzle are puzzles, and images of its solutions are theirs.
"""

import itertools
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from probgram.tasks.sudoku_solver import Box, units

ROUNDS = 4  # of refinement: what a cell knows travels twice across the board
CHUNK = 1_024  # boards whose images, or whose refined cells, are in memory at once


class Symmetries(NamedTuple):
    """One symmetry for each of M boards.

    Fields:
        cells: where each cell of the image is taken from, `[M, L]`.
        digits: what each digit becomes, blank (0) staying blank, `[M, n + 1]`.
    """

    cells: NDArray[np.int64]
    digits: NDArray[np.int64]

    def of(self, boards: NDArray[Any]) -> NDArray[Any]:
        """The images of boards `[M, L]`, or of several a symmetry, `[M, A, L]`."""
        between = (1,) * (boards.ndim - 2)
        moved = np.take_along_axis(boards, self.cells.reshape(len(boards), *between, -1), -1)
        return np.take_along_axis(self.digits.reshape(len(boards), *between, -1), moved, -1).astype(boards.dtype)


def random_symmetries(box: Box, count: int, generator: np.random.Generator) -> Symmetries:
    """Draw symmetries uniformly and independently."""
    height, width = box
    n = height * width

    def orders(*shape: int) -> NDArray[np.int64]:
        return generator.random((count, *shape)).argsort(-1)

    rows = (orders(width)[..., None] * height + orders(width, height)).reshape(count, n, 1)
    columns = (orders(height)[..., None] * width + orders(height, width)).reshape(count, 1, n)
    cells = rows * n + columns
    if height == width:
        cells = np.where(generator.random((count, 1, 1)) < 0.5, cells, cells.swapaxes(1, 2))
    digits = np.concatenate([np.zeros((count, 1), np.int64), orders(n) + 1], 1)
    return Symmetries(cells.reshape(count, n * n), digits)


def orbit_keys(x: NDArray[Any], box: Box) -> NDArray[np.uint64]:
    """A key for each board `[M, L]` that all its symmetric images share, `[M]`.

    For 4x4 boards the key is of the orbit itself: boards of different orbits have different keys. For larger ones
    it is an invariant, so that orbits may share a key, which makes a split by key safe and a little coarser.
    """
    key = _exact_key if box == (2, 2) else _refined_key
    parts = [key(x[i : i + CHUNK], box) for i in range(0, len(x), CHUNK)]
    return np.concatenate(parts) if parts else np.zeros(0, np.uint64)


@lru_cache
def geometries(box: Box) -> NDArray[np.int64]:
    """Every exchange of cells, as `Symmetries.cells`, `[G, L]`; 128 for 4x4 boards."""
    height, width = box
    n = height * width
    rows, columns = _line_orders(width, height), _line_orders(height, width)
    cells = rows[:, None, :, None] * n + columns[None, :, None, :]  # [R, C, n, n]
    both = [cells, cells.swapaxes(2, 3)] if height == width else [cells]
    return np.concatenate([part.reshape(-1, n * n) for part in both])


def _line_orders(groups: int, size: int) -> NDArray[np.int64]:
    """Orders of groups·size lines that keep the groups together."""
    within = list(itertools.permutations(range(size)))
    return np.array(
        [
            [group * size + line for group, lines in zip(outer, inner, strict=True) for line in lines]
            for outer in itertools.permutations(range(groups))
            for inner in itertools.product(within, repeat=groups)
        ]
    )


def _exact_key(x: NDArray[Any], box: Box) -> NDArray[np.uint64]:
    """The least image, its digits named in the order in which they appear, read as a number of base n + 1.

    The cells of one digit weigh more, together, the earlier the first of them comes: names are ranks of weights.
    """
    n = box[0] * box[1]
    images = geometries(box)
    places = float(n + 1) ** np.arange(n * n)[::-1]  # below 2^53 for 4x4 boards, so floats are exact
    weights = np.empty((n * n, len(images)))
    weights[images.T, np.arange(len(images))] = places[:, None]
    digits = (x[:, None] == np.arange(1, n + 1)[:, None]) @ weights  # [M, n, G]
    heaviest_first = -np.sort(-digits, 1)
    return np.tensordot(np.arange(1, n + 1), heaviest_first, (0, 1)).min(-1).astype(np.uint64)


def _refined_key(x: NDArray[Any], box: Box) -> NDArray[np.uint64]:
    """Colour refinement (Weisfeiler and Leman, 1968): cells are told apart by the cells they share a unit with.

    Every symmetry carries rows to rows or columns, boxes to boxes, equal digits to equal digits, and a cell's
    new colour is a function of its own and of the *sets* of colours in its row and column (taken alike), in its
    box, and where its digit stands. So the colours of an image are those of the board, moved; their sum is equal.
    """
    rows, columns, boxes = units(box)
    n = len(rows)
    same = (x[:, None] == np.arange(1, n + 1)[:, None]).astype(np.uint64)  # [M, n, L]
    colour = _mixed((x != 0).astype(np.uint64))
    for _ in range(ROUNDS):
        digit = ((same * colour[:, None]).sum(-1)[..., None] * same).sum(1)  # [M, L]; 0 for a blank
        row, column, square = (_unit_sums(colour, unit) for unit in (rows, columns, boxes))
        lines = _mixed(row) + _mixed(column)
        colour = _mixed(_mixed(_mixed(_mixed(colour) + lines) + square) + digit)
    return _mixed(colour.sum(-1))


def _unit_sums(colour: NDArray[np.uint64], unit: NDArray[np.int64]) -> NDArray[np.uint64]:
    """For each cell the sum over its unit, `[M, L]`."""
    sums = np.empty_like(colour)
    sums[:, unit] = colour[:, unit].sum(-1, keepdims=True)
    return sums


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A one-to-one scattering of 64-bit numbers (the finaliser of SplitMix64: Steele, Lea and Flood, 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
