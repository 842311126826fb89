"""Empirical Bayes variances: the few replicates of a feature lean on all features.

Smyth 2004, Stat. Appl. Genet. Mol. Biol. 3:3, with a prior that may follow a covariate
along a natural cubic spline. `helpers.blockstats` is the public face of this module.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import special

__all__ = ["SqueezedVariance", "natural_spline", "squeeze_variance"]


class SqueezedVariance(NamedTuple):
    """Moderated variances and the prior they were moved towards."""

    moderated: np.ndarray
    prior_variance: np.ndarray
    prior_df: float


def squeeze_variance(
    variance: np.ndarray, df: float, *, covariate: np.ndarray | None = None
) -> SqueezedVariance:
    """Move variances towards a common value, as far as their spread warrants.

    Empirical Bayes with a scaled inverse chi-square prior whose degrees of freedom d0
    and scale s0^2 are fitted to the mean and variance of the log variances (Smyth 2004,
    section 6.2). It removes the winners that owe their t to a tiny variance.

    Parameters
    ----------
    variance : numpy.ndarray, shape (n_features,)
        Sample variances. Zeros do not enter the fit and become the prior's share.
    df : float
        Degrees of freedom of each.
    covariate : numpy.ndarray, shape (n_features,), optional
        Let the log of s0^2 follow this covariate smoothly (natural cubic spline), e.g.
        the log mean activation.

    Returns
    -------
    SqueezedVariance
        ``(d0 s0^2 + df s^2) / (d0 + df)``, with `prior_df` infinite if the variances
        spread no more than chance makes them.

    Raises
    ------
    ValueError
        If no variance is positive.
    """
    positive = variance > 0
    n = int(positive.sum())
    if n == 0:
        raise ValueError("variance: no feature varies; got zero for every feature")
    # E log(s^2) = log(s0^2) - this offset if the true variance is s0^2
    offset = np.log(df / 2) - special.digamma(df / 2)
    log_variance = np.log(variance[positive]) + offset
    n_basis = 1 if covariate is None else 1 + (n >= 3) + (n >= 6) + (n >= 30)
    if n_basis == 1:
        center = np.full(len(variance), log_variance.mean())
    else:
        fitted = covariate[positive]
        knots = np.quantile(fitted, np.linspace(0, 1, n_basis))
        # No extrapolation: features outside the fitted range take the end's value.
        basis = natural_spline(np.clip(covariate, knots[0], knots[-1]), knots)
        center = basis @ np.linalg.lstsq(basis[positive], log_variance)[0]
    if n == n_basis:
        return SqueezedVariance(variance.astype(float), np.exp(center), 0.0)
    residual = log_variance - center[positive]
    excess = (residual**2).sum() / (n - n_basis) - special.polygamma(1, df / 2)
    if excess <= 0:
        prior = np.exp(center)
        return SqueezedVariance(prior.copy(), prior, np.inf)
    prior_df = 2 * _inverse_trigamma(excess)
    prior = np.exp(center + special.digamma(prior_df / 2) - np.log(prior_df / 2))
    moderated = (prior_df * prior + df * variance) / (prior_df + df)
    return SqueezedVariance(moderated, prior, prior_df)


def natural_spline(x: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """Evaluate the natural cubic spline basis, one function per distinct knot.

    Parameters
    ----------
    x : numpy.ndarray, shape (n,)
        Where to evaluate.
    knots : numpy.ndarray
        Ascending; the curve is linear outside of the first and the last.

    Returns
    -------
    numpy.ndarray, shape (n, n_distinct_knots)
        The constant, the line, and the curved functions (Hastie, Tibshirani & Friedman
        2009, section 5.2.1).
    """
    knots = np.unique(knots)
    columns = [np.ones_like(x), x][: len(knots)]

    def slope(k: int) -> np.ndarray:
        cubes = (
            np.clip(x - knots[k], 0, None) ** 3 - np.clip(x - knots[-1], 0, None) ** 3
        )
        return cubes / (knots[-1] - knots[k])

    columns += [slope(k) - slope(len(knots) - 2) for k in range(len(knots) - 2)]
    return np.stack(columns, axis=1)


def _inverse_trigamma(x: float) -> float:
    """Solve trigamma(y) = x by Newton's method on 1 / trigamma, which is convex."""
    y = 0.5 + 1 / x
    for _ in range(50):
        trigamma = special.polygamma(1, y)
        step = trigamma * (1 - trigamma / x) / special.polygamma(2, y)
        y += step
        if -step / y < 1e-10:
            break
    return float(y)
