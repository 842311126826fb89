"""Scores of hidden tokens against slow references."""

import numpy as np
import pytest

from helpers import masked
from helpers.windows import token_targets


def test_correlation_interval_equals_numpy():
    rng = np.random.default_rng(0)
    x = rng.normal(size=400)
    y = 0.6 * x + rng.normal(size=400)
    blocks = np.repeat(np.arange(40), 10)
    r, low, high = masked.correlation_interval(x, y, blocks)
    assert r == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-12)
    assert low < r < high
    wide = masked.correlation_interval(x, y, np.repeat(np.arange(4), 100))
    assert wide[0] == pytest.approx(r)


def test_average_track_leaves_the_biosample_out(small_study):
    dataset, windows = small_study.dataset, np.array([0, 7])
    averages = masked._average_track(dataset, windows)
    signal = [token_targets(dataset.track(windows, b)) for b in range(4)]
    others = (signal[0] + signal[2] + signal[3]) / 3
    np.testing.assert_allclose(averages[1], others, rtol=1e-4, atol=1e-4)


def test_masked_scores_rank_the_ceiling_first(small_study):
    scores = masked.masked_scores(small_study)
    assert set(scores["method"]) == set(masked.METHODS)
    per_lineage = scores[scores["tokens"] == "all"].pivot(
        index="lineage", columns="method", values="r"
    )
    assert (per_lineage["noise ceiling"] > 0.8).all()
    # An untrained model knows nothing; the track knows the locus.
    assert (per_lineage["average track"] > per_lineage["model"]).all()
    counts = scores.pivot_table(index="lineage", columns="tokens", values="n")
    assert (counts["differential"] < counts["all"]).all()


def test_locus_hides_every_token_it_predicts(small_study):
    window = int(small_study.dataset.windows_of("test")[0])
    table = masked.locus(small_study, window, "liver")
    assert len(table) == 2 * small_study.model.config.n_outputs
    np.testing.assert_allclose(
        table["measured"].to_numpy()[: small_study.model.config.n_outputs],
        small_study.dataset.target([window], small_study.pair("liver")[0])[0, 2:-2],
    )
    assert np.isfinite(table["predicted"]).all()
