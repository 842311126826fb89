"""The features to test, and their controls, as tables of which fires where.

Membership is ``(n_features, n_regions)``. Random features are drawn once for the
regions of states and motifs, and once for those of the genes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from helpers import motifs
from helpers.annotation._regions import openness_of, universe
from helpers.stages import Study

__all__ = ["FeatureSet", "Places", "feature_sets", "read_places"]

_NULL_LEVELS = 40  # of accessibility: random features match more finely than tests do


class Places(NamedTuple):
    """Regions of a universe, and what controls are matched on."""

    regions: pd.DataFrame
    gc: np.ndarray
    openness: dict[int, np.ndarray]  # by biosample


class FeatureSet(NamedTuple):
    """Features of one set: their rows, and in which regions they fire."""

    rows: pd.DataFrame
    membership: np.ndarray
    gene_membership: np.ndarray | None  # in the regions of the genes


def read_places(
    study: Study, biosamples: list[int], codes: np.ndarray, *splits: str
) -> Places:
    """Return the regions of some windows, with what controls are matched on.

    Parameters
    ----------
    study : Study
        The run.
    biosamples : list of int
        Whose accessibility is needed.
    codes : numpy.ndarray of uint8, shape (n_regions, 128)
        From `region_codes`.
    *splits : str
        Which windows.
    """
    openness = {b: openness_of(study, b, *splits) for b in biosamples}
    return Places(universe(study, *splits), motifs.gc_content(codes), openness)


def feature_sets(
    study: Study, features: pd.DataFrame, places: Places, genes: Places | None
) -> dict[str, FeatureSet]:
    """Return the features of every set with the regions in which they fire.

    Parameters
    ----------
    study : Study
        The run.
    features : pandas.DataFrame
        From `helpers.annotation.select_features`.
    places : Places
        Of states and motifs.
    genes : Places or None
        Of processes, if those are tested.

    Returns
    -------
    dict of str to FeatureSet
        ``called`` and ``other``, and two random ones for each called feature:
        ``matched``, permuted within strata of GC content and accessibility, and
        ``shifted``, moved along the genome.
    """
    found = {}
    for name in ("called", "other"):
        rows = features[features["set"] == name].reset_index(drop=True)
        found[name] = FeatureSet(
            rows,
            _membership(rows["regions"], len(places.regions)),
            genes and _membership(rows["gene_regions"], len(genes.regions)),
        )
    called = found["called"]
    for name, draw in (("matched", _matched), ("shifted", _shifted)):
        found[name] = FeatureSet(
            called.rows,
            draw(study, called.rows, called.membership, places),
            genes and draw(study, called.rows, called.gene_membership, genes),
        )
    return found


def _membership(regions: pd.Series, n_regions: int) -> np.ndarray:
    membership = np.zeros((len(regions), n_regions), dtype=bool)
    for own, fired in zip(membership, regions, strict=True):
        own[fired] = True
    return membership


def _matched(
    study: Study, rows: pd.DataFrame, membership: np.ndarray, places: Places
) -> np.ndarray:
    """Draw random features of the same density in strata of GC and accessibility."""
    random = np.zeros_like(membership)
    for b, where in rows.groupby("biosample").indices.items():
        strata = motifs.matching_strata(
            places.gc, places.openness[b], n_levels=_NULL_LEVELS
        )
        rng = np.random.default_rng([study.seed, b])
        random[where] = motifs.matched_random_features(
            membership[where], strata, random_state=rng
        )
    return random


def _shifted(
    study: Study, rows: pd.DataFrame, membership: np.ndarray, places: Places
) -> np.ndarray:
    """Move every feature along the genome by a random distance."""
    rng = np.random.default_rng([study.seed, len(places.regions)])
    by = rng.integers(len(places.regions), size=len(rows))
    return np.stack([np.roll(own, n) for own, n in zip(membership, by, strict=True)])
