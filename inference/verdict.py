"""Depth or width? Gains per doubling with intervals over problems, and the verdict that they support.

A gain is the share of what is missing that a doubling removes, pooled over neighbouring cells of the grid,

    g = Σ (a_after - a_before) / Σ (1 - a_before)

with a the score of a cell in [0, 1]: accuracy, pass@N or coverage. Why of what is missing, and neither of a itself
nor of its logit: a plain slope of a shrinks with every saturated cell that the grid happens to have, while such
cells add nothing to either sum of g; and the logit is infinite where all or none of the problems are right, as in
every serial task before and after its depth, so that a continuity correction would give the verdict. For
trajectories that are right with probability p, independently, 1 - g of a doubling from N to 2N is (1 - p)^N.

Both sums are means over problems, so the bootstrap resamples problems (Efron and Tibshirani, "An Introduction to
the Bootstrap", 1993, section 13.3, percentile intervals): it covers the choice of problems and the noise of the
trajectories, not the spread over trainings. Where few problems lack anything, or all of them change alike,
resampling them knows nothing of others; so two more are resampled with them, one that a doubling answers and one
that it spoils, in the spirit of Agresti and Coull (1998). Among n problems they move an interval by about 1 / n.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Kind = Literal["depth-bound", "width-bound", "both", "neither: train more", "solved", "undecided"]
Answer = Literal["yes", "no", "unclear"]

_KINDS: dict[tuple[Answer, Answer], Kind] = {  # (does depth help, does width help)
    ("yes", "yes"): "both",
    ("yes", "no"): "depth-bound",
    ("yes", "unclear"): "depth-bound",
    ("no", "yes"): "width-bound",
    ("unclear", "yes"): "width-bound",
    ("no", "no"): "neither: train more",
}


class Gain(NamedTuple):
    """Share of what is missing that one doubling removes, with its interval.

    Fields:
        share: at most 1, negative where the doubling does harm; NaN where nothing was missing.
        low: lower end of the interval; NaN where a single problem gives none.
        high: upper end.
    """

    share: float
    low: float
    high: float

    def helps(self, least: float) -> Answer:
        """Whether a doubling removes a share that counts.

        "yes": at least `least`, the interval above 0. "no": less than `least`, the interval, too; or nothing is
        missing. "unclear": all else.
        """
        if np.isnan(self.share) or self.high < least:
            return "no"
        return "yes" if self.low > 0 and self.share >= least else "unclear"

    def __str__(self) -> str:
        """As "38% [31, 45]"."""
        if np.isnan(self.share):
            return "nothing"
        ends = "no interval" if np.isnan(self.low) else f"{100 * self.low:.0f}, {100 * self.high:.0f}"
        return f"{100 * self.share:.0f}% [{ends}]"


@dataclass(frozen=True)
class Verdict:
    """What a measure says about depth and width, with its evidence.

    Attributes:
        measure: which score was judged.
        kind: which axis the scores of the whole grid are bound by: a doubling of it removes a share of what is
            missing. "solved": hardly anything is missing anywhere.
        corner: the same question at the greatest depth and width alone: what still pays there.
        depth: gain of a doubling of depth, over the whole grid.
        width: gain of a doubling of width, likewise.
        last_depth: gain of the last doubling of depth, at the greatest width.
        last_width: gain of the last doubling of width, at the greatest depth.
        width_at_depth: gain of a doubling of width at each depth: width may pay only from some depth on.
        depths: of the grid.
        widths: of the grid.
        score: at the greatest depth and width.
        cheapest: the cell `(depth, width)` of least depth times width whose score is as good as solved, or None.
        problems: how many were resampled.
        level: of the intervals.
        least: the share a doubling must remove to count.
    """

    measure: str
    kind: Kind
    corner: Kind
    depth: Gain
    width: Gain
    last_depth: Gain
    last_width: Gain
    width_at_depth: tuple[Gain, ...]
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    score: float
    cheapest: tuple[int, int] | None
    problems: int
    level: float
    least: float

    def __str__(self) -> str:
        """The verdict in a few sentences, with its figures and intervals."""
        sentences = [f"{self.kind}{self._unclear()}."]
        if self.kind != "solved":
            sentences.append(
                f"A doubling of depth removes {self.depth} of what is missing, a doubling of width {self.width}."
            )
            before = [name for name in ("depth", "width") if np.isnan(getattr(self, name).share)]
            sentences += [f"Before the last doubling of {name} nothing is missing." for name in before]
            harm = [name for name in ("depth", "width") if getattr(self, name).high < 0]
            sentences += [f"More {name} does harm." for name in harm]
            first = next((d for d, g in zip(self.depths, self.width_at_depth, strict=True) if self._pays(g)), None)
            if self.kind in ("both", "width-bound") and first is not None and first > self.depths[0]:
                sentences.append(f"Width pays from depth {first} on.")
        sentences.append(f"At depth {self.depths[-1]} and width {self.widths[-1]} the score is {self.score:.3f}:")
        return " ".join(sentences) + " " + self._corner()

    def _corner(self) -> str:
        if self.corner == "solved":
            if self.cheapest in (None, (self.depths[-1], self.widths[-1])):
                return "nothing more is needed."
            return "nothing more is needed, already at depth {} and width {}.".format(*self.cheapest)
        if any(np.isnan(gain.share) or gain.high < 0 for gain in (self.last_depth, self.last_width)):
            ends = (("depth", self.last_depth, self.depths[-2]), ("width", self.last_width, self.widths[-2]))
            return ", ".join(self._end(*end) for end in ends) + "."
        last = f"the last doubling of depth removed {self.last_depth}, of width {self.last_width}"
        return {
            "both": f"more of both still pays; {last}.",
            "depth-bound": f"more depth still pays; {last}.",
            "width-bound": f"more width still pays; {last}.",
            "neither: train more": f"neither pays any more, train more; {last}.",
            "undecided": f"{self.problems} problems cannot tell what still pays; {last}.",
        }[self.corner]

    def _end(self, name: str, gain: Gain, before: int) -> str:
        """What the last doubling of one axis did, from the size `before`."""
        if np.isnan(gain.share):
            return f"at {name} {before} nothing was missing"
        if gain.high < 0:
            more = Gain(-gain.share, -gain.high, -gain.low)
            return f"more {name} does harm (the last doubling added {more} to what {name} {before} leaves missing)"
        said = {"yes": "still pays", "no": "pays nothing", "unclear": f"may pay or not on {self.problems} problems"}
        return f"more {name} {said[gain.helps(self.least)]} (the last doubling removed {gain})"

    def _unclear(self) -> str:
        unclear = [name for name in ("depth", "width") if getattr(self, name).helps(self.least) == "unclear"]
        return f" ({' and '.join(unclear)} unclear)" if unclear and self.kind != "solved" else ""

    def _pays(self, gain: Gain) -> bool:
        return gain.helps(self.least) == "yes"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON: gains as share, low, high, None where there is none."""
        plain = {name: _plain(value) for name, value in vars(self).items()}
        return plain | {"text": str(self)}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "Verdict":
        """The verdict that `as_dict` wrote; its text, and what it is called, are made anew from the figures."""
        found = cls(**{name: _read(value) for name, value in plain.items() if name != "text"})
        kind = found.kind if found.kind == "solved" else _kind(found.depth, found.width, found.least)
        corner = _kind(found.last_depth, found.last_width, found.least)
        return replace(found, kind=kind, corner=found.corner if found.corner == "solved" else corner)


def judge(
    scores: NDArray[np.floating],
    depths: Sequence[int],
    widths: Sequence[int],
    measure: str = "score",
    *,
    level: float = 0.95,
    least: float = 0.05,
    solved: float = 0.01,
    resamples: int = 2_000,
    seed: int = 0,
) -> Verdict:
    """Say which axis the scores of a grid are bound by.

    An axis helps where a doubling of it removes at least the share `least` of what is missing and the interval of
    that share lies above 0. What more than one axis would say of the whole grid and what still pays at its corner
    are two questions: a serial task is depth-bound, and solved once the grid is deep enough.

    Args:
        scores: of each problem in each cell, in [0, 1], `[depths, widths, B]`.
        depths: increasing, at least two.
        widths: likewise.
        measure: what the scores are, for the text.
        level: of the percentile intervals.
        least: share of what is missing that a doubling must remove to count.
        solved: a score within so much of 1 counts as solved.
        resamples: of the problems.
        seed: of the resamples.

    Raises:
        ValueError: scores of another shape, no problem, or an axis with fewer than two sizes.
    """
    depths, widths = tuple(depths), tuple(widths)
    if scores.ndim != 3 or scores.shape[:2] != (len(depths), len(widths)) or scores.shape[2] == 0:
        raise ValueError(
            f"scores must be [{len(depths)} depths, {len(widths)} widths, problems], got {list(scores.shape)}"
        )
    for name, sizes in (("depths", depths), ("widths", widths)):
        if len(sizes) < 2:
            raise ValueError(f"{name} must name at least two sizes to tell a gain, got {list(sizes)}")
    problems = scores.shape[-1]
    pool = problems + 2
    draws = np.random.default_rng(seed).multinomial(pool, [1 / pool] * pool, resamples)  # [R, B + 2]
    deep: NDArray[np.float64] = scores.astype(np.float64)  # [depths, widths, B]
    wide = deep.swapaxes(0, 1)  # [widths, depths, B]
    depth, width = gain(deep, depths, draws, level), gain(wide, widths, draws, level)
    last_depth = gain(deep[-2:, -1:], depths[-2:], draws, level)
    last_width = gain(wide[-2:, -1:], widths[-2:], draws, level)
    mean = scores.mean(-1)
    good = mean >= 1 - solved
    cells = [(d, w) for i, d in enumerate(depths) for j, w in enumerate(widths) if good[i, j]]
    return Verdict(
        measure=measure,
        kind="solved" if good.all() else _kind(depth, width, least),
        corner="solved" if good[-1, -1] else _kind(last_depth, last_width, least),
        depth=depth,
        width=width,
        last_depth=last_depth,
        last_width=last_width,
        width_at_depth=tuple(gain(wide[:, i : i + 1], widths, draws, level) for i in range(len(depths))),
        depths=depths,
        widths=widths,
        score=float(mean[-1, -1]),
        cheapest=min(cells, key=lambda cell: (cell[0] * cell[1], cell[0]), default=None),
        problems=problems,
        level=level,
        least=least,
    )


def gain(scores: NDArray[np.float64], sizes: Sequence[int], draws: NDArray[np.integer], level: float) -> Gain:
    """The gain of a doubling along the first axis, pooled over the second.

    Args:
        scores: `[sizes, columns, B]`.
        sizes: increasing; where they do not double, the share is brought to a doubling, 1 - (1 - g)^(1 / r) with r
            the mean number of doublings between neighbours.
        draws: how often each resample holds each problem, and each of two more, `[R, B + 2]`.
        level: of the interval.
    """
    before, after = scores[:-1], scores[1:]
    removed, missing = (after - before).sum((0, 1)), (1 - before).sum((0, 1))  # [B]
    if missing.sum() <= 0:
        return Gain(np.nan, np.nan, np.nan)
    doublings = np.log2(sizes[-1] / sizes[0]) / (len(sizes) - 1)

    def share(removed: Any, missing: Any) -> Any:
        """Per doubling; a resample in which nothing is missing has nothing removed."""
        left = 1 - removed / np.where(missing > 0, missing, 1.0)
        return 1 - np.maximum(left, 0.0) ** (1 / doublings)

    point, problems = float(share(removed.sum(), missing.sum())), len(missing)
    if problems == 1:
        return Gain(point, np.nan, np.nan)
    tail, typical = (1 - level) / 2, missing[missing > 0].mean()
    # Of the two more, each lacks what is usual, and loses or gains all of it once in the cells that lack something.
    once = typical / ((1 - before).sum((1, 2)) > 0).sum()
    removed = np.append(removed, [once, -once])
    missing = np.append(missing, [typical, typical])
    low, high = np.quantile(share(draws @ removed, draws @ missing), (tail, 1 - tail))
    return Gain(point, min(float(low), point), max(float(high), point))


def _kind(depth: Gain, width: Gain, least: float) -> Kind:
    return _KINDS.get((depth.helps(least), width.helps(least)), "undecided")


def _plain(value: Any) -> Any:
    """NamedTuples and tuples as dicts and lists, NaN as None."""
    if isinstance(value, Gain):
        return {name: _plain(part) for name, part in value._asdict().items()}
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and np.isnan(value) else value


def _read(value: Any) -> Any:
    """The inverse of `_plain`."""
    if isinstance(value, dict):
        return Gain(*(np.nan if value[name] is None else value[name] for name in Gain._fields))
    return tuple(map(_read, value)) if isinstance(value, list) else value
