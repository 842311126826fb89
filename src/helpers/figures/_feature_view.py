"""What is known of one feature as HTML: text, tables, and drawings that stretch.

Drawings are SVG of shapes alone; their labels are text beside them, so that they stay
readable at any width and can be searched, copied and read aloud. All text is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

import numpy as np

from helpers.explorer import BIOSAMPLES, HELD, Explorer
from helpers.figures._logo import logo_svg
from helpers.tissues import CONTEXTS

__all__ = ["WORDS", "feature_name", "feature_view", "number"]

WORDS = {"in_vitro": "in vitro", "in_vivo": "in vivo"}
_STROKE = {"in_vitro": "v", "in_vivo": "o"}
_ALPHA = 0.05
_MAX_LOG2 = 5.0  # fold drawn at most
_OUTCOMES = {
    "vivo-up": "tokens more open in vivo",
    "vitro-up": "tokens more open in vitro",
}


class _Mark(NamedTuple):
    """A value with its interval, and how it is drawn."""

    value: float
    low: float
    high: float
    stroke: str
    hollow: bool = False


def feature_name(layer: int, feature: int) -> str:
    """Return how a feature is called in text."""
    return f"block {layer}, feature {feature}"


def number(value: float, digits: int = 3) -> str:
    """Write a number with few digits; missing ones as a dash."""
    if value is None or not np.isfinite(value):
        return "–"
    return f"{value:.{digits}g}" if abs(value) < 1e3 else f"{value:,.0f}"


def feature_view(
    explorer: Explorer, layer: int, feature: int, *, level: int = 3
) -> str:
    """Return what is known of a feature as HTML, to stand in an element ``.cx``.

    Parameters
    ----------
    explorer : Explorer
        From `helpers.explorer.explore`.
    layer, feature : int
        Which feature.
    level : int, default 3
        Level of its heading; those of the parts are one below.

    Raises
    ------
    ValueError
        If the feature is not part of the explorer.
    """
    row = explorer.of("features", layer, feature)[0]
    title = escape(feature_name(layer, feature).capitalize())
    parts = [
        ("Difference between the contexts", _differences(explorer, row)),
        ("Where it fires most strongly", _loci(explorer, row)),
        ("Motifs", _motifs(explorer, row)),
        ("Chromatin states", _states(explorer, row)),
        ("Biological processes", _processes(explorer, row)),
        ("When it alone is ablated", _ablation(explorer, row)),
    ]
    below = f"h{level + 1}" if level > 1 else "h2"
    text = "".join(
        f'<{below} class="cx-part">{name}</{below}>{html}' for name, html in parts
    )
    return (
        f'<h{level} class="cx-title">{title}</h{level}>'
        f"{_summary(explorer, row)}{_claims(explorer, row)}{_facts(row)}{text}"
    )


# --- Text -----------------------------------------------------------------------------


def _summary(explorer: Explorer, row: dict) -> str:
    """Two or three sentences, what does not hold first."""
    sentences = []
    if not row[HELD]:
        share = row["motif_share"]
        through = f"; {share:.0%} of it came that way" if np.isfinite(share) else ""
        sentences.append(
            "Not called once the motif activity is held fixed: the difference comes "
            f"through one vector per biosample{through}."
            if row["driver"] == "motif"
            else "Not called once the motif activity is held fixed."
        )
    elif BIOSAMPLES in explorer.facts["claims"] and not row[BIOSAMPLES]:
        sentences.append(
            "Called with the motif activity held fixed, but not against the variation "
            "between biosamples."
        )
    if row[HELD] and row["d_z_held"] * row["d_z"] < 0:
        sentences.append(
            "With the motif activity held fixed the difference over all lineages "
            "points the other way."
        )
    sentences.append(
        f"Higher <strong>{WORDS[row['context']]}</strong> in {escape(row['lineage'])}."
    )
    names = [escape(row[x]) for x in ("motif", "state", "process") if row[x]]
    if names:
        sentences.append(f"Enriched for {', '.join(names)} (q &lt; 0.05).")
    elif row["annotated"]:
        sentences.append("No motif, state or process at q &lt; 0.05.")
    else:
        sentences.append(
            "Not annotated: only the 40 strongest of each class (E1) and block that "
            "fire on enough test tokens are."
        )
    if row["planted"]:
        sentences.append(
            f"Simulated truth: fires at sites of {escape(row['planted'])}."
        )
    return f"<p>{' '.join(sentences)}</p>"


def _claims(explorer: Explorer, row: dict) -> str:
    answers = {x: "yes" if row[x] else "no" for x in explorer.facts["claims"]}
    items = "".join(
        f'<li class="{answer}"><b>{answer}</b>{escape(claim)}</li>'
        for claim, answer in answers.items()
    )
    return f'<ol class="cx-claims" aria-label="Claims it supports">{items}</ol>'


def _facts(row: dict) -> str:
    facts = {
        "class (E1)": row["class"],
        "lineages behind it": row["behind"].replace(",", ", "),
        "CDS over all lineages": number(row["cds"]),
        "mean activation in vitro": number(row["mean_in_vitro"]),
        "mean activation in vivo": number(row["mean_in_vivo"]),
        "log2 fold, in vivo over in vitro": number(row["log2_fold"]),
        "tokens on which it fires": f"{100 * row['density']:.2g}%",
        "what changes": row["readout"] or "–",
        "share through motif activity": number(row["motif_share"], 2),
    }
    if "q_placebo" in row:
        facts["placebo rate"] = number(row["q_placebo"], 2)
    return f"""<dl class="cx-facts">{
        "".join(
            f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
            for name, value in facts.items()
        )
    }</dl>"""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str) -> str:
    """Return a table; all columns but the first hold numbers."""
    heads = "".join(
        f'<th scope="col"{"" if k == 0 else _NUMERIC}>{escape(x)}</th>'
        for k, x in enumerate(head)
    )
    lines = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td{_NUMERIC}>{escape(x)}</td>" for x in row[1:])
        + "</tr>"
        for row in rows
    )
    return (  # a phone scrolls the table, not the page
        f'<div class="cx-scroll" role="region" aria-label="{escape(caption)}" '
        f'tabindex="0"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


_NUMERIC = ' class="n"'


# --- Drawings -------------------------------------------------------------------------


def _key(items: Iterable[tuple[str, str]]) -> str:
    """Return a legend: shapes and what they mean."""
    return "".join(
        f'<span class="cx-key"><svg viewBox="0 0 20 10" aria-hidden="true">{shape}'
        f"</svg>{escape(text)}</span>"
        for shape, text in items
    )


def _dot(x: float, y: float, stroke: str, *, hollow: bool) -> str:
    """Draw a dot that stretching leaves round: a line of no length, round ends."""
    dot = f'<path class="dot {stroke}" d="M{x:.4g} {y:.4g}h0"/>'
    return dot + (f'<path class="hole" d="M{x:.4g} {y:.4g}h0"/>' if hollow else "")


def _intervals(
    rows: Sequence[tuple[str, Sequence[_Mark], str]], ends: tuple[float, float]
) -> str:
    """Draw dots with intervals around zero, a labelled row for each.

    Parameters
    ----------
    rows : sequence of (label, marks, text)
        Text repeats the values, for readers and screen readers.
    ends : tuple of float
        Range of the axis.
    """
    low, high = ends
    scale = 1000 / (high - low)

    def at(x: float) -> float:
        return float(np.clip((x - low) * scale, 0, 1000))

    lines = []
    for label, marks, text in rows:
        drawn = [f'<path class="zero" d="M{at(0):.4g} 0V20"/>']
        finite = [mark for mark in marks if np.isfinite(mark.value)]
        for k, mark in enumerate(finite):
            y = 20 * (k + 1) / (len(finite) + 1)
            if np.isfinite(mark.low):
                bar = f"M{at(mark.low):.4g} {y:.4g}H{at(mark.high):.4g}"
                drawn.append(f'<path class="{mark.stroke}" d="{bar}"/>')
            drawn.append(_dot(at(mark.value), y, mark.stroke, hollow=mark.hollow))
        lines.append(
            f'<div class="cx-row"><span>{escape(label)}</span>'
            '<svg viewBox="0 0 1000 20" preserveAspectRatio="none" aria-hidden="true">'
            f"{''.join(drawn)}</svg><span>{escape(text)}</span></div>"
        )
    lines.append(
        '<div class="cx-row" aria-hidden="true"><span></span><span class="cx-ends">'
        f"<span>{number(low, 2)}</span><span>{number(high, 2)}</span></span>"
        "<span></span></div>"
    )
    return "".join(lines)


def _range(values: Iterable[float]) -> tuple[float, float]:
    """Return the ends of an axis that holds zero and all finite values."""
    finite = [x for x in values if np.isfinite(x)]
    low, high = min([0.0, *finite]), max([0.0, *finite])
    margin = 0.04 * (high - low) or 1.0
    return low - margin, high + margin


def _figure(drawing: str, caption: str, key: str = "") -> str:
    return f"<figure>{drawing}<figcaption>{key}{caption}</figcaption></figure>"


def _differences(explorer: Explorer, row: dict) -> str:
    """Differences by lineage on both sets of chromosomes, and with the vector held."""
    effects = explorer.of("effects", row["layer"], row["feature"])
    rows, splits = [], {"select": True, "test": False}
    for lineage in explorer.facts["lineages"]:
        own = {x["split"]: x for x in effects if x["lineage"] == lineage}
        marks = [
            _Mark(*(own[split][x] for x in ("delta", "low", "high")), "s", hollow)
            for split, hollow in splits.items()
        ]
        cds = [number(own[split]["cds"]) for split in splits]
        text = f"CDS {cds[0]}, test {cds[1]}"
        rows.append((lineage, marks, text))
    ends = _range(x for _, marks, _ in rows for mark in marks for x in mark[:3])
    key = _key(
        [
            (_dot(10, 5, "s", hollow=True), "chromosomes it was chosen on"),
            (_dot(10, 5, "s", hollow=False), "test chromosomes"),
        ]
    )
    by_lineage = _figure(
        _intervals(rows, ends),
        "Mean activation per token, in vivo minus in vitro, with 95% intervals over "
        "genomic blocks.",
        key,
    )
    marks = {
        "as measured": _Mark(row["d_z"], row["d_z_low"], row["d_z_high"], "s"),
        "motif activity held": _Mark(
            row["d_z_held"], row["d_z_held_low"], row["d_z_held_high"], "s"
        ),
    }
    rows = [
        (
            name,
            [mark],
            f"{number(mark.value, 2)} ({number(mark.low, 2)} to "
            f"{number(mark.high, 2)})",
        )
        for name, mark in marks.items()
    ]
    ends = _range(x for mark in marks.values() for x in mark[:3])
    return by_lineage + _figure(
        _intervals(rows, ends),
        "Standardized difference over all lineages, with 95% intervals: what is left "
        "when both contexts see the same motif activity.",
    )


def _loci(explorer: Explorer, row: dict) -> str:
    """Activation and accessibility of both contexts at the top loci."""
    loci = explorer.of("loci", row["layer"], row["feature"])
    if not loci:
        return "<p>It is silent on the test chromosomes.</p>"
    key = _key(
        [
            ('<path class="v area" d="M0 10V2H20V10"/>', "in vitro"),
            ('<path class="o" d="M0 5H20"/>', "in vivo"),
            ('<rect class="peak" x="7" width="6" height="10"/>', "strongest token"),
        ]
    )
    tops = {
        name: max(
            max(locus[f"{name}_{context}"]) for locus in loci for context in CONTEXTS
        )
        for name in ("acts", "signal")
    }
    drawings = [_locus(locus, tops) for locus in loci]
    return _figure(
        "".join(drawings),
        f"Activation, and measured accessibility (log1p of the signal), in "
        f"{escape(row['lineage'])} along test windows where it is strongest "
        f"{WORDS[row['context']]}; one scale for all windows.",
        key,
    )


def _locus(locus: dict, tops: dict[str, float]) -> str:
    place = f"{locus['chrom']}:{locus['start']:,}-{locus['end']:,}"
    tracks = []
    for name, text in (("acts", "activation"), ("signal", "accessibility")):
        at_peak = [locus[f"{name}_{c}"][locus["peak"]] for c in CONTEXTS]
        shapes = [f'<rect class="peak" x="{locus["peak"]}" width="1" height="100"/>']
        for context in CONTEXTS:
            path = _steps(locus[f"{name}_{context}"], tops[name])
            n = len(locus[f"{name}_{context}"])
            filled = f'<path class="area" d="{path}V100H0Z"/>'
            shapes.append(filled if context == "in_vitro" else "")
            shapes.append(f'<path class="{_STROKE[context]}" d="{path}"/>')
        alt = (
            f"{text.capitalize()} at {place}: at the strongest token "
            f"{number(at_peak[0])} in vitro, {number(at_peak[1])} in vivo"
        )
        tracks.append(
            f'<div class="cx-row cx-track"><span>{text}<br><span class="cx-note">0 to '
            f"{number(tops[name])}</span></span>"
            f'<svg viewBox="0 0 {n} 100" preserveAspectRatio="none" role="img" '
            f'aria-label="{escape(alt)}">{"".join(shapes)}</svg></div>'
        )
    ends = (
        f'<div class="cx-row cx-track"><span></span><span class="cx-ends">'
        f"<span>{locus['start']:,}</span><span>{locus['end']:,}</span></span></div>"
    )
    return (
        f'<div class="cx-locus"><strong>{locus["rank"]}. {escape(place)}</strong>'
        f"{''.join(tracks)}{ends}</div>"
    )


def _steps(values: Sequence[float], top: float) -> str:
    """Path of a step curve, one unit per token, 100 units high."""
    height = np.rint(100 - 98 * np.asarray(values) / max(top, 1e-12)).astype(int)
    moves, last = [f"M0 {height[0]}"], height[0]
    run = 0
    for y in height:
        if y != last:
            moves.append(f"h{run}V{y}")
            last, run = y, 0
        run += 1
    return "".join(moves) + f"h{run}"


def _motifs(explorer: Explorer, row: dict) -> str:
    logos = explorer.of("logos", row["layer"], row["feature"])
    found = _found(explorer, row, "motif")
    if not found:
        return _untested(explorer, "motif")
    drawings = "".join(
        f"<figure>{logo_svg(np.stack(x['probabilities']), _logo_alt(x))}"
        f"<figcaption>{_logo_text(x)}</figcaption></figure>"
        for x in logos
    )
    rows = [
        (
            x["name"],
            f"{x['hits']} of {x['n_regions']}",
            number(x["fold"], 2),
            number(x["q_value"], 2),
        )
        for x in found
    ]
    table = _table(["best archetypes", "regions", "fold", "q"], rows, "Motifs")
    return (
        f'<div class="cx-logos">{drawings}</div>{table}<p class="cx-note">Fold over '
        "tokens of the same GC content and accessibility in the same biosample; q over "
        "all features.</p>"
    )


def _logo_alt(logo: dict) -> str:
    best = "".join("ACGT"[np.argmax(p)] for p in logo["probabilities"])
    return f"Sequence logo of the {logo['source']} motif; most likely bases {best}"


def _logo_text(logo: dict) -> str:
    if logo["source"] == "learned":
        return f"learned from its regions alone, {escape(logo['text'])}"
    return f"known: {escape(logo['name'])} ({escape(logo['text'])})"


def _found(explorer: Explorer, row: dict, level: str) -> list[dict]:
    """Return what the feature was tested for at a level, best first."""
    rows = explorer.of("found", row["layer"], row["feature"])
    return [x for x in rows if x["level"] == level]


def _states(explorer: Explorer, row: dict) -> str:
    found = [x for x in _found(explorer, row, "state") if x["rate_all"] > 0]
    if not found:
        return _untested(explorer, "state")
    rows = []
    for x in sorted(found, key=lambda x: -x["hits"]):
        share = x["hits"] / x["n_regions"] if x["n_regions"] else np.nan
        with np.errstate(divide="ignore"):
            log2 = np.log2([share / x["rate_all"], x["fold"]])
        over_all, matched = np.clip(log2, -_MAX_LOG2, _MAX_LOG2)
        marks = [
            _Mark(over_all, np.nan, np.nan, "s", hollow=True),
            _Mark(matched, np.nan, np.nan, "s"),
        ]
        sure = f", q = {number(x['q_value'], 2)}" if x["q_value"] < 1 else ""
        text = f"{x['hits']} regions, fold {number(x['fold'], 2)}{sure}"
        rows.append((x["name"], marks, text))
    key = _key(
        [
            (_dot(10, 5, "s", hollow=True), "over all tokens"),
            (
                _dot(10, 5, "s", hollow=False),
                "over tokens of the same GC and accessibility",
            ),
        ]
    )
    return _figure(
        _intervals(rows, (-_MAX_LOG2, _MAX_LOG2)),
        f"log2 fold of its strongest regions in each state; beyond ±{_MAX_LOG2:g}, and "
        "where there is no region, at the end of the axis.",
        key,
    )


def _processes(explorer: Explorer, row: dict) -> str:
    found = _found(explorer, row, "go")
    if not found:
        if row["annotated"] and "go" not in explorer.facts["skipped"]:
            return "<p>None at p &le; 0.05 over regions.</p>"
        return _untested(explorer, "go")
    rows = [
        (x["name"], *(number(x[y], 2) for y in ("fold", "q_shift", "q_value")))
        for x in found
    ]
    head = ["process", "fold", "q, shifts", "q, regions and genes"]
    return _table(head, rows, "Biological processes") + (
        '<p class="cx-note">Best of those with p &le; 0.05 over regions. The first q '
        "compares with circular shifts of the feature along each chromosome.</p>"
    )


def _untested(explorer: Explorer, level: str) -> str:
    reason = explorer.facts["skipped"].get(level, "this feature is not annotated")
    return f"<p>Not tested: {escape(reason)}.</p>"


def _ablation(explorer: Explorer, row: dict) -> str:
    """Effect on the output of giving the feature its in vitro activations."""
    found = explorer.of("ablated", row["layer"], row["feature"])
    if not found:
        return (
            "<p>Not measured: only the features selected for ablation in each block, "
            "the strongest by CDS, are ablated one by one.</p>"
        )
    rows = []
    for outcome, text in _OUTCOMES.items():
        for x in (x for x in found if x["outcome"] == outcome):
            value, low, high = (x[y] for y in ("effect", "low", "high"))
            mark = _Mark(value, low, high, _STROKE[f"in_{outcome[:-3]}"])
            interval = f"{number(value, 2)} ({number(low, 2)} to {number(high, 2)})"
            rows.append((f"{x['lineage']}, {text}", [mark], interval))
    ends = _range(x for _, marks, _ in rows for mark in marks for x in mark[:3])
    return _figure(
        _intervals(rows, ends),
        "Change of the mean log1p prediction over such tokens when the in vivo input "
        "gets the in vitro activations of this feature alone; 95% intervals over "
        "genomic blocks of test chromosomes.",
    )
