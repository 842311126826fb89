"""What else makes tracks differ: depth, motif activity, norm, composition, training.

Every check asks the same question of a context difference: would it be there if this
one nuisance were equal in both contexts? Features are window summaries (n_biosamples,
n_windows, n_features) as in `helpers.cds`; passes with changed inputs make them.
Positive means higher in the second context, in vivo.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from helpers.blockstats import jackknife
from helpers.confounders._depth import cuts_in_peaks, equal_depth, thin_signal
from helpers.confounders._input_swap import SWAP, held_passes, input_swap, swap_passes
from helpers.confounders._passes import (
    Codes,
    PassInput,
    PassSummary,
    stream_codes,
    summarize_passes,
)
from helpers.confounders._tested import feature_table, tested_effects
from helpers.confounders._track_height import partial_divergence, scale_attribution
from helpers.pairing import CONTEXTS, MIN_FIRING_BLOCKS, check_pairs, paired_blocks

__all__ = [
    "SWAP",
    "Codes",
    "PassInput",
    "PassSummary",
    "cuts_in_peaks",
    "equal_depth",
    "held_passes",
    "input_swap",
    "lineage_and_context",
    "norm_factors",
    "norm_guard",
    "partial_divergence",
    "scale_attribution",
    "seen_and_unseen",
    "stream_codes",
    "summarize_passes",
    "swap_passes",
    "thin_signal",
]


def norm_guard(
    cards: pd.DataFrame,
    design: pd.DataFrame,
    *,
    levels: tuple[str, str] = CONTEXTS,
    tolerance: float = 0.2,
) -> pd.DataFrame:
    """Compare norm, L0 and unexplained variance between the contexts of each lineage.

    A threshold gives tokens of larger norm more active features; two biosamples that
    differ in scale only would then seem to differ in every feature.

    Parameters
    ----------
    cards : pandas.DataFrame
        Lines of `helpers.sae.evaluate` per biosample, indexed by layer and biosample.
    design, levels
        As in `helpers.cds.context_divergence`.
    tolerance : float, default 0.2
        Relative difference of L0 or norm that raises the flag.

    Returns
    -------
    pandas.DataFrame
        One row per ``layer`` and ``lineage``: ``norm_ratio``, ``l0_ratio``,
        ``fvu_ratio`` (second context over first), ``flag``.

    Raises
    ------
    ValueError
        If a biosample has no line.

    Warns
    -----
    UserWarning
        If any flag is raised; `norm_factors` gives the passes a common norm.
    """
    rows = []
    for layer, lines in cards.groupby(level=0):
        lines = lines.droplevel(0)
        _check_lines(lines, design, layer)
        for lineage, pair in check_pairs(design, levels).items():
            low, high = (lines.loc[design["biosample"].iloc[row]] for row in pair)
            ratios = {
                f"{name}_ratio": high[column] / low[column]
                for name, column in (
                    ("norm", "norm_mean"),
                    ("l0", "l0_mean"),
                    ("fvu", "fvu"),
                )
            }
            wide = [max(ratios[k], 1 / ratios[k]) for k in ("norm_ratio", "l0_ratio")]
            flag = max(wide) > 1 + tolerance
            rows.append({"layer": layer, "lineage": lineage, **ratios, "flag": flag})
    table = pd.DataFrame(rows)
    if table["flag"].any():
        worst = table.loc[np.abs(np.log(table["l0_ratio"])).idxmax()]
        warnings.warn(
            f"norm or L0 differ between contexts by more than {tolerance:.0%} in "
            f"{table['flag'].sum()} of {len(table)} pairs; the widest is L0 in "
            f"{worst['lineage']!r} at layer {worst['layer']}, ratio "
            f"{worst['l0_ratio']:.2f}",
            stacklevel=2,
        )
    return table


def norm_factors(cards: pd.DataFrame, design: pd.DataFrame) -> dict[int, np.ndarray]:
    """Return what to multiply each biosample's stream by for a common mean norm.

    Parameters
    ----------
    cards, design
        As in `norm_guard`.

    Returns
    -------
    dict of int to numpy.ndarray, shape (n_biosamples,)
        ``factors`` of `summarize_passes` with one pass per biosample.
    """
    factors = {}
    for layer, lines in cards.groupby(level=0):
        lines = lines.droplevel(0)
        _check_lines(lines, design, layer)
        norm = lines["norm_mean"].loc[list(design["biosample"])].to_numpy()
        factors[int(layer)] = norm.mean() / norm
    return factors


def _check_lines(lines: pd.DataFrame, design: pd.DataFrame, layer: Any) -> None:
    missing = sorted(set(design["biosample"]) - set(lines.index))
    if missing:
        raise ValueError(f"cards: layer {layer} has no line for biosamples {missing}")


def seen_and_unseen(
    features: Any,
    design: pd.DataFrame,
    blocks: Sequence[Any] | np.ndarray,
    seen: Sequence[bool],
    *,
    levels: tuple[str, str] = CONTEXTS,
) -> pd.DataFrame:
    """Compare pairs that the model saw in training with pairs that it did not.

    Parameters
    ----------
    features, design, blocks, levels
        As in `helpers.cds.context_divergence`.
    seen : sequence of bool, length n_biosamples
        Whether the model was trained on each; a pair counts as seen if both were.

    Returns
    -------
    pandas.DataFrame
        One row per feature: ``delta_seen``, ``delta_unseen``, their block-level
        ``p_seen``, ``p_unseen``, and ``p_difference`` of one from the other. The
        difference is one between lineages, too: with a single unseen pair the two
        cannot be told apart.

    Raises
    ------
    ValueError
        If not every biosample has a flag, or all pairs are of one kind.
    """
    flags = np.asarray(seen)
    if flags.shape != (len(design),) or flags.dtype != bool:
        raise ValueError(
            f"seen must give True or False for each of {len(design)} biosamples; got "
            f"{flags.dtype} of shape {flags.shape}"
        )
    data = paired_blocks(features, design, blocks, levels=levels)
    pairs = check_pairs(design, levels)
    kind = np.array([flags[rows].all() for rows in pairs.values()])
    if kind.all() or not kind.any():
        raise ValueError(
            "seen: needs pairs of both kinds; the model has seen "
            f"{'all' if kind.all() else 'none'} of {list(pairs)}"
        )
    tested = (data.firing_blocks >= MIN_FIRING_BLOCKS).any(axis=0)
    parts = {
        "seen": data.differences[kind].mean(axis=0),
        "unseen": data.differences[~kind].mean(axis=0),
    }
    columns = {}
    for name, values in parts.items():
        test = tested_effects(values, data.sizes, tested)
        columns |= {f"delta_{name}": test["delta"], f"p_{name}": test["p"]}
    contrast = parts["seen"] - parts["unseen"]
    columns["p_difference"] = tested_effects(contrast, data.sizes, tested)["p"]
    return feature_table(columns)


def lineage_and_context(
    features: Any,
    design: pd.DataFrame,
    blocks: Sequence[Any] | np.ndarray,
    *,
    levels: tuple[str, str] = CONTEXTS,
) -> pd.DataFrame:
    r"""Split the differences between biosamples into context, lineage and both.

    Sums of squares of a two-way layout of biosample means, less what noise between
    blocks is expected to add to each.

    Parameters
    ----------
    features, design, blocks, levels
        As in `helpers.cds.context_divergence`; at least two lineages.

    Returns
    -------
    pandas.DataFrame
        One row per feature: ``context``, ``lineage``, ``interaction`` (a context
        effect of its own in each lineage), in squared units of activation and at least
        0, and ``context_share`` of the three.

    Raises
    ------
    ValueError
        If there is one lineage only.
    """
    data = paired_blocks(features, design, blocks, levels=levels)
    n = len(data.lineages)
    if n < 2:
        raise ValueError("design: lineages cannot be compared; there is only 1")
    low, high = data.block_means  # (n_lineages, n_blocks, n_features)
    level = (low + high) / 2
    parts = {
        "context": np.sqrt(n / 2) * (high - low).mean(axis=0)[None],
        "lineage": np.sqrt(2) * (level - level.mean(axis=0)),
        "interaction": np.sqrt(0.5) * ((high - low) - (high - low).mean(axis=0)),
    }
    columns = {}
    for name, contrasts in parts.items():
        square = 0.0
        for values in contrasts:
            mean, variance = jackknife(values, data.sizes)
            square = square + mean**2 - variance / len(values)
        columns[name] = np.maximum(square, 0)
    with np.errstate(invalid="ignore"):
        columns["context_share"] = columns["context"] / sum(columns.values())
    return feature_table(columns)
