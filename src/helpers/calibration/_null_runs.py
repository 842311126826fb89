"""Worlds without context effect, run through the model and dictionaries of a study.

`helpers.calibration` is the public face of this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from helpers import simulate
from helpers.blockstats import adjust_p_values
from helpers.calibration._runs import inputs_of, pass_summaries, samples_of
from helpers.calibration._units import calls_by_unit
from helpers.cds import context_divergence
from helpers.cds._replicates import study_rows
from helpers.confounders._depth import equal_depth, thinned_tissues
from helpers.confounders._input_swap import held_passes, input_swap, swap_passes
from helpers.confounders._passes import PassInput
from helpers.confounders._track_height import partial_divergence
from helpers.runs import Run, code_digest
from helpers.stages import Study
from helpers.tissues import Tissue, read_tissues
from helpers.windows import WindowDataset

__all__ = ["NullCalls", "NullData", "equal_depth_data", "null_calls", "null_data"]

_NULL_WINDOWS = 16  # per chromosome: enough for 48 independent blocks
_NULL_BLOCK = 8  # windows; noise of a simulated track is independent beyond them
_ALPHA = 0.05


class NullData(NamedTuple):
    """A world without context effect, as data of a study.

    Attributes
    ----------
    dataset : WindowDataset
        Pairs and replicates.
    blocks : numpy.ndarray of str, shape (n_windows,)
        Genomic block of each window.
    """

    dataset: WindowDataset
    blocks: np.ndarray


def null_data(study: Study, kind: str) -> NullData:
    """Return the data of a null world with the study's lineages and replicates.

    Parameters
    ----------
    study : Study
        A run on simulated data, beside which the world is kept.
    kind : str
        One of `helpers.simulate.KINDS`.

    Returns
    -------
    NullData
        384 windows in 48 blocks; nothing was trained or chosen on them.

    Raises
    ------
    ValueError
        If the data of the study are not simulated, or the kind is unknown.
    """
    if study.truth is None:
        raise ValueError("null worlds share the lineages of simulated data only")
    world = simulate.World(
        kind=kind,
        windows_per_chromosome=_NULL_WINDOWS,
        window_bp=study.dataset.window_bp,
    )
    recipe = {"world": simulate.recipe(world), "lineages": study.lineages}
    folder = Run(study.truth.parent.parent).artefact(
        f"null_{kind}",
        recipe,
        lambda partial: simulate.write_world(partial, world, lineages=study.lineages),
    )
    tissues = read_tissues(folder / "tissues", study.lineages)
    return _as_data(tissues, study.dataset.window_bp)


def _as_data(tissues: Sequence[Tissue], window_bp: int) -> NullData:
    dataset = WindowDataset(tissues, window_bp=window_bp, replicates=True)
    windows = dataset.windows
    stretch = windows.groupby("chrom", sort=False).cumcount() // _NULL_BLOCK
    return NullData(dataset, (windows["chrom"] + ":" + stretch.astype(str)).to_numpy())


def equal_depth_data(study: Study, data: NullData) -> NullData:
    """Return the same data with all tracks thinned to the depth of the shallowest."""
    tissues = data.dataset.tissues
    parent = Run(tissues[0].path.parent.parent.parent)
    world = tissues[0].path.parent.parent.name
    recipe = {"data": inputs_of(tissues), "code": code_digest("confounders._depth")}

    def build(partial: Path) -> None:
        equal_depth(tissues, partial, random_state=study.seed)

    folder = parent.artefact(f"{world}_thinned", recipe, build)
    return _as_data(thinned_tissues(tissues, folder), data.dataset.window_bp)


class NullCalls(NamedTuple):
    """What each way to test claims in a world without context effect.

    Attributes
    ----------
    table : pandas.DataFrame
        Indexed by ``test``: ``n_tested``, ``share`` with p < 0.05, ``n_called`` after
        Bonferroni.
    motif_share : float
        Share of the absolute effect that comes through the motif activity, over the
        features that the block-level score calls.
    """

    table: pd.DataFrame
    motif_share: float


def null_calls(study: Study, kind: str, layer: int) -> NullCalls:
    """Run a null world through the model and count the calls of every test.

    Parameters
    ----------
    study : Study
        A run on simulated data, with its dictionaries.
    kind : str
        World, one of `helpers.simulate.KINDS`.
    layer : int
        Block of the model.

    Returns
    -------
    NullCalls
        The units of `calls_by_unit`; then ``block`` and ``biosample`` with the motif
        activity held fixed, ``block, equal signal`` (partial CDS, motifs held), and in
        the depth-only world both units at equal depth (tracks thinned, motifs held).
    """
    data = null_data(study, kind)
    dataset, blocks = data
    samples, windows = samples_of(dataset), np.arange(len(dataset.windows))
    n, rows = len(samples), study_rows(samples)
    design = samples.iloc[rows]
    own = [PassInput(row, (row,)) for row in range(n)]
    held = held_passes(samples)
    # The pairs come first, so that their rows are the same with replicates.
    passes = [*own, *held, *swap_passes(design)]
    summary = pass_summaries(
        study, f"null_{kind}", dataset, windows, passes, layers=[layer]
    )[layer]
    acts, fixed, swapped = np.split(summary.mean_acts, [n, 2 * n])
    table = calls_by_unit(
        acts, samples, blocks, squares=summary.squares[:n], n_tokens=dataset.n_tokens
    )

    def add(label: str, features: np.ndarray) -> None:
        units = calls_by_unit(features, samples, blocks)
        for unit in ("block", "biosample"):
            table.loc[f"{unit}, {label}"] = units.loc[unit]

    add("motifs held", fixed)
    signal = np.stack([dataset.track(windows, row).sum(axis=1) for row in rows])
    partial = partial_divergence(fixed[rows], design, blocks, np.log(signal + 1))
    p = partial["p_partial"].dropna()
    table.loc["block, equal signal"] = {
        "n_tested": len(p),
        "share": (p < _ALPHA).mean(),
        "n_called": (adjust_p_values(p.to_numpy()) <= _ALPHA).sum(),
    }
    if kind == "depth-only":
        equal = equal_depth_data(study, data)
        thinned = pass_summaries(
            study, "null_equal_depth", equal.dataset, windows, held, layers=[layer]
        )[layer]
        add("equal depth", thinned.mean_acts)
    naive = context_divergence(acts[rows], design, blocks)
    called = (naive["p_bonferroni"] <= _ALPHA).to_numpy()
    swap = input_swap(swapped, design, blocks)
    size = swap.loc[called, ["delta_motif", "delta_track"]].abs().sum()
    return NullCalls(
        table.astype({"n_tested": int, "n_called": int}).rename_axis("test"),
        float(size["delta_motif"] / size.sum()),
    )
