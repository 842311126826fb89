"""Matched biosamples as data: paired differences on blocks, and the naive Welch t.

Features are window summaries (n_biosamples, n_windows, n_features). Biosamples come in
pairs, one per context and lineage, measured on the same windows; differences are second
context minus first, so positive means higher in vivo.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse, stats

__all__ = [
    "CONTEXTS",
    "MIN_FIRING_BLOCKS",
    "Moments",
    "PairedBlocks",
    "WelchResult",
    "check_pairs",
    "paired_blocks",
    "welch",
]

CONTEXTS = ("in_vitro", "in_vivo")
SCALES = ("raw", "log1p", "rate", "rank")
MIN_FIRING_BLOCKS = 5  # features seen in fewer are untested, not "not significant"


@dataclass(frozen=True)
class Moments:
    """Count, mean and centered sum of squares per feature: enough for a t-test.

    Add the moments of batches to stream any number of tokens (Chan, Golub & LeVeque
    1983): ``Moments.of(first) + Moments.of(second) == Moments.of(all)``.

    Attributes
    ----------
    count : int
        Number of observations.
    mean, sum_squares : numpy.ndarray, shape (n_features,)
        Mean, and sum of squared deviations from it.
    """

    count: int
    mean: np.ndarray
    sum_squares: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> Moments:
        """Summarize values of shape (n_observations, n_features)."""
        values = np.asarray(values)
        if values.ndim != 2 or len(values) == 0:
            raise ValueError(
                "values must have shape (n_observations >= 1, n_features); "
                f"got {values.shape}"
            )
        mean = values.mean(axis=0, dtype=np.float64)
        deviation = values - mean
        return cls(len(values), mean, np.einsum("nj,nj->j", deviation, deviation))

    def __add__(self, other: Moments) -> Moments:
        """Pool two sets of observations."""
        count = self.count + other.count
        shift = other.mean - self.mean
        return Moments(
            count,
            self.mean + shift * (other.count / count),
            self.sum_squares
            + other.sum_squares
            + shift**2 * (self.count * other.count / count),
        )


class WelchResult(NamedTuple):
    """Welch test per feature: statistic, degrees of freedom, two-sided p."""

    t: np.ndarray
    df: np.ndarray
    p: np.ndarray


def welch(in_vitro: np.ndarray | Moments, in_vivo: np.ndarray | Moments) -> WelchResult:
    """Compute the naive contrastive t: every row counts as an independent replicate.

    Kept for comparison with published numbers. Tokens of a window and windows of a
    genomic block are correlated, so its p-values are far too small.

    Parameters
    ----------
    in_vitro, in_vivo : array, shape (n_observations, n_features), or Moments
        Tokens or windows of each context, or their moments.

    Returns
    -------
    WelchResult
        Positive `t` means higher in vivo. NaN where both variances vanish.

    Raises
    ------
    ValueError
        If a context has fewer than two observations or the features disagree.
    """
    low, high = (
        x if isinstance(x, Moments) else Moments.of(x) for x in (in_vitro, in_vivo)
    )
    if low.mean.shape != high.mean.shape or min(low.count, high.count) < 2:
        raise ValueError(
            "welch needs at least 2 observations per context of the same features; "
            f"got {low.count} and {high.count} observations of "
            f"{low.mean.shape} and {high.mean.shape} features"
        )
    low_se2 = low.sum_squares / (low.count - 1) / low.count
    high_se2 = high.sum_squares / (high.count - 1) / high.count
    with np.errstate(invalid="ignore", divide="ignore"):
        t = (high.mean - low.mean) / np.sqrt(low_se2 + high_se2)
        df = (low_se2 + high_se2) ** 2 / (
            low_se2**2 / (low.count - 1) + high_se2**2 / (high.count - 1)
        )
    return WelchResult(t, df, 2 * stats.t.sf(np.abs(t), df))


@dataclass(frozen=True)
class PairedBlocks:
    """Paired differences on genomic blocks, and what effect sizes need.

    Attributes
    ----------
    differences : numpy.ndarray, shape (n_lineages, n_blocks, n_features)
        Mean over the block's windows of second minus first context.
    sizes : numpy.ndarray, shape (n_blocks,)
        Windows per block.
    lineages : tuple of str
        In order of first appearance in the design.
    means : numpy.ndarray, shape (2, n_lineages, n_features)
        Mean activation per context and lineage, on the raw scale.
    firing_blocks : numpy.ndarray, shape (n_lineages, n_features)
        Blocks in which the feature fires, in the context where it fires in more.
    auc : numpy.ndarray, shape (n_features,)
        Probability that a window is higher in the second context, ties counting half.
    naive : WelchResult
        Welch t over windows, all lineages pooled.
    """

    differences: np.ndarray
    sizes: np.ndarray
    lineages: tuple[str, ...]
    means: np.ndarray
    firing_blocks: np.ndarray
    auc: np.ndarray
    naive: WelchResult


def paired_blocks(
    features: Any,
    design: pd.DataFrame,
    blocks: Sequence[Any] | np.ndarray,
    *,
    scale: str = "raw",
    firing_rates: Any = None,
    levels: tuple[str, str] = CONTEXTS,
) -> PairedBlocks:
    """Subtract the two contexts of each lineage window by window; average by block.

    Whatever the sequence alone decides cancels in the difference. One biosample pair
    is held in memory at a time, so `features` may be a zarr array or a memory map.
    Parameters and errors are those of `context_divergence`.
    """
    pairs = check_pairs(design, levels)
    n_biosamples, n_windows, n_features = _shape(features, "features")
    if n_biosamples != len(design):
        raise ValueError(
            f"design must have one row per biosample of features ({n_biosamples}); "
            f"got {len(design)}"
        )
    if scale not in SCALES or (scale == "rate" and firing_rates is None):
        raise ValueError(
            f"scale must be one of {SCALES}, and 'rate' needs firing_rates; "
            f"got {scale!r}"
        )
    if firing_rates is not None and _shape(firing_rates, "firing_rates") != (
        n_biosamples,
        n_windows,
        n_features,
    ):
        raise ValueError(
            f"firing_rates must have the shape of features, "
            f"{(n_biosamples, n_windows, n_features)}; got {firing_rates.shape}"
        )
    averaging, sizes = _block_average(blocks, n_windows)

    differences, means, firing, auc = [], [], [], np.zeros(n_features)
    naive: list[Moments | None] = [None, None]
    for rows in pairs.values():
        windows = [np.asarray(features[row]) for row in rows]
        block_means = [averaging @ x for x in windows]
        for row, block_mean in zip(rows, block_means, strict=True):
            if not np.isfinite(block_mean).all():
                raise ValueError(
                    "features must be finite: a window missing in one biosample "
                    "leaves its pair unpaired; got NaN or infinity in biosample "
                    f"{design['biosample'].iloc[row]!r}"
                )
        if scale == "rate":
            low, high = (np.asarray(firing_rates[row]) for row in rows)
        else:
            low, high = _rescale(windows, scale)
        difference = averaging @ high - averaging @ low
        if not np.isfinite(difference).all():
            raise ValueError(
                f"scale {scale!r} gives NaN or infinity; log1p needs activations above "
                "-1, rate needs finite firing_rates"
            )
        differences.append(difference)
        means.append([(sizes @ x) / sizes.sum() for x in block_means])
        # Activations are 0 or positive, so a block mean of 0 says "never fired".
        firing.append(np.max([(x != 0).sum(axis=0) for x in block_means], axis=0))
        auc += ((high > low).mean(axis=0) + (high >= low).mean(axis=0)) / 2
        for context, x in enumerate(windows):
            moments = Moments.of(x)
            previous = naive[context]
            naive[context] = moments if previous is None else previous + moments
    return PairedBlocks(
        np.stack(differences),
        sizes,
        tuple(pairs),
        np.stack(means, axis=1),
        np.stack(firing),
        auc / len(pairs),
        welch(*naive),
    )


def check_pairs(
    design: pd.DataFrame, levels: tuple[str, str] = CONTEXTS
) -> dict[str, list[int]]:
    """Map each lineage to the rows of its first and second context, or say why not.

    Parameters
    ----------
    design : pandas.DataFrame
        Columns biosample, lineage, context.
    levels : tuple of str, default ("in_vitro", "in_vivo")
        The two contexts.

    Returns
    -------
    dict
        ``{lineage: [first row, second row]}`` in order of first appearance.

    Raises
    ------
    ValueError
        If a column or a context is missing or unknown, or a biosample repeated.
    """
    missing = {"biosample", "lineage", "context"} - set(design.columns)
    if missing:
        raise ValueError(
            f"design must have columns biosample, lineage, context; {sorted(missing)} "
            "missing"
        )
    duplicated = design.loc[design["biosample"].duplicated(), "biosample"]
    if len(duplicated):
        raise ValueError(
            f"design: biosamples must be unique; {duplicated.iloc[0]!r} is repeated"
        )
    unknown = design.loc[~design["context"].isin(levels)]
    if len(unknown):
        raise ValueError(
            f"design: context must be one of {levels}; got "
            f"{unknown['context'].iloc[0]!r} for {unknown['biosample'].iloc[0]!r}"
        )
    if len(design) == 0 or design["lineage"].isna().any():
        raise ValueError("design: every biosample needs a lineage, and one must exist")
    context = design["context"].to_numpy()
    pairs = {}
    for lineage in pd.unique(design["lineage"]):
        of_lineage = (design["lineage"] == lineage).to_numpy()
        rows = [np.flatnonzero(of_lineage & (context == level)) for level in levels]
        if [len(found) for found in rows] != [1, 1]:
            raise ValueError(
                f"design: lineage {lineage!r} must have exactly one biosample of each "
                f"context {levels}; got {len(rows[0])} and {len(rows[1])}"
            )
        pairs[str(lineage)] = [int(found[0]) for found in rows]
    return pairs


def _shape(values: Any, name: str) -> tuple[int, int, int]:
    """Return the shape of a three-dimensional, non-empty array."""
    shape = tuple(values.shape)
    if len(shape) != 3 or 0 in shape:
        raise ValueError(
            f"{name} must have shape (n_biosamples, n_windows, n_features); got {shape}"
        )
    return shape


def _block_average(
    blocks: Sequence[Any] | np.ndarray, n_windows: int
) -> tuple[sparse.csr_array, np.ndarray]:
    """Build the matrix (n_blocks, n_windows) that averages windows over blocks."""
    codes, names = pd.factorize(np.asarray(blocks), sort=False)
    if codes.shape != (n_windows,) or (codes < 0).any():
        raise ValueError(
            f"blocks must give one block per window ({n_windows}), none missing; got "
            f"shape {codes.shape} with {(codes < 0).sum()} missing"
        )
    if len(names) < MIN_FIRING_BLOCKS:
        raise ValueError(
            f"blocks must name at least {MIN_FIRING_BLOCKS} genomic blocks, the "
            f"replicates of the test; got {len(names)}"
        )
    sizes = np.bincount(codes)
    entries = (1 / sizes[codes], (codes, np.arange(n_windows)))
    return sparse.csr_array(entries, shape=(len(names), n_windows)), sizes


def _rescale(windows: list[np.ndarray], scale: str) -> list[np.ndarray]:
    """Put the two contexts of a lineage on the scale of the test."""
    if scale == "log1p":
        with np.errstate(invalid="ignore", divide="ignore"):
            return [np.log1p(x) for x in windows]
    if scale == "rank":  # within the pair, from 0 to 1
        ranks = stats.rankdata(np.concatenate(windows), axis=0) / (2 * len(windows[0]))
        return np.split(ranks, 2)
    return windows
