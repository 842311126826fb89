"""GREAT's regulatory domains of genes, and the regions in them.

Positions are 0-based and half-open (McLean et al. 2010, Nat. Biotechnol. 28:495).
`helpers.ontology` is the public face of this module.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy import sparse

from helpers.enrichment import genome_keys, ranges

__all__ = ["domain_regions", "regulatory_domains"]


def regulatory_domains(
    genes: pd.DataFrame,
    chrom_sizes: Mapping[str, int],
    *,
    basal_upstream: int = 5_000,
    basal_downstream: int = 1_000,
    max_extension: int = 1_000_000,
) -> pd.DataFrame:
    """Give every gene GREAT's "basal plus extension" regulatory domain.

    The basal domain around the transcription start is always kept; it is extended to
    both sides up to ``max_extension`` from the start, but not into the basal domain of
    the neighbor. The neighbor is the one directly before or after in the order of
    (chromosome, start site, strand), as in GREAT's program, not any gene.

    Parameters
    ----------
    genes : pandas.DataFrame
        Columns chrom, tss, strand, symbol (from `read_genes`).
    chrom_sizes : mapping of str to int
        Chromosome lengths.
    basal_upstream, basal_downstream : int
        Reach of the basal domain from the start site, in bp along the strand.
    max_extension : int
        Largest distance from the start site, in bp.

    Returns
    -------
    pandas.DataFrame
        Columns chrom, start, end (0-based, half-open), symbol, strand, tss in GREAT's
        order.

    Raises
    ------
    ValueError
        If a gene lies on a chromosome without a size, or beyond its end.
    """
    size = genes["chrom"].map(dict(chrom_sizes)).to_numpy(dtype=np.float64)
    if np.isnan(size).any():
        unknown = genes["chrom"][np.isnan(size)]
        raise ValueError(
            f"{len(unknown)} genes lie on chromosomes that chrom_sizes does not have: "
            f"{', '.join(sorted(set(unknown))[:5])}"
        )
    if (genes["tss"].to_numpy() >= size).any():
        gene = genes.iloc[int((genes["tss"].to_numpy() >= size).argmax())]
        raise ValueError(
            f"gene {gene['symbol']} starts at {gene['chrom']}:{gene['tss']}, beyond "
            "the end of its chromosome; check the assembly"
        )
    domains = genes[["chrom", "tss", "strand", "symbol"]].sort_values(
        ["chrom", "tss", "strand"], kind="stable", ignore_index=True
    )
    size = domains["chrom"].map(dict(chrom_sizes)).to_numpy(dtype=np.int64)
    tss = domains["tss"].to_numpy(dtype=np.int64)
    forward = (domains["strand"] == "+").to_numpy()
    basal_start = tss - np.where(forward, basal_upstream, basal_downstream)
    basal_end = tss + np.where(forward, basal_downstream, basal_upstream)
    chrom = domains["chrom"].to_numpy(dtype=object)
    same = chrom[1:] == chrom[:-1]
    left_limit = np.maximum(0, tss - max_extension)
    left_limit[1:][same] = np.maximum(left_limit[1:], basal_end[:-1])[same]
    right_limit = np.minimum(size, tss + max_extension)
    right_limit[:-1][same] = np.minimum(right_limit[:-1], basal_start[1:])[same]
    domains["start"] = np.minimum(np.maximum(basal_start, 0), left_limit)
    domains["end"] = np.maximum(np.minimum(basal_end, size), right_limit)
    return domains[["chrom", "start", "end", "symbol", "strand", "tss"]]


def domain_regions(domains: pd.DataFrame, regions: pd.DataFrame) -> sparse.csr_array:
    """Find the regions with their midpoint in each domain.

    Parameters
    ----------
    domains : pandas.DataFrame
        From `regulatory_domains`.
    regions : pandas.DataFrame
        Columns chrom, start, end.

    Returns
    -------
    scipy.sparse.csr_array, shape (n_domains, n_regions)
        1 where a domain holds a region.
    """
    start, end = genome_keys(domains, domains["chrom"])
    region_start, region_end = genome_keys(regions, domains["chrom"])
    midpoint = (region_start + region_end) // 2
    order = np.argsort(midpoint, kind="stable")
    first = np.searchsorted(midpoint, start, sorter=order)
    length = np.searchsorted(midpoint, end, sorter=order) - first
    pointers = np.concatenate([[0], np.cumsum(length)])
    return sparse.csr_array(
        (np.ones(pointers[-1]), order[ranges(first, length)], pointers),
        shape=(len(domains), len(regions)),
    )
