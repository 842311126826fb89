"""Tests and checks that the three annotation levels share.

Tests are one-sided for over-representation. P-values are natural logarithms, because
features reach far beyond the smallest float. Arguments broadcast like numpy's.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import numpy as np
import pandas as pd
from scipy.special import betainc, betaln, gammaln

__all__ = [
    "EmptyFeatureWarning",
    "benjamini_hochberg",
    "binomial_log_tail",
    "check_membership",
    "check_regions",
    "genome_keys",
    "hypergeometric_log_tail",
    "ranges",
]

_BLOCK = 1 << 16  # cells per block: the working arrays stay in the processor's cache
_NEGLIGIBLE = 1e-16
_UNDERFLOW = 1e-290
_CHROM_BITS = 40  # chromosome and position share one sortable int64


class EmptyFeatureWarning(UserWarning):
    """Some features have no region to test; their p-values are missing."""


def binomial_log_tail(
    k: np.ndarray | float, n: np.ndarray | float, rate: np.ndarray | float
) -> np.ndarray:
    """Natural logarithm of P(X >= k) for X binomial(n, rate).

    Parameters
    ----------
    k, n, rate : array_like
        Successes, trials (both may be real: weighted counts) and success probability
        in [0, 1]; they broadcast.

    Returns
    -------
    numpy.ndarray
        Log tail, at most 0; exact also where the tail underflows.

    Notes
    -----
    The tail is the regularized incomplete beta function ``I_rate(k, n - k + 1)``. Where
    it underflows, its hypergeometric series is summed: all terms are positive and the
    ratio of neighbors is below 1 that far from the mean.
    """
    k, n, rate = np.broadcast_arrays(
        *(np.asarray(x, dtype=np.float64) for x in (k, n, rate))
    )
    log_tail = np.zeros(k.shape)
    log_tail[(k > n) | ((k > 0) & (rate <= 0))] = -np.inf
    inside = (k > 0) & (k <= n) & (rate > 0) & (rate < 1)
    a, b, x = k[inside], n[inside] - k[inside] + 1, rate[inside]
    tail = betainc(a, b, x)
    with np.errstate(divide="ignore"):
        values = np.log(tail)
    far = tail < _UNDERFLOW
    if far.any():
        values[far] = _far_binomial_log_tail(a[far], b[far], x[far])
    log_tail[inside] = values
    return np.minimum(log_tail, 0)


def _far_binomial_log_tail(a: np.ndarray, b: np.ndarray, x: np.ndarray) -> np.ndarray:
    log_first = a * np.log(x) + b * np.log1p(-x) - np.log(a) - betaln(a, b)
    term, total = np.ones_like(a), np.ones_like(a)
    step = 0
    while (term > _NEGLIGIBLE * total).any():
        term *= (a + b + step) / (a + 1 + step) * x
        total += term
        step += 1
    return log_first + np.log(total)


def hypergeometric_log_tail(
    k: np.ndarray, population: np.ndarray | int, marked: np.ndarray, drawn: np.ndarray
) -> np.ndarray:
    """Natural logarithm of P(X >= k) when ``drawn`` of ``population`` are taken.

    Equal cells are computed once, and each by a sum that starts at ``k`` and stops when
    further terms no longer count, so millions of cells take seconds.

    Parameters
    ----------
    k, population, marked, drawn : array_like of int
        Marked units among the drawn, size of the population, marked units in it, units
        drawn from it; they broadcast.

    Returns
    -------
    numpy.ndarray
        Log tail, at most 0, with absolute error about 1e-15 times ``population`` (from
        the logarithms of factorials).

    Raises
    ------
    ValueError
        If ``marked`` or ``drawn`` is negative or exceeds the population.
    """
    k, population, marked, drawn = np.broadcast_arrays(
        *(np.asarray(x, dtype=np.int64) for x in (k, population, marked, drawn))
    )
    too_many = (marked > population) | (drawn > population)
    if (too_many | (marked < 0) | (drawn < 0)).any():
        raise ValueError("marked and drawn must be between 0 and the population")
    log_tail = np.zeros(k.shape)  # 0 up to the smallest possible count
    largest = np.minimum(marked, drawn)
    log_tail[k > largest] = -np.inf
    inside = (k <= largest) & (k > np.maximum(0, marked + drawn - population))
    cells = [x[inside] for x in (population, marked, drawn, k)]
    if len(cells[0]):
        first, inverse = _unique_cells(cells)
        blocks = np.array_split(first, -(-len(first) // _BLOCK))
        values = [_hypergeometric_block(*(x[b] for x in cells)) for b in blocks]
        log_tail[inside] = np.concatenate(values)[inverse]
    return np.minimum(log_tail, 0)


def _unique_cells(columns: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Index of the first of every distinct row, and the inverse."""
    key = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:  # ranks stay below the number of rows: no overflow
        low, span = int(column.min()), int(np.ptp(column)) + 1
        if span > 1 and int(key.max()) > (2**62) // span:
            key = np.unique(key, return_inverse=True)[1]
        key = key * span + (column - low)
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    return first, inverse


def _hypergeometric_block(
    population: np.ndarray, marked: np.ndarray, drawn: np.ndarray, k: np.ndarray
) -> np.ndarray:
    """Sum away from the mean: upward from k, or down from k - 1 and take the rest."""
    population, marked, drawn, k = (
        x.astype(np.float64) for x in (population, marked, drawn, k)
    )
    upward = k * population > marked * drawn
    at = np.where(upward, k, k - 1)
    log_first = (
        _log_choose(marked, at)
        + _log_choose(population - marked, drawn - at)
        - _log_choose(population, drawn)
    )
    rest = population - marked - drawn
    # P(i + 1) / P(i), or P(i - 1) / P(i) downward, is a * b / (c * d).
    a, b = np.where(upward, marked - at, at), np.where(upward, drawn - at, rest + at)
    c = np.where(upward, at, marked - at) + 1
    d = np.where(upward, rest + at, drawn - at) + 1
    total = np.ones_like(k)
    term, active = np.ones_like(k), np.arange(len(k))
    while len(active):
        term = term * (a * b) / (c * d)
        total[active] += term
        going = term > _NEGLIGIBLE * total[active]
        active, term = active[going], term[going]
        a, b, c, d = a[going] - 1, b[going] - 1, c[going] + 1, d[going] + 1
    log_sum = log_first + np.log(total)
    rest_of_one = np.log1p(-np.exp(np.where(upward, -1.0, log_sum)))
    return np.where(upward, log_sum, rest_of_one)


def _log_choose(n: np.ndarray, k: np.ndarray) -> np.ndarray:
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)


def benjamini_hochberg(log_p: np.ndarray, *, n_tests: int | None = None) -> np.ndarray:
    """Return Benjamini-Hochberg q-values of natural-log p-values.

    Parameters
    ----------
    log_p : array_like
        Log p-values of any shape; all are one family of tests. NaN marks what was not
        tested and stays NaN.
    n_tests : int or None
        Number of tests if it is larger than the p-values given: the others are taken
        to have p = 1.

    Returns
    -------
    numpy.ndarray
        q-values, same shape.
    """
    log_p = np.asarray(log_p, dtype=np.float64)
    q_values = np.full(log_p.shape, np.nan)
    tested = np.isfinite(log_p) | np.isneginf(log_p)
    values = log_p[tested]
    if len(values):
        order = np.argsort(values)
        ranks = np.arange(1, len(values) + 1)
        adjusted = values[order] + np.log((n_tests or len(values)) / ranks)
        monotone = np.minimum.accumulate(adjusted[::-1])[::-1]
        ordered = np.empty_like(values)
        ordered[order] = np.exp(np.minimum(monotone, 0))
        q_values[tested] = ordered
    return q_values


def check_regions(regions: pd.DataFrame) -> pd.DataFrame:
    """Check a table of regions and return its chrom, start and end.

    Parameters
    ----------
    regions : pandas.DataFrame
        Columns ``chrom``, ``start``, ``end`` (0-based, half-open).

    Returns
    -------
    pandas.DataFrame
        The three columns with a fresh index, positions as int64.

    Raises
    ------
    ValueError
        If a column is missing, there is no region, a position is not an integer or is
        negative, or a region does not end after its start; the message names the row.
    """
    missing = [x for x in ("chrom", "start", "end") if x not in regions.columns]
    if missing:
        raise ValueError(
            f"regions must have columns chrom, start, end; missing {', '.join(missing)}"
        )
    if len(regions) == 0:
        raise ValueError("regions must not be empty")
    checked = pd.DataFrame({"chrom": regions["chrom"].to_numpy(dtype=object)})
    for column in ("start", "end"):
        values = regions[column].to_numpy()
        if not np.issubdtype(values.dtype, np.integer):
            raise ValueError(f"regions {column} must be integers; got {values.dtype}")
        checked[column] = values.astype(np.int64)
    wrong = (checked["start"] < 0) | (checked["end"] <= checked["start"])
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        chrom, start, end = checked.iloc[row]
        raise ValueError(
            f"regions must have 0 <= start < end; row {row} is {chrom}:{start}-{end} "
            f"({int(wrong.sum())} such rows)"
        )
    return checked


def check_membership(membership: np.ndarray, n_regions: int) -> np.ndarray:
    """Check the table of which feature fires in which region.

    Parameters
    ----------
    membership : numpy.ndarray of bool, shape (n_features, n_regions)
        True where the feature fires.
    n_regions : int
        Number of regions it must have.

    Returns
    -------
    numpy.ndarray of bool, shape (n_features, n_regions)
        The same table.

    Warns
    -----
    EmptyFeatureWarning
        If features fire nowhere.

    Raises
    ------
    ValueError
        If the type or the shape is another.
    """
    membership = np.asarray(membership)
    if membership.dtype != np.bool_:
        raise ValueError(f"membership must be bool; got {membership.dtype}")
    if membership.ndim != 2 or membership.shape[1] != n_regions:
        raise ValueError(
            f"membership must have shape (n_features, {n_regions}); "
            f"got {membership.shape}"
        )
    empty = np.flatnonzero(~membership.any(axis=1))
    if len(empty):
        shown = ", ".join(map(str, empty[:5])) + (" ..." if len(empty) > 5 else "")
        warnings.warn(
            f"{len(empty)} of {len(membership)} features have no region and are not "
            f"tested: {shown}",
            EmptyFeatureWarning,
            stacklevel=3,
        )
    return membership


def genome_keys(
    intervals: pd.DataFrame, chroms: Iterable[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Put the starts and ends of intervals on one line, chromosome after chromosome.

    Parameters
    ----------
    intervals : pandas.DataFrame
        Columns chrom, start, end.
    chroms : iterable of str
        Order of chromosomes; repeats do not matter, and chromosomes it lacks follow.

    Returns
    -------
    start, end : numpy.ndarray of int64
        Keys that sort by chromosome, then position.
    """
    # Distinct names first: iterating over a million strings takes seconds.
    named = chroms.unique() if isinstance(chroms, pd.Series) else chroms
    others = sorted(intervals["chrom"].unique())
    order = dict.fromkeys(named) | dict.fromkeys(others)
    code = {chrom: i << _CHROM_BITS for i, chrom in enumerate(order)}
    offset = intervals["chrom"].map(code).to_numpy(dtype=np.int64)
    return offset + intervals["start"].to_numpy(), offset + intervals["end"].to_numpy()


def ranges(first: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Concatenate ``arange(f, f + n)`` over pairs of first and length."""
    ends = np.cumsum(length)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(first - (ends - length), length)
