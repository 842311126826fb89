import numpy as np
import pytest
from scipy import special, stats

from helpers.blockstats import (
    adjust_p_values,
    block_bootstrap,
    jackknife,
    max_t_p_values,
    moderated_t,
    resampled_t,
    squeeze_variance,
)


def test_jackknife_of_equal_sizes_is_mean_and_sample_variance():
    values = np.random.default_rng(0).normal(size=(12, 5))
    mean, variance = jackknife(values, np.full(12, 7))
    np.testing.assert_allclose(mean, values.mean(axis=0))
    np.testing.assert_allclose(variance, values.var(axis=0, ddof=1))


def test_jackknife_of_unequal_sizes_leaves_out_one_block_at_a_time():
    rng = np.random.default_rng(1)
    values, sizes = rng.normal(size=(9, 4)), rng.integers(1, 20, size=9)
    left_out = np.stack(
        [
            np.average(np.delete(values, b, 0), axis=0, weights=np.delete(sizes, b))
            for b in range(9)
        ]
    )
    mean, variance = jackknife(values, sizes)
    np.testing.assert_allclose(mean, np.average(values, axis=0, weights=sizes))
    expected = 8 / 9 * ((left_out - left_out.mean(axis=0)) ** 2).sum(axis=0)
    np.testing.assert_allclose(variance / 9, expected)


def test_squeeze_variance_recovers_a_planted_prior():
    rng = np.random.default_rng(2)
    prior_df, scale, df = 8.0, 0.3, 20
    true = prior_df * scale / rng.chisquare(prior_df, size=20_000)
    raw = true * rng.chisquare(df, size=20_000) / df
    squeezed = squeeze_variance(raw, df)
    assert squeezed.prior_df == pytest.approx(prior_df, rel=0.05)
    assert squeezed.prior_variance[0] == pytest.approx(scale, rel=0.02)
    # Its estimates are closer to the truth than the sample variances are.
    error = [np.std(np.log(x / true)) for x in (squeezed.moderated, raw)]
    assert error[0] < 0.9 * error[1]


def test_squeeze_variance_matches_the_moment_equations():
    variance, df = np.array([0.5, 1.0, 4.0, 0.2, 9.0]), 4
    squeezed = squeeze_variance(variance, df)
    logs = np.log(variance)
    excess = logs.var(ddof=1) - special.polygamma(1, df / 2)
    assert special.polygamma(1, squeezed.prior_df / 2) == pytest.approx(excess)
    expected_log = (
        np.log(squeezed.prior_variance[0])
        + special.digamma(df / 2)
        - np.log(df / 2)
        - special.digamma(squeezed.prior_df / 2)
        + np.log(squeezed.prior_df / 2)
    )
    assert logs.mean() == pytest.approx(expected_log)


def test_squeeze_variance_follows_a_trend():
    rng = np.random.default_rng(3)
    covariate = rng.uniform(-3, 3, size=4000)
    true = np.exp(covariate)
    variance = true * rng.chisquare(10, size=4000) / 10
    with_trend = squeeze_variance(variance, 10, covariate=covariate)
    without = squeeze_variance(variance, 10)
    assert with_trend.prior_df > 50 > 10 > without.prior_df
    error = np.log(with_trend.prior_variance / true)
    assert np.abs(error).max() < 0.15


def test_squeeze_variance_of_chance_spread_pools_all():
    variance = np.full(50, 2.0)
    squeezed = squeeze_variance(variance, 5)
    assert np.isinf(squeezed.prior_df)
    np.testing.assert_allclose(squeezed.moderated, squeezed.prior_variance)


def test_squeeze_variance_lifts_zeros_and_refuses_all_zero():
    rng = np.random.default_rng(4)
    variance = np.append(rng.chisquare(5, size=500) ** 2, 0.0)
    moderated = squeeze_variance(variance, 5).moderated
    assert 0 < moderated[-1] < moderated[:-1].min()
    with pytest.raises(ValueError, match="no feature varies"):
        squeeze_variance(np.zeros(3), 5)


def test_moderated_t_combines_prior_and_sample_variance():
    rng = np.random.default_rng(5)
    values = rng.normal(size=(12, 300)) * np.exp(rng.normal(size=300))
    test = moderated_t(values, np.ones(12))
    d0, prior = test.squeezed.prior_df, test.squeezed.prior_variance
    assert 0 < d0 < np.inf
    variance = (d0 * prior + 11 * values.var(axis=0, ddof=1)) / (d0 + 11)
    t = values.mean(axis=0) / np.sqrt(variance / 12)
    np.testing.assert_allclose(test.t, t)
    np.testing.assert_allclose(test.p, 2 * stats.t.sf(np.abs(t), d0 + 11))


@pytest.mark.parametrize("sizes", [np.full(10, 3.0), np.arange(1.0, 11.0)])
def test_resampled_t_equals_recomputing_each_resample(sizes):
    rng = np.random.default_rng(6)
    values = rng.normal(size=(10, 6)) * np.arange(1, 7) ** 2
    squeezed = moderated_t(values, sizes).squeezed
    assert np.isfinite(squeezed.prior_df)
    signs = rng.choice([-1.0, 1.0], size=(7, 10))
    counts = rng.multinomial(10, np.full(10, 0.1), size=7).astype(float)

    def slow(values, sizes):
        mean, variance = jackknife(values, sizes)
        d0 = squeezed.prior_df
        moderated = (d0 * squeezed.prior_variance + 9 * variance) / (d0 + 9)
        return mean / np.sqrt(moderated / 10)

    flipped = resampled_t(values, sizes, squeezed, signs=signs)
    np.testing.assert_allclose(
        flipped, [slow(values * row[:, None], sizes) for row in signs], rtol=1e-10
    )
    drawn = resampled_t(values, sizes, squeezed, counts=counts)
    repeats = [np.repeat(np.arange(10), row.astype(int)) for row in counts]
    np.testing.assert_allclose(
        drawn, [slow(values[rows], sizes[rows]) for rows in repeats], rtol=1e-10
    )


def test_max_t_of_one_feature_is_the_exact_sign_flip_p():
    values = np.array([[0.9], [1.3], [0.4], [2.0], [-0.1], [0.7]])
    test = moderated_t(values, np.ones(6))
    p = max_t_p_values(values, np.ones(6), test, n_flips=100, random_state=0)
    patterns = 1 - 2 * ((np.arange(64)[:, None] >> np.arange(6)) & 1)
    means = np.abs(patterns @ values[:, 0])
    assert p[0] == pytest.approx((means >= means[0] - 1e-9).mean())


def test_max_t_steps_down_as_a_slow_reference():
    rng = np.random.default_rng(13)
    values = rng.normal(size=(7, 5)) + np.array([0.0, 2.0, 0.3, 1.0, 0.0])
    test = moderated_t(values, np.ones(7))
    p = max_t_p_values(values, np.ones(7), test, n_flips=127, random_state=0)

    patterns = 1.0 - 2 * ((np.arange(128)[:, None] >> np.arange(7)) & 1)
    flipped = np.abs(resampled_t(values, np.ones(7), test.squeezed, signs=patterns))
    left, previous = list(np.argsort(-np.abs(test.t))), 0.0
    while left:  # the strongest against the maximum of all that are left
        hits = flipped[:, left].max(axis=1) >= np.abs(test.t[left[0]]) - 1e-9
        previous = max(previous, hits.mean())
        assert p[left[0]] == pytest.approx(previous)
        left.pop(0)


def test_max_t_is_ordered_like_t_and_never_below_its_floor():
    rng = np.random.default_rng(7)
    values = rng.normal(size=(30, 50)) + np.r_[np.full(5, 1.5), np.zeros(45)]
    test = moderated_t(values, np.ones(30))
    p = max_t_p_values(values, np.ones(30), test, n_flips=499, random_state=1)
    order = np.argsort(-np.abs(test.t))
    assert (np.diff(p[order]) >= 0).all()
    assert p.min() == 1 / 500
    assert (p[:5] < 0.05).all()
    again = max_t_p_values(values, np.ones(30), test, n_flips=499, random_state=1)
    assert np.array_equal(p, again)


def test_max_t_keeps_the_family_wise_error():
    rng = np.random.default_rng(8)
    wrong = 0
    for world in range(200):
        common = rng.normal(size=(24, 1))
        values = 0.6 * common + 0.8 * rng.standard_t(4, size=(24, 40))
        test = moderated_t(values, np.ones(24))
        p = max_t_p_values(values, np.ones(24), test, n_flips=199, random_state=world)
        wrong += p.min() <= 0.05
    assert wrong / 200 <= 0.08  # 0.05 plus two Monte Carlo standard errors


def test_adjust_p_values_by_hand_with_an_untested_feature():
    p = np.array([0.04, np.nan, 0.01, 0.5, 0.012])
    np.testing.assert_allclose(
        adjust_p_values(p, "bonferroni"), [0.16, np.nan, 0.04, 1.0, 0.048]
    )
    np.testing.assert_allclose(
        adjust_p_values(p, "holm"), [0.08, np.nan, 0.04, 0.5, 0.04]
    )
    np.testing.assert_allclose(
        adjust_p_values(p, "bh"), [0.16 / 3, np.nan, 0.024, 0.5, 0.024]
    )
    with pytest.raises(ValueError, match="bonferroni, holm or bh; got 'fdr'"):
        adjust_p_values(p, "fdr")


def test_block_bootstrap_estimates_means_and_ratios_of_sums():
    values = np.array([[1.0, 2.0, 3.0, 6.0], [0.0, 0.0, 4.0, 4.0]])
    blocks = ["a", "a", "b", "c"]
    mean = block_bootstrap(values, blocks, n_draws=50)
    np.testing.assert_allclose(mean.estimate, [3.0, 2.0])
    assert mean.draws.shape == (2, 50)
    ratio = block_bootstrap(values, blocks, denominators=np.array([1, 1, 2, 4]))
    np.testing.assert_allclose(ratio.estimate, [12 / 8, 1.0])
    # Every draw is one of the multisets of three blocks.
    sums, counts = np.array([3.0, 3.0, 6.0]), np.array([2, 1, 1])
    possible = {
        round(float(sums[[i, j, k]].sum() / counts[[i, j, k]].sum()), 9)
        for i in range(3)
        for j in range(3)
        for k in range(3)
    }
    assert set(mean.draws[0].round(9).tolist()) <= possible


def test_block_bootstrap_pairs_draws_across_methods_and_calls():
    rng = np.random.default_rng(9)
    values, blocks = rng.normal(size=(1, 60)), np.repeat(np.arange(20), 3)
    both = block_bootstrap(np.concatenate([values, values + 1]), blocks)
    np.testing.assert_allclose(both.draws[1] - both.draws[0], 1)
    again = block_bootstrap(values[0], blocks)
    np.testing.assert_allclose(again.draws, both.draws[0])


def test_block_bootstrap_interval_covers_where_a_window_bootstrap_would_not():
    rng = np.random.default_rng(10)
    blocks = np.repeat(np.arange(30), 10)
    hits = {True: 0, False: 0}
    for world in range(200):
        values = rng.normal(size=30)[blocks] + 0.3 * rng.normal(size=300)
        for by_block in hits:
            unit = blocks if by_block else np.arange(300)
            interval = block_bootstrap(values, unit, n_draws=200, random_state=world)
            hits[by_block] += interval.low <= 0 <= interval.high
    assert hits[True] / 200 > 0.88
    assert hits[False] / 200 < 0.6


@pytest.mark.parametrize(
    ("values", "blocks", "denominators", "message"),
    [
        (np.ones(3), [0, 1], None, "blocks must name one of at least 2 blocks"),
        (np.ones(3), [0, 0, 0], None, "with 1 blocks"),
        (np.array([1.0, np.nan]), [0, 1], None, "finite"),
        (np.ones(2), [0, 1], np.array([1.0, -1.0]), "must not sum to zero"),
    ],
)
def test_block_bootstrap_refuses(values, blocks, denominators, message):
    with pytest.raises(ValueError, match=message):
        block_bootstrap(values, blocks, denominators=denominators)
