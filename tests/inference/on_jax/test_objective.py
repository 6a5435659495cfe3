"""The JAX objective is the torch one: same weights, rollout and noise, same loss, metrics, gradients, next rollout.

And its bounds are what they say: NumPyro's ELBO for the same noise, and sums over all paths of a chain of dice.

Tests of averages allow four standard errors: 3e-5 false alarms for a one-sided comparison, 6e-5 for a two-sided
one.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pytest

pytest.importorskip("numpyro", reason="needs probgram[jax]")

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import torch
from jax import Array

from probgram import models, tasks
from probgram.inference import batches as torch_batches
from probgram.inference import objective as torch_objective
from probgram.inference.drawing import Drawing, Problems
from probgram.inference.objective_config import ObjectiveConfig
from probgram.inference.on_jax.objective import Objective, Rollout
from probgram.models.on_jax import GRAM, Chain, GRAMConfig, GRAMGuide, Guide
from probgram.models.on_jax.blocks import Tokens
from probgram.models.on_jax.chain import named_arrays
from probgram.models.on_jax.weights import replaced_arrays

QUICK = {"xla_backend_optimization_level": 0}  # tests compile more than they compute
TASK = tasks.Queens(5)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return jax.jit(function, compiler_options=QUICK)


# -- the same numbers as the torch side -----------------------------------------------------------------------


class _Noise:
    """The k-th draw of a depth step is the same array on both sides, whatever asks for it."""

    def __init__(self) -> None:
        self.drawn = 0

    def normal(self, shape: Any) -> np.ndarray:
        self.drawn += 1
        return np.random.default_rng(self.drawn).normal(size=tuple(shape))

    def uniform(self, shape: Any) -> np.ndarray:
        self.drawn += 1
        return np.random.default_rng(self.drawn).random(size=tuple(shape))


@contextmanager
def same_noise(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Both backends draw from `_Noise`, which starts anew with every depth step and every resampling."""
    noise = _Noise()

    def anew(method: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*given: Any, **named: Any) -> Any:
            noise.drawn = 0
            return method(*given, **named)

        return wrapper

    def torch_normal(shape: Any, dtype: Any, device: Any) -> torch.Tensor:
        return torch.from_numpy(noise.normal(shape)).to(dtype)

    def torch_uniform(shape: Any, *rest: int, dtype: Any = None, **_: Any) -> torch.Tensor:
        shape = (shape, *rest) if isinstance(shape, int) else shape
        return torch.from_numpy(noise.uniform(shape)).to(dtype or torch.get_default_dtype())

    def normal(key: Any, shape: Any = (), dtype: Any = float) -> Array:
        return jnp.asarray(noise.normal(shape), dtype)

    def uniform(key: Any, shape: Any = (), dtype: Any = float) -> Array:
        return jnp.asarray(noise.uniform(shape), dtype)

    with monkeypatch.context() as patch:
        patch.setattr(torch.distributions.normal, "_standard_normal", torch_normal)
        patch.setattr(torch, "rand", torch_uniform)
        patch.setattr(torch, "rand_like", lambda like: torch_uniform(*like.shape, dtype=like.dtype))
        patch.setattr(jax.random, "normal", normal)
        patch.setattr(jax.random, "uniform", uniform)
        for kind, resample in ((torch_objective.Objective, "_choose"), (Objective, "_resample")):
            for name in ("_depth_step", resample):
                patch.setattr(kind, name, anew(getattr(kind, name)))
        yield


class _Pair(NamedTuple):
    """Chain and guide on both sides, with the same weights."""

    torch: Any
    jax: Any


def twins(double: bool) -> tuple[_Pair, _Pair]:
    sizes = {"dim": 8, "heads": 2, "blocks": 1, "hidden": 8, "transitions": 2, "refinements": 1}
    torch.manual_seed(0)
    chain = models.GRAM.for_task(TASK, **sizes)
    guide = models.GRAMGuide(chain)
    with torch.no_grad():  # layers that start at zero would hide what flows through them
        for parameter in (*chain.parameters(), *guide.parameters()):
            parameter.add_(0.3 * torch.randn_like(parameter))
    if double:
        chain, guide = chain.double(), guide.double()
    mine = GRAM.for_task(TASK, **sizes)
    kept = [{k: v.numpy() for k, v in module.state_dict().items()} for module in (chain, guide)]
    return _Pair(chain, replaced_arrays(mine, kept[0])), _Pair(guide, replaced_arrays(GRAMGuide(mine), kept[1]))


def drawn(config: ObjectiveConfig, batch: int = 6) -> Drawing:
    known = torch_batches.as_known_answers(TASK)
    shared = config.bound != "elbo"
    return Drawing(known, batch, config.particles, config.depth, 0, staggered=False, shared=shared, by_pair=True)


def as_torch(rollout: Problems) -> torch_objective.Rollout:
    x, answers, counts, target = (torch.from_numpy(part) for part in rollout)
    return torch_objective.Rollout(x, answers, counts, target, torch.zeros(len(x), dtype=torch.long))


PARITY: dict[str, dict[str, Any]] = {
    "step": {"carry": 0.5, "particles": 2},
    "transition": {"gradient": "transition", "kl": "last", "target": "responsibilities", "beta": 0.7},
    "full": {"gradient": "full", "carry": 0.3, "balance": 0.8, "target": "dealt", "particles": 3},
    "iwae": {"bound": "iwae", "beta": 1.0, "carry": 0.4, "target": "fixed", "particles": 3},
    "fivo": {"bound": "fivo", "gradient": "full", "carry": 0.0, "beta": 1.0, "target": "fixed", "particles": 3}
    | {"ess_threshold": 0.9},
}


def compare(
    config: ObjectiveConfig, double: bool, tolerance: float, monkeypatch: pytest.MonkeyPatch, steps: int = 1
) -> None:
    """Take depth steps on both sides, with a gradient of each; tolerances are relative to an array's largest."""
    chain, guide = twins(double)
    theirs = torch_objective.Objective(chain.torch, guide.torch, config, TASK)
    mine = Objective(chain.jax, guide.jax, config, TASK)
    batches = drawn(config)
    problems = batches.draw(batches.batch)
    there, here = as_torch(problems), mine.begin(problems)

    @compiled
    def step(mine: Objective, rollout: Rollout) -> Any:
        def loss(mine: Objective) -> Any:
            result = mine(rollout, jax.random.key(0))
            return result.loss, result

        return eqx.filter_grad(loss, has_aux=True)(mine)

    def close(a: Any, b: torch.Tensor, what: str, tolerance: float = tolerance) -> None:
        expected = b.detach().numpy()
        largest = max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(np.asarray(a), expected, rtol=0, atol=tolerance * largest, err_msg=what)

    for _ in range(steps):
        with same_noise(monkeypatch):
            expected = theirs(there)
            theirs.zero_grad()
            expected.loss.backward()
            gradients, found = step(mine, here)
        close(found.loss, expected.loss, "loss")
        metrics = dict(found.metrics)
        if not bool((expected.rollout.age >= config.depth).any()):
            metrics.pop("right_at_end")
        assert metrics.keys() == expected.metrics.keys()
        for name, value in expected.metrics.items():
            close(metrics[name], value, name, max(tolerance, 1e-6) if name == "heads" else tolerance)
        flat = named_arrays(gradients)
        for name, parameter in theirs.named_parameters():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            close(flat[name], gradient, name)
        assert not bool(flat["chain.z0"].any())
        there, here = expected.rollout, found.rollout
        close(here.state.h, there.state.h, "h")
        close(here.history.h, there.history.h, "history")
        for name in ("target", "age", "honest"):
            assert np.array_equal(getattr(here, name), getattr(there, name).numpy()), name
        if there.belief is not None:  # both sides keep it in float32
            close(here.belief, there.belief, "belief", 1e-5)
        assert np.array_equal(found.halted, expected.halted.numpy())


@pytest.mark.parametrize(
    "name",
    [pytest.param("transition", marks=pytest.mark.slow), pytest.param("full", marks=pytest.mark.slow), "fivo"],
)
def test_from_the_same_weights_rollout_and_noise_the_numbers_are_torch_s(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with jax.enable_x64(True):  # of the heads, torch makes float32 in any case
        compare(ObjectiveConfig(depth=2, heads=0.0, **PARITY[name]), True, 1e-10, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["step", "iwae"])
def test_two_steps_after_each_other_are_torch_s(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with jax.enable_x64(True):
        compare(ObjectiveConfig(depth=2, heads=0.0, **PARITY[name]), True, 1e-10, monkeypatch, steps=2)


def test_in_float32_they_are_the_same_within_its_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps: the heads learn, and the rows come to their end."""
    compare(ObjectiveConfig(depth=2, **PARITY["step"]), False, 1e-5, monkeypatch, steps=2)


class AskedByAnswer(GRAMGuide):
    """The same densities, of which nobody knows that they have factors."""

    token_values = None  # type: ignore[assignment]


def test_a_guide_asked_by_token_says_what_it_says_answer_by_answer() -> None:
    """Three values of a token, 27, 1 and 20 answers, padding at an end: the table is what is asked."""
    chain = GRAM(GRAMConfig(4, 3, 3, dim=8, heads=2, blocks=1, hidden=8, refinements=1, transitions=2))
    answers = np.zeros((3, 27, 4), int)
    answers[..., :3] = list(itertools.product(range(3), repeat=3))
    x = np.zeros((3, 4), int)
    x[0, -1], answers[0, :, -1] = -1, -1
    problems = Problems(x, answers, np.array([27, 1, 20]), np.zeros((2, 3), int))
    found = []
    for kind in (GRAMGuide, AskedByAnswer):
        guide = kind(chain)
        noise = np.random.default_rng(0)
        arrays = {k: np.asarray(v) + 0.3 * noise.normal(size=v.shape) for k, v in named_arrays(guide).items()}
        guide = replaced_arrays(guide, {k: v.astype(np.float32) for k, v in arrays.items()})
        mine = Objective(chain, guide, ObjectiveConfig(particles=2))
        found.append(compiled(lambda mine, key: mine(mine.begin(problems), key).rollout)(mine, jax.random.key(0)))
    assert np.asarray(found[0].belief[:, 0]).std(-1).all()
    largest = float(np.abs(found[1].belief).max())
    np.testing.assert_allclose(found[0].belief, found[1].belief, rtol=0, atol=1e-5 * largest)
    assert np.array_equal(found[0].target, found[1].target)


# -- the same bound as NumPyro's ------------------------------------------------------------------------------


class Walk(Chain):
    """u = w · h + x, eps ~ N(drift · u, scale²), h = u + eps, which is also the logits of y's one token."""

    homogeneous = True
    w: Array
    drift: Array
    scale: Array

    def __init__(self) -> None:
        self.w, self.drift, self.scale = (jnp.linspace(low, low + 0.5, 3) for low in (0.4, -0.2, 0.6))

    @property
    def transitions(self) -> int:
        return 2

    def initial(self, context: Array) -> Array:
        return jnp.zeros((len(context), 3))

    def propose(self, state: Array, context: Array, t: Any) -> Array:
        return self.w * state + context

    def prior(self, proposal: Array, t: Any) -> dist.Distribution:
        return dist.Normal(self.drift * proposal, self.scale).to_event(1)

    def readout(self, state: Array) -> Tokens:
        return Tokens(state[..., None, :])


class WalkGuide(Guide):
    """q(eps | u, y) = N(shift · u + pull[y], scale²)."""

    shift: Array
    pull: Array
    scale: Array

    def __init__(self) -> None:
        self.shift, self.scale = jnp.linspace(-0.3, 0.1, 3), jnp.linspace(0.3, 0.8, 3)
        self.pull = jnp.eye(3)

    def posterior(self, proposal: Array, evidence: Array, t: Any) -> dist.Distribution:
        mean = self.shift * proposal + self.pull[evidence[..., 0]]
        return dist.Normal(mean, jnp.broadcast_to(self.scale, mean.shape)).to_event(1)


def test_the_training_program_s_elbo_and_its_gradient_are_numpyro_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """carry = 0, all S steps, plain KL: `TraceMeanField_ELBO` on model and guide; all draws the same."""
    from numpyro.infer import TraceMeanField_ELBO

    with jax.enable_x64(True):
        chain, guide = Walk(), WalkGuide()
        config = ObjectiveConfig(depth=3, target="fixed", carry=0.0, beta=1.0, gradient="full")
        x, y = np.linspace(-1, 1, 12).reshape(4, 3), np.array([[0], [1], [2], [1]])
        problems = Problems(x, y[:, None], np.ones(4, int), np.zeros((1, 4), int))
        noise = jax.random.normal(jax.random.key(1), (4, 3))
        programs = chain.model, chain.guide(guide)
        monkeypatch.setattr(jax.random, "normal", lambda key, shape=(), dtype=None: jnp.broadcast_to(noise, shape))

        @compiled
        def theirs(parameters: Any) -> Any:
            def loss(parameters: Any) -> Array:
                return TraceMeanField_ELBO().loss(jax.random.key(0), parameters, *programs, x, y, depth=3) / 4

            return jax.value_and_grad(loss)(parameters)

        @compiled
        def ours(mine: Objective) -> Any:
            return eqx.filter_value_and_grad(lambda m: m(m.begin(problems), jax.random.key(0)).loss)(mine)

        expected, gradients = theirs({"chain$params": chain, "guide$params": guide})
        loss, found = ours(Objective(chain, guide, config))
    assert float(loss) == pytest.approx(float(expected), rel=1e-12)
    for module in ("chain", "guide"):
        wanted = named_arrays(gradients[f"{module}$params"])
        for name, array in named_arrays(getattr(found, module)).items():
            assert np.asarray(array).any()
            np.testing.assert_allclose(np.asarray(array), np.asarray(wanted[name]), rtol=1e-10, err_msg=name)


# -- losses are bounds ----------------------------------------------------------------------------------------


class Dice(Chain):
    """eps is the next of three states: h_1 ~ first, h_t ~ rows[h_{t-1}]; y ~ answer[h], one token of two."""

    first: Array
    rows: Array
    answer: Array

    def __init__(self) -> None:
        self.first = jnp.log(jnp.array([0.5, 0.3, 0.2]))
        self.rows = jnp.log(jnp.array([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.1, 0.8, 0.1]]))
        self.answer = jnp.log(jnp.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]]))

    def initial(self, context: Array) -> Array:
        return jnp.zeros(len(context), jnp.int32)

    def propose(self, state: Array, context: Array, t: Any) -> Array:
        return jnp.where(jnp.asarray(t) == 0, self.first, self.rows[state])

    def prior(self, proposal: Array, t: Any) -> dist.Distribution:
        return dist.Categorical(logits=proposal)

    def move(self, proposal: Array, eps: Array) -> Array:
        return eps.astype(jnp.int32)

    def readout(self, state: Array) -> Tokens:
        return Tokens(self.answer[state][..., None, :])


class DiceGuide(Guide):
    """Log odds for each answer, added to the prior's."""

    odds: Array

    def __init__(self) -> None:
        self.odds = jnp.array([[1.5, -0.4, 0.3], [-1.0, 0.2, 1.3]])

    def posterior(self, proposal: Array, evidence: Array, t: Any) -> dist.Distribution:
        return dist.Categorical(logits=proposal + self.odds[evidence[..., 0]])


Y = 1  # the answer the bounds are about
FIRST, ROWS = np.array([0.5, 0.3, 0.2]), np.array([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.1, 0.8, 0.1]])
SEEN = np.array([0.1, 0.6, 0.8])  # p(y | h)


def log_p_every(depth: int) -> float:
    """log p(y at every depth step | x)."""
    total = 0.0
    for path in itertools.product(range(3), repeat=depth):
        p = FIRST[path[0]] * SEEN[path[0]]
        for before, after in itertools.pairwise(path):
            p = p * ROWS[before, after] * SEEN[after]
        total += p
    return math.log(total)


def step_bound() -> float:
    """The bound of the second depth step: prior states before, the guide in the last transition."""
    q = ROWS * np.exp([-1.0, 0.2, 1.3])
    q = q / q.sum(-1, keepdims=True)
    return float(FIRST @ (q * (np.log(SEEN) - np.log(q / ROWS))).sum(-1))


def losses(depth: int, particles: int, repeats: int, problems: int, **choices: Any) -> np.ndarray:
    """Losses of the last of `depth` steps (with "full", of all together) in independent runs, [repeats]."""
    config = ObjectiveConfig(**({"depth": depth, "particles": particles, "beta": 1.0, "target": "fixed"} | choices))
    objective = Objective(Dice(), DiceGuide(), config)
    zeros = np.zeros((particles, problems), np.int64)
    posed = Problems(zeros[0][:, None], np.full((problems, 1, 1), Y), zeros[0] + 1, zeros)

    @compiled
    @jax.vmap
    def run(key: Array) -> Array:
        rollout = objective.begin(posed)
        for step in range(1 if config.gradient == "full" else depth):
            result = objective(rollout, jax.random.fold_in(key, step))
            rollout = result.rollout
        return result.loss

    return np.asarray(run(jax.random.split(jax.random.key(0), repeats)), np.float64)


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    return values.mean(), values.std() / len(values) ** 0.5


def test_the_step_loss_on_prior_states_is_the_bound_that_one_can_write_down() -> None:
    """One two-sided comparison; the bound is strictly below log p(y | x), this guide being no posterior."""
    mean, error = mean_and_error(-losses(2, 1, 40, 2_000, gradient="step", carry=1.0))
    assert error < 0.005
    assert abs(mean - step_bound()) < 4 * error
    assert mean < math.log(FIRST @ ROWS @ SEEN) - 4 * error


def test_iwae_over_whole_trajectories_comes_close_to_the_likelihood_from_below() -> None:
    """One one-sided comparison: 256 particles are within 0.02 of the program's log p(y at every step)."""
    mean, error = mean_and_error(-losses(2, 256, 40, 50, gradient="full", carry=0.0, bound="iwae"))
    assert log_p_every(2) - 0.02 < mean < log_p_every(2) + 4 * error


FIVO: dict[str, Any] = {"gradient": "full", "carry": 0.0, "bound": "fivo"}


def test_fivo_is_the_log_of_an_unbiased_estimate() -> None:
    """One problem a run, so that a loss is one -log Z: E[Z] = p(y at every step); one two-sided comparison."""
    values = losses(3, 4, 2_000, 1, **FIVO, ess_threshold=1.0)
    assert values.std() <= 0.5  # else a mean of Z says little
    mean, error = mean_and_error(np.exp(-values))
    assert abs(mean - math.exp(log_p_every(3))) < 4 * error


def test_fivo_that_never_resamples_is_iwae() -> None:
    """Same keys, same draws; float32 sums in another order."""
    iwae = losses(3, 8, 5, 20, **FIVO | {"bound": "iwae"})
    np.testing.assert_allclose(losses(3, 8, 5, 20, **FIVO, ess_threshold=0.0), iwae, atol=1e-5)


def test_what_needs_a_guide_says_so() -> None:
    with pytest.raises(ValueError, match="carry below 1 continues from the guide's draws, so it needs a guide"):
        Objective(Dice(), None, ObjectiveConfig(carry=0.5, target="fixed"))
    with pytest.raises(ValueError, match="target=attributed asks the guide .* needs a guide"):
        Objective(Dice(), None, ObjectiveConfig(carry=1.0))


# -- labels of the heads --------------------------------------------------------------------------------------


class Task:
    """Right is what ends in a 1; `how` it is found out differs."""

    def __init__(self, how: str) -> None:
        self.how = how

    def verify(self, x: Any, y: Any) -> Any:
        if self.how == "unknown":
            raise tasks.task.UnknownAnswers("nobody knows")
        if self.how == "on the host":  # fails where y is traced
            return np.array([[bool(row[-1] == 1) for row in rows] for rows in np.asarray(y)])
        return y[..., -1] == 1


@pytest.mark.parametrize("how", ["traced", "on the host", "unknown"])
def test_answers_are_verified_by_the_task_wherever_it_can_look_at_them(how: str) -> None:
    objective = Objective(Dice(), DiceGuide(), ObjectiveConfig(depth=1, carry=1.0), Task(how))
    posed = Problems(np.zeros((2, 1), int), np.array([[[0]], [[1]]]), np.ones(2, int), np.zeros((4, 2), int))
    result = compiled(lambda key: objective(objective.begin(posed), key))(jax.random.key(0))
    answer = np.array([0, 1, 1])[np.asarray(result.rollout.history[0])]  # of the three states, the likelier token
    right = answer == (np.array([0, 1]) if how == "unknown" else 1)
    assert float(result.metrics["right"]) == pytest.approx(right.mean())
    assert 0 < right.mean() < 1
