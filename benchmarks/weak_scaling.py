"""Does a second worker do a second worker's work? One against two, a core each.

Weak scaling keeps the work of a worker and doubles the workers: two of them train a
dictionary on batches of twice the rows (torch.distributed, gloo), or extract the
streams of twice the windows (each its own, no communication). Efficiency is the time of
one worker over that of two. One and two take turns, so that a change of the machine's
load falls on both.

Both clocks are given. Wall time is what a user waits, and suffers from whatever else
runs on the machine; CPU time of a worker's process does not, but leaves out waiting,
for the other worker too. Linux only, two cores at least.

    python benchmarks/weak_scaling.py --save

writes the repeats and where they were made to ``src/helpers/resources/weak_scaling``,
which the scaling page reads.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import tempfile
import time
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from helpers.activations import ActivationStore
from helpers.sae import SAEConfig, train
from helpers.small_model import load_small_model

TASKS = {
    "dictionary": "SAE training, gloo, batches of 2,048 rows a worker",
    "extraction": "streams of small-model windows, each worker its own",
}
D_IN, D_SAE, K = 256, 2048, 16
ROWS_OF_A_WORKER, N_STEPS, N_WARM = 2048, 40, 10
N_WINDOWS, N_BIOSAMPLES, BATCH = 96, 6, 16


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="write the repeats")
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        parser.error("two cores are needed")
    load = os.getloadavg()[0]
    rows = []
    for repeat in range(arguments.repeats):
        for task in TASKS:
            one, two = (measure(task, cores[:n]) for n in (1, 2))
            for clock in ("wall", "cpu"):
                row = {"task": task, "repeat": repeat, "clock": clock}
                row |= {"one_s": one[clock], "two_s": two[clock]}
                rows.append(row | {"efficiency": one[clock] / two[clock]})
    points = pd.DataFrame(rows)
    print(f"{arguments.repeats} repeats; load average {load:.1f} at the start\n")
    print("| task | clock | one worker, s | two, s | efficiency | range |")
    print("| --- | --- | --- | --- | --- | --- |")
    for (task, clock), of in points.groupby(["task", "clock"], sort=False):
        median, low, high = of["efficiency"].quantile([0.5, 0, 1])
        print(
            f"| {TASKS[task]} | {clock} | {of['one_s'].median():.2f} | "
            f"{of['two_s'].median():.2f} | {median:.2f} | {low:.2f} to {high:.2f} |"
        )
    if arguments.save:
        save(points, load)


def measure(task: str, cores: list[int]) -> dict[str, float]:
    """Run one worker on each core and return seconds: the slowest wall, mean CPU."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("spawn")
    queue = context.Queue()
    workers = [
        context.Process(target=worker, args=(task, rank, cores, port, queue))
        for rank in range(len(cores))
    ]
    for process in workers:
        process.start()
    for process in workers:
        process.join()
        if process.exitcode:
            raise RuntimeError(f"{task}: a worker ended with code {process.exitcode}")
    found = [queue.get() for _ in workers]
    wall, cpu = zip(*found, strict=True)
    return {"wall": max(wall), "cpu": float(np.mean(cpu))}


def worker(task: str, rank: int, cores: list[int], port: int, queue: mp.Queue) -> None:
    """Do a task on a core, together with the others, and hand back its seconds."""
    os.sched_setaffinity(0, {cores[rank]})
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    if len(cores) > 1:
        dist.init_process_group("gloo", rank=rank, world_size=len(cores))
    queue.put(
        {"dictionary": train_steps, "extraction": extract}[task](rank, len(cores))
    )
    if len(cores) > 1:
        dist.destroy_process_group()


class Clock:
    """Seconds of wall time and of this process since the last start."""

    def start(self) -> None:
        """Begin."""
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        """Return both."""
        return time.perf_counter() - self.wall, time.process_time() - self.cpu


def train_steps(rank: int, size: int) -> tuple[float, float]:
    """Train on rows that all workers hold, a share of each batch to every one."""
    batch = ROWS_OF_A_WORKER * size
    rows = torch.randn(8 * batch, D_IN, generator=torch.Generator().manual_seed(0))
    n_epochs = (N_WARM + N_STEPS) // 8 + 1
    config = SAEConfig(
        d_sae=D_SAE, k=K, batch_size=batch, n_epochs=n_epochs, revive_until=0
    )
    clock, n_done, seconds = Clock(), 0, (0.0, 0.0)

    def progress(record: dict[str, float]) -> None:
        nonlocal n_done, seconds
        n_done += 1
        if n_done == N_WARM:
            clock.start()
        elif n_done == N_WARM + N_STEPS:
            seconds = clock.read()

    train(rows, config, heldout=rows[:1024], progress=progress)
    return seconds


@torch.no_grad()
def extract(rank: int, size: int) -> tuple[float, float]:
    """Run a worker's own windows through the model and store their streams."""
    model = load_small_model()
    config = model.config
    generator = torch.Generator().manual_seed(rank)
    bases = torch.randint(4, (BATCH, config.input_length), generator=generator)
    sequence = torch.nn.functional.one_hot(bases, 4).float()
    atac = torch.rand(BATCH, config.input_length // 4, generator=generator)
    motif = torch.rand(BATCH, config.n_motifs, generator=generator)
    starts = np.arange(N_WINDOWS) * config.input_length
    windows = pd.DataFrame({"chrom": "chr1", "start": starts})
    windows["end"] = windows["start"] + config.input_length
    windows = windows.assign(split="select", block="chr1")
    names = [f"biosample{b}" for b in range(N_BIOSAMPLES)]
    layers = list(range(config.n_blocks))
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        store = ActivationStore.create(
            Path(folder) / "streams.zarr",
            biosamples=names,
            windows=windows,
            layers=layers,
            n_tokens=config.n_tokens,
            d_model=config.d_model,
            model_hash="none",
        )
        model.encode_sequence(sequence)  # the first pass makes what later ones keep
        if size > 1:
            dist.barrier()
        clock.start()
        for first in range(0, N_WINDOWS, BATCH):
            batch = slice(first, first + BATCH)
            features = model.encode_sequence(sequence)
            for name in names:
                stream = model.encode_context(features, atac, motif)
                for layer in layers:
                    stream = model.run_blocks(stream, layer, layer + 1)
                    store.write(layer, name, batch, stream)
            store.mark_complete(batch)
        return clock.read()


def save(points: pd.DataFrame, load: float) -> None:
    """Write the repeats, and where and when they were made."""
    folder = Path(str(resources.files("helpers") / "resources" / "weak_scaling"))
    folder.mkdir(exist_ok=True)
    points.round(4).to_csv(folder / "points.csv", index=False)
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = {x.partition(":")[2].strip() for x in lines if x.startswith("model name")}
    facts = {
        "script": "benchmarks/weak_scaling.py",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} cores, {', '.join(sorted(models)) or 'unknown'}",
        "platform": platform.machine(),
        "torch": torch.__version__,
        "load_average_at_start": round(load, 1),
        "tasks": TASKS,
    }
    text = json.dumps(facts, indent=1) + "\n"
    (folder / "provenance.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
