"""What is left of the calls of a study at equal depth, and at equal depth and FRiP.

`helpers.calibration` is the public face of this module.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from helpers._calibration_runs import inputs_of, pass_summaries
from helpers._depth import cuts_in_peaks, equal_depth, thinned_tissues
from helpers._input_swap import held_passes
from helpers.cds import context_divergence
from helpers.runs import code_digest
from helpers.stages import Study, called_features
from helpers.windows import WindowDataset

__all__ = ["DepthSensitivity", "depth_sensitivity"]

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
    versions, counts = {"as sequenced": tissues}, [cuts_in_peaks(tissues)]
    for name, frip in _VARIANTS.items():
        recipe = {
            "data": inputs_of(tissues),
            "frip": frip,
            "seed": study.seed,
            "code": code_digest("_depth"),
        }

        def build(partial: Path, frip: bool = frip) -> None:
            equal_depth(tissues, partial, frip=frip, random_state=study.seed)

        folder = study.run.artefact(f"thinned/{_file(name)}", recipe, build)
        versions[name] = thinned_tissues(tissues, folder)
        counts.append(cuts_in_peaks(versions[name]))
    windows = study.dataset.windows_of(split)
    blocks = study.dataset.windows["block"].to_numpy()[windows]
    passes, tables = held_passes(study.design), {}
    for name, version in versions.items():
        dataset = WindowDataset(version, window_bp=study.dataset.window_bp)
        summary = pass_summaries(
            study, f"{_file(name)}_{split}", dataset, windows, passes, layers=[layer]
        )[layer]
        tables[name] = context_divergence(summary.mean_acts, study.design, blocks)
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
    named = [
        table.assign(tracks=name) for name, table in zip(versions, counts, strict=True)
    ]
    return DepthSensitivity(
        pd.DataFrame(rows).set_index("tracks"), pd.concat(named, ignore_index=True)
    )


def _file(name: str) -> str:
    return name.lower().replace(" ", "_")
