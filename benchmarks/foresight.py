"""Do label-free diagnostics say in advance on which problems a particle filter will help? Eight queens.

For every problem three diagnostics (`inference/foresight.py`) are taken from a pilot of independent draws, and then
what the filter under the energy potential really gains over independent draws of other seeds. Printed is Spearman's
rank correlation over problems, ± its bootstrap standard error, for the shipped network, for the same in noise that
makes it fail (`Perturbed`), and for the early states of a run where there are some. The last row of a table says
how far one half of the seeds foretells what the other half gained, which no diagnostic can be expected to pass.

    python -m benchmarks.foresight                              about 4 CPU minutes
    python -m benchmarks.foresight --folder runs/queens8        the early states that make train-queens8 keeps, too
"""

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks.filter_vs_independent import DEPTH, TASK, problems, with_heads
from probgram import Chain, metrics
from probgram.inference import sample, smc
from probgram.inference.diagnostics import alignment, answer_entropy, cloud_entropy, stability
from probgram.inference.potentials import energy
from probgram.models import GRAM, Perturbed
from probgram.trajectories import Trajectories

WIDTH, EARLY, ALPHA, PILOT = 20, 3, 0.5, 1_000  # EARLY: the depth step at which is asked; PILOT: its seed
BOOTSTRAP = 1_000


class Measured(NamedTuple):
    """Figures of every problem of one network."""

    foretold: dict[str, NDArray[np.float64]]  # [B] each
    gained: dict[str, NDArray[np.float64]]  # [seeds, B] each
    valid: float  # one independent draw


def foretell(chain: Chain, x: Tensor) -> dict[str, NDArray[np.float64]]:
    """The diagnostics of every problem, from a pilot of its own."""
    pilot = sample(chain, x, WIDTH, DEPTH, PILOT)
    growth = stability(chain, x, 4, DEPTH, PILOT)
    found = {
        "stability": growth[1:].mean((0, 1)),
        "alignment, value head": alignment(pilot)[EARLY - 1],
        "alignment, halt head": alignment(pilot, "halt")[EARLY - 1],
        "cloud entropy": cloud_entropy(pilot)[EARLY - 1].mean(-1),
        "answer entropy at the end": answer_entropy(pilot)[-1],
    }
    return {name: values.double().numpy() for name, values in found.items()}


def worth(
    run: Trajectories, weights: Tensor, solutions: metrics.Solutions
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Probability that one draw is right, and the share of the right answers that were found, `[B]` each."""
    probabilities = metrics.solution_weights(solutions, run.answers[-1].numpy(), weights.numpy())
    return probabilities.sum(1), (probabilities > 0).sum(1) / solutions.counts


def gain(
    chain: Chain, x: Tensor, solutions: metrics.Solutions, seeds: int
) -> tuple[dict[str, NDArray[np.float64]], float]:
    """What the filter gains on every problem, `[seeds, B]`; and how often one independent draw is right."""
    rows, valid = [], []
    for seed in range(seeds):
        plain = sample(chain, x, WIDTH, DEPTH, seed)
        filtered = smc.run(chain, x, width=WIDTH, depth=DEPTH, seed=seed, potential=energy(TASK, ALPHA))
        end = (-TASK.violations(plain.x, plain.answers[-1]) / ALPHA).double().softmax(0)
        right, found = worth(plain, plain.weights[-1], solutions)
        weighed, _ = worth(plain, end, solutions)
        by_filter, found_by_filter = worth(filtered, filtered.weights[-1], solutions)
        rows.append((by_filter - right, by_filter - weighed, found_by_filter - found))
        valid.append(right.mean())
    names = "draw, over independent", "draw, over weighed at the end", "answers found, over independent"
    return dict(zip(names, np.swapaxes(rows, 0, 1), strict=True)), float(np.mean(valid))


def correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> str:
    """Spearman's correlation ± its bootstrap standard error over problems, and of how many."""
    kept = np.isfinite(a) & np.isfinite(b)
    a, b = a[kept], b[kept]
    if len(a) < 10 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return f"– ({len(a)})"
    generator, drawn = np.random.default_rng(0), []
    for _ in range(BOOTSTRAP):
        rows = generator.integers(len(a), size=len(a))
        if np.ptp(a[rows]) and np.ptp(b[rows]):
            drawn.append(spearmanr(a[rows], b[rows]).statistic)
    return f"{spearmanr(a, b).statistic:+.2f} ± {np.std(drawn, ddof=1):.2f} ({len(a)})"


def table(name: str, measured: Measured) -> str:
    """One network as Markdown."""
    gains = " | ".join(f"{label}: {values.mean():+.3f}" for label, values in measured.gained.items())
    lines = [f"**{name}**: one independent draw is right with probability {measured.valid:.3f}.", ""]
    lines += [f"| diagnostic | mean [quartiles] | {gains} |", "|---" * (2 + len(measured.gained)) + "|"]
    for label, values in measured.foretold.items():
        finite = values[np.isfinite(values)]
        low, high = np.quantile(finite, (0.25, 0.75)) if len(finite) else (np.nan, np.nan)
        cells = [label, f"{finite.mean():.2f} [{low:.2f}, {high:.2f}]" if len(finite) else "–"]
        cells += [correlation(values, gained.mean(0)) for gained in measured.gained.values()]
        lines.append("| " + " | ".join(cells) + " |")
    halves = [correlation(gained[::2].mean(0), gained[1::2].mean(0)) for gained in measured.gained.values()]
    lines.append("| *the gain itself, one half of the seeds by the other* | | " + " | ".join(halves) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/queens8"), help="a run with its early states")
    parser.add_argument("--problems", type=int, default=48)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--noise", default="0,0.8,1.5", help="standard deviations; 0: the shipped network as it is")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    shipped = GRAM.from_pretrained("queens8")
    networks: dict[str, Chain] = {}
    for sigma in map(float, chosen.noise.split(",")):
        networks["shipped" if sigma == 0 else f"shipped, noise {sigma:g}"] = (
            Perturbed(shipped, sigma) if sigma else shipped
        )
    early = sorted(path for path in chosen.folder.glob("step-*.safetensors") if "judged" not in path.stem)
    networks |= {path.stem: with_heads(path) for path in early}
    boards, solutions = problems(chosen.problems)
    x = torch.as_tensor(boards)
    for name, chain in networks.items():
        started = time.process_time()
        gained, valid = gain(chain, x, solutions, 2 if name == "shipped" else chosen.seeds)
        print(table(name, Measured(foretell(chain, x), gained, valid)))
        print(f"{time.process_time() - started:.0f} CPU seconds\n", flush=True)


if __name__ == "__main__":
    main()
