"""Evaluation at the prior: what a chain is worth at inference, with seeds, spread and the limits beside it."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

from probgram.chain import Chain, Guide
from probgram.inference.figures import Report, measured
from probgram.inference.handlers import guided, start, weighted
from probgram.inference.sampling import as_problems, sample
from probgram.inference.selection import best, first_verified, vote
from probgram.trajectories import Trajectories


def evaluate(
    chain: Chain,
    task: Any,
    split: str = "test",
    width: int = 20,
    depth: int = 16,
    seeds: Sequence[int] = (0, 1, 2),
    problems: int | None = None,
    halt_probability: float | None = None,
    run: Callable[..., Trajectories] = sample,
) -> Report:
    """Evaluate prior trajectories on a task's problems.

    Args:
        chain: trained.
        task: gives the problems, verifies, enumerates.
        split: "test" (held out) or "train".
        width: N, trajectories a problem.
        depth: S, depth steps.
        seeds: one run each; at least 3 for a figure to publish.
        problems: a seeded subset of so many problems; None: all.
        halt_probability: freeze a trajectory once its halt head is so sure that its answer is right; None: never.
        run: draws the trajectories, with the arguments of `sample`: for a filter `partial(smc.run, potential=...)`,
            for a generator `partial(sample, decode="sample")`.

    Returns:
        Validity of one draw (by weight), accuracy of each selection rule, oracle pass@N, coverage (macro and
        pooled, all problems and those with several solutions), total variation, each with its limits, and the
        cost; of graph colouring the conflicts of the most frequent answer, summed. Where the task cannot enumerate
        solutions, coverage and total variation are left out.

    Raises:
        ValueError: no seeds, or an unknown split.
        UnknownAnswers: the task can neither verify answers nor tell them (`Digits`).
    """

    def draw(x: Any, seed: int) -> Trajectories:
        return run(chain, x, width=width, depth=depth, seed=seed, keep="last", halt_probability=halt_probability)

    def selected(drawn: Trajectories) -> dict[str, Tensor]:
        rules = {"vote": vote(drawn).answers, "first_verified": first_verified(drawn, task).answers}
        return rules | {f"best_by_{head}": best(drawn, head=head).answers for head in drawn.heads}

    return measured(draw, selected, task, split, width, depth, seeds, problems, halt_probability)


@torch.no_grad()
def evidence_bound(
    chain: Chain, guide: Guide, x: Any, y: Any, depth: int = 8, particles: int = 1, seed: int = 0
) -> Tensor:
    """The bound on log p(y | x) with y observed at the last depth step only, beta = 1, in nats.

    Args:
        chain: the model.
        guide: its posterior.
        x: problems `[B, ...]`.
        y: one answer each, `[B, L]`.
        depth: S.
        particles: K; 1 gives the ELBO with the sampled ratio, more the IWAE bound (arXiv 1509.00519, eq. 8).
        seed: of the draws.

    Returns:
        One estimate a problem, `[B]`; its expectation is at most log p(y | x).
    """
    x = as_problems(x, chain)
    y = torch.as_tensor(y, device=x.device)
    if len(y) != len(x):
        raise ValueError(f"x and y must have the same number of rows, got {len(x)} and {len(y)}")
    context, evidence = chain.encode(x), guide.encode(y)
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []), weighted() as w, guided(guide, evidence):
        torch.manual_seed(seed)
        with pyro.plate("particles", particles, dim=-2), pyro.plate("problems", len(x), dim=-1):
            z = start(chain, (particles, len(x)), context)
            for t in range(depth):
                z = chain.step(z, t, context)
            pyro.sample("y", chain.readout(z), obs=y)
    return torch.logsumexp(torch.as_tensor(w.log_weight), 0) - float(np.log(particles))
