"""How context features are distributed over the depth of a model.

Counts per layer with equal numbers of tests, their ratio with an interval, and two
curves that need no dictionary: a linear probe and the length of the mean difference.
`helpers.cds` is the public face of this module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from helpers.blockstats import CHUNK, jackknife, moderated_t, resampled_t
from helpers.pairing import (
    CONTEXTS,
    MIN_FIRING_BLOCKS,
    array_shape,
    check_pairs,
    paired_blocks,
)

__all__ = [
    "LayerCurve",
    "RatioInterval",
    "bootstrap_ratio",
    "diffmean_curve",
    "layer_curve",
    "probe_curve",
]


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
    drawn = _draw_blocks(n_blocks, n_draws, random_state)
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


def _draw_blocks(
    n_blocks: int, n_draws: int, random_state: int | np.random.Generator
) -> np.ndarray:
    """Return how often each block is drawn, shape (n_draws, n_blocks)."""
    rng = np.random.default_rng(random_state)
    return rng.multinomial(n_blocks, np.full(n_blocks, 1 / n_blocks), size=n_draws)


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


class LayerCurve(NamedTuple):
    """Context features per layer, from equally many tests in each.

    Attributes
    ----------
    table : pandas.DataFrame
        Indexed by ``layer``: ``n_testable`` features, ``n_tests`` of them tested,
        ``n_called`` with ``low`` and ``high`` (blocks resampled), ``share`` of the
        tests, ``n_strong`` with an effect size above the threshold.
    ratio : RatioInterval
        Last layer over first.
    """

    table: pd.DataFrame
    ratio: RatioInterval


def layer_curve(
    features: Mapping[int, Any],
    design: pd.DataFrame,
    blocks: Sequence[Any] | np.ndarray,
    *,
    levels: tuple[str, str] = CONTEXTS,
    strong: float = 0.5,
    alpha: float = 0.05,
    confidence: float = 0.95,
    n_draws: int = 2000,
    random_state: int | np.random.Generator = 0,
) -> LayerCurve:
    """Count shared context features of every layer at equal numbers of tests.

    A layer with more living features has more chances to show some, and a stricter
    Bonferroni threshold; so all layers are tested on their m most active features, m
    being what the poorest layer can offer. Effects are counted above one fixed size,
    too, since with enough blocks any difference is significant.

    Parameters
    ----------
    features : mapping of int to array, shape (n_biosamples, n_windows, n_features)
        Window means of every layer.
    design, blocks, levels
        As in `context_divergence`.
    strong : float, default 0.5
        Threshold of the absolute paired d_z for ``n_strong``.
    alpha : float, default 0.05
        Family-wise error rate within a layer.
    confidence : float, default 0.95
        Level of the intervals.
    n_draws, random_state
        As in `bootstrap_ratio`.

    Returns
    -------
    LayerCurve

    Raises
    ------
    ValueError
        If there are fewer than two layers, or one has nothing to test.
    """
    if len(features) < 2:
        raise ValueError(f"features must hold at least two layers; got {len(features)}")
    differences, n_testable, order = {}, {}, {}
    for layer, values in features.items():
        data = paired_blocks(values, design, blocks, levels=levels)
        testable = (data.firing_blocks >= MIN_FIRING_BLOCKS).any(axis=0)
        testable &= np.ptp(data.differences.mean(axis=0), axis=0) > 0
        n_testable[layer] = int(testable.sum())
        if not n_testable[layer]:
            raise ValueError(
                f"features: layer {layer} has no feature that can be tested"
            )
        activity = np.where(testable, np.abs(data.means).mean(axis=(0, 1)), -np.inf)
        order[layer] = np.argsort(-activity, kind="stable")
        differences[layer], sizes = data.differences.mean(axis=0), data.sizes
    n_tests = min(n_testable.values())
    chosen = {k: differences[k][:, order[k][:n_tests]] for k in features}
    drawn = _draw_blocks(len(sizes), n_draws, random_state)
    rows = []
    for layer, values in chosen.items():
        mean, variance = jackknife(values, sizes)
        count, *draws = _significant(values, sizes, drawn, alpha)
        spread = np.log(np.array(draws) + 0.5).std(ddof=1)
        reach = np.exp(stats.norm.isf((1 - confidence) / 2) * spread)
        rows.append(
            {
                "layer": layer,
                "n_testable": n_testable[layer],
                "n_tests": n_tests,
                "n_called": int(count),
                "low": (count + 0.5) / reach,
                "high": (count + 0.5) * reach,
                "share": count / n_tests,
                "n_strong": int((np.abs(mean) >= strong * np.sqrt(variance)).sum()),
            }
        )
    first, last = min(chosen), max(chosen)
    ratio = bootstrap_ratio(
        [chosen[first]],
        [chosen[last]],
        sizes,
        alpha=alpha,
        confidence=confidence,
        n_draws=n_draws,
        random_state=random_state,
    )
    return LayerCurve(pd.DataFrame(rows).set_index("layer"), ratio)


def diffmean_curve(
    streams: Mapping[int, Any],
    design: pd.DataFrame,
    blocks: Sequence[Any] | np.ndarray,
    *,
    levels: tuple[str, str] = CONTEXTS,
    n_flips: int = 200,
    random_state: int | np.random.Generator = 0,
) -> pd.DataFrame:
    r"""Return the length of the mean context difference of every layer's stream.

    .. math:: \lVert \bar D \rVert / \sqrt{\textstyle\sum_i s_i^2}

    with the mean difference over lineages and genome, and the variance of the windows
    within a biosample, both summed over the width of the stream. It needs neither a
    dictionary nor a threshold.

    Parameters
    ----------
    streams : mapping of int to array, shape (n_biosamples, n_windows, d_model)
        Window means of the residual stream after each layer.
    design, blocks, levels
        As in `context_divergence`.
    n_flips : int, default 200
        Sign flips of whole blocks behind ``by_chance``.
    random_state : int or numpy.random.Generator, default 0
        Source of the flips.

    Returns
    -------
    pandas.DataFrame
        Indexed by ``layer``: ``diffmean``, and ``by_chance``, its mean under sign flips
        (noise alone has a length too).
    """
    rng = np.random.default_rng(random_state)
    rows = []
    for layer, values in streams.items():
        data = paired_blocks(values, design, blocks, levels=levels)
        weights = data.sizes / data.sizes.sum()
        difference = data.differences.mean(axis=0)  # (n_blocks, d_model)
        within = np.mean([np.var(x, axis=0, dtype=float).sum() for x in values])
        signs = rng.choice([-1.0, 1.0], size=(n_flips, len(weights)))
        flipped = np.linalg.norm((signs * weights) @ difference, axis=1)
        rows.append(
            {
                "layer": layer,
                "diffmean": np.linalg.norm(weights @ difference) / np.sqrt(within),
                "by_chance": flipped.mean() / np.sqrt(within),
            }
        )
    return pd.DataFrame(rows).set_index("layer")


def probe_curve(
    streams: Mapping[int, Any],
    design: pd.DataFrame,
    *,
    train: np.ndarray,
    test: np.ndarray,
    levels: tuple[str, str] = CONTEXTS,
    shrinkage: float = 0.01,
) -> pd.DataFrame:
    """Read the context off every layer's stream by a linear probe, twice held out.

    A probe that knows a lineage tells its two biosamples apart by anything, on any
    chromosome; only the lineage that it has not seen says whether it reads the context.

    Parameters
    ----------
    streams : mapping of int to array, shape (n_biosamples, n_windows, d_model)
        Window means of the residual stream after each layer.
    design : pandas.DataFrame
        Columns biosample, lineage, context; at least two lineages.
    train, test : numpy.ndarray of int
        Windows to learn from and to be judged on, on different chromosomes.
    levels : tuple of str, default ("in_vitro", "in_vivo")
        The two contexts.
    shrinkage : float, default 0.01
        Share of the mean variance added to the diagonal of the covariance.

    Returns
    -------
    pandas.DataFrame
        One row per ``layer`` and ``held_out`` (``chromosomes``, or the lineage that
        was left out besides): ``auc``, the probability that a window of the second
        context scores higher than one of the first.

    Raises
    ------
    ValueError
        If windows overlap, or there is one lineage only.

    Notes
    -----
    Linear discriminant, w = (S + shrinkage * mean(diag S) I)^-1 (m1 - m0), with the
    covariance within contexts and streams standardized on the training windows.
    """
    pairs = check_pairs(design, levels)
    if len(pairs) < 2:
        raise ValueError("design: to hold out a lineage needs at least 2; got 1")
    if np.intersect1d(train, test).size:
        raise ValueError("train and test must not share windows")
    rows = []
    for layer, values in streams.items():
        array_shape(values, f"streams[{layer}]")
        held_out = {"chromosomes": list(pairs)} | {name: [name] for name in pairs}
        for name, judged in held_out.items():
            learned = [k for k in pairs if name == "chromosomes" or k != name]
            known = [
                np.concatenate([values[pairs[k][c]][train] for k in learned])
                for c in (0, 1)
            ]
            direction = _discriminant(*known, shrinkage)
            low, high = (
                np.concatenate([values[pairs[k][c]][test] for k in judged]) @ direction
                for c in (0, 1)
            )
            auc = stats.mannwhitneyu(high, low).statistic / (len(low) * len(high))
            rows.append({"layer": layer, "held_out": name, "auc": float(auc)})
    return pd.DataFrame(rows)


def _discriminant(low: np.ndarray, high: np.ndarray, shrinkage: float) -> np.ndarray:
    """Return the direction of a linear discriminant, in units of the stream."""
    centered = np.concatenate([low - low.mean(axis=0), high - high.mean(axis=0)])
    spread = centered.std(axis=0, dtype=float)
    scale = np.where(spread > 0, spread, 1.0)
    standard = centered / scale
    covariance = standard.T @ standard / len(standard)
    covariance += shrinkage * np.diag(covariance).mean() * np.eye(len(scale))
    change = (high.mean(axis=0, dtype=float) - low.mean(axis=0, dtype=float)) / scale
    return np.linalg.solve(covariance, change) / scale
