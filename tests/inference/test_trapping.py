"""Trapped trajectories, counted by hand."""

import pytest
import torch

from probgram import Trajectories
from probgram.inference.diagnostics import trapping
from probgram.tasks import UnknownAnswers


class Zero:
    """Only the answer 0 is right."""

    def verify(self, x, y):
        return (y == 0).all(-1)


def make_run(tokens, weights=None, ancestors=None) -> Trajectories:
    answers = torch.as_tensor(tokens, dtype=torch.uint8)[..., None, None]
    log_weights = torch.zeros(answers.shape[:3])
    if weights is not None:
        log_weights = torch.as_tensor(weights).float().log()[..., None]
    lines = None if ancestors is None else torch.as_tensor(ancestors).int()[..., None]
    return Trajectories(x=torch.zeros(1, 1), answers=answers, log_weights=log_weights, ancestors=lines)


def column(values):
    return values[:, 0].tolist()


def test_a_wrong_answer_that_stays_is_trapped_and_a_right_one_is_not():
    found = trapping(make_run([[5, 0], [5, 0], [5, 0], [5, 0]]), Zero())
    assert column(found.trapped) == [0, 0, 0.5, 0.5]  # after two steps without a change
    assert found.escaped[:3].isnan().all() and column(found.escaped)[3] == 0
    assert column(trapping(make_run([[5, 0]] * 4), Zero(), stay=1).trapped) == [0, 0.5, 0.5, 0.5]


def test_a_wrong_answer_that_changes_is_on_its_way():
    found = trapping(make_run([[1], [2], [3], [4]]), Zero())
    assert column(found.trapped) == [0, 0, 0, 0] and found.escaped.isnan().all()


def test_escapes_and_rescues_are_shares_of_those_that_were_trapped():
    """Four trapped after step 3; then one becomes right, one changes to another wrong answer, two stay."""
    found = trapping(make_run([[1, 2, 3, 4, 0]] * 3 + [[0, 9, 3, 4, 0]]), Zero())
    assert column(found.trapped) == pytest.approx([0, 0, 0.8, 0.4])
    assert column(found.escaped)[3] == pytest.approx(0.5) and column(found.rescued)[3] == pytest.approx(0.25)


def test_rates_pool_the_later_half_by_how_many_were_at_risk():
    """Of two trapped one gets out at step 4; of the one left none does at steps 5 and 6: 1 in 2 + 1 + 1."""
    run = make_run([[1, 2], [1, 2], [1, 2], [0, 2], [0, 2], [0, 2]])
    found = trapping(run, Zero())
    assert found.rate(found.escaped).tolist() == pytest.approx([0.25])
    assert found.rate(found.rescued).tolist() == pytest.approx([0.25])
    free = trapping(make_run([[0]] * 6), Zero())
    assert free.rate(free.escaped).isnan().all()


def test_being_trapped_is_inherited():
    """The trapped slot 0 is copied over slot 1, which was right."""
    run = make_run([[5, 0], [5, 0], [5, 0], [5, 5]], ancestors=[[0, 1], [0, 1], [0, 1], [0, 0]])
    assert column(trapping(run, Zero()).trapped) == [0, 0, 0.5, 1]


def test_shares_are_by_weight_and_losing_weight_is_no_escape():
    """Both are trapped after step 3, with weights 3 to 1; the first escapes as its weight goes to zero."""
    run = make_run([[5, 6], [5, 6], [5, 6], [7, 6]], weights=[[1, 1], [1, 1], [3, 1], [0, 1]])
    found = trapping(run, Zero())
    assert column(found.trapped) == pytest.approx([0, 0, 1, 1])
    assert column(found.escaped)[3] == pytest.approx(0.75)


def test_copies_share_the_weight_of_their_ancestor():
    """Slot 0, of weight 3/4, has copies in slots 0 to 2, one of which gets out; slot 1 has one in slot 3."""
    weights = [[1, 1, 0, 0], [1, 1, 0, 0], [3, 1, 0, 0], [1, 1, 1, 1]]
    own = [0, 1, 2, 3]
    run = make_run([[5, 6, 0, 0]] * 3 + [[0, 5, 5, 6]], weights=weights, ancestors=[own, own, own, [0, 0, 0, 1]])
    found = trapping(run, Zero())
    assert column(found.escaped)[3] == pytest.approx(0.25) and column(found.rescued)[3] == pytest.approx(0.25)


def test_bad_input_and_unknown_answers_are_said():
    with pytest.raises(ValueError, match="stay must be at least 1, got 0"):
        trapping(make_run([[1]]), Zero(), stay=0)

    class Silent:
        def verify(self, x, y):
            raise UnknownAnswers("these answers are not known")

    with pytest.raises(UnknownAnswers, match="these answers are not known"):
        trapping(make_run([[1]]), Silent())
