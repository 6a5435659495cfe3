"""State-space models as chains: their evidence is known exactly, so inference can be tested against it.

    h_1 ~ law of the first state       eps_1
    h_t ~ p(h_t | h_{t-1})             eps_t, one transition a step (T = 1): depth is time
    x_t ~ p(x_t | h_t)                 observed inside the step, site `obs_t`

The problem x is the observed series; NaN (for symbols: below 0) was not observed. Past its end a step samples what
it would observe, and the chain forecasts. Nothing is random before the first step: the law of h_1 is the prior at
t = 0.

The smoothers are guides that look ahead: q(eps_t | u_t, x_{t:}) ∝ p(eps_t | u_t) ψ_t(h_t)^power, with
ψ_t(h) = p(x_{t:} | h) from a backward pass. At power 1 this is the exact conditional law, and the weight of
every trajectory is the evidence itself, whatever was drawn; at power 0 it is the prior.

Sources: Kalman, "A new approach to linear filtering and prediction problems", 1960; Rabiner, "A tutorial on
hidden Markov models", 1989, section III; Chopin and Papaspiliopoulos, "An Introduction to Sequential Monte
Carlo", 2020, chapters 5 (look-ahead as a change of measure), 6 (finite spaces), 7 (linear-Gaussian models).
"""

import math
from typing import NamedTuple

import pyro
import torch
from pyro import distributions as dist
from torch import Tensor

from probgram.chain import Chain, Guide


class _StateSpace(Chain):
    """A chain whose constants are tables, and whose step t observes x_t."""

    def _keep(self, **tables: tuple[Tensor, tuple[int, ...]]) -> None:
        for name, (table, shape) in tables.items():
            if tuple(table.shape) != shape:
                raise ValueError(f"{name} must have shape {list(shape)}, got {list(table.shape)}")
            self.register_buffer(name, table.clone())  # equal tables given as one tensor would count once

    def step(self, state: Tensor, t: int, context: Tensor) -> Tensor:
        """One transition, then x_t: observed as far as the series `[B, time, Y]` goes, sampled past its end."""
        state = super().step(state, t, context)
        law = self.readout(state)
        if t >= context.shape[1]:
            pyro.sample(f"obs_{t}", law)
        elif context.is_floating_point():  # NaN is for the handlers that weigh
            pyro.sample(f"obs_{t}", law, obs=context[:, t])
        else:
            pyro.sample(f"obs_{t}", law.mask(context[:, t, 0] >= 0), obs=context[:, t].clamp(min=0))
        return state


class LinearGaussian(_StateSpace):
    """h_1 ~ N(m, P);  h_t = A h_{t-1} + eps_t, eps_t ~ N(0, Q);  x_t ~ N(C h_t, R).

    The state is h `[..., B, D]`, the proposal u = A h (at first u = m), the move u + eps.

    Args:
        dynamics: A, `[D, D]`.
        noise: Q, positive definite, `[D, D]`.
        emission: C, `[Y, D]`.
        emission_noise: R, positive definite, `[Y, Y]`.
        mean: m, `[D]`; None: 0.
        covariance: P, positive definite, `[D, D]`; None: Q.
    """

    dynamics: Tensor
    noise: Tensor
    emission: Tensor
    emission_noise: Tensor
    mean: Tensor
    covariance: Tensor

    def __init__(
        self,
        dynamics: Tensor,
        noise: Tensor,
        emission: Tensor,
        emission_noise: Tensor,
        mean: Tensor | None = None,
        covariance: Tensor | None = None,
    ) -> None:
        super().__init__()
        y, d = emission.shape
        self._keep(dynamics=(dynamics, (d, d)), noise=(noise, (d, d)), emission=(emission, (y, d)))
        self._keep(emission_noise=(emission_noise, (y, y)))
        self._keep(mean=(noise.new_zeros(d) if mean is None else mean, (d,)))
        self._keep(covariance=(noise.clone() if covariance is None else covariance, (d, d)))

    def encode(self, x: Tensor) -> Tensor:
        """The series itself, `[B, time, Y]`."""
        if x.dim() != 3 or x.shape[-1] != len(self.emission):
            raise ValueError(f"x must be [B, time, {len(self.emission)}], got shape {list(x.shape)}")
        return x.to(self.mean)

    def initial(self, context: Tensor) -> Tensor:
        """m, from which the first transition departs."""
        return self.mean.expand(len(context), -1)

    def propose(self, state: Tensor, context: Tensor, t: int) -> Tensor:
        """Predict, u = A h; the first time u = m."""
        return state if t == 0 else state @ self.dynamics.T

    def prior(self, proposal: Tensor, t: int) -> dist.TorchDistribution:
        """p(eps) = N(0, Q); the first time N(0, P)."""
        covariance = self.covariance if t == 0 else self.noise
        return dist.MultivariateNormal(torch.zeros_like(proposal), covariance)

    def readout(self, state: Tensor) -> dist.TorchDistribution:
        """p(x_t | h_t) = N(C h_t, R)."""
        return dist.MultivariateNormal(state @ self.emission.T, self.emission_noise)

    def log_transition(self, state: Tensor, next_state: Tensor, t: int, context: Tensor) -> Tensor:
        """Log p(h_{t+1} | h_t) of the draw at step t, which at t = 0 ignores `state`; broadcasts."""
        proposal = self.mean.expand_as(state) if t == 0 else self.propose(state, context, t)
        return self.prior(self.mean, t).log_prob(next_state - proposal)

    def log_evidence(self, x: Tensor) -> Tensor:
        """Exact log p(x) in nats by the Kalman filter, float64 `[B]`; x `[B, time, Y]`."""
        x = self.encode(x).double()
        a, q, c, r, mean, p = (table.double() for table in self.buffers())
        total = x.new_zeros(len(x))
        p = p.expand(len(x), *p.shape)  # differs between problems where something is missing
        for t in range(x.shape[1]):
            seen = (~x[:, t].isnan()).to(x)  # [B, Y]
            emission = seen[..., None] * c  # a missing element becomes an independent N(0, 1) at its mean
            noise = seen[..., None] * r * seen[:, None] + torch.diag_embed(1 - seen)
            innovation = torch.where(seen > 0, x[:, t] - mean @ c.T, 0.0)
            spread = emission @ p @ emission.mT + noise
            total = total + dist.MultivariateNormal(torch.zeros_like(innovation), spread).log_prob(innovation)
            total = total + 0.5 * math.log(2 * math.pi) * (1 - seen).sum(-1)  # whose density is taken out again
            gain = torch.linalg.solve(spread, emission @ p).mT  # P Cᵀ S⁻¹, [B, D, Y]
            mean = (mean + (gain @ innovation[..., None])[..., 0]) @ a.T
            p = a @ (p - gain @ emission @ p) @ a.T + q
        return total


class GaussianLookahead(NamedTuple):
    """log ψ_t(h) = -½ hᵀ Λ_t h + η_tᵀ h + const for each t, and the Cholesky factors of q's covariances."""

    precision: Tensor  # Λ, [time, D, D]
    shift: Tensor  # η, [time, B, D]
    scale_tril: Tensor  # [time, D, D]


class LinearGaussianSmoother(Guide):
    """q(eps_t | u_t, x_{t:}) of a `LinearGaussian`, from a backward information filter; see the first lines."""

    def __init__(self, chain: LinearGaussian, power: float = 1.0) -> None:
        super().__init__()
        self.chain, self.power = chain, power

    def encode(self, y: Tensor) -> GaussianLookahead:
        """Run the backward pass over the series `[B, time, Y]`, in float64."""
        x = self.chain.encode(y).double()
        if bool(x.isnan().any()):
            raise ValueError("the series must be observed throughout: this smoother cannot leave an x_t out")
        a, q, c, r, _, p = (table.double() for table in self.chain.buffers())
        seen, identity = torch.linalg.solve(r, c), torch.eye(len(a)).to(q)  # R⁻¹ C, [Y, D]
        future, future_shift = torch.zeros_like(q), x.new_zeros(len(x), len(a))
        rows = []
        for t in reversed(range(x.shape[1])):
            precision, shift = c.T @ seen + future, x[:, t] @ seen + future_shift
            inverse = torch.linalg.inv(p if t == 0 else q)
            scale_tril = torch.linalg.cholesky(torch.linalg.inv(inverse + self.power * precision))
            rows.append((precision, shift, scale_tril))
            # Integrate eps_t out, then write the message about h_t as one about h_{t-1}.
            kept = identity - precision @ torch.linalg.inv(inverse + precision)
            future, future_shift = a.T @ kept @ precision @ a, shift @ kept.T @ a
        return GaussianLookahead(*(torch.stack(part[::-1]).to(q) for part in zip(*rows, strict=True)))

    def posterior(self, proposal: Tensor, evidence: GaussianLookahead, t: int) -> dist.TorchDistribution:
        """N(V power (η_t - Λ_t u), V) with V⁻¹ = Q⁻¹ + power Λ_t; past the end, the prior."""
        if t >= len(evidence.shift):
            return self.chain.prior(proposal, t)
        precision, shift, scale_tril = (part[t].to(proposal) for part in evidence)
        score = self.power * (shift - proposal @ precision)
        return dist.MultivariateNormal(score @ scale_tril @ scale_tril.T, scale_tril=scale_tril)


class HiddenMarkov(_StateSpace):
    """h_1 ~ first;  h_t ~ rows[h_{t-1}];  x_t ~ emission[h_t], all categorical.

    The state is an index `[..., B]`, and eps is the next state: the proposal is the row of log probabilities
    `[..., B, K]` that it is drawn from.

    Args:
        first: probabilities of the first state, `[K]`.
        rows: transition probabilities from each state, `[K, K]`.
        emission: probabilities of the V symbols in each state, `[K, V]`.
    """

    first: Tensor
    rows: Tensor
    emission: Tensor

    def __init__(self, first: Tensor, rows: Tensor, emission: Tensor) -> None:
        super().__init__()
        k, v = emission.shape
        self._keep(first=(first.log(), (k,)), rows=(rows.log(), (k, k)), emission=(emission.log(), (k, v)))

    def encode(self, x: Tensor) -> Tensor:
        """The series `[B, time]` as int64 `[B, time, 1]`: an answer of one token a step."""
        if x.dim() != 2 or x.is_floating_point():
            raise ValueError(f"x must be integers [B, time], got {x.dtype} of shape {list(x.shape)}")
        return x.long()[..., None]

    def initial(self, context: Tensor) -> Tensor:
        """A stand-in; the first transition does not look at it."""
        return context.new_zeros(len(context))

    def propose(self, state: Tensor, context: Tensor, t: int) -> Tensor:
        """The row that the next state is drawn from."""
        return self.first.expand(*state.shape, -1) if t == 0 else self.rows[state]

    def prior(self, proposal: Tensor, t: int) -> dist.TorchDistribution:
        """p(h_t | h_{t-1})."""
        return dist.Categorical(logits=proposal)

    def move(self, proposal: Tensor, eps: Tensor) -> Tensor:
        """The draw is the state."""
        return eps

    def readout(self, state: Tensor) -> dist.TorchDistribution:
        """p(x_t | h_t), one token."""
        return dist.Categorical(logits=self.emission[state][..., None, :]).to_event(1)

    def log_transition(self, state: Tensor, next_state: Tensor, t: int, context: Tensor) -> Tensor:
        """Log p(h_{t+1} | h_t) of the draw at step t, which at t = 0 ignores `state`; broadcasts."""
        state, next_state = torch.broadcast_tensors(state, next_state)
        return self.first[next_state] if t == 0 else self.rows[state, next_state]

    def log_evidence(self, x: Tensor) -> Tensor:
        """Exact log p(x) in nats by the forward algorithm, float64 `[B]`; x `[B, time]`."""
        first, rows, emission = (table.double() for table in self.buffers())
        seen = _seen(emission, self.encode(x)[..., 0])
        forward = first + seen[:, 0]
        for t in range(1, x.shape[1]):
            forward = (forward[..., None] + rows).logsumexp(-2) + seen[:, t]
        return forward.logsumexp(-1)


class HiddenMarkovSmoother(Guide):
    """q(h_t | h_{t-1}, x_{t:}) of a `HiddenMarkov`, from the backward algorithm; see the first lines."""

    def __init__(self, chain: HiddenMarkov, power: float = 1.0) -> None:
        super().__init__()
        self.chain, self.power = chain, power

    def encode(self, y: Tensor) -> Tensor:
        """Run the backward pass over the series `[B, time]`: log ψ_t(h), float64 `[time, B, K]`."""
        _, rows, emission = (table.double() for table in self.chain.buffers())
        seen = _seen(emission, self.chain.encode(y)[..., 0])
        lookahead = [seen[:, -1]]
        for t in reversed(range(seen.shape[1] - 1)):
            lookahead.append(seen[:, t] + (lookahead[-1][:, None] + rows).logsumexp(-1))
        return torch.stack(lookahead[::-1]).clamp(min=-1e30)  # finite: power 0 of nothing is 1

    def posterior(self, proposal: Tensor, evidence: Tensor, t: int) -> dist.TorchDistribution:
        """Categorical in proportion to p(h_t | h_{t-1}) ψ_t(h_t)^power; past the end, the prior."""
        if t >= len(evidence):
            return self.chain.prior(proposal, t)
        return dist.Categorical(logits=proposal + (self.power * evidence[t]).to(proposal))


def _seen(emission: Tensor, series: Tensor) -> Tensor:
    """Log p(x_t | h_t) for each state, `[B, time, K]`; 0 where nothing was observed."""
    return torch.where(series[..., None] < 0, 0.0, emission.T[series.clamp(min=0)])
