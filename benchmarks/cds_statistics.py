"""Time the Context Divergence Score on summaries of published size, and its floor.

Window summaries of 8 blocks x 8,192 features x 2,000 windows x 6 biosamples are scored
from disk with every statistic and 10,000 sign flips, two blocks of the model at a time.
Only these two lie on disk (1.6 GB), written before and removed after they are scored;
writing is not timed. The floor is the matrix product of the sign flips alone, measured
on the same cores. Prints wall times, peak memory and the disk that was used.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import zarr

from helpers.cds import context_divergence

GOAL_SECONDS, GOAL_GIB = 60, 4
DESIGN = pd.DataFrame(
    [
        (f"{lineage}_{context}", lineage, context)
        for lineage in ("blood", "liver", "lymph")
        for context in ("in_vitro", "in_vivo")
    ],
    columns=["biosample", "lineage", "context"],
)


def write_summaries(folder: Path, layer: int, n_windows: int, n_features: int) -> None:
    """Write sparse mean activations and firing rates of one block of the model."""
    rng = np.random.default_rng(layer)
    group = zarr.create_group(folder / f"layer{layer}")
    shape = (len(DESIGN), n_windows, n_features)
    arrays = {
        name: group.create_array(
            name,
            shape=shape,
            chunks=(1, min(250, n_windows), n_features),
            dtype="float32",
            compressors=None,
        )
        for name in ("mean_acts", "firing")
    }
    sequence = rng.random(shape[1:], dtype=np.float32)
    for row in range(shape[0]):
        acts = sequence + rng.random(shape[1:], dtype=np.float32)
        acts = np.maximum(acts - np.float32(1.3), 0)
        arrays["mean_acts"][row] = acts
        arrays["firing"][row] = np.ceil(acts * 64) / 64


def score(folder: Path, layer: int, blocks: np.ndarray, n_flips: int) -> pd.DataFrame:
    """Return the table of one block of the model, read from disk pair by pair."""
    group = zarr.open_group(folder / f"layer{layer}", mode="r")
    return context_divergence(
        group["mean_acts"],
        DESIGN,
        blocks,
        firing_rates=group["firing"],
        n_flips=n_flips,
        random_state=layer,
    )


def floor_seconds(n_flips: int, n_blocks: int, n_features: int) -> float:
    """Time the product of signs and block differences, chunked as the code does."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((n_blocks, n_features), dtype=np.float32)
    signs = rng.choice(np.float32([-1, 1]), size=(n_flips, n_blocks))
    start = time.perf_counter()
    for first in range(0, n_flips, 256):
        signs[first : first + 256] @ values
    return time.perf_counter() - start


def main() -> None:
    """Write, time and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--features", type=int, default=8192)
    parser.add_argument("--windows", type=int, default=2000)
    parser.add_argument("--blocks", type=int, default=200, help="genomic blocks")
    parser.add_argument("--flips", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    blocks = np.arange(given.windows) * given.blocks // given.windows
    floor = given.layers * floor_seconds(given.flips, given.blocks, given.features)
    needed = given.workers * 2 * 4 * len(DESIGN) * given.windows * given.features
    seconds, tables = 0.0, []
    with (
        tempfile.TemporaryDirectory() as scratch,
        ThreadPoolExecutor(given.workers) as pool,
    ):
        free = shutil.disk_usage(scratch).free
        if free < 1.2 * needed:
            parser.error(
                f"needs {needed / 1e9:.1f} GB in {scratch}; {free / 1e9:.1f} free"
            )
        for first in range(0, given.layers, given.workers):
            layers = range(first, min(first + given.workers, given.layers))
            folder = Path(scratch) / "summaries"
            for layer in layers:
                write_summaries(folder, layer, given.windows, given.features)
            start = time.perf_counter()
            jobs = [
                pool.submit(score, folder, layer, blocks, given.flips)
                for layer in layers
            ]
            tables += [job.result() for job in jobs]
            seconds += time.perf_counter() - start
            shutil.rmtree(folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    n_tested = sum(table.attrs["n_tested"] for table in tables)
    load = os.getloadavg()[0]
    print(
        f"{given.layers} blocks x {given.features} features x {given.windows} windows "
        f"x {len(DESIGN)} biosamples, {given.blocks} genomic blocks, {given.flips} "
        f"flips; {n_tested} features tested"
    )
    print(f"all statistics  {seconds:7.1f} s   (goal {GOAL_SECONDS} s)")
    print(f"sign-flip GEMM  {floor:7.1f} s   (floor, {seconds / floor:.1f} times)")
    print(f"peak memory     {peak:7.2f} GiB (goal {GOAL_GIB} GiB)")
    print(f"disk            {needed / 2**30:7.2f} GiB")
    print(f"load average    {load:7.1f}     of {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
