"""Prepare real input: 65 regions of hg38 with DNase-seq tracks of ten biosamples.

    python scripts/prepare_hg38_dnase.py SOURCE OUTPUT

SOURCE holds the folders ``hg38_dnase_windows65`` (sequence and tracks, from the test
data of calico/baskerville; ENCODE experiments), ``ncbi_genes_grch38`` and
``go_bp_2021_gmt``. OUTPUT receives what the tissue files of
``notebooks/tissues/hg38_dnase`` name, each file after the accession of its track, and
``tracks.tsv`` with the scale of every track.

Each region carries tracks over its inner 65,536 bp, which are tiled into windows of
8,192 bp. A region is a block, and whole chromosomes go to a split.

Peaks are the strongest 3 % of a track's 128-bp tokens, neighbors merged. Strength is
coverage divided by background, which is the median token of the track or of the region,
whichever is larger: the region's is higher where copies are gained or all is open.
Motif activity tests the summit tokens of a track's peaks against those of all tracks,
so a motif scores that this biosample uses more than others do.
"""

from __future__ import annotations

import argparse
import gzip
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pybigtools

from helpers import motifs
from helpers.windows import TOKEN_BP, Genome, read_windows

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "_build" / "data" / "hg38_dnase"
WINDOW_BP = 8192
# 38, 10 and 17 of the 65 regions; chromosomes not named here are for selection.
CHROMOSOMES = {
    "tune": ("chr5", "chr11", "chr12"),
    "test": ("chr1", "chr3", "chr9", "chr16"),
}
PEAK_SHARE = 0.03  # of the tokens of a track
TOKEN_SIGNAL = 3.0  # mean sum of a token after scaling, as in the simulated world
MOTIF_P_VALUE = 1e-4

TRACKS = "hg38_dnase_windows65"
SEQUENCE = ("windows.fa.gz", "windows.fa.gz.fai", "windows.fa.gz.gzi")
GENES = "ncbi_genes_grch38/genes_protein_coding_GRCh38_NCBI_2016-02.tsv.gz"
GENE_SETS = "go_bp_2021_gmt/GO_Biological_Process_2021.gmt.gz"

_log = logging.getLogger(__name__)


def default_source() -> Path:
    """Return ``$CHROMATIN_SHARED_DATA``, or the sibling folder ``shared/data``."""
    return Path(
        os.environ.get("CHROMATIN_SHARED_DATA") or ROOT.parent / "shared" / "data"
    )


def read_source(source: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Check the source folder; read its regions and its tracks.

    Returns
    -------
    regions : pandas.DataFrame
        ``chrom``, ``start``, ``end`` of the parts that carry tracks.
    tracks : pandas.DataFrame
        ``file_accession``, ``experiment``, ``description``, ``bigwig``.

    Raises
    ------
    FileNotFoundError
        If files are missing; all are listed.
    ValueError
        If windows do not tile a region.
    """
    folder = source / TRACKS
    needed = [folder / n for n in ("windows.bed", "dnase_tracks.tsv", *SEQUENCE)]
    needed += [source / GENES, source / GENE_SETS]
    missing = [str(path) for path in needed if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"{source}: files not found: {', '.join(missing)}")
    tracks = pd.read_csv(folder / "dnase_tracks.tsv", sep="\t")
    missing = [name for name in tracks["bigwig"] if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder}: tracks not found: {', '.join(missing)}")
    regions = pd.read_csv(
        folder / "windows.bed",
        sep="\t",
        header=None,
        usecols=[0, 5, 6],
        names=["chrom", "start", "end"],
    )
    lengths = sorted(set(regions["end"] - regions["start"]))
    if len(lengths) != 1 or lengths[0] % WINDOW_BP:
        raise ValueError(
            f"{folder / 'windows.bed'}: in all regions tracks must span one and the "
            f"same multiple of {WINDOW_BP} bp; found {lengths}"
        )
    order = ["chrom", "start"]
    return regions.sort_values(order, ignore_index=True), tracks


def tile_windows(regions: pd.DataFrame) -> pd.DataFrame:
    """Tile regions into windows with their split and block."""
    per_region = int(regions["end"][0] - regions["start"][0]) // WINDOW_BP
    windows = regions.loc[regions.index.repeat(per_region)].reset_index()
    windows["start"] += WINDOW_BP * np.tile(np.arange(per_region), len(regions))
    windows["end"] = windows["start"] + WINDOW_BP
    split_of = {c: split for split, chroms in CHROMOSOMES.items() for c in chroms}
    windows["split"] = windows["chrom"].map(split_of).fillna("select")
    windows["block"] = "region" + (windows["index"] + 1).astype(str)
    return windows.drop(columns="index")


def token_coverage(path: Path, regions: pd.DataFrame) -> np.ndarray:
    """Return the mean coverage of every token, shape (n_regions, n_tokens)."""
    track = pybigtools.open(str(path))
    return np.stack(
        [
            track.values(row.chrom, row.start, row.end, fillna=0.0)
            .reshape(-1, TOKEN_BP)
            .mean(axis=1)
            for row in regions.itertuples()
        ]
    )


def call_peaks(coverage: np.ndarray, regions: pd.DataFrame) -> pd.DataFrame:
    """Return runs of the strongest tokens relative to their background.

    Parameters
    ----------
    coverage : numpy.ndarray, shape (n_regions, n_tokens)
        Mean coverage of every token.
    regions : pandas.DataFrame
        ``chrom``, ``start``, ``end`` of the rows of ``coverage``.

    Returns
    -------
    pandas.DataFrame
        ``chrom``, ``start``, ``end``, ``name``, ``fold`` over background at the
        strongest token and ``summit``, the start of that token.
    """
    background = np.maximum(
        np.median(coverage), np.median(coverage, axis=1, keepdims=True)
    )
    fold = coverage / background
    is_peak = fold >= np.quantile(fold, 1 - PEAK_SHARE)
    edges = np.diff(np.pad(is_peak.astype(int), ((0, 0), (1, 1))), axis=1)
    region, first = np.nonzero(edges == 1)
    past = np.nonzero(edges == -1)[1]
    summit = [
        a + fold[r, a:b].argmax() for r, a, b in zip(region, first, past, strict=True)
    ]
    start = regions["start"].to_numpy()[region]
    return pd.DataFrame(
        {
            "chrom": regions["chrom"].to_numpy()[region],
            "start": start + first * TOKEN_BP,
            "end": start + past * TOKEN_BP,
            "name": [f"peak{i + 1}" for i in range(len(region))],
            "fold": fold[region, summit].round(2),
            "summit": start + np.array(summit) * TOKEN_BP,
        }
    )


def write_motif_activity(folder: Path, peaks: dict[str, pd.DataFrame]) -> None:
    """Write the motif file, and a SEA table for every track.

    The motifs are those of JASPAR that can be told from chance, that is reach the
    p-value of a hit; shorter ones would never have one.
    """
    reachable = [
        motif
        for motif in motifs.jaspar_vertebrates()
        if np.isfinite(motifs.score_threshold(motif, MOTIF_P_VALUE))
    ]
    motifs.write_meme(
        folder / "motifs.meme",
        reachable,
        header_comment="JASPAR 2026 CORE vertebrates, CC BY 4.0, "
        "https://jaspar.elixir.no\n"
        f"Left out: profiles no word of which reaches p <= {MOTIF_P_VALUE:g}.",
    )
    summits = pd.concat([table[["chrom", "summit"]] for table in peaks.values()])
    union = pd.MultiIndex.from_frame(summits.drop_duplicates())
    genome = Genome(folder / SEQUENCE[0])
    codes = np.stack([genome.codes(c, s, s + TOKEN_BP) for c, s in union])
    hits = motifs.count_hits(codes, reachable, p_value=MOTIF_P_VALUE)
    for accession, table in peaks.items():
        own = union.get_indexer(pd.MultiIndex.from_frame(table[["chrom", "summit"]]))
        sea = motifs.sea_table(hits[own], hits, reachable, p_value=MOTIF_P_VALUE)
        sea.to_csv(folder / f"{accession}.motifs.tsv", sep="\t", index=False)


def write_annotation(source: Path, folder: Path) -> None:
    """Write genes as BED6 and gene sets as plain GMT."""
    genes = pd.read_csv(source / GENES, sep="\t")
    genes = genes.rename(columns={"#chrom": "chrom", "start0": "start"})
    genes = genes[["chrom", "start", "end", "symbol", "strand"]]
    genes.insert(4, "score", 0)
    genes.to_csv(folder / "genes.bed", sep="\t", header=False, index=False)
    with gzip.open(source / GENE_SETS) as packed:
        (folder / "go_bp.gmt").write_bytes(packed.read())


def prepare(source: Path, output: Path) -> Path:
    """Write the folder that the tissue files read.

    The folder appears complete or not at all: files are written beside it and the
    whole is renamed at the end.

    Parameters
    ----------
    source : Path
        Folder of the source data.
    output : Path
        Folder to make; an existing one is replaced.

    Returns
    -------
    Path
        ``output``.
    """
    regions, tracks = read_source(source)
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name in SEQUENCE:  # indices after the file they index
        shutil.copyfile(source / TRACKS / name, partial / name)
    windows_file = partial / "windows.tsv"
    tile_windows(regions).to_csv(windows_file, sep="\t", index=False)
    read_windows(windows_file, window_bp=WINDOW_BP)  # raises if a split is not sound
    write_annotation(source, partial)
    peaks, summary = {}, []
    for track in tracks.itertuples():
        bigwig = partial / f"{track.file_accession}.bw"
        shutil.copyfile(source / TRACKS / track.bigwig, bigwig)
        coverage = token_coverage(bigwig, regions)
        table = call_peaks(coverage, regions)
        peaks[track.file_accession] = table
        table.drop(columns="summit").to_csv(
            partial / f"{track.file_accession}.peaks.bed",
            sep="\t",
            header=False,
            index=False,
        )
        summary.append(
            {
                "file_accession": track.file_accession,
                "experiment": track.experiment,
                "description": track.description,
                "mean_coverage": coverage.mean(),
                "scale": TOKEN_SIGNAL / (coverage.mean() * TOKEN_BP),
                "n_peaks": len(table),
            }
        )
        _log.info("%s: %d peaks", track.description, len(table))
    pd.DataFrame(summary).to_csv(
        partial / "tracks.tsv", sep="\t", index=False, float_format="%.4g"
    )
    write_motif_activity(partial, peaks)
    shutil.rmtree(output, ignore_errors=True)
    partial.rename(output)
    return output


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", nargs="?", type=Path, default=default_source())
    parser.add_argument("output", nargs="?", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    try:
        prepare(arguments.source, arguments.output)
    except (FileNotFoundError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
