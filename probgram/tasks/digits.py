"""Handwritten digits to be generated: 28x28 pixels, black or white, as 49 tokens.

A picture is cut into 4x4 patches, 7 a side, read row by row. A patch is 16 bits; its token is the nearest of a
codebook (fewest differing pixels), which is learned by k-modes: assign every patch of the training pictures to its
nearest code, replace each code by the majority of its patches, again until nothing moves. The codebook of 128 that
ships with the package was learned from the training part of MNIST's 10,000 test pictures, so that a trained chain
draws without the data.

What is a right digit cannot be verified. Beside the eye there is `distance`, to the nearest training picture.

Sources: LeCun, Cortes and Burges, the MNIST database and its IDX format; k-modes: Huang, "Extensions to the k-means
algorithm for clustering large data sets with categorical values", 1998.
"""

import gzip
import json
import zlib
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from probgram.tasks.board import Board
from probgram.tasks.task import Array, Split, UnknownAnswers

SIDE, PATCH = 28, 4
ACROSS = SIDE // PATCH  # patches a side
HELD_OUT = 0.15  # share of the different pictures in the test split
_BITS = 1 << np.arange(PATCH * PATCH)  # pixel i of a patch is bit i of its number


class Digits:
    """Digits as a `Task`.

    Args:
        folder: MNIST's files, `*-images-idx3-ubyte` and `*-labels-idx1-ubyte`, packed by gzip or not; None: no
            data, for drawing what a trained chain generates.
        size: V, codes to learn from the training pictures; None: the shipped codebook.
        codes: a codebook to use, patches as numbers of 16 bits, `[V]`.
        conditional: x is the label, in every token; else blank.
        seed: of the split, which holds out 15% of the different pictures.

    Raises:
        ValueError: a folder without such files, files that are damaged, both or a bad size and codes, or a size but
            no folder.
    """

    grouped = False  # thousands of answers to one problem
    split = "picture"

    def __init__(
        self,
        folder: str | Path | None = None,
        size: int | None = None,
        codes: Array | None = None,
        conditional: bool = False,
        seed: int = 0,
    ) -> None:
        self.folder, self.conditional, self.seed = None if folder is None else Path(folder), conditional, seed
        self.name = "digits-labelled" if conditional else "digits"
        self.length, self.input_size = ACROSS * ACROSS, 10 if conditional else 1
        if size is not None and (codes is not None or folder is None):
            raise ValueError("size says how many codes to learn: it needs a folder, and no codes beside it")
        if self.folder is not None:
            self.pictures, self.labels = _read_folder(self.folder)
        if codes is not None:
            self.codes = _checked_codes(codes)
        else:
            self.codes = shipped_codes() if size is None else learn_codes(self._train_patches(), size)
        self.output_size = len(self.codes)

    @classmethod
    def from_name(cls, name: str, split: str | None = None) -> "Digits | None":
        """Build "digits" or "digits-labelled", without data; None for another family's name."""
        return cls(conditional=name == "digits-labelled") if name in ("digits", "digits-labelled") else None

    def __repr__(self) -> str:
        data = "no data" if self.folder is None else f"{len(self.pictures)} pictures"
        return f"Digits({data}, {self.output_size} codes, conditional={self.conditional}, seed={self.seed})"

    # -- pictures ---------------------------------------------------------------------------------------------

    def tokens(self, pictures: Array) -> NDArray[np.int64]:
        """The nearest code of each patch.

        Args:
            pictures: `[..., 28, 28]`, bool, or of grey where 128 and more is black ink.

        Returns:
            Tokens, `[..., 49]`.
        """
        return self._nearest_code[patches(pictures)]

    def picture(self, y: Array) -> NDArray[np.bool_]:
        """What tokens `[..., 49]` show, bool `[..., 28, 28]`."""
        bits = (self.codes[np.asarray(y).astype(np.int64)][..., None] & _BITS) > 0  # [..., 49, 16]
        bits = bits.reshape(*bits.shape[:-2], ACROSS, ACROSS, PATCH, PATCH)
        return np.moveaxis(bits, -2, -3).reshape(*bits.shape[:-4], SIDE, SIDE)

    def distance(self, y: Array) -> NDArray[np.float64]:
        """Share of the pixels in which each drawing `[M, 49]` differs from the nearest training picture, `[M]`.

        0 is a copy; compare with what `examples("test")` gives: drawings far above it are no digits.
        """
        train = self._flat(self.examples("train")[1])
        drawn = self._flat(y)
        differ = drawn.sum(1)[:, None] + train.sum(1) - 2 * drawn @ train.T
        return differ.min(1).astype(np.float64) / SIDE**2

    def reconstruction_error(self, split: Split) -> float:
        """Share of the pixels, black or white, that the codebook gets wrong."""
        pictures, _ = self._pictures(split)
        return float((self.picture(self.tokens(pictures)) != (pictures >= 128)).mean())

    def _flat(self, y: Array) -> NDArray[np.float32]:
        return self.picture(y).reshape(-1, SIDE * SIDE).astype(np.float32)

    # -- reading and drawing ----------------------------------------------------------------------------------

    def encode(self, problem: Any = None) -> NDArray[np.int64]:
        """The blank problem (None or blank text), or with `conditional` that of a label, 3 or "3"; `[49]`.

        Raises:
            ValueError: a label where there is none, no label where there must be one.
        """
        own = np.shape(problem) == (self.length,) and len(np.unique(problem)) == 1  # tokens of a problem
        label = np.asarray(problem)[0] if own else problem
        text = "" if label is None else str(label).strip()
        if not self.conditional:
            if text and not (own and text == "0"):
                raise ValueError(f"{self.name} has one problem, the blank one; got {problem!r}")
            return np.zeros(self.length, np.int64)
        if not (text.isdecimal() and text.isascii() and len(text) == 1):
            raise ValueError(f"a problem of {self.name} must be a label from 0 to 9, got {problem!r}")
        return np.full(self.length, int(text))

    def decode(self, y: Array) -> str:
        """Draw one picture `[49]` in 14 lines of 28 characters."""
        upper, lower = self.picture(y)[0::2], self.picture(y)[1::2]
        lines = np.array([" ", "▀", "▄", "█"])[upper * 1 + lower * 2]
        return "\n".join("".join(line).rstrip() for line in lines)

    @property
    def board(self) -> Board:
        """Pixels, white or black."""
        return Board(("", ""), lambda y: self.picture(y).astype(np.int64), colours=("#ffffff", "#222222"))

    # -- truth ------------------------------------------------------------------------------------------------

    def verify(self, x: Array, y: Array) -> NoReturn:
        """Raise UnknownAnswers: what is a right digit is not known."""
        raise UnknownAnswers("what is a right digit cannot be verified: look at the drawings, and at distance(y)")

    def violations(self, x: Array, y: Array) -> NoReturn:
        """Raise UnknownAnswers, as `verify`."""
        self.verify(x, y)

    def solutions(self, x: Array) -> NoReturn:
        """Raise UnknownAnswers: the pictures of a file are not all digits there are."""
        raise UnknownAnswers("the digits that were written are not all there are")

    # -- data -------------------------------------------------------------------------------------------------

    def examples(self, split: Split) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Blank problems or labels (x `[M, 49]`) and pictures (y `[M, 49]`), equal pictures in one split.

        Raises:
            ValueError: an unknown split, or no folder was given.
        """
        pictures, labels = self._pictures(split)
        first = labels if self.conditional else np.zeros_like(labels)
        return np.repeat(first[:, None], self.length, 1), self.tokens(pictures)

    def _pictures(self, split: Split) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        if split not in ("train", "test"):
            raise ValueError(f'split must be "train" or "test", got {split!r}')
        if self.folder is None:
            raise ValueError("Digits needs the folder of MNIST's files to give examples")
        chosen = self._held_out == (split == "test")
        return self.pictures[chosen], self.labels[chosen]

    @cached_property
    def _held_out(self) -> NDArray[np.bool_]:
        """Which pictures are in the test split; those with the same black pixels go together."""
        ink = np.packbits(self.pictures.reshape(-1, SIDE * SIDE) >= 128, axis=1)
        different, group = np.unique(ink, axis=0, return_inverse=True)
        if len(different) < 2:
            raise ValueError(f"{self.folder} holds {len(different)} different pictures, too few to hold any out")
        order = np.random.default_rng(self.seed).permutation(len(different))
        return np.isin(group.reshape(-1), order[: max(1, round(HELD_OUT * len(order)))])

    def _train_patches(self) -> NDArray[np.int64]:
        return patches(self._pictures("train")[0])

    @cached_property
    def _nearest_code(self) -> NDArray[np.int64]:
        """The token of each of the 65,536 patches; the first of equally near codes."""
        return _differing(np.arange(1 << PATCH * PATCH), self.codes).argmin(1)


def patches(pictures: Array) -> NDArray[np.int64]:
    """Patches of pictures `[..., 28, 28]` as numbers of 16 bits, row by row, `[..., 49]`."""
    pictures = np.asarray(pictures)
    if pictures.shape[-2:] != (SIDE, SIDE):
        raise ValueError(f"pictures must be [..., {SIDE}, {SIDE}], got {list(pictures.shape)}")
    if np.issubdtype(pictures.dtype, np.floating):
        raise ValueError(f"pictures must be bool or hold grey from 0 to 255 as integers, got {pictures.dtype}")
    ink = pictures if pictures.dtype == bool else pictures >= 128
    cut = ink.reshape(*ink.shape[:-2], ACROSS, PATCH, ACROSS, PATCH)
    bits = np.moveaxis(cut, -2, -3).reshape(*ink.shape[:-2], ACROSS * ACROSS, PATCH * PATCH)
    return bits @ _BITS


def learn_codes(patches: NDArray[np.int64], size: int, rounds: int = 50) -> NDArray[np.int64]:
    """Learn a codebook by k-modes, starting from the most frequent patches; the same patches give the same codes.

    Args:
        patches: numbers of 16 bits, of any shape.
        size: V, how many codes, at least 2.
        rounds: at most so many.

    Returns:
        The codes in ascending order, `[V]`, all different.

    Raises:
        ValueError: fewer different patches than codes.
    """
    different, count = np.unique(patches, return_counts=True)
    if not 2 <= size <= len(different):
        raise ValueError(f"size must be from 2 to the {len(different)} different patches, got {size}")
    bits = (different[:, None] & _BITS) > 0
    codes = different[np.argsort(-count, kind="stable")[:size]]
    for _ in range(rounds):
        distance = _differing(different, codes)
        nearest = distance.argmin(1)
        weight = (nearest[:, None] == np.arange(size)) * count[:, None]  # [patches, V]
        majority = np.unique((2 * (weight.T @ bits) > weight.sum(0)[:, None]) @ _BITS)
        # Codes that have met leave room for the patches that cost most.
        cost = np.where(np.isin(different, majority), -1, count * distance.min(1))
        spare = different[np.argsort(-cost, kind="stable")[: size - len(majority)]]
        moved = np.sort(np.concatenate([majority, spare]))
        if np.array_equal(moved, codes):
            break
        codes = moved
    return np.sort(codes)


def shipped_codes() -> NDArray[np.int64]:
    """The codebook of the package, `[128]`."""
    text = resources.files("probgram.tasks").joinpath("digits_codes.json").read_text(encoding="utf-8")
    return np.array(json.loads(text)["codes"], dtype=np.int64)


def read_idx(path: str | Path) -> NDArray[np.uint8]:
    """Read a file of bytes in IDX format, packed by gzip or not: a magic number, the sizes, then the bytes.

    Raises:
        ValueError: no such file, or not of this format.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    dimensions = content[3] if content[:3] == b"\x00\x00\x08" and len(content) > 3 else 0
    sizes = np.frombuffer(content[4 : 4 + 4 * dimensions], ">u4").astype(int)
    values = np.frombuffer(content[4 + 4 * dimensions :], np.uint8)
    if not dimensions or len(sizes) != dimensions or len(values) != sizes.prod():
        raise ValueError(f"{path} is no whole IDX file of bytes")
    return values.reshape(sizes)


def _read_folder(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """All pictures `[M, 28, 28]` of a folder and their labels `[M]`."""
    names = sorted({file.name.removesuffix(".gz") for file in folder.glob("*-images-idx3-ubyte*")})
    names = [name for name in names if name.endswith("-images-idx3-ubyte")]
    if not names:
        raise ValueError(f"{folder} holds no *-images-idx3-ubyte file, packed (.gz) or not")
    pictures, labels = [], []
    for name in names:
        file, beside = (_packed_or_not(folder / n) for n in (name, name.replace("-images-idx3-", "-labels-idx1-")))
        pictures.append(read_idx(file))
        labels.append(read_idx(beside))
        if labels[-1].ndim != 1 or (labels[-1] > 9).any():
            raise ValueError(f"{beside} must hold a label from 0 to 9 for each picture")
        if pictures[-1].shape != (len(labels[-1]), SIDE, SIDE):
            raise ValueError(f"{file} must hold a {SIDE}x{SIDE} picture for each label of {beside.name}")
    return np.concatenate(pictures), np.concatenate(labels).astype(np.int64)


def _packed_or_not(path: Path) -> Path:
    """The file itself, or where there is none the one packed by gzip."""
    packed = path.with_name(f"{path.name}.gz")
    return packed if packed.exists() and not path.exists() else path


def _checked_codes(codes: Array) -> NDArray[np.int64]:
    codes = np.asarray(codes)
    if codes.ndim != 1 or len(codes) < 2 or not np.issubdtype(codes.dtype, np.integer):
        raise ValueError(f"codes must be at least two integers [V], got {codes.dtype} of shape {list(codes.shape)}")
    if codes.min() < 0 or codes.max() >= 1 << PATCH * PATCH or len(np.unique(codes)) < len(codes):
        raise ValueError("codes must be different numbers of 16 bits")
    return codes.astype(np.int64)


def _differing(patches: NDArray[np.int64], codes: NDArray[np.int64]) -> NDArray[np.float32]:
    """Pixels in which patches `[P]` and codes `[V]` differ, `[P, V]`."""
    a, b = (((part[:, None] & _BITS) > 0).astype(np.float32) for part in (patches, codes))
    return a.sum(1)[:, None] + b.sum(1) - 2 * a @ b.T
