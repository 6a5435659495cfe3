"""Every kind of potential against the sum over all paths of a small discrete chain, and what a view shows.

2,000 problems are replicates of one filter. E[Z] and E[Z Σ_i W_i 1{h_i = k}], unbiased for the unnormalised law of
the last state, are compared with their enumerated values within four standard errors estimated from the replicates:
false alarm 6e-5 a comparison, and 300 comparisons make 2e-2; with the fixed seeds none. Other tests are exact.
"""

import itertools
import math
from typing import Any

import pyro
import pytest
import torch
from pyro import distributions as dist
from torch import Tensor

from probgram import Chain, Guide
from probgram.inference import potentials, smc
from probgram.inference.potentials import Potential, View, accumulated, energy, halt, likelihood, look_ahead, value
from probgram.inference.resampling import multinomial, systematic

REPLICATES, K = 2000, 3

FIRST = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
ROWS = torch.tensor([[0.7, 0.3, 0.0], [0.1, 0.6, 0.3], [0.3, 0.3, 0.4]], dtype=torch.float64)
SEEN = torch.tensor([[0.9, 0.4], [0.2, 0.5], [0.6, 0.7]], dtype=torch.float64)  # p(observation of step t | h)
TOKENS = torch.tensor(
    [[[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]], [[0.2, 0.5, 0.3], [0.3, 0.3, 0.4]], [[0.1, 0.3, 0.6], [0.5, 0.2, 0.3]]],
    dtype=torch.float64,
)  # p(token l = v | h), [K, L, V]
HEADS = {
    "value": torch.tensor([-2.0, 0.5, 1.5], dtype=torch.float64),
    "halt": torch.tensor([1.0, -1.0, 0.3], dtype=torch.float64),
}


class Small(Chain):
    """Three states, two tokens read out, two heads; `observed` steps weigh p(observation | h)."""

    def __init__(self, observed: bool = False) -> None:
        super().__init__()
        self.observed = observed

    def initial(self, context):
        return context.new_zeros(len(context))

    def propose(self, state, context, t):
        return (FIRST.expand(*state.shape, K) if t == 0 else ROWS[state]).log()

    def prior(self, proposal, t):
        return dist.Categorical(logits=proposal)

    def move(self, proposal, eps):
        return eps

    def step(self, state, t, context):
        state = super().step(state, t, context)
        if self.observed:
            pyro.sample(f"obs_{t}", dist.Bernoulli(SEEN[state, min(t, 1)]), obs=torch.ones(state.shape).double())
        return state

    def readout(self, state):
        return dist.Categorical(probs=TOKENS[state]).to_event(1)

    def heads(self, state):
        return {name: table[state] for name, table in HEADS.items()}


class SmallGuide(Guide):
    """Another row."""

    def posterior(self, proposal, evidence, t):
        return dist.Categorical(logits=0.5 * proposal + torch.tensor([0.3, 0.0, 0.6], dtype=torch.float64))


class Distance:
    """A task: how far the sum of the tokens is from x."""

    def violations(self, x: Tensor, y: Tensor) -> Tensor:
        return (y.long().sum(-1) - x[..., 0]).abs()


ANSWERS = TOKENS.argmax(-1)  # [K, L]


def own(view: View) -> Tensor:
    """A user's function, of the state, the state before, the depth step."""
    return 0.4 * view.state + 0.3 * view.previous - 0.2 * view.t * (view.state == 1)


def forbids(view: View) -> Tensor:
    return torch.zeros(view.state.shape).masked_fill((view.state == 0) & (view.t == 1), -math.inf)


def own_value(path: tuple[int, ...], t: int) -> float:
    before = path[t - 2] if t > 1 else 0
    return 0.4 * path[t - 1] + 0.3 * before - 0.2 * t * (path[t - 1] == 1)


def sigmoid(name: str, path: tuple[int, ...], t: int) -> float:
    return float(torch.nn.functional.logsigmoid(HEADS[name][path[t - 1]]))


def log_tokens(h: int, tokens: tuple[int | None, ...]) -> float:
    return sum(float(TOKENS[h, i, v].log()) for i, v in enumerate(tokens) if v is not None)


def log_energy(path: tuple[int, ...], t: int, alpha: float) -> float:
    return -abs(int(ANSWERS[path[t - 1]].sum()) - 3) / alpha


def forbidden(path: tuple[int, ...], t: int) -> float:
    return -math.inf if path[0] == 0 else 0.0  # for good: zero is absorbing


# name -> potential, its log at depth t of a path, what log Z is (with an observation, without)
Kind = tuple[Any, Any, str | None, str | None]
KINDS: dict[str, Kind] = {
    "none": (None, lambda path, t: 0.0, "every", None),
    "a function": (own, own_value, None, None),
    "zero": (forbids, forbidden, None, None),
    "value": (value, lambda path, t: sigmoid("value", path, t), None, None),
    "halt": (halt, lambda path, t: sigmoid("halt", path, t), None, None),
    "energy": (energy(Distance(), alpha=1.7), lambda path, t: log_energy(path, t, 1.7), None, None),
    "annealed likelihood": (
        likelihood(torch.tensor([1, 0])),
        lambda path, t: t / 2 * log_tokens(path[t - 1], (1, 0)),
        "last",
        "last",
    ),
    "likelihood": (
        likelihood(torch.tensor([1, 0]), anneal=False),
        lambda path, t: log_tokens(path[t - 1], (1, 0)),
        "every",
        "every",
    ),
    "partial likelihood": (
        likelihood(torch.tensor([2, -1])),
        lambda path, t: t / 2 * log_tokens(path[t - 1], (2, None)),
        "last",
        "last",
    ),
    "masked likelihood": (
        likelihood(torch.tensor([2, 1]), observed=torch.tensor([False, True]), anneal=False),
        lambda path, t: log_tokens(path[t - 1], (None, 1)),
        "every",
        "every",
    ),
    "look-ahead": (look_ahead(own), lambda path, t: own_value(path, t) if t < 2 else 0.0, "last", None),
    "product": (
        value * own * halt,
        lambda path, t: sigmoid("value", path, t) + own_value(path, t) + sigmoid("halt", path, t),
        None,
        None,
    ),
    "power": (value**2.5, lambda path, t: 2.5 * sigmoid("value", path, t), None, None),
    "accumulated": (
        accumulated(halt),
        lambda path, t: sum(sigmoid("halt", path, s + 1) for s in range(t)),
        None,
        None,
    ),
    "accumulated zero": (accumulated(forbids), forbidden, None, None),
    "accumulated products": (
        accumulated(halt * own) ** 1.5 * accumulated(value),
        lambda path, t: sum(
            1.5 * (sigmoid("halt", path, s + 1) + own_value(path, s + 1)) + sigmoid("value", path, s + 1)
            for s in range(t)
        ),
        None,
        None,
    ),
    "accumulated likelihood": (
        accumulated(likelihood(torch.tensor([1, 0]), anneal=False)),
        lambda path, t: sum(log_tokens(h, (1, 0)) for h in path[:t]),
        "every",
        "every",
    ),
    "power of zero": (value**0, lambda path, t: 0.0, None, None),
    "product of evidence": (
        likelihood(torch.tensor([1, -1]), anneal=False)
        * likelihood(torch.tensor([-1, 0]))
        * look_ahead(own) ** 0.7,
        lambda path, t: (
            log_tokens(path[t - 1], (1, None))
            + t / 2 * log_tokens(path[t - 1], (None, 0))
            + (0.7 * own_value(path, t) if t < 2 else 0.0)
        ),
        "last",
        "last",
    ),
}
X = torch.tensor([[3]])


def enumerated(log_psi: Any, observed: bool, t: int) -> Tensor:
    """γ_t(h_t = k): the unnormalised law of the state after t steps, `[K]`."""
    total = torch.zeros(K, dtype=torch.float64)
    for path in itertools.product(range(K), repeat=t):
        p = FIRST[path[0]]
        for s in range(1, t):
            p = p * ROWS[path[s - 1], path[s]]
        for s in range(t if observed else 0):
            p = p * SEEN[path[s], s]
        total[path[-1]] += p * math.exp(log_psi(path, t))
    return total


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    ("observed", "guided", "resample"),
    [(False, False, systematic), (True, True, multinomial)],
    ids=["prior", "guide and observations"],
)
def test_z_and_the_law_of_final_states_are_those_of_the_sum_over_paths(name, observed, guided, resample):
    potential, log_psi, with_observation, without = KINDS[name]
    choices: dict[str, Any] = {"guide": SmallGuide(), "evidence": X.expand(REPLICATES, 1)} if guided else {}
    run = smc.run(
        Small(observed),
        X.expand(REPLICATES, 1),
        width=20,
        depth=2,
        potential=potential,
        resample=resample,
        ess_threshold=1.0,
        keep="latents",
        seed=1,
        **choices,
    )
    assert run.settings["evidence"] == (with_observation if observed else without)
    for t in (1, 2):
        truth = enumerated(log_psi, observed, t)
        z = run.log_normalizer[t - 1].exp()  # [R]
        share = torch.stack([(run.weights[t - 1] * (run.states[t - 1] == k)).sum(0) for k in range(K)], -1)
        for estimate, exact in ((z, truth.sum()), *zip((z[:, None] * share).T, truth, strict=True)):
            error = float(estimate.std()) / REPLICATES**0.5
            assert abs(float(estimate.mean() - exact)) <= 4 * error + 1e-6
            assert error < 0.02 * float(truth.sum())  # the comparison says something
    if name not in ("none", "power of zero"):
        plain = enumerated(lambda path, t: 0.0, observed, 1)
        assert float((enumerated(log_psi, observed, 1) / plain - 1).abs().max()) > 0.05  # and could fail
    meaning = with_observation if observed else without
    if meaning is None:
        with pytest.raises(ValueError, match="log_evidence exists only where every factor is a likelihood"):
            run.log_evidence  # noqa: B018
    else:
        assert torch.equal(run.log_evidence[-1], run.log_normalizer[-1])
        assert bool(run.log_evidence[0].isnan().all()) == (meaning == "last")


def test_untilted_trajectories_follow_the_models_own_law():
    """Ratios of weighted sums are biased by O(1 / N): sums over all problems, weighted by Z, are not."""
    run = smc.run(
        Small(True), X.expand(REPLICATES, 1), width=40, depth=2, potential=value**3, keep="latents", seed=2
    )
    tilted, truth = (enumerated(p, True, 2) for p in (lambda h, t: 3 * sigmoid("value", h, t), lambda h, t: 0.0))
    with pytest.warns(RuntimeWarning, match="without the potential problems .* sample size below 4"):
        plain = run.untilted
    # Undone by hand: Z Σ W / ψ 1{h = k} is unbiased for the law with the observations only.
    psi = run.log_potential.exp()
    for k in range(K):
        here = run.state == k
        estimate = run.log_normalizer[-1].exp() * (run.weights[-1] / psi * here).sum(0)
        assert abs(float(estimate.mean() - truth[k])) < 4 * float(estimate.std()) / REPLICATES**0.5
        by_hand = (run.weights[-1] / psi * here).sum(0) / (run.weights[-1] / psi).sum(0)
        torch.testing.assert_close((plain.weights[-1] * here).sum(0), by_hand, rtol=0, atol=1e-6)
    assert float((tilted / tilted.sum() - truth / truth.sum()).abs().max()) > 0.1
    assert torch.equal(plain.weights[0], run.weights[0]) and plain.untilted is plain
    torch.testing.assert_close(plain.ess[-1], 1 / plain.weights[-1].square().sum(0))


def test_untilting_a_weak_potential_is_silent_and_one_without_changes_nothing(recwarn):
    run = smc.run(Small(), X, width=40, depth=2, potential=value**0.1)
    assert float(run.untilted.ess[-1]) > 30
    plain = smc.run(Small(), X, width=40, depth=2)
    torch.testing.assert_close(plain.untilted.weights, plain.weights)
    assert not recwarn.list


def test_trajectories_of_no_weight_stay_so_when_untilted():
    def psi(view: View) -> Tensor:
        return torch.zeros(view.state.shape).masked_fill(torch.arange(len(view.state))[:, None] < 3, -math.inf)

    run = smc.run(Small(), X, width=10, depth=2, potential=psi, resample=None)
    assert not run.untilted.weights[-1, :3].any()
    torch.testing.assert_close(run.untilted.weights[-1, 3:, 0], torch.full((7,), 1 / 7).double())


def test_a_likelihood_of_each_problem_is_its_own():
    y = torch.tensor([[1, 0], [2, 2], [-1, 1]])
    run = smc.run(Small(), X.expand(3, 1), width=30, depth=3, potential=likelihood(y, anneal=False), keep="latents")
    for b, tokens in enumerate([(1, 0), (2, 2), (None, 1)]):
        expected = [log_tokens(int(h), tokens) for h in run.state[:, b]]
        torch.testing.assert_close(run.log_potential[:, b], torch.tensor(expected, dtype=torch.float64))


def test_an_annealed_likelihood_takes_the_depth_of_each_problem():
    depth = torch.tensor([1, 4])
    run = smc.run(
        Small(), X.expand(2, 1), width=30, depth=depth, potential=likelihood([1, 0]), keep="latents", resample=None
    )
    total = run.log_weights + run.log_normalizer[:, None] + math.log(30)  # log psi, without resampling
    for t, b, power in ((1, 0, 1.0), (1, 1, 0.25), (2, 1, 0.5), (4, 1, 1.0), (4, 0, 1.0)):
        expected = [power * log_tokens(int(h), (1, 0)) for h in run.states[t - 1, :, b]]
        torch.testing.assert_close(total[t - 1, :, b], torch.tensor(expected).double(), rtol=0, atol=1e-6)


def test_a_likelihood_of_zero_is_zero_at_every_power():
    class Sure(Small):
        def readout(self, state):
            return dist.Categorical(logits=torch.eye(K).log()[state][..., None, :]).to_event(1)

    run = smc.run(
        Sure(), X.expand(4, 1), width=500, depth=4, potential=likelihood([2]), keep="latents", resample=None
    )
    assert not run.log_weights.isnan().any() and not run.log_normalizer.isnan().any()
    alive = (run.states == 2).long().cumprod(0).bool()
    assert alive[1].any() and not alive[0].all()  # some lived, some died
    assert torch.equal(run.weights > 0, alive)


def test_a_readout_without_independent_tokens_is_observed_whole_or_not_at_all():
    class Joint(Small):
        def readout(self, state):
            mean = torch.stack([state, -state], -1).double()
            return dist.LowRankMultivariateNormal(
                mean, torch.tensor([[0.7], [0.7]]).double(), torch.ones(2).double()
            )

    y = torch.tensor([0.3, 0.4], dtype=torch.float64)
    run = smc.run(Joint(), X, width=5, depth=1, potential=likelihood(y), keep="latents")
    torch.testing.assert_close(run.log_potential, Joint().readout(run.state).log_prob(y))
    with pytest.raises(ValueError, match="the readout has no independent tokens, so all of y must be observed"):
        smc.run(Joint(), X, width=5, depth=1, potential=likelihood(torch.tensor([0.3, torch.nan])))


def test_potentials_multiply_and_take_powers():
    def view(t: int = 1) -> View:
        state = torch.tensor([[0], [1], [2]])
        return View(Small(), state, state, None, t, 2, torch.zeros(1, dtype=torch.long), X)

    def plain(view: View) -> Tensor:
        return view.state * 0.5

    torch.testing.assert_close((value * halt)(view()), value(view()) + halt(view()))
    torch.testing.assert_close((value * plain)(view()), value(view()) + plain(view()))
    torch.testing.assert_close(((value * halt) ** 2 * value)(view()), 3 * value(view()) + 2 * halt(view()))
    ahead = look_ahead(plain)
    assert torch.equal(ahead(view(1)), plain(view(1))) and not ahead(view(2)).any() and not ahead(view(3)).any()
    assert not (ahead**2)(view(2)).any()
    annealed, whole = likelihood([0, 1]), likelihood([0, 1], anneal=False)
    for potential, meaning, looks in [
        (value, None, False),
        (ahead, "last", True),
        (ahead**2, "last", True),
        (annealed, "last", False),
        (whole, "every", False),
        (annealed**2, None, False),
        (annealed**1, "last", False),
        (whole * whole, "every", False),
        (whole * ahead, "last", True),
        (ahead * whole * value, None, True),
    ]:
        assert (potential.evidence, potential.look_ahead) == (meaning, looks)


def test_a_power_of_zero_forgives_zero():
    state = torch.tensor([[0], [1]])
    view = View(Small(), state, None, None, 1, 2, torch.zeros(1, dtype=torch.long))
    forbidding = potentials.as_potential(forbids)
    assert forbidding(view).isneginf().any() and torch.equal((forbidding**0)(view), torch.zeros(2, 1))


def test_a_potential_of_ones_own_is_a_class():
    class Half(Potential):
        evidence = "every"

        def __call__(self, view: View) -> Tensor:
            return torch.full(view.state.shape, math.log(0.5))

    run = smc.run(Small(), X, width=4, depth=3, potential=Half())
    torch.testing.assert_close(run.log_evidence, torch.full((3, 1), math.log(0.5)).double())
    assert (Half() * value).evidence is None and (Half() ** 1).evidence == "every"


def test_a_view_shows_the_run():
    seen: list[View] = []

    def look(view: View) -> Tensor:
        seen.append(view)
        return 0.1 * view.state

    x = torch.tensor([[3], [1]])
    run = smc.run(Small(), x, width=5, depth=3, potential=look, keep="latents", ess_threshold=1.0)
    assert [view.t for view in seen] == [1, 2, 3] and [bool(view.last) for view in seen] == [False, False, True]
    for s, view in enumerate(seen):
        assert torch.equal(view.state, run.states[s]) and torch.equal(view.answer, run.answers[s])
        assert torch.equal(view.x, x) and torch.equal(view.context, x) and view.problem.tolist() == [0, 1]
        assert torch.equal(view.heads["value"], run.heads["value"][s]) and view.depth == 3
        if s:  # after resampling
            assert torch.equal(view.previous, run.states[s - 1].gather(0, run.ancestors[s].long()))
    depth = torch.tensor([1, 3])
    seen.clear()
    smc.run(Small(), x, width=5, depth=depth, potential=look)
    assert [view.last.tolist() for view in seen] == [[True, False], [True, False], [True, True]]


def test_drawn_answers_are_what_the_potential_sees():
    class Sees(Potential):
        def __call__(self, view: View) -> Tensor:
            return -view.answer.double().sum(-1)

    run = smc.run(Small(), X, width=2000, depth=2, potential=Sees(), decode="sample", resample=None, keep="latents")
    torch.testing.assert_close(run.log_potential, -run.answers[-1].double().sum(-1))
    # Drawn, not the mode: frequencies in a state within 4.5 standard errors, 18 comparisons, 1e-4.
    for k in range(K):
        drawn = run.answers[-1, :, 0][run.state[:, 0] == k].long()
        found = torch.nn.functional.one_hot(drawn, 3).double().mean(0)
        error = (TOKENS[k] * (1 - TOKENS[k]) / len(drawn)).sqrt()
        assert ((found - TOKENS[k]).abs() < 4.5 * error).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: energy(Distance(), alpha=0), "alpha must be above 0, got 0"),
        (lambda: energy(Distance(), alpha=math.nan), "alpha must be above 0, got nan"),
        (lambda: energy(object()), "an energy needs a task with violations(x, y), got object"),
        (lambda: value * 3, "a potential must be a function of the view, got 3"),
        (lambda: potentials.as_potential(energy), "a potential must be a function of the view, got <class"),
    ],
)
def test_what_is_no_potential_is_one_clear_sentence(make, message):
    with pytest.raises(ValueError) as caught:
        make()
    assert str(caught.value).startswith(message)


def test_a_view_says_what_a_model_does_not_have():
    class Bare:
        def init(self):
            return torch.zeros(())

        def step(self, state, t):
            return pyro.sample(f"h_{t}", dist.Normal(state, 1.0))

    class NoHeads(Small):
        def heads(self, state):
            return {}

    for model, args, potential, message in [
        (Bare(), (), value, "the potential needs the head 'value'; Bare has none"),
        (NoHeads(), (X,), halt, "the potential needs the head 'halt'; NoHeads has none"),
        (Small(), (X,), potentials.Head("best"), "the potential needs the head 'best'; Small has halt, value"),
        (Bare(), (), likelihood([1]), "Bare has no readout, so its states have no answers"),
        (Bare(), (), energy(Distance()), "Bare is no chain, so the run has no problems x"),
        (Bare(), (), lambda view: view.x, "Bare is no chain, so the run has no problems x"),
    ]:
        with pytest.raises(ValueError) as caught:
            smc.run(model, *args, width=4, depth=2, potential=potential)
        assert str(caught.value) == message


def test_a_likelihood_of_another_number_of_problems_is_one_clear_sentence():
    with pytest.raises(ValueError, match=r"y must be one answer or one for each of 3 problems, got 2"):
        smc.run(Small(), X.expand(3, 1), width=4, depth=2, potential=likelihood([[1, 0], [0, 1]]))


def test_tokens_that_are_not_observed_may_be_anything() -> None:
    """Queens write an empty row as a token that no answer has."""
    mask = torch.tensor([True, False])
    odd, plain = (
        smc.run(Small(), X.expand(2, 1), width=50, depth=2, potential=likelihood(torch.tensor(y), observed=mask))
        for y in ([1, 7], [1, 0])
    )
    assert torch.equal(odd.log_normalizer, plain.log_normalizer)


@pytest.mark.parametrize(
    ("y", "observed", "message"),
    [
        ([1, 0], [1, 0], r"observed must be bool \[2\] or \[1, 2\], got torch.int64 of shape \[2\]"),
        ([1, 0], [True], r"observed must be bool \[2\] or \[1, 2\], got torch.bool of shape \[1\]"),
        ([1, -1], [True, True], "observed must not count tokens that y does not hold"),
        ([1.0, float("nan")], [True, True], "observed must not count tokens that y does not hold"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(y: Any, observed: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        likelihood(torch.tensor(y), observed=torch.tensor(observed))


def test_of_a_joint_gaussian_what_is_not_observed_is_integrated_out() -> None:
    mean, cov = torch.tensor([0.3, -0.2, 0.5]), torch.tensor([[1.0, 0.4, 0.1], [0.4, 0.8, 0.2], [0.1, 0.2, 0.6]])

    class Joint(Small):
        def readout(self, state: Tensor) -> Any:
            return dist.MultivariateNormal(mean.expand(*state.shape, 3), cov)

    y, seen = torch.tensor([0.1, float("nan"), 0.9]), [0, 2]
    run = smc.run(Joint(), X.expand(2, 1), width=5, depth=1, potential=likelihood(y))
    exact = dist.MultivariateNormal(mean[seen], cov[seen][:, seen]).log_prob(y[seen])
    torch.testing.assert_close(run.log_normalizer[-1].float(), exact.expand(2))
