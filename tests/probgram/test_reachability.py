"""Reachability: answers and distances against a search by hand, classes that are balanced, bad input."""

import numpy as np
import pytest
import torch

from probgram import tasks
from probgram.tasks import graphs

TASKS = [
    tasks.Reachability(8, longest=4, train=160, test=80),
    tasks.Reachability(8, longest=4, targets="every", train=160, test=80),
    tasks.Reachability(7, longest=2, degree=2, train=120, test=60),
]


def search(task: tasks.Reachability, x) -> list[int]:
    """Distances from vertex 0 by a search with a queue, −1 where there is no path."""
    neighbours = [[] for _ in range(task.n)]
    for i in range(task.n):
        for j in range(i):
            if int(x[i]) & 2 ** (i - j - 1):
                neighbours[i].append(j)
                neighbours[j].append(i)
    distance, queue = [0] + [-1] * (task.n - 1), [0]
    for vertex in queue:
        for other in neighbours[vertex]:
            if distance[other] < 0:
                distance[other] = distance[vertex] + 1
                queue.append(other)
    return distance


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_answers_and_distances_are_those_of_a_search(task):
    x, y = task.examples("train")
    found = task.distance(x)
    for problem, answer, distance in zip(x, y, found, strict=True):
        expected = search(task, problem)
        assert distance == expected[-1] == task.distance(torch.from_numpy(problem))
        if task.targets == "every":
            assert answer.tolist() == [d if d >= 0 else task.n for d in expected]
        else:
            assert answer.tolist() == [int(expected[-1] >= 0)] * task.n


@pytest.mark.parametrize("source", [0, 3])
def test_distances_are_the_first_powers_of_the_adjacency_that_join_two_vertices(source):
    adjacency = graphs.erdos_renyi(np.random.default_rng(0), 200, 7, 0.25)
    expected = np.full((200, 7), -1)
    walks = np.broadcast_to(np.eye(7), adjacency.shape)
    for length in range(7):
        expected = np.where((walks[:, source] > 0) & (expected < 0), length, expected)
        walks = walks @ adjacency
    assert np.array_equal(graphs.distances(adjacency, source), expected)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_every_distance_has_its_share_and_an_answer_that_is_always_the_same_is_right_half_the_time(task, split):
    x, _ = task.examples(split)
    distance = task.distance(x)
    assert len(np.unique(x, axis=0)) == len(x) == getattr(task, split)
    assert (distance < 0).mean() == 0.5
    steps, count = np.unique(distance[distance > 0], return_counts=True)
    assert steps.tolist() == list(range(1, task.longest + 1))
    assert set(count) == {len(x) // (2 * task.longest)}


def test_without_a_path_the_search_takes_every_number_of_steps_and_the_goal_is_not_alone():
    task = TASKS[0]
    x, _ = task.examples("train")
    apart = x[task.distance(x) < 0]
    reached = [max(search(task, problem)) for problem in apart]
    assert np.bincount(reached).tolist() == [0, 20, 20, 20, 20]
    assert graphs.from_tokens(apart)[:, -1].any(1).all()


def test_the_examples_come_in_no_order():
    distance = TASKS[0].distance(TASKS[0].examples("train")[0])
    assert (np.diff(distance < 0) != 0).sum() > 40  # 80 expected of 159 places, standard deviation 6


def test_no_two_seeds_share_graphs():
    drawn = []
    for seed in (0, 2):
        task = tasks.Reachability(12, longest=2, degree=3, train=200, test=20, seed=seed)
        x, _ = task.examples("train")
        joined = x[task.distance(x) > 0]  # hardly two of them are copies of each other by chance
        drawn.append(set(graphs.invariant(graphs.from_tokens(joined)).tolist()))
    assert len(drawn[0] & drawn[1]) < 5


def test_a_graph_is_read_as_for_colouring_and_the_answer_is_drawn():
    task = tasks.Reachability(5, longest=2)
    joined, apart = task.encode("0-2 2-4"), task.encode([(0, 2), (3, 4)])
    assert (task.distance(joined), task.distance(apart)) == (2, -1)
    assert task.decode(task.solutions(joined)[0]) == "yes"
    assert task.decode(task.solutions(apart)[0]) == "no"
    assert np.array_equal(task.encode(joined), joined)
    every = tasks.Reachability(5, longest=2, targets="every")
    assert every.decode(every.solutions(joined)[0]) == "0 - 1 - 2"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 3}, "n must be at least 4, got 3"),
        ({"n": 25}, "n must be at most 24, got 25"),
        ({"longest": 10}, "longest must be at most n - 3 = 9, got 10"),
        ({"degree": "1.5"}, "degree must be a number, got '1.5'"),
        ({"degree": 0}, "degree must be between 0 and n - 1 = 11, got 0"),
        ({"targets": "all"}, 'targets must be "last" or "every", got \'all\''),
    ],
)
def test_bad_arguments_are_one_clear_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        tasks.Reachability(**arguments)


def test_a_class_of_too_few_problems_is_named():
    task = tasks.Reachability(4, longest=1, train=100, test=20)
    with pytest.raises(
        ValueError, match=r"problems as reachability4-to1 \(a path, 1 steps\) has, of which 32 turned"
    ):
        task.examples("train")
