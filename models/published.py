"""Weights of the field's own TRM code (`TinyRecursiveReasoningModel_ACTV1`), read into a chain.

The recursion is TRM's. The network differs from ours in details, which `PublishedTRM` has:

    front     tokens before the problem, a learned embedding of the puzzle's identifier, zeros behind it
    norm      x / sqrt(mean(x²) + 1e-5); without attention the first of a block is taken over tokens, not features
    decoder   a linear map without bias, then stablemax: p(v) = s(o_v) / Σ s(o), s(o) = 1 + o, below 0 1 / (1 - o)
    halting   a linear map of the first token of h

Tokens are the published data sets' own: for Sudoku 1 is a blank and digit d is d + 1, as `tasks.Shifted(Sudoku(3))`
has them; for ARC colour c is c + 2.
A file says neither its time scales nor its number of attention heads, positions or loss: they are in the
`all_config.yaml` beside it.

Sources: Jolicoeur-Martineau, arXiv 2510.04871, and the names in the published checkpoints; stablemax: Prieto et
al., "Grokking at the Edge of Numerical Stability", arXiv 2501.04697.
"""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from probgram.checkpoint import CheckpointError, one_line, read_tensors
from probgram.models.blocks import Attention, Body, SwiGLU, Tokens
from probgram.models.config import TRMConfig
from probgram.models.reasoner import Context
from probgram.models.trm import TRM
from probgram.state import widen

EPSILON = 1e-5  # of the published norm


@dataclass(frozen=True)
class PublishedConfig(TRMConfig):
    """Sizes of a published network; `tasks` are its puzzle identifiers where there are several."""

    front: int = 16  # tokens before the problem
    mix_hidden: int = 512  # feed-forward width over tokens, without attention
    rope_theta: float | None = 10_000.0  # base of the rotary positions; None: no positions
    stablemax: bool = True  # how logits become probabilities; False: softmax


class PublishedTRM(TRM):
    """The chain of this file's first lines; problems have no padding.

    With several identifiers the first token of x is the puzzle's, as for any chain with `tasks`.
    """

    Config = PublishedConfig
    config: PublishedConfig
    front: Tensor

    def __init__(self, config: PublishedConfig) -> None:
        super().__init__(config)
        self.judge = nn.Linear(config.dim, 2)
        self.embed_task = nn.Embedding(config.tasks, config.front * config.dim) if config.tasks else None
        self.register_buffer("front", None if config.tasks else torch.zeros(config.front, config.dim))

    def _body(self) -> Body:
        c = self.config
        body = Body(c.body, c.front + c.length, c.dim, c.heads, 0, c.hidden)
        body.blocks.extend(_Block(c) for _ in range(c.blocks))
        return body

    def check(self, x: Tensor) -> None:
        """Raise ValueError where x is not `[B, L]` tokens of this chain, or has padding."""
        super().check(x)
        if bool((x < 0).any()):
            raise ValueError("x must have no padding: the published network has no mask")

    def encode(self, x: Tensor) -> Context:
        """Embed the problem behind the front tokens."""
        self._check_shape(x)
        tokens = x.long()
        if self.embed_task is None:
            front = self.front.expand(len(x), -1, -1)
        else:
            front = self.embed_task(tokens[:, 0]).unflatten(-1, (self.config.front, -1))
            tokens = tokens[:, 1:]
        return Context(torch.cat([front, self.embed(tokens)], 1), None)

    def readout(self, state: Any) -> Tokens:
        """p(y | h), by stablemax unless the configuration says softmax."""
        logits = widen(self.decode(state.h[..., self.config.front :, :]))
        return Tokens(logits.sign() * logits.abs().log1p() if self.config.stablemax else logits)

    def heads(self, state: Any) -> dict[str, Tensor]:
        """The logit "halt", `[..., B]`: the answer is right now."""
        return {"halt": self.judge(state.h[..., 0, :].detach())[..., 0]}


class _Block(nn.Module):
    """A published block: mix tokens, then features, each with its norm behind it."""

    def __init__(self, config: PublishedConfig) -> None:
        super().__init__()
        length, self.attends = config.front + config.length, config.body == "attention"
        attention = Attention(config.dim, config.heads, length, config.rope_theta) if self.attends else None
        self.mix = attention or SwiGLU(length, config.mix_hidden)
        self.feed_forward = SwiGLU(config.dim, config.hidden)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Map `[batch, L, D]` to the same shape."""
        if self.attends:
            x = _norm(x + self.mix(x, mask))
        else:
            x = x.transpose(1, 2)
            x = _norm(x + self.mix(x)).transpose(1, 2)
        return _norm(x + self.feed_forward(x))


def _norm(x: Tensor) -> Tensor:
    return nn.functional.rms_norm(x, x.shape[-1:], eps=EPSILON)


def load_published_trm(
    path: str | Path,
    length: int,
    *,
    heads: int = 8,
    refinements: int = 6,
    transitions: int = 3,
    front: int | None = None,
    rope_theta: float | None = 10_000.0,
    stablemax: bool = True,
) -> TRM:
    """Read a checkpoint of the field's own code; nothing in it is executed.

    Args:
        path: a `.safetensors` file, or what `torch.save` wrote of a state dict.
        length: L, `seq_len` of its data set: 81 for Sudoku, 900 for ARC and mazes.
        heads: `num_heads`.
        refinements: K, `L_cycles`.
        transitions: T, `H_cycles`.
        front: `puzzle_emb_len`; None: what a network without attention says itself, or else 16, and 0 where
            puzzles are not embedded.
        rope_theta: of `pos_encodings: rope`; None: `pos_encodings: none`.
        stablemax: of `loss_type: stablemax_cross_entropy`; False: `softmax_cross_entropy`. Answers are the same,
            probabilities are not.

    Raises:
        CheckpointError: no such file, not a state dict, or a network that this one cannot represent.
    """
    path = Path(path)
    found = {name.rpartition("inner.")[2].removeprefix("_orig_mod."): v for name, v in _read(path).items()}
    try:
        embedded = found.pop("embed_tokens.embedding_weight")
        size, dim = embedded.shape
        attends = "L_level.layers.0.self_attn.qkv_proj.weight" in found
        blocks = 1 + max(int(name.split(".")[2]) for name in found if name.startswith("L_level.layers."))
        identifiers = found.pop("puzzle_emb.weights", torch.zeros(1, 0))
        embeds = identifiers.shape[1] > 0
        mix_hidden, front = 0, (16 if embeds else 0) if front is None else front
        if not attends:
            mix_hidden, front = found["L_level.layers.0.mlp_t.down_proj.weight"].shape[::-1]
            front -= length
        if front and not embeds:
            raise CheckpointError(
                f"{path} embeds no puzzle, so no token stands before length {length}, got {front}"
            )
        if identifiers.shape[1] > front * dim:
            raise CheckpointError(
                f"{path} embeds a puzzle in {identifiers.shape[1]} numbers, more than {front} front tokens hold"
            )
        config = PublishedConfig(
            length,
            size,
            size,
            dim=dim,
            heads=heads,
            blocks=blocks,
            hidden=found["L_level.layers.0.mlp.down_proj.weight"].shape[1],
            refinements=refinements,
            transitions=transitions,
            body="attention" if attends else "mixer",
            tasks=len(identifiers) if len(identifiers) > 1 else 0,
            front=front,
            mix_hidden=mix_hidden,
            rope_theta=rope_theta,
            stablemax=stablemax,
        )
        fronts = dim**0.5 * nn.functional.pad(identifiers, (0, front * dim - identifiers.shape[1]))
        weights = {
            "embed.weight": dim**0.5 * embedded,
            "decode.weight": found.pop("lm_head.weight"),
            "decode.bias": torch.zeros(size),
            "judge.weight": found.pop("q_head.weight"),
            "judge.bias": found.pop("q_head.bias"),
            "z0": torch.stack([found.pop("H_init"), found.pop("L_init")]),
        }
        weights |= {"embed_task.weight": fronts} if config.tasks else {"front": fronts.view(front, dim)}
        for block in range(blocks):
            for theirs, ours in _NAMES.items():
                name = f"L_level.layers.{block}.{theirs}.weight"
                if name in found:
                    weights[f"f.blocks.{block}.{ours}.weight"] = found.pop(name)
        if found:
            raise CheckpointError(f"{path} holds {min(found)}, which this network has not")
        chain = PublishedTRM(config)
        chain.load_state_dict(weights)
    except CheckpointError:
        raise
    except KeyError as error:
        raise CheckpointError(f"{path} is no TRM of the field's own code: it has no {error.args[0]}") from error
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{path} does not fit length {length}, {heads} heads and {front} front tokens: {one_line(error)}"
        ) from error
    return chain.eval()


_NAMES = {
    "self_attn.qkv_proj": "mix.qkv",
    "self_attn.o_proj": "mix.out",
    "mlp_t.gate_up_proj": "mix.gate_up",
    "mlp_t.down_proj": "mix.down",
    "mlp.gate_up_proj": "feed_forward.gate_up",
    "mlp.down_proj": "feed_forward.down",
}


def _read(path: Path) -> dict[str, Tensor]:
    """Tensors by name, float32."""
    if path.suffix == ".safetensors":
        tensors: Any = read_tensors(path)[0]
    else:
        try:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError as error:
            raise CheckpointError(f"{path} does not exist") from error
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
            raise CheckpointError(f"{path} is no state dict of tensors: {one_line(error)}") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise CheckpointError(f"{path} is no state dict of tensors")
    return {str(name): value.float() for name, value in tensors.items()}
