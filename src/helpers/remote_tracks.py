"""Copy what some windows need of a bigWig, by range requests where it is remote.

The windows of a study are a small part of a genome-wide track. The copy is a bigWig of
its own, so that everything downstream reads local files.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pybigtools
import requests
from tqdm import tqdm

from helpers._bigwig import BigWig, LocalFile, Totals

__all__ = ["RemoteFile", "copy_windows"]

_log = logging.getLogger(__name__)

_MARGIN_BP = 8  # on both sides: cut sites are widened by 5 bp when read
_CHUNK_BYTES = 1 << 15
_N_CHUNKS = 1 << 9  # kept in memory: 16 MiB
_TIMEOUT_S = 30.0  # to connect, and between two packets
_PAUSES_S = (0.25, 0.5, 1.0, 2.0, 4.0)  # before trying again
_PASSING = {408, 425, 429, 500, 502, 503, 504}  # statuses that may pass
_INTERRUPTIONS = (
    requests.ConnectionError,
    requests.HTTPError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,  # the connection was cut
)


class RemoteFile:
    """A file on an HTTP server that answers range requests.

    Reads that lie close to each other share a request, and one connection serves all
    of them. It is not for several threads at a time.

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
        self.name = url
        self.size: int | None = None  # until the first answer
        self.n_bytes = 0
        self._address = url  # where redirections have led
        self._session = requests.Session()
        self._chunks: OrderedDict[int, bytes] = OrderedDict()
        self._load(range(1))

    def read(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes from ``offset``, or fewer where the file ends."""
        end = min(offset + size, self.size)
        if offset < 0 or end <= offset:
            return b""
        chunks = range(offset // _CHUNK_BYTES, -(-end // _CHUNK_BYTES))
        missing = [chunk for chunk in chunks if chunk not in self._chunks]
        if missing:
            self._load(range(missing[0], missing[-1] + 1))
        for chunk in chunks:
            self._chunks.move_to_end(chunk)
        data = b"".join(self._chunks[chunk] for chunk in chunks)
        while len(self._chunks) > _N_CHUNKS:
            self._chunks.popitem(last=False)
        start = offset - chunks[0] * _CHUNK_BYTES
        return data[start : start + end - offset]

    def tail(self, size: int) -> bytes:
        """Return the last bytes."""
        return self.read(max(self.size - size, 0), size)

    def _load(self, chunks: range) -> None:
        """Bring chunks that follow each other, in one request if all goes well."""
        failure: Exception | None = None
        for pause_s in (0.0, *_PAUSES_S):
            time.sleep(pause_s)
            try:
                data = self._get(
                    chunks.start * _CHUNK_BYTES, chunks.stop * _CHUNK_BYTES
                )
                break
            except _INTERRUPTIONS as error:
                failure = error
                self._address = self.name  # what it was led to may be gone
        else:
            raise ConnectionError(
                f"{self.name}: gave up after {len(_PAUSES_S) + 1} requests: {failure}"
            )
        for i, chunk in enumerate(chunks):
            self._chunks[chunk] = data[i * _CHUNK_BYTES : (i + 1) * _CHUNK_BYTES]

    def _get(self, first: int, end: int) -> bytes:
        """Ask for a range once; the file may end before it does."""
        headers = {"Range": f"bytes={first}-{end - 1}", "Accept-Encoding": "identity"}
        with self._session.get(
            self._address, headers=headers, timeout=_TIMEOUT_S, stream=True
        ) as answer:
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
) -> Totals | None:
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
    Totals or None
        Totals of the whole source, such as its number of cut sites, from which the
        scale of a track follows; the copy has those of the windows only.

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
    is_remote = str(source).startswith(("http://", "https://"))
    bytes_of = RemoteFile(str(source)) if is_remote else LocalFile(source)
    file = BigWig(bytes_of)
    absent = sorted(set(windows["chrom"]) - set(file.chroms))
    if absent:
        raise ValueError(
            f"{source}: chromosomes {absent} are absent; found "
            f"{sorted(file.chroms)[:5]} ({len(file.chroms)} in all)"
        )
    output = Path(output)
    partial = output.with_name(f"{output.name}.partial.bw")  # the writer wants .bw
    failures: list[Exception] = []

    def rows() -> Iterator[tuple[str, int, int, float]]:
        # The writer would print an error and go on, as if the rows ended there.
        try:
            yield from _rows(file, windows, label=output.name)
        except (ValueError, OSError) as error:
            failures.append(error)

    try:
        pybigtools.open(str(partial), "w").write(file.chroms, rows())
        if failures:
            raise failures[0]
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    if is_remote:
        _log.info(
            "%s: read %.1f of %.1f MB",
            source,
            bytes_of.n_bytes / 1e6,
            bytes_of.size / 1e6,
        )
    return file.totals


def _rows(
    file: BigWig, windows: pd.DataFrame, *, label: str
) -> Iterator[tuple[str, int, int, float]]:
    """Yield the intervals of windows, chromosome by chromosome."""
    by_chrom = dict(list(windows.sort_values("start").groupby("chrom")))
    with tqdm(total=len(windows), desc=label, unit="window") as bar:
        for chrom in file.chroms:
            is_empty, done = True, 0  # bases before `done` are written
            for row in by_chrom.get(chrom, windows[:0]).itertuples():
                start, end = max(row.start - _MARGIN_BP, done), row.end + _MARGIN_BP
                bar.update()
                if start >= end:
                    continue
                columns = (x.tolist() for x in file.intervals(chrom, start, end))
                for interval in zip(*columns, strict=True):
                    is_empty = False
                    yield chrom, *interval
                done = end
            if is_empty:
                yield chrom, 0, 1, 0.0
