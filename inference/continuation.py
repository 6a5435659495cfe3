"""Going on from a run of the filter: where it was, and the state that the next step needs."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probgram.inference.choices import check_start, reached
from probgram.trajectories import Trajectories

if TYPE_CHECKING:
    from probgram.inference.smc import Filter


def offset(start: Trajectories | None, own: dict[str, Any], islands: int, potential: Any) -> int:
    """Depth steps that were taken before; `own` are settings that must be those of that run.

    Raises:
        ValueError: the run cannot go on, or not under these choices.
    """
    if start is None:
        return 0
    check_start(start, {name: (start.settings.get(name), now) for name, now in own.items()}, islands, potential)
    return reached(start)


def resumed(algorithm: "Filter", start: Trajectories) -> dict[str, Any]:
    """The fields of the `SMCState` that a run ended in.

    Raises:
        ValueError: it is a run of other problems, or had a halt head stop trajectories and is not to now.
    """
    assert start.log_potential is not None and start.log_normalizer is not None
    if start.problems != algorithm.kernel.problems:
        raise ValueError(f"start has {start.problems} problems, got {algorithm.kernel.problems}")
    if algorithm.x is not None and not _same(start.x.to(algorithm.x), algorithm.x):
        raise ValueError("start is a run of other problems than x")
    nothing = torch.zeros(start.problems, dtype=torch.int32, device=start.log_weights.device)
    log_normalizer = start.log_normalizer[-1]
    halted = start.halted
    if halted is not None and algorithm.halt_above is None:
        raise ValueError("start was run with halt_probability, so it must go on with one")
    if algorithm.halt_above is not None and halted is None:
        halted = torch.zeros_like(start.log_weights[-1], dtype=torch.bool)
    return {
        "latent": start.state,
        "log_weights": start.log_weights[-1],
        "log_psi": start.log_potential,
        "log_normalizer": log_normalizer,
        "ess": start.ess[-1].to(start.log_weights),
        "dead": torch.where(log_normalizer.isneginf(), start.depth, nothing).int(),
        "nan": nothing,
        "done": nothing,
        "halted": halted,
        "t": reached(start),
        "seed": start.seed,
        "observed": start.settings["observed"],
        "likelihood": start.settings["likelihood"],
        "weighs": start.settings["weighs"],
    }


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a.eq(b) | (a.isnan() & b.isnan())).all())
