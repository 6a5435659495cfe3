"""The training objective: one depth step in, a loss and the next state out.

    loss = -( log p(y | z_n)  -  beta · Σ_t KL(q(eps_t | u_t, y) || p(eps_t | u_t)) )       nats a problem

The twin of `probgram.inference.objective`, which says what `carry` is for and what makes each loss a bound; with
the same weights, rollout and noise it returns the same numbers. Here it is a pure function of an Equinox module,
a `Rollout` and a key: rows that have ended are masks, all S steps of gradient="full" are one scan.

Source: Baek et al., arXiv 2605.19376, equations 8 to 11; IWAE: Burda et al., arXiv 1509.00519; FIVO: Maddison
et al., arXiv 1705.09279, section 3.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array

from probgram.inference.drawing import Problems
from probgram.inference.objective_config import ObjectiveConfig as ObjectiveConfig
from probgram.inference.on_jax.attribution import said_by_noise
from probgram.inference.on_jax.devices import spread, spread_problems
from probgram.inference.on_jax.handlers import (
    GuidedSite,
    divergence,
    gather_ancestors,
    guided,
    mode,
    seeded,
    start,
    weighted,
    where,
)
from probgram.inference.on_jax.resampling import draw_uniforms, systematic
from probgram.inference.on_jax.targets import TargetView, attributed, responsibilities, rule_of
from probgram.models.on_jax.chain import Chain, Guide
from probgram.tasks import UnknownAnswers


class Rollout(NamedTuple):
    """A batch of training trajectories between two depth steps; B problems, N trajectories each.

    Fields:
        x: `[B, ...]`.
        answers: known answers, padded, `[B, M, L]`.
        counts: how many are known, `[B]`.
        target: index of the answer each trajectory is trained towards, `[N, B]`.
        age: depth steps taken, `[B]`; rows at 0 start afresh.
        state: leaves `[N, B, ...]`.
        honest: bool `[N, B]`, whether every state so far came from the prior.
        belief: log p(y_m | noise so far) up to a constant, `[N, B, M]`; None unless the target asks for it.
        history: prior states after each depth step, leaves `[S, N, B, ...]`.
    """

    x: Array
    answers: Array
    counts: Array
    target: Array
    age: Array
    state: Any
    honest: Array
    belief: Array | None
    history: Any

    def refilled(self, rows: Any, problems: Problems) -> "Rollout":
        """Give the rows of `rows` (bool `[B]`) those of `problems` (B of them, too) and age 0."""
        x, answers, counts, target = (jnp.asarray(part) for part in problems)

        def chosen(new: Array, old: Array) -> Array:
            return jnp.where(rows.reshape(-1, *[1] * (old.ndim - 1)), new, old)

        return self._replace(
            x=chosen(x, self.x),
            answers=chosen(answers, self.answers),
            counts=chosen(counts, self.counts),
            target=jnp.where(rows, target, self.target),
            age=jnp.where(rows, 0, self.age),
        )


class StepResult(NamedTuple):
    """What a depth step of training returns."""

    loss: Array  # nats, mean over problems
    metrics: dict[str, Array]  # 0-dimensional; "right_at_end" means something where a trajectory ended
    rollout: Rollout  # where to go on
    halted: Array  # bool [B]: the halt head says of every particle's prior state that its answer is right


class StepTerms(NamedTuple):
    """What one depth step contributes to the bound; leaves `[S, ...]` for all of them."""

    log_p: Array  # log p(y | z_n), [N, B]
    kl: dict[str, Array]  # of the charged transitions, by the name of their metric, [N, B]
    charged: Array  # their sum as the loss sees it, [N, B]
    log_ratio: Array  # Σ log p - log q of what the guide drew, [N, B]
    sigma: dict[str, Array]  # range of the last prior's standard deviation


class _Filtered(NamedTuple):
    """The particle filter of "fivo" between two depth steps."""

    log_weights: Array  # normalised, [N, B]
    ess: Array  # [B]
    log_normalizer: Array  # nats, [B]; carries the gradient

    @classmethod
    def start(cls, n: int, b: int) -> "_Filtered":
        zeros = jnp.zeros(b)
        return cls(jnp.full((n, b), -math.log(n)), zeros + n, zeros)

    def reweighed(self, log_increment: Array) -> "_Filtered":
        unnormalised = self.log_weights + log_increment
        log_total = jax.nn.logsumexp(unnormalised, 0)
        log_weights = unnormalised - log_total
        ess = jnp.exp(-jax.nn.logsumexp(2 * log_weights, 0))
        return _Filtered(log_weights, ess, self.log_normalizer + log_total)


class Objective(eqx.Module):
    """A depth step of training (with gradient="full": all of them) as one function of the chain and its guide.

    Args:
        chain: what is trained.
        guide: its posterior; None trains on prior draws alone.
        config: the options.
        task: verifies decoded answers, for the heads' labels; None compares them with the known answers.
        mesh: shares problems out over devices (`devices.device_mesh`); None: one device.

    Raises:
        ValueError: an option that needs a guide without one.
    """

    chain: Chain
    guide: Guide | None
    config: ObjectiveConfig = eqx.field(static=True)
    task: Any = eqx.field(static=True)
    mesh: Any = eqx.field(static=True)

    def __init__(
        self,
        chain: Chain,
        guide: Guide | None = None,
        config: ObjectiveConfig | None = None,
        task: Any = None,
        mesh: Any = None,
    ) -> None:
        self.config = config or ObjectiveConfig()
        if guide is None and self.config.carry < 1:
            raise ValueError("carry below 1 continues from the guide's draws, so it needs a guide")
        if guide is None and self.config.target == "attributed":
            raise ValueError("target=attributed asks the guide which answer the noise argues for: it needs a guide")
        self.chain, self.guide, self.task, self.mesh = chain, guide, task, mesh

    def begin(self, problems: Problems) -> Rollout:
        """A rollout whose rows are all at age 0."""
        x, answers, counts, target = (jnp.asarray(part) for part in problems)
        shape = (target.shape[0], target.shape[1])
        fresh = eqx.filter_eval_shape(
            lambda chain, x: self._fresh(chain.encode(x), shape, jax.random.key(0)), self.chain, x
        )

        def zeros(*leading: int) -> Any:
            return jax.tree.map(lambda leaf: jnp.zeros((*leading, *leaf.shape), leaf.dtype), fresh)

        asked = rule_of(self.config.target) is attributed
        belief = jnp.zeros((*shape, answers.shape[1]), jnp.float32) if asked else None
        age, honest = jnp.zeros(shape[1], jnp.int32), jnp.zeros(shape, bool)
        return Rollout(x, answers, counts, target, age, zeros(), honest, belief, zeros(self.config.depth))

    def __call__(
        self, rollout: Rollout, key: Array, beta: Array | float | None = None, settling: bool = False
    ) -> StepResult:
        """Take the next depth step of every row, or with gradient="full" all S of them from the start.

        Args:
            rollout: from `begin`, or where the last step ended.
            key: of this step.
            beta: weight of the KL at this optimiser step, `config.beta_at(step)`; None: `config.beta`.
            settling: whether `attributed` has given way to `responsibilities`, `config.settles_at(progress)`.
        """
        n, b = rollout.target.shape
        filtered = _Filtered.start(n, b) if self.config.bound == "fivo" else None

        def body(carry: tuple[Rollout, _Filtered | None], key: Array) -> tuple[Any, StepTerms]:
            rollout, filtered = carry
            if filtered is not None:
                filtered, rollout = self._resample(filtered, rollout, jax.random.fold_in(key, 1))
            terms, rollout = self._depth_step(rollout, jax.random.fold_in(key, 0), settling)
            if filtered is not None:
                filtered = filtered.reweighed(terms.log_p + terms.log_ratio)
            return (rollout, filtered), terms

        steps = self.config.depth if self.config.gradient == "full" else 1
        if steps > 1:
            keys = jax.random.split(key, steps)
            (rollout, filtered), terms = jax.lax.scan(body, (rollout, filtered), keys)
        else:
            (rollout, filtered), terms = body((rollout, filtered), key)
            terms = jax.tree.map(lambda leaf: leaf[None], terms)
        loss, metrics = self._bound(terms, self.config.beta if beta is None else beta)
        if filtered is not None:
            loss = -filtered.log_normalizer.mean()
        head_loss, head_metrics, halted = self._heads(rollout)
        rollout = rollout._replace(state=_cut(rollout.state))
        return StepResult(loss + self.config.heads * head_loss, metrics | head_metrics, rollout, halted)

    # -- one depth step ---------------------------------------------------------------------------------------

    def _fresh(self, context: Any, batch_shape: tuple[int, int], key: Array) -> Any:
        with seeded(key), _plates(*batch_shape):
            return start(self.chain, batch_shape, context)

    def _depth_step(self, rollout: Rollout, key: Array, settling: bool) -> tuple[StepTerms, Rollout]:
        config, (n, b) = self.config, rollout.target.shape
        start_key, coin_key, site_key, prior_key, target_key = jax.random.split(key, 5)
        first = jnp.broadcast_to(rollout.age == 0, (n, b))
        from_prior = jax.random.uniform(coin_key, (n, b)) < config.carry
        y = pick(rollout.answers, rollout.target)  # [N, B, L]
        context = self.chain.encode(spread_problems(rollout.x, self.mesh))
        state = spread(where(first, self._fresh(context, (n, b), start_key), rollout.state), self.mesh)
        state, guidable, terms = self._transitions(state, context, rollout, y, from_prior, site_key)
        last = guidable[-1]
        noise = last.value if last.posterior is None else last.prior.sample(prior_key)
        prior_state = self.chain.move(last.proposal, noise)  # where a trajectory really goes
        if config.gradient != "full":
            prior_state = _cut(prior_state)
        carried_on = where(from_prior, noise, last.value)
        rule = responsibilities if settling else rule_of(config.target)
        belief = rollout.belief
        if rule is attributed:
            sites = [*guidable[:-1], last._replace(value=carried_on)]
            belief = self._belief(rollout, sites)
        # A rule only chooses, and what it looks at is not trained by it.
        view = TargetView(
            lambda: jax.lax.stop_gradient(self._log_p(prior_state, rollout)), belief, rollout.target, target_key
        )
        target = jnp.where(from_prior, rule(view), rollout.target).astype(rollout.target.dtype)
        terms = terms._replace(log_p=self.chain.readout(state).log_prob(y))
        kept = None if belief is None else jnp.where(_beyond(rollout), 0.0, belief)
        return terms, rollout._replace(
            target=target,
            age=rollout.age + 1,
            state=spread(where(from_prior, prior_state, state), self.mesh),
            honest=from_prior & (rollout.honest | first),
            belief=kept,
            history=_record(rollout.history, _cut(prior_state), rollout.age, config.depth),
        )

    def _transitions(
        self, state: Any, context: Any, rollout: Rollout, y: Array, from_prior: Array, key: Array
    ) -> tuple[Any, list[GuidedSite], StepTerms]:
        """Run T transitions: the state, the sites that the guide may fill, and what they add to the bound.

        The guide acts on the last transition, and on those before it where the posterior carries on and the
        gradient reaches them.
        """
        config, chain = self.config, self.chain
        t = 0 if chain.homogeneous else rollout.age[0]
        charged: dict[str, GuidedSite] = {}
        guidable: list[GuidedSite] = []
        zeros = jnp.zeros(from_prior.shape)
        log_ratio = zeros
        evidence = None if self.guide is None else self.guide.encode(y)
        with seeded(key):
            for k in range(chain.transitions):
                is_last = k == chain.transitions - 1
                reached = is_last or config.gradient != "transition"
                acts = is_last or (reached and config.carry < 1)
                guide, rows = (self.guide if acts else None), (None if is_last else ~from_prior)
                with weighted() as w, guided(guide, evidence, rows) as q, _plates(*from_prior.shape):
                    state = chain.transition(state, t * chain.transitions + k, context, k)
                if not reached:
                    state = _cut(state)
                if acts:
                    guidable += q.sites
                if guide is not None:
                    log_ratio = log_ratio + w.log_weight
                    if is_last or config.kl == "every":
                        charged[f"kl_{k}"] = q.sites[0]
        sites = list(charged.values())
        terms = StepTerms(
            log_p=zeros,  # the state is read by the caller
            kl={name: site.kl for name, site in charged.items()},
            charged=sum((self._charged(site) for site in sites), zeros),
            log_ratio=log_ratio,
            sigma=_sigma_range(sites[-1].prior) if sites else {},
        )
        return state, guidable, terms

    def _charged(self, site: GuidedSite) -> Array:
        """KL as the loss sees it: plain, or balanced between guide and prior (arXiv 2010.02193, eq. 5)."""
        balance, posterior = self.config.balance, site.posterior
        if balance is None or posterior is None:
            return site.kl
        towards_guide = divergence(_cut(posterior), site.prior)
        towards_prior = divergence(posterior, _cut(site.prior))
        return site.counted(balance * towards_guide + (1 - balance) * towards_prior)

    def _resample(self, filtered: "_Filtered", rollout: Rollout, key: Array) -> tuple["_Filtered", Rollout]:
        """Replace the trajectories of problems with a low effective sample size, before the next depth step."""
        threshold, (n, b) = self.config.ess_threshold, rollout.target.shape
        if not threshold:
            return filtered, rollout
        log_weights = jax.lax.stop_gradient(filtered.log_weights)
        low = jnp.ones(b, bool) if threshold >= 1 else filtered.ess <= threshold * n
        due = low & (rollout.age > 0)  # before the first step there is nothing to choose from
        drawn = systematic(log_weights, draw_uniforms(systematic, log_weights, key))
        ancestors = jnp.where(due, drawn, jnp.arange(n)[:, None])
        return (
            filtered._replace(log_weights=jnp.where(due, -math.log(n), filtered.log_weights)),
            rollout._replace(
                state=gather_ancestors(rollout.state, ancestors),
                honest=gather_ancestors(rollout.honest, ancestors),
                history=jax.vmap(gather_ancestors, (0, None))(rollout.history, ancestors),
            ),
        )

    # -- the bound --------------------------------------------------------------------------------------------

    def _bound(self, terms: StepTerms, beta: Array | float) -> tuple[Array, dict[str, Array]]:
        steps, n, _ = terms.log_p.shape
        log_p = terms.log_p.sum(0)  # [N, B]
        if self.config.bound == "iwae":
            log_weight = log_p + terms.log_ratio.sum(0)
            loss = -(jax.nn.logsumexp(log_weight, 0) - math.log(n)).mean()
        else:
            loss = -(log_p - beta * terms.charged.sum(0)).mean()
        kl = sum((part.sum(0) for part in terms.kl.values()), jnp.zeros_like(log_p))
        metrics = {"reconstruction": -log_p.mean() / steps, "kl": kl.mean() / steps}
        metrics |= {name: part[-1].mean() for name, part in terms.kl.items()}
        return loss, metrics | {f"sigma_{name}": values[-1] for name, values in terms.sigma.items()}

    # -- heads ------------------------------------------------------------------------------------------------

    def _heads(self, rollout: Rollout) -> tuple[Array, dict[str, Array], Array]:
        """Losses of the heads, on prior states only: "halt" now, "value" of all states of a trajectory that ends.

        Under gradient="full", where all depth steps are one, "halt" so learns from the last of them.
        """
        n, b = rollout.target.shape
        slot, row = (rollout.age - 1).clip(max=self.config.depth - 1), jnp.arange(b)
        now = jax.tree.map(lambda leaf: jnp.swapaxes(leaf[slot, :, row], 0, 1), rollout.history)
        heads = self.chain.heads(now)
        right = self._is_right(now, rollout)  # [N, B]
        metrics = {"right": right.mean(dtype=jnp.float32)}
        loss, halted = jnp.zeros(()), jnp.zeros(b, bool)
        if "halt" in heads:
            loss = loss + _head_loss(heads["halt"], right, rollout.honest)
            halted = (heads["halt"] > 0).all(0)
        if "value" in heads:
            ended = jnp.broadcast_to(rollout.age >= self.config.depth, (n, b))
            value = self.chain.heads(rollout.history)["value"]  # [S, N, B]
            loss = loss + _head_loss(value, right, jnp.broadcast_to(rollout.honest & ended, value.shape))
            metrics["right_at_end"] = (right & ended).sum() / ended.sum().clip(min=1)
        return loss, metrics | {"heads": loss}, halted

    def _is_right(self, state: Any, rollout: Rollout) -> Array:
        """Whether the state's answer is right, bool `[N, B]`: as the task verifies, else by the known answers."""
        answer = mode(self.chain.readout(state))  # [N, B, L]
        if self.task is None:
            return _is_known(answer, rollout.answers)
        try:
            return self.task.verify(rollout.x, answer)
        except UnknownAnswers:
            return _is_known(answer, rollout.answers)
        except (
            TypeError,
            IndexError,
            AttributeError,
        ):  # it wants to see the values: they are not traced on the host
            return self._verified_on_the_host(rollout, answer)

    def _verified_on_the_host(self, rollout: Rollout, answer: Array) -> Array:
        def verify(x: Any, answers: Any, answer: Any) -> np.ndarray:
            x, answers, answer = (np.asarray(part) for part in (x, answers, answer))
            try:
                return np.asarray(self.task.verify(x, answer), bool)
            except UnknownAnswers:
                return np.asarray(_is_known(answer, answers))

        shape = jax.ShapeDtypeStruct(answer.shape[:-1], bool)
        return jax.pure_callback(verify, shape, rollout.x, rollout.answers, answer)

    # -- what targets may ask for -----------------------------------------------------------------------------

    def _log_p(self, state: Any, rollout: Rollout) -> Array:
        """Log p(y_m | state) of every known answer, -inf beyond the count, `[N, B, M]`."""
        readout = self.chain.readout(state)
        scores = jax.vmap(readout.log_prob, 1, -1)(rollout.answers)
        return jnp.where(_beyond(rollout), -jnp.inf, scores)

    def _belief(self, rollout: Rollout, sites: list[GuidedSite]) -> Array:
        """Add what the noise that carries on says for each answer; -inf beyond the count, `[N, B, M]`."""
        assert self.guide is not None and rollout.belief is not None
        chain, guide, sites = (_cut(part) for part in (self.chain, self.guide, sites))
        said = said_by_noise(chain, guide, sites, rollout.answers, rollout.counts)
        belief = jnp.where((rollout.age > 0)[:, None], rollout.belief, 0.0) + said
        real = jnp.where(_beyond(rollout), -jnp.inf, belief)
        return real - real.max(-1, keepdims=True)


@contextmanager
def _plates(particles: int, problems: int) -> Iterator[None]:
    """The plates of a chain's sites; handlers that fill sites go outside of them."""
    with numpyro.plate("particles", particles, dim=-2), numpyro.plate("problems", problems, dim=-1):
        yield


def _cut(tree: Any) -> Any:
    """A module, distribution or state without its gradient."""
    return jax.tree.map(lambda leaf: jax.lax.stop_gradient(leaf) if eqx.is_inexact_array(leaf) else leaf, tree)


def pick(answers: Array, index: Array) -> Array:
    """Answer `index[n, b]` of problem b: from `[B, M, L]` and `[N, B]` to `[N, B, L]`."""
    return answers[jnp.arange(len(answers)), index]


def _beyond(rollout: Rollout) -> Array:
    """Slots of `answers` that are padding, `[B, M]`."""
    return jnp.arange(rollout.answers.shape[1]) >= rollout.counts[:, None]


def _record(history: Any, state: Any, age: Array, depth: int) -> Any:
    """Write `[N, B, ...]` states into their rows' own depth slots of `[S, N, B, ...]`."""
    slot, row = age.clip(max=depth - 1), jnp.arange(len(age))
    return jax.tree.map(lambda buffer, leaf: buffer.at[slot, :, row].set(jnp.swapaxes(leaf, 0, 1)), history, state)


def _is_known(answer: Any, known: Any) -> Any:
    """Whether answers `[N, B, L]` are among the known ones `[B, M, L]`, whose padding tokens fit all."""
    same = (answer[:, :, None] == known) | (known < 0)  # [N, B, M, L]
    return same.all(-1).any(-1)


def _head_loss(logits: Array, right: Array, honest: Array) -> Array:
    """Binary cross-entropy over rows that only ever saw prior states, nats."""
    loss = jax.nn.softplus(logits) - logits * right
    return (loss * honest).sum() / honest.sum().clip(min=1)


def _sigma_range(prior: dist.Distribution) -> dict[str, Array]:
    """Smallest, mean and largest standard deviation of a prior, where it has one."""
    try:
        deviation = jnp.sqrt(prior.variance)
    except NotImplementedError:
        return {}
    return {"amin": deviation.min(), "mean": deviation.mean(), "amax": deviation.max()}
