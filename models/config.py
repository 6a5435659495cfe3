"""Sizes and choices of the chains that exist on PyTorch and on JAX; imports neither."""

from dataclasses import dataclass, replace

from probgram.tasks.drawn import check_whole


@dataclass(frozen=True)
class ReasonerConfig:
    """Sizes that all reasoners have."""

    length: int  # L, the most tokens a problem has
    input_size: int  # different tokens in x
    output_size: int  # different tokens in y
    dim: int = 128  # D
    heads: int = 4  # attention heads
    blocks: int = 2  # blocks in f
    hidden: int = 336  # feed-forward width
    body: str = "attention"  # or "mixer": attention-free
    tasks: int = 0  # > 0: the first token of x names one of so many tasks, and gets a token of its own

    def __post_init__(self) -> None:
        sizes = ("length", "input_size", "output_size", "dim", "heads", "blocks", "hidden")
        check_whole(**{name: getattr(self, name) for name in sizes})
        check_whole(0, tasks=self.tasks)


@dataclass(frozen=True)
class LoopedConfig(ReasonerConfig):
    """Sizes of a looped transformer."""

    transitions: int = 8  # loops in a depth step

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(transitions=self.transitions)


@dataclass(frozen=True)
class TRMConfig(ReasonerConfig):
    """Sizes and time scales of a hierarchical recursion."""

    refinements: int = 3  # K
    transitions: int = 2  # T

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(refinements=self.refinements, transitions=self.transitions)


@dataclass(frozen=True)
class GRAMConfig(TRMConfig):
    """Sizes and choices of a GRAM chain; the defaults are those of the shipped queens8 weights."""

    sigma_max: float = 0.5  # sigma(u) = sigma_min + sigma_max · sigmoid(·)
    sigma_min: float = 1e-3  # keeps KL and log densities finite
    mean: bool = True  # False: mu = 0, exploration only
    noise: bool = True  # False: sigma = 0, guidance only (deterministic)
    widening: float = 1.0  # sigma(u) is so many times as wide in the first `widened_steps` depth steps
    widened_steps: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(0, widened_steps=self.widened_steps)
        if not 0 < self.widening < float("inf"):
            raise ValueError(f"widening must be above 0 and finite, got {self.widening}")

    def widened(self, factor: float, steps: int | None = None) -> "GRAMConfig":
        """The same with a sigma of `factor` times the size, in the first `steps` depth steps or in all."""
        if not self.noise:
            raise ValueError("a chain without noise (noise=False) has none to widen")
        if not 0 < factor < float("inf"):
            raise ValueError(f"factor must be above 0 and finite, got {factor}")
        if steps is None:
            return replace(self, sigma_max=factor * self.sigma_max, sigma_min=factor * self.sigma_min)
        check_whole(steps=steps)
        return replace(self, widening=factor, widened_steps=steps)
