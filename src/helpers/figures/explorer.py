"""The feature explorer: static pages that need no kernel, and a live widget.

Both show the same index in the same order and the same view of a feature. Static pages
are plain files: one for each feature, and an index that shows a feature by loading a
script, which works from a disk and without a network.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

import ipywidgets as widgets
import pandas as pd

from helpers.explorer import BIOSAMPLES, HELD, Explorer
from helpers.figures._feature_view import (
    WORDS,
    feature_name,
    feature_view,
    number,
)
from helpers.figures.tables import feature_anchor

__all__ = [
    "SORTS",
    "arrange",
    "live_explorer",
    "page_addresses",
    "static_explorer",
    "write_pages",
]

SORTS = {
    "cds": "CDS",
    "d_z": "standardized effect",
    "d_z_held": "the same, motif activity held",
    "ablated": "effect of ablation on the output",
    "density": "density",
    "number": "block and number",
}
"""What an index can be sorted by: largest size first, unknown ones last."""

_FOLDER = "features"  # of the pages in the book


def page_addresses(features: pd.DataFrame) -> dict[tuple[int, int], str]:
    """Return where the pages of features lie, seen from a notebook's page of the book.

    Parameters
    ----------
    features : pandas.DataFrame
        Columns ``layer`` and ``feature``: features that have a page, which are all
        context features of a run unless they are too many.
    """
    keys = features[["layer", "feature"]].itertuples(index=False)
    return {tuple(key): f"../{_FOLDER}/{feature_anchor(*key)}.html" for key in keys}


def arrange(
    explorer: Explorer,
    *,
    block: int | None = None,
    lineage: str = "",
    claim: str = "",
    sort: str = "cds",
    search: str = "",
) -> pd.DataFrame:
    """Choose features and put them in order, as the static index does.

    Parameters
    ----------
    explorer : Explorer
        From `helpers.explorer.explore`.
    block : int, optional
        Block; all if not given.
    lineage : str
        Lineage behind the feature, whose CDS is then the one to sort by; any if empty.
    claim : str
        Claim the feature must support, of ``explorer.facts["claims"]``; any if empty.
    sort : str
        Key of `SORTS`.
    search : str
        Words that the row of the feature must hold, in any case.

    Returns
    -------
    pandas.DataFrame
        Rows of ``explorer.features``.

    Raises
    ------
    ValueError
        If there is no such claim or order.
    """
    if sort not in SORTS or claim not in ["", *explorer.facts["claims"]]:
        raise ValueError(
            f"sort must be one of {list(SORTS)} and claim of "
            f"{explorer.facts['claims']}; got {sort!r} and {claim!r}"
        )
    table = explorer.features
    if block is not None:
        table = table[table["layer"] == block]
    if lineage:
        table = table[[lineage in own.split(",") for own in table["behind"]]]
    if claim:
        table = table[table[claim]]
    words = search.lower().split()
    if words:
        texts = [" ".join(_cells(row)).lower() for row in table.to_dict("records")]
        table = table[[all(word in text for word in words) for text in texts]]
    if sort == "number":
        return table.sort_values(["layer", "feature"])
    column = f"cds_{lineage}" if sort == "cds" and lineage else sort
    order = table[column].abs().sort_values(ascending=False, kind="stable")
    return table.loc[order.index]


def _default(explorer: Explorer) -> tuple[str, str]:
    """Claim and order shown first: what is left after the last objection."""
    features, claims = explorer.features, explorer.facts["claims"]
    strict = (x for x in (BIOSAMPLES, HELD) if x in claims and features[x].any())
    return next(strict, ""), "d_z_held"


def _strictest(row: dict) -> str:
    short = {BIOSAMPLES: "E3, held", HELD: "E1, held"}
    return next((text for claim, text in short.items() if row.get(claim)), "E1")


def _cells(row: dict) -> list[str]:
    """Text of a row of the index."""
    names = [row[x] for x in ("motif", "state", "process") if row[x]]
    return [
        feature_name(row["layer"], row["feature"]),
        row["class"],
        f"{WORDS[row['context']]}, {row['lineage']}",
        ", ".join(names),
        number(row["cds"]),
        number(row["d_z"]),
        number(row["d_z_held"]),
        f"{100 * row['density']:.2g}%",
        _strictest(row),
    ]


_HEAD = (
    ("feature", ""),
    ("class", "cx-wide"),
    ("higher", ""),
    ("enriched for", ""),
    ("CDS", "n"),
    ("effect", "n cx-wide"),
    ("held", "n"),
    ("density", "n cx-wide"),
    ("claim", "cx-wide"),
)


def _resource(name: str) -> str:
    file = resources.files("helpers") / "resources" / "explorer" / name
    return file.read_text(encoding="utf-8")


# --- Static ---------------------------------------------------------------------------


def static_explorer(explorer: Explorer, base: str = "") -> str:
    """Return the explorer as HTML that needs no kernel, for a page or an output.

    Without scripts the index and the view of the first feature remain, and its links
    lead to the pages of features.

    Parameters
    ----------
    explorer : Explorer
        From `helpers.explorer.explore`.
    base : str
        Where the pages of `write_pages` lie, seen from this one; empty or ending in
        ``/``.
    """
    claim, sort = _default(explorer)
    first = arrange(explorer, claim=claim, sort=sort).iloc[0]
    key = first["layer"], first["feature"]
    rows = explorer.features.to_dict("records")
    known = {"base": base, "rows": [_row_data(row, explorer) for row in rows]}
    return Template(_resource("explorer.html")).substitute(
        style=_resource("explorer.css"),
        script=_resource("explorer.js"),
        blocks=_options(sorted(explorer.features["layer"].unique()), "all"),
        lineages=_options(explorer.facts["lineages"], "all"),
        claims=_claim_options(explorer, claim),
        sorts="".join(
            f'<option value="{x}"{_selected(x, sort)}>{text}</option>'
            for x, text in SORTS.items()
        ),
        head="".join(
            f'<th scope="col" class="{kind}">{text}</th>' for text, kind in _HEAD
        ),
        body="".join(_row_html(row, base) for row in rows),
        # No text of a file can end the script: < is written as an escape of JSON.
        data=json.dumps(known, separators=(",", ":")).replace("<", "\\u003c"),
        name=feature_anchor(*key),
        view=feature_view(explorer, *key),
    )


def _options(values: Sequence, every: str) -> str:
    options = "".join(
        f'<option value="{escape(str(x))}">{escape(str(x))}</option>' for x in values
    )
    return f'<option value="">{every}</option>{options}'


def _selected(value: str, chosen: str) -> str:
    return " selected" if value == chosen else ""


def _claim_options(explorer: Explorer, chosen: str) -> str:
    claims = explorer.facts["claims"]
    return f'<option value="">any ({len(explorer.features)})</option>' + "".join(
        f'<option value="{k}"{_selected(claim, chosen)}>{escape(claim)} '
        f"({explorer.features[claim].sum()})</option>"
        for k, claim in enumerate(claims)
    )


def _row_data(row: dict, explorer: Explorer) -> dict:
    """Collect what the script sorts and filters by."""

    def size(value: float) -> float | None:
        return None if pd.isna(value) else float(f"{abs(value):.8g}")

    lineages = explorer.facts["lineages"]
    return {
        "name": feature_anchor(row["layer"], row["feature"]),
        "label": feature_name(row["layer"], row["feature"]),
        "block": row["layer"],
        "feature": row["feature"],
        "behind": row["behind"].split(","),
        "claims": [k for k, x in enumerate(explorer.facts["claims"]) if row[x]],
        "sizes": {x: size(row[x]) for x in SORTS if x != "number"},
        "lineages": {x: size(row[f"cds_{x}"]) for x in lineages},
    }


def _row_html(row: dict, base: str) -> str:
    name = feature_anchor(row["layer"], row["feature"])
    first, *others = _cells(row)
    cells = "".join(
        f'<td class="{kind}">{escape(text)}</td>'
        for text, (_, kind) in zip(others, _HEAD[1:], strict=True)
    )
    link = f'<a href="{escape(base)}{name}.html">{escape(first)}</a>'
    return f'<tr id="{name}"><th scope="row">{link}</th>{cells}</tr>'


def write_pages(
    explorer: Explorer, folder: str | Path, *, home: str = "index.html"
) -> Path:
    """Write a page for every feature, and an index of them that stands alone.

    Parameters
    ----------
    explorer : Explorer
        From `helpers.explorer.explore`.
    folder : str or Path
        Where; pages that an earlier call left there are replaced together.
    home : str
        Page that the pages lead back to, seen from the folder.

    Returns
    -------
    Path
        The folder: ``index.html``, ``<name>.html`` and ``data/<name>.js`` for every
        feature, a name being that of `helpers.figures.tables.feature_anchor`.

    Raises
    ------
    ValueError
        If the folder holds anything that no call of this function wrote.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / _MARK).is_file():
        raise ValueError(
            f"{folder} holds files that are not pages of features; name a new folder"
        )
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "data").mkdir(parents=True)
    (partial / _MARK).write_text(_resource(_MARK), encoding="utf-8")
    page = Template(_resource("page.html"))
    table = explorer.features
    keys = list(zip(table["layer"].tolist(), table["feature"].tolist(), strict=True))
    names = [feature_anchor(*key) for key in keys]
    for k, (key, name) in enumerate(zip(keys, names, strict=True)):
        html = page.substitute(
            title=escape(feature_name(*key).capitalize()),
            home=escape(home),
            previous=f"{names[k - 1]}.html",
            next=f"{names[(k + 1) % len(names)]}.html",
            place=f"{k + 1} of {len(names)}, strongest CDS of its block first",
            description=escape(explorer.facts["description"]),
            view=feature_view(explorer, *key, level=1),
        )
        (partial / f"{name}.html").write_text(html, encoding="utf-8")
        view = json.dumps(feature_view(explorer, *key))
        script = f"receiveFeature({json.dumps(name)},{view});\n"
        (partial / "data" / f"{name}.js").write_text(script, encoding="utf-8")
    index = Template(_resource("index.html")).substitute(
        description=escape(explorer.facts["description"]),
        explorer=static_explorer(explorer),
    )
    (partial / "index.html").write_text(index, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


_MARK = "explorer.css"  # in every folder of pages


# --- Live -----------------------------------------------------------------------------


def live_explorer(explorer: Explorer) -> widgets.VBox:
    """Return the explorer as a widget, for a notebook with a kernel.

    Parameters
    ----------
    explorer : Explorer
        From `helpers.explorer.explore`.
    """
    claim, sort = _default(explorer)
    blocks = sorted(explorer.features["layer"].unique())
    claims = explorer.facts["claims"]
    controls = {
        "block": widgets.Dropdown(
            options=[("all", None), *((str(b), b) for b in blocks)]
        ),
        "lineage": widgets.Dropdown(
            options=[("all", ""), *((x, x) for x in explorer.facts["lineages"])]
        ),
        "claim": widgets.Dropdown(
            options=[("any", ""), *((x, x) for x in claims)], value=claim
        ),
        "sort": widgets.Dropdown(
            options=[(text, x) for x, text in SORTS.items()], value=sort
        ),
        "search": widgets.Text(placeholder="motif, class, number"),
    }
    for name, control in controls.items():
        control.description = name
    feature = widgets.Select(rows=8, description="feature", layout={"width": "auto"})
    count, view = widgets.HTML(), widgets.HTML()
    style = f"<style>{_resource('explorer.css')}</style>"

    def fill(_: object = None) -> None:
        chosen = arrange(explorer, **{x: y.value for x, y in controls.items()})
        rows = chosen.to_dict("records")
        count.value = f"{len(rows)} of {len(explorer.features)} features"
        feature.options = [
            (" | ".join(_cells(row)), (row["layer"], row["feature"])) for row in rows
        ]
        feature.index = 0 if rows else None

    def draw(_: object = None) -> None:
        if feature.value is not None:
            html = feature_view(explorer, *feature.value)
            view.value = f'{style}<div class="cx">{html}</div>'

    for control in controls.values():
        control.observe(fill, "value")
    feature.observe(draw, "value")
    fill()
    draw()
    box = widgets.Layout(flex_flow="row wrap")
    return widgets.VBox(
        [widgets.Box(list(controls.values()), layout=box), count, feature, view]
    )
