"""Browser tracks: what is written is read back, and the hub lists every file."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pybigtools
import pytest

from helpers import feature_tracks
from helpers.annotation import universe
from helpers.feature_tracks import write_bed, write_bigwig, write_feature_tracks
from helpers.runs import Run

REGIONS = pd.DataFrame(
    {
        "chrom": ["chr2", "chr1", "chr1", "chr1", "chr1"],
        "start": [0, 0, 128, 256, 512],
        "end": [128, 128, 256, 384, 640],
    }
)
SIZES = {"chr1": 1000, "chr2": 500, "chr9": 7}


def intervals(path, chrom):
    with pybigtools.open(str(path)) as reader:
        return list(reader.records(chrom))


def test_write_bigwig_joins_equal_neighbors_and_leaves_gaps_open(tmp_path):
    path = tmp_path / "a.bw"
    write_bigwig(path, REGIONS, np.array([3, 0, 0, 1.5, 0]), SIZES)
    assert intervals(path, "chr1") == [(0, 256, 0), (256, 384, 1.5), (512, 640, 0)]
    assert intervals(path, "chr2") == [(0, 128, 3)]
    with pybigtools.open(str(path)) as reader:
        assert reader.chroms() == {"chr1": 1000, "chr2": 500}
    assert [p.name for p in tmp_path.iterdir()] == ["a.bw"]
    behind = pd.DataFrame({"chrom": ["chr1", "chr2"], "start": [0, 9], "end": [9, 18]})
    write_bigwig(path, behind, np.ones(2), SIZES)  # another chromosome is no neighbor
    assert intervals(path, "chr1") == [(0, 9, 1)]
    assert intervals(path, "chr2") == [(9, 18, 1)]


@pytest.mark.parametrize(
    ("change", "values", "sizes", "message"),
    [
        ({}, [1, 2], SIZES, "one for each of 5 regions; got shape \\(2,\\)"),
        ({}, [1, 2, 3, 4, np.nan], SIZES, "1 not finite"),
        ({}, np.ones(5), {"chr1": 1000}, "1 of 5 regions lie on .* without a size"),
        ({}, np.ones(5), SIZES | {"chr2": 100}, "past the end .* chr2:0-128"),
        ({"start": [0, 0, 100, 256, 512]}, np.ones(5), SIZES, "chr1:100-256 does"),
        ({"end": [0, 128, 256, 384, 640]}, np.ones(5), SIZES, "0 <= start < end"),
    ],
)
def test_write_bigwig_names_what_is_wrong(tmp_path, change, values, sizes, message):
    with pytest.raises(ValueError, match=message):
        write_bigwig(tmp_path / "a.bw", REGIONS.assign(**change), values, sizes)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["bed", "bb"])
def test_write_bed_scales_scores(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    values = np.array([1, 4, 0, 2, 3])
    write_bed(path, REGIONS, values, name="a b", chrom_sizes=SIZES)
    if suffix == "bed":
        rows = [line.split("\t") for line in path.read_text().splitlines()]
        assert rows[0] == ["chr1", "0", "128", "a_b", "1000", "."]
        assert [int(r[4]) for r in rows] == [1000, 0, 500, 750, 250]
        assert [r[0] for r in rows] == ["chr1"] * 4 + ["chr2"]
    else:
        assert intervals(path, "chr2") == [(0, 128, "a_b", "250", ".")]
        assert [r[3] for r in intervals(path, "chr1")] == ["1000", "0", "500", "750"]


def test_write_bed_rejects_what_it_cannot_use(tmp_path):
    with pytest.raises(ValueError, match="at least 0"):
        write_bed(tmp_path / "a.bed", REGIONS, -np.ones(5), name="a")
    with pytest.raises(ValueError, match="a bigBed needs chrom_sizes"):
        write_bed(tmp_path / "a.bb", REGIONS, np.ones(5), name="a")


@pytest.fixture(scope="module")
def tracks(small_study, tmp_path_factory):
    """Two features of an untrained study, as `select_features` would give them."""
    study = replace(small_study, run=Run(tmp_path_factory.mktemp("tracks") / "run"))
    inner = universe(study)
    rng = np.random.default_rng(0)
    acts = np.round(
        rng.exponential(1, (4, len(study.dataset.windows), study.dataset.n_tokens, 9)),
        2,
    ).astype(np.float32) * (rng.random(9) < 0.8)
    features = pd.DataFrame(
        {
            "layer": [0, 1, 1],
            "set": "called",
            "feature": [4, 2, 2],  # the last is a repeat
            "class": "shared-vivo",
            "lineage": ["blood", "liver", "liver"],
            "context": ["in_vivo", "in_vitro", "in_vitro"],
            "biosample": [1, 2, 2],
            "regions": [np.array([3, 10]), np.array([0, len(inner) - 1])] + [[]],
        }
    )
    for name in ("sae/block0", "sae/block1", "activations.zarr"):
        study.run.artefact(name, {}, lambda path: path.touch())
    patch = pytest.MonkeyPatch()
    patch.setattr(
        feature_tracks,
        "feature_acts",
        lambda s, layer, f, w: acts[:, w][..., np.asarray(f) + layer],
    )
    folder = write_feature_tracks(study, features, {(0, 4): "SPI1 Ets"})
    yield study, acts, folder
    patch.undo()


def test_feature_tracks_hold_both_contexts_of_the_lineage(tracks):
    study, acts, folder = tracks
    windows = study.dataset.windows_of("test")
    tokens = study.dataset.token_table(windows)
    for name, sample, number in (
        ("block0_feature4.in_vitro", 0, 4),
        ("block0_feature4.in_vivo", 1, 4),
        ("block1_feature2.in_vitro", 2, 3),
        ("block1_feature2.in_vivo", 3, 3),
    ):
        expected = acts[sample, windows][..., number].ravel()
        with pybigtools.open(str(folder / f"{name}.bw")) as reader:
            found = [
                reader.values(chrom, start, end, bins=1, summary="mean", fillna=0)[0]
                for chrom, start, end in tokens[["chrom", "start", "end"]]
                .head(150)
                .itertuples(index=False)
            ]
        np.testing.assert_allclose(found, expected[:150], rtol=1e-5)


def test_feature_tracks_mark_the_top_regions(tracks):
    study, acts, folder = tracks
    own = universe(study).iloc[[3, 10]]
    rows = [line.split("\t") for line in open(folder / "block0_feature4.bed")]
    assert [int(r[1]) for r in rows] == list(own["start"])
    assert {r[3] for r in rows} == {"block0_feature4_SPI1_Ets"}
    value = acts[1, own["window"], own["token"], 4]
    expected = np.rint(value / value.max() * 1000)
    np.testing.assert_allclose([float(r[4]) for r in rows], expected)


def test_hub_lists_every_file_and_nothing_else(tracks):
    study, _, folder = tracks
    text = (folder / "hub.txt").read_text()
    stanzas = [
        dict(line.strip().split(" ", 1) for line in stanza.splitlines())
        for stanza in text.strip().split("\n\n")
    ]
    assert stanzas[0]["useOneFile"] == "on"
    assert {"hub", "shortLabel", "longLabel", "email"} <= set(stanzas[0])
    assert stanzas[1] == {"genome": study.dataset.tissues[0].assembly}
    tracks_ = stanzas[2:]
    names = [s["track"] for s in tracks_]
    assert len(set(names)) == len(names) == 8  # two features
    for stanza in tracks_:
        assert {"type", "shortLabel", "longLabel"} <= set(stanza)
        assert stanza.get("parent", names[0]) in names
    linked = {s["bigDataUrl"] for s in tracks_ if "bigDataUrl" in s}
    there = {p.name for p in folder.iterdir() if p.suffix in (".bw", ".bb")}
    assert linked == there
    listed = pd.read_csv(folder / "features.tsv", sep="\t")
    assert list(listed["name"]) == ["block0_feature4", "block1_feature2"]


def test_feature_tracks_are_kept_until_features_change(tracks, monkeypatch):
    study, _, folder = tracks
    table = pd.read_csv(folder / "features.tsv", sep="\t")
    features = table.assign(
        set="called", biosample=1, regions=[np.array([1])] * len(table)
    )
    again = write_feature_tracks(study, features, {})
    assert again == folder
    assert (folder / "block0_feature4.bed").read_text().count("\n") == 1
    monkeypatch.setattr(feature_tracks, "feature_acts", None)
    write_feature_tracks(study, features, {})
    with pytest.raises(ValueError, match="at least one row"):
        write_feature_tracks(study, features.iloc[:0], {})
