"""The ATAC track of a biosample: signal of a bigWig as scaled 4-bp bins.

A bin holds the sum of its bases. A cut site counts for all bases within 5 bp of it, as
the authors of EpiBERT widen theirs (Javed et al. 2025, Cell Genomics 5:100762).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from helpers.tissues import Biosample
from helpers.windows._bigwig import named_errors, open_bigwig
from helpers.windows._genome import Genome
from helpers.windows._own_reader import OwnReader

__all__ = ["BIN_BP", "WIDEN_BP", "Track"]

BIN_BP = 4
WIDEN_BP = 5  # on both sides of a cut site
_REACH = -(-WIDEN_BP // BIN_BP)  # bins on both sides that a cut site reaches into


def _shares(widen_bp: int) -> np.ndarray:
    """Return how many bases of a bin count the signal of a base near it.

    Row ``d + _REACH``, column ``c`` is for base ``c`` of a bin and the bin ``d`` bins
    further on, shape (2 * _REACH + 1, BIN_BP).
    """
    bins = np.arange(-_REACH, _REACH + 1)[:, None, None] * BIN_BP
    base = np.arange(BIN_BP)
    distance = bins + base - base[:, None]
    return (np.abs(distance) <= widen_bp).sum(axis=-1).astype(np.float64)


class Track:
    """A bigWig with the scale and kind its tissue file declares.

    Threads and forked processes may share a track.

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
        is_cuts = biosample.signal_kind == "cut_sites"
        self._shares = _shares(WIDEN_BP if is_cuts else 0)
        if not self.path.is_file():
            raise FileNotFoundError(f"bigWig not found: {self.path}")
        self._file = OwnReader(
            lambda: open_bigwig(self.path.open("rb"), str(self.path))
        )
        with (
            self._file.using() as file,
            named_errors(f"{self.path}: cannot read its header"),
        ):
            totals, lengths = file.info()["summary"], file.chroms()
        if totals["min"] < 0 or not np.isfinite(totals["sum"]):
            raise ValueError(
                f"{self.path}: expected counts or coverage; found negative or "
                f"undefined signal (minimum {totals['min']:g}, sum {totals['sum']:g})"
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
        margin = _REACH * BIN_BP
        with (
            self._file.using() as file,
            named_errors(f"{self.path}: cannot read {chrom}:{start}-{end}"),
        ):
            base = file.values(chrom, start - margin, end + margin, fillna=0.0, oob=0.0)
        # (bins on both sides, bins): what every bin gives to those around it.
        given = self._shares @ base.reshape(-1, BIN_BP).T
        n_bins = (end - start) // BIN_BP
        last = 2 * _REACH
        sums = sum(row[last - d :][:n_bins] for d, row in enumerate(given))
        if not 0 <= sums.min() <= sums.max() < np.inf:  # nor with a NaN
            raise ValueError(
                f"{self.path}: {chrom}:{start}-{end} holds negative or non-finite "
                "signal; expected counts or coverage"
            )
        return (sums * self.scale).astype(np.float32)
