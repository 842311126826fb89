"""Figures of the causal tests: what is drawn, and the slider that works without us."""

import base64
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from helpers.causal import SteeredLocus
from helpers.figures import causal as figures_causal
from helpers.figures import steering as figures_steering
from helpers.figures.dose_slider import dose_slider, render_doses, steered_tracks


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def small_locus():
    rng = np.random.default_rng(0)
    n = 12
    base, target = rng.random(n), rng.random(n) + 1
    return SteeredLocus(
        "chr3:1,000-2,536",
        "liver",
        2,
        1.5,
        1000 + 128 * (np.arange(n) + 0.5),
        np.where(np.arange(n) < 4, "vivo-up", ""),
        base,
        target,
        {0.0: base, 1.5: (base + target) / 2},
    )


def test_steered_tracks_draws_base_target_and_the_dose():
    locus = small_locus()
    ax = steered_tracks(locus, 1.5)
    drawn = {line.get_label(): line.get_ydata() for line in ax.lines}
    np.testing.assert_array_equal(drawn["in vitro"], locus.base)
    np.testing.assert_array_equal(drawn["in vivo"], locus.target)
    np.testing.assert_array_equal(drawn["in vitro, steered by 1.5"], locus.steered[1.5])
    with pytest.raises(ValueError, match="dose must be one of"):
        steered_tracks(locus, 7.0)


def test_dose_slider_holds_every_picture_and_asks_for_nothing():
    images = render_doses(small_locus())
    assert list(images) == [0.0, 1.5]
    assert all(picture.startswith(b"\x89PNG") for picture in images.values())
    texts = ["no change", "half <way>"]
    html = dose_slider(images, start=1.5, label="Dose & more:", descriptions=texts)
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    assert [base64.b64decode(f) for f in found] == list(images.values())
    rest = re.sub(r'base64,[^"]+', "", html)
    assert not re.search(r"https?:|//|src=\"(?!data:)|import |fetch", rest)
    shown = re.findall(r"<img[^>]*>", html)
    # Without a script one picture is seen, that of the start.
    assert [" hidden>" in picture for picture in shown] == [True, False]
    assert 'alt="half &lt;way&gt;"' in shown[1]
    assert "<label hidden>Dose &amp; more:" in html
    assert 'value="1"' in html
    assert 'aria-valuetext="1.5"' in html


@pytest.mark.parametrize(
    ("images", "start", "texts"),
    [({}, 0.0, []), ({1.0: b""}, 0.0, ["a"]), ({1.0: b""}, 1.0, [])],
)
def test_dose_slider_refuses_what_does_not_fit(images, start, texts):
    with pytest.raises(ValueError, match="start dose and one description each"):
        dose_slider(images, start=start, label="", descriptions=texts)


def test_block_heatmap_counts_lineages_that_stand_out():
    rows = [
        (layer, lineage, "vivo-to-vitro", outcome, -0.5 * (layer + 1), p)
        for layer in (0, 1)
        for outcome in ("vivo-up", "loss")
        for lineage, p in (("a", 0.01), ("b", 0.2))
    ]
    columns = ["layer", "lineage", "direction", "outcome", "difference", "p"]
    ax = figures_causal.block_heatmap(pd.DataFrame(rows, columns=columns), "difference")
    texts = [text.get_text() for text in ax.texts]
    assert texts == ["-0.500\n(1)"] * 2 + ["-1.000\n(1)"] * 2
    (image,) = ax.images
    assert image.get_clim() == (-1.0, 1.0)


def test_ablation_effects_say_when_nothing_was_measured():
    nothing = pd.DataFrame(columns=["layer", "lineage", "effect"])
    ax = figures_causal.ablation_effects(nothing, nothing)
    assert [text.get_text() for text in ax.texts] == ["not measured"]


def test_lineage_heatmap_puts_the_diagonal_where_it_belongs():
    rows = [
        ("a", "a", -0.5, 7),
        ("a", "b", 0.0, 7),
        ("b", "a", 0.1, 3),
        ("b", "b", -0.2, 3),
    ]
    table = pd.DataFrame(rows, columns=["features", "lineage", "effect", "n_features"])
    ax = figures_causal.lineage_heatmap(table)
    shown = ax.images[0].get_array()
    np.testing.assert_allclose(shown, [[-0.5, 0.0], [0.1, -0.2]])
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a (7)", "b (3)"]


def test_trainings_draws_every_training():
    spread = pd.DataFrame(
        {
            "method": ["SAE", "random features, tuned"],
            "estimate": [0.1, 0.0],
            "low": [0.0, -0.1],
            "high": [0.2, 0.1],
            "of_trainings": ["5.0, 15.0", "-1.0, 1.0"],
        }
    )
    ax = figures_steering.trainings(spread)
    ticks = [line.get_xdata() for line in ax.lines if line.get_marker() == "|"]
    np.testing.assert_allclose(ticks[0], [0.05, 0.15])
    np.testing.assert_allclose(ticks[1], [-0.01, 0.01])


def test_dose_response_draws_one_line_per_block():
    rows = [
        (layer, "a", "vivo-up", n, strength, -layer - strength * n)
        for layer in (0, 1)
        for n, strength in ((1, 1.0), (2, 0.5), (2, 1.0), (5, 1.0))
    ]
    columns = ["layer", "lineage", "outcome", "n_features", "strength", "effect"]
    table = pd.DataFrame(rows, columns=columns).assign(low=-9.0, high=9.0)
    ax = figures_causal.dose_response(table, "n_features", "vivo-up")
    lines = {of.get_label(): of.lines[0].get_xydata() for of in ax.containers}
    np.testing.assert_allclose(lines["block 0"], [[1, -1], [2, -2], [5, -5]])
    ax = figures_causal.dose_response(table, "strength", "vivo-up")
    lines = {of.get_label(): of.lines[0].get_xydata() for of in ax.containers}
    np.testing.assert_allclose(lines["block 1"], [[0.5, -2], [1.0, -3]])


def test_forward_selection_names_the_features_taken():
    rows = [
        ("greedy", 1, 7, 0.2, 0.1, 0.3),
        ("greedy", 2, 3, 0.3, 0.2, 0.4),
        ("CDS", 1, 3, 0.0, -0.1, 0.1),
        ("CDS", 2, 5, 0.1, 0.0, 0.2),
        ("random", 1, None, 0.05, 0.0, 0.1),
        ("random", 2, None, 0.08, 0.0, 0.2),
        ("all significant", 40, None, 0.5, 0.4, 0.6),
    ]
    columns = ["order", "n_features", "feature", "gc2", "low", "high"]
    table = pd.DataFrame(rows, columns=columns).astype({"feature": "Int64"})
    ax = figures_causal.forward_selection(table)
    assert [text.get_text() for text in ax.texts] == ["7", "3"]
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["greedy", "CDS", "random", "all 40 significant"]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [0.2, 0.3])
