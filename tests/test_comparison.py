"""Runs side by side, from tables small enough to write by hand."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from helpers.comparison import STEERING_METHODS, compare_runs
from helpers.figures import comparison as plots
from helpers.runs import Run


def finish(folder, *, lineages=("kidney",), saes=None, replicates=False, n_called=2):
    """Write the tables of a run of one block with four features."""
    run = Run(folder)

    def keep(name, table):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(table).to_parquet(path)

    recipe = {"sae": saes or {"seed": folder.name}, "model": "m"}
    run.artefact("sae/block3", recipe, lambda path: path.mkdir())
    card = pd.DataFrame({"fvu": [0.1, 0.2], "l0_mean": 16.0, "dead_percent": 0.0})
    card.index = pd.MultiIndex.from_tuples(
        [(3, "all"), (3, "in_vivo")], names=["layer", "rows"]
    )
    keep("dictionaries/card.parquet", card)
    losses = {
        **{"layer": 3, "tokens": ["all", "hidden"], "biosample": "a", "n_tokens": 10},
        **{"loss": 1.0, "loss_edited": [1.2, 1.1], "loss_mean": 2.0, "loss_zero": 3.0},
        **{"change": 1.0, "gap": 4.0, "context": "in_vivo"},
    }
    keep("loss_recovered.parquet", losses)
    classes = ["shared-vivo"] * n_called + ["none"] * (3 - n_called) + ["untested"]
    scores = pd.DataFrame({"layer": 3, "feature": range(4), "class": classes})
    p = [1e-6 if c == "shared-vivo" else 1.0 for c in classes]
    keep("cds.parquet", scores.assign(p_naive=p, p_bonferroni=p))
    counts = {"layer": [3], "tested": 3, "E1": n_called, "motif-driven": 1}
    counts |= {"E1, held": 1, "partial, held": 1}
    if replicates:
        counts |= {"E3": 1, "E3, held": 1, "placebo, held": 0.5, "q_placebo": 0}
    keep("evidence_select/counts.parquet", counts)
    keep("evidence_select/features.parquet", scores)
    for name in ("placebo", "carried"):
        keep(f"evidence_select/{name}.parquet", {"layer": []})
    rows = [
        {"lineage": lineage, "method": method, "direction": direction, "tokens": tokens}
        for lineage in (*lineages, "pooled")
        for method in (*STEERING_METHODS, "clamp")
        for direction in ("vitro-to-vivo", "vivo-to-vitro")
        for tokens in ("all", "vivo-up")
    ]
    numbers = {"layer": 3, "alpha": 1.0, "gc2": 0.2, "low": 0.1, "high": 0.3}
    keep("steering.parquet", pd.DataFrame(rows).assign(**numbers))
    windows = [
        {"training": training, "method": method, "window": window}
        for training in (0, 1)
        for method in ("SAE", "random features, tuned")
        for window in range(6)
    ]
    table = pd.DataFrame(windows).assign(gap=1.0)
    table["block"] = "chr1:" + (table["window"] // 2).astype(str)
    table["remaining"] = 0.9 - 0.2 * table["training"] - 0.01 * table["window"]
    keep("seeds_steering.parquet", table)
    features = {"layer": 3, "feature": range(4), "set": ["called"] * 2 + ["other"] * 2}
    features |= {"class": "shared-vivo", "lineage": "", "context": "in_vivo"}
    keep("annotation_features.parquet", features)
    motifs = {
        "level": "motif",
        "set": ["called", "called", "called", "matched"],
        **{"layer": 3, "feature": [0, 1, 0, 0], "fold": 4.0, "q_value": 0.01},
        **dict.fromkeys(("item", "name", "family"), ["CTCF", "CTCF", "SPI1", "CTCF"]),
    }
    keep("annotation.parquet", motifs)
    return run


def test_runs_are_read_in_the_order_given(tmp_path):
    finish(tmp_path / "b", replicates=True, n_called=1)
    finish(tmp_path / "a", lineages=("blood", "liver"), n_called=2)
    found = compare_runs([tmp_path / "b", tmp_path / "a"])
    assert list(found.runs.index) == ["b", "a"]
    assert list(found.runs["pairs"]) == ["kidney", "blood, liver"]
    assert found.missing.empty
    assert dict(found.tested) == {"b": 3, "a": 3}
    assert dict(found.ladder.loc["E1: in any class"]) == {"b": 1, "a": 2}
    # Claims that ask for replicates come last, and are unknown where there are none.
    assert found.ladder.index[-1] == "E3, motif activity held"
    assert found.ladder.loc["E3, motif activity held", "b"] == 1
    assert pd.isna(found.ladder.loc["E3, motif activity held", "a"])
    assert set(found.steering["method"]) == set(STEERING_METHODS)
    assert len(found.steering) == (2 + 3) * len(STEERING_METHODS)


def test_fidelity_is_the_share_of_the_loss_that_is_kept(tmp_path):
    finish(tmp_path / "a")
    line = compare_runs([tmp_path / "a"]).fidelity.iloc[0]
    assert line["fvu"] == 0.1  # of all rows
    assert line["recovered"] == pytest.approx(0.8)
    assert line["recovered_hidden"] == pytest.approx(0.9)


def test_steering_is_summed_up_over_trainings(tmp_path):
    finish(tmp_path / "a")
    table = compare_runs([tmp_path / "a"]).trainings.set_index("method")
    sae = table.loc["SAE"]
    # 12.5 and 32.5 % by the two trainings: they differ more than genomic blocks do.
    assert sae["estimate"] == pytest.approx((0.125 + 0.325) / 2)
    assert sae["low"] < 0 < 0.325 < sae["high"]


def test_motifs_are_counted_beside_random_regions(tmp_path):
    finish(tmp_path / "a")
    motifs = compare_runs([tmp_path / "a"]).motifs.set_index("item")
    assert dict(motifs["n_features"]) == {"CTCF": 2, "SPI1": 1}
    assert dict(motifs["n_matched"]) == {"CTCF": 1, "SPI1": 0}


def test_dictionaries_that_were_taken_over_are_named(tmp_path):
    key = finish(tmp_path / "a").key("sae/block3")
    finish(tmp_path / "b", saes=key)
    folders = [tmp_path / "b", tmp_path / "a"]
    assert list(compare_runs(folders).runs["dictionaries"]) == ["of a", "own"]
    assert list(compare_runs(folders[:1]).runs["dictionaries"]) == ["of another run"]


def test_what_is_missing_is_told_with_the_page_that_makes_it(tmp_path):
    finish(tmp_path / "a")
    finish(tmp_path / "b")
    (tmp_path / "b" / "steering.parquet").unlink()
    found = compare_runs([tmp_path / "a", tmp_path / "b", tmp_path / "c"])
    assert list(found.runs.index) == ["a"]
    missing = found.missing.set_index("run")
    assert tuple(missing.loc["b"]) == ("steering.parquet", "04_causal")
    assert missing.loc["c", "pages"].startswith("02_sae, 03_cds")


def test_nothing_to_compare_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="c lacks .*cds.parquet"):
        compare_runs([tmp_path / "c"])
    for folders in ([], [tmp_path / "c", tmp_path / "x" / ".." / "c"]):
        with pytest.raises(ValueError, match="each of them once"):
            compare_runs(folders)


def test_runs_are_named_by_what_tells_their_folders_apart(tmp_path):
    folders = [tmp_path / name / "seed0" / "block3" for name in ("kidney", "heart")]
    for folder in folders:
        finish(folder)
    names = ["kidney/seed0/block3", "heart/seed0/block3"]
    assert list(compare_runs(folders).runs.index) == names


def test_figures_have_a_row_for_every_claim_and_pair(tmp_path):
    finish(tmp_path / "a", replicates=True)
    finish(tmp_path / "b", lineages=("blood", "liver"))
    finish(tmp_path / "c")
    found = compare_runs([tmp_path / name for name in "abc"])
    ax = plots.ladders(found.ladder, found.tested)
    assert [t.get_text() for t in ax.get_yticklabels()] == list(found.ladder.index)
    assert len(ax.lines) == 3
    ax = plots.steering(found.steering)
    labels = [text.get_text() for text in ax.get_yticklabels()]
    # A single pair is its own pool.
    assert labels == ["a, kidney", "b, blood", "b, liver", "b, pooled", "c, kidney"]
    plt.close("all")
