"""What the filter asks of a model: start, move, and log g of what was observed on the way.

    NumPyro  a `Chain`, or any object with `init(*args) -> state` and `step(state, t, *args) -> state` that samples
             under our plates; a guide beside it proposes, and p / q is weighed in
    plain    `PlainModel`: functions of arrays and standard normal noise, without NumPyro

The twin of `probgram.inference.kernels`. t is a traced number: one program serves every depth step. Every latent
leaf is `[N, B, ...]`. With several problems every array among the arguments is `[B, ...]`: constants that problems
share belong to the model. To a NumPyro model NaN in an argument means "not observed"; a `PlainModel` weighs by
itself.

Arrays of a model that is an Equinox module are data, which may change without compiling again; any other object is
part of what is compiled, and told apart by `==`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import MappingProxyType
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import Array

from probgram.inference.on_jax.handlers import check_state, guided, seeded, start, weighted
from probgram.inference.on_jax.sampling import as_problems
from probgram.models.on_jax.chain import Chain, Guide


class Moved(NamedTuple):
    """A step of a model."""

    latent: Any  # leaves [N, B, ...]
    log_factor: Array | None  # Σ log g + Σ (log p - log q), [N, B]; None where nothing weighs
    observed: bool  # whether something was observed, so that more than p / q is weighed
    likelihood: bool  # whether all that was observed is a likelihood (a `numpyro.factor` is not)
    sites: Mapping[str, Array] = MappingProxyType({})  # in strict mode: each site's own log weight
    last: "LastMove | None" = None  # where it is recorded: the last transition
    kl: Array | None = None  # KL(q || p) where a chain's guide proposed, [N, B]


class LastMove(NamedTuple):
    """The last transition of a depth step: the state is `chain.move(proposal, noise)`."""

    proposal: Any  # leaves [N, B, ...]
    noise: Array  # [N, B, ...]
    taken: Array  # bool [N, B]; False stands for none so far, in a loop that must carry one


# -- plain arrays ---------------------------------------------------------------------------------------------


class PlainModel(eqx.Module):
    """A state-space model as functions of arrays: what a filter can run fastest.

    Attributes:
        init: `(noise [N, B, *noise], *args) -> state`, the state before the first step, leaves `[N, B, ...]`.
        step: `(state, t, noise [N, B, *noise], *args) -> (state, log_weight [N, B])`; t counts from 0, traced.
        noise: event shape of the standard normal noise that both are given; () for one number a particle.
        log_transition: `(state, next_state, t, *args) -> [...]`, log p(next | state) of step t; backward
            simulation and ancestor sampling need it.
        likelihood: whether the log weights are log likelihoods, so that log Z is log evidence.
        dtype: of the noise; None: JAX's default.
    """

    init: Callable[..., Any]
    step: Callable[..., tuple[Any, Array]]
    noise: tuple[int, ...] = eqx.field(static=True, default=())
    log_transition: Callable[..., Array] | None = None
    likelihood: bool = eqx.field(static=True, default=True)
    dtype: Any = eqx.field(static=True, default=None)


class PlainKernel(eqx.Module):
    """A `PlainModel` with its arguments."""

    model: PlainModel
    args: tuple[Any, ...]
    problems: int = eqx.field(static=True)

    @property
    def context(self) -> Any:
        """The first argument."""
        return self.args[0] if self.args else None

    def noise(self, width: int, key: Array) -> Array:
        """Standard normal, `[N, B, *noise]`."""
        dtype = jnp.result_type(float) if self.model.dtype is None else self.model.dtype
        return jax.random.normal(key, (width, self.problems, *self.model.noise), dtype)

    def start(self, width: int, key: Array) -> Moved:
        """Draw the first state."""
        latent = self.model.init(self.noise(width, key), *self.args)
        check_state(latent, (width, self.problems))
        return Moved(latent, None, False, self.model.likelihood)

    def move(self, latent: Any, t: Any, key: Array) -> Moved:
        """Take a step."""
        width = len(jax.tree.leaves(latent)[0])
        result = self.model.step(latent, t, self.noise(width, key), *self.args)
        if not isinstance(result, tuple) or len(result) != 2:
            raise ValueError(f"the step of a PlainModel must return (state, log_weight), got {type(result)}")
        latent, log_weight = result
        check_state(latent, (width, self.problems))
        if tuple(jnp.shape(log_weight)) != (width, self.problems):
            raise ValueError(
                f"step must return log weights {[width, self.problems]}, got shape {list(jnp.shape(log_weight))}"
            )
        return Moved(latent, log_weight, True, self.model.likelihood)


# -- NumPyro --------------------------------------------------------------------------------------------------


class NumPyroKernel(eqx.Module):
    """A NumPyro model with its arguments, and what proposes for it.

    Attributes:
        model: has `init(*args)` and `step(state, t, *args)`.
        args: their arguments; for a chain its context alone.
        guide: for a chain a `Guide`; for others an object with the same two methods, whose sites are replayed;
            None: none.
        evidence: what a chain's guide encoded.
        problems: B.
        plates: how many plates of its own the model opens.
        missing: whether an argument holds NaN.
        strict: keep each site's own log weight.
        record_last: remember the last transition of a chain that draws from its prior.
    """

    model: Any
    args: tuple[Any, ...]
    guide: Any
    evidence: Any
    problems: int = eqx.field(static=True)
    plates: int = eqx.field(static=True, default=0)
    missing: bool = eqx.field(static=True, default=False)
    strict: bool = eqx.field(static=True, default=False)
    record_last: bool = eqx.field(static=True, default=False)

    @property
    def context(self) -> Any:
        """What a chain's `encode` returned; of other models the first argument."""
        return self.args[0] if self.args else None

    def start(self, width: int, key: Array) -> Moved:
        """Run `init` under the plates, and give every leaf its particles."""
        return self._run("init", (), width, key)

    def move(self, latent: Any, t: Any, key: Array) -> Moved:
        """Run `step` under the plates."""
        return self._run("step", (latent, t), len(jax.tree.leaves(latent)[0]), key)

    def _run(self, method: str, before: tuple[Any, ...], width: int, key: Array) -> Moved:
        shape = (width, self.problems)
        w, handler, replayed = weighted(self.plates, self.missing, self.strict, filtering=True), None, None
        with ExitStack() as stack:
            stack.enter_context(self._shapes_explained())
            stack.enter_context(w)
            stack.enter_context(seeded(key, block=width))
            if self.record_last or isinstance(self.guide, Guide):
                handler = stack.enter_context(guided(self.guide, self.evidence))
            elif self.guide is not None:
                replayed = stack.enter_context(_Replayed())
            stack.enter_context(numpyro.plate("particles", width, dim=-2 - self.plates))
            stack.enter_context(numpyro.plate("problems", self.problems, dim=-1 - self.plates))
            if replayed is not None:
                with replayed.recording():
                    getattr(self.guide, method)(*before, *self.args)
            if method == "init":
                latent = start(self.model, shape, *self.args)
            else:
                latent = self.model.step(*before, *self.args)
            if replayed is not None:
                replayed.check()
        check_state(latent, shape)
        log_factor = None
        if isinstance(w.log_weight, Array):
            with self._shapes_explained():
                log_factor = jnp.broadcast_to(w.log_weight, shape)
        last = kl = None
        if handler is not None and handler.sites:
            if self.record_last:
                last = LastMove(handler.sites[-1].proposal, handler.sites[-1].value, jnp.ones(shape, bool))
            else:
                kl = jnp.broadcast_to(handler.kl, shape)
        return Moved(latent, log_factor, bool(w.observed), not w.factors, w.sites, last, kl)

    @contextmanager
    def _shapes_explained(self) -> Iterator[None]:
        """Put what a user can do about it before the words that NumPyro and JAX have for shapes that do not fit."""
        try:
            yield
        except (TypeError, ValueError, AssertionError) as error:
            words = str(error)
            if "collide" in words or "does not match the plate" in words:
                hint = "a model with plates of its own must say max_plate_nesting"
            elif any(part in words for part in ("broadcast", "ncompatible shapes")):
                hint = f"states and observations must fit {self.problems} problems (problems=B for several series)"
            else:
                raise
            raise ValueError(f"{hint} ({words.splitlines()[0]})") from error


class _Replayed(numpyro.primitives.Messenger):
    """Fill the model's sites with what a guide drew; `weighted`, outside, weighs p against q."""

    def __init__(self) -> None:
        super().__init__()
        self.records = False
        self.drawn: dict[str, tuple[Any, Array]] = {}
        self.used: set[str] = set()

    def __enter__(self) -> "_Replayed":
        super().__enter__()
        return self

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Remember the sites drawn inside instead."""
        self.records = True
        try:
            yield
        finally:
            self.records = False

    def check(self) -> None:
        """Raise ValueError where the guide drew a site that the model does not have."""
        unknown = sorted(set(self.drawn) - self.used)
        if unknown:
            raise ValueError(
                f"the guide samples {unknown[0]!r}, which the model's step does not: it cannot weigh it"
            )

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] != "sample" or self.records or msg["is_observed"] or msg["name"] not in self.drawn:
            return
        posterior, msg["value"] = self.drawn[msg["name"]]
        msg["infer"] = (msg["infer"] or {}) | {"posterior": posterior, "rows": None}
        self.used.add(msg["name"])

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] != "sample" or not self.records:
            return
        if msg["is_observed"]:
            raise ValueError(f"the guide observes {msg['name']!r}: a guide only samples, the model observes")
        self.drawn[msg["name"]] = (msg["fn"], msg["value"])


Kernel = PlainKernel | NumPyroKernel


# -- from what a user hands over ------------------------------------------------------------------------------


class Given(NamedTuple):
    """A model and its arguments, checked; `kernel` makes them ready for particles.

    It is what a compiled program takes: what a chain and its guide encode, they encode inside of it.
    """

    model: Any
    args: tuple[Any, ...]  # arrays [B, ...]; for a chain (x,)
    guide: Any
    evidence: Any  # y [B, L], or None
    problems: int  # B
    missing: bool

    def kernel(self, islands: int, strict: bool = False, record_last: bool = False) -> Kernel:
        """The kernel of B·I problems: each one I times."""

        def several(leaf: Any) -> Any:
            whole = islands > 1 and isinstance(leaf, Array) and leaf.ndim and len(leaf) == self.problems
            return jnp.repeat(leaf, islands, 0) if whole else leaf

        columns = self.problems * islands
        if isinstance(self.model, Chain):
            context = jax.tree.map(several, self.model.encode(self.args[0]))
            evidence = None if self.guide is None else self.guide.encode(jnp.repeat(self.evidence, islands, 0))
            return NumPyroKernel(
                self.model, (context,), self.guide, evidence, columns, 0, self.missing, strict, record_last
            )
        args = self.args if self.problems == 1 else jax.tree.map(several, self.args)
        if isinstance(self.model, PlainModel):
            return PlainKernel(self.model, args, columns)
        plates = int(getattr(self.model, "max_plate_nesting", 0))
        return NumPyroKernel(self.model, args, self.guide, None, columns, plates, self.missing, strict)


def given(
    model: Any, args: Sequence[Any], guide: Any = None, evidence: Any = None, problems: int | None = None
) -> Given:
    """Check a model and its arguments.

    Args:
        model: a `Chain`, a `PlainModel`, or an object with NumPyro `init` and `step`.
        args: for a chain `(x,)`; for others what `init` and `step` take.
        guide: a `Guide` for a chain; for other NumPyro models an object with the same two methods.
        evidence: what a chain's guide sees, `[B, L]`.
        problems: B, for models that are no chains; None: 1.

    Raises:
        ValueError: no model of a known kind, or arguments that do not fit the number of problems.
    """
    if isinstance(model, Chain):
        return _given_chain(model, args, guide, evidence, problems)
    if evidence is not None:
        raise ValueError("evidence is for the guide of a chain: this guide is given the model's own arguments")
    b = 1 if problems is None else problems
    if b < 1:
        raise ValueError(f"problems must be at least 1, got {b}")
    held = tuple(jax.tree.map(lambda leaf: jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf, list(args)))
    arrays = [leaf for leaf in jax.tree.leaves(held) if isinstance(leaf, Array)]
    for leaf in arrays if b > 1 else ():
        if leaf.ndim == 0 or len(leaf) != b:
            raise ValueError(
                f"with {b} problems every array argument must be [{b}, ...], got shape {list(leaf.shape)}: "
                "constants that problems share belong to the model"
            )
    if isinstance(model, PlainModel):
        if guide is not None:
            raise ValueError("a PlainModel proposes in its own step: give its log p - log q with the log weight")
        return Given(model, held, None, None, b, False)
    for name in ("init", "step"):
        for part, what in ((model, "model"), (guide, "guide")):
            if part is not None and not callable(getattr(part, name, None)):
                raise ValueError(
                    f"{what} must have the methods init and step, and {type(part).__name__} has no {name}"
                )
    return Given(model, held, guide, None, b, _has_nan(arrays))


def _given_chain(chain: Chain, args: Sequence[Any], guide: Any, evidence: Any, problems: int | None) -> Given:
    if len(args) != 1:
        raise ValueError(f"a chain takes one argument, the problems x, got {len(args)}")
    x = jnp.asarray(as_problems(args[0], chain))
    if problems not in (None, len(x)):
        raise ValueError(f"problems must be the {len(x)} rows of x, or left out, got {problems}")
    y = None
    if guide is not None:
        if not isinstance(guide, Guide):
            raise ValueError(f"the guide of a chain must be a Guide, got {type(guide).__name__}")
        if evidence is None:
            raise ValueError("a chain's guide needs evidence=, the answers y [B, L] that it sees")
        y = jnp.asarray(evidence)
        if len(y) != len(x):
            raise ValueError(f"evidence must have the {len(x)} rows of x, got {len(y)}")
    return Given(chain, (x,), guide, y, len(x), _has_nan([x]))


def _has_nan(arrays: Sequence[Array]) -> bool:
    return any(jnp.issubdtype(leaf.dtype, jnp.floating) and bool(jnp.isnan(leaf).any()) for leaf in arrays)
