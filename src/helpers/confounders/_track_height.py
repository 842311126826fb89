"""How much of a context difference the signal of the tracks explains.

`helpers.confounders` is the public face of this module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from helpers.blockstats import adjust_p_values
from helpers.blockstats._moderation import natural_spline
from helpers.confounders._tested import feature_table, tested_effects
from helpers.pairing import (
    CONTEXTS,
    MIN_FIRING_BLOCKS,
    array_shape,
    block_average,
    check_pairs,
    paired_blocks,
)

__all__ = ["partial_divergence", "scale_attribution"]


def scale_attribution(
    features: Any,
    gains: Sequence[float],
    design: pd.DataFrame,
    blocks: Sequence[Any] | np.ndarray,
    *,
    log_ratios: Mapping[str, float],
    levels: tuple[str, str] = CONTEXTS,
    alpha: float = 0.05,
) -> pd.DataFrame:
    r"""Ask how much of a difference the height of the tracks explains.

    The same biosample is encoded with its track times g; S = da / d log g is how a
    feature answers to height alone, and S times the log ratio of the two tracks is
    what a mere difference in height contributes.

    Parameters
    ----------
    features : array, shape (n_gains, n_biosamples, n_windows, n_features)
        Window means, one entry per gain; gain 1 is the data themselves.
    gains : sequence of float
        Positive factors on the track, 1 among them, e.g. (0.5, 0.71, 1, 1.41, 2).
    design, blocks, levels
        As in `helpers.cds.context_divergence`.
    log_ratios : mapping of str to float
        Natural log of the second context's track height over the first's, per lineage.
    alpha : float, default 0.05
        Family-wise error rate (Bonferroni) behind ``flag``.

    Returns
    -------
    pandas.DataFrame
        One row per feature: ``sensitivity`` (change per e-fold of height), ``delta``
        and its ``p``, what is ``attributable`` to height, the ``share`` of the two,
        ``delta_adjusted`` with ``p_adjusted``; ``flag`` where the difference passes
        Bonferroni and the adjusted one does not.

    Raises
    ------
    ValueError
        If gains are not positive and distinct with 1 among them, a lineage has no log
        ratio, or shapes disagree.

    Notes
    -----
    S is the least-squares slope over log g, per block and biosample, mean of the two
    contexts. Height is not depth: a deeper track is also less noisy, and no rescaling
    undoes that; `equal_depth` does.
    """
    gains = np.asarray(gains, dtype=float)
    log_gain = np.log(gains, where=gains > 0, out=np.full(len(gains), np.nan))
    if not np.isfinite(log_gain).all() or len(set(gains)) < max(2, len(gains)):
        raise ValueError(f"gains must be positive and distinct; got {list(gains)}")
    if len(features) != len(gains) or 1.0 not in gains:
        raise ValueError(
            f"features must have one entry per gain, and gains must include 1; got "
            f"{len(features)} entries for gains {list(gains)}"
        )
    pairs = check_pairs(design, levels)
    missing = sorted(set(pairs) - set(log_ratios))
    if missing:
        raise ValueError(f"log_ratios must name every lineage; {missing} missing")
    per_gain = [
        paired_blocks(values, design, blocks, levels=levels) for values in features
    ]
    own = per_gain[list(gains).index(1.0)]
    centered = log_gain - log_gain.mean()
    slope = sum(
        weight * data.block_means.mean(axis=0)
        for weight, data in zip(centered / (centered @ centered), per_gain, strict=True)
    )  # (n_lineages, n_blocks, n_features), mean of the contexts
    ratio = np.array([log_ratios[lineage] for lineage in own.lineages])
    attributable = (ratio[:, None, None] * slope).mean(axis=0)
    difference = own.differences.mean(axis=0)
    tested = (own.firing_blocks >= MIN_FIRING_BLOCKS).any(axis=0)
    weights = own.sizes / own.sizes.sum()
    explained = weights @ attributable
    whole = tested_effects(difference, own.sizes, tested)
    adjusted = tested_effects(difference - attributable, own.sizes, tested)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = explained / whole["delta"]
    called = adjust_p_values(whole["p"]) <= alpha
    return feature_table(
        {
            "sensitivity": weights @ slope.mean(axis=0),
            "delta": whole["delta"],
            "p": whole["p"],
            "attributable": explained,
            "share": share,
            "delta_adjusted": adjusted["delta"],
            "p_adjusted": adjusted["p"],
            "flag": called & ~(adjust_p_values(adjusted["p"]) <= alpha),
        }
    )


def partial_divergence(
    features: Any,
    design: pd.DataFrame,
    blocks: Sequence[Any] | np.ndarray,
    log_signal: np.ndarray,
    *,
    levels: tuple[str, str] = CONTEXTS,
    n_knots: int = 4,
    alpha: float = 0.05,
) -> pd.DataFrame:
    r"""Score contexts at equal signal of the window: the partial CDS.

    The context coefficient in

    .. math:: a_{swj} = \text{window}_{\ell w j} + f_{\ell j}(\log x_{sw}) +
        \beta_{\ell j} \text{context}_s

    with a natural cubic spline f per lineage. Window effects cancel in the paired
    difference, which is regressed on differences of the spline basis.

    Parameters
    ----------
    features, design, blocks, levels
        As in `helpers.cds.context_divergence`.
    log_signal : numpy.ndarray, shape (n_biosamples, n_windows)
        Log of the track's signal in each window.
    n_knots : int, default 4
        Knots of the spline, at quantiles of the lineage's values.
    alpha : float, default 0.05
        Family-wise error rate (Bonferroni) behind ``called``.

    Returns
    -------
    pandas.DataFrame
        One row per feature: ``delta``, the whole difference (mean of the lineages),
        ``delta_partial`` with ``t_partial`` and ``p_partial``, ``share_explained`` =
        1 - delta_partial / delta, ``called``; ``delta_partial_<lineage>``.

    Raises
    ------
    ValueError
        If the signal has another shape, is not finite, or two contexts differ by a
        constant factor everywhere, which no regression can tell from the context.

    Notes
    -----
    Blocks are the replicates: pseudo-values of the delete-one-block jackknife of beta,
    with moderated variance. This is a *direct* effect. Where accessibility is the way
    in which context acts, adjusting for it removes what one looks for: read it beside
    the whole difference, never instead.
    """
    shape = array_shape(features, "features")
    log_signal = np.asarray(log_signal, dtype=float)
    if log_signal.shape != shape[:2] or not np.isfinite(log_signal).all():
        raise ValueError(
            f"log_signal must be finite, of shape {shape[:2]}; got {log_signal.shape}"
        )
    averaging, sizes = block_average(blocks, shape[1])
    member = [np.flatnonzero(row) for row in averaging.toarray()]
    whole, partial, firing = [], [], 0
    for lineage, rows in check_pairs(design, levels).items():
        low, high = (np.asarray(features[row], dtype=float) for row in rows)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise ValueError(f"features must be finite; lineage {lineage!r} is not")
        firing = firing + (averaging @ (np.abs(low) + np.abs(high)) != 0).sum(axis=0)
        knots = np.quantile(log_signal[rows], np.linspace(0, 1, n_knots))
        basis = [natural_spline(log_signal[row], knots) for row in rows]
        regressors = basis[1] - basis[0]
        regressors[:, 0] = 1.0  # the context; the constants have cancelled
        pseudo = _pseudo_coefficients(high - low, regressors, member)
        if pseudo is None:
            raise ValueError(
                f"log_signal: in lineage {lineage!r} the contexts differ by a constant "
                "factor; signal and context cannot be told apart"
            )
        partial.append(pseudo)
        whole.append(sizes @ (averaging @ (high - low)) / sizes.sum())
    tested = firing >= MIN_FIRING_BLOCKS
    shared = np.mean(partial, axis=0)
    test = tested_effects(shared, np.ones(len(shared)), tested)
    delta = np.mean(whole, axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        explained = 1 - test["delta"] / delta
    columns = {
        "delta": delta,
        "delta_partial": test["delta"],
        "t_partial": test["t"],
        "p_partial": test["p"],
        "share_explained": explained,
        "called": adjust_p_values(test["p"]) <= alpha,
    }
    for lineage, pseudo in zip(check_pairs(design, levels), partial, strict=True):
        columns[f"delta_partial_{lineage}"] = pseudo.mean(axis=0)
    return feature_table(columns)


def _pseudo_coefficients(
    values: np.ndarray, regressors: np.ndarray, member: list[np.ndarray]
) -> np.ndarray | None:
    """Return jackknife pseudo-values of the first coefficient, (n_blocks, n_features).

    None if the regressors cannot be told apart.
    """
    gram = np.stack([regressors[w].T @ regressors[w] for w in member])
    cross = np.stack([regressors[w].T @ values[w] for w in member])
    left = gram.sum(axis=0) - gram
    if np.linalg.cond(_correlation(gram.sum(axis=0))) > 1e8:
        return None
    first = np.linalg.inv(np.concatenate([gram.sum(axis=0)[None], left]))[:, :1]
    total = cross.sum(axis=0)
    full = (first[0] @ total)[0]
    left_out = np.stack([(first[b + 1] @ (total - c))[0] for b, c in enumerate(cross)])
    return len(member) * full - (len(member) - 1) * left_out


def _correlation(gram: np.ndarray) -> np.ndarray:
    """Scale a cross-product matrix to a unit diagonal."""
    scale = np.sqrt(np.maximum(np.diag(gram), 1e-300))
    return gram / np.outer(scale, scale)
