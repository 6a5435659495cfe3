"""Split R-hat against ArviZ's, and of runs whose R-hat is known."""

from dataclasses import replace

import arviz
import numpy as np
import pytest
import torch

from probgram import Trajectories, fields
from probgram.inference.rhat import blocks_of, islands_chance, islands_rhat, split_rhat, trajectories_rhat


def make_run(width: int, steps: int = 1, problems: int = 1, **changes) -> Trajectories:
    fields = {
        "x": torch.zeros(problems, 1),
        "answers": torch.zeros(steps, width, problems, 1, dtype=torch.uint8),
        "log_weights": torch.zeros(steps, width, problems),
    }
    return Trajectories(**(fields | changes))


# -- the measure ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("chains", "draws"), [(2, 4), (4, 11), (3, 50)])
def test_split_rhat_is_that_of_arviz(chains, draws):
    values = torch.randn(chains, draws, 5, generator=torch.Generator().manual_seed(0)).double()
    values[0, :, 1] += 2  # a chain apart
    values[..., 2] = values[..., 2].round()  # ties
    values[..., 3] = values[..., 3].exp().exp()  # a heavy tail
    values[0, :, 4] *= 5  # a chain that is wider
    for rank, method in ((True, "rank"), (False, "split")):
        theirs = [float(arviz.rhat(values[..., i].numpy(), method=method)) for i in range(5)]
        np.testing.assert_allclose(split_rhat(values, rank).numpy(), theirs, rtol=1e-12)


def test_more_dimensions_are_taken_element_by_element():
    values = torch.randn(4, 8, 2, 3, generator=torch.Generator().manual_seed(1))
    whole = split_rhat(values)
    assert whole.shape == (2, 3) and whole.dtype == torch.float64
    assert whole[1, 2] == split_rhat(values[:, :, 1, 2])


def test_values_that_never_differ_agree_and_halves_that_stay_apart_do_not():
    same = torch.full((3, 6), 0.1)
    assert split_rhat(same) == 1 and split_rhat(same, rank=False) == 1
    apart = torch.tensor([0.1, 0.2, 0.3])[:, None].expand(3, 6)
    assert split_rhat(apart).isinf() and split_rhat(apart, rank=False).isinf()


def test_too_few_draws_and_nan_cannot_be_told():
    assert split_rhat(torch.zeros(4, 3)).isnan() and split_rhat(torch.zeros(1, 9)).isnan()
    values = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    values[0, 0] = torch.nan
    assert split_rhat(values).isnan() and split_rhat(values, rank=False).isnan()
    with pytest.raises(ValueError, match=r"draws must be \[chains, draws, ...\], got shape \[3\]"):
        split_rhat(torch.zeros(3))


# -- islands --------------------------------------------------------------------------------------------------


def test_islands_of_a_run_lie_side_by_side():
    values = torch.randn(2, 24, 3, generator=torch.Generator().manual_seed(2)).double()
    run = make_run(24, steps=2, problems=3, settings={"islands": 3})
    by_hand = [[arviz.rhat(values[s, :, b].reshape(3, 8).numpy()) for b in range(3)] for s in range(2)]
    np.testing.assert_allclose(islands_rhat(run, values).numpy(), np.array(by_hand, dtype=float), rtol=1e-12)


def test_independent_draws_are_divided_into_four_and_narrow_ones_into_fewer():
    assert [blocks_of(make_run(n)) for n in (50, 16, 15, 8, 7)] == [4, 4, 3, 2, 1]
    exchanging = replace(make_run(16), settings={"islands": 2, "exchange": "ring", "resample": "systematic"})
    assert fields.islands_of(exchanging) == 1
    values = torch.randn(1, 50, 1, generator=torch.Generator().manual_seed(3)).double()
    by_hand = float(arviz.rhat(values[0, :48, 0].reshape(4, 12).numpy()))
    assert float(islands_rhat(make_run(50), values)[0, 0]) == pytest.approx(by_hand, rel=1e-12)
    assert islands_rhat(make_run(7), torch.zeros(1, 7, 1)).isnan().all()


def test_weighted_islands_are_drawn_anew_by_weight():
    """Weights of 0, 1 and 2 eighths of an island: every systematic draw copies a particle so often."""
    values = torch.randn(1, 16, 1, generator=torch.Generator().manual_seed(4)).double()
    weights = torch.tensor([2, 0, 1, 1, 2, 0, 0, 2, 1, 1, 0, 2, 2, 0, 1, 1])
    run = make_run(16, log_weights=weights.float().log()[None, :, None], settings={"islands": 2})
    drawn = values[0, :, 0].repeat_interleave(weights).reshape(2, 8)
    assert float(islands_rhat(run, values)[0, 0]) == pytest.approx(float(arviz.rhat(drawn.numpy())), rel=1e-12)


def test_islands_that_differ_are_beyond_chance_and_those_that_do_not_are_as_often_as_they_should():
    """500 problems without a difference: p <= 0.05 in 5%, within four standard errors (false alarms: 6e-5)."""
    generator = torch.Generator().manual_seed(5)
    rounded = torch.randn(
        1, 20, 500, generator=generator
    ).round()  # with ties, which make R-hat infinite here and there
    run = make_run(20, problems=500)
    chance = islands_chance(run, rounded, shuffles=19)
    assert chance.min() == 0.05 and chance.max() == 1
    assert (chance <= 0.05).float().mean() < 0.05 + 4 * (0.05 * 0.95 / 500) ** 0.5
    apart = torch.randn(2, 40, 1, generator=generator)
    apart[1, :10] += 4  # one quantity of two is enough
    assert islands_chance(make_run(40), apart) == 0.01


def test_the_weights_of_independent_particles_alone_are_no_disagreement():
    """Copies of heavy particles stand side by side, but particles are dealt, not copies (bound as above)."""
    generator = torch.Generator().manual_seed(6)
    values = torch.randn(1, 20, 500, generator=generator)
    run = make_run(20, problems=500, log_weights=2 * torch.randn(1, 20, 500, generator=generator))
    chance = islands_chance(run, values, shuffles=19)
    assert (chance <= 0.05).float().mean() < 0.05 + 4 * (0.05 * 0.95 / 500) ** 0.5


# -- trajectories ---------------------------------------------------------------------------------------------


def test_a_trapped_run_has_islands_that_agree_and_trajectories_that_do_not():
    """Each trajectory stays where it is, alternately at 0 and 1, with a little noise."""
    generator = torch.Generator().manual_seed(7)
    place = (torch.arange(32) % 2).float()[None, :, None]
    values = place + 0.3 * torch.randn(16, 32, 1, generator=generator)
    run = make_run(32, steps=16)
    assert islands_rhat(run, values)[-1] < 1.1
    assert trajectories_rhat(run, values)[-1] > 1.5
    mixing = torch.randn(16, 32, 1, generator=generator)
    assert trajectories_rhat(run, mixing)[-1] < 1.1


def test_trajectories_use_the_later_half_of_the_steps_so_far():
    values = torch.randn(11, 3, 2, generator=torch.Generator().manual_seed(8)).double()
    found = trajectories_rhat(make_run(3, steps=11, problems=2), values)
    assert found[:6].isnan().all() and not found[7:].isnan().any()
    by_hand = float(arviz.rhat(values[5:10, :, 1].T.numpy()))  # after ten steps: steps 6 to 10
    assert float(found[9, 1]) == pytest.approx(by_hand, rel=1e-12)


def test_trajectories_are_traced_along_their_ancestry():
    """Slots swap at every step: along the slots values alternate, along the lines they stay."""
    steps, swap = 12, torch.tensor([1, 0, 3, 2])
    own = torch.arange(4)
    slots = torch.stack([own if s % 2 == 0 else swap for s in range(steps)])  # trajectory in each slot
    run = make_run(4, steps=steps, ancestors=swap.expand(steps, 4)[..., None].int())
    values = slots[..., None].double() % 2
    assert trajectories_rhat(run, values)[-1].isinf()
    assert trajectories_rhat(make_run(4, steps=steps), values)[-1] < 1.5  # the slots themselves mix


def test_trajectories_without_weight_do_not_count():
    values = torch.randn(10, 4, 1, generator=torch.Generator().manual_seed(9)).double()
    log_weights = torch.zeros(10, 4, 1)
    log_weights[-1, 2:] = -torch.inf
    found = trajectories_rhat(make_run(4, steps=10, log_weights=log_weights), values)[-1]
    twice = values[5:, [0, 0, 1, 1], 0].T
    assert float(found) == pytest.approx(float(arviz.rhat(twice.numpy())), rel=1e-12)


def test_values_of_another_shape_are_refused():
    for measure in (islands_rhat, trajectories_rhat):
        with pytest.raises(
            ValueError, match=r"values must be \[S, N, B\] = \[1, 8, 1\] as the run, got shape \[8, 1\]"
        ):
            measure(make_run(8), torch.zeros(8, 1))
