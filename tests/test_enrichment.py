"""Log tails, false discovery rate and input checks shared by the annotation levels."""

import numpy as np
import pandas as pd
import pytest
from scipy import special, stats

from helpers.enrichment import (
    EmptyFeatureWarning,
    benjamini_hochberg,
    binomial_log_tail,
    check_membership,
    check_regions,
    hypergeometric_log_tail,
    ranges,
)


def test_hypergeometric_log_tail_equals_scipy_in_small_tables():
    rng = np.random.default_rng(0)
    population = rng.integers(1, 120, 2000)
    marked, drawn = rng.integers(0, population + 1), rng.integers(0, population + 1)
    k = rng.integers(0, population + 1)
    expected = stats.hypergeom.logsf(k - 1, population, marked, drawn)
    tail = hypergeometric_log_tail(k, population, marked, drawn)
    np.testing.assert_allclose(tail, expected, rtol=1e-10, atol=1e-11)


def test_hypergeometric_log_tail_sums_its_terms_far_out():
    k, population, marked, drawn = 400, 100_000, 2_000, 1_500
    terms = stats.hypergeom.logpmf(np.arange(k, drawn + 1), population, marked, drawn)
    expected = special.logsumexp(terms)
    assert expected < -700  # exp underflows
    tail = hypergeometric_log_tail(k, population, marked, drawn)
    np.testing.assert_allclose(tail, expected, rtol=1e-11)


def test_hypergeometric_log_tail_limits_are_exact():
    # Nothing to find, everything drawn, more than can be.
    tail = hypergeometric_log_tail([0, 5, 4, 1], 10, [3, 5, 3, 0], [4, 10, 4, 4])
    np.testing.assert_array_equal(tail, [0, 0, -np.inf, -np.inf])
    with pytest.raises(ValueError, match="between 0 and the population"):
        hypergeometric_log_tail(1, 10, 11, 3)


def test_hypergeometric_log_tail_of_equal_cells_with_wide_spans_is_right():
    # Three wide columns: the key of a cell must not overflow.
    population = np.array([3 * 10**9, 3 * 10**9, 10, 3 * 10**9])
    marked = np.array([10**6, 2 * 10**9, 4, 10**6])
    drawn = np.array([2 * 10**6, 10**6, 3, 2 * 10**6])
    k = np.array([720, 667_500, 2, 720])
    expected = stats.hypergeom.logsf(k - 1, population, marked, drawn)
    tail = hypergeometric_log_tail(k, population, marked, drawn)
    np.testing.assert_allclose(tail, expected, rtol=1e-4)
    assert tail[0] == tail[3]


def test_binomial_log_tail_equals_scipy_and_goes_beyond_underflow():
    rng = np.random.default_rng(1)
    n = rng.integers(1, 5000, 500)
    rate = rng.random(500)
    k = rng.binomial(n, np.minimum(1, rate * 1.1))
    np.testing.assert_allclose(
        binomial_log_tail(k, n, rate), stats.binom.logsf(k - 1, n, rate), atol=1e-10
    )
    terms = stats.binom.logpmf(np.arange(3000, 20_001), 20_000, 0.02)
    np.testing.assert_allclose(
        binomial_log_tail(3000, 20_000, 0.02), special.logsumexp(terms), rtol=1e-11
    )
    limits = binomial_log_tail([0, 3, 1, 2], [2, 2, 2, 2], [0.1, 0.1, 0.0, 1.0])
    np.testing.assert_array_equal(limits, [0, -np.inf, -np.inf, 0])


def test_benjamini_hochberg_equals_scipy_and_keeps_missing_values():
    p = np.random.default_rng(2).random(300) ** 3
    p[10:20] = p[30]  # ties
    q = benjamini_hochberg(np.log(p))
    np.testing.assert_allclose(q, stats.false_discovery_control(p), rtol=1e-12)
    with_missing = benjamini_hochberg(np.log(np.insert(p, 5, np.nan)))
    assert np.isnan(with_missing[5])
    np.testing.assert_allclose(np.delete(with_missing, 5), q)


def test_benjamini_hochberg_n_tests_adds_p_values_of_one():
    p = np.array([1e-5, 0.01, 0.2])
    expected = stats.false_discovery_control(np.append(p, np.ones(97)))[:3]
    np.testing.assert_allclose(benjamini_hochberg(np.log(p), n_tests=100), expected)


def test_ranges_concatenates():
    np.testing.assert_array_equal(
        ranges(np.array([5, 0, 7]), np.array([2, 0, 1])), [5, 6, 7]
    )


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"chrom": ["chr1"], "start": [5]}, "missing end"),
        ({"chrom": ["chr1"], "start": [5], "end": [5]}, "row 0 is chr1:5-5"),
        ({"chrom": ["chr1"], "start": [-1], "end": [5]}, "0 <= start < end"),
        ({"chrom": ["chr1"], "start": [1.5], "end": [5]}, "must be integers"),
        ({"chrom": [], "start": [], "end": []}, "must not be empty"),
    ],
)
def test_check_regions_names_what_is_wrong(columns, message):
    with pytest.raises(ValueError, match=message):
        check_regions(pd.DataFrame(columns))


def test_check_membership_names_shape_type_and_empty_features():
    with pytest.raises(ValueError, match="must be bool; got int64"):
        check_membership(np.ones((2, 3), dtype=np.int64), 3)
    with pytest.raises(ValueError, match=r"\(n_features, 4\); got \(2, 3\)"):
        check_membership(np.ones((2, 3), dtype=bool), 4)
    with pytest.warns(EmptyFeatureWarning, match="1 of 2 features .*: 1"):
        check_membership(np.array([[True, False], [False, False]]), 2)
