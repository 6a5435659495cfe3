"""What is made of the weighted trajectories of a run in JAX: a vote, the best, the first verified, a posterior.

The twin of `probgram.inference.selection`, on the host: every rule is a function `rule(run, step=-1) -> Selection`,
for all problems at once.
"""

from typing import Any, NamedTuple

import numpy as np

from probgram.inference.on_jax.trajectories import DistinctAnswers, Trajectories


class Selection(NamedTuple):
    """One answer a problem, and how sure the rule is.

    Fields:
        answers: `[B, L]`.
        slot: the particle each answer comes from, `[B]`.
        score: the rule's own measure, `[B]`: a share, a probability, or 1 for verified.
    """

    answers: np.ndarray
    slot: np.ndarray
    score: np.ndarray


def vote(run: Trajectories, step: int = -1) -> Selection:
    """The answer with the largest posterior share; the lowest slot wins a tie."""
    _, shares = run.answer_shares(step)
    return _take(run, step, shares)


def best(run: Trajectories, step: int = -1, head: str = "value") -> Selection:
    """The answer of the living trajectory whose head is highest ("value", or "halt" as in PTRM).

    Raises:
        ValueError: the run has no such head.
    """
    if head not in run.heads:
        raise ValueError(f"the run has no head {head!r}: it has {sorted(run.heads) or 'none'}")
    alive = run.weights[step] > 0
    chosen = _take(run, step, np.where(alive, run.heads[head][step].astype(np.float32), -np.inf))
    return chosen._replace(score=1 / (1 + np.exp(-chosen.score)))


def first_verified(run: Trajectories, task: Any, step: int = -1) -> Selection:
    """The first slot whose answer passes `task.verify`; where none does, the vote, with score 0."""
    verified = np.asarray(task.verify(run.x, run.answers[step])) & (run.weights[step] > 0)  # [N, B]
    _, shares = run.answer_shares(step)
    chosen = _take(run, step, np.where(verified, 2.0, shares))
    return chosen._replace(score=verified.any(0).astype(shares.dtype))


def posterior(run: Trajectories, step: int = -1, untilted: bool = False) -> list[DistinctAnswers]:
    """The posterior over answers of every problem: its distinct answers with their shares.

    Args:
        run: of the filter, or independent draws.
        step: row of the recorded depth steps, by default the last.
        untilted: divide the potential of the last depth step out, see `Trajectories.untilted`.

    Raises:
        ValueError: an untilted step that is not the last: its potential was not kept.
    """
    if untilted:
        if step not in (-1, len(run.answers) - 1):
            raise ValueError(f"only the last depth step can be untilted, got step {step}")
        run = run.untilted
    return [run.distinct(problem, step) for problem in range(run.problems)]


def _take(run: Trajectories, step: int, score: np.ndarray) -> Selection:
    slot = score.argmax(0)  # [B]; the first of equals
    problem = np.arange(run.problems)
    return Selection(run.answers[step][slot, problem], slot, score[slot, problem])
