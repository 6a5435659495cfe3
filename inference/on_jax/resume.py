"""The state of a training run in one safetensors file: all that is needed to go on bit for bit."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from probgram import checkpoint
from probgram.inference.fit_run import check_settings

FORMAT = "probgram.training.jax/1"


def save_training(path: Path, parts: Mapping[str, Any], plain: Mapping[str, Any]) -> None:
    """Write pytrees of arrays, each under its name, and plain values.

    Args:
        path: the file.
        parts: such as objective, averages, optimiser, rollout; leaves that are no arrays are not written.
        plain: step, settings and what else JSON can say.

    Raises:
        CheckpointError: the file cannot be written; the one before it is untouched.
    """
    arrays = {name: np.asarray(leaf) for name, leaf in _named(parts).items()}
    checkpoint.write_tensors(path, arrays, {"format": FORMAT, "plain": json.dumps(dict(plain))})


def load_training(
    path: Path, parts: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parts and the plain values that `save_training` wrote.

    Args:
        path: the file.
        parts: of a fresh run: the structure that the arrays belong to; its objective says which chain it is.
        settings: must equal those of the run that was saved; where they did not exist then, their defaults.

    Raises:
        CheckpointError: damaged, not a training state of this backend, or of a run with other settings or another
            model.
    """
    arrays, metadata = checkpoint.read_tensors(path, "np")
    if metadata.get("format") != FORMAT:
        raise checkpoint.CheckpointError(f"{path} is not a training state of the JAX backend")
    plain = json.loads(metadata["plain"])
    check_settings(path, plain["settings"], settings, parts["objective"].chain)
    own = _named(parts)
    different = [n for n, leaf in own.items() if n not in arrays or arrays[n].shape != np.shape(leaf)]
    if different or own.keys() != arrays.keys():
        names = different or sorted(arrays.keys() - own.keys())
        raise checkpoint.CheckpointError(f"{path} belongs to another model: {', '.join(names[:3])} differ")
    leaves, structure = jax.tree.flatten(dict(parts))
    saved = iter(jnp.asarray(arrays[name]) for name in own)
    return jax.tree.unflatten(structure, [next(saved) if _is_array(leaf) else leaf for leaf in leaves]), plain


def _named(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays by their path, `objective.chain.f.blocks.0.mix.qkv.weight`, in the order of `jax.tree.flatten`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(dict(parts))
    return {".".join(map(_word, path)): leaf for path, leaf in leaves if _is_array(leaf)}


def _word(step: Any) -> str:
    return str(next(getattr(step, word) for word in ("name", "key", "idx") if hasattr(step, word)))


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray)
