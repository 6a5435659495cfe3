"""Where a guide has to steer: KL(q(eps | u, y) || p(eps | u)) over depth and position."""

from typing import Any

import pyro
import torch
from pyro.distributions import Independent
from torch import Tensor
from torch.distributions import kl_divergence

from probgram.chain import Chain, Guide
from probgram.inference.handlers import guided, keyed, start, validation
from probgram.inference.sampling import as_problems


@torch.no_grad()
def guidance(chain: Chain, guide: Guide, x: Any, y: Any, width: int = 4, depth: int = 8, seed: int = 0) -> Tensor:
    """Run trajectories of the guide and take KL(q || p) of every depth step and position, in nats.

    The transitions of a depth step are summed. `kl.sum((0, -1)).mean(0)` is what the bound on log p(y | x) pays a
    problem, `kl.mean((1, 2))` the map over depth and position.

    Args:
        chain: the model.
        guide: its posterior.
        x: problems `[B, ...]`.
        y: what the guide sees, for a reasoner one answer each, `[B, L]`.
        width: N, trajectories of each problem.
        depth: S.
        seed: of the draws; the global generator is not touched.

    Returns:
        `[S, N, B, L]`. Positions are the first dimension of an eps of independent elements `[L, D]`; of any other
        eps L is 1.

    Raises:
        ValueError: x and y differ in number, width or depth is below 1, or no site of the chain is guided.
    """
    x = as_problems(x, chain)
    y = torch.as_tensor(y, device=x.device)
    for name, number in (("width", width), ("depth", depth)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    if len(y) != len(x):
        raise ValueError(f"x and y must have the same number of rows, got {len(x)} and {len(y)}")
    context, evidence = chain.encode(x), guide.encode(y)
    rows = []
    with (
        guided(guide, evidence) as q,
        pyro.plate("particles", width, dim=-2),
        pyro.plate("problems", len(x), dim=-1),
    ):
        with keyed(seed, -1, x.device):
            state = start(chain, (width, len(x)), context)
        for t in range(depth):
            q.sites.clear()
            with keyed(seed, t, x.device), validation(t == 0):
                state = chain.step(state, t, context)
            if not q.sites:
                raise ValueError(f"no site of {type(chain).__name__} carries a proposal, so nothing can be guided")
            rows.append(torch.stack([_by_position(site.posterior, site.prior) for site in q.sites]).sum(0))
    return torch.stack(rows)


def _by_position(posterior: Any, prior: Any) -> Tensor:
    """KL of one site, `[N, B, L]`."""
    whole = isinstance(posterior, Independent) and isinstance(prior, Independent)
    if whole and len(prior.event_shape) == prior.reinterpreted_batch_ndims == 2:
        return kl_divergence(posterior.base_dist, prior.base_dist).sum(-1)
    return kl_divergence(posterior, prior)[..., None]
