"""The training objective: what receives gradient, that its losses bound the likelihood, how targets are chosen.

Two chains made for the purpose. `Ladder` has parameters of its own for every transition, so that the names of
those with a gradient say how far it flowed. `Dice` draws one of three states a transition, so that log p(y | x)
is a sum one can write down.

Tests of averages allow four standard errors: 3e-5 false alarms for a one-sided comparison with another seed,
6e-5 for a two-sided one.
"""

import itertools
import math
from typing import Any, NamedTuple

import pytest
import torch
from pyro import distributions as dist
from torch import Tensor, nn

from probgram import Chain, Guide
from probgram.inference.objective import Objective, ObjectiveConfig, Rollout
from probgram.inference.targets import TargetView, attributed, dealt, fixed, nearest, responsibilities
from probgram.models import GRAM, GRAMConfig, GRAMGuide
from probgram.models.blocks import Tokens

# -- who receives gradient --------------------------------------------------------------------------------

S, T, D = 2, 2, 3  # depth steps, transitions in each, size of the state


class Climber(NamedTuple):
    h: Tensor  # [..., B, D], also the logits of the answer's one token
    height: Tensor  # [..., B], depth steps taken


class Ladder(Chain):
    """u = w_t · h + x, eps ~ N(p_t, 1), h = u + eps; y is read at all depth steps, or at step `read_at` alone."""

    transitions = T

    def __init__(self, read_at: int | None = None) -> None:
        super().__init__()
        self.read_at = read_at
        self.w = nn.ParameterList(torch.linspace(0.5, 1.5, D) + t / 10 for t in range(S * T))
        self.p = nn.ParameterList(torch.linspace(-1, 1, D) - t / 10 for t in range(S * T))

    def initial(self, context: Tensor) -> Climber:
        return Climber(torch.ones(len(context), D), torch.zeros(len(context)))

    def propose(self, state: Climber, context: Tensor, t: int) -> Climber:
        return Climber(self.w[t] * state.h + context.float(), state.height + 1 / T)

    def prior(self, proposal: Climber, t: int) -> dist.TorchDistribution:
        return dist.Normal(self.p[t].expand_as(proposal.h), 1.0).to_event(1)

    def move(self, proposal: Climber, eps: Tensor) -> Climber:
        return Climber(proposal.h + eps, proposal.height)

    def readout(self, state: Climber) -> Tokens:
        heard = torch.ones_like(state.height) if self.read_at is None else state.height == self.read_at
        return Tokens((state.h * heard[..., None])[..., None, :])


class LadderGuide(Guide):
    """q(eps | u, y) = N(q_t + y, 0.7²)."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.ParameterList(torch.full((D,), 0.5) + t / 10 for t in range(S * T))

    def posterior(self, proposal: Climber, evidence: Tensor, t: int) -> dist.TorchDistribution:
        return dist.Normal((self.q[t] + evidence.float()).expand_as(proposal.h), 0.7).to_event(1)


def one_answer(particles: int = 2) -> Rollout:
    x, y = torch.tensor([[0.3], [-0.2]]), torch.tensor([[[1]], [[2]]])
    zeros = torch.zeros(2, dtype=torch.long)
    return Rollout(x, y, torch.ones(2, dtype=torch.long), zeros.expand(particles, 2), zeros)


def receivers(chain: Chain, read: str = "wpq", **choices: Any) -> str:
    """Names of the parameters that the loss of the last depth step (or with "full", of all) gives gradient."""
    torch.manual_seed(0)
    guide = LadderGuide()
    objective = Objective(chain, guide, ObjectiveConfig(depth=S, target=fixed, **choices))
    rollout = one_answer()
    if choices["gradient"] != "full":
        rollout = objective(rollout).rollout
    objective(rollout).loss.backward()
    modules = {"w": chain.w, "p": chain.p, "q": guide.q}
    names = [(n, t, modules[n][t].grad) for n in read for t in range(S * T)]
    return " ".join(f"{n}{t}" for n, t, gradient in names if gradient is not None and bool(gradient.any()))


@pytest.mark.parametrize(
    ("gradient", "carry", "kl", "expected"),
    [
        # Depth step 2 is transitions 2 and 3. Of a transition left to the prior, p moves the state.
        ("transition", 1.0, "every", "w3 p3 q3"),
        ("transition", 1.0, "last", "w3 p3 q3"),
        ("transition", 0.0, "every", "w3 p3 q3"),
        ("step", 1.0, "every", "w2 w3 p2 p3 q3"),
        ("step", 1.0, "last", "w2 w3 p2 p3 q3"),
        # Where the guide draws, p is in the KL alone.
        ("step", 0.0, "every", "w2 w3 p2 p3 q2 q3"),
        ("step", 0.0, "last", "w2 w3 p3 q2 q3"),
        ("full", 0.0, "every", "w0 w1 w2 w3 p0 p1 p2 p3 q0 q1 q2 q3"),
        ("full", 0.0, "last", "w0 w1 w2 w3 p1 p3 q0 q1 q2 q3"),
    ],
)
def test_gradient_and_kl_choose_which_transitions_learn(
    gradient: str, carry: float, kl: str, expected: str
) -> None:
    assert receivers(Ladder(), gradient=gradient, carry=carry, kl=kl) == expected


@pytest.mark.parametrize("gradient", ["step", "transition"])
def test_no_gradient_crosses_a_depth_step_unless_full(gradient: str) -> None:
    assert "w0" not in receivers(Ladder(read_at=2), "w", gradient=gradient, carry=0.0, beta=0.0)
    assert "w1" not in receivers(Ladder(read_at=2), "w", gradient=gradient, carry=0.0, beta=0.0)


def test_full_gradient_reaches_the_first_transition_from_the_last_readout() -> None:
    """Only the last depth step reads y, and beta = 0: what transitions 0 and 1 get has come all the way."""
    received = receivers(Ladder(read_at=2), gradient="full", carry=0.0, beta=0.0)
    assert received == "w0 w1 w2 w3 q0 q1 q2 q3"


def test_full_gradient_flows_through_prior_draws_too() -> None:
    received = receivers(Ladder(read_at=2), gradient="full", carry=1.0, beta=0.0)
    assert received == "w0 w1 w2 w3 p0 p1 p2 q3"


@pytest.mark.parametrize("gradient", ["transition", "step", "full"])
def test_training_goes_on_after_a_backward_pass(gradient: Any) -> None:
    config = ObjectiveConfig(depth=S, target=fixed, carry=0.5, gradient=gradient)
    objective = Objective(Ladder(), LadderGuide(), config)
    rollout = one_answer()
    for _ in range(3):
        result = objective(rollout)
        result.loss.backward()
        fresh = torch.where(result.rollout.age >= S, 0, result.rollout.age)
        rollout = result.rollout._replace(age=fresh)


def test_balance_shares_the_kl_between_prior_and_guide() -> None:
    """With the readout deaf, all gradient is the KL's: balance 1 moves the prior alone, 0 the guide alone."""
    choices: dict[str, Any] = {"gradient": "step", "carry": 0.0, "beta": 1.0}
    assert receivers(Ladder(read_at=9), "pq", balance=1.0, **choices) == "p2 p3"
    assert receivers(Ladder(read_at=9), "pq", balance=0.0, **choices) == "q2 q3"
    assert receivers(Ladder(read_at=9), "pq", balance=0.8, **choices) == "p2 p3 q2 q3"


@pytest.mark.parametrize("gradient", ["step", "full"])
def test_a_balanced_kl_has_the_value_of_the_plain_one_where_the_guide_acts_on_some_rows(gradient: str) -> None:
    """KL balancing divides the gradient; the charge stays what it is, 0 where a prior draw carries on."""
    choices: dict[str, Any] = {"gradient": gradient, "carry": 0.5, "beta": 1.0, "particles": 6}
    plain = loss_of(**choices)
    assert loss_of(balance=0.8, **choices) == pytest.approx(plain, rel=1e-6)
    assert loss_of(balance=0.5, **choices) == pytest.approx(plain, rel=1e-6)
    assert plain != pytest.approx(loss_of(**choices | {"carry": 0.0}), rel=1e-3)


def loss_of(**choices: Any) -> float:
    torch.manual_seed(0)
    config = ObjectiveConfig(depth=S, target=fixed, **{"carry": 1.0, "kl": "every"} | choices)
    return Objective(Ladder(), LadderGuide(), config)(one_answer()).loss.item()


def test_kl_last_leaves_out_the_first_transition() -> None:
    """KL(N(q + y, 0.49) || N(p, 1)) in closed form, mean over the two problems' answers."""
    chain, guide = Ladder(), LadderGuide()
    mean = torch.stack([(guide.q[0] + y - chain.p[0]) ** 2 for y in (1, 2)]).sum(1).mean() / 2
    kl = mean + D * (0.49 - 1 - math.log(0.49)) / 2
    choices: dict[str, Any] = {"gradient": "step", "carry": 0.0}
    difference = loss_of(kl="every", beta=0.3, **choices) - loss_of(kl="last", beta=0.3, **choices)
    assert difference == pytest.approx(0.3 * kl.item(), rel=1e-5)


@pytest.mark.parametrize("carry", [0.0, 1.0])
def test_what_the_gradient_does_not_reach_is_left_to_the_prior_and_not_charged(carry: float) -> None:
    charges = [loss_of(kl=kl, gradient="transition", carry=carry, beta=1.0) for kl in ("every", "last")]
    assert charges[0] == charges[1]


def test_beta_weighs_the_kl_and_warms_up() -> None:
    none, half, one = (loss_of(beta=beta, gradient="step") for beta in (0.0, 0.5, 1.0))
    assert half - none == pytest.approx(one - half, rel=1e-4) and one > none
    objective = Objective(Ladder(), LadderGuide(), ObjectiveConfig(beta=0.4, warm_up=4, target=fixed))
    betas = []
    for objective.optimiser_step in range(6):
        betas.append(objective.beta)
    assert betas == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])


def test_heads_learn_and_send_no_gradient_into_the_core() -> None:
    x, y = torch.tensor([[1, 2], [0, 3]]), torch.tensor([[[1, 2]], [[3, 0]]])
    zeros = torch.zeros(2, dtype=torch.long)
    gradients = []
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        chain = GRAM(GRAMConfig(2, 5, 4, dim=8, heads=2, blocks=1, hidden=8, refinements=1))
        nn.init.normal_(chain.judge.out.weight)
        objective = Objective(chain, GRAMGuide(chain), ObjectiveConfig(depth=1, carry=1.0, heads=weight))
        objective(Rollout(x, y, torch.ones(2, dtype=torch.long), zeros[None], zeros)).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in objective.named_parameters()})
    without, with_heads = gradients
    for name, gradient in with_heads.items():
        if name.startswith("chain.judge"):
            assert bool(gradient.any()) and not bool(without[name].any())
            assert name != "chain.judge.out.weight" or bool(gradient.any(1).all())  # both value and halt
        elif gradient is not None:
            assert torch.equal(gradient, without[name]), name


BAD = [
    ({"depth": 0}, "depth must be at least 1, got 0"),
    ({"particles": 0}, "particles must be at least 1, got 0"),
    ({"warm_up": -1}, "warm_up must be at least 0, got -1"),
    ({"beta": -0.1}, "beta must be at least 0, got -0.1"),
    ({"heads": -1.0}, "heads must be at least 0, got -1.0"),
    ({"carry": 1.5}, "carry must be between 0 and 1, got 1.5"),
    ({"balance": 2.0}, "balance must be None or between 0 and 1, got 2.0"),
    ({"kl": "first"}, "kl must be one of every, last, got 'first'"),
    ({"gradient": "none"}, "gradient must be one of transition, step, full, got 'none'"),
    ({"bound": "vae"}, "bound must be one of elbo, iwae, fivo, got 'vae'"),
    ({"ess_threshold": -1.0}, "ess_threshold must be at least 0, got -1.0"),
]
IWAE: dict[str, Any] = {"bound": "iwae", "beta": 1.0, "gradient": "step", "target": fixed}
NO_IWAE: list[dict[str, Any]] = [
    {"beta": 0.3},
    {"gradient": "transition"},
    {"kl": "last"},
    {"balance": 0.5},
    {"warm_up": 10},
    {"target": nearest},
]


@pytest.mark.parametrize(("choices", "message"), BAD, ids=[next(iter(choices)) for choices, _ in BAD])
def test_bad_options_are_named_in_a_sentence(choices: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        ObjectiveConfig(**choices)
    assert str(error.value) == message


@pytest.mark.parametrize("change", NO_IWAE, ids=[next(iter(change)) for change in NO_IWAE])
def test_iwae_needs_plain_kl_beta_one_and_a_gradient_through_the_step(change: dict[str, Any]) -> None:
    ObjectiveConfig(**IWAE)
    with pytest.raises(ValueError, match='^bound="iwae" needs plain KL at every transition, beta=1, gradient='):
        ObjectiveConfig(**IWAE | change)


def test_what_needs_a_guide_says_so() -> None:
    with pytest.raises(ValueError, match="carry below 1 continues from the guide's draws, so it needs a guide"):
        Objective(Ladder(), None, ObjectiveConfig(carry=0.5, target=fixed))
    with pytest.raises(ValueError, match="target=attributed asks the guide .* needs a guide"):
        Objective(Ladder(), None, ObjectiveConfig(carry=1.0, target=attributed))
    Objective(Ladder(), None, ObjectiveConfig(carry=1.0, target=fixed))


# -- losses are bounds ------------------------------------------------------------------------------------


class Dice(Chain):
    """eps is the next of three states: h_1 ~ first, h_t ~ rows[h_{t-1}]; y ~ answer[h], one token of two."""

    def __init__(self, transitions: int = 1) -> None:
        super().__init__()
        self.transitions = transitions
        self.first = nn.Parameter(torch.tensor([0.5, 0.3, 0.2]).log())
        self.rows = nn.Parameter(torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.1, 0.8, 0.1]]).log())
        self.answer = nn.Parameter(torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]]).log())

    def initial(self, context: Tensor) -> Tensor:
        return torch.zeros(len(context), dtype=torch.long)

    def propose(self, state: Tensor, context: Tensor, t: int) -> Tensor:
        return self.first.expand(*state.shape, 3) if t == 0 else self.rows[state]

    def prior(self, proposal: Tensor, t: int) -> dist.TorchDistribution:
        return dist.Categorical(logits=proposal)

    def move(self, proposal: Tensor, eps: Tensor) -> Tensor:
        return eps

    def readout(self, state: Tensor) -> Tokens:
        return Tokens(self.answer[state][..., None, :])


class DiceGuide(Guide):
    """Log odds for each answer, added to the prior's."""

    def __init__(self) -> None:
        super().__init__()
        self.odds = nn.Parameter(torch.tensor([[1.5, -0.4, 0.3], [-1.0, 0.2, 1.3]]))

    def posterior(self, proposal: Tensor, evidence: Tensor, t: int) -> dist.TorchDistribution:
        return dist.Categorical(logits=proposal + self.odds[evidence[..., 0].long()])


Y = 1  # the answer the bounds are about


class Exact:
    """What the tables say, summed over all paths of float64 probabilities."""

    def __init__(self, transitions: int = 1) -> None:
        chain, guide = Dice(transitions).double(), DiceGuide().double()
        self.transitions, self.first, self.rows = transitions, chain.first.exp(), chain.rows.exp()
        self.seen = chain.answer.exp()[:, Y]  # p(y | h)
        self.odds = guide.odds

    def q(self, p: Tensor, m: int = Y) -> Tensor:
        """The guide's law for answer m where the prior is p, `[..., 3]`."""
        return (p.log() + self.odds[m]).softmax(-1)

    def marginal(self, depth: int) -> Tensor:
        """p(h) after so many depth steps."""
        p = self.first
        for _ in range(depth * self.transitions - 1):
            p = p @ self.rows
        return p

    def log_p(self, depth: int) -> float:
        """log p(y | x), y read after `depth` steps."""
        return (self.marginal(depth) @ self.seen).log().item()

    def step_bound(self, depth: int) -> float:
        """The bound of depth step `depth` with T = 1: prior states before, the guide in the last transition."""
        rows = self.first[None] if depth == 1 else self.rows
        weights = torch.ones(1).double() if depth == 1 else self.marginal(depth - 1)
        q = self.q(rows)
        return (weights @ (q * (self.seen.log() - (q / rows).log())).sum(-1)).item()

    def log_p_every(self, depth: int) -> float:
        """log p(y at every depth step | x), T = 1."""
        total = 0.0
        for path in itertools.product(range(3), repeat=depth):
            p = self.first[path[0]] * self.seen[path[0]]
            for before, after in itertools.pairwise(path):
                p = p * self.rows[before, after] * self.seen[after]
            total += p.item()
        return math.log(total)


def step_losses(depth: int, particles: int, repeats: int, problems: int, **choices: Any) -> Tensor:
    """Losses of the last of `depth` steps (with "full", of all together) in independent runs, float64 [repeats]."""
    transitions = choices.pop("transitions", 1)
    choices = {"carry": 1.0, "beta": 1.0, "target": fixed} | choices
    config = ObjectiveConfig(depth=depth, particles=particles, **choices)
    objective = Objective(Dice(transitions), DiceGuide(), config)
    zeros = torch.zeros(problems, dtype=torch.long)
    losses = []
    for seed in range(repeats):
        torch.manual_seed(seed)
        rollout = Rollout(
            torch.zeros(problems, 1), torch.full((problems, 1, 1), Y), zeros + 1, zeros.expand(particles, -1), zeros
        )
        with torch.no_grad():
            for _ in range(1 if config.gradient == "full" else depth):
                result = objective(rollout)
                rollout = result.rollout
        losses.append(result.loss.item())
    return torch.tensor(losses, dtype=torch.float64)


def mean_and_error(values: Tensor) -> tuple[float, float]:
    return values.mean().item(), values.std().item() / len(values) ** 0.5


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("gradient", ["transition", "step"])
def test_the_step_loss_on_prior_states_is_an_honest_bound(depth: int, gradient: str) -> None:
    """One two-sided comparison each (with the bound enumerated), and the bound is below log p(y | x)."""
    exact = Exact()
    mean, error = mean_and_error(step_losses(depth, 1, 40, 2_000, gradient=gradient))
    assert error < 0.005
    assert abs(-mean - exact.step_bound(depth)) < 4 * error
    assert -mean < exact.log_p(depth) - 4 * error  # strictly: this guide is not the posterior


def test_more_transitions_keep_the_bound_below() -> None:
    """One-sided; T = 3, so that two transitions of the step are left to the prior."""
    for depth in (1, 2):
        losses = step_losses(depth, 1, 40, 1_000, transitions=3, gradient="step")
        mean, error = mean_and_error(losses)
        assert -mean < Exact(3).log_p(depth) - 4 * error


def test_states_of_the_posterior_leak_the_answer() -> None:
    """The reverse: with carry = 0 the second step's loss claims more than log p(y | x); that is why carry = 1."""
    mean, error = mean_and_error(step_losses(2, 1, 40, 2_000, gradient="step", carry=0.0))
    honest, _ = mean_and_error(step_losses(2, 1, 40, 2_000, gradient="step", carry=1.0))
    assert -mean > -honest + 4 * error


@pytest.mark.parametrize("depth", [1, 2])
def test_iwae_lies_between_elbo_and_the_likelihood(depth: int) -> None:
    """Four one-sided comparisons a depth: 2e-4 false alarms in all. More particles are tighter."""
    exact = Exact().log_p(depth)
    elbo = -mean_and_error(step_losses(depth, 1, 40, 2_000, gradient="step"))[0]
    four, four_error = mean_and_error(-step_losses(depth, 4, 40, 1_000, **IWAE_STEP))
    many, many_error = mean_and_error(-step_losses(depth, 64, 40, 200, **IWAE_STEP))
    assert elbo < four - 4 * four_error < four + 4 * four_error < many
    assert four < exact + 4 * four_error and many < exact + 4 * many_error
    assert exact - many < 0.02


IWAE_STEP: dict[str, Any] = {"bound": "iwae", "gradient": "step"}


def test_a_whole_trajectory_bounds_y_at_every_depth_step() -> None:
    """With gradient="full" and carry = 0 the bound is that of the training program: two one-sided comparisons."""
    exact = Exact().log_p_every(2)
    choices: dict[str, Any] = {"gradient": "full", "carry": 0.0}
    elbo, elbo_error = mean_and_error(-step_losses(2, 1, 40, 2_000, **choices))
    many, many_error = mean_and_error(-step_losses(2, 256, 40, 50, **choices, bound="iwae"))
    assert elbo < exact - 4 * elbo_error
    assert exact - 0.02 < many < exact + 4 * many_error


@pytest.mark.parametrize("carry", [1.0, 0.5, 0.0])
def test_iwae_weighs_only_what_the_guide_drew(carry: float) -> None:
    """T = 3 and one depth step: whatever share of first transitions is the guide's, the likelihood is the same.

    With 4,096 particles the bound is within 0.01 of it. One one-sided comparison each.
    """
    exact = Exact(3).log_p(1)
    mean, error = mean_and_error(-step_losses(1, 4_096, 20, 20, transitions=3, carry=carry, **IWAE_STEP))
    assert exact - 0.01 < mean < exact + 4 * error


FIVO: dict[str, Any] = {"bound": "fivo", "gradient": "full", "carry": 0.0}


def test_fivo_that_never_resamples_is_iwae() -> None:
    """Same seeds, same draws; float32 sums in another order."""
    choices: dict[str, Any] = {"gradient": "full", "carry": 0.0}
    iwae = step_losses(3, 8, 5, 20, **choices, bound="iwae")
    assert torch.allclose(step_losses(3, 8, 5, 20, **FIVO, ess_threshold=0.0), iwae, atol=1e-5)
    assert not torch.allclose(step_losses(3, 8, 5, 20, **FIVO, ess_threshold=1.0), iwae, atol=1e-3)


@pytest.mark.parametrize("ess_threshold", [0.5, 1.0])
def test_fivo_is_the_log_of_an_unbiased_estimate(ess_threshold: float) -> None:
    """One problem a run, so that a loss is one -log Z: E[Z] = p(y at every step); one two-sided comparison each."""
    losses = step_losses(3, 4, 800, 1, **FIVO, ess_threshold=ess_threshold)
    assert losses.std() <= 0.5  # else a mean of Z says little
    mean, error = mean_and_error((-losses).exp())
    assert abs(mean - math.exp(Exact().log_p_every(3))) < 4 * error


def test_fivo_has_gradients_for_chain_and_guide() -> None:
    torch.manual_seed(0)
    chain, guide = Ladder(), LadderGuide()
    config = ObjectiveConfig(depth=S, target=fixed, beta=1.0, particles=2, **FIVO)
    Objective(chain, guide, config)(one_answer()).loss.backward()
    for parameter in (*chain.parameters(), *guide.parameters()):
        assert parameter.grad is not None and bool(parameter.grad.any())


@pytest.mark.parametrize("change", [{"carry": 0.5}, {"gradient": "step"}])
def test_fivo_filters_whole_trajectories_of_the_guide(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match='^bound="fivo" filters a whole trajectory'):
        ObjectiveConfig(**{"beta": 1.0, "target": fixed} | FIVO | change)


# -- targets ----------------------------------------------------------------------------------------------


def two_answers(particles: int, current: int = 0) -> Rollout:
    """One problem with both answers and one with answer 1 alone."""
    answers = torch.tensor([[[0], [1]], [[1], [1]]])
    target = torch.tensor([current, 0]).expand(particles, 2)
    return Rollout(torch.zeros(2, 1), answers, torch.tensor([2, 1]), target, torch.zeros(2, dtype=torch.long))


def paths_and_beliefs(particles: int, depth: int = 3, **choices: Any) -> tuple[Tensor, Tensor, Tensor]:
    """States `[S, N]` and beliefs `[S, N, 2]` of the first problem, targets `[S, N, B]`, under `attributed`."""
    torch.manual_seed(0)
    choices = {"carry": 1.0} | choices
    objective = Objective(Dice(), DiceGuide(), ObjectiveConfig(depth=depth, target=attributed, **choices))
    rollout, states, beliefs, targets = two_answers(particles), [], [], []
    for _ in range(depth):
        rollout = objective(rollout).rollout
        assert rollout.belief is not None
        states.append(rollout.state[:, 0])
        beliefs.append(rollout.belief[:, 0])
        targets.append(rollout.target)
    return torch.stack(states), torch.stack(beliefs), torch.stack(targets)


def scores_by_hand(path: Tensor) -> Tensor:
    """Σ_t log q(eps_t | u_t, y_m) / p(eps_t | u_t) + KL(p || q_m), for both answers, after every step: `[S, 2]`."""
    exact, total, scores = Exact(), torch.zeros(2).double(), []
    for t, state in enumerate(path.tolist()):
        p = exact.first if t == 0 else exact.rows[path[t - 1]]
        ratio = torch.stack([(exact.q(p, m) / p).log() for m in (0, 1)])  # [2, 3]
        total = total + ratio[:, state] - ratio @ p
        scores.append(total)
    return torch.stack(scores)


def test_the_belief_is_what_the_noise_says_of_both_answers() -> None:
    states, beliefs, _ = paths_and_beliefs(particles=8)
    for n in range(8):
        expected = scores_by_hand(states[:, n]).softmax(-1)
        torch.testing.assert_close(beliefs[:, n].double().softmax(-1), expected, rtol=0, atol=1e-5)
    assert len(states.unique(dim=1).T) > 3  # the paths differ, and with them the beliefs


def test_attributed_draws_from_the_belief() -> None:
    """20,000 particles, three depth steps, two-sided: 2e-4 false alarms in all."""
    _, beliefs, targets = paths_and_beliefs(particles=20_000)
    share = beliefs.softmax(-1)[..., 1]  # [S, N]
    chosen = (targets[..., 0] == 1).float()
    error = (share * (1 - share)).mean(1).sqrt() / 20_000**0.5
    assert bool(((chosen - share).mean(1).abs() < 4 * error).all())
    believers, doubters = (chosen[share > 0.5].mean(), chosen[share < 0.5].mean())
    assert believers > 0.5 > doubters  # not the mean share alone: each particle its own


def test_no_answer_starts_ahead() -> None:
    """Over prior noise the scores of both answers have mean 0: three two-sided comparisons, 2e-4."""
    _, beliefs, _ = paths_and_beliefs(particles=20_000)
    ahead = beliefs[..., 1] - beliefs[..., 0]
    assert bool((ahead.mean(1).abs() < 4 * ahead.std(1) / 20_000**0.5).all())
    assert bool((ahead.std(1) > 0.5).all())


def test_attributed_settles_in_the_last_part_of_a_run_and_other_rules_stay() -> None:
    def rule(target: Any, progress: float, settle: float = 0.3) -> Any:
        objective = Objective(Dice(), DiceGuide(), ObjectiveConfig(target=target, settle=settle))
        objective.progress = progress
        return objective.target

    assert rule(attributed, 0.74, settle=0.25) is attributed
    assert rule(attributed, 0.75, settle=0.25) is responsibilities
    assert rule(attributed, 1.0, settle=0.0) is attributed
    assert rule(nearest, 1.0) is nearest


def test_a_settling_run_follows_the_state_and_drops_the_belief() -> None:
    objective = Objective(Dice(), DiceGuide(), ObjectiveConfig(depth=2))
    objective.progress = 1.0
    assert objective(two_answers(particles=4)).rollout.belief is None


def test_an_only_answer_is_the_target_whatever_the_noise() -> None:
    _, _, targets = paths_and_beliefs(particles=50)
    assert not bool(targets[..., 1].any())


def test_a_draw_of_the_posterior_keeps_its_answer() -> None:
    _, _, targets = paths_and_beliefs(particles=200, carry=0.0)
    assert not bool(targets.any())  # as dealt at the start
    mixed = paths_and_beliefs(particles=200, carry=0.5)[2][..., 0]
    assert 0 < int(mixed.sum()) < mixed.numel()


def view(log_p: Tensor, current: int = 0) -> TargetView:
    return TargetView(lambda: log_p, None, torch.full(log_p.shape[:2], current))


def test_fixed_keeps_and_nearest_follows() -> None:
    log_p = torch.tensor([[[-1.0, -3.0, -2.0]], [[-9.0, -8.0, -0.1]], [[-5.0, -4.0, -torch.inf]]])
    assert fixed(view(log_p, current=2)).tolist() == [[2], [2], [2]]
    assert nearest(view(log_p)).tolist() == [[0], [2], [1]]


def test_responsibilities_draws_in_proportion() -> None:
    """Shares of 40,000 draws, two-sided at 4 standard errors for each of three answers: 2e-4."""
    torch.manual_seed(0)
    share = torch.tensor([0.7, 0.25, 0.05, 0.0])
    log_p = (share.log() - 3.0).expand(40_000, 1, 4)  # need not be normalised
    counts = responsibilities(view(log_p)).flatten().bincount(minlength=4) / 40_000
    assert bool(((counts - share).abs() <= 4 * (share * (1 - share) / 40_000).sqrt()).all())


def test_dealt_gives_each_answer_once_where_costs_are_decisive() -> None:
    """All particles like answer 0 best, and each likes one answer more than the others do: that one it gets."""
    torch.manual_seed(0)
    assignment = torch.tensor([[2, 0, 1, 3], [3, 1, 2, 0]]).T  # [N, B], both of them permutations
    log_p = 40.0 * torch.nn.functional.one_hot(assignment, 4) - 100.0
    log_p[..., 0] += 60.0
    assert nearest(view(log_p)).unique().tolist() == [0]
    assert torch.equal(dealt(view(log_p)), assignment)


def test_dealt_finds_an_assignment_that_no_single_round_finds() -> None:
    """Costs in which answers are contested; the best assignment is 50 nats ahead of the next."""
    torch.manual_seed(0)
    log_p = torch.tensor([[-80, -80, -20, -80], [-20, 0, -20, -20], [-70, -60, -20, 0], [-40, -70, -30, -80]])
    assert dealt(view(log_p[:, None].float())).flatten().tolist() == [2, 1, 3, 0]


def test_dealt_gives_equal_shares_where_all_like_one_answer() -> None:
    """20,000 particles, two answers: two-sided at 4 standard errors, 6e-5. Padding is never dealt."""
    torch.manual_seed(0)
    log_p = torch.tensor([-0.1, -7.0, -torch.inf]).expand(20_000, 1, 3) + torch.randn(20_000, 1, 1)
    drawn = dealt(view(log_p)).flatten().bincount(minlength=3)
    assert int(drawn[2]) == 0
    assert abs(int(drawn[0]) - 10_000) < 4 * math.sqrt(20_000 / 4)
