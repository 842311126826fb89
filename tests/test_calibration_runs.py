"""Passes, null worlds and control models of a small run with an untrained model."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from helpers import calibration, stages, truth
from helpers.calibration import FactorContributions
from helpers.confounders import PassInput, held_passes
from helpers.runs import Run
from helpers.sae import SAEConfig
from helpers.windows import WindowDataset

CONFIG = SAEConfig(d_sae=48, k=12, n_epochs=2, batch_size=512)


@pytest.fixture(scope="module", autouse=True)
def small_dictionaries():
    """Use dictionaries that train in a second."""
    original = stages.train_saes.__defaults__
    stages.train_saes.__defaults__ = (CONFIG,)
    yield
    stages.train_saes.__defaults__ = original


@pytest.fixture(scope="module")
def study(small_study, tmp_path_factory):
    return replace(small_study, run=Run(tmp_path_factory.mktemp("cal") / "run"))


def test_passes_with_own_inputs_are_the_summaries_of_the_run(study):
    dataset = calibration.with_replicates(study)
    assert len(dataset.biosamples) == 2 * len(study.design)
    windows = np.array([0, 5, 17])
    passes = [PassInput(2, (2,)), PassInput(0, (0,)), PassInput(2, (2,))]
    found = calibration.pass_summaries(study, "own", dataset, windows, passes)
    for layer, summary in stages.summaries(study).items():
        expected = summary.mean_acts[[2, 0, 2]][:, windows]
        # Streams are rounded to half precision: a token may fall on the other side.
        np.testing.assert_allclose(found[layer].mean_acts, expected, 1e-3, 1e-5)
    again = calibration.pass_summaries(study, "own", dataset, windows, passes)
    np.testing.assert_array_equal(again[1].squares, found[1].squares)


def test_replicates_must_be_there(study):
    alone = [replace(tissue, replicates=()) for tissue in study.dataset.tissues]
    dataset = WindowDataset(alone, window_bp=study.dataset.window_bp)
    with pytest.raises(ValueError, match="blood.yml: no replicates are named"):
        calibration.with_replicates(replace(study, dataset=dataset))


def test_factor_contributions_sum_to_the_mean_activation(study):
    dataset = calibration.with_replicates(study)
    windows = study.dataset.windows_of("select")
    passes = held_passes(calibration.samples_of(dataset))[:3]
    summary = calibration.pass_summaries(
        study, "sites", dataset, windows, passes, layers=[1], sites=True
    )[1]
    found = calibration.factor_contributions(study, windows, summary)
    assert found.factors[1:] == list(truth.read_factors(study)["name"])
    np.testing.assert_allclose(
        found.parts.sum(axis=1), summary.mean_acts.mean(axis=1), rtol=1e-3, atol=1e-6
    )
    plain = calibration.pass_summaries(study, "plain", dataset, windows[:2], passes)[1]
    with pytest.raises(ValueError, match="sites=True.*it holds 0 weights"):
        calibration.factor_contributions(study, windows[:2], plain)


def test_attribute_calls_names_what_carries_the_difference(study):
    dataset = calibration.with_replicates(study)
    samples = calibration.samples_of(dataset)
    factors = ["", *truth.read_factors(study)["name"]]
    values = np.zeros((len(samples), len(factors), 3))
    vivo = (samples["context"] == "in_vivo").to_numpy()
    liver = (samples["lineage"] == "liver").to_numpy()
    values[~vivo, factors.index("AP-1"), 0] = 3.0  # higher in vitro
    values[vivo, factors.index("CTCF"), 0] = 1.0
    values[vivo, 0, 1] = 2.0  # every token alike
    values[vivo & liver, factors.index("FOXA2"), 2] = 1.0
    table = pd.DataFrame(
        {
            "class": ["shared-vitro", "shared-vivo", "lineage-only", "none"],
            "lineages": ["blood,liver", "blood,liver", "liver", ""],
            "delta_blood": [-2.0, 2.0, 0.0, 0.0],
            "delta_liver": [-2.0, 2.0, 1.0, 0.0],
        }
    )
    found = calibration.attribute_calls(
        study, FactorContributions(factors, values), samples, table
    )
    assert found["factor"].tolist() == ["AP-1", "", "FOXA2"]
    assert found["role"].tolist() == ["shared-vitro", "shift", "lineage-vivo"]
    np.testing.assert_allclose(found["share"], [1.5, 1, 1])


def test_null_data_share_the_lineages_and_can_be_thinned(study):
    data = calibration.null_data(study, "depth-only")
    samples = calibration.samples_of(data.dataset)
    assert set(samples["lineage"]) == set(study.lineages)
    assert pd.Series(data.blocks).value_counts().unique().tolist() == [8]
    assert len(set(data.blocks)) == 48
    windows = range(len(data.dataset.windows))

    def height(dataset):
        return np.array([dataset.track(windows, b).sum() for b in range(4)])

    before = height(data.dataset)
    ratio = before[1::2].sum() / before[::2].sum()
    assert ratio == pytest.approx(1.6, rel=0.1)
    equal = calibration.equal_depth_data(study, data)
    after = height(equal.dataset)
    assert after[1::2].sum() / after[::2].sum() == pytest.approx(1, abs=0.05)
    with pytest.raises(ValueError, match="simulated data only"):
        calibration.null_data(replace(study, truth=None), "no-effect")


def test_random_weights_run_through_the_same_stages(study):
    control = calibration.random_weights(study, layers=[1])
    assert control.model_hash != study.model_hash
    assert control.run.folder.parent == study.run.folder
    assert not control.model.training
    assert set(stages.score_context(control)["layer"]) == {1}


def test_stream_means_are_means_of_stored_streams(study):
    means = calibration.stream_means(study)
    stored = stages.extract(study).layer(1)[3, 9].astype(np.float32)
    np.testing.assert_allclose(means[1][3, 9], stored.mean(axis=0), rtol=1e-5)


def test_gather_evidence_counts_what_its_tables_hold(study):
    evidence = calibration.gather_evidence(study, n_contrasts=3)
    assert list(evidence.counts.index) == study.blocks
    scores = stages.score_context(study)
    for key in ("layer", "feature", "class"):
        assert list(evidence.features[key]) == list(scores[key])
    for layer, line in evidence.counts.iterrows():
        own = evidence.features[evidence.features["layer"] == layer]
        called = own[~own["class"].isin(["none", "untested"])]
        assert line["E1"] == len(called) <= line["tested"]
        assert line["motif-driven"] == (called["driver"] == "motif").sum()
        for column, name in (
            ("class_held", "E1, held"),
            ("class_e3", "E3"),
            ("class_e3_held", "E3, held"),
        ):
            assert line[name] == (~own[column].isin(["none", "untested"])).sum()
        named = evidence.carried.query("layer == @layer")
        replicated = own[~own["class_e3_held"].isin(["none", "untested"])]
        assert list(named["feature"]) == list(replicated["feature"])
        decoys = evidence.placebo.query("layer == @layer")["n_called"]
        assert len(decoys) == 3 and line["placebo, held"] == decoys.mean()
        np.testing.assert_allclose(
            own["delta_track"] + own["delta_motif"], own["delta_total"], atol=1e-6
        )


def test_claim_ladder_counts_every_claim_per_layer(study):
    evidence = calibration.gather_evidence(study, n_contrasts=3)
    scores = stages.score_context(study)
    ladder = calibration.claim_ladder(scores, evidence)
    assert list(ladder.columns) == ["replicates", *study.blocks, "all"]
    np.testing.assert_allclose(ladder[study.blocks].sum(axis=1), ladder["all"])
    counts = stages.layer_counts(scores)
    assert list(ladder.loc["naive t, Bonferroni", study.blocks]) == list(
        counts["naive"]
    )
    own = evidence.features
    track = ~own["class"].isin(["none", "untested"]) & (own["driver"] == "track")
    assert ladder.loc["E1, not driven by the motif activity", "all"] == track.sum()
    held = evidence.features["q_placebo"] <= 0.05
    assert ladder.loc["E1 held, placebo rate at most 5%", "all"] == held.sum()
    p = evidence.features["p_partial_held"]
    n_tested = p.notna().groupby(evidence.features["layer"]).transform("sum")
    assert ladder.loc["... at equal signal too", "all"] == (p * n_tested <= 0.05).sum()
    assert ladder.loc["E3, motif activity held", "replicates"] == "biosamples"
    with pytest.raises(ValueError, match="same layers and features"):
        calibration.claim_ladder(scores.iloc[1:], evidence)


def test_gather_evidence_is_kept_and_knows_its_recipe(study, monkeypatch):
    first = calibration.gather_evidence(study, n_contrasts=3)

    def refuse(*args, **kwargs):
        raise AssertionError("scored again")

    monkeypatch.setattr("helpers.calibration._evidence.input_swap", refuse)
    again = calibration.gather_evidence(study, n_contrasts=3)
    pd.testing.assert_frame_equal(again.features, first.features)
    with pytest.raises(AssertionError, match="scored again"):
        calibration.gather_evidence(study, n_contrasts=2)


def test_gather_evidence_without_replicates_leaves_out_what_needs_them(study, tmp_path):
    alone = [replace(tissue, replicates=()) for tissue in study.dataset.tissues]
    dataset = WindowDataset(alone, window_bp=study.dataset.window_bp)
    bare = replace(study, dataset=dataset, run=Run(tmp_path / "bare"))
    evidence = calibration.gather_evidence(bare)
    with_them = calibration.gather_evidence(study, n_contrasts=3)
    assert "E3" not in evidence.counts and "q_placebo" not in evidence.features
    assert evidence.placebo.empty and evidence.carried.empty
    shared = ["E1", "motif-driven", "E1, held"]
    pd.testing.assert_frame_equal(evidence.counts[shared], with_them.counts[shared])


def test_depth_sensitivity_compares_tracks_that_keep_the_same_cuts(study):
    found = calibration.depth_sensitivity(study, 0)
    assert found.calls.loc["as sequenced", ["kept", "rank_correlation"]].tolist() == [
        pytest.approx(1.0),
        pytest.approx(1.0),
    ]
    assert found.calls["kept"].between(0, 1).all()
    frip = found.tracks.groupby("tracks")["frip"].agg(np.ptp)
    assert frip["equal depth and FRiP"] < 0.5 * frip["equal depth"]
    cuts = found.tracks.assign(cuts=lambda t: t["inside"] + t["outside"])
    spread = cuts.groupby("tracks")["cuts"].agg(lambda x: x.max() / x.min())
    assert spread["as sequenced"] > 1.2 > 1.1 > spread["equal depth"]
    tissues = [
        replace(t, pair=(t.pair[0], replace(t.pair[1], signal_kind="coverage")))
        for t in study.dataset.tissues
    ]
    coverage = WindowDataset(tissues, window_bp=study.dataset.window_bp)
    with pytest.raises(ValueError, match="'blood_in_vivo': only cut sites"):
        calibration.depth_sensitivity(replace(study, dataset=coverage), 1)


@pytest.mark.slow
def test_null_calls_name_every_test(study):
    found = calibration.null_calls(study, "depth-only", 1)
    assert {"token", "block", "biosample", "block, motifs held"} <= set(
        found.table.index
    )
    assert {"block, equal signal", "block, equal depth"} <= set(found.table.index)
    assert found.table["share"].between(0, 1).all()
    plain, equal = found.table.loc[
        ["block, motifs held", "block, equal depth"], "share"
    ]
    assert equal < plain
    assert 0 <= found.motif_share <= 1
