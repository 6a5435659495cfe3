"""Graph colouring: enumeration and verification against brute force, exact isomorphism, splits that do not leak."""

import itertools

import numpy as np
import pytest
import torch

from probgram import metrics, tasks
from probgram.tasks import graphs

SMALL = {"train": 60, "test": 12}
TASKS = [
    tasks.Colouring(5, **SMALL),
    tasks.Colouring(6, colours=2, **SMALL),
    tasks.Colouring(6, edge_probability=0.7, colours=4, **SMALL),
    tasks.Colouring(5, encoding="matrix", **SMALL),
]
ids = [task.name for task in TASKS]
PETERSEN_PART = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 0), (0, 5), (1, 6), (2, 7), (5, 7), (5, 6)]


def edges(task: tasks.Colouring, x: np.ndarray) -> set[tuple[int, int]]:
    """Edges (i, j), j < i, straight from the definition of the encoding."""
    pairs = [(i, j) for i in range(task.n) for j in range(i)]
    if task.encoding == "vertices":
        return {(i, j) for i, j in pairs if int(x[i]) & 2 ** (i - j - 1)}
    matrix = np.asarray(x).reshape(task.n, task.n)
    assert np.array_equal(matrix, matrix.T) and (matrix.diagonal() == 2).all()
    return {(i, j) for i, j in pairs if matrix[i, j] == 1}


def renamed(colours) -> tuple[int, ...]:
    """The canonical renaming: colours numbered in order of first appearance."""
    names: dict[int, int] = {}
    return tuple(names.setdefault(int(c), len(names)) for c in colours)


def right_answers(task: tasks.Colouring, x: np.ndarray) -> list[list[int]]:
    """All canonical proper colourings: every colouring tried, each set of renamings kept once."""
    graph = edges(task, x)
    proper = {
        renamed(c)
        for c in itertools.product(range(task.colours), repeat=task.n)
        if all(c[i] != c[j] for i, j in graph)
    }
    repeat = 1 if task.encoding == "vertices" else task.n
    return [np.repeat(c, repeat).tolist() for c in sorted(proper)]


def random_pairs(task: tasks.Colouring, rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Problems with answers that range from right to nonsense: renamed, or with none to many tokens changed."""
    rng = np.random.default_rng(seed)
    x, y = task.examples("train")
    chosen = rng.integers(len(x), size=rows)
    x, y = x[chosen], y[chosen].copy()
    noise = rng.integers(task.output_size + 1, size=y.shape)
    y = np.where(rng.random(y.shape) < rng.choice([0.0, 0.1, 0.5, 1.0], size=(rows, 1)), noise, y)
    swapped = rng.random(rows) < 0.2
    y[swapped] = (y[swapped] + 1) % task.colours
    return x, y


# -- truth ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS, ids=ids)
def test_the_solutions_of_a_graph_are_all_its_canonical_colourings_in_order(task):
    for x in np.unique(task.examples("train")[0], axis=0)[:15]:
        assert task.solutions(x).tolist() == right_answers(task, x)


@pytest.mark.parametrize("task", TASKS, ids=ids)
def test_the_examples_are_every_graph_with_all_its_solutions(task):
    for split in ("train", "test"):
        x, y = task.examples(split)
        known = tasks.group_answers(x, y)
        assert len(known.x) == SMALL[split]
        assert known.counts.sum() == len(x)
        for problem, answers, count in zip(*known, strict=True):
            assert np.array_equal(answers[:count], task.solutions(problem))
        assert x.dtype == y.dtype == np.int64 and x.shape[1] == y.shape[1] == task.length
        assert 0 <= x.min() and x.max() < task.input_size
        assert 0 <= y.min() and y.max() < task.output_size


@pytest.mark.parametrize("task", TASKS, ids=ids)
def test_verify_accepts_exactly_the_canonical_proper_colourings(task):
    x, y = random_pairs(task, 400)
    right = {a.tobytes(): right_answers(task, a) for a in np.unique(x, axis=0)}
    expected = np.array([b.tolist() in right[a.tobytes()] for a, b in zip(x, y, strict=True)])
    assert 0.1 < expected.mean() < 0.9
    assert np.array_equal(task.verify(x, y), expected)
    assert np.array_equal(task.violations(x, y) == 0, expected)


@pytest.mark.parametrize("encoding", ["vertices", "matrix"])
def test_of_all_colourings_of_a_graph_exactly_its_solutions_pass(encoding):
    task = tasks.Colouring(5, encoding=encoding, **SMALL)
    x = task.encode("0-1 1-2 2-3 3-4 4-0")
    every = np.array(list(itertools.product(range(3), repeat=5)))
    answers = np.repeat(every, 5, axis=1) if encoding == "matrix" else every
    passed = answers[task.verify(x, answers)]
    assert len(passed) == 5  # the chromatic polynomial of a ring of five at 3 is 30, and 3! renamings are one
    assert np.array_equal(passed, task.solutions(x))


@pytest.mark.parametrize("task", TASKS, ids=ids)
def test_conflicts_are_the_edges_whose_ends_share_a_colour_whatever_the_colours_are_called(task):
    x, y = random_pairs(task, 200, seed=1)
    colours = y if task.encoding == "vertices" else y[:, :: task.n + 1]
    expected = [sum(c[i] == c[j] for i, j in edges(task, a)) for a, c in zip(x, colours, strict=True)]
    assert max(expected) > 2
    assert task.conflicts(x, y).tolist() == expected
    assert np.array_equal(task.conflicts(x, (y + 1) % 7), expected)


def test_a_violation_is_a_conflict_or_a_token_that_is_no_colour_skips_one_or_differs_in_its_row():
    task = tasks.Colouring(4, **SMALL)
    x = task.encode("0-1 1-2")
    assert task.violations(x, np.array([0, 1, 0, 0])) == 0
    assert task.violations(x, np.array([0, 0, 0, 0])) == 2  # both edges
    assert task.violations(x, np.array([1, 0, 1, 1])) == 1  # colour 1 before colour 0
    assert task.violations(x, np.array([0, 2, 0, 0])) == 1  # colour 2 without colour 1
    assert task.violations(x, np.array([0, 1, 2, 3])) == 1  # no fourth colour
    matrix = tasks.Colouring(4, encoding="matrix", **SMALL)
    y = np.repeat([0, 1, 0, 0], 4)
    y[1] = 1
    assert matrix.violations(matrix.encode("0-1 1-2"), y) == 1


@pytest.mark.parametrize("kind", ["uint8", "int64", "torch.uint8", "torch.int64"])
@pytest.mark.parametrize("task", TASKS, ids=ids)
def test_verify_is_the_same_for_every_kind_of_array(task, kind):
    def cast(values):
        return torch.from_numpy(values.astype(kind[6:])) if kind.startswith("torch.") else values.astype(kind)

    x, y = random_pairs(task, 200, seed=2)
    for measure in (task.verify, task.violations, task.conflicts):
        found = measure(cast(x), cast(y))
        assert isinstance(found, torch.Tensor if kind.startswith("torch.") else np.ndarray)
        assert np.array_equal(np.asarray(found), measure(x, y))
        # Particles on the left: x [B, L] against y [N, B, L].
        assert np.array_equal(np.asarray(measure(cast(x), cast(np.stack([y, y[::-1]]))))[0], measure(x, y))


def test_a_graph_that_cannot_be_coloured_has_no_solutions():
    task = tasks.Colouring(5, **SMALL)
    assert task.solutions(task.encode("0-1 0-2 0-3 1-2 1-3 2-3")).shape == (0, 5)


@pytest.mark.parametrize(("n", "encoding"), [(14, "vertices"), (15, "matrix"), (16, "vertices")])
def test_a_large_ring_has_as_many_colourings_as_its_chromatic_polynomial_says(n, encoding):
    """(k - 1)^n + (k - 1)(-1)^n for k = 3, of which six are renamings of each other."""
    task = tasks.Colouring(n, encoding=encoding)
    x = task.encode([(i, (i + 1) % n) for i in range(n)])
    found = task.solutions(x)
    assert len(found) == (2**n + 2 * (-1) ** n) // 6
    assert task.verify(x, found).all() and len(np.unique(found, axis=0)) == len(found)


def test_a_graph_of_many_vertices_is_coloured_and_drawn():
    """Three groups of 20, all joined to all of the other groups: one colouring; and a data set of 24 vertices."""
    task = tasks.Colouring(60, encoding="matrix")
    group = np.random.default_rng(0).permutation(np.repeat(np.arange(3), 20))
    x = task.encode((group[:, None] != group).astype(int))
    (found,) = task.solutions(x)
    assert np.array_equal(found.reshape(60, 60)[:, 0], renamed(group))
    task = tasks.Colouring(24, 0.25, encoding="matrix", train=20, test=5)
    x, y = task.examples("train")
    assert len(np.unique(x, axis=0)) == 20 and task.verify(x, y).all()


def test_too_many_colourings_to_list_is_one_clear_sentence():
    task = tasks.Colouring(40, encoding="matrix")
    with pytest.raises(ValueError, match="a graph of colouring40-matrix has more than 1,048,576 colourings"):
        task.solutions(task.encode("0-1"))


@pytest.mark.parametrize(("n", "colours"), [(8, 3), (10, 3), (7, 4)])
def test_a_graph_without_edges_has_every_partition_into_so_many_classes(n, colours):
    stirling = {(8, 3): 1 + 127 + 966, (10, 3): 1 + 511 + 9_330, (7, 4): 1 + 63 + 301 + 350}
    task = tasks.Colouring(n, colours=colours)
    assert len(task.solutions(task.encode([]))) == stirling[n, colours]


# -- isomorphism ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [3, 4, 5])
def test_graphs_share_an_invariant_exactly_where_one_is_a_relabelled_copy_of_the_other(n):
    pairs = list(itertools.combinations(range(n), 2))
    every = np.zeros((2 ** len(pairs), n, n), dtype=bool)
    for bit, (i, j) in enumerate(pairs):
        every[:, i, j] = every[:, j, i] = np.arange(len(every)) >> bit & 1
    keys = np.stack(
        [
            (every[:, order][:, :, order].reshape(len(every), -1) * 2.0 ** np.arange(n * n)).sum(1)
            for order in itertools.permutations(range(n))
        ]
    )
    exact = np.unique(keys.min(0), return_inverse=True)[1]
    found = np.unique(graphs.invariant(every), return_inverse=True)[1]
    assert len(np.unique(exact)) == {3: 4, 4: 11, 5: 34}[n]
    assert len(np.unique(exact + 1_000 * found)) == len(np.unique(exact)) == len(np.unique(found))


def classes(n: int) -> int:
    """How many invariants graphs of n vertices have: each class is grown from those of one vertex less."""
    found = np.zeros((1, 1, 1), dtype=bool)
    for size in range(2, n + 1):
        joined = (np.arange(2 ** (size - 1))[:, None] >> np.arange(size - 1) & 1).astype(bool)
        grown = np.zeros((len(found), len(joined), size, size), dtype=bool)
        grown[:, :, :-1, :-1] = found[:, None]
        grown[:, :, -1, :-1] = grown[:, :, :-1, -1] = joined
        grown = grown.reshape(-1, size, size)
        marks = np.concatenate([graphs.invariant(part) for part in np.array_split(grown, 1 + len(grown) // 4_000)])
        found = grown[np.unique(marks, return_index=True)[1]]
    return len(found)


def test_there_are_as_many_invariants_as_graphs_up_to_isomorphism():
    assert [classes(n) for n in range(2, 8)] == [2, 4, 11, 34, 156, 1_044]


@pytest.mark.slow
def test_the_invariant_tells_all_graphs_of_eight_vertices_apart():
    assert classes(8) == 12_346


def test_the_invariant_is_the_same_for_relabelled_graphs_of_ten_vertices():
    rng = np.random.default_rng(0)
    adjacency = graphs.erdos_renyi(rng, 300, 10, 0.4)
    order = rng.permuted(np.tile(np.arange(10), (300, 1)), axis=1)
    rows = np.arange(300)[:, None, None]
    copies = adjacency[rows, order[:, :, None], order[:, None, :]]
    assert (copies != adjacency).any()
    assert np.array_equal(graphs.invariant(copies), graphs.invariant(adjacency))
    assert len(np.unique(graphs.invariant(adjacency))) > 290


# -- data -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [3, 8, 10])
def test_tokens_hold_the_whole_graph(n):
    adjacency = graphs.erdos_renyi(np.random.default_rng(0), 50, n, 0.5)
    tokens = graphs.to_tokens(adjacency)
    assert tokens.max() < 2 ** (n - 1)
    assert np.array_equal(graphs.from_tokens(tokens), adjacency)


@pytest.mark.parametrize(("n", "sizes"), [(8, (7_002, 255)), (10, (13_465, 192))])
def test_the_data_set_has_the_published_size_and_only_graphs_that_can_be_coloured(n, sizes):
    task = tasks.Colouring(n, edge_probability=0.5)
    for graph, size in zip(task.problems, sizes, strict=True):
        assert len(np.unique(graph, axis=0)) == len(graph) == size
    x, y = task.examples("test")
    assert len(np.unique(x, axis=0)) == sizes[1]
    assert task.verify(x, y).all()


def test_no_test_graph_is_a_relabelled_training_graph():
    task = tasks.Colouring(8)
    train, test = (graphs.invariant(graphs.from_tokens(part)) for part in task.problems)
    assert not np.isin(test, train).any()
    single = tasks.Colouring(8, split="input")
    train, test = (graphs.invariant(graphs.from_tokens(part)) for part in single.problems)
    assert np.isin(test, train).any()  # what the published split allows
    assert not set(map(tuple, single.problems[0])) & set(map(tuple, single.problems[1]))


def test_edges_are_there_with_the_edge_probability():
    drawn = graphs.erdos_renyi(np.random.default_rng(0), 4_000, 8, 0.4)
    share = drawn.sum() / (4_000 * 56)
    assert abs(share - 0.4) < 4 * (0.4 * 0.6 / (4_000 * 28)) ** 0.5  # four standard errors: wrong once in 16,000


def test_the_same_seed_gives_the_same_graphs_and_another_one_others():
    one, same, other = (tasks.Colouring(6, seed=seed, **SMALL).problems[0] for seed in (0, 0, 1))
    assert np.array_equal(one, same) and not np.array_equal(one, other)


def test_what_belongs_beside_a_figure_is_in_the_repr_and_in_about():
    task = tasks.Colouring(8, edge_probability=0.5)
    assert "edge_probability=0.5" in repr(task)
    assert task.about == {"edge probability": 0.5, "colours": 3}


def test_denser_graphs_have_fewer_colourings_and_so_a_higher_ceiling():
    ceilings = []
    for probability in (0.3, 0.5):
        task = tasks.Colouring(7, probability, train=100, test=100)
        solutions = metrics.all_solutions(task, task.problems[1])
        ceilings.append(metrics.limits(solutions, 20)["uniform"]["coverage_macro_all"])
    assert ceilings[0] < ceilings[1] < 1


# -- reading and names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["vertices", "matrix"])
def test_a_graph_is_read_from_text_from_pairs_and_from_its_adjacency(encoding):
    task = tasks.Colouring(8, encoding=encoding)
    adjacency = np.zeros((8, 8), dtype=int)
    for i, j in PETERSEN_PART:
        adjacency[i, j] = adjacency[j, i] = 1
    text = ", ".join(f"{i}-{j}" for i, j in PETERSEN_PART)
    x = task.encode(text)
    assert edges(task, x) == {(max(e), min(e)) for e in PETERSEN_PART}
    for same in (PETERSEN_PART, np.array(PETERSEN_PART), adjacency, adjacency.tolist(), torch.tensor(adjacency), x):
        assert np.array_equal(task.encode(same), x)
    assert not edges(task, task.encode(""))


def test_a_colouring_is_drawn_as_a_line_a_colour():
    assert tasks.Colouring(5).decode(np.array([0, 1, 0, 2, 1])) == "colour 0: 0 2\ncolour 1: 1 4\ncolour 2: 3"
    matrix = tasks.Colouring(3, encoding="matrix")
    assert matrix.decode(torch.tensor([0, 0, 0, 1, 1, 1, 0, 0, 0])) == "colour 0: 0 2\ncolour 1: 1"


@pytest.mark.parametrize("encoding", ["vertices", "matrix"])
@pytest.mark.parametrize(
    "problem",
    [
        "0-1 1",
        "0-8",
        "3-3",
        [(0, 1, 2)],
        [(0, 1), (2,)],
        np.eye(8, dtype=int),
        np.triu(np.ones((8, 8)), 1),
        [0.5] * 8,
        None,
        5,
        np.array(5),
        True,
    ],
)
def test_what_is_no_graph_is_one_clear_sentence(problem, encoding):
    with pytest.raises(ValueError, match="must"):
        tasks.Colouring(8, encoding=encoding).encode(problem)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 2}, "n must be at least 3, got 2"),
        ({"n": 17}, 'n must be at most 16 with encoding="vertices", got 17'),
        ({"n": 63, "encoding": "matrix"}, 'n must be at most 62 with encoding="matrix", got 63'),
        ({"n": "8"}, "n must be an integer, got '8'"),
        ({"n": [8]}, r"n must be an integer, got \[8\]"),
        ({"edge_probability": "0.4"}, "edge_probability must be a number, got '0.4'"),
        ({"edge_probability": 1.0}, "edge_probability must be between 0 and 1, got 1.0"),
        ({"colours": 1}, "colours must be at least 2, got 1"),
        ({"train": 0}, "train must be at least 1, got 0"),
        ({"encoding": "rows"}, 'encoding must be "vertices" or "matrix", got \'rows\''),
        ({"split": "class"}, 'split must be "orbit" or "input", got \'class\''),
    ],
)
def test_bad_arguments_are_one_clear_sentence(arguments, message):
    with pytest.raises(ValueError, match="^" + message.replace("(", r"\(") + "$"):
        tasks.Colouring(**arguments)


def test_more_graphs_than_there_are_is_one_clear_sentence():
    with pytest.raises(ValueError, match="train and test must be at most as many problems as colouring4 has"):
        tasks.Colouring(4, train=60, test=10).examples("train")


@pytest.mark.parametrize(
    "task",
    [
        tasks.Colouring(8),
        tasks.Colouring(10, edge_probability=0.5),
        tasks.Colouring(7, edge_probability=0.25, colours=4, encoding="matrix", split="input"),
    ],
    ids=lambda task: task.name,
)
def test_a_task_is_built_again_from_its_name_and_its_split(task):
    assert isinstance(task, tasks.Task)
    assert repr(tasks.from_name(task.name, task.split)) == repr(task)
