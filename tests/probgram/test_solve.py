"""Abstaining: a solution says how sure it is, and gives no answer where that is not enough."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from probgram import solve, tasks
from probgram.inference.confidence import expected, halt, share, value
from probgram.inference.potentials import Function, energy
from probgram.models import GRAM

BOARD, DEAD = "0 . . . . . . .", "0 2 . . . . . ."  # the second has no solution
TASK = tasks.Queens(8)


@pytest.fixture(scope="module")
def chain() -> GRAM:
    return GRAM.from_pretrained("queens8")


def answered(chain, board=BOARD, **choices):
    return solve(chain, board, width=4, depth=2, **choices)


def test_the_confidence_is_of_the_most_probable_answer(chain):
    solution = answered(chain)
    run, first = solution.run, solution.answers[:1]
    assert solution.confidence == pytest.approx(float(halt(run, first)))
    assert answered(chain, confidence=share).confidence == pytest.approx(float(solution.shares[0]))
    assert answered(chain, confidence=value).confidence == pytest.approx(float(value(run, first)))
    by_energy = expected(energy(TASK))
    assert answered(chain, confidence=by_energy).confidence == pytest.approx(float(by_energy(run)))


def test_a_function_of_ones_own_is_a_confidence(chain):
    assert answered(chain, confidence=lambda run, answers, step: torch.tensor([0.25])).confidence == 0.25


def test_nothing_is_withheld_unless_asked(chain):
    solution = answered(chain, DEAD)
    assert not solution.abstained and solution.confidence < 0.5
    assert "no answer" not in repr(solution) and "abstained" not in repr(solution)
    assert str(solution) == "no answer passed verification"


def test_an_unsure_solution_gives_no_answer_and_says_why(chain):
    solution = answered(chain, DEAD, abstain_below=0.9)
    assert solution.abstained and solution.accepted() == []
    assert str(solution) == f"no answer: a confidence of {solution.confidence:.3g} is below 0.9"
    assert repr(solution).startswith("Solution(abstained, 0 verified of")
    assert len(solution.answers) > 0 and solution.shares.sum() == pytest.approx(1)  # what was drawn stays


def test_a_sure_solution_answers_as_ever(chain):
    sure, plain = answered(chain, abstain_below=0.5), answered(chain)
    assert not sure.abstained
    assert str(sure) == str(plain) and repr(sure) == repr(plain)
    assert [share for _, share in sure.accepted()] == [share for _, share in plain.accepted()]


def test_a_confidence_that_equals_the_threshold_is_enough(chain):
    half = answered(chain, confidence=share)
    at = float(half.shares[0])
    assert not answered(chain, confidence=share, abstain_below=at).abstained
    assert answered(chain, confidence=share, abstain_below=min(1.0, at + 0.01)).abstained
    assert not answered(chain, DEAD, abstain_below=0.0).abstained


def test_verification_has_no_say_in_abstaining(chain):
    """A label must not decide: the same numbers come out where everything, and where nothing, is right."""

    class Generous(tasks.Queens):
        def verify(self, x, y):
            return (y >= 0).all(-1)

    strict, generous = (
        answered(chain, DEAD, abstain_below=0.9),
        answered(chain, DEAD, abstain_below=0.9, task=Generous(8)),
    )
    assert generous.verified.all() and not strict.verified.any()
    assert generous.abstained == strict.abstained and generous.confidence == strict.confidence


def test_a_filter_has_a_confidence_too(chain):
    solution = answered(chain, DEAD, potential=energy(TASK), abstain_below=0.9)
    assert solution.abstained and 0 < solution.confidence < 0.9


@pytest.mark.filterwarnings("ignore:.*vanished")
def test_nothing_is_sure_where_all_weights_vanished(chain):
    none = Function(lambda view: torch.full(view.answer.shape[:2], -torch.inf))
    solution = answered(chain, potential=none, abstain_below=0.1)
    assert solution.confidence == 0 and solution.abstained


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan")])
def test_a_threshold_is_a_probability(chain, threshold):
    with pytest.raises(ValueError, match=f"abstain_below must be between 0 and 1, got {threshold}"):
        answered(chain, abstain_below=threshold)


def test_solving_in_torch_needs_no_jax():
    code = """
import sys
from probgram import solve, tasks
from probgram.inference.confidence import expected
from probgram.inference.potentials import energy
near = energy(tasks.Queens(8))
for choices in ({}, {"potential": near, "confidence": expected(near)}):
    solve("queens8", "0 . . . . . . .", width=4, depth=2, **choices)
print([name for name in ("jax", "numpyro", "equinox", "optax") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_a_chain_without_heads_is_judged_by_its_votes_and_cannot_be_asked_for_a_head():
    from probgram import Chain

    plain = Chain.from_module(
        lambda h, x: h, lambda h: torch.stack([h, -h], -1), (3,), encode=lambda x: x.float(), sigma=1.0
    )
    task = tasks.Pairs(np.array([[0, 1, 1]]), np.array([[1, 0, 0]]), verify=lambda x, y: (x != y).all(-1))
    solution = solve(plain, [0, 1, 1], width=16, depth=2, task=task)
    assert solution.confidence == pytest.approx(float(solution.shares[0]))
    with pytest.raises(ValueError, match="needs the head 'halt': the run has none"):
        solve(plain, [0, 1, 1], width=4, depth=2, task=task, confidence=halt)
