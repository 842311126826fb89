"""How much of what a study calls survives one objection after the other.

`helpers.calibration` is the public face of this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from helpers._calibration_runs import (
    attribute_calls,
    factor_contributions,
    pass_summaries,
    samples_of,
    with_replicates,
)
from helpers._input_swap import held_passes, input_swap, swap_passes
from helpers._passes import PassInput, PassSummary
from helpers._placebo import placebo_contrasts, placebo_fdr
from helpers._replicates import replicate_divergence, study_rows
from helpers.cds import context_divergence
from helpers.stages import Study, called_features

__all__ = ["Evidence", "gather_evidence"]


class Evidence(NamedTuple):
    """What a study with replicates can say of its features.

    Attributes
    ----------
    counts : pandas.DataFrame
        Indexed by ``layer``: features called by the track contrast of the pairs
        (``E1``), how many of these are driven by the motif activity
        (``motif-driven``) and its share of their effect (``motif_share``); called
        with the motif activity held fixed (``E1, held``); called on average by the same
        rule between replicates (``placebo, held``); called against the variation
        between biosamples, as they are and with the motif activity held (``E3``,
        ``E3, held``).
    swaps, tracks, replicates : dict of int to pandas.DataFrame
        By layer: tables of `input_swap`, and of `context_divergence` and
        `replicate_divergence` with the motif activity held. ``tracks`` has the placebo
        rate in ``q_placebo``.
    carried : pandas.DataFrame
        For simulated data, `attribute_calls` of ``replicates`` with column ``layer``;
        else empty.
    """

    counts: pd.DataFrame
    swaps: dict[int, pd.DataFrame]
    tracks: dict[int, pd.DataFrame]
    replicates: dict[int, pd.DataFrame]
    carried: pd.DataFrame


def gather_evidence(
    study: Study, *, split: str = "select", n_contrasts: int = 20
) -> Evidence:
    """Run pairs and replicates through the model and score them in every way.

    Parameters
    ----------
    study : Study
        The run; tissue files must name replicates.
    split : str, default "select"
        Windows to score on.
    n_contrasts : int, default 20
        Placebo contrasts.

    Returns
    -------
    Evidence

    Raises
    ------
    ValueError
        If there are no replicates.
    """
    dataset = with_replicates(study)
    samples, windows = samples_of(dataset), dataset.windows_of(split)
    blocks = dataset.windows["block"].to_numpy()[windows]
    own = [PassInput(row, (row,)) for row in range(len(samples))]
    # The pairs come first, so that their rows are the same with replicates.
    design = samples.iloc[study_rows(samples)]
    passes = [*own, *held_passes(samples), *swap_passes(design)]
    found = pass_summaries(
        study,
        f"evidence_{split}",
        dataset,
        windows,
        passes,
        sites=study.truth is not None,
    )
    counts, swaps, tracks, replicates, carried = [], {}, {}, {}, []
    for layer, summary in found.items():
        line, swaps[layer], tracks[layer], replicates[layer] = _of_layer(
            summary.mean_acts, samples, blocks, n_contrasts, study.seed
        )
        counts.append({"layer": layer, **line})
        if study.truth is not None:
            held = slice(len(samples), 2 * len(samples))
            part = PassSummary(*(values[held] for values in summary))
            parts = factor_contributions(study, windows, part)
            named = attribute_calls(study, parts, samples, replicates[layer])
            carried.append(named.assign(layer=layer))
    return Evidence(
        pd.DataFrame(counts).set_index("layer"),
        swaps,
        tracks,
        replicates,
        pd.concat(carried, ignore_index=True) if carried else pd.DataFrame(),
    )


def _of_layer(
    mean_acts: np.ndarray,
    samples: pd.DataFrame,
    blocks: Sequence[str],
    n_contrasts: int,
    seed: int,
) -> tuple[dict[str, float], pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Score one layer; passes as `gather_evidence` orders them."""
    n, rows = len(samples), study_rows(samples)
    acts, held, swapped = np.split(mean_acts, [n, 2 * n])
    design = samples.iloc[rows]
    plain = context_divergence(acts[rows], design, blocks)
    swap = input_swap(swapped, design, blocks)
    tracks = context_divergence(held[rows], design, blocks)
    placebo = [
        context_divergence(held[contrast.rows], contrast.design, blocks)
        for contrast in placebo_contrasts(
            samples, n_contrasts=n_contrasts, random_state=seed
        )
    ]
    tracks["q_placebo"] = placebo_fdr(
        tracks["cds"].to_numpy(), [table["cds"].to_numpy() for table in placebo]
    )
    replicates = replicate_divergence(held, samples, blocks)
    called = swap.loc[called_features(plain).index]
    size = called[["delta_motif", "delta_track"]].abs().sum()
    line = {
        "tested": plain.attrs["n_tested"],
        "E1": len(called),
        "motif-driven": int((called["driver"] == "motif").sum()),
        "motif_share": size["delta_motif"] / size.sum(),
        "E1, held": len(called_features(tracks)),
        "placebo, held": np.mean([len(called_features(table)) for table in placebo]),
        "E3": len(called_features(replicate_divergence(acts, samples, blocks))),
        "E3, held": len(called_features(replicates)),
    }
    return line, swap, tracks, replicates
