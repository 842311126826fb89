"""Figures of notebook 06: units of replication, power, blocks, placebo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from helpers.calibration import power
from helpers.figures.style import COLORS, PAIR_MARKERS, new_axes

__all__ = ["block_lengths", "p_values", "placebo", "power_curves", "units"]

_LINES = ["-", "--", "-.", ":"]


def units(shares: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Plot the share of p-values below 0.05 by unit of replication, world by world.

    Parameters
    ----------
    shares : pandas.DataFrame
        Indexed by unit, a column for each world.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    """
    ax = new_axes(ax)
    y = np.arange(len(shares))
    for (name, values), marker in zip(shares.items(), PAIR_MARKERS, strict=False):
        ax.plot(values.to_numpy(), y, marker, label=name)
    ax.axvline(0.05, color="0.4", ls="--", lw=1)
    ax.set_yticks(y, shares.index)
    ax.set_ylim(len(shares) - 0.5, -0.5)
    ax.set_xlim(0, 1)
    ax.set_xlabel("share of p < 0.05")
    ax.legend(fontsize=8, loc="lower right")
    return ax


def p_values(tests: Mapping[str, np.ndarray], ax: Axes | None = None) -> Axes:
    """Plot p-values of tests without effect against the uniform distribution.

    Parameters
    ----------
    tests : mapping of str to array
        p-values by name.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    """
    ax = new_axes(ax)
    for (name, p), line in zip(tests.items(), _LINES, strict=False):
        p = np.sort(np.asarray(p))
        ax.plot((np.arange(len(p)) + 0.5) / len(p), p, line, label=name)
    ax.plot([0, 1], [0, 1], color="0.4", ls="--", lw=1)
    ax.set_xlabel("expected p")
    ax.set_ylabel("observed p")
    ax.legend()
    return ax


def power_curves(
    n_blocks: Sequence[int], *, n_tests: int, ax: Axes | None = None
) -> Axes:
    """Plot the power of the paired block test after Bonferroni, by effect.

    Parameters
    ----------
    n_blocks : sequence of int
        Numbers of genomic blocks.
    n_tests : int
        Features tested.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    """
    ax = new_axes(ax)
    effect = np.linspace(0, 1.8, 181)
    for i, blocks in enumerate(n_blocks):
        curve = power(effect, blocks, n_tests=n_tests)
        ax.plot(effect, curve, _LINES[i % len(_LINES)], label=f"{blocks} blocks")
    ax.axhline(0.8, color="0.4", ls="--", lw=1)
    ax.set_xlabel("paired effect $d_z$")
    ax.set_ylabel("power")
    ax.legend()
    return ax


def block_lengths(
    curves: Mapping[str, pd.DataFrame], used: float, axes: Sequence[Axes]
) -> None:
    """Plot autocorrelation and calls against the length of a genomic block.

    Parameters
    ----------
    curves : mapping of str to pandas.DataFrame
        Tables of `helpers.calibration.block_length_curve`, by name.
    used : float
        Median extent of the blocks that the study uses, bp.
    axes : sequence of two matplotlib.axes.Axes
        Where to draw.
    """
    colors = [COLORS["baseline"], COLORS["sae"]]
    for (name, curve), color in zip(curves.items(), colors, strict=False):
        kb = curve.index / 1000
        axes[0].plot(
            kb, curve["autocorrelation"], "o-", color=color, label=f"windows, {name}"
        )
        axes[0].plot(
            kb,
            curve["adjacent"],
            "s--",
            color=color,
            mfc="white",
            label=f"adjacent blocks, {name}",
        )
        axes[1].plot(kb, curve["n_called"], "o-", color=color, label=name)
    axes[0].axhline(0.1, color="0.4", ls="--", lw=1)
    axes[0].set_ylabel("autocorrelation of differences")
    axes[0].set_ylim(top=max(0.2, axes[0].get_ylim()[1] * 1.3))  # room for the legend
    axes[1].set_ylim(bottom=0)
    axes[1].set_ylabel("features called")
    for ax in axes:
        ax.axvline(used / 1000, color="0.7", lw=1, ls=":")
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        ax.set_xlabel("length of a block (kb); dotted: in use")
        ax.legend(fontsize=8)


def placebo(counts: pd.DataFrame, decoys: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Plot calls between contexts beside calls between replicates of one context.

    Parameters
    ----------
    counts : pandas.DataFrame
        ``counts`` of `helpers.calibration.Evidence`.
    decoys : pandas.DataFrame
        Its ``placebo``: one point per contrast.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    """
    ax = new_axes(ax, 6.5, 3.6)
    shown = {
        "E1": (COLORS["baseline"], "s", "E1"),
        "E1, held": (COLORS["sae"], "o", "E1, motif activity held"),
        "E3, held": (COLORS["in_vivo"], "^", "E3, motif activity held"),
    }
    for column, (color, marker, label) in shown.items():
        ax.plot(counts.index, counts[column], marker, color=color, ms=8, label=label)
    for i, (layer, rows) in enumerate(decoys.groupby("layer")):
        spread = np.linspace(-0.18, 0.18, len(rows))
        ax.plot(
            layer + spread,
            rows["n_called"],
            ".",
            color=COLORS["control"],
            zorder=0,
            label=f"placebo contrast (n = {len(rows)} per block)" if i == 0 else None,
        )
    ax.set_xticks(list(counts.index))
    ax.set_ylim(bottom=0)
    ax.set_xlabel("block of the model")
    ax.set_ylabel("features called")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return ax
