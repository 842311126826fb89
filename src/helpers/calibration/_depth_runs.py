"""What is left of the calls of a study at equal depth, and at equal depth and FRiP.

`helpers.calibration` is the public face of this module.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from helpers.calibration._runs import inputs_of, pass_summaries
from helpers.cds import context_divergence
from helpers.confounders._depth import cuts_in_peaks, equal_depth, thinned_tissues
from helpers.confounders._input_swap import held_passes
from helpers.runs import code_digest
from helpers.stages import Study, called_features
from helpers.windows import WindowDataset

__all__ = ["DepthSensitivity", "depth_sensitivity", "held_means"]

_VARIANTS = {"equal depth": False, "equal depth and FRiP": True}


class DepthSensitivity(NamedTuple):
    """Calls and tracks of a study, as sequenced and thinned.

    Attributes
    ----------
    calls : pandas.DataFrame
        Indexed by ``tracks`` (``as sequenced``, ``equal depth``, ``equal depth and
        FRiP``), motif activity held: ``n_called``, ``kept``, the share of the calls as
        sequenced that are in the same class here, and ``rank_correlation`` of the
        differences with those as sequenced.
    tracks : pandas.DataFrame
        `cuts_in_peaks` of every biosample, with column ``tracks``.
    """

    calls: pd.DataFrame
    tracks: pd.DataFrame


def held_means(study: Study, layer: int, *, split: str = "select") -> np.ndarray:
    """Return window means of the pairs with the motif activity held.

    Parameters
    ----------
    study : Study
        The run.
    layer : int
        Block of the model.
    split : str, default "select"
        Windows.

    Returns
    -------
    numpy.ndarray, shape (n_biosamples, n_windows, d_sae)
        Like ``mean_acts`` of `helpers.stages.summaries` on these windows.
    """
    return _held(study, "held", study.dataset, layer, split)


def _held(
    study: Study, name: str, dataset: WindowDataset, layer: int, split: str
) -> np.ndarray:
    windows, passes = study.dataset.windows_of(split), held_passes(study.design)
    return pass_summaries(
        study, f"{name}_{split}", dataset, windows, passes, layers=[layer]
    )[layer].mean_acts


def depth_sensitivity(
    study: Study, layer: int, *, split: str = "select"
) -> DepthSensitivity:
    """Thin the tracks of a study to equal depth and score what is left.

    The pairs run again with thinned tracks, the motif activity held in all: thinning
    changes what the model reads of a track, not the peaks that the motif activity was
    computed from.

    Parameters
    ----------
    study : Study
        The run; signals must be cut sites.
    layer : int
        Block of the model.
    split : str, default "select"
        Windows to score on.

    Returns
    -------
    DepthSensitivity

    Raises
    ------
    ValueError
        If a signal is coverage, which cannot be thinned.
    """
    tissues = [replace(tissue, replicates=()) for tissue in study.dataset.tissues]
    windows = study.dataset.windows_of(split)
    blocks = study.dataset.windows["block"].to_numpy()[windows]
    counts = {"as sequenced": cuts_in_peaks(tissues)}
    means = {"as sequenced": held_means(study, layer, split=split)}
    for name, frip in _VARIANTS.items():
        recipe = {
            "data": inputs_of(tissues),
            "frip": frip,
            "seed": study.seed,
            "code": code_digest("confounders._depth"),
        }

        def build(partial: Path, frip: bool = frip) -> None:
            equal_depth(tissues, partial, frip=frip, random_state=study.seed)

        file = name.lower().replace(" ", "_")
        folder = study.run.artefact(f"thinned/{file}", recipe, build)
        thinned = thinned_tissues(tissues, folder)
        counts[name] = cuts_in_peaks(thinned)
        dataset = WindowDataset(thinned, window_bp=study.dataset.window_bp)
        means[name] = _held(study, file, dataset, layer, split)
    tables = {
        name: context_divergence(values, study.design, blocks)
        for name, values in means.items()
    }
    first = tables["as sequenced"]
    called = called_features(first).index
    rows = [
        {
            "tracks": name,
            "n_called": len(called_features(table)),
            "kept": np.mean(table["class"][called] == first["class"][called]),
            "rank_correlation": table["delta"].corr(first["delta"], "spearman"),
        }
        for name, table in tables.items()
    ]
    named = [table.assign(tracks=name) for name, table in counts.items()]
    return DepthSensitivity(
        pd.DataFrame(rows).set_index("tracks"), pd.concat(named, ignore_index=True)
    )
