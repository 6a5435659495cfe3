"""Torch eager, torch compiled and JAX side by side; the filter beside `particles` and cuthbert, too.

python -m benchmarks.backends                    writes results/backends/speed.json, prints its tables; minutes
python -m benchmarks.backends sample --rounds 3  one part of it, printed only: sample, train, filter

A process a candidate, each bound to the same core, and they take turns: one call each, round after round, while
the others wait. So ratios are those of one run. A candidate's first call, in which it compiles, is told apart.
`particles` and `cuthbert` (from PyPI) are no part of probgram: where one is missing, its cells say so.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from probgram.checkpoint import write_bytes
from probgram.inference.timing import ratio

RESULT = Path(__file__).parent / "results" / "backends" / "speed.json"
WIDTHS, DEPTH, BATCH, PARTICLES = (1, 20, 256), 16, 128, (100_000, 1_000_000)
NAMES = {
    "sample": ("torch", "compiled", "jax"),
    "train": ("torch", "compiled", "jax"),
    "filter": ("particles", "cuthbert", "torch", "compiled", "jax"),
}
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
}


# -- candidates: what a worker's process is asked for ---------------------------------------------------------


def sampled(name: str, width: int) -> None:
    """One board, `width` trajectories, every depth step recorded."""
    if name == "jax":
        from probgram.inference.on_jax import sample
    else:
        from probgram.inference import sample
    chain, board = shipped(name)
    sample(chain, board, width, DEPTH)


@cache
def shipped(name: str) -> tuple[Any, Any]:
    """The shipped queens8 chain and one held-out board."""
    from probgram import tasks

    board = tasks.Queens(8).examples("test")[0][0]
    if name == "jax":
        from probgram.models.on_jax import GRAM as JaxGRAM

        return JaxGRAM.from_pretrained("queens8"), board
    import torch

    from probgram.models import GRAM

    chain = GRAM.from_pretrained("queens8").eval()
    if name == "compiled":
        chain.propose = torch.compile(chain.propose, dynamic=False)  # type: ignore[method-assign]
    return chain, board


def trained(name: str, turn: Callable[[], bool]) -> None:
    """Train the queens8 GRAM; `turn` is called after every optimiser step, and says whether that was the last."""
    from probgram import tasks

    task = tasks.Queens(8)
    settings: dict[str, Any] = {"batch": BATCH, "log_every": 1, "validate_every": 0, "progress": False}
    if name == "jax":
        from probgram.inference.on_jax.svi import fit as jax_fit
        from probgram.models.on_jax import GRAM as JaxGRAM
        from probgram.models.on_jax import GRAMGuide as JaxGuide

        chain = JaxGRAM.for_task(task)
        jax_fit(chain, JaxGuide(chain), task, 10_000, callbacks=[lambda view: turn()], **settings)
        return
    from probgram import fit
    from probgram.models import GRAM, GRAMGuide

    ours = GRAM.for_task(task)
    settings |= {"accelerator": "cpu", "compile": name == "compiled"}
    fit(ours, GRAMGuide(ours), task, 10_000, callbacks=[lambda view: turn()], **settings)


def filtered(name: str, n: int) -> float:
    """Log Z of the linear-Gaussian series of `benchmarks.filter`, resampled systematically at every step."""
    from benchmarks import filter as peers

    ys = peers.series("linear", 1)
    if name == "particles":
        return peers.run_particles("linear", ys, n)[0]
    if name == "cuthbert":
        return cuthberts(n)(np.asarray(ys[0]))
    if name == "jax":
        from probgram.inference.on_jax import smc

        run = smc.run(plain(), np.asarray(ys), width=n, depth=peers.T, ess_threshold=1.0, keep="summary")
        return float(run.log_normalizer[-1, 0])
    return float(peers.run_plain("linear", ys, n, compile=name == "compiled"))


def log_g(x: Any, y: Any) -> Any:
    """Log p(y | x), of JAX arrays."""
    from benchmarks import filter as peers

    return -0.5 * ((y - x) / peers.SIGMA_Y) ** 2 - (np.log(peers.SIGMA_Y) + 0.5 * peers.LOG_2PI)


@cache
def plain() -> Any:
    """The model for our JAX filter, as functions of arrays."""
    from benchmarks import filter as peers
    from probgram.inference.on_jax.kernels import PlainModel

    def step(x: Any, t: Any, noise: Any, ys: Any) -> tuple[Any, Any]:
        x = peers.move("linear", x, noise)
        return x, log_g(x, ys[:, t])

    return PlainModel(lambda noise, ys: noise, step)


@cache
def cuthberts(n: int) -> Callable[[Any], float]:
    """The model for cuthbert, its whole run compiled; of its history only log Z leaves the program."""
    import jax
    from cuthbert import filter as run
    from cuthbert.smc import particle_filter
    from cuthbertlib.resampling import systematic

    from benchmarks import filter as peers

    algorithm = particle_filter.build_filter(
        init_sample=jax.random.normal,
        propagate_sample=lambda key, x, y: peers.move("linear", x, jax.random.normal(key)),
        log_potential=lambda before, x, y: log_g(x, y),
        n_filter_particles=n,
        resampling_fn=systematic.resampling,
    )

    @jax.jit
    def log_z(key: Any, ys: Any) -> Any:
        first, rest = jax.random.split(key)
        return run(algorithm, ys, algorithm.init_prepare(key=first), key=rest).log_normalizing_constant[-1]

    return lambda ys: float(log_z(jax.random.key(0), ys))


# -- a process a candidate ------------------------------------------------------------------------------------


def work(name: str) -> None:
    """Answer the requests of the parent, a line of JSON each, until there are no more."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    if name in ("torch", "compiled"):
        import torch

        torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer

    def answer(start: float, value: float | None = None) -> None:
        answers.write(json.dumps({"seconds": time.perf_counter() - start, "value": value}) + "\n")
        answers.flush()

    request = sys.stdin.readline()
    while request:
        what, size = json.loads(request)
        start = time.perf_counter()
        if what == "train":
            last = {"request": request, "start": start}

            def turn(last: dict[str, Any] = last) -> bool:
                answer(last["start"])
                again, last["request"] = last["request"], sys.stdin.readline()
                last["start"] = time.perf_counter()
                return last["request"] != again

            trained(name, turn)
            request = last["request"]
            continue
        value = filtered(name, size) if what == "filter" else sampled(name, size)
        answer(start, value)
        request = sys.stdin.readline()


class Worker:
    """A candidate's process, as the parent sees it."""

    def __init__(self, name: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.backends", "worker", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | ONE_THREAD,
        )

    def ask(self, what: str, size: int) -> dict[str, float]:
        """One call: its seconds, and the value it returned."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps([what, size]) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a worker ended with {self.process.wait()}: what it said stands above")
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def there(name: str) -> bool:
    """Whether a candidate can be imported."""
    return name not in ("particles", "cuthbert") or importlib.util.find_spec(name) is not None


def measure(what: str, sizes: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """A row a size: seconds of the first call and of every round for each candidate."""
    workers = {name: Worker(name) for name in NAMES[what] if there(name)}
    rows = []
    try:
        for size in sizes:
            row: dict[str, Any] = {"size": size, "first": {}, "seconds": {name: [] for name in workers}}
            values = {}
            for name, worker in workers.items():
                found = worker.ask(what, size)
                row["first"][name], values[name] = found["seconds"], found["value"]
                worker.ask(what, size)  # once more before it counts: caches, and what was compiled lazily
            for _ in range(rounds):
                for name, worker in workers.items():
                    row["seconds"][name].append(worker.ask(what, size)["seconds"])
            if what == "filter":
                row["log_z"] = values
                if max(values.values()) - min(values.values()) > 300 / size**0.5:
                    raise RuntimeError(f"N = {size}: log normalisers differ: {values}")
            rows.append(row | {"load": os.getloadavg()[0]})
            print(rows[-1], file=sys.stderr, flush=True)
    finally:
        for worker in workers.values():
            worker.close()
    return rows


# -- tables ---------------------------------------------------------------------------------------------------


def table(found: Mapping[str, Any]) -> str:
    """What was measured, as Markdown."""
    return "\n\n".join(_PARTS[what](found[what]) for what in NAMES if what in found)


def _median(row: Mapping[str, Any], name: str) -> float:
    return float(np.median(row["seconds"][name]))


def _against(row: Mapping[str, Any], name: str, base: str) -> str:
    seconds = {key: np.array(values) for key, values in row["seconds"].items()}
    return "1" if name == base else ratio(seconds, base, name)


def _compiling(row: Mapping[str, Any], name: str) -> str:
    return f"{max(0.0, row['first'][name] - _median(row, name)):.1f}"


def _sampling(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "| width | backend | latency, ms | trajectories/s | speed over torch eager | first call beyond it, s |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        for name in row["seconds"]:
            seconds = _median(row, name)
            cells = [f"{row['size']}", _LABELS[name], f"{1e3 * seconds:.1f}", f"{row['size'] / seconds:.1f}"]
            lines.append("| " + " | ".join([*cells, _against(row, name, "torch"), _compiling(row, name)]) + " |")
    return "\n".join(lines)


def _training(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "| batch | backend | optimiser step, s | problems/s, a depth step each | speed over torch eager | "
        "first step beyond it, s |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        for name in row["seconds"]:
            seconds = _median(row, name)
            cells = [f"{row['size']}", _LABELS[name], f"{seconds:.3f}", f"{row['size'] / seconds:.0f}"]
            lines.append("| " + " | ".join([*cells, _against(row, name, "torch"), _compiling(row, name)]) + " |")
    return "\n".join(lines)


def _filtering(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "| N | filter | million particle-steps/s | speed over `particles` | speed over cuthbert | "
        "first call beyond it, s |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        for name in NAMES["filter"]:
            if name not in row["seconds"]:
                lines.append(f"| {row['size']:,} | {_LABELS[name]} | not installed | – | – | – |")
                continue
            speed = row["size"] * 100 / _median(row, name) / 1e6
            peers = [
                _against(row, name, peer) if peer in row["seconds"] else "–" for peer in ("particles", "cuthbert")
            ]
            cells = [f"{row['size']:,}", _LABELS[name], f"{speed:.1f}", *peers, _compiling(row, name)]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


_PARTS = {"sample": _sampling, "train": _training, "filter": _filtering}
_LABELS = {
    "torch": "torch eager",
    "compiled": "torch compiled",
    "jax": "JAX",
    "particles": "`particles`",
    "cuthbert": "cuthbert",
}


def main(parts: Sequence[str], rounds: int) -> None:
    sizes = {"sample": WIDTHS, "train": (BATCH,), "filter": PARTICLES}
    packages = ("torch", "jax", "numpyro", "numba", "particles", "cuthbert")
    about = {"rounds": rounds, "machine": platform.machine(), "cores": os.cpu_count(), "cores used": 1}
    about |= {"python": platform.python_version()}
    about |= {name: importlib.metadata.version(name) for name in packages if there(name)}
    found: dict[str, Any] = {"about": about}
    for what in parts or NAMES:
        found[what] = measure(what, sizes[what], rounds)
    loads = [row["load"] for what in NAMES for row in found.get(what, [])]
    found["about"]["load average"] = f"{min(loads):.1f} to {max(loads):.1f}"
    found["table"] = table(found)
    if not parts:
        write_bytes(RESULT, (json.dumps(found, indent=1) + "\n").encode())
    print(found["table"])


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        work(sys.argv[2])
    else:
        parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
        parser.add_argument("parts", nargs="*", choices=[*NAMES, []], help="sample, train, filter; none: all")
        parser.add_argument("--rounds", type=int, default=7)
        chosen = parser.parse_args()
        main(chosen.parts, chosen.rounds)
