"""Planted factors are named from sites, and recovery is counted by the rule."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from helpers import truth


@pytest.fixture
def planted_acts(small_study, monkeypatch):
    """Features that fire on sites: AP-1 in vitro, HNF4A alike in both, noise."""

    def feature_acts(study, layer, features, windows):
        sites = truth.factor_sites(study, windows)
        shape = (len(windows), study.dataset.n_tokens)
        ap1 = sites["AP-1"].to_numpy().reshape(shape)
        hnf4a = sites["HNF4A"].to_numpy().reshape(shape)
        rng = np.random.default_rng(0)
        acts = np.zeros((len(study.design), *shape, len(features)), np.float32)
        for b, context in enumerate(study.design["context"]):
            acts[b, ..., 0] = ap1 * (context == "in_vitro")
            acts[b, ..., 1] = hnf4a
            acts[b, ..., 2] = rng.random(shape) < 0.1
        return acts

    monkeypatch.setattr(truth, "feature_acts", feature_acts)


def test_match_features_names_the_factor_behind_a_context_feature(
    small_study, planted_acts
):
    found = truth.match_features(small_study, 0, np.array([4, 5, 6]), split="select")
    assert list(found["feature"]) == [4, 5, 6]
    # HNF4A fires, but no different in the two contexts: nothing to name.
    assert list(found["factor"]) == ["AP-1", "", ""]
    assert found.loc[0, "share"] == 1.0


def test_factor_sites_need_two_hits(small_study):
    windows = small_study.dataset.windows_of("select")[:3]
    sites = truth.factor_sites(small_study, windows)
    tokens = small_study.dataset.token_table(windows)
    table = pd.read_parquet(small_study.truth / "sites.parquet")
    merged = tokens.merge(table, on=["chrom", "start"], how="left")
    np.testing.assert_array_equal(sites["CTCF"], merged["CTCF"] >= 2)


def test_planted_class_follows_role_and_lineage(small_study):
    factors = truth.read_factors(small_study).set_index("name", drop=False)
    assert truth.planted_class(small_study, factors.loc["AP-1"]) == (
        "in_vitro",
        {"blood", "liver"},
    )
    assert truth.planted_class(small_study, factors.loc["SPI1"])[1] == {"blood"}
    assert truth.planted_class(small_study, factors.loc["HNF4A"]) == ("", set())
    assert "EBF1" not in factors.index  # acts in lymph only


def test_factor_recovery_asks_for_sign_and_lineage(small_study):
    called = pd.DataFrame(
        [
            (0, 1, -1.0, -1.0, "blood,liver", "AP-1"),  # right
            (0, 2, 1.0, -3.0, "blood", "SPI1"),  # right, whatever liver does
            (1, 3, 1.0, 1.0, "liver", "RUNX1"),  # planted in blood only
            (1, 4, 1.0, -1.0, "liver", "FOXA2"),  # wrong sign in its lineage
            (1, 5, 1.0, 1.0, "liver", "CTCF"),  # a factor without context effect
        ],
        columns=[
            "layer",
            "feature",
            "delta_blood",
            "delta_liver",
            "lineages",
            "factor",
        ],
    )
    table = truth.factor_recovery(small_study, called).set_index("factor")
    assert table["found"].drop("CTCF").sum() == 2
    assert table.loc[["AP-1", "SPI1", "CTCF"], "found"].all()
    assert table.loc["CTCF", "higher_in"] == ""


def test_read_factors_refuses_real_data(small_study):
    with pytest.raises(ValueError, match="simulated data only"):
        truth.read_factors(replace(small_study, truth=None))
