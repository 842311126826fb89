"""Ablate the context features of every block beside matched random sets."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, product

import numpy as np
import pandas as pd
import torch

from helpers.blockstats import adjust_p_values, block_bootstrap
from helpers.causal._edits import Readout, class_means, edit
from helpers.causal._registration import registered_windows
from helpers.causal._selection import (
    ContextFeatures,
    Dictionary,
    dictionaries,
    input_recipe,
    matched_sets,
)
from helpers.causal._side_by_side import side_by_side
from helpers.causal._windows import blocks_of, token_classes
from helpers.interventions import MatchedSets, effect_size
from helpers.runs import code_digest
from helpers.stages import Study

__all__ = [
    "N_RANDOM",
    "N_WINDOWS",
    "OUTCOMES",
    "ablate_condition",
    "ablation",
    "ablation_random",
    "compare",
    "context_readout",
    "match_controls",
]

N_WINDOWS = 16  # of the test split, spread over its genomic blocks
# Random sets per value and control; zero, and features that differ in more than their
# significance, are the second look.
N_RANDOM = {
    "resample": {"any other": 199, "not significant": 49},
    "zero": {"any other": 49},
}
OUTCOMES = ("vivo-up", "vitro-up", "invariant", "loss")
INPUTS = {"vivo-to-vitro": (1, 0), "vitro-to-vivo": (0, 1)}  # edited, reference
_MIN_WINDOWS = 3  # with a token of the class, for an effect to be given
_CODE = ("causal._ablation", "interventions", "outcomes", "blockstats")


def ablation(study: Study) -> pd.DataFrame:
    """Replace the context features of every block and measure what changes.

    The selected features of a block (`context_features`) take the activations they have
    on the same window in the other context (``resample``), or none (``zero``), on 16
    test windows, and so do random sets matched on density and written norm. An effect
    is the mean over windows of edited minus unedited.

    Parameters
    ----------
    study : Study
        The run; `helpers.causal.register` must have been called.

    Returns
    -------
    pandas.DataFrame
        One row per ``layer``, ``lineage``, ``direction`` (``vivo-to-vitro``: the in
        vivo input is edited), ``value``, ``outcome`` and ``control``, the pool of the
        random sets. Outcomes are the mean log1p prediction at tokens of a class, and
        the Poisson ``loss`` against the measured track of the edited input. ``effect``
        with its 95 % interval (2,000 draws of genomic blocks), ``random`` the mean
        effect of random sets, ``difference`` the paired difference with its interval;
        ``d_z`` (paired over windows), ``z``, ``p`` and ``q_bh`` (over the tests of a
        value and control); ``per_norm`` and ``p_per_norm``, the effect per length of
        changed stream; ``norm_ratio``, that length over the random sets';
        ``n_features``, ``n_windows``, and how well random sets match: ``widened``
        (deciles), ``density_p``, ``norm_p`` (Kolmogorov-Smirnov). Rows of fewer than 3
        windows with a token of the class are left out.

    Raises
    ------
    FileNotFoundError, ValueError
        If the analysis is not registered, or nothing is significant in any block.
    """
    return _tables(study)[0]


def ablation_random(study: Study) -> pd.DataFrame:
    """Return the mean effect of every random set of `ablation`.

    Returns
    -------
    pandas.DataFrame
        One row per random set: ``layer``, ``lineage``, ``direction``, ``value``,
        ``outcome``, ``control``, ``effect``, ``per_norm``.
    """
    return _tables(study)[1]


def _tables(study: Study) -> list[pd.DataFrame]:
    windows = registered_windows(study, N_WINDOWS)
    recipe = input_recipe(study) | {
        "windows": N_WINDOWS,
        "random": N_RANDOM,
        "code": code_digest(*_CODE),
    }
    names = ["ablation.parquet", "ablation_random.parquet"]
    return study.run.tables(names, recipe, lambda: _ablate(study, windows))


def _ablate(study: Study, windows: np.ndarray) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the tables of `ablation` and `ablation_random`."""
    if len(windows) < _MIN_WINDOWS:
        raise ValueError(
            f"ablation needs at least {_MIN_WINDOWS} test windows; got {len(windows)}"
        )
    classes = token_classes(study, windows)
    chosen = dictionaries(study)
    matches = {
        (layer, value): match_controls(of_block.features, value, study.seed)
        for (layer, of_block), value in product(chosen.items(), N_RANDOM)
    }

    def of_condition(layer: int, lineage: str, direction: str, value: str) -> tuple:
        of_block, matched = chosen[layer], matches[layer, value]
        return ablate_condition(
            study, of_block, matched, windows, classes, lineage, direction, value
        )

    conditions = list(product(chosen, study.lineages, INPUTS, N_RANDOM))
    found = side_by_side(lambda c: of_condition(*c), conditions, study, desc="ablation")
    rows, random = (list(chain.from_iterable(of)) for of in zip(*found, strict=True))
    table = pd.DataFrame(rows)
    family = table.groupby(["value", "control"])["p"]
    table["q_bh"] = family.transform(lambda p: adjust_p_values(p.to_numpy(), "bh"))
    return table, pd.concat(random, ignore_index=True)


def match_controls(
    features: ContextFeatures, value: str, seed: int
) -> dict[str, MatchedSets]:
    """Draw the random sets of every control that has features to draw from."""
    return {
        control: matched_sets(features, control, n_sets, seed)
        for control, n_sets in N_RANDOM[value].items()
        if control in features.pools
    }


def ablate_condition(
    study: Study,
    of_block: Dictionary,
    matched: dict[str, MatchedSets],
    windows: np.ndarray,
    classes: dict[str, np.ndarray],
    lineage: str,
    direction: str,
    value: str,
) -> tuple[list[dict], list[pd.DataFrame]]:
    """Ablate the selected features of a block and the random sets of every control.

    Returns
    -------
    rows : list of dict
        Of the table of `ablation`, one per outcome and control.
    random : list of pandas.DataFrame
        Of the table of `ablation_random`.
    """
    features, blocks = of_block.features, blocks_of(study, windows)
    edited, other = (study.pair(lineage)[i] for i in INPUTS[direction])
    change, norm = edit(
        study,
        of_block.layer,
        of_block.sae,
        windows,
        [features.selected, *np.concatenate([m.sets for m in matched.values()])],
        context_readout(study, windows, edited, classes[lineage]),
        edited=edited,
        reference=other if value == "resample" else None,
    )
    rows, random, first = [], [], 1
    for control, match in matched.items():
        of_control = [0, *range(first, first + len(match.sets))]
        first += len(match.sets)
        for k, outcome in enumerate(OUTCOMES):
            if np.isfinite(change[0, :, k]).sum() < _MIN_WINDOWS:
                continue
            summary, null = compare(
                change[of_control, :, k], norm[of_control], blocks, study.seed
            )
            head = {
                "layer": of_block.layer,
                "lineage": lineage,
                "direction": direction,
                "value": value,
                "outcome": outcome,
                "control": control,
            }
            fit = {k: v for k, v in match._asdict().items() if k != "sets"}
            fit["n_features"] = len(features.selected)
            rows.append(head | summary | fit)
            random.append(null.assign(**head))
    return rows, random


def context_readout(
    study: Study, windows: np.ndarray, biosample: int, classes: np.ndarray
) -> Readout:
    """Read the `OUTCOMES` of a biosample."""
    means = class_means([classes == name for name in OUTCOMES[:-1]], study.device)
    crop = study.model.config.crop
    target = study.dataset.target(windows, biosample)[:, crop : crop + classes.shape[1]]
    measured = torch.from_numpy(target).to(study.device)

    def of(part: slice) -> Callable[[torch.Tensor], torch.Tensor]:
        of_classes = means(part)

        def outcome(predicted: torch.Tensor) -> torch.Tensor:
            # The loss the model was trained with
            loss = predicted - measured[part] * torch.log(predicted + 1e-7)
            return torch.cat([of_classes(predicted), loss.mean(1, keepdim=True)], dim=1)

        return outcome

    return of


def compare(
    change: np.ndarray, norm: np.ndarray, blocks: np.ndarray, seed: int
) -> tuple[dict[str, float], pd.DataFrame]:
    """Set the first row of ``change`` (n_sets, n_windows) against the others."""
    here = np.isfinite(change[0])
    change, norm = change[:, here].astype(float), norm[:, here].astype(float)
    selected, random = change[0], change[1:]
    size = effect_size(selected, random, selected_norm=norm[0], random_norm=norm[1:])
    paired = np.stack([selected, selected - random.mean(axis=0)])
    drawn = block_bootstrap(paired, blocks[here], random_state=seed)
    summary = size._asdict() | {
        "low": drawn.low[0],
        "high": drawn.high[0],
        "random": random.mean(),
        "difference": drawn.estimate[1],
        "difference_low": drawn.low[1],
        "difference_high": drawn.high[1],
        "norm_ratio": norm[0].mean() / norm[1:].mean() if norm[1:].any() else np.nan,
        "n_windows": int(here.sum()),
    }
    length = norm[1:].sum(axis=1)
    null = {
        "effect": random.mean(axis=1),
        "per_norm": random.sum(axis=1) / np.where(length > 0, length, np.nan),
    }
    return summary, pd.DataFrame(null)
