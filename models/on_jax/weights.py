"""Weights of JAX chains: the files of the torch side, read and written without it."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgram.checkpoint import CheckpointError, find_weights, one_line, read_tensors, read_weights, save_chain
from probgram.models.on_jax.chain import Chain, named_arrays

Module = TypeVar("Module", bound=eqx.Module)

__all__ = ["load_chain", "load_guide", "replaced_arrays", "save_chain"]


def load_chain(name: str | Path, expected: type[Any] | None = None) -> Any:
    """Load a chain by shipped name, file or folder; its `about` attribute holds what was saved beside it.

    Raises:
        CheckpointError: no such weights, damaged, of another model, or with missing arrays.
    """
    from probgram.models import on_jax

    path, model, arrays, metadata = read_weights(name, expected, on_jax, "np")
    try:
        kind = expected or getattr(on_jax, model)
        chain: Chain = kind.from_configuration(json.loads(metadata["configuration"]))
        own = {k.removeprefix("chain."): v for k, v in arrays.items() if k.startswith("chain.")}
        chain = replaced_arrays(chain, own)
    except (AttributeError, TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} does not fit the {model} of this version: {one_line(error)}") from error
    # Not a field: a field would be part of what a compiled function is compiled for.
    object.__setattr__(chain, "about", MappingProxyType(json.loads(metadata.get("about", "{}"))))
    return chain


def load_guide(name: str | Path, guide: Module) -> Module:
    """`guide` with the weights saved beside a chain. Raises CheckpointError where there are none."""
    path = find_weights(name)
    arrays, _ = read_tensors(path, "np")
    own = {k.removeprefix("guide."): v for k, v in arrays.items() if k.startswith("guide.")}
    try:
        return replaced_arrays(guide, own)
    except ValueError as error:
        raise CheckpointError(f"{path} has no guide of this kind: {one_line(error)}") from error


def replaced_arrays(module: Module, arrays: Mapping[str, Any]) -> Module:
    """The module with its arrays replaced by name.

    Raises:
        ValueError: a name is missing or unknown, or a shape differs.
    """
    own: dict[str, Array] = named_arrays(module)
    if own.keys() != arrays.keys():
        missing, unknown = sorted(own.keys() - arrays.keys()), sorted(arrays.keys() - own.keys())
        raise ValueError(f"missing arrays {missing}, unknown arrays {unknown}")
    for name, array in own.items():
        if tuple(arrays[name].shape) != array.shape:
            raise ValueError(f"{name} must be {list(array.shape)}, got shape {list(arrays[name].shape)}")
    leaves, structure = jax.tree.flatten(module, is_leaf=lambda leaf: leaf is None)
    replacements = iter(jnp.asarray(arrays[name]) for name in own)
    return jax.tree.unflatten(structure, [next(replacements) if eqx.is_array(leaf) else leaf for leaf in leaves])
