"""Figures of notebook 07: features of another model against what was written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes

from helpers.figures.style import COLORS

__all__ = ["motif_features"]


def motif_features(tables: Mapping[str, pd.DataFrame], axes: Sequence[Axes]) -> None:
    """Plot how features fire at sites of the motif against how they change with it.

    Parameters
    ----------
    tables : mapping of str to pandas.DataFrame
        By layer: ``motif``, log2 fold of the activation at its sites; ``change``, log2
        fold between the conditions; ``called``.
    axes : sequence of matplotlib.axes.Axes
        Where to draw, one for each layer; they share the y axis.
    """
    looks = {False: (COLORS["none"], "."), True: (COLORS["sae"], "o")}
    for ax, (layer, table) in zip(axes, tables.items(), strict=True):
        for called, (color, marker) in looks.items():
            rows = table[table["called"] == called]
            name = "called" if called else "not called"
            ax.scatter(
                rows["motif"],
                rows["change"],
                s=20,
                color=color,
                marker=marker,
                label=f"{name} ({len(rows)})",
            )
        ax.axhline(0, color="0.8", lw=1, zorder=0)
        ax.set_title(layer)
        ax.set_xlabel("log2 fold at motif sites")
        ax.legend(fontsize=8, loc="lower right")
    axes[0].set_ylabel("log2 fold, with over without")
