"""Runs that are interrupted, shared by processes, shortened, or of several SAEs."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pandas as pd
import pytest
import torch

from helpers.sae import BatchTopKSAE, MatrixRows, train, train_many
from helpers.sae import _checkpoint as _sae_checkpoint
from sae_rows import planted_rows, small_config


class Interrupted(Exception):
    pass


def assert_equal(found, expected):
    assert found.provenance == expected.provenance
    for name, value in expected.state_dict().items():
        assert torch.equal(value, found.state_dict()[name]), name


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("stop", [1, 3, 4, 11])
def test_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path, stop, precision):
    rows, _ = planted_rows(1_000)
    # Three steps an epoch: stops lie within and at the end of one.
    config = small_config(precision=precision, dead_after=0.3, plateau=0.9)
    expected, history = train(rows, config)
    path = tmp_path / "run.checkpoint"

    def interrupt(record):
        if record["step"] == stop + 1:
            raise Interrupted

    if stop < len(history):
        with pytest.raises(Interrupted):
            train(
                rows, config, progress=interrupt, checkpoint=path, checkpoint_seconds=0
            )
    found, resumed = train(rows, config, checkpoint=path)
    assert_equal(found, expected)
    pd.testing.assert_frame_equal(resumed, history)
    again, _ = train(rows, config, checkpoint=path)  # nothing is left to do
    assert_equal(again, expected)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.slow
def test_a_killed_process_is_continued_exactly(tmp_path):
    rows, _ = planted_rows(4_000)
    torch.save(rows, tmp_path / "rows.pt")
    script = textwrap.dedent(
        """
        import sys, time, torch
        from sae_rows import small_config
        from helpers.sae import train
        torch.set_num_threads(1)
        rows = torch.load(sys.argv[1] + "/rows.pt")
        slow = (lambda record: time.sleep(0.02)) if sys.argv[2] == "slow" else None
        sae, history = train(rows, small_config(n_epochs=6), progress=slow,
                             checkpoint=sys.argv[1] + "/ck", checkpoint_seconds=0)
        sae.save(sys.argv[1] + "/sae")
        """
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script, str(tmp_path)]
    process = subprocess.Popen([*command, "slow"], env=environment)
    while not (tmp_path / "ck").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    subprocess.run([*command, "fast"], env=environment, check=True)
    n_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected, _ = train(rows, small_config(n_epochs=6))
    finally:
        torch.set_num_threads(n_threads)
    assert_equal(BatchTopKSAE.load(tmp_path / "sae"), expected)


def test_a_checkpoint_is_refused_by_another_run(tmp_path):
    rows, _ = planted_rows(600)
    path = tmp_path / "ck"
    train(rows, small_config(n_epochs=1), checkpoint=path)
    with pytest.raises(ValueError, match="another run, with another config"):
        train(rows, small_config(n_epochs=1, k=2), checkpoint=path)
    with pytest.raises(ValueError, match="another run, with another first batch"):
        train(rows + 1, small_config(n_epochs=1), checkpoint=path)
    content = path.read_bytes()
    for position in np.random.default_rng(0).integers(len(content), size=20):
        damaged = bytearray(content)
        damaged[position] ^= 1  # torch itself would not notice most
        path.write_bytes(damaged)
        with pytest.raises(
            ValueError, match="ck: not a checkpoint, or damaged.*remove"
        ):
            train(rows, small_config(n_epochs=1), checkpoint=path)
    path.write_bytes(content[:500])
    with pytest.raises(ValueError, match="ck: not a checkpoint"):
        train(rows, small_config(n_epochs=1), checkpoint=path)


def test_a_full_disk_is_reported_and_spares_the_last_checkpoint(tmp_path, monkeypatch):
    rows, _ = planted_rows(600)
    config = small_config(n_epochs=2)
    expected, _ = train(rows, config)
    path, save, n_saved = tmp_path / "ck", torch.save, []

    def fill_the_disk(state, file):
        n_saved.append(1)
        if len(n_saved) == 3:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        save(state, file)

    monkeypatch.setattr(_sae_checkpoint.torch, "save", fill_the_disk)
    with pytest.raises(OSError, match="ck: checkpoint could not be written.*No space"):
        train(rows, config, checkpoint=path, checkpoint_seconds=0)
    assert [p.name for p in tmp_path.iterdir()] == ["ck"]
    monkeypatch.undo()
    assert_equal(train(rows, config, checkpoint=path).sae, expected)


def test_train_many_is_train_on_each(tmp_path):
    matrices = {layer: planted_rows(1_000, seed=layer)[0] for layer in (0, 3)}
    heldout = {layer: planted_rows(500, seed=layer + 7)[0] for layer in (0, 3)}
    config, seen = small_config(n_epochs=2), []
    trained = train_many(matrices, config, heldout=heldout, progress=seen.append)
    assert list(trained) == [0, 3] == list(seen[0])
    for layer, (sae, history) in trained.items():
        alone, curve = train(matrices[layer], config, heldout=heldout[layer])
        assert_equal(sae, alone)
        pd.testing.assert_frame_equal(history, curve)
    with pytest.raises(ValueError, match="share one shape"):
        train_many({0: matrices[0], 1: matrices[3][:-1]}, config)
    with pytest.raises(ValueError, match="heldout must have the names"):
        train_many(matrices, config, heldout={0: heldout[0]})


class Streamed:
    """A source that is not in memory: batches made on demand, chunks of odd sizes."""

    def __init__(self, rows):
        self._rows = MatrixRows({"only": rows})
        self.names, self.n_rows, self.d_in = ("only",), *rows.shape

    def batches(self, batch_size, **settings):
        for batch in self._rows.batches(batch_size, **settings):
            yield {name: rows.half() for name, rows in batch.items()}

    def chunks(self):
        matrix = self._rows._matrices["only"]
        for first in range(0, self.n_rows, 333):
            yield {"only": matrix[first : first + 333].half()}


def test_train_streams_from_any_source():
    rows = planted_rows(1_000)[0].half()
    config = small_config(n_epochs=2)
    expected, history = train(rows, config)
    found, streamed = train(Streamed(rows), config)
    np.testing.assert_allclose(streamed["loss"], history["loss"], rtol=1e-4)
    torch.testing.assert_close(found.W_dec, expected.W_dec, rtol=1e-3, atol=1e-4)
    broken = Streamed(rows)
    broken.n_rows += 1
    with pytest.raises(ValueError, match="announce 1001 rows; their chunks hold 1000"):
        train(broken, config)


def test_a_plateau_ends_the_run_with_a_falling_step_size():
    rows, _ = planted_rows(2_000)
    config = small_config(n_epochs=40, plateau=0.2)
    sae, history = train(rows, config)
    assert sae.provenance["n_steps"] == len(history) < 40 * 7
    rates = history["learning_rate"].to_numpy()
    falling = int(0.25 * 40 * 7)
    assert (np.diff(rates[-falling:]) < 0).all()
    assert rates[-1] < 0.05 * rates.max()
    assert len(train(rows, small_config(n_epochs=6)).history) == 6 * 7


SHARED_RUN = """
import sys, torch, torch.distributed as dist
from sae_rows import planted_rows
from helpers.sae import SAEConfig, train
torch.set_num_threads(1)
if "RANK" in __import__("os").environ:
    dist.init_process_group("gloo")
rows, _ = planted_rows(3_000, n_directions=60)
config = SAEConfig(d_sae=96, k=4, batch_size=256, n_epochs=9, dead_after=0.2,
                   precision=sys.argv[2], aux_rows=100,
                   matryoshka=eval(sys.argv[3]))
sae, history = train(rows, config, checkpoint=sys.argv[4], checkpoint_seconds=1e9)
if not dist.is_initialized() or dist.get_rank() == 0:
    sae.save(sys.argv[1])
    history.to_parquet(sys.argv[1] + "/history.parquet")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "matryoshka"),
    [("float32", ()), ("bfloat16", ()), ("float32", (24, 96))],
)
def test_two_processes_train_like_one(tmp_path, precision, matryoshka):
    script = tmp_path / "shared_run.py"
    script.write_text(SHARED_RUN)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
    }
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for name, launcher in {"one": [], "two": torchrun}.items():
        settings = [tmp_path / name, precision, matryoshka, tmp_path / f"{name}.ck"]
        command = [sys.executable, *launcher, script, *settings]
        subprocess.run(
            [str(part) for part in command],
            env=environment,
            check=True,
            capture_output=True,
        )
    one, two = (
        pd.read_parquet(tmp_path / name / "history.parquet") for name in ("one", "two")
    )
    assert (one["l0"] == 4).all() and (two["l0"] == 4).all()
    assert one["dead"].max() > 0  # auxiliary loss and revival took part
    assert one["revived"].sum() > 0
    # Sums in another order: rounding, larger in bfloat16, grows with the steps.
    rounding = 1e-4 if precision == "float32" else 5e-3
    np.testing.assert_allclose(one["loss"][:10], two["loss"][:10], rtol=rounding)
    np.testing.assert_allclose(one["loss"][:70], two["loss"][:70], rtol=0.1)
    # The restart after step 70 may draw other rows by then.
    np.testing.assert_allclose(one["loss"], two["loss"], rtol=0.2)
