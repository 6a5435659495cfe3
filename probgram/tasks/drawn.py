"""What tasks whose problems are drawn have in common: different draws, whole kinds held out, names that rebuild."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Problems = NDArray[np.int64]
HELD_OUT = 0.15  # share of the problems that are test ones where there are fewer than usual
PATIENCE = 100  # batches of draws in vain after which no more different problems are expected
NUMBER = r"\d*\.?\d+(?:e-\d+)?"  # in a pattern: what `written` makes of a number from 0


def drawn_apart(
    draw: Callable[[np.random.Generator, int], Problems],
    kind: Callable[[Problems], NDArray[Any]],
    train: int,
    test: int,
    seed: int | Sequence[int],
    name: str,
    fewer: bool = False,
) -> tuple[Problems, Problems]:
    """Draw training and test problems, all different, no kind on both sides.

    Args:
        draw: `(rng, rows) -> [M, L]`, at most so many problems.
        kind: a number for each problem, `[M, L] -> [M]`; problems of one number are held out together.
        train: how many training problems.
        test: how many test problems.
        seed: of the draws, and of which kinds are held out; several integers are one seed.
        name: of the task, for messages.
        fewer: where so many different problems do not turn up, all that do, of which 15% are held out, and as many
            more as the last kind held out has.

    Returns:
        `[train, L]` and `[test, L]`; with `fewer` other numbers where so many did not turn up.

    Raises:
        ValueError: so many different problems did not turn up; with `fewer`, none are left to train on.
    """
    rng, count = np.random.default_rng(seed), train + test
    pool = draw(rng, count)
    while True:
        pool = _extended(pool, draw, rng, count)
        few = len(pool) < count
        if few and not fewer:
            raise ValueError(
                f"train and test must be at most as many problems as {name} has, of which {len(pool)} turned up, "
                f"got {count} together"
            )
        if few:
            test = min(test, max(1, round(HELD_OUT * len(pool))))
        _, kinds, size = np.unique(kind(pool), return_inverse=True, return_counts=True)
        order = np.random.default_rng([seed, 1]).permutation(len(size))
        held_out = np.isin(kinds, order[: np.searchsorted(size[order].cumsum(), test) + 1])
        if few and held_out.all():
            raise ValueError(f"of {len(pool)} problems of {name} none are left to train on when some are held out")
        missing = train - int((~held_out).sum())
        if few:
            return pool[~held_out][:train], pool[held_out]
        if missing <= 0:
            return pool[~held_out][:train], pool[held_out][:test]
        count = len(pool) + missing  # the last kind held out had more problems than were needed


def _extended(
    pool: Problems,
    draw: Callable[[np.random.Generator, int], Problems],
    rng: np.random.Generator,
    count: int,
) -> Problems:
    """The different rows of `pool` as they came, and as many more as make them `count`, or as turn up."""
    rounds_in_vain, found = 0, 0
    while rounds_in_vain < PATIENCE:
        pool = pool[np.sort(np.unique(pool, axis=0, return_index=True)[1])]
        missing = count - len(pool)
        if missing <= 0:
            return pool
        rounds_in_vain = 0 if len(pool) > found else rounds_in_vain + 1
        found = len(pool)
        rows = count // 8 + 8 if rounds_in_vain else max(2 * missing, count // 8 + 8)
        pool = np.concatenate([pool, draw(rng, rows)])
    return pool[np.sort(np.unique(pool, axis=0, return_index=True)[1])]


def named_arguments(pattern: str, name: str) -> dict[str, Any] | None:
    """Read a task's arguments out of its name.

    Args:
        pattern: a regular expression whose named groups are arguments.
        name: of a task.

    Returns:
        The arguments that the name gives, numbers as numbers; None where the name does not match.
    """
    found = re.fullmatch(pattern, name)
    if found is None:
        return None
    return {key: _value(text) for key, text in found.groupdict().items() if text is not None}


def written(number: float) -> str:
    """A number as a name has it: all its digits, so that the name gives the same task back."""
    return repr(float(number)).removesuffix(".0")


def _value(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def check_whole(lowest: int = 1, **sizes: Any) -> None:
    """Raise ValueError where a size is no whole number of at least `lowest`."""
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise ValueError(f"{name} must be an integer, got {value!r}")
        if value < lowest:
            raise ValueError(f"{name} must be at least {lowest}, got {value}")


def check_between(lowest: float, highest: float, limit: str = "", **values: Any) -> None:
    """Raise ValueError where an argument is no number between two others; `limit` says what the highest is."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
            raise ValueError(f"{name} must be a number, got {value!r}")
        if not lowest < value < highest:
            raise ValueError(f"{name} must be between {lowest} and {limit}{highest}, got {value}")


def check_word(name: str, value: Any, *words: str) -> None:
    """Raise ValueError where an argument is none of the words it may be."""
    if value not in words:
        known = " or ".join(f'"{word}"' for word in words)
        raise ValueError(f"{name} must be {known}, got {value!r}")
