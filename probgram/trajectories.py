"""What a run returns: weighted latent trajectories, their lines, their answers; saved and loaded.

Values are recorded after reweighting and before the next resampling. `ancestors[s]` maps slots at depth
step s to slots at s - 1, so once resampling has happened a slot is not a trajectory: `lines()` traces
ancestry, and whatever is drawn over depth must use it.
"""

import json
import warnings
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from probgram import checkpoint
from probgram.state import map_state, widest

FORMAT = "probgram.trajectories/1"


class DistinctAnswers(NamedTuple):
    """The different answers of one problem, the most probable first.

    Fields:
        answers: `[M, L]`.
        shares: `[M]`, posterior probability of each, summing to 1.
    """

    answers: Tensor
    shares: Tensor


def normalised(log_weights: Tensor) -> Tensor:
    """Weights `[..., N, B]` that sum to 1 over N, float64 (float32 on MPS); zeros where all vanished."""
    log_weights = log_weights.to(widest(log_weights.device))
    total = log_weights.logsumexp(-2, keepdim=True)
    return torch.where(total.isneginf(), 0.0, (log_weights - total).exp())


@dataclass(frozen=True, eq=False)
class Trajectories:
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
        state: the last state, to go on from: the filter's, or that of `sample` with `keep="latents"`; else None.
        depths: depth step of each recorded row, `[S]`, counted from 1.
        task: name of the task, "" where there is none.
        seed: the run's seed.
        settings: how the run was made, plain values (written to files).
    """

    x: Tensor
    answers: Tensor
    log_weights: Tensor
    ancestors: Tensor | None = None
    heads: dict[str, Tensor] = field(default_factory=dict)
    kl: Tensor | None = None
    log_normalizer: Tensor | None = None
    log_potential: Tensor | None = None
    effective: Tensor | None = None
    collected: dict[str, Tensor] = field(default_factory=dict)
    states: Any = None
    likelihoods_only: bool = False
    halted: Tensor | None = None
    ended: Tensor | None = None
    state: Any = None
    depths: tuple[int, ...] = ()
    task: str = ""
    seed: int = 0
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.answers.dim() != 4 or self.answers.shape[:3] != self.log_weights.shape:
            raise ValueError(
                "answers must be [S, N, B, L] and log_weights [S, N, B], got "
                f"{list(self.answers.shape)} and {list(self.log_weights.shape)}"
            )
        if not self.depths:
            object.__setattr__(self, "depths", tuple(range(1, len(self.answers) + 1)))

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

    def __getitem__(self, problem: int | slice | Tensor) -> "Trajectories":
        """Keep some problems: an index, a slice or a tensor of indices; the problem dimension stays."""
        if isinstance(problem, Integral):
            problem = int(problem)
            if not -self.problems <= problem < self.problems:
                raise IndexError(f"problem must be below {self.problems}, got {problem}")
            problem = slice(problem, problem + 1 or None)
        return replace(
            self,
            x=self.x[problem],
            answers=self.answers[:, :, problem],
            log_weights=self.log_weights[:, :, problem],
            ancestors=None if self.ancestors is None else self.ancestors[:, :, problem],
            heads={name: value[:, :, problem] for name, value in self.heads.items()},
            kl=None if self.kl is None else self.kl[:, :, problem],
            log_normalizer=None if self.log_normalizer is None else self.log_normalizer[:, problem],
            log_potential=None if self.log_potential is None else self.log_potential[:, problem],
            effective=None if self.effective is None else self.effective[:, problem],
            collected={name: value[:, problem] for name, value in self.collected.items()},
            states=None if self.states is None else map_state(lambda leaf: leaf[:, :, problem], self.states),
            halted=None if self.halted is None else self.halted[:, problem],
            ended=None if self.ended is None else self.ended[problem],
            state=None if self.state is None else map_state(lambda leaf: leaf[:, problem], self.state),
        )

    # -- weights ----------------------------------------------------------------------------------------------

    @property
    def weights(self) -> Tensor:
        """Normalised weights, float64 (float32 on MPS) `[S, N, B]`; zeros where all of a problem's vanished."""
        return normalised(self.log_weights)

    @property
    def ess(self) -> Tensor:
        """Effective sample size 1 / Σ W² at every depth step, `[S, B]`; 0 where all weights vanished."""
        if self.effective is not None:
            return self.effective
        squares = self.weights.square().sum(1)
        return torch.where(squares > 0, 1 / squares, 0.0)

    @property
    def log_evidence(self) -> Tensor:
        """Log p(observations) in nats, `[S, B]`.

        Under an annealed likelihood or a look-ahead only the last row is evidence; the others are NaN.

        Raises:
            ValueError: a factor of the run was not a likelihood, so log Z is not evidence for anything.
        """
        if not self.likelihoods_only or self.log_normalizer is None:
            raise ValueError(
                "log_evidence exists only where every factor is a likelihood of observations; "
                "use log_normalizer for runs with other potentials, or with none"
            )
        if self.settings.get("evidence") != "last":
            return self.log_normalizer
        last = torch.full_like(self.log_normalizer, torch.nan)
        last[-1] = self.log_normalizer[-1]
        return last

    @property
    def untilted(self) -> "Trajectories":
        """The same trajectories weighted without the last potential, psi_t divided out.

        What is left is the model's own law (with its observations). A warning says where too few effective
        particles carry it; to estimate p(y | x) itself, run without a potential.
        """
        if self.log_potential is None:
            return self
        last = self.log_weights[-1]
        # A trajectory of psi = 0 has no weight to divide: the model's own law is lost there.
        log_weights = torch.where(self.log_potential.isneginf(), last, last - self.log_potential)
        log_weights = torch.cat([self.log_weights[:-1], log_weights[None]])
        plain = replace(self, log_weights=log_weights, effective=None, log_potential=None)
        low = (plain.ess[-1] < max(2.0, 0.1 * self.width)).nonzero()[:, 0].tolist()
        if low:
            warnings.warn(
                f"without the potential problems {low[:8]}{' and more' if len(low) > 8 else ''} have an effective "
                f"sample size below {max(2.0, 0.1 * self.width):.0f} of {self.width}",
                RuntimeWarning,
                stacklevel=2,
            )
        return plain

    # -- lines and answers ------------------------------------------------------------------------------------

    def lines(self) -> Tensor:
        """The slot each final trajectory occupied at every depth step: int64 `[S, N, B]`.

        `answers[s].gather(...)` with row s gives the trajectory's own past. Without resampling these are the
        slots themselves.
        """
        depth, width, problems = self.log_weights.shape
        slot = torch.arange(width, device=self.answers.device)[:, None].expand(width, problems)
        rows = [slot]
        for s in range(depth - 1, 0, -1):
            if self.ancestors is not None:
                slot = self.ancestors[s].long().gather(0, slot)
            rows.append(slot)
        return torch.stack(rows[::-1])

    def answers_along_lines(self) -> Tensor:
        """Answers over depth of the final trajectories, `[S, N, B, L]`."""
        if self.ancestors is None:
            return self.answers
        index = self.lines()[..., None].expand_as(self.answers)
        return self.answers.gather(1, index)

    def distinct(self, problem: int = 0, step: int = -1) -> DistinctAnswers:
        """The different answers of one problem with their posterior shares, the most probable first.

        Args:
            problem: index among the B problems.
            step: row of the recorded depth steps, by default the last.

        Raises:
            IndexError: no such problem.
        """
        one = self[problem]
        index, shares = one.answer_shares(step)  # [N, 1]
        first = torch.unique(index[:, 0], return_inverse=True)[1]
        totals = torch.zeros(int(first.max()) + 1, dtype=one.weights.dtype, device=first.device)
        totals.index_add_(0, first, one.weights[step, :, 0])
        slot = torch.full_like(totals, self.width, dtype=torch.long)
        slots = torch.arange(self.width, device=slot.device)
        slot.scatter_reduce_(0, first, slots, "amin")
        alive = totals > 0
        order = totals[alive].argsort(descending=True, stable=True)
        # Rounding may have made a sum of weights exceed 1.
        return DistinctAnswers(one.answers[step, slot[alive][order], 0], totals[alive][order].clamp(max=1.0))

    def answer_shares(self, step: int = -1) -> tuple[Tensor, Tensor]:
        """For each slot: a number of its answer, and the total weight of that answer in its problem.

        Returns:
            `(index, shares)`, int64 and as `weights`, `[N, B]`; slots of one problem have equal numbers exactly
            where their answers are equal.
        """
        answers = self.answers[step]  # [N, B, L]
        if not answers.shape[-1]:
            raise ValueError("the run has no answers: its model reads none out of its states")
        n, b, _ = answers.shape
        problem = torch.arange(b, device=answers.device).expand(n, b)
        rows = torch.cat([problem[..., None], answers.long()], -1).reshape(n * b, -1)
        index = torch.unique(rows, dim=0, return_inverse=True)[1]
        weights = self.weights[step].reshape(-1)
        totals = torch.zeros_like(weights).index_add_(0, index, weights)
        return index.reshape(n, b), totals[index].reshape(n, b)

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
    def load(cls, path: str | Path, problems: slice | None = None) -> "Trajectories":
        """Read a run that `save` wrote, or what there is of one that `sample(..., store=path)` is writing.

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

                return netcdf.read(path, problems)
            case ".zarr":
                from probgram import store

                return store.read(path, problems)
        from probgram.fields import assembled, chosen

        tensors, metadata = checkpoint.read_tensors(path)
        if metadata.get("format") != FORMAT:
            raise checkpoint.CheckpointError(f"{path} is not a saved run (format {metadata.get('format')!r})")
        run = assembled(tensors, json.loads(metadata.get("run", "{}")), path)
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
