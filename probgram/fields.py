"""What of a run is written to a file: every array with a name and named dimensions, and the rest as JSON.

    particles    a row a depth step: answers, log weights, heads, figures    [depth, chain, draw, problem, ...]
    latest       what a run has once: psi, what halted, the last state       [chain, draw, problem, ...]

`chain` and `draw` together are the N trajectories, island after island, as ArviZ calls them. Both file formats keep
beside each variable which field of the run it is and its type there, so that a run comes back bit for bit, and as
one of PyTorch or of JAX, whichever wrote it.
"""

import json
import math
from collections import namedtuple
from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from typing import Any, NamedTuple, TypeVar

import numpy as np

from probgram.checkpoint import CheckpointError, one_line
from probgram.run import HALF_TYPES, Run

AnyRun = TypeVar("AnyRun", bound=Run[Any])

FORMAT = "probgram.run/1"
COORDINATES = ("chain", "draw", "problem", "depth", "step", "position", "input_position")  # no variables' names
CHUNK = 1 << 22  # bytes of a row that are compressed together, at most
SMALL_CHUNK = 1 << 18  # rows smaller than this share a chunk

_OPTIONAL = ("ancestors", "kl", "log_normalizer", "log_potential", "effective", "halted", "ended")
_LATEST = ("log_potential", "halted", "ended")
_NAMES = {"answers": "answer", "log_weights": "log_weight", "ancestors": "ancestor", "effective": "ess"}
_DIMENSIONS = {
    "x": ("problem",),
    "answers": ("depth", "particle", "problem", "position"),
    "log_weights": ("depth", "particle", "problem"),
    "ancestors": ("depth", "particle", "problem"),
    "kl": ("depth", "particle", "problem"),
    "heads": ("depth", "particle", "problem"),
    "log_normalizer": ("depth", "problem"),
    "effective": ("depth", "problem"),
    "collected": ("depth", "problem"),
    "states": ("depth", "particle", "problem"),
    "log_potential": ("particle", "problem"),
    "halted": ("particle", "problem"),
    "ended": ("problem",),
    "state": ("particle", "problem"),
}


class Variable(NamedTuple):
    """An array of a run as a file holds it.

    Fields:
        name: in the file, and in ArviZ.
        field: of `Run`: `answers`, `heads.value`, `state.0` (the first leaf of the state), ...
        dims: one name for each dimension of `values`.
        values: a view, the trajectories split into chains and draws.
        latest: whether the run has it once, not for every recorded depth step.
    """

    name: str
    field: str
    dims: tuple[str, ...]
    values: Any
    latest: bool


def islands_of(run: Run[Any]) -> int:
    """Into how many groups of equal size the trajectories fall that do not interact.

    A filter's own islands, where they exchange nothing; 1 for a filter without, since its trajectories share
    ancestors; 4 for independent trajectories, fewer where 4 does not divide their number or would leave an island
    fewer than 4 of them.
    """
    own = run.settings.get("islands", 1)
    if run.settings.get("exchange") is not None:
        return 1
    if own > 1 and run.width % own == 0:
        return own
    if run.ancestors is not None or run.settings.get("resample") is not None:
        return 1
    return next(
        number for number in (4, 3, 2, 1) if run.width % number == 0 and run.width >= 4 * number or number == 1
    )


def flat(run: Run[Any], states: bool = True) -> dict[str, Any]:
    """The arrays of a run by field; `states` and `state` only where they are asked for."""
    fields = {"x": run.x, "answers": run.answers, "log_weights": run.log_weights}
    fields |= {name: getattr(run, name) for name in _OPTIONAL if getattr(run, name) is not None}
    for group in ("heads", "collected"):
        fields |= {f"{group}.{name}": value for name, value in getattr(run, group).items()}
    if states:
        for group in ("states", "state"):
            found = leaves(getattr(run, group))
            fields |= {f"{group}.{number}": leaf for number, (_, leaf) in enumerate(found)}
    return fields


def about(run: Run[Any]) -> dict[str, Any]:
    """What else is to be known of a run, plain values."""
    return {
        "likelihoods_only": run.likelihoods_only,
        "depths": list(run.depths),
        "task": run.task,
        "seed": run.seed,
        "settings": run.settings,
    }


def as_json(values: Mapping[str, Any]) -> str:
    """Plain values as JSON; NumPy's numbers are numbers."""
    return json.dumps(values, default=lambda value: value.item())


def variables(run: Run[Any], islands: int | None = None) -> list[Variable]:
    """Every array of a run that has elements, without copying, as files and ArviZ name it.

    Args:
        run: is split into chains and draws.
        islands: how many chains; None: `islands_of`.
    """
    islands = islands_of(run) if islands is None else islands
    paths = {f"{g}.{i}": path for g in ("states", "state") for i, (path, _) in enumerate(leaves(getattr(run, g)))}
    found: list[Variable] = []
    taken = {*COORDINATES, *(_NAMES.get(field, field) for field in _DIMENSIONS)}
    for field, values in flat(run).items():
        if not math.prod(values.shape):
            continue
        group, _, own = field.partition(".")
        name = _NAMES.get(field, field)
        if group in ("states", "state"):
            name = "_".join(("state", *paths[field]))
        elif own:
            name = own if own not in taken else field
        name = name.replace("/", "_")
        latest = group in (*_LATEST, "state")
        while any(name == other.name and latest == other.latest for other in found):
            name += "_"
        taken.add(name)
        found.append(Variable(name, field, *_split(field, name, values, len(run.depths), islands), latest))
    return found


def _split(field: str, name: str, values: Any, rows: int, islands: int) -> tuple[tuple[str, ...], Any]:
    """The dimensions of a field, and its values with the trajectories as chains and draws."""
    dims = _DIMENSIONS[field.partition(".")[0]]
    if dims[0] == "depth" and len(values) != rows:
        dims = ("step", *dims[1:])  # figures of every depth step beside answers of the last
    rest = len(values.shape) - len(dims)
    more = ("input_position",) if field == "x" and rest == 1 else tuple(f"{name}_dim_{i}" for i in range(rest))
    dims = (*dims, *more)
    if "particle" not in dims:
        return dims, values
    at = dims.index("particle")
    shape = values.shape
    split = values.reshape(*shape[:at], islands, shape[at] // islands, *shape[at + 1 :])
    return (*dims[:at], "chain", "draw", *dims[at + 1 :]), split


def header(run: Run[Any]) -> dict[str, Any]:
    """`about`, and what else puts a run together again: its trees of states, its arrays without elements."""
    empty = {
        field: (list(zip_longest(_DIMENSIONS[field.partition(".")[0]], values.shape)), type_of(values))
        for field, values in flat(run).items()
        if not math.prod(values.shape)
    }
    trees = {group: _structure(getattr(run, group)) for group in ("states", "state")}
    return about(run) | {"format": FORMAT, "order": list(flat(run)), "trees": trees, "empty": empty}


def coordinates(run: Run[Any], found: Iterable[Variable]) -> dict[str, np.ndarray]:
    """The coordinates of the variables' dimensions: `depth` counts depth steps, the others from 0."""
    sizes = {dim: size for v in found for dim, size in zip(v.dims, v.values.shape, strict=True)}
    named = [dim for dim in sizes if dim in ("chain", "draw", "problem", "position", "input_position")]
    return {"depth": np.array(run.depths, np.int32)} | {dim: np.arange(sizes[dim], dtype=np.int32) for dim in named}


def assembled(fields: Mapping[str, Any], said: Mapping[str, Any], where: Any, kind: type[AnyRun]) -> AnyRun:
    """Put a run together again.

    Args:
        fields: as `flat` gave them.
        said: as `header` or `about` gave it.
        where: the file, for the message.
        kind: the class of the run.

    Raises:
        CheckpointError: something is missing, or does not fit.
    """
    try:
        known = ("likelihoods_only", "task", "seed", "settings")
        rest: dict[str, Any] = {name: said[name] for name in known}
        rest |= {"depths": tuple(said["depths"]), "heads": {}, "collected": {}}
        leaves: dict[str, list[Any]] = {"states": [], "state": []}
        sizes = {"depth": len(rest["depths"]), "problem": fields["log_weights"].shape[2]}
        empty = {
            field: kind.as_stored(np.empty([sizes.get(dim, n) for dim, n in shape], _stored(dtype)), dtype)
            for field, (shape, dtype) in said.get("empty", {}).items()
        }
        every = {**fields, **empty}
        order = [field for field in said.get("order", ()) if field in every]
        for field in dict.fromkeys([*order, *every]):
            group, _, own = field.partition(".")
            value = every[field]
            if own and group in leaves:
                leaves[group].append(value)
            elif own:
                rest[group][own] = value
            else:
                rest[field] = value
        for group, structure in said.get("trees", {}).items():
            rest[group] = _tree(structure, iter(leaves[group]))
        return kind(**rest)
    except (AttributeError, KeyError, TypeError, ValueError, IndexError, StopIteration) as error:
        raise CheckpointError(f"{where} is not a whole run of this version: {one_line(error)}") from error


# -- arrays ---------------------------------------------------------------------------------------------------


def as_array(values: Any) -> np.ndarray:
    """An array of either library as NumPy knows it, half types as integers; on the CPU it is a view."""
    if not hasattr(values, "detach"):
        values = np.asarray(values)
        return values.view(np.int16) if type_of(values) in HALF_TYPES else values
    values = values.detach().cpu()
    if type_of(values) not in HALF_TYPES:
        return values.numpy()
    import torch  # which made the tensor

    return values.view(torch.int16).numpy()


def widened(values: Any) -> np.ndarray:
    """An array of either library to compute with, half types as float32; on the CPU it is a view."""
    if type_of(values) in HALF_TYPES:
        values = values.float() if hasattr(values, "detach") else values.astype(np.float32)
    return as_array(values)


def attributes(variable: Variable) -> dict[str, str]:
    """What is written beside a variable so that it is found again."""
    return {"field": variable.field, "type": type_of(variable.values)}


def chunks(shape: tuple[int, ...], dims: tuple[str, ...], itemsize: int) -> tuple[int, ...]:
    """The piece of an array that is compressed together: some rows, or some problems of a row that is large."""
    sizes = list(shape)
    rows = dims[0] in ("depth", "step")
    row = max(1, int(np.prod(shape[1:] if rows else shape)) * itemsize)
    if rows:
        sizes[0] = max(1, SMALL_CHUNK // row)
    if row > CHUNK and "problem" in dims:
        at = dims.index("problem")
        sizes[at] = max(1, sizes[at] * CHUNK // row)
    return tuple(sizes)


def read(
    found: Iterable[tuple[tuple[str, ...], Mapping[str, Any], Any]],
    rows: int,
    problems: slice,
    kind: type[Run[Any]],
) -> dict[str, Any]:
    """Read variables into arrays by field.

    Args:
        found: dimensions, attributes and array of each.
        rows: how many rows over depth.
        problems: which problems.
        kind: of the run they are for.
    """
    fields: dict[str, Any] = {}
    for dims, beside, array in found:
        index = tuple(slice(rows) if d == "depth" else problems if d == "problem" else slice(None) for d in dims)
        values = np.require(array[index], requirements=["C", "W"])
        if "chain" in dims:
            at, shape = dims.index("chain"), values.shape
            values = values.reshape(*shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :])
        fields[beside["field"]] = kind.as_stored(values, beside["type"])
    return fields


def chosen(problems: slice | None, number: int) -> slice:
    """A slice that keeps some of the problems, spelled out.

    Raises:
        ValueError: it keeps none, or goes backwards.
    """
    if problems is not None and not isinstance(problems, slice):
        raise ValueError(f"problems must be a slice such as slice(0, 100), got {problems!r}")
    start, stop, step = (problems or slice(None)).indices(number)
    if step < 1 or start >= stop:
        raise ValueError(f"problems must keep some of the {number} problems, in their order, got {problems}")
    return slice(start, stop, step)


def type_of(values: Any) -> str:
    """The name of an array's type, which both libraries agree on."""
    return str(values.dtype).removeprefix("torch.")


def _stored(dtype: str) -> str:
    return "int16" if dtype in HALF_TYPES else dtype


# -- trees of states ------------------------------------------------------------------------------------------


def leaves(state: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The arrays of a state, each with the keys and fields that lead to it; nothing for None.

    Raises:
        CheckpointError: a part of it is something else, for which a file has no place.
    """
    if hasattr(state, "dtype"):
        yield path, state
    elif isinstance(state, dict):
        for key, part in state.items():
            yield from leaves(part, (*path, str(key)))
    elif isinstance(state, tuple):
        for name, part in zip(getattr(state, "_fields", range(len(state))), state, strict=True):
            yield from leaves(part, (*path, str(name)))
    elif state is not None:
        raise CheckpointError(
            f"a state that is saved must be an array, a NamedTuple, a tuple or a dict of them, got "
            f"{type(state).__name__}"
        )


def _structure(state: Any) -> Any:
    """A state without its arrays, for JSON."""
    if state is None or hasattr(state, "dtype"):
        return None if state is None else "tensor"
    if isinstance(state, dict):
        return {"dict": [[key, _structure(part)] for key, part in state.items()]}
    parts = [_structure(part) for part in state]
    fields = getattr(state, "_fields", None)
    return {"tuple": parts} if fields is None else {"named": type(state).__name__, "fields": fields, "tuple": parts}


def _tree(structure: Any, leaves: Iterator[Any]) -> Any:
    """The state again; a NamedTuple is one of the same name and fields, whatever its class was."""
    if structure is None:
        return None
    if structure == "tensor":
        return next(leaves)
    if "dict" in structure:
        return {key: _tree(part, leaves) for key, part in structure["dict"]}
    parts = [_tree(part, leaves) for part in structure["tuple"]]
    if "named" not in structure:
        return tuple(parts)
    return namedtuple(structure["named"], structure["fields"])(*parts)
