"""Cut sites of BAMs and fragment files against the authors' steps, taken literally."""

import gzip
import shutil
import threading
from collections import Counter
from dataclasses import replace

import numpy as np
import pybigtools
import pysam
import pytest
import yaml

from helpers import cut_sites
from helpers.cut_sites import (
    LeftOutFragmentsWarning,
    _hts_checks,
    genome_sizes,
    write_cut_sites,
)
from helpers.cut_sites import _sources as _cut_sources
from helpers.windows import WindowDataset

SIZES = {"chr1": 6000, "chr2": 5000, "chr3": 900, "chrM": 700, "chrUn_KI270302v1": 800}
WRITTEN = ["chr1", "chr2", "chr3"]
READ_BP = 30
PROPER, DUPLICATE, FAILED, SECONDARY, SUPPLEMENTARY = 0x2, 0x400, 0x200, 0x100, 0x800


# --- Simulated molecules and the files that hold them ---


def molecules(n, seed, *, sizes=SIZES):
    """Draw (chrom, start, end) of fragments, some of them piled up on one spot."""
    rng = np.random.default_rng(seed)
    names = list(sizes)
    found = []
    for i in range(n):
        chrom = names[int(rng.integers(len(names)))]
        length = int(rng.integers(READ_BP, 300))
        start = 100 if i % 5 == 0 else int(rng.integers(sizes[chrom] - length + 1))
        found.append((chrom, start, start + length))
    return found


def pair(name, fragment, *, flag=PROPER, quality=(42, 42), swapped=False):
    """Return the two reads of a fragment as (flag, chrom, start, mate, quality)."""
    chrom, start, end = fragment
    first, second = (0x1 | 0x40, 0x1 | 0x80)[:: -1 if swapped else 1]
    mates = (chrom, start), (chrom, end - READ_BP)
    return [
        (name, first | 0x20 | flag, *mates[0], mates[1], quality[0]),
        (name, second | 0x10 | flag, *mates[1], mates[0], quality[1]),
    ]


def write_bam(path, reads, *, sizes=SIZES, order="coordinate", index=True):
    header = pysam.AlignmentHeader.from_dict(
        {
            "HD": {"VN": "1.6", "SO": order},
            "SQ": [{"SN": chrom, "LN": size} for chrom, size in sizes.items()],
        }
    )
    rank = list(sizes)
    with pysam.AlignmentFile(str(path), "wb", header=header) as bam:
        for name, flag, chrom, start, mate, quality in sorted(
            reads, key=lambda read: (rank.index(read[2]), read[3])
        ):
            read = pysam.AlignedSegment(header)
            read.query_name, read.flag = name, flag
            read.reference_name, read.reference_start = chrom, start
            read.mapping_quality = quality
            if not flag & 0x4:
                read.cigarstring = f"{READ_BP}M"
            if mate:
                read.next_reference_name, read.next_reference_start = mate
            read.query_sequence = "A" * READ_BP
            bam.write(read)
    if index:
        pysam.index(str(path))
    return path


def write_fragments(path, fragments, *, sizes=SIZES, header="# made for a test\n"):
    rank = list(sizes)
    rows = sorted(fragments, key=lambda row: (rank.index(row[0]), *row[1:3]))
    lines = ["\t".join(map(str, row)) + "\n" for row in rows]
    return write_bgzipped(path, header + "".join(lines))


def write_bgzipped(path, text, *, index=True):
    with pysam.BGZFile(str(path), "wb") as file:
        file.write(text.encode())
    if index:
        pysam.tabix_index(str(path), preset="bed", force=True)
    return path


def shifted(fragments):
    """Return fragments as Cell Ranger writes them, with barcode and count."""
    return [(c, s + 4, e - 5, "ACGT-1", 1) for c, s, e in fragments if e - s > 9]


def read_counts(path, sizes=SIZES):
    bigwig = pybigtools.open(str(path))
    return {
        chrom: bigwig.values(chrom, 0, size, fillna=0.0)
        for chrom, size in sizes.items()
        if chrom in WRITTEN
    }


def reference_sites(fragments):
    """Count cut bases of unshifted fragments."""
    return Counter(
        (chrom, site)
        for chrom, start, end in fragments
        for site in (start + 4, end - 5)
    )


def as_counter(counts):
    return Counter(
        {
            (chrom, int(i)): int(values[i])
            for chrom, values in counts.items()
            for i in np.flatnonzero(values)
        }
    )


@pytest.fixture
def small_chunks(monkeypatch):
    """Let the readers hand over a few fragments at a time."""
    monkeypatch.setattr(_cut_sources, "_PAIRS_PER_CHUNK", 7)
    monkeypatch.setattr(_cut_sources, "_LINES_PER_CHUNK", 11)


# --- What is counted ---


def test_a_fragment_is_counted_at_the_middle_of_the_copied_bases(tmp_path):
    # Tn5 copies the 9 bases 300 to 308: both fragments that end there hold them.
    left, right = ("chr1", 200, 309), ("chr1", 300, 420)
    bam = write_bam(tmp_path / "a.bam", pair("l", left) + pair("r", right))
    result = write_cut_sites(bam, tmp_path / "a.bw", genome_sizes=SIZES)
    found = as_counter(read_counts(result.path))
    assert found == {("chr1", 204): 1, ("chr1", 304): 2, ("chr1", 415): 1}
    assert (result.n_fragments, result.n_written, result.n_sites) == (2, 2, 4)
    assert result.scale == 20e6 / 2
    assert result.dropped == {}


def test_bam_and_fragments_of_the_same_molecules_agree(tmp_path, small_chunks):
    some = molecules(300, seed=1)
    reads = [
        read
        for i, fragment in enumerate(some)
        for read in pair(f"m{i}", fragment, swapped=i % 2)
    ]
    files = [
        (write_bam(tmp_path / "a.bam", reads), True),
        (write_fragments(tmp_path / "a.tsv.gz", shifted(some)), True),
        (write_fragments(tmp_path / "raw.tsv.gz", some, header=""), False),
    ]
    expected = Counter(
        {k: n for k, n in reference_sites(some).items() if k[0] in WRITTEN}
    )
    for i, (path, is_shifted) in enumerate(files):
        with pytest.warns(LeftOutFragmentsWarning, match="% of 300 fragments"):
            result = write_cut_sites(
                path,
                tmp_path / f"{i}.bw",
                genome_sizes=SIZES,
                shifted_fragments=is_shifted,
            )
        assert as_counter(read_counts(result.path)) == expected
        assert result.n_fragments == 300
        assert result.n_written == sum(c in WRITTEN for c, *_ in some) < 300
        assert result.n_sites == 2 * result.n_written
        assert result.dropped == {}


def test_sources_are_pooled(tmp_path, small_chunks):
    first, second = molecules(200, seed=2), molecules(150, seed=3)
    first = [m for m in first if m[0] in ("chr1", "chr3")]
    second = [m for m in second if m[0] in ("chr2", "chr3")]
    reads = [r for i, m in enumerate(first) for r in pair(f"m{i}", m)]
    paths = [
        write_bam(tmp_path / "a.bam", reads),
        write_fragments(tmp_path / "b.tsv.gz", shifted(second)),
    ]
    for order in (paths, paths[::-1]):
        result = write_cut_sites(order, tmp_path / "pool.bw", genome_sizes=SIZES)
        assert as_counter(read_counts(result.path)) == reference_sites(first + second)
        assert result.n_fragments == len(first) + len(second)


def test_reads_that_are_no_fragment_are_dropped_and_counted(tmp_path):
    spot = ("chr1", 1000, 1200)
    reads = pair("good", ("chr1", 500, 700))
    reads += pair("low", spot, quality=(42, 19)) + pair("low2", spot, quality=(19, 42))
    reads += pair("copy", spot, flag=PROPER | DUPLICATE)
    reads += pair("failed", spot, flag=PROPER | FAILED)
    reads += pair("far", spot, flag=0)
    reads += pair("other", spot, flag=PROPER | SECONDARY)
    reads += pair("chimera", spot, flag=PROPER | SUPPLEMENTARY)[:1]
    reads += pair("tiny", ("chr1", 1000, 1030))
    reads[-1] = (*reads[-1][:3], 979, ("chr1", 1000), 42)  # ends 9 bp after the start
    reads += pair("orphan", spot)[:1]
    reads.append(("single", 0x10, "chr1", 1000, None, 42))
    reads.append(("lost", 0x1 | 0x40 | 0x8, "chr1", 1000, ("chr1", 1000), 42))
    reads.append(("lost", 0x1 | 0x80 | 0x4, "chr1", 1000, ("chr1", 1000), 0))
    reads.append(("two", 0x1 | 0x40 | 0x20, "chr1", 1000, ("chr2", 70), 42))
    reads.append(("two", 0x1 | 0x80 | 0x10, "chr2", 70, ("chr1", 1000), 42))
    bam = write_bam(tmp_path / "a.bam", reads)
    result = write_cut_sites(bam, tmp_path / "a.bw", genome_sizes=SIZES)
    found = as_counter(read_counts(result.path))
    assert found == {("chr1", 504): 1, ("chr1", 695): 1}
    assert result.n_fragments == 1
    assert result.dropped == {
        "pairs with a mapping quality below 20": 2,
        "reads marked as duplicates": 2,
        "reads that failed the quality check of the vendor": 2,
        "secondary or supplementary alignments": 3,
        "reads not properly paired (two chromosomes, far apart, same strand)": 4,
        "fragments shorter than 10 bp": 1,
        "reads whose mate is not in the file": 1,
        "reads of no pair (single-end)": 1,
        "reads not mapped, or without a mapped mate": 2,
    }


def test_an_orphan_does_not_hold_up_the_cuts_behind_it(tmp_path, small_chunks):
    some = [("chr1", start, start + 100) for start in range(200, 4000, 10)]
    reads = [read for i, m in enumerate(some) for read in pair(f"m{i}", m)]
    reads += pair("orphan", ("chr1", 150, 260))[:1]
    bam = write_bam(tmp_path / "a.bam", reads)
    source = _cut_sources.open_source(bam, {"chr1": 6000}, shifted_fragments=True)
    tally = _cut_sources.Tally()
    reader = source.cuts(tally)  # holds the file open
    _, stretches = next(reader)
    behind = [cuts.sites.max() - cuts.mark for cuts in stretches]
    assert next(reader, None) is None
    assert len(behind) > 40 and max(behind) < 400
    assert tally.n_fragments == len(some)
    assert tally.dropped == {"reads whose mate is not in the file": 1}


def test_cut_sites_past_the_end_of_a_chromosome_are_left_out(tmp_path):
    path = write_fragments(
        tmp_path / "a.tsv.gz", [("chr3", 0, 899), ("chr3", 100, 900)]
    )
    result = write_cut_sites(path, tmp_path / "a.bw", genome_sizes=SIZES)
    found = as_counter(read_counts(result.path))
    assert found == {("chr3", 0): 1, ("chr3", 899): 1, ("chr3", 100): 1}
    assert (result.n_fragments, result.n_sites) == (2, 3)
    assert result.dropped == {"cut sites past the end of their chromosome": 1}
    bam = write_bam(tmp_path / "a.bam", pair("x", ("chr3", 0, 900)))
    result = write_cut_sites(bam, tmp_path / "b.bw", genome_sizes=SIZES)
    assert as_counter(read_counts(result.path)) == {("chr3", 4): 1, ("chr3", 895): 1}


def test_bigwig_lists_chromosomes_without_cuts_and_not_those_left_out(tmp_path):
    path = write_fragments(tmp_path / "a.tsv.gz", [("chr2", 10, 60)])
    result = write_cut_sites(path, tmp_path / "a.bw", genome_sizes=SIZES)
    bigwig = pybigtools.open(str(result.path))
    assert bigwig.chroms() == {c: SIZES[c] for c in WRITTEN}
    assert bigwig.info()["summary"]["sum"] == 2


def test_neighboring_bases_of_one_count_share_an_interval(tmp_path):
    fragments = [("chr1", s, s + 50) for s in (100, 101, 102, 102, 103, 110)]
    path = write_fragments(tmp_path / "a.tsv.gz", fragments)
    result = write_cut_sites(path, tmp_path / "a.bw", genome_sizes=SIZES)
    intervals = list(pybigtools.open(str(result.path)).records("chr1"))
    assert intervals[:4] == [(100, 102, 1), (102, 103, 2), (103, 104, 1), (110, 111, 1)]
    assert len(intervals) == 8


# --- Against the authors' workflow ---


def bedpe_fragments(path):
    """Yield (chrom, start, end) as `bamtobed -bedpe` and the authors' awk do."""
    by_name = {}
    with pysam.AlignmentFile(str(path)) as bam:
        for read in bam:
            by_name.setdefault(read.query_name, []).append(read)
    for reads in by_name.values():
        first, second = sorted(reads, key=lambda read: read.is_read2)
        if first.reference_name != second.reference_name:
            continue
        if min(first.mapping_quality, second.mapping_quality) < 20:
            continue
        left, right = (second, first) if first.is_reverse else (first, second)
        start, end = left.reference_start + 4, right.reference_end - 5
        if start != end:
            yield first.reference_name, min(start, end), max(start, end)


def test_track_equals_the_authors_steps(tmp_path, small_dataset, small_world):
    """Widened intervals, their coverage, 20 / millions, sums over 4 bp, soft clip."""
    sizes = genome_sizes(small_dataset.genome.path)
    rng = np.random.default_rng(5)
    some = molecules(4000, seed=5, sizes=sizes)
    chrom = small_dataset.windows["chrom"][0]
    some += [(chrom, 1000, 1000 + int(n)) for n in rng.integers(30, 60, 400)]
    with_mito = sizes | {"chrM": 16_569}
    some += molecules(100, seed=6, sizes={"chrM": 16_569})
    reads = [
        read
        for i, m in enumerate(some)
        for read in pair(f"m{i}", m, quality=tuple(rng.integers(10, 43, 2)))
    ]
    bam = write_bam(tmp_path / "a.bam", reads, sizes=with_mito)
    result = write_cut_sites(bam, tmp_path / "a.bw", genome_sizes=with_mito)

    fragments = list(bedpe_fragments(bam))
    millions = len(fragments) / 1e6
    coverage = {c: np.zeros(size) for c, size in sizes.items()}
    for name, start, end in fragments:
        for site in (start, end):
            if name != "chrM" and site - 5 >= 0:
                coverage[name][site - 5 : site + 1 + 5] += 20 / millions
    assert result.scale == pytest.approx(20 / millions)

    tissue = small_dataset.tissues[0]
    made = replace(
        tissue.pair[0],
        signal=result.path,
        signal_kind="cut_sites",
        scale=result.scale,
    )
    dataset = WindowDataset(
        [replace(tissue, pair=(made, tissue.pair[1]))],
        window_bp=small_dataset.window_bp,
    )
    windows = range(len(dataset.windows))
    found = dataset.atac(windows, 0)
    for i, row in enumerate(dataset.windows.itertuples()):
        bases = coverage[row.chrom][row.start : row.end]
        bins = bases.reshape(-1, 4).sum(axis=1)
        clipped = np.where(bins > 150, 150 + np.sqrt(np.maximum(bins - 150, 0)), bins)
        first = 3 if row.start == 0 else 0  # sites in the first 5 bases: see the notes
        np.testing.assert_allclose(found[i, first:], clipped[first:], rtol=1e-5)
    assert (found > 150).any() and (found == 0).any()


# --- Input that cannot be used ---


def refused(message, path, error=ValueError, *, output="out.bw", **options):
    """Check that a source is refused by name and leaves nothing behind."""
    folder = path.parent
    before = sorted(folder.iterdir())
    options.setdefault("genome_sizes", SIZES)
    with pytest.raises(error, match=message) as caught:
        write_cut_sites(path, folder / output, **options)
    assert sorted(folder.iterdir()) == before
    return str(caught.value)


@pytest.fixture
def good_bam(tmp_path):
    reads = [r for i, m in enumerate(molecules(50, 7)) for r in pair(f"m{i}", m)]
    return write_bam(tmp_path / "good.bam", reads)


def test_missing_files_are_named(tmp_path, good_bam):
    refused("not found: .*nowhere.bam", tmp_path / "nowhere.bam", FileNotFoundError)
    refused("folder of the output", good_bam, FileNotFoundError, output="no/where.bw")
    refused("must end in .bw", good_bam, output="out.bigwig")
    good_bam.with_name("good.bam.bai").unlink()
    refused("index of .*good.bam.*samtools index", good_bam, FileNotFoundError)
    with pytest.raises(ValueError, match="one or more different files"):
        write_cut_sites([good_bam, good_bam], tmp_path / "out.bw", genome_sizes=SIZES)


def test_unsorted_bam_is_refused(tmp_path):
    path = write_bam(tmp_path / "a.bam", [], order="queryname", index=False)
    refused("sorted by coordinate; its header says 'queryname'", path)


@pytest.mark.parametrize("n_bytes", [28, 400])
def test_truncated_bam_is_refused(good_bam, n_bytes):
    content = good_bam.read_bytes()
    good_bam.write_bytes(content[:-n_bytes])
    refused("good.bam: truncated: the end-of-file block", good_bam)


@pytest.mark.parametrize("n_judged", [10, 10_000])
def test_damage_is_named(tmp_path, monkeypatch, n_judged):
    monkeypatch.setattr(_cut_sources, "_READS_TO_JUDGE", n_judged)
    monkeypatch.setattr(_cut_sources, "_LINES_TO_JUDGE", n_judged)
    some = [("chr1", start, start + 100) for start in range(5000)]
    sizes = {"chr1": 6000}
    reads = [read for i, m in enumerate(some) for read in pair(f"m{i}", m)]
    for path in (
        write_bam(tmp_path / "a.bam", reads, sizes=sizes),
        write_fragments(tmp_path / "a.tsv.gz", some, sizes=sizes),
    ):
        content = bytearray(path.read_bytes())
        middle = len(content) * 3 // 4
        content[middle : middle + 200] = bytes(200)
        path.write_bytes(content)
        refused(f"{path.name}.* damaged", path, genome_sizes=sizes)


def test_what_is_no_bam_is_refused(tmp_path, good_bam):
    for name, content, message in (
        ("text.bam", b"@HD\tVN:1.6\n", "not compressed"),
        ("empty.bam", b"", "not compressed"),
        ("zip.bam", _cut_sources.gzip.compress(b"chr1\t1\t9\n"), "not bgzip"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        refused(f"{name}: neither a BAM nor .*{message}", path)


def test_bam_of_another_assembly_is_refused(good_bam):
    other = {"chr1": 6100, "chr2": 5000, "chr9": 10}
    text = refused("another assembly", good_bam, genome_sizes=other)
    assert r"chr1 (6000 in the BAM, 6100 in the genome)" in text
    assert "missing: chr9" in text and "chr2" not in text.partition("missing")[0]
    refused("no chromosome to write", good_bam, genome_sizes={"chrM": 700})


def test_single_end_bam_is_refused(tmp_path):
    reads = [(f"s{i}", 0, "chr1", 10 * i, None, 42) for i in range(20)]
    path = write_bam(tmp_path / "single.bam", reads)
    refused("single.bam: single-end: none of the first 20 .*give alignments", path)


def test_bam_without_a_fragment_is_refused(tmp_path):
    reads = pair("low", ("chr1", 100, 300), quality=(3, 3))
    path = write_bam(tmp_path / "low.bam", reads)
    refused("no fragment is left .*mapping quality below 20': 1", path)
    path = write_bam(tmp_path / "mito.bam", pair("m", ("chrM", 100, 300)))
    refused("no read is mapped to the chromosomes to write: chr1, chr2", path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("chr1\t5\t90\nchr1\t8\n", "line 2: expected chrom, start, end"),
        ("# x\nchr1 5 90\n", "line 2: expected chrom"),
        ("chr1\t5\t90\nchr1\t80\t80\n", "line 2: expected 0 <= start < end; .*80-80"),
        ("chr1\t5\t90\nchr1\t80\t7\n", "line 2: expected 0 <= start < end"),
        ("chr1\t5\t90\nchr1\t7\t6001\n", "line 2: .* within the 6000 bp of the genome"),
        ("chr1\t5\tx\n", "line 1 or later: damaged, or not chrom, start, end"),
        ("chr1\t50\t90\nchr1\t7\t80\n", "line 2: expected lines sorted by start"),
        ("chr1\t5\t9\nchr2\t5\t9\nchr1\t9\t20\n", "not sorted: chr1 occurs in two"),
        ("chr9\t5\t9\n", "no fragment lies on .*chr1, chr2, chr3; found chr9"),
        ("", "no fragment lies on"),
    ],
)
def test_fragments_that_cannot_be_used_are_refused_by_line(tmp_path, text, message):
    path = write_bgzipped(tmp_path / "a.tsv.gz", text, index=False)
    indexed = "chr9" if "chr9" in message or not text else "chr1"
    well = write_bgzipped(tmp_path / "well.tsv.gz", f"{indexed}\t1\t9\n")
    shutil.copy(f"{well}.tbi", f"{path}.tbi")
    assert "a.tsv.gz" in refused(message, path)


def test_fragments_without_index_or_bgzip_are_refused(tmp_path):
    path = write_bgzipped(tmp_path / "a.tsv.gz", "chr1\t5\t90\n", index=False)
    refused("index of .*tabix -p bed", path, FileNotFoundError)
    path.write_text("chr1\t5\t90\n")
    refused("not compressed.*bgzip", path)


def test_sources_of_different_order_are_refused(tmp_path):
    first = write_fragments(tmp_path / "a.tsv.gz", [("chr1", 5, 90), ("chr2", 5, 90)])
    second = write_fragments(
        tmp_path / "b.tsv.gz",
        [("chr1", 5, 90), ("chr2", 5, 90)],
        sizes={"chr2": 5000, "chr1": 6000},
    )
    with pytest.raises(ValueError, match=r"same order.*chr.*a.tsv.gz.*b.tsv.gz"):
        write_cut_sites([first, second], tmp_path / "o.bw", genome_sizes=SIZES)


# --- The command line ---


def test_command_line_prints_the_lines_of_a_tissue_file(tmp_path, capsys):
    fasta = tmp_path / "genome.fa"
    fasta.write_text("".join(f">{c}\n{'A' * n}\n" for c, n in SIZES.items()))
    with pytest.raises(FileNotFoundError, match="genome.fa.fai.*samtools faidx"):
        genome_sizes(fasta)
    pysam.faidx(str(fasta))
    assert genome_sizes(fasta) == SIZES
    some = [m for m in molecules(40, 9) if m[0] in WRITTEN]
    raw = write_fragments(tmp_path / "a.tsv.gz", some)
    output = tmp_path / "a.bw"
    cut_sites.main(
        [str(raw), "--unshifted-fragments"]
        + ["--genome", str(fasta), "--output", str(output)]
    )
    lines = yaml.safe_load(capsys.readouterr().out)
    assert lines == {
        "signal": str(output),
        "signal_kind": "cut_sites",
        "scale": pytest.approx(20e6 / len(some)),
    }
    assert as_counter(read_counts(output)) == reference_sites(some)


def test_an_abandoned_reader_is_not_waited_for():
    """The garbage collector may end it where waiting for a thread never ends."""
    go_on = threading.Event()

    def chunks():
        yield "first"
        go_on.wait(60)
        yield "second"

    reader = _cut_sources._ahead(chunks())
    assert next(reader) == "first"
    closing = threading.Thread(target=reader.close)
    closing.start()
    closing.join(timeout=20)
    ended = not closing.is_alive()
    go_on.set()
    assert ended


# --- Damaged indexes, which HTSlib believes ---


@pytest.mark.parametrize("suffix", [".bai", ".csi"])
def test_a_damaged_index_of_a_bam_is_refused_before_it_is_read(tmp_path, suffix):
    reads = [read for i, m in enumerate(molecules(9, 0)) for read in pair(f"r{i}", m)]
    bam = write_bam(tmp_path / "a.bam", reads, index=False)
    pysam.index(*(["-c"] if suffix == ".csi" else []), str(bam))
    index = tmp_path / f"a.bam{suffix}"
    content = index.read_bytes()
    if suffix == ".csi":
        content = gzip.decompress(content)
    _check_damaged(bam, index, content)


def test_a_damaged_index_of_fragments_is_refused_before_it_is_read(tmp_path):
    path = write_fragments(tmp_path / "a.tsv.gz", shifted(molecules(9, 0)))
    index = tmp_path / "a.tsv.gz.tbi"
    _check_damaged(path, index, gzip.decompress(index.read_bytes()))


def _check_damaged(path, index, content):
    _hts_checks.check_indexes(path)
    for damaged in (content[:-9], content[:40], b"XXI\1" + content[4:], content + b"x"):
        index.write_bytes(damaged)
        with pytest.raises(
            ValueError, match=f"{index}: damaged index: .*make it again"
        ):
            write_cut_sites(path, path.parent / "out.bw", genome_sizes=SIZES)
    at = content.index(b"\0chrUn") if b"chrUn" in content else 4
    damaged = bytearray(content)
    damaged[at : at + 4] = (2**31 - 1).to_bytes(4, "little")
    index.write_bytes(damaged)
    with pytest.raises(ValueError, match="damaged index"):
        _hts_checks.check_indexes(path)
