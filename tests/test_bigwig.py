"""The bigWig reader against planted intervals, another reader, and damaged bytes."""

import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pybigtools
import pytest

from helpers._bigwig import BigWig, LocalFile

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("CHROMATIN_SHARED_DATA", ROOT.parent / "shared" / "data"))
REAL = [
    ("tobias_atac_chr4/Bcell_uncorrected.chr4.bw", "chr4"),
    ("deepdetails_acc_chr22/acc.K562.chr22.bw", "chr22"),
]
LENGTHS = {"chr1": 10_000, "chr10": 5_000, "a_longer_name": 700}
MAGIC = 0x888FFC26


def bedgraph(chrom, *rows):
    return chrom, 1, 0, 0, rows


def fixed(chrom, start, step, span, *values):
    rows = [
        (start + i * step, start + i * step + span, v) for i, v in enumerate(values)
    ]
    return chrom, 3, step, span, rows


def variable(chrom, span, *rows):
    return chrom, 2, 0, span, [(start, start + span, value) for start, value in rows]


SECTIONS = [
    bedgraph("chr1", (5, 9, 1.5), (9, 10, 2.0), (400, 1000, 0.25)),
    bedgraph("chr1", (1000, 1001, 7.0)),
    fixed("chr1", 2000, 10, 4, 1.0, 0.0, 3.0, 4.0),
    variable("chr1", 3, (3000, 1.0), (3007, 2.5), (9_997, 8.0)),
    fixed("chr10", 0, 1, 1, *range(1, 60)),
    bedgraph("a_longer_name", (0, 700, 3.25)),
]


def write_bigwig(
    path, sections=SECTIONS, *, order="<", packed=True, fanout=2, **changes
):
    """Write the smallest file of the format, with an index of several levels.

    pybigtools writes blocks of one kind only, little-endian and compressed.
    """
    names = sorted(LENGTHS)
    body = bytearray(64 + 40)

    def put(layout, *values):
        offset = len(body)
        body.extend(struct.pack(order + layout, *values))
        return offset

    chrom_tree = put("IIIIQQ", 0x78CA8C91, 2, 14, 8, len(names), 0)
    root = len(body)
    put("BBH", 0, 0, 2)
    children = root + 4 + 2 * 22
    put("14sQ14sQ", names[0].encode(), children, names[2].encode(), children + 48)
    for some in (names[:2], names[2:]):
        put("BBH", 1, 0, len(some))
        for name in some:
            put("14sII", name.encode(), names.index(name), LENGTHS[name])
    level = []
    for chrom, kind, step, span, rows in sections:
        number = names.index(chrom)
        start, end = rows[0][0], rows[-1][1]
        block = struct.pack(
            order + "IIIIIBBH", number, start, end, step, span, kind, 0, len(rows)
        )
        for row in rows:
            item = {1: row, 2: (row[0], row[2]), 3: (row[2],)}[kind]
            block += struct.pack(order + {1: "IIf", 2: "If", 3: "f"}[kind], *item)
        block = zlib.compress(block) if packed else block
        offset = len(body)
        body.extend(block)
        level.append((number, start, number, end, offset, len(block)))
    level.sort()
    depth = 0
    while len(level) > 1 or depth == 0:
        above = []
        for i in range(0, len(level), fanout):
            some = level[i : i + fanout]
            node = put("BBH", depth == 0, 0, len(some))
            for item in some:
                put("IIIIQQ" if depth == 0 else "IIIIQ", *item)
            above.append((*some[0][:2], *some[-1][2:4], node))
        level, depth = above, depth + 1
    # The root must follow the header of the index.
    index = put("IIQIIIIQII", 0x2468ACE0, fanout, len(sections), *[0] * 7)
    put("BBH", 0, 0, 1)
    put("IIIIQ", *level[0])
    body.extend(bytes(64))  # others read past the items of a node
    values = [(e - s, v) for *_, rows in sections for s, e, v in rows]
    totals = {"n": sum(n for n, _ in values), "low": min(v for _, v in values)}
    totals |= {"high": 9.0, "sum": sum(n * v for n, v in values), "squares": 0.0}
    header = {"magic": MAGIC, "version": 4, "zooms": 0, "chroms": chrom_tree}
    header |= {"blocks": 64, "index": index, "fields": 0, "defined": 0, "sql": 0}
    header |= {"totals": 64, "buffer": 32768 if packed else 0, "more": 0} | changes
    struct.pack_into(order + "IHHQQQHHQQIQ", body, 0, *header.values())
    struct.pack_into(order + "Qdddd", body, 64, *totals.values())
    put("I", MAGIC)
    path.write_bytes(body)
    return path


def read(path, *region):
    found = BigWig(LocalFile(path)).intervals(*region)
    return list(zip(*(x.tolist() for x in found), strict=True))


def planted(chrom, start, end):
    return [
        (max(s, start), min(e, end), v)
        for name, *_, rows in SECTIONS
        for s, e, v in rows
        if name == chrom and s < end and e > start
    ]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("packed", [True, False])
def test_all_kinds_of_blocks_are_read(tmp_path, order, packed):
    path = write_bigwig(tmp_path / "a.bw", order=order, packed=packed)
    file = BigWig(LocalFile(path))
    assert file.chroms == LENGTHS
    assert file.totals.min == 0
    assert file.totals.sum == sum(
        (e - s) * v for *_, rows in SECTIONS for s, e, v in rows
    )
    rng = np.random.default_rng(0)
    for chrom, length in LENGTHS.items():
        regions = [(0, length), (length - 1, length), (4, 5), (9, 10), (420, 421)]
        regions += [tuple(sorted(x)) for x in rng.integers(0, length, (30, 2))]
        for start, end in regions:
            assert read(path, chrom, start, end) == planted(chrom, start, end)
    other = pybigtools.open(str(path))  # the file is a bigWig to others too
    assert list(other.records("chr1")) == planted("chr1", 0, 10_000)
    found = file.intervals("chr10", 3, 40)
    assert [x.dtype for x in found] == [np.int64, np.int64, np.float32]


@pytest.mark.parametrize("fanout", [2, 3, 100])
def test_the_index_may_have_any_depth(tmp_path, fanout):
    path = write_bigwig(tmp_path / "a.bw", fanout=fanout)
    assert read(path, "chr1", 0, 10_000) == planted("chr1", 0, 10_000)
    assert read(path, "chr1", 1500, 1600) == []


@pytest.mark.parametrize(("name", "chrom"), REAL)
def test_real_files_are_read_as_by_another_reader(name, chrom):
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"no {name} in $CHROMATIN_SHARED_DATA or ../shared/data")
    other, file = pybigtools.open(str(path)), BigWig(LocalFile(path))
    assert file.chroms == dict(other.chroms())
    summary = other.info()["summary"]
    assert file.totals.sum == summary["sum"]
    assert file.totals.max == summary["max"]
    length = file.chroms[chrom]
    rng = np.random.default_rng(1)
    n = 0
    for start in [0, length - 50_000, *rng.integers(0, length - 50_000, 30).tolist()]:
        expected = list(other.records(chrom, start, start + 50_000))
        found = read(path, chrom, start, start + 50_000)
        clipped = [(max(s, start), min(e, start + 50_000), v) for s, e, v in expected]
        assert found == clipped
        n += len(found)
    assert n > 1000


def test_threads_share_a_file(tmp_path):
    rng = np.random.default_rng(2)
    starts = np.sort(rng.choice(10_000, 900, replace=False)).tolist()
    rows = [(s, s + 1, float(i)) for i, s in enumerate(starts)]
    sections = [bedgraph("chr1", *rows[i : i + 10]) for i in range(0, 900, 10)]
    file = BigWig(LocalFile(write_bigwig(tmp_path / "a.bw", sections)))
    regions = rng.integers(0, 9_000, 400).tolist()

    def total(start):
        return file.intervals("chr1", start, start + 1000).value.sum(dtype=float)

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(total, regions))
    assert together == [total(start) for start in regions]
    assert len(set(together)) > 300


def test_a_file_without_totals_says_so(tmp_path):
    file = BigWig(LocalFile(write_bigwig(tmp_path / "a.bw", totals=0)))
    assert file.totals is None
    assert len(file.intervals("chr10", 0, 10).value) == 10


def test_unknown_chromosomes_are_a_key_error(tmp_path):
    with pytest.raises(KeyError, match="chrM"):
        read(write_bigwig(tmp_path / "a.bw"), "chrM", 0, 1)


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, b"\xeb\xf2\x89\x87", "expected a bigWig; found a bigBed"),
        (0, b"abcd", "truncated, or not a bigWig: .* found 61626364 and 26fc8f88"),
        (8, b"\x01", "cannot read its header .damaged.*: no tree of chromosomes"),
        (24, b"\x00\x00\x01", "cannot read its header .*4 bytes expected at 655"),
        (112, b"\xff\xff\xff\xff", "cannot read its header .*take 4294967295 bytes"),
    ],
)
def test_what_is_no_bigwig_is_refused_by_name(tmp_path, offset, value, message):
    path = write_bigwig(tmp_path / "signal.bw")
    content = bytearray(path.read_bytes())
    content[offset : offset + len(value)] = value
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"signal\.bw: {message}"):
        BigWig(LocalFile(path))


def test_a_block_of_unknown_kind_is_refused(tmp_path):
    path = write_bigwig(tmp_path / "a.bw", packed=False)
    content = path.read_bytes()
    header = struct.pack("<IIIIIBBH", 1, 5, 1000, 0, 0, 1, 0, 3)
    assert content.count(header) == 1
    path.write_bytes(content.replace(header, header[:20] + b"\x07" + header[21:]))
    message = r"a\.bw: cannot read chr1:0-10 \(damaged\?\): blocks are of .* found 7"
    with pytest.raises(ValueError, match=message):
        read(path, "chr1", 0, 10)


def test_an_index_that_runs_in_a_circle_is_refused(tmp_path):
    path = write_bigwig(tmp_path / "a.bw")
    content = bytearray(path.read_bytes())
    (index,) = struct.unpack_from("<Q", content, 24)
    struct.pack_into("<Q", content, index + 48 + 4 + 16, index + 48)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="runs in a circle"):
        read(path, "chr1", 0, 10)


@pytest.mark.parametrize("packed", [True, False])
def test_damage_never_ends_in_another_error(tmp_path, packed):
    path = write_bigwig(tmp_path / "a.bw", packed=packed)
    content = path.read_bytes()
    rng = np.random.default_rng(3)
    n_refused = 0
    for position in rng.integers(4, len(content) - 4, 400).tolist():
        damaged = bytearray(content)
        damaged[position] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            file = BigWig(LocalFile(path))
            for chrom in LENGTHS:
                if chrom in file.chroms:
                    file.intervals(chrom, 0, 10_000)
        except ValueError as error:
            assert str(error).startswith(str(path))
            n_refused += 1
    assert n_refused > 50
