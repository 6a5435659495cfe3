"""Whether confidence means what it says, and what is gained by abstaining where it is low."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from probgram.plots import axes
from probgram.plots.palette import BLUE, INK, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class _Reliability(Protocol):
    """As `probgram.inference.calibration` measures it: a row a bin, NaN in empty ones."""

    @property
    def confidence(self) -> NDArray[Any]: ...
    @property
    def accuracy(self) -> NDArray[Any]: ...
    @property
    def count(self) -> NDArray[Any]: ...
    @property
    def error(self) -> float: ...
    @property
    def floor(self) -> float: ...


class _RiskCoverage(Protocol):
    """As `probgram.inference.confidence` measures it: a row a number of problems that are answered."""

    @property
    def coverage(self) -> NDArray[Any]: ...
    @property
    def risk(self) -> NDArray[Any]: ...
    @property
    def area(self) -> float: ...


def reliability(measured: _Reliability, axis: "Axes | None" = None) -> "Axes":
    """Draw accuracy against confidence, with the number of answers in each bin and the calibration error.

    On the diagonal confidence is right, below it too high. Bars are 95% intervals of a share of so many independent
    cases; a bin's count stands at its foot. In brackets the mean error of a calibrated forecaster, which is not 0.

    Args:
        measured: of `probgram.inference.calibration.reliability`.
        axis: drawn on, or a new one.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22, 1927.
    """
    axis = axes.one(axis, 4.6, 4.6)
    count = np.asarray(measured.count)
    filled = count > 0
    confidence, accuracy = np.asarray(measured.confidence)[filled], np.asarray(measured.accuracy)[filled]
    low, high = _interval(accuracy, count[filled])
    axis.plot([0, 1], [0, 1], color="0.5", linestyle="--", linewidth=1, label="as confident as right")
    floor = "" if np.isnan(measured.floor) else f" (calibrated: {measured.floor:.3f})"
    label = f"measured, calibration error {measured.error:.3f}{floor}"
    axis.errorbar(
        confidence, accuracy, np.maximum(0, [accuracy - low, high - accuracy]), fmt="o-", color=BLUE, ecolor=BLUE,
        elinewidth=1, capsize=3, label=label, clip_on=False, zorder=3,
    )  # fmt: skip
    for place, number in zip(confidence, count[filled], strict=True):
        axis.annotate(f"{number:,}", (place, -0.055), ha="center", va="center", size=7, color=INK, rotation=45)
    axis.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    axis.set(xlim=(-0.02, 1.02), ylim=(-0.11, 1.02), aspect="equal")
    axis.set_xlabel("confidence")
    axis.set_ylabel("share that is right")
    axis.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return axis


def _interval(share: NDArray[Any], count: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Wilson's 95% interval of a binomial share."""
    z = 1.96
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return middle - half, middle + half


def risk_coverage(curves: _RiskCoverage | Mapping[str, _RiskCoverage], axis: "Axes | None" = None) -> "Axes":
    """Draw the share of wrong answers against the share of problems answered, the most confident first.

    Lower is better. The dotted line is what a confidence that knows nothing has: the risk of answering everything.

    Args:
        curves: one of `probgram.inference.confidence.risk_coverage`, or several by name.
        axis: drawn on, or a new one.

    Raises:
        ValueError: no curve.
    """
    named = curves if isinstance(curves, Mapping) else {"risk": curves}
    if not named:
        raise ValueError("curves must hold at least one curve")
    axis = axes.one(axis, 5.5, 4)
    for k, (name, curve) in enumerate(named.items()):
        coverage, risk = np.asarray(curve.coverage), np.asarray(curve.risk)
        look = style(k)
        axis.plot(coverage, risk, color=look.colour, linestyle=look.dashes, label=f"{name}, area {curve.area:.3f}")
        axis.plot(coverage[-1:], risk[-1:], look.marker, color=look.colour, clip_on=False, zorder=3)
    for everything in sorted({round(float(np.asarray(curve.risk)[-1]), 9) for curve in named.values()}):
        axis.axhline(everything, color="0.5", linestyle=":", linewidth=1, zorder=0)
    axis.set_xlim(0, 1)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("share of problems answered")
    axis.set_ylabel("share of these that is wrong")
    axis.legend(frameon=False, fontsize=8)
    return axis
