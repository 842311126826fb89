"""One look for every figure: theme, colors by meaning, small shared pieces."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

__all__ = [
    "COLORS",
    "PAIR_MARKERS",
    "error_bars",
    "new_axes",
    "panel_labels",
    "set_style",
]

# Okabe-Ito colors by what they stand for; lines and markers differ as well.
COLORS = {
    "in_vitro": "#0072B2",
    "in_vivo": "#D55E00",
    "sae": "#009E73",
    "baseline": "#CC79A7",
    "control": "#7F7F7F",
    "ceiling": "#000000",
    "shared-vitro": "#0072B2",
    "shared-vivo": "#D55E00",
    "lineage-only": "#009E73",
    "discordant": "#CC79A7",
    "none": "#BFBFBF",
    "untested": "#E5E5E5",
}
PAIR_MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*"]
SIGNED = "vlag"
SEQUENTIAL = "cividis"


def set_style() -> None:
    """Set the theme of the book; call it once per notebook."""
    sns.set_theme(
        context="notebook",
        style="ticks",
        palette="colorblind",
        rc={
            "figure.dpi": 100,
            "figure.constrained_layout.use": True,
            "font.size": 10,
            "axes.titlesize": 11,
            "axes.labelsize": 10,
            "xtick.labelsize": 9,
            "ytick.labelsize": 9,
            "legend.fontsize": 9,
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
        },
    )


def new_axes(ax: Axes | None, width: float = 5.5, height: float = 3.6) -> Axes:
    """Return ``ax``, or the axes of a new figure of this size in inches."""
    return plt.subplots(figsize=(width, height))[1] if ax is None else ax


def error_bars(
    table: pd.DataFrame, value: str, low: str = "low", high: str = "high"
) -> np.ndarray:
    """Return error bars (2, n) around a column; an estimate may lie outside."""
    below, above = table[value] - table[low], table[high] - table[value]
    return np.maximum(np.stack([below, above]).astype(float), 0)


def panel_labels(axes: list[Axes]) -> None:
    """Write a, b, c, ... at the upper left of panels."""
    for letter, ax in zip("abcdefgh", axes, strict=False):
        ax.set_title(letter, loc="left", fontweight="bold")
