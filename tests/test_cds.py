import numpy as np
import pandas as pd
import pytest
from scipy import stats

from helpers.blockstats import moderated_t
from helpers.cds import (
    Moments,
    bootstrap_ratio,
    context_divergence,
    paired_blocks,
    welch,
)

LINEAGES = ("blood", "liver", "lymph")


def make_design(n_pairs=3):
    lineages = (*LINEAGES, *(f"tissue{i}" for i in range(3, n_pairs)))[:n_pairs]
    rows = [
        (f"{lineage}_{context}", lineage, context)
        for lineage in lineages
        for context in ("in_vitro", "in_vivo")
    ]
    return pd.DataFrame(rows, columns=["biosample", "lineage", "context"])


def make_world(n_features=300, n_blocks=40, per_block=5, n_pairs=3, seed=0):
    """Sparse window summaries with sequence, block and window effects, no contrast."""
    rng = np.random.default_rng(seed)
    blocks = np.repeat(np.arange(n_blocks), per_block)
    n_windows = n_blocks * per_block
    sequence = rng.normal(size=(n_windows, n_features))
    block = 0.3 * rng.normal(size=(2 * n_pairs, n_blocks, n_features))[:, blocks]
    noise = 0.5 * rng.normal(size=(2 * n_pairs, n_windows, n_features))
    return np.maximum(sequence + block + noise - 0.5, 0), make_design(n_pairs), blocks


VITRO, VIVO = slice(0, None, 2), slice(1, None, 2)


def test_welch_equals_scipy():
    rng = np.random.default_rng(0)
    vitro, vivo = rng.normal(5, 1, size=(70, 9)), rng.normal(5.2, 3, size=(50, 9))
    result = welch(vitro, vivo)
    expected = stats.ttest_ind(vivo, vitro, equal_var=False)
    np.testing.assert_allclose(result.t, expected.statistic, rtol=1e-10)
    np.testing.assert_allclose(result.df, expected.df, rtol=1e-10)
    np.testing.assert_allclose(result.p, expected.pvalue, rtol=1e-10)


def test_welch_of_streamed_moments_equals_all_at_once():
    rng = np.random.default_rng(1)
    vitro = rng.normal(1e4, 1, size=(90, 6)).astype(np.float32)
    vivo = rng.normal(1e4, 1, size=(80, 6)).astype(np.float32)
    streamed = Moments.of(vitro[:7]) + Moments.of(vitro[7:50]) + Moments.of(vitro[50:])
    expected = stats.ttest_ind(vivo.astype(float), vitro.astype(float), equal_var=False)
    result = welch(streamed, Moments.of(vivo))
    np.testing.assert_allclose(result.t, expected.statistic, rtol=1e-10)
    np.testing.assert_allclose(result.p, expected.pvalue, rtol=1e-10)


def test_welch_is_nan_without_variance_and_refuses_single_observations():
    assert np.isnan(welch(np.zeros((3, 1)), np.zeros((3, 1))).t[0])
    with pytest.raises(ValueError, match="got 1 and 3 observations"):
        welch(np.zeros((1, 2)), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="n_observations >= 1"):
        Moments.of(np.zeros(3))


def test_context_divergence_equals_a_slow_reference():
    features, design, blocks = make_world(n_features=4, n_blocks=6)
    table = context_divergence(features, design, blocks, trend=False)
    difference = features[VIVO] - features[VITRO]  # (lineage, window, feature)
    means = difference.reshape(3, 6, 5, 4).mean(axis=2)
    expected = moderated_t(means.mean(axis=0), np.full(6, 5))
    np.testing.assert_allclose(table["cds"], expected.t)
    np.testing.assert_allclose(table["delta"], difference.mean(axis=(0, 1)))
    np.testing.assert_allclose(table["cds_liver"], moderated_t(means[1], np.ones(6)).t)
    sd = means.mean(axis=0).std(axis=0, ddof=1)
    hedges = 1 - 3 / (4 * 5 - 1)
    np.testing.assert_allclose(table["d_z"], hedges * table["delta"] / sd)
    naive = stats.ttest_ind(
        features[VIVO].reshape(-1, 4), features[VITRO].reshape(-1, 4), equal_var=False
    )
    np.testing.assert_allclose(table["cds_naive"], naive.statistic)
    greater = (difference > 0).mean((0, 1)) + (difference == 0).mean((0, 1)) / 2
    np.testing.assert_allclose(table["auc"], greater)


def test_context_divergence_is_antisymmetric_and_free_of_window_and_row_order():
    features, design, blocks = make_world(n_features=20)
    table = context_divergence(features, design, blocks)
    swapped = design.assign(
        context=design["context"].map({"in_vitro": "in_vivo", "in_vivo": "in_vitro"})
    )
    np.testing.assert_allclose(
        context_divergence(features, swapped, blocks)["cds"], -table["cds"]
    )
    rng = np.random.default_rng(3)
    rows, windows = rng.permutation(6), rng.permutation(len(blocks))
    shuffled = context_divergence(
        features[rows][:, windows], design.iloc[rows], blocks[windows]
    )
    pd.testing.assert_frame_equal(
        shuffled[table.columns].drop(columns="lineages"),
        table.drop(columns="lineages"),
    )


def test_context_divergence_ignores_what_the_sequence_decides():
    features, design, blocks = make_world(n_features=30)
    table = context_divergence(features, design, blocks)
    sequence = 50 * np.random.default_rng(4).random((1, *features.shape[1:]))
    shifted = context_divergence(features + sequence, design, blocks, trend=False)
    plain = context_divergence(features, design, blocks, trend=False)
    np.testing.assert_allclose(shifted["cds"], plain["cds"])
    assert (table["class"] == "none").mean() > 0.9


def test_context_divergence_weights_unequal_blocks_by_windows():
    features, design, _ = make_world(n_features=25)
    blocks = np.repeat(np.arange(20), np.r_[np.full(10, 2), np.full(10, 18)])
    table = context_divergence(features, design, blocks)
    difference = (features[VIVO] - features[VITRO]).mean(axis=(0, 1))
    np.testing.assert_allclose(table["delta"], difference)


def test_context_divergence_finds_and_classifies_planted_features():
    features, design, blocks = make_world(n_features=300, per_block=8)
    features[VIVO, :, :20] += 0.3
    features[VITRO, :, 20:40] += 0.3
    features[3, :, 40:60] += 0.4  # liver, in vivo
    features[3, :, 60:80] += 0.4
    features[0, :, 60:80] += 0.4  # and blood, in vitro
    features[[1, 3], :, 80:120] += 0.4  # blood and liver, in vivo
    features[4, :, 100:120] += 0.4  # and lymph, in vitro
    features[:, :, 299] = 0
    table = context_divergence(features, design, blocks, n_flips=500)
    planted = np.repeat(
        [
            "shared-vivo",
            "shared-vitro",
            "lineage-only",
            "discordant",
            "lineage-only",
            "discordant",
            "none",
            "untested",
        ],
        [20, 20, 20, 20, 20, 20, 179, 1],
    )
    right = (table["class"] == planted).groupby(planted).mean()
    assert (right >= 0.8).all(), right
    assert (table["class"].iloc[120:299] != "none").sum() <= 2
    assert (table["cds"].iloc[:20] > 0).all() and (table["cds"].iloc[20:40] < 0).all()
    assert table["p_max_t"].iloc[:40].max() <= 0.05
    assert table["p_max_t"].iloc[120:299].min() > 0.01
    assert (table["lineages"].iloc[40:60] == "liver").mean() >= 0.8
    assert (table["lineages"].iloc[80:100] == "blood,liver").mean() >= 0.8
    assert table["p_heterogeneity"].iloc[40:120].max() < 0.01
    assert table["i2"].iloc[60:80].min() > 0.9
    assert table["p_conjunction"].iloc[:20].max() < 0.05
    assert (table["log2_fold"].iloc[:20] > 0).all()


def test_context_divergence_leaves_rare_features_untested():
    features, design, blocks = make_world(n_features=12)
    features[:, :, 0] = 0
    features[:, :, 1] = 0
    features[1, blocks < 4, 1] = 5.0  # four blocks
    features[:2, :, 2] = 0  # silent in blood only
    table = context_divergence(features, design, blocks)
    assert table["class"].iloc[:2].tolist() == ["untested", "untested"]
    assert table.loc[:1, ["cds", "p", "p_bonferroni", "d_z"]].isna().all(axis=None)
    assert table["firing_blocks"].iloc[:2].tolist() == [0, 4]
    assert table.attrs["n_tested"] == 10
    np.testing.assert_allclose(
        table["p_bonferroni"], np.minimum(10 * table["p"], 1), equal_nan=True
    )
    assert np.isnan(table.loc[2, "p_blood"]) and table.loc[2, "p_liver"] <= 1


def test_context_divergence_scales():
    features, design, blocks = make_world(n_features=15)
    rates = (features > 0).astype(float)
    for scale, transform in {
        "log1p": np.log1p,
        "rate": lambda x: (x > 0).astype(float),
    }.items():
        table = context_divergence(
            features, design, blocks, scale=scale, firing_rates=rates
        )
        expected = transform(features[VIVO]) - transform(features[VITRO])
        np.testing.assert_allclose(table["delta"], expected.mean(axis=(0, 1)))
    np.testing.assert_allclose(table["delta_rate"], table["delta"])
    ranked = context_divergence(features, design, blocks, scale="rank")
    stretched = context_divergence(features**3, design, blocks, scale="rank")
    np.testing.assert_allclose(ranked["delta"], stretched["delta"])


def test_context_divergence_scores_any_contrast():
    features, design, blocks = make_world(n_features=15)
    features[VIVO, :, :3] += 1
    renamed = design.assign(
        context=design["context"].map({"in_vitro": "intron", "in_vivo": "exon"})
    )
    table = context_divergence(features, renamed, blocks, levels=("intron", "exon"))
    assert (table["class"].iloc[:3] == "shared-exon").all()
    assert table.attrs["positive"] == "higher exon"


def test_one_pair_is_never_called_shared():
    features, design, blocks = make_world(n_features=20, n_pairs=1)
    features[1, :, :5] += 1
    table = context_divergence(features, design, blocks)
    assert (table["class"].iloc[:5] == "lineage-only").all()
    np.testing.assert_allclose(table["p"], table["p_blood"])


def test_attrs_name_the_estimand():
    table = context_divergence(*make_world(n_features=5))
    assert table.attrs["estimand"].startswith("E1 track contrast")
    assert table.attrs["n_blocks"] == 40 and table.attrs["n_pairs"] == 3


def test_block_level_p_values_hold_where_token_level_ones_do_not():
    """Null world: correlated tokens, sparse features, block noise, no context."""
    rng = np.random.default_rng(5)
    n_blocks, per_block, n_tokens, n_features = 40, 5, 16, 400
    blocks = np.repeat(np.arange(n_blocks), per_block)
    shape = (n_blocks * per_block, n_features)
    window = rng.normal(size=shape)
    contexts = []
    for _ in range(2):
        block = 0.3 * rng.normal(size=(n_blocks, n_features))[blocks]
        tokens = np.empty((n_tokens, *shape))
        tokens[0] = rng.normal(size=shape)
        for t in range(1, n_tokens):  # AR(1), correlation 0.8
            tokens[t] = 0.8 * tokens[t - 1] + 0.6 * rng.normal(size=shape)
        contexts.append(np.maximum(tokens + window + block - 1, 0))
    naive = welch(*(x.reshape(-1, n_features) for x in contexts))
    features = np.stack([x.mean(axis=0) for x in contexts])
    table = context_divergence(features, make_design(1), blocks)
    assert 0.03 <= (table["p"] < 0.05).mean() <= 0.07
    assert (naive.p < 0.05).mean() > 0.4
    # At Bonferroni 0.05 false features are expected; the naive score calls dozens.
    assert (table["p_bonferroni"] < 0.05).sum() <= 1
    assert (naive.p * n_features < 0.05).sum() > 30


@pytest.mark.parametrize("per_block", ["equal", "unequal"])
def test_null_p_values_are_uniform_enough(per_block):
    features, design, blocks = make_world(n_features=1500, seed=6)
    if per_block == "unequal":
        sizes = np.random.default_rng(7).permutation(
            np.repeat([2, 3, 10], [10, 10, 15])
        )
        blocks = np.repeat(np.arange(35), sizes)
    table = context_divergence(features, design, blocks)
    assert 0.03 <= (table["p"] < 0.05).mean() <= 0.07
    assert 0.03 <= (table["p_lymph"] < 0.05).mean() <= 0.07
    assert 0.42 <= (table["p"] < 0.5).mean() <= 0.58
    assert (table["class"] != "none").mean() <= 0.002


def test_intervals_of_effect_sizes_cover_what_is_planted():
    rng = np.random.default_rng(20)
    n_blocks, n_features = 40, 2000
    sizes = rng.integers(2, 9, size=n_blocks)
    blocks = np.repeat(np.arange(n_blocks), sizes)
    # Positive, skewed, twice as high and more often on in vivo.
    block = rng.gamma(4, 0.25, size=(2, n_blocks, n_features))[:, blocks]
    fires = (
        rng.random((2, len(blocks), n_features)) < np.array([0.5, 0.8])[:, None, None]
    )
    level = np.array([1.0, 2.0])[:, None, None]
    features = level * block * fires
    table = context_divergence(
        features, make_design(1), blocks, firing_rates=fires * 0.25
    )
    truth = {
        "log2_fold": np.log2(3.2),
        "delta_rate": 0.25 * 0.3,
        "log_intensity": np.log(2),
        "log_odds": np.log(0.2 / 0.8 / (0.125 / 0.875)),
    }
    for name, value in truth.items():
        covered = table[f"{name}_low"].le(value) & table[f"{name}_high"].ge(value)
        assert 0.925 <= covered.mean() <= 0.975, (name, covered.mean())
    auc = table["auc"].mean()
    covered = table["auc_low"].le(auc) & table["auc_high"].ge(auc)
    assert 0.925 <= covered.mean() <= 0.975


def test_interval_of_d_z_covers_its_population_value():
    rng = np.random.default_rng(21)
    noise = rng.normal(size=(40, 4000)) + 0.6
    features = np.stack([np.full((40, 4000), 5.0), 5 + noise])
    table = context_divergence(features, make_design(1), np.arange(40))
    covered = table["d_z_low"].le(0.6) & table["d_z_high"].ge(0.6)
    assert 0.93 <= covered.mean() <= 0.97


def test_hurdle_tells_turning_on_from_turning_up():
    rng = np.random.default_rng(22)
    n_blocks, per_block, n_tokens, n_features = 40, 4, 32, 80
    blocks = np.repeat(np.arange(n_blocks), per_block)
    shape = (len(blocks), n_tokens, n_features)
    means, rates = [], []
    for _ in range(2):
        for context in range(2):
            fires = rng.random(shape) < 0.2
            acts = rng.gamma(3, 1 / 3, size=shape)
            if context:
                more = rng.random((*shape[:2], 20)) < 0.1
                fires[..., :20] |= more  # on more often
                acts[..., 20:40] *= 1.5  # as often, but stronger
                fires[..., 40:60] |= more
                acts[..., 40:60] *= 1.5
            means.append((acts * fires).mean(axis=1))
            rates.append(fires.mean(axis=1))
    table = context_divergence(
        np.stack(means), make_design(2), blocks, firing_rates=np.stack(rates)
    )
    readout = table["readout"].to_numpy()
    planted = np.repeat(["on-off", "up-down", "both", ""], 20)
    for kind in ("on-off", "up-down", "both"):
        assert (readout[planted == kind] == kind).mean() >= 0.85, kind
    assert (readout[planted == ""] == "").mean() >= 0.95
    assert (table["log_odds"].iloc[:20] > 0.2).all()
    np.testing.assert_allclose(
        table["log_intensity"].iloc[20:40], np.log(1.5), atol=0.15
    )


def test_hurdle_by_hand():
    """One feature, five blocks of one window: sums and their logs."""
    rates = np.array([[0.25, 0.5, 0, 0.25, 0.25], [0.5, 0.5, 0.5, 0.25, 0.5]])
    acts = np.array([[1.0, 1, 0, 2, 1], [3.0, 2, 2, 1, 1]])
    table = context_divergence(
        np.repeat(acts[..., None], 2, axis=2) * [1, 10],
        make_design(1),
        np.arange(5),
        firing_rates=np.repeat(rates[..., None], 2, axis=2),
    )
    half = 0.125  # the smallest rate is a token of four

    def odds(rate):
        return (rate.sum() + half) / (5 - rate.sum() + half)

    expected = np.log(odds(rates[1]) / odds(rates[0]))
    np.testing.assert_allclose(table["log_odds"], expected)
    intensity = acts.sum(axis=1) / rates.sum(axis=1)
    np.testing.assert_allclose(
        table["log_intensity"], np.log(intensity[1] / intensity[0])
    )
    left_out = [np.delete(x, b, axis=1) for b in range(5) for x in [rates]]
    estimates = [
        np.log((x[1].sum() + half) / (4 - x[1].sum() + half))
        - np.log((x[0].sum() + half) / (4 - x[0].sum() + half))
        for x in left_out
    ]
    se = np.sqrt(4 / 5 * np.square(estimates - np.mean(estimates)).sum())
    np.testing.assert_allclose(
        table["log_odds_high"] - table["log_odds"], stats.t.isf(0.025, 4) * se
    )


def test_attrs_say_what_the_design_tells_of_every_estimand():
    three = context_divergence(*make_world(n_features=5)).attrs["estimands"]
    assert list(three) == ["E1", "E2", "E3"]
    assert "not estimable from 3 pair" in three["E3"]
    one = context_divergence(*make_world(n_features=5, n_pairs=1)).attrs["estimands"]
    assert "not estimable from 1 pair" in one["E2"]
    six = context_divergence(*make_world(n_features=5, n_pairs=6)).attrs["estimands"]
    assert six["E3"].startswith("E3 population contrast")


def test_population_claim_from_three_pairs_is_refused():
    with pytest.raises(ValueError, match="E3 is not estimable from 3 pair.*0.25"):
        context_divergence(*make_world(n_features=5), population=True)


def test_population_claim_counts_pairs_not_blocks():
    features, design, blocks = make_world(n_features=200, n_pairs=6, seed=8)
    rng = np.random.default_rng(9)
    # Each biosample has its own level: a track contrast everywhere, no population one.
    features[:, :, :150] += np.abs(rng.normal(size=(12, 1, 150)))
    features[VIVO, :, 150:170] += 1
    tracks = context_divergence(features, design, blocks)
    population = context_divergence(
        features, design, blocks, population=True, n_flips=100
    )
    assert population.attrs["estimand"].startswith("E3 population contrast")
    assert (tracks["p"].iloc[:150] < 0.05).mean() > 0.8
    assert (population["p"].iloc[:150] < 0.05).mean() < 0.12
    assert (population["p_max_t"].iloc[150:170] == 2 / 64).all()  # the exact floor


def _change(design, row, **values):
    design = design.copy()
    for column, value in values.items():
        design.loc[row, column] = value
    return design


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.drop(columns="lineage"), r"\['lineage'\] missing"),
        (lambda d: _change(d, 1, biosample=d.loc[0, "biosample"]), "'blood_in_vitro'"),
        (lambda d: _change(d, 2, context="vitro"), "'vitro' for 'liver_in_vitro'"),
        (lambda d: _change(d, 0, context="in_vivo"), "'blood' must have.*got 0 and 2"),
        (lambda d: _change(d, 5, lineage="lung"), "'lymph' must have.*got 1 and 0"),
        (lambda d: _change(d, 5, lineage=None), "needs a lineage"),
        (lambda d: d.iloc[:4], r"one row per biosample of features \(6\); got 4"),
    ],
)
def test_context_divergence_refuses_bad_designs(change, message):
    features, design, blocks = make_world(n_features=3)
    with pytest.raises(ValueError, match=message):
        context_divergence(features, change(design), blocks)


def test_context_divergence_refuses_bad_features():
    features, design, blocks = make_world(n_features=3)
    missing = features.copy()
    missing[4, 7, 1] = np.nan
    with pytest.raises(ValueError, match="unpaired; got NaN.*'lymph_in_vitro'"):
        context_divergence(missing, design, blocks)
    with pytest.raises(ValueError, match="'log1p' gives NaN or infinity"):
        context_divergence(-2 * features, design, blocks, scale="log1p")
    with pytest.raises(ValueError, match="none fires in 5 blocks"):
        context_divergence(np.zeros_like(features), design, blocks)
    copied = features.copy()
    copied[3] = copied[2]
    copies = "'liver_in_vitro' and 'liver_in_vivo' hold the same.*copies of one"
    with pytest.raises(ValueError, match=copies):
        context_divergence(copied, design, blocks)
    copied = features.copy()
    copied[4] = copied[1]  # in another lineage and context
    with pytest.raises(ValueError, match="'lymph_in_vitro' and 'blood_in_vivo' hold"):
        context_divergence(copied, design, blocks)
    shifted = features.copy()
    shifted[3] = shifted[2] + 0.25
    with pytest.raises(ValueError, match="'liver' no difference.*zero variance"):
        context_divergence(shifted, design, blocks)
    ragged = [x[: 190 + i] for i, x in enumerate(features)]
    with pytest.raises(ValueError, match="the same windows in every.*got list"):
        context_divergence(ragged, design, blocks)
    with pytest.raises(ValueError, match="ndarray of shape .200, 3"):
        context_divergence(features[0], design, blocks)
    with pytest.raises(ValueError, match="firing_rates must have the shape"):
        context_divergence(features, design, blocks, firing_rates=features[:2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": "log2"}, "scale must be one of"),
        ({"scale": "rate"}, "'rate' needs firing_rates"),
        ({"correction": "fdr"}, "bonferroni, holm or bh"),
        ({"alpha": 5}, "alpha must lie between 0 and 1"),
        ({"n_flips": -1}, "n_flips must be 0 or more"),
    ],
)
def test_context_divergence_refuses_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        context_divergence(*make_world(n_features=3), **options)


def test_too_few_blocks_are_refused():
    features, design, blocks = make_world(n_features=5)
    with pytest.raises(ValueError, match="at least 20 blocks; got 10"):
        context_divergence(features, design, blocks // 4, n_flips=100)
    with pytest.raises(ValueError, match="at least 5 genomic blocks.*got 2"):
        context_divergence(features, design, blocks // 20)
    with pytest.raises(ValueError, match=r"one block per window \(200\)"):
        context_divergence(features, design, blocks[:-1])


def test_bootstrap_ratio_counts_and_covers():
    rng = np.random.default_rng(10)
    sizes = np.full(40, 5)

    def layer(n_context):
        effect = np.where(np.arange(400) < n_context, 1.2, 0.0)
        return rng.normal(size=(40, 400)) + effect

    result = bootstrap_ratio([layer(20)], [layer(80)], sizes, n_draws=400)
    assert result.early == pytest.approx(20, abs=2)
    assert result.late == pytest.approx(80, abs=3)
    assert result.ratio == result.late / result.early
    assert result.low < 4 < result.high
    assert result.draws.shape == (400, 2)
    both = bootstrap_ratio([layer(20)] * 2, [layer(80)] * 2, sizes, n_draws=10)
    assert both.late == pytest.approx(160, abs=6)


def test_bootstrap_ratio_resamples_the_same_blocks_for_all_layers():
    values = np.random.default_rng(11).normal(0.8, 1, size=(30, 200))
    same = bootstrap_ratio([values], [values], np.ones(30), n_draws=50)
    assert (same.ratio, same.low, same.high) == (1, 1, 1)


def test_bootstrap_ratio_refuses_layers_on_other_blocks():
    values = np.random.default_rng(12).normal(size=(30, 5))
    with pytest.raises(ValueError, match="n_blocks = 30.*got .29, 5"):
        bootstrap_ratio([values], [values[1:]], np.ones(30))
    with pytest.raises(ValueError, match="at least one layer"):
        bootstrap_ratio([], [values], np.ones(30))


def test_bootstrap_ratio_uses_paired_blocks():
    features, design, blocks = make_world(n_features=60)
    features[VIVO, :, :30] += 0.6
    pairs = paired_blocks(features, design, blocks)
    late = pairs.differences.mean(axis=0)
    result = bootstrap_ratio([late[:, 30:]], [late], pairs.sizes, n_draws=20)
    assert result.early == 0 and result.late >= 29
    assert np.isinf(result.ratio) and 1 < result.low < result.high < np.inf
