"""Equal sequencing depth by thinning cut sites, as if less had been sequenced.

Rescaling a deep track gives the height of a shallow one, not its noise; a model sees
both. Keeping each cut with the same probability gives both, exactly, since a thinned
Poisson count is a Poisson count. With one probability inside peaks and another outside,
the fraction of cuts in peaks (FRiP) becomes equal, too. `helpers.confounders` is the
public face of this module.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pybigtools

from helpers.tissues import Biosample, Tissue
from helpers.windows._files import read_bed

__all__ = ["cuts_in_peaks", "equal_depth", "thin_signal", "thinned_tissues"]


def thin_signal(
    signal: str | Path,
    output: str | Path,
    share: float,
    *,
    random_state: int | np.random.Generator,
    peaks: pd.DataFrame | None = None,
    share_in_peaks: float = 1.0,
) -> Path:
    """Keep every cut of a bigWig with a given probability.

    Parameters
    ----------
    signal : str or Path
        bigWig of cut-site counts: whole numbers per base.
    output : str or Path
        bigWig to write.
    share : float
        Probability to keep a cut, above 0 and at most 1.
    random_state : int or numpy.random.Generator
        Source of the draws.
    peaks : pandas.DataFrame, optional
        Columns ``chrom``, ``start``, ``end`` (0-based, half-open; overlaps are fine):
        where cuts are kept with `share_in_peaks` instead.
    share_in_peaks : float, default 1
        Probability to keep a cut inside a peak, above 0 and at most 1.

    Returns
    -------
    Path
        ``output``; it appears complete or not at all.

    Raises
    ------
    ValueError
        If a share is out of range, or the signal holds anything but counts.
    """
    for name, value in (("share", share), ("share_in_peaks", share_in_peaks)):
        if not 0 < value <= 1:
            raise ValueError(f"{name} must lie in (0, 1]; got {value}")
    rng = np.random.default_rng(random_state)
    signal, output = Path(signal), Path(output)
    inside = _PeakIndex(peaks)
    with signal.open("rb") as file:
        source = pybigtools.open(file)
        sizes = dict(source.chroms())
        kept = []
        for chrom in sizes:
            bases, counts = _cuts(source, chrom, signal)
            chance = np.where(inside.holds(chrom, bases), share_in_peaks, share)
            left = rng.binomial(counts, chance)
            kept.append((bases[left > 0], left[left > 0]))
    partial = output.with_name(f".partial.{output.name}")  # the ending names the format
    intervals = (
        (chrom, int(base), int(base) + 1, float(count))
        for chrom, (bases, counts) in zip(sizes, kept, strict=True)
        for base, count in zip(bases, counts, strict=True)
    )
    pybigtools.open(str(partial), "w").write(sizes, intervals)
    partial.rename(output)
    return output


def _cuts(
    source: pybigtools.BBIRead, chrom: str, path: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Return the bases of a chromosome that were cut, and how often."""
    records = np.array(list(source.records(chrom)), dtype=float).reshape(-1, 3)
    start, end = records[:, 0].astype(np.int64), records[:, 1].astype(np.int64)
    length = end - start
    counts = np.repeat(records[:, 2], length)
    if (counts < 0).any() or (counts != np.rint(counts)).any():
        raise ValueError(
            f"{path}: thinning needs counts of cut sites, whole numbers; found "
            f"{counts[(counts < 0) | (counts != np.rint(counts))][0]:g} on {chrom}"
        )
    offset = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
    return np.repeat(start, length) + offset, counts.astype(np.int64)


class _PeakIndex:
    """Tells which bases lie in any peak; overlapping peaks are one."""

    def __init__(self, peaks: pd.DataFrame | None) -> None:
        self._merged: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        if peaks is None:
            return
        for chrom, rows in peaks.groupby("chrom", observed=True):
            rows = rows.sort_values("start")
            start = rows["start"].to_numpy()
            end = np.maximum.accumulate(rows["end"].to_numpy())
            first = np.r_[True, start[1:] > end[:-1]]
            self._merged[str(chrom)] = start[first], end[np.r_[first[1:], True]]

    def holds(self, chrom: str, bases: np.ndarray) -> np.ndarray:
        if chrom not in self._merged:
            return np.zeros(len(bases), dtype=bool)
        start, end = self._merged[chrom]
        before = np.searchsorted(start, bases, side="right") - 1
        return (before >= 0) & (bases < end[before])


def cuts_in_peaks(tissues: Sequence[Tissue]) -> pd.DataFrame:
    """Count the cuts of every biosample inside and outside of peaks.

    A peak is what is a peak in any of the biosamples, so that all are asked about the
    same places.

    Parameters
    ----------
    tissues : sequence of Tissue
        Pairs with replicates; signals must be cut sites.

    Returns
    -------
    pandas.DataFrame
        One row per biosample: ``biosample``, ``lineage``, ``context``, ``inside``,
        ``outside``, ``frip``, the fraction of cuts in peaks.

    Raises
    ------
    ValueError
        If a signal is coverage, or a biosample has no cuts inside or outside.
    """
    samples = _samples(tissues)
    index = _PeakIndex(_peaks(samples))
    rows = []
    for sample in samples:
        inside = total = 0
        with sample.signal.open("rb") as file:
            source = pybigtools.open(file)
            for chrom in dict(source.chroms()):
                bases, counts = _cuts(source, chrom, sample.signal)
                inside += int(counts[index.holds(chrom, bases)].sum())
                total += int(counts.sum())
        if not 0 < inside < total:
            raise ValueError(
                f"{sample.signal}: needs cuts inside and outside of peaks; {inside} of "
                f"{total} lie inside"
            )
        rows.append(
            {
                "biosample": sample.name,
                "lineage": sample.lineage,
                "context": sample.context,
                "inside": inside,
                "outside": total - inside,
                "frip": inside / total,
            }
        )
    return pd.DataFrame(rows)


def _peaks(samples: Sequence[Biosample]) -> pd.DataFrame:
    return pd.concat([read_bed(s.peaks) for s in samples], ignore_index=True)


def equal_depth(
    tissues: Sequence[Tissue],
    folder: str | Path,
    *,
    frip: bool = False,
    random_state: int = 0,
) -> list[Tissue]:
    """Thin the tracks of all biosamples to the depth of the shallowest.

    Parameters
    ----------
    tissues : sequence of Tissue
        Pairs with replicates; signals must be cut sites.
    folder : str or Path
        Where the thinned bigWigs go, made if absent.
    frip : bool, default False
        Make the fraction of cuts in peaks equal as well: inside and outside of peaks,
        see `cuts_in_peaks`, every track keeps as many cuts as the poorest has there. A
        cell type with more open chromatin loses that, too.
    random_state : int, default 0
        Seed; each biosample draws from its own stream.

    Returns
    -------
    list of Tissue
        The same with thinned signals, and one scale for all, that of the shallowest,
        raised by what even that one lost.

    Raises
    ------
    ValueError
        If a signal is coverage, which cannot be thinned, or holds no cuts.
    """
    samples = _samples(tissues)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if frip:
        cuts = cuts_in_peaks(tissues).set_index("biosample")[["inside", "outside"]]
        shares = cuts.min() / cuts
        peaks = _peaks(samples)
    else:
        depth = pd.Series({s.name: _n_cuts(s.signal) for s in samples})
        shares = pd.DataFrame({"outside": depth.min() / depth, "inside": 1.0})
        peaks = None
    for sample in samples:
        seed = [random_state, zlib.crc32(sample.name.encode())]
        thin_signal(
            sample.signal,
            folder / f"{sample.name}.bw",
            shares.loc[sample.name, "outside"],
            random_state=np.random.default_rng(seed),
            peaks=peaks,
            share_in_peaks=shares.loc[sample.name, "inside"],
        )
    return thinned_tissues(tissues, folder)


def thinned_tissues(tissues: Sequence[Tissue], folder: str | Path) -> list[Tissue]:
    """Return tissues with the signals that `equal_depth` wrote into a folder."""
    samples = _samples(tissues)
    depth = {s.name: _n_cuts(s.signal) for s in samples}
    left = np.mean([_n_cuts(Path(folder) / f"{s.name}.bw") for s in samples])
    shallowest = min(samples, key=lambda s: depth[s.name])
    scale = shallowest.scale * depth[shallowest.name] / left

    def thinned(sample: Biosample) -> Biosample:
        return replace(sample, signal=Path(folder) / f"{sample.name}.bw", scale=scale)

    return [
        replace(
            tissue,
            pair=tuple(map(thinned, tissue.pair)),
            replicates=tuple(thinned(sample) for sample in tissue.replicates),
        )
        for tissue in tissues
    ]


def _samples(tissues: Sequence[Tissue]) -> list[Biosample]:
    """Return all biosamples; refuse what cannot be thinned."""
    samples = [sample for tissue in tissues for sample in tissue.biosamples]
    for sample in samples:
        if sample.signal_kind != "cut_sites":
            raise ValueError(
                f"biosample {sample.name!r}: only cut sites can be thinned; its signal "
                f"is {sample.signal_kind!r}. Use partial_divergence instead"
            )
    return samples


def _n_cuts(signal: Path) -> float:
    """Return the number of cuts of a track."""
    with signal.open("rb") as file:
        total = float(pybigtools.open(file).info()["summary"]["sum"])
    if not total > 0:
        raise ValueError(f"{signal}: holds no cuts")
    return total
