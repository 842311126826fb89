"""Chromatin-state enrichment against ChromHMM's own numbers and slow references."""

import gzip

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from helpers import states
from helpers.enrichment import EmptyFeatureWarning

SEGMENTS = pd.DataFrame(
    [
        ("chr1", 0, 1000, "1_A"),
        ("chr1", 1000, 1400, "2_B"),
        ("chr1", 1800, 3000, "1_A"),  # 1400-1800 has no state
        ("chr2", 0, 600, "10_C"),
        ("chr2", 600, 1000, "2_B"),
    ],
    columns=["chrom", "start", "end", "state"],
)
REGIONS = pd.DataFrame(
    [
        ("chr1", 100, 300),
        ("chr1", 200, 1100),
        ("chr1", 1300, 1900),
        ("chr1", 1350, 1950),
        ("chr1", 2900, 3500),
        ("chr2", 500, 700),
        ("chr2", 400, 800),
        ("chr3", 0, 100),
    ],
    columns=["chrom", "start", "end"],
)
MEMBERSHIP = np.array([[1, 1, 1, 1, 1, 1, 1, 1], [1, 0, 1, 0, 1, 1, 0, 1]], dtype=bool)
# Output of ChromHMM 1.27 OverlapEnrichment (-b 200) for SEGMENTS and the two sets:
# states in rows, sets in columns.
CHROMHMM = {
    "bases": [(1.07532, 0.93506), (1.02857, 1.28571), (0.68571, 0.85714)],
    "multicount": [(1.00413, 0.93506), (1.125, 1.28571), (0.81818, 0.85714)],
    "center": [(1.09091, 0.81818), (0, 0), (2, 3)],
    "center_log10p": [(0.17785, 0.07118), (0, 0), (0.37531, 0.51485)],
}


def random_world(seed=0, n_regions=200, n_features=5):
    """Segments with gaps on two chromosomes, overlapping regions, some elsewhere."""
    rng = np.random.default_rng(seed)
    rows = []
    for chrom in ("chr1", "chr2"):
        position = 0
        while position < 20_000:
            length = int(rng.integers(1, 8)) * 100
            if rng.random() < 0.9:
                state = rng.choice(["1_A", "2_B", "3_C"], p=[0.2, 0.3, 0.5])
                rows.append((chrom, position, position + length, state))
            position += length
    segments = pd.DataFrame(rows, columns=["chrom", "start", "end", "state"])
    start = rng.integers(0, 21_000, n_regions)
    regions = pd.DataFrame(
        {
            "chrom": rng.choice(
                ["chr2", "chr1", "chrUn"], n_regions, p=[0.5, 0.45, 0.05]
            ),
            "start": start,
            "end": start + rng.integers(1, 500, n_regions),
        }
    )
    density = np.linspace(0.05, 0.6, n_features)
    return segments, regions, rng.random((n_features, n_regions)) < density[:, None]


def bases_by_loop(segments, regions, mode):
    """State bases of one set of regions, base by base."""
    state_at = {
        (s.chrom, base): s.state
        for s in segments.itertuples()
        for base in range(s.start, s.end)
    }
    if mode == "center":
        bases = {(r.chrom, (r.start + r.end - 1) // 2) for r in regions.itertuples()}
    else:
        bases = [
            (r.chrom, base)
            for r in regions.itertuples()
            for base in range(r.start, r.end)
        ]
        bases = bases if mode == "multicount" else set(bases)
    counts = dict.fromkeys(sorted(set(segments["state"])), 0)
    for base in bases:
        if base in state_at:
            counts[state_at[base]] += 1
    return counts


@pytest.mark.parametrize("mode", ["bases", "multicount", "center"])
@pytest.mark.filterwarnings("ignore::helpers.states.UnsegmentedRegionWarning")
def test_overlap_enrichment_equals_counting_bases(mode):
    segments, regions, membership = random_world()
    table = states.overlap_enrichment(regions, membership, segments, mode=mode)
    lengths = (segments["end"] - segments["start"]).groupby(segments["state"]).sum()
    for feature in range(len(membership)):
        expected = bases_by_loop(segments, regions[membership[feature]], mode)
        rows = table[table["feature"] == feature].set_index("state")
        for state, bases in expected.items():
            share = bases / sum(expected.values())
            fold = share / (lengths[state] / lengths.sum())
            assert rows.loc[state, "overlap_bases"] == bases
            assert rows.loc[state, "fold"] == pytest.approx(fold)
            if mode == "center":
                tail = stats.hypergeom.logsf(
                    bases - 1, lengths.sum(), lengths[state], sum(expected.values())
                )
                assert rows.loc[state, "neg_log10_p"] == pytest.approx(
                    -tail / np.log(10), abs=1e-9
                )


@pytest.mark.parametrize("mode", ["bases", "multicount", "center"])
def test_overlap_enrichment_equals_chromhmm(mode):
    with pytest.warns(states.UnsegmentedRegionWarning):
        table = states.overlap_enrichment(REGIONS, MEMBERSHIP, SEGMENTS, mode=mode)
    assert list(table["state"]) == ["1_A", "2_B", "10_C"] * 2
    fold = table["fold"].to_numpy().reshape(2, 3)
    np.testing.assert_allclose(fold.T, CHROMHMM[mode], atol=6e-6)
    if mode == "center":
        tail = table["neg_log10_p"].to_numpy().reshape(2, 3)
        np.testing.assert_allclose(tail.T, CHROMHMM["center_log10p"], atol=6e-6)


def test_overlap_enrichment_of_the_segmentation_itself_is_one():
    membership = np.ones((1, len(SEGMENTS)), dtype=bool)
    regions = SEGMENTS[["chrom", "start", "end"]]
    table = states.overlap_enrichment(regions, membership, SEGMENTS)
    np.testing.assert_allclose(table["fold"], 1)
    assert table.attrs["segmented_bases"] == 3600
    assert table.attrs["genome_fraction"]["10_C"] == pytest.approx(600 / 3600)


def test_overlap_enrichment_does_not_depend_on_the_order_of_regions():
    segments, regions, membership = random_world(seed=1)
    order = np.random.default_rng(2).permutation(len(regions))
    with pytest.warns(states.UnsegmentedRegionWarning):
        table = states.overlap_enrichment(regions, membership, segments)
        shuffled = states.overlap_enrichment(
            regions.iloc[order], membership[:, order], segments.iloc[::-1]
        )
    pd.testing.assert_frame_equal(table, shuffled)


def test_overlap_enrichment_of_an_empty_feature_is_missing():
    membership = np.zeros((2, len(REGIONS)), dtype=bool)
    membership[0, 0] = True
    with (
        pytest.warns(EmptyFeatureWarning, match="1 of 2 features"),
        pytest.warns(states.UnsegmentedRegionWarning, match="1 of 8 regions"),
    ):
        table = states.overlap_enrichment(REGIONS, membership, SEGMENTS)
    assert table.loc[table["feature"] == 1, "fold"].isna().all()
    assert table.loc[table["feature"] == 0, "fold"].notna().all()


def test_overlap_enrichment_rejects_what_it_cannot_use():
    with pytest.raises(ValueError, match="mode must be"):
        states.overlap_enrichment(REGIONS, MEMBERSHIP, SEGMENTS, mode="binres")
    twice = pd.concat([SEGMENTS, SEGMENTS.iloc[[1]]], ignore_index=True)
    with pytest.raises(ValueError, match="row 5 overlaps"):
        states.overlap_enrichment(REGIONS, MEMBERSHIP, twice)
    with pytest.raises(ValueError, match="columns chrom, start, end, state"):
        states.overlap_enrichment(REGIONS, MEMBERSHIP, REGIONS)


def test_unit_enrichment_equals_scipy():
    segments, regions, membership = random_world(seed=3)
    with pytest.warns(states.UnsegmentedRegionWarning):
        table = states.unit_enrichment(regions, membership, segments)
    state_of = []
    for region in regions.itertuples():
        counts = bases_by_loop(segments, pd.DataFrame([region]), "center")
        state_of.append(next((s for s, n in counts.items() if n), None))
    state_of = np.array(state_of, dtype=object)
    universe = np.array([state is not None for state in state_of])
    assert table.attrs["n_units"] == universe.sum() < len(regions)
    for row in table.itertuples():
        members = membership[row.feature] & universe
        k = (members & (state_of == row.state)).sum()
        in_state = (state_of == row.state).sum()
        p = stats.hypergeom.sf(k - 1, universe.sum(), in_state, members.sum())
        assert (row.n_units, row.state_units) == (members.sum(), k)
        assert row.p_value == pytest.approx(p)
        assert row.fold == pytest.approx(
            k / members.sum() / (in_state / universe.sum())
        )
    expected = stats.false_discovery_control(table["p_value"])
    np.testing.assert_allclose(table["q_value"], expected)


@pytest.mark.parametrize("n_units", [40, 41])
def test_unit_enrichment_shift_z_equals_all_circular_shifts(n_units):
    rng = np.random.default_rng(4)
    names = rng.choice(["1_A", "2_B"], n_units)
    names[:2] = ["1_A", "2_B"]
    start = np.arange(n_units) * 200
    segments = pd.DataFrame(
        {"chrom": "chr1", "start": start, "end": start + 200, "state": names}
    )
    regions = segments[["chrom", "start", "end"]]
    membership = rng.random((3, n_units)) < 0.3
    membership[2] = True  # the same count at every shift: no z-score
    table = states.unit_enrichment(regions, membership, segments)
    for row in table.itertuples():
        counts = np.array(
            [
                (membership[row.feature] & np.roll(names == row.state, shift)).sum()
                for shift in range(n_units)
            ]
        )
        if counts.std() > 0:
            expected = (counts[0] - counts.mean()) / counts.std()
            assert row.shift_z == pytest.approx(expected)
        else:
            assert np.isnan(row.shift_z)


def test_unit_enrichment_is_calibrated_and_finds_what_is_planted():
    segments, regions, _ = random_world(seed=5, n_regions=600)
    regions = regions[regions["chrom"] != "chrUn"].reset_index(drop=True)
    rng = np.random.default_rng(6)
    membership = rng.random((300, len(regions))) < 0.1
    with pytest.warns(states.UnsegmentedRegionWarning):
        null = states.unit_enrichment(regions, membership, segments)
        center = (regions["start"] + regions["end"] - 1) // 2
        in_a = np.zeros(len(regions), dtype=bool)
        for s in segments[segments["state"] == "1_A"].itertuples():
            in_a |= (regions["chrom"] == s.chrom) & center.between(s.start, s.end - 1)
        membership[0] = rng.random(len(regions)) < np.where(in_a, 0.6, 0.1)
        planted = states.unit_enrichment(regions, membership[:1], segments)
    assert (null["p_value"] <= 0.05).mean() <= 0.05
    assert null[null["q_value"] < 0.05]["feature"].nunique() / 300 <= 0.05
    best = planted.sort_values("log_p").iloc[0]
    assert (best["state"], best["q_value"] < 1e-6) == ("1_A", True)
    assert best["shift_z"] > 5


def test_unit_enrichment_places_an_even_region_left_of_its_middle():
    segments = pd.DataFrame(
        [("chr1", 0, 150, "1_A"), ("chr1", 150, 300, "2_B")], columns=SEGMENTS.columns
    )
    regions = pd.DataFrame({"chrom": "chr1", "start": [100], "end": [200]})
    table = states.unit_enrichment(regions, np.ones((1, 1), dtype=bool), segments)
    assert list(table["state_units"]) == [1, 0]


def test_unit_enrichment_without_any_state_is_an_error():
    elsewhere = REGIONS.assign(chrom="chr9")
    with (
        pytest.warns(states.UnsegmentedRegionWarning, match="8 of 8"),
        pytest.raises(ValueError, match="no region center has a state"),
    ):
        states.unit_enrichment(elsewhere, MEMBERSHIP, SEGMENTS)


def test_read_segmentation_sorts_positions_and_states(tmp_path):
    lines = (
        "track name=states\n"
        "chr2\t0\t600\t10_C\t0\t.\t0\t600\t1,2,3\n"
        "chr1\t1000\t1400\t2_B\t0\t.\t1000\t1400\t0,0,255\n"
        "chr1\t0\t1000\t1_A\t0\t.\t0\t1000\t255,0,0\n"
    )
    path = tmp_path / "dense.bed.gz"
    path.write_bytes(gzip.compress(lines.encode()))
    table = states.read_segmentation(path)
    assert list(table.columns) == ["chrom", "start", "end", "state"]
    assert list(table["start"]) == [0, 1000, 0]
    assert list(table["state"].cat.categories) == ["1_A", "2_B", "10_C"]
    assert table.attrs["colors"]["1_A"] == (255, 0, 0)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "no segment found"),
        ("chr1\t0\t200\n", "line 1: expected at least 4"),
        ("#x\nchr1\t0\t200\tA\nchr1\t400\t300\tA\n", "line 3: expected integers"),
        ("chr1\tzero\t200\tA\n", "line 1: expected integers"),
        (
            "chr1\t0\t200\tA\nchr1\t100\t300\tB\n",
            r"line 2: .* overlaps .* line 1 \(A\)",
        ),
    ],
)
def test_read_segmentation_names_file_and_line(tmp_path, lines, message):
    path = tmp_path / "broken.bed"
    path.write_text(lines)
    with pytest.raises(ValueError, match=message) as error:
        states.read_segmentation(path)
    assert "broken.bed" in str(error.value)


def test_read_segmentation_of_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.bed"):
        states.read_segmentation(tmp_path / "nowhere.bed")


def test_roadmap_states_are_numbered_in_order():
    for collection, n in ((states.ROADMAP_15, 15), (states.ROADMAP_18, 18)):
        assert [int(name.split("_")[0]) for name in collection] == list(range(1, n + 1))
    assert states.ROADMAP_15["7_Enh"] == (255, 255, 0)
    assert states.ROADMAP_18["9_EnhA1"] == (255, 195, 77)
