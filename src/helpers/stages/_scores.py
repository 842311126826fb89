"""What features do in the windows of a run, and their scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from helpers.activations import (
    WindowSummary,
    summarize,
)
from helpers.cds import context_divergence, layer_curve
from helpers.runs import code_digest
from helpers.stages._dictionaries import train_saes
from helpers.stages._study import Study

__all__ = [
    "called_features",
    "feature_acts",
    "is_called",
    "late_early_ratio",
    "layer_counts",
    "score_context",
    "summaries",
]

N_FLIPS = 2000
ALPHA = 0.05  # family-wise, per block


def summaries(study: Study) -> dict[int, WindowSummary]:
    """Return mean activation and firing rate of every feature per window."""
    found = {}
    for layer, path in _summary_files(study).items():
        with np.load(path) as arrays:
            found[layer] = WindowSummary(**arrays)
    return found


def _summary_files(study: Study) -> dict[int, Path]:
    """Make what `summaries` reads."""
    saes = train_saes(study)
    store = study.store
    found = {}
    for layer in study.blocks:

        def build(partial: Path, layer: int = layer) -> None:
            summary = summarize(store, layer, saes[layer])
            with open(partial, "wb") as file:
                np.savez(file, **summary._asdict())

        recipe = {
            "sae": study.run.key(f"sae/block{layer}"),
            "code": code_digest("activations._summary"),
        }
        found[layer] = study.run.artefact(f"summaries/block{layer}.npz", recipe, build)
    return found


def score_context(study: Study, split: str = "select") -> pd.DataFrame:
    """Return the Context Divergence Score of every feature of every block.

    Parameters
    ----------
    study : Study
        The run.
    split : str
        Windows to score on: ``select`` chooses features, ``test`` estimates what was
        chosen.

    Returns
    -------
    pandas.DataFrame
        The table of `helpers.cds.context_divergence` with columns ``layer`` and
        ``feature`` in front.
    """
    _summary_files(study)  # what the recipe names
    windows = study.dataset.windows_of(split)
    blocks = study.dataset.windows["block"].to_numpy()[windows]

    def build() -> pd.DataFrame:
        tables = []
        for layer, summary in summaries(study).items():
            table = context_divergence(
                summary.mean_acts[:, windows],
                study.design,
                blocks,
                firing_rates=summary.firing[:, windows],
                n_flips=N_FLIPS if len(set(blocks)) >= 20 else 0,
                random_state=study.seed,
            )
            tables.append(table.reset_index().assign(layer=layer))
        joined = pd.concat(tables, ignore_index=True)
        joined.attrs = {}
        front = ["layer", "feature"]
        return joined[front + [c for c in joined if c not in front]]

    recipe = {
        "summaries": [study.run.key(f"summaries/block{b}.npz") for b in study.blocks],
        "split": split,
        "n_flips": N_FLIPS,
        "seed": study.seed,
        "code": code_digest("cds", "pairing", "blockstats"),
    }
    name = "cds.parquet" if split == "select" else f"cds_{split}.parquet"
    return study.run.table(name, recipe, build)


def is_called(classes: pd.Series) -> pd.Series:
    """Return which classes of `context_divergence` are classes of context."""
    return ~classes.isin(["none", "untested"])


def called_features(table: pd.DataFrame) -> pd.DataFrame:
    """Return the features that `context_divergence` put in a class of context."""
    return table[is_called(table["class"])]


def layer_counts(table: pd.DataFrame) -> pd.DataFrame:
    """Count significant features per block.

    Parameters
    ----------
    table : pandas.DataFrame
        From `score_context`.

    Returns
    -------
    pandas.DataFrame
        Indexed by ``layer``: ``tested``; ``naive`` (Welch over windows, Bonferroni),
        ``shared`` (paired blocks, Bonferroni), ``max_t`` (the same by sign flips) and
        the number of features of each class.
    """
    tested = table["class"] != "untested"
    flags = pd.DataFrame(
        {
            "layer": table["layer"],
            "tested": tested,
            "shared": table["p_bonferroni"] <= ALPHA,
        }
    )
    n_tested = tested.groupby(table["layer"]).transform("sum")
    flags["naive"] = table["p_naive"] * n_tested <= ALPHA
    if "p_max_t" in table:
        flags["max_t"] = table["p_max_t"] <= ALPHA
    classes = pd.get_dummies(called_features(table)["class"]).reindex(
        table.index, fill_value=False
    )
    return pd.concat([flags, classes], axis=1).groupby("layer").sum()


def late_early_ratio(study: Study) -> pd.DataFrame:
    """Return the ratio of significant features, last block over first.

    Returns
    -------
    pandas.DataFrame
        One row: ``early``, ``late`` (counts by Bonferroni over equally many tests in
        every block, see `helpers.cds.layer_curve`), ``ratio``, ``low``, ``high``
        (95 %, genomic blocks resampled), ``early_layer``, ``late_layer``. A single
        block is compared with itself.
    """
    _summary_files(study)  # what the recipe names
    windows = study.dataset.windows_of("select")
    blocks = study.dataset.windows["block"].to_numpy()[windows]
    layers = sorted(study.blocks)

    def build() -> pd.DataFrame:
        by_layer = summaries(study)
        compared = layers if len(layers) > 1 else layers * 2
        acts = [by_layer[layer].mean_acts[:, windows] for layer in compared]
        curve = layer_curve(
            dict(enumerate(acts)),
            study.design,
            blocks,
            alpha=ALPHA,
            random_state=study.seed,
        )
        row = {k: v for k, v in curve.ratio._asdict().items() if k != "draws"}
        ends = {"early_layer": layers[0], "late_layer": layers[-1]}
        return pd.DataFrame([row | ends])

    recipe = {
        "summaries": [study.run.key(f"summaries/block{b}.npz") for b in layers],
        "alpha": ALPHA,
        "seed": study.seed,
        "code": code_digest("cds", "pairing", "blockstats"),
    }
    return study.run.table("layer_ratio.parquet", recipe, build)


@torch.no_grad()
def feature_acts(
    study: Study, layer: int, features: np.ndarray, windows: np.ndarray
) -> np.ndarray:
    """Return the activations of some features, token by token.

    Parameters
    ----------
    study : Study
        The run.
    layer : int
        Block.
    features, windows : numpy.ndarray of int
        Which features, which windows.

    Returns
    -------
    numpy.ndarray, shape (n_biosamples, n_windows, n_tokens, n_features), float32
    """
    sae = train_saes(study)[layer]
    store = study.store
    array, step = store.layer(layer), store.chunk_windows
    windows = np.asarray(windows)
    chosen = torch.tensor(np.asarray(features), device=study.device)
    found = np.empty(
        (array.shape[0], len(windows), array.shape[2], len(features)), np.float32
    )
    for b in range(array.shape[0]):
        for chunk in np.unique(windows // step):
            here = np.flatnonzero(windows // step == chunk)
            low, high = windows[here].min(), windows[here].max() + 1
            streams = torch.from_numpy(array[b, low:high][windows[here] - low])
            for i, x in zip(here, streams.to(study.device), strict=True):
                found[b, i] = sae.encode(x)[:, chosen].cpu().numpy()
    return found
