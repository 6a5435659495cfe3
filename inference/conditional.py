"""Conditional SMC and particle Gibbs: a filter in which one trajectory, the reference, is sure to survive.

    slot 0 draws the reference's noise at every step and is its own ancestor; all other slots filter as usual
    the new path is one final trajectory, drawn in proportion to its weight

Run on a draw of the smoothing law, this returns a draw of the smoothing law, whatever the width; run again and
again it converges to it (`particle_gibbs`). What is retained is the *noise path*, the value of every latent site at
every step: the states are simulated again from it, so chains with deterministic parts, which have no transition
density, are served too.

Slot 0 must be kept by a scheme of its own. Overwriting one slot of an unconditional draw changes the law of the
others, and the result is wrong.

Sources: Andrieu, Doucet and Holenstein, "Particle Markov chain Monte Carlo methods", 2010, section 4.3; Chopin and
Singh, "On particle Gibbs sampling", 2015, section 3 (schemes; algorithm 4 is the systematic one); Lindsten, Jordan
and Schön, "Particle Gibbs with ancestor sampling", 2014.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any, NamedTuple

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.messenger import Messenger
from torch import Tensor

from probgram import state as trees
from probgram.inference import resampling, smc
from probgram.inference.faults import all_dead, report_dead, still_running
from probgram.inference.genealogy import draw_slots, transition_density
from probgram.inference.handlers import evaluating, mix
from probgram.inference.kernels import PlainModel
from probgram.inference.potentials import Potential, View
from probgram.inference.progress import ProgressBar
from probgram.inference.resampling import Adaptive, Scheme, adaptive
from probgram.state import widest

Noise = Mapping[str, Tensor]


class Path(NamedTuple):
    """One trajectory a problem."""

    noise: tuple[Noise, ...]  # of init, then of each step: name of the latent site -> value [B, ...]
    states: Any  # leaves [S, B, ...]


class Conditional(NamedTuple):
    """What a conditional filter returns."""

    path: Path  # freshly drawn; the reference of the next one
    log_normalizer: Tensor  # log Z_t, [S, B]; unbiased (as Z) only without a reference
    ess: Tensor  # effective sample size, [S, B]
    renewed: Tensor  # where the drawn path has left the reference, bool [S, B]


# -- schemes --------------------------------------------------------------------------------------------------


def _scheme(rows: Callable[[int], int]) -> Callable[[Callable[[Tensor, Tensor], Tensor]], Scheme]:
    def mark(function: Callable[[Tensor, Tensor], Tensor]) -> Scheme:
        function.rows, function.conditional = rows, True  # type: ignore[attr-defined]
        return function  # type: ignore[return-value]

    return mark


@_scheme(lambda n: n - 1)
def multinomial(log_weights: Tensor, uniforms: Tensor) -> Tensor:
    """Slot 0 keeps its particle, the other N - 1 draw independently."""
    cumulative = resampling.cumulative_weights(log_weights)
    own = torch.zeros(1, uniforms.shape[1], dtype=torch.long, device=uniforms.device)
    return _keeping(torch.cat([own, _drawn(cumulative, uniforms)]), log_weights)


@_scheme(lambda n: 2 * n + 1)
def killing(log_weights: Tensor, uniforms: Tensor) -> Tensor:
    """Killing (slot i keeps its particle with probability W_i / max W, else draws), given the retained offspring.

    The offspring of particle 0 that is retained stands in slot k with probability proportional to P(a_k = 0), which
    is W_0 (1 - W_k / max W), and W_0 / max W more for k = 0. The other slots draw as ever; then k and 0 change
    places, which the scheme allows because it does not know one slot from another.
    """
    n = len(log_weights)
    weights = resampling.normalised(log_weights)
    most = weights.amax(0)
    drawn = resampling.killing(log_weights, uniforms[: 2 * n])
    chance = 1 - weights / most
    chance = torch.cat([chance[:1] + 1 / most, chance[1:]])
    slot = _drawn(resampling.normalised_sum(chance), uniforms[2 * n :])  # k, [1, B]
    return _keeping(drawn.scatter(0, slot, drawn[:1]), log_weights)


@_scheme(lambda n: 2)
def systematic(log_weights: Tensor, uniforms: Tensor) -> Tensor:
    """Systematic, turned in a circle, given that slot 0 keeps its particle (Chopin and Singh, algorithm 4).

    Unconditionally the N ordered ancestors are turned by a uniform number of slots, so that each slot's ancestor is
    i with probability W_i. Given that slot 0 has ancestor 0, the offset u has a density proportional to the number
    of particle 0's copies, ⌊NW_0⌋ + 1 for u below the fractional part of NW_0 and ⌊NW_0⌋ above; and each of these
    copies is as likely to stand in slot 0.
    """
    n = len(log_weights)
    expected = n * resampling.normalised(log_weights)[0]
    whole = resampling.whole_part(expected)
    part = (expected - whole).clamp(min=0)
    below = torch.where(expected > 0, (whole + 1) * part / expected, 0.0)  # P(u < part)
    v = uniforms[0]
    offset = torch.where(v < below, v / below * part, part + (v - below) / (1 - below) * (1 - part))
    ordered = resampling.systematic(log_weights, offset[None])
    turn = (uniforms[1] * (ordered == 0).sum(0)).long()  # which of the copies, [B]
    return _keeping(ordered.gather(0, _turned(n, turn)), log_weights)


def _drawn(cumulative: Tensor, uniforms: Tensor) -> Tensor:
    return resampling.search(cumulative, uniforms)


def _turned(n: int, turn: Tensor) -> Tensor:
    """Slot j of the circle begun at `turn` `[B]`: (j + turn) mod N, `[N, B]`."""
    return (torch.arange(n, device=turn.device)[:, None] + turn) % n


def _keeping(ancestors: Tensor, log_weights: Tensor) -> Tensor:
    """The reference in slot 0, even if its weight underflowed; a problem without weights keeps every slot."""
    own = torch.arange(len(ancestors), device=ancestors.device)[:, None]
    return torch.where((own == 0) | all_dead(log_weights), own, ancestors)


def _keeping_another(scheme: Scheme, kept: Tensor) -> Scheme:
    """The scheme that puts particle `kept` `[B]` into slot 0: particles are turned until it stands there."""

    @_scheme(scheme.rows)
    def turned(log_weights: Tensor, uniforms: Tensor) -> Tensor:
        particle = _turned(len(log_weights), kept)
        return particle.gather(0, scheme(log_weights.gather(0, particle), uniforms))

    return turned


# -- the noise path -------------------------------------------------------------------------------------------


class retained(Messenger):  # noqa: N801
    """Put the reference's noise into slot 0 of every latent site, and keep what all slots drew.

    Enter it outermost: it sees each site as the plates have expanded it, after its value was drawn and before it is
    weighed. The particles are the first dimension of every value, whatever plates the model has.

    Attributes:
        drawn: name of the site -> value `[N, B, ...]`, slot 0 included.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reference: Noise | None = None
        self.drawn: dict[str, Tensor] = {}
        self.step = "init"

    def at(self, step: int, reference: Sequence[Noise] | None) -> "retained":
        """Go on to step `step`, -1 for init."""
        self.step = "init" if step < 0 else f"step {step}"
        self.reference = None if reference is None else reference[step + 1]
        self.drawn = {}
        return self

    def put(self, name: str, value: Tensor) -> Tensor:
        """`value` `[N, B, ...]` with the reference in slot 0."""
        if self.reference is not None:
            if name not in self.reference:
                raise ValueError(f"the reference has no value for the site {name!r} of {self.step}")
            kept = self.reference[name]
            if kept.shape != value.shape[1:]:
                raise ValueError(
                    f"the reference's {name!r} of {self.step} must be {list(value.shape[1:])}, "
                    f"got {list(kept.shape)}"
                )
            value = torch.cat([kept[None].to(value), value[1:]])
        self.drawn[name] = value
        return value

    def plain(self, model: PlainModel) -> PlainModel:
        """The same for a `PlainModel`, whose noise is the site "noise"."""

        def init(noise: Tensor, *args: Any) -> Any:
            return model.init(self.put("noise", noise), *args)

        def step(state: Any, t: int, noise: Tensor, *args: Any) -> tuple[Any, Tensor]:
            return model.step(state, t, self.put("noise", noise), *args)

        return replace(model, init=init, step=step)

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["is_observed"] or msg["value"] is None or not isinstance(msg["fn"], TorchDistributionMixin):
            return  # the last: a plate is a site too
        msg["value"] = self.put(msg["name"], msg["value"])


# -- the algorithms -------------------------------------------------------------------------------------------


@torch.no_grad()
def conditional(
    model: Any,
    *args: Any,
    reference: Path | Sequence[Noise] | None = None,
    width: int = 20,
    depth: int,
    seed: int = 0,
    resample: Scheme | Adaptive | None = multinomial,
    ess_threshold: float = 0.5,
    ancestor_sampling: bool = False,
    potential: Potential | Callable[[View], Tensor] | None = None,
    guide: Any = None,
    evidence: Any = None,
    problems: int | None = None,
    device: torch.device | str | None = None,
) -> Conditional:
    """Filter with a reference trajectory that is sure to survive, then draw one of the final trajectories.

    If the reference is a draw of the smoothing law, so is the path returned.

    Args:
        model: a `Chain`, an object with Pyro `init` and `step`, or a `PlainModel`, as for `smc.run`.
        *args: its arguments; for a chain the problems x.
        reference: the `path` of a run before, or its noise: for init and each of the S steps a mapping from the
            name of every latent site ("noise" for a `PlainModel`) to its value `[B, ...]`. None: an ordinary
            filter, resampled systematically, whose path starts particle Gibbs.
        width: N, the reference included.
        depth: S, depth steps.
        seed: same seed, same device, same numbers.
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
        device: likewise.

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
    elif len(noise) != depth + 1:
        raise ValueError(f"the reference has {len(noise) - 1} steps, and depth is {depth}")
    elif width < 2:
        raise ValueError(f"width must be at least 2, one slot is the reference's, got {width}")
    transition = transition_density(model, "ancestor sampling") if ancestor_sampling else None
    handler = retained()
    algorithm = smc.build(
        handler.plain(model) if isinstance(model, PlainModel) else model,
        *args,
        width=width,
        depth=depth,
        potential=potential,
        resample=None,
        guide=guide,
        evidence=evidence,
        problems=problems,
        device=device,
    )
    algorithm = replace(algorithm, resample=rule)
    with evaluating(model), handler.at(-1, noise):
        state = smc.init(algorithm, seed)
    drawn, states, ancestors, figures = [handler.drawn], [], [], []
    while state.t < depth:
        if transition is not None and noise is not None and rule is not None and state.t > 0:
            kept = _ancestor(transition, algorithm, state, noise[state.t + 1])
            algorithm = replace(algorithm, resample=replace(rule, scheme=_keeping_another(rule.scheme, kept)))
        with evaluating(model), handler.at(state.t, noise):
            state, info = smc.step(algorithm, state)
        if ancestor_sampling and state.t <= 2:  # one step is no proof: a first proposal may be 0
            _check_state_is_noise(state.latent, handler.drawn)
        drawn.append(handler.drawn)
        states.append(state.latent)
        ancestors.append(info.ancestors)
        figures.append((state.log_normalizer, state.ess))
    still_running(algorithm, state)  # raises where a weight is NaN
    report_dead(state, 1)
    path, slots = _draw(state, drawn, states, ancestors)
    log_normalizer, ess = (torch.stack(rows) for rows in zip(*figures, strict=True))
    return Conditional(path, log_normalizer, ess, slots != 0 if noise is not None else torch.ones_like(slots) > 0)


def particle_gibbs(
    model: Any,
    *args: Any,
    iterations: int,
    reference: Path | Sequence[Noise] | None = None,
    update: Callable[[Path, Any], Any] | None = None,
    seed: int = 0,
    progress: bool = False,
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
        seed: same seed, same device, same numbers.
        progress: show a progress bar.
        **choices: `width`, `depth`, `resample`, `ancestor_sampling` and the others of `conditional`.

    Returns:
        The states of every path, leaves `[iterations, S, B, ...]`.

    Raises:
        ValueError: fewer than one iteration, and whatever `conditional` raises.
    """
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    paths = []
    if reference is None:
        reference = conditional(model, *args, seed=mix(seed, 0, 8), **choices).path
    with ProgressBar(iterations, 0, progress) as bar:
        for iteration in range(1, iterations + 1):
            path = conditional(model, *args, reference=reference, seed=mix(seed, iteration, 8), **choices).path
            paths.append(path.states)
            if update is not None:
                model = update(path, model)
            reference = path
            bar.update(iteration, {})
    return trees.map_state(lambda *rows: torch.stack(rows), *paths)


def _rule(resample: Scheme | Adaptive | None, ess_threshold: float) -> Adaptive | None:
    if resample is None:
        return None
    rule = resample if isinstance(resample, Adaptive) else adaptive(resample, ess_threshold)
    if not getattr(rule.scheme, "conditional", False):
        name = getattr(rule.scheme, "__name__", repr(rule.scheme))
        raise TypeError(
            f"conditional SMC needs a scheme of probgram.inference.conditional, which keeps slot 0, got {name}"
        )
    return rule


def _draw(
    state: smc.SMCState, drawn: list[dict[str, Tensor]], states: list[Any], ancestors: list[Tensor | None]
) -> tuple[Path, Tensor]:
    """One final trajectory a problem, in proportion to its weight, and the slots `[S, B]` that it came through."""
    device, problems = state.log_weights.device, state.log_weights.shape[1]
    generator = torch.Generator(device=device).manual_seed(mix(state.seed, state.t, 4))
    uniforms = torch.rand(1, problems, generator=generator, device=device, dtype=widest(device))
    slot, problem = draw_slots(state.log_weights, uniforms), torch.arange(problems, device=device)
    noise, path, slots = [], [], []
    for latent, sites, before in zip(states[::-1], drawn[:0:-1], ancestors[::-1], strict=True):
        noise.append({name: value[slot, problem] for name, value in sites.items()})
        path.append(trees.map_state(lambda leaf, slot=slot: leaf[slot, problem], latent))
        slots.append(slot)
        slot = slot if before is None else before[slot, problem]
    noise.append({name: value[slot, problem] for name, value in drawn[0].items()})
    whole = trees.map_state(lambda *rows: torch.stack(rows), *path[::-1])
    return Path(tuple(noise[::-1]), whole), torch.stack(slots[::-1])


# -- ancestor sampling ----------------------------------------------------------------------------------------


def _ancestor(
    transition: Callable[..., Tensor], algorithm: smc.Filter, state: smc.SMCState, noise: Noise
) -> Tensor:
    """Which particle the reference goes on from, int64 `[B]`, in proportion to W^i / psi^i p(next | i)."""
    value = next(iter(noise.values()))
    after = trees.map_state(lambda leaf: value[None].to(leaf), state.latent)
    log_density = transition(state.latent, after, state.t, *algorithm.kernel.args)
    log_weights = state.log_weights
    if algorithm.potential is None or not algorithm.potential.accumulates:
        # A potential telescopes: what comes after holds psi of the last step alone.
        log_weights = torch.where(log_weights.isneginf(), -torch.inf, log_weights - state.log_psi)
    device, problems = log_weights.device, log_weights.shape[1]
    generator = torch.Generator(device=device).manual_seed(mix(state.seed, state.t, 5))
    uniforms = torch.rand(1, problems, generator=generator, device=device, dtype=widest(device))
    return draw_slots(log_weights + log_density, uniforms)


def _check_state_is_noise(latent: Any, drawn: dict[str, Tensor]) -> None:
    leaves, values = [leaf for _, leaf in trees.leaves(latent)], list(drawn.values())
    if len(leaves) != 1 or len(values) != 1 or not torch.equal(leaves[0], values[0].to(leaves[0])):
        raise ValueError(
            "ancestor sampling needs a model whose state is the value of its one latent site: "
            "here another ancestor would change the retained states themselves"
        )
