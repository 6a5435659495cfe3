"""Every scheme against its definition: expected copies, order, extremes, problems side by side."""

import math

import numpy as np
import pytest
import torch

from probgram.inference import resampling
from probgram.inference.resampling import draw_uniforms, killing, multinomial, residual, ssp, stratified, systematic

SCHEMES = list(resampling.SCHEMES.values())
BOUNDED = [systematic, residual, ssp]  # never fewer copies than ⌊N·W⌋
ORDERED = [systematic, stratified, multinomial, residual, ssp]


def names(scheme) -> str:
    return scheme.__name__


def run(scheme, log_weights: torch.Tensor, seed: int = 0) -> torch.Tensor:
    uniforms = draw_uniforms(scheme, log_weights, torch.Generator().manual_seed(seed))
    return scheme(log_weights, uniforms)


def copies(ancestors: torch.Tensor) -> torch.Tensor:
    """How often each slot was chosen, `[N, B]`."""
    return torch.zeros_like(ancestors).scatter_add_(0, ancestors, torch.ones_like(ancestors))


@pytest.mark.parametrize("scheme", SCHEMES, ids=names)
@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_the_expected_number_of_copies_is_n_times_the_weight(scheme, n):
    """40,000 replicates as problems. A slot's copies have a variance of at most N·W (multinomial's, and the
    others' is smaller; killing's is at most N·W + N), so 5 standard errors give a false alarm below 1 in
    100,000 for the 13 slots of all sizes together, a scheme.
    """
    replicates = 40_000
    log_weights = torch.randn(n, 1, generator=torch.Generator().manual_seed(n)) * 1.5
    expected = n * log_weights.double().softmax(0)
    found = copies(run(scheme, log_weights.expand(n, replicates))).double().mean(1, keepdim=True)
    spread = expected + (n if scheme is killing else 0)
    assert ((found - expected).abs() <= 5 * (spread / replicates).sqrt() + 1e-12).all()


@pytest.mark.parametrize("scheme", BOUNDED, ids=names)
@pytest.mark.parametrize("n", [2, 5, 64, 1000])
def test_no_slot_gets_fewer_copies_than_its_whole_share(scheme, n):
    log_weights = torch.randn(n, 50, generator=torch.Generator().manual_seed(n))
    share = n * log_weights.double().softmax(0)
    found = copies(run(scheme, log_weights))
    assert (found >= (share - 1e-9).floor()).all()
    if scheme is not residual:
        assert (found <= (share + 1e-9).ceil()).all()


@pytest.mark.parametrize("scheme", ORDERED, ids=names)
def test_ancestors_do_not_decrease(scheme):
    ancestors = run(scheme, torch.randn(101, 40, generator=torch.Generator().manual_seed(0)))
    assert (ancestors.diff(dim=0) >= 0).all()


@pytest.mark.parametrize(
    ("scheme", "offsets"), [(systematic, lambda u, n: np.full(n, u[0])), (stratified, lambda u, n: u)]
)
def test_points_are_searched_as_the_textbook_does(scheme, offsets):
    log_weights = torch.randn(37, 5, generator=torch.Generator().manual_seed(3))
    uniforms = draw_uniforms(scheme, log_weights, torch.Generator().manual_seed(4))
    ancestors = scheme(log_weights, uniforms)
    for b in range(5):
        cumulative = log_weights[:, b].double().softmax(0).numpy().cumsum()
        points = (np.arange(37) + offsets(uniforms[:, b].numpy(), 37)) / 37
        assert ancestors[:, b].tolist() == np.searchsorted(cumulative / cumulative[-1], points).tolist()


def test_multinomial_draws_are_independent():
    """The number of copies of a slot is Binomial(N, W): its variance over 40,000 replicates within 5 standard
    errors (relative error of a variance, about sqrt(2 + excess kurtosis) / 200 < 1.5%): false alarm below 1 in 10⁶.
    """
    weight = torch.tensor([0.1, 0.2, 0.7])
    found = copies(run(multinomial, weight.log()[:, None].expand(3, 40_000))).double().var(1)
    assert torch.allclose(found, (3 * weight * (1 - weight)).double(), rtol=0.075)


def test_killing_keeps_the_best_in_its_slot():
    log_weights = torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    best = log_weights.argmax(0)
    ancestors = run(killing, log_weights)
    assert (ancestors.gather(0, best[None]) == best).all()


@pytest.mark.parametrize("scheme", SCHEMES, ids=names)
def test_equal_weights_where_copies_are_certain_keep_everything(scheme):
    ancestors = run(scheme, torch.zeros(64, 3))
    if scheme in (systematic, stratified, residual, ssp, killing):
        assert (ancestors.sort(0).values == torch.arange(64)[:, None]).all()


@pytest.mark.parametrize("scheme", SCHEMES, ids=names)
@pytest.mark.parametrize("n", [1, 2, 100_000])
def test_one_slot_with_all_the_weight_is_every_ancestor(scheme, n):
    log_weights = torch.full((n, 2), -math.inf)
    log_weights[0, 0] = log_weights[n - 1, 1] = -700.0  # a weight of 1e-304
    ancestors = run(scheme, log_weights)
    assert (ancestors[:, 0] == 0).all() and (ancestors[:, 1] == n - 1).all()


@pytest.mark.parametrize("scheme", SCHEMES, ids=names)
def test_weights_spread_over_three_hundred_orders_of_magnitude_stay_in_range(scheme):
    log_weights = torch.linspace(-690.0, 0.0, 1000)[:, None].expand(1000, 4)
    ancestors = run(scheme, log_weights)
    assert ancestors.dtype == torch.int64 and ancestors.min() >= 0 and ancestors.max() == 999


@pytest.mark.parametrize("scheme", SCHEMES, ids=names)
def test_a_slot_without_weight_is_never_chosen(scheme):
    log_weights = torch.zeros(50, 200)
    log_weights[::2] = -math.inf
    assert (run(scheme, log_weights) % 2 == 1).all()


@pytest.mark.parametrize("scheme", SCHEMES, ids=names)
def test_a_problem_whose_weights_all_vanished_keeps_its_slots_and_leaves_others_alone(scheme):
    log_weights = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    dead = log_weights.clone()
    dead[:, 1] = -math.inf
    uniforms = draw_uniforms(scheme, log_weights, torch.Generator().manual_seed(1))
    alone, beside = scheme(log_weights, uniforms), scheme(dead, uniforms)
    assert beside[:, 1].tolist() == list(range(9))
    assert (alone[:, [0, 2]] == beside[:, [0, 2]]).all()


@pytest.mark.parametrize("scheme", SCHEMES, ids=names)
def test_problems_side_by_side_are_resampled_as_each_alone(scheme):
    log_weights = torch.randn(33, 6, generator=torch.Generator().manual_seed(2))
    uniforms = draw_uniforms(scheme, log_weights, torch.Generator().manual_seed(5))
    together = scheme(log_weights, uniforms)
    for b in range(6):
        assert (scheme(log_weights[:, b : b + 1], uniforms[:, b : b + 1])[:, 0] == together[:, b]).all()


@pytest.mark.parametrize("scheme", SCHEMES, ids=names)
def test_a_million_particles_are_in_range_and_have_the_right_total(scheme):
    log_weights = torch.randn(1_000_000, 1, generator=torch.Generator().manual_seed(0)) * 3
    ancestors = run(scheme, log_weights)
    assert ancestors.min() >= 0 and ancestors.max() < 1_000_000
    if scheme is systematic:  # copies differ from N·W by less than one, whatever N
        share = 1_000_000 * log_weights.double().softmax(0)
        assert ((copies(ancestors) - share).abs() < 1 + 1e-6).all()
