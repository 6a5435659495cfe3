"""Evaluation at the prior, in JAX: what a chain is worth at inference, with seeds, spread and the limits beside it.

The twin of `probgram.inference.evaluation`, with the same report.
"""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import Array

from probgram.inference import figures
from probgram.inference.figures import Report, measured
from probgram.inference.on_jax.handlers import as_key, guided, seeded, start, weighted
from probgram.inference.on_jax.sampling import as_problems, sample
from probgram.inference.on_jax.selection import best, first_verified, vote
from probgram.inference.on_jax.trajectories import Trajectories
from probgram.models.on_jax.chain import Chain, Guide


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
            for a generator `partial(sample, decode="sample")`, for several devices `partial(sample, mesh=mesh)`.

    Returns:
        Validity of one draw (by weight), accuracy of each selection rule, oracle pass@N, coverage (macro and
        pooled, all problems and those with several solutions), total variation, each with its limits, and the
        cost, the time of compilation in it; of graph colouring the conflicts of the most frequent answer, summed.
        Where the task cannot enumerate solutions, coverage and total variation are left out.

    Raises:
        ValueError: no seeds, or an unknown split.
        UnknownAnswers: the task can neither verify answers nor tell them (`Digits`).
    """
    rows = max(1, figures.BATCH // max(1, width))

    def draw(x: Any, seed: int) -> Trajectories:
        # The last batch is filled up with its own problems: another size would be another program.
        full = np.resize(x, (rows, *x.shape[1:])) if len(x) < rows < drawn_from else x
        made = run(chain, full, width=width, depth=depth, key=seed, keep="last", halt_probability=halt_probability)
        return made if full is x else made[: len(x)]

    def selected(drawn: Trajectories) -> dict[str, Any]:
        rules = {"vote": vote(drawn).answers, "first_verified": first_verified(drawn, task).answers}
        return rules | {f"best_by_{head}": best(drawn, head=head).answers for head in drawn.heads}

    drawn_from = len(figures.chosen_problems(task, split, problems))
    return measured(draw, selected, task, split, width, depth, seeds, problems, halt_probability)


def evidence_bound(
    chain: Chain, guide: Guide, x: Any, y: Any, depth: int = 8, particles: int = 1, key: Any = 0
) -> Array:
    """The bound on log p(y | x) with y observed at the last depth step only, beta = 1, in nats.

    Args:
        chain: the model.
        guide: its posterior.
        x: problems `[B, ...]`.
        y: one answer each, `[B, L]`.
        depth: S.
        particles: K; 1 gives the ELBO with the sampled ratio, more the IWAE bound (arXiv 1509.00519, eq. 8).
        key: of the draws, an integer seed or a JAX key.

    Returns:
        One estimate a problem, `[B]`; its expectation is at most log p(y | x).
    """
    x, y = as_problems(x, chain), np.asarray(y)
    if len(y) != len(x):
        raise ValueError(f"x and y must have the same number of rows, got {len(x)} and {len(y)}")
    return _bound(chain, guide, chain.encode(x), jnp.asarray(y), as_key(key), depth, particles)


@eqx.filter_jit
def _bound(chain: Chain, guide: Guide, context: Any, y: Array, key: Array, depth: int, particles: int) -> Array:
    evidence, problems = guide.encode(y), len(y)
    begin, steps = jax.random.split(key)

    def plates() -> tuple[Any, Any]:
        return numpyro.plate("particles", particles, dim=-2), numpyro.plate("problems", problems, dim=-1)

    wide, high = plates()
    with seeded(begin), wide, high:
        state = start(chain, (particles, problems), context)

    def depth_step(carry: tuple[Any, Array], t: Array) -> tuple[tuple[Any, Array], None]:
        state, log_weight = carry
        wide, high = plates()
        with seeded(jax.random.fold_in(steps, t)), weighted() as w, guided(guide, evidence), wide, high:
            state = chain.step(state, t, context)
        return (state, log_weight + w.log_weight), None

    nothing = jnp.zeros((particles, problems))
    (state, log_weight), _ = jax.lax.scan(depth_step, (state, nothing), jnp.arange(depth))
    log_weight = log_weight + chain.readout(state).log_prob(y)
    return jax.nn.logsumexp(log_weight, 0) - jnp.log(particles)
