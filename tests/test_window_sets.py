"""Windows by rule: what is drawn, what is refused, and how chromosomes are split."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pysam
import pytest

from helpers.window_sets import choose_windows, tile_genome, write_windows
from helpers.windows import Genome, read_windows

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("CHROMATIN_SHARED_DATA", ROOT.parent / "shared" / "data"))
EXAMPLES = SHARED / "epibert_examples"
AUTOSOMES = [f"chr{i}" for i in range(1, 23)]
LENGTHS = {"chr1": 4_000, "chr2": 3_050, "chr3": 2_000, "chr4": 1_000, "chrX": 3_000}
NAMES = ["chr1", "chr2", "chr3", "chr4"]


def choose(candidates=None, **changes):
    if candidates is None:
        candidates = tile_genome(LENGTHS, window_bp=100)
    arguments = {
        "chromosomes": NAMES,
        "window_bp": 100,
        "n_windows": 40,
        "random_state": 0,
        "block_bp": 1000,
    }
    return choose_windows(candidates, **(arguments | changes))


def region(table):
    return list(table[["chrom", "start", "end"]].itertuples(index=False, name=None))


def test_tiles_are_whole_windows_from_the_first_base():
    table = tile_genome({"chr2": 250, "chr1": 100, "chr3": 99}, window_bp=100)
    assert region(table) == [("chr2", 0, 100), ("chr2", 100, 200), ("chr1", 0, 100)]


def test_windows_are_drawn_evenly_from_the_chromosomes_asked_for():
    table = choose()
    assert list(table) == ["chrom", "start", "end", "split", "block"]
    assert table["chrom"].value_counts().to_dict() == dict.fromkeys(NAMES, 10)
    tiles = set(region(tile_genome(LENGTHS, window_bp=100)))
    assert set(region(table)) <= tiles
    assert not table.duplicated().any()
    assert table["chrom"].unique().tolist() == NAMES
    for _, rows in table.groupby("chrom"):
        assert rows["start"].is_monotonic_increasing


def test_chromosomes_with_few_windows_give_what_they_have():
    counts = choose(n_windows=65)["chrom"].value_counts()
    assert counts.to_dict() == {"chr1": 19, "chr2": 18, "chr3": 18, "chr4": 10}
    everything = choose(n_windows=100)
    assert len(everything) == 40 + 30 + 20 + 10
    with pytest.raises(ValueError, match=r"got 101, found \{'on the chromosomes': 100"):
        choose(n_windows=101)
    with pytest.raises(ValueError, match="n_windows must be at least 1 .* got 0"):
        choose(n_windows=0)


def test_the_draw_depends_on_the_seed_only():
    tiles = tile_genome(LENGTHS, window_bp=100)
    shuffled = tiles.sample(frac=1, random_state=1)
    assert choose(shuffled).equals(choose(tiles))
    assert choose(random_state=np.random.default_rng(0)).equals(choose())
    other = choose(random_state=1)
    assert region(other) != region(choose())
    assert set(other["split"] + other["chrom"]) == set(
        choose()["split"] + choose()["chrom"]
    )
    reverse = choose(chromosomes=NAMES[::-1])
    assert reverse["chrom"].unique().tolist() == NAMES[::-1]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([4, 3, 2, 1], {"select": 5, "tune": 3, "test": 2}),
        ([10, 10, 10, 10], {"select": 20, "tune": 10, "test": 10}),
        ([100, 1, 1], {"select": 100, "tune": 1, "test": 1}),
        ([5, 5, 5], {"select": 5, "tune": 5, "test": 5}),
        ([30, 20, 20, 10, 10, 10], {"select": 50, "tune": 30, "test": 20}),
        ([7] * 22, {"select": 77, "tune": 42, "test": 35}),
    ],
)
def test_whole_chromosomes_go_to_splits_close_to_their_shares(counts, expected):
    lengths = {f"chr{i}": 100 * n for i, n in enumerate(counts)}
    tiles = tile_genome(lengths, window_bp=100)
    table = choose(tiles, chromosomes=list(lengths), n_windows=sum(counts))
    assert table.groupby("chrom")["split"].nunique().max() == 1
    assert table["split"].value_counts().to_dict() == expected


def test_blocks_are_bins_of_the_genome_by_the_middle_of_a_window():
    rows = [("chr1", 900, 1000), ("chr1", 960, 1060), ("chr1", 2949, 3049)]
    rows += [("chr2", 0, 100), ("chr3", 0, 100)]
    table = pd.DataFrame(rows, columns=["chrom", "start", "end"])
    found = choose(table, n_windows=4, drop_overlaps=True)
    assert found["block"].tolist() == ["chr1:0", "chr1:2", "chr2:0", "chr3:0"]
    table["start"] += 60
    table["end"] += 60
    found = choose(table, n_windows=4, drop_overlaps=True)
    assert found["block"].tolist() == ["chr1:1", "chr1:3", "chr2:0", "chr3:0"]


def test_masked_windows_are_left_out(tmp_path):
    records = {name: ["A"] * length for name, length in LENGTHS.items()}
    records["chr1"][0:11] = "N" * 11  # 11 % of the first window
    records["chr2"][0:10] = "N" * 10
    records["chr3"][100:106] = "N" * 6
    path = tmp_path / "genome.fa"
    path.write_text("".join(f">{n}\n{''.join(s)}\n" for n, s in records.items()))
    pysam.faidx(str(path))
    exclude = tmp_path / "blacklist.bed"
    exclude.write_text("chr3\t104\t111\nchr4\t950\t2000\nchr9\t0\t5\n")

    def missing(**changes):
        tiles = tile_genome(LENGTHS, window_bp=100)
        tiles = tiles[tiles["chrom"] != "chrX"]
        with pytest.raises(ValueError, match="n_windows") as error:
            choose(n_windows=101, **changes)
        n = int(str(error.value).rpartition(": ")[2].strip("}"))
        return sorted(set(region(tiles)) - set(region(choose(n_windows=n, **changes))))

    genome = Genome(path)
    assert missing() == []
    first, third, last = ("chr1", 0, 100), ("chr3", 100, 200), ("chr4", 900, 1000)
    assert missing(genome=genome) == [first]
    assert missing(exclude=exclude) == [last]
    # Six N and seven excluded bases, two of them the same: 11 in all.
    assert missing(genome=genome, exclude=exclude) == [first, third, last]
    assert missing(genome=genome, exclude=exclude, max_masked=0.11) == [last]
    assert missing(genome=genome, max_masked=0) == [first, ("chr2", 0, 100), third]
    table = pd.read_csv(exclude, sep="\t", names=["chrom", "start", "end"])
    assert missing(exclude=table) == [last]


def test_overlapping_candidates_are_refused_or_dropped(tmp_path):
    bed = tmp_path / "candidates.bed"
    rows = [("chr1", s, s + 100) for s in (0, 50, 99, 100, 250)]
    rows += [("chr2", 0, 100), ("chr3", 0, 100)]
    bed.write_text("".join(f"{c}\t{s}\t{e}\n" for c, s, e in rows[::-1]))
    message = (
        r"candidates\.bed: windows must not overlap; found 3 that .* the first "
        r"chr1:50-150 with chr1:0-100"
    )
    with pytest.raises(ValueError, match=message):
        choose(bed, n_windows=5)
    found = choose(bed, n_windows=5, drop_overlaps=True)
    assert region(found) == [rows[0], rows[3], rows[4], rows[5], rows[6]]


def test_bad_candidates_and_arguments_are_named(tmp_path):
    bed = tmp_path / "candidates.bed"
    bed.write_text("chr1\t0\t100\nchr1\t100\t201\nchrX\t0\t5\n")
    message = r"candidates\.bed: .* 100 bp long, .*; found 1 of 2 .* chr1:100-201"
    with pytest.raises(ValueError, match=message):
        choose(bed, n_windows=1)
    with pytest.raises(FileNotFoundError, match=r"not found: .*other\.bed"):
        choose(tmp_path / "other.bed")
    with pytest.raises(ValueError, match=r"at least 3 chrom.* \['chr1', 'chr2'\]"):
        choose(chromosomes=["chr1", "chr2"])
    with pytest.raises(ValueError, match="at least 3 chromosomes"):
        choose(n_windows=2)
    with pytest.raises(ValueError, match=r"'on the chromosomes': 0"):
        choose(chromosomes=["1", "2", "3"])
    with pytest.raises(ValueError, match=r"candidates: columns \['end'\] are missing"):
        choose(tile_genome(LENGTHS, window_bp=100)[["chrom", "start"]])
    with pytest.raises(ValueError, match="max_masked must be a share, 0 to 1; got 10"):
        choose(max_masked=10)
    with pytest.raises(ValueError, match="block_bp must be at least 1; got 0"):
        choose(block_bp=0)


def test_written_windows_are_read_back(tmp_path):
    table, path = choose(), tmp_path / "windows.tsv"
    path.write_text("older")
    write_windows(table.assign(more=1), path)
    pd.testing.assert_frame_equal(read_windows(path, window_bp=100), table)
    assert os.listdir(tmp_path) == ["windows.tsv"]


@pytest.mark.skipif(
    not EXAMPLES.is_dir(),
    reason="no epibert_examples in $CHROMATIN_SHARED_DATA or ../shared/data",
)
def test_the_windows_that_epibert_was_not_trained_on(tmp_path):
    """The file is free of overlap with training windows, not of its own."""
    bed = EXAMPLES / "hg38_valid_524k_no_overlap.bed"
    arguments = {
        "chromosomes": AUTOSOMES,
        "window_bp": 524_288,
        "random_state": 0,
        "exclude": EXAMPLES / "hg38.blacklist.bed",
    }
    with pytest.raises(ValueError, match="windows must not overlap; found 1327 that"):
        choose_windows(bed, n_windows=200, **arguments)
    table = choose_windows(bed, n_windows=200, drop_overlaps=True, **arguments)
    path = tmp_path / "windows.tsv"
    write_windows(table, path)  # to be read back, splits must not share a chromosome
    pd.testing.assert_frame_equal(read_windows(path, window_bp=524_288), table)
    counts = table["split"].value_counts().to_dict()
    assert counts == {"select": 100, "tune": 50, "test": 50}
    assert table["chrom"].nunique() == 15
    assert set(table["chrom"]) <= set(AUTOSOMES)
    assert 30 <= table["block"].nunique() <= 40
    left = r"'on the chromosomes': 1352, 'not masked': 1348, 'apart': 283"
    with pytest.raises(ValueError, match=f"got 284, found {{{left}}}"):
        choose_windows(bed, n_windows=284, drop_overlaps=True, **arguments)
