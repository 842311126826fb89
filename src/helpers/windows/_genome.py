"""Random access to the sequence of a genome in FASTA format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pysam

from helpers.windows._own_reader import OwnReader

__all__ = ["N_CODE", "Genome"]

N_CODE = 4
_CODES = bytearray([N_CODE]) * 256  # of letters, for bytes.translate
for _i, _letter in enumerate(b"ACGT"):
    _CODES[_letter] = _CODES[_letter | 0x20] = _i  # upper and lower case
_GZIP = b"\x1f\x8b"


class Genome:
    """Random access to a FASTA file of chromosomes or of regions.

    Records may be named ``chrom`` or ``chrom:start-end`` (0-based, half-open, as
    ``bedtools getfasta`` names them). Threads may share a genome.

    Parameters
    ----------
    path : str or Path
        FASTA, plain or bgzipped, with ``.fai`` (and ``.gzi``).

    Attributes
    ----------
    lengths : dict of str to int
        Length of the chromosomes that the file holds whole.

    Raises
    ------
    FileNotFoundError
        If the file or its index does not exist.
    ValueError
        If the file cannot be read, is compressed by gzip, is shorter than its index
        says, or a region is not as long as its name says.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        _check_files(self.path)
        try:
            self._file = OwnReader(lambda: pysam.FastaFile(str(self.path)))
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.path}: not an indexed FASTA: {error}") from None
        self.lengths: dict[str, int] = {}
        self._regions: dict[str, list[tuple[int, int, str]]] = {}
        with self._file.using() as fasta:
            lengths = list(zip(fasta.references, fasta.lengths, strict=True))
        for record, length in lengths:
            self._add(record, length)

    def _add(self, record: str, length: int) -> None:
        chrom, first, last = _parse_record(record, length)
        if last - first != length:
            raise ValueError(
                f"{self.path}: record {record!r} must hold {last - first} "
                f"bases, as its name is 0-based and half-open; found {length}"
            )
        if chrom == record:
            self.lengths[chrom] = length
        self._regions.setdefault(chrom, []).append((first, last, record))
        if length:
            self._fetch(record, length - 1, length)  # is the file whole?

    def _fetch(self, record: str, start: int, end: int) -> bytes:
        try:
            with self._file.using() as fasta:
                text = fasta.fetch(record, start, end)
        except (OSError, ValueError) as error:
            text, reason = "", f": {error}"
        else:
            reason = ""
        if len(text) != end - start:
            raise ValueError(
                f"{self.path}: record {record!r} must have bases {start}-{end}, as "
                f"{self.path.name}.fai says; found {len(text)} of them (truncated, or "
                f"changed since `samtools faidx`?){reason}"
            )
        return text.encode("ascii")

    @property
    def chromosomes(self) -> list[str]:
        """Names of the chromosomes that have sequence."""
        return list(self._regions)

    def covers(self, chrom: str, start: int, end: int) -> bool:
        """Return whether one record holds a whole region."""
        regions = self._regions.get(chrom, [])
        return any(first <= start and end <= last for first, last, _ in regions)

    def codes(self, chrom: str, start: int, end: int) -> np.ndarray:
        """Return base codes 0-3 for A, C, G, T and 4 for N, shape (end - start,).

        Letters other than A, C, G, T in either case are N, and so are bases past
        either end of the record that holds most of the region.

        Raises
        ------
        ValueError
            If the chromosome is absent or no record holds any of the region.
        """
        if chrom not in self._regions:
            raise ValueError(
                f"{self.path}: chromosome {chrom!r} is absent; found "
                f"{self.chromosomes[:5]} ({len(self._regions)} in all)"
            )
        spans = [
            (max(start, first), min(end, last), first, record)
            for first, last, record in self._regions[chrom]
        ]
        left, right, first, record = max(spans, key=lambda span: span[1] - span[0])
        if left >= right:
            raise ValueError(f"{self.path}: {chrom}:{start}-{end} is not in any record")
        text = self._fetch(record, left - first, right - first)
        codes = np.full(end - start, N_CODE, dtype=np.uint8)
        codes[left - start : right - start] = np.frombuffer(
            text.translate(_CODES), dtype=np.uint8
        )
        return codes


def _check_files(path: Path) -> None:
    """Check that a FASTA can be read at random."""
    if not path.is_file():
        raise FileNotFoundError(f"genome file not found: {path}")
    with path.open("rb") as file:
        head = file.read(14)
    is_packed = head[:2] == _GZIP
    # Blocks of bgzip are members of gzip with an extra field named BC.
    if is_packed and not (head[3:4] == b"\x04" and head[12:14] == b"BC"):
        raise ValueError(
            f"{path}: compressed by gzip, which allows no random access; unpack it, "
            f"compress it by `bgzip` and index it by `samtools faidx`"
        )
    for index in [".fai", ".gzi"] if is_packed else [".fai"]:
        if not Path(f"{path}{index}").is_file():
            raise FileNotFoundError(
                f"index of the genome not found: {path}{index}; make it by "
                f"`samtools faidx {path}`, or pysam.faidx({str(path)!r})"
            )


def _parse_record(name: str, length: int) -> tuple[str, int, int]:
    """Return chromosome and span of a FASTA record."""
    chrom, _, span = name.rpartition(":")
    first, dash, last = span.partition("-")
    if chrom and dash and first.isdecimal() and last.isdecimal():
        return chrom, int(first), int(last)
    return name, 0, length
