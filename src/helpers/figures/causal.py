"""Figures of notebook 04 on ablation: controls, growth, one by one, specificity."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes

from helpers.figures.style import (
    COLORS,
    PAIR_MARKERS,
    SEQUENTIAL,
    SIGNED,
    error_bars,
    new_axes,
)

__all__ = [
    "ablation_effects",
    "block_heatmap",
    "dose_response",
    "forward_selection",
    "lineage_heatmap",
    "single_features",
    "specificity",
]


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
    if table.empty:  # too few tokens of the class
        ax.text(0.5, 0.5, "not measured", ha="center", transform=ax.transAxes)
        return ax
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
            error_bars(mine, "effect"),
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
    ax.legend(title="context features, 95% CI", fontsize=8, title_fontsize=8)
    return ax


def block_heatmap(
    table: pd.DataFrame, value: str, ax: Axes | None = None, *, label: str = ""
) -> Axes:
    """Plot a value of every block and outcome, averaged over lineages.

    Parameters
    ----------
    table : pandas.DataFrame
        Rows of `helpers.causal.ablation` of one track, value and control, whose
        outcomes have one unit.
    value : str
        Column to show; the color is centered at 0.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    label : str
        Of the color bar.
    """
    ax = new_axes(ax, 6.5, 3.2)
    named = table.assign(
        column=table["direction"].str.replace("-to-", " to ") + "\n" + table["outcome"]
    )
    order = list(dict.fromkeys(named["column"]))
    wide = named.pivot_table(value, "layer", "column")[order]
    beaten = named.assign(hit=named["p"] <= 0.05)
    hits = beaten.pivot_table("hit", "layer", "column", aggfunc="sum")[order]
    limit = max(float(np.nanmax(np.abs(wide.to_numpy()))), 1e-6)
    image = ax.imshow(wide, cmap=SIGNED, vmin=-limit, vmax=limit, aspect="auto")
    for (row, column), shown in np.ndenumerate(wide.to_numpy()):
        text = f"{shown:+.3f}\n({hits.to_numpy()[row, column]:.0f})"
        dark = abs(shown) > 0.6 * limit
        ax.text(
            column,
            row,
            text,
            ha="center",
            va="center",
            fontsize=8,
            color="white" if dark else "black",
        )
    ax.set_xticks(range(len(order)), order, fontsize=8)
    ax.set_yticks(range(len(wide)), wide.index)
    ax.set_ylabel("block")
    ax.figure.colorbar(image, ax=ax, label=label, fraction=0.05, pad=0.02)
    return ax


def dose_response(
    table: pd.DataFrame, by: str, outcome: str, ax: Axes | None = None
) -> Axes:
    """Plot effects against the number of features or the strength, block by block.

    Parameters
    ----------
    table : pandas.DataFrame
        Table of `helpers.causal.dose_response`.
    by : {"n_features", "strength"}
        What grows.
    outcome : str
        Class of token.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    """
    ax = new_axes(ax)
    rows = table[table["outcome"] == outcome]
    if by == "n_features":
        rows = rows[rows["strength"] == 1]
    else:
        most = rows[rows["strength"] != 1].groupby("layer")["n_features"].first()
        rows = rows[rows["n_features"] == rows["layer"].map(most)]
    for k, (layer, of_block) in enumerate(rows.groupby("layer")):
        mean = of_block.groupby(by)[["effect", "low", "high"]].mean()
        color = colormaps[SEQUENTIAL](k / max(1, rows["layer"].nunique() - 1))
        ax.errorbar(
            mean.index,
            mean["effect"],
            error_bars(mean, "effect"),
            fmt=f"{PAIR_MARKERS[k % len(PAIR_MARKERS)]}-",
            ms=5,
            color=color,
            label=f"block {layer}",
        )
    ax.axhline(0, color="0.8", lw=1, zorder=0)
    if by == "n_features":
        ax.set_xscale("log")
        ax.set_xlabel("features ablated, strongest first (last: all significant)")
    else:
        ax.set_xlabel(r"strength $\lambda$ (1: the other context's activations)")
    ax.set_ylabel("change of mean log1p prediction")
    ax.legend(fontsize=8)
    return ax


def single_features(
    table: pd.DataFrame, layer: int, ax: Axes | None = None, *, n_named: int = 5
) -> Axes:
    """Plot the effect of every selected feature alone against its rank by CDS.

    Parameters
    ----------
    table : pandas.DataFrame
        Rows of `helpers.causal.single_features` of one outcome.
    layer : int
        Block.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    n_named : int
        Features named, those of the largest mean effect over lineages.
    """
    ax = new_axes(ax)
    rows = table[table["layer"] == layer]
    for k, (lineage, of) in enumerate(rows.groupby("lineage")):
        marker = PAIR_MARKERS[k % len(PAIR_MARKERS)]
        ax.plot(of["rank"], of["effect"], marker, ms=4, alpha=0.8, label=lineage)
    mean = rows.groupby(["feature", "rank"])["effect"].mean().reset_index()
    strongest = mean.reindex(mean["effect"].abs().sort_values().index[-n_named:])
    for _, row in strongest.iterrows():
        ax.annotate(
            f"{row['feature']:.0f}",
            (row["rank"], row["effect"]),
            xytext=(6, 0),
            textcoords="offset points",
            fontsize=8,
            va="center",
        )
    ax.axhline(0, color="0.8", lw=1, zorder=0)
    ax.set_xlabel("rank by absolute CDS (numbers name features)")
    ax.set_ylabel("change of mean log1p prediction")
    ax.set_title(f"block {layer}")
    ax.legend(fontsize=8)
    return ax


def forward_selection(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Plot the gap closed by ever more features, in several orders.

    Parameters
    ----------
    table : pandas.DataFrame
        Table of `helpers.causal.forward_selection`.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    """
    ax = new_axes(ax, 6.0, 3.6)
    looks = {
        "greedy": (COLORS["sae"], "o-"),
        "CDS": (COLORS["in_vitro"], "s--"),
        "random": (COLORS["control"], "^:"),
    }
    for order, (color, style) in looks.items():
        rows = table[table["order"] == order]
        x = rows["n_features"]
        ax.plot(x, rows["gc2"], style, ms=5, color=color, label=order)
        ax.fill_between(x, rows["low"], rows["high"], color=color, alpha=0.15, lw=0)
    every = table[table["order"] == "all significant"].iloc[0]
    label = f"all {every['n_features']} significant"
    ax.axhline(every["gc2"], color=COLORS["ceiling"], lw=1, ls="-.", label=label)
    greedy = table[table["order"] == "greedy"]
    for _, row in greedy.iterrows():
        ax.annotate(
            str(row["feature"]),
            (row["n_features"], row["gc2"]),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    ax.axhline(0, color="0.8", lw=1, zorder=0)
    ax.set_xlabel("features that take the target's activations")
    ax.set_ylabel("GC$_2$ on test windows")
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def lineage_heatmap(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Plot what features of one lineage do in every lineage.

    Parameters
    ----------
    table : pandas.DataFrame
        Rows of `helpers.causal.lineage_matrix` of one layer and outcome.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    """
    ax = new_axes(ax, 4.2, 3.4)
    wide = table.pivot_table("effect", "features", "lineage")
    limit = max(float(np.abs(wide.to_numpy()).max()), 1e-6)
    image = ax.imshow(wide, cmap=SIGNED, vmin=-limit, vmax=limit)
    for (row, column), shown in np.ndenumerate(wide.to_numpy()):
        color = "white" if abs(shown) > 0.6 * limit else "black"
        ax.text(column, row, f"{shown:+.3f}", ha="center", va="center", color=color)
    counts = table.groupby("features")["n_features"].first()
    ax.set_xticks(range(wide.shape[1]), wide.columns)
    ax.set_yticks(range(len(wide)), [f"{x} ({counts[x]})" for x in wide.index])
    ax.set_xlabel("lineage whose input is edited")
    ax.set_ylabel("features of (how many)")
    ax.figure.colorbar(image, ax=ax, label="change of log1p prediction")
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
            xytext=(-5 if k % 2 else 5, 2 - 5 * k),
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
