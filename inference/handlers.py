"""Effect handlers: the same step program draws from the prior, from a guide, or with keyed noise.

    step(state, t, context)                       the prior: what exists at inference
    with guided(guide, evidence) as q: step(...)  eps from q; both densities known, KL [..., B] collected
    with weighted() as w: step(...)               log weights: observed sites, and log p - log q of guided ones

`guided` and `seeded` go *outside* the plates: they see each site as the plates have expanded it.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import pyro
import torch
from pyro.distributions import Delta, TorchDistribution, Unit
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from probgram import state as trees
from probgram.chain import Guide
from probgram.inference.seeds import mix


class GuidedSite(NamedTuple):
    """One transition as `guided` saw it."""

    t: int
    proposal: Any
    prior: TorchDistribution  # expanded to the plates
    posterior: TorchDistribution | None  # expanded likewise; None without a guide
    value: Tensor  # the eps that was drawn
    kl: Tensor  # KL(q || p) in nats, [..., B], as `counted`; 0 without a guide
    counted: Callable[[Tensor], Tensor]  # scales and masks a KL as the site is, and makes it 0 where no guide acted


def draw(fn: Any) -> Tensor:
    """One draw, with a gradient where there is one."""
    return fn.rsample() if fn.has_rsample else fn.sample()


class guided(Messenger):  # noqa: N801 - handlers are lower case in Pyro
    """Fill each transition's site from the guide's posterior instead of the prior.

    Args:
        guide: its `posterior` is asked at every site that carries a proposal; None only records the sites.
        evidence: what `guide.encode(y)` returned.
        rows: bool `[..., B]`; where false, eps stays a prior draw and the KL is 0. None: all rows.
        draw: draws from a distribution; by default with the global generator.

    Attributes:
        sites: a `GuidedSite` for each transition, in order. Observed sites (under `condition`) are left out.
    """

    def __init__(
        self,
        guide: Guide | None,
        evidence: Any,
        rows: Tensor | None = None,
        draw: Callable[[Any], Tensor] = draw,
    ) -> None:
        super().__init__()
        self.guide, self.evidence, self.rows, self.draw = guide, evidence, rows, draw
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
        value = self.draw(posterior)
        if self.rows is not None:
            value = trees.where(self.rows, value, self.draw(prior))
        msg["value"] = value
        msg["infer"] |= {"posterior": posterior, "rows": self.rows}

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        infer = msg["infer"] or {}
        if msg["is_observed"] or "proposal" not in infer:
            return
        prior, posterior = msg["fn"], infer.get("posterior")
        scale, mask = msg["scale"], msg["mask"]

        def counted(kl: Tensor) -> Tensor:
            kl = scale_and_mask(kl, scale, mask)
            return kl if self.rows is None else torch.where(self.rows, kl, 0.0)

        if posterior is None:
            kl = torch.zeros(prior.batch_shape, device=msg["value"].device)
        else:
            kl = counted(kl_divergence(posterior, prior))
        self.sites.append(GuidedSite(infer["t"], infer["proposal"], prior, posterior, msg["value"], kl, counted))


class weighted(Messenger):  # noqa: N801
    """Collect the log weight of what happens inside: Σ log p(observed) + Σ (log p - log q) of guided sites.

    Enter it outside `guided`. `poutine.trace` with `compute_log_prob` gives the same sum at nine times the
    cost of a bare step.

    Args:
        plates: how many plates of the model's own stand to the right of `problems`; sites are summed over them.
        missing: whether NaN in an observation means that it was not made: it then weighs nothing. Each observation
            is looked at, which on a GPU waits for the device.
        per_site: keep each site's own log weight too.
        filtering: refuse what would make Z wrong without a word: an observation that does not fit its site, and a
            proposal for a site that is scaled or masked, whose prior draws weigh nothing.

    Attributes:
        log_weight: `[..., B]` once a site has contributed, 0.0 before.
        observed: names of the sites that were observed.
        factors: names of those among them that are no likelihoods: `pyro.factor`s, and what is scaled.
        sites: with `per_site`, name -> log weight `[..., B]`.
    """

    def __init__(
        self, plates: int = 0, missing: bool = False, per_site: bool = False, filtering: bool = False
    ) -> None:
        super().__init__()
        self.plates, self.missing, self.per_site, self.filtering = plates, missing, per_site, filtering
        self._clear()

    def _clear(self) -> None:
        self.log_weight: Tensor | float = 0.0
        self.observed: list[str] = []
        self.factors: list[str] = []
        self.sites: dict[str, Tensor] = {}

    def __enter__(self) -> "weighted":
        """Start from log weight 0."""
        self._clear()
        return super().__enter__()

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        posterior = msg["infer"].get("posterior")
        if msg["is_observed"]:
            if msg["infer"].get("_deterministic") or (self.missing and _absent(msg["value"])):
                return
            density = present_log_prob if self.missing else _log_prob
            log_weight = density(msg["fn"], msg["value"])
            if self.filtering:
                _check_fits(msg["name"], msg["fn"], msg["value"], log_weight)
            self.observed.append(msg["name"])
            if isinstance(msg["fn"], Unit) or _scaled(msg):
                self.factors.append(msg["name"])
        elif posterior is not None:
            if self.filtering and (_scaled(msg) or msg["mask"] is not None):
                raise ValueError(f"a guide cannot propose for the site {msg['name']!r}: it is scaled or masked")
            log_weight = msg["fn"].log_prob(msg["value"]) - posterior.log_prob(msg["value"])
            if msg["infer"]["rows"] is not None:
                log_weight = torch.where(msg["infer"]["rows"], log_weight, 0.0)
        else:
            return
        log_weight = scale_and_mask(log_weight, msg["scale"], msg["mask"])
        if self.plates:
            log_weight = log_weight.flatten(-self.plates).sum(-1)
        if self.per_site:
            self.sites[msg["name"]] = log_weight
        self.log_weight = self.log_weight + log_weight


def _scaled(msg: dict[str, Any]) -> bool:
    return isinstance(msg["scale"], Tensor) or msg["scale"] != 1


def _check_fits(name: str, fn: TorchDistribution, value: Tensor, log_weight: Tensor) -> None:
    """Raise ValueError where an observation was broadcast against its site, and would be summed over."""
    events = len(fn.event_shape)
    if log_weight.shape != fn.batch_shape or (events and value.shape[-events:] != fn.event_shape):
        raise ValueError(
            f"the observation of {name!r} must fit its site {list(fn.batch_shape + fn.event_shape)}, "
            f"got shape {list(value.shape)} (problems=B for several series)"
        )


def _absent(value: Tensor) -> bool:
    return value.numel() > 0 and value.is_floating_point() and bool(value.isnan().all())


def _log_prob(fn: TorchDistribution, value: Tensor) -> Tensor:
    return fn.log_prob(value)


def present_log_prob(fn: TorchDistribution, value: Tensor) -> Tensor:
    """Log density of the elements of `value` that are not NaN, the others integrated out.

    Exact for independent elements and for Gaussians with a full covariance. Other events must be whole or
    missing as a whole; one that is not gives NaN.
    """
    if isinstance(fn, Unit) or not value.is_floating_point():
        return fn.log_prob(value)
    if isinstance(fn, Independent):
        inner = present_log_prob(fn.base_dist, value)
        return inner.flatten(-fn.reinterpreted_batch_ndims).sum(-1)
    absent = value.isnan()
    events = len(fn.event_shape)
    if isinstance(fn, MultivariateNormal):
        # A missing element becomes an independent N(0, 1) at its mean; its density is taken out again.
        kept = (~absent).to(value)
        covariance = fn.covariance_matrix * kept[..., None] * kept[..., None, :] + torch.diag_embed(1 - kept)
        filled = torch.where(absent, fn.loc, value)
        whole = MultivariateNormal(fn.loc, covariance, validate_args=False).log_prob(filled)
        return whole + 0.5 * math.log(2 * math.pi) * absent.sum(-1)
    if events == 0:
        return torch.where(absent, 0.0, fn.log_prob(_filled(fn, value, absent)))
    flat = absent.flatten(-events)
    log_prob = fn.log_prob(_filled(fn, value, absent))
    return torch.where(flat.all(-1), 0.0, torch.where(flat.any(-1), torch.nan, log_prob))


def _filled(fn: TorchDistribution, value: Tensor, absent: Tensor) -> Tensor:
    """`value` with something of the support where it is absent; what, does not matter."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        anything = fn.sample()
    return torch.where(absent, anything, value)


class notices(Messenger):  # noqa: N801
    """Whether any latent site was sampled inside: `sampled`."""

    def __init__(self) -> None:
        super().__init__()
        self.sampled = False

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        self.sampled |= isinstance(msg["fn"], TorchDistributionMixin)


def start(model: Any, batch_shape: tuple[int, ...], *args: Any) -> Any:
    """Run `model.init(*args)`: the state at depth 0, every leaf `[N, B, ...]`; call it under the plates.

    A leaf that `init` left at `[B, ...]`, or without dimensions, is broadcast; one that it sampled has its
    particles already.
    """
    with notices() as seen:
        state = model.init(*args)

    for name, leaf in trees.leaves(state):
        own = seen.sampled and tuple(leaf.shape[: len(batch_shape)]) == batch_shape
        if not own and leaf.dim() and leaf.shape[0] not in (1, batch_shape[-1]):
            raise ValueError(
                f"{name} must begin with the batch dimensions {list(batch_shape)}, got shape {list(leaf.shape)}"
            )

    def spread(leaf: Tensor) -> Tensor:
        if seen.sampled and tuple(leaf.shape[: len(batch_shape)]) == batch_shape:
            return leaf
        return leaf.expand(*batch_shape, *leaf.shape[1:])

    return trees.map_state(spread, state)


def validation(on: bool) -> AbstractContextManager[Any]:
    """Leave Pyro's checks as they are, or switch them off: they read values back, so a first step is enough."""
    return nullcontext() if on else pyro.validation_enabled(False)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Put a module and what is in it into evaluation mode for the time being: a draw is the law of inference."""
    training = [part for part in model.modules() if part.training] if isinstance(model, torch.nn.Module) else []
    try:
        for part in training:
            part.training = False
        yield
    finally:
        for part in training:
            part.training = True


BLOCK = 64  # particles whose noise comes from one key


class seeded(Messenger):  # noqa: N801
    """Draw every latent site from noise keyed by (seed, depth step, block of 64 particles).

    So a width split into chunks of a multiple of 64 sees the same noise, and the global generator is left
    alone. Gaussian sites are keyed by block; other sites by (seed, depth step) and the particles of the call.

    Args:
        seed: the run's seed.
        first_particle: index of this chunk's first particle in the whole run, a multiple of 64.
        block: particles that share a key. The filter, which cannot be split by width, takes all of them.
        problems: `(rows, B)`, where the batch holds only these rows of B problems: they see the noise that they
            would see among all. None: the batch is whole.

    Attributes:
        gaussian: whether every site so far was Gaussian or without noise; only those keep it when rows leave.
        reparameterised: whether gradients flow through every draw so far.
    """

    def __init__(
        self,
        seed: int,
        first_particle: int = 0,
        block: int = BLOCK,
        problems: tuple[Tensor, int] | None = None,
    ) -> None:
        super().__init__()
        if first_particle % block:
            raise ValueError(f"a chunk must start at a multiple of {block} particles, got {first_particle}")
        self.seed, self.block, self.first_block = seed, block, first_particle // block
        self.problems, self.gaussian, self.reparameterised = problems, True, True
        self.generators: dict[tuple[int, str], torch.Generator] = {}
        self.step = self.others = 0

    def at(self, step: int) -> "seeded":
        """Key the draws that follow to depth step `step`."""
        self.step, self.others = step, 0
        self.generators = {}
        return self

    def _generator(self, block: int, device: torch.device) -> torch.Generator:
        """Generator of one block at this depth step: sites of a step draw from it in turn."""
        key = (block, str(device))
        if key not in self.generators:
            generator = torch.Generator(device=device)
            generator.manual_seed(mix(self.seed, self.step, block))
            self.generators[key] = generator
        return self.generators[key]

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        fn = msg["fn"]
        if msg["is_observed"] or msg["value"] is not None or not isinstance(fn, TorchDistributionMixin):
            return  # the last: a plate is a site too, and draws no noise
        base = fn.base_dist if isinstance(fn, Independent) else fn
        if isinstance(base, Normal):
            msg["value"] = base.loc + base.scale * self._noise(base)
        elif isinstance(base, Delta):
            msg["value"] = fn()
        else:
            self.gaussian = False
            self.reparameterised &= fn.has_rsample
            device = _device(fn)
            self.others += 1
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                seed_global(mix(self.seed, self.step, self.first_block, self.others), device)
                msg["value"] = fn()

    def _noise(self, base: Normal) -> Tensor:
        shape, loc = base.batch_shape, base.loc
        if self.problems is not None:
            shape = torch.Size((shape[0], self.problems[1], *shape[2:]))
        blocks = range(self.first_block, self.first_block + -(-shape[0] // self.block))
        parts = []
        for i, block in enumerate(blocks):
            rows = min(self.block, shape[0] - i * self.block)
            generator = self._generator(block, loc.device)
            parts.append(torch.randn(rows, *shape[1:], generator=generator, device=loc.device, dtype=loc.dtype))
        noise = parts[0] if len(parts) == 1 else torch.cat(parts)
        return noise if self.problems is None else noise[:, self.problems[0]]


def _device(fn: Any) -> torch.device:
    """Device of a distribution's parameters, however often it was wrapped (masked, transformed, independent)."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return next(getattr(fn, name).device for name in fn.arg_constraints if hasattr(fn, name))


def seed_global(key: int, device: torch.device) -> None:
    """Seed the global generators of the CPU and of one device, which the caller has forked.

    `torch.manual_seed` would seed all devices, those that were not forked too, and is slow without them.
    """
    torch.default_generator.manual_seed(key)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(key)
    elif device.type == "mps":
        torch.mps.manual_seed(key)


class keyed:  # noqa: N801
    """Fork the global generator and key it by (seed, depth step), for what a model draws by itself."""

    def __init__(self, seed: int, t: int, device: torch.device) -> None:
        self.key, self.device = mix(seed, t, 2), device
        self.fork = torch.random.fork_rng([device] if device.type == "cuda" else [])

    def __enter__(self) -> None:
        """Seed."""
        self.fork.__enter__()
        seed_global(self.key, self.device)

    def __exit__(self, *error: Any) -> None:
        """Put the generator back."""
        self.fork.__exit__(*error)
