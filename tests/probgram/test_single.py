"""What tasks with one right answer share: verification in any backend, splits, names; and chains can use them."""

import numpy as np
import pytest
import torch

from probgram import fit, solve, tasks
from probgram.inference import evaluate
from probgram.models import GRAM, GRAMGuide

SIZES = {"train": 64, "test": 24}
SINGLE = [
    tasks.Permutations(6, **SIZES),
    tasks.Permutations(6, targets="every", elements=4, **SIZES),
    tasks.Pointers(17, hops=4, **SIZES),
    tasks.Pointers(8, hops=4, targets="every", maps="permutation", **SIZES),
    tasks.Reachability(8, longest=3, **SIZES),
    tasks.Reachability(8, longest=3, degree=2, targets="every", **SIZES),
    tasks.Rule110(9, steps=3, **SIZES),
]
ALL = [*SINGLE, tasks.Colouring(6, **SIZES), tasks.Colouring(5, encoding="matrix", **SIZES)]


def named(task) -> str:
    return task.name


def damaged(task, rows: int = 200) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Problems, answers with none to all tokens changed, and how many were."""
    rng = np.random.default_rng(0)
    x, y = task.examples("train")
    chosen = rng.integers(len(x), size=rows)
    changed = rng.random((rows, task.length)) < rng.choice([0.0, 0.0, 0.2, 1.0], size=(rows, 1))
    other = (y[chosen] + rng.integers(1, task.output_size, size=changed.shape)) % task.output_size
    return x[chosen], np.where(changed, other, y[chosen]), changed.sum(1)


@pytest.mark.parametrize("task", SINGLE, ids=named)
def test_an_answer_is_verified_in_every_token_and_violations_count_the_wrong_ones(task):
    x, y, wrong = damaged(task)
    assert 0.2 < (wrong == 0).mean() < 0.8
    assert np.array_equal(task.violations(x, y), wrong)
    assert np.array_equal(task.verify(x, y), wrong == 0)


@pytest.mark.parametrize("kind", ["uint8", "int64", "torch.uint8", "torch.int64"])
@pytest.mark.parametrize("task", SINGLE, ids=named)
def test_verify_is_the_same_for_every_kind_of_array(task, kind):
    def cast(values, dtype):
        return torch.from_numpy(values.astype(dtype)) if kind.startswith("torch.") else values.astype(dtype)

    x, y, wrong = damaged(task)
    x, y = cast(x, np.int64), cast(np.stack([y, y[::-1]]), kind.removeprefix("torch."))  # [B, L] and [N, B, L]
    for measure, expected in ((task.violations, wrong), (task.verify, wrong == 0)):
        found = measure(x, y)
        assert isinstance(found, torch.Tensor if kind.startswith("torch.") else np.ndarray)
        assert np.array_equal(np.asarray(found[0]), expected)
    assert np.asarray(task.verify(x[0], y[0, 0])).shape == ()


@pytest.mark.parametrize("task", ALL, ids=named)
def test_an_answer_of_another_length_is_refused_and_not_compared_with_every_token(task):
    x, y = (rows[0] for rows in task.examples("train"))
    for wrong in (y[:1], torch.from_numpy(y[:1]), y[:-1], np.append(y, 0), y[0]):
        for measure in (task.verify, task.violations, getattr(task, "conflicts", task.verify)):
            with pytest.raises(ValueError, match=f"^an answer must have {task.length} tokens, got shape"):
                measure(x, wrong)


@pytest.mark.parametrize("task", SINGLE, ids=named)
def test_a_problem_has_exactly_one_solution_without_padding(task):
    x, y = task.examples("test")
    for problem, answer in zip(x, y, strict=True):
        assert np.array_equal(task.solutions(problem), answer[None])
    assert 0 <= y.min() and y.max() < task.output_size
    assert 0 <= x.min() and x.max() < task.input_size
    assert x.dtype == y.dtype == np.int64 and x.shape == y.shape == (24, task.length)


@pytest.mark.parametrize("task", ALL, ids=named)
def test_training_and_test_problems_are_all_different_and_follow_the_seed(task):
    x = np.concatenate([np.unique(task.examples(split)[0], axis=0) for split in ("train", "test")])
    assert len(np.unique(x, axis=0)) == len(x) == 64 + 24
    arguments = {key.replace(" ", "_"): value for key, value in task.about.items()} | SIZES
    if isinstance(task, tasks.Colouring):
        arguments |= {"n": task.n, "encoding": task.encoding}
    again, other = (type(task)(**arguments, seed=seed).examples("train")[0] for seed in (0, 1))
    assert np.array_equal(again, task.examples("train")[0])
    assert not np.array_equal(other[:60], again[:60])


@pytest.mark.parametrize("task", ALL, ids=named)
def test_a_task_is_built_again_from_its_name_and_its_split(task):
    assert isinstance(task, tasks.Task)
    again = tasks.from_name(task.name, task.split)
    assert type(again) is type(task)
    assert again.about == task.about
    assert (again.name, again.length) == (task.name, task.length)
    assert (again.input_size, again.output_size) == (task.input_size, task.output_size)


@pytest.mark.parametrize("number", [1 / 3, 1e-5, 1.23456789e-7, 0.1 + 0.2, np.float32(0.7)])
def test_a_name_has_every_digit_of_a_number(number):
    for task in (tasks.Colouring(8, number), tasks.Reachability(8, degree=number)):
        assert tasks.from_name(task.name).about == task.about


def test_the_names_of_round_numbers_are_short():
    assert tasks.Colouring(8, 0.5).name == "colouring8-p0.5"
    assert [tasks.Reachability(8, degree=d).name for d in (2, 2.0, 2.5)] == [
        "reachability8-to5-degree2",
        "reachability8-to5-degree2",
        "reachability8-to5-degree2.5",
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("colouring10", tasks.Colouring(10)),
        ("permutations16", tasks.Permutations()),
        ("pointers16", tasks.Pointers()),
        ("reachability12", tasks.Reachability()),
        ("rule110", tasks.Rule110()),
    ],
)
def test_a_short_name_means_the_defaults(name, expected):
    assert repr(tasks.from_name(name)) == repr(expected)


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("pointers", None, "no task is called 'pointers'"),
        ("colouring8-p", None, "no task is called 'colouring8-p'"),
        ("reachability12-degree.", None, "no task is called 'reachability12-degree.'"),
        ("reachability12-degree1.2.3", None, "no task is called 'reachability12-degree1.2.3'"),
        ("permutations0", None, "length must be at least 1, got 0"),
        ("permutations16", "orbit", "problems of permutations16 are held out by \"input\", got split 'orbit'"),
        ("colouring8", "row", 'split must be "orbit" or "input", got \'row\''),
    ],
)
def test_names_of_no_task_are_one_clear_sentence(name, split, message):
    with pytest.raises(ValueError, match=message):
        tasks.from_name(name, split)


@pytest.mark.parametrize("problem", [[1, 2], [[0] * 9], [0.0] * 9, [2] * 9, [-1] * 9, [[0], [1, 2]]])
def test_tokens_that_are_no_problem_are_one_clear_sentence(problem):
    with pytest.raises(ValueError, match=r"a problem of rule110-9-3steps must"):
        tasks.Rule110(9, steps=3).encode(problem)


@pytest.mark.parametrize("task", ALL, ids=named)
def test_unknown_splits_are_one_clear_sentence(task):
    with pytest.raises(ValueError, match='split must be "train" or "test", got \'all\''):
        task.examples("all")


@pytest.mark.parametrize("task", ALL, ids=named)
def test_a_chain_is_trained_on_it_solves_it_and_is_evaluated(task):
    torch.manual_seed(0)
    chain = GRAM.for_task(task, dim=16, heads=2, hidden=32, transitions=1, refinements=1)
    settings = {"batch": 8, "progress": False, "validate_every": 0, "accelerator": "cpu"}
    result = fit(chain, GRAMGuide(chain), task, 2, **settings)
    assert result.finished and result.steps == 2
    x, _ = task.examples("test")
    solution = solve(chain, x[0], width=2, depth=1, task=task)
    assert solution.verified is not None and solution.verified.shape == solution.shares.shape
    assert isinstance(task.decode(solution.answers[0]), str)
    report = evaluate(chain, task, problems=4, width=2, depth=1, seeds=(0,))
    assert report.about["problems"] == 4 and 0 <= report.mean("valid") <= 1
    assert (
        0 < report.limits["one answer"]["coverage_macro_all"] <= report.limits["uniform"]["coverage_macro_all"] <= 1
    )


@pytest.mark.parametrize("name", ["pointers4-3hops", "rule110-8-2steps"])
def test_a_family_of_few_problems_has_what_there_is_and_holds_some_out(name):
    task = tasks.from_name(name)
    train, test = (x for x, _ in (task.examples("train"), task.examples("test")))
    everything = np.unique(np.concatenate([train, test]), axis=0)
    assert len(everything) == len(train) + len(test) == {"p": 1_024, "r": 256}[name[0]]
    assert 0.1 < len(test) / len(everything) < 0.2
    assert eval(repr(task), {type(task).__name__: type(task)}).name == name
    with pytest.raises(ValueError, match="turned up, got 3000 together"):
        type(task)(**task.about, train=2_000, test=1_000).examples("train")
