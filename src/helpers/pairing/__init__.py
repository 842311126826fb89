"""Matched biosamples as data: paired differences on genomic blocks.

Features are window summaries (n_biosamples, n_windows, n_features). Biosamples come in
pairs, one per context and lineage, measured on the same windows; differences are second
context minus first, so positive means higher in vivo.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse, stats

from helpers.pairing._welch import Moments, WelchResult, welch

__all__ = [
    "CONTEXTS",
    "MIN_FIRING_BLOCKS",
    "Moments",
    "PairedBlocks",
    "WelchResult",
    "array_shape",
    "block_average",
    "check_pairs",
    "paired_blocks",
    "welch",
]

CONTEXTS = ("in_vitro", "in_vivo")
SCALES = ("raw", "log1p", "rate", "rank")
MIN_FIRING_BLOCKS = 5  # features seen in fewer are untested, not "not significant"


@dataclass(frozen=True)
class PairedBlocks:
    """Paired differences on genomic blocks, and what effect sizes need.

    Attributes
    ----------
    differences : numpy.ndarray, shape (n_lineages, n_blocks, n_features)
        Mean over the block's windows of second minus first context, on the scale of
        the test.
    sizes : numpy.ndarray, shape (n_blocks,)
        Windows per block.
    lineages : tuple of str
        In order of first appearance in the design.
    block_means : numpy.ndarray, shape (2, n_lineages, n_blocks, n_features)
        Mean activation per context, lineage and block, not rescaled.
    block_rates : numpy.ndarray of that shape, or None
        Mean firing rate, where firing rates were given.
    one_token : float
        Smallest firing rate above 0 of any window: one firing token.
    auc : numpy.ndarray, shape (n_blocks, n_features)
        Share of the block's windows that are higher in the second context, ties
        counting half, mean of the lineages.
    naive : WelchResult
        Welch t over windows, all lineages pooled.
    """

    differences: np.ndarray
    sizes: np.ndarray
    lineages: tuple[str, ...]
    block_means: np.ndarray
    block_rates: np.ndarray | None
    one_token: float
    auc: np.ndarray
    naive: WelchResult

    @property
    def means(self) -> np.ndarray:
        """Mean activation, shape (2, n_lineages, n_features)."""
        return np.einsum("b,clbj->clj", self.sizes / self.sizes.sum(), self.block_means)

    @property
    def firing_blocks(self) -> np.ndarray:
        """Blocks with activity in the context with more, (n_lineages, n_features)."""
        # Activations are 0 or positive, so a block mean of 0 says "never fired".
        return (self.block_means != 0).sum(axis=2).max(axis=0)

    def select(self, features: np.ndarray) -> PairedBlocks:
        """Return some of the features, by a mask or by their numbers."""
        rates = self.block_rates
        return replace(
            self,
            differences=self.differences[..., features],
            block_means=self.block_means[..., features],
            block_rates=None if rates is None else rates[..., features],
            auc=self.auc[:, features],
            naive=WelchResult(*(x[features] for x in self.naive)),
        )


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
    shape = array_shape(features, "features")
    n_biosamples, n_windows, _ = shape
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
    if firing_rates is not None and array_shape(firing_rates, "firing_rates") != shape:
        raise ValueError(
            f"firing_rates must have the shape of features, {shape}; "
            f"got {firing_rates.shape}"
        )
    averaging, sizes = block_average(blocks, n_windows)
    # Sums of a few windows lose nothing in the precision that the windows have.
    averaging = averaging.astype(np.result_type(features.dtype, np.float32))

    differences, means, rates, auc = [], [], [], []
    one_token = np.inf
    naive: list[Moments | None] = [None, None]
    for rows in pairs.values():
        windows = [np.asarray(features[row]) for row in rows]
        names = design["biosample"].iloc[rows]
        means.append(
            [_finite_means(averaging, *x) for x in zip(windows, names, strict=True)]
        )
        fired = None
        if firing_rates is not None:
            fired = [np.asarray(firing_rates[row]) for row in rows]
            rates.append([averaging @ x for x in fired])
            one_token = min([one_token, *(_smallest_positive(x) for x in fired)])
        low, high = fired if scale == "rate" else _rescale(windows, scale)
        # On the raw scale the block means are at hand.
        difference = (
            means[-1][1] - means[-1][0]
            if scale == "raw"
            else averaging @ high - averaging @ low
        )
        if not np.isfinite(difference).all():
            raise ValueError(
                f"scale {scale!r} gives NaN or infinity; log1p needs activations above "
                "-1, rate needs finite firing_rates"
            )
        differences.append(difference)
        higher = np.sign(high - low)  # 1, 0 for a tie, -1
        auc.append((1 + averaging @ higher) / 2)
        for context, x in enumerate(windows):
            moments = Moments.of(x)
            previous = naive[context]
            naive[context] = moments if previous is None else previous + moments
    block_means = np.stack(means, axis=1)  # (2, n_lineages, n_blocks, n_features)
    _check_copies(block_means, design, pairs)
    return PairedBlocks(
        np.stack(differences),
        sizes,
        tuple(pairs),
        block_means,
        np.stack(rates, axis=1) if rates else None,
        one_token,
        np.mean(auc, axis=0),
        welch(*naive),
    )


def _finite_means(
    averaging: sparse.csr_array, windows: np.ndarray, name: str
) -> np.ndarray:
    """Average a biosample over blocks; refuse what is not a number."""
    block_means = averaging @ windows
    if not np.isfinite(block_means).all():
        raise ValueError(
            "features must be finite: a window missing in one biosample leaves its "
            f"pair unpaired; got NaN or infinity in biosample {name!r}"
        )
    return block_means


def _smallest_positive(x: np.ndarray) -> float:
    return float((x + (x <= 0)).min())  # of rates, which are at most 1


def _check_copies(
    block_means: np.ndarray, design: pd.DataFrame, pairs: dict[str, list[int]]
) -> None:
    """Refuse two biosamples with the same values under different names."""
    rows = np.transpose(list(pairs.values()))  # (2, n_lineages), like block_means
    seen: dict[bytes, str] = {}
    for context, lineage in np.ndindex(rows.shape):
        name = design["biosample"].iloc[rows[context, lineage]]
        values = block_means[context, lineage]
        if not values.any():
            continue  # silent biosamples are alike, but no copies
        twin = seen.setdefault(values.tobytes(), name)
        if twin != name:
            raise ValueError(
                f"features: biosamples {twin!r} and {name!r} hold the same values; "
                "are they copies of one biosample?"
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


def array_shape(values: Any, name: str) -> tuple[int, int, int]:
    """Return the shape of window summaries, or say what they must be.

    Raises
    ------
    ValueError
        If they are not a three-dimensional array with entries, such as a list of
        biosamples with different numbers of windows.
    """
    shape = tuple(getattr(values, "shape", ()))
    if len(shape) != 3 or 0 in shape:
        raise ValueError(
            f"{name} must be an array (n_biosamples, n_windows, n_features), the same "
            f"windows in every biosample; got {type(values).__name__} of shape {shape}"
        )
    return shape


def block_average(
    blocks: Sequence[Any] | np.ndarray, n_windows: int
) -> tuple[sparse.csr_array, np.ndarray]:
    """Build the matrix that averages windows over genomic blocks.

    Parameters
    ----------
    blocks : sequence, shape (n_windows,)
        Block of each window.
    n_windows : int
        How many windows there must be.

    Returns
    -------
    averaging : scipy.sparse.csr_array, shape (n_blocks, n_windows)
        Blocks in order of first appearance.
    sizes : numpy.ndarray, shape (n_blocks,)
        Windows per block.

    Raises
    ------
    ValueError
        If a window has no block, or there are fewer than 5.
    """
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
