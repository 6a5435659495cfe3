"""Boards of the tasks: cells show the answer, marks are where the problem gives or an answer breaks a rule."""

import itertools

import numpy as np
import pytest

from probgram import tasks
from probgram.tasks.board import crowded, in_rows


def test_the_symbols_of_a_board_read_as_the_drawn_answer():
    for task, blank in ((tasks.Queens(8), "."), (tasks.Queens(6, encoding="board"), "."), (tasks.Sudoku(2), ".")):
        x, y = (part[0] for part in task.examples("test"))
        for tokens, cells in ((y, task.board.cells(y[None])[0]), (x, task.board.problem(x))):
            symbols = "".join(task.board.symbols[cell] or blank for cell in cells.reshape(-1))
            assert symbols == "".join(c for c in task.decode(tokens).replace("Q", "♛") if c not in " \n|-+")


@pytest.mark.parametrize("encoding", ["rows", "board"])
def test_attacked_queens_are_those_of_a_pair_on_one_line(encoding):
    task = tasks.Queens(6, encoding=encoding)
    rng = np.random.default_rng(0)
    columns = rng.integers(0, 6, (200, 6))
    x = task._from_columns(np.array([2, 6, 6, 6, 6, 6]))
    marks = task.board.broken(x, task._from_columns(columns))
    for one, seen in zip(columns, marks, strict=True):
        expected = np.zeros((6, 6), bool)
        expected[0, 2] = one[0] != 2  # the given queen is gone
        for (r, c), (s, d) in itertools.combinations(enumerate(one), 2):
            if c == d or abs(c - d) == s - r:
                expected[[r, s], [c, d]] = True
        np.testing.assert_array_equal(seen, expected)
    assert task.board.given(x).sum() == 1 and task.board.given(x)[0, 2]


@pytest.mark.parametrize("box", [2, (2, 3)])
def test_clashing_digits_are_those_of_a_pair_in_one_unit(box):
    task = tasks.Sudoku(box)
    rng = np.random.default_rng(0)
    y = rng.integers(0, task.n + 1, (50, task.length))
    x = np.zeros(task.length, np.int64)
    x[5] = 1
    marks = task.board.broken(x, y)
    height, width = task.box
    for one, seen in zip(y.reshape(-1, task.n, task.n), marks, strict=True):
        expected = np.zeros((task.n, task.n), bool)
        expected.reshape(-1)[5] = one.reshape(-1)[5] != 1
        for (r, c), (s, d) in itertools.combinations(np.ndindex(task.n, task.n), 2):
            near = r == s or c == d or (r // height == s // height and c // width == d // width)
            if near and one[r, c] == one[s, d] != 0:
                expected[[r, s], [c, d]] = True
        np.testing.assert_array_equal(seen, expected)


def test_an_answer_without_a_broken_cell_and_without_a_blank_is_right():
    for task in (tasks.Queens(8), tasks.Sudoku(2)):
        x, y = task.examples("test")
        rng = np.random.default_rng(0)
        answers = np.where(
            rng.random((300, task.length)) < 0.1, rng.integers(1, task.output_size, y[:1].shape), y[0]
        )
        fine = ~task.board.broken(x[0], answers).any((1, 2))
        np.testing.assert_array_equal(fine, task.verify(x[0], answers))
        assert 0 < fine.sum() < 300


def test_vertices_with_a_neighbour_of_their_colour_are_marked():
    task = tasks.Colouring(8)
    x = task.encode("0-1 1-2 5-7")
    marks = task.board.broken(x, np.array([[0, 0, 1, 0, 0, 1, 0, 1]]))
    assert marks[0, 0].tolist() == [True, True, False, False, False, True, False, True]
    assert {tuple(sorted(pair)) for pair in task.board.edges(x).tolist()} == {(0, 1), (1, 2), (5, 7)}


def test_tokens_of_a_single_answer_stand_in_lines_with_the_wrong_ones_marked():
    task = tasks.Permutations()
    x, y = (part[0] for part in task.examples("test"))
    wrong = y.copy()
    wrong[3] = (wrong[3] + 1) % task.output_size
    rows, columns = task.board.cells(y[None]).shape[1:]
    assert columns * len(task.board.symbols[0]) <= 30 and (rows - 1) * columns < task.length <= rows * columns
    assert np.argwhere(task.board.broken(x, np.stack([y, wrong]))).tolist() == [[1, 3 // columns, 3 % columns]]


def test_generation_draws_boards_as_the_task_it_generates_of():
    task = tasks.Generation.of(tasks.Queens(6), [None] * 6)
    assert task.board.cells(task.answers).sum() == 6 * len(task.answers)
    assert not task.board.given(task.encode()).any()
    plain = tasks.Generation("one", np.zeros((1, 2), int), lambda x, y: (x == y).all(-1), str)
    assert plain.board is None


def test_digits_are_their_pixels():
    task = tasks.Digits()
    y = np.arange(49)[None]
    assert (task.board.cells(y)[0] == task.picture(y[0])).all()


def test_lines_shorter_than_the_last_are_filled_with_no_cell():
    assert in_rows(np.arange(5)[None], 3).tolist() == [[[0, 1, 2], [3, 4, -1]]]
    assert in_rows(np.arange(5), 9).tolist() == [[0, 1, 2, 3, 4]]
    assert in_rows(np.arange(4), 2).tolist() == [[0, 1], [2, 3]]


def test_marked_cells_that_share_a_line_crowd_each_other():
    lines = np.array([[1, 1, 0, 0], [0, 1, 1, 0]], bool)
    marked = np.array([[1, 0, 1, 1], [0, 1, 1, 1]], bool)
    assert crowded(marked, lines).astype(int).tolist() == [[0, 0, 0, 0], [0, 1, 1, 0]]
