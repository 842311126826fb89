"""Annotation: planted features on a small world, the tests of the levels on arrays."""

from dataclasses import replace
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from helpers import annotation, findings, motifs, simulate, truth
from helpers.activations import WindowSummary
from helpers.annotation import _regions as _feature_regions
from helpers.annotation._levels import COLUMNS, go_level, motif_families, state_level
from helpers.figures import annotation as drawn
from helpers.runs import Run
from helpers.stages import Study
from helpers.tissues import read_tissues
from helpers.windows import WindowDataset

WINDOW_BP = 4096
BLOOD_VIVO, LIVER_VITRO = 1, 2  # positions of biosamples
RUNX1, TP53, SCATTERED, QUIET, RARE, MUTE = range(6)  # features


# --- The levels on arrays -------------------------------------------------------------


def strip(n_regions):
    start = 128 * np.arange(n_regions)
    return pd.DataFrame({"chrom": "chr1", "start": start, "end": start + 128})


def segmentation(states):
    regions = strip(len(states))
    return regions.assign(state=pd.Categorical(states, ordered=True))


def state_by_stratum(n=1200, seed=0):
    """Open regions (stratum 1) are enhancers half of the time, closed ones hardly."""
    rng = np.random.default_rng(seed)
    strata = (np.arange(n) % 4 == 0).astype(int)
    is_enhancer = rng.random(n) < np.where(strata, 0.5, 0.05)
    return strata, np.where(is_enhancer, "1_Enh", "2_Quies"), rng


def test_state_level_does_not_take_openness_for_a_finding():
    strata, states, rng = state_by_stratum()
    any_open = np.isin(np.arange(1200), rng.choice(np.flatnonzero(strata), 100, False))
    enhancers = np.flatnonzero((states == "1_Enh") & (strata == 1))
    true_finding = np.isin(np.arange(1200), enhancers[:60])

    table = state_level(
        strip(1200), np.stack([any_open, true_finding]), segmentation(states), strata
    )

    assert list(table.columns) == COLUMNS
    of_enhancers = table[table["item"] == "1_Enh"].set_index("feature")
    overall = (states == "1_Enh").mean()
    assert of_enhancers["rate_all"].to_numpy() == pytest.approx(overall)
    within = (states[strata == 1] == "1_Enh").mean()
    assert of_enhancers["rate"].to_numpy() == pytest.approx(within)
    assert of_enhancers.loc[0, "p_value"] > 0.01
    assert of_enhancers.loc[1, "q_value"] < 1e-9
    assert of_enhancers.loc[1, "fold"] == pytest.approx(1 / within)


def test_state_level_expects_what_permutation_within_strata_gives():
    strata, states, rng = state_by_stratum()
    feature = rng.random((1, 1200)) < np.where(strata, 0.2, 0.02)
    table = state_level(strip(1200), feature, segmentation(states), strata)
    row = table[table["item"] == "1_Enh"].iloc[0]

    permuted = motifs.matched_random_features(
        np.repeat(feature, 4000, axis=0), strata, random_state=1
    )
    counts = (permuted & (states == "1_Enh")).sum(axis=1)
    assert row["rate"] * row["n_regions"] == pytest.approx(counts.mean(), abs=0.1)
    exact = (counts >= row["hits"]).mean()
    assert exact - 0.02 < row["p_value"] < 2 * exact + 0.05  # on the safe side


def test_state_level_leaves_out_regions_without_state_or_stratum():
    strata, states, _ = state_by_stratum()
    strata[:10] = -1
    feature = np.ones((1, 1200), dtype=bool)
    with pytest.warns(UserWarning, match="state"):
        table = state_level(strip(1200), feature, segmentation(states[:1000]), strata)
    assert (table["n_regions"] == 990).all()
    assert table["fold"].to_numpy() == pytest.approx(1)


def gene_world():
    tss = 5_000 + 20_000 * np.arange(40)
    genes = pd.DataFrame(
        {
            "chrom": np.where(np.arange(40) < 30, "chr1", "chr9"),
            "start": tss,
            "end": tss + 500,
            "symbol": [f"G{i}" for i in range(40)],
            "strand": "+",
            "tss": tss,
        }
    )
    sets = {"planted": [f"G{i}" for i in range(6)]}
    sets |= {f"other {k}": [f"G{i}" for i in range(k, 40, 4)] for k in range(4)}
    return genes, sets


def test_go_level_finds_planted_genes_and_keeps_the_test_over_regions():
    genes, sets = gene_world()
    regions = strip(30 * 20_000 // 128)
    near = np.zeros((2, len(regions)), dtype=bool)
    near[0, (genes["tss"][:6] // 128).to_numpy()] = True
    near[1, :7] = True  # seven regions at one gene of the term: nothing over genes
    table = go_level(regions, near, genes, sets)
    assert list(table.columns) == COLUMNS
    planted = table[table["item"] == "planted"].set_index("feature")
    assert planted.loc[0, "q_value"] < 0.01
    assert planted.loc[0, "fold"] == pytest.approx(1 / planted.loc[0, "rate"])
    assert planted.loc[1, "q_regions"] < 0.01 < 0.1 < planted.loc[1, "p_value"]
    assert (table["q_value"] >= table["q_regions"] - 1e-12).all()


def test_motif_families_keep_the_best_motif():
    table = pd.DataFrame(
        {
            "feature": [0, 0, 0],
            "motif": ["A1", "A2", "B1"],
            "name": ["a1", "a2", "b1"],
            "family": ["A", "A", "B"],
            "n_target": 50,
            "target_hits": [5, 20, 9],
            "n_background": 500.0,
            "background_rate": 0.1,
            "fold": [1.0, 4.0, 1.8],
            "log_p": [-0.5, -20.0, -2.0],
            "p_value": np.exp([-0.5, -20.0, -2.0]),
            "q_value": np.nan,
        }
    )
    best = motif_families(table)
    assert list(best.columns) == COLUMNS
    assert list(best["item"]) == ["A2", "B1"]
    assert best["log_p"].to_numpy() == pytest.approx([-20 + np.log(2), -2])
    assert best["q_value"].to_numpy() == pytest.approx(
        [2 * 2 * np.exp(-20), np.exp(-2)]
    )


# --- Planted features on a small world ------------------------------------------------


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Make a study whose activations are planted instead of computed."""
    folder = tmp_path_factory.mktemp("annotation")
    world = simulate.World(
        n_chromosomes=20, windows_per_chromosome=16, window_bp=WINDOW_BP, n_replicates=0
    )
    simulate.write_world(folder / "world", world, lineages=["blood", "liver"])
    tissues = read_tissues(folder / "world" / "tissues")
    study = Study(
        run=Run(folder / "run"),
        dataset=WindowDataset(tissues, window_bp=WINDOW_BP),
        model=SimpleNamespace(config=SimpleNamespace(crop=2)),
        blocks=[0, 3],
        seed=0,
        device="cpu",
        truth=folder / "world" / "truth",
    )
    study.run.artefact("cds.parquet", {}, lambda path: path.touch())
    for block in (0, 3):
        study.run.artefact(f"summaries/block{block}.npz", {}, lambda path: path.touch())
    return study, plant(study)


def plant(study):
    """Return activations (biosample, window, token, feature)."""
    rng = np.random.default_rng(0)
    everything = np.arange(len(study.dataset.windows))
    sites = truth.factor_sites(study, everything)
    n_tokens = study.dataset.n_tokens
    shape = (len(everything), n_tokens)
    acts = np.zeros((4, *shape, 6), dtype=np.float32)
    for feature, factor, loud in (
        (RUNX1, "RUNX1", BLOOD_VIVO),
        (TP53, "TP53", LIVER_VITRO),
    ):
        here = sites[factor].to_numpy().reshape(shape)
        acts[..., feature] = here * rng.uniform(0.5, 1, (4, *shape))
        acts[loud, ..., feature] *= 3
    acts[..., SCATTERED] = (rng.random(shape) < 0.05) * rng.uniform(1, 2, shape)
    acts[..., QUIET] = (rng.random(shape) < 0.05) * rng.uniform(1, 2, shape)
    acts[:, ::9, 5, RARE] = 1
    return acts


@pytest.fixture(autouse=True)
def stages_give_what_was_planted(request, monkeypatch):
    if "planted" not in request.fixturenames:
        return
    study, acts = request.getfixturevalue("planted")
    scores = pd.DataFrame(
        {
            "layer": 3,
            "feature": np.arange(6),
            "class": [
                "lineage-only",
                "lineage-only",
                "shared-vivo",
                "none",
                "shared-vivo",
                "untested",
            ],
            "lineages": ["blood", "liver", "blood,liver", "", "blood,liver", ""],
            "cds_blood": [9.0, 0.1, 5.0, 0.3, 4.0, np.nan],
            "cds_liver": [0.1, -8.0, 6.0, 0.2, 4.0, np.nan],
            "delta_blood": [1.0, 0.0, 0.3, 0.0, 0.1, np.nan],
            "delta_liver": [0.0, -1.0, 0.2, 0.0, 0.1, np.nan],
        }
    )

    def feature_acts(study, layer, features, windows):
        if layer != 3:  # the other block is silent
            return np.zeros_like(acts[:, windows][..., features])
        return acts[:, windows][..., features]

    summary = WindowSummary(acts.mean(axis=2), (acts > 0).mean(axis=2))
    monkeypatch.setattr(annotation, "score_context", lambda study: scores)
    silent = WindowSummary(0 * summary.mean_acts, 0 * summary.firing)
    found = {0: silent, 3: summary}
    monkeypatch.setattr(annotation, "summaries", lambda study: found)
    monkeypatch.setattr(_feature_regions, "feature_acts", feature_acts)


def test_universe_holds_inner_tokens_of_test_windows(planted):
    study, _ = planted
    regions = annotation.universe(study)
    assert set(regions["token"]) == set(range(2, study.dataset.n_tokens - 2))
    assert set(regions["window"]) == set(study.dataset.windows_of("test"))


def test_select_features_looks_where_a_feature_differs_most(planted):
    study, _ = planted
    features = annotation.select_features(study)
    called = features[features["set"] == "called"].set_index("feature")
    assert set(called.index) == {RUNX1, TP53, SCATTERED}  # the rare one is left out
    assert called.loc[RUNX1, "biosample"] == BLOOD_VIVO
    assert called.loc[TP53, "biosample"] == LIVER_VITRO
    assert called.loc[SCATTERED, "biosample"] == BLOOD_VIVO  # larger delta, smaller CDS
    assert list(called.loc[[RUNX1, TP53], "context"]) == ["in_vivo", "in_vitro"]
    assert called.loc[RUNX1, "openness"] > 0.8
    other = features[features["set"] == "other"]
    assert list(other["feature"]) == [QUIET]
    assert list(other["partner"]) == [SCATTERED]  # of the same density


def test_select_features_takes_the_strongest_tokens_and_no_neighbors(planted):
    study, acts = planted
    features = annotation.select_features(study).set_index("feature")
    regions = annotation.universe(study)
    for feature in (RUNX1, SCATTERED):
        own = regions.iloc[features.loc[feature, "regions"]]
        at = acts[BLOOD_VIVO, own["window"], own["token"], feature]
        for step in (-1, 1):
            beside = acts[BLOOD_VIVO, own["window"], own["token"] + step, feature]
            assert (at > beside).all()
        assert len(own) <= annotation.N_TOP
    firing = acts[BLOOD_VIVO, study.dataset.windows_of("test"), 2:-2, SCATTERED]
    left_out = np.sort(firing[firing > 0])[: -2 * annotation.N_TOP]
    assert not len(left_out) or at.min() > left_out.max()


def test_annotate_finds_what_was_planted_and_nothing_in_its_nulls(planted):
    study, _ = planted
    annotated = annotation.annotate(study)
    assert annotated.skipped == {}
    table = annotated.table
    assert set(table["level"]) == {"state", "motif", "go"}
    assert set(table["layer"]) == {3}  # the other block has no feature
    called = table[(table["level"] == "motif") & (table["set"] == "called")]
    first = called.sort_values("log_p").groupby("feature").head(1).set_index("feature")
    assert first.loc[RUNX1, "name"] == "Runx1"
    assert first.loc[TP53, "name"] == "TP53"
    assert first.loc[RUNX1, "q_value"] < 1e-6
    assert first.loc[SCATTERED, "q_value"] > 0.05
    shares = findings.null_shares(annotated).set_index(["level", "set"])
    assert shares.loc[("motif", "called"), "n_enriched"] == 2
    for level in ("state", "motif", "go", "go, shifts"):
        for null in ("matched", "shifted"):
            assert shares.loc[(level, null), "n_enriched"] == 0


def test_annotate_skips_processes_where_few_genes_lie(planted, tmp_path, monkeypatch):
    study, _ = planted
    run = Run(tmp_path / "run")
    for name in ("cds.parquet", "summaries/block0.npz", "summaries/block3.npz"):
        run.artefact(name, {}, lambda path: path.touch())
    monkeypatch.setattr(annotation, "GENE_SPLITS", ("tune",))
    annotated = annotation.annotate(replace(study, run=run))
    assert "no gene set has 5" in annotated.skipped["go"]
    assert "go" not in set(annotated.table["level"])


def test_annotate_joins_blocks_into_one_family_of_tests(planted, tmp_path, monkeypatch):
    study, _ = planted
    both = replace(study, run=Run(tmp_path / "run"), blocks=[0, 3])
    for name in ("cds.parquet", "summaries/block0.npz", "summaries/block3.npz"):
        both.run.artefact(name, {}, lambda path: path.touch())
    scores, found = annotation.score_context(both), annotation.summaries(both)
    acts = _feature_regions.feature_acts
    twice = pd.concat([scores, scores.assign(layer=0)], ignore_index=True)
    monkeypatch.setattr(annotation, "score_context", lambda study: twice)
    monkeypatch.setattr(
        annotation, "summaries", lambda study: {x: found[3] for x in (0, 3)}
    )
    monkeypatch.setattr(
        _feature_regions, "feature_acts", lambda s, layer, f, w: acts(s, 3, f, w)
    )
    annotated = annotation.annotate(both)
    one = annotation.annotate(study).table
    tables = dict(list(annotated.table.groupby("layer")))
    assert set(tables) == {0, 3}
    keys = ["level", "set", "feature", "item"]
    first, second, alone = (
        t[t["set"].isin(["called", "other"])].set_index(keys).sort_index()
        for t in (tables[0], tables[3], one)
    )
    pd.testing.assert_series_equal(first["p_value"], second["p_value"])
    pd.testing.assert_series_equal(second["p_value"], alone["p_value"])
    states = [t.loc["state"]["q_value"] for t in (second, alone)]
    pd.testing.assert_series_equal(*states)  # twice the tests, twice the findings
    shares = findings.null_shares(annotated).set_index(["level", "set"])
    assert shares.loc[("motif", "called"), "n_enriched"] == 4
    assert shares.loc[("motif", "called"), "n_features"] == 6


def test_annotate_is_kept(planted, monkeypatch):
    study, _ = planted
    first = annotation.annotate(study)
    monkeypatch.setattr(motifs, "enrichment", None)  # a second run would fail
    pd.testing.assert_frame_equal(annotation.annotate(study).table, first.table)


def test_annotate_skips_levels_without_files(planted, tmp_path):
    study, _ = planted
    tissues = [
        replace(
            tissue,
            genes=None,
            pair=(tissue.pair[0], replace(tissue.pair[1], states=None)),
        )
        for tissue in study.dataset.tissues
    ]
    run = Run(tmp_path / "run")
    for name in ("cds.parquet", "summaries/block0.npz", "summaries/block3.npz"):
        run.artefact(name, {}, lambda path: path.touch())
    dataset = WindowDataset(tissues, window_bp=WINDOW_BP)
    annotated = annotation.annotate(replace(study, run=run, dataset=dataset))
    assert set(annotated.table["level"]) == {"motif"}
    assert "blood_in_vivo" in annotated.skipped["state"]
    assert "blood.yml" in annotated.skipped["go"]
    assert set(findings.null_shares(annotated)["level"]) == {"motif"}


def test_factor_recovery_ranks_the_planted_family_first(planted):
    study, _ = planted
    annotated = annotation.annotate(study)
    recovered = findings.motif_recovery(study, annotated).set_index("feature")
    assert set(recovered.index) == {RUNX1, TP53}
    assert list(recovered.loc[[RUNX1, TP53], "factor"]) == ["RUNX1", "TP53"]
    assert (recovered["rank"] == 1).all()
    assert recovered.loc[TP53, "role"] == "lineage-vitro"
    assert recovered.loc[RUNX1, "term"].startswith("myeloid leukocyte differentiation")
    assert (recovered["own_q"] < 1e-6).all()


def test_factor_recovery_ranks_the_planted_process(planted):
    study, _ = planted
    annotated = annotation.annotate(study)
    term = "myeloid leukocyte differentiation (GO:0002573)"
    no_terms = annotated.table[annotated.table["level"] != "go"]
    rows = pd.DataFrame(
        {
            "level": "go",
            "layer": 3,
            "set": ["called", "called", "called", "shifted"],
            "feature": [RUNX1, RUNX1, TP53, RUNX1],
            "item": [term, "wound healing", "wound healing", "wound healing"],
            "q_shift": [0.2, 0.1, 0.1, 0.1],
        }
    )
    with_terms = annotated._replace(table=pd.concat([no_terms, rows]))
    found = findings.motif_recovery(study, with_terms).set_index("feature")
    assert found.loc[RUNX1, "term_rank"] == 2
    assert np.isnan(found.loc[TP53, "term_rank"])
    assert found["term_rank_shifted"].isna().all()


def test_claim_table_ignores_case_and_tells_decoys(planted):
    study, _ = planted
    annotated = annotation.annotate(study)
    claim = {"blood": ("runx1", "GATA1::TAL1"), "liver": ("HNF4A",), "lymph": ("EBF1",)}
    table = findings.claim_table(study, annotated, claim)
    assert set(table["lineage"]) == {"blood", "liver"}  # lymph is not studied
    rows = table.set_index(["motif", "context"])
    assert rows.loc[("runx1", "in_vivo"), "n_enriched"] == 1
    assert rows.loc[("runx1", "in_vivo"), "best_rank"] == 1
    assert rows.loc[("runx1", "in_vivo"), "planted"] == "lineage-vivo"
    assert rows.loc[("HNF4A", "in_vitro"), "planted"] == "lineage"
    assert rows.loc[("HNF4A", "in_vitro"), "n_enriched"] == 0
    assert rows.loc[("HNF4A", "in_vivo"), "n_features"] == 0
    own = rows.loc[("runx1", "in_vivo")]  # one of two features here, none elsewhere
    assert own["share"] == 0.5
    assert np.isnan(own["elsewhere"])
    assert own["p_value"] == 1
    with pytest.raises(ValueError, match="NOSUCH"):
        findings.claim_table(study, annotated, {"blood": ("NOSUCH",)})


def test_top_items_count_features_of_groups(planted):
    study, _ = planted
    items = findings.top_items(annotation.annotate(study), "motif")
    runx = items[items["item"] == "Runx1"].set_index("group")
    assert runx.loc["blood in vivo", "n_features"] == 1
    assert runx.loc["blood in vivo", "share"] == 1


def test_learned_motifs_find_what_was_planted_without_a_collection(planted):
    study, _ = planted
    annotated = annotation.annotate(study)
    learned = findings.learned_motifs(study, annotated, ["TP53", "Runx1", "none such"])
    assert list(learned["archetype"]) == ["TP53", "Runx1"]
    assert list(learned["feature"]) == [TP53, RUNX1]
    assert [m.name for m in learned["known"]] == ["TP53", "Runx1"]
    assert list(learned["closest"]) == ["TP53", "Runx1"]
    assert (learned["log_p"] < -10).all()
    _, axes = plt.subplots(2, 2)
    drawn.motif_table(learned, axes)
    assert "like TP53" in axes[0, 1].get_title(loc="left")
    plt.close("all")


def test_unknown_layer_and_silent_features_raise(planted, monkeypatch):
    study, acts = planted
    with pytest.raises(ValueError, match=r"\[0, 3\]; got \[1\]"):
        annotation.select_features(study, [1])
    monkeypatch.setattr(annotation, "MIN_REGIONS", 10**6)
    study.run.path("annotation_features.parquet").unlink(missing_ok=True)
    with pytest.raises(ValueError, match="none of 4 called features"):
        annotation.select_features(study)


def test_figures_draw(planted):
    study, _ = planted
    annotated = annotation.annotate(study)
    called = annotated.features[annotated.features["set"] == "called"]
    groups = called.set_index(["layer", "feature"]).pipe(findings.feature_groups)
    _, axes = plt.subplots(1, 2)
    of_states = annotated.table.query("level == 'state' and set == 'called'")
    drawn.state_heat_maps(of_states, groups, axes)
    assert [t.get_text() for t in axes[0].get_yticklabels()] == [
        "blood in vivo (n = 1)",
        "liver in vitro (n = 1)",
        "shared-vivo (n = 1)",
    ]
    items = findings.top_items(annotated, "motif")
    ax = drawn.group_dots(items)
    assert "Runx1" in [t.get_text() for t in ax.get_yticklabels()]
    ax = drawn.group_dots(items.assign(motifs="Runx2, Runx1"))
    assert "Runx2 (like Runx1)" in [t.get_text() for t in ax.get_yticklabels()]
    drawn.null_shares(findings.null_shares(annotated))
    drawn.p_values(annotated.table.query("level == 'motif'"))
    plt.close("all")


def test_logo_is_as_high_as_its_information():
    certain, flat = [1.0, 0, 0, 0], [0.25] * 4
    ax = drawn.logo(np.array([certain, flat]))
    boxes = [patch.get_path().get_extents() for patch in ax.patches]
    assert boxes[3].height == pytest.approx(2)  # drawn last: the largest letter
    assert boxes[3].y0 == pytest.approx(0)
    assert max(box.y1 for box in boxes[4:]) == pytest.approx(0)
    plt.close("all")
