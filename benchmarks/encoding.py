"""Summarize a store with an SAE, beside the matrix product that takes.

    python benchmarks/encoding.py --size published

times `helpers.activations.summarize` on a small store on disk, beside nothing but the
product of as many rows with the encoder, into a buffer in memory, for several numbers
of rows at a time (the fastest is the machine's rate), and beside encoding 8,192 tokens
at a time with `BatchTopKSAE.encode` and averaging. They take turns in one process.
Printed are medians over turns, the ratio to the fastest product turn by turn, and
memory above what was held before, without the summary itself. Linux only.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from helpers.activations import ActivationStore, summarize
from helpers.sae import BatchTopKSAE

PRODUCT_ROWS = (512, 2048, 8192)
NAIVE_TOKENS = 8192


class Size(NamedTuple):
    """Sizes of a comparison."""

    d_in: int
    d_sae: int
    k: int
    n_tokens: int
    n_windows: int


SIZES = {
    "published": Size(1024, 8192, 64, 4096, 2),
    "small": Size(64, 512, 16, 64, 2048),
}


def make_store(path: Path, size: Size, rng: np.random.Generator) -> ActivationStore:
    """Write a store of one biosample and layer."""
    start = np.arange(size.n_windows) * 128 * size.n_tokens
    windows = pd.DataFrame({"chrom": "chr1", "start": start, "end": start + 1})
    store = ActivationStore.create(
        path,
        biosamples=["planted"],
        windows=windows.assign(split="select", block=0),
        layers=[0],
        n_tokens=size.n_tokens,
        d_model=size.d_in,
        model_hash="planted",
    )
    for batch in store.pending():
        shape = (batch.stop - batch.start, size.n_tokens, size.d_in)
        store.write(0, "planted", batch, rng.normal(size=shape))
        store.mark_complete(batch)
    return store


def make_sae(size: Size, rows: torch.Tensor) -> BatchTopKSAE:
    """Return an SAE whose features fire on as many rows as a trained one's."""
    sae = BatchTopKSAE(size.d_in, size.d_sae, size.k, random_state=5)
    h = sae.pre_activations(rows).flatten()
    sae.threshold.fill_(float(h.topk(len(rows) * size.k)[0][-1]))
    return sae


def product(sae: BatchTopKSAE, n_tokens: int, n_rows: int) -> None:
    """Multiply rows with the encoder, some at a time."""
    x = torch.ones(n_rows, sae.d_in)
    out = torch.empty(n_rows, sae.d_sae)
    for _ in range(n_tokens // n_rows):
        torch.mm(x, sae.W_enc, out=out)


@torch.no_grad()
def naive(store: ActivationStore, sae: BatchTopKSAE) -> None:
    """Encode and average without a thought for memory."""
    step = max(1, NAIVE_TOKENS // store.n_tokens)
    for first in range(0, len(store.windows), step):
        x = torch.from_numpy(store.layer(0)[0, first : first + step]).float()
        feature_acts = sae.encode(x)
        feature_acts.mean(1), torch.count_nonzero(feature_acts, dim=1)


def memory_of(field: str) -> float:
    """Return this process's memory (VmRSS) or its peak (VmHWM), MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 1024


def main() -> None:
    """Compare at one size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="published")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    size = SIZES[options.size]
    torch.set_num_threads(options.threads)
    n_tokens = size.n_windows * size.n_tokens
    rng = np.random.default_rng(4)
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder) / "activations.zarr", size, rng)
        sae = make_sae(size, torch.from_numpy(store.layer(0)[0, 0]).float())
        jobs: dict[str, Callable[[], object]] = {
            f"product of {n:,} rows": lambda n=n: product(sae, n_tokens, n)
            for n in PRODUCT_ROWS
        }
        jobs["summarize"] = lambda: summarize(store, 0, sae)
        jobs["encode, average"] = lambda: naive(store, sae)
        peaks = {}
        for name, job in jobs.items():  # warm up, and see what memory it takes
            Path("/proc/self/clear_refs").write_text("5")
            before = memory_of("VmRSS")
            job()
            peaks[name] = memory_of("VmHWM") - before
        turns: dict[str, list[tuple[float, float]]] = {name: [] for name in jobs}
        for _ in range(options.turns):
            for name, job in jobs.items():
                wall, cpu = time.perf_counter(), time.process_time()
                job()
                turns[name].append(
                    (time.perf_counter() - wall, time.process_time() - cpu)
                )
    print(f"{options.size}: {size}, {n_tokens:,} tokens, {options.threads} threads")
    products = [turns[name] for name in jobs if name.startswith("product")]
    fastest = [
        tuple(min(clock) for clock in zip(*turn, strict=True))
        for turn in zip(*([t for t in p] for p in products), strict=True)
    ]
    gflop = 2e-9 * n_tokens * size.d_in * size.d_sae
    summary = 2 * 4 * size.n_windows * size.d_sae / 2**20
    for name, times in turns.items():
        wall = statistics.median(t[0] for t in times)
        ratios = [
            [
                best[clock] / turn[clock]
                for best, turn in zip(fastest, times, strict=True)
            ]
            for clock in (0, 1)
        ]
        held = peaks[name] - summary * (name == "summarize")
        print(
            f"{name:<24}{gflop / wall:>7.0f} GFLOP/s, of the fastest product "
            f"{statistics.median(ratios[0]):.2f} [{min(ratios[0]):.2f}-"
            f"{max(ratios[0]):.2f}] by wall, {statistics.median(ratios[1]):.2f} by CPU;"
            f" memory {held:.0f} MiB"
        )


if __name__ == "__main__":
    main()
