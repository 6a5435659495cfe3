"""What a problem family offers, and how an input's known answers are kept together.

Tasks work on NumPy arrays and on tensors of any backend alike: `verify` and `violations` use operators
and methods that all of them share, and import none of them.
"""

from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Array = Any  # a NumPy array, a torch tensor or a jax array
Split = Literal["train", "test"]


class UnknownAnswers(ValueError):  # noqa: N818
    """A task does not know all right answers of a problem: it cannot verify, or cannot enumerate."""


@runtime_checkable
class Task(Protocol):
    """A family of problems x with answers y, both sequences of small integers.

    Attributes:
        name: how the family is called in files and messages.
        length: L, tokens of x and of y.
        input_size: number of different tokens in x.
        output_size: number of different tokens in y.

    A task may also set `grouped = False`: its training pairs are then not grouped by problem, but each is a problem
    with one known answer (`separate_answers`). For problems with thousands of answers, as generation has, since a
    batch carries all known answers of its rows. And a `board`, a `probgram.tasks.board.Board`: how its answers look
    as boards of cells, which are drawn in the place of `decode`'s text. And `knows_answers = True` where `verify`
    and `violations` compare y with an answer that the task knows, in the place of checking it against x: that is a
    label, at which no confidence may look. And `canonical(y)`, `[..., L]` to the same shape and type, where answers
    that differ in some tokens may say the same: it gives those tokens one value, so that equal answers are counted
    together.
    """

    name: str
    length: int
    input_size: int
    output_size: int

    def encode(self, problem: Any) -> NDArray[np.int64]:
        """Read a problem as a person writes it; `[L]`. Raises ValueError in one sentence."""
        ...

    def decode(self, y: Array) -> str:
        """Draw one answer (or problem) `[L]` as text."""
        ...

    def verify(self, x: Array, y: Array) -> Array:
        """Whether y answers x; broadcasts over leading dimensions, bool `[...]`; may raise `UnknownAnswers`."""
        ...

    def violations(self, x: Array, y: Array) -> Array:
        """How many constraints y breaks, 0 exactly where `verify` is true; integers `[...]`."""
        ...

    def solutions(self, x: Array) -> NDArray[np.int64]:
        """Every answer of one problem `[L]`, `[M, L]` in lexicographic order; may raise `UnknownAnswers`."""
        ...

    def examples(self, split: Split) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pairs (x `[M, L]`, y `[M, L]`), one row for each known answer of each problem."""
        ...


class KnownAnswers(NamedTuple):
    """Problems with their known answers, padded.

    Fields:
        x: `[I, ...]`; unique, unless each pair is a problem of its own.
        answers: `[I, M, L]`; rows beyond `counts` repeat the first answer.
        counts: int64 `[I]`, how many are known; at least 1.
    """

    x: NDArray[np.int64]
    answers: NDArray[np.int64]
    counts: NDArray[np.int64]


def check_length(y: Array, length: int) -> None:
    """Raise ValueError where answers are not `[..., length]`: a single token would be compared with every one."""
    shape = list(np.shape(y))
    if not shape or shape[-1] != length:
        raise ValueError(f"an answer must have {length} tokens, got shape {shape}")


def group_answers(x: Array, y: Array) -> KnownAnswers:
    """Group pairs by problem; a pair given twice counts once.

    Args:
        x: problems, integers `[P, ...]`.
        y: answers, integers `[P, L]`.

    Raises:
        ValueError: different numbers of rows, none at all, or values that are not integers below 2^63.
    """
    x, y = _checked_pairs(x, y)
    pairs = np.unique(np.concatenate([x.reshape(len(x), -1), y.reshape(len(y), -1)], 1), axis=0)
    width = x[0].size
    problems, first, count = np.unique(pairs[:, :width], axis=0, return_index=True, return_counts=True)
    slots = np.arange(count.max())
    rows = first[:, None] + np.where(slots < count[:, None], slots, 0)  # [I, M]; pairs are sorted by problem
    answers = pairs[rows, width:].reshape(len(problems), len(slots), *y.shape[1:])
    return KnownAnswers(problems.reshape(-1, *x.shape[1:]), answers, count)


def separate_answers(x: Array, y: Array) -> KnownAnswers:
    """Make each pair a problem with one known answer; a pair given twice is there twice.

    Arguments and errors are those of `group_answers`.
    """
    x, y = _checked_pairs(x, y)
    return KnownAnswers(x, y[:, None], np.ones(len(x), dtype=np.int64))


def _checked_pairs(x: Array, y: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    x, y = np.asarray(x), np.asarray(y)
    for name, values in (("x", x), ("y", y)):
        if not np.issubdtype(values.dtype, np.integer):
            raise ValueError(f"{name} must hold integers (tokens), got {values.dtype}")
        if values.ndim < 2:
            raise ValueError(f"{name} must have a row for each example, got shape {list(values.shape)}")
    if len(x) != len(y) or len(x) == 0:
        raise ValueError(f"x and y must have the same number of rows, at least 1, got {len(x)} and {len(y)}")
    for name, values in (("x", x), ("y", y)):
        if values.size and values.max() > np.iinfo(np.int64).max:
            raise ValueError(f"{name} must hold tokens below 2^63, got {values.max()}")
    return x.astype(np.int64), y.astype(np.int64)


def from_name(name: str, split: str | None = None) -> "Task":
    """Build the task that a weight file's `task` entry names, for instance "queens8".

    Args:
        name: of a built-in task.
        split: how its problems are held out; None: the task's default.

    Raises:
        ValueError: no task has that name.
    """
    from probgram.tasks.colouring import Colouring
    from probgram.tasks.digits import Digits
    from probgram.tasks.generation import Generation
    from probgram.tasks.permutations import Permutations
    from probgram.tasks.pointers import Pointers
    from probgram.tasks.queens import Queens
    from probgram.tasks.reachability import Reachability
    from probgram.tasks.rule110 import Rule110
    from probgram.tasks.sudoku import Sudoku

    for kind in (Queens, Colouring, Digits, Generation, Permutations, Pointers, Reachability, Rule110, Sudoku):
        named = kind.from_name(name, split)
        if named is not None:
            return named
    raise ValueError(f'no task is called {name!r}; expected for instance "queens8" or "queens8-blank"')
