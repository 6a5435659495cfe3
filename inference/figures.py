"""The figures of an evaluation, whichever library draws the runs: the loop over seeds, and its report."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from probgram import metrics
from probgram.fields import as_array
from probgram.inference.choices import check_counts
from probgram.run import Run
from probgram.tasks import UnknownAnswers

Draw = Callable[[Any, int], Run[Any]]  # problems [B, L] and a seed
Select = Callable[[Any], Mapping[str, Any]]  # a run to the answers [B, L] of each rule, by its name

BATCH = 2_048  # trajectories at a time: bounds memory, changes no law


@dataclass(frozen=True)
class Report:
    """Figures of one evaluation: mean and standard deviation over seeds, and the limits.

    Attributes:
        figures: name -> value of each seed.
        limits: "uniform" (draws over the solutions) and "one answer" -> name -> value.
        about: task, split, problems, width, depth, seeds, cost.
    """

    figures: dict[str, list[float]]
    limits: dict[str, dict[str, float]] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    def mean(self, name: str) -> float:
        """Mean over seeds."""
        return float(np.mean(self.figures[name]))

    def spread(self, name: str) -> float:
        """Standard deviation over seeds (0 for one seed)."""
        values = self.figures[name]
        return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0

    def table(self) -> str:
        """The report as a Markdown table."""
        about = ", ".join(f"{key} {value}" for key, value in self.about.items())
        lines = [
            about,
            "",
            "| figure | mean | sd over seeds | uniform draws | one answer |",
            "|---|---|---|---|---|",
        ]
        for name in self.figures:
            uniform, single = (self.limits.get(kind, {}).get(name) for kind in ("uniform", "one answer"))
            cells = [f"{self.mean(name):.4f}", f"{self.spread(name):.4f}"]
            cells += ["–" if value is None else f"{value:.4f}" for value in (uniform, single)]
            lines.append(f"| {name.replace('_', ' ')} | " + " | ".join(cells) + " |")
        return "\n".join(lines)

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps(asdict(self), indent=1)


def measured(
    draw: Draw,
    select: Select,
    task: Any,
    split: str,
    width: int,
    depth: int,
    seeds: Sequence[int],
    problems: int | None,
    halt_probability: float | None,
) -> Report:
    """Draw runs on a task's problems, with each seed, and measure them; the arguments are those of `evaluate`.

    Raises:
        ValueError: no seeds, or an unknown split.
    """
    if not seeds:
        raise ValueError("seeds must name at least one seed")
    check_counts({"width": width, "depth": depth} | ({} if problems is None else {"problems": problems}))
    x = chosen_problems(task, split, problems)
    try:
        solutions = metrics.all_solutions(task, x)
    except UnknownAnswers:
        solutions = None  # no coverage then
    figures: dict[str, list[float]] = {}
    started = time.perf_counter()
    for seed in seeds:
        for name, value in _one_seed(draw, select, task, x, solutions, seed, max(1, BATCH // width)).items():
            figures.setdefault(name, []).append(value)
    about = {
        "task": task.name,
        **getattr(task, "about", {}),
        "split": f"{getattr(task, 'split', '')} {split}".strip(),
        "problems": len(x),
        "several answers": None if solutions is None else int((solutions.counts > 1).sum()),
        "width": width,
        "depth": depth,
        "halt probability": halt_probability,
        "seeds": list(seeds),
        "seconds a seed": round((time.perf_counter() - started) / len(seeds), 1),
    }
    return Report(figures, {} if solutions is None else metrics.limits(solutions, width), about)


def chosen_problems(task: Any, split: str = "test", problems: int | None = None) -> Any:
    """The different problems of a split, `[B, L]`; a seeded subset of so many, None: all."""
    x = np.unique(task.examples(split)[0], axis=0)
    if problems is None or problems >= len(x):
        return x
    return x[np.sort(np.random.default_rng(0).choice(len(x), problems, replace=False))]


def _one_seed(
    draw: Draw, select: Select, task: Any, x: Any, solutions: metrics.Solutions | None, seed: int, rows: int
) -> dict[str, float]:
    parts, weights, selected, conflicts = [], [], [], []
    for row in range(0, len(x), rows):
        run = draw(x[row : row + rows], seed).canonical(task)
        chosen = select(run)
        right = {name: task.verify(run.x, answers) for name, answers in chosen.items()}
        if hasattr(task, "conflicts"):
            conflicts.append(as_array(task.conflicts(run.x, chosen["vote"])).sum())
        selected.append({name: as_array(values).astype(np.float32) for name, values in right.items()})
        parts.append(as_array(run.answers[-1]))
        weights.append(as_array(run.weights[-1]))
    figures = metrics.summarize(task, x, np.concatenate(parts, 1), solutions, np.concatenate(weights, 1))
    accuracy = {f"selected_{k}": float(np.concatenate([s[k] for s in selected]).mean()) for k in selected[0]}
    first = {k: figures.pop(k) for k in ("valid", "pass_at_n")}
    published = {"conflicts_vote": float(np.sum(conflicts))} if conflicts else {}
    return first | accuracy | published | figures
