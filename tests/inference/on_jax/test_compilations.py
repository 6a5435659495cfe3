"""What is compiled once serves other data, other weights, other keys."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

pytest.importorskip("numpyro", reason="needs probgram[jax]")

import jax
import jax.numpy as jnp
import numpy as np

from probgram import tasks
from probgram.inference.on_jax import smc
from probgram.inference.on_jax.conditional import conditional, systematic
from probgram.inference.on_jax.potentials import likelihood, value
from probgram.inference.on_jax.sampling import sample
from probgram.inference.on_jax.svi import fit
from probgram.models.on_jax import GRAM, GRAMGuide, LinearGaussian

pytestmark = pytest.mark.slow  # it is all compiling


@contextmanager
def compilations() -> Iterator[list[str]]:
    """What JAX compiles inside, by its own log."""
    seen: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if (message := record.getMessage()).startswith("Compiling"):
                seen.append(message.split(" with ")[0])

    logger, handler = logging.getLogger("jax"), Keep(logging.DEBUG)
    logger.addHandler(handler)
    try:
        with jax.log_compiles():
            yield seen
    finally:
        logger.removeHandler(handler)


@pytest.fixture(scope="module")
def chain() -> GRAM:
    return GRAM.for_task(tasks.Queens(4), dim=8, heads=2, hidden=16)


def other(model):
    """The same model with other weights."""
    return jax.tree.map(lambda leaf: leaf * 1.01, model)


def boards(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 5, (3, 4))


def gaussian(scale: float) -> LinearGaussian:
    return LinearGaussian(*(scale * np.eye(2, dtype=np.float32) for _ in range(4)))


def series(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((2, 5, 2)).astype(np.float32)


RUNS = {
    "sample": lambda chain, seed: sample(chain, boards(seed), width=4, depth=3, key=seed),
    "filter": lambda chain, seed: smc.run(
        chain, boards(seed), width=4, depth=3, key=seed, potential=likelihood(boards(seed + 9) % 4) * value
    ),
    "series": lambda chain, seed: smc.run(
        gaussian(0.5 + 0.1 * seed), series(seed), width=8, depth=5, key=seed, keep="summary"
    ),
    "conditional": lambda chain, seed: conditional(
        gaussian(0.5 + 0.1 * seed),
        series(seed),
        reference=({}, {"eps_0": jnp.full((5, 2, 2), 0.1 * seed)}),
        width=4,
        depth=5,
        resample=systematic,
        key=seed,
    ),
}


@pytest.mark.parametrize("name", list(RUNS))
def test_other_data_weights_and_keys_compile_nothing(name, chain):
    with compilations() as first:
        RUNS[name](chain, 1)
    assert first  # it would be seen
    RUNS[name](other(chain), 2)  # conversions of the second call's own
    with compilations() as again:
        RUNS[name](other(other(chain)), 3)
    assert not again


def test_training_compiles_nothing_after_its_first_steps(chain):
    marks: list[int] = []
    with compilations() as seen:
        fit(
            chain,
            GRAMGuide(chain),
            tasks.Queens(4),
            steps=8,
            batch=8,
            log_every=1,
            validate_every=0,
            progress=False,
            callbacks=[lambda view: marks.append(len(seen))],
        )
    # The targets change once, at 0.7 of the run, and that is another program.
    assert 0 < marks[0] and marks[4] == marks[1]


def test_another_width_does_compile(chain):
    """The count can tell."""
    sample(chain, boards(1), width=4, depth=3)
    with compilations() as seen:
        sample(chain, boards(1), width=5, depth=3)
    assert seen
