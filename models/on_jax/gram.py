"""GRAM: a hierarchical recursion with learned Gaussian guidance.

    l <- f(l + h + e_x)          K refinements of the low-level state
    u  = f(h + l)                the deterministic proposal
    eps ~ N(mu(u), sigma(u)²)    the stochastic guidance: the prior
    h <- u + eps                 a transition; T of them are a depth step
    y ~ Categorical(decode(h))   the decoder reads h only

The twin of `probgram.models.gram`. The guide shares f and replaces the prior by q(eps | u, y).

Source: Baek et al., "Generative Recursive Reasoning", arXiv 2605.19376, equations 2 to 7.
"""

import copy
from dataclasses import replace
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array

from probgram.models.config import GRAMConfig, ReasonerConfig
from probgram.models.on_jax.blocks import Embedding, Linear
from probgram.models.on_jax.chain import Guide
from probgram.models.on_jax.reasoner import Proposal, Reasoner, normal
from probgram.models.on_jax.trm import TRM


class GRAM(TRM):
    """The chain of this file's first lines. Tokens of x below 0 are padding."""

    Config: ClassVar[type[ReasonerConfig]] = GRAMConfig
    mu: Linear | None
    sigma: Linear | None

    def __init__(self, config: GRAMConfig, key: Array | None = None) -> None:
        key = jax.random.key(0) if key is None else key
        Reasoner.__init__(self, config, key)
        # They start at zero, so that training starts from the deterministic update.
        self.mu = Linear(config.dim, config.dim, key, zero=True) if config.mean else None
        self.sigma = Linear(config.dim, config.dim, key, zero=True) if config.noise else None

    @property
    def homogeneous(self) -> bool:  # type: ignore[override]
        """Whether noise is as wide at every depth step."""
        return not self.config.widened_steps

    def prior(self, proposal: Proposal, t: Any) -> dist.Distribution:
        """p(eps | u) = N(mu(u), sigma(u)²)."""
        u, c = proposal.u, self.config
        mu = jnp.zeros_like(u) if self.mu is None else self.mu(u)
        if self.sigma is None:
            return dist.Delta(mu, event_dim=2)
        factor = 1.0 if self.homogeneous else jnp.where(t < c.widened_steps * self.transitions, c.widening, 1.0)
        return _gaussian(mu, self.sigma(u), c, proposal.mask, factor)


class GRAMGuide(Guide):
    """q(eps | u, y): a Gaussian from one hidden layer on [u, e_y].

    y enters by concatenation: added to u, it lets the mean drift far from the prior's.

    Args:
        chain: the chain it guides; only its sizes are used.
        key: of the weights; None: key 1.
    """

    embed: Embedding
    hidden: Linear
    mu: Linear
    sigma: Linear
    config: GRAMConfig = eqx.field(static=True)

    def __init__(self, chain: GRAM, key: Array | None = None) -> None:
        if not chain.config.noise:
            raise ValueError(
                "a chain without noise (noise=False) has no posterior to learn; train it without a guide"
            )
        self.config = chain.config
        dim = self.config.dim
        first, second = jax.random.split(jax.random.key(1) if key is None else key)
        # The last token: padding, and the task token.
        self.embed = Embedding(self.config.output_size + 1, dim, first)
        self.hidden = Linear(2 * dim, dim, second)
        self.mu = Linear(dim, dim, second, zero=True)
        self.sigma = Linear(dim, dim, second, zero=True)

    def encode(self, y: Array) -> Array:
        """Embed the answer, `[..., L]`, to `[..., L, D]`."""
        tokens = jnp.asarray(y, jnp.int32)
        if self.config.tasks:
            tokens = jnp.pad(tokens, ((0, 0),) * (tokens.ndim - 1) + ((1, 0),), constant_values=-1)
        return self.embed(jnp.where(tokens < 0, self.config.output_size, tokens))

    def posterior(self, proposal: Proposal, evidence: Array, t: Any) -> dist.Distribution:
        """q(eps | u, y)."""
        u = proposal.u
        both = jnp.concatenate([u, jnp.broadcast_to(evidence, u.shape)], -1)
        hidden = jax.nn.silu(self.hidden(both))
        return _gaussian(self.mu(hidden), self.sigma(hidden), self.config, proposal.mask)

    @property
    def token_values(self) -> int | None:
        """V: a token's noise sees its own token of y. None in a subclass that has changed what noise sees."""
        own = type(self).posterior is GRAMGuide.posterior and type(self).encode is GRAMGuide.encode
        return self.config.output_size if own else None


def without(chain: GRAM, *, mean: bool = True, noise: bool = True) -> GRAM:
    """Copy trained weights into the ablation with mu = 0 and/or sigma = 0."""
    config = replace(chain.config, mean=mean and chain.config.mean, noise=noise and chain.config.noise)
    mu, sigma = chain.mu if config.mean else None, chain.sigma if config.noise else None
    return _changed(chain, config=config, mu=mu, sigma=sigma)


def widened(chain: GRAM, factor: float, steps: int | None = None) -> GRAM:
    """A copy whose noise is `factor` times as wide: eps ~ N(mu(u), (factor · sigma(u))²), the same weights.

    See `probgram.models.widened`.

    Args:
        chain: a chain with noise.
        factor: above 0; 1 changes nothing.
        steps: the first depth steps, at least 1, that are widened; None: all of them.

    Raises:
        ValueError: factor is not above 0, steps is below 1, or the chain has no noise.
    """
    return _changed(chain, config=chain.config.widened(factor, steps))


def _changed(chain: GRAM, **fields: Any) -> GRAM:
    """A copy with other fields; `eqx.tree_at` changes arrays alone, and the configuration is none."""
    copied = copy.copy(chain)
    for name, value in fields.items():
        object.__setattr__(copied, name, value)
    return copied


def _gaussian(
    mu: Array, raw: Array, config: GRAMConfig, mask: Array | None, factor: Array | float = 1.0
) -> dist.Distribution:
    """N(mu, (factor · sigma)²) over tokens and features."""
    return normal(mu, factor * (config.sigma_min + config.sigma_max * jax.nn.sigmoid(raw)), mask)
