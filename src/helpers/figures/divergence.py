"""Figures of notebook 03: claims, volcano, channels, layer curves, replication."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from scipy import stats

from helpers.figures.style import COLORS, PAIR_MARKERS, SEQUENTIAL, new_axes
from helpers.stages import is_called

__all__ = [
    "claims",
    "effects",
    "hurdle",
    "input_channels",
    "layer_curves",
    "naive_against_paired",
    "ranks",
    "replication",
    "volcano",
]

_CLASSES = [
    "untested",
    "none",
    "shared-vitro",
    "shared-vivo",
    "lineage-only",
    "discordant",
]
_MARKERS = dict(zip(_CLASSES, [".", ".", "o", "^", "s", "D"], strict=True))


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


def claims(ladder: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Plot how many features each claim holds for, one line per block of the model.

    Parameters
    ----------
    ladder : pandas.DataFrame
        From `helpers.calibration.claim_ladder`.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    """
    ax = new_axes(ax, 9, 0.33 * len(ladder) + 0.9)
    layers = [column for column in ladder if column not in ("replicates", "all")]
    y = np.arange(len(ladder))
    colors = plt.get_cmap(SEQUENTIAL)(np.linspace(0.1, 0.9, len(layers)))
    for layer, color, marker in zip(layers, colors, PAIR_MARKERS * 9, strict=False):
        x = ladder[layer].to_numpy(dtype=float)
        ax.plot(x, y, marker, color=color, label=f"block {layer}", ms=6)
    ax.hlines(y, 0, ladder[layers].astype(float).max(axis=1), color="0.85", zorder=0)
    for row in np.flatnonzero(ladder.index.str.startswith("placebo")):
        ax.axhspan(row - 0.5, row + 0.5, color=COLORS["control"], alpha=0.15, lw=0)
    labels = [
        f"{claim}  [{unit}]"
        for claim, unit in zip(ladder.index, ladder["replicates"], strict=True)
    ]
    ax.set_yticks(y, labels)
    ax.set_ylim(len(ladder) - 0.5, -0.5)
    ax.set_xlim(left=0)
    ax.set_xlabel("features called")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def ranks(scores: dict[str, pd.Series], limit: float, ax: Axes | None = None) -> Axes:
    """Plot absolute scores of the features of one block, strongest first.

    Parameters
    ----------
    scores : dict of str to pandas.Series
        Scores by name, at most four.
    limit : float
        Score that passes the threshold.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    """
    ax = new_axes(ax)
    styles = zip(
        [COLORS[name] for name in ("control", "sae", "in_vivo", "baseline")],
        ["--", "-", "-.", ":"],
        strict=True,
    )
    for (name, values), (color, line) in zip(scores.items(), styles, strict=False):
        size = np.sort(values.abs().dropna())[::-1]
        above = int((size > limit).sum())
        label = f"{name} ({above})"
        ax.plot(np.arange(1, len(size) + 1), size, line, color=color, label=label)
    ax.axhline(limit, color="0.4", lw=1, ls="--")
    ax.set_yscale("log")
    ax.set_xlabel("rank of the feature")
    ax.set_ylabel("absolute score")
    ax.legend(title="score (above threshold)", title_fontsize=9)
    return ax


def input_channels(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Plot what of each difference comes through the track and the motif activity.

    Parameters
    ----------
    table : pandas.DataFrame
        ``features`` of `helpers.calibration.Evidence`.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    """
    ax = new_axes(ax, 6.4, 4.0)
    called = is_called(table["class"])
    groups = {
        "not called": (table[~called], COLORS["none"], "."),
        "called, motif-driven": (
            table[called & (table["driver"] == "motif")],
            COLORS["baseline"],
            "s",
        ),
        "called, track-driven": (
            table[called & (table["driver"] == "track")],
            COLORS["sae"],
            "o",
        ),
    }
    for name, (rows, color, marker) in groups.items():
        ax.scatter(
            rows["delta_motif"],
            rows["delta_track"],
            s=12,
            color=color,
            marker=marker,
            lw=0,
            label=f"{name} ({len(rows)})",
        )
    limit = 1.1 * np.nanmax(table[["delta_motif", "delta_track"]].abs().to_numpy())
    ax.plot([-limit, limit], [-limit, limit], color="0.6", lw=1, ls="--")
    ax.plot([-limit, limit], [limit, -limit], color="0.6", lw=1, ls="--")
    _symmetric_log(ax, limit)
    ax.set_xlabel("through the motif activity")
    ax.set_ylabel("through the track")
    ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def layer_curves(
    counts: pd.DataFrame,
    held: pd.Series,
    probes: pd.DataFrame | None,
    lengths: pd.DataFrame,
    axes: Sequence[Axes],
) -> None:
    """Plot three ways to see context along the depth of the model.

    Parameters
    ----------
    counts : pandas.DataFrame
        ``table`` of `helpers.cds.LayerCurve`.
    held : pandas.Series
        Features called with the motif activity held, by layer.
    probes : pandas.DataFrame or None
        From `helpers.cds.probe_curve`; None leaves the panel empty.
    lengths : pandas.DataFrame
        From `helpers.cds.diffmean_curve`.
    axes : sequence of three matplotlib.axes.Axes
        Where to draw: dictionary, probe, mean difference.
    """
    error = [counts["n_called"] - counts["low"], counts["high"] - counts["n_called"]]
    axes[0].errorbar(
        counts.index,
        counts["n_called"],
        yerr=np.maximum(error, 0),
        fmt="o-",
        color=COLORS["sae"],
        label="shared CDS (95%)",
    )
    axes[0].plot(
        held.index, held, "s--", color=COLORS["control"], label="E1, motifs held"
    )
    axes[0].set_ylim(bottom=0)
    axes[0].set_ylabel("features called")
    axes[0].legend()
    if probes is not None:
        for name, rows in probes.groupby("held_out", sort=False):
            held_out = name if name == "chromosomes" else f"chromosomes and {name}"
            line = "o-" if name == "chromosomes" else "s--"
            axes[1].plot(rows["layer"], rows["auc"], line, label=held_out, ms=4)
        axes[1].legend(title="held out", title_fontsize=9)
    axes[1].axhline(0.5, color="0.4", lw=1, ls=":")
    axes[1].set_ylim(0, 1.05)
    axes[1].set_ylabel("AUC of a linear probe")
    axes[2].plot(lengths.index, lengths["diffmean"], "o-", label="DiffMean")
    axes[2].plot(
        lengths.index,
        lengths["by_chance"],
        "s--",
        color=COLORS["control"],
        label="signs flipped",
    )
    axes[2].set_ylim(bottom=0)
    axes[2].set_ylabel("length / SD within biosamples")
    axes[2].legend()
    for ax in axes:
        ax.set_xticks(list(counts.index))
        ax.set_xlabel("block of the model")


def hurdle(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Plot how often a feature fires against how strongly, for called features.

    Parameters
    ----------
    table : pandas.DataFrame
        Rows of `helpers.stages.score_context` with a ``readout``.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    """
    ax = new_axes(ax, 6, 3.8)
    shown = {
        "unresolved": (COLORS["none"], "."),
        "both": (COLORS["discordant"], "X"),
        "on-off": (COLORS["sae"], "o"),
        "up-down": (COLORS["in_vivo"], "^"),
    }
    for name, (color, marker) in shown.items():
        rows = table[table["readout"] == name]
        ax.scatter(
            rows["log_odds"],
            rows["log_intensity"],
            s=18,
            color=color,
            marker=marker,
            lw=0,
            label=f"{name} ({len(rows)})",
        )
    ax.axhline(0, color="0.8", lw=1, zorder=0)
    ax.axvline(0, color="0.8", lw=1, zorder=0)
    ax.set_xlabel("log odds of firing, in vivo over in vitro")
    ax.set_ylabel("log intensity when firing")
    ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def effects(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Plot effect sizes with intervals, as measured and with the motif activity held.

    Parameters
    ----------
    table : pandas.DataFrame
        Columns ``layer``, ``feature``, ``d_z`` and ``d_z_held``, each with ``_low``
        and ``_high``; one row per feature.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    """
    ax = new_axes(ax, 5.5, 0.32 * len(table) + 1)
    y = np.arange(len(table))
    for offset, name, color, marker, label in (
        (-0.15, "d_z", COLORS["baseline"], "s", "as measured"),
        (0.15, "d_z_held", COLORS["sae"], "o", "motif activity held"),
    ):
        middle = table[name].to_numpy()
        error = [middle - table[f"{name}_low"], table[f"{name}_high"] - middle]
        ax.errorbar(
            middle, y + offset, xerr=error, fmt=marker, color=color, ms=4, label=label
        )
    ax.axvline(0, color="0.8", lw=1, zorder=0)
    keys = zip(table["layer"], table["feature"], strict=True)
    ax.set_yticks(y, [f"block {layer}, {feature}" for layer, feature in keys])
    ax.set_ylim(len(table) - 0.5, -0.5)
    ax.set_xlabel("paired effect $d_z$ over genomic blocks (95% interval)")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return ax


def replication(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Plot effects on the chromosomes of selection against other chromosomes."""
    ax = new_axes(ax, 6.2, 4.0)
    _scatter(table, "delta", table["delta_test"].to_numpy(), ax)
    limit = 1.05 * np.nanmax(table[["delta", "delta_test"]].abs().to_numpy())
    ax.plot([-limit, limit], [-limit, limit], color="0.6", lw=1, ls="--")
    _symmetric_log(ax, limit)
    ax.set_xlabel("mean difference, select chromosomes")
    ax.set_ylabel("mean difference, test chromosomes")
    ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def _symmetric_log(ax: Axes, limit: float) -> None:
    """Put both axes on a symmetric log scale, with a tick for each power of ten."""
    top = np.floor(np.log10(limit))
    powers = 10.0 ** np.arange(top - 1, top + 1)
    ticks = [*-powers[::-1], 0, *powers]
    labels = [f"{tick:g}" for tick in ticks]
    ax.set_xscale("symlog", linthresh=powers[0])
    ax.set_yscale("symlog", linthresh=powers[0])
    ax.set_xticks(ticks, labels)
    ax.set_yticks(ticks, labels)
    ax.minorticks_off()
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit))
