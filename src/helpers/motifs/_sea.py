"""The rule of MEME's SEA: the best site of every sequence, and a threshold held out.

Sequences are uint8 codes ``(n_sequences, length)``: 0 to 3 for A, C, G, T and 4 for N.
After Bailey & Grant 2021 (bioRxiv 2021.08.23.457422) and the behavior of SEA 5.5, whose
tables are reproduced but for single sequences whose score is within rounding of the
threshold. `helpers.motifs` is the public face of this module.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import lightmotif
import numpy as np

from helpers.enrichment import hypergeometric_log_tail
from helpers.motifs._files import Motif

__all__ = [
    "MIN_SEQUENCES",
    "best_scores",
    "choose_thresholds",
    "markov_background",
    "sea_hits",
    "split_sets",
]

_ORDER = 2  # of the Markov model of the background
_MODEL_PSEUDOCOUNT = 1.0  # spread over all words of a length
_MODEL_DIGITS = 4  # SEA passes its model through a text file
_MOTIF_PSEUDOCOUNT, _MOTIF_SITES = 0.1, 20  # sites: what MEME files of consensus say
_ROWS = 4096  # sequences scanned at a time: their scores stay in the cache
_LETTERS = np.frombuffer(b"ACGTN", dtype=np.uint8)
_DECIMALS = 5  # just above the rounding of float32, so that equal words tie
_HELD_OUT = 0.1  # share of the sequences that choose the thresholds
_MIN_HELD_OUT = 5
_SEED = 0  # SEA's default
_COMPLEMENT = np.array([3, 2, 1, 0, 4], dtype=np.uint8)
MIN_SEQUENCES = round(_MIN_HELD_OUT / _HELD_OUT)  # fewer leave none to hold out


def sea_hits(
    peaks: np.ndarray, background: Sequence[np.ndarray], motifs: Sequence[Motif]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Decide by SEA's rule which sequences hold which motif.

    Parameters
    ----------
    peaks : numpy.ndarray of uint8, shape (n_peaks, length)
        Primary sequences, at least `MIN_SEQUENCES`.
    background : sequence of numpy.ndarray of uint8
        Control sequences, at least as many and as long; their middle is scanned.
    motifs : sequence of Motif
        Motifs to scan.

    Returns
    -------
    peak_hits : numpy.ndarray of bool, shape (n_peaks - n_held_out, n_motifs)
        Hits in the peaks that were not held out.
    background_hits : numpy.ndarray of bool, shape (n_background - ..., n_motifs)
        Hits in the background.
    thresholds : numpy.ndarray, shape (n_motifs,)
        Scores in bits that make a hit, chosen on the sequences held out.
    """
    length = peaks.shape[1]
    gap = np.full(1, 4, dtype=np.uint8)
    whole = np.concatenate([part for codes in background for part in (codes, gap)])
    model = markov_background(whole[None])
    middle = np.stack([c[(len(c) - length) // 2 :][:length] for c in background])
    frequency = _word_counts(peaks, 1)
    composition = np.log2(frequency / frequency.sum())
    splits = split_sets([peaks, background])
    kept, held = [], []
    for codes, (counted, chosen) in zip((peaks, middle), splits, strict=True):
        scores = best_scores(codes, motifs, model, composition)
        kept.append(scores[counted])
        held.append(scores[chosen])
    thresholds = choose_thresholds(*held)
    peak_hits, background_hits = (
        (scores > 0) & (scores >= thresholds) for scores in kept
    )
    return peak_hits, background_hits, thresholds


def split_sets(
    sets: Sequence[Sequence[np.ndarray]],
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Hold out a tenth of each set, the same sequences as SEA.

    SEA sorts the sequences, each on the strand that sorts first, so that neither order
    nor strand of the input matters, and shuffles them with the Mersenne Twister.

    Parameters
    ----------
    sets : sequence of sequences of numpy.ndarray of uint8
        Primary and control sequences.

    Returns
    -------
    list of tuple of numpy.ndarray
        For each set the indices to count and those held out.
    """
    # The legacy seeding is that of the Mersenne Twister's authors, which SEA uses.
    random = np.random.RandomState(_SEED)
    splits = []
    for sequences in sets:
        n = len(sequences)
        keys = [min(c.tobytes(), _COMPLEMENT[c[::-1]].tobytes()) for c in sequences]
        order = sorted(range(n), key=keys.__getitem__)
        words = random.randint(0, 2**32, (n - 1, 2), dtype=np.uint32)
        uniform = words @ np.array([2.0**-32, 2.0**-64])
        swaps = (uniform * np.arange(n, 1, -1)).astype(int).tolist()
        for i, j in zip(range(n - 1, 0, -1), swaps, strict=True):
            order[i], order[j] = order[j], order[i]
        n_counted = n - int(_HELD_OUT * n)
        splits.append((np.array(order[:n_counted]), np.array(order[n_counted:])))
    return splits


def markov_background(codes: np.ndarray) -> list[np.ndarray]:
    """Estimate the Markov model of order 2 of sequences, both strands together.

    Parameters
    ----------
    codes : numpy.ndarray of uint8, shape (n_sequences, length)
        Control sequences.

    Returns
    -------
    list of numpy.ndarray, shapes (4,), (4, 4), (4, 4, 4)
        ``log2 P(base | bases before it)``; the last axis is the base.
    """
    model = []
    for k in range(1, _ORDER + 2):
        counts = _word_counts(codes, k) + _MODEL_PSEUDOCOUNT / 4**k
        frequency = counts / counts.sum()
        digits = _MODEL_DIGITS - 1 - np.floor(np.log10(frequency)).astype(int)
        rounded = np.rint(frequency * 10.0**digits) / 10.0**digits
        model.append(np.log2(rounded / rounded.sum(axis=-1, keepdims=True)))
    return model


def _word_counts(codes: np.ndarray, k: int) -> np.ndarray:
    """Count the words of k bases on both strands, shape (4,) * k."""
    word = np.zeros((len(codes), codes.shape[1] - k + 1), dtype=np.uint8)
    known = np.ones(word.shape, dtype=bool)
    for i in range(k):
        base = codes[:, i : i + word.shape[1]]
        known &= base < 4
        word = word * 4 + base
    counts = np.bincount(word[known], minlength=4**k).reshape((4,) * k)
    return counts + counts[(slice(None, None, -1),) * k].transpose()  # other strand


def best_scores(
    codes: np.ndarray,
    motifs: Sequence[Motif],
    model: Sequence[np.ndarray],
    composition: np.ndarray,
) -> np.ndarray:
    """Score the best site of every motif in every sequence, on either strand.

    Parameters
    ----------
    codes : numpy.ndarray of uint8, shape (n_sequences, length)
        Sequences.
    motifs : sequence of Motif
        Motifs to scan.
    model : sequence of numpy.ndarray
        Background, from `markov_background`.
    composition : numpy.ndarray, shape (4,)
        ``log2 P(base)`` of the primary sequences, for the motifs' pseudocounts.

    Returns
    -------
    numpy.ndarray of float32, shape (n_sequences, n_motifs)
        Log-odds in bits of the site against the background model, which sees the bases
        before the site; minus infinity where no word without N fits.
    """
    best = np.full((len(codes), len(motifs)), -np.inf, dtype=np.float32)
    # By width, as the background of a word depends on nothing else of the motif.
    order = sorted(range(len(motifs)), key=lambda i: motifs[i].width)
    matrices = [_scoring_matrices(motif, composition) for motif in motifs]
    for first in range(0, len(codes), _ROWS):
        rows = slice(first, first + _ROWS)
        # An N between sequences keeps words from crossing.
        joined = np.pad(codes[rows], ((0, 0), (0, 1)), constant_values=4)
        striped = lightmotif.stripe(_LETTERS[joined.ravel()].tobytes().decode())
        strands = _log_background(joined, model)
        width, background = 0, strands
        for column in order:
            motif = motifs[column]
            if motif.width > codes.shape[1]:
                continue
            if motif.width != width:
                width = motif.width
                background = [(b[width:] - b[:-width]).astype("f4") for b in strands]
            score = np.full(joined.shape, -np.inf, dtype=np.float32)
            words = score.ravel()[: score.size - width + 1]
            for matrix, behind in zip(matrices[column], background, strict=True):
                found = np.asarray(matrix.calculate(striped)).ravel()[: len(words)]
                np.maximum(words, found - behind, out=words)
            best[rows, column] = score.max(axis=1)
    return np.round(best, _DECIMALS)


def _scoring_matrices(
    motif: Motif, composition: np.ndarray
) -> list[lightmotif.ScoringMatrix]:
    """Return log2 probabilities of a motif, forward and reverse complement."""
    pseudo = _MOTIF_PSEUDOCOUNT * np.exp2(composition)
    counts = motif.probabilities * _MOTIF_SITES + pseudo
    scores = np.log2(counts / (_MOTIF_SITES + _MOTIF_PSEUDOCOUNT))
    unknown = {"N": [-math.inf] * motif.width}
    return [
        lightmotif.ScoringMatrix(
            {base: strand[:, i].tolist() for i, base in enumerate("ACGT")} | unknown
        )
        for strand in (scores, scores[::-1, ::-1])
    ]


def _log_background(codes: np.ndarray, model: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Sum the log2 probability of bases along either strand.

    Element i sums over the first i bases of the joined rows, so that the difference of
    two elements is the background of the word between them.
    """
    forward = _log2_probability(codes, model)
    reverse = _log2_probability(_COMPLEMENT[codes[:, ::-1]], model)[:, ::-1]
    return [np.append(0.0, np.cumsum(log2)) for log2 in (forward, reverse)]


def _log2_probability(codes: np.ndarray, model: Sequence[np.ndarray]) -> np.ndarray:
    """Return log2 P(base | up to two known bases before it); 0 for an N."""
    padded = np.pad(codes, ((0, 0), (_ORDER, 0)), constant_values=4).astype(np.int64)
    second, first, base = padded[:, :-2], padded[:, 1:-1], padded[:, 2:]
    # Tables with an entry for N make one lookup of it.
    table = np.zeros((5, 5, 5))
    table[4, 4, :4] = table[:4, 4, :4] = model[0]
    table[4, :4, :4] = model[1]
    table[:4, :4, :4] = model[2]
    return table[second, first, base]


def choose_thresholds(
    peak_scores: np.ndarray, background_scores: np.ndarray
) -> np.ndarray:
    """Choose the score at which Fisher's exact test tells two sets apart best.

    Parameters
    ----------
    peak_scores : numpy.ndarray, shape (n_peaks, n_motifs)
        Best score of every held-out peak.
    background_scores : numpy.ndarray, shape (n_background, n_motifs)
        That of held-out background sequences.

    Returns
    -------
    numpy.ndarray, shape (n_motifs,)
        Thresholds; 0, the lowest allowed, where no score enriches the peaks.
    """
    n_peaks, n_background = len(peak_scores), len(background_scores)
    is_peak = np.repeat([True, False], [n_peaks, n_background])
    chosen = np.zeros(peak_scores.shape[1])
    for column, (peaks, others) in enumerate(
        zip(peak_scores.T, background_scores.T, strict=True)
    ):
        score = np.concatenate([peaks, others])
        order = np.lexsort((is_peak, -score))  # ties: background first
        order = order[score[order] > 0]
        from_peak = is_peak[order]
        # Only where a run of peaks ends can the p-value be smallest.
        ends = np.flatnonzero(from_peak & ~np.append(from_peak[1:], False))
        if len(ends) == 0:
            continue
        true = np.cumsum(from_peak)[ends]
        log_p = hypergeometric_log_tail(true, n_peaks + n_background, ends + 1, n_peaks)
        if log_p.min() < 0:
            chosen[column] = score[order[ends[log_p.argmin()]]]
    return chosen
