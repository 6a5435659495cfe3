"""Particle filters: ours, `particles`, Pyro's SMCFilter, a bare torch loop: ratios, candidates taking turns.

python -m benchmarks.filter              the peers; takes minutes
python -m benchmarks.filter chain        the filter's own work beside the shipped queens network
python -m benchmarks.filter memory       peak memory over depth

Bootstrap filters, systematic resampling at every step (and one table at ESS 0.5), T = 100, one thread.
Without `particles` (`pip install --no-deps particles`, beside numba and scikit-learn) its column says so.
"""

import math
import os
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import cache, partial

os.environ |= {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}

import numpy as np
import pyro
import torch
from pyro import distributions as dist
from pyro.infer import SMCFilter
from torch import Tensor

from probgram import tasks
from probgram.inference import sample, smc
from probgram.inference.potentials import value
from probgram.inference.resampling import adaptive, systematic
from probgram.inference.timing import interleaved, ratio

try:
    import particles
    from particles import distributions as their_dist
    from particles import state_space_models as ssm
except ImportError:
    particles = None

T = 100
RHO, SIGMA_X, SIGMA_Y = 0.9, 1.0, 0.2  # linear-Gaussian
MU, PHI, TAU = -1.0, 0.97, 0.18  # stochastic volatility: h' = MU + PHI (h - MU) + TAU e, y ~ N(0, exp(h))
LOG_2PI = math.log(2 * math.pi)


def series(model: str, problems: int) -> Tensor:
    """Series drawn from the model, `[B, T]`."""
    g = torch.Generator().manual_seed(0)
    x, rows = torch.randn(problems, generator=g), []
    for _ in range(T):
        e, v = torch.randn(2, problems, generator=g)
        if model == "linear":
            x = RHO * x + SIGMA_X * e
            rows.append(x + SIGMA_Y * v)
        else:
            x = PHI * x + TAU * e
            rows.append(((MU + x) / 2).exp() * v)
    return torch.stack(rows, 1)


def move(model: str, x: Tensor, noise: Tensor) -> Tensor:
    return RHO * x + SIGMA_X * noise if model == "linear" else PHI * x + TAU * noise


def log_g(model: str, x: Tensor, y: Tensor) -> Tensor:
    if model == "linear":
        return -0.5 * ((y - x) / SIGMA_Y).square() - (math.log(SIGMA_Y) + 0.5 * LOG_2PI)
    h = MU + x
    return -0.5 * (y.square() * (-h).exp() + h + LOG_2PI)


@cache
def plain(model: str) -> smc.PlainModel:
    def step(x: Tensor, t: int | Tensor, noise: Tensor, ys: Tensor) -> tuple[Tensor, Tensor]:
        x = move(model, x, noise)
        # Compiled, t is a tensor, and ys[:, t] would leave the compiled part to read it.
        y = ys[:, t] if isinstance(t, int) else ys.index_select(1, t.view(1))[:, 0]
        return x, log_g(model, x, y)

    return smc.PlainModel(lambda noise, ys: noise, step)


class PyroModel:
    """The same as a Pyro step, for our filter."""

    def __init__(self, model: str) -> None:
        self.model = model

    def init(self, ys: Tensor) -> Tensor:
        return pyro.sample("x", dist.Normal(torch.zeros(len(ys)), 1.0))

    def step(self, x: Tensor, t: int, ys: Tensor) -> Tensor:
        zero = torch.zeros(())
        scale = SIGMA_X if self.model == "linear" else TAU
        x = pyro.sample(f"x_{t}", dist.Normal(move(self.model, x, zero), scale))
        fn = dist.Normal(x, SIGMA_Y) if self.model == "linear" else dist.Normal(0.0, ((MU + x) / 2).exp())
        pyro.sample(f"y_{t}", fn, obs=ys[:, t])
        return x


class TheirPyro:
    """The same for `pyro.infer.SMCFilter`; as a guide it leaves out the observation."""

    def __init__(self, model: str, observes: bool) -> None:
        self.model, self.observes = model, observes

    def init(self, state: dict) -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        if self.observes:
            state["x"] = x

    def step(self, state: dict, y: Tensor) -> None:
        scale = SIGMA_X if self.model == "linear" else TAU
        x = pyro.sample("x", dist.Normal(move(self.model, state["x"], torch.zeros(())), scale))
        if self.observes:
            state["x"] = x
            fn = dist.Normal(x, SIGMA_Y) if self.model == "linear" else dist.Normal(0.0, ((MU + x) / 2).exp())
            pyro.sample("y", fn, obs=y)


def run_plain(model: str, ys: Tensor, n: int, ess: float = 1.0, compile: bool = False, depth: int = T) -> Tensor:
    run = smc.run(
        plain(model), ys, width=n, depth=depth, problems=len(ys), ess_threshold=ess, compile=compile, keep="summary"
    )
    return run.log_normalizer[-1]


def run_pyro(model: str, ys: Tensor, n: int, ess: float = 1.0) -> Tensor:
    run = smc.run(PyroModel(model), ys, width=n, depth=T, problems=len(ys), ess_threshold=ess, keep="summary")
    return run.log_normalizer[-1]


def run_smcfilter(model: str, ys: Tensor, n: int, ess: float = 1.0) -> None:
    for y in ys:
        peer = SMCFilter(TheirPyro(model, True), TheirPyro(model, False), n, 0, ess_threshold=ess)
        peer.init()
        for t in range(T):
            peer.step(y[t])


@torch.no_grad()
def run_bare(model: str, ys: Tensor, n: int, ess: float = 1.0) -> Tensor:
    """What one would write by hand: softmax, cumulative sum, searchsorted; one series after another."""
    totals = []
    for y in ys:
        x, total, w = torch.randn(n), 0.0, None
        for t in range(T):
            if w is not None:
                cumulative = w.double().cumsum(0)
                points = (torch.arange(n) + torch.rand((), dtype=torch.float64)) / n * cumulative[-1]
                x = x[torch.searchsorted(cumulative, points).clamp_(max=n - 1)]
            x = move(model, x, torch.randn(n))
            log_w = log_g(model, x, y[t])
            total = total + log_w.logsumexp(0) - math.log(n)
            w = log_w.softmax(0)
        totals.append(total)
    return torch.stack(totals)


if particles is not None:

    class TheirLinear(ssm.StateSpaceModel):
        def PX0(self):
            return their_dist.Normal(scale=math.sqrt(RHO**2 + SIGMA_X**2))

        def PX(self, t, xp):
            return their_dist.Normal(loc=RHO * xp, scale=SIGMA_X)

        def PY(self, t, xp, x):
            return their_dist.Normal(loc=x, scale=SIGMA_Y)

    class TheirVolatility(TheirLinear):
        def PX0(self):
            return their_dist.Normal(scale=math.sqrt(PHI**2 + TAU**2))

        def PX(self, t, xp):
            return their_dist.Normal(loc=PHI * xp, scale=TAU)

        def PY(self, t, xp, x):
            return their_dist.Normal(loc=0.0, scale=np.exp(0.5 * (MU + x)))


def run_particles(model: str, ys: Tensor, n: int, ess: float = 1.0) -> list[float]:
    totals = []
    for y in ys.numpy().astype(float):
        kind = TheirLinear if model == "linear" else TheirVolatility
        peer = particles.SMC(ssm.Bootstrap(ssm=kind(), data=y), N=n, resampling="systematic", ESSrmin=ess)
        peer.run()
        totals.append(peer.logLt)
    return totals


# -- tables ---------------------------------------------------------------------------------------------------


ROWS = [("linear", 1.0, 1, n) for n in (1_000, 10_000, 100_000, 1_000_000)]
ROWS += [("volatility", 1.0, 1, n) for n in (10_000, 100_000)]
ROWS += [("linear", 0.5, 1, 100_000), ("linear", 1.0, 64, 1_000), ("volatility", 1.0, 64, 1_000)]


def peers(rows: Sequence[tuple[str, float, int, int]] = ROWS) -> None:
    names = ["particles", "plain", "compiled", "pyro step", "bare loop", "SMCFilter"]
    peer = names[0] if particles else names[4]
    print(f"Speed in million particle-steps a second; then the time of `{peer}` over the candidate's, median")
    print("[quartiles] of rounds in which all take turns.\n")
    print("| model | ESS | B | N | rounds | " + " | ".join(names) + " |")
    print("|---|" + "---|" * (4 + len(names)))
    for model, ess, b, n in rows:
        ys = series(model, b)
        runs: dict[str, Callable[[], object]] = {
            "plain": partial(run_plain, model, ys, n, ess),
            "compiled": partial(run_plain, model, ys, n, ess, True),
            "pyro step": partial(run_pyro, model, ys, n, ess),
        }
        if ess == 1.0:
            runs["bare loop"] = partial(run_bare, model, ys, n)
        if particles is not None:
            runs["particles"] = partial(run_particles, model, ys, n, ess)
        if n * b <= 10_000:  # from 100,000 on a rounding error makes it fail, now and then
            runs["SMCFilter"] = partial(run_smcfilter, model, ys, n, ess)
        start = time.perf_counter()
        try:
            agree(runs, model, b, n)
            rounds = max(3, min(11, int(15 / (time.perf_counter() - start))))
            seconds = interleaved(runs, rounds)
        except IndexError:  # Pyro's: its float32 cumulative sum ends above 1, now and then
            runs.pop("SMCFilter")
            rounds = 5
            seconds = interleaved(runs, rounds)
        base = "particles" if "particles" in runs else "bare loop" if "bare loop" in runs else "plain"
        cells = []
        for name in names:
            if name == "particles" and particles is None:
                cells.append("not installed")
            elif name not in seconds:
                cells.append("IndexError" if name == "SMCFilter" and n * b <= 10_000 else "—")
            else:
                speed = n * b * T / np.median(seconds[name]) / 1e6
                cells.append(f"{speed:.1f}" if name == base else f"{speed:.1f}; {ratio(seconds, base, name)}")
        print(f"| {model} | {ess} | {b} | {n:,} | {rounds} | " + " | ".join(cells) + " |", flush=True)


def agree(runs: dict[str, Callable[[], object]], model: str, b: int, n: int) -> None:
    """All candidates give one normaliser, roughly: a wrong model would show."""
    found = {name: np.mean(np.asarray(run(), dtype=float)) for name, run in runs.items() if name != "SMCFilter"}
    spread = max(found.values()) - min(found.values())
    if spread > 300 / math.sqrt(n):
        raise RuntimeError(f"{model}, B = {b}, N = {n}: log normalisers differ: {found}")


@torch.no_grad()
def chain() -> None:
    """The filter's own work beside the network's, at equal numbers of network evaluations."""
    from probgram.models import GRAM

    gram, depth = GRAM.from_pretrained("queens8").eval(), 3
    x = torch.as_tensor(tasks.Queens(8).examples("test")[0])
    rule = adaptive(systematic, 1.0)
    print("| N·B | rounds | filter with value head / filter without | filter without / sample |")
    print("|---|---|---|---|")
    for n, b, rounds in ((16, 64, 7),):
        at = {"width": n, "depth": depth, "keep": "paths"}
        runs = {
            "filter": partial(smc.run, gram, x[:b], **at, potential=value, resample=rule),
            "without": partial(smc.run, gram, x[:b], **at),
            "sample": partial(sample, gram, x[:b], **at),
        }
        seconds = interleaved(runs, rounds)
        cells = ratio(seconds, "filter", "without"), ratio(seconds, "without", "sample")
        print(f"| {n * b} | {rounds} | " + " | ".join(cells) + " |", flush=True)
    algorithm = smc.build(gram, x[:64], width=16, depth=depth, potential=value, resample=rule)
    state, _ = smc.step(algorithm, smc.init(algorithm))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        smc.step(algorithm, state)
    print("\nOne filter step at N·B = 1,024, operators by their own time:\n")
    print("| operator | share | ms | calls |")
    print("|---|---|---|---|")
    events = sorted(seen.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    for e in events[:12]:
        share = e.self_cpu_time_total / total
        print(f"| {e.key} | {share:.1%} | {e.self_cpu_time_total / 1e3:.2f} | {e.count} |")


def memory() -> None:
    """Peak resident memory of a fresh process, N = 1e5, MiB: glibc's heap grows in pieces, so also without it."""
    print("| T | peak, MiB | with MALLOC_MMAP_THRESHOLD_=100000 |")
    print("|---|---|---|")
    for depth in (100, 400):
        command = [sys.executable, "-m", "benchmarks.filter", "peak", str(depth)]
        cells = []
        for extra in ({}, {"MALLOC_MMAP_THRESHOLD_": "100000"}):
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | extra)
            cells.append(done.stdout.strip())
        print(f"| {depth} | " + " | ".join(cells) + " |", flush=True)


def peak(depth: int) -> None:
    run_plain("linear", series("linear", 1).repeat(1, 4), 100_000, depth=depth)
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f}")


def main() -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    match sys.argv[1:]:
        case []:
            peers()
        case ["chain"]:
            chain()
        case ["memory"]:
            memory()
        case ["peak", depth]:
            peak(int(depth))
        case other:
            raise SystemExit(f"unknown: {' '.join(other)}; see the first lines of {__file__}")


if __name__ == "__main__":
    main()
