"""The same data, tested with tokens, windows, blocks and biosamples as replicates.

`helpers.calibration` is the public face of this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from helpers.blockstats import adjust_p_values, moderated_t
from helpers.cds._replicates import replicate_divergence, study_rows
from helpers.pairing import (
    CONTEXTS,
    MIN_FIRING_BLOCKS,
    Moments,
    paired_blocks,
    welch,
)

__all__ = ["calls_by_unit"]


def calls_by_unit(
    features: np.ndarray,
    samples: pd.DataFrame,
    blocks: Sequence[Any] | np.ndarray,
    *,
    squares: np.ndarray | None = None,
    n_tokens: int | None = None,
    levels: tuple[str, str] = CONTEXTS,
    alpha: float = 0.05,
) -> pd.DataFrame:
    """Count what each unit of replication would call, on the same data.

    Parameters
    ----------
    features : numpy.ndarray, shape (n_biosamples, n_windows, n_features)
        Window means of pairs and replicates.
    samples, blocks
        As in `replicate_divergence`.
    squares : numpy.ndarray, shape (n_biosamples, n_features), optional
        Sum of squared activations over all tokens; with `n_tokens` per window it gives
        the token test, which is left out otherwise.
    n_tokens : int, optional
        Tokens of a window.
    levels : tuple of str
        The two contexts.
    alpha : float, default 0.05
        Level of a single test, and family-wise.

    Returns
    -------
    pandas.DataFrame
        Indexed by ``unit``: ``token`` and ``window`` (Welch, pooled over lineages),
        ``window, paired``, ``block`` (the CDS of the pairs), ``biosample`` (where there
        are replicates): ``n_tested``, ``share`` of them with p < alpha, ``n_called``
        after Bonferroni.
    """
    rows = study_rows(samples, levels)
    design = samples.iloc[rows]
    data = paired_blocks(features[rows], design, blocks, levels=levels)
    tested = (data.firing_blocks >= MIN_FIRING_BLOCKS).any(axis=0)
    found = {}
    if squares is not None:
        found["token"] = _token_p(features, squares, n_tokens, rows, tested)
    found["window"] = data.naive.p[tested]
    difference = np.mean(
        [features[b].astype(float) - features[a] for a, b in np.reshape(rows, (-1, 2))],
        axis=0,
    )
    found["window, paired"] = stats.ttest_1samp(difference[:, tested], 0).pvalue
    shared = data.differences.mean(axis=0)[:, tested]
    found["block"] = moderated_t(shared, data.sizes).p
    if len(samples) > len(rows):
        table = replicate_divergence(features, samples, blocks, levels=levels)
        found["biosample"] = table["p"].dropna().to_numpy()
    return pd.DataFrame(
        {
            unit: {
                "n_tested": int((~np.isnan(p)).sum()),
                "share": np.mean(p[~np.isnan(p)] < alpha),
                "n_called": int((adjust_p_values(p) <= alpha).sum()),
            }
            for unit, p in found.items()
        }
    ).T.rename_axis("unit")


def _token_p(
    features: np.ndarray,
    squares: np.ndarray,
    n_tokens: int | None,
    rows: list[int],
    tested: np.ndarray,
) -> np.ndarray:
    """Return p-values of the Welch test over tokens, lineages pooled."""
    if n_tokens is None:
        raise ValueError("squares are sums over tokens: n_tokens must say how many")
    count = n_tokens * features.shape[1]
    contexts = []
    for context in (0, 1):
        pooled = None
        for row in rows[context::2]:
            mean = features[row].mean(axis=0, dtype=float)
            moments = Moments(count, mean, squares[row] - count * mean**2)
            pooled = moments if pooled is None else pooled + moments
        contexts.append(pooled)
    return welch(*contexts).p[tested]
