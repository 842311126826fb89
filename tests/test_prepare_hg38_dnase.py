"""Real sequence and accessibility through the readers of the simulated world."""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from helpers import motifs, ontology, windows
from helpers.tissues import read_tissues

ROOT = Path(__file__).resolve().parent.parent
TISSUES = ROOT / "notebooks" / "tissues" / "hg38_dnase"

_spec = importlib.util.spec_from_file_location(
    "prepare_hg38_dnase", ROOT / "scripts" / "prepare_hg38_dnase.py"
)
script = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(script)

SOURCE = script.default_source()
SITES = {"MA0139.2": "CTCF", "MA0506.3": "Nrf1"}


def real(test):
    """Mark a test of the real data: it takes their preparation, and the data."""
    absent = pytest.mark.skipif(
        not (SOURCE / script.TRACKS).is_dir(),
        reason=f"no {script.TRACKS} in $CHROMATIN_SHARED_DATA or ../shared/data",
    )
    return pytest.mark.slow(absent(test))


# The rules, on small input


def test_default_source_is_the_variable_or_the_sibling_folder(monkeypatch):
    monkeypatch.setenv("CHROMATIN_SHARED_DATA", "elsewhere")
    assert script.default_source() == Path("elsewhere")
    monkeypatch.delenv("CHROMATIN_SHARED_DATA")
    assert script.default_source() == ROOT.parent / "shared" / "data"


def test_tile_windows_covers_regions_and_splits_by_chromosome():
    chroms = ["chr1", "chr11", "chr2"]
    regions = pd.DataFrame({"chrom": chroms, "start": [100, 200, 300]})
    regions["end"] = regions["start"] + 2 * script.WINDOW_BP
    table = script.tile_windows(regions)
    first = regions["start"].to_numpy()
    assert (
        table["start"].tolist()
        == np.ravel(np.stack([first, first + script.WINDOW_BP], axis=1)).tolist()
    )
    assert (table["end"] - table["start"] == script.WINDOW_BP).all()
    assert table["split"].tolist() == ["test"] * 2 + ["tune"] * 2 + ["select"] * 2
    assert (
        table["block"].tolist() == ["region1"] * 2 + ["region2"] * 2 + ["region3"] * 2
    )


def test_call_peaks_finds_planted_runs_against_the_local_background():
    coverage = np.ones((3, 100))
    coverage[1] *= 10  # many copies, but nothing open in most of it
    coverage[0, 20:23] = 30, 50, 40
    coverage[0, 99] = 35
    coverage[1, [60, 62]] = 400, 90
    coverage[2, 5:8] = 7, 8, 7  # nine tokens in all: 3 % of 300
    regions = pd.DataFrame({"chrom": ["a", "b", "c"], "start": [0, 1000, 2000]})
    peaks = script.call_peaks(coverage, regions)
    expected = [
        ("a", 20 * 128, 23 * 128, 21 * 128, 50),
        ("a", 99 * 128, 100 * 128, 99 * 128, 35),
        ("b", 1000 + 60 * 128, 1000 + 61 * 128, 1000 + 60 * 128, 40),
        ("b", 1000 + 62 * 128, 1000 + 63 * 128, 1000 + 62 * 128, 9),
        ("c", 2000 + 5 * 128, 2000 + 8 * 128, 2000 + 6 * 128, 8),
    ]
    found = peaks[["chrom", "start", "end", "summit", "fold"]]
    assert list(found.itertuples(index=False, name=None)) == expected


def test_missing_source_is_named_before_anything_is_written(tmp_path):
    with pytest.raises(FileNotFoundError, match="windows.bed.*Biological_Process"):
        script.prepare(tmp_path / "source", tmp_path / "output")
    assert list(tmp_path.iterdir()) == []


# The real data


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("repository")
    collection = motifs.jaspar_vertebrates()
    some = [m for i, m in enumerate(collection) if i % 4 == 0 or m.id in SITES]
    with pytest.MonkeyPatch.context() as patch:  # thresholds take most of the time
        patch.setattr(motifs, "jaspar_vertebrates", lambda: some)
        folder = script.prepare(SOURCE, root / "_build" / "data" / "hg38_dnase")
    assert [path.name for path in folder.parent.iterdir()] == ["hg38_dnase"]
    shutil.copytree(TISSUES, root / "notebooks" / "tissues" / "hg38_dnase")
    return read_tissues(root / "notebooks" / "tissues" / "hg38_dnase")


@pytest.fixture(scope="module")
def dataset(prepared):
    return windows.WindowDataset(prepared, window_bp=script.WINDOW_BP)


@pytest.fixture(scope="module")
def tokens(dataset):
    """Positions, sequence codes and scaled signal of all tokens."""
    everything = np.arange(len(dataset.windows))
    codes = np.stack([dataset.codes(w) for w in everything])
    signal = [dataset.target(everything, b) for b in range(len(dataset.biosamples))]
    return (
        dataset.token_table(everything),
        codes.reshape(-1, windows.TOKEN_BP),
        np.stack(signal).reshape(len(signal), -1),
    )


@real
def test_tissue_files_are_pairs_that_name_their_caveats(prepared):
    assert [tissue.name for tissue in prepared] == [
        "brain",
        "kidney",
        "muscle",
        "vagina",
    ]
    tracks = pd.read_csv(prepared[0].genome.parent / "tracks.tsv", sep="\t")
    tracks = tracks.set_index("file_accession")
    for tissue in prepared:
        assert "DNase-seq, not ATAC-seq" in tissue.notes
        assert "32 bp" in tissue.notes
        assert ("LOOSE" in tissue.notes) == (tissue.name in ("kidney", "vagina"))
        for biosample in tissue.biosamples:
            track = tracks.loc[biosample.signal.stem]
            assert (
                biosample.accession == f"{track.name} (experiment {track.experiment})"
            )
            assert biosample.scale == pytest.approx(track["scale"], rel=1e-3)
            embryo = "embryo" in track["description"]
            assert ("embryo" in biosample.name) == embryo
            assert not embryo or "EMBRYO" in tissue.notes
            assert biosample.states is None


@real
def test_windows_have_the_shares_and_blocks_of_a_study(dataset):
    table = dataset.windows
    assert len(table) == 65 * 8
    share = table["split"].value_counts(normalize=True)
    expected = {"select": 0.60, "tune": 0.15, "test": 0.25}
    assert share.to_dict() == pytest.approx(expected, abs=0.02)
    blocks = table.groupby("split")["block"].nunique()
    assert blocks.to_dict() == {"select": 38, "tune": 10, "test": 17}


@real
def test_inputs_have_the_shapes_of_the_model(dataset):
    some, n_motifs = [0, 1, 519], dataset.motif_activity.shape[1]
    assert dataset.sequence(some).shape == (3, 8192, 4)
    assert dataset.atac(some, 0).shape == (3, 2048)
    assert dataset.target(some, 0).shape == (3, 64)
    assert dataset.motif_activity.shape == (8, n_motifs)
    assert n_motifs == len(motifs.read_motifs(dataset.tissues[0].motifs))
    for biosample in range(8):
        assert 0.029 < dataset.in_peak(biosample).mean() < 0.031


@real
def test_sequence_is_known_and_depleted_of_cpg(tokens):
    _, codes, _ = tokens
    assert (codes == 4).mean() < 0.001
    c_or_g = [(codes == base).mean() for base in (1, 2)]
    cpg = ((codes[:, :-1] == 1) & (codes[:, 1:] == 2)).mean()
    gpc = ((codes[:, :-1] == 2) & (codes[:, 1:] == 1)).mean()
    assert cpg / np.prod(c_or_g) < 0.5  # observed over expected; vertebrates: about 0.2
    assert gpc / np.prod(c_or_g) > 0.8


@real
def test_tracks_have_a_common_scale_and_agree_at_the_same_locus(tokens):
    _, _, signal = tokens
    assert signal.mean(axis=1) == pytest.approx(3, rel=0.01)
    level = np.log1p(signal)
    others = (level.sum(axis=0) - level) / (len(level) - 1)
    half = level.shape[1] // 2  # the same tokens, moved to another place
    for own, rest in zip(level, others, strict=True):
        assert np.corrcoef(own, rest)[0, 1] > 0.4
        assert abs(np.corrcoef(own, np.roll(rest, half))[0, 1]) < 0.15


@real
def test_signal_is_high_at_transcription_start_sites(prepared, tokens):
    positions, _, signal = tokens
    genes = ontology.read_genes(prepared[0].genes)
    at_tss = np.zeros(len(positions), dtype=bool)
    for chrom, table in genes.groupby("chrom"):
        here = np.flatnonzero(positions["chrom"] == chrom)
        start = positions["start"].to_numpy()[here]
        distance = np.abs(start[:, None] + 64 - table["tss"].to_numpy()[None])
        at_tss[here] = (distance <= 192).any(axis=1)
    assert at_tss.sum() > 50
    fold = signal[:, at_tss].mean(axis=1) / signal[:, ~at_tss].mean(axis=1)
    shallow = [tissue.name for tissue in prepared].index("vagina") * 2 + 1
    assert (np.delete(fold, shallow) > 4).all()
    assert fold[shallow] > 1.5


@real
def test_signal_is_high_where_sequence_has_ctcf_and_nrf1(dataset, tokens):
    # Sequence and tracks come from different files: only a correct offset joins them.
    _, codes, signal = tokens
    known = {m.id: m for m in motifs.read_motifs(dataset.tissues[0].motifs)}
    chosen = [known[identifier] for identifier in SITES]
    assert [motif.name for motif in chosen] == list(SITES.values())
    hits = motifs.count_hits(codes, chosen, p_value=1e-5) > 0
    mean = signal.mean(axis=0)
    for hit in hits.T:
        assert mean[hit].mean() > 4 * mean[~hit].mean()
        assert mean[np.roll(hit, 40)].mean() < 2 * mean[~hit].mean()


@real
def test_motif_file_holds_motifs_that_can_be_found(prepared):
    for motif in motifs.read_motifs(prepared[0].motifs):
        assert np.isfinite(motifs.score_threshold(motif, script.MOTIF_P_VALUE))


@real
def test_motif_activity_ranks_ap1_first_in_cultured_mesenchymal_cells(dataset):
    order = sorted(m.id for m in motifs.read_motifs(dataset.tissues[0].motifs))
    names = {m.id: m.name for m in motifs.jaspar_vertebrates()}
    assert dataset.motif_activity.min() == 0 and dataset.motif_activity.max() == 1
    for biosample in ("A172", "cardiac_fibroblast"):
        row = dataset.biosamples["name"].tolist().index(biosample)
        best = names[order[dataset.motif_activity[row].argmax()]]
        assert best.upper().startswith(("FOS", "JUN"))
