"""Figures of notebook 02: training, cards, probes, fronts, seeds, planted worlds."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from helpers.figures.style import COLORS, SEQUENTIAL, new_axes

__all__ = [
    "card_by_biosample",
    "dead_curves",
    "densities",
    "front",
    "parents",
    "planted",
    "probes",
    "stability",
    "stability_by_density",
    "training_curves",
    "uncentered",
]

_CODES = {
    "features": ("sae", "o", "-"),
    "principal components": ("baseline", "s", "--"),
    "raw stream": ("control", "^", ":"),
}
_ARCHITECTURES = {"BatchTopK": ("sae", "o", "-"), "Matryoshka": ("in_vivo", "^", "--")}
_PEERS = {"dictionary_learning": ("in_vitro", "D"), "sparsify": ("baseline", "v")}


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


def _legend_above(ax: Axes) -> None:
    """Put the legend above the panel, where no point lies under it."""
    ax.legend(
        loc="lower right",
        bbox_to_anchor=(1.0, 0.98),
        ncols=2,
        columnspacing=1.0,
        handletextpad=0.5,
    )


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
    one = one[one["rows"].isin(list(contexts))]
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
    _legend_above(ax)
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


def probes(table: pd.DataFrame, target: str, ax: Axes | None = None) -> Axes:
    """Plot the AUC of probes against the numbers they read, one line per code.

    Parameters
    ----------
    table : pandas.DataFrame
        Of one block, from `helpers.dictionaries.probes`.
    target : str
        What is read.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    """
    ax = new_axes(ax)
    chosen = table[table["target"] == target]
    for code, (color, marker, line) in _CODES.items():
        one = chosen[chosen["code"] == code].sort_values("n_numbers")
        ax.plot(
            one["n_numbers"],
            one["auc"],
            color=COLORS[color],
            marker=marker,
            ls=line,
            ms=5,
            label=code,
        )
    ax.set_xscale("log", base=2)
    sizes = sorted(chosen["n_numbers"].unique())
    ax.set_xticks(sizes, [str(n) for n in sizes])
    ax.set_xlabel("numbers read")
    ax.set_title(target)
    return ax


def front(
    table: pd.DataFrame, peers: pd.DataFrame | None = None, ax: Axes | None = None
) -> Axes:
    """Plot error against sparsity: widths, Matryoshka, components, other packages.

    Parameters
    ----------
    table : pandas.DataFrame
        From `helpers.dictionaries.front`.
    peers : pandas.DataFrame, optional
        ``points`` of `helpers.dictionaries.peer_front`; drawn at the threshold tuned to
        k for BatchTopK, and as the package encodes for TopK.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    """
    ax = new_axes(ax)
    plain = table[table["architecture"] == "BatchTopK"]
    widths = sorted(plain["d_sae"].unique())
    colors = sns.color_palette(SEQUENTIAL, len(widths))
    for color, d_sae in zip(colors, widths, strict=True):
        one = plain[plain["d_sae"] == d_sae]
        label = f"BatchTopK, {d_sae} features"
        ax.plot(one["l0_mean"], one["fvu"], color=color, marker="o", ms=4, label=label)
    nested = table[table["architecture"] == "Matryoshka"]
    ax.plot(
        nested["l0_mean"],
        nested["fvu"],
        color=COLORS["in_vivo"],
        marker="^",
        ms=5,
        ls="--",
        label=f"Matryoshka, {nested['d_sae'].max()}",
    )
    dense = table[(table["architecture"] == "PCA") & (table["fvu"] > 1e-6)]
    ax.plot(
        dense["l0_mean"],
        dense["fvu"],
        color=COLORS["control"],
        marker="s",
        ms=4,
        ls=":",
        label="largest principal scores",
    )
    for name, (color, marker) in _PEERS.items():
        if peers is None or not len(peers):
            break
        rule = "tuned" if name == "dictionary_learning" else "own"
        one = peers[(peers["contender"] == name) & (peers["rule"] == rule)]
        ax.scatter(
            one["l0"],
            one["fvu"],
            color=COLORS[color],
            marker=marker,
            s=36,
            zorder=3,
            label=f"{name}, {one['d_sae'].max()}",
        )
    ax.set_xscale("log", base=2)
    ticks = [k for k in (1, 2, 4, 8, 16, 32, 64, 128) if k <= table["k"].max()]
    ticks = [k for k in ticks if k >= table["k"].min()]
    ax.set_xticks(ticks, [str(k) for k in ticks])
    ax.set_yscale("log")
    ax.set_xlabel("features per token (L0)")
    ax.set_ylabel("FVU")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax


def stability(features: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Plot how well features are found again by another seed, beside the null."""
    ax = new_axes(ax)
    bins = np.linspace(0, 1, 41)
    cosines = features[["cosine1", "cosine2"]].to_numpy().ravel()
    ax.hist(
        cosines,
        bins=bins,
        weights=np.full(len(cosines), 0.5),
        color=COLORS["sae"],
        alpha=0.6,
        label="another seed",
    )
    ax.hist(
        features["null"],
        bins=bins,
        histtype="step",
        color=COLORS["ceiling"],
        lw=1.5,
        label="scrambled features",
    )
    ax.axvline(0.7, color="0.6", lw=1, ls="--")
    ax.set_xlabel("cosine with the matched feature")
    ax.set_ylabel("features")
    ax.legend()
    return ax


def stability_by_density(features: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Plot the stability of features against how often they fire."""
    ax = new_axes(ax)
    alive = features[features["density"] > 0]
    ax.scatter(
        alive["density"], alive["stability"], s=10, color=COLORS["sae"], alpha=0.6
    )
    ax.axhline(features["null"].mean(), color=COLORS["ceiling"], lw=1, ls="--")
    ax.set_xscale("log")
    ax.set_xlabel("share of tokens on which a feature fires")
    ax.set_ylabel("mean cosine over seeds")
    return ax


def dead_curves(history: pd.DataFrame, column: str, ax: Axes | None = None) -> Axes:
    """Plot a column of centered runs, one line per way to rescue dead features."""
    ax = new_axes(ax)
    styles = ["-", "--", "-.", ":"]
    centered = history[history["centered"]]
    for style, (rescue, one) in zip(
        styles, centered.groupby("rescue", sort=False), strict=False
    ):
        smooth = one[column].rolling(10, min_periods=1).mean()
        ax.plot(one["step"], smooth, ls=style, lw=1.5, label=rescue)
    ax.set_xlabel("step")
    _legend_above(ax)
    return ax


def uncentered(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Plot what a large mean does to runs that do not subtract it."""
    ax = new_axes(ax)
    plain = table[~table["centered"]]
    for column, marker, label in (
        ("never_selected", "o", "never selected at a random start"),
        ("dead_percent", "s", "dead after training"),
    ):
        share = plain[column] * (100 if column == "never_selected" else 1)
        color = COLORS["control"] if column == "never_selected" else COLORS["in_vivo"]
        ax.plot(plain["gamma"], share, marker=marker, color=color, label=label)
    center = table[table["centered"] & (table["rescue"] == "auxiliary loss")].iloc[0]
    ax.axhline(
        center["dead_percent"],
        color=COLORS["sae"],
        ls="--",
        label="dead after training, centered",
    )
    ax.set_xlabel(r"$\gamma$ = |mean| / |SD|")
    ax.set_ylabel("% of features")
    ax.set_ylim(0, 105)
    ax.legend()
    return ax


def planted(table: pd.DataFrame, by: str, ax: Axes | None = None) -> Axes:
    """Plot the recovery of a planted dictionary against ``k`` or ``d_sae``, seed 0."""
    ax = new_axes(ax)
    first = table[table["seed"] == table["seed"].min()]
    other = "d_sae" if by == "k" else "k"
    fixed = first[other].mode()[0]
    for name, (color, marker, line) in _ARCHITECTURES.items():
        one = first[(first["architecture"] == name) & (first[other] == fixed)]
        one = one.sort_values(by)
        ax.plot(
            one[by],
            one["mean_max_cosine"],
            color=COLORS[color],
            marker=marker,
            ls=line,
            label=name,
        )
    values = sorted(first.loc[first[other] == fixed, by].unique())
    ax.set_xscale("log", base=2)
    ax.set_xticks(values, [str(v) for v in values])
    ax.set_xlabel({"k": "k", "d_sae": "features"}[by])
    ax.set_ylabel("mean largest cosine")
    ax.legend()
    return ax


def parents(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Plot Matryoshka minus BatchTopK with intervals over worlds.

    Parameters
    ----------
    table : pandas.DataFrame
        From `helpers.dictionaries.parent_recovery`.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    """
    ax = new_axes(ax)
    rows = table.reset_index()
    position = -np.arange(len(rows))
    reach = np.abs(rows[["low", "high"]].to_numpy().T - rows["difference"].to_numpy())
    ax.errorbar(
        rows["difference"], position, xerr=reach, fmt="o", color=COLORS["in_vivo"]
    )
    ax.axvline(0, color="0.6", lw=1)
    names = rows["score"].str.replace("_", " ") + ", k = " + rows["k"].astype(str)
    ax.set_yticks(position, names)
    ax.set_xlabel("Matryoshka minus BatchTopK")
    return ax
