"""Files of genome regions: the windows of a study, and BED."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd

from helpers._text_files import read_text

__all__ = ["SPLITS", "WINDOW_COLUMNS", "read_bed", "read_windows"]

SPLITS = ("select", "tune", "test")
WINDOW_COLUMNS = ["chrom", "start", "end", "split", "block"]


def read_windows(path: str | Path, *, window_bp: int) -> pd.DataFrame:
    """Read the windows of a study.

    Parameters
    ----------
    path : str or Path
        TSV with columns ``chrom``, ``start``, ``end``, ``split``, ``block``.
    window_bp : int
        Length that the model needs.

    Returns
    -------
    pandas.DataFrame
        The windows in file order. ``split`` is ``select`` (train dictionaries, choose
        features), ``tune`` (choose strengths) or ``test`` (report); ``block`` names
        the unit that is resampled.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If columns or values are missing, a position is no integer or below 0, a window
        has another length, a split is unknown or empty, a chromosome is in two splits,
        or windows overlap.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"windows file not found: {path}")
    try:
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    except ValueError as error:  # of pandas: empty, or rows of unequal length
        raise ValueError(f"{path}: not a table with a header: {error}") from None
    if not isinstance(table.index, pd.RangeIndex):  # pandas makes it of surplus fields
        raise ValueError(f"{path}: lines have more fields than the header")
    missing = [c for c in WINDOW_COLUMNS if c not in table]
    if missing:
        raise ValueError(f"{path}: columns {missing} are missing; found {list(table)}")
    table = table[WINDOW_COLUMNS]

    def refuse(wrong: pd.Series, expected: str, column: str) -> None:
        if wrong.any():
            line = wrong.idxmax()
            raise ValueError(
                f"{path}, line {line + 2}: {column} must be {expected}; "
                f"found {table.loc[line, column]!r}"
            )

    for column in ("start", "end"):
        is_integer = table[column].str.fullmatch(r"[0-9]{1,18}").astype(bool)
        refuse(~is_integer, "an integer >= 0", column)
    for column in ("chrom", "split", "block"):
        refuse(table[column] == "", "given", column)
    table = table.astype({"start": np.int64, "end": np.int64})
    refuse(
        table["end"] - table["start"] != window_bp,
        f"start + {window_bp}, the window that the model needs",
        "end",
    )
    found = sorted(set(table["split"]))
    if found != sorted(SPLITS):
        raise ValueError(
            f"{path}: column split must use all of {list(SPLITS)}; found {found}"
        )
    per_chrom = table.groupby("chrom")["split"].nunique()
    if (per_chrom > 1).any():
        mixed = sorted(per_chrom.index[per_chrom > 1])
        raise ValueError(f"{path}: chromosomes in more than one split: {mixed}")
    ordered = table.sort_values(["chrom", "start"], kind="stable")
    same = ordered["chrom"].eq(ordered["chrom"].shift())
    overlap = same & (ordered["start"] < ordered["end"].shift())
    refuse(overlap, "outside of other windows", "start")
    return table


def read_bed(path: str | Path) -> pd.DataFrame:
    """Read the first three columns of a BED file, gzipped or not.

    Returns
    -------
    pandas.DataFrame
        ``chrom``, ``start``, ``end`` (0-based, half-open).

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If there is no line, a line has fewer than three columns, a position is not an
        integer or negative, or an end does not exceed its start.
    """
    text = read_text(Path(path), "BED file")
    try:
        table = pd.read_csv(
            io.StringIO(text),
            sep="\t",
            header=None,
            comment="#",
            usecols=[0, 1, 2],
            names=["chrom", "start", "end"],
            dtype={"chrom": str, "start": np.int64, "end": np.int64},
            keep_default_na=False,
        )
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path}: expected BED (chrom, start, end): {error}") from None
    if table.empty:
        raise ValueError(f"{path}: no interval found")
    wrong = table[(table["start"] < 0) | (table["end"] <= table["start"])]
    if len(wrong):
        chrom, start, end = wrong.iloc[0]
        raise ValueError(
            f"{path}: positions must be 0 <= start < end; found {chrom}:{start}-{end}"
        )
    return table
