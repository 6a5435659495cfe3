"""Chains as NumPyro programs: its algorithms run them unmodified, and agree with the handlers and by hand."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numpyro", reason="needs probgram[jax]")

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import optax
from jax import Array
from numpyro import handlers
from numpyro.infer import SVI, Predictive, TraceMeanField_ELBO
from numpyro.infer.util import log_density

from probgram.inference.on_jax.handlers import divergence, guided, seeded, weighted
from probgram.models.on_jax import GRAM, Chain, GRAMConfig, GRAMGuide
from probgram.models.on_jax.chain import named_arrays

B, L, V, D, S = 3, 4, 5, 4, 2
PROBLEMS = np.random.default_rng(0).integers(V, size=(2, B, L))


def random(module: Any, seed: int) -> Any:
    """The module with every array drawn at random, so that none is zero."""
    generator = np.random.default_rng(seed)

    def drawn(leaf: Any) -> Any:
        return jnp.asarray(0.4 * generator.standard_normal(leaf.shape)) if eqx.is_inexact_array(leaf) else leaf

    return jax.tree.map(drawn, module)


@pytest.fixture
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def gram(transitions: int = 1) -> tuple[GRAM, GRAMGuide, Array, Array]:
    """A tiny chain and guide, one of its problems padded."""
    config = GRAMConfig(L, V, V, dim=D, heads=1, blocks=1, hidden=4, refinements=1, transitions=transitions)
    chain = GRAM(config)
    x, y = (jnp.asarray(np.where(np.arange(B * L).reshape(B, L) == 3, -1, tokens)) for tokens in PROBLEMS)
    return random(chain, 0), random(GRAMGuide(chain), 1), x, y


@eqx.filter_jit
def scanned(chain: GRAM, guide: GRAMGuide, x: Array, y: Array, key: Array) -> tuple[Array, Array, dict[str, Array]]:
    """Under the handlers, inside a scan: the bound and the log weight, both `[B]`, and what was drawn."""
    context, evidence = chain.encode(x), guide.encode(y)

    def depth_step(state: Any, t: Array) -> Any:
        with seeded(jax.random.fold_in(key, t)), weighted() as w, guided(guide, evidence) as q:
            with numpyro.plate("problems", B, dim=-1):
                state = chain.step(state, t, context)
                law = chain.readout(state)
                numpyro.sample("y", law, obs=y)
        drawn = {f"eps_{k}": site.value for k, site in enumerate(q.sites)}
        return state, (law.log_prob(y) - q.kl, w.log_weight, drawn)

    _, (bound, log_weight, drawn) = jax.lax.scan(depth_step, chain.initial(context), jnp.arange(S))
    return bound.sum(0), log_weight.sum(0), drawn


def by_hand(
    chain: GRAM, guide: GRAMGuide, x: Array, y: Array, drawn: dict[str, Array]
) -> tuple[Array, Array, Array]:
    """The bound, the log density of the model and that of the guide, `[B]`: from the chain's methods alone."""
    context, evidence = chain.encode(x), guide.encode(y)
    state, bound, density, proposed = chain.initial(context), jnp.zeros(B), jnp.zeros(B), jnp.zeros(B)
    for s in range(S):
        for k in range(chain.transitions):
            t = s * chain.transitions + k
            proposal = chain.propose(state, context, t)
            prior, posterior = chain.prior(proposal, t), guide.posterior(proposal, evidence, t)
            eps = drawn[f"eps_{k}"][s]
            bound, density = bound - divergence(posterior, prior), density + prior.log_prob(eps)
            proposed = proposed + posterior.log_prob(eps)
            state = chain.move(proposal, eps)
        log_p_y = chain.readout(state).log_prob(y)
        bound, density = bound + log_p_y, density + log_p_y
    return bound, density, proposed


def test_handlers_in_a_scan_and_numpyros_bounds_and_the_loop_by_hand_are_one_number(float64: None) -> None:
    chain, guide, x, y = gram(transitions=2)
    bound, log_weight, drawn = scanned(chain, guide, x, y, jax.random.key(0))
    expected, density, proposed = eqx.filter_jit(by_hand)(chain, guide, x, y, drawn)
    np.testing.assert_allclose(bound, expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(log_weight, density - proposed, rtol=0, atol=1e-10)

    program = handlers.substitute(chain.guide(guide), data=drawn)
    elbo = TraceMeanField_ELBO()
    loss = jax.jit(lambda: elbo.loss(jax.random.key(1), {}, chain.model, program, x, y, depth=S))()
    assert float(loss) == pytest.approx(-float(bound.sum()), abs=1e-10)
    model = handlers.seed(chain.model, jax.random.key(2))
    found = jax.jit(lambda: log_density(model, (x, y), {"depth": S}, drawn)[0])()
    assert float(found) == pytest.approx(float(density.sum()), abs=1e-10)


def test_one_step_of_svi_moves_every_trainable_array_and_no_buffer() -> None:
    chain, guide, x, y = gram()
    svi = SVI(chain.model, chain.guide(guide), optax.adam(1e-2), TraceMeanField_ELBO())
    state, loss = jax.jit(lambda: svi.update(svi.init(jax.random.key(0), x, y, depth=1), x, y, depth=1))()
    assert np.isfinite(loss)
    found = svi.get_params(state)
    after = {
        f"{kind}.{k}": v for kind in ("chain", "guide") for k, v in named_arrays(found[f"{kind}$params"]).items()
    }
    before = {f"chain.{k}": v for k, v in chain.state_dict().items()}
    before |= {f"guide.{k}": v for k, v in guide.state_dict().items()}
    # A buffer is no parameter, so that weight decay cannot reach it either.
    assert before.keys() - after.keys() == {"chain.z0"}
    still = {name for name, value in after.items() if (value == before[name]).all()}
    assert still == {name for name in before if name.startswith("chain.judge.")}  # heads are no part of the bound


@pytest.mark.parametrize("observe", [pytest.param("every", marks=pytest.mark.slow), "last"])
def test_predictive_draws_answers_and_noise_for_each_particle(observe: str) -> None:
    chain, _, x, _ = gram()
    drawn = Predictive(chain.model, num_samples=5)(jax.random.key(0), x, depth=S, observe=observe)
    assert drawn["eps_0"].shape == (5, S, B, L, D)
    assert drawn["y"].shape == ((5, S, B, L) if observe == "every" else (5, B, L))
    assert len(np.unique(drawn["eps_0"][:, 0, 0], axis=0)) == 5


def test_an_existing_recursion_becomes_a_chain() -> None:
    weight = 0.5 * jax.random.normal(jax.random.key(3), (D, D))
    f = jax.tree_util.Partial(lambda weight, h, context: jnp.tanh(h @ weight + context), weight)
    chain = Chain.from_module(f, lambda h: h[..., None, :], (D,), encode=lambda x: 2 * x, sigma=0.3, transitions=2)
    x = jax.random.normal(jax.random.key(4), (B, D))
    eps = {f"eps_{k}": jax.random.normal(jax.random.key(k), (S, B, D)) for k in range(2)}
    model = handlers.condition(handlers.seed(chain.model, jax.random.key(0)), data=eps)
    y = jnp.zeros((B, 1), int)
    state = model(x, y, depth=S)
    expected = jnp.broadcast_to(chain.z0, (B, D))
    for s in range(S):
        for k in range(2):
            expected = jnp.tanh(expected @ weight + 2 * x) + eps[f"eps_{k}"][s]
    np.testing.assert_allclose(state, expected, rtol=1e-5, atol=1e-6)
    assert chain.readout(state).log_prob(y).shape == (B,)
    svi = SVI(chain.model, lambda x, y, depth: None, optax.sgd(0.1), TraceMeanField_ELBO())
    parameters = named_arrays(svi.get_params(svi.init(jax.random.key(0), x, y, depth=1))["chain$params"])
    assert [leaf.shape for leaf in parameters.values()] == [(D, D)]  # f's weight, and not the fixed first state


def test_what_does_not_fit_is_refused_in_one_sentence() -> None:
    chain, guide, x, y = gram()
    model = handlers.seed(chain.model, jax.random.key(0))
    program = handlers.seed(chain.guide(guide), jax.random.key(0))
    for run in (model, program):
        with pytest.raises(ValueError, match="^depth must be at least 1, got 0$"):
            run(x, y, depth=0)
        with pytest.raises(ValueError, match='^observe must be "every" or "last", got \'never\'$'):
            run(x, y, observe="never")
    with pytest.raises(ValueError, match=r"^x must be \[B, L\] tokens, L = 4 or fewer, got shape \[3, 5\]$"):
        model(np.zeros((B, L + 1), int), y)
    with pytest.raises(ValueError, match=r"^x must hold integers \(tokens\), got float32$"):
        model(np.zeros((B, L), np.float32), y)
    with pytest.raises(ValueError, match="^x must hold tokens below 5, got 5$"):
        chain.check(np.full((B, L), V))
    with pytest.raises(ValueError, match="^x must have a token that is not padding in every row$"):
        chain.check(np.full((B, L), -1))
    with pytest.raises(ValueError, match=r"^y must be \[..., L\] tokens below 5"):
        chain.check_answers(np.full((B, L), V))
    with pytest.raises(ValueError, match="^sigma must be at least 0, got -1$"):
        Chain.from_module(lambda h, c: h, lambda h: h, (D,), sigma=-1)
    with pytest.raises(ValueError, match="^transitions must be at least 1, got 0$"):
        Chain.from_module(lambda h, c: h, lambda h: h, (D,), transitions=0)
    with pytest.raises(ValueError, match=r"\(noise=False\) has no posterior to learn"):
        GRAMGuide(GRAM(GRAMConfig(L, V, V, dim=D, heads=1, noise=False)))


@pytest.mark.parametrize(
    "package, modules, others",
    [
        (
            "probgram.models.on_jax",
            "chain, gram, looped, state_space, trm, weights",
            ("torch", "pyro", "lightning"),
        ),
        ("probgram.models", "gram, looped, state_space, trm", ("jax", "numpyro", "equinox")),
    ],
)
def test_neither_backend_imports_the_other(package: str, modules: str, others: tuple[str, ...]) -> None:
    code = (
        f"import sys; from {package} import {modules}, GRAM; GRAM.from_pretrained('queens8')\n"
        f"print([name for name in {others} if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
