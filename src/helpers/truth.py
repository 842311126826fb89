"""What was planted in a simulated world, against what was found.

A token is a site of a factor if the finished sequence holds at least two hits of its
motif. A feature speaks for a factor if the tokens at which it differs most between the
contexts are the factor's sites.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from helpers.enrichment import hypergeometric_log_tail
from helpers.runs import code_digest
from helpers.stages import Study, called_features, feature_acts

__all__ = [
    "CONTEXT_ROLES",
    "factor_recovery",
    "factor_sites",
    "match_features",
    "planted_class",
    "read_factors",
    "score_recovery",
]

CONTEXT_ROLES = ("shared-vitro", "shared-vivo", "lineage-vivo", "lineage-vitro")
_MIN_HITS = 2  # hits of a motif that make a token a site: one alone hardly opens it
_N_TOP = 100  # tokens at which a feature differs most
_MIN_FOLD, _MAX_LOG_P = 4.0, -20.0  # what a match needs


def read_factors(study: Study) -> pd.DataFrame:
    """Return the planted factors that can act in the lineages studied.

    Raises
    ------
    ValueError
        If the data of the study are not simulated.
    """
    if study.truth is None:
        raise ValueError("the truth is known for simulated data only")
    table = pd.read_csv(study.truth / "factors.tsv", sep="\t", keep_default_na=False)
    here = [
        not lineages or bool(set(lineages.split(",")) & set(study.lineages))
        for lineages in table["lineages"]
    ]
    return table[here].reset_index(drop=True)


def planted_class(study: Study, factor: pd.Series) -> tuple[str, set[str]]:
    """Return the context in which a factor is higher, and in which lineages.

    Returns
    -------
    tuple
        ``in_vitro``, ``in_vivo`` or ``""`` (no context effect), and the lineages of
        the study in which the effect was planted.
    """
    if factor["role"] not in CONTEXT_ROLES:
        return "", set()
    context = "in_vitro" if factor["role"].endswith("vitro") else "in_vivo"
    named = set(factor["lineages"].split(",")) if factor["lineages"] else None
    return context, {x for x in study.lineages if named is None or x in named}


def factor_sites(study: Study, windows: np.ndarray) -> pd.DataFrame:
    """Return which tokens are sites of which factor.

    Returns
    -------
    pandas.DataFrame
        Tokens of the windows in order; one boolean column per factor.
    """
    factors = read_factors(study)
    sites = pd.read_parquet(study.truth / "sites.parquet").set_index(["chrom", "start"])
    tokens = study.dataset.token_table(windows)
    rows = sites.loc[pd.MultiIndex.from_frame(tokens[["chrom", "start"]])]
    return (rows[list(factors["name"])] >= _MIN_HITS).reset_index(drop=True)


def match_features(
    study: Study, layer: int, features: np.ndarray, *, split: str = "test"
) -> pd.DataFrame:
    """Name the planted factor behind each feature, where there is one.

    The 100 tokens at which the feature differs most between the contexts of a lineage,
    in the direction of its mean difference in that lineage, are tested for sites of
    every factor by a hypergeometric test against all tokens.

    Parameters
    ----------
    study : Study
        A run on simulated data.
    layer : int
        Block.
    features : numpy.ndarray of int
        Features to name.
    split : str
        Windows to look at.

    Returns
    -------
    pandas.DataFrame
        One row per feature: ``feature``, ``factor`` (empty if none has fold >= 4 and
        ln p <= -20), ``fold``, ``log_p``, ``share`` of those tokens that are
        the factor's sites.
    """
    windows = study.dataset.windows_of(split)
    sites = factor_sites(study, windows)
    acts = feature_acts(study, layer, features, windows)
    pairs = [study.pair(lineage) for lineage in study.lineages]
    change = np.stack([acts[vivo] - acts[vitro] for vitro, vivo in pairs])
    change = change.reshape(len(pairs), -1, len(features))
    sign = np.sign(change.mean(axis=1, keepdims=True))  # a sign for each lineage
    change = (sign * change).max(axis=0)  # (n_tokens, n_features)
    is_site = sites.to_numpy()
    total = is_site.sum(axis=0)
    rows = []
    for j, feature in enumerate(features):
        n_top = min(_N_TOP, int((change[:, j] > 0).sum()))
        if n_top == 0:
            rows.append((feature, "", np.nan, np.nan, np.nan))
            continue
        top = np.argpartition(-change[:, j], n_top - 1)[:n_top]
        hits = is_site[top].sum(axis=0)
        log_p = hypergeometric_log_tail(hits, len(change), total, n_top)
        fold = (hits / n_top) / np.maximum(total / len(change), 1e-12)
        best = int(np.argmin(log_p))
        named = fold[best] >= _MIN_FOLD and log_p[best] <= _MAX_LOG_P
        factor = sites.columns[best] if named else ""
        rows.append((feature, factor, fold[best], log_p[best], hits[best] / n_top))
    return pd.DataFrame(rows, columns=["feature", "factor", "fold", "log_p", "share"])


def factor_recovery(study: Study, called: pd.DataFrame) -> pd.DataFrame:
    """Say for every planted factor whether called features found it.

    A context factor is found if a feature that matches it was called in a lineage
    where its effect was planted, with the planted sign there. A factor without context
    effect (a decoy or an invariant one) is called wrongly if a feature that matches it
    was called.

    Parameters
    ----------
    study : Study
        A run on simulated data.
    called : pandas.DataFrame
        Significant features: ``layer``, ``feature``, ``delta_<lineage>`` for every
        lineage, ``lineages`` (comma-separated, those confirmed), ``factor`` of
        `match_features`.

    Returns
    -------
    pandas.DataFrame
        One row per factor: ``factor``, ``role``, ``higher_in``, ``n_matched`` features
        called that match it, ``n_right`` of them with the planted sign, ``found``,
        ``layers``.
    """
    rows = []
    for _, factor in read_factors(study).iterrows():
        context, lineages = planted_class(study, factor)
        mine = called[called["factor"] == factor["name"]]
        wanted = 1 if context == "in_vivo" else -1
        right = np.zeros(len(mine), dtype=bool)
        for lineage in lineages:
            confirmed = np.array([lineage in x.split(",") for x in mine["lineages"]])
            sign = np.sign(mine[f"delta_{lineage}"].to_numpy())
            right |= confirmed.astype(bool) & (sign == wanted)
        layers = sorted(set(mine["layer"][right] if context else mine["layer"]))
        rows.append(
            {
                "factor": factor["name"],
                "role": factor["role"],
                "higher_in": context,
                "n_matched": len(mine),
                "n_right": int(right.sum()),
                "found": bool(right.any()) if context else bool(len(mine)),
                "layers": ",".join(map(str, layers)),
            }
        )
    return pd.DataFrame(rows)


def score_recovery(study: Study, scores: pd.DataFrame) -> pd.DataFrame:
    """Return `factor_recovery` for all features called in a score table.

    Parameters
    ----------
    study : Study
        A run on simulated data.
    scores : pandas.DataFrame
        From `helpers.stages.score_context`.
    """
    called = called_features(scores)

    def build() -> pd.DataFrame:
        named = [
            match_features(study, layer, rows["feature"].to_numpy()).assign(layer=layer)
            for layer, rows in called.groupby("layer")
        ]
        table = called.merge(pd.concat(named), on=["layer", "feature"])
        return factor_recovery(study, table)

    recipe = {
        "cds": study.run.key("cds.parquet"),
        "code": code_digest("truth"),
    }
    return study.run.table("recovery.parquet", recipe, build)
