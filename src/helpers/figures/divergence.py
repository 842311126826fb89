"""Figures of notebook 03: volcano, layer curve, replication."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from scipy import stats

from helpers.figures.style import COLORS, new_axes

__all__ = ["layer_counts", "naive_against_paired", "replication", "volcano"]

_CLASSES = [
    "untested",
    "none",
    "shared-vitro",
    "shared-vivo",
    "lineage-only",
    "discordant",
]
_MARKERS = dict(zip(_CLASSES, [".", ".", "o", "^", "s", "X"], strict=True))


def _scatter(table: pd.DataFrame, x: str, y: np.ndarray, ax: Axes) -> None:
    for name in _CLASSES:
        chosen = (table["class"] == name).to_numpy()
        if chosen.any() and name != "untested":
            ax.scatter(
                table[x].to_numpy()[chosen],
                y[chosen],
                s=16,
                color=COLORS[name],
                marker=_MARKERS[name],
                label=f"{name} ({chosen.sum()})",
            )


def volcano(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Plot the standardized paired effect of each feature against its evidence."""
    ax = new_axes(ax)
    evidence = -np.log10(np.maximum(table["p"].to_numpy(), 1e-300))
    _scatter(table, "d_z", evidence, ax)
    n_tested = (table["class"] != "untested").sum()
    ax.axhline(-np.log10(0.05 / n_tested), color="0.4", lw=1, ls="--")
    ax.axvline(0, color="0.8", lw=1, zorder=0)
    ax.set_xlabel("paired effect $d_z$ (positive: higher in vivo)")
    ax.set_ylabel("$-\\log_{10} p$, shared score")
    ax.legend(fontsize=8)
    return ax


def naive_against_paired(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Plot the naive t of each feature against the paired block-level score."""
    ax = new_axes(ax)
    _scatter(table, "cds", table["cds_naive"].to_numpy(), ax)
    n_tested = (table["class"] != "untested").sum()
    limit = stats.norm.isf(0.025 / n_tested)
    for sign in (-1, 1):
        ax.axhline(sign * limit, color="0.4", lw=1, ls="--")
    ax.set_xlabel("CDS, paired over genomic blocks")
    ax.set_ylabel("naive Welch t over windows")
    return ax


def layer_counts(counts: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Plot called features per block by class, with the naive count as a line."""
    ax = new_axes(ax)
    bottom = np.zeros(len(counts))
    for name in _CLASSES[2:]:
        if name in counts:
            height = counts[name].to_numpy()
            ax.bar(counts.index, height, bottom=bottom, color=COLORS[name], label=name)
            bottom += height
    ax.plot(
        counts.index, counts["naive"], "k--o", lw=1.2, ms=4, label="naive t, Bonferroni"
    )
    ax.set_xticks(counts.index)
    ax.set_xlabel("block")
    ax.set_ylabel("features called")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def replication(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Plot effects on the chromosomes of selection against other chromosomes."""
    ax = new_axes(ax, 4.4, 4.0)
    _scatter(table, "delta", table["delta_test"].to_numpy(), ax)
    limit = 1.05 * table[["delta", "delta_test"]].abs().to_numpy().max()
    ax.plot([-limit, limit], [-limit, limit], color="0.6", lw=1, ls="--")
    ax.set_xscale("symlog", linthresh=limit / 100)
    ax.set_yscale("symlog", linthresh=limit / 100)
    ax.minorticks_off()
    ax.set_xlabel("mean difference, select chromosomes")
    ax.set_ylabel("mean difference, test chromosomes")
    ax.legend(fontsize=8)
    return ax
