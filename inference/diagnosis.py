"""A diagnosis: findings, each with its figure, a sentence and advice, and how they are printed.

A finding is graded problem by problem. Of several problems it takes the worst grade that at least a tenth of them
have; a bad grade that fewer have is one to look at.
"""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from probgram.state import widest

Status = Literal["fine", "look", "trouble"]
STATUSES: tuple[Status, ...] = ("fine", "look", "trouble")
MANY = 0.1  # share of the problems that makes a grade the run's: below it, a few hard problems


class Finding(NamedTuple):
    """One thing that was looked at."""

    name: str
    status: Status
    figure: str
    sentence: str
    advice: str = ""  # what to try; "" where it is fine


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found; printed, it says so in words.

    Attributes:
        findings: in the order in which a person would ask.
        left_out: what could not be looked at, and why.
        about: the run, in a line.
    """

    findings: tuple[Finding, ...]
    left_out: tuple[str, ...] = ()
    about: str = ""

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __getitem__(self, name: str) -> Finding:
        """The finding of that name; raises KeyError where there is none."""
        for finding in self.findings:
            if finding.name == name:
                return finding
        raise KeyError(f"no finding is called {name!r}: there are {', '.join(f.name for f in self.findings)}")

    @property
    def status(self) -> Status:
        """The worst of all findings."""
        return max((finding.status for finding in self.findings), key=STATUSES.index, default="fine")

    def __str__(self) -> str:
        """The findings in words, the worst first; then what was left out."""
        count = {status: sum(finding.status == status for finding in self.findings) for status in STATUSES}
        words = [f"{count['trouble']} in trouble"] if count["trouble"] else []
        words += [f"{count['look']} to look at"] if count["look"] else []
        lines = [f"{self.about}: {', '.join([*words, str(count['fine']) + ' fine'])}"]
        for finding in sorted(self.findings, key=lambda finding: -STATUSES.index(finding.status)):
            lines += ["", f"{finding.status:8} {finding.name:12} {finding.figure}", *_wrapped(finding.sentence)]
            lines += _wrapped(f"Try {finding.advice}.") if finding.advice else []
        if self.left_out:
            lines += ["", "not looked at"]
            lines += [line for reason in self.left_out for line in _wrapped(reason + ".")]
        return "\n".join(lines)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 100, initial_indent=" " * 9, subsequent_indent=" " * 9)


def finding(
    name: str,
    grades: Tensor,
    figure: str,
    clauses: Sequence[str],
    advice: str | tuple[str, str] = "",
    chance: bool = False,
) -> Finding:
    """Make a finding of the grades of all problems.

    Args:
        name: what was looked at.
        grades: of each problem, 0 fine, 1 look, 2 trouble, `[B]`.
        figure: as it is printed.
        clauses: what is the case in a problem of each grade.
        advice: what to try, one for both bad grades or one each.
        chance: whether a bad grade may come by chance, so that few bad problems of several mean nothing.
    """
    several = len(grades) > 1
    count = [int((grades == grade).sum()) for grade in range(3)]
    enough = max(1.0, MANY * len(grades))
    grade = 2 if count[2] >= enough else 1 if count[1] + count[2] >= enough else 0
    if several and not grade and not chance and count[0] < len(grades):
        grade = 1
    if not several:
        sentence = clauses[grade]
    else:
        named = [k for k in (2, 1) if count[k]] if grade else [0]
        sentence = ", ".join(f"in {count[k]} of {len(grades)} problems {clauses[k]}" for k in named)
    sentence = sentence[0].upper() + sentence[1:] + "."
    said = advice if isinstance(advice, str) else advice[grade - 1]
    return Finding(name, STATUSES[grade], figure, sentence, said if grade else "")


def graded(values: Tensor, look: float, trouble: float) -> Tensor:
    """0 where at most `look`, 1 above it, 2 above `trouble`."""
    slack = 1e-9  # a figure that is the threshold but for rounding is not above it
    return (values > look + slack).long() + (values > trouble + slack).long()


def spread(values: Tensor, signed: bool = False) -> str:
    """The figure of one problem, or the median of several with their range."""
    values, kind = values.to(widest(values.device)), "+.2f" if signed else ".2f"
    if len(values) == 1:
        return f"{float(values[0]):{kind}}"
    return f"{float(values.median()):{kind}} ({float(values.min()):{kind}} to {float(values.max()):{kind}})"


def whole(values: Tensor) -> str:
    """The same of whole numbers."""
    low, high = int(values.min()), int(values.max())
    return str(low) if low == high else f"{int(values.median())} ({low} to {high})"


def plural(count: int, word: str) -> str:
    """The number with its word."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"
