"""Potentials: log psi_t, what makes a trajectory worth keeping between depth steps.

A potential is any function `(view) -> log psi [N, B]` of a `View`. Those here multiply (`a * b`, the logs add),
take powers (`a**2`), and say what their normaliser means:

    value, halt        the chain's own heads: a learned twist, E[r | z_t]       Z: nothing's evidence
    energy             exp(-violations / alpha) of the decoded answer            Z: nothing's evidence
    likelihood         p(observed parts of y | z_t)^(t / S)                       Z at the end: log p(y | x)
    look_ahead         a guess of what is still to come, released at the end      Z at the end: the model's own
    accumulated        the product of another one over all depth steps so far      Z: evidence where that one's is

The twin of `probgram.inference.potentials`. They are called while JAX traces the depth loop: `view.t` is a traced
number. A potential is an Equinox module, whose arrays are data: new ones do not compile anything again. A function
defined anew for every run does.

Sources: Whiteley and Lee, "Twisted particle filters", 2014; Chopin and Papaspiliopoulos, "An Introduction to
Sequential Monte Carlo", 2020, sections 5.1 and 10.3 (look-ahead); Naesseth et al., arXiv 1903.04797, section 3.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array

from probgram.checkpoint import fingerprint
from probgram.inference.choices import check_observed
from probgram.inference.on_jax.handlers import present_log_prob, seeded
from probgram.inference.on_jax.sampling import decoded
from probgram.run import Run

Evidence = Literal["every", "last"] | None


@jax.tree_util.register_pytree_node_class
class View:
    """What a potential sees after a depth step; answers and heads are computed when they are first asked for.

    Attributes:
        state: the latent now, leaves `[N, B, ...]`.
        previous: the latent before this depth step, after resampling; None at depth 0, and to a
            rejuvenation move.
        context: what the chain's `encode` returned; for other models their first argument.
        t: depth steps taken, this one included; a traced number.
        depth: depth steps in all, a number, or integers `[B]` where problems differ.
        problem: which problem of the run each column is, integers `[B]`: islands repeat them.
    """

    def __init__(
        self,
        model: Any,
        state: Any,
        previous: Any,
        context: Any,
        t: Any,
        depth: Any,
        problem: Array,
        problems: Array | None = None,
        key: Array | None = None,
    ) -> None:
        self.model, self.state, self.previous, self.context = model, state, previous, context
        self.t, self.depth, self.problem = t, depth, problem
        self._problems, self._key = problems, key

    def tree_flatten(self) -> tuple[tuple[Any, ...], None]:
        """All of it is data to JAX."""
        parts = (self.model, self.state, self.previous, self.context, self.t, self.depth, self.problem)
        return (*parts, self._problems, self._key), None

    @classmethod
    def tree_unflatten(cls, _: None, parts: tuple[Any, ...]) -> "View":
        """Put together again."""
        return cls(*parts)

    @cached_property
    def x(self) -> Array:
        """The problems, `[B, ...]`."""
        if self._problems is None:
            raise ValueError(f"{type(self.model).__name__} is no chain, so the run has no problems x")
        return self._problems[self.problem]

    @cached_property
    def heads(self) -> dict[str, Array]:
        """Logits `[N, B]` by name; none where the model has no heads."""
        heads = getattr(self.model, "heads", None)
        return {} if heads is None else heads(self.state)

    @cached_property
    def readout(self) -> Any:
        """p(y | state)."""
        if not hasattr(self.model, "readout"):
            raise ValueError(f"{type(self.model).__name__} has no readout, so its states have no answers")
        return self.model.readout(self.state)

    @cached_property
    def answer(self) -> Array:
        """Decoded answers, `[N, B, L]`, in the smallest integer type that fits."""
        if self._key is None:
            return decoded(self.readout, "mode")
        with seeded(self._key):
            return decoded(self.readout, "sample")

    @property
    def has_answers(self) -> bool:
        """Whether the model reads answers out of its states."""
        return hasattr(self.model, "readout")

    @property
    def last(self) -> Array:
        """Whether this is the last depth step, for each problem `[B]` or for all."""
        return jnp.asarray(self.t) >= self.depth


class Recorded(View):
    """What a potential sees of a run that is over: problems, answers and heads, but no states.

    Args:
        run: what was recorded.
        step: row of the recorded depth steps.
    """

    def __init__(self, run: Run[Any], step: int = -1) -> None:
        problem = jnp.arange(run.problems)
        super().__init__(run, None, None, None, run.depths[step], run.depth, problem, jnp.asarray(run.x))
        self.answer = jnp.asarray(run.answers[step])  # in the place of the cached properties
        self.heads = {name: jnp.asarray(logits[step]) for name, logits in run.heads.items()}

    @cached_property
    def readout(self) -> Any:
        """There is none.

        Raises:
            ValueError: always.
        """
        raise ValueError("a run keeps answers and heads, no readouts: the confidence needs a potential of these")


class Potential(eqx.Module):
    """A function of the view that multiplies and takes powers.

    Attributes:
        evidence: what log Z is under it: "every" row log evidence, the "last" row only, or None.
        look_ahead: whether it looks at observations still to come and is released at the end. Where a guide
            proposes, only such a potential (or an observation) makes weights that are worth resampling.
        neutral: whether psi is 1 at the last depth step, so that it adds no factor of its own.
        accumulates: whether psi_t is the product of what it returned at all depth steps up to t, factors that stay;
            False: psi_t is what it returns at t, in the place of psi_{t-1}.
    """

    library: ClassVar[str] = "jax"  # as that of a run
    evidence: ClassVar[Any] = None
    look_ahead: ClassVar[Any] = False
    neutral: ClassVar[Any] = False
    accumulates: ClassVar[Any] = False

    def __call__(self, view: View) -> Array:
        """Log psi, `[N, B]`; where it accumulates, the factor of this depth step alone."""
        raise NotImplementedError

    def __mul__(self, other: "Potential | Callable[[View], Array]") -> "Potential":
        return _Product((self, as_potential(other)))

    def __rmul__(self, other: "Callable[[View], Array]") -> "Potential":
        return as_potential(other) * self

    def __pow__(self, power: float) -> "Potential":
        return _Power(self, float(power))


class Head(Potential):
    """Log probability that a head gives: log sigmoid(logit)."""

    name: str = eqx.field(static=True)

    def __call__(self, view: View) -> Array:
        """Log psi, `[N, B]`."""
        if self.name not in view.heads:
            have = ", ".join(sorted(view.heads)) or "none"
            raise ValueError(f"the potential needs the head {self.name!r}; {type(view.model).__name__} has {have}")
        logit = view.heads[self.name]
        return jax.nn.log_sigmoid(logit.astype(jnp.promote_types(logit.dtype, jnp.float32)))


value = Head("value")  # the answer at the end will be right
halt = Head("halt")  # the answer is right now


class Energy(Potential):
    """Exp(-violations / alpha) of the decoded answer; alpha -> inf is no potential, alpha -> 0 greedy search.

    A task that counts with operators alone is compiled; one that needs NumPy itself is called back on the host.
    """

    task: Any = eqx.field(static=True)
    alpha: float = eqx.field(static=True, default=0.5)

    def __check_init__(self) -> None:
        if not self.alpha > 0:
            raise ValueError(f"alpha must be above 0, got {self.alpha}")
        if not callable(getattr(self.task, "violations", None)):
            raise ValueError(f"an energy needs a task with violations(x, y), got {type(self.task).__name__}")

    def __call__(self, view: View) -> Array:
        """Log psi, `[N, B]`."""
        return -violations(self.task, view.x, view.answer).astype(jnp.float32) / self.alpha


energy = Energy


def violations(task: Any, x: Array, y: Array) -> Array:
    """`task.violations(x, y)` of traced arrays, integers `[N, B]`; x `[B, ...]`, y `[N, B, L]`."""
    try:
        counted = task.violations(x, y)
    except (TypeError, ValueError, AttributeError):  # what NumPy can do and tracing cannot
        counted = None
    if isinstance(counted, Array):
        return counted

    def on_host(x: Any, y: Any) -> np.ndarray:
        return np.asarray(task.violations(np.asarray(x), np.asarray(y)), np.int32)

    return jax.pure_callback(on_host, jax.ShapeDtypeStruct(y.shape[:-1], jnp.int32), x, y)


class Likelihood(Potential):
    """p(y | z_t) of the observed tokens, raised to t / S, so that observations come in little by little.

    At the last depth step the power is 1: there log Z estimates log p(y | x).

    Args:
        y: answers, `[B, L]`.
        observed: bool `[B, L]` or `[L]`, which of their tokens count; None: those not below 0
            (of real numbers: not NaN).
        anneal: False: the power is 1 at every depth step, and each row of log Z is the evidence at that depth.
    """

    y: Array
    observed: Array
    anneal: bool = eqx.field(static=True)
    whole: bool = eqx.field(static=True)  # whether all of y is observed
    most: int | None = eqx.field(static=True)  # the largest token; None: real numbers

    def __init__(self, y: Any, observed: Any = None, anneal: bool = True) -> None:
        y = np.asarray(y)
        y = y[None] if y.ndim == 1 else y
        real = y.dtype.kind == "f"
        told = ~np.isnan(y) if real else y >= 0
        observed = told if observed is None else np.asarray(observed)
        check_observed(y, told, observed)
        observed = np.broadcast_to(observed, y.shape)
        self.y, self.observed, self.anneal = jnp.asarray(y), jnp.asarray(observed), anneal
        self.whole, self.most = bool(observed.all()), None if real else int(np.where(observed, y, 0).max())

    def __repr__(self) -> str:
        """With what is observed, by which a run that goes on knows it."""
        y, observed = np.asarray(self.y), np.asarray(self.observed)
        seen = fingerprint({"y": np.where(observed, y, 0), "observed": observed})
        return f"Likelihood({seen}, anneal={self.anneal})"

    @property
    def evidence(self) -> Evidence:
        """Annealed, the last row only."""
        return "last" if self.anneal else "every"

    def __call__(self, view: View) -> Array:
        """Log psi, `[N, B]`."""
        if view._problems is not None and len(self.y) not in (1, len(view._problems)):
            raise ValueError(
                f"y must be one answer or one for each of {len(view._problems)} problems, got {len(self.y)}"
            )
        rows = view.problem if len(self.y) > 1 else jnp.zeros_like(view.problem)
        y, observed = self.y[rows], self.observed[rows]
        readout = view.readout
        logits = self._check(readout)
        if logits is not None and tuple(logits.shape[-2:-1]) == tuple(y.shape[-1:]):  # tokens, as GRAM's
            log_p = jax.nn.log_softmax(logits, -1)
            token = jnp.broadcast_to(jnp.where(observed, y, 0), log_p.shape[:-1])[..., None]
            log_p = jnp.where(observed, jnp.take_along_axis(log_p, token, -1)[..., 0], 0.0).sum(-1)
        elif isinstance(readout, dist.Independent) and readout.base_dist.batch_shape[-1:] == y.shape[-1:]:
            log_p = jnp.where(observed, readout.base_dist.log_prob(jnp.where(observed, y, 0)), 0.0).sum(-1)
        elif isinstance(readout, dist.MultivariateNormal):
            log_p = present_log_prob(readout, jnp.where(observed, y, jnp.nan))
        elif self.whole:
            log_p = readout.log_prob(y)
        else:
            raise ValueError("the readout has no independent tokens, so all of y must be observed")
        if not self.anneal:
            return log_p
        share = jnp.minimum(view.t / view.depth, 1.0)  # never 0, so that -inf stays
        return share.astype(log_p.dtype) * log_p

    def _check(self, readout: Any) -> Array | None:
        """The length of y, and its tokens; the logits where there are some."""
        length = tuple(readout.event_shape)[:1]
        if length and length[0] != self.y.shape[-1]:
            raise ValueError(f"y must hold the {length[0]} tokens of the readout, got {self.y.shape[-1]}")
        logits = getattr(readout, "logits", getattr(getattr(readout, "base_dist", None), "logits", None))
        if logits is not None and self.most is not None and self.most >= logits.shape[-1]:
            raise ValueError(f"y must hold tokens below {logits.shape[-1]}, got {self.most}")
        return logits


likelihood = Likelihood


class LookAhead(Potential):
    """A function of the view that guesses what is still to come; at the last depth step psi = 1.

    With the exact conditional evidence of what is to come every weight is the evidence itself. Auxiliary and
    twisted filters are this potential.
    """

    function: Callable[[View], Array]
    evidence: Evidence = eqx.field(static=True)  # type: ignore[misc]
    look_ahead: bool = eqx.field(static=True)  # type: ignore[misc]
    neutral: bool = eqx.field(static=True)  # type: ignore[misc]

    def __init__(
        self,
        function: Callable[[View], Array],
        evidence: Evidence = "last",
        look_ahead: bool = True,
        neutral: bool = True,
    ) -> None:
        self.function, self.evidence, self.look_ahead, self.neutral = function, evidence, look_ahead, neutral

    def __call__(self, view: View) -> Array:
        """Log psi, `[N, B]`."""
        return jnp.where(view.last, 0.0, self.function(view))


look_ahead = LookAhead


class Accumulated(Potential):
    """A potential as a factor of its own at every depth step, psi_t = Π_{s <= t} g_s: nothing is taken back.

    `accumulated(halt)` weighs a trajectory by all that its halt head has said on the way (BIGR's accumulated
    weights, arXiv 2605.25230), `halt` by what it says now.
    """

    factor: Potential | Callable[[View], Array]
    accumulates: ClassVar[Any] = True

    @property
    def evidence(self) -> Evidence:
        """A likelihood at every depth step is one of so many observations."""
        return "every" if as_potential(self.factor).evidence == "every" else None

    def __call__(self, view: View) -> Array:
        """Log g_t, `[N, B]`."""
        return as_potential(self.factor)(view)


accumulated = Accumulated


class Function(Potential):
    """A user's function, which so gains products and powers: `Function(f) * value`."""

    function: Callable[[View], Array]

    def __call__(self, view: View) -> Array:
        """Log psi, `[N, B]`."""
        return self.function(view)


class _Product(Potential):
    parts: tuple[Potential, ...]

    def __check_init__(self) -> None:
        if len({part.accumulates for part in self.parts}) > 1:
            raise ValueError("an accumulated potential multiplies accumulated ones only: accumulated(a * b)")

    @property
    def accumulates(self) -> bool:
        return self.parts[0].accumulates

    @property
    def evidence(self) -> Evidence:
        kinds = {part.evidence for part in self.parts}
        return None if None in kinds else "last" if "last" in kinds else "every"

    @property
    def look_ahead(self) -> bool:
        return any(part.look_ahead for part in self.parts)

    @property
    def neutral(self) -> bool:
        return all(part.neutral for part in self.parts)

    def __call__(self, view: View) -> Array:
        total = self.parts[0](view)
        for part in self.parts[1:]:
            total = total + part(view)
        return total


class _Power(Potential):
    base: Potential
    power: float = eqx.field(static=True)

    @property
    def accumulates(self) -> bool:
        return self.base.accumulates

    @property
    def evidence(self) -> Evidence:
        return self.base.evidence if self.power == 1 or self.base.neutral else None

    @property
    def look_ahead(self) -> bool:
        return self.base.look_ahead

    @property
    def neutral(self) -> bool:
        return self.base.neutral

    def __call__(self, view: View) -> Array:
        log_psi = self.base(view)
        return jnp.zeros_like(log_psi) if self.power == 0 else self.power * log_psi


def as_potential(potential: Potential | Callable[[View], Array]) -> Potential:
    """A potential as it is; any other function wrapped.

    Raises:
        ValueError: not a function.
    """
    if isinstance(potential, Potential):
        return potential
    if isinstance(potential, type) or not callable(potential):
        raise ValueError(f"a potential must be a function of the view, got {potential!r}")
    return Function(potential)
