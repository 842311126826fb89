"""Windows x biosamples: sequence, ATAC track and motif activity as model inputs.

Windows are 0-based and half-open; sequence is one-hot ``(L, 4)`` in the order A, C, G, T
with N as zeros; tracks are sums over 4-bp bins, scaled and soft-clipped as the authors of
EpiBERT do (Javed et al. 2025, Cell Genomics 5:100762); a token is 128 bp.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pybigtools
import pysam

from helpers import motifs
from helpers.tissues import Biosample, Tissue

__all__ = [
    "BIN_BP",
    "SPLITS",
    "TOKEN_BP",
    "Genome",
    "WindowDataset",
    "read_windows",
    "soft_clip",
    "token_targets",
]

BIN_BP = 4
TOKEN_BP = 128
SPLITS = ("select", "tune", "test")
_INPUT_CLIP = 150.0  # per 4-bp bin
_TARGET_CLIP = 2000.0  # per token
_WIDEN_BP = 5  # on both sides of a cut site
_CODE = np.full(256, 4, dtype=np.uint8)
for _i, _letter in enumerate("ACGT"):
    _CODE[[ord(_letter), ord(_letter.lower())]] = _i
_ONE_HOT = np.vstack([np.eye(4, dtype=np.float32), np.zeros((1, 4), np.float32)])


def read_windows(path: str | Path, *, window_bp: int) -> pd.DataFrame:
    """Read the windows of a study.

    Parameters
    ----------
    path : str or Path
        TSV with columns ``chrom``, ``start``, ``end``, ``split``, ``block``.
    window_bp : int
        Length that the model needs.

    Returns
    -------
    pandas.DataFrame
        The windows in file order. ``split`` is ``select`` (train dictionaries, choose
        features), ``tune`` (choose strengths) or ``test`` (report); ``block`` names
        the unit that is resampled.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If columns are missing, a window has another length, a split is unknown or
        empty, a chromosome is in two splits, or windows overlap.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"windows file not found: {path}")
    table = pd.read_csv(path, sep="\t", dtype={"chrom": str, "block": str})
    columns = ["chrom", "start", "end", "split", "block"]
    missing = [c for c in columns if c not in table]
    if missing:
        raise ValueError(f"{path}: columns {missing} are missing; found {list(table)}")
    table = table[columns]
    length = table["end"] - table["start"]
    if (length != window_bp).any():
        row = int((length != window_bp).to_numpy().argmax())
        raise ValueError(
            f"{path}: line {row + 2}: the model needs windows of {window_bp} bp; "
            f"found {length.iloc[row]}"
        )
    counts = table["split"].value_counts()
    if set(counts.index) != set(SPLITS):
        raise ValueError(
            f"{path}: column split must use {list(SPLITS)}; found {sorted(counts.index)}"
        )
    per_chrom = table.groupby("chrom")["split"].nunique()
    if (per_chrom > 1).any():
        mixed = sorted(per_chrom.index[per_chrom > 1])
        raise ValueError(f"{path}: chromosomes in more than one split: {mixed}")
    ordered = table.sort_values(["chrom", "start"])
    same = ordered["chrom"].eq(ordered["chrom"].shift())
    overlap = same & (ordered["start"] < ordered["end"].shift())
    if overlap.any():
        raise ValueError(f"{path}: windows overlap, such as line {overlap.idxmax() + 2}")
    return table


class Genome:
    """Random access to a FASTA file of chromosomes or of regions.

    Records may be named ``chrom`` or ``chrom:start-end`` (0-based, half-open).

    Parameters
    ----------
    path : str or Path
        FASTA, plain or bgzipped, with ``.fai``.

    Raises
    ------
    FileNotFoundError
        If the file or its index does not exist.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        for needed in (self.path, Path(f"{self.path}.fai")):
            if not needed.is_file():
                raise FileNotFoundError(f"genome file not found: {needed}")
        self._fasta = pysam.FastaFile(str(self.path))
        self._regions: dict[str, list[tuple[int, int, str]]] = {}
        for name, length in zip(
            self._fasta.references, self._fasta.lengths, strict=True
        ):
            chrom, _, span = name.rpartition(":")
            first, dash, last = span.partition("-")
            if chrom and dash and first.isdigit() and last.isdigit():
                region = (int(first), int(last), name)
            else:
                chrom, region = name, (0, length, name)
            self._regions.setdefault(chrom, []).append(region)

    @property
    def chromosomes(self) -> list[str]:
        """Names of the chromosomes that have sequence."""
        return list(self._regions)

    def codes(self, chrom: str, start: int, end: int) -> np.ndarray:
        """Return base codes 0-3 for A, C, G, T and 4 for N, shape (end - start,).

        Bases past either end of a record are N, as long as the region touches it.

        Raises
        ------
        ValueError
            If the chromosome is absent or no record holds the middle of the region.
        """
        if chrom not in self._regions:
            raise ValueError(
                f"{self.path}: chromosome {chrom!r} is absent; found "
                f"{self.chromosomes[:5]} ({len(self._regions)} in all)"
            )
        for first, last, record in self._regions[chrom]:
            if first <= (start + end) // 2 < last:
                left, right = max(start, first), min(end, last)
                text = self._fasta.fetch(record, left - first, right - first)
                codes = np.full(end - start, 4, dtype=np.uint8)
                letters = np.frombuffer(text.encode("ascii"), dtype=np.uint8)
                codes[left - start : right - start] = _CODE[letters]
                return codes
        raise ValueError(f"{self.path}: {chrom}:{start}-{end} is not in any record")


def soft_clip(values: np.ndarray, limit: float) -> np.ndarray:
    """Replace values above ``limit`` by ``limit + sqrt(value - limit)``."""
    return np.where(
        values > limit, limit + np.sqrt(np.maximum(values - limit, 0)), values
    )


def token_targets(track: np.ndarray) -> np.ndarray:
    """Sum a raw track over tokens, soft-clipped as EpiBERT's target.

    Parameters
    ----------
    track : numpy.ndarray, shape (..., n_bins)
        Scaled 4-bp track without soft clip.

    Returns
    -------
    numpy.ndarray, shape (..., n_bins // 32)
        Summed signal per 128-bp token.
    """
    per_token = TOKEN_BP // BIN_BP
    sums = track.reshape(*track.shape[:-1], -1, per_token).sum(axis=-1)
    return soft_clip(sums, _TARGET_CLIP)


class WindowDataset:
    """Model inputs of windows x biosamples, read from field formats.

    Parameters
    ----------
    tissues : sequence of Tissue
        Tissues that share genome, windows and motifs.
    window_bp : int
        Window length of the model.
    replicates : bool, default=False
        Whether to include replicate biosamples after the pairs.

    Attributes
    ----------
    windows : pandas.DataFrame
        ``chrom``, ``start``, ``end``, ``split``, ``block``.
    biosamples : pandas.DataFrame
        ``name``, ``lineage``, ``context``, ``replicate``, ``seen_in_training``.
    motif_activity : numpy.ndarray, shape (n_biosamples, n_motifs)
        Min-max scaled motif activity.

    Raises
    ------
    FileNotFoundError, ValueError
        If a file is missing, truncated, of other motifs or lacks a chromosome.
    """

    def __init__(
        self, tissues: Sequence[Tissue], *, window_bp: int, replicates: bool = False
    ):
        self.tissues = list(tissues)
        self.window_bp = window_bp
        first = self.tissues[0]
        self.windows = read_windows(first.windows, window_bp=window_bp)
        self.genome = Genome(first.genome)
        samples = [b for t in self.tissues for b in (t.in_vitro, t.in_vivo)]
        if replicates:
            samples += [b for t in self.tissues for b in t.replicates]
        self._samples: list[Biosample] = samples
        self.biosamples = pd.DataFrame(
            {
                "name": [b.name for b in samples],
                "lineage": [b.lineage for b in samples],
                "context": [b.context for b in samples],
                "replicate": [b.replicate for b in samples],
                "seen_in_training": [b.seen_in_training for b in samples],
            }
        )
        self._tracks = [_Track(b) for b in samples]
        needed = set(self.windows["chrom"])
        for track in self._tracks:
            track.require(needed)
        absent = sorted(needed - set(self.genome.chromosomes))
        if absent:
            raise ValueError(f"{first.genome}: chromosomes {absent} are absent")
        order = sorted(m.id for m in motifs.read_motifs(first.motifs))
        self.motif_activity = np.stack(
            [_motif_activity(b.motif_activity, order) for b in samples]
        )
        self._peaks = [read_bed(b.peaks) for b in samples]

    @property
    def n_tokens(self) -> int:
        """Tokens per window."""
        return self.window_bp // TOKEN_BP

    def windows_of(self, *splits: str) -> np.ndarray:
        """Return the indices of the windows of some splits."""
        return np.flatnonzero(self.windows["split"].isin(splits))

    def codes(self, window: int, *, margin: int = 0) -> np.ndarray:
        """Return the base codes of a window and `margin` bp on both sides."""
        row = self.windows.iloc[window]
        start, end = int(row["start"]) - margin, int(row["end"]) + margin
        return self.genome.codes(row["chrom"], start, end)

    def sequence(self, windows: Sequence[int]) -> np.ndarray:
        """Return one-hot sequence, shape (n, window_bp, 4), float32."""
        return np.stack([_ONE_HOT[self.codes(w)] for w in windows])

    def track(self, windows: Sequence[int], biosample: int) -> np.ndarray:
        """Return the scaled track without soft clip, shape (n, window_bp / 4)."""
        rows = self.windows.iloc[list(windows)]
        adjacent = rows["chrom"].eq(rows["chrom"].shift()) & rows["start"].eq(
            rows["end"].shift()
        )
        parts = []  # one read per run of adjacent windows
        for _, run in rows.groupby((~adjacent).cumsum().to_numpy()):
            first, last = run["start"].iloc[0], run["end"].iloc[-1]
            bins = self._tracks[biosample].bins(run["chrom"].iloc[0], first, last)
            parts.append(bins.reshape(len(run), -1))
        return np.concatenate(parts)

    def atac(self, windows: Sequence[int], biosample: int) -> np.ndarray:
        """Return the track as the model's input, shape (n, window_bp / 4)."""
        return soft_clip(self.track(windows, biosample), _INPUT_CLIP)

    def target(self, windows: Sequence[int], biosample: int) -> np.ndarray:
        """Return the measured signal per token, shape (n, n_tokens)."""
        return token_targets(self.track(windows, biosample))

    def in_peak(self, biosample: int) -> np.ndarray:
        """Return which tokens overlap a peak, bool, shape (n_windows, n_tokens)."""
        peaks = self._peaks[biosample]
        inside = np.zeros((len(self.windows), self.n_tokens), dtype=bool)
        by_chrom = {c: p for c, p in peaks.groupby("chrom")}
        for i, row in enumerate(self.windows.itertuples()):
            here = by_chrom.get(row.chrom)
            if here is None:
                continue
            hit = here[(here["end"] > row.start) & (here["start"] < row.end)]
            first = (hit["start"].to_numpy() - row.start).clip(0) // TOKEN_BP
            last = (hit["end"].to_numpy() - 1 - row.start) // TOKEN_BP
            for a, b in zip(first, last, strict=True):
                inside[i, a : b + 1] = True
        return inside

    def token_table(self, windows: Sequence[int]) -> pd.DataFrame:
        """Return the genome positions of the tokens of some windows, in order."""
        rows = self.windows.iloc[list(windows)]
        start = rows["start"].to_numpy()[:, None] + TOKEN_BP * np.arange(self.n_tokens)
        return pd.DataFrame(
            {
                "chrom": np.repeat(rows["chrom"].to_numpy(), self.n_tokens),
                "start": start.ravel(),
                "end": start.ravel() + TOKEN_BP,
                "window": np.repeat(np.asarray(windows), self.n_tokens),
                "token": np.tile(np.arange(self.n_tokens), len(rows)),
                "block": np.repeat(rows["block"].to_numpy(), self.n_tokens),
            }
        )


def read_bed(path: str | Path) -> pd.DataFrame:
    """Read the first three columns of a BED file.

    Returns
    -------
    pandas.DataFrame
        ``chrom``, ``start``, ``end`` (0-based, half-open).

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If a line has fewer than three columns, a position is not an integer, or an
        end does not exceed its start.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"BED file not found: {path}")
    try:
        table = pd.read_csv(
            path,
            sep="\t",
            header=None,
            comment="#",
            usecols=[0, 1, 2],
            names=["chrom", "start", "end"],
            dtype={"chrom": str, "start": np.int64, "end": np.int64},
        )
    except (ValueError, pd.errors.ParserError) as error:
        raise ValueError(f"{path}: expected BED (chrom, start, end): {error}") from None
    bad = table["end"] <= table["start"]
    if bad.any():
        row = table[bad].iloc[0]
        raise ValueError(
            f"{path}: end must exceed start; found {row['chrom']}:{row['start']}-{row['end']}"
        )
    return table


def _motif_activity(path: Path, order: list[str]) -> np.ndarray:
    """Return scaled activity in identifier order; the motif file must agree."""
    table = motifs.read_sea(path)
    if list(table.index) != order:
        missing = sorted(set(order) - set(table.index))[:3]
        extra = sorted(set(table.index) - set(order))[:3]
        raise ValueError(
            f"{path}: motifs must be those of the motif file ({len(order)}); found "
            f"{len(table)}, missing {missing}, unexpected {extra}"
        )
    return motifs.motif_activity(table).to_numpy(np.float32)


class _Track:
    """A bigWig with the scale and kind its tissue file declares."""

    def __init__(self, biosample: Biosample):
        self.biosample = biosample
        try:
            self._file = pybigtools.open(str(biosample.signal))
            self._sizes = dict(self._file.chroms())
        except BaseException as error:  # pybigtools panics derive from BaseException
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise ValueError(
                f"{biosample.signal}: not a readable bigWig (truncated?): {error}"
            ) from None

    def require(self, chroms: set[str]) -> None:
        absent = sorted(chroms - set(self._sizes))
        if absent:
            raise ValueError(
                f"{self.biosample.signal}: chromosomes {absent} are absent; found "
                f"{sorted(self._sizes)[:5]} ({len(self._sizes)} in all)"
            )

    def bins(self, chrom: str, start: int, end: int) -> np.ndarray:
        """Return scaled sums over 4-bp bins; bases past the chromosome end are 0."""
        widen = _WIDEN_BP if self.biosample.signal_kind == "cut_sites" else 0
        first, last = max(start - widen, 0), min(end + widen, self._sizes[chrom])
        base = np.zeros(end - start + 2 * widen, dtype=np.float64)
        try:
            values = self._file.values(chrom, first, last, fillna=0.0)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise ValueError(
                f"{self.biosample.signal}: cannot read {chrom}:{first}-{last} "
                f"(truncated?): {error}"
            ) from None
        offset = first - (start - widen)
        base[offset : offset + len(values)] = values
        if not np.isfinite(base).all() or (base < 0).any():
            raise ValueError(
                f"{self.biosample.signal}: {chrom}:{start}-{end} holds negative or "
                "non-finite signal; expected counts or coverage"
            )
        if widen:  # each cut covers 2 * widen + 1 bases
            total = np.concatenate([[0.0], np.cumsum(base)])
            base = total[2 * widen + 1 :] - total[: -(2 * widen + 1)]
        sums = base.reshape(-1, BIN_BP).sum(axis=1) * self.biosample.scale
        return sums.astype(np.float32)
