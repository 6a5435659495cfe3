"""A run as ArviZ knows it. What ArviZ calls a chain is here one of two things, and R-hat asks one of two questions.

    layout        chain                             draw               R-hat far above 1 says
    "particles"   island: a group of trajectories   a trajectory       the width is too small: islands differ
    "depth"       trajectory, along its ancestry    a depth step       trajectories are stuck apart

Islands cannot see the second: where every trajectory is trapped somewhere, islands of trapped trajectories agree.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from probgram import fields
from probgram.run import Run, normalised

if TYPE_CHECKING:
    from xarray import Dataset

Layout = Literal["particles", "depth"]
_STATS = ("slot", "ancestor", "ess", "log_normalizer", "distinct", "top_share", "island_share")


def to_arviz(
    run: Run[Any],
    layout: Layout = "particles",
    *,
    islands: int | None = None,
    burn_in: int | None = None,
    y: Any = None,
) -> Any:
    """Convert a run to InferenceData (arviz 0.x) or a DataTree (arviz 1.x), with the same groups and names.

    Groups, where chain and draw are those of the layout:
        posterior: draws of equal weight, so that no ArviZ function is unweighted without a word: a systematic
            resample of each island and problem, seeded by the run's seed (equal weights: every trajectory once).
            `answer [chain, draw, problem, position]`, and `answer_number [chain, draw, problem]`, which numbers the
            different answers of a problem, 0 the most probable: one line a problem in a summary. A model without
            answers has its state here, `state ...`.
        sample_stats: of the same draws the heads, `log_weight`, `kl` where a guide ran, `slot` among the N
            trajectories, and with resampling `ancestor [..., depth]`, the slot of its ancestor at every depth step.
            Of each problem `ess` and `log_normalizer [problem, depth]`, `distinct` (how many different answers have
            weight) and `top_share` (the share of the most probable). Of each island and problem `island_share`, its
            part of all weight.
        particles: the run itself, weighted, at every recorded depth step: `answer [chain, draw, problem, depth,
            position]`, `log_weight`, `ancestor` (a slot: chain · draws + draw), heads, figures. Nothing is copied.
        posterior_predictive: `answer` of the draws, where ArviZ looks for it.
        observed_data: `x`, the problems, and `answer`, where y is given.
        constant_data: `x`, the `task`, and its `configuration` (the settings) as JSON.

    Coordinates: `depth` and, in the depth layout, `draw` are depth steps counted from 1; the others count from 0.
    Attributes, JSON where they are not plain: `task`, `seed`, `settings`, `weights` (the fingerprint of the chain's
    weights, "" where unknown), `versions`. Integers have the smallest type that fits.

    Args:
        run: with several depth steps for the depth layout.
        layout: "particles" or "depth".
        islands: chains of the particles layout, a divisor of the width. None: a filter's own islands (each stands
            for itself here; their weights are `island_share`); 1 for a filter without, whose trajectories share
            ancestors (4 would say little there); 4 for independent trajectories, fewer where 4 does not divide the
            width or leaves an island fewer than 4 of them; 1 where an island has no weight.
        burn_in: depth steps left out of the depth layout. None: the first half.
        y: known answers, `[B, L]`, to compare with.

    Returns:
        The data; `data["posterior"]["answer"]` and so on.

    Raises:
        ValueError: no trajectory of a problem has weight, the run has neither answers nor states, islands does not
            divide the width, burn_in leaves no depth step, the run has not recorded its depth steps.

    Source: R-hat of ranks, Vehtari et al., "Rank-normalization, folding, and localization", 2021.
    """
    import arviz
    import xarray

    if layout not in ("particles", "depth"):
        raise ValueError(f'layout must be "particles" or "depth", got {layout!r}')
    if layout == "particles" and burn_in is not None:
        raise ValueError(
            'burn_in leaves depth steps out of layout="depth"; the particles are of the last depth step'
        )
    if layout == "depth" and not run.answers.shape[-1] and run.states is None:
        raise ValueError('layout="depth" needs the states of every depth step: run the model with keep="latents"')
    if layout == "depth" and islands is not None:
        raise ValueError('islands are the chains of layout="particles"; those of "depth" are trajectories')
    _check(run)
    chains = run.width if layout == "depth" else _islands(run, islands)
    groups = _along_depth(run, burn_in) if layout == "depth" else _across(run, chains)
    raw = _particles(run, chains)
    if layout == "depth":  # the one draw of a slot is its depth step
        raw = raw.isel(draw=0, drop=True).rename(depth="draw")
    groups["particles"] = raw.transpose("chain", "draw", "problem", ...)
    groups |= _given(run, y)
    if int(arviz.__version__.split(".")[0]) >= 1:
        return _with_attributes(xarray.DataTree.from_dict(groups), run)
    parts: dict[str, Any] = groups
    return _with_attributes(arviz.InferenceData(**parts), run)


def derived(run: Run[Any]) -> "dict[str, Dataset]":
    """The groups of `to_arviz` that a file holds beside the run itself; fewer where not all can be made."""
    groups = _given(run, None)
    try:
        _check(run)
    except ValueError:  # a run without a posterior is written all the same
        return groups
    return _across(run, _islands(run, None)) | groups


def attributes(run: Run[Any]) -> dict[str, Any]:
    """Where a run comes from: plain values, and JSON."""
    from importlib.metadata import version

    versions = {"probgram": version("probgram"), "arviz": version("arviz")}
    versions[run.library] = version(run.library)
    return {
        "task": run.task,
        "seed": int(run.seed),
        "settings": fields.as_json(run.settings),
        "weights": run.settings.get("weights") or "",
        "versions": fields.as_json(versions),
    }


def _with_attributes(data: Any, run: Run[Any]) -> Any:
    data.attrs.update(attributes(run))
    return data


def _check(run: Run[Any]) -> None:
    dead = np.flatnonzero(_weights(run).sum(0) == 0).tolist()
    if dead:
        raise ValueError(f"problems {dead} have no trajectory of positive weight: convert the others")
    if not run.answers.shape[-1] and run.state is None and run.states is None:
        raise ValueError(
            "the run has neither answers nor states to convert: run it with keep='latents', and do not save it as "
            ".safetensors, which keeps none"
        )


def _islands(run: Run[Any], islands: int | None) -> int:
    weights = _weights(run)
    chosen = fields.islands_of(run) if islands is None else islands
    if isinstance(chosen, bool) or not isinstance(chosen, int) or chosen < 1 or run.width % chosen:
        raise ValueError(f"islands must divide the width {run.width}, got {islands!r}")
    empty = weights.reshape(chosen, -1, run.problems).sum(1) == 0  # [islands, B]
    if not empty.any():
        return chosen
    if islands is None:
        return 1
    island, problem = np.argwhere(empty)[0].tolist()
    raise ValueError(
        f"island {island} of problem {problem} has no trajectory of positive weight: take fewer islands"
    )


# -- groups ---------------------------------------------------------------------------------------------------


def _across(run: Run[Any], islands: int) -> "dict[str, Dataset]":
    """Chain = island, draw = trajectory, at the last depth step."""
    weights = _weights(run).reshape(islands, -1, run.problems)  # [I, M, B]
    seeds = np.random.default_rng(run.seed % 2**63)
    slots = np.stack([_equal_weight_slots(island, seeds) for island in weights])
    slots += np.arange(islands)[:, None, None] * weights.shape[1]  # [chain, draw, B]
    problems = np.arange(run.problems)
    dims = ("chain", "draw", "problem")

    def drawn(values: Any) -> np.ndarray:
        return fields.widened(values[-1])[slots, problems]

    stats: dict[str, Any] = {"slot": (dims, _smallest(slots))} | _figures(run)
    stats["island_share"] = (("chain", "problem"), weights.sum(1))
    stats |= {name: (dims, drawn(values)) for name, values in _beside(run).items()}
    if run.ancestors is not None:
        stats["ancestor"] = ((*dims, "depth"), _lines(run.ancestors, slots))
    names = {"depth": np.array(run.depths)} | _counted(stats, ("chain", "draw", "problem"))
    return _draws(run, drawn, stats, names, slice(None))


def _along_depth(run: Run[Any], burn_in: int | None) -> "dict[str, Dataset]":
    """Chain = trajectory along its ancestry, draw = depth step."""
    rows = len(run.depths)
    if rows == 1:
        raise ValueError('layout="depth" needs a run that recorded several depth steps (keep="paths" or "latents")')
    burn_in = rows // 2 if burn_in is None else burn_in
    if isinstance(burn_in, bool) or not isinstance(burn_in, int) or not 0 <= burn_in < rows:
        raise ValueError(
            f"burn_in must be an integer from 0 to {rows - 1}, depth steps to leave out, got {burn_in!r}"
        )
    final = _equal_weight_slots(_weights(run), np.random.default_rng(run.seed % 2**63))  # [N, B]
    problems = np.arange(run.problems)
    slots = fields.widened(run.lines()[burn_in:])[:, final, problems]  # [draw, chain, B]
    steps = np.arange(burn_in, rows)[:, None, None]
    dims = ("chain", "draw", "problem")

    def drawn(values: Any) -> np.ndarray:
        return fields.widened(values)[steps, slots, problems].swapaxes(0, 1)

    stats: dict[str, Any] = {"slot": (dims, _smallest(slots.swapaxes(0, 1)))}
    for name, (over, values) in _figures(run).items():
        stats[name] = (("problem", "draw"), values[:, burn_in:]) if "depth" in over else (over, values)
    stats |= {name: (dims, drawn(values)) for name, values in _beside(run).items()}
    names = _counted(stats, ("chain", "problem")) | {"draw": np.array(run.depths[burn_in:])}
    return _draws(run, drawn, stats, names, slice(-1, None))


def _draws(
    run: Run[Any],
    drawn: Callable[[Any], np.ndarray],
    stats: Mapping[str, Any],
    names: dict[str, np.ndarray],
    last: slice,
) -> "dict[str, Dataset]":
    """Posterior, sample_stats and posterior_predictive.

    Args:
        run: what is drawn from.
        drawn: picks the draws `[chain, draw, B, ...]` out of `[S, N, B, ...]`.
        stats: variables of sample_stats.
        names: their coordinates.
        last: the draws of the last depth step, which say how probable an answer is.
    """
    import xarray

    dims = ("chain", "draw", "problem")
    sample_stats = xarray.Dataset(stats, names)
    along = {name: values for name, values in names.items() if name in dims}
    if not run.answers.shape[-1]:
        states = run.states if run.states is not None else run.each_leaf(lambda leaf: leaf[None], run.state)
        latents = {}
        for path, leaf in fields.leaves(states):
            name = "_".join(("state", *path))
            latents[name] = ((*dims, *(f"{name}_dim_{i}" for i in range(len(leaf.shape) - 3))), drawn(leaf))
        return {"posterior": xarray.Dataset(latents, along), "sample_stats": sample_stats}
    answers = drawn(run.answers)
    along["position"] = np.arange(answers.shape[-1])
    answer = posterior = xarray.Dataset({"answer": ((*dims, "position"), answers)}, along)
    if np.issubdtype(answers.dtype, np.integer):
        counts = np.zeros(answers.shape[:2])
        counts[:, last] = 1
        number = _numbers(answers.reshape(-1, *answers.shape[2:]), counts.reshape(-1))[0]
        posterior = answer.assign(answer_number=(dims, _smallest(number.reshape(answers.shape[:3]))))
    return {"posterior": posterior, "sample_stats": sample_stats, "posterior_predictive": answer}


def _given(run: Run[Any], y: Any) -> "dict[str, Dataset]":
    """What the run was given: observed_data and constant_data."""
    import xarray

    given = fields.widened(run.x)
    names = ["problem", "input_position"] if given.ndim == 2 else ["problem"]
    names += [f"x_dim_{i}" for i in range(given.ndim - len(names))]
    x = {"x": (tuple(names), _smallest(given))} if given.size else {}
    observed: dict[str, Any] = dict(x)
    if y is not None:
        y = _smallest(fields.as_array(y))
        if y.shape != (run.problems, run.answers.shape[-1]):
            raise ValueError(f"y must be [{run.problems}, {run.answers.shape[-1]}], answers, got {list(y.shape)}")
        observed["answer"] = (("problem", "position"), y)
    constant = x | {"task": ((), _text(run.task)), "configuration": ((), _text(fields.as_json(run.settings)))}
    return {
        name: xarray.Dataset(part, _counted(part, ("problem", "position", "input_position")))
        for name, part in (("observed_data", observed), ("constant_data", constant))
    }


def _particles(run: Run[Any], chains: int) -> "Dataset":
    """The run itself, as views of its arrays."""
    import xarray

    kept = [v for v in fields.variables(run, chains) if v.field != "x" and not v.field.startswith("state.")]
    found = {v.name: (v.dims, fields.widened(v.values)) for v in kept}
    if "ancestor" in found:
        found["ancestor"] = (found["ancestor"][0], _smallest(found["ancestor"][1]))
    return xarray.Dataset(found, fields.coordinates(run, kept))


def _figures(run: Run[Any]) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """What is known of each problem, the depth steps that were recorded."""
    rows = len(run.depths)
    if run.effective is None:  # a row at a time: a run may be as large as the memory
        squares = np.stack([np.square(normalised(fields.widened(row))).sum(0) for row in run.log_weights])
        ess = np.divide(1.0, squares, out=np.zeros_like(squares), where=squares > 0)
    else:
        ess = fields.widened(run.effective[-rows:])
    figures: dict[str, Any] = {"ess": (("problem", "depth"), ess.T)}
    if run.log_normalizer is not None:
        figures["log_normalizer"] = (("problem", "depth"), fields.widened(run.log_normalizer[-rows:]).T)
    answers = fields.widened(run.answers[-1])
    if answers.shape[-1] and np.issubdtype(answers.dtype, np.integer):
        _, distinct, share = _numbers(answers, _weights(run))
        figures |= {"distinct": (("problem",), _smallest(distinct)), "top_share": (("problem",), share)}
    return figures


def _beside(run: Run[Any]) -> dict[str, Any]:
    """What is known of each trajectory at each depth step beside its answer, `[S, N, B]` each."""
    found = {"log_weight": run.log_weights} | ({} if run.kl is None else {"kl": run.kl})
    taken = {*found, *fields.COORDINATES, *_STATS}
    return found | {f"heads.{name}" if name in taken else name: values for name, values in run.heads.items()}


# -- arrays ---------------------------------------------------------------------------------------------------


def _weights(run: Run[Any]) -> np.ndarray:
    """Normalised weights of the last depth step, `[N, B]`."""
    return normalised(fields.widened(run.log_weights[-1]))


def _text(words: str) -> np.ndarray:
    """Words as one value; Zarr has no strings of a fixed length."""
    return np.array(words, dtype=object)


def _lines(ancestors: Any, slots: np.ndarray) -> np.ndarray:
    """The slot that the ancestor of each draw was in at every depth step.

    Args:
        ancestors: `[S, N, B]`.
        slots: of the draws at the last depth step, `[chain, draw, B]`.

    Returns:
        `[chain, draw, B, S]`.
    """
    lines = np.empty((*slots.shape, len(ancestors)), np.min_scalar_type(ancestors.shape[1] - 1))
    for s in range(len(ancestors) - 1, -1, -1):
        lines[..., s] = slots
        slots = fields.widened(ancestors[s])[slots, np.arange(slots.shape[-1])]
    return lines


def _counted(found: Any, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Coordinates that count from 0, of those dimensions that occur."""
    sizes = {dim: size for dims, values in found.values() for dim, size in zip(dims, np.shape(values), strict=True)}
    return {name: np.arange(sizes[name]) for name in names if name in sizes}


def _smallest(values: np.ndarray) -> np.ndarray:
    """Integers in the smallest type that holds them, unsigned where none is negative; other types as they are."""
    if not np.issubdtype(values.dtype, np.integer) or not values.size:
        return values
    low, high = int(values.min()), int(values.max())
    return values.astype(np.promote_types(np.min_scalar_type(low), np.min_scalar_type(high)), copy=False)


def _numbers(answers: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Number the different answers of each problem, the most weight first.

    Args:
        answers: integers `[M, B, L]`.
        weights: `[M, B]` or, for all problems alike, `[M]`; sums are made shares.

    Returns:
        Numbers `[M, B]`, how many answers have weight `[B]`, the share of number 0 `[B]`.
    """
    rows, problems = answers.shape[:2]
    weights = np.broadcast_to(weights if weights.ndim == 2 else weights[:, None], (rows, problems))
    numbers = np.empty((rows, problems), np.int64)
    distinct, share = np.empty(problems, np.int64), np.empty(problems)
    for b in range(problems):
        row = np.ascontiguousarray(answers[:, b])
        packed = row.view([("", np.void, row.shape[1] * row.itemsize)])[:, 0]
        _, index = np.unique(packed, return_inverse=True)
        total = np.bincount(index, weights[:, b])
        order = np.argsort(-total, kind="stable")
        numbers[:, b] = np.argsort(order)[index]
        distinct[b], share[b] = (total > 0).sum(), total[order[0]] / total.sum()
    return numbers, distinct, share


def _equal_weight_slots(weights: np.ndarray, seeds: np.random.Generator) -> np.ndarray:
    """Systematic resampling of `[N, B]` weights: slots `[N, B]` in order; equal weights give every slot once."""
    n = len(weights)
    cumulative = np.cumsum(weights, 0)
    offsets = np.asarray(seeds.random(weights.shape[1]))
    slots = np.empty_like(weights, dtype=np.int64)
    for column in range(weights.shape[1]):
        c, u = cumulative[:, column], offsets[column]
        slots[:, column] = np.searchsorted(c / c[-1], (np.arange(n) + u) / n, side="right").clip(max=n - 1)
    equal = (weights == weights[0]).all(0)  # exactly: rounding of the sums must not move a slot
    return np.where(equal, np.arange(n)[:, None], slots)
