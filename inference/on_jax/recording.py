"""What a run of the filter keeps of every depth step, and the islands of it put together.

The twin of `probgram.inference.recording`, inside the compiled program: `row` is what the loop over depth stacks.
Islands are columns, `[N, B·I]`; here they become `[I·N, B]`, with weights in proportion to Z_i·W_i and the mean Z.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array

from probgram.inference.on_jax.potentials import View

if TYPE_CHECKING:
    from probgram.inference.on_jax.smc import SMCInfo, SMCState

Collect = Mapping[str, Callable[[Any, Array], Array]]
Row = dict[str, Any]

_POOLED = ("log_weights", "ancestors", "heads", "answers", "states", "kl")


def figures(state: "SMCState", info: "SMCInfo", collect: Collect, islands: int) -> Row:
    """What is kept of every depth step, whatever else is."""
    kept: Row = {"log_normalizer": state.log_normalizer, "ess": state.ess, "resampled": info.resampled}
    kept |= {} if state.faults is None else {"faults": state.faults}
    return kept | {"collected": {name: _collected(name, of, state, islands) for name, of in collect.items()}}


def path(state: "SMCState", view: View, ancestors: Array, kl: Array | None, states: bool) -> Row:
    """What is kept of a depth step whose trajectories are; states where asked for."""
    kept = {"log_weights": state.log_weights, "ancestors": ancestors, "heads": view.heads}
    if kl is not None:
        kept["kl"] = kl
    if view.has_answers:
        kept["answers"] = view.answer
    if states:
        kept["states"] = state.latent
    return kept


def together(figures: Row, paths: Row, islands: int, numbered: bool = False) -> tuple[Row, Row]:
    """Figures `[S, B·I]` and paths `[S', N, B·I, ...]` of islands, with the islands of each problem put together.

    `numbered` says that ancestors count through all islands of their problem already.
    """
    if islands == 1:
        return figures, paths
    log_normalizer, ess = figures["log_normalizer"], figures["ess"]
    kept = log_normalizer[-len(paths["log_weights"]) :]
    shares = pooled_shares(kept, islands)
    log_weights = paths["log_weights"] + jnp.log(shares)[:, None].astype(paths["log_weights"].dtype)
    width, columns = log_weights.shape[1:]
    first = jnp.tile(jnp.arange(islands, dtype=jnp.int32) * width, columns // islands)
    ancestors = paths["ancestors"] if numbered else paths["ancestors"] + first
    paths = paths | {"log_weights": log_weights, "ancestors": ancestors}
    paths = paths | {name: pooled(paths[name], islands, 1) for name in _POOLED if name in paths}
    shares = pooled_shares(log_normalizer, islands)
    squares = jnp.where(ess > 0, jnp.square(shares) / jnp.where(ess > 0, ess, 1.0), 0.0)
    squares = squares.reshape(len(ess), -1, islands).sum(-1)
    ess = jnp.where(squares > 0, 1 / jnp.where(squares > 0, squares, 1.0), 0.0)
    return figures | {"ess": ess, "log_normalizer": pooled_normalizer(log_normalizer, islands)}, paths


def pooled(tree: Any, islands: int, dim: int = 0) -> Any:
    """Leaves `[..., N, B·I, ...]` as `[..., I·N, B, ...]`; `dim` is that of N."""

    def pool(leaf: Array) -> Array:
        before, (n, columns), after = leaf.shape[:dim], leaf.shape[dim : dim + 2], leaf.shape[dim + 2 :]
        apart = jnp.moveaxis(leaf.reshape(*before, n, columns // islands, islands, *after), dim + 2, dim)
        return apart.reshape(*before, islands * n, columns // islands, *after)

    return tree if islands == 1 else jax.tree.map(pool, tree)


def pooled_shares(log_normalizer: Array, islands: int) -> Array:
    """Z_i / Σ Z_i among the islands of each problem, `[..., B·I]`; equal where all are dead."""
    parts = log_normalizer.reshape(*log_normalizer.shape[:-1], -1, islands)
    dead = jnp.isneginf(parts.max(-1, keepdims=True))
    return jax.nn.softmax(jnp.where(dead, 0.0, parts), -1).reshape(log_normalizer.shape)


def pooled_normalizer(log_normalizer: Array, islands: int) -> Array:
    """Log of the mean Z over the islands, `[..., B]`."""
    parts = log_normalizer.reshape(*log_normalizer.shape[:-1], -1, islands)
    return jax.nn.logsumexp(parts, -1) - jnp.log(jnp.asarray(islands, parts.dtype))


def _collected(name: str, function: Callable[[Any, Array], Array], state: "SMCState", islands: int) -> Array:
    weights, latent = jnp.exp(state.log_weights), state.latent
    if islands > 1:
        share = pooled_shares(state.log_normalizer, islands)
        weights = pooled(weights * share.astype(weights.dtype), islands)
        latent = pooled(latent, islands)
    value = function(latent, weights)
    if not isinstance(value, Array) or value.shape[:1] != weights.shape[1:]:
        got = f"shape {list(value.shape)}" if isinstance(value, Array) else type(value).__name__
        raise ValueError(f"collect[{name!r}] must return an array [{weights.shape[1]}, ...], got {got}")
    return value
