"""A run as a Zarr 3 folder, which grows while the run goes on.

An append writes the new rows first, and says last that they are there, by replacing one small file: a process that
is killed leaves all the depth steps it had said. What a run has once, such as its last state, alternates between
two places, so that the one that belongs to the last depth step said is whole.
"""

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from probgram import fields
from probgram.checkpoint import CheckpointError, one_line
from probgram.fields import AnyRun
from probgram.run import Run

# Settings that a run must go on with.
_CHOICES = ("weights", "width", "islands", "decode", "halt_probability", "potential", "guided", "resample")


class Store:
    """A run that grows on disk.

    Args:
        path: a folder ending in `.zarr`.
        start: the run that is continued: where the folder exists it must hold just this run, which the new depth
            steps are added to. None: the folder must not exist.

    Raises:
        CheckpointError: the folder exists, or holds another run than `start`.
    """

    def __init__(self, path: str | Path, start: Run[Any] | None = None) -> None:
        self.path = Path(path)
        _zarr()  # says at once where it is missing
        if self.path.suffix != ".zarr":
            raise CheckpointError(f"a store is a folder that ends in .zarr, got {path}")
        self.rows = 0
        self.settings: dict[str, Any] | None = None
        self.groups: dict[str, Any] = {}
        if not self.path.exists():
            return
        if start is None:
            raise CheckpointError(
                f"{path} exists: remove it, or go on with its run by start=Trajectories.load({str(path)!r})"
            )
        root, said = _open(self.path, "r+")
        self.rows, self.settings = len(said["depths"]), said["settings"]
        if said["depths"] != list(start.depths) or said["seed"] != start.seed:
            raise CheckpointError(
                f"{path} holds depth steps {said['depths'][0]} to {said['depths'][-1]} of seed {said['seed']}, and "
                f"start {start.depths[0]} to {start.depths[-1]} of seed {start.seed}: load start from it"
            )
        self.groups = {name: root[name] for name in ("particles", "latest/0", "latest/1")}
        arrays = [array for array in self.groups["particles"].array_values() if "field" in array.attrs]
        if any(array.metadata.dimension_names[0] == "step" for array in arrays):
            raise CheckpointError(f"{path} holds the last depth step of a run alone: it cannot grow")
        for array in arrays:  # rows of a depth step that was not said
            if array.metadata.dimension_names[0] == "depth":
                array.resize((self.rows, *array.shape[1:]))
        for name in set(root.group_keys()) - {"particles", "latest"}:  # posterior and so on, of fewer depth steps
            del root[name]

    def append(self, run: Run[Any]) -> None:
        """Add the depth steps of `run` to those that are there; its figures of earlier ones are there already.

        Raises:
            CheckpointError: the disk is full, or the run was made in another way than what is there.
        """
        settings = json.loads(fields.as_json(run.settings))
        for name in _CHOICES:
            before, now = (self.settings or settings).get(name), settings.get(name)
            if before != now:
                raise CheckpointError(f"{self.path} was run with {name} {before}, got {now}")
        self.settings = settings
        rows = len(run.depths)
        run = replace(
            run,
            log_normalizer=None if run.log_normalizer is None else run.log_normalizer[-rows:],
            effective=None if run.effective is None else run.effective[-rows:],
            collected={name: values[-rows:] for name, values in run.collected.items()},
        )
        try:
            self._create()
            self.extend(self._with_ancestors(run))
        except OSError as error:
            raise CheckpointError(f"{self.path} could not be written: {error.strerror or error}") from error

    def extend(self, run: Run[Any]) -> None:
        """Write a run as it is; figures may have more rows than answers."""
        self._create()
        particles = self.groups["particles"]
        rows = self.rows + len(run.depths)
        latest = self.groups[f"latest/{(rows - 1) % 2}"]
        found = fields.variables(run)
        for variable in found:
            array = self._array(latest if variable.latest else particles, variable)
            if variable.dims[0] in ("depth", "step"):
                _add_rows(array, variable.values)
            elif variable.latest or not self.rows:
                array[...] = fields.as_array(variable.values)
        for name, values in fields.coordinates(run, found).items():
            if name == "depth":
                _coordinate(particles, name, np.append(_values(particles, name)[: self.rows], values))
            elif not self.rows:
                _coordinate(particles, name, values)
        header = fields.header(run)
        depths = _values(particles, "depth").tolist()
        particles.update_attributes({"run": fields.as_json(header | {"depths": depths})})
        self.rows = rows

    def _create(self) -> None:
        """The folder, where there is none: with the first rows, so that a run that fails before leaves nothing."""
        if not self.groups:
            root = _zarr().create_group(str(self.path))
            self.groups = {name: root.create_group(name) for name in ("particles", "latest/0", "latest/1")}

    def _with_ancestors(self, run: Run[Any]) -> Run[Any]:
        """Ancestors in every row as soon as they are in one: who was not resampled is its own."""
        known = "ancestor" in self.groups["particles"]
        if (run.ancestors is not None) == known:
            return run
        slots = np.arange(run.width, dtype=np.int32)[:, None]
        own = np.broadcast_to(slots, (len(run.depths), run.width, run.problems))
        plain = replace(run, ancestors=own)
        if known:
            return plain
        variable = next(v for v in fields.variables(plain) if v.field == "ancestors")
        array = self._array(self.groups["particles"], variable)
        _add_rows(array, np.broadcast_to(variable.values[:1], (self.rows, *variable.values.shape[1:])))
        return run

    def _array(self, group: Any, variable: fields.Variable) -> Any:
        """The array of a variable, made when it is first seen."""
        if variable.name in group:
            return group[variable.name]
        rows = variable.dims[0] in ("depth", "step")
        shape = tuple(variable.values.shape)
        kind = fields.as_array(variable.values[:1]).dtype
        pieces = fields.chunks(shape, variable.dims, kind.itemsize)
        return group.create_array(
            name=variable.name,
            shape=(0, *shape[1:]) if rows else shape,
            dtype=kind,
            chunks=pieces,
            dimension_names=variable.dims,
            attributes=fields.attributes(variable),
        )


def write(path: str | Path, run: Run[Any]) -> Path:
    """Write a whole run, so that a reader sees the old folder or the new one.

    Raises:
        CheckpointError: something else than a run is there, or it cannot be written.
    """
    from probgram.export import attributes, derived

    path = Path(path)
    if path.exists() and not (path / "particles" / "zarr.json").exists():
        raise CheckpointError(f"{path} exists and holds no run: it was left as it is")
    folder = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
        new, old = folder / "new.zarr", folder / "old.zarr"
        store = Store(new)
        store.extend(run)
        for name, dataset in derived(run).items():
            dataset.to_zarr(new, group=name, mode="a", zarr_format=3, consolidated=False)
        _zarr().open_group(str(new), mode="r+").update_attributes(attributes(run))
        if path.exists():
            path.rename(old)
        new.rename(path)
    except OSError as error:
        raise CheckpointError(f"{path} could not be written: {error.strerror or error}") from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
    return path


def read(path: str | Path, kind: type[AnyRun], problems: slice | None = None) -> AnyRun:
    """Read a run of a kind, or the depth steps of one that has not ended; see `Run.load`.

    Raises:
        CheckpointError: no such folder, damaged, or not a run.
    """
    root, said = _open(Path(path), "r")
    rows = len(said["depths"])
    try:
        groups = (root["particles"], root[f"latest/{(rows - 1) % 2}"])
        found = [array for group in groups for array in group.array_values() if "field" in array.attrs]
        some = fields.chosen(problems, root["particles/log_weight"].shape[-1])
        source = ((array.metadata.dimension_names, array.attrs, array) for array in found)
        arrays = fields.read(source, rows, some, kind)
    except CheckpointError:
        raise
    except (OSError, KeyError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"{path} is not a whole run of this version: {one_line(error)}") from error
    return fields.assembled(arrays, said, path, kind)


def _open(path: Path, mode: str) -> tuple[Any, dict[str, Any]]:
    """The root of a folder, and what it says of its run."""
    zarr = _zarr()
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    try:
        root = zarr.open_group(str(path), mode=mode)
        said = root["particles"].attrs.get("run")
    except (OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is not a saved run: {one_line(error)}") from error
    if said is None:
        raise CheckpointError(f"{path} holds no whole depth step: its run was stopped in the first one")
    return root, json.loads(said)


def _add_rows(array: Any, values: Any) -> None:
    """Write rows behind those that are there, a chunk of them at a time."""
    first, piece = array.shape[0], array.chunks[0]
    end = first + len(values)
    array.resize((end, *array.shape[1:]))
    at = first
    while at < end:
        until = min(end, (at // piece + 1) * piece)
        array[at:until] = fields.as_array(values[at - first : until - first])
        at = until


def _coordinate(group: Any, name: str, values: np.ndarray) -> None:
    if name not in group:
        group.create_array(
            name=name, shape=values.shape, dtype=values.dtype, chunks=(1024,), dimension_names=(name,)
        )
    group[name].resize(values.shape)
    group[name][...] = values


def _values(group: Any, name: str) -> np.ndarray:
    return group[name][...] if name in group else np.zeros(0, np.int32)


def _zarr() -> Any:
    try:
        import zarr
    except ImportError as error:
        raise CheckpointError("a run as a .zarr folder needs zarr: pip install 'probgram[zarr]'") from error
    return zarr
