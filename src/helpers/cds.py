"""Context Divergence Score (CDS): how features differ between matched contexts.

Features are window summaries (n_biosamples, n_windows, n_features); biosamples come in
pairs, one per context and lineage, measured on the same windows. Signs are second
context minus first: **positive means higher in vivo**.

Two scores are offered. `welch` is the plain contrastive t over tokens or windows; it
treats neighboring tokens as independent and calls hundreds of features in data without
any effect. `context_divergence` pairs windows, averages them over genomic blocks, and
moderates the variance (Smyth 2004, Stat. Appl. Genet. Mol. Biol. 3:3), so that its
error rates hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from helpers.blockstats import (
    CHUNK,
    ModeratedTest,
    adjust_p_values,
    max_t_p_values,
    moderated_t,
    resampled_t,
)
from helpers.pairing import (
    CONTEXTS,
    MIN_FIRING_BLOCKS,
    Moments,
    PairedBlocks,
    WelchResult,
    check_pairs,
    paired_blocks,
    welch,
)

__all__ = [
    "CONTEXTS",
    "Moments",
    "PairedBlocks",
    "RatioInterval",
    "WelchResult",
    "bootstrap_ratio",
    "context_divergence",
    "paired_blocks",
    "welch",
]

ESTIMANDS = {
    False: "E1 track contrast: do these biosamples differ over the genome? "
    "Replicates are genomic blocks; says nothing about other biosamples.",
    True: "E3 population contrast: do the contexts differ in general? "
    "Replicates are lineage pairs.",
}
MIN_FLIP_BLOCKS = 20  # 2^20 sign patterns: the smallest p no longer limits Bonferroni
MIN_PAIRS = 6  # exact sign-flip over n pairs cannot go below 2 / 2^n


def context_divergence(
    features: Any,
    design: pd.DataFrame,
    blocks: Sequence[Any] | np.ndarray,
    *,
    scale: str = "raw",
    firing_rates: Any = None,
    population: bool = False,
    levels: tuple[str, str] = CONTEXTS,
    trend: bool = True,
    correction: str = "bonferroni",
    alpha: float = 0.05,
    n_flips: int = 0,
    random_state: int | np.random.Generator = 0,
) -> pd.DataFrame:
    r"""Score every feature for a difference between matched contexts.

    For lineage l, window w and feature j the paired difference d = a(in vivo) -
    a(in vitro) is averaged over genomic blocks b, and

    .. math:: CDS_{lj} = \bar D_{lj} / (\tilde s_{lj} / \sqrt{B})

    with moderated variance. The shared score does the same with the mean of the
    lineages. Positive means higher in vivo.

    Parameters
    ----------
    features : array, shape (n_biosamples, n_windows, n_features)
        Window means of thresholded SAE activations, the same windows in every
        biosample. A zarr array works: one pair is read at a time.
    design : pandas.DataFrame
        Columns biosample, lineage, context, one row per biosample in the order of
        `features`; each lineage has exactly one biosample of each context.
    blocks : sequence, shape (n_windows,)
        Genomic block of each window (chromosome arm, or 5 to 10 Mb). Blocks of unequal
        size are weighted by windows and their variance is a delete-one jackknife.
    scale : {"raw", "log1p", "rate", "rank"}, default "raw"
        Scale of the test: activations, their log1p, `firing_rates`, or ranks within
        the pair.
    firing_rates : array, shape as features, optional
        Fraction of tokens of the window in which the feature fires.
    population : bool, default False
        Take lineage pairs as replicates, for a statement on cell lines and tissues in
        general. Needs at least six pairs.
    levels : tuple of str, default ("in_vitro", "in_vivo")
        The two contexts; any other contrast is scored the same way.
    trend : bool, default True
        Let the prior variance follow the log mean activation.
    correction : {"bonferroni", "holm", "bh"}, default "bonferroni"
        Correction over features behind `class`.
    alpha : float, default 0.05
        Error rate of `class` and, as 1 - alpha, level of the intervals.
    n_flips : int, default 0
        Sign flips for `p_max_t`; 0 leaves it out.
    random_state : int or numpy.random.Generator, default 0
        Source of the sign flips.

    Returns
    -------
    pandas.DataFrame
        One row per feature. ``cds``, ``p`` and its adjustments ``p_bonferroni``,
        ``p_holm``, ``q_bh``, ``p_max_t`` for the shared effect; ``delta``, ``se``,
        ``ci_low``, ``ci_high`` on the scale of the test; ``d_z`` (paired, over
        replicates, Hedges-corrected), ``log2_fold``, ``auc``, ``delta_rate``; per
        lineage ``cds_*``, ``delta_*``, ``p_*``; ``p_conjunction`` (the sign and
        significance hold in every lineage), ``q``, ``p_heterogeneity``, ``i2``;
        ``class`` and the ``lineages`` behind it; ``cds_naive``, ``p_naive``.
        ``attrs`` name the estimand, counts of tests and blocks, and the prior.

    Raises
    ------
    ValueError
        For a design that is not made of pairs (duplicate biosamples, unknown or missing
        contexts), NaN, fewer than 5 blocks, sign flips over fewer than 20 blocks, a
        population claim from fewer than 6 pairs, or features that nowhere vary.

    Notes
    -----
    *Untested*: features firing in fewer than 5 blocks of every biosample; their
    statistics are NaN and they do not count as tests.

    *Class* is assigned in two stages. Screening: the smallest p of the shared and the
    per-lineage tests, times their number, adjusted over features by `correction`.
    Confirmation, for those that pass: ``shared-*`` if every lineage has p <= alpha
    with one sign (intersection-union, no further correction); ``discordant`` if
    lineages significant by Holm within the feature point both ways; ``lineage-only``
    if at least one is significant by Holm; else ``none``.

    *Heterogeneity* is Cochran's Q about the inverse-variance mean, chi-square with
    n_lineages - 1 degrees of freedom.

    *Max-T*: all features of a block are flipped together, which keeps their
    correlation; p = (1 + hits) / (n_flips + 1). The null says that the two tracks are
    exchangeable, so a mere difference in scale rejects it: equalize depth first.
    """
    _check_options(alpha, n_flips, correction)
    n_pairs, n_blocks = len(check_pairs(design, levels)), pd.Series(blocks).nunique()
    _check_replicates(n_pairs, n_blocks, population, n_flips)
    data = paired_blocks(
        features,
        design,
        blocks,
        scale=scale,
        firing_rates=firing_rates,
        levels=levels,
    )
    tested = (data.firing_blocks >= MIN_FIRING_BLOCKS).any(axis=0)
    if not tested.any():
        raise ValueError(
            f"features: none fires in {MIN_FIRING_BLOCKS} blocks of any biosample; "
            "there is nothing to test"
        )
    differences = data.differences[:, :, tested]
    for lineage, of_lineage in zip(data.lineages, differences, strict=True):
        if not np.ptp(of_lineage, axis=0).any():
            raise ValueError(
                f"features: in lineage {lineage!r} no difference between the contexts "
                "varies over blocks; are they copies of one biosample?"
            )
    # Activations may be signed (pre-activations): the trend follows their size.
    activation = np.abs(data.means.mean(axis=(0, 1))[tested])
    covariate = _log_floor(activation) if trend else None

    sizes = data.sizes
    by_lineage = [moderated_t(d, sizes, covariate=covariate) for d in differences]
    replicates = differences.mean(axis=0)
    over_blocks = shared = moderated_t(replicates, sizes, covariate=covariate)
    if population:
        replicates = np.stack([test.delta for test in by_lineage])
        sizes = np.ones(n_pairs)
        shared = moderated_t(replicates, sizes, covariate=covariate)

    columns = _shared_columns(shared, len(replicates), alpha)
    if n_flips:
        columns["p_max_t"] = max_t_p_values(
            replicates, sizes, shared, n_flips=n_flips, random_state=random_state
        )
    # A pseudo-count far below a usual activation: it only tames the near-empty.
    pseudo_count = 0.01 * float(np.median(activation))
    low, high = data.means.mean(axis=1)[:, tested]
    columns |= {f"mean_{levels[0]}": low, f"mean_{levels[1]}": high}
    with np.errstate(invalid="ignore", divide="ignore"):
        columns["log2_fold"] = np.log2((high + pseudo_count) / (low + pseudo_count))
    columns["auc"] = data.auc[tested]
    if firing_rates is not None:
        columns["delta_rate"] = _mean_difference(firing_rates, design, levels)[tested]
    columns |= _lineage_columns(data, by_lineage, tested)
    # Classes speak of the tracks (E1, E2) even where the score speaks of contexts (E3).
    columns |= _classify(
        columns, over_blocks.p, data.lineages, levels, correction, alpha
    )
    columns |= {"cds_naive": data.naive.t[tested], "p_naive": data.naive.p[tested]}

    table = pd.DataFrame(columns, index=np.flatnonzero(tested))
    table = table.reindex(pd.RangeIndex(len(tested), name="feature"))
    table["class"] = table["class"].fillna("untested")
    table["lineages"] = table["lineages"].fillna("")
    table["firing_blocks"] = data.firing_blocks.max(axis=0)
    table.attrs = {
        "estimand": ESTIMANDS[population],
        "positive": f"higher {levels[1]}",
        "scale": scale,
        "n_tested": int(tested.sum()),
        "n_blocks": n_blocks,
        "n_pairs": n_pairs,
        "n_flips": n_flips,
        "correction": correction,
        "alpha": alpha,
        "prior_df": float(shared.squeezed.prior_df),
        "pseudo_count": pseudo_count,
    }
    return table


def _check_options(alpha: float, n_flips: int, correction: str) -> None:
    """Refuse options before the data are read."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1; got {alpha}")
    if n_flips < 0:
        raise ValueError(f"n_flips must be 0 or more; got {n_flips}")
    adjust_p_values(np.ones(1), correction)


def _check_replicates(
    n_pairs: int, n_blocks: int, population: bool, n_flips: int
) -> None:
    """Refuse claims that the number of replicates cannot carry."""
    if population and n_pairs < MIN_PAIRS:
        raise ValueError(
            f"population: E3 is not estimable from {n_pairs} pair(s). With "
            f"{n_pairs - 1} degrees of freedom nothing survives correction, and exact "
            f"sign flips over pairs cannot go below p = 2/2^{n_pairs} = "
            f"{2 / 2**n_pairs:.3g}; at least {MIN_PAIRS} pairs are needed. More "
            "windows do not help: they replicate the genome, not the biosamples"
        )
    if n_flips and not population and n_blocks < MIN_FLIP_BLOCKS:
        raise ValueError(
            f"n_flips: sign-flip max-T needs at least {MIN_FLIP_BLOCKS} blocks; "
            f"got {n_blocks}. Use smaller blocks or n_flips=0"
        )


def _log_floor(activation: np.ndarray) -> np.ndarray:
    """Take the log, with zeros (signed readouts only) at the smallest positive."""
    positive = activation[activation > 0]
    return np.log(np.maximum(activation, positive.min() if len(positive) else 1.0))


def _shared_columns(
    test: ModeratedTest, n_replicates: int, alpha: float
) -> dict[str, np.ndarray]:
    """Collect the shared score with its adjusted p-values and effect sizes."""
    margin = stats.t.isf(alpha / 2, test.df) * test.se
    hedges = 1 - 3 / (4 * (n_replicates - 1) - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        d_z = hedges * test.delta / np.sqrt(test.variance)
    return {
        "cds": test.t,
        "p": test.p,
        "p_bonferroni": adjust_p_values(test.p, "bonferroni"),
        "p_holm": adjust_p_values(test.p, "holm"),
        "q_bh": adjust_p_values(test.p, "bh"),
        "delta": test.delta,
        "se": test.se,
        "ci_low": test.delta - margin,
        "ci_high": test.delta + margin,
        "d_z": d_z,
    }


def _mean_difference(
    values: Any, design: pd.DataFrame, levels: tuple[str, str]
) -> np.ndarray:
    """Average second minus first context over windows and lineages."""
    pairs = check_pairs(design, levels).values()
    return np.mean(
        [
            np.mean(values[high], axis=0) - np.mean(values[low], axis=0)
            for low, high in pairs
        ],
        axis=0,
    )


def _lineage_columns(
    data: PairedBlocks, tests: list[ModeratedTest], tested: np.ndarray
) -> dict[str, np.ndarray]:
    """Collect the scores per lineage, their conjunction and heterogeneity."""
    silent = data.firing_blocks[:, tested] < MIN_FIRING_BLOCKS
    columns: dict[str, np.ndarray] = {}
    for lineage, test, untested in zip(data.lineages, tests, silent, strict=True):
        columns[f"cds_{lineage}"] = np.where(untested, np.nan, test.t)
        columns[f"delta_{lineage}"] = test.delta
        columns[f"p_{lineage}"] = np.where(untested, np.nan, test.p)
    delta = np.stack([test.delta for test in tests])
    p = np.stack([columns[f"p_{lineage}"] for lineage in data.lineages])
    # A feature silent in one lineage has no sign there: it cannot be shared.
    columns["p_conjunction"] = np.where(_one_sign(delta), p.max(axis=0), 1.0)
    weight = 1 / np.stack([test.se for test in tests]) ** 2
    mean = (weight * delta).sum(axis=0) / weight.sum(axis=0)
    columns["q"] = (weight * (delta - mean) ** 2).sum(axis=0)
    df = len(tests) - 1
    columns["p_heterogeneity"] = stats.chi2.sf(columns["q"], df)
    columns["i2"] = 1 - df / np.maximum(columns["q"], max(df, 1e-300))
    return columns


def _one_sign(delta: np.ndarray) -> np.ndarray:
    """Say where all lineages (first axis) point the same way."""
    return (delta > 0).all(axis=0) | (delta < 0).all(axis=0)


def _classify(
    columns: dict[str, np.ndarray],
    p_shared: np.ndarray,
    lineages: tuple[str, ...],
    levels: tuple[str, str],
    correction: str,
    alpha: float,
) -> dict[str, np.ndarray | list[str]]:
    """Screen features, confirm lineages, and name what they say together."""
    n = len(lineages)
    delta = np.stack([columns[f"delta_{lineage}"] for lineage in lineages])
    p = np.stack([columns[f"p_{lineage}"] for lineage in lineages])
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


class RatioInterval(NamedTuple):
    """Late over early count of significant features, with a block-bootstrap interval.

    Attributes
    ----------
    ratio, low, high : float
        Ratio of the counts (infinite or NaN if `early` is 0) and its interval.
    early, late : int
        Counts in the data, summed over the layers given.
    draws : numpy.ndarray, shape (n_draws, 2)
        Early and late count of every draw.
    """

    ratio: float
    low: float
    high: float
    early: int
    late: int
    draws: np.ndarray


def bootstrap_ratio(
    early: Sequence[np.ndarray],
    late: Sequence[np.ndarray],
    sizes: np.ndarray,
    *,
    alpha: float = 0.05,
    confidence: float = 0.95,
    n_draws: int = 2000,
    random_state: int | np.random.Generator = 0,
) -> RatioInterval:
    """Put an interval on the late/early ratio of counts of significant features.

    Blocks are drawn with replacement, the same ones for all layers, and every draw
    counts the features that pass Bonferroni by the moderated t (without trend).

    Parameters
    ----------
    early, late : sequence of numpy.ndarray, shape (n_blocks, n_features)
        Block differences of each layer on the same blocks, e.g.
        ``paired_blocks(...).differences.mean(axis=0)``. Features that vary count as
        tests; keep them equally many.
    sizes : numpy.ndarray, shape (n_blocks,)
        Windows per block.
    alpha : float, default 0.05
        Family-wise error rate within a layer.
    confidence : float, default 0.95
        Level of the interval.
    n_draws : int, default 2000
        Bootstrap draws.
    random_state : int or numpy.random.Generator, default 0
        Source of the draws.

    Returns
    -------
    RatioInterval
        Interval ``exp(log ratio -+ z sd)``, sd the bootstrap standard deviation of the
        log ratio (counts plus one half). Counts of resampled data run high, because
        resampling adds noise to every t; so the interval is centered on the data, not
        on the draws.

    Raises
    ------
    ValueError
        If a group is empty or the layers are not on the same blocks.
    """
    sizes = np.asarray(sizes, dtype=float)
    n_blocks = len(sizes)
    if not len(early) or not len(late):
        raise ValueError("early and late must each hold at least one layer")
    for values in [*early, *late]:
        if values.ndim != 2 or len(values) != n_blocks:
            raise ValueError(
                f"every layer must have shape (n_blocks = {n_blocks}, n_features), as "
                f"sizes says; got {values.shape}"
            )
    rng = np.random.default_rng(random_state)
    drawn = rng.multinomial(n_blocks, np.full(n_blocks, 1 / n_blocks), size=n_draws)
    counts = np.zeros((n_draws + 1, 2))  # the data first, then the draws
    for column, layers in enumerate((early, late)):
        for values in layers:
            counts[:, column] += _significant(values, sizes, drawn, alpha)
    (n_early, n_late), draws = counts[0], counts[1:]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = float(n_late / n_early)
    center = np.log((n_late + 0.5) / (n_early + 0.5))
    spread = np.log((draws[:, 1] + 0.5) / (draws[:, 0] + 0.5)).std(ddof=1)
    margin = stats.norm.isf((1 - confidence) / 2) * spread
    low, high = np.exp([center - margin, center + margin])
    return RatioInterval(
        ratio, float(low), float(high), int(n_early), int(n_late), draws.astype(int)
    )


def _significant(
    values: np.ndarray, sizes: np.ndarray, drawn: np.ndarray, alpha: float
) -> np.ndarray:
    """Count features passing Bonferroni, in the data and in every draw of blocks."""
    values = values[:, np.ptp(values, axis=0) > 0]
    test = moderated_t(values, sizes)
    critical = stats.t.isf(alpha / 2 / values.shape[1], test.df)
    values32, sizes32 = values.astype(np.float32), sizes.astype(np.float32)
    rows = max(1, CHUNK // values.shape[1])
    found = [np.sum(np.abs(test.t) >= critical, keepdims=True)]
    for start in range(0, len(drawn), rows):
        times = drawn[start : start + rows].astype(np.float32)
        t = resampled_t(values32, sizes32, test.squeezed, counts=times)
        found.append((np.abs(t) >= critical).sum(axis=1))
    return np.concatenate(found)
