"""What is written down of a fetched file, and how addresses and checksums are read.

The record of ``<name>`` is ``<name>.json`` by it: address, size, digest, time (UTC),
and the modification time, by which a file that changed since is noticed without reading
it. Checksums are written as ``algorithm:digest``.
"""

from __future__ import annotations

import hashlib
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urldefrag, urlsplit
from urllib.request import url2pathname

from helpers.downloads import _transfer

__all__ = [
    "Record",
    "file_digest",
    "local_path",
    "parse_json",
    "read_record",
    "split_checksum",
    "utc_now",
    "write_record",
]

_DIGITS = {"md5": 32, "sha256": 64}


class Record(NamedTuple):
    """A fetched file: ``is_current`` if it has not changed since it was verified."""

    url: str
    checksum: str
    is_current: bool


def utc_now() -> str:
    """Return the time in ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def local_path(source: str | Path) -> Path | None:
    """Return the path of a local source (a path or file address), None for http(s)."""
    parts = urlsplit(str(source))
    if parts.scheme in ("http", "https"):
        return None
    if parts.scheme == "file":
        return Path(url2pathname(parts.path))
    return Path(source).expanduser()


def file_digest(path: Path, algorithm: str) -> str:
    """Return the digest of a file in hexadecimal digits, by ``md5`` or ``sha256``."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def split_checksum(
    url: str, md5: str | None = None, sha256: str | None = None
) -> tuple[str, str | None]:
    """Separate an address from the checksum in its fragment, or given with it.

    Raises
    ------
    ValueError
        If there are two that differ, or one is not an md5 or sha256 digest.
    """
    address, fragment = urldefrag(str(url))
    given = [("md5", md5)] if md5 else []
    given += [("sha256", sha256)] if sha256 else []
    if fragment:
        algorithm, _, digest = fragment.partition("=")
        given.append((algorithm, digest))
    for algorithm, digest in given:
        digits = _DIGITS.get(algorithm)
        if digits is None or not re.fullmatch(rf"[0-9a-fA-F]{{{digits}}}", digest):
            raise ValueError(
                f"{address}: a checksum is md5 (32 hexadecimal digits) or sha256 (64); "
                f"got {algorithm!r}: {digest!r}"
            )
    checksums = {f"{algorithm}:{digest.lower()}" for algorithm, digest in given}
    if len(checksums) > 1:
        raise ValueError(f"{address}: give one checksum; got {sorted(checksums)}")
    return address, checksums.pop() if checksums else None


def read_record(path: Path) -> Record | None:
    """Return the record of a file, present or not; None if there is none."""
    try:
        content = json.loads(_record_of(path).read_text(encoding="utf-8"))
        algorithm = next(key for key in _DIGITS if key in content)
        stamp = [content["size"], content["modified_ns"]]
        checksum = f"{algorithm}:{content[algorithm]}"
        return Record(content["url"], checksum, stamp == _stamp(path))
    except (
        FileNotFoundError,
        ValueError,
        KeyError,
        TypeError,
        StopIteration,
        RecursionError,
    ):
        return None  # absent, or not a record of this module


def write_record(path: Path, url: str, checksum: str) -> None:
    """Write down a file that has just been verified."""
    algorithm, _, digest = checksum.partition(":")
    size, modified_ns = _stamp(path)
    content = {"url": url, "size": size, algorithm: digest, "date": utc_now()}
    _transfer.write_json(_record_of(path), content | {"modified_ns": modified_ns})


def parse_json(content: bytes, origin: str) -> dict:
    """Return a JSON object.

    Raises
    ------
    ValueError
        If the content is anything else.
    """
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise ValueError(
            f"{origin}: expected a JSON object; found {content[:60]!r} ..."
        )
    return document


def _record_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _stamp(path: Path) -> list[int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return [status.st_size, status.st_mtime_ns]
