"""Forecasts: the states and observations that a filtered model expects next."""

import re
from typing import Any, NamedTuple

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.messenger import Messenger
from torch import Tensor

from probgram import state as trees
from probgram.inference.choices import reached
from probgram.inference.handlers import mix
from probgram.inference.kernels import PyroKernel, as_kernel
from probgram.trajectories import Trajectories


class Forecast(NamedTuple):
    """What may come next, in N weighted draws a problem.

    Fields:
        states: latents after each step, leaves `[S, N, B, ...]`.
        sites: every site that the steps sampled, `[S, N, B, ...]`, by its name without the step's number: under the
            name of the observations stands their predictive law.
        weights: of the draws, those of the run's last step, `[N, B]`.
    """

    states: Any
    sites: dict[str, Tensor]
    weights: Tensor

    def mean(self, site: str) -> Tensor:
        """Predictive mean of a site, `[S, B, ...]`; NaN for a problem whose weights all vanished."""
        values = self.sites[site]
        weights = torch.where(self.weights.sum(0) > 0, self.weights, torch.nan)
        weights = weights.reshape(*self.weights.shape, *[1] * (values.dim() - 3))
        return (weights * values).sum(1)


@torch.no_grad()
def forecast(model: Any, run: Trajectories, steps: int, *args: Any, seed: int = 0) -> Forecast:
    """Let the particles of a run go on with nothing to observe.

    Args:
        model: the run's: a `Chain`, or an object with Pyro `init` and `step` whose observed sites are given
            `obs=None` past the end of the series.
        run: has its last state; its problems ended together.
        steps: how many steps beyond the run's depth.
        *args: the run's own arguments; controls among them reach `steps` further.
        seed: of the draws.

    Raises:
        ValueError: the model observes something in these steps, or reads past the end of its series; the run is
            tilted by a potential that is no likelihood.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if run.state is None:
        raise ValueError("run must have its last state: one that was loaded from a file has none")
    if run.halted is not None and bool(run.halted.any()):
        raise ValueError(
            "the run holds trajectories that halted: they do not go on, so there is nothing to forecast"
        )
    if run.log_potential is not None and run.settings["potential"] and not run.settings["evidence"]:
        raise ValueError("the run is tilted by a potential that is no likelihood: forecast from run.untilted")
    kernel = as_kernel(model, args, problems=run.problems)
    if not isinstance(kernel, PyroKernel):
        raise ValueError(
            "forecast needs a model with Pyro's sites: a PlainModel weighs, but does not draw observations"
        )
    latent, depth, key = run.state, reached(run), mix(seed, 9)  # other noise than the run's
    states, sites = [], []
    for t in range(depth, depth + steps):
        with _Recorded() as recorded:
            try:
                moved = kernel.move(latent, t, key)
            except IndexError as error:
                raise ValueError(
                    f"step {t} reads past the end of the series: give its observed sites obs=None there"
                ) from error
        if recorded.observed:
            raise ValueError(f"step {t} observes something: a forecast begins where the series ends")
        latent = moved.latent
        states.append(latent)
        sites.append(recorded.values)
    names = set(sites[0]).intersection(*sites)
    shape = run.log_weights.shape[1:]
    return Forecast(
        trees.map_state(lambda *rows: torch.stack(rows), *states),
        {name: torch.stack([row[name].expand(*shape, *row[name].shape[2:]) for row in sites]) for name in names},
        run.weights[-1],
    )


class _Recorded(Messenger):
    """The values of all sites, by name without the number at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, Tensor] = {}
        self.observed = False

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        if isinstance(msg["fn"], TorchDistributionMixin):
            self.observed |= msg["is_observed"] and not (msg["infer"] or {}).get("_deterministic")
            self.values[re.sub(r"_\d+$", "", msg["name"])] = msg["value"]
