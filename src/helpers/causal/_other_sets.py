"""The main ablation with features chosen by other rules than the context score."""

from __future__ import annotations

from itertools import chain, product

import numpy as np
import pandas as pd

from helpers.causal._ablation import CLASS_OUTCOMES
from helpers.causal._dose import N_WINDOWS, edit_in_vivo, with_interval
from helpers.causal._registration import registered_windows
from helpers.causal._selection import ContextFeatures, dictionaries, input_recipe
from helpers.causal._side_by_side import side_by_side
from helpers.causal._windows import blocks_of
from helpers.runs import code_digest
from helpers.stages import Study
from helpers.token_classes import token_classes

__all__ = ["OTHER_SETS", "other_sets"]

OTHER_SETS = ("context", "ranks shuffled", "longest written", "most often firing")
N_SHUFFLED = 20  # draws of the shuffled ranks, averaged
_CODE = ("causal._other_sets", "interventions", "probe", "token_classes")
_CODE += ("masked", "blockstats")


def other_sets(study: Study) -> pd.DataFrame:
    """Ablate as many features as were selected, chosen by other rules.

    On test windows of the in vivo input, whose features take their in vitro
    activations: the ``context`` features that were selected; as many significant ones
    with their ``ranks shuffled`` (mean of 20 draws); and the features that are
    ``longest written`` or ``most often firing`` on select windows, whatever their
    score. Large or busy features need not tell contexts apart.

    Parameters
    ----------
    study : Study
        The run; `helpers.causal.register` must have been called.

    Returns
    -------
    pandas.DataFrame
        One row per ``layer``, ``lineage``, ``outcome`` (token class) and ``features``
        (one of `OTHER_SETS`): ``n_features``, ``n_shared`` with the selected ones,
        ``effect`` with ``low``, ``high`` (95 %, genomic blocks), and ``per_norm``, the
        effect per length of changed stream.

    Raises
    ------
    FileNotFoundError, ValueError
        If the analysis is not registered, or nothing is significant in any block.
    """
    windows = registered_windows(study, N_WINDOWS)

    def build() -> pd.DataFrame:
        classes, blocks = token_classes(study, windows), blocks_of(study, windows)

        def of_condition(condition: tuple) -> list[dict]:
            of_block, lineage = condition
            sets = _choose(of_block.features, study.seed)
            every = list(chain.from_iterable(sets.values()))
            change, norm = edit_in_vivo(
                study, of_block, lineage, windows, classes[lineage], every
            )
            edges = np.cumsum([len(of) for of in sets.values()])[:-1]
            parts = zip(np.split(change, edges), np.split(norm, edges), strict=True)
            rows = []
            for (name, own), (of_sets, length) in zip(sets.items(), parts, strict=True):
                effect, size = of_sets.mean(axis=0), length.mean(axis=0)
                shared = np.mean([np.isin(of_block.features.selected, x) for x in own])
                for k, outcome in enumerate(CLASS_OUTCOMES):
                    here = np.isfinite(effect[:, k])
                    if len(set(blocks[here])) < 2:
                        continue
                    mean, total = effect[here, k], size[here].sum()
                    row = {
                        "layer": of_block.layer,
                        "lineage": lineage,
                        "outcome": outcome,
                        "features": name,
                        "n_features": len(own[0]),
                        "n_shared": shared * len(own[0]),
                        **with_interval(mean, blocks[here], study.seed),
                        "per_norm": mean.sum() / total if total else 0.0,
                    }
                    rows.append(row)
            return rows

        conditions = list(product(dictionaries(study).values(), study.lineages))
        found = side_by_side(of_condition, conditions, study, desc="other sets")
        return pd.DataFrame(chain.from_iterable(found))

    recipe = input_recipe(study) | {
        "sizes": [N_WINDOWS, N_SHUFFLED],
        "code": code_digest(*_CODE),
    }
    return study.run.table("other_sets.parquet", recipe, build)


def _choose(features: ContextFeatures, seed: int) -> dict[str, list[np.ndarray]]:
    """Return the sets of every rule, as large as the selection."""
    n = len(features.selected)
    rng = np.random.default_rng(seed)
    shuffled = [
        rng.choice(features.significant, n, replace=False) for _ in range(N_SHUFFLED)
    ]

    def largest(of: np.ndarray) -> list[np.ndarray]:
        return [np.argsort(-of, kind="stable")[:n]]

    chosen = [
        [features.selected],
        shuffled,
        largest(features.written_norm),
        largest(features.density),
    ]
    return dict(zip(OTHER_SETS, chosen, strict=True))
