"""Which answer a trajectory's own noise argues for: what the target rule `attributed` asks.

    s_m = Σ_t log q(eps_t | u_t, y_m)  +  KL(p(eps_t | u_t) || q(eps_t | u_t, y_m))       nats, up to a constant

Here is how it is computed; why it is so is in `probgram.inference.targets`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from probgram import state as trees
from probgram.chain import Chain, Guide
from probgram.inference.handlers import GuidedSite

AT_ONCE = 8  # batches' worth of answers that the guide is asked about at a time: a bound on memory
WHOLE = 64  # answers are asked about in multiples of so many


def said_by_noise(chain: Chain, guide: Guide, sites: list[GuidedSite], answers: Tensor, counts: Tensor) -> Tensor:
    """What the noise of a depth step says for each known answer, up to what a problem's answers share.

    Only problems with several answers are looked at, an answer a row: no padding is computed.

    Args:
        chain: whose prior the noise is judged by.
        guide: the law of noise given an answer.
        sites: the transitions, with proposals `[N, B, ...]` and noise.
        answers: known answers, padded, `[B, M, L]`.
        counts: how many are known, `[B]`, on the host.

    Returns:
        nats, `[N, B, M]`; 0 for padding and for the answer of a problem that has one.
    """
    said = torch.zeros(len(sites[0].value), *answers.shape[:2], device=answers.device)
    ambiguous = counts > 1
    several = (torch.arange(answers.shape[1]) < counts[:, None]) & ambiguous[:, None]
    rows, answer = several.nonzero(as_tuple=True)  # R of them
    if not len(rows):
        return said
    device, values = answers.device, guide.token_values
    problems, of = ambiguous.nonzero()[:, 0].to(device), (ambiguous.cumsum(0) - 1)[rows].to(device)
    rows, answer = rows.to(device), answer.to(device)
    given = answers[rows, answer]
    # Twice: so that it is worth the gathering.
    if values is not None and 2 * values * len(problems) < len(rows):
        scores = _by_token(chain, guide, values, sites, problems, of, given)
    else:
        scores = _by_answer(chain, guide, sites, rows, given)
    said[:, rows, answer] = scores.float()
    return said


def _by_answer(chain: Chain, guide: Guide, sites: list[GuidedSite], rows: Tensor, answers: Tensor) -> Tensor:
    """Scores of answers `[R, L]` of the problems `rows` `[R]`, `[N, R]`.

    R is another number each time, and a library of kernels prepares itself for every new shape: repeated rows fill
    it up to one of few numbers.
    """
    (n, b), number = sites[0].value.shape[:2], len(rows)
    filled = torch.arange(-(-number // WHOLE) * WHOLE, device=rows.device) % number
    rows, answers = rows[filled], answers[filled]
    return torch.cat(
        [
            _asked(chain, guide, sites, few, some.expand(n, -1, -1))
            for few, some in zip(rows.split(AT_ONCE * b), answers.split(AT_ONCE * b), strict=True)
        ],
        dim=1,
    )[:, :number]


def _asked(chain: Chain, guide: Guide, sites: list[GuidedSite], rows: Tensor, answers: Tensor) -> Tensor:
    evidence = guide.encode(answers)
    scores = []
    for site in sites:
        proposal = trees.map_state(lambda leaf: leaf[:, rows], site.proposal)  # [N, R, ...]
        posterior = guide.posterior(proposal, evidence, site.t)
        # log p(eps | u) is the same for every answer, and so is left out.
        said = posterior.log_prob(site.value[:, rows])
        scores.append(said + kl_divergence(chain.prior(proposal, site.t), posterior))
    return torch.stack(scores).sum(0)


def _by_token(
    chain: Chain,
    guide: Guide,
    values: int,
    sites: list[GuidedSite],
    problems: Tensor,
    of: Tensor,
    answers: Tensor,
) -> Tensor:
    """The same from a table of what the noise at each token says for each of its values.

    A graph of ten vertices has hundreds of colourings and three colours: the guide is asked three times.
    `problems` `[P]` are those with several answers, and answer r is of problem `of[r]` of them.
    """
    length = answers.shape[-1]
    constant = torch.arange(values, device=answers.device)[:, None].expand(-1, length)
    evidence = guide.encode(constant)[:, None, None]  # [V, 1, 1, ...]
    table: Any = 0.0
    for site in sites:
        proposal = trees.map_state(lambda leaf: leaf[:, problems], site.proposal)  # [N, P, ...]
        everywhere = trees.map_state(lambda leaf: leaf.expand(values, *leaf.shape), proposal)
        posterior = guide.posterior(everywhere, evidence, site.t).base_dist
        prior = chain.prior(proposal, site.t).base_dist
        said = posterior.log_prob(site.value[:, problems]) + kl_divergence(prior, posterior)
        table = table + said.sum(-1)[..., -length:].permute(2, 3, 0, 1)  # [P, L, V, N]
    # Padding, below 0, is the same in all answers of a problem: any value adds the same to them.
    return table[of[:, None], torch.arange(length, device=of.device), answers.clamp(min=0)].sum(1).T
