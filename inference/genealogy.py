"""The lines of a filter run: which pasts survived, and three estimates of the smoothing law p(states | all data).

    genealogical           paths along the lines, with the final weights       free, few distinct early states
    fixed_lag              the state at t as seen from t + lag                 free, a little bias, no degeneracy
    backward_simulation    j_t ~ W_t^i p(next | state_t^i), from the end       O(N·M) a step, needs a density

They read a run that kept its states, `smc.run(..., keep="latents")`. `mean`, `variance` and `quantiles` make
functions for `collect=`, and for `Smoothed.collect`.

Sources: Kitagawa, "Monte Carlo filter and smoother", 1996 (lines, fixed lag); Godsill, Doucet and West, "Monte
Carlo smoothing for nonlinear time series", 2004, algorithm 1 (backward simulation).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from probgram import state as trees
from probgram.chain import Chain
from probgram.inference.handlers import mix
from probgram.inference.kernels import as_kernel
from probgram.inference.resampling import cumulative_weights, search
from probgram.state import widest
from probgram.trajectories import Trajectories

Moment = Callable[[Any, Tensor], Tensor]
Of = Callable[[Any], Tensor]


class Smoothed(NamedTuple):
    """Weighted states of every depth step, given observations after it too."""

    states: Any  # leaves [S, N, B, ...]
    weights: Tensor  # normalised over N, [N, B], or [S, N, B] where they differ from step to step

    def collect(self, moment: Moment) -> Tensor:
        """What a function of `collect=` says at every depth step, `[S, B, ...]`."""
        _, first = next(trees.leaves(self.states))
        weights = self.weights.expand(len(first), *self.weights.shape[-2:])
        rows = [trees.map_state(lambda leaf, s=s: leaf[s], self.states) for s in range(len(first))]
        return torch.stack([moment(row, w) for row, w in zip(rows, weights, strict=True)])


def genealogical(run: Trajectories) -> Smoothed:
    """Paths of the final trajectories, traced through their ancestors, with the final weights.

    Early states have few distinct values once there was much resampling: see `unique_ancestors`.

    Args:
        run: kept its states.

    Returns:
        States `[S, N, B, ...]`, where slot i is one path, and weights `[N, B]`.

    Raises:
        ValueError: the run did not keep its states.
    """
    return Smoothed(_gather(_states(run), run.lines()), run.weights[-1])


def fixed_lag(run: Trajectories, lag: int) -> Smoothed:
    """States at every step t as seen from step t + lag, or from the last step where that is past it.

    Estimates p(state_t | data up to t + lag): lag 0 is the filter, a lag of S - 1 or more `genealogical`.

    Args:
        run: kept its states.
        lag: steps to look ahead, at least 0.

    Returns:
        States `[S, N, B, ...]`, where slot i belongs to the trajectory in slot i at t + lag, and its weights
        `[S, N, B]`.

    Raises:
        ValueError: a negative lag, or the run did not keep its states.
    """
    if lag < 0:
        raise ValueError(f"lag must be at least 0, got {lag}")
    states, weights = _states(run), run.weights
    steps, width, problems = weights.shape
    own = torch.arange(width, device=weights.device)[:, None]
    slots = own.expand(steps, width, problems).clone()
    if run.ancestors is not None:
        ancestors = run.ancestors.long()
        for ahead in range(min(lag, steps - 1), 0, -1):  # every step goes back from t + ahead to t + ahead - 1
            slots[: steps - ahead] = ancestors[ahead:].gather(1, slots[: steps - ahead])
    seen_from = (torch.arange(steps, device=weights.device) + lag).clamp(max=steps - 1)
    return Smoothed(_gather(states, slots), weights[seen_from])


@torch.no_grad()
def backward_simulation(model: Any, run: Trajectories, draws: int, *args: Any, seed: int = 0) -> Any:
    """Draw paths from the end backwards, each step's slot in proportion to W_t^i p(next | state_t^i).

    Given the run the paths are independent draws of equal weight. What a step observes must depend on its new state
    alone. Memory and time grow with N·M·B.

    Args:
        model: the run's model, which says `log_transition(state, next_state, t, *args) -> [...]`, the log density
            of the move that step t (from 0) makes; it is called with leaves `[N, 1, B, ...]` and `[1, M, B, ...]`.
            A chain is given its context, `chain.encode(x)`.
        run: kept its states.
        draws: M.
        *args: the run's arguments: a chain's problems x.
        seed: same seed, same paths.

    Returns:
        States, leaves `[S, M, B, ...]`. Where all weights of a problem vanished they mean nothing.

    Raises:
        ValueError: no transition density, a run that kept no states, or one whose weights hold a potential.
    """
    transition = transition_density(model, "backward simulation")
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    states = _states(run)
    if run.settings.get("potential") is not None or run.halted is not None:
        what = "a potential" if run.halted is None else "halted trajectories"
        raise ValueError(f"backward simulation needs a run of the model alone, and this one has {what}")
    kernel = as_kernel(model, args, problems=None if isinstance(model, Chain) else run.problems)
    if kernel.problems != run.problems:
        raise ValueError(f"the run has {run.problems} problems, and the arguments {kernel.problems}")
    device, shape = run.log_weights.device, (run.width, draws, run.problems)
    generator = torch.Generator(device=device).manual_seed(mix(seed, 7))

    def pick(log_weights: Tensor) -> Tensor:  # one slot [M, B] from each column of [N, M, B]
        uniforms = torch.rand(1, draws * run.problems, generator=generator, device=device, dtype=widest(device))
        return draw_slots(log_weights.flatten(1), uniforms).view(draws, run.problems)

    def at(s: int, slot: Tensor) -> Any:
        problems = torch.arange(run.problems, device=device)
        return trees.map_state(lambda leaf: leaf[s][slot, problems], states)

    slot = pick(run.log_weights[-1][:, None].expand(shape))
    path = [at(-1, slot)]
    for s in range(len(run.depths) - 1, 0, -1):
        before = trees.map_state(lambda leaf, s=s: leaf[s - 1][:, None], states)
        after = trees.map_state(lambda leaf: leaf[None], path[-1])
        log_density = transition(before, after, run.depths[s] - 1, *kernel.args)
        if tuple(log_density.shape) != shape:
            raise ValueError(
                f"log_transition must return {list(shape)} here, [N, M, B], got shape {list(log_density.shape)}"
            )
        chosen = pick(run.log_weights[s - 1][:, None] + log_density)
        if run.ended is not None:  # a problem that had ended stood still
            chosen = torch.where(run.ended < run.depths[s], slot, chosen)
        slot = chosen
        path.append(at(s - 1, slot))
    return trees.map_state(lambda *rows: torch.stack(rows), *path[::-1])


def unique_ancestors(run: Trajectories) -> Tensor:
    """How many distinct slots of every depth step the N final trajectories come from, int64 `[S, B]`.

    N at the last step. Where it is small, `genealogical` says little about that step.

    Raises:
        ValueError: the run did not keep its ancestors.
    """
    if run.effective is not None and len(run.log_weights) != len(run.effective):
        raise ValueError('the run must have kept its ancestors: make it with keep="paths" or "latents"')
    lines = run.lines().sort(1).values
    return 1 + (lines.diff(dim=1) != 0).sum(1)


def transition_density(model: Any, what: str) -> Callable[..., Tensor]:
    """The model's `log_transition`.

    Raises:
        ValueError: it has none, so that `what` cannot be had.
    """
    transition = getattr(model, "log_transition", None)
    if not callable(transition):
        raise ValueError(
            f"{what} needs log p(next | state), and {type(model).__name__} has no "
            "log_transition(state, next_state, t, *args)"
        )
    return transition


def draw_slots(log_weights: Tensor, uniforms: Tensor) -> Tensor:
    """One slot a column in proportion to the weights, int64 `[B]`; log weights `[N, B]`, uniforms `[1, B]`."""
    return search(cumulative_weights(log_weights), uniforms)[0]


def _states(run: Trajectories) -> Any:
    if run.states is None or len(run.depths) != run.depths[-1] - run.depths[0] + 1:
        raise ValueError('the run did not keep its states: run the filter with keep="latents"')
    return run.states


def _gather(states: Any, slots: Tensor) -> Any:
    """Leaves `[S, N, B, ...]` at slots `[S, N, B]`."""
    steps, _, problems = slots.shape
    step = torch.arange(steps, device=slots.device)[:, None, None]
    problem = torch.arange(problems, device=slots.device)
    return trees.map_state(lambda leaf: leaf[step, slots, problem], states)


# -- moments, for collect= ------------------------------------------------------------------------------------


def mean(of: Of | None = None) -> Moment:
    """Σ W x: a function `(state, weights [N, B]) -> [B, ...]` for `collect=`; NaN where all weights vanished.

    Args:
        of: picks a tensor `[N, B, ...]` out of the state; None: the state itself.
    """

    def weighted_mean(state: Any, weights: Tensor) -> Tensor:
        values, weights = _aligned(state, weights, of, "mean")
        return (weights * values).sum(0) / weights.sum(0)

    return weighted_mean


def variance(of: Of | None = None) -> Moment:
    """Σ W (x - mean)², element by element: a function as `mean` gives."""

    def weighted_variance(state: Any, weights: Tensor) -> Tensor:
        values, weights = _aligned(state, weights, of, "variance")
        total = weights.sum(0)
        centred = values - (weights * values).sum(0) / total
        return (weights * centred.square()).sum(0) / total

    return weighted_variance


def quantiles(levels: float | Sequence[float], of: Of | None = None) -> Moment:
    """Weighted quantiles: the smallest value whose weight together with all smaller ones reaches a level.

    Args:
        levels: Q probabilities in [0, 1].
        of: as for `mean`.

    Returns:
        A function `(state, weights [N, B]) -> [B, Q, ...]`, exact by sorting, element by element.

    Raises:
        ValueError: a level outside [0, 1], or none.
    """
    wanted = torch.as_tensor(levels, dtype=torch.float64).reshape(-1)
    if not len(wanted) or not bool(((wanted >= 0) & (wanted <= 1)).all()):
        raise ValueError(f"levels must be probabilities between 0 and 1, got {levels}")

    def weighted_quantiles(state: Any, weights: Tensor) -> Tensor:
        values, weights = _aligned(state, weights, of, "quantiles")
        ordered, order = values.movedim(0, -1).sort(-1)  # [B, ..., N]
        weights = weights.expand_as(values).movedim(0, -1).gather(-1, order).to(widest(weights.device))
        below = weights.cumsum(-1)
        total = below[..., -1:]
        # 1e-9: a level that is a cumulative weight but for rounding is reached by it. And above 0: level 0 is the
        # smallest value that has weight.
        points = (wanted.to(below) - 1e-9).clamp(min=torch.finfo(below.dtype).tiny) * total
        points = points.expand(*below.shape[:-1], len(wanted)).contiguous()
        index = torch.searchsorted(below, points).clamp(max=len(values) - 1)
        found = torch.where(total > 0, ordered.gather(-1, index), torch.nan)
        return found.movedim(-1, 1)

    return weighted_quantiles


def _aligned(state: Any, weights: Tensor, of: Of | None, name: str) -> tuple[Tensor, Tensor]:
    """Values `[N, B, ...]` and weights `[N, B, 1, ...]`, both of one floating type."""
    values = state if of is None else of(state)
    if not isinstance(values, Tensor) or values.shape[:2] != weights.shape:
        found = list(values.shape) if isinstance(values, Tensor) else f"a {type(values).__name__}"
        raise ValueError(
            f"{name} needs a tensor that begins with [N, B] = {list(weights.shape)}, got {found}: "
            "of= picks one out of the state"
        )
    dtype = torch.promote_types(values.dtype, weights.dtype)
    return values.to(dtype), weights.to(dtype).reshape(*weights.shape, *[1] * (values.dim() - 2))
