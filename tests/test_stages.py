"""Stages on a small world with an untrained model: contracts, caching, resuming."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from helpers import probe, stages
from helpers.cds import layer_curve
from helpers.runs import Run
from helpers.sae import SAEConfig
from helpers.stages import _study

CONFIG = SAEConfig(d_sae=48, k=4, n_epochs=2, batch_size=512)


@pytest.fixture(scope="module", autouse=True)
def small_dictionaries():
    """Use dictionaries that train in a second."""
    original = stages.train_saes.__defaults__
    stages.train_saes.__defaults__ = (CONFIG,)
    yield
    stages.train_saes.__defaults__ = original


def inputs(study, window, biosample):
    dataset = study.dataset
    return (
        torch.from_numpy(dataset.sequence([window])),
        torch.from_numpy(dataset.atac([window], biosample)).float(),
        torch.from_numpy(dataset.motif_activity[[biosample]]),
    )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tissues": ["spleen"]}, FileNotFoundError, "spleen"),
        ({"blocks": [0, 7]}, ValueError, r"blocks \[7\] do not exist"),
        ({"device": "warp"}, ValueError, "'warp' is not usable"),
        ({"data": "nowhere"}, FileNotFoundError, "nowhere"),
        ({"model": "nowhere"}, FileNotFoundError, "nowhere"),
    ],
)
def test_open_study_names_what_is_wrong(
    small_world, small_model_folder, tmp_path, options, error, message
):
    given = {
        "data": str(small_world.folder / "tissues"),
        "model": str(small_model_folder),
    }
    with pytest.raises(error, match=message):
        stages.open_study(tmp_path / "run", **(given | options))


def test_open_study_warns_of_a_model_that_predicts_nothing(
    small_world, small_model_folder, tmp_path
):
    options = {
        "data": str(small_world.folder / "tissues"),
        "model": str(small_model_folder),
    }
    for _ in range(2):  # the second time from the run folder
        with pytest.warns(UserWarning, match="projection seed 19"):
            stages.open_study(tmp_path / "run", **options)


def test_bfloat16_is_another_model_and_its_error_is_told(
    small_world, small_model_folder, tmp_path
):
    options = {
        "data": str(small_world.folder / "tissues"),
        "model": str(small_model_folder),
    }
    with pytest.raises(ValueError, match="precision must be one of"):
        stages.open_study(tmp_path / "run", precision="float16", **options)
    exact, study = (
        stages.open_study(tmp_path / "run", precision=precision, **options)
        for precision in ("float32", "bfloat16")
    )
    assert study.model_hash != exact.model_hash
    error = stages.precision_error(study)
    assert study.model.bfloat16  # as it was
    assert (error["max_error"] > 0).all()
    assert (error["max_error"] < 0.05 * error["max_value"]).all()
    pd.testing.assert_frame_equal(error, stages.precision_error(exact))
    stream = stages.extract(study).layer(1)[0, 0]
    given = probe.capture(exact.model, inputs(study, 0, 0), [1])[1][0].numpy()
    assert not np.allclose(stream, given, rtol=1e-3, atol=1e-3)
    assert np.abs(stream - given).max() < 0.05 * np.abs(given).max()


def test_pair_gives_vitro_then_vivo(small_study):
    for lineage in small_study.lineages:
        rows = small_study.design.iloc[list(small_study.pair(lineage))]
        assert list(rows["context"]) == ["in_vitro", "in_vivo"]
        assert set(rows["lineage"]) == {lineage}


def test_extract_stores_what_the_model_computes(small_study):
    store = stages.extract(small_study)
    window = 5
    for biosample in (0, 3):
        streams = probe.capture(
            small_study.model, inputs(small_study, window, biosample), [0, 1]
        )
        for layer, stream in streams.items():
            stored = store.layer(layer)[biosample, window]
            np.testing.assert_allclose(stored, stream[0], rtol=2e-3, atol=2e-3)


def test_extract_continues_after_a_kill(
    small_study, small_world, tmp_path, monkeypatch
):
    whole = stages.extract(small_study)
    study = replace(small_study, run=Run(tmp_path / "run"))
    extract_batch, done = _study._extract_batch, []

    def dies(study, store, batch, *inputs):
        if len(done) == 2:
            raise KeyboardInterrupt
        extract_batch(study, store, batch, *inputs)
        done.append(batch)

    monkeypatch.setattr(_study, "_extract_batch", dies)
    with pytest.raises(KeyboardInterrupt):
        stages.extract(study)
    assert not study.run.path("activations.zarr").exists()
    again = []

    def counts(study, store, batch, *inputs):
        again.append(batch)
        extract_batch(study, store, batch, *inputs)

    monkeypatch.setattr(_study, "_extract_batch", counts)
    store = stages.extract(study)
    assert not set(map(str, done)) & set(map(str, again))
    for layer in study.blocks:
        np.testing.assert_array_equal(store.layer(layer)[:], whole.layer(layer)[:])


def test_stages_are_made_once(small_study):
    stages.score_context(small_study)
    made = {
        path: path.stat().st_mtime_ns
        for path in small_study.run.folder.rglob("*.recipe.json")
    }
    assert len(made) >= 6
    stages.score_context(small_study)
    for path, time in made.items():
        assert path.stat().st_mtime_ns == time


def test_another_seed_makes_other_dictionaries(small_study, tmp_path):
    study = replace(small_study, run=Run(tmp_path / "run"), seed=1)
    ours = stages.train_saes(small_study)[0].W_dec
    assert not torch.equal(stages.train_saes(study)[0].W_dec, ours)


def test_feature_acts_are_codes_of_stored_streams(small_study):
    features, windows = np.array([1, 30]), np.array([2, 9])
    acts = stages.feature_acts(small_study, 1, features, windows)
    sae = stages.train_saes(small_study)[1]
    x = stages.extract(small_study).layer(1)[2, 9]
    expected = sae.encode(torch.from_numpy(x).float())[:, features]
    np.testing.assert_allclose(acts[2, 1], expected, rtol=1e-6)


def test_score_context_scores_the_windows_of_its_split(small_study):
    selected = stages.score_context(small_study, "select")
    tested = stages.score_context(small_study, "test")
    assert list(selected[["layer", "feature"]].columns) == ["layer", "feature"]
    assert len(selected) == 2 * CONFIG.d_sae
    summary = stages.summaries(small_study)[0].mean_acts
    for split, table in (("select", selected), ("test", tested)):
        windows = small_study.dataset.windows_of(split)
        pairs = [small_study.pair(x) for x in small_study.lineages]
        expected = np.mean(
            [summary[b, windows] - summary[a, windows] for a, b in pairs], axis=(0, 1)
        )
        first = table[(table["layer"] == 0) & (table["class"] != "untested")]
        np.testing.assert_allclose(
            first["delta"], expected[first["feature"]], rtol=1e-4, atol=1e-6
        )


def test_layer_counts_by_hand():
    table = pd.DataFrame(
        {
            "layer": [0, 0, 0, 1],
            "class": ["shared-vivo", "none", "untested", "lineage-only"],
            "p_bonferroni": [0.001, 0.2, np.nan, 0.3],
            "p_naive": [0.02, 0.03, np.nan, 0.04],
        }
    )
    counts = stages.layer_counts(table)
    assert counts.loc[0, "tested"] == 2
    assert counts.loc[0, "naive"] == 1  # 0.02 * 2 <= 0.05 < 0.03 * 2
    assert counts.loc[0, "shared"] == 1
    assert counts.loc[1, "naive"] == 1
    assert counts.loc[1, "shared"] == 0
    assert counts.loc[1, "lineage-only"] == 1


def test_late_early_ratio_is_that_of_the_layer_curve(small_study):
    found = stages.late_early_ratio(small_study).iloc[0]
    windows = small_study.dataset.windows_of("select")
    blocks = small_study.dataset.windows["block"].to_numpy()[windows]
    features = {
        layer: summary.mean_acts[:, windows]
        for layer, summary in stages.summaries(small_study).items()
    }
    curve = layer_curve(features, small_study.design, blocks)
    assert list(found[["early_layer", "late_layer"]]) == [0, 1]
    assert list(found[["early", "late"]]) == list(curve.table["n_called"])
    assert found["high"] == pytest.approx(curve.ratio.high)
    alone = stages.late_early_ratio(replace(small_study, blocks=[1])).iloc[0]
    assert alone["early"] == alone["late"] and alone["low"] <= 1 <= alone["high"]


# --- Blocks, dictionaries and contexts of another kind ---


def opened(small_world, small_model_folder, run, **options):
    given = {
        "data": str(small_world.folder / "tissues"),
        "model": str(small_model_folder),
    }
    return stages.open_study(run, **(given | options))


def test_another_block_is_added_to_what_is_there(
    small_world, small_model_folder, small_study, tmp_path
):
    def extracted(blocks):
        study = opened(small_world, small_model_folder, tmp_path / "run", blocks=blocks)
        return stages.extract(study)

    assert extracted([1]).layers == [1]
    before = (tmp_path / "run" / "activations.zarr" / "layer1").stat().st_mtime_ns
    both = extracted([0, 1])
    assert both.layers == [0, 1]
    after = (tmp_path / "run" / "activations.zarr" / "layer1").stat().st_mtime_ns
    assert after == before
    expected = stages.extract(small_study)
    for layer in both.layers:
        found = both.layer(layer)[:]
        np.testing.assert_array_equal(found, expected.layer(layer)[:])


def test_runs_share_the_streams_of_one(
    small_world, small_model_folder, small_study, tmp_path
):
    streams = str(small_study.run.folder)
    stages.extract(small_study)
    study = opened(
        small_world, small_model_folder, tmp_path / "run", streams=streams, seed=1
    )
    assert stages.extract(study).path == stages.extract(small_study).path
    stages.train_saes(study)
    assert not (tmp_path / "run" / "activations.zarr").exists()
    assert (tmp_path / "run" / "sae").is_dir()


def test_dictionaries_of_another_run_are_taken_over(
    small_world, small_model_folder, small_study, tmp_path
):
    own = stages.train_saes(small_study)
    data = {"data": str(small_world.folder / "tissues"), "tissues": ["liver"]}
    other = opened(
        small_world,
        small_model_folder,
        tmp_path / "run",
        saes=str(small_study.run.folder),
        **data,
    )
    for layer, sae in stages.train_saes(other).items():
        assert torch.equal(sae.W_dec, own[layer].W_dec)
        assert sae.threshold == own[layer].threshold
    card = stages.read_cards(other)
    assert set(card.loc[0].index) == {"all", "liver_in_vitro", "liver_in_vivo"}


def test_dictionaries_must_be_there_and_of_this_model(
    small_world, small_model_folder, small_study, tmp_path
):
    stages.train_saes(small_study)
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="no dictionary of block 0; no dictionary of"):
        opened(
            small_world,
            small_model_folder,
            tmp_path / "run",
            saes=str(tmp_path / "none"),
        )
    with pytest.raises(ValueError, match="belongs to model .*, not to"):
        opened(
            small_world,
            small_model_folder,
            tmp_path / "run",
            saes=str(small_study.run.folder),
            precision="bfloat16",
        )


def test_contexts_of_another_name_are_told(small_study):
    def renamed(tissue):
        pair = tuple(
            replace(b, context=c)
            for b, c in zip(tissue.pair, ("healthy", "diseased"), strict=True)
        )
        return replace(tissue, pair=pair, contrast=("healthy", "diseased"))

    dataset = type(small_study.dataset)(
        [renamed(tissue) for tissue in small_study.dataset.tissues],
        window_bp=small_study.dataset.window_bp,
    )
    study = replace(small_study, dataset=dataset, truth=None)
    pd.testing.assert_frame_equal(study.design, small_study.design)
    assert "in_vivo stands for diseased" in study.description
    assert study.pair("liver") == small_study.pair("liver")
