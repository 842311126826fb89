"""Copy what some windows need of a bigWig, by range requests where it is remote.

The windows of a study are a small part of a genome-wide track. The copy is a bigWig of
its own, so that everything downstream reads local files.
"""

from __future__ import annotations

import io
import logging
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pandas as pd
import pybigtools
import requests
from tqdm import tqdm

from helpers.downloads._transfer import require_encryption
from helpers.windows._bigwig import named_errors, open_bigwig

__all__ = ["RemoteFile", "copy_windows"]

_log = logging.getLogger(__name__)

_MARGIN_BP = 8  # on both sides: cut sites are widened by 5 bp when read
_CHUNK_BYTES = 1 << 15
_N_CHUNKS = 1 << 9  # kept in memory: 16 MiB
_N_AHEAD = 1 << 5  # in one request: 1 MiB
_TIMEOUT_S = 30.0  # to connect, and between two packets
_PAUSES_S = (0.25, 0.5, 1.0, 2.0, 4.0)  # before trying again
_PASSING = {408, 425, 429, 500, 502, 503, 504}  # statuses that may pass
_INTERRUPTIONS = (
    requests.ConnectionError,
    requests.HTTPError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,  # the connection was cut
)


class RemoteFile(io.RawIOBase):
    """A file on an HTTP server that answers range requests.

    What lies close together shares a request, the more of it the longer reading goes
    on without a jump; one connection serves all. It is not for several threads at a
    time.

    Parameters
    ----------
    url : str
        Address, http or https.

    Attributes
    ----------
    name : str
        The address.
    size : int
        Length of the file.
    n_bytes : int
        Bytes that have come over the network.
    failure : Exception or None
        Error of the last request. A reader in another language that was handed the
        file may know no more of it than its text.

    Raises
    ------
    FileNotFoundError
        If the server has no such file.
    ValueError
        If the server does not answer range requests, or the file's length changes.
    ConnectionError
        If the server cannot be reached, or keeps failing.
    """

    def __init__(self, url: str) -> None:
        require_encryption(url)
        self.name = url
        self.size: int | None = None  # until the first answer
        self.n_bytes = 0
        self.failure: Exception | None = None
        self._position = 0
        self._address = url  # where redirections have led
        self._session = requests.Session()
        self._chunks: OrderedDict[int, bytes] = OrderedDict()
        self._latest = range(0)  # chunks of the last request
        self._load(range(1))

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position of the next byte."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position, counted from the start, from here or from the end."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}
        position = origin[whence] + offset
        if position < 0:
            raise ValueError(f"{self.name}: no position {position}")
        self._position = position
        return position

    def readinto(self, buffer: memoryview) -> int:
        """Read on, at most to the end of a chunk; return the number of bytes."""
        chunk, start = divmod(self._position, _CHUNK_BYTES)
        if self._position >= self.size or not len(buffer):
            return 0
        if chunk not in self._chunks:
            goes_on = chunk == self._latest.stop
            n = min(2 * len(self._latest), _N_AHEAD) if goes_on else 1
            self._load(range(chunk, min(chunk + n, -(-self.size // _CHUNK_BYTES))))
        self._chunks.move_to_end(chunk)
        data = self._chunks[chunk][start : start + len(buffer)]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _load(self, chunks: range) -> None:
        """Bring chunks that follow each other, in one request if all goes well."""
        failure: Exception | None = None
        first, end = chunks.start * _CHUNK_BYTES, chunks.stop * _CHUNK_BYTES
        for pause_s in (0.0, *_PAUSES_S):
            time.sleep(pause_s)
            try:
                data = self._get(first, end)
                break
            except _INTERRUPTIONS as error:
                failure = error
                self._address = self.name  # what it was led to may be gone
            except (FileNotFoundError, ValueError) as error:
                self.failure = error
                raise
        else:
            self.failure = ConnectionError(
                f"{self.name}: gave up after {len(_PAUSES_S) + 1} requests: {failure}"
            )
            raise self.failure
        for i, chunk in enumerate(chunks):
            self._chunks[chunk] = data[i * _CHUNK_BYTES : (i + 1) * _CHUNK_BYTES]
        while len(self._chunks) > _N_CHUNKS:
            self._chunks.popitem(last=False)
        self._latest = chunks

    def _get(self, first: int, end: int) -> bytes:
        """Ask for a range once; the file may end before it does."""
        headers = {"Range": f"bytes={first}-{end - 1}", "Accept-Encoding": "identity"}
        with self._session.get(
            self._address, headers=headers, timeout=_TIMEOUT_S, stream=True
        ) as answer:
            require_encryption(answer.url)
            status = answer.status_code
            led_astray = self._address != self.name and status != 206
            if status in _PASSING or led_astray:
                raise requests.HTTPError(f"HTTP {status} {answer.reason}")
            if status in (404, 410):
                raise FileNotFoundError(f"{self.name}: not found (HTTP {status})")
            if status != 206:
                raise ValueError(
                    f"{self.name}: expected part of a file (HTTP 206) in answer to a "
                    f"range request; found HTTP {status} {answer.reason}. A server "
                    "without ranges needs the file to be downloaded as a whole"
                )
            span = answer.headers.get("Content-Range", "")
            size = span.rpartition("/")[2]
            if self.size is None and size.isdecimal():
                self.size = int(size)
            expected = f"bytes {first}-{min(end, self.size or 0) - 1}/{self.size}"
            if span != expected:
                raise ValueError(f"{self.name}: expected {expected!r}; found {span!r}")
            data = answer.content
            self.n_bytes += len(data)
            self._address = answer.url
        if len(data) != min(end, self.size) - first:
            raise requests.ConnectionError(f"cut off after {len(data)} bytes")
        return data


def copy_windows(
    source: str | Path, windows: pd.DataFrame, output: str | Path
) -> dict[str, float]:
    """Write a bigWig with the signal of some windows only.

    The copy has all chromosomes of the source with their lengths, and the signal of
    the windows and of 8 bp on both sides, where cut sites reach into them. Chromosomes
    without any get one base of 0, as a bigWig cannot be written without.

    Parameters
    ----------
    source : str or Path
        bigWig: a path, or an address that begins with http:// or https://, whose
        server answers range requests.
    windows : pandas.DataFrame
        ``chrom``, ``start``, ``end``.
    output : str or Path
        bigWig to write; what is there is replaced when all has been read.

    Returns
    -------
    dict of str to float
        Totals of the whole source (``basesCovered``, ``sum``, ``mean``, ``min``,
        ``max``, ``std``), such as its number of cut sites, from which the scale of a
        track follows; the copy has those of the windows only.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the source is no bigWig, is damaged, lacks a chromosome of the windows, or
        its server does not answer range requests.
    ConnectionError
        If the server cannot be reached, or keeps failing.
    """
    output = Path(output)
    partial = output.with_name(f"{output.name}.partial.bw")  # the writer wants .bw
    with _open(source) as file:
        try:
            totals = _copy(file, str(source), windows, partial)
            partial.replace(output)
        except ValueError:
            if isinstance(file, RemoteFile) and file.failure:
                raise file.failure from None
            raise
        finally:
            partial.unlink(missing_ok=True)
        if isinstance(file, RemoteFile):
            n_mb, size_mb = file.n_bytes / 1e6, file.size / 1e6
            _log.info("%s: read %.1f of %.1f MB", source, n_mb, size_mb)
    return totals


def _open(source: str | Path) -> BinaryIO | RemoteFile:
    if str(source).startswith(("http://", "https://")):
        return RemoteFile(str(source))
    if not Path(source).is_file():
        raise FileNotFoundError(f"bigWig not found: {source}")
    return Path(source).open("rb")


def _copy(
    file: BinaryIO | RemoteFile, name: str, windows: pd.DataFrame, partial: Path
) -> dict[str, float]:
    """Write the windows of a bigWig and return its totals."""
    reader = open_bigwig(file, name, check_index=False)
    with named_errors(f"{name}: cannot read its header"):
        totals, lengths = reader.info()["summary"], reader.chroms()
    absent = sorted(set(windows["chrom"]) - set(lengths))
    if absent:
        raise ValueError(
            f"{name}: chromosomes {absent} are absent; found "
            f"{sorted(lengths)[:5]} ({len(lengths)} in all)"
        )
    failures: list[Exception] = []

    def rows() -> Iterator[tuple[str, int, int, float]]:
        # The writer would print an error and go on, as if the rows ended there.
        try:
            yield from _rows(reader, name, windows)
        except ValueError as error:
            failures.append(error)

    pybigtools.open(str(partial), "w").write(lengths, rows())
    if failures:
        raise failures[0]
    return totals


def _rows(
    reader: pybigtools.BBIReader, name: str, windows: pd.DataFrame
) -> Iterator[tuple[str, int, int, float]]:
    """Yield the intervals of windows, chromosome by chromosome."""
    by_chrom = dict(list(windows.sort_values("start").groupby("chrom")))
    with tqdm(total=len(windows), desc=Path(name).name, unit="window") as bar:
        for chrom, length in reader.chroms().items():
            is_empty, done = True, 0  # bases before `done` are written
            for row in by_chrom.get(chrom, windows[:0]).itertuples():
                start = max(row.start - _MARGIN_BP, done)
                end = min(row.end + _MARGIN_BP, length)
                bar.update()
                if start >= end:
                    continue
                with named_errors(f"{name}: cannot read {chrom}:{start}-{end}"):
                    records = list(reader.records(chrom, start, end))
                for record in records:  # cut off at the ends of the region
                    is_empty = False
                    yield chrom, *record
                done = end
            if is_empty:
                yield chrom, 0, 1, 0.0
