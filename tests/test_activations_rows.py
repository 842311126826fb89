"""Rows streamed from a store: every row, balanced, mixed, repeatable, resumable."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from helpers.activations import (
    ActivationStore,
    StoredRows,
    TokenClass,
    _read_ahead,
    peak_classes,
)
from helpers.activations import _files as _store_files
from helpers.activations._token_draw import draw_tokens
from helpers.sae import BatchTopKSAE, RowSource, SAEConfig, train, train_many
from sae_rows import planted_rows

BIOSAMPLES = ["HepG2", "liver", "K562"]
LAYERS = [1, 4]
N_WINDOWS, N_TOKENS, D_MODEL = 40, 8, 16
PER_CHUNK = 4
SMALL = 60_000  # bytes: a few units of each biosample
MEMORIES = [SMALL, 10**8]
EVERY = len(BIOSAMPLES) * N_WINDOWS * N_TOKENS


def windows(n_windows=N_WINDOWS):
    start = np.arange(n_windows) * 1024
    return pd.DataFrame(
        {
            "chrom": "chr1",
            "start": start,
            "end": start + 1024,
            "split": np.where(np.arange(n_windows) % 5 < 4, "select", "tune"),
            "block": np.arange(n_windows) // 2,
        }
    )


def values_of(layer, b, batch):
    """Rows that say where they are from, in half precision, and noise to learn."""
    n = batch.stop - batch.start
    values = np.random.default_rng((layer, b, batch.start)).normal(
        size=(n, N_TOKENS, D_MODEL)
    )
    values[..., 0], values[..., 1] = layer, b
    values[..., 2] = np.arange(batch.start, batch.stop)[:, None]
    values[..., 3] = np.arange(N_TOKENS)
    return values


def fill(path, layers=LAYERS, values=values_of):
    store = ActivationStore.create(
        path,
        biosamples=BIOSAMPLES,
        windows=windows(),
        layers=layers,
        n_tokens=N_TOKENS,
        d_model=D_MODEL,
        model_hash="abc",
    )
    for batch in store.pending():
        for layer in layers:
            for b, name in enumerate(BIOSAMPLES):
                store.write(layer, name, batch, values(layer, b, batch))
        store.mark_complete(batch)
    return store


@pytest.fixture(scope="module", autouse=True)
def small_chunks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_store_files, "_BATCH_WINDOWS", PER_CHUNK)
        yield


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("rows") / "activations.zarr")


def places(rows):
    """Biosample, window and token of rows, one integer each."""
    b, window, token = rows[:, 1:4].T.long()
    return ((b * N_WINDOWS + window) * N_TOKENS + token).numpy()


def order(source, epoch=0, random_state=3, size=64, **options):
    (name, *_) = source.names
    batches = source.batches(size, epoch=epoch, random_state=random_state, **options)
    return [places(batch[name]) for batch in batches]


def test_small_memory_does_stream(store):
    source = StoredRows(store, memory=SMALL)
    assert isinstance(source, RowSource)
    n_batches, together = source._stretches(64)
    assert n_batches == EVERY // 64 and 2 <= together <= n_batches / 2


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("size", [64, 96, 50])
def test_an_epoch_has_every_row_once_at_the_same_places_of_all_layers(
    store, memory, size
):
    source = StoredRows(store, memory=memory)
    assert (source.names, source.n_rows, source.d_in) == ((1, 4), EVERY, D_MODEL)
    seen = []
    for batch in source.batches(size, epoch=1, random_state=5):
        assert list(batch) == LAYERS
        for layer, rows in batch.items():
            assert rows.shape == (size, D_MODEL) and (rows[:, 0] == layer).all()
            assert (places(rows) == places(batch[1])).all()
        seen.append(places(batch[1]))
    assert len(seen) == EVERY // size
    seen = np.concatenate(seen)
    assert len(np.unique(seen)) == len(seen) == EVERY // size * size
    one = next(source.batches(size, epoch=1, random_state=5))[4]
    b, window, token = one[7, 1:4].int().tolist()
    first = window - window % PER_CHUNK
    expected = values_of(4, b, slice(first, first + PER_CHUNK))[window - first, token]
    np.testing.assert_array_equal(one[7], expected.astype(np.float16))


@pytest.mark.parametrize("memory", MEMORIES)
def test_batches_are_balanced_and_mixed(store, memory):
    for batch in order(StoredRows(store, memory=memory)):
        biosample, rest = np.divmod(batch, N_WINDOWS * N_TOKENS)
        counts = np.bincount(biosample, minlength=3)
        assert np.ptp(counts) <= 1
        # Neighbors are apart: 64 of 960 rows are from many windows.
        window = biosample * N_WINDOWS + rest // N_TOKENS
        assert np.bincount(window).max() <= 6
        assert len(np.unique(window)) > 20


@pytest.mark.parametrize("memory", MEMORIES)
def test_the_order_follows_from_epoch_and_seed_alone(store, memory):
    source = StoredRows(store, memory=memory)
    whole = order(source)
    other = StoredRows(ActivationStore.open(store.path), memory=memory)
    interleaved = zip(
        other.batches(64, epoch=0, random_state=3),
        other.batches(64, epoch=7, random_state=3),
        strict=True,
    )  # two iterators share the buffers
    for expected, (batch, _) in zip(whole, interleaved, strict=True):
        assert (places(batch[1]) == expected).all()
    for changed in ({"epoch": 1}, {"random_state": 4}):
        again = order(source, **changed)
        assert (
            np.mean([np.isin(a, b).mean() for a, b in zip(whole, again, strict=True)])
            < 0.3
        )
    for first in (1, 5, 14):
        rest = order(source, first=first)
        assert all((a == b).all() for a, b in zip(whole[first:], rest, strict=True))
    halves = [order(source, part=part) for part in (slice(0, 32), slice(32, 64))]
    for batch, *parts in zip(whole, *halves, strict=True):
        assert (np.concatenate(parts) == batch).all()


def test_skipping_does_not_read_what_is_skipped(store, monkeypatch):
    source = StoredRows(store, memory=SMALL)
    read, n_read = source._selection.read, []
    monkeypatch.setattr(
        source._selection, "read", lambda *unit: n_read.append(unit) or read(*unit)
    )
    order(source, first=14)
    source.close()
    assert len(n_read) < len(LAYERS) * source._sizes.size


@pytest.mark.parametrize("memory", MEMORIES)
def test_chunks_hold_the_rows_of_the_index(store, memory):
    source = StoredRows(
        store, [4], biosamples=["K562", "HepG2"], splits=["select"], memory=memory
    )
    rows = torch.cat([chunk[4] for chunk in source.chunks()])
    index = source.index()
    assert len(rows) == len(index) == source.n_rows == 2 * 32 * N_TOKENS
    np.testing.assert_array_equal(rows[:, 1:4], index.iloc[:, :3])
    assert set(index["window_idx"] % 5) == {0, 1, 2, 3}
    assert (index["weight"] == 1).all() and set(index["token_class"]) == {"all"}
    np.testing.assert_array_equal(
        np.sort(np.concatenate(order(source, size=1))), np.sort(places(rows))
    )


def test_closing_stops_reading_and_the_source_goes_on(store):
    with StoredRows(store, memory=SMALL) as source:
        expected = order(source)
    assert "_pool" not in vars(source) and "_ahead" not in vars(source)
    assert (np.array(order(source)) == np.array(expected)).all()
    source.close()


def test_stored_rows_reject(store):
    for options, message in [
        ({"layers": [2]}, r"no layer 2; it holds layers \[1, 4\]"),
        ({"layers": []}, "layers must be at least one"),
        ({"biosamples": ["kidney"]}, "no biosample 'kidney'"),
        ({"windows": [4], "splits": ["select"]}, "no rows to use: 3 bio.* 0 windows"),
        ({"memory": 10_000}, r"memory must be at least [\d,]+ bytes for 2 layers"),
        ({"rates": {0: 1}}, "classes and rates go together"),
        ({"classes": np.zeros((3, 8)), "rates": {0: 1}}, r"shape \(40, 8\) or"),
    ]:
        with pytest.raises(ValueError, match=message):
            StoredRows(store, **options)
    least = 25_088
    with pytest.raises(ValueError, match=f"{least:,} bytes"):
        StoredRows(store, memory=least - 1)
    assert order(StoredRows(store, memory=least))
    with pytest.raises(ValueError, match=r"holds \d+ rows to shuffle; batches of 500"):
        order(StoredRows(store, memory=SMALL), size=500)


# --- classes of tokens ---------------------------------------------------------------


def labels_of_tokens():
    """Nine tokens of ten are background, differently in each biosample."""
    rng = np.random.default_rng(8)
    shape = (len(BIOSAMPLES), N_WINDOWS, N_TOKENS)
    return rng.choice(
        np.array(["background", "peak", "differential"]), shape, p=[0.9, 0.06, 0.04]
    )


@pytest.mark.parametrize("memory", [45_000, 10**8])
def test_classes_are_sampled_at_their_rates_with_weights(store, memory):
    labels = labels_of_tokens()
    rates = {"background": 0.25, "peak": 1.0, "differential": 1.0, "absent": 1.0}
    source = StoredRows(store, [1], classes=labels, rates=rates, memory=memory)
    index, strata = source.index(), source.strata
    rows = torch.cat([chunk[1] for chunk in source.chunks()])
    np.testing.assert_array_equal(rows[:, 1:4], index.iloc[:, :3])
    place = tuple(index.iloc[:, :3].to_numpy().T)
    assert (index["token_class"].to_numpy() == labels[place]).all()
    assert np.ptp(np.bincount(index["biosample_idx"], minlength=3)) == 0
    for (b, token_class), group in index.groupby(["biosample_idx", "token_class"]):
        n_available = (labels[b] == token_class).sum()
        assert group["weight"].sum() == pytest.approx(n_available)
        assert group["weight"].iloc[0] == pytest.approx(1 / rates[token_class], rel=0.5)
    assert (strata["n_drawn"] * strata["weight"]).sum() == pytest.approx(labels.size)
    text = json.dumps(source.provenance, allow_nan=False)
    assert json.loads(text)["strata"][3]["weight"] is None
    drawn = np.sort(np.concatenate(order(source, size=10)))
    assert len(np.unique(drawn)) == len(drawn) == source.n_rows // 10 * 10
    assert np.isin(drawn, places(rows)).all()
    same = StoredRows(store, [1], classes=labels, rates=rates, memory=memory)
    other = StoredRows(store, [1], classes=labels, rates=rates, random_state=1)
    pd.testing.assert_frame_equal(index, same.index())
    assert not index.equals(other.index())


def test_rates_are_met_over_many_tokens():
    codes = np.random.default_rng(0).choice(3, (500, 100), p=[0.9, 0.05, 0.05])
    rates = {TokenClass.BACKGROUND: 0.1, TokenClass.PEAK: 1, TokenClass.DIFFERENTIAL: 1}
    kept, strata = draw_tokens(codes, rates, ["a", "b"])
    weight = strata.set_index(["token_class", "biosample"])["weight"]
    np.testing.assert_allclose(weight["background"], 10, rtol=0.05)
    np.testing.assert_allclose(weight["peak"], 1, rtol=0.05)
    assert not (kept[0] == kept[1]).all()
    # The kept tokens spread over the windows and within them.
    assert kept[0].sum(1).min() > 0 and np.ptp(kept[0].sum(0)) < 80


def test_classes_are_rejected(store):
    labels = labels_of_tokens()
    for rates, message in [
        ({"background": 0.1, "peak": 1}, "class of token; 'differential' is missing"),
        (
            {"background": 0, "peak": 1, "differential": 1},
            "above 0 .* 'background'|got 0 for background",
        ),
        ({"background": 1e-9, "peak": 1e-9, "differential": 1e-9}, "no token of"),
    ]:
        with pytest.raises(ValueError, match=message):
            StoredRows(store, classes=labels, rates=rates)


def test_peak_classes_follow_the_pair_of_a_lineage(small_dataset):
    found = peak_classes(small_dataset)
    table = small_dataset.biosamples
    assert found.shape == (len(table), len(small_dataset.windows), 32)
    for lineage in set(table["lineage"]):
        vitro, vivo, *more = np.flatnonzero(table["lineage"] == lineage)
        a, b = small_dataset.in_peak(vitro), small_dataset.in_peak(vivo)
        expected = np.select(
            [a & b, a ^ b], [TokenClass.PEAK, TokenClass.DIFFERENTIAL], 0
        )
        for row in (vitro, vivo, *more):
            np.testing.assert_array_equal(found[row], expected)
    assert set(np.unique(found)) == {0, 1, 2}


# --- training ------------------------------------------------------------------------

CONFIG = SAEConfig(d_sae=32, k=3, batch_size=64, n_epochs=3, random_state=2)


def assert_equal(found, expected):
    for name, value in expected.state_dict().items():
        assert torch.equal(value, found.state_dict()[name]), name


def test_training_from_disk_finds_what_training_from_memory_does(tmp_path):
    rows, _ = planted_rows(EVERY, n_directions=20, d_in=D_MODEL, offset=3.0)
    shape = (len(BIOSAMPLES), N_WINDOWS, N_TOKENS, D_MODEL)
    store = fill(
        tmp_path / "a.zarr",
        values=lambda layer, b, batch: layer * rows.view(shape)[b, batch],
    )
    config, fvu = replace(CONFIG, n_epochs=15), []
    for memory in MEMORIES:
        source = StoredRows(store, memory=memory)
        trained = train_many(source, config, heldout=dict.fromkeys(LAYERS, rows))
        assert list(trained) == LAYERS
        fvu.append([t.history["fvu"].iloc[-15:].mean() for t in trained.values()])
        assert [t.sae.provenance["gamma"] for t in trained.values()] == pytest.approx(
            [float(rows.mean(0).norm() / rows.std(0, correction=0).norm())] * 2, 1e-3
        )
        provenance = trained[4].sae.provenance["rows"]
        assert provenance["model_hash"] == "abc" and provenance["n_windows"] == 40
        assert [line["n_drawn"] for line in provenance["strata"]] == [320, 320, 320]
    assert np.max(fvu) < 0.2  # seeds differ by more than disk and memory


@pytest.mark.parametrize("stop", [2, 15, 31])
def test_an_interrupted_run_goes_on_exactly_from_disk(store, tmp_path, stop):
    expected = train(StoredRows(store, [4], memory=SMALL), CONFIG)

    def interrupt(record):
        if record["step"] == stop:
            raise InterruptedError

    path = tmp_path / "ck"
    with pytest.raises(InterruptedError):
        train(
            StoredRows(store, [4], memory=SMALL),
            CONFIG,
            progress=interrupt,
            checkpoint=path,
            checkpoint_seconds=0,
        )
    found = train(StoredRows(store, [4], memory=SMALL), CONFIG, checkpoint=path)
    assert_equal(found.sae, expected.sae)
    pd.testing.assert_frame_equal(found.history, expected.history)
    other = StoredRows(store, [4], biosamples=BIOSAMPLES[::-1], memory=SMALL)
    with pytest.raises(ValueError, match="another run, with another first batch"):
        train(other, CONFIG, checkpoint=path)


@pytest.mark.slow
def test_a_killed_process_goes_on_exactly_from_disk(store, tmp_path):
    script = textwrap.dedent(
        f"""
        import sys, time, torch
        from helpers.activations import ActivationStore, StoredRows
        from helpers.sae import SAEConfig, train
        torch.set_num_threads(1)
        store = ActivationStore.open({str(store.path)!r})
        rows = StoredRows(store, [1], memory={SMALL})
        slow = (lambda record: time.sleep(0.02)) if sys.argv[1] == "slow" else None
        config = SAEConfig(d_sae=32, k=3, batch_size=64, n_epochs=8)
        sae, _ = train(rows, config, progress=slow,
                       checkpoint={str(tmp_path / "ck")!r}, checkpoint_seconds=0)
        sae.save({str(tmp_path)!r} + "/" + sys.argv[1])
        """
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", script, "slow"], env=environment)
    while not (tmp_path / "ck").exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    for name in ("resumed", "undisturbed"):
        command = [sys.executable, "-c", script, name]
        subprocess.run(command, env=environment, check=True)
        (tmp_path / "ck").unlink()
    assert_equal(*(BatchTopKSAE.load(tmp_path / n) for n in ("resumed", "undisturbed")))


# --- what goes wrong -----------------------------------------------------------------


def damage(store, layer, chunk):
    file = store.path / f"layer{layer}" / "c" / chunk
    content = bytearray(file.read_bytes())
    content[7] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_damaged_chunk_is_named_while_training(tmp_path, memory):
    store = fill(tmp_path / "a.zarr")
    damage(store, 4, "2/8/0/0")
    message = "a.zarr: layer 4, biosample 'K562', windows 32 to 35: chunk is damaged"
    source = StoredRows(store, memory=memory)
    with pytest.raises(ValueError, match=message):
        order(source)  # by the thread that reads ahead
    with pytest.raises(ValueError, match=message):
        train_many(source, CONFIG)
    assert order(StoredRows(store, [1], memory=memory))
    (store.path / "layer4/c/0/0/0/0").unlink()
    with pytest.raises(ValueError, match="'HepG2', windows 0 to 3: chunk is missing"):
        order(StoredRows(store, biosamples=["HepG2"], memory=10**8))


def test_values_that_are_not_finite_are_named(tmp_path):
    store = fill(tmp_path / "a.zarr")
    for value in (np.nan, np.inf, -np.inf, -np.nan):
        store._array(4)[1, 10, 3, 5] = value  # by other software
        for memory in MEMORIES:
            with pytest.raises(
                ValueError, match="'liver', windows 8 to 11: window 10, token 3 holds"
            ):
                train_many(StoredRows(store, memory=memory), CONFIG)


def test_an_error_of_the_reader_ends_neither_in_silence_nor_in_a_hang(
    store, monkeypatch
):
    source = StoredRows(store, memory=SMALL)

    def fails(self, *arguments):
        raise OSError("unplugged")

    expected = order(source)
    monkeypatch.setattr(_read_ahead.ReadAhead, "_place", fails)
    source.close()
    with pytest.raises(OSError, match="unplugged"):
        order(source)
    monkeypatch.undo()
    assert (np.array(order(source)) == np.array(expected)).all()
