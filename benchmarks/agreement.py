"""Whether PyTorch and JAX compute the same model: largest differences, for every file of shipped weights.

python -m benchmarks.agreement                  writes results/backends/agreement.json, prints the table
python -m benchmarks.agreement --problems 100

Each depth step is compared from the same state and the same noise, so that nothing accumulates. A difference is the
largest of any element, divided by the largest magnitude in what torch computed where that is above 1; the gradient,
of -log p(y | z) + KL with respect to every parameter of chain and guide, counts as one vector. Beside it stands how
far float32 takes torch itself from its float64: two backends cannot be expected to be closer to each other. What
takes a gradient there are the sums within linear layers: a KL divides the difference of two means that are nearly
equal, and tokens that are alike are rounded alike. So float32 is compared twice: as it comes, and with
`exact_sums` on both sides, where no difference is excused.
Whole runs of 16 depth steps are fed the same noise and are compared as they come.
"""

import argparse
import copy
import json
import platform
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import kl_divergence

from probgram import checkpoint, models, tasks
from probgram.checkpoint import write_bytes
from probgram.inference.on_jax.handlers import divergence
from probgram.models import on_jax
from probgram.models.on_jax import weights
from probgram.models.on_jax.chain import named_arrays
from probgram.models.on_jax.reasoner import Flat, Levels
from probgram.state import expand, map_state

REPORT = Path(__file__).parent / "results" / "backends" / "agreement.json"
STEPS, DEPTH, WIDTH = 4, 16, 20
LIMITS = {"float32": 1e-5, "float64": 1e-10}  # of a depth step
ROUNDINGS = 3  # where float32 as it comes is further off than its limit: so many times torch's own rounding
EXACT = "float32, exact sums"
QUANTITIES = ("latent", "readout", "head", "log p(y)", "log p", "log q", "KL", "bound", "gradient")
RUN_LIMIT, ANSWERS_EQUAL = 1e-6, 0.999  # of a whole run: latents in float64, answers in float32


class Pair(NamedTuple):
    """The same chain and guide on both backends; no guide: None."""

    torch: Any
    torch_guide: Any
    jax: Any
    jax_guide: Any


def load(name: str | Path, dtype: str) -> Pair:
    """One file, read by both backends, in "float32" or (inside `jax.enable_x64(True)`) in "float64"."""
    chain, twin = checkpoint.load_chain(name), weights.load_chain(name)
    guide = twin_guide = None
    if any(key.startswith("guide.") for key in checkpoint.read_tensors(checkpoint.find_weights(name), "np")[0]):
        guide = checkpoint.load_guide(name, models.GRAMGuide(chain))
        twin_guide = weights.load_guide(name, on_jax.GRAMGuide(twin))
    kind = getattr(torch, dtype)
    chain = chain.to(kind)
    guide = None if guide is None else guide.to(kind)

    def cast(module: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.astype(dtype) if eqx.is_inexact_array(leaf) else leaf, module)

    return Pair(chain, guide, cast(twin), cast(twin_guide))


def noises(shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def with_exact_sums(pair: Pair) -> Pair:
    """The pair, its linear layers without rounded sums."""
    of = (models.exact_sums, models.exact_sums, on_jax.exact_sums, on_jax.exact_sums)
    return Pair(*(None if module is None else exact(module) for exact, module in zip(of, pair, strict=True)))


# -- one depth step -------------------------------------------------------------------------------------------


def torch_step(pair: Pair, state: Any, x: np.ndarray, y: np.ndarray, noise: np.ndarray) -> dict[str, np.ndarray]:
    """Everything that a depth step computes, under the guide where there is one; noise `[T, N, B, L, D]`."""
    chain, guide = pair.torch, pair.torch_guide
    context = chain.encode(torch.from_numpy(x))
    evidence = None if guide is None else guide.encode(torch.from_numpy(y))
    kl, found = torch.zeros(()), {}
    for t, z in enumerate(noise):
        proposal = chain.propose(state, context, t)
        prior = chain.prior(proposal, t)
        if guide is None:
            eps = draw(prior, torch.from_numpy(z))
        else:
            posterior = guide.posterior(proposal, evidence, t)
            eps = draw(posterior, torch.from_numpy(z))
            kl = kl + kl_divergence(posterior, prior)
            found |= {f"log p {t}": prior.log_prob(eps), f"log q {t}": posterior.log_prob(eps)}
        state = chain.move(proposal, eps)
    law = chain.readout(state)
    log_p_y = law.log_prob(torch.from_numpy(y))
    bound = log_p_y - kl
    loss = -bound.mean()
    heads = {f"head {name}": value for name, value in chain.heads(state).items()}
    found |= {f"latent {i}": leaf for i, leaf in enumerate(state)}
    found |= {"readout": law.logits, "log p(y)": log_p_y, "bound": bound} | heads
    found |= {"KL": kl} if guide is not None else {}
    modules = {"chain": chain} | ({} if guide is None else {"guide": guide})
    parameters = {f"{kind}.{k}": v for kind, module in modules.items() for k, v in module.named_parameters()}
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        found[f"gradient {name}"] = torch.zeros_like(parameter) if gradient is None else gradient
    return {name: value.detach().numpy() for name, value in found.items()}


def jax_step(pair: Pair, state: Any, x: np.ndarray, y: np.ndarray, noise: np.ndarray) -> dict[str, np.ndarray]:
    """The same by the JAX twin."""
    padded = bool((x < 0).any())
    modules = {"chain": pair.jax} | ({} if pair.jax_guide is None else {"guide": pair.jax_guide})
    found, gradients = _jax_step(modules, state, jnp.asarray(x), jnp.asarray(y), jnp.asarray(noise), padded)
    for kind, module in modules.items():
        names = [name for name in named_arrays(module) if name not in getattr(module, "buffers", ())]
        found |= {f"gradient {kind}.{name}": named_arrays(gradients[kind])[name] for name in names}
    return {name: np.asarray(value) for name, value in found.items()}


@eqx.filter_jit
def _jax_step(modules: dict[str, Any], state: Any, x: Any, y: Any, noise: Any, padded: bool) -> Any:
    def loss(modules: dict[str, Any]) -> Any:
        chain, guide = modules["chain"], modules.get("guide")
        context = chain.encode(x, padded)
        evidence = None if guide is None else guide.encode(y)
        h, kl, found = state, 0.0, {}
        for t, z in enumerate(noise):
            proposal = chain.propose(h, context, t)
            prior = chain.prior(proposal, t)
            if guide is None:
                eps = draw(prior, z)
            else:
                posterior = guide.posterior(proposal, evidence, t)
                eps = draw(posterior, z)
                kl = kl + divergence(posterior, prior)
                found |= {f"log p {t}": prior.log_prob(eps), f"log q {t}": posterior.log_prob(eps)}
            h = chain.move(proposal, eps)
        law = chain.readout(h)
        log_p_y = law.log_prob(y)
        bound = log_p_y - kl
        heads = {f"head {name}": value for name, value in chain.heads(h).items()}
        found |= {f"latent {i}": leaf for i, leaf in enumerate(h)}
        found |= {"readout": law.logits, "log p(y)": log_p_y, "bound": bound} | heads
        found |= {"KL": kl} if guide is not None else {}
        return -bound.mean(), found

    gradients, found = eqx.filter_grad(loss, has_aux=True)(modules)
    return found, gradients


def draw(law: Any, noise: Any) -> Any:
    """A draw by the noise it is given: mean + scale · noise, on either backend; without noise, its value."""
    law = getattr(law, "base_dist", law)
    return law.loc + law.scale * noise if hasattr(law, "scale") else law.v


class Compared(NamedTuple):
    """One depth step: what torch computes, what JAX does, and torch in float64."""

    torch: dict[str, np.ndarray]
    jax: dict[str, np.ndarray]
    exact: dict[str, np.ndarray]


def steps(
    pair: Pair, x: np.ndarray, y: np.ndarray, dtype: str, width: int = 2, depth: int = STEPS
) -> Iterator[Compared]:
    """What is computed at each depth step, always from the state that torch had reached."""
    exact = Pair(*(copy.deepcopy(module).double() if module else None for module in pair[:2]), None, None)
    context = pair.torch.encode(torch.from_numpy(x))
    state = expand(pair.torch.initial(context), (width, len(x)))
    twin = {1: Flat, 2: Levels}[len(state)]
    for s in range(depth):
        noise = noises((pair.torch.transitions, *state[0].shape), dtype, seed=s)
        theirs = torch_step(pair, state, x, y, noise)
        ours = jax_step(pair, twin(*(leaf.detach().numpy() for leaf in state)), x, y, noise)
        yield Compared(theirs, ours, torch_step(exact, map_state(Tensor.double, state), x, y, noise.astype(float)))
        state = type(state)(*(torch.from_numpy(theirs[f"latent {i}"]) for i in range(len(state))))


def difference(theirs: dict[str, np.ndarray], ours: dict[str, np.ndarray]) -> dict[str, float]:
    """How far two records are apart, for each kind of quantity; see this file's first lines."""
    if theirs.keys() != ours.keys():
        raise ValueError(f"only one backend has {sorted(theirs.keys() ^ ours.keys())}")
    apart, magnitude = dict.fromkeys(QUANTITIES, -1.0), dict.fromkeys(QUANTITIES, 1.0)
    for name, value in theirs.items():
        if value.shape != ours[name].shape:
            raise ValueError(f"{name} is {value.shape} in one backend, {ours[name].shape} in the other")
        kind = next(kind for kind in QUANTITIES if name.startswith(kind))
        apart[kind] = max(apart[kind], float(np.abs(value - ours[name]).max()))
        magnitude[kind] = max(magnitude[kind], float(np.abs(value).max()))
    return {kind: apart[kind] / magnitude[kind] for kind in QUANTITIES if apart[kind] >= 0}


def largest(compared: Iterable[Compared]) -> dict[str, dict[str, float]]:
    """The largest `differences` between the backends over depth steps, and torch's own `rounding`."""
    differences: dict[str, float] = {}
    rounding: dict[str, float] = {}
    for step in compared:
        for kind, value in difference(step.torch, step.jax).items():
            differences[kind] = max(differences.get(kind, 0.0), value)
        for kind, value in difference(step.exact, step.torch).items():
            rounding[kind] = max(rounding.get(kind, 0.0), value)
    return {"differences": differences, "rounding": rounding}


def too_far(found: dict[str, dict[str, float]], dtype: str) -> list[str]:
    """The quantities in which the backends are further apart than they may be."""
    differences, rounding = found["differences"], found["rounding"]
    limit, excuse = LIMITS[dtype.split(",")[0]], 0 if dtype == EXACT else ROUNDINGS
    return [kind for kind, d in differences.items() if d > max(limit, excuse * rounding[kind])]


def compared(name: str | Path, x: np.ndarray, y: np.ndarray, dtype: str, depth: int = STEPS) -> Any:
    """`largest` of a file in "float32", "float64" or `EXACT`."""
    kind = dtype.split(",")[0]
    with jax.enable_x64(kind == "float64"):
        pair = load(name, kind)
        return largest(steps(with_exact_sums(pair) if dtype == EXACT else pair, x, y, kind, depth=depth))


# -- whole runs -----------------------------------------------------------------------------------------------


class fed(Messenger):  # noqa: N801 - handlers are lower case
    """Feed torch's sites with noise `[T, N, B, L, D]`."""

    def __init__(self, noise: np.ndarray) -> None:
        super().__init__()
        self.noise = iter(noise)

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if "proposal" in msg["infer"]:
            msg["value"] = draw(msg["fn"], torch.from_numpy(next(self.noise)))


class fed_on_jax(numpyro.primitives.Messenger):  # noqa: N801
    """Feed JAX's sites likewise."""

    def __init__(self, noise: Any) -> None:
        super().__init__()
        self.noise = iter(noise)

    def process_message(self, msg: dict[str, Any]) -> None:
        """Draw."""
        if msg["type"] == "sample" and "proposal" in msg["infer"]:
            msg["value"] = draw(msg["fn"], next(self.noise))


@torch.no_grad()
def torch_run(chain: Any, x: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """h and the answers after each depth step, `[S, N, B, L, D]` and `[S, N, B, L]`; noise `[S, T, N, B, L, D]`."""
    context = chain.encode(torch.from_numpy(x))
    state = expand(chain.initial(context), noise.shape[2:4])
    latents, answers = [], []
    with pyro.plate("particles", noise.shape[2], dim=-2), pyro.plate("problems", len(x), dim=-1):
        for t, z in enumerate(noise):
            with fed(z):
                state = chain.step(state, t, context)
            latents.append(state.h.numpy())
            answers.append(chain.readout(state).mode.numpy())
    return np.stack(latents), np.stack(answers)


def jax_run(chain: Any, x: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same by the JAX twin."""
    latents, answers = _jax_run(chain, jnp.asarray(x), jnp.asarray(noise), bool((x < 0).any()))
    return np.asarray(latents), np.asarray(answers)


@eqx.filter_jit
def _jax_run(chain: Any, x: Any, noise: Any, padded: bool) -> Any:
    context = chain.encode(x, padded)
    shape = noise.shape[2:4]
    state = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (*shape, *leaf.shape[1:])), chain.initial(context))

    def depth_step(state: Any, row: Any) -> Any:
        t, z = row
        with (
            fed_on_jax(z),
            numpyro.plate("particles", shape[0], dim=-2),
            numpyro.plate("problems", shape[1], dim=-1),
        ):
            state = chain.step(state, t, context)
        return state, (state.h, chain.readout(state).mode)

    return jax.lax.scan(depth_step, state, (jnp.arange(len(noise)), noise))[1]


def runs(pair: Pair, x: np.ndarray, dtype: str, width: int, depth: int = DEPTH) -> tuple[float, int, int]:
    """Whole runs: the largest difference of any element of h, and how many of how many answers are equal."""
    context = pair.torch.encode(torch.from_numpy(x))
    noise = noises((depth, pair.torch.transitions, width, *context.embedded.shape), dtype, seed=depth)
    (latents, answers), (ours, our_answers) = torch_run(pair.torch, x, noise), jax_run(pair.jax, x, noise)
    equal = (answers == our_answers).all(-1)
    return float(np.abs(latents - ours).max()), int(equal.sum()), equal.size


# -- all files ------------------------------------------------------------------------------------------------


def shipped() -> list[str]:
    """Names of all weight files that come with the package."""
    return sorted(path.stem for path in checkpoint.pretrained_folder().glob("*.safetensors"))


def problems_of(name: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Held-out problems of the task a file was trained on, with an answer to each."""
    task = tasks.from_name(checkpoint.describe(name)["about"]["task"])
    x, y = (np.asarray(part) for part in task.examples("test"))
    rows = np.random.default_rng(0).permutation(len(x))[:count]
    return x[rows], y[rows]


def measured(name: str, problems: int) -> dict[str, Any]:
    """All differences of one file."""
    x, y = problems_of(name, problems)
    found: dict[str, Any] = {"model": checkpoint.describe(name)["model"], "problems": len(x)}
    for dtype in (*LIMITS, EXACT):
        found[dtype] = compared(name, x[:8], y[:8], dtype)
    for dtype in LIMITS:
        with jax.enable_x64(dtype == "float64"):
            latent, equal, answers = runs(load(name, dtype), x, dtype, WIDTH)
        found[dtype]["run"] = {"h": latent, "answers equal": equal, "answers": answers}
    return found


def read() -> dict[str, Any]:
    """What `main` has written."""
    return json.loads(REPORT.read_text(encoding="utf-8"))


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    rows = [
        "| weights | | " + " | ".join(QUANTITIES) + " | whole run: h | answers equal |",
        "|" + "---|" * (len(QUANTITIES) + 4),
    ]
    for name, found in report["files"].items():
        for dtype in LIMITS:
            run = found[dtype]["run"]
            cells = [*_cells(found[dtype]["differences"]), f"{run['h']:.0e}"]
            rows.append(
                f"| {name} | {dtype} | {' | '.join(cells)} | {run['answers equal']:,} of {run['answers']:,} |"
            )
        for label, cells in (
            (EXACT, found[EXACT]["differences"]),
            ("*float32 itself*", found["float32"]["rounding"]),
        ):
            rows.append(f"| | {label} | {' | '.join(_cells(cells))} | | |")
    return "\n".join(rows)


def _cells(found: dict[str, float]) -> list[str]:
    return [f"{found[kind]:.1e}" if kind in found else "–" for kind in QUANTITIES]


def main(problems: int, names: list[str]) -> None:
    torch.set_num_threads(1)
    about = {name: version(name) for name in ("torch", "jax", "numpyro")} | {"processor": platform.machine()}
    before = read() if names and REPORT.exists() else {"about": about, "files": {}}
    if before["about"] != about:
        raise SystemExit(f"{REPORT.name} is of {before['about']}, this is {about}: measure all files")
    files = before["files"] | {name: measured(name, problems) for name in names or shipped()}
    report: dict[str, Any] = {"about": about, "files": dict(sorted(files.items()))}
    report["table"] = table(report)
    write_bytes(REPORT, (json.dumps(report, indent=1) + "\n").encode())
    print(report["table"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="files measured, beside the others' figures; all")
    parser.add_argument("--problems", type=int, default=25)
    chosen = parser.parse_args()
    main(chosen.problems, chosen.names)
