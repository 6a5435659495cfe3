"""State-space models as chains: their evidence is known exactly, so inference can be tested against it.

    h_1 ~ law of the first state       eps_1
    h_t ~ p(h_t | h_{t-1})             eps_t, one transition a step (T = 1): depth is time
    x_t ~ p(x_t | h_t)                 observed inside the step, site `obs`

The problem x is the observed series; NaN (for symbols: below 0) was not observed. Past its end nothing is, and the
chain forecasts by its readout. Nothing is random before the first step: the law of h_1 is the prior at t = 0.

The twin of `probgram.models.state_space`, where t may be traced. The smoothers are guides that look ahead:
q(eps_t | u_t, x_{t:}) ∝ p(eps_t | u_t) ψ_t(h_t)^power, with ψ_t(h) = p(x_{t:} | h) from a backward pass. At power 1
this is the exact conditional law, and the weight of every trajectory is the evidence itself, whatever was drawn; at
power 0 it is the prior.

Sources: Kalman, "A new approach to linear filtering and prediction problems", 1960; Rabiner, "A tutorial on
hidden Markov models", 1989, section III; Chopin and Papaspiliopoulos, "An Introduction to Sequential Monte
Carlo", 2020, chapters 5 (look-ahead as a change of measure), 6 (finite spaces), 7 (linear-Gaussian models).
"""

import math
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array

from probgram.models.on_jax.chain import Chain, Guide


class _StateSpace(Chain):
    """A chain whose constants are tables, and whose step t observes x_t."""

    def step(self, state: Array, t: Any, context: Array) -> Array:
        """One transition, then x_t: observed as far as the series `[B, time, Y]` goes."""
        state = super().step(state, t, context)
        time = context.shape[1]
        observed, row = t < time, context[:, jnp.minimum(t, time - 1)]
        if not jnp.issubdtype(row.dtype, jnp.floating):  # NaN is for the handlers that weigh
            observed, row = observed & (row[:, 0] >= 0), row.clip(min=0)
        numpyro.sample("obs", self.readout(state).mask(observed), obs=row)
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

    buffers: ClassVar[tuple[str, ...]] = (
        "dynamics",
        "noise",
        "emission",
        "emission_noise",
        "mean",
        "covariance",
    )
    dynamics: Array
    noise: Array
    emission: Array
    emission_noise: Array
    mean: Array
    covariance: Array

    def __init__(
        self,
        dynamics: Any,
        noise: Any,
        emission: Any,
        emission_noise: Any,
        mean: Any = None,
        covariance: Any = None,
    ) -> None:
        y, d = np.shape(emission)
        self.dynamics = _table("dynamics", dynamics, (d, d))
        self.noise = _table("noise", noise, (d, d))
        self.emission = _table("emission", emission, (y, d))
        self.emission_noise = _table("emission_noise", emission_noise, (y, y))
        self.mean = jnp.zeros(d, self.noise.dtype) if mean is None else _table("mean", mean, (d,))
        self.covariance = self.noise if covariance is None else _table("covariance", covariance, (d, d))

    def encode(self, x: Any) -> Array:
        """The series itself, `[B, time, Y]`."""
        if np.ndim(x) != 3 or np.shape(x)[-1] != len(self.emission):
            raise ValueError(f"x must be [B, time, {len(self.emission)}], got shape {list(np.shape(x))}")
        return jnp.asarray(x, self.mean.dtype)

    def initial(self, context: Array) -> Array:
        """m, from which the first transition departs."""
        return jnp.broadcast_to(self.mean, (len(context), *self.mean.shape))

    def propose(self, state: Array, context: Array, t: Any) -> Array:
        """Predict, u = A h; the first time u = m."""
        return jnp.where(t == 0, state, state @ self.dynamics.T)

    def prior(self, proposal: Array, t: Any) -> dist.Distribution:
        """p(eps) = N(0, Q); the first time N(0, P)."""
        return dist.MultivariateNormal(jnp.zeros_like(proposal), scale_tril=self.scale_tril(t))

    def scale_tril(self, t: Any) -> Array:
        """The Cholesky factor of Q, `[D, D]`; the first time that of P."""
        return jnp.where(t == 0, jnp.linalg.cholesky(self.covariance), jnp.linalg.cholesky(self.noise))

    def readout(self, state: Array) -> dist.Distribution:
        """p(x_t | h_t) = N(C h_t, R)."""
        return dist.MultivariateNormal(state @ self.emission.T, self.emission_noise)

    def log_transition(self, state: Array, next_state: Array, t: Any, context: Array) -> Array:
        """Log p(h_{t+1} | h_t) of the draw at step t, which at t = 0 ignores `state`; broadcasts."""
        proposal = jnp.where(t == 0, self.mean, state @ self.dynamics.T)
        return self.prior(self.mean, t).log_prob(next_state - proposal)

    def log_evidence(self, x: Any) -> np.ndarray:
        """Exact log p(x) in nats by the Kalman filter, float64 `[B]`; x `[B, time, Y]`."""
        series = np.asarray(self.encode(x), np.float64)
        a, q, c, r, mean, p = (np.asarray(getattr(self, name), np.float64) for name in self.buffers)
        total = np.zeros(len(series))
        mean = np.broadcast_to(mean, (len(series), len(a)))
        p = np.broadcast_to(p, (len(series), *p.shape))  # differs between problems where something is missing
        for row in series.swapaxes(0, 1):
            seen = (~np.isnan(row)).astype(float)  # [B, Y]
            emission = seen[..., None] * c  # a missing element becomes an independent N(0, 1) at its mean
            noise = seen[..., None] * r * seen[:, None] + np.eye(len(r)) * (1 - seen)[..., None]
            innovation = np.where(seen > 0, row - mean @ c.T, 0.0)[..., None]  # [B, Y, 1]
            spread = emission @ p @ emission.swapaxes(-1, -2) + noise
            quadratic = (innovation * np.linalg.solve(spread, innovation)).sum((-1, -2))
            # The density of a missing element is left out.
            total = total - 0.5 * (quadratic + np.linalg.slogdet(spread)[1] + math.log(2 * math.pi) * seen.sum(-1))
            gain = np.linalg.solve(spread, emission @ p).swapaxes(-1, -2)  # P Cᵀ S⁻¹, [B, D, Y]
            mean = (mean + (gain @ innovation)[..., 0]) @ a.T
            p = a @ (p - gain @ emission @ p) @ a.T + q
        return total


class GaussianLookahead(NamedTuple):
    """log ψ_t(h) = -½ hᵀ Λ_t h + η_tᵀ h + const for each t, and the Cholesky factors of q's covariances."""

    precision: Array  # Λ, [time, D, D]
    shift: Array  # η, [time, B, D]
    scale_tril: Array  # [time, D, D]


class LinearGaussianSmoother(Guide):
    """q(eps_t | u_t, x_{t:}) of a `LinearGaussian`, from a backward information filter; see the first lines."""

    buffers: ClassVar[tuple[str, ...]] = ("chain",)
    chain: LinearGaussian
    power: float = eqx.field(static=True, default=1.0)

    def encode(self, y: Any) -> GaussianLookahead:
        """Run the backward pass over the series `[B, time, Y]`, in the widest type JAX is set to."""
        x = self.chain.encode(y).astype(float)
        if not isinstance(y, jax.core.Tracer) and np.isnan(y).any():
            raise ValueError("the series must be observed throughout: this smoother cannot leave an x_t out")
        a, q, c, r, _, p = (getattr(self.chain, name).astype(float) for name in self.chain.buffers)
        seen, identity = jnp.linalg.solve(r, c), jnp.eye(len(a))  # R⁻¹ C, [Y, D]
        first, later = jnp.linalg.inv(p), jnp.linalg.inv(q)

        def back(message: tuple[Array, Array], row: tuple[Array, Array]) -> tuple[Any, GaussianLookahead]:
            t, x_t = row
            precision, shift = c.T @ seen + message[0], x_t @ seen + message[1]
            inverse = jnp.where(t == 0, first, later)
            scale_tril = jnp.linalg.cholesky(jnp.linalg.inv(inverse + self.power * precision))
            # Integrate eps_t out, then write the message about h_t as one about h_{t-1}.
            kept = identity - precision @ jnp.linalg.inv(inverse + precision)
            message = a.T @ kept @ precision @ a, shift @ kept.T @ a
            return message, GaussianLookahead(precision, shift, scale_tril)

        nothing = jnp.zeros_like(q), jnp.zeros((len(x), len(a)), x.dtype)
        rows = jnp.arange(x.shape[1]), jnp.swapaxes(x, 0, 1)
        return jax.lax.scan(back, nothing, rows, reverse=True)[1]

    def posterior(self, proposal: Array, evidence: GaussianLookahead, t: Any) -> dist.Distribution:
        """N(V power (η_t - Λ_t u), V) with V⁻¹ = Q⁻¹ + power Λ_t; past the end, the prior."""
        time = len(evidence.shift)
        row = jnp.minimum(t, time - 1)
        precision, shift, scale_tril = (part[row].astype(proposal.dtype) for part in evidence)
        score = self.power * (shift - proposal @ precision)
        mean = jnp.where(t < time, score @ scale_tril @ scale_tril.T, 0.0)
        return dist.MultivariateNormal(mean, scale_tril=jnp.where(t < time, scale_tril, self.chain.scale_tril(t)))


class HiddenMarkov(_StateSpace):
    """h_1 ~ first;  h_t ~ rows[h_{t-1}];  x_t ~ emission[h_t], all categorical.

    The state is an index `[..., B]`, and eps is the next state: the proposal is the row of log probabilities
    `[..., B, K]` that it is drawn from.

    Args:
        first: probabilities of the first state, `[K]`.
        rows: transition probabilities from each state, `[K, K]`.
        emission: probabilities of the V symbols in each state, `[K, V]`.
    """

    buffers: ClassVar[tuple[str, ...]] = ("first", "rows", "emission")
    first: Array
    rows: Array
    emission: Array

    def __init__(self, first: Any, rows: Any, emission: Any) -> None:
        k, v = np.shape(emission)
        self.first = jnp.log(_table("first", first, (k,)))
        self.rows = jnp.log(_table("rows", rows, (k, k)))
        self.emission = jnp.log(_table("emission", emission, (k, v)))

    def encode(self, x: Any) -> Array:
        """The series `[B, time]` as int32 `[B, time, 1]`: an answer of one token a step."""
        x = jnp.asarray(x)
        if x.ndim != 2 or not jnp.issubdtype(x.dtype, jnp.integer):
            raise ValueError(f"x must be integers [B, time], got {x.dtype} of shape {list(x.shape)}")
        return x.astype(jnp.int32)[..., None]

    def initial(self, context: Array) -> Array:
        """A stand-in; the first transition does not look at it."""
        return jnp.zeros(len(context), jnp.int32)

    def propose(self, state: Array, context: Array, t: Any) -> Array:
        """The row that the next state is drawn from."""
        return jnp.where(t == 0, self.first, self.rows[state])

    def prior(self, proposal: Array, t: Any) -> dist.Distribution:
        """p(h_t | h_{t-1})."""
        return _categorical(proposal)

    def move(self, proposal: Array, eps: Array) -> Array:
        """The draw is the state; int32, which JAX's draws are not where it is set to float64."""
        return eps.astype(jnp.int32)

    def readout(self, state: Array) -> dist.Distribution:
        """p(x_t | h_t), one token."""
        return _categorical(self.emission[state][..., None, :]).to_event(1)

    def log_transition(self, state: Array, next_state: Array, t: Any, context: Array) -> Array:
        """Log p(h_{t+1} | h_t) of the draw at step t, which at t = 0 ignores `state`; broadcasts."""
        state, next_state = jnp.broadcast_arrays(state, next_state)
        return jnp.where(t == 0, self.first[next_state], self.rows[state, next_state])

    def log_evidence(self, x: Any) -> np.ndarray:
        """Exact log p(x) in nats by the forward algorithm, float64 `[B]`; x `[B, time]`."""
        first, rows, emission = (np.asarray(getattr(self, name), np.float64) for name in self.buffers)
        series = np.asarray(self.encode(x))  # [B, time, 1]
        seen = np.where(series < 0, 0.0, emission.T[series[..., 0].clip(min=0)])  # [B, time, K]
        forward = first + seen[:, 0]
        for t in range(1, seen.shape[1]):
            forward = np.logaddexp.reduce(forward[..., None] + rows, -2) + seen[:, t]
        return np.logaddexp.reduce(forward, -1)


class HiddenMarkovSmoother(Guide):
    """q(h_t | h_{t-1}, x_{t:}) of a `HiddenMarkov`, from the backward algorithm; see the first lines."""

    buffers: ClassVar[tuple[str, ...]] = ("chain",)
    chain: HiddenMarkov
    power: float = eqx.field(static=True, default=1.0)

    def encode(self, y: Any) -> Array:
        """Run the backward pass over the series `[B, time]`: log ψ_t(h), in JAX's widest type `[time, B, K]`."""
        rows, emission = self.chain.rows.astype(float), self.chain.emission.astype(float)
        series = self.chain.encode(y)
        seen = jnp.where(series < 0, 0.0, emission.T[series[..., 0].clip(min=0)])  # [B, time, K]

        def back(message: Array, seen_t: Array) -> tuple[Array, Array]:
            lookahead = seen_t + message
            return jax.nn.logsumexp(lookahead[:, None] + rows, -1), lookahead

        nothing = jnp.zeros_like(seen[:, 0])
        lookahead = jax.lax.scan(back, nothing, jnp.swapaxes(seen, 0, 1), reverse=True)[1]
        return lookahead.clip(min=-1e30)  # finite: power 0 of nothing is 1

    def posterior(self, proposal: Array, evidence: Array, t: Any) -> dist.Distribution:
        """Categorical in proportion to p(h_t | h_{t-1}) ψ_t(h_t)^power; past the end, the prior."""
        time = len(evidence)
        lookahead = (self.power * evidence[jnp.minimum(t, time - 1)]).astype(proposal.dtype)
        return _categorical(proposal + jnp.where(t < time, lookahead, 0.0))


def _table(name: str, table: Any, shape: tuple[int, ...]) -> Array:
    if np.shape(table) != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(np.shape(table))}")
    return jnp.asarray(table)


def _categorical(logits: Array) -> dist.Distribution:
    """What is impossible has the logit -inf, which NumPyro's validation would refuse."""
    return dist.Categorical(logits=logits, validate_args=False)
