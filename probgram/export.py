"""A run as ArviZ knows it: one chain whose draws are the particles."""

import json
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from probgram.trajectories import Trajectories


def to_arviz(run: "Trajectories") -> Any:
    """Convert a run to InferenceData (arviz 0.x) or a DataTree (arviz 1.x), with the same groups.

    Groups: `posterior` holds `answer` (chain 0, draw = particle) at the last depth step; `sample_stats` the
    log weights and head logits there; `constant_data` the problems. Weighted runs are resampled first, so
    that no ArviZ function is silently unweighted.
    """
    import arviz

    weights = run.weights[-1].cpu().numpy()  # [N, B]
    dead = np.flatnonzero(weights.sum(0) == 0)
    if len(dead):
        raise ValueError(f"problems {dead.tolist()} have no trajectory of positive weight: convert the others")
    if not run.answers.shape[-1]:
        raise ValueError(
            "the run has no answers to convert: `run.states` and `run.weights` hold what its model drew"
        )
    slots = _equal_weight_slots(weights, run.seed)
    problems = np.arange(run.problems)

    def drawn(values: Any) -> Any:
        return np.asarray(values.cpu())[slots, problems][None]  # [1, N, B, ...]

    groups = {
        "posterior": {"answer": drawn(run.answers[-1])},
        "sample_stats": {"log_weight": drawn(run.log_weights[-1])}
        | {name: drawn(value[-1]) for name, value in run.heads.items()},
        "constant_data": {"x": np.asarray(run.x.cpu())},
    }
    dims = {"answer": ["problem", "position"], "log_weight": ["problem"], "x": ["problem", "input_position"]}
    dims |= {name: ["problem"] for name in run.heads}
    about = {"task": run.task, "seed": run.seed, "settings": json.dumps(run.settings)}
    if int(arviz.__version__.split(".")[0]) >= 1:
        data = arviz.from_dict(groups, dims=dims)
    else:
        data = arviz.from_dict(**groups, dims=dims)  # type: ignore[arg-type]
    data.attrs.update(about)
    return data


def _equal_weight_slots(weights: np.ndarray, seed: int) -> np.ndarray:
    """Systematic resampling of `[N, B]` weights: slots `[N, B]` in order; equal weights give every slot once."""
    n = len(weights)
    cumulative = np.cumsum(weights, 0)
    offsets = np.asarray(np.random.default_rng(seed).random(weights.shape[1]))
    slots = np.empty_like(weights, dtype=np.int64)
    for column in range(weights.shape[1]):
        c, u = cumulative[:, column], offsets[column]
        slots[:, column] = np.searchsorted(c / c[-1], (np.arange(n) + u) / n, side="right").clip(max=n - 1)
    equal = (weights == weights[0]).all(0)  # exactly: rounding of the sums must not move a slot
    return np.where(equal, np.arange(n)[:, None], slots)
