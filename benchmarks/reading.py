"""Time the reading of windows: one-hot sequence and tracks ready for the model.

Two synthetic chromosomes of 50 Mb and the cut sites of six biosamples (about 3 million
positions each, a deep library) are written once, into a temporary folder, and are in
the page cache when time is taken. Every reader opens the files anew and reads a window
once, as pybigtools keeps what it has decompressed. What is read is first compared, to
the last bit, with sums over bases in float64.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pybigtools
import pysam

from helpers.motifs import jaspar_vertebrates, write_meme
from helpers.tissues import Biosample, Tissue
from helpers.windows import INPUT_CLIP, WindowDataset

WINDOW_BP = 524_288
CHROM_BP = 50_000_000
N_BIOSAMPLES = 6
SCALE = 0.73  # no power of two: rounding would show
BATCH = 4  # windows
PEAK_SHARE, PEAK_RATE, OTHER_RATE = 0.1, 1 / 20, 1 / 36  # cut sites per base
N_SLOW = 50  # windows for those that read base by base


def main() -> None:
    """Print windows per second of every reader as a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=200, help="at most")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--kind", choices=["cut_sites", "coverage"], default="cut_sites"
    )
    parser.add_argument(
        "--model-ms", type=float, default=10.0, help="a GPU's time per window"
    )
    default = Path(tempfile.gettempdir(), "chromatin-context-reading")
    parser.add_argument("--folder", type=Path, default=default)
    arguments = parser.parse_args()
    if not arguments.folder.is_dir():
        write_world(arguments.folder)
    dataset = open_world(arguments.folder, arguments.kind)
    windows = np.arange(len(dataset.windows))[: arguments.windows]
    for path in arguments.folder.iterdir():
        path.read_bytes()
    check(dataset, windows[:2])
    print(
        f"{len(windows)} windows of {WINDOW_BP:,} bp x {N_BIOSAMPLES} biosamples "
        f"({arguments.kind}), {os.cpu_count()} cores\n\n"
        "| reader | windows/s | wall ms per window | CPU ms per window |\n"
        "| --- | --- | --- | --- |"
    )
    del dataset

    def reopen() -> WindowDataset:
        return open_world(arguments.folder, arguments.kind)

    for name, read, times in readers(reopen, arguments.threads, arguments.model_ms):
        some = windows[:: max(len(windows) // times, 1)][:times]
        wall, cpu = time.perf_counter(), time.process_time()
        read(some)
        wall = (time.perf_counter() - wall) / len(some)
        cpu = (time.process_time() - cpu) / len(some)
        print(f"| {name} | {1 / wall:.1f} | {wall * 1e3:.1f} | {cpu * 1e3:.1f} |")


def readers(
    reopen: Callable[[], WindowDataset], n_threads: int, model_ms: float
) -> Iterator[tuple[str, Callable[[np.ndarray], object], int]]:
    """Yield readers: name, function of windows, and how many windows at most."""
    many = sys.maxsize

    def one_by_one(
        dataset: WindowDataset, windows: np.ndarray, pause_s: float = 0.0
    ) -> None:
        for group in np.split(windows, range(BATCH, len(windows), BATCH)):
            dataset.sequence(group)
            for b in range(N_BIOSAMPLES):
                dataset.atac(group, b)
            time.sleep(pause_s * len(group))

    def ahead(
        dataset: WindowDataset, windows: np.ndarray, pause_s: float = 0.0
    ) -> None:
        groups = np.split(windows, range(BATCH, len(windows), BATCH))
        for inputs in dataset.batches(groups, n_threads=n_threads):
            time.sleep(pause_s * len(inputs.windows))

    for pause_s, model in (
        (0.0, ""),
        (model_ms / 1000, f", and a model of {model_ms:g} ms per window"),
    ):
        for name, function in (
            ("sequence() and atac()", one_by_one),
            (f"batches(), {n_threads} threads", ahead),
        ):
            read = partial(function, reopen(), pause_s=pause_s)
            yield f"{name}{model}", read, many
    dataset = reopen()
    regions = dataset.windows[["chrom", "start", "end"]].to_numpy().tolist()
    values = open_values(dataset)

    def values_alone(windows: np.ndarray) -> None:
        for window in windows:
            for b in range(N_BIOSAMPLES):
                values(b, *regions[window])

    yield "floor: pybigtools values, no sequence, no bins", values_alone, many
    fasta = pysam.FastaFile(str(dataset.genome.path))
    plain = partial(per_base, dataset, values=open_values(dataset), fetch=fasta.fetch)
    yield "per base: pybigtools, pysam, numpy", plain, N_SLOW
    try:
        bigwig, faidx = (importlib.import_module(n) for n in ("pyBigWig", "pyfaidx"))
    except ImportError:
        return
    others = [bigwig.open(str(b.signal)) for b in samples(dataset)]
    records = faidx.Fasta(str(dataset.genome.path), as_raw=True)

    def other_values(b: int, chrom: str, start: int, end: int) -> np.ndarray:
        found = others[b].values(chrom, start, end, numpy=True)
        return np.nan_to_num(found).astype(np.float64)

    def other_fetch(chrom: str, start: int, end: int) -> str:
        return records[chrom][start:end]

    plain = partial(per_base, dataset, values=other_values, fetch=other_fetch)
    yield "per base: pyBigWig, pyfaidx, numpy", plain, N_SLOW


def open_values(dataset: WindowDataset) -> Callable[[int, str, int, int], np.ndarray]:
    """Open the bigWigs; return the function that reads a biosample's bases."""
    tracks = [pybigtools.open(str(b.signal)) for b in samples(dataset)]

    def values(b: int, chrom: str, start: int, end: int) -> np.ndarray:
        return tracks[b].values(chrom, start, end, fillna=0.0)

    return values


def per_base(
    dataset: WindowDataset,
    windows: Sequence[int],
    values: Callable[[int, str, int, int], np.ndarray],
    fetch: Callable[[str, int, int], str],
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Read windows the plain way, base by base in float64; the reference as well."""
    margin = 5 if samples(dataset)[0].signal_kind == "cut_sites" else 0
    one_hot = np.zeros((256, 4), dtype=np.float32)
    one_hot[list(b"ACGT"), range(4)] = 1
    read = []
    for window in windows:
        chrom, start, end = dataset.windows.iloc[window][["chrom", "start", "end"]]
        letters = np.frombuffer(fetch(chrom, start, end).encode(), dtype=np.uint8)
        atac = []
        for b in range(N_BIOSAMPLES):
            base = np.zeros(WINDOW_BP + 2 * margin)
            left, right = max(start - margin, 0), min(end + margin, CHROM_BP)
            base[left - start + margin :][: right - left] = values(
                b, chrom, left, right
            )
            if margin:
                base = np.convolve(base, np.ones(2 * margin + 1), mode="valid")
            sums = (base.reshape(-1, 4).sum(axis=1) * SCALE).astype(np.float32)
            above = np.maximum(sums - INPUT_CLIP, 0)
            atac.append(np.where(above > 0, INPUT_CLIP + np.sqrt(above), sums))
        read.append((one_hot[letters], np.stack(atac)))
    return read


def check(dataset: WindowDataset, windows: np.ndarray) -> None:
    """Stop unless windows are read as the plain way reads them, to the last bit."""
    fetch = pysam.FastaFile(str(dataset.genome.path)).fetch
    expected = per_base(dataset, windows, open_values(dataset), fetch)
    (inputs,) = dataset.batches([windows])
    for i, (sequence, atac) in enumerate(expected):
        if not np.array_equal(inputs.sequence[i], sequence):
            raise SystemExit(f"window {i}: sequence differs from the reference")
        if not np.array_equal(inputs.atac[:, i], atac):
            raise SystemExit(f"window {i}: tracks differ from the reference")


def samples(dataset: WindowDataset) -> list[Biosample]:
    """Return the biosamples in order."""
    return [b for tissue in dataset.tissues for b in tissue.biosamples]


def open_world(folder: Path, kind: str) -> WindowDataset:
    """Return the data set of the synthetic chromosomes."""
    tissues = []
    for first in range(0, N_BIOSAMPLES, 2):
        pair = [
            Biosample(
                name=f"sample{b}",
                signal=folder / f"sample{b}.bw",
                peaks=folder / "peaks.bed",
                motif_activity=folder / "activity.tsv",
                signal_kind=kind,
                scale=SCALE,
            )
            for b in (first, first + 1)
        ]
        tissues.append(
            Tissue(
                name=f"tissue{first}",
                path=folder,
                assembly="synthetic",
                genome=folder / "genome.fa",
                windows=folder / "windows.tsv",
                motifs=folder / "motifs.meme",
                in_vitro=pair[0],
                in_vivo=pair[1],
            )
        )
    return WindowDataset(tissues, window_bp=WINDOW_BP)


def write_world(folder: Path) -> None:
    """Write genome, windows and biosamples."""
    unfinished = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    rng = np.random.default_rng(0)
    chroms = ["chr1", "chr2", "chr3"]
    lengths = dict(zip(chroms, (CHROM_BP, CHROM_BP, WINDOW_BP), strict=True))
    with (unfinished / "genome.fa").open("wb") as file:
        for chrom, length in lengths.items():
            letters = rng.choice(np.frombuffer(b"ACGT", np.uint8), length)
            file.write(b">%s\n%s\n" % (chrom.encode(), letters.tobytes()))
    pysam.faidx(str(unfinished / "genome.fa"))
    rows = [
        (chrom, start, start + WINDOW_BP, split, chrom)
        for chrom, split in zip(chroms, ("select", "tune", "test"), strict=True)
        for start in range(0, lengths[chrom] - WINDOW_BP + 1, WINDOW_BP)
    ]
    columns = ["chrom", "start", "end", "split", "block"]
    table = pd.DataFrame(rows, columns=columns)
    table.to_csv(unfinished / "windows.tsv", sep="\t", index=False)
    for b in range(N_BIOSAMPLES):
        writer = pybigtools.open(str(unfinished / f"sample{b}.bw"), "w")
        writer.write(lengths, cut_sites(lengths, rng))
    (unfinished / "peaks.bed").write_text("chr1\t0\t100\n")
    motifs = jaspar_vertebrates()[:2]
    write_meme(unfinished / "motifs.meme", motifs)
    activity = pd.DataFrame({"ID": [m.id for m in motifs], "LOG_EVALUE": [-1.0, -2.0]})
    activity.to_csv(unfinished / "activity.tsv", sep="\t", index=False)
    unfinished.rename(folder)


def cut_sites(
    lengths: dict[str, int], rng: np.random.Generator
) -> Iterator[tuple[str, int, int, float]]:
    """Yield positions with the number of cuts there."""
    for chrom, length in lengths.items():
        rate = np.full(-(-length // 1000), OTHER_RATE)
        rate[rng.random(len(rate)) < PEAK_SHARE] = PEAK_RATE
        n = rng.binomial(1000, rate)
        cuts = np.repeat(1000 * np.arange(len(n)), n) + rng.integers(0, 1000, n.sum())
        position, count = np.unique(cuts[cuts < length], return_counts=True)
        for start, value in zip(position.tolist(), count.tolist(), strict=True):
            yield chrom, start, start + 1, float(value)


if __name__ == "__main__":
    main()
