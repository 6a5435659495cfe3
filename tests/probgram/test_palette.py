"""Colours that are told apart: by colour-blind readers, in a grey print, and as the ground of a letter."""

import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from probgram.plots.palette import COLOURS, GREY, MARKERS, ink_on, luminance, style

# Of linear RGB, where a kind of cone is missing: Machado, Oliveira and Fernandes, IEEE TVCG 15, 2009, severity 1.0.
SEEN_WITH = {
    "all cones": np.eye(3),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
LEAST = 15.0  # CIELAB distance of two colours that may stand side by side; 2.3 is just noticeable
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def lab(colour, matrix) -> np.ndarray:
    """CIELAB coordinates of a colour as it is seen, under D65."""
    values = np.asarray(to_rgb(colour))
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    ratio = TO_XYZ @ np.clip(matrix @ linear, 0, 1) / TO_XYZ.sum(1)
    f = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def closest(colours, matrix) -> float:
    seen = [lab(colour, matrix) for colour in colours]
    return min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(seen, 2))


@pytest.mark.parametrize("sight", SEEN_WITH)
def test_all_colours_and_the_grey_of_wrong_answers_are_told_apart(sight):
    assert closest([*COLOURS, GREY], SEEN_WITH[sight]) > LEAST


def test_colours_that_are_confused_are_found_out():
    matplotlibs_own = ["#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2"]
    assert closest(matplotlibs_own, SEEN_WITH["all cones"]) > LEAST
    assert closest(matplotlibs_own, SEEN_WITH["deuteranopia"]) < LEAST


def test_neighbours_and_the_first_three_colours_differ_in_a_grey_print():
    lightness = [lab(colour, np.eye(3))[0] for colour in COLOURS]
    neighbours = list(zip(lightness, lightness[1:] + lightness[:1], strict=True))
    pairs = neighbours + list(itertools.combinations(lightness[:3], 2))
    assert min(abs(a - b) for a, b in pairs) > 10  # of 100


def test_letters_on_colours_have_the_contrast_of_body_text():
    for colour in [*COLOURS, GREY, "black", "white"]:
        levels = sorted([float(luminance(colour)), float(luminance(ink_on(colour)))])
        assert (levels[1] + 0.05) / (levels[0] + 0.05) >= 4.5  # WCAG 2.2, criterion 1.4.3


def test_luminance_is_that_of_the_definition():
    assert [round(float(luminance(c)), 4) for c in ("black", "white", "red", "lime", "blue")] == [
        0, 1, 0.2126, 0.7152, 0.0722,
    ]  # fmt: skip
    assert luminance(np.full((2, 3, 4), 0.5)).shape == (2, 3)


def test_no_two_of_56_things_have_both_colour_and_marker():
    assert len({(style(k).colour, style(k).marker) for k in range(56)}) == len(COLOURS) * len(MARKERS) == 56
