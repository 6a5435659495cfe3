"""The particle filter between depth steps: resample, propagate, reweigh, update the normaliser.

    gamma_t(tau) = p(tau_{1:t}) · Π_{s <= t} g_s(obs_s) · psi_t                              the target at depth t
    log w_t      = Σ log g_t + Σ (log p - log q) + log psi_t - log psi_{t-1},  psi_0 = 1     incremental weight
    log Z_t      = log Z_{t-1} + log Σ_i W_{t-1}^i w_t^i          W normalised, uniform after resampling

Three functions over a NamedTuple, for many problems side by side, each with its own weights, effective sample size,
ancestors and normaliser; Z, not log Z, is unbiased. `run` scans them over depth in one compiled program, which new
data, weights and keys do not compile again, and returns `Trajectories`:

    run = smc.run(model, series, width=10_000, depth=100)           any NumPyro step, plain arrays, or a chain
    algorithm = smc.build(model, series, width=10_000, depth=100)   or step by step
    state = smc.init(algorithm, key=0)
    state, info = smc.step(algorithm, state)                        under eqx.filter_jit, where it is to be fast

The twin of `probgram.inference.smc`. Problems that have ended stay in the batch, masked.

Sources: Gordon, Salmond and Smith 1993; Del Moral, "Feynman-Kac Formulae", 2004; Chopin and Papaspiliopoulos, "An
Introduction to Sequential Monte Carlo", 2020, algorithm 10.3 (adaptive resampling).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from probgram import checkpoint
from probgram.inference.choices import (
    Keep,
    check_counts,
    check_decode,
    check_halting,
    check_move,
    checked_depth,
    checked_keep,
    depth_or_default,
    name_of,
    opened,
)
from probgram.inference.on_jax import continuation, recording
from probgram.inference.on_jax.crossing import ancestors_over, gather_over
from probgram.inference.on_jax.devices import check_mesh, spread
from probgram.inference.on_jax.faults import (
    Faults,
    all_dead,
    check_factors,
    factor_faults,
    report_dead,
)
from probgram.inference.on_jax.faults import FilterError as FilterError
from probgram.inference.on_jax.handlers import as_key, where
from probgram.inference.on_jax.islands import Exchange, joint_slots
from probgram.inference.on_jax.kernels import Given, Kernel, LastMove, given
from probgram.inference.on_jax.kernels import PlainModel as PlainModel
from probgram.inference.on_jax.potentials import Potential, View, as_potential
from probgram.inference.on_jax.recording import Collect
from probgram.inference.on_jax.rejuvenation import Rejuvenation
from probgram.inference.on_jax.resampling import (
    Adaptive,
    Scheme,
    adaptive,
    apart,
    draw_uniforms,
    systematic,
    widest,
)
from probgram.inference.on_jax.sampling import FLAG_EVERY, logit
from probgram.inference.on_jax.settling import settled
from probgram.inference.on_jax.trajectories import Trajectories, seed_of
from probgram.models.on_jax.chain import Chain

Rejuvenate = Callable[[Rejuvenation], tuple[Any, Array, Array]]


class SMCState(NamedTuple):
    """What the next step needs."""

    latent: Any  # leaves [N, B, ...]
    log_weights: Array  # normalised, [N, B]
    log_psi: Array  # log psi_t, travels with the ancestors, [N, B]
    log_normalizer: Array  # log Z_t in nats, [B]
    ess: Array  # effective sample size, [B]
    dead: Array  # depth at which all weights had vanished, 0 while there are some, int32 [B]
    nan: Array  # depth at which a weight became NaN, 0 before, int32 [B]
    done: Array  # depth at which a problem ended, 0 while it runs, int32 [B]
    halted: Array | None  # trajectories that their halt head stopped, bool [N, B]; None: never
    t: Array  # depth steps taken, int32
    key: Array  # the noise of step t is keyed by (key, t)
    observed: Array  # whether anything was observed so far
    likelihood: Array  # whether all of it was a likelihood
    weighs: Array  # whether the last step's weights may trigger resampling
    last: LastMove | None = None  # the last transition, for rejuvenation
    faults: Faults | None = None  # with `strict`, what the factors of the last step did to the problems


class SMCInfo(NamedTuple):
    """What a person looks at."""

    ancestors: Array  # slots now -> slots at the step before, int32 [N, B]; of all islands with an exchange
    resampled: Array  # bool [B]
    log_increment: Array  # log Z_t - log Z_{t-1}, [B]
    view: View  # state, heads and answers after the step
    kl: Array | None  # KL(q || p) of the step's transitions where a chain's guide proposed, [N, B]


class Filter(eqx.Module):
    """A model and the choices beside it; `build` checks and makes it."""

    given: Given
    kernel: Kernel | None
    potential: Potential | None
    x: Array | None  # a chain's problems
    problem: Array  # of each column, int32 [B·I]
    depth: Array  # depth steps in all, int32, [B·I] where problems differ
    width: int = eqx.field(static=True)
    islands: int = eqx.field(static=True)
    resample: Adaptive | None = eqx.field(static=True)
    guided: bool = eqx.field(static=True)
    halt_above: float | None = eqx.field(static=True)  # logit
    decode: str = eqx.field(static=True)
    mesh: Mesh | None = eqx.field(static=True)
    exchange: Exchange | None = eqx.field(static=True, default=None)
    strict: bool = eqx.field(static=True, default=False)
    rejuvenate: Rejuvenate | None = None

    @property
    def masked(self) -> bool:
        """Whether trajectories or problems may stand still while others go on."""
        return self.halt_above is not None or self.depth.ndim > 0

    def ready(self) -> "Filter":
        """The same with its problems encoded."""
        if self.kernel is not None:
            return self
        return replace(self, kernel=self.given.kernel(self.islands, self.strict, self.rejuvenate is not None))

    def view(self, latent: Any, previous: Any, t: Any, key: Array) -> View:
        """What a potential sees of these latents; the key is of the step that led to them."""
        assert self.kernel is not None
        model, context = self.given.model, self.kernel.context
        answers = _keys(key, t - 1)[2] if self.decode == "sample" else None
        return View(model, latent, previous, context, t, self.depth, self.problem, self.x, answers)


# -- init, step -----------------------------------------------------------------------------------------------


def build(
    model: Any,
    *args: Any,
    width: int,
    depth: Any,
    potential: Potential | Callable[[View], Array] | None = None,
    resample: Scheme | Adaptive | None = systematic,
    ess_threshold: float = 0.5,
    guide: Any = None,
    evidence: Any = None,
    problems: int | None = None,
    islands: int = 1,
    halt_probability: float | None = None,
    strict: bool = False,
    decode: Literal["mode", "sample"] = "mode",
    rejuvenate: Rejuvenate | None = None,
    mesh: Mesh | None = None,
    exchange: Exchange | None = None,
) -> Filter:
    """Check the choices of a filter and put them together; the arguments are those of `run`."""
    return _encoded(
        _chosen(
            model,
            *args,
            width=width,
            depth=depth,
            potential=potential,
            resample=resample,
            ess_threshold=ess_threshold,
            guide=guide,
            evidence=evidence,
            problems=problems,
            islands=islands,
            halt_probability=halt_probability,
            strict=strict,
            decode=decode,
            rejuvenate=rejuvenate,
            mesh=mesh,
            exchange=exchange,
        )
    )


@eqx.filter_jit
def _encoded(algorithm: Filter) -> Filter:
    return algorithm.ready()


def _chosen(
    model: Any,
    *args: Any,
    width: int,
    depth: Any,
    potential: Any,
    resample: Scheme | Adaptive | None,
    ess_threshold: float,
    guide: Any,
    evidence: Any,
    problems: int | None,
    islands: int,
    halt_probability: float | None,
    strict: bool,
    decode: str,
    rejuvenate: Rejuvenate | None,
    mesh: Mesh | None,
    exchange: Exchange | None = None,
) -> Filter:
    """The choices, checked; the problems are not yet encoded."""
    check_counts({"width": width, "islands": islands})
    check_halting(halt_probability)
    check_decode(decode)
    check_move(rejuvenate, decode, isinstance(model, Chain) and guide is None)
    these = given(model, args, guide, evidence, problems)
    depth = checked_depth(depth, these.problems).astype(np.int32)
    if decode == "sample" and (halt_probability is not None or depth.ndim):
        raise ValueError("decode='sample' needs problems that end together: answers of ended ones would be redrawn")
    if resample is not None and not isinstance(resample, Adaptive):
        resample = adaptive(resample, ess_threshold)
    if resample is not None and getattr(resample.scheme, "conditional", False):
        raise TypeError(
            "resample must be a scheme of probgram.inference.on_jax.resampling, not one for conditional SMC"
        )
    check_mesh(mesh, width, these.problems * islands)
    if exchange is not None and not isinstance(exchange, Exchange):
        raise ValueError(f"exchange must be ring(...) or None, got {exchange!r}")
    if exchange is not None and (islands == 1 or halt_probability is not None):
        raise ValueError("exchange needs several islands that end together: islands above 1, no halt_probability")
    problem = np.repeat(np.arange(these.problems, dtype=np.int32), islands)
    return Filter(
        given=these,
        kernel=None,
        potential=None if potential is None else as_potential(potential),
        x=these.args[0] if isinstance(model, Chain) else None,
        problem=jnp.asarray(problem),
        depth=jnp.asarray(depth[problem] if depth.ndim else depth),
        width=int(width),
        islands=int(islands),
        resample=resample,
        guided=guide is not None,
        halt_above=None if halt_probability is None else logit(halt_probability),
        decode=decode,
        mesh=mesh,
        exchange=exchange,
        strict=bool(strict),
        rejuvenate=rejuvenate,
    )


def init(algorithm: Filter, key: Any = 0) -> SMCState:
    """Draw the states at depth 0, all with equal weights unless `init` observed something."""
    kernel, n = algorithm.kernel, algorithm.width
    assert kernel is not None
    first, later = jax.random.split(as_key(key))
    moved = kernel.start(n, first)
    b = kernel.problems
    dtype = jnp.float32
    if moved.log_factor is not None:
        dtype = jnp.promote_types(moved.log_factor.dtype, dtype)
    nothing = jnp.zeros(b, jnp.int32)
    state = SMCState(
        latent=spread(jax.tree.map(jnp.asarray, moved.latent), algorithm.mesh),
        log_weights=spread(jnp.full((n, b), -math.log(n), dtype), algorithm.mesh),
        log_psi=spread(jnp.zeros((n, b), dtype), algorithm.mesh),
        log_normalizer=jnp.zeros(b, widest()),
        ess=jnp.full(b, n, dtype),
        dead=nothing,
        nan=nothing,
        done=nothing,
        halted=None if algorithm.halt_above is None else jnp.zeros((n, b), bool),
        t=jnp.zeros((), jnp.int32),
        key=later,
        observed=jnp.asarray(moved.observed),
        likelihood=jnp.asarray(moved.likelihood),
        weighs=jnp.asarray(moved.observed),
    )
    if moved.log_factor is None:
        return state
    if algorithm.strict:
        faults = factor_faults(algorithm, state, moved.sites, moved.log_factor, moved.log_factor)
        state = state._replace(faults=faults)
    return _reweigh(state, moved.log_factor, state.t)[0]


def step(algorithm: Filter, state: SMCState) -> tuple[SMCState, SMCInfo]:
    """One depth step of every problem."""
    before, kernel = state, algorithm.kernel
    assert kernel is not None
    noise, uniforms, _ = _keys(state.key, state.t)
    # Exchange
    state, slots = _exchange(algorithm, state)
    # Resample
    state, ancestors, resampled = _resample(algorithm, state, uniforms)
    ancestors = ancestors if slots is None else gather_over(slots, ancestors, algorithm.mesh)
    # Propagate
    moved = kernel.move(state.latent, state.t, noise)
    t = state.t + 1
    if algorithm.rejuvenate is not None and moved.observed:
        raise ValueError("rejuvenate needs a step that observes nothing: it cannot weigh an observation anew")
    log_factor, latent, sites, kl = moved.log_factor, spread(moved.latent, algorithm.mesh), moved.sites, moved.kl
    halted, done = state.halted, state.done
    if algorithm.masked:
        latent, log_factor, sites, kl = _stand_still(state, latent, log_factor, sites, kl)
    view = algorithm.view(latent, state.latent, t, state.key)
    if algorithm.masked:
        view, halted, done = _finish(algorithm, state, view)
    # Reweigh
    log_psi, log_increment = _weigh(algorithm, state, view, log_factor)
    weighs = moved.observed or (
        algorithm.potential is not None and (not algorithm.guided or algorithm.potential.look_ahead)
    )
    state = state._replace(
        latent=latent,
        log_psi=log_psi,
        halted=halted,
        done=done,
        t=t,
        observed=state.observed | moved.observed,
        likelihood=state.likelihood & moved.likelihood,
        weighs=jnp.asarray(weighs),
        last=moved.last,
    )
    if algorithm.strict:
        state = state._replace(faults=factor_faults(algorithm, state, sites, log_factor, log_increment))
    # Update the log normalising constant
    log_total = jnp.zeros_like(state.log_normalizer)
    if log_increment is not None:
        state, log_total = _reweigh(state, log_increment, t)
    state = state._replace(log_weights=spread(state.log_weights, algorithm.mesh))
    if algorithm.masked:  # a problem that had ended keeps its figures exactly
        ended = before.done > 0
        state = state._replace(
            log_weights=jnp.where(ended, before.log_weights, state.log_weights),
            log_normalizer=jnp.where(ended, before.log_normalizer, state.log_normalizer),
            ess=jnp.where(ended, before.ess, state.ess),
        )
    return state, SMCInfo(ancestors, resampled, log_total, view, kl)


def _keys(key: Array, t: Any) -> Array:
    """Of step t: for the model's noise, the uniforms of resampling, and drawn answers."""
    return jax.random.split(jax.random.fold_in(key, t), 3)


def _exchange(algorithm: Filter, state: SMCState) -> tuple[SMCState, Array | None]:
    """Hand particles and their weights on to the next island; also where each came from, among all islands."""
    exchange, islands = algorithm.exchange, algorithm.islands
    if exchange is None:
        return state, None
    width, columns = state.log_weights.shape
    slots = spread(joint_slots(width, columns, islands), algorithm.mesh)
    together = state.log_normalizer.reshape(-1, islands)
    top = together.max(1, keepdims=True)
    top = jnp.broadcast_to(jnp.where(jnp.isneginf(top), 0.0, top), together.shape).reshape(-1)

    def exchanged(operand: tuple[SMCState, Array]) -> tuple[SMCState, Array]:
        state, slots = operand
        share = (state.log_normalizer - top).astype(state.log_weights.dtype)
        log_psi = None if algorithm.potential is None else state.log_psi  # 0 everywhere: nothing to send
        moving = (state.latent, log_psi, state.last, state.log_weights + share, slots)
        swapped = exchange.swap(moving, islands)
        if algorithm.masked:  # the islands of a problem end together, and it keeps its particles
            swapped = where(jnp.broadcast_to(state.done == 0, slots.shape), swapped, moving)
        latent, log_psi, last, log_weights, slots = swapped
        log_weights, log_total, ess = reweighed(log_weights, jnp.zeros_like(log_weights))
        state = state._replace(
            latent=latent,
            log_psi=state.log_psi if log_psi is None else log_psi,
            last=last,
            log_weights=log_weights,
            log_normalizer=top + log_total.astype(top.dtype),
            ess=ess,
            dead=jnp.where(jnp.isneginf(log_total), state.dead, 0),
        )
        return state, slots

    return jax.lax.cond(exchange.acts_at(state.t), exchanged, lambda operand: operand, (state, slots))


def _resample(algorithm: Filter, state: SMCState, key: Array) -> tuple[SMCState, Array, Array]:
    """Replace the trajectories of the problems whose effective sample size is low."""
    rule, (n, b) = algorithm.resample, state.log_weights.shape
    own = jnp.broadcast_to(jnp.arange(n, dtype=jnp.int32)[:, None], (n, b))
    if rule is None:
        return state, own, jnp.zeros(b, bool)
    due = rule.due(state.ess, n) & state.weighs & rule.acts_at(state.t)
    if algorithm.masked:
        due = due & (state.done == 0)

    def resampled(moving: Any) -> tuple[Any, Array]:
        uniforms = draw_uniforms(rule.scheme, state.log_weights, key)
        drawn = ancestors_over(rule.scheme, state.log_weights, uniforms, algorithm.mesh)
        ancestors = spread(jnp.where(due, drawn, own), algorithm.mesh)
        return gather_over(moving, ancestors, algorithm.mesh), ancestors

    # Where nobody is due, nothing is copied.
    moving = (state.latent, None if algorithm.potential is None else state.log_psi, state.halted, state.last)
    moving, ancestors = jax.lax.cond(due.any(), resampled, lambda moving: (moving, own), moving)
    latent, log_psi, halted, last = moving
    log_weights = jnp.where(due & ~all_dead(state.log_weights), -math.log(n), state.log_weights)
    state = state._replace(latent=latent, halted=halted, last=last, log_weights=log_weights)
    state = state if log_psi is None else state._replace(log_psi=log_psi)
    return _rejuvenated(algorithm, state, due, ancestors), ancestors, due


def _rejuvenated(algorithm: Filter, state: SMCState, due: Array, ancestors: Array) -> SMCState:
    """Move the trajectories of the problems that were resampled."""
    move, last = algorithm.rejuvenate, state.last
    if move is None or last is None:
        return state
    seen = Rejuvenation(algorithm, state, due, ancestors, last, _aside(state.key, state.t))
    stay = (state.latent, state.log_psi, last.noise)
    latent, log_psi, noise = jax.lax.cond(due.any(), lambda: move(seen), lambda: stay)
    return state._replace(latent=latent, log_psi=log_psi, last=last._replace(noise=noise))


def _aside(key: Array, t: Any) -> Array:
    """Of step t, for the moves of rejuvenation: another one than `_keys` gives."""
    return jax.random.fold_in(jax.random.fold_in(key, t), 4)


def _stand_still(
    state: SMCState, latent: Any, log_factor: Array | None, sites: Mapping[str, Array], kl: Array | None
) -> tuple[Any, Array | None, Mapping[str, Array], Array | None]:
    """A problem that has ended, and a trajectory that has halted, stay where they are and weigh nothing."""
    frozen = jnp.broadcast_to(state.done > 0, state.log_weights.shape)
    if state.halted is not None:
        frozen = frozen | state.halted
    latent = where(frozen, state.latent, latent)
    log_factor = None if log_factor is None else jnp.where(frozen, 0.0, log_factor)
    sites = {name: jnp.where(frozen, 0.0, factor) for name, factor in sites.items()}
    return latent, log_factor, sites, None if kl is None else jnp.where(frozen, 0.0, kl)


def _finish(algorithm: Filter, state: SMCState, view: View) -> tuple[View, Array | None, Array]:
    """Which trajectories halt now, and for which problems this depth step is the last."""
    running, halted = state.done == 0, state.halted
    ending = jnp.broadcast_to(view.depth <= view.t, running.shape)
    if halted is not None:
        assert algorithm.halt_above is not None
        if "halt" not in view.heads:
            raise ValueError(f"halt_probability needs a halt head, and {type(view.model).__name__} has none")
        halted = halted | ((view.heads["halt"] > algorithm.halt_above) & running)
        ending = ending | halted.all(0)
        view.depth = jnp.where(ending, view.t, view.depth)  # so that a look-ahead is released, an annealing ends
    return view, halted, jnp.where(running & ending, view.t, state.done).astype(state.done.dtype)


def _weigh(algorithm: Filter, state: SMCState, view: View, log_factor: Array | None) -> tuple[Array, Array | None]:
    """Log psi_t, and the incremental log weight `[N, B]`; None where nothing weighs."""
    if algorithm.potential is None:
        return state.log_psi, log_factor
    log_psi = algorithm.potential(view)
    if not isinstance(log_psi, Array):
        raise ValueError(f"the potential must return log psi as an array, got {type(log_psi).__name__}")
    if log_psi.shape != state.log_psi.shape:
        raise ValueError(
            f"the potential must return log psi {list(state.log_psi.shape)}, got shape {list(log_psi.shape)}"
        )
    if algorithm.potential.accumulates:
        log_psi = state.log_psi + log_psi
    log_psi = jnp.where(jnp.isneginf(state.log_psi), -jnp.inf, log_psi)  # absorbing
    before = jnp.where(jnp.isneginf(state.log_psi), 0.0, state.log_psi)  # -inf - (-inf) is never computed
    ratio = log_psi - before
    if algorithm.masked:
        log_psi = jnp.where(state.done > 0, state.log_psi, log_psi)
        ratio = jnp.where(state.done > 0, 0.0, ratio)
    return log_psi, ratio if log_factor is None else log_factor + ratio


def _reweigh(state: SMCState, log_increment: Array, t: Any) -> tuple[SMCState, Array]:
    """Multiply the weights, normalise them, and take log Z and the effective sample size along."""
    log_weights, log_total, ess = reweighed(state.log_weights, log_increment)
    dead, nan, now = jnp.isneginf(log_total), jnp.isnan(log_total), jnp.maximum(t, 1)
    log_total = log_total.astype(state.log_normalizer.dtype)
    marked = state._replace(
        log_weights=log_weights,
        ess=ess,
        log_normalizer=state.log_normalizer + log_total,
        dead=jnp.where(dead & (state.dead == 0), now, state.dead).astype(jnp.int32),
        nan=jnp.where(nan & (state.nan == 0), now, state.nan).astype(jnp.int32),
    )
    return marked, log_total


def reweighed(log_weights: Array, log_increment: Array) -> tuple[Array, Array, Array]:
    """Normalise `log_weights + log_increment`.

    Args:
        log_weights: normalised, `[N, B]`.
        log_increment: `[N, B]`.

    Returns:
        Normalised log weights `[N, B]` (-inf where all vanished), the log of their sum `[B]` and the effective
        sample size 1 / Σ W² `[B]` (0 where all vanished).
    """
    unnormalised = log_weights + log_increment
    top = unnormalised.max(0)
    dead = jnp.isneginf(top)
    top = jax.lax.stop_gradient(jnp.where(dead, 0.0, top))

    def relative(unnormalised: Array, top: Array) -> tuple[Array, Array]:
        # exp is slow where its result is subnormal, and exp(-80) adds nothing to a sum of at least 1.
        weights = jnp.exp((unnormalised - top).clip(min=-80.0))
        return weights, jnp.square(weights)

    weights, squares = apart(relative, ~jnp.isnan(top).all(), unnormalised, top)
    total = _sum(weights)
    log_total = top + jnp.log(total)
    ess = jnp.square(total) / _sum(squares)
    weighed = unnormalised - jnp.where(dead, 0.0, log_total)
    return weighed, jnp.where(dead, -jnp.inf, log_total), jnp.where(dead, 0.0, ess)


def _sum(weights: Array) -> Array:
    """Over the particles `[N, B]`, in blocks: added up one by one, a million float32 numbers lose three digits."""
    n, b = weights.shape
    size = 1 << (n.bit_length() // 2)
    return jnp.pad(weights, ((0, -n % size), (0, 0))).reshape(-1, size, b).sum(1).sum(0)


# -- run ------------------------------------------------------------------------------------------------------


def run(
    model: Any,
    *args: Any,
    width: int = 20,
    depth: Any = None,
    key: Any = 0,
    potential: Potential | Callable[[View], Array] | None = None,
    resample: Scheme | Adaptive | None = systematic,
    ess_threshold: float = 0.5,
    guide: Any = None,
    evidence: Any = None,
    problems: int | None = None,
    keep: Keep | None = None,
    collect: Collect | None = None,
    halt_probability: float | None = None,
    islands: int = 1,
    strict: bool = False,
    decode: Literal["mode", "sample"] = "mode",
    rejuvenate: Rejuvenate | None = None,
    start: Trajectories | None = None,
    task: str = "",
    callback: Callable[[SMCState, SMCInfo], Any] | None = None,
    store: str | Path | None = None,
    mesh: Mesh | None = None,
    exchange: Exchange | None = None,
) -> Trajectories:
    """Filter `width` trajectories of every problem through `depth` steps.

    Args:
        model: a `Chain`; or an object with NumPyro `init(*args) -> state` and `step(state, t, *args) -> state` that
            samples under our plates (`max_plate_nesting` plates of its own stand to their right); or a
            `PlainModel`. t counts from 0, and is a traced number.
        *args: for a chain the problems x; for other models what their functions take. With several problems every
            array among them is `[B, ...]`, so a step observes `y[..., t]`. NaN in an observation of a NumPyro model
            means that it was not made; elsewhere NaN is an error.
        width: N, particles a problem (an island).
        depth: S, depth steps; integers `[B]` where series differ in length: a problem that has ended stays.
            None: 16 for a chain; other models must be told.
        key: an integer seed, or a JAX key; the same key, the same numbers, on however many devices.
        potential: log psi of the view, `probgram.inference.on_jax.potentials`; None: what the model observes alone.
        resample: a scheme, or `adaptive(scheme, ...)` with its own threshold and depths; None: never, so that
            weights accumulate (importance sampling).
        ess_threshold: resample a problem when its effective sample size is at most this share of N; from 1 on at
            every step.
        guide: proposes instead of the prior: for a chain a `Guide`, for other NumPyro models an object with `init`
            and `step` that samples the same sites. p / q alone never triggers resampling: an observation in the
            step or a look-ahead potential does.
        evidence: what a chain's guide sees, answers `[B, L]`.
        problems: B, for models that are no chains; None: 1.
        keep: "paths" records answers, heads, weights and ancestors at every depth step (the default for chains; a
            model without answers records its states); "summary" log Z, effective sample size and what `collect`
            gives, flat in depth (the default for others); "last" the last depth step only; "latents" adds the
            states to "paths".
        collect: name -> `(state, weights [N, B]) -> [B, ...]`, recorded at every step after reweighting.
        halt_probability: freeze a trajectory once its halt head is so sure. Where all of a problem are frozen, that
            depth step is its last: stopping early equals running on.
        islands: so many independent filters a problem, pooled at the end: Z is their mean, weights ∝ Z_i W_i.
        strict: raise where all weights of a problem vanish, or one is NaN, and name the site: when the run is over,
            with `callback` or `store` at once.
        decode: "mode" takes the most probable answer, "sample" draws it.
        rejuvenate: moves resampled trajectories, `probgram.inference.on_jax.rejuvenation`.
        start: go on from a run of the same model, width, key and potential, `depth` steps further. Rejuvenation
            does not act before the first of them.
        task: name that the result carries.
        callback: called after every depth step, which is then a program of its own, and waited for; return True to
            stop.
        store: a folder `*.zarr` that takes every depth step as soon as it is done, as for `sample`; with
            `keep="paths"` or `"latents"`, whose last state makes that a run can go on. Each step is then a program
            of its own, too.
        mesh: devices that share particles and problems out among them, `device_mesh(particles=…, problems=…)`;
            None: one device. Resampling stays global: the ancestors do not depend on the number of devices.
        exchange: how islands exchange particles, `islands.ring(every=4, share=0.25)`; None: they do not.

    Returns:
        The weighted trajectories: values after reweighting, before the next resampling. With `store`, the last
        depth step, and log Z, effective sample size and what was collected of all: the whole is in the folder.

    Raises:
        ValueError: a choice makes no sense, or a state has a wrong shape.
        FilterError: a weight became NaN; with `strict` also where all weights of a problem vanished.
        CheckpointError: store cannot be written, exists already, or holds another run than start.
    """
    depth, keep = depth_or_default(depth, isinstance(model, Chain)), checked_keep(keep, isinstance(model, Chain))
    key = as_key(key)
    weights = _fingerprint(model)
    offset = continuation.offset(start, width, seed_of(key), weights, islands, potential)
    further = depth if start is None else checked_depth(depth, start.problems) + offset
    algorithm = _chosen(
        model,
        *args,
        width=width,
        depth=further,
        potential=potential,
        resample=resample,
        ess_threshold=ess_threshold,
        guide=guide,
        evidence=evidence,
        problems=problems,
        islands=islands,
        halt_probability=halt_probability,
        strict=strict,
        decode=decode,
        rejuvenate=rejuvenate,
        mesh=mesh,
        exchange=exchange,
    )
    resumed = None
    if start is not None:
        expected = eqx.filter_eval_shape(lambda key: init(algorithm.ready(), key).latent, key)
        resumed = SMCState(**continuation.resumed(algorithm, start, key, expected))
    steps, of = int(np.max(further)) - offset, dict(collect or {})
    record = recording.Record(
        algorithm,
        keep,
        x=None if algorithm.x is None else np.asarray(args[0]).reshape(algorithm.x.shape),
        task=task,
        settings={
            "seed": seed_of(key),
            "weights": weights,
            "potential": name_of(potential),
            "halt_probability": halt_probability,
        },
        growing=opened(store, start, keep),
        taken=offset,
        last=offset + steps,
    )
    if callback is None and store is None:
        record.add(*_filtered(algorithm, key, resumed, steps, keep, of))
    else:
        algorithm, state, _, begun = _begun(algorithm, key, resumed)
        check_factors(begun.get("begun", {}), 0, islands)
        for taken in range(offset + 1, offset + steps + 1):
            state, info, *rows = _watched(algorithm, state, keep, of)
            record.add(recording.pooled_state(state, islands), *rows)
            del rows  # they are on the host, and the next step wants their memory
            stopped = callback is not None and callback(state, info)
            if stopped or (taken % FLAG_EVERY == 0 and record.flags["done"].all()):
                break
    report_dead(record.flags["dead"], islands)
    return record.trajectories()


@eqx.filter_jit
def _filtered(
    algorithm: Filter, key: Array, resumed: SMCState | None, steps: int, keep: str, collect: Collect
) -> tuple[SMCState, recording.Row, recording.Row]:
    """The whole run: the last state, figures `[S, B]` and paths `[S or 1, N, B, ...]`, islands put together."""
    islands, whole = algorithm.islands, keep in ("paths", "latents")
    algorithm, state, kl, begun = _started(algorithm, key, resumed)

    def body(carry: Any, _: None) -> Any:
        state, info = step(algorithm, carry[0])
        row = recording.figures(state, info, collect, islands)
        states = _with_states(keep, info.view)
        kept = recording.path(state, info.view, info.ancestors, info.kl, states) if whole else {}
        return (state, info.kl), (row, kept)

    (state, kl), (figures, paths) = jax.lax.scan(body, (state, kl), length=steps)
    if not whole:
        n, b = state.log_weights.shape
        own = jnp.broadcast_to(jnp.arange(n, dtype=jnp.int32)[:, None], (n, b))
        view = algorithm.view(state.latent, None, state.t, state.key)
        paths = jax.tree.map(lambda leaf: leaf[None], recording.path(state, view, own, kl, False))
    figures, paths = recording.together(figures, paths, islands, numbered=algorithm.exchange is not None)
    return recording.pooled_state(state, islands), figures | begun, paths


@eqx.filter_jit
def _watched(
    algorithm: Filter, state: SMCState, keep: str, collect: Collect
) -> tuple[SMCState, SMCInfo, recording.Row, recording.Row]:
    """One depth step as a program of its own: all that `step` gives, and rows as those of `_filtered`."""
    state, info = step(algorithm, state)
    figures = recording.figures(state, info, collect, algorithm.islands)
    path = recording.path(state, info.view, info.ancestors, info.kl, _with_states(keep, info.view))
    figures, path = jax.tree.map(lambda leaf: leaf[None], (figures, path))
    numbered = algorithm.exchange is not None
    return state, info, *recording.together(figures, path, algorithm.islands, numbered)


def _started(
    algorithm: Filter, key: Array, resumed: SMCState | None
) -> tuple[Filter, SMCState, Array | None, recording.Row]:
    """What a loop over depth begins with: the state, an empty KL, and with `strict` what `init` observed."""
    algorithm = algorithm.ready()
    state = init(algorithm, key) if resumed is None else resumed
    begun = {} if state.faults is None else {"begun": jax.tree.map(lambda leaf: leaf[None], state.faults)}
    return algorithm, *settled(lambda state: _carried(algorithm, state), state), begun


_begun = eqx.filter_jit(_started)


def _with_states(keep: str, view: View) -> bool:
    return keep == "latents" or (keep == "paths" and not view.has_answers)


def _carried(algorithm: Filter, state: SMCState) -> tuple[SMCState, Array | None]:
    state, info = step(algorithm, state)
    return state, info.kl


def _fingerprint(model: Any) -> str | None:
    arrays = model.state_dict() if isinstance(model, Chain) else {}
    return checkpoint.fingerprint(arrays) if arrays else None
