"""Read Tn5 cut sites from paired-end BAMs and from fragment files.

Positions are 0-based. Both readers stream: they hold one stretch of the file, and of a
BAM the pairs that are still open. `helpers.cut_sites` is the public face of this
module.
"""

from __future__ import annotations

import csv
import gzip
import mmap
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby, islice, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pysam
from pandas.io.parsers import TextFileReader

from helpers.cut_sites._hts_checks import check_bam_header, check_indexes

__all__ = ["MIN_MAPPING_QUALITY", "Cuts", "Source", "Tally", "open_source"]

MIN_MAPPING_QUALITY = 20
_SHIFT_START, _SHIFT_END = 4, -5  # Tn5: both ends move to the middle of the 9-bp copy
_MIN_FRAGMENT_BP = _SHIFT_START - _SHIFT_END + 1  # so that the two cuts differ
# Properly paired, facing each other, of no excluded kind: read 1 or 2, either strand.
_PROPER_FLAGS = frozenset({99, 147, 83, 163})
_REVERSE = 0x10
_EXCLUDED_FLAGS = (  # in the order in which a read is asked
    (0x4 | 0x8, "reads not mapped, or without a mapped mate"),
    (0x100 | 0x800, "secondary or supplementary alignments"),
    (0x200, "reads that failed the quality check of the vendor"),
    (0x400, "reads marked as duplicates"),
)
_LOW_QUALITY = f"pairs with a mapping quality below {MIN_MAPPING_QUALITY}"
_TOO_SHORT = f"fragments shorter than {_MIN_FRAGMENT_BP} bp"
_PAIRS_PER_CHUNK = 100_000
_LINES_PER_CHUNK = 200_000
_THREADS = 2  # a third finds nothing to do beside the loop over reads
_READS_TO_JUDGE = 10_000
_LINES_TO_JUDGE = 10_000
_DAMAGE = (OSError, EOFError, zlib.error)  # what decompression raises
_BGZF_START = bytes.fromhex("1f8b0804000000000000060042430200")  # 4 to 9 may differ
_BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003" + "00" * 9)


class Cuts(NamedTuple):
    """Cut sites of a stretch of a chromosome.

    Attributes
    ----------
    sites : numpy.ndarray of int64
        0-based positions, in no order.
    mark : int
        No later stretch of the chromosome holds a site below it.
    """

    sites: np.ndarray
    mark: int


@dataclass
class Tally:
    """What was read so far.

    Attributes
    ----------
    n_fragments : int
        Fragments that passed every filter, on all chromosomes of the source.
    n_written : int
        Those on chromosomes that are written.
    dropped : Counter
        How many of what was dropped; the key says what is counted.
    """

    n_fragments: int = 0
    n_written: int = 0
    dropped: Counter[str] = field(default_factory=Counter)


class Source(NamedTuple):
    """A checked file of fragments.

    Attributes
    ----------
    path : Path
        The file.
    chromosomes : list of str
        Chromosomes that are written, in the order of the file.
    cuts : callable
        Takes a `Tally`, to add to, and yields pairs of chromosome and iterator over its
        `Cuts`, in the order of the file. An iterator must be exhausted before the next.
    """

    path: Path
    chromosomes: list[str]
    cuts: Callable[[Tally], Iterator[tuple[str, Iterable[Cuts]]]]


def open_source(
    path: str | Path, sizes: Mapping[str, int], *, shifted_fragments: bool
) -> Source:
    """Check a BAM or fragment file, without reading through it.

    Parameters
    ----------
    path : str or Path
        Coordinate-sorted BAM with index, or fragments (bgzipped, with tabix index).
        The content decides which of the two it is.
    sizes : mapping of str to int
        Length of the chromosomes to write.
    shifted_fragments : bool
        Whether a fragment file has the Tn5 shift already.

    Returns
    -------
    Source
        Ready to be read.

    Raises
    ------
    FileNotFoundError
        If the file or its index does not exist.
    ValueError
        If the file is truncated or not bgzipped, its index is damaged, a BAM is not
        sorted, of single-end reads or of another assembly, a fragment file has fewer
        than three columns, or nothing lies on the chromosomes to write.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"BAM or fragment file not found: {path}")
    _check_bgzf(path)
    check_indexes(path)
    if _first_bytes(path, 4) == b"BAM\x01":
        return _open_bam(path, sizes)
    return _open_fragments(path, sizes, shifted=shifted_fragments)


def _check_bgzf(path: Path) -> None:
    """Check that a file is blocks from end to end, as bgzip and samtools write it.

    HTSlib's threads wait for ever at a block that does not begin as one.
    """
    with path.open("rb") as file:
        head = file.read(len(_BGZF_START))
        if not _is_bgzf(head):
            is_gzip = head[:2] == b"\x1f\x8b"
            raise ValueError(
                f"{path}: neither a BAM nor a bgzipped fragment file "
                f"({'gzip, but not bgzip' if is_gzip else 'not compressed'}); for "
                "fragments run `bgzip` and `tabix -p bed`"
            )
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content[-len(_BGZF_END) :] != _BGZF_END:
                raise ValueError(
                    f"{path}: truncated: the end-of-file block of BAM and bgzip is "
                    "missing"
                )
            at = 0
            while at < len(content):
                if not _is_bgzf(content[at : at + len(_BGZF_START)]):
                    raise ValueError(f"{path}: damaged: no block begins at byte {at}")
                at += int.from_bytes(content[at + 16 : at + 18], "little") + 1
            if at > len(content):
                raise ValueError(f"{path}: damaged: the last block goes beyond the end")


def _is_bgzf(head: bytes) -> bool:
    """Return whether a block begins here; time and system may have any value."""
    return head[:4] == _BGZF_START[:4] and head[10:] == _BGZF_START[10:]


def _first_bytes(path: Path, n: int) -> bytes:
    try:
        with gzip.open(path) as file:
            return file.read(n)
    except _DAMAGE as error:
        raise ValueError(f"{path}: damaged: {error}") from None


def _shown(items: Iterable[str], n: int = 5) -> str:
    """Return the first items of a list and how many there are."""
    items = list(items)
    more = f", ... ({len(items)} in all)" if len(items) > n else ""
    return ", ".join(items[:n]) + more


# BAM


def _open_bam(path: Path, sizes: Mapping[str, int]) -> Source:
    check_bam_header(path)
    try:
        bam = pysam.AlignmentFile(str(path), "rb")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable BAM: {error}") from None
    with bam:
        try:
            order = bam.header.to_dict().get("HD", {}).get("SO", "unknown")
            lengths = dict(zip(bam.references, bam.lengths, strict=True))
        except (AssertionError, ValueError, KeyError) as error:
            raise ValueError(f"{path}: damaged header: {error}") from None
        if order not in ("coordinate", "unknown"):
            raise ValueError(
                f"{path}: must be sorted by coordinate; its header says {order!r}; run "
                "`samtools sort` and `samtools index`"
            )
        if not bam.has_index():
            raise FileNotFoundError(f"index of {path} not found; run `samtools index`")
        _check_assembly(path, lengths, sizes)
        mapped = {c.contig: c.mapped for c in bam.get_index_statistics()}
        if not any(mapped[chrom] for chrom in sizes):
            raise ValueError(
                f"{path}: no read is mapped to the chromosomes to write: "
                f"{_shown(sizes)}"
            )
        try:
            some = list(bam.head(_READS_TO_JUDGE))
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: damaged: {error}") from None
        if not any(read.is_paired for read in some):
            raise ValueError(
                f"{path}: single-end: none of the first {len(some)} reads is of a "
                "pair, so there are no fragments; give alignments of read pairs, or a "
                "bigWig of cut sites made elsewhere, with the scale of its depth"
            )
        chromosomes = [chrom for chrom in bam.references if chrom in sizes]

    def cuts(tally: Tally) -> Iterator[tuple[str, Iterable[Cuts]]]:
        bam = pysam.AlignmentFile(str(path), "rb", threads=_THREADS)
        try:
            if bam.nocoordinate:
                tally.dropped[_EXCLUDED_FLAGS[0][1]] += bam.nocoordinate
            for chrom in bam.references:
                reads = _reads_of(path, bam, chrom)
                stretches = _bam_cuts(path, reads, tally, chrom in sizes)
                if chrom in sizes:
                    yield chrom, stretches
                else:
                    for _ in stretches:  # to count: the depth is that of the library
                        pass
        finally:
            with suppress(OSError):  # closing a damaged file fails once more
                bam.close()

    return Source(path, chromosomes, cuts)


def _check_assembly(
    path: Path, lengths: Mapping[str, int], sizes: Mapping[str, int]
) -> None:
    """Compare the header of a BAM with the genome."""
    missing = [chrom for chrom in sizes if chrom not in lengths]
    other = [
        f"{chrom} ({lengths[chrom]} in the BAM, {size} in the genome)"
        for chrom, size in sizes.items()
        if lengths.get(chrom, size) != size
    ]
    problems = []
    if other:
        problems.append(f"lengths differ: {_shown(other)}")
    if missing:
        problems.append(
            f"chromosomes of the genome are missing: {_shown(missing)}; the BAM has "
            f"{_shown(lengths)}"
        )
    if problems:
        raise ValueError(
            f"{path}: aligned to another assembly than genome_sizes: "
            + "; ".join(problems)
        )


def _reads_of(
    path: Path, bam: pysam.AlignmentFile, chrom: str
) -> Iterable[pysam.AlignedSegment]:
    """Return the reads of a chromosome; damaged headers can fail as late as here."""
    try:
        return bam.fetch(chrom)
    except ValueError as error:
        raise ValueError(f"{path}: damaged header: {error}") from None


def _bam_cuts(
    path: Path, reads: Iterable[pysam.AlignedSegment], tally: Tally, is_written: bool
) -> Iterator[Cuts]:
    """Yield the cut sites of the pairs of one chromosome."""
    open_pairs: dict[str, tuple[int, bool, int]] = {}  # cut, good, start of the mate
    skipped: Counter[int] = Counter()
    sites: list[int] = []
    n_low = n_short = n_alone = start = mark = 0

    def stretch(below: int) -> Cuts:
        """Hand over the cuts so far; open pairs will add cuts from ``below`` on."""
        tally.n_fragments += len(sites) // 2
        tally.n_written += len(sites) // 2 if is_written else 0
        found = np.array(sites, dtype=np.int64)
        if found.min(initial=mark) < mark:
            raise ValueError(f"{path}: not sorted by coordinate, whatever its index")
        sites.clear()
        return Cuts(found, below)

    try:
        for read in reads:
            flag = read.flag
            if flag not in _PROPER_FLAGS:
                skipped[flag] += 1
                continue
            start = read.reference_start
            name = read.query_name
            good = read.mapping_quality >= MIN_MAPPING_QUALITY
            backward = flag & _REVERSE
            cut = read.reference_end + _SHIFT_END if backward else start + _SHIFT_START
            mate = open_pairs.pop(name, None)
            if mate is None:
                open_pairs[name] = cut, good, read.next_reference_start
                continue
            mate_cut, mate_good, _ = mate
            if not (good and mate_good):
                n_low += 1
            elif (cut <= mate_cut) if backward else (mate_cut <= cut):
                n_short += 1
            else:
                sites += (mate_cut, cut)
            if len(sites) >= 2 * _PAIRS_PER_CHUNK:
                # The mates of these should have come.
                lost = [key for key, (*_, due) in open_pairs.items() if due < start]
                n_alone += len(lost)
                for key in lost:
                    del open_pairs[key]
                waiting = (cut for cut, *_ in open_pairs.values())
                below = min(start + _SHIFT_END, min(waiting, default=start))
                yield stretch(below)
                mark = below
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: damaged, or not what its index says: {error}"
        ) from None
    except TypeError:  # the end of what is aligned nowhere is None
        raise ValueError(
            f"{path}: damaged: a mapped read on {read.reference_name} has no CIGAR"
        ) from None
    yield stretch(start)
    for flag, n in skipped.items():
        tally.dropped[_reason(flag)] += n
    for what, n in (
        (_LOW_QUALITY, n_low),
        (_TOO_SHORT, n_short),
        ("reads whose mate is not in the file", n_alone + len(open_pairs)),
    ):
        if n:
            tally.dropped[what] += n


def _reason(flag: int) -> str:
    """Say why reads with a flag are dropped."""
    if not flag & 0x1:
        return "reads of no pair (single-end)"
    for bits, reason in _EXCLUDED_FLAGS:
        if flag & bits:
            return reason
    return "reads not properly paired (two chromosomes, far apart, same strand)"


# Fragment files


def _open_fragments(path: Path, sizes: Mapping[str, int], *, shifted: bool) -> Source:
    if not any(Path(f"{path}{suffix}").is_file() for suffix in (".tbi", ".csi")):
        raise FileNotFoundError(f"index of {path} not found; run `tabix -p bed {path}`")
    try:
        with pysam.TabixFile(str(path)) as file:
            contigs = list(file.contigs)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable tabix file: {error}") from None
    chromosomes = [chrom for chrom in contigs if chrom in sizes]
    if not chromosomes:
        raise ValueError(
            f"{path}: no fragment lies on the chromosomes to write, {_shown(sizes)}; "
            f"found {_shown(contigs)}"
        )
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            head = list(islice(lines, _LINES_TO_JUDGE))
    except (*_DAMAGE, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: damaged: {error}") from None
    n_header = next((i for i, line in enumerate(head) if line[0] != "#"), len(head))
    for number, line in enumerate(head[n_header:], n_header + 1):
        if len(line.rstrip("\n").split("\t")) < 3:
            raise ValueError(
                f"{path}, line {number}: expected chrom, start, end, and tabs between "
                f"them; found {line.rstrip()[:60]!r}"
            )

    def cuts(tally: Tally) -> Iterator[tuple[str, Iterable[Cuts]]]:
        runs = _fragment_runs(path, n_header)
        seen: set[str] = set()
        for chrom, group in groupby(runs, key=lambda run: run.chrom):
            if chrom in seen:
                raise ValueError(f"{path}: not sorted: {chrom} occurs in two places")
            seen.add(chrom)
            stretches = _fragment_cuts(path, group, tally, sizes.get(chrom), shifted)
            if chrom in sizes:
                yield chrom, stretches
            else:
                for _ in stretches:
                    pass

    return Source(path, chromosomes, cuts)


class _Run(NamedTuple):
    """Fragments of one chromosome that follow each other in the file."""

    chrom: str
    start: np.ndarray
    end: np.ndarray
    line: int  # of the first, counted from 1


def _fragment_runs(path: Path, n_header: int) -> Iterator[_Run]:
    """Yield the fragments of a file in its order."""
    line = n_header + 1
    try:
        chunks = pd.read_csv(
            path,
            sep="\t",
            header=None,
            compression="gzip",
            skiprows=n_header,
            usecols=[0, 1, 2],
            names=["chrom", "start", "end"],
            dtype={"chrom": "category", "start": np.int64, "end": np.int64},
            quoting=csv.QUOTE_NONE,
            keep_default_na=False,
            chunksize=_LINES_PER_CHUNK,
        )
        for chunk in _ahead(chunks):
            code = chunk["chrom"].cat.codes.to_numpy()
            start, end = chunk["start"].to_numpy(), chunk["end"].to_numpy()
            begins = np.flatnonzero(np.diff(code, prepend=-1))
            for first, past in pairwise([*begins.tolist(), len(chunk)]):
                chrom = chunk["chrom"].cat.categories[code[first]]
                yield _Run(chrom, start[first:past], end[first:past], line + first)
            line += len(chunk)
    except (ValueError, OverflowError, *_DAMAGE) as error:
        raise ValueError(
            f"{path}, line {line} or later: damaged, or not chrom, start, end: {error}"
        ) from None


def _ahead(chunks: TextFileReader) -> Iterator[pd.DataFrame]:
    """Parse the next chunk in a thread while the last one is worked on."""
    pool = ThreadPoolExecutor(1)
    try:
        coming = pool.submit(next, chunks, None)
        while (chunk := coming.result()) is not None:
            coming = pool.submit(next, chunks, None)
            yield chunk
        chunks.close()
    finally:
        # Without waiting: the garbage collector may end an abandoned generator in a
        # thread that holds what the end of another thread waits for.
        pool.shutdown(wait=False)


def _fragment_cuts(
    path: Path, runs: Iterable[_Run], tally: Tally, size: int | None, shifted: bool
) -> Iterator[Cuts]:
    """Yield the cut sites of the fragments of one chromosome."""
    last = 0
    for run in runs:
        start, end = run.start, run.end
        _refuse(path, run, (start < 0) | (end <= start), "0 <= start < end")
        if size is not None:
            _refuse(path, run, end > size, f"an end within the {size} bp of the genome")
        _refuse(path, run, np.diff(start, prepend=last) < 0, "lines sorted by start")
        last = int(start[-1])
        if not shifted:
            long_enough = end - start >= _MIN_FRAGMENT_BP
            if n_short := int(np.sum(~long_enough)):
                tally.dropped[_TOO_SHORT] += n_short
            start = start[long_enough] + _SHIFT_START
            end = end[long_enough] + _SHIFT_END
        tally.n_fragments += len(start)
        tally.n_written += len(start) if size is not None else 0
        yield Cuts(np.concatenate([start, end]), last)


def _refuse(path: Path, run: _Run, wrong: np.ndarray, expected: str) -> None:
    """Name the first wrong line, if there is one."""
    if wrong.any():
        i = int(wrong.argmax())
        raise ValueError(
            f"{path}, line {run.line + i}: expected {expected}; found "
            f"{run.chrom}:{run.start[i]}-{run.end[i]}"
        )
