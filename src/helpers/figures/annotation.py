"""Figures of notebook 05: states, motifs, processes and their nulls."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.patches import PathPatch
from matplotlib.textpath import TextPath
from matplotlib.transforms import Affine2D

from helpers.figures.style import COLORS, SEQUENTIAL, SIGNED, new_axes

__all__ = [
    "group_dots",
    "logo",
    "motif_table",
    "null_shares",
    "p_values",
    "state_heat_maps",
]

_SETS = {  # color and marker of every set of features
    "called": (COLORS["sae"], "o"),
    "other": (COLORS["baseline"], "s"),
    "matched": (COLORS["control"], "v"),
    "shifted": (COLORS["ceiling"], "^"),
}
_BASES = {"A": "#009E73", "C": "#0072B2", "G": "#E69F00", "T": "#D55E00"}
_LIMIT = 3.0  # of log2 fold in colors
_LOG10_P = 15.0  # p-values are drawn down to this power


def state_heat_maps(
    table: pd.DataFrame, groups: pd.Series, axes: Sequence[Axes]
) -> None:
    """Draw the fold of chromatin states, one row per feature.

    Left against all tokens, right against tokens of the same GC content and
    accessibility, where dots mark q < 0.05. One region is added to observed and
    expected counts, so that rare states do not shout.

    Parameters
    ----------
    table : pandas.DataFrame
        Rows of level ``state`` and one set, from `helpers.annotation.annotate`.
    groups : pandas.Series
        Group of every feature, by ``layer`` and ``feature``.
    axes : sequence of two matplotlib.axes.Axes
        Where to draw; they share rows.
    """
    order = groups.sort_values(kind="stable")
    states = list(dict.fromkeys(table["item"]))
    values = ["hits", "n_regions", "rate", "rate_all", "q_value"]
    keys = ["layer", "feature"]
    wide = table.pivot_table(values, index=keys, columns="item").loc[order.index]
    sizes = order.value_counts(sort=False).reindex(order.unique())
    last = sizes.cumsum().to_numpy()
    for ax, rate in zip(axes, ("rate_all", "rate"), strict=True):
        expected = (wide["n_regions"] * wide[rate])[states]
        image = ax.imshow(
            np.log2((wide["hits"][states] + 1) / (expected + 1)),
            cmap=SIGNED,
            vmin=-_LIMIT,
            vmax=_LIMIT,
            aspect="auto",
            interpolation="nearest",
        )
        for edge in last[:-1]:
            ax.axhline(edge - 0.5, color="black", lw=0.6)
        ax.set_xticks(range(len(states)), states, rotation=90)
        ax.tick_params(length=0)
        ax.set_facecolor("0.85")  # states that a segmentation lacks
    row, column = np.nonzero(wide["q_value"][states].to_numpy() < 0.05)
    axes[1].scatter(column, row, s=4, c="black", linewidths=0)
    names = [f"{name} (n = {n})" for name, n in sizes.items()]
    axes[0].set_yticks(last - sizes.to_numpy() / 2 - 0.5, names)
    axes[1].set_yticks([])
    axes[0].set_xlabel("against all tokens")
    axes[1].set_xlabel("GC and accessibility matched")
    axes[1].figure.colorbar(
        image, ax=axes[1], label="log2 fold", shrink=0.6, extend="both"
    )


def group_dots(
    items: pd.DataFrame, ax: Axes | None = None, *, n_items: int = 14
) -> Axes:
    """Draw which items the features of a group share, as dots.

    Parameters
    ----------
    items : pandas.DataFrame
        From `helpers.findings.top_items`.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    n_items : int
        Items shown, those of most features.
    """
    ax = new_axes(ax, 9, 5)
    total = items.groupby("item")["n_features"].sum()
    names = list(total.sort_values(ascending=False, kind="stable").index[:n_items])
    groups = items.drop_duplicates("group").sort_values("group")
    columns = list(groups["group"])
    shown = items[items["item"].isin(names)]
    dots = ax.scatter(
        shown["group"].map(columns.index),
        shown["item"].map(names.index),
        s=15 + 250 * shown["share"],
        c=shown["log2_fold"],
        cmap=SEQUENTIAL,
        vmin=0,
        edgecolors="0.3",
        linewidths=0.5,
    )
    labels = [f"{g} ({n})" for g, n in zip(columns, groups["n_group"], strict=True)]
    ax.set_xticks(
        range(len(columns)), labels, rotation=40, ha="right", rotation_mode="anchor"
    )
    ax.set_yticks(range(len(names)), [_label(items, x) for x in names])
    ax.set_xlim(-0.7, len(columns) - 0.3)
    ax.set_ylim(len(names) - 0.3, -0.7)
    ax.grid(color="0.92")
    ax.set_axisbelow(True)
    handles = [
        ax.scatter([], [], s=15 + 250 * x, c="0.6", label=f"{x:.0%}")
        for x in (0.1, 0.5, 1.0)
    ]
    bar = ax.inset_axes((1.05, 0.0, 0.025, 0.5))
    ax.figure.colorbar(dots, cax=bar, label="log2 fold (median)")
    ax.legend(
        handles=handles,
        title="enriched",
        loc="upper left",
        bbox_to_anchor=(1.02, 1),
        labelspacing=1.2,
    )
    return ax


def _label(items: pd.DataFrame, item: str, width: int = 38) -> str:
    """Put the most frequent motif before its archetype; cut GO numbers, long names."""
    motif = items.loc[items["item"] == item, "motifs"].iloc[0].split(", ")[0]
    text = item if item.startswith(motif) else f"{motif} (like {item})"
    text = text.split(" (GO:")[0]
    return text if len(text) <= width else text[: width - 1] + "…"


def null_shares(shares: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Plot the share of features with any finding, called ones beside their nulls.

    Parameters
    ----------
    shares : pandas.DataFrame
        From `helpers.findings.null_shares`.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    """
    ax = new_axes(ax)
    levels = list(dict.fromkeys(shares["level"]))
    for i, (name, rows) in enumerate(shares.groupby("set", sort=False)):
        color, marker = _SETS[name]
        y = rows["level"].map(levels.index) + 0.18 * (i - 1.5)
        error = np.stack([rows["share"] - rows["low"], rows["high"] - rows["share"]])
        label = f"{name} (n = {rows['n_features'].iloc[0]})"
        ax.errorbar(
            rows["share"], y, xerr=error, fmt=marker, color=color, ms=5, label=label
        )
    ax.axvline(0.05, color="0.5", lw=1, ls="--")
    ax.set_yticks(range(len(levels)), levels)
    ax.set_ylim(len(levels) - 0.5, -0.5)
    ax.set_xlim(-0.02, 1.02)
    ax.set_xlabel("share of features with any q < 0.05 (95% interval)")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return ax


def p_values(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Plot the p-values of one level against those of an honest null.

    Parameters
    ----------
    table : pandas.DataFrame
        Rows of one level, all of its tests: ``set``, ``log_p`` (natural).
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    """
    ax = new_axes(ax, 4.2, 3.6)
    for name, rows in table.groupby("set", sort=False):
        observed = np.sort(-rows["log_p"].to_numpy() / np.log(10))[::-1]
        expected = -np.log10((np.arange(len(observed)) + 0.5) / len(observed))
        color, marker = _SETS[name]
        ax.plot(
            expected,
            np.minimum(observed, _LOG10_P),
            marker,
            ms=3,
            color=color,
            label=name,
        )
    ax.axline((0, 0), slope=1, color="0.5", lw=1, ls="--")
    ax.set_xlabel("expected -log10 p")
    ax.set_ylabel(f"observed -log10 p (up to {_LOG10_P:.0f})")
    ax.legend(loc="upper left")
    return ax


def motif_table(learned: pd.DataFrame, axes: np.ndarray) -> None:
    """Draw known motifs beside those learned from regions alone, a row for each.

    Parameters
    ----------
    learned : pandas.DataFrame
        From `helpers.findings.learned_motifs`.
    axes : numpy.ndarray of matplotlib.axes.Axes, shape (len(learned), 2)
        Where to draw.
    """
    for (known, own), row in zip(axes, learned.itertuples(), strict=True):
        logo(row.known.probabilities, known)
        known.set_title(f"known: {row.known.name}", loc="left")
        logo(row.motif.probabilities, own)
        own.set_title(
            f"block {row.layer}, feature {row.feature}: like {row.closest} "
            f"({row.similarity:.2f}), ln p = {row.log_p:.0f}",
            loc="left",
        )


def logo(probabilities: np.ndarray, ax: Axes | None = None) -> Axes:
    """Draw a motif, letters as high as their share of the information.

    Parameters
    ----------
    probabilities : numpy.ndarray, shape (width, 4)
        Probability of A, C, G, T at each position.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    """
    ax = new_axes(ax, 3, 1)
    p = np.asarray(probabilities, dtype=np.float64)
    bits = 2 + np.where(p > 0, p * np.log2(np.where(p > 0, p, 1)), 0).sum(axis=1)
    font = FontProperties(family="DejaVu Sans Mono", weight="bold")
    for position, heights in enumerate(p * bits[:, None]):
        bottom = 0.0
        for i in np.argsort(heights):
            letter = TextPath((0, 0), "ACGT"[i], size=1, prop=font)
            box = letter.get_extents()
            scale = (0.95 / box.width, heights[i] / box.height)
            place = Affine2D().translate(-box.x0, -box.y0).scale(*scale)
            place = place.translate(position - 0.475, bottom)
            ax.add_patch(
                PathPatch(place.transform_path(letter), color=_BASES["ACGT"[i]], lw=0)
            )
            bottom += heights[i]
    ax.set(xlim=(-0.6, len(p) - 0.4), ylim=(0, 2), xticks=[], yticks=[0, 2])
    ax.set_ylabel("bits")
    return ax
