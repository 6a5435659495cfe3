"""Islands over processes: each runs its part of them, and all have the whole run at the end.

    run = islands(lambda seed: smc.run(chain, x, width=1000, depth=16, seed=seed), 8)

in a script under `torchrun --nproc-per-node 4` runs two islands a process; without `torchrun` it runs all eight in
turn, with the same result. Nothing is exchanged before the end. Island i of seed s is the run of seed
`mix(s, i)`, whatever the number of processes.

Source: Vergé et al., "On parallel implementation of sequential Monte Carlo methods: the island particle model",
Statistics and Computing 2015, arXiv 1306.3911: the islands that do not interact.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch import distributed as processes

from probgram.inference.handlers import mix
from probgram.inference.shares import leave_at_exit
from probgram.state import map_state
from probgram.trajectories import Trajectories


def islands(run: Callable[[int], Trajectories], count: int, seed: int = 0) -> Trajectories:
    """Run so many independent islands, shared out among the processes of `torchrun`, and gather one run.

    Args:
        run: from a seed to an island, by `smc.run` or `sample`; all of the same problems, width and depth.
        count: I, islands in all, a multiple of the number of processes.
        seed: of all islands together.

    Returns:
        The pooled run (see `pooled`), the same in every process, on the CPU.

    Raises:
        ValueError: count is below 1 or does not divide among the processes, or the islands cannot be pooled.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    rank, world = _place()
    if count % world:
        raise ValueError(f"count must be a multiple of the {world} processes, got {count}")
    share = count // world
    runs = [_on_host(run(mix(seed, island))) for island in range(rank * share, (rank + 1) * share)]
    if world > 1:
        parts: list[Any] = [None] * world
        processes.all_gather_object(parts, runs, group=_gloo())
        runs = [island for part in parts for island in part]
    return replace(pooled(runs), seed=seed)


def pooled(runs: Sequence[Trajectories]) -> Trajectories:
    """Put islands side by side, `[I·N]` trajectories of each problem: Z is the mean, weights are ∝ Z_i·W_i.

    An island that ended early repeats its last row. Draws of `sample` have Z = 1.

    Args:
        runs: of the same problems, width and settings, with seeds of their own.

    Raises:
        ValueError: none, islands of different shapes, or what `collect` gave, which has no weights to pool it by.
    """
    if not runs:
        raise ValueError("pooled needs at least one run")
    if any(run.collected for run in runs):
        raise ValueError("what collect gave cannot be pooled: run the islands in one filter, smc.run(islands=...)")
    first = runs[0]
    for run in runs[1:]:
        if run.x.shape != first.x.shape or run.width != first.width or run.depths[0] != first.depths[0]:
            raise ValueError("islands must be runs of the same problems, width and recorded depth steps")
    longest = max(runs, key=lambda run: run.depth)
    steps, rows = len(_normalizer(longest)), len(longest.depths)
    normalizer = torch.stack([_stretched(_normalizer(run), steps) for run in runs])  # [I, S, B]
    ess = torch.stack([_stretched(run.ess, steps if run.effective is not None else rows) for run in runs])
    share = _shares(normalizer)
    squares = torch.where(ess > 0, share[:, -ess.shape[1] :].square() / ess, 0.0).sum(0)

    def wide(values: Callable[[Trajectories], Any]) -> Any:
        """What every island has `[S, N, B, ...]`, as `[S, I·N, B, ...]`."""
        parts = [map_state(lambda leaf: _stretched(leaf, rows), values(run)) for run in runs]
        return map_state(lambda *leaves: torch.cat(leaves, 1), *parts)

    def last(values: Callable[[Trajectories], Any]) -> Any:
        """What every island has of its last step `[N, B, ...]`, as `[I·N, B, ...]`."""
        return map_state(lambda *leaves: torch.cat(leaves), *[values(run) for run in runs])

    log_share = share[:, -rows:].log().to(first.log_weights)[:, :, None]  # [I, S, 1, B]
    weighted = [replace(run, log_weights=_log_weights(run)) for run in runs]
    stretched = [_stretched(run.log_weights, rows) + of for run, of in zip(weighted, log_share, strict=True)]
    settings = first.settings | {"islands": len(runs) * first.settings.get("islands", 1), "depth": longest.depth}
    return replace(
        longest,
        answers=wide(lambda run: run.answers),
        log_weights=torch.cat(stretched, 1),
        ancestors=None if all(run.ancestors is None for run in runs) else _ancestors(runs, rows),
        heads=wide(lambda run: run.heads),
        kl=wide(lambda run: run.kl),
        log_normalizer=normalizer.logsumexp(0) - math.log(len(runs)),
        log_potential=last(lambda run: run.log_potential),
        effective=torch.where(squares > 0, 1 / squares, 0.0),
        states=wide(lambda run: run.states),
        likelihoods_only=all(run.likelihoods_only for run in runs),
        halted=last(lambda run: run.halted),
        ended=None
        if first.ended is None
        else torch.stack([run.ended for run in runs if run.ended is not None]).amax(0),
        state=last(lambda run: run.state),
        settings=settings,
    )


def _normalizer(run: Trajectories) -> Tensor:
    if run.log_normalizer is None:
        return torch.zeros(len(run.depths), run.problems)
    return run.log_normalizer


def _log_weights(run: Trajectories) -> Tensor:
    """Normalised log weights in their own type; -inf where all vanished."""
    total = run.log_weights.logsumexp(1, keepdim=True)
    return run.log_weights - total.masked_fill(total.isneginf(), 0.0)


def _shares(normalizer: Tensor) -> Tensor:
    """Z_i / Σ Z_i, `[I, S, B]`; equal where all are dead."""
    dead = normalizer.amax(0).isneginf()
    return normalizer.masked_fill(dead, 0.0).softmax(0)


def _stretched(rows: Tensor, steps: int) -> Tensor:
    """Rows over depth, the last one repeated."""
    return rows if len(rows) == steps else torch.cat([rows, rows[-1:].expand(steps - len(rows), *rows.shape[1:])])


def _ancestors(runs: Sequence[Trajectories], rows: int) -> Tensor:
    """Slots at the step before, counted through all islands; who has ended stays its own ancestor."""
    parts = []
    for i, run in enumerate(runs):
        own = torch.arange(run.width, dtype=torch.int32)[:, None].expand(run.width, run.problems)
        there = run.ancestors if run.ancestors is not None else own[None].expand(len(run.depths), -1, -1)
        parts.append(torch.cat([there, own[None].expand(rows - len(there), -1, -1)]) + i * run.width)
    return torch.cat(parts, 1)


# -- processes ------------------------------------------------------------------------------------------------


def _place() -> tuple[int, int]:
    """This process's rank and how many there are; 0 of 1 without `torchrun`."""
    if not processes.is_available():
        return 0, 1
    if not processes.is_initialized():
        if not processes.is_torchelastic_launched():
            return 0, 1
        processes.init_process_group("gloo")
        leave_at_exit()
    return processes.get_rank(), processes.get_world_size()


def _gloo() -> Any:
    """A group that carries objects on the host, whatever the processes' own."""
    return None if processes.get_backend() == "gloo" else processes.new_group(backend="gloo")


def _on_host(run: Trajectories) -> Trajectories:
    """A run whose tensors are all on the CPU."""

    def moved(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.cpu()
        return map_state(Tensor.cpu, value) if isinstance(value, tuple | dict) else value

    return replace(run, **{name: moved(value) for name, value in vars(run).items() if name not in _PLAIN})


_PLAIN = ("depths", "settings")  # plain values: nothing in them is a tensor
