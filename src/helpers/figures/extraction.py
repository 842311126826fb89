"""Figures of notebook 01: masked prediction and one locus."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from helpers.figures.style import COLORS, PAIR_MARKERS, new_axes

__all__ = ["locus", "masked_scores"]

_METHOD_COLORS = {
    "model": COLORS["sae"],
    "no motif activity": COLORS["sae"],
    "no neighbors": COLORS["sae"],
    "average track": COLORS["baseline"],
    "noise ceiling": COLORS["ceiling"],
}


def masked_scores(table: pd.DataFrame, tokens: str, ax: Axes | None = None) -> Axes:
    """Plot correlation on hidden tokens, one row per method, one marker per lineage.

    Parameters
    ----------
    table : pandas.DataFrame
        From `helpers.masked.masked_scores`.
    tokens : str
        ``all`` or ``differential``.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    """
    ax = new_axes(ax)
    shown = table[table["tokens"] == tokens]
    methods = list(dict.fromkeys(shown["method"]))
    lineages = list(dict.fromkeys(shown["lineage"]))
    for i, lineage in enumerate(lineages):
        rows = shown[shown["lineage"] == lineage].set_index("method").loc[methods]
        y = np.arange(len(methods)) + 0.22 * (i - (len(lineages) - 1) / 2)
        error = np.stack([rows["r"] - rows["low"], rows["high"] - rows["r"]])
        ax.errorbar(
            rows["r"], y, xerr=error, fmt="none", ecolor=COLORS["control"], lw=1
        )
        ax.scatter(
            rows["r"],
            y,
            c=[_METHOD_COLORS[m] for m in methods],
            marker=PAIR_MARKERS[i % len(PAIR_MARKERS)],
            label=lineage,
            zorder=3,
        )
    ax.set_yticks(range(len(methods)), methods)
    ax.set_ylim(len(methods) - 0.5, -0.5)
    ax.set_xlabel("Pearson r of log1p signal (95% interval)")
    ax.set_title(f"{tokens} hidden tokens, n = {shown['n'].sum():,}")
    handles = [
        ax.scatter([], [], marker=PAIR_MARKERS[i % len(PAIR_MARKERS)], c="0.4", label=x)
        for i, x in enumerate(lineages)
    ]
    ax.legend(handles=handles, loc="best")
    return ax


def locus(table: pd.DataFrame, figure: Figure | SubFigure) -> list[Axes]:
    """Plot measured and predicted signal of the biosamples of a pair over a window.

    Parameters
    ----------
    table : pandas.DataFrame
        From `helpers.masked.locus`: ``position``, ``biosample``, ``context``,
        ``measured``, ``predicted``.
    figure : matplotlib.figure.Figure
        Empty figure to draw into.
    """
    groups = list(table.groupby("biosample", sort=False))
    axes = figure.subplots(len(groups), 1, sharex=True, sharey=True)
    axes = list(np.atleast_1d(axes))
    for ax, (name, rows) in zip(axes, groups, strict=True):
        color = COLORS[rows["context"].iloc[0]]
        kilobases = rows["position"] / 1000
        measured, predicted = np.log1p(rows["measured"]), np.log1p(rows["predicted"])
        ax.fill_between(kilobases, measured, step="mid", color=color, alpha=0.4, lw=0)
        ax.step(kilobases, predicted, where="mid", color="black", lw=1)
        ax.set_title(name, loc="left", fontsize=9)
        ax.set_ylabel("log1p signal")
    axes[-1].set_xlabel(f"{table['chrom'].iloc[0]} (kb)")
    return axes
