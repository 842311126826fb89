"""The ATAC track of a biosample: bigWig intervals to scaled 4-bp bins.

A bin holds the sum of its bases. A cut site counts for all bases within 5 bp of it, as
the authors of EpiBERT widen theirs (Javed et al. 2025, Cell Genomics 5:100762). Sums
are those of a loop over bases in float64, rounded once to float32; the work grows with
the number of intervals, not of bases.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from helpers._bigwig import BigWig, Intervals, LocalFile
from helpers._genome import Genome
from helpers.tissues import Biosample

__all__ = ["BIN_BP", "WIDEN_BP", "Track"]

BIN_BP = 4
WIDEN_BP = 5  # on both sides of a cut site


class Track:
    """A bigWig with the scale and kind its tissue file declares.

    Parameters
    ----------
    biosample : Biosample
        The sample.
    ends : dict of str to int
        End of the last window of every chromosome that will be read.
    genome : Genome
        The sequence that the signal belongs to.

    Raises
    ------
    FileNotFoundError
        If there is no bigWig.
    ValueError
        If it is damaged or no bigWig, lacks a chromosome, holds negative or undefined
        signal, or belongs to another assembly: where the genome has a whole
        chromosome, its length must be the same here, elsewhere it must reach to the
        end of the last window.
    """

    def __init__(
        self, biosample: Biosample, ends: Mapping[str, int], genome: Genome
    ) -> None:
        self.path = biosample.signal
        self.scale = biosample.scale
        self.widens = biosample.signal_kind == "cut_sites"
        self._file = BigWig(LocalFile(self.path))
        totals, lengths = self._file.totals, self._file.chroms
        if totals and (totals.min < 0 or not np.isfinite(totals.sum)):
            raise ValueError(
                f"{self.path}: expected counts or coverage; found negative or "
                f"undefined signal (minimum {totals.min:g}, sum {totals.sum:g})"
            )
        absent = sorted(set(ends) - set(lengths))
        if absent:
            raise ValueError(
                f"{self.path}: chromosomes {absent} are absent; found "
                f"{sorted(lengths)[:5]} ({len(lengths)} in all)"
            )
        for chrom, end in ends.items():
            whole = genome.lengths.get(chrom)
            if whole is not None and whole != lengths[chrom]:
                raise ValueError(
                    f"{self.path}: {chrom} must be {whole} bp long, as in "
                    f"{genome.path}; found {lengths[chrom]} bp (another assembly?)"
                )
            if whole is None and end > lengths[chrom]:
                raise ValueError(
                    f"{self.path}: {chrom} must reach {end}, the end of a window; "
                    f"found {lengths[chrom]} bp (another assembly?)"
                )

    def bins(self, chrom: str, start: int, end: int) -> np.ndarray:
        """Return scaled sums over 4-bp bins; bases without data are 0.

        Parameters
        ----------
        chrom : str
            Chromosome of one of the windows.
        start, end : int
            Region, a multiple of 4 bp long. It may reach past the chromosome's end,
            where only cuts within 5 bp of the end count.

        Returns
        -------
        numpy.ndarray, shape ((end - start) / 4,), float32

        Raises
        ------
        ValueError
            If the file is damaged there, or holds negative or undefined signal.
        """
        margin = WIDEN_BP if self.widens else 0
        found = self._file.intervals(chrom, max(start - margin, 0), end + margin)
        # A NaN fails any comparison.
        if (
            len(found.value)
            and not 0 <= found.value.min() <= found.value.max() < np.inf
        ):
            raise ValueError(
                f"{self.path}: {chrom}:{start}-{end} holds negative or non-finite "
                "signal; expected counts or coverage"
            )
        add_up = _sum_cuts if self.widens else _sum_coverage
        sums = add_up(found, start, (end - start) // BIN_BP)
        return (sums * self.scale).astype(np.float32)


def _cells(start: np.ndarray, end: np.ndarray, step: int) -> tuple:
    """Return the cells of a grid that intervals touch, as pairs (interval, cell)."""
    first = start // step
    n = (end - 1) // step - first + 1
    before = np.cumsum(n) - n  # cells of earlier intervals
    interval = np.repeat(np.arange(len(n)), n)
    return interval, np.arange(len(interval)) + (first - before)[interval]


def _sum_coverage(found: Intervals, origin: int, n_bins: int) -> np.ndarray:
    """Return the sums over bins from ``origin``, shape (n_bins,), float64."""
    start, end = found.start - origin, found.end - origin
    interval, cell = _cells(start, end, BIN_BP)
    left = np.maximum(start[interval], cell * BIN_BP)
    right = np.minimum(end[interval], (cell + 1) * BIN_BP)
    weights = found.value[interval].astype(np.float64)
    weights *= right - left
    return np.bincount(cell, weights, n_bins)


# How many of the 11 bases of a widened cut fall on a bin and on the next three, by the
# place in the bin where the first of them lies.
_BASES_PER_BIN = np.array(
    [
        [4.0, 4.0, 3.0, 0.0],
        [3.0, 4.0, 4.0, 0.0],
        [2.0, 4.0, 4.0, 1.0],
        [1.0, 4.0, 4.0, 2.0],
    ]
)


def _sum_cuts(found: Intervals, origin: int, n_bins: int) -> np.ndarray:
    """Return the sums of widened cuts over bins from ``origin``, (n_bins,), float64."""
    n_before = 3  # bins before the origin that a cut left of it reaches back to
    origin = origin - n_before * BIN_BP
    cut, base = _cells(found.start - origin, found.end - origin, 1)
    first = base - WIDEN_BP
    index = first // BIN_BP
    weights = _BASES_PER_BIN.take(first - index * BIN_BP, axis=0)  # (n_cuts, 4)
    weights *= found.value[cut, None]
    index = index[:, None] + np.arange(4)
    sums = np.bincount(index.ravel(), weights.ravel(), n_before + n_bins + 3)
    return sums[n_before : n_before + n_bins]
