"""Resampling schemes: from weights and uniforms to ancestors, for all problems at once.

Every scheme is a function `(log_weights [N, B], uniforms) -> ancestors int32 [N, B]` with E[copies of i] = N·W_i,
problem by problem, whatever the weights; `uniforms` is `[rows(N), B]`, from `draw_uniforms`. Schemes differ in the
variance of the copies, and `systematic` costs least. All of them count: a cumulative sum is divided by its last
element, points are compared with it, and no index leaves the range.

The twin of `probgram.inference.resampling`: in float64 (`jax_enable_x64`) the same weights and uniforms give the
same ancestors. In float32, where the plain cumulative sum of a million weights moves a fifth of the ancestors, the
sum is taken in groups, and N·(W_0 + … + W_i) is kept as a whole number and a part below one. `multinomial`,
`residual` and `killing` search among uniforms, of which float32 has 2²³: from a million particles on they want
float64.

A problem whose weights all vanished keeps every slot: its ancestors are 0 … N-1.

Sources: Chopin and Papaspiliopoulos, "An Introduction to Sequential Monte Carlo", 2020, chapter 9; Gerber, Chopin
and Whiteley, arXiv 1707.01845 (SSP); Del Moral, "Feynman-Kac Formulae", 2004, section 2.5.2 (killing).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from operator import itemgetter
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from probgram.inference.on_jax.faults import all_dead

GROUP = 16  # elements of a cumulative sum or maximum that are combined by themselves first


class Scheme(Protocol):
    """A resampling scheme; `rows(N)` uniforms a problem are what it needs."""

    rows: Callable[[int], int]

    def __call__(self, log_weights: Array, uniforms: Array) -> Array: ...  # noqa: D102


def _scheme(rows: Callable[[int], int]) -> Callable[[Callable[[Array, Array], Array]], Scheme]:
    def mark(function: Callable[[Array, Array], Array]) -> Scheme:
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
            raise ValueError(
                f"resample must be a scheme of probgram.inference.on_jax.resampling, got {self.scheme!r}"
            )

    def acts_at(self, depth: Any) -> Any:
        """Whether it may act after so many depth steps, a number or a traced one."""
        acts = depth >= self.first
        return acts if self.last is None else acts & (depth <= self.last)

    def due(self, ess: Array, width: int) -> Array:
        """Whose effective sample size `[B]` is low, bool `[B]`."""
        if self.ess_threshold >= 1:  # whatever rounding made of an effective sample size of N
            return jnp.ones_like(ess, dtype=bool)
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


def widest() -> Any:
    """The widest floating type that JAX is set to: float64 with `jax_enable_x64`, else float32."""
    return jnp.result_type(float)


def draw_uniforms(scheme: Scheme, log_weights: Array, key: Array) -> Array:
    """The uniforms in [0, 1) that `scheme` needs for `log_weights` `[N, B]`, `[rows(N), B]`."""
    n, b = log_weights.shape
    return jax.random.uniform(key, (scheme.rows(n), b), widest())


@_scheme(lambda n: 1)
def systematic(log_weights: Array, uniforms: Array) -> Array:
    """One uniform, N evenly spaced points (Carpenter, Clifford and Fearnhead 1999).

    Copies of i differ from N·W_i by less than one. Ancestors are non-decreasing down each column. O(N).
    """
    weights = _relative(log_weights)
    position = _positions(weights)
    below = position.whole + (uniforms < position.part)  # points (j + u) / N below each cumulative weight
    return _from_cumulative_counts(below, weights)


@_scheme(lambda n: n)
def stratified(log_weights: Array, uniforms: Array) -> Array:
    """One uniform in each of N equal strata (Kitagawa 1996). Ancestors are non-decreasing. O(N)."""
    weights = _relative(log_weights)
    position = _positions(weights)
    stratum = position.whole.clip(0, len(log_weights) - 1)
    within = position.part + (position.whole - stratum)
    below = stratum + (jnp.take_along_axis(uniforms, stratum, 0) < within)
    return _from_cumulative_counts(below, weights)


@_scheme(lambda n: n)
def multinomial(log_weights: Array, uniforms: Array) -> Array:
    """N independent draws (Gordon, Salmond and Smith 1993), in order. O(N log N)."""
    below = _points_below(uniforms, cumulative_weights(log_weights))
    return _from_cumulative_counts(below, _relative(log_weights))


@_scheme(lambda n: n)
def residual(log_weights: Array, uniforms: Array) -> Array:
    """⌊N·W⌋ copies for certain, the rest multinomial on what is left over (Liu and Chen 1998). O(N log N)."""
    n = len(log_weights)
    expected = n * normalised(log_weights)
    certain = whole_part(expected)
    left = (expected - certain).clip(min=0)
    certain = certain.astype(jnp.int32)
    rest = n - certain.sum(0, dtype=jnp.int32)  # draws to be made, [B]
    # Points beyond a problem's own number of draws are put at 2, above every cumulative weight.
    unused = jnp.arange(n)[:, None] >= rest
    below = _points_below(jnp.where(unused, 2.0, uniforms), normalised_sum(left))
    below = below.at[-1].set(rest)
    below = jnp.cumsum(certain, 0) + jnp.minimum(below, rest)
    return _from_cumulative_counts(below, _relative(log_weights))


@_scheme(lambda n: max(1, n - 1))
def ssp(log_weights: Array, uniforms: Array) -> Array:
    """Srinivasan sampling process: ⌊N·W⌋ or ⌈N·W⌉ copies, negatively associated (Gerber et al., algorithm 2).

    Fractional parts meet in pairs, and one of the two becomes whole: ⌈log₂ N⌉ rounds of a tournament. O(N log N).
    """
    n, b = log_weights.shape
    expected = n * normalised(log_weights)
    whole = whole_part(expected)
    copies, half, problem = whole.astype(jnp.int32), n // 2, jnp.arange(b)
    lane, own = jnp.arange(half)[:, None], jnp.arange(n, dtype=jnp.int32)[:, None]
    uniforms = jnp.pad(uniforms, ((0, half), (0, 0)))
    tiny = jnp.finfo(expected.dtype).tiny

    def tournament(_: Any, carry: Any) -> Any:
        # In front, in order, the players still in and their parts.
        part, player, copies, still, used = carry
        pairs = still // 2
        a, b_ = part[: 2 * half : 2], part[1 : 2 * half : 2]
        first, second = player[: 2 * half : 2], player[1 : 2 * half : 2]
        u = jax.lax.dynamic_slice_in_dim(uniforms, used, half)
        both = a + b_
        over = both >= 1
        # Below one: a winner takes both parts, the other has none. From one on: a winner is made whole.
        chance = jnp.where(over, (1 - b_) / (2 - both).clip(min=tiny), a / both.clip(min=tiny))
        first_wins = u < chance
        winner, loser = jnp.where(first_wins, first, second), jnp.where(first_wins, second, first)
        copies = copies.at[winner, problem].add((over & (lane < pairs)).astype(copies.dtype))
        stays = jnp.where(over, loser, winner), jnp.where(over, both - 1, both)
        # Of an odd number the last one goes on as it is.
        odd = (own == pairs) & (still % 2 == 1)

        def front(values: Array, left: Array) -> Array:
            last = jax.lax.dynamic_index_in_dim(values, jnp.minimum(2 * pairs, n - 1), keepdims=True)
            return jnp.where(odd, last, jnp.pad(left, ((0, n - half), (0, 0))))

        return front(part, stays[1]), front(player, stays[0]), copies, pairs + still % 2, used + pairs

    carry = (expected - whole).clip(min=0), jnp.broadcast_to(own, (n, b)), copies, jnp.int32(n), jnp.int32(0)
    _, player, copies, _, _ = jax.lax.fori_loop(0, (n - 1).bit_length(), tournament, carry)
    # All that is left is one player whose part is 0 or 1 but for rounding.
    copies = copies.at[player[0], problem].add((n - copies.sum(0)).astype(copies.dtype))
    return _from_cumulative_counts(jnp.cumsum(copies, 0), _relative(log_weights))


@_scheme(lambda n: 2 * n)
def killing(log_weights: Array, uniforms: Array) -> Array:
    """Slot i keeps its particle with probability W_i / max W, else it gets a multinomial draw."""
    n = len(log_weights)
    weights = normalised(log_weights)
    survives = uniforms[:n] * weights.max(0) < weights
    own = jnp.arange(n, dtype=jnp.int32)[:, None]
    return jnp.where(survives | all_dead(log_weights), own, draw_slots(log_weights, uniforms[n:]))


SCHEMES: dict[str, Scheme] = {
    scheme.__name__: scheme  # type: ignore[attr-defined]
    for scheme in (systematic, stratified, multinomial, residual, ssp, killing)
}


def draw_slots(log_weights: Array, uniforms: Array) -> Array:
    """Independent draws of slots in proportion to the weights.

    Args:
        log_weights: unnormalised, `[N, B]`.
        uniforms: `[P, B]`.

    Returns:
        Slots, int32 `[P, B]`; none of them without weight, unless all are.
    """
    return search(_relative(log_weights), uniforms)


# -- counting -------------------------------------------------------------------------------------------------


class Positions(NamedTuple):
    """N·(W_0 + … + W_i), `[N, B]`: a whole number and a part in [0, 1)."""

    whole: Array  # int32
    part: Array  # the widest type


def _relative(log_weights: Array) -> Array:
    """Weights over the largest of their problem, in their own type `[N, B]`; zeros where all vanished."""
    log_weights = jax.lax.stop_gradient(log_weights)
    top = log_weights.max(0)

    def relative(log_weights: Array, top: Array) -> Array:
        relative = log_weights - jnp.where(jnp.isneginf(top), 0.0, top)
        # Subnormal numbers are slow: what is below exp(-78) becomes exactly 0 instead.
        return jnp.where(relative > -78.0, jnp.exp(relative.clip(min=-80.0)), 0.0)

    return apart(relative, (top == top).any(), log_weights, top)


def apart(function: Callable[..., Any], there: Array, *operands: Array) -> Any:
    """`function(*operands)` as loops of their own; zeros where not `there`, a bool that is true but for NaN.

    On CPUs XLA puts exponentials, cumulative sums and what reads them into one loop, in which it can vectorise
    nothing and computes much anew: up to ten times slower. What stands in a branch stays apart.
    """
    if jax.default_backend() != "cpu":
        return function(*operands)

    def nothing(*operands: Array) -> Any:
        shapes = jax.eval_shape(function, *operands)
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    return jax.lax.cond(there, function, nothing, *operands)


def normalised(log_weights: Array) -> Array:
    """Normalised, in the widest type `[N, B]`; uniform where all vanished."""
    return jax.nn.softmax(jnp.where(all_dead(log_weights), 0.0, log_weights).astype(widest()), 0)


def normalised_sum(weights: Array) -> Array:
    """Cumulative sums that end at exactly 1, in the widest type `[N, B]`; zeros where there are only zeros."""
    position = _positions(weights)
    return ((position.whole + position.part) / len(weights)).clip(max=1.0)


def cumulative_weights(log_weights: Array) -> Array:
    """Cumulative weights in the widest type `[N, B]`, zeros where all vanished."""
    return normalised_sum(_relative(log_weights))


def whole_part(expected: Array) -> Array:
    """⌊N·W⌋, where a value a rounding error below an integer is that integer."""
    nearest = jnp.round(expected)
    rounding = jnp.maximum(1e-9, 4 * jnp.finfo(expected.dtype).eps * nearest)
    return jnp.where(jnp.abs(expected - nearest) < rounding, nearest, jnp.floor(expected))


def search(weights: Array, points: Array) -> Array:
    """Index of the first cumulative weight above each point, int32 `[P, B]`; zero weights are never chosen."""
    n, own = len(weights), jnp.arange(len(weights), dtype=jnp.int32)[:, None]
    cumulative = jax.lax.cummax(normalised_sum(weights), 0)
    index = jax.vmap(lambda c, p: jnp.searchsorted(c, p, side="right"), (1, 1), 1)(cumulative, points)
    # The sum of a block may round otherwise than its elements do, and so step up at a slot without weight.
    carrier = jax.lax.cummax(jnp.where(weights > 0, own, 0), 0)
    return jnp.take_along_axis(carrier, index.clip(max=n - 1), 0)


def _points_below(points: Array, cumulative: Array) -> Array:
    """How many of the points `[P, B]` lie below each cumulative weight, int32 `[N, B]`."""
    ordered = jnp.sort(points, 0)
    return jax.vmap(jnp.searchsorted, (1, 1), 1)(ordered, cumulative).astype(jnp.int32)


def _positions(weights: Array) -> Positions:
    """Where the cumulative weights `[N, B]` lie among N equal strata."""
    n, b = weights.shape
    size = min(GROUP, n)
    weights = jnp.pad(weights.astype(widest()), ((0, -n % size), (0, 0))).reshape(-1, size, b)
    within = apart(lambda weights: jnp.stack(_running(jnp.add, weights), 1), weights[0, 0, 0] >= 0, weights)
    ends = within[:, -1]  # [K, B]
    total = ends.sum(0)
    scale = jnp.where(total > 0, n / jnp.where(total > 0, total, 1.0), 0.0)
    before, excess = apart(partial(_starts, n=n), total[0] >= 0, ends * scale)
    inside = before.part[:, None] + within * (scale * (1 - excess))
    floor = jnp.floor(inside)
    whole = before.whole[:, None] + floor.astype(jnp.int32)
    return Positions(*(of.reshape(-1, b)[:n] for of in (whole, inside - floor)))


def _starts(sizes: Array, n: int) -> tuple[Positions, Array]:
    """Where groups of these sizes `[K, B]` start, of n strata in all; and what share of their sum was beyond n."""
    whole = jnp.floor(sizes)
    last = running(_carried, Positions(whole.astype(jnp.int32), sizes - whole))
    # Divided by the last element: what rounding left over, in proportion.
    beyond = (last.whole[-1] - n) + last.part[-1]
    excess = jnp.where(sizes.max(0) > 0, beyond / (n + beyond), 0.0)
    last = last._replace(part=last.part - (last.whole + last.part) * excess)
    return jax.tree.map(lambda of: jnp.pad(of, ((1, 0), (0, 0)))[:-1], last), excess


def _carried(one: Positions, other: Positions) -> Positions:
    """Their sum: whole numbers add up without rounding, parts below one nearly so."""
    part = one.part + other.part
    carry = jnp.floor(part)
    return Positions(one.whole + other.whole + carry.astype(jnp.int32), part - carry)


def _from_cumulative_counts(below: Array, weights: Array) -> Array:
    """Ancestors `[N, B]` from the number of copies of slots 0 … i, `[N, B]`, without a search: O(N).

    Slots without weight are passed over, whatever rounding made of their count.
    """
    return apart(_counted, below[0, 0] >= 0, below.astype(jnp.int32), weights)


def _counted(below: Array, weights: Array) -> Array:
    n, b = below.shape
    own = jnp.arange(n, dtype=jnp.int32)[:, None]
    first = jnp.pad(below, ((1, 0), (0, 0)))[:-1]  # the first slot that each would fill
    chosen = (weights > 0) & (below > first)
    # Those not chosen write 0: left out, half of them, a CPU would guess wrong which, and wait.
    mark, first = jnp.where(chosen, own, 0), first.clip(0, n)
    if b == 1:
        marked = jnp.zeros(n + 1, jnp.int32).at[first[:, 0]].max(mark[:, 0], mode="promise_in_bounds")[:n, None]
    else:
        marked = jnp.zeros((n, b), jnp.int32).at[first, jnp.arange(b)].max(mark, mode="drop")
    ancestors = running(jnp.maximum, marked)
    return jnp.where((weights > 0).any(0), ancestors, own)


def running(combine: Callable[[Any, Any], Any], values: Any) -> Any:
    """All elements so far combined, by an operation that is associative and whose neutral element is 0.

    Args:
        combine: `(a, b) -> a·b`, of arrays or trees of them, elementwise.
        values: leaves `[N, B]`.
    """
    n, b = jax.tree.leaves(values)[0].shape
    size = min(GROUP, n)
    groups = jax.tree.map(lambda leaf: jnp.pad(leaf, ((0, -n % size), (0, 0))).reshape(-1, size, b), values)
    within = _running(combine, groups)
    if n > size:
        before = jax.tree.map(lambda leaf: jnp.pad(leaf[:-1], ((1, 0), (0, 0))), running(combine, within[-1]))
        within = [combine(before, column) for column in within]
    return jax.tree.map(lambda *columns: jnp.stack(columns, 1).reshape(-1, b)[:n], *within)


def _running(combine: Callable[[Any, Any], Any], groups: Any) -> list[Any]:
    """All elements so far of each group combined; leaves `[K, G, B]`, a list of G whose leaves are `[K, B]`.

    Written out, so that a CPU combines many groups at a time; `lax.associative_scan` takes four times as long.
    """
    size = jax.tree.leaves(groups)[0].shape[1]
    columns = [jax.tree.map(itemgetter((slice(None), i)), groups) for i in range(size)]
    return list(accumulate(columns, combine))
