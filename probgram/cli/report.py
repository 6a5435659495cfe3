"""`probgram report`: a saved run as one HTML file."""

from pathlib import Path
from typing import Annotated

import typer

from probgram.cli.common import Json, Quiet, integers_from, print_json, task_from, write_report


def report(
    run: Annotated[Path, typer.Argument(help="A saved run: .safetensors, .nc or .zarr.", metavar="RUN")],
    out: Annotated[Path | None, typer.Option(help="Where the page goes. Default: RUN, ending in .html.")] = None,
    task: Annotated[
        str | None, typer.Option(help="queens8, module:Task, or data.npz. Default: what the run names.")
    ] = None,
    problem: Annotated[
        str | None, typer.Option(help="Which problems, from 0, with commas. Default: all, at most the first 12.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a saved run as one HTML file: its boards over depth, ancestry, answers, and a diagnosis in words.

    **Examples**

    `probgram report run.nc`  then open run.html; it needs no network

    `probgram report run.safetensors --problem 3,7 --out hard.html`
    """
    from probgram.trajectories import Trajectories

    saved = Trajectories.load(run)
    family = None if task is None else task_from(task)
    chosen = None if problem is None else integers_from(problem, "problem")
    path = write_report(run.with_suffix(".html") if out is None else out, [saved], family, chosen)
    if as_json:
        print_json("report", run=str(run), html=str(path), bytes=path.stat().st_size)
    elif not quiet:
        print(f"{path} written")
