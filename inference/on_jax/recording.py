"""What a run of the filter keeps of every depth step, and the `Trajectories` made of it.

The twin of `probgram.inference.recording`. On the device, inside the compiled program, `figures` and `path` make
what the loop over depth stacks, and islands are put together: columns `[N, B·I]` become `[I·N, B]`, with weights in
proportion to Z_i·W_i and the mean Z. On the host a `Record` takes it over.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgram.inference.choices import Keep
from probgram.inference.choices import evidence as evidence_of
from probgram.inference.on_jax.faults import check_factors, check_weights
from probgram.inference.on_jax.potentials import View
from probgram.inference.on_jax.sampling import FLAG_EVERY
from probgram.inference.on_jax.trajectories import Trajectories

if TYPE_CHECKING:
    from probgram.inference.on_jax.smc import Filter, SMCInfo, SMCState
    from probgram.store import Store

Collect = Mapping[str, Callable[[Any, Array], Array]]
Row = dict[str, Any]

_POOLED = ("log_weights", "ancestors", "heads", "answers", "states", "kl")
_FLAGS = ("dead", "nan", "done", "observed", "likelihood", "weighs", "halted", "log_psi")

# -- on the device --------------------------------------------------------------------------------------------


def figures(state: "SMCState", info: "SMCInfo", collect: Collect, islands: int) -> Row:
    """What is kept of every depth step, whatever else is."""
    kept: Row = {"log_normalizer": state.log_normalizer, "ess": state.ess, "resampled": info.resampled}
    kept |= {} if state.faults is None else {"faults": state.faults}
    return kept | {"collected": {name: _collected(name, of, state, islands) for name, of in collect.items()}}


def path(state: "SMCState", view: View, ancestors: Array, kl: Array | None, states: bool) -> Row:
    """What is kept of a depth step whose trajectories are; states where asked for."""
    kept = {"log_weights": state.log_weights, "ancestors": ancestors, "heads": view.heads}
    if kl is not None:
        kept["kl"] = kl
    if view.has_answers:
        kept["answers"] = view.answer
    if states:
        kept["states"] = state.latent
    return kept


def together(figures: Row, paths: Row, islands: int, numbered: bool = False) -> tuple[Row, Row]:
    """Figures `[S, B·I]` and paths `[S', N, B·I, ...]` of islands, with the islands of each problem put together.

    `numbered` says that ancestors count through all islands of their problem already.
    """
    if islands == 1:
        return figures, paths
    log_normalizer, ess = figures["log_normalizer"], figures["ess"]
    kept = log_normalizer[-len(paths["log_weights"]) :]
    shares = pooled_shares(kept, islands)
    log_weights = paths["log_weights"] + jnp.log(shares)[:, None].astype(paths["log_weights"].dtype)
    width, columns = log_weights.shape[1:]
    first = jnp.tile(jnp.arange(islands, dtype=jnp.int32) * width, columns // islands)
    ancestors = paths["ancestors"] if numbered else paths["ancestors"] + first
    paths = paths | {"log_weights": log_weights, "ancestors": ancestors}
    paths = paths | {name: pooled(paths[name], islands, 1) for name in _POOLED if name in paths}
    shares = pooled_shares(log_normalizer, islands)
    squares = jnp.where(ess > 0, jnp.square(shares) / jnp.where(ess > 0, ess, 1.0), 0.0)
    squares = squares.reshape(len(ess), -1, islands).sum(-1)
    ess = jnp.where(squares > 0, 1 / jnp.where(squares > 0, squares, 1.0), 0.0)
    return figures | {"ess": ess, "log_normalizer": pooled_normalizer(log_normalizer, islands)}, paths


def pooled(tree: Any, islands: int, dim: int = 0) -> Any:
    """Leaves `[..., N, B·I, ...]` as `[..., I·N, B, ...]`; `dim` is that of N."""

    def pool(leaf: Array) -> Array:
        before, (n, columns), after = leaf.shape[:dim], leaf.shape[dim : dim + 2], leaf.shape[dim + 2 :]
        apart = jnp.moveaxis(leaf.reshape(*before, n, columns // islands, islands, *after), dim + 2, dim)
        return apart.reshape(*before, islands * n, columns // islands, *after)

    return tree if islands == 1 else jax.tree.map(pool, tree)


def pooled_state(state: "SMCState", islands: int) -> "SMCState":
    """What a result carries of the last state, with the islands of each problem put together."""
    latent, log_psi, halted = pooled((state.latent, state.log_psi, state.halted), islands)
    return state._replace(latent=latent, log_psi=log_psi, halted=halted)


def pooled_shares(log_normalizer: Array, islands: int) -> Array:
    """Z_i / Σ Z_i among the islands of each problem, `[..., B·I]`; equal where all are dead."""
    parts = log_normalizer.reshape(*log_normalizer.shape[:-1], -1, islands)
    dead = jnp.isneginf(parts.max(-1, keepdims=True))
    return jax.nn.softmax(jnp.where(dead, 0.0, parts), -1).reshape(log_normalizer.shape)


def pooled_normalizer(log_normalizer: Array, islands: int) -> Array:
    """Log of the mean Z over the islands, `[..., B]`."""
    parts = log_normalizer.reshape(*log_normalizer.shape[:-1], -1, islands)
    return jax.nn.logsumexp(parts, -1) - jnp.log(jnp.asarray(islands, parts.dtype))


def _collected(name: str, function: Callable[[Any, Array], Array], state: "SMCState", islands: int) -> Array:
    weights, latent = jnp.exp(state.log_weights), state.latent
    if islands > 1:
        share = pooled_shares(state.log_normalizer, islands)
        weights = pooled(weights * share.astype(weights.dtype), islands)
        latent = pooled(latent, islands)
    value = function(latent, weights)
    if not isinstance(value, Array) or value.shape[:1] != weights.shape[1:]:
        got = f"shape {list(value.shape)}" if isinstance(value, Array) else type(value).__name__
        raise ValueError(f"collect[{name!r}] must return an array [{weights.shape[1]}, ...], got {got}")
    return value


# -- on the host ----------------------------------------------------------------------------------------------


@dataclass
class Record:
    """The rows of a run, brought to the host as its programs give them.

    Args:
        algorithm: what runs.
        keep: see `smc.run`.
        x: problems of a chain, as they were given; None: of no chain.
        task: name that the result carries.
        settings: what the run says of itself that does not stand in its algorithm.
        growing: the folder that takes each row as it comes, so that the last one is kept only; None: there is none.
        taken: depth steps so far.
        last: depth steps there are to be.
    """

    algorithm: "Filter"
    keep: Keep
    x: np.ndarray | None
    task: str
    settings: Mapping[str, Any]
    growing: "Store | None"
    taken: int
    last: int
    state: "SMCState | None" = None  # the last, islands put together
    flags: dict[str, Any] = field(default_factory=dict)  # of it, on the host
    figures: list[Row] = field(default_factory=list)
    paths: list[Row] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether trajectories are kept at every depth step."""
        return self.keep in ("paths", "latents")

    def add(self, state: "SMCState", figures: Row, paths: Row) -> None:
        """Take the next depth steps over.

        Args:
            state: after the last of them, islands put together.
            figures: theirs, `[S, B]`.
            paths: theirs, `[S or 1, N, B, ...]`. States stay on their devices.

        Raises:
            FilterError: a weight became NaN; with `strict` also where all weights of a problem vanished.
            CheckpointError: the folder cannot be written.
        """
        self.state, states, islands = state, paths.get("states"), self.algorithm.islands
        # At once everything but states to the host.
        self.flags, figures, paths = jax.device_get(
            ({name: getattr(state, name) for name in _FLAGS}, figures, paths | {"states": None})
        )
        check_factors(figures.pop("begun", {}), 0, islands)
        check_factors(figures.get("faults", {}), self.taken + 1, islands)
        check_weights(self.flags["nan"], islands)
        self.taken += len(figures["ess"])
        if self.growing is not None or not self.whole:
            self.paths.clear()
        self.figures.append(figures)
        self.paths.append(paths | {"states": states})
        if self.growing is not None:
            row = self._made(figures, self.paths[-1])
            self.growing.append(row if self.keep == "latents" else replace(row, state=None))

    def trajectories(self) -> Trajectories:
        """The run so far."""
        return self._made(_one_after_another(self.figures), _one_after_another(self.paths))

    def _made(self, figures: Row, paths: Row) -> Trajectories:
        """The run, of which these are the last rows."""
        algorithm, islands, flags, taken = self.algorithm, self.algorithm.islands, self.flags, self.taken
        assert self.state is not None
        if algorithm.masked and flags["done"].all():  # nothing has moved since; rows end where the torch side's do
            over = int(flags["done"].max())
            first = taken - len(figures["ess"]) + 1
            taken = min(taken, over + -over % FLAG_EVERY)
            figures = jax.tree.map(lambda row: row[: taken - first + 1], figures)
            if self.whole:
                paths = jax.tree.map(lambda row: row[: taken - first + 1], paths)
        log_weights, answers = paths["log_weights"], paths.get("answers")
        rows = len(log_weights)
        numbered = algorithm.exchange is not None or figures["resampled"][-rows:].any()
        settings = self._told(taken)
        return Trajectories(
            x=np.zeros((log_weights.shape[2], 0)) if self.x is None else self.x,
            answers=np.zeros((*log_weights.shape, 0), np.uint8) if answers is None else answers,
            log_weights=log_weights,
            ancestors=paths["ancestors"] if self.whole and numbered else None,
            heads=paths["heads"],
            kl=paths.get("kl"),
            log_normalizer=figures["log_normalizer"],
            log_potential=flags["log_psi"],
            effective=figures["ess"],
            collected=figures["collected"],
            states=paths["states"],
            likelihoods_only=settings["evidence"] is not None,
            halted=flags["halted"],
            ended=flags["done"].reshape(-1, islands).max(1) if algorithm.masked else None,
            state=self.state.latent,
            depths=tuple(range(taken - rows + 1, taken + 1)),
            task=self.task,
            seed=settings["seed"],
            settings=settings,
        )

    def _told(self, taken: int) -> dict[str, Any]:
        """What the run says of itself after so many depth steps."""
        algorithm = self.algorithm
        told = {name: bool(self.flags[name]) for name in ("weighs", "observed", "likelihood")}
        settings = dict(self.settings) | told
        over = algorithm.masked and bool(self.flags["done"].all())
        settings |= {
            "width": algorithm.width,
            "depth": taken,
            "complete": over or taken >= self.last,
            "islands": algorithm.islands,
            "decode": algorithm.decode,
            "guided": algorithm.guided,
            "resample": None if algorithm.resample is None else algorithm.resample.describe(),
            "evidence": evidence_of(algorithm.potential, told["observed"], told["likelihood"]),
            "backend": "jax",
        }
        return settings | ({} if algorithm.exchange is None else {"exchange": algorithm.exchange.describe()})


def _one_after_another(rows: list[Row]) -> Row:
    """Rows of depth steps as one; states stay on their devices."""
    if len(rows) == 1:
        return rows[0]
    return jax.tree.map(lambda *leaf: (jnp if isinstance(leaf[0], Array) else np).concatenate(leaf), *rows)
