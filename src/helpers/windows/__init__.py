"""Windows x biosamples: sequence, ATAC track and motif activity as model inputs.

Windows are 0-based and half-open; sequence is one-hot ``(L, 4)`` in the order A, C, G,
T with N as zeros; tracks are sums over 4-bp bins, scaled and soft-clipped as the
authors of EpiBERT do (Javed et al. 2025, Cell Genomics 5:100762); a token is 128 bp.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from helpers import motifs
from helpers.tissues import Tissue, check_together
from helpers.windows._files import SPLITS, WINDOW_COLUMNS, read_bed, read_windows
from helpers.windows._genome import N_CODE, Genome
from helpers.windows._tracks import BIN_BP, Track

__all__ = [
    "BIN_BP",
    "INPUT_CLIP",
    "SPLITS",
    "TOKEN_BP",
    "WINDOW_COLUMNS",
    "Genome",
    "Inputs",
    "WindowDataset",
    "read_bed",
    "read_windows",
    "soft_clip",
    "token_targets",
]

_log = logging.getLogger(__name__)

TOKEN_BP = 128
INPUT_CLIP = 150.0  # per 4-bp bin
_TARGET_CLIP = 2000.0  # per token
# By base code; N has none.
_ONE_HOT = np.eye(N_CODE + 1, N_CODE, dtype=np.float32)
_NAMED = 5  # windows that a warning names


def soft_clip(values: np.ndarray, limit: float) -> np.ndarray:
    """Replace values above ``limit`` by ``limit + sqrt(value - limit)``."""
    clipped = values.copy()
    above = values > limit  # few: most of a track is far below
    clipped[above] = limit + np.sqrt(values[above] - limit)
    return clipped


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


class Inputs(NamedTuple):
    """What the model reads of some windows, without the motif activity.

    Attributes
    ----------
    windows : numpy.ndarray, shape (n,)
        Indices of the windows.
    sequence : numpy.ndarray, shape (n, window_bp, 4), float32
        One-hot sequence.
    atac : numpy.ndarray, shape (n_biosamples, n, window_bp / 4), float32
        Tracks, scaled and soft-clipped.
    """

    windows: np.ndarray
    sequence: np.ndarray
    atac: np.ndarray


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
        If a file is truncated, of other motifs or of another assembly, lacks a
        chromosome or a window, or holds negative or undefined signal.

    Notes
    -----
    A FASTA of whole chromosomes fixes the assembly: the lengths in a bigWig must agree
    with it, and a window may reach past the end of its chromosome, which is logged as a
    warning; sequence is N there and signal 0. Where its records are regions, every
    window must lie in one.
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
        samples = [b for t in self.tissues for b in t.pair]
        if replicates:
            samples += [b for t in self.tissues for b in t.replicates]
        columns = ["name", "lineage", "context", "replicate", "seen_in_training"]
        self.biosamples = pd.DataFrame(
            {column: [getattr(b, column) for b in samples] for column in columns}
        )
        ends = self.windows.groupby("chrom")["end"].max().to_dict()
        self._tracks = [Track(b, ends, self.genome) for b in samples]
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
        cut_off = []
        for row in windows.itertuples():
            if genome.covers(row.chrom, row.start, row.end):
                continue
            name = f"{row.chrom}:{row.start}-{row.end}"
            if row.start >= genome.lengths.get(row.chrom, 0):
                raise ValueError(f"{genome.path}: no record holds the window {name}")
            cut_off.append(name)
        if cut_off:
            _log.warning(
                "%d of %d windows reach past the end of their chromosome, where their "
                "sequence is N and their signal 0: %s",
                len(cut_off),
                len(windows),
                ", ".join(cut_off[:_NAMED]) + (", ..." if cut_off[_NAMED:] else ""),
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
        sequence = np.empty((len(windows), self.window_bp, 4), dtype=np.float32)
        for one_hot, window in zip(sequence, windows, strict=True):
            # "clip" writes straight into the output; all codes are valid.
            np.take(_ONE_HOT, self.codes(window), axis=0, out=one_hot, mode="clip")
        return sequence

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

    def batches(
        self, groups: Iterable[Sequence[int]], *, n_threads: int = 2
    ) -> Iterator[Inputs]:
        """Yield the inputs of groups of windows, for all biosamples.

        Threads read the next group while the caller works with the present one, so
        that two groups are in memory at a time.

        Parameters
        ----------
        groups : iterable of sequence of int
            Indices of the windows of each group.
        n_threads : int, default=2
            Threads that read.

        Raises
        ------
        ValueError
            If a file is damaged, as `sequence` and `track` do.
        """
        pool = ThreadPoolExecutor(n_threads)

        def begin(group: Sequence[int]) -> tuple[np.ndarray, Future, list[Future]]:
            windows = np.asarray(group)
            sequence = pool.submit(self.sequence, windows)
            samples = range(len(self._tracks))
            atac = [pool.submit(self.atac, windows, b) for b in samples]
            return windows, sequence, atac

        def finish(windows: np.ndarray, sequence: Future, atac: list[Future]) -> Inputs:
            tracks = np.stack([track.result() for track in atac])
            return Inputs(windows, sequence.result(), tracks)

        try:
            ahead = None
            for group in groups:
                following = begin(group)
                if ahead is not None:
                    yield finish(*ahead)
                ahead = following
            if ahead is not None:
                yield finish(*ahead)
        finally:
            # Without waiting: an abandoned generator may end in any thread.
            pool.shutdown(wait=False, cancel_futures=True)

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
