"""`probgram solve`: answers to problems, drawn or as JSON."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from probgram.cli.common import (
    Backend,
    Depth,
    Device,
    Ess,
    Json,
    Potential,
    Quiet,
    Resample,
    Seed,
    TaskName,
    Weights,
    Width,
    chain_from,
    filter_from,
    print_json,
    task_from,
    task_of,
    write_report,
)

if TYPE_CHECKING:
    from probgram.solve import Solution
    from probgram.tasks import Task

AbstainBelow = Annotated[
    float | None,
    typer.Option(min=0.0, max=1.0, help="Give no answer to a problem where the confidence is below this."),
]
ConfidenceBy = Annotated[
    str | None,
    typer.Option(
        "--confidence",
        help="Of the most probable answer: halt or value, what a head says; vote, its share; energy, how close all "
        "trajectories come to one. Default: halt where the network has that head, else vote.",
    ),
]


def solve(
    weights: Weights,
    board: Annotated[str | None, typer.Option(help="The problem, as the task reads it.")] = None,
    file: Annotated[
        Path | None, typer.Option(help="Problems, a blank line between two; - is standard input.")
    ] = None,
    task: TaskName = None,
    width: Width = 20,
    depth: Depth = None,
    seed: Seed = 0,
    potential: Potential = None,
    resample: Resample = "none",
    ess: Ess = 0.5,
    abstain_below: AbstainBelow = None,
    confidence: ConfidenceBy = None,
    report: Annotated[
        Path | None, typer.Option(help="Write boards over depth, ancestry and diagnosis as one HTML file.")
    ] = None,
    backend: Backend = "torch",
    device: Device = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Answer problems: the different answers found, drawn, with the share of trajectories that ended there.

    **Examples**

    `probgram solve queens8 --board "0 . . . . . . ."`  columns, a dot for a blank row

    `probgram solve queens8 --file boards.txt --width 64`  Q and . drawn, a blank line between boards

    `cat board.txt | probgram solve queens8 --json`

    `probgram solve queens8 --board ". . . . . . . ." --potential energy --resample systematic`  a particle filter

    `probgram solve queens8 --board "0 2 . . . . . ." --abstain-below 0.9`  no answer where it is not sure

    `probgram solve queens8-blank`  boards from nothing: a task with one problem, the blank one, needs none

    `probgram solve queens8 --board "0 . . . . . . ." --report run.html`  a page to look into the run

    `probgram solve queens8 --board "0 . . . . . . ." --backend jax`  the same network in JAX

    Exits with 1 when every answer to a problem fails verification, or none is given.
    """
    if board is not None and file is not None:
        raise ValueError("a problem is needed once: --board TEXT or --file PATH, not both")
    chain = chain_from(weights, device, backend)
    family = task_of(chain) if task is None else task_from(task)
    if board is None and file is None and _reads_blank(family):
        board = ""
    texts = [board] if board is not None else list(_problems(file))
    from probgram.solve import solve as answer
    from probgram.solve import usual_depth

    depth = usual_depth(chain) if depth is None else depth
    choices = filter_from(potential, resample, ess, family, backend)
    sure: dict[str, Any] = {"abstain_below": abstain_below, "confidence": _confidence(confidence, family, backend)}
    solutions = [answer(chain, text, width, depth, seed, family, **sure, **choices) for text in texts]
    if report is not None:
        known = chain if backend == "torch" else None  # a diagnosis draws a few more trajectories, in PyTorch
        write_report(report, [solution.run for solution in solutions], family, chain=known)
    if as_json:
        print_json(
            "solve",
            weights=weights,
            backend=backend,
            width=width,
            depth=depth,
            seed=seed,
            potential=potential,
            resample=resample if choices else None,
            abstain_below=abstain_below,
            confidence_by=confidence,
            problems=[_plain(s) for s in solutions],
        )
    elif not quiet:
        for solution in solutions:
            _show(solution)
    if not all(solution.accepted() for solution in solutions):
        raise typer.Exit(1)


def _reads_blank(task: "Task") -> bool:
    """Whether a task has the blank problem, so that none need be given."""
    try:
        task.encode("")
    except ValueError:
        return False
    return True


def _problems(file: Path | None) -> Iterator[str]:
    """The blocks of a file, or of standard input, apart by blank lines."""
    if file is None and sys.stdin.isatty():
        raise ValueError("a problem is needed: --board TEXT, --file PATH, or text on standard input")
    try:
        text = sys.stdin.read() if file is None or str(file) == "-" else file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file or 'standard input'} cannot be read: {error}") from error
    block: list[str] = []
    empty = True
    for line in [*text.splitlines(), ""]:
        if line.strip():
            block.append(line)
        elif block:
            yield "\n".join(block)
            block, empty = [], False
    if empty:
        raise ValueError(f"{file or 'standard input'} holds no problem")


def _confidence(word: str | None, task: "Task", backend: str) -> Any:
    """A confidence from a word; None: the usual one."""
    from probgram.backends import inference
    from probgram.inference import confidence

    if word == "energy":
        return confidence.expected(inference(backend, "potentials").energy(task))
    words = {None: None, "vote": confidence.share, "value": confidence.value, "halt": confidence.halt}
    if word not in words:
        raise ValueError(f"confidence must be vote, value, halt or energy, got {word!r}")
    return words[word]


def _plain(solution: "Solution") -> dict[str, Any]:
    verified = [None] * len(solution.answers) if solution.verified is None else solution.verified.tolist()
    rows = zip(solution.answers.tolist(), solution.shares.tolist(), verified, strict=True)
    answers = [{"y": y, "share": share, "verified": right} for y, share, right in rows]
    sure = {"confidence": solution.confidence, "abstained": solution.abstained}
    return {"x": solution.run.x[0].tolist(), "task": solution.task.name, "answers": answers} | sure


def _show(solution: "Solution") -> None:
    from rich.columns import Columns
    from rich.console import Console

    from probgram.demo import panels

    console, right = Console(), solution.accepted()
    if solution.abstained:
        console.print(str(solution), markup=False, highlight=False)
        return
    console.print(Columns(panels(solution)))
    kind = "unverified (the task has no rule for it)" if solution.verified is None else "verified"
    answers = "answer" if len(right) == 1 else "answers"
    wrong = 1 - sum(share for _, share in right)
    rest = f"; {wrong:.0%} of them ended elsewhere" if solution.verified is not None and wrong > 1e-9 else ""
    console.print(f"{len(right)} {kind} {answers} from {solution.run.width} trajectories{rest}")
