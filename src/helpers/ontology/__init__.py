"""Biological processes: from regions to genes to gene-ontology terms.

Regions reach genes through GREAT's regulatory domains (McLean et al. 2010, Nat.
Biotechnol. 28:495). A term is tested twice, over regions (binomial, which the length of
the domains cannot fool) and over genes (hypergeometric, which one crowded gene cannot
fool); both must agree. Membership is ``(n_features, n_regions)``; features are done at
once.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from scipy import sparse

from helpers._text_files import read_text
from helpers.enrichment import (
    benjamini_hochberg,
    binomial_log_tail,
    check_membership,
    check_regions,
    genome_keys,
    hypergeometric_log_tail,
    ranges,
)
from helpers.ontology._gene_domains import domain_regions, regulatory_domains
from helpers.ontology._shifts import shift_p_values

__all__ = [
    "UnmatchedSymbolWarning",
    "enrichment",
    "read_genes",
    "read_gmt",
    "regulatory_domains",
    "shift_p_values",
]

_BLOCK = 512  # features per block: bounds the memory of the sparse products


class UnmatchedSymbolWarning(UserWarning):
    """Few symbols match between gene sets and gene table."""


def read_gmt(path: str | Path) -> dict[str, list[str]]:
    """Read gene sets in GMT format, gzipped or not.

    Parameters
    ----------
    path : str or Path
        Tab-separated file: term, description, then symbols.

    Returns
    -------
    dict of str to list of str
        Symbols of every term in file order, repeats removed.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If there is no term, a line has no symbol, or a term occurs twice; the message
        names file and line.
    """
    gene_sets: dict[str, list[str]] = {}
    for number, line in _numbered_lines(path):
        term, *rest = line.split("\t")
        symbols = list(dict.fromkeys(s.strip() for s in rest[1:] if s.strip()))
        if not term.strip() or not symbols:
            raise ValueError(
                f"{path}, line {number}: expected term, description and at least one "
                f"gene symbol, separated by tabs; found {line[:60]!r}"
            )
        if term.strip() in gene_sets:
            raise ValueError(f"{path}, line {number}: term {term!r} occurs twice")
        gene_sets[term.strip()] = symbols
    if not gene_sets:
        raise ValueError(f"{path}: no gene set found")
    return gene_sets


def read_genes(path: str | Path) -> pd.DataFrame:
    """Read a gene table in BED6 format (name is the symbol), gzipped or not.

    Parameters
    ----------
    path : str or Path
        BED file: chrom, start, end, symbol, score, strand.

    Returns
    -------
    pandas.DataFrame
        Columns chrom, start, end (0-based, half-open), symbol, strand and tss, the
        0-based position of the first transcribed base. A symbol may have several rows.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If there is no gene or a line is not such a gene; the message names file and
        line.
    """
    rows = []
    for number, line in _numbered_lines(path):
        fields = line.split("\t")
        try:
            chrom, start, end, symbol, _, strand = fields[:6]
            row = (chrom, int(start), int(end), symbol, strand)
        except ValueError:
            row = ("", 0, 0, "", "")
        if not (0 <= row[1] < row[2] < 2**62 and row[3] and row[4] in ("+", "-")):
            raise ValueError(
                f"{path}, line {number}: expected chrom, start < end, symbol, score, "
                f"strand (+ or -), separated by tabs; found {line[:60]!r}"
            )
        rows.append(row)
    if not rows:
        raise ValueError(f"{path}: no gene found")
    genes = pd.DataFrame(rows, columns=["chrom", "start", "end", "symbol", "strand"])
    genes["tss"] = np.where(genes["strand"] == "+", genes["start"], genes["end"] - 1)
    return genes


def _numbered_lines(path: str | Path) -> list[tuple[int, str]]:
    path = Path(path)
    text = read_text(path, "file")
    return [
        (number, line)
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip() and not line.startswith(("#", "track", "browser"))
    ]


def enrichment(
    regions: pd.DataFrame,
    membership: np.ndarray,
    genes: pd.DataFrame,
    gene_sets: Mapping[str, Sequence[str]],
    chrom_sizes: Mapping[str, int],
    *,
    background: Literal["regions", "genome"] = "regions",
    gaps: pd.DataFrame | None = None,
    min_size: int = 5,
    max_size: int = 500,
    max_p_value: float = 1.0,
) -> pd.DataFrame:
    """Test gene sets near the regions of every feature.

    Over regions: of a feature's n regions, k have their midpoint in a regulatory domain
    of the term's genes; P(X >= k) is binomial. Over genes: of the n genes whose domain
    holds a region of the feature, k are in the term; P(X >= k) is hypergeometric. A
    term is enriched when both say so, so p_value is the larger of the two.

    Parameters
    ----------
    regions : pandas.DataFrame
        Columns chrom, start, end (0-based, half-open): all regions tested.
    membership : numpy.ndarray of bool, shape (n_features, n_regions)
        Which feature fires in which region.
    genes : pandas.DataFrame
        Gene table from `read_genes`.
    gene_sets : mapping of str to sequence of str
        Symbols of every term, from `read_gmt`.
    chrom_sizes : mapping of str to int
        Chromosome lengths.
    background : {"regions", "genome"}, default="regions"
        What chance is. ``"regions"``: the regions given; the binomial rate is the share
        of them in the term's domains, and genes without any of them do not count.
        ``"genome"``: GREAT's whole-genome test; the rate is the share of the genome
        outside ``gaps`` in the term's domains, and all genes count.
    gaps : pandas.DataFrame or None
        Assembly gaps (chrom, start, end), for ``"genome"``.
    min_size, max_size : int
        Terms with fewer or more background genes are not tested.
    max_p_value : float, default=1.0
        Rows with a larger p_value are left out of the table, though not out of the
        correction for multiple tests.

    Returns
    -------
    pandas.DataFrame
        One row per feature and term with at least one region: feature, term,
        n_regions, region_hits, region_rate, region_fold, region_log_p, region_q_value,
        n_genes, gene_hits, term_genes, gene_fold, gene_log_p, gene_q_value, and for
        both together fold (the smaller), log_p, p_value, q_value. Logarithms are
        natural. The q-values are Benjamini-Hochberg over all features times all terms
        tested, also those without a region (p = 1). ``attrs`` has symbols_matched (the
        share of symbols that gene table and gene sets have in common, of the smaller of
        the two), n_terms, n_terms_filtered, n_background_genes, n_tests and
        n_unreached, the regions in no gene's domain, which count as regions without
        any term.

    Warns
    -----
    UnmatchedSymbolWarning
        If less than half of the symbols match.
    EmptyFeatureWarning
        If features have no region; they have no rows.

    Raises
    ------
    ValueError
        If an argument is not as described, regions lie on chromosomes without a size,
        less than 5% of the symbols match, or no term has the required size.

    Notes
    -----
    With background ``"regions"`` features are drawn from the background without
    replacement, so the binomial is slightly conservative.
    """
    if background not in ("regions", "genome"):
        raise ValueError(f"background must be regions or genome; got {background!r}")
    if gaps is not None and background == "regions":
        raise ValueError("gaps are used with background='genome' only")
    regions = check_regions(regions)
    membership = check_membership(membership, len(regions))
    unknown = regions["chrom"][~regions["chrom"].isin(set(chrom_sizes))]
    if len(unknown):
        raise ValueError(
            f"{len(unknown)} of {len(regions)} regions lie on chromosomes that "
            f"chrom_sizes does not have: {', '.join(sorted(set(unknown))[:5])}"
        )
    matched = _symbols_matched(genes, gene_sets)
    domains = regulatory_domains(genes, chrom_sizes)
    symbols = list(dict.fromkeys(domains["symbol"]))
    gene_of_domain = domains["symbol"].map({s: i for i, s in enumerate(symbols)})
    merge = _incidence(gene_of_domain.to_numpy(), len(symbols))  # (n_domains, n_genes)
    gene_regions = merge.T @ domain_regions(domains, regions)  # (n_genes, n_regions)
    region_genes = _as_bool(gene_regions.T)

    counted = np.ones(len(symbols), dtype=bool)
    if background == "regions":
        counted = np.asarray(region_genes.sum(axis=0)).ravel() > 0
    in_term = _gene_terms(symbols, counted, gene_sets)  # (n_genes, n_terms)
    term_genes = np.asarray(in_term.sum(axis=0)).ravel()
    tested = np.flatnonzero((term_genes >= min_size) & (term_genes <= max_size))
    if len(tested) == 0:
        raise ValueError(
            f"no gene set has {min_size} to {max_size} genes among the "
            f"{int(counted.sum())} background genes"
        )
    in_term, term_genes = in_term[:, tested], term_genes[tested]
    region_terms = _as_bool(region_genes @ in_term)  # (n_regions, n_terms)
    if background == "regions":
        rate = np.asarray(region_terms.sum(axis=0)).ravel() / len(regions)
    else:
        rate = _genome_share(domains, merge @ in_term, chrom_sizes, gaps)

    blocks = []
    for first in range(0, len(membership), _BLOCK):
        block = membership[first : first + _BLOCK]
        cells = _hits(block, region_genes, region_terms, in_term)
        cells["feature"] += first
        blocks.append(cells)
    cells = {key: np.concatenate([block[key] for block in blocks]) for key in blocks[0]}
    attrs = {
        "symbols_matched": matched,
        "n_terms": len(tested),
        "n_terms_filtered": len(gene_sets) - len(tested),
        "n_background_genes": int(counted.sum()),
        "n_unreached": int((np.asarray(region_genes.sum(axis=1)).ravel() == 0).sum()),
        "n_tests": int(membership.any(axis=1).sum()) * len(tested),
    }
    terms = np.array(list(gene_sets), dtype=object)[tested]
    table = _test(cells, terms, rate, term_genes.astype(np.int32), attrs)
    return table[table["p_value"] <= max_p_value].reset_index(drop=True)


def _hits(
    membership: np.ndarray,
    region_genes: sparse.csr_array,
    region_terms: sparse.csr_array,
    in_term: sparse.csr_array,
) -> dict[str, np.ndarray]:
    """Count every (feature, term) with a hit; those of regions and genes coincide."""
    members = sparse.csr_array(membership, dtype=np.float64)
    feature_genes = _as_bool(members @ region_genes)
    region_hits, gene_hits = members @ region_terms, feature_genes @ in_term
    for counts in (region_hits, gene_hits):
        counts.sort_indices()
    feature, term = region_hits.nonzero()
    n_genes = np.asarray(feature_genes.sum(axis=1)).ravel()
    return {
        "feature": feature.astype(np.int32),
        "term": term.astype(np.int32),
        "n_regions": membership.sum(axis=1).astype(np.int32)[feature],
        "region_hits": region_hits.data.astype(np.int32),
        "n_genes": n_genes.astype(np.int32)[feature],
        "gene_hits": gene_hits.data.astype(np.int32),
    }


def _test(
    cells: dict[str, np.ndarray],
    terms: np.ndarray,
    rate: np.ndarray,
    term_genes: np.ndarray,
    attrs: dict,
) -> pd.DataFrame:
    term = cells["term"]
    n_background, n_tests = attrs["n_background_genes"], attrs["n_tests"]
    table = pd.DataFrame({"feature": cells["feature"]})
    table["term"] = pd.Categorical.from_codes(term, categories=terms)
    table["n_regions"] = cells["n_regions"]
    table["region_hits"] = cells["region_hits"]
    table["region_rate"] = rate[term]
    expected = cells["n_regions"] * rate[term]
    table["region_fold"] = cells["region_hits"] / expected
    region_log_p = binomial_log_tail(
        cells["region_hits"], cells["n_regions"], rate[term]
    )
    table["region_log_p"] = region_log_p
    table["region_q_value"] = benjamini_hochberg(region_log_p, n_tests=n_tests)
    table["n_genes"] = cells["n_genes"]
    table["gene_hits"] = cells["gene_hits"]
    table["term_genes"] = term_genes[term]
    expected = cells["n_genes"] * (term_genes[term] / n_background)
    table["gene_fold"] = cells["gene_hits"] / expected
    gene_log_p = hypergeometric_log_tail(
        cells["gene_hits"], n_background, term_genes[term], cells["n_genes"]
    )
    table["gene_log_p"] = gene_log_p
    table["gene_q_value"] = benjamini_hochberg(gene_log_p, n_tests=n_tests)
    table["fold"] = np.minimum(table["region_fold"], table["gene_fold"])
    table["log_p"] = np.maximum(region_log_p, gene_log_p)
    table["p_value"] = np.exp(table["log_p"])
    both = table["log_p"].to_numpy()
    table["q_value"] = benjamini_hochberg(both, n_tests=n_tests)
    table.attrs.update(attrs)
    return table


def _symbols_matched(
    genes: pd.DataFrame, gene_sets: Mapping[str, Sequence[str]]
) -> float:
    """Share of common symbols, of the smaller collection; near zero is an error."""
    in_table = set(genes["symbol"])
    in_sets = {symbol for symbols in gene_sets.values() for symbol in symbols}
    if not in_table or not in_sets:
        raise ValueError("genes and gene_sets must not be empty")
    matched = len(in_table & in_sets) / min(len(in_table), len(in_sets))
    advice = (
        f"{matched:.1%} of symbols match between gene table (such as "
        f"{', '.join(sorted(in_table)[:3])}) and gene sets (such as "
        f"{', '.join(sorted(in_sets)[:3])}); check species and release"
    )
    if matched < 0.05:
        raise ValueError(advice)
    if matched < 0.5:
        warnings.warn(advice, UnmatchedSymbolWarning, stacklevel=3)
    return matched


def _as_bool(matrix: sparse.sparray) -> sparse.csr_array:
    """Sparse 0/1 matrix (float64, ready for products) of the positive entries."""
    matrix = sparse.csr_array(matrix > 0, dtype=np.float64)
    matrix.sort_indices()
    return matrix


def _incidence(column: np.ndarray, n_columns: int) -> sparse.csr_array:
    """One row per entry, with a one in the given column."""
    n_rows = len(column)
    return sparse.csr_array(
        (np.ones(n_rows), column, np.arange(n_rows + 1)), shape=(n_rows, n_columns)
    )


def _gene_terms(
    symbols: list[str], counted: np.ndarray, gene_sets: Mapping[str, Sequence[str]]
) -> sparse.csr_array:
    """Membership of the genes that count in terms, shape (n_genes, n_terms)."""
    index = {symbol: i for i, symbol in enumerate(symbols) if counted[i]}
    gene, term = [], []
    for column, members in enumerate(gene_sets.values()):
        known = [index[symbol] for symbol in set(members) if symbol in index]
        gene += known
        term += [column] * len(known)
    shape = (len(symbols), len(gene_sets))
    return sparse.csr_array((np.ones(len(gene)), (gene, term)), shape=shape)


def _genome_share(
    domains: pd.DataFrame,
    domain_terms: sparse.csr_array,
    chrom_sizes: Mapping[str, int],
    gaps: pd.DataFrame | None,
) -> np.ndarray:
    """Share of the genome outside gaps in the domains of each term, (n_terms,)."""
    start, end = genome_keys(domains, chrom_sizes)
    total = sum(chrom_sizes.values())
    points = np.unique(np.concatenate([start, end]))
    if gaps is not None:
        gaps = check_regions(gaps)
        gap_start, gap_end = genome_keys(gaps, chrom_sizes)
        order = np.argsort(gap_start)
        gap_start, gap_end = gap_start[order], gap_end[order]
        if (gap_start[1:] < gap_end[:-1]).any():
            raise ValueError("gaps must not overlap")
        points = np.unique(np.concatenate([points, gap_start, gap_end]))
        total -= int((gap_end - gap_start).sum())
    length = np.diff(points).astype(np.float64)
    if gaps is not None:
        last = np.searchsorted(gap_start, points[:-1], side="right") - 1
        length[(last >= 0) & (points[:-1] < gap_end[last])] = 0
    first = np.searchsorted(points, start)
    n_pieces = np.searchsorted(points, end) - first
    pointers = np.concatenate([[0], np.cumsum(n_pieces)])
    pieces = sparse.csr_array(
        (np.ones(pointers[-1]), ranges(first, n_pieces), pointers),
        shape=(len(domains), len(length)),
    )
    return length @ _as_bool(pieces.T @ domain_terms) / total
