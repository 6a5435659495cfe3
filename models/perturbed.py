"""PTRM: a trained chain in fixed Gaussian noise, at test time only.

    z <- z + sigma xi,   xi ~ N(0, I)      the named leaves of the state, once a depth step
    z <- step(z)                           the chain's own depth step, nothing retrained

The noise goes in before the step, so the decoder and the heads see states that the chain itself made. N rollouts
and `best(run, head="halt")` are PTRM; the same chain under a halt-head potential, resampled, is BIGR.

Sources: Sghaier, Parviz and Jolicoeur-Martineau, "Probabilistic Tiny Recursive Model", arXiv 2605.19943; Corbett et
al., "Boosting Inference with Guided Reasoning", arXiv 2605.25230.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import pyro
import torch
from pyro import distributions as dist
from torch import Tensor

from probgram.chain import Chain, Context, State


class Perturbed(Chain):
    """A chain with one more site a depth step, `noise_t`; everything but the step is the inner chain's.

    `fit` would train the inner chain without the noise, so train it first.

    Args:
        chain: trained; kept as it is.
        sigma: standard deviation of the noise, above 0.
        on: names of the state's leaves that are perturbed; a state that is one tensor is called "state".
    """

    def __init__(self, chain: Chain, sigma: float, on: Sequence[str] = ("h", "l")) -> None:
        super().__init__()
        if not sigma > 0:
            raise ValueError(f"sigma must be above 0, got {sigma}")
        if isinstance(on, str) or not on:
            raise ValueError(f"on must be a sequence of leaf names, got {on!r}")
        self.chain, self.sigma, self.on = chain, float(sigma), tuple(on)
        self.transitions, self.fixed_depth = chain.transitions, chain.fixed_depth
        self.homogeneous, self.about = chain.homogeneous, dict(chain.about)

    def step(self, state: State, t: int, context: Context) -> State:
        """Perturb the state, then take the chain's depth step."""
        batch = self.chain.readout(state).batch_shape  # [..., B]: which dimensions of a leaf are its event
        leaves = _named(state)
        for name in self.on:
            if name not in leaves:
                raise ValueError(f"on must name leaves of the state, {', '.join(leaves)}, got {name!r}")
        flat = torch.cat([leaves[name].flatten(len(batch)) for name in self.on], -1)
        noise = pyro.sample(f"noise_{t}", dist.Normal(torch.zeros_like(flat), self.sigma).to_event(1))
        sizes = [leaves[name][(0,) * len(batch)].numel() for name in self.on]
        moved = {
            name: leaves[name] + part.reshape(leaves[name].shape)
            for name, part in zip(self.on, noise.split(sizes, -1), strict=True)
        }
        return self.chain.step(_replaced(state, moved), t, context)

    def configuration(self) -> dict[str, Any]:
        """The inner chain's name and configuration, and the noise."""
        inner = {"model": type(self.chain).__name__, "configuration": self.chain.configuration()}
        return {"chain": inner, "sigma": self.sigma, "on": list(self.on)}

    @classmethod
    def from_configuration(cls, configuration: dict[str, Any]) -> "Perturbed":
        """Build an untrained chain from the result of `configuration`."""
        from probgram import models

        inner = configuration["chain"]
        chain = getattr(models, inner["model"]).from_configuration(inner["configuration"])
        return cls(chain, configuration["sigma"], configuration["on"])


def _delegated(name: str) -> Callable[..., Any]:
    @wraps(getattr(Chain, name))
    def method(self: Perturbed, *args: Any) -> Any:
        return getattr(self.chain, name)(*args)

    return method


for _name in (
    "encode",
    "check",
    "check_answers",
    "init",
    "initial",
    "propose",
    "prior",
    "move",
    "readout",
    "heads",
):
    setattr(Perturbed, _name, _delegated(_name))


def _named(state: State) -> dict[str, Tensor]:
    if isinstance(state, Tensor):
        return {"state": state}
    return dict(state) if isinstance(state, dict) else state._asdict()


def _replaced(state: State, moved: dict[str, Tensor]) -> State:
    if isinstance(state, Tensor):
        return moved["state"]
    return state | moved if isinstance(state, dict) else state._replace(**moved)
