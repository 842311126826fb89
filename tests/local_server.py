"""An HTTP server for tests: serves a folder, and misbehaves as it is told to.

It stands in for the portals that data come from. It answers range requests, sends no
ETag and no date, and keeps a record of what it was asked for and how much it sent.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

_CHUNK = 1 << 14
_FLIP = bytes(255 - i for i in range(256))


class Request(NamedTuple):
    """What was asked (path with its query) and the bytes of the body that were sent."""

    method: str
    path: str
    range: str | None
    sent: int


class LocalServer:
    """Serve a folder on a free port of this machine for as long as a ``with`` lasts.

    A folder's own address is answered with its ``index.json``. Paths are given
    relative to the folder; queries are recorded and otherwise ignored.

    Parameters
    ----------
    folder : Path
        What to serve.
    delay_s : float
        Wait before every answer.
    cut_after : dict of str to int, optional
        For these paths, close the connection after so many bytes of the body: once
        each, at the first answer to GET that is longer than that.
    unavailable : int
        How many requests, the first ones, are answered with 503.
    corrupt : collection of str
        Paths that are sent with every bit flipped.
    stall_s : float
        Say nothing for so long before a connection is cut.
    port : int
        A free one by default.

    Attributes
    ----------
    url : str
        Address without a slash at its end.
    requests : list of Request
        So far, in order of arrival. What the last one sent counts before it is sent.
    """

    def __init__(
        self,
        folder: Path,
        *,
        delay_s: float = 0.0,
        cut_after: Mapping[str, int] | None = None,
        unavailable: int = 0,
        corrupt: Collection[str] = (),
        stall_s: float = 0.0,
        port: int = 0,
    ) -> None:
        self.folder = Path(folder).resolve()
        self.delay_s, self.stall_s = delay_s, stall_s
        self._cuts = {path.strip("/"): n for path, n in (cut_after or {}).items()}
        self._unavailable = unavailable
        self._corrupt = {path.strip("/") for path in corrupt}
        self._records: list[list] = []
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> LocalServer:
        poll = {"poll_interval": 0.01}
        threading.Thread(
            target=self._server.serve_forever, kwargs=poll, daemon=True
        ).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def requests(self) -> list[Request]:
        with self._lock:
            return [Request(*record) for record in self._records]

    def _begin(self, method: str, path: str, span: str | None) -> tuple[list, bool]:
        """Record a request; return its record and whether to answer it."""
        with self._lock:
            record = [method, path, span, 0]
            self._records.append(record)
            self._unavailable -= 1
            return record, self._unavailable < 0

    def _take_cut(self, name: str, length: int) -> int | None:
        with self._lock:
            if self._cuts.get(name, length) < length:
                return self._cuts.pop(name)
            return None


class _Handler(BaseHTTPRequestHandler):
    owner: LocalServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *arguments: object) -> None:
        """Say nothing: the owner keeps the record."""

    def _answer(self, *, with_body: bool) -> None:
        span = self.headers.get("Range")
        record, available = self.owner._begin(self.command, self.path, span)
        time.sleep(self.owner.delay_s)
        if not available:
            return self._refuse(503)
        name = unquote(urlsplit(self.path).path).strip("/")
        path = (self.owner.folder / name).resolve()
        if path.is_dir():
            path /= "index.json"
        if not path.is_relative_to(self.owner.folder) or not path.is_file():
            return self._refuse(404)
        size = path.stat().st_size
        first, last = 0, size
        if span is not None:
            first, last = _parse_range(span, size)
            if not first < last:
                return self._refuse(416, {"Content-Range": f"bytes */{size}"})
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last - 1}/{size}")
        else:
            self.send_response(200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(last - first))
        self.end_headers()
        if with_body:
            self._send(path, name, first, last, record)

    def _refuse(self, status: int, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, path: Path, name: str, first: int, last: int, record: list) -> None:
        cut = self.owner._take_cut(name, last - first)
        if cut is not None:
            last = first + cut
            self.close_connection = True
        with path.open("rb") as file:
            file.seek(first)
            while first < last and (chunk := file.read(min(_CHUNK, last - first))):
                first += len(chunk)
                record[3] += len(chunk)  # before: the client may be quicker than us
                if name in self.owner._corrupt:
                    chunk = chunk.translate(_FLIP)
                try:
                    self.wfile.write(chunk)
                except OSError:  # the client has gone
                    self.close_connection = True
                    return
        if cut is not None:
            time.sleep(self.owner.stall_s)


def _parse_range(span: str, size: int) -> tuple[int, int]:
    """Return first byte and end of a single range; an empty one if it is not valid."""
    unit, _, value = span.partition("=")
    first, dash, last = value.partition("-")
    if unit != "bytes" or not dash or not (first + last).isdecimal():
        return 0, 0
    if not first:
        return max(size - int(last), 0), size
    return int(first), min(int(last) + 1, size) if last else size
