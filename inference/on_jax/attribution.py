"""Which answer a trajectory's own noise argues for: the twin of `probgram.inference.attribution`.

    s_m = Σ_t log q(eps_t | u_t, y_m)  +  KL(p(eps_t | u_t) || q(eps_t | u_t, y_m))       nats, up to a constant

Whether a table pays is only known at run time: both ways of asking are compiled, and one is run.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from probgram.inference.on_jax.handlers import GuidedSite, divergence


def said_by_noise(chain: Any, guide: Any, sites: list[GuidedSite], answers: Array, counts: Array) -> Array:
    """What the noise of a depth step says for each known answer, up to what a problem's answers share.

    Args:
        chain: whose prior the noise is judged by.
        guide: the law of noise given an answer.
        sites: the transitions, with proposals `[N, B, ...]` and noise.
        answers: known answers, padded, `[B, M, L]`.
        counts: how many are known, `[B]`.

    Returns:
        nats, `[N, B, M]`; 0 for padding and for the answer of a problem that has one.
    """
    ambiguous = counts > 1
    several = (jnp.arange(answers.shape[1]) < counts[:, None]) & ambiguous[:, None]  # [B, M]

    def by_answer() -> Array:
        return _by_answer(chain, guide, sites, answers, several)

    if guide.token_values is None:
        return by_answer()
    # Twice: so that it is worth the gathering.
    fewer = 2 * guide.token_values * ambiguous.sum() < several.sum()
    return jax.lax.cond(fewer, lambda: _by_token(chain, guide, sites, answers, several), by_answer)


def _by_answer(chain: Any, guide: Any, sites: list[GuidedSite], answers: Array, several: Array) -> Array:
    """B answers at a time, those of problems with several: no padding is computed."""
    n, (b, m) = len(sites[0].value), several.shape
    (wanted,) = several.reshape(-1).nonzero(size=b * m, fill_value=0)
    number = several.sum()

    def add(chunk: Array, scores: Array) -> Array:
        index = jax.lax.dynamic_slice_in_dim(wanted, chunk * b, b)
        real = chunk * b + jnp.arange(b) < number
        rows, answer = index // m, index % m
        y = answers[rows, answer]
        evidence = guide.encode(jnp.broadcast_to(y, (n, *y.shape)))
        said = jnp.zeros((n, b))
        for site in sites:
            proposal = jax.tree.map(lambda leaf: leaf[:, rows], site.proposal)  # [N, B, ...]
            posterior = guide.posterior(proposal, evidence, site.t)
            prior = chain.prior(proposal, site.t)
            # log p(eps | u) is the same for every answer, and so is left out.
            said = said + posterior.log_prob(site.value[:, rows]) + divergence(prior, posterior)
        return scores.at[:, rows, answer].add(jnp.where(real, said, 0.0).astype(scores.dtype))

    return jax.lax.fori_loop(0, -(-number // b), add, jnp.zeros((n, b, m), jnp.float32))


def _by_token(chain: Any, guide: Any, sites: list[GuidedSite], answers: Array, several: Array) -> Array:
    """The same from a table of what the noise at each token says for each of its values.

    A graph of ten vertices has hundreds of colourings and three colours: the guide is asked three times.
    """
    values, length = guide.token_values, answers.shape[-1]
    constant = jnp.broadcast_to(jnp.arange(values)[:, None], (values, length))
    evidence = guide.encode(constant)[:, None, None]  # [V, 1, 1, ...]
    table = jnp.zeros(())
    for site in sites:
        everywhere = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (values, *leaf.shape)), site.proposal)
        posterior = guide.posterior(everywhere, evidence, site.t).base_dist
        prior = chain.prior(site.proposal, site.t).base_dist
        said = posterior.log_prob(site.value) + divergence(prior, posterior)
        table = table + said.sum(-1)[..., -length:].transpose(2, 3, 0, 1)  # [B, L, V, N]
    # Padding, below 0, is the same in all answers of a problem: any value adds the same to them.
    problem, token = jnp.arange(len(answers))[:, None, None], jnp.arange(length)
    added = table[problem, token, jnp.maximum(answers, 0)].sum(2)  # [B, M, N]
    return jnp.where(several, jnp.moveaxis(added, -1, 0), 0.0).astype(jnp.float32)
