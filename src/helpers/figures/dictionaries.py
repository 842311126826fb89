"""Figures of notebook 02: training, cards, densities."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from helpers.figures.style import COLORS, SEQUENTIAL, new_axes

__all__ = ["card_by_biosample", "densities", "training_curves"]


def training_curves(history: pd.DataFrame, column: str, ax: Axes | None = None) -> Axes:
    """Plot a column of the training history against the epoch, one line per block."""
    ax = new_axes(ax)
    layers = history.index.get_level_values("layer").unique()
    colors = sns.color_palette(SEQUENTIAL, len(layers))
    for color, layer in zip(colors, layers, strict=True):
        one = history.loc[layer]
        smooth = one[column].rolling(20, min_periods=1).mean()
        epoch = one["step"] / one["n_steps"] * (one["epoch"].max() + 1)
        ax.plot(epoch, smooth, color=color, lw=1.5, label=f"block {layer}")
    ax.set_xlabel("epoch")
    ax.legend()
    return ax


def card_by_biosample(
    cards: pd.DataFrame, column: str, contexts: dict[str, str], ax: Axes | None = None
) -> Axes:
    """Plot a column of the cards per block, one point per biosample.

    Parameters
    ----------
    cards : pandas.DataFrame
        From `helpers.stages.read_cards`.
    column : str
        Column of the card.
    contexts : dict
        Biosample to context, for the color.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    """
    ax = new_axes(ax)
    one = cards[column].reset_index()
    one = one[one["rows"] != "all"]
    for i, (name, rows) in enumerate(one.groupby("rows", sort=False)):
        context = contexts[name]
        ax.scatter(
            rows["layer"] + 0.06 * (i - len(contexts) / 2),
            rows[column],
            color=COLORS[context],
            marker="o" if context == "in_vitro" else "^",
            s=28,
        )
    for context, marker in (("in_vitro", "o"), ("in_vivo", "^")):
        ax.scatter([], [], color=COLORS[context], marker=marker, label=context)
    ax.set_xticks(sorted(one["layer"].unique()))
    ax.set_xlabel("block")
    ax.legend()
    return ax


def densities(features: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Plot how often features fire, one step histogram per block."""
    ax = new_axes(ax)
    layers = features.index.get_level_values("layer").unique()
    bins = np.linspace(-5, 0, 41)
    for color, layer in zip(
        sns.color_palette(SEQUENTIAL, len(layers)), layers, strict=True
    ):
        density = features.loc[layer, "density"].to_numpy()
        alive = density[density > 0]
        ax.hist(
            np.log10(alive),
            bins=bins,
            histtype="step",
            color=color,
            lw=1.5,
            label=f"block {layer} ({(density == 0).sum()} never fire)",
        )
    ax.set_xlabel("log10 share of tokens on which a feature fires")
    ax.set_ylabel("features")
    ax.legend()
    return ax
