"""What all reasoners share: tokens in, a latent a token, tokens out; the recursion itself is each model's own.

    e_x = embed(x)                 once a problem; tokens below 0 are padding
    z_0                            one fixed draw from N(0, I), stored with the weights
    h   <- u + eps                 a transition: u is the model's proposal, eps = 0 unless its prior says otherwise
    y   ~ Categorical(decode(h))   the decoder and the heads read h only

The twin of `probgram.models.reasoner`. A model says `propose`, and what else its source changes.
"""

from dataclasses import asdict
from typing import Any, ClassVar, NamedTuple, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array

from probgram.models.config import ReasonerConfig
from probgram.models.on_jax.blocks import Body, Embedding, Linear, PooledHead, Tokens
from probgram.models.on_jax.chain import Chain
from probgram.tasks import Task


class Context(NamedTuple):
    """What a problem contributes: embedded tokens `[B, L, D]`, and which are not padding `[B, L]` (None: all)."""

    embedded: Array
    mask: Array | None


class Flat(NamedTuple):
    """A state of one level, `[..., L, D]`."""

    h: Array


class Levels(NamedTuple):
    """A state of two levels, `[..., L, D]`; the decoder and the heads read h only."""

    h: Array
    l: Array


class Proposal(NamedTuple):
    """u and the next l (None with one level), `[..., L, D]`, and the mask `[..., L]` on its way to the prior."""

    u: Array
    l: Array | None
    mask: Array | None


def body_of(config: ReasonerConfig, key: Array) -> Body:
    """A network f of the configured sizes."""
    c = config
    return Body(c.body, c.length + (1 if c.tasks else 0), c.dim, c.heads, c.blocks, c.hidden, key)


class Reasoner(Chain):
    """The parts of this file's first lines; a model adds `propose`.

    Attributes:
        Config: the dataclass of a model's choices.
        levels: of its state, 1 or 2.
    """

    Config: ClassVar[type[ReasonerConfig]] = ReasonerConfig
    levels: ClassVar[int] = 1
    homogeneous: ClassVar[bool] = True
    buffers: ClassVar[tuple[str, ...]] = ("z0",)

    z0: Array
    f: Body
    embed: Embedding
    embed_task: Embedding | None
    decode: Linear
    judge: PooledHead
    config: Any = eqx.field(static=True)

    def __init__(self, config: ReasonerConfig, key: Array | None = None) -> None:
        c = self.config = config
        keys = jax.random.split(jax.random.key(0) if key is None else key, 6)
        self.f = body_of(c, keys[0])
        self.embed = Embedding(c.input_size, c.dim, keys[1])
        self.embed_task = Embedding(c.tasks, c.dim, keys[2]) if c.tasks else None
        self.decode = Linear(c.dim, c.output_size, keys[3])
        self.judge = PooledHead(c.dim, 2, keys[4])
        self.z0 = jax.random.normal(keys[5], (self.levels, c.dim))

    @classmethod
    def for_task(cls, task: Task, key: Array | None = None, **choices: Any) -> Self:
        """Build a chain of the right sizes for `task`; `choices` are fields of the model's `Config`."""
        return cls(cls.Config(task.length, task.input_size, task.output_size, **choices), key=key)

    # -- the problem ------------------------------------------------------------------------------------------

    def check(self, x: Any) -> None:
        """Raise ValueError where x is not `[B, L]` tokens of this chain (with tasks: `[B, 1 + L]`)."""
        x = np.asarray(x)
        self._check_shape(x)
        prefix = 0 if self.embed_task is None else 1
        tokens = x[:, prefix:]
        if int(tokens.max()) >= self.config.input_size:
            raise ValueError(f"x must hold tokens below {self.config.input_size}, got {int(tokens.max())}")
        if bool((tokens < 0).all(1).any()):
            raise ValueError("x must have a token that is not padding in every row")
        if prefix and not 0 <= int(x[:, 0].min()) <= int(x[:, 0].max()) < self.config.tasks:
            raise ValueError(f"the first token of x must name a task from 0 to {self.config.tasks - 1}")

    def check_answers(self, y: Any) -> None:
        """Raise ValueError where y is not `[..., L]` tokens that this chain can decode to (below 0: padding)."""
        y = np.asarray(y)
        if y.shape[-1] > self.config.length or y.dtype.kind == "f" or int(y.max()) >= self.config.output_size:
            raise ValueError(
                f"y must be [..., L] tokens below {self.config.output_size}, L at most {self.config.length}, got "
                f"shape {list(y.shape)} with tokens up to {y.max()}"
            )

    def _check_shape(self, x: Any) -> None:
        prefix = 0 if self.embed_task is None else 1
        length = self.config.length + prefix
        fewer = " or fewer" if self.config.body == "attention" else ""
        if x.ndim != 2 or not prefix < x.shape[1] <= length or (not fewer and x.shape[1] < length):
            raise ValueError(f"x must be [B, L] tokens, L = {length}{fewer}, got shape {list(x.shape)}")
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise ValueError(f"x must hold integers (tokens), got {x.dtype}")

    def encode(self, x: Array, padded: bool | None = None) -> Context:
        """Embed the problem, `[B, L]` (with tasks: `[B, 1 + L]`), once.

        Args:
            x: tokens.
            padded: whether any token may be padding. None: look; where x is traced, it may.
        """
        self._check_shape(x)
        tokens = jnp.asarray(x, jnp.int32)
        parts = []
        if self.embed_task is not None:
            parts.append(self.embed_task(tokens[:, :1]))
            tokens = tokens[:, 1:]
        parts.append(self.embed(tokens.clip(min=0)))
        if padded is None:  # by NumPy: while something else is traced, JAX traces what is asked of a given x too
            padded = isinstance(x, jax.core.Tracer) or bool((np.asarray(x)[:, len(parts) - 1 :] < 0).any())
        mask = jnp.pad(tokens >= 0, ((0, 0), (len(parts) - 1, 0)), constant_values=True) if padded else None
        return Context(jnp.concatenate(parts, 1), mask)

    # -- the recursion ----------------------------------------------------------------------------------------

    def initial(self, context: Context) -> Any:
        """Start every problem from the stored draw z_0, one row a level."""
        z0 = jax.lax.stop_gradient(self.z0)
        h, *rest = (jnp.broadcast_to(z, context.embedded.shape) for z in z0)
        return Levels(masked(h, context.mask), *rest) if rest else Flat(masked(h, context.mask))

    def prior(self, proposal: Any, t: Any) -> dist.Distribution:
        """p(eps | u): no noise."""
        return dist.Delta(jnp.zeros_like(proposal.u), event_dim=2)

    def move(self, proposal: Any, eps: Array) -> Any:
        """Add the noise, h = u + eps; padded tokens stay exactly zero."""
        h = masked(proposal.u + eps, proposal.mask)
        return Flat(h) if proposal.l is None else Levels(h, proposal.l)

    # -- the answer -------------------------------------------------------------------------------------------

    def readout(self, state: Any) -> Tokens:
        """p(y | h)."""
        h = state.h if self.embed_task is None else state.h[..., 1:, :]
        return Tokens(self.decode(h))

    def heads(self, state: Any) -> dict[str, Array]:
        """Logits `[..., B]`: "value", the answer at the end will be right; "halt", it is right now.

        The state is cut from the graph: heads send no gradient into the core.
        """
        logits = self.judge(jax.lax.stop_gradient(state.h))
        return {"value": logits[..., 0], "halt": logits[..., 1]}

    # -- weights ----------------------------------------------------------------------------------------------

    def configuration(self) -> dict[str, Any]:
        """What `Config` needs to build this chain again, as plain values."""
        return asdict(self.config)

    @classmethod
    def from_configuration(cls, configuration: dict[str, Any]) -> Self:
        """Build an untrained chain from the result of `configuration`."""
        return cls(cls.Config(**configuration))


def masked(h: Array, mask: Array | None) -> Array:
    """Exactly zero at padded tokens; `h` `[..., L, D]`, `mask` `[..., L]`."""
    return h if mask is None else h * mask[..., None]


def reached(mask: Array | None, u: Array) -> Array | None:
    """A problem's mask `[B, L]` at the batch dimensions of `u` `[..., B, L, D]`."""
    return None if mask is None else jnp.broadcast_to(mask, u.shape[:-1])


def normal(mean: Array, scale: Array, mask: Array | None) -> dist.Distribution:
    """N(mean, scale²) over tokens and features; at padded tokens N(0, 1), so that KL and ratio vanish there."""
    if mask is not None:
        here = mask[..., None]
        mean, scale = jnp.where(here, mean, 0.0), jnp.where(here, scale, 1.0)
    return dist.Normal(mean, scale).to_event(2)
