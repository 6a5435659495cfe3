"""Settings of the optimiser and of the training loop, and the learning rate that follows from them."""

import math
from dataclasses import dataclass
from numbers import Integral
from typing import Literal


@dataclass(frozen=True)
class FitConfig:
    """Settings of the optimiser and of the loop; the objective has its own (`ObjectiveConfig`)."""

    batch: int = 128  # B, problems in a global batch
    augment: bool = False  # replace what is drawn by a random symmetric image, `task.augment`
    draw: Literal["pair", "problem"] = "pair"  # what is drawn evenly: a problem as often as it has answers, or once
    lr: float = 1e-3  # AdamW's peak learning rate
    warm_up: int = 100  # optimiser steps to reach it
    schedule: Literal["trapezoid", "cosine", "constant"] = "trapezoid"  # after the warm-up
    cool_down: float = 0.3  # share of the run, at its end, over which a trapezoid falls
    lr_final: float = 0.05  # share of lr at the end
    betas: tuple[float, float] = (0.9, 0.95)  # AdamW
    weight_decay: float = 0.1  # AdamW
    clip: float = 1.0  # largest gradient norm
    ema: float = 0.999  # decay of the averaged weights, which are the result
    accumulate: int = 1  # depth steps whose gradients are added before an optimiser step
    swap_halted: bool = False  # hand rows whose prior state has halted a new problem, every second time
    precision: Literal["32", "bf16"] = "32"  # what the network computes in; everything else is float32
    compile: bool = False  # torch.compile the proposal network
    seed: int = 0
    accelerator: str = "auto"  # Lightning Fabric's: "cpu", "cuda", "mps"
    devices: int = 1
    strategy: str = "auto"  # Lightning Fabric's: "ddp" for several ranks
    log_every: int = 20  # optimiser steps between two lines of metrics
    validate_every: int = 500  # optimiser steps between two looks at held-out problems; 0: never
    validation: int = 128  # held-out problems looked at, four draws each; more each where there are fewer
    checkpoint_every: float = 60.0  # seconds between two checkpoints

    def __post_init__(self) -> None:
        for name in ("batch", "accumulate", "devices", "log_every", "validation"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("lr", "warm_up", "validate_every", "checkpoint_every", "weight_decay", "lr_final"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not self.clip > 0:
            raise ValueError(f"clip must be above 0, got {self.clip}")
        if not isinstance(self.seed, Integral) or not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be a whole number from 0 to 2**63 - 1, got {self.seed!r}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be at least 0 and below 1, got {self.ema}")
        for name, words in _WORDS.items():
            if getattr(self, name) not in words:
                raise ValueError(f"{name} must be one of {', '.join(words)}, got {getattr(self, name)!r}")
        if not 0 < self.cool_down <= 1:
            raise ValueError(f"cool_down must be above 0 and at most 1, got {self.cool_down}")
        if self.batch % self.devices:
            raise ValueError(f"batch must be a multiple of devices, got {self.batch} and {self.devices}")


_WORDS = {
    "draw": ("pair", "problem"),
    "schedule": ("trapezoid", "cosine", "constant"),
    "precision": ("32", "bf16"),
}


def learning_rate(config: FitConfig, step: int, steps: int) -> float:
    """Rate of optimiser step `step` (from 0): linear warm-up, then the schedule, to `lr_final · lr` at its end.

    A trapezoid stays at `lr` and falls along a cosine in the last `cool_down` of the run.
    """
    warm = min(1.0, (step + 1) / max(1, config.warm_up))
    if config.schedule == "constant":
        return config.lr * warm
    fall = 1.0 if config.schedule == "cosine" else config.cool_down
    fraction = min(1.0, max(0.0, 1 - (1 - step / max(1, steps)) / fall))
    cosine = config.lr_final + (1 - config.lr_final) * 0.5 * (1 + math.cos(math.pi * fraction))
    return config.lr * warm * cosine
