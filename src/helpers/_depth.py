"""Equal sequencing depth by thinning cut sites, as if less had been sequenced.

Rescaling a deep track gives the height of a shallow one, not its noise; a model sees
both. Keeping each cut with the same probability gives both, exactly, since a thinned
Poisson count is a Poisson count. `helpers.confounders` is the public face of this
module.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pybigtools

from helpers.tissues import Biosample, Tissue

__all__ = ["equal_depth", "thin_signal", "thinned_tissues"]


def thin_signal(
    signal: str | Path,
    output: str | Path,
    share: float,
    *,
    random_state: int | np.random.Generator,
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

    Returns
    -------
    Path
        ``output``; it appears complete or not at all.

    Raises
    ------
    ValueError
        If the share is out of range, or the signal holds anything but counts.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must lie in (0, 1]; got {share}")
    rng = np.random.default_rng(random_state)
    signal, output = Path(signal), Path(output)
    with signal.open("rb") as file:
        source = pybigtools.open(file)
        sizes = dict(source.chroms())
        kept = [_thin(source, chrom, share, rng, signal) for chrom in sizes]
    partial = output.with_name(f".partial.{output.name}")  # the ending names the format
    intervals = (
        (chrom, int(base), int(base) + 1, float(count))
        for chrom, (bases, counts) in zip(sizes, kept, strict=True)
        for base, count in zip(bases, counts, strict=True)
    )
    pybigtools.open(str(partial), "w").write(sizes, intervals)
    partial.rename(output)
    return output


def _thin(
    source: pybigtools.BBIRead,
    chrom: str,
    share: float,
    rng: np.random.Generator,
    path: Path,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the bases of a chromosome with cuts left, and how many."""
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
    left = rng.binomial(counts.astype(np.int64), share)
    return (np.repeat(start, length) + offset)[left > 0], left[left > 0]


def equal_depth(
    tissues: Sequence[Tissue], folder: str | Path, *, random_state: int = 0
) -> list[Tissue]:
    """Thin the tracks of all biosamples to the depth of the shallowest.

    Parameters
    ----------
    tissues : sequence of Tissue
        Pairs with replicates; signals must be cut sites.
    folder : str or Path
        Where the thinned bigWigs go, made if absent.
    random_state : int, default 0
        Seed; each biosample draws from its own stream.

    Returns
    -------
    list of Tissue
        The same with thinned signals, and one scale for all: that of the shallowest.

    Raises
    ------
    ValueError
        If a signal is coverage, which cannot be thinned, or holds no cuts.
    """
    depths = _depths(tissues)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for tissue in tissues:
        for sample in tissue.biosamples:
            seed = [random_state, zlib.crc32(sample.name.encode())]
            thin_signal(
                sample.signal,
                folder / f"{sample.name}.bw",
                min(depths.values()) / depths[sample.name],
                random_state=np.random.default_rng(seed),
            )
    return thinned_tissues(tissues, folder)


def thinned_tissues(tissues: Sequence[Tissue], folder: str | Path) -> list[Tissue]:
    """Return tissues with the signals that `equal_depth` wrote into a folder."""
    depths = _depths(tissues)
    samples = {s.name: s for tissue in tissues for s in tissue.biosamples}
    scale = samples[min(depths, key=depths.__getitem__)].scale

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


def _depths(tissues: Sequence[Tissue]) -> dict[str, float]:
    """Return the number of cuts of every biosample; refuse what cannot be thinned."""
    samples = [sample for tissue in tissues for sample in tissue.biosamples]
    for sample in samples:
        if sample.signal_kind != "cut_sites":
            raise ValueError(
                f"biosample {sample.name!r}: only cut sites can be thinned; its signal "
                f"is {sample.signal_kind!r}. Use partial_divergence instead"
            )
    return {sample.name: _n_cuts(sample) for sample in samples}


def _n_cuts(sample: Biosample) -> float:
    """Return the number of cuts of a biosample."""
    with sample.signal.open("rb") as file:
        total = float(pybigtools.open(file).info()["summary"]["sum"])
    if not total > 0:
        raise ValueError(f"{sample.signal}: holds no cuts")
    return total
