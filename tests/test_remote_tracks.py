"""Copies of windows, from a server that behaves and from one that does not."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pybigtools
import pytest

from helpers import remote_tracks
from helpers.remote_tracks import RemoteFile, copy_windows
from local_server import LocalServer, _Handler

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("CHROMATIN_SHARED_DATA", ROOT.parent / "shared" / "data"))
REAL = SHARED / "tobias_atac_chr4" / "Bcell_uncorrected.chr4.bw"
LENGTHS = {"chr1": 4_000_000, "chr2": 1_000_000, "chr3": 50_000, "chrEmpty": 77}
WINDOWS = pd.DataFrame(
    [("chr2", 4096, 8192), ("chr1", 3_000_000, 3_004_096), ("chr1", 0, 4096)],
    columns=["chrom", "start", "end"],
)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(remote_tracks, "_PAUSES_S", (0.0,) * 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A bigWig of 2 MB whose chrEmpty has no window, and chr3 no signal."""
    folder = tmp_path_factory.mktemp("portal")
    rng = np.random.default_rng(0)

    def rows():
        for chrom in ("chr1", "chr2"):
            starts = np.flatnonzero(rng.random(LENGTHS[chrom] // 3) < 0.3) * 3
            values = rng.gamma(1, 5, len(starts))
            ends = starts + rng.integers(1, 4, len(starts))
            for row in zip(*(x.tolist() for x in (starts, ends, values)), strict=True):
                yield chrom, *row
        yield "chr3", 0, 1, 0.0
        yield "chrEmpty", 5, 9, 2.0

    pybigtools.open(str(folder / "signal.bw"), "w").write(LENGTHS, rows())
    return folder


def read(path, chrom, start, end):
    return list(pybigtools.open(str(path)).records(chrom, start, end))


def read_at(file, offset, size):
    file.seek(offset)
    data = b""
    while more := file.read(size - len(data)):
        data += more
    return data


def test_few_windows_cost_few_bytes_and_equal_local_reading(folder, tmp_path):
    output = tmp_path / "copy.bw"
    with LocalServer(folder) as server:
        totals = copy_windows(f"{server.url}/signal.bw", WINDOWS, output)
        sent = sum(request.sent for request in server.requests)
        assert all(request.range for request in server.requests)
        assert len(server.requests) <= 8
    size = (folder / "signal.bw").stat().st_size
    assert sent < 0.15 * size
    for row in WINDOWS.itertuples():
        region = (row.chrom, max(row.start - 8, 0), row.end + 8)
        assert read(output, *region) == read(folder / "signal.bw", *region)
        assert len(read(output, *region)) > 100
        outside = read(output, row.chrom, row.end + 8, row.end + 10_000)
        assert outside == []
    copy, source = (pybigtools.open(str(p)) for p in (output, folder / "signal.bw"))
    assert dict(copy.chroms()) == LENGTHS
    assert read(output, "chrEmpty", 0, 77) == [(0, 1, 0.0)]
    assert totals == source.info()["summary"]
    assert copy.info()["summary"]["sum"] < 0.01 * totals["sum"]


def test_local_sources_give_the_same_copy(folder, tmp_path):
    with LocalServer(folder) as server:
        copy_windows(f"{server.url}/signal.bw", WINDOWS, tmp_path / "remote.bw")
    copy_windows(folder / "signal.bw", WINDOWS, tmp_path / "local.bw")
    remote = (tmp_path / "remote.bw").read_bytes()
    assert remote == (tmp_path / "local.bw").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["local.bw", "remote.bw"]


def test_neighboring_and_overlapping_windows_are_copied_once(folder, tmp_path):
    rows = [("chr1", s, s + 400) for s in (1000, 1400, 1500, 1805, 90)]
    rows += [rows[1], ("chr1", 1410, 1420)]
    windows = pd.DataFrame(rows, columns=["chrom", "start", "end"])
    copy_windows(folder / "signal.bw", windows, tmp_path / "copy.bw")
    base, copied = (
        pybigtools.open(str(path)).values("chr1", 0, 3000, fillna=0.0)
        for path in (folder / "signal.bw", tmp_path / "copy.bw")
    )
    wanted = np.zeros(3000, dtype=bool)
    wanted[90 - 8 : 490 + 8] = wanted[1000 - 8 : 2205 + 8] = True
    assert np.array_equal(copied, np.where(wanted, base, 0))


@pytest.mark.skipif(
    not REAL.is_file(), reason="no tobias_atac_chr4 in $CHROMATIN_SHARED_DATA"
)
def test_a_real_track_is_copied(tmp_path):
    starts = [40_000_000, 100_000_000, 150_000_000]
    windows = pd.DataFrame({"chrom": "chr4", "start": starts})
    windows["end"] = windows["start"] + 524_288
    with LocalServer(REAL.parent) as server:
        copy_windows(f"{server.url}/{REAL.name}", windows, tmp_path / "copy.bw")
        sent = sum(request.sent for request in server.requests)
    assert sent < 0.3 * REAL.stat().st_size
    for row in windows.itertuples():
        region = (row.chrom, row.start, row.end)
        assert read(tmp_path / "copy.bw", *region) == read(REAL, *region)


# --- Servers that misbehave ---


def copied(server, tmp_path):
    output = tmp_path / "copy.bw"
    copy_windows(f"{server.url}/signal.bw", WINDOWS, output)
    return output.read_bytes()


def test_passing_failures_are_overcome(folder, tmp_path):
    with LocalServer(folder) as server:
        expected = copied(server, tmp_path)
    with LocalServer(folder, unavailable=3) as server:
        assert copied(server, tmp_path) == expected
    with LocalServer(folder, cut_after={"signal.bw": 20_000}) as server:
        assert copied(server, tmp_path) == expected


def refused(server, tmp_path, kind, message, name="signal.bw"):
    output = tmp_path / "copy.bw"
    output.write_text("older")
    with pytest.raises(kind, match=message):
        copy_windows(f"{server.url}/{name}", WINDOWS, output)
    assert output.read_text() == "older"
    assert os.listdir(tmp_path) == ["copy.bw"]


def test_lasting_failures_are_named(folder, tmp_path):
    with LocalServer(folder, unavailable=4) as server:
        message = r"/signal\.bw: gave up after 4 requests: HTTP 503"
        refused(server, tmp_path, ConnectionError, message)
    with LocalServer(folder) as server:
        message = r"/other\.bw: not found \(HTTP 404\)"
        refused(server, tmp_path, FileNotFoundError, message, "other.bw")
    with LocalServer(folder, corrupt=["signal.bw"]) as server:
        message = r"/signal\.bw: cannot read its header \(damaged\?\)"
        refused(server, tmp_path, ValueError, message)
    refused(server, tmp_path, ConnectionError, r"signal\.bw: gave up after 4 requests")


def test_a_failure_in_the_middle_leaves_no_copy(folder, tmp_path, monkeypatch):
    """The writer of bigWigs hides errors of what it iterates over."""
    taken = []
    whole = RemoteFile._get

    def fails_later(self, first, end):
        taken.append(first)
        if len(taken) > 3:
            raise remote_tracks.requests.ConnectionError("the cable is out")
        return whole(self, first, end)

    monkeypatch.setattr(RemoteFile, "_get", fails_later)
    with LocalServer(folder) as server:
        message = r"/signal\.bw: gave up after 4 requests: the cable is out"
        refused(server, tmp_path, ConnectionError, message)


def test_servers_without_ranges_are_told(folder, tmp_path, monkeypatch):
    whole = _Handler._answer

    def ignore_ranges(self, *, with_body):
        del self.headers["Range"]
        whole(self, with_body=with_body)

    monkeypatch.setattr(_Handler, "_answer", ignore_ranges)
    with LocalServer(folder) as server:
        message = r"HTTP 206.* found HTTP 200 OK.*downloaded as a whole"
        refused(server, tmp_path, ValueError, message)


def test_a_file_that_changes_is_refused(folder, tmp_path):
    path = tmp_path / "portal" / "signal.bw"
    path.parent.mkdir()
    content = (folder / "signal.bw").read_bytes()
    path.write_bytes(content)
    with LocalServer(path.parent) as server:
        file = RemoteFile(f"{server.url}/signal.bw")
        path.write_bytes(content + b"more")
        with pytest.raises(
            ValueError, match=rf"{len(content)}'; found '.*{len(content) + 4}'"
        ):
            read_at(file, 100_000, 10)


def test_redirections_are_followed_once_and_again_when_they_expire(folder, tmp_path):
    """A portal leads to a storage whose signed addresses expire."""

    def answer(self, *, with_body):
        if self.path.startswith("/signal.bw?valid"):
            if self.path != f"/signal.bw?valid={valid[-1]}":
                return self._refuse(403)
            return plain(self, with_body=with_body)
        led.append(self.path)
        return self._refuse(302, {"Location": f"/signal.bw?valid={valid[-1]}"})

    plain, valid, led = _Handler._answer, [1], []
    with pytest.MonkeyPatch.context() as patch, LocalServer(folder) as server:
        patch.setattr(_Handler, "_answer", answer)
        file = RemoteFile(f"{server.url}/portal")
        read_at(file, 500_000, 100)
        read_at(file, 900_000, 100)
        assert led == ["/portal"]
        valid.append(2)
        expected = (folder / "signal.bw").read_bytes()
        assert read_at(file, 1_300_000, 100) == expected[1_300_000:1_300_100]
        assert led == ["/portal", "/portal"]


def test_any_bytes_can_be_read_in_any_order(folder, monkeypatch):
    content = (folder / "signal.bw").read_bytes()
    monkeypatch.setattr(remote_tracks, "_N_CHUNKS", 3)
    monkeypatch.setattr(remote_tracks, "_N_AHEAD", 2)
    rng = np.random.default_rng(1)
    with LocalServer(folder) as server:
        file = RemoteFile(f"{server.url}/signal.bw")
        assert file.size == len(content)
        for offset in rng.integers(0, len(content), 60).tolist():
            size = int(rng.choice([1, 100, 32_768, 200_000]))
            assert read_at(file, offset, size) == content[offset : offset + size]
        assert read_at(file, len(content) + 3, 5) == b""
        assert file.seek(-7, os.SEEK_END) == file.tell() == len(content) - 7
        assert file.read() == content[-7:]
        with pytest.raises(ValueError, match=r"signal\.bw: no position -1"):
            file.seek(-1)
        assert file.n_bytes == sum(request.sent for request in server.requests)


def test_what_is_used_again_and_again_is_kept(folder, monkeypatch):
    monkeypatch.setattr(remote_tracks, "_N_CHUNKS", 3)
    with LocalServer(folder) as server:
        file = RemoteFile(f"{server.url}/signal.bw")
        for i in range(1, 8):
            read_at(file, 2 * i * (1 << 15), 10)
            read_at(file, 0, 10)
        assert len(server.requests) == 8


def test_reading_on_asks_for_more_and_more(folder):
    content = (folder / "signal.bw").read_bytes()
    with LocalServer(folder) as server:
        file = RemoteFile(f"{server.url}/signal.bw")
        assert read_at(file, 0, len(content)) == content
        sent = [request.sent for request in server.requests]
    assert [n >> 15 for n in sent[:5]] == [1, 2, 4, 8, 16]
    assert sum(sent) == len(content)


def test_intervals_longer_than_a_window_are_cut_off(tmp_path):
    path = tmp_path / "long.bw"
    rows = [("chr1", 0, 5000, 2.0), ("chr1", 5000, 9000, 3.0)]
    pybigtools.open(str(path), "w").write({"chr1": 9000}, iter(rows))
    windows = pd.DataFrame(
        {"chrom": "chr1", "start": [1000, 4900], "end": [1100, 5100]}
    )
    copy_windows(path, windows, tmp_path / "copy.bw")
    copied = list(pybigtools.open(str(tmp_path / "copy.bw")).records("chr1"))
    assert copied == [(992, 1108, 2.0), (4892, 5000, 2.0), (5000, 5108, 3.0)]


def test_damage_in_a_window_is_named_and_leaves_no_copy(folder, tmp_path):
    content = bytearray((folder / "signal.bw").read_bytes())
    first_block = int.from_bytes(content[16:24], "little") + 8
    content[first_block : first_block + 400] = bytes(400)
    (tmp_path / "signal.bw").write_bytes(content)
    with pytest.raises(ValueError, match=r"signal\.bw: cannot read chr1:0-4104 \(dam"):
        copy_windows(tmp_path / "signal.bw", WINDOWS, tmp_path / "copy.bw")
    assert os.listdir(tmp_path) == ["signal.bw"]


def test_windows_on_unknown_chromosomes_are_refused(folder, tmp_path):
    windows = WINDOWS.assign(chrom=["1", "chr1", "chr1"])
    with pytest.raises(ValueError, match=r"chromosomes \['1'\] are absent; .*4 in all"):
        copy_windows(folder / "signal.bw", windows, tmp_path / "copy.bw")
    with pytest.raises(FileNotFoundError, match=r"not found: .*other\.bw"):
        copy_windows(folder / "other.bw", WINDOWS, tmp_path / "copy.bw")
