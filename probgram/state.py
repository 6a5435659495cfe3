"""State trees: what a chain carries from one step to the next, whatever its shape.

A state is a tensor, a NamedTuple, a tuple or a dict of states; every leaf is `[..., B, event]`, with the
particle dimension N, where there is one, to the left of the problems B.
"""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

State = TypeVar("State")


def map_state(function: Callable[..., Tensor], *states: State) -> State:
    """Apply `function` to the matching leaves of one or several states of the same structure; None stays."""
    first: Any = states[0]
    if first is None:
        return states[0]
    if isinstance(first, Tensor):
        return function(*states)  # type: ignore[return-value]
    if isinstance(first, dict):
        return {key: map_state(function, *(s[key] for s in states)) for key in first}  # type: ignore
    if isinstance(first, tuple):
        leaves = [map_state(function, *parts) for parts in zip(*states, strict=True)]
        return type(first)(*leaves) if hasattr(first, "_fields") else tuple(leaves)  # type: ignore
    raise ValueError(
        f"a state must be a tensor, a NamedTuple, a tuple or a dict of them, got {type(first).__name__}"
    )


def leaves(state: Any, name: str = "state") -> Iterator[tuple[str, Tensor]]:
    """Yield `(name, tensor)` for each leaf, the name as one would write it: `state.h`, `state['l']`."""
    if isinstance(state, Tensor):
        yield name, state
    elif isinstance(state, dict):
        for key, part in state.items():
            yield from leaves(part, f"{name}[{key!r}]")
    elif isinstance(state, tuple):
        fields = getattr(state, "_fields", None)
        for index, part in enumerate(state):
            yield from leaves(part, f"{name}.{fields[index]}" if fields else f"{name}[{index}]")
    else:
        raise ValueError(
            f"{name} must be a tensor, a NamedTuple, a tuple or a dict of them, got {type(state).__name__}"
        )


def check_state(state: Any, batch_shape: tuple[int, ...]) -> None:
    """Check once that every leaf begins with `batch_shape`, the offending leaf named.

    Raises:
        ValueError: a leaf has other leading dimensions, or a NaN.
    """
    for name, leaf in leaves(state):
        if tuple(leaf.shape[: len(batch_shape)]) != tuple(batch_shape):
            raise ValueError(
                f"{name} must begin with the batch dimensions {list(batch_shape)}, got shape {list(leaf.shape)}"
            )
    check_numbers(state)


def check_numbers(state: Any) -> None:
    """Raise ValueError where a leaf has a NaN, the leaf named; a look at the device."""
    for name, leaf in leaves(state):
        if leaf.is_floating_point() and bool(leaf.isnan().any()):
            raise ValueError(f"{name} is NaN")


def expand(state: State, batch_shape: tuple[int, ...], batch_dims: int = 1) -> State:
    """Broadcast every leaf's leading `batch_dims` dimensions to `batch_shape`, without copying.

    Args:
        state: leaves `[*batch, event]`, `batch` of `batch_dims` dimensions.
        batch_shape: for instance `(N, B)`.
        batch_dims: how many leading dimensions of a leaf are batch dimensions.
    """
    return map_state(lambda leaf: leaf.expand(*batch_shape, *leaf.shape[batch_dims:]), state)


def widen(leaf: Tensor) -> Tensor:
    """Back from a half type, which autocast computes in, to float32; other types stay."""
    return leaf.float() if leaf.dtype in (torch.bfloat16, torch.float16) else leaf


def widest(device: torch.device) -> torch.dtype:
    """The widest floating type a device has: float64, but float32 on Apple's MPS."""
    return torch.float32 if device.type == "mps" else torch.float64


def detach(state: State) -> State:
    """Cut every leaf from the graph."""
    return map_state(Tensor.detach, state)


def where(mask: Tensor, chosen: State, other: State) -> State:
    """Take `chosen` where `mask` `[..., B]` is true, else `other`, leaf by leaf."""

    def pick(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(mask.reshape(*mask.shape, *[1] * (max(a.dim(), b.dim()) - mask.dim())), a, b)

    return map_state(pick, chosen, other)


def gather_ancestors(state: State, ancestors: Tensor) -> State:
    """Replace slot i of problem b by slot `ancestors[i, b]`: the copy step of resampling.

    Args:
        state: leaves `[N, B, event]`.
        ancestors: int64 `[N, B]`.
    """
    n, b = ancestors.shape
    if b == 1:
        rows = ancestors[:, 0]
    else:
        rows = (ancestors * b + torch.arange(b, device=ancestors.device)).reshape(-1)

    def gather(leaf: Tensor) -> Tensor:
        if leaf.stride(0) == 0:  # one value for all particles
            return leaf
        if b == 1:  # index_select on one dimension is the fastest copy
            return leaf[:, 0].index_select(0, rows)[:, None]
        if leaf.dim() == 2:
            return leaf.gather(0, ancestors)
        return leaf.flatten(0, 1).index_select(0, rows).view(n, b, *leaf.shape[2:])

    return map_state(gather, state)
