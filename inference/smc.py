"""The particle filter between depth steps: resample, propagate, reweigh, update the normaliser.

    gamma_t(tau) = p(tau_{1:t}) · Π_{s <= t} g_s(obs_s) · psi_t                              the target at depth t
    log w_t      = Σ log g_t + Σ (log p - log q) + log psi_t - log psi_{t-1},  psi_0 = 1     incremental weight
    log Z_t      = log Z_{t-1} + log Σ_i W_{t-1}^i w_t^i          W normalised, uniform after resampling

Three functions over a NamedTuple, for many problems side by side, each with its own weights, effective sample size,
ancestors and normaliser; Z, not log Z, is unbiased. `run` loops over them and returns `Trajectories`:

    run = smc.run(model, series, width=10_000, depth=100)           any Pyro step, plain tensors, or a chain
    algorithm = smc.build(model, series, width=10_000, depth=100)   or step by step
    state = smc.init(algorithm, seed=0)
    state, info = smc.step(algorithm, state)

Sources: Gordon, Salmond and Smith 1993; Del Moral, "Feynman-Kac Formulae", 2004; Chopin and Papaspiliopoulos, "An
Introduction to Sequential Monte Carlo", 2020, algorithm 10.3 (adaptive resampling).
"""

import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cache
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from probgram import checkpoint
from probgram import state as trees
from probgram.chain import Chain
from probgram.inference import continuation
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
from probgram.inference.choices import evidence as evidence_of
from probgram.inference.columns import leave, merged
from probgram.inference.faults import FilterError as FilterError
from probgram.inference.faults import all_dead, check_factors, report_dead, still_running
from probgram.inference.handlers import evaluating, keyed, mix, seeded, validation
from probgram.inference.kernels import Kernel, PlainKernel, PyroKernel, as_kernel
from probgram.inference.kernels import PlainModel as PlainModel
from probgram.inference.potentials import Potential, View, as_potential
from probgram.inference.progress import ProgressBar
from probgram.inference.recording import Record
from probgram.inference.rejuvenation import Rejuvenation
from probgram.inference.resampling import Adaptive, Scheme, adaptive, draw_uniforms, systematic
from probgram.inference.sampling import FLAG_EVERY, decoded, logit
from probgram.state import widest
from probgram.trajectories import Trajectories

Collect = Mapping[str, Callable[[Any, Tensor], Tensor]]
Rejuvenate = Callable[[Rejuvenation], tuple[Any, Tensor, Tensor]]


class SMCState(NamedTuple):
    """What the next step needs."""

    latent: Any  # leaves [N, B, ...]
    log_weights: Tensor  # normalised, [N, B]
    log_psi: Tensor  # log psi_t, travels with the ancestors, [N, B]
    log_normalizer: Tensor  # log Z_t in nats, [B]
    ess: Tensor  # effective sample size, [B]
    dead: Tensor  # depth at which all weights had vanished, 0 while there are some, int32 [B]
    nan: Tensor  # depth at which a weight became NaN, 0 before, int32 [B]
    done: Tensor  # depth at which a problem ended, 0 while it runs, int32 [B]
    halted: Tensor | None  # trajectories that their halt head stopped, bool [N, B]; None: never
    t: int  # depth steps taken
    seed: int
    observed: bool  # whether anything was observed so far
    likelihood: bool  # whether all of it was a likelihood
    weighs: bool  # whether the last step's weights may trigger resampling
    last: Any = None  # the last transition, for rejuvenation


class SMCInfo(NamedTuple):
    """What a person looks at."""

    ancestors: Tensor | None  # slots now -> slots at the step before, int64 [N, B]; None: all its own
    resampled: Tensor  # bool [B]
    log_increment: Tensor  # log Z_t - log Z_{t-1}, [B]
    view: View  # state, heads and answers after the step
    kl: Tensor | None  # KL(q || p) of the step's transitions where a chain's guide proposed, [N, B]


@dataclass(frozen=True)
class Filter:
    """A model and the choices beside it; `build` checks and makes it."""

    kernel: Kernel
    width: int
    depth: int | Tensor  # int64 [B] where problems differ
    potential: Potential | None = None
    resample: Adaptive | None = None
    guided: bool = False
    halt_above: float | None = None  # logit
    strict: bool = False
    decode: str = "mode"
    rejuvenate: Rejuvenate | None = None
    x: Tensor | None = None  # a chain's problems
    problem: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.long))  # of each column
    columns: tuple[Tensor, int] | None = None  # (which, of how many) columns are still here
    last_depth: int = sys.maxsize  # when the last problem ends
    compile: bool = False  # weighing and resampling; the step is the kernel's own

    @property
    def masked(self) -> bool:
        """Whether trajectories or problems may stand still while others go on."""
        return self.halt_above is not None or isinstance(self.depth, Tensor)

    def view(self, latent: Any, previous: Any, t: int, seed: int | None = None) -> View:
        """What a potential sees of these latents; without a seed answers are not sampled."""
        kernel, decode = self.kernel, None
        if self.decode == "sample" and seed is not None:

            def decode(readout: Any) -> Tensor:
                with seeded(mix(seed, 3), block=self.width).at(t):
                    return decoded(readout, "sample", t)

        return View(kernel.model, latent, previous, kernel.context, t, self.depth, self.problem, self.x, decode)


# -- init, step -----------------------------------------------------------------------------------------------


def build(
    model: Any,
    *args: Any,
    width: int,
    depth: int | Tensor,
    potential: Potential | Callable[[View], Tensor] | None = None,
    resample: Scheme | Adaptive | None = systematic,
    ess_threshold: float = 0.5,
    guide: Any = None,
    evidence: Any = None,
    problems: int | None = None,
    device: torch.device | str | None = None,
    islands: int = 1,
    halt_probability: float | None = None,
    strict: bool = False,
    decode: Literal["mode", "sample"] = "mode",
    rejuvenate: Rejuvenate | None = None,
    compile: bool = False,
) -> Filter:
    """Check the choices of a filter and put them together; the arguments are those of `run`."""
    check_counts({"width": width, "islands": islands})
    check_halting(halt_probability)
    check_decode(decode)
    kernel = as_kernel(model, args, guide, evidence, problems, device, strict)
    fits = isinstance(kernel, PyroKernel) and isinstance(model, Chain) and guide is None
    check_move(rejuvenate, decode, fits)
    if rejuvenate is not None and isinstance(kernel, PyroKernel):
        kernel = kernel.recording()
    if compile:
        if not isinstance(kernel, PlainKernel):
            raise ValueError("compile needs a PlainModel: Pyro's handlers cannot be compiled")
        kernel = kernel.compiled()
    x = torch.as_tensor(args[0], device=kernel.device) if isinstance(model, Chain) else None
    x = x[None] if x is not None and x.dim() == 1 else x
    problem = torch.arange(kernel.problems, device=kernel.device)
    number = checked_depth(depth, kernel.problems)
    depth = torch.as_tensor(number, device=kernel.device) if number.ndim else int(number)
    if decode == "sample" and (halt_probability is not None or number.ndim):
        raise ValueError("decode='sample' needs problems that end together: answers of ended ones would be redrawn")
    if islands > 1:
        kernel, problem = kernel.repeat(islands), problem.repeat_interleave(islands)
        depth = depth.repeat_interleave(islands) if isinstance(depth, Tensor) else depth
    if resample is not None and not isinstance(resample, Adaptive):
        resample = adaptive(resample, ess_threshold)
    if resample is not None and getattr(resample.scheme, "conditional", False):
        raise TypeError("resample must be a scheme of probgram.inference.resampling, not one for conditional SMC")
    return Filter(
        kernel,
        int(width),
        depth,
        None if potential is None else as_potential(potential),
        resample,
        guide is not None,
        None if halt_probability is None else logit(halt_probability),
        strict,
        decode,
        rejuvenate,
        x,
        problem,
        last_depth=int(number.max()),
        compile=compile,
    )


def init(algorithm: Filter, seed: int = 0) -> SMCState:
    """Draw the states at depth 0, all with equal weights unless `init` observed something."""
    kernel, n = algorithm.kernel, algorithm.width
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise ValueError(f"seed must be an integer, got {seed!r}")
    with keyed(seed, -1, kernel.device):
        moved = kernel.start(n, seed)
    b, device = kernel.problems, kernel.device
    dtype = (
        torch.float32 if moved.log_factor is None else torch.promote_types(moved.log_factor.dtype, torch.float32)
    )
    uniform = torch.full((n, b), -_log(n), dtype=dtype, device=device)
    nothing = torch.zeros(b, dtype=torch.int32, device=device)
    state = SMCState(
        latent=moved.latent,
        log_weights=uniform,
        log_psi=torch.zeros(1, b, dtype=dtype, device=device).expand(n, b),
        log_normalizer=torch.zeros(b, dtype=widest(device), device=device),
        ess=torch.full((b,), float(n), dtype=dtype, device=device),
        dead=nothing,
        nan=nothing,
        done=nothing,
        halted=None if algorithm.halt_above is None else torch.zeros(n, b, dtype=torch.bool, device=device),
        t=0,
        seed=seed,
        observed=moved.observed,
        likelihood=moved.likelihood,
        weighs=moved.observed,
    )
    if moved.log_factor is None:
        return state
    if algorithm.strict:
        check_factors(algorithm, state, moved.sites, moved.log_factor, moved.log_factor)
    return _reweigh(algorithm, state, moved.log_factor, 0)[0]


def step(algorithm: Filter, state: SMCState) -> tuple[SMCState, SMCInfo]:
    """One depth step of every problem.

    Raises:
        FilterError: with `strict`, a site or the potential killed a problem or is NaN.
    """
    before = state
    with keyed(state.seed, state.t, algorithm.kernel.device):
        # Resample
        state, ancestors, resampled = _resample(algorithm, state)
        # Propagate
        moved = algorithm.kernel.move(state.latent, state.t, state.seed)
        t = state.t + 1
        if algorithm.rejuvenate is not None and moved.observed:
            raise ValueError("rejuvenate needs a step that observes nothing: it cannot weigh an observation anew")
        log_factor, latent, sites, kl = moved.log_factor, moved.latent, moved.sites, moved.kl
        halted, done = state.halted, state.done
        if algorithm.masked:
            latent, log_factor, sites, kl = _stand_still(state, latent, log_factor, sites, kl)
        view = algorithm.view(latent, state.latent, t, state.seed)
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
        observed=state.observed or moved.observed,
        likelihood=state.likelihood and moved.likelihood,
        weighs=weighs,
        last=moved.last,
    )
    if algorithm.strict:
        check_factors(algorithm, state, sites, log_factor, log_increment)
    # Update the log normalising constant
    log_total = torch.zeros_like(state.log_normalizer)
    if log_increment is not None:
        state, log_total = _reweigh(algorithm, state, log_increment, t)
    if algorithm.masked and before.ess is not state.ess:  # a problem that had ended keeps its figures exactly
        ended = before.done > 0
        state = state._replace(
            log_weights=torch.where(ended, before.log_weights, state.log_weights),
            log_normalizer=torch.where(ended, before.log_normalizer, state.log_normalizer),
            ess=torch.where(ended, before.ess, state.ess),
        )
    return state, SMCInfo(ancestors, resampled, log_total, view, kl)


def _resample(algorithm: Filter, state: SMCState) -> tuple[SMCState, Tensor | None, Tensor]:
    """Replace the trajectories of the problems whose effective sample size is low."""
    rule, n = algorithm.resample, algorithm.width
    never = torch.zeros_like(state.done, dtype=torch.bool)
    if rule is None or not state.weighs or not rule.acts_at(state.t):
        return state, None, never
    due = rule.due(state.ess, n)
    if algorithm.masked:
        due = due & (state.done == 0)
    # Asking costs nothing where there is no device to wait for.
    if due.device.type == "cpu" and not bool(due.any()):
        return state, None, never
    generator = torch.Generator(device=due.device).manual_seed(mix(state.seed, state.t, 1))
    uniforms = _uniforms(algorithm, rule.scheme, state.log_weights, generator)
    weighed = state.log_weights
    if weighed.device.type != "cpu" or bool(state.nan.any()):  # NaN would make indices that are out of range
        weighed = torch.where(state.nan > 0, 0.0, weighed)
    scheme: Any = rule.scheme
    ancestors = (_compiled(scheme) if algorithm.compile else scheme)(weighed, uniforms)
    all_due = due.device.type == "cpu" and bool(due.all())
    if not all_due:
        ancestors = torch.where(due, ancestors, torch.arange(n, device=due.device)[:, None])
    moving = (state.latent, state.log_psi, state.halted, state.last)
    latent, log_psi, halted, last = trees.gather_ancestors(moving, ancestors)
    uniform = due & ~all_dead(state.log_weights)
    if all_due and bool(uniform.all()):
        log_weights = torch.full_like(state.log_weights, -_log(n))
    else:
        log_weights = torch.where(uniform, -_log(n), state.log_weights)
    state = state._replace(latent=latent, log_psi=log_psi, halted=halted, last=last, log_weights=log_weights)
    if algorithm.rejuvenate is not None and state.last is not None:
        seen = Rejuvenation(algorithm, state, due, ancestors, state.last, generator)
        latent, log_psi, noise = algorithm.rejuvenate(seen)
        last = state.last._replace(noise=noise)
        state = state._replace(latent=latent, log_psi=log_psi, last=last)
    return state, ancestors, due


def _uniforms(algorithm: Filter, scheme: Scheme, log_weights: Tensor, generator: torch.Generator) -> Tensor:
    if algorithm.columns is None:
        return draw_uniforms(scheme, log_weights, generator)
    rows, whole = algorithm.columns  # a problem sees the same uniforms, whoever has left
    return draw_uniforms(scheme, log_weights[:, :1].expand(-1, whole), generator)[:, rows]


def _stand_still(
    state: SMCState, latent: Any, log_factor: Tensor | None, sites: dict[str, Tensor], kl: Tensor | None
) -> tuple[Any, Tensor | None, dict[str, Tensor], Tensor | None]:
    """A problem that has ended, and a trajectory that has halted, stay where they are and weigh nothing."""
    frozen = (state.done > 0).expand(state.log_weights.shape)
    if state.halted is not None:
        frozen = frozen | state.halted
    latent = trees.where(frozen, state.latent, latent)
    log_factor = None if log_factor is None else torch.where(frozen, 0.0, log_factor)
    sites = {name: torch.where(frozen, 0.0, factor) for name, factor in sites.items()}
    return latent, log_factor, sites, None if kl is None else torch.where(frozen, 0.0, kl)


def _finish(algorithm: Filter, state: SMCState, view: View) -> tuple[View, Tensor | None, Tensor]:
    """Which trajectories halt now, and for which problems this depth step is the last."""
    running, halted = state.done == 0, state.halted
    ending = torch.zeros_like(running) | (view.depth <= view.t)
    if halted is not None:
        if "halt" not in view.heads:
            raise ValueError(f"halt_probability needs a halt head, and {type(view.model).__name__} has none")
        assert algorithm.halt_above is not None
        halted = halted | ((view.heads["halt"] > algorithm.halt_above) & running)
        ending = ending | halted.all(0)
        view.depth = torch.where(ending, view.t, view.depth)  # so that a look-ahead is released, an annealing ends
    return view, halted, torch.where(running & ending, view.t, state.done).to(state.done.dtype)


def _weigh(
    algorithm: Filter, state: SMCState, view: View, log_factor: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Log psi_t, and the incremental log weight `[N, B]`; None where nothing weighs."""
    if algorithm.potential is None:
        return state.log_psi, log_factor
    log_psi = algorithm.potential(view)
    if not isinstance(log_psi, Tensor):
        raise ValueError(f"the potential must return log psi as a tensor, got {type(log_psi).__name__}")
    if tuple(log_psi.shape) != tuple(state.log_psi.shape):
        raise ValueError(
            f"the potential must return log psi {list(state.log_psi.shape)}, got shape {list(log_psi.shape)}"
        )
    if algorithm.potential.accumulates:
        log_psi = state.log_psi + log_psi
    log_psi = torch.where(state.log_psi.isneginf(), -torch.inf, log_psi)  # absorbing
    ratio = torch.where(log_psi.isneginf(), -torch.inf, log_psi - state.log_psi)
    if algorithm.masked:
        log_psi = torch.where(state.done > 0, state.log_psi, log_psi)
        ratio = torch.where(state.done > 0, 0.0, ratio)
    return log_psi, ratio if log_factor is None else log_factor + ratio


def _reweigh(algorithm: Filter, state: SMCState, log_increment: Tensor, t: int) -> tuple[SMCState, Tensor]:
    """Multiply the weights, normalise them, and take log Z and the effective sample size along."""
    log_weights, dtype = state.log_weights, torch.promote_types(state.log_weights.dtype, log_increment.dtype)
    if dtype != log_weights.dtype:  # normalised in a narrower type: log Z would start off by its rounding
        total = log_weights.to(dtype).logsumexp(0)
        log_weights = log_weights - total.masked_fill(total.isneginf(), 0.0)
    weigh = _compiled(reweighed) if algorithm.compile else reweighed
    log_weights, log_total, ess = weigh(log_weights, log_increment)
    dead, nan = log_total.isneginf(), log_total.isnan()
    marked = state._replace(
        log_weights=log_weights,
        ess=ess,
        log_normalizer=state.log_normalizer + log_total,
        dead=torch.where(dead & (state.dead == 0), max(t, 1), state.dead).to(state.dead.dtype),
        nan=torch.where(nan & (state.nan == 0), max(t, 1), state.nan).to(state.nan.dtype),
    )
    return marked, log_total.to(state.log_normalizer)


def reweighed(log_weights: Tensor, log_increment: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise `log_weights + log_increment`.

    Args:
        log_weights: normalised, `[N, B]`.
        log_increment: `[N, B]`.

    Returns:
        Normalised log weights `[N, B]` (-inf where all vanished), the log of their sum `[B]` and the effective
        sample size 1 / Σ W² `[B]` (0 where all vanished).
    """
    unnormalised = log_weights + log_increment
    top = unnormalised.amax(0)
    dead = top.isneginf()
    top = top.masked_fill(dead, 0.0)
    # exp is slow where its result is subnormal, and exp(-80) adds nothing to a sum of at least 1.
    weights = (unnormalised - top).clamp_(min=-80.0).exp_()
    total = weights.sum(0)
    log_total = top + total.log()
    ess = total.square() / weights.square().sum(0)
    weighed = unnormalised - log_total.masked_fill(dead, 0.0)
    return weighed, log_total.masked_fill(dead, -torch.inf), ess.masked_fill(dead, 0.0)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function)


def _log(n: int) -> float:
    return torch.tensor(float(n), dtype=torch.float64).log().item()


# -- run ------------------------------------------------------------------------------------------------------


def run(
    model: Any,
    *args: Any,
    width: int = 20,
    depth: int | Tensor | None = None,
    seed: int = 0,
    potential: Potential | Callable[[View], Tensor] | None = None,
    resample: Scheme | Adaptive | None = systematic,
    ess_threshold: float = 0.5,
    guide: Any = None,
    evidence: Any = None,
    problems: int | None = None,
    device: torch.device | str | None = None,
    keep: Keep | None = None,
    collect: Collect | None = None,
    halt_probability: float | None = None,
    islands: int = 1,
    strict: bool = False,
    decode: Literal["mode", "sample"] = "mode",
    rejuvenate: Rejuvenate | None = None,
    compile: bool = False,
    gradient: bool = False,
    start: Trajectories | None = None,
    task: str = "",
    progress: bool = False,
    callback: Callable[[SMCState, SMCInfo], Any] | None = None,
    store: str | Path | None = None,
) -> Trajectories:
    """Filter `width` trajectories of every problem through `depth` steps.

    Args:
        model: a `Chain`; or an object with Pyro `init(*args) -> state` and `step(state, t, *args) -> state` that
            samples under our plates (`max_plate_nesting` plates of its own stand to their right); or a
            `PlainModel`. t counts from 0.
        *args: for a chain the problems x; for other models what their functions take. With several problems every
            tensor among them is `[B, ...]`, so a step observes `y[..., t]`. NaN in an observation of a Pyro model
            means that it was not made; elsewhere NaN is an error.
        width: N, particles a problem (an island).
        depth: S, depth steps; an int64 `[B]` tensor where series differ in length: a problem that has ended stays.
            None: 16 for a chain; other models must be told.
        seed: same seed, same device, same numbers. The global generator is not touched.
        potential: log psi of the view, `probgram.inference.potentials`; None: what the model observes alone.
        resample: a scheme, or `adaptive(scheme, ...)` with its own threshold and depths; None: never, so that
            weights accumulate (importance sampling).
        ess_threshold: resample a problem when its effective sample size is at most this share of N; from 1 on at
            every step.
        guide: proposes instead of the prior: for a chain a `Guide`, for other Pyro models an object with `init` and
            `step` that samples the same sites. p / q alone never triggers resampling: an observation in the step
            or a look-ahead potential does.
        evidence: what a chain's guide sees, answers `[B, L]`.
        problems: B, for models that are no chains; None: 1.
        device: None: that of the chain or of the arguments.
        keep: "paths" records answers, heads, weights and ancestors at every depth step (the default for chains; a
            model without answers records its states); "summary" log Z, effective sample size and what `collect`
            gives, flat in depth (the default for others); "last" the last depth step only; "latents" adds the
            states to "paths".
        collect: name -> `(state, weights [N, B]) -> [B, ...]`, recorded at every step after reweighting.
        halt_probability: freeze a trajectory once its halt head is so sure. Where all of a problem are frozen, that
            depth step is its last: stopping early equals running on.
        islands: so many independent filters a problem, pooled at the end: Z is their mean, weights ∝ Z_i W_i.
        strict: raise as soon as all weights of a problem vanish, or one is NaN, and name the site.
        decode: "mode" takes the most probable answer, "sample" draws it.
        rejuvenate: moves resampled trajectories, `probgram.inference.rejuvenation`.
        compile: compile the step of a `PlainModel`, the weighing and the scheme; the first run is slow.
        gradient: keep the graph: log_normalizer has gradients with respect to what the model depends on. Those of
            the resampling choices are dropped, so the gradient of log Z is biased where resampling acts. Every
            latent site must be reparameterised.
        start: go on from a run of the same model, width, seed and potential, `depth` steps further. Rejuvenation
            does not act before the first of them.
        task: name that the result carries.
        progress: show a progress bar.
        callback: called after every depth step; return something true to stop.
        store: a folder `*.zarr` that takes every depth step as soon as it is done, as for `sample`; with
            `keep="paths"` or `"latents"`, whose last state makes that a run can go on.

    Returns:
        The weighted trajectories: values after reweighting, before the next resampling. With `store`, the last
        depth step, and log Z, effective sample size and what was collected of all: the whole is in the folder.

    Raises:
        ValueError: a choice makes no sense, or a state has a wrong shape.
        FilterError: a weight became NaN; with `strict` also where all weights of a problem vanished.
        CheckpointError: store cannot be written, exists already, or holds another run than start.
    """
    depth, keep = depth_or_default(depth, isinstance(model, Chain)), checked_keep(keep, isinstance(model, Chain))
    weights = checkpoint.weights_of(model) if isinstance(model, torch.nn.Module) else None
    offset = continuation.offset(start, {"width": width, "seed": seed, "weights": weights}, islands, potential)
    with torch.set_grad_enabled(gradient), nullcontext() if gradient else evaluating(model):
        algorithm = build(
            model,
            *args,
            width=width,
            depth=depth if start is None else torch.as_tensor(checked_depth(depth, start.problems) + offset),
            potential=potential,
            resample=resample,
            ess_threshold=ess_threshold,
            guide=guide,
            evidence=evidence,
            problems=problems,
            device=device,
            islands=islands,
            halt_probability=halt_probability,
            strict=strict,
            decode=decode,
            rejuvenate=rejuvenate,
            compile=compile,
        )
        state = init(algorithm, seed) if start is None else SMCState(**continuation.resumed(algorithm, start))
        whole: SMCState | None = None  # all problems, once some have left
        steps = algorithm.last_depth - offset
        growing = opened(store, start, keep)
        record = Record(keep, collect or {}, islands, algorithm.kernel.problems, steps, stored=growing is not None)

        def recorded(state: SMCState) -> Trajectories:
            """The run so far."""
            complete = state.t >= algorithm.last_depth or not len(still_running(algorithm, state))
            state = state if algorithm.columns is None else merged(whole, state, algorithm.columns[0])
            settings: dict[str, Any] = {
                "width": width,
                "depth": state.t,
                "seed": seed,
                "islands": islands,
                "decode": decode,
                "weights": weights,
            }
            settings |= {"potential": name_of(potential), "guided": guide is not None}
            settings |= {"resample": None if algorithm.resample is None else algorithm.resample.describe()}
            settings |= {"halt_probability": halt_probability, "weighs": state.weighs}
            settings |= {"observed": state.observed, "likelihood": state.likelihood}
            settings |= {"complete": complete}
            meaning = evidence_of(algorithm.potential, state.observed, state.likelihood)
            return record.trajectories(
                algorithm.x,
                state,
                meaning is not None,
                ended=state.done.unflatten(0, (-1, islands)).amax(1) if algorithm.masked else None,
                task=task,
                seed=seed,
                settings=settings | {"evidence": meaning},
            )

        with ProgressBar(algorithm.last_depth, offset, progress) as bar:
            while state.t < algorithm.last_depth:
                with validation(state.t == offset):
                    state, info = step(algorithm, state)
                if gradient and not algorithm.kernel.reparameterised:
                    raise ValueError("gradient=True needs reparameterised sites: a discrete one has no gradient")
                with validation(state.t == offset + 1):
                    record.add(algorithm, state, info)
                if growing is not None:
                    row = recorded(state)
                    growing.append(row if keep == "latents" else replace(row, state=None))
                stopped = callback is not None and bool(callback(state, info))
                bar.update(state.t, {})
                if stopped or state.t % FLAG_EVERY == 0 or state.t == algorithm.last_depth:
                    running = still_running(algorithm, state)
                    if stopped or not len(running):
                        break
                    few = 2 * len(running) <= algorithm.kernel.problems and state.t < algorithm.last_depth
                    if few and not (collect and islands > 1):  # pooled figures need every island of a problem
                        algorithm, state, whole = leave(algorithm, state, running, whole, record)
        if isinstance(model, Chain):
            trees.check_numbers(state.latent)
        report_dead(state if algorithm.columns is None else merged(whole, state, algorithm.columns[0]), islands)
        return recorded(state)
