"""Sudoku: counts that are known, verification and search against brute force, files, symmetries, safe splits."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from probgram import tasks
from probgram.tasks import group_answers, sudoku_data, sudoku_solver, sudoku_symmetry

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "sudoku"
BOXES = [(2, 2), (2, 3), (3, 3)]

# A board that newspapers print often (Wikipedia, "Sudoku"), and its answer.
PUZZLE = "530070000600195000098000060800060003400803001700020006060000280000419005000080079"
ANSWER = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"


def file(name: str) -> Path:
    if not (DATA / name).is_file():
        pytest.skip(f"{name} is not in the folder of shared data")
    return DATA / name


def first_lines(tmp_path: Path, name: str, count: int) -> Path:
    lines = file(name).read_text().splitlines()[:count]
    (tmp_path / name).write_text("\n".join(lines))
    return tmp_path / name


def units_of(box: tuple[int, int]) -> list[list[int]]:
    """Rows, columns and boxes, straight from the rules."""
    height, width = box
    n = height * width
    cells = list(itertools.product(range(n), repeat=2))
    rows = [[r * n + c for r, c in cells if r == k] for k in range(n)]
    columns = [[r * n + c for r, c in cells if c == k] for k in range(n)]
    corners = itertools.product(range(0, n, height), range(0, n, width))
    boxes = [[r * n + c for r, c in cells if 0 <= r - a < height and 0 <= c - b < width] for a, b in corners]
    return rows + columns + boxes


def slow_violations(box: tuple[int, int], x: list[int], y: list[int]) -> int:
    n = box[0] * box[1]
    missing = sum(d not in {y[i] for i in unit} for unit in units_of(box) for d in range(1, n + 1))
    return missing + sum(given not in (0, token) for given, token in zip(x, y, strict=True))


def brute_force_grids() -> list[list[int]]:
    """All 4x4 grids, of all sequences of four rows that are permutations."""
    rows = list(itertools.permutations((1, 2, 3, 4)))
    return [
        [cell for row in grid for cell in row]
        for grid in itertools.product(rows, repeat=4)
        if all(len(set(column)) == 4 for column in zip(*grid, strict=True))
        and all(len({*grid[r][c : c + 2], *grid[r + 1][c : c + 2]}) == 4 for r in (0, 2) for c in (0, 2))
    ]


GRIDS = np.array(brute_force_grids())


def random_pairs(task: tasks.Sudoku, rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Boards with answers that range from right to nonsense, tokens outside the digits included."""
    rng = np.random.default_rng(seed)
    x, y = task.generate(rows, clues=(0, task.length), unique=False, seed=seed)
    noise = rng.integers(task.n + 3, size=y.shape)
    y = np.where(rng.random(y.shape) < rng.choice([0.0, 0.02, 0.5, 1.0], size=(rows, 1)), noise, y)
    swapped = rng.random(rows) < 0.2
    x[swapped] = x[rng.permutation(rows)][swapped]
    return x, y


def as_array(values: np.ndarray, kind: str):
    return torch.from_numpy(values.astype(kind[6:])) if kind.startswith("torch.") else values.astype(kind)


# -- truth ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("box", [(2, 2), (2, 3), (3, 2), (3, 3), (3, 4)])
def test_units_are_rows_columns_and_boxes(box):
    n = box[0] * box[1]
    assert sudoku_solver.units(box).reshape(-1, n).tolist() == units_of(box)


def test_the_grids_of_4x4_are_the_288_that_brute_force_finds():
    assert len(GRIDS) == 288
    assert np.array_equal(tasks.Sudoku(2).grids(), GRIDS)  # both in lexicographic order


@pytest.mark.parametrize("box", [*BOXES, (3, 2)])
def test_violations_agree_with_a_slow_count_and_are_none_exactly_where_verify_is_true(box):
    task = tasks.Sudoku(box)
    x, y = random_pairs(task, 300)
    expected = np.array([slow_violations(box, *pair) for pair in zip(x.tolist(), y.tolist(), strict=True)])
    assert 0.1 < (expected == 0).mean() < 0.9
    assert np.array_equal(task.violations(x, y), expected)
    assert np.array_equal(task.verify(x, y), expected == 0)


def test_of_all_boards_with_permutations_as_rows_exactly_the_grids_verify():
    rows = np.array(list(itertools.permutations((1, 2, 3, 4))), dtype=np.uint8)
    boards = rows[np.array(list(itertools.product(range(24), repeat=4)))].reshape(-1, 16)
    task = tasks.Sudoku(2)
    assert np.array_equal(boards[task.verify(np.zeros(16, int), boards)], GRIDS)


@pytest.mark.parametrize("kind", ["uint8", "int8", "int64", "torch.uint8", "torch.int64"])
@pytest.mark.parametrize("box", BOXES)
def test_verify_is_the_same_for_every_kind_of_array(box, kind):
    task = tasks.Sudoku(box)
    x, y = random_pairs(task, 200, seed=1)
    for question in (task.verify, task.violations):
        found = question(as_array(x, kind), as_array(y, kind))
        assert isinstance(found, torch.Tensor if kind.startswith("torch.") else np.ndarray)
        assert np.array_equal(np.asarray(found), question(x, y))


def test_verify_broadcasts_over_particles():
    task = tasks.Sudoku(2)
    x, y = random_pairs(task, 40)
    rolled = np.stack([y, np.roll(y, 1, 0), np.roll(y, 2, 0)])  # [N, B, L]
    expected = np.stack([task.verify(x, rows) for rows in rolled])
    assert np.array_equal(task.verify(x, rolled), expected)
    assert np.array_equal(task.verify(torch.tensor(x), torch.tensor(rolled)).numpy(), expected)


def test_a_changed_given_is_wrong_even_on_a_perfect_board():
    task = tasks.Sudoku(2)
    x = np.where(np.arange(16) == 5, GRIDS[0], 0)
    assert task.verify(x, GRIDS).sum() == 288 // 4
    assert task.violations(x, GRIDS).tolist() == (GRIDS[:, 5] != GRIDS[0, 5]).astype(int).tolist()


# -- search ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nodes", [sudoku_solver.NODES, 0], ids=["by our search", "by CP-SAT"])
def test_solutions_of_4x4_boards_are_what_brute_force_finds(nodes):
    if nodes == 0:
        pytest.importorskip("ortools")
    rng = np.random.default_rng(0)
    x, _ = tasks.Sudoku(2).generate(40, clues=(0, 12), unique=False, seed=0)
    x[:20] = rng.integers(5, size=(20, 16)) * (rng.random((20, 16)) < 0.2)  # clashing and unsolvable ones too
    answers, counts = sudoku_solver.solve(x, (2, 2), limit=300, nodes=nodes)
    expected = [GRIDS[((board == 0) | (board == GRIDS)).all(1)] for board in x]
    assert (counts == 0).any() and counts.max() > 10
    assert counts.tolist() == [len(grids) for grids in expected]
    assert np.array_equal(answers, np.concatenate(expected))
    for board, grids in zip(x, expected, strict=True):
        assert np.array_equal(tasks.Sudoku(2).solutions(board), grids)


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_a_search_gives_as_many_solutions_as_there_are_but_no_more_than_the_limit(limit):
    x, _ = tasks.Sudoku(2).generate(60, clues=(2, 6), unique=False, seed=0)
    there_are = ((x[:, None] == 0) | (x[:, None] == GRIDS)).all(-1).sum(1)
    answers, counts = sudoku_solver.solve(x, (2, 2), limit)
    assert np.array_equal(counts, np.minimum(there_are, limit)) and len(answers) == counts.sum()
    owner = np.repeat(np.arange(60), counts)
    assert tasks.Sudoku(2).verify(x[owner], answers).all()
    assert len(np.unique(np.concatenate([owner[:, None], answers], 1), axis=0)) == len(answers)  # none twice


@pytest.mark.parametrize("box", [(2, 3), (3, 3)])
def test_our_search_and_cp_sat_find_the_same_solutions(box):
    pytest.importorskip("ortools")
    task = tasks.Sudoku(box)
    low = 10 if box == (2, 3) else 30
    x, _ = task.generate(25, clues=(low, low + 6), unique=False, seed=1)
    ours, theirs = (sudoku_solver.solve(x, box, 200, nodes) for nodes in (sudoku_solver.NODES, 0))
    assert len(np.unique(ours[1])) > 5
    assert np.array_equal(ours[1], theirs[1])
    whole = np.repeat(ours[1] < 200, ours[1])  # which ones come first under a limit is nobody's promise
    assert np.array_equal(ours[0][whole], theirs[0][whole])


def test_the_printed_puzzle_has_its_printed_answer():
    task = tasks.Sudoku(3)
    x = task.encode(PUZZLE)
    assert task.solutions(x).tolist() == [[int(d) for d in ANSWER]]
    assert task.count(x) == 1 and task.clues(x) == 30
    assert task.verify(x, task.encode(ANSWER))


def test_counting_and_listing_stop_at_the_limit():
    task = tasks.Sudoku(3)
    assert task.count(np.zeros(81, int), limit=50) == 50
    with pytest.raises(tasks.UnknownAnswers, match="the board has more than 20 solutions"):
        task.solutions(np.zeros(81, int), limit=20)
    small = tasks.Sudoku(2)
    assert small.count(torch.zeros(16, dtype=torch.uint8)) == 288
    assert small.count(np.zeros(16, int), limit=7) == 7
    assert len(small.solutions(np.zeros(16, int), limit=288)) == 288
    with pytest.raises(tasks.UnknownAnswers, match="more than 287"):
        small.solutions(np.zeros(16, int), limit=287)


def test_without_or_tools_a_board_that_needs_it_says_how_to_install_it(monkeypatch):
    for module in ("ortools", "ortools.sat", "ortools.sat.python"):
        monkeypatch.setitem(sys.modules, module, None)
    x = tasks.Sudoku(3).encode(PUZZLE)[None]
    assert sudoku_solver.solve(x, (3, 3), 2)[1] == 1
    with pytest.raises(tasks.UnknownAnswers, match=r"pip install probgram\[tasks\]"):
        sudoku_solver.solve(x, (3, 3), 2, nodes=0)


# -- reading and drawing --------------------------------------------------------------------------------------


def test_every_way_to_write_a_board_is_the_same_board():
    task = tasks.Sudoku(3)
    x = np.array([int(d) for d in PUZZLE])
    rows = [PUZZLE[i : i + 9] for i in range(0, 81, 9)]
    written = [
        PUZZLE,
        PUZZLE.replace("0", "."),
        "\n".join(rows),
        " ".join(PUZZLE),
        ", ".join(PUZZLE),
        task.decode(x),
        "|" + task.decode(x).replace("\n", "|\n|") + "|",
        [int(d) for d in PUZZLE],
        [[int(d) or None for d in row] for row in rows],
        x.reshape(9, 9),
        torch.tensor(x, dtype=torch.uint8),
    ]
    for problem in written:
        found = task.encode(problem)
        assert found.dtype == np.int64 and np.array_equal(found, x)


def test_a_board_is_drawn_with_lines_between_its_boxes():
    assert tasks.Sudoku(2).decode([1, 2, 3, 4, 3, 4, 0, 0, 2, 1, 4, 3, 4, 3, 2, 9]).splitlines() == [
        "1 2 | 3 4",
        "3 4 | . .",
        "----+----",
        "2 1 | 4 3",
        "4 3 | 2 ?",
    ]
    assert tasks.Sudoku((2, 3)).decode([0] * 36).splitlines()[1:3] == [". . . | . . .", "------+------"]


@pytest.mark.parametrize("box", [(2, 2), (2, 3), (3, 3), (3, 4), (4, 4)])
def test_what_is_drawn_can_be_read(box):
    task = tasks.Sudoku(box)
    x, _ = task.generate(3, clues=task.length // 2, unique=False)
    for board in x:
        assert np.array_equal(task.encode(task.decode(board)), board)
        assert np.array_equal(task.encode(" ".join(str(d) for d in board)), board)
        assert np.array_equal(task.encode("".join(sudoku_data.SYMBOLS[d - 1] if d else "." for d in board)), board)


@pytest.mark.parametrize(
    ("problem", "sentence"),
    [
        ("12", "a board must have 16 cells, 1 to 4 or . for a blank, got 2: '12'"),
        ("1" + 14 * "." + "5", "the cell in row 3, column 3 must be 1 to 4, or . for a blank, got '5'"),
        ("..x" + 13 * ".", "the cell in row 0, column 2 must be 1 to 4, or . for a blank, got 'x'"),
        ("..²" + 13 * ".", "the cell in row 0, column 2 must be"),
        ("1 99999999999999999999" + 14 * " .", "the cell in row 0, column 1 must be 1 to 4, or . for a blank"),
        ("1..1" + 12 * ".", "the digit 1 is twice in row 0: in row 0, column 0 and in row 0, column 3"),
        ("..2." + 8 * "." + "..2.", "the digit 2 is twice in column 2: in row 0, column 2 and in row 3, column 2"),
        (8 * "." + "..3....3", "the digit 3 is twice in box 3: in row 2, column 2 and in row 3, column 3"),
        ([0] * 15, "a board of sudoku4 must have 16 cells, got 15"),
        ([0] * 15 + [-1], "the cell in row 3, column 3 must be 1 to 4, or 0 or None for a blank, got -1"),
        ([True] + [0] * 15, "the cell in row 0, column 0 must be .* got True"),
        ([0.5] + [0] * 15, "the cell in row 0, column 0 must be .* got 0.5"),
        (7, "a board must be text or 16 cells, got 7"),
    ],
)
def test_bad_boards_get_one_sentence(problem, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        tasks.Sudoku(2).encode(problem)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: tasks.Sudoku(1), "box must have at least 2 rows and columns and at most 25 cells, got 1"),
        (lambda: tasks.Sudoku(6), "at most 25 cells, got 6"),
        (lambda: tasks.Sudoku((2, 3, 4)), "box must be the side of a box or its rows and columns"),
        (lambda: tasks.Sudoku("3"), "box must be the side of a box or its rows and columns, got '3'"),
        (lambda: tasks.Sudoku(2, split="rows"), 'split must be "orbit" or "input"'),
        (lambda: tasks.Sudoku(2, test="a.txt"), "test names boards to be held out, which needs data"),
        (lambda: tasks.Sudoku(2, problems=1), "problems must be at least 2, got 1"),
        (lambda: tasks.Sudoku(2, clues=17), "clues must be from 0 to 16"),
        (lambda: tasks.Sudoku(2, clues=(5, 4)), "the least before the most"),
        (lambda: tasks.Sudoku(2).examples("all"), 'split must be "train" or "test"'),
        (lambda: tasks.Sudoku(3).grids(), "sudoku9 has too many grids to list them all: say how many"),
        (lambda: tasks.Sudoku(2).generate(1, clues=3), "boards with 3 clues and one solution are too rare"),
        (lambda: tasks.Sudoku(2).solutions([0] * 15), "x must be one board of sudoku4"),
        (lambda: tasks.Sudoku(3, "nowhere.txt").examples("train"), "nowhere.txt cannot be read as text: No such"),
    ],
)
def test_bad_calls_get_one_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        call()
    assert "\n" not in str(error.value)


# -- files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count", "boards"), [("easy50.txt", 50, 50), ("top95.txt", 95, 95), ("sudokus_17.txt", 200, 200)]
)
def test_published_puzzles_have_one_solution_each(tmp_path, name, count, boards):
    path = first_lines(tmp_path, name, count)
    read = sudoku_data.read_boards(path, (3, 3))
    assert read.x.shape == (boards, 81) and not read.y.any() and np.isnan(read.rating).all()
    task = tasks.Sudoku(3, path)
    (train_x, train_y), (test_x, test_y) = task.examples("train"), task.examples("test")
    assert len(train_x) + len(test_x) == len(np.unique(read.x, axis=0))
    assert task.verify(train_x, train_y).all() and task.verify(test_x, test_y).all()
    if name == "sudokus_17.txt":
        assert (task.clues(train_x) == 17).all()


def test_boards_of_mixed_difficulty_agree_with_cp_sat(tmp_path):
    pytest.importorskip("ortools")
    task = tasks.Sudoku(3, first_lines(tmp_path, "sudoku10k.txt", 200))
    x, y = task.examples("train")
    assert len(x) > 150
    for board, answer in list(zip(x, y, strict=True))[::5]:
        assert sudoku_solver.by_cp_sat(board, (3, 3), 2).tolist() == [answer.tolist()]


def extreme(tmp_path: Path, rows: list[str], name: str = "extreme.csv") -> Path:
    """A file in the format of Sudoku-Extreme."""
    (tmp_path / name).write_text("\n".join(["source,question,answer,rating", *rows]) + "\n")
    return tmp_path / name


def image(text: str, step: int) -> str:
    """The digits of a board renamed cyclically."""
    return "".join(c if c in ".0" else str((int(c) - 1 + step) % 9 + 1) for c in text)


def test_sudoku_extreme_is_read_with_its_answers_and_ratings(tmp_path):
    rows = [f"p{k},{image(PUZZLE, k).replace('0', '.')},{image(ANSWER, k)},{10 * k}" for k in range(4)]
    task = tasks.Sudoku(3, extreme(tmp_path, rows), split="input")
    x, y = (np.concatenate(part) for part in zip(task.examples("train"), task.examples("test"), strict=True))
    order = task.ratings(x).argsort()
    assert task.ratings(x)[order].tolist() == [0, 10, 20, 30]
    assert task.ratings(torch.tensor(x[order])).tolist() == [0, 10, 20, 30]
    assert ["".join(map(str, board)) for board in x[order]] == [image(PUZZLE, k) for k in range(4)]
    assert ["".join(map(str, board)) for board in y[order]] == [image(ANSWER, k) for k in range(4)]
    assert np.isnan(task.ratings(np.zeros((1, 81), int))).all()


def test_a_file_without_answers_gets_them_from_the_search(tmp_path):
    (tmp_path / "b.csv").write_text(f"question,level\n{PUZZLE},1\n{image(PUZZLE, 1)},1\n")
    (tmp_path / "b.txt").write_text(f"# two boards\n\n{PUZZLE}\n{' '.join(image(PUZZLE, 1))}\n{PUZZLE}\n")
    for name in ("b.csv", "b.txt"):
        task = tasks.Sudoku(3, tmp_path / name, split="input")
        assert {tuple(y) for split in ("train", "test") for y in task.examples(split)[1].tolist()} == {
            tuple(int(d) for d in image(ANSWER, k)) for k in range(2)
        }


WRONG = ANSWER[:-1] + "8"
ELSE = image(ANSWER, 1)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([f"a,{PUZZLE},{ANSWER},1", f"a,{PUZZLE[:-1]},{ANSWER},1"], "line 3 of extreme.csv: a board must have 81"),
        ([f"a,{PUZZLE},{WRONG},1"], "the answer in line 2 of extreme.csv: the digit 8 is twice in row 8"),
        ([f"a,{PUZZLE},{ELSE},1"], "the answer in line 2 of extreme.csv changes a given digit"),
        ([f"a,{PUZZLE},{PUZZLE},1"], "the answer in line 2 of extreme.csv leaves a cell blank"),
        ([f"a,{PUZZLE},{ANSWER},hard"], "line 2 of extreme.csv must have a number as its rating, got 'hard'"),
        ([f"a,{'1' + 20 * '0' + 80 * ' 1'},,1"], "line 2 of extreme.csv: the cell in row 0, column 0 must be"),
        (
            [f"a,{PUZZLE},{ANSWER},1", '"a', 140_000 * "."],
            "line 3 of extreme.csv cannot be read as CSV: field larger",
        ),
        ([f"a,{PUZZLE},{ANSWER}"], "line 2 of extreme.csv must have 4 fields, got 3"),
        ([f"a,{'5' + PUZZLE[1:2] + '5' + PUZZLE[3:]},,1"], "line 2 of extreme.csv: the digit 5 is twice in row 0"),
        ([f"a,{PUZZLE},{ANSWER},1", f"a,{'.' * 81},{ANSWER},1"], "line 3 of extreme.csv: .* several solutions"),
        ([f"a,{'12345678.' + 8 * '.' + '9' + 63 * '.'},,1"], "line 2 of extreme.csv: the board has no solution"),
        ([], "extreme.csv holds no boards"),
        ([f"a,{PUZZLE},{ANSWER},1"], "of 1 boards none are left to train on"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, rows, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        tasks.Sudoku(3, extreme(tmp_path, rows)).examples("train")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        f"# from here, there and everywhere\n{PUZZLE}\n{image(PUZZLE, 1)}\n",
        f"{','.join(PUZZLE)}\n{','.join(image(PUZZLE, 1))}\n",
        f"\n# source, of all\nquestion,level\n{PUZZLE},1\n{image(PUZZLE, 1)},1\n",
        f"Question\n{PUZZLE}\n{image(PUZZLE, 1)}\n",
    ],
    ids=["comment", "commas", "empty line", "one column"],
)
def test_the_first_line_that_says_something_tells_text_from_csv(tmp_path, text):
    (tmp_path / "boards").write_text(text)
    boards = sudoku_data.read_boards(tmp_path / "boards", (3, 3))
    assert ["".join(map(str, x)) for x in boards.x] == [PUZZLE, image(PUZZLE, 1)]
    assert text.splitlines()[boards.line[0] - 1].replace(",", "").startswith(PUZZLE)


def test_a_csv_without_questions_says_what_it_has(tmp_path):
    (tmp_path / "b.csv").write_text("quizzes,solutions\n")
    with pytest.raises(ValueError, match=r'must name a column "question" in its first line, found \[\'quizzes'):
        tasks.Sudoku(3, tmp_path / "b.csv").examples("train")


def test_boards_with_several_solutions_are_read_where_asked_for(tmp_path):
    x, _ = tasks.Sudoku(2).generate(30, clues=5, unique=False, seed=4)
    (tmp_path / "b.txt").write_text("\n".join("".join(map(str, board)) for board in x))
    task = tasks.Sudoku(2, tmp_path / "b.txt", unique=False)
    pairs = {
        (tuple(a), tuple(b))
        for split in ("train", "test")
        for a, b in zip(*map(np.ndarray.tolist, task.examples(split)), strict=True)
    }
    assert pairs == {(tuple(b), tuple(y)) for b in x.tolist() for y in task.solutions(np.array(b)).tolist()}


def test_so_many_problems_are_drawn_from_the_data(tmp_path):
    x, _ = tasks.Sudoku(2).generate(200, clues=(6, 10), seed=0)
    (tmp_path / "b.txt").write_text("\n".join("".join(map(str, board)) for board in x))
    known = tasks.Sudoku(2, tmp_path / "b.txt", problems=50).known
    assert len(known.x) == 50 and known.in_train.sum() + known.in_test.sum() == 50
    assert np.array_equal(known.x, tasks.Sudoku(2, tmp_path / "b.txt", problems=50).known.x)
    assert not np.array_equal(known.x, tasks.Sudoku(2, tmp_path / "b.txt", problems=50, seed=1).known.x)


# -- boards made here -----------------------------------------------------------------------------------------


def test_the_4x4_data_set_has_every_answer_of_every_board():
    task = tasks.Sudoku(2)
    assert isinstance(task, tasks.Task)
    (train_x, train_y), (test_x, test_y) = task.examples("train"), task.examples("test")
    known = tasks.group_answers(np.concatenate([train_x, test_x]), np.concatenate([train_y, test_y]))
    assert known.counts.sum() == len(train_x) + len(test_x)  # no pair twice
    assert len(known.x) == len(task.known.x) > 4_900
    assert (known.counts > 1).mean() > 0.5
    fits = ((known.x[:, None] == 0) | (known.x[:, None] == GRIDS)).all(-1)  # [I, 288]
    assert np.array_equal(known.counts, fits.sum(1))
    assert task.verify(train_x, train_y).all() and task.verify(test_x, test_y).all()
    assert {3, 7} <= set(task.clues(train_x).tolist()) <= set(range(3, 8))
    assert train_x.dtype == train_y.dtype == np.int64
    assert train_x.max() < task.input_size and train_y.max() < task.output_size


@pytest.mark.parametrize(("box", "clues"), [(2, 6), ((2, 3), (12, 15)), (3, (27, 30))])
def test_boards_made_with_one_solution_have_it_and_so_many_clues(box, clues):
    task = tasks.Sudoku(box)
    x, y = task.generate(10, clues, seed=5)
    assert task.verify(x, y).all()
    low, high = (clues, clues) if isinstance(clues, int) else clues
    assert (low <= task.clues(x)).all() and (task.clues(x) <= high).all()
    for board, answer in zip(x, y, strict=True):
        assert task.solutions(board).tolist() == [answer.tolist()]
    assert np.array_equal(task.generate(10, clues, seed=5)[0], x)
    assert not np.array_equal(task.generate(10, clues, seed=6)[0], x)


def test_9x9_boards_are_made_where_there_are_no_data():
    task = tasks.Sudoku(3, problems=40)
    train, test = task.examples("train"), task.examples("test")
    assert len(train[0]) == 34 and len(test[0]) == 6
    assert task.verify(*train).all()
    assert (28 <= task.clues(train[0])).all() and (task.clues(train[0]) <= 36).all()


def test_grids_are_grids_and_differ():
    task = tasks.Sudoku(3)
    grids = task.grids(60, seed=1)
    assert task.verify(np.zeros(81, int), grids).all()
    assert len(np.unique(grids, axis=0)) == 60
    assert len(np.unique(task.orbits(np.where(np.arange(81) % 4 > 0, grids, 0)))) == 60  # not images of one
    assert np.array_equal(grids, task.grids(60, seed=1))


def test_4x4_grids_are_drawn_uniformly():
    draws = tasks.Sudoku(2).grids(28_800, seed=0)
    counts = np.unique(draws, axis=0, return_counts=True)[1]
    statistic = ((counts - 100) ** 2 / 100).sum()
    assert len(counts) == 288 and abs(statistic - 287) < 4 * np.sqrt(2 * 287)  # false alarms: below 1 in 10,000


# -- symmetries and splits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("box", [*BOXES, (3, 2), (3, 4)])
def test_images_of_puzzles_are_puzzles_with_images_of_the_answers(box):
    task = tasks.Sudoku(box)
    x, y = task.generate(50, clues=task.length // 2, unique=False, seed=2)
    moved_x, moved_y = task.augment(x, y, np.random.default_rng(0))
    assert task.verify(moved_x, moved_y).all()
    assert np.array_equal(task.clues(moved_x), task.clues(x))
    assert (moved_x != x).any(1).all()
    again = task.augment(x, y, np.random.default_rng(0))
    assert np.array_equal(again[0], moved_x) and np.array_equal(again[1], moved_y)
    assert not np.array_equal(task.augment(x, y, np.random.default_rng(1))[0], moved_x)


def test_several_answers_of_a_board_move_with_it():
    task = tasks.Sudoku(2)
    x, y = task.generate(30, clues=8, unique=False, seed=3)
    several = np.stack([y, np.roll(y, 1, 0)], 1)  # [M, A, L]
    moved_x, moved = task.augment(x, several, np.random.default_rng(0))
    assert np.array_equal(moved[:, 0], task.augment(x, y, np.random.default_rng(0))[1])
    assert task.verify(moved_x, moved[:, 0]).all()
    assert np.array_equal(task.verify(moved_x, moved[:, 1]), task.verify(x, several[:, 1]))


def test_random_symmetries_reach_every_image_equally_often():
    x = np.where(np.isin(np.arange(16), (0, 1, 6)), GRIDS[0], 0)
    draws = 20_000
    symmetries = sudoku_symmetry.random_symmetries((2, 2), draws, np.random.default_rng(0))
    images, counts = np.unique(symmetries.of(np.tile(x, (draws, 1))), axis=0, return_counts=True)
    expected = draws / len(images)
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert len(images) == len(np.unique(all_images(x), axis=0)) and expected > 20
    degrees = len(images) - 1
    assert abs(statistic - degrees) < 4 * np.sqrt(2 * degrees)  # false alarms: below 1 in 10,000


def all_images(x: np.ndarray) -> np.ndarray:
    """All 3,072 images of a 4x4 board, from the rules."""
    pairs = [(a, b, c, d) for a, b, c, d in itertools.permutations(range(4)) if {a, b} in ({0, 1}, {2, 3})]
    square = x.reshape(4, 4)
    digits = [(0, *order) for order in itertools.permutations((1, 2, 3, 4))]
    moved = [s[list(r)][:, list(c)] for s in (square, square.T) for r in pairs for c in pairs]
    return np.array([np.array(names)[board].reshape(-1) for board in moved for names in digits])


def test_orbits_of_4x4_boards_are_exact():
    x, _ = tasks.Sudoku(2).generate(60, clues=4, unique=False, seed=0)
    expected = [min(image.tobytes() for image in all_images(board)) for board in x]
    keys = tasks.Sudoku(2).orbits(x).tolist()
    assert 30 < len(set(expected)) < 60
    assert len(set(expected)) == len(set(keys)) == len(set(zip(expected, keys, strict=True)))
    assert len(np.unique(tasks.Sudoku(2).orbits(GRIDS))) == 2  # two essentially different grids


@pytest.mark.parametrize("box", BOXES)
def test_images_of_a_board_share_its_key_and_other_boards_rarely_do(box):
    task = tasks.Sudoku(box)
    x, y = task.generate(300, clues=round(0.4 * task.length), unique=False, seed=1)
    keys = task.orbits(x)
    for seed in range(5):
        assert np.array_equal(task.orbits(task.augment(x, y, np.random.default_rng(seed))[0]), keys)
    if box != (2, 2):
        assert len(np.unique(keys)) == len(np.unique(x, axis=0))


def test_refined_keys_of_4x4_boards_only_ever_join_orbits():
    x, _ = tasks.Sudoku(2).generate(2_000, clues=(4, 10), unique=False, seed=0)
    exact, refined = tasks.Sudoku(2).orbits(x), sudoku_symmetry._refined_key(x, (2, 2))
    joint = len(np.unique(np.stack([exact, refined], 1), axis=0))
    assert joint == len(np.unique(exact)) >= len(np.unique(refined)) > 0.98 * joint


@pytest.mark.parametrize(("box", "problems"), [(2, None), ((2, 3), 200), (3, 60)])
def test_no_image_of_a_training_board_is_held_out(box, problems):
    task = tasks.Sudoku(box, problems=problems, unique=False if box == 2 else None)
    train, test = np.unique(task.examples("train")[0], axis=0), np.unique(task.examples("test")[0], axis=0)
    held_out = {board.tobytes() for board in test}
    assert not set(task.orbits(train).tolist()) & set(task.orbits(test).tolist())
    for seed in range(20):
        moved, _ = task.augment(train, train, np.random.default_rng(seed))
        assert not any(board.tobytes() in held_out for board in moved)
    assert 0.05 < len(test) / (len(test) + len(train)) < 0.3


def test_a_split_by_input_does_leak_images_and_the_search_for_them_finds_it():
    task = tasks.Sudoku(2, split="input")
    train, test = np.unique(task.examples("train")[0], axis=0), np.unique(task.examples("test")[0], axis=0)
    held_out = {board.tobytes() for board in test}
    assert not held_out & {board.tobytes() for board in train}
    moved, _ = task.augment(train, train, np.random.default_rng(0))
    assert any(board.tobytes() in held_out for board in moved)


def test_boards_of_a_test_file_take_their_images_out_of_the_data(tmp_path):
    task = tasks.Sudoku(2)
    x, y = task.generate(120, clues=6, seed=2)
    x, first = np.unique(x, axis=0, return_index=True)
    y = y[first]
    images, _ = task.augment(x[:10], y[:10], np.random.default_rng(0))
    for name, boards in (("train.txt", x), ("test.txt", images)):
        (tmp_path / name).write_text("\n".join("".join(map(str, board)) for board in boards))
    split = tasks.Sudoku(2, tmp_path / "train.txt", tmp_path / "test.txt")
    train, test = split.examples("train")[0], split.examples("test")[0]
    assert {tuple(b) for b in test.tolist()} == {tuple(b) for b in images.tolist()}
    expected = x[~np.isin(task.orbits(x), task.orbits(images))]
    assert 0 < len(expected) <= len(x) - 10
    assert np.array_equal(train, expected)


def test_the_seed_says_which_orbits_are_held_out():
    one, two, other = (tasks.Sudoku(2, seed=seed).examples("test")[0] for seed in (0, 0, 1))
    assert np.array_equal(one, two)
    assert not np.array_equal(np.unique(one), other) and one.shape != other.shape


# -- names ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("box", [2, 3, 4, (2, 3), (3, 2)])
def test_a_task_can_be_built_from_its_name(box):
    task = tasks.Sudoku(box)
    again = tasks.from_name(task.name, "input")
    assert isinstance(again, tasks.Sudoku)
    assert (again.box, again.split, again.name) == (task.box, "input", task.name)
    assert tasks.from_name(task.name).split == "orbit"


@pytest.mark.parametrize("name", ["sudoku", "sudoku8", "sudoku9x", "sudokus"])
def test_other_names_are_nobodys(name):
    with pytest.raises(ValueError, match="no task is called"):
        tasks.from_name(name)


def test_revealing_fills_only_blanks_on_which_all_answers_agree():
    task = tasks.Sudoku(2, reveal=1.0, problems=10)  # so few that none of what is revealed is held out
    x, y = task.generate(400, clues=6, unique=False, seed=4)
    several = np.stack([y, np.array([task.solutions(board)[0] for board in x])], 1)
    moved_x, moved = task.augment(x, several, np.random.default_rng(0))
    plain_x, plain = tasks.Sudoku(2).augment(x, several, np.random.default_rng(0))
    assert np.array_equal(moved, plain)
    given = plain_x != 0
    assert np.array_equal(moved_x[given], plain_x[given])
    assert task.verify(moved_x, moved[:, 0]).all() and task.verify(moved_x, moved[:, 1]).all()
    agreed = (moved[:, 0] == moved[:, 1]) & ~given
    share = ((moved_x != 0) & ~given)[agreed].mean()  # a uniform draw a board, mean 1/2, variance 1/12
    assert abs(share - 0.5) < 4 * np.sqrt(1 / 12 / 400 + 0.25 / agreed.sum())  # false alarms: 1 in 16,000
    with pytest.raises(ValueError, match="reveal must be from 0 to 1, got 2"):
        tasks.Sudoku(2, reveal=2)
    with pytest.raises(ValueError, match=r"reveal needs all answers of each board, .* got one, \[400, 16\]"):
        task.augment(x, y, np.random.default_rng(0))


def test_nothing_that_is_revealed_is_a_board_that_is_held_out():
    task = tasks.Sudoku(2, reveal=1.0)
    known, held_out = group_answers(*task.examples("train")), np.unique(task.orbits(task.examples("test")[0]))
    moved = [task.augment(known.x, known.answers, np.random.default_rng(e))[0] for e in range(3)]
    assert not np.isin(task.orbits(np.concatenate(moved)), held_out).any()
    task._held_out_orbits = np.zeros(0, np.uint64)  # what would be revealed if nothing were taken back
    other = task.augment(known.x, known.answers, np.random.default_rng(0))[0]
    kept = (other == moved[0]).all(1)
    assert np.array_equal(~kept, np.isin(task.orbits(other), held_out)) and 20 < (~kept).sum() < 400


@pytest.mark.slow
def test_boards_of_25_rows_are_made():
    task = tasks.Sudoku(5)
    x, y = task.generate(1)
    assert task.verify(x, y).all() and 312 <= task.clues(x)[0] <= 375 and task.count(x[0], 2) == 1


def test_a_report_says_which_boards_it_is_of(tmp_path):
    (tmp_path / "boards.txt").write_text("12" + "." * 14 + "\n" + "." * 13 + "341\n")
    assert tasks.Sudoku(2).about == {"boards": "made here, 3 to 7 given cells"}
    assert tasks.Sudoku(2, data=tmp_path / "boards.txt", unique=False).about == {"boards": "boards.txt"}
