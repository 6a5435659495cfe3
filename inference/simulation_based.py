"""Simulation-based calibration: whether an inference draws from the posterior of its own model.

    z, x ~ p(z, x)                        a truth and a series, from the model itself
    z^1 … z^L ~ the inference, given x    where z is a draw of the posterior, too
    rank of z among them                  uniform on 0 … L if the inference is right

Replicates are problems, side by side, each with a series of its own. Every number of the state at every depth step
has a rank; their histogram over replicates is tested by Pearson's chi-square. What a wrong inference does to it:
too narrow a posterior sends ranks to both ends, too wide a one to the middle, a shifted one to one end.

`filtered` draws from a particle filter, whose N particles stand for the posterior up to O(1 / N): N must be well
above the number of draws. `conditioned` tests the conditional filter, and is exact at any N: the truth itself is a
reference drawn from the smoothing law. Sweeps leave that law invariant and are reversible, so the truth, put at a
random place of a stationary series of L sweeps, has a uniform rank however much they depend on each other.

Sources: Cook, Gelman and Rubin, "Validation of software for Bayesian models using posterior quantiles", 2006; Talts
et al., arXiv 1804.06788 (ranks, and what their histograms say); Gandy and Scott, arXiv 2001.06465 (a random place
in a reversible chain); Andrieu, Lee and Vihola, "Uniform ergodicity of the iterated conditional SMC", 2018.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.messenger import Messenger
from torch import Tensor

from probgram import state as trees
from probgram.chain import Chain
from probgram.inference import smc
from probgram.inference.conditional import Path, conditional
from probgram.inference.genealogy import draw_slots
from probgram.inference.handlers import mix
from probgram.inference.kernels import PyroKernel, as_kernel
from probgram.state import widest


class Simulated(NamedTuple):
    """Truths of the model, and the series that they make.

    Fields:
        series: what was observed, `[B, S, ...]`, which is the model's argument.
        truth: the states after each depth step, leaves `[S, B, ...]`, with the noise that they were made from.
    """

    series: Tensor
    truth: Path


Infer = Callable[[Simulated, int, int], Any]  # (simulated, draws, seed) -> states, leaves [draws, S, B, ...]


class Ranks(NamedTuple):
    """Ranks of the truth among draws of an inference, and how uniform they are.

    Fields:
        ranks: how many of the draws lie below the truth, int64 `[S, F, B]`: F numbers of the state at each of S
            depth steps, B replicates. Ties are broken by chance.
        draws: L, so that ranks go from 0 to L.
        chi_square: `[S, F]`, with L degrees of freedom.
        p_value: `[S, F]`, the probability that uniform ranks have as large a chi-square. Good from about five
            replicates a rank on.
    """

    ranks: NDArray[np.int64]
    draws: int
    chi_square: NDArray[np.float64]
    p_value: NDArray[np.float64]

    @property
    def smallest(self) -> float:
        """The smallest p-value times their number (Bonferroni), at most 1.

        To call an inference wrong where this is below α blames a right one with probability α or less.
        """
        return float(min(1.0, self.p_value.min() * self.p_value.size))


@torch.no_grad()
def simulate(model: Any, blank: Tensor, depth: int, seed: int = 0, site: str = "obs") -> Simulated:
    """Draw states and observations from a model of series.

    Args:
        model: a chain such as `LinearGaussian`, or an object with Pyro `init` and `step`, that samples what it
            would observe past the end of its series.
        blank: a series of no length for each of B replicates, `[B, 0, ...]`, such as `torch.zeros(1000, 0, 2)`.
        depth: S, steps.
        seed: same seed, same device, same numbers.
        site: the observations' site without its number, "obs" for `obs_0`, `obs_1` …

    Raises:
        ValueError: the blank series has a length, or the model has no such site or is no Pyro model.
    """
    if blank.dim() < 2 or len(blank) < 2 or blank.shape[1] != 0:
        raise ValueError(
            f"blank must be a series of no length for each of at least 2 replicates, [B, 0, ...], got shape "
            f"{list(blank.shape)}"
        )
    if depth < 1:
        raise ValueError(f"depth must be at least 1, got {depth}")
    kernel = as_kernel(model, (blank,), problems=len(blank))
    if not isinstance(kernel, PyroKernel):
        raise ValueError("simulation needs a model with Pyro's sites: a PlainModel does not draw observations")
    key = mix(seed, 11)  # other noise than that of a filter with this seed
    states, noise, series = [], [], []
    with _Drawn() as drawn:
        latent = kernel.start(1, key).latent
        noise.append(drawn.take())
        for t in range(depth):
            latent = kernel.move(latent, t, key).latent
            sites = drawn.take()
            observed = [name for name in sites if re.sub(r"_\d+$", "", name) == site]
            if len(observed) != 1:
                raise ValueError(
                    f"step {t} must sample one site {site!r} of observations past the end of its series, got "
                    f"{', '.join(sites) or 'none'}"
                )
            series.append(sites.pop(observed[0]))
            noise.append(sites)
            states.append(trees.map_state(lambda leaf: leaf[0], latent))
    path = Path(tuple(noise), trees.map_state(lambda *rows: torch.stack(rows), *states))
    return Simulated(torch.stack(series, 1).reshape(len(blank), depth, *blank.shape[2:]).to(blank.dtype), path)


@torch.no_grad()
def simulation_based(
    model: Any, blank: Tensor, infer: Infer, depth: int, draws: int = 19, seed: int = 0, site: str = "obs"
) -> Ranks:
    """Rank truths of `model` among the draws that an inference makes given their series.

    Args:
        model: that the truths come from.
        blank: a series of no length for each of B replicates, `[B, 0, ...]`.
        infer: `filtered(...)`, `conditioned(...)`, or any function `(simulated, draws, seed) -> states` with leaves
            `[draws, S, B, ...]`; row s needs to be a draw given whatever part of the series the inference uses for
            s.
        depth: S.
        draws: L.
        seed: of truths and inference.
        site: as in `simulate`.

    Raises:
        ValueError: draws below 1, or of another shape than the truths.
    """
    from scipy.stats import chi2

    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    simulated = simulate(model, blank, depth, seed, site)
    truth, inferred = _flat(simulated.truth.states, 2), _flat(infer(simulated, draws, mix(seed, 12)), 3)
    if inferred.shape != (draws, *truth.shape):
        raise ValueError(
            f"the inference must return states {[draws, *truth.shape]} (draws, S, B, numbers of a state), got "
            f"{list(inferred.shape)}"
        )
    below, ties = (inferred < truth).sum(0), (inferred == truth).sum(0)  # [S, B, F]
    generator = torch.Generator().manual_seed(mix(seed, 13))
    chance = torch.rand(ties.shape, generator=generator, dtype=torch.float64)
    ranks = (below.cpu() + (chance * (ties.cpu() + 1)).long()).movedim(1, -1).numpy()  # [S, F, B]
    counts = (ranks[..., None] == np.arange(draws + 1)).sum(-2)  # [S, F, L + 1]
    expected = ranks.shape[-1] / (draws + 1)
    chi_square = ((counts - expected) ** 2 / expected).sum(-1)
    return Ranks(ranks, draws, chi_square, chi2(draws).sf(chi_square))


# -- inferences -----------------------------------------------------------------------------------------------


def filtered(model: Any, width: int, **choices: Any) -> Infer:
    """Draws of a particle filter at every step, p(z_t | x_1 … x_t), each in proportion to its weight.

    Args:
        model: that filters; another one than the truths' is what ranks must find out.
        width: N.
        **choices: further arguments of `smc.run`, such as `resample` and `guide`.
    """

    def infer(simulated: Simulated, draws: int, seed: int) -> Any:
        series, depth = simulated.series, simulated.series.shape[1]
        arguments = {"problems": None if isinstance(model, Chain) else len(series)} | choices
        run = smc.run(model, series, width=width, depth=depth, seed=seed, keep="latents", **arguments)
        device, steps = run.log_weights.device, torch.arange(depth)[:, None]
        generator = torch.Generator(device=device).manual_seed(mix(seed, 14))
        flat = run.log_weights.movedim(1, 0).flatten(1)  # [N, S·B]

        def pick() -> Tensor:
            uniforms = torch.rand(1, flat.shape[1], generator=generator, device=device, dtype=widest(device))
            return draw_slots(flat, uniforms).view(depth, -1)

        slots, problems = torch.stack([pick() for _ in range(draws)]), torch.arange(run.problems)
        return trees.map_state(lambda leaf: leaf[steps, slots, problems], run.states)

    return infer


def conditioned(model: Any, width: int, **choices: Any) -> Infer:
    """Sweeps of the conditional filter before and after the truth, p(z | x_1 … x_S).

    Args:
        model: that filters.
        width: N, at least 2.
        **choices: further arguments of `conditional`, but for ancestor sampling, whose sweeps are not reversible.

    Raises:
        ValueError: ancestor sampling.
    """
    if choices.get("ancestor_sampling"):
        raise ValueError("ranks need reversible sweeps, and those with ancestor sampling are not")

    def infer(simulated: Simulated, draws: int, seed: int) -> Any:
        problems = len(simulated.series)
        generator = torch.Generator().manual_seed(mix(seed, 15))
        place = torch.randint(draws + 1, (problems,), generator=generator)  # of the truth among the sweeps
        way = [_sweeps(model, width, simulated, draws, mix(seed, 16 + side), choices) for side in (0, 1)]
        after = torch.arange(draws)[:, None] >= place  # [draws, B]: the others come before, going backwards
        number = torch.where(after, torch.arange(draws)[:, None] - place, torch.arange(draws)[:, None])
        column = torch.arange(problems)

        def joined(back: Tensor, forth: Tensor) -> Tensor:  # [draws, S, B, ...] each
            chosen = torch.where(
                after.view(*after.shape, *[1] * (back.dim() - 2)).to(back.device),
                forth.movedim(1, 2)[number, column],
                back.movedim(1, 2)[number, column],
            )
            return chosen.movedim(2, 1)

        return trees.map_state(joined, *way)

    return infer


def _sweeps(model: Any, width: int, simulated: Simulated, draws: int, seed: int, choices: dict[str, Any]) -> Any:
    """Sweeps one after the other from the truth on, leaves `[draws, S, B, ...]`."""
    reference, rows = simulated.truth, []
    depth, problems = simulated.series.shape[1], None if isinstance(model, Chain) else len(simulated.series)
    for sweep in range(draws):
        key = mix(seed, sweep)
        arguments = {"problems": problems} | choices
        found = conditional(
            model, simulated.series, reference=reference, width=width, depth=depth, seed=key, **arguments
        )
        reference = found.path
        rows.append(reference.states)
    return trees.map_state(lambda *parts: torch.stack(parts), *rows)


class _Drawn(Messenger):
    """The values `[B, ...]` of all sites since they were last taken, under plates of one particle."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, Tensor] = {}

    def take(self) -> dict[str, Tensor]:
        """The values by name; from here on, new ones."""
        taken, self.values = self.values, {}
        return taken

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        if isinstance(msg["fn"], TorchDistributionMixin) and not msg["is_observed"]:
            self.values[msg["name"]] = msg["value"][0]


def _flat(states: Any, batch: int) -> Tensor:
    """The numbers of a state in one row, float64 `[..., F]`, after so many batch dimensions."""
    leaves = [leaf.flatten(batch) if leaf.dim() > batch else leaf[..., None] for _, leaf in trees.leaves(states)]
    return torch.cat([leaf.to(widest(leaf.device)) for leaf in leaves], -1)
