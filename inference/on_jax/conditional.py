"""Conditional SMC and particle Gibbs: a filter in which one trajectory, the reference, is sure to survive.

    slot 0 draws the reference's noise at every step and is its own ancestor; all other slots filter as usual
    the new path is one final trajectory, drawn in proportion to its weight

Run on a draw of the smoothing law, this returns a draw of the smoothing law, whatever the width; run again and
again it converges to it (`particle_gibbs`). What is retained is the *noise path*, the value of every latent site at
every step: the states are simulated again from it, so chains with deterministic parts, which have no transition
density, are served too.

The twin of `probgram.inference.conditional`: a sweep is one compiled program, and the next one runs it again.

Slot 0 must be kept by a scheme of its own. Overwriting one slot of an unconditional draw changes the law of the
others, and the result is wrong.

Sources: Andrieu, Doucet and Holenstein, "Particle Markov chain Monte Carlo methods", 2010, section 4.3; Chopin and
Singh, "On particle Gibbs sampling", 2015, section 3 (schemes; algorithm 4 is the systematic one); Lindsten, Jordan
and Schön, "Particle Gibbs with ancestor sampling", 2014.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from numbers import Integral
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
from jax import Array

from probgram.inference.on_jax import resampling, smc
from probgram.inference.on_jax.faults import all_dead, check_weights, report_dead
from probgram.inference.on_jax.genealogy import transition_density
from probgram.inference.on_jax.handlers import as_key
from probgram.inference.on_jax.kernels import PlainKernel, PlainModel
from probgram.inference.on_jax.potentials import Potential, View
from probgram.inference.on_jax.resampling import Adaptive, Scheme, adaptive, draw_slots, widest
from probgram.inference.on_jax.settling import settled

Noise = Mapping[str, Array]


class Path(NamedTuple):
    """One trajectory a problem."""

    noise: tuple[Noise, Noise]  # name of the latent site -> value: of init [B, ...], of the steps [S, B, ...]
    states: Any  # leaves [S, B, ...]


class Conditional(NamedTuple):
    """What a conditional filter returns."""

    path: Path  # freshly drawn; the reference of the next one
    log_normalizer: Array  # log Z_t, [S, B]; unbiased (as Z) only without a reference
    ess: Array  # effective sample size, [S, B]
    renewed: Array  # where the drawn path has left the reference, bool [S, B]


# -- schemes --------------------------------------------------------------------------------------------------


def _scheme(rows: Callable[[int], int]) -> Callable[[Callable[[Array, Array], Array]], Scheme]:
    def mark(function: Callable[[Array, Array], Array]) -> Scheme:
        function.rows, function.conditional = rows, True  # type: ignore[attr-defined]
        return function  # type: ignore[return-value]

    return mark


@_scheme(lambda n: n - 1)
def multinomial(log_weights: Array, uniforms: Array) -> Array:
    """Slot 0 keeps its particle, the other N - 1 draw independently."""
    own = jnp.zeros((1, uniforms.shape[1]), jnp.int32)
    return _keeping(jnp.concatenate([own, draw_slots(log_weights, uniforms)]), log_weights)


@_scheme(lambda n: 2 * n + 1)
def killing(log_weights: Array, uniforms: Array) -> Array:
    """Killing (slot i keeps its particle with probability W_i / max W, else draws), given the retained offspring.

    The offspring of particle 0 that is retained stands in slot k with probability proportional to P(a_k = 0), which
    is W_0 (1 - W_k / max W), and W_0 / max W more for k = 0. The other slots draw as ever; then k and 0 change
    places, which the scheme allows because it does not know one slot from another.
    """
    n, b = log_weights.shape
    weights = resampling.normalised(log_weights)
    most = weights.max(0)
    drawn = resampling.killing(log_weights, uniforms[: 2 * n])
    chance = 1 - weights / most
    chance = chance.at[0].add(1 / most)
    slot = resampling.search(chance, uniforms[2 * n :])[0]  # k, [B]
    return _keeping(drawn.at[slot, jnp.arange(b)].set(drawn[0]), log_weights)


@_scheme(lambda n: 2)
def systematic(log_weights: Array, uniforms: Array) -> Array:
    """Systematic, turned in a circle, given that slot 0 keeps its particle (Chopin and Singh, algorithm 4).

    Unconditionally the N ordered ancestors are turned by a uniform number of slots, so that each slot's ancestor is
    i with probability W_i. Given that slot 0 has ancestor 0, the offset u has a density proportional to the number
    of particle 0's copies, ⌊NW_0⌋ + 1 for u below the fractional part of NW_0 and ⌊NW_0⌋ above; and each of these
    copies is as likely to stand in slot 0.
    """
    n = len(log_weights)
    expected = n * resampling.normalised(log_weights)[0]
    whole = resampling.whole_part(expected)
    part = (expected - whole).clip(min=0)
    tiny = jnp.finfo(expected.dtype).tiny
    below = jnp.where(expected > 0, (whole + 1) * part / expected.clip(min=tiny), 0.0)  # P(u < part)
    v = uniforms[0]
    inside = v / below.clip(min=tiny) * part
    offset = jnp.where(v < below, inside, part + (v - below) / (1 - below).clip(min=tiny) * (1 - part))
    ordered = resampling.systematic(log_weights, offset[None])
    turn = (uniforms[1] * (ordered == 0).sum(0)).astype(jnp.int32)  # which of the copies, [B]
    return _keeping(jnp.take_along_axis(ordered, _turned(n, turn), 0), log_weights)


def _turned(n: int, turn: Array) -> Array:
    """Slot j of the circle begun at `turn` `[B]`: (j + turn) mod N, `[N, B]`."""
    return (jnp.arange(n, dtype=jnp.int32)[:, None] + turn) % n


def _keeping(ancestors: Array, log_weights: Array) -> Array:
    """The reference in slot 0, even if its weight underflowed; a problem without weights keeps every slot."""
    own = jnp.arange(len(ancestors), dtype=jnp.int32)[:, None]
    return jnp.where((own == 0) | all_dead(log_weights), own, ancestors)


def _keeping_another(scheme: Scheme, kept: Array) -> Scheme:
    """The scheme that puts particle `kept` `[B]` into slot 0: particles are turned until it stands there."""

    @_scheme(scheme.rows)
    def turned(log_weights: Array, uniforms: Array) -> Array:
        particle = _turned(len(log_weights), kept)
        ancestors = scheme(jnp.take_along_axis(log_weights, particle, 0), uniforms)
        return jnp.take_along_axis(particle, ancestors, 0)

    return turned


# -- the noise path -------------------------------------------------------------------------------------------


class retained(numpyro.primitives.Messenger):  # noqa: N801 - handlers are lower case in NumPyro
    """Put the reference's noise into slot 0 of every latent site, and keep what all slots drew.

    Enter it outermost, inside the scan's body: it sees each site as the plates have expanded it, after its value
    was drawn and before it is weighed. The particles are the first dimension of every value, whatever plates the
    model has.

    Attributes:
        drawn: name of the site -> value `[N, B, ...]`, slot 0 included.
    """

    def __init__(self, where: str, reference: Noise | None) -> None:
        super().__init__()
        self.where, self.reference = where, reference
        self.drawn: dict[str, Array] = {}

    def __enter__(self) -> "retained":
        """Start with nothing drawn."""
        super().__enter__()
        return self

    def put(self, name: str, value: Array) -> Array:
        """`value` `[N, B, ...]` with the reference in slot 0."""
        if self.reference is not None:
            if name not in self.reference:
                raise ValueError(f"the reference has no value for the site {name!r} of {self.where}")
            kept = self.reference[name]
            if kept.shape != value.shape[1:]:
                raise ValueError(
                    f"the reference's {name!r} of {self.where} must be {list(value.shape[1:])}, "
                    f"got {list(kept.shape)}"
                )
            value = value.at[0].set(kept.astype(value.dtype))
        self.drawn[name] = value
        return value

    def plain(self, model: PlainModel) -> PlainModel:
        """The same for a `PlainModel`, whose noise is the site "noise"."""

        def init(noise: Array, *args: Any) -> Any:
            return model.init(self.put("noise", noise), *args)

        def step(state: Any, t: Any, noise: Array, *args: Any) -> tuple[Any, Array]:
            return model.step(state, t, self.put("noise", noise), *args)

        return replace(model, init=init, step=step)

    def process_message(self, msg: dict[str, Any]) -> None:
        """Exchange slot 0."""
        if msg["type"] == "sample" and not msg["is_observed"] and msg["value"] is not None:
            msg["value"] = self.put(msg["name"], msg["value"])


# -- the algorithms -------------------------------------------------------------------------------------------


def conditional(
    model: Any,
    *args: Any,
    reference: Path | tuple[Noise, Noise] | None = None,
    width: int = 20,
    depth: int,
    key: Any = 0,
    resample: Scheme | Adaptive | None = multinomial,
    ess_threshold: float = 0.5,
    ancestor_sampling: bool = False,
    potential: Potential | Callable[[View], Array] | None = None,
    guide: Any = None,
    evidence: Any = None,
    problems: int | None = None,
) -> Conditional:
    """Filter with a reference trajectory that is sure to survive, then draw one of the final trajectories.

    If the reference is a draw of the smoothing law, so is the path returned.

    Args:
        model: a `Chain`, an object with NumPyro `init` and `step`, or a `PlainModel`, as for `smc.run`.
        *args: its arguments; for a chain the problems x.
        reference: the `path` of a run before, or its noise: for init, and stacked for the S steps, a mapping from
            the name of every latent site ("noise" for a `PlainModel`) to its value `[B, ...]`, `[S, B, ...]`.
            None: an ordinary filter, resampled systematically, whose path starts particle Gibbs.
        width: N, the reference included.
        depth: S, depth steps.
        key: an integer seed, or a JAX key; the same key, the same numbers.
        resample: a scheme of this file, or `adaptive(scheme, ...)`; None: never.
        ess_threshold: resample a problem when its effective sample size is at most this share of N.
        ancestor_sampling: draw the reference's ancestor anew where its problem is resampled, in proportion to
            W_t^i p(next | state_t^i): paths mix far better over long series. The model says `log_transition`, its
            state is the noise itself (one latent site a step), and what a step observes depends on its new state
            alone.
        potential: as for `smc.run`.
        guide: likewise.
        evidence: likewise.
        problems: likewise.

    Returns:
        The new path, and figures of the filter.

    Raises:
        TypeError: an unconditional scheme.
        ValueError: a reference that does not fit, or ancestor sampling for a model that cannot have it.
        FilterError: a weight became NaN.
    """
    if isinstance(depth, bool) or not isinstance(depth, Integral):
        raise ValueError(f"depth must be one integer for all problems, got {depth!r}")
    noise = reference.noise if isinstance(reference, Path) else reference
    rule = _rule(resample, ess_threshold)
    if noise is None:
        rule = None if rule is None else replace(rule, scheme=resampling.systematic)
    else:
        steps = {len(value) for value in noise[1].values()}
        if steps - {int(depth)}:
            raise ValueError(f"the reference has {min(steps)} steps, and depth is {depth}")
        if width < 2:
            raise ValueError(f"width must be at least 2, one slot is the reference's, got {width}")
    if ancestor_sampling:
        transition_density(model, "ancestor sampling")
    algorithm = smc.build(
        model,
        *args,
        width=width,
        depth=depth,
        potential=potential,
        resample=None,
        guide=guide,
        evidence=evidence,
        problems=problems,
    )
    algorithm = replace(algorithm, resample=rule)
    found, nan, dead, state_is_noise = _sweep(algorithm, as_key(key), noise, int(depth), ancestor_sampling)
    check_weights(jax.device_get(nan), 1)
    report_dead(jax.device_get(dead), 1)
    if ancestor_sampling and not bool(state_is_noise):
        raise ValueError(_NOT_NOISE)
    return found


def particle_gibbs(
    model: Any,
    *args: Any,
    iterations: int,
    reference: Path | tuple[Noise, Noise] | None = None,
    update: Callable[[Path, Any], Any] | None = None,
    key: Any = 0,
    **choices: Any,
) -> Any:
    """Run conditional SMC again and again, each on the path before: draws of the smoothing law, in the long run.

    Args:
        model: as for `conditional`.
        *args: likewise.
        iterations: conditional sweeps, each of which gives a path.
        reference: the path to start from; None: one that an ordinary filter draws, which is not among the paths.
        update: `(path, model) -> model` after every sweep, a move of the parameters given the noise path, where
            they are to be inferred too; note them there. States are simulated again under the new model. None:
            fixed.
        key: an integer seed, or a JAX key; the same key, the same numbers.
        **choices: `width`, `depth`, `resample`, `ancestor_sampling` and the others of `conditional`.

    Returns:
        The states of every path, leaves `[iterations, S, B, ...]`.

    Raises:
        ValueError: fewer than one iteration, and whatever `conditional` raises.
    """
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    key, paths = as_key(key), []
    if reference is None:
        reference = conditional(model, *args, key=jax.random.fold_in(key, 0), **choices).path
    for iteration in range(1, iterations + 1):
        sweep = conditional(model, *args, reference=reference, key=jax.random.fold_in(key, iteration), **choices)
        reference = sweep.path
        paths.append(reference.states)
        if update is not None:
            model = update(reference, model)
    return jax.tree.map(lambda *rows: jnp.stack(rows), *paths)


def _rule(resample: Scheme | Adaptive | None, ess_threshold: float) -> Adaptive | None:
    if resample is None:
        return None
    rule = resample if isinstance(resample, Adaptive) else adaptive(resample, ess_threshold)
    if not getattr(rule.scheme, "conditional", False):
        name = getattr(rule.scheme, "__name__", repr(rule.scheme))
        raise TypeError(
            "conditional SMC needs a scheme of probgram.inference.on_jax.conditional, which keeps slot 0, "
            f"got {name}"
        )
    return rule


@eqx.filter_jit
def _sweep(
    algorithm: smc.Filter, key: Array, noise: tuple[Noise, Noise] | None, depth: int, ancestor_sampling: bool
) -> tuple[Conditional, Array, Array, Array]:
    """One conditional filter; the depths of NaN and dead weights, and whether the states are their noise."""
    first, later = (None, None) if noise is None else noise
    rule, steps, last = algorithm.resample, *jax.random.split(key)

    def under(handler: retained) -> smc.Filter:
        kernel = algorithm.kernel
        if isinstance(kernel, PlainKernel):
            kernel = replace(kernel, model=handler.plain(kernel.model))
        return replace(algorithm, kernel=kernel)

    with retained("init", first) as handler:
        state = smc.init(under(handler), steps)
    start = handler.drawn

    def body(state: smc.SMCState, reference: Noise | None) -> tuple[smc.SMCState, Any]:
        with retained("a step", reference) as handler:
            now = under(handler)
            if ancestor_sampling and reference is not None and rule is not None:
                kept = _ancestor(algorithm, state, reference)
                kept = jnp.where(state.t > 0, kept, 0)
                now = replace(now, resample=replace(rule, scheme=_keeping_another(rule.scheme, kept)))
            state, info = smc.step(now, state)
        same = _state_is_noise(state.latent, handler.drawn) if ancestor_sampling else jnp.asarray(True)
        return state, (handler.drawn, state.latent, info.ancestors, state.log_normalizer, state.ess, same)

    state, _ = settled(lambda state: (body(state, _at(later, 0))[0], None), state)
    state, rows = jax.lax.scan(body, state, later, length=depth)
    drawn, states, ancestors, log_normalizer, ess, same = rows
    path, slots = _draw(state.log_weights, start, drawn, states, ancestors, last)
    renewed = slots != 0 if noise is not None else jnp.ones_like(slots, dtype=bool)
    return Conditional(path, log_normalizer, ess, renewed), state.nan, state.dead, same.all()


def _at(noise: Noise | None, step: int) -> Noise | None:
    return None if noise is None else {name: value[step] for name, value in noise.items()}


def _draw(
    log_weights: Array, start: Noise, drawn: Noise, states: Any, ancestors: Array, key: Array
) -> tuple[Path, Array]:
    """One final trajectory a problem, in proportion to its weight, and the slots `[S, B]` that it came through."""
    b = log_weights.shape[1]
    slot, problem = draw_slots(log_weights, jax.random.uniform(key, (1, b), widest()))[0], jnp.arange(b)

    def back(slot: Array, before: Array) -> tuple[Array, Array]:
        return before[slot, problem], slot

    slot, slots = jax.lax.scan(back, slot, ancestors, reverse=True)
    step = jnp.arange(len(slots))[:, None]
    noise = {name: value[slot, problem] for name, value in start.items()}
    path = jax.tree.map(lambda leaf: leaf[step, slots, problem], (dict(drawn), states))
    return Path((noise, path[0]), path[1]), slots


# -- ancestor sampling ----------------------------------------------------------------------------------------

_NOT_NOISE = (
    "ancestor sampling needs a model whose state is the value of its one latent site: "
    "here another ancestor would change the retained states themselves"
)


def _ancestor(algorithm: smc.Filter, state: smc.SMCState, noise: Noise) -> Array:
    """Which particle the reference goes on from, int32 `[B]`, in proportion to W^i / psi^i p(next | i)."""
    assert algorithm.kernel is not None
    leaves = jax.tree.leaves(state.latent)
    value = next(iter(noise.values()))
    if len(leaves) != 1 or len(noise) != 1 or leaves[0].shape[1:] != value.shape:
        raise ValueError(_NOT_NOISE)
    after = jax.tree.map(lambda leaf: value[None].astype(leaf.dtype), state.latent)
    transition = transition_density(algorithm.given.model, "ancestor sampling")
    log_density = transition(state.latent, after, state.t, *algorithm.kernel.args)
    log_weights = state.log_weights
    if algorithm.potential is None or not algorithm.potential.accumulates:
        # A potential telescopes: what comes after holds psi of the last step alone.
        alive = ~jnp.isneginf(log_weights)
        log_weights = jnp.where(alive, log_weights - jnp.where(alive, state.log_psi, 0.0), -jnp.inf)
    key = jax.random.fold_in(jax.random.fold_in(state.key, state.t), 5)
    uniforms = jax.random.uniform(key, (1, log_weights.shape[1]), widest())
    return draw_slots(log_weights + log_density, uniforms)[0]


def _state_is_noise(latent: Any, drawn: Noise) -> Array:
    leaves, values = jax.tree.leaves(latent), list(drawn.values())
    if len(leaves) != 1 or len(values) != 1 or leaves[0].shape != values[0].shape:
        return jnp.asarray(False)
    return (leaves[0] == values[0].astype(leaves[0].dtype)).all()
