"""Which features are edited: chosen on ``select`` windows, by their score alone."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import pandas as pd

from helpers.activations import WindowSummary, summarize
from helpers.causal._windows import blocks_of
from helpers.cds import context_divergence
from helpers.dictionaries import seed_sae
from helpers.interventions import MatchedSets, matched_random_sets
from helpers.runs import code_digest
from helpers.sae import BatchTopKSAE
from helpers.stages import Study, score_context, summaries, train_saes

__all__ = [
    "ContextFeatures",
    "Dictionary",
    "context_features",
    "dictionaries",
    "held_out_features",
    "input_recipe",
    "lineage_features",
    "matched_sets",
    "other_training",
]

ALPHA = 0.05  # family-wise error rate of the selection, per block
SIZES = (50, 40, 30, 20, 15, 10, 5)  # features edited at once, the largest that matches
_N_TRIED = 49  # random sets by which a match is judged
_MATCHED_P = 0.1  # Kolmogorov-Smirnov p, below which sets do not match


class ContextFeatures(NamedTuple):
    """Features of a block by their context score on ``select`` windows.

    Attributes
    ----------
    selected : numpy.ndarray of int
        The strongest significant features by absolute CDS, as many of up to 50 as
        random sets of other features can match (`matched_sets`). Only firing and
        length are looked at, no effect.
    significant : numpy.ndarray of int
        All with Bonferroni p <= 0.05, strongest first.
    pools : dict of str to numpy.ndarray
        Where random sets are drawn from: ``any other`` feature that fires, and those
        ``not significant``. Pools smaller than twice the selection are left out.
    density, written_norm : numpy.ndarray, shape (d_sae,)
        Share of tokens on which a feature fires, and the length it writes.
    """

    selected: np.ndarray
    significant: np.ndarray
    pools: dict[str, np.ndarray]
    density: np.ndarray
    written_norm: np.ndarray


class Dictionary(NamedTuple):
    """A dictionary of a block, what its features do, and which were chosen.

    Attributes
    ----------
    layer : int
        Block.
    sae : BatchTopKSAE
        The dictionary.
    summary : WindowSummary
        Mean activation and firing of its features on every window.
    features : ContextFeatures
        The features chosen.
    """

    layer: int
    sae: BatchTopKSAE
    summary: WindowSummary
    features: ContextFeatures


def input_recipe(study: Study) -> dict:
    """Return the part of a recipe that names streams, dictionaries and scores."""
    score_context(study)  # makes the artefacts named here
    return {
        "activations": study.streams_run.key("activations.zarr"),
        "saes": [study.run.key(f"sae/block{b}") for b in study.blocks],
        "cds": study.run.key("cds.parquet"),
        "seed": study.seed,
    }


def context_features(study: Study) -> dict[int, ContextFeatures]:
    """Choose features in every block that has some to edit.

    They are chosen by the shared score of all lineages, and kept in the run folder.

    Raises
    ------
    ValueError
        If no block has a significant feature.
    """

    def build() -> pd.DataFrame:
        by_layer, saes = summaries(study), train_saes(study)
        tables = [
            _to_table(features).assign(layer=layer)
            for layer, table in score_context(study).groupby("layer")
            if (features := _choose(study, table, by_layer[layer], saes[layer]))
        ]
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()

    recipe = input_recipe(study) | {
        "limits": [ALPHA, SIZES, _N_TRIED, _MATCHED_P],
        "code": code_digest("causal._selection", "interventions"),
    }
    table = study.run.table("context_features.parquet", recipe, build)
    if table.empty:
        raise ValueError(
            f"no block of {study.blocks} has both a feature with Bonferroni p <= "
            f"{ALPHA} and others to draw random sets from: there is nothing to edit"
        )
    return {layer: _from_table(rows) for layer, rows in table.groupby("layer")}


def dictionaries(study: Study) -> dict[int, Dictionary]:
    """Return the dictionary of every block that has a feature to edit.

    Raises
    ------
    ValueError
        If no block has a significant feature.
    """
    chosen = context_features(study)
    by_layer, saes = summaries(study), train_saes(study)
    return {
        layer: Dictionary(layer, saes[layer], by_layer[layer], features)
        for layer, features in chosen.items()
    }


def _to_table(features: ContextFeatures) -> pd.DataFrame:
    """Return one row per feature of a dictionary."""
    rank = pd.Series(pd.NA, range(len(features.density)), dtype="Int64")
    rank[features.significant] = np.arange(1, len(features.significant) + 1)
    return pd.DataFrame(
        {
            "feature": rank.index,
            "rank": rank,  # by absolute CDS, of the significant ones
            "selected": (rank <= len(features.selected)).fillna(False),
            "density": features.density,
            "written_norm": features.written_norm,
        }
    )


def _from_table(rows: pd.DataFrame) -> ContextFeatures:
    """Return what `_to_table` was given."""
    ranked = rows.dropna(subset="rank").sort_values("rank")
    significant = ranked["feature"].to_numpy(copy=True)
    selected = significant[: rows["selected"].sum()]
    density = rows["density"].to_numpy(copy=True)
    pools = _pools(selected, significant, density)
    return ContextFeatures(
        selected, significant, pools, density, rows["written_norm"].to_numpy(copy=True)
    )


def _pools(
    selected: np.ndarray, significant: np.ndarray, density: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the features that random sets may be drawn from."""
    firing = np.flatnonzero(density > 0)
    pools = {
        "any other": np.setdiff1d(firing, selected),
        "not significant": np.setdiff1d(firing, significant),
    }
    return {k: v for k, v in pools.items() if len(v) >= 2 * len(selected)}


def held_out_features(
    study: Study, lineage: str, known: dict[int, Dictionary]
) -> dict[int, ContextFeatures]:
    """Choose features by the other lineages alone, from the same dictionaries.

    Returns
    -------
    dict of int to ContextFeatures
        Empty if there is no other lineage or nothing is significant.
    """
    kept = (study.design["lineage"] != lineage).to_numpy()
    if not kept.any():
        return {}
    chosen = {}
    for layer, of_block in known.items():
        table = _score(study, of_block.summary, kept)
        features = _choose(study, table, of_block.summary, of_block.sae)
        if features is not None:
            chosen[layer] = features
    return chosen


def lineage_features(table: pd.DataFrame, lineage: str, n: int) -> np.ndarray:
    """Return the strongest features of a block that were called in one lineage only.

    Parameters
    ----------
    table : pandas.DataFrame
        Scores of the block, from `helpers.stages.score_context`.
    lineage : str
        The lineage.
    n : int
        At most so many, by the absolute difference between its contexts.
    """
    own = table[(table["class"] == "lineage-only") & (table["lineages"] == lineage)]
    order = own[f"delta_{lineage}"].abs().sort_values(ascending=False).index
    return own.loc[order, "feature"].to_numpy()[:n]


def other_training(study: Study, layer: int, seed: int) -> Dictionary:
    """Train a dictionary of a block with another seed, and choose its features.

    Raises
    ------
    ValueError
        If it has no significant feature.
    """
    sae = seed_sae(study, layer, seed)
    summary = summarize(study.store, layer, sae)
    everyone = np.ones(len(study.design), dtype=bool)
    table = _score(study, summary, everyone)
    features = _choose(study, table, summary, sae)
    if features is None:
        raise ValueError(f"seed {seed}: no significant feature in block {layer}")
    return Dictionary(layer, sae, summary, features)


def _score(study: Study, summary: WindowSummary, kept: np.ndarray) -> pd.DataFrame:
    """Score the features of a block on ``select`` windows of some biosamples."""
    windows = study.dataset.windows_of("select")
    design = study.design[kept].reset_index(drop=True)
    acts = summary.mean_acts[kept][:, windows]
    return context_divergence(acts, design, blocks_of(study, windows)).reset_index()


def _choose(
    study: Study, table: pd.DataFrame, summary: WindowSummary, sae: BatchTopKSAE
) -> ContextFeatures | None:
    """Choose the features of a block by its table of scores, if there are any."""
    windows = study.dataset.windows_of("select")
    density = summary.firing[:, windows].mean(axis=(0, 1), dtype=np.float64)
    size = summary.mean_acts[:, windows].mean(axis=(0, 1), dtype=np.float64)
    length = sae.decoder_directions.norm(dim=1).cpu().numpy()
    passed = table[table["p_bonferroni"] <= ALPHA]
    ranked = passed.sort_values("cds", key=np.abs, ascending=False)
    significant = ranked["feature"].to_numpy(copy=True)
    chosen = None
    for n in SIZES:
        selected = significant[:n]
        pools = _pools(selected, significant, density)
        if not len(selected) or "any other" not in pools:
            continue
        chosen = ContextFeatures(selected, significant, pools, density, size * length)
        match = matched_sets(chosen, "any other", _N_TRIED, study.seed)
        if min(match.density_p, match.norm_p) >= _MATCHED_P:
            break
    return chosen


def matched_sets(
    features: ContextFeatures, pool: str, n_sets: int, seed: int
) -> MatchedSets:
    """Draw random sets like the selected one, without a warning if they are not.

    How well they match is part of the result.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="random sets are loosely matched")
        return matched_random_sets(
            features.selected,
            features.pools[pool],
            features.density,
            features.written_norm,
            n_sets=n_sets,
            random_state=seed,
        )
