"""What the pictures hold, read back from matplotlib's own objects."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba
from scipy.stats import binomtest

from probgram import plots, tasks
from probgram.inference.calibration import reliability
from probgram.inference.confidence import risk_coverage
from probgram.plots.answers import named_answers, percent
from probgram.plots.boards import look_of
from probgram.plots.latents import principal_plane
from probgram.plots.palette import COLOURS, GREY
from probgram.tasks.board import Board
from probgram.trajectories import Trajectories

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


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
    grey = (picture == GREY).all(-1)
    assert picture.shape == (3, 2, 4)
    assert grey.sum() == 2
    assert len(np.unique(picture[~grey], axis=0)) == 2
    assert [label.get_text() for label in axis.get_xticklabels()] == ["1", "2"]


def test_trajectories_are_ordered_by_their_last_answer_and_wrong_ones_come_last(run):
    picture = rows(plots.answers_over_depth(run, tasks.Queens(4)))
    # Last answers: the two solutions, then the wrong one; their first answers come along.
    assert (picture[2, -1] == GREY).all()
    assert (picture[2, 0] == picture[0, -1]).all()
    assert (picture[0, 0] == picture[1, -1]).all()


def test_a_letter_stands_where_a_trajectory_comes_to_an_answer(run):
    stays = replace(run, answers=run.answers[[0, 1, 1]], log_weights=torch.zeros(3, 3, 1), depths=())
    axis = plots.answers_over_depth(stays, tasks.Queens(4))
    said = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in axis.texts[:7]}
    assert said == {(0, 0): "B", (0, 1): "A", (1, 0): "✗", (1, 1): "B", (2, 0): "A", (2, 1): "✗", (2, 2): "•"}
    assert [text.get_text() for text in axis.texts[7:]] == ["A ✓ 33%", "B ✓ 33%", "✗ 33%"]


def test_rows_follow_ancestry_and_not_slots(run):
    copied = replace(run, ancestors=torch.tensor([[[0], [1], [2]], [[1], [1], [1]]], dtype=torch.int32))
    first = rows(plots.answers_over_depth(copied, tasks.Queens(4)))[:, 0]
    assert (first == first[0]).all()


def test_a_run_without_a_right_answer_is_all_grey(run):
    picture = rows(plots.answers_over_depth(replace(run, answers=run.answers * 0), tasks.Queens(4)))
    assert (picture == GREY).all()


def test_a_training_curve_needs_lines():
    with pytest.raises(ValueError, match="metrics must hold at least one line"):
        plots.training_curve([])


def test_a_width_curve_dashes_its_limits():
    axis = plots.width_curve([1, 2], {"chain": [0.5, 0.6]}, {"uniform draws": [0.5, 0.7]})
    assert [line.get_linestyle() for line in axis.lines] == ["-", "--"]


def test_the_genealogy_draws_survivors_dark_and_right_answers_filled(run):
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


# -- answers and their letters --------------------------------------------------------------------------------


@pytest.fixture
def six() -> Trajectories:
    """Four trajectories of an empty 6-queens board, weighted, resampled before the last of three steps."""
    right, wrong = tasks.Queens(6).solutions(np.full(6, 6)), [0] * 6
    first = [wrong, right[3], [1] * 6, wrong]
    last = [right[2], right[2], right[1], wrong]
    answers = torch.tensor(np.array([first, first, last]))[:, :, None]
    ancestors = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 3], [1, 1, 2, 3]], dtype=torch.int32)[..., None]
    log_weights = torch.tensor([[0.25] * 4, [0.1, 0.6, 0.2, 0.1], [0.2, 0.1, 0.4, 0.3]]).log()[..., None]
    states = torch.arange(24.0).reshape(3, 4, 1, 2) ** 1.5
    normalizer = torch.tensor([-3.0, -2.0, -1.0])[:, None]
    return Trajectories(
        torch.full((1, 6), 6), answers, log_weights, ancestors, log_normalizer=normalizer, states=states
    )


def test_answers_are_named_by_share_right_ones_first(six):
    right = tasks.Queens(6).solutions(np.full(6, 6))
    named = named_answers(six, tasks.Queens(6), 0)
    assert named.answers[:3].tolist() == right[[1, 2, 3]].tolist()  # 40%, 30%, and one of the way
    assert named.shares.round(6).tolist() == [0.4, 0.3, 0, 0.3, 0]
    assert [named.letter(k) for k in range(5)] == ["A", "B", "C", "✗", "✗"]
    assert [named.label(k) for k in (0, 3)] == ["A ✓ 40%", "✗ 30%"]
    assert named.number[-1].tolist() == [1, 1, 0, 3]
    assert named.along[0].tolist() == [2, 2, 4, 3]  # both of the second answer descend from slot 1


def test_without_a_task_that_knows_every_answer_has_a_letter_and_none_a_tick(six):
    class Unknowing(tasks.Queens):
        def verify(self, x, y):
            raise tasks.UnknownAnswers("nobody knows")

    for task in (None, Unknowing(6)):
        named = named_answers(six, task, 0)
        assert named.right is None and not named.wrong.any()
        assert [named.label(k) for k in range(3)] == ["A 40%", "B 30%", "C 30%"]
    assert plots.answer_posterior(six, Unknowing(6))[0].get_title() == "A 40%"


def test_letters_agree_with_the_order_of_the_run_itself(six):
    distinct = six.distinct(0)
    named = named_answers(six, None, 0)
    assert distinct.answers.tolist() == named.answers[: len(distinct.answers)].tolist()


def test_shares_are_never_rounded_to_nothing_or_to_all():
    assert [percent(share) for share in (0.0, 0.001, 0.25, 0.999, 1.0, 1 - 1e-9)] == [
        "0%", "<1%", "25%", ">99%", "100%", "100%",
    ]  # fmt: skip


def test_an_answer_has_one_colour_in_all_pictures(six):
    task = tasks.Queens(6)
    picture = rows(plots.answers_over_depth(six, task))
    blue, orange = to_rgba(COLOURS[0]), to_rgba(COLOURS[1])
    assert np.allclose(picture[0, -1], blue) and np.allclose(picture[1:3, -1], orange)
    dots = plots.genealogy(six, task).collections[3].get_facecolors()
    assert np.allclose(dots[-3:], [orange, orange, blue])  # slots 0, 1, 2 of the last step
    ends = [line for line in plots.latent_paths(six, task).lines if line.get_label().startswith(("A", "B"))]
    assert [(line.get_label(), line.get_color()) for line in ends] == [
        ("A ✓ 40%", COLOURS[0]),
        ("B ✓ 30%", COLOURS[1]),
    ]


def test_a_problem_whose_weights_vanished_has_a_genealogy_and_no_posterior(six):
    dead = replace(six, log_weights=torch.cat([six.log_weights[:-1], torch.full((1, 4, 1), -torch.inf)]))
    assert len(plots.genealogy(dead, tasks.Queens(6)).collections) == 4
    with pytest.raises(ValueError, match="all weights of the problem vanished"):
        plots.answer_posterior(dead, tasks.Queens(6))


def test_a_wide_and_deep_run_is_drawn_without_letters_that_touch(six):
    rows_, steps = torch.arange(240) % 4, torch.tensor([0, 1, *[2] * 58])
    wide = Trajectories(six.x, six.answers[steps][:, rows_], six.log_weights[steps][:, rows_])
    for draw in (plots.answers_over_depth, plots.genealogy):
        axis = draw(wide, tasks.Queens(6))
        assert len(axis.texts) <= 3 and len(axis.get_xticks()) <= 24
        assert axis.figure.get_size_inches().max() < 20


# -- latents --------------------------------------------------------------------------------------------------


def test_latents_of_a_plane_are_drawn_without_distortion(six):
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(3, 4, 2)) * [5, 1]
    plane = principal_plane(flat @ np.linalg.qr(rng.normal(size=(7, 2)))[0].T)
    assert np.allclose(plane.explained.sum(), 1) and plane.explained[0] > plane.explained[1]
    apart = flat[:, :, None] - flat[:, None]
    seen = plane.places[:, :, None] - plane.places[:, None]
    assert np.allclose(np.linalg.norm(apart, axis=-1), np.linalg.norm(seen, axis=-1))


def test_a_latent_of_one_number_or_of_none_that_moves_has_a_picture():
    line = principal_plane(np.arange(6.0).reshape(2, 3, 1))
    assert np.allclose(line.explained, [1, 0]) and (line.places[..., 1] == 0).all()
    assert np.isfinite(principal_plane(np.ones((2, 3, 4))).places).all()


def test_latent_paths_follow_ancestry_from_the_first_step_to_the_answer(six):
    axis = plots.latent_paths(six, tasks.Queens(6))
    plane = principal_plane(six.states[:, :, 0].double().numpy()).places
    paths = [line.get_xydata() for line in axis.lines if line.get_linestyle() == "-"]
    expected = [plane[[0, 1, 2], [2, 2, 2]], plane[[0, 1, 2], [1, 1, 0]], plane[[0, 1, 2], [1, 1, 1]]]
    assert len(paths) == 4 and all(np.allclose(a, b) for a, b in zip(paths, expected, strict=False))
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert labels == ["A ✓ 40%", "B ✓ 30%", "✗ 30%", "first step"]
    greys = [line for line in axis.lines if line.get_label() == "✗ 30%"]
    assert [(line.get_color(), line.get_marker()) for line in greys] == [("0.6", "x")]


def test_latent_paths_need_states(six):
    with pytest.raises(ValueError, match='the run did not keep its states: run the filter with keep="latents"'):
        plots.latent_paths(replace(six, states=None), tasks.Queens(6))


def test_a_part_of_the_state_can_be_chosen(six):
    states = {"h": six.states, "l": 0 * six.states}
    alone = plots.latent_paths(replace(six, states=states), None, of=lambda state: state["h"])
    assert np.allclose(alone.lines[0].get_xydata(), plots.latent_paths(six, None).lines[0].get_xydata())


# -- weights --------------------------------------------------------------------------------------------------


def test_effective_size_lines_that_survive_and_resampling_are_told_apart(six):
    upper, lower = plots.ess_and_evidence(six)
    drawn = {line.get_label(): line.get_xydata().tolist() for line in upper.lines}
    assert np.allclose(drawn["effective sample size"], np.stack([[1, 2, 3], six.ess[:, 0]], 1))
    assert drawn["slots with a line to the end"] == [[1, 3], [2, 3], [3, 4]]  # slot 0 of step 2 was dropped
    assert drawn["resampled before it"] == [[3, 0]]
    assert lower.lines[0].get_ydata().tolist() == [-3, -2, -1]
    assert lower.get_ylabel() == "log normaliser (nats)"
    evidence = plots.ess_and_evidence(replace(six, likelihoods_only=True))[1]
    assert evidence.get_ylabel() == "log evidence (nats)"


def test_a_run_that_recorded_its_last_step_alone_shows_all_figures(six):
    last = replace(
        six, answers=six.answers[-1:], log_weights=six.log_weights[-1:], ancestors=None, depths=(3,),
        effective=six.ess, states=None,
    )  # fmt: skip
    upper, lower = plots.ess_and_evidence(last)
    assert upper.lines[0].get_xdata().tolist() == lower.lines[0].get_xdata().tolist() == [1, 2, 3]
    assert "resampled before it" not in [line.get_label() for line in upper.lines]


# -- boards ---------------------------------------------------------------------------------------------------


def test_boards_over_depth_have_a_row_an_answer_and_mark_wrong_ones(six):
    axes = plots.boards_over_depth(six, tasks.Queens(6), steps=(1, 3))
    assert axes.shape == (3, 2)
    assert [axis.get_title() for axis in axes[0]] == ["depth 1", "depth 3"]
    assert [row[0].get_ylabel() for row in axes] == ["A ✓ 40%", "B ✓ 30%", "✗ 30%"]
    assert [[axis.get_xlabel() for axis in row] for row in axes] == [["✗", "A"], ["C", "B"], ["✗", "✗"]]
    dashed = [[axis.spines["left"].get_linestyle() == "--" for axis in row] for row in axes]
    assert dashed == [[True, False], [False, False], [True, True]]
    rings = [[len(axis.collections[-1].get_paths()) for axis in row] for row in axes]
    assert rings == [[6, 0], [0, 0], [6, 6]]  # all queens in one column attack each other


def test_boards_of_trajectories_are_the_heaviest_ones(six):
    axes = plots.boards_over_depth(six, tasks.Queens(6), by="trajectory", rows=2)
    assert [row[0].get_ylabel() for row in axes] == ["trajectory 2", "trajectory 3"]
    assert axes.shape == (2, 3)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"by": "slot"}, 'by must be "answer" or "trajectory", got \'slot\''),
        ({"rows": 0}, "rows must be at least 1, got 0"),
        ({"steps": (1, 7)}, r"steps must be among the recorded depth steps \[1, 2, 3\], got 7"),
        ({"axis": np.empty((2, 2), object)}, r"axis must hold 3 x 3 axes, got shape \[2, 2\]"),
    ],
)
def test_choices_of_boards_that_make_no_sense_are_named(six, choices, message):
    with pytest.raises(ValueError, match=message):
        plots.boards_over_depth(six, tasks.Queens(6), **choices)


def test_the_posterior_shows_shares_ticks_and_what_is_left_out(six):
    axes = plots.answer_posterior(six, tasks.Queens(6), most=2)
    assert [axis.get_title() for axis in axes] == ["A ✓ 40%", "B ✓ 30%"]
    assert [axis.lines[1].get_xdata()[1] for axis in axes] == pytest.approx([0.4, 0.3])
    assert axes[-1].texts[-1].get_text() == "and 1 more: 30%"
    with pytest.raises(ValueError, match="most must be at least 1, got 0"):
        plots.answer_posterior(six, tasks.Queens(6), most=0)


def test_a_board_is_drawn_into_the_axes_given_and_in_its_units():
    import matplotlib.pyplot as plt

    mine = plt.figure().subplots()
    axis = plots.board(tasks.Queens(5), [0, 5, 5, 5, 5], [0, 2, 4, 1, 3], mine)
    assert axis is mine and (axis.get_xlim(), axis.get_ylim()) == ((0, 5), (5, 0))
    inks = {patch.get_facecolor(): patch.get_path().get_extents() for patch in axis.patches}
    assert set(inks) == {to_rgba("black"), to_rgba(COLOURS[0])}  # the given queen, the others
    assert (inks[to_rgba("black")].x1, inks[to_rgba("black")].y1) < (1, 1)  # it stands in the upper left square


def test_an_answer_of_a_task_without_a_board_is_a_row_of_its_words():
    pairs = tasks.Pairs(np.arange(4)[None], np.arange(4)[None], columns=2)
    assert look_of(pairs, np.arange(4), np.array([3, 2, 1, 0])).symbols.tolist() == [["3", "2"], ["1", "0"]]

    class Spelled:
        def __init__(self, text):
            self.text = text

        def decode(self, y):
            return self.text

    def words(text):
        return look_of(Spelled(text), np.zeros(3), np.array([7, 8, 9])).symbols.tolist()

    assert words("a b c") == [["a", "b", "c"]]
    assert words("#.#") == [["#", ".", "#"]]
    assert words("something else") == [["7", "8", "9"]]


def test_small_symbols_are_left_out_of_large_coloured_grids():
    class Grid:
        def __init__(self, side):
            self.board = Board(("0", "1"), lambda y: y.reshape(-1, side, side), colours=("#000000", "#ffffff"))

    few, many = (plots.board(Grid(side), np.zeros(1), np.ones(side**2, int)) for side in (12, 13))
    assert len(few.patches) == 1 and not many.patches
    assert len(many.collections[0].get_paths()) == 169


def test_a_graph_dashes_the_edges_that_break_a_rule():
    task = tasks.Colouring(5)
    axis = plots.board(task, task.encode("0-1 1-2 2-3 3-4"), np.array([0, 1, 1, 2, 0]))
    kept, broken = axis.collections[:2]
    assert (len(kept.get_segments()), len(broken.get_segments())) == (3, 1)
    assert broken.get_linestyles()[0][1] is not None and kept.get_linestyles()[0][1] is None


# -- calibration, KL ------------------------------------------------------------------------------------------


def test_a_reliability_diagram_says_counts_and_errors_and_skips_empty_bins():
    measured = reliability([0.15] * 20 + [0.95] * 40, [True] * 2 + [False] * 18 + [True] * 38 + [False] * 2)
    axis = plots.reliability(measured)
    points = axis.containers[0].lines[0].get_xydata()
    assert np.allclose(points, [[0.15, 0.1], [0.95, 0.95]])
    assert [text.get_text() for text in axis.texts] == ["20", "40"]
    label = axis.get_legend().get_texts()[1].get_text()
    assert label == f"measured, calibration error 0.017 (calibrated: {measured.floor:.3f})"
    low, high = axis.containers[0].lines[2][0].get_segments()[0][:, 1]
    assert (low, high) == pytest.approx(tuple(binomtest(2, 20).proportion_ci(method="wilson")), abs=1e-4)


def test_risk_coverage_has_a_line_a_confidence_and_the_risk_of_answering_all():
    right = [True, True, False, True]
    curves = {"good": risk_coverage([4, 3, 1, 2], right), "bad": risk_coverage([1, 2, 4, 3], right)}
    axis = plots.risk_coverage(curves)
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["good, area 0.062", "bad, area 0.521"]
    lines = [line for line in axis.lines if len(line.get_xdata()) == 4]
    assert [line.get_linestyle() for line in lines] == ["-", "--"]
    assert lines[1].get_ydata().tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    assert axis.lines[-1].get_ydata() == [0.25, 0.25]
    assert plots.risk_coverage(curves["good"]).get_legend().get_texts()[0].get_text() == "risk, area 0.062"
    with pytest.raises(ValueError, match="curves must hold at least one curve"):
        plots.risk_coverage({})


def test_the_kl_map_has_depth_to_the_right_and_positions_downwards():
    kl = np.array([[3.0, 0.0, 1.0], [0.5, 0.0, np.nan]])
    axis = plots.kl_map(kl)
    picture = axis.images[0]
    assert np.array_equal(np.asarray(picture.get_array().filled(np.nan)), kl.T, equal_nan=True)
    assert picture.get_clim() == (0, 3)
    assert [label.get_text() for label in axis.get_xticklabels()] == ["1", "2"]
    for bad in (np.zeros(3), np.full((2, 2), np.nan)):
        with pytest.raises(ValueError, match=r"kl must be numbers \[S, L\]"):
            plots.kl_map(bad)


# -- the package ----------------------------------------------------------------------------------------------


def test_names_of_pictures_are_functions_whatever_was_imported_first():
    code = (
        "import sys; import probgram.plots.genealogy; from probgram import plots\n"
        "assert all(callable(getattr(plots, name)) for name in plots.__all__)\n"
        "assert 'matplotlib' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = plots.nonsense
