"""Which of an input's known answers a depth step is trained towards.

A rule is a function of a `TargetView`, asked after every depth step; it returns the index of the answer
for the next one, `[N, B]`. It is heeded where a prior draw carries on: a posterior draw has seen its answer
and keeps it. With one known answer all rules agree.

    fixed             the answer drawn at the start, whatever the trajectory does
    nearest           the answer that the trajectory now finds most probable
    responsibilities  an answer drawn from p(y_m | state)
    dealt             likewise, dealt in equal shares to the particles of a problem (optimal assignment)
    attributed        an answer that the noise so far argues for, as the guide sees it

A pairing of trajectories and answers must have both marginals right, input by input: the noise is to be the
prior's, the answers as frequent as the data's. `attributed` scores an answer by what the guide, the law of
noise given the answer, says of the noise that was drawn, less what it says of prior noise on average:

    s_m = Σ_t log q(eps_t | u_t, y_m) / p(eps_t | u_t)  +  KL(p(eps_t | u_t) || q(eps_t | u_t, y_m)),

and draws from softmax(s). The first term alone is Bayes' rule; where prior and guide do not match, it drifts
towards the answer the network already likes, by KL(p || q_other) a transition, and feeds on itself as
`nearest` does until one answer is left. With the second the scores are martingales: whatever the network
likes, the noise decides, and no answer starts ahead.

But a martingale never ends: `attributed` goes on asking trajectories that have settled to change their answer,
and a twentieth of them are caught between two. So in the last part of a run (`ObjectiveConfig.settle`)
`responsibilities` takes over: it keeps what a trajectory has settled on, and once the network can reach every
answer it hardly moves their shares.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class TargetView(NamedTuple):
    """What a rule may look at. Scores are of padded known answers, -inf beyond an input's count.

    Fields:
        log_p: computes log p(y_m | prior state), `[N, B, M]`, nats.
        belief: log p(y_m | noise so far), up to a constant, `[N, B, M]`; None for rules other than
            `attributed`, which alone pays for it.
        current: the answer the depth step was trained towards, `[N, B]`.
        uniform_like: draws uniforms in [0, 1) of the shape of an array `[N, B, ...]`; where several processes share
            a batch, each sees those of its rows.
    """

    log_p: Callable[[], Tensor]
    belief: Tensor | None
    current: Tensor
    uniform_like: Callable[[Tensor], Tensor] = torch.rand_like


class Target(Protocol):
    """A rule: the index of the next depth step's answer, `[N, B]`."""

    def __call__(self, view: TargetView) -> Tensor: ...  # noqa: D102


def rule_of(target: str | Target) -> Target:
    """The rule of a name, or the rule itself."""
    return _RULES[target] if isinstance(target, str) else target


def fixed(view: TargetView) -> Tensor:
    """Keep the answer that was drawn at the start."""
    return view.current


def nearest(view: TargetView) -> Tensor:
    """Follow the trajectory: the answer that it now finds most probable."""
    return view.log_p().argmax(-1)


def responsibilities(view: TargetView) -> Tensor:
    """Draw an answer from p(y_m | state), normalised over the known ones."""
    return _draw(view.log_p(), view)


def dealt(view: TargetView, rounds: int = 50) -> Tensor:
    """Deal a problem's answers to its particles in about equal shares, at the least total cost -log p.

    The assignment is entropic (Sinkhorn's algorithm on `[N, M]` plans with uniform marginals, all problems at
    once), and each particle draws from its row of the plan. It needs several particles to mean anything.
    """
    plan = view.log_p()
    padded = plan.isneginf()
    for _ in range(rounds):
        plan = plan - plan.logsumexp(0, keepdim=True).masked_fill(padded[:1], 0.0)
        plan = plan - plan.logsumexp(-1, keepdim=True)
    return _draw(plan, view)


def attributed(view: TargetView) -> Tensor:
    """Draw the answer that the trajectory's own noise argues for (the equation above)."""
    assert view.belief is not None
    return _draw(view.belief, view)


def _draw(logits: Tensor, view: TargetView) -> Tensor:
    """Draw an index from softmax(logits) by the Gumbel trick, without reading anything back to the host."""
    uniform = view.uniform_like(logits).clamp_(1e-20, 1 - 1e-7)
    return (logits - torch.log(-torch.log(uniform))).argmax(-1)


_RULES: dict[str, Target] = {
    "fixed": fixed,
    "nearest": nearest,
    "responsibilities": responsibilities,
    "dealt": dealt,
    "attributed": attributed,
}
