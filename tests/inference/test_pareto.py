"""Pareto k-hat against ArviZ's."""

import arviz
import numpy as np
import pytest
import torch

from probgram.inference.diagnostics import pareto_k


@pytest.mark.parametrize("width", [26, 64, 101, 1_000])
def test_k_is_that_of_arviz(width):
    log_weights = torch.randn(width, 7, generator=torch.Generator().manual_seed(width)).double()
    log_weights *= torch.tensor([0.01, 0.3, 1.0, 2.0, 8.0, 100.0, 1.0])  # the sixth underflows
    log_weights[:, 6] = (3 * log_weights[:, 6]).round() / 3  # ties, at the cutoff too
    theirs = np.asarray(arviz.psislw(log_weights.T.numpy())[1])
    found = pareto_k(log_weights + 1_000.0).numpy()
    np.testing.assert_allclose(found, np.where(np.isinf(theirs), np.nan, theirs), rtol=1e-9)
    assert np.isfinite(found[:5]).all()


def test_what_cannot_be_told_is_nan():
    equal, narrow = torch.zeros(100, 2), torch.randn(20, 2)
    assert pareto_k(equal).isnan().all() and pareto_k(narrow).isnan().all()
    assert pareto_k(torch.full((100, 1), -torch.inf)).isnan().all()


def test_dead_particles_weigh_nothing_and_shapes_are_kept():
    log_weights = torch.randn(200, 2, 3, generator=torch.Generator().manual_seed(0)).double()
    log_weights[:50] = -torch.inf
    found = pareto_k(log_weights)
    assert found.shape == (2, 3)
    theirs = float(arviz.psislw(log_weights[:, 1, 2].numpy())[1])
    assert float(found[1, 2]) == pytest.approx(theirs, rel=1e-9)


def test_the_shape_of_pareto_weights_is_found():
    """Weights u^-k are Pareto of shape k, and 300 excesses are pulled to 0.5 by ten.

    The estimate's standard error is (1 + k) / √300; the mean of 20 is within four (false alarms: 6e-5 each).
    """
    generator = torch.Generator().manual_seed(1)
    for k in (0.3, 0.8):
        uniforms = torch.rand(10_000, 20, generator=generator, dtype=torch.float64)
        pulled = (300 * k + 5) / 310
        assert pareto_k(-k * uniforms.log()).mean() == pytest.approx(pulled, abs=4 * (1 + k) / (300 * 20) ** 0.5)
