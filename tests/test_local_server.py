"""The server of the tests itself: ranges, records, and every misbehavior."""

from http.client import IncompleteRead
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from local_server import LocalServer

CONTENT = bytes(range(256)) * 200


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "file.bin").write_bytes(CONTENT)
    (tmp_path / "inner" / "index.json").write_text("{}")
    return tmp_path


def get(url, span=None, method="GET"):
    headers = {} if span is None else {"Range": span}
    with urlopen(Request(url, headers=headers, method=method), timeout=5) as answer:
        return answer.status, dict(answer.headers), answer.read()


def status_of(url, span=None):
    with pytest.raises(HTTPError) as error:
        get(url, span)
    return error.value.code


def test_files_and_ranges_are_served_and_recorded(folder):
    with LocalServer(folder) as server:
        url = f"{server.url}/inner/file.bin"
        status, headers, body = get(url)
        assert (status, body) == (200, CONTENT)
        assert headers["Accept-Ranges"] == "bytes"
        assert not {"ETag", "Last-Modified"} & set(headers)
        for span, expected in (
            ("bytes=10-19", CONTENT[10:20]),
            ("bytes=51190-", CONTENT[51190:]),
            ("bytes=51190-99999", CONTENT[51190:]),
            ("bytes=-5", CONTENT[-5:]),
        ):
            status, headers, body = get(url, span)
            assert (status, body) == (206, expected)
        assert headers["Content-Range"] == "bytes 51195-51199/51200"
        status, headers, body = get(f"{url}?format=json", method="HEAD")
        assert (status, headers["Content-Length"], body) == (200, "51200", b"")
        assert get(f"{server.url}/inner/")[2] == b"{}"
        assert server.requests[0] == ("GET", "/inner/file.bin", None, 51200)
        assert server.requests[1] == ("GET", "/inner/file.bin", "bytes=10-19", 10)
        assert server.requests[5] == ("HEAD", "/inner/file.bin?format=json", None, 0)


def test_what_is_not_there_is_refused(folder):
    (folder.parent / "secret").write_text("x")
    with LocalServer(folder) as server:
        assert status_of(f"{server.url}/other") == 404
        assert status_of(f"{server.url}/%2e%2e/secret") == 404
        url = f"{server.url}/inner/file.bin"
        for span in ("bytes=51200-", "bytes=5-4", "bytes=-", "lines=1-2", "bytes=a-b"):
            assert status_of(url, span) == 416
        assert [r.sent for r in server.requests] == [0] * 7


def test_the_first_requests_are_unavailable(folder):
    with LocalServer(folder, unavailable=2) as server:
        url = f"{server.url}/inner/file.bin"
        assert [status_of(url), status_of(url)] == [503, 503]
        assert get(url)[2] == CONTENT


def test_a_connection_is_cut_once(folder):
    with LocalServer(folder, cut_after={"inner/file.bin": 20_000}) as server:
        url = f"{server.url}/inner/file.bin"
        assert get(url, "bytes=0-19999")[2] == CONTENT[:20_000]  # not longer
        with pytest.raises(IncompleteRead, match="20000 bytes read, 31200 more"):
            get(url)
        assert server.requests[1].sent == 20_000
        assert get(url)[2] == CONTENT


def test_corrupt_files_have_their_size_and_other_bytes(folder):
    with LocalServer(folder, corrupt=["inner/file.bin"]) as server:
        body = get(f"{server.url}/inner/file.bin", "bytes=3-9")[2]
        assert bytes(255 - b for b in body) == CONTENT[3:10]
