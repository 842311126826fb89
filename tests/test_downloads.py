"""Fetching over a bad network: what is kept, what is refused, what is asked again."""

import errno
import gzip
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pysam
import pytest
import requests

from helpers import downloads
from helpers.downloads import (
    _transfer,
    fetch,
    fetch_genome,
    fetch_json,
    zenodo_file,
    zenodo_files,
)
from local_server import LocalServer

CONTENT = bytes(range(256)) * 8192
CUT = 10 * _transfer._CHUNK  # whole chunks: what is kept of a longer piece
MD5 = hashlib.md5(CONTENT).hexdigest()
SHA256 = hashlib.sha256(CONTENT).hexdigest()
WRONG = "0" * 32


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(_transfer, "_FIRST_WAIT_S", 0.01)


@pytest.fixture
def served(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "reads.bam").write_bytes(CONTENT)
    return folder


@pytest.fixture
def kept(tmp_path):
    return tmp_path / "kept"


@contextmanager
def answering(answer):
    """Serve whatever ``answer(handler, n_asked_before)`` writes."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            asked.append(dict(self.headers))
            answer(self, len(asked) - 1)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    poll = {"poll_interval": 0.01}
    threading.Thread(target=server.serve_forever, kwargs=poll, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/reads.bam", asked
    finally:
        server.shutdown()
        server.server_close()


def send(handler, status, headers, body=b"", length=None):
    handler.send_response(status)
    for key, value in headers.items():
        handler.send_header(key, value)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    handler.end_headers()
    handler.wfile.write(body)
    if length is not None:
        handler.close_connection = True


def ranges(server):
    return [request.range for request in server.requests]


def unfinished(folder):
    return sorted(path.name for path in folder.iterdir() if ".part" in path.name)


# --- What is kept -------------------------------------------------------------------


@pytest.mark.parametrize("checksum", [{"md5": MD5}, {"sha256": SHA256.upper()}, {}])
def test_fetch_keeps_the_file_and_asks_once(served, kept, checksum):
    with LocalServer(served) as server:
        for _ in range(2):
            path = fetch(f"{server.url}/reads.bam", kept, **checksum)
        assert path == kept / "reads.bam"
        assert path.read_bytes() == CONTENT
        assert len(server.requests) == 1
        assert unfinished(kept) == []


def test_fetch_records_what_came(served, kept):
    with LocalServer(served) as server:
        url = f"{server.url}/reads.bam"
        fetch(url, kept, name="first.bam", md5=MD5)
    record = json.loads((kept / "first.bam.json").read_text())
    assert (record["url"], record["size"], record["md5"]) == (url, len(CONTENT), MD5)
    assert record["date"].endswith("+00:00")


def test_fetch_reads_the_checksum_of_the_address(served, kept):
    with LocalServer(served) as server:
        url = f"{server.url}/reads.bam"
        path = fetch(f"{url}#sha256={SHA256}", kept)
        assert path.read_bytes() == CONTENT
        assert server.requests[0].path == "/reads.bam"
        with pytest.raises(ValueError, match="one checksum"):
            fetch(f"{url}#sha256={SHA256}", kept, md5=MD5)
        with pytest.raises(ValueError, match="'sha1'"):
            fetch(f"{url}#sha1={SHA256}", kept)


def test_fetch_trusts_what_comes_first_and_only_that(served, kept, caplog):
    with LocalServer(served) as server:
        url = f"{server.url}/reads.bam"
        with caplog.at_level(logging.WARNING, "helpers.downloads"):
            path = fetch(url, kept)
        assert SHA256 in caplog.text
        assert json.loads((kept / "reads.bam.json").read_text())["sha256"] == SHA256
        path.unlink()
        assert fetch(url, kept).read_bytes() == CONTENT
        path.unlink()
        (served / "reads.bam").write_bytes(CONTENT[::-1])
        with pytest.raises(ValueError, match=f"{url}.*{SHA256}"):
            fetch(url, kept)
        assert not path.exists()


def test_fetch_does_not_mix_up_two_addresses_of_one_name(served, kept):
    (served / "other").mkdir()
    (served / "other" / "reads.bam").write_bytes(b"other")
    with LocalServer(served) as server:
        fetch(f"{server.url}/reads.bam", kept)
        with pytest.raises(ValueError, match="give a checksum or another name"):
            fetch(f"{server.url}/other/reads.bam", kept)
        with pytest.raises(ValueError, match="name must be"):
            fetch(f"{server.url}/reads.bam", kept, name="../reads.bam")


def test_fetch_replaces_a_file_that_changed(served, kept):
    with LocalServer(served) as server:
        url = f"{server.url}/reads.bam"
        path = fetch(url, kept, md5=MD5)
        path.write_bytes(b"edited")
        assert fetch(url, kept, md5=MD5).read_bytes() == CONTENT
        path.write_bytes(b"edited")
        assert fetch(url, kept).read_bytes() == CONTENT  # by the record


def test_fetch_takes_a_file_that_was_put_there(served, kept):
    kept.mkdir()
    (kept / "reads.bam").write_bytes(CONTENT)
    with LocalServer(served) as server:
        fetch(f"{server.url}/reads.bam", kept, md5=MD5)
        assert server.requests == []


@pytest.mark.parametrize("form", ["path", "address"])
def test_fetch_links_a_local_file(served, kept, form):
    original = served / "reads.bam"
    url = str(original) if form == "path" else original.as_uri()
    path = fetch(url, kept, md5=MD5)
    assert path.is_symlink() and path.read_bytes() == CONTENT
    assert fetch(url, kept, md5=MD5) == path
    original.write_bytes(CONTENT[::-1])
    with pytest.raises(ValueError, match="expected md5"):
        fetch(url, kept, md5=MD5)
    with pytest.raises(FileNotFoundError, match="absent"):
        fetch(str(served / "absent"), kept)
    with pytest.raises(ValueError, match="expected 3 bytes; found"):
        fetch(url, kept, name="new", size=3)


# --- What goes wrong on the way -----------------------------------------------------


def test_fetch_goes_on_where_it_was_cut(served, kept):
    with LocalServer(served, cut_after={"reads.bam": CUT}) as server:
        path = fetch(f"{server.url}/reads.bam", kept, md5=MD5, size=len(CONTENT))
        assert path.read_bytes() == CONTENT
        assert ranges(server) == [None, f"bytes={CUT}-"]
        assert sum(request.sent for request in server.requests) == len(CONTENT)


def test_fetch_goes_on_after_it_was_killed(served, kept):
    code = (
        "import sys; from helpers.downloads import fetch\n"
        "fetch(sys.argv[1], sys.argv[2], md5=sys.argv[3])"
    )

    def drip(handler, n_before):
        send(handler, 200, {"ETag": '"1"'}, CONTENT[:500_000], length=len(CONTENT))
        time.sleep(5)  # the rest never comes

    with answering(drip) as (url, _):
        process = subprocess.Popen([sys.executable, "-c", code, url, str(kept), MD5])
        part = kept / "reads.bam.part"
        deadline = time.monotonic() + 60
        while not (part.is_file() and part.stat().st_size > 400_000):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        reached = part.stat().st_size
        state = json.loads((kept / "reads.bam.part.json").read_text())
    assert not (kept / "reads.bam").exists()

    def finish(handler, n_before):
        assert handler.headers["If-Range"] == '"1"'
        span = f"bytes {reached}-{len(CONTENT) - 1}/{len(CONTENT)}"
        headers = {"ETag": '"1"', "Content-Range": span}
        send(handler, 206, headers, CONTENT[reached:])

    with answering(finish) as (url, asked):
        # The same server at the port it has now.
        state["url"] = url
        (kept / "reads.bam.part.json").write_text(json.dumps(state))
        assert fetch(url, kept, md5=MD5).read_bytes() == CONTENT
        assert asked[0]["Range"] == f"bytes={reached}-"
    assert unfinished(kept) == []


def test_fetch_killed_while_it_verifies_does_not_transfer_again(
    served, kept, monkeypatch
):
    def killed(*arguments, **options):
        raise KeyboardInterrupt

    with LocalServer(served) as server:
        url = f"{server.url}/reads.bam"
        with monkeypatch.context() as patch:
            patch.setattr("helpers.downloads._hash_like", killed)
            with pytest.raises(KeyboardInterrupt):
                fetch(url, kept, md5=MD5)
        assert not (kept / "reads.bam").exists()
        assert fetch(url, kept, md5=MD5).read_bytes() == CONTENT
        assert len(server.requests) == 1


def test_fetch_starts_over_where_ranges_are_not_served(kept):
    def answer(handler, n_before):
        cut = CONTENT[:CUT] if n_before == 0 else CONTENT
        send(handler, 200, {}, cut, length=len(CONTENT))

    with answering(answer) as (url, asked):
        assert fetch(url, kept, md5=MD5).read_bytes() == CONTENT
        assert "Range" not in asked[0] and asked[1]["Range"] == f"bytes={CUT}-"


@pytest.mark.parametrize(
    ("span", "etag"),
    [
        ("bytes {cut}-{last}/{size}", '"2"'),  # another version
        ("bytes 0-{last}/{size}", '"1"'),  # not what was asked
        ("bytes {cut}-{last}/99", '"1"'),  # another size
        ("bytes */99", '"2"'),  # shorter than what is here: 416
    ],
)
def test_fetch_starts_over_when_the_file_changed_meanwhile(kept, span, etag):
    old = CONTENT[::-1]
    span = span.format(cut=CUT, last=len(CONTENT) - 1, size=len(CONTENT))

    def answer(handler, n_before):
        if n_before == 0:
            send(handler, 200, {"ETag": '"1"'}, old[:CUT], length=len(old))
        elif "Range" in handler.headers:
            status = 416 if "*" in span else 206
            headers = {"ETag": etag, "Content-Range": span}
            send(handler, status, headers, CONTENT[CUT:])
        else:
            send(handler, 200, {"ETag": etag}, CONTENT)

    with answering(answer) as (url, asked):
        assert fetch(url, kept, md5=MD5).read_bytes() == CONTENT
        assert [headers.get("Range") for headers in asked] == [
            None,
            f"bytes={CUT}-",
            None,
        ]


def test_fetch_follows_redirects_with_its_range(served, kept):
    # As the portal of ENCODE sends a reader on to its store.
    with LocalServer(served, cut_after={"reads.bam": CUT}) as store:

        def answer(handler, n_before):
            send(handler, 307, {"Location": f"{store.url}/reads.bam?signed={n_before}"})

        with answering(answer) as (url, _):
            assert fetch(url, kept, md5=MD5).read_bytes() == CONTENT
        assert ranges(store) == [None, f"bytes={CUT}-"]


def test_fetch_tries_again_when_unavailable(served, kept):
    with LocalServer(served, unavailable=3) as server:
        assert fetch(f"{server.url}/reads.bam", kept, md5=MD5).is_file()
        assert len(server.requests) == 4


@pytest.mark.parametrize("status", [429, 503])
def test_fetch_waits_as_long_as_the_server_asks(kept, monkeypatch, status):
    waits = []
    monkeypatch.setattr(_transfer.time, "sleep", waits.append)

    def answer(handler, n_before):
        if n_before == 0:
            send(handler, status, {"Retry-After": "7"})
        elif n_before == 1:
            send(handler, status, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"})
        elif n_before == 2:
            send(handler, status, {"Retry-After": "86400"})
        else:
            send(handler, 200, {}, CONTENT)

    with answering(answer) as (url, _):
        assert fetch(url, kept, md5=MD5).is_file()
    assert waits == [7.0, 0.02, 300.0]


def test_fetch_gives_up_on_a_server_that_stays_unavailable(served, kept):
    with LocalServer(served, unavailable=100) as server:
        with pytest.raises(ConnectionError, match="6 attempts.*HTTP 503"):
            fetch(f"{server.url}/reads.bam", kept)
        assert len(server.requests) == 6


def test_fetch_does_not_count_failures_that_brought_something(kept):
    step = 3 * _transfer._CHUNK  # eleven connections for the file

    def answer(handler, n_before):
        start = int(handler.headers.get("Range", "bytes=0-")[6:-1])
        span = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
        body = CONTENT[start : start + step]
        status = 206 if start else 200
        headers = {"Content-Range": span}
        send(handler, status, headers, body, length=len(CONTENT) - start)

    with answering(answer) as (url, asked):
        assert fetch(url, kept, md5=MD5).read_bytes() == CONTENT
        assert len(asked) == 11


def test_fetch_says_that_nobody_answers(kept):
    with answering(None) as (url, _):
        pass  # the port is free again
    with pytest.raises(ConnectionError, match=url):
        fetch(url, kept)


def test_fetch_removes_what_has_the_wrong_checksum(served, kept):
    with LocalServer(served, corrupt=["reads.bam"]) as server:
        url = f"{server.url}/reads.bam"
        flipped = hashlib.md5(bytes(255 - b for b in CONTENT)).hexdigest()
        with pytest.raises(ValueError, match=f"{url}.*{MD5}.*{flipped}"):
            fetch(url, kept, md5=MD5)
    assert [path.name for path in kept.iterdir()] == [".reads.bam.lock"]


def test_fetch_refuses_a_file_of_another_size_before_reading_it(served, kept):
    with LocalServer(served) as server:
        with pytest.raises(ValueError, match="expected 99 bytes; the server has 2,097"):
            fetch(f"{server.url}/reads.bam", kept, size=99)


@pytest.mark.parametrize(
    ("status", "error"),
    [(404, FileNotFoundError), (403, PermissionError), (418, OSError)],
)
def test_fetch_names_what_the_server_refuses(kept, status, error):
    with answering(lambda handler, _: send(handler, status, {})) as (url, asked):
        with pytest.raises(error, match=f"{url}.*HTTP {status}"):
            fetch(url, kept)
        assert len(asked) == 1


def test_fetch_refuses_what_does_not_fit_on_the_disk(served, kept, monkeypatch):
    full = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(_transfer.shutil, "disk_usage", lambda path: full)
    with LocalServer(served) as server:
        with pytest.raises(
            OSError, match="2,097,152 more bytes are needed, 1,000 free"
        ):
            fetch(f"{server.url}/reads.bam", kept)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full (Linux)")
def test_fetch_names_the_path_when_the_disk_fills_up(served, kept, monkeypatch):
    monkeypatch.setattr(_transfer, "discard", lambda part: None)
    kept.mkdir()
    os.symlink("/dev/full", kept / "reads.bam.part")
    with LocalServer(served) as server:
        with pytest.raises(OSError, match="bytes needed: 2,097,152") as error:
            fetch(f"{server.url}/reads.bam", kept)
    assert error.value.errno == errno.ENOSPC
    assert error.value.filename == str(kept / "reads.bam.part")


def test_two_processes_fetch_a_file_once(served, kept):
    code = "import sys; from helpers.downloads import fetch; fetch(*sys.argv[1:])"
    with LocalServer(served, delay_s=0.5) as server:
        command = [sys.executable, "-c", code, f"{server.url}/reads.bam", str(kept)]
        processes = [subprocess.Popen(command) for _ in range(2)]
        assert [process.wait(60) for process in processes] == [0, 0]
        assert len(server.requests) == 1
    assert (kept / "reads.bam").read_bytes() == CONTENT


# --- JSON documents -----------------------------------------------------------------


def test_fetch_json_asks_once_and_keeps_when(served, kept):
    (served / "record").mkdir()
    (served / "record" / "index.json").write_text('{"a": 1}')
    with LocalServer(served, unavailable=1) as server:
        url = f"{server.url}/record/?format=json"
        first = fetch_json(url, kept / "record.json")
        assert first["a"] == 1 and first["@source"] == url
        assert fetch_json(url, kept / "record.json") == first
        assert len(server.requests) == 2
        (kept / "record.json").unlink()  # how to ask again
        fetch_json(url, kept / "record.json")
        assert len(server.requests) == 3


def test_fetch_json_refuses_what_is_not_json(served, kept):
    (served / "page").write_text("<html>")
    with LocalServer(served) as server:
        with pytest.raises(ValueError, match="/page: expected a JSON object.*<html>"):
            fetch_json(f"{server.url}/page", kept / "page.json")
    assert not (kept / "page.json").exists()


# --- Zenodo -------------------------------------------------------------------------


@pytest.fixture
def record(served):
    """A record of two files, as Zenodo's API writes it."""

    def write(base):
        files = [
            {
                "id": f"0000-{name}",
                "key": name,
                "size": len(CONTENT),
                "checksum": f"md5:{MD5}",
                "links": {"self": f"{base}/api/records/14504049/files/{name}/content"},
            }
            for name in ("weights.zip", "README.md")
        ]
        for name in ("weights.zip", "README.md"):
            folder = served / "api" / "records" / "14504049" / "files" / name
            folder.mkdir(parents=True)
            (folder / "content").write_bytes(CONTENT)
        content = {"id": 14504049, "metadata": {"title": "weights"}, "files": files}
        index = served / "api" / "records" / "14504049" / "index.json"
        index.write_text(json.dumps(content))
        return index

    return write


def test_zenodo_lists_and_fetches_by_the_names_of_the_record(served, kept, record):
    with LocalServer(served) as server:
        record(server.url)
        files = zenodo_files(14504049, source=server.url)
        assert [file.name for file in files] == ["README.md", "weights.zip"]
        file = zenodo_file(14504049, "weights.zip", source=server.url, folder=kept)
        path = fetch(file.url, kept, name=file.name, md5=file.md5, size=file.size)
        assert path == kept / "weights.zip" and path.read_bytes() == CONTENT
        with pytest.raises(FileNotFoundError, match=r"\['README.md', 'weights.zip'\]"):
            zenodo_file(14504049, "ckpt-45.index", source=server.url)
    # Without the server: the record was kept.
    assert zenodo_file(14504049, "weights.zip", source=server.url, folder=kept) == file


def test_zenodo_reads_a_folder(served, kept, record):
    mirror = kept / "mirror"
    mirror.mkdir(parents=True)
    (mirror / "weights.zip").write_bytes(CONTENT)
    (file,) = zenodo_files(14504049, source=mirror)
    assert (file.name, file.md5, file.size) == ("weights.zip", None, len(CONTENT))
    record("https://zenodo.org").rename(mirror / "14504049.json")
    file = zenodo_file(14504049, "weights.zip", source=mirror)
    assert (file.url, file.md5) == (str(mirror / "weights.zip"), MD5)
    with pytest.raises(FileNotFoundError, match="source must be a folder"):
        zenodo_files(14504049, source=kept / "absent")


def test_zenodo_refuses_another_form_of_record(served):
    (served / "api" / "records").mkdir(parents=True)
    with LocalServer(served) as server:
        for content in ('{"id": 7}', '{"files": [{"filename": "a"}]}'):
            (served / "api" / "records" / "7").write_text(content)
            with pytest.raises(ValueError, match="records/7: expected 'files'"):
                zenodo_files(7, source=server.url)


# --- Genomes ------------------------------------------------------------------------

FASTA = ">chr1\n" + "ACGTN" * 10 + "\nGGCC\n>chrM\nacgt\n"


@pytest.fixture
def golden_path(served):
    """A mirror of UCSC with one tiny genome."""
    folder = served / "tiny" / "bigZips"
    folder.mkdir(parents=True)
    content = gzip.compress(FASTA.encode())
    (folder / "tiny.fa.gz").write_bytes(content)
    digest = hashlib.md5(content).hexdigest()
    sums = f"{WRONG}  tiny.2bit\n{digest}  tiny.fa.gz\n"
    (folder / "md5sum.txt").write_text(sums)
    return folder


def test_fetch_genome_verifies_unpacks_and_indexes(served, golden_path, kept):
    with LocalServer(
        served, unavailable=1, cut_after={"tiny/bigZips/tiny.fa.gz": 20}
    ) as server:
        source = server.url + "/{assembly}/bigZips/{assembly}.fa.gz"
        path = fetch_genome("tiny", kept, source=source)
        n_requests = len(server.requests)
        assert fetch_genome("tiny", kept, source=source) == path
        assert len(server.requests) == n_requests
    with pysam.FastaFile(str(path)) as fasta:
        assert list(fasta.references) == ["chr1", "chrM"]
        assert fasta.fetch("chr1", 48, 54) == "TNGGCC"
    visible = {path.name for path in kept.iterdir() if path.name[0] != "."}
    records = {f"tiny.{suffix}.json" for suffix in ("fa", "fa.fai", "fa.gz")}
    assert visible == {"tiny.fa", "tiny.fa.fai"} | records


def test_fetch_genome_reads_a_mirror(golden_path, kept):
    path = fetch_genome("tiny", kept, source=golden_path / "tiny.fa.gz")
    assert path.read_text() == FASTA
    fetch_genome("tiny", golden_path, source=golden_path / "tiny.fa.gz")
    assert (golden_path / "tiny.fa.gz").is_file()  # the original stays in any case


def test_fetch_genome_refuses_what_is_not_a_verified_fasta(golden_path, kept):
    source = golden_path / "tiny.fa.gz"
    sums = golden_path / "md5sum.txt"
    sums.write_text(f"{WRONG}  tiny.fa.gz\n")
    with pytest.raises(ValueError, match="expected md5:0000"):
        fetch_genome("tiny", kept, source=source)
    sums.write_text(f"{WRONG}  tiny.2bit\n")
    with pytest.raises(ValueError, match="md5sum.txt does not list tiny.fa.gz"):
        fetch_genome("tiny", kept, source=source)
    for content, message in (
        (gzip.compress(b"@read1\nACGT\n"), "it begins with b'@'"),
        (b"not compressed", "compressed by gzip"),
    ):
        source.write_bytes(content)
        pinned = f"{source}#md5={hashlib.md5(content).hexdigest()}"
        with pytest.raises(ValueError, match=message):
            fetch_genome("tiny", kept, source=pinned)
    assert not (kept / "tiny.fa").exists()


def test_addresses_are_those_of_the_portals():
    url = downloads.UCSC.format(assembly="hg38")
    assert url.endswith("ucsc.edu/goldenPath/hg38/bigZips/hg38.fa.gz")


@pytest.mark.network
def test_zenodo_lists_the_published_weights():
    files = zenodo_files(14504049)
    assert files and all(file.md5 and file.size for file in files)


# --- Encryption ---


@pytest.mark.parametrize("ask", [downloads.fetch_json, _transfer.get_bytes])
def test_plain_http_is_refused_before_anything_is_asked(ask, monkeypatch):
    monkeypatch.setattr(_transfer.requests, "get", None)
    with pytest.raises(ValueError, match="http://example.org/a: not encrypted"):
        ask("http://example.org/a")


def test_a_redirection_to_plain_http_is_refused(tmp_path):
    response = requests.Response()
    response.status_code, response.url = 200, "http://example.org/a"
    with pytest.raises(ValueError, match="not encrypted; expected an https address"):
        _transfer._check_status(response, "https://example.org/a")


def test_plain_http_is_refused_for_files(tmp_path):
    with pytest.raises(ValueError, match="not encrypted"):
        downloads.fetch("http://example.org/a.bed", tmp_path)
    assert not (tmp_path / "a.bed").exists()
