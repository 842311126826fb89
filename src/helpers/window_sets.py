"""Choose the windows of a study by rule, from a BED file or from tiles of a genome.

Windows are 0-based and half-open. What a study learns on one split it reports on
another, so that splits never share a chromosome; the windows of a bin of the genome
(a block) are resampled together, as neighbors resemble each other.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from helpers.windows import SPLITS, WINDOW_COLUMNS, Genome, read_bed
from helpers.windows._genome import N_CODE

__all__ = ["choose_windows", "tile_genome", "write_windows"]

_log = logging.getLogger(__name__)

_POSITION = ["chrom", "start", "end"]
_SPLIT_SHARES = dict(zip(SPLITS, (0.5, 0.25, 0.25), strict=True))


def tile_genome(lengths: Mapping[str, int], *, window_bp: int) -> pd.DataFrame:
    """Cut chromosomes into windows that follow each other from the first base.

    Parameters
    ----------
    lengths : dict of str to int
        Length of every chromosome, as in `Genome.lengths`.
    window_bp : int
        Length of a window; what remains of a chromosome is left out.

    Returns
    -------
    pandas.DataFrame
        ``chrom``, ``start``, ``end``.
    """
    rows = [
        (chrom, start, start + window_bp)
        for chrom, length in lengths.items()
        for start in range(0, length - window_bp + 1, window_bp)
    ]
    return pd.DataFrame(rows, columns=_POSITION)


def choose_windows(
    candidates: pd.DataFrame | str | Path,
    *,
    chromosomes: Sequence[str],
    window_bp: int,
    n_windows: int,
    random_state: int | np.random.Generator,
    genome: Genome | None = None,
    exclude: pd.DataFrame | str | Path | None = None,
    max_masked: float = 0.1,
    drop_overlaps: bool = False,
    block_bp: int = 10_000_000,
) -> pd.DataFrame:
    """Draw windows for a study, with their splits and blocks.

    Windows are drawn without replacement, in numbers as equal between chromosomes as
    the candidates allow. Whole chromosomes, the fullest first, then go to the split
    that lacks most windows of its share: ``select`` 1/2, ``tune`` and ``test`` 1/4
    each.

    Parameters
    ----------
    candidates : pandas.DataFrame or str or Path
        ``chrom``, ``start``, ``end`` of the windows to choose from, such as those that
        a model was not trained on, or `tile_genome`; or a BED file of them.
    chromosomes : sequence of str
        Chromosomes to use, in the order of the result. Whether to use X, whose copies
        differ between samples, is for the study to say.
    window_bp : int
        Length that the model needs.
    n_windows : int
        How many to draw.
    random_state : int or numpy.random.Generator
        Source of randomness of the draw; nothing else is random.
    genome : Genome, optional
        Sequence in which N is counted.
    exclude : pandas.DataFrame or str or Path, optional
        Regions to avoid, such as the ENCODE blacklist; or a BED file of them.
    max_masked : float, default=0.1
        Windows with a greater share of bases that are N or excluded are left out.
    drop_overlaps : bool, default=False
        Whether to keep the first of candidates that overlap, instead of refusing them.
    block_bp : int, default=10_000_000
        Bin of the genome whose windows form a block, by the middle of the window.

    Returns
    -------
    pandas.DataFrame
        ``chrom``, ``start``, ``end``, ``split``, ``block``, sorted by position.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If candidates have another length or overlap, there are fewer than
        ``n_windows``, those drawn lie on fewer than three chromosomes, columns are
        missing, or an argument is out of its range.
    """
    if not 0 <= max_masked <= 1:
        raise ValueError(f"max_masked must be a share, 0 to 1; got {max_masked}")
    if block_bp < 1:
        raise ValueError(f"block_bp must be at least 1; got {block_bp}")
    name, table = _read(candidates, "candidates")
    table = table[table["chrom"].isin(chromosomes)]
    _check_lengths(name, table, window_bp)
    order = table["chrom"].map({c: i for i, c in enumerate(chromosomes)})
    table = table.assign(order=order).sort_values(["order", "start"], kind="stable")
    found = {"on the chromosomes": len(table)}
    if not drop_overlaps:
        _check_apart(name, table)
    if genome is not None or exclude is not None:
        table = table[_masked_share(table, genome, exclude) <= max_masked]
        found["not masked"] = len(table)
    if drop_overlaps:
        table = table[_apart(table)]
        found["apart"] = len(table)
    if not 0 < n_windows <= len(table):
        raise ValueError(
            f"{name}: n_windows must be at least 1 and at most the number of "
            f"candidates left; got {n_windows}, found {found}"
        )
    drawn = _draw(table, n_windows, np.random.default_rng(random_state))
    drawn["split"] = drawn["chrom"].map(_assign_splits(drawn["chrom"].value_counts()))
    middle = (drawn["start"] + drawn["end"]) // 2
    drawn["block"] = drawn["chrom"] + ":" + (middle // block_bp).astype(str)
    _log.info(
        "%s: %s; drew %d windows in %d blocks, %s",
        name,
        found,
        len(drawn),
        drawn["block"].nunique(),
        drawn["split"].value_counts().to_dict(),
    )
    return drawn[WINDOW_COLUMNS].reset_index(drop=True)


def write_windows(table: pd.DataFrame, path: str | Path) -> None:
    """Write windows as `helpers.windows.read_windows` reads them, all or nothing."""
    path = Path(path)
    partial = path.with_name(f"{path.name}.partial")
    table[WINDOW_COLUMNS].to_csv(partial, sep="\t", index=False)
    partial.replace(path)


def _read(
    regions: pd.DataFrame | str | Path, argument: str
) -> tuple[str, pd.DataFrame]:
    """Return what to call regions in an error, and their table."""
    if not isinstance(regions, pd.DataFrame):
        return str(regions), read_bed(regions)
    missing = [c for c in _POSITION if c not in regions]
    if missing:
        raise ValueError(
            f"{argument}: columns {missing} are missing; found {list(regions)}"
        )
    return argument, regions[_POSITION]


def _region(row: pd.Series) -> str:
    return f"{row['chrom']}:{row['start']}-{row['end']}"


def _check_lengths(name: str, table: pd.DataFrame, window_bp: int) -> None:
    wrong = table[table["end"] - table["start"] != window_bp]
    if len(wrong):
        raise ValueError(
            f"{name}: windows must be {window_bp} bp long, as the model needs; found "
            f"{len(wrong)} of {len(table)} that are not, the first "
            f"{_region(wrong.iloc[0])}"
        )


def _check_apart(name: str, table: pd.DataFrame) -> None:
    """Refuse sorted windows that overlap."""
    same = table["chrom"].eq(table["chrom"].shift())
    overlap = np.flatnonzero(same & (table["start"] < table["end"].shift()))
    if len(overlap):
        first, second = (_region(table.iloc[overlap[0] + i]) for i in (-1, 0))
        raise ValueError(
            f"{name}: windows must not overlap; found {len(overlap)} that overlap the "
            f"one before, the first {second} with {first} (drop_overlaps=True keeps "
            "the first of each)"
        )


def _apart(table: pd.DataFrame) -> np.ndarray:
    """Return which sorted windows to keep so that none overlap: the first that fits."""
    keep = np.zeros(len(table), dtype=bool)
    last_chrom, last_end = None, 0
    for i, row in enumerate(table.itertuples()):
        keep[i] = row.chrom != last_chrom or row.start >= last_end
        if keep[i]:
            last_chrom, last_end = row.chrom, row.end
    return keep


def _masked_share(
    table: pd.DataFrame,
    genome: Genome | None,
    exclude: pd.DataFrame | str | Path | None,
) -> np.ndarray:
    """Return the share of bases that are N or excluded, shape (n_windows,)."""
    regions: dict[str, list] = {}
    if exclude is not None:
        _, excluded = _read(exclude, "exclude")
        for chrom, rows in excluded.groupby("chrom"):
            regions[chrom] = rows[["start", "end"]].to_numpy().tolist()
    share = np.zeros(len(table))
    for i, row in enumerate(table.itertuples()):
        masked = np.zeros(row.end - row.start, dtype=bool)
        if genome is not None:
            masked |= genome.codes(row.chrom, row.start, row.end) == N_CODE
        for start, end in regions.get(row.chrom, []):
            masked[max(start - row.start, 0) : max(end - row.start, 0)] = True
        share[i] = masked.mean()
    return share


def _draw(
    table: pd.DataFrame, n_windows: int, random_state: np.random.Generator
) -> pd.DataFrame:
    """Draw windows in numbers as equal between chromosomes as can be."""
    n_left = n_windows
    quotas = {}
    counts = table["chrom"].value_counts().items()
    available = sorted(counts, key=lambda item: (item[1], item[0]))
    for i, (chrom, n) in enumerate(available):
        quotas[chrom] = min(n, n_left // (len(available) - i))
        n_left -= quotas[chrom]
    drawn = [
        rows.iloc[np.sort(random_state.choice(len(rows), quotas[chrom], replace=False))]
        for chrom, rows in table.groupby("chrom", sort=False)
    ]
    return pd.concat(drawn)


def _assign_splits(n_windows: pd.Series) -> dict[str, str]:
    """Give whole chromosomes to splits, close to their shares of windows."""
    if len(n_windows) < len(SPLITS):
        raise ValueError(
            f"the splits {list(SPLITS)} need windows on at least {len(SPLITS)} "
            f"chromosomes; found them on {sorted(n_windows.index)}"
        )
    lacks = {name: share * n_windows.sum() for name, share in _SPLIT_SHARES.items()}
    split_of: dict[str, str] = {}
    ordered = sorted(n_windows.items(), key=lambda item: (-item[1], item[0]))
    for i, (chrom, n) in enumerate(ordered):
        empty = [name for name in SPLITS if name not in split_of.values()]
        must_fill = len(ordered) - i <= len(empty)
        best = max(empty if must_fill else SPLITS, key=lambda name: lacks[name])
        split_of[chrom] = best
        lacks[best] -= n
    return split_of
