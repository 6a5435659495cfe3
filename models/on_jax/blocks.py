"""Network pieces the chains share: post-norm blocks, two bodies, pooling, a token distribution.

The twin of `probgram.models.blocks`, with the same names and layouts of weights and the same laws to draw them
from. Every function takes any number of batch dimensions and folds them into one for the matrix products.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints

from probgram.models.rotary import rotary_tables


def rms_norm(x: Array) -> Array:
    """Scale each token to root mean square 1, without learned gain (a gain lets K·T·S applications blow up)."""
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + jnp.finfo(x.dtype).eps)


class Linear(eqx.Module):
    """x Wᵀ + b for any batch dimensions; drawn uniformly within 1/√inputs."""

    weight: Array  # [outputs, inputs]
    bias: Array | None

    def __init__(self, inputs: int, outputs: int, key: Array, bias: bool = True, zero: bool = False) -> None:
        bound = 0.0 if zero else inputs**-0.5
        first, second = jax.random.split(key)
        self.weight = jax.random.uniform(first, (outputs, inputs), minval=-bound, maxval=bound)
        self.bias = jax.random.uniform(second, (outputs,), minval=-bound, maxval=bound) if bias else None

    def __call__(self, x: Array) -> Array:
        """Map `[..., inputs]` to `[..., outputs]`."""
        product = x @ self.weight.T
        return product if self.bias is None else product + self.bias


class Embedding(eqx.Module):
    """A row of N(0, 1) numbers for each token."""

    weight: Array  # [tokens, D]

    def __init__(self, tokens: int, dim: int, key: Array) -> None:
        self.weight = jax.random.normal(key, (tokens, dim))

    def __call__(self, tokens: Array) -> Array:
        """Map `[...]` to `[..., D]`."""
        return self.weight[tokens]


class SwiGLU(eqx.Module):
    """Gated feed-forward layer: W_down (silu(W_gate x) ⊙ W_up x). Source: Shazeer, arXiv 2002.05202."""

    gate_up: Linear
    down: Linear

    def __init__(self, dim: int, hidden: int, key: Array) -> None:
        first, second = jax.random.split(key)
        self.gate_up = Linear(dim, 2 * hidden, first, bias=False)
        self.down = Linear(hidden, dim, second, bias=False)

    def __call__(self, x: Array) -> Array:
        """Map `[..., D]` to the same shape."""
        gate, up = jnp.split(self.gate_up(x), 2, -1)
        return self.down(jax.nn.silu(gate) * up)


class Attention(eqx.Module):
    """Self-attention over tokens with rotary positions (Su et al., arXiv 2104.09864)."""

    qkv: Linear
    out: Linear
    heads: int = eqx.field(static=True)
    length: int = eqx.field(static=True)

    def __init__(self, dim: int, heads: int, length: int, key: Array) -> None:
        if dim % (2 * heads):
            raise ValueError(f"dim must be a multiple of twice the heads, got dim {dim} and {heads} heads")
        first, second = jax.random.split(key)
        self.heads, self.length = heads, length
        self.qkv = Linear(dim, 3 * dim, first, bias=False)
        self.out = Linear(dim, dim, second, bias=False)

    def __call__(self, x: Array, mask: Array | None) -> Array:
        """Map `[batch, L, D]` to the same shape; `mask` `[batch, L]` is false at padding."""
        batch, length, dim = x.shape
        size = dim // self.heads
        q, k, v = jnp.moveaxis(self.qkv(x).reshape(batch, length, 3, self.heads, size), (2, 3), (0, 2))
        cos, sin = (jnp.asarray(table[:length], x.dtype) for table in rotary_tables(self.length, size))
        q, k = (part * cos + jnp.roll(part, size // 2, -1) * sin for part in (q, k))  # [batch, heads, L, size]
        scores = (q * size**-0.5) @ jnp.swapaxes(k, -1, -2)
        if mask is not None:
            scores = jnp.where(mask[:, None, None, :], scores, -jnp.inf)
        attended = jax.nn.softmax(scores, -1) @ v
        return self.out(jnp.swapaxes(attended, 1, 2).reshape(batch, length, dim))


class TokenMixer(eqx.Module):
    """A SwiGLU over the sequence in place of attention, for boards of one size (as used for Sudoku)."""

    mix: SwiGLU

    def __init__(self, length: int, key: Array) -> None:
        self.mix = SwiGLU(length, 4 * length, key)

    def __call__(self, x: Array, mask: Array | None) -> Array:
        """Map `[batch, L, D]` to the same shape; `mask` `[batch, L]` is false at padding."""
        if mask is not None:
            x = x * mask[..., None]
        return jnp.swapaxes(self.mix(jnp.swapaxes(x, 1, 2)), 1, 2)


class Block(eqx.Module):
    """Mix tokens, then mix features; the norm comes after each residual sum and so ends the block."""

    mix: Attention | TokenMixer
    feed_forward: SwiGLU

    def __call__(self, x: Array, mask: Array | None) -> Array:
        """Map `[batch, L, D]` to the same shape; `mask` `[batch, L]` is false at padding."""
        x = rms_norm(x + self.mix(x, mask))
        return rms_norm(x + self.feed_forward(x))


class Body(eqx.Module):
    """The shared function f: a stack of blocks over `[..., L, D]`.

    Args:
        kind: "attention", or "mixer" (attention-free, one fixed length).
        length: L, the most tokens there can be.
        dim: D.
        heads: attention heads.
        blocks: how many blocks.
        hidden: width of the feed-forward layers.
        key: of the weights.
    """

    blocks: list[Block]

    def __init__(self, kind: str, length: int, dim: int, heads: int, blocks: int, hidden: int, key: Array) -> None:
        if kind not in ("attention", "mixer"):
            raise ValueError(f'body must be "attention" or "mixer", got {kind!r}')

        def block(key: Array) -> Block:
            first, second = jax.random.split(key)
            mix = Attention(dim, heads, length, first) if kind == "attention" else TokenMixer(length, first)
            return Block(mix, SwiGLU(dim, hidden, second))

        self.blocks = [block(k) for k in jax.random.split(key, blocks)]

    def __call__(self, x: Array, mask: Array | None = None) -> Array:
        """Map `[..., L, D]` to the same shape; `mask` `[..., L]` is false at padded tokens."""
        folded = x.reshape(-1, *x.shape[-2:])
        if mask is not None:
            mask = jnp.broadcast_to(mask, x.shape[:-1]).reshape(-1, x.shape[-2])
        for block in self.blocks:
            folded = block(folded, mask)
        return folded.reshape(x.shape)


class PooledHead(eqx.Module):
    """Logits from all tokens: a layer on each, mean and maximum over them, a linear map.

    Padded tokens are exactly zero in the state and are left out of both.
    """

    hidden: Linear
    out: Linear

    def __init__(self, dim: int, outputs: int, key: Array) -> None:
        first, second = jax.random.split(key)
        self.hidden = Linear(dim, dim, first)
        self.out = Linear(2 * dim, outputs, second, zero=True)

    def __call__(self, h: Array) -> Array:
        """Map `[..., L, D]` to `[..., outputs]`."""
        present = (h != 0).any(-1, keepdims=True)
        hidden = jax.nn.silu(self.hidden(h))
        mean = (hidden * present).sum(-2) / present.sum(-2).clip(min=1)
        # silu is bounded below by -0.28, so the floor never wins over a token that is there.
        maximum = jnp.where(present, hidden, -1.0).max(-2)
        return self.out(jnp.concatenate([mean, maximum], -1))


class Tokens(dist.Distribution):
    """Independent categoricals over the tokens of one answer; tokens below 0 are padding and have no density.

    Args:
        logits: `[..., L, V]`.
    """

    arg_constraints = {"logits": constraints.real_matrix}
    has_enumerate_support = False
    pytree_data_fields = ("logits",)

    def __init__(self, logits: Array, *, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape[:-2], logits.shape[-2:-1], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> Any:
        """Tokens from -1 (padding) to V - 1."""
        return constraints.independent(constraints.integer_interval(-1, self.logits.shape[-1] - 1), 1)

    def log_prob(self, value: Array) -> Array:
        """Sum over tokens of log p(token), in nats, `[...]`."""
        log_p = jax.nn.log_softmax(self.logits, -1)
        value = jnp.broadcast_to(value, jnp.broadcast_shapes(value.shape, log_p.shape[:-1])).astype(jnp.int32)
        log_p = jnp.broadcast_to(log_p, (*value.shape, log_p.shape[-1]))
        log_p = jnp.take_along_axis(log_p, value.clip(min=0)[..., None], -1)[..., 0]
        return (log_p * (value >= 0)).sum(-1)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draw answers, int32 `[*sample_shape, ..., L]`."""
        return jax.random.categorical(key, self.logits, shape=(*sample_shape, *self.logits.shape[:-1]))

    @property
    def mode(self) -> Array:
        """The most probable answer, `[..., L]`."""
        return self.logits.argmax(-1)
