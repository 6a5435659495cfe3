"""A run as one page to look into: each trajectory's boards over depth, its ancestry, the answers, a diagnosis.

`content` says in numbers what the page shows; `report.html`, `report.css` and `report.js` show it.
"""

import html
from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

from probgram import __version__
from probgram.page import document
from probgram.report.content import content, known_task
from probgram.run import Run

if TYPE_CHECKING:
    from probgram.inference.diagnosis import Diagnosis
    from probgram.tasks import Task
    from probgram.trajectories import Trajectories

MOST_PROBLEMS = 12  # on one page, unless more are asked for


def report(
    run: Run[Any] | Sequence[Run[Any]],
    task: "Task | str | None" = None,
    problem: int | Sequence[int] | None = None,
    diagnosis: "Diagnosis | Sequence[Diagnosis] | None" = None,
) -> str:
    """Write a run as one HTML file that needs no other and no network.

    Args:
        run: what `sample`, `smc.run` or `Trajectories.load` gave, or several runs of one task. One that kept every
            depth step (`keep="paths"`) can be replayed. A run without answers, of a state space, is shown without
            boards and diagnosis.
        task: draws and verifies the answers; None: the built-in task that the run names, and where it names none
            the answers are shown as tokens, unverified.
        problem: which of the run's problems are shown, an index or several; None: all, at most the first 12.
        diagnosis: what `probgram.inference.diagnose` said, of each run where there are several; None: it is asked.

    Returns:
        The page. It grows with the different answers: a problem takes some 200 kB where 64 trajectories of 32 depth
        steps never agree on any of 81 tokens.

    Raises:
        ValueError: no run, no such task or problem, a task with answers of another length, or another number of
            diagnoses than of runs.
    """
    from probgram.trajectories import as_trajectories

    runs = [as_trajectories(one) for one in ([run] if isinstance(run, Run) else run)]
    if not runs:
        raise ValueError("report needs at least one run, got none")
    family, tokens = known_task(runs[0], task), runs[0].answers.shape[-1]
    if family is not None and tokens not in (0, family.length):
        raise ValueError(
            f"task must be the run's: {family.name} has answers of {family.length} tokens, the run's have {tokens}"
        )
    if diagnosis is None:
        from probgram.inference import diagnose

        diagnoses: list[Diagnosis | None] = [
            diagnose(one, family) if one.answers.shape[-1] else None for one in runs
        ]
    else:
        diagnoses = list(diagnosis) if isinstance(diagnosis, Sequence) else [diagnosis]
    if len(diagnoses) != len(runs):
        raise ValueError(f"report needs a diagnosis of each run, got {len(diagnoses)} for {len(runs)}")
    chosen = _chosen(runs, problem)
    data = content(runs, family, chosen, diagnoses)
    total = sum(one.problems for one in runs)
    notes = []
    if problem is None and len(chosen) < total:
        notes.append(f"Shown are the first {len(chosen)} of {total} problems.")
    if family is None and tokens:
        named = f"The run's task, {runs[0].task!r}, is not built in" if runs[0].task else "The run names no task"
        notes.append(f"{named}, and none was given: answers are shown as tokens and not verified.")
    title = f"{runs[0].task or (family.name if family else 'A run')}: {_sizes(runs)}"
    body = (resources.files(__name__) / "report.html").read_text(encoding="utf-8")
    for name, text in {"title": title, "notes": " ".join(notes), "version": __version__}.items():
        body = body.replace("{{" + name + "}}", html.escape(text))
    style, script = (
        (resources.files(__name__) / f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js")
    )
    return document(f"{title} - probgram", body, style, script, data)


def _chosen(runs: "Sequence[Trajectories]", problem: int | Sequence[int] | None) -> list[tuple[int, int]]:
    """The problems to be shown, as numbers of run and of problem in it."""
    everything = [(number, index) for number, one in enumerate(runs) for index in range(one.problems)]
    if problem is None:
        return everything[:MOST_PROBLEMS]
    wanted = [problem] if not isinstance(problem, Sequence) else list(problem)
    for index in wanted:
        if not 0 <= index < len(everything):
            raise ValueError(f"problem must be from 0 to {len(everything) - 1}, got {index}")
    if not wanted:
        raise ValueError("problem must name at least one problem, got none")
    return [everything[index] for index in wanted]


def _sizes(runs: "Sequence[Trajectories]") -> str:
    first = runs[0]
    number = sum(one.problems for one in runs)
    problems = f"{number} problems × " if number > 1 else ""
    return f"{problems}{first.width} trajectories × {first.depth} depth steps"
