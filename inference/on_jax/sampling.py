"""Sampling without interaction, in JAX: N independent prior trajectories of every problem, side by side.

The twin of `probgram.inference.sampling`. The whole loop over depth is one compiled program, which new weights, new
problems and new keys do not compile again; its records are moved to the host once, at the end.
"""

import math
from collections.abc import Callable
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import Array
from jax.sharding import Mesh

from probgram import checkpoint
from probgram.inference.choices import check_decode, check_halting, check_same_run
from probgram.inference.on_jax.devices import check_mesh, spread, spread_problems
from probgram.inference.on_jax.handlers import BLOCK, as_key, check_state, mode, seeded, where
from probgram.inference.on_jax.handlers import start as start_state
from probgram.inference.on_jax.trajectories import Trajectories, seed_of
from probgram.models.on_jax.chain import Chain

FLAG_EVERY = 4  # depth steps, at whose multiples a run of which everything has halted ends, as on the torch side
Keep = Literal["paths", "last", "latents"]


class DepthView(NamedTuple):
    """What a callback sees after a depth step."""

    depth: int  # depth steps taken, from 1
    state: Any  # leaves [N, B, ...]
    answers: Array  # [N, B, L]


def sample(
    chain: Chain,
    x: Any,
    width: int = 20,
    depth: int = 16,
    key: Any = 0,
    *,
    keep: Keep = "paths",
    decode: Literal["mode", "sample"] = "mode",
    halt_probability: float | None = None,
    chunk: int | None = None,
    task: str = "",
    callback: Callable[[DepthView], None] | None = None,
    start: Trajectories | None = None,
    store: str | Path | None = None,
    mesh: Mesh | None = None,
) -> Trajectories:
    """Draw `width` independent trajectories of every problem from the prior.

    Args:
        chain: any `Chain`.
        x: problems, integers `[L]` or `[B, L]`; arrays and lists are accepted.
        width: N, trajectories a problem, at least 1.
        depth: S, depth steps; may exceed the depth of training.
        key: an integer seed, or a JAX key; the same key, the same numbers.
        keep: "paths" records answers and heads at every depth step, "last" at the last only, "latents" adds
            the last state.
        decode: "mode" takes the most probable answer of the readout, "sample" draws it.
        halt_probability: freeze a trajectory once its halt head is so sure that its answer is right, and compute
            nothing more when all are frozen; between 0 and 1, None: never. The head is asked at every depth step,
            so its false alarms add up: 0.95 keeps far more answers right than 0.5.
        chunk: run so many trajectories at a time, a multiple of 64. Gaussian sites see the same noise as in one
            piece; other sites, and `decode="sample"`, see noise of the same law.
        task: name that the result carries.
        callback: called after every depth step (and chunk): each is then a program of its own, and waited for.
        start: go on from a run made with `keep="latents"` and the same key, `depth` steps further.
        store: a new folder `*.zarr` (extra `zarr`), where every depth step is written as soon as it is done and not
            kept in memory. `Trajectories.load(store)` reads what is there; with `keep="latents"` that run can be
            the `start` of its own continuation, into the same folder.
        mesh: devices that share trajectories and problems out among them, `device_mesh(particles=…, problems=…)`;
            None: one device.

    Returns:
        The run; all weights are equal. With `store`, its last depth step only: the whole is in the folder.

    Raises:
        ValueError: width or depth below 1, x of a wrong shape or type, chunk no multiple of 64, the state is NaN,
            or the mesh does not divide width or problems.
        CheckpointError: store cannot be written, exists already, or holds another run than start.
    """
    x = as_problems(x, chain)
    check_halting(halt_probability)
    _check(width, depth, keep, decode, chunk)
    for size in {min(chunk or width, width - first) for first in range(0, width, chunk or width)}:
        check_mesh(mesh, size, len(x))
    key = as_key(key)
    seed = seed_of(key)
    _check_weights(chain)
    weights = checkpoint.fingerprint(chain.state_dict()) if chain.state_dict() else None
    if start is not None:
        own = {"width": (start.width, width), "key": (start.seed, seed)}
        check_same_run(start, own | {"weights": (start.settings.get("weights"), weights)}, halt_probability)
        if start.x.shape != x.shape or not (np.asarray(start.x) == x).all():
            raise ValueError("start is a run of other problems than x")
    settings = {
        "width": width,
        "seed": seed,
        "decode": decode,
        "halt_probability": halt_probability,
        "weights": weights,
        "backend": "jax",
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

    halt_above = None if halt_probability is None else jnp.asarray(logit(halt_probability))
    context = chain.encode(x)
    pieces = [
        _sample_chunk(
            chain,
            context,
            key,
            (first, min(chunk or width, width - first), len(x)),
            depth,
            keep,
            decode,
            halt_above,
            callback,
            start,
            save,
            mesh,
        )
        for first in range(0, width, chunk or width)
    ]
    return _join(pieces, x, task, seed, settings)


def logit(probability: float) -> float:
    """The logit of a probability."""
    return math.log(probability / (1 - probability))


def as_problems(x: Any, chain: Chain) -> np.ndarray:
    """Bring problems to `[B, ...]`.

    Raises:
        ValueError: no problem at all, or not numbers.
    """
    try:
        x = np.asarray(x)
    except (TypeError, ValueError) as error:
        raise ValueError(f"x must be an array of tokens [L] or [B, L]: {error}") from error
    if x.dtype.kind not in "biuf":
        raise ValueError(f"x must be an array of tokens [L] or [B, L], got {x.dtype}")
    if x.ndim == 1:
        x = x[None]
    if x.ndim < 1 or len(x) == 0:
        raise ValueError(f"x must hold at least one problem, got shape {list(x.shape)}")
    chain.check(x)
    return x


# -- the compiled program -------------------------------------------------------------------------------------


class _Records(NamedTuple):
    """What a depth step leaves: answers `[N, B, L]`, heads `[N, B]`, and whether all has halted."""

    answers: Array
    heads: dict[str, Array]
    over: Array


@eqx.filter_jit
def _begin(chain: Chain, context: Any, key: Array, first: Array, width: int, mesh: Mesh | None) -> Any:
    """The state at depth 0, leaves `[N, B, ...]`."""
    problems = jax.tree.leaves(context)[0].shape[0]
    with seeded(key, first), numpyro.plate("particles", width, dim=-2), numpyro.plate("problems", problems, dim=-1):
        return spread(start_state(chain, (width, problems), spread_problems(context, mesh)), mesh)


@eqx.filter_jit
def _advance(
    chain: Chain,
    context: Any,
    state: Any,
    halted: Array | None,
    key: Array,
    first: Array,
    offset: Array,
    depth: int,
    decode: str,
    halt_above: Array | None,
    mesh: Mesh | None,
) -> tuple[Any, Array | None, _Records, Any]:
    """`depth` steps from depth `offset` on: the last state, who halted, the records, and which leaves are NaN."""
    width, problems = batch = jax.tree.leaves(state)[0].shape[:2]
    context, above = spread_problems(context, mesh), jnp.inf if halt_above is None else halt_above

    def advance(state: Any, halted: Array | None, t: Array) -> tuple[Any, Array | None, _Records]:
        with (
            seeded(jax.random.fold_in(key, t), first),
            numpyro.plate("particles", width, dim=-2),
            numpyro.plate("problems", problems, dim=-1),
        ):
            moved = chain.step(state, t, context)
            check_state(moved, batch)
            state = spread(moved if halted is None else where(halted, state, moved), mesh)
            heads, readout = chain.heads(state), chain.readout(state)
            _check_outputs(readout, heads, batch)
            answers = decoded(readout, decode)
        if halted is not None:
            if "halt" not in heads:
                raise ValueError(f"halt_probability needs a halt head, and {type(chain).__name__} has none")
            halted = halted | (heads["halt"] > above)
        return state, halted, _Records(answers, heads, jnp.asarray(False) if halted is None else halted.all())

    def depth_step(carry: Any, t: Array) -> tuple[Any, _Records]:
        if halted is None:
            state, _, records = advance(carry, None, t)
            return state, records
        # When nothing moves any more, the last records stand.
        running = (t == offset) | ~carry[2].over
        carry = jax.lax.cond(running, lambda: advance(carry[0], carry[1], t), lambda: carry)
        return carry, carry[2]

    steps = offset + jnp.arange(depth)
    if halted is None:
        state, records = jax.lax.scan(depth_step, state, steps)
    else:
        empty = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(advance, state, halted, offset)[2]
        )
        (state, halted, _), records = jax.lax.scan(depth_step, (state, halted, empty), steps)
    return state, halted, records, jax.tree.map(lambda leaf: jnp.isnan(leaf).any(), state)


def decoded(readout: Any, decode: str) -> Array:
    """Answers `[N, B, L]`: the most probable ones, or draws (a site, for handlers to seed)."""
    return _compact(numpyro.sample("answer", readout) if decode == "sample" else mode(readout), readout)


def _compact(answers: Array, readout: Any) -> Array:
    """Tokens in the smallest integer type that fits the vocabulary; continuous answers as they are."""
    while hasattr(readout, "base_dist"):  # Independent, as `Categorical(...).to_event(1)` is
        readout = readout.base_dist
    if jnp.issubdtype(answers.dtype, jnp.floating) or not hasattr(readout, "logits"):
        return answers
    size = readout.logits.shape[-1]
    return answers.astype(jnp.uint8 if size <= 256 else jnp.int16 if size <= 32768 else jnp.int32)


# -- around it ------------------------------------------------------------------------------------------------


class _Piece(NamedTuple):
    """The records of one chunk of trajectories, on the host; the state where it is."""

    answers: np.ndarray
    heads: dict[str, np.ndarray]
    halted: np.ndarray | None
    depths: list[int]
    state: Any


def _sample_chunk(
    chain: Chain,
    context: Any,
    key: Array,
    sizes: tuple[int, int, int],
    depth: int,
    keep: Keep,
    decode: str,
    halt_above: Array | None,
    callback: Callable[[DepthView], None] | None,
    start: Trajectories | None,
    save: Callable[[_Piece], None] | None,
    mesh: Mesh | None,
) -> _Piece:
    first, width, problems = sizes
    begin, steps = jax.random.split(key)
    particle, offset = jnp.asarray(first), 0
    halted = None if halt_above is None else jnp.zeros((width, problems), bool)
    if start is None:
        state = _begin(chain, context, begin, particle, width, mesh)
    else:
        offset = start.depth
        expected = eqx.filter_eval_shape(_begin, chain, context, begin, particle, width, None)
        state = _as_state(jax.tree.map(lambda leaf: leaf[first : first + width], start.state), expected)
        if halted is not None and start.halted is not None:
            halted = jnp.asarray(start.halted[first : first + width])
    pieces: list[_Piece] = []
    # Who looks at every depth step makes each a program, with the same noise.
    for stride in [depth] if callback is None and save is None else [1] * depth:
        state, halted, records, nan = _advance(
            chain, context, state, halted, steps, particle, jnp.asarray(offset), stride, decode, halt_above, mesh
        )
        _check_numbers(nan)
        depths = list(range(offset + 1, offset + stride + 1))
        ended = [halted is not None and d % FLAG_EVERY == 0 for d in depths] & np.asarray(records.over)
        kept = int(ended.argmax()) + 1 if ended.any() else stride
        rows = slice(kept - 1 if keep == "last" else 0, kept)
        answers, heads, now = jax.device_get(
            (records.answers[rows], {name: value[rows] for name, value in records.heads.items()}, halted)
        )
        piece = _Piece(answers, heads, now, depths[rows], state if keep == "latents" else None)
        offset += kept
        if save is not None:
            save(piece)
        pieces = [piece] if save is not None or keep == "last" else [*pieces, piece]
        if callback is not None:
            callback(DepthView(offset, state, records.answers[-1]))
        if ended.any():
            break
    return pieces[-1]._replace(
        answers=np.concatenate([piece.answers for piece in pieces]),
        heads={name: np.concatenate([piece.heads[name] for piece in pieces]) for name in pieces[-1].heads},
        depths=[depth for piece in pieces for depth in piece.depths],
    )


def _join(pieces: list[_Piece], x: np.ndarray, task: str, seed: int, settings: dict[str, Any]) -> Trajectories:
    """Put chunks side by side; one that halted early repeats its last record."""
    longest = max(pieces, key=lambda piece: piece.depths[-1])
    steps = len(longest.depths)

    def over_particles(rows: list[np.ndarray]) -> np.ndarray:
        if len(rows) == 1:
            return rows[0]
        return np.concatenate([np.concatenate([r, np.repeat(r[-1:], steps - len(r), 0)]) for r in rows], 1)

    answers = over_particles([piece.answers for piece in pieces])
    kept = [piece.state for piece in pieces if piece.state is not None]
    stopped = [piece.halted for piece in pieces if piece.halted is not None]
    return Trajectories(
        x=x,
        answers=answers,
        log_weights=np.zeros(answers.shape[:3], np.float32),
        heads={name: over_particles([piece.heads[name] for piece in pieces]) for name in longest.heads},
        log_normalizer=np.zeros((steps, len(x)), np.float32),
        halted=np.concatenate(stopped) if stopped else None,
        state=jax.tree.map(lambda *parts: jnp.concatenate(parts), *kept) if kept else None,
        depths=tuple(longest.depths),
        task=task,
        seed=seed,
        settings=settings | {"depth": longest.depths[-1]},
    )


def _as_state(state: Any, expected: Any) -> Any:
    """The state of a run, which a file may have turned into other tuples, as the chain's own.

    Raises:
        ValueError: it is of another chain.
    """
    leaves, wanted = jax.tree.leaves(state), jax.tree.leaves(expected)
    if [tuple(leaf.shape) for leaf in leaves] != [leaf.shape for leaf in wanted]:
        there, here = ([list(leaf.shape) for leaf in side] for side in (leaves, wanted))
        raise ValueError(f"start must be a run of this chain, whose state has the shapes {here}, got {there}")
    cast = [jnp.asarray(leaf, like.dtype) for leaf, like in zip(leaves, wanted, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(expected), cast)


def _check_outputs(readout: Any, heads: dict[str, Array], batch: tuple[int, int]) -> None:
    """Raise ValueError where a chain's readout or a head has other batch dimensions than its states."""
    shape = getattr(readout, "batch_shape", None)
    if shape is None:
        raise ValueError(f"readout must return a distribution over answers, got {type(readout).__name__}")
    if tuple(shape) != tuple(batch):
        raise ValueError(
            f"readout must have the batch shape {list(batch)}, trajectories and problems, with all tokens of an "
            f"answer in its event (to_event), got {list(shape)}"
        )
    for name, values in heads.items():
        if tuple(values.shape) != tuple(batch):
            raise ValueError(f"head {name!r} must be {list(batch)}, got shape {list(values.shape)}")


def _check(width: int, depth: int, keep: str, decode: str, chunk: int | None) -> None:
    for name, value in (("width", width), ("depth", depth)):
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise ValueError(f"{name} must be an integer, got {value!r}")
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if keep not in ("paths", "last", "latents"):
        raise ValueError(f'keep must be "paths", "last" or "latents", got {keep!r}')
    check_decode(decode)
    if chunk is not None and (chunk < 1 or chunk % BLOCK):
        raise ValueError(f"chunk must be a multiple of {BLOCK}, got {chunk}")


@jax.jit
def _nan(arrays: dict[str, Array]) -> dict[str, Array]:
    return {name: jnp.isnan(array).any() for name, array in arrays.items()}


def _check_weights(chain: Chain) -> None:
    """Name a parameter that is NaN: its answers would be arbitrary, and heads would go unnoticed."""
    for name, nan in jax.device_get(_nan(chain.state_dict())).items():
        if nan:
            raise ValueError(f"the chain's {name} is NaN: its training diverged or its file is damaged")


def _check_numbers(nan: Any) -> None:
    """Raise ValueError where a leaf of the state is NaN, the leaf named."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(nan)):
        if leaf:
            raise ValueError(f"state{jax.tree_util.keystr(path)} is NaN")
