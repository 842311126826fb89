"""The figure of the first page: one small panel for each answer of a run."""

from __future__ import annotations

import io
from collections.abc import Sequence
from html import escape

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from helpers.answers import Answer
from helpers.figures.style import COLORS, new_axes

__all__ = ["answer_panel", "overview_html"]

_MARKERS = {"sae": "o", "baseline": "s", "control": "D"}
_NONE = dict.fromkeys(("Creator", "Date", "Format", "Type"))  # no date in a page
_INK = "#262626"  # text and axes; becomes the color of the surrounding page


def answer_panel(answer: Answer, ax: Axes | None = None) -> Axes:
    """Plot the values of an answer one below the other, each under its name.

    Parameters
    ----------
    answer : helpers.answers.Answer
        What to draw.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    """
    ax = new_axes(ax, 2.4, 2.3)
    table = answer.table
    highest = table[["value", "high"]].max().max()
    lowest = min(0.0, table[["value", "low"]].min().min())
    for row, line in enumerate(table.itertuples(index=False)):
        color, marker = COLORS[line.kind], _MARKERS[line.kind]
        ax.plot([0, line.value], [row, row], color=color, lw=1, alpha=0.5, zorder=1)
        if np.isfinite(line.low):
            ax.plot([line.low, line.high], [row, row], color=color, lw=3, alpha=0.6)
        ax.plot(line.value, row, marker, color=color, ms=6, mec="white", mew=0.5)
        text = f"{line.value:,.0f}" if highest > 100 else f"{line.value:.1f}"
        right = np.nanmax([line.value, line.high, 0.0])
        near = {"textcoords": "offset points", "va": "center", "fontsize": 8.5}
        ax.annotate(line.label, (0, row), (3, 9), **near)
        ax.annotate(text, (right, row), (5, 0), fontweight="bold", **near)
    ax.axvline(0, color="0.6", lw=1, zorder=0)
    ax.set_ylim(max(len(table), 4) - 0.6, -0.7)
    ax.set_xlim(lowest - 0.03 * highest, 1.28 * highest)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    ax.set_xlabel(answer.unit, fontsize=8.5)
    ax.tick_params(labelsize=8)
    return ax


def overview_html(answers: Sequence[Answer], caption: str) -> str:
    """Return the answers as HTML: question, panel and sentence, side by side.

    Panels are drawn inline in the color of the text around them, so that they can be
    read on a light and on a dark page; on a narrow screen they stand below each other.

    Parameters
    ----------
    answers : sequence of Answer
        From `helpers.answers.answers`.
    caption : str
        What holds for all panels, such as what the data are.
    """
    cards = "".join(
        '<div style="flex:1 1 200px;min-width:0">'
        f'<p style="margin:0"><strong>{escape(answer.question)}</strong></p>'
        f"{_inline_svg(answer)}"
        '<p style="margin:.3em 0 0;font-size:.86em;line-height:1.4">'
        f"{escape(answer.verdict)}</p></div>"
        for answer in answers
    )
    return (
        '<figure class="overview" style="margin:0">'
        f'<div style="display:flex;flex-wrap:wrap;gap:1rem">{cards}</div>'
        '<figcaption style="margin-top:.6em;font-size:.86em;line-height:1.4">'
        f"{escape(caption)}</figcaption></figure>"
    )


def _inline_svg(answer: Answer) -> str:
    """Draw a panel as SVG text without fixed ink, with the values as its alt text."""
    options = {
        "svg.fonttype": "none",
        "svg.hashsalt": answer.question,
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "axes.edgecolor": _INK,
        "xtick.color": _INK,
        "font.family": "DejaVu Sans",
    }
    with mpl.rc_context(options):
        ax = answer_panel(answer)
        written = io.StringIO()
        ax.figure.savefig(written, format="svg", transparent=True, metadata=_NONE)
        plt.close(ax.figure)
    drawing = written.getvalue()
    drawing = drawing[drawing.index("<svg") :].replace(_INK, "currentColor")
    values = "; ".join(
        f"{line.label} {line.value:.1f}"
        + (f" ({line.low:.1f} to {line.high:.1f})" if np.isfinite(line.low) else "")
        for line in answer.table.itertuples(index=False)
    )
    alt = escape(f"{answer.question} {answer.unit}: {values}", quote=True)
    size = "width:100%;max-width:18rem;height:auto"
    start = f'<svg role="img" aria-label="{alt}" style="{size}" '
    return drawing.replace("<svg ", start, 1)
