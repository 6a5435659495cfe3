"""Training: stochastic variational inference, one optimiser step a depth step, on a CPU, a GPU or several.

Read top to bottom: settings, `fit`, the loop, what is measured on the way.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from probgram.chain import Chain, Guide
from probgram.checkpoint import CheckpointError, fingerprint
from probgram.inference.batches import Batches, as_known_answers, fingerprint_of
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
from probgram.inference.handlers import validation
from probgram.inference.interrupts import HeldBack
from probgram.inference.objective import Objective, ObjectiveConfig
from probgram.inference.progress import ProgressBar
from probgram.inference.recipes import default
from probgram.inference.resume import load_training, save_training
from probgram.inference.sampling import sample
from probgram.inference.shares import Share, leave_at_exit
from probgram.inference.targets import fixed
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
    **settings: Any,
) -> FitResult:
    """Train a chain and its guide.

    Args:
        chain: trained in place; it ends with the averaged (EMA) weights.
        guide: trained beside it; None trains on prior draws alone (for chains without noise).
        data: a `Task`, a pair of integer arrays (x `[P, ...]`, y `[P, L]`), `KnownAnswers` or a `Dataset` of pairs.
        steps: optimiser steps in all; a resumed run counts those it has taken.
        objective: options of the bound; None: `recipes.default`.
        only: names of the chain's submodules to train, such as its heads; the rest stays as it is, in evaluation
            mode. () trains all.
        folder: keeps `training.safetensors` and `metrics.jsonl`; a run found there is continued bit for bit.
        callbacks: called with a `FitView` whenever metrics are written.
        progress: show a progress bar.
        **settings: fields of `FitConfig`.

    Returns:
        The trained chain and what was measured. After Ctrl-C the state is saved and `finished` is False.

    Raises:
        ValueError: a setting or the data make no sense.
        CheckpointError: the folder belongs to another run, or cannot be written.
        DivergedError: a figure became NaN or infinite; the last checkpoint stays.
    """
    config = checked(steps, settings)
    objective = objective or default(guide, data)
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=cuda), _trainable(chain, guide, only):
        run = _Run(chain, guide, data, steps, objective, config, None if folder is None else Path(folder), only)
        return run.loop(callbacks, progress)


def fit_heads(
    chain: Chain, heads: Sequence[str], data: Any, steps: int, depth: int = 8, **settings: Any
) -> FitResult:
    """Train a chain's heads alone, on prior trajectories from start to end.

    Under `carry` below 1 few trajectories of `fit` are the prior's all the way; this sees nothing else.

    Args:
        chain: trained; only its heads change.
        heads: names of the submodules that are heads, for GRAM `("judge",)`.
        data: as for `fit`.
        steps: optimiser steps.
        depth: S, depth steps of a trajectory.
        **settings: as for `fit`.
    """
    objective = ObjectiveConfig(depth=depth, target=fixed, carry=1.0, gradient="transition")
    return fit(chain, None, data, steps, objective=objective, only=heads, **settings)


@contextmanager
def _trainable(chain: Chain, guide: Guide | None, only: Sequence[str]) -> Iterator[None]:
    """Freeze every parameter outside the named submodules of the chain, for the time being."""
    if not only:
        yield
        return
    if isinstance(only, str):
        raise ValueError(f"only must be a sequence of names, got the string {only!r}")
    for name in only:
        if name not in dict(chain.named_modules()):
            raise ValueError(f"only must name submodules of {type(chain).__name__}, and {name!r} is none")
    wanted = [parameter for name in only for parameter in chain.get_submodule(name).parameters()]
    modules = [chain] if guide is None else [chain, guide]
    before = [(p, p.requires_grad) for module in modules for p in module.parameters()]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(any(parameter is other for other in wanted))
        yield
    finally:
        for parameter, flag in before:
            parameter.requires_grad_(flag)


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
        folder: Path | None,
        only: Sequence[str],
    ) -> None:
        self.chain, self.guide, self.steps, self.config, self.folder = chain, guide, steps, config, folder
        self.only = only
        self.task = data if isinstance(data, Task) else None
        known = as_known_answers(data)
        chain.check(torch.as_tensor(known.x))
        chain.check_answers(torch.as_tensor(known.answers))
        sample(chain, known.x[:2], width=2, depth=1, keep="last")  # says what is wrong with a chain of one's own
        if config.swap_halted and not chain.homogeneous:
            raise ValueError(
                "swap_halted needs a homogeneous chain: rows of one batch come to be at different depths"
            )
        self.held_out = held_out(self.task, config)
        ranks = config.devices > 1
        self.fabric = Fabric(
            accelerator=config.accelerator,
            devices=config.devices,
            # A head is not used in every step.
            strategy="ddp_find_unused_parameters_true" if ranks and config.strategy == "auto" else config.strategy,
            precision="32-true",
        )
        if ranks:
            self.fabric.launch()
            leave_at_exit()
        torch.manual_seed(config.seed)  # on every rank: each takes its share of the same noise
        raw = Objective(chain, guide, objective, self.task)
        raw.share = Share(self.fabric.global_rank, self.fabric.world_size)
        raw.autocast = torch.bfloat16 if config.precision == "bf16" else None
        if config.compile:
            chain.propose = torch.compile(chain.propose)  # type: ignore[method-assign]
        optimiser = torch.optim.AdamW(
            [p for p in raw.parameters() if p.requires_grad],
            lr=config.lr,
            betas=config.betas,
            weight_decay=config.weight_decay,
        )
        self.raw = raw
        self.objective, self.optimiser = self.fabric.setup(raw, optimiser)
        self.averages = {name: value.detach().clone() for name, value in raw.state_dict().items()}
        self.batches = self._batches(known, objective)
        self.rollout = self.batches.start(self.fabric.device)
        self.step, self.seconds, self.validated = 0, 0.0, False
        self.settings = plain(objective) | plain(config) | {"model": model_of(chain)}
        trained = [name for name, parameter in raw.named_parameters() if parameter.requires_grad]
        frozen = {name: p for name, p in raw.named_parameters() if not p.requires_grad}
        self.settings |= {"data": fingerprint_of(known), "trained": trained, "frozen": fingerprint(frozen)}
        if folder is not None:
            if self._file.exists():
                self._load()
            taken = raw.share.whole(torch.tensor([self.step]), self.fabric.device).tolist()
            if len(set(taken)) > 1:
                raise CheckpointError(f"the ranks' checkpoints in {folder} are of different steps, {taken}")
            forget_lines_after(folder, self.step)

    def _batches(self, known: KnownAnswers, objective: ObjectiveConfig) -> Batches:
        return Batches(
            known,
            self.config.batch,
            objective.particles,
            objective.depth,
            self.config.seed,
            staggered=self.chain.homogeneous and objective.gradient != "full",
            shared=objective.bound != "elbo",
            by_pair=self.config.draw == "pair",
            augment=augmentation(self.task) if self.config.augment else None,
            share=self.raw.share,
        )

    # -- the loop ---------------------------------------------------------------------------------------------

    def loop(self, callbacks: Sequence[Callback], progress: bool) -> FitResult:
        """Train until `steps`, Ctrl-C or a callback's stop."""
        history: list[dict[str, float]] = []
        finished = stopped = False
        saved = started = time.monotonic()
        before = self.seconds
        bar = ProgressBar(self.steps, self.step, progress and self.fabric.is_global_zero)
        self._training_mode()
        try:
            with bar, HeldBack() as ctrl_c:
                while self.step < self.steps and not stopped:
                    metrics = self._optimise()
                    self.seconds = before + time.monotonic() - started
                    shown = self.step % self.config.log_every == 0 or self.step == self.steps
                    if shown:
                        line = self._measure(metrics)
                        history.append(line)
                        self._write(line)
                        view = FitView(self.step, line, self.chain, self.guide)
                        stopped = any([bool(callback(view)) for callback in callbacks])
                        bar.update(self.step, line)
                    # Ranks stop and save at the same step, which they agree upon where they meet anyway.
                    if shown or self.fabric.world_size == 1:
                        stopped |= self._agreed(ctrl_c.asked)
                        due = self.folder is not None and time.monotonic() - saved > self.config.checkpoint_every
                        if self._agreed(due and self.fabric.is_global_zero):
                            self._save()
                            saved = time.monotonic()
                finished = self.step >= self.steps
        except KeyboardInterrupt:
            stopped = True
        finally:
            if self.config.compile:
                del self.chain.propose
        if self.folder is not None:
            self._save()
        if stopped and not finished:
            where = f"the same call goes on from {self.folder}" if self.folder else "give folder= to go on later"
            log.warning("training stopped at step %d of %d: %s", self.step, self.steps, where)
        self.raw.load_state_dict(self.averages)
        self.raw.eval()
        return FitResult(self.chain, self.guide, self.step, finished, history)

    def _agreed(self, here: bool) -> bool:
        """Whether something is so on any rank."""
        return self.raw.share.some(here, self.fabric.device)

    def _training_mode(self) -> None:
        """Training mode for what is trained: the rest of a chain does what it does at inference."""
        self.raw.train(not self.only)
        for name in self.only:
            self.chain.get_submodule(name).train()

    def _optimise(self) -> dict[str, Tensor]:
        """One optimiser step; its metrics stay on the device."""
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.config, self.step, self.steps)
        self.raw.optimiser_step, self.raw.progress = self.step, self.step / self.steps
        rollout = self.rollout
        for _ in range(self.config.accumulate):
            with validation(not self.validated):
                result = self.objective(rollout)
            self.validated = True
            self.fabric.backward(result.loss / self.config.accumulate)
            rollout = self.batches.refill(result.rollout, self._swapped(result.halted))
        norm = self.fabric.clip_gradients(
            self.objective, self.optimiser, max_norm=self.config.clip, error_if_nonfinite=False
        )  # asking whether it is finite would wait for the device at every step: `_measure` asks
        self.optimiser.step()
        self.optimiser.zero_grad()
        self._average()
        # Only now: an interrupt before this line repeats the step on resuming, one after it does not.
        self.rollout, self.step = rollout, self.step + 1
        return result.metrics | {"loss": result.loss.detach(), "gradient_norm": torch.as_tensor(norm).detach()}

    def _swapped(self, halted: Tensor) -> Tensor | None:
        if not self.config.swap_halted:
            return None
        # Every second one goes on to the end, so that the value head sees both.
        return (halted & (self.raw.share.uniform(*halted.shape, device=halted.device, dim=0) < 0.5)).cpu()

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        pairs = [(self.averages[k], v) for k, v in self.raw.state_dict().items() if v.is_floating_point()]
        torch._foreach_lerp_([a for a, _ in pairs], [v for _, v in pairs], 1 - decay)

    # -- measuring --------------------------------------------------------------------------------------------

    def _measure(self, metrics: dict[str, Tensor]) -> dict[str, float]:
        figures = torch.stack([value.float() for value in metrics.values()])[None]
        values = _joined(list(metrics), self.raw.share.whole(figures, self.fabric.device))  # one transfer
        check_finite(self.step, dict(zip(metrics, values, strict=True)))
        line = {"step": self.step, "seconds": round(self.seconds, 2)} | dict(zip(metrics, values, strict=True))
        line["beta"] = self.raw.beta
        line["lr"] = self.optimiser.param_groups[0]["lr"]
        line["problems_per_second"] = (
            self.step * self.config.batch * self.config.accumulate / self.raw.config.depth / max(self.seconds, 1e-9)
        )
        due = self.config.validate_every and self.step % self.config.validate_every < self.config.log_every
        if self.held_out is not None and (due or self.step == self.steps):
            with suppress(UnknownAnswers):  # of digits, say, nobody knows what is right
                line["valid_held_out"] = self._validate()
        return line

    def _validate(self) -> float:
        """Share of held-out problems whose prior draws, by the averaged weights, are right."""
        assert self.task is not None and self.held_out is not None
        own = {k: v.clone() for k, v in self.raw.state_dict().items()}
        self.raw.load_state_dict(self.averages)
        self.raw.eval()
        width = max(4, 4 * self.config.validation // len(self.held_out))
        try:
            run = sample(self.chain, self.held_out, width=width, depth=self.raw.config.depth, seed=0, keep="last")
        finally:  # an interrupt must not leave the averages behind
            self.raw.load_state_dict(own)
            self._training_mode()
        return float(self.task.verify(run.x, run.answers[-1]).float().mean())

    def _write(self, line: dict[str, float]) -> None:
        if self.folder is not None and self.fabric.is_global_zero:
            append_line(self.folder, line)

    # -- files ------------------------------------------------------------------------------------------------

    @property
    def _file(self) -> Path:
        assert self.folder is not None
        rank = f"-{self.fabric.global_rank}" if self.fabric.world_size > 1 else ""
        return self.folder / f"training{rank}.safetensors"

    def _save(self) -> None:
        finite = [parameter.isfinite().all() for parameter in self.raw.parameters()]
        if not bool(torch.stack(finite).all()):  # one look at the device
            raise DivergedError(f"training diverged by step {self.step}: a weight is not finite; lower lr")
        values = {
            "step": self.step,
            "seconds": self.seconds,
            "drawn": self.batches.drawn,
            "settings": self.settings,
        }
        life = torch.from_numpy(self.batches.life)
        save_training(self._file, self.raw, self.averages, self.optimiser, self.rollout, life, values)

    def _load(self) -> None:
        self.rollout, values = load_training(
            self._file,
            self.raw,
            self.averages,
            self.optimiser,
            self.rollout,
            torch.from_numpy(self.batches.life),
            self.settings,
        )
        self.step, self.seconds, self.batches.drawn = values["step"], values["seconds"], values["drawn"]
        log.info("continuing from step %d of %s", self.step, self._file)


def _joined(names: list[str], figures: Tensor) -> list[float]:
    """The ranks' figures `[ranks, metrics]` as those of the whole batch: means, least and largest values."""
    joint = figures.mean(0)
    for name, take in (("sigma_amin", Tensor.amin), ("sigma_amax", Tensor.amax)):
        if name in names:
            joint[names.index(name)] = take(figures[:, names.index(name)])
    return joint.tolist()
