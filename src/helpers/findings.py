"""What the annotation of features shows: shares, groups, and claims put to the test.

Everything here reads an `Annotation`; but for `learned_motifs` nothing is tested again.
Counts go with the same count for features that were not called and for random ones.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from helpers import motifs, truth
from helpers.annotation import (
    LEVELS,
    MIN_REGIONS,
    N_LEVELS,
    SETS,
    Annotation,
    top_regions,
    universe,
)
from helpers.annotation._regions import openness_of, region_codes
from helpers.enrichment import hypergeometric_log_tail
from helpers.simulate._biology import biology
from helpers.stages import Study

__all__ = [
    "PAPER_CLAIM",
    "claim_table",
    "feature_groups",
    "learned_motifs",
    "motif_recovery",
    "null_shares",
    "planted_factors",
    "top_items",
]

KEY = ["layer", "feature"]
ALPHA = 0.05  # q-value below which a feature is enriched
_N_CONTROLS = 5  # background regions for every region of a feature
_MIN_FOLD, _MAX_LOG_P = 4.0, -20.0  # of the sites of a factor in a feature's regions

# Motifs that the published work names for features of tissues.
PAPER_CLAIM = {
    "liver": ("HNF4A", "FOXA2"),
    "blood": ("SPI1", "RUNX1"),
    "lymph": ("EBF1", "PAX5"),
}


def null_shares(annotation: Annotation) -> pd.DataFrame:
    """Return the share of features with any item at q < 0.05, by level and set.

    Returns
    -------
    pandas.DataFrame
        ``level`` (``go, regions only`` and ``go, shifts`` beside ``go``, which asks for
        regions and genes), ``set``, ``n_features``, ``n_enriched``, ``share``,
        ``low``, ``high`` (95 %, Clopper and Pearson).
    """
    sizes = annotation.features["set"].value_counts()
    sizes["matched"] = sizes["shifted"] = sizes["called"]
    tests = [(level, level, "q_value") for level in LEVELS]
    tests.append(("go, shifts", "go", "q_shift"))
    tests.append(("go, regions only", "go", "q_regions"))
    table = annotation.table
    rows = []
    for label, level, column in tests:
        if level in annotation.skipped:
            continue
        found = table[(table["level"] == level) & (table[column] < ALPHA)]
        for name in (x for x in SETS if x in sizes):
            n = int(sizes[name])
            k = len(found.loc[found["set"] == name, KEY].drop_duplicates())
            low, high = stats.binomtest(k, n).proportion_ci()
            rows.append((label, name, n, k, k / n, low, high))
    columns = ["level", "set", "n_features", "n_enriched", "share", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def feature_groups(features: pd.DataFrame) -> pd.Series:
    """Name the group of every feature: its class, or lineage and context."""
    own = features["lineage"] + " " + features["context"].str.replace("_", " ")
    return own.where(features["class"] == "lineage-only", features["class"])


def top_items(
    annotation: Annotation, level: str, *, column: str = "q_value"
) -> pd.DataFrame:
    """Count, for groups of called features, how many are enriched for each item.

    Parameters
    ----------
    annotation : Annotation
        From `annotate`.
    level : str
        ``state``, ``motif`` (items are archetypes) or ``go``.
    column : str
        q-value that must be below 0.05: ``q_value``, or ``q_regions`` for processes
        over regions alone, or ``q_shift``.

    Returns
    -------
    pandas.DataFrame
        ``group``, ``item``, ``motifs`` (names of the best motifs, most frequent first),
        ``n_features`` enriched, ``n_group``, ``share``, ``log2_fold`` (median of the
        enriched); most frequent items first.
    """
    called = annotation.features[annotation.features["set"] == "called"]
    groups = called[KEY].assign(group=feature_groups(called))
    table = annotation.table
    table = table[(table["level"] == level) & (table["set"] == "called")]
    table = table[table[column] < ALPHA]
    table = table.merge(groups, on=KEY).assign(
        item=lambda x: x["family" if level == "motif" else "item"],
        log2_fold=lambda x: np.log2(x["fold"]),
    )
    found = table.groupby(["group", "item"], as_index=False).agg(
        motifs=("name", lambda x: ", ".join(x.value_counts().index[:3])),
        n_features=("feature", "size"),
        log2_fold=("log2_fold", "median"),
    )
    sizes = groups["group"].value_counts()
    found["n_group"] = sizes.reindex(found["group"]).to_numpy(dtype=np.int64)
    found["share"] = found["n_features"] / found["n_group"]
    order = ["group", "item", "motifs", "n_features", "n_group", "share", "log2_fold"]
    return found[order].sort_values(
        ["n_features", "log2_fold"], ascending=False, kind="stable", ignore_index=True
    )


def learned_motifs(
    study: Study, annotation: Annotation, archetypes: list[str]
) -> pd.DataFrame:
    """Learn a motif from the regions of the best feature of every archetype.

    Nothing is taken from a collection: the regions alone are compared with others of
    the same GC content and accessibility (`helpers.motifs.discover_motif`). What comes
    out is then named by the known motif it resembles most.

    Parameters
    ----------
    study : Study
        The run.
    annotation : Annotation
        From `annotate`.
    archetypes : list of str
        Families of motifs in the table of the annotation. Features with fewer than 20
        regions, or regions without enough others to match, teach nothing and are
        passed over.

    Returns
    -------
    pandas.DataFrame
        One row per archetype that a called feature holds: ``archetype``, ``layer`` and
        ``feature`` with the smallest p-value for it, ``known``, the best motif of the
        collection in the test, ``motif``, the one learned, ``closest`` to it in the
        collection and its ``similarity``; ``n_sites``, and ``log_p`` and ``fold`` in
        the half of the regions that did not teach it.
    """
    collection = {motif.id: motif for motif in _collection(study)}
    codes = region_codes(study, "test")
    gc = motifs.gc_content(codes)
    called = annotation.features[annotation.features["set"] == "called"]
    tested = annotation.table.query("level == 'motif' and set == 'called'")
    tested = tested.sort_values("log_p", kind="stable")
    many = called.loc[called["regions"].map(len) >= MIN_REGIONS, KEY]
    best = tested.merge(many, on=KEY).drop_duplicates("family").set_index("family")
    rows = []
    for archetype in (x for x in archetypes if x in best.index):
        row = best.loc[archetype]
        at = (called["layer"] == row["layer"]) & (called["feature"] == row["feature"])
        feature = called[at].iloc[0]
        openness = openness_of(study, feature["biosample"])
        strata = motifs.matching_strata(gc, openness, n_levels=N_LEVELS)
        fires = np.zeros(len(codes), dtype=bool)
        fires[feature["regions"]] = True
        controls = motifs.matched_random_features(
            np.tile(fires, (_N_CONTROLS, 1)), strata, random_state=study.seed
        )
        others = controls.any(axis=0) & ~fires
        if others.sum() < MIN_REGIONS:
            continue
        found = motifs.discover_motif(codes[fires], codes[others], name="learned")
        closest, similarity = motifs.closest_motif(
            found.motif, list(collection.values())
        )
        rows.append(
            {
                "archetype": archetype,
                "layer": row["layer"],
                "feature": row["feature"],
                "known": collection[row["item"]],
                "closest": closest.name,
                "similarity": similarity,
                **found._asdict(),
            }
        )
    columns = ["archetype", *KEY, "known", "motif", "closest", "similarity"]
    return pd.DataFrame(rows, columns=[*columns, "n_sites", "log_p", "fold"])


def _collection(study: Study) -> list[motifs.Motif]:
    """Motifs of the study, the archetype as family."""
    return motifs.with_archetypes(motifs.read_motifs(study.dataset.tissues[0].motifs))


def _ranks(annotation: Annotation, name: str = "called") -> pd.DataFrame:
    """Rank of every motif family within a feature; ties take the worse rank."""
    table = annotation.table
    table = table[(table["level"] == "motif") & (table["set"] == name)]
    rank = table.groupby(KEY)["log_p"].rank(method="max").astype(int)
    return table.assign(rank=rank)


def planted_factors(study: Study, features: pd.DataFrame) -> pd.Series:
    """Name the planted factor at whose sites features fire, where there is one.

    Parameters
    ----------
    study : Study
        A run on simulated data.
    features : pandas.DataFrame
        Columns ``layer``, ``feature``, ``biosample``.

    Returns
    -------
    pandas.Series
        Factor of every row, empty if none is clear: the regions of a feature on `tune`
        chromosomes, found as those on `test` chromosomes were, hold sites of the
        factor with a fold of at least 4 and a hypergeometric ln p of at most -20.

    Raises
    ------
    ValueError
        If the data of the study are not simulated.
    """
    sites = truth.factor_sites(study, study.dataset.windows_of("tune"))
    inner = universe(study, "tune")
    rows = inner["window"].rank(method="dense").astype(int) - 1
    is_site = sites.to_numpy()[rows * study.dataset.n_tokens + inner["token"]]
    total = is_site.sum(axis=0)
    names = []
    for regions in top_regions(study, features.reset_index(drop=True), "tune"):
        hits, n = is_site[regions].sum(axis=0), max(len(regions), 1)
        log_p = hypergeometric_log_tail(hits, len(is_site), total, len(regions))
        fold = hits / n / np.maximum(total / len(is_site), 1e-12)
        best = int(log_p.argmin())
        clear = fold[best] >= _MIN_FOLD and log_p[best] <= _MAX_LOG_P
        names.append(sites.columns[best] if clear else "")
    return pd.Series(names, index=features.index, name="factor")


def motif_recovery(study: Study, annotation: Annotation) -> pd.DataFrame:
    """Say where the motif of the planted factor ranks, for features that have one.

    Parameters
    ----------
    study : Study
        A run on simulated data.
    annotation : Annotation
        From `annotate`.

    Returns
    -------
    pandas.DataFrame
        One row per called feature with a factor (`planted_factors`, from `tune`
        chromosomes): ``layer``, ``feature``, ``class``, ``context`` in which it is
        higher, ``openness`` of its regions, ``factor``, ``role``, ``family`` (archetype
        of the factor's motif); on `test` chromosomes its ``rank`` and ``q_value``,
        ``own_q``, the smallest q-value of any, and ``first``, the motif of rank 1;
        ``term`` planted for the genes near the factor's sites, its ``term_rank`` by
        shifts and ``term_rank_shifted``, that for the feature's shifted twin (missing
        if p > 0.05 over regions).

    Raises
    ------
    ValueError
        If the data of the study are not simulated.
    """
    factors = truth.read_factors(study).set_index("name")
    family = {motif.id: motif.family for motif in _collection(study)}
    called = annotation.features[annotation.features["set"] == "called"]
    own = ["class", "context", "openness"]
    matched = called[[*KEY, *own]].assign(factor=planted_factors(study, called))
    matched = matched[matched["factor"] != ""]
    matched["role"] = matched["factor"].map(factors["role"])
    matched["family"] = matched["factor"].map(factors["jaspar"]).map(family)
    ranks = _ranks(annotation)
    first = ranks.sort_values("log_p").drop_duplicates(KEY)
    first = first.rename(columns={"name": "first", "q_value": "own_q"})
    found = matched.merge(
        ranks[[*KEY, "family", "rank", "q_value"]], on=[*KEY, "family"]
    ).merge(first[[*KEY, "first", "own_q"]], on=KEY)
    programme = found["factor"].map(factors["programme"])
    planted = biology()["programmes"]
    found["term"] = [f"{planted[x]['name']} ({planted[x]['go']})" for x in programme]
    keys = pd.MultiIndex.from_frame(found[[*KEY, "term"]])
    for name, column in (
        ("called", "term_rank"),
        ("shifted", "term_rank_shifted"),
    ):
        found[column] = _term_ranks(annotation, name).reindex(keys).to_numpy()
    columns = [*KEY, *own, "factor", "role", "family", "rank", "q_value", "own_q"]
    return found[[*columns, "first", "term", "term_rank", "term_rank_shifted"]]


def _term_ranks(annotation: Annotation, name: str) -> pd.Series:
    """Rank of every term within a feature, by shifts; ties take the worse rank."""
    table = annotation.table
    table = table[(table["level"] == "go") & (table["set"] == name)]
    table = table.set_index([*KEY, "item"])
    return table.groupby(level=[0, 1])["q_shift"].rank(method="max")


def claim_table(
    study: Study, annotation: Annotation, claim: dict[str, tuple[str, ...]]
) -> pd.DataFrame:
    """Look for motifs that somebody named for features of a lineage.

    Parameters
    ----------
    study : Study
        The run.
    annotation : Annotation
        From `annotate`.
    claim : dict of str to tuple of str
        Motif names by lineage, such as `PAPER_CLAIM`; case does not matter. Lineages
        that the study lacks are left out.

    Returns
    -------
    pandas.DataFrame
        One row per lineage, motif and context in which the features are higher:
        ``lineage``, ``motif``, ``family``, ``planted`` (role of the factor in that
        lineage, empty if it has none or the data are real), ``context``,
        ``n_features`` called that differ most in this lineage, ``n_enriched``
        (q < 0.05 for the archetype), ``share`` enriched and ``elsewhere``, that of
        called features of the same context that differ most in other lineages;
        ``p_value`` of more here than elsewhere (Fisher, one-sided), ``n_top3``,
        ``best_rank``.

    Raises
    ------
    ValueError
        If no motif bears a name.
    """
    family = {m.name.upper(): m.family for m in reversed(_collection(study))}
    called = annotation.features[annotation.features["set"] == "called"]
    ranks = _ranks(annotation).merge(called[[*KEY, "lineage", "context"]], on=KEY)
    rows = []
    for lineage, name in ((x, y) for x, names in claim.items() for y in names):
        if lineage not in study.lineages:
            continue
        if name.upper() not in family:
            raise ValueError(f"no motif is named {name!r}, in any case")
        mine = ranks[ranks["family"] == family[name.upper()]]
        for context in ("in_vivo", "in_vitro"):
            alike = mine[mine["context"] == context]
            here = alike["lineage"] == lineage
            enriched = alike["q_value"] < ALPHA
            counts = [
                [int((where & enriched).sum()), int((where & ~enriched).sum())]
                for where in (here, ~here)
            ]
            found = alike[here]
            rows.append(
                {
                    "lineage": lineage,
                    "motif": name,
                    "family": family[name.upper()],
                    "planted": _planted_role(study, name, lineage),
                    "context": context,
                    "n_features": len(found),
                    "n_enriched": counts[0][0],
                    "share": enriched[here].mean(),
                    "elsewhere": enriched[~here].mean(),
                    "p_value": stats.fisher_exact(counts, alternative="greater")[1],
                    "n_top3": int((found["rank"] <= 3).sum()),
                    "best_rank": found["rank"].min() if len(found) else np.nan,
                }
            )
    return pd.DataFrame(rows)


def _planted_role(study: Study, name: str, lineage: str) -> str:
    """Role of a factor in a lineage of a simulated world; empty if it has none."""
    if study.truth is None:
        return ""
    factors = truth.read_factors(study)
    mine = factors[factors["name"].str.upper() == name.upper()]
    acts = [not x or lineage in x.split(",") for x in mine["lineages"]]
    return "".join(mine["role"][acts])
