"""How effects grow: with the number of features, with the dose, one by one, by lineage.

All on ``test`` windows of the in vivo input, whose features take their in vitro
activations.
"""

from __future__ import annotations

from itertools import chain, product

import numpy as np
import pandas as pd
from scipy.stats import spearmanr
from tqdm.std import tqdm

from helpers.blockstats import block_bootstrap
from helpers.causal._ablation import context_readout
from helpers.causal._edits import edit
from helpers.causal._registration import registered_windows
from helpers.causal._selection import (
    Dictionary,
    dictionaries,
    input_recipe,
    lineage_features,
)
from helpers.causal._side_by_side import side_by_side
from helpers.causal._windows import blocks_of, read_streams
from helpers.runs import code_digest
from helpers.stages import Study, score_context
from helpers.token_classes import token_classes

__all__ = [
    "dose_response",
    "edit_in_vivo",
    "growth_trend",
    "lineage_matrix",
    "single_features",
    "with_interval",
]

N_WINDOWS = 16
SET_SIZES = (1, 2, 5, 10, 20, 50)  # and all significant features
STRENGTHS = (-1.0, 0.0, 0.25, 0.5, 1.0, 1.5, 2.0)  # lambda; -1: backwards, a control
N_LINEAGE = 20  # features of a lineage at most
OUTCOMES = ("vivo-up", "vitro-up")
_CODE = ("causal._dose", "interventions", "probe", "token_classes")
_CODE += ("masked", "blockstats")


def dose_response(study: Study) -> pd.DataFrame:
    """Ablate more and more features, and more and more of them.

    Parameters
    ----------
    study : Study
        The run; `helpers.causal.register` must have been called.

    Returns
    -------
    pandas.DataFrame
        One row per ``layer``, ``lineage``, ``outcome`` (token class), ``n_features``
        (the strongest by CDS; more than the selected ones too) and ``strength``
        (lambda): ``effect`` with ``low``, ``high`` (95 %, genomic blocks);
        ``sum_of_singles``, the sum of the effects of the same features one by one, and
        ``additivity``, the effect over that sum, with an interval. The last ones for
        strength 1 and sets within the selected features only; additivity is missing
        where the interval of the sum holds 0.

    Raises
    ------
    FileNotFoundError, ValueError
        If the analysis is not registered, or nothing is significant in any block.
    """
    return _tables(study)[0]


def single_features(study: Study) -> pd.DataFrame:
    """Ablate every selected feature alone.

    Returns
    -------
    pandas.DataFrame
        One row per ``layer``, ``lineage``, ``outcome`` and ``feature``: its ``rank`` by
        absolute CDS, ``effect`` with ``low``, ``high`` (95 %, genomic blocks), and
        ``norm``, mean length of the change of a window's stream.
    """
    return _tables(study)[1]


def _tables(study: Study) -> list[pd.DataFrame]:
    windows = registered_windows(study, N_WINDOWS)
    recipe = input_recipe(study) | {
        "sizes": [SET_SIZES, STRENGTHS, N_WINDOWS],
        "code": code_digest(*_CODE),
    }
    names = ["dose_response.parquet", "single_features.parquet"]
    return study.run.tables(names, recipe, lambda: _measure(study, windows))


def _measure(study: Study, windows: np.ndarray) -> tuple[pd.DataFrame, pd.DataFrame]:
    classes, blocks = token_classes(study, windows), blocks_of(study, windows)

    def of_condition(condition: tuple) -> tuple[list[dict], list[pd.DataFrame]]:
        of_block, lineage = condition
        selected = of_block.features.selected
        significant = of_block.features.significant
        sizes = [n for n in SET_SIZES if n < len(significant)] + [len(significant)]
        grown = [significant[:n] for n in sizes]
        alone = [selected[[k]] for k in range(len(selected))]
        change, norm = edit_in_vivo(
            study, of_block, lineage, windows, classes[lineage], [*grown, *alone]
        )
        by_set, by_feature = change[: len(grown)], change[len(grown) :]
        doses = [
            edit_in_vivo(
                study, of_block, lineage, windows, classes[lineage], [selected], dose
            )[0][0]
            for dose in STRENGTHS
        ]
        rows, singles = [], []
        for k, outcome in enumerate(OUTCOMES):
            here = np.isfinite(change[0, :, k])
            if len(set(blocks[here])) < 2:
                continue
            head = {"layer": of_block.layer, "lineage": lineage, "outcome": outcome}
            one = by_feature[:, here, k]
            for n, of_set in zip(sizes, by_set[:, here, k], strict=True):
                total = one[:n].sum(axis=0) if n <= len(selected) else None
                row = with_interval(of_set, blocks[here], study.seed, total)
                rows.append(head | {"n_features": n, "strength": 1.0} | row)
            for dose, of_dose in zip(STRENGTHS, doses, strict=True):
                row = with_interval(of_dose[here, k], blocks[here], study.seed)
                rows.append(
                    head | {"n_features": len(selected), "strength": dose} | row
                )
            drawn = block_bootstrap(one, blocks[here], random_state=study.seed)
            singles.append(
                pd.DataFrame(
                    {
                        "feature": selected,
                        "rank": np.arange(1, len(selected) + 1),
                        "effect": drawn.estimate,
                        "low": drawn.low,
                        "high": drawn.high,
                        "norm": norm[len(grown) :].mean(axis=1),
                    }
                ).assign(**head)
            )
        return rows, singles

    conditions = list(product(dictionaries(study).values(), study.lineages))
    found = side_by_side(of_condition, conditions, study, desc="dose-response")
    rows, singles = (list(chain.from_iterable(of)) for of in zip(*found, strict=True))
    table = pd.DataFrame(rows).drop_duplicates(
        ["layer", "lineage", "outcome", "n_features", "strength"], ignore_index=True
    )
    return table, pd.concat(singles, ignore_index=True)


def edit_in_vivo(
    study: Study,
    of_block: Dictionary,
    lineage: str,
    windows: np.ndarray,
    classes: np.ndarray,
    sets: list[np.ndarray],
    strength: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Give features of the in vivo input their in vitro activations."""
    in_vitro, in_vivo = study.pair(lineage)
    reference, x = (
        read_streams(study, of_block.layer, b, windows) for b in (in_vitro, in_vivo)
    )
    return edit(
        study,
        of_block.layer,
        of_block.sae,
        x,
        sets,
        context_readout(study, windows, in_vivo, classes),
        reference=reference,
        strength=strength,
    )


def with_interval(
    change: np.ndarray,
    blocks: np.ndarray,
    seed: int,
    sum_of_singles: np.ndarray | None = None,
) -> dict[str, float]:
    """Return mean change per window and, beside a sum of singles, their ratio.

    There is no ratio where the interval of the sum holds 0: it would mean nothing.
    """
    drawn = block_bootstrap(change, blocks, random_state=seed)
    row = {"effect": drawn.estimate, "low": drawn.low, "high": drawn.high}
    if sum_of_singles is None:
        return {k: float(v) for k, v in row.items()}
    total = block_bootstrap(sum_of_singles, blocks, random_state=seed)
    row["sum_of_singles"] = total.estimate
    names = ("additivity", "additivity_low", "additivity_high")
    row |= dict.fromkeys(names, np.nan)
    if total.low > 0 or total.high < 0:
        ratio = block_bootstrap(
            change, blocks, denominators=sum_of_singles, random_state=seed
        )
        row |= dict(zip(names, (ratio.estimate, ratio.low, ratio.high), strict=True))
    return {k: float(v) for k, v in row.items()}


def growth_trend(growth: pd.DataFrame) -> pd.DataFrame:
    """Say how steadily effects grow with the number of features and with the dose.

    Parameters
    ----------
    growth : pandas.DataFrame
        From `dose_response`.

    Returns
    -------
    pandas.DataFrame
        One row per ``grows`` (``n_features`` or ``strength``), ``layer``, ``lineage``
        and ``outcome``: ``spearman``, the rank correlation of the effect with what
        grows, in the direction of the last effect; ``monotone``, whether no step goes
        back.
    """
    rows = []
    for key, of in growth.groupby(["layer", "lineage", "outcome"]):
        n_selected = of.loc[of["strength"] != 1, "n_features"].iloc[0]
        for grows, own in (
            ("n_features", of[of["strength"] == 1]),
            ("strength", of[of["n_features"] == n_selected]),
        ):
            effect = own.sort_values(grows)["effect"].to_numpy()
            forward = effect * np.sign(effect[-1])
            head = dict(zip(("layer", "lineage", "outcome"), key, strict=True))
            found = {
                "spearman": spearmanr(np.arange(len(forward)), forward).statistic,
                "monotone": bool((np.diff(forward) >= 0).all()),
            }
            rows.append({"grows": grows} | head | found)
    return pd.DataFrame(rows)


def lineage_matrix(study: Study) -> pd.DataFrame:
    """Ablate features called in one lineage only, and look at every lineage.

    Returns
    -------
    pandas.DataFrame
        One row per ``layer``, ``features`` (the lineage they were called in),
        ``lineage`` (whose input is edited) and ``outcome``: ``n_features`` (at most
        20), ``effect`` with ``low``, ``high``, and ``per_norm``, the effect per length
        of changed stream. Empty where no feature was called in one lineage only.
    """
    windows = registered_windows(study, N_WINDOWS)

    def build() -> pd.DataFrame:
        classes, blocks = token_classes(study, windows), blocks_of(study, windows)
        scores = score_context(study)
        rows = []
        for layer, of_block in tqdm(dictionaries(study).items(), desc="lineages"):
            table = scores[scores["layer"] == layer]
            own = {x: lineage_features(table, x, N_LINEAGE) for x in study.lineages}
            own = {x: features for x, features in own.items() if len(features)}
            for lineage in study.lineages if own else ():
                change, norm = edit_in_vivo(
                    study,
                    of_block,
                    lineage,
                    windows,
                    classes[lineage],
                    list(own.values()),
                )
                for i, (name, features) in enumerate(own.items()):
                    for k, outcome in enumerate(OUTCOMES):
                        here = np.isfinite(change[i, :, k])
                        if len(set(blocks[here])) < 2:
                            continue
                        of_set = change[i, here, k]
                        length = norm[i, here].sum()
                        rows.append(
                            {
                                "layer": layer,
                                "features": name,
                                "lineage": lineage,
                                "outcome": outcome,
                                "n_features": len(features),
                                **with_interval(of_set, blocks[here], study.seed),
                                "per_norm": of_set.sum() / length if length else 0.0,
                            }
                        )
        columns = ["layer", "features", "lineage", "outcome", "n_features"]
        columns += ["effect", "low", "high", "per_norm"]
        return pd.DataFrame(rows, columns=columns)

    recipe = input_recipe(study) | {
        "sizes": [N_LINEAGE, N_WINDOWS],
        "code": code_digest(*_CODE),
    }
    return study.run.table("lineage_matrix.parquet", recipe, build)
