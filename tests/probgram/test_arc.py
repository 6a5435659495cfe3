"""ARC: files, grids as tokens and back, augmentations that can be undone, votes and attempts counted by hand."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from probgram import fit, tasks
from probgram.inference import sample, vote
from probgram.inference.objective import ObjectiveConfig
from probgram.models import GRAM, GRAMGuide
from probgram.tasks import arc_grids
from probgram.tasks.arc_grids import EDGE, Augmentation, draw_augmentations, grid_of, majority, tokens

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "arc"
real = pytest.mark.skipif(not DATA.is_dir(), reason=f"the corpus is not at {DATA}")


def mirrored(grid: list[list[int]]) -> list[list[int]]:
    return [row[::-1] for row in grid]


def corpus(folder: Path, kind: str, names: str, seed: int = 0) -> None:
    """Write tasks whose rule is to mirror the grid; the first asks twice."""
    rng = np.random.default_rng(seed)
    challenges, solutions = {}, {}
    for name in names:
        grids = [rng.integers(10, size=rng.integers(1, 5, size=2)).tolist() for _ in range(4 if name == "a" else 3)]
        challenges[name] = {
            "train": [{"input": grid, "output": mirrored(grid)} for grid in grids[:2]],
            "test": [{"input": grid} for grid in grids[2:]],
        }
        solutions[name] = [mirrored(grid) for grid in grids[2:]]
    (folder / f"arc-agi_{kind}_challenges.json").write_text(json.dumps(challenges))
    (folder / f"arc-agi_{kind}_solutions.json").write_text(json.dumps(solutions))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    corpus(tmp_path, "training", "abc")
    corpus(tmp_path, "evaluation", "xy", seed=1)
    return tmp_path


def random_grids(count: int, side: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(10, size=rng.integers(1, side + 1, size=2)) for _ in range(count)]


# -- grids ----------------------------------------------------------------------------------------------------


def test_a_grid_lies_in_the_corner_of_its_canvas_between_two_markers():
    laid = tokens(np.array([[1, 2], [3, 4]]), 3, beyond=-1)
    assert laid.reshape(3, 3).tolist() == [[1, 2, EDGE], [3, 4, -1], [EDGE, -1, -1]]
    assert tokens(np.array([[1, 2], [3, 4]]), 2, beyond=-1).tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("side", [1, 3, 30])
@pytest.mark.parametrize("beyond", [-1, 0, 11])
def test_a_grid_comes_back_whatever_stands_beyond_it(side, beyond):
    for grid in [*random_grids(50, side), np.zeros((side, side), int)]:
        laid = tokens(grid, side, beyond)
        assert np.array_equal(grid_of(laid), grid) and np.array_equal(grid_of(torch.from_numpy(laid)), grid)


def test_any_tokens_at_all_are_read_as_some_grid():
    for canvas in np.random.default_rng(0).integers(11, size=(200, 16)).astype(np.uint8):
        grid = grid_of(canvas)
        assert 1 <= min(grid.shape) <= max(grid.shape) <= 4
    assert grid_of(np.full(16, EDGE)).tolist() == [[EDGE]]
    with pytest.raises(ValueError, match="tokens of a grid must fill a square canvas, got 15"):
        grid_of(np.zeros(15))


def test_the_eight_symmetries_are_the_eight_different_images_of_a_square():
    square = np.array([[1, 2], [3, 4]])
    images = {Augmentation(turn).apply(square).tobytes() for turn in range(8)}
    assert len(images) == 8
    assert Augmentation(4).apply(square).tolist() == [[1, 3], [2, 4]]
    assert Augmentation(1).apply(square).tolist() == [[2, 4], [1, 3]]  # counter-clockwise
    assert Augmentation(0, (0, 2, 1, *range(3, 10))).apply(square).tolist() == [[2, 1], [3, 4]]


def test_every_augmentation_is_undone_and_keeps_black():
    ways = draw_augmentations(40, seed=0)
    assert {way.turn for way in ways} == set(range(8)) and len(set(ways)) == 41
    for way in ways:
        assert way.colours[0] == 0 and sorted(way.colours) == list(range(10))
        for grid in random_grids(10, 6):
            assert np.array_equal(way.undo(way.apply(grid)), grid) and np.array_equal(
                way.apply(way.undo(grid)), grid
            )
        marked = np.array([[1, EDGE, 2]])
        assert np.array_equal(way.undo(way.apply(marked)), marked)
    assert ways[0] == Augmentation() and draw_augmentations(40, seed=0) == ways != draw_augmentations(40, seed=1)


def test_the_majority_is_counted_by_size_and_cells():
    a, b, c = np.array([[1, 2]]), np.array([[1], [2]]), np.array([[1, 3]])
    found = majority([a, b, c, b, a, b])
    assert [vote.grid.tolist() for vote in found] == [[[1], [2]], [[1, 2]], [[1, 3]]]
    assert [vote.share for vote in found] == pytest.approx([3 / 6, 2 / 6, 1 / 6])
    assert majority([a, b])[0].grid is a  # of equals the first
    assert majority([a, b, b], [3.0, 1.0, 1.0])[0] == (a, pytest.approx(0.6))
    for grids, weights in (([], None), ([a], [0.0])):
        with pytest.raises(ValueError, match="a vote needs a grid with a weight above 0"):
            majority(grids, weights)


def test_grids_are_drawn_as_numbers_as_blocks_and_as_a_picture():
    grid = np.array([[0, 5, 9], [1, EDGE, 2]])
    assert arc_grids.text(grid) == "0 5 9\n1 X 2"
    blocks = arc_grids.blocks(grid)
    assert blocks.plain == "      \n      "
    assert [str(span.style) for span in blocks.spans][:2] == ["on #000000", "on #AAAAAA"]
    axes = arc_grids.picture(grid)
    mesh = axes.collections[0]
    colours = [tuple(colour[:3]) for colour in mesh.to_rgba(mesh.get_array().reshape(-1), bytes=True).tolist()]
    expected = [*arc_grids.PALETTE, arc_grids.OFF_PALETTE]
    assert colours == [tuple(bytes.fromhex(expected[cell][1:])) for cell in grid.reshape(-1)]
    assert axes.get_ylim() == (2, 0)  # the first row on top
    assert arc_grids.picture(grid, axes) is axes


# -- the task -------------------------------------------------------------------------------------------------


def test_a_set_has_its_tasks_its_pairs_and_an_id_for_each_augmentation(folder):
    task = tasks.Arc(folder, side=5)
    assert isinstance(task, tasks.Task)
    assert (task.name, task.length, task.input_size, task.output_size, task.tasks) == (
        "arc-training",
        25,
        12,
        11,
        3,
    )
    x, y = task.examples("train")
    assert x.shape == (6, 26) and y.shape == (6, 25) and x[:, 0].tolist() == [0, 0, 1, 1, 2, 2]
    assert task.examples("test")[0][:, 0].tolist() == [0, 0, 1, 2]
    evaluation = tasks.Arc(folder, set="evaluation", side=5, augmentations=3)
    assert evaluation.tasks == 5 * 4
    assert sorted(set(evaluation.examples("train")[0][:, 0].tolist())) == list(range(20))
    assert evaluation.examples("test")[0][:, 0].tolist() == [12, 16]  # x and y as they are
    assert repr(evaluation) == "Arc(evaluation, 5 tasks, 20 ids, side=5)"


@pytest.mark.parametrize("augmentations", [0, 7])
def test_pairs_are_those_of_the_file_under_their_augmentations(folder, augmentations):
    task = tasks.Arc(folder, side=5, augmentations=augmentations)
    file = json.loads((folder / "arc-agi_training_challenges.json").read_text())
    expected = [
        (way.apply(np.array(pair["input"])), way.apply(np.array(pair["output"])))
        for puzzle in task.puzzles
        for way in puzzle.augmentations
        for pair in file[puzzle.name]["train"]
    ]
    x, y = task.examples("train")
    assert len(x) == len(expected) == 6 * (1 + augmentations)
    for row_x, row_y, (given, wanted) in zip(x, y, expected, strict=True):
        assert np.array_equal(grid_of(row_x[1:]), given) and np.array_equal(grid_of(row_y), wanted)


def test_no_test_input_is_trained_on(folder):
    task = tasks.Arc(folder, set="evaluation", side=5, augmentations=3)
    train = {row.tobytes() for row in task.examples("train")[0]}
    for x in task.examples("test")[0]:
        assert not {view.tobytes() for view in task.views(x)} & train


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy], ids=["array", "tensor"])
def test_an_answer_is_right_where_its_grid_is_whatever_stands_beyond(folder, kind):
    task = tasks.Arc(folder, side=5, augmentations=2)
    for split in ("train", "test"):
        x, y = task.examples(split)
        rng = np.random.default_rng(0)
        free = np.where(y < 0, rng.integers(11, size=(20, *y.shape)), y)
        wrong = np.where(rng.random(free.shape) < 0.03, rng.integers(11, size=free.shape), free).astype(np.uint8)
        expected = [[np.array_equal(grid_of(a), grid_of(b)) for a, b in zip(row, y, strict=True)] for row in wrong]
        assert 0.1 < np.mean(expected) < 0.9
        assert np.asarray(task.verify(kind(x), kind(free))).all()
        assert np.array_equal(np.asarray(task.verify(kind(x), kind(wrong))), expected)
        count = ((wrong != y) & (y >= 0)).sum(-1)
        assert np.array_equal(np.asarray(task.violations(kind(x), kind(wrong))), count)


def test_what_is_not_in_the_corpus_has_no_known_answer(folder):
    task = tasks.Arc(folder, side=5)
    x = task.encode(("a", [[1, 2, 3, 4, 5]]))
    for call in (task.answers, lambda x: task.verify(x, np.zeros(25, int))):
        with pytest.raises(tasks.UnknownAnswers, match="neither a demonstration nor a test input of task a"):
            call(x)
    with pytest.raises(tasks.UnknownAnswers, match="must name a task from 0 to 2, got 3"):
        task.answers(np.r_[3, x[1:]])
    with pytest.raises(tasks.UnknownAnswers, match="says nothing of the tokens outside"):
        task.solutions(x)
    with pytest.raises(ValueError, match=r"x must be \[..., 26\]"):
        task.answers(x[1:])
    with pytest.raises(ValueError, match="^an answer must have 25 tokens, got shape \\[1\\]"):
        task.verify(task.encode("a"), np.zeros(1, int))


def test_problems_are_read_by_name_number_or_grid(folder):
    task = tasks.Arc(folder, side=5)
    x, _ = task.examples("test")
    for text, row in (("a", 0), ("a:0", 0), (" a:1\n", 1), ("b", 2), ("c:0", 3)):
        assert np.array_equal(task.encode(text), x[row])
    assert np.array_equal(task.encode(("b", grid_of(x[2, 1:]).tolist())), x[2])
    assert task.decode(x[0]) == task.decode(x[0, 1:]) == arc_grids.text(grid_of(x[0, 1:]))
    for problem, message in [
        ("d", "arc-training has no task 'd'"),
        ("a:2", "task a has 2 test inputs, counted from 0, got '2'"),
        (("a", [[1] * 6]), r"the grid must fit on 5x5 cells, got \[1, 6\]"),
        (("a", [[1, 2], [3]]), "a grid must have rows of one length"),
        (("a", [[10]]), "a grid must hold colours from 0 to 9"),
        (("a", [[0.5]]), "a grid must hold colours from 0 to 9"),
        (("a", []), "a grid must have 1 to 30 rows and columns"),
        (3, "a problem must be"),
    ]:
        with pytest.raises(ValueError, match=message):
            task.encode(problem)


def test_bad_choices_and_files_are_one_clear_sentence(folder, tmp_path):
    for choices, message in [
        ({"set": "test"}, 'set must be "training"'),
        ({"side": 31}, "side must be an integer from 1 to 30, got 31"),
        ({"augmentations": -1}, "augmentations must be an integer from 0 to"),
        ({"set": "evaluation2"}, "arc-agi_evaluation2_challenges.json cannot be read"),
        ({"side": 1}, "no task of training fits on a canvas of 1 cells a side"),
    ]:
        with pytest.raises(ValueError, match=message):
            tasks.Arc(folder, **choices)
    solutions = folder / "arc-agi_training_solutions.json"
    for content, message in [
        ("{", "cannot be read"),
        ("[]", "must hold an object"),
        ("{}", "task a of training is not"),
    ]:
        solutions.write_text(content)
        with pytest.raises(ValueError, match=message):
            tasks.Arc(folder)
    challenges, content = folder / "arc-agi_training_challenges.json", {"train": [], "test": []}
    for shown in ([], [{"input": [[1]], "output": [[2]]}]):  # a score would be the mean of nothing
        challenges.write_text(json.dumps({"a": content | {"train": shown}}))
        solutions.write_text(json.dumps({"a": []}))
        with pytest.raises(ValueError, match="task a of training is not of ARC's format: it has no test input"):
            tasks.Arc(folder)
    with pytest.raises(ValueError, match='split must be "train" or "test"'):
        corpus(folder, "training", "abc")
        tasks.Arc(folder).examples("validation")


# -- voting and attempts --------------------------------------------------------------------------------------


def test_votes_are_counted_after_the_augmentations_are_undone(folder):
    task = tasks.Arc(folder, side=5, augmentations=4)
    x, y = task.examples("test")
    views = task.views(x[0])
    assert views.shape == (5, 26) and np.array_equal(views[0], x[0]) and len(set(views[:, 0].tolist())) == 5
    assert all(np.array_equal(task.views(view), views) for view in views)
    right = task.answers(views)  # [V, L], -1 outside
    assert np.array_equal(right[0], y[0])
    rng = np.random.default_rng(0)
    answers = np.where(right < 0, rng.integers(11, size=(3, *right.shape)), right)  # [N, V, L], freely filled
    answers[0, :, 0] = (answers[0, :, 0] + 1) % 10  # five of fifteen are wrong, in cells that are not the same ones
    found = task.vote(views, torch.from_numpy(answers))
    assert np.array_equal(found[0].grid, grid_of(y[0])) and found[0].share == pytest.approx(10 / 15)
    weights = np.ones((3, 5))
    weights[1:] = 0
    weights[1, 2] = 9.0
    assert task.vote(views, answers, weights)[0].share == pytest.approx(9 / 14)


def test_the_score_is_the_mean_over_tasks_of_inputs_solved_in_two_attempts(folder):
    task = tasks.Arc(folder, side=5)
    right = {p.name: [pair.output.tolist() for pair in p.tests] for p in task.puzzles}  # a: two, b and c: one
    wrong = [[0] * 5]
    assert task.score({name: [[grid] for grid in grids] for name, grids in right.items()}) == 1.0
    assert task.score({}) == 0.0
    assert task.score({"a": [[wrong, right["a"][0]], [wrong, wrong, right["a"][1]]]}) == pytest.approx(0.5 / 3)
    assert task.score({"a": [[right["a"][0]]], "b": [[np.array(right["b"][0])]]}) == pytest.approx(1.5 / 3)
    assert task.score({"c": [[]], "b": [[right["b"][0][::-1] + [[0]]]]}) == 0.0
    with pytest.raises(ValueError, match="training has no task 'x'"):
        task.score({"x": [[wrong]]})
    evaluation = tasks.Arc(folder, set="evaluation", side=5)
    with pytest.raises(ValueError, match="evaluation has no task 'a'"):
        evaluation.score(dict.fromkeys(right, []))


def test_a_chain_with_task_tokens_trains_on_it_and_its_answers_can_vote(folder):
    task = tasks.Arc(folder, set="evaluation", side=5, augmentations=1)
    torch.manual_seed(0)
    chain = GRAM.for_task(task, tasks=task.tasks, dim=16, heads=2, hidden=16, refinements=1, transitions=1)
    objective = ObjectiveConfig(depth=2)
    result = fit(chain, GRAMGuide(chain), task, 3, objective=objective, batch=4, progress=False, validate_every=3)
    assert "valid_held_out" in result.history[-1]
    views = task.views(task.encode("x"))
    run = sample(chain, views, width=3, depth=2)
    found = task.vote(views, run.answers[-1], run.weights[-1])
    assert sum(vote.share for vote in found) == pytest.approx(1.0)
    assert 0 <= task.score({"x": [[vote.grid for vote in found]]}) <= 0.5


# -- the real corpus ------------------------------------------------------------------------------------------


@real
@pytest.mark.parametrize(
    ("kind", "count", "tests"), [("training", 400, 416), ("evaluation", 400, 419), ("evaluation2", 120, 172)]
)
def test_the_corpus_loads_whole_and_comes_back(kind, count, tests):
    task = tasks.Arc(DATA, set=kind)
    own = task.puzzles[task._first :]
    assert len(own) == count and task.tasks == (count if kind == "training" else 400 + count)
    file = json.loads((DATA / f"arc-agi_{kind}_challenges.json").read_text())
    solutions = json.loads((DATA / f"arc-agi_{kind}_solutions.json").read_text())
    x, y = task.examples("test")
    assert len(x) == tests and x.shape[1] == 901
    given = [grid["input"] for puzzle in own for grid in file[puzzle.name]["test"]]
    wanted = [grid for puzzle in own for grid in solutions[puzzle.name]]
    assert all(grid_of(row[1:]).tolist() == grid for row, grid in zip(x, given, strict=True))
    assert all(grid_of(row).tolist() == grid for row, grid in zip(y, wanted, strict=True))
    assert task.verify(x[:50], y[:50]).all() and not task.verify(x[:50], np.roll(y, 1, 0)[:50]).all()
    assert task.score({puzzle.name: [[grid] for grid in solutions[puzzle.name]] for puzzle in own}) == 1.0


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_answers_that_show_the_same_grid_are_made_equal(library: str) -> None:
    rng = np.random.default_rng(0)
    grids = random_grids(200, 6)
    y = rng.integers(11, size=(200, 2, 36)).astype(np.uint8)  # noise beyond the grid, and any canvas at all
    for row, grid in zip(y[:150], grids, strict=False):
        said = tokens(grid, 6, -1)
        row[:, said >= 0] = said[said >= 0]
    given = torch.from_numpy(y) if library == "torch" else y
    made = arc_grids.canonical(given)
    assert made.dtype == given.dtype
    for before, after in zip(y.reshape(-1, 36), np.asarray(made).reshape(-1, 36), strict=True):
        grid = grid_of(before)
        assert np.array_equal(grid_of(after), grid)
        assert (np.delete(after.reshape(6, 6), np.s_[: grid.shape[0]], 0) == EDGE).all()
        assert (after.reshape(6, 6)[:, grid.shape[1] :] == EDGE).all()
    assert (np.asarray(made)[:150, 0] == np.asarray(made)[:150, 1]).all()


def test_a_vote_counts_grids_and_not_what_lies_beyond_them(folder: Path) -> None:
    arc = tasks.Arc(folder, side=6)
    x = arc.examples("test")[0][:1]
    torch.manual_seed(0)
    run = sample(GRAM.for_task(arc, tasks=arc.tasks, dim=16, heads=2, hidden=24), x, width=10, depth=1)
    right, answers = arc.answers(x[0]), np.random.default_rng(0).integers(10, size=(1, 10, 1, 36))
    answers[0, :6, 0, right >= 0] = right[right >= 0][:, None]
    answers[0, 6:] = answers[0, 9]
    run = replace(run, answers=torch.as_tensor(answers.astype(np.uint8)))
    assert not bool(arc.verify(run.x, vote(run).answers).any())
    counted = run.canonical(arc)
    assert bool(arc.verify(counted.x, vote(counted).answers).all())
    assert counted.distinct().shares.tolist() == pytest.approx([0.6, 0.4])
    assert run.canonical(tasks.Queens(5)) is run


def test_tokens_of_a_problem_are_read_again(folder: Path) -> None:
    arc = tasks.Arc(folder, augmentations=2, side=6)
    for x in arc.examples("train")[0][:5]:
        assert np.array_equal(arc.encode(x), x)
