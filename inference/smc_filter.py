"""`SMCFilter` with Pyro's interface on our filter: change one import, gain the normaliser and large N.

    from probgram.inference.smc_filter import SMCFilter          was: from pyro.infer import SMCFilter

    smc = SMCFilter(model, guide, num_particles=100_000, max_plate_nesting=0)
    smc.init(initial)
    for y in series:
        smc.step(y)
    smc.get_empirical()["z"].mean, smc.log_evidence

Model and guide have `init(state, ...)` and `step(state, ...)`; `state` is a dict of tensors that begin with the
particles, and holds whatever depends on what was sampled. What differs from Pyro's class:

* trajectories are resampled before the next step, not after this one: between steps the weights still carry the
  last observation, and `get_empirical` averages over more distinct particles;
* a guide may write into `state`. The model sees the state as it was before the guide wrote;
* the guide may be None, and NaN in an argument means that it was not observed;
* p / q alone does not trigger resampling, an observation does.

Source: the interface is that of `pyro.infer.SMCFilter`.
"""

import sys
from typing import Any

import torch
from pyro import distributions as dist
from pyro import poutine
from torch import Tensor

from probgram.inference import smc
from probgram.inference.kernels import Moved, PyroKernel
from probgram.inference.resampling import Scheme, adaptive, systematic

_NOTHING = ""  # the leaf of a state that holds nothing, so that its particles can be counted


class Particles(dict[Any, Tensor]):
    """A dict of tensors, particles first, with the normalised `log_weights` beside it."""

    def __init__(self, values: Any = (), log_weights: Tensor | None = None) -> None:
        super().__init__(values)
        self.log_weights = log_weights

    @property
    def _log_weights(self) -> Tensor | None:  # what Pyro calls it
        return self.log_weights


class SMCFilter:
    """A particle filter for models that keep their state in a dict.

    Args:
        model: has `init(state, ...)` and `step(state, ...)`.
        guide: the same two methods, and samples some of the model's sites, the others come from the prior; None:
            all of them do.
        num_particles: N.
        max_plate_nesting: how many plates of its own the model opens; the particles stand to their left.
        ess_threshold: resample when the effective sample size is at most this share of N; at 1 at every step.
        resample: a scheme of `probgram.inference.resampling`.
        problems: B series side by side, each with its own weights: tensor arguments are `[B, ...]`, and leaves of
            the state `[N, B, ...]`, B at dim -1 - max_plate_nesting. None: one, and leaves `[N, ...]`.
        seed: None takes one from torch's global generator, so `pyro.set_rng_seed` governs the run.
        device: None: that of the first tensor that `init` is given, else the CPU.

    Attributes:
        state: the particles, with `state.log_weights`, `[N]` or `[N, B]`. What is written into it between steps
            counts.
    """

    def __init__(
        self,
        model: Any,
        guide: Any,
        num_particles: int,
        max_plate_nesting: int = 0,
        *,
        ess_threshold: float = 0.5,
        resample: Scheme = systematic,
        problems: int | None = None,
        seed: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        for name, number, least in (
            ("num_particles", num_particles, 1),
            ("max_plate_nesting", max_plate_nesting, 0),
            ("problems", 1 if problems is None else problems, 1),
        ):
            if isinstance(number, bool) or not isinstance(number, int) or number < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {number!r}")
        if not 0 < ess_threshold <= 1:
            raise ValueError(f"ess_threshold must be above 0 and at most 1, got {ess_threshold}")
        for part, what in ((model, "model"), (guide, "guide")):
            for method in ("init", "step"):
                if part is not None and not callable(getattr(part, method, None)):
                    raise ValueError(f"{what} must have init and step, {type(part).__name__} has no {method}")
        self.model, self.guide = model, guide
        self.num_particles, self.max_plate_nesting = num_particles, max_plate_nesting
        self.ess_threshold, self.problems, self.seed, self.device = ess_threshold, problems, seed, device
        self.state = Particles()
        self._rule = adaptive(resample, ess_threshold, first=0)
        self._filtered: smc.SMCState | None = None

    def init(self, *args: Any, **kwargs: Any) -> None:
        """Draw the particles; the arguments go to the model and the guide. A second call starts again."""
        given = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, Tensor)]
        device = torch.device(self.device or (given[0].device if given else "cpu"))
        self._kernel = _Kernel(self, device)
        self._algorithm = smc.Filter(
            self._kernel, self.num_particles, sys.maxsize, resample=self._rule, guided=self.guide is not None
        )
        seed = int(torch.randint(2**62, ())) if self.seed is None else self.seed
        with self._kernel.given(args, kwargs), torch.no_grad(), poutine.block():
            state = smc.init(self._algorithm, seed)
        self._keep(state)

    def step(self, *args: Any, **kwargs: Any) -> None:
        """Resample where the weights ask for it, propose, weigh; the arguments go to the model and the guide.

        Raises:
            FilterError: no particle has weight left, or a weight is NaN; the site is named.
        """
        before = self._after_init("step")
        latent = {key: leaf if self.problems else leaf[:, None] for key, leaf in self.state.items()}
        before = before._replace(latent=self._kernel.filled(latent))
        with self._kernel.given(args, kwargs), torch.no_grad(), poutine.block():
            state, _ = smc.step(self._algorithm, before)
        self._keep(state)

    def get_empirical(self) -> dict[Any, dist.Empirical]:
        """The weighted values of every tensor of the state; with problems, `[B]` distributions each."""
        self._after_init("get_empirical")
        log_weights = self.state.log_weights
        assert log_weights is not None
        if self.problems:
            return {k: dist.Empirical(v.transpose(0, 1), log_weights.T) for k, v in self.state.items()}
        return {key: dist.Empirical(value, log_weights) for key, value in self.state.items()}

    @property
    def log_normalizer(self) -> Tensor:
        """Log of the mean weight so far, in nats, float64; `[B]` with problems. Its exponential is unbiased."""
        log_normalizer = self._after_init("log_normalizer").log_normalizer
        return log_normalizer if self.problems else log_normalizer[0]

    @property
    def log_evidence(self) -> Tensor:
        """Log p(observations so far), in nats, float64; `[B]` with problems.

        Raises:
            ValueError: nothing was observed, or something that is no likelihood (a `pyro.factor`).
        """
        log_normalizer = self.log_normalizer
        if not self._kernel.observed or not self._kernel.likelihood:
            raise ValueError(
                "log_evidence exists only where every factor is a likelihood of observations: use log_normalizer"
            )
        return log_normalizer

    @property
    def ess(self) -> Tensor:
        """Effective sample size after the last step; `[B]` with problems."""
        ess = self._after_init("ess").ess
        return ess if self.problems else ess[0]

    def _after_init(self, what: str) -> smc.SMCState:
        if self._filtered is None:
            raise ValueError(f"{what} comes after init, which draws the particles: call init(...) first")
        return self._filtered

    def _keep(self, state: smc.SMCState) -> None:
        if state.log_normalizer.isfinite().all() or (self.problems and not state.nan.any()):
            latent = {k: leaf if self.problems else leaf[:, 0] for k, leaf in state.latent.items() if k != _NOTHING}
            self.state = Particles(latent, state.log_weights if self.problems else state.log_weights[:, 0])
            self._filtered = state
            return
        where = "init" if state.t == 0 else f"step {state.t}"
        for name, log_weight in self._kernel.sites.items():
            for bad, what in ((log_weight.isnan().any(), "is NaN"), (log_weight.isneginf().all(), "gives none")):
                if bad:
                    raise smc.FilterError(f"no weight is left after {where}: site {name!r} {what}")
        raise smc.FilterError(f"no particle has weight left after {where}")


class _Kernel(PyroKernel):
    """The particles of an `SMCFilter`; remembers what the last step weighed, and whether all were likelihoods."""

    def __init__(self, owner: SMCFilter, device: torch.device) -> None:
        call = _Call(owner.model, owner.guide, (owner.num_particles, *([owner.problems] if owner.problems else [])))
        super().__init__(
            call,
            (),
            owner.problems or 1,
            device,
            owner.max_plate_nesting,
            None if owner.guide is None else call.guide,
            strict=True,
            single=owner.problems is None,
        )
        self.call, self.width = call, owner.num_particles
        self.sites: dict[str, Tensor] = {}
        self.observed, self.likelihood = False, True

    def given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> "_Call":
        """The arguments of a step, in a `with` statement."""
        self.call.args, self.call.kwargs = args, kwargs
        tensors = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, Tensor) and arg.is_floating_point()]
        self.missing = any(bool(arg.isnan().any()) for arg in tensors)
        return self.call

    def filled(self, latent: dict[Any, Tensor]) -> dict[Any, Tensor]:
        """A state with at least one leaf, `[N, B]`."""
        return latent or {_NOTHING: torch.zeros(self.width, self.problems, device=self.device)}

    def _run(self, method: str, before: tuple[Any, ...], t: int, width: int, seed: int) -> Moved:
        if method == "init":  # a step from nothing: its leaves have their particles already
            method, before = "step", ({}, -1)
        moved = super()._run(method, before, t, width, seed)
        self.sites = moved.sites
        self.observed |= moved.observed
        self.likelihood &= moved.likelihood
        return moved._replace(latent=self.filled(moved.latent))


class _Call:
    """A model whose step takes a state and returns one, made of a model that writes into a dict; init is t = -1."""

    def __init__(self, model: Any, guide: Any, batch_shape: tuple[int, ...]) -> None:
        self.model, self.other, self.batch_shape = model, guide, batch_shape
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        self.written: dict[Any, Tensor] = {}
        self.guide = _GuideCall(self)

    def __enter__(self) -> None:
        self.written = {}

    def __exit__(self, *_: Any) -> None:
        self.args, self.kwargs, self.written = (), {}, {}

    def step(self, latent: dict[Any, Tensor], t: int) -> dict[Any, Tensor]:
        """Run the model, and check what it wrote."""
        state = self.changed(self.model, latent, t)
        for key, value in self.written.items():  # what the guide wrote stays, unless the model wrote too
            if state.get(key) is latent.get(key):
                state[key] = value
        for name, leaf in dict(state).items():
            if not isinstance(leaf, Tensor):
                raise TypeError(f"state[{name!r}] must be a tensor, got {type(leaf).__name__}")
            batch_shape = self.batch_shape
            if tuple(leaf.shape[: len(batch_shape)]) != batch_shape:
                raise ValueError(
                    f"state[{name!r}] must begin with the particles, {list(batch_shape)}, got shape "
                    f"{list(leaf.shape)}: sample it, or expand it"
                )
        return dict(state)

    def changed(self, owner: Any, latent: dict[Any, Tensor], t: int) -> Particles:
        """The state as the model or the guide leaves it."""
        state = Particles({key: leaf for key, leaf in latent.items() if key != _NOTHING})
        (owner.init if t < 0 else owner.step)(state, *self.args, **self.kwargs)
        return state


class _GuideCall:
    """A guide beside it: it sees the state before the step, and what it writes is kept aside."""

    def __init__(self, call: _Call) -> None:
        self.call = call

    def step(self, latent: dict[Any, Tensor], t: int) -> None:
        """Run the guide."""
        state = self.call.changed(self.call.other, latent, t)
        self.call.written = {key: leaf for key, leaf in state.items() if latent.get(key) is not leaf}
