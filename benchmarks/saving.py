"""Size and time of saving and loading a run, in each of its formats; results in saving.md.

python -m benchmarks.saving                  64 trajectories × 32 depth steps × 1,000 problems
python -m benchmarks.saving --problems 100

The shipped queens8 answers 25 held-out boards. Larger runs repeat them, each time with the columns renamed, the
trajectories in another order and noise on the heads, so that they compress as runs do and not as repetitions do.
"""

import argparse
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import torch

from probgram import Trajectories, fields, tasks
from probgram.inference import sample
from probgram.models import GRAM
from probgram.store import Store

FORMATS = ("safetensors", "nc", "zarr")
WIDTH, DEPTH, BOARDS = 64, 32, 25

# Linux: the peak of the process's memory, set back to what it holds now before the run is saved.
GROWTH = """
import re, sys
import arviz, h5netcdf, safetensors.torch, xarray, zarr
from probgram import Trajectories

def memory(kind):
    return int(re.search(kind + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1])

run = Trajectories.load(sys.argv[1])
run[:1].save(sys.argv[2])
open("/proc/self/clear_refs", "w").write("5")
before = memory("VmRSS")
run.save(sys.argv[2])
print(memory("VmHWM") - before)
"""


def repeated(base: Trajectories, problems: int) -> Trajectories:
    """A run of more problems that looks like `base`."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.arange(problems) % base.problems
    columns = torch.rand(problems, 8, generator=generator).argsort(-1)
    order = torch.rand(WIDTH, problems, generator=generator).argsort(0)
    answers = columns[torch.arange(problems)[:, None], base.answers[:, order, rows].long()].to(torch.uint8)
    heads = {
        name: value[:, order, rows] + 0.1 * torch.randn(DEPTH, WIDTH, problems, generator=generator)
        for name, value in base.heads.items()
    }
    return replace(
        base,
        x=base.x[rows],
        answers=answers,
        heads=heads,
        log_weights=torch.zeros(DEPTH, WIDTH, problems),
        log_normalizer=torch.zeros(DEPTH, problems),
    )


def size(path: Path) -> int:
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())


class Stopwatch:
    """CPU and wall seconds of what is inside, for many rounds."""

    def __init__(self) -> None:
        self.cpu: list[float] = []
        self.wall: list[float] = []

    def __enter__(self) -> None:
        self.started = process_time(), perf_counter()

    def __exit__(self, *_: object) -> None:
        self.cpu.append(process_time() - self.started[0])
        self.wall.append(perf_counter() - self.started[1])

    def __str__(self) -> str:
        return f"{median(self.cpu):.2f} ({median(self.wall):.2f})"


def measured(path: Path, run: Trajectories, rounds: int) -> tuple[Stopwatch, Stopwatch]:
    """Save and load, the files in the page cache; what is loaded is compared."""
    save, load = Stopwatch(), Stopwatch()
    for _ in range(rounds):
        with save:
            run.save(path)
        with load:
            again = Trajectories.load(path)
    assert all(torch.equal(value, fields.flat(again)[name]) for name, value in fields.flat(run).items())
    return save, load


def growth(source: Path, target: Path) -> int:
    """Bytes by which a process that holds a run grows while it saves it."""
    command = [sys.executable, "-c", GROWTH, source, target]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) * 1024


def growing(path: Path, run: Trajectories) -> Stopwatch:
    """What `store=` adds to a depth step."""
    store, seconds = Store(path), Stopwatch()
    for s in range(DEPTH):
        row = replace(
            run,
            answers=run.answers[s : s + 1],
            heads={name: value[s : s + 1] for name, value in run.heads.items()},
            log_weights=run.log_weights[s : s + 1],
            log_normalizer=run.log_normalizer[s : s + 1],
            depths=(s + 1,),
        )
        with seconds:
            store.append(row)
    return seconds


def main(problems: int, rounds: int) -> None:
    torch.set_num_threads(1)
    task = tasks.Queens(8)
    x = torch.as_tensor(task.examples("test")[0])
    x = x[(x == 8).sum(-1) == 6][:BOARDS]
    base = sample(GRAM.from_pretrained("queens8"), x, WIDTH, DEPTH, task=task.name)
    run = repeated(base, problems)
    held = sum(value.numel() * value.element_size() for value in fields.flat(run).values())
    print(f"{WIDTH} trajectories × {DEPTH} depth steps × {problems:,} problems, {held / 1e6:.1f} MB in memory")
    print(f"median of {rounds} rounds: CPU seconds (wall seconds)")
    print("| format | MB on disk | save | load | memory while saving, MB |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for ending in FORMATS:
            path = Path(folder) / f"run.{ending}"
            save, load = measured(path, run, rounds)
            more = growth(path, Path(folder) / f"again.{ending}")
            print(f"| .{ending} | {size(path) / 1e6:.1f} | {save} | {load} | {more / 1e6:.0f} |")
        step = growing(Path(folder) / "growing.zarr", run)
    print(f"A depth step that is written as it goes, store=: {step}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    choices = parser.parse_args()
    main(choices.problems, choices.rounds)
