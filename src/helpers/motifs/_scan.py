"""Scan sequences: exact score thresholds, hits on both strands, composition.

Sequences are strings or uint8 codes ``(n_sequences, length)``: 0 to 3 for A, C, G, T
and 4 for N. `helpers.motifs` is the public face of this module.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import lru_cache

import lightmotif
import numpy as np

from helpers.motifs._files import Motif

__all__ = [
    "UnreachableMotifWarning",
    "count_hits",
    "gc_content",
    "kmer_frequencies",
    "score_threshold",
]

_FLOOR = 1e-3  # HOMER's floor on probabilities: a zero must not forbid a site
_GRID = 1000  # scores are integers in 1/1000 bit, so float32 scanning is exact
_CODE_LETTERS = np.frombuffer(b"ACGTN", dtype=np.uint8)
_MAX_N_SHARE = 0.7  # HOMER drops sequences with more N than this


class UnreachableMotifWarning(UserWarning):
    """Some motifs are too short or too flat to reach the requested p-value."""


@lru_cache(maxsize=4096)  # a collection: its thresholds serve every sample
def score_threshold(motif: Motif, p_value: float = 1e-4) -> float:
    """Return the lowest score whose exact p-value does not exceed ``p_value``.

    The distribution of the score of a random word (uniform bases) is computed exactly
    by dynamic programming over positions, on the same grid of 1/1000 bit on which
    sequences are scored, so no word is misjudged by rounding.

    Parameters
    ----------
    motif : Motif
        The motif.
    p_value : float, default=1e-4
        Probability that a random word on one strand reaches the threshold.

    Returns
    -------
    float
        Threshold in bits of log-odds against uniform bases; infinite where even the
        best word is likelier than ``p_value`` (a motif of ``w`` positions cannot
        go below ``4 ** -w``).

    Raises
    ------
    ValueError
        If ``p_value`` is not in (0, 1].
    """
    if not 0 < p_value <= 1:
        raise ValueError(f"p_value must be in (0, 1]; got {p_value}")
    scores = _grid_scores(motif).astype(np.int64)
    shifted = scores - scores.min(axis=1, keepdims=True)
    distribution = np.ones(1)
    for row in shifted:  # after each position: P(score so far), index = score
        longer = np.zeros(len(distribution) + int(row.max()))
        for step in row:
            longer[step : step + len(distribution)] += 0.25 * distribution
        distribution = longer
    tail = np.cumsum(distribution[::-1])[::-1]  # P(score >= index), not increasing
    reachable = np.flatnonzero((tail <= p_value) & (distribution > 0))
    if len(reachable) == 0:
        return math.inf
    return float(reachable[0] + scores.min(axis=1).sum()) / _GRID


def count_hits(
    sequences: Sequence[str] | np.ndarray,
    motifs: Sequence[Motif],
    *,
    p_value: float | None = 1e-4,
) -> np.ndarray:
    """Count motif hits on both strands of every sequence.

    A window is a hit when its log-odds score against uniform bases (probabilities
    floored at 0.001) reaches the motif's threshold. A window that contains an N, or
    any letter other than A, C, G, T in either case, is never a hit. A word that scores
    on both strands counts twice.

    Parameters
    ----------
    sequences : sequence of str, or numpy.ndarray of uint8, shape (n_sequences, length)
        Sequences; in array form 0 to 3 are A, C, G, T and 4 is N.
    motifs : sequence of Motif
        Motifs to scan.
    p_value : float or None, default=1e-4
        One-strand p-value of the threshold (`score_threshold`). With None each motif's
        own threshold is used, as HOMER does.

    Returns
    -------
    numpy.ndarray of int32, shape (n_sequences, n_motifs)
        Number of hits. ``hits > 0`` is the zero-or-one occurrence per sequence (ZOOPS)
        table.

    Warns
    -----
    UnreachableMotifWarning
        If motifs cannot reach the p-value; they have no hits.

    Raises
    ------
    ValueError
        If codes are outside 0 to 4, or a motif has no threshold of its own while
        ``p_value`` is None.
    """
    text, starts = _join(sequences)
    striped = lightmotif.stripe(text)
    counts = np.zeros((len(starts), len(motifs)), dtype=np.int32)
    unreachable = []
    for column, motif in enumerate(motifs):
        scores, threshold = _scoring(motif, p_value)
        if math.isinf(threshold):
            unreachable.append(motif.id)
            continue
        if motif.width > len(text):
            continue
        for strand in (scores, scores[::-1, ::-1]):
            hits = lightmotif.scan(_pssm(strand), striped, threshold=threshold)
            positions = np.fromiter((hit.position for hit in hits), dtype=np.int64)
            sequence = np.searchsorted(starts, positions, side="right") - 1
            counts[:, column] += np.bincount(sequence, minlength=len(starts)).astype(
                np.int32
            )
    if unreachable:
        shown = ", ".join(unreachable[:5]) + (" ..." if len(unreachable) > 5 else "")
        warnings.warn(
            f"{len(unreachable)} of {len(motifs)} motifs cannot reach "
            f"p <= {p_value:g} and have no hits: {shown}",
            UnreachableMotifWarning,
            stacklevel=2,
        )
    return counts


def gc_content(sequences: Sequence[str] | np.ndarray) -> np.ndarray:
    """Return the share of G and C among the known bases of every sequence.

    Parameters
    ----------
    sequences : sequence of str, or numpy.ndarray of uint8, shape (n_sequences, length)
        Sequences; in array form 0 to 3 are A, C, G, T and 4 is N.

    Returns
    -------
    numpy.ndarray, shape (n_sequences,)
        Values in [0, 1]; NaN where more than 70% of the bases are unknown, which
        `enrichment` leaves out.
    """
    text, starts = _join(sequences)
    codes = np.frombuffer(text.encode(), dtype=np.uint8)
    is_gc = (codes == ord("G")) | (codes == ord("C"))
    known = np.add.reduceat(codes != ord("N"), starts, dtype=np.int64)
    length = np.diff(np.append(starts, len(codes))) - 1  # without the separator
    with np.errstate(divide="ignore", invalid="ignore"):
        gc = np.add.reduceat(is_gc, starts, dtype=np.int64) / known
        gc[length - known > _MAX_N_SHARE * length] = np.nan
    return gc


def kmer_frequencies(sequences: Sequence[str] | np.ndarray, k: int) -> np.ndarray:
    """Return the k-mer frequencies of every sequence, both strands together.

    Parameters
    ----------
    sequences : sequence of str, or numpy.ndarray of uint8, shape (n_sequences, length)
        Sequences; in array form 0 to 3 are A, C, G, T and 4 is N.
    k : int
        Length of the words; those with an N do not count.

    Returns
    -------
    numpy.ndarray, shape (n_sequences, 4**k)
        Rows sum to 1, or to 0 where no word is known; words in alphabetical order.
    """
    text, starts = _join(sequences)
    table = np.full(256, -1, dtype=np.int64)
    table[list(b"ACGT")] = range(4)
    codes = table[np.frombuffer(text.encode(), dtype=np.uint8)]
    n_words = len(codes) - k + 1
    word, reverse = np.zeros((2, n_words), dtype=np.int64)
    known = np.ones(n_words, dtype=bool)
    for i in range(k):
        base = codes[i : i + n_words]
        known &= base >= 0
        word = word * 4 + base
        reverse += (3 - base) * 4**i
    sequence = np.searchsorted(starts, np.flatnonzero(known), side="right") - 1
    counts = np.zeros(len(starts) * 4**k)
    for words in (word[known], reverse[known]):
        counts += np.bincount(sequence * 4**k + words, minlength=len(counts))
    counts = counts.reshape(len(starts), 4**k)
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def _grid_scores(motif: Motif) -> np.ndarray:
    """Log-odds in integers of 1/1000 bit, as float64, shape (width, 4)."""
    odds = np.maximum(motif.probabilities, _FLOOR) / 0.25
    return np.rint(np.log2(odds) * _GRID)


def _scoring(motif: Motif, p_value: float | None) -> tuple[np.ndarray, float]:
    """Scoring matrix and threshold in the same unit."""
    if p_value is not None:
        return _grid_scores(motif), np.rint(score_threshold(motif, p_value) * _GRID)
    if motif.threshold is None:
        raise ValueError(
            f"motif {motif.id!r} has no threshold of its own; give a p_value"
        )
    return np.log(np.maximum(motif.probabilities, _FLOOR) / 0.25), motif.threshold


def _pssm(scores: np.ndarray) -> lightmotif.ScoringMatrix:
    columns = {base: scores[:, i].tolist() for i, base in enumerate("ACGT")}
    return lightmotif.ScoringMatrix(columns | {"N": [-math.inf] * len(scores)})


def _join(sequences: Sequence[str] | np.ndarray) -> tuple[str, np.ndarray]:
    """Join sequences with an N between them, which no hit can cross."""
    if isinstance(sequences, np.ndarray) and sequences.dtype == np.uint8:
        if sequences.ndim != 2 or (sequences.size and sequences.max() > 4):
            raise ValueError(
                "sequences must have shape (n_sequences, length) and codes 0 to 4; got "
                f"shape {sequences.shape}, largest code {sequences.max(initial=0)}"
            )
        padded = np.pad(sequences, ((0, 0), (0, 1)), constant_values=4)
        starts = np.arange(len(sequences), dtype=np.int64) * padded.shape[1]
        return _CODE_LETTERS[padded.ravel()].tobytes().decode(), starts
    lengths = np.fromiter((len(s) + 1 for s in sequences), dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    table = np.full(256, ord("N"), dtype=np.uint8)
    table[list(b"ACGTacgt")] = list(b"ACGTACGT")
    joined = "".join(f"{s}N" for s in sequences).encode("latin-1", errors="replace")
    return table[np.frombuffer(joined, dtype=np.uint8)].tobytes().decode(), starts
