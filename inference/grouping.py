"""Which particles of a step and problem are equal, what each different value weighs, and who came before whom.

Particles are compared by sorting, all steps and problems at once: memory and time stay in proportion to N, or N log
N.
"""

import torch
from torch import Tensor

from probgram.trajectories import Trajectories


def answer_numbers(run: Trajectories) -> Tensor:
    """A number for every answer of a run, int64 `[S, N, B]`: equal exactly where answers are equal.

    Raises:
        ValueError: the run has no answers.
    """
    answers = run.answers
    if not answers.shape[-1]:
        raise ValueError("the run has no answers: its model reads none out of its states")
    # Eight bytes at a time: sorting words is far faster than sorting rows, and as exact.
    room = 8 // answers.element_size()
    padded = torch.nn.functional.pad(answers, (0, -answers.shape[-1] % room)).contiguous()
    words = padded.view(torch.int64).flatten(0, -2)  # [S · N · B, words]
    number = torch.zeros_like(words[:, 0])
    for word in words.unbind(1):
        values, rank = torch.unique(word, return_inverse=True)
        number = torch.unique(number * len(values) + rank, return_inverse=True)[1]
    return number.view(answers.shape[:3])


def shares_of(numbers: Tensor, weights: Tensor) -> Tensor:
    """Total weight of the particles with the same number, for every particle, `[S, N, B, ...]`."""
    return totals(numbers, weights).gather(1, _groups(numbers))


def before(run: Trajectories, values: Tensor) -> Tensor:
    """A quantity `[S, N, B]` of each particle's ancestor at the depth step before, `[S - 1, N, B]`."""
    return values[:-1] if run.ancestors is None else values[:-1].gather(1, run.ancestors[1:].long())


def totals(numbers: Tensor, weights: Tensor) -> Tensor:
    """Total weight of each different number of a step and problem, `[S, N, B, ...]`; zeros fill the rest.

    Args:
        numbers: integers `[S, N, B, ...]`.
        weights: `[S, N, B]`.
    """
    weights = weights.reshape(*weights.shape, *[1] * (numbers.dim() - 3)).expand(numbers.shape)
    return torch.zeros_like(weights).scatter_add(1, _groups(numbers), weights)


def entropy(shares: Tensor) -> Tensor:
    """-Σ p log p over the second dimension, in nats; NaN where nothing has weight."""
    total = shares.sum(1)
    spread = torch.special.entr(shares / total[:, None]).sum(1)
    return torch.where(total > 0, spread, torch.nan)


def _groups(numbers: Tensor) -> Tensor:
    """Count the different values along the second dimension from 0: equal ones have equal counts."""
    ordered, order = numbers.sort(1)
    new = torch.cat([torch.zeros_like(ordered[:, :1]), (ordered.diff(dim=1) != 0).to(ordered)], 1)
    return torch.empty_like(order).scatter_(1, order, new.long().cumsum(1))
