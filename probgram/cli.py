"""The command line. It alone maps words to functions; what a command prints as JSON names its schema.

Exit codes: 0 done; 1 ran, but no answer to a problem is right, or sure enough, or training was interrupted or
diverged; 2 bad input, or a file that cannot be read or written.
"""

import json
import logging
import shlex
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from probgram.chain import Chain
    from probgram.run import Run
    from probgram.solve import Solution
    from probgram.tasks import Task

log = logging.getLogger("probgram")


class _Group(TyperGroup):
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


app = typer.Typer(cls=_Group, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="markdown")

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
AbstainBelow = Annotated[
    float | None,
    typer.Option(min=0.0, max=1.0, help="Give no answer to a problem where the confidence is below this."),
]
ConfidenceBy = Annotated[
    str | None,
    typer.Option(
        "--confidence",
        help="Of the most probable answer: halt or value, what a head says; vote, its share; energy, how close all "
        "trajectories come to one. Default: halt where the network has that head, else vote.",
    ),
]


@app.callback()
def root(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens, to standard error.")] = False,
) -> None:
    """Wide latent recursive reasoning: solve a puzzle with many latent trajectories, train, evaluate.

    Start with `probgram demo`, then `probgram solve queens8 --board "0 . . . . . . ."`
    """
    from rich.console import Console
    from rich.logging import RichHandler

    handler = RichHandler(console=Console(stderr=True), show_path=False, show_time=False)
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(message)s", handlers=[handler]
    )


@app.command()
def solve(
    weights: Weights,
    board: Annotated[str | None, typer.Option(help="The problem, as the task reads it.")] = None,
    file: Annotated[
        Path | None, typer.Option(help="Problems, a blank line between two; - is standard input.")
    ] = None,
    task: TaskName = None,
    width: Width = 20,
    depth: Depth = None,
    seed: Seed = 0,
    potential: Potential = None,
    resample: Resample = "none",
    ess: Ess = 0.5,
    abstain_below: AbstainBelow = None,
    confidence: ConfidenceBy = None,
    report: Annotated[
        Path | None, typer.Option(help="Write boards over depth, ancestry and diagnosis as one HTML file.")
    ] = None,
    backend: Backend = "torch",
    device: Device = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Answer problems: the different answers found, drawn, with the share of trajectories that ended there.

    **Examples**

    `probgram solve queens8 --board "0 . . . . . . ."`  columns, a dot for a blank row

    `probgram solve queens8 --file boards.txt --width 64`  Q and . drawn, a blank line between boards

    `cat board.txt | probgram solve queens8 --json`

    `probgram solve queens8 --board ". . . . . . . ." --potential energy --resample systematic`  a particle filter

    `probgram solve queens8 --board "0 2 . . . . . ." --abstain-below 0.9`  no answer where it is not sure

    `probgram solve queens8 --board "0 . . . . . . ." --report run.html`  a page to look into the run

    `probgram solve queens8 --board "0 . . . . . . ." --backend jax`  the same network in JAX

    Exits with 1 when every answer to a problem fails verification, or none is given.
    """
    if board is not None and file is not None:
        raise ValueError("a problem is needed once: --board TEXT or --file PATH, not both")
    texts = [board] if board is not None else list(_problems(file))
    chain = _chain(weights, device, backend)
    family = _trained_on(chain) if task is None else _task(task)
    from probgram.solve import solve as answer
    from probgram.solve import usual_depth

    depth = usual_depth(chain) if depth is None else depth
    choices = _filter(potential, resample, ess, family, backend)
    sure: dict[str, Any] = {"abstain_below": abstain_below, "confidence": _confidence(confidence, family, backend)}
    solutions = [answer(chain, text, width, depth, seed, family, **sure, **choices) for text in texts]
    if report is not None:
        known = chain if backend == "torch" else None  # a diagnosis draws a few more trajectories, in PyTorch
        _write_report(report, [solution.run for solution in solutions], family, chain=known)
    if as_json:
        _print_json(
            "solve",
            weights=weights,
            backend=backend,
            width=width,
            depth=depth,
            seed=seed,
            potential=potential,
            resample=resample if choices else None,
            abstain_below=abstain_below,
            confidence_by=confidence,
            problems=[_plain(s) for s in solutions],
        )
    elif not quiet:
        for solution in solutions:
            _show(solution)
    if not all(solution.accepted() for solution in solutions):
        raise typer.Exit(1)


@app.command()
def train(
    data: Annotated[
        str, typer.Argument(help="queens8, module:Task, or an .npz file with x and y.", metavar="DATA")
    ],
    out: Annotated[Path, typer.Option(help="Where the weights go.")] = Path("weights.safetensors"),
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 2_000,
    head_steps: Annotated[int, typer.Option(min=0, help="Then so many for the heads alone.")] = 200,
    depth: Annotated[int, typer.Option(min=1, help="Depth steps of a training trajectory.")] = 8,
    batch: Annotated[int, typer.Option(min=1, help="Problems in a batch.")] = 128,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    dim: Annotated[int, typer.Option(min=1, help="Latent size of a token.")] = 128,
    body: Annotated[str, typer.Option(help="attention, or mixer.")] = "attention",
    precision: Annotated[str, typer.Option(help="32 or bf16.")] = "32",
    folder: Annotated[
        Path | None, typer.Option(help="Checkpoints and metrics. Default: runs/ and the name of OUT.")
    ] = None,
    seed: Seed = 0,
    backend: Backend = "torch",
    device: Device = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a GRAM chain and write its weights. The same command goes on where a stopped run ended.

    **Examples**

    `probgram train queens8 --steps 3000 --out queens.safetensors`

    `probgram train my_data.npz --dim 64`  integer arrays x and y, a row a pair

    `probgram train my_package.puzzles:Kakuro --precision bf16`

    `probgram train queens8 --backend jax`

    Then `probgram evaluate OUT` and `probgram solve OUT`. Exits with 1 when interrupted.
    """
    from probgram import checkpoint
    from probgram.backends import inference
    from probgram.inference.drawing import as_known_answers, fingerprint_of
    from probgram.inference.recipes import default

    svi = inference(backend, "svi")
    task = _task(data)
    folder = folder or Path("runs") / out.stem
    chain, guide = _untrained(task, seed, backend, device, dim=dim, body=body)
    shared: dict[str, Any] = {"batch": batch, "seed": seed, "precision": precision, "accelerator": device or "auto"}
    shared |= {"progress": not (quiet or as_json)}
    objective = default(guide, task, depth)
    result = svi.fit(chain, guide, task, steps, objective=objective, folder=folder, lr=lr, **shared)
    done, chain, guide = result.finished, result.chain, result.guide
    if done and head_steps:
        heads = folder / f"heads-{result.steps}"  # of this core: trained further, it gets heads anew
        judged = svi.fit_heads(chain, ("judge",), task, head_steps, depth, folder=heads, **shared)
        done, chain = judged.finished, judged.chain
    if not done:
        raise typer.Exit(1)
    about = {"task": task.name, "split": getattr(task, "split", "input"), "seed": seed, "steps": result.steps}
    about["data"] = fingerprint_of(as_known_answers(task))
    if backend == "torch":
        chain, guide = chain.cpu(), guide.cpu()
    path = checkpoint.save_chain(out, chain, guide, about)
    if as_json:
        last = result.history[-1] if result.history else {}
        _print_json("train", weights=str(path), folder=str(folder), **about, metrics=last)
    elif not quiet:
        print(f"{path} written; metrics and checkpoint in {folder}")
        print(f"next: probgram evaluate {shlex.quote(str(path))}{_task_flag(data)}")


@app.command()
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

    chosen = _integers(seeds, "seeds")
    chain = _chain(weights, device, backend)
    family = _trained_on(chain) if task is None else _task(task)
    _check_data(chain, family)
    choices = _filter(potential, resample, ess, family, backend)
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
        _print_json("evaluate", weights=weights, figures=report.figures, limits=report.limits, about=report.about)
    elif not quiet:
        from rich.console import Console
        from rich.markdown import Markdown

        Console().print(Markdown(report.table()))


@app.command()
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

    `probgram frontier queens8 --backend jax --rounds 0`  with timings JAX compiles every cell of the grid
    """
    from probgram.inference.frontier import frontier as measure

    grid = {
        name: _integers(text, name) for name, text in (("depths", depths), ("widths", widths), ("seeds", seeds))
    }
    chain = _chain(weights, device, backend)
    family = _trained_on(chain) if task is None else _task(task)
    _check_data(chain, family)
    found = measure(chain, family, **grid, problems=problems, split=split, by=by, rounds=rounds)  # type: ignore[arg-type]
    if out is not None:
        import matplotlib

        matplotlib.use("Agg")
        found.to_html(out)
    if as_json:
        _print_json("frontier", weights=weights, html=None if out is None else str(out), **found.as_dict())
    elif not quiet:
        from rich.console import Console
        from rich.markdown import Markdown

        console = Console()
        console.print(Markdown(found.table()))
        console.print(found.verdict, markup=False, emoji=False, highlight=False)


@app.command()
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
    family = None if task is None else _task(task)
    chosen = None if problem is None else _integers(problem, "problem")
    path = _write_report(run.with_suffix(".html") if out is None else out, [saved], family, chosen)
    if as_json:
        _print_json("report", run=str(run), html=str(path), bytes=path.stat().st_size)
    elif not quiet:
        print(f"{path} written")


@app.command()
def info(weights: Weights, as_json: Json = False) -> None:
    """Say what a weight file holds: model, sizes, task, split, seed, figures. Loads no network.

    **Example**: `probgram info queens8`
    """
    from probgram.checkpoint import describe

    content = describe(weights)
    if as_json:
        _print_json("info", **content)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None)
    for name, value in content.items():
        rows = value.items() if isinstance(value, dict) else [("", value)]
        for i, (key, entry) in enumerate(rows):
            table.add_row(name if i == 0 else "", key, json.dumps(entry) if not isinstance(entry, str) else entry)
    Console(markup=False, emoji=False).print(table)


@app.command()
def demo(
    picture: Annotated[Path, typer.Option(help="PNG of coverage against width.")] = Path("width.png"),
    width: Width = 20,
    depth: Annotated[int, typer.Option(min=1, help="Depth steps.")] = 16,
    seed: Seed = 0,
) -> None:
    """Complete three 8-queens boards with the shipped weights, and draw coverage against width.

    **Example**: `probgram demo --width 64 --picture coverage.png`
    """
    from rich.console import Console

    from probgram import demo as shown

    shown.run(Console(), picture, width, depth, seed)


# -- words to things ------------------------------------------------------------------------------------------


def _problems(file: Path | None) -> Iterator[str]:
    """The blocks of a file, or of standard input, apart by blank lines."""
    if file is None and sys.stdin.isatty():
        raise ValueError("a problem is needed: --board TEXT, --file PATH, or text on standard input")
    try:
        text = sys.stdin.read() if file is None or str(file) == "-" else file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file or 'standard input'} cannot be read: {error}") from error
    block: list[str] = []
    empty = True
    for line in [*text.splitlines(), ""]:
        if line.strip():
            block.append(line)
        elif block:
            yield "\n".join(block)
            block, empty = [], False
    if empty:
        raise ValueError(f"{file or 'standard input'} holds no problem")


def _integers(text: str, name: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise ValueError(f"{name} must be integers with commas between them, got {text!r}") from None


def _chain(weights: str, device: str | None, backend: str = "torch") -> Any:
    from probgram.backends import load_chain

    if backend == "torch":
        return load_chain(weights).to(_device(device))
    _no_device(device)
    return load_chain(weights, backend)


def _untrained(task: "Task", seed: int, backend: str, device: str | None, **choices: Any) -> tuple[Any, Any]:
    """A GRAM chain for a task, and its guide."""
    if backend == "torch":
        import torch

        from probgram.models import GRAM, GRAMGuide

        if device is not None:
            _device(device)  # Fabric's error for one that is not there is a traceback
        torch.manual_seed(seed)
        chain = GRAM.for_task(task, **choices)
        return chain, GRAMGuide(chain)
    import jax

    from probgram.models import on_jax

    _no_device(device)
    chain_key, guide_key = jax.random.split(jax.random.key(seed % 2**32))
    twin = on_jax.GRAM.for_task(task, key=chain_key, **choices)
    return twin, on_jax.GRAMGuide(twin, key=guide_key)


def _no_device(device: str | None) -> None:
    if device is not None:
        raise ValueError("--device is PyTorch's: JAX takes the fastest there is, and JAX_PLATFORMS=cpu another")


def _device(name: str | None) -> str:
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


def _trained_on(chain: Any) -> "Task":
    from probgram.solve import trained_on

    try:
        return trained_on(chain)
    except ValueError as error:
        raise ValueError(f"--{error}; give a name, module:Task or data.npz") from None


def _check_data(chain: Any, task: "Task") -> None:
    """Refuse to call problems held out that the weights may have been trained on."""
    from probgram.inference.drawing import as_known_answers, fingerprint_of

    seen = chain.about.get("data")
    if seen is not None and seen != fingerprint_of(as_known_answers(task)):
        raise ValueError(
            f"the weights were not trained on the training problems of {task!r}, so its test problems may not be "
            "held out from them: evaluate on the data, split and seed of the training"
        )


def _task(text: str) -> "Task":
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


def _task_flag(data: str) -> str:
    return f" --task {shlex.quote(data)}" if ":" in data or data.endswith(".npz") else ""


def _filter(potential: str | None, resample: str, ess: float, task: "Task", backend: str) -> dict[str, Any]:
    """The arguments of a filter; none where no potential is named."""
    if potential is None:
        return {}
    from probgram.backends import inference

    schemes = inference(backend, "resampling").SCHEMES
    if resample not in (*schemes, "none"):
        raise ValueError(f"resample must be one of {', '.join(schemes)} or none, got {resample!r}")
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


def _confidence(word: str | None, task: "Task", backend: str) -> Any:
    """A confidence from a word; None: the usual one."""
    from probgram.backends import inference
    from probgram.inference import confidence

    if word == "energy":
        return confidence.expected(inference(backend, "potentials").energy(task))
    words = {None: None, "vote": confidence.share, "value": confidence.value, "halt": confidence.halt}
    if word not in words:
        raise ValueError(f"confidence must be vote, value, halt or energy, got {word!r}")
    return words[word]


# -- showing --------------------------------------------------------------------------------------------------


def _print_json(command: str, **content: Any) -> None:
    print(json.dumps({"schema": f"probgram.{command}/1"} | content))


def _write_report(
    path: Path,
    runs: "list[Run[Any]]",
    task: "Task | None",
    problem: list[int] | None = None,
    chain: "Chain | None" = None,
) -> Path:
    from probgram.checkpoint import write_bytes
    from probgram.inference import diagnose
    from probgram.report import report as written

    known = None if chain is None else [diagnose(run, task, chain) for run in runs]
    return write_bytes(path, written(runs, task, problem, known).encode())


def _plain(solution: "Solution") -> dict[str, Any]:
    verified = [None] * len(solution.answers) if solution.verified is None else solution.verified.tolist()
    rows = zip(solution.answers.tolist(), solution.shares.tolist(), verified, strict=True)
    answers = [{"y": y, "share": share, "verified": right} for y, share, right in rows]
    sure = {"confidence": solution.confidence, "abstained": solution.abstained}
    return {"x": solution.run.x[0].tolist(), "task": solution.task.name, "answers": answers} | sure


def _show(solution: "Solution") -> None:
    from rich.columns import Columns
    from rich.console import Console

    from probgram.demo import panels

    console, right = Console(), solution.accepted()
    if solution.abstained:
        console.print(str(solution), markup=False, highlight=False)
        return
    console.print(Columns(panels(solution)))
    kind = "unverified (the task has no rule for it)" if solution.verified is None else "verified"
    answers = "answer" if len(right) == 1 else "answers"
    wrong = 1 - sum(share for _, share in right)
    rest = f"; {wrong:.0%} of them ended elsewhere" if solution.verified is not None and wrong > 1e-9 else ""
    console.print(f"{len(right)} {kind} {answers} from {solution.run.width} trajectories{rest}")


def main() -> None:
    """Entry point of the `probgram` command."""
    app()


if __name__ == "__main__":
    main()
