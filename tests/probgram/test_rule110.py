"""Rule 110: rows against the rule's table cell by cell, rotations held out together, bad input."""

import numpy as np
import pytest

from probgram import tasks

RULE = {
    (1, 1, 1): 0,
    (1, 1, 0): 1,
    (1, 0, 1): 1,
    (1, 0, 0): 0,
    (0, 1, 1): 1,
    (0, 1, 0): 1,
    (0, 0, 1): 1,
    (0, 0, 0): 0,
}


def later(row: list[int], steps: int) -> list[int]:
    """Look each cell up in the rule's table."""
    for _ in range(steps):
        row = [RULE[row[i - 1], row[i], row[(i + 1) % len(row)]] for i in range(len(row))]
    return row


def test_the_table_spells_110():
    assert sum(cell << (4 * l + 2 * c + r) for (l, c, r), cell in RULE.items()) == 110


@pytest.mark.parametrize(("width", "steps"), [(3, 1), (5, 4), (8, 1), (8, 11)])
def test_answers_follow_the_rule_for_every_row_there_is(width, steps):
    task = tasks.Rule110(width, steps)
    rows = np.arange(2**width)[:, None] >> np.arange(width) & 1
    assert task.answer(rows).tolist() == [later(row, steps) for row in rows.tolist()]
    assert task.verify(rows, task.answer(rows)).all()


def test_the_answer_rotates_with_the_problem():
    task = tasks.Rule110(10, steps=5)
    rows = np.random.default_rng(0).integers(2, size=(50, 10))
    assert np.array_equal(task.answer(np.roll(rows, 3, -1)), np.roll(task.answer(rows), 3, -1))


def test_no_test_row_is_a_rotation_of_a_training_row():
    task = tasks.Rule110(10, train=600, test=100)
    train, test = (set(map(tuple, x)) for x in task.problems)
    assert (len(train), len(test)) == (600, 100)
    assert not any(row[turn:] + row[:turn] in train for row in test for turn in range(10))


@pytest.mark.parametrize("width", [4, 6, 8])
def test_rows_are_of_one_kind_exactly_where_they_are_rotations(width):
    rows = np.arange(2**width)[:, None] >> np.arange(width) & 1
    kind = tasks.Rule110(width).kind(rows)
    smallest = [min(tuple(row[turn:] + row[:turn]) for turn in range(width)) for row in rows.tolist()]
    pairs = set(zip(kind.tolist(), smallest, strict=True))
    assert len(pairs) == len(set(kind.tolist())) == len(set(smallest)) == {4: 6, 6: 14, 8: 36}[width]  # necklaces


def test_rows_are_read_and_drawn():
    task = tasks.Rule110(5, steps=1)
    x = task.encode("..#..")
    assert x.tolist() == [0, 0, 1, 0, 0] == task.encode("0 0 1 0 0").tolist()
    assert task.decode(task.solutions(x)[0]) == ".##.."


@pytest.mark.parametrize("text", ["..#.", "..x..", ""])
def test_what_is_no_row_is_one_clear_sentence(text):
    with pytest.raises(ValueError, match="must"):
        tasks.Rule110(5).encode(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 2}, "width must be at least 3, got 2"),
        ({"width": 63}, "width must be at most 62, got 63"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"test": 0}, "test must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_one_clear_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        tasks.Rule110(**arguments)


def test_more_rows_than_there_are_is_one_clear_sentence():
    with pytest.raises(ValueError, match="of which 32 turned up"):
        tasks.Rule110(5, train=20_000, test=1_000).examples("test")
