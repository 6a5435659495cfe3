"""What depth steps cost over 1, 2, 4, 8 forced host devices: seconds, and bytes that each device receives.

python -m benchmarks.scaling

Bytes are read from the compiled program: the sizes of its collective operations, an all-gather or all-to-all times
(P - 1) / P, an all-reduce twice that (ring). Operations in the loop of `crossing.gather_over` are counted once a
turn, and how many turns there are follows from the ancestors. Devices are threads of one machine: seconds show that
the program runs, and its overhead, not a network.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from probgram.checkpoint import write_bytes

DEVICES = (1, 2, 4, 8)
RESULT = Path(__file__).parent / "results" / "scaling" / "forced_devices.json"
PARTICLES, DIMENSIONS, DEPTH, ROUNDS = 65_536, 16, 10, 3
_SIZES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "s32": 4, "u32": 4, "f32": 4, "f64": 8}
_COLLECTIVE = re.compile(
    r"= (?P<result>.*?) (?P<kind>all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)(?:-start)?\("
)


class Walk:
    """A random walk in 16 dimensions, of which the first is seen."""

    def init(self, y: Any) -> Any:
        """Start at 0."""
        import jax.numpy as jnp

        return jnp.zeros((1, DIMENSIONS))

    def step(self, h: Any, t: Any, y: Any) -> Any:
        """Move, and be seen."""
        import numpyro
        import numpyro.distributions as dist

        h = numpyro.sample("h", dist.Normal(h, 0.5).to_event(1))
        numpyro.sample("y", dist.Normal(h[..., 0], 0.5), obs=y[..., t])
        return h


WALK = Walk()  # one object: another would be compiled anew


def received(program: str, devices: int) -> dict[str, float]:
    """Bytes that a device receives in one pass through a compiled program, by kind of operation."""
    found: dict[str, float] = {}
    for line in program.splitlines():
        match = _COLLECTIVE.search(line)
        if match is None:
            continue
        size = sum(
            _SIZES[kind] * int(np.prod([int(n) for n in shape.split(",") if n]))
            for kind, shape in re.findall(r"(\w+)\[([\d,]*)\]", match["result"])
        )
        share = (devices - 1) / devices
        times = {"collective-permute": 1.0, "all-reduce": 2 * share}.get(match["kind"], share)
        found[match["kind"]] = found.get(match["kind"], 0.0) + times * size
    return found


def seconds(run: Callable[[], Any], steps: int) -> float:
    """The least time of a depth step, compilation apart."""
    run()
    times = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return min(times) / steps


def turns(ancestors: np.ndarray, devices: int) -> float:
    """How often blocks pass on, mean over the depth steps that resampled: the farthest way to an ancestor."""
    block = len(ancestors[0]) // devices
    away = abs(ancestors // block - np.arange(devices * block)[:, None] // block)
    ways = np.minimum(away, devices - away).reshape(len(ancestors), -1).max(1)
    moved = (ancestors != np.arange(devices * block)[:, None]).any((1, 2))
    return float(ways[moved].mean()) if moved.any() else 0.0


def filtering(devices: int, islands: int) -> dict[str, Any]:
    """One filter over its particles (islands 1), or a ring of islands over the devices."""
    import equinox as eqx
    import jax

    from probgram.inference.on_jax import smc
    from probgram.inference.on_jax.devices import device_mesh
    from probgram.inference.on_jax.islands import ring

    y = np.random.default_rng(0).normal(size=(1, DEPTH)).astype(np.float32)
    chosen: dict[str, Any] = {"ess_threshold": 1.0, "problems": 1, "width": PARTICLES // islands, "depth": DEPTH}
    if islands > 1:
        chosen |= {"islands": islands, "exchange": ring(every=1), "mesh": device_mesh(1, devices)}
    else:
        chosen |= {"mesh": device_mesh(devices)}
    algorithm = smc.build(WALK, y, **chosen)
    state = eqx.filter_jit(smc.init)(algorithm)
    arrays, rest = eqx.partition((algorithm, state), eqx.is_array)

    def step(arrays: Any) -> Any:
        algorithm, state = eqx.combine(arrays, rest)
        state, info = smc.step(algorithm, state)
        return eqx.filter((state, info.ancestors), eqx.is_array)

    found = received(jax.jit(step).lower(arrays).compile().as_text(), devices)
    run = smc.run(WALK, y, keep="paths", **chosen)
    report = {"seconds": seconds(lambda: smc.run(WALK, y, **chosen), DEPTH), "bytes": found}
    if islands == 1:
        report["turns"] = turns(run.ancestors[1:], devices)
    return report | {"log_normalizer": float(run.log_normalizer[-1, 0])}


def distances() -> dict[str, Any]:
    """How far ancestors lie, in one filter of a million particles: turns over so many devices."""
    from probgram.inference.on_jax import smc

    y = np.random.default_rng(0).normal(size=(1, DEPTH)).astype(np.float32)
    run = smc.run(WALK, y, keep="paths", ess_threshold=1.0, problems=1, width=2**20, depth=DEPTH)
    away = abs(run.ancestors[1:, :, 0] - np.arange(2**20))
    return {"farthest": int(away.max()), "turns": {p: turns(run.ancestors[1:], p) for p in (2, 8, 64, 256, 1024)}}


def sampling(devices: int) -> dict[str, Any]:
    """Independent trajectories of the shipped 8-queens reasoner."""
    import jax
    import jax.numpy as jnp

    from probgram import tasks
    from probgram.inference.on_jax import sampling as sampler
    from probgram.inference.on_jax.devices import device_mesh
    from probgram.models.on_jax import GRAM

    chain, mesh = GRAM.from_pretrained("queens8"), device_mesh(devices)
    x = tasks.Queens(8).examples("test")[0][:2]
    context, key = chain.encode(jnp.asarray(x)), jax.random.key(0)
    state = sampler._begin(chain, context, key, jnp.asarray(0), 32, mesh)
    arguments = (chain, context, state, None, key, jnp.asarray(0), jnp.asarray(0), 4, "mode", None, mesh)
    program = sampler._advance.lower(*arguments).compile().compiled.as_text()
    run = sampler.sample(chain, x, width=32, depth=4, mesh=mesh)
    return {
        "seconds": seconds(lambda: sampler.sample(chain, x, width=32, depth=4, mesh=mesh), 4),
        "bytes": received(program, devices),
        "answers": int(np.int64(run.answers).sum()),
    }


def measured(devices: int) -> dict[str, Any]:
    """All runs over so many forced devices, in a process of its own."""
    flags = f"--xla_force_host_platform_device_count={devices} --xla_cpu_multi_thread_eigen=false"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.scaling", str(devices)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure, print, write the result."""
    import jax

    about = {"jax": jax.__version__, "cores": os.cpu_count(), "particles": PARTICLES, "dimensions": DIMENSIONS}
    found: dict[str, Any] = {"about": about | {"rounds": ROUNDS}, "a million particles": distances()}
    for devices in DEVICES:
        found[str(devices)] = measured(devices)
        print(devices, json.dumps(found[str(devices)]), flush=True)
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(RESULT, (json.dumps(found, indent=1) + "\n").encode())


if __name__ == "__main__":
    if len(sys.argv) > 1:
        n = int(sys.argv[1])
        runs = {"filter": filtering(n, 1), "islands": filtering(n, 8), "sampling": sampling(n)}
        print(json.dumps(runs))
    else:
        main()
