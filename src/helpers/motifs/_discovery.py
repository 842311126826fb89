"""A motif learned from a feature's own regions.

Codes are ``(n_sequences, length)``: 0 to 3 for A, C, G, T and 4 for N. Half of the
sequences teach, the other half test, so the p-value is honest. `helpers.motifs` is the
public face of this module.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from helpers.enrichment import hypergeometric_log_tail
from helpers.motifs._files import Motif
from helpers.motifs._scan import count_hits, score_threshold

__all__ = ["DiscoveredMotif", "discover_motif"]

_WORD = 6  # bases of the words that seed a motif
_FLANK = 4  # bases added to both sides of a word
_N_SEEDS = 5  # words that are refined
_ROUNDS = 20
_P_VALUE = 1e-3  # of a site, while learning
_TEST_P_VALUE = 1e-4
_PSEUDOCOUNT = 0.5  # per cell: few sites must not forbid a base
_MIN_BITS = 0.25  # flanking positions that say less are cut off
_MIN_SEQUENCES = 20
_N = 4


class DiscoveredMotif(NamedTuple):
    """A motif that sequences taught, and its test on sequences that did not.

    Attributes
    ----------
    motif : Motif
        The matrix.
    n_sites : int
        Target sequences that taught it.
    log_p : float
        Natural logarithm of the hypergeometric tail, in the other half.
    fold : float
        Share of targets over share of background with the motif, in the other half.
    """

    motif: Motif
    n_sites: int
    log_p: float
    fold: float


def discover_motif(
    targets: np.ndarray, background: np.ndarray, *, name: str = "discovered"
) -> DiscoveredMotif:
    """Learn the motif by which targets differ most from background.

    The words of six bases that are most over-represented among every other target are
    widened by four bases on both sides and refined: the best site of every sequence
    that reaches p = 0.001 joins the next matrix, until sites no longer change. The
    matrix that tells those sequences apart best is tested on the sequences left out.

    Parameters
    ----------
    targets, background : numpy.ndarray of uint8, shape (n_sequences, length)
        Codes. Background should be alike in all but the motif, such as regions of the
        same GC content and accessibility.
    name : str
        Identifier of the motif.

    Returns
    -------
    DiscoveredMotif

    Raises
    ------
    ValueError
        If there are fewer than 20 sequences on a side, they are not codes of one
        length, or too short for a motif.
    """
    for label, codes in (("targets", targets), ("background", background)):
        if codes.ndim != 2 or len(codes) < _MIN_SEQUENCES or codes.dtype != np.uint8:
            raise ValueError(
                f"{label} must be uint8 codes of at least {_MIN_SEQUENCES} sequences; "
                f"got {codes.dtype}, shape {codes.shape}"
            )
    width = _WORD + 2 * _FLANK
    if targets.shape[1] != background.shape[1] or targets.shape[1] < width:
        raise ValueError(
            f"sequences must be of one length, at least {width}; got "
            f"{targets.shape[1]} and {background.shape[1]}"
        )
    learn, others = targets[::2], background[::2]
    best, best_log_p = None, np.inf
    for word in _seeds(learn, others):
        motif, n_sites = _refine(_sites_of_word(learn, word), learn, name)
        log_p, _ = _test(motif, learn, others)
        if best is None or log_p < best_log_p:
            best, best_log_p = (motif, n_sites), log_p
    motif, n_sites = best
    return DiscoveredMotif(
        motif, n_sites, *_test(motif, targets[1::2], background[1::2])
    )


def _words(codes: np.ndarray) -> np.ndarray:
    """Word at every position, as the smaller of both strands; -1 with an N."""
    n = codes.shape[1] - _WORD + 1
    word = np.zeros((len(codes), n), dtype=np.int64)
    reverse = np.zeros_like(word)
    known = np.ones(word.shape, dtype=bool)
    for i in range(_WORD):
        base = codes[:, i : i + n].astype(np.int64)
        known &= base < _N
        word = word * 4 + base
        reverse += (3 - base) * 4**i
    return np.where(known, np.minimum(word, reverse), -1)


def _seeds(targets: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Words that most targets hold beyond what background holds."""
    counts = []
    for codes in (targets, background):
        words = np.sort(_words(codes), axis=1)
        first = np.ones(words.shape, dtype=bool)
        first[:, 1:] = words[:, 1:] != words[:, :-1]  # once per sequence
        counts.append(np.bincount(words[first & (words >= 0)], minlength=4**_WORD))
    inside, outside = counts
    n = len(targets)
    log_p = hypergeometric_log_tail(inside, n + len(background), inside + outside, n)
    return np.argsort(log_p, kind="stable")[:_N_SEEDS]


def _sites_of_word(codes: np.ndarray, word: int) -> np.ndarray:
    """Sequence around every occurrence of a word, read so that they agree."""
    inner = _words(codes)[:, _FLANK:-_FLANK]
    row, start = np.nonzero(inner == word)
    at = start[:, None] + np.arange(_WORD + 2 * _FLANK)
    sites = codes[row[:, None], at]
    powers = 4 ** np.arange(_WORD)[::-1]
    forward = sites[:, _FLANK:-_FLANK].astype(np.int64) @ powers == word
    return np.where(forward[:, None], sites, _complement(sites)[:, ::-1])


def _complement(codes: np.ndarray) -> np.ndarray:
    return np.where(codes < _N, 3 - codes.astype(np.int64), _N).astype(np.uint8)


def _matrix(sites: np.ndarray) -> np.ndarray:
    """Probabilities of bases at every position of aligned sites."""
    counts = (sites[:, :, None] == np.arange(4)).sum(axis=0) + _PSEUDOCOUNT
    return counts / counts.sum(axis=1, keepdims=True)


def _refine(sites: np.ndarray, codes: np.ndarray, name: str) -> tuple[Motif, int]:
    """Let the best site of every sequence make the next matrix, until none changes."""
    for _ in range(_ROUNDS):
        motif = Motif(name, name, _matrix(sites))
        found = _best_sites(motif, codes)
        if len(found) == 0 or np.array_equal(found, sites):
            break
        sites = found
    matrix = _matrix(sites)
    bits = 2 + (matrix * np.log2(matrix)).sum(axis=1)
    telling = np.flatnonzero(bits >= _MIN_BITS)
    low, high = (telling[0], telling[-1] + 1) if len(telling) else (0, len(matrix))
    high = max(high, low + min(_WORD, len(matrix) - low))
    return Motif(name, name, matrix[low:high]), len(sites)


def _best_sites(motif: Motif, codes: np.ndarray) -> np.ndarray:
    """Best site of every sequence that reaches the threshold, on its own strand."""
    scores = np.log2(motif.probabilities / 0.25)
    scores = np.pad(scores, ((0, 0), (0, 1)), constant_values=-np.inf)
    n = codes.shape[1] - motif.width + 1
    strands = [codes, _complement(codes)[:, ::-1]]
    best = np.full(len(codes), -np.inf)
    sites = np.zeros((len(codes), motif.width), dtype=np.uint8)
    for strand in strands:
        total = np.zeros((len(codes), n))
        for i, row in enumerate(scores):
            total += row[strand[:, i : i + n]]
        at = total.argmax(axis=1)
        value = total[np.arange(len(codes)), at]
        better = value > best
        best[better] = value[better]
        window = at[better][:, None] + np.arange(motif.width)
        sites[better] = strand[better][np.arange(better.sum())[:, None], window]
    return sites[best >= score_threshold(motif, _P_VALUE)]


def _test(
    motif: Motif, targets: np.ndarray, background: np.ndarray
) -> tuple[float, float]:
    """Hypergeometric log tail and fold of sequences with the motif."""
    reachable = np.isfinite(score_threshold(motif, _TEST_P_VALUE))
    p_value = _TEST_P_VALUE if reachable else _P_VALUE
    k, hits = (
        int((count_hits(codes, [motif], p_value=p_value) > 0).sum())
        for codes in (targets, background)
    )
    n, size = len(targets), len(background)
    log_p = hypergeometric_log_tail(k, n + size, k + hits, n)
    fold = (k / n) / ((hits + 1) / (size + 1))
    return float(log_p), fold
