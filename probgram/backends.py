"""The two libraries a chain may compute with, PyTorch and JAX: which one is meant, and whether it is there."""

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

BACKENDS = ("torch", "jax")
_OF_JAX = ("jax", "numpyro", "equinox", "optax")


def check_backend(name: str) -> None:
    """See that a backend can be used.

    Raises:
        ValueError: there is none of this name, or its extra is not installed.
    """
    if name not in BACKENDS:
        raise ValueError(f"backend must be torch or jax, got {name!r}")
    missing = [module for module in _OF_JAX if name == "jax" and find_spec(module) is None]
    if missing:
        raise ValueError(f"the backend jax needs {', '.join(missing)}: pip install 'probgram[jax]'")


def backend_of(chain: Any) -> str:
    """The backend of a chain, "torch" or "jax"; imports neither."""
    module = sys.modules.get("probgram.models.on_jax.chain")  # there, where the chain is of it
    return "jax" if module is not None and isinstance(chain, module.Chain) else "torch"


def load_chain(name: str | Path, backend: str = "torch") -> Any:
    """Load a chain by shipped name, file or folder into a backend.

    Raises:
        ValueError: the backend cannot be used.
        CheckpointError: no such weights, damaged, or of a model that the backend does not have.
    """
    check_backend(backend)
    if backend == "jax":
        from probgram.models.on_jax import weights

        return weights.load_chain(name)
    from probgram import checkpoint

    return checkpoint.load_chain(name)


def inference(backend: str, name: str) -> ModuleType:
    """A module of a backend's inference, by the name that both have for it: "sampling", "smc"."""
    check_backend(backend)
    return import_module(f"probgram.inference.{'on_jax.' if backend == 'jax' else ''}{name}")


def seeded(backend: str, seed: int) -> dict[str, int]:
    """A seed under the name that a backend's functions know it by."""
    return {"key" if backend == "jax" else "seed": seed}
