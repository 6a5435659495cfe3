"""The conditional filter, NUTS and a trained guide against exact laws and each other: `benchmarks.gold_posterior`.

Bounds: |z| of 36 means and 36 variances below 5, which a right candidate exceeds with probability 1e-4 where its
draws are normal; p-values after Holm above 1e-3, a false alarm of one in a thousand. Seeds are fixed.
"""

import numpy as np
import pytest

pytest.importorskip("numpyro", reason="needs probgram[jax]")

from benchmarks import gold_posterior as gold
from benchmarks.two_samples import Moments, judge

BOUND, ALPHA = 5.0, 1e-3


@pytest.fixture(scope="module")
def linear() -> tuple[gold.Draws, list[Moments]]:
    """The exact law of the linear case: draws, and moments."""
    means, covariances, draws = gold.exact(gold.CASES["linear"], draws=4000)
    none = np.zeros_like(means[0])
    return draws, [Moments(m, none, np.diag(c), none) for m, c in zip(means, covariances, strict=True)]


def agrees(figures: dict) -> bool:
    return max(figures["z_mean"], figures["z_var"]) < BOUND and min(figures["ks"], figures["energy"]) > ALPHA


def test_particle_gibbs_has_the_law_of_the_kalman_smoother_over_states_and_noise(linear):
    draws, known = linear
    found = gold.gibbs(gold.CASES["linear"], chains=64, sweeps=20, burn_in=4, width=64)
    assert agrees(judge(found.values, draws.values, known, number=250))


def test_a_candidate_that_is_too_narrow_is_told_apart(linear):
    """The judgement can fail: draws pulled halfway to their means."""
    draws, known = linear
    narrow = [0.5 * (v + v.mean((0, 1))) for v in draws.values]
    figures = judge(narrow, draws.values, known)
    assert figures["z_var"] > BOUND and figures["energy"] < 0.01
    assert figures["z_mean"] < 2 * BOUND  # means are kept, and their standard errors halved


def test_particle_gibbs_gives_both_answers_their_enumerated_shares():
    """Chi-square over all 64 paths, 10,000 replicates; the filter of two particles that it starts from fails it."""
    found = gold.answers(replicates=10_000, sweeps=4)
    assert found["rows"]["filter"]["p"] > ALPHA > 1e3 * found["rows"]["start"]["p"]
    assert found["jumps between answers a sweep"] > 0.1 and found["two answers hold"] > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", list(gold.CASES))
def test_nuts_the_filter_and_the_guide_agree_as_far_as_each_can(name):
    """NUTS converges; the filter has its law; the guide has its means nearly, and variances that are no larger."""
    rows = {candidate: figures for candidate, _, figures in gold.compare(gold.CASES[name])}
    assert rows["NUTS"]["r_hat"] < 1.01 and rows["NUTS"]["ess"] > 1000 and not rows["NUTS"]["divergent"]
    assert agrees(rows["filter"]) and rows["filter"]["r_hat"] < 1.01
    if name == "linear":
        assert agrees(rows["NUTS"])
        # The bound comes near the best that independent features can do, and cannot pass it but for noise.
        for reached, best in zip(rows["guide"]["KL(q || p)"], rows["guide"]["attainable KL"], strict=True):
            assert best - 0.1 < reached < best + 0.2
    assert (
        rows["guide"]["shift"] < 0.5 and 0.3 < rows["guide"]["var_ratio"][0] <= rows["guide"]["var_ratio"][1] < 1.2
    )
