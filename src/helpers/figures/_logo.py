"""Sequence logos as SVG that needs no font."""

from __future__ import annotations

from functools import cache
from html import escape

import numpy as np
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path as Outline
from matplotlib.textpath import TextPath

__all__ = ["logo_svg"]

_BITS = 2.0  # height of a logo
_HEIGHT, _WIDTH = 100, 44  # of the drawing and of a position
_LEAST = 0.02  # bits below which a letter is not drawn
_COMMANDS = {
    Outline.MOVETO: "M",
    Outline.LINETO: "L",
    Outline.CURVE3: "Q",
    Outline.CURVE4: "C",
}


def logo_svg(probabilities: np.ndarray, alt: str) -> str:
    """Return a logo, letters as high as their share of the information.

    Parameters
    ----------
    probabilities : numpy.ndarray, shape (width, 4)
        Probability of A, C, G, T at each position.
    alt : str
        Alternative text.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    bits = _BITS + np.where(p > 0, p * np.log2(np.where(p > 0, p, 1)), 0).sum(axis=1)
    shapes = []
    for position, heights in enumerate(p * bits[:, None]):
        y = float(_HEIGHT)
        for i in np.argsort(heights):
            if heights[i] < _LEAST:
                continue
            height = heights[i] / _BITS * _HEIGHT
            y -= height
            base, x, scale = "ACGT"[i], position * _WIDTH, height / _HEIGHT
            place = f"translate({x} {y:.1f})scale(.42 {scale:.3f})"
            shapes.append(
                f'<path class="{base}" transform="{place}" d="{_letter(base)}"/>'
            )
    box = f"0 0 {len(p) * _WIDTH} {_HEIGHT + 3}"
    line = f'<path class="zero" d="M0 {_HEIGHT + 1}H{len(p) * _WIDTH}"/>'
    return (
        f'<svg class="cx-logo" viewBox="{box}" role="img" aria-label="{escape(alt)}">'
        f"{''.join(shapes)}{line}</svg>"
    )


@cache
def _letter(base: str) -> str:
    """Return the outline of a letter in a box of 100 by 100, y downwards."""
    font = FontProperties(family="DejaVu Sans Mono", weight="bold")
    outline = TextPath((0, 0), base, size=1, prop=font)
    box = outline.get_extents()
    size = np.array([box.width, box.height])
    parts = []
    for points, code in outline.iter_segments():
        if code == Outline.CLOSEPOLY:
            parts.append("Z")
            continue
        xy = (np.reshape(points, (-1, 2)) - [box.x0, box.y0]) / size
        xy[:, 1] = 1 - xy[:, 1]
        numbers = " ".join(str(x) for x in np.rint(100 * xy).astype(int).ravel())
        parts.append(_COMMANDS[code] + numbers)
    return "".join(parts)
