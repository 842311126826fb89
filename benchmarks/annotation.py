"""Measure the time and the memory that annotating thousands of features takes.

    python benchmarks/annotation.py

makes regions with random sequence, an 18-state segmentation, genes and gene sets of the
size of human ones, and random features; then it times every step: states, the scan for
all motifs of JASPAR, the motif test with background matched in GC content and
accessibility, families, processes over regions and genes, and the same for matched
random features, whose findings are printed too: a sound test has none in 95% of such
runs. With `homer2` on PATH one set of targets is given to it as well, and compared.
Peak memory is that of the process.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pandas as pd

from helpers import motifs, ontology, states

CHROM_BP = 125_000_000
N_CHROMOSOMES = 24
REGION_BP = 200
N_GENES = 20_000
STATE_SHARE = np.array([1, 1, 1, 1, 4, 12, 1, 1, 1, 1, 4, 1, 3, 1, 1, 4, 10, 52])
HOMER_TARGETS, HOMER_MOTIFS = 500, 100


def main() -> None:
    """Print the time of every step and the peak memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--features", type=int, default=4096)
    parser.add_argument("--regions", type=int, default=10_000)
    parser.add_argument("--per-feature", type=int, default=200)
    parser.add_argument("--terms", type=int, default=3810)
    arguments = parser.parse_args()
    rng = np.random.default_rng(20_260)
    regions, codes = make_regions(rng, arguments.regions)
    segments = make_segments(rng)
    genes, gene_sets, sizes = make_genes(rng, arguments.terms)
    openness = rng.exponential(1, len(regions))
    membership = np.zeros((arguments.features, len(regions)), dtype=bool)
    for own in membership:
        own[rng.choice(len(regions), arguments.per_feature, replace=False)] = True
    collection = motifs.jaspar_vertebrates()
    print(
        f"{arguments.features} features x {len(regions)} regions of {REGION_BP} bp, "
        f"{arguments.per_feature} each; {len(collection)} motifs, "
        f"{segments['state'].nunique()} states, {arguments.terms} terms"
    )
    begun, used = time.perf_counter(), time.process_time()
    gc = motifs.gc_content(codes)
    with timed("states: folds of ChromHMM"):
        states.overlap_enrichment(regions, membership, segments)
    with timed("states: test over units"):
        states.unit_enrichment(regions, membership, segments)
    with timed("motifs: scan"), warnings.catch_warnings():
        warnings.simplefilter("ignore", motifs.UnreachableMotifWarning)
        hits = motifs.count_hits(codes, collection)
    matched = {"gc": gc, "accessibility": openness}
    with timed("motifs: test of all features"):
        table = motifs.enrichment(hits, membership, collection, **matched)
    with timed("motifs: families"):
        families = motifs.best_per_family(table)
    del table
    report("motif families", families, arguments.features)
    del families
    with timed("processes"):
        terms = ontology.enrichment(
            regions, membership, genes, gene_sets, sizes, max_p_value=0.05
        )
    report("processes", terms, arguments.features)
    with timed("matched random features: draw"):
        strata = motifs.matching_strata(gc, openness)
        random = motifs.matched_random_features(membership, strata, random_state=rng)
    with timed("matched random features: states"):
        of_states = states.unit_enrichment(regions, random, segments)
    report("states of random features", of_states, arguments.features)
    with timed("matched random features: motifs"):
        table = motifs.enrichment(hits, random, collection, **matched)
        families = motifs.best_per_family(table)
    del table
    report("motif families of random features", families, arguments.features)
    with timed("matched random features: processes"):
        terms = ontology.enrichment(
            regions, random, genes, gene_sets, sizes, max_p_value=0.05
        )
    report("processes of random features", terms, arguments.features)
    wall, cpu = time.perf_counter() - begun, time.process_time() - used
    print(f"{'all of this':<44s} {wall:8.1f} s, {cpu:6.1f} s CPU")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{'peak memory':<44s} {peak:8.2f} GiB")
    if shutil.which("homer2"):
        compare_with_homer(codes)
    else:
        print("homer2 is not on PATH: not compared")


@contextmanager
def timed(step: str) -> Iterator[None]:
    """Print how long a step took: on the clock, and of processor time."""
    begun, used = time.perf_counter(), time.process_time()
    yield
    wall, cpu = time.perf_counter() - begun, time.process_time() - used
    print(f"{step:<44s} {wall:8.1f} s, {cpu:6.1f} s CPU", flush=True)


def report(what: str, table: pd.DataFrame, n_features: int) -> None:
    """Print the share of features with any q-value below 0.05."""
    n = table.loc[table["q_value"] < 0.05, "feature"].nunique()
    print(f"    {what}: {n} of {n_features} have any q < 0.05")


def make_regions(
    rng: np.random.Generator, n_regions: int
) -> tuple[pd.DataFrame, np.ndarray]:
    """Draw regions on a grid and their sequence, of varied GC content."""
    slots = CHROM_BP // 1000
    at = np.sort(rng.choice(slots * N_CHROMOSOMES, n_regions, replace=False))
    regions = pd.DataFrame(
        {
            "chrom": [f"chr{i + 1:02d}" for i in at // slots],
            "start": at % slots * 1000,
            "end": at % slots * 1000 + REGION_BP,
        }
    )
    share = rng.beta(20, 24, (n_regions, 1))
    is_strong = rng.random((n_regions, REGION_BP)) < share
    strong = rng.integers(1, 3, is_strong.shape)
    weak = 3 * rng.integers(0, 2, is_strong.shape)
    return regions, np.where(is_strong, strong, weak).astype(np.uint8)


def make_segments(rng: np.random.Generator) -> pd.DataFrame:
    """Cover the genome with segments of 18 states, 200 bp to 20 kb long."""
    names = list(states.ROADMAP_18)
    tables = []
    for i in range(N_CHROMOSOMES):
        ends = np.cumsum(rng.integers(1, 100, CHROM_BP // 10_000) * 200)
        ends = ends[ends < CHROM_BP]
        state = rng.choice(len(names), len(ends), p=STATE_SHARE / STATE_SHARE.sum())
        start = np.concatenate([[0], ends[:-1]])
        table = pd.DataFrame({"chrom": f"chr{i + 1:02d}", "start": start, "end": ends})
        tables.append(table.assign(state=[names[x] for x in state]))
    segments = pd.concat(tables, ignore_index=True)
    segments["state"] = pd.Categorical(segments["state"], names, ordered=True)
    return segments


def make_genes(
    rng: np.random.Generator, n_terms: int
) -> tuple[pd.DataFrame, dict[str, list[str]], dict[str, int]]:
    """Draw genes and gene sets with sizes as in Gene Ontology, 5 to 500."""
    tss = rng.integers(0, CHROM_BP, N_GENES)
    chrom = rng.integers(0, N_CHROMOSOMES, N_GENES)
    genes = pd.DataFrame(
        {
            "chrom": [f"chr{i + 1:02d}" for i in chrom],
            "tss": tss,
            "strand": rng.choice(["+", "-"], N_GENES),
            "symbol": [f"GENE{i}" for i in range(N_GENES)],
        }
    )
    n_members = np.clip(np.exp(rng.normal(2.9, 1.0, n_terms)), 8, 480).astype(int)
    symbols = genes["symbol"].to_numpy()
    gene_sets = {
        f"term {i}": list(rng.choice(symbols, n, replace=False))
        for i, n in enumerate(n_members)
    }
    sizes = {f"chr{i + 1:02d}": CHROM_BP for i in range(N_CHROMOSOMES)}
    return genes, gene_sets, sizes


def compare_with_homer(codes: np.ndarray) -> None:
    """Give targets, background and motifs to `homer2`, and compare all numbers."""
    collection = [
        replace(motif, threshold=motifs.score_threshold(motif) * np.log(2))
        for motif in motifs.jaspar_vertebrates()
        if motif.width >= 8
    ][:HOMER_MOTIFS]
    is_target = np.zeros(len(codes), dtype=bool)
    is_target[:HOMER_TARGETS] = True
    arguments = (codes[is_target], codes[~is_target], collection)
    with timed(f"HOMER's rule here, {len(collection)} motifs"):
        own = motifs.homer_enrichment(*arguments)
    with timed(f"homer2, {len(collection)} motifs"):
        its = motifs.run_homer2(*arguments)
    for column in ("target_hits", "background_hits", "log_p"):
        values = np.trunc(own[column]) if column != "log_p" else own[column]
        worst = np.abs(values - its[column]).max()
        print(f"    largest difference of {column}: {worst:g}")


if __name__ == "__main__":
    main()
