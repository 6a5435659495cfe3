"""The statistics that judge draws in the benchmarks, `benchmarks.two_samples`: one law passes, another does not.

What passes does so with a probability of 0.99 a test where the samples are of one law; seeds are fixed.
"""

import numpy as np

from benchmarks.two_samples import energy_p, holm, judge_counts


def test_two_samples_of_one_law_are_not_told_apart():
    generator = np.random.default_rng(0)
    a, b = generator.standard_normal((2, 300, 6))
    assert energy_p(a, b) > 0.01
    assert energy_p(a, b * 0.6) == 1e-3  # the least that 999 permutations can say
    assert energy_p(a, b + 0.5) == 1e-3


def test_counts_are_judged_by_the_law_they_were_drawn_from():
    law = np.array([0.5, 0.3, 0.15, 0.05])
    drawn = np.random.default_rng(0).choice(4, size=10_000, p=law)
    right, wrong = judge_counts(drawn, law), judge_counts(drawn, law[::-1])
    assert right["p"] > 0.01 and right["z"] < 4
    assert (
        wrong["p"] < 1e-9 and abs(wrong["total_variation"] - 0.6) < 0.02
    )  # 5 sd: 0.004 of the two shares together


def test_holm_multiplies_the_smallest_by_how_many_there_are():
    assert holm(np.array([0.2, 0.01, 0.5])) == 0.03 and holm(np.array([0.6, 0.9])) == 1
