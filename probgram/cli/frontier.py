"""`probgram frontier`: whether more depth or more width would help."""

from pathlib import Path
from typing import Annotated, Any

import typer

from probgram.cli.common import (
    Backend,
    Device,
    Json,
    Quiet,
    TaskName,
    Weights,
    chain_from,
    check_data,
    integers_from,
    print_json,
    task_from,
    task_of,
)


def frontier(
    weights: Weights,
    task: TaskName = None,
    split: Annotated[str, typer.Option(help="test (held out) or train.")] = "test",
    depths: Annotated[str, typer.Option(help="Depth steps, with commas.")] = "1,2,4,8,16",
    widths: Annotated[str, typer.Option(help="Trajectories a problem, with commas.")] = "1,2,4,8,16,32",
    seeds: Annotated[str, typer.Option(help="Of the trajectories, with commas.")] = "0,1,2",
    problems: Annotated[int, typer.Option(min=1, help="A seeded subset of so many.")] = 64,
    by: Annotated[
        str, typer.Option(help="What decides: selected, pass_at_n (where answers can be verified) or coverage.")
    ] = "selected",
    transitions: Annotated[
        int | None, typer.Option(min=1, help="Make so many transitions a depth step. Default: the weights' own.")
    ] = None,
    noise: Annotated[
        float | None,
        typer.Option(help="Gaussian noise on the state before every depth step, of this standard deviation."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=0, help="Timings of every cell; 0 leaves latency out.")] = 5,
    out: Annotated[Path | None, typer.Option(help="Write verdict, picture and table as one HTML file.")] = None,
    backend: Backend = "torch",
    device: Device = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say whether more depth or more width would help: the grid of both on held-out problems, and a verdict.

    **Examples**

    `probgram frontier queens8 --out frontier.html`

    `probgram frontier queens8 --depths 1,2,4 --widths 1,4,16 --problems 32 --by coverage --json`

    `probgram frontier pointers-looped --transitions 1 --noise 0.1`  a looped network, whose depth step is all its
    loops: depth counts loops, and noise makes the trajectories of a deterministic chain differ

    `probgram frontier queens8 --backend jax --rounds 0`  with timings JAX compiles every cell of the grid
    """
    from probgram.checkpoint import check_writable
    from probgram.inference.frontier import frontier as measure

    if out is not None:
        check_writable(out)
    grid = {
        name: integers_from(text, name) for name, text in (("depths", depths), ("widths", widths), ("seeds", seeds))
    }
    chain = chain_from(weights, device, backend)
    family = task_of(chain) if task is None else task_from(task)
    check_data(chain, family)
    chain = _changed(chain, transitions, noise, backend)
    found = measure(chain, family, **grid, problems=problems, split=split, by=by, rounds=rounds)  # type: ignore[arg-type]
    found.about.update({"transitions": transitions} if transitions else {})
    found.about.update({"noise": noise} if noise else {})
    if as_json:
        print_json("frontier", weights=weights, html=None if out is None else str(out), **found.as_dict())
    elif not quiet:
        from rich.console import Console
        from rich.markdown import Markdown

        console = Console()
        console.print(Markdown(found.grids()))
        console.print(found.verdict, markup=False, emoji=False, highlight=False)
    if out is not None:  # last: what was measured is not lost where the disk is full
        import matplotlib

        matplotlib.use("Agg")
        found.to_html(out)


def _changed(chain: Any, transitions: int | None, noise: float | None, backend: str) -> Any:
    """The chain with other depth steps, and in noise (PTRM)."""
    if backend != "torch" and (transitions, noise) != (None, None):
        raise ValueError("--transitions and --noise are PyTorch's: leave out --backend")
    if transitions is not None:
        chain.transitions = transitions
    if noise is None:
        return chain
    from probgram.models import Perturbed

    return Perturbed(chain, noise, on=("h", "l")[: getattr(chain, "levels", 1)])
