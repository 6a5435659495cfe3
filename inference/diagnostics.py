"""Measures of a run at every depth step, and where each of them lives; `diagnose` puts them in words.

    answer_entropy, distinct_answers, changing, settled, unseen      here: what the trajectories answer, over depth
    split_rhat, islands_rhat, trajectories_rhat                      rhat: do islands agree, do trajectories?
    quantities, principal                                            quantities: what R-hat is taken of
    pareto_k                                                         pareto: the tail of the weights
    unique_ancestors                                                 genealogy: what resampling has left
    trapping                                                         trapping: wrong answers that stay
    stability, alignment, cloud_entropy                              foresight: will a filter help?
    guidance                                                         guidance: KL of a guided run

All problems, particles and depth steps are taken at once, on the run's device. Shares and means over trajectories
are by weight, and an answer whose trajectories have all lost their weight does not count. The effective sample size
is `run.ess`, 1 / Σ W²: ArviZ's is one of autocorrelation, which depends on the order of the draws, and particles
have none.

Source: Good, "The population frequencies of species and the estimation of population parameters", Biometrika 40,
1953 (`unseen`).
"""

import torch
from torch import Tensor

from probgram.inference.foresight import alignment as alignment
from probgram.inference.foresight import cloud_entropy as cloud_entropy
from probgram.inference.foresight import stability as stability
from probgram.inference.genealogy import unique_ancestors as unique_ancestors
from probgram.inference.grouping import answer_numbers, before, entropy, shares_of, totals
from probgram.inference.guidance import guidance as guidance
from probgram.inference.pareto import pareto_k as pareto_k
from probgram.inference.quantities import principal as principal
from probgram.inference.quantities import quantities as quantities
from probgram.inference.rhat import islands_rhat as islands_rhat
from probgram.inference.rhat import split_rhat as split_rhat
from probgram.inference.rhat import trajectories_rhat as trajectories_rhat
from probgram.inference.trapping import trapping as trapping
from probgram.state import widest
from probgram.trajectories import Trajectories


def answer_entropy(run: Trajectories) -> Tensor:
    """Entropy of the distribution over answers, in nats, `[S, B]`: 0 where all agree, at most log N."""
    return entropy(totals(answer_numbers(run), run.weights))


def distinct_answers(run: Trajectories) -> Tensor:
    """How many different answers there are, int64 `[S, B]`."""
    return (totals(answer_numbers(run), run.weights) > 0).sum(1)


def changing(run: Trajectories) -> Tensor:
    """Share of the trajectories whose answer is not that of the depth step before, `[S, B]`; NaN at the first.

    A trajectory's answer at the step before is its ancestor's.
    """
    numbers, weights = answer_numbers(run), run.weights
    moved = (numbers[1:] != before(run, numbers)) * weights[1:]
    first = torch.full_like(weights[:1, 0], torch.nan)
    return torch.cat([first, moved.sum(1)])


def settled(run: Trajectories, share: float = 0.0) -> Tensor:
    """Depth step from which on no more than `share` of the trajectories change their answer in a step, int64 `[B]`.

    The step is that of the last change, so that a run that agrees with itself throughout has settled at its first
    step. 0 where it is still changing at its last step, or has only one.
    """
    steps = changing(run)
    depths = torch.tensor(run.depths, device=steps.device)
    if len(steps) < 2:
        return torch.zeros_like(depths[:1]).expand(run.problems)
    moves = steps[1:] > share  # [S - 1, B]
    last = (moves * torch.arange(1, len(steps), device=steps.device)[:, None]).amax(0)
    return torch.where(moves[-1], 0, depths[last])


def unseen(run: Trajectories, right: Tensor | None = None) -> Tensor:
    """Probability of the answers that independent draws have not shown yet, at every depth step, `[S, B]`.

    Good and Turing's estimate: the share of the draws that are the only ones with their answer.

    Args:
        run: independent draws, as `sample` makes them.
        right: bool `[S, N, B]`, which draws count; None: all.

    Raises:
        ValueError: the run's particles were weighed or resampled.
    """
    if not independent(run):
        raise ValueError("unseen needs independent draws: those of a filter are weighed, or share ancestors")
    counted = shares_of(answer_numbers(run), torch.ones_like(run.weights)) == 1
    return (counted if right is None else counted & right).to(widest(counted.device)).mean(1)


def independent(run: Trajectories) -> bool:
    """Whether the trajectories are independent draws of equal weight."""
    equal = run.log_weights == run.log_weights[:, :1]
    return run.ancestors is None and bool((equal & run.log_weights.isfinite()).all())
