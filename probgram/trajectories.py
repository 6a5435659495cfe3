"""What a run returns: weighted latent trajectories, their lines, their answers.

Values are recorded after reweighting and before the next resampling. `ancestors[s]` maps slots at depth
step s to slots at s - 1, so once resampling has happened a slot is not a trajectory: `lines()` traces
ancestry, and whatever is drawn over depth must use it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from probgram.run import HALF_TYPES, Run, warn_untilted
from probgram.state import map_state, widest

_WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # integers of so many bytes


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


@dataclass(frozen=True, eq=False, repr=False)
class Trajectories(Run[Tensor]):
    """N weighted trajectories of B problems over S recorded depth steps, as PyTorch's tensors.

    `Run` says what its fields hold, and has its sizes, files and conversion to ArviZ.
    """

    library: ClassVar[str] = "torch"
    framework: ClassVar[str] = "pt"

    @staticmethod
    def as_stored(values: np.ndarray, dtype: str) -> Tensor:
        """An array that a file holds as a tensor of a type; half types are stored as integers."""
        wanted = getattr(torch, dtype, None)
        if not isinstance(wanted, torch.dtype):
            raise ValueError(f"there is no type {dtype!r}")
        tensor = torch.from_numpy(values)
        return tensor.view(wanted) if dtype in HALF_TYPES else tensor.to(wanted)

    @staticmethod
    def each_leaf(function: Callable[[Tensor], Tensor], state: Any) -> Any:
        """Apply a function to every leaf of a state."""
        return map_state(function, state)

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
        warn_untilted(plain.ess[-1], self.width)
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
        if answers.is_floating_point():  # their bits; -0 is 0
            answers = (answers + 0.0).view(_WORDS[answers.element_size()])
        rows = torch.cat([problem[..., None], answers.long()], -1).reshape(n * b, -1)
        index = torch.unique(rows, dim=0, return_inverse=True)[1]
        weights = self.weights[step].reshape(-1)
        totals = torch.zeros_like(weights).index_add_(0, index, weights)
        return index.reshape(n, b), totals[index].reshape(n, b)


def as_trajectories(run: Run[Any]) -> Trajectories:
    """A run of either library as one of PyTorch's, without copying where it is one, or on the host."""
    return run if isinstance(run, Trajectories) else run.to_torch()
