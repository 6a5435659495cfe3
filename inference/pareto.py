"""How heavy the tail of the weights is: Pareto k-hat, for all problems at once.

Sources: Zhang and Stephens, "A new and efficient estimation method for the generalized Pareto distribution",
Technometrics 51, 2009; Vehtari, Simpson, Gelman, Yao and Gabry, "Pareto smoothed importance sampling", JMLR 25,
2024.
"""

import math

import torch
from torch import Tensor

from probgram.state import widest

FEWEST = 5  # weights that a tail can be fitted to


def pareto_k(log_weights: Tensor) -> Tensor:
    """Shape of a generalised Pareto distribution fitted to the largest weights, of every problem.

    Below 0.5 the weights have a finite variance, and averages by weight converge as one is used to; from 0.7 on
    they cannot be relied on at any practical width. The tail is the largest min(N / 5, 3 √N) weights.

    Args:
        log_weights: `[N, ...]`, unnormalised.

    Returns:
        `[...]`, as `arviz.psislw` gives it, float64 (float32 on MPS). NaN, where ArviZ says infinite, with fewer
        than five weights above the tail's cutoff: nothing can be told of those, nor of equal weights, nor of up to
        20.
    """
    n = len(log_weights)
    wide = log_weights.to(widest(log_weights.device)).flatten(1)
    largest = math.ceil(min(n / 5, 3 * n**0.5))
    if largest + 1 > n or largest < FEWEST:
        return torch.full(log_weights.shape[1:], torch.nan, dtype=wide.dtype, device=wide.device)
    ordered = wide.sort(0, descending=True).values[: largest + 1]
    relative = ordered - ordered[:1]
    cutoff = relative[-1].clamp(min=math.log(torch.finfo(wide.dtype).tiny))
    # Ties with the cutoff do not belong to the tail; what does stands first, from the largest down.
    count = (relative[:-1] > cutoff).sum(0)  # [columns]
    k = _pareto_shape(relative[:-1].exp() - cutoff.exp(), count)
    return torch.where(count < FEWEST, torch.nan, k).reshape(log_weights.shape[1:])


def _pareto_shape(tail: Tensor, count: Tensor) -> Tensor:
    """Zhang and Stephens' estimate from excesses `[M, columns]`, from the largest down, of which `count` are real.

    Pulled towards 0.5 as if by ten more observations (Vehtari et al., appendix G).
    """
    real = torch.arange(len(tail), device=tail.device)[:, None] < count
    points = 30 + count.to(tail.dtype).sqrt().floor()  # of the grid over which the profile likelihood is averaged
    index = torch.arange(1, 31 + math.isqrt(len(tail)), dtype=tail.dtype, device=tail.device)[:, None]
    on_grid = index <= points
    quartile = (count - (count / 4 + 0.5).long()).clamp(min=0)  # counted from the largest
    scale = 3 * tail.gather(0, quartile[None]).clamp(min=torch.finfo(tail.dtype).tiny)
    theta = (1 - (points / (index - 0.5)).sqrt()) / scale + 1 / tail[:1]  # [points, columns]

    def shape(theta: Tensor) -> Tensor:  # [..., columns]: the mean over the tail of log(1 - theta x)
        logs = torch.where(real, torch.log1p(-theta[..., None, :] * tail), 0.0)
        return logs.sum(-2) / count

    found = shape(theta)
    log_likelihood = count * ((-theta / found).log() - found - 1)
    weight = log_likelihood.masked_fill(~on_grid, -torch.inf).softmax(0)
    weight = torch.where(weight >= 10 * torch.finfo(tail.dtype).eps, weight, 0.0)
    mean = torch.where(weight > 0, theta * weight, 0.0).sum(0) / weight.sum(0)
    return (count * shape(mean) + 10 * 0.5) / (count + 10)
