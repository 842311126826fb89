"""What context features stand for: chromatin states, motifs, biological processes.

A feature is looked at in one biosample: of the pair in which it differs most, the side
where it is higher. Its regions are the `test` tokens where it fires most strongly; all
inner tokens of `test` windows are the universe. Processes need many genes, so for them
`tune` windows count too: they took no part in the choice of features either. The same
tests run on features that were not called and on random ones, so every number has its
null.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats
from scipy.optimize import linear_sum_assignment

from helpers import motifs, ontology, states
from helpers.annotation._levels import (
    COLUMNS,
    go_level,
    motif_families,
    state_level,
)
from helpers.annotation._regions import (
    N_TOP,
    openness_of,
    region_codes,
    top_regions,
    universe,
)
from helpers.annotation._sets import FeatureSet, Places, feature_sets, read_places
from helpers.enrichment import benjamini_hochberg
from helpers.runs import code_digest, file_stamps
from helpers.stages import (
    Study,
    called_features,
    score_context,
    summaries,
)

__all__ = [
    "GENE_SPLITS",
    "LEVELS",
    "SETS",
    "Annotation",
    "annotate",
    "select_features",
    "strongest_lineage",
    "top_regions",
    "universe",
]

LEVELS = ("state", "motif", "go")
SETS = ("called", "other", "matched", "shifted")
GENE_SPLITS = ("tune", "test")  # where processes are tested
MIN_REGIONS = 20  # firing tokens below which nothing can be said
PER_CLASS = 40  # called features of a class, the strongest by score
N_LEVELS = 20  # of accessibility: few tokens are open, so coarse levels would not match
_TEST_MODULES = (
    "enrichment",
    "motifs._scan",
    "motifs",
    "ontology",
    "states",
    "windows",
)


class Annotation(NamedTuple):
    """Features and what they are enriched for.

    Attributes
    ----------
    features : pandas.DataFrame
        From `select_features`.
    table : pandas.DataFrame
        One row per tested feature and item: ``level`` (``state``, ``motif``: the best
        of its archetype, ``go``), ``set`` (``called``; ``other``, features not called;
        ``matched`` and ``shifted``, random features), ``layer``, ``feature`` (a random
        one bears the number of the called one it was made from), ``item``, ``name``,
        ``family`` (archetype of a motif), ``n_regions``, ``hits``, ``rate``
        (expected), ``rate_all`` (of states: share of all tokens), ``fold``, ``log_p``
        (natural), ``p_value``, ``q_value`` (Benjamini-Hochberg within level and set,
        over all blocks). Of ``go`` only rows with p <= 0.05 over regions are kept;
        ``q_value`` asks for regions and genes, ``q_regions`` for regions alone,
        ``q_shift`` for regions against circular shifts of the feature.
    skipped : dict of str to str
        Levels that were not tested, and why.
    """

    features: pd.DataFrame
    table: pd.DataFrame
    skipped: dict[str, str]


def select_features(study: Study, layers: Sequence[int] | None = None) -> pd.DataFrame:
    """Return the context features to annotate, their controls, and their regions.

    Features are called on `select` chromosomes; of every class and block the strongest
    40 that fire on at least 20 `test` tokens of their biosample are kept. Every one
    gets a partner of similar firing rate among the features that were not called.

    Parameters
    ----------
    study : Study
        The run.
    layers : sequence of int, optional
        Blocks; all of the study if not given.

    Returns
    -------
    pandas.DataFrame
        ``layer``, ``set`` (``called`` or ``other``), ``feature``, ``class``,
        ``lineages``, ``lineage`` and ``context`` (where it is looked at), ``score``
        (CDS in that lineage), ``biosample`` (position), ``density`` (share of tokens
        that fire), ``partner`` (of an ``other``: the called feature it stands beside),
        ``regions`` (`top_regions`) and ``gene_regions`` (those of `GENE_SPLITS`, for
        processes), ``openness``: median accessibility of the regions,
        as a rank among all tokens (0 to 1).

    Raises
    ------
    ValueError
        If a block is not part of the study, or no called feature fires often enough.
    """
    scores = score_context(study)
    layers = list(study.blocks if layers is None else layers)
    outside = [layer for layer in layers if layer not in study.blocks]
    if outside or not layers:
        raise ValueError(f"layers must be among {study.blocks}; got {layers}")

    def build() -> pd.DataFrame:
        tables = [_choose(study, layer, scores) for layer in layers]
        features = pd.concat(tables, ignore_index=True)
        if not len(features):
            n_called = len(called_features(scores[scores["layer"].isin(layers)]))
            raise ValueError(
                f"none of {n_called} called features fires on {MIN_REGIONS} test "
                "tokens: there is nothing to annotate"
            )
        features["regions"] = top_regions(study, features)
        features["gene_regions"] = top_regions(study, features, *GENE_SPLITS)
        rank = {
            b: stats.rankdata(openness_of(study, b), method="average")
            for b in set(features["biosample"])
        }
        features["openness"] = [
            np.median(rank[b][own]) / len(rank[b])
            for b, own in zip(features["biosample"], features["regions"], strict=True)
        ]
        return features

    recipe = {
        "layers": layers,
        "cds": study.run.key("cds.parquet"),
        "summary": [study.run.key(f"summaries/block{x}.npz") for x in layers],
        "n_top": N_TOP,
        "code": code_digest("annotation"),
    }
    return study.run.table("annotation_features.parquet", recipe, build)


def _choose(study: Study, layer: int, scores: pd.DataFrame) -> pd.DataFrame:
    """Choose called features of a block and their partners."""
    density = _densities(study, layer)
    in_layer = scores[scores["layer"] == layer]
    called = _called(study, called_features(in_layer), density)
    if not len(called):
        return called
    quiet = in_layer.loc[in_layer["class"] == "none", "feature"].to_numpy()
    chosen = pd.concat([called, _partners(called, quiet, density)], ignore_index=True)
    chosen.insert(0, "layer", layer)
    return chosen


def _densities(study: Study, layer: int) -> np.ndarray:
    """Share of `test` tokens on which features fire, (n_biosamples, n_features)."""
    windows = study.dataset.windows_of("test")
    return summaries(study)[layer].firing[:, windows].mean(axis=1)


def _called(study: Study, called: pd.DataFrame, density: np.ndarray) -> pd.DataFrame:
    """Choose a biosample for every called feature and keep the strongest by class."""
    rows = []
    for feature in called.to_dict("records"):
        lineage, side = strongest_lineage(feature, feature["lineages"])
        biosample = study.pair(lineage)[side]
        rows.append(
            {
                "set": "called",
                "feature": feature["feature"],
                "class": feature["class"],
                "lineages": feature["lineages"],
                "lineage": lineage,
                "context": ("in_vitro", "in_vivo")[side],
                "score": feature[f"cds_{lineage}"],
                "biosample": biosample,
                "density": density[biosample, feature["feature"]],
                "partner": -1,
            }
        )
    n_tokens = len(study.dataset.windows_of("test")) * study.dataset.n_tokens
    table = pd.DataFrame(rows)
    if not len(table):
        return table
    table = table[table["density"] * n_tokens >= MIN_REGIONS]
    order = table["score"].abs().sort_values(ascending=False, kind="stable").index
    table = table.loc[order].groupby("class", sort=False).head(PER_CLASS)
    return table.sort_values(["class", "score"], kind="stable", ignore_index=True)


def strongest_lineage(scores: Mapping, behind: str) -> tuple[str, int]:
    """Return where a feature differs most, and 1 if it is higher in vivo there, else 0.

    Parameters
    ----------
    scores : mapping
        A row of `helpers.stages.score_context`.
    behind : str
        Lineages to choose from, separated by commas.
    """
    lineage = max(behind.split(","), key=lambda x: abs(scores[f"delta_{x}"]))
    return lineage, int(scores[f"delta_{lineage}"] > 0)


def _partners(
    called: pd.DataFrame, quiet: np.ndarray, density: np.ndarray
) -> pd.DataFrame:
    """Pair called features with uncalled ones of similar density in their biosample."""
    here = density[np.ix_(called["biosample"], quiet)]  # (n_called, n_quiet)
    own = called["density"].to_numpy()[:, None]
    rarest = own.min() / 10  # a feature that is silent there is far from all
    distance = np.abs(np.log(np.maximum(here, rarest)) - np.log(own))
    row, column = linear_sum_assignment(distance)
    near = distance[row, column] <= np.log(2)
    row, column = row[near], column[near]
    partners = called.iloc[row].assign(
        set="other",
        feature=quiet[column],
        density=here[row, column],
        partner=called["feature"].to_numpy()[row],
        score=np.nan,
    )
    partners["class"] = "none"
    return partners.assign(lineages="")


def annotate(study: Study, layers: Sequence[int] | None = None) -> Annotation:
    """Test the regions of context features, and of their controls, at three levels.

    Chromatin states and motifs are compared with tokens of the same GC content and
    accessibility in the same biosample; states are those of that biosample. Processes
    are tested over regions and over genes against all tokens of `GENE_SPLITS`. A level
    whose files are missing is skipped.

    Parameters
    ----------
    study : Study
        The run.
    layers : sequence of int, optional
        Blocks; all of the study if not given.

    Returns
    -------
    Annotation
    """
    features = select_features(study, layers)
    files, skipped = _files(study, features)

    def build() -> pd.DataFrame:
        data = _read(study, features, files)
        tables = []
        sets = feature_sets(study, features, data.places, data.gene_places)
        for name, members in sets.items():
            if len(members.rows):
                tables.append(_test(members, data).assign(set=name))
        joined = pd.concat(tables, ignore_index=True)
        return joined[["level", "set", "layer", *COLUMNS]]

    recipe = {
        "features": study.run.key("annotation_features.parquet"),
        "files": file_stamps(files.values()),
        "skipped": skipped,
        "seed": study.seed,
        "code": code_digest("annotation", "annotation._levels", *_TEST_MODULES),
    }
    table = study.run.table("annotation.parquet", recipe, build)
    return Annotation(features, table, skipped)


class _Data(NamedTuple):
    """The regions and everything they are tested for."""

    places: Places
    collection: list[motifs.Motif]
    hits: np.ndarray
    segmentations: dict[int, pd.DataFrame]  # by biosample; empty if skipped
    gene_places: Places | None
    genes: tuple[pd.DataFrame, dict[str, list[str]]] | None


def _files(study: Study, features: pd.DataFrame) -> tuple[dict, dict[str, str]]:
    """Files that levels need, by name, and reasons for levels without them."""
    tissue, skipped = study.dataset.tissues[0], {}
    files = {"motifs": tissue.motifs}
    samples = [b for t in study.dataset.tissues for b in t.pair]
    used = {f"states {b}": samples[b] for b in sorted(set(features["biosample"]))}
    without = [sample.name for sample in used.values() if sample.states is None]
    if without:
        skipped["state"] = f"no chromatin states for {', '.join(without)}"
    else:
        files |= {key: sample.states for key, sample in used.items()}
    if tissue.genes is None or tissue.gene_sets is None:
        skipped["go"] = f"{tissue.path.name} names no genes or no gene sets"
        return files, skipped
    regions = universe(study, *GENE_SPLITS)
    everywhere = np.ones((1, len(regions)), dtype=bool)
    try:
        go_level(regions, everywhere, *_read_genes(tissue.genes, tissue.gene_sets))
    except ValueError as error:  # few genes near the regions, or foreign symbols
        skipped["go"] = str(error)
    else:
        files |= {"genes": tissue.genes, "gene_sets": tissue.gene_sets}
    return files, skipped


def _read_genes(
    genes: Path, gene_sets: Path
) -> tuple[pd.DataFrame, dict[str, list[str]]]:
    return ontology.read_genes(genes), ontology.read_gmt(gene_sets)


def _read(study: Study, features: pd.DataFrame, files: dict[str, Path]) -> _Data:
    """Read the levels' files and scan the regions once."""
    biosamples = sorted(set(features["biosample"]))
    collection = motifs.with_archetypes(motifs.read_motifs(files["motifs"]))
    codes, gene_places = region_codes(study, "test"), None
    if "genes" in files:
        gene_codes = region_codes(study, *GENE_SPLITS)
        gene_places = read_places(study, biosamples, gene_codes, *GENE_SPLITS)
    return _Data(
        places=read_places(study, biosamples, codes, "test"),
        collection=collection,
        hits=motifs.count_hits(codes, collection),
        segmentations={
            b: states.read_segmentation(files[f"states {b}"])
            for b in biosamples
            if f"states {b}" in files
        },
        gene_places=gene_places,
        genes=gene_places and _read_genes(files["genes"], files["gene_sets"]),
    )


def _test(features: FeatureSet, data: _Data) -> pd.DataFrame:
    """Run the levels on one set of features."""
    rows, places = features.rows, data.places
    of_states, of_motifs = [], []
    for b, where in rows.groupby("biosample").indices.items():
        own, openness = features.membership[where], places.openness[b]
        with warnings.catch_warnings():  # regions without a match: see n_regions
            warnings.simplefilter("ignore", motifs.UnmatchedRegionWarning)
            table = motifs.enrichment(
                data.hits,
                own,
                data.collection,
                gc=places.gc,
                accessibility=openness,
                n_levels=N_LEVELS,
            )
        of_motifs.append(table.assign(feature=where[table["feature"]]))
        if data.segmentations:
            strata = motifs.matching_strata(places.gc, openness, n_levels=N_LEVELS)
            table = state_level(places.regions, own, data.segmentations[b], strata)
            of_states.append(table.assign(feature=where[table["feature"]]))
    levels = {"motif": motif_families(pd.concat(of_motifs))}
    if of_states:
        joined = pd.concat(of_states)
        joined["q_value"] = benjamini_hochberg(joined["log_p"].to_numpy())
        levels["state"] = joined
    if data.genes:
        regions = data.gene_places.regions
        levels["go"] = go_level(regions, features.gene_membership, *data.genes)
    joined = pd.concat([table.assign(level=x) for x, table in levels.items()])
    at = joined["feature"].to_numpy()
    return joined.assign(
        layer=rows["layer"].to_numpy()[at], feature=rows["feature"].to_numpy()[at]
    )
