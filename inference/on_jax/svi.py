"""Training: stochastic variational inference, one optimiser step a depth step, in one compiled program.

The twin of `probgram.inference.svi`. The loop stays in Python, where checkpoints, metrics and Ctrl-C are; all that
it does between two looks at the figures is to hand the next problems to the compiled step. AdamW is Optax's.
"""

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh
from numpy.typing import NDArray

from probgram.checkpoint import fingerprint
from probgram.inference.drawing import Drawing, Problems, as_known_answers, fingerprint_of
from probgram.inference.fit_config import FitConfig as FitConfig
from probgram.inference.fit_config import learning_rate
from probgram.inference.fit_run import Callback as Callback
from probgram.inference.fit_run import DivergedError as DivergedError
from probgram.inference.fit_run import FitResult as FitResult
from probgram.inference.fit_run import FitView as FitView
from probgram.inference.fit_run import (
    append_line,
    augmentation,
    check_finite,
    checked,
    forget_lines_after,
    held_out,
    model_of,
    plain,
)
from probgram.inference.interrupts import HeldBack
from probgram.inference.objective_config import ObjectiveConfig
from probgram.inference.on_jax.devices import check_mesh, replicated, spread, spread_problems
from probgram.inference.on_jax.objective import Objective, Rollout
from probgram.inference.on_jax.resume import load_training, save_training
from probgram.inference.on_jax.sampling import sample
from probgram.inference.progress import ProgressBar
from probgram.inference.recipes import default
from probgram.models.on_jax.chain import Chain, Guide, named_arrays
from probgram.tasks import KnownAnswers, Task, UnknownAnswers

log = logging.getLogger("probgram")


def fit(
    chain: Chain,
    guide: Guide | None,
    data: Any,
    steps: int,
    *,
    objective: ObjectiveConfig | None = None,
    only: Sequence[str] = (),
    folder: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    mesh: Mesh | None = None,
    **settings: Any,
) -> FitResult:
    """Train a chain and its guide; the ones given stay as they are.

    Args:
        chain: where training starts; its `buffers` are left alone.
        guide: trained beside it; None trains on prior draws alone (for chains without noise).
        data: a `Task`, a pair of integer arrays (x `[P, ...]`, y `[P, L]`), `KnownAnswers` or a `Dataset` of pairs.
        steps: optimiser steps in all; a resumed run counts those it has taken.
        objective: options of the bound; None: `recipes.default`.
        only: names of the chain's submodules to train, such as its heads; the rest stays as it is. () trains all.
        folder: keeps `training.safetensors` and `metrics.jsonl`; a run found there is continued bit for bit.
        callbacks: called with a `FitView` whenever metrics are written.
        progress: show a progress bar.
        mesh: shares the problems of a batch out over devices (`devices.device_mesh(1, problems)`).
        **settings: fields of `FitConfig`. Those of Lightning Fabric (devices, strategy) are the torch backend's,
            and so is precision="bf16"; the step is compiled whatever `compile` says.

    Returns:
        The trained chain and guide, with the averaged (EMA) weights, and what was measured. After Ctrl-C the state
        is saved and `finished` is False.

    Raises:
        ValueError: a setting or the data make no sense.
        CheckpointError: the folder belongs to another run, or cannot be written.
        DivergedError: a figure became NaN or infinite; the last checkpoint stays.
    """
    config = checked(steps, settings)
    _check_backend(config)
    objective = objective or default(guide, data)
    where = None if folder is None else Path(folder)
    return _Run(chain, guide, data, steps, objective, config, only, where, mesh).loop(callbacks, progress)


def fit_heads(
    chain: Chain, heads: Sequence[str], data: Any, steps: int, depth: int = 8, **settings: Any
) -> FitResult:
    """Train a chain's heads alone, on prior trajectories from start to end.

    Under `carry` below 1 few trajectories of `fit` are the prior's all the way; this sees nothing else.

    Args:
        chain: where training starts; only its heads change.
        heads: names of the submodules that are heads, for GRAM `("judge",)`.
        data: as for `fit`.
        steps: optimiser steps.
        depth: S, depth steps of a trajectory.
        **settings: as for `fit`.
    """
    objective = ObjectiveConfig(depth=depth, target="fixed", carry=1.0, gradient="transition")
    return fit(chain, None, data, steps, objective=objective, only=heads, **settings)


def _check_backend(config: FitConfig) -> None:
    """Raise ValueError where a setting asks for what this backend does not do."""
    if config.precision != "32":
        raise ValueError(f'precision="{config.precision}" is for the torch backend: here it must be "32"')
    if config.devices != 1 or config.strategy != "auto":
        raise ValueError("devices and strategy are for the torch backend: here mesh= names the devices")
    if config.accelerator not in ("auto", jax.default_backend()):
        raise ValueError(
            f'accelerator must be "auto" or "{jax.default_backend()}", where JAX computes, '
            f'got "{config.accelerator}": set JAX_PLATFORMS'
        )


# -- the compiled step ----------------------------------------------------------------------------------------


class _State(NamedTuple):
    """What a step changes; trees of arrays."""

    trained: Any  # the objective's arrays that are trained, None for the others
    averages: Any  # likewise, averaged over steps
    slots: Any  # Optax's moments
    gradients: Any  # added up since the last optimiser step
    rollout: Rollout
    swapped: Array  # bool [B]: rows to be handed a new problem before they end


class _Refill(NamedTuple):
    """Rows that begin anew before a step."""

    rows: NDArray[np.bool_]  # [B]
    problems: Problems  # B of them; the other rows hold anything


class _Fixed(NamedTuple):
    """Settings that are compiled in."""

    accumulate: int
    swap_halted: bool
    clip: float
    betas: tuple[float, float]
    weight_decay: float

    @classmethod
    def of(cls, config: FitConfig) -> "_Fixed":
        return cls(**{name: getattr(config, name) for name in cls._fields})


class _Numbers(NamedTuple):
    """What changes from step to step, as arrays: a float would be compiled in."""

    lr: NDArray[np.float32]
    beta: NDArray[np.float32]
    decay: NDArray[np.float32]  # of the averages


@eqx.filter_jit
def _depth_step(
    state: _State,
    rest: Objective,
    refill: _Refill,
    numbers: _Numbers,
    key: Array,
    fixed: _Fixed,
    updates: bool,
    settling: bool,
) -> tuple[_State, dict[str, Array]]:
    """One depth step and, where it `updates`, the optimiser step that it completes.

    `rest` is the objective without what is trained; the last three arguments are static.
    """
    mesh = rest.mesh
    step_key, swap_key = jax.random.split(key)
    rollout = state.rollout.refilled(refill.rows, refill.problems)

    def loss_of(trained: Any) -> tuple[Array, Any]:
        result = eqx.combine(trained, rest)(rollout, step_key, numbers.beta, settling)
        return result.loss / fixed.accumulate, result

    (_, result), gradients = jax.value_and_grad(loss_of, has_aux=True)(replicated(state.trained, mesh))
    gradients = jax.tree.map(jnp.add, state.gradients, gradients)
    # Every second one that has halted goes on to the end, so that the value head sees both.
    swapped = result.halted & jax.random.bernoulli(swap_key, 0.5, result.halted.shape)
    state = state._replace(
        gradients=gradients, rollout=result.rollout, swapped=swapped if fixed.swap_halted else state.swapped
    )
    metrics = result.metrics | {"loss": result.loss}
    if not updates:
        return state, metrics
    directions, slots = adamw(fixed).update(gradients, state.slots, state.trained)
    trained = jax.tree.map(lambda p, d: p - numbers.lr.astype(p.dtype) * d, state.trained, directions)
    averages = jax.tree.map(lambda a, p: a + (1 - numbers.decay).astype(p.dtype) * (p - a), state.averages, trained)
    state = state._replace(
        trained=trained, averages=averages, slots=slots, gradients=jax.tree.map(jnp.zeros_like, gradients)
    )
    return state, metrics | {"gradient_norm": optax.tree.norm(gradients)}


def adamw(fixed: _Fixed) -> optax.GradientTransformation:
    """Clipping and AdamW with decoupled decay, up to the factor -lr, which changes from step to step."""
    return optax.chain(
        optax.clip_by_global_norm(fixed.clip),
        optax.scale_by_adam(*fixed.betas),
        optax.add_decayed_weights(fixed.weight_decay),
    )


def trained_names(objective: Objective, only: Sequence[str] = ()) -> list[str]:
    """Names of the objective's arrays that are trained: no buffers, and of the chain's submodules `only`.

    Raises:
        ValueError: a name is no submodule of the chain, or `only` is one string.
    """
    if isinstance(only, str):
        raise ValueError(f"only must be a sequence of names, got the string {only!r}")
    chain = named_arrays(objective.chain)
    for name in only:
        if not any(array.startswith(f"{name}.") for array in chain):
            raise ValueError(f"only must name submodules of {type(objective.chain).__name__}, and {name!r} is none")
    buffers = [f"chain.{name}" for name in objective.chain.buffers]
    wanted = [f"chain.{name}." for name in only] or [""]
    return [
        name
        for name, array in named_arrays(objective).items()
        if eqx.is_inexact_array(array)
        and any(name.startswith(prefix) for prefix in wanted)
        and not any(name == buffer or name.startswith(f"{buffer}.") for buffer in buffers)
    ]


# -- the run --------------------------------------------------------------------------------------------------


class _Run:
    """One call of `fit`: set-up, loop, checkpoints. All its state is in the fields that `save` writes."""

    def __init__(
        self,
        chain: Chain,
        guide: Guide | None,
        data: Any,
        steps: int,
        objective: ObjectiveConfig,
        config: FitConfig,
        only: Sequence[str],
        folder: Path | None,
        mesh: Mesh | None,
    ) -> None:
        self.steps, self.config, self.folder, self.mesh = steps, config, folder, mesh
        self.task = data if isinstance(data, Task) else None
        known = as_known_answers(data)
        chain.check(known.x)
        chain.check_answers(known.answers)
        check_mesh(mesh, objective.particles, config.batch)
        sample(chain, known.x[:2], width=2, depth=1, keep="last")  # says what is wrong with a chain of one's own
        if config.swap_halted and not chain.homogeneous:
            raise ValueError(
                "swap_halted needs a homogeneous chain: rows of one batch come to be at different depths"
            )
        self.held_out = held_out(self.task, config)
        raw = Objective(chain, guide, objective, self.task, mesh)
        names = trained_names(raw, only)
        self.settings = plain(objective) | plain(config) | {"model": model_of(chain), "backend": "jax"}
        weights = named_arrays(raw)
        buffers = tuple(f"chain.{name}" for name in chain.buffers)
        frozen = {n: np.asarray(w) for n, w in weights.items() if n not in names and not n.startswith(buffers)}
        self.settings |= {"data": fingerprint_of(known), "trained": names, "frozen": fingerprint(frozen)}
        trained, self.rest = _split(raw, names)
        self.fixed = _Fixed.of(config)
        self.key = jax.random.key(config.seed % 2**32)
        self.batches = self._batches(known, chain, objective)
        self.refill = _Refill(np.zeros(config.batch, bool), self.batches.draw(config.batch))
        zeros = jax.tree.map(jnp.zeros_like, trained)
        self.state = _State(
            trained=trained,
            averages=trained,
            slots=adamw(self.fixed).init(trained),
            gradients=zeros,
            rollout=_spread_out(raw.begin(self.refill.problems), mesh),
            swapped=jnp.zeros(config.batch, bool),
        )
        self.age = np.zeros(config.batch, np.int64)  # of the rollout's rows, as it is known here
        self.step, self.seconds = 0, 0.0
        if folder is not None:
            if self._file.exists():
                self._load()
            forget_lines_after(folder, self.step)

    def _batches(self, known: KnownAnswers, chain: Chain, objective: ObjectiveConfig) -> Drawing:
        return Drawing(
            known,
            self.config.batch,
            objective.particles,
            objective.depth,
            self.config.seed,
            staggered=chain.homogeneous and objective.gradient != "full",
            shared=objective.bound != "elbo",
            by_pair=self.config.draw == "pair",
            augment=augmentation(self.task) if self.config.augment else None,
        )

    @property
    def _objective(self) -> ObjectiveConfig:
        return self.rest.config

    # -- the loop ---------------------------------------------------------------------------------------------

    def loop(self, callbacks: Sequence[Callback], progress: bool) -> FitResult:
        """Train until `steps`, Ctrl-C or a callback's stop."""
        history: list[dict[str, float]] = []
        finished = stopped = False
        saved = started = time.monotonic()
        before = self.seconds
        bar = ProgressBar(self.steps, self.step, progress)
        try:
            with bar, HeldBack() as ctrl_c:
                while self.step < self.steps and not stopped:
                    metrics = self._optimise()
                    if self.step % self.config.log_every == 0 or self.step == self.steps:
                        figures = {name: float(value) for name, value in jax.device_get(metrics).items()}
                        self.seconds = before + time.monotonic() - started
                        line = self._measure(figures)
                        history.append(line)
                        if self.folder is not None:
                            append_line(self.folder, line)
                        view = FitView(self.step, line, *self._models(self.state.trained))
                        stopped = any([bool(callback(view)) for callback in callbacks])
                        bar.update(self.step, line)
                    if self.folder is not None and time.monotonic() - saved > self.config.checkpoint_every:
                        self.seconds = before + time.monotonic() - started
                        self._save()
                        saved = time.monotonic()
                    stopped |= ctrl_c.asked
                finished = self.step >= self.steps
        except KeyboardInterrupt:
            stopped = True
        if self.folder is not None:
            self._save()
        if stopped and not finished:
            where = f"the same call goes on from {self.folder}" if self.folder else "give folder= to go on later"
            log.warning("training stopped at step %d of %d: %s", self.step, self.steps, where)
        return FitResult(*self._models(self.state.averages), self.step, finished, history)

    def _optimise(self) -> dict[str, Array]:
        """One optimiser step; its metrics stay on the device."""
        config, objective = self.config, self._objective
        drawn, life = self.batches.drawn, self.batches.life.copy()
        state, age, refill = self.state, self.age, self.refill
        numbers = _Numbers(
            np.asarray(learning_rate(config, self.step, self.steps), np.float32),
            np.asarray(objective.beta_at(self.step), np.float32),
            np.asarray(min(config.ema, (1 + self.step) / (10 + self.step)), np.float32),
        )
        settling = objective.settles_at(self.step / self.steps)
        key = jax.random.fold_in(self.key, self.step)
        try:
            for part in range(config.accumulate):
                rows = self.batches.ended(age, np.asarray(state.swapped) if config.swap_halted else None)
                if len(rows):
                    refill = self._filled(rows)
                    age = np.where(refill.rows, 0, age)
                else:
                    refill = refill._replace(rows=np.zeros(config.batch, bool))
                state, metrics = _depth_step(
                    state,
                    self.rest,
                    refill,
                    numbers,
                    jax.random.fold_in(key, part),
                    self.fixed,
                    part == config.accumulate - 1,
                    settling,
                )
                age = age + (objective.depth if objective.gradient == "full" else 1)
        except BaseException:
            self.batches.drawn, self.batches.life = drawn, life
            raise
        # Only now: an interrupt before this line repeats the step on resuming, one after it does not.
        self.state, self.age, self.refill, self.step = state, age, refill, self.step + 1
        if not (age >= objective.depth).any():
            metrics.pop("right_at_end", None)
        return metrics

    def _filled(self, rows: NDArray[np.int64]) -> _Refill:
        """The next problems at their rows, among B rows, so that the compiled step keeps its shapes."""
        fresh = self.batches.draw(len(rows))
        full = Problems(*(np.zeros_like(part) for part in self.refill.problems))
        for whole, part in zip(full[:3], fresh[:3], strict=True):
            whole[rows] = part
        full.target[:, rows] = fresh.target
        chosen = np.zeros(self.config.batch, bool)
        chosen[rows] = True
        return _Refill(chosen, full)

    def _models(self, trained: Any) -> tuple[Chain, Guide | None]:
        objective = eqx.combine(trained, self.rest)
        return objective.chain, objective.guide

    # -- measuring --------------------------------------------------------------------------------------------

    def _measure(self, figures: dict[str, float]) -> dict[str, float]:
        check_finite(self.step, figures)
        config = self.config
        line = {"step": self.step, "seconds": round(self.seconds, 2)} | figures
        line["beta"] = self._objective.beta_at(self.step - 1)
        line["lr"] = learning_rate(config, self.step - 1, self.steps)
        problems = self.step * config.batch * config.accumulate / self._objective.depth
        line["problems_per_second"] = problems / max(self.seconds, 1e-9)
        due = config.validate_every and self.step % config.validate_every < config.log_every
        if self.held_out is not None and (due or self.step == self.steps):
            with suppress(UnknownAnswers):  # of digits, say, nobody knows what is right
                line["valid_held_out"] = self._validate()
        return line

    def _validate(self) -> float:
        """Share of held-out problems whose prior draws, by the averaged weights, are right."""
        assert self.task is not None and self.held_out is not None
        chain, _ = self._models(self.state.averages)
        width = max(4, 4 * self.config.validation // len(self.held_out))
        run = sample(chain, self.held_out, width=width, depth=self._objective.depth, key=0, keep="last")
        return float(np.mean(self.task.verify(run.x, run.answers[-1])))

    # -- files ------------------------------------------------------------------------------------------------

    @property
    def _file(self) -> Path:
        assert self.folder is not None
        return self.folder / "training.safetensors"

    @property
    def _parts(self) -> dict[str, Any]:
        state = self.state
        whole = eqx.combine(state.trained, self.rest)
        parts = {"objective": whole, "ema": state.averages, "optimiser": state.slots}
        parts |= {"rollout": state.rollout, "swapped": state.swapped, "age": self.age, "life": self.batches.life}
        return parts

    def _save(self) -> None:
        finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(self.state.trained)]
        if not bool(jnp.stack(finite).all()):  # one look at the device
            raise DivergedError(f"training diverged by step {self.step}: a weight is not finite; lower lr")
        values = {"step": self.step, "seconds": self.seconds, "drawn": self.batches.drawn}
        save_training(self._file, self._parts, values | {"settings": self.settings})

    def _load(self) -> None:
        parts, values = load_training(self._file, self._parts, self.settings)
        trained, self.rest = _split(parts["objective"], self.settings["trained"])
        self.state = self.state._replace(
            trained=trained,
            averages=parts["ema"],
            slots=parts["optimiser"],
            rollout=_spread_out(parts["rollout"], self.mesh),
            swapped=parts["swapped"],
        )
        self.age, self.batches.life = (np.array(parts[name], np.int64) for name in ("age", "life"))
        self.step, self.seconds, self.batches.drawn = values["step"], values["seconds"], values["drawn"]
        log.info("continuing from step %d of %s", self.step, self._file)


def _split(objective: Objective, names: Sequence[str]) -> tuple[Any, Any]:
    """The objective's trained arrays, and the objective without them."""
    leaves, structure = jax.tree.flatten(objective, is_leaf=lambda leaf: leaf is None)
    arrays = iter(named_arrays(objective))
    chosen = jax.tree.unflatten(structure, [eqx.is_array(leaf) and next(arrays) in names for leaf in leaves])
    return eqx.partition(objective, chosen)


def _spread_out(rollout: Rollout, mesh: Mesh | None) -> Rollout:
    """A rollout with its problems shared out over the devices of a mesh."""
    if mesh is None:
        return rollout
    by_problem = ("x", "answers", "counts", "age")
    by_trajectory = ("target", "state", "honest", "belief")
    parts = {name: spread_problems(getattr(rollout, name), mesh) for name in by_problem}
    parts |= {name: spread(getattr(rollout, name), mesh) for name in by_trajectory}
    return rollout._replace(**parts)
