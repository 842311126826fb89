"""Known motifs: which ones the regions of a feature hold more than other regions.

Hit tables are ``(n_regions, n_motifs)``, membership ``(n_features, n_regions)``. One
scan of the union of all regions serves every feature: enrichment is a matrix product.
The design is HOMER's (Heinz et al. 2010, Mol. Cell 38:576) without its integer
truncation and unseeded background, and with a test that knows the background is finite.
HOMER's own test, to its digits, is `homer_enrichment`. Motif files, scanning and the
motif activity of a biosample are part of this module's interface.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd

from helpers.enrichment import (
    benjamini_hochberg,
    binomial_log_tail,
    check_membership,
    hypergeometric_log_tail,
)
from helpers.motifs._activity import motif_activity, read_sea, sea_table
from helpers.motifs._archetypes import closest_motif, motif_similarity, with_archetypes
from helpers.motifs._discovery import DiscoveredMotif, discover_motif
from helpers.motifs._files import (
    DuplicateMotifWarning,
    Motif,
    jaspar_vertebrates,
    read_motifs,
    write_meme,
)
from helpers.motifs._homer import (
    GC_EDGES,
    HomerWeights,
    homer_background,
    homer_enrichment,
    homer_weights,
    run_homer2,
)
from helpers.motifs._peaks import PeakMotifActivity, peak_motif_activity, run_sea
from helpers.motifs._scan import (
    UnreachableMotifWarning,
    count_hits,
    gc_content,
    kmer_frequencies,
    score_threshold,
)

__all__ = [
    "DiscoveredMotif",
    "DuplicateMotifWarning",
    "HomerWeights",
    "Motif",
    "PeakMotifActivity",
    "UnmatchedRegionWarning",
    "UnreachableMotifWarning",
    "best_per_family",
    "closest_motif",
    "count_hits",
    "discover_motif",
    "enrichment",
    "gc_content",
    "homer_background",
    "homer_enrichment",
    "homer_weights",
    "jaspar_vertebrates",
    "kmer_frequencies",
    "matched_random_features",
    "matching_strata",
    "motif_activity",
    "motif_similarity",
    "peak_motif_activity",
    "read_motifs",
    "read_sea",
    "run_homer2",
    "run_sea",
    "score_threshold",
    "sea_table",
    "with_archetypes",
    "write_meme",
]

_MAX_K = 3  # k-mers of 1 to 3 bases are balanced, as HOMER's -nlen 3
_MAX_ROUNDS = 160


class UnmatchedRegionWarning(UserWarning):
    """Some regions of features have no background region to be compared with."""


def matching_strata(
    gc: np.ndarray, accessibility: np.ndarray | None = None, *, n_levels: int = 5
) -> np.ndarray:
    """Put regions into strata within which foreground and background are alike.

    Parameters
    ----------
    gc : numpy.ndarray, shape (n_regions,)
        GC content, from `gc_content`; HOMER's 11 bins are used.
    accessibility : numpy.ndarray, shape (n_regions,), or None
        Any measure of openness, cut at its quantiles.
    n_levels : int, default=5
        Number of accessibility levels.

    Returns
    -------
    numpy.ndarray of int64, shape (n_regions,)
        Stratum of each region, -1 where GC or accessibility is missing.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    gc = np.asarray(gc, dtype=np.float64)
    strata = np.searchsorted(GC_EDGES, gc, side="right").astype(np.int64)
    missing = np.isnan(gc)
    if accessibility is not None:
        level = np.asarray(accessibility, dtype=np.float64)
        if level.shape != gc.shape:
            raise ValueError(
                f"accessibility must have the shape of gc, {gc.shape}; "
                f"got {level.shape}"
            )
        missing = missing | np.isnan(level)
        inner = np.arange(1, n_levels) / n_levels
        cuts = np.quantile(level[~np.isnan(level)], inner)
        strata = strata * n_levels + np.searchsorted(cuts, level, side="left")
    strata[missing] = -1
    return strata


def matched_random_features(
    membership: np.ndarray,
    strata: np.ndarray,
    *,
    random_state: int | np.random.Generator,
) -> np.ndarray:
    """Draw a random feature of the same density and strata for every feature.

    The null of an annotation: a test is calibrated when it calls few of these.

    Parameters
    ----------
    membership : numpy.ndarray of bool, shape (n_features, n_regions)
        Which feature fires in which region.
    strata : numpy.ndarray of int, shape (n_regions,)
        Stratum of each region (`matching_strata`); each feature keeps its number of
        regions in every stratum.
    random_state : int or numpy.random.Generator
        Seed or generator.

    Returns
    -------
    numpy.ndarray of bool, shape (n_features, n_regions)
        Membership permuted within strata, independently for each feature.
    """
    rng = np.random.default_rng(random_state)
    strata = np.asarray(strata)
    membership = check_membership(membership, len(strata))
    random = np.empty_like(membership)
    for stratum in np.unique(strata):
        columns = np.flatnonzero(strata == stratum)
        random[:, columns] = rng.permuted(membership[:, columns], axis=1)
    return random


def enrichment(
    hits: np.ndarray,
    membership: np.ndarray,
    motifs: Sequence[Motif],
    *,
    background: np.ndarray | None = None,
    gc: np.ndarray | None = None,
    accessibility: np.ndarray | None = None,
    n_levels: int = 5,
    sequences: Sequence[str] | np.ndarray | None = None,
    method: Literal["hypergeometric", "binomial"] = "hypergeometric",
) -> pd.DataFrame:
    """Test every motif in the regions of every feature against the other regions.

    A region counts once however many hits it has (zero or one occurrence). Background
    regions are weighted so that they have the feature's distribution over GC bins
    (HOMER) and accessibility levels; regions in strata where the feature or the
    background has none are left out.

    Parameters
    ----------
    hits : numpy.ndarray, shape (n_regions, n_motifs)
        Hits from `count_hits`, or booleans.
    membership : numpy.ndarray of bool, shape (n_features, n_regions)
        Which feature fires in which region.
    motifs : sequence of Motif
        The motifs of the columns of ``hits``.
    background : numpy.ndarray of bool, shape (n_regions,), or None
        Regions that may serve as background; all by default. A feature's own regions
        never do.
    gc : numpy.ndarray, shape (n_regions,), or None
        GC content to match, from `gc_content`.
    accessibility : numpy.ndarray, shape (n_regions,), or None
        Openness to match; needs ``gc``.
    n_levels : int, default=5
        Number of accessibility levels. Where few regions are open, five leave open and
        closed ones in the same level.
    sequences : sequence of str or array of codes, or None
        With the sequences of the regions, background weights are adjusted further until
        1-, 2- and 3-mer frequencies agree (HOMER's autonormalization). This runs per
        feature, about 0.1 s each.
    method : {"hypergeometric", "binomial"}, default="hypergeometric"
        ``"hypergeometric"``: Fisher's exact test, which counts the uncertainty of the
        background rate; with weights the background has its effective size,
        ``sum(w)**2 / sum(w**2)``. ``"binomial"``: HOMER's default, which takes the rate
        as known; its p-values are too small where the background is not much larger
        than the feature.

    Returns
    -------
    pandas.DataFrame
        One row per feature and motif: feature (row of membership), motif (identifier),
        name, family, n_target, target_hits, n_background (effective), background_rate,
        fold, log_p (natural), p_value, q_value (Benjamini-Hochberg over all rows).

    Warns
    -----
    EmptyFeatureWarning
        If features have no region; their p-values are missing.
    UnmatchedRegionWarning
        If regions are left out: without GC content, or without a match.

    Raises
    ------
    ValueError
        If shapes or types are not as described.

    Notes
    -----
    The background rate is ``sum_s share_s * rate_s`` over strata s, with the feature's
    share of regions and the background's hit rate in s. Weighted counts are not
    truncated to integers, as HOMER's are.
    """
    if method not in ("hypergeometric", "binomial"):
        raise ValueError(f"method must be hypergeometric or binomial; got {method!r}")
    if accessibility is not None and gc is None:
        raise ValueError("accessibility needs gc as well")
    hits = np.asarray(hits)
    if hits.ndim != 2 or hits.shape[1] != len(motifs):
        raise ValueError(
            f"hits must have shape (n_regions, {len(motifs)}), one column per motif; "
            f"got {hits.shape}"
        )
    n_regions = len(hits)
    membership = check_membership(membership, n_regions)
    usable = np.ones(n_regions, dtype=bool)
    if background is not None:
        usable = np.asarray(background)
        if usable.dtype != np.bool_ or usable.shape != (n_regions,):
            raise ValueError(
                f"background must be bool, shape ({n_regions},); "
                f"got {usable.dtype}, {usable.shape}"
            )
    strata = np.zeros(n_regions, dtype=np.int64)
    if gc is not None:
        strata = matching_strata(gc, accessibility, n_levels=n_levels)
    if strata.shape != (n_regions,):
        raise ValueError(f"gc must have shape ({n_regions},); got {strata.shape}")
    if (strata < 0).all():
        raise ValueError("no region has a GC content (and accessibility) to match")
    occurs = (hits > 0).astype(np.float32)
    if sequences is None:
        counts = _stratified_counts(occurs, membership, usable, strata)
    else:
        counts = _autonormalized_counts(occurs, membership, usable, strata, sequences)
    left_out = int(membership.sum() - counts["n_target"].sum())
    if left_out:
        warnings.warn(
            f"{left_out} of {int(membership.sum())} feature regions are left out: "
            f"{int(membership[:, strata < 0].sum())} without GC content or "
            "accessibility, the others without a matching background region",
            UnmatchedRegionWarning,
            stacklevel=2,
        )
    return _test(motifs, method=method, **counts)


def _stratum_weights(
    membership: np.ndarray, usable: np.ndarray, strata: np.ndarray
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Regions of each stratum, and per feature its targets and background weight.

    A background region weighs the feature's share of targets in its stratum divided by
    the number of background regions there; both are zero where either is missing.
    """
    columns = [np.flatnonzero(strata == s) for s in np.unique(strata[strata >= 0])]
    targets = np.stack([membership[:, c].sum(axis=1) for c in columns], axis=1)
    others = np.stack(
        [(usable[c] & ~membership[:, c]).sum(axis=1) for c in columns], axis=1
    )
    targets = np.where(others > 0, targets, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = targets / targets.sum(axis=1, keepdims=True)
        weights = np.where(targets > 0, share / others, 0.0)
    return columns, targets, weights  # (n_features, n_strata) each


def _stratified_counts(
    occurs: np.ndarray, membership: np.ndarray, usable: np.ndarray, strata: np.ndarray
) -> dict[str, np.ndarray]:
    columns, targets, weights = _stratum_weights(membership, usable, strata)
    target_hits = np.zeros((len(membership), occurs.shape[1]))
    rate = np.zeros_like(target_hits)
    effective = np.zeros(len(membership))
    for s, c in enumerate(columns):
        members = membership[:, c].astype(np.float32)
        inside = members @ occurs[c]  # (n_features, n_motifs), exact integers
        target_hits += inside * (targets[:, s, None] > 0)
        if not usable[c].all():
            inside = (members * usable[c]) @ occurs[c]
        outside = usable[c].astype(np.float32) @ occurs[c] - inside
        rate += weights[:, s, None] * outside
        n_outside = usable[c].sum() - (membership[:, c] & usable[c]).sum(axis=1)
        effective += weights[:, s] ** 2 * n_outside
    with np.errstate(divide="ignore"):
        n_background = 1 / effective
    return {
        "n_target": targets.sum(axis=1),
        "target_hits": target_hits,
        "n_background": np.where(effective > 0, n_background, 0),
        "rate": rate,
    }


def _autonormalized_counts(
    occurs: np.ndarray,
    membership: np.ndarray,
    usable: np.ndarray,
    strata: np.ndarray,
    sequences: Sequence[str] | np.ndarray,
) -> dict[str, np.ndarray]:
    if len(sequences) != len(strata):
        raise ValueError(
            f"sequences must be those of the {len(strata)} regions; "
            f"got {len(sequences)}"
        )
    columns, targets, stratum_weights = _stratum_weights(membership, usable, strata)
    frequencies = [kmer_frequencies(sequences, k) for k in range(1, _MAX_K + 1)]
    target_hits = np.zeros((len(membership), occurs.shape[1]))
    rate, n_background = np.zeros_like(target_hits), np.zeros(len(membership))
    for feature in np.flatnonzero(targets.sum(axis=1)):
        is_target, weights = np.zeros_like(usable), np.zeros(len(strata))
        for c, n, weight in zip(
            columns, targets[feature], stratum_weights[feature], strict=True
        ):
            is_target[c] = membership[feature, c] & (n > 0)
            weights[c] = weight * (usable[c] & ~membership[feature, c])
        weights = _autonormalize(frequencies, is_target, weights)
        target_hits[feature] = is_target.astype(np.float32) @ occurs
        rate[feature] = weights @ occurs / weights.sum()
        n_background[feature] = weights.sum() ** 2 / (weights**2).sum()
    return {
        "n_target": targets.sum(axis=1),
        "target_hits": target_hits,
        "n_background": n_background,
        "rate": rate,
    }


def _autonormalize(
    frequencies: list[np.ndarray], is_target: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Move background weights until k-mer frequencies agree with the targets'.

    After HOMER, k-mers of each length in turn: a sequence's weight is multiplied by the
    mean ratio (targets to background) of its k-mers, and moves only part of the way
    when that takes it further from 1, the mean weight. The best round is kept.
    """
    is_background = weights > 0
    weight = weights[is_background] / weights[is_background].mean()
    for frequency in frequencies:
        in_background = frequency[is_background]
        floor = 0.5 / is_target.sum()
        target_share = np.maximum(frequency[is_target].mean(axis=0), floor)
        best, best_error = weight, np.inf
        for _ in range(_MAX_ROUNDS):
            share = np.maximum(weight @ in_background / weight.sum(), floor)
            error = float(((target_share - share) ** 2).sum())
            if error >= best_error:
                break
            best, best_error = weight, error
            moved = weight * (in_background @ (target_share / share))
            moved = np.clip(moved, 1e-3, 1e3)
            penalty = np.maximum(moved, 1 / moved) ** 2
            away = np.abs(np.log(moved)) > np.abs(np.log(weight))
            weight = weight + (moved - weight) / np.where(away, penalty, 1.0)
        weight = best
    adjusted = np.zeros_like(weights)
    adjusted[is_background] = weight
    return adjusted


def _test(
    motifs: Sequence[Motif],
    *,
    method: str,
    n_target: np.ndarray,
    target_hits: np.ndarray,
    n_background: np.ndarray,
    rate: np.ndarray,
) -> pd.DataFrame:
    n_features, n_motifs = target_hits.shape
    n, size = n_target[:, None], n_background[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        if method == "binomial":  # no rate is surer than one background sequence
            known_rate = np.clip(rate, 1 / size, 1 - 1 / size)
            log_p = binomial_log_tail(target_hits, n, known_rate)
        else:
            whole = np.rint(size)
            marked = np.rint(target_hits + rate * whole)
            log_p = hypergeometric_log_tail(target_hits, n + whole, marked, n)
        fold = target_hits / n / rate
    log_p[n_target == 0] = np.nan
    fold[n_target == 0] = np.nan
    column = np.tile(np.arange(n_motifs, dtype=np.int32), n_features)
    table = pd.DataFrame(
        {"feature": np.repeat(np.arange(n_features, dtype=np.int32), n_motifs)}
    )
    for label, values in (
        ("motif", [motif.id for motif in motifs]),
        ("name", [motif.name for motif in motifs]),
        ("family", [motif.family or motif.name for motif in motifs]),
    ):
        codes, categories = pd.factorize(np.array(values, dtype=object))
        table[label] = pd.Categorical.from_codes(codes[column], categories=categories)
    table["n_target"] = np.repeat(n_target.astype(np.int32), n_motifs)
    table["target_hits"] = target_hits.astype(np.int32).ravel()
    table["n_background"] = np.repeat(n_background, n_motifs)
    table["background_rate"] = rate.ravel()
    table["fold"] = fold.ravel()
    table["log_p"] = log_p.ravel()
    table["p_value"] = np.exp(table["log_p"])
    table["q_value"] = benjamini_hochberg(table["log_p"].to_numpy())
    return table


def best_per_family(table: pd.DataFrame) -> pd.DataFrame:
    """Reduce an enrichment table to the best motif of every family.

    Motifs of one family (ETS, forkhead) hit the same sites and are one discovery. The
    family's p-value is the smallest, times the number of its motifs (Bonferroni).

    Parameters
    ----------
    table : pandas.DataFrame
        From `enrichment`.

    Returns
    -------
    pandas.DataFrame
        One row per feature and family, ordered by feature and log_p: the columns of the
        best motif, n_motifs, and log_p, p_value and q_value (Benjamini-Hochberg over
        all rows) of the family.
    """
    tested = table[table["log_p"].notna()]
    ranked = tested.sort_values(["feature", "log_p"], kind="stable")
    best = ranked.drop_duplicates(["feature", "family"]).reset_index(drop=True)
    sizes = table.drop_duplicates(["motif", "family"])["family"].value_counts()
    best["n_motifs"] = best["family"].map(sizes).astype(np.int64)
    best["log_p"] = np.minimum(best["log_p"] + np.log(best["n_motifs"]), 0)
    best["p_value"] = np.exp(best["log_p"])
    best["q_value"] = benjamini_hochberg(best["log_p"].to_numpy())
    return best.sort_values(["feature", "log_p"], kind="stable", ignore_index=True)
