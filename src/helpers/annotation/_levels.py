"""The three levels of annotation, each on the same regions, as tables of one shape.

``membership`` is ``(n_features, n_regions)``; every function returns `COLUMNS`, one row
per feature and item. What open, GC-rich chromatin holds anyway is not a finding: states
and motifs are tested within strata of GC content and accessibility.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from helpers import motifs, ontology, states
from helpers.enrichment import benjamini_hochberg, binomial_log_tail, genome_keys

__all__ = ["COLUMNS", "go_level", "motif_families", "state_level"]

COLUMNS = [
    "feature",  # row of membership
    "item",  # state, motif identifier or term
    "name",  # of the item, for people
    "family",  # of motifs
    "n_regions",  # of the feature that entered the test
    "hits",  # of them with the item
    "rate",  # expected share, by chance
    "rate_all",  # of states: share of all regions, open or not
    "fold",
    "log_p",  # natural
    "p_value",
    "q_value",
    "q_regions",  # of processes: of the test over regions alone
    "q_shift",  # of processes: of regions against circular shifts
]
_MAX_P = 0.05  # of processes over regions; others count as tests but are not kept


def state_level(
    regions: pd.DataFrame,
    membership: np.ndarray,
    segmentation: pd.DataFrame,
    strata: np.ndarray,
) -> pd.DataFrame:
    """Test chromatin states at the centers of regions within strata.

    Parameters
    ----------
    regions : pandas.DataFrame
        Columns chrom, start, end: all regions.
    membership : numpy.ndarray of bool, shape (n_features, n_regions)
        Which feature fires where.
    segmentation : pandas.DataFrame
        From `helpers.states.read_segmentation`.
    strata : numpy.ndarray of int, shape (n_regions,)
        From `helpers.motifs.matching_strata`; regions at -1 are left out.

    Returns
    -------
    pandas.DataFrame
        `COLUMNS`.

    Notes
    -----
    Were a feature's regions drawn at random within strata, its count in a state would
    be a sum of hypergeometric variables with rates known exactly, since the universe
    is. The binomial with the mean of these rates has heavier tails (Hoeffding 1956,
    Ann. Math. Stat. 27:713), so p-values err on the safe side.
    """
    table = states.unit_enrichment(regions, membership, segmentation)
    names = list(table["state"].cat.categories)
    code = _state_codes(regions, segmentation, names)
    usable = (code >= 0) & (strata >= 0)
    in_state = (code[usable, None] == np.arange(len(names))).astype(np.float32)
    in_stratum = (strata[usable, None] == np.unique(strata[usable])).astype(np.float32)
    rate = in_stratum.T @ in_state / in_stratum.sum(axis=0)[:, None]
    members = membership[:, usable].astype(np.float32)
    n = np.broadcast_to(members.sum(axis=1)[:, None], (len(members), len(names)))
    hits = members @ in_state
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = np.minimum(members @ in_stratum @ rate / n, 1)
        fold = hits / n / expected
    log_p = binomial_log_tail(hits, n, expected)
    log_p[n == 0] = np.nan
    table = table.rename(columns={"state": "item", "background_rate": "rate_all"})
    table["item"] = table["item"].astype(str)
    return table.assign(
        name=table["item"],
        family="",
        n_regions=n.astype(int).ravel(),
        hits=hits.astype(int).ravel(),
        rate=expected.ravel(),
        fold=fold.ravel(),
        log_p=log_p.ravel(),
        p_value=np.exp(log_p.ravel()),
        q_value=benjamini_hochberg(log_p.ravel()),
        q_regions=np.nan,
        q_shift=np.nan,
    )[COLUMNS]


def _state_codes(
    regions: pd.DataFrame, segmentation: pd.DataFrame, names: Sequence[str]
) -> np.ndarray:
    """Index of the state at the center of every region, -1 where there is none."""
    start, end = genome_keys(regions, segmentation["chrom"])
    first, last = genome_keys(segmentation, segmentation["chrom"])
    order = np.argsort(first)
    center = (start + end - 1) // 2
    at = order[np.searchsorted(first, center, side="right", sorter=order) - 1]
    code = pd.Categorical(segmentation["state"], categories=names).codes[at]
    return np.where((center >= first[at]) & (center < last[at]), code, -1)


def motif_families(table: pd.DataFrame) -> pd.DataFrame:
    """Reduce motif tests to the best motif of every family.

    Parameters
    ----------
    table : pandas.DataFrame
        From `helpers.motifs.enrichment`, joined over biosamples.

    Returns
    -------
    pandas.DataFrame
        `COLUMNS`, ordered by feature and log_p; q-values over all rows.
    """
    best = motifs.best_per_family(table)
    names = {
        "motif": "item",
        "n_target": "n_regions",
        "target_hits": "hits",
        "background_rate": "rate",
    }
    best = best.rename(columns=names)
    best = best.assign(rate_all=np.nan, q_regions=np.nan, q_shift=np.nan)
    texts = ["item", "name", "family"]
    return best.astype(dict.fromkeys(texts, str))[COLUMNS]


def go_level(
    regions: pd.DataFrame,
    membership: np.ndarray,
    genes: pd.DataFrame,
    gene_sets: Mapping[str, Sequence[str]],
) -> pd.DataFrame:
    """Test gene sets near the regions, over regions and over genes.

    Parameters
    ----------
    regions : pandas.DataFrame
        Columns chrom, start, end: all regions; they are the background.
    membership : numpy.ndarray of bool, shape (n_features, n_regions)
        Which feature fires where.
    genes : pandas.DataFrame
        From `helpers.ontology.read_genes`; those on chromosomes without regions play
        no part.
    gene_sets : mapping of str to sequence of str
        From `helpers.ontology.read_gmt`.

    Returns
    -------
    pandas.DataFrame
        `COLUMNS`, rows with p <= 0.05 over regions only. ``fold``, ``hits``, ``rate``
        and ``q_regions`` are of the test over regions; ``log_p``, ``p_value`` and
        ``q_value`` of the weaker of the two; ``q_shift`` is of
        `helpers.ontology.shift_p_values`. q-values count all terms and features.

    Raises
    ------
    ValueError
        If symbols do not match, or no gene set has a testable size.
    """
    ends = pd.concat([genes[["chrom", "end"]], regions[["chrom", "end"]]])
    sizes = ends.groupby("chrom")["end"].max()  # no region lies beyond
    near = genes[genes["chrom"].isin(set(regions["chrom"]))]
    arguments = (regions, membership, near, gene_sets, sizes.to_dict())
    table = ontology.enrichment(*arguments)
    n_tests = table.attrs["n_tests"]
    table = table[table["region_log_p"] <= np.log(_MAX_P)].reset_index(drop=True)
    p_shift = ontology.shift_p_values(table, *arguments)
    table["q_shift"] = benjamini_hochberg(np.log(p_shift), n_tests=n_tests)
    names = {
        "term": "item",
        "region_hits": "hits",
        "region_rate": "rate",
        "region_q_value": "q_regions",
    }
    table = table.drop(columns="fold").rename(columns=names | {"region_fold": "fold"})
    table["item"] = table["item"].astype(str)
    return table.assign(name=table["item"], family="", rate_all=np.nan)[COLUMNS]
