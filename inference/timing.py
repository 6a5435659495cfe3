"""Interleaved timing: candidates take turns, so that whatever else the machine does hits all of them alike."""

import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Name = TypeVar("Name", bound=Hashable)


def interleaved(
    candidates: Mapping[Name, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[Name, NDArray[np.float64]]:
    """Seconds of each candidate in each round, after one round that is not counted.

    Args:
        candidates: name -> what is timed; on a GPU it must wait for its result.
        rounds: R, at least 1; medians and quartiles over them are robust to what else the machine does.
        clock: seconds that have passed.

    Returns:
        Name -> seconds `[R]`.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in candidates}
    for counted in [False] + [True] * rounds:
        for name, run in candidates.items():
            start = clock()
            run()
            if counted:
                seconds[name].append(clock() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def ratio(seconds: Mapping[Name, NDArray[np.float64]], name: Name, base: Name) -> str:
    """Median over rounds of one candidate's time over another's in the same round, with the quartiles."""
    low, middle, high = np.quantile(seconds[name] / seconds[base], (0.25, 0.5, 0.75))
    return f"{middle:.3f} [{low:.3f}, {high:.3f}]"
