"""Models that are no chains: Pyro objects of any state, guides, plates of their own, plain functions of tensors.

2,000 problems are replicates of one filter; the mean of the unlogged Z is compared with the exact evidence within
four standard errors, estimated from the replicates: false alarm 6e-5 a comparison, 15 comparisons 1e-3. With the
fixed seeds there is none. All other tests are exact.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import pyro
import pytest
import torch
from pyro import distributions as dist
from torch import Tensor, nn

from probgram import Chain
from probgram.inference import forecast, potentials, resampling, smc
from probgram.inference.resampling import adaptive, systematic
from probgram.models import HiddenMarkov, LinearGaussian
from probgram.trajectories import Trajectories

SCHEMES = list(resampling.SCHEMES.values())
REPLICATES, TIME = 2000, 6
DECAY, STEP, NOISE = 0.9, 0.7, 0.9  # h' = 0.9 h + 0.7 e, x = h + 0.9 e
SERIES = torch.tensor([[0.4, -1.0, -0.3, 1.9, 1.2, 0.1]])


def line(first: float = 0.0, spread: float = STEP) -> LinearGaussian:
    def one(value: float) -> Tensor:
        return torch.full((1, 1), value, dtype=torch.float64)

    return LinearGaussian(one(DECAY), one(STEP**2), one(1.0), one(NOISE**2), one(first)[0], one(spread**2))


EVIDENCE = line().log_evidence(SERIES[..., None])  # of h_1 ~ N(0, 0.7²)


class Pair(NamedTuple):
    h: Tensor
    count: Tensor


class Walk:
    """A foreign model: the state is what `pack` makes of h."""

    def __init__(self, kind: str = "tensor") -> None:
        self.kind = kind

    def pack(self, h: Tensor, count: Any) -> Any:
        return {"tensor": lambda: h, "dict": lambda: {"h": h, "count": count}, "tuple": lambda: Pair(h, count)}[
            self.kind
        ]()

    def unpack(self, state: Any) -> tuple[Tensor, Any]:
        if self.kind == "dict":
            return state["h"], state["count"]
        return (state.h, state.count) if self.kind == "tuple" else (state, 0)

    def init(self, series: Tensor) -> Any:
        return self.pack(torch.zeros(len(series)), torch.zeros(len(series), 2, dtype=torch.long))

    def step(self, state: Any, t: int, series: Tensor) -> Any:
        h, count = self.unpack(state)
        h = pyro.sample(f"h_{t}", dist.Normal(DECAY * h, STEP))
        pyro.sample(f"x_{t}", dist.Normal(h, NOISE), obs=series[:, t])
        return self.pack(h, count + 1)


def score(run: Trajectories, exact: Tensor | float) -> float:
    """Standard errors between the mean of Z over its exact value, and 1."""
    ratio = (run.log_evidence[-1] - exact).exp()
    assert 0.01 < float(run.log_evidence[-1].std()) <= 0.5
    z = float((ratio.mean() - 1) / (ratio.std() / len(ratio) ** 0.5))
    print(f"{z:+.2f} standard errors, sd(log Z) {float(run.log_evidence[-1].std()):.3f}")
    return z


MANY: dict[str, Any] = {"width": 40, "depth": TIME, "problems": REPLICATES}


@pytest.mark.parametrize("kind", ["tensor", "dict", "tuple"])
def test_z_of_a_pyro_model_is_unbiased_whatever_its_state(kind):
    run = smc.run(Walk(kind), SERIES.expand(REPLICATES, -1), **MANY)
    assert abs(score(run, EVIDENCE)) < 4
    if kind != "tensor":
        count = run.state["count"] if kind == "dict" else run.state.count
        assert type(run.state) is (dict if kind == "dict" else Pair)
        assert torch.equal(count, torch.full((40, REPLICATES, 2), TIME))
    same = smc.run(Walk(), SERIES.expand(REPLICATES, -1), **MANY)
    assert torch.equal(run.log_normalizer, same.log_normalizer)  # and the state's shape changes nothing


def test_z_of_a_plain_model_is_unbiased():
    def step(h, t, noise, series):
        h = DECAY * h + STEP * noise
        return h, dist.Normal(h, NOISE).log_prob(series[:, t])

    run = smc.run(smc.PlainModel(lambda noise, series: 0 * noise, step), SERIES.expand(REPLICATES, -1), **MANY)
    assert abs(score(run, EVIDENCE)) < 4


def test_a_first_state_that_init_draws_is_drawn_for_every_particle():
    class Start(Walk):
        def init(self, series):
            return pyro.sample("h_0", dist.Normal(torch.full((len(series),), 1.0), 0.5))

    run = smc.run(Start(), SERIES.expand(REPLICATES, -1), **MANY)
    exact = line(DECAY, math.hypot(DECAY * 0.5, STEP)).log_evidence(SERIES[..., None])
    assert abs(score(run, exact)) < 4
    algorithm = smc.build(Start(), SERIES.expand(3, -1), width=5, depth=1, problems=3)
    assert len(smc.init(algorithm).latent.unique()) == 15


class Seen(Walk):
    """Sees the first state too."""

    def init(self, series):
        h = pyro.sample("h_0", dist.Normal(torch.zeros(len(series)), STEP))
        pyro.sample("x_0", dist.Normal(h, NOISE), obs=series[:, 0])
        return h

    def step(self, state, t, series):
        return super().step(state, t + 1, series)


def test_what_init_observes_is_weighed_and_may_be_resampled_at_depth_zero():
    x = SERIES.expand(REPLICATES, -1)
    choices = MANY | {"depth": TIME - 1}
    run = smc.run(Seen(), x, **choices)
    assert abs(score(run, EVIDENCE)) < 4
    early = smc.run(Seen(), x, **choices, resample=adaptive(systematic, 1.0, first=0), keep="paths")
    assert abs(score(early, EVIDENCE)) < 4
    assert (early.ancestors[0] != torch.arange(40)[:, None]).any()
    first = smc.init(smc.build(Seen(), x, **choices))
    exact = line().log_evidence(SERIES[:, :1, None])
    ratio = (first.log_normalizer - exact).exp()
    assert abs(float((ratio.mean() - 1) / (ratio.std() / REPLICATES**0.5))) < 4


def test_discrete_latent_states_are_drawn_and_weighed():
    first = torch.tensor([0.6, 0.4])
    rows = torch.tensor([[0.8, 0.2], [0.3, 0.7]])
    emission = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])
    series = torch.tensor([[0, 2, 2, 1, 0, 2]])

    class Discrete:
        def init(self, series):
            return torch.zeros(len(series), dtype=torch.long)

        def step(self, state, t, series):
            state = pyro.sample(f"h_{t}", dist.Categorical(first if t == 0 else rows[state]))
            pyro.sample(f"x_{t}", dist.Categorical(emission[state]), obs=series[:, t])
            return state

    run = smc.run(Discrete(), series.expand(REPLICATES, -1), **MANY)
    assert run.state.dtype == torch.long
    assert abs(score(run, HiddenMarkov(first, rows, emission).log_evidence(series))) < 4


# -- plates of its own ----------------------------------------------------------------------------------------


class Plated:
    """Three series a problem, `[B, T, 3]`, in a plate of the model's own, and one site outside it."""

    max_plate_nesting = 1

    def __init__(self, size: int = 3) -> None:
        self.size = size

    def init(self, series):
        return torch.zeros(len(series), self.size)

    def step(self, state, t, series):
        with pyro.plate("sensors", self.size, dim=-1):
            h = pyro.sample(f"h_{t}", dist.Normal(DECAY * state, STEP))
            pyro.sample(f"x_{t}", dist.Normal(h, NOISE), obs=series[:, t])
        return h


WIDE = torch.stack([SERIES[0], SERIES[0].flip(0), -SERIES[0]], -1)[None, :4]  # [1, 4, 3]


def test_weights_are_summed_over_the_models_own_plates():
    x = WIDE.expand(5, -1, -1)
    run = smc.run(Plated(), x, width=7, depth=1, problems=5, resample=None, keep="latents")
    assert run.state.shape == (7, 5, 3) and run.log_weights.shape == (1, 7, 5)
    density = dist.Normal(run.state, NOISE).log_prob(WIDE[0, 0]).sum(-1)
    torch.testing.assert_close(run.log_weights[0].softmax(0), density.softmax(0))
    many = MANY | {"depth": 4, "width": 100}
    run = smc.run(Plated(), WIDE.expand(REPLICATES, -1, -1), **many)
    exact = sum(line().log_evidence(WIDE[..., i : i + 1]) for i in range(3))
    assert abs(score(run, exact)) < 4


def test_a_site_outside_the_models_own_plate_is_weighed_once():
    class Outside(Plated):
        def step(self, state, t, series):
            pyro.sample("outside", dist.Normal(torch.zeros(()), 1.0), obs=torch.tensor(2.0))
            shift = pyro.sample("shift", dist.Normal(torch.zeros(()), 1.0))  # [N, B, 1]
            return super().step(state, t, series) + 0 * shift

    x = WIDE.expand(2, -1, -1)
    choices = {"width": 7, "depth": 1, "problems": 2, "keep": "latents", "resample": None}
    run = smc.run(Outside(), x, **choices)
    density = dist.Normal(run.state, NOISE).log_prob(WIDE[0, 0]).sum(-1)
    total = density.logsumexp(0) - math.log(7) + dist.Normal(0.0, 1.0).log_prob(torch.tensor(2.0))
    torch.testing.assert_close(run.log_normalizer[0].float(), total)


# -- guides ---------------------------------------------------------------------------------------------------


class WalkGuide:
    """Looks at the observation, with another spread than the exact one."""

    def __init__(self, spread: float = 0.8) -> None:
        self.spread = spread

    def init(self, series):
        return None

    def step(self, state, t, series):
        pyro.sample(f"h_{t}", dist.Normal(0.5 * DECAY * state + 0.5 * series[:, t], self.spread))


def test_a_guide_proposes_and_its_weights_leave_z_unbiased():
    x = SERIES.expand(REPLICATES, -1)
    guided = smc.run(Walk(), x, **MANY, guide=WalkGuide(), keep="latents")
    assert abs(score(guided, EVIDENCE)) < 4
    assert guided.settings["guided"] is True
    plain = smc.run(Walk(), x, **MANY)
    assert float((guided.log_evidence[-1] - plain.log_evidence[-1]).abs().min()) > 0
    # The first weights by hand: p(h) p(x | h) / q(h).
    h = guided.states[0]
    weight = dist.Normal(0.0, STEP).log_prob(h) + dist.Normal(h, NOISE).log_prob(SERIES[0, 0])
    weight = weight - dist.Normal(0.5 * SERIES[0, 0], 0.8).log_prob(h)
    torch.testing.assert_close(guided.log_weights[0].softmax(0), weight.softmax(0))
    torch.testing.assert_close(guided.log_normalizer[0].float(), weight.logsumexp(0) - math.log(40))


def test_the_exact_guide_of_one_step_weighs_every_particle_the_same():
    gain = STEP**2 / (STEP**2 + NOISE**2)

    class Exact(WalkGuide):
        def step(self, state, t, series):
            spread = math.sqrt((1 - gain) * STEP**2)
            pyro.sample(f"h_{t}", dist.Normal(gain * series[:, t].double().expand(state.shape), spread))

    class Double(Walk):
        def init(self, series):
            return torch.zeros(len(series), dtype=torch.float64)

    x = SERIES.double()
    run = smc.run(Double(), x, width=9, depth=1, guide=Exact())
    torch.testing.assert_close(run.log_evidence[-1], line().log_evidence(x[:, :1, None]), rtol=0, atol=1e-9)


def test_a_guide_may_propose_only_some_sites():
    class Two(Walk):
        def step(self, state, t, series):
            state = super().step(state, t, series)
            pyro.sample(f"more_{t}", dist.Normal(state, 1.0))
            return state

    run = smc.run(Two(), SERIES.expand(REPLICATES, -1), **MANY, guide=WalkGuide())
    assert abs(score(run, EVIDENCE)) < 4


def test_a_site_of_the_guide_that_the_model_lacks_is_named():
    class Extra(WalkGuide):
        def step(self, state, t, series):
            super().step(state, t, series)
            pyro.sample(f"extra_{t}", dist.Normal(state, 1.0))

    with pytest.raises(ValueError, match=r"^the guide samples 'extra_0', which the model's step does not"):
        smc.run(Walk(), SERIES, width=4, depth=2, guide=Extra())


# -- factors, scales, missing values --------------------------------------------------------------------------


def test_a_factor_is_no_likelihood():
    class Factor(Walk):
        def step(self, state, t, series):
            state = super().step(state, t, series)
            pyro.factor(f"bonus_{t}", -0.1 * state.square())
            return state

    run = smc.run(Factor(), SERIES, width=20, depth=3)
    assert run.log_normalizer.all()
    with pytest.raises(ValueError, match="log_evidence exists only where every factor is a likelihood"):
        run.log_evidence  # noqa: B018
    model = smc.PlainModel(lambda noise: noise, lambda h, t, noise: (noise, -noise.square()), likelihood=False)
    with pytest.raises(ValueError, match="log_evidence exists only where every factor is a likelihood"):
        smc.run(model, width=20, depth=3).log_evidence  # noqa: B018


def test_scale_and_mask_of_a_site_are_respected():
    class Scaled(Walk):
        def step(self, state, t, series):
            h = pyro.sample(f"h_{t}", dist.Normal(DECAY * state, STEP))
            with pyro.poutine.scale(scale=0.25), pyro.poutine.mask(mask=series[:, t] > 0):
                pyro.sample(f"x_{t}", dist.Normal(h, NOISE), obs=series[:, t])
            return h

    x = SERIES[:, :1] * torch.tensor([[1.0], [-1.0]])
    run = smc.run(Scaled(), x, width=30, depth=1, problems=2)
    density = 0.25 * dist.Normal(run.state[:, 0], NOISE).log_prob(SERIES[0, 0])
    torch.testing.assert_close(run.log_weights[0, :, 0].softmax(0), density.softmax(0))
    assert not run.log_normalizer[:, 1].any()


def test_missing_observations_of_a_pyro_model_weigh_nothing():
    x = SERIES.repeat(3, 1)
    x[1, 2:4], x[2] = torch.nan, torch.nan
    run = smc.run(Walk(), x, width=50, depth=TIME, problems=3, resample=None)
    increments = run.log_normalizer.diff(dim=0, prepend=torch.zeros(1, 3))
    assert (increments == 0).tolist() == [[False, t in (2, 3), True] for t in range(TIME)]
    whole = smc.run(Walk(), SERIES.repeat(3, 1), width=50, depth=TIME, problems=3, resample=None)
    torch.testing.assert_close(run.log_normalizer[:, 0], whole.log_normalizer[:, 0])
    replicates = torch.cat([x[1:2].expand(REPLICATES, -1)])
    known = smc.run(Walk(), replicates, **MANY)
    # Two steps without an update are one of decay 0.9³ and the noise of three.
    a, q, r = DECAY, STEP**2, NOISE**2
    mean, p, exact = 0.0, q, 0.0
    for value in x[1].tolist():
        if not math.isnan(value):
            exact += float(dist.Normal(mean, math.sqrt(p + r)).log_prob(torch.tensor(value, dtype=torch.float64)))
            mean, p = mean + p / (p + r) * (value - mean), p * r / (p + r)
        mean, p = a * mean, a * a * p + q
    assert abs(score(known, exact)) < 4


# -- arguments, problems, what is kept ------------------------------------------------------------------------


def test_a_foreign_model_keeps_a_summary_unless_asked_for_more():
    collect = {"mean": lambda h, weights: (weights * h).sum(0)}
    run = smc.run(Walk(), SERIES.expand(3, -1), width=8, depth=TIME, problems=3, collect=collect)
    assert run.log_weights.shape == (1, 8, 3) and run.depths == (TIME,) and run.depth == TIME
    assert run.log_normalizer.shape == run.ess.shape == run.collected["mean"].shape == (TIME, 3)
    assert run.states is run.ancestors is None and run.answers.shape == (1, 8, 3, 0) and run.x.shape == (3, 0)
    paths = smc.run(Walk(), SERIES.expand(3, -1), width=8, depth=TIME, problems=3, keep="paths")
    assert paths.states.shape == (TIME, 8, 3)  # of a model without answers the states are the paths
    weighted = (paths.weights.float() * paths.states).sum(1)
    torch.testing.assert_close(run.collected["mean"], weighted, rtol=0, atol=1e-5)
    torch.testing.assert_close(run.log_normalizer, paths.log_normalizer)


def test_the_record_of_a_summary_does_not_grow_with_depth(tmp_path):
    class Forever(Walk):
        def step(self, state, t, series):
            return super().step(state, 0, series)

    sizes = []
    for depth in (10, 40):
        run = smc.run(Forever(), SERIES, width=1000, depth=depth, collect={"mean": lambda h, w: (w * h).sum(0)})
        sizes.append(run.save(tmp_path / f"{depth}.safetensors").stat().st_size)
    assert sizes[1] - sizes[0] < 30 * 100  # three numbers a step, and a header; a row of weights has 4,000 bytes


def test_one_problem_needs_no_batch_dimension_and_islands_share_it():
    class Alone:
        def init(self, series):
            return torch.zeros(())

        def step(self, state, t, series):
            h = pyro.sample(f"h_{t}", dist.Normal(DECAY * state, STEP))
            pyro.sample(f"x_{t}", dist.Normal(h, NOISE), obs=series[..., t])
            return h

    one = smc.run(Alone(), SERIES[0], width=30, depth=TIME)
    rows = smc.run(Alone(), SERIES, width=30, depth=TIME)
    assert torch.equal(one.log_normalizer, rows.log_normalizer) and one.problems == 1
    islands = smc.run(Alone(), SERIES[0], width=30, depth=TIME, islands=3)
    three = smc.run(Alone(), SERIES.expand(3, -1), width=30, depth=TIME, problems=3)
    assert islands.width == 90 and islands.problems == 1
    pooled = three.log_normalizer.logsumexp(1, keepdim=True) - math.log(3)
    torch.testing.assert_close(islands.log_normalizer, pooled)


def test_islands_that_leave_keep_the_arguments_they_share(monkeypatch):
    class Halting(Walk):
        def init(self, series):
            return torch.zeros(())

        def step(self, state, t, series):
            h = pyro.sample(f"h_{t}", dist.Normal(DECAY * state, STEP))
            pyro.sample(f"x_{t}", dist.Normal(h, NOISE), obs=series[t % TIME])
            return h

        def heads(self, state):
            return {"halt": state - 0.3}

    def run() -> tuple[Trajectories, list[int]]:
        sizes: list[int] = []
        choices = {"width": 3, "depth": 40, "islands": 8, "halt_probability": 0.5}
        note = sizes.append
        return smc.run(Halting(), SERIES[0], **choices, callback=lambda s, _: note(s.log_weights.shape[1])), sizes

    left, sizes = run()
    assert sizes[0] == 8 and sizes[-1] < 8
    monkeypatch.setattr(smc, "FLAG_EVERY", 10**9)
    stayed, sizes = run()
    assert set(sizes) == {8}
    torch.testing.assert_close(left.log_normalizer[-1], stayed.log_normalizer[-1])
    assert torch.equal(left.state, stayed.state)


def test_arguments_may_be_nested():
    class Nested(Walk):
        def init(self, data):
            return super().init(data["x"][0])

        def step(self, state, t, data):
            return super().step(state, t, data["x"][0])

    x = SERIES.expand(3, -1)
    plain = smc.run(Walk(), x, width=8, depth=TIME, problems=3)
    nested = smc.run(Nested(), {"x": (x, "a constant")}, width=8, depth=TIME, problems=3)
    assert torch.equal(plain.log_normalizer, nested.log_normalizer)
    islands = smc.run(Nested(), {"x": (x, None)}, width=8, depth=TIME, problems=3, islands=2)
    assert islands.problems == 3 and islands.width == 16
    with pytest.raises(ValueError, match=r"^with 2 problems every tensor .* \[2, ...\], got shape \[3, 6\]"):
        smc.run(Nested(), {"x": (x, None)}, width=8, depth=TIME, problems=2)


def test_a_plain_model_has_noise_of_the_shape_and_type_that_it_asks_for():
    seen = []

    def step(state, t, noise):
        seen.append(noise)
        return state + noise, torch.zeros(noise.shape[:2])

    model = smc.PlainModel(lambda noise: torch.zeros_like(noise), step, noise=(4,), dtype=torch.float64)
    run = smc.run(model, width=500, depth=3, problems=2, seed=1)
    assert all(noise.shape == (500, 2, 4) and noise.dtype == torch.float64 for noise in seen)
    assert len(torch.stack(seen).unique()) == 3 * 500 * 2 * 4  # no draw twice
    torch.testing.assert_close(run.state, sum(seen))
    noise = torch.stack(seen).flatten()
    assert abs(float(noise.mean())) < 4.5 / len(noise) ** 0.5  # false alarm 7e-6
    assert abs(float(noise.var()) - 1) < 4.5 * (2 / len(noise)) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.__name__)
def test_a_compiled_plain_model_is_the_same_filter(scheme):
    def step(h, t, noise, series):
        h = DECAY * h + STEP * noise
        x = series.index_select(1, torch.as_tensor(t).reshape(1))[:, 0]
        return h, -0.5 * ((x - h) / NOISE) ** 2

    model = smc.PlainModel(lambda noise, series: 0 * noise, step)
    x = SERIES.repeat(3, 1)
    x[2, 2] = torch.inf  # leaves no weight
    choices = {"width": 50, "depth": TIME, "problems": 3, "resample": adaptive(scheme, 1.0)}
    with pytest.warns(RuntimeWarning, match="problem 2 at depth 3"):
        runs = [smc.run(model, x, **choices, compile=on) for on in (False, True)]
    torch.testing.assert_close(runs[0].log_normalizer, runs[1].log_normalizer, rtol=0, atol=1e-4)
    torch.testing.assert_close(runs[0].ess, runs[1].ess, rtol=1e-4, atol=1e-4)


# -- strict, bad input ----------------------------------------------------------------------------------------


def test_strict_names_the_site_of_a_foreign_model_and_of_its_first_state():
    class Deadly(Walk):
        def step(self, state, t, series):
            state = super().step(state, t, series)
            never = dist.Categorical(logits=torch.tensor([0.0, 0.0 if t < 2 else -math.inf]))
            pyro.sample(f"d_{t}", never, obs=torch.tensor(1))
            return state

    with pytest.raises(smc.FilterError, match=r"^site 'd_2' left no weight at depth 3 in problems \[0, 1\]$"):
        smc.run(Deadly(), SERIES.expand(2, -1), width=5, depth=6, problems=2, strict=True)

    class Stillborn(Walk):
        def init(self, series):
            pyro.factor("never", torch.full((len(series),), -math.inf))
            return super().init(series)

    with pytest.raises(smc.FilterError, match=r"^site 'never' left no weight at depth 0 in problems \[0\]$"):
        smc.run(Stillborn(), SERIES, width=5, depth=6, strict=True)
    with pytest.warns(RuntimeWarning, match="all weights vanished in problem 0 at depth 1"):
        run = smc.run(Stillborn(), SERIES, width=5, depth=6)
    assert run.log_normalizer.isneginf().all()


def test_strict_names_the_step_of_a_plain_model_and_the_potential():
    model = smc.PlainModel(
        lambda noise: noise, lambda h, t, noise: (noise, torch.full(noise.shape, -math.inf if t == 1 else 0.0))
    )
    with pytest.raises(smc.FilterError, match="^the step's log weight left no weight at depth 2"):
        smc.run(model, width=5, depth=6, strict=True)
    harmless = smc.PlainModel(lambda noise: noise, lambda h, t, noise: (noise, 0 * noise))
    with pytest.raises(smc.FilterError, match="^the potential left no weight at depth 1"):
        smc.run(harmless, width=5, depth=6, strict=True, potential=lambda view: view.state - math.inf)


class NoStep:
    def init(self):
        return torch.zeros(())


class NoInit:
    def step(self, state, t):
        return state


class Wrong(Walk):
    def __init__(self, first: Any, after: Any) -> None:
        super().__init__()
        self.first, self.after = first, after

    def init(self, series):
        return self.first

    def step(self, state, t, series):
        return self.after


ZERO = torch.zeros(4, 2)


class Anything(Chain):
    def initial(self, context):
        return context


@pytest.mark.parametrize(
    ("model", "args", "choices", "message"),
    [
        (NoStep(), (), {}, "model must have the methods init and step, and NoStep has no step"),
        (NoInit(), (), {}, "model must have the methods init and step, and NoInit has no init"),
        (nn.Linear(1, 1), (), {}, "model must have the methods init and step, and Linear has no init"),
        (
            Walk(),
            (SERIES,),
            {"guide": NoInit()},
            "guide must have the methods init and step, and NoInit has no init",
        ),
        (Walk(), (SERIES,), {"problems": 0}, "problems must be at least 1, got 0"),
        (
            Walk(),
            (SERIES,),
            {"problems": 2},
            "with 2 problems every tensor argument must be [2, ...], got shape [1, 6]",
        ),
        (
            Walk(),
            (torch.tensor(1.0),),
            {"problems": 2},
            "with 2 problems every tensor argument must be [2, ...], got",
        ),
        (Walk(), (SERIES,), {"evidence": SERIES}, "evidence is for the guide of a chain"),
        (
            Wrong(torch.zeros(2), torch.zeros(3, 2)),
            (ZERO[0],),
            {"problems": 2},
            "state must begin with the batch dim",
        ),
        (
            Wrong(torch.zeros(2), {"a": ZERO, "b": ZERO[:, :1]}),
            (ZERO[0],),
            {"problems": 2},
            "state['b'] must begin with the batch dimensions [4, 2], got shape [4, 1]",
        ),
        (
            Wrong(torch.zeros(2), Pair(ZERO, ZERO[0])),
            (ZERO[0],),
            {"problems": 2},
            "state.count must begin with the",
        ),
        (Wrong(torch.zeros(2), ZERO + math.nan), (ZERO[0],), {"problems": 2}, "state is NaN"),
        (
            Wrong(torch.zeros(2), 3.0),
            (ZERO[0],),
            {"problems": 2},
            "state must be a tensor, a NamedTuple, a tuple or",
        ),
        (Anything(), (SERIES, SERIES), {}, "a chain takes one argument, the problems x, got 2"),
        (
            Walk(),
            (SERIES,),
            {"rejuvenate": print},
            "rejuvenate moves the last noise of a chain that draws from its",
        ),
        (Walk(), (SERIES,), {"compile": True}, "compile needs a PlainModel: Pyro's handlers cannot be compiled"),
        (
            smc.PlainModel(lambda noise: noise, lambda h, t, noise: (h, noise.sum(0))),
            (),
            {},
            "step must return log weights [4, 1], got shape [1]",
        ),
        (
            smc.PlainModel(lambda noise: noise[0], lambda h, t, noise: (h, noise)),
            (),
            {},
            "state must begin with the batch dimensions [4, 1], got shape [1]",
        ),
        (
            smc.PlainModel(lambda noise: noise, lambda h, t, noise: (h, noise)),
            (),
            {"guide": Walk()},
            "a PlainModel proposes in its own step: give its log p - log q with the log weight",
        ),
        (Walk(), (SERIES,), {"potential": potentials.value}, "the potential needs the head 'value'; Walk has none"),
    ],
)
def test_bad_input_is_one_clear_sentence(model, args, choices, message):
    with pytest.raises(ValueError) as caught:
        smc.run(model, *args, width=4, depth=2, **choices)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


class Tempered:
    """z_t ~ N(0, 1), y = 0 observed at half weight, and something that only looks like an observation."""

    def __init__(self, scale=0.5, factor_in_init=False):
        self.scale, self.factor_in_init = scale, factor_in_init

    def init(self):
        if self.factor_in_init:
            pyro.factor("bonus", torch.tensor(0.5))
        return pyro.sample("z", dist.Normal(0.0, 1.0))

    def step(self, state, t):
        state = pyro.deterministic(f"twice_{t}", 2 * pyro.sample(f"z_{t}", dist.Normal(0.0, 1.0)))
        if self.scale:
            with pyro.poutine.scale(scale=self.scale):
                pyro.sample(f"y_{t}", dist.Normal(state, 1.0), obs=torch.tensor(0.0))
        return state


@pytest.mark.parametrize(
    "model", [Tempered(0.5), Tempered(None), Tempered(1.0, True)], ids=["scaled", "deterministic", "factor in init"]
)
def test_what_is_no_likelihood_gives_no_evidence(model):
    run = smc.run(model, width=10, depth=2)
    with pytest.raises(ValueError, match="log_evidence exists only where every factor is a likelihood"):
        _ = run.log_evidence
    assert float(smc.run(Tempered(1.0), width=10, depth=2).log_evidence[-1]) < 0


def test_a_deterministic_site_weighs_nothing():
    run = smc.run(Tempered(None), width=10, depth=3, keep="paths")
    assert run.ancestors is None and float(run.log_normalizer[-1]) == 0


class Walker:
    """A model of series `[..., T]`."""

    def init(self, y):
        return pyro.sample("x", dist.Normal(0.0, 1.0))

    def step(self, x, t, y):
        x = pyro.sample(f"x_{t}", dist.Normal(x, 1.0))
        pyro.sample(f"y_{t}", dist.Normal(x, 1.0), obs=y[..., t] if t < y.shape[-1] else None)
        return x


class Proposer:
    """Proposes nearer to 0."""

    def init(self, y):
        return pyro.sample("x", dist.Normal(0.0, 0.3))

    def step(self, x, t, y):
        return pyro.sample(f"x_{t}", dist.Normal(x / 2, 0.5))


def test_what_was_not_observed_lets_the_guide_trigger_nothing():
    run = smc.run(
        Walker(), torch.full((6,), math.nan), guide=Proposer(), width=50, depth=6, ess_threshold=1.0, keep="paths"
    )
    assert run.ancestors is None


def test_missing_values_do_not_keep_problems_in_the_batch():
    """Series padded with NaN equal series run alone, whether or not ended ones left."""
    y = torch.randn(4, 12, generator=torch.Generator().manual_seed(0))
    y[:3, 5:] = math.nan
    run = smc.run(Walker(), y, problems=4, width=30, depth=torch.tensor([5, 5, 5, 12]))
    whole = smc.run(Walker(), y, problems=4, width=30, depth=12)
    torch.testing.assert_close(run.log_evidence[-1], whole.log_evidence[-1])


def test_continuing_unequal_series_or_another_potential_is_refused():
    y = torch.randn(2, 10, generator=torch.Generator().manual_seed(0))
    unequal = smc.run(Walker(), y, problems=2, width=8, depth=torch.tensor([3, 5]))
    with pytest.raises(ValueError, match="ended at different depths"):
        smc.run(Walker(), y, problems=2, width=8, depth=2, start=unequal)
    tilted = smc.run(Walker(), y, problems=2, width=8, depth=2, potential=lambda view: view.state)
    with pytest.raises(
        ValueError, match="start was run under the potential .*, so it must go on under it, got None"
    ):
        smc.run(Walker(), y, problems=2, width=8, depth=2, start=tilted)
    with pytest.raises(ValueError, match="the run is tilted by a potential that is no likelihood"):
        forecast(Walker(), tilted, 2, y)
    with pytest.raises(ValueError, match="ended at different depths"):
        forecast(Walker(), unequal, 2, y)
    assert forecast(Walker(), unequal[0], 2, y[:1, :3]).sites["y"].shape == (2, 8, 1)


def test_arguments_of_one_problem_are_shared_by_its_islands():
    """A `[1, 1]` constant stays as it is, and arrays are taken for tensors."""

    class Scaled(Walker):
        def init(self, y, a):
            return super().init(y)

        def step(self, x, t, y, a):
            return super().step((x[..., None] @ a)[..., 0], t, y)

    run = smc.run(Scaled(), np.zeros(4, dtype=np.float32), torch.eye(1), width=6, depth=4, islands=4)
    assert run.log_weights.shape == (1, 24, 1)


@pytest.mark.parametrize(
    ("model", "args", "choices", "message"),
    [
        (
            Walker(),
            (torch.zeros(3, 5),),
            {"depth": 5},
            r"must fit its site \[4, 1\], got shape \[3\] \(problems=B for several series\)",
        ),
        (Walker(), (torch.zeros(5),), {}, "depth must be given: how many steps the series has"),
        (Walker(), (torch.zeros(5),), {"depth": 5, "seed": 1.5}, "seed must be an integer, got 1.5"),
        (
            Walker(),
            (torch.zeros(5),),
            {"depth": 5, "potential": lambda view: 0.0},
            "log psi as a tensor, got float",
        ),
        (
            Walker(),
            (torch.zeros(5),),
            {"depth": 5, "collect": {"m": lambda s, w: s.sum()}},
            r"must return a tensor \[1, ...\]",
        ),
        (smc.PlainModel(lambda n: n, lambda s, t, n: s), (), {"depth": 2}, r"must return \(state, log_weight\)"),
    ],
)
def test_what_stumbles_says_what_to_do(model, args, choices, message):
    with pytest.raises(ValueError, match=message):
        smc.run(model, *args, width=4, **choices)


def test_collected_figures_keep_their_own_names():
    run = smc.run(Walker(), torch.zeros(3), width=4, depth=3, collect={"ess": lambda s, w: s.mean(0) * 0 - 1})
    assert bool((run.collected["ess"] == -1).all()) and bool((run.ess > 0).all())


def test_gradients_need_reparameterised_sites():
    table = torch.full((2, 2), 0.5)
    with pytest.raises(ValueError, match="gradient=True needs reparameterised sites"):
        smc.run(HiddenMarkov(table[0], table, table), torch.zeros(1, 3, dtype=torch.long), depth=3, gradient=True)


class Bonus(Walker):
    """Adds a factor to every step."""

    def step(self, x, t, y):
        pyro.factor(f"bonus_{t}", torch.tensor(-1.0))
        return super().step(x, t, y)


def test_a_factor_weighs_where_something_is_missing():
    y = torch.tensor([0.0, 0.0, math.nan])
    plain, bonus = (smc.run(model, y, width=64, depth=3) for model in (Walker(), Bonus()))
    torch.testing.assert_close(bonus.log_normalizer[-1], plain.log_normalizer[-1] - 3)
    with pytest.raises(ValueError, match="log_evidence exists only"):
        _ = bonus.log_evidence


def test_a_slice_of_unequal_series_goes_on_from_its_own_end():
    """Skipping two observations would move log Z by 0.4 and more; the two estimates' sd is 0.01."""
    y = torch.randn(2, 7, generator=torch.Generator().manual_seed(0))
    run = smc.run(Walker(), y, problems=2, width=50_000, depth=torch.tensor([3, 5]))
    further = smc.run(Walker(), y[:1], width=50_000, depth=2, start=run[0])
    whole = smc.run(Walker(), y[:1], width=50_000, depth=5, seed=7)
    assert abs(float(further.log_evidence[-1] - whole.log_evidence[-1])) < 0.05


class Outside(Walker):
    """A plate of its own, and an observation outside it that lacks the plate's dimension."""

    max_plate_nesting = 1


class Event(Walker):
    """An event of one number that is given B of them."""

    def step(self, x, t, y):
        x = pyro.sample(f"x_{t}", dist.Normal(x, 1.0))
        pyro.sample(f"y_{t}", dist.Normal(x[..., None], 1.0).to_event(1), obs=y[..., t])
        return x


@pytest.mark.parametrize("model", [Outside(), Event()], ids=["plate", "event"])
def test_an_observation_that_would_be_broadcast_is_refused(model):
    with pytest.raises(ValueError, match="the observation of 'y_0' must fit its site"):
        smc.run(model, torch.zeros(2, 3), problems=2, width=4, depth=3)


class ScaledLatent(Walker):
    """Its latent site is tempered."""

    def step(self, x, t, y):
        with pyro.poutine.scale(scale=0.5):
            return super().step(x, t, y)


class Observing(Proposer):
    """A guide that observes."""

    def step(self, x, t, y):
        pyro.factor("no", torch.tensor(-3.0))
        return super().step(x, t, y)


def test_a_guide_that_would_make_z_wrong_is_refused():
    with pytest.raises(ValueError, match="a guide cannot propose for the site 'x_0': it is scaled or masked"):
        smc.run(ScaledLatent(), torch.zeros(3), guide=Proposer(), width=4, depth=3)
    with pytest.raises(ValueError, match="the guide observes 'no': a guide only samples"):
        smc.run(Walker(), torch.zeros(3), guide=Observing(), width=4, depth=3)


def test_a_forecast_draws_nothing_that_was_given():
    y = torch.tensor([0.0, 0.0, math.nan])
    run = smc.run(Walker(), y, width=8, depth=2)
    with pytest.raises(ValueError, match="step 2 observes something"):
        forecast(Walker(), run, 1, y)


def test_real_numbers_below_zero_are_observed():
    """The state is N(0, 1), and so is its readout around it: y ~ N(0, 2). The estimates' sd is 0.01."""
    chain = LinearGaussian(*(torch.eye(1) for _ in range(4)))
    blank = torch.full((1, 1, 1), math.nan)
    for sign in (-1, 1):
        potential = potentials.likelihood([[sign * 0.7]])
        run = smc.run(chain, blank, potential=potential, width=4_000, depth=1, resample=None)
        assert abs(float(run.log_evidence[-1]) + 0.5 * math.log(4 * math.pi) + 0.49 / 4) < 0.05


def test_sampled_answers_need_problems_that_end_together():
    with pytest.raises(ValueError, match="decode='sample' needs problems that end together"):
        smc.run(Walker(), torch.zeros(2, 3), problems=2, depth=torch.tensor([2, 3]), decode="sample")
