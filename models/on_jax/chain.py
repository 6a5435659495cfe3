"""The recursion as a generative Markov chain in JAX, and the NumPyro programs that follow from it.

    context  = encode(x)                    once per problem
    state    = initial(context)
    proposal = propose(state, context, t)   deterministic
    eps      ~ prior(proposal, t)           the stochastic guidance
    state    = move(proposal, eps)
    y        ~ readout(state)               after every depth step of `transitions` such transitions

The twin of `probgram.chain`: the same methods, as pure functions of an Equinox module. Depth is `lax.scan`, so t
may be traced and a depth step has the sites `eps_0` to `eps_{T-1}`, whatever t is. Width is not in here: whoever
infers opens the `particles` plate (dim -2) around programs that open `problems` (dim -1) and nothing else.

Source: Baek et al., "Generative Recursive Reasoning", arXiv 2605.19376, section 3.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro.contrib.control_flow import scan

Context = Any
State = Any
Proposal = Any
Evidence = Any
Observe = str
Module = TypeVar("Module", "Chain", "Guide")


class Chain(eqx.Module):
    """A stochastic recursion: override the short methods below, inherit the programs.

    Attributes:
        homogeneous: whether `propose` and `prior` ignore t.
        buffers: names of arrays that are no parameters: training leaves them alone.
        about: what was saved beside its weights: task, seeds, figures. Copies that JAX makes have none.
    """

    homogeneous: ClassVar[bool] = False
    buffers: ClassVar[tuple[str, ...]] = ()
    about: ClassVar[Mapping[str, Any]] = MappingProxyType({})

    @property
    def transitions(self) -> int:
        """T, transitions in a depth step."""
        return 1

    def encode(self, x: Array) -> Context:
        """Compute once per problem what every transition needs; `x` `[B, ...]`, leaves `[B, ...]`."""
        return jnp.asarray(x)

    def check(self, x: Any) -> None:
        """Raise ValueError, in one sentence, where x is no input of this chain; called once at the edge."""

    def check_answers(self, y: Any) -> None:
        """Raise ValueError, in one sentence, where y `[..., L]` is no answer this chain can give; called once."""

    def initial(self, context: Context) -> State:
        """Return the state before the first depth step, leaves `[B, ...]`; may call `numpyro.sample`."""
        raise NotImplementedError(f"{type(self).__name__} must define initial(context)")

    def propose(self, state: State, context: Context, t: Any) -> Proposal:
        """Return the deterministic part of transition `t`, for instance u = f(h, e_x)."""
        raise NotImplementedError(f"{type(self).__name__} must define propose(state, context, t)")

    def prior(self, proposal: Proposal, t: Any) -> dist.Distribution:
        """Return p(eps | u), batch shape `[..., B]`, everything else in the event."""
        raise NotImplementedError(f"{type(self).__name__} must define prior(proposal, t)")

    def move(self, proposal: Proposal, eps: Array) -> State:
        """Return the next state; by default u + eps."""
        return proposal + eps

    def readout(self, state: State) -> dist.Distribution:
        """Return p(y | h), event shape `[L]`."""
        raise NotImplementedError(f"{type(self).__name__} must define readout(state)")

    def heads(self, state: State) -> dict[str, Array]:
        """Return logits `[..., B]` of learned predictions, among them "value" and "halt"; default none."""
        return {}

    # -- what the base class builds from them ---------------------------------------------------------------

    def init(self, context: Context) -> State:
        """Start a run: the state at depth 0."""
        return self.initial(context)

    def step(self, state: State, t: Any, context: Context) -> State:
        """One depth step: T transitions, with the sites `eps_0` to `eps_{T - 1}`."""
        for k in range(self.transitions):
            state = self.transition(state, t * self.transitions + k, context, k)
        return state

    def transition(self, state: State, t: Any, context: Context, k: int = 0) -> State:
        """Transition t, the k-th of its depth step, with the site `eps_k`; the proposal travels in the site."""
        proposal = self.propose(state, context, t)
        eps = numpyro.sample(f"eps_{k}", self.prior(proposal, t), infer={"proposal": proposal, "t": t})
        return self.move(proposal, eps)

    def model(self, x: Array, y: Array | None = None, depth: int = 8, observe: Observe = "every") -> State:
        """The generative program p(eps, y | x), for any of NumPyro's inference algorithms.

        Its sites are `eps_0` to `eps_{T-1}`, `[S, B, ...]` with depth on the left, and `y` (`[S, B, L]` where it is
        observed at every depth step, else `[B, L]`).

        Args:
            x: problems, `[B, ...]`.
            y: answers `[B, L]`, or None to sample them.
            depth: S, depth steps.
            observe: "every" observes y at every depth step (the training program), "last" at the last.

        Returns:
            The last state.
        """
        _check_program(depth, observe)
        chain = _registered("chain", self)
        context, problems = chain.encode(x), len(x)
        with numpyro.plate("problems", problems, dim=-1):
            state = chain.init(context)

        def depth_step(state: State, t: Array) -> tuple[State, None]:
            with _without_proposals(), numpyro.plate("problems", problems, dim=-1):
                state = chain.step(state, t, context)
                if observe == "every":
                    numpyro.sample("y", chain.readout(state), obs=y)
            return state, None

        state, _ = scan(depth_step, state, jnp.arange(depth))
        if observe == "last":
            with numpyro.plate("problems", problems, dim=-1):
                numpyro.sample("y", chain.readout(state), obs=y)
        return state

    def guide(self, guide: "Guide") -> Callable[..., State]:
        """Return the variational program that pairs `guide` with this chain, with the arguments of `model`.

        `SVI(chain.model, chain.guide(guide), optimiser, TraceMeanField_ELBO())` trains both.
        """

        def program(x: Array, y: Array, depth: int = 8, observe: Observe = "every") -> State:
            _check_program(depth, observe)
            chain = _registered("chain", self)
            posterior = _registered("guide", guide)
            context, evidence, problems = chain.encode(x), posterior.encode(y), len(x)
            with numpyro.plate("problems", problems, dim=-1):
                state = chain.init(context)

            def depth_step(state: State, t: Array) -> tuple[State, None]:
                with numpyro.plate("problems", problems, dim=-1):
                    for k in range(chain.transitions):
                        at = t * chain.transitions + k
                        proposal = chain.propose(state, context, at)
                        eps = numpyro.sample(f"eps_{k}", posterior.posterior(proposal, evidence, at))
                        state = chain.move(proposal, eps)
                return state, None

            return scan(depth_step, state, jnp.arange(depth))[0]

        return program

    # -- weights ----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Array]:
        """Every array by its name, `f.blocks.0.mix.qkv.weight`: the names and layouts of the torch twin."""
        return named_arrays(self)

    def configuration(self) -> dict[str, Any]:
        """Plain values that `from_configuration` builds the same untrained chain from; needed to save weights."""
        raise NotImplementedError(f"{type(self).__name__} must define configuration() to have its weights saved")

    @classmethod
    def from_configuration(cls, configuration: dict[str, Any]) -> Self:
        """Build an untrained chain from what `configuration` returned; by default its keyword arguments."""
        return cls(**configuration)

    @classmethod
    def from_pretrained(cls, name: str | Path) -> Self:
        """Load trained weights, whichever backend wrote them: a shipped name such as "queens8", a file or folder.

        Raises:
            CheckpointError: no such weights, or the file is damaged or of another model.
        """
        from probgram.models.on_jax.weights import load_chain

        return load_chain(name, cls)

    @staticmethod
    def from_module(
        f: Callable[[Array, Context], Array],
        readout: Callable[[Array], Array],
        state_shape: tuple[int, ...],
        encode: Callable[[Array], Context] | None = None,
        sigma: float = 0.1,
        transitions: int = 1,
        key: Array | None = None,
    ) -> "Chain":
        """Wrap an existing recursion h <- f(h, context) as a chain with Gaussian noise on the state.

        Args:
            f: the transition, `(h [..., B, *state_shape], context [B, ...]) -> h`; arrays in it are parameters.
            readout: logits of the answer, `h -> [..., B, L, V]`.
            state_shape: event shape of h, for instance `(L, D)`; h starts at one fixed draw from N(0, I).
            encode: `x [B, ...] -> context [B, ...]`; by default x itself.
            sigma: standard deviation of the noise added to the state in a transition, at least 0.
            transitions: T, transitions in a depth step.
            key: of the fixed draw; None: key 0.

        Raises:
            ValueError: sigma is negative or transitions is below 1.
        """
        if sigma < 0:
            raise ValueError(f"sigma must be at least 0, got {sigma}")
        if transitions < 1:
            raise ValueError(f"transitions must be at least 1, got {transitions}")
        z0 = jax.random.normal(jax.random.key(0) if key is None else key, state_shape)
        return _ModuleChain(z0, f, readout, encode, sigma, transitions)


class Guide(eqx.Module):
    """A variational posterior over the same sites, which sees the answer y.

    Attributes:
        buffers: names of arrays that are no parameters, as in `Chain`.
    """

    buffers: ClassVar[tuple[str, ...]] = ()

    def encode(self, y: Array) -> Evidence:
        """Compute once per problem what every transition's posterior needs; `y` `[B, L]`."""
        return y

    def posterior(self, proposal: Proposal, evidence: Evidence, t: Any) -> dist.Distribution:
        """Return q(eps | u, y), with the shapes of the chain's prior."""
        raise NotImplementedError(f"{type(self).__name__} must define posterior(proposal, evidence, t)")

    @property
    def token_values(self) -> int | None:
        """V, where the noise of a token depends on y by that token alone, as `probgram.Guide.token_values`."""
        return None

    def state_dict(self) -> dict[str, Array]:
        """Every array by its name, as `Chain.state_dict`."""
        return named_arrays(self)


class _ModuleChain(Chain):
    """A user's recursion with a Gaussian of fixed width on its state."""

    homogeneous: ClassVar[bool] = True
    buffers: ClassVar[tuple[str, ...]] = ("z0",)
    z0: Array
    f: Callable[[Array, Context], Array]
    to_logits: Callable[[Array], Array]
    to_context: Callable[[Array], Context] | None
    sigma: float = eqx.field(static=True)
    _transitions: int = eqx.field(static=True)

    @property
    def transitions(self) -> int:
        return self._transitions

    def encode(self, x: Array) -> Context:
        return jnp.asarray(x) if self.to_context is None else self.to_context(jnp.asarray(x))

    def initial(self, context: Context) -> Array:
        first = jax.tree.leaves(context)[0]
        return jnp.broadcast_to(jax.lax.stop_gradient(self.z0), (first.shape[0], *self.z0.shape))

    def propose(self, state: Array, context: Context, t: Any) -> Array:
        return self.f(state, context)

    def prior(self, proposal: Array, t: Any) -> dist.Distribution:
        events = self.z0.ndim
        if self.sigma == 0:
            return dist.Delta(jnp.zeros_like(proposal), event_dim=events)
        return dist.Normal(jnp.zeros_like(proposal), self.sigma).to_event(events)

    def readout(self, state: Array) -> dist.Distribution:
        return dist.Categorical(logits=self.to_logits(state)).to_event(1)


class _without_proposals(numpyro.primitives.Messenger):  # noqa: N801 - handlers are lower case in NumPyro
    """Take the proposal out of a site once it was drawn: a scan returns its sites, and cannot return that one."""

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "sample":
            for name in ("proposal", "t"):
                msg["infer"].pop(name, None)


def named_arrays(module: Any) -> dict[str, Array]:
    """Arrays of an Equinox module by name, fields and list positions joined by dots."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(eqx.filter(module, eqx.is_array))
    return {_name(path): leaf for path, leaf in leaves}


def _name(path: Any) -> str:
    return ".".join(str(getattr(step, "name", getattr(step, "idx", None))) for step in path)


def _registered(name: str, module: Module) -> Module:
    """The module with its arrays as NumPyro's parameter `{name}$params`, as `eqx_module` does, but its buffers."""

    def trained(path: Any, leaf: Any) -> bool:
        own = _name(path)
        return eqx.is_inexact_array(leaf) and not any(f"{own}.".startswith(f"{b}.") for b in module.buffers)

    parameters, others = eqx.partition(module, jax.tree_util.tree_map_with_path(trained, module))
    return eqx.combine(numpyro.param(f"{name}$params", lambda _: parameters), others)


def _check_program(depth: int, observe: Observe) -> None:
    if depth < 1:
        raise ValueError(f"depth must be at least 1, got {depth}")
    if observe not in ("every", "last"):
        raise ValueError(f'observe must be "every" or "last", got {observe!r}')
