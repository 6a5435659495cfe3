"""Network pieces the chains share: post-norm blocks, two bodies, pooling, a token distribution.

Every function takes any number of batch dimensions and folds them into one for the matrix products.
"""

from typing import Any

import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from probgram.models.rotary import rotary_tables


def rms_norm(x: Tensor) -> Tensor:
    """Scale each token to root mean square 1, without learned gain (a gain lets K·T·S applications blow up)."""
    return F.rms_norm(x, x.shape[-1:])


class SwiGLU(nn.Module):
    """Gated feed-forward layer: W_down (silu(W_gate x) ⊙ W_up x). Source: Shazeer, arXiv 2002.05202."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(dim, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[..., D]` to the same shape."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Attention(nn.Module):
    """Self-attention over tokens with rotary positions (Su et al., arXiv 2104.09864).

    Args:
        dim: D.
        heads: of D / heads features each.
        length: the most tokens.
        theta: base of the rotary wave lengths; None: no positions.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, dim: int, heads: int, length: int, theta: float | None = 10_000.0) -> None:
        super().__init__()
        if dim % (2 * heads):
            raise ValueError(f"dim must be a multiple of twice the heads, got dim {dim} and {heads} heads")
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.rotary = theta is not None
        tables = rotary_tables(length, dim // heads, 10_000.0 if theta is None else theta)
        cos, sin = (torch.from_numpy(table) for table in tables)
        self.register_buffer("cos", cos, persistent=False)  # [L, dim / heads]
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Map `[batch, L, D]` to the same shape; `mask` `[batch, L]` is false at padding."""
        batch, length, dim = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # [batch, heads, L, ·]
        if self.rotary:
            q, k = self._rotate(q), self._rotate(k)
        keys = None if mask is None else mask[:, None, None, :]
        attended = _attend(q, k, v, keys)
        return self.out(attended.transpose(1, 2).reshape(batch, length, dim))

    def _rotate(self, x: Tensor) -> Tensor:
        length = x.shape[-2]  # at most the L that the tables were made for
        cos, sin = self.cos[:length].to(x.dtype), self.sin[:length].to(x.dtype)
        return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin


def _attend(q: Tensor, k: Tensor, v: Tensor, keys: Tensor | None) -> Tensor:
    """Softmax attention; on a CPU the fused kernel is two to three times slower at puzzle lengths."""
    if q.device.type != "cpu" or q.shape[-2] > 128:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=keys)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if keys is not None:
        scores = scores.masked_fill(~keys, -torch.inf)
    return scores.softmax(-1).to(v.dtype) @ v


class TokenMixer(nn.Module):
    """A SwiGLU over the sequence in place of attention, for boards of one size (as used for Sudoku)."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.mix = SwiGLU(length, 4 * length)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Map `[batch, L, D]` to the same shape; `mask` `[batch, L]` is false at padding."""
        if mask is not None:
            x = x * mask[..., None]
        return self.mix(x.transpose(1, 2)).transpose(1, 2)


class Block(nn.Module):
    """Mix tokens, then mix features; the norm comes after each residual sum and so ends the block."""

    def __init__(self, mix: nn.Module, dim: int, hidden: int) -> None:
        super().__init__()
        self.mix = mix
        self.feed_forward = SwiGLU(dim, hidden)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Map `[batch, L, D]` to the same shape; `mask` `[batch, L]` is false at padding."""
        x = rms_norm(x + self.mix(x, mask))
        return rms_norm(x + self.feed_forward(x))


CACHED_TOKENS = (
    4096  # what a CPU takes at a time without gradients: larger temporaries leave its cache, 1.5 × slower
)


class Body(nn.Module):
    """The shared function f: a stack of blocks over `[..., L, D]`.

    Args:
        kind: "attention", or "mixer" (attention-free, one fixed length).
        length: L, the most tokens there can be.
        dim: D.
        heads: attention heads.
        blocks: how many blocks.
        hidden: width of the feed-forward layers.
    """

    def __init__(self, kind: str, length: int, dim: int, heads: int, blocks: int, hidden: int) -> None:
        super().__init__()
        if kind not in ("attention", "mixer"):
            raise ValueError(f'body must be "attention" or "mixer", got {kind!r}')

        def mix() -> nn.Module:
            return Attention(dim, heads, length) if kind == "attention" else TokenMixer(length)

        self.blocks = nn.ModuleList(Block(mix(), dim, hidden) for _ in range(blocks))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map `[..., L, D]` to the same shape; `mask` `[..., L]` is false at padded tokens."""
        folded = x.reshape(-1, *x.shape[-2:])
        if mask is not None:
            mask = mask.expand(x.shape[:-1]).reshape(-1, x.shape[-2])
        rows = len(folded) if x.is_cuda or torch.is_grad_enabled() else max(1, CACHED_TOKENS // x.shape[-2])
        if len(folded) <= rows:
            return self._run(folded, mask).reshape(x.shape)
        masks = [None] * -(-len(folded) // rows) if mask is None else mask.split(rows)
        parts = [self._run(*part) for part in zip(folded.split(rows), masks, strict=True)]
        return torch.cat(parts).reshape(x.shape)

    def _run(self, folded: Tensor, mask: Tensor | None) -> Tensor:
        for block in self.blocks:
            folded = block(folded, mask)
        return folded


class PooledHead(nn.Module):
    """Logits from all tokens: a layer on each, mean and maximum over them, a linear map.

    Padded tokens are exactly zero in the state and are left out of both.
    """

    def __init__(self, dim: int, outputs: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim, dim)
        self.out = nn.Linear(2 * dim, outputs)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, h: Tensor) -> Tensor:
        """Map `[..., L, D]` to `[..., outputs]`."""
        present = (h != 0).any(-1, keepdim=True)
        hidden = F.silu(self.hidden(h))
        mean = (hidden * present).sum(-2) / present.sum(-2).clamp(min=1)
        # silu is bounded below by -0.28, so the floor never wins over a token that is there.
        maximum = hidden.masked_fill(~present, -1.0).amax(-2)
        return self.out(torch.cat([mean, maximum], -1))


class Tokens(TorchDistribution):
    """Independent categoricals over the tokens of one answer; tokens below 0 are padding and have no density.

    Args:
        logits: `[..., L, V]`.
    """

    arg_constraints = {"logits": constraints.real_vector}
    has_enumerate_support = False

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape[:-2], logits.shape[-2:-1], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> Any:
        """Tokens from -1 (padding) to V - 1."""
        return constraints.independent(constraints.integer_interval(-1, self.logits.shape[-1] - 1), 1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Sum over tokens of log p(token), in nats, `[...]`."""
        if self._validate_args:
            self._validate_sample(value)
        log_p = self.logits.log_softmax(-1)
        token, here = value.long().clamp(min=0), value >= 0
        shape = torch.broadcast_shapes(value.shape, log_p.shape[:-1])
        log_p = log_p.expand(*shape, -1).gather(-1, token.expand(shape)[..., None])[..., 0]
        return (log_p * here).sum(-1)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draw answers, int64 `[*sample_shape, ..., L]`."""
        return torch.distributions.Categorical(logits=self.logits, validate_args=False).sample(sample_shape)

    @property
    def mode(self) -> Tensor:
        """The most probable answer, `[..., L]`."""
        return self.logits.argmax(-1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Tokens":
        """Broadcast to a batch shape without copying."""
        return Tokens(self.logits.expand(*batch_shape, *self.logits.shape[-2:]), validate_args=False)
