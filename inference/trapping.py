"""Trapped trajectories: those whose answer is wrong and does not change any more."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from probgram.inference.grouping import answer_numbers, before
from probgram.state import widest
from probgram.trajectories import Trajectories

STAY = 2  # depth steps without a change: at one, an answer that pauses on its way would count


class Trapping(NamedTuple):
    """How many trajectories are trapped after each depth step, and how many of them get out in the next.

    Fields:
        trapped: share of the trajectories, by weight, `[S, B]`; 0 at the first steps, which are too early to tell.
        escaped: share of those trapped one step before whose answer has changed now, `[S, B]`; NaN where none was.
        rescued: and whose answer is right now.
    """

    trapped: Tensor
    escaped: Tensor
    rescued: Tensor

    def rate(self, share: Tensor) -> Tensor:
        """What escapes (or is rescued) per further depth step, over the later half of the run, `[B]`.

        Steps count by how many were trapped before them; NaN where none ever was.
        """
        first = max(1, len(self.trapped) // 2)
        at_risk = self.trapped[first - 1 : -1]
        return (at_risk * share[first:].nan_to_num(0.0)).sum(0) / at_risk.sum(0)


def trapping(run: Trajectories, task: Any, stay: int = STAY) -> Trapping:
    """Follow the trajectories whose decoded answer is a fixed point that fails verification.

    A trajectory counts as trapped once its answer, which is wrong, has been the same for `stay` depth steps in a
    row, its ancestors' included. What escapes is counted before the step's own weighing, so that a potential which
    merely takes the weight from trapped trajectories does not count as an escape.

    Args:
        run: kept a row for every depth step.
        task: verifies.
        stay: depth steps without a change, at least 1.

    Raises:
        ValueError: stay is below 1, the run has no answers, or the task cannot verify them (`UnknownAnswers`).
    """
    if stay < 1:
        raise ValueError(f"stay must be at least 1, got {stay}")
    numbers, weights = answer_numbers(run), run.weights
    right = torch.as_tensor(task.verify(run.x, run.answers), device=numbers.device)
    same = numbers[1:] == before(run, numbers)  # [S - 1, N, B]
    stayed = [torch.zeros_like(numbers[0])]
    for s, kept in enumerate(same, 1):
        last = stayed[-1] if run.ancestors is None else stayed[-1].gather(0, run.ancestors[s].long())
        stayed.append(torch.where(kept, last + 1, 0))
    trapped = ~right & (torch.stack(stayed) >= stay)
    at_risk = before(run, trapped) * _weights_before(run)
    total = at_risk.sum(1)
    nothing = torch.full((1, run.problems), torch.nan, dtype=weights.dtype, device=weights.device)
    return Trapping(
        (trapped * weights).sum(1),
        torch.cat([nothing, (at_risk * ~same).sum(1) / total]),
        torch.cat([nothing, (at_risk * right[1:]).sum(1) / total]),
    )


def _weights_before(run: Trajectories) -> Tensor:
    """Each particle's share of its ancestor's weight, before it is weighed itself, `[S - 1, N, B]`."""
    weights = run.weights[:-1]
    if run.ancestors is None:
        return weights
    parents = run.ancestors[1:].long()
    copies = torch.zeros_like(weights).scatter_add(1, parents, torch.ones_like(weights))
    return weights.gather(1, parents) / copies.gather(1, parents).to(widest(weights.device))
