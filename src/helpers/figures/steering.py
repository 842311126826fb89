"""Figures of notebook 04 on steering: doses, methods, groups, trainings."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from helpers.figures.style import COLORS, PAIR_MARKERS, error_bars, new_axes

__all__ = ["doses", "grouped", "methods", "trainings"]

_KINDS = {
    "SAE": "sae",
    "clamp": "ceiling",
    "DiffMean": "baseline",
    "first": "baseline",
    "LDA": "baseline",
    "affine": "baseline",
    "output": "baseline",
    "class": "ceiling",
    "motif": "ceiling",
    "track": "ceiling",
    "planted": "ceiling",
    "reconstruction": "ceiling",
    "random": "control",
    "nothing": "control",
    "full": "ceiling",
}
_LINES = {
    "SAE": "-",
    "SAE, all significant": "--",
    "SAE, output-filtered": (0, (1, 1)),
    "DiffMean": "-.",
    "affine map": (0, (5, 1, 1, 1, 1, 1)),
    "random features, tuned": ":",
}
_LOWEST = -1.0  # of a GC2 axis: below, a method is just wrong


def _color(method: str) -> str:
    if method.endswith(("shuffled", "reversed")):
        return COLORS["control"]
    return COLORS[_KINDS[method.split(",")[0].split(" ")[0]]]


def doses(sweep: pd.DataFrame, direction: str, ax: Axes | None = None) -> Axes:
    """Plot the gap closed over all lineages against the dose, at each best block.

    Parameters
    ----------
    sweep : pandas.DataFrame
        Table of `helpers.causal.steering_sweep`.
    direction : str
        Which rows.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    """
    ax = new_axes(ax)
    rows = sweep[sweep["direction"] == direction]
    sums = rows.groupby(["method", "layer", "alpha"])[["remaining", "gap"]].sum()
    closed = 1 - sums["remaining"] / sums["gap"]
    for method, style in _LINES.items():
        of = closed[method]
        layer, alpha = of[of.index.get_level_values("alpha") > 0].idxmax()
        curve = of[layer]
        ax.plot(
            curve.index,
            curve,
            linestyle=style,
            marker=".",
            color=_color(method),
            label=f"{method} (block {layer})",
        )
        ax.plot(alpha, curve[alpha], "o", ms=8, mfc="none", color=_color(method))
    ax.axhline(0, color="0.8", lw=1, zorder=0)
    bottom, top = ax.get_ylim()
    ax.set_ylim(max(bottom, _LOWEST), top)
    ax.set_xlabel(r"dose $\alpha$ (1: the mean difference; circle: chosen)")
    ax.set_ylabel("GC$_2$ on tune windows")
    ax.set_title(direction)
    ax.legend(fontsize=8)
    return ax


def methods(
    table: pd.DataFrame,
    ax: Axes | None = None,
    *,
    value: str = "gc2",
    interval: tuple[str, str] = ("low", "high"),
) -> Axes:
    """Plot a value of every method with its interval, one method per line.

    Parameters
    ----------
    table : pandas.DataFrame
        Rows of `helpers.causal.steering` of one direction, lineage and token class.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    value : str
        Column of the value.
    interval : tuple of str
        Columns of its interval.
    """
    ax = new_axes(ax, 6.0, 4.2)
    position = -np.arange(len(table))
    bars = error_bars(table, value, *interval)
    lowest = min(0.0, max(_LOWEST, float(table[interval[0]].min())))
    for y, (_, row), bar in zip(position, table.iterrows(), bars.T, strict=True):
        color = _color(row["method"])
        if row[value] < lowest:  # off the axis: say so instead of stretching it
            ax.plot(lowest, y, "<", color=color)
            ax.text(lowest + 0.03, y, f"{row[value]:.1f}", va="center", fontsize=8)
            continue
        ax.errorbar(row[value], y, xerr=bar[:, None], fmt="o", ms=5, color=color)
    ax.axvline(0, color="0.6", lw=1, zorder=0)
    ax.axvline(1, color="0.6", lw=1, ls=":", zorder=0)
    ax.set_xlim(lowest - 0.08, 1.08)
    ax.set_yticks(position, table["method"])
    ax.tick_params(axis="y", length=0)
    return ax


def grouped(
    table: pd.DataFrame,
    by: str,
    names: list[str],
    ax: Axes | None = None,
    *,
    value: str = "gc2",
    bars: bool = True,
) -> Axes:
    """Plot some methods side by side within groups, such as lineages.

    Parameters
    ----------
    table : pandas.DataFrame
        Rows of `helpers.causal.steering`, one per group and method.
    by : str
        Column of the groups.
    names : list of str
        Methods to show.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    value : str
        Column of the value.
    bars : bool
        Whether to draw the interval of GC2.
    """
    ax = new_axes(ax)
    groups = list(dict.fromkeys(table[by]))
    for k, method in enumerate(names):
        mine = table[table["method"] == method].set_index(by).reindex(groups)
        x = np.arange(len(groups)) + (k - (len(names) - 1) / 2) * 0.8 / len(names)
        ax.errorbar(
            x,
            mine[value],
            error_bars(mine, value) if bars else None,
            fmt=PAIR_MARKERS[k % len(PAIR_MARKERS)],
            ms=6,
            color=_color(method),
            mfc="none" if "," in method else None,
            label=method,
        )
    ax.axhline(0, color="0.8", lw=1, zorder=0)
    bottom, top = ax.get_ylim()
    ax.set_ylim(max(bottom, _LOWEST), top)
    ax.set_xticks(range(len(groups)), groups)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    return ax


def trainings(spread: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Plot a number of every training, and its mean with both sources of variation.

    Parameters
    ----------
    spread : pandas.DataFrame
        Table of `helpers.causal.seed_spread`.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    """
    ax = new_axes(ax, 6.0, 2.8)
    for y, (_, row) in enumerate(spread.iterrows()):
        color = _color(row["method"].removeprefix("SAE - "))
        each = [float(v) / 100 for v in row["of_trainings"].split(",")]
        ax.plot(each, [y + 0.2] * len(each), "|", ms=9, color=color)
        bar = [[row["estimate"] - row["low"]], [row["high"] - row["estimate"]]]
        ax.errorbar(row["estimate"], y, xerr=bar, fmt="o", ms=5, color=color)
    ax.axvline(0, color="0.6", lw=1, zorder=0)
    ax.set_yticks(range(len(spread)), spread["method"])
    ax.tick_params(axis="y", length=0)
    ax.invert_yaxis()
    ax.set_xlabel("GC$_2$ (ticks: one training each)")
    return ax
