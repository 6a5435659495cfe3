"""Resampling schemes: from weights and uniforms to ancestors, for all problems at once.

Every scheme is a function `(log_weights [N, B], uniforms) -> ancestors int64 [N, B]` with E[copies of i] = N·W_i,
problem by problem, whatever the weights; `uniforms` is `[rows(N), B]`, from `draw_uniforms`. Schemes differ in the
variance of the copies, and `systematic` costs least. All of them count, in float64 where the device has it (in
float32 the cumulative sum of a million weights moves a fifth of the ancestors): a cumulative sum is divided by its
last element, points are compared with it, and no index leaves the range.

A problem whose weights all vanished keeps every slot: its ancestors are 0 … N-1.

Sources: Chopin and Papaspiliopoulos, "An Introduction to Sequential Monte Carlo", 2020, chapter 9; Gerber, Chopin
and Whiteley, arXiv 1707.01845 (SSP); Del Moral, "Feynman-Kac Formulae", 2004, section 2.5.2 (killing).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import threshold

from probgram.inference.faults import all_dead
from probgram.state import widest


class Scheme(Protocol):
    """A resampling scheme; `rows(N)` uniforms a problem are what it needs."""

    rows: Callable[[int], int]

    def __call__(self, log_weights: Tensor, uniforms: Tensor) -> Tensor: ...  # noqa: D102


def _scheme(rows: Callable[[int], int]) -> Callable[[Callable[[Tensor, Tensor], Tensor]], Scheme]:
    def mark(function: Callable[[Tensor, Tensor], Tensor]) -> Scheme:
        function.rows = rows  # type: ignore[attr-defined]
        return function  # type: ignore[return-value]

    return mark


@dataclass(frozen=True)
class Adaptive:
    """When a scheme acts: `adaptive` makes it."""

    scheme: Scheme
    ess_threshold: float = 0.5
    first: int = 1
    last: int | None = None

    def __post_init__(self) -> None:
        if not self.ess_threshold >= 0:
            raise ValueError(f"ess_threshold must be at least 0, got {self.ess_threshold}")
        if self.first < 0 or (self.last is not None and self.last < self.first):
            raise ValueError(f"first and last depth must be 0 <= first <= last, got {self.first} and {self.last}")
        if not callable(getattr(self.scheme, "rows", None)):
            raise ValueError(f"resample must be a scheme of probgram.inference.resampling, got {self.scheme!r}")

    def acts_at(self, depth: int) -> bool:
        """Whether it may act after so many depth steps."""
        return self.first <= depth and (self.last is None or depth <= self.last)

    def due(self, ess: Tensor, width: int) -> Tensor:
        """Whose effective sample size `[B]` is low, bool `[B]`."""
        if self.ess_threshold >= 1:  # whatever rounding made of an effective sample size of N
            return torch.ones_like(ess, dtype=torch.bool)
        return ess <= self.ess_threshold * width

    def describe(self) -> str:
        """Scheme and settings in a line."""
        upto = "" if self.last is None else f" to {self.last}"
        name = getattr(self.scheme, "__name__", repr(self.scheme))
        return f"{name}, ESS at most {self.ess_threshold}, depth from {self.first}{upto}"


def adaptive(scheme: Scheme, ess_threshold: float = 0.5, first: int = 1, last: int | None = None) -> Adaptive:
    """Let a scheme act only where a problem's effective sample size is low, and only at some depths.

    Args:
        scheme: any of this file.
        ess_threshold: acts at most at this share of N; from 1 on always.
        first: depth steps taken before it may act for the first time.
        last: and for the last time; None: to the end.

    Raises:
        ValueError: a threshold below 0, or depths that are no range.
    """
    return Adaptive(scheme, ess_threshold, first, last)


def draw_uniforms(scheme: Scheme, log_weights: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The uniforms in [0, 1) that `scheme` needs for `log_weights` `[N, B]`, `[rows(N), B]`."""
    n, b = log_weights.shape
    dtype = widest(log_weights.device)
    return torch.rand(scheme.rows(n), b, generator=generator, device=log_weights.device, dtype=dtype)


@_scheme(lambda n: 1)
def systematic(log_weights: Tensor, uniforms: Tensor) -> Tensor:
    """One uniform, N evenly spaced points (Carpenter, Clifford and Fearnhead 1999).

    Copies of i differ from N·W_i by less than one. Ancestors are non-decreasing down each column. O(N).
    """
    n = len(log_weights)
    below = (
        cumulative_weights(log_weights).mul_(n).sub_(uniforms).ceil_()
    )  # points (j + u) / N below each cumulative weight
    return _from_cumulative_counts(below, log_weights)


@_scheme(lambda n: n)
def stratified(log_weights: Tensor, uniforms: Tensor) -> Tensor:
    """One uniform in each of N equal strata (Kitagawa 1996). Ancestors are non-decreasing. O(N)."""
    n = len(log_weights)
    position = n * cumulative_weights(log_weights)
    stratum = position.floor().clamp(max=n - 1)
    below = stratum + (uniforms.gather(0, stratum.long().clamp(min=0)) < position - stratum)
    return _from_cumulative_counts(below, log_weights)


@_scheme(lambda n: n)
def multinomial(log_weights: Tensor, uniforms: Tensor) -> Tensor:
    """N independent draws (Gordon, Salmond and Smith 1993), in order. O(N log N)."""
    return _from_cumulative_counts(_points_below(uniforms, cumulative_weights(log_weights)), log_weights)


@_scheme(lambda n: n)
def residual(log_weights: Tensor, uniforms: Tensor) -> Tensor:
    """⌊N·W⌋ copies for certain, the rest multinomial on what is left over (Liu and Chen 1998). O(N log N)."""
    n = len(log_weights)
    expected = n * normalised(log_weights)
    certain = whole_part(expected)
    left = (expected - certain).clamp(min=0)
    rest = n - certain.sum(0)  # draws to be made, [B]
    # Points beyond a problem's own number of draws are put at 1, above every cumulative weight but the last.
    unused = torch.arange(n, device=rest.device)[:, None] >= rest
    below = _points_below(uniforms.masked_fill(unused, 2.0), normalised_sum(left))
    below[-1] = rest
    return _from_cumulative_counts(certain.cumsum(0) + torch.minimum(below, rest), log_weights)


@_scheme(lambda n: max(1, n - 1))
def ssp(log_weights: Tensor, uniforms: Tensor) -> Tensor:
    """Srinivasan sampling process: ⌊N·W⌋ or ⌈N·W⌉ copies, negatively associated (Gerber et al., algorithm 2).

    Fractional parts meet in pairs, and one of the two becomes whole: ⌈log₂ N⌉ rounds of a tournament. O(N).
    """
    n, b = log_weights.shape
    expected = n * normalised(log_weights)
    copies = whole_part(expected)
    part = (expected - copies).clamp(min=0)  # of the players still in, [P, B]
    player = torch.arange(n, device=part.device)[:, None].expand(n, b)
    used = 0
    while len(part) > 1:
        pairs = len(part) // 2
        a, b_ = part[: 2 * pairs : 2], part[1 : 2 * pairs : 2]
        first, second = player[: 2 * pairs : 2], player[1 : 2 * pairs : 2]
        u = uniforms[used : used + pairs]
        used += pairs
        both = a + b_
        over = both >= 1
        # Below one: a winner takes both parts, the other has none. From one on: a winner is made whole.
        chance = torch.where(over, (1 - b_) / (2 - both).clamp(min=1e-300), a / both.clamp(min=1e-300))
        first_wins = u < chance
        winner, loser = torch.where(first_wins, first, second), torch.where(first_wins, second, first)
        copies = copies.scatter_add(0, winner, over.to(copies))
        stays = torch.where(over, loser, winner)
        left = torch.where(over, both - 1, both)
        part = torch.cat([left, part[2 * pairs :]])
        player = torch.cat([stays, player[2 * pairs :]])
    # All that is left is one player whose part is 0 or 1 but for rounding.
    copies = copies.scatter_add(0, player, (n - copies.sum(0, keepdim=True)).to(copies))
    return _from_cumulative_counts(copies.cumsum(0), log_weights)


@_scheme(lambda n: 2 * n)
def killing(log_weights: Tensor, uniforms: Tensor) -> Tensor:
    """Slot i keeps its particle with probability W_i / max W, else it gets a multinomial draw."""
    n = len(log_weights)
    weights = normalised(log_weights)
    survives = uniforms[:n] * weights.amax(0) < weights
    drawn = search(cumulative_weights(log_weights), uniforms[n:])
    own = torch.arange(n, device=drawn.device)[:, None].expand_as(drawn)
    return torch.where(survives | all_dead(log_weights), own, drawn)


SCHEMES: dict[str, Scheme] = {
    scheme.__name__: scheme  # type: ignore[attr-defined]
    for scheme in (systematic, stratified, multinomial, residual, ssp, killing)
}


# -- counting -------------------------------------------------------------------------------------------------


def _top(log_weights: Tensor) -> Tensor:
    """The largest log weight of each problem, `[B]`; 0 where all vanished."""
    top = log_weights.detach().amax(0)
    return top.masked_fill(top.isneginf(), 0.0)


def normalised(log_weights: Tensor) -> Tensor:
    """Normalised, `[N, B]`; uniform where all vanished."""
    wide = log_weights.to(widest(log_weights.device)).masked_fill(all_dead(log_weights), 0.0)
    return wide.softmax(0)


def normalised_sum(weights: Tensor) -> Tensor:
    """Cumulative sums that end at exactly 1."""
    total = weights.cumsum(0, dtype=widest(weights.device))
    last = total[-1:]
    return (total / last.where(last > 0, torch.ones_like(last))).clamp_(max=1.0)


def cumulative_weights(log_weights: Tensor) -> Tensor:
    """Cumulative weights in the widest type, zeros where all vanished; exponentials in the type of the weights."""
    relative = log_weights.detach() - _top(log_weights)
    # exp is slow where its result is subnormal; what is below exp(-78) becomes exactly 0 instead.
    weights = threshold(relative.clamp_(min=-80.0).exp_(), 1e-34, 0.0)
    return normalised_sum(weights)


def whole_part(expected: Tensor) -> Tensor:
    """⌊N·W⌋, where a value a rounding error below an integer is that integer."""
    nearest = expected.round()
    return nearest.where((expected - nearest).abs() < 1e-9, expected.floor())


def search(cumulative: Tensor, points: Tensor) -> Tensor:
    """Index of the first cumulative weight above each point, `[P, B]`; zero weights are never chosen."""
    index = torch.searchsorted(cumulative.T.contiguous(), points.T.contiguous(), right=True)
    return index.T.clamp(max=len(cumulative) - 1)


def _points_below(points: Tensor, cumulative: Tensor) -> Tensor:
    """How many of the points `[P, B]` lie below each cumulative weight, `[N, B]`."""
    ordered = points.T.contiguous().sort(-1).values
    return torch.searchsorted(ordered, cumulative.T.contiguous()).T


def _from_cumulative_counts(below: Tensor, log_weights: Tensor) -> Tensor:
    """Ancestors `[N, B]` from the number of copies of slots 0 … i, `[N, B]`, without a search: O(N)."""
    n, b = below.shape
    below = below.long().clamp_(0, n)
    # Slot j belongs to i once all of 0 … i-1 have ended; those of the last slot never do.
    if below.device.type == "cpu" and not torch.compiler.is_compiling():
        # bincount counts in half the time, but elsewhere it waits for the device
        flat = below[:-1, 0] if b == 1 else below[:-1].mul_(b).add_(torch.arange(b)).reshape(-1)
        starts = torch.bincount(flat, minlength=(n + 1) * b).view(n + 1, b)
    else:
        starts = torch.zeros(n + 1, b, dtype=torch.int32, device=below.device)
        starts = starts.scatter_add(0, below[:-1], torch.ones_like(starts[:1]).expand(n - 1, b))
    ancestors = starts[:-1].cumsum(0)
    dead = all_dead(log_weights)
    if dead.device.type == "cpu" and not torch.compiler.is_compiling() and not bool(dead.any()):
        return ancestors
    return torch.where(dead, torch.arange(n, device=dead.device)[:, None], ancestors)
