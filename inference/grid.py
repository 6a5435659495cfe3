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
import torch
from numpy.typing import NDArray
from torch import Tensor

from probgram.chain import Chain
from probgram.inference.handlers import mix
from probgram.inference.sampling import sample
from probgram.inference.selection import Selection, best, first_verified, vote
from probgram.inference.timing import interleaved
from probgram.trajectories import Trajectories

BATCH = 2_048  # trajectories at a time: bounds memory, changes no law

Rule = Callable[[Trajectories, int], Selection]


def one_seed(
    chain: Chain,
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
        chain: trained.
        task: verifies.
        x: problems `[B, ...]`.
        counts: how many answers each problem has, `[B]`; None: no coverage.
        seed: of the run.
        select: name -> rule; None: vote, best by each head there is, first verified.
        depths: D, increasing.
        widths: W, increasing.
    """
    rows = max(1, BATCH // widths[-1])
    parts = []
    for first in range(0, len(x), rows):
        # A seed of its own for each batch: under one seed their problems would share their noise.
        key = seed if first == 0 else mix(seed, first)
        run = _at(sample(chain, x[first : first + rows], widths[-1], depths[-1], key), depths)
        known = None if counts is None else torch.from_numpy(counts[first : first + rows])
        parts.append(_scores(run, task, known, widths, select))
    return {name: np.concatenate([part[name] for part in parts], -1) for name in parts[0]}


def _at(run: Trajectories, depths: tuple[int, ...]) -> Trajectories:
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
    run: Trajectories, task: Any, counts: Tensor | None, widths: tuple[int, ...], select: Mapping[str, Rule] | None
) -> dict[str, NDArray[np.float64]]:
    """Scores of the problems of one run, `[D, W, B]` each."""
    right = torch.as_tensor(task.verify(run.x, run.answers))  # [D, N, B]
    rules = _rules(run, task) if select is None else select
    steps = range(len(run.answers))
    found = None
    if counts is not None:  # a number for each right answer, -1 for wrong ones
        numbers = torch.stack([run.answer_shares(step)[0] for step in steps])
        found = torch.where(right, numbers, -1)
    columns: dict[str, list[Tensor]] = {}
    for width in widths:
        grouped = _groups(run, width)
        truth = _split(right, width)  # [D, width, G·B]
        cell = {"valid": right.cpu().double().mean(1), "pass_at_n": _regroup(truth.any(1), run.problems)}
        for name, rule in rules.items():
            slots = torch.stack([rule(grouped, step).slot for step in steps])  # [D, G·B]
            cell[f"selected_{name}"] = _regroup(truth.gather(1, slots[:, None])[:, 0], run.problems)
        if found is not None and counts is not None:
            ordered = _split(found, width).sort(1).values
            distinct = (ordered[:, 1:] != ordered[:, :-1]).sum(1) + (ordered[:, 0] >= 0)
            share = _regroup(distinct, run.problems) / counts  # 0 / 0 = NaN: no solution, no coverage
            cell["coverage_macro_all"] = share
            cell["coverage_macro_several"] = torch.where(counts > 1, share, torch.nan)
        for name, values in cell.items():
            columns.setdefault(name, []).append(values)
    return {name: torch.stack(values, 1).numpy() for name, values in columns.items()}


def _rules(run: Trajectories, task: Any) -> dict[str, Rule]:
    heads: dict[str, Rule] = {f"best_by_{head}": partial(best, head=head) for head in run.heads}
    return {"vote": vote} | heads | {"first_verified": lambda run, step: first_verified(run, task, step)}


def _groups(run: Trajectories, width: int) -> Trajectories:
    """Disjoint groups of `width` trajectories as problems of their own: G·B of them, groups first."""
    return replace(
        run,
        x=run.x.repeat(run.width // width, *[1] * (run.x.dim() - 1)),
        answers=_split(run.answers, width),
        log_weights=_split(run.log_weights, width),
        heads={name: _split(value, width) for name, value in run.heads.items()},
    )


def _split(values: Tensor, width: int) -> Tensor:
    """`[D, N, B, ...]` to `[D, width, G·B, ...]`, G = N // width; what does not fill a group is left out."""
    groups = values.shape[1] // width
    return values[:, : groups * width].unflatten(1, (groups, width)).transpose(1, 2).flatten(2, 3)


def _regroup(values: Tensor, problems: int) -> Tensor:
    """Mean over groups, `[D, G·B]` to `[D, B]`."""
    return values.cpu().double().unflatten(1, (-1, problems)).mean(1)  # MPS has no doubles


def seconds_of_cells(
    chain: Chain, x: NDArray[np.int64], rounds: int, depths: tuple[int, ...], widths: tuple[int, ...]
) -> NDArray[np.float64]:
    """Seconds to answer the problem x `[1, ...]` in every cell, `[rounds, D, W]`."""

    def answer(depth: int, width: int) -> Tensor:
        return sample(chain, x, width, depth, keep="last").answers.cpu()  # waits for the device

    candidates = {cell: partial(answer, *cell) for cell in product(depths, widths)}
    taken = np.stack(list(interleaved(candidates, rounds).values()), 1)  # [rounds, D·W]
    return taken.reshape(rounds, len(depths), len(widths))
