"""A run as a netCDF 4 file: all of it in the groups `particles` and `latest`, and beside them what ArviZ reads.

It is written a depth step at a time, so that no second copy of the run is ever in memory.
"""

import json
from pathlib import Path
from typing import Any

from probgram import fields
from probgram.checkpoint import CheckpointError, one_line, replaced
from probgram.fields import AnyRun
from probgram.run import Run

COMPRESSION = {"compression": "gzip", "compression_opts": 1, "shuffle": True}


def write(path: str | Path, run: Run[Any]) -> Path:
    """Write a run atomically.

    Raises:
        CheckpointError: the file cannot be written.
    """
    import h5netcdf

    from probgram.export import attributes, derived

    with replaced(path) as temporary:
        with h5netcdf.File(temporary, "w") as file:
            file.attrs.update(attributes(run))
            for latest in (False, True):
                found = [variable for variable in fields.variables(run) if variable.latest is latest]
                group = file.create_group("latest" if latest else "particles")
                for variable in found:
                    _write_variable(group, variable)
                for name, values in fields.coordinates(run, found).items():
                    if name in group.dimensions or name == "depth":
                        group.dimensions.setdefault(name, len(values))
                        group.create_variable(name, (name,), values.dtype, data=values)
            file["particles"].attrs["run"] = fields.as_json(fields.header(run))
        for name, dataset in derived(run).items():
            encoding: dict[Any, Any] = {variable: COMPRESSION for variable in dataset.data_vars}
            dataset.to_netcdf(temporary, mode="a", group=name, engine="h5netcdf", encoding=encoding)
    return Path(path)


def _write_variable(group: Any, variable: fields.Variable) -> None:
    dims, values = variable.dims, variable.values
    for name, size in zip(dims, values.shape, strict=True):
        group.dimensions.setdefault(name, size)
    first = fields.as_array(values[:1])
    dtype = "i1" if first.dtype == bool else first.dtype  # netCDF has no truth values: xarray's convention
    shape = tuple(values.shape)
    pieces = [min(c, n) for c, n in zip(fields.chunks(shape, dims, first.itemsize), shape, strict=True)]
    target = group.create_variable(variable.name, dims, dtype, chunks=tuple(pieces), **COMPRESSION)
    target.attrs.update(fields.attributes(variable))
    if first.dtype == bool:
        target.attrs["dtype"] = "bool"
    for start in range(0, len(values), pieces[0]):
        target[start : start + pieces[0]] = fields.as_array(values[start : start + pieces[0]])


def read(path: str | Path, kind: type[AnyRun], problems: slice | None = None) -> AnyRun:
    """Read a run of a kind; see `Run.load`.

    Raises:
        CheckpointError: no such file, damaged, or not a run.
    """
    import h5netcdf

    if not Path(path).is_file():
        raise CheckpointError(f"{path} does not exist")
    try:
        with h5netcdf.File(path, "r") as file:
            if "particles" not in file.groups or "run" not in file["particles"].attrs:
                raise CheckpointError(f"{path} is not a saved run: it has no group of particles")
            particles = file["particles"]
            said = json.loads(particles.attrs["run"])
            some = fields.chosen(problems, particles.dimensions["problem"].size)
            groups = (particles, file["latest"])
            found = [v for group in groups for v in group.variables.values() if "field" in v.attrs]
            tensors = fields.read(((v.dimensions, v.attrs, v) for v in found), len(said["depths"]), some, kind)
    except CheckpointError:
        raise
    except (OSError, KeyError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"{path} is not a whole netCDF file of a run: {one_line(error)}") from error
    return fields.assembled(tensors, said, path, kind)
