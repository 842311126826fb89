import itertools
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from helpers.activations import ActivationStore, summarize
from helpers.activations import _files as _store_files
from helpers.activations import _summary as _window_summary
from helpers.sae import BatchTopKSAE

BIOSAMPLES = ["HepG2", "liver", "K562"]
LAYERS = [0, 2]
N_WINDOWS, N_TOKENS, D_MODEL = 20, 4, 6


def make_windows(n_windows=N_WINDOWS):
    start = np.arange(n_windows) * 512
    return pd.DataFrame(
        {
            "chrom": "chr1",
            "start": start,
            "end": start + 512,
            "split": np.where(np.arange(n_windows) < 14, "train", "test"),
            "block": np.arange(n_windows) // 2,
        }
    )


def create(path, **changes):
    arguments = {
        "biosamples": BIOSAMPLES,
        "windows": make_windows(),
        "layers": LAYERS,
        "n_tokens": N_TOKENS,
        "d_model": D_MODEL,
        "model_hash": "abc123",
    }
    return ActivationStore.create(path, **(arguments | changes))


def true_values():
    """All layers, exact in half precision: (2, 3, 20, 4, 6)."""
    shape = (len(LAYERS), len(BIOSAMPLES), N_WINDOWS, N_TOKENS, D_MODEL)
    return (np.arange(np.prod(shape)).reshape(shape) % 2048).astype(np.float16)


def extract(store, values, stop_after=None):
    """Fill the pending batches, as a model would; `stop_after` of them if given."""
    for batch in itertools.islice(store.pending(), stop_after):
        for row, biosample in enumerate(store.biosamples):
            for position, layer in enumerate(store.layers):
                store.write(layer, biosample, batch, values[position, row, batch])
        store.mark_complete(batch)


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "activations.zarr"
    extract(create(path), true_values())
    return path


def damage(path, layer, chunk):
    """Flip one bit of a chunk on disk."""
    file = path / f"layer{layer}" / "c" / chunk
    content = bytearray(file.read_bytes())
    content[7] ^= 1
    file.write_bytes(content)


# --- writing and resuming ----------------------------------------------------------


def test_store_returns_what_was_written(filled):
    store = ActivationStore.open(filled)
    assert store.biosamples == BIOSAMPLES
    assert (store.n_tokens, store.d_model) == (N_TOKENS, D_MODEL)
    pd.testing.assert_frame_equal(store.windows, make_windows(), check_dtype=False)
    assert store.complete.all()
    assert list(store.pending()) == []
    for position, layer in enumerate(LAYERS):
        lazy = store.layer(layer)
        assert lazy.shape == (3, N_WINDOWS, N_TOKENS, D_MODEL)
        assert lazy.dtype == np.float16
        np.testing.assert_array_equal(lazy[:], true_values()[position])
        np.testing.assert_array_equal(
            lazy[1, 17:19, 2], true_values()[position, 1, 17:19, 2]
        )


def test_tensors_are_rounded_to_half_precision(tmp_path):
    store = create(tmp_path / "a.zarr")
    batch = next(store.pending())
    values = torch.full((16, N_TOKENS, D_MODEL), 1 / 3, requires_grad=True)
    store.write(0, "liver", batch, values)
    assert (store.layer(0)[1, batch] == np.float16(1 / 3)).all()


def test_killed_extraction_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(_store_files, "_BATCH_WINDOWS", 6)
    path, values = tmp_path / "a.zarr", true_values()
    store = create(path)
    extract(store, values, stop_after=2)
    half_done = next(store.pending())
    store.write(0, "liver", half_done, values[0, 1, half_done] + 1)
    # Killed here: data of the third batch are on disk, its mark is not.
    again = create(path)
    assert again.complete.tolist() == [True] * 12 + [False] * 8
    assert list(again.pending()) == [slice(12, 18), slice(18, 20)]
    extract(again, values)
    np.testing.assert_array_equal(again.layer(0)[:], values[0])


def test_mark_complete_wants_every_layer_and_biosample(tmp_path):
    store = create(tmp_path / "a.zarr")
    batch = next(store.pending())
    values = true_values()
    for biosample, layer in itertools.product(BIOSAMPLES, LAYERS):
        if (biosample, layer) != ("K562", 2):
            store.write(layer, biosample, batch, values[0, 0, batch])
    with pytest.raises(ValueError, match="windows 0 to 15 lack layer 2 of .*'K562'"):
        store.mark_complete(batch)
    assert not store.complete.any()


def test_create_leaves_no_half_made_store(tmp_path, monkeypatch):
    def killed(path, attributes):
        path.mkdir()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_store_files, "make_arrays", killed)
        with pytest.raises(KeyboardInterrupt):
            create(tmp_path / "a.zarr")
    assert not (tmp_path / "a.zarr").exists()
    extract(create(tmp_path / "a.zarr"), true_values())


def test_chunks_hold_few_megabytes(tmp_path):
    windows = make_windows(40)
    small = create(tmp_path / "small.zarr", windows=windows)
    large = create(
        tmp_path / "large.zarr", windows=windows, n_tokens=4096, d_model=1024
    )
    assert next(small.pending()) == slice(0, 16)
    assert next(large.pending()) == slice(0, 1)  # one published window is 8 MB


def test_layers_are_added_to_a_store(tmp_path):
    values = true_values()
    path = tmp_path / "store.zarr"
    extract(create(path, layers=LAYERS[:1]), values[:1])
    added = create(path, layers=LAYERS[1:])
    assert added.layers == LAYERS[1:]  # the first is there and out of view
    extract(added, values[1:], stop_after=1)
    first = ActivationStore.open(path, layers=LAYERS[:1])
    assert first.complete.all()
    np.testing.assert_array_equal(first.layer(LAYERS[0])[:], values[0])
    assert not ActivationStore.open(path).complete.all()
    extract(create(path), np.flip(values, 1).copy())  # only what is pending
    whole = ActivationStore.open(path)
    assert whole.layers == LAYERS
    assert whole.complete.all()
    with pytest.raises(ValueError, match=r"no layers \[9\]; it holds"):
        ActivationStore.open(path, layers=[9])


def test_a_layer_begun_by_a_killed_process_is_begun_again(tmp_path, monkeypatch):
    path = tmp_path / "store.zarr"
    extract(create(path, layers=LAYERS[:1]), true_values()[:1])

    def die(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_store_files.zarr.Group, "create_array", die)
        with pytest.raises(KeyboardInterrupt):
            create(path)
    assert ActivationStore.open(path).layers == LAYERS[:1]
    store = create(path)
    assert list(store.pending())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_hash": "other"}, "model hash: found 'abc123', expected 'other'"),
        ({"biosamples": BIOSAMPLES[::-1]}, "another biosamples"),
        ({"windows": make_windows(19)}, "another windows"),
        ({"n_tokens": 5}, "another n tokens"),
    ],
)
def test_create_refuses_to_continue_something_else(filled, changes, message):
    with pytest.raises(ValueError, match=message):
        create(filled, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"windows": make_windows().drop(columns="block")}, r"lack .*\['block'\]"),
        ({"windows": make_windows(0)}, "windows, n_tokens and d_model"),
        ({"biosamples": ["liver", "liver"]}, "biosamples must be distinct"),
        ({"layers": []}, "layers must be distinct, at least one"),
    ],
)
def test_create_rejects(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        create(tmp_path / "a.zarr", **changes)
    assert not (tmp_path / "a.zarr").exists()


def test_write_rejects(tmp_path):
    store = create(tmp_path / "a.zarr")
    batch, values = slice(0, 16), np.zeros((16, N_TOKENS, D_MODEL))
    with pytest.raises(ValueError, match=r"no layer 1; it holds layers \[0, 2\]"):
        store.write(1, "liver", batch, values)
    with pytest.raises(ValueError, match="no biosample 'kidney'"):
        store.write(0, "kidney", batch, values)
    with pytest.raises(ValueError, match="batch of 16 as pending"):
        store.write(0, "liver", slice(0, 8), values[:8])
    with pytest.raises(ValueError, match=r"shape \(16, 4, 6\); got \(16, 4, 5\)"):
        store.write(0, "liver", batch, values[..., :5])
    for bad in (np.nan, np.inf, 1e5):
        values[9, 2, 3] = bad
        with pytest.raises(ValueError, match="layer 0, biosample 'liver', window 9"):
            store.write(0, "liver", batch, values)


# --- reading -----------------------------------------------------------------------


def test_open_names_what_is_wrong(filled, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.zarr: no activation store"):
        ActivationStore.open(tmp_path / "nothing.zarr")
    with pytest.raises(ValueError, match="found model hash 'abc123', expected 'xyz'"):
        ActivationStore.open(filled, model_hash="xyz")
    assert ActivationStore.open(filled, model_hash="abc123").model_hash == "abc123"
    (tmp_path / "zarr.json").write_text(
        '{"zarr_format": 3, "node_type": "group", "attributes": {}}'
    )
    with pytest.raises(ValueError, match="not an activation store.*biosamples"):
        ActivationStore.open(tmp_path)


def test_rows_match_their_index(filled):
    drawn = ActivationStore.open(filled).rows(2, max_tokens=100, random_state=4)
    assert drawn.rows.dtype == torch.float32
    place = tuple(drawn.index.to_numpy().T)
    np.testing.assert_array_equal(drawn.rows, true_values()[1][place])


def test_rows_are_balanced_distinct_and_repeatable(filled):
    store = ActivationStore.open(filled)
    drawn = store.rows(0, max_tokens=100, random_state=4)
    assert drawn.index["biosample_idx"].value_counts().tolist() == [33, 33, 33]
    assert not drawn.index.duplicated().any()
    assert drawn.index["window_idx"].nunique() > 15  # spread over the windows
    again = store.rows(0, max_tokens=100, random_state=4)
    other = store.rows(0, max_tokens=100, random_state=5)
    pd.testing.assert_frame_equal(drawn.index, again.index)
    assert not drawn.index.equals(other.index)


def test_rows_without_limit_are_every_token(filled):
    store = ActivationStore.open(filled)
    drawn = store.rows(0, dtype=torch.float16)
    np.testing.assert_array_equal(drawn.rows, true_values()[0].reshape(-1, D_MODEL))
    assert len(store.rows(0, max_tokens=10**9).rows) == len(drawn.rows)


def test_rows_obey_biosamples_splits_and_windows(filled):
    store = ActivationStore.open(filled)
    index = store.rows(
        0, biosamples=["K562"], splits=["test"], windows=[3, 15, 19]
    ).index
    assert set(index["biosample_idx"]) == {2}
    assert set(index["window_idx"]) == {15, 19}
    assert len(index) == 2 * N_TOKENS


def test_rows_reject(filled):
    store = ActivationStore.open(filled)
    with pytest.raises(ValueError, match="no biosample 'kidney'"):
        store.rows(0, biosamples=["kidney"])
    with pytest.raises(ValueError, match=r"splits must be among \['test', 'train'\]"):
        store.rows(0, splits=["valid"])
    with pytest.raises(ValueError, match="splits must be among"):
        store.rows(0, splits="test")
    with pytest.raises(ValueError, match="no rows to draw"):
        store.rows(0, splits=["train"], windows=[15])
    with pytest.raises(ValueError, match="windows must be positions below 20; got 20"):
        store.rows(0, windows=[20])


def test_incomplete_store_is_not_read_as_zeros(tmp_path, monkeypatch):
    monkeypatch.setattr(_store_files, "_BATCH_WINDOWS", 6)
    store = create(tmp_path / "a.zarr")
    extract(store, true_values(), stop_after=2)
    with pytest.raises(ValueError, match="8 of 20 windows asked for are not complete"):
        store.rows(0)
    with pytest.raises(ValueError, match="not complete"):
        summarize(store, 0, BatchTopKSAE(D_MODEL, 8, 2))
    with pytest.raises(ValueError, match="windows 12 to 17: chunk is not written yet"):
        store.layer(0)[0, 12]
    assert len(store.rows(0, windows=range(12)).rows) == 3 * 12 * N_TOKENS


@pytest.mark.parametrize(
    ("how", "problem"),
    [("flipped", "damaged"), ("truncated", "damaged"), ("lost", "missing")],
)
def test_damaged_chunk_is_named(filled, tmp_path, how, problem):
    path = tmp_path / "a.zarr"
    shutil.copytree(filled, path)
    chunk = path / "layer2" / "c" / "1" / "1" / "0" / "0"
    if how == "flipped":
        damage(path, 2, "1/1/0/0")
    elif how == "truncated":
        chunk.write_bytes(chunk.read_bytes()[:20])
    else:
        chunk.unlink()
    store = ActivationStore.open(path)
    message = "a.zarr: layer 2, biosample 'liver', windows 16 to 19: chunk is "
    message += problem
    with pytest.raises(ValueError, match=message):
        store.rows(2)
    with pytest.raises(ValueError, match=message):
        store.layer(2)[1, 17]
    with pytest.raises(ValueError, match=message):
        summarize(store, 2, BatchTopKSAE(D_MODEL, 8, 2))
    assert len(store.rows(2, splits=["train"]).rows)  # the rest stays readable
    assert len(store.rows(0).rows)


# --- summaries ---------------------------------------------------------------------


@pytest.mark.parametrize("tokens_at_once", [1, 3, 4 * 3, 10**6])
def test_summarize_equals_encoding_everything(filled, monkeypatch, tokens_at_once):
    monkeypatch.setattr(_window_summary, "_ENCODE_TOKENS", {"cpu": tokens_at_once})
    store = ActivationStore.open(filled)
    sae = BatchTopKSAE(D_MODEL, 8, 2)
    sae.mean.fill_(1000.0)
    sae.scale.fill_(500.0)
    sae.threshold.fill_(0.5)
    seen = []
    summary = summarize(store, 2, sae, progress=lambda *now: seen.append(now))
    feature_acts = sae.encode(torch.from_numpy(true_values()[1]))
    assert summary.mean_acts.shape == summary.firing.shape == (3, N_WINDOWS, 8)
    assert summary.mean_acts.dtype == summary.firing.dtype == np.float32
    np.testing.assert_allclose(
        summary.mean_acts, feature_acts.mean(2), rtol=1e-5, atol=1e-6
    )
    firing = (feature_acts > 0).float().mean(2)
    np.testing.assert_array_equal(summary.firing, firing)
    assert 0 < firing.mean() < 1
    assert seen[-1] == (60, 60)


def test_summarize_rejects_an_sae_of_another_width(filled):
    store = ActivationStore.open(filled)
    with pytest.raises(ValueError, match="width 5; .* has 6"):
        summarize(store, 0, BatchTopKSAE(5, 8, 2))
