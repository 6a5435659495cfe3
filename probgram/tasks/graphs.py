"""Graphs of few vertices: their tokens, Erdős–Rényi draws, distances, and a mark that symmetric copies share.

A graph is a boolean adjacency `[..., n, n]`, symmetric with an empty diagonal. As tokens it is one integer a
vertex: bit d − 1 of token i is set where an edge joins vertex i to vertex i − d. Each edge is told once, and by how
far it reaches back, which is what rotary attention knows of a token's place.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probgram.tasks.task import Array

Adjacency = NDArray[np.bool_]


def erdos_renyi(rng: np.random.Generator, rows: int, n: int, edge_probability: float) -> Adjacency:
    """Draw graphs whose edges are there independently, `[rows, n, n]`."""
    upper = np.triu(rng.random((rows, n, n)) < edge_probability, 1)
    return upper | upper.swapaxes(-1, -2)


def to_tokens(adjacency: Adjacency) -> NDArray[np.int64]:
    """From `[..., n, n]` to one token a vertex, `[..., n]`."""
    n = adjacency.shape[-1]
    back = np.arange(n)[:, None] - np.arange(n)  # how far column j lies before row i
    return (np.tril(adjacency, -1) * np.where(back > 0, 1 << np.maximum(back - 1, 0), 0)).sum(-1)


def from_tokens(tokens: NDArray[Any]) -> Adjacency:
    """From one token a vertex, `[..., n]`, to `[..., n, n]`."""
    n = tokens.shape[-1]
    back = np.arange(n)[:, None] - np.arange(n)
    lower = (tokens[..., None].astype(np.int64) >> np.maximum(back - 1, 0) & 1) * (back > 0) > 0
    return lower | lower.swapaxes(-1, -2)


def edge(tokens: Array, i: int, j: int) -> Array:
    """Whether vertices j < i are joined, from tokens of any backend: 0 or 1, `[...]`."""
    return tokens[..., i] >> (i - j - 1) & 1


def read(problem: str | Sequence[Any] | Array, n: int) -> Adjacency:
    """Read a graph as a person writes it.

    Args:
        problem: edges, as text ("0-1 1-2") or as pairs of vertices, counted from 0; its adjacency, n rows of n
            zeros and ones; or its n tokens.
        n: how many vertices it has.

    Returns:
        Its adjacency, `[n, n]`.

    Raises:
        ValueError: neither of these, a vertex that is not there, an edge from a vertex to itself, or an adjacency
            that is not symmetric.
    """
    if isinstance(problem, str):
        words = re.split(r"[\s,;]+", problem.strip()) if problem.strip() else []
        if not all(re.fullmatch(r"\d+-\d+", word) for word in words):
            raise ValueError(f'a graph must be edges such as "0-1 1-2", got {problem.strip()[:60]!r}')
        problem = [tuple(map(int, word.split("-"))) for word in words]
    try:
        values = np.asarray(problem.tolist() if hasattr(problem, "tolist") else problem)
    except ValueError:
        raise ValueError("a graph must be pairs of vertices or an adjacency, got rows of other lengths") from None
    if not values.size:
        return np.zeros((n, n), dtype=np.bool_)
    if values.shape == (n, n):
        return _checked(values)
    if values.shape == (n,) and np.issubdtype(values.dtype, np.integer):
        if (values < 0).any() or (values >= 1 << np.arange(n)).any():
            raise ValueError(f"token i of a graph must be from 0 to 2^i - 1, got {values.tolist()}")
        return from_tokens(values)
    if values.ndim != 2 or values.shape[1] != 2 or not np.issubdtype(values.dtype, np.integer):
        raise ValueError(
            f"a graph must be pairs of vertices or its adjacency [{n}, {n}], got {values.dtype} of shape "
            f"{list(values.shape)}"
        )
    if values.min() < 0 or values.max() >= n:
        raise ValueError(f"a graph of {n} vertices must have edges between 0 and {n - 1}, got {values.tolist()}")
    adjacency = np.zeros((n, n), dtype=np.bool_)
    adjacency[values[:, 0], values[:, 1]] = adjacency[values[:, 1], values[:, 0]] = True
    return _checked(adjacency)


def _checked(values: NDArray[Any]) -> Adjacency:
    if not np.isin(values, (0, 1)).all() or (values != values.T).any():
        raise ValueError("an adjacency must be symmetric and hold zeros and ones")
    if values.diagonal().any():
        raise ValueError(f"vertex {int(values.diagonal().argmax())} must not be joined to itself")
    return values.astype(np.bool_)


def distances(adjacency: Adjacency, source: int = 0) -> NDArray[np.int64]:
    """Edges on the shortest path from `source` to every vertex, `[..., n]`; −1 where there is none."""
    n = adjacency.shape[-1]
    found = np.full(adjacency.shape[:-1], -1)
    front = np.zeros(found.shape, dtype=np.bool_)
    front[..., source] = True
    for distance in range(n):
        found[front] = distance
        front = (adjacency & front[..., None, :]).any(-1) & (found < 0)
    return found


def invariant(adjacency: Adjacency) -> NDArray[np.uint64]:
    """A number that all relabelled copies of a graph share, `[...]`.

    Colours of vertex pairs are refined by the multiset of the pairs they form triangles with, n times (the
    two-dimensional Weisfeiler–Leman algorithm), each multiset hashed by a sum. Copies get the same number because
    no step looks at a label. Graphs of up to eight vertices that are no copies get different ones (tested: there
    are 12,346 with eight); should two larger ones share a number, they are only held out together.

    Source: Cai, Fürer and Immerman, "An optimal lower bound on the number of variables for graph identification",
    Combinatorica 12, 1992.
    """
    n = adjacency.shape[-1]
    colour = _hash(adjacency + 2 * np.eye(n, dtype=np.uint64))
    for _ in range(n):
        triangles = np.zeros_like(colour)
        for k in range(n):
            triangles += _hash(colour[..., :, k, None] + np.uint64(3) * colour[..., None, k, :])
        # A pair sees (i, k), (k, j) and its mirror image the same in the other order: one number for both.
        colour = _hash(np.uint64(5) * colour + triangles + triangles.swapaxes(-1, -2))
    return colour.sum((-1, -2), dtype=np.uint64)


def _hash(values: NDArray[Any]) -> NDArray[np.uint64]:
    """Mix the bits of unsigned integers (the finaliser of SplitMix64; Steele, Lea and Flood 2014)."""
    z = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return z ^ z >> np.uint64(31)
