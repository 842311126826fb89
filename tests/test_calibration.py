"""Error rates in worlds without effect, power in worlds with one, placebo FDR."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from helpers.calibration import (
    SummaryWorld,
    calls_by_unit,
    detectable_effect,
    draw_summaries,
    null_draws,
    placebo_contrasts,
    placebo_fdr,
    power,
    replicate_divergence,
    study_rows,
)
from helpers.cds import context_divergence
from helpers.confounders import partial_divergence
from test_cds import make_design

NULL = SummaryWorld(n_lineages=1, n_features=40)
PLANTED = SummaryWorld(
    kind="planted", biosample_sd=0.15, n_features=200, n_tokens=4, windows_per_block=5
)


def summarized(draws):
    unit = draws.groupby("unit", sort=False)
    rates = unit["share"].mean()
    family = unit["n_called"].agg(lambda n: (n > 0).mean())
    return rates, family


def test_blocks_hold_their_error_rates_where_tokens_do_not():
    rates, family = summarized(null_draws(NULL, n_draws=40, n_flips=199))
    assert 0.03 <= rates["block"] <= 0.07
    assert rates["token"] >= 10 * 0.05
    assert family["block, max-T"] <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 40)
    assert family["token"] == 1
    assert 0.03 <= rates["biosample"] <= 0.07


def test_only_biosamples_replicate_the_noise_of_biosamples():
    world = replace(NULL, biosample_sd=0.3, n_tokens=4)
    rates, _ = summarized(null_draws(world, n_draws=20, n_flips=0))
    assert rates["block"] > 0.4
    assert 0.02 <= rates["biosample"] <= 0.08


def test_null_draws_repeat_and_differ():
    world = replace(NULL, n_tokens=2, windows_per_block=2)
    once = null_draws(world, n_draws=2, n_flips=0)
    pd.testing.assert_frame_equal(once, null_draws(world, n_draws=2, n_flips=0))
    assert once["share"].iloc[:5].tolist() != once["share"].iloc[5:].tolist()


def test_depth_alone_is_gone_at_equal_signal():
    drawn = draw_summaries(
        SummaryWorld(kind="depth-only", n_features=300, n_tokens=4), 0
    )
    rows = study_rows(drawn.samples)
    features, design = drawn.features[rows], drawn.samples.iloc[rows]
    plain = context_divergence(features, design, drawn.blocks)
    assert (plain["p"] < 0.05).mean() > 0.1
    partial = partial_divergence(features, design, drawn.blocks, drawn.log_signal[rows])
    assert 0.02 <= (partial["p_partial"] < 0.05).mean() <= 0.08
    assert partial["called"].sum() <= 1


def test_calls_by_unit_are_the_tests_they_name():
    drawn = draw_summaries(replace(NULL, n_lineages=2, n_tokens=3), 1)
    rows = study_rows(drawn.samples)
    counts = calls_by_unit(
        drawn.features, drawn.samples, drawn.blocks, squares=drawn.squares, n_tokens=3
    )
    low, high = drawn.features[rows[::2]], drawn.features[rows[1::2]]
    p = stats.ttest_rel(high.mean(axis=0), low.mean(axis=0)).pvalue
    assert counts.loc["window, paired", "share"] == pytest.approx((p < 0.05).mean())
    table = context_divergence(
        drawn.features[rows], drawn.samples.iloc[rows], drawn.blocks, trend=False
    )
    assert counts.loc["block", "share"] == pytest.approx((table["p"] < 0.05).mean())
    assert counts.loc["window", "n_called"] == (table["p_naive"] * 40 <= 0.05).sum()
    with pytest.raises(ValueError, match="n_tokens must say how many"):
        calls_by_unit(
            drawn.features, drawn.samples, drawn.blocks, squares=drawn.squares
        )


def test_token_test_from_sums_equals_welch_on_all_tokens():
    rng = np.random.default_rng(2)
    tokens = rng.gamma(1, 1, size=(2, 30, 8, 40))  # biosample, window, token, feature
    tokens[1] *= 1.05
    counts = calls_by_unit(
        tokens.mean(axis=2),
        make_design(1).assign(replicate=0),
        np.repeat(np.arange(10), 3),
        squares=np.square(tokens).sum(axis=(1, 2)),
        n_tokens=8,
        alpha=0.3,
    )
    p = stats.ttest_ind(
        tokens[1].reshape(-1, 40), tokens[0].reshape(-1, 40), equal_var=False
    ).pvalue
    assert counts.loc["token", "share"] == pytest.approx((p < 0.3).mean())


# --- Replicates -----------------------------------------------------------------------


def test_replicate_divergence_equals_a_slow_reference():
    rng = np.random.default_rng(3)
    drawn = draw_summaries(replace(NULL, n_lineages=2, n_tokens=2, n_features=50), rng)
    table = replicate_divergence(drawn.features, drawn.samples, drawn.blocks)
    mean = drawn.features.astype(float).mean(axis=1)
    samples = drawn.samples
    cells = [
        mean[((samples["lineage"] == lineage) & (samples["context"] == context))]
        for lineage in ("blood", "liver")
        for context in ("in_vitro", "in_vivo")
    ]
    variance = np.mean([cell.var(axis=0, ddof=1) for cell in cells], axis=0)
    delta = np.array(
        [cells[1].mean(0) - cells[0].mean(0), cells[3].mean(0) - cells[2].mean(0)]
    )
    np.testing.assert_allclose(table["delta"], delta.mean(axis=0))
    np.testing.assert_allclose(
        table["t_liver"], delta[1] / (table["tau"] * np.sqrt(2 / 3))
    )
    np.testing.assert_allclose(
        table["se"], table["tau"] * np.sqrt(4 / 3) / 2, rtol=1e-12
    )
    # Moderation keeps the order of magnitude and pools the spread.
    log_ratio = np.log(table["tau"] ** 2 / variance)
    assert abs(log_ratio.mean()) < 0.3 and np.ptp(np.log(variance)) > np.ptp(log_ratio)


def test_replicates_find_planted_classes_and_leave_decoys_alone():
    found = {"decoys": [], "shared": [], "lineage-only": [], "tracks": []}
    for seed in range(3):
        drawn = draw_summaries(PLANTED, seed)
        table = replicate_divergence(drawn.features, drawn.samples, drawn.blocks)
        right = table["class"].to_numpy() == drawn.truth
        decoy = drawn.truth == "none"
        found["decoys"].append((table["class"] != "none")[decoy].mean())
        for name in ("shared", "lineage-only"):
            planted = np.char.startswith(drawn.truth.astype(str), name)
            found[name].append(right[planted].mean())
        rows = study_rows(drawn.samples)
        tracks = context_divergence(
            drawn.features[rows], drawn.samples.iloc[rows], drawn.blocks
        )
        found["tracks"].append((tracks["class"] != "none")[decoy].sum())
    assert np.mean(found["decoys"]) <= 0.01
    assert np.mean(found["shared"]) >= 0.8
    assert np.mean(found["lineage-only"]) >= 0.8
    assert min(found["tracks"]) > 0  # E1 calls the noise of single biosamples


def test_replicate_divergence_borrows_variance_for_contexts_without_replicates():
    drawn = draw_summaries(replace(NULL, n_tokens=2, biosample_sd=0.2), 4)
    lines = (drawn.samples["context"] == "in_vitro") & (drawn.samples["replicate"] > 0)
    kept = np.flatnonzero(~lines)
    table = replicate_divergence(
        drawn.features[kept], drawn.samples.iloc[kept], drawn.blocks
    )
    weight = 1 / 1 + 1 / 3
    np.testing.assert_allclose(table["se"], table["tau"] * np.sqrt(weight))
    assert table.attrs["estimand"].startswith("E3 within these lineages")


def test_replicate_divergence_refuses_designs_without_replicates():
    drawn = draw_summaries(replace(NULL, n_tokens=1, n_replicates=0), 5)
    with pytest.raises(ValueError, match="no lineage and context has two biosamples"):
        replicate_divergence(*drawn[:1], drawn.samples, drawn.blocks)
    more = draw_summaries(replace(NULL, n_tokens=1), 5)
    with pytest.raises(ValueError, match=r"one row per biosample of features \(6\)"):
        replicate_divergence(more.features, drawn.samples, more.blocks)
    repeated = more.samples.assign(biosample="same")
    with pytest.raises(ValueError, match="'same' is repeated"):
        replicate_divergence(more.features, repeated, more.blocks)
    broken = more.features.copy()
    broken[2, 3, 4] = np.nan
    with pytest.raises(ValueError, match="in biosample 'blood_in_vitro_r1'"):
        replicate_divergence(broken, more.samples, more.blocks)
    copied = more.features.copy()
    copied[4] = copied[0]
    with pytest.raises(ValueError, match="'blood_in_vitro' and 'blood_in_vitro_r2' h"):
        replicate_divergence(copied, more.samples, more.blocks)


# --- Placebo --------------------------------------------------------------------------


def test_placebo_contrasts_pair_replicates_of_one_kind():
    samples = draw_summaries(replace(NULL, n_lineages=2, n_tokens=1), 6).samples
    contrasts = placebo_contrasts(samples, n_contrasts=30, random_state=1)
    assert len(contrasts) == 30
    seen = set()
    for rows, design in contrasts:
        for low, high in np.reshape(rows, (-1, 2)):
            a, b = samples.iloc[low], samples.iloc[high]
            assert a["context"] == b["context"] and a["lineage"] == b["lineage"]
            assert a["biosample"] != b["biosample"]
        assert list(design["context"]) == ["in_vitro", "in_vivo"] * 2
        mirrored = tuple(np.reshape(rows, (-1, 2))[:, ::-1].ravel())
        assert tuple(rows) not in seen and mirrored not in seen
        seen.add(tuple(rows))
    # Two replicates in two contexts and one lineage: as many as there are, no more.
    assert len(placebo_contrasts(samples.iloc[[0, 1, 4, 5]])) == 2


def test_placebo_contrasts_refuse_a_lineage_without_replicates():
    samples = make_design(2)
    with pytest.raises(ValueError, match="'blood' has no two biosamples"):
        placebo_contrasts(samples)


def test_placebo_fdr_by_hand():
    observed = np.array([5.0, -4.0, np.nan, 0.5, 0.2, 3.0])
    placebo = [np.array([1.0, 0.1, 0.3, 4.5]), np.array([0.4, -0.6, np.nan, 0.7])]
    rate = placebo_fdr(observed, placebo)
    share = 2 * 2 / 5  # two of five below the placebo median, 0.6
    # Calling all three above 3 costs one decoy of two contrasts, plus the one.
    np.testing.assert_allclose(rate[[0, 1, 5]], share * (1 + 1) / 2 / 3)
    assert np.isnan(rate[2])
    assert rate[3] == pytest.approx(share * min(1, (1 + 4) / 2 / 4))
    with pytest.raises(ValueError, match="at least one placebo"):
        placebo_fdr(observed, [])


def test_placebo_fdr_is_within_a_factor_of_two_of_the_truth():
    estimated, true = [], []
    for seed in range(6):
        drawn = draw_summaries(PLANTED, 100 + seed)

        def score(rows, design, drawn=drawn):
            table = context_divergence(drawn.features[rows], design, drawn.blocks)
            return table["cds"].to_numpy()

        rows = study_rows(drawn.samples)
        observed = score(rows, drawn.samples.iloc[rows])
        contrasts = placebo_contrasts(drawn.samples, n_contrasts=12, random_state=seed)
        rate = placebo_fdr(observed, [score(*contrast) for contrast in contrasts])
        called = rate <= 0.2
        estimated.append(rate[called].max())
        true.append((drawn.truth[called] == "none").mean())
    assert 0.5 <= np.mean(estimated) / np.mean(true) <= 2


# --- Power ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_blocks", "expected"),
    [(22, 1.43), (40, 0.94), (100, 0.55), (280, 0.32), (570, 0.22)],
)
def test_detectable_effects_of_usual_designs(n_blocks, expected):
    found = detectable_effect(n_blocks, n_tests=4096)
    assert found == pytest.approx(expected, abs=0.005)
    assert power(found, n_blocks, n_tests=4096) == pytest.approx(0.8)


def test_power_is_what_simulation_shows():
    rng = np.random.default_rng(7)
    values = rng.normal(0.6, 1, size=(30, 5000))
    p = stats.ttest_1samp(values, 0).pvalue
    assert (p <= 0.05 / 50).mean() == pytest.approx(
        power(0.6, 30, n_tests=50), abs=0.02
    )
    with pytest.raises(ValueError, match="between alpha and 1; got 0.01"):
        detectable_effect(30, n_tests=5, target=0.01)


def test_worlds_check_their_kind():
    with pytest.raises(ValueError, match="kind must be one of.*got 'batch'"):
        SummaryWorld(kind="batch")
    with pytest.raises(ValueError, match="n_lineages must lie in"):
        SummaryWorld(n_lineages=0)


def test_null_draws_refuse_sign_flips_over_few_blocks():
    few = replace(NULL, n_blocks=19)
    with pytest.raises(ValueError, match="at least 20 blocks; the world has 19"):
        null_draws(few, n_draws=1, n_flips=99)
    assert "block, max-T" not in set(null_draws(few, n_draws=1, n_flips=0)["unit"])
