"""Zero the features of a planted factor: the prediction should fall at its sites.

Features and block of a factor are chosen on ``tune`` windows, by what zeroing each
feature alone does there; the effect of all together is measured on ``test`` windows.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import torch

from helpers.blockstats import block_bootstrap
from helpers.causal._factor_features import (
    LIMITS,
    Choice,
    choose,
    is_specific,
    named_by_contrast,
)
from helpers.causal._factor_tokens import GROUPS, Split, read_splits
from helpers.causal._gap_scores import percentiles
from helpers.causal._registration import registered_windows
from helpers.causal._selection import Dictionary, dictionaries, input_recipe
from helpers.causal._side_by_side import side_by_side
from helpers.causal._tracks import TRACKS
from helpers.causal._windows import blocks_of, spread_windows
from helpers.interventions import ablate, edit_blocks
from helpers.runs import code_digest
from helpers.stages import Study

__all__ = ["factor_counts", "factor_specificity"]

N_WINDOWS = {"tune": 64, "test": 64}
_CODE = ("causal._specificity", "interventions", "probe", "blockstats", "truth")


def factor_specificity(study: Study) -> pd.DataFrame:
    """Zero the features of each planted factor; look at its sites and elsewhere.

    Features are chosen in three ways. By ``contrast``: significant features whose
    strongest differences between the contexts lie at the factor's sites
    (`helpers.truth.match_features`), in the block where they should act most. By
    ``output``: up to 5 features of a block that each, zeroed alone on tune windows,
    lower the prediction at the sites at least five times more than elsewhere. By
    ``output, every block``: those of all blocks at once, so that later blocks cannot
    restore what was removed. Each is done with the ``visible`` track, of which the
    model copies most, and with the track ``hidden``, where it has to read the sequence.

    Parameters
    ----------
    study : Study
        A run on simulated data; `helpers.causal.register` must have been called.

    Returns
    -------
    pandas.DataFrame
        One row per ``track``, ``selection`` and ``factor`` with a feature of its own:
        ``layer`` (missing for every block), ``n_features``, ``n_sites``, tokens over
        all active biosamples; mean change of the log1p prediction ``at_sites``,
        ``elsewhere`` (matched tokens in peaks) and ``anywhere`` (all tokens away from
        sites); ``specificity`` and ``specificity_anywhere``, sizes at sites over those;
        each with a 95 % block-bootstrap interval; and what tune windows promised, added
        up over single features, ``tune_at_sites`` and ``tune_elsewhere``.

    Raises
    ------
    FileNotFoundError, ValueError
        If the analysis is not registered, or the data are not simulated.
    """
    return _tables(study)[0]


def factor_counts(study: Study) -> pd.DataFrame:
    """Count the factors whose features act five times more at their sites.

    Returns
    -------
    pandas.DataFrame
        One row per ``track``, ``selection`` and ``control`` (``elsewhere``,
        ``anywhere``): ``n_planted`` factors that have sites on test windows;
        ``n_factors`` of them with features of their own, of which ``n_specific`` have a
        prediction that falls at the sites, five times more than at the control. It does
        so in at least 97.5 % of the draws of genomic blocks for ``n_sure`` of them, in
        more than 2.5 % for ``n_possible``.
    """
    return _tables(study)[1]


def _tables(study: Study) -> list[pd.DataFrame]:
    if study.truth is None:
        raise ValueError("planted factors are known for simulated data only")
    windows = {
        "tune": spread_windows(study, "tune", N_WINDOWS["tune"]),
        "test": registered_windows(study, N_WINDOWS["test"]),
    }
    recipe = input_recipe(study) | {
        "windows": N_WINDOWS,
        "limits": LIMITS,
        "code": code_digest(*_CODE),
    }
    names = ["factor_specificity.parquet", "factor_counts.parquet"]
    return study.run.tables(names, recipe, lambda: _measure_all(study, windows))


def _measure_all(
    study: Study, windows: dict[str, np.ndarray]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    known = dictionaries(study)
    tune, test = (read_splits(study, windows[split]) for split in ("tune", "test"))
    named = named_by_contrast(study, known)
    choices = {}
    for track in TRACKS:
        chosen = choose(study, known, named, tune[track])
        for selection, of_factors in chosen.items():
            for factor, choice in of_factors.items():
                if factor in test[track].tokens:
                    choices[track, selection, factor] = choice

    def measured(key: tuple[str, str, str]) -> tuple[dict, np.ndarray]:
        return _measure(study, known, key[2], choices[key], test[key[0]])

    found = side_by_side(measured, list(choices), study, desc="factors")
    heads = ("track", "selection", "factor")
    rows = [
        dict(zip(heads, key, strict=True)) | row
        for key, (row, _) in zip(choices, found, strict=True)
    ]
    table = pd.DataFrame(rows).astype({"layer": "Int64"})
    n_planted = {track: len(test[track].tokens) for track in TRACKS}
    return table, _count(table, np.stack([draws for _, draws in found]), n_planted)


def _count(
    table: pd.DataFrame, draws: np.ndarray, n_planted: dict[str, int]
) -> pd.DataFrame:
    """Count specific factors in the data and in every draw, (n_rows, 3, n_draws)."""
    rows = []
    estimates = table[list(GROUPS)].to_numpy()[..., None]
    for key, group in table.groupby(["track", "selection"], sort=False):
        for k, control in enumerate(GROUPS[1:], start=1):
            passed, of_draws = (
                is_specific(x[group.index, 0], x[group.index, k])
                for x in (estimates, draws)
            )
            # Of the sum over factors, draws would be lower than the data: resampling
            # adds noise to every ratio, and few factors are far above the threshold.
            share = of_draws.mean(axis=1)
            row = dict(zip(("track", "selection"), key, strict=True))
            row |= {"control": control, "n_planted": n_planted[row["track"]]}
            row |= {"n_factors": len(group)}
            row |= {
                "n_specific": int(passed.sum()),
                "n_sure": int((share >= 0.975).sum()),
                "n_possible": int((share > 0.025).sum()),
            }
            rows.append(row)
    return pd.DataFrame(rows)


@torch.no_grad()
def _measure(
    study: Study,
    known: dict[int, Dictionary],
    factor: str,
    choice: Choice,
    split: Split,
) -> tuple[dict[str, float], np.ndarray]:
    """Zero features in every biosample where the factor is at work.

    Returns
    -------
    row : dict
        Effects with intervals.
    draws : numpy.ndarray, shape (3, n_draws)
        Effects at sites, elsewhere and anywhere.
    """
    edits = {
        layer: partial(ablate, sae=known[layer].sae, features=features, value="zero")
        for layer, features in choice.features.items()
    }
    changes, weights = [], []
    for tokens in split.tokens[factor]:
        x = split.streams[tokens.biosample][min(edits)]
        edited = edit_blocks(study.model, x, edits).log1p()
        change = tokens.weights * (edited - split.predicted[tokens.biosample])
        changes.append(change.sum(dim=2).cpu().numpy())
        weights.append(tokens.weights.sum(dim=2).cpu().numpy())
    n = np.concatenate(weights, axis=1).astype(float)  # (3, n_windows * n_biosamples)
    drawn = block_bootstrap(
        np.concatenate(changes, axis=1).astype(float),
        np.tile(blocks_of(study, split.windows), len(changes)),
        denominators=n,
        random_state=study.seed,
    )
    row: dict[str, float] = {
        "layer": min(edits) if len(edits) == 1 else None,
        "n_features": sum(len(features) for features in choice.features.values()),
        "n_sites": int(n[0].sum()),
    }
    low, high = percentiles(drawn.draws)  # of draws that have sites
    for k, group in enumerate(GROUPS):
        row |= {group: drawn.estimate[k]}
        row |= {f"{group}_low": low[k], f"{group}_high": high[k]}
    for k, name in ((1, "specificity"), (2, "specificity_anywhere")):
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = np.abs(drawn.draws[0] / drawn.draws[k])
            row[name] = np.abs(drawn.estimate[0] / drawn.estimate[k])
        row[f"{name}_low"], row[f"{name}_high"] = percentiles(ratios)
    promised = {"tune_at_sites": choice.at_sites, "tune_elsewhere": choice.elsewhere}
    return row | promised, drawn.draws
