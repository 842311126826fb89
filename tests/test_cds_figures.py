"""Figures of the score: they draw what the tables hold, and say how much of it."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from helpers.cds import diffmean_curve, layer_curve, probe_curve
from helpers.figures import any_transformer, calibration, divergence, tables


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture
def scored():
    rng = np.random.default_rng(0)
    n = 40
    table = pd.DataFrame(
        {
            "layer": np.repeat([0, 3], n // 2),
            "feature": np.tile(np.arange(n // 2), 2),
            "class": rng.choice(["none", "shared-vivo", "lineage-only"], n),
            "driver": rng.choice(["motif", "track"], n),
            "readout": rng.choice(["on-off", "both"], n),
        }
    )
    for name in (
        "d_z d_z_low d_z_high d_z_held d_z_held_low d_z_held_high cds cds_naive delta "
        "delta_test delta_track delta_motif log_odds log_intensity"
    ).split():
        table[name] = rng.normal(size=n)
    for name in ("d_z", "d_z_held"):
        table[f"{name}_low"], table[f"{name}_high"] = table[name] - 1, table[name] + 1
    return table.assign(p=rng.random(n))


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_legends_count_what_is_drawn(scored):
    scored.loc[3, "delta_test"] = np.nan  # untested there
    vivo = (scored["class"] == "shared-vivo").sum()
    for draw in (divergence.volcano, divergence.replication):
        assert f"shared-vivo ({vivo})" in legend(draw(scored))
    called = scored["class"] != "none"
    by_motif = (called & (scored["driver"] == "motif")).sum()
    labels = legend(divergence.input_channels(scored))
    assert f"called, motif-driven ({by_motif})" in labels
    both = (scored["readout"] == "both").sum()
    assert f"both ({both})" in legend(divergence.hurdle(scored))
    above = (scored["cds"].abs() > 1).sum()
    assert legend(divergence.ranks({"CDS": scored["cds"]}, 1.0)) == [f"CDS ({above})"]
    assert len(divergence.effects(scored.head(7)).get_yticks()) == 7


def test_claims_draw_a_line_for_each_block_of_the_model():
    ladder = pd.DataFrame(
        {"replicates": ["windows", "blocks"], 0: [9, 2.5], 3: [8, 1], "all": [17, 3.5]},
        index=["naive", "placebo: held"],
    )
    ax = divergence.claims(ladder)
    assert legend(ax) == ["block 0", "block 3"]
    labels = [text.get_text() for text in ax.get_yticklabels()]
    assert labels == ["naive  [windows]", "placebo: held  [blocks]"]
    assert list(ax.lines[0].get_xdata()) == [9, 2.5]


def test_layer_curves_draw_all_three_panels():
    rng = np.random.default_rng(1)
    design = pd.DataFrame(
        {
            "biosample": list("abcd"),
            "lineage": ["x", "x", "y", "y"],
            "context": ["in_vitro", "in_vivo"] * 2,
        }
    )
    blocks = np.repeat(np.arange(20), 4)
    features = {k: rng.random((4, 80, 12)) for k in (0, 1)}
    curve = layer_curve(features, design, blocks, n_draws=20)
    lengths = diffmean_curve(features, design, blocks)
    probes = probe_curve(features, design, train=np.arange(40), test=np.arange(40, 80))
    held = pd.Series([1, 2], index=[0, 1])
    axes = plt.subplots(1, 3)[1]
    divergence.layer_curves(curve.table, held, probes, lengths, axes)
    assert all(ax.has_data() for ax in axes)
    assert "chromosomes and x" in legend(axes[1])


def test_calibration_figures_draw_their_tables():
    shares = pd.DataFrame({"no effect": [0.5, 0.05]}, index=["token", "block"])
    ax = calibration.units(shares)
    assert list(ax.lines[0].get_xdata()) == [0.5, 0.05]
    p = np.linspace(0, 1, 9)
    assert legend(calibration.p_values({"block": p})) == ["block"]
    assert len(legend(calibration.power_curves([20, 40], n_tests=100))) == 2
    curve = pd.DataFrame(
        {"autocorrelation": [0.3, np.nan], "adjacent": [0.2, 0.1], "n_called": [4, 3]},
        index=[1000, 2000],
    )
    axes = plt.subplots(1, 2)[1]
    calibration.block_lengths({"as measured": curve}, 1500.0, axes)
    assert len(legend(axes[0])) == 2
    counts = pd.DataFrame({"E1": [9], "E1, held": [3], "E3, held": [1]}, index=[3])
    decoys = pd.DataFrame({"layer": 3, "contrast": [0, 1], "n_called": [2, 4]})
    ax = calibration.placebo(counts, decoys)
    assert "placebo contrast (n = 2 per block)" in legend(ax)


def test_motif_features_share_the_legend_of_called(scored):
    table = scored.assign(motif=scored["cds"], change=scored["d_z"])
    table = table.assign(called=table["class"] != "none")
    axes = plt.subplots(1, 2)[1]
    any_transformer.motif_features({"block 0": table, "block 1": table}, axes)
    assert f"called ({table['called'].sum()})" in legend(axes[1])


def test_feature_table_anchors_rows_and_links_pages_that_exist(scored):
    html = tables.feature_table(
        scored[["layer", "feature", "cds"]].head(2),
        pages={(0, 1): "features/block0-1.html"},
    ).to_html()
    assert tables.feature_anchor(0, 0) == "block0-0"
    assert '<span id="block0-0">block 0, feature 0</span>' in html
    assert '<span id="block0-1"><a href="features/block0-1.html">' in html


def test_feature_table_escapes_names_that_come_from_files():
    table = pd.DataFrame(
        {"layer": [0], "feature": [1], "motif": ["<script>x</script>"]}
    )
    assert "<script>" not in tables.feature_table(table).to_html()
