"""What a training run is, whatever the backend: its result, its settings as JSON, its lines of metrics."""

import inspect
import json
import math
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from probgram.checkpoint import CheckpointError, write_bytes
from probgram.inference.fit_config import FitConfig
from probgram.inference.objective_config import ObjectiveConfig
from probgram.tasks import Task


class DivergedError(ArithmeticError):
    """A figure of training is NaN or infinite."""


class FitView(NamedTuple):
    """What a callback sees whenever metrics are written; return True to stop."""

    step: int
    metrics: dict[str, float]
    chain: Any
    guide: Any


Callback = Callable[[FitView], Any]


@dataclass(frozen=True)
class FitResult:
    """What training leaves.

    Attributes:
        chain: with the averaged weights; in torch the chain given.
        guide: likewise; None where none was given.
        steps: optimiser steps taken in all.
        finished: False after Ctrl-C or a callback's stop.
        history: the metrics written by this call, a dict a line.
    """

    chain: Any = field(repr=False)
    guide: Any = field(repr=False)
    steps: int
    finished: bool
    history: list[dict[str, float]] = field(default_factory=list, repr=False)


# -- settings -------------------------------------------------------------------------------------------------


def checked(steps: int, settings: Mapping[str, Any]) -> FitConfig:
    """The settings of `fit`'s keywords.

    Raises:
        ValueError: steps is no whole number from 1, or a keyword no field of `FitConfig`.
    """
    if steps < 1 or steps != int(steps):
        raise ValueError(f"steps must be at least 1 and whole, got {steps}")
    unknown = set(settings) - set(FitConfig.__dataclass_fields__)
    if unknown:
        raise ValueError(f"unknown settings {sorted(unknown)}: expected fields of FitConfig")
    return replace(FitConfig(), **settings)


def augmentation(task: Any) -> Callable[..., Any]:
    """What draws symmetric images, none of which may be held out.

    Raises:
        ValueError: the task has no symmetric images, or holds out single problems.
    """
    augment = getattr(task, "augment", None)
    if augment is None:
        raise ValueError("augment needs a task with symmetric images, such as tasks.Sudoku(3)")
    if getattr(task, "split", None) == "input":
        raise ValueError('augment needs a split by orbit: with split="input" images of test problems are trained')
    return augment


def held_out(task: Task | None, config: FitConfig) -> NDArray[np.int64] | None:
    """Problems to look at on the way, `[V, L]`; None without a task or where nobody looks."""
    if task is None or not config.validate_every:
        return None
    x = np.unique(task.examples("test")[0], axis=0)
    chosen = np.random.default_rng(0).permutation(len(x))[: config.validation]
    return x[np.sort(chosen)]


def plain(settings: Any) -> dict[str, Any]:
    """A dataclass of settings as JSON values; functions by name; what may differ on resuming left out."""
    free = {"log_every", "validate_every", "validation", "checkpoint_every", "accelerator"}
    values = {k: _name(v) if callable(v) else v for k, v in vars(settings).items() if k not in free}
    return json.loads(json.dumps({f"{type(settings).__name__}.{k}": v for k, v in values.items()}))


def model_of(chain: Any) -> Any:
    """What tells one model from another: its configuration, or its modules where it has none."""
    try:
        return [type(chain).__name__, json.loads(json.dumps(chain.configuration()))]
    except NotImplementedError:
        return repr(chain)


def check_settings(path: Path, saved: Mapping[str, Any], now: Mapping[str, Any], chain: Any) -> None:
    """Raise CheckpointError where a run of `chain` found at `path` had other settings, those that differ named.

    A setting that did not exist when the run was saved counts as having its default.
    """
    saved, now = _defaults(chain) | _each(saved), _each(now)
    changed = [k for k, v in now.items() if saved.get(k) != v]
    if changed:
        was, is_now = ({k: textwrap.shorten(str(s.get(k)), 80) for k in changed} for s in (saved, now))
        raise CheckpointError(
            f"{path} belongs to a run with other settings (was {was}, now {is_now}): use them, or another folder"
        )


def _defaults(chain: Any) -> dict[str, Any]:
    """What every setting is where nothing is said of it, as JSON values; a model's are those of its arguments."""
    config = getattr(chain, "Config", None)
    choices = inspect.signature(config if callable(config) else type(chain)).parameters
    model = {name: choice.default for name, choice in choices.items() if choice.default is not choice.empty}
    own = json.loads(json.dumps({f"{type(chain).__name__}.{k}": v for k, v in model.items()}, default=repr))
    return plain(ObjectiveConfig()) | plain(FitConfig()) | own


def _each(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with every choice of the model as one of its own."""
    if not isinstance(settings.get("model"), list):  # it has no configuration
        return dict(settings)
    name, configuration = settings["model"]
    return {**settings, "model": name} | {f"{name}.{k}": v for k, v in configuration.items()}


def _name(function: Any) -> str:
    """A function by name, a `functools.partial` with its arguments."""
    inner = getattr(function, "func", None)
    if inner is not None:
        return f"{_name(inner)}{function.args}{function.keywords}"
    return getattr(function, "__name__", repr(function))


# -- metrics --------------------------------------------------------------------------------------------------


def check_finite(step: int, metrics: Mapping[str, float]) -> None:
    """Raise DivergedError where a figure is not finite, its name said."""
    bad = [name for name, value in metrics.items() if not math.isfinite(value)]
    if bad:
        raise DivergedError(f"training diverged by step {step}: {', '.join(bad)} not finite; lower lr")


def append_line(folder: Path, line: Mapping[str, float]) -> None:
    """Add a line to `metrics.jsonl`. Raises CheckpointError where it cannot be written."""
    path = folder / "metrics.jsonl"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        raise CheckpointError(f"{path} could not be written: {error.strerror or error}") from error


def forget_lines_after(folder: Path, step: int) -> None:
    """Drop metrics of steps that a kill lost and that will be taken again."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    write_bytes(path, "".join(line + "\n" for line in kept).encode())
