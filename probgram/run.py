"""What every run is, whichever library its arrays are of: its fields, its sizes, its files.

`probgram.trajectories` has the runs of PyTorch, `probgram.inference.on_jax.trajectories` those of JAX, as arrays of
NumPy: they add what is computed from the weights. A file that one wrote, the other reads.
"""

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Self, TypeVar

import numpy as np

from probgram import checkpoint

if TYPE_CHECKING:
    from probgram.trajectories import Trajectories

FORMAT = "probgram.trajectories/1"
HALF_TYPES = ("bfloat16", "float16")  # a file format may not know them: stored as integers of the same size

Array = TypeVar("Array", bound=Any)


@dataclass(frozen=True, eq=False, repr=False)
class Run(Generic[Array]):
    """N weighted trajectories of B problems over S recorded depth steps.

    Attributes:
        x: the problems, `[B, ...]`.
        answers: decoded answers, smallest unsigned or signed type that fits, `[S, N, B, L]`.
        log_weights: float32 or wider, `[S, N, B]`; those of `sample` are zero, those of the filter normalised.
        ancestors: int32 `[S, N, B]`, or None where nothing was resampled (every slot is its own ancestor).
        heads: logits by name, `[S, N, B]` each.
        kl: KL(q || p) in nats of each depth step's transitions, `[S, N, B]`, where a guide proposed; else None.
        log_normalizer: running log Z in nats, a row for every depth step; zero where nothing weighs.
        log_potential: log psi of the last depth step, `[N, B]`; None without a filter.
        effective: effective sample size at every depth step, for runs that record fewer rows than steps.
        collected: what `collect` gave, `[S, B, ...]` each.
        states: the latents of every recorded row, leaves `[S, N, B, ...]`, where they were asked for; else None.
        likelihoods_only: whether every factor was a likelihood, so that log Z is log evidence.
        halted: bool `[N, B]`, trajectories whose halt head stopped them; None where stopping was off.
        ended: depth step at which each problem of a filter ended, int32 `[B]`, where they may differ; else None.
            0: it had not when the run was stopped.
        state: the last state, to go on from: the filter's, or that of `sample` with `keep="latents"`; else None.
        depths: depth step of each recorded row, `[S]`, counted from 1.
        task: name of the task, "" where there is none.
        seed: the run's seed.
        settings: how the run was made, plain values (written to files).
    """

    library: ClassVar[str]  # whose arrays these are, as it is installed
    framework: ClassVar[str]  # as safetensors calls what it reads them into

    x: Array
    answers: Array
    log_weights: Array
    ancestors: Array | None = None
    heads: dict[str, Array] = field(default_factory=dict)
    kl: Array | None = None
    log_normalizer: Array | None = None
    log_potential: Array | None = None
    effective: Array | None = None
    collected: dict[str, Array] = field(default_factory=dict)
    states: Any = None
    likelihoods_only: bool = False
    halted: Array | None = None
    ended: Array | None = None
    state: Any = None
    depths: tuple[int, ...] = ()
    task: str = ""
    seed: int = 0
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        answers, log_weights = list(self.answers.shape), list(self.log_weights.shape)
        if len(answers) != 4 or answers[:3] != log_weights:
            raise ValueError(
                f"answers must be [S, N, B, L] and log_weights [S, N, B], got {answers} and {log_weights}"
            )
        if not self.depths:
            object.__setattr__(self, "depths", tuple(range(1, answers[0] + 1)))

    def canonical(self, task: Any) -> Self:
        """The run with answers that say the same made equal, where the task has such (`Arc`), else itself.

        `solve`, `evaluate` and `frontier` ask for it; before `vote` or `distinct` on a run of such a task you do.
        """
        made_equal = getattr(task, "canonical", None)
        return self if made_equal is None else replace(self, answers=made_equal(self.answers))

    # -- what the two kinds do in their own way ---------------------------------------------------------------

    @staticmethod
    def as_stored(values: np.ndarray, dtype: str) -> Array:
        """An array that a file holds, of a type that NumPy may not know, as this kind of run has it."""
        raise NotImplementedError

    @staticmethod
    def each_leaf(function: Callable[[Any], Any], state: Any) -> Any:
        """Apply a function to every leaf of a state."""
        raise NotImplementedError

    def to_torch(self) -> "Trajectories":
        """The run as PyTorch's."""
        raise NotImplementedError

    @property
    def weights(self) -> Array:
        """Normalised weights, `[S, N, B]`."""
        raise NotImplementedError

    @property
    def ess(self) -> Array:
        """Effective sample size at every depth step, `[S, B]`."""
        raise NotImplementedError

    def lines(self) -> Array:
        """The slot each final trajectory occupied at every depth step, `[S, N, B]`."""
        raise NotImplementedError

    def answer_shares(self, step: int = -1) -> tuple[Array, Array]:
        """For each slot: a number of its answer, and the total weight of that answer in its problem, `[N, B]`."""
        raise NotImplementedError

    # -- shape ------------------------------------------------------------------------------------------------

    @property
    def depth(self) -> int:
        """Depth steps that were run."""
        return self.depths[-1]

    @property
    def width(self) -> int:
        """N, trajectories a problem."""
        return self.answers.shape[1]

    @property
    def problems(self) -> int:
        """B."""
        return self.answers.shape[2]

    def __len__(self) -> int:
        """The number of problems."""
        return self.problems

    def __repr__(self) -> str:
        """One line: sizes, task, effective sample size."""
        name = f"{self.task}, " if self.task else ""
        return (
            f"Trajectories({name}{self.problems} problems × {self.width} trajectories × {self.depth} depth steps, "
            f"ESS {float(self.ess[-1].mean()):.1f}, seed {self.seed})"
        )

    def __getitem__(self, problem: Any) -> Self:
        """Keep some problems: an index, a slice or an array of indices; the problem dimension stays."""
        if isinstance(problem, Integral):
            problem = int(problem)
            if not -self.problems <= problem < self.problems:
                raise IndexError(f"problem must be below {self.problems}, got {problem}")
            problem = slice(problem, problem + 1 or None)

        def at(values: Any, dim: int) -> Any:
            return None if values is None else values[(slice(None),) * dim + (problem,)]

        return replace(
            self,
            x=at(self.x, 0),
            answers=at(self.answers, 2),
            log_weights=at(self.log_weights, 2),
            ancestors=at(self.ancestors, 2),
            heads={name: at(value, 2) for name, value in self.heads.items()},
            kl=at(self.kl, 2),
            log_normalizer=at(self.log_normalizer, 1),
            log_potential=at(self.log_potential, 1),
            effective=at(self.effective, 1),
            collected={name: at(value, 1) for name, value in self.collected.items()},
            states=None if self.states is None else self.each_leaf(lambda leaf: at(leaf, 2), self.states),
            halted=at(self.halted, 1),
            ended=at(self.ended, 0),
            state=None if self.state is None else self.each_leaf(lambda leaf: at(leaf, 1), self.state),
        )

    # -- weights ----------------------------------------------------------------------------------------------

    @property
    def log_evidence(self) -> Array:
        """Log p(observations) in nats, `[S, B]`.

        Under an annealed likelihood or a look-ahead only the last row is evidence; the others are NaN.

        Raises:
            ValueError: a factor of the run was not a likelihood, so log Z is not evidence for anything; or only the
                last depth step's is, and the run was stopped before.
        """
        if not self.likelihoods_only or self.log_normalizer is None:
            raise ValueError(
                "log_evidence exists only where every factor is a likelihood of observations; "
                "use log_normalizer for runs with other potentials, or with none"
            )
        if self.settings.get("evidence") != "last":
            return self.log_normalizer
        if not self.settings.get("complete", True):
            raise ValueError("the run was stopped before its last depth step, where alone log Z is log evidence")
        last = self.log_normalizer * math.nan
        last[-1] = self.log_normalizer[-1]
        return last

    # -- files ------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write the run to a file, atomically; how, its ending says.

        `.safetensors`: one file of tensors; `state` and `states` are not kept.
        `.nc`: netCDF 4, all of the run and beside it the groups of `to_arviz`, so that `arviz.from_netcdf` and
        xarray read it.
        `.zarr`: the same as a folder in Zarr 3 (extra `zarr`), which `sample(..., store=path)` also writes, as it
        goes.

        Returns:
            The path written.

        Raises:
            CheckpointError: another ending, or the file cannot be written.
        """
        match Path(path).suffix:
            case ".safetensors":
                from probgram.fields import about, as_json, flat

                said = {"format": FORMAT, "run": as_json(about(self))}
                return checkpoint.write_tensors(path, flat(self, states=False), said)
            case ".nc":
                from probgram import netcdf

                return netcdf.write(path, self)
            case ".zarr":
                from probgram import store

                return store.write(path, self)
        raise checkpoint.CheckpointError(f"a run is saved as .safetensors, .nc or .zarr, got {path}")

    @classmethod
    def load(cls, path: str | Path, problems: slice | None = None) -> Self:
        """Read a run that either library wrote, or what there is of one that `sample(..., store=path)` is writing.

        Args:
            path: the file or folder; its ending says what it is.
            problems: read only these, `slice(0, 100)`, of a run that is larger than memory; None: all.

        Returns:
            The run, on the CPU. NamedTuples of a state come back as NamedTuples of the same name and fields.

        Raises:
            CheckpointError: no such file, damaged, or not a run.
        """
        match Path(path).suffix:
            case ".nc":
                from probgram import netcdf

                return netcdf.read(path, cls, problems)
            case ".zarr":
                from probgram import store

                return store.read(path, cls, problems)
        from probgram.fields import assembled, chosen

        tensors, metadata = checkpoint.read_tensors(path, cls.framework)
        if metadata.get("format") != FORMAT:
            raise checkpoint.CheckpointError(f"{path} is not a saved run (format {metadata.get('format')!r})")
        run = assembled(tensors, json.loads(metadata.get("run", "{}")), path, cls)
        return run if problems is None else run[chosen(problems, run.problems)]

    def to_arviz(
        self,
        layout: Literal["particles", "depth"] = "particles",
        *,
        islands: int | None = None,
        burn_in: int | None = None,
        y: Any = None,
    ) -> Any:
        """Hand the run to ArviZ: InferenceData (arviz 0.x) or a DataTree (arviz 1.x), with the same groups.

        See `probgram.export.to_arviz`, which says what the groups hold.
        """
        from probgram.export import to_arviz

        return to_arviz(self, layout, islands=islands, burn_in=burn_in, y=y)


def normalised(log_weights: np.ndarray) -> np.ndarray:
    """Weights `[..., N, B]` that sum to 1 over N, float64; zeros where all vanished."""
    log_weights = log_weights.astype(np.float64)
    highest = log_weights.max(-2, keepdims=True)
    weights = np.exp(log_weights - np.where(np.isneginf(highest), 0.0, highest))
    total = weights.sum(-2, keepdims=True)
    return weights / np.where(total == 0, 1.0, total)


def warn_untilted(ess: Any, width: int) -> None:
    """Warn where the weights without the potential have too few effective particles, `[B]`."""
    least = max(2.0, 0.1 * width)
    low = [problem for problem, value in enumerate(ess.tolist()) if value < least]
    if low:
        warnings.warn(
            f"without the potential problems {low[:8]}{' and more' if len(low) > 8 else ''} have an effective "
            f"sample size below {least:.0f} of {width}",
            RuntimeWarning,
            stacklevel=3,
        )
