"""Width over many devices: a mesh with a particle axis and a problem axis, and where arrays lie on it.

    leaves [N, B, ...]   states, weights, ancestors     cut along both axes      spread
    leaves [B, ...]      contexts, x, data by problem   cut along problems       spread_problems
    keys, the chain      a copy on every device                                  replicated

XLA does the rest: a program with these constraints in it is cut into one per device, and what one needs of another
is exchanged. Random numbers do not depend on the cut (`jax_threefry_partitionable`, JAX's default), so the mesh
changes nothing but where things are computed: of sums, the last bits.

Source: Xu et al., "GSPMD", arXiv 2105.04663.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

PARTICLES, PROBLEMS = "particles", "problems"


def device_mesh(
    particles: int | None = None, problems: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Arrange devices as `[particles, problems]`.

    Args:
        particles: devices among which each problem's particles are shared out; None: all that `problems` leaves.
        problems: devices among which the problems are shared out; islands are problems, too.
        devices: which; None: all of `jax.devices()`, the other hosts' too. The first ones are taken.

    Returns:
        A mesh with the axes "particles" and "problems", for `mesh=` of `smc.run` and `sample`.

    Raises:
        ValueError: there are fewer devices, or a number is below 1.
    """
    there = list(jax.devices() if devices is None else devices)
    if problems < 1:
        raise ValueError(f"problems must be at least 1, got {problems}")
    if particles is None:
        particles = max(1, len(there) // problems)
    if particles < 1:
        raise ValueError(f"particles must be at least 1, got {particles}")
    if particles * problems > len(there):
        raise ValueError(
            f"a mesh of {particles} by {problems} needs {particles * problems} devices, and there are {len(there)}"
        )
    grid = np.array(there[: particles * problems]).reshape(particles, problems)
    return Mesh(grid, (PARTICLES, PROBLEMS))  # Auto axes; `jax.make_mesh` makes Explicit ones, which cumsum refuses


def check_mesh(mesh: Mesh | None, width: int, problems: int) -> None:
    """Raise ValueError where a mesh cannot hold `width` particles of `problems` problems; called once at the edge.

    Args:
        mesh: from `device_mesh`, or None for no mesh.
        width: N.
        problems: B, or I·B with I islands.
    """
    if mesh is None:
        return
    for name, axis, size in (("width", PARTICLES, width), ("problems times islands", PROBLEMS, problems)):
        if axis not in mesh.shape:
            raise ValueError(f'mesh must have the axes "particles" and "problems", got {list(mesh.axis_names)}')
        if size % mesh.shape[axis]:
            raise ValueError(
                f"{name} must be a multiple of the {mesh.shape[axis]} devices on the {axis} axis of the mesh, "
                f"got {size}"
            )


def spread(tree: Any, mesh: Mesh | None) -> Any:
    """Cut leaves `[N, B, ...]` along the particle and the problem axis, inside a compiled program or out of it.

    Args:
        tree: a state, log weights, ancestors; other leaves than arrays are left alone.
        mesh: from `device_mesh`; None returns the tree as it is.

    Raises:
        ValueError: N or B is no multiple of the devices on its axis.
    """
    return _laid(tree, mesh, (PARTICLES, PROBLEMS))


def spread_problems(tree: Any, mesh: Mesh | None) -> Any:
    """Cut leaves `[B, ...]` along the problem axis, with a copy for each device along the particle axis.

    Args:
        tree: a context, x, the normalisers.
        mesh: from `device_mesh`; None returns the tree as it is.

    Raises:
        ValueError: B is no multiple of the devices on the problem axis.
    """
    return _laid(tree, mesh, (PROBLEMS,))


def replicated(tree: Any, mesh: Mesh | None) -> Any:
    """Put a copy of every leaf on every device: a chain, a key.

    Args:
        tree: anything; other leaves than arrays are left alone.
        mesh: from `device_mesh`; None returns the tree as it is.
    """
    return _laid(tree, mesh, ())


def _laid(tree: Any, mesh: Mesh | None, axes: tuple[str, ...]) -> Any:
    if mesh is None:
        return tree

    def lay(path: Any, leaf: Any) -> Any:
        if not isinstance(leaf, Array | np.ndarray):
            return leaf
        for dimension, axis in enumerate(axes):
            size = leaf.shape[dimension] if dimension < leaf.ndim else 0
            if not size or size % mesh.shape[axis]:
                raise ValueError(
                    f"leaf{jax.tree_util.keystr(path)} of shape {list(leaf.shape)} cannot be cut among the "
                    f"{mesh.shape[axis]} devices on the {axis} axis of the mesh"
                )
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, PartitionSpec(*axes)))

    return jax.tree_util.tree_map_with_path(lay, tree)
