"""Rule 110: the row of a cellular automaton after a number of steps, on a ring of cells.

Serial: the automaton computes whatever a computer does, and to predict it is complete for P: no way is known that
is much shorter than to take the steps one after another.

Source: Cook, "Universality in elementary cellular automata", Complex Systems 15, 2004; Neary and Woods,
"P-completeness of cellular automaton Rule 110", ICALP 2006.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from probgram.tasks.drawn import Problems, check_whole
from probgram.tasks.single import SingleAnswer
from probgram.tasks.task import Array


class Rule110(SingleAnswer):
    """Rule 110 as a `Task`: x is a row of cells, 0 or 1, y the row some steps later.

    Rows that are rotations of each other are held out together, since the answer rotates with the problem.

    Args:
        width: cells of the ring, from 3 to 62, which is L.
        steps: how many steps later, which is the difficulty.
        train: training rows; None: 20,000.
        test: held-out rows, none of them a rotation of a training row; None: 1,000. With neither given, where
            there are fewer, all there are, 15% of them held out.
        seed: of the rows.

    Raises:
        ValueError: a number out of range.
    """

    pattern = r"rule110(?:-(?P<width>\d+)-(?P<steps>\d+)steps)?"
    split = "orbit"

    def __init__(
        self, width: int = 16, steps: int = 8, train: int | None = None, test: int | None = None, seed: int = 0
    ) -> None:
        check_whole(3, width=width)
        check_whole(steps=steps)
        if width > 62:
            raise ValueError(f"width must be at most 62, got {width}")
        self.width, self.steps = width, steps
        super().__init__(f"rule110-{width}-{steps}steps", width, 2, 2, train, test, seed)

    @property
    def about(self) -> dict[str, Any]:
        """Width and steps."""
        return {"width": self.width, "steps": self.steps}

    def answer(self, x: Problems) -> NDArray[np.int64]:
        """The rows after all steps, `[..., L]`."""
        for _ in range(self.steps):
            left, right = np.roll(x, 1, -1), np.roll(x, -1, -1)
            x = (x | right) & ~(left & x & right)  # dead with a dead right neighbour, or where all three live
        return x

    def draw(self, rng: np.random.Generator, rows: int) -> Problems:
        """Rows of independent fair cells, `[rows, L]`."""
        return rng.integers(2, size=(rows, self.width))

    def kind(self, x: Problems) -> NDArray[Any]:
        """The smallest number that a rotation of the row spells in binary, `[M]`."""
        digits = 1 << np.arange(self.width)
        return np.min([np.roll(x, turn, -1) @ digits for turn in range(self.width)], 0)

    def read(self, text: str) -> list[int]:
        """A row of cells: "#" or "1" for those alive, "." or "0" for the others."""
        cells = "".join(text.split())
        if set(cells) - set("#.10"):
            raise ValueError(f"a row must be cells written # and ., or 1 and 0, got {text.strip()[:60]!r}")
        return [int(cell in "#1") for cell in cells]

    def decode(self, y: Array) -> str:
        """Draw one row `[L]` with # and . for its cells."""
        return "".join("#" if token == 1 else "." for token in y)
