"""`probgram evaluate`: figures on held-out problems."""

from functools import partial
from typing import Annotated, Any

import typer

from probgram.cli.common import (
    Backend,
    Depth,
    Device,
    Ess,
    Json,
    Potential,
    Quiet,
    Resample,
    TaskName,
    Weights,
    Width,
    chain_from,
    check_data,
    filter_from,
    integers_from,
    print_json,
    task_from,
    task_of,
)


def evaluate(
    weights: Weights,
    task: TaskName = None,
    split: Annotated[str, typer.Option(help="test (held out) or train.")] = "test",
    width: Width = 20,
    depth: Depth = None,
    seeds: Annotated[
        str, typer.Option(help="Of the trajectories, with commas; at least three to publish.")
    ] = "0,1,2",
    problems: Annotated[int | None, typer.Option(min=1, help="A seeded subset of so many. Default: all.")] = None,
    potential: Potential = None,
    resample: Resample = "none",
    ess: Ess = 0.5,
    backend: Backend = "torch",
    device: Device = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure prior samples on held-out problems: validity, selection, coverage, with spread and limits.

    **Examples**

    `probgram evaluate queens8 --problems 100`

    `probgram evaluate weights.safetensors --task my_data.npz --json`

    `probgram evaluate queens8 --backend jax`
    """
    from probgram.backends import inference
    from probgram.solve import usual_depth

    chosen = integers_from(seeds, "seeds")
    chain = chain_from(weights, device, backend)
    family = task_of(chain) if task is None else task_from(task)
    check_data(chain, family)
    choices = filter_from(potential, resample, ess, family, backend)
    how: dict[str, Any] = {}
    if choices:
        how["run"] = partial(inference(backend, "smc").run, **choices)
    depth = usual_depth(chain) if depth is None else depth
    measure = inference(backend, "evaluation").evaluate
    report = measure(chain, family, split, width, depth, chosen, problems, **how)
    if backend != "torch":
        report.about["backend"] = backend
    report.about.update({"potential": potential, "resample": resample, "ess": ess} if choices else {})
    if as_json:
        print_json("evaluate", weights=weights, figures=report.figures, limits=report.limits, about=report.about)
    elif not quiet:
        from rich.console import Console
        from rich.markdown import Markdown

        Console().print(Markdown(report.table()))
