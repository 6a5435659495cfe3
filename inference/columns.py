"""Problems that have ended leave the batch, so that the others go on faster; at the end they are put back.

The noise of those who stay is what it would have been among all: `Kernel.rows` and `Filter.columns` see to it.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from probgram import state as trees

if TYPE_CHECKING:
    from probgram.inference.recording import Record
    from probgram.inference.smc import Filter, SMCState

_WIDE = ("latent", "log_weights", "log_psi", "halted")  # leaves [N, B, ...]
_NARROW = ("log_normalizer", "ess", "dead", "nan", "done")  # [B]


def leave(
    algorithm: "Filter", state: "SMCState", running: Tensor, whole: "SMCState | None", record: "Record"
) -> "tuple[Filter, SMCState, SMCState | None]":
    """Go on with the problems that are still running, where their noise stays what it was."""
    kernel = algorithm.kernel.rows(running.to(algorithm.kernel.device))
    if kernel is None or algorithm.decode == "sample" or algorithm.rejuvenate is not None:
        return algorithm, state, whole
    running = running.to(algorithm.kernel.device)
    record.settle()
    before = algorithm.columns
    here, among = (running, algorithm.kernel.problems) if before is None else (before[0][running], before[1])
    whole = state if before is None else merged(whole, state, before[0])
    record.here = here
    depth = algorithm.depth
    algorithm = replace(
        algorithm,
        kernel=kernel,
        depth=depth[running] if isinstance(depth, Tensor) else depth,
        problem=algorithm.problem[running],
        columns=(here, among),
    )
    return algorithm, _columns(state, running), whole


def _columns(state: "SMCState", rows: Tensor) -> "SMCState":
    def pick(dim: int) -> Callable[[Tensor], Tensor]:
        return lambda leaf: leaf.index_select(dim, rows)

    wide: dict[str, Any] = {name: trees.map_state(pick(1), getattr(state, name)) for name in _WIDE}
    return state._replace(**wide, **{name: pick(0)(getattr(state, name)) for name in _NARROW})  # type: ignore[arg-type]


def merged(whole: "SMCState | None", state: "SMCState", rows: Tensor) -> "SMCState":
    """`whole` with its columns `rows` as in `state`."""
    assert whole is not None

    def put(dim: int) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda old, new: old.clone().index_copy_(dim, rows, new)

    wide: dict[str, Any] = {
        name: trees.map_state(put(1), getattr(whole, name), getattr(state, name)) for name in _WIDE
    }
    narrow: dict[str, Any] = {name: put(0)(getattr(whole, name), getattr(state, name)) for name in _NARROW}
    return state._replace(**wide, **narrow)
