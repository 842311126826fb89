"""Counts at equal numbers of tests, and the two curves without a dictionary."""

import numpy as np
import pytest

from helpers.cds import diffmean_curve, layer_curve, probe_curve
from test_cds import VIVO, make_design, make_world


def test_layer_curve_counts_at_equal_tests():
    early, design, blocks = make_world(n_features=200, seed=1)
    late, _, _ = make_world(n_features=200, seed=2)
    early[VIVO, :, :10] += 0.6
    late[VIVO, :, :40] += 0.6
    early[:, :, 150:] = 0  # fewer alive: 150 can be tested
    curve = layer_curve({0: early, 3: late}, design, blocks, n_draws=200)
    assert curve.table["n_testable"].tolist() == [150, 200]
    assert curve.table["n_tests"].tolist() == [150, 150]
    # The most active are kept, and the context features are among them.
    assert curve.table["n_called"].tolist() == pytest.approx([10, 40], abs=2)
    assert (curve.table["low"] <= curve.table["n_called"] + 0.5).all()
    assert (curve.table["high"] >= curve.table["n_called"]).all()
    assert curve.ratio.early == curve.table.loc[0, "n_called"]
    assert curve.ratio.low < 4 < curve.ratio.high or curve.ratio.ratio > 3
    assert curve.table["n_strong"].min() >= 8


def test_layer_curve_refuses_layers_without_tests():
    features, design, blocks = make_world(n_features=5)
    with pytest.raises(ValueError, match="at least two layers; got 1"):
        layer_curve({0: features}, design, blocks)
    with pytest.raises(ValueError, match="layer 1 has no feature"):
        layer_curve({0: features, 1: np.zeros_like(features)}, design, blocks)


def streams(seed=3, shift=0.0, own=0.0):
    """Streams of six biosamples: a context direction, and one for each biosample."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(6, 200, 12))
    values[VIVO, :, 0] += shift
    values += own * rng.normal(size=(6, 1, 12))
    return values, make_design(), np.repeat(np.arange(20), 10)


def test_diffmean_is_the_length_of_the_planted_shift():
    values, design, blocks = streams(shift=3.0)
    curve = diffmean_curve({2: values}, design, blocks)
    assert curve.loc[2, "diffmean"] == pytest.approx(3 / np.sqrt(12), rel=0.05)
    null = diffmean_curve({2: streams()[0]}, design, blocks).loc[2]
    assert null["diffmean"] == pytest.approx(null["by_chance"], rel=0.6)


def test_probe_on_a_held_out_lineage_knows_context_from_biosample():
    train, test = np.arange(120), np.arange(120, 200)

    def auc(**world):
        values, design, _ = streams(**world)
        table = probe_curve({0: values}, design, train=train, test=test)
        return table.set_index("held_out")["auc"]

    context = auc(shift=2.0)
    assert context.min() > 0.85
    # Biosamples that differ each in their own way: told apart, but not by context.
    own = auc(own=2.0)
    assert own["chromosomes"] > 0.9
    assert own.drop("chromosomes").max() < 0.8
    assert auc().sub(0.5).abs().max() < 0.12


def test_probe_curve_refuses_to_judge_what_it_learned_from():
    values, design, _ = streams()
    with pytest.raises(ValueError, match="must not share windows"):
        probe_curve({0: values}, design, train=np.arange(9), test=np.arange(8, 20))
    with pytest.raises(ValueError, match="at least 2; got 1"):
        probe_curve(
            {0: values[:2]}, make_design(1), train=np.arange(9), test=np.arange(9, 20)
        )
