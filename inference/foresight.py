"""Three figures that need no right answers, to say in advance whether a filter will help.

    stability        log growth of a small perturbation over a step      do copies come apart, or stay copies?
    alignment        corr_W(σ(v_s), c), c_i = Σ_j W_j [a_j = a_i]        does a head know where the cloud goes?
    cloud_entropy    -Σ_v p_v log p_v, p_v = Σ_i W_i [a_il = v]          is there anything left to choose?

BIGR (arXiv 2605.25230) names three such diagnostics; the definitions are ours, given where each is computed.
What they foretold on our networks is measured in `benchmarks/foresight.md`.

Source of `stability`: Benettin, Galgani, Giorgilli and Strelcyn, "Lyapunov characteristic exponents for smooth
dynamical systems", Meccanica 15, 1980 (the perturbation is carried along and scaled back after every step).
"""

from typing import Any

import pyro
import torch
from torch import Tensor

from probgram import state as trees
from probgram.chain import Chain
from probgram.inference.grouping import answer_numbers, entropy, shares_of, totals
from probgram.inference.handlers import mix, seeded, start, validation
from probgram.inference.sampling import as_problems
from probgram.state import widest
from probgram.trajectories import Trajectories

SIZE = 1e-3  # of a perturbation: far above the rounding of float32, far below states of about 1


@torch.no_grad()
def stability(chain: Chain, x: Any, width: int = 4, depth: int = 16, seed: int = 0, size: float = SIZE) -> Tensor:
    """Log growth of a small perturbation of the state over every depth step, in nats.

        g_s = log( ‖F_s(z + δ) - F_s(z)‖ / ‖δ‖ ),    δ <- (F_s(z + δ) - F_s(z)) scaled back to ‖δ‖

    F_s is the depth step with its noise given: both copies see the same. δ starts in a random direction and turns
    towards the one that grows most, so over depth the mean of g tends to the largest Lyapunov exponent, for a
    linear chain to the log of its spectral radius. Below 0 copies that resampling makes draw together again, by
    exp(g) a step, and only fresh noise keeps them apart; above 0 they come apart by themselves.

    Args:
        chain: any chain whose state has leaves of floating type; it runs 2·N·S depth steps.
        x: problems `[L]` or `[B, L]`.
        width: N, trajectories a problem.
        depth: S.
        seed: of the noise and the first direction; the trajectories are those of `sample` with that seed.
        size: root mean square of δ over the elements of the state.

    Returns:
        `[S, N, B]`; -inf where a perturbation vanished in rounding.

    Raises:
        ValueError: width or depth below 1, size not above 0, or the state has no leaf of floating type.
    """
    x = as_problems(x, chain)
    for name, number in (("width", width), ("depth", depth)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    if not size > 0:
        raise ValueError(f"size must be above 0, got {size}")
    context, noise, rows = chain.encode(x), seeded(seed), []
    with noise, pyro.plate("particles", width, dim=-2), pyro.plate("problems", len(x), dim=-1):
        noise.at(-1)
        state = start(chain, (width, len(x)), context)
        floating = [leaf for _, leaf in trees.leaves(state) if leaf.is_floating_point()]
        if not floating:
            raise ValueError(
                f"stability needs a state of real numbers, and that of {type(chain).__name__} has none"
            )
        length = size * sum(leaf[0, 0].numel() for leaf in floating) ** 0.5
        generator = torch.Generator(device=x.device).manual_seed(mix(seed, 13))
        random = trees.map_state(lambda leaf: _gaussian(leaf, generator), state)
        delta = _scaled(random, length / _norm(random))
        for t in range(depth):
            with validation(t == 0):
                noise.at(t)
                moved = chain.step(trees.map_state(torch.add, state, delta), t, context)
                noise.at(t)  # the same once more
                state = chain.step(state, t, context)
            apart = trees.map_state(torch.sub, moved, state)
            grown = _norm(apart)
            rows.append((grown / length).log())
            # What vanished goes on in its old direction.
            delta = trees.where(grown > 0, _scaled(apart, length / grown), delta)
    return torch.stack(rows)


def alignment(run: Trajectories, head: str = "value") -> Tensor:
    """Do a head's weights agree with where the cloud goes? A correlation at every depth step, in [-1, 1].

        A_s = corr_W(σ(v_s), c),    c_i = Σ_j W_j [a_j = a_i]

    Over the final trajectories i with weights W: v_s is the head's logit on trajectory i at step s, a_i its answer
    at the end, c_i the share of the cloud that ends with the same one. Near 1 the head favours early what most come
    to anyhow; near 0 it does not know; below 0 it favours what few come to.

    Args:
        run: has the head; a row for every depth step that is asked about.
        head: its name.

    Returns:
        `[S, B]`, float64 (float32 on MPS); NaN where all end with one answer, or the head says the same of all.

    Raises:
        ValueError: the run has no such head, or no answers.
    """
    if head not in run.heads:
        raise ValueError(f"the run has no head {head!r}: it has {sorted(run.heads) or 'none'}")
    weights = run.weights[-1]
    share = shares_of(answer_numbers(run)[-1:], weights[None])[0]  # [N, B]
    says = run.heads[head].to(weights).gather(1, run.lines()).sigmoid()  # [S, N, B]
    total = weights.sum(0)

    def centred(values: Tensor) -> Tensor:
        return values - (weights * values).sum(-2, keepdim=True) / total

    says, share = centred(says), centred(share)
    spread = ((weights * says.square()).sum(1) * (weights * share.square()).sum(0)).sqrt()
    # Below this, what is left of equal values is rounding.
    return torch.where(spread > 1e-12, (weights * says * share).sum(1) / spread, torch.nan)


def cloud_entropy(run: Trajectories) -> Tensor:
    """Entropy of the decoded token at every position over the trajectories, in nats, `[S, B, L]`.

        H_sl = -Σ_v p_v log p_v,    p_v = Σ_i W_i [a_il = v]

    0 where all agree. Where it is 0 at every position there is one answer, and resampling has nothing to choose
    from.
    """
    # A step at a time: every token of every particle at once would be the largest thing in memory.
    rows = zip(run.answers, run.weights, strict=True)
    return torch.stack([entropy(totals(tokens[None], weights[None]))[0] for tokens, weights in rows])


def _gaussian(leaf: Tensor, generator: torch.Generator) -> Tensor:
    if not leaf.is_floating_point():
        return torch.zeros_like(leaf)
    return torch.randn(leaf.shape, generator=generator, device=leaf.device, dtype=leaf.dtype)


def _norm(state: Any) -> Tensor:
    """Euclidean norm over all leaves of floating type, `[N, B]`."""
    leaves = [leaf for _, leaf in trees.leaves(state) if leaf.is_floating_point()]
    squares = [leaf.to(widest(leaf.device)).square().reshape(*leaf.shape[:2], -1).sum(-1) for leaf in leaves]
    return torch.stack(squares).sum(0).sqrt()


def _scaled(state: Any, factor: Tensor) -> Any:
    """Every leaf times `[N, B]`; others than floating ones stay."""

    def scale(leaf: Tensor) -> Tensor:
        if not leaf.is_floating_point():
            return torch.zeros_like(leaf)
        return leaf * factor.to(leaf).reshape(*factor.shape, *[1] * (leaf.dim() - 2))

    return trees.map_state(scale, state)
