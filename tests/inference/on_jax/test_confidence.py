"""How sure a run in JAX is, and whether it is right: what the same run says in torch, from the same functions."""

import numpy as np
import pytest

pytest.importorskip("numpyro", reason="needs probgram[jax]")

from probgram import tasks
from probgram.backends import inference
from probgram.inference.calibration import distance_to_uniform, of_answers, of_head
from probgram.inference.confidence import expected, halt, share, usual, value
from probgram.inference.on_jax import Trajectories

TASK = tasks.Queens(5)


def make_run() -> Trajectories:
    """Eight weighted trajectories of four problems at two depth steps, half of them wrong, resampled once."""
    rng, x = np.random.default_rng(0), np.unique(TASK.examples("test")[0], axis=0)[:4]
    answers = np.stack([np.stack([rng.choice(TASK.solutions(b), 8) for b in x], 1) for _ in range(2)])
    wrong = rng.random((2, 8, 4)) < 0.5
    answers[wrong, 0] = answers[wrong, 1]  # two queens in a column
    log_weights, ancestors = rng.normal(size=(2, 8, 4)), rng.integers(8, size=(2, 8, 4))
    heads = {name: rng.normal(size=(2, 8, 4)).astype(np.float32) for name in ("value", "halt")}
    log_weights[1, :3] = -np.inf
    return Trajectories(
        x, answers.astype(np.uint8), log_weights.astype(np.float32), ancestors.astype(np.int32), heads
    )


def test_a_confidence_is_that_of_the_same_run_in_torch_and_an_array_of_the_runs_kind():
    run = make_run()
    near, theirs = (expected(inference(name, "potentials").energy(TASK)) for name in ("jax", "torch"))
    for answers in (None, run.answers[-1, -1]):
        for one, other in ((halt, halt), (value, value), (share, share), (usual, usual), (near, theirs)):
            for step in (0, -1):
                ours = one(run, answers, step)
                assert isinstance(ours, np.ndarray) and ours.dtype == np.float64 and (ours > 0).any()
                np.testing.assert_allclose(ours, other(run.to_torch(), answers, step).numpy(), rtol=1e-6)


def test_a_potential_of_the_other_library_is_refused_and_a_function_of_the_view_taken():
    run = make_run()
    for kind, of, one in (("torch", "jax", run), ("jax", "torch", run.to_torch())):
        with pytest.raises(ValueError, match=f"run is of {of}, so the potential must be, too, and it is of {kind}"):
            expected(inference(kind, "potentials").value)(one)
    said = expected(lambda view: view.heads["value"] * 0)(run)  # psi = 1
    np.testing.assert_allclose(said, 1)
    with pytest.raises(ValueError, match="a run keeps answers and heads, no readouts"):
        expected(lambda view: view.readout)(run)


def test_a_task_that_knows_the_answers_is_not_asked_in_jax_either():
    potentials = inference("jax", "potentials")
    known = potentials.energy(tasks.Pointers(4, hops=2))
    for potential in (known, potentials.value * known, known**2):
        with pytest.raises(ValueError, match="must not look at labels"):
            expected(potential)
    with pytest.raises(ValueError, match="of one depth step"):
        expected(potentials.accumulated(potentials.value))


def test_calibration_is_that_of_the_same_run_in_torch():
    run = make_run()
    for measure in (
        lambda one: of_head(one, TASK, "halt", 0),
        lambda one: of_head(one, TASK, "value", 0, adaptive=True),
        lambda one: of_answers(one, TASK),
        lambda one: distance_to_uniform(one, TASK),
    ):
        for ours, theirs in zip(measure(run), measure(run.to_torch()), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)
