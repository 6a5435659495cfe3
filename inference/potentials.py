"""Potentials: log psi_t, what makes a trajectory worth keeping between depth steps.

A potential is any function `(view) -> log psi [N, B]` of a `View`. Those here multiply (`a * b`, the logs add),
take powers (`a**2`), and say what their normaliser means:

    value, halt        the chain's own heads: a learned twist, E[r | z_t]       Z: nothing's evidence
    energy             exp(-violations / alpha) of the decoded answer            Z: nothing's evidence
    likelihood         p(observed parts of y | z_t)^(t / S)                       Z at the end: log p(y | x)
    look_ahead         a guess of what is still to come, released at the end      Z at the end: the model's own
    accumulated        the product of another one over all depth steps so far      Z: evidence where that one's is

Sources: Whiteley and Lee, "Twisted particle filters", 2014; Chopin and Papaspiliopoulos, "An Introduction to
Sequential Monte Carlo", 2020, sections 5.1 and 10.3 (look-ahead); Naesseth et al., arXiv 1903.04797, section 3.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pyro.distributions import MultivariateNormal
from torch import Tensor

from probgram.checkpoint import fingerprint
from probgram.inference.choices import check_observed
from probgram.inference.handlers import present_log_prob
from probgram.inference.sampling import decoded
from probgram.run import Run

Evidence = Literal["every", "last"] | None


class View:
    """What a potential sees after a depth step; answers and heads are computed when they are first asked for.

    Attributes:
        state: the latent now, leaves `[N, B, ...]`.
        previous: the latent before this depth step, after resampling; None at depth 0, and to a
            rejuvenation move.
        context: what the chain's `encode` returned; for other models their first argument.
        t: depth steps taken, this one included.
        depth: depth steps in all, an int, or int64 `[B]` where problems differ.
        problem: which problem of the run each column is, int64 `[B]`: they leave when they are done.
    """

    def __init__(
        self,
        model: Any,
        state: Any,
        previous: Any,
        context: Any,
        t: int,
        depth: int | Tensor,
        problem: Tensor,
        problems: Tensor | None = None,
        decode: Callable[[Any], Tensor] | None = None,
    ) -> None:
        self.model, self.state, self.previous, self.context = model, state, previous, context
        self.t, self.depth, self.problem, self.decode = t, depth, problem, decode
        self._problems = problems

    @cached_property
    def x(self) -> Tensor:
        """The problems, `[B, ...]`."""
        if self._problems is None:
            raise ValueError(f"{type(self.model).__name__} is no chain, so the run has no problems x")
        return self._problems[self.problem]

    @cached_property
    def heads(self) -> dict[str, Tensor]:
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
    def answer(self) -> Tensor:
        """Decoded answers, `[N, B, L]`."""
        return decoded(self.readout, "mode", self.t) if self.decode is None else self.decode(self.readout)

    @property
    def has_answers(self) -> bool:
        """Whether the model reads answers out of its states."""
        return hasattr(self.model, "readout")

    @property
    def last(self) -> Tensor | bool:
        """Whether this is the last depth step, for each problem `[B]` or for all."""
        return self.t >= self.depth


class Recorded(View):
    """What a potential sees of a run that is over: problems, answers and heads, but no states.

    Args:
        run: what was recorded.
        step: row of the recorded depth steps.
    """

    def __init__(self, run: Run[Any], step: int = -1) -> None:
        problem = torch.arange(run.problems, device=run.answers.device)
        super().__init__(run, None, None, None, run.depths[step], run.depth, problem, run.x)
        self.answer = run.answers[step]  # in the place of the cached properties
        self.heads = {name: logits[step] for name, logits in run.heads.items()}

    @cached_property
    def readout(self) -> Any:
        """There is none.

        Raises:
            ValueError: always.
        """
        raise ValueError("a run keeps answers and heads, no readouts: the confidence needs a potential of these")


class Potential:
    """A function of the view that multiplies and takes powers.

    Attributes:
        evidence: what log Z is under it: "every" row log evidence, the "last" row only, or None.
        look_ahead: whether it looks at observations still to come and is released at the end. Where a guide
            proposes, only such a potential (or an observation) makes weights that are worth resampling.
        neutral: whether psi is 1 at the last depth step, so that it adds no factor of its own.
        accumulates: whether psi_t is the product of what it returned at all depth steps up to t, factors that stay;
            False: psi_t is what it returns at t, in the place of psi_{t-1}.
    """

    library: ClassVar[str] = "torch"  # as that of a run
    evidence: Evidence = None
    look_ahead: bool = False
    neutral: bool = False
    accumulates: bool = False

    def __call__(self, view: View) -> Tensor:
        """Log psi, `[N, B]`; where it accumulates, the factor of this depth step alone."""
        raise NotImplementedError

    def __mul__(self, other: "Potential | Callable[[View], Tensor]") -> "Potential":
        return _Product((self, as_potential(other)))

    def __rmul__(self, other: "Callable[[View], Tensor]") -> "Potential":
        return as_potential(other) * self

    def __pow__(self, power: float) -> "Potential":
        return _Power(self, float(power))


@dataclass(frozen=True)
class Head(Potential):
    """Log probability that a head gives: log sigmoid(logit)."""

    name: str

    def __call__(self, view: View) -> Tensor:
        """Log psi, `[N, B]`."""
        if self.name not in view.heads:
            have = ", ".join(sorted(view.heads)) or "none"
            raise ValueError(f"the potential needs the head {self.name!r}; {type(view.model).__name__} has {have}")
        return F.logsigmoid(view.heads[self.name].float())


value = Head("value")  # the answer at the end will be right
halt = Head("halt")  # the answer is right now


@dataclass(frozen=True)
class Energy(Potential):
    """Exp(-violations / alpha) of the decoded answer; alpha -> inf is no potential, alpha -> 0 greedy search."""

    task: Any
    alpha: float = 0.5

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise ValueError(f"alpha must be above 0, got {self.alpha}")
        if not callable(getattr(self.task, "violations", None)):
            raise ValueError(f"an energy needs a task with violations(x, y), got {type(self.task).__name__}")

    def __call__(self, view: View) -> Tensor:
        """Log psi, `[N, B]`."""
        violations = self.task.violations(view.x, view.answer)
        return -torch.as_tensor(violations, dtype=torch.float32, device=view.answer.device) / self.alpha


energy = Energy


class Likelihood(Potential):
    """p(y | z_t) of the observed tokens, raised to t / S, so that observations come in little by little.

    At the last depth step the power is 1: there log Z estimates log p(y | x).

    Args:
        y: answers, `[B, L]`.
        observed: bool `[B, L]` or `[L]`, which of their tokens count; None: those not below 0
            (of real numbers: not NaN).
        anneal: False: the power is 1 at every depth step, and each row of log Z is the evidence at that depth.
    """

    def __init__(self, y: Any, observed: Any = None, anneal: bool = True) -> None:
        self.y = torch.as_tensor(y)
        if self.y.dim() == 1:
            self.y = self.y[None]
        told = ~self.y.isnan() if self.y.is_floating_point() else self.y >= 0
        self.observed = told if observed is None else torch.as_tensor(observed)
        check_observed(self.y, told, self.observed)
        self.observed = self.observed.expand(self.y.shape)
        self.anneal = anneal
        self._checked = False
        self.evidence = "last" if anneal else "every"

    def __repr__(self) -> str:
        """With what is observed, by which a run that goes on knows it."""
        seen = fingerprint({"y": torch.where(self.observed, self.y, 0), "observed": self.observed})
        return f"Likelihood({seen}, anneal={self.anneal})"

    def __call__(self, view: View) -> Tensor:
        """Log psi, `[N, B]`."""
        device = view.problem.device
        if view._problems is not None and len(self.y) not in (1, len(view._problems)):
            raise ValueError(
                f"y must be one answer or one for each of {len(view._problems)} problems, got {len(self.y)}"
            )
        rows = view.problem if len(self.y) > 1 else torch.zeros_like(view.problem)
        if self.y.device != device:  # once: a copy at every depth step would wait for the host
            self.y, self.observed = self.y.to(device), self.observed.to(device)
        y, observed = self.y[rows], self.observed[rows]
        readout = view.readout
        self._check(readout)
        base, logits = getattr(readout, "base_dist", None), getattr(readout, "logits", None)
        if logits is not None and tuple(logits.shape[-2:-1]) == tuple(y.shape[-1:]):  # tokens, as GRAM's
            law = torch.distributions.Categorical(logits=logits, validate_args=False)
            log_p = torch.where(observed, law.log_prob(torch.where(observed, y, 0)), 0.0).sum(-1)
        elif base is not None and tuple(base.batch_shape[-1:]) == tuple(y.shape[-1:]):
            log_p = torch.where(observed, base.log_prob(torch.where(observed, y, 0)), 0.0).sum(-1)
        elif isinstance(readout, MultivariateNormal):
            log_p = present_log_prob(readout, torch.where(observed, y, torch.nan))
        elif bool(self.observed.all()):
            log_p = readout.log_prob(y)
        else:
            raise ValueError("the readout has no independent tokens, so all of y must be observed")
        if not self.anneal:
            return log_p
        share = view.t / view.depth  # never 0, so that -inf stays
        return (min(share, 1.0) if isinstance(share, float) else share.clamp(max=1.0).to(log_p)) * log_p

    def _check(self, readout: Any) -> None:
        """Once: the length of y, and its tokens."""
        if self._checked:
            return
        self._checked = True
        length = tuple(readout.event_shape)[:1]
        if length and length[0] != self.y.shape[-1]:
            raise ValueError(f"y must hold the {length[0]} tokens of the readout, got {self.y.shape[-1]}")
        logits = getattr(readout, "logits", getattr(getattr(readout, "base_dist", None), "logits", None))
        if logits is None:
            return
        most = int(torch.where(self.observed, self.y, 0).max())
        if most >= logits.shape[-1]:
            raise ValueError(f"y must hold tokens below {logits.shape[-1]}, got {most}")


likelihood = Likelihood


@dataclass(frozen=True)
class LookAhead(Potential):
    """A function of the view that guesses what is still to come; at the last depth step psi = 1.

    With the exact conditional evidence of what is to come every weight is the evidence itself. Auxiliary and
    twisted filters are this potential.
    """

    function: Callable[[View], Tensor]
    evidence: Evidence = "last"
    look_ahead: bool = True
    neutral: bool = True

    def __call__(self, view: View) -> Tensor:
        """Log psi, `[N, B]`."""
        log_psi, last = self.function(view), view.last
        if isinstance(last, bool):
            return torch.zeros_like(log_psi) if last else log_psi
        return torch.where(last, 0.0, log_psi)


look_ahead = LookAhead


@dataclass(frozen=True)
class Accumulated(Potential):
    """A potential as a factor of its own at every depth step, psi_t = Π_{s <= t} g_s: nothing is taken back.

    `accumulated(halt)` weighs a trajectory by all that its halt head has said on the way (BIGR's accumulated
    weights, arXiv 2605.25230), `halt` by what it says now.
    """

    factor: Potential | Callable[[View], Tensor]
    accumulates: bool = True

    @property
    def evidence(self) -> Evidence:  # type: ignore[override]
        """A likelihood at every depth step is one of so many observations."""
        return "every" if as_potential(self.factor).evidence == "every" else None

    def __call__(self, view: View) -> Tensor:
        """Log g_t, `[N, B]`."""
        return as_potential(self.factor)(view)


accumulated = Accumulated


@dataclass(frozen=True)
class Function(Potential):
    """A user's function, which so gains products and powers: `Function(f) * value`."""

    function: Callable[[View], Tensor]

    def __call__(self, view: View) -> Tensor:
        """Log psi, `[N, B]`."""
        return self.function(view)


@dataclass(frozen=True)
class _Product(Potential):
    parts: tuple[Potential, ...]

    def __post_init__(self) -> None:
        if len({part.accumulates for part in self.parts}) > 1:
            raise ValueError("an accumulated potential multiplies accumulated ones only: accumulated(a * b)")

    @property
    def accumulates(self) -> bool:  # type: ignore[override]
        return self.parts[0].accumulates

    @property
    def evidence(self) -> Evidence:  # type: ignore[override]
        kinds = {part.evidence for part in self.parts}
        return None if None in kinds else "last" if "last" in kinds else "every"

    @property
    def look_ahead(self) -> bool:  # type: ignore[override]
        return any(part.look_ahead for part in self.parts)

    @property
    def neutral(self) -> bool:  # type: ignore[override]
        return all(part.neutral for part in self.parts)

    def __call__(self, view: View) -> Tensor:
        total = self.parts[0](view)
        for part in self.parts[1:]:
            total = total + part(view)
        return total


@dataclass(frozen=True)
class _Power(Potential):
    base: Potential
    power: float

    @property
    def accumulates(self) -> bool:  # type: ignore[override]
        return self.base.accumulates

    @property
    def evidence(self) -> Evidence:  # type: ignore[override]
        return self.base.evidence if self.power == 1 or self.base.neutral else None

    @property
    def look_ahead(self) -> bool:  # type: ignore[override]
        return self.base.look_ahead

    @property
    def neutral(self) -> bool:  # type: ignore[override]
        return self.base.neutral

    def __call__(self, view: View) -> Tensor:
        log_psi = self.base(view)
        return torch.zeros_like(log_psi) if self.power == 0 else self.power * log_psi


def as_potential(potential: Potential | Callable[[View], Tensor]) -> Potential:
    """A potential as it is; any other function wrapped.

    Raises:
        ValueError: not a function.
    """
    if isinstance(potential, Potential):
        return potential
    if isinstance(potential, type) or not callable(potential):
        raise ValueError(f"a potential must be a function of the view, got {potential!r}")
    return Function(potential)
