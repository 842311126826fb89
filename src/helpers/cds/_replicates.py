"""Contexts against the variation between biosamples of one kind.

Samples are a design with replicates; the first biosample of a lineage and context is
the study's own. `helpers.calibration` is the public face of this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from helpers.blockstats import adjust_p_values, squeeze_variance
from helpers.cds._classes import agreement_columns, classify
from helpers.pairing import (
    CONTEXTS,
    MIN_FIRING_BLOCKS,
    array_shape,
    block_average,
    check_pairs,
)

__all__ = ["replicate_divergence", "sample_cells", "study_rows"]


def study_rows(samples: pd.DataFrame, levels: tuple[str, str] = CONTEXTS) -> list[int]:
    """Return the rows of the study's own pairs, lineage by lineage.

    Raises
    ------
    ValueError
        If a lineage lacks a context.
    """
    return [
        int(rows[0]) for cell in sample_cells(samples, levels).values() for rows in cell
    ]


def sample_cells(
    samples: pd.DataFrame, levels: tuple[str, str]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Map each lineage to the rows of its biosamples in either context.

    Raises
    ------
    ValueError
        If a lineage lacks a context, or a biosample is repeated.
    """
    firsts = samples[~samples.duplicated(["lineage", "context"])]
    lineages = check_pairs(firsts, levels)  # names what is wrong with a design
    if samples["biosample"].duplicated().any():
        twice = samples.loc[samples["biosample"].duplicated(), "biosample"].iloc[0]
        raise ValueError(f"samples: biosamples must be unique; {twice!r} is repeated")
    return {
        lineage: tuple(
            np.flatnonzero(
                (samples["lineage"].astype(str) == lineage)
                & (samples["context"] == level)
            )
            for level in levels
        )
        for lineage in lineages
    }


def replicate_divergence(
    features: Any,
    samples: pd.DataFrame,
    blocks: Sequence[Any] | np.ndarray,
    *,
    levels: tuple[str, str] = CONTEXTS,
    correction: str = "bonferroni",
    alpha: float = 0.05,
) -> pd.DataFrame:
    r"""Score contexts against the variation between biosamples of one kind.

    The replicate is the biosample. With the mean activation of each over the genome,
    its variance within lineage and context pooled and moderated across features, and n
    biosamples of a lineage and context,

    .. math:: t_{\ell j} = \frac{\bar a_{1 \ell j} - \bar a_{0 \ell j}}
        {\tilde\tau_j \sqrt{1/n_{1\ell} + 1/n_{0\ell}}} .

    Parameters
    ----------
    features : array, shape (n_biosamples, n_windows, n_features)
        Window means of pairs and replicates; one biosample is read at a time.
    samples : pandas.DataFrame
        Columns biosample, lineage, context.
    blocks : sequence, shape (n_windows,)
        Genomic block of each window; decides which features can be tested.
    levels, correction, alpha
        As in `helpers.cds.context_divergence`.

    Returns
    -------
    pandas.DataFrame
        One row per feature, with the columns of `context_divergence` that have a
        counterpart: ``delta``, ``se``, ``t``, ``p``, ``p_bonferroni``, ``p_holm``,
        ``q_bh`` for the mean of the lineages; per lineage ``delta_*``, ``t_*``,
        ``p_*``; ``p_conjunction``, ``q``, ``p_heterogeneity``, ``i2``, ``class``,
        ``lineages``; and ``tau``, the SD between biosamples.

    Raises
    ------
    ValueError
        If no lineage and context has two biosamples, a lineage lacks a context,
        features are not finite, or two biosamples hold the same values.

    Notes
    -----
    The estimand is E3 within these lineages: do tissue samples *of these lineages*
    differ from samples of these cell lines, over these windows? It says nothing about
    lineages not sampled. Replicates of a line must be grown and measured apart; the
    pooled variance assumes that lines vary like tissues, which is what lets a context
    without replicates borrow it.
    """
    cells = sample_cells(samples, levels)
    n_biosamples, n_windows, _ = array_shape(features, "features")
    if n_biosamples != len(samples):
        raise ValueError(
            f"samples must have one row per biosample of features ({n_biosamples}); "
            f"got {len(samples)}"
        )
    groups = [rows for cell in cells.values() for rows in cell]
    df = sum(len(rows) - 1 for rows in groups)
    if df < 1:
        raise ValueError(
            "samples: no lineage and context has two biosamples; without replicates "
            "the variation between biosamples is unknown"
        )
    averaging, sizes = block_average(blocks, n_windows)
    means, firing = [], 0
    for row in range(n_biosamples):
        block_means = averaging @ np.asarray(features[row])
        if not np.isfinite(block_means).all():
            raise ValueError(
                "features must be finite; got NaN or infinity in biosample "
                f"{samples['biosample'].iloc[row]!r}"
            )
        means.append(sizes @ block_means / sizes.sum())
        firing = np.maximum(firing, (block_means != 0).sum(axis=0))
    _check_copies(means, samples)
    tested = firing >= MIN_FIRING_BLOCKS
    if not tested.any():
        raise ValueError(f"features: none fires in {MIN_FIRING_BLOCKS} blocks")
    mean = np.stack(means)[:, tested]

    within = sum(
        np.square(mean[rows] - mean[rows].mean(axis=0)).sum(axis=0) for rows in groups
    )
    activation = np.abs(mean).mean(axis=0)
    squeezed = squeeze_variance(
        within / df, df, covariate=np.log(np.maximum(activation, 1e-30))
    )
    total_df = min(squeezed.prior_df + df, df * mean.shape[1])
    delta = np.stack(
        [
            mean[high].mean(axis=0) - mean[low].mean(axis=0)
            for low, high in cells.values()
        ]
    )
    weight = np.array([1 / len(low) + 1 / len(high) for low, high in cells.values()])
    se = np.sqrt(weight[:, None] * squeezed.moderated)
    shared = delta.mean(axis=0)
    shared_se = np.sqrt(weight.sum() * squeezed.moderated) / len(cells)
    p = 2 * stats.t.sf(np.abs(delta / se), total_df)
    p_shared = 2 * stats.t.sf(np.abs(shared / shared_se), total_df)

    columns = {
        "delta": shared,
        "se": shared_se,
        "t": shared / shared_se,
        "p": p_shared,
        "p_bonferroni": adjust_p_values(p_shared, "bonferroni"),
        "p_holm": adjust_p_values(p_shared, "holm"),
        "q_bh": adjust_p_values(p_shared, "bh"),
        "tau": np.sqrt(squeezed.moderated),
    }
    for i, lineage in enumerate(cells):
        columns[f"delta_{lineage}"] = delta[i]
        columns[f"t_{lineage}"] = delta[i] / se[i]
        columns[f"p_{lineage}"] = p[i]
    columns |= agreement_columns(delta, se, p)
    columns |= classify(
        delta,
        p,
        p_shared,
        lineages=tuple(cells),
        levels=levels,
        correction=correction,
        alpha=alpha,
    )
    table = pd.DataFrame(columns, index=np.flatnonzero(tested))
    table = table.reindex(pd.RangeIndex(len(tested), name="feature"))
    table["class"] = table["class"].fillna("untested")
    table["lineages"] = table["lineages"].fillna("")
    table.attrs = {
        "estimand": "E3 within these lineages: do tissue samples differ from samples "
        "of the cell lines? Replicates are biosamples; says nothing about other "
        "lineages.",
        "n_tested": int(tested.sum()),
        "n_biosamples": n_biosamples,
        "df": float(total_df),
        "correction": correction,
        "alpha": alpha,
    }
    return table


def _check_copies(means: list[np.ndarray], samples: pd.DataFrame) -> None:
    """Refuse copies: they would pass for replicates that do not vary."""
    seen: dict[bytes, str] = {}
    for values, name in zip(means, samples["biosample"], strict=True):
        twin = seen.setdefault(values.tobytes(), name)
        if twin != name and values.any():
            raise ValueError(
                f"features: biosamples {twin!r} and {name!r} hold the same values; "
                "are they copies of one biosample?"
            )
