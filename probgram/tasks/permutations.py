"""Composition of permutations: the product of a word of elements of S5, one of 120.

Serial: S5 is not solvable, so its word problem is complete for NC¹ and out of reach of any fixed number of layers,
however wide, unless TC⁰ = NC¹; depth has to grow with the word, for which the logarithm of its length is enough.

Source: Barrington, "Bounded-width polynomial-size branching programs recognize exactly those languages in NC¹",
JCSS 38, 1989; for transformers Merrill and Sabharwal, arXiv 2207.00729, and Liu et al., arXiv 2210.10749.
"""

import itertools
import re
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from probgram.tasks.drawn import Problems, check_whole, check_word
from probgram.tasks.single import SingleAnswer

Targets = Literal["last", "every"]


class Permutations(SingleAnswer):
    """Composition of permutations as a `Task`.

    A token is the number of a permutation in lexicographic order, 0 the identity. Factors act from left to right:
    the product of (p, q) maps i to q[p[i]].

    Args:
        length: factors of a word, which is the difficulty.
        targets: "last", every token of the answer is the product of the whole word; "every", token i is the product
            of factors 0 to i. The latter teaches short words on the way to long ones.
        elements: how many elements are permuted, 2 to 6; below 5 the group is solvable, and shallow circuits do.
        train: training words; None: 20,000.
        test: held-out words, none of them a training word; None: 1,000. With neither given, where
            there are fewer, all there are, 15% of them held out.
        seed: of the words.

    Raises:
        ValueError: a number out of range, or unknown targets.
    """

    pattern = r"permutations(?P<length>\d+)(?:-(?P<elements>\d+)elements)?(?:-(?P<targets>every))?"

    def __init__(
        self,
        length: int = 16,
        targets: Targets = "last",
        elements: int = 5,
        train: int | None = None,
        test: int | None = None,
        seed: int = 0,
    ) -> None:
        check_whole(length=length)
        check_whole(2, elements=elements)
        check_word("targets", targets, "last", "every")
        if elements > 6:
            raise ValueError(f"elements must be at most 6, got {elements}")
        self.permutations = np.array(list(itertools.permutations(range(elements))))  # [P, elements]
        digits = elements ** np.arange(elements)[::-1]
        products = self.permutations[:, self.permutations].swapaxes(0, 1)  # [P, P, elements]: first p, then q
        self.products = np.searchsorted(self.permutations @ digits, products @ digits)
        self.elements, self.targets, self.repeats = elements, targets, targets == "last"
        name = f"permutations{length}" + ("" if elements == 5 else f"-{elements}elements")
        name += "-every" if targets == "every" else ""
        size = len(self.permutations)
        super().__init__(name, length, size, size, train, test, seed)

    @property
    def about(self) -> dict[str, Any]:
        """Length, targets and elements."""
        return {"length": self.length, "targets": self.targets, "elements": self.elements}

    def answer(self, x: Problems) -> NDArray[np.int64]:
        """Products of the factors up to each, or of all of them at every token, `[..., L]`."""
        y = x.copy()
        for i in range(1, self.length):
            y[..., i] = self.products[y[..., i - 1], x[..., i]]
        return np.repeat(y[..., -1:], self.length, axis=-1) if self.repeats else y

    def draw(self, rng: np.random.Generator, rows: int) -> Problems:
        """Words of independent uniform factors, `[rows, L]`."""
        return rng.integers(self.input_size, size=(rows, self.length))

    def read(self, text: str) -> list[int]:
        """A word of permutations, each as the images of 0, 1, …: "10234 01243 …"."""
        words = re.split(r"[\s,]+", text.strip())
        known = {"".join(map(str, images)): number for number, images in enumerate(self.permutations)}
        for word in words:
            if word not in known:
                identity = "".join(map(str, range(self.elements)))
                raise ValueError(f"a permutation must be an arrangement of {identity}, got {word[:20]!r}")
        return [known[word] for word in words]

    def word(self, token: int) -> str:
        """The images of 0, 1, … under one permutation."""
        return "".join(map(str, self.permutations[token]))
