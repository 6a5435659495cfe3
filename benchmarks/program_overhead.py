"""What the Pyro program costs over a bare loop of the same network: ratios in one run.

python -m benchmarks.program_overhead
"""

from functools import partial

import pyro
import torch
from torch import Tensor

from probgram import tasks
from probgram.inference.handlers import seeded
from probgram.inference.timing import interleaved, ratio
from probgram.models import GRAM

DEPTH = 1


def bare(chain: GRAM, x: Tensor, width: int) -> None:
    """The recursion by hand: no sites, no plates."""
    context = chain.encode(x)
    state = chain.initial(context)
    for t in range(DEPTH * chain.transitions):
        proposal = chain.propose(state, context, t)
        prior = chain.prior(proposal, t).base_dist
        eps = prior.loc + prior.scale * torch.randn(width, len(x), *prior.loc.shape[-2:])
        state = chain.move(proposal, eps)


def program(chain: GRAM, x: Tensor, width: int) -> None:
    """The same, as the program that every inference routine runs."""
    context = chain.encode(x)
    plates = pyro.plate("particles", width, dim=-2), pyro.plate("problems", len(x), dim=-1)
    with pyro.validation_enabled(False), plates[0], plates[1]:
        state = chain.init(context)
        for t in range(DEPTH):
            state = chain.step(state, t, context)


def keyed(chain: GRAM, x: Tensor, width: int) -> None:
    """The program with the sampler's keyed noise."""
    with seeded(0):
        program(chain, x, width)


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    task = tasks.Queens(8)
    chain = GRAM.for_task(task).eval()
    problems = torch.as_tensor(task.examples("test")[0])
    print(f"{DEPTH} depth steps of {chain.transitions} transitions, median ratio [quartiles]")
    print("| N·B | rounds | bare loop, s | program / bare | program with keyed noise / bare |")
    print("|---|---|---|---|---|")
    for width, count, rounds in ((8, 8, 101), (16, 64, 31), (64, 128, 7)):
        runs = {f.__name__: partial(f, chain, problems[:count], width) for f in (bare, program, keyed)}
        seconds = interleaved(runs, rounds)
        cells = [
            f"{sorted(seconds['bare'])[rounds // 2]:.4f}",
            *(ratio(seconds, f, "bare") for f in runs if f != "bare"),
        ]
        print(f"| {width * count} | {rounds} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
