"""What goes wrong with weights: found on the device, named with problem and depth at the end of the run.

The twin of `probgram.inference.faults`. A compiled loop cannot stop in the middle: it notes the depth at which a
problem's weights became NaN or all vanished, and the run says so when it is over.
"""

import warnings

import jax.numpy as jnp
import numpy as np
from jax import Array


class FilterError(ValueError):
    """A weight is NaN."""


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
        "computed something that is no weight (NaN is a missing value in arguments of NumPyro models only)"
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
        f"all weights vanished in problem {', '.join(names)}{more}: log_normalizer is -inf there",
        RuntimeWarning,
        stacklevel=3,
    )


def _some(problems: list[int]) -> str:
    return str(problems if len(problems) <= 8 else problems[:8])[:-1] + ("]" if len(problems) <= 8 else ", ...]")
