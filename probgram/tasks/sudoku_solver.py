"""All solutions of many Sudoku boards at once: deduction and branching over arrays, CP-SAT for what resists.

A state of the search is one mask of candidate digits for each cell, and one step deduces in thousands of states
together. A board that is not settled within `NODES` states goes to OR-Tools' CP-SAT, which learns from conflicts.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probgram.tasks.task import UnknownAnswers

Box = tuple[int, int]  # rows and columns of a box; a board has as many rows as a box has cells
NODES = 20_000  # search states a board may have before CP-SAT takes it
CHUNK = 1_024  # states deduced at once: fewer waste NumPy's calls, more the processor's cache


@lru_cache
def units(box: Box) -> NDArray[np.int64]:
    """The cells of each row, column and box, `[3, n, n]`."""
    n = box[0] * box[1]
    cells = np.arange(n * n).reshape(n, n)
    boxes = cells.reshape(box[1], box[0], box[0], box[1]).transpose(0, 2, 1, 3).reshape(n, n)
    return np.stack([cells, cells.T, boxes])


def solve(x: NDArray[Any], box: Box, limit: int, nodes: int = NODES) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Every solution of every board, up to a limit.

    Args:
        x: boards, 0 for a blank, `[P, L]`.
        box: rows and columns of a box.
        limit: solutions of one board after which its search ends.
        nodes: states of one board after which CP-SAT searches it.

    Returns:
        The solutions `[F, L]`, those of the first board first, each board's in lexicographic order; and their
        number for each board `[P]`, at most `limit`: where it is reached there may be more.

    Raises:
        UnknownAnswers: a board needs CP-SAT and OR-Tools is not installed.
    """
    n = box[0] * box[1]
    stack = _chunks(_masks(x, n), np.arange(len(x)))
    found: list[NDArray[np.int64]] = [np.zeros((0, n * n + 1), np.int64)]  # a row: the board's number, its cells
    counts, visited = np.zeros(len(x), np.int64), np.zeros(len(x), np.int64)
    while stack:
        masks, owner = stack.pop()
        while stack and len(masks) + len(stack[-1][0]) <= CHUNK:
            more = stack.pop()
            masks, owner = np.concatenate([masks, more[0]]), np.concatenate([owner, more[1]])
        wanted = (counts[owner] < limit) & (visited[owner] <= nodes)
        masks, owner = deduce(masks[wanted], box), owner[wanted]
        np.add.at(visited, owner, 1)
        alive = masks.all(1)
        settled = alive & is_single(masks).all(1)
        if settled.any():
            found.append(np.concatenate([owner[settled, None], digits_of(masks[settled], n)], 1))
            np.add.at(counts, owner[settled], 1)
        stack += _chunks(*_branch(masks[alive & ~settled], owner[alive & ~settled], n))
    hard = np.flatnonzero((visited > nodes) & (counts < limit))
    rows = np.concatenate(found)
    rows = rows[~np.isin(rows[:, 0], hard)]
    for board in hard:
        answers = by_cp_sat(x[board], box, limit)
        rows = np.concatenate([rows, np.concatenate([np.full((len(answers), 1), board), answers], 1)])
    rows = rows[np.lexsort(rows.T[::-1])]
    start = np.searchsorted(rows[:, 0], rows[:, 0])
    rows = rows[np.arange(len(rows)) - start < limit]  # states that were settled together may pass the limit
    return rows[:, 1:], np.bincount(rows[:, 0], minlength=len(x))


def by_cp_sat(x: NDArray[Any], box: Box, limit: int) -> NDArray[np.int64]:
    """Solutions of one board `[L]` by CP-SAT, at most `limit`, `[M, L]` in no particular order.

    Raises:
        UnknownAnswers: OR-Tools is not installed.
    """
    try:
        from ortools.sat.python import cp_model
    except ImportError:
        raise UnknownAnswers("this board needs the solver of OR-Tools: pip install probgram[tasks]") from None
    model = cp_model.CpModel()
    n = box[0] * box[1]
    cells = [model.new_constant(int(d)) if d else model.new_int_var(1, n, "") for d in x]
    for unit in units(box).reshape(-1, n):
        model.add_all_different([cells[i] for i in unit])

    class Collect(cp_model.CpSolverSolutionCallback):
        found: list[list[int]] = []

        def on_solution_callback(self) -> None:
            self.found.append([self.value(cell) for cell in cells])
            if len(self.found) >= limit:
                self.stop_search()

    solver, collect = cp_model.CpSolver(), Collect()
    solver.parameters.enumerate_all_solutions = True
    solver.parameters.num_workers = 1  # enumeration needs one, and gives the same answers every time
    solver.solve(model, collect)
    return np.array(collect.found, dtype=np.int64).reshape(-1, n * n)


def deduce(masks: NDArray[Any], box: Box) -> NDArray[Any]:
    """Fill in what is forced, until nothing is: a cell's only digit, and a digit's only cell in a unit.

    Args:
        masks: bit d − 1 set where digit d is possible, `[Q, L]`.
        box: rows and columns of a box.

    Returns:
        The masks, `[Q, L]`. Those of a state that is found to have no solution hold a 0. One whose cells all
        have one digit is a solution.
    """
    masks = masks.copy()
    moving = np.arange(len(masks))
    while len(moving):
        before = masks[moving]
        masks[moving] = after = _singles(before, box)
        moving = moving[(after != before).any(1) & after.all(1)]
    return masks


def _singles(masks: NDArray[Any], box: Box) -> NDArray[Any]:
    """One round of `deduce`."""
    n = box[0] * box[1]
    full = masks.dtype.type((1 << n) - 1)
    masks = masks.copy()
    for unit in units(box):  # one after the other: all at once would take twice the rounds
        cells = masks[:, unit]  # [Q, n, n]
        single = np.where(is_single(cells), cells, 0)
        taken = np.bitwise_or.reduce(single, -1)
        twice_taken = single.sum(-1, dtype=masks.dtype) != taken  # the sum of different bits is their union
        cells = np.where(single != 0, single, cells & ~taken[..., None])
        once, twice = np.zeros_like(taken), np.zeros_like(taken)
        for k in range(n):
            twice |= once & cells[..., k]
            once |= cells[..., k]
        only_here = cells & (once & ~twice)[..., None]
        cells = np.where(only_here != 0, only_here, cells)
        cells[twice_taken | (once != full)] = 0
        masks[:, unit] = cells
    return masks


def _branch(masks: NDArray[Any], owner: NDArray[np.int64], n: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """A state for each digit of the cell with the fewest, but at least two."""
    choices = sum(((masks >> d) & 1 for d in range(n)), np.zeros_like(masks))
    cell = np.where(choices > 1, choices, n + 1).argmin(1)
    digits = (masks[np.arange(len(masks)), cell, None] >> np.arange(n)) & 1
    state, digit = np.nonzero(digits)
    children = masks[state]
    children[np.arange(len(state)), cell[state]] = 1 << digit
    return children, owner[state]


def _chunks(masks: NDArray[Any], owner: NDArray[np.int64]) -> list[tuple[NDArray[Any], NDArray[np.int64]]]:
    return [(masks[i : i + CHUNK], owner[i : i + CHUNK]) for i in range(0, len(masks), CHUNK)]


def _masks(x: NDArray[Any], n: int) -> NDArray[Any]:
    x = x.astype(np.int64)
    masks = np.where(x == 0, (1 << n) - 1, 1 << (x - 1).clip(min=0))
    return masks.astype(np.uint16 if n <= 16 else np.uint32)


def is_single(masks: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether a cell has exactly one candidate."""
    return (masks != 0) & (masks & (masks - masks.dtype.type(1)) == 0)


def digits_of(masks: NDArray[Any], n: int) -> NDArray[np.int64]:
    """The digit of cells that have one."""
    return sum((np.int64(d + 1) * (masks >> d & 1 == 1) for d in range(n)), np.zeros(masks.shape, np.int64))
