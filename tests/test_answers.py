"""The answers of a run: what is said follows from the tables and changes with them."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from helpers.answers import called_answer, named_answer, steered_answer
from helpers.figures.overview import answer_panel, overview_html

METHODS = {
    "random features": (-0.02, -0.03, -0.01),
    "SAE, output-filtered": (0.3, 0.2, 0.4),
    "DiffMean": (0.17, 0.1, 0.25),
    "output rescale": (0.29, 0.2, 0.35),
}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def evidence(*, driven=180, replicates=True):
    ladder = pd.DataFrame({"all": [300, 200]}, index=["naive t", "paired"])
    counts = {"E1": [150, 50], "motif-driven": [driven, 0], "E1, held": [20, 20]}
    placebo = pd.DataFrame()
    if replicates:
        counts |= {"E3": [1, 1], "placebo, held": [30.0, 20.0], "E3, held": [9, 1]}
        placebo = pd.DataFrame({"contrast": [0, 0, 1, 1], "n_called": [40, 30, 20, 10]})
    return ladder, pd.DataFrame(counts), placebo


def steered(**changed):
    rows = [
        {
            "lineage": lineage,
            "direction": direction,
            "tokens": "all",
            "method": method,
            **dict(zip(("gc2", "low", "high"), np.array(values) * wrong, strict=True)),
        }
        for lineage, direction, wrong in (
            ("pooled", "vitro-to-vivo", 1),
            ("pooled", "vivo-to-vitro", 9),
            ("liver", "vitro-to-vivo", 9),
        )
        for method, values in (METHODS | changed).items()
    ]
    return pd.DataFrame(rows)


def trainings(low=0.03):
    own = {"method": "SAE", "estimate": 0.05, "low": low, "high": 0.07}
    chosen = {"method": "SAE, output-filtered", "estimate": 0.33}
    return pd.DataFrame([own, chosen | {"low": 0.3, "high": 0.36}])


def shares():
    rows = [("motif", "called", 0.5), ("motif", "matched", 0.0), ("go", "called", 0.1)]
    table = pd.DataFrame(rows, columns=["level", "set", "share"])
    return table.assign(low=table["share"] / 2, high=table["share"] + 0.1)


def test_called_answer_counts_over_blocks_and_shows_the_spread_of_the_placebo():
    answer = called_answer(*evidence())
    assert list(answer.table["value"]) == [300, 200, 40, 50, 10]
    placebo = answer.table[answer.table["kind"] == "control"].iloc[0]
    assert 30 <= placebo["low"] < 50 < placebo["high"] <= 70  # sums of each contrast
    assert answer.table["low"].isna().sum() == 4
    assert answer.verdict.startswith("Mostly what it is told: of 200 features")
    assert "90%" in answer.verdict and "50 do. 10 stand out" in answer.verdict


def test_called_answer_says_yes_only_if_the_track_drives_most_features():
    assert called_answer(*evidence(driven=80)).verdict.startswith("Yes: of 200")


def test_called_answer_says_no_if_nothing_is_called():
    ladder, counts, placebo = evidence()
    answer = called_answer(ladder, counts * 0, placebo)
    assert answer.verdict.startswith("No:")
    assert list(answer.table["value"]) == [300, 0, 0]


def test_called_answer_without_replicates_claims_no_placebo():
    answer = called_answer(*evidence(replicates=False))
    assert list(answer.table["value"]) == [300, 200, 40]
    assert answer.verdict.endswith("nobody knows how many would by chance.")


def test_steered_answer_prefers_trainings_to_pooled_rows_and_is_in_percent():
    answer = steered_answer(steered(), trainings())
    np.testing.assert_allclose(answer.table["value"], [5, -2, 33, 17, 29])
    assert answer.verdict.startswith(
        "In part: the features that differ most close 5.0%"
    )
    assert "from cell line to tissue" in answer.verdict
    assert "random ones −2.0%" in answer.verdict
    assert "17.0% by the mean difference of streams" in answer.verdict


def test_steered_answer_is_not_sure_if_the_interval_holds_zero():
    answer = steered_answer(steered(), trainings(low=-0.01), ("healthy", "diseased"))
    assert answer.verdict.startswith("Not for sure")
    assert "from healthy to diseased" in answer.verdict


def test_named_answer_leaves_out_sets_that_are_not_there():
    answer = named_answer(shares())
    assert list(answer.table["label"]) == ["context features", "random places"]
    assert "50% of context features" in answer.verdict
    assert "so do 0% of random places" in answer.verdict


def test_answer_panel_draws_every_value_with_its_interval():
    answer = steered_answer(steered(), trainings())
    ax = answer_panel(answer)
    points = [line.get_xdata()[0] for line in ax.lines if line.get_marker() in "osD"]
    np.testing.assert_allclose(points, answer.table["value"])
    ends = [tuple(line.get_xdata()) for line in ax.lines if line.get_linewidth() == 3]
    np.testing.assert_allclose(ends, answer.table[["low", "high"]])
    assert {text.get_text() for text in ax.texts} >= set(answer.table["label"])


def test_overview_html_has_no_fixed_ink_and_names_every_value_for_those_who_listen():
    found = [called_answer(*evidence()), named_answer(shares())]
    html = overview_html(found, "what <these> data are")
    assert html.count("<svg") == 2 and "#262626" not in html
    assert "<metadata>" not in html and "currentColor" in html
    assert overview_html(found, "what <these> data are") == html  # nothing random
    assert "what &lt;these&gt; data are" in html
    spoken = re.findall(r'aria-label="([^"]+)"', html)
    assert "windows as replicates 300.0;" in spoken[0]
    assert "context features 50.0 (25.0 to 60.0)" in spoken[1]
    assert not re.search(r"(?:src|href)=\"(?!#)|@import|fetch\(", html)  # asks nothing
