"""Compared with what? Placebo contrasts, replicates, and worlds without any effect.

Samples are a design with replicates: columns biosample, lineage, context, one row per
biosample in the order of the features (n_biosamples, n_windows, n_features). The first
biosample of a lineage and context is the study's own. Positive means higher in the
second context, in vivo.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import optimize, stats

from helpers._calibration_runs import (
    FactorContributions,
    NullData,
    attribute_calls,
    equal_depth_data,
    factor_contributions,
    null_data,
    pass_summaries,
    random_weights,
    samples_of,
    stream_means,
    with_replicates,
)
from helpers._replicates import replicate_divergence, sample_cells, study_rows
from helpers._summary_worlds import (
    SUMMARY_KINDS,
    SummaryDraw,
    SummaryWorld,
    draw_summaries,
)
from helpers.blockstats import (
    adjust_p_values,
    max_t_p_values,
    moderated_t,
)
from helpers.pairing import (
    CONTEXTS,
    MIN_FIRING_BLOCKS,
    Moments,
    paired_blocks,
    welch,
)

__all__ = [
    "SUMMARY_KINDS",
    "FactorContributions",
    "NullData",
    "PlaceboContrast",
    "SummaryDraw",
    "SummaryWorld",
    "attribute_calls",
    "calls_by_unit",
    "detectable_effect",
    "draw_summaries",
    "equal_depth_data",
    "factor_contributions",
    "null_data",
    "null_draws",
    "pass_summaries",
    "placebo_contrasts",
    "placebo_fdr",
    "power",
    "random_weights",
    "replicate_divergence",
    "samples_of",
    "stream_means",
    "study_rows",
    "with_replicates",
]


class PlaceboContrast(NamedTuple):
    """Replicates of one kind, labelled as if they were of two contexts.

    Attributes
    ----------
    rows : list of int
        Rows of the features.
    design : pandas.DataFrame
        For `context_divergence`, in that order.
    """

    rows: list[int]
    design: pd.DataFrame


def placebo_contrasts(
    samples: pd.DataFrame,
    *,
    n_contrasts: int = 20,
    levels: tuple[str, str] = CONTEXTS,
    random_state: int | np.random.Generator = 0,
) -> list[PlaceboContrast]:
    """Contrast replicates with each other in the place of the two contexts.

    In every lineage two biosamples of one and the same context get the labels of the
    two contexts; everything downstream is as in the study.

    Parameters
    ----------
    samples : pandas.DataFrame
        Columns biosample, lineage, context, with replicates in every lineage.
    n_contrasts : int, default 20
        Distinct contrasts to draw; fewer if the replicates allow no more. They share
        biosamples, so they are not independent of each other.
    levels : tuple of str
        The two contexts.
    random_state : int or numpy.random.Generator, default 0
        Source of the draw.

    Returns
    -------
    list of PlaceboContrast

    Raises
    ------
    ValueError
        If a lineage has no context with two biosamples.
    """
    rng = np.random.default_rng(random_state)
    choices = {}
    for lineage, cell in sample_cells(samples, levels).items():
        choices[lineage] = [
            (int(a), int(b)) for rows in cell for a in rows for b in rows if a != b
        ]
        if not choices[lineage]:
            raise ValueError(
                f"samples: lineage {lineage!r} has no two biosamples of one context; a "
                "placebo needs replicates"
            )
    sizes = [len(pairs) for pairs in choices.values()]
    # Labels exchanged everywhere give the same contrast with the other sign.
    n_distinct = int(np.prod(sizes)) // 2
    contrasts: dict[tuple, PlaceboContrast] = {}
    while len(contrasts) < min(n_contrasts, n_distinct):
        drawn = [pairs[rng.integers(len(pairs))] for pairs in choices.values()]
        mirrored = tuple((b, a) for a, b in drawn)
        if tuple(drawn) in contrasts or mirrored in contrasts:
            continue
        rows = [row for pair in drawn for row in pair]
        design = pd.DataFrame(
            {
                "biosample": samples["biosample"].to_numpy()[rows],
                "lineage": np.repeat(list(choices), 2),
                "context": np.tile(levels, len(choices)),
            }
        )
        contrasts[tuple(drawn)] = PlaceboContrast(rows, design)
    return list(contrasts.values())


def placebo_fdr(observed: np.ndarray, placebo: Sequence[np.ndarray]) -> np.ndarray:
    r"""Estimate false discovery rates from placebo contrasts, as target and decoy.

    .. math:: \widehat{FDR}(c) = \hat\pi_0 \,
        \frac{(1 + \sum_k \#\{|t_k| \ge c\}) / K}{\#\{|t| \ge c\}}

    over K contrasts, made monotone in c; the one keeps it from being zero.

    Parameters
    ----------
    observed : numpy.ndarray, shape (n_features,)
        Score of each feature, e.g. the CDS; NaN is untested.
    placebo : sequence of numpy.ndarray, shape (n_features,)
        The same score in each placebo contrast.

    Returns
    -------
    numpy.ndarray, shape (n_features,)
        Smallest estimated rate at which the feature would be called, at most 1.

    Raises
    ------
    ValueError
        If there is no contrast, or nothing was tested in one.

    Notes
    -----
    In the placebo all features are null; in the study a share pi_0 is, estimated from
    the features whose score is below the median placebo score (Storey 2002, J. R. Stat.
    Soc. B 64:479): half of the null ones are. A nuisance that goes with the context in
    every lineage, such as the purity of tissues, is in no placebo.
    """
    size = np.abs(np.asarray(observed, dtype=float))
    tested = ~np.isnan(size)
    decoys = [np.abs(np.asarray(t, dtype=float)) for t in placebo]
    decoys = [t[~np.isnan(t)] for t in decoys]
    if not decoys or not all(map(len, decoys)) or not tested.any():
        raise ValueError(
            "observed and at least one placebo contrast must hold tested features"
        )
    pooled, own = np.sort(np.concatenate(decoys)), np.sort(size[tested])
    null_share = min(1.0, 2 * np.mean(own < np.median(pooled)))
    null_share = max(null_share, 1 / len(own))
    above = len(pooled) - np.searchsorted(pooled, own, side="left")
    called = len(own) - np.searchsorted(own, own, side="left")  # ties go together
    rate = np.minimum(null_share * (1 + above) / len(decoys) / called, 1)
    rate = np.minimum.accumulate(rate)  # a stricter threshold never raises it
    found = np.full(len(size), np.nan)
    found[tested] = rate[np.searchsorted(own, size[tested], side="left")]
    return found


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


def null_draws(
    world: SummaryWorld,
    *,
    n_draws: int = 200,
    n_flips: int = 499,
    alpha: float = 0.05,
    random_state: int = 0,
) -> pd.DataFrame:
    """Draw a world many times and record what each unit of replication calls.

    Parameters
    ----------
    world : SummaryWorld
        A world without context effect, for error rates.
    n_draws : int, default 200
        Draws.
    n_flips : int, default 499
        Sign flips of the max-T at the level of blocks.
    alpha : float, default 0.05
        Level of a single test, and family-wise.
    random_state : int, default 0
        Seed; draw i depends on it and on i alone.

    Returns
    -------
    pandas.DataFrame
        One row per ``draw`` and ``unit``, with the columns of `calls_by_unit`. The unit
        ``block, max-T`` counts features with an adjusted p <= alpha.
    """
    found = []
    for draw in range(n_draws):
        rng = np.random.default_rng([random_state, draw])
        drawn = draw_summaries(world, rng)
        counts = calls_by_unit(
            drawn.features,
            drawn.samples,
            drawn.blocks,
            squares=drawn.squares,
            n_tokens=world.n_tokens,
            alpha=alpha,
        )
        if n_flips:
            rows = study_rows(drawn.samples)
            data = paired_blocks(
                drawn.features[rows], drawn.samples.iloc[rows], drawn.blocks
            )
            shared = data.differences.mean(axis=0)
            test = moderated_t(shared, data.sizes)
            p = max_t_p_values(
                shared, data.sizes, test, n_flips=n_flips, random_state=rng
            )
            flips = {
                "n_tested": len(p),
                "share": np.mean(test.p < alpha),
                "n_called": int((p <= alpha).sum()),
            }
            counts.loc["block, max-T"] = flips
        found.append(counts.assign(draw=draw).reset_index())
    return pd.concat(found, ignore_index=True)


def power(
    d_z: float | np.ndarray, n_blocks: int, *, n_tests: int, alpha: float = 0.05
) -> np.ndarray:
    """Return the power of a paired t-test over blocks after Bonferroni.

    Parameters
    ----------
    d_z : float or numpy.ndarray
        Mean block difference over its SD.
    n_blocks : int
        Genomic blocks, at least 2.
    n_tests : int
        Features tested.
    alpha : float, default 0.05
        Family-wise error rate.

    Returns
    -------
    numpy.ndarray, shape of d_z
        From the noncentral t with n_blocks - 1 degrees of freedom; calls with the
        wrong sign do not count.
    """
    df = n_blocks - 1
    critical = stats.t.isf(alpha / 2 / n_tests, df)
    shift = np.abs(np.asarray(d_z, dtype=float)) * np.sqrt(n_blocks)
    return stats.nct.sf(critical, df, shift)


def detectable_effect(
    n_blocks: int, *, n_tests: int, target: float = 0.8, alpha: float = 0.05
) -> float:
    """Return the smallest paired d_z that a design finds with a given power.

    Parameters
    ----------
    n_blocks, n_tests, alpha
        As in `power`.
    target : float, default 0.8
        Power wanted.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If the target is not between alpha and 1.
    """
    if not alpha < target < 1:
        raise ValueError(f"target must lie between alpha and 1; got {target}")

    def gap(d_z: float) -> float:
        return float(power(d_z, n_blocks, n_tests=n_tests, alpha=alpha)) - target

    critical = stats.t.isf(alpha / 2 / n_tests, n_blocks - 1)
    return float(optimize.brentq(gap, 0, 2 * (critical + 5) / np.sqrt(n_blocks)))
