"""From aligned ATAC-seq reads to the bigWig of Tn5 cut sites that the model reads.

The track holds the number of cuts at every base, unscaled, so nothing is lost. The
scale to the common depth goes into the tissue file; `helpers.windows` widens, scales
and bins when it reads (Javed et al. 2025, Cell Genomics 5:100762).
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pybigtools
import pysam

from helpers.cut_sites._sources import Cuts, Source, Tally, open_source

__all__ = [
    "COMMON_DEPTH",
    "CutSites",
    "LeftOutFragmentsWarning",
    "genome_sizes",
    "write_cut_sites",
]

COMMON_DEPTH = 20_000_000  # fragments, of the published model
# What the authors leave out: mitochondrion, virus, and contigs named by accession.
_LEFT_OUT = re.compile(r"^(chr)?MT?$|EBV|(GL|J[A-Z]+|K[A-Z]+)\d{5}")
_MAX_LEFT_OUT_SHARE = 0.05

_log = logging.getLogger(__name__)


class LeftOutFragmentsWarning(UserWarning):
    """Many fragments count for the depth but lie on chromosomes that are left out."""


@dataclass(frozen=True)
class CutSites:
    """What `write_cut_sites` wrote.

    Attributes
    ----------
    path : Path
        The bigWig.
    n_fragments : int
        Fragments that passed every filter, on any chromosome: the depth.
    n_written : int
        Those on chromosomes that the bigWig holds.
    n_sites : int
        Cuts in the bigWig, two per fragment unless one lies past a chromosome's end.
    dropped : dict of str to int
        What was left out, and how often; the key says what is counted.
    """

    path: Path
    n_fragments: int
    n_written: int
    n_sites: int
    dropped: dict[str, int]

    @property
    def scale(self) -> float:
        """Factor that brings the track to 20 million fragments."""
        return COMMON_DEPTH / self.n_fragments

    def yaml(self) -> str:
        """Return the lines of a tissue file that describe the track."""
        depth = f"{COMMON_DEPTH} / {self.n_fragments} fragments"
        return (
            f"signal: {self.path}\n"
            "signal_kind: cut_sites\n"
            f"scale: {self.scale:.8g}  # {depth}\n"
        )


def genome_sizes(genome: str | Path) -> dict[str, int]:
    """Return the chromosome lengths of an indexed FASTA file, in its order.

    Raises
    ------
    FileNotFoundError
        If the file or its index does not exist.
    ValueError
        If it is not an indexed FASTA.
    """
    for needed in (Path(genome), Path(f"{genome}.fai")):
        if not needed.is_file():
            raise FileNotFoundError(
                f"genome file not found: {needed}; `samtools faidx` makes the index"
            )
    try:
        with pysam.FastaFile(str(genome)) as fasta:
            return dict(zip(fasta.references, fasta.lengths, strict=True))
    except (OSError, ValueError) as error:
        raise ValueError(f"{genome}: not an indexed FASTA: {error}") from None


def write_cut_sites(
    sources: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    genome_sizes: Mapping[str, int],
    shifted_fragments: bool = True,
) -> CutSites:
    """Count the Tn5 cut sites of fragments at every base and write them as a bigWig.

    A fragment is a pair of reads that is properly paired, with neither mate secondary,
    supplementary, marked as duplicate or as failed, and both with a mapping quality of
    20 or more. It was cut at both ends. Tn5 leaves a copy of 9 bp at a cut, so the two
    fragments that meet there overlap by 9 bp, and the cut is counted in the middle of
    these: of a fragment ``[start, end)`` at the bases ``start + 4`` and ``end - 5``,
    0-based, the same base from either side. The shift is applied once, to BAMs;
    fragment files usually have it.

    Parameters
    ----------
    sources : path or sequence of paths
        Coordinate-sorted, indexed BAMs of read pairs, and fragment files (bgzipped,
        with tabix index; ``chrom``, ``start``, ``end`` and anything more, one line per
        fragment). Several are pooled.
    output : str or Path
        bigWig to write, ``.bw`` or ``.bigWig``. It appears when it is complete.
    genome_sizes : mapping of str to int
        Length of every chromosome (`genome_sizes`). Mitochondrion, Epstein-Barr virus
        and contigs named by accession are left out, as the authors do.
    shifted_fragments : bool, default=True
        Whether fragment files have the shift already: their lines are then
        ``[start + 4, end - 5)``, as those of Cell Ranger, chromap and the authors.

    Returns
    -------
    CutSites
        Path, depth and counts of what was dropped.

    Warns
    -----
    LeftOutFragmentsWarning
        If more than 5% of the fragments lie on chromosomes that are left out.

    Raises
    ------
    FileNotFoundError
        If a source, its index or the folder of the output does not exist.
    ValueError
        If an argument or a source is not as described (`open_source` lists what is
        checked before the first pass; a wrong line of a fragment file is found when it
        is reached), the sources order the chromosomes differently, or no fragment is
        left.

    Notes
    -----
    The depth counts the fragments of all chromosomes, also of those left out, as the
    authors do. Their files were filtered alignments of ENCODE, without mitochondrion;
    in others it can be a large part of the library and makes the track too low, hence
    the warning.

    The authors widen cuts by 5 bp and drop what then begins before its chromosome; here
    the first 5 bases keep their cuts.

    Memory does not grow with the number of fragments: 200,000 of them are held at a
    time, about 0.1 GB, and the pairs that are still open
    (``benchmarks/raw_inputs.py`` measures time and memory).
    """
    output = Path(output)
    if output.suffix not in (".bw", ".bigWig"):
        raise ValueError(f"output must end in .bw or .bigWig; got {output}")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"folder of the output not found: {output.parent}")
    paths = [sources] if isinstance(sources, str | Path) else list(sources)
    if not paths or len({Path(path).resolve() for path in paths}) < len(paths):
        raise ValueError(f"sources must be one or more different files; got {paths}")
    sizes = {c: n for c, n in genome_sizes.items() if not _LEFT_OUT.search(c)}
    if not sizes:
        raise ValueError(
            f"genome_sizes has no chromosome to write; got {list(genome_sizes)[:5]}"
        )
    opened = [open_source(p, sizes, shifted_fragments=shifted_fragments) for p in paths]
    order = _common_order(opened)
    order += [chrom for chrom in sizes if chrom not in order]

    tally = Tally()
    partial = output.with_name(f".{output.stem}.{os.getpid()}.partial.bw")
    try:
        counted = _counts(opened, order, sizes, tally)
        n_sites = _write_bigwig(partial, order, sizes, counted)
        _check_tally(tally, paths)
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    past_end = 2 * tally.n_written - n_sites
    if past_end:
        tally.dropped["cut sites past the end of their chromosome"] = past_end
    return CutSites(
        output, tally.n_fragments, tally.n_written, n_sites, dict(tally.dropped)
    )


def _common_order(sources: Sequence[Source]) -> list[str]:
    """Return an order of chromosomes in which all files can be read side by side."""
    after: dict[str, set[str]] = {}
    for source in sources:
        for chrom in source.chromosomes:
            after.setdefault(chrom, set())
        for first, second in pairwise(source.chromosomes):
            after[second].add(first)
    try:
        return list(TopologicalSorter(after).static_order())
    except CycleError as error:
        raise ValueError(
            "sources must have their chromosomes in the same order; these are not: "
            f"{error.args[1][:-1]} in {[str(source.path) for source in sources]}"
        ) from None


def _counts(
    sources: Sequence[Source],
    order: Sequence[str],
    sizes: Mapping[str, int],
    tally: Tally,
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield chromosome, sorted positions and how many cuts each has."""
    readers = [source.cuts(tally) for source in sources]
    heads = [next(reader, None) for reader in readers]
    for chrom in order:
        here = [i for i, head in enumerate(heads) if head and head[0] == chrom]
        for position, count in _pooled([iter(heads[i][1]) for i in here]):
            inside = position < sizes[chrom]
            yield chrom, position[inside], count[inside]
        for i in here:
            heads[i] = next(readers[i], None)
        _log.info("%s: %d fragments so far", chrom, tally.n_fragments)
    for source, head in zip(sources, heads, strict=True):
        if head:
            raise ValueError(
                f"{source.path}: {head[0]} is not where the index says; make it anew"
            )


def _pooled(
    streams: Sequence[Iterator[Cuts]],
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Merge the cuts of one chromosome and count equal ones.

    The stream that lags is read on. What lies below the marks of all is complete.
    """
    marks = dict.fromkeys(range(len(streams)), 0)
    waiting = np.empty(0, dtype=np.int64)
    while marks:
        behind = min(marks, key=marks.__getitem__)
        cuts = next(streams[behind], None)
        if cuts is None:
            del marks[behind]
        else:
            waiting = np.concatenate([waiting, cuts.sites])
            marks[behind] = cuts.mark
        complete = waiting < min(marks.values(), default=np.iinfo(np.int64).max)
        yield np.unique(waiting[complete], return_counts=True)
        waiting = waiting[~complete]


def _write_bigwig(
    path: Path,
    order: Sequence[str],
    sizes: Mapping[str, int],
    counted: Iterable[tuple[str, np.ndarray, np.ndarray]],
) -> int:
    """Write counts and return their sum."""
    n_sites = 0
    failure: list[BaseException] = []

    def intervals() -> Iterator[tuple[str, int, int, float]]:
        nonlocal n_sites
        absent = iter(order)
        last = None
        try:
            for chrom, position, count in counted:
                if len(position) == 0:
                    continue
                if chrom != last:
                    yield from _empty(absent, chrom)
                    last = chrom
                n_sites += int(count.sum())
                yield from _runs(chrom, position, count)
            yield from _empty(absent, None)
        except BaseException as error:  # the writer would print it and go on
            failure.append(error)

    pybigtools.open(str(path), "w").write({c: sizes[c] for c in order}, intervals())
    if failure:
        raise failure[0]
    return n_sites


def _empty(
    order: Iterator[str], until: str | None
) -> Iterator[tuple[str, int, int, float]]:
    """Yield a base of 0 for each chromosome that is passed over.

    The format lists only chromosomes that have data, and a reader could not tell one
    without cuts from one of another assembly.
    """
    for chrom in order:
        if chrom == until:
            return
        yield chrom, 0, 1, 0.0


def _runs(
    chrom: str, position: np.ndarray, count: np.ndarray
) -> Iterator[tuple[str, int, int, float]]:
    """Join neighboring bases of equal count."""
    new = (np.diff(position) != 1) | (np.diff(count) != 0)
    first = np.flatnonzero(np.append(True, new))
    last = np.flatnonzero(np.append(new, True))
    return zip(
        [chrom] * len(first),
        position[first].tolist(),
        (position[last] + 1).tolist(),
        count[first].astype(float).tolist(),
        strict=True,
    )


def _check_tally(tally: Tally, paths: Sequence[str | Path]) -> None:
    if tally.n_written == 0:
        raise ValueError(
            f"no fragment is left of {[str(path) for path in paths]}; dropped: "
            f"{dict(tally.dropped)}, on chromosomes left out: {tally.n_fragments}"
        )
    share = 1 - tally.n_written / tally.n_fragments
    if share > _MAX_LEFT_OUT_SHARE:
        warnings.warn(
            f"{share:.1%} of {tally.n_fragments} fragments lie on chromosomes that are "
            "left out (mitochondrion, virus, unplaced) but count for the depth, as in "
            "the authors' workflow; the scale without them is "
            f"{COMMON_DEPTH / tally.n_written:.8g}",
            LeftOutFragmentsWarning,
            stacklevel=3,
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a track from the command line and print its lines of a tissue file."""
    parser = argparse.ArgumentParser(
        prog="python -m helpers.cut_sites", description=__doc__.splitlines()[0]
    )
    parser.add_argument("sources", nargs="+", help="BAM or fragment files to pool")
    parser.add_argument("--genome", required=True, help="FASTA with .fai")
    parser.add_argument("--output", required=True, help="bigWig to write")
    parser.add_argument(
        "--unshifted-fragments",
        action="store_true",
        help="fragment files do not have the Tn5 shift yet",
    )
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    made = write_cut_sites(
        given.sources,
        given.output,
        genome_sizes=genome_sizes(given.genome),
        shifted_fragments=not given.unshifted_fragments,
    )
    for what, n in made.dropped.items():
        _log.info("dropped: %d %s", n, what)
    sys.stdout.write(made.yaml())
