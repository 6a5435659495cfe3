"""Split R-hat of a run at every depth step, asked in two ways.

    islands_rhat         chain = island, draw = particle            do islands agree, so is the width large enough?
    trajectories_rhat    chain = trajectory, draw = depth step      are the trajectories stuck apart?

Islands alone cannot tell the second: they agree wherever each holds the same mixture of stuck trajectories. Stuck
apart is not wrong in itself: trajectories that have settled on different right answers are.

    R-hat² = (n - 1) / n + B / (n W)     B: n times the variance of chain means, W: mean of chain variances

Each chain is split into halves first, so that one which drifts disagrees with itself; and values are replaced by
normal scores of their ranks, so that heavy tails do no harm, the larger of R-hat for location and for spread taken.

Source: Vehtari, Gelman, Simpson, Carpenter and Bürkner, "Rank-normalization, folding, and localization: an improved
R-hat", Bayesian Analysis 16, 2021, equations 1 to 4 and section 4.
"""

import torch
from torch import Tensor

from probgram.inference.handlers import mix
from probgram.inference.resampling import draw_uniforms, systematic
from probgram.state import widest
from probgram.trajectories import Trajectories

ISLANDS = 4  # into which independent draws, or the one island of a filter, are divided
FEWEST = 4  # draws a chain must have: two a half, or a half has no variance


def split_rhat(draws: Tensor, rank: bool = True) -> Tensor:
    """Split R-hat of one quantity from several chains, as `arviz.rhat` computes it.

    Args:
        draws: `[M, n, ...]`, M chains of n draws; R-hat is taken for every element of what follows.
        rank: of rank-normalised values, the larger of R-hat for location and for spread; False: of the values.

    Returns:
        `[...]`, float64 (float32 on MPS); 1 where all values are equal, infinite where each half stays at a value
        of its own, NaN with one chain, with fewer than four draws, or where a value is NaN.
    """
    if draws.dim() < 2:
        raise ValueError(f"draws must be [chains, draws, ...], got shape {list(draws.shape)}")
    draws = draws.to(widest(draws.device))
    chains, n = draws.shape[:2]
    if chains < 2 or n < FEWEST:
        return torch.full(draws.shape[2:], torch.nan, dtype=draws.dtype, device=draws.device)
    halves = torch.cat([draws[:, : n // 2], draws[:, n - n // 2 :]])  # [2 M, n // 2, ...]
    if not rank:
        return _rhat(halves)
    flat = halves.flatten(0, 1)
    low, high = flat.kthvalue((len(flat) + 1) // 2, 0).values, flat.kthvalue(len(flat) // 2 + 1, 0).values
    folded = (halves - (low + high) / 2).abs()
    found = torch.maximum(_rhat(_normal_scores(halves)), _rhat(_normal_scores(folded)))
    return found.masked_fill(halves.isnan().flatten(0, 1).any(0), torch.nan)


def islands_rhat(run: Trajectories, values: Tensor) -> Tensor:
    """R-hat over islands, at every depth step.

    A run of one island, and independent draws, are divided into four blocks of neighbouring slots (fewer where they
    would have fewer than four particles each). Where weights differ, each island is drawn anew by its weights
    first, systematically, by the run's seed. After resampling neighbouring slots descend from the same ancestors,
    so that blocks of one island disagree by that alone: ask a run with islands of its own, `smc.run(islands=4)`.
    Islands that exchange particles agree the more for it: R-hat of them is too low.

    Args:
        run: with its islands side by side, as `smc.run` leaves them.
        values: a quantity of every particle, `[S, N, B]`.

    Returns:
        `[S, B]`; NaN where there are too few particles.
    """
    _check_values(run, values)
    return _over_islands(values, run.log_weights, blocks_of(run), run.seed)


def islands_chance(run: Trajectories, values: Tensor, shuffles: int = 99) -> Tensor:
    """Probability that islands of exchangeable particles would disagree as much at the last depth step, `[B]`.

    A permutation test: the particles, with their weights, are dealt to the islands anew, and the largest R-hat of
    all quantities is compared. Exact however few the particles and however often values are equal, where plain
    R-hat of a few draws may be infinite by chance.

    Args:
        run: with its islands side by side.
        values: Q quantities of every particle at the last step, `[Q, N, B]`.
        shuffles: how often they are dealt; the smallest probability is 1 / (shuffles + 1).
    """
    islands, log_weights = blocks_of(run), run.log_weights[-1:].expand(values.shape)
    found = _over_islands(values, log_weights, islands, run.seed).nan_to_num(0.0, posinf=torch.inf).amax(0)
    generator = torch.Generator(device=values.device).manual_seed(mix(run.seed, 17))
    as_much = torch.ones_like(found)
    for _ in range(shuffles):
        order = torch.rand(run.width, run.problems, generator=generator, device=values.device).argsort(0)
        dealt = [leaf.gather(1, order.expand(values.shape)) for leaf in (values, log_weights)]
        drawn = _over_islands(dealt[0], dealt[1], islands, run.seed).nan_to_num(0.0, posinf=torch.inf).amax(0)
        as_much += drawn >= found
    return as_much / (shuffles + 1)


def trajectories_rhat(run: Trajectories, values: Tensor) -> Tensor:
    """R-hat over trajectories, at every depth step, from the later half of the steps so far.

    Trajectories are the final ones, traced along their ancestry, and drawn anew by their final weights where those
    differ.

    Args:
        run: kept a row for every depth step.
        values: a quantity of every particle, `[S, N, B]`.

    Returns:
        `[S, B]`; NaN at the first seven steps, whose later half is too short, and with one trajectory.
    """
    _check_values(run, values)
    lines = run.lines()
    if not _even(run.log_weights[-1:]):
        lines = lines.gather(1, _equal_slots(run.log_weights[-1], run.seed).expand_as(lines))
    values = values.gather(1, lines).transpose(0, 1)  # [N, S, B]
    steps = values.shape[1]
    rows = [split_rhat(values[:, (s + 1) // 2 : s + 1]) for s in range(steps)]
    return torch.stack(rows)


def blocks_of(run: Trajectories) -> int:
    """How many blocks of neighbouring slots a run is divided into here: its own islands, or four."""
    islands = run.settings.get("islands", 1)
    return islands if islands > 1 else max(1, min(ISLANDS, run.width // FEWEST))


def _over_islands(values: Tensor, log_weights: Tensor, islands: int, seed: int) -> Tensor:
    """R-hat `[R, B]` of `[R, N, B]`, each island drawn anew by its weights."""
    each = values.shape[1] // islands

    def split(leaf: Tensor) -> Tensor:  # [R, N, B] -> [islands, each, R, B]
        return leaf[:, : islands * each].unflatten(1, (islands, each)).movedim(0, 2)

    drawn = split(values)
    if not _even(log_weights):
        columns = split(log_weights).movedim(1, 0)  # [each, islands, R, B]
        slots = _equal_slots(columns.flatten(1), seed).view(columns.shape).movedim(1, 0)
        drawn = drawn.gather(1, slots)
    return split_rhat(drawn)


def _even(log_weights: Tensor) -> bool:
    return bool((log_weights == log_weights[:, :1]).all())


def _equal_slots(log_weights: Tensor, seed: int) -> Tensor:
    """Slots of equal weight, `[N, columns]`."""
    generator = torch.Generator(device=log_weights.device).manual_seed(mix(seed, 11))
    uniforms = draw_uniforms(systematic, log_weights, generator)
    return systematic(log_weights, uniforms)


def _check_values(run: Trajectories, values: Tensor) -> None:
    if values.shape != run.log_weights.shape:
        raise ValueError(
            f"values must be [S, N, B] = {list(run.log_weights.shape)} as the run, got shape {list(values.shape)}"
        )


def _rhat(halves: Tensor) -> Tensor:
    """R-hat of `[M, n, ...]`."""
    n = halves.shape[1]
    between, within = halves.mean(1).var(0), halves.var(1).mean(0)  # of the means; not yet times n
    # Rounding leaves a variance where all values are equal.
    still = (halves == halves[:, :1]).all(1).all(0)
    same = (halves == halves[:1, :1]).flatten(0, 1).all(0)
    found = ((n - 1) / n + between / within.masked_fill(still, 0.0)).sqrt()
    return found.masked_fill(same, 1.0)


def _normal_scores(values: Tensor) -> Tensor:
    """Normal quantiles of the average ranks among all chains and draws, `[M, n, ...]`."""
    flat = values.reshape(values.shape[0] * values.shape[1], -1).T.contiguous()  # [..., M · n]
    ordered = flat.sort(-1).values
    below = torch.searchsorted(ordered, flat)
    upto = torch.searchsorted(ordered, flat, right=True)
    ranks = (below + upto + 1).to(values.dtype) / 2
    count = flat.shape[-1]
    scores = torch.special.ndtri((ranks - 0.375) / (count + 0.25))
    return scores.T.reshape(values.shape)
