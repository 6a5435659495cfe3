"""Islands that ran apart are one run at the end: as one filter would pool them, and whatever the processes."""

import os
import subprocess
import sys
from dataclasses import fields

import pytest
import torch
from torch import Tensor

from probgram.inference import sample, smc
from probgram.inference.potentials import halt
from probgram.inference.ranks import islands, pooled
from probgram.models import GRAM, GRAMConfig, LinearGaussian
from probgram.state import leaves
from probgram.trajectories import Trajectories

SERIES = torch.tensor([[0.3, -0.2, 0.9, 1.4]]).view(1, 4, 1)


def assert_same(run: Trajectories, expected: Trajectories, but: tuple[str, ...] = ()) -> None:
    for name in {f.name for f in fields(Trajectories)} - set(but):
        one, other = getattr(run, name), getattr(expected, name)
        if name in ("heads", "collected", "states", "state") or isinstance(one, Tensor):
            assert (one is None) == (other is None), name
            pairs = [] if one is None else zip(leaves(one), leaves(other), strict=True)
            for (_, a), (_, b) in pairs:
                torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6, equal_nan=True)
        else:
            assert one == other, name


def chain() -> LinearGaussian:
    dynamics, noise, emission, seen = (torch.tensor([[value]]) for value in (0.8, 1.0, 0.4, 0.7))
    return LinearGaussian(dynamics, noise, emission, seen)


def reasoner() -> GRAM:
    torch.manual_seed(0)
    return GRAM(GRAMConfig(4, 5, 5, dim=16, heads=2, blocks=1, hidden=24)).eval()


X = torch.randint(0, 5, (2, 4), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("keep", ["paths", "summary", "last", "latents"])
def test_problems_that_are_one_problem_pooled_are_the_filter_with_islands(keep):
    """Four columns with the same series see the noise of four islands."""
    apart = smc.run(chain(), SERIES.expand(4, -1, -1), width=30, depth=4, keep=keep, ess_threshold=1.0)
    together = smc.run(chain(), SERIES, width=30, depth=4, keep=keep, ess_threshold=1.0, islands=4)
    assert_same(pooled([apart[i] for i in range(4)]), together)


def test_islands_with_heads_answers_and_early_stops_are_pooled_as_the_filter_does():
    chosen = {"potential": halt, "halt_probability": 0.6, "width": 16, "depth": 6, "ess_threshold": 1.0}
    apart = smc.run(reasoner(), X[:1].expand(3, -1), **chosen)
    together = smc.run(reasoner(), X[:1], islands=3, **chosen)
    assert_same(pooled([apart[i] for i in range(3)]), together)


def test_draws_of_islands_are_independent_and_weigh_the_same():
    run = islands(lambda seed: sample(reasoner(), X, width=5, depth=3, seed=seed), 4, seed=9)
    assert run.answers.shape == (3, 20, 2, 4) and run.seed == 9
    torch.testing.assert_close(run.weights, torch.full_like(run.weights, 0.05))
    torch.testing.assert_close(run.ess, torch.full_like(run.ess, 20.0))
    first = islands(lambda seed: sample(reasoner(), X, width=5, depth=3, seed=seed), 1, seed=9)
    assert torch.equal(run.answers[:, :5], first.answers)


def test_an_island_that_ended_early_repeats_its_last_row():
    runs = [smc.run(chain(), SERIES, width=6, depth=depth, seed=depth, keep="paths") for depth in (2, 4)]
    run = pooled(runs)
    assert run.depths == (1, 2, 3, 4)
    weights = [one.weights * one.log_normalizer[:, None].exp() for one in runs]
    last = torch.cat([weights[0][-1], weights[1][-1]])
    torch.testing.assert_close(run.weights[-1], last / last.sum(0), rtol=1e-5, atol=1e-7)
    lines = run.lines()
    assert torch.equal(lines[1, :6], lines[3, :6]) and torch.equal(lines[3], torch.arange(12)[:, None])


def test_what_makes_no_sense_is_one_sentence():
    one = smc.run(chain(), SERIES, width=6, depth=2)
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        islands(lambda seed: one, 0)
    with pytest.raises(ValueError, match="at least one run"):
        pooled([])
    with pytest.raises(ValueError, match="same problems, width"):
        pooled([one, smc.run(chain(), SERIES, width=7, depth=2)])
    collecting = smc.run(chain(), SERIES, width=6, depth=2, collect={"mean": lambda h, w: w.sum(0)})
    with pytest.raises(ValueError, match="cannot be pooled"):
        pooled([collecting])


def filtered(seed: int) -> Trajectories:
    return smc.run(chain(), SERIES, width=20, depth=4, seed=seed, keep="paths", ess_threshold=1.0)


SCRIPT = """
import os, sys, torch
from tests.inference.test_ranks import filtered, islands
run = islands(filtered, 6, seed=3)
run.save(f"{sys.argv[1]}/{os.environ['RANK']}.nc")
"""


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="gloo carries what processes exchange")
def test_two_processes_gather_the_run_of_one(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, str(tmp_path / "script.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    alone = islands(filtered, 6, seed=3)
    for rank in range(2):
        assert_same(Trajectories.load(tmp_path / f"{rank}.nc"), alone)
