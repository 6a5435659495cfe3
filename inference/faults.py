"""What goes wrong with weights: found, named with site, problem and depth, raised or reported."""

import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from probgram.inference.smc import Filter, SMCState


class FilterError(ValueError):
    """All weights of a problem vanished (with `strict`), or a weight is NaN."""


def all_dead(log_weights: Tensor) -> Tensor:
    """Problems `[B]` of which every weight `[N, B]` vanished."""
    return log_weights.amax(0).isneginf()


def still_running(algorithm: "Filter", state: "SMCState") -> Tensor:
    """Look at the device: raise where a weight is NaN; the columns that are still running.

    Raises:
        FilterError: NaN, with depth and problems.
    """
    nan, done = torch.stack([state.nan, state.done]).cpu()  # one transfer
    if bool(nan.any()):
        first = int(nan[nan > 0].min())
        problems = sorted(set(algorithm.problem.cpu()[nan == first].tolist()))
        raise FilterError(
            f"log weights are NaN or +inf at depth {first} in problems {_some(problems)}: "
            "the model or the potential computed something that is no weight (NaN is a missing value in arguments "
            "of Pyro models only); strict=True names the site"
        )
    return (done == 0).nonzero()[:, 0]


def report_dead(state: "SMCState", islands: int) -> None:
    """One warning that names the problems whose weights all vanished."""
    parts = state.dead.cpu().unflatten(0, (-1, islands))
    dead = torch.where((parts > 0).all(1), parts.amax(1), 0)  # with its last island
    if not bool(dead.any()):
        return
    columns = dead.nonzero()[:, 0]
    names = [f"{int(c)} at depth {int(dead[c])}" for c in columns[:5]]
    more = f" and {len(columns) - 5} more" if len(columns) > 5 else ""
    warnings.warn(
        f"all weights vanished in problem {', '.join(names)}{more}: log_normalizer is -inf there; "
        "strict=True names the site",
        RuntimeWarning,
        stacklevel=3,
    )


def check_factors(
    algorithm: "Filter",
    state: "SMCState",
    sites: dict[str, Tensor],
    log_factor: Tensor | None,
    log_increment: Tensor | None,
) -> None:
    """Raise FilterError naming the first factor that left a problem without weight, or is NaN or +inf."""
    if log_increment is None:
        return
    afters, log_weights = {}, state.log_weights
    factors = sites or ({} if log_factor is None else {"the step's log weight": log_factor})
    for name, factor in factors.items():
        afters[name] = log_weights = log_weights + factor
    if algorithm.potential is not None:
        afters["the potential"] = state.log_weights + log_increment
    for name, after in afters.items():
        no_weight = (after.isnan() | after.isposinf()).any(0)
        for bad, what in ((no_weight, "is NaN or +inf"), (all_dead(after), "left no weight")):
            bad = bad & ~all_dead(state.log_weights)
            if bool(bad.any()):
                label = name if name.startswith("the ") else f"site {name!r}"
                problems = sorted(set(algorithm.problem[bad].tolist()))
                raise FilterError(f"{label} {what} at depth {state.t} in problems {_some(problems)}")


def _some(problems: list[int]) -> str:
    return str(problems if len(problems) <= 8 else problems[:8])[:-1] + ("]" if len(problems) <= 8 else ", ...]")
