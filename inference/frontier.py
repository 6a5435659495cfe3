"""The frontier of a chain on a task: what every depth and width reach at the prior, at which cost, and what lacks.

One run at the greatest depth and width gives the whole grid (`inference/grid.py`). Its cells share their draws, so
differences between them are known better than the cells themselves.

Oracle pass@N stands next to every selected accuracy. Width helps the oracle wherever trajectories differ, and a
user only where somebody can select: a verifier (then `first_verified` is the oracle), a head, or the vote.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from probgram import checkpoint, metrics
from probgram.backends import backend_of, inference
from probgram.inference.choices import check_counts
from probgram.inference.figures import chosen_problems
from probgram.inference.grid import Rule, one_seed, seconds_of_cells
from probgram.inference.page import page
from probgram.inference.verdict import Verdict, judge
from probgram.tasks import UnknownAnswers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GAP = 0.05  # from here on a lead of the oracle over selection is worth a sentence

Measure = Literal["selected", "pass_at_n", "coverage"]

_LABELS = {
    "valid": "one draw",
    "pass_at_n": "pass@N",
    "coverage_macro_all": "coverage",
    "coverage_macro_several": "coverage, several",
}


class Point(NamedTuple):
    """A cell of the grid and its score; cost is depth steps times width."""

    cost: int
    depth: int
    width: int
    score: float


@dataclass(frozen=True, eq=False)
class Frontier:
    """The grid of depth and width, measured.

    Attributes:
        depths: D depth steps, increasing.
        widths: W widths, increasing.
        scores: name -> score of every problem, `[seeds, D, W, B]`: `valid` (one draw), `pass_at_n`, `selected_` and
            the rule, and where the task enumerates `coverage_macro_all` and `coverage_macro_several` (NaN for
            problems with one answer).
        seconds: to answer one problem, `[rounds, D, W]`; None where it was not timed.
        multiply_adds: of all trajectories of a problem, `[D, W]`; None where there are no matrix products.
        by: the measure that `kind` is read from.
        level: of the intervals.
        about: task, split, problems, seeds, device; the backend where it is JAX.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    scores: dict[str, NDArray[np.float64]]
    seconds: NDArray[np.float64] | None = None
    multiply_adds: NDArray[np.int64] | None = None
    by: Measure = "selected"
    level: float = 0.95
    about: dict[str, Any] = field(default_factory=dict)

    # -- figures ----------------------------------------------------------------------------------------------

    def figures(self, name: str) -> NDArray[np.float64]:
        """A score as the mean over problems, `[seeds, D, W]`."""
        return np.nanmean(self.scores[name], -1)

    def mean(self, name: str) -> NDArray[np.float64]:
        """A score as the mean over problems and seeds, `[D, W]`."""
        return self.figures(name).mean(0)

    def spread(self, name: str) -> NDArray[np.float64]:
        """Its standard deviation over seeds (0 for one seed), `[D, W]`."""
        values = self.figures(name)
        return values.std(0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1:])

    @property
    def measures(self) -> dict[Measure, str]:
        """Which score stands for each measure.

        "selected" is the rule that is best at the greatest depth and width, chosen on these same problems;
        `first_verified` only where there is no other, for with a verifier at hand "pass_at_n" says it. "coverage"
        is that of problems with several answers.
        """
        rules = [name for name in self.scores if name.startswith("selected_")]
        rules = [name for name in rules if name != "selected_first_verified"] or rules
        chosen: dict[Measure, str] = {"selected": max(rules, key=lambda name: self.mean(name)[-1, -1])}
        chosen["pass_at_n"] = "pass_at_n"
        if "coverage_macro_several" in self.scores:
            chosen["coverage"] = "coverage_macro_several"
        return chosen

    def envelope(self, name: str) -> list[Point]:
        """The cells of which no cheaper or equally dear one is better, by depth steps times width."""
        kept: list[Point] = []
        for point in sorted(self._points(name), key=lambda p: (p.cost, -p.score)):
            if not kept or point.score > kept[-1].score:
                kept.append(point)
        return kept

    def equal_cost(self, name: str) -> list[Point]:
        """The cells of one cost, the cost that most cells have (the dearest of them), from shallow to deep."""
        costs = np.outer(self.depths, self.widths)
        kinds, count = np.unique(costs, return_counts=True)
        cost = kinds[count == count.max()].max()
        return [point for point in self._points(name) if point.cost == cost]

    def _points(self, name: str) -> list[Point]:
        mean = self.mean(name)
        cells = product(enumerate(self.depths), enumerate(self.widths))
        return [Point(d * w, d, w, float(mean[i, j])) for (i, d), (j, w) in cells]

    def quadrupled(self) -> dict[str, Any] | None:
        """How much longer four times the width takes, and four times the depth, from the same cell.

        The cell is the deepest and narrowest of which both are in the grid.

        Returns:
            `depth`, `width` of the cell, and under `width x4` and `depth x4` the lower quartile, median and upper
            quartile over rounds; None where there is no such cell or nothing was timed.
        """
        deep = [d for d in self.depths if 4 * d in self.depths]
        wide = [w for w in self.widths if 4 * w in self.widths]
        if self.seconds is None or not deep or not wide:
            return None
        depth, width = deep[-1], wide[0]
        i, j = self.depths.index(depth), self.widths.index(width)
        base = self.seconds[:, i, j]
        more = {
            "width x4": self.seconds[:, i, self.widths.index(4 * width)],
            "depth x4": self.seconds[:, self.depths.index(4 * depth), j],
        }
        ratios = {name: np.quantile(value / base, (0.25, 0.5, 0.75)).tolist() for name, value in more.items()}
        return {"depth": depth, "width": width} | ratios

    # -- the verdict ------------------------------------------------------------------------------------------

    @cached_property
    def verdicts(self) -> dict[Measure, Verdict]:
        """What each measure says about depth and width; the one of `by` comes first."""
        order = sorted(self.measures.items(), key=lambda entry: entry[0] != self.by)
        result = {}
        for measure, name in order:
            scores = self.scores[name].mean(0)  # [D, W, B]
            known = ~np.isnan(scores[0, 0])
            result[measure] = judge(
                scores[..., known], self.depths, self.widths, self._label(name), level=self.level
            )
        return result

    @property
    def kind(self) -> str:
        """What the measure of `by` says, in a word such as "depth-bound"; see `Verdict.kind`."""
        return self.verdicts[self.by].kind

    @property
    def verdict(self) -> str:
        """The verdict of every measure with its figures and intervals, a line each, and what else decides."""
        lines = [f"By {v.measure}: {v}" for v in self.verdicts.values()]
        lines += [line for line in (self._selection(), self._equal_cost(), self._latency()) if line]
        counted = f"{self.verdicts['pass_at_n'].problems} problems"
        if "coverage" in self.verdicts:
            counted += f" ({self.verdicts['coverage'].problems} with several answers)"
        lines.append(
            f"Brackets: {self.level:.0%} intervals over {counted}, of one trained network: the spread over "
            "trainings is not in them."
        )
        return "\n".join(lines)

    def selection_gap(self) -> tuple[float, float, float]:
        """Oracle pass@N less the best selected accuracy at the greatest depth and width, with its interval."""
        pair = (self.scores[name][:, -1, -1].mean(0) for name in ("pass_at_n", self.measures["selected"]))
        gap = np.subtract(*pair)  # [B]
        draws = np.random.default_rng(0).multinomial(len(gap), [1 / len(gap)] * len(gap), 2_000)
        low, high = np.quantile(draws @ gap / len(gap), ((1 - self.level) / 2, (1 + self.level) / 2))
        return float(gap.mean()), float(low), float(high)

    def _selection(self) -> str:
        if self.verdicts["pass_at_n"].problems == 1:  # no interval
            return ""
        found, label = float(self.mean("pass_at_n")[-1, -1]), self._label(self.measures["selected"])
        return selection(found, *self.selection_gap(), label, self.widths[-1])

    def _equal_cost(self) -> str:
        name = self.measures[self.by]
        points = self.equal_cost(name)
        if len(points) < 2:
            return ""
        cells = ", ".join(f"{p.depth} x {p.width} {p.score:.3f}" for p in points)
        return f"At equal cost, depth x width = {points[0].cost}, {self._label(name)} is: {cells}."

    def _latency(self) -> str:
        found = self.quadrupled()
        if found is None:
            return ""
        (a, wide, b), (c, deep, d) = found["width x4"], found["depth x4"]
        return (
            f"Latency from depth {found['depth']}, width {found['width']}: four times the width takes {wide:.2f} "
            f"[{a:.2f}, {b:.2f}] times as long, four times the depth {deep:.2f} [{c:.2f}, {d:.2f}] (quartiles)."
        )

    # -- out --------------------------------------------------------------------------------------------------

    def table(self) -> str:
        """The grid as a Markdown table, a row a cell; means over seeds, ± their standard deviation."""
        header, rows = self._rows()
        lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
        return "\n".join([self._about(), "", *lines])

    def grids(self) -> str:
        """What the verdict is read from as Markdown, a table a measure, depths by widths: it fits a terminal.

        Means over seeds; latency comes last, where it was timed. `table` has every score, cost and spread.
        """
        named = {self._label(name): (self.mean(name), ".3f") for name in self.measures.values()}
        if self.seconds is not None:
            named["ms"] = (1000 * np.median(self.seconds, 0), ".1f")
        parts = [self._about()]
        for name, (values, shape) in named.items():
            header = [f"{name}, depth", *(f"width {self.widths[0]}", *map(str, self.widths[1:]))]
            rows = [[str(d), *(f"{v:{shape}}" for v in row)] for d, row in zip(self.depths, values, strict=True)]
            ruler = ["---", *["---:"] * len(self.widths)]
            parts.append("\n".join("| " + " | ".join(row) + " |" for row in (header, ruler, *rows)))
        return "\n\n".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the scores of single problems, as plain values for JSON."""
        latency = None if self.seconds is None else np.median(self.seconds, 0).tolist()
        return {
            "depths": list(self.depths),
            "widths": list(self.widths),
            "figures": {name: self.figures(name).tolist() for name in self.scores},  # [seeds][depths][widths]
            "cost": np.outer(self.depths, self.widths).tolist(),
            "multiply_adds": None if self.multiply_adds is None else self.multiply_adds.tolist(),
            "seconds": latency,
            "latency": self.quadrupled(),
            "kind": self.kind,
            "by": self.by,
            "verdict": self.verdict,
            "verdicts": {measure: verdict.as_dict() for measure, verdict in self.verdicts.items()},
            "selection_gap": self.selection_gap(),
            "envelopes": {
                measure: [point._asdict() for point in self.envelope(name)]
                for measure, name in self.measures.items()
            },
            "about": self.about,
        }

    def to_json(self) -> str:
        """The frontier as JSON."""
        return json.dumps(self.as_dict(), indent=1)

    def plot(self) -> "Figure":
        """Draw iso-accuracy contours over depth and width, and accuracy against cost, a column a measure."""
        import matplotlib.pyplot as plt

        from probgram import plots

        names = list(self.measures.values())
        size = (4.6 * len(names), 7.5)
        figure, axes = plt.subplots(2, len(names), figsize=size, layout="constrained", squeeze=False)
        for name, (contours, costs) in zip(names, axes.T, strict=True):
            plots.iso_accuracy(self.depths, self.widths, self.mean(name), contours).set_title(self._label(name))
            plots.cost_curves(self.depths, self.widths, self.mean(name), costs).set_ylabel(self._label(name))
        return figure

    def to_html(self, path: str | Path) -> Path:
        """Write verdict, picture and table as one file that needs no other and no network, atomically.

        Raises:
            CheckpointError: the file cannot be written.
        """
        import matplotlib.pyplot as plt

        figure, (header, rows) = self.plot(), self._rows()
        content = page(
            f"Depth or width: {self.about.get('task', '')}",
            self.kind,
            self.verdict.splitlines(),
            figure,
            "Iso-accuracy contours over depth and width; accuracy against cost",
            header,
            rows,
            [
                "Scores are means over problems and seeds, ± standard deviation over seeds. Cost is depth steps "
                "times width, ms the median time to answer one problem.",
                self._about(),
            ],
        )
        plt.close(figure)
        return checkpoint.write_bytes(path, content.encode())

    def _rows(self) -> tuple[list[str], list[list[str]]]:
        """Header and cells of the table, as text."""
        figures = {name: (self.mean(name), self.spread(name)) for name in self.scores}
        seconds = None if self.seconds is None else np.median(self.seconds, 0)
        work = self.multiply_adds
        header = ["depth", "width", "cost"]
        header += ([] if work is None else ["10⁶ multiply-adds"]) + ([] if seconds is None else ["ms"])
        spread = "" if len(self.about.get("seeds", ())) == 1 else " ± {:.3f}"
        rows = []
        for (i, depth), (j, width) in product(enumerate(self.depths), enumerate(self.widths)):
            row = [str(depth), str(width), str(depth * width)]
            row += [] if work is None else [f"{work[i, j] / 1e6:.4g}"]
            row += [] if seconds is None else [f"{1000 * seconds[i, j]:.1f}"]
            rows.append(row + [f"{mean[i, j]:.3f}" + spread.format(sd[i, j]) for mean, sd in figures.values()])
        return header + [self._label(name) for name in figures], rows

    def _about(self) -> str:
        return ", ".join(f"{key} {value}" for key, value in self.about.items())

    @staticmethod
    def _label(name: str) -> str:
        return _LABELS.get(name, name.removeprefix("selected_").replace("_", " "))


def selection(found: float, gap: float, low: float, high: float, label: str, width: int) -> str:
    """What selection loses, in a sentence, where that is sure and not little; else "".

    Args:
        found: oracle pass@N at the greatest depth and width.
        gap: how much less the best rule has.
        low: lower end of its interval.
        high: upper end.
        label: of the rule.
        width: N.
    """
    if gap < GAP or low <= 0:
        return ""
    worst = "Selection, not sampling, is the bottleneck" if gap > 1 - found else "Selection loses something, too"
    return (
        f"{worst}: pass@{width} lacks {1 - found:.3f}, {label} {gap:.3f} [{low:.3f}, {high:.3f}] more, which a "
        "verifier or a better head would gain."
    )


def frontier(
    chain: Any,
    task: Any,
    depths: Sequence[int] = (1, 2, 4, 8, 16),
    widths: Sequence[int] = (1, 2, 4, 8, 16, 32),
    seeds: Sequence[int] = (0, 1, 2),
    problems: int | None = 64,
    *,
    split: str = "test",
    select: Mapping[str, Rule] | None = None,
    by: Measure = "selected",
    rounds: int = 5,
    level: float = 0.95,
) -> Frontier:
    """Measure a chain on a task over a grid of depth and width, at the prior, and say what lacks.

    Args:
        chain: trained, of PyTorch or of JAX; where its steps depend on how many are to come (a looped flow), depth
            is read on the way.
        task: gives the problems, verifies, and enumerates where it can.
        depths: depth steps, at least two different numbers.
        widths: trajectories a problem, likewise; best if each divides the greatest.
        seeds: one run each; at least 3 for a figure to publish.
        problems: a seeded subset of so many; None: all. Intervals are over problems.
        split: "test" (held out) or "train".
        select: name -> rule `(run, step) -> Selection`, for runs of the chain's library; None: vote, best by each
            head there is, first verified.
        by: the measure that decides `kind`: "selected" (the best rule), "pass_at_n" (as good as selected where
            answers can be verified), or "coverage" (where problems have several answers).
        rounds: timings of every cell, on one problem, cells taking turns; 0 leaves latency out. JAX compiles each
            cell before, which is not in its time, and takes seconds.
        level: of the intervals.

    Raises:
        ValueError: no seeds, an axis with fewer than two sizes or sizes below 1, no rule, no such split or measure.
        UnknownAnswers: the task can neither verify answers nor tell them (`Digits`).
    """
    grid = {"depths": _sizes(depths, "depths"), "widths": _sizes(widths, "widths")}
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be at least one, and different, got {list(seeds)}")
    check_counts({} if problems is None else {"problems": problems})
    if rounds < 0:
        raise ValueError(f"rounds must be at least 0, got {rounds}")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    if select is not None and not select:
        raise ValueError("select must name at least one rule")
    if by not in ("selected", "pass_at_n", "coverage"):
        raise ValueError(f'by must be "selected", "pass_at_n" or "coverage", got {by!r}')
    x = chosen_problems(task, split, problems)
    try:
        counts = metrics.all_solutions(task, x).counts
    except UnknownAnswers:
        counts = None  # no coverage then
    several = None if counts is None else int((counts > 1).sum())
    if by == "coverage" and not several:
        raise ValueError(f'by="coverage" needs problems with several known answers, and {task.name} has none')
    cost = inference(backend_of(chain), "cost")
    runs = [one_seed(chain, task, x, counts, seed, select, **grid) for seed in seeds]
    names = [name for name in runs[0] if several or name != "coverage_macro_several"]
    scores = {name: np.stack([run[name] for run in runs]) for name in names}
    about = {
        "task": task.name,
        **getattr(task, "about", {}),
        "split": f"{getattr(task, 'split', '')} {split}".strip(),
        "problems": len(x),
        "several answers": several,
        "seeds": list(seeds),
        "latency rounds": rounds,
        **cost.machine(chain),
    }
    seconds = seconds_of_cells(chain, x[:1], rounds, **grid) if rounds else None
    one, two = (np.array([cost.multiply_adds(chain, x[:1], d, n) for d in grid["depths"]]) for n in (1, 2))
    # What is computed once a problem, such as its encoding, is not computed again for every trajectory.
    work = one[:, None] + np.outer(two - one, np.array(grid["widths"]) - 1)
    return Frontier(
        **grid,
        scores=scores,
        seconds=seconds,
        multiply_adds=work if work.any() else None,
        by=by,
        level=level,
        about=about,
    )


def _sizes(sizes: Sequence[int], name: str) -> tuple[int, ...]:
    for size in sizes:
        if isinstance(size, bool) or not isinstance(size, Integral) or size < 1:
            raise ValueError(f"{name} must be integers from 1, got {size!r}")
    ordered = tuple(sorted({int(size) for size in sizes}))
    if len(ordered) < 2:
        raise ValueError(f"{name} must name at least two different sizes to tell a gain, got {list(ordered)}")
    return ordered
