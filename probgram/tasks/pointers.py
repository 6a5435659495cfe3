"""Pointer chasing: follow a map f from a start, f(f(… f(start))), a given number of hops.

Serial: where the next hop leads is not known before the last one has been made. The problem is complete for L,
logarithmic space, and out of reach of any fixed number of layers, however wide, unless TC⁰ = L; depth has to grow
with the hops, for which their logarithm is enough (by squaring f).

Source: Nisan and Wigderson, "Rounds in communication complexity revisited", SIAM J. Comput. 22, 1993; Cook and
McKenzie, "Problems complete for deterministic logarithmic space", J. Algorithms 8, 1987.
"""

import re
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from probgram.tasks.drawn import Problems, check_whole, check_word
from probgram.tasks.single import SingleAnswer

Targets = Literal["last", "every"]
Maps = Literal["any", "permutation"]


class Pointers(SingleAnswer):
    """Pointer chasing as a `Task`.

    Token i of a problem names i, f(i) and whether i is the start: i·n + f(i), and n² more at the start. (The number
    i is told although it is the token's place: rotary attention knows distances between tokens, not places.)

    Args:
        n: elements, at least 2, which is L.
        hops: how often f is applied, which is the difficulty.
        targets: "last", every token of the answer is where the last hop leads; "every", token i is where hop i + 1
            leads, and the last hop where there are fewer than n. The latter teaches few hops on the way to many. A
            guess of the former is right once in n, so pass@N says little unless n is far above N.
        maps: f is drawn from "any" maps, whose ways soon end in a short cycle, or from permutations.
        train: training problems; None: 20,000.
        test: held-out problems, none of them a training problem; None: 1,000. With neither given, where
            there are fewer, all there are, 15% of them held out.
        seed: of the problems.

    Raises:
        ValueError: a number out of range, unknown targets or maps, or more hops than tokens with "every".
    """

    pattern = r"pointers(?P<n>\d+)(?:-(?P<hops>\d+)hops)?(?:-(?P<maps>permutation))?(?:-(?P<targets>every))?"

    def __init__(
        self,
        n: int = 16,
        hops: int = 8,
        targets: Targets = "last",
        maps: Maps = "any",
        train: int | None = None,
        test: int | None = None,
        seed: int = 0,
    ) -> None:
        check_whole(2, n=n)
        check_whole(hops=hops)
        check_word("targets", targets, "last", "every")
        check_word("maps", maps, "any", "permutation")
        if targets == "every" and hops > n:
            raise ValueError(f'hops must be at most n = {n} where targets are "every", got {hops}')
        self.n, self.hops, self.targets, self.maps, self.repeats = n, hops, targets, maps, targets == "last"
        name = f"pointers{n}-{hops}hops" + ("-permutation" if maps == "permutation" else "")
        name += "-every" if targets == "every" else ""
        super().__init__(name, n, 2 * n * n, n, train, test, seed)

    @property
    def about(self) -> dict[str, Any]:
        """Elements, hops, targets and maps."""
        return {"n": self.n, "hops": self.hops, "targets": self.targets, "maps": self.maps}

    def answer(self, x: Problems) -> NDArray[np.int64]:
        """Where the hops lead, `[..., L]`."""
        image = x % self.n
        at = (x >= self.n**2).argmax(-1)[..., None]  # [..., 1]
        way = []
        for _ in range(self.hops):
            at = np.take_along_axis(image, at, -1)
            way.append(at)
        if self.repeats:
            return np.repeat(at, self.n, axis=-1)
        return np.concatenate(way + [at] * (self.n - self.hops), -1)

    def draw(self, rng: np.random.Generator, rows: int) -> Problems:
        """Independent uniform maps and starts, `[rows, L]`."""
        image = rng.integers(self.n, size=(rows, self.n))
        if self.maps == "permutation":
            image = rng.permuted(np.tile(np.arange(self.n), (rows, 1)), axis=1)
        return self._tokens(image, rng.integers(self.n, size=rows))

    def encode(self, problem: Any) -> NDArray[np.int64]:
        """Read a start and a map: "3: 1 0 2 …" (start, then f(0), f(1), …), or the problem's own tokens; `[L]`.

        Raises:
            ValueError: not one start, or not a map of n elements.
        """
        tokens = super().encode(problem)
        starts = int((tokens >= self.n**2).sum())
        if starts != 1 or (tokens // self.n % self.n != np.arange(self.n)).any():
            raise ValueError(f"a problem of {self.name} must have one start, and token i must name i")
        return tokens

    def read(self, text: str) -> NDArray[np.int64]:
        """The tokens of "3: 1 0 2 …": the start, then f(0), f(1) and so on."""
        found = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+(?:[\s,]+\d+)*)\s*", text)
        if found is None:
            raise ValueError(f'a problem must be a start and a map such as "2: 1 0 2", got {text.strip()[:60]!r}')
        start, image = int(found[1]), [int(word) for word in re.findall(r"\d+", found[2])]
        if len(image) != self.n or max(*image, start) >= self.n:
            raise ValueError(
                f"a map of {self.n} elements must have {self.n} images from 0 to {self.n - 1}, got {text.strip()!r}"
            )
        return self._tokens(np.array([image]), np.array([start]))[0]

    def _tokens(self, image: NDArray[np.int64], start: NDArray[np.int64]) -> Problems:
        """From maps `[M, n]` and starts `[M]` to problems `[M, L]`."""
        places = np.arange(self.n)
        return places * self.n + image + self.n**2 * (places == start[:, None])
