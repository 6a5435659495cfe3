"""Sudoku boards from files and from nothing.

Files: text with a board a line, or the CSV of Sudoku-Extreme (columns source, question, answer, rating).
"""

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from probgram.tasks.sudoku_solver import Box, deduce, digits_of, is_single, solve, units

SYMBOLS = "123456789ABCDEFGHIJKLMNOP"  # digits 1 to 25
_CODES = np.full(256, -1, np.int8)  # the digit of each character; -1: none
_CODES[[ord(blank) for blank in ".0"]] = 0
for _digit, _symbol in enumerate(SYMBOLS, 1):
    _CODES[[ord(_symbol), ord(_symbol.lower())]] = _digit
ROUNDS = 30  # of new grids, after which no more boards with so few clues are expected
ENOUGH = 100  # grids none of which gave a board, to expect it after one round


class Boards(NamedTuple):
    """Boards of files, as small as can be since files hold millions.

    Fields:
        x: `[P, L]`.
        y: the answers that the file gives, 0 where it gives none, `[P, L]`.
        rating: what the file says of each, nan where it says nothing, `[P]`.
        line: where in its file each stands, from 1, `[P]`.
        file: the file's name, `[P]`.
    """

    x: NDArray[np.int8]
    y: NDArray[np.int8]
    rating: NDArray[np.float64]
    line: NDArray[np.int64]
    file: NDArray[np.object_]

    def place(self, board: int | np.integer) -> str:
        """Where a board was read, for messages."""
        return f"line {self.line[board]} of {self.file[board]}"

    def chosen(self, rows: NDArray[np.int64]) -> "Boards":
        """Some of the boards."""
        return Boards._make(column[rows] for column in self)

    @classmethod
    def joined(cls, parts: Sequence["Boards"]) -> "Boards":
        """The boards of several files."""
        return cls._make(np.concatenate(columns) for columns in zip(*parts, strict=True))


# -- reading --------------------------------------------------------------------------------------------------


def read_boards(path: str | Path, box: Box) -> Boards:
    """Read the boards of a file; which of them have one answer is not looked at.

    Args:
        path: text with a board a line (empty lines and those that begin with # are passed over), or CSV whose
            first line names a column "question" and, where there are any, "answer" and "rating".
        box: rows and columns of a box.

    Raises:
        ValueError: no such file, no board in it, or a line that is no board; the line is named.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as text: {getattr(error, 'strerror', None) or error}") from error
    numbers = [i for i, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")]
    if numbers and _is_header(lines[numbers[0] - 1]):
        numbers, questions, answers, rating = _columns(lines, numbers[0], path)
    else:
        questions = [lines[i - 1] for i in numbers]
        answers, rating = [""] * len(numbers), np.full(len(numbers), np.nan)
    if not questions:
        raise ValueError(f"{path} holds no boards")
    given = np.flatnonzero([bool(answer) for answer in answers])
    places = [f"line {i} of {path.name}" for i in numbers]
    x = _read_lines(questions, places, box)
    y = np.zeros_like(x)
    y[given] = _read_lines([answers[i] for i in given], [f"the answer in {places[i]}" for i in given], box)
    for i in given[(y[given] == 0).any(1)]:
        raise ValueError(f"the answer in {places[i]} leaves a cell blank")
    for i in given[((x[given] != 0) & (x[given] != y[given])).any(1)]:
        raise ValueError(f"the answer in {places[i]} changes a given digit")
    return Boards(x, y, rating, np.array(numbers), np.full(len(x), path.name, object))


def read_cells(text: str, box: Box) -> NDArray[np.int64]:
    """Read a board drawn as text, `[L]`; whether its digits clash is not looked at.

    Args:
        text: a symbol a cell, in one line or several, `.` or `0` for a blank, letters from A for 10; or numbers
            with spaces or commas between them. Lines drawn with - + = | between boxes are passed over.
        box: rows and columns of a box.

    Raises:
        ValueError: not as many cells as the board has, or one that is no digit of it.
    """
    n = box[0] * box[1]
    drawn = "\n".join(line for line in text.splitlines() if not re.fullmatch(r"[-+=|\s]*", line))
    cells = re.split(r"[\s,|]+", drawn.strip(" \n\t,|[]()"))
    if len(cells) != n * n:
        cells = list("".join(cells))
    if len(cells) != n * n:
        raise ValueError(
            f"a board must have {n * n} cells, 1 to {SYMBOLS[n - 1]} or . for a blank, "
            f"got {len(cells)}: {text.strip()[:90]!r}"
        )
    values = np.array([_digit_of(cell) for cell in cells], dtype=np.int64)
    for i in np.flatnonzero((values < 0) | (values > n)):
        raise ValueError(
            f"the cell in row {i // n}, column {i % n} must be 1 to {SYMBOLS[n - 1]}, or . for a blank, "
            f"got {cells[i]!r} (rows and columns count from 0)"
        )
    return values


def clash(x: NDArray[Any], box: Box) -> str | None:
    """A sentence on the first digit that a board `[L]` has twice in a unit; None where it has none."""
    n = box[0] * box[1]
    for kind, cells in zip(("row", "column", "box"), units(box), strict=True):
        for number, unit in enumerate(cells):
            for digit in range(1, n + 1):
                where = unit[x[unit] == digit]
                if len(where) > 1:
                    (r, c), (s, d) = (divmod(int(i), n) for i in where[:2])
                    return (
                        f"the digit {digit} is twice in {kind} {number}: in row {r}, column {c} and in row {s}, "
                        f"column {d} (all count from 0)"
                    )
    return None


def clashes(x: NDArray[Any], box: Box) -> NDArray[np.bool_]:
    """Whether boards `[P, L]` have a digit twice in a row, column or box, `[P]`."""
    n = box[0] * box[1]
    found = np.zeros(len(x), bool)
    for unit in units(box):
        cells = np.sort(x[:, unit], -1)
        found |= ((cells[..., 1:] == cells[..., :-1]) & (cells[..., 1:] > 0) & (cells[..., 1:] <= n)).any((1, 2))
    return found


def _is_header(line: str) -> bool:
    """Whether a line names the columns of a CSV file: no symbol of a board comes after P."""
    return "question" in line.lower() or ("," in line and re.search("[q-z]", line.lower()) is not None)


def _columns(
    lines: list[str], first: int, path: Path
) -> tuple[list[int], list[str], list[str], NDArray[np.float64]]:
    """Line numbers, questions, answers and ratings of a CSV file whose header is in line `first`, from 1."""
    rows = _rows(lines, first, path)
    header = [name.strip().lower() for name in next(rows)[1]]
    if "question" not in header:
        raise ValueError(f'{path} must name a column "question" in its first line, found {header}')
    numbers: list[int] = []
    columns: dict[str, list[str]] = {"question": [], "answer": [], "rating": []}
    for number, row in rows:
        if not row:
            continue
        if len(row) != len(header):
            raise ValueError(f"line {number} of {path.name} must have {len(header)} fields, got {len(row)}")
        numbers.append(number)
        named = dict(zip(header, row, strict=True))
        for name, values in columns.items():
            values.append(named.get(name, "").strip())
    rating = np.full(len(numbers), np.nan)
    for i, text in enumerate(columns["rating"]):
        try:
            rating[i] = float(text or "nan")
        except ValueError:
            raise ValueError(
                f"line {numbers[i]} of {path.name} must have a number as its rating, got {text!r}"
            ) from None
    return numbers, columns["question"], columns["answer"], rating


def _rows(lines: list[str], first: int, path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV file from line `first` on, each with the number of its last line."""
    number, table = first - 1, csv.reader(lines[first - 1 :])
    try:
        for row in table:
            number = first - 1 + table.line_num
            yield number, row
    except csv.Error as error:  # a quotation mark that is not closed makes one field of all that follows
        raise ValueError(f"line {number + 1} of {path.name} cannot be read as CSV: {error}") from error


def _read_lines(texts: list[str], places: list[str], box: Box) -> NDArray[np.int8]:
    """Read one board a text, `[P, L]`: those with a symbol a cell together, since files hold millions."""
    n = box[0] * box[1]
    texts = [text.strip() for text in texts]
    plain = np.array([len(text) == n * n and text.isascii() for text in texts], dtype=bool)
    x = np.full((len(texts), n * n), -1, np.int8)
    joined = "".join(text for text, is_plain in zip(texts, plain, strict=True) if is_plain)
    x[plain] = _CODES[np.frombuffer(joined.encode(), np.uint8)].reshape(-1, n * n)
    for i in np.flatnonzero(((x < 0) | (x > n)).any(1)):
        try:
            x[i] = read_cells(texts[i], box)
        except ValueError as error:
            raise ValueError(f"{places[i]}: {error}") from error
    for i in np.flatnonzero(clashes(x, box)):
        raise ValueError(f"{places[i]}: {clash(x[i], box)}")
    return x


def _digit_of(cell: str) -> int:
    if len(cell) == 1 and cell.isascii():
        return int(_CODES[ord(cell)])
    return int(cell) if len(cell) <= 2 and cell.isascii() and cell.isdecimal() else -1


# -- making ---------------------------------------------------------------------------------------------------


def random_grids(box: Box, count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Draw solved grids, `[count, L]`: a random digit in a cell with the fewest, what follows from it, and again.

    A grid that comes to a contradiction is begun anew. Grids are not drawn uniformly, but every symmetric image
    of a grid is drawn as often as it is.
    """
    n = box[0] * box[1]
    blank = np.uint32((1 << n) - 1)
    masks, unfinished = np.full((count, n * n), blank), np.arange(count)
    while len(unfinished):
        possible = (masks[unfinished, :, None] >> np.arange(n) & 1).astype(bool)  # [Q, L, n]
        choices = possible.sum(-1)
        cell = (np.where(choices > 1, choices, n + 1) + generator.random(choices.shape)).argmin(1)
        here = possible[np.arange(len(unfinished)), cell]
        digit = np.where(here, generator.random(here.shape), -1.0).argmax(1)
        masks[unfinished, cell] = 1 << digit
        masks[unfinished] = deduce(masks[unfinished], box)
        masks[unfinished[~masks[unfinished].all(1)]] = blank
        unfinished = unfinished[~is_single(masks[unfinished]).all(1)]
    return digits_of(masks, n)


def remove_cells(
    grids: NDArray[np.int64], clues: NDArray[np.int64], generator: np.random.Generator
) -> NDArray[np.int64]:
    """Keep so many cells of each grid, drawn uniformly, `[P, L]`; the boards may have several solutions."""
    rank = generator.random(grids.shape).argsort(-1).argsort(-1)
    return np.where(rank < clues[:, None], grids, 0)


def unique_boards(
    box: Box, clues: NDArray[np.int64], generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Make boards with one solution: cells are taken off random grids in random order, as long as one remains.

    Args:
        box: rows and columns of a box.
        clues: how many cells each board keeps, `[P]`.
        generator: source of grids and orders.

    Returns:
        Boards and their solutions, both `[P, L]`.

    Raises:
        ValueError: too few clues; below 17 a 9x9 board has never one solution, and below 22 this rarely finds one.
        UnknownAnswers: boards so large that CP-SAT is needed, and OR-Tools is not installed.
    """
    n = box[0] * box[1]
    x, y = np.zeros((2, len(clues), n * n), np.int64)
    missing = np.arange(len(clues))
    for _ in range(ROUNDS):
        grids = random_grids(box, len(missing), generator)
        x[missing], y[missing] = _thinned(grids, clues[missing], box, generator), grids
        failed = (x[missing] != 0).sum(1) > clues[missing]
        hopeless = failed.all() and len(failed) >= ENOUGH
        missing = missing[failed]
        if not len(missing):
            return x, y
        if hopeless:
            break
    raise ValueError(
        f"boards with {clues[missing].min()} clues and one solution are too rare to be found by removing cells: "
        "ask for more clues"
    )


def _thinned(
    grids: NDArray[np.int64], clues: NDArray[np.int64], box: Box, generator: np.random.Generator
) -> NDArray[np.int64]:
    x = grids.copy()
    for cell in generator.random(grids.shape).argsort(-1).T:
        rows = np.flatnonzero((x != 0).sum(1) > clues)
        if not len(rows):
            break
        without = x[rows]
        without[np.arange(len(rows)), cell[rows]] = 0
        still_one = solve(without, box, 2)[1] == 1
        x[rows[still_one]] = without[still_one]
    return x
