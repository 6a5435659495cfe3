"""What the filter asks of a model: start, move, and log g of what was observed on the way.

    Pyro     a `Chain`, or any object with `init(*args) -> state` and `step(state, t, *args) -> state` that samples
             under our plates; a guide beside it proposes, and p / q is weighed in
    plain    `PlainModel`: functions of tensors and standard normal noise, without Pyro

Every latent leaf is `[N, B, ...]`. With several problems every tensor among the arguments is `[B, ...]`: constants
that problems share belong to the model. To a Pyro model NaN in an argument means "not observed"; a `PlainModel`
weighs by itself.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.messenger import Messenger
from torch import Tensor

from probgram import state as trees
from probgram.chain import Chain, Guide
from probgram.inference.handlers import guided, mix, seeded, start, validation, weighted
from probgram.inference.sampling import as_problems


class Moved(NamedTuple):
    """A step of a model."""

    latent: Any  # leaves [N, B, ...]
    log_factor: Tensor | None  # Σ log g + Σ (log p - log q), [N, B]; None where nothing weighs
    observed: bool  # whether something was observed, so that more than p / q is weighed
    likelihood: bool  # whether all that was observed is a likelihood (a `pyro.factor` is not)
    sites: dict[str, Tensor]  # in strict mode: each site's own log weight
    last: "LastMove | None" = None  # where it is recorded: the last transition
    kl: Tensor | None = None  # KL(q || p) where a chain's guide proposed, [N, B]


class LastMove(NamedTuple):
    """The last transition of a depth step: the state is `chain.move(proposal, noise)`."""

    proposal: Any  # leaves [N, B, ...]
    noise: Tensor  # [N, B, ...]


# -- plain tensors --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlainModel:
    """A state-space model as functions of tensors: what a filter can run fastest, and compile.

    Attributes:
        init: `(noise [N, B, *noise], *args) -> state`, the state before the first step, leaves `[N, B, ...]`.
        step: `(state, t, noise [N, B, *noise], *args) -> (state, log_weight [N, B])`; t counts from 0; where the
            run is compiled it is a 0-d tensor, and only `y.index_select(1, t.view(1))` stays in the compiled part.
        noise: event shape of the standard normal noise that both are given; () for one number a particle.
        log_transition: `(state, next_state, t, *args) -> [...]`, log p(next | state) of step t; backward
            simulation and ancestor sampling need it.
        likelihood: whether the log weights are log likelihoods, so that log Z is log evidence.
        dtype: of the noise.
    """

    init: Callable[..., Any]
    step: Callable[..., tuple[Any, Tensor]]
    noise: tuple[int, ...] = ()
    log_transition: Callable[..., Tensor] | None = None
    likelihood: bool = True
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class PlainKernel:
    """A `PlainModel` with its arguments."""

    model: PlainModel
    args: tuple[Any, ...]
    problems: int
    device: torch.device
    kept: tuple[Tensor, int] | None = None
    as_tensor: bool = False
    shared: bool = False  # all columns have the same arguments
    reparameterised: bool = True

    @property
    def context(self) -> Any:
        """The first argument."""
        return self.args[0] if self.args else None

    def noise(self, width: int, t: int, seed: int) -> Tensor:
        """Standard normal, `[N, B, *noise]`, keyed by (seed, t); t = -1 at the start."""
        generator = torch.Generator(device=self.device).manual_seed(mix(seed, t, 0))
        problems = self.problems if self.kept is None else self.kept[1]
        shape = (width, problems, *self.model.noise)
        drawn = torch.randn(shape, generator=generator, device=self.device, dtype=self.model.dtype)
        return drawn if self.kept is None else drawn[:, self.kept[0]]

    def start(self, width: int, seed: int) -> Moved:
        """Draw the first state."""
        latent = self.model.init(self.noise(width, -1, seed), *self.args)
        trees.check_state(latent, (width, self.problems))
        return Moved(latent, None, False, self.model.likelihood, {})

    def move(self, latent: Any, t: int, seed: int) -> Moved:
        """Take a step."""
        _, first = next(trees.leaves(latent))
        noise = self.noise(len(first), t, seed)
        at = torch.full((), t, device=self.device) if self.as_tensor else t
        result = self.model.step(latent, at, noise, *self.args)
        if not isinstance(result, tuple) or len(result) != 2:
            raise ValueError(f"the step of a PlainModel must return (state, log_weight), got {type(result)}")
        latent, log_weight = result
        if t == 0 and tuple(log_weight.shape) != tuple(first.shape[:2]):
            raise ValueError(
                f"step must return log weights {list(first.shape[:2])}, got shape {list(log_weight.shape)}"
            )
        return Moved(latent, log_weight, True, self.model.likelihood, {})

    def rows(self, rows: Tensor) -> "PlainKernel":
        """Keep some problems."""
        whole = (rows, self.problems) if self.kept is None else (self.kept[0][rows], self.kept[1])
        args = self.args if self.shared else _rows(self.args, rows)
        return replace(self, args=args, problems=len(rows), kept=whole)

    def compiled(self) -> "PlainKernel":
        """The same with a compiled step; t becomes a 0-d tensor, so that one compilation serves every step."""
        return replace(self, model=replace(self.model, step=torch.compile(self.model.step)), as_tensor=True)

    def repeat(self, times: int) -> "PlainKernel":
        """Every problem several times."""
        rows = torch.arange(self.problems, device=self.device).repeat_interleave(times)
        args = self.args if self.shared else _rows(self.args, rows)
        return replace(self, args=args, problems=self.problems * times)


# -- Pyro -----------------------------------------------------------------------------------------------------


class PyroKernel:
    """A Pyro model with its arguments, and what proposes for it.

    Args:
        model: has `init(*args)` and `step(state, t, *args)`.
        args: their arguments; for a chain its context alone.
        problems: B.
        device: of the noise.
        plates: how many plates of its own the model opens.
        guide: an object with the same two methods, whose sites are replayed; None: none.
        handler: makes a handler that is put around every step, such as `guided`; None: none.
        missing: whether an argument holds NaN.
        strict: keep each site's own log weight.
        single: no `problems` plate: one problem, particles at dim -1 - plates, leaves `[N, ...]` for the model.
        shared: all columns have the same arguments: one problem, or islands of it.

    Attributes:
        gaussian: whether every site so far was Gaussian.
        reparameterised: whether gradients flow through every draw so far.
    """

    def __init__(
        self,
        model: Any,
        args: tuple[Any, ...],
        problems: int,
        device: torch.device,
        plates: int = 0,
        guide: Any = None,
        handler: partial[guided] | None = None,
        missing: bool = False,
        strict: bool = False,
        single: bool = False,
        shared: bool = False,
    ) -> None:
        self.shared = shared
        self.model, self.args, self.problems, self.device = model, args, problems, device
        self.plates, self.guide, self.handler = plates, guide, handler
        self.missing, self.strict, self.single = missing, strict, single
        self.record_last = False
        self.kept: tuple[Tensor, int] | None = None
        self.gaussian = self.reparameterised = True

    @property
    def context(self) -> Any:
        """What a chain's `encode` returned."""
        return self.args[0] if self.args else None

    def start(self, width: int, seed: int) -> Moved:
        """Run `init` under the plates, and give every leaf its particles."""
        moved = self._run("init", (), -1, width, seed)
        trees.check_state(moved.latent, (width, self.problems))
        return moved

    def move(self, latent: Any, t: int, seed: int) -> Moved:
        """Run `step` under the plates."""
        _, first = next(trees.leaves(latent))
        if self.single:
            latent = trees.map_state(lambda leaf: leaf[:, 0], latent)
        moved = self._run("step", (latent, t), t, len(first), seed)
        if t == 0:
            trees.check_state(moved.latent, tuple(first.shape[:2]))
        return moved

    def _run(self, method: str, before: tuple[Any, ...], t: int, width: int, seed: int) -> Moved:
        noise = seeded(seed, block=width, problems=self.kept).at(t)
        w = weighted(self.plates, self.missing, self.strict, filtering=True)
        with ExitStack() as stack:
            stack.enter_context(validation(t <= 0))  # Pyro's checks read values back: the first steps are enough
            stack.enter_context(w)
            stack.enter_context(noise)
            handler = None if self.handler is None else stack.enter_context(self.handler())
            if self.guide is not None:
                replayed = stack.enter_context(_Replayed())
            stack.enter_context(pyro.plate("particles", width, dim=-1 - self.plates - (not self.single)))
            if not self.single:
                stack.enter_context(pyro.plate("problems", self.problems, dim=-1 - self.plates))
            if t <= 0:
                stack.enter_context(self._shapes_explained())
            if self.guide is not None:
                with replayed.recording():
                    getattr(self.guide, method)(*before, *self.args)
            if method == "init":
                latent = start(self.model, (width,) if self.single else (width, self.problems), *self.args)
                latent = trees.map_state(lambda leaf: leaf.to(self.device), latent)
            else:
                latent = self.model.step(*before, *self.args)
            if self.guide is not None:
                replayed.check()
        self.gaussian &= noise.gaussian
        self.reparameterised &= noise.reparameterised
        log_factor = w.log_weight if isinstance(w.log_weight, Tensor) else None
        if self.single:
            latent = trees.map_state(lambda leaf: leaf[:, None], latent)
            log_factor = None if log_factor is None else log_factor[:, None]
        if log_factor is not None and log_factor.shape != (width, self.problems):
            with self._shapes_explained():
                log_factor = log_factor.expand(width, self.problems)
        last = kl = None
        if handler is not None and handler.sites:
            if self.record_last:
                last = LastMove(handler.sites[-1].proposal, handler.sites[-1].value)
            elif handler.guide is not None:
                kl = handler.kl.expand(width, self.problems)
        return Moved(latent, log_factor, bool(w.observed), not w.factors, w.sites, last, kl)

    @contextmanager
    def _shapes_explained(self) -> Iterator[None]:
        """Put what a user can do about it before the words that torch and Pyro have for shapes that do not fit."""
        try:
            yield
        except (RuntimeError, ValueError) as error:
            words = str(error)
            if "collide at dim" in words:
                hint = "a model with plates of its own must say max_plate_nesting"
            elif any(part in words for part in ("must match", "broadcast", "expanded size", "Shape mismatch")):
                hint = f"states and observations must fit {self.problems} problems (problems=B for several series)"
            else:
                raise
            raise ValueError(f"{hint} ({words.splitlines()[0]})") from error

    def recording(self) -> "PyroKernel":
        """The same, remembering the last transition."""
        kernel = copy(self)
        kernel.handler, kernel.record_last = partial(guided, None, None), True
        return kernel

    def rows(self, rows: Tensor) -> "PyroKernel | None":
        """Keep some problems; None where a guide or a site that is not Gaussian would see other noise."""
        if not self.gaussian or self.guide is not None or self.handler is not None:
            return None
        kept = copy(self)
        kept.kept = (rows, self.problems) if self.kept is None else (self.kept[0][rows], self.kept[1])
        kept.args = self.args if self.shared else _rows(self.args, rows)
        kept.problems = len(rows)
        return kept

    def repeat(self, times: int) -> "PyroKernel":
        """Every problem several times."""
        repeated = copy(self)
        rows = torch.arange(self.problems, device=self.device).repeat_interleave(times)
        repeated.args = self.args if self.shared else _rows(self.args, rows)
        if self.handler is not None:
            guide, evidence = self.handler.args
            repeated.handler = partial(guided, guide, _rows((evidence,), rows)[0])
        repeated.problems = self.problems * times
        return repeated


class _Replayed(Messenger):
    """Fill the model's sites with what a guide drew; `weighted`, outside, weighs p against q."""

    def __init__(self) -> None:
        super().__init__()
        self.record: dict[str, tuple[Any, Tensor]] | None = None
        self.drawn: dict[str, tuple[Any, Tensor]] = {}
        self.used: set[str] = set()

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Remember the sites drawn inside instead."""
        self.record = self.drawn
        try:
            yield
        finally:
            self.record = None

    def check(self) -> None:
        """Raise ValueError where the guide drew a site that the model does not have."""
        unknown = sorted(set(self.drawn) - self.used)
        if unknown:
            raise ValueError(
                f"the guide samples {unknown[0]!r}, which the model's step does not: it cannot weigh it"
            )

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if self.record is not None or msg["name"] not in self.drawn or msg["is_observed"]:
            return
        fn, msg["value"] = self.drawn[msg["name"]]
        msg["infer"] = (msg["infer"] or {}) | {"posterior": fn, "rows": None}
        self.used.add(msg["name"])

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        if self.record is None or not isinstance(msg["fn"], TorchDistributionMixin):
            return
        if not msg["is_observed"]:
            self.record[msg["name"]] = (msg["fn"], msg["value"])
        elif not msg["infer"].get("_deterministic"):
            raise ValueError(f"the guide observes {msg['name']!r}: a guide only samples, the model observes")


Kernel = PlainKernel | PyroKernel


# -- from what a user hands over ------------------------------------------------------------------------------


def as_kernel(
    model: Any,
    args: Sequence[Any],
    guide: Any = None,
    evidence: Any = None,
    problems: int | None = None,
    device: torch.device | str | None = None,
    strict: bool = False,
) -> Kernel:
    """Make a model ready for particles.

    Args:
        model: a `Chain`, a `PlainModel`, or an object with Pyro `init` and `step`.
        args: for a chain `(x,)`; for others what `init` and `step` take.
        guide: a `Guide` for a chain; for other Pyro models an object with the same two methods.
        evidence: what a chain's guide sees, `[B, L]`.
        problems: B, for models that are no chains; None: 1.
        device: where it runs, and where the arguments go; None: that of the chain's parameters, or of the first
            tensor among the arguments.
        strict: keep each site's own log weight, so that the one that kills a problem can be named.

    Raises:
        ValueError: no model of a known kind, or arguments that do not fit the number of problems.
    """
    if isinstance(model, Chain):
        return _chain_kernel(model, args, guide, evidence, problems, strict)
    if evidence is not None:
        raise ValueError("evidence is for the guide of a chain: this guide is given the model's own arguments")
    b = 1 if problems is None else problems
    if b < 1:
        raise ValueError(f"problems must be at least 1, got {b}")
    args = [_mapped(arg, lambda leaf: torch.as_tensor(leaf, device=device)) for arg in args]
    tensors = [leaf for arg in args for leaf in _tensors(arg)]
    for leaf in tensors if b > 1 else ():
        if leaf.dim() == 0 or len(leaf) != b:
            raise ValueError(
                f"with {b} problems every tensor argument must be [{b}, ...], got shape {list(leaf.shape)}: "
                "constants that problems share belong to the model"
            )
    if device is None:
        device = next((leaf.device for leaf in tensors), None) or _device_of(model)
    device = torch.device(device)
    if isinstance(model, PlainModel):
        if guide is not None:
            raise ValueError("a PlainModel proposes in its own step: give its log p - log q with the log weight")
        return PlainKernel(model, tuple(args), b, device, shared=b == 1)
    for name in ("init", "step"):
        for part, what in ((model, "model"), (guide, "guide")):
            if part is not None and not callable(getattr(part, name, None)):
                raise ValueError(
                    f"{what} must have the methods init and step, and {type(part).__name__} has no {name}"
                )
    missing = any(leaf.is_floating_point() and bool(leaf.isnan().any()) for leaf in tensors)
    plates = int(getattr(model, "max_plate_nesting", 0))
    return PyroKernel(model, tuple(args), b, device, plates, guide, None, missing, strict, shared=b == 1)


def _chain_kernel(
    chain: Chain, args: Sequence[Any], guide: Any, evidence: Any, problems: int | None, strict: bool
) -> PyroKernel:
    if len(args) != 1:
        raise ValueError(f"a chain takes one argument, the problems x, got {len(args)}")
    x = as_problems(args[0], chain)
    if problems not in (None, len(x)):
        raise ValueError(f"problems must be the {len(x)} rows of x, or left out, got {problems}")
    handler = None
    if guide is not None:
        if not isinstance(guide, Guide):
            raise ValueError(f"the guide of a chain must be a Guide, got {type(guide).__name__}")
        if evidence is None:
            raise ValueError("a chain's guide needs evidence=, the answers y [B, L] that it sees")
        y = torch.as_tensor(evidence, device=x.device)
        if len(y) != len(x):
            raise ValueError(f"evidence must have the {len(x)} rows of x, got {len(y)}")
        encoded = guide.encode(y)
        handler = partial(guided, guide, encoded)
    missing = x.is_floating_point() and bool(x.isnan().any())
    kernel = PyroKernel(chain, (chain.encode(x),), len(x), x.device, 0, None, handler, missing, strict)
    return kernel


def _tensors(arg: Any) -> Iterator[Tensor]:
    if isinstance(arg, Tensor):
        yield arg
    elif isinstance(arg, dict):
        for part in arg.values():
            yield from _tensors(part)
    elif isinstance(arg, tuple | list):
        for part in arg:
            yield from _tensors(part)


def _mapped(arg: Any, function: Callable[[Any], Any]) -> Any:
    """An argument with a function applied to its tensors and arrays, however nested."""
    if isinstance(arg, Tensor | np.ndarray):
        return function(arg)
    if isinstance(arg, dict):
        return {key: _mapped(part, function) for key, part in arg.items()}
    if isinstance(arg, tuple | list):
        parts = [_mapped(part, function) for part in arg]
        return type(arg)(*parts) if hasattr(arg, "_fields") else type(arg)(parts)
    return arg


def _rows(args: tuple[Any, ...], rows: Tensor) -> tuple[Any, ...]:
    """The arguments of these problems."""
    return tuple(_mapped(arg, lambda leaf: leaf[rows]) for arg in args)


def _device_of(model: Any) -> torch.device:
    parameters = getattr(model, "parameters", None)
    first = next(iter(parameters()), None) if callable(parameters) else None
    return torch.device("cpu") if first is None else first.device
