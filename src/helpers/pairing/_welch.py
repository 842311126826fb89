"""The naive contrastive t, kept for comparison, from moments that can be streamed.

`helpers.pairing` and `helpers.cds` are the public faces of this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

__all__ = ["Moments", "WelchResult", "welch"]


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
