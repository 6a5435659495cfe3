"""Options of the training objective, the same for both backends."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

# The rules of both backends' targets.py, by name.
RULES = ("fixed", "nearest", "responsibilities", "dealt", "attributed")
_HOMES_OF_RULES = ("probgram.inference.targets", "probgram.inference.on_jax.targets")


@dataclass(frozen=True)
class ObjectiveConfig:
    """The orthogonal options of the objective; the defaults were measured (benchmarks/queens8_recipes.md)."""

    depth: int = 8  # S, depth steps of a training trajectory
    target: str | Callable[..., Any] = "attributed"  # which known answer a step is trained towards: targets.py
    settle: float = 0.3  # share of the run, at its end, in which `attributed` gives way to `responsibilities`
    carry: float = 0.7  # probability that the next depth step starts from a prior draw
    kl: Literal["every", "last"] = "every"  # which guided transitions of a step are charged
    gradient: Literal["transition", "step", "full"] = "step"  # how far back it flows
    beta: float = 0.16  # weight of the KL
    warm_up: int = 0  # optimiser steps over which beta rises from 0
    balance: float | None = None  # b·KL(sg q || p) + (1 - b)·KL(q || sg p); None: plain KL
    particles: int = 1  # trajectories of a problem
    bound: Literal["elbo", "iwae", "fivo"] = "elbo"
    ess_threshold: float = 0.5  # "fivo" resamples a problem at most at this share of its particles
    heads: float = 1.0  # weight of the heads' losses; they send no gradient into the core

    def __post_init__(self) -> None:
        if getattr(self.target, "__module__", "") in _HOMES_OF_RULES:  # a rule of ours: the name fits both backends
            object.__setattr__(self, "target", self.target.__name__)  # type: ignore[union-attr]
        for name, lowest in (
            ("depth", 1),
            ("particles", 1),
            ("warm_up", 0),
            ("beta", 0),
            ("heads", 0),
            ("ess_threshold", 0),
        ):
            if getattr(self, name) < lowest:
                raise ValueError(f"{name} must be at least {lowest}, got {getattr(self, name)}")
        for name in ("carry", "settle"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}")
        if self.balance is not None and not 0 <= self.balance <= 1:
            raise ValueError(f"balance must be None or between 0 and 1, got {self.balance}")
        if isinstance(self.target, str) and self.target not in RULES:
            raise ValueError(f"target must be a function or one of {', '.join(RULES)}, got {self.target!r}")
        for name, allowed in _WORDS.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        plain = self.balance is None and self.beta == 1 and not self.warm_up and self.kl == "every"
        if self.bound != "elbo" and not (plain and self.gradient != "transition" and self.target == "fixed"):
            raise ValueError(
                f'bound="{self.bound}" needs plain KL at every transition, beta=1, gradient="step" or "full", and '
                "target=fixed: its particles share one answer"
            )
        if self.bound == "fivo" and (self.gradient != "full" or self.carry > 0):
            raise ValueError(
                'bound="fivo" filters a whole trajectory of the guide: it needs gradient="full", carry=0'
            )

    def beta_at(self, optimiser_step: int) -> float:
        """Weight of the KL at an optimiser step, counted from 0."""
        return self.beta * (min(1.0, (optimiser_step + 1) / self.warm_up) if self.warm_up else 1.0)

    def settles_at(self, progress: float) -> bool:
        """Whether `attributed` has given way to `responsibilities`; `progress` is the share of the run done."""
        return self.target == "attributed" and self.settle > 0 and progress >= 1 - self.settle


_WORDS = {
    "kl": ("every", "last"),
    "gradient": ("transition", "step", "full"),
    "bound": ("elbo", "iwae", "fivo"),
}
