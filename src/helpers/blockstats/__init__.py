"""Tests over few, unequal replicates for many features at once.

Values are (n_replicates, n_features): genomic blocks, or pairs of biosamples, with the
number of windows behind each as its size. Moderated t (Smyth 2004, Stat. Appl. Genet.
Mol. Biol. 3:3), its sign flips and bootstraps as matrix products, and multiplicity.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from helpers.blockstats._moderation import SqueezedVariance, squeeze_variance

__all__ = [
    "CHUNK",
    "BlockBootstrap",
    "ModeratedTest",
    "SqueezedVariance",
    "adjust_p_values",
    "block_bootstrap",
    "jackknife",
    "max_t_p_values",
    "moderated_t",
    "resampled_t",
    "squeeze_variance",
]

CHUNK = 2**21  # elements per temporary of a resampling step, 8 MB in float32


class ModeratedTest(NamedTuple):
    """Moderated one-sample t-test per feature.

    Attributes
    ----------
    delta, se, t, p : numpy.ndarray, shape (n_features,)
        Weighted mean, its moderated standard error, their ratio, two-sided p.
    df : float
        Degrees of freedom, prior included.
    variance : numpy.ndarray, shape (n_features,)
        Variance of a replicate before moderation.
    squeezed : SqueezedVariance
        The variance after it, and the prior.
    """

    delta: np.ndarray
    se: np.ndarray
    t: np.ndarray
    p: np.ndarray
    df: float
    variance: np.ndarray
    squeezed: SqueezedVariance


def moderated_t(
    values: np.ndarray, sizes: np.ndarray, *, covariate: np.ndarray | None = None
) -> ModeratedTest:
    """Test whether the mean over replicates is zero, with moderated variance.

    Parameters
    ----------
    values : numpy.ndarray, shape (n_replicates, n_features)
        One value per replicate, e.g. the mean difference over a block's windows.
    sizes : numpy.ndarray, shape (n_replicates,)
        Weights, e.g. windows per block.
    covariate : numpy.ndarray, shape (n_features,), optional
        Trend of the prior variance, see `squeeze_variance`.

    Returns
    -------
    ModeratedTest
        With n_replicates - 1 + d0 degrees of freedom.
    """
    n = len(values)
    delta, variance = jackknife(values, sizes)
    squeezed = squeeze_variance(variance, n - 1, covariate=covariate)
    # No more degrees of freedom than all features hold together, as in limma.
    df = min(squeezed.prior_df + n - 1, (n - 1) * values.shape[1])
    se = np.sqrt(squeezed.moderated / n)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = delta / se
    p = 2 * stats.t.sf(np.abs(t), df)
    return ModeratedTest(delta, se, t, p, df, variance, squeezed)


def jackknife(values: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the weighted mean, and n times its delete-one jackknife variance.

    With equal sizes these are the ordinary mean and sample variance.

    Parameters
    ----------
    values : numpy.ndarray, shape (n_replicates, n_features)
        One value per replicate.
    sizes : numpy.ndarray, shape (n_replicates,)
        Weights.

    Returns
    -------
    mean, variance : numpy.ndarray, shape (n_features,)
        The variance of the mean is ``variance / n_replicates``.
    """
    weights = sizes / sizes.sum()
    mean = weights @ values
    # What leaving a replicate out does to the mean.
    shift = (weights / (1 - weights))[:, None] * (mean - values)
    shift -= shift.mean(axis=0)
    return mean, (len(values) - 1) * np.einsum("bj,bj->j", shift, shift)


def resampled_t(
    values: np.ndarray,
    sizes: np.ndarray,
    squeezed: SqueezedVariance,
    *,
    signs: np.ndarray | None = None,
    counts: np.ndarray | None = None,
) -> np.ndarray:
    """Recompute the moderated t for resampled replicates, as matrix products.

    Parameters
    ----------
    values, sizes : numpy.ndarray
        As in `moderated_t`; the arithmetic is done in the type of `values`.
    squeezed : SqueezedVariance
        Prior of the data, which the resamples keep.
    signs : numpy.ndarray, shape (n_resamples, n_replicates), optional
        +1 or -1 per replicate (sign flips).
    counts : numpy.ndarray, shape (n_resamples, n_replicates), optional
        How often the replicate is drawn; rows add up to n_replicates (bootstrap).

    Returns
    -------
    numpy.ndarray, shape (n_resamples, n_features)
        Moderated t of every resample.
    """
    n = len(values)
    ones = np.ones((1, n), values.dtype)
    signs = ones if signs is None else signs
    counts = ones if counts is None else counts
    weights = sizes / (counts @ sizes)[:, None]
    signed = signs * counts
    mean = (signed * weights) @ values
    if np.ptp(sizes) == 0:
        variance = (counts @ values**2 - n * mean**2) / (n - 1)
    else:  # the jackknife of `jackknife`, its square multiplied out
        leverage = (weights / (1 - weights)).astype(values.dtype)
        variance = (counts * leverage**2) @ values**2
        variance = variance - 2 * mean * ((signed * leverage**2) @ values)
        variance += mean**2 * (counts * leverage**2).sum(axis=1, keepdims=True)
        shift = (signed * leverage) @ values
        shift -= mean * (counts * leverage).sum(axis=1, keepdims=True)
        variance -= shift**2 / n
        variance *= n - 1
    share = (n - 1) / (n - 1 + squeezed.prior_df)
    moderated = np.maximum(variance, 0) * share
    moderated += ((1 - share) * squeezed.prior_variance).astype(values.dtype)
    with np.errstate(divide="ignore", invalid="ignore"):
        return mean * np.sqrt(n / moderated)


def max_t_p_values(
    values: np.ndarray,
    sizes: np.ndarray,
    test: ModeratedTest,
    *,
    n_flips: int,
    random_state: int | np.random.Generator,
) -> np.ndarray:
    """Adjust p for the largest absolute t under sign flips that all features share.

    Flipping a replicate flips all its features together, which keeps their correlation;
    the family-wise error is controlled if replicates are symmetric about zero. Stepping
    down from the strongest feature (Romano & Wolf 2005, J. Am. Stat. Assoc. 100:94)
    compares each with the maximum over itself and the weaker ones only, so that strong
    effects do not hide moderate ones.

    Parameters
    ----------
    values, sizes : numpy.ndarray
        As in `moderated_t`.
    test : ModeratedTest
        Result of `moderated_t` on them.
    n_flips : int
        Random sign patterns; all of them are enumerated where there are no more.
    random_state : int or numpy.random.Generator
        Source of the patterns.

    Returns
    -------
    numpy.ndarray, shape (n_features,)
        ``(1 + hits) / (n_flips + 1)``.
    """
    rng = np.random.default_rng(random_state)
    order = np.argsort(np.abs(test.t), kind="stable")  # NaN comes last
    values32, sizes32 = values[:, order].astype(np.float32), sizes.astype(np.float32)
    squeezed = test.squeezed._replace(
        prior_variance=test.squeezed.prior_variance[order]
    )
    # A flip of every sign gives the observed |t| again: rounding must not lose it.
    observed = (np.abs(test.t[order]) * (1 - 1e-5)).astype(np.float32)
    hits, n_patterns = np.zeros(len(order), dtype=int), 0
    for signs in _sign_flips(*values.shape, n_flips, rng):
        t = resampled_t(values32, sizes32, squeezed, signs=signs)
        # Largest |t| of each feature and all weaker ones (features ascend).
        largest = np.fmax.accumulate(np.abs(t, out=t), axis=1, out=t)
        hits += np.count_nonzero(largest >= observed, axis=0)
        n_patterns += len(signs)
    adjusted = np.empty(len(order))
    strongest_first = ((1 + hits) / (1 + n_patterns))[::-1]
    adjusted[order[::-1]] = np.maximum.accumulate(strongest_first)
    adjusted[np.isnan(test.t)] = np.nan
    return adjusted


def _sign_flips(
    n: int, n_features: int, n_flips: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Yield chunks (rows, n) of signs: all patterns if few enough, else random ones."""
    rows = max(1, CHUNK // n_features)
    exact = 2**n - 1 <= n_flips  # the identity is the "+ 1" of the p-value
    n_flips = 2**n - 1 if exact else n_flips
    for start in range(0, n_flips, rows):
        stop = min(start + rows, n_flips)
        if exact:
            bits = (np.arange(start + 1, stop + 1)[:, None] >> np.arange(n)) & 1
        else:
            bits = rng.integers(0, 2, size=(stop - start, n), dtype=np.int8)
        yield (1 - 2 * bits).astype(np.float32)


def adjust_p_values(p: np.ndarray, method: str = "bonferroni") -> np.ndarray:
    """Adjust p-values for multiplicity; NaN (untested) stays NaN and is not counted.

    Parameters
    ----------
    p : numpy.ndarray, shape (n_features,)
        Raw p-values.
    method : {"bonferroni", "holm", "bh"}
        Family-wise error (the first two) or false discovery rate.

    Returns
    -------
    numpy.ndarray, shape (n_features,)
        Adjusted p-values.

    Raises
    ------
    ValueError
        If the method is unknown.
    """
    p = np.asarray(p, dtype=float)
    tested = ~np.isnan(p)
    m = int(tested.sum())
    adjusted = np.full(p.shape, np.nan)
    if method == "bonferroni":
        adjusted[tested] = np.minimum(p[tested] * m, 1)
    elif method == "holm":
        order = np.argsort(p[tested])
        steps = np.maximum.accumulate(p[tested][order] * np.arange(m, 0, -1))
        holm = np.empty(m)
        holm[order] = np.minimum(steps, 1)
        adjusted[tested] = holm
    elif method == "bh":
        if m:
            adjusted[tested] = stats.false_discovery_control(p[tested])
    else:
        raise ValueError(f"method must be bonferroni, holm or bh; got {method!r}")
    return adjusted


class BlockBootstrap(NamedTuple):
    """Estimates with percentile intervals from resampled blocks.

    Attributes
    ----------
    estimate, low, high : numpy.ndarray, shape (...)
        Statistic of the data and its interval.
    draws : numpy.ndarray, shape (..., n_draws)
        Statistic of every draw. Draw i resamples the same blocks for all rows, so
        differences between methods are paired.
    """

    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray
    draws: np.ndarray


def block_bootstrap(
    values: np.ndarray,
    blocks: Sequence[Any] | np.ndarray,
    *,
    denominators: np.ndarray | None = None,
    n_draws: int = 2000,
    confidence: float = 0.95,
    random_state: int | np.random.Generator = 0,
) -> BlockBootstrap:
    """Bootstrap a mean, or a ratio of sums, over genomic blocks of windows.

    Parameters
    ----------
    values : array, shape (..., n_windows)
        One value per window; leading axes are methods or outcomes.
    blocks : sequence, shape (n_windows,)
        Genomic block of each window, the unit that is resampled.
    denominators : array, broadcastable to values, optional
        Gives the ratio sum(values) / sum(denominators); without it, the mean.
    n_draws : int, default 2000
        Bootstrap draws.
    confidence : float, default 0.95
        Level of the interval.
    random_state : int or numpy.random.Generator, default 0
        Source of the draws; the same state draws the same blocks.

    Returns
    -------
    BlockBootstrap
        Leading axes as in `values`.

    Raises
    ------
    ValueError
        If blocks do not fit the windows, there is only one block, a value is not
        finite, or denominators sum to zero.
    """
    values = np.asarray(values, dtype=np.float64)
    codes, names = pd.factorize(np.asarray(blocks))
    if codes.shape != values.shape[-1:] or (codes < 0).any() or len(names) < 2:
        raise ValueError(
            f"blocks must name one of at least 2 blocks per window {values.shape[-1:]};"
            f" got shape {codes.shape} with {len(names)} blocks"
        )
    ones = np.ones(values.shape[-1])
    below = np.broadcast_to(
        ones if denominators is None else denominators, values.shape
    )
    if not (np.isfinite(values).all() and np.isfinite(below).all()):
        raise ValueError("values and denominators must be finite; got NaN or infinity")
    if (below.sum(axis=-1) == 0).any():
        raise ValueError("denominators must not sum to zero")
    member = np.eye(len(names))[codes]  # (n_windows, n_blocks)
    above, below = values @ member, below @ member
    rng = np.random.default_rng(random_state)
    chance = np.full(len(names), 1 / len(names))
    counts = rng.multinomial(len(names), chance, size=n_draws).T
    with np.errstate(divide="ignore", invalid="ignore"):
        draws = (above @ counts) / (below @ counts)
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=-1)
    return BlockBootstrap(above.sum(axis=-1) / below.sum(axis=-1), low, high, draws)
