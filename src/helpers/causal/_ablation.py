"""Ablate the context features of every block beside matched random sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain, product

import numpy as np
import pandas as pd
import torch

from helpers.blockstats import adjust_p_values, block_bootstrap
from helpers.causal._edits import Readout, class_means, edit
from helpers.causal._registration import ABLATION, registered_windows
from helpers.causal._selection import (
    ContextFeatures,
    Dictionary,
    dictionaries,
    input_recipe,
    matched_sets,
)
from helpers.causal._side_by_side import side_by_side
from helpers.causal._tracks import run_tracks
from helpers.causal._windows import blocks_of, read_streams
from helpers.interventions import MatchedSets
from helpers.outcomes import LOG_FLOOR, effect_size
from helpers.runs import code_digest
from helpers.stages import Study
from helpers.token_classes import token_classes

__all__ = [
    "CLASS_OUTCOMES",
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
# Random sets per track, value and control, so many that 5 % of the p-values are at most
# 0.05 by chance. What is not registered is the second look.
N_RANDOM = {
    ("visible", "resample"): {
        "any other": ABLATION["n_random_sets"],
        "not significant": 59,
    },
    ("visible", "zero"): {"any other": 19},
    ("hidden", "resample"): {"any other": 59},
}
CLASS_OUTCOMES = ("vivo-up", "vitro-up", "invariant")  # mean log1p prediction
COUNT_OUTCOMES = ("vivo-up counts", "vitro-up counts")  # mean prediction
OUTCOMES = (*CLASS_OUTCOMES, *COUNT_OUTCOMES, "loss")
INPUTS = {"vivo-to-vitro": (1, 0), "vitro-to-vivo": (0, 1)}  # edited, reference
_MIN_WINDOWS = 3  # with a token of the class, for an effect to be given
_MIN_BLOCKS = 2  # of the genome that these lie in
_CODE = ("causal._ablation", "interventions", "probe", "token_classes", "masked")
_CODE += ("outcomes", "blockstats")

# Maps a block and a biosample to its streams on the windows.
Streams = Callable[[int, int], torch.Tensor]


def ablation(study: Study) -> pd.DataFrame:
    """Replace the context features of every block and measure what changes.

    The selected features of a block (`context_features`) take the activations they have
    on the same window in the other context (``resample``), or none (``zero``), on 16
    test windows, and so do random sets matched on density and written norm. An effect
    is the mean over windows of edited minus unedited. The model sees the whole track
    (``visible``), of which it copies most, or none of it (``hidden``) and has to read
    the sequence.

    Parameters
    ----------
    study : Study
        The run; `helpers.causal.register` must have been called.

    Returns
    -------
    pandas.DataFrame
        One row per ``track``, ``layer``, ``lineage``, ``direction``
        (``vivo-to-vitro``: the in vivo input is edited), ``value``, ``outcome`` and
        ``control``, the pool of the random sets. Outcomes are the mean prediction at
        tokens of a class, log1p or as ``counts``, and the Poisson ``loss`` against the
        measured track of the edited input. ``effect``
        with its 95 % interval (2,000 draws of genomic blocks), ``random`` the mean
        effect of random sets, ``difference`` the paired difference with its interval;
        ``d_z`` (paired over windows), ``z``, ``p`` and ``q_bh`` (over the tests of a
        track, value and control); ``per_norm`` and ``p_per_norm``, the effect per
        length of changed stream; ``norm_ratio``, that length over the random sets';
        ``n_features``, ``n_windows``, and how well random sets match: ``widened``
        (deciles), ``density_p``, ``norm_p`` (Kolmogorov-Smirnov). Rows of fewer than 3
        windows with a token of the class, or of one genomic block, are left out.

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
        One row per random set: ``track``, ``layer``, ``lineage``, ``direction``,
        ``value``, ``outcome``, ``control``, ``effect``, ``per_norm``.
    """
    return _tables(study)[1]


def _tables(study: Study) -> list[pd.DataFrame]:
    windows = registered_windows(study, N_WINDOWS)
    recipe = input_recipe(study) | {
        "windows": N_WINDOWS,
        "random": [[*key, sizes] for key, sizes in N_RANDOM.items()],
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
        (layer, kind): match_controls(of_block.features, n_random, study.seed)
        for layer, of_block in chosen.items()
        for kind, n_random in N_RANDOM.items()
    }
    hidden = run_tracks(study, windows, ["hidden"])["hidden"].streams
    streams: dict[str, Streams] = {
        "visible": lambda layer, b: read_streams(study, layer, b, windows),
        "hidden": lambda layer, b: hidden[b][layer],
    }

    def of_condition(condition: tuple) -> tuple[list[dict], list[pd.DataFrame]]:
        layer, lineage, direction, (track, value) = condition
        match = matches[layer, (track, value)]
        if not match:
            return [], []
        rows, random = ablate_condition(
            study,
            chosen[layer],
            match,
            windows,
            classes,
            lineage,
            direction,
            value,
            streams[track],
        )
        return [{"track": track} | r for r in rows], [
            r.assign(track=track) for r in random
        ]

    conditions = list(product(chosen, study.lineages, INPUTS, N_RANDOM))
    found = side_by_side(of_condition, conditions, study, desc="ablation")
    rows, random = (list(chain.from_iterable(of)) for of in zip(*found, strict=True))
    table = pd.DataFrame(rows)
    family = table.groupby(["track", "value", "control"])["p"]
    table["q_bh"] = family.transform(lambda p: adjust_p_values(p.to_numpy(), "bh"))
    return table, pd.concat(random, ignore_index=True)


def match_controls(
    features: ContextFeatures, n_random: Mapping[str, int], seed: int
) -> dict[str, MatchedSets]:
    """Draw so many random sets from every pool that has features to draw from."""
    return {
        control: matched_sets(features, control, n_sets, seed)
        for control, n_sets in n_random.items()
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
    streams: Streams,
) -> tuple[list[dict], list[pd.DataFrame]]:
    """Ablate the selected features of a block and the random sets of every control.

    Returns
    -------
    rows : list of dict
        Of the table of `ablation`, one per outcome and control, without ``track``.
    random : list of pandas.DataFrame
        Of the table of `ablation_random`, likewise.
    """
    features, blocks = of_block.features, blocks_of(study, windows)
    edited, other = (study.pair(lineage)[i] for i in INPUTS[direction])
    change, norm = edit(
        study,
        of_block.layer,
        of_block.sae,
        streams(of_block.layer, edited),
        [features.selected, *np.concatenate([m.sets for m in matched.values()])],
        context_readout(study, windows, edited, classes[lineage]),
        reference=streams(of_block.layer, other) if value == "resample" else None,
    )
    rows, random, first = [], [], 1
    for control, match in matched.items():
        of_control = [0, *range(first, first + len(match.sets))]
        first += len(match.sets)
        for k, outcome in enumerate(OUTCOMES):
            here = np.isfinite(change[0, :, k])
            if here.sum() < _MIN_WINDOWS or len(set(blocks[here])) < _MIN_BLOCKS:
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
    means = class_means([classes == name for name in CLASS_OUTCOMES], study.device)
    crop = study.model.config.crop
    target = study.dataset.target(windows, biosample)[:, crop : crop + classes.shape[1]]
    measured = torch.from_numpy(target).to(study.device)

    def of(part: slice) -> Callable[[torch.Tensor], torch.Tensor]:
        mean = means(part)

        def outcome(predicted: torch.Tensor) -> torch.Tensor:
            # The loss the model was trained with
            loss = predicted - measured[part] * torch.log(predicted + LOG_FLOOR)
            counts = mean(predicted)[:, : len(COUNT_OUTCOMES)]
            log1p = mean(predicted.log1p())
            return torch.cat([log1p, counts, loss.mean(1, keepdim=True)], dim=1)

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
