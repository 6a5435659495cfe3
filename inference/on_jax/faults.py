"""What goes wrong with weights: found on the device, named with problem and depth at the end of the run.

The twin of `probgram.inference.faults`. A compiled loop cannot stop in the middle: it notes the depth at which a
problem's weights became NaN or all vanished, and the run says so when it is over. With `strict` it notes which
factor did that, too.
"""

import warnings
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
from jax import Array

if TYPE_CHECKING:
    from probgram.inference.on_jax.smc import Filter, SMCState

Faults = OrderedDict[str, Array]  # name of a factor -> is NaN or +inf, left no weight: bool [..., 2, B·I]


class FilterError(ValueError):
    """All weights of a problem vanished (with `strict`), or a weight is NaN."""


def all_dead(log_weights: Array) -> Array:
    """Problems `[B]` of which every weight `[N, B]` vanished."""
    return jnp.isneginf(log_weights.max(0))


def check_weights(nan: np.ndarray, islands: int) -> None:
    """Raise where a weight was NaN.

    Args:
        nan: depth at which that happened first, 0 where it did not, `[B·I]`.
        islands: I.

    Raises:
        FilterError: with the depth, and the problems of that depth.
    """
    if not nan.any():
        return
    first = int(nan[nan > 0].min())
    problems = sorted({int(column) // islands for column in np.flatnonzero(nan == first)})
    raise FilterError(
        f"log weights are NaN or +inf at depth {first} in problems {_some(problems)}: the model or the potential "
        "computed something that is no weight (NaN is a missing value in arguments of NumPyro models only); "
        "strict=True names the site"
    )


def report_dead(dead: np.ndarray, islands: int) -> None:
    """One warning that names the problems whose weights all vanished; `dead` `[B·I]` is the depth, 0: never."""
    parts = dead.reshape(-1, islands)
    last = np.where((parts > 0).all(1), parts.max(1), 0)  # with its last island
    if not last.any():
        return
    columns = np.flatnonzero(last)
    names = [f"{column} at depth {last[column]}" for column in columns[:5]]
    more = f" and {len(columns) - 5} more" if len(columns) > 5 else ""
    warnings.warn(
        f"all weights vanished in problem {', '.join(names)}{more}: log_normalizer is -inf there; "
        "strict=True names the site",
        RuntimeWarning,
        stacklevel=3,
    )


def factor_faults(
    algorithm: "Filter",
    state: "SMCState",
    sites: Mapping[str, Array],
    log_factor: Array | None,
    log_increment: Array | None,
) -> Faults:
    """For each factor of a step, in order, the problems that had weight and lost it, or whose is no weight.

    Args:
        algorithm: of the step.
        state: with the weights before the factors.
        sites: name -> log weight, summed over everything but `[..., B]`.
        log_factor: of the model, `[N, B]`; None where nothing weighs.
        log_increment: with that of the potential.
    """
    faults: Faults = OrderedDict()
    if log_increment is None:
        return faults
    log_weights, alive = state.log_weights, ~all_dead(state.log_weights)
    afters = {}
    factors = sites or ({} if log_factor is None else {"the step's log weight": log_factor})
    for name, factor in factors.items():
        afters[name] = log_weights = log_weights + factor
    if algorithm.potential is not None:
        afters["the potential"] = state.log_weights + log_increment
    for name, after in afters.items():
        faults[name] = jnp.stack([(jnp.isnan(after) | jnp.isposinf(after)).any(0), all_dead(after)]) & alive
    return faults


def check_factors(faults: Mapping[str, np.ndarray], first: int, islands: int) -> None:
    """Raise where a factor left a problem without weight, or is NaN or +inf.

    Args:
        faults: of `factor_faults`, a row a depth step, `[S, 2, B·I]`.
        first: depth of the first row.
        islands: I.

    Raises:
        FilterError: with the first factor, what it did, the depth and the problems.
    """
    found = [(row, name) for name, bad in faults.items() for row in np.flatnonzero(bad.any((1, 2)))]
    if not found:
        return
    row, name = min(found, key=lambda fault: fault[0])  # of equal depth the first factor
    no_weight, dead = faults[name][row]
    what, columns = ("is NaN or +inf", no_weight) if no_weight.any() else ("left no weight", dead)
    label = name if name.startswith("the ") else f"site {name!r}"
    problems = sorted({int(column) // islands for column in np.flatnonzero(columns)})
    raise FilterError(f"{label} {what} at depth {first + row} in problems {_some(problems)}")


def _some(problems: list[int]) -> str:
    return str(problems if len(problems) <= 8 else problems[:8])[:-1] + ("]" if len(problems) <= 8 else ", ...]")
