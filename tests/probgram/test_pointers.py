"""Pointer chasing: answers against following the map by hand, maps of both kinds, bad input."""

import numpy as np
import pytest

from probgram import tasks

TASKS = [
    tasks.Pointers(6, hops=1, train=100, test=20),
    tasks.Pointers(6, hops=9, train=100, test=20),
    tasks.Pointers(7, hops=5, targets="every", train=100, test=20),
    tasks.Pointers(7, hops=7, targets="every", maps="permutation", train=100, test=20),
]


def parts(task: tasks.Pointers, x) -> tuple[int, list[int]]:
    """Start and map, straight from the definition of the encoding."""
    starts = [i for i, token in enumerate(x) if token >= task.n**2]
    assert len(starts) == 1
    pairs = [divmod(int(token) % task.n**2, task.n) for token in x]
    assert [i for i, _ in pairs] == list(range(task.n))
    return starts[0], [image for _, image in pairs]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_answers_are_where_the_hops_lead(task):
    for split in ("train", "test"):
        for x, y in zip(*task.examples(split), strict=True):
            at, image = parts(task, x)
            way = []
            for _ in range(task.hops):
                at = image[at]
                way.append(at)
            if task.targets == "every":
                assert y.tolist() == way + [at] * (task.n - task.hops)
            else:
                assert y.tolist() == [at] * task.n


def test_maps_are_any_or_permutations():
    (any_x, _), (permutation_x, _) = (
        tasks.Pointers(8, maps=maps, train=300, test=10).examples("train") for maps in ("any", "permutation")
    )
    images = permutation_x % 8
    assert (np.sort(images, 1) == np.arange(8)).all()
    distinct = np.array([len(set(row)) for row in any_x % 8])
    expected = 8 * (1 - (7 / 8) ** 8)  # elements that something leads to
    assert abs(distinct.mean() - expected) < 4 * distinct.std() / 300**0.5  # wrong once in 16,000
    for x in (any_x, permutation_x):
        starts = np.bincount((x >= 64).argmax(1), minlength=8) / 300
        assert np.abs(starts - 1 / 8).max() < 5 * (1 / 8 * 7 / 8 / 300) ** 0.5  # eight at once: once in 200,000


def test_a_start_and_a_map_are_read_from_text_and_the_answer_is_drawn():
    task = tasks.Pointers(4, hops=3)
    x = task.encode("2: 1 0 3 0")
    assert parts(task, x) == (2, [1, 0, 3, 0])
    assert np.array_equal(task.encode("2 : 1,0, 3,0"), x)
    assert task.decode(task.solutions(x)[0]) == "1"  # 2 leads to 3, 3 to 0, 0 to 1
    every = tasks.Pointers(4, hops=3, targets="every")
    assert every.decode(every.solutions(x)[0]) == "3 0 1 1"


@pytest.mark.parametrize(
    "problem",
    [
        "1 0 3 0",
        "4: 1 0 3 0",
        "0: 1 0 3",
        "0: 1 0 3 4",
        "",
        "0: " + 60 * "1" + "x",  # is refused at once
        "0: 99999999999999999999999 1 2 3",
        "99999999999999999999999: 0 1 2 3",
        [1, 4, 11, 12],
        [17, 20, 11, 12],
        [17, 5, 12, 8],
    ],
)
def test_what_is_no_start_and_map_is_one_clear_sentence(problem):
    with pytest.raises(ValueError, match="must"):
        tasks.Pointers(4).encode(problem)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 1}, "n must be at least 2, got 1"),
        ({"hops": 0}, "hops must be at least 1, got 0"),
        ({"hops": 17, "targets": "every"}, 'hops must be at most n = 16 where targets are "every", got 17'),
        ({"maps": "random"}, 'maps must be "any" or "permutation", got \'random\''),
    ],
)
def test_bad_arguments_are_one_clear_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        tasks.Pointers(**arguments)
