"""`probgram train`: weights for a task, and for the heads after them."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from probgram.cli.common import (
    Backend,
    Device,
    Json,
    Quiet,
    Seed,
    print_json,
    refuse_device,
    task_from,
    working_device,
)

if TYPE_CHECKING:
    from probgram.tasks import Task


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

    checkpoint.check_writable(out)
    svi = inference(backend, "svi")
    task = task_from(data)
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
        print_json("train", weights=str(path), folder=str(folder), **about, metrics=last)
    elif not quiet:
        print(f"{path} written; metrics and checkpoint in {folder}")
        print(f"next: probgram evaluate {shlex.quote(str(path))}{_task_flag(data)}")


def _untrained(task: "Task", seed: int, backend: str, device: str | None, **choices: Any) -> tuple[Any, Any]:
    """A GRAM chain for a task, and its guide."""
    if backend == "torch":
        import torch

        from probgram.models import GRAM, GRAMGuide

        if device is not None:
            working_device(device)  # Fabric's error for one that is not there is a traceback
        torch.manual_seed(seed)
        chain = GRAM.for_task(task, **choices)
        return chain, GRAMGuide(chain)
    import jax

    from probgram.models import on_jax

    refuse_device(device)
    chain_key, guide_key = jax.random.split(jax.random.key(seed % 2**32))
    twin = on_jax.GRAM.for_task(task, key=chain_key, **choices)
    return twin, on_jax.GRAMGuide(twin, key=guide_key)


def _task_flag(data: str) -> str:
    return f" --task {shlex.quote(data)}" if ":" in data or data.endswith(".npz") else ""
