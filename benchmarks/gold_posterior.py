"""A gold posterior over small chains: NUTS, exact laws and enumeration, to judge a guide and a filter.

python -m benchmarks.gold_posterior      writes results/backends/gold_posterior.json, prints its table; minutes

Cases, each with two problems, T·S = 6 transitions of D = 2 features, and one real answer a problem:

    linear    h <- A h + b x + eps, observed at every depth step: everything is Gaussian and known exactly
    last      h <- tanh(A h + b x) + eps, eps ~ N(m u, sigma(u)²), observed at the last depth step
    every     the same, observed at every depth step
    answers   a sticky two-state Markov chain whose symbols tell little: two answers, all paths enumerated

Candidates: `NUTS` (4 chains over the non-centred noise, ArviZ's R-hat and effective sample size), `filter`
(particle Gibbs by the conditional filter, a chain a replicate), `guide` (a Gaussian a transition, trained by SVI),
`guide, weighed` (its draws resampled by p / q). They are judged against the exact law where there is one, else
against NUTS.

Where y is observed at the end alone, particle Gibbs does not resample: with the likelihood as a look-ahead,
narrower than the chain's own noise, a later step would weigh by 1 / psi without bound, and draws were too narrow.

What a guide that is mean-field in a transition can reach: q(eps_t | u_t, y) sees the past through u_t, so the law
over the path has the right dependence in depth. Within a transition its D features are independent. Where the exact
conditional is a Gaussian with precision L, the best such q has its mean and the variances 1 / L_ii, never more than
the marginal ones: variances come out too small as far as y couples the features, and shape (skew) is lost. Where a
guide is too narrow its weights p / q have heavy tails, and resampling by them repairs less than one would hope.
"""

import json
import platform
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import arviz as az
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jax import Array
from numpyro.infer import MCMC, NUTS, SVI, TraceMeanField_ELBO
from numpyro.infer.reparam import LocScaleReparam

from benchmarks.two_samples import Moments, judge, judge_counts, mixing
from probgram.checkpoint import write_bytes
from probgram.inference.on_jax.conditional import conditional, particle_gibbs, systematic
from probgram.inference.on_jax.potentials import accumulated, likelihood
from probgram.models.on_jax import Chain, Guide, HiddenMarkov

RESULT = Path(__file__).parent / "results" / "backends" / "gold_posterior.json"
DEPTH, TRANSITIONS, FEATURES = 3, 2, 2
X, Y = jnp.array([[0.3], [-0.6]]), jnp.array([[1.6], [-0.8]])


class Recurrent(Chain):
    """h <- u + eps, u = f(A h + b x), eps ~ N(m u, sigma(u)²), y ~ N(c h, r²), with f tanh or the identity."""

    buffers: ClassVar[tuple[str, ...]] = ("dynamics", "drive", "spread", "emission")
    dynamics: Array  # A, [D, D]
    drive: Array  # b, [D]
    spread: Array  # of sigma(u) = 0.3 + 0.5 sigmoid(spread u), [D, D]
    emission: Array  # c, [1, D]
    shift: float = eqx.field(static=True)  # m
    linear: bool = eqx.field(static=True)
    noise: float = eqx.field(static=True)  # r

    @property
    def transitions(self) -> int:
        return TRANSITIONS

    def encode(self, x: Array) -> Array:
        return x * self.drive  # [B, D]

    def initial(self, context: Array) -> Array:
        return jnp.zeros_like(context)

    def propose(self, state: Array, context: Array, t: Any) -> Array:
        u = state @ self.dynamics.T + context
        return u if self.linear else jnp.tanh(u)

    def prior(self, proposal: Array, t: Any) -> dist.Distribution:
        sigma = 0.3 + 0.5 * jax.nn.sigmoid(proposal @ self.spread.T)
        return dist.Normal(self.shift * proposal, sigma).to_event(1)

    def readout(self, state: Array) -> dist.Distribution:
        return dist.Normal(state @ self.emission.T, self.noise).to_event(1)


class NonCentred(Recurrent):
    """The same program with eps = m u + sigma(u) z and z ~ N(0, 1) the sites: what NUTS explores with ease."""

    def step(self, state: Array, t: Any, context: Array) -> Array:
        # Inside the body of the scan: around it, a reparametrisation comes too late.
        with numpyro.handlers.reparam(config={f"eps_{k}": LocScaleReparam(0) for k in range(TRANSITIONS)}):
            return super().step(state, t, context)


class StepGuide(Guide):
    """q(eps_t | u_t, y) = N(mu, diag sigma²): one hidden layer on [u_t, y], other weights for each t."""

    hidden: Array  # [T·S, D + 1, H]
    bias: Array  # [T·S, H]
    out: Array  # [T·S, H, 2 D]

    def __init__(self, key: Array, size: int = 24) -> None:
        first, second = jax.random.split(key)
        steps = DEPTH * TRANSITIONS
        self.hidden = jax.random.normal(first, (steps, FEATURES + 1, size))
        self.bias = jnp.zeros((steps, size))
        self.out = 0.1 * jax.random.normal(second, (steps, size, 2 * FEATURES))

    def posterior(self, proposal: Array, evidence: Array, t: Any) -> dist.Distribution:
        y = jnp.broadcast_to(evidence, (*proposal.shape[:-1], 1))
        hidden = jnp.tanh(jnp.concatenate([proposal, y], -1) @ self.hidden[t] + self.bias[t])
        mean, raw = jnp.split(hidden @ self.out[t], 2, -1)
        return dist.Normal(mean, 0.01 + jax.nn.softplus(raw - 0.5)).to_event(1)


class Case(NamedTuple):
    """A chain and how its answers were observed."""

    chain: Recurrent
    observe: str


def recurrent(linear: bool) -> Recurrent:
    dynamics = jnp.array([[0.8, -0.6], [0.6, 0.8]]) if linear else jnp.array([[0.9, -0.8], [0.7, 0.9]])
    spread = jnp.zeros((2, 2)) if linear else jnp.array([[1.5, 0.0], [-1.0, 1.0]])
    shift = 0.0 if linear else 0.3
    return Recurrent(dynamics, jnp.array([1.0, -0.5]), spread, jnp.array([[1.0, -0.7]]), shift, linear, 0.3)


CASES = {
    "linear": Case(recurrent(True), "every"),
    "last": Case(recurrent(False), "last"),
    "every": Case(recurrent(False), "every"),
}


class Draws(NamedTuple):
    """Draws of a candidate: for each problem coordinates `[chains, draws, C]`, the path of eps, then the states."""

    values: list[np.ndarray]
    about: dict[str, Any]


def coordinates(chain: Recurrent, noise: Array) -> list[np.ndarray]:
    """Coordinates a problem of noise paths `[chains, draws, S, T, B, D]`: eps, and the state at each depth."""
    context = chain.encode(X)
    state = jnp.broadcast_to(chain.initial(context), (*noise.shape[:2], len(X), FEATURES))
    states = []
    for t in range(DEPTH):
        for k in range(TRANSITIONS):
            at = t * TRANSITIONS + k
            state = chain.move(chain.propose(state, context, at), noise[:, :, t, k])
        states.append(state)
    both = [noise.reshape(*noise.shape[:2], -1, len(X), FEATURES), jnp.stack(states, 2)]
    whole = np.asarray(jnp.concatenate(both, 2), np.float64)  # [chains, draws, S·T + S, B, D]
    return [whole[..., b, :].reshape(*whole.shape[:2], -1) for b in range(len(X))]


# -- candidates -----------------------------------------------------------------------------------------------


def exact(case: Case, draws: int, seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray], Draws]:
    """The joint Gaussian of a linear case given y: means, covariances a problem, and independent draws of it.

    The Kalman smoother's law, from the joint one of noise and answers: noise to coordinates and to y is affine.
    """
    chain, shape = case.chain, (DEPTH, TRANSITIONS, len(X), FEATURES)
    sigma = float(chain.prior(jnp.zeros(FEATURES), 0).base_dist.scale[0])
    generator, means, covariances, values, attainable = np.random.default_rng(seed), [], [], [], []
    zero, count = coordinates(chain, jnp.zeros((1, 1, *shape))), DEPTH * TRANSITIONS * FEATURES
    for b in range(len(X)):
        unit = jnp.zeros((count, DEPTH * TRANSITIONS, len(X), FEATURES))
        unit = unit.at[:, :, b].set(jnp.eye(count).reshape(count, -1, FEATURES)).reshape(1, count, *shape)
        slope = coordinates(chain, unit)[b][0] - zero[b][0]  # [noise, C]
        emission = np.asarray(chain.emission, np.float64)[0]
        rows = range(0 if case.observe == "every" else DEPTH - 1, DEPTH)
        at = [slice(count + t * FEATURES, count + (t + 1) * FEATURES) for t in rows]
        seen = np.stack([slope[:, where] @ emission for where in at])  # [observations, noise]
        innovation = float(Y[b, 0]) - np.stack([zero[b][0, 0, where] @ emission for where in at])
        spread = sigma**2 * seen @ seen.T + chain.noise**2 * np.eye(len(seen))
        gain = sigma**2 * np.linalg.solve(spread, seen).T  # [noise, observations]
        law = sigma**2 * (np.eye(count) - gain @ seen)
        attainable.append(mean_field_kl(law))
        means.append(zero[b][0, 0] + gain @ innovation @ slope)
        covariances.append(slope.T @ law @ slope)
        noise = generator.multivariate_normal(gain @ innovation, law, size=draws)
        values.append((noise @ slope + zero[b][0])[None])
    return means, covariances, Draws(values, {"attainable KL": attainable})


def mean_field_kl(law: np.ndarray) -> float:
    """The least KL(q || p) in nats of a q that is a product over features in every transition, given the past.

    Args:
        law: covariance of the exact Gaussian posterior of the noise, transition by transition.
    """
    total = 0.0
    for t in range(0, len(law), FEATURES):
        past, now = slice(0, t), slice(t, t + FEATURES)
        slope = np.linalg.solve(law[past, past], law[past, now])
        precision = np.linalg.inv(law[now, now] - law[now, past] @ slope)
        total += 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])
    return float(total)


def nuts(case: Case, draws: int = 2000, warmup: int = 1000, chains: int = 4, seed: int = 0) -> Draws:
    """Draws by NUTS."""
    chain = case.chain
    fields = (chain.dynamics, chain.drive, chain.spread, chain.emission, chain.shift, chain.linear, chain.noise)
    start = time.perf_counter()
    sampler = MCMC(
        NUTS(NonCentred(*fields).model, target_accept_prob=0.9),
        num_warmup=warmup,
        num_samples=draws,
        num_chains=chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    sampler.run(jax.random.key(seed), X, Y, depth=DEPTH, observe=case.observe)
    found = sampler.get_samples(group_by_chain=True)
    values = coordinates(chain, jnp.stack([found[f"eps_{k}"] for k in range(TRANSITIONS)], 3))
    divergent = int(sampler.get_extra_fields()["diverging"].sum())
    return Draws(values, mixing(values) | {"divergent": divergent, "seconds": time.perf_counter() - start})


def gibbs(
    case: Case, chains: int = 32, sweeps: int = 420, burn_in: int = 20, width: int = 128, seed: int = 0
) -> Draws:
    """Draws by particle Gibbs, replicates of every problem side by side."""
    start, y = time.perf_counter(), jnp.repeat(Y, chains, 0)
    seen = likelihood(y, anneal=False)
    kept: list[Array] = []

    def keep(path: Any, chain: Chain) -> Chain:
        kept.append(jnp.stack([path.noise[1][f"eps_{k}"] for k in range(TRANSITIONS)], 1))  # [S, T, B·chains, D]
        return chain

    particle_gibbs(
        case.chain,
        jnp.repeat(X, chains, 0),
        iterations=sweeps,
        update=keep,
        width=width,
        depth=DEPTH,
        resample=systematic if case.observe == "every" else None,
        potential=accumulated(seen) if case.observe == "every" else seen,
        key=seed,
    )
    noise = jnp.stack(kept[burn_in:])  # [sweeps, S, T, B·chains, D]
    noise = noise.reshape(*noise.shape[:3], len(X), chains, FEATURES).transpose(4, 0, 1, 2, 3, 5)
    values = coordinates(case.chain, noise)
    return Draws(values, mixing(values) | {"seconds": time.perf_counter() - start})


def train(case: Case, steps: int = 3000, particles: int = 32, seed: int = 0) -> tuple[Guide, dict[str, Any]]:
    """Train a guide by SVI, its chain fixed."""
    start, guide = time.perf_counter(), StepGuide(jax.random.key(seed))
    svi = SVI(
        numpyro.handlers.block(case.chain.model, hide=["chain$params"]),
        numpyro.handlers.block(case.chain.guide(guide), hide=["chain$params"]),
        optax.adam(optax.cosine_decay_schedule(5e-3, steps)),
        TraceMeanField_ELBO(num_particles=particles),
    )
    result = svi.run(jax.random.key(seed), steps, X, Y, depth=DEPTH, observe=case.observe, progress_bar=False)
    trained = eqx.combine(result.params["guide$params"], guide)
    return trained, {"steps": steps, "seconds": time.perf_counter() - start}


@eqx.filter_jit
def guided_draws(chain: Recurrent, guide: Guide, key: Array, draws: int, observe: str) -> tuple[Array, Array]:
    """Noise `[1, draws, S, T, B, D]` from the guide, and log p(noise, y) - log q(noise) `[draws, B]`."""
    context = chain.encode(X)
    state, log_weight, path = jnp.zeros((draws, len(X), FEATURES)), 0.0, []
    for t in range(DEPTH):
        for k in range(TRANSITIONS):
            at = t * TRANSITIONS + k
            proposal = chain.propose(state, context, at)
            q = guide.posterior(proposal, Y, at)
            eps = q.sample(jax.random.fold_in(key, at))
            log_weight += chain.prior(proposal, at).log_prob(eps) - q.log_prob(eps)
            state = chain.move(proposal, eps)
            path.append(eps)
        if observe == "every" or t == DEPTH - 1:
            log_weight += chain.readout(state).log_prob(Y)
    noise = jnp.stack(path, 1).reshape(1, draws, DEPTH, TRANSITIONS, len(X), FEATURES)
    return noise, log_weight


def guided(case: Case, guide: Guide, about: dict[str, Any], draws: int = 20_000, seed: int = 0) -> dict[str, Draws]:
    """Draws of the guide, and the same resampled by their weights, with the bound, log Z and KL(q || p)."""
    noise, log_weight = guided_draws(case.chain, guide, jax.random.key(seed + 1), draws, case.observe)
    values, log_weight = coordinates(case.chain, noise), np.asarray(log_weight, np.float64)
    weights = np.exp(log_weight - log_weight.max(0))
    weights /= weights.sum(0)
    share = 1 / (weights**2).sum(0) / draws
    bound = log_weight.mean(0)
    log_z = np.log(np.exp(log_weight - log_weight.max(0)).mean(0)) + log_weight.max(0)
    generator = np.random.default_rng(seed)
    number = int(share.min() * draws)  # so many draws say what the weighted ones say
    kept = [v[:, generator.choice(draws, size=number, p=w)] for v, w in zip(values, weights.T, strict=True)]
    about = about | {"bound": bound.tolist(), "log Z": log_z.tolist(), "KL(q || p)": (log_z - bound).tolist()}
    return {
        "guide": Draws(values, about),
        "guide, weighed": Draws(kept, {"effective share": share.tolist()}),
    }


# -- the discrete case ----------------------------------------------------------------------------------------

TABLES = (
    np.array([0.5, 0.5]),
    np.array([[0.9, 0.1], [0.1, 0.9]]),
    np.array([[0.6, 0.4], [0.4, 0.6]]),
)
SYMBOLS = np.array([0, 1, 1, 0, 1, 0])


def enumerated() -> tuple[np.ndarray, np.ndarray]:
    """All paths `[2^S, S]` of the two-answer chain, and their probability given the symbols."""
    first, rows, emission = TABLES
    paths = np.stack(np.meshgrid(*[[0, 1]] * len(SYMBOLS), indexing="ij"), -1).reshape(-1, len(SYMBOLS))
    p = first[paths[:, 0]] * emission[paths, SYMBOLS].prod(1) * rows[paths[:, :-1], paths[:, 1:]].prod(1)
    return paths, p / p.sum()


def answers(replicates: int = 20_000, sweeps: int = 8, width: int = 8, seed: int = 0) -> dict[str, Any]:
    """Particle Gibbs on the two-answer chain, a draw a replicate, against all paths by its last sweep."""
    start, (paths, law) = time.perf_counter(), enumerated()
    chain = HiddenMarkov(*(jnp.asarray(table) for table in TABLES))
    x = jnp.broadcast_to(jnp.asarray(SYMBOLS), (replicates, len(SYMBOLS)))
    choices = {"width": width, "depth": len(SYMBOLS), "resample": systematic}
    # From a filter of two particles, far from the law.
    reference = conditional(chain, x, width=2, depth=len(SYMBOLS), key=seed + 1).path
    states = np.asarray(particle_gibbs(chain, x, iterations=sweeps, reference=reference, key=seed, **choices))
    number = 2 ** np.arange(len(SYMBOLS))[::-1]
    found = {"start": number @ np.asarray(reference.states), "filter": number @ states[-1]}
    rows = {name: judge_counts(index, law) for name, index in found.items()}
    same = states.all(1) | ~states.any(1)  # [sweeps, replicates], a path that stays in one state
    other = (states[1:, 0] != states[:-1, 0]) & same[1:] & same[:-1]
    return {
        "paths": len(paths),
        "two answers hold": float(law[0] + law[-1]),
        "replicates": replicates,
        "sweeps": sweeps,
        "width": width,
        "jumps between answers a sweep": float(other.sum() / (same[1:] & same[:-1]).sum()),
        "rows": rows,
        "seconds": time.perf_counter() - start,
    }


# -- tables ---------------------------------------------------------------------------------------------------


def compare(case: Case, **sizes: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Candidate, what it is judged against, and figures; `sizes`: keyword arguments of `nuts`, `gibbs`, `train`."""
    by_nuts = nuts(case, **sizes.get("nuts", {}))
    gold, against, known = by_nuts, "NUTS", None
    if case.chain.linear:
        means, covariances, gold = exact(case, draws=4000)
        none = np.zeros_like(means[0])
        known = [Moments(m, none, np.diag(c), none) for m, c in zip(means, covariances, strict=True)]
        against = "exact"
        yield "NUTS", against, by_nuts.about | judge(by_nuts.values, gold.values, known)
    else:
        yield "NUTS", "itself", by_nuts.about
    filtered = gibbs(case, **sizes.get("gibbs", {}))
    yield "filter", against, filtered.about | judge(filtered.values, gold.values, known)
    for name, draws in guided(case, *train(case, **sizes.get("train", {}))).items():
        yield name, against, (gold.about if known else {}) | draws.about | judge(draws.values, gold.values, known)


def table(found: Mapping[str, Any]) -> str:
    """The comparison as Markdown."""
    lines = [
        "| case | candidate | against | R-hat | ESS | z of means | z of variances | shift of means, sd | "
        "ratio of variances | KS p (Holm) | energy p |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]

    def show(row: dict[str, Any], key: str, form: str) -> str:
        return format(row[key], form) if key in row else "–"

    for row in found["continuous"]:
        cells = [row["case"], row["candidate"], row["against"], show(row, "r_hat", ".4f"), show(row, "ess", ",.0f")]
        cells += [show(row, key, ".2f") for key in ("z_mean", "z_var", "shift")]
        cells.append("{:.2f} to {:.2f}".format(*row["var_ratio"]) if "var_ratio" in row else "–")
        cells += [show(row, key, ".3f") for key in ("ks", "energy")]
        lines.append("| " + " | ".join(cells) + " |")
    discrete = found["answers"]
    lines += ["", "| draws of the two-answer chain | largest z of a path | total variation | chi-square p |"]
    lines.append("|---|---|---|---|")
    for name, row in discrete["rows"].items():
        lines.append(f"| {name} | {row['z']:.2f} | {row['total_variation']:.4f} | {row['p']:.3g} |")
    return "\n".join(lines)


def main() -> None:
    rows = []
    for name, case in CASES.items():
        for candidate, against, figures in compare(case):
            rows.append({"case": name, "candidate": candidate, "against": against} | figures)
            print(rows[-1], flush=True)
    versions = {package.__name__: package.__version__ for package in (jax, numpyro, az)}
    found: dict[str, Any] = {"about": {"python": platform.python_version()} | versions}
    found |= {"continuous": rows, "answers": answers()}
    found["table"] = table(found)
    write_bytes(RESULT, (json.dumps(found, indent=1) + "\n").encode())
    print(found["table"])


if __name__ == "__main__":
    main()
