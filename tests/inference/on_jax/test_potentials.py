"""Potentials in JAX: values and algebra of the torch twin, and the filter on the shipped GRAM beside torch's."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numpyro", reason="needs probgram[jax]")

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import torch

from probgram import tasks
from probgram.inference import potentials as twins
from probgram.inference import smc as torch_smc
from probgram.inference.on_jax import potentials, smc
from probgram.inference.on_jax.potentials import (
    Likelihood,
    View,
    accumulated,
    energy,
    halt,
    likelihood,
    look_ahead,
    value,
    violations,
)
from probgram.models import GRAM as TorchGRAM
from probgram.models.on_jax import GRAM

BOARD = [0, 8, 8, 8, 8, 8, 8, 8]
LOGITS = np.random.default_rng(0).normal(size=(5, 2, 8, 8)).astype(np.float32)
HEADS = {name: np.random.default_rng(1).normal(size=(5, 2)).astype(np.float32) for name in ("value", "halt")}
X = np.array([BOARD, [4, 8, 8, 8, 8, 8, 8, 8]])


def view(t: Any = 2, depth: Any = 4) -> View:
    """Of a model whose state is its logits."""
    model = SimpleNamespace(
        readout=lambda state: dist.Categorical(logits=state).to_event(1),
        heads=lambda state: {name: jnp.asarray(values) for name, values in HEADS.items()},
    )
    return View(model, jnp.asarray(LOGITS), None, None, t, depth, jnp.arange(2), jnp.asarray(X))


def torch_view(t: int = 2, depth: int = 4) -> twins.View:
    model = SimpleNamespace(
        readout=lambda state: torch.distributions.Independent(torch.distributions.Categorical(logits=state), 1),
        heads=lambda state: {name: torch.tensor(values) for name, values in HEADS.items()},
    )
    return twins.View(
        model, torch.tensor(LOGITS), None, None, t, depth, torch.arange(2), torch.tensor(X), decode=lambda r: r.mode
    )


def test_values_are_those_of_the_torch_potentials():
    task, y = tasks.Queens(8), np.array([[0, 4, 7, 5, 2, 6, 1, 3], [4, 1, -1, 0, 6, 3, -1, 5]])
    pairs = [
        (value, twins.value),
        (halt**2 * value, twins.halt**2 * twins.value),
        (energy(task, 0.7), twins.energy(task, 0.7)),
        (likelihood(y), twins.likelihood(y)),
        (
            likelihood(y, anneal=False) * (lambda v: v.heads["halt"]),
            twins.likelihood(y, anneal=False) * (lambda v: v.heads["halt"]),
        ),
        (likelihood(y[0], observed=np.arange(8) < 3), twins.likelihood(y[0], observed=torch.arange(8) < 3)),
        (look_ahead(lambda v: v.heads["value"]), twins.look_ahead(lambda v: v.heads["value"])),
        (accumulated(value), twins.accumulated(twins.value)),
    ]
    for ours, theirs in pairs:
        for t in (2, 4):
            np.testing.assert_allclose(ours(view(t)), theirs(torch_view(t)), rtol=1e-5, atol=1e-6)
        for name in ("evidence", "look_ahead", "neutral", "accumulates"):
            assert getattr(ours, name) == getattr(theirs, name), (ours, name)
    assert not look_ahead(lambda v: v.heads["value"])(view(4)).any()  # released at the end
    released = look_ahead(lambda v: v.heads["value"])(view(2, jnp.array([2, 3])))
    assert not released[:, 0].any() and released[:, 1].all()


def test_a_task_that_needs_numpy_is_called_back_from_the_compiled_program():
    class Host(tasks.Queens):
        def violations(self, x: Any, y: Any) -> Any:
            return super().violations(np.asarray(x), np.asarray(y))

    answers = np.random.default_rng(3).integers(0, 8, size=(5, 2, 8)).astype(np.uint8)
    wanted = tasks.Queens(8).violations(X, answers)
    for task in (tasks.Queens(8), Host(8)):
        counted = jax.jit(lambda x, y, task=task: violations(task, x, y))
        np.testing.assert_array_equal(counted(X, answers), wanted)
        assert ("callback" in str(jax.make_jaxpr(counted)(X, answers))) == isinstance(task, Host)


@pytest.mark.parametrize("name", ["queens8-board", "sudoku4", "colouring8"])
def test_tasks_count_violations_of_traced_arrays(name):
    task = tasks.from_name(name)
    x = np.stack([np.asarray(problem) for problem in task.examples("test")[0][:2]])
    y = np.random.default_rng(0).integers(0, task.output_size, size=(3, 2, task.length)).astype(np.uint8)
    np.testing.assert_array_equal(jax.jit(lambda x, y: violations(task, x, y))(x, y), task.violations(x, y))


def test_what_cannot_be_weighed_is_refused_in_one_sentence():
    for make, words in [
        (lambda: energy(tasks.Queens(8), 0.0), "alpha must be above 0"),
        (lambda: energy(3), "an energy needs a task with violations"),
        (lambda: accumulated(value) * halt, "an accumulated potential multiplies accumulated ones only"),
        (lambda: potentials.Head("depth")(view()), "needs the head 'depth'; SimpleNamespace has halt, value"),
        (lambda: Likelihood(np.zeros((3, 8), int))(view()), "one for each of 2 problems, got 3"),
        (lambda: Likelihood(np.zeros(5, int))(view()), "y must hold the 8 tokens of the readout, got 5"),
        (lambda: Likelihood(np.full(8, 9))(view()), "y must hold tokens below 8, got 9"),
        (
            lambda: Likelihood(np.zeros(8, int), np.ones(8, int)),
            r"observed must be bool \[8\] or \[1, 8\], got int64",
        ),
        (lambda: Likelihood(np.full(8, -1), np.ones(8, bool)), "observed must not count tokens that y does not"),
        (lambda: potentials.as_potential(3), "a potential must be a function of the view"),
    ]:
        with pytest.raises(ValueError, match=words):
            make()


def test_the_shipped_gram_is_filtered_by_energy_as_by_the_torch_filter():
    """Two filters of 60 replicates each: means of log Z and of the weighted share of right answers, at depths 1
    and 3, within 4 standard errors of their difference (false alarm 2.5e-4 for the four comparisons).
    """
    task, replicates, width, depth = tasks.Queens(8), 60, 6, 3
    x = np.repeat([BOARD], replicates, 0)
    run = smc.run(
        GRAM.from_pretrained("queens8"), x, width=width, depth=depth, potential=energy(task, 1.0), ess_threshold=0.7
    )
    twin = torch_smc.run(
        TorchGRAM.from_pretrained("queens8"),
        torch.tensor(x),
        width=width,
        depth=depth,
        potential=twins.energy(task, 1.0),
        ess_threshold=0.7,
    )
    assert run.answers.dtype == np.uint8 and run.answers.shape == (depth, width, replicates, 8)
    assert run.ancestors is not None and twin.ancestors is not None

    def figures(run: Any) -> list[np.ndarray]:
        right = task.violations(x, np.asarray(run.answers)) == 0
        share = (np.asarray(run.weights) * right).sum(1)
        return [part[s] for part in (np.asarray(run.log_normalizer), share) for s in (0, 2)]

    for ours, theirs in zip(figures(run), figures(twin), strict=True):
        error = np.sqrt((ours.var() + theirs.var()) / replicates)
        assert error > 0 and abs(ours.mean() - theirs.mean()) < 4 * error
    with pytest.raises(ValueError, match="log_evidence exists only where"):
        _ = run.log_evidence
