"""Looped flow: a TRM that is carried from noise to the answer in a few Euler steps.

    w_0 ~ N(0, I)                                      the path variable, a vector a token
    z  <- T cycles of TRM's recursion on e_x + W [w, t]     (h, l) carry on; the last cycle alone has a gradient
    w' ~ N(w + r (e - w), sigma² (t' - t) I)           r = (t' - t) / (1 - t): an Euler-Maruyama step towards e
    prior: e = Σ_v p(v | h) c_v                        the answer as the model now expects it
    guide: e = c_y                                     the answer itself, so w_t = (1 - t) w_0 + t c_y up to noise

A depth step is one such transition; the code c_v of a token is a fixed random vector. In training the times are
sorted uniform draws, at inference t = n / S. Since prior and guide differ in e alone, their KL is the squared error
of the velocity: beta = 1 trains an ELBO, beta = 0 its reconstructions only, y at every time of the guide's path, as
the source does (`inference.recipes.bridged`). Heads see no prior state on that path: `fit_heads` trains them after.

Source: looped flow, arXiv 2609.11801. The codes, and fresh noise at every step, are choices of ours.
"""

from dataclasses import dataclass
from typing import NamedTuple

import pyro
import torch
import torch.nn.functional as F
from pyro import distributions as dist
from torch import Tensor, nn

from probgram.chain import Guide
from probgram.models.blocks import rms_norm
from probgram.models.config import TRMConfig
from probgram.models.reasoner import Context, Flat, masked, normal, reached
from probgram.models.trm import TRM


@dataclass(frozen=True)
class LoopedFlowConfig(TRMConfig):
    """Sizes; `transitions` are the cycles of a depth step."""

    steps: int = 8  # S, depth steps from noise to answer
    sigma: float = 0.1  # noise of the path, above 0; near 0 it is Euler's method

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1 or not self.sigma > 0:
            raise ValueError(f"steps must be at least 1 and sigma above 0, got {self.steps} and {self.sigma}")


class FlowState(NamedTuple):
    """Both levels and the path variable, `[..., L, D]`, and the times of the depth steps, `[..., S + 1]`."""

    h: Tensor
    l: Tensor
    path: Tensor
    times: Tensor


class FlowProposal(NamedTuple):
    """The state after the recursion, and what the next path variable is drawn from."""

    state: FlowState
    share: Tensor  # r, `[..., 1, 1]`
    scale: Tensor  # standard deviation of the path's noise, `[..., 1, 1]`
    mask: Tensor | None


class LoopedFlow(TRM):
    """The chain of this file's first lines. Past S depth steps the path stays at the answer last expected."""

    Config = LoopedFlowConfig
    config: LoopedFlowConfig
    homogeneous = False
    codes: Tensor

    def _build(self) -> None:
        self.transitions, self.fixed_depth = 1, self.config.steps
        self.inlet = nn.Linear(self.config.dim + 1, self.config.dim)
        self.register_buffer("codes", rms_norm(torch.randn(self.config.output_size, self.config.dim)))

    def initial(self, context: Context) -> FlowState:
        """Draw where the path starts, and in training the times."""
        path = pyro.sample("path", dist.Normal(torch.zeros_like(context.embedded), 1.0).to_event(2))
        between = torch.linspace(0, 1, self.config.steps + 1).to(path)[1:-1].expand(*path.shape[:-2], -1)
        if self.training:
            uniform = dist.Uniform(torch.zeros_like(between), 1.0).to_event(1)
            between = pyro.sample("times", uniform).sort(-1).values
        h, l = (z.expand_as(path) for z in self.z0)
        return FlowState(masked(h, context.mask), l, path, F.pad(F.pad(between, (1, 0)), (0, 1), value=1.0))

    def propose(self, state: FlowState, context: Context, t: int) -> FlowProposal:  # type: ignore[override]
        """Recurse T times on the problem and the path, and say how far the path moves."""
        h, l, path, times = state
        now, then = (times[..., min(n, self.config.steps), None, None] for n in (t, t + 1))
        problem = context.embedded + self.inlet(torch.cat([path, now.expand(*path.shape[:-1], 1)], -1))
        for _ in range(self.config.transitions):
            h, l = self._recurse(h.detach(), l.detach(), problem, context.mask)
        share = torch.where(now < 1, (then - now) / (1 - now).clamp(min=1e-6), 1.0)
        scale = (self.config.sigma * (then - now).sqrt()).clamp(min=1e-4)
        return FlowProposal(FlowState(h, l, path, times), share, scale, reached(context.mask, h))

    def prior(self, proposal: FlowProposal, t: int) -> dist.TorchDistribution:
        """p(w' | z): towards the answer that the model expects."""
        return _towards(self.readout(Flat(proposal.state.h)).logits.softmax(-1) @ self.codes, proposal)

    def move(self, proposal: FlowProposal, eps: Tensor) -> FlowState:
        """Take the path on to what was drawn."""
        return proposal.state._replace(h=masked(proposal.state.h, proposal.mask), path=eps)


class LoopedFlowGuide(Guide):
    """q(w' | w, y): towards the answer itself; a fixed law, nothing in it is trained.

    Args:
        chain: the flow it guides.
    """

    codes: Tensor

    def __init__(self, chain: LoopedFlow) -> None:
        super().__init__()
        self.register_buffer("codes", chain.codes)

    def encode(self, y: Tensor) -> Tensor:
        """The codes of the answer, `[..., L]` to `[..., L, D]`."""
        return self.codes[y.long().clamp(min=0)]

    def posterior(self, proposal: FlowProposal, evidence: Tensor, t: int) -> dist.TorchDistribution:
        """Return q(w' | w, y)."""
        return _towards(evidence, proposal)


def _towards(codes: Tensor, proposal: FlowProposal) -> dist.TorchDistribution:
    """N(w + r (codes - w), scale²); a task token, in front of the codes, goes to zero."""
    path = proposal.state.path
    target = F.pad(codes, (0, 0, path.shape[-2] - codes.shape[-2], 0))
    return normal(path + proposal.share * (target - path), proposal.scale, proposal.mask)
