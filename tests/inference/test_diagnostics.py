"""Measures of answers over depth, on runs small enough to count by hand."""

import math

import pytest
import torch

from probgram import Trajectories
from probgram.inference.diagnostics import (
    answer_entropy,
    changing,
    cloud_entropy,
    distinct_answers,
    independent,
    principal,
    quantities,
    settled,
    unseen,
)
from probgram.inference.grouping import answer_numbers


def make_run(tokens, weights=None, ancestors=None, **changes) -> Trajectories:
    """Runs of one problem from one token an answer, `[S, N]`; the answer repeats it."""
    answers = torch.as_tensor(tokens, dtype=torch.uint8)[..., None, None].expand(-1, -1, 1, 3)
    fields = {"x": torch.zeros(1, 1), "answers": answers, "log_weights": torch.zeros(answers.shape[:3])}
    if weights is not None:
        fields["log_weights"] = torch.as_tensor(weights).float().log()[..., None]
    if ancestors is not None:
        fields["ancestors"] = torch.as_tensor(ancestors).int()[..., None]
    return Trajectories(**(fields | changes))


# -- equal answers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float32, torch.float64]
)
@pytest.mark.parametrize("length", [1, 7, 8, 19])
def test_answers_have_equal_numbers_exactly_where_they_are_equal(dtype, length):
    generator = torch.Generator().manual_seed(length)
    answers = torch.randint(2, (2, 6, 2, length), generator=generator).to(dtype)
    answers[..., :-2] = 0  # so that some are equal
    run = Trajectories(x=torch.zeros(2, 1), answers=answers, log_weights=torch.zeros(2, 6, 2))
    number, flat = answer_numbers(run).flatten(), answers.flatten(0, 2)
    assert ((number[:, None] == number) == (flat[:, None] == flat).all(-1)).all()


def test_a_run_without_answers_says_so():
    run = Trajectories(x=torch.zeros(1, 1), answers=torch.zeros(2, 3, 1, 0), log_weights=torch.zeros(2, 3, 1))
    with pytest.raises(ValueError, match="the run has no answers"):
        answer_entropy(run)


# -- over depth -----------------------------------------------------------------------------------------------


def test_a_run_that_agrees_has_no_entropy_and_has_settled_at_once():
    run = make_run([[4, 4, 4, 4]] * 5)
    assert answer_entropy(run).tolist() == [[0.0]] * 5 and distinct_answers(run).tolist() == [[1]] * 5
    assert cloud_entropy(run).tolist() == [[[0.0] * 3]] * 5
    assert changing(run)[0].isnan().all() and changing(run)[1:].tolist() == [[0.0]] * 4
    assert settled(run).tolist() == [1] and unseen(run)[-1].tolist() == [0.0]


def test_two_answers_have_the_entropy_of_their_shares():
    run = make_run([[1, 1, 1, 1], [1, 2, 2, 2]])
    quarter = -0.25 * math.log(0.25) - 0.75 * math.log(0.75)
    assert answer_entropy(run)[:, 0].tolist() == pytest.approx([0.0, quarter])
    assert distinct_answers(run)[:, 0].tolist() == [1, 2]
    assert changing(run)[1].tolist() == [0.75] and settled(run).tolist() == [0]  # still changing at its end


def test_shares_are_by_weight_and_an_answer_without_weight_does_not_count():
    run = make_run([[1, 2, 3, 3]], weights=[[1, 0, 1, 2]])
    quarter = -0.25 * math.log(0.25) - 0.75 * math.log(0.75)
    assert answer_entropy(run).item() == pytest.approx(quarter)
    assert distinct_answers(run).item() == 2
    dead = make_run([[1, 2]], weights=[[0, 0]])
    assert answer_entropy(dead).isnan().all() and distinct_answers(dead).item() == 0


def test_answers_settle_at_the_step_of_the_last_change():
    run = make_run([[1, 1], [2, 1], [2, 3], [2, 3], [2, 3]])
    assert changing(run)[1:, 0].tolist() == [0.5, 0.5, 0.0, 0.0] and settled(run).tolist() == [3]
    assert settled(run, share=0.5).tolist() == [1]
    later = make_run([[1, 1], [2, 1], [2, 3], [2, 3], [2, 3]], depths=(11, 12, 13, 14, 15))
    assert settled(later).tolist() == [13]
    assert settled(make_run([[1, 1]])).tolist() == [0]  # one step cannot tell


def test_a_change_is_one_against_the_ancestor_and_not_the_slot():
    """Both slots go on from slot 1: by slots the first changes, along the ancestry none does."""
    run = make_run([[1, 2], [2, 2]], ancestors=[[0, 1], [1, 1]])
    assert changing(run)[1].tolist() == [0.0]
    crossed = make_run([[1, 2], [1, 2]], ancestors=[[0, 1], [1, 0]])
    assert changing(crossed)[1].tolist() == [1.0]


def test_changes_count_by_weight():
    run = make_run([[1, 1], [1, 2]], weights=[[1, 1], [3, 1]])
    assert changing(run)[1].item() == pytest.approx(0.25)


def test_the_unseen_is_the_share_of_answers_drawn_once():
    run = make_run([[1, 1, 2, 3, 3]])
    assert unseen(run).item() == pytest.approx(0.2)
    right = torch.tensor([True, True, False, True, True])[None, :, None]
    assert unseen(run, right).item() == 0.0
    assert independent(run) and not independent(make_run([[1, 2]], weights=[[1, 2]]))
    for other in (make_run([[1, 2]], weights=[[1, 2]]), make_run([[1, 2]], ancestors=[[0, 0]])):
        with pytest.raises(ValueError, match="unseen needs independent draws"):
            unseen(other)


def test_the_unseen_is_unbiased_up_to_one_draw():
    """Good and Turing: E[share drawn once] = Σ p (1 - p)^(N - 1), the mass unseen by one draw fewer.

    4,000 problems of 10 draws from (1/2, 1/4, 1/4); within four standard errors, false alarms 6e-5.
    """
    law = torch.tensor([0.5, 0.25, 0.25])
    drawn = torch.multinomial(law, 40_000, replacement=True, generator=torch.Generator().manual_seed(0))
    answers = drawn.view(1, 10, 4_000, 1).to(torch.uint8)
    run = Trajectories(x=torch.zeros(4_000, 1), answers=answers, log_weights=torch.zeros(1, 10, 4_000))
    found = unseen(run)[0]
    expected = float((law * (1 - law) ** 9).sum())
    assert found.mean() == pytest.approx(expected, abs=4 * float(found.std()) / 4_000**0.5)


# -- quantities -----------------------------------------------------------------------------------------------


class Sum:
    """Violations are the sum of the tokens."""

    def violations(self, x, y):
        return y.sum(-1)


def test_quantities_are_heads_energy_and_directions():
    run = make_run([[1, 2], [2, 2]], heads={"value": torch.ones(2, 2, 1)}, states=torch.randn(2, 2, 1, 5))
    found = quantities(run, Sum())
    assert list(found) == ["value", "energy", "answer", "direction 1", "direction 2"]
    third = 3**0.5  # tokens 1, 2, 2, 2 at three positions, along (1, 1, 1)
    assert found["answer"].flatten().tolist() == pytest.approx(
        [-0.75 * third, 0.25 * third, 0.25 * third, 0.25 * third]
    )
    assert found["energy"][..., 0].tolist() == [[3, 6], [6, 6]]
    assert all(values.shape == (2, 2, 1) and values.dtype == torch.float64 for values in found.values())
    assert list(quantities(make_run([[1, 2]]))) == ["answer"]


@pytest.mark.parametrize("size", [3, 60])  # fewer dimensions than points, and more
def test_principal_directions_are_those_of_the_singular_value_decomposition(size):
    generator = torch.Generator().manual_seed(size)
    states = torch.randn(4, 5, 2, size, generator=generator) * torch.linspace(3, 0.1, size)
    found = principal({"h": states, "visits": torch.zeros(4, 5, 2, dtype=torch.long)}, 2)
    assert found.shape == (4, 5, 2, 2)
    for b in range(2):
        points = states[:, :, b].reshape(20, size).double()
        u, s, v = torch.linalg.svd(points - points.mean(0), full_matrices=False)
        sign = v[:2].gather(1, v[:2].abs().argmax(1, keepdim=True))[:, 0].sign()
        torch.testing.assert_close(found[:, :, b].reshape(20, 2), u[:, :2] * s[:2] * sign)


def test_equal_points_have_exactly_equal_coordinates():
    states = torch.randn(3, 1, 1, 40, generator=torch.Generator().manual_seed(0)).expand(3, 33, 1, 40)
    found = principal(states)
    assert (found == found[:, :1]).all() and (found[0] != found[1]).all()
    assert (principal(torch.ones(2, 3, 1, 4)) == 0).all()


def test_states_of_one_number_have_one_direction():
    states = torch.tensor([[1.0], [3.0]])[None]
    assert principal(states).flatten().tolist() == [-1.0, 1.0]
