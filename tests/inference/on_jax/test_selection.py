"""Selection in JAX is selection in torch, on the same run."""

import re

import numpy as np
import pytest

pytest.importorskip("jax", reason="needs probgram[jax]")

from probgram import inference, tasks
from probgram.inference import on_jax
from probgram.inference.on_jax import Trajectories

TASK = tasks.Queens(4)
RIGHT = TASK.solutions(np.full(4, 4))[0]


def make_run(seed: int) -> Trajectories:
    """Answers that repeat, some right, some trajectories dead; no right one alive in the last problem."""
    draw = np.random.default_rng(seed)
    answers = draw.integers(0, 2, (2, 9, 5, 4)).astype(np.uint8)
    weights = np.where(draw.random((2, 9, 5)) < 0.3, -np.inf, draw.normal(size=(2, 9, 5)))
    answers[draw.random((2, 9, 5)) < 0.3] = RIGHT
    weights[(answers == RIGHT).all(-1) & (np.arange(5) == 4)] = -np.inf
    heads = {name: draw.normal(size=(2, 9, 5)).astype(np.float32) for name in ("value", "halt")}
    return Trajectories(np.full((5, 4), 4), answers, weights, heads=heads)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("step", [0, -1])
@pytest.mark.parametrize("name", ["vote", "best", "first_verified"])
def test_every_rule_takes_what_its_torch_twin_takes(name, step, seed):
    run = make_run(seed)
    arguments = [TASK] if name == "first_verified" else []
    ours = getattr(on_jax, name)(run, *arguments, step=step)
    theirs = getattr(inference, name)(run.to_torch(), *arguments, step=step)
    for field in ("answers", "slot", "score"):
        np.testing.assert_allclose(getattr(ours, field), getattr(theirs, field), rtol=1e-6, err_msg=field)


def test_a_verified_answer_is_taken_wherever_a_living_trajectory_has_it():
    run = make_run(0)
    chosen = on_jax.first_verified(run, TASK)
    alive = (TASK.verify(run.x, run.answers[-1]) & (run.weights[-1] > 0)).any(0)
    np.testing.assert_array_equal(TASK.verify(run.x, chosen.answers), alive)
    np.testing.assert_array_equal(chosen.score, alive)
    assert alive[:4].any() and not alive[4]


def test_the_posterior_is_the_distinct_answers_of_every_problem():
    run = make_run(1)
    for problem, (answers, shares) in enumerate(on_jax.posterior(run)):
        found = run.distinct(problem)
        np.testing.assert_array_equal(answers, found.answers)
        np.testing.assert_array_equal(shares, found.shares)
        assert shares.sum() == pytest.approx(1)


def test_what_is_not_there_is_named():
    with pytest.raises(ValueError, match=re.escape("the run has no head 'energy': it has ['halt', 'value']")):
        on_jax.best(make_run(0), head="energy")
    with pytest.raises(ValueError, match="only the last depth step can be untilted, got step 0"):
        on_jax.posterior(make_run(0), step=0, untilted=True)
