"""A run's lines, weights and answers against hand-made genealogies; files; ArviZ."""

import json

import numpy as np
import pytest
import torch

from probgram import Trajectories
from probgram.checkpoint import CheckpointError, write_tensors

S, N, B, L = 4, 3, 2, 2


def make_run(**changes) -> Trajectories:
    """Answers are [depth step, slot] so that a test sees where each came from."""
    step, slot = torch.meshgrid(torch.arange(S), torch.arange(N), indexing="ij")
    answers = torch.stack([step, slot], -1)[:, :, None].expand(S, N, B, L).to(torch.uint8)
    fields = {
        "x": torch.tensor([[7, 8], [9, 9]]),
        "answers": answers,
        "log_weights": torch.zeros(S, N, B),
        "heads": {"value": torch.arange(S * N * B).reshape(S, N, B).float()},
        "log_normalizer": torch.arange(S * B).reshape(S, B).float(),
        "task": "queens4",
        "seed": 5,
        "settings": {"width": N},
    }
    return Trajectories(**(fields | changes))


ANCESTORS = torch.tensor(
    [
        [[0, 0], [1, 1], [2, 2]],  # nothing before the first step: never read
        [[0, 2], [0, 1], [2, 0]],
        [[1, 0], [1, 1], [2, 2]],
        [[2, 1], [0, 1], [0, 0]],
    ],
    dtype=torch.int32,
)


# -- shape ----------------------------------------------------------------------------------------------------


def test_sizes_and_the_one_line_description():
    run = make_run()
    assert (run.depth, run.width, run.problems, len(run)) == (S, N, B, B)
    assert repr(run) == "Trajectories(queens4, 2 problems × 3 trajectories × 4 depth steps, ESS 3.0, seed 5)"
    assert make_run(depths=(2, 4, 6, 8)).depth == 8


def test_arrays_that_do_not_fit_are_one_clear_sentence():
    with pytest.raises(ValueError, match=r"answers must be \[S, N, B, L\] and log_weights \[S, N, B\], got"):
        make_run(log_weights=torch.zeros(S, N))


# -- lines ----------------------------------------------------------------------------------------------------


def test_without_resampling_a_slot_is_its_own_line():
    run = make_run()
    assert torch.equal(run.lines(), torch.arange(N)[None, :, None].expand(S, N, B))
    assert run.answers_along_lines() is run.answers


def test_lines_trace_hand_made_ancestors():
    lines = make_run(ancestors=ANCESTORS).lines()
    # Problem 0, final slot 0: ancestor 2 at the step before, whose ancestor is 2, whose ancestor is 2.
    assert lines[:, 0, 0].tolist() == [2, 2, 2, 0]
    # Final slots 1 and 2: slot 0, then slot 1, then slot 0.
    assert lines[:, 1, 0].tolist() == [0, 1, 0, 1]
    assert lines[:, 2, 0].tolist() == [0, 1, 0, 2]
    # Problem 1.
    assert lines[:, :, 1].T.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1], [2, 0, 0, 2]]


def test_lines_agree_with_a_walk_backwards_on_random_genealogies():
    generator = torch.Generator().manual_seed(0)
    ancestors = torch.randint(6, (9, 6, 4), generator=generator, dtype=torch.int32)
    run = Trajectories(torch.zeros(4, 1), torch.zeros(9, 6, 4, 1), torch.zeros(9, 6, 4), ancestors=ancestors)
    lines = run.lines()
    for b in range(4):
        for i in range(6):
            slot = i
            for s in range(8, -1, -1):
                assert lines[s, i, b] == slot
                slot = int(ancestors[s, slot, b])


def test_answers_along_lines_are_the_answers_of_the_ancestors():
    run = make_run(ancestors=ANCESTORS)
    lines, answers = run.lines(), run.answers_along_lines()
    assert torch.equal(answers[..., 0], torch.arange(S)[:, None, None].expand(S, N, B).to(torch.uint8))
    assert torch.equal(answers[..., 1].long(), lines)


# -- weights --------------------------------------------------------------------------------------------------


def test_weights_are_normalised_and_ess_is_one_over_their_squares():
    weights = torch.tensor([0.5, 0.25, 0.25])
    run = make_run(log_weights=(weights.log() + 123.0)[None, :, None].expand(S, N, B))
    assert run.weights.dtype == torch.float64
    assert torch.allclose(run.weights[2, :, 1], weights.double(), atol=1e-5)
    assert torch.allclose(run.ess, torch.full((S, B), 1 / 0.375, dtype=torch.float64), atol=1e-4)
    assert make_run().ess.unique().tolist() == [3.0]


def test_weights_survive_log_weights_beyond_what_an_exponential_can():
    log_weights = torch.tensor([-5000.0, -5000.0, -torch.inf])[None, :, None].expand(S, N, B)
    assert make_run(log_weights=log_weights).weights[0, :, 0].tolist() == pytest.approx([0.5, 0.5, 0.0])


def test_a_problem_whose_weights_all_vanished_has_zeros_and_no_answers():
    log_weights = torch.zeros(S, N, B)
    log_weights[:, :, 1] = -torch.inf
    run = make_run(log_weights=log_weights)
    assert run.weights[-1, :, 1].tolist() == [0.0, 0.0, 0.0]
    assert run.ess[-1].tolist() == [3.0, 0.0]
    assert run.distinct(1).answers.shape == (0, L) and len(run.distinct(1).shares) == 0
    assert len(run.distinct(0).answers) == 3
    assert "nan" not in repr(run)


def test_log_evidence_exists_only_where_every_factor_is_a_likelihood():
    run = make_run(likelihoods_only=True)
    assert torch.equal(run.log_evidence, run.log_normalizer)
    for other in (make_run(), make_run(likelihoods_only=True, log_normalizer=None)):
        with pytest.raises(ValueError, match="every factor is a likelihood") as caught:
            _ = other.log_evidence
        assert "log_normalizer" in str(caught.value)


# -- answers --------------------------------------------------------------------------------------------------


def answers_run(weights: list[float]) -> Trajectories:
    """One step, two problems with the same answers in other slots, the given weights in both."""
    answers = torch.tensor([[[1, 2], [3, 4]], [[1, 3], [1, 2]], [[1, 2], [1, 2]], [[0, 9], [3, 4]]])[None]
    log_weights = torch.tensor(weights).log()[None, :, None].expand(1, 4, 2)
    return Trajectories(torch.zeros(2, 1), answers.to(torch.uint8), log_weights)


def test_distinct_answers_come_with_their_weights_summed_the_most_probable_first():
    run = answers_run([0.1, 0.6, 0.25, 0.05])
    answers, shares = run.distinct(0)
    assert answers.tolist() == [[1, 3], [1, 2], [0, 9]]
    assert shares.tolist() == pytest.approx([0.6, 0.35, 0.05])
    answers, shares = run.distinct(1)
    assert answers.tolist() == [[1, 2], [3, 4]]
    assert shares.tolist() == pytest.approx([0.85, 0.15])
    assert shares.dtype == torch.float64 and answers.dtype == torch.uint8


def test_answers_of_weight_zero_are_not_among_the_distinct():
    answers, shares = answers_run([0.5, 0.0, 0.5, 0.0]).distinct(0)
    assert answers.tolist() == [[1, 2]] and shares.tolist() == [1.0]


def test_equal_weights_make_shares_frequencies():
    _, shares = answers_run([1.0, 1.0, 1.0, 1.0]).distinct(0)
    assert shares.tolist() == [0.5, 0.25, 0.25]


def test_distinct_looks_at_the_depth_step_it_is_asked_for():
    run = make_run()
    assert run.distinct(0, step=1).answers.tolist() == [[1, 0], [1, 1], [1, 2]]
    assert run.distinct(1).answers.tolist() == [[3, 0], [3, 1], [3, 2]]


def test_answer_shares_number_equal_answers_equally_and_never_across_problems():
    run = answers_run([0.1, 0.6, 0.25, 0.05])
    index, shares = run.answer_shares()
    assert torch.allclose(shares[:, 0], torch.tensor([0.35, 0.6, 0.35, 0.05]).double(), atol=1e-6)
    assert torch.allclose(shares[:, 1], torch.tensor([0.15, 0.85, 0.85, 0.15]).double(), atol=1e-6)
    same = run.answers[0].unsqueeze(1) == run.answers[0].unsqueeze(0)
    for b in range(2):
        assert torch.equal(index[:, None, b] == index[None, :, b], same[:, :, b].all(-1))
    assert not set(index[:, 0].tolist()) & set(index[:, 1].tolist())


# -- indexing -------------------------------------------------------------------------------------------------


def rich_run() -> Trajectories:
    return make_run(
        ancestors=ANCESTORS,
        halted=torch.tensor([[True, False], [False, False], [True, True]]),
        state={"h": torch.arange(N * B * 5).reshape(N, B, 5).float()},
        log_weights=torch.randn(S, N, B, generator=torch.Generator().manual_seed(0)),
        likelihoods_only=True,
    )


@pytest.mark.parametrize("index", [1, -1, np.int64(1), slice(1, 2), torch.tensor([1])], ids=repr)
def test_indexing_keeps_one_problem_in_every_field(index):
    run, one = rich_run(), rich_run()[index]
    assert (one.depth, one.width, one.problems) == (S, N, 1)
    assert one.x.tolist() == [[9, 9]]
    assert torch.equal(one.answers[:, :, 0], run.answers[:, :, 1])
    assert torch.equal(one.log_weights[:, :, 0], run.log_weights[:, :, 1])
    assert torch.equal(one.lines()[:, :, 0], run.lines()[:, :, 1])
    assert torch.equal(one.heads["value"][:, :, 0], run.heads["value"][:, :, 1])
    assert torch.equal(one.log_evidence[:, 0], run.log_evidence[:, 1])
    assert one.halted[:, 0].tolist() == [False, False, True]
    assert torch.equal(one.state["h"][:, 0], run.state["h"][:, 1])
    assert (one.task, one.seed, one.settings, one.depths) == (run.task, run.seed, run.settings, run.depths)


def test_iterating_yields_every_problem_and_ends():
    assert [one.x.tolist() for one in rich_run()] == [[[7, 8]], [[9, 9]]]


@pytest.mark.parametrize("index", [2, -3])
def test_an_index_beyond_the_problems_is_an_index_error(index):
    with pytest.raises(IndexError, match=f"problem must be below 2, got {index}"):
        rich_run()[index]


# -- files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "run", [make_run(), rich_run(), make_run(heads={}, log_normalizer=None)], ids=["a", "b", "c"]
)
def test_a_saved_run_loads_bit_for_bit_without_its_state(run, tmp_path):
    path = run.save(tmp_path / "run.safetensors")
    again = Trajectories.load(path)
    for name in ("x", "answers", "log_weights", "ancestors", "log_normalizer", "halted"):
        before, after = getattr(run, name), getattr(again, name)
        assert (before is None and after is None) or (torch.equal(before, after) and before.dtype == after.dtype)
    assert run.heads.keys() == again.heads.keys()
    assert all(torch.equal(run.heads[k], again.heads[k]) for k in run.heads)
    for name in ("likelihoods_only", "depths", "task", "seed", "settings"):
        assert getattr(run, name) == getattr(again, name)
    assert again.state is None
    assert repr(again) == repr(run)


def test_a_file_of_something_else_is_no_run(tmp_path):
    other = write_tensors(tmp_path / "other.safetensors", {"x": torch.zeros(2)}, {"format": "probgram.weights/1"})
    with pytest.raises(CheckpointError, match="is not a saved run"):
        Trajectories.load(other)
    with pytest.raises(CheckpointError, match="does not exist"):
        Trajectories.load(tmp_path / "nothing.safetensors")


def test_a_run_with_a_missing_tensor_is_a_clear_error(tmp_path):
    about = {"format": "probgram.trajectories/1", "run": json.dumps({"depths": [1]})}
    path = write_tensors(tmp_path / "part.safetensors", {"x": torch.zeros(2)}, about)
    with pytest.raises(CheckpointError, match="is not a whole run of this version") as caught:
        Trajectories.load(path)
    assert "\n" not in str(caught.value)


# -- ArviZ ----------------------------------------------------------------------------------------------------


def test_to_arviz_has_one_chain_whose_draws_are_the_particles():
    run = make_run()
    data = run.to_arviz()
    answer = data["posterior"]["answer"]
    assert answer.dims == ("chain", "draw", "problem", "position")
    assert np.array_equal(answer.values[0], run.answers[-1].numpy())
    assert np.array_equal(data["sample_stats"]["value"].values[0], run.heads["value"][-1].numpy())
    assert np.array_equal(data["sample_stats"]["log_weight"].values[0], run.log_weights[-1].numpy())
    assert np.array_equal(data["constant_data"]["x"].values, run.x.numpy())
    assert data.attrs["task"] == "queens4" and data.attrs["seed"] == 5
    assert json.loads(data.attrs["settings"]) == {"width": N}


def test_to_arviz_resamples_a_weighted_run():
    width = 40
    answers = torch.arange(width, dtype=torch.uint8).reshape(1, width, 1, 1)
    weights = torch.zeros(width)
    weights[[3, 8]] = torch.tensor([0.25, 0.75])
    run = Trajectories(torch.zeros(1, 1), answers, weights.log().reshape(1, width, 1), seed=1)
    drawn = run.to_arviz()["posterior"]["answer"].values[0, :, 0, 0]
    assert np.unique(drawn, return_counts=True)[0].tolist() == [3, 8]
    assert np.unique(drawn, return_counts=True)[1].tolist() == [10, 30]


def test_to_arviz_refuses_a_problem_without_weight():
    log_weights = torch.zeros(S, N, B)
    log_weights[:, :, 1] = -torch.inf
    with pytest.raises(ValueError, match=r"problems \[1\] have no trajectory of positive weight"):
        make_run(log_weights=log_weights).to_arviz()


def test_answers_that_are_real_numbers_are_equal_where_they_are_the_same():
    answers = torch.tensor([0.2, 0.7, 0.2, -0.0, 0.0]).view(1, 5, 1, 1)
    run = make_run(
        x=torch.zeros(1, 2), answers=answers, log_weights=torch.zeros(1, 5, 1), heads={}, log_normalizer=None
    )
    found = run.distinct()
    assert sorted(zip(found.answers[:, 0].tolist(), found.shares.tolist(), strict=True)) == [
        (0.0, pytest.approx(0.4)),
        (pytest.approx(0.2), pytest.approx(0.4)),
        (pytest.approx(0.7), pytest.approx(0.2)),
    ]
    narrow = make_run(
        x=torch.zeros(1, 2),
        answers=answers.bfloat16(),
        log_weights=torch.zeros(1, 5, 1),
        heads={},
        log_normalizer=None,
    )
    assert len(narrow.distinct().answers) == 3
