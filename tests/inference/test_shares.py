"""Ranks that share a batch: together they draw what one process draws, and train as it does."""

import json
import os
import subprocess
import sys

import pytest
import torch
from pyro import distributions as dist
from torch.distributions import AffineTransform, ExpTransform

from probgram import fit, tasks
from probgram.inference.handlers import draw
from probgram.inference.objective import ObjectiveConfig
from probgram.inference.shares import Share
from probgram.models import GRAM, GRAMGuide

# -- noise ----------------------------------------------------------------------------------------------------


def joined(parts):
    """Rows of the ranks `[N, b, ...]` as the whole batch `[N, B, ...]`."""
    return torch.stack(parts, 2).flatten(1, 2)


def each_rank(function, world=3):
    """What every rank computes from generators that are seeded alike."""
    parts = []
    for rank in range(world):
        torch.manual_seed(7)
        parts.append(function(Share(rank, world)))
    return joined(parts)


LOC = torch.linspace(-1, 1, 2 * 6 * 4).view(2, 6, 4)
MADE = {
    "normal": lambda loc: dist.Normal(loc, loc.exp()).to_event(1),
    "uniform": lambda loc: dist.Uniform(loc, loc + 2).to_event(1),
    "masked": lambda loc: dist.Normal(loc, 0.5).mask(loc > 0).to_event(1),
    "lognormal": lambda loc: dist.LogNormal(loc, 0.3).to_event(1),
    "transformed": lambda loc: dist.TransformedDistribution(
        dist.Normal(loc, 1.0), [ExpTransform(), AffineTransform(1.0, 2.0)]
    ).to_event(1),
    "certain": lambda loc: dist.Delta(loc).to_event(1),
}


@pytest.mark.parametrize("name", MADE)
def test_the_draws_of_the_ranks_are_together_the_draw_of_one_process(name):
    torch.manual_seed(7)
    whole = draw(MADE[name](LOC))
    assert torch.equal(each_rank(lambda share: share.draw(MADE[name](share.own(LOC, 1)))), whole)


def test_uniforms_of_the_ranks_are_together_those_of_one_process():
    torch.manual_seed(7)
    whole = torch.rand(2, 6)
    assert torch.equal(each_rank(lambda share: share.uniform(2, 2, device=LOC.device)), whole)
    torch.manual_seed(7)
    like = torch.rand_like(LOC)
    assert torch.equal(each_rank(lambda share: share.uniform_like(share.own(LOC, 1))), like)


def test_other_draws_differ_between_ranks_and_leave_their_generators_in_step():
    """A gamma takes as many random numbers as it happens to need: the ranks would part."""
    parts, after = [], []
    for rank in range(2):
        torch.manual_seed(7)
        share = Share(rank, 2)
        parts.append(share.draw(dist.Gamma(share.own(LOC, 1).exp(), 1.0)))
        after.append(torch.rand(()))
    assert after[0] == after[1] and not torch.isclose(parts[0], parts[1]).any()


# -- training -------------------------------------------------------------------------------------------------

RECIPES = {
    "default": {},
    "several": {"particles": 3, "target": "dealt", "carry": 0.4, "swap_halted": True, "accumulate": 2},
    "fivo": {"bound": "fivo", "particles": 4, "target": "fixed", "beta": 1.0, "carry": 0.0, "gradient": "full"},
}


def trained(recipe: str, steps: int, **settings):
    """Lines of metrics of a small training, one an optimiser step."""
    options = dict(RECIPES[recipe])
    objective = {k: options.pop(k) for k in list(options) if k in ObjectiveConfig.__dataclass_fields__}
    torch.manual_seed(0)
    chain = GRAM.for_task(tasks.Queens(5), dim=16, heads=2, blocks=1, hidden=24)
    objective = ObjectiveConfig(depth=4, **objective)
    settings = {"batch": 8, "progress": False, "validate_every": 0, "accelerator": "cpu", "log_every": 1} | settings
    return fit(chain, GRAMGuide(chain), tasks.Queens(5), steps, objective=objective, **options, **settings).history


def over_ranks(world: int, recipe: str, steps: int, folder):
    """The same training by `torchrun --nproc-per-node world`: what its first process writes."""
    script = folder / "ranks.py"
    script.write_text(
        "import json, os, torch\n"
        "from tests.inference.test_shares import trained\n"
        "torch.set_num_threads(1)\n"
        f"lines = trained({recipe!r}, {steps}, devices={world})\n"
        f"json.dump(lines, open({str(folder)!r} + f'/{{os.environ[\"RANK\"]}}.json', 'w'))\n"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, str(script)], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world)]


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="gloo carries what processes exchange")
@pytest.mark.parametrize("recipe", [pytest.param(name, marks=pytest.mark.slow) for name in RECIPES])
def test_two_ranks_follow_the_loss_curve_of_one_process(recipe, tmp_path):
    """Every figure that is written, over 20 optimiser steps at the same global batch."""
    alone = trained(recipe, 20)
    for lines in over_ranks(2, recipe, 20, tmp_path):
        assert len(lines) == len(alone) == 20
        for line, expected in zip(lines, alone, strict=True):
            assert line.keys() == expected.keys()
            for name in set(line) - {"seconds", "problems_per_second"}:
                assert line[name] == pytest.approx(expected[name], abs=1e-4), (expected["step"], name)
