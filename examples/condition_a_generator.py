"""Train a generator of n-queens boards, then ask it for boards with given queens: the filter conditions it.

python examples/condition_a_generator.py                  about a minute on one CPU core
python examples/condition_a_generator.py --steps 20       a look at the code path

The chain has seen blank problems only, so nothing can be given to it. But a queen that is given is an observation
of a part of y, and trajectories weighed by its likelihood follow p(y | given). The same law comes from drawing
boards and keeping those that have the queens: exact, and the cheaper the likelier they are. Both are printed.

Five queens have 10 boards, two for each queen that is given. (Of the 4 boards of six queens one queen leaves one.)
"""

import argparse
import math

import torch

from probgram import fit, metrics, tasks
from probgram.inference import sample, smc
from probgram.inference.objective import ObjectiveConfig
from probgram.inference.potentials import likelihood
from probgram.models import GRAM, GRAMGuide

DEPTH, RUNS, SEED = 4, 8, 0


def main() -> None:
    """Train, condition, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--size", type=int, default=5, help="queens")
    parser.add_argument("--given", default="1 . . . .", help="columns of the given queens, a dot for a free row")
    parser.add_argument("--draws", type=int, default=10_000, help="boards drawn from nothing")
    parser.add_argument("--width", type=int, default=500, help="trajectories of each filter")
    chosen = parser.parse_args()
    torch.manual_seed(SEED)
    queens = tasks.Queens(chosen.size)
    x = queens.encode(chosen.given)
    given = torch.tensor([-1 if column == chosen.size else column for column in x])  # below 0: not observed

    task = tasks.Generation.of(queens, [None] * chosen.size)
    chain = GRAM.for_task(task, dim=64, hidden=160, refinements=2)
    objective = ObjectiveConfig(depth=DEPTH, carry=0.0, beta=0.1)  # every trajectory keeps its board
    fit(chain, GRAMGuide(chain), task, chosen.steps, objective=objective, batch=64, lr=2e-3, ema=0.99)
    run = sample(chain, task.blank, chosen.draws, DEPTH, SEED, decode="sample", keep="last", chunk=2_048)
    draws = run.answers[-1, :, 0].long()
    right, found = task.verify(task.blank, draws).double().mean(), metrics.histogram(draws, task.answers) > 0
    print(f"of {chosen.draws} boards from nothing {right:.1%} are right; {found.sum()} of {len(found)} were found")

    # The filter, run several times side by side. What was observed is put in; the readout draws the rest.
    run = smc.run(
        chain,
        torch.as_tensor(task.blank).expand(RUNS, -1),
        width=chosen.width,
        depth=DEPTH,
        seed=SEED,
        potential=likelihood(given),
        decode="sample",
    )
    answers = torch.where(given >= 0, given, run.answers[-1].long())  # [N, RUNS, L]
    evidence = run.log_evidence[-1].exp()  # [RUNS]; runs count by it, as their mean is unbiased

    # The restriction of the generator's own histogram.
    kept = draws[((draws == given) | (given < 0)).all(1)]
    print(f"p(given): {_mean(evidence)} by the filter, {_share(len(kept) / len(draws), len(draws))} by counting")
    print(f"\n| board | of the {len(kept)} draws with the queens | {RUNS} filters of {chosen.width} |")
    print("|---|---|---|")
    boards = torch.as_tensor(queens.solutions(x))
    for board in (*boards, None):
        wanted = boards if board is None else board[None]
        hits = [(part[..., None, :] == wanted).all(-1).any(-1) != (board is None) for part in (kept, answers)]
        exact = float(hits[0].double().mean())
        name = "any wrong board" if board is None else " ".join(map(str, board.tolist()))
        print(f"| {name} | {_share(exact, len(kept))} | {_ratio((run.weights[-1] * hits[1]).sum(0), evidence)} |")


def _share(share: float, draws: int) -> str:
    """A share of independent draws, with its standard error."""
    return f"{share:.3f} ± {math.sqrt(share * (1 - share) / draws):.3f}" if draws else "none"


def _mean(values: torch.Tensor) -> str:
    return f"{values.mean():.3f} ± {values.std() / math.sqrt(len(values)):.3f}"


def _ratio(shares: torch.Tensor, evidence: torch.Tensor) -> str:
    """The mean of shares by evidence, with the standard error of a ratio estimator."""
    mean = (evidence * shares).sum() / evidence.sum()
    return f"{mean:.3f} ± {(evidence * (shares - mean)).square().sum().sqrt() / evidence.sum():.3f}"


if __name__ == "__main__":
    main()
