"""Evaluation at the prior: what a chain is worth at inference, with seeds, spread and the limits beside it."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

from probgram import metrics
from probgram.chain import Chain, Guide
from probgram.inference.handlers import guided, start, weighted
from probgram.inference.sampling import as_problems, sample
from probgram.inference.selection import best, first_verified, vote
from probgram.tasks import UnknownAnswers
from probgram.trajectories import Trajectories

BATCH = 2_048  # trajectories at a time: bounds memory, changes no law


@dataclass(frozen=True)
class Report:
    """Figures of one evaluation: mean and standard deviation over seeds, and the limits.

    Attributes:
        figures: name -> value of each seed.
        limits: "uniform" (draws over the solutions) and "one answer" -> name -> value.
        about: task, split, problems, width, depth, seeds, cost.
    """

    figures: dict[str, list[float]]
    limits: dict[str, dict[str, float]] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    def mean(self, name: str) -> float:
        """Mean over seeds."""
        return float(np.mean(self.figures[name]))

    def spread(self, name: str) -> float:
        """Standard deviation over seeds (0 for one seed)."""
        values = self.figures[name]
        return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0

    def table(self) -> str:
        """The report as a Markdown table."""
        about = ", ".join(f"{key} {value}" for key, value in self.about.items())
        lines = [
            about,
            "",
            "| figure | mean | sd over seeds | uniform draws | one answer |",
            "|---|---|---|---|---|",
        ]
        for name in self.figures:
            uniform, single = (self.limits.get(kind, {}).get(name) for kind in ("uniform", "one answer"))
            cells = [f"{self.mean(name):.4f}", f"{self.spread(name):.4f}"]
            cells += ["–" if value is None else f"{value:.4f}" for value in (uniform, single)]
            lines.append(f"| {name.replace('_', ' ')} | " + " | ".join(cells) + " |")
        return "\n".join(lines)

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps(asdict(self), indent=1)


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
        cost. Where the task cannot enumerate solutions, coverage and total variation are left out.

    Raises:
        ValueError: no seeds, or an unknown split.
    """
    if not seeds:
        raise ValueError("seeds must name at least one seed")
    x = chosen_problems(task, split, problems)
    try:
        solutions = metrics.all_solutions(task, x)
    except UnknownAnswers:
        solutions = None  # no coverage then
    figures: dict[str, list[float]] = {}
    started = time.perf_counter()
    for seed in seeds:
        draw = partial(
            run, chain, width=width, depth=depth, seed=seed, keep="last", halt_probability=halt_probability
        )
        for name, value in _one_seed(draw, task, x, solutions, max(1, BATCH // width)).items():
            figures.setdefault(name, []).append(value)
    about = {
        "task": task.name,
        **getattr(task, "about", {}),
        "split": f"{getattr(task, 'split', '')} {split}".strip(),
        "problems": len(x),
        "several answers": None if solutions is None else int((solutions.counts > 1).sum()),
        "width": width,
        "depth": depth,
        "halt probability": halt_probability,
        "seeds": list(seeds),
        "seconds a seed": round((time.perf_counter() - started) / len(seeds), 1),
    }
    return Report(figures, {} if solutions is None else metrics.limits(solutions, width), about)


def chosen_problems(task: Any, split: str = "test", problems: int | None = None) -> Any:
    """The different problems of a split, `[B, L]`; a seeded subset of so many, None: all."""
    x = np.unique(task.examples(split)[0], axis=0)
    if problems is None or problems >= len(x):
        return x
    return x[np.sort(np.random.default_rng(0).choice(len(x), problems, replace=False))]


def _one_seed(
    draw: Callable[..., Trajectories], task: Any, x: Any, solutions: metrics.Solutions | None, rows: int
) -> dict[str, float]:
    parts, weights, selected = [], [], []
    for row in range(0, len(x), rows):
        run = draw(x[row : row + rows])
        rules = {"vote": vote(run).answers, "first_verified": first_verified(run, task).answers}
        rules |= {f"best_by_{head}": best(run, head=head).answers for head in run.heads}
        selected.append({k: task.verify(run.x, v).float().cpu().numpy() for k, v in rules.items()})
        parts.append(run.answers[-1].cpu().numpy())
        weights.append(run.weights[-1].cpu().numpy())
    figures = metrics.summarize(task, x, np.concatenate(parts, 1), solutions, np.concatenate(weights, 1))
    accuracy = {f"selected_{k}": float(np.concatenate([s[k] for s in selected]).mean()) for k in selected[0]}
    first = {k: figures.pop(k) for k in ("valid", "pass_at_n")}
    return first | accuracy | figures


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
