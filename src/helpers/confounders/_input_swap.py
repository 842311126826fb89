"""Which input a context difference comes through: the track or the motif activity.

`helpers.confounders` is the public face of this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from helpers.blockstats import adjust_p_values
from helpers.cds._replicates import sample_cells
from helpers.confounders._passes import PassInput
from helpers.confounders._tested import feature_table, tested_effects
from helpers.pairing import (
    CONTEXTS,
    MIN_FIRING_BLOCKS,
    array_shape,
    block_average,
    check_pairs,
)

__all__ = ["SWAP", "held_passes", "input_swap", "swap_passes"]

SWAP = ((0, 0), (0, 1), (1, 0), (1, 1))
"""Context of the track and of the motif activity, in the order of the passes."""


def held_passes(
    design: pd.DataFrame, levels: tuple[str, str] = CONTEXTS
) -> list[PassInput]:
    """Return passes that differ in the track alone within a lineage.

    The motif activity is one vector per biosample: it moves every window alike, with
    n = 1. Here all biosamples of a lineage see the mean vector of its contexts.

    Parameters
    ----------
    design : pandas.DataFrame
        Columns biosample, lineage, context, in the order of the data set; replicates
        are welcome.
    levels : tuple of str, default ("in_vitro", "in_vivo")
        The two contexts.

    Returns
    -------
    list of PassInput
        One per biosample. The first biosample of each context stands for it in the
        mean, so that both contexts weigh the same.

    Raises
    ------
    ValueError
        If a lineage lacks a context, a context is unknown, or a biosample is repeated.
    """
    shared = {
        lineage: tuple(int(rows[0]) for rows in cell)
        for lineage, cell in sample_cells(design, levels).items()
    }
    return [
        PassInput(row, shared[str(lineage)])
        for row, lineage in enumerate(design["lineage"])
    ]


def swap_passes(
    design: pd.DataFrame, levels: tuple[str, str] = CONTEXTS
) -> list[PassInput]:
    """Return the passes of the input swap: four per lineage, in the order of `SWAP`."""
    return [
        PassInput(rows[track], (rows[motifs],))
        for rows in check_pairs(design, levels).values()
        for track, motifs in SWAP
    ]


def input_swap(
    features: Any,
    design: pd.DataFrame,
    blocks: Sequence[Any] | np.ndarray,
    *,
    levels: tuple[str, str] = CONTEXTS,
    alpha: float = 0.05,
) -> pd.DataFrame:
    r"""Split context differences by the input they come through: track or motifs.

    With a(c, c') for the track of context c and the motif activity of context c',

    .. math::
        \Delta_{track} &= \tfrac12 [a(1,0) - a(0,0) + a(1,1) - a(0,1)] \\
        \Delta_{motif} &= \tfrac12 [a(0,1) - a(0,0) + a(1,1) - a(1,0)] \\
        \Delta_{int} &= a(1,1) - a(1,0) - a(0,1) + a(0,0)

    The first two sum to the whole difference a(1,1) - a(0,0).

    Parameters
    ----------
    features : array, shape (4 n_lineages, n_windows, n_features)
        Window means of `swap_passes`, in that order.
    design, blocks, levels
        As in `helpers.cds.context_divergence`.
    alpha : float, default 0.05
        Family-wise error rate (Bonferroni) behind ``called``.

    Returns
    -------
    pandas.DataFrame
        One row per feature: for ``total``, ``track``, ``motif`` and ``interaction``
        the mean over lineages ``delta_*`` and its block-level ``p_*``;
        ``motif_share``, |motif| / (|motif| + |track|); ``driver``, ``motif`` where that
        exceeds one half, else ``track``; ``called``, whether the *track* effect passes
        Bonferroni. ``p_motif`` is evidence on these two vectors, not on contexts: the
        vector is the same in every window, so windows do not replicate it.

    Raises
    ------
    ValueError
        If the first axis is not four passes per lineage.
    """
    n_lineages = len(check_pairs(design, levels))
    n_passes, n_windows, _ = array_shape(features, "features")
    if n_passes != 4 * n_lineages:
        raise ValueError(
            f"features must hold 4 passes for each of {n_lineages} lineages, as "
            f"swap_passes orders them; got {n_passes}"
        )
    averaging, sizes = block_average(blocks, n_windows)
    mean = dict.fromkeys(SWAP, 0.0)
    firing = 0
    for index in range(n_passes):
        block_means = averaging @ np.asarray(features[index])
        if not np.isfinite(block_means).all():
            raise ValueError(f"features must be finite; pass {index} is not")
        mean[SWAP[index % 4]] = mean[SWAP[index % 4]] + block_means / n_lineages
        firing = np.maximum(firing, (block_means != 0).sum(axis=0))
    effects = {
        "total": mean[1, 1] - mean[0, 0],
        "track": (mean[1, 0] - mean[0, 0] + mean[1, 1] - mean[0, 1]) / 2,
        "motif": (mean[0, 1] - mean[0, 0] + mean[1, 1] - mean[1, 0]) / 2,
        "interaction": mean[1, 1] - mean[1, 0] - mean[0, 1] + mean[0, 0],
    }
    tested = firing >= MIN_FIRING_BLOCKS
    columns: dict[str, np.ndarray] = {}
    for name, values in effects.items():
        test = tested_effects(values, sizes, tested)
        columns |= {f"delta_{name}": test["delta"], f"p_{name}": test["p"]}
    size = {k: np.abs(columns[f"delta_{k}"]) for k in ("track", "motif")}
    with np.errstate(invalid="ignore"):
        columns["motif_share"] = size["motif"] / (size["motif"] + size["track"])
    columns["driver"] = np.where(columns["motif_share"] > 0.5, "motif", "track")
    columns["called"] = adjust_p_values(columns["p_track"]) <= alpha
    return feature_table(columns)
