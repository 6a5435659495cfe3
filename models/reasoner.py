"""What all reasoners share: tokens in, a latent a token, tokens out; the recursion itself is each model's own.

    e_x = embed(x)                 once a problem; tokens below 0 are padding
    z_0                            one fixed draw from N(0, I), stored with the weights
    h   <- u + eps                 a transition: u is the model's proposal, eps = 0 unless its prior says otherwise
    y   ~ Categorical(decode(h))   the decoder and the heads read h only

A model says `propose`, and what else its source changes: the prior, the start, the state.
"""

from dataclasses import asdict
from typing import Any, ClassVar, NamedTuple, Self

import torch
import torch.nn.functional as F
from pyro import distributions as dist
from torch import Tensor, nn

from probgram.chain import Chain
from probgram.models.blocks import Body, PooledHead, Tokens
from probgram.models.config import ReasonerConfig
from probgram.state import widen
from probgram.tasks import Task


class Context(NamedTuple):
    """What a problem contributes: embedded tokens `[B, L, D]`, and which are not padding `[B, L]` (None: all)."""

    embedded: Tensor
    mask: Tensor | None


class Flat(NamedTuple):
    """A state of one level, `[..., L, D]`."""

    h: Tensor


class Levels(NamedTuple):
    """A state of two levels, `[..., L, D]`; the decoder and the heads read h only."""

    h: Tensor
    l: Tensor


class Proposal(NamedTuple):
    """u and the next l (None with one level), `[..., L, D]`, and the mask `[..., L]` on its way to the prior."""

    u: Tensor
    l: Tensor | None
    mask: Tensor | None


class Reasoner(Chain):
    """The parts of this file's first lines; a model adds `propose`.

    Attributes:
        Config: the dataclass of a model's choices.
        levels: of its state, 1 or 2.
    """

    Config: ClassVar[type[ReasonerConfig]] = ReasonerConfig
    levels: ClassVar[int] = 1
    homogeneous = True
    config: ReasonerConfig
    embed_task: nn.Embedding | None
    judge: nn.Module
    z0: Tensor

    def __init__(self, config: ReasonerConfig) -> None:
        super().__init__()
        self.config = config
        self.f = self._body()
        self.embed = nn.Embedding(config.input_size, config.dim)
        self.embed_task = nn.Embedding(config.tasks, config.dim) if config.tasks else None
        self._build()
        self.decode = nn.Linear(config.dim, config.output_size)
        self.judge = PooledHead(config.dim, 2)
        self.register_buffer("z0", torch.randn(self.levels, config.dim))  # one fixed draw, stored with the weights

    def _body(self) -> Body:
        """A network f of the configured sizes."""
        c = self.config
        return Body(c.body, c.length + (1 if c.tasks else 0), c.dim, c.heads, c.blocks, c.hidden)

    def _build(self) -> None:
        """Make what a model has besides; called once, before the decoder is drawn."""

    @classmethod
    def for_task(cls, task: Task, **choices: Any) -> Self:
        """Build a chain of the right sizes for `task`; `choices` are fields of the model's `Config`."""
        return cls(cls.Config(task.length, task.input_size, task.output_size, **choices))

    # -- the problem ------------------------------------------------------------------------------------------

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

    def encode(self, x: Tensor) -> Context:
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
        return Context(torch.cat(parts, 1), mask)

    # -- the recursion ----------------------------------------------------------------------------------------

    def initial(self, context: Context) -> Any:
        """Start every problem from the stored draw z_0, one row a level."""
        h, *rest = (z.expand_as(context.embedded) for z in self.z0)
        return Levels(masked(h, context.mask), *rest) if rest else Flat(masked(h, context.mask))

    def prior(self, proposal: Any, t: int) -> dist.TorchDistribution:
        """p(eps | u): no noise."""
        return dist.Delta(torch.zeros_like(proposal.u)).to_event(2)

    def move(self, proposal: Any, eps: Tensor) -> Any:
        """Add the noise, h = u + eps; padded tokens stay exactly zero."""
        h = masked(proposal.u + eps, proposal.mask)
        return Flat(h) if proposal.l is None else Levels(h, proposal.l)

    # -- the answer -------------------------------------------------------------------------------------------

    def readout(self, state: Any) -> Tokens:
        """p(y | h)."""
        h = state.h if self.embed_task is None else state.h[..., 1:, :]
        return Tokens(widen(self.decode(h)))

    def heads(self, state: Any) -> dict[str, Tensor]:
        """Logits `[..., B]`: "value", the answer at the end will be right; "halt", it is right now.

        The state is cut from the graph: heads send no gradient into the core.
        """
        logits = self.judge(state.h.detach())
        return {"value": logits[..., 0], "halt": logits[..., 1]}

    # -- weights ----------------------------------------------------------------------------------------------

    def configuration(self) -> dict[str, Any]:
        """What `Config` needs to build this chain again, as plain values."""
        return asdict(self.config)

    @classmethod
    def from_configuration(cls, configuration: dict[str, Any]) -> Self:
        """Build an untrained chain from the result of `configuration`."""
        return cls(cls.Config(**configuration))


def masked(h: Tensor, mask: Tensor | None) -> Tensor:
    """Exactly zero at padded tokens; `h` `[..., L, D]`, `mask` `[..., L]`."""
    return h if mask is None else h * mask[..., None]


def reached(mask: Tensor | None, u: Tensor) -> Tensor | None:
    """A problem's mask `[B, L]` at the batch dimensions of `u` `[..., B, L, D]`."""
    return None if mask is None else mask.expand(u.shape[:-1])


def normal(mean: Tensor, scale: Tensor, mask: Tensor | None) -> dist.TorchDistribution:
    """N(mean, scale²) over tokens and features; at padded tokens N(0, 1), so that KL and ratio vanish there."""
    if mask is not None:
        here = mask[..., None]
        mean, scale = torch.where(here, mean, 0.0), torch.where(here, scale, 1.0)
    return dist.Normal(mean, scale).to_event(2)
