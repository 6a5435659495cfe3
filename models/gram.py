"""GRAM: a hierarchical recursion with learned Gaussian guidance.

    l <- f(l + h + e_x)          K refinements of the low-level state
    u  = f(h + l)                the deterministic proposal
    eps ~ N(mu(u), sigma(u)²)    the stochastic guidance: the prior
    h <- u + eps                 a transition; T of them are a depth step
    y ~ Categorical(decode(h))   the decoder reads h only

One f does both levels. The guide shares it and replaces the prior by q(eps | u, y).

Source: Baek et al., "Generative Recursive Reasoning", arXiv 2605.19376, equations 2 to 7.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from pyro import distributions as dist
from torch import Tensor, nn

from probgram.chain import Chain, Guide
from probgram.models.blocks import Body, PooledHead, Tokens
from probgram.state import widen
from probgram.tasks import Task


@dataclass(frozen=True)
class GRAMConfig:
    """Sizes and choices of a GRAM chain; the defaults are those of the shipped queens8 weights."""

    length: int  # L, the most tokens a problem has
    input_size: int  # different tokens in x
    output_size: int  # different tokens in y
    dim: int = 128  # D
    heads: int = 4  # attention heads
    blocks: int = 2  # blocks in f
    hidden: int = 336  # feed-forward width
    refinements: int = 3  # K
    transitions: int = 2  # T
    body: str = "attention"  # or "mixer": attention-free
    sigma_max: float = 0.5  # sigma(u) = sigma_min + sigma_max · sigmoid(·)
    sigma_min: float = 1e-3  # keeps KL and log densities finite
    mean: bool = True  # False: mu = 0, exploration only
    noise: bool = True  # False: sigma = 0, guidance only (deterministic)
    tasks: int = 0  # > 0: the first token of x names one of so many tasks, and gets a token of its own


class GRAMContext(NamedTuple):
    """What a problem contributes: embedded tokens `[B, L, D]`, and which are not padding `[B, L]` (None: all)."""

    embedded: Tensor
    mask: Tensor | None


class GRAMState(NamedTuple):
    """Both levels, `[..., L, D]`; the decoder and the heads read h only."""

    h: Tensor
    l: Tensor


class GRAMProposal(NamedTuple):
    """u and the refined l, `[..., L, D]`, and the mask `[..., L]` on its way to the prior."""

    u: Tensor
    l: Tensor
    mask: Tensor | None


class GRAM(Chain):
    """The chain of this file's first lines. Tokens of x below 0 are padding."""

    homogeneous = True
    z0: Tensor

    def __init__(self, config: GRAMConfig) -> None:
        super().__init__()
        self.config = config
        self.transitions = config.transitions
        prefix = 1 if config.tasks else 0
        self.f = Body(config.body, config.length + prefix, config.dim, config.heads, config.blocks, config.hidden)
        self.embed = nn.Embedding(config.input_size, config.dim)
        self.embed_task = nn.Embedding(config.tasks, config.dim) if config.tasks else None
        self.mu = _zeros(nn.Linear(config.dim, config.dim)) if config.mean else None
        self.sigma = _zeros(nn.Linear(config.dim, config.dim)) if config.noise else None
        self.decode = nn.Linear(config.dim, config.output_size)
        self.judge = PooledHead(config.dim, 2)
        self.register_buffer("z0", torch.randn(2, config.dim))  # one fixed draw, stored with the weights

    @classmethod
    def for_task(cls, task: Task, **choices: Any) -> "GRAM":
        """Build a chain of the right sizes for `task`; `choices` are fields of `GRAMConfig`."""
        return cls(GRAMConfig(task.length, task.input_size, task.output_size, **choices))

    # -- the recursion ----------------------------------------------------------------------------------------

    def check(self, x: Tensor) -> None:
        """Raise ValueError where x is not `[B, L]` tokens of this chain (with tasks: `[B, 1 + L]`)."""
        self._check_shape(x)
        prefix = 0 if self.embed_task is None else 1
        tokens = x[:, prefix:]
        if int(tokens.max()) >= self.config.input_size:
            raise ValueError(f"x must hold tokens below {self.config.input_size}, got {int(tokens.max())}")
        if bool((tokens < 0).all(1).any()):
            raise ValueError("x must have a token that is not padding in every row")
        if prefix and not 0 <= int(x[:, 0].min()) <= int(x[:, 0].max()) < self.config.tasks:
            raise ValueError(f"the first token of x must name a task from 0 to {self.config.tasks - 1}")

    def check_answers(self, y: Tensor) -> None:
        """Raise ValueError where y is not `[..., L]` tokens that this chain can decode to (below 0: padding)."""
        if y.shape[-1] > self.config.length or y.is_floating_point() or int(y.max()) >= self.config.output_size:
            raise ValueError(
                f"y must be [..., L] tokens below {self.config.output_size}, L at most {self.config.length}, got "
                f"shape {list(y.shape)} with tokens up to {y.max()}"
            )

    def _check_shape(self, x: Tensor) -> None:
        prefix = 0 if self.embed_task is None else 1
        length = self.config.length + prefix
        fewer = " or fewer" if self.config.body == "attention" else ""
        if x.dim() != 2 or not prefix < x.shape[1] <= length or (not fewer and x.shape[1] < length):
            raise ValueError(f"x must be [B, L] tokens, L = {length}{fewer}, got shape {list(x.shape)}")
        if x.is_floating_point() or x.dtype == torch.bool:
            raise ValueError(f"x must hold integers (tokens), got {x.dtype}")

    def encode(self, x: Tensor) -> GRAMContext:
        """Embed the problem, `[B, L]` (with tasks: `[B, 1 + L]`), once."""
        self._check_shape(x)
        tokens = x.long()
        parts = []
        if self.embed_task is not None:
            parts.append(self.embed_task(tokens[:, :1]))
            tokens = tokens[:, 1:]
        parts.append(self.embed(tokens.clamp(min=0)))
        padded = tokens < 0
        mask = None
        if bool(padded.any()):
            mask = F.pad(~padded, (len(parts) - 1, 0), value=True)
        return GRAMContext(torch.cat(parts, 1), mask)

    def initial(self, context: GRAMContext) -> GRAMState:
        """Start every problem from the stored draw z_0 = (h_0, l_0)."""
        h, l = (z.expand_as(context.embedded) for z in self.z0)
        return GRAMState(_masked(h, context.mask), l)

    def propose(self, state: GRAMState, context: GRAMContext, t: int) -> GRAMProposal:
        """Refine l K times, then propose u."""
        h, l = state
        for _ in range(self.config.refinements):
            l = self.f(l + h + context.embedded, context.mask)
        u = self.f(h + l, context.mask)
        return GRAMProposal(u, l, None if context.mask is None else context.mask.expand(u.shape[:-1]))

    def prior(self, proposal: GRAMProposal, t: int) -> dist.TorchDistribution:
        """p(eps | u) = N(mu(u), sigma(u)²)."""
        u = proposal.u
        mu = torch.zeros_like(u) if self.mu is None else self.mu(u)
        if self.sigma is None:
            return dist.Delta(mu).to_event(2)
        return _gaussian(mu, self.sigma(u), self.config, proposal.mask)

    def move(self, proposal: GRAMProposal, eps: Tensor) -> GRAMState:
        """Add the noise, h = u + eps; padded tokens stay exactly zero."""
        return GRAMState(_masked(proposal.u + eps, proposal.mask), proposal.l)

    def readout(self, state: GRAMState) -> Tokens:
        """p(y | h)."""
        h = state.h if self.embed_task is None else state.h[..., 1:, :]
        return Tokens(widen(self.decode(h)))

    def heads(self, state: GRAMState) -> dict[str, Tensor]:
        """Logits `[..., B]`: "value", the answer at the end will be right; "halt", it is right now.

        The state is cut from the graph: heads send no gradient into the core.
        """
        logits = self.judge(state.h.detach())
        return {"value": logits[..., 0], "halt": logits[..., 1]}

    def configuration(self) -> dict[str, Any]:
        """What `GRAMConfig` needs to build this chain again, as plain values."""
        return asdict(self.config)

    @classmethod
    def from_configuration(cls, configuration: dict[str, Any]) -> "GRAM":
        """Build an untrained chain from the result of `configuration`."""
        return cls(GRAMConfig(**configuration))


class GRAMGuide(Guide):
    """q(eps | u, y): a Gaussian from one hidden layer on [u, e_y].

    y enters by concatenation: added to u, it lets the mean drift far from the prior's.

    Args:
        chain: the chain it guides; only its sizes are used.
    """

    def __init__(self, chain: GRAM) -> None:
        super().__init__()
        if not chain.config.noise:
            raise ValueError(
                "a chain without noise (noise=False) has no posterior to learn; train it without a guide"
            )
        self.config = chain.config
        dim = self.config.dim
        self.embed = nn.Embedding(self.config.output_size + 1, dim)  # the last one: padding, and the task token
        self.hidden = nn.Linear(2 * dim, dim)
        self.mu = _zeros(nn.Linear(dim, dim))
        self.sigma = _zeros(nn.Linear(dim, dim))

    def encode(self, y: Tensor) -> Tensor:
        """Embed the answer, `[B, L]`, to `[B, L, D]`."""
        tokens = y.long()
        if self.config.tasks:
            tokens = F.pad(tokens, (1, 0), value=-1)
        return self.embed(torch.where(tokens < 0, self.config.output_size, tokens))

    def posterior(self, proposal: GRAMProposal, evidence: Tensor, t: int) -> dist.TorchDistribution:
        """q(eps | u, y)."""
        u = proposal.u
        hidden = F.silu(self.hidden(torch.cat([u, evidence.expand_as(u)], -1)))
        return _gaussian(self.mu(hidden), self.sigma(hidden), self.config, proposal.mask)


def without(chain: GRAM, *, mean: bool = True, noise: bool = True) -> GRAM:
    """Copy trained weights into the ablation with mu = 0 and/or sigma = 0."""
    ablated = GRAM(replace(chain.config, mean=mean and chain.config.mean, noise=noise and chain.config.noise))
    kept = {k: v for k, v in chain.state_dict().items() if k in ablated.state_dict()}
    ablated.load_state_dict(kept)
    return ablated.to(chain.z0.device)


def _gaussian(mu: Tensor, raw: Tensor, config: GRAMConfig, mask: Tensor | None) -> dist.TorchDistribution:
    """N(mu, sigma²) over tokens and features; at padded tokens N(0, 1), so that KL and ratio vanish there."""
    mu, sigma = widen(mu), config.sigma_min + config.sigma_max * widen(raw).sigmoid()
    if mask is not None:
        mu, sigma = torch.where(mask[..., None], mu, 0.0), torch.where(mask[..., None], sigma, 1.0)
    return dist.Normal(mu, sigma).to_event(2)


def _masked(h: Tensor, mask: Tensor | None) -> Tensor:
    return h if mask is None else h * mask[..., None]


def _zeros(layer: nn.Linear) -> nn.Linear:
    """Start at zero, so that training starts from the deterministic update."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
