"""Tasks made of data: what is listed is right, what is not cannot be told, splits do not leak."""

import zipfile

import numpy as np
import pytest
import torch

from probgram import tasks
from probgram.models import GRAM
from probgram.solve import solve

# A problem with two answers, two with one, one with three.
X = np.array([[0, 1], [0, 1], [1, 1], [2, 0], [2, 2], [2, 2], [2, 2]])
Y = np.array([[1, 0], [0, 1], [1, 1], [0, 3], [3, 3], [0, 0], [1, 2]])
LISTED = {(0, 1): [[0, 1], [1, 0]], (1, 1): [[1, 1]], (2, 0): [[0, 3]], (2, 2): [[0, 0], [1, 2], [3, 3]]}


def same_sum(x, y):
    return x.sum(-1) == y.sum(-1)


def squares(size: int) -> np.ndarray:
    """All pairs of tokens below `size`."""
    return np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij"), -1).reshape(-1, 2)


def problems(task: tasks.Pairs, split: str) -> set[tuple[int, ...]]:
    return {tuple(x) for x in task.examples(split)[0].tolist()}


# -- what it is -----------------------------------------------------------------------------------------------


KINDS = [np.asarray, lambda a: a.astype(np.uint8), np.ndarray.tolist, torch.from_numpy]


@pytest.mark.parametrize("kind", KINDS, ids=["array", "uint8", "list", "tensor"])
def test_pairs_are_a_task_whatever_holds_them(kind):
    task = tasks.Pairs(kind(X), kind(Y))
    assert isinstance(task, tasks.Task)
    assert (task.name, task.length, task.input_size, task.output_size) == ("pairs", 2, 3, 4)
    assert repr(task) == "Pairs(4 problems of 2 tokens, name='pairs')"


def test_pairs_ignore_the_order_of_rows_and_rows_given_twice():
    order = np.random.default_rng(0).permutation(np.tile(np.arange(len(X)), 2))
    for whole, mixed in zip(tasks.Pairs(X, Y).known, tasks.Pairs(X[order], Y[order]).known, strict=True):
        assert np.array_equal(whole, mixed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": X.astype(float)}, "x must hold integers (tokens), got float64"),
        ({"y": Y > 1}, "y must hold integers (tokens), got bool"),
        ({"x": X - 1}, "x must hold tokens from 0, got -1"),
        ({"y": Y - 2}, "y must hold tokens from 0, got -2"),
        ({"y": Y[:, :1]}, "x and y must both be [P, L], got [7, 2] and [7, 1]"),
        ({"x": X[..., None], "y": Y[..., None]}, "x and y must both be [P, L], got [7, 2, 1] and [7, 2, 1]"),
        ({"x": X[:, 0]}, "x must have a row for each example, got shape [7]"),
        ({"y": Y[:3]}, "x and y must have the same number of rows, at least 1, got 7 and 3"),
        ({"x": X[:0], "y": Y[:0]}, "x and y must have the same number of rows, at least 1, got 0 and 0"),
        ({"columns": 0}, "columns must be at least 1, got 0"),
        ({"columns": -2}, "columns must be at least 1, got -2"),
        ({"columns": 1.5}, "columns must be an integer, got 1.5"),
        ({"y": Y.astype(np.uint64) + 2**63}, "y must hold tokens below 2^63, got 9223372036854775811"),
        ({"groups": [0, 1]}, "groups must have one integer a row of x, 7, got shape [2]"),
        ({"groups": np.zeros((7, 1), int)}, "groups must have one integer a row of x, 7, got shape [7, 1]"),
        ({"groups": np.arange(7)}, "groups must put equal problems into one group"),
    ],
)
def test_arguments_that_make_no_sense_are_one_clear_sentence(arguments, message):
    with pytest.raises(ValueError) as caught:
        tasks.Pairs(**{"x": X, "y": Y} | arguments)
    assert str(caught.value) == message


# -- reading and drawing --------------------------------------------------------------------------------------

SPELLINGS = [
    "2 0",
    "2,0",
    " 2, 0\n",
    "2\n0",
    "[2, 0]",
    "(2 0)",
    [2, 0],
    (2, 0),
    [[2], [0]],
    np.array([2, 0], dtype=np.uint8),
    torch.tensor([2, 0]),
]


@pytest.mark.parametrize("spelling", SPELLINGS, ids=repr)
def test_encode_reads_every_documented_spelling(spelling):
    found = tasks.Pairs(X, Y).encode(spelling)
    assert found.dtype == np.int64 and found.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        ("", "a problem must be 2 integers, got ''"),
        ("one two", "a problem must be 2 integers, got 'one two'"),
        ("0 -1", "a problem must be 2 integers, got '0 -1'"),
        ("0 1 2", "a problem must be 2 integers, got 3 of type int64"),
        ([], "a problem must be 2 integers, got 0 of type float64"),
        ([0.0, 1.0], "a problem must be 2 integers, got 2 of type float64"),
        ([True, False], "a problem must be 2 integers, got 2 of type bool"),
        (None, "a problem must be 2 integers, got 1 of type object"),
        ([[1], [0, 1]], "a problem must be 2 integers, got rows of different lengths"),
        ("0 3", "a problem must hold tokens from 0 to 2, got [0, 3]"),
        ([-1, 0], "a problem must hold tokens from 0 to 2, got [-1, 0]"),
    ],
)
def test_what_is_no_problem_is_one_clear_sentence(problem, message):
    with pytest.raises(ValueError) as caught:
        tasks.Pairs(X, Y).encode(problem)
    assert str(caught.value) == message


def test_a_text_far_too_long_is_not_repeated_in_full():
    with pytest.raises(ValueError) as caught:
        tasks.Pairs(X, Y).encode("word\n" * 1000)
    assert len(str(caught.value)) < 200 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "drawn"), [(None, "0 1 2 3"), (2, "0 1\n2 3"), (3, "0 1 2\n3"), (9, "0 1 2 3")]
)
def test_an_answer_is_drawn_with_so_many_tokens_a_line(columns, drawn):
    task = tasks.Pairs([[0, 1, 2, 3]], [[3, 2, 1, 0]], columns=columns)
    for y in (np.arange(4), torch.arange(4, dtype=torch.uint8)):
        assert task.decode(y) == drawn
    assert task.encode(task.decode(np.arange(4))).tolist() == [0, 1, 2, 3]


# -- truth ----------------------------------------------------------------------------------------------------


def test_without_a_rule_exactly_the_listed_answers_are_right():
    task = tasks.Pairs(X, Y)
    for x, right in LISTED.items():
        for y in squares(4):
            assert task.verify(np.array(x), y) == (y.tolist() in right)


def test_violations_are_the_tokens_that_differ_from_the_nearest_listed_answer():
    task = tasks.Pairs(X, Y)
    for x, right in LISTED.items():
        for y in squares(4):
            nearest = min(sum(a != b for a, b in zip(y, answer, strict=True)) for answer in right)
            assert task.violations(np.array(x), y) == nearest


@pytest.mark.parametrize("rule", [None, same_sum], ids=["listed", "rule"])
@pytest.mark.parametrize("question", ["verify", "violations"])
def test_answers_broadcast_over_particles_and_tensors_give_the_same(question, rule):
    task = tasks.Pairs(X, Y, verify=rule)
    x = np.array(list(LISTED))  # [B, L]
    y = np.random.default_rng(0).integers(4, size=(30, 4, 2))  # [N, B, L]
    ask = getattr(task, question)
    expected = np.array([[ask(*pair) for pair in zip(x, row, strict=True)] for row in y])
    assert 0 < (expected > 0).mean() < 1
    found = ask(x, y)
    assert isinstance(found, np.ndarray) and np.array_equal(found, expected)
    assert found.dtype == bool if question == "verify" else np.issubdtype(found.dtype, np.integer)
    for kind in (torch.uint8, torch.int64):
        tensor = ask(torch.from_numpy(x), torch.from_numpy(y).to(kind))
        assert isinstance(tensor, torch.Tensor) and np.array_equal(tensor.numpy(), expected)
        assert tensor.dtype == torch.bool if question == "verify" else not tensor.is_floating_point()
    assert np.array_equal(ask(x[0], y[:, 0]), expected[:, 0])  # one problem, many answers
    assert np.array_equal(ask(x, y[0, 0]), [ask(row, y[0, 0]) for row in x])  # many problems, one answer


def test_a_rule_decides_whether_or_not_the_data_list_the_answer():
    task = tasks.Pairs(X, Y, verify=same_sum)
    y = squares(4)
    for x in squares(3):  # most of them not in the data
        assert np.array_equal(task.verify(x, y), y.sum(1) == x.sum())
        assert np.array_equal(task.violations(x, y), (y.sum(1) != x.sum()).astype(int))
    assert not task.verify(X[3], Y[3])  # listed, and wrong by the rule


@pytest.mark.parametrize("question", ["verify", "violations"])
def test_what_is_not_listed_cannot_be_verified_without_a_rule(question):
    task = tasks.Pairs(X, Y)
    unlisted = np.array([0, 2])
    for x in (unlisted, torch.from_numpy(unlisted), np.stack([X[0], unlisted])):
        with pytest.raises(
            tasks.UnknownAnswers, match="a problem is not among the 4 of this data.*verify= function"
        ):
            getattr(task, question)(x, Y[0])
    assert issubclass(tasks.UnknownAnswers, ValueError)


def test_small_integers_do_not_wrap_around():
    task = tasks.Pairs([[0], [1]], [[256], [1]])
    for y in (np.zeros(1, np.uint8), torch.zeros(1, dtype=torch.uint8)):
        assert not task.verify(np.array([0]), y)


def test_solutions_are_the_listed_answers_in_order():
    task = tasks.Pairs(X, Y)
    for x, right in LISTED.items():
        for kind in (np.array(x), np.array(x, dtype=np.uint8), torch.tensor(x)):
            assert task.solutions(kind).tolist() == right
    with pytest.raises(tasks.UnknownAnswers):
        task.solutions(np.array([0, 2]))


@pytest.mark.parametrize("library", [np.array, torch.tensor])
def test_tokens_that_are_no_whole_numbers_are_not_cut_to_any(library):
    task = tasks.Pairs(X, Y)
    assert not task.verify(X[2], library([1.0, 1.9])) and task.verify(X[2], library([1.0, 1.0]))
    with pytest.raises(ValueError, match="^a problem must be 2 integers, got float"):
        task.verify(library([1.9, 1.9]), Y[2])


def test_solutions_are_those_of_one_problem():
    with pytest.raises(ValueError, match=r"^x must be one problem of 2 tokens, got shape \[3, 2\]$"):
        tasks.Pairs(X, Y).solutions(X[:3])


@pytest.mark.parametrize("shape", [(), (1,), (3,), (4, 3)])
def test_a_problem_of_another_length_is_one_clear_sentence(shape):
    with pytest.raises(ValueError) as caught:
        tasks.Pairs(X, Y).solutions(np.zeros(shape, int))
    assert str(caught.value) == f"a problem must have 2 tokens, got shape {list(shape)}"


@pytest.mark.parametrize("rule", [None, same_sum], ids=["listed", "rule"])
def test_an_answer_of_another_length_is_one_clear_sentence(rule):
    task = tasks.Pairs(X, Y, verify=rule)
    for question in (task.verify, task.violations):
        for y in (Y[2, :1], torch.from_numpy(Y[2, :1]), np.zeros((4, 3), int)):
            with pytest.raises(ValueError, match="^an answer must have 2 tokens, got shape"):
                question(X[2], y)


# -- splits ---------------------------------------------------------------------------------------------------

MANY_X = np.repeat(squares(6), 2, axis=0)  # 36 problems, two answers each
MANY_Y = np.stack([MANY_X.sum(1), np.tile([0, 1], 36)], 1)


def test_no_problem_is_shared_across_the_split_and_no_pair_is_lost():
    task = tasks.Pairs(MANY_X, MANY_Y)
    assert not problems(task, "train") & problems(task, "test")
    assert len(problems(task, "test")) == round(0.15 * 36)
    pairs = np.concatenate([np.concatenate(task.examples(split), 1) for split in ("train", "test")])
    assert sorted(pairs.tolist()) == sorted(np.concatenate([MANY_X, MANY_Y], 1).tolist())
    assert task.split == "input"


def test_no_group_is_shared_across_the_split():
    groups = MANY_X.sum(1) + 100  # 11 groups: the order of the two tokens does not matter
    task = tasks.Pairs(MANY_X, MANY_Y, groups=groups)
    train, test = ({sum(x) for x in problems(task, split)} for split in ("train", "test"))
    assert not train & test
    assert len(test) == round(0.15 * 11) and len(train) + len(test) == 11
    assert task.split == "group"


def test_groups_may_have_names_of_any_length():
    names = ["a", "sum of " + 9 * "b", "cc"]
    task = tasks.Pairs(MANY_X, MANY_Y, groups=[names[n % 3] for n in MANY_X.sum(1)])
    assert len({sum(x) % 3 for x in problems(task, "test")}) == 1


def test_the_seed_chooses_the_split():
    first, again, other = (problems(tasks.Pairs(MANY_X, MANY_Y, seed=seed), "test") for seed in (0, 0, 1))
    assert first == again != other


def test_examples_have_a_row_for_each_answer_and_no_padding():
    task = tasks.Pairs(np.concatenate([X, MANY_X + 3]), np.concatenate([Y, MANY_Y + 4]))
    for split in ("train", "test"):
        x, y = task.examples(split)
        assert x.shape == y.shape and task.verify(x, y).all()
        assert len(np.unique(np.concatenate([x, y], 1), axis=0)) == len(x)


def test_data_too_few_to_split_and_unknown_splits_are_one_clear_sentence():
    two = tasks.Pairs(X[:3], Y[:3])
    assert len(two.examples("train")[0]) + len(two.examples("test")[0]) == 3
    task = tasks.Pairs(X[:1], Y[:1])
    with pytest.raises(ValueError, match="the data have 1 groups of problems, too few to hold any out"):
        task.examples("test")
    with pytest.raises(ValueError, match='split must be "train" or "test", got \'all\''):
        task.examples("all")


# -- files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_an_archive_gives_the_task_its_arrays_do(tmp_path, write):
    path = tmp_path / "sums.npz"
    write(path, x=MANY_X, y=MANY_Y, groups=MANY_X.sum(1), note=np.array("ignored"))
    task = tasks.Pairs.from_npz(str(path), seed=3, columns=1)
    expected = tasks.Pairs(MANY_X, MANY_Y, groups=MANY_X.sum(1), seed=3)
    assert (task.name, task.columns, task.split) == ("pairs:sums", 1, "group")
    assert problems(task, "test") == problems(expected, "test")


def test_what_is_said_beside_an_archive_replaces_what_it_holds(tmp_path):
    path = tmp_path / "sums.npz"
    np.savez(path, x=X, y=Y, groups=np.arange(len(X)))  # equal problems in different groups
    task = tasks.Pairs.from_npz(path, groups=None, name="others", verify=same_sum)
    assert (task.name, task.split) == ("others", "input")
    assert task.verify(np.array([0, 2]), np.array([2, 0]))


def unreadable_archives(folder):
    """Path -> what is said of it."""
    np.savez(folder / "no_y.npz", x=X)
    np.savez(folder / "neither.npz", a=X)
    np.savez(folder / "pickled.npz", x=np.array([{}, {}]), y=Y)
    np.savez(folder / "floats.npz", x=X / 2, y=Y)
    with open(folder / "array.npz", "wb") as file:
        np.save(file, X)
    (folder / "text.npz").write_text("0 1 2")
    (folder / "empty.npz").touch()
    (folder / "folder.npz").mkdir()
    np.savez_compressed(folder / "damaged.npz", x=np.arange(1000).reshape(-1, 2), y=np.arange(1000).reshape(-1, 2))
    content = bytearray((folder / "damaged.npz").read_bytes())
    content[80:140] = bytes(60)
    (folder / "damaged.npz").write_bytes(content)
    np.savez(folder / "plain.npz", x=X, y=Y)
    content = (folder / "plain.npz").read_bytes()
    first, entry = content.index(b"PK\x03\x04"), content.index(b"PK\x01\x02")  # headers: of x, in the list of files
    encrypted, unknown = bytearray(content), bytearray(content)
    encrypted[first + 6] |= 1
    encrypted[entry + 8] |= 1
    unknown[first + 8] = unknown[entry + 10] = 99
    (folder / "encrypted.npz").write_bytes(encrypted)
    (folder / "unknown.npz").write_bytes(unknown)
    for name, shape in (("huge.npz", b"(70000000000000000, 2)}"), ("header.npz", b"((7, 2)")):
        head = b"{'descr': '<i8', 'fortran_order': False, 'shape': " + shape
        head = head.removesuffix(b"}") + b"}\n" if name == "huge.npz" else head + b"\n"
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head)
            archive.writestr("y.npy", b"")
    return {
        "no_y.npz": r"must hold the arrays x and y, found \['x'\]",
        "neither.npz": "must hold the arrays x and y, found neither",
        "pickled.npz": "cannot be read as an .npz archive: Object arrays cannot be loaded when allow_pickle=False",
        "floats.npz": "x must hold integers",
        "array.npz": "is no .npz archive",
        "text.npz": "is no .npz archive",
        "empty.npz": "is no .npz archive",
        "folder.npz": "cannot be read as an .npz archive",
        "damaged.npz": "cannot be read as an .npz archive",
        "encrypted.npz": "cannot be read as an .npz archive: .*encrypted",
        "unknown.npz": "cannot be read as an .npz archive: .*compression",
        "huge.npz": "cannot be read as an .npz archive: Unable to allocate",
        "header.npz": "cannot be read as an .npz archive",
        "missing.npz": "cannot be read as an .npz archive: .*No such file",
    }


def test_what_is_no_archive_of_pairs_is_one_clear_sentence(tmp_path):
    for name, message in unreadable_archives(tmp_path).items():
        with pytest.raises(ValueError, match=message) as caught:
            tasks.Pairs.from_npz(tmp_path / name)
        assert "\n" not in str(caught.value), name


# -- solving --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chain() -> GRAM:
    """Tiny and untrained."""
    torch.manual_seed(0)
    sizes = {"dim": 16, "heads": 2, "hidden": 16, "refinements": 1, "transitions": 1, "blocks": 1}
    chain = GRAM.for_task(tasks.Pairs(X, Y), **sizes).eval()
    with torch.no_grad():
        chain.decode.weight.mul_(10)  # so that trajectories end in different answers
    return chain


def test_a_listed_problem_is_solved_and_verified(chain):
    solution = solve(chain, "2 2", width=8, depth=2, task=tasks.Pairs(X, Y))
    assert solution.verified.tolist() == [y in LISTED[2, 2] for y in solution.answers.tolist()]
    assert float(solution.shares.sum()) == pytest.approx(1)
    assert solution.run.task == "pairs"


def test_answers_that_cannot_be_verified_are_all_given(chain):
    task = tasks.Pairs(X, Y, columns=1)
    solution = solve(chain, [0, 2], width=64, depth=2, task=task)
    assert solution.verified is None
    assert len(solution.answers) > 1
    assert [share for _, share in solution.accepted()] == solution.shares.tolist()
    pictures = [f"share {share:.2f}\n{task.decode(answer)}" for answer, share in solution.accepted()]
    assert str(solution) == "\n\n".join(pictures)
    assert "unverified" in repr(solution)


def test_a_rule_verifies_a_problem_that_is_not_listed(chain):
    solution = solve(chain, [0, 2], width=8, depth=2, task=tasks.Pairs(X, Y, verify=same_sum))
    assert solution.verified.tolist() == [sum(y) == 2 for y in solution.answers.tolist()]
