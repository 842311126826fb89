"""Stores in object storage, on a full disk and behind a web server."""

import errno
import importlib.util
import uuid

import numpy as np
import pandas as pd
import pytest

from helpers.activations import ActivationStore, StoredRows, summarize
from helpers.activations import _files as _store_files
from helpers.sae import BatchTopKSAE
from local_server import LocalServer

N_WINDOWS, N_TOKENS, D_MODEL = 20, 16, 32


@pytest.fixture(autouse=True)
def chunks_of_four_windows(monkeypatch):
    monkeypatch.setattr(_store_files, "_BATCH_WINDOWS", 4)


def create(path, **changes):
    start = np.arange(N_WINDOWS) * 2048
    windows = pd.DataFrame(
        {"chrom": "chr2", "start": start, "end": start + 2048, "split": "select"}
    )
    arguments = {
        "biosamples": ["HepG2", "liver"],
        "windows": windows.assign(block=0),
        "layers": [0, 3],
        "n_tokens": N_TOKENS,
        "d_model": D_MODEL,
        "model_hash": "abc",
    }
    return ActivationStore.create(path, **(arguments | changes))


def values(layer, biosample, batch):
    rng = np.random.default_rng((layer, len(biosample), batch.start))
    shape = (batch.stop - batch.start, N_TOKENS, D_MODEL)
    return rng.normal(size=shape).astype(np.float16)


def fill(store, n_batches=None):
    for batch in list(store.pending())[:n_batches]:
        for layer in store.layers:
            for name in store.biosamples:
                store.write(layer, name, batch, values(layer, name, batch))
        store.mark_complete(batch)
    return store


def batches(store):
    source = StoredRows(store, memory=10**6)
    return list(source.batches(64, epoch=0, random_state=0))


def assert_same(found, expected):
    for layer in (0, 3):
        np.testing.assert_array_equal(found.layer(layer)[:], expected.layer(layer)[:])
    for a, b in zip(batches(found), batches(expected), strict=True):
        assert (a[0] == b[0]).all() and (a[3] == b[3]).all()


@pytest.fixture
def url():
    return f"memory://{uuid.uuid4().hex}/activations.zarr"


def test_a_store_in_object_storage_is_one_on_disk(url, tmp_path):
    local = fill(create(tmp_path / "a.zarr"))
    remote = fill(create(url), n_batches=2)
    remote.write(0, "liver", slice(8, 12), values(0, "liver", slice(8, 12)) + 1)
    again = create(url + "/")  # after a kill
    assert again.path == url
    assert list(again.pending()) == [slice(8, 12), slice(12, 16), slice(16, 20)]
    fill(again)
    assert_same(ActivationStore.open(url, model_hash="abc"), local)
    sae = BatchTopKSAE(D_MODEL, 64, 4)
    for found, expected in zip(
        summarize(again, 3, sae), summarize(local, 3, sae), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match=f"{url}: holds .* another model hash"):
        create(url, model_hash="other")
    with pytest.raises(ValueError, match=f"{url}: activations of another model"):
        ActivationStore.open(url, model_hash="other")
    with pytest.raises(FileNotFoundError, match="no activation store"):
        ActivationStore.open(url + "x")


def test_a_store_half_made_in_object_storage_is_made_anew(url, monkeypatch):
    create_array = _store_files.zarr.Group.create_array

    def killed(group, name, **options):
        if name.startswith("complete"):
            raise KeyboardInterrupt
        return create_array(group, name, **options)

    with monkeypatch.context() as patch:
        patch.setattr(_store_files.zarr.Group, "create_array", killed)
        with pytest.raises(KeyboardInterrupt):
            create(url)
    with pytest.raises(ValueError, match="not an activation store"):
        ActivationStore.open(url)
    assert fill(create(url)).complete.all()


def test_a_damaged_object_is_named(url):
    store = fill(create(url))
    fs = pytest.importorskip("fsspec").filesystem("memory")
    path = url.removeprefix("memory:/") + "/layer3/c/1/2/0/0"
    fs.pipe(path, bytes([1]) + fs.cat(path)[1:])
    with pytest.raises(ValueError, match=f"{url}: layer 3, .*'liver', windows 8 to 11"):
        batches(store)


@pytest.mark.skipif(
    importlib.util.find_spec("s3fs") is not None, reason="s3fs is installed"
)
def test_a_missing_file_system_is_named():
    with pytest.raises(ImportError, match=r"s3://bucket/a.zarr: .*s3fs.*\[cloud\]"):
        ActivationStore.open("s3://bucket/a.zarr")


def test_an_unknown_protocol_is_named():
    with pytest.raises(ValueError, match="tape://a.zarr: .*Protocol not known: tape"):
        create("tape://a.zarr")


def test_a_store_is_read_from_a_web_server(tmp_path):
    pytest.importorskip("aiohttp")
    local = fill(create(tmp_path / "a.zarr"))
    with LocalServer(tmp_path, corrupt=["b.zarr/layer0/c/1/0/0/0"]) as server:
        assert_same(ActivationStore.open(f"{server.url}/a.zarr"), local)
        with pytest.raises(FileNotFoundError, match="none.zarr: no activation store"):
            ActivationStore.open(f"{server.url}/none.zarr")
        fill(create(tmp_path / "b.zarr"))
        remote = ActivationStore.open(f"{server.url}/b.zarr")
        with pytest.raises(ValueError, match="layer 0, .*'liver', windows 0 to 3"):
            batches(remote)


def test_a_full_disk_is_named_and_extraction_goes_on_when_there_is_room(tmp_path):
    resource = pytest.importorskip("resource")
    expected = fill(create(tmp_path / "expected.zarr"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    path = tmp_path / "a.zarr"
    try:  # no file may be longer: the metadata fit, the chunks do not
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, before[1]))
        with pytest.raises(OSError, match="a.zarr: store could not be written") as e:
            create(path)
        assert list(tmp_path.iterdir()) == [tmp_path / "expected.zarr"]
        resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, before[1]))
        store = create(path)
        message = "a.zarr: layer 0, biosample 'HepG2', windows 0 to 3 could not be"
        with pytest.raises(OSError, match=message) as e:
            fill(store)
        assert e.value.errno == errno.EFBIG
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not store.complete.any() and len(list(store.pending())) == 5
    assert not list(path.rglob("*partial*"))
    fill(store)
    assert_same(ActivationStore.open(path), expected)


def test_a_store_that_says_something_else_of_itself_is_refused(tmp_path):
    store = create(tmp_path / "store")
    fill(store)
    path = tmp_path / "store" / "zarr.json"
    text = path.read_text()
    for old, new in (('"HepG2"', '"HepG3"'), ('"select"', '"test"')):
        assert old in text
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(ValueError, match=r"store: damaged.*remove the store"):
            ActivationStore.open(tmp_path / "store")
    path.write_text(text)
    assert ActivationStore.open(tmp_path / "store").complete.all()
