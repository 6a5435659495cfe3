"""What a run may be asked for, checked in the same words on both sides, and what it says of itself.

Nothing here knows a library: numbers, words, and runs of either.
"""

from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from probgram.fields import as_array

if TYPE_CHECKING:
    from probgram.store import Store

Keep = Literal["last", "summary", "paths", "latents"]


def check_counts(counts: Mapping[str, Any]) -> None:
    """Raise ValueError where a number, by its name, is none from 1."""
    for name, number in counts.items():
        if isinstance(number, bool) or not isinstance(number, Integral) or number < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {number!r}")


def check_halting(halt_probability: float | None) -> None:
    """Raise ValueError where it is no probability from which a trajectory could halt."""
    if halt_probability is not None and not 0 < halt_probability < 1:
        raise ValueError(f"halt_probability must be between 0 and 1, got {halt_probability}")


def check_decode(decode: str) -> None:
    """Raise ValueError where it is no way to read an answer."""
    if decode not in ("mode", "sample"):
        raise ValueError(f'decode must be "mode" or "sample", got {decode!r}')


def check_observed(y: Any, told: Any, observed: Any) -> None:
    """Raise ValueError where a mask does not say which tokens of answers y `[B, L]` count.

    Args:
        y: answers, of any library.
        told: bool `[B, L]`, where y holds a token.
        observed: the mask, `[B, L]` or `[L]`.
    """
    shape = tuple(observed.shape)
    if not str(observed.dtype).endswith("bool") or shape not in (y.shape[-1:], tuple(y.shape)):
        raise ValueError(
            f"observed must be bool [{y.shape[-1]}] or {list(y.shape)}, got {observed.dtype} of shape {list(shape)}"
        )
    if bool((observed & ~told).any()):
        raise ValueError("observed must not count tokens that y does not hold (below 0 or NaN)")


def check_move(rejuvenate: Any, decode: str, fits: bool) -> None:
    """Raise ValueError where rejuvenation has no move, or nothing to move: `fits` says whether the model has."""
    if rejuvenate is None:
        return
    if isinstance(rejuvenate, type) or not callable(rejuvenate):
        raise ValueError(f"rejuvenate must be a move such as pcn(), got {rejuvenate!r}")
    if decode == "sample":
        raise ValueError("rejuvenate cannot weigh a sampled answer anew: use decode='mode'")
    if not fits:
        raise ValueError("rejuvenate moves the last noise of a chain that draws from its prior: it needs a Chain")


def depth_or_default(depth: Any, chain: bool) -> Any:
    """Depth steps asked for; 16 where nothing was, which only a chain allows."""
    if depth is None and not chain:
        raise ValueError("depth must be given: how many steps the series has")
    return 16 if depth is None else depth


def checked_depth(depth: Any, problems: int) -> NDArray[np.int64]:
    """Depth steps, one number `[]` or one a problem `[B]`.

    Raises:
        ValueError: no integers from 1, or not as many as there are problems.
    """
    try:
        number = as_array(depth)
    except (TypeError, ValueError):  # a ragged list
        number = np.empty(0)
    whole = number.dtype.kind in "iu" and number.shape in ((), (problems,))
    if whole and not number.ndim and number < 1:
        raise ValueError(f"depth must be at least 1, got {depth}")
    if not whole or number.min() < 1:
        raise ValueError(f"depth must be an integer of at least 1, or {problems} of them, a problem each")
    return number.astype(np.int64)


def checked_keep(keep: Keep | None, chain: bool) -> Keep:
    """What is kept of a run; by default paths of a chain, a summary of other models."""
    if keep is None:
        return "paths" if chain else "summary"
    if keep not in ("last", "summary", "paths", "latents"):
        raise ValueError(f'keep must be "last", "summary", "paths" or "latents", got {keep!r}')
    return keep


def opened(store: str | Path | None, start: Any, keep: Keep) -> "Store | None":
    """The folder that a run grows in, where it has one.

    Raises:
        ValueError: `keep` leaves nothing to write.
        CheckpointError: it exists, or holds another run than `start`.
    """
    if store is None:
        return None
    if keep not in ("paths", "latents"):
        raise ValueError(f'store needs keep="paths" or "latents", which record every depth step, got {keep!r}')
    from probgram.store import Store

    return Store(store, start)


def _check_own(own: Mapping[str, tuple[Any, Any]]) -> None:
    """Raise ValueError where a setting is not what it was in the run that is to go on."""
    for name, (was, now) in own.items():
        if was != now:
            raise ValueError(f"start has {name} {was}, so {name} must be {was}, got {now}")


def check_same_run(start: Any, own: Mapping[str, tuple[Any, Any]], halt_probability: float | None) -> None:
    """Raise ValueError where `sample` cannot go on from a run.

    Args:
        start: the run, of either library.
        own: name -> what it was in that run, and what it is to be now.
        halt_probability: asked for now.
    """
    if start.state is None:
        raise ValueError('start must be a run made with keep="latents": this one has no state')
    _check_own(own)
    if start.halted is not None and halt_probability is None:
        raise ValueError("start was run with halt_probability, so it must go on with one")


def check_start(start: Any, own: Mapping[str, tuple[Any, Any]], islands: int, potential: Any) -> None:
    """Raise ValueError where a filter cannot go on from a run.

    Args:
        start: the run, of either library.
        own: name -> what it was in that run, and what it is to be now.
        islands: asked for now.
        potential: likewise.
    """
    if start.state is None or start.log_potential is None:
        raise ValueError("start must be a run of this filter that has its last state: loaded runs have none")
    if islands != 1 or start.settings.get("islands") != 1:
        raise ValueError("a run of several islands cannot be continued: their weights were pooled")
    _check_own(own)
    before, again = start.settings["potential"], name_of(potential)
    if before != again:
        raise ValueError(f"start was run under the potential {before}, so it must go on under it, got {again}")


def reached(run: Any) -> int:
    """Depth steps that the problems of a run have taken; those that halted altogether count as having gone on.

    Raises:
        ValueError: they ended at different depths.
    """
    if run.ended is None:
        return run.settings["depth"]
    ended = np.where(as_array(run.ended) > 0, as_array(run.ended), run.settings["depth"])  # 0: stopped before
    going = ended if run.halted is None else ended[~as_array(run.halted).all(0)]
    depths = sorted(set((going if len(going) else ended.max()[None]).tolist()))
    if len(depths) > 1:
        raise ValueError(
            "the problems of the run ended at different depths: go on with those of one depth, run[rows]"
        )
    return depths[0]


def evidence(potential: Any, observed: bool, likelihood: bool) -> Literal["every", "last"] | None:
    """What log Z is: "every" row log evidence, the "last" row only, or None.

    Args:
        potential: of the run, or None.
        observed: whether anything was observed.
        likelihood: whether all of it was a likelihood.
    """
    if observed and not likelihood:
        return None
    if potential is None:
        return "every" if observed else None
    return potential.evidence if observed or not potential.neutral else None


def name_of(potential: Any) -> str | None:
    """How a run's settings call a potential."""
    return None if potential is None else getattr(potential, "__name__", None) or repr(potential)
