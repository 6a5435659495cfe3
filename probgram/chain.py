"""The recursion as a generative Markov chain, and the Pyro programs that follow from it.

    context  = encode(x)                    once per problem
    state    = initial(context)
    proposal = propose(state, context, t)   deterministic
    eps      ~ prior(proposal, t)           the stochastic guidance
    state    = move(proposal, eps)
    y        ~ readout(state)               after every depth step of `transitions` such transitions

`Chain` turns these methods into `init`, `step`, `model` and `guide`. Width is not in here: whoever infers
opens the `particles` plate (dim -2) around programs that open `problems` (dim -1) and nothing else.

Source: Baek et al., "Generative Recursive Reasoning", arXiv 2605.19376, section 3.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import pyro
import torch
from pyro import distributions as dist
from torch import Tensor, nn

from probgram import state as trees

Context = Any
State = Any
Proposal = Any
Evidence = Any
Observe = str


class Chain(nn.Module):
    """A stochastic recursion: override the short methods below, inherit the programs.

    Attributes:
        transitions: T, transitions in a depth step.
        fixed_depth: S, where the chain is made for one number of depth steps; None: any.
        homogeneous: whether `propose` and `prior` ignore t; then problems of different depths may share a batch.
        about: what was saved beside its weights: task, seeds, figures.
    """

    transitions: int = 1
    fixed_depth: int | None = None
    homogeneous: bool = False
    about: Mapping[str, Any] = MappingProxyType({})

    def encode(self, x: Tensor) -> Context:
        """Compute once per problem what every transition needs; `x` `[B, ...]`, leaves `[B, ...]`."""
        return x

    def check(self, x: Tensor) -> None:
        """Raise ValueError, in one sentence, where x is no input of this chain; called once at the edge."""

    def check_answers(self, y: Tensor) -> None:
        """Raise ValueError, in one sentence, where y `[..., L]` is no answer this chain can give; called once."""

    def initial(self, context: Context) -> State:
        """Return the state before the first depth step, leaves `[B, ...]`; may call `pyro.sample`."""
        raise NotImplementedError(f"{type(self).__name__} must define initial(context)")

    def propose(self, state: State, context: Context, t: int) -> Proposal:
        """Return the deterministic part of transition `t`, for instance u = f(h, e_x)."""
        raise NotImplementedError(f"{type(self).__name__} must define propose(state, context, t)")

    def prior(self, proposal: Proposal, t: int) -> dist.TorchDistribution:
        """Return p(eps | u), batch shape `[..., B]`, everything else in the event."""
        raise NotImplementedError(f"{type(self).__name__} must define prior(proposal, t)")

    def move(self, proposal: Proposal, eps: Tensor) -> State:
        """Return the next state; by default u + eps."""
        return proposal + eps

    def readout(self, state: State) -> dist.TorchDistribution:
        """Return p(y | h), event shape `[L]`."""
        raise NotImplementedError(f"{type(self).__name__} must define readout(state)")

    def heads(self, state: State) -> dict[str, Tensor]:
        """Return logits `[..., B]` of learned predictions, among them "value" and "halt"; default none."""
        return {}

    # -- what the base class builds from them ---------------------------------------------------------------

    def init(self, context: Context) -> State:
        """Start a run: the state at depth 0."""
        return self.initial(context)

    def step(self, state: State, t: int, context: Context) -> State:
        """One depth step: T transitions, with the sites `eps_{tT}` to `eps_{tT + T - 1}`."""
        for transition in range(t * self.transitions, (t + 1) * self.transitions):
            state = self.transition(state, transition, context)
        return state

    def transition(self, state: State, t: int, context: Context) -> State:
        """One transition, with the site `eps_t`; the proposal travels in the site, for guides to read."""
        proposal = self.propose(state, context, t)
        eps = pyro.sample(f"eps_{t}", self.prior(proposal, t), infer={"proposal": proposal, "t": t})  # type: ignore[arg-type]
        return self.move(proposal, eps)

    def model(self, x: Tensor, y: Tensor | None = None, depth: int = 8, observe: Observe = "every") -> State:
        """The generative program p(eps, y | x), for any of Pyro's inference algorithms.

        Args:
            x: problems, `[B, ...]`.
            y: answers `[B, L]`, or None to sample them.
            depth: S, depth steps.
            observe: "every" observes y at every depth step (the training program), "last" at the last.

        Returns:
            The last state.
        """
        _check_program(depth, observe)
        pyro.module("chain", self)
        context = self.encode(x)
        with pyro.plate("problems", len(x), dim=-1):
            state = self.init(context)
            for t in range(depth):
                state = self.step(state, t, context)
                if observe == "every" or t == depth - 1:
                    pyro.sample(f"y_{t}", self.readout(state), obs=y)
        return state

    def guide(self, guide: "Guide") -> Callable[..., State]:
        """Return the variational program that pairs `guide` with this chain, with the arguments of `model`.

        `SVI(chain.model, chain.guide(guide), optimiser, TraceMeanField_ELBO(max_plate_nesting=1))` trains both.
        """

        def program(x: Tensor, y: Tensor, depth: int = 8, observe: Observe = "every") -> State:
            _check_program(depth, observe)
            pyro.module("chain", self)
            pyro.module("guide", guide)
            context, evidence = self.encode(x), guide.encode(y)
            with pyro.plate("problems", len(x), dim=-1):
                state = self.init(context)
                for t in range(depth * self.transitions):
                    proposal = self.propose(state, context, t)
                    eps = pyro.sample(f"eps_{t}", guide.posterior(proposal, evidence, t))
                    state = self.move(proposal, eps)
            return state

        return program

    # -- weights ----------------------------------------------------------------------------------------------

    def configuration(self) -> dict[str, Any]:
        """Plain values that `from_configuration` builds the same untrained chain from; needed to save weights."""
        raise NotImplementedError(f"{type(self).__name__} must define configuration() to have its weights saved")

    @classmethod
    def from_configuration(cls, configuration: dict[str, Any]) -> Self:
        """Build an untrained chain from what `configuration` returned; by default its keyword arguments."""
        return cls(**configuration)

    @classmethod
    def from_pretrained(cls, name: str | Path) -> Self:
        """Load trained weights: a shipped name such as "queens8", or a user's file or folder.

        Raises:
            CheckpointError: no such weights, or the file is damaged or of another model.
        """
        from probgram.checkpoint import load_chain

        return load_chain(name, cls)

    @staticmethod
    def from_module(
        f: Callable[[Tensor, Context], Tensor],
        readout: Callable[[Tensor], Tensor],
        state_shape: tuple[int, ...],
        encode: Callable[[Tensor], Context] | None = None,
        sigma: float = 0.1,
        transitions: int = 1,
    ) -> "Chain":
        """Wrap an existing recursion h <- f(h, context) as a chain with Gaussian noise on the state.

        Args:
            f: the transition, `(h [..., B, *state_shape], context [B, ...]) -> h`.
            readout: logits of the answer, `h -> [..., B, L, V]`.
            state_shape: event shape of h, for instance `(L, D)`; h starts at one fixed draw from N(0, I).
            encode: `x [B, ...] -> context [B, ...]`; by default x itself.
            sigma: standard deviation of the noise added to the state in a transition, at least 0.
            transitions: T, transitions in a depth step.

        Raises:
            ValueError: sigma is negative or transitions is below 1.
        """
        return _ModuleChain(f, readout, state_shape, encode, sigma, transitions)


class Guide(nn.Module):
    """A variational posterior over the same sites, which sees the answer y."""

    def encode(self, y: Tensor) -> Evidence:
        """Compute once per problem what every transition's posterior needs; `y` `[B, L]`."""
        return y

    def posterior(self, proposal: Proposal, evidence: Evidence, t: int) -> dist.TorchDistribution:
        """Return q(eps | u, y), with the shapes of the chain's prior."""
        raise NotImplementedError(f"{type(self).__name__} must define posterior(proposal, evidence, t)")

    @property
    def token_values(self) -> int | None:
        """V, where the noise of a token depends on y by that token alone: q(eps | u, y) = Π_l q(eps_l | u, y_l).

        The target `attributed` may then ask the guide once for each of V values of all tokens instead of once for
        each known answer. It needs noise `[..., L, D]` (a first token of the task may come before L) and an
        `Independent` over both. None, the default: no such factors.
        """
        return None


class _ModuleChain(Chain):
    """A user's recursion with a Gaussian of fixed width on its state."""

    homogeneous = True
    z0: Tensor

    def __init__(
        self,
        f: Callable[[Tensor, Context], Tensor],
        readout: Callable[[Tensor], Tensor],
        state_shape: tuple[int, ...],
        encode: Callable[[Tensor], Context] | None,
        sigma: float,
        transitions: int,
    ) -> None:
        super().__init__()
        if sigma < 0:
            raise ValueError(f"sigma must be at least 0, got {sigma}")
        if transitions < 1:
            raise ValueError(f"transitions must be at least 1, got {transitions}")
        self.f, self.to_logits, self.to_context = f, readout, encode  # modules among them are registered
        self.sigma, self.transitions = sigma, transitions
        self.register_buffer("z0", torch.randn(*state_shape, generator=torch.Generator().manual_seed(0)))

    def encode(self, x: Tensor) -> Context:
        return x if self.to_context is None else self.to_context(x)

    def initial(self, context: Context) -> Tensor:
        _, first = next(trees.leaves(context, "context"))
        return self.z0.expand(first.shape[0], *self.z0.shape)

    def propose(self, state: Tensor, context: Context, t: int) -> Tensor:
        return self.f(state, context)

    def prior(self, proposal: Tensor, t: int) -> dist.TorchDistribution:
        events = self.z0.dim()
        if self.sigma == 0:
            return dist.Delta(torch.zeros_like(proposal)).to_event(events)
        return dist.Normal(torch.zeros_like(proposal), self.sigma).to_event(events)

    def readout(self, state: Tensor) -> dist.TorchDistribution:
        return dist.Categorical(logits=trees.widen(self.to_logits(state))).to_event(1)


def _check_program(depth: int, observe: Observe) -> None:
    if depth < 1:
        raise ValueError(f"depth must be at least 1, got {depth}")
    if observe not in ("every", "last"):
        raise ValueError(f'observe must be "every" or "last", got {observe!r}')
