"""Figures of the book: data frame in, Axes out; one module per notebook."""

from helpers.figures.style import COLORS, new_axes, panel_labels, set_style

__all__ = ["COLORS", "new_axes", "panel_labels", "set_style"]
