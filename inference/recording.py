"""What a run of the filter keeps, depth step after depth step, and the `Trajectories` made of it.

Problems leave the batch when they are done; here they stay, with the figures they had. Islands are put together
here too: `[N, B·I]` becomes `[I·N, B]`, with weights in proportion to Z_i·W_i and the mean Z.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from probgram import state as trees
from probgram.trajectories import Trajectories


class Record:
    """Rows of a run, with all its problems in every row.

    Args:
        keep: see `smc.run`.
        collect: name -> function of (state, weights).
        islands: I.
        columns: B·I.
        steps: how many depth steps there will be at most.
        stored: whether each row is written elsewhere as it comes, so that the last one is kept only.
    """

    def __init__(
        self,
        keep: str,
        collect: Mapping[str, Callable[[Any, Tensor], Tensor]],
        islands: int,
        columns: int,
        steps: int,
        stored: bool = False,
    ) -> None:
        self.keep, self.collect, self.islands, self.columns = keep, collect, islands, columns
        self.here: Tensor | None = None  # the columns that are still in the batch; None: all
        # Figures of every depth step: one buffer each, since small tensors between large ones that are freed and
        # allocated again would make the heap grow with depth.
        self.figures: dict[str, Tensor] = {}
        self.steps, self.taken, self.stored = steps, 0, stored
        self.paths: list[dict[str, Any]] = []  # of those that are kept whole
        self.depths: list[int] = []
        self.latest: dict[str, Any] = {}
        self.pending: Callable[[], dict[str, Any]] | None = None

    def add(self, algorithm: Any, state: Any, info: Any) -> None:
        """Record a depth step."""
        row = {"log_normalizer": state.log_normalizer, "ess": state.ess}
        row |= {f"of {name}": self._collected(name, function, state) for name, function in self.collect.items()}
        if not self.figures:
            self.figures = {name: value.new_empty(self.steps, *value.shape) for name, value in row.items()}
        before = {name: value[self.taken - 1] for name, value in self.figures.items()} if self.taken else None
        for name, value in self._whole(row, before, 0).items():
            self.figures[name][self.taken] = value
        self.taken += 1
        if self.keep in ("paths", "latents"):
            path = self._path(state, info)
            if self.paths:  # of the last depth step alone a run keeps it
                del self.paths[-1]["log_potential"]
            if self.stored:
                self.paths, self.depths = [], []
            self.paths.append(path)
            self.depths.append(state.t)
        else:
            self.pending = lambda: self._path(state, info)

    def settle(self) -> None:
        """Compute what is pending, before problems leave or the run ends."""
        if self.pending is not None:
            self.paths = [self.pending()]
            self.pending = None

    def _path(self, state: Any, info: Any) -> dict[str, Any]:
        view, own = info.view, None
        if info.ancestors is None:
            own = torch.arange(len(state.log_weights), device=state.log_weights.device, dtype=torch.int32)
            own = own[:, None].expand(state.log_weights.shape)
        path = {"log_weights": state.log_weights, "heads": view.heads, "log_potential": state.log_psi}
        path["ancestors"] = own if info.ancestors is None else info.ancestors.int()
        path["resampled"] = info.resampled
        if info.kl is not None:
            path["kl"] = info.kl
        if view.has_answers:
            path["answers"] = view.answer
        if self.keep == "latents" or (self.keep == "paths" and not view.has_answers):
            path["states"] = state.latent
        return self._whole(path, self.paths[-1] if self.paths else None, 1)

    def _whole(self, new: dict[str, Any], before: dict[str, Any] | None, dim: int) -> dict[str, Any]:
        """Put the columns that are here among those that have left."""
        here = self.here
        if here is None or before is None:
            return new

        def put(value: Tensor, old: Tensor) -> Tensor:
            at = dim if value.dim() > dim else 0
            return old.clone().index_copy_(at, here, value)

        whole = {name: trees.map_state(put, value, before[name]) for name, value in new.items()}
        if "ancestors" in whole:  # who has left stays its own ancestor
            own = torch.arange(len(whole["ancestors"]), device=here.device, dtype=torch.int32)[:, None]
            gone = torch.ones(self.columns, dtype=torch.bool, device=here.device)
            gone[here] = False
            whole["ancestors"] = torch.where(gone, own, whole["ancestors"])
        return whole

    def _collected(self, name: str, function: Callable[[Any, Tensor], Tensor], state: Any) -> Tensor:
        weights, latent = state.log_weights.exp(), state.latent
        if self.islands > 1:
            share = pooled_shares(state.log_normalizer, self.islands)
            weights = pool(weights * share.to(weights), self.islands)
            latent = trees.map_state(lambda leaf: pool(leaf, self.islands), latent)
        value = function(latent, weights)
        if not isinstance(value, Tensor) or value.shape[:1] != weights.shape[1:]:
            got = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"collect[{name!r}] must return a tensor [{weights.shape[1]}, ...], got {got}")
        return value

    def trajectories(self, x: Any, state: Any, likelihood: bool, **about: Any) -> Trajectories:
        """The run, islands put together."""
        self.settle()
        islands = self.islands
        depths = tuple(self.depths) or (state.t,)
        stacked = {
            name: trees.map_state(lambda *rows: torch.stack(rows), *[path[name] for path in self.paths])
            for name in set(self.paths[-1]) - {"log_potential"}
        }
        figures = {name: value[: self.taken] for name, value in self.figures.items()}
        log_normalizer, ess = figures.pop("log_normalizer"), figures.pop("ess")
        figures = {name.removeprefix("of "): value for name, value in figures.items()}
        latent, halted = state.latent, state.halted
        log_weights, ancestors = stacked["log_weights"], stacked["ancestors"]
        if islands > 1:
            kept = log_normalizer[[depth - depths[0] + len(log_normalizer) - len(depths) for depth in depths]]
            log_weights = log_weights + pooled_shares(kept, islands).log()[:, None].to(log_weights)
            first = torch.arange(islands, device=ancestors.device, dtype=ancestors.dtype) * ancestors.shape[1]
            ancestors = ancestors + first.repeat(ancestors.shape[2] // islands)
            log_weights, ancestors = (pool(values, islands, 1) for values in (log_weights, ancestors))
            for name in {"heads", "answers", "states", "kl"} & set(stacked):
                stacked[name] = trees.map_state(lambda leaf: pool(leaf, islands, 1), stacked[name])
            share = pooled_shares(log_normalizer, islands)
            squares = torch.where(ess > 0, share.square() / ess, 0.0).unflatten(-1, (-1, islands)).sum(-1)
            ess = torch.where(squares > 0, 1 / squares, 0.0)
            log_normalizer = pooled_normalizer(log_normalizer, islands)
            latent, halted = trees.map_state(lambda leaf: pool(leaf, islands), (latent, halted))
        log_potential = self.paths[-1]["log_potential"]
        log_potential = pool(log_potential, islands) if islands > 1 else log_potential
        answers = stacked.get("answers")
        if answers is None:
            answers = torch.zeros(*log_weights.shape, 0, dtype=torch.uint8, device=log_weights.device)
        resampled = bool(torch.stack([path["resampled"].any() for path in self.paths]).any())
        return Trajectories(
            x=torch.zeros(log_weights.shape[2], 0) if x is None else x,
            answers=answers,
            log_weights=log_weights,
            ancestors=ancestors if resampled and self.keep in ("paths", "latents") else None,
            heads=stacked["heads"],
            kl=stacked.get("kl"),
            log_normalizer=log_normalizer,
            log_potential=log_potential,
            effective=ess,
            collected=figures,
            states=stacked.get("states"),
            likelihoods_only=likelihood,
            halted=halted,
            state=latent,
            depths=depths,
            **about,
        )


def pool(leaf: Tensor, islands: int, dim: int = 0) -> Tensor:
    """`[..., N, B·I, ...]` to `[..., I·N, B, ...]`; `dim` is that of N."""
    return leaf.unflatten(dim + 1, (-1, islands)).movedim(dim + 2, dim).flatten(dim, dim + 1)


def pooled_shares(log_normalizer: Tensor, islands: int) -> Tensor:
    """Z_i / Σ Z_i among the islands of each problem, `[..., B·I]`; equal where all are dead."""
    parts = log_normalizer.unflatten(-1, (-1, islands))
    dead = parts.amax(-1, keepdim=True).isneginf()
    return parts.masked_fill(dead, 0.0).softmax(-1).flatten(-2)


def pooled_normalizer(log_normalizer: Tensor, islands: int) -> Tensor:
    """Log of the mean Z over the islands, `[..., B]`."""
    parts = log_normalizer.unflatten(-1, (-1, islands))
    return parts.logsumexp(-1) - torch.tensor(float(islands)).log().to(parts)
