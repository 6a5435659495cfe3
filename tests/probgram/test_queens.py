"""N-Queens: counts that are known, verification and enumeration against brute force, splits that do not leak."""

import itertools

import numpy as np
import pytest
import torch

from probgram import tasks
from probgram.tasks import queens

TASKS = [tasks.Queens(5), tasks.Queens(6), tasks.Queens(5, encoding="board"), tasks.Queens(6, encoding="board")]
ids = [task.name for task in TASKS]


def attacks(a: tuple[int, int], b: tuple[int, int]) -> bool:
    (r, c), (s, d) = a, b
    return r == s or c == d or abs(r - s) == abs(c - d)


def squares(task: tasks.Queens, tokens: np.ndarray) -> list[tuple[int, int]]:
    """Queens on the board, straight from the definition of the encoding."""
    if task.encoding == "rows":
        return [(r, int(c)) for r, c in enumerate(tokens) if 0 <= c < task.n]
    return [divmod(int(i), task.n) for i in np.flatnonzero(np.asarray(tokens) == 1)]


def completes(task: tasks.Queens, x: np.ndarray, y: np.ndarray) -> bool:
    placed = squares(task, y)
    known = all(0 <= token < task.output_size for token in y)
    return (
        known
        and len(placed) == task.n
        and not any(attacks(a, b) for a, b in itertools.combinations(placed, 2))
        and set(squares(task, x)) <= set(placed)
    )


def random_pairs(task: tasks.Queens, rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Problems with answers that range from right to nonsense: solutions with none to many tokens changed."""
    rng = np.random.default_rng(seed)
    x, y = task.examples("train")
    chosen = rng.integers(len(x), size=rows)
    x, y = x[chosen].copy(), y[chosen].copy()
    noise = rng.integers(task.output_size, size=y.shape)
    y = np.where(rng.random(y.shape) < rng.choice([0.0, 0.1, 0.5, 1.0], size=(rows, 1)), noise, y)
    swapped = rng.random(rows) < 0.3
    x[swapped] = x[rng.permutation(rows)][swapped]
    return x, y


def as_array(values: np.ndarray, kind: str):
    return torch.from_numpy(values.astype(kind[6:])) if kind.startswith("torch.") else values.astype(kind)


# -- counts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "inputs", "pairs", "orbits"), [(8, 5_148, 8_464, 648), (10, 43_420, 126_700, None)])
def test_the_data_set_has_the_published_size(n, inputs, pairs, orbits):
    task = tasks.Queens(n)
    assert len(task.known.x) == inputs
    assert task.known.counts.sum() == pairs
    if orbits is not None:
        assert len(np.unique(task.orbits)) == orbits


@pytest.mark.parametrize(("n", "count"), [(4, 2), (5, 10), (6, 4), (7, 40), (8, 92), (9, 352)])
def test_the_empty_board_has_the_known_number_of_solutions(n, count):
    task = tasks.Queens(n)
    found = task.solutions(task.encode([None] * n))
    assert found.shape == (count, n)
    assert found.tolist() == sorted(found.tolist())


@pytest.mark.parametrize("encoding", ["rows", "board"])
def test_train_and_test_together_are_every_pair_once(encoding):
    task = tasks.Queens(8, encoding=encoding)
    (train_x, train_y), (test_x, test_y) = task.examples("train"), task.examples("test")
    pairs = np.concatenate([np.concatenate([train_x, test_x]), np.concatenate([train_y, test_y])], 1)
    assert len(pairs) == len(np.unique(pairs, axis=0)) == 8_464
    assert train_x.shape[1] == train_y.shape[1] == task.length
    assert train_x.dtype == train_y.dtype == np.int64
    assert 0 <= train_x.min() and train_x.max() < task.input_size
    assert 0 <= train_y.min() and train_y.max() < task.output_size
    assert task.verify(train_x, train_y).all() and task.verify(test_x, test_y).all()


@pytest.mark.parametrize("n", [5, 6, 8])
def test_the_known_answers_of_a_problem_are_all_its_solutions(n):
    known = tasks.Queens(n).known
    chosen = range(len(known.x)) if n < 8 else np.random.default_rng(0).choice(len(known.x), 300, replace=False)
    for i in chosen:
        found = tasks.Queens(n).solutions(known.x[i])
        assert np.array_equal(known.answers[i, : known.counts[i]], found)


# -- truth ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS, ids=ids)
def test_verify_agrees_with_brute_force_on_random_boards(task):
    x, y = random_pairs(task, 600)
    expected = np.array([completes(task, *pair) for pair in zip(x, y, strict=True)])
    assert 0.1 < expected.mean() < 0.9
    assert np.array_equal(task.verify(x, y), expected)
    assert np.array_equal(task.violations(x, y) == 0, expected)


@pytest.mark.parametrize("task", TASKS, ids=ids)
def test_of_all_boards_with_a_queen_a_row_exactly_the_solutions_pass(task):
    boards = np.array(list(itertools.product(range(task.n), repeat=task.n)))
    right = [
        all(
            a[1] != b[1] and abs(a[1] - b[1]) != b[0] - a[0] for a, b in itertools.combinations(enumerate(board), 2)
        )
        for board in boards.tolist()
    ]
    assert sum(right) == {5: 10, 6: 4}[task.n]
    found = task.verify(task.encode([None] * task.n), task._from_columns(boards))
    assert np.array_equal(found, right)


@pytest.mark.parametrize("task", TASKS, ids=ids)
def test_violations_count_attacked_pairs_lost_givens_and_rows_without_one_queen(task):
    def count(x, y):
        placed = squares(task, y)
        if task.encoding == "rows":  # a row always holds one token, so a row is wrong only out of range
            wrong_rows = sum(not 0 <= token < task.n for token in y)
            pairs = sum(attacks(a, b) for a, b in itertools.combinations(placed, 2))
        else:
            wrong_rows = sum(sum(r == row for r, _ in placed) != 1 for row in range(task.n))
            pairs = sum(attacks(a, b) for a, b in itertools.combinations(placed, 2) if a[0] != b[0])
        return pairs + wrong_rows + len(set(squares(task, x)) - set(placed))

    x, y = random_pairs(task, 300, seed=1)
    expected = np.array([count(*pair) for pair in zip(x, y, strict=True)])
    assert expected.max() > 3
    assert np.array_equal(task.violations(x, y), expected)


@pytest.mark.parametrize("kind", ["uint8", "int64", "torch.uint8", "torch.int64"])
@pytest.mark.parametrize("task", TASKS, ids=ids)
def test_verify_is_the_same_for_every_kind_of_array(task, kind):
    x, y = random_pairs(task, 200, seed=2)
    found = task.verify(as_array(x, kind), as_array(y, kind))
    assert isinstance(found, torch.Tensor if kind.startswith("torch.") else np.ndarray)
    assert np.array_equal(np.asarray(found), task.verify(x, y))
    violations = np.asarray(task.violations(as_array(x, kind), as_array(y, kind)))
    assert np.array_equal(violations, task.violations(x, y))


def test_mixed_types_do_not_wrap_around():
    task = tasks.Queens(8)
    x, y = random_pairs(task, 200, seed=3)
    found = task.verify(torch.from_numpy(x), torch.from_numpy(y.astype(np.uint8)))
    assert np.array_equal(found.numpy(), task.verify(x, y))


@pytest.mark.parametrize("to", [np.asarray, torch.as_tensor])
def test_small_unsigned_tokens_of_large_boards_do_not_wrap_around(to):
    n = 160
    task, y = tasks.Queens(n), np.array([*range(1, n, 2), *range(0, n, 2)])
    assert task.violations(to(np.full(n, n)), to(y.astype(np.uint8))) == task.violations(np.full(n, n), y) == 0


@pytest.mark.parametrize("to", [np.asarray, torch.as_tensor])
def test_numbers_between_columns_are_no_columns(to):
    y = np.array([0, 4, 7, 5, 2, 6, 1, 3])
    right = tasks.Queens(8).verify(to(np.full(8, 8)), to(np.stack([y, y + np.eye(8)[3] / 2])))
    assert right.tolist() == [True, False]


def test_completions_too_many_to_be_listed_are_refused_in_time(monkeypatch):
    monkeypatch.setattr("probgram.tasks.queens.NODES", 1_000)
    with pytest.raises(tasks.UnknownAnswers, match="completions of a board of 11 queens are too many"):
        tasks.Queens(11).solutions(np.full(11, 11))
    assert len(tasks.Queens(11).solutions(np.array([0, 2, 4, 6, *[11] * 7]))) == 1
    with pytest.raises(ValueError, match="too many"):
        tasks.from_name("queens11-blank")


@pytest.mark.parametrize("task", [tasks.Queens(6), tasks.Queens(6, "board"), tasks.Sudoku(2)], ids=str)
def test_answers_of_another_length_are_refused(task):
    for y in (np.zeros(1, int), np.zeros((3, task.length + 1), int)):
        with pytest.raises(ValueError, match=f"an answer must have {task.length} tokens, got shape"):
            task.verify(np.zeros(task.length, int), y)


def test_verify_broadcasts_over_particles():
    task = tasks.Queens(6)
    x, y = random_pairs(task, 40)
    rolled = np.stack([y, np.roll(y, 1, 0), np.roll(y, 2, 0)])  # [N, B, L]
    expected = np.stack([task.verify(x, rows) for rows in rolled])
    assert np.array_equal(task.verify(x, rolled), expected)


@pytest.mark.parametrize("encoding", ["rows", "board"])
def test_a_moved_given_is_wrong_even_on_a_perfect_board(encoding):
    task = tasks.Queens(5, encoding=encoding)
    first, second = task.solutions(task.encode([None] * 5))[:2]
    x = task.encode([0, None, None, None, None])
    other = next(y for y in task.solutions(task.encode([None] * 5)) if not completes(task, x, y))
    assert task.verify(task.encode([None] * 5), np.stack([first, second, other])).all()
    assert not task.verify(x, other)


@pytest.mark.parametrize("encoding", ["rows", "board"])
@pytest.mark.parametrize("n", [4, 5, 6])
def test_solutions_are_what_brute_force_finds(n, encoding):
    task = tasks.Queens(n, encoding=encoding)
    boards = np.array(list(itertools.product(range(n), repeat=n)))
    columns = tasks.Queens(n)
    boards = boards[columns.violations(np.full(n, n), boards) == 0]  # checked against brute force above
    rng = np.random.default_rng(n)
    for given in range(n + 1):
        for _ in range(4):
            x = np.full(n, n)
            rows = rng.choice(n, given, replace=False)
            x[rows] = boards[rng.integers(len(boards)), rows] if rng.random() < 0.7 else rng.integers(n, size=given)
            expected = [b for b in boards.tolist() if all(c == n or b[r] == c for r, c in enumerate(x))]
            problem = task._from_columns(x)
            found = task.solutions(problem)
            assert found.shape == (len(expected), task.length)
            assert [columns_of(task, y) for y in found] == expected


def columns_of(task, y):
    return [c for _, c in sorted(squares(task, y))]


def test_solutions_accept_tensors_and_may_be_none():
    task = tasks.Queens(5)
    assert task.solutions(torch.tensor([0, 5, 5, 5, 5], dtype=torch.uint8)).tolist() == [
        [0, 2, 4, 1, 3],
        [0, 3, 1, 4, 2],
    ]
    assert task.solutions(np.array([0, 0, 5, 5, 5])).shape == (0, 5)


# -- symmetries and splits ------------------------------------------------------------------------------------


def test_symmetries_are_the_eight_images_of_the_square():
    n = 5
    board = np.array([[0, 5, 4, 5, 5]])
    square = np.zeros((n, n), int)
    square[0, 0] = square[2, 4] = 1
    turned = [np.rot90(square, k) for k in range(4)]
    expected = {image.tobytes() for image in [*turned, *(s.T for s in turned)]}
    found = [(image[0][:, None] == np.arange(n)).astype(int) for image in queens.symmetric(board, n)]
    assert len(found) == 8
    assert {image.tobytes() for image in found} == {np.ascontiguousarray(e).tobytes() for e in found} == expected
    assert np.array_equal(queens.symmetric(board, n)[0], board)


@pytest.mark.parametrize("n", [5, 6])
def test_symmetries_form_a_group(n):
    boards = tasks.Queens(n).known.x
    images = np.stack(queens.symmetric(boards, n), 1)  # [I, 8, n]
    for k in range(8):
        again = np.stack(queens.symmetric(images[:, k], n), 1)
        for before, after in zip(images, again, strict=True):
            assert {tuple(b) for b in before} == {tuple(b) for b in after}


@pytest.mark.parametrize("encoding", ["rows", "board"])
def test_a_right_answer_stays_right_when_problem_and_answer_are_turned(encoding):
    columns, task = tasks.Queens(6), tasks.Queens(6, encoding=encoding)
    x, y = columns.examples("train")
    for turned_x, turned_y in zip(queens.symmetric(x, 6), queens.symmetric(y, 6), strict=True):
        assert task.verify(task._from_columns(turned_x), task._from_columns(turned_y)).all()


def test_orbits_join_exactly_the_images_of_a_problem():
    task = tasks.Queens(6)
    number = {tuple(x): int(o) for x, o in zip(task.known.x, task.orbits, strict=True)}
    canonical = {}
    for x, orbit in number.items():
        images = {tuple(int(c) for c in image[0]) for image in queens.symmetric(np.array([x]), 6)}
        assert {number[image] for image in images} == {orbit}
        canonical.setdefault(orbit, images)
        assert canonical[orbit] == images


@pytest.mark.parametrize("encoding", ["rows", "board"])
@pytest.mark.parametrize("split", ["orbit", "input"])
@pytest.mark.parametrize("n", [6, 8])
def test_no_problem_is_shared_across_the_split(n, split, encoding):
    task = tasks.Queens(n, encoding=encoding, split=split)
    train, test = ({x.tobytes() for x in task.examples(part)[0]} for part in ("train", "test"))
    assert train and test and not train & test
    total = len(task.known.x)
    assert len(train) + len(test) == total
    assert len(test) == pytest.approx(0.15 * total, rel=0.1 if split == "orbit" else 0.01, abs=2)


@pytest.mark.parametrize("seed", [0, 1])
def test_no_orbit_is_shared_across_the_orbit_split(seed):
    task = tasks.Queens(8, seed=seed)
    keys = [
        {min(image.tobytes() for image in images) for images in np.stack(queens.symmetric(x, 8), 1)}
        for x in (np.unique(task.examples(part)[0], axis=0) for part in ("train", "test"))
    ]
    assert not keys[0] & keys[1]
    assert len(keys[0]) + len(keys[1]) == 648


def test_the_input_split_does_share_orbits_which_is_why_it_is_not_the_default():
    task = tasks.Queens(8, split="input")
    held_out = task._held_out
    assert set(task.orbits[held_out]) & set(task.orbits[~held_out])
    assert tasks.Queens(8).split == "orbit"


def test_the_seed_chooses_the_split():
    first, again, other = (tasks.Queens(6, seed=seed).examples("test")[0] for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert first.shape != other.shape or not np.array_equal(first, other)


# -- reading and drawing --------------------------------------------------------------------------------------

SPELLINGS = [
    "Q....\n.....\n...Q.\n.....\n.....",
    "Q.... ..... ...Q. ..... .....",
    "Q..../...../...Q./...../.....",
    "q . . . .\n. . . . .\n. . . q .\n. . . . .\n. . . . .\n",
    "0 . 3 . .",
    "0, ., 3, ., .",
    "[0, None, 3, None, None]",
    [0, None, 3, None, None],
    (0, -1, 3, -1, -1),
    [0, 5, 3, 5, 5],
    np.array([0, 5, 3, 5, 5], dtype=np.uint8),
    np.array([0, -1, 3, -1, -1]),
    torch.tensor([0, 5, 3, 5, 5]),
]


@pytest.mark.parametrize("spelling", SPELLINGS, ids=str)
def test_encode_accepts_every_documented_spelling(spelling):
    assert tasks.Queens(5).encode(spelling).tolist() == [0, 5, 3, 5, 5]
    board = tasks.Queens(5, encoding="board").encode(spelling)
    assert board.dtype == np.int64 and np.flatnonzero(board).tolist() == [0, 13]


@pytest.mark.parametrize("encoding", ["rows", "board"])
def test_a_decoded_board_encodes_to_itself(encoding):
    task = tasks.Queens(6, encoding=encoding)
    for x in np.unique(task.examples("train")[0], axis=0)[:50]:
        assert np.array_equal(task.encode(task.decode(x)), x)


def test_a_board_is_drawn_a_line_a_row():
    assert tasks.Queens(4).decode(np.array([1, 3, 4, 2])) == ". Q . .\n. . . Q\n. . . .\n. . Q ."


@pytest.mark.parametrize(
    ("board", "clash"),
    [
        ([0, None, None, 0, None], "rows 0 and 3 clash: they share column 0"),
        ([None, 1, None, 3, None], "rows 1 and 3 clash: they share a diagonal"),
        ([None, 3, 2, None, None], "rows 1 and 2 clash: they share a diagonal"),
        ("Q...Q\n.....\n.....\n.....\n.....", "row 0 clash: the row has 2"),
    ],
)
def test_an_illegal_board_names_the_queens_that_clash(board, clash):
    with pytest.raises(ValueError, match=clash):
        tasks.Queens(5).encode(board)


@pytest.mark.parametrize(
    "board",
    ["", "nonsense", "0 . .", "0 . . x .", "6 . . . .", "--1 . . . .", "Q....", [0, None], None, 5, 2.5, [0.5] * 5,
     [True, None, None, None, None], ["a"] * 5, [[0]] * 5, [float("nan")] * 5, [-2, None, None, None, None],
     np.zeros((5, 5)), np.zeros((2, 5), int)],
    ids=repr,
)  # fmt: skip
def test_what_is_no_board_is_one_clear_sentence(board):
    with pytest.raises(ValueError, match=r"(a board|row \d) ") as caught:
        tasks.Queens(5).encode(board)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 3}, "n must be at least 4, got 3"),
        ({"n": -8}, "n must be at least 4, got -8"),
        ({"n": 8.0}, "n must be an integer, got 8.0"),
        ({"n": "8"}, "n must be an integer, got '8'"),
        ({"n": None}, "n must be an integer, got None"),
        ({"encoding": "hex"}, 'encoding must be "rows" or "board", got \'hex\''),
        ({"split": "random"}, 'split must be "orbit" or "input", got \'random\''),
    ],
)
def test_bad_sizes_and_choices_are_one_clear_sentence(arguments, message):
    with pytest.raises(ValueError) as caught:
        tasks.Queens(**arguments)
    assert str(caught.value) == message


def test_unknown_splits_and_wrong_lengths_are_one_clear_sentence():
    task = tasks.Queens(5)
    with pytest.raises(ValueError, match='split must be "train" or "test", got \'validation\''):
        task.examples("validation")
    for x in (np.zeros(4, int), np.full((2, 5), 5), np.array([-1, 5, 5, 5, 5]), np.array([6, 5, 5, 5, 5])):
        with pytest.raises(ValueError, match="queens5"):
            task.solutions(x)
    with pytest.raises(ValueError, match="a board of queens5 must have 5 tokens, got 4"):
        task.decode(np.zeros(4, int))


def test_a_task_is_found_by_the_name_it_carries():
    for task in (tasks.Queens(6), tasks.Queens(7, encoding="board")):
        again = tasks.from_name(task.name)
        assert (again.n, again.encoding) == (task.n, task.encoding)
        assert isinstance(task, tasks.Task)
    for name in ("", "queens", "queens8-rows", "queensx", "8queens", "Queens8", "queens²"):
        with pytest.raises(ValueError, match="no task is called"):
            tasks.from_name(name)


# -- grouping -------------------------------------------------------------------------------------------------


def test_group_answers_keeps_every_pair_once():
    x = np.array([[3, 3], [1, 2], [3, 3], [1, 2], [3, 3]])
    y = np.array([[5], [7], [4], [7], [5]])
    known = tasks.group_answers(x, y)
    assert known.x.tolist() == [[1, 2], [3, 3]]
    assert known.counts.tolist() == [1, 2]
    assert known.answers.tolist() == [[[7], [7]], [[4], [5]]]  # the first answer pads


def test_group_answers_ignores_the_order_of_rows():
    x, y = tasks.Queens(6).examples("train")
    order = np.random.default_rng(0).permutation(len(x))
    for whole, mixed in zip(tasks.group_answers(x, y), tasks.group_answers(x[order], y[order]), strict=True):
        assert np.array_equal(whole, mixed)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((2, 3)), np.zeros((2, 3), int), "x must hold integers"),
        (np.zeros((2, 3), int), np.zeros((2, 3), bool), "y must hold integers"),
        (np.zeros((2, 3), int), np.zeros((3, 3), int), "same number of rows, at least 1, got 2 and 3"),
        (np.zeros((0, 3), int), np.zeros((0, 3), int), "same number of rows, at least 1, got 0 and 0"),
        (np.zeros(3, int), np.zeros((3, 3), int), "x must have a row for each example"),
    ],
)
def test_pairs_that_do_not_fit_are_one_clear_sentence(x, y, message):
    with pytest.raises(ValueError, match=message):
        tasks.group_answers(x, y)
