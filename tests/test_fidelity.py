"""Reconstructions in the place of streams: what must hold of any of them."""

import numpy as np
import pandas as pd
import pytest
import torch

from helpers import fidelity, stages
from helpers.sae import SAEConfig

CONFIG = SAEConfig(d_sae=48, k=4, n_epochs=2, batch_size=512)


@pytest.fixture(scope="module")
def sums(small_study):
    means = {}
    store = stages.extract(small_study)
    for layer in small_study.blocks:
        means[layer] = store.rows(layer, splits=["select"]).rows.mean(0)
    edits = {
        layer: {
            "identity": lambda x: x,
            "mean": lambda x, m=mean: m.expand_as(x),
            "zero": torch.zeros_like,
            "reversed": lambda x: -3 * x,
        }
        for layer, mean in means.items()
    }
    return fidelity.splice_losses(small_study, edits, means)


def test_identity_is_1_and_the_ablations_are_0(sums):
    table = fidelity.with_recovery(sums, ("layer", "name", "tokens", "biosample"))
    assert len(table) == 2 * 4 * 2 * 4
    by_name = table.set_index("name")
    np.testing.assert_allclose(by_name.loc["identity", "recovered"], 1, atol=1e-9)
    np.testing.assert_allclose(by_name.loc["identity", "gap_closed"], 1, atol=1e-9)
    np.testing.assert_allclose(by_name.loc["mean", "recovered"], 0, atol=1e-6)
    np.testing.assert_allclose(by_name.loc["zero", "recovered_from_zero"], 0, atol=1e-6)
    own = table.groupby(["tokens", "biosample"])["loss"].agg(["min", "max"])
    np.testing.assert_allclose(own["min"], own["max"], rtol=1e-12)


def test_shares_are_not_clipped(sums):
    table = fidelity.with_recovery(sums, ("name", "tokens"))
    worst = table[table["name"] == "reversed"]
    assert not worst["recovered"].between(0, 1).all()


def test_sums_add_up_over_what_is_left_out(sums):
    fine = fidelity.with_recovery(sums, ("layer", "name", "tokens", "biosample"))
    coarse = fidelity.with_recovery(sums, ("layer", "name", "tokens"))
    for _, line in coarse.iterrows():
        part = fine[
            (fine["layer"] == line["layer"])
            & (fine["name"] == line["name"])
            & (fine["tokens"] == line["tokens"])
        ]
        assert part["n_tokens"].sum() == line["n_tokens"]
        mean = np.average(part["loss_edited"], weights=part["n_tokens"])
        assert mean == pytest.approx(line["loss_edited"])


def test_all_tokens_are_scored_as_the_model_predicts_them(small_study, sums):
    """The loss of unhidden input, recomputed window by window."""
    dataset, crop = small_study.dataset, small_study.model.config.crop
    test = dataset.windows_of("test")
    total = 0.0
    for window in test[np.linspace(0, len(test) - 1, min(32, len(test))).astype(int)]:
        inputs = (
            torch.from_numpy(dataset.sequence([window])),
            torch.from_numpy(dataset.atac([window], 1)).float(),
            torch.from_numpy(dataset.motif_activity[[1]]),
        )
        with torch.no_grad():
            predicted = small_study.model(*inputs)[0].double().numpy()
        target = dataset.target([window], 1)[0, crop:-crop]
        total += (predicted - target * np.log(predicted + 1e-7)).sum()
    name = small_study.design["biosample"][1]
    rows = sums[(sums["biosample"] == name) & (sums["tokens"] == "all")]
    np.testing.assert_allclose(rows["loss"], total, rtol=1e-4)


def test_hidden_tokens_are_fewer_and_harder(sums):
    counts = sums.groupby("tokens")["n_tokens"].first()
    assert 0 < counts["hidden"] < counts["all"]


def test_loss_recovered_of_contexts_lies_between_biosamples(small_study, monkeypatch):
    monkeypatch.setattr(stages.train_saes, "__defaults__", (CONFIG,))
    fine = fidelity.loss_recovered(small_study)
    assert list(fine.columns[:3]) == ["layer", "tokens", "biosample"]
    coarse = fidelity.loss_recovered(small_study, ("layer", "tokens", "context"))
    context = small_study.design.set_index("biosample")["context"]
    fine["context"] = fine["biosample"].map(context)
    for _, line in coarse.iterrows():
        same = (
            fine[["layer", "tokens", "context"]] == line[["layer", "tokens", "context"]]
        ).all(axis=1)
        part = fine.loc[same, "loss_edited"]
        assert part.min() - 1e-9 <= line["loss_edited"] <= part.max() + 1e-9
    again = fidelity.loss_recovered(small_study)
    pd.testing.assert_frame_equal(again, fine.drop(columns="context"))


def test_a_layer_without_mean_is_named(small_study):
    with pytest.raises(ValueError, match=r"\[0\] lack one"):
        fidelity.splice_losses(small_study, {0: {"same": lambda x: x}}, {})
