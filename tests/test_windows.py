"""Windows and tracks against slow references, and every damaged input by name."""

import gzip
import multiprocessing
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pybigtools
import pysam
import pytest

from helpers import motifs
from helpers.tissues import read_tissues
from helpers.windows import (
    Genome,
    WindowDataset,
    read_bed,
    read_windows,
    soft_clip,
    token_targets,
)

WINDOW_BP = 4096  # of the small world


def write_bigwig(path, intervals, *, length=4 * WINDOW_BP, n_chromosomes=20):
    """Write intervals, and nothing else but one base of 0 on every chromosome.

    The writer leaves chromosomes without data out of the file.
    """
    chromosomes = [f"sim{i + 1}" for i in range(n_chromosomes)]
    taken = {chrom for chrom, *_ in intervals}
    empty = [(chrom, 0, 1, 0.0) for chrom in chromosomes if chrom not in taken]
    order = {chrom: i for i, chrom in enumerate(chromosomes)}
    rows = sorted([*intervals, *empty], key=lambda row: (order[row[0]], row[1]))
    sizes = dict.fromkeys(chromosomes, length)
    pybigtools.open(str(path), "w").write(sizes, iter(rows))


def write_fasta(path, records):
    path.write_text("".join(f">{name}\n{text}\n" for name, text in records.items()))
    pysam.faidx(str(path))
    return path


# --- Windows ---


GOOD = [
    ("chr1", 0, 256, "select", "a"),
    ("chr1", 256, 512, "select", "a"),
    ("chr2", 0, 256, "tune", "b"),
    ("chr3", 512, 768, "test", "c"),
]


def write_windows(path, rows=GOOD, columns=("chrom", "start", "end", "split", "block")):
    pd.DataFrame(rows, columns=columns).to_csv(path, sep="\t", index=False)
    return path


def with_row(index, **changes):
    rows = [list(row) for row in GOOD]
    for name, value in changes.items():
        rows[index][["chrom", "start", "end", "split", "block"].index(name)] = value
    return rows


def test_read_windows_keeps_file_order_and_drops_other_columns(tmp_path):
    path = tmp_path / "windows.tsv"
    columns = ["name", "chrom", "start", "end", "split", "block"]
    write_windows(path, [("x", *row) for row in GOOD[::-1]], columns)
    table = read_windows(path, window_bp=256)
    assert list(table) == columns[1:]
    assert list(table.itertuples(index=False, name=None)) == GOOD[::-1]


def test_read_windows_keeps_names_that_look_like_something_else(tmp_path):
    rows = [(str(i), 0, 256, s, f"0{i}") for i, s in enumerate(["select", "tune"])]
    path = write_windows(tmp_path / "w.tsv", [*rows, ("NA", 0, 256, "test", "1e3")])
    table = read_windows(path, window_bp=256)
    assert list(table["chrom"]) == ["0", "1", "NA"]
    assert list(table["block"]) == ["00", "01", "1e3"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (with_row(2, end=255), "line 4: end must be start [+] 256, .* found .*255"),
        (
            with_row(1, start=100, end=356),
            "line 3: start must be outside .* found .*100",
        ),
        (with_row(0, split="train"), "must use all of .*'select'.*; found .*'train'"),
        (GOOD[:3], r"must use all of .*; found \['select', 'tune'\]"),
        (with_row(3, chrom="chr1"), r"in more than one split: \['chr1'\]"),
        (with_row(2, block=""), "line 4: block must be given; found ''"),
        (with_row(2, start=-128, end=128), "line 4: start .* integer >= 0; found '-12"),
        (with_row(2, start="0.5"), "line 4: start must be an integer .* found '0.5'"),
        (with_row(2, end=""), "line 4: end must be an integer >= 0; found ''"),
    ],
)
def test_read_windows_names_file_line_and_value(tmp_path, rows, message):
    path = write_windows(tmp_path / "windows.tsv", rows)
    with pytest.raises(ValueError, match=message) as error:
        read_windows(path, window_bp=256)
    assert str(error.value).startswith(str(path))


def test_read_windows_names_missing_file_and_columns(tmp_path):
    path = tmp_path / "windows.tsv"
    with pytest.raises(FileNotFoundError, match=r"not found: .*windows\.tsv"):
        read_windows(path, window_bp=256)
    path.write_text("chr1\t0\t256\n")
    with pytest.raises(ValueError, match=r"columns \['chrom', .*found \['chr1', '0'"):
        read_windows(path, window_bp=256)
    path.write_text("")
    with pytest.raises(ValueError, match=r"windows\.tsv: not a table"):
        read_windows(path, window_bp=256)


# --- Genome ---


def test_genome_reads_chromosomes_and_regions(tmp_path):
    records = {
        "chr1": "ACGTNacgtnRY",
        "chr2:100-108": "AAAACCCC",
        "chr2:200-204": "GGTT",
        "HLA-A*01:01": "TT",
    }
    genome = Genome(write_fasta(tmp_path / "genome.fa", records))
    assert genome.chromosomes == ["chr1", "chr2", "HLA-A*01:01"]
    assert list(genome.codes("chr1", 0, 12)) == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 4, 4]
    assert list(genome.codes("chr2", 102, 106)) == [0, 0, 1, 1]
    assert list(genome.codes("chr2", 201, 204)) == [2, 3, 3]
    assert list(genome.codes("HLA-A*01:01", 0, 2)) == [3, 3]
    assert genome.codes("chr1", 3, 5).dtype == np.uint8


def test_bases_past_the_end_of_a_record_are_n(tmp_path):
    records = {"chr1": "ACGT", "chr2:100-108": "AAAACCCC"}
    genome = Genome(write_fasta(tmp_path / "genome.fa", records))
    assert list(genome.codes("chr1", -3, 6)) == [4, 4, 4, 0, 1, 2, 3, 4, 4]
    assert list(genome.codes("chr2", 98, 103)) == [4, 4, 0, 0, 0]
    assert list(genome.codes("chr2", 104, 111)) == [1, 1, 1, 1, 4, 4, 4]
    assert genome.covers("chr2", 100, 108)
    assert not genome.covers("chr2", 99, 108)
    assert not genome.covers("chr2", 100, 109)
    assert not genome.covers("chr3", 0, 1)


def test_genome_reads_bgzip_as_plain(small_world, tmp_path):
    plain = Genome(small_world.folder / "genome.fa")
    packed = tmp_path / "genome.fa.gz"
    pysam.tabix_compress(str(small_world.folder / "genome.fa"), str(packed))
    pysam.faidx(str(packed))
    region = ("sim7", 1000, 5000)
    assert np.array_equal(Genome(packed).codes(*region), plain.codes(*region))


def test_genome_names_what_is_wrong(tmp_path):
    path = tmp_path / "genome.fa"
    with pytest.raises(FileNotFoundError, match=r"not found: .*genome\.fa$"):
        Genome(path)
    path.write_text(">chr1\nACGT\n")
    message = r"not found: .*genome\.fa\.fai; make it by `samtools faidx .*genome\.fa`"
    with pytest.raises(FileNotFoundError, match=message):
        Genome(path)
    assert not Path(f"{path}.fai").exists()  # nothing is written beside the file
    genome = Genome(write_fasta(path, {"chr1": "ACGT", "chr2:4-8": "ACGT"}))
    with pytest.raises(ValueError, match=r"genome\.fa: chromosome 'chrX' is absent; f"):
        genome.codes("chrX", 0, 4)
    with pytest.raises(ValueError, match=r"genome\.fa: chr2:0-4 is not in any record"):
        genome.codes("chr2", 0, 4)
    # samtools faidx names regions by 1-based, closed intervals.
    write_fasta(path, {"chr2:5-8": "ACGT"})
    with pytest.raises(ValueError, match=r"'chr2:5-8' must hold 3 bases.*found 4"):
        Genome(path)


def test_genome_tells_gzip_from_bgzip(small_world, tmp_path):
    plain = small_world.folder / "genome.fa"
    path = tmp_path / "genome.fa.gz"
    path.write_bytes(gzip.compress(plain.read_bytes()))
    shutil.copy(f"{plain}.fai", f"{path}.fai")
    with pytest.raises(
        ValueError, match=r"genome\.fa\.gz: compressed by gzip.*`bgzip`"
    ):
        Genome(path)
    pysam.tabix_compress(str(plain), str(path), force=True)
    with pytest.raises(FileNotFoundError, match=r"not found: .*\.gz\.gzi; make it by"):
        Genome(path)
    path.write_bytes(path.read_bytes().replace(b"BC", b"XY"))  # another extra field
    with pytest.raises(ValueError, match=r"\.fa\.gz: compressed by gzip"):
        Genome(path)


@pytest.mark.parametrize("packed", [False, True])
def test_a_truncated_genome_is_named_at_once(small_world, tmp_path, packed):
    path = tmp_path / "genome.fa"
    shutil.copy(small_world.folder / "genome.fa", path)
    if packed:
        pysam.tabix_compress(str(path), f"{path}.gz")
        path = tmp_path / "genome.fa.gz"
    pysam.faidx(str(path))
    content = path.read_bytes()
    path.write_bytes(content[: int(0.7 * len(content))])
    message = r"record 'sim\d+' must have bases .*\.fai says; found 0 .*truncated"
    with pytest.raises(ValueError, match=message):
        Genome(path)


def test_genome_knows_the_lengths_of_whole_chromosomes(tmp_path):
    records = {"chr1": "ACGTA", "chr2:100-108": "AAAACCCC", "HLA-A*01:01": "TT"}
    genome = Genome(write_fasta(tmp_path / "genome.fa", records))
    assert genome.lengths == {"chr1": 5, "HLA-A*01:01": 2}


def test_a_region_between_records_is_read_from_the_one_that_holds_more(tmp_path):
    records = {"chr1:0-4": "AAAA", "chr1:4-8": "CCCC"}
    genome = Genome(write_fasta(tmp_path / "genome.fa", records))
    assert list(genome.codes("chr1", 1, 6)) == [0, 0, 0, 4, 4]
    assert list(genome.codes("chr1", 3, 8)) == [4, 1, 1, 1, 1]
    assert list(genome.codes("chr1", 7, 20)) == [1] + 12 * [4]


# --- Values ---


def test_soft_clip_is_the_root_above_the_limit():
    values = np.array([0, 149, 150, 151, 154, 250], dtype=np.float32)
    clipped = soft_clip(values, 150.0)
    assert list(clipped) == [0, 149, 150, 151, 152, 160]
    assert clipped.dtype == np.float32
    assert list(values) == [0, 149, 150, 151, 154, 250]


def test_token_targets_sum_32_bins_and_clip():
    track = np.zeros((2, 3 * 32), dtype=np.float32)
    track[0, :32] = 1.0
    track[0, 32] = 2016.0
    track[1, 95] = 5.0
    assert token_targets(track).tolist() == [[32, 2004, 0], [0, 0, 5]]


# --- The data set against slow references ---


def reference_bins(path, chrom, start, end, scale, widen):
    """Add every cut to the bases within 5 bp of it, base by base."""
    base = np.zeros(end - start)
    for first, last, value in pybigtools.open(str(path)).records(chrom):
        for position in range(first, last):
            for covered in range(position - widen, position + widen + 1):
                if start <= covered < end:
                    base[covered - start] += value
    return base.reshape(-1, 4).sum(axis=1) * scale


def test_cut_sites_are_widened_scaled_and_binned(small_dataset, small_world):
    dataset = small_dataset
    tissue = dataset.tissues[0]
    assert tissue.pair[0].signal_kind == "cut_sites"
    for window in (0, 1, 3, 77):  # both ends of a chromosome, and inside
        row = dataset.windows.iloc[window]
        path = small_world.folder / "blood_in_vitro.bw"
        region = (row["chrom"], row["start"], row["end"])
        expected = reference_bins(path, *region, tissue.pair[0].scale, widen=5)
        found = dataset.track([window], 0)
        assert found.shape == (1, WINDOW_BP // 4)
        assert found.dtype == np.float32
        assert np.allclose(found[0], expected, rtol=1e-6)
        assert expected.sum() > 0


def test_cuts_outside_a_window_reach_into_it(small_dataset, tmp_path):
    length = 4 * WINDOW_BP
    cuts = [0, 4, WINDOW_BP - 1, WINDOW_BP, WINDOW_BP + 4, WINDOW_BP + 5, length - 1]
    path = tmp_path / "cuts.bw"
    write_bigwig(path, [("sim1", cut, cut + 1, 2.0) for cut in cuts])
    tissue = small_dataset.tissues[0]
    dataset = dataset_with(tissue, signal=path, scale=0.5)
    for window in range(4):
        start = window * WINDOW_BP
        expected = reference_bins(path, "sim1", start, start + WINDOW_BP, 0.5, widen=5)
        assert np.array_equal(dataset.track([window], 0)[0], expected)
    assert dataset.track([1], 0)[0, :3].tolist() == [16, 11, 5]


def test_coverage_is_used_as_it_is(small_dataset, tmp_path):
    path = tmp_path / "coverage.bw"
    write_bigwig(path, [("sim2", 2, 7, 1.5), ("sim2", 100, 300, 0.25)])
    tissue = small_dataset.tissues[0]
    dataset = dataset_with(tissue, signal=path, scale=3.0, signal_kind="coverage")
    expected = reference_bins(path, "sim2", 0, WINDOW_BP, 3.0, widen=0)
    assert np.allclose(dataset.track([4], 0)[0], expected)
    assert expected[:3].tolist() == [9, 13.5, 0]
    assert dataset.track([0], 0).sum() == 0


@pytest.mark.parametrize("kind", ["cut_sites", "coverage"])
def test_tracks_equal_a_loop_over_bases(small_dataset, tmp_path, kind):
    """Intervals of any length and value, also across the ends of windows."""
    rng = np.random.default_rng(5)
    ends = np.cumsum(rng.choice([1, 1, 1, 2, 3, 4, 5, 11, 40, 300], 1400))
    ends = ends[ends < 4 * WINDOW_BP]
    value = np.where(rng.random(len(ends)) < 0.3, 0, rng.gamma(0.5, 90, len(ends)))
    rows = zip([0, *ends[:-1].tolist()], ends.tolist(), value.tolist(), strict=True)
    path = tmp_path / "any.bw"
    write_bigwig(path, [("sim1", *row) for row in rows])
    dataset = dataset_with(
        small_dataset.tissues[0], signal=path, scale=0.37, signal_kind=kind
    )
    widen = 5 if kind == "cut_sites" else 0
    for window in range(4):
        start = window * WINDOW_BP
        region = (path, "sim1", start, start + WINDOW_BP)
        expected = reference_bins(*region, 0.37, widen)
        (found,) = dataset.track([window], 0)
        np.testing.assert_allclose(found, expected, rtol=2**-23, atol=0)
        np.testing.assert_array_equal(found == 0, expected == 0)
    assert (dataset.atac([0, 1, 2, 3], 0) > 150).any()


def dataset_with(tissue, **changes):
    tissue = replace(tissue, pair=(replace(tissue.pair[0], **changes), tissue.pair[1]))
    return WindowDataset([tissue], window_bp=WINDOW_BP)


def test_batches_read_all_biosamples_of_groups(small_dataset):
    groups = [[5, 6, 2], np.array([79]), range(10, 14), [2, 2]]
    for n_threads in (1, 3):
        batches = list(small_dataset.batches(iter(groups), n_threads=n_threads))
        assert [b.windows.tolist() for b in batches] == [list(g) for g in groups]
        for group, batch in zip(groups, batches, strict=True):
            assert np.array_equal(batch.sequence, small_dataset.sequence(group))
            atac = [small_dataset.atac(group, b) for b in range(4)]
            assert np.array_equal(batch.atac, atac)
            assert batch.atac.dtype == batch.sequence.dtype == np.float32
    assert list(small_dataset.batches([])) == []


def test_forked_processes_read_for_themselves(small_dataset):
    """A fork shares the position in every open file, as in workers of data loaders."""
    windows = range(len(small_dataset.windows))

    def read():
        sequence = [small_dataset.sequence([w]) for w in windows]
        return np.concatenate(sequence), np.stack(
            [small_dataset.track([w], 0) for w in windows]
        )

    def agrees():
        return all(map(np.array_equal, read(), expected))

    expected = read()
    fork = multiprocessing.get_context("fork")
    same = fork.SimpleQueue()
    workers = [fork.Process(target=lambda: same.put(agrees())) for _ in range(3)]
    for worker in workers:
        worker.start()
    assert agrees()
    for worker in workers:
        worker.join()
    assert [same.get() for _ in workers] == [True] * 3


def test_batches_are_read_one_ahead(small_dataset):
    asked = []

    def groups():
        for window in range(10):
            asked.append(window)
            yield [window]

    batches = small_dataset.batches(groups())
    next(batches)
    assert asked == [0, 1]
    next(batches)
    assert asked == [0, 1, 2]
    batches.close()


def test_windows_come_in_the_order_asked_for(small_dataset):
    windows = [5, 6, 2, 79, 2]
    together = small_dataset.track(windows, 1)
    alone = [small_dataset.track([w], 1)[0] for w in windows]
    assert np.array_equal(together, alone)
    sequence = small_dataset.sequence(windows)
    assert np.array_equal(sequence[3], small_dataset.sequence([79])[0])
    assert np.array_equal(sequence[2], sequence[4])


def test_sequence_is_one_hot_in_the_order_acgt(small_dataset, small_world):
    fasta = pysam.FastaFile(str(small_world.folder / "genome.fa"))
    row = small_dataset.windows.iloc[9]
    text = fasta.fetch(row["chrom"], row["start"], row["end"])
    (one_hot,) = small_dataset.sequence([9])
    assert one_hot.dtype == np.float32
    assert "".join("ACGT"[i] for i in one_hot.argmax(axis=1)) == text
    assert (one_hot.sum(axis=1) == 1).all()
    margin = small_dataset.codes(8, margin=3)
    assert list(margin[:3]) == [4, 4, 4]  # the window begins its chromosome
    assert np.array_equal(margin[3:-3], small_dataset.codes(8))
    assert np.array_equal(margin[-3:], small_dataset.codes(9)[:3])


def test_n_is_all_zeros(small_dataset, small_world, tmp_path):
    sequences = pysam.FastaFile(str(small_world.folder / "genome.fa"))
    records = {c: sequences.fetch(c) for c in small_world.world.chromosomes}
    records["sim1"] = "N" * 10 + records["sim1"][10:].lower()
    path = write_fasta(tmp_path / "genome.fa", records)
    tissue = replace(small_dataset.tissues[0], genome=path)
    (one_hot,) = WindowDataset([tissue], window_bp=WINDOW_BP).sequence([0])
    assert (one_hot[:10] == 0).all()
    assert np.array_equal(one_hot[10:], small_dataset.sequence([0])[0, 10:])


def test_region_records_give_the_same_sequence(small_dataset, small_world, tmp_path):
    sequences = pysam.FastaFile(str(small_world.folder / "genome.fa"))
    half = 2 * WINDOW_BP
    records = {
        f"{chrom}:{start}-{start + half}": sequences.fetch(chrom, start, start + half)
        for chrom in small_world.world.chromosomes
        for start in (0, half)
    }
    path = write_fasta(tmp_path / "regions.fa", records)
    tissue = replace(small_dataset.tissues[0], genome=path)
    dataset = WindowDataset([tissue], window_bp=WINDOW_BP)
    windows = [0, 2, 3, 41]
    assert np.array_equal(dataset.sequence(windows), small_dataset.sequence(windows))


def test_atac_and_target_clip_the_track(small_dataset):
    track = small_dataset.track([3, 4], 2)
    assert np.array_equal(small_dataset.atac([3, 4], 2), soft_clip(track, 150.0))
    target = small_dataset.target([3, 4], 2)
    assert target.shape == (2, small_dataset.n_tokens) == (2, 32)
    assert np.allclose(target, track.reshape(2, 32, 32).sum(axis=2), rtol=1e-6)


def brute_force_in_peak(dataset, peaks):
    inside = np.zeros((len(dataset.windows), dataset.n_tokens), dtype=bool)
    for i, window in enumerate(dataset.windows.itertuples()):
        for token in range(dataset.n_tokens):
            start = window.start + 128 * token
            inside[i, token] = any(
                chrom == window.chrom and first < start + 128 and last > start
                for chrom, first, last in peaks
            )
    return inside


def test_tokens_in_peaks_match_brute_force(small_dataset, tmp_path):
    rng = np.random.default_rng(1)
    start = rng.integers(0, 4 * WINDOW_BP, 60)
    length = rng.choice([1, 2, 127, 128, 129, 1000], 60)  # some overlap each other
    chrom = rng.choice(["sim1", "sim2", "sim20", "elsewhere"], 60)
    peaks = list(zip(chrom, start, start + length, strict=True))
    peaks += [("sim3", 128, 256), ("sim3", 511, 513), ("sim3", 4095, 4097)]
    path = tmp_path / "peaks.bed"
    path.write_text("".join(f"{c}\t{a}\t{b}\tname\n" for c, a, b in peaks))
    dataset = dataset_with(small_dataset.tissues[0], peaks=path)
    expected = brute_force_in_peak(dataset, peaks)
    assert np.array_equal(dataset.in_peak(0), expected)
    assert np.flatnonzero(dataset.in_peak(0)[8]).tolist() == [1, 3, 4, 31]
    assert np.flatnonzero(dataset.in_peak(0)[9]).tolist() == [0]
    assert 20 < expected.sum() < expected.size / 2


def test_token_table_gives_positions(small_dataset):
    table = small_dataset.token_table([4, 1])
    assert len(table) == 64
    assert table.iloc[0].tolist() == ["sim2", 0, 128, 4, 0, "sim2:0"]
    assert table.iloc[33].tolist() == ["sim1", 4096 + 128, 4096 + 256, 1, 1, "sim1:1"]


def test_token_targets_lie_where_the_token_table_says(small_dataset, small_world):
    expected = pd.read_parquet(small_world.folder / "truth" / "expected.parquet")
    tokens = small_dataset.token_table(range(80))
    truth = expected.set_index(["chrom", "start"])["liver_in_vivo"]
    truth = truth[list(zip(tokens["chrom"], tokens["start"], strict=True))]
    measured = small_dataset.target(range(80), 3).ravel()
    assert small_dataset.biosamples["name"][3] == "liver_in_vivo"
    assert np.corrcoef(np.log1p(truth), np.log1p(measured))[0, 1] > 0.8
    assert abs(np.corrcoef(truth, np.roll(measured, 1))[0, 1]) < 0.2


def test_biosamples_are_pairs_then_replicates(small_dataset):
    table = small_dataset.biosamples
    assert table["name"].tolist() == [
        "blood_in_vitro",
        "blood_in_vivo",
        "liver_in_vitro",
        "liver_in_vivo",
    ]
    assert table["context"].tolist() == ["in_vitro", "in_vivo"] * 2
    assert table["seen_in_training"].tolist() == [True] * 4
    full = WindowDataset(small_dataset.tissues, window_bp=WINDOW_BP, replicates=True)
    assert full.biosamples["name"].tolist()[:4] == table["name"].tolist()
    assert full.biosamples["replicate"].tolist() == [0] * 4 + [1] * 4
    assert full.motif_activity.shape == (8, small_dataset.motif_activity.shape[1])


def test_motif_activity_is_scaled_in_identifier_order(small_dataset, small_world):
    path = small_world.folder / "liver_in_vivo.motifs.tsv"
    table = pd.read_csv(path, sep="\t").sort_values("ID")
    raw = -table["LOG_EVALUE"].to_numpy()
    expected = (raw - raw.min()) / (raw.max() - raw.min())
    found = small_dataset.motif_activity
    assert found.dtype == np.float32
    assert np.allclose(found[3], expected, atol=1e-6)
    names = [m.id for m in motifs.read_motifs(small_world.folder / "motifs.meme")]
    assert list(table["ID"]) == sorted(names)


def test_windows_of_selects_splits(small_dataset):
    select, tune = (small_dataset.windows_of(s) for s in ("select", "tune"))
    both = small_dataset.windows_of("select", "tune")
    assert np.array_equal(np.sort(np.concatenate([select, tune])), both)
    assert len(both) + len(small_dataset.windows_of("test")) == 80
    with pytest.raises(ValueError, match=r"splits must be among .* got \['train'\]"):
        small_dataset.windows_of("train")


# --- Damaged and mismatched input: one error, before any work ---


@pytest.fixture
def world_copy(small_world, tmp_path):
    """A world that a test may damage, with its ``blood`` pair only."""
    folder = tmp_path / "world"
    truth = shutil.ignore_patterns("truth", "liver*")
    shutil.copytree(small_world.folder, folder, ignore=truth)
    return folder


def open_copy(folder, **changes):
    (tissue,) = read_tissues(folder / "tissues")
    return WindowDataset([replace(tissue, **changes)], window_bp=WINDOW_BP)


def refused(folder, message, kind=ValueError, **changes):
    with pytest.raises(kind, match=message) as error:
        open_copy(folder, **changes)
    assert error.type is kind
    assert "\n" not in str(error.value)


def test_an_undamaged_copy_is_read(world_copy):
    assert len(open_copy(world_copy).biosamples) == 2


@pytest.mark.parametrize("share", [0, 1e-4, 0.1, 0.5, 0.9, 0.999])
def test_truncated_bigwig_is_named(world_copy, share):
    path = world_copy / "blood_in_vivo.bw"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(world_copy, r"blood_in_vivo\.bw: truncated, or not a bigWig.*found")


def test_text_instead_of_a_bigwig_is_named(world_copy):
    shutil.copy(world_copy / "genome.fa", world_copy / "blood_in_vivo.bw")
    refused(world_copy, r"blood_in_vivo\.bw: truncated, or not a bigWig")
    magic = (0x888FFC26).to_bytes(4, "little")
    (world_copy / "blood_in_vivo.bw").write_bytes(magic + b" and so on " + magic)
    refused(world_copy, r"blood_in_vivo\.bw: damaged index: bytes 0 to 64 of 19")


def test_vanished_bigwig_is_named(world_copy):
    (tissue,) = read_tissues(world_copy / "tissues")
    tissue.pair[1].signal.unlink()
    with pytest.raises(FileNotFoundError, match=r"not found: .*blood_in_vivo\.bw"):
        WindowDataset([tissue], window_bp=WINDOW_BP)


def test_damage_inside_a_bigwig_is_named_when_it_is_read(world_copy):
    path = world_copy / "blood_in_vitro.bw"
    content = bytearray(path.read_bytes())
    first_block = int.from_bytes(content[16:24], "little") + 8
    content[first_block : first_block + 400] = bytes(400)
    path.write_bytes(content)
    dataset = open_copy(world_copy)
    with pytest.raises(ValueError, match=r"blood_in_vitro\.bw: cannot read sim1:0-"):
        dataset.track([0], 0)
    with pytest.raises(ValueError, match=r"blood_in_vitro\.bw: cannot read sim1:0-"):
        list(dataset.batches([[79], [0]]))


def test_bigwigs_need_no_particular_ending(world_copy, small_dataset):
    (world_copy / "blood_in_vivo.bw").rename(world_copy / "ENCFF001")
    tissue = world_copy / "tissues" / "blood.yml"
    tissue.write_text(tissue.read_text().replace("blood_in_vivo.bw", "ENCFF001"))
    track = open_copy(world_copy).track([3], 1)
    assert np.array_equal(track, small_dataset.track([3], 1))


def test_bigbed_instead_of_a_bigwig_is_named(world_copy):
    path = world_copy / "blood_in_vivo.bw"
    path.unlink()
    big_bed = path.with_suffix(".bb")
    writer = pybigtools.open(str(big_bed), "w")
    writer.write({"sim1": 4 * WINDOW_BP}, iter([("sim1", 0, 100, "name")]))
    big_bed.rename(path)  # content counts, not the ending
    refused(world_copy, r"blood_in_vivo\.bw: expected a bigWig; found a bigBed")


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_negative_or_undefined_signal_is_named(world_copy, value):
    intervals = [("sim1", 10, 20, 3.0), ("sim2", 10, 20, value)]
    write_bigwig(world_copy / "blood_in_vivo.bw", intervals)
    refused(world_copy, r"blood_in_vivo\.bw: .*found negative or undefined signal")


def test_chromosomes_absent_from_a_bigwig_are_named(world_copy):
    write_bigwig(world_copy / "blood_in_vivo.bw", [], n_chromosomes=18)
    refused(
        world_copy,
        r"blood_in_vivo\.bw: chromosomes \['sim19', 'sim20'\] are absent; found .*18",
    )


@pytest.mark.parametrize("change", [-1, 1])
def test_bigwigs_of_another_assembly_are_named(world_copy, change):
    length = 4 * WINDOW_BP + change
    write_bigwig(world_copy / "blood_in_vivo.bw", [], length=length)
    refused(
        world_copy,
        r"blood_in_vivo\.bw: sim1 must be 16384 bp long, as in .*genome\.fa; "
        rf"found {length} bp \(another assembly\?\)",
    )


def test_bigwigs_must_reach_the_windows_where_only_regions_are_known(world_copy):
    path = world_copy / "blood_in_vivo.bw"
    write_bigwig(path, [], length=4 * WINDOW_BP - 1)
    regions = write_regions(world_copy)
    refused(
        world_copy, r"blood_in_vivo\.bw: sim1 must reach 16384.* 16383", genome=regions
    )
    write_bigwig(path, [], length=4 * WINDOW_BP + 1)
    assert len(open_copy(world_copy, genome=regions).windows) == 80


def write_regions(folder):
    """Write the chromosomes of a world as one region each."""
    sequences = pysam.FastaFile(str(folder / "genome.fa"))
    names = sequences.references
    records = {f"{c}:0-{4 * WINDOW_BP}": sequences.fetch(c) for c in names}
    return write_fasta(folder / "regions.fa", records)


def test_chromosome_absent_from_the_genome_is_named(world_copy):
    path = world_copy / "genome.fa"
    sequences = pysam.FastaFile(str(path))
    records = {c: sequences.fetch(c) for c in sequences.references if c != "sim5"}
    other = write_fasta(world_copy / "other.fa", records)
    refused(world_copy, r"other\.fa: chromosomes \['sim5'\] are absent", genome=other)


# --- Windows that reach past the end of a chromosome ---


@pytest.fixture
def cut_world(world_copy):
    """Chromosomes sim5 and sim6 end within their last window."""
    path = world_copy / "genome.fa"
    sequences = pysam.FastaFile(str(path))
    records = {c: sequences.fetch(c) for c in sequences.references}
    sizes = {c: len(text) for c, text in records.items()}
    sizes |= {"sim5": 3 * WINDOW_BP + 10, "sim6": 4 * WINDOW_BP - 1}
    write_fasta(path, {c: text[: sizes[c]] for c, text in records.items()})
    for name in ("blood_in_vitro.bw", "blood_in_vivo.bw"):
        file = pybigtools.open(str(world_copy / name))
        rows = [
            (chrom, start, end, value)
            for chrom, size in sizes.items()
            for start, end, value in file.records(chrom, 0, size)
        ]
        rows = [row for row in rows if row[:2] != ("sim5", 3 * WINDOW_BP + 9)]
        at = [row[0] for row in rows].index("sim6")
        rows.insert(at, ("sim5", 3 * WINDOW_BP + 9, 3 * WINDOW_BP + 10, 4.0))
        pybigtools.open(str(world_copy / name), "w").write(sizes, iter(rows))
    return world_copy


def test_windows_past_the_end_are_padded_and_said_once(
    cut_world, small_dataset, caplog
):
    dataset = open_copy(cut_world)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    message = record.getMessage()
    assert message.startswith("2 of 80 windows reach past the end of their chromosome")
    assert message.endswith(": sim5:12288-16384, sim6:12288-16384")
    (sequence,), (whole,) = dataset.sequence([19]), small_dataset.sequence([19])
    assert np.array_equal(sequence[:10], whole[:10])
    assert (sequence[10:] == 0).all()
    (track,) = dataset.track([19], 0)
    region = (cut_world / "blood_in_vitro.bw", "sim5", 3 * WINDOW_BP, 4 * WINDOW_BP)
    scale = dataset.tissues[0].pair[0].scale
    assert np.allclose(track, reference_bins(*region, scale, widen=5), rtol=1e-6)
    # The last cut is on the last base; like any cut it counts for 5 further ones.
    assert track[3] == pytest.approx(3 * 4.0 * scale)
    assert (track[4:] == 0).all()
    assert dataset.target([19], 0)[0, 1:].sum() == 0
    assert len(caplog.records) == 1


def test_many_windows_past_the_end_are_counted(world_copy, caplog):
    path = world_copy / "genome.fa"
    sequences = pysam.FastaFile(str(path))
    names = list(sequences.references)
    records = {c: sequences.fetch(c)[:-1] for c in names}
    write_fasta(path, records)
    for name in ("blood_in_vitro.bw", "blood_in_vivo.bw"):
        write_bigwig(world_copy / name, [], length=4 * WINDOW_BP - 1)
    open_copy(world_copy)
    (record,) = caplog.records
    assert record.getMessage().startswith("20 of 80 windows")
    assert record.getMessage().count("sim") == 5
    assert record.getMessage().endswith(", ...")


def test_windows_outside_of_the_sequence_are_refused(cut_world, world_copy):
    path = world_copy / "genome.fa"
    sequences = pysam.FastaFile(str(path))
    records = {c: sequences.fetch(c) for c in sequences.references}
    records["sim5"] = records["sim5"][: 3 * WINDOW_BP]
    write_fasta(path, records)
    refused(world_copy, r"genome\.fa: no record holds the window sim5:12288-16384")
    regions = {f"{c}:0-{len(text)}": text for c, text in records.items()}
    regions = write_fasta(world_copy / "regions.fa", regions)
    message = r"regions\.fa: no record holds the window sim5:12288-16384"
    refused(world_copy, message, genome=regions)


def test_motif_tables_of_other_motifs_are_named(world_copy):
    path = world_copy / "blood_in_vivo.motifs.tsv"
    table = pd.read_csv(path, sep="\t")
    table.loc[table["ID"] == "MA0139.2", "ID"] = "MA9999.1"
    table.to_csv(path, sep="\t", index=False)
    refused(
        world_copy,
        r"blood_in_vivo\.motifs\.tsv: motifs must be those of the motif file .*"
        r"missing \['MA0139\.2'\], unexpected \['MA9999\.1'\]",
    )
    table.drop(columns="LOG_EVALUE").to_csv(path, sep="\t", index=False)
    refused(world_copy, r"blood_in_vivo\.motifs\.tsv: .*LOG_EVALUE")


def test_motif_tables_without_contrast_are_named(world_copy):
    path = world_copy / "blood_in_vivo.motifs.tsv"
    table = pd.read_csv(path, sep="\t").assign(LOG_EVALUE=0.0)
    table.to_csv(path, sep="\t", index=False)
    refused(world_copy, r"blood_in_vivo\.motifs\.tsv: motif enrichment must .* vary")


@pytest.mark.parametrize(
    "line", ["sim1\t100", "sim1\ta\tb", "sim1\t5\t5", "sim1\t-5\t5", "sim1 1 2", ""]
)
def test_bad_peaks_are_named(world_copy, line):
    (world_copy / "blood_in_vivo.peaks.bed").write_text(f"{line}\n")
    with pytest.raises(ValueError, match=r"blood_in_vivo\.peaks\.bed: "):
        open_copy(world_copy)


def test_tissues_and_window_length_are_checked(small_dataset):
    with pytest.raises(ValueError, match="at least one tissue"):
        WindowDataset([], window_bp=WINDOW_BP)
    with pytest.raises(ValueError, match="window_bp must be .* of 128; got 4000"):
        WindowDataset(small_dataset.tissues, window_bp=4000)
    with pytest.raises(ValueError, match="line 2: end must be start [+] 8192"):
        WindowDataset(small_dataset.tissues, window_bp=8192)
    blood, liver = small_dataset.tissues
    with pytest.raises(ValueError, match="must share assembly"):
        WindowDataset([blood, replace(liver, assembly="x")], window_bp=WINDOW_BP)


# --- BED ---


def test_read_bed_skips_comments_and_further_columns(tmp_path):
    text = "#chrom\tstart\tend\nchr1\t5\t9\tname\t0\t+\n\nNA\t0\t1\n"
    path = tmp_path / "peaks.bed"
    path.write_text(text)
    packed = tmp_path / "peaks.narrowPeak.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    for table in (read_bed(path), read_bed(packed)):
        rows = list(table.itertuples(index=False, name=None))
        assert rows == [("chr1", 5, 9), ("NA", 0, 1)]
    with pytest.raises(FileNotFoundError, match=r"not found: .*other\.bed"):
        read_bed(Path(tmp_path / "other.bed"))
