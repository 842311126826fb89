"""Motif activity of a biosample: motif enrichment in its peaks, after MEME's SEA.

The tables are those of SEA (Bailey & Grant 2021, bioRxiv 2021.08.23.457422), so its own
output and ours are read alike. `helpers.motifs` is the public face of this module.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from helpers.enrichment import benjamini_hochberg, hypergeometric_log_tail
from helpers.motifs._files import Motif
from helpers.motifs._scan import score_threshold

__all__ = ["motif_activity", "read_sea", "sea_table"]


def sea_table(
    peak_hits: np.ndarray,
    background_hits: np.ndarray,
    motifs: Sequence[Motif],
    *,
    p_value: float = 1e-4,
    thresholds: np.ndarray | None = None,
) -> pd.DataFrame:
    """Test motifs in a sample's peaks against background peaks, as MEME's SEA does.

    The test, the ratio and the E-value are SEA's: one-sided Fisher's exact test on the
    numbers of sequences with a hit. What a hit is was decided before: SEA chooses score
    thresholds on sequences it holds out (`peak_motif_activity` does so too); that of a
    p-value per word needs no held-out sequences. Q-values are Benjamini-Hochberg,
    without SEA's estimate of the share of nulls, which multiplies all of them.

    Parameters
    ----------
    peak_hits : numpy.ndarray, shape (n_peaks, n_motifs)
        Hits in the sample's peaks, from `count_hits`.
    background_hits : numpy.ndarray, shape (n_background, n_motifs)
        Hits in the background peaks.
    motifs : sequence of Motif
        The motifs of the columns.
    p_value : float, default=1e-4
        The p-value the hits were counted at, to report the threshold.
    thresholds : numpy.ndarray, shape (n_motifs,), or None
        The thresholds to report where the hits were counted at others.

    Returns
    -------
    pandas.DataFrame
        SEA's 17 columns from RANK to LOG_QVALUE, best first; logarithms are natural.
        Write it tab-separated, and `read_sea` reads it.

    Raises
    ------
    ValueError
        If the shapes do not agree or a set is empty.
    """
    for label, hits in (("peak_hits", peak_hits), ("background_hits", background_hits)):
        if hits.ndim != 2 or hits.shape[1] != len(motifs) or len(hits) == 0:
            raise ValueError(
                f"{label} must have shape (n >= 1, {len(motifs)}); got {hits.shape}"
            )
    if thresholds is None:
        thresholds = [score_threshold(motif, p_value) for motif in motifs]
    n_peaks, n_background = len(peak_hits), len(background_hits)
    true = (peak_hits > 0).sum(axis=0)
    false = (background_hits > 0).sum(axis=0)
    log_p = hypergeometric_log_tail(true, n_peaks + n_background, true + false, n_peaks)
    log_e = log_p + math.log(len(motifs))
    q_value = benjamini_hochberg(log_p)
    ratio = ((true + 1) / (n_peaks + 1)) / ((false + 1) / (n_background + 1))
    table = pd.DataFrame(
        {
            "DB": "motifs",
            "ID": [motif.id for motif in motifs],
            "ALT_ID": [motif.name for motif in motifs],
            "CONSENSUS": [motif.consensus for motif in motifs],
            "TP": true,
            "TP%": 100 * true / n_peaks,
            "FP": false,
            "FP%": 100 * false / n_background,
            "ENR_RATIO": ratio,
            "SCORE_THR": thresholds,
            "PVALUE": np.exp(log_p),
            "LOG_PVALUE": log_p,
            "EVALUE": np.exp(log_e),
            "LOG_EVALUE": log_e,
            "QVALUE": q_value,
            "LOG_QVALUE": np.log(np.maximum(q_value, np.finfo(float).tiny)),
        }
    ).sort_values(["LOG_PVALUE", "ID"], ignore_index=True)
    table.insert(0, "RANK", np.arange(1, len(table) + 1))
    return table


def read_sea(path: str | Path) -> pd.Series:
    """Read minus the log E-value of every motif from a table of MEME's SEA.

    Parameters
    ----------
    path : str or Path
        ``sea.tsv`` of a run that reports all motifs, or a written `sea_table`.

    Returns
    -------
    pandas.Series
        Minus the natural logarithm of the E-value, indexed by motif identifier in byte
        order, the order in which EpiBERT takes its motif activity.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If the columns are missing, there is no motif, a value is not a number, or a
        motif occurs twice.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"SEA table not found: {path}")
    try:
        table = pd.read_csv(path, sep="\t", comment="#", dtype=str)
        return _minus_log_e(table)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def motif_activity(sea: pd.DataFrame | pd.Series) -> pd.Series:
    """Scale a sample's motif enrichment to [0, 1], the model's motif input.

    Parameters
    ----------
    sea : pandas.DataFrame or pandas.Series
        A `sea_table`, or what `read_sea` returns.

    Returns
    -------
    pandas.Series
        Minus the log E-value, min-max scaled within the sample, indexed by motif
        identifier in byte order.

    Raises
    ------
    ValueError
        If values are not finite, or all equal (no activity to scale).
    """
    values = _minus_log_e(sea) if isinstance(sea, pd.DataFrame) else sea.sort_index()
    low, high = values.min(), values.max()
    if not np.isfinite(values).all() or high <= low:
        raise ValueError(
            f"motif enrichment must be finite and vary between motifs; got {low} to "
            f"{high} over {len(values)} motifs"
        )
    return ((values - low) / (high - low)).rename("motif_activity")


def _minus_log_e(table: pd.DataFrame) -> pd.Series:
    if not {"ID", "LOG_EVALUE"} <= set(table.columns) or len(table) == 0:
        raise ValueError(
            "expected rows with columns ID and LOG_EVALUE; found "
            f"{len(table)} rows, columns {list(table.columns)}"
        )
    values = pd.to_numeric(table["LOG_EVALUE"], errors="coerce").to_numpy(dtype=float)
    identifiers = table["ID"].to_numpy(dtype=object)
    if np.isnan(values).any():
        wrong = identifiers[np.isnan(values)]
        raise ValueError(f"LOG_EVALUE is not a number for motif {wrong[0]!r}")
    series = pd.Series(-values, index=identifiers, name="minus_log_evalue").sort_index()
    if series.index.has_duplicates:
        twice = series.index[series.index.duplicated()][0]
        raise ValueError(f"motif {twice!r} occurs twice")
    return series
