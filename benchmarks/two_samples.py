"""How far draws are from a law, or from other draws: moments, two-sample tests, counts, and how chains mix."""

from typing import Any, NamedTuple

import arviz as az
import numpy as np
import scipy.stats
import xarray as xr
from scipy.spatial.distance import cdist


def mixing(values: list[np.ndarray]) -> dict[str, float]:
    """ArviZ's largest R-hat and smallest effective sample size over coordinates."""
    labelled = xr.Dataset({f"problem_{b}": (("chain", "draw", f"c{b}"), v) for b, v in enumerate(values)})
    r_hat, ess = az.rhat(labelled), az.ess(labelled)
    return {
        "r_hat": float(max(r_hat[name].max() for name in labelled)),
        "ess": float(min(ess[name].min() for name in labelled)),
    }


class Moments(NamedTuple):
    """Means and variances `[C]` and their standard errors, 0 where exact."""

    mean: np.ndarray
    mean_se: np.ndarray
    var: np.ndarray
    var_se: np.ndarray


def moments(values: np.ndarray) -> Moments:
    """Of draws `[chains, draws, C]`; standard errors by the effective sample sizes of coordinates and squares."""
    mean = values.mean((0, 1))
    square = (values - mean) ** 2
    pair = {name: (("chain", "draw", "c"), v) for name, v in (("value", values), ("square", square))}
    size = az.ess(xr.Dataset(pair), method="mean")
    var = square.mean((0, 1))
    se = [np.sqrt(v.var((0, 1)) / size[name].values) for name, v in (("value", values), ("square", square))]
    return Moments(mean, se[0], var, se[1])


def independent(values: np.ndarray, number: int) -> np.ndarray:
    """`number` of the draws `[chains, draws, C]`, evenly spaced, as `[number, C]`."""
    flat = values.reshape(-1, values.shape[-1])
    return flat[np.linspace(0, len(flat) - 1, number).round().astype(int)]


def energy_p(a: np.ndarray, b: np.ndarray, permutations: int = 999, seed: int = 0) -> float:
    """P-value of the energy distance of two samples `[n, C]`, by permutation (Székely and Rizzo, 2004).

    Coordinates are scaled to a pooled standard deviation of 1. With equal sizes the statistic is -zᵀ D z / n², with
    D the distances of the pooled sample and z = ±1 for the sample a row belongs to.
    """
    both = np.concatenate([a, b])
    both = both / both.std(0)
    distance = cdist(both, both)
    labels = np.repeat([1.0, -1.0], len(a))
    generator = np.random.default_rng(seed)
    z = np.stack([labels, *(generator.permutation(labels) for _ in range(permutations))])
    statistic = -((z @ distance) * z).sum(1)
    return float((statistic >= statistic[0] * (1 - 1e-9)).mean())


def holm(p_values: np.ndarray) -> float:
    """The smallest p-value after Holm's correction: below alpha, one at least is rejected at the level alpha."""
    return float(min(1.0, np.min(p_values) * len(p_values)))


def judge(
    candidate: list[np.ndarray], gold: list[np.ndarray], known: list[Moments] | None = None, number: int = 500
) -> dict[str, Any]:
    """How far a candidate is from the gold law.

    Args:
        candidate: its draws of each problem, `[chains, draws, C]`.
        gold: draws of the gold law, likewise.
        known: its moments where they are exact.
        number: thinned draws that enter the two-sample tests, from each side.

    Returns:
        Largest |z| of means and of variances, range of the ratio of variances, largest difference of means in
        standard deviations, p-values (Holm over coordinates and problems) of Kolmogorov-Smirnov and of the energy.
    """
    z_mean, z_var, ratios, shift, ks, energy = [], [], [], [], [], []
    for b, (values, reference) in enumerate(zip(candidate, gold, strict=True)):
        here, there = moments(values), known[b] if known else moments(reference)
        z_mean.append(np.abs(here.mean - there.mean) / np.hypot(here.mean_se, there.mean_se))
        z_var.append(np.abs(here.var - there.var) / np.hypot(here.var_se, there.var_se))
        ratios.append(here.var / there.var)
        shift.append(np.abs(here.mean - there.mean) / np.sqrt(there.var))
        size = min(number, values.shape[0] * values.shape[1], reference.shape[0] * reference.shape[1])
        a, c = independent(values, size), independent(reference, size)
        ks += [scipy.stats.ks_2samp(a[:, j], c[:, j]).pvalue for j in range(a.shape[1])]
        energy.append(energy_p(a, c, seed=b))
    return {
        "z_mean": float(np.max(z_mean)),
        "z_var": float(np.max(z_var)),
        "shift": float(np.max(shift)),
        "var_ratio": [float(np.min(ratios)), float(np.max(ratios))],
        "ks": holm(np.array(ks)),
        "energy": holm(np.array(energy)),
    }


def judge_counts(drawn: np.ndarray, law: np.ndarray) -> dict[str, float]:
    """How far independent draws `[n]` from 0 to K - 1 are from a law `[K]` over them.

    Returns:
        Chi-square p-value, total variation, and the largest |z| of a count.
    """
    counts, expected = np.bincount(drawn, minlength=len(law)), len(drawn) * law
    return {
        "p": float(scipy.stats.chisquare(counts, expected).pvalue),
        "total_variation": float(np.abs(counts / len(drawn) - law).sum() / 2),
        "z": float(np.max(np.abs(counts - expected) / np.sqrt(expected * (1 - law)))),
    }
