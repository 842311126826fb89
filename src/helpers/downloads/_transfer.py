"""Reading over HTTP with patience: retries, resumed transfers, errors naming the URL.

A transfer is kept in a file ``<name>.part``, with what is known of the whole in
``<name>.part.json``, until it is complete; a later call, in this process or another,
asks the server for the missing bytes only (RFC 9110, section 14).
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import requests
from tqdm.std import tqdm

__all__ = [
    "check_space",
    "discard",
    "download",
    "get_bytes",
    "require_encryption",
    "write_json",
]

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")

_TIMEOUT_S = (15, 60)  # to connect, and between two chunks
_ATTEMPTS = 6  # in a row that bring no new byte
_FIRST_WAIT_S = 1.0  # doubles with every failure
_LONGEST_WAIT_S = 300.0  # also of what a server asks for by Retry-After
_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
_CHUNK = 1 << 16  # what a cut can lose: an unfinished chunk is not handed on


class _Passing(Exception):
    """A failure that may be over soon, and how long the server asks to wait."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


_TRANSIENT = (
    _Passing,
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,  # the connection was cut
)


def get_bytes(url: str, *, accept: str = "*/*") -> bytes:
    """Return a small document.

    Raises
    ------
    FileNotFoundError, PermissionError, OSError
        If the server refuses, by what it says.
    ConnectionError
        If it cannot be reached, or keeps failing.
    """
    require_encryption(url)

    def attempt() -> bytes:
        with requests.get(
            url, headers={"Accept": accept}, timeout=_TIMEOUT_S
        ) as response:
            _check_status(response, url)
            return response.content

    return _patiently(url, attempt, lambda: 0)


def download(url: str, part: Path, *, size: int | None = None, label: str = "") -> None:
    """Bring a whole file to ``part``, going on where an earlier call stopped.

    Parameters
    ----------
    url : str
        Address of the file, http or https.
    part : Path
        Where it grows; complete when this function returns.
    size : int, optional
        Bytes that the file must have.
    label : str
        What the progress bar says.

    Raises
    ------
    FileNotFoundError, PermissionError
        If the server does not have the file, or refuses it.
    ValueError
        If the server's file is not of ``size``.
    ConnectionError
        If the server cannot be reached, or keeps failing without sending anything new.
    OSError
        If the disk is, or would be, full; with the path and the bytes needed.
    """
    require_encryption(url)
    with (
        requests.Session() as session,
        tqdm(desc=label, unit="B", unit_scale=True, mininterval=0.5) as bar,
    ):
        _patiently(
            url,
            lambda: _transfer(session, url, part, size, bar),
            lambda: part.stat().st_size if part.is_file() else 0,
        )


def require_encryption(url: str) -> None:
    """Raise ValueError if whoever is on the way could change what an address sends.

    Redirections are checked too; this machine itself is trusted.
    """
    parts = urlsplit(url)
    if parts.scheme != "https" and parts.hostname not in _THIS_MACHINE:
        raise ValueError(f"{url}: not encrypted; expected an https address")


def discard(part: Path) -> None:
    """Remove an unfinished transfer."""
    part.unlink(missing_ok=True)
    _state_of(part).unlink(missing_ok=True)


def write_json(path: Path, content: object) -> None:
    """Write JSON so that it appears whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.partial")
    draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    draft.replace(path)


def _patiently(
    url: str, attempt: Callable[[], _Result], progress: Callable[[], int]
) -> _Result:
    """Call ``attempt`` until it succeeds, or fails too often without progress."""
    failures, furthest = 0, progress()
    while True:
        try:
            return attempt()
        except _TRANSIENT as error:
            reached = progress()
            failures = 1 if reached > furthest else failures + 1
            furthest = max(furthest, reached)
            if failures == _ATTEMPTS:
                raise ConnectionError(
                    f"{url}: no answer after {failures} attempts ({error})"
                ) from error
            wait_s = _FIRST_WAIT_S * 2 ** (failures - 1)
            wait_s = min(max(wait_s, getattr(error, "wait_s", 0.0)), _LONGEST_WAIT_S)
            _log.warning("%s: %s; again in %.0f s", url, error, wait_s)
            time.sleep(wait_s)


def _transfer(
    session: requests.Session, url: str, part: Path, expected: int | None, bar: tqdm
) -> None:
    """Bring what is missing of a file, in one request."""
    state = _read_state(part, url, expected)
    start = part.stat().st_size if state else 0
    if state and start == state["size"]:
        return
    headers = {"Accept-Encoding": "identity"}  # ranges count the bytes of the file
    if start:
        headers["Range"] = f"bytes={start}-"
        if state["validator"].startswith('"'):  # a strong ETag
            headers["If-Range"] = state["validator"]
    with session.get(url, headers=headers, stream=True, timeout=_TIMEOUT_S) as response:
        if start and response.status_code in (206, 416):
            found = _found(response, url)
            if response.status_code == 416 or not _continues(response, state, start):
                discard(part)
                raise _Passing("the file is another one by now; starting over")
        else:
            _check_status(response, url)
            start, found = 0, _found(response, url)
            if None not in (expected, found["size"]) and found["size"] != expected:
                raise ValueError(
                    f"expected {expected:,} bytes; the server has {found['size']:,}"
                )
            discard(part)
            write_json(_state_of(part), found)
        size = found["size"]
        if size is not None:
            check_space(part, size - start)
        bar.total, bar.n = size, start
        bar.refresh()
        try:
            with part.open("ab") as file:
                for chunk in response.iter_content(_CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            needed = "unknown" if size is None else f"{size:,}"
            raise OSError(
                error.errno, f"{error.strerror}; bytes needed: {needed}", str(part)
            ) from None
    reached = part.stat().st_size
    if size is not None and reached != size:
        raise _Passing(f"cut off at {reached:,} of {size:,} bytes")


def _state_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_state(part: Path, url: str, expected: int | None) -> dict | None:
    """Return what is known of an unfinished transfer, if it can go on."""
    try:
        state = json.loads(_state_of(part).read_text(encoding="utf-8"))
        reached = part.stat().st_size
        size, validator = state["size"], state["validator"]
        known = state["url"] == url and isinstance(validator, str)
        known = known and isinstance(size, int | None)
        fits = known and (None in (size, expected) or size == expected)
        return state if fits and (size is None or reached <= size) else None
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return None  # absent, or damaged: the transfer starts over


def _found(response: requests.Response, url: str) -> dict:
    """Return what an answer says of the whole file."""
    headers = response.headers
    if response.status_code == 206:
        size = headers.get("Content-Range", "").rpartition("/")[2]
    elif headers.get("Content-Encoding", "identity") == "identity":
        size = headers.get("Content-Length", "")
    else:  # compressed on the way, though not asked for: the length is not the file's
        size = ""
    validator = headers.get("ETag") or headers.get("Last-Modified")
    return {
        "url": url,
        "size": int(size) if size.isdecimal() else None,
        "validator": validator or "",
    }


def _continues(response: requests.Response, state: dict, start: int) -> bool:
    """Tell whether a partial answer goes on from ``start`` in the same file."""
    found = _found(response, state["url"])
    span = response.headers.get("Content-Range", "")
    same = all(
        found[key] == state[key] or not (found[key] and state[key])
        for key in ("size", "validator")
    )
    return same and span.startswith(f"bytes {start}-")


def _check_status(response: requests.Response, url: str) -> None:
    require_encryption(response.url)
    status = response.status_code
    said = f"HTTP {status} {response.reason}"
    if status == 429 or status >= 500:
        raise _Passing(said, _retry_after_s(response))
    if status in (404, 410):
        raise FileNotFoundError(f"{url}: not there ({said})")
    if status in (401, 403):
        raise PermissionError(f"{url}: refused ({said})")
    if status != 200:
        raise OSError(f"{url}: {said}")


def _retry_after_s(response: requests.Response) -> float:
    """Return how long a server asks to wait; it says so in seconds or as a date."""
    said = response.headers.get("Retry-After", "")
    if said.isdecimal():
        return float(said)
    try:
        return (parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds()
    except (TypeError, ValueError):
        return 0.0


def check_space(path: Path, needed: int) -> None:
    """Check that a file can grow by so many bytes.

    Raises
    ------
    OSError
        If its disk has less room.
    """
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise OSError(
            errno.ENOSPC, f"{needed:,} more bytes are needed, {free:,} free", str(path)
        )
