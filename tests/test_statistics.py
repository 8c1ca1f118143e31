"""Intervals and tests against known answers and laws."""

import math

import numpy as np
import pytest

from fedkd.statistics import (
    bootstrap,
    fewest_to_tell,
    holm,
    interval,
    paired,
    smallest_told,
)


def test_the_interval_of_a_textbook_sample():
    # Mean 3, standard deviation sqrt(2.5), t of 4 degrees of freedom at 97.5 %: 2.776.
    found = interval([1, 2, 3, 4, 5])
    assert (found.mean, found.n) == (3, 5)
    assert found.high - found.mean == pytest.approx(2.7764451 * math.sqrt(2.5 / 5))
    assert found.mean - found.low == pytest.approx(found.high - found.mean)


def test_one_value_has_no_interval_and_none_has_no_mean():
    for of in (interval, bootstrap):
        one, none = of([4.0]), of([])
        assert (one.mean, one.n, none.n) == (4.0, 1, 0)
        assert all(map(math.isnan, (one.low, one.high, none.mean, none.low, none.high)))


def test_the_interval_holds_the_mean_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(size=(2000, 5))
    held = np.mean([found.low <= 0 <= found.high for found in map(interval, draws)])
    assert held == pytest.approx(0.95, abs=0.015)


def test_a_bootstrap_interval_is_the_same_each_time_and_in_any_order():
    values = np.random.default_rng(1).exponential(size=30)
    found = bootstrap(values)
    assert found == bootstrap(values) == bootstrap(values[::-1])
    assert found.low < found.mean < found.high
    # The sample is skew to the right, and the correction knows.
    assert found.high - found.mean > found.mean - found.low


def test_the_bootstrap_of_equal_values_is_their_mean():
    found = bootstrap([2.0, 2.0, 2.0])
    assert (found.mean, found.low, found.high) == (2, 2, 2)


def test_a_wide_bootstrap_of_normal_values_is_near_students():
    values = np.random.default_rng(2).normal(size=200)
    student, resampled = interval(values), bootstrap(values)
    assert resampled.low == pytest.approx(student.low, abs=0.02)
    assert resampled.high == pytest.approx(student.high, abs=0.02)


@pytest.mark.parametrize("test", ["t", "wilcoxon"])
def test_identical_values_are_no_evidence(test):
    found = paired([1, 2, 3], [1, 2, 3], test)
    assert (found.p, found.difference.mean, found.n) == (1.0, 0.0, 3)


def test_pairing_finds_what_the_spread_of_seeds_hides():
    seeds = np.array([0.0, 10.0, 20.0, 30.0, 40.0])
    better = seeds + np.array([1.0, 1.1, 0.9, 1.05, 0.95])
    found = paired(better, seeds)
    assert found.p < 0.001
    assert found.difference.low > 0.8


def test_five_pairs_have_at_best_one_sixteenth_by_signed_ranks():
    assert paired([1, 2, 3, 4, 5], [0] * 5, "wilcoxon").p == pytest.approx(1 / 16)
    assert paired([1, 2, 3, 4, 5], [0] * 5, "wilcoxon", "greater").p == pytest.approx(1 / 32)


def test_sides_of_a_test_are_complementary():
    a, b = [1.0, 2.0, 4.0, 3.0], [0.5, 2.5, 3.0, 2.0]
    greater, less = paired(a, b, alternative="greater"), paired(a, b, alternative="less")
    assert greater.p + less.p == pytest.approx(1)
    assert paired(a, b).p == pytest.approx(2 * min(greater.p, less.p))


def test_pairs_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="2 and 3"):
        paired([1, 2], [1, 2, 3])


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_keeps_the_order_and_never_lowers_a_p_value():
    p = list(np.random.default_rng(3).uniform(size=20))
    adjusted = holm(p)
    assert all(after >= before for before, after in zip(p, adjusted))
    assert sorted(adjusted) == [adjusted[index] for index in np.argsort(p)]


def test_a_mean_difference_just_above_the_smallest_told_is_told_and_one_below_is_not():
    spread = np.array([-1.0, 0.2, 0.3, 0.5])  # mean 0
    least = smallest_told(spread, [0] * 4)
    assert (
        paired(spread + 1.01 * least, [0] * 4).p < 0.05 < paired(spread + 0.99 * least, [0] * 4).p
    )
    assert np.isnan(smallest_told([1], [0]))


@pytest.mark.parametrize("tests", [1, 2, 5, 20])
def test_fewer_pairs_than_needed_can_tell_nothing_by_signed_ranks(tests):
    needed = fewest_to_tell(tests, "wilcoxon")
    for pairs, told in ((needed, True), (needed - 1, False)):
        p = paired(np.arange(1.0, pairs + 1), np.zeros(pairs), "wilcoxon").p
        assert (holm([p] + [1.0] * (tests - 1))[0] < 0.05) == told
    assert fewest_to_tell(tests) == 2
