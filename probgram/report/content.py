"""What a report shows, in plain values: for each problem its answers over depth, their shares, its figures."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from probgram.report.packing import packed

if TYPE_CHECKING:
    from probgram.inference.diagnosis import Diagnosis
    from probgram.tasks import Task
    from probgram.tasks.board import Board
    from probgram.trajectories import Trajectories

MOST_TRAJECTORIES = 256  # shown of a problem; its figures are of all
MOST_ANSWERS = 24  # listed at a depth step, the most probable first
MOST_TOKENS = 400  # of a problem that is written out


def known_task(run: "Trajectories", task: "Task | str | None") -> "Task | None":
    """The task given, or by its name; None: the built-in one that the run names, where it names one.

    Raises:
        ValueError: no task has the name given.
    """
    from probgram import tasks

    if isinstance(task, str):
        return tasks.from_name(task)
    if task is not None or not run.task:
        return task
    try:
        return tasks.from_name(run.task)
    except ValueError:
        return None


def content(
    runs: "Sequence[Trajectories]",
    task: "Task | None",
    chosen: Sequence[tuple[int, int]],
    diagnoses: "Sequence[Diagnosis | None]",
) -> dict[str, Any]:
    """Everything that the page's script draws.

    Args:
        runs: of one task.
        task: None: answers are shown as tokens, unverified.
        chosen: the problems to be shown, as numbers of run and of problem in it.
        diagnoses: one a run; None: nothing is said of it.
    """
    board: Board | None = getattr(task, "board", None)
    several = len(chosen) > 1
    problems = []
    for index, which in chosen:
        one = _problem(runs[index][which], task, board)
        label = f"problem {sum(run.problems for run in runs[:index]) + which}" if several else ""
        problems.append({"label": label, "run": index} | one)
    return {
        "board": None if board is None else _look(board),
        "problems": problems,
        "runs": [
            {"about": _about(run, task)} | _in_words(diagnosis)
            for run, diagnosis in zip(runs, diagnoses, strict=True)
        ],
    }


def _look(board: "Board") -> dict[str, Any]:
    return {
        "symbols": list(board.symbols),
        "colours": list(board.colours),
        "box": None if board.box is None else list(board.box),
        "chequered": board.chequered,
    }


def _in_words(diagnosis: "Diagnosis | None") -> dict[str, Any]:
    """The findings, the worst first, and what could not be looked at."""
    if diagnosis is None:
        return {"findings": [], "left_out": []}
    order = {"trouble": 0, "look": 1, "fine": 2}
    findings = sorted(diagnosis.findings, key=lambda finding: order[finding.status])
    return {"findings": [list(finding) for finding in findings], "left_out": list(diagnosis.left_out)}


def _about(run: "Trajectories", task: "Task | None") -> list[list[str]]:
    """How the run was made, label and value."""
    rows: dict[str, Any] = {"task": run.task or (task.name if task else "none")}
    rows |= {"width": run.width, "depth": run.depth, "seed": run.seed}
    rows |= {name.replace("_", " "): value for name, value in run.settings.items() if value is not None}
    words = {True: "yes", False: "no"}
    return [[label, words[value] if isinstance(value, bool) else str(value)] for label, value in rows.items()]


def _problem(run: "Trajectories", task: "Task | None", board: "Board | None") -> dict[str, Any]:
    """One problem of a run, `run.problems` being 1."""
    weights = _host(run.weights)[:, :, 0]  # [S, N]
    depth, width = weights.shape
    shown = np.argsort(-weights[-1], kind="stable")[:MOST_TRAJECTORIES]  # final slots
    found: dict[str, Any] = {
        "depths": list(run.depths),
        "width": width,
        "figures": _run_figures(run),
        "answers": None,
    }
    lines = _host(run.lines())[:, :, 0]  # [S, N]
    if run.answers.shape[-1]:
        x, answers = _host(run.x)[0].astype(np.int64), _host(run.answers)[:, :, 0].astype(np.int64)
        tokens, index = _numbered(answers)  # [U, L], [S, N]
        verified = None if task is None else _verified(task, x, tokens)
        shares = np.stack([np.bincount(row, one, len(tokens)) for row, one in zip(index, weights, strict=True)])
        found["figures"] += _answer_figures(shares, verified, list(run.depths))
        # Equal answers side by side, the most probable first.
        last = index[-1, shown]
        shown = shown[np.lexsort((shown, last, -shares[-1, last]))]
        listed = [_listed(row) for row in shares]
        needed = np.unique(np.concatenate([index[np.arange(depth)[:, None], lines[:, shown]].reshape(-1), *listed]))
        of = np.searchsorted(needed, index)  # meaningless for answers that are not shown, and not used there
        found["answers"] = {
            "index": packed(of[np.arange(depth)[:, None], lines[:, shown]]),
            "verified": None if verified is None else packed(verified[needed]),
            "posterior": [
                [[int(np.searchsorted(needed, answer)), _number(row[answer])] for answer in most]
                for row, most in zip(shares, listed, strict=True)
            ],
        } | _drawn(x, tokens[needed], task, board)
    slots = lines[:, shown]
    return found | {
        "slots": packed(slots),
        "shown": len(shown),
        "ancestors": None if run.ancestors is None or width > MOST_TRAJECTORIES else packed(_ancestors(run)),
        "weights": _numbers(np.take_along_axis(weights, slots, 1)),
        "heads": {
            name: _numbers(np.take_along_axis(_probabilities(value), slots, 1)) for name, value in run.heads.items()
        },
    }


def _ancestors(run: "Trajectories") -> NDArray[np.int64]:
    """Ancestors `[S, N]`; the first depth step has none, and its row is never read."""
    ancestors = _host(run.ancestors)[:, :, 0].astype(np.int64)
    ancestors[0] = 0
    return ancestors


def _numbered(answers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The different answers `[U, L]` in the order in which they first occur, and which of them `[S, N]` each is."""
    numbers: dict[bytes, int] = {}
    flat = np.ascontiguousarray(answers.reshape(-1, answers.shape[-1]))
    index = np.array([numbers.setdefault(row.tobytes(), len(numbers)) for row in flat])
    tokens = np.array([np.frombuffer(key, dtype=np.int64) for key in numbers])
    return tokens, index.reshape(answers.shape[:2])


def _verified(task: "Task", x: NDArray[np.int64], answers: NDArray[np.int64]) -> NDArray[np.bool_] | None:
    """Which answers `[U, L]` are right; None where the task cannot tell."""
    from probgram.tasks import UnknownAnswers

    try:
        return np.asarray(task.verify(x, answers)).astype(bool)
    except UnknownAnswers:
        return None


def _listed(shares: NDArray[np.float64]) -> NDArray[np.int64]:
    """The most probable answers of a depth step, at most `MOST_ANSWERS`."""
    order = np.argsort(-shares, kind="stable")[:MOST_ANSWERS]
    return order[shares[order] > 0]


def _drawn(
    x: NDArray[np.int64], answers: NDArray[np.int64], task: "Task | None", board: "Board | None"
) -> dict[str, Any]:
    """The answers as cells of a board or as text, and the problem likewise."""
    if board is None:
        draw = _as_tokens if task is None else task.decode
        return {"texts": [draw(answer) for answer in answers], "problem": _as_tokens(x)}
    cells = board.cells(answers)
    rows, columns = cells.shape[1:]
    edges = None if board.edges is None else board.edges(x)
    given = None if board.given is None else board.given(x)
    broken = None if board.broken is None else board.broken(x, answers)
    problem = None if board.problem is None else board.problem(x)
    return {
        "rows": rows,
        "columns": columns,
        "cells": packed(np.maximum(cells + 1, 0)),  # 0: no cell
        "edges": None if edges is None else packed(edges),
        "given": None if given is None else packed(given),
        "broken": None if broken is None else packed(broken),
        "problem": _as_tokens(x)
        if problem is None
        else {"shape": list(problem.shape), "cells": packed(np.maximum(problem + 1, 0))},
    }


def _as_tokens(tokens: NDArray[np.int64]) -> str:
    words = [str(token) for token in tokens.reshape(-1)[:MOST_TOKENS].tolist()]
    return " ".join(words) + (" …" if tokens.size > MOST_TOKENS else "")


# -- figures over depth ---------------------------------------------------------------------------------------


def _run_figures(run: "Trajectories") -> list[dict[str, Any]]:
    """Effective sample size and, where anything weighs, log Z: of every depth step, recorded or not."""
    ess = _host(run.ess)[:, 0]
    figures = [_figure("effective sample size", f"of {run.width}", run, ess, run.width)]
    if run.log_normalizer is not None and bool((run.log_normalizer != 0).any()):
        name = "log evidence" if run.likelihoods_only and run.settings.get("evidence") != "last" else "log Z"
        figures.append(_figure(name, "nats", run, _host(run.log_normalizer)[:, 0], None))
    return figures


def _figure(name: str, unit: str, run: "Trajectories", values: NDArray[Any], most: float | None) -> dict[str, Any]:
    """A curve over depth; the last value is the last depth step's."""
    if len(values) == len(run.depths):
        depths = list(run.depths)
    else:
        depths = list(range(run.depth - len(values) + 1, run.depth + 1))
    return {"name": name, "unit": unit, "depths": depths, "values": _numbers(values), "most": most}


def _answer_figures(
    shares: NDArray[Any], verified: NDArray[np.bool_] | None, depths: list[int]
) -> list[dict[str, Any]]:
    """Distinct answers and, where the task can tell, right ones and their share; shares `[S, U]`."""
    alive = shares > 0
    curves: list[tuple[str, str, NDArray[Any], float | None]] = [("distinct answers", "", alive.sum(1), None)]
    if verified is not None:
        curves.append(("distinct verified answers", "", (alive & verified).sum(1), None))
        curves.insert(0, ("share verified", "%", 100 * (shares * verified).sum(1), 100))
    return [
        {"name": name, "unit": unit, "depths": depths, "values": _numbers(values), "most": most}
        for name, unit, values, most in curves
    ]


# -- numbers --------------------------------------------------------------------------------------------------


def _host(tensor: Any) -> NDArray[Any]:
    return tensor.detach().cpu().numpy()


def _probabilities(logits: Any) -> NDArray[Any]:
    return _host(logits.float().sigmoid())[:, :, 0]


def _number(value: Any) -> float | int | None:
    """Six digits: enough to read, short to write. What is not finite has no place in JSON."""
    value = float(value)
    if not math.isfinite(value):
        return None
    return int(value) if value == int(value) else float(f"{value:.6g}")


def _numbers(values: NDArray[Any]) -> list[Any]:
    return [_numbers(row) if np.ndim(row) else _number(row) for row in values]
