"""Composition of permutations: products against composition by hand, the group's laws, words that are held out."""

import itertools

import numpy as np
import pytest

from probgram import tasks

TASKS = [
    tasks.Permutations(7, train=200, test=50),
    tasks.Permutations(7, targets="every", train=200, test=50),
    tasks.Permutations(5, targets="every", elements=3, train=150, test=50),
]


def product(word, elements: int) -> tuple[int, ...]:
    """Apply the factors one after another to each element."""
    images = list(itertools.permutations(range(elements)))
    result = []
    for start in range(elements):
        at = start
        for factor in word:
            at = images[factor][at]
        result.append(at)
    return tuple(result)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_answers_are_products_of_the_factors_from_left_to_right(task):
    images = list(itertools.permutations(range(task.elements)))
    for x, y in zip(*task.examples("train"), strict=True):
        if task.targets == "every":
            assert [images[token] for token in y] == [product(x[: i + 1], task.elements) for i in range(len(x))]
        else:
            assert {images[token] for token in y} == {product(x, task.elements)}


@pytest.mark.parametrize("elements", [2, 3, 4, 5])
def test_products_are_those_of_a_group(elements):
    products = tasks.Permutations(2, elements=elements).products
    size = len(products)
    every = np.arange(size)
    assert np.array_equal(products[0], every) and np.array_equal(products[:, 0], every)  # 0 is the identity
    assert all(np.array_equal(np.sort(row), every) for row in products)  # every factor can be undone
    a, b, c = np.random.default_rng(0).integers(size, size=(3, 2_000))
    assert np.array_equal(products[products[a, b], c], products[a, products[b, c]])
    assert (products == products.T).all() == (elements == 2)


def test_the_product_of_a_random_word_is_uniform():
    task = tasks.Permutations(3, elements=3, train=180, test=36)
    x = np.concatenate([task.examples(split)[0] for split in ("train", "test")])
    assert len(np.unique(x, axis=0)) == 6**3  # all words there are
    assert np.bincount(task.answer(x)[:, 0]).tolist() == [36] * 6


def test_words_are_read_and_drawn_as_images():
    task = tasks.Permutations(3)
    x = task.encode("10234 02134, 01234")
    assert x.tolist() == [24, 6, 0]
    # 0 goes to 1 goes to 2, 1 goes to 0 stays, 2 stays goes to 1.
    assert task.decode(task.solutions(x)[0]) == "20134"
    every = tasks.Permutations(3, targets="every")
    assert every.decode(every.solutions(x)[0]) == "10234 20134 20134"


@pytest.mark.parametrize("text", ["10234 02134", "10234 02134 0123", "10234 02134 00123", "", "a b c"])
def test_what_is_no_word_is_one_clear_sentence(text):
    with pytest.raises(ValueError, match="must be"):
        tasks.Permutations(3).encode(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 0}, "length must be at least 1, got 0"),
        ({"elements": 7}, "elements must be at most 6, got 7"),
        ({"targets": "all"}, 'targets must be "last" or "every", got \'all\''),
    ],
)
def test_bad_arguments_are_one_clear_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        tasks.Permutations(**arguments)


def test_more_words_than_there_are_is_one_clear_sentence():
    with pytest.raises(ValueError, match="at most as many problems as permutations1 has, of which 120 turned up"):
        tasks.Permutations(1, train=20_000, test=1_000).examples("train")
