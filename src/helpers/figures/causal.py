"""Figures of notebook 04: ablation against controls, doses, methods, specificity."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from helpers.figures.style import COLORS, PAIR_MARKERS, new_axes

__all__ = ["ablation_effects", "doses", "grouped", "methods", "specificity"]

_KINDS = {
    "SAE": "sae",
    "clamp": "sae",
    "DiffMean": "baseline",
    "output": "baseline",
    "random": "control",
    "nothing": "control",
    "full": "ceiling",
}
_LINES = {
    "SAE": "-",
    "SAE, all significant": "--",
    "DiffMean": "-.",
    "random features, tuned": ":",
}
_LOWEST = -1.0  # of a GC2 axis: below, a method is just wrong


def _color(method: str) -> str:
    return COLORS[_KINDS[method.split(",")[0].split(" ")[0]]]


def ablation_effects(
    table: pd.DataFrame, random: pd.DataFrame, ax: Axes | None = None
) -> Axes:
    """Plot effects of selected features over those of random sets, block by block.

    Parameters
    ----------
    table, random : pandas.DataFrame
        Rows of `helpers.causal.ablation` and `ablation_random` of one direction, value,
        outcome and control.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    """
    ax = new_axes(ax)
    layers, lineages = sorted(table["layer"].unique()), list(table["lineage"].unique())
    width = 0.8 / len(lineages)
    for k, lineage in enumerate(lineages):
        offset = (k - (len(lineages) - 1) / 2) * width
        of = random[random["lineage"] == lineage]
        drawn = [of.loc[of["layer"] == layer, "effect"] for layer in layers]
        position = np.arange(len(layers)) + offset
        parts = ax.violinplot(drawn, position, widths=0.9 * width, showextrema=False)
        for body in parts["bodies"]:
            body.set(facecolor=COLORS["control"], alpha=0.35)
        for x, values in zip(position, drawn, strict=True):
            ax.plot([x] * len(values), values, ".", ms=1.5, color=COLORS["control"])
        mine = table[table["lineage"] == lineage].set_index("layer").loc[layers]
        ax.errorbar(
            position,
            mine["effect"],
            _bars(mine, "effect"),
            fmt=PAIR_MARKERS[k % len(PAIR_MARKERS)],
            ms=6,
            color=COLORS["sae"],
            mec="k",
            label=lineage,
        )
    ax.axhline(0, color="0.8", lw=1, zorder=0)
    ax.set_xticks(range(len(layers)), layers)
    ax.set_xlabel("block")
    ax.set_ylabel("change of mean log1p prediction")
    ax.legend(title="context features, 95 % CI", fontsize=8, title_fontsize=8)
    return ax


def _bars(table: pd.DataFrame, value: str, low: str = "low", high: str = "high"):
    """Return error bars (2, n) around a column; an estimate may lie outside."""
    below, above = table[value] - table[low], table[high] - table[value]
    return np.maximum(np.stack([below, above]).astype(float), 0)


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
            style,
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
    bars = _bars(table, value, *interval)
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
            _bars(mine, value) if bars else None,
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


def specificity(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Plot effects at a factor's own sites against effects elsewhere.

    Parameters
    ----------
    table : pandas.DataFrame
        Table of `helpers.causal.factor_specificity`.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    """
    ax = new_axes(ax, 4.8, 4.2)
    smallest = 1e-3  # smaller changes are drawn at this size
    x = np.maximum(table["elsewhere"].abs(), smallest)
    y = np.maximum(table["at_sites"].abs(), smallest)
    for lowers, marker, label in ((True, "v", "lowered"), (False, "^", "raised")):
        here = (table["at_sites"] < 0) == lowers
        color = COLORS["sae"] if lowers else COLORS["control"]
        ax.scatter(
            x[here],
            y[here],
            marker=marker,
            s=28,
            color=color,
            label=f"{label} at sites",
        )
    top = 1.5 * max(x.max(), y.max())
    line = np.array([smallest, top])
    ax.plot(line, line, color="0.6", lw=1, ls="--", label="1-fold")
    ax.plot(line, 5 * line, color="0.6", lw=1, ls=":", label="5-fold")
    lowered = y[table["at_sites"] < 0].sort_values(ascending=False)
    for k, i in enumerate(lowered.index[:4]):
        ax.annotate(
            f"{table['factor'][i]} ({table['layer'][i]})",
            (x[i], y[i]),
            xytext=(-5 if k % 2 else 5, 2),
            ha="right" if k % 2 else "left",
            textcoords="offset points",
            fontsize=8,
        )
    ax.set(xscale="log", yscale="log", xlim=(0.8 * smallest, top))
    ax.set_ylim(0.8 * smallest, top)
    ax.set_xlabel("size of change elsewhere (log1p)")
    ax.set_ylabel("size of change at the factor's sites (log1p)")
    ax.legend(fontsize=8, loc="lower right")
    return ax
