"""The state of a training run in one safetensors file: all that is needed to go on bit for bit."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from probgram import checkpoint
from probgram import state as trees
from probgram.inference.fit_run import check_settings
from probgram.inference.objective import Objective, Rollout

FORMAT = "probgram.training/1"
_ROLLOUT_TENSORS = ("x", "answers", "counts", "target", "age", "honest", "belief")


def save_training(
    path: Path,
    objective: Objective,
    ema: Mapping[str, Tensor],
    optimiser: torch.optim.Optimizer,
    rollout: Rollout,
    life: Tensor,
    plain: Mapping[str, Any],
) -> None:
    """Write parameters, averages, optimiser, the trajectories under way, generators, and plain values.

    Raises:
        CheckpointError: the file cannot be written; the one before it is untouched.
    """
    tensors = {f"objective.{k}": v for k, v in objective.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in ema.items()}
    slots = optimiser.state_dict()["state"]
    tensors |= {f"optimiser.{i}.{k}": v for i, slot in slots.items() for k, v in slot.items()}
    tensors |= {f"rollout.{k}": v for k in _ROLLOUT_TENSORS if (v := getattr(rollout, k)) is not None}
    for name in ("state", "history"):
        if getattr(rollout, name) is not None:  # None before the very first step
            for i, (_, leaf) in enumerate(trees.leaves(getattr(rollout, name))):
                tensors[f"{name}.{i}"] = leaf
    tensors["life"] = life
    tensors["rng.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    checkpoint.write_tensors(path, tensors, {"format": FORMAT, "plain": json.dumps(dict(plain))})


def load_training(
    path: Path,
    objective: Objective,
    ema: dict[str, Tensor],
    optimiser: torch.optim.Optimizer,
    rollout: Rollout,
    life: Tensor,
    settings: Mapping[str, Any],
) -> tuple[Rollout, dict[str, Any]]:
    """Fill everything from `path`; returns the trajectories under way and the plain values.

    Args:
        path: what `save_training` wrote.
        objective: of the same chain and guide; filled in place.
        ema: filled in place.
        optimiser: of the same parameters; filled in place.
        rollout: a fresh one, for devices.
        life: filled in place.
        settings: must equal those of the run that was saved; where they did not exist then, their defaults.

    Raises:
        CheckpointError: damaged, not a training state, or of a run with other settings or another model.
    """
    tensors, metadata = checkpoint.read_tensors(path)
    if metadata.get("format") != FORMAT:
        raise checkpoint.CheckpointError(f"{path} is not a training state")
    plain = json.loads(metadata["plain"])
    check_settings(path, plain["settings"], settings, objective.chain)
    device = rollout.x.device
    try:
        objective.load_state_dict(_under(tensors, "objective"))
    except RuntimeError as error:
        raise checkpoint.CheckpointError(
            f"{path} belongs to another model: {checkpoint.one_line(error)}"
        ) from error
    for name, value in _under(tensors, "ema").items():
        ema[name].copy_(value)
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in _under(tensors, "optimiser").items():
        index, key = name.split(".", 1)
        slots.setdefault(int(index), {})[key] = value
    optimiser.load_state_dict({"state": slots, "param_groups": optimiser.state_dict()["param_groups"]})
    kept = {
        name: value if name in ("counts", "age") else value.to(device)
        for name, value in _under(tensors, "rollout").items()
    }
    life.copy_(tensors["life"])
    rollout = rollout._replace(**kept)
    with torch.no_grad():  # an untouched start has the structure that the saved leaves belong to
        template = objective.chain.init(objective.chain.encode(rollout.x))
    for name in ("state", "history"):
        found = sorted(_under(tensors, name).items(), key=_by_number)
        if found:
            saved = iter(value.to(device) for _, value in found)
            rollout = rollout._replace(**{name: trees.map_state(lambda _, rest=saved: next(rest), template)})
    torch.set_rng_state(tensors["rng.cpu"])
    if "rng.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng.cuda"])
    return rollout, plain


def _by_number(item: tuple[str, Tensor]) -> int:
    return int(item[0])


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    start = prefix + "."
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
