"""Files: tensors as safetensors with JSON in the metadata, written atomically, never pickle."""

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np

if TYPE_CHECKING:
    from torch.nn import Module

    from probgram.chain import Chain

    AnyChain = TypeVar("AnyChain", bound=Chain)

WEIGHTS_FORMAT = "probgram.weights/1"
BUFFERS = ("z0", "codes", "front")  # of our chains: stored with the weights, not trained


class CheckpointError(ValueError):
    """A file of weights, of a run or of a training state cannot be read or written."""


@contextmanager
def replaced(path: str | Path) -> Iterator[Path]:
    """Yield a new file to write beside `path`, and put it in its place once it is whole and on the disk.

    A reader sees the old content or the new, never a part.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(descriptor)
        yield Path(temporary)
        _sync(temporary, os.O_RDWR)
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide the file from its group
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)
        if isinstance(error, OSError):
            raise CheckpointError(f"{path} could not be written: {error.strerror or error}") from error
        raise
    if hasattr(os, "O_DIRECTORY"):  # a folder can be synced on POSIX only
        with suppress(OSError):  # some file systems refuse; the file is whole either way
            _sync(path.parent, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: str | Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(path: str | Path) -> None:
    """Raise CheckpointError where a file could not be written: asked before the long work that it is to hold."""
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} could not be written: it is a folder")
    there = next(parent for parent in path.absolute().parents if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise CheckpointError(f"{path} could not be written: {there} is no folder that can be written to")


def write_bytes(path: str | Path, content: bytes) -> Path:
    """Write a file so that a reader sees the old content or the new, never a part.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    with replaced(path) as temporary:
        temporary.write_bytes(content)
    return Path(path)


def write_tensors(path: str | Path, tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> Path:
    """Write tensors and string metadata as one safetensors file, atomically.

    All of torch, or all of JAX or NumPy. Tensors that share memory or are strided are copied first. Raises
    CheckpointError as `write_bytes` does.
    """
    if all(hasattr(tensor, "detach") for tensor in tensors.values()):
        from safetensors.torch import save

        plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        return write_bytes(path, save(plain, metadata=dict(metadata)))
    from safetensors.numpy import save as save_arrays

    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    return write_bytes(path, save_arrays(arrays, metadata=dict(metadata)))


def read_tensors(path: str | Path, framework: str = "pt") -> tuple[dict[str, Any], dict[str, str]]:
    """Read a safetensors file as `(tensors, metadata)`, on the CPU.

    Args:
        path: the file.
        framework: "pt" for torch's tensors, "np" for NumPy's arrays, which need neither torch nor jax.

    Raises:
        CheckpointError: no such file, or truncated, or not safetensors (a pickled file, say).
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework=framework) as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error


def read_metadata(path: str | Path) -> dict[str, str]:
    """Read only the metadata of a safetensors file; needs neither torch nor jax. Raises as `read_tensors`."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return dict(file.metadata() or {})
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error


# -- weights --------------------------------------------------------------------------------------------------


def save_chain(path: str | Path, chain: "Chain", guide: Any = None, about: Mapping[str, Any] | None = None) -> Path:
    """Write a chain's weights (and its guide's) with all that is needed to build them again.

    Args:
        path: a `.safetensors` file.
        chain: has `configuration()`, plain values that `from_configuration` accepts.
        guide: written beside it under `guide.`, or None.
        about: task, split, seeds, steps, figures: plain values, kept in the metadata.
    """
    tensors = {f"chain.{name}": value for name, value in chain.state_dict().items()}
    if guide is not None:
        tensors |= {f"guide.{name}": value for name, value in guide.state_dict().items()}
    metadata = {
        "format": WEIGHTS_FORMAT,
        "model": type(chain).__name__,
        "configuration": json.dumps(chain.configuration()),
        "about": json.dumps(dict(about or {})),
    }
    return write_tensors(path, tensors, metadata)


def load_chain(name: str | Path, expected: "type[AnyChain] | None" = None) -> "AnyChain":
    """Load a chain by shipped name, file or folder; its `about` attribute holds what was saved beside it.

    Raises:
        CheckpointError: no such weights, damaged, of another model, or with missing tensors.
    """
    from probgram import models

    path, model, tensors, metadata = read_weights(name, expected, models)
    try:
        kind = expected or getattr(models, model)
        chain = kind.from_configuration(json.loads(metadata["configuration"]))
        own = {k.removeprefix("chain."): v for k, v in tensors.items() if k.startswith("chain.")}
        chain.load_state_dict(own)
    except (AttributeError, TypeError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"{path} does not fit the {model} of this version: {one_line(error)}") from error
    chain.about = json.loads(metadata.get("about", "{}"))
    return chain.eval()


def read_weights(
    name: str | Path, expected: type | None, models: ModuleType, framework: str = "pt"
) -> tuple[Path, str, dict[str, Any], dict[str, str]]:
    """Read a file of weights and see that its model can be built: `(path, model, tensors, metadata)`.

    Args:
        name: a shipped name, a file or a folder.
        expected: the class it must be of; None: any that `models` has.
        models: the package of the backend's chains.
        framework: as for `read_tensors`.

    Raises:
        CheckpointError: no such weights, damaged, of no model or another.
    """
    path = find_weights(name)
    tensors, metadata = read_tensors(path, framework)
    if metadata.get("format") != WEIGHTS_FORMAT:
        raise CheckpointError(f"{path} holds no probgram weights (its metadata say {metadata.get('format')!r})")
    model = metadata.get("model", "model without a name")
    if expected is not None and model != expected.__name__:
        raise CheckpointError(f"{path} holds a {model}, not a {expected.__name__}")
    if expected is None and not hasattr(models, model):
        from probgram import models as on_torch

        if model in on_torch.__all__:
            raise CheckpointError(
                f"{path} holds a {model}, which has no twin in JAX: load it with the torch backend, "
                f"probgram.models.{model}.from_pretrained(path)"
            )
        raise CheckpointError(
            f"{path} holds a {model}, which is no model of probgram's: load it by its own class, "
            f"{model}.from_pretrained(path)"
        )
    return path, model, tensors, metadata


def load_guide(name: str | Path, guide: Any) -> Any:
    """Fill `guide` with the weights saved beside a chain. Raises CheckpointError where there are none."""
    path = find_weights(name)
    tensors, _ = read_tensors(path)
    own = {k.removeprefix("guide."): v for k, v in tensors.items() if k.startswith("guide.")}
    try:
        guide.load_state_dict(own)
    except RuntimeError as error:
        raise CheckpointError(f"{path} has no guide of this kind: {one_line(error)}") from error
    return guide


def describe(name: str | Path) -> dict[str, Any]:
    """What a weight file says of itself, without loading the network.

    Returns:
        `path`, `bytes`, `model`, `parameters` (of the chain; `BUFFERS` are none), `configuration`, `about`.

    Raises:
        CheckpointError: no such weights, damaged, or no weights of ours.
    """
    from safetensors import safe_open

    path = find_weights(name)
    metadata = read_metadata(path)
    if metadata.get("format") != WEIGHTS_FORMAT:
        raise CheckpointError(f"{path} holds no probgram weights (its metadata say {metadata.get('format')!r})")
    with safe_open(path, framework="np") as file:
        names = {k for k in file.keys() if k.startswith("chain.")} - {f"chain.{k}" for k in BUFFERS}  # noqa: SIM118
        shapes = [file.get_slice(k).get_shape() for k in names]
    try:
        return {
            "path": str(path),
            "bytes": path.stat().st_size,
            "model": metadata["model"],
            "parameters": sum(math.prod(shape) for shape in shapes),
            "configuration": json.loads(metadata["configuration"]),
            "about": json.loads(metadata.get("about", "{}")),
        }
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path} does not say what its weights are: {one_line(error)}") from error


def find_weights(name: str | Path) -> Path:
    """Resolve a shipped name, a file, or a folder that holds one `.safetensors` file.

    Raises:
        CheckpointError: nothing is there; the shipped names are listed.
    """
    path = Path(name)
    shipped = {p.stem: p for p in pretrained_folder().glob("*.safetensors")}
    if isinstance(name, str) and name in shipped:  # a local folder of the same name is "./queens8"
        return shipped[name]
    if path.is_dir():
        found = sorted(path.glob("*.safetensors"))
        if len(found) != 1:
            raise CheckpointError(f"{path} must hold exactly one .safetensors file, found {len(found)}")
        return found[0]
    if path.is_file():
        return path
    raise CheckpointError(
        f"no weights are called {str(name)!r}: expected a file, a folder or one of {sorted(shipped)}"
    )


def one_line(error: Exception, longest: int = 300) -> str:
    """What an error says, on one line: torch lists every missing tensor, a paragraph each."""
    text = " ".join(str(error).split())
    return text if len(text) <= longest else text[: longest - 1] + "…"


def pretrained_folder() -> Path:
    """The folder of the weights that ship inside the package."""
    return Path(str(resources.files("probgram"))) / "models" / "pretrained"


def fingerprint(tensors: Mapping[str, Any]) -> str:
    """SHA-256 of named tensors, 16 hexadecimal digits: which weights, a `state_dict` say, made a run."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(name.encode())
        if hasattr(value, "detach"):  # NumPy does not know bfloat16
            import torch

            flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        else:
            flat = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
        digest.update(flat.data)
    return digest.hexdigest()[:16]


_fingerprints: "WeakKeyDictionary[Module, tuple[Any, str]]" = WeakKeyDictionary()


def weights_of(module: "Module") -> str | None:
    """The `fingerprint` of a module's weights, computed once for as long as they stay; None where it has none.

    PyTorch counts the changes of a tensor, so that a look at the weights on a GPU is needed after a change only; a
    change through `.data` is not counted.
    """
    tensors = module.state_dict()
    if not tensors:
        return None
    now = tuple((v.data_ptr(), None if v.is_inference() else v._version) for v in tensors.values())
    before, known = _fingerprints.get(module, (None, ""))
    if before != now:
        known = fingerprint(tensors)
        _fingerprints[module] = now, known
    return known
