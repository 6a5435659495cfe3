"""A rank's share of a global batch: all ranks draw the noise of all rows alike, and each keeps that of its own.

Rank r of W holds rows r, r + W, r + 2W, … of the global batch. The ranks' generators are seeded alike and stay in
step, since every draw is made for the whole batch; so a row sees the noise that it would see in one process, and
training on W ranks follows training on one, up to the order in which gradients are added. The price, W times as
many random numbers a rank, is nothing beside a network's step.
"""

import atexit
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from pyro.distributions import Delta, MaskedDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Independent, Normal, TransformedDistribution, Uniform

from probgram.inference.handlers import draw, mix, seed_global


@cache
def leave_at_exit() -> None:
    """Have this process leave the group of processes before Python ends.

    Gloo's threads outlive the interpreter otherwise, and now and then abort a program that had done its work.
    """
    atexit.register(_leave)


def _leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@dataclass(frozen=True)
class Share:
    """The rows of rank `rank` among `world` processes; by default there is one, and it has them all.

    What sums and gathers waits for the other ranks: all of them must come by.
    """

    rank: int = 0
    world: int = 1

    def own(self, values: Tensor, dim: int = 0) -> Tensor:
        """Of the whole batch along `dim`, this rank's rows."""
        return values.unflatten(dim, (-1, self.world)).select(dim + 1, self.rank)

    def whole(self, values: Tensor, device: torch.device) -> Tensor:
        """The whole batch, of which `values` `[b, ...]` on the host are this rank's rows; `device` carries them."""
        if self.world == 1:
            return values
        rows = values.to(device)
        parts = [torch.empty_like(rows) for _ in range(self.world)]
        torch.distributed.all_gather(parts, rows)
        return torch.stack(parts, 1).flatten(0, 1).cpu()

    def total(self, values: Tensor) -> Tensor:
        """Sum over the ranks, without a gradient."""
        if self.world == 1:
            return values
        values = values.detach().clone()
        torch.distributed.all_reduce(values)
        return values

    def some(self, here: bool, device: torch.device) -> bool:
        """Whether something is so on any rank; `device` carries the answer."""
        return here if self.world == 1 else bool(self.total(torch.tensor(int(here), device=device)))

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the elements of all ranks, as far as this rank adds to it: the ranks' mean is the whole."""
        if self.world == 1:
            return values.mean()
        count = self.total(torch.tensor(values.numel(), device=values.device))
        return values.sum() * self.world / count

    # -- noise ------------------------------------------------------------------------------------------------

    def uniform(self, *shape: int, device: torch.device, dtype: torch.dtype | None = None, dim: int = 1) -> Tensor:
        """Uniforms in [0, 1) of a shape whose dimension `dim` are this rank's rows."""
        return self.own(torch.rand(self._of_all(shape, dim), device=device, dtype=dtype), dim)

    def uniform_like(self, values: Tensor) -> Tensor:
        """Uniforms in [0, 1) of the shape of `values` `[N, b, ...]`."""
        if self.world == 1:
            return torch.rand_like(values)
        return self.uniform(*values.shape, device=values.device, dtype=values.dtype)

    def draw(self, fn: Any) -> Tensor:
        """A draw from a distribution over this rank's rows, batch shape `[N, b, ...]`.

        Of Gaussians, uniforms and what is made of them it is the draw that one process would make; of others it has
        the same law, keyed by rank.
        """
        if self.world == 1 or isinstance(fn, Delta):
            return draw(fn)
        if isinstance(fn, Independent | MaskedDistribution):
            return self.draw(fn.base_dist)
        if isinstance(fn, TransformedDistribution):
            value = self.draw(fn.base_dist)
            for transform in fn.transforms:
                value = transform(value)
            return value
        if isinstance(fn, Normal):
            noise = torch.randn(self._of_all(fn.batch_shape), dtype=fn.loc.dtype, device=fn.loc.device)
            return fn.loc + self.own(noise, 1) * fn.scale
        if isinstance(fn, Uniform):
            low, high = fn.low, fn.high
            return low + self.uniform(*fn.batch_shape, device=low.device, dtype=low.dtype) * (high - low)
        seed = int(torch.randint(2**62, ()))
        device = next(value.device for value in vars(fn).values() if isinstance(value, Tensor))
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            seed_global(mix(seed, self.rank), device)
            return draw(fn)

    def _of_all(self, shape: Any, dim: int = 1) -> tuple[int, ...]:
        return (*shape[:dim], shape[dim] * self.world, *shape[dim + 1 :])


class shared(Messenger):  # noqa: N801 - handlers are lower case in Pyro
    """Draw every site that nothing inside has filled as this rank's share of the whole batch's draw."""

    def __init__(self, share: Share) -> None:
        super().__init__()
        self.share = share

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        fn = msg["fn"]
        if msg["is_observed"] or msg["value"] is not None or not isinstance(fn, TorchDistributionMixin):
            return  # the last: a plate is a site too, and draws no noise
        msg["value"] = self.share.draw(fn)
