"""Paired differences: scipy as the reference, and simulations of what is claimed."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from keras_scaled_l2.experiments.results import paired
from keras_scaled_l2.experiments.results.paired import (
    compare_arms,
    holm,
    least_seeds,
    sign_flip_p,
)
from keras_scaled_l2.experiments.results.spread import mean_std

ARMS = ("none", "l2", "scaled", "sample", "dropout", "sample+dropout")
PAIRS = 15


def by_seed(values):
    """Rows of numbers as compare_arms takes them: arm -> seed -> value."""
    return {
        arm: dict(enumerate(map(float, row)))
        for arm, row in zip(ARMS, values, strict=False)
    }


def reference_p(differences):
    found = stats.permutation_test(
        (np.asarray(differences),),
        np.mean,
        permutation_type="samples",
        n_resamples=np.inf,
        vectorized=False,
    )
    return found.pvalue


@pytest.mark.parametrize("n", [2, 3, 7, 11])
def test_p_is_scipys_exact_permutation_test(n):
    d = np.random.default_rng(n).normal(0.5, 1.0, n)
    assert sign_flip_p(d) == pytest.approx(reference_p(d), rel=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=2, max_size=8))
def test_p_counts_ties_and_zero_differences_as_scipy_does(steps):
    # Accuracies of 1000 examples: sums that are equal on paper differ by rounding.
    a, b = [0.9 + s / 1000 for s in steps], [0.9] * len(steps)
    d = [x - y for x, y in zip(a, b, strict=True)]
    assert sign_flip_p(d, resolution=0.001) == pytest.approx(reference_p(steps))
    assert sign_flip_p(d) == pytest.approx(reference_p(steps))


def test_p_hears_single_precision_ties_with_the_resolution():
    steps = [1, 2, 3, -1, -2, 1]
    d = [float(np.float32(0.9 + s / 1000)) - float(np.float32(0.9)) for s in steps]
    assert sign_flip_p(d, resolution=0.001) == pytest.approx(reference_p(steps))


def test_p_does_not_count_sums_that_are_steps_below():
    # In eighths nothing is rounded: both sums but those of equal signs are 0.
    assert sign_flip_p([0.125, 0.125], resolution=0.125) == 0.5


def test_p_counts_sums_that_differ_by_rounding_alone():
    # Added up in two orders, ten tenths are 1.0 and 0.9999999999999999.
    assert sign_flip_p([0.1] * 10) == 2 / 2**10


def test_p_without_any_difference_is_one():
    assert sign_flip_p([0.0] * 5) == 1.0
    assert sign_flip_p([0.7]) == 1.0
    assert sign_flip_p([0.0] * 20) == 1.0


def test_p_of_sixteen_seeds_is_exact_and_of_seventeen_drawn():
    assert sign_flip_p([1.0 + i for i in range(16)]) == 2 / 2**16
    d = np.random.default_rng(4).normal(0.5, 1.0, 17)
    exact = float(np.mean(np.abs(all_sums(d)) >= abs(d.sum()) - 1e-9))
    error = math.sqrt(exact * (1 - exact) / paired.RANDOM_FLIPS)
    assert 0.02 < exact < 0.98
    assert sign_flip_p(d) == pytest.approx(exact, abs=4 * error)
    # The same draws in every process.
    draws = np.random.default_rng(0).integers(0, 2, (100_000, 17), dtype=np.int8)
    reached = np.abs((2 * draws - 1) @ d) >= abs(d.sum()) - 1e-9
    assert sign_flip_p(d) == (reached.sum() + 1) / 100_001 != exact


def all_sums(d):
    """Every one of the 2**n sums, by the bits of a counter."""
    signs = np.arange(2 ** len(d))[:, None] >> np.arange(len(d)) & 1
    return (2 * signs - 1) @ d


def test_p_that_is_drawn_is_never_zero():
    # Only 2 of 2**60 flips reach it: no draw does.
    assert sign_flip_p([1.0] * 60) == 1 / 100_001


def test_holm_is_the_textbook_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_rejects_as_its_closed_test_does(p_values):
    # A hypothesis falls if every set with it falls to Bonferroni.
    indices = range(len(p_values))
    sets = [
        set(chosen)
        for size in range(1, len(p_values) + 1)
        for chosen in itertools.combinations(indices, size)
    ]
    for i, corrected in enumerate(holm(p_values)):
        closed = max(
            min(1.0, len(s) * min(p_values[j] for j in s)) for s in sets if i in s
        )
        assert corrected == pytest.approx(closed)


def test_mean_has_students_interval():
    values = [0.9, 0.8, 0.95, 0.7]
    found = mean_std(values)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high))


@pytest.mark.parametrize("other", [math.nan, math.inf])
def test_mean_with_a_value_that_diverged_is_nan_and_so_is_its_interval(other):
    found = dataclasses.astuple(mean_std([1.0, other]))
    assert found == pytest.approx([math.nan] * 4, nan_ok=True)
    alone = mean_std([other])
    assert math.isnan(alone.mean)
    assert (alone.std, alone.low, alone.high) == (None, None, None)


def test_seeds_that_agree_by_chance_prove_nothing():
    # Both seeds differ by exactly one example of 1000.
    values = by_seed([[0.900, 0.901], [0.901, 0.902]])
    (found,) = compare_arms(values, resolution=0.001).differences
    assert (found.std, found.low < 0 < found.high) == (0.001, True)
    (one,) = compare_arms(by_seed([[0.0], [1.0]])).differences
    assert (one.mean, one.std, one.low, one.high_corrected) == (1.0, None, None, None)


@pytest.mark.parametrize(("comparisons", "seeds"), [(1, 6), (5, 8), (15, 10)])
def test_least_seeds_is_where_the_test_can_reject(comparisons, seeds):
    assert least_seeds(comparisons) == seeds
    assert comparisons * sign_flip_p([1.0] * seeds) <= 0.05
    assert comparisons * sign_flip_p([1.0] * (seeds - 1)) > 0.05


def test_comparison_corrects_for_all_pairs_of_arms():
    values = np.random.default_rng(1).normal(size=(6, 7)) + np.arange(6)[:, None] / 3
    found = compare_arms(by_seed(values))
    best = int(values.mean(1).argmin())
    assert found.best == ARMS[best]
    to_none = found.versus("none")
    raw = [reference_p(values[i] - values[0]) for i in range(1, 6)]
    assert [d.arm for d in to_none] == list(ARMS[1:])
    assert [d.p for d in to_none] == pytest.approx(raw)
    pairs = list(itertools.combinations(range(6), 2))
    corrected = holm([reference_p(values[i] - values[j]) for i, j in pairs])
    for d in found.differences:
        pair = tuple(sorted((ARMS.index(d.arm), ARMS.index(d.versus))))
        assert d.p_corrected == pytest.approx(corrected[pairs.index(pair)])
    assert {d.versus for d in found.versus(found.best)} == {ARMS[best]}
    assert len(found.differences) == PAIRS
    for d in (*found.differences, *found.versus(ARMS[-1])):
        test = stats.ttest_rel(values[ARMS.index(d.arm)], values[ARMS.index(d.versus)])
        assert (d.low, d.high) == pytest.approx(test.confidence_interval(0.95))
        assert (d.low_corrected, d.high_corrected) == pytest.approx(
            test.confidence_interval(1 - 0.05 / PAIRS)
        )
        assert d.seeds == 7


def test_comparison_looks_for_the_highest_if_higher_is_better():
    values = by_seed([[0.9, 0.91], [0.95, 0.96]])
    assert compare_arms(values, higher_is_better=True).best == "l2"
    assert compare_arms(values).best == "none"


def test_comparison_leaves_out_arms_that_diverged_and_names_them():
    found = compare_arms(
        by_seed([[1.0, 2.0], [math.nan, 1.0], [0.5, 1.0], [1.0, math.inf]])
    )
    assert found.diverged == ("l2", "sample")
    assert [(d.arm, d.versus) for d in found.differences] == [("scaled", "none")]


def test_comparison_takes_the_seeds_that_all_arms_share():
    found = compare_arms({"none": {0: 1.0, 2: 3.0, 1: 9.0}, "l2": {2: 2.0, 0: 0.5}})
    assert found.seeds == 2
    assert found.means == {"none": 2.0, "l2": 1.25}
    assert found.versus("none")[0].mean == -0.75


def test_comparison_of_arms_that_are_level_has_no_winner():
    values = by_seed([[0.9, 0.8], [0.8, 0.9], [0.1, 0.2]])
    found = compare_arms(values, higher_is_better=True, resolution=0.001)
    assert found.best == "none"
    assert found.level == ("none", "l2")


def test_comparison_of_arms_one_example_apart_has_a_winner():
    # One of 1000 examples in one of four seeds: 0.00025 in the mean.
    values = by_seed([[0.9, 0.8, 0.7, 0.6], [0.9, 0.8, 0.7, 0.601]])
    found = compare_arms(values, higher_is_better=True, resolution=0.001)
    assert found.level == ("l2",)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"none": {0: 1.0}},
        {"none": {0: 1.0}, "l2": {1: 1.0}},
        {"none": {0: math.nan}, "l2": {0: 1.0}},
    ],
)
def test_comparison_of_nothing_has_no_best(values):
    found = compare_arms(values)
    assert found.best is None
    assert found.differences == ()


def test_significant_takes_both_the_p_and_the_interval():
    # Over 3 seeds the interval leaves out 0, but no sign-flip test can reject.
    few = compare_arms(by_seed([[1.0, 1.1, 1.0], [0.1, 0.2, 0.1]])).versus("none")[0]
    assert few.high_corrected < 0
    assert not few.is_significant
    # One seed makes nearly all of the difference: the p hears signs only.
    wide = compare_arms(by_seed([[0.0] * 8, [0.1] * 7 + [20.0]])).versus("none")[0]
    assert wide.p_corrected <= 0.05
    assert wide.low_corrected < 0
    assert not wide.is_significant
    many = compare_arms(by_seed([[1.0, 1.1] * 4, [0.1, 0.2] * 4])).versus("none")[0]
    assert many.is_significant


DRAWS = 1500
AT_MOST = 0.05 + 3 * math.sqrt(0.05 * 0.95 / DRAWS)
NOISE = {"normal": "normal", "skewed": "standard_exponential"}


@pytest.mark.parametrize("noise", NOISE)
def test_no_difference_is_rejected_in_at_most_a_twentieth_of_the_cases(noise):
    random = np.random.default_rng(0)
    rejected = {"any": 0, "said": 0}
    for _ in range(DRAWS):
        luck = random.normal(size=10)
        found = compare_arms(
            by_seed(getattr(random, NOISE[noise])(size=(6, 10)) + luck)
        )
        rejected["any"] += any(d.p_corrected <= 0.05 for d in found.differences)
        rejected["said"] += any(d.is_significant for d in found.differences)
    assert all(count / DRAWS <= AT_MOST for count in rejected.values()), rejected
    # A test that never rejects would pass the above.
    assert rejected["any"] / DRAWS > 0.015


@pytest.mark.parametrize("n", [4, 20])
def test_drawn_and_exact_p_hold_their_level(n):
    random = np.random.default_rng(1)
    draws = 1000 if n <= paired.EXACT_SEEDS else 300
    level = 0.25
    rejected = sum(sign_flip_p(random.normal(size=n)) <= level for _ in range(draws))
    error = math.sqrt(level * (1 - level) / draws)
    assert rejected / draws == pytest.approx(level, abs=3.5 * error)


def test_intervals_cover_a_difference_that_is_known():
    random = np.random.default_rng(2)
    true = np.array([0.0, -0.5, 1.0, 0.3, 0.0, 2.0])
    draws = 1000
    alone, together = 0, {"none": 0, "best": 0}
    for _ in range(draws):
        values = true[:, None] + random.normal(size=(6, 5)) + random.normal(size=5)
        found = compare_arms(by_seed(values))
        for family, versus in (("none", "none"), ("best", found.best)):
            held = True
            for d in found.versus(versus):
                known = true[ARMS.index(d.arm)] - true[ARMS.index(d.versus)]
                held &= d.low_corrected <= known <= d.high_corrected
                # The best arm was picked: only to none is one alone to be trusted.
                alone += family == "none" and d.low <= known <= d.high
            together[family] += held
    error = math.sqrt(0.05 * 0.95 / draws)
    assert alone / (5 * draws) == pytest.approx(0.95, abs=3 * error)
    assert all(count / draws >= 0.95 - 3 * error for count in together.values())
