"""Windows x biosamples: sequence, ATAC track and motif activity as model inputs.

Windows are 0-based and half-open; sequence is one-hot ``(L, 4)`` in the order A, C, G,
T with N as zeros; tracks are sums over 4-bp bins, scaled and soft-clipped as the
authors of EpiBERT do (Javed et al. 2025, Cell Genomics 5:100762); a token is 128 bp.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pybigtools
import pysam

from helpers import motifs
from helpers.tissues import Biosample, Tissue, check_together

__all__ = [
    "BIN_BP",
    "INPUT_CLIP",
    "SPLITS",
    "TOKEN_BP",
    "Genome",
    "WindowDataset",
    "read_bed",
    "read_windows",
    "soft_clip",
    "token_targets",
]

BIN_BP = 4
TOKEN_BP = 128
SPLITS = ("select", "tune", "test")
INPUT_CLIP = 150.0  # per 4-bp bin
_TARGET_CLIP = 2000.0  # per token
_WIDEN_BP = 5  # on both sides of a cut site
_WINDOW_COLUMNS = ["chrom", "start", "end", "split", "block"]
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
        If columns or values are missing, a position is no integer or below 0, a window
        has another length, a split is unknown or empty, a chromosome is in two splits,
        or windows overlap.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"windows file not found: {path}")
    try:
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    except ValueError as error:  # of pandas: empty, or rows of unequal length
        raise ValueError(f"{path}: not a table with a header: {error}") from None
    missing = [c for c in _WINDOW_COLUMNS if c not in table]
    if missing:
        raise ValueError(f"{path}: columns {missing} are missing; found {list(table)}")
    table = table[_WINDOW_COLUMNS]

    def refuse(wrong: pd.Series, expected: str, column: str) -> None:
        if wrong.any():
            line = wrong.idxmax()
            raise ValueError(
                f"{path}, line {line + 2}: {column} must be {expected}; "
                f"found {table.loc[line, column]!r}"
            )

    for column in ("start", "end"):
        is_integer = table[column].str.fullmatch(r"\d+").astype(bool)
        refuse(~is_integer, "an integer >= 0", column)
    for column in ("chrom", "split", "block"):
        refuse(table[column] == "", "given", column)
    table = table.astype({"start": np.int64, "end": np.int64})
    refuse(
        table["end"] - table["start"] != window_bp,
        f"start + {window_bp}, the window that the model needs",
        "end",
    )
    found = sorted(set(table["split"]))
    if found != sorted(SPLITS):
        raise ValueError(
            f"{path}: column split must use all of {list(SPLITS)}; found {found}"
        )
    per_chrom = table.groupby("chrom")["split"].nunique()
    if (per_chrom > 1).any():
        mixed = sorted(per_chrom.index[per_chrom > 1])
        raise ValueError(f"{path}: chromosomes in more than one split: {mixed}")
    ordered = table.sort_values(["chrom", "start"], kind="stable")
    same = ordered["chrom"].eq(ordered["chrom"].shift())
    overlap = same & (ordered["start"] < ordered["end"].shift())
    refuse(overlap, "outside of other windows", "start")
    return table


class Genome:
    """Random access to a FASTA file of chromosomes or of regions.

    Records may be named ``chrom`` or ``chrom:start-end`` (0-based, half-open, as
    ``bedtools getfasta`` names them).

    Parameters
    ----------
    path : str or Path
        FASTA, plain or bgzipped, with ``.fai``.

    Raises
    ------
    FileNotFoundError
        If the file or its index does not exist.
    ValueError
        If the file cannot be read, or a region is not as long as its name says.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        for needed in (self.path, Path(f"{self.path}.fai")):
            if not needed.is_file():
                raise FileNotFoundError(f"genome file not found: {needed}")
        try:
            self._fasta = pysam.FastaFile(str(self.path))
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.path}: not an indexed FASTA: {error}") from None
        self._regions: dict[str, list[tuple[int, int, str]]] = {}
        lengths = zip(self._fasta.references, self._fasta.lengths, strict=True)
        for record, length in lengths:
            chrom, first, last = _parse_record(record, length)
            if last - first != length:
                raise ValueError(
                    f"{self.path}: record {record!r} must hold {last - first} "
                    f"bases, as its name is 0-based and half-open; found {length}"
                )
            self._regions.setdefault(chrom, []).append((first, last, record))

    @property
    def chromosomes(self) -> list[str]:
        """Names of the chromosomes that have sequence."""
        return list(self._regions)

    def covers(self, chrom: str, start: int, end: int) -> bool:
        """Return whether one record holds a whole region."""
        regions = self._regions.get(chrom, [])
        return any(first <= start and end <= last for first, last, _ in regions)

    def codes(self, chrom: str, start: int, end: int) -> np.ndarray:
        """Return base codes 0-3 for A, C, G, T and 4 for N, shape (end - start,).

        Letters other than A, C, G, T in either case are N, and so are bases past
        either end of a record, as long as it holds the middle of the region.

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


def _parse_record(name: str, length: int) -> tuple[str, int, int]:
    """Return chromosome and span of a FASTA record."""
    chrom, _, span = name.rpartition(":")
    first, dash, last = span.partition("-")
    if chrom and dash and first.isdecimal() and last.isdecimal():
        return chrom, int(first), int(last)
    return name, 0, length


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
        Window length of the model, a multiple of 128.
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
    FileNotFoundError
        If a file is missing.
    ValueError
        If a file is truncated, of other motifs, lacks a chromosome or ends before a
        window does, or holds negative or undefined signal.
    """

    def __init__(
        self, tissues: Sequence[Tissue], *, window_bp: int, replicates: bool = False
    ) -> None:
        self.tissues = list(tissues)
        self.window_bp = window_bp
        check_together(self.tissues)
        if window_bp <= 0 or window_bp % TOKEN_BP:
            raise ValueError(
                f"window_bp must be a positive multiple of {TOKEN_BP}; got {window_bp}"
            )
        first = self.tissues[0]
        self.windows = read_windows(first.windows, window_bp=window_bp)
        self.genome = Genome(first.genome)
        self._check_sequence()
        samples = [b for t in self.tissues for b in (t.in_vitro, t.in_vivo)]
        if replicates:
            samples += [b for t in self.tissues for b in t.replicates]
        columns = ["name", "lineage", "context", "replicate", "seen_in_training"]
        self.biosamples = pd.DataFrame(
            {column: [getattr(b, column) for b in samples] for column in columns}
        )
        ends = self.windows.groupby("chrom")["end"].max().to_dict()
        self._tracks = [_Track(b, ends) for b in samples]
        order = sorted(m.id for m in motifs.read_motifs(first.motifs))
        self.motif_activity = np.stack(
            [_motif_activity(b.motif_activity, order) for b in samples]
        )
        self._peaks = [read_bed(b.peaks) for b in samples]

    def _check_sequence(self) -> None:
        windows, genome = self.windows, self.genome
        absent = sorted(set(windows["chrom"]) - set(genome.chromosomes))
        if absent:
            raise ValueError(
                f"{genome.path}: chromosomes {absent} are absent; found "
                f"{genome.chromosomes[:5]} ({len(genome.chromosomes)} in all)"
            )
        for row in windows.itertuples():
            if not genome.covers(row.chrom, row.start, row.end):
                raise ValueError(
                    f"{genome.path}: no record holds the window "
                    f"{row.chrom}:{row.start}-{row.end}"
                )

    @property
    def n_tokens(self) -> int:
        """Tokens per window."""
        return self.window_bp // TOKEN_BP

    def windows_of(self, *splits: str) -> np.ndarray:
        """Return the indices of the windows of some splits.

        Raises
        ------
        ValueError
            If a split is unknown.
        """
        unknown = sorted(set(splits) - set(SPLITS))
        if unknown:
            raise ValueError(f"splits must be among {SPLITS}; got {unknown}")
        return np.flatnonzero(self.windows["split"].isin(splits))

    def codes(self, window: int, *, margin: int = 0) -> np.ndarray:
        """Return the base codes of a window and ``margin`` bp on both sides."""
        row = self.windows.iloc[window]
        start, end = int(row["start"]) - margin, int(row["end"]) + margin
        return self.genome.codes(row["chrom"], start, end)

    def sequence(self, windows: Sequence[int]) -> np.ndarray:
        """Return one-hot sequence, shape (n, window_bp, 4), float32."""
        return np.stack([_ONE_HOT[self.codes(w)] for w in windows])

    def track(self, windows: Sequence[int], biosample: int) -> np.ndarray:
        """Return the scaled track without soft clip, shape (n, window_bp / 4).

        Raises
        ------
        ValueError
            If the bigWig is damaged there, or holds negative signal.
        """
        track = self._tracks[biosample]
        rows = self.windows.iloc[list(windows)].itertuples()
        return np.stack([track.bins(row.chrom, row.start, row.end) for row in rows])

    def atac(self, windows: Sequence[int], biosample: int) -> np.ndarray:
        """Return the track as the model's input, shape (n, window_bp / 4)."""
        return soft_clip(self.track(windows, biosample), INPUT_CLIP)

    def target(self, windows: Sequence[int], biosample: int) -> np.ndarray:
        """Return the measured signal per token, shape (n, n_tokens)."""
        return token_targets(self.track(windows, biosample))

    def in_peak(self, biosample: int) -> np.ndarray:
        """Return which tokens overlap a peak, bool, shape (n_windows, n_tokens)."""
        starts = self._token_starts(range(len(self.windows)))
        inside = np.zeros(starts.shape, dtype=bool)
        for chrom, peaks in self._peaks[biosample].groupby("chrom"):
            rows = (self.windows["chrom"] == chrom).to_numpy()
            token = starts[rows]
            # A peak overlaps if it began before the token's end and has not ended.
            began = np.searchsorted(np.sort(peaks["start"]), token + TOKEN_BP)
            ended = np.searchsorted(np.sort(peaks["end"]), token, side="right")
            inside[rows] = began > ended
        return inside

    def _token_starts(self, windows: Sequence[int]) -> np.ndarray:
        """Return the start of every token, shape (n, n_tokens)."""
        start = self.windows["start"].to_numpy()[list(windows)]
        return start[:, None] + TOKEN_BP * np.arange(self.n_tokens)

    def token_table(self, windows: Sequence[int]) -> pd.DataFrame:
        """Return the genome positions of the tokens of some windows, in order.

        Returns
        -------
        pandas.DataFrame
            ``chrom``, ``start``, ``end``, ``window``, ``token``, ``block``; the tokens
            of a window follow each other.
        """
        rows = self.windows.iloc[list(windows)]
        start = self._token_starts(windows).ravel()
        return pd.DataFrame(
            {
                "chrom": np.repeat(rows["chrom"].to_numpy(), self.n_tokens),
                "start": start,
                "end": start + TOKEN_BP,
                "window": np.repeat(np.asarray(windows), self.n_tokens),
                "token": np.tile(np.arange(self.n_tokens), len(rows)),
                "block": np.repeat(rows["block"].to_numpy(), self.n_tokens),
            }
        )


def read_bed(path: str | Path) -> pd.DataFrame:
    """Read the first three columns of a BED file, gzipped or not.

    Returns
    -------
    pandas.DataFrame
        ``chrom``, ``start``, ``end`` (0-based, half-open).

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If there is no line, a line has fewer than three columns, a position is not an
        integer or negative, or an end does not exceed its start.
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
            keep_default_na=False,
        )
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: expected BED (chrom, start, end): {error}") from None
    if table.empty:
        raise ValueError(f"{path}: no interval found")
    wrong = table[(table["start"] < 0) | (table["end"] <= table["start"])]
    if len(wrong):
        chrom, start, end = wrong.iloc[0]
        raise ValueError(
            f"{path}: positions must be 0 <= start < end; found {chrom}:{start}-{end}"
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
    try:
        return motifs.motif_activity(table).to_numpy(np.float32)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


class _Track:
    """A bigWig with the scale and kind its tissue file declares.

    Parameters
    ----------
    biosample : Biosample
        The sample.
    ends : dict
        End of the last window of every chromosome that will be read.
    """

    def __init__(self, biosample: Biosample, ends: dict[str, int]) -> None:
        self.path = Path(biosample.signal)
        self.scale = biosample.scale
        self.widen = _WIDEN_BP if biosample.signal_kind == "cut_sites" else 0
        _check_whole(self.path)
        with _named_errors(f"{self.path}: not a readable bigWig"):
            # An open file, as names are judged by their ending.
            self._file = pybigtools.open(self.path.open("rb"))
            is_bigwig, summary = self._file.is_bigwig, self._file.info()["summary"]
            self._sizes = dict(self._file.chroms())
        if not is_bigwig:
            raise ValueError(f"{self.path}: expected a bigWig; found a bigBed")
        if summary["min"] < 0 or not np.isfinite(summary["sum"]):
            raise ValueError(
                f"{self.path}: expected counts or coverage; found negative or "
                f"undefined signal (minimum {summary['min']:g}, sum {summary['sum']:g})"
            )
        absent = sorted(set(ends) - set(self._sizes))
        if absent:
            raise ValueError(
                f"{self.path}: chromosomes {absent} are absent; found "
                f"{sorted(self._sizes)[:5]} ({len(self._sizes)} in all)"
            )
        for chrom, end in ends.items():
            if end > self._sizes[chrom]:
                raise ValueError(
                    f"{self.path}: {chrom} must reach {end}, the end of a window; "
                    f"found {self._sizes[chrom]} bp (another assembly?)"
                )

    def bins(self, chrom: str, start: int, end: int) -> np.ndarray:
        """Return scaled sums over 4-bp bins; bases without data are 0."""
        first = max(start - self.widen, 0)
        last = min(end + self.widen, self._sizes[chrom])
        with _named_errors(f"{self.path}: cannot read {chrom}:{first}-{last}"):
            values = self._file.values(chrom, first, last, fillna=0.0)
        left = first - (start - self.widen)
        base = np.zeros(end - start + 2 * self.widen)
        base[left : left + len(values)] = values
        if not np.isfinite(base).all() or (base < 0).any():
            raise ValueError(
                f"{self.path}: {chrom}:{start}-{end} holds negative or non-finite "
                "signal; expected counts or coverage"
            )
        if self.widen:  # each cut covers 2 * widen + 1 bases
            base = np.convolve(base, np.ones(2 * self.widen + 1), mode="valid")
        sums = base.reshape(-1, BIN_BP).sum(axis=1) * self.scale
        return sums.astype(np.float32)


def _check_whole(path: Path) -> None:
    """Check that a bigWig ends as it begins, with the magic number of the format.

    Readers notice a missing index, but not every cut, before they come to it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"bigWig not found: {path}")
    with path.open("rb") as file:
        head = file.read(4)
        file.seek(-min(4, path.stat().st_size), 2)
        tail = file.read(4)
    if len(head) < 4 or head != tail:
        raise ValueError(
            f"{path}: truncated, or not a bigWig: expected the same magic number at "
            f"both ends; found {head.hex() or 'nothing'} and {tail.hex() or 'nothing'}"
        )


@contextmanager
def _named_errors(what: str) -> Iterator[None]:
    """Turn any error of pybigtools into one that names the file.

    Damaged files make it panic, which derives from BaseException only.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        raise ValueError(f"{what} (damaged?): {error}") from None
