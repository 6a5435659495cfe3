"""Tasks with one right answer to each problem: a function of it, computed exactly.

The answer has a token for each token of the problem and none is padding, so that verification, votes and coverage
may compare whole answers. Where the answer is a single value, every token repeats it.
"""

from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from probgram.tasks.board import Board, in_rows
from probgram.tasks.drawn import Problems, check_whole, drawn_apart, named_arguments
from probgram.tasks.task import Array, Split, check_length


class SingleAnswer:
    """What of a `Task` follows from `answer` and `draw`; a family defines these, `read` and `word`.

    Args:
        name: how the family is called in files and messages; `pattern` finds its arguments in it.
        length: L, tokens of x and of y.
        input_size: number of different tokens in x.
        output_size: number of different tokens in y.
        train: training problems; None: 20,000.
        test: held-out problems, none of which is a training problem; None: 1,000. With neither given, a family of
            fewer problems has all of them, 15% held out.
        seed: of the draws.

    Raises:
        ValueError: train or test is below 1.
    """

    pattern: ClassVar[str]
    split: ClassVar[str] = "input"
    repeats: bool = False  # whether all tokens of an answer are the same one
    knows_answers: ClassVar[bool] = True  # it verifies by comparing with `answer`

    def __init__(
        self,
        name: str,
        length: int,
        input_size: int,
        output_size: int,
        train: int | None,
        test: int | None,
        seed: int,
    ) -> None:
        self.fewer = train is None and test is None  # where there are not so many
        train, test = 20_000 if train is None else train, 1_000 if test is None else test
        check_whole(train=train, test=test)
        self.name, self.length, self.input_size, self.output_size = name, length, input_size, output_size
        self.train, self.test, self.seed = train, test, seed

    @classmethod
    def from_name(cls, name: str, split: str | None = None) -> Self | None:
        """Build the task of that name; None where it is another family's.

        Raises:
            ValueError: it is this family's, but does not exist or is not held out by `split`.
        """
        arguments = named_arguments(cls.pattern, name)
        if arguments is None:
            return None
        if split not in (None, cls.split):
            raise ValueError(f'problems of {name} are held out by "{cls.split}", got split {split!r}')
        return cls(**arguments)

    @property
    def about(self) -> dict[str, Any]:
        """What belongs beside every figure: the arguments that the difficulty hangs on."""
        raise NotImplementedError(f"{type(self).__name__} must define about")

    def __repr__(self) -> str:
        arguments = "".join(f"{key}={value!r}, " for key, value in self.about.items())
        sizes = "" if self.fewer else f"train={self.train}, test={self.test}, "
        return f"{type(self).__name__}({arguments}{sizes}seed={self.seed})"

    def answer(self, x: Problems) -> NDArray[np.int64]:
        """The right answer to each problem, `[..., L]` to `[..., L]`."""
        raise NotImplementedError(f"{type(self).__name__} must define answer(x)")

    def draw(self, rng: np.random.Generator, rows: int) -> Problems:
        """Problems drawn independently, `[M, L]`, at most `rows`."""
        raise NotImplementedError(f"{type(self).__name__} must define draw(rng, rows)")

    def kind(self, x: Problems) -> NDArray[Any]:
        """A number for each problem, `[M, L]` to `[M]`; those of one number are held out together."""
        return np.arange(len(x))

    # -- reading and drawing ----------------------------------------------------------------------------------

    def read(self, text: str) -> Any:
        """The tokens of a problem that a person wrote; raises ValueError where it is none."""
        raise NotImplementedError(f"{type(self).__name__} must define read(text)")

    def word(self, token: int) -> str:
        """One token of an answer, drawn."""
        return str(token)

    def encode(self, problem: Any) -> NDArray[np.int64]:
        """Read a problem: text as the family describes it, or its own tokens; `[L]`.

        Raises:
            ValueError: not a problem of this task.
        """
        tokens = self._checked(self.read(problem) if isinstance(problem, str) else problem)
        if tokens.ndim != 1:
            raise ValueError(f"a problem of {self.name} must be [{self.length}] tokens, got {list(tokens.shape)}")
        return tokens

    def decode(self, y: Array) -> str:
        """Draw one answer `[L]`; a value that all tokens repeat is drawn once."""
        words = [self.word(int(token)) for token in y]
        return words[0] if self.repeats and len(set(words)) == 1 else " ".join(words)

    @property
    def board(self) -> Board:
        """The answer's tokens in lines of ten, or fewer where words are long; the wrong ones marked."""
        words = tuple(self.word(token) for token in range(self.output_size))
        columns = max(1, min(10, 30 // max(map(len, words))))
        return Board(
            words,
            lambda y: in_rows(y, columns),
            broken=lambda x, y: in_rows((y != self.answer(self._checked(x))).astype(np.int64), columns) > 0,
        )

    # -- truth ------------------------------------------------------------------------------------------------

    def verify(self, x: Array, y: Array) -> Array:
        """Whether y is the answer to x, in every token; bool `[...]`.

        Raises:
            ValueError: not a problem or an answer of L tokens.
        """
        return self.violations(x, y) == 0

    def violations(self, x: Array, y: Array) -> Array:
        """Tokens of y that differ from the answer's; integers `[...]`."""
        check_length(y, self.length)
        right = self.answer(self._checked(x))
        if hasattr(y, "new_tensor"):
            right = y.long().new_tensor(right)  # a type as small as uint8 would wrap the tokens around
        return (y != right).sum(-1)

    def solutions(self, x: Array) -> NDArray[np.int64]:
        """The answer to one problem `[L]`, `[1, L]`."""
        return self.answer(self.encode(x))[None]

    def _checked(self, x: Any) -> NDArray[np.int64]:
        """Problems `[..., L]` on the host."""
        try:
            tokens = np.asarray(x.cpu() if hasattr(x, "cpu") else x)
        except ValueError:
            raise ValueError(f"a problem of {self.name} must be {self.length} tokens, got {x!r}") from None
        if not tokens.ndim or tokens.shape[-1] != self.length or not np.issubdtype(tokens.dtype, np.integer):
            raise ValueError(
                f"a problem of {self.name} must be {self.length} tokens, got {tokens.dtype} of shape "
                f"{list(tokens.shape)}"
            )
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < self.input_size:
            raise ValueError(
                f"a problem of {self.name} must hold tokens from 0 to {self.input_size - 1}, got {tokens.min()} to "
                f"{tokens.max()}"
            )
        return tokens.astype(np.int64)

    # -- data -------------------------------------------------------------------------------------------------

    def examples(self, split: Split) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pairs (x `[M, L]`, y `[M, L]`) of the training or the test problems, all different."""
        if split not in ("train", "test"):
            raise ValueError(f'split must be "train" or "test", got {split!r}')
        x = self.problems[split == "test"]
        return x, self.answer(x)

    @cached_property
    def problems(self) -> tuple[Problems, Problems]:
        """Training and test problems, `[train, L]` and `[test, L]`."""
        return drawn_apart(self.draw, self.kind, self.train, self.test, self.seed, self.name, self.fewer)
