"""HOMER's known-motif test, step by step, and `homer2` itself where it is installed.

The rules are those that HOMER 4 was observed to follow (Heinz et al. 2010, Mol. Cell
38:576): targets against a GC-matched background whose weights are tuned until short
words are as frequent as in the targets, one count per sequence, a binomial or
hypergeometric tail. What differs: the background is drawn with a seed and q-values are
Benjamini and Hochberg's. `helpers.motifs` is the public face of this module, and
`helpers.motifs.enrichment` the test to use: it does without HOMER's shortcuts.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from helpers.enrichment import (
    benjamini_hochberg,
    binomial_log_tail,
    hypergeometric_log_tail,
)
from helpers.motifs._files import Motif
from helpers.motifs._scan import count_hits, gc_content, kmer_frequencies

__all__ = [
    "GC_EDGES",
    "HomerWeights",
    "homer_background",
    "homer_enrichment",
    "homer_weights",
    "run_homer2",
]

# Bins of GC content; a sequence on an edge belongs to the bin above it.
GC_EDGES = (0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8)
_MIN_TOTAL = 50_000  # sequences, targets and background together
_MAX_K = 3
_MAX_ROUNDS = 160
_SMALLEST_WEIGHT = 1e-3
_BASES = np.frombuffer(b"ACGTN", dtype=np.uint8)

Sequences = Sequence[str] | np.ndarray
Method = Literal["binomial", "hypergeometric"]


class HomerWeights(NamedTuple):
    """Weights of sequences, and how they were found.

    Attributes
    ----------
    targets : numpy.ndarray, shape (n_targets,)
        1, or 0 where no background sequence has a similar GC content.
    background : numpy.ndarray, shape (n_background,)
        0 where no target has a similar GC content.
    n_rounds : int
        Rounds of autonormalization, the last one included.
    """

    targets: np.ndarray
    background: np.ndarray
    n_rounds: int


def homer_background(
    target_gc: np.ndarray,
    pool_gc: np.ndarray,
    *,
    n_total: int = _MIN_TOTAL,
    random_state: int | np.random.Generator,
) -> np.ndarray:
    """Draw background sequences with the GC content of the targets.

    Parameters
    ----------
    target_gc, pool_gc : numpy.ndarray
        GC content of targets and of candidates, from `gc_content`; candidates should
        not overlap targets.
    n_total : int, default=50,000
        Sequences wanted, targets included; at least twice the targets are taken.
    random_state : int or numpy.random.Generator
        Seed or generator; HOMER's own draw has none.

    Returns
    -------
    numpy.ndarray of int
        Candidates drawn, sorted. A GC bin that runs short is made up for by the next
        lower one.

    Raises
    ------
    ValueError
        If no candidate lies in a GC bin of the targets.
    """
    rng = np.random.default_rng(random_state)
    target_bin, pool_bin = _gc_bin(target_gc), _gc_bin(pool_gc)
    n_total = max(n_total, 2 * len(target_bin))
    bins = np.intersect1d(target_bin, pool_bin)
    bins = bins[bins >= 0][::-1]
    if len(bins) == 0:
        raise ValueError(
            f"none of {len(pool_bin)} background sequences lies in a GC bin of the "
            f"{len(target_bin)} targets"
        )
    in_bin = {b: (target_bin == b).sum() for b in bins}
    n_targets, wanted, drawn = sum(in_bin.values()), n_total - len(target_bin), []
    missing = 0
    for b in bins:
        candidates = np.flatnonzero(pool_bin == b)
        n = int(in_bin[b] / n_targets * wanted + 0.49999999) + missing
        missing = max(n - len(candidates), 0)
        drawn.append(rng.choice(candidates, n - missing, replace=False))
    return np.sort(np.concatenate(drawn))


def homer_weights(
    targets: Sequences, background: Sequences, *, max_k: int = _MAX_K
) -> HomerWeights:
    """Weight background sequences as HOMER does: by GC content, then by short words.

    Parameters
    ----------
    targets, background : sequence of str, or numpy.ndarray of uint8
        Sequences, as for `count_hits`.
    max_k : int, default=3
        Words of 1 to so many bases are balanced; with 0 weights follow GC alone.

    Returns
    -------
    HomerWeights

    Raises
    ------
    ValueError
        If no GC bin holds both targets and background.

    Notes
    -----
    In a GC bin with t of T targets and b of B background sequences the weight is
    ``(t / T) * B / b``, to five decimals. A round of autonormalization goes through
    word lengths in turn; a weight is multiplied by the mean ratio (targets to
    background) of the words of its sequence, and goes only ``1 / max(w, 1 / w)**2`` of
    the way where that takes it further from 1. Rounds end after 160, or when the mean
    squared deviation of the ratios from 1 no longer falls; one more follows. The last
    word of a sequence is not counted.
    """
    target_bin, bin_of = _gc_bin(gc_content(targets)), _gc_bin(gc_content(background))
    shared = np.intersect1d(target_bin, bin_of)
    shared = shared[shared >= 0]
    if len(shared) == 0:
        raise ValueError(
            f"no GC bin holds both targets ({len(target_bin)}) and background "
            f"({len(bin_of)} sequences)"
        )
    is_target = np.isin(target_bin, shared)
    is_background = np.isin(bin_of, shared)
    n_bins = len(GC_EDGES) + 1
    t = np.bincount(target_bin[is_target], minlength=n_bins)
    b = np.bincount(bin_of[is_background], minlength=n_bins)
    with np.errstate(divide="ignore", invalid="ignore"):
        of_bin = np.round(t / t.sum() * b.sum() / b, 5)
    weight = of_bin[bin_of[is_background]]
    weight, n_rounds = _autonormalize(
        [_words(targets, is_target, k) for k in range(1, max_k + 1)],
        [_words(background, is_background, k) for k in range(1, max_k + 1)],
        weight,
    )
    weights = np.zeros(len(is_background))
    weights[is_background] = weight
    return HomerWeights(is_target.astype(np.float64), weights, n_rounds)


def homer_enrichment(
    targets: Sequences,
    background: Sequences,
    motifs: Sequence[Motif],
    *,
    method: Method = "binomial",
    max_k: int = _MAX_K,
) -> pd.DataFrame:
    """Do HOMER's known-motif test, with HOMER's numbers.

    Parameters
    ----------
    targets, background : sequence of str, or numpy.ndarray of uint8
        Sequences, as for `count_hits`.
    motifs : sequence of Motif
        Motifs with thresholds of their own (natural log-odds), as HOMER's files have.
    method : {"binomial", "hypergeometric"}, default="binomial"
        HOMER's ``-stat``.
    max_k : int, default=3
        HOMER's ``-nlen``: words balanced by `homer_weights`.

    Returns
    -------
    pandas.DataFrame
        One row per motif, as given: motif (identifier), name, family, target_hits,
        n_target, background_hits, n_background (sums of weights), fold, log_p
        (natural), p_value, q_value (Benjamini-Hochberg). As in HOMER the sums are
        truncated to integers before the test. ``attrs`` has n_rounds.

    Raises
    ------
    ValueError
        If a motif has no threshold, ``method`` is another, or no GC bin holds both.
    """
    if method not in ("binomial", "hypergeometric"):
        raise ValueError(f"method must be binomial or hypergeometric; got {method!r}")
    weights = homer_weights(targets, background, max_k=max_k)
    counts = []
    for sequences, weight in (
        (targets, weights.targets),
        (background, weights.background),
    ):
        occurs = count_hits(sequences, motifs, p_value=None) > 0
        counts += [weight @ occurs, weight.sum()]
    table = _test(motifs, *counts, method=method)
    table.attrs["n_rounds"] = weights.n_rounds
    return table


def run_homer2(
    targets: Sequences,
    background: Sequences,
    motifs: Sequence[Motif],
    *,
    method: Method = "binomial",
    max_k: int = _MAX_K,
) -> pd.DataFrame:
    """Run ``homer2 known`` on sequences, with the GC weights of `homer_weights`.

    Parameters
    ----------
    targets, background, motifs, method, max_k
        As for `homer_enrichment`. HOMER calls a motif that begins with ``SeqBias``
        something else, and so does this function.

    Returns
    -------
    pandas.DataFrame
        One row per motif, as given: motif, name, family, target_hits, n_target,
        background_hits, n_background (truncated by HOMER), fold, log_p (three decimals,
        HOMER's), p_value, q_value (Benjamini-Hochberg).

    Raises
    ------
    FileNotFoundError
        If `homer2` is not on PATH.
    ValueError
        If a motif has no threshold, or HOMER does not report it.
    RuntimeError
        If `homer2` fails; the message has its own.
    """
    program = shutil.which("homer2")
    if program is None:
        raise FileNotFoundError(
            "the program homer2 of HOMER is not on PATH; homer_enrichment does the "
            "same test without it"
        )
    weights = homer_weights(targets, background, max_k=0)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _write_inputs(folder, (targets, background), weights[:2], motifs)
        command = [program, "known", "-s", "seqs.tsv", "-g", "groups.tsv"]
        command += ["-m", "motifs", "-o", "known.tsv", "-nlen", str(max_k)]
        stat = {"binomial": "binomial", "hypergeometric": "hypergeo"}[method]
        done = subprocess.run(
            [*command, "-stat", stat],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        output = folder / "known.tsv"
        if done.returncode or not output.is_file():
            raise RuntimeError(
                f"{program} known ended with status {done.returncode}: "
                f"{done.stderr.strip()[-2000:] or 'no message'}"
            )
        found = pd.read_csv(output, sep="\t", index_col=0)
    missing = [m.id for m in motifs if m.id not in found.index]
    if missing:
        raise ValueError(f"{program}: no result for motifs {missing[:3]}")
    found = found.loc[[m.id for m in motifs]]
    totals = [int(column.split("total=")[1][:-1]) for column in found.columns[[4, 6]]]
    counts = (found.iloc[:, 4], totals[0], found.iloc[:, 6], totals[1])
    table = _columns(motifs, *(np.asarray(x, dtype=np.float64) for x in counts))
    return _with_q_values(table, found.iloc[:, 2].to_numpy(dtype=np.float64))


def _gc_bin(gc: np.ndarray) -> np.ndarray:
    """Bin of GC content, -1 where it is missing."""
    gc = np.asarray(gc, dtype=np.float64)
    return np.where(np.isnan(gc), -1, np.searchsorted(GC_EDGES, gc, side="right"))


def _words(sequences: Sequences, chosen: np.ndarray, k: int) -> np.ndarray:
    """Share of each word in the chosen sequences, without their last base."""
    if isinstance(sequences, np.ndarray):
        return kmer_frequencies(sequences[chosen, :-1], k)
    return kmer_frequencies([sequences[i][:-1] for i in np.flatnonzero(chosen)], k)


def _autonormalize(
    in_targets: list[np.ndarray], in_background: list[np.ndarray], weight: np.ndarray
) -> tuple[np.ndarray, int]:
    """Tune weights until words are as frequent as in the targets."""

    def one_round(weight: np.ndarray) -> tuple[np.ndarray, float]:
        error = 0.0
        for wanted, words in zip(in_targets, in_background, strict=True):
            target, own = wanted.sum(axis=0), weight @ words
            target_share = np.maximum(target, 0.5 / target.sum()) / target.sum()
            ratio = target_share / (np.maximum(own, 0.5 / own.sum()) / own.sum())
            error += float(((ratio - 1) ** 2).mean())
            moved = weight * (words @ ratio)
            moved = np.clip(moved, _SMALLEST_WEIGHT, 1 / _SMALLEST_WEIGHT)
            away = ((moved > weight) & (moved > 1)) | ((moved < weight) & (moved < 1))
            penalty = np.where(away, np.maximum(moved, 1 / moved) ** 2, 1.0)
            weight = weight + (moved - weight) / penalty
        return weight, error

    if not in_targets:
        return weight, 0
    last_error, n_rounds = np.inf, 0
    while n_rounds < _MAX_ROUNDS:
        weight, error = one_round(weight)
        n_rounds += 1
        if error >= last_error:
            break
        last_error = error
    return one_round(weight)[0], n_rounds + 1


def _test(
    motifs: Sequence[Motif],
    target_hits: np.ndarray,
    n_target: float,
    background_hits: np.ndarray,
    n_background: float,
    *,
    method: Method,
) -> pd.DataFrame:
    """Truncate the weighted counts as HOMER does, and test them."""
    k, hits = np.trunc(target_hits), np.trunc(background_hits)
    n, size = int(n_target), int(n_background)
    if method == "binomial":
        rate = np.clip(hits / size, 1 / size, (size - 1) / size)
        log_p = binomial_log_tail(k, n, rate)
    else:
        log_p = hypergeometric_log_tail(k, n + size, k + hits, n)
    counts = (target_hits, n_target, background_hits, n_background)
    return _with_q_values(_columns(motifs, *counts), log_p)


def _columns(
    motifs: Sequence[Motif],
    target_hits: np.ndarray,
    n_target: np.ndarray | float,
    background_hits: np.ndarray,
    n_background: np.ndarray | float,
) -> pd.DataFrame:
    table = pd.DataFrame(
        {
            "motif": [motif.id for motif in motifs],
            "name": [motif.name for motif in motifs],
            "family": [motif.family or motif.name for motif in motifs],
            "target_hits": target_hits,
            "n_target": n_target,
            "background_hits": background_hits,
            "n_background": n_background,
        }
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = table["background_hits"] / table["n_background"]
        table["fold"] = table["target_hits"] / table["n_target"] / rate
    return table


def _with_q_values(table: pd.DataFrame, log_p: np.ndarray) -> pd.DataFrame:
    q_values = benjamini_hochberg(log_p)
    return table.assign(log_p=log_p, p_value=np.exp(log_p), q_value=q_values)


def _write_inputs(
    folder: Path,
    sequences: tuple[Sequences, Sequences],
    weights: tuple[np.ndarray, np.ndarray],
    motifs: Sequence[Motif],
) -> None:
    """Write sequences, groups with weights, and motifs, as HOMER reads them."""
    without = [motif.id for motif in motifs if motif.threshold is None]
    if without:
        raise ValueError(f"motifs {without[:3]} have no threshold of their own")
    with (
        (folder / "seqs.tsv").open("w", encoding="ascii") as texts,
        (folder / "groups.tsv").open("w", encoding="ascii") as groups,
    ):
        for group, rows, own in zip((1, 0), sequences, weights, strict=True):
            for i in np.flatnonzero(own > 0):
                row = rows[i]
                text = row if isinstance(row, str) else _BASES[row].tobytes().decode()
                texts.write(f"{group}_{i}\t{text}\n")
                groups.write(f"{group}_{i}\t{group}\t{own[i]:.5f}\n")
    with (folder / "motifs").open("w", encoding="ascii") as file:
        for motif in motifs:
            file.write(f">{motif.consensus}\t{motif.id}\t{motif.threshold:.8f}\t0\t0\n")
            for row in motif.probabilities:
                file.write("\t".join(f"{p:.8f}" for p in row) + "\n")
