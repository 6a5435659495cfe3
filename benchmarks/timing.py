"""Interleaved timing: candidates take turns, so that whatever else the machine does hits all of them alike."""

import time
from collections.abc import Callable, Mapping

import numpy as np


def interleaved(candidates: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, np.ndarray]:
    """Seconds of each candidate in each round, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for counted in [False] + [True] * rounds:
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            if counted:
                seconds[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def ratio(seconds: dict[str, np.ndarray], name: str, base: str) -> str:
    """Median over rounds of one candidate's time over another's in the same round, with the quartiles."""
    low, middle, high = np.quantile(seconds[name] / seconds[base], (0.25, 0.5, 0.75))
    return f"{middle:.3f} [{low:.3f}, {high:.3f}]"
