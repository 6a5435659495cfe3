"""The frontier of a JAX chain: that of torch up to the draws, the same count of multiply-adds, one table."""

import numpy as np
import pytest

pytest.importorskip("numpyro", reason="needs probgram[jax]")

import jax
import jax.numpy as jnp

from probgram import models, tasks
from probgram.inference import cost, frontier, grid
from probgram.inference.on_jax import Trajectories
from probgram.inference.on_jax.cost import multiply_adds
from probgram.models import on_jax

TASK = tasks.Queens(5)
SIZES = {"dim": 16, "heads": 2, "hidden": 24}


@pytest.mark.slow
def test_the_shipped_chain_has_the_figures_that_it_has_in_torch():
    """Problems are shared and draws are not: 7 figures in 4 cells, 5 standard errors, 1 false alarm in 50,000."""
    how = {"depths": (1, 2), "widths": (1, 4), "seeds": (0,), "problems": 48, "rounds": 0}
    ours, theirs = (
        frontier(kind.GRAM.from_pretrained("queens8"), tasks.Queens(8), **how) for kind in (on_jax, models)
    )
    assert ours.scores.keys() == theirs.scores.keys()  # of heads JAX has another order
    for name, scores in ours.scores.items():
        apart = (scores - theirs.scores[name]).mean(0)  # [D, W, B]
        apart = apart[..., ~np.isnan(apart[0, 0])]
        error = apart.std(-1, ddof=1) / np.sqrt(apart.shape[-1])
        assert (np.abs(apart.mean(-1)) <= 5 * error).all(), name
    np.testing.assert_array_equal(ours.multiply_adds, theirs.multiply_adds)
    assert sorted(ours.table().splitlines()[2].split("|")) == sorted(theirs.table().splitlines()[2].split("|"))
    assert ours.about.items() >= {"backend": "jax", "device": jax.default_backend()}.items()
    assert ours.kind in ours.verdict and ours.as_dict().keys() == theirs.as_dict().keys()


def test_a_grid_is_the_same_whichever_library_holds_the_run():
    rng, x = np.random.default_rng(0), np.unique(TASK.examples("test")[0], axis=0)[:6]
    answers = np.stack([np.stack([rng.choice(TASK.solutions(b), 12) for b in x], 1) for _ in range(2)])
    wrong = rng.random((2, 12, 6)) < 0.5
    answers[wrong, 0] = answers[wrong, 1]  # two queens in a column
    heads = {"value": rng.normal(size=(2, 12, 6)).astype(np.float32)}
    run = Trajectories(x, answers.astype(np.uint8), np.zeros((2, 12, 6), np.float32), heads=heads)
    counts = np.array([len(TASK.solutions(b)) for b in x])
    ours, theirs = (grid._scores(one, TASK, counts, (1, 3, 5, 12), None) for one in (run, run.to_torch()))
    assert list(ours) == list(theirs) and len(ours) == 7
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])
        assert np.nanstd(ours[name]) > 0


@pytest.mark.parametrize("name", ["GRAM", "TRM", "LoopedTransformer"])
@pytest.mark.parametrize("body", ["attention", "mixer"])
def test_a_trajectory_costs_what_it_costs_in_torch(name, body):
    ours = getattr(on_jax, name).for_task(TASK, key=jax.random.key(0), body=body, **SIZES)
    theirs = getattr(models, name).for_task(TASK, body=body, **SIZES)
    x = TASK.examples("test")[0]
    for depth in (1, 3):
        assert multiply_adds(ours, x[0], depth) == cost.multiply_adds(theirs, x, depth) > 0


def test_loops_branches_and_convolutions_are_counted():
    a, b = jnp.ones((2, 3)), jnp.ones((3, 5))  # a product of 2 · 3 · 5 = 30

    class Counted(on_jax.Chain):
        def initial(self, context):
            return jnp.zeros(context.shape[:-1])

        def propose(self, state, context, t):
            looped = jax.lax.scan(lambda c, _: (c + (a @ b).sum(), None), 0.0, None, 4)[0]  # 120
            either = jax.lax.cond(t > 2, lambda: (a @ b).sum() + (a @ b).sum(), lambda: 0.0)  # 60
            image = jax.lax.conv(jnp.ones((1, 2, 6)), jnp.ones((4, 2, 3)), (1,), "VALID")  # 4 · 4 · 2 · 3 = 96
            return state + looped + either + image.sum()

        def prior(self, proposal, t):
            return on_jax.chain.dist.Normal(proposal, 1.0)

        def readout(self, state):
            return on_jax.chain.dist.Categorical(logits=state[..., None, None] * jnp.ones((2, 3))).to_event(1)

    assert multiply_adds(Counted(), np.zeros((1, 2), int), 5) == 5 * (120 + 60 + 96)
