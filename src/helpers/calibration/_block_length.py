"""How long a genomic block must be, and what the calls owe to its length.

Neighboring windows share domains, so that their differences are alike; blocks are the
replicates of the score and must be long enough that this ends within them.
`helpers.calibration` is the public face of this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from helpers.blockstats import adjust_p_values, moderated_t
from helpers.pairing import (
    CONTEXTS,
    MIN_FIRING_BLOCKS,
    PairedBlocks,
    array_shape,
    check_pairs,
    paired_blocks,
)

__all__ = ["block_length_curve", "candidate_lengths", "choose_block_length"]

_NEAR = 0.25  # windows this much nearer or farther than a length count as that far


def candidate_lengths(windows: pd.DataFrame) -> list[int]:
    """Return block lengths to compare, each twice the last.

    Parameters
    ----------
    windows : pandas.DataFrame
        Columns ``chrom``, ``start``.

    Returns
    -------
    list of int
        In bp, from the median distance of neighboring windows up to where fewer than
        five blocks, the least that can be tested, would be left; lengths that cut
        the windows into as many blocks as a shorter one are left out.

    Raises
    ------
    ValueError
        If no chromosome has two windows, or all are in fewer than five blocks already.
    """
    ordered = windows.sort_values(["chrom", "start"])
    gaps = ordered.groupby("chrom", observed=True)["start"].diff().dropna()
    if not len(gaps):
        raise ValueError("windows: no chromosome has two; distances are unknown")
    length = int(gaps.median())
    lengths: dict[int, int] = {}  # by the number of blocks
    while length <= 2 * windows["start"].max():
        n_blocks = len(np.unique(_blocks(windows, length)))
        if n_blocks < MIN_FIRING_BLOCKS:
            break
        lengths.setdefault(n_blocks, length)
        length *= 2
    if not lengths:
        raise ValueError(
            f"windows: blocks of {length} bp are fewer than {MIN_FIRING_BLOCKS}; the "
            "score needs more windows"
        )
    return list(lengths.values())


def _blocks(windows: pd.DataFrame, length: int) -> np.ndarray:
    number = windows["start"].to_numpy() // length
    return (windows["chrom"].astype(str) + ":" + number.astype(str)).to_numpy()


def block_length_curve(
    features: Any,
    design: pd.DataFrame,
    windows: pd.DataFrame,
    lengths: Sequence[int],
    *,
    levels: tuple[str, str] = CONTEXTS,
    alpha: float = 0.05,
) -> pd.DataFrame:
    r"""Return autocorrelation and calls for genomic blocks of several lengths.

    With the paired difference d of a window, centered over the genome, the
    autocorrelation at length L is

    .. math:: r_L = \frac{\mathrm{mean}_{|x_w - x_v| \approx L}\, d_w d_v}
        {\mathrm{mean}_w\, d_w^2}

    over pairs of windows of one chromosome within a quarter of L, averaged over tested
    features and lineages.

    Parameters
    ----------
    features, design, levels
        As in `helpers.cds.context_divergence`.
    windows : pandas.DataFrame
        Columns ``chrom``, ``start``: where each window lies.
    lengths : sequence of int
        Block lengths, bp; see `candidate_lengths`.
    alpha : float, default 0.05
        Family-wise error rate (Bonferroni) behind ``n_called``.

    Returns
    -------
    pandas.DataFrame
        Indexed by ``length_bp``: ``n_blocks``; ``autocorrelation`` (NaN where no
        windows are that far apart); ``adjacent``, the correlation of the means of
        adjacent blocks; ``n_called`` by the shared score; ``kept``, the share of the
        calls at the shortest length that are called here, too; ``se_ratio``, the
        median standard error over that at the shortest length.

    Raises
    ------
    ValueError
        If lengths are not positive and ascending, or windows do not fit the features.
    """
    n_windows = array_shape(features, "features")[1]
    if len(windows) != n_windows or not {"chrom", "start"} <= set(windows.columns):
        raise ValueError(
            f"windows must have columns chrom and start and {n_windows} rows; got "
            f"{list(windows.columns)} and {len(windows)}"
        )
    lengths = list(lengths)
    if not lengths or min(lengths) <= 0 or sorted(set(lengths)) != lengths:
        raise ValueError(f"lengths must be positive and ascending; got {lengths}")
    rows, baseline = [], None
    for length in lengths:
        blocks = _blocks(windows, length)
        data = paired_blocks(features, design, blocks, levels=levels)
        shared = data.differences.mean(axis=0)
        tested = (data.firing_blocks >= MIN_FIRING_BLOCKS).any(axis=0)
        tested &= np.ptp(shared, axis=0) > 0
        if baseline is None:
            everywhere = tested  # the features that all correlations are of
        test = moderated_t(shared[:, tested], data.sizes)
        called, se = np.zeros((2, len(tested)))
        called[tested] = adjust_p_values(test.p) <= alpha
        se[tested] = test.se
        if baseline is None:
            baseline = called, se, tested
        both = tested & baseline[2]
        rows.append(
            {
                "length_bp": length,
                "n_blocks": len(data.sizes),
                "autocorrelation": _window_correlation(
                    features, design, windows, length, everywhere, levels
                ),
                "adjacent": _adjacent_correlation(data, blocks, everywhere),
                "n_called": int(called.sum()),
                "kept": (called * baseline[0]).sum() / max(baseline[0].sum(), 1),
                "se_ratio": float(np.median(se[both] / baseline[1][both])),
            }
        )
    return pd.DataFrame(rows).set_index("length_bp")


def choose_block_length(curve: pd.DataFrame, *, limit: float = 0.1) -> int:
    """Return the shortest length from which on blocks are as good as independent.

    Windows may hardly correlate at any distance, and the means of many of them still
    do; so both the windows a length apart and the adjacent blocks are asked.

    Parameters
    ----------
    curve : pandas.DataFrame
        From `block_length_curve`.
    limit : float, default 0.1
        Correlation that must not be reached at this length or beyond.

    Returns
    -------
    int
        In bp.

    Raises
    ------
    ValueError
        If the longest length still reaches the limit.
    """
    largest = curve[["autocorrelation", "adjacent"]].max(axis=1)
    known = largest.dropna()
    if not len(known):
        raise ValueError("no two windows are as far apart as any of the lengths")
    enough = curve.index[~(largest >= limit)[::-1].cummax()[::-1]]
    if not len(enough):
        raise ValueError(
            f"blocks of {known.index[-1]} bp still correlate at {known.iloc[-1]:.2f}, "
            f"with a limit of {limit}: add longer lengths, or use chromosomes as blocks"
        )
    return int(enough[0])


def _window_correlation(
    features: Any,
    design: pd.DataFrame,
    windows: pd.DataFrame,
    length: int,
    tested: np.ndarray,
    levels: tuple[str, str],
) -> float:
    """Correlate differences of windows that are about a length apart."""
    start = windows["start"].to_numpy()
    chrom = pd.factorize(windows["chrom"])[0]
    near = []
    for number in np.unique(chrom):
        own = np.flatnonzero(chrom == number)
        distance = start[own] - start[own][:, None]
        low, high = np.nonzero(np.abs(distance - length) <= _NEAR * length)
        near.append(np.stack([own[low], own[high]]))
    first, second = np.concatenate(near, axis=1)
    if not len(first):
        return float("nan")
    shape = (len(start), len(start))
    apart = sparse.csr_array((np.ones(len(first)), (first, second)), shape=shape)
    found = []
    for rows in check_pairs(design, levels).values():
        low, high = (np.asarray(features[row])[:, tested] for row in rows)
        d = (high - low).astype(float)
        d -= d.mean(axis=0)
        found.append(_ratio((d * (apart @ d)).sum(axis=0) / len(first), d))
    return float(np.mean(np.concatenate(found)))


def _adjacent_correlation(
    data: PairedBlocks, blocks: np.ndarray, tested: np.ndarray
) -> float:
    """Correlate the mean differences of blocks next to each other."""
    names = pd.Series(pd.unique(blocks)).str.rsplit(":", n=1, expand=True)
    number = pd.to_numeric(names[1])
    following = {key: i for i, key in enumerate(zip(names[0], number, strict=True))}
    pairs = [
        (i, following[chrom, n + 1])
        for (chrom, n), i in following.items()
        if (chrom, n + 1) in following
    ]
    if not pairs:
        return float("nan")
    first, second = np.transpose(pairs)
    found = []
    for d in data.differences[..., tested]:
        d = d - d.mean(axis=0)
        found.append(_ratio((d[first] * d[second]).mean(axis=0), d))
    return float(np.mean(np.concatenate(found)))


def _ratio(covariance: np.ndarray, centered: np.ndarray) -> np.ndarray:
    """Divide covariances by variances, where there are any."""
    variance = np.square(centered).mean(axis=0)
    return covariance[variance > 0] / variance[variance > 0]
