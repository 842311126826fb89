"""Gene sets near the regions of features, against circular shifts of the features.

Membership is ``(n_features, n_regions)``. `helpers.ontology` is the public face of this
module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from helpers.enrichment import check_membership, check_regions, genome_keys
from helpers.ontology._gene_domains import domain_regions, regulatory_domains

__all__ = ["shift_p_values"]


def shift_p_values(
    table: pd.DataFrame,
    regions: pd.DataFrame,
    membership: np.ndarray,
    genes: pd.DataFrame,
    gene_sets: Mapping[str, Sequence[str]],
    chrom_sizes: Mapping[str, int],
) -> np.ndarray:
    """Compare the regions near a term with circular shifts of the feature.

    The binomial takes regions for independent, and crowded ones are not; the test over
    genes has no power where a feature reaches nearly all genes. Moving a feature along
    its chromosomes keeps its crowds and breaks every bond with genes.

    Parameters
    ----------
    table : pandas.DataFrame
        Rows of `enrichment` to test: feature, term, region_hits.
    regions, membership, genes, gene_sets, chrom_sizes
        As for `enrichment`.

    Returns
    -------
    numpy.ndarray, shape (len(table),)
        Probability of at least as many regions in domains of the term's genes when
        every chromosome is shifted by a random distance of its own; the identity is one
        of the shifts.

    Notes
    -----
    All shifts of a chromosome at once are a circular correlation, by the fast Fourier
    transform; the count over chromosomes is the sum of independent counts, so its
    distribution is their convolution. Nothing is sampled.
    """
    regions = check_regions(regions)
    membership = check_membership(membership, len(regions))
    domains = regulatory_domains(genes, chrom_sizes)
    start, end = genome_keys(regions, domains["chrom"])
    order = np.argsort(start + end, kind="stable")
    chrom = regions["chrom"].to_numpy()[order]
    edges = np.flatnonzero(chrom[1:] != chrom[:-1]) + 1
    spans = np.split(np.arange(len(regions)), edges)
    in_order = membership[:, order].astype(np.float32)
    spectra = [np.fft.rfft(in_order[:, span]) for span in spans]
    holds = domain_regions(domains, regions)[:, order]  # (n_domains, n_regions)
    feature, hits = table["feature"].to_numpy(), table["region_hits"].to_numpy()
    p_values = np.ones(len(table))
    for term, where in table.groupby("term", observed=True).indices.items():
        of_term = domains["symbol"].isin(set(gene_sets[term])).to_numpy(dtype=float)
        near = (of_term @ holds > 0).astype(np.float32)
        chance = np.ones((len(where), 1))  # of every count, chromosome by chromosome
        for span, spectrum in zip(spans, spectra, strict=True):
            product = np.conj(spectrum[feature[where]]) * np.fft.rfft(near[span])
            counts = np.rint(np.fft.irfft(product, n=len(span)))
            chance = _add_counts(chance, counts.astype(np.int64))
        at_least = np.arange(chance.shape[1]) >= hits[where, None]
        p_values[where] = (chance * at_least).sum(axis=1)
    return np.minimum(p_values, 1)


def _add_counts(chance: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Convolve distributions over counts, in rows, with those of further counts."""
    n_rows, n_shifts = counts.shape
    width = int(counts.max(initial=0)) + 1
    cells = np.arange(n_rows)[:, None] * width + counts
    share = np.bincount(cells.ravel(), minlength=n_rows * width) / n_shifts
    share = share.reshape(n_rows, width)
    total = np.zeros((n_rows, chance.shape[1] + width - 1))
    for count in range(width):
        total[:, count : count + chance.shape[1]] += share[:, [count]] * chance
    return total
