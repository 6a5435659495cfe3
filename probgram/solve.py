"""One call: a puzzle in, its different answers out, with their shares."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probgram.trajectories import Trajectories

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from probgram.chain import Chain
    from probgram.tasks import Task


@dataclass(frozen=True, eq=False)
class Solution:
    """The answers to one problem.

    Attributes:
        answers: the different answers, the most probable first, `[M, L]`.
        shares: posterior probability of each, `[M]`.
        verified: whether each passes the task's verification, bool `[M]`; None where the task cannot tell.
        run: the trajectories they come from.
        task: draws and verifies them.
    """

    answers: "Tensor"
    shares: "Tensor"
    verified: "Tensor | None"
    run: Trajectories
    task: "Task"

    def __repr__(self) -> str:
        right = "unverified" if self.verified is None else f"{int(self.verified.sum())} verified"
        return f"Solution({right} of {len(self.answers)} different answers, {self.run!r})"

    def __str__(self) -> str:
        """Every verified answer drawn, with its share (every answer, where the task cannot verify)."""
        pictures = [f"share {share:.2f}\n{self.task.decode(answer)}" for answer, share in self.accepted()]
        return "\n\n".join(pictures) or "no answer passed verification"

    def accepted(self) -> "list[tuple[Tensor, float]]":
        """The verified answers `[L]` with their shares; all of them, where the task cannot verify."""
        good = [True] * len(self.answers) if self.verified is None else self.verified.tolist()
        return [(a, float(s)) for a, s, g in zip(self.answers, self.shares, good, strict=True) if g]


def solve(
    model: "str | Path | Chain",
    problem: Any,
    width: int = 20,
    depth: int | None = None,
    seed: int = 0,
    task: "Task | str | None" = None,
    potential: "Callable[..., Tensor] | None" = None,
    **filter: Any,
) -> Solution:
    """Answer one problem with `width` trajectories: independent ones, or under a potential a particle filter's.

    Args:
        model: a shipped name ("queens8"), a weight file, or a chain.
        problem: whatever `task.encode` reads, for queens `Q` and `.` or a list of columns.
        width: trajectories.
        depth: depth steps; None: `usual_depth`.
        seed: same seed, same answers.
        task: the problem family, or the name of a built-in one; None: the one the weights were trained on.
        potential: what makes a trajectory worth keeping between depth steps, `probgram.inference.potentials`;
            None: nothing, the trajectories are independent.
        **filter: under a potential, further arguments of `smc.run`: `resample`, `ess_threshold`, ...

    Returns:
        The distinct answers with their shares, each verified, on the host.

    Raises:
        ValueError: the problem cannot be read, a size is below 1, or there is no task to read it with.
        CheckpointError: the weights cannot be loaded.
    """
    from probgram import tasks
    from probgram.checkpoint import load_chain
    from probgram.inference.sampling import sample

    chain = load_chain(model) if isinstance(model, str | Path) else model
    if task is None:
        task = trained_on(chain)
    elif isinstance(task, str):
        task = tasks.from_name(task)
    depth = usual_depth(chain) if depth is None else depth
    x = task.encode(problem)
    if potential is None:
        if filter:
            raise ValueError(f"{', '.join(filter)} says how to filter, which needs a potential")
        run = sample(chain, x, width, depth, seed, task=task.name)
    else:
        from probgram.inference import smc

        run = smc.run(chain, x, width=width, depth=depth, seed=seed, task=task.name, potential=potential, **filter)
    answers, shares = (part.cpu() for part in run.distinct(0))
    try:
        verified = task.verify(run.x[0].cpu(), answers)
    except tasks.UnknownAnswers:
        verified = None
    return Solution(answers, shares, verified, run, task)


def usual_depth(chain: "Chain") -> int:
    """The depth steps at which a chain's weights were evaluated; 16 where they do not say.

    A network without deep supervision, such as a looped transformer, does not keep its answer beyond that.
    """
    return (chain.about.get("evaluation") or {}).get("depth", 16)


def trained_on(chain: "Chain") -> "Task":
    """The task that a chain's weights say they were trained on, held out as it was then.

    Raises:
        ValueError: they do not say, or it is not one of the built-in tasks.
    """
    from probgram import tasks

    name = chain.about.get("task")
    if name is None:
        raise ValueError("task must be given: the weights do not say which task they were trained on")
    try:
        return tasks.from_name(name, chain.about.get("split"))
    except ValueError:
        raise ValueError(
            f"task must be given: the weights were trained on {name!r}, which is not built in"
        ) from None
