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
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from helpers.blockstats import (
    ModeratedTest,
    adjust_p_values,
    max_t_p_values,
    moderated_t,
)
from helpers.cds._classes import agreement_columns, classify
from helpers.cds._effects import effect_columns, hurdle_columns, read_hurdle
from helpers.cds._layer_curve import (
    LayerCurve,
    RatioInterval,
    bootstrap_ratio,
    diffmean_curve,
    layer_curve,
    probe_curve,
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
    "ESTIMANDS",
    "LayerCurve",
    "Moments",
    "PairedBlocks",
    "RatioInterval",
    "WelchResult",
    "bootstrap_ratio",
    "context_divergence",
    "diffmean_curve",
    "layer_curve",
    "paired_blocks",
    "probe_curve",
    "welch",
]

ESTIMANDS = {
    "E1": "E1 track contrast: do these biosamples differ over the genome? "
    "Replicates are genomic blocks; says nothing about other biosamples.",
    "E2": "E2 consistency: does the track contrast hold with one sign in every "
    "lineage? Read it from p_conjunction and the shared classes.",
    "E3": "E3 population contrast: do the contexts differ in general? "
    "Replicates are lineage pairs.",
}
MIN_FLIP_BLOCKS = 20  # 2^20 sign patterns: the smallest p no longer limits Bonferroni
_ROUNDING = 1e-6  # of single precision: less variation than this is none
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
        ``ci_low``, ``ci_high`` on the scale of the test; the effect sizes ``d_z``
        (paired, over replicates, Hedges-corrected), ``log2_fold``, ``auc`` and
        ``delta_rate``, each with ``_low`` and ``_high``; per lineage ``cds_*``,
        ``delta_*``, ``p_*``; ``p_conjunction`` (the sign and significance hold in
        every lineage), ``q``, ``p_heterogeneity``, ``i2``; ``class`` and the
        ``lineages`` behind it; ``cds_naive``, ``p_naive``. With firing rates the
        hurdle parts ``log_odds`` and ``log_intensity``, each with ``_low``, ``_high``
        and ``p_``, and for features in a class their ``readout``: ``on-off``,
        ``up-down``, ``both`` or ``unresolved``. ``attrs`` name the ``estimand`` of the
        score, what this design can say to all three (``estimands``), counts of tests
        and blocks, and the prior.

    Raises
    ------
    ValueError
        For a design that is not made of pairs (duplicate biosamples, unknown or missing
        contexts), windows that are not the same in every biosample, NaN, copies of a
        biosample, fewer than 5 blocks, sign flips over fewer than 20 blocks, a
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

    *Intervals* have level 1 - alpha, one feature at a time: of delta by the moderated
    t, of d_z by its large-sample variance, 1/n + d_z^2 / (2 (n - 1)), of the others by
    a delete-one-block jackknife. Zeros of a thresholded feature are made by the
    threshold: pass pre-activations as `features` to see a change below it.

    *What it cannot say.* The score compares tracks. Depth, composition of a tissue,
    noise of a single biosample and the motif activity, one vector per biosample, all
    make tracks differ; `helpers.confounders` takes them apart, and
    `helpers.calibration` asks replicates of the biosamples.
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
    firing_blocks = data.firing_blocks.max(axis=0)
    if not tested.all():
        data = data.select(tested)
    rounding = _ROUNDING * np.abs(data.block_means).max(axis=(0, 1, 2))
    for lineage, of_lineage in zip(data.lineages, data.differences, strict=True):
        if (np.ptp(of_lineage, axis=0) <= rounding).all():
            raise ValueError(
                f"features: in lineage {lineage!r} no difference between the contexts "
                "varies over blocks: zero variance leaves nothing to test against"
            )
    # Activations may be signed (pre-activations): the trend follows their size.
    activation = np.abs(data.means.mean(axis=(0, 1)))
    covariate = _log_floor(activation) if trend else None

    sizes = data.sizes
    by_lineage = [moderated_t(d, sizes, covariate=covariate) for d in data.differences]
    replicates = data.differences.mean(axis=0)
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
    for level, mean in zip(levels, data.means.mean(axis=1), strict=True):
        columns[f"mean_{level}"] = mean
    # A pseudo-count far below a usual activation: it only tames the near-empty.
    pseudo_count = 0.01 * float(np.median(activation))
    columns |= effect_columns(data, pseudo_count, alpha)
    columns |= _lineage_columns(data, by_lineage)
    # Classes speak of the tracks (E1, E2) even where the score speaks of contexts (E3).
    columns |= classify(
        np.stack([test.delta for test in by_lineage]),
        np.stack([columns[f"p_{lineage}"] for lineage in data.lineages]),
        over_blocks.p,
        lineages=data.lineages,
        levels=levels,
        correction=correction,
        alpha=alpha,
    )
    if firing_rates is not None:
        columns |= hurdle_columns(data, alpha)
        called = columns["class"] != "none"
        columns["readout"] = np.where(called, read_hurdle(columns, alpha), "")
    columns |= {"cds_naive": data.naive.t, "p_naive": data.naive.p}

    table = pd.DataFrame(columns, index=np.flatnonzero(tested))
    table = table.reindex(pd.RangeIndex(len(tested), name="feature"))
    table["class"] = table["class"].fillna("untested")
    for text in {"lineages", "readout"} & set(table):
        table[text] = table[text].fillna("")
    table["firing_blocks"] = firing_blocks
    table.attrs = {
        "estimand": ESTIMANDS["E3" if population else "E1"],
        "estimands": _estimands(n_pairs),
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
        raise ValueError(f"population: {_why_no_population(n_pairs)}")
    if n_flips and not population and n_blocks < MIN_FLIP_BLOCKS:
        raise ValueError(
            f"n_flips: sign-flip max-T needs at least {MIN_FLIP_BLOCKS} blocks; "
            f"got {n_blocks}. Use smaller blocks or n_flips=0"
        )


def _why_no_population(n_pairs: int) -> str:
    return (
        f"E3 is not estimable from {n_pairs} pair(s). With {n_pairs - 1} degrees of "
        "freedom nothing survives correction, and exact sign flips over pairs cannot "
        f"go below p = 2/2^{n_pairs} = {2 / 2**n_pairs:.3g}; at least {MIN_PAIRS} "
        "pairs are needed. More windows do not help: they replicate the genome, not "
        "the biosamples"
    )


def _estimands(n_pairs: int) -> dict[str, str]:
    """Say what a design with so many pairs can tell of each estimand."""
    found = dict(ESTIMANDS)
    if n_pairs == 1:
        found["E2"] = "E2 is not estimable from 1 pair: consistency needs two lineages"
    if n_pairs < MIN_PAIRS:
        found["E3"] = _why_no_population(n_pairs)
    return found


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
    spread = np.sqrt(1 / n_replicates + d_z**2 / (2 * (n_replicates - 1)))
    reach = stats.norm.isf(alpha / 2) * spread
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
        "d_z_low": d_z - reach,
        "d_z_high": d_z + reach,
    }


def _lineage_columns(
    data: PairedBlocks, tests: list[ModeratedTest]
) -> dict[str, np.ndarray]:
    """Collect the scores per lineage, their conjunction and heterogeneity."""
    silent = data.firing_blocks < MIN_FIRING_BLOCKS
    columns: dict[str, np.ndarray] = {}
    for lineage, test, untested in zip(data.lineages, tests, silent, strict=True):
        columns[f"cds_{lineage}"] = np.where(untested, np.nan, test.t)
        columns[f"delta_{lineage}"] = test.delta
        columns[f"p_{lineage}"] = np.where(untested, np.nan, test.p)
    return columns | agreement_columns(
        np.stack([test.delta for test in tests]),
        np.stack([test.se for test in tests]),
        np.stack([columns[f"p_{lineage}"] for lineage in data.lineages]),
    )
