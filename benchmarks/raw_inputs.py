"""Measure how fast raw data become inputs of the model, and in how much memory.

Simulates read pairs with random bases and qualities (or takes files of your own) and
prints, for a BAM and for a fragment file: the floor, which is to go through the file
and do nothing; reading the cut sites; and the whole way to the bigWig. Every
measurement runs in a process of its own, so that its peak memory is its own. Then it
computes the motif activity of random peaks, with MEME's `sea` too if it is on PATH, and
prints how far the two agree.
"""

from __future__ import annotations

import argparse
import gzip
import multiprocessing
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pysam

from helpers.cut_sites import write_cut_sites
from helpers.cut_sites._sources import Tally, open_source
from helpers.motifs import (
    jaspar_vertebrates,
    peak_motif_activity,
    run_sea,
    write_meme,
)
from helpers.windows import Genome

READ_BP = 76
CHROMOSOMES = {"chr1": 60_000_000, "chr2": 40_000_000}


def simulate(folder: Path, n_pairs: int, seed: int = 0) -> tuple[Path, Path]:
    """Write the same random pairs as a BAM and as a fragment file."""
    rng = np.random.default_rng(seed)
    bases = rng.choice(list(b"ACGT"), 1_000_000).astype(np.uint8).tobytes().decode()
    quality = rng.choice(list(b"#,:F"), 1_000_000, p=[0.02, 0.05, 0.13, 0.8])
    quality = quality.astype(np.uint8).tobytes().decode()
    bam, sam = folder / f"{n_pairs}.bam", folder / f"{n_pairs}.sam"
    fragments = folder / f"{n_pairs}.tsv.gz"
    with sam.open("w") as out, pysam.BGZFile(str(fragments), "wb") as table:
        out.write("@HD\tVN:1.6\tSO:coordinate\n")
        for chrom, size in CHROMOSOMES.items():
            out.write(f"@SQ\tSN:{chrom}\tLN:{size}\n")
        for chrom, size in CHROMOSOMES.items():
            n = n_pairs * size // sum(CHROMOSOMES.values())
            length = rng.integers(READ_BP, 600, n)
            start = np.sort(rng.integers(0, size - 600, n))
            barcode = rng.integers(10**15, 10**16, n).tolist()
            rows = zip(start.tolist(), (start + length).tolist(), barcode, strict=True)
            for s, e, b in rows:
                table.write(f"{chrom}\t{s + 4}\t{e - 5}\t{b}-1\t1\n".encode())
            second = start + length - READ_BP
            place = np.concatenate([start, second])
            order = np.argsort(place, kind="stable")
            columns = (
                np.tile(np.arange(n), 2)[order],
                np.repeat([99, 147], n)[order],
                place[order] + 1,
                np.concatenate([second, start])[order] + 1,
                np.concatenate([length, -length])[order],
                rng.integers(0, 10**6 - READ_BP, 2 * n),
            )
            for i, flag, at, mate, span, k in zip(
                *(column.tolist() for column in columns), strict=True
            ):
                out.write(
                    f"A00261:{chrom}:HJW2:{i % 4}:{i}\t{flag}\t{chrom}\t{at}\t42\t"
                    f"{READ_BP}M\t=\t{mate}\t{span}\t{bases[k : k + READ_BP]}\t"
                    f"{quality[k : k + READ_BP]}\n"
                )
    pysam.view("-b", "-o", str(bam), str(sam), catch_stdout=False)
    sam.unlink()
    pysam.index(str(bam))
    pysam.tabix_index(str(fragments), preset="bed", force=True)
    return bam, fragments


def iterate_bam(path: Path) -> int:
    """Go through the reads of a BAM with pysam."""
    with pysam.AlignmentFile(str(path), "rb", threads=2) as bam:
        return sum(1 for _ in bam) // 2


def iterate_gzip(path: Path) -> int:
    """Decompress a file and count its lines."""
    with gzip.open(path) as file:
        n = 0
        while block := file.read(1 << 22):
            n += block.count(b"\n")
        return n


def sizes_of(path: Path) -> dict[str, int]:
    """Return chromosome lengths: of the header, or of the simulation."""
    if path.suffix != ".bam":
        return CHROMOSOMES
    with pysam.AlignmentFile(str(path)) as bam:
        return dict(zip(bam.references, bam.lengths, strict=True))


def read_sites(path: Path) -> int:
    """Read the cut sites of a file."""
    tally = Tally()
    source = open_source(path, sizes_of(path), shifted_fragments=True)
    for _, stretches in source.cuts(tally):
        for _ in stretches:
            pass
    return tally.n_fragments


def write_track(path: Path) -> int:
    """Turn a file into a bigWig."""
    output = path.with_name(f"{path.stem}.bw")
    return write_cut_sites(path, output, genome_sizes=sizes_of(path)).n_fragments


def _measured(work: Callable[[Path], int], path: Path) -> tuple[int, float, float]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    n = work(path)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return n, seconds, (peak - before) / 1024


def motif_activity(folder: Path, n_peaks: int) -> None:
    """Print times of motif enrichment in random peaks that hold one motif each."""
    rng = np.random.default_rng(0)
    collection = jaspar_vertebrates()[::4]
    codes = rng.integers(0, 4, 300 * 2 * n_peaks, dtype=np.uint8)
    for i in range(n_peaks):
        motif = collection[int(rng.integers(20))]
        site = [rng.choice(4, p=row) for row in motif.probabilities]
        codes[300 * i + 150 : 300 * i + 150 + motif.width] = site
    genome = folder / "genome.fa"
    text = np.frombuffer(b"ACGT", dtype=np.uint8)[codes].tobytes().decode()
    genome.write_text(f">chr1\n{text}\n")
    pysam.faidx(str(genome))
    starts = 300 * np.arange(2 * n_peaks)
    for name, some in (("peaks", starts[:n_peaks]), ("background", starts)):
        lines = [f"chr1\t{start}\t{start + 300}\n" for start in some]
        (folder / f"{name}.bed").write_text("".join(lines))
    write_meme(folder / "motifs.meme", collection)
    given = (
        folder / "peaks.bed",
        folder / "background.bed",
        Genome(genome),
        folder / "motifs.meme",
    )
    work = 128 * 3 * n_peaks * len(collection) / 1e6
    found = {}
    if shutil.which("sea"):
        start = time.perf_counter()
        run_sea(*given, folder / "sea.tsv")
        found["sea"] = time.perf_counter() - start
    os.environ["PATH"] = ""
    start = time.perf_counter()
    peak_motif_activity(*given, folder / "own.tsv")
    found["this package"] = time.perf_counter() - start
    for what, seconds in found.items():
        print(
            f"motif activity with {what}: {n_peaks} peaks, {2 * n_peaks} background, "
            f"{len(collection)} motifs: {seconds:.1f} s, {work / seconds:.0f} million "
            "bases x motifs / s"
        )
    if "sea" in found:
        sea, own = (
            pd.read_csv(folder / f"{name}.tsv", sep="\t", comment="#", index_col="ID")
            for name in ("sea", "own")
        )
        own = own.loc[sea.index]
        same = (own["TP"] == sea["TP"]) & (own["FP"] == sea["FP"])
        print(
            f"motifs with the counts of sea: {same.mean():.1%}; correlation of -ln E: "
            f"{own['LOG_EVALUE'].corr(sea['LOG_EVALUE']):.6f}"
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, nargs="+", default=[500_000, 2_000_000])
    parser.add_argument("--peaks", type=int, default=3000)
    parser.add_argument("--bam", type=Path, help="a BAM of your own, with index")
    arguments = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    print("| file | step | fragments | s | million / s | memory added, MiB |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.bam:
            files = [(arguments.bam, iterate_bam)]
        else:
            with spawn.Pool(1) as pool:  # a process inherits the peak of its parent
                made = [
                    pool.apply(simulate, (Path(scratch), n)) for n in arguments.pairs
                ]
            files = [
                (path, floor)
                for pair in made
                for path, floor in zip(pair, (iterate_bam, iterate_gzip), strict=True)
            ]
        for path, floor in files:
            for work in (floor, read_sites, write_track):
                with spawn.Pool(1) as pool:
                    n, seconds, peak = pool.apply(_measured, (work, path))
                print(
                    f"| {path.name} | {work.__doc__.splitlines()[0]} | {n} | "
                    f"{seconds:.2f} | {n / seconds / 1e6:.2f} | {peak:.0f} |",
                    flush=True,
                )
        motif_activity(Path(scratch), arguments.peaks)


if __name__ == "__main__":
    main()
