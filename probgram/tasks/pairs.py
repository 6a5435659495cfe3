"""A task made of data: problems and answers as two arrays, with a rule that verifies or with none."""

import re
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np
from numpy.typing import NDArray

from probgram.tasks.drawn import check_whole
from probgram.tasks.task import Array, KnownAnswers, Split, UnknownAnswers, check_length, group_answers

HELD_OUT = 0.15  # share of the problems (or groups) in the test split


class Pairs:
    """Problems x and answers y of your own, one row a pair; a problem with several answers has several rows.

    Args:
        x: problems, integers from 0, `[P, L]`.
        y: an answer to each, integers from 0, `[P, L]`.
        verify: `(x, y) -> bool [...]`, broadcasting over leading dimensions, with operators that NumPy and
            torch share. None: the listed answers are all there are, and only listed problems can be verified.
        groups: integers or names, `[P]`; problems of one group (symmetric copies of each other, say) are held out
            together. None: each different problem is a group.
        columns: tokens a line when an answer is drawn; None: all on one.
        seed: of the split, 15% of the groups being held out.
        name: what files and messages call the task; never that of a built-in task.

    Raises:
        ValueError: arrays that are not integers from 0 to 2^63 - 1, of different sizes, or a problem in two groups;
            columns that are no integer from 1.
    """

    def __init__(
        self,
        x: Array,
        y: Array,
        verify: Callable[[Array, Array], Array] | None = None,
        groups: Array | None = None,
        columns: int | None = None,
        seed: int = 0,
        name: str = "pairs",
    ) -> None:
        x, y = np.asarray(x), np.asarray(y)
        self.known: KnownAnswers = group_answers(x, y)
        if x.shape != y.shape or x.ndim != 2:
            raise ValueError(f"x and y must both be [P, L], got {list(x.shape)} and {list(y.shape)}")
        for label, tokens in (("x", x), ("y", y)):
            if tokens.min() < 0:
                raise ValueError(f"{label} must hold tokens from 0, got {tokens.min()}")
        if columns is not None:
            check_whole(columns=columns)
        self.name, self.seed, self.columns = name, seed, columns or x.shape[1]
        self.split = "input" if groups is None else "group"
        self.length, self.input_size, self.output_size = x.shape[1], int(x.max()) + 1, int(y.max()) + 1
        self._rule = verify
        self._groups = self._group_of_problem(x, groups)

    @classmethod
    def from_npz(cls, path: str | Path, **choices: Any) -> "Pairs":
        """Read x and y, and groups where there are any, from a NumPy archive.

        Args:
            path: an `.npz` file.
            **choices: further arguments of `Pairs`.

        Raises:
            ValueError: no such file, no archive, or one without x and y.
        """
        path = Path(path)
        if path.is_file() and not is_zipfile(path):
            raise ValueError(f"{path} is no .npz archive")
        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in ("x", "y", "groups") if name in archive}
        except Exception as error:  # whatever NumPy and zipfile make of a damaged or encrypted one
            raise ValueError(f"{path} cannot be read as an .npz archive: {error}") from error
        if not {"x", "y"} <= set(arrays):
            raise ValueError(f"{path} must hold the arrays x and y, found {sorted(arrays) or 'neither'}")
        return cls(**{"name": f"pairs:{path.stem}"} | arrays | choices)

    def __repr__(self) -> str:
        return f"Pairs({len(self.known.x)} problems of {self.length} tokens, name={self.name!r})"

    # -- reading and drawing ----------------------------------------------------------------------------------

    def encode(self, problem: Any) -> NDArray[np.int64]:
        """Read a problem: integers in a list or array, or text with spaces, commas or line ends between them.

        Raises:
            ValueError: another number of tokens than L, or tokens the data do not have.
        """
        if isinstance(problem, str):
            words = re.split(r"[\s,]+", problem.strip(" \n\t[]()"))
            if not all(word.isdecimal() for word in words):
                raise ValueError(f"a problem must be {self.length} integers, got {problem.strip()[:60]!r}")
            problem = [int(word) for word in words]
        try:
            tokens = np.asarray(problem)
        except ValueError:
            raise ValueError(f"a problem must be {self.length} integers, got rows of different lengths") from None
        if not np.issubdtype(tokens.dtype, np.integer) or tokens.size != self.length:
            raise ValueError(f"a problem must be {self.length} integers, got {tokens.size} of type {tokens.dtype}")
        if tokens.min() < 0 or tokens.max() >= self.input_size:
            raise ValueError(f"a problem must hold tokens from 0 to {self.input_size - 1}, got {tokens.tolist()}")
        return tokens.reshape(-1).astype(np.int64)

    def decode(self, y: Array) -> str:
        """Draw one answer `[L]`: its tokens, `columns` of them a line."""
        tokens = [str(int(token)) for token in y]
        lines = [tokens[i : i + self.columns] for i in range(0, len(tokens), self.columns)]
        return "\n".join(" ".join(line) for line in lines)

    # -- truth ------------------------------------------------------------------------------------------------

    @property
    def knows_answers(self) -> bool:
        """Whether it verifies by comparing with the listed answers, for want of a rule."""
        return self._rule is None

    def verify(self, x: Array, y: Array) -> Array:
        """Whether y answers x; broadcasts over leading dimensions, bool `[...]`.

        Raises:
            ValueError: x or y does not have L tokens, or x is not integers.
            UnknownAnswers: no rule was given and a problem is not among the data.
        """
        if self._rule is None:
            return self.violations(x, y) == 0
        check_length(y, self.length)
        return self._rule(x, y)

    def violations(self, x: Array, y: Array) -> Array:
        """With a rule 1 where it is broken, else the tokens in which y differs from the nearest listed answer."""
        check_length(y, self.length)
        if self._rule is not None:
            return 1 - (self._rule(x, y) * 1)
        answers = self.known.answers[self._rows(x)]  # [..., M, L]; padding repeats the first answer
        if hasattr(y, "new_tensor"):
            answers = y.long().new_tensor(answers)  # a type as small as uint8 would wrap the tokens around
        wrong = (y[..., None, :] != answers).sum(-1)  # [..., M]
        return wrong.min(-1).values if hasattr(wrong, "new_tensor") else wrong.min(-1)

    def solutions(self, x: Array) -> NDArray[np.int64]:
        """The listed answers of one problem `[L]`, `[M, L]` in lexicographic order.

        Raises:
            ValueError: x is not one problem.
            UnknownAnswers: a rule was given, so that more answers than those listed may be right; or the
                problem is not among the data.
        """
        if self._rule is not None:
            raise UnknownAnswers("with a verify= rule the listed answers need not be all that are right")
        row = self._rows(x)
        if row.ndim:
            raise ValueError(f"x must be one problem of {self.length} tokens, got shape {list(np.shape(x))}")
        return self.known.answers[row, : self.known.counts[row]]

    def _rows(self, x: Array) -> NDArray[np.int64]:
        """The row of `known` of each problem `[..., L]`."""
        wanted = np.asarray(x.cpu() if hasattr(x, "cpu") else x)
        if not wanted.ndim or wanted.shape[-1] != self.length:
            raise ValueError(f"a problem must have {self.length} tokens, got shape {list(wanted.shape)}")
        if not np.issubdtype(wanted.dtype, np.integer):
            raise ValueError(f"a problem must be {self.length} integers, got {wanted.dtype}")
        keys = _as_keys(wanted)
        found = np.searchsorted(self._keys, keys).clip(max=len(self._keys) - 1)
        if (self._keys[found] != keys).any():
            raise UnknownAnswers(
                f"a problem is not among the {len(self._keys)} of this data, so its answers are not known: "
                "give Pairs a verify= function"
            )
        return self._order[found]

    @cached_property
    def _order(self) -> NDArray[np.int64]:
        return np.argsort(_as_keys(self.known.x))

    @cached_property
    def _keys(self) -> NDArray[Any]:
        return _as_keys(self.known.x)[self._order]

    # -- data -------------------------------------------------------------------------------------------------

    def examples(self, split: Split) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pairs (x `[M, L]`, y `[M, L]`) of the training or the test problems, one row an answer."""
        if split not in ("train", "test"):
            raise ValueError(f'split must be "train" or "test", got {split!r}')
        names = np.unique(self._groups)
        share = max(1, round(HELD_OUT * len(names))) if len(names) > 1 else 0
        held_out = np.random.default_rng(self.seed).permutation(names)[:share]
        chosen = np.isin(self._groups, held_out) == (split == "test")
        x, answers, counts = (part[chosen] for part in self.known)
        if not len(x):
            raise ValueError(f"the data have {len(names)} groups of problems, too few to hold any out")
        real = np.arange(answers.shape[1]) < counts[:, None]
        return np.repeat(x, counts, axis=0), answers[real]

    def _group_of_problem(self, x: NDArray[Any], groups: Array | None) -> NDArray[np.int64]:
        if groups is None:
            return np.arange(len(self.known.x))
        groups = np.asarray(groups)
        if groups.shape != (len(x),):
            raise ValueError(f"groups must have one integer a row of x, {len(x)}, got shape {list(groups.shape)}")
        rows = self._rows(x)
        result = np.zeros(len(self.known.x), groups.dtype)
        result[rows] = groups
        if (result[rows] != groups).any():
            raise ValueError("groups must put equal problems into one group")
        return result


def _as_keys(x: NDArray[Any]) -> NDArray[Any]:
    """One sortable key for each row of `[..., L]`, `[...]`."""
    rows = np.ascontiguousarray(x, dtype=">i8")
    return rows.view(f"V{8 * rows.shape[-1]}")[..., 0]
