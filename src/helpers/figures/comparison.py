"""Figures of the page that compares runs: ladders of claims, and steering."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from helpers.figures.style import COLORS, PAIR_MARKERS, new_axes

__all__ = ["ladders", "steering"]

_RUN_COLORS = ("sae", "in_vivo", "in_vitro", "baseline", "control", "ceiling")
_METHODS = {
    "SAE": ("sae", "o"),
    "random features, tuned": ("control", "s"),
    "DiffMean": ("baseline", "^"),
}


def ladders(ladder: pd.DataFrame, tested: pd.Series, ax: Axes | None = None) -> Axes:
    """Plot which share of its features each run calls, claim by claim.

    Parameters
    ----------
    ladder, tested : pandas.DataFrame, pandas.Series
        Of `helpers.comparison.Comparison`.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    """
    ax = new_axes(ax, 7.5, 4.2)
    y = np.arange(len(ladder))
    for i, (run, counts) in enumerate(ladder.items()):
        share = 100 * counts / tested[run]
        color = COLORS[_RUN_COLORS[i % len(_RUN_COLORS)]]
        marker = PAIR_MARKERS[i % len(PAIR_MARKERS)]
        ax.plot(share, y, marker, ls=":", lw=1, color=color, label=run)
    ax.set_yticks(y, ladder.index)
    ax.set_ylim(len(ladder) - 0.5, -0.5)
    ax.set_xlim(left=-2)
    ax.set_xlabel("share of tested features, all blocks (%)")
    ax.legend(title="run", loc="lower right")
    return ax


def steering(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Plot the share of the gap that steering closes, a row for each run and pair.

    Parameters
    ----------
    table : pandas.DataFrame
        ``steering`` of `helpers.comparison.Comparison`.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    """
    single = table.groupby("run")["lineage"].transform("nunique") == 2
    rows = table[~(single & (table["lineage"] == "pooled"))]
    places = rows[["run", "lineage"]].drop_duplicates().reset_index(drop=True)
    ax = new_axes(ax, 7.0, 1.2 + 0.4 * len(places))
    place = {tuple(row): y for y, row in enumerate(places.to_numpy())}
    offsets = np.linspace(-0.2, 0.2, len(_METHODS))
    for offset, (method, (kind, marker)) in zip(offsets, _METHODS.items(), strict=True):
        own = rows[rows["method"] == method]
        keys = zip(own["run"], own["lineage"], strict=True)
        y = [place[key] + offset for key in keys]
        bars = np.stack([own["gc2"] - own["low"], own["high"] - own["gc2"]])
        ax.errorbar(
            100 * own["gc2"],
            y,
            xerr=100 * np.maximum(bars, 0),
            fmt=marker,
            ms=5,
            color=COLORS[kind],
            label=method,
        )
    ax.axvline(0, color="0.8", lw=1, zorder=0)
    ax.set_yticks(range(len(places)), places["run"] + ", " + places["lineage"])
    ax.set_ylim(len(places) - 0.5, -0.5)
    ax.set_xlabel("gap closed, in vitro to in vivo (% of squared distance; 95% CI)")
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    return ax
