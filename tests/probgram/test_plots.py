"""What the pictures hold, read back from matplotlib's own objects."""

import matplotlib
import numpy as np
import pytest
import torch

from probgram import plots, tasks
from probgram.trajectories import Trajectories

matplotlib.use("Agg")


@pytest.fixture
def run() -> Trajectories:
    """Two depth steps of three trajectories of an empty 4-queens board: its two solutions, and wrong answers."""
    wrong, left, right = [0, 0, 0, 0], [1, 3, 0, 2], [2, 0, 3, 1]
    answers = torch.tensor([[wrong, right, left], [right, left, wrong]])[:, :, None]  # [S, N, B, L]
    return Trajectories(torch.full((1, 4), 4), answers, torch.zeros(2, 3, 1))


def rows(axis) -> np.ndarray:
    return np.asarray(axis.images[0].get_array())  # [N, S, 4]: a row a trajectory, a column a depth step


def test_wrong_answers_are_grey_and_equal_answers_have_one_colour(run):
    axis = plots.answers_over_depth(run, tasks.Queens(4))
    picture = rows(axis)
    grey = (picture == (0.85, 0.85, 0.85, 1.0)).all(-1)
    assert picture.shape == (3, 2, 4)
    assert grey.sum() == 2
    assert len(np.unique(picture[~grey], axis=0)) == 2
    assert [label.get_text() for label in axis.get_xticklabels()] == ["1", "2"]


def test_trajectories_are_ordered_by_their_last_answer(run):
    picture = rows(plots.answers_over_depth(run, tasks.Queens(4)))
    # Last answers sorted: the wrong one, then the two solutions; their first answers come along.
    assert (picture[0, -1] == (0.85, 0.85, 0.85, 1.0)).all()
    assert (picture[0, 0] == picture[1, 1]).all()
    assert (picture[1, 0] == picture[2, 1]).all()


def test_rows_follow_ancestry_and_not_slots(run):
    from dataclasses import replace

    copied = replace(run, ancestors=torch.tensor([[[0], [1], [2]], [[1], [1], [1]]], dtype=torch.int32))
    first = rows(plots.answers_over_depth(copied, tasks.Queens(4)))[:, 0]
    assert (first == first[0]).all()


def test_a_run_without_a_right_answer_is_all_grey(run):
    from dataclasses import replace

    picture = rows(plots.answers_over_depth(replace(run, answers=run.answers * 0), tasks.Queens(4)))
    assert (picture == (0.85, 0.85, 0.85, 1.0)).all()


def test_a_training_curve_needs_lines():
    with pytest.raises(ValueError, match="metrics must hold at least one line"):
        plots.training_curve([])


def test_a_width_curve_dashes_its_limits():
    axis = plots.width_curve([1, 2], {"chain": [0.5, 0.6]}, {"uniform draws": [0.5, 0.7]})
    assert [line.get_linestyle() for line in axis.lines] == ["-", "--"]


def test_the_genealogy_draws_survivors_dark_and_right_answers_filled(run):
    from dataclasses import replace

    ancestors = torch.tensor([[0, 1, 2], [1, 1, 0]], dtype=torch.int32)[..., None]  # slot 2 was dropped
    axis = plots.genealogy(replace(run, ancestors=ancestors), tasks.Queens(4))
    pale, dark = (collection.get_segments() for collection in axis.collections[:2])
    assert len(pale) == 0 and len(dark) == 3  # all of the last depth step survive
    assert sorted(segment[0, 1] for segment in dark) == [0, 1, 1]
    wrong, right = axis.collections[2:]
    assert (len(wrong.get_offsets()), len(right.get_offsets())) == (2, 4)
    three = replace(
        run, answers=run.answers[[0, 0, 1]], log_weights=torch.zeros(3, 3, 1), depths=(),
        ancestors=torch.cat([ancestors[:1], ancestors[:1], ancestors[1:]]),
    )  # fmt: skip
    pale, dark = (collection.get_segments() for collection in plots.genealogy(three).collections[:2])
    assert (len(pale), len(dark)) == (1, 5)  # slot 2 lived for one step, and left nobody


def test_contours_of_a_score_that_only_depth_moves_are_vertical():
    values = np.array([0.0, 0.2, 0.8, 1.0])[:, None] * np.ones(3)
    axis = plots.iso_accuracy([1, 2, 4, 8], [1, 2, 4], values)
    lines = axis.collections[1]  # the first is what is filled
    half = lines.get_paths()[list(lines.levels).index(0.5)].vertices
    assert np.allclose(half[:, 0], 1.5) and np.ptp(half[:, 1]) == 2  # halfway between depth 2 and 4, at every width
    upwards = plots.iso_accuracy([1, 2, 4], [1, 2, 4, 8], values.T).collections[1]
    assert np.allclose(upwards.get_paths()[list(upwards.levels).index(0.5)].vertices[:, 1], 1.5)
    assert [label.get_text() for label in axis.get_xticklabels()] == ["1", "2", "4", "8"]


def test_a_flat_score_is_drawn_without_contours():
    assert len(plots.iso_accuracy([1, 2], [1, 2, 4], np.ones((2, 3))).collections) == 1


def test_cost_curves_hold_a_line_a_depth_and_their_envelope():
    axis = plots.cost_curves([1, 4], [1, 2], [[0.2, 0.5], [0.4, 0.9]])
    first, second, envelope = axis.lines
    assert (first.get_xdata().tolist(), first.get_ydata().tolist()) == ([1, 2], [0.2, 0.5])
    assert (second.get_xdata().tolist(), second.get_ydata().tolist()) == ([4, 8], [0.4, 0.9])
    assert envelope.get_ydata().tolist() == [0.2, 0.5, 0.5, 0.9]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["depth 1", "depth 4", "envelope"]
