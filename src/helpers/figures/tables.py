"""Tables of features whose rows other pages can point to."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from pandas.io.formats.style import Styler

__all__ = ["feature_anchor", "feature_table"]


def feature_anchor(layer: int, feature: int) -> str:
    """Return the name under which a feature can be linked to, in a page or as one."""
    return f"block{layer}-{feature}"


def feature_table(
    table: pd.DataFrame, *, pages: Mapping[tuple[int, int], str] | None = None
) -> Styler:
    """Show features as a table with an anchor in each row.

    Parameters
    ----------
    table : pandas.DataFrame
        Columns ``layer`` and ``feature``, which become one column of names; further
        columns are shown as they are, numbers with two digits.
    pages : mapping of (layer, feature) to str, optional
        Addresses of the pages of features that have one.

    Returns
    -------
    pandas.io.formats.style.Styler
        Renders as HTML in a notebook; ``03_cds.html#block3-17`` leads to a row.
    """
    pages = pages or {}

    def name(layer: int, feature: int) -> str:
        text = f"block {layer}, feature {feature}"
        if (layer, feature) in pages:
            text = f'<a href="{pages[layer, feature]}">{text}</a>'
        return f'<span id="{feature_anchor(layer, feature)}">{text}</span>'

    keys = table[["layer", "feature"]].itertuples(index=False)
    shown = table.drop(columns=["layer", "feature"])
    shown.insert(0, "feature", [name(*key) for key in keys])
    styled = shown.style.hide(axis="index").format(precision=2)
    # Names of motifs and processes come from files of other people.
    texts = [x for x in shown.select_dtypes(exclude="number") if x != "feature"]
    return styled.format(escape="html", subset=texts) if texts else styled
