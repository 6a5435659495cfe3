"""The training objective: one depth step in, a loss and the next state out.

    loss = -( log p(y | z_n)  -  beta · Σ_t KL(q(eps_t | u_t, y) || p(eps_t | u_t)) )       nats a problem

The next depth step starts from a prior draw with probability `carry`, else from the guide's. At carry = 1
trajectories are the prior's, and only the last transition of the step at hand uses the guide, for the loss:
the proposal u is shared, so the prior draw that carries on costs nothing more. The loss of a step is then a
bound on log p(y | z_{n-1}) at states the chain really reaches, and by Jensen E_prior[log p(y | z_{n-1})] <=
log p(y | x): nothing of y can leak. At carry = 0 the sum over steps is the ELBO of the training program.

Several particles make tighter bounds (they share one answer): `bound="iwae"` averages their weights, and
`bound="fivo"` resamples them between the depth steps of a whole trajectory, so that the bound is log Z of a
particle filter. The gradient of the resampling choices is dropped, as its authors do.

Source: Baek et al., arXiv 2605.19376, equations 8 to 11; IWAE: Burda et al., arXiv 1509.00519; FIVO: Maddison
et al., arXiv 1705.09279, section 3.
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from typing import Any, NamedTuple

import pyro
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import kl_divergence

from probgram import state as trees
from probgram.chain import Chain, Guide
from probgram.inference.attribution import said_by_noise
from probgram.inference.handlers import GuidedSite, guided, start, weighted
from probgram.inference.objective_config import ObjectiveConfig as ObjectiveConfig
from probgram.inference.resampling import adaptive, systematic
from probgram.inference.shares import Share, shared
from probgram.inference.smc import reweighed
from probgram.inference.targets import Target, TargetView, attributed, responsibilities, rule_of
from probgram.state import widest
from probgram.tasks import UnknownAnswers


class Rollout(NamedTuple):
    """A batch of training trajectories between two depth steps; B problems, N trajectories each.

    Fields:
        x: `[B, ...]`.
        answers: known answers, padded, `[B, M, L]`.
        counts: how many are known, `[B]`, kept on the host.
        target: index of the answer each trajectory is trained towards, `[N, B]`.
        age: depth steps taken, `[B]`, kept on the host; rows at 0 start afresh.
        state: leaves `[N, B, ...]`; None before the very first step.
        honest: bool `[N, B]`, whether every state so far came from the prior.
        belief: log p(y_m | noise so far) up to a constant, `[N, B, M]`; None unless the target asks for it.
        history: states after each depth step, leaves `[S, N, B, ...]`.
    """

    x: Tensor
    answers: Tensor
    counts: Tensor
    target: Tensor
    age: Tensor
    state: Any = None
    honest: Tensor | None = None
    belief: Tensor | None = None
    history: Any = None


class StepResult(NamedTuple):
    """What a depth step of training returns."""

    loss: Tensor  # nats, mean over problems
    metrics: dict[str, Tensor]  # 0-dimensional, detached; "right" also of trajectories that have seen y
    rollout: Rollout  # where to go on
    halted: Tensor  # bool [B]: the halt head says of every particle's prior state that its answer is right


class StepTerms(NamedTuple):
    """What one depth step contributes to the bound."""

    log_p: Tensor  # log p(y | z_n), [N, B]
    sites: list[GuidedSite]  # the guided transitions
    log_ratio: Tensor | float  # Σ log p - log q of them, as sampled, [N, B]


class _Filtered(NamedTuple):
    """The particle filter of "fivo" between two depth steps."""

    log_weights: Tensor  # normalised, [N, B]
    ess: Tensor  # [B]
    log_normalizer: Tensor  # nats, [B]; carries the gradient

    @classmethod
    def start(cls, rollout: Rollout) -> "_Filtered":
        n, b = rollout.target.shape
        zeros = torch.zeros(b, device=rollout.x.device)
        return cls(zeros.expand(n, b) - math.log(n), zeros + n, zeros)

    def reweighed(self, log_increment: Tensor) -> "_Filtered":
        log_weights, log_total, ess = reweighed(self.log_weights, log_increment)
        return _Filtered(log_weights, ess, self.log_normalizer + log_total)


class Objective(nn.Module):
    """A depth step of training (with gradient="full": all of them) in one forward pass.

    Args:
        chain: what is trained.
        guide: its posterior; None trains on prior draws alone.
        config: the options.
        task: verifies decoded answers, for the heads' labels; None compares them with the known answers.

    Raises:
        ValueError: an option that needs a guide without one, or a depth that the chain is not made for.
    """

    def __init__(
        self,
        chain: Chain,
        guide: Guide | None = None,
        config: ObjectiveConfig | None = None,
        task: Any = None,
    ) -> None:
        super().__init__()
        self.config = config or ObjectiveConfig()
        if guide is None and self.config.carry < 1:
            raise ValueError("carry below 1 continues from the guide's draws, so it needs a guide")
        self.rule = rule_of(self.config.target)
        if guide is None and self.rule is attributed:
            raise ValueError("target=attributed asks the guide which answer the noise argues for: it needs a guide")
        made_for = chain.fixed_depth
        if made_for not in (None, self.config.depth):
            raise ValueError(
                f"{type(chain).__name__} is made for {made_for} depth steps, so the objective's depth must be "
                f"{made_for}, got {self.config.depth}"
            )
        self.chain, self.guide, self.task = chain, guide, task
        self.share = Share()  # this process's rows of the global batch
        self.autocast: torch.dtype | None = None  # type the network computes in; None: its parameters' own
        self.optimiser_step = 0  # for the warm-up of beta
        self.progress = 0.0  # share of the run that is done

    @property
    def beta(self) -> float:
        """Weight of the KL at this optimiser step."""
        return self.config.beta_at(self.optimiser_step)

    @property
    def target(self) -> Target:
        """The rule at this point of the run."""
        return responsibilities if self.config.settles_at(self.progress) else self.rule

    def forward(self, rollout: Rollout) -> StepResult:
        """Take the next depth step of every row, or with gradient="full" all S of them from the start."""
        with shared(self.share) if self.share.world > 1 else nullcontext():
            return self._forward(rollout)

    def _forward(self, rollout: Rollout) -> StepResult:
        terms = []
        filtered = _Filtered.start(rollout) if self.config.bound == "fivo" else None
        for _ in range(self.config.depth if self.config.gradient == "full" else 1):
            if filtered is not None:
                filtered, rollout = self._resample(filtered, rollout)
            term, rollout = self._depth_step(rollout)
            terms.append(term)
            if filtered is not None:
                filtered = filtered.reweighed(term.log_p + term.log_ratio)
        loss, metrics = self._bound(terms)
        if filtered is not None:
            loss = -filtered.log_normalizer.mean()
        head_loss, head_metrics, halted = self._heads(rollout)
        rollout = rollout._replace(state=trees.detach(rollout.state))
        return StepResult(loss + self.config.heads * head_loss, metrics | head_metrics, rollout, halted)

    # -- one depth step ---------------------------------------------------------------------------------------

    def _depth_step(self, rollout: Rollout) -> tuple[StepTerms, Rollout]:
        config, (n, b) = self.config, rollout.target.shape
        first = (rollout.age == 0).to(rollout.x.device).expand(n, b)
        from_prior = self.share.uniform(n, b, device=first.device) < config.carry
        y = pick(rollout.answers, rollout.target)  # [N, B, L]
        with self._network():
            context = self.chain.encode(rollout.x)
            with _plates(n, b):
                fresh = start(self.chain, (n, b), context)
        state = fresh if rollout.state is None else trees.where(first, fresh, rollout.state)
        state, charged, log_ratio, sites = self._transitions(state, context, rollout, y, from_prior)
        with torch.set_grad_enabled(config.gradient == "full" and torch.is_grad_enabled()):
            prior_state, noise = self._prior_draw(sites[-1])
        with torch.no_grad():
            sites[-1] = sites[-1]._replace(value=trees.where(from_prior, noise, sites[-1].value))  # what carries on
            belief = self._belief(rollout, sites) if self.target is attributed else None
            log_p = partial(self._log_p, prior_state, rollout)
            view = TargetView(log_p, belief, rollout.target, self.share.uniform_like)
            target = torch.where(from_prior, self.target(view), rollout.target)
        terms = StepTerms(self._readout(state).log_prob(y), charged, log_ratio)
        carried = trees.where(from_prior, prior_state, state)
        return terms, rollout._replace(
            target=target,
            age=rollout.age + 1,
            state=carried,
            honest=from_prior if rollout.honest is None else from_prior & (rollout.honest | first),
            belief=None if belief is None else belief.masked_fill(_beyond(rollout), 0.0),
            history=_record(rollout.history, trees.detach(prior_state), rollout.age, config.depth),
        )

    def _transitions(
        self, state: Any, context: Any, rollout: Rollout, y: Tensor, from_prior: Tensor
    ) -> tuple[Any, list[GuidedSite], Tensor | float, list[GuidedSite]]:
        """Run T transitions: the state, the sites charged, their log p - log q, and all sites of the guide.

        The guide acts on the last transition, and on those before it where the posterior carries on and the
        gradient reaches them.
        """
        config, chain = self.config, self.chain
        t = 0 if chain.homogeneous else int(rollout.age[0])
        charged: list[GuidedSite] = []
        guidable: list[GuidedSite] = []
        log_ratio: Tensor | float = 0.0
        with self._network():
            evidence = None if self.guide is None else self.guide.encode(y)
        for k in range(chain.transitions):
            is_last = k == chain.transitions - 1
            reached = is_last or config.gradient != "transition"
            acts = is_last or (reached and config.carry < 1)
            guide, rows = (self.guide if acts else None), (None if is_last else ~from_prior)
            with torch.set_grad_enabled(reached and torch.is_grad_enabled()), self._network():
                with (
                    weighted() as w,
                    guided(guide, evidence, rows, self.share.draw) as q,
                    _plates(*from_prior.shape),
                ):
                    state = chain.transition(state, t * chain.transitions + k, context)
            if acts:
                guidable += q.sites
            if guide is not None:
                log_ratio = log_ratio + w.log_weight
                if is_last or config.kl == "every":
                    charged += q.sites
        return trees.map_state(trees.widen, state), charged, log_ratio, guidable

    def _prior_draw(self, last: GuidedSite) -> tuple[Any, Tensor]:
        """The state that the prior makes of the last proposal: where a trajectory really goes."""
        if last.posterior is None:
            noise = last.value
        else:
            noise = self.share.draw(last.prior)
        return trees.map_state(trees.widen, self.chain.move(last.proposal, noise)), noise

    @torch.no_grad()
    def _choose(self, filtered: "_Filtered") -> tuple[Tensor, Tensor]:
        """Which problems resample `[B]`, and the ancestors `[N, B]`."""
        due = adaptive(systematic, self.config.ess_threshold).due(filtered.ess, len(filtered.log_weights))
        shape, device = (systematic.rows(len(filtered.log_weights)), len(due)), due.device
        drawn = systematic(filtered.log_weights, self.share.uniform(*shape, device=device, dtype=widest(device)))
        own = torch.arange(len(drawn), device=drawn.device)[:, None]
        return due, torch.where(due, drawn, own)

    def _resample(self, filtered: "_Filtered", rollout: Rollout) -> tuple["_Filtered", Rollout]:
        """Replace the trajectories of problems with a low effective sample size, before the next depth step."""
        if rollout.state is None or not self.config.ess_threshold:
            return filtered, rollout
        due, ancestors = self._choose(filtered)
        problem = torch.arange(ancestors.shape[1], device=ancestors.device)
        uniform = -torch.tensor(float(len(ancestors))).log().item()
        return (
            filtered._replace(log_weights=torch.where(due, uniform, filtered.log_weights)),
            rollout._replace(
                state=trees.gather_ancestors(rollout.state, ancestors),
                honest=trees.gather_ancestors(rollout.honest, ancestors),
                history=trees.map_state(lambda leaf: leaf[:, ancestors, problem], rollout.history),
            ),
        )

    # -- the bound --------------------------------------------------------------------------------------------

    def _bound(self, terms: list[StepTerms]) -> tuple[Tensor, dict[str, Tensor]]:
        log_p = torch.stack([term.log_p for term in terms]).sum(0)  # [N, B]
        sites = [site for term in terms for site in term.sites]
        kl = torch.stack([site.kl for site in sites]).sum(0) if sites else torch.zeros_like(log_p)
        if self.config.bound == "iwae":
            log_weight = log_p + torch.stack([torch.as_tensor(term.log_ratio) for term in terms]).sum(0)
            loss = -(log_weight.logsumexp(0) - torch.tensor(len(log_weight)).log()).mean()
        else:
            loss = -(log_p - self.beta * self._charged(kl, sites)).mean()
        metrics = {"reconstruction": -log_p.mean() / len(terms), "kl": kl.mean() / len(terms)}
        for site in sites[-self.chain.transitions :]:
            metrics[f"kl_{site.t % self.chain.transitions}"] = site.kl.mean()
        metrics |= _sigma_range(sites)
        return loss, {name: value.detach() for name, value in metrics.items()}

    def _charged(self, kl: Tensor, sites: list[GuidedSite]) -> Tensor:
        """KL as the loss sees it: plain, or balanced between guide and prior (arXiv 2010.02193, eq. 5)."""
        balance = self.config.balance
        if balance is None or not sites:
            return kl
        towards_guide = [_detached_kl(site, guide=True) for site in sites]
        towards_prior = [_detached_kl(site, guide=False) for site in sites]
        return balance * torch.stack(towards_guide).sum(0) + (1 - balance) * torch.stack(towards_prior).sum(0)

    # -- heads ------------------------------------------------------------------------------------------------

    def _heads(self, rollout: Rollout) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Losses of the heads, on prior states only: "halt" now, "value" of all states of a trajectory that ends.

        Under gradient="full", where all depth steps are one, "halt" so learns from the last of them.
        """
        zero, b = rollout.target.new_zeros((), dtype=torch.float32), len(rollout.x)
        halted = torch.zeros(b, dtype=torch.bool, device=zero.device)
        slot = (rollout.age - 1).clamp(max=self.config.depth - 1)
        now = trees.map_state(lambda leaf: leaf[slot, :, torch.arange(b)].transpose(0, 1), rollout.history)
        with self._network():
            heads = {name: value.float() for name, value in self.chain.heads(now).items()}
        right = self._is_right(now, rollout)  # [N, B]
        metrics = {"right": right.float().mean()}
        honest = rollout.honest if rollout.honest is not None else torch.ones_like(right)
        loss = zero
        if "halt" in heads:
            loss = loss + self._head_loss(heads["halt"], right, honest)
            halted = (heads["halt"] > 0).all(0)
        ended = (rollout.age >= self.config.depth).nonzero()[:, 0]
        if "value" in heads and self.share.some(len(ended) > 0, right.device):
            past = trees.map_state(lambda leaf: leaf[:, :, ended], rollout.history)  # [S, N, ended, ...]
            with self._network():
                value = self.chain.heads(past)["value"].float()
            at_end = (part[:, ended].expand_as(value) for part in (right, honest))
            loss = loss + self._head_loss(value, *at_end)
            metrics["right_at_end"] = self.share.mean(right[:, ended].float())
        metrics["heads"] = loss.detach()
        return loss, metrics, halted

    def _head_loss(self, logits: Tensor, right: Tensor, honest: Tensor) -> Tensor:
        """Binary cross-entropy over rows, of all ranks, that only ever saw prior states, nats."""
        loss = F.binary_cross_entropy_with_logits(logits, right.float(), reduction="none")
        return (loss * honest).sum() * self.share.world / self.share.total(honest.sum()).clamp(min=1)

    @torch.no_grad()
    def _is_right(self, state: Any, rollout: Rollout) -> Tensor:
        answer = self._readout(state).mode  # [N, B, L]
        if self.task is not None:
            with suppress(UnknownAnswers):
                return self.task.verify(rollout.x, answer)
        same = (answer[:, :, None] == rollout.answers) | (rollout.answers < 0)  # [N, B, M, L]
        return same.all(-1).any(-1)

    # -- what targets may ask for -----------------------------------------------------------------------------

    def _log_p(self, state: Any, rollout: Rollout) -> Tensor:
        """Log p(y_m | state) of every known answer, -inf beyond the count, `[N, B, M]`."""
        readout = self._readout(state)
        answers = rollout.answers.transpose(0, 1)[:, None]  # [M, 1, B, L]
        scores = readout.log_prob(answers.expand(-1, *readout.batch_shape, -1))
        return scores.movedim(0, -1).masked_fill(_beyond(rollout), -torch.inf)

    def _belief(self, rollout: Rollout, sites: list[GuidedSite]) -> Tensor:
        """Add what the noise that carries on says for each answer; -inf beyond the count, `[N, B, M]`."""
        assert self.guide is not None
        with self._network():
            belief = said_by_noise(self.chain, self.guide, sites, rollout.answers, rollout.counts)
        if rollout.belief is not None:
            belief = belief + rollout.belief * (rollout.age > 0).to(belief.device)[:, None]
        real = belief.masked_fill(_beyond(rollout), -torch.inf)
        return real - real.amax(-1, keepdim=True)

    # -- precision --------------------------------------------------------------------------------------------

    def _network(self) -> AbstractContextManager[Any]:
        """Autocast around the network's methods only: losses, weights and densities stay in float32."""
        known = next((p for p in (*self.chain.parameters(), *self.chain.buffers())), None)
        device = "cpu" if known is None else known.device.type
        return torch.autocast(device, self.autocast or torch.bfloat16, enabled=self.autocast is not None)

    def _readout(self, state: Any) -> Any:
        with self._network():
            return self.chain.readout(state)


@contextmanager
def _plates(particles: int, problems: int) -> Iterator[None]:
    """The plates of a chain's sites; handlers that fill sites go outside of them."""
    with pyro.plate("particles", particles, dim=-2), pyro.plate("problems", problems, dim=-1):
        yield


def pick(answers: Tensor, index: Tensor) -> Tensor:
    """Answer `index[n, b]` of problem b: from `[B, M, L]` and `[N, B]` to `[N, B, L]`."""
    return answers[torch.arange(len(answers), device=answers.device), index]


def _beyond(rollout: Rollout) -> Tensor:
    """Slots of `answers` that are padding, `[B, M]`."""
    return (torch.arange(rollout.answers.shape[1]) >= rollout.counts[:, None]).to(rollout.answers.device)


def _record(history: Any, state: Any, age: Tensor, depth: int) -> Any:
    """Write `[N, B, ...]` states into their rows' own depth slots of `[S, N, B, ...]`."""
    slot, row = age.clamp(max=depth - 1), torch.arange(len(age))

    def write(buffer: Tensor, leaf: Tensor) -> Tensor:
        buffer[slot, :, row] = leaf.transpose(0, 1)
        return buffer

    if history is None:
        history = trees.map_state(lambda leaf: leaf.new_zeros(depth, *leaf.shape), state)
    return trees.map_state(write, history, state)


def _detached_kl(site: GuidedSite, guide: bool) -> Tensor:
    """KL(q || p) of a site with the gradient of one side only: the prior's if `guide` is cut off."""
    prior, posterior = site.prior, site.posterior
    assert posterior is not None
    if guide:
        posterior = detach_distribution(posterior)
    else:
        prior = detach_distribution(prior)
    return site.counted(kl_divergence(posterior, prior))


def detach_distribution(distribution: Any) -> Any:
    """A distribution with the same parameters, cut from the graph (Normal, and Independent of one)."""
    if hasattr(distribution, "base_dist"):
        inner = detach_distribution(distribution.base_dist)
        return type(distribution)(inner, distribution.reinterpreted_batch_ndims)
    parameters = {name: getattr(distribution, name).detach() for name in ("loc", "scale")}
    return type(distribution)(**parameters, validate_args=False)


def _sigma_range(sites: list[GuidedSite]) -> dict[str, Tensor]:
    """Smallest, mean and largest prior standard deviation, where the prior has one."""
    scales = [site.prior.stddev for site in sites[-1:]]
    return {f"sigma_{name}": getattr(s, name)() for s in scales for name in ("amin", "mean", "amax")}
