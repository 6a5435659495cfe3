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

Source: looped flow, arXiv 2609.11801. The codes and the time in the input are choices of ours.
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
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if not self.sigma > 0:
            raise ValueError(f"sigma must be above 0, got {self.sigma}")


class FlowState(NamedTuple):
    """Both levels and the path variable, `[..., L, D]`, and the times of the depth steps, `[..., S + 1]`."""

    h: Tensor
    l: Tensor
    path: Tensor
    times: Tensor


class FlowProposal(NamedTuple):
    """What the next path variable is drawn from; u, l, path and expected `[..., L, D]`, share and scale `[...]`."""

    u: Tensor
    l: Tensor
    path: Tensor
    times: Tensor
    expected: Tensor  # e of the prior
    share: Tensor  # r
    scale: Tensor  # standard deviation of the path's noise
    mask: Tensor | None


class LoopedFlow(TRM):
    """The chain of this file's first lines. Past S depth steps the path stays at the answer last expected."""

    Config = LoopedFlowConfig
    config: LoopedFlowConfig
    homogeneous = False
    codes: Tensor

    def _build(self) -> None:
        self.transitions = 1
        self.inlet = nn.Linear(self.config.dim + 1, self.config.dim)
        self.register_buffer("codes", rms_norm(torch.randn(self.config.output_size, self.config.dim)))

    def initial(self, context: Context) -> FlowState:
        """Draw where the path starts, and in training the times."""
        embedded, steps = context.embedded, self.config.steps
        path = pyro.sample("path", dist.Normal(torch.zeros_like(embedded), 1.0).to_event(2))
        if self.training:
            zeros = embedded.new_zeros(len(embedded), steps - 1)
            between = pyro.sample("times", dist.Uniform(zeros, 1.0).to_event(1)).sort(-1).values
            times = F.pad(F.pad(between, (1, 0), value=0.0), (0, 1), value=1.0)
        else:
            times = torch.linspace(0, 1, steps + 1).to(embedded).expand(*path.shape[:-2], -1)
        h, l = (z.expand_as(path) for z in self.z0)
        return FlowState(masked(h, context.mask), l, path, times)

    def propose(self, state: FlowState, context: Context, t: int) -> FlowProposal:  # type: ignore[override]
        """Recurse T times on the problem and the path, and say how far the path moves, and where to."""
        h, l, path, times = state
        now, then = (times[..., min(n, self.config.steps)] for n in (t, t + 1))
        clock = now[..., None, None].expand(*path.shape[:-1], 1)
        e = context.embedded + self.inlet(torch.cat([path, clock], -1))
        for _ in range(self.config.transitions):
            h, l = h.detach(), l.detach()
            for _ in range(self.config.refinements):
                l = self.f(l + h + e, context.mask)
            h = self.f(h + l, context.mask)
        share = torch.where(now < 1, (then - now) / (1 - now).clamp(min=1e-6), 1.0)
        scale = (self.config.sigma * (then - now).sqrt()).clamp(min=1e-4)
        expected = _aligned(self.readout(Flat(h)).logits.softmax(-1) @ self.codes, path)
        return FlowProposal(h, l, path, times, expected, share, scale, reached(context.mask, h))

    def prior(self, proposal: FlowProposal, t: int) -> dist.TorchDistribution:
        """p(w' | z): towards the answer that the model expects."""
        return _towards(proposal.expected, proposal)

    def move(self, proposal: FlowProposal, eps: Tensor) -> FlowState:
        """Take the path on to what was drawn."""
        return FlowState(masked(proposal.u, proposal.mask), proposal.l, eps, proposal.times)


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
        return _towards(_aligned(evidence, proposal.path), proposal)


def _aligned(codes: Tensor, path: Tensor) -> Tensor:
    """Codes `[..., L, D]` at the batch dimensions of the path; a task token's, in front of them, is zero."""
    codes = F.pad(codes, (0, 0, path.shape[-2] - codes.shape[-2], 0))
    return codes.expand_as(path)


def _towards(target: Tensor, proposal: FlowProposal) -> dist.TorchDistribution:
    """N(w + r (target - w), scale²)."""
    share, scale = (part[..., None, None] for part in (proposal.share, proposal.scale))
    mean = proposal.path + share * (target - proposal.path)
    return normal(mean, scale.expand_as(mean), proposal.mask)
