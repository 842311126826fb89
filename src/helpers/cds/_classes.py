"""What the lineages say together: conjunction, heterogeneity, class.

Arrays are (n_lineages, n_features). `helpers.cds` is the public face of this module.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

from helpers.blockstats import adjust_p_values

__all__ = ["agreement_columns", "classify"]


def agreement_columns(
    delta: np.ndarray, se: np.ndarray, p: np.ndarray
) -> dict[str, np.ndarray]:
    """Return how far the lineages agree.

    Parameters
    ----------
    delta, se, p : numpy.ndarray, shape (n_lineages, n_features)
        Effect, standard error and p-value per lineage; p is NaN where untested.

    Returns
    -------
    dict
        ``p_conjunction``, ``q``, ``p_heterogeneity``, ``i2``.
    """
    # A feature silent in one lineage has no sign there: it cannot be shared.
    columns = {"p_conjunction": np.where(_one_sign(delta), p.max(axis=0), 1.0)}
    weight = 1 / se**2
    mean = (weight * delta).sum(axis=0) / weight.sum(axis=0)
    columns["q"] = (weight * (delta - mean) ** 2).sum(axis=0)
    df = len(delta) - 1
    columns["p_heterogeneity"] = stats.chi2.sf(columns["q"], df)
    columns["i2"] = 1 - df / np.maximum(columns["q"], max(df, 1e-300))
    return columns


def _one_sign(delta: np.ndarray) -> np.ndarray:
    """Say where all lineages (first axis) point the same way."""
    return (delta > 0).all(axis=0) | (delta < 0).all(axis=0)


def classify(
    delta: np.ndarray,
    p: np.ndarray,
    p_shared: np.ndarray,
    *,
    lineages: tuple[str, ...],
    levels: tuple[str, str],
    correction: str,
    alpha: float,
) -> dict[str, np.ndarray | list[str]]:
    """Screen features, confirm lineages, and name what they say together.

    Parameters
    ----------
    delta, p : numpy.ndarray, shape (n_lineages, n_features)
        Effect and p-value per lineage; NaN is untested.
    p_shared : numpy.ndarray, shape (n_features,)
        p-value of the mean of the lineages.
    lineages, levels, correction, alpha
        As in `helpers.cds.context_divergence`, whose notes state the rule.

    Returns
    -------
    dict
        ``class`` and ``lineages``, one text per feature.
    """
    n = len(lineages)
    p = np.where(np.isnan(p), 1.0, p)
    smallest = np.minimum(p_shared, p.min(axis=0)) * (n + 1 if n > 1 else 1)
    passed = adjust_p_values(np.minimum(smallest, 1), correction) <= alpha

    order = np.argsort(p, axis=0)
    steps = np.take_along_axis(p, order, axis=0) * np.arange(n, 0, -1)[:, None]
    holm = np.empty_like(p)
    np.put_along_axis(holm, order, np.maximum.accumulate(steps, axis=0), axis=0)
    shared = passed & _one_sign(delta) & (p <= alpha).all(axis=0) & (n > 1)
    confirmed = shared | (passed & (holm <= alpha))  # (n_lineages, n_features)
    up = (confirmed & (delta > 0)).any(axis=0)
    down = (confirmed & (delta < 0)).any(axis=0)
    first, second = (f"shared-{level.removeprefix('in_')}" for level in levels)
    names = np.select(
        [shared & down, shared & up, up & down, up | down],
        [first, second, "discordant", "lineage-only"],
        default="none",
    )
    behind = [",".join(np.array(lineages)[feature]) for feature in confirmed.T]
    return {"class": names, "lineages": behind}
