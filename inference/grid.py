"""Scores of a whole grid of depths and widths from one run at the greatest of both, and the time each cell takes.

A smaller depth is an earlier step of the same trajectories; a smaller width N is the mean over disjoint groups of N
of them, which is unbiased and less noisy than one group.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probgram.backends import backend_of, inference
from probgram.fields import as_array
from probgram.inference.seeds import mix
from probgram.inference.timing import interleaved
from probgram.run import Run

BATCH = 2_048  # trajectories at a time: bounds memory, changes no law

Rule = Callable[[Any, int], Any]  # a run and a row of it to a Selection


def one_seed(
    chain: Any,
    task: Any,
    x: NDArray[np.int64],
    counts: NDArray[np.int64] | None,
    seed: int,
    select: Mapping[str, Rule] | None,
    depths: tuple[int, ...],
    widths: tuple[int, ...],
) -> dict[str, NDArray[np.float64]]:
    """Scores of every problem of one seed, `[D, W, B]` each.

    Args:
        chain: trained, of either library.
        task: verifies.
        x: problems `[B, ...]`.
        counts: how many answers each problem has, `[B]`; None: no coverage.
        seed: of the run.
        select: name -> rule; None: vote, best by each head there is, first verified.
        depths: D, increasing.
        widths: W, increasing.
    """
    sample, rows = inference(backend_of(chain), "sampling").sample, max(1, BATCH // widths[-1])
    parts = []
    for first in range(0, len(x), rows):
        # A seed of its own for each batch: under one seed their problems would share their noise.
        key = seed if first == 0 else mix(seed, first)
        run = sample(chain, x[first : first + rows], widths[-1], depths[-1], key).canonical(task)
        run = _at(run, depths)
        known = None if counts is None else counts[first : first + rows]
        parts.append(_scores(run, task, known, widths, select))
    return {name: np.concatenate([part[name] for part in parts], -1) for name in parts[0]}


def _at(run: Run[Any], depths: tuple[int, ...]) -> Run[Any]:
    """Keep the records of some depth steps."""
    steps = [depth - 1 for depth in depths]
    return replace(
        run,
        answers=run.answers[steps],
        log_weights=run.log_weights[steps],
        heads={name: value[steps] for name, value in run.heads.items()},
        log_normalizer=None,
        depths=depths,
    )


def _scores(
    run: Run[Any],
    task: Any,
    counts: NDArray[np.int64] | None,
    widths: tuple[int, ...],
    select: Mapping[str, Rule] | None,
) -> dict[str, NDArray[np.float64]]:
    """Scores of the problems of one run, `[D, W, B]` each."""
    right = as_array(task.verify(run.x, run.answers))  # [D, N, B]
    rules = _rules(run, task) if select is None else select
    steps = range(len(run.answers))
    found = None
    if counts is not None:  # a number for each right answer, -1 for wrong ones
        numbers = np.stack([as_array(run.answer_shares(step)[0]) for step in steps])
        found = np.where(right, numbers, -1)
    columns: dict[str, list[NDArray[np.float64]]] = {}
    for width in widths:
        grouped = _groups(run, width)
        truth = _split(right, width)  # [D, width, G·B]
        cell = {"valid": right.mean(1), "pass_at_n": _regroup(truth.any(1), run.problems)}
        for name, rule in rules.items():
            slots = np.stack([as_array(rule(grouped, step).slot) for step in steps])  # [D, G·B]
            chosen = np.take_along_axis(truth, slots[:, None], 1)[:, 0]
            cell[f"selected_{name}"] = _regroup(chosen, run.problems)
        if found is not None and counts is not None:
            ordered = np.sort(_split(found, width), 1)
            distinct = (ordered[:, 1:] != ordered[:, :-1]).sum(1) + (ordered[:, 0] >= 0)
            with np.errstate(invalid="ignore"):  # 0 / 0 = NaN: no solution, no coverage
                share = _regroup(distinct, run.problems) / counts
            cell["coverage_macro_all"] = share
            cell["coverage_macro_several"] = np.where(counts > 1, share, np.nan)
        for name, values in cell.items():
            columns.setdefault(name, []).append(values)
    return {name: np.stack(values, 1) for name, values in columns.items()}


def _rules(run: Run[Any], task: Any) -> dict[str, Rule]:
    by = inference(run.library, "selection")
    heads: dict[str, Rule] = {f"best_by_{head}": partial(by.best, head=head) for head in run.heads}
    return {"vote": by.vote} | heads | {"first_verified": lambda run, step: by.first_verified(run, task, step)}


def _groups(run: Run[Any], width: int) -> Run[Any]:
    """Disjoint groups of `width` trajectories as problems of their own: G·B of them, groups first."""
    return replace(
        run,
        x=run.x[np.tile(np.arange(run.problems), run.width // width)],
        answers=_split(run.answers, width),
        log_weights=_split(run.log_weights, width),
        heads={name: _split(value, width) for name, value in run.heads.items()},
    )


def _split(values: Any, width: int) -> Any:
    """`[D, N, B, ...]` to `[D, width, G·B, ...]`, G = N // width; what does not fill a group is left out."""
    depths, wide, problems, *rest = values.shape
    groups = wide // width
    whole = values[:, : groups * width].reshape(depths, groups, width, problems, *rest)
    return whole.swapaxes(1, 2).reshape(depths, width, groups * problems, *rest)


def _regroup(values: NDArray[Any], problems: int) -> NDArray[np.float64]:
    """Mean over groups, `[D, G·B]` to `[D, B]`."""
    return values.reshape(len(values), -1, problems).mean(1)


def seconds_of_cells(
    chain: Any, x: NDArray[np.int64], rounds: int, depths: tuple[int, ...], widths: tuple[int, ...]
) -> NDArray[np.float64]:
    """Seconds to answer the problem x `[1, ...]` in every cell, `[rounds, D, W]`."""
    sample = inference(backend_of(chain), "sampling").sample

    def answer(depth: int, width: int) -> NDArray[Any]:
        return as_array(sample(chain, x, width, depth, keep="last").answers)  # waits for the device

    candidates = {cell: partial(answer, *cell) for cell in product(depths, widths)}
    taken = np.stack(list(interleaved(candidates, rounds).values()), 1)  # [rounds, D·W]
    return taken.reshape(rounds, len(depths), len(widths))
