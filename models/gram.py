"""GRAM: a hierarchical recursion with learned Gaussian guidance.

    l <- f(l + h + e_x)          K refinements of the low-level state
    u  = f(h + l)                the deterministic proposal
    eps ~ N(mu(u), sigma(u)²)    the stochastic guidance: the prior
    h <- u + eps                 a transition; T of them are a depth step
    y ~ Categorical(decode(h))   the decoder reads h only

One f does both levels: up to the noise this is TRM, whose `propose` it inherits. The guide shares f and replaces
the prior by q(eps | u, y).

Source: Baek et al., "Generative Recursive Reasoning", arXiv 2605.19376, equations 2 to 7.
"""

import copy
from dataclasses import replace

import torch
import torch.nn.functional as F
from pyro import distributions as dist
from torch import Tensor, nn

from probgram.chain import Guide
from probgram.models.config import GRAMConfig
from probgram.models.reasoner import Proposal, normal
from probgram.models.trm import TRM
from probgram.state import widen


class GRAM(TRM):
    """The chain of this file's first lines. Tokens of x below 0 are padding."""

    Config = GRAMConfig
    config: GRAMConfig

    def _build(self) -> None:
        super()._build()
        dim = self.config.dim
        self.mu = _zeros(nn.Linear(dim, dim)) if self.config.mean else None
        self.sigma = _zeros(nn.Linear(dim, dim)) if self.config.noise else None

    @property
    def homogeneous(self) -> bool:  # type: ignore[override]
        """Whether noise is as wide at every depth step."""
        return not self.config.widened_steps

    def prior(self, proposal: Proposal, t: int) -> dist.TorchDistribution:
        """p(eps | u) = N(mu(u), sigma(u)²)."""
        u, c = proposal.u, self.config
        mu = torch.zeros_like(u) if self.mu is None else self.mu(u)
        if self.sigma is None:
            return dist.Delta(mu).to_event(2)
        factor = c.widening if t < c.widened_steps * self.transitions else 1.0
        return _gaussian(mu, self.sigma(u), c, proposal.mask, factor)


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

    def posterior(self, proposal: Proposal, evidence: Tensor, t: int) -> dist.TorchDistribution:
        """q(eps | u, y)."""
        u = proposal.u
        hidden = F.silu(self.hidden(torch.cat([u, evidence.expand_as(u)], -1)))
        return _gaussian(self.mu(hidden), self.sigma(hidden), self.config, proposal.mask)

    @property
    def token_values(self) -> int | None:
        """V: a token's noise sees its own token of y. None in a subclass that has changed what noise sees."""
        own = type(self).posterior is GRAMGuide.posterior and type(self).encode is GRAMGuide.encode
        return self.config.output_size if own else None


def without(chain: GRAM, *, mean: bool = True, noise: bool = True) -> GRAM:
    """Copy trained weights into the ablation with mu = 0 and/or sigma = 0."""
    ablated = GRAM(replace(chain.config, mean=mean and chain.config.mean, noise=noise and chain.config.noise))
    kept = {k: v for k, v in chain.state_dict().items() if k in ablated.state_dict()}
    ablated.load_state_dict(kept)
    return ablated.to(chain.z0.device)


def widened(chain: GRAM, factor: float, steps: int | None = None) -> GRAM:
    """A copy whose noise is `factor` times as wide: eps ~ N(mu(u), (factor · sigma(u))²), the same weights.

    What a temperature is to a language model: above 1 draws spread over more answers, and more of them are wrong.
    Which answer a trajectory comes to is decided early, so that noise which is wide in the first depth steps alone
    spreads as far and spoils far less (measured: benchmarks/widening.py). Nothing is trained, and the guide stays
    what it is. The settings of a run name its weights, not the factor.

    Args:
        chain: a chain with noise.
        factor: above 0; 1 changes nothing.
        steps: the first depth steps, at least 1, that are widened; a quarter of a run's is a good first try. None:
            all of them.

    Raises:
        ValueError: factor is not above 0, steps is below 1, or the chain has no noise.
    """
    copied = copy.deepcopy(chain)
    copied.config = chain.config.widened(factor, steps)
    return copied


def _gaussian(
    mu: Tensor, raw: Tensor, config: GRAMConfig, mask: Tensor | None, factor: float = 1.0
) -> dist.TorchDistribution:
    """N(mu, (factor · sigma)²) over tokens and features."""
    sigma = config.sigma_min + config.sigma_max * widen(raw).sigmoid()
    return normal(widen(mu), sigma if factor == 1 else factor * sigma, mask)


def _zeros(layer: nn.Linear) -> nn.Linear:
    """Start at zero, so that training starts from the deterministic update."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
