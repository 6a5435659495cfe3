"""Resampling over devices: every weight to every device, every state only to where it is copied.

    ancestors   each device sees all weights and computes all ancestors: 4 (float64: 8) bytes a particle
    states      blocks of particles travel around the ring of devices, both ways, until every device has seen those
                that its slots descend from

Schemes whose ancestors do not decrease copy from nearby: with N particles whose weights are about independent, slot
j descends from one about sqrt(N) away at most, so that one turn is enough as long as a device holds several times
that many. The worst case is a turn for every other device. No device ever holds more than four blocks.

On one device, and between problems, nothing crosses. The ancestors and the states are those of one device, exactly.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from probgram.inference.on_jax.devices import PARTICLES, PROBLEMS
from probgram.inference.on_jax.handlers import gather_ancestors, where
from probgram.inference.on_jax.resampling import Scheme

_WHOLE, _CUT = PartitionSpec(None, PROBLEMS), PartitionSpec(PARTICLES, PROBLEMS)


def ancestors_over(scheme: Scheme, log_weights: Array, uniforms: Array, mesh: Mesh | None) -> Array:
    """Ancestors by a scheme, int32 `[N, B]`.

    Args:
        scheme: of `resampling`.
        log_weights: `[N, B]`, cut along the mesh or not.
        uniforms: `[rows(N), B]`.
        mesh: from `device_mesh`; None: one device.
    """
    if mesh is None:
        return scheme(log_weights, uniforms)
    over = jax.shard_map(scheme, mesh=mesh, in_specs=(_WHOLE, _WHOLE), out_specs=_WHOLE, check_vma=False)
    return over(log_weights, uniforms)


def gather_over(state: Any, ancestors: Array, mesh: Mesh | None) -> Any:
    """Replace slot i of problem b by slot `ancestors[i, b]`, as `gather_ancestors`, wherever that lies.

    Args:
        state: leaves `[N, B, ...]`.
        ancestors: int32 `[N, B]`.
        mesh: from `device_mesh`; None: one device.
    """
    if mesh is None:
        return gather_ancestors(state, ancestors)
    over = partial(_from_blocks, devices=mesh.shape[PARTICLES])
    return jax.shard_map(over, mesh=mesh, in_specs=(_CUT, _CUT), out_specs=_CUT, check_vma=False)(state, ancestors)


def _from_blocks(state: Any, ancestors: Array, devices: int) -> Any:
    """What one device does: take from its own block, then from those that pass, nearest first."""
    n, here = len(ancestors), jax.lax.axis_index(PARTICLES)

    def taken(mine: Any, block: Any, owner: Array) -> Any:
        there = ancestors // n == owner
        return where(there, gather_ancestors(block, (ancestors - owner * n).clip(0, n - 1)), mine)

    mine = taken(state, state, here)
    if devices == 1:
        return mine
    # Trips must be as many on all devices of the mesh, or messages would wait for ever.
    away = jnp.abs(ancestors // n - here)
    turns = jax.lax.pmax(jnp.minimum(away, devices - away).max(), (PARTICLES, PROBLEMS))

    ways = (1,) if devices == 2 else (1, -1)

    def turn(carry: Any) -> Any:
        k, blocks, mine = carry
        rings = [[(i, (i + way) % devices) for i in range(devices)] for way in ways]
        blocks = [jax.lax.ppermute(b, PARTICLES, ring) for b, ring in zip(blocks, rings, strict=True)]
        for way, block in zip(ways, blocks, strict=True):
            mine = taken(mine, block, (here - way * k) % devices)
        return k + 1, blocks, mine

    return jax.lax.while_loop(lambda carry: carry[0] <= turns, turn, (jnp.int32(1), [state] * len(ways), mine))[-1]
