"""The lines of a filter run: which pasts survived, and three estimates of the smoothing law p(states | all data).

    genealogical           paths along the lines, with the final weights       free, few distinct early states
    fixed_lag              the state at t as seen from t + lag                 free, a little bias, no degeneracy
    backward_simulation    j_t ~ W_t^i p(next | state_t^i), from the end       O(N·M) a step, needs a density

They read a run that kept its states, `smc.run(..., keep="latents")`. `mean`, `variance` and `quantiles` make
functions for `collect=`, and for `Smoothed.collect`. The twin of `probgram.inference.genealogy`.

Sources: Kitagawa, "Monte Carlo filter and smoother", 1996 (lines, fixed lag); Godsill, Doucet and West, "Monte
Carlo smoothing for nonlinear time series", 2004, algorithm 1 (backward simulation).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgram.inference.on_jax.handlers import as_key
from probgram.inference.on_jax.kernels import Given, given
from probgram.inference.on_jax.resampling import draw_slots, widest
from probgram.inference.on_jax.trajectories import Trajectories
from probgram.models.on_jax.chain import Chain

Moment = Callable[[Any, Array], Array]
Of = Callable[[Any], Array]


class Smoothed(NamedTuple):
    """Weighted states of every depth step, given observations after it too."""

    states: Any  # leaves [S, N, B, ...]
    weights: np.ndarray  # normalised over N, [N, B], or [S, N, B] where they differ from step to step

    def collect(self, moment: Moment) -> Array:
        """What a function of `collect=` says at every depth step, `[S, B, ...]`."""
        steps = len(jax.tree.leaves(self.states)[0])
        weights = jnp.broadcast_to(jnp.asarray(self.weights), (steps, *self.weights.shape[-2:]))
        return jax.lax.map(lambda row: moment(*row), (self.states, weights))


def genealogical(run: Trajectories) -> Smoothed:
    """Paths of the final trajectories, traced through their ancestors, with the final weights.

    Early states have few distinct values once there was much resampling: see `unique_ancestors`.

    Args:
        run: kept its states.

    Returns:
        States `[S, N, B, ...]`, where slot i is one path, and weights `[N, B]`.

    Raises:
        ValueError: the run did not keep its states.
    """
    return Smoothed(_gather(_states(run), run.lines()), run.weights[-1])


def fixed_lag(run: Trajectories, lag: int) -> Smoothed:
    """States at every step t as seen from step t + lag, or from the last step where that is past it.

    Estimates p(state_t | data up to t + lag): lag 0 is the filter, a lag of S - 1 or more `genealogical`.

    Args:
        run: kept its states.
        lag: steps to look ahead, at least 0.

    Returns:
        States `[S, N, B, ...]`, where slot i belongs to the trajectory in slot i at t + lag, and its weights
        `[S, N, B]`.

    Raises:
        ValueError: a negative lag, or the run did not keep its states.
    """
    if lag < 0:
        raise ValueError(f"lag must be at least 0, got {lag}")
    states, weights = _states(run), run.weights
    steps, width, problems = weights.shape
    slots = np.tile(np.arange(width)[:, None], (steps, 1, problems))
    if run.ancestors is not None:
        ancestors = run.ancestors.astype(np.int64)
        for ahead in range(min(lag, steps - 1), 0, -1):  # every step goes back from t + ahead to t + ahead - 1
            slots[: steps - ahead] = np.take_along_axis(ancestors[ahead:], slots[: steps - ahead], 1)
    seen_from = (np.arange(steps) + lag).clip(max=steps - 1)
    return Smoothed(_gather(states, slots), weights[seen_from])


def backward_simulation(model: Any, run: Trajectories, draws: int, *args: Any, key: Any = 0) -> Any:
    """Draw paths from the end backwards, each step's slot in proportion to W_t^i p(next | state_t^i).

    Given the run the paths are independent draws of equal weight. What a step observes must depend on its new state
    alone. Memory and time grow with N·M·B.

    Args:
        model: the run's model, which says `log_transition(state, next_state, t, *args) -> [...]`, the log density
            of the move that step t (from 0, traced) makes; it is called with leaves `[N, 1, B, ...]` and
            `[1, M, B, ...]`. A chain is given its context, `chain.encode(x)`.
        run: kept its states.
        draws: M.
        *args: the run's arguments: a chain's problems x.
        key: an integer seed, or a JAX key; the same key, the same paths.

    Returns:
        States, leaves `[S, M, B, ...]`. Where all weights of a problem vanished they mean nothing.

    Raises:
        ValueError: no transition density, a run that kept no states, or one whose weights hold a potential.
    """
    transition_density(model, "backward simulation")
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    states = _states(run)
    if run.settings.get("potential") is not None or run.halted is not None:
        what = "a potential" if run.halted is None else "halted trajectories"
        raise ValueError(f"backward simulation needs a run of the model alone, and this one has {what}")
    these = given(model, args, problems=None if isinstance(model, Chain) else run.problems)
    if these.problems != run.problems:
        raise ValueError(f"the run has {run.problems} problems, and the arguments {these.problems}")
    ended = np.full(run.problems, run.depth) if run.ended is None else run.ended
    taken = jnp.asarray(run.depths)
    return _backwards(these, states, jnp.asarray(run.log_weights), taken, jnp.asarray(ended), draws, as_key(key))


@eqx.filter_jit
def _backwards(
    these: Given, states: Any, log_weights: Array, taken: Array, ended: Array, draws: int, key: Array
) -> Any:
    kernel, problems = these.kernel(1), jnp.arange(these.problems)
    shape = (log_weights.shape[1], draws, these.problems)
    transition = transition_density(these.model, "backward simulation")

    def pick(log_weights: Array, step: Any) -> Array:  # one slot [M, B] from each column of [N, M, B]
        uniforms = jax.random.uniform(jax.random.fold_in(key, step), (1, draws * these.problems), widest())
        return draw_slots(log_weights.reshape(len(log_weights), -1), uniforms).reshape(draws, -1)

    def at(row: Any, slot: Array) -> Any:
        return jax.tree.map(lambda leaf: leaf[slot, problems], row)

    def back(carry: Any, row: Any) -> Any:
        slot, following = carry
        state, log_weights, depth = row  # of the step before, and how deep the following one is
        before = jax.tree.map(lambda leaf: leaf[:, None], state)
        after = jax.tree.map(lambda leaf: leaf[None], following)
        log_density = transition(before, after, depth - 1, *kernel.args)
        if tuple(log_density.shape) != shape:
            raise ValueError(
                f"log_transition must return {list(shape)} here, [N, M, B], got shape {list(log_density.shape)}"
            )
        chosen = pick(log_weights[:, None] + log_density, depth)
        slot = jnp.where(ended < depth, slot, chosen)  # a problem that had ended stood still
        path = at(state, slot)
        return (slot, path), path

    slot = pick(jnp.broadcast_to(log_weights[-1][:, None], shape), 0)
    last = at(jax.tree.map(lambda leaf: leaf[-1], states), slot)
    earlier = jax.tree.map(lambda leaf: leaf[:-1], states)
    _, path = jax.lax.scan(back, (slot, last), (earlier, log_weights[:-1], taken[1:]), reverse=True)
    return jax.tree.map(lambda rows, end: jnp.concatenate([rows, end[None]]), path, last)


def unique_ancestors(run: Trajectories) -> np.ndarray:
    """How many distinct slots of every depth step the N final trajectories come from, int64 `[S, B]`.

    N at the last step. Where it is small, `genealogical` says little about that step.

    Raises:
        ValueError: the run did not keep its ancestors.
    """
    if run.effective is not None and len(run.log_weights) != len(run.effective):
        raise ValueError('the run must have kept its ancestors: make it with keep="paths" or "latents"')
    return 1 + (np.diff(np.sort(run.lines(), 1), axis=1) != 0).sum(1)


def transition_density(model: Any, what: str) -> Callable[..., Array]:
    """The model's `log_transition`.

    Raises:
        ValueError: it has none, so that `what` cannot be had.
    """
    transition = getattr(model, "log_transition", None)
    if not callable(transition):
        raise ValueError(
            f"{what} needs log p(next | state), and {type(model).__name__} has no "
            "log_transition(state, next_state, t, *args)"
        )
    return transition


def _states(run: Trajectories) -> Any:
    if run.states is None or len(run.depths) != run.depths[-1] - run.depths[0] + 1:
        raise ValueError('the run did not keep its states: run the filter with keep="latents"')
    return run.states


def _gather(states: Any, slots: np.ndarray) -> Any:
    """Leaves `[S, N, B, ...]` at slots `[S, N, B]`."""
    steps, _, problems = slots.shape
    step, problem = np.arange(steps)[:, None, None], np.arange(problems)
    return jax.tree.map(lambda leaf: leaf[step, slots, problem], states)


# -- moments, for collect= ------------------------------------------------------------------------------------
#
# They are equal where their arguments are, so that a run with another one does not compile the loop again.


@dataclass(frozen=True)
class mean:  # noqa: N801 - called as the function it stands for
    """Σ W x: a function `(state, weights [N, B]) -> [B, ...]` for `collect=`; NaN where all weights vanished.

    Args:
        of: picks an array `[N, B, ...]` out of the state; None: the state itself.
    """

    of: Of | None = None

    def __call__(self, state: Any, weights: Array) -> Array:
        """The weighted mean, `[B, ...]`."""
        values, weights = _aligned(state, weights, self.of, "mean")
        return (weights * values).sum(0) / weights.sum(0)


@dataclass(frozen=True)
class variance:  # noqa: N801
    """Σ W (x - mean)², element by element: a function as `mean` gives."""

    of: Of | None = None

    def __call__(self, state: Any, weights: Array) -> Array:
        """The weighted variance, `[B, ...]`."""
        values, weights = _aligned(state, weights, self.of, "variance")
        total = weights.sum(0)
        centred = values - (weights * values).sum(0) / total
        return (weights * jnp.square(centred)).sum(0) / total


@dataclass(frozen=True, init=False)
class quantiles:  # noqa: N801
    """Weighted quantiles: the smallest value whose weight together with all smaller ones reaches a level.

    A function `(state, weights [N, B]) -> [B, Q, ...]`, exact by sorting, element by element.

    Args:
        levels: Q probabilities in [0, 1].
        of: as for `mean`.

    Raises:
        ValueError: a level outside [0, 1], or none.
    """

    levels: tuple[float, ...]
    of: Of | None

    def __init__(self, levels: float | Sequence[float], of: Of | None = None) -> None:
        wanted = np.asarray(levels, np.float64).reshape(-1)
        if not len(wanted) or not bool(((wanted >= 0) & (wanted <= 1)).all()):
            raise ValueError(f"levels must be probabilities between 0 and 1, got {levels}")
        object.__setattr__(self, "levels", tuple(wanted.tolist()))
        object.__setattr__(self, "of", of)

    def __call__(self, state: Any, weights: Array) -> Array:
        """The quantiles, `[B, Q, ...]`."""
        values, weights = _aligned(state, weights, self.of, "quantiles")
        order = jnp.argsort(values, 0)
        ordered = jnp.take_along_axis(values, order, 0)
        below = jnp.take_along_axis(jnp.broadcast_to(weights, values.shape), order, 0).astype(widest())
        below = jnp.cumsum(below, 0)
        total = below[-1]
        # A level that is a cumulative weight but for rounding is reached by it. And above 0: level 0 is the
        # smallest value that has weight.
        rounding = 1e-9 if below.dtype == jnp.float64 else 1e-6
        found = []
        for level in self.levels:
            point = max(level - rounding, float(jnp.finfo(below.dtype).tiny)) * total
            index = (below < point).sum(0).clip(max=len(values) - 1)
            found.append(jnp.where(total > 0, jnp.take_along_axis(ordered, index[None], 0)[0], jnp.nan))
        return jnp.stack(found, 1)


def _aligned(state: Any, weights: Array, of: Of | None, name: str) -> tuple[Array, Array]:
    """Values `[N, B, ...]` and weights `[N, B, 1, ...]`, both of one floating type."""
    values = state if of is None else of(state)
    if not isinstance(values, Array | np.ndarray) or values.shape[:2] != weights.shape:
        found = list(values.shape) if isinstance(values, Array | np.ndarray) else f"a {type(values).__name__}"
        raise ValueError(
            f"{name} needs an array that begins with [N, B] = {list(weights.shape)}, got {found}: "
            "of= picks one out of the state"
        )
    dtype = jnp.promote_types(values.dtype, weights.dtype)
    spread = weights.astype(dtype).reshape(*weights.shape, *[1] * (values.ndim - 2))
    return jnp.asarray(values, dtype), spread
