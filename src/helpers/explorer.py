"""What is known of every context feature, gathered for readers who want to browse.

Nothing is tested here: scores, evidence, annotation and effects come from the stages
that made them, and only the places where a feature fires most strongly are read again
from the streams. `helpers.figures.explorer` turns this into pages and widgets. Loci
hold one row per place; its tracks are lists over tokens of 128 bp.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from helpers import causal, findings, motifs, truth
from helpers.annotation import Annotation, annotate, strongest_lineage
from helpers.annotation._regions import inner_tokens
from helpers.calibration import Evidence, gather_evidence
from helpers.findings import KEY
from helpers.runs import code_digest
from helpers.stages import (
    Study,
    feature_acts,
    is_called,
    read_cards,
    score_context,
)
from helpers.tissues import CONTEXTS

__all__ = [
    "BIOSAMPLES",
    "CLAIMS",
    "HELD",
    "Explorer",
    "claims_of",
    "context_features",
    "explore",
    "lineage_effects",
    "strongest_loci",
]

_TABLES = ("features", "effects", "loci", "found", "logos", "ablated")
MAX_FEATURES = 1200  # with a page, over all blocks: keeps the pages below 40 MB
N_LOCI = 3
SPAN = 64  # tokens shown around a locus, 8 kb
_CHUNK = 32  # windows whose activations are held at a time
_ALPHA = 0.05
_N_TERMS = 5  # biological processes listed
_N_MOTIFS = 3

# Rows of `helpers.calibration.claim_ladder` that can be asked of a single feature, from
# the first objection to the last.
FIRST, TRACK = "E1: in any class", "E1, not driven by the motif activity"
HELD = "E1, motif activity held"
PLACEBO, BIOSAMPLES = "E1 held, placebo rate at most 5%", "E3, motif activity held"
CLAIMS = (FIRST, TRACK, HELD, PLACEBO, BIOSAMPLES)


@dataclass(frozen=True)
class Explorer:
    """Everything a reader can look up, tables with columns ``layer`` and ``feature``.

    Attributes
    ----------
    features : pandas.DataFrame
        One row per context feature, see `context_features`; also ``density``, the share
        of tokens on which it fires, and ``planted``, name and role of the factor at
        whose sites it fires in simulated data, or empty.
    effects : pandas.DataFrame
        From `lineage_effects`.
    loci : pandas.DataFrame
        From `strongest_loci`.
    found : pandas.DataFrame
        What annotated features are enriched for: the rows of
        `helpers.annotation.Annotation.table` of called features that are shown (all
        states, the three best motifs, five processes).
    logos : pandas.DataFrame
        Motifs to draw: ``layer``, ``feature``, ``source`` (``known`` or ``learned``),
        ``name``, ``text`` and ``probabilities``, a list of rows A, C, G, T.
    ablated : pandas.DataFrame
        From `helpers.causal.single_features`.
    facts : dict
        ``description`` of the data, ``lineages``, ``claims`` that can be answered,
        ``called``: number of context features, more than there are rows if there were
        too many for a page each, ``skipped`` levels of the annotation and why.
    """

    features: pd.DataFrame
    effects: pd.DataFrame
    loci: pd.DataFrame
    found: pd.DataFrame
    logos: pd.DataFrame
    ablated: pd.DataFrame
    facts: dict

    def of(self, table: str, layer: int, feature: int) -> list[dict]:
        """Return the rows of a table that belong to one feature, as dictionaries.

        Raises
        ------
        ValueError
            If the feature is not part of the explorer.
        """
        if (layer, feature) not in self._rows["features"]:
            raise ValueError(f"block {layer} has no context feature {feature} here")
        return self._rows[table].get((layer, feature), [])

    @cached_property
    def _rows(self) -> dict[str, dict[tuple[int, int], list[dict]]]:
        """Rows of every feature, by table: pages ask for them thousands of times."""
        found = {}
        for name in _TABLES:
            of_table = found[name] = {}
            for row in getattr(self, name).to_dict("records"):
                of_table.setdefault((row["layer"], row["feature"]), []).append(row)
        return found


def explore(study: Study) -> Explorer:
    """Gather what the pages of a run say of its context features, made once.

    Parameters
    ----------
    study : Study
        The run; stages that are missing are made.

    Returns
    -------
    Explorer
    """
    scores, again = score_context(study), score_context(study, "test")
    evidence, annotated = gather_evidence(study), annotate(study)
    causal.register(study)  # what is there already stays
    ablated = causal.single_features(study)

    def build(folder: Path) -> None:
        features = context_features(scores, evidence, annotated, ablated)
        n_called = len(features)
        features = _within_budget(features)
        cards = read_cards(study, "features").reset_index(names=KEY)
        features = features.merge(cards[[*KEY, "density"]], on=KEY, how="left")
        loci = strongest_loci(study, features)
        features["planted"] = _planted(study, features)
        tables = {
            "features": features,
            "effects": lineage_effects(study, {"select": scores, "test": again}),
            "loci": loci,
            "found": _shown(annotated),
            "logos": _logos(study, annotated),
            "ablated": ablated,
        }
        folder.mkdir()
        keys = features[KEY]
        for name, table in tables.items():
            mine = table if name == "features" else table.merge(keys, on=KEY)
            mine.to_parquet(folder / f"{name}.parquet")
        facts = {
            "description": study.description,
            "lineages": study.lineages,
            "claims": [claim for claim in CLAIMS if claim in features],
            "called": n_called,
            "skipped": annotated.skipped,
        }
        (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")

    made = ["cds.parquet", "cds_test.parquet", "evidence_select", "annotation.parquet"]
    recipe = {
        "tables": [study.run.key(x) for x in [*made, "single_features.parquet"]],
        "description": study.description,
        "sizes": [MAX_FEATURES, N_LOCI, SPAN, _N_TERMS, _N_MOTIFS],
        "code": code_digest("explorer", "findings", "motifs", "truth"),
    }
    folder = study.run.artefact("explorer", recipe, build)
    read = {name: pd.read_parquet(folder / f"{name}.parquet") for name in _TABLES}
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    return Explorer(**read, facts=facts)


def claims_of(scores: pd.DataFrame, evidence: Evidence) -> pd.DataFrame:
    """Say of every feature which claims it supports.

    Parameters
    ----------
    scores : pandas.DataFrame
        From `helpers.stages.score_context`.
    evidence : Evidence
        From `helpers.calibration.gather_evidence`, of the same run.

    Returns
    -------
    pandas.DataFrame
        ``layer``, ``feature`` and a bool column for each of `CLAIMS`; the last two only
        with replicates. Sums by layer are rows of `helpers.calibration.claim_ladder`.
    """
    table = evidence.features
    first = is_called(scores["class"]).to_numpy()
    held = is_called(table["class_held"])
    found = [first, first & (table["driver"] != "motif"), held]
    if "q_placebo" in table:
        found += [table["q_placebo"] <= _ALPHA, is_called(table["class_e3_held"])]
    columns = dict(zip(CLAIMS, found, strict=False))
    return table[KEY].assign(**columns)


def context_features(
    scores: pd.DataFrame,
    evidence: Evidence,
    annotated: Annotation,
    ablated: pd.DataFrame,
) -> pd.DataFrame:
    """List the features that any claim of `CLAIMS` is made of.

    Parameters
    ----------
    scores, evidence, annotated, ablated
        Results of `helpers.stages.score_context`,
        `helpers.calibration.gather_evidence`, `helpers.annotation.annotate` and
        `helpers.causal.single_features`.

    Returns
    -------
    pandas.DataFrame
        The columns of `scores`; the claims as bool columns; ``class_held``,
        ``d_z_held`` with ``_low`` and ``_high``, ``motif_share``, ``driver``,
        ``q_placebo`` (with replicates); ``lineage`` in which a feature differs most and
        ``context`` in which it is higher there, chosen as
        `helpers.annotation.select_features` does, and ``behind``, the lineages in
        which it was called by the first claim it supports; ``annotated``; ``motif``,
        ``state`` and ``process``, the best at q < 0.05 or empty; ``ablated``, the
        effect on ``vivo-up`` tokens of `lineage` of ablating it alone. Strongest score
        first within a block.
    """
    own = ["motif_share", "driver", "class_held", "lineages_held", "d_z_held"]
    own += ["d_z_held_low", "d_z_held_high"]
    own += [x for x in ("q_placebo", "lineages_e3_held") if x in evidence.features]
    table = scores.merge(evidence.features[[*KEY, *own]], on=KEY)
    claims = claims_of(scores, evidence)
    table = table.merge(claims, on=KEY)
    names = [x for x in CLAIMS if x in claims]
    table = table[table[names].any(axis=1)].reset_index(drop=True)
    rows = table.to_dict("records")
    table["behind"] = [_lineages_behind(row) for row in rows]
    where = [
        strongest_lineage(row, behind)
        for row, behind in zip(rows, table["behind"], strict=True)
    ]
    table["lineage"] = [lineage for lineage, _ in where]
    table["context"] = [CONTEXTS[side] for _, side in where]

    called = annotated.features[annotated.features["set"] == "called"]
    index = pd.MultiIndex.from_frame(table[KEY])
    table["annotated"] = index.isin(pd.MultiIndex.from_frame(called[KEY]))
    best = annotated.table[annotated.table["set"] == "called"]
    best = best.sort_values("log_p", kind="stable")
    for level, column, name in (
        ("motif", "q_value", "motif"),
        ("state", "q_value", "state"),
        ("go", "q_shift", "process"),
    ):
        rows = best[(best["level"] == level) & (best[column] < _ALPHA)]
        rows = rows.drop_duplicates(KEY)[[*KEY, "name"]]
        table = table.merge(rows.rename(columns={"name": name}), on=KEY, how="left")
        table[name] = table[name].fillna("")
    effect = ablated[ablated["outcome"] == "vivo-up"]
    effect = effect[[*KEY, "lineage", "effect"]].rename(columns={"effect": "ablated"})
    table = table.merge(effect, on=[*KEY, "lineage"], how="left")
    table = table.assign(size=table["cds"].abs()).sort_values(
        ["layer", "size"], ascending=[True, False], kind="stable"
    )
    return table.drop(columns="size").reset_index(drop=True)


def _lineages_behind(row: dict) -> str:
    """Lineages in which a feature was called, by the first claim that called it."""
    columns = ("lineages", "lineages_held", "lineages_e3_held")
    return next(row[column] for column in columns if row.get(column))


def _within_budget(features: pd.DataFrame) -> pd.DataFrame:
    """Keep the features of the strictest claims, then annotated, then strong ones."""
    per_block = max(1, MAX_FEATURES // features["layer"].nunique())
    claims = [x for x in CLAIMS if x in features]
    rung = features[claims].to_numpy() @ np.arange(1, len(claims) + 1)
    ranked = features.assign(rung=rung).sort_values(
        ["rung", "annotated"], ascending=False, kind="stable"
    )
    kept = ranked.groupby("layer").head(per_block).index
    return features.loc[sorted(kept)].reset_index(drop=True)


def lineage_effects(study: Study, scores: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Return the paired differences of every lineage with intervals.

    Parameters
    ----------
    study : Study
        The run.
    scores : dict of str to pandas.DataFrame
        `helpers.stages.score_context` by split.

    Returns
    -------
    pandas.DataFrame
        ``layer``, ``feature``, ``lineage``, ``split``; ``delta``, in vivo minus in
        vitro, of the mean activation per token; ``cds``; ``low``, ``high``: 95 %, by
        Student's t with one degree of freedom less than genomic blocks, which is wider
        than the moderated t behind ``cds``. Missing where a lineage was not tested.
    """
    windows = study.dataset.windows
    tables = []
    for split, table in scores.items():
        n_blocks = windows.loc[windows["split"] == split, "block"].nunique()
        reach = stats.t.isf(_ALPHA / 2, n_blocks - 1)
        for lineage in study.lineages:
            delta, cds = table[f"delta_{lineage}"], table[f"cds_{lineage}"]
            margin = reach * (delta / cds).abs()
            found = table[KEY].assign(
                lineage=lineage,
                split=split,
                delta=delta,
                cds=cds,
                low=delta - margin,
                high=delta + margin,
            )
            tables.append(found)
    return pd.concat(tables, ignore_index=True)


def strongest_loci(study: Study, features: pd.DataFrame) -> pd.DataFrame:
    """Read the tracks of features where they fire most strongly, on `test` windows.

    Parameters
    ----------
    study : Study
        The run.
    features : pandas.DataFrame
        Columns ``layer``, ``feature``, ``lineage`` and ``context``: where to look.

    Returns
    -------
    pandas.DataFrame
        At most three windows of every feature: ``layer``, ``feature``, ``rank``,
        ``chrom``, ``start``, ``end`` of what is shown (at most 64 tokens around the
        strongest one), ``peak``, its position among them; ``acts_in_vitro``,
        ``acts_in_vivo``: activation per token in the two contexts of the lineage;
        ``signal_in_vitro``, ``signal_in_vivo``: measured accessibility, log1p.
        Features that are silent on all predicted tokens have no row.
    """
    found = [
        _loci_of_layer(study, int(layer), rows)
        for layer, rows in features.groupby("layer")
    ]
    return pd.concat(found, ignore_index=True)


def _loci_of_layer(study: Study, layer: int, rows: pd.DataFrame) -> pd.DataFrame:
    windows = study.dataset.windows_of("test")
    numbers = rows["feature"].to_numpy()
    pairs = np.array([study.pair(lineage) for lineage in rows["lineage"]])
    side = np.array([CONTEXTS.index(context) for context in rows["context"]])
    each, inner = np.arange(len(rows)), inner_tokens(study)
    height = np.zeros((len(rows), 0), np.float32)
    place = np.zeros((len(rows), 0), np.int64)
    acts = np.zeros((len(rows), 0, 2, study.dataset.n_tokens), np.float32)
    for first in range(0, len(windows), _CHUNK):
        chunk = windows[first : first + _CHUNK]
        own = feature_acts(study, layer, numbers, chunk)
        own = own[pairs, :, :, each[:, None]].swapaxes(1, 2)  # (feature, window, 2, n)
        top = own[each, :, side][..., inner].max(axis=2)
        height = np.concatenate([height, top], axis=1)
        place = np.concatenate([place, np.broadcast_to(chunk, top.shape)], axis=1)
        acts = np.concatenate([acts, own], axis=1)
        best = np.argsort(-height, axis=1, kind="stable")[:, :N_LOCI]
        height = np.take_along_axis(height, best, axis=1)
        place = np.take_along_axis(place, best, axis=1)
        acts = acts[each[:, None], best]
    signal = _signal(study, place)
    table = study.dataset.windows
    loci = []
    for i, j in np.argwhere(height > 0):
        window = int(place[i, j])
        peak = inner.start + int(acts[i, j, side[i], inner].argmax())
        begin = int(np.clip(peak - SPAN // 2, 0, max(0, acts.shape[3] - SPAN)))
        shown = slice(begin, min(begin + SPAN, acts.shape[3]))
        size = (table["end"][window] - table["start"][window]) // acts.shape[3]
        locus = {
            "layer": layer,
            "feature": int(numbers[i]),
            "rank": int(j) + 1,
            "chrom": table["chrom"][window],
            "start": int(table["start"][window] + shown.start * size),
            "end": int(table["start"][window] + shown.stop * size),
            "peak": peak - begin,
        }
        for k, context in enumerate(CONTEXTS):
            locus[f"acts_{context}"] = acts[i, j, k, shown].astype(float).tolist()
            track = signal[int(pairs[i, k]), window][shown]
            locus[f"signal_{context}"] = track.tolist()
        loci.append(locus)
    tracks = [f"{x}_{context}" for x in ("acts", "signal") for context in CONTEXTS]
    columns = [*KEY, "rank", "chrom", "start", "end", "peak", *tracks]
    return pd.DataFrame(loci, columns=columns)


def _signal(study: Study, windows: np.ndarray) -> dict[tuple[int, int], np.ndarray]:
    """Measured accessibility of windows, log1p, by biosample and window."""
    chosen = np.unique(windows)
    return {
        (b, int(window)): np.log1p(track.astype(float))
        for b in range(len(study.design))
        for window, track in zip(
            chosen, study.dataset.target(chosen, b) if len(chosen) else (), strict=True
        )
    }


def _planted(study: Study, features: pd.DataFrame) -> list[str]:
    """Name and role of the planted factor behind annotated features, else empty."""
    if study.truth is None:
        return [""] * len(features)
    pairs = [study.pair(lineage) for lineage in features["lineage"]]
    side = [CONTEXTS.index(context) for context in features["context"]]
    biosample = [pair[k] for pair, k in zip(pairs, side, strict=True)]
    names = findings.planted_factors(study, features[KEY].assign(biosample=biosample))
    role = truth.read_factors(study).set_index("name")["role"]
    return [f"{name} ({role[name]})" if name else "" for name in names]


def _shown(annotated: Annotation) -> pd.DataFrame:
    """Rows of the annotation that a reader is shown, best first."""
    table = annotated.table[annotated.table["set"] == "called"]
    table = table.sort_values("log_p", kind="stable")
    level = table["level"]
    terms = table[level == "go"].sort_values("q_shift", kind="stable")
    return pd.concat(
        [
            table[level == "state"],
            table[level == "motif"].groupby(KEY).head(_N_MOTIFS),
            terms.groupby(KEY).head(_N_TERMS),
        ],
        ignore_index=True,
    )


def _logos(study: Study, annotated: Annotation) -> pd.DataFrame:
    """Matrices to draw: the best known motif of a feature, and those learned."""
    table = annotated.table.query("level == 'motif' and set == 'called'")
    table = table[table["q_value"] < _ALPHA].sort_values("log_p", kind="stable")
    matrix = {
        motif.id: motif.probabilities
        for motif in motifs.read_motifs(study.dataset.tissues[0].motifs)
    }
    rows = [
        (row.layer, row.feature, "known", row.name, row.item, matrix[row.item].tolist())
        for row in table.drop_duplicates(KEY).itertuples(index=False)
    ]
    families = list(table["family"].drop_duplicates())
    for row in findings.learned_motifs(study, annotated, families).itertuples():
        text = f"most like {row.closest} (similarity {row.similarity:.2f})"
        probabilities = row.motif.probabilities.tolist()
        rows.append((row.layer, row.feature, "learned", "learned", text, probabilities))
    columns = [*KEY, "source", "name", "text", "probabilities"]
    return pd.DataFrame(rows, columns=columns)
