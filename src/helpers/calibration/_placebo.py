"""Replicates contrasted with each other, as a measure of what is called by chance.

`helpers.calibration` is the public face of this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from helpers.cds._replicates import sample_cells
from helpers.pairing import CONTEXTS

__all__ = ["PlaceboContrast", "placebo_contrasts", "placebo_fdr"]


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
