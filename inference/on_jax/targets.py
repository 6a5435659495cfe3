"""Which of an input's known answers a depth step is trained towards.

The twin of `probgram.inference.targets`, which says what each rule is for and where its equations come from.

    fixed             the answer drawn at the start, whatever the trajectory does
    nearest           the answer that the trajectory now finds most probable
    responsibilities  an answer drawn from p(y_m | state)
    dealt             likewise, dealt in equal shares to the particles of a problem (optimal assignment)
    attributed        an answer that the noise so far argues for, as the guide sees it
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array


class TargetView(NamedTuple):
    """What a rule may look at. Scores are of padded known answers, -inf beyond an input's count.

    Fields:
        log_p: computes log p(y_m | prior state), `[N, B, M]`, nats.
        belief: log p(y_m | noise so far), up to a constant, `[N, B, M]`; None for rules other than
            `attributed`, which alone pays for it.
        current: the answer the depth step was trained towards, `[N, B]`.
        key: of the rule's draws.
    """

    log_p: Callable[[], Array]
    belief: Array | None
    current: Array
    key: Array


class Target(Protocol):
    """A rule: the index of the next depth step's answer, `[N, B]`; it is traced."""

    def __call__(self, view: TargetView) -> Array: ...  # noqa: D102


def rule_of(target: str | Target) -> Target:
    """The rule of a name, or the rule itself."""
    return _RULES[target] if isinstance(target, str) else target


def fixed(view: TargetView) -> Array:
    """Keep the answer that was drawn at the start."""
    return view.current


def nearest(view: TargetView) -> Array:
    """Follow the trajectory: the answer that it now finds most probable."""
    return view.log_p().argmax(-1)


def responsibilities(view: TargetView) -> Array:
    """Draw an answer from p(y_m | state), normalised over the known ones."""
    return _draw(view.log_p(), view.key)


def dealt(view: TargetView, rounds: int = 50) -> Array:
    """Deal a problem's answers to its particles in about equal shares, at the least total cost -log p.

    The assignment is entropic (Sinkhorn's algorithm on `[N, M]` plans with uniform marginals, all problems at
    once), and each particle draws from its row of the plan. It needs several particles to mean anything.
    """
    plan = view.log_p()
    padded = jnp.isneginf(plan[:1])

    def balance(plan: Array, _: None) -> tuple[Array, None]:
        plan = plan - jnp.where(padded, 0.0, jax.nn.logsumexp(plan, 0, keepdims=True))
        return plan - jax.nn.logsumexp(plan, -1, keepdims=True), None

    plan, _ = jax.lax.scan(balance, plan, length=rounds)
    return _draw(plan, view.key)


def attributed(view: TargetView) -> Array:
    """Draw the answer that the trajectory's own noise argues for."""
    assert view.belief is not None
    return _draw(view.belief, view.key)


def _draw(logits: Array, key: Array) -> Array:
    """Draw an index from softmax(logits) by the Gumbel trick."""
    uniform = jax.random.uniform(key, logits.shape, logits.dtype).clip(1e-20, 1 - 1e-7)
    return (logits - jnp.log(-jnp.log(uniform))).argmax(-1)


_RULES: dict[str, Target] = {
    "fixed": fixed,
    "nearest": nearest,
    "responsibilities": responsibilities,
    "dealt": dealt,
    "attributed": attributed,
}
