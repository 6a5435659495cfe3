"""Width over devices: eight forced ones compute what one does, and islands that exchange stay unbiased.

Whatever needs devices runs in a process of its own, where the host pretends to have eight. Replicates run side by
side as problems; their mean Z is compared with Kalman's within four standard errors: a correct filter with another
seed fails one comparison with probability 6e-5.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numpyro", reason="needs probgram[jax]")

import jax
import jax.numpy as jnp

from probgram.inference.on_jax import smc
from probgram.inference.on_jax.devices import check_mesh, device_mesh, replicated, spread, spread_problems
from probgram.inference.on_jax.genealogy import mean
from probgram.inference.on_jax.islands import joint_slots, ring
from probgram.models.on_jax import LinearGaussian

ROOT = Path(__file__).resolve().parents[3]
SERIES = np.random.default_rng(0).normal(size=(4, 6, 1)).astype(np.float32)


def line() -> LinearGaussian:
    def one(value: float) -> jax.Array:
        return jnp.full((1, 1), value)

    return LinearGaussian(one(0.9), one(0.6), one(1.0), one(0.8), one(0.5)[0], one(1.5))


def log_evidence(series: np.ndarray) -> float:
    """Kalman's, of one series of `line`."""
    mean, variance, total = 0.5, 1.5, 0.0
    for t, y in enumerate(series):
        if t:
            mean, variance = 0.9 * mean, 0.81 * variance + 0.6
        spread_ = variance + 0.8
        total -= 0.5 * (np.log(2 * np.pi * spread_) + (y - mean) ** 2 / spread_)
        gain = variance / spread_
        mean, variance = mean + gain * (y - mean), variance * (1 - gain)
    return float(total)


# -- what runs under eight devices ----------------------------------------------------------------------------

RUNS = """
import sys
import jax
jax.config.update("jax_enable_x64", True)
import numpy as np
from probgram.inference.on_jax import smc
from probgram.inference.on_jax.devices import device_mesh
from probgram.inference.on_jax.genealogy import mean
from probgram.inference.on_jax.islands import ring
from probgram.inference.on_jax.resampling import SCHEMES
from probgram.inference.on_jax.sampling import sample
from probgram.models.on_jax import GRAM
from probgram.models.config import GRAMConfig
from tests.inference.on_jax.test_devices import SERIES, line

assert len(jax.devices()) == 8
kind, *meshes = sys.argv[2:]
found = {}
for name in meshes:
    shape = tuple(map(int, name.split("x")))
    mesh = None if shape == (0, 0) else device_mesh(*shape)
    if kind == "sample":
        chain = GRAM(GRAMConfig(4, 5, 5, dim=16, heads=2, blocks=1, hidden=24), key=jax.random.key(1))
        x = np.random.default_rng(0).integers(0, 5, (2, 4))
        run = sample(chain, x, width=128, depth=4, key=3, mesh=mesh)
        found |= {f"{name} answers": run.answers}
    else:
        scheme, *exchange = kind.split("+")
        islands = {"islands": 8, "exchange": ring(every=2) if exchange[0] == "ring" else None} if exchange else {}
        run = smc.run(line(), SERIES, width=64, depth=6, key=0, keep="latents", resample=SCHEMES[scheme],
                      ess_threshold=0.9, mesh=mesh, **islands)
        found |= {f"{name} ancestors": run.ancestors, f"{name} log_normalizer": run.log_normalizer}
        found |= {f"{name} states": np.asarray(run.states), f"{name} log_weights": run.log_weights}
np.savez(sys.argv[1], **found)
"""


def over(kind: str, meshes: tuple[str, ...], folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """What each mesh computes, "0x0" without one."""
    flags = "--xla_force_host_platform_device_count=8 --xla_cpu_multi_thread_eigen=false"
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", RUNS, str(folder / "found.npz"), kind, *meshes],
        capture_output=True,
        text=True,
        timeout=600,
        env=environment | {"JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    with np.load(folder / "found.npz") as found:
        return {mesh: {k.split()[1]: found[k] for k in found if k.split()[0] == mesh} for mesh in meshes}


def assert_as_one_device(found: dict[str, dict[str, np.ndarray]]) -> None:
    """Ancestors, states and answers exactly; weights and log Z up to the order of sums in float64."""
    alone, *others = found.values()
    for other in others:
        for name, values in alone.items():
            if values.dtype == np.float64 and name != "states":
                np.testing.assert_allclose(other[name], values, rtol=1e-12, atol=1e-12)
            else:
                np.testing.assert_array_equal(other[name], values, err_msg=name)


def test_ancestors_states_and_evidence_of_one_filter_over_eight_devices(tmp_path):
    """All states differ, so one that came from a wrong slot would show."""
    found = over("systematic", ("0x0", "4x2"), tmp_path)
    assert_as_one_device(found)
    alone = found["0x0"]
    assert (alone["ancestors"] != np.arange(64)[:, None]).any() and len(np.unique(alone["states"][-1])) == 256


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["systematic", "killing"])
def test_ancestors_do_not_depend_on_the_number_of_devices(scheme, tmp_path):
    """`killing` copies from anywhere: blocks go all the way round."""
    assert_as_one_device(over(scheme, ("0x0", "1x1", "2x1", "4x1", "8x1", "1x4"), tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["systematic+apart", "systematic+ring"])
def test_islands_over_devices_are_those_of_one_device(kind, tmp_path):
    found = over(kind, ("0x0", "1x2", "1x8"), tmp_path)
    assert_as_one_device(found)
    crossed = (found["0x0"]["ancestors"] // 64 != np.arange(512)[:, None] // 64).any()
    assert crossed == kind.endswith("ring")


@pytest.mark.slow
def test_answers_of_sampling_do_not_depend_on_the_number_of_devices(tmp_path):
    assert_as_one_device(over("sample", ("0x0", "2x1", "4x1", "8x1", "4x2"), tmp_path))


# -- islands that exchange ------------------------------------------------------------------------------------


def test_an_exchange_moves_particles_with_their_weights_and_changes_no_sum():
    slots = joint_slots(6, 8, 4)  # two problems of four islands
    moved = ring(every=1, share=0.5).swap(slots, 4)
    assert (slots[:, 1] == np.arange(6) + 6).all() and (slots[:, 4] == np.arange(6)).all()
    assert (moved[::2, 1] == slots[::2, 0]).all() and (moved[::2, 0] == slots[::2, 3]).all()
    assert (moved[1::2] == slots[1::2]).all()
    for problem in (slice(0, 4), slice(4, 8)):
        assert sorted(np.ravel(moved[:, problem])) == list(range(24))


@pytest.fixture(scope="module")
def replicates() -> dict[str, np.ndarray]:
    """log Z less Kalman's, of 1,000 replicates of four islands of 16 particles, apart and with an exchange."""
    series = np.repeat(SERIES[:1], 1000, 0)
    return {
        name: smc.run(line(), series, width=16, depth=6, key=5, islands=4, exchange=exchange).log_normalizer[-1]
        - log_evidence(SERIES[0, :, 0])
        for name, exchange in {"apart": None, "ring": ring(every=2, share=0.5)}.items()
    }


def test_the_evidence_of_islands_that_exchange_is_unbiased(replicates):
    for log_ratio in replicates.values():
        ratio = np.exp(log_ratio.astype(np.float64))
        assert abs(ratio.mean() - 1) < 4 * ratio.std() / np.sqrt(len(ratio))
        assert 0.05 < ratio.std() < 0.5  # or the bound would be too wide to see a bias


def test_an_exchange_has_somewhat_less_variance_than_islands_apart(replicates):
    """One-sided F test of 999 and 999 degrees of freedom at 1e-3: at most 1.22 times as much."""
    assert replicates["ring"].var() < 1.22 * replicates["apart"].var()


def test_lines_of_islands_that_exchange_follow_particles_through_them():
    """Along its line a state moves as the chain does: h_t - 0.9 h_{t-1} has standard deviation 0.6^(1/2)."""
    run = smc.run(line(), SERIES[:1], width=64, depth=6, key=0, keep="latents", islands=4, exchange=ring(1, 0.5))
    slots = np.arange(256)
    own, joint = np.asarray(run.states)[..., 0, 0], []
    for s in range(5, 0, -1):
        before = run.ancestors[s][:, 0]
        joint.append(own[s] - 0.9 * own[s - 1][before])
        assert (before // 64 != slots // 64).mean() > 0.3
    apart = np.concatenate([own[s] - 0.9 * own[s - 1] for s in range(1, 6)])
    assert np.std(np.concatenate(joint)) < 0.85 < np.std(apart)


def test_an_exchange_leaves_a_problem_that_has_ended_as_it_is():
    """States, weights and ancestors, exactly, while the other problem's particles go on crossing."""
    choices = {"width": 64, "key": 0, "keep": "latents", "islands": 4, "exchange": ring(every=1, share=0.5)}
    run = smc.run(line(), SERIES[:2], depth=[2, 5], collect={"mean": mean()}, **choices)
    own, states = np.arange(256), np.asarray(run.states)
    for t in range(2, 5):
        np.testing.assert_array_equal(states[t][:, 0], states[1][:, 0])
        np.testing.assert_array_equal(run.log_weights[t][:, 0], run.log_weights[1][:, 0])
        np.testing.assert_array_equal(run.ancestors[t][:, 0], own)
        assert (run.ancestors[t][:, 1] // 64 != own // 64).mean() > 0.3
    assert (run.ancestors[1][:, 0] // 64 != own // 64).mean() > 0.3  # before its last step it took part
    np.testing.assert_array_equal(run.collected["mean"][2:, 0], run.collected["mean"][[1] * 3, 0])


# -- the mesh -------------------------------------------------------------------------------------------------


def test_a_mesh_takes_all_devices_for_the_particles_and_nothing_changes_without_one():
    mesh = device_mesh()
    assert dict(mesh.shape) == {"particles": len(jax.devices()), "problems": 1}
    tree = {"h": jnp.ones((2, 1, 3)), "n": 3}
    assert spread(tree, None) is tree and spread_problems(tree, None) is tree and replicated(tree, None) is tree
    assert spread(tree, device_mesh(1))["n"] == 3
    check_mesh(None, 3, 1)


def test_what_does_not_fit_a_mesh_is_one_sentence():
    with pytest.raises(ValueError, match="problems must be at least 1, got 0"):
        device_mesh(problems=0)
    with pytest.raises(ValueError, match="particles must be at least 1, got 0"):
        device_mesh(0)
    many = len(jax.devices()) + 1
    with pytest.raises(ValueError, match=f"needs {many} devices, and there are {many - 1}"):
        device_mesh(many)
    with pytest.raises(ValueError, match='must have the axes "particles" and "problems"'):
        check_mesh(jax.sharding.Mesh(np.array(jax.devices()[:1]), ("x",)), 4, 4)
    with pytest.raises(ValueError, match=r"leaf\['h'\] of shape \[3\] cannot be cut"):
        spread({"h": jnp.ones(3)}, device_mesh(1))
    for wrong in ({"exchange": ring()}, {"islands": 2, "exchange": ring(), "halt_probability": 0.9}):
        with pytest.raises(ValueError, match="exchange needs several islands that end together"):
            smc.run(line(), SERIES, width=4, depth=2, **wrong)
    with pytest.raises(ValueError, match="share must be above 0 and at most 0.5, got 0.7"):
        ring(share=0.7)
    with pytest.raises(ValueError, match="every must be an integer of at least 1, got 0"):
        ring(every=0)
