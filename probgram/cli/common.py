"""What commands share: their options, words to things, JSON and pages, and errors as one sentence."""

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from probgram.chain import Chain
    from probgram.run import Run
    from probgram.tasks import Task

log = logging.getLogger("probgram")

# -- options --------------------------------------------------------------------------------------------------

Weights = Annotated[
    str, typer.Argument(help="A shipped name (queens8), a weight file or its folder.", metavar="WEIGHTS")
]
TaskName = Annotated[
    str | None,
    typer.Option("--task", help="queens8, module:Task, or data.npz. Default: what the weights were trained on."),
]
Width = Annotated[int, typer.Option(min=1, help="Trajectories a problem.")]
Depth = Annotated[
    int | None, typer.Option(min=1, help="Depth steps. Default: at which the weights were evaluated, or 16.")
]
Seed = Annotated[int, typer.Option(min=0, help="Same seed, same device, same numbers.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or mps. Default: the fastest there is.")]
Backend = Annotated[str, typer.Option(help="torch, or jax (extra jax): the same weights, compiled by XLA.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print no pictures, tables or progress.")]
Potential = Annotated[
    str | None,
    typer.Option(
        help="Filter: keep trajectories by value, halt or energy, with powers and products (value^4*energy)."
    ),
]
Resample = Annotated[
    str,
    typer.Option(
        help="Under a potential: none only weighs the trajectories, which served 8-queens best; systematic, "
        "stratified, multinomial, residual, ssp or killing copies and drops them between depth steps."
    ),
]
Ess = Annotated[
    float, typer.Option(min=0.0, help="Resample where the effective sample size is at most this share.")
]


# -- errors ---------------------------------------------------------------------------------------------------


class Group(TyperGroup):
    """Turns the library's errors into one sentence: never a traceback for bad input."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]  # typer's own base has moved
        """Run the command; an error of ours or of the file system ends it in one line."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # `| head`: typer ends quietly
            raise
        except (ValueError, ArithmeticError, OSError) as error:
            log.info("traceback:", exc_info=error)  # with -v
            typer.echo(f"Error: {error}", err=True)
            raise typer.Exit(1 if isinstance(error, ArithmeticError) else 2) from error


# -- words to things ------------------------------------------------------------------------------------------


def integers_from(text: str, name: str) -> list[int]:
    """Integers with commas between them; `name` is the option that holds them."""
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise ValueError(f"{name} must be integers with commas between them, got {text!r}") from None


def chain_from(weights: str, device: str | None, backend: str) -> Any:
    """A chain from a shipped name or a weight file, on its device."""
    from probgram.backends import load_chain

    if backend == "torch":
        return load_chain(weights).to(working_device(device))
    refuse_device(device)
    return load_chain(weights, backend)


def working_device(name: str | None) -> str:
    """A device that works; None: the fastest there is."""
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name not in ("cpu", "cuda", "mps"):
        raise ValueError(
            f"device must be cpu, cuda or mps, got {name!r}; CUDA_VISIBLE_DEVICES chooses among several"
        )
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:  # torch's words for a device that is not there
        raise ValueError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return name


def refuse_device(device: str | None) -> None:
    """Raise where JAX is told a device."""
    if device is not None:
        raise ValueError("--device is PyTorch's: JAX takes the fastest there is, and JAX_PLATFORMS=cpu another")


def task_of(chain: Any) -> "Task":
    """The task that a chain was trained on."""
    from probgram.solve import trained_on

    try:
        return trained_on(chain)
    except ValueError as error:
        raise ValueError(f"--{error}; give a name, module:Task or data.npz") from None


def check_data(chain: Any, task: "Task") -> None:
    """Refuse to call problems held out that the weights may have been trained on."""
    from probgram.inference.drawing import as_known_answers, fingerprint_of

    seen, split = chain.about.get("data"), chain.about.get("split")
    here = getattr(task, "split", split)
    if seen is None and split and chain.about.get("task") == task.name and here != split:
        raise ValueError(
            f"the weights were trained with {task.name} split by {split}, so what is held out by {here} may "
            "not be held out from them"
        )
    if seen is not None and seen != fingerprint_of(as_known_answers(task)):
        raise ValueError(
            f"the weights were not trained on the training problems of {task!r}, so its test problems may not be "
            "held out from them: evaluate on the data, split and seed of the training"
        )


def task_from(text: str) -> "Task":
    """A task by name, by module:Task, or from an .npz file of x and y."""
    from importlib import import_module

    from probgram import tasks

    if text.endswith(".npz"):
        return tasks.Pairs.from_npz(text)
    if ":" not in text:
        return tasks.from_name(text)
    module, _, name = text.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")  # a task in the folder at hand, as `python -m` would find it
    try:
        made = getattr(import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:  # the last two: ".module", no module
        raise ValueError(f"the task {text!r} cannot be imported: {error}") from error
    try:
        task = made() if callable(made) else made
    except TypeError as error:
        raise ValueError(f"the task {text!r} cannot be made without arguments: {error}") from error
    if not isinstance(task, tasks.Task):
        raise ValueError(f"{text} is no task: expected the attributes and methods of probgram.tasks.Task")
    return task


def filter_from(potential: str | None, resample: str, ess: float, task: "Task", backend: str) -> dict[str, Any]:
    """The arguments of a filter; none where no potential is named."""
    if potential is None and resample == "none":
        return {}
    from probgram.backends import inference

    schemes = inference(backend, "resampling").SCHEMES
    if resample not in (*schemes, "none"):
        raise ValueError(f"resample must be one of {', '.join(schemes)} or none, got {resample!r}")
    if potential is None:
        return {}
    scheme = schemes.get(resample)
    return {"potential": _potential(potential, task, backend), "resample": scheme, "ess_threshold": ess}


def _potential(text: str, task: "Task", backend: str) -> Any:
    """A potential from words: names with powers (`^`), multiplied (`*`)."""
    from probgram.backends import inference

    potentials = inference(backend, "potentials")
    product: Any = None
    for factor in text.split("*"):
        name, _, power = factor.strip().partition("^")
        if name not in ("value", "halt", "energy"):
            raise ValueError(f"potential must be made of value, halt and energy, got {text!r}")
        one = potentials.energy(task) if name == "energy" else getattr(potentials, name)
        try:
            one = one ** float(power) if power else one
        except ValueError:
            raise ValueError(f"the power in potential {text!r} must be a number, got {power!r}") from None
        product = one if product is None else product * one
    return product


# -- showing --------------------------------------------------------------------------------------------------


def print_json(command: str, **content: Any) -> None:
    """Print one line of JSON that names its schema."""
    print(json.dumps({"schema": f"probgram.{command}/1"} | content))


def write_report(
    path: Path,
    runs: "list[Run[Any]]",
    task: "Task | None",
    problem: list[int] | None = None,
    chain: "Chain | None" = None,
) -> Path:
    """Write runs as one HTML page; a chain lets their diagnosis draw a few more trajectories."""
    from probgram.checkpoint import write_bytes
    from probgram.inference import diagnose
    from probgram.report import report as written

    known = None if chain is None else [diagnose(run, task, chain) for run in runs]
    return write_bytes(path, written(runs, task, problem, known).encode())
