"""A filter's first state in the types of the later ones: a compiled loop carries nothing that changes its type."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array

if TYPE_CHECKING:
    from probgram.inference.on_jax.smc import SMCState


def settled(carried: Callable[["SMCState"], tuple["SMCState", Any]], state: "SMCState") -> tuple["SMCState", Any]:
    """The first state in the types that a step gives it, so that a loop can carry it, and an empty KL.

    Args:
        carried: a step: from a state to the next one and its KL.
        state: before the first step.

    Raises:
        ValueError: a step returns a state of another structure or shape.
    """
    kl = None
    for _ in range(3):  # a type may widen another one's
        after, kl = jax.eval_shape(carried, state)
        before, now = (str(jax.tree.structure((part.last, part.faults))) for part in (state, after))
        if before != now:  # a step has what there is none of before the first
            state = state._replace(last=_zeros(after.last), faults=_zeros(after.faults))
        found, first = (str(jax.tree.structure(part)) for part in (after.latent, state.latent))
        if found != first:
            raise ValueError(f"step must return a state like init's, {first}, got {found}")
        for one, other in zip(jax.tree.leaves(state.latent), jax.tree.leaves(after.latent), strict=True):
            if one.shape != other.shape:
                raise ValueError(
                    f"step must return a state like init's, {list(one.shape)}, got shape {list(other.shape)}"
                )
        narrow = state.log_weights.dtype != after.log_weights.dtype
        state = jax.tree.map(_cast, state, after)
        if narrow:  # normalised in a narrower type: log Z would start off by its rounding
            total = jax.nn.logsumexp(state.log_weights, 0)
            total = jnp.where(jnp.isneginf(total), 0.0, total)
            state = state._replace(log_weights=state.log_weights - total)
    return state, _zeros(kl)


def _zeros(like: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)


def _cast(leaf: Array, like: Any) -> Array:
    return leaf if leaf.dtype == like.dtype else leaf.astype(like.dtype)  # a key cannot be cast, nor need be
