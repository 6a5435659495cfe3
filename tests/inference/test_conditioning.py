"""A generator conditioned on part of an answer by the filter: the law of enumeration, and of the draws that match.

p(y | y_seen) = E[p(y_seen | z_S) p(y_rest | z_S)] / p(y_seen): trajectories weighed by the likelihood of what was
seen, the rest drawn from their readout.
"""

import math

import pytest
import torch
from pyro import distributions as dist

from probgram import Chain
from probgram.inference import sample, smc
from probgram.inference.potentials import likelihood
from probgram.inference.resampling import multinomial, systematic

FIRST = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
ROWS = torch.tensor([[0.7, 0.3, 0.0], [0.1, 0.6, 0.3], [0.3, 0.3, 0.4]], dtype=torch.float64)
TOKENS = torch.tensor(
    [[[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]], [[0.2, 0.5, 0.3], [0.3, 0.3, 0.4]], [[0.1, 0.3, 0.6], [0.5, 0.2, 0.3]]],
    dtype=torch.float64,
)  # p(token l = v | h), [K, L, V]
DEPTH = 3
LAST = FIRST @ ROWS @ ROWS  # law of the last state
JOINT = torch.einsum("k,ku,kv->uv", LAST, TOKENS[:, 0], TOKENS[:, 1])  # p(y)
BLANK = torch.zeros(1, 2, dtype=torch.long)


class Generator(Chain):
    """Three states; two tokens read out of the last."""

    def initial(self, context):
        return context.new_zeros(len(context))

    def propose(self, state, context, t):
        return (FIRST.expand(*state.shape, 3) if t == 0 else ROWS[state]).log()

    def prior(self, proposal, t):
        return dist.Categorical(logits=proposal)

    def move(self, proposal, eps):
        return eps

    def readout(self, state):
        return dist.Categorical(probs=TOKENS[state]).to_event(1)


def conditioned(seen: torch.Tensor, rows: int, width: int, **choices):
    """The filter's answers `[N, B, 2]`, with what was seen put in, its weights `[N, B]` and log Z `[B]`."""
    run = smc.run(
        Generator(),
        BLANK.expand(rows, 2),
        width=width,
        depth=DEPTH,
        potential=likelihood(seen),
        decode="sample",
        keep="last",
        **choices,
    )
    assert torch.equal(run.log_evidence[-1], run.log_normalizer[-1])
    return torch.where(seen >= 0, seen, run.answers[-1].long()), run.weights[-1], run.log_evidence[-1]


@pytest.mark.parametrize("resample", [systematic, multinomial, None], ids=["systematic", "multinomial", "weighed"])
@pytest.mark.parametrize("seen", [(2, -1), (-1, 0), (1, 2), (-1, -1)], ids=str)
def test_the_conditional_law_of_the_rest_is_that_of_enumeration(seen, resample):
    """2,000 replicates; Z and Z · share are unbiased. Four standard errors, false alarm 6e-5 for each of 120."""
    answers, weights, log_z = conditioned(
        torch.tensor(seen), 2000, 20, resample=resample, ess_threshold=1.0, seed=3
    )
    z = log_z.exp()
    for u in range(3):
        for v in range(3):
            consistent = seen[0] in (-1, u) and seen[1] in (-1, v)
            exact = float(JOINT[u, v]) if consistent else 0.0
            hit = (answers == torch.tensor([u, v])).all(-1)
            estimate = z * (weights * hit).sum(0)
            assert abs(float(estimate.mean()) - exact) <= 4 * float(estimate.std()) / 2000**0.5 + 1e-9
    exact = sum(float(JOINT[u, v]) for u in range(3) for v in range(3) if seen[0] in (-1, u) and seen[1] in (-1, v))
    assert abs(float(z.mean()) - exact) <= 4 * float(z.std()) / 2000**0.5 + 1e-6
    assert exact == 1 or abs(exact - 1) > 0.5  # something was seen, and it says something


def test_the_filter_agrees_with_keeping_the_draws_that_match():
    """The restriction of the generator's own histogram; 4 standard errors each, false alarm 4e-4 for all six."""
    seen = torch.tensor([2, -1])
    draws = sample(Generator(), BLANK, width=20_000, depth=DEPTH, decode="sample", keep="last").answers[-1][:, 0]
    kept = draws[draws[:, 0] == 2][:, 1]
    answers, weights, _ = conditioned(seen, 1, 20_000, seed=1)
    for v in range(3):
        exact = float(JOINT[2, v] / JOINT[2].sum())
        share = float((weights[:, 0] * (answers[:, 0, 1] == v)).sum())
        error = math.sqrt(exact * (1 - exact))
        assert abs(float((kept == v).double().mean()) - exact) < 4 * error / len(kept) ** 0.5
        assert abs(share - exact) < 4 * error / 5_000**0.5  # no fewer effective draws than that
        assert abs(exact - float(JOINT[:, v].sum())) > 0.02  # and it is not the law of the token itself
