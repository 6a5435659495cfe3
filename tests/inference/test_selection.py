"""Selection rules against hand-made runs: weights, ties, the dead."""

import pytest
import torch

from probgram import Trajectories
from probgram.inference import best, first_verified, posterior, vote

ANSWERS = torch.tensor(
    [
        [[1, 1], [5, 5]],
        [[2, 2], [6, 6]],
        [[1, 1], [7, 7]],
        [[3, 3], [6, 6]],
    ],
    dtype=torch.uint8,
)  # [N, B, L]


class Even:
    """An answer is right when its first token is even."""

    def verify(self, x, y):
        return y[..., 0] % 2 == 0


class Never:
    def verify(self, x, y):
        return y[..., 0] > 100


def make_run(weights=((1, 1), (1, 1), (1, 1), (1, 1)), **changes) -> Trajectories:
    fields = {
        "x": torch.zeros(2, 1),
        "answers": torch.stack([torch.zeros_like(ANSWERS), ANSWERS]),
        "log_weights": torch.stack([torch.zeros(4, 2), torch.tensor(weights).float().log()]),
        "heads": {
            "value": torch.tensor([[0.1, 0.0], [0.3, 0.0], [0.9, 0.0], [0.2, 0.0]]).expand(2, 4, 2),
            "halt": torch.tensor([[9.0, -1.0], [1.0, -2.0], [-9.0, -3.0], [8.0, -0.5]]).expand(2, 4, 2),
        },
    }
    return Trajectories(**(fields | changes))


def test_vote_takes_the_most_frequent_answer_where_weights_are_equal():
    chosen = vote(make_run())
    assert chosen.answers.tolist() == [[1, 1], [6, 6]]
    assert chosen.slot.tolist() == [0, 1]  # the lowest of those that gave it
    assert chosen.score.tolist() == [0.5, 0.5] and chosen.score.dtype == torch.float64


def test_vote_adds_weights_and_not_slots():
    chosen = vote(make_run([(1, 5), (6, 1), (1, 1), (2, 1)]))
    assert chosen.answers.tolist() == [[2, 2], [5, 5]]
    assert chosen.score.tolist() == pytest.approx([0.6, 0.625])


def test_the_lowest_slot_wins_a_tie():
    chosen = vote(make_run([(0, 1), (1, 1), (0, 2), (1, 0)]))
    assert chosen.answers.tolist() == [[2, 2], [7, 7]]
    equal = vote(make_run([(1, 0), (1, 1), (0, 1), (1, 0)]))
    assert equal.slot.tolist() == [0, 1]


def test_vote_looks_at_the_depth_step_it_is_asked_for():
    assert vote(make_run(), step=0).answers.tolist() == [[0, 0], [0, 0]]
    assert vote(make_run(), step=0).score.tolist() == [1.0, 1.0]


def test_best_takes_the_highest_head_and_the_first_of_equals():
    chosen = best(make_run())
    assert chosen.answers.tolist() == [[1, 1], [5, 5]] and chosen.slot.tolist() == [2, 0]
    assert chosen.score.tolist() == pytest.approx(torch.tensor([0.9, 0.0]).sigmoid().tolist())
    assert best(make_run(), head="halt").slot.tolist() == [0, 3]


def test_best_never_takes_the_dead():
    chosen = best(make_run([(1, 0), (1, 1), (0, 1), (1, 1)]))
    assert chosen.slot.tolist() == [1, 1]


def test_best_tells_heads_apart_that_a_float32_probability_cannot():
    logits = torch.tensor([20.0, 30.0, 25.0, 10.0])[:, None].expand(2, 4, 2)
    assert best(make_run(heads={"value": logits})).slot.tolist() == [1, 1]


def test_a_head_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(ValueError, match=r"the run has no head 'energy': it has \['halt', 'value'\]"):
        best(make_run(), head="energy")
    with pytest.raises(ValueError, match="the run has no head 'value': it has none"):
        best(make_run(heads={}))


def test_first_verified_takes_the_first_slot_that_is_right():
    chosen = first_verified(make_run(), Even())
    assert chosen.answers.tolist() == [[2, 2], [6, 6]] and chosen.slot.tolist() == [1, 1]
    assert chosen.score.tolist() == [1.0, 1.0]


def test_first_verified_passes_over_the_dead():
    chosen = first_verified(make_run([(1, 1), (0, 0), (1, 1), (1, 1)]), Even())
    assert chosen.slot.tolist()[1] == 3
    assert chosen.score.tolist() == [0.0, 1.0]


def test_where_nothing_is_right_first_verified_is_the_vote_and_says_so():
    chosen, voted = first_verified(make_run(), Never()), vote(make_run())
    assert torch.equal(chosen.answers, voted.answers) and chosen.score.tolist() == [0.0, 0.0]


def test_a_verified_answer_wins_over_any_share():
    chosen = first_verified(make_run([(100, 100), (1, 1), (100, 100), (1, 1)]), Even())
    assert chosen.answers.tolist() == [[2, 2], [6, 6]]


def test_the_posterior_lists_each_problems_answers_with_their_shares():
    first, second = posterior(make_run([(1, 5), (6, 1), (1, 0), (2, 2)]))
    assert first.answers.tolist() == [[2, 2], [1, 1], [3, 3]] or first.answers.tolist() == [[2, 2], [3, 3], [1, 1]]
    assert first.shares.tolist() == pytest.approx([0.6, 0.2, 0.2])
    assert second.answers.tolist() == [[5, 5], [6, 6]]
    assert second.shares.tolist() == pytest.approx([0.625, 0.375])
    assert [p.answers.tolist() for p in posterior(make_run(), step=0)] == [[[0, 0]], [[0, 0]]]


def test_every_rule_survives_a_problem_whose_weights_all_vanished():
    run = make_run([(1, 0), (1, 0), (1, 0), (1, 0)])
    assert vote(run).score.tolist() == [0.5, 0.0]
    assert first_verified(run, Even()).score.tolist() == [1.0, 0.0]
    assert best(run).answers.shape == (2, 2)
    assert len(posterior(run)[1].answers) == 0
