"""One call: a puzzle in, its different answers out, with their shares."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probgram.run import Run

if TYPE_CHECKING:
    from collections.abc import Callable

    from probgram.inference.confidence import Confidence
    from probgram.tasks import Task


@dataclass(frozen=True, eq=False)
class Solution:
    """The answers to one problem: tensors on the host, or with the backend "jax" arrays of NumPy.

    Attributes:
        answers: the different answers, the most probable first, `[M, L]`.
        shares: posterior probability of each, `[M]`.
        verified: whether each passes the task's verification, bool `[M]`; None where the task cannot tell.
        run: the trajectories they come from.
        task: draws and verifies them.
        confidence: how sure the run is of the most probable answer, from 0 to 1; neither labels nor `verified` have
            a say in it.
        abstain_below: the confidence below which no answer is given; None: answers are always given.
    """

    answers: Any
    shares: Any
    verified: Any
    run: Run[Any]
    task: "Task"
    confidence: float
    abstain_below: float | None = None

    @property
    def abstained(self) -> bool:
        """Whether the confidence is too low to give an answer; `answers` holds what was drawn all the same."""
        # 1e-6: a share that rounding has put below the threshold it equals.
        return self.abstain_below is not None and self.confidence < self.abstain_below - 1e-6

    def __repr__(self) -> str:
        right = "unverified" if self.verified is None else f"{int(self.verified.sum())} verified"
        start = "abstained, " if self.abstained else ""
        return f"Solution({start}{right} of {len(self.answers)} different answers, {self.run!r})"

    def __str__(self) -> str:
        """Every verified answer drawn, with its share (every answer, where the task cannot verify), if any."""
        if self.abstained:
            return f"no answer: a confidence of {self.confidence:.3g} is below {self.abstain_below:.3g}"
        pictures = [f"share {share:.2f}\n{self.task.decode(answer)}" for answer, share in self.accepted()]
        return "\n\n".join(pictures) or "no answer passed verification"

    def accepted(self) -> list[tuple[Any, float]]:
        """The verified answers `[L]` with their shares; all, if the task cannot verify; none, if it abstained."""
        if self.abstained:
            return []
        good = [True] * len(self.answers) if self.verified is None else self.verified.tolist()
        return [(a, float(s)) for a, s, g in zip(self.answers, self.shares, good, strict=True) if g]


def solve(
    model: Any,
    problem: Any,
    width: int = 20,
    depth: int | None = None,
    seed: int = 0,
    task: "Task | str | None" = None,
    potential: "Callable[..., Any] | None" = None,
    abstain_below: float | None = None,
    confidence: "Confidence | None" = None,
    backend: str | None = None,
    **filter: Any,
) -> Solution:
    """Answer one problem with `width` trajectories: independent ones, or under a potential a particle filter's.

    Args:
        model: a shipped name ("queens8"), a weight file, or a chain, of PyTorch or of JAX.
        problem: whatever `task.encode` reads, for queens `Q` and `.` or a list of columns.
        width: trajectories.
        depth: depth steps; None: `usual_depth`.
        seed: same seed, same answers.
        task: the problem family, or the name of a built-in one; None: the one the weights were trained on.
        potential: what makes a trajectory worth keeping between depth steps, `probgram.inference.potentials` (or
            `probgram.inference.on_jax.potentials`); None: nothing, the trajectories are independent.
        abstain_below: give no answer where the confidence is below, from 0 to 1; None: answer in any case.
        confidence: how sure a run is of the most probable answer, from `probgram.inference.confidence`: `halt` or
            `value`, what a head says of the trajectories that gave it; `share`, how many gave it, which is low also
            where several answers are right; `expected(energy(task))` of the backend's `energy`, how close all
            trajectories come to an answer, the surest where the task can count violations without knowing the
            answers. None: `halt` where the chain has that head, else `share`.
        backend: "torch", or "jax" (extra `jax`); None: that of the chain, and torch for weights by name or file.
        **filter: under a potential, further arguments of `smc.run`: `resample`, `ess_threshold`, ...

    Returns:
        The distinct answers with their shares, each verified, on the host.

    Raises:
        ValueError: the problem cannot be read, a size is below 1, there is no task to read it with or it has other
            tokens than the chain, the chain lacks
            the head that a confidence needs, its potential is of the other backend, or the backend is not installed
            or not that of the chain.
        CheckpointError: the weights cannot be loaded.
    """
    from probgram import tasks
    from probgram.backends import backend_of, inference, load_chain, seeded
    from probgram.fields import as_array
    from probgram.inference.confidence import usual

    if abstain_below is not None and not 0 <= abstain_below <= 1:
        raise ValueError(f"abstain_below must be between 0 and 1, got {abstain_below}")
    if isinstance(model, str | Path):
        backend = "torch" if backend is None else backend
        chain = load_chain(model, backend)
    else:
        chain, asked = model, backend
        backend = backend_of(chain)
        if asked not in (None, backend):
            raise ValueError(f"backend must be {backend!r}, which the chain is of, got {asked!r}")
    if task is None:
        task = trained_on(chain)
    elif isinstance(task, str):
        task = tasks.from_name(task)
    _check_tokens(chain, task)
    depth = usual_depth(chain) if depth is None else depth
    x = task.encode(problem)
    if potential is None:
        if filter:
            raise ValueError(f"{', '.join(filter)} says how to filter, which needs a potential")
        run = inference(backend, "sampling").sample(chain, x, width, depth, seed, task=task.name)
    else:
        filter |= {"width": width, "depth": depth, "task": task.name, "potential": potential}
        run = inference(backend, "smc").run(chain, x, **seeded(backend, seed), **filter)
    run = run.canonical(task)
    answers, shares = run.distinct(0)
    sure = 0.0  # where all weights vanished
    if len(answers):
        sure = as_array((usual if confidence is None else confidence)(run, answers[:1], -1)).item()
    given = run.x[0]
    if backend == "torch":
        answers, shares, given = answers.cpu(), shares.cpu(), given.cpu()
    try:
        verified = task.verify(given, answers)
    except tasks.UnknownAnswers:
        verified = None
    return Solution(answers, shares, verified, run, task, sure, abstain_below)


def _check_tokens(chain: Any, task: "Task") -> None:
    """Raise ValueError where a chain's answers have other tokens than the task's."""
    has = getattr(getattr(chain, "config", None), "output_size", None)
    if has not in (None, task.output_size):
        raise ValueError(
            f"answers of {task.name} have {task.output_size} different tokens, and the chain's {has}: they are not "
            "made for each other (tasks.Shifted counts tokens from another number)"
        )


def usual_depth(chain: Any) -> int:
    """The depth steps at which a chain's weights were evaluated, or it is made for; 16 where neither says.

    A network without deep supervision, such as a looped transformer, does not keep its answer beyond that.
    """
    made_for = getattr(chain, "fixed_depth", None)
    return (chain.about.get("evaluation") or {}).get("depth", made_for or 16)


def trained_on(chain: Any) -> "Task":
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
