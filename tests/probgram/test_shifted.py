"""A task whose tokens are counted from another number: the same answers, and tokens below it are none."""

import numpy as np
import pytest
import torch

from probgram import solve, tasks
from probgram.models import TRM
from probgram.tasks import Shifted

BOARD = "1234341221434321"


@pytest.mark.parametrize("library", [np.asarray, torch.as_tensor])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_it_verifies_what_the_task_does(library, dtype) -> None:
    own, shifted = tasks.Sudoku(2), Shifted(tasks.Sudoku(2))
    assert (shifted.input_size, shifted.output_size, shifted.length) == (6, 6, 16)
    x = shifted.encode("12" + "." * 14)
    assert np.array_equal(x, own.encode("12" + "." * 14) + 1)
    right = shifted.solutions(x)
    assert np.array_equal(right, own.solutions(x - 1) + 1)
    rng = np.random.default_rng(0)
    y = np.where(rng.random((len(right), 16)) < 0.02, rng.integers(0, 6, (len(right), 16)), right)
    verified = shifted.verify(library(x), library(y.astype(dtype)))
    broken = shifted.violations(library(x), library(y.astype(dtype)))
    inner = own.violations(x - 1, np.maximum(y - 1, 0)) + (y < 1).sum(-1)
    assert np.array_equal(np.asarray(broken), inner)
    assert np.array_equal(np.asarray(verified), inner == 0)
    assert 0 < np.asarray(verified).sum() < len(y)


def test_it_draws_and_lists_as_the_task_does() -> None:
    own, shifted = tasks.Sudoku(2, problems=20), Shifted(tasks.Sudoku(2, problems=20))
    y = own.solutions(own.encode(BOARD))[0]
    assert shifted.decode(y + 1) == own.decode(y)
    assert np.array_equal(shifted.board.cells((y + 1)[None]), own.board.cells(y[None]))
    assert np.array_equal(shifted.board.given(own.encode(BOARD) + 1), own.board.given(own.encode(BOARD)))
    for mine, theirs in zip(shifted.examples("test"), own.examples("test"), strict=True):
        assert np.array_equal(mine, theirs + 1)


def test_it_trains_as_the_task_does(tmp_path) -> None:
    own = tasks.Sudoku(2, problems=20)
    shifted = Shifted(own)
    assert (shifted.split, shifted.about) == (own.split, own.about) and not hasattr(shifted, "grouped")
    x, y = own.examples("train")
    images = shifted.augment(x + 1, y[:, None] + 1, np.random.default_rng(0))
    expected = own.augment(x, y[:, None], np.random.default_rng(0))
    assert all(np.array_equal(one, other + 1) for one, other in zip(images, expected, strict=True))
    assert not hasattr(Shifted(tasks.Queens(5)), "augment")
    blank = tasks.Generation.of(tasks.Queens(5), [None] * 5)
    assert Shifted(blank).grouped is blank.grouped is False


def test_padding_stays_padding_and_numbered_puzzles_are_refused() -> None:
    padded = tasks.Queens(5)
    padded.examples = lambda split: (np.array([[1, 2, -1]]), np.array([[2, 1, -1]]))
    x, y = Shifted(padded).examples("train")
    assert x.tolist() == [[2, 3, -1]] and y.tolist() == [[3, 2, -1]]
    numbered = tasks.Queens(5)
    numbered.tasks = 3
    with pytest.raises(ValueError, match="queens5 cannot be shifted: its problems begin with the number"):
        Shifted(numbered)


def test_a_chain_of_other_tokens_is_asked_through_it() -> None:
    torch.manual_seed(0)
    shifted = Shifted(tasks.Sudoku(2), symbols=7)
    chain = TRM.for_task(shifted, dim=16, heads=2, hidden=24)
    assert solve(chain, BOARD, task=shifted, width=2, depth=1).verified is not None
    with pytest.raises(ValueError, match="answers of sudoku4 have 5 different tokens, and the chain's 7"):
        solve(chain, BOARD, task=tasks.Sudoku(2), width=2, depth=1)


@pytest.mark.parametrize(
    ("given", "message"), [({"by": 0}, "by must be at least 1"), ({"symbols": 5}, "symbols must")]
)
def test_a_shift_that_makes_no_sense_is_refused(given, message) -> None:
    with pytest.raises(ValueError, match=message):
        Shifted(tasks.Sudoku(2), **given)
