"""Effect handlers: the same step program draws from the prior, from a guide, or with keyed noise.

    step(state, t, context)                       the prior: what exists at inference
    with guided(guide, evidence) as q: step(...)  eps from q; both densities known, KL [..., B] collected
    with weighted() as w: step(...)               log weights: observed sites, and log p - log q of guided ones

`guided` and `seeded` go *outside* the plates: they see each site as the plates have expanded it.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import pyro
import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from probgram import state as trees
from probgram.chain import Chain, Guide


class GuidedSite(NamedTuple):
    """One transition as `guided` saw it."""

    t: int
    proposal: Any
    prior: TorchDistribution  # expanded to the plates
    posterior: TorchDistribution | None  # expanded likewise; None without a guide
    value: Tensor  # the eps that was drawn
    kl: Tensor  # KL(q || p) in nats, [..., B], scaled and masked as the site is; 0 without a guide


class guided(Messenger):  # noqa: N801 - handlers are lower case in Pyro
    """Fill each transition's site from the guide's posterior instead of the prior.

    Args:
        guide: its `posterior` is asked at every site that carries a proposal; None only records the sites.
        evidence: what `guide.encode(y)` returned.
        rows: bool `[..., B]`; where false, eps stays a prior draw and the KL is 0. None: all rows.

    Attributes:
        sites: a `GuidedSite` for each transition, in order. Observed sites (under `condition`) are left out.
    """

    def __init__(self, guide: Guide | None, evidence: Any, rows: Tensor | None = None) -> None:
        super().__init__()
        self.guide, self.evidence, self.rows = guide, evidence, rows
        self.sites: list[GuidedSite] = []

    @property
    def kl(self) -> Tensor:
        """Sum over transitions of KL(q || p), in nats, `[..., B]`."""
        return torch.stack([site.kl for site in self.sites]).sum(0)

    def __enter__(self) -> "guided":
        """Start with no sites."""
        self.sites = []
        return super().__enter__()

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if self.guide is None or msg["is_observed"] or msg["value"] is not None or "proposal" not in msg["infer"]:
            return
        prior = msg["fn"]
        posterior = self.guide.posterior(msg["infer"]["proposal"], self.evidence, msg["infer"]["t"])
        posterior = posterior.expand(prior.batch_shape)  # without it all particles would share one draw
        value = posterior.rsample() if posterior.has_rsample else posterior.sample()
        if self.rows is not None:
            kept = prior.rsample() if prior.has_rsample else prior.sample()
            value = trees.where(self.rows, value, kept)
        msg["value"] = value
        msg["infer"] |= {"posterior": posterior, "rows": self.rows}

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        infer = msg["infer"] or {}
        if msg["is_observed"] or "proposal" not in infer:
            return
        prior, posterior = msg["fn"], infer.get("posterior")
        if posterior is None:
            kl = torch.zeros(prior.batch_shape, device=msg["value"].device)
        else:
            kl = scale_and_mask(kl_divergence(posterior, prior), msg["scale"], msg["mask"])
            if self.rows is not None:
                kl = torch.where(self.rows, kl, 0.0)
        self.sites.append(GuidedSite(infer["t"], infer["proposal"], prior, posterior, msg["value"], kl))


class weighted(Messenger):  # noqa: N801
    """Collect the log weight of what happens inside: Σ log p(observed) + Σ (log p - log q) of guided sites.

    Enter it outside `guided`. `poutine.trace` with `compute_log_prob` gives the same sum at nine times the
    cost of a bare step.

    Attributes:
        log_weight: `[..., B]` once a site has contributed, 0.0 before.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_weight: Tensor | float = 0.0

    def __enter__(self) -> "weighted":
        """Start from log weight 0."""
        self.log_weight = 0.0
        return super().__enter__()

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        posterior = msg["infer"].get("posterior")
        if msg["is_observed"]:
            log_weight = msg["fn"].log_prob(msg["value"])
        elif posterior is not None:
            log_weight = msg["fn"].log_prob(msg["value"]) - posterior.log_prob(msg["value"])
            if msg["infer"]["rows"] is not None:
                log_weight = torch.where(msg["infer"]["rows"], log_weight, 0.0)
        else:
            return
        self.log_weight = self.log_weight + scale_and_mask(log_weight, msg["scale"], msg["mask"])


class _Notices(Messenger):
    """Whether any latent site was sampled inside."""

    def __init__(self) -> None:
        super().__init__()
        self.sampled = False

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        self.sampled |= isinstance(msg["fn"], TorchDistributionMixin)


def start(chain: Chain, context: Any, batch_shape: tuple[int, int]) -> Any:
    """The state at depth 0, every leaf `[N, B, ...]`; call it under the `particles` and `problems` plates.

    A leaf that `chain.initial` left at `[B, ...]` is broadcast; one that it sampled has its particles already.
    """
    with _Notices() as notices:
        state = chain.init(context)

    def spread(leaf: Tensor) -> Tensor:
        if notices.sampled and tuple(leaf.shape[:2]) == batch_shape:
            return leaf
        return leaf.expand(*batch_shape, *leaf.shape[1:])

    return trees.map_state(spread, state)


def validation(on: bool) -> AbstractContextManager[Any]:
    """Leave Pyro's checks as they are, or switch them off: they read values back, so a first step is enough."""
    return nullcontext() if on else pyro.validation_enabled(False)


BLOCK = 64  # particles whose noise comes from one key


class seeded(Messenger):  # noqa: N801
    """Draw every latent site from noise keyed by (seed, depth step, block of 64 particles).

    So a width split into chunks of a multiple of 64 sees the same noise, and the global generator is left
    alone. Gaussian sites are keyed by block; other sites by (seed, depth step) and the particles of the call.

    Args:
        seed: the run's seed.
        first_particle: index of this chunk's first particle in the whole run, a multiple of 64.
    """

    def __init__(self, seed: int, first_particle: int = 0) -> None:
        super().__init__()
        if first_particle % BLOCK:
            raise ValueError(f"a chunk must start at a multiple of {BLOCK} particles, got {first_particle}")
        self.seed, self.first_block = seed, first_particle // BLOCK
        self.generators: dict[tuple[int, str], torch.Generator] = {}
        self.step = 0

    def at(self, step: int) -> "seeded":
        """Key the draws that follow to depth step `step`."""
        self.step = step
        self.generators = {}
        return self

    def _generator(self, block: int, device: torch.device) -> torch.Generator:
        """Generator of one block at this depth step: sites of a step draw from it in turn."""
        key = (block, str(device))
        if key not in self.generators:
            generator = torch.Generator(device=device)
            generator.manual_seed(_mix(self.seed, self.step, block))
            self.generators[key] = generator
        return self.generators[key]

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        fn = msg["fn"]
        if msg["is_observed"] or msg["value"] is not None or not isinstance(fn, TorchDistributionMixin):
            return  # the last: a plate is a site too, and draws no noise
        base = fn.base_dist if isinstance(fn, Independent) else fn
        if isinstance(base, Normal):
            msg["value"] = base.loc + base.scale * self._noise(base)
        else:
            device = _device(fn)
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                torch.manual_seed(
                    int(
                        torch.randint(2**62, (), generator=self._generator(self.first_block, device), device=device)
                    )
                )
                msg["value"] = fn()

    def _noise(self, base: Normal) -> Tensor:
        shape, loc = base.batch_shape, base.loc
        blocks = range(self.first_block, self.first_block + -(-shape[0] // BLOCK))
        parts = []
        for i, block in enumerate(blocks):
            rows = min(BLOCK, shape[0] - i * BLOCK)
            generator = self._generator(block, loc.device)
            parts.append(torch.randn(rows, *shape[1:], generator=generator, device=loc.device, dtype=loc.dtype))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _device(fn: Any) -> torch.device:
    """Device of a distribution's parameters, however often it was wrapped (masked, transformed, independent)."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return next(getattr(fn, name).device for name in fn.arg_constraints if hasattr(fn, name))


def _mix(*words: int) -> int:
    """Hash integers to a 63-bit seed (splitmix64's finaliser), so that neighbouring keys are unrelated."""
    state = 0x9E3779B97F4A7C15
    for word in words:
        state = (state ^ (word & 0xFFFFFFFFFFFFFFFF)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state & 0x7FFFFFFFFFFFFFFF
