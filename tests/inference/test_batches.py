"""The order of training data: every problem once an epoch, ranks that partition it, rows that are refilled."""

import numpy as np
import pytest
import torch

from probgram import fit, tasks
from probgram.inference.batches import Batches, as_known_answers
from probgram.inference.shares import Share
from probgram.models import TRM

CPU = torch.device("cpu")
TASK = tasks.Queens(5)
KNOWN = tasks.group_answers(*TASK.examples("train"))
SIZE = len(KNOWN.x)


def make(
    batch: int = 7, particles: int = 3, depth: int = 4, seed: int = 0, staggered: bool = False, **settings
) -> Batches:
    return Batches(KNOWN, batch, particles, depth, seed, staggered, **settings)


def order(batches: Batches, rows: int) -> list[tuple[int, ...]]:
    """The next `rows` problems, one draw at a time."""
    return [tuple(x.tolist()) for _ in range(rows // batches.batch) for x in batches._draw(batches.batch, CPU)[0]]


# -- what data may be -----------------------------------------------------------------------------------------


class PairDataset:
    """As a torch Dataset: a length and pairs."""

    def __init__(self, x, y):
        self.rows = list(zip(torch.from_numpy(x), torch.from_numpy(y), strict=True))

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]


def test_a_task_its_arrays_its_tensors_and_a_dataset_are_the_same_data():
    x, y = TASK.examples("train")
    for data in (TASK, (x, y), [x, y], (torch.from_numpy(x), torch.from_numpy(y)), PairDataset(x, y), KNOWN):
        for found, expected in zip(as_known_answers(data), KNOWN, strict=True):
            assert np.array_equal(found, expected)


@pytest.mark.parametrize("data", [None, "queens8", 3, (np.zeros((2, 2), int),), {"x": 1, "y": 2}, []], ids=repr)
def test_what_is_no_data_is_one_clear_sentence(data):
    with pytest.raises(ValueError, match="data must be a Task, KnownAnswers, a pair"):
        as_known_answers(data)


# -- the order ------------------------------------------------------------------------------------------------


def test_every_epoch_holds_every_problem_once_in_another_order():
    batches = make(batch=1)
    epochs = [order(batches, SIZE) for _ in range(3)]
    everything = sorted(tuple(x) for x in KNOWN.x.tolist())
    assert all(sorted(epoch) == everything for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_by_pair_an_epoch_holds_every_problem_as_often_as_it_has_answers():
    known = as_known_answers(
        (np.array([[0, 1], [0, 1], [0, 1], [2, 2]]), np.array([[1, 1], [2, 2], [3, 3], [1, 1]]))
    )
    batches = Batches(known, batch=4, particles=1, depth=2, seed=0, staggered=False, by_pair=True)
    for _ in range(3):
        assert sorted(order(batches, 4)) == [(0, 1)] * 3 + [(2, 2)]


def test_the_size_of_a_draw_does_not_change_the_order():
    assert order(make(batch=1), 2 * SIZE)[: 7 * (2 * SIZE // 7)] == order(make(batch=7), 2 * SIZE)


def test_a_draw_may_be_larger_than_the_data():
    batches = make(batch=3 * SIZE + 5)
    rows = [tuple(x) for x in batches._draw(batches.batch, CPU)[0].tolist()]
    everything = sorted(tuple(x) for x in KNOWN.x.tolist())
    assert all(sorted(rows[i * SIZE : (i + 1) * SIZE]) == everything for i in range(3))


def test_the_seed_decides_order_and_targets():
    first, again, other = (make(seed=seed).start(CPU) for seed in (0, 0, 1))
    assert torch.equal(first.x, again.x) and torch.equal(first.target, again.target)
    assert not torch.equal(first.x, other.x)


class Told(Share):
    """A share that knows what the other ranks hold."""

    def whole(self, values, device):
        return TOLD[0]


TOLD = [torch.zeros(0)]


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_take_their_rows_of_what_one_process_would_hold(world):
    """Rows end at different times on different ranks; over the end of an epoch too."""
    ranks = [make(batch=4 * world, staggered=True, share=Told(rank, world)) for rank in range(world)]
    single = make(batch=4 * world, staggered=True)
    held, whole = [batches.start(CPU) for batches in ranks], single.start(CPU)
    asked = torch.Generator().manual_seed(0)
    for _ in range(2 * SIZE // (4 * world)):
        also = torch.rand(4 * world, generator=asked) < 0.2
        whole = whole._replace(age=whole.age + 1)
        TOLD[0] = torch.stack([whole.age, also.long()], 1)
        held = [rollout._replace(age=rollout.age + 1) for rollout in held]
        held = [b.refill(rollout, b.share.own(also)) for b, rollout in zip(ranks, held, strict=True)]
        whole = single.refill(whole, also)
        for rank, rollout in enumerate(held):
            for name, dim in {"x": 0, "answers": 0, "counts": 0, "target": 1, "age": 0}.items():
                assert torch.equal(getattr(rollout, name), Share(rank, world).own(getattr(whole, name), dim)), name


def test_the_number_drawn_is_the_whole_state_of_the_order():
    batches, resumed = make(), make()
    batches.start(CPU)
    resumed.drawn = batches.drawn
    for a, b in zip(batches._draw(5, CPU), resumed._draw(5, CPU), strict=True):
        assert torch.equal(a, b)


# -- targets --------------------------------------------------------------------------------------------------


def test_targets_are_known_answers_drawn_uniformly_for_each_trajectory():
    batches = make(batch=SIZE, particles=400)
    _, answers, counts, target = batches._draw(SIZE, CPU)
    assert target.shape == (400, SIZE) and answers.shape[0] == counts.shape[0] == SIZE
    assert (target >= 0).all() and (target < counts).all()
    several = (counts > 1).nonzero()[:, 0]
    assert len(several) > 10
    for b in several.tolist():
        found = torch.bincount(target[:, b], minlength=int(counts[b])) / 400
        share = 1 / float(counts[b])
        assert ((found - share).abs() < 5 * (share * (1 - share) / 400) ** 0.5).all()


# -- rows -----------------------------------------------------------------------------------------------------


def aged(rollout, steps: int = 1):
    return rollout._replace(age=rollout.age + steps)


def test_rows_end_at_their_depth_and_only_they_are_refilled():
    batches = make(batch=4, depth=3)
    start = batches.start(CPU)
    assert start.age.tolist() == [0, 0, 0, 0] and start.state is None
    young = batches.refill(aged(start, 2))
    assert torch.equal(young.x, start.x) and young.age.tolist() == [2, 2, 2, 2]
    assert batches.drawn == 4
    fresh = batches.refill(aged(young))
    assert fresh.age.tolist() == [0, 0, 0, 0] and batches.drawn == 8
    assert torch.equal(fresh.x, make(batch=8).start(CPU).x[4:])


def test_a_row_handed_over_early_brings_its_own_answers_counts_and_targets():
    batches = make(batch=4, depth=3)
    start = batches.start(CPU)
    also = torch.tensor([False, True, False, True])
    after = batches.refill(aged(start), also)
    assert after.age.tolist() == [1, 0, 1, 0]
    x, answers, counts, _ = make(batch=6)._draw(6, CPU)
    for name, expected in (("x", x), ("answers", answers), ("counts", counts)):
        before, now = getattr(start, name), getattr(after, name)
        assert torch.equal(now[[0, 2]], before[[0, 2]]) and torch.equal(now[[1, 3]], expected[4:])
    assert torch.equal(after.target[:, [0, 2]], start.target[:, [0, 2]])
    assert (after.target < after.counts).all()


def test_staggered_rows_end_one_after_the_other_and_live_the_full_depth_from_then_on():
    batches = make(batch=6, depth=3, staggered=True)
    rollout, ended = batches.start(CPU), []
    for _ in range(7):
        rollout = aged(rollout)
        before = rollout
        rollout = batches.refill(rollout)
        ended.append([i for i in range(6) if rollout.age[i] == 0 and before.age[i] > 0])
    assert ended == [[0, 3], [1, 4], [2, 5], [0, 3], [1, 4], [2, 5], [0, 3]]


# -- symmetric images -----------------------------------------------------------------------------------------


def test_augmented_problems_are_images_of_the_drawn_ones_with_the_answers_of_the_image():
    task = tasks.Sudoku(2)
    known = tasks.group_answers(*task.examples("train"))
    plain = Batches(known, 40, 2, 4, 0, False)._draw(40, CPU)
    x, answers, counts, target = Batches(known, 40, 2, 4, 0, False, augment=task.augment)._draw(40, CPU)
    assert torch.equal(counts, plain[2]) and torch.equal(target, plain[3])
    assert (x != plain[0]).any(1).float().mean() > 0.9
    assert np.array_equal(task.orbits(x.numpy()), task.orbits(plain[0].numpy()))
    assert task.verify(x[:, None], answers).all()


def test_augmented_draws_depend_on_the_position_alone():
    task = tasks.Sudoku(2)
    known = tasks.group_answers(*task.examples("train"))
    whole = Batches(known, 6, 1, 4, 0, False, augment=task.augment)
    whole._draw(6, CPU)
    resumed = Batches(known, 6, 1, 4, 0, False, augment=task.augment)
    resumed.drawn = 6
    assert all(torch.equal(a, b) for a, b in zip(whole._draw(6, CPU), resumed._draw(6, CPU), strict=True))


@pytest.mark.parametrize(
    ("task", "sentence"),
    [(TASK, "augment needs a task with symmetric images"), (tasks.Sudoku(2, split="input"), "a split by orbit")],
)
def test_augmenting_what_has_no_images_or_would_leak_is_one_clear_sentence(task, sentence):
    chain = TRM.for_task(task, dim=8, hidden=8, heads=1)
    with pytest.raises(ValueError, match=sentence):
        fit(chain, None, task, 1, augment=True, progress=False)
