"""Going on from a run of the filter: where it was, and the state that the next step needs.

The twin of `probgram.inference.continuation`.
"""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgram.inference.choices import check_start, reached
from probgram.inference.on_jax.trajectories import Trajectories

if TYPE_CHECKING:
    from probgram.inference.on_jax.smc import Filter


def offset(
    start: Trajectories | None, width: int, seed: int, weights: str | None, islands: int, potential: Any
) -> int:
    """Depth steps that were taken before; `seed` is the key's.

    Raises:
        ValueError: the run cannot go on, or not under these choices.
    """
    if start is None:
        return 0
    own: dict[str, tuple[Any, Any]] = {"width": (start.width, width), "key": (start.seed, seed)}
    own["weights"] = (start.settings.get("weights"), weights)
    check_start(start, own, islands, potential)
    return reached(start)


def resumed(algorithm: "Filter", start: Trajectories, key: Array, expected: Any) -> dict[str, Any]:
    """The fields of the `SMCState` that a run ended in.

    Args:
        algorithm: what goes on.
        start: the run.
        key: its key.
        expected: a state of this model: a file may have turned that of the run into other tuples.

    Raises:
        ValueError: it is a run of other problems, or had a halt head stop trajectories and is not to now.
    """
    assert start.log_potential is not None and start.log_normalizer is not None
    if start.problems != algorithm.given.problems:
        raise ValueError(f"start has {start.problems} problems, got {algorithm.given.problems}")
    if algorithm.x is not None and not np.array_equal(start.x, algorithm.x, equal_nan=start.x.dtype.kind == "f"):
        raise ValueError("start is a run of other problems than x")
    halted = start.halted
    if halted is not None and algorithm.halt_above is None:
        raise ValueError("start was run with halt_probability, so it must go on with one")
    if algorithm.halt_above is not None and halted is None:
        halted = np.zeros(start.log_weights[-1].shape, bool)
    leaves = jax.tree.leaves(start.state)
    if len(leaves) != len(jax.tree.leaves(expected)):
        raise ValueError("start is a run of another model: its state has other leaves")
    log_normalizer = jnp.asarray(start.log_normalizer[-1])
    nothing = jnp.zeros(start.problems, jnp.int32)
    return {
        "latent": jax.tree.unflatten(jax.tree.structure(expected), leaves),
        "log_weights": jnp.asarray(start.log_weights[-1]),
        "log_psi": jnp.asarray(start.log_potential),
        "log_normalizer": log_normalizer,
        "ess": jnp.asarray(start.ess[-1], start.log_weights.dtype),
        "dead": jnp.where(jnp.isneginf(log_normalizer), start.depth, nothing),
        "nan": nothing,
        "done": nothing,
        "halted": None if halted is None else jnp.asarray(halted),
        "t": jnp.asarray(reached(start), jnp.int32),
        "key": jax.random.split(key)[1],
        "observed": jnp.asarray(start.settings["observed"]),
        "likelihood": jnp.asarray(start.settings["likelihood"]),
        "weighs": jnp.asarray(start.settings["weighs"]),
    }
