"""Block lengths: planted autocorrelation is measured and ends where it should."""

import numpy as np
import pandas as pd
import pytest

from helpers.calibration import (
    block_length_curve,
    candidate_lengths,
    choose_block_length,
)

DESIGN = pd.DataFrame(
    {
        "biosample": ["a0", "a1", "b0", "b1"],
        "lineage": ["a", "a", "b", "b"],
        "context": ["in_vitro", "in_vivo"] * 2,
    }
)
STEP = 1000


def tiled(n_chromosomes=12, per_chromosome=64):
    chrom = np.repeat([f"chr{i}" for i in range(n_chromosomes)], per_chromosome)
    start = np.tile(np.arange(per_chromosome) * STEP, n_chromosomes)
    return pd.DataFrame({"chrom": chrom, "start": start})


def drawn(windows, stretch, *, n_features=60, effect=0.0, seed=0):
    """Differences whose noise is shared by stretches of so many windows."""
    rng = np.random.default_rng(seed)
    shape = (4, len(windows) // stretch, n_features)
    noise = np.repeat(rng.normal(size=shape), stretch, axis=1)
    features = 10 + noise + 0.5 * rng.normal(size=noise.shape)
    features[1::2, :, :5] += effect
    return features


def test_independent_windows_need_no_longer_blocks():
    windows = tiled()
    lengths = candidate_lengths(windows)
    assert lengths[0] == STEP and lengths[1] == 2 * STEP
    curve = block_length_curve(drawn(windows, 1), DESIGN, windows, lengths)
    assert curve["autocorrelation"].abs().max() < 0.05
    assert choose_block_length(curve) == STEP
    assert curve.loc[STEP, "n_blocks"] == len(windows)


def test_shared_stretches_ask_for_longer_blocks():
    windows, stretch = tiled(), 8
    lengths = candidate_lengths(windows)
    features = drawn(windows, stretch, effect=1.0)
    curve = block_length_curve(features, DESIGN, windows, lengths)
    # Of two windows k apart, 1 - k / 8 share a stretch; 4 / 5 of a variance is shared.
    for k in (1, 2):
        expected = (1 - k / stretch) * 2 / 2.5
        assert curve.loc[k * STEP, "autocorrelation"] == pytest.approx(
            expected, abs=0.05
        )
    assert choose_block_length(curve) == stretch * STEP
    assert curve.loc[STEP, "adjacent"] > 0.5 > 0.1 > curve.loc[8 * STEP, "adjacent"]
    # Too short a block claims a precision that is not there.
    assert curve.loc[STEP, "n_called"] > curve.loc[stretch * STEP, "n_called"] >= 5
    assert curve.loc[stretch * STEP, "se_ratio"] > 1.5


def test_correlation_equals_a_slow_reference():
    windows = tiled(3, 10).sample(frac=1, random_state=0)
    features = drawn(windows, 2, n_features=3)
    features[:, ::3] += 1.0
    curve = block_length_curve(features, DESIGN, windows, [2 * STEP])
    chrom, start = windows["chrom"].to_numpy(), windows["start"].to_numpy()
    found = []
    for low, high in ((0, 1), (2, 3)):
        d = features[high] - features[low]
        d = d - d.mean(axis=0)
        products = [
            d[i] * d[j]
            for i in range(len(d))
            for j in range(len(d))
            if chrom[i] == chrom[j] and start[j] - start[i] == 2 * STEP
        ]
        found.append(np.mean(products, axis=0) / np.mean(d**2, axis=0))
    assert curve["autocorrelation"].iloc[0] == pytest.approx(np.mean(found))


def test_lengths_without_such_windows_are_unknown():
    windows = tiled(10, 2)
    curve = block_length_curve(drawn(windows, 1), DESIGN, windows, [STEP, 9 * STEP])
    assert np.isnan(curve.loc[9 * STEP, "autocorrelation"])


def test_lengths_that_change_nothing_are_left_out():
    near = tiled(12, 4)
    far = near.assign(start=near["start"] + 512 * STEP)
    assert candidate_lengths(pd.concat([near, far]))[:4] == [
        STEP,
        2 * STEP,
        4 * STEP,
        1024 * STEP,
    ]


def test_chosen_length_must_stay_below_the_limit():
    curve = pd.DataFrame(
        {
            "autocorrelation": [0.05, 0.3, np.nan, 0.02],
            "adjacent": [0.05, 0.1, 0.04, np.nan],
        },
        index=[1, 2, 4, 8],
    )
    assert choose_block_length(curve) == 4
    assert choose_block_length(curve, limit=0.4) == 1
    assert choose_block_length(curve.assign(adjacent=[0, 0, 0.2, 0])) == 8
    with pytest.raises(ValueError, match="8 bp still correlate at 0.02"):
        choose_block_length(curve, limit=0.01)
    with pytest.raises(ValueError, match="no two windows"):
        choose_block_length(curve * np.nan)


def test_bad_input_is_named():
    windows = tiled(12, 4)
    features = drawn(windows, 1)
    with pytest.raises(ValueError, match="positive and ascending"):
        block_length_curve(features, DESIGN, windows, [2000, 1000])
    with pytest.raises(ValueError, match="48 rows"):
        block_length_curve(features, DESIGN, windows.iloc[:-1], [1000])
    with pytest.raises(ValueError, match="no chromosome has two"):
        candidate_lengths(windows.drop_duplicates("chrom"))
    with pytest.raises(ValueError, match="fewer than 5"):
        candidate_lengths(windows[windows["chrom"] == "chr0"])
