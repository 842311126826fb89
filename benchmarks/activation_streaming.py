"""Train from a store four times larger than memory allowed, and from memory.

    python benchmarks/activation_streaming.py --config A

writes a store of planted activations and trains one SAE on it in processes of their
own, which take turns: ``matrix``, from float32 rows in memory; ``kept``, from the store
with memory for all of it; ``streamed``, with memory for a quarter. A run is all of
training, from reading rows for their mean to the threshold. While ``streamed`` runs,
the store is dropped from the system's page cache again and again, so that it is read
from the disk each time. Linux only.

Printed are the medians over rounds of the time of a run, of a step and of the processor
in a run, and their ratios to ``matrix`` round by round; the held-out error; and memory
above what the process held when it began: its peak, and how it went on during the last
run. ``matrix`` and ``kept`` have their rows by then, so what they take is the
trainer's; what ``streamed`` takes beyond that is to stay below the memory allowed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from helpers.activations import ActivationStore, StoredRows
from helpers.sae import MatrixRows, SAEConfig, evaluate, train_many

BIOSAMPLES = [f"biosample {i}" for i in range(6)]
CONTENDERS = ("matrix", "kept", "streamed")
N_TOKENS = 256  # of a window
TIMES = 4  # the set is larger than memory
EVICT_STEPS = 16


class Shape(NamedTuple):
    """Sizes of a comparison; memory in MiB."""

    d_in: int
    d_sae: int
    k: int
    batch_size: int
    memory: int
    n_epochs: int


SHAPES = {
    "A": Shape(128, 1024, 16, 2048, 64, 2),
    "B": Shape(512, 4096, 32, 4096, 128, 1),
    "C": Shape(1024, 8192, 64, 4096, 256, 1),
}


def write_store(path: Path, shape: Shape) -> None:
    """Write a store whose training windows hold TIMES the memory allowed."""
    window_bytes = len(BIOSAMPLES) * N_TOKENS * shape.d_in * 2
    n_train = -(-TIMES * shape.memory * 2**20 // window_bytes)
    n_windows = n_train + 8
    start = np.arange(n_windows) * 128 * N_TOKENS
    split = np.where(np.arange(n_windows) < n_train, "select", "tune")
    windows = pd.DataFrame(
        {"chrom": "chr1", "start": start, "end": start + 128 * N_TOKENS, "block": 0}
    ).assign(split=split)
    store = ActivationStore.create(
        path,
        biosamples=BIOSAMPLES,
        windows=windows,
        layers=[0],
        n_tokens=N_TOKENS,
        d_model=shape.d_in,
        model_hash="planted",
    )
    rng = np.random.default_rng(20_311)
    directions = torch.from_numpy(
        rng.normal(size=(shape.d_sae, shape.d_in)).astype(np.float32)
    )
    directions /= directions.norm(dim=1, keepdim=True)
    for batch in store.pending():
        n = (batch.stop - batch.start) * N_TOKENS
        for name in BIOSAMPLES:
            features = rng.zipf(1.4, (n, shape.k)) % shape.d_sae
            sizes = rng.lognormal(0, 0.5, (n, shape.k)).astype(np.float32)
            rows = torch.nn.functional.embedding_bag(
                torch.from_numpy(features),
                directions,
                per_sample_weights=torch.from_numpy(sizes),
                mode="sum",
            )
            rows += 0.05 * torch.from_numpy(rng.normal(size=rows.shape))
            store.write(0, name, batch, rows.view(-1, N_TOKENS, shape.d_in))
        store.mark_complete(batch)


def evict(files: list[int]) -> None:
    """Drop open files from the page cache."""
    for file in files:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)


def memory_of(field: str) -> float:
    """Return this process's memory (VmRSS) or its peak (VmHWM), MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 1024


def work(name: str, folder: Path, shape: Shape) -> dict:
    """Train once; return what it took."""
    store = ActivationStore.open(folder)
    bound = shape.memory * 2**20
    config = SAEConfig(
        d_sae=shape.d_sae,
        k=shape.k,
        batch_size=shape.batch_size,
        n_epochs=shape.n_epochs,
        learning_rate=1e-3,  # as benchmarks/sae_training.py
    )
    tune = store.rows(0, splits=["tune"]).rows
    if name == "matrix":
        source = MatrixRows({0: store.rows(0, splits=["select"]).rows})
    elif name == "kept":
        source = StoredRows(store, splits=["select"], memory=16 * bound)
    elif name == "streamed":
        source = StoredRows(store, splits=["select"], memory=bound)
    first = next(source.chunks())[0]
    assert len(first)  # rows kept in memory are read before the clock starts
    chunks = [path for path in folder.rglob("c/**/*") if path.is_file()]
    files = [os.open(path, os.O_RDONLY) for path in chunks]
    os.sync()  # only what is on the disk can be dropped
    evict(files)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = memory_of("VmRSS")
    held, began = [], []

    def progress(records: dict) -> None:
        began.append(time.perf_counter())
        held.append(memory_of("VmRSS") - before)
        if name == "streamed" and len(began) % EVICT_STEPS == 0:
            evict(files)

    start, cpu = time.perf_counter(), time.process_time()
    trained = train_many(source, config, heldout={0: tune}, progress=progress)[0]
    return {
        "run": time.perf_counter() - start,
        "cpu": time.process_time() - cpu,
        "step": (began[-1] - began[0]) / (len(began) - 1),
        "peak": memory_of("VmHWM") - before,
        "held": [held[int(q * (len(held) - 1))] for q in (0.1, 0.25, 0.5, 0.75, 1)],
        "fvu": float(evaluate(trained.sae, tune).table["fvu"]["all"]),
        "dead": float(trained.history["dead"].iloc[-1]),
    }


def measure(name: str, folder: Path, options: argparse.Namespace) -> dict:
    """Train in a process of its own."""
    command = [sys.executable, __file__, "--worker", name, "--folder", str(folder)]
    command += ["--config", options.config, "--threads", str(options.threads)]
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def main() -> None:
    """Compare the contenders on one configuration."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", choices=SHAPES, default="A")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--contenders", nargs="+", default=CONTENDERS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    shape = SHAPES[options.config]
    if options.worker:
        torch.set_num_threads(options.threads)
        print(json.dumps(work(options.worker, options.folder, shape)))
        return
    print(f"{options.config}: {shape}, set {TIMES} x memory, {options.threads} threads")
    found: dict[str, list[dict]] = {name: [] for name in options.contenders}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "activations.zarr"
        write_store(folder, shape)
        for _ in range(options.rounds):
            for name, results in found.items():
                results.append(measure(name, folder, options))
    for name, results in found.items():
        medians = {
            key: statistics.median(result[key] for result in results)
            for key in ("run", "step", "cpu", "peak", "fvu", "dead")
        }
        text = f"{name:<9} run {medians['run']:.1f} s, step "
        text += f"{1000 * medians['step']:.1f} ms, CPU {medians['cpu']:.1f} s, FVU "
        text += f"{medians['fvu']:.4f}, dead {100 * medians['dead']:.1f}%, memory "
        text += f"{medians['peak']:.0f} MiB (at 10, 25, 50, 75, 100% of the steps "
        text += ", ".join(f"{value:.0f}" for value in results[-1]["held"]) + ")"
        if name != "matrix" and "matrix" in found:
            for key in ("run", "step", "cpu"):
                ratios = [
                    a[key] / b[key]
                    for a, b in zip(found["matrix"], results, strict=True)
                ]
                text += f"; speed by {key} {statistics.median(ratios):.2f} "
                text += f"[{min(ratios):.2f}-{max(ratios):.2f}]"
        print(text, flush=True)


if __name__ == "__main__":
    main()
