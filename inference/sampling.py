"""Sampling without interaction: N independent prior trajectories of every problem, side by side.

No weights, no resampling: width is independent draws. The loop over depth is the only Python loop; what is
read back from the device is one flag every few depth steps, and only where stopping was asked for.
"""

import math
from collections.abc import Callable
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyro
import torch
from torch import Tensor

from probgram import checkpoint
from probgram import state as trees
from probgram.chain import Chain
from probgram.inference.choices import check_decode, check_halting, check_same_run
from probgram.inference.handlers import BLOCK, evaluating, seeded, validation
from probgram.inference.handlers import start as start_state
from probgram.trajectories import Trajectories

FLAG_EVERY = 4  # depth steps between two looks at "has everything halted?"
Keep = Literal["paths", "last", "latents"]


class DepthView(NamedTuple):
    """What a callback sees after a depth step."""

    depth: int  # depth steps taken, from 1
    state: Any  # leaves [N, B, ...]
    answers: Tensor  # [N, B, L]


@torch.no_grad()
def sample(
    chain: Chain,
    x: Any,
    width: int = 20,
    depth: int = 16,
    seed: int = 0,
    *,
    keep: Keep = "paths",
    decode: Literal["mode", "sample"] = "mode",
    halt_probability: float | None = None,
    chunk: int | None = None,
    task: str = "",
    callback: Callable[[DepthView], None] | None = None,
    start: Trajectories | None = None,
    store: str | Path | None = None,
) -> Trajectories:
    """Draw `width` independent trajectories of every problem from the prior.

    Args:
        chain: any `Chain`; its device and type of numbers are used.
        x: problems, integers `[L]` or `[B, L]`; arrays and lists are accepted.
        width: N, trajectories a problem, at least 1.
        depth: S, depth steps; may exceed the depth of training.
        seed: same seed, same device, same numbers. The global generator is not touched.
        keep: "paths" records answers and heads at every depth step, "last" at the last only, "latents" adds
            the last state.
        decode: "mode" takes the most probable answer of the readout, "sample" draws it.
        halt_probability: freeze a trajectory once its halt head is so sure that its answer is right, and return
            early when all are frozen; between 0 and 1, None: never. The head is asked at every depth step, so its
            false alarms add up: 0.95 keeps far more answers right than 0.5.
        chunk: run so many trajectories at a time, a multiple of 64. Gaussian sites see the same noise as in one
            piece; other sites, and `decode="sample"`, see noise of the same law.
        task: name that the result carries.
        callback: called after every depth step (and chunk).
        start: go on from a run made with `keep="latents"` and the same seed, `depth` steps further.
        store: a new folder `*.zarr` (extra `zarr`), where every depth step is written as soon as it is done and not
            kept in memory: for runs larger than that, and for long ones. A process that is killed loses at most the
            depth step it was in. `Trajectories.load(store)` reads what is there; with `keep="latents"` that run can
            be the `start` of its own continuation, into the same folder.

    Returns:
        The run; all weights are equal. With `store`, its last depth step only: the whole is in the folder.

    Raises:
        ValueError: width or depth below 1, x of a wrong shape or type, chunk no multiple of 64, the state is NaN.
        CheckpointError: store cannot be written, exists already, or holds another run than start.
    """
    x = as_problems(x, chain)
    check_halting(halt_probability)
    _check(width, depth, seed, keep, decode, chunk)
    _check_weights(chain)
    if start is not None:
        own = {"width": width, "seed": seed, "weights": checkpoint.weights_of(chain)}
        check_same_run(
            start, {name: (start.settings.get(name), now) for name, now in own.items()}, halt_probability
        )
        if start.x.shape != x.shape or not bool((start.x.to(x.device) == x).all()):
            raise ValueError("start is a run of other problems than x")
    settings = {
        "width": width,
        "seed": seed,
        "decode": decode,
        "halt_probability": halt_probability,
        "weights": checkpoint.weights_of(chain),
    }
    save: Callable[[_Piece], None] | None = None
    if store is not None:
        if keep == "last" or chunk is not None:
            raise ValueError(
                "store takes every depth step of all trajectories as it is done: leave out "
                + ("chunk" if chunk is not None else 'keep="last"')
            )
        from probgram.store import Store

        growing = Store(store, start)

        def save(piece: _Piece) -> None:
            growing.append(_join([piece], x, task, seed, settings))

    with evaluating(chain):
        pieces = [
            _sample_chunk(
                chain,
                x,
                first,
                min(chunk or width, width - first),
                depth,
                seed,
                keep,
                decode,
                None if halt_probability is None else logit(halt_probability),
                callback,
                start,
                save,
            )
            for first in range(0, width, chunk or width)
        ]
    return _join(pieces, x, task, seed, settings)


def logit(probability: float) -> float:
    """The logit of a probability."""
    return math.log(probability / (1 - probability))


def as_problems(x: Any, chain: Chain) -> Tensor:
    """Bring problems to `[B, ...]` on the chain's device.

    Raises:
        ValueError: no problem at all, or not numbers.
    """
    try:
        x = torch.as_tensor(x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"x must be an array of tokens [L] or [B, L]: {error}") from error
    if x.dim() == 1:
        x = x[None]
    if x.dim() < 1 or len(x) == 0:
        raise ValueError(f"x must hold at least one problem, got shape {list(x.shape)}")
    chain.check(x)
    reference = next((p for p in (*chain.parameters(), *chain.buffers())), None)
    return x if reference is None else x.to(reference.device)


class _Piece(NamedTuple):
    """The records of one chunk of trajectories."""

    answers: list[Tensor]
    heads: list[dict[str, Tensor]]
    halted: Tensor | None
    depths: list[int]
    state: Any


def _sample_chunk(
    chain: Chain,
    x: Tensor,
    first: int,
    width: int,
    depth: int,
    seed: int,
    keep: Keep,
    decode: str,
    halt_above: float | None,
    callback: Callable[[DepthView], None] | None,
    start: Trajectories | None,
    save: Callable[[_Piece], None] | None,
) -> _Piece:
    problems, noise = len(x), seeded(seed, first)
    context = chain.encode(x)
    halted = torch.zeros(width, problems, dtype=torch.bool, device=x.device) if halt_above is not None else None
    piece = _Piece([], [], halted, [], None)
    offset = 0 if start is None else start.depth
    with noise, pyro.plate("particles", width, dim=-2), pyro.plate("problems", problems, dim=-1):
        noise.at(-1)
        if start is None:
            state = start_state(chain, (width, problems), context)
        else:
            state = trees.map_state(lambda leaf: leaf[first : first + width].to(x.device), start.state)
            if halted is not None and start.halted is not None:
                halted = start.halted[first : first + width].to(x.device)
        for t in range(offset, offset + depth):
            noise.at(t)
            with validation(t == offset):
                moved = chain.step(state, t, context)
                if t == offset:
                    trees.check_state(moved, (width, problems))
                state = moved if halted is None else trees.where(halted, state, moved)
                heads, readout = chain.heads(state), chain.readout(state)
                if t == offset:
                    _check_outputs(readout, heads, (width, problems))
                answers = decoded(readout, decode, t + 1)
            if halted is not None and halt_above is not None:
                if "halt" not in heads:
                    raise ValueError(f"halt_probability needs a halt head, and {type(chain).__name__} has none")
                halted = halted | (heads["halt"] > halt_above)
            if save is not None:
                save(_Piece([answers], [heads], halted, [t + 1], state if keep == "latents" else None))
            elif keep != "last":
                piece.answers.append(answers)
                piece.heads.append(heads)
                piece.depths.append(t + 1)
            if callback is not None:
                callback(DepthView(t + 1, state, answers))
            if halted is not None and (t + 1) % FLAG_EVERY == 0 and bool(halted.all()):
                break
    trees.check_numbers(state)
    if not piece.depths:
        piece.answers.append(answers)
        piece.heads.append(heads)
        piece.depths.append(t + 1)
    return piece._replace(halted=halted, state=state if keep == "latents" else None)


def _check_outputs(readout: Any, heads: dict[str, Tensor], batch: tuple[int, int]) -> None:
    """Raise ValueError where a chain's readout or a head has other batch dimensions than its states."""
    shape = getattr(readout, "batch_shape", None)
    if shape is None:
        raise ValueError(f"readout must return a distribution over answers, got {type(readout).__name__}")
    if tuple(shape) != batch:
        raise ValueError(
            f"readout must have the batch shape {list(batch)}, trajectories and problems, with all tokens of an "
            f"answer in its event (to_event), got {list(shape)}"
        )
    for name, values in heads.items():
        if tuple(values.shape) != batch:
            raise ValueError(f"head {name!r} must be {list(batch)}, got shape {list(values.shape)}")


def _join(pieces: list[_Piece], x: Tensor, task: str, seed: int, settings: dict[str, Any]) -> Trajectories:
    """Put chunks side by side; one that halted early repeats its last record."""
    longest = max(pieces, key=lambda piece: piece.depths[-1])
    steps = len(longest.depths)

    def over_particles(rows: list[list[Tensor]]) -> Tensor:
        padded = [row + [row[-1]] * (steps - len(row)) for row in rows]
        return torch.stack([torch.cat(slot) for slot in zip(*padded, strict=True)])

    answers = over_particles([piece.answers for piece in pieces])
    names = longest.heads[0]
    heads = {name: over_particles([[h[name] for h in piece.heads] for piece in pieces]) for name in names}
    kept = [piece.state for piece in pieces if piece.state is not None]
    return Trajectories(
        x=x,
        answers=answers,
        log_weights=torch.zeros(answers.shape[:3], device=answers.device),
        heads=heads,
        log_normalizer=torch.zeros(steps, len(x), device=answers.device),
        halted=None if pieces[0].halted is None else torch.cat([p.halted for p in pieces if p.halted is not None]),
        state=trees.map_state(lambda *parts: torch.cat(parts), *kept) if kept else None,
        depths=tuple(longest.depths),
        task=task,
        seed=seed,
        settings=settings | {"depth": longest.depths[-1]},
    )


def decoded(readout: Any, decode: str, t: int) -> Tensor:
    """Answers after depth step t, `[N, B, L]`: the most probable ones, or draws (a site, for handlers to seed)."""
    drawn = pyro.sample(f"answer_{t}", readout) if decode == "sample" else _mode(readout)
    return _compact(drawn, readout)


def _mode(readout: Any) -> Tensor:
    """The most probable answer; for continuous readouts the mean."""
    try:
        return readout.mode
    except NotImplementedError:
        return readout.mean


def _compact(answers: Tensor, readout: Any) -> Tensor:
    """Tokens in the smallest integer type that fits the vocabulary; continuous answers as they are."""
    while hasattr(readout, "base_dist"):  # Independent, as `Categorical(...).to_event(1)` is
        readout = readout.base_dist
    if answers.is_floating_point() or not hasattr(readout, "logits"):
        return answers
    size = readout.logits.shape[-1]
    return answers.to(torch.uint8 if size <= 256 else torch.int16 if size <= 32768 else torch.int32)


def _check(width: int, depth: int, seed: int, keep: str, decode: str, chunk: int | None) -> None:
    for name, value in (("width", width), ("depth", depth), ("seed", seed)):
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise ValueError(f"{name} must be an integer, got {value!r}")
        if name != "seed" and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if keep not in ("paths", "last", "latents"):
        raise ValueError(f'keep must be "paths", "last" or "latents", got {keep!r}')
    check_decode(decode)
    if chunk is not None and (chunk < 1 or chunk % BLOCK):
        raise ValueError(f"chunk must be a multiple of {BLOCK}, got {chunk}")


def _check_weights(chain: Chain) -> None:
    """Name a parameter that is NaN: its answers would be arbitrary, and heads would go unnoticed."""
    values = [(k, v) for k, v in chain.state_dict().items() if v.is_floating_point()]
    broken = [v.isnan().any().to(values[0][1].device) for _, v in values]
    if broken and bool(torch.stack(broken).any()):  # one look at the device
        name = next(k for (k, _), nan in zip(values, broken, strict=True) if nan)
        raise ValueError(f"the chain's {name} is NaN: its training diverged or its file is damaged")
