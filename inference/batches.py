"""Training data as tensors in the order it is seen; a rollout's rows are refilled as they end."""

from typing import Any

import torch
from torch import Tensor

from probgram.inference.drawing import Drawing, as_known_answers, fingerprint_of
from probgram.inference.objective import Rollout
from probgram.inference.shares import Share

__all__ = ["Batches", "as_known_answers", "fingerprint_of"]


class Batches(Drawing):
    """Hands out problems in a seeded order, and keeps a `Rollout`'s rows filled.

    Args:
        *args: as for `Drawing`; B and the order are those of all ranks together.
        share: which rows of every batch this process has.
        **settings: as for `Drawing`.
    """

    def __init__(self, *args: Any, share: Share | None = None, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.share = share or Share()

    def start(self, device: torch.device) -> Rollout:
        """A rollout whose rows are all at age 0."""
        x, answers, count, target = self._ours(torch.arange(self.batch), device)
        return Rollout(x, answers, count, target, torch.zeros(len(x), dtype=torch.long))

    def refill(self, rollout: Rollout, also: Tensor | None = None) -> Rollout:
        """Replace the rows that have ended (and those of `also`, bool `[B]` on the host) by new problems."""
        device = rollout.x.device
        marks = torch.stack([rollout.age, torch.zeros_like(rollout.age) if also is None else also.long()], 1)
        age, asked = self.share.whole(marks, device).unbind(1)
        rows = torch.from_numpy(self.ended(age.numpy(), asked.bool().numpy()))
        if not len(rows):
            return rollout
        x, answers, count, target = self._ours(rows, device)
        own = rows[rows % self.share.world == self.share.rank] // self.share.world
        place = own.to(device)
        return rollout._replace(
            x=rollout.x.index_copy(0, place, x),
            answers=rollout.answers.index_copy(0, place, answers),
            counts=rollout.counts.index_copy(0, own, count),
            target=rollout.target.index_copy(1, place, target),
            age=rollout.age.index_fill(0, own, 0),
        )

    def _ours(self, rows: Tensor, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw for these rows of the whole batch, and keep what is for ours."""
        x, answers, count, target = self._draw(len(rows), device)
        ours = (rows % self.share.world == self.share.rank).nonzero()[:, 0]
        if len(ours) == len(rows):
            return x, answers, count, target
        place = ours.to(device)
        return x[place], answers[place], count[ours], target[:, place]

    def _draw(self, rows: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The next problems, their answers, the counts (on the host), and the trajectories' answers."""
        x, answers, count, target = (torch.from_numpy(part) for part in self.draw(rows))
        return x.to(device), answers.to(device), count, target.to(device)
