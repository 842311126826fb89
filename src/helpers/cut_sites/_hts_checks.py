"""Whether the header of a BAM and the index of a BAM or a fragment file are whole.

HTSlib believes the numbers in them: damaged ones end the process, or take gigabytes.
The layouts are those of the SAM, tabix and CSI specifications (samtools/hts-specs).
"""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from pathlib import Path

__all__ = ["check_bam_header", "check_indexes"]

_SUFFIXES = (".bai", ".tbi", ".csi")
_CHUNK_BYTES = 16
_MAX_BITS = 62  # of a position: 3 for each level of bins, the rest within a bin


class _Damaged(Exception):
    pass


def check_bam_header(path: Path) -> None:
    """Check that a BAM holds the references that its header announces.

    Parameters
    ----------
    path : Path
        BAM file.

    Raises
    ------
    ValueError
        If the header is damaged.
    """
    try:
        with gzip.open(path) as file:
            _check_references(file)
    except (_Damaged, struct.error, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: damaged header: {error}") from None


def _check_references(file: gzip.GzipFile) -> None:
    magic, n_text = struct.unpack("<4si", file.read(8))
    if n_text < 0:
        raise _Damaged(f"a text of {n_text} bytes")
    file.seek(n_text, os.SEEK_CUR)
    (n_references,) = struct.unpack("<i", file.read(4))
    for number in range(n_references):
        (n_name,) = struct.unpack("<i", file.read(4))
        if n_name < 1:
            raise _Damaged(f"reference {number} has a name of {n_name} bytes")
        file.seek(n_name, os.SEEK_CUR)  # not read: it may be all of the file
        (length,) = struct.unpack("<i", file.read(4))
        if length < 0:
            raise _Damaged(f"reference {number} has a length of {length}")


def check_indexes(path: Path) -> None:
    """Check the indexes beside a file; there may be none.

    Parameters
    ----------
    path : Path
        BAM or fragment file.

    Raises
    ------
    ValueError
        If an index is damaged, or none.
    """
    beside = [Path(f"{path}{suffix}") for suffix in _SUFFIXES]
    for index in beside + [path.with_suffix(suffix) for suffix in _SUFFIXES]:
        if index.is_file():
            _check(index)


def _check(path: Path) -> None:
    content = path.read_bytes()
    try:
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        _Index(content).check()
    except (_Damaged, struct.error, EOFError, OSError, zlib.error) as error:
        raise ValueError(
            f"{path}: damaged index: {error}; make it again by `samtools index`, or "
            "`tabix -p bed` for fragments"
        ) from None


class _Index:
    """Goes through an index as a reader does."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.at = 0

    def check(self) -> None:
        magic = self._take(4)
        if magic not in (b"BAI\1", b"TBI\1", b"CSI\1"):
            raise _Damaged(f"it begins with {magic!r}")
        is_csi = magic == b"CSI\1"
        shift, depth = (self._count(), self._count()) if is_csi else (14, 5)
        if shift + 3 * depth > _MAX_BITS:
            raise _Damaged(f"bins of 2^{shift} bases on {depth} levels")
        if is_csi:
            self._take(self._count())
        n_references = self._count()
        if magic == b"TBI\1":
            self._take(24)  # which column is which
            names = self._take(self._count())
            if names.count(b"\0") != n_references:
                raise _Damaged(f"names of {n_references} references are not there")
        # One past the last of the bins holds counts of reads in place of two chunks.
        counts = (8 ** (depth + 1) - 1) // 7 + 1
        for _ in range(n_references):
            self._check_reference(is_csi, counts)
        if self.at not in (len(self.content), len(self.content) - 8):
            raise _Damaged(f"{len(self.content) - self.at} bytes are left over")

    def _check_reference(self, is_csi: bool, counts: int) -> None:
        for _ in range(self._count()):
            (number,) = struct.unpack("<I", self._take(4))
            if is_csi:
                self._take(8)
            n_chunks = self._count()
            if number > counts or (number == counts and n_chunks != 2):
                raise _Damaged(f"bin {number} with {n_chunks} chunks")
            self._take(_CHUNK_BYTES * n_chunks)
        if not is_csi:
            self._take(8 * self._count())

    def _count(self) -> int:
        (value,) = struct.unpack("<i", self._take(4))
        if value < 0:
            raise _Damaged(f"a count of {value}")
        return value

    def _take(self, n_bytes: int) -> bytes:
        start, self.at = self.at, self.at + n_bytes
        if self.at > len(self.content):
            raise _Damaged(f"bytes {start} to {self.at} of {len(self.content)}")
        return self.content[start : self.at]
