"""Effect handlers: the same step program draws from the prior, from a guide, or with keyed noise.

    step(state, t, context)                       the prior: what exists at inference
    with guided(guide, evidence) as q: step(...)  eps from q; both densities known, KL [..., B] collected
    with weighted() as w: step(...)               log weights: observed sites, and log p - log q of guided ones

The twin of `probgram.inference.handlers`. They act while JAX traces, so a compiled step pays nothing for them; and
so they belong *inside* the body of a scan: outside of it they would see no site, without a word. Their sums go into
the scan's carry or its outputs. All go outside the plates: they see each site as the plates have expanded it.
"""

import math
from collections.abc import Callable
from numbers import Integral
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions.distribution import ExpandedDistribution, MaskedDistribution, Unit
from numpyro.distributions.kl import kl_divergence
from numpyro.distributions.util import is_identically_one
from numpyro.primitives import Messenger

from probgram.models.on_jax.chain import Guide

BLOCK = 64  # particles whose noise comes from one key


class GuidedSite(NamedTuple):
    """One transition as `guided` saw it."""

    t: Any
    proposal: Any
    prior: dist.Distribution  # expanded to the plates
    posterior: dist.Distribution | None  # expanded likewise; None without a guide
    value: Array  # the eps that was drawn
    kl: Array  # KL(q || p) in nats, [..., B], as `counted`; 0 without a guide
    counted: Callable[[Array], Array]  # scales and masks a KL as the site is, and makes it 0 where no guide acted


class _Handler(Messenger):
    """A handler that is entered as `with handler() as h`."""

    def __enter__(self) -> Any:
        super().__enter__()
        return self


class guided(_Handler):  # noqa: N801 - handlers are lower case in NumPyro
    """Fill each transition's site from the guide's posterior instead of the prior.

    Args:
        guide: its `posterior` is asked at every site that carries a proposal; None only records the sites.
        evidence: what `guide.encode(y)` returned.
        rows: bool `[..., B]`; where false, eps stays a prior draw and the KL is 0. None: all rows.

    Attributes:
        sites: a `GuidedSite` for each transition, in order. Observed sites (under `condition`) are left out.
    """

    def __init__(self, guide: Guide | None, evidence: Any, rows: Array | None = None) -> None:
        super().__init__()
        self.guide, self.evidence, self.rows = guide, evidence, rows
        self.sites: list[GuidedSite] = []

    @property
    def kl(self) -> Array:
        """Sum over transitions of KL(q || p), in nats, `[..., B]`."""
        return sum((site.kl for site in self.sites[1:]), self.sites[0].kl)

    def __enter__(self) -> "guided":
        """Start with no sites."""
        self.sites = []
        return super().__enter__()

    def process_message(self, msg: dict[str, Any]) -> None:
        """Draw from the posterior."""
        if msg["type"] != "sample" or self.guide is None or "proposal" not in msg["infer"]:
            return
        if msg["is_observed"] or msg["value"] is not None:
            return
        prior = msg["fn"]
        posterior = self.guide.posterior(msg["infer"]["proposal"], self.evidence, msg["infer"]["t"])
        posterior = posterior.expand(prior.batch_shape)  # without it all particles would share one draw
        value = draw(posterior)
        if self.rows is not None:
            value = where(self.rows, value, draw(prior))
        msg["value"] = value
        msg["infer"] |= {"posterior": posterior, "rows": self.rows}

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        """Record what was drawn, and the KL."""
        if msg["type"] != "sample" or msg["is_observed"] or "proposal" not in msg["infer"]:
            return
        prior, posterior = msg["fn"], msg["infer"].get("posterior")

        def counted(kl: Array) -> Array:
            kl = _scaled_by(kl, msg)
            return kl if self.rows is None else jnp.where(self.rows, kl, 0.0)

        kl = jnp.zeros(prior.batch_shape) if posterior is None else counted(divergence(posterior, prior))
        infer = msg["infer"]
        self.sites.append(GuidedSite(infer["t"], infer["proposal"], prior, posterior, msg["value"], kl, counted))


class weighted(_Handler):  # noqa: N801
    """Collect the log weight of what happens inside: Σ log p(observed) + Σ (log p - log q) of guided sites.

    Enter it outside `guided`.

    Args:
        plates: how many plates of the model's own stand to the right of `problems`; sites are summed over them.
        missing: whether NaN in an observation means that it was not made: it then weighs nothing.
        per_site: keep each site's own log weight too.
        filtering: refuse what would make Z wrong without a word: an observation that does not fit its site, and a
            proposal for a site that is scaled or masked, whose prior draws weigh nothing.

    Attributes:
        log_weight: `[..., B]` once a site has contributed, 0.0 before.
        observed: names of the sites that were observed.
        factors: names of those among them that are no likelihoods: `numpyro.factor`s, and what is scaled.
        sites: with `per_site`, name -> log weight `[..., B]`.
    """

    def __init__(
        self, plates: int = 0, missing: bool = False, per_site: bool = False, filtering: bool = False
    ) -> None:
        super().__init__()
        self.plates, self.missing, self.per_site, self.filtering = plates, missing, per_site, filtering
        self._clear()

    def _clear(self) -> None:
        self.log_weight: Array | float = 0.0
        self.observed: list[str] = []
        self.factors: list[str] = []
        self.sites: dict[str, Array] = {}

    def __enter__(self) -> "weighted":
        """Start from log weight 0."""
        self._clear()
        return super().__enter__()

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        """Add the site's log weight."""
        if msg["type"] != "sample":
            return
        fn, value, posterior = msg["fn"], msg["value"], msg["infer"].get("posterior")
        if msg["is_observed"]:
            log_weight = present_log_prob(fn, value) if self.missing else fn.log_prob(value)
            if self.filtering:
                _check_fits(msg["name"], fn, value, log_weight)
            self.observed.append(msg["name"])
            if isinstance(fn, Unit) or _is_scaled(msg):
                self.factors.append(msg["name"])
        elif posterior is not None:
            if self.filtering and (_is_scaled(msg) or isinstance(fn, MaskedDistribution)):
                raise ValueError(f"a guide cannot propose for the site {msg['name']!r}: it is scaled or masked")
            log_weight = fn.log_prob(value) - posterior.log_prob(value)
            if msg["infer"]["rows"] is not None:
                log_weight = jnp.where(msg["infer"]["rows"], log_weight, 0.0)
        else:
            return
        log_weight = _scaled_by(log_weight, msg)
        if self.plates:
            log_weight = log_weight.reshape(*log_weight.shape[: -self.plates], -1).sum(-1)
        if self.per_site:
            self.sites[msg["name"]] = log_weight
        self.log_weight = self.log_weight + log_weight


class seeded(_Handler):  # noqa: N801
    """Draw every latent site from noise keyed by (key, site, block of particles).

    So a width split into chunks of a multiple of 64 sees the same noise, on however many devices. Gaussian sites
    are keyed by block; other sites by their place among the step's sites and the chunk's first particle.

    Args:
        key: of this depth step, `jax.random.fold_in(key, t)`.
        first_particle: index of this chunk's first particle in the whole run, a multiple of `block`; may be traced.
        block: particles that share a key. The filter, which cannot be split by width, takes all of them.
    """

    def __init__(self, key: Array, first_particle: Any = 0, block: int = BLOCK) -> None:
        super().__init__()
        if not isinstance(first_particle, Array) and first_particle % block:
            raise ValueError(f"a chunk must start at a multiple of {block} particles, got {first_particle}")
        self.key, self.first_block, self.block, self.site = key, first_particle // block, block, 0

    def __enter__(self) -> "seeded":
        """Start from the step's first site."""
        self.site = 0
        return super().__enter__()

    def process_message(self, msg: dict[str, Any]) -> None:
        """Draw, or hand a key to whoever asks for one."""
        if msg["type"] == "prng_key":
            if msg["value"] is None:
                msg["value"] = self._next()
            return
        if msg["type"] != "sample" or msg["is_observed"] or msg["value"] is not None:
            return
        fn = msg["fn"]
        if isinstance(fn, dist.Delta):
            msg["value"] = fn.v
        elif isinstance(gaussian := inner(fn), dist.Normal):
            shape = fn.batch_shape + fn.event_shape
            msg["value"] = gaussian.loc + gaussian.scale * self._noise(shape, jnp.result_type(gaussian.loc))
        else:
            msg["value"] = fn.sample(jax.random.fold_in(self._next(), self.first_block))

    def _next(self) -> Array:
        self.site += 1
        return jax.random.fold_in(self.key, self.site)

    def _noise(self, shape: tuple[int, ...], dtype: Any) -> Array:
        key, n = self._next(), shape[0]
        first, count = self.first_block, -(-n // self.block)
        if count == 1:
            return jax.random.normal(jax.random.fold_in(key, first), shape, dtype)
        keys = jax.vmap(lambda block: jax.random.fold_in(key, block))(first + jnp.arange(count))
        noise = jax.vmap(lambda k: jax.random.normal(k, (self.block, *shape[1:]), dtype))(keys)
        return noise.reshape(-1, *shape[1:])[:n]


def start(model: Any, batch_shape: tuple[int, ...], *args: Any) -> Any:
    """Run `model.init(*args)`: the state at depth 0, every leaf `[N, B, ...]`; call it under the plates.

    A leaf that `init` left at `[B, ...]`, or without dimensions, is broadcast; one that it sampled has its
    particles already.
    """
    with notices() as seen:
        state = model.init(*args)

    def spread(path: Any, leaf: Array) -> Array:
        leaf = jnp.asarray(leaf)
        if seen.sampled and leaf.shape[: len(batch_shape)] == batch_shape:
            return leaf
        if leaf.ndim and leaf.shape[0] not in (1, batch_shape[-1]):
            name = "state" + jax.tree_util.keystr(path)
            raise ValueError(
                f"{name} must begin with the batch dimensions {list(batch_shape)}, got shape {list(leaf.shape)}"
            )
        return jnp.broadcast_to(leaf, (*batch_shape, *leaf.shape[1:]))

    return jax.tree_util.tree_map_with_path(spread, state)


class notices(_Handler):  # noqa: N801
    """Whether any latent site was sampled inside: `sampled`."""

    def __init__(self) -> None:
        super().__init__()
        self.sampled = False

    def process_message(self, msg: dict[str, Any]) -> None:
        """Look."""
        self.sampled |= msg["type"] == "sample"


def check_state(state: Any, batch_shape: tuple[int, ...]) -> None:
    """Raise ValueError where a leaf does not begin with `batch_shape`, the leaf named."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if tuple(leaf.shape[: len(batch_shape)]) != tuple(batch_shape):
            raise ValueError(
                f"state{jax.tree_util.keystr(path)} must begin with the batch dimensions {list(batch_shape)}, got "
                f"shape {list(leaf.shape)}"
            )


def where(mask: Array, chosen: Any, other: Any) -> Any:
    """Take `chosen` where `mask` `[..., B]` is true, else `other`, leaf by leaf."""

    def pick(a: Array, b: Array) -> Array:
        return jnp.where(mask.reshape(*mask.shape, *[1] * (max(a.ndim, b.ndim) - mask.ndim)), a, b)

    return jax.tree.map(pick, chosen, other)


def gather_ancestors(state: Any, ancestors: Array) -> Any:
    """Replace slot i of problem b by slot `ancestors[i, b]`: the copy step of resampling.

    Args:
        state: leaves `[N, B, event]`.
        ancestors: integers `[N, B]`.
    """
    if ancestors.shape[1] == 1:
        return jax.tree.map(lambda leaf: leaf[ancestors[:, 0]], state)
    problem = jnp.arange(ancestors.shape[1])
    return jax.tree.map(lambda leaf: leaf[ancestors, problem], state)


def draw(fn: dist.Distribution) -> Array:
    """One draw by the key of the handler around (`seeded`, or NumPyro's `seed`)."""
    if isinstance(fn, dist.Delta):
        return fn.v
    return fn.sample(numpyro.prng_key())


def divergence(q: dist.Distribution, p: dist.Distribution) -> Array:
    """KL(q || p) in nats; of categoricals too, which NumPyro's table does not have."""
    of_q, of_p = _categorical(q), _categorical(p)
    if of_q is not None and of_p is not None:
        (q_logits, events), (p_logits, _) = of_q, of_p
        log_q, log_p = jax.nn.log_softmax(q_logits, -1), jax.nn.log_softmax(p_logits, -1)
        share = jnp.exp(log_q)
        kl = jnp.where(share > 0, share * (log_q - log_p), 0.0).sum(-1)
        return kl.reshape(*kl.shape[: kl.ndim - events], -1).sum(-1) if events else kl
    return kl_divergence(q, p)


def mode(fn: dist.Distribution) -> Array:
    """The most probable value, which NumPyro has for few: of categoricals; of continuous ones the mean."""
    found = _categorical(fn)
    if found is not None:
        return found[0].argmax(-1)
    try:
        return fn.mode
    except NotImplementedError:
        return fn.mean


def _categorical(fn: dist.Distribution) -> tuple[Array, int] | None:
    events = len(fn.event_shape)
    shape, fn = fn.batch_shape + fn.event_shape, inner(fn)
    if not hasattr(fn, "logits") or fn.__class__.__name__ not in ("CategoricalLogits", "CategoricalProbs"):
        return None
    return jnp.broadcast_to(fn.logits, (*shape, fn.logits.shape[-1])), events


def inner(fn: Any) -> Any:
    """What `expand` and `to_event` were applied to; a mask stays."""
    while isinstance(fn, dist.Independent | ExpandedDistribution):
        fn = fn.base_dist
    return fn


def _is_scaled(msg: dict[str, Any]) -> bool:
    return not (msg["scale"] is None or is_identically_one(msg["scale"]))


def _scaled_by(log_weight: Array, msg: dict[str, Any]) -> Array:
    return log_weight if msg["scale"] is None else log_weight * msg["scale"]


def _check_fits(name: str, fn: dist.Distribution, value: Array, log_weight: Array) -> None:
    """Raise ValueError where an observation was broadcast against its site, and would be summed over."""
    events = len(fn.event_shape)
    if log_weight.shape != fn.batch_shape or (events and value.shape[-events:] != fn.event_shape):
        raise ValueError(
            f"the observation of {name!r} must fit its site {list(fn.batch_shape + fn.event_shape)}, "
            f"got shape {list(value.shape)} (problems=B for several series)"
        )


def present_log_prob(fn: dist.Distribution, value: Array) -> Array:
    """Log density of the elements of `value` that are not NaN, the others integrated out.

    Exact for independent elements and for Gaussians with a full covariance. Other events must be whole or
    missing as a whole; one that is not gives NaN.
    """
    value = jnp.asarray(value)
    if isinstance(fn, Unit) or not jnp.issubdtype(value.dtype, jnp.floating):
        return fn.log_prob(value)
    if isinstance(fn, ExpandedDistribution):
        return jnp.broadcast_to(present_log_prob(fn.base_dist, value), fn.batch_shape)
    if isinstance(fn, MaskedDistribution):
        return jnp.where(fn._mask, present_log_prob(fn.base_dist, value), 0.0)
    if isinstance(fn, dist.Independent):
        inner = present_log_prob(fn.base_dist, value)
        return inner.reshape(*inner.shape[: inner.ndim - fn.reinterpreted_batch_ndims], -1).sum(-1)
    absent = jnp.isnan(value)
    events = len(fn.event_shape)
    if isinstance(fn, dist.MultivariateNormal):
        # A missing element becomes an independent N(0, 1) at its mean; its density is taken out again.
        kept = (~absent).astype(value.dtype)
        covariance = fn.covariance_matrix * kept[..., None] * kept[..., None, :]
        covariance = covariance + jnp.eye(value.shape[-1]) * (1 - kept)[..., None]
        filled = jnp.where(absent, fn.loc, value)
        whole = dist.MultivariateNormal(fn.loc, covariance).log_prob(filled)
        return whole + 0.5 * math.log(2 * math.pi) * absent.sum(-1)
    # What fills an absent element is of the support, and does not matter.
    anything = fn.sample(jax.random.key(0))
    if events == 0:
        return jnp.where(absent, 0.0, fn.log_prob(jnp.where(absent, anything, value)))
    flat = absent.reshape(*absent.shape[: absent.ndim - events], -1)
    log_prob = fn.log_prob(jnp.where(absent, anything, value))
    return jnp.where(flat.all(-1), 0.0, jnp.where(flat.any(-1), jnp.nan, log_prob))


def as_key(key: Any) -> Array:
    """A typed PRNG key from a seed, a typed key, or a raw one of two words.

    Raises:
        ValueError: none of these, or a seed of more than 64 bits.
    """
    if isinstance(key, Integral) and not isinstance(key, bool):
        if not -(2**63) <= int(key) < 2**63:
            raise ValueError(f"key must be an integer seed of at most 64 bits, got {key}")
        high, low = divmod(int(key) % 2**64, 2**32)  # without x64 JAX keeps the low word alone
        return jax.random.wrap_key_data(jnp.asarray([high, low], jnp.uint32)) if high else jax.random.key(low)
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ():
        return key
    if hasattr(key, "dtype") and key.dtype == jnp.uint32 and key.shape == (2,):
        return jax.random.wrap_key_data(jnp.asarray(key))
    raise ValueError(f"key must be an integer seed or a JAX key, got {key!r}")
