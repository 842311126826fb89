"""Effect sizes of paired features with intervals, and what lies behind a change.

Sums over genomic blocks have shape (..., n_blocks, n_features); statistics of them get
a delete-one-block jackknife interval. `helpers.cds` is the public face of this module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import stats

from helpers.blockstats import jackknife
from helpers.pairing import PairedBlocks

__all__ = ["Estimate", "effect_columns", "hurdle_columns", "read_hurdle"]

Statistic = Callable[..., np.ndarray]
_FEATURES = 128  # at a time


class Estimate(NamedTuple):
    """A statistic per feature with its jackknife standard error and interval."""

    value: np.ndarray
    se: np.ndarray
    low: np.ndarray
    high: np.ndarray


def _with_interval(
    value: np.ndarray, se: np.ndarray, df: int, alpha: float
) -> Estimate:
    margin = stats.t.isf(alpha / 2, df) * se
    return Estimate(value, se, value - margin, value + margin)


def _of_sums(statistic: Statistic, *sums: np.ndarray, alpha: float) -> Estimate:
    """Jackknife a function of sums over blocks.

    Parameters
    ----------
    statistic : callable
        Maps arrays (..., n, k), one for each of `sums`, and the slice of k features
        they are of, to (n, k).
    *sums : numpy.ndarray, shape (..., n_blocks, n_features)
        What each block adds to the sums.
    alpha : float
        One minus the level of the interval.
    """
    n_blocks, n_features = sums[0].shape[-2:]
    value, se = np.empty(n_features), np.empty(n_features)
    for first in range(0, n_features, _FEATURES):  # temporaries stay in the cache
        part = slice(first, first + _FEATURES)
        own = [x[..., part] for x in sums]
        totals = [x.sum(axis=-2, keepdims=True) for x in own]
        value[part] = statistic(*totals, part)[0]
        left_out = [t - x for t, x in zip(totals, own, strict=True)]
        variance = statistic(*left_out, part).var(axis=0)
        se[part] = np.sqrt((n_blocks - 1) * variance)
    return _with_interval(value, se, n_blocks - 1, alpha)


def _of_means(values: np.ndarray, sizes: np.ndarray, alpha: float) -> Estimate:
    """Jackknife the weighted mean of block values (n_blocks, n_features)."""
    mean, variance = jackknife(values, sizes)
    se = np.sqrt(variance / len(values))
    return _with_interval(mean, se, len(values) - 1, alpha)


def effect_columns(
    data: PairedBlocks, pseudo_count: float, alpha: float
) -> dict[str, np.ndarray]:
    """Return effect sizes that need no test: fold, AUC, firing rate.

    Parameters
    ----------
    data : PairedBlocks
        The biosamples.
    pseudo_count : float
        Added to both mean activations of the fold.
    alpha : float
        One minus the level of the intervals.

    Returns
    -------
    dict
        ``log2_fold``, ``auc`` and, if firing rates were given, ``delta_rate``, each
        with ``_low`` and ``_high``; arrays (n_features,).
    """
    weights = data.sizes[:, None]
    low, high = data.block_means.mean(axis=1) * weights  # means of the lineages
    windows = np.broadcast_to(weights, low.shape)

    def fold(
        low: np.ndarray, high: np.ndarray, windows: np.ndarray, part: slice
    ) -> np.ndarray:
        floor = pseudo_count * windows
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.log2((high + floor) / (low + floor))

    columns = _columns("log2_fold", _of_sums(fold, low, high, windows, alpha=alpha))
    columns |= _columns("auc", _of_means(data.auc, data.sizes, alpha))
    if data.block_rates is not None:
        first, second = data.block_rates.mean(axis=1)
        change = _of_means(second - first, data.sizes, alpha)
        columns |= _columns("delta_rate", change)
    return columns


def _columns(name: str, estimate: Estimate) -> dict[str, np.ndarray]:
    return {
        name: estimate.value,
        f"{name}_low": estimate.low,
        f"{name}_high": estimate.high,
    }


def hurdle_columns(data: PairedBlocks, alpha: float) -> dict[str, np.ndarray]:
    r"""Split a change into how often a feature fires and how strongly when it does.

    With P the firing rate and I = mean activation / P, both over the genome, and means
    over the lineages,

    .. math:: \log \frac{P_1 (1 - P_0)}{P_0 (1 - P_1)}, \qquad \log \frac{I_1}{I_0}

    as in the two-part model of MAST (Finak et al. 2015, Genome Biol. 16:278).

    Parameters
    ----------
    data : PairedBlocks
        With firing rates.
    alpha : float
        One minus the level of the intervals.

    Returns
    -------
    dict
        ``log_odds`` and ``log_intensity``, each with ``_low``, ``_high`` and a
        two-sided ``p_``; natural logarithms. Half a firing token is added to either
        side of the odds. Lineages in which the feature fires in fewer than two blocks
        of a context have no intensity; where that holds for all, it is NaN.
    """
    weights = data.sizes[:, None]
    fired = data.block_rates * weights  # in windows, (2, n_lineages, n_blocks, J)
    acts = data.block_means * weights
    windows = np.broadcast_to(weights, fired.shape)
    half = data.one_token / 2

    def odds(fired: np.ndarray, windows: np.ndarray, part: slice) -> np.ndarray:
        logit = np.log((fired + half) / (windows - fired + half))
        return (logit[1] - logit[0]).mean(axis=0)

    # A ratio must survive the loss of any one block.
    defined = ((fired > 0).sum(axis=2) >= 2).all(axis=0)[:, None]  # (L, 1, J)

    def intensity(acts: np.ndarray, fired: np.ndarray, part: slice) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            log = np.log(acts / fired)
            total = np.where(defined[..., part], log[1] - log[0], 0).sum(axis=0)
            return total / defined[..., part].sum(axis=0)

    parts = {
        "log_odds": _of_sums(odds, fired, windows, alpha=alpha),
        "log_intensity": _of_sums(intensity, acts, fired, alpha=alpha),
    }
    columns = {}
    for name, estimate in parts.items():
        with np.errstate(invalid="ignore", divide="ignore"):
            t = estimate.value / estimate.se
        columns |= _columns(name, estimate)
        columns[f"p_{name}"] = 2 * stats.t.sf(np.abs(t), len(weights) - 1)
    return columns


def read_hurdle(columns: dict[str, np.ndarray], alpha: float) -> np.ndarray:
    """Say for every feature which part of it changed, by Holm over the two parts.

    Returns
    -------
    numpy.ndarray of str, shape (n_features,)
        ``on-off`` (the firing rate alone), ``up-down`` (the intensity alone), ``both``
        or ``unresolved``.
    """
    p = np.stack([columns["p_log_odds"], columns["p_log_intensity"]])
    p = np.where(np.isnan(p), 1.0, p)
    # Holm: the smaller has to pass alpha / 2, then the other one alpha.
    odds, intensity = (p <= alpha / 2) | ((p <= alpha) & (p.min(axis=0) <= alpha / 2))
    return np.select(
        [odds & intensity, odds, intensity],
        ["both", "on-off", "up-down"],
        default="unresolved",
    )
