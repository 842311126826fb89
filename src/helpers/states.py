"""Chromatin states: where features fire against a ChromHMM segmentation.

`overlap_enrichment` gives ChromHMM's own folds (Ernst & Kellis 2017, Nat. Protoc.
12:2478), `unit_enrichment` the test: regions as units, hypergeometric tails, false
discovery rate over all pairs, and a circular-shift z-score because neighboring units
share a state. Membership is ``(n_features, n_regions)``; features are done at once.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from scipy import fft, sparse

from helpers._text_files import read_text
from helpers.enrichment import (
    benjamini_hochberg,
    check_membership,
    check_regions,
    genome_keys,
    hypergeometric_log_tail,
    ranges,
)

__all__ = [
    "ROADMAP_15",
    "ROADMAP_18",
    "UnsegmentedRegionWarning",
    "overlap_enrichment",
    "read_segmentation",
    "unit_enrichment",
]

ROADMAP_15: dict[str, tuple[int, int, int]] = {
    "1_TssA": (255, 0, 0),
    "2_TssAFlnk": (255, 69, 0),
    "3_TxFlnk": (50, 205, 50),
    "4_Tx": (0, 128, 0),
    "5_TxWk": (0, 100, 0),
    "6_EnhG": (194, 225, 5),
    "7_Enh": (255, 255, 0),
    "8_ZNF/Rpts": (102, 205, 170),
    "9_Het": (138, 145, 208),
    "10_TssBiv": (205, 92, 92),
    "11_BivFlnk": (233, 150, 122),
    "12_EnhBiv": (189, 183, 107),
    "13_ReprPC": (128, 128, 128),
    "14_ReprPCWk": (192, 192, 192),
    "15_Quies": (255, 255, 255),
}
"""Names and colors (RGB) of Roadmap's 15 states from five core marks."""

ROADMAP_18: dict[str, tuple[int, int, int]] = {
    "1_TssA": (255, 0, 0),
    "2_TssFlnk": (255, 69, 0),
    "3_TssFlnkU": (255, 69, 0),
    "4_TssFlnkD": (255, 69, 0),
    "5_Tx": (0, 128, 0),
    "6_TxWk": (0, 100, 0),
    "7_EnhG1": (194, 225, 5),
    "8_EnhG2": (194, 225, 5),
    "9_EnhA1": (255, 195, 77),
    "10_EnhA2": (255, 195, 77),
    "11_EnhWk": (255, 255, 0),
    "12_ZNF/Rpts": (102, 205, 170),
    "13_Het": (138, 145, 208),
    "14_TssBiv": (205, 92, 92),
    "15_EnhBiv": (189, 183, 107),
    "16_ReprPC": (128, 128, 128),
    "17_ReprPCWk": (192, 192, 192),
    "18_Quies": (255, 255, 255),
}
"""Names and colors (RGB) of the 18 states that add H3K27ac."""

_MAX_LOG10_P = 300.0  # ChromHMM's cap


class UnsegmentedRegionWarning(UserWarning):
    """Some regions lie where the segmentation has no state."""


def read_segmentation(path: str | Path) -> pd.DataFrame:
    """Read a ChromHMM segmentation (BED with the state as name), gzipped or not.

    Parameters
    ----------
    path : str or Path
        BED file of at least four columns; ``track``, ``browser`` and ``#`` lines are
        skipped.

    Returns
    -------
    pandas.DataFrame
        Columns chrom, start, end (0-based, half-open) and state, an ordered
        categorical (by the number in the state's name), sorted by position. Colors the
        file carries are in ``attrs["colors"]`` as ``{state: (red, green, blue)}``.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If a line has fewer than four columns or positions that are no interval, or
        two segments overlap; the message names file and line.
    """
    path = Path(path)
    text = read_text(path, "segmentation")
    numbered = [
        (number, line)
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip() and not line.startswith(("track", "browser", "#"))
    ]
    for number, line in numbered:
        if line.count("\t") < 3:
            raise ValueError(
                f"{path}, line {number}: expected at least 4 tab-separated columns; "
                f"found {line[:60]!r}"
            )
    if not numbered:
        raise ValueError(f"{path}: no segment found")
    rows = [line.split("\t") for _, line in numbered]
    table = pd.DataFrame(rows, dtype=str)
    positions = table[[1, 2]].apply(pd.to_numeric, errors="coerce")
    start, end = positions[1].to_numpy(), positions[2].to_numpy()
    wrong = ~((start >= 0) & (end > start) & (start % 1 == 0) & (end % 1 == 0))
    wrong |= ~(end < 2**53)  # beyond, a number of floating point is no position
    if wrong.any():
        number, line = numbered[int(wrong.argmax())]
        raise ValueError(
            f"{path}, line {number}: expected integers 0 <= start < end; "
            f"found {line[:60]!r}"
        )
    states = sorted(set(table[3]), key=_state_order)
    segments = pd.DataFrame(
        {
            "chrom": table[0].to_numpy(dtype=object),
            "start": start.astype(np.int64),
            "end": end.astype(np.int64),
            "state": pd.Categorical(table[3], categories=states, ordered=True),
            "line": [number for number, _ in numbered],
        }
    ).sort_values(["chrom", "start", "end"], kind="stable", ignore_index=True)
    _check_disjoint(segments, f"{path}, line ")
    segments = segments.drop(columns="line")
    segments.attrs["colors"] = _file_colors(table)
    return segments


def _state_order(state: str) -> tuple[float, str]:
    number = re.match(r"[A-Za-z]?(\d+)", state)
    return (float(number[1]) if number else np.inf, state)


def _file_colors(table: pd.DataFrame) -> dict[str, tuple[int, ...]]:
    """Colors of BED9, or of any later column that looks like one."""
    for column in range(4, table.shape[1]):
        values = table[column]
        if values.str.fullmatch(r"[0-9]{1,3},[0-9]{1,3},[0-9]{1,3}").all():
            first = table[[3, column]].drop_duplicates(3)
            pairs = zip(first[3], first[column], strict=True)
            return {s: tuple(int(x) for x in color.split(",")) for s, color in pairs}
    return {}


def _check_disjoint(segments: pd.DataFrame, where: str) -> None:
    chrom, start = segments["chrom"].to_numpy(), segments["start"].to_numpy()
    overlap = (chrom[1:] == chrom[:-1]) & (start[1:] < segments["end"].to_numpy()[:-1])
    if overlap.any():
        row = int(overlap.argmax())
        first, second = segments.iloc[row], segments.iloc[row + 1]
        raise ValueError(
            f"{where}{second['line']}: segment {second['chrom']}:{second['start']}-"
            f"{second['end']} ({second['state']}) overlaps that of line "
            f"{first['line']} ({first['state']}); a base has one state "
            f"({int(overlap.sum())} overlaps)"
        )


def overlap_enrichment(
    regions: pd.DataFrame,
    membership: np.ndarray,
    segmentation: pd.DataFrame,
    *,
    mode: Literal["bases", "multicount", "center"] = "bases",
) -> pd.DataFrame:
    """Fold enrichment of chromatin states in the regions of every feature.

    The numbers of ChromHMM's OverlapEnrichment. Bases outside the segmentation count
    nowhere, neither in a region nor in the genome.

    Parameters
    ----------
    regions : pandas.DataFrame
        Columns chrom, start, end (0-based, half-open), one row per region.
    membership : numpy.ndarray of bool, shape (n_features, n_regions)
        Which feature fires in which region.
    segmentation : pandas.DataFrame
        From `read_segmentation`.
    mode : {"bases", "multicount", "center"}, default="bases"
        ``"bases"``: regions of a feature are merged, each base counts once (ChromHMM's
        default). ``"multicount"``: not merged. ``"center"``: one base per region,
        ``(start + end - 1) // 2``, equal centers once.

    Returns
    -------
    pandas.DataFrame
        One row per feature and state: feature (row of membership), state,
        overlap_bases, fold, and in mode ``"center"`` neg_log10_p, ChromHMM's
        hypergeometric tail over bases, capped at 300. It has no correction for multiple
        tests and takes neighboring bases as independent; for inference use
        `unit_enrichment`. ``attrs`` has genome_fraction, the share of each state, and
        segmented_bases.

    Warns
    -----
    UnsegmentedRegionWarning
        If regions have no base with a state.
    EmptyFeatureWarning
        If features have no region; their folds are missing.

    Raises
    ------
    ValueError
        If regions, membership or segmentation are not as described.

    Notes
    -----
    ``fold = (bases of r in s / bases of r in any state) / (bases of s / all bases)``.
    """
    if mode not in ("bases", "multicount", "center"):
        raise ValueError(f"mode must be bases, multicount or center; got {mode!r}")
    regions = check_regions(regions)
    membership = check_membership(membership, len(regions))
    segments, segment_codes, states = _sorted_segments(segmentation)
    start, end = genome_keys(regions, segmentation["chrom"])
    if mode == "center":
        start = (start + end - 1) // 2
        end = start + 1
    members = sparse.csr_array(membership, dtype=np.float64)
    if mode != "multicount":
        covers, start, end = _elementary(start, end)
        members = ((members @ covers) > 0).astype(np.float64)
    bases = _bases_per_state(start, end, segments, segment_codes, len(states))
    if mode == "multicount":
        _warn_unsegmented(bases.any(axis=1))
    else:
        _warn_unsegmented((covers @ bases).any(axis=1))
    overlap = members @ bases  # (n_features, n_states)
    genome = np.bincount(
        segment_codes, weights=segments[1] - segments[0], minlength=len(states)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        covered = overlap.sum(axis=1, keepdims=True)
        fold = (overlap / covered) / (genome / genome.sum())
    table = _long_table(len(membership), states)
    table["overlap_bases"] = overlap.astype(np.int64).ravel()
    table["fold"] = fold.ravel()
    if mode == "center":
        log_tail = hypergeometric_log_tail(overlap, genome.sum(), genome, covered)
        table["neg_log10_p"] = np.minimum(-log_tail / np.log(10), _MAX_LOG10_P).ravel()
    table.attrs["genome_fraction"] = dict(
        zip(states, (genome / genome.sum()).tolist(), strict=True)
    )
    table.attrs["segmented_bases"] = int(genome.sum())
    return table


def unit_enrichment(
    regions: pd.DataFrame, membership: np.ndarray, segmentation: pd.DataFrame
) -> pd.DataFrame:
    """Test the states at the centers of a feature's regions against all regions.

    The unit is a region and the universe all regions given (those the model was
    shown), so the genome outside them does not make p-values small. Units whose
    center has no state are left out on both sides.

    Parameters
    ----------
    regions : pandas.DataFrame
        Columns chrom, start, end (0-based, half-open); they should not overlap, since
        each counts as one independent event.
    membership : numpy.ndarray of bool, shape (n_features, n_regions)
        Which feature fires in which region.
    segmentation : pandas.DataFrame
        From `read_segmentation`.

    Returns
    -------
    pandas.DataFrame
        One row per feature and state: feature, state, n_units, state_units (units of
        the feature in the state), background_rate (share of all units in the state),
        fold, log_p (natural, one-sided hypergeometric), p_value, q_value
        (Benjamini-Hochberg over all pairs of this table) and shift_z. ``attrs`` has
        n_units and n_unsegmented.

    Warns
    -----
    UnsegmentedRegionWarning
        If centers lie where the segmentation has no state.
    EmptyFeatureWarning
        If features have no unit; their p-values are missing.

    Raises
    ------
    ValueError
        If regions, membership or segmentation are not as described, or no unit has a
        state.

    Notes
    -----
    shift_z compares the count with all circular shifts of the states along the units in
    genome order, which keeps the clustering of both. Mean and variance over all shifts
    are exact, not sampled: by Parseval's theorem the variance of the circular
    correlation is the sum over non-zero frequencies of the product of power spectra.
    """
    regions = check_regions(regions)
    segments, segment_codes, states = _sorted_segments(segmentation)
    start, end = genome_keys(regions, segmentation["chrom"])
    center = (start + end - 1) // 2
    segment = np.searchsorted(segments[0], center, side="right") - 1
    has_state = (segment >= 0) & (center < segments[1][segment])
    _warn_unsegmented(has_state)
    if not has_state.any():
        raise ValueError("no region center has a state; check assembly and chromosomes")
    in_order = np.argsort(center, kind="stable")
    in_order = in_order[has_state[in_order]]
    membership = check_membership(membership, len(regions))[:, in_order]
    state_of_unit = segment_codes[segment[in_order]]
    is_state = state_of_unit[:, None] == np.arange(len(states))  # (n_units, n_states)

    n_all = len(in_order)
    n_state = is_state.sum(axis=0)
    n_units = membership.sum(axis=1)
    count = np.rint(membership.astype(np.float32) @ is_state.astype(np.float32))
    log_p = hypergeometric_log_tail(count, n_all, n_state, n_units[:, None])
    log_p[n_units == 0] = np.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = n_state / n_all
        fold = count / n_units[:, None] / rate
        shift_z = (count - n_units[:, None] * rate) / _shift_sd(membership, is_state)
    table = _long_table(len(membership), states)
    table["n_units"] = np.repeat(n_units, len(states))
    table["state_units"] = count.astype(np.int64).ravel()
    table["background_rate"] = np.tile(rate, len(membership))
    table["fold"] = fold.ravel()
    table["log_p"] = log_p.ravel()
    table["p_value"] = np.exp(table["log_p"])
    table["q_value"] = benjamini_hochberg(table["log_p"].to_numpy())
    table["shift_z"] = shift_z.ravel()
    table.attrs["n_units"] = n_all
    table.attrs["n_unsegmented"] = int(len(regions) - n_all)
    return table


def _shift_sd(membership: np.ndarray, is_state: np.ndarray) -> np.ndarray:
    """Return the standard deviation of the count over all circular shifts."""
    n_units = membership.shape[1]
    state_spectrum = fft.rfft(is_state.T.astype(np.float64))
    state_power = np.abs(state_spectrum) ** 2  # (n_states, n_frequencies)
    twice = np.full(state_power.shape[1], 2.0)  # negative frequencies mirror positive
    twice[0] = 0
    if n_units % 2 == 0:
        twice[-1] = 1
    weighted = (state_power * twice).T / n_units**2
    variance = np.empty((len(membership), is_state.shape[1]))
    for first in range(0, len(membership), 256):
        block = slice(first, first + 256)
        # Single precision: three times as fast where the length has a large factor.
        spectrum = fft.rfft(membership[block].astype(np.float32))
        power = spectrum.real**2 + spectrum.imag**2
        variance[block] = power @ weighted
    # Rounding leaves about 1e-10 where every shift gives the same count; one region in
    # one unit of a state already has 1 / n_units.
    return np.sqrt(np.where(variance > 1e-8, variance, np.nan))


def _long_table(n_features: int, states: list[str]) -> pd.DataFrame:
    codes = np.tile(np.arange(len(states)), n_features)
    return pd.DataFrame(
        {
            "feature": np.repeat(np.arange(n_features), len(states)),
            "state": pd.Categorical.from_codes(codes, categories=states, ordered=True),
        }
    )


def _sorted_segments(
    segmentation: pd.DataFrame,
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray, list[str]]:
    """Start and end keys in order, state codes, and state names."""
    missing = [
        x for x in ("chrom", "start", "end", "state") if x not in segmentation.columns
    ]
    if missing or len(segmentation) == 0:
        raise ValueError(
            "segmentation must have rows and columns chrom, start, end, state; "
            f"got {len(segmentation)} rows, columns {list(segmentation.columns)}"
        )
    state = segmentation["state"]
    if not isinstance(state.dtype, pd.CategoricalDtype):
        state = pd.Categorical(state, categories=sorted(set(state), key=_state_order))
    state = pd.Categorical(state)
    start, end = genome_keys(segmentation, segmentation["chrom"])
    order = np.argsort(start, kind="stable")
    start, end = start[order], end[order]
    if (start[1:] < end[:-1]).any():
        row = int(order[(start[1:] < end[:-1]).argmax() + 1])
        raise ValueError(f"segmentation: the segment of row {row} overlaps another one")
    codes = np.asarray(state.codes, dtype=np.int64)[order]
    return (start, end), codes, list(state.categories)


def _elementary(
    start: np.ndarray, end: np.ndarray
) -> tuple[sparse.csr_array, np.ndarray, np.ndarray]:
    """Cut regions at every boundary: (n_regions, n_pieces) incidence and the pieces."""
    points = np.unique(np.concatenate([start, end]))
    first, last = np.searchsorted(points, start), np.searchsorted(points, end)
    pointers = np.concatenate([[0], np.cumsum(last - first)])
    pieces = ranges(first, last - first)
    covers = sparse.csr_array(
        (np.ones(len(pieces)), pieces, pointers), shape=(len(start), len(points) - 1)
    )
    return covers, points[:-1], points[1:]


def _bases_per_state(
    start: np.ndarray,
    end: np.ndarray,
    segments: tuple[np.ndarray, np.ndarray],
    codes: np.ndarray,
    n_states: int,
) -> np.ndarray:
    """Bases of every interval in every state, shape (n_intervals, n_states)."""
    first = np.searchsorted(segments[1], start, side="right")
    length = np.maximum(np.searchsorted(segments[0], end, side="left") - first, 0)
    interval = np.repeat(np.arange(len(start)), length)
    segment = ranges(first, length)
    shared = np.minimum(end[interval], segments[1][segment]) - np.maximum(
        start[interval], segments[0][segment]
    )
    cells = np.bincount(
        interval * n_states + codes[segment],
        weights=shared,
        minlength=len(start) * n_states,
    )
    return cells.reshape(len(start), n_states)


def _warn_unsegmented(has_state: np.ndarray) -> None:
    missing = int((~has_state).sum())
    if missing:
        warnings.warn(
            f"{missing} of {len(has_state)} regions have no base with a chromatin "
            "state and do not count",
            UnsegmentedRegionWarning,
            stacklevel=3,
        )
