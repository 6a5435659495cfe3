"""Which answer a step is trained towards: the torch rules again, and the same choices from the same uniforms.

Shares of draws are two-sided at four standard errors: 6e-5 false alarms each.
"""

import math

import numpy as np
import pytest

pytest.importorskip("numpyro", reason="needs probgram[jax]")

import jax
import jax.numpy as jnp
import torch
from jax import Array

from probgram.inference import targets as torch_targets
from probgram.inference.objective_config import RULES, ObjectiveConfig
from probgram.inference.on_jax.targets import TargetView, dealt, fixed, nearest, responsibilities, rule_of


def view(log_p: Array, current: int = 0, key: int = 0) -> TargetView:
    return TargetView(lambda: log_p, log_p, jnp.full(log_p.shape[:2], current), jax.random.key(key))


def test_fixed_keeps_and_nearest_follows() -> None:
    log_p = jnp.array([[[-1.0, -3.0, -2.0]], [[-9.0, -8.0, -0.1]], [[-5.0, -4.0, -jnp.inf]]])
    assert fixed(view(log_p, current=2)).tolist() == [[2], [2], [2]]
    assert nearest(view(log_p)).tolist() == [[0], [2], [1]]


def test_responsibilities_draws_in_proportion() -> None:
    share = np.array([0.7, 0.25, 0.05, 0.0])
    with np.errstate(divide="ignore"):
        log_p = jnp.asarray(np.broadcast_to(np.log(share) - 3.0, (40_000, 1, 4)))  # need not be normalised
    counts = np.bincount(np.asarray(responsibilities(view(log_p))).ravel(), minlength=4) / 40_000
    assert (np.abs(counts - share) <= 4 * np.sqrt(share * (1 - share) / 40_000)).all()


def test_dealt_finds_an_assignment_that_no_single_round_finds() -> None:
    """Costs in which answers are contested; the best assignment is 50 nats ahead of the next."""
    log_p = [[-80, -80, -20, -80], [-20, 0, -20, -20], [-70, -60, -20, 0], [-40, -70, -30, -80]]
    assert dealt(view(jnp.array(log_p, float)[:, None])).ravel().tolist() == [2, 1, 3, 0]


def test_dealt_gives_equal_shares_where_all_like_one_answer() -> None:
    """Two answers; padding is never dealt."""
    log_p = jnp.array([-0.1, -7.0, -jnp.inf]) + jax.random.normal(jax.random.key(1), (20_000, 1, 1))
    drawn = np.bincount(np.asarray(dealt(view(log_p))).ravel(), minlength=3)
    assert drawn[2] == 0
    assert abs(drawn[0] - 10_000) < 4 * math.sqrt(20_000 / 4)


@pytest.mark.parametrize("name", RULES)
def test_every_rule_chooses_as_its_torch_twin_from_the_same_uniforms(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(0)
    log_p, uniform = generator.normal(size=(20, 7, 5)).astype(np.float32), generator.random((20, 7, 5), np.float32)
    log_p[:, :3, 3:] = -np.inf
    monkeypatch.setattr(jax.random, "uniform", lambda *_: jnp.asarray(uniform))
    found = rule_of(name)(view(jnp.asarray(log_p), current=1))
    scores = torch.from_numpy(log_p)
    theirs = torch_targets.TargetView(
        lambda: scores, scores, torch.ones(20, 7, dtype=torch.long), lambda _: torch.from_numpy(uniform.copy())
    )
    assert np.array_equal(found, torch_targets.rule_of(name)(theirs).numpy())


def test_a_rule_of_either_side_is_known_by_its_name_and_one_s_own_stays() -> None:
    def mine(view: TargetView) -> Array:
        return view.current

    for rule in (nearest, torch_targets.nearest, "nearest"):
        assert ObjectiveConfig(target=rule) == ObjectiveConfig(target="nearest")
    assert ObjectiveConfig(target=mine).target is mine and rule_of(mine) is mine
    with pytest.raises(ValueError, match="target must be a function or one of fixed, nearest, .*, got 'farthest'"):
        ObjectiveConfig(target="farthest")
