"""Run the model on windows with the track as it is, and with all of it hidden.

With the track hidden the model has to read the sequence, and two contexts of a lineage
differ in nothing but their motif activity.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from helpers.causal._side_by_side import side_by_side
from helpers.causal._windows import batches
from helpers.pretrain._batches import hide
from helpers.stages import Study

__all__ = ["TRACKS", "TrackRun", "run_tracks"]

TRACKS = ("visible", "hidden")


class TrackRun(NamedTuple):
    """What the model holds and predicts, per biosample.

    Attributes
    ----------
    streams : list of dict of int to torch.Tensor
        Per block of the study, (n_windows, n_tokens, d).
    predicted : list of torch.Tensor
        Log1p prediction, (n_windows, n_outputs).
    """

    streams: list[dict[int, torch.Tensor]]
    predicted: list[torch.Tensor]


def run_tracks(
    study: Study, windows: np.ndarray, tracks: Sequence[str] = TRACKS
) -> dict[str, TrackRun]:
    """Return streams and predictions of all biosamples for each of some `TRACKS`."""
    parts = side_by_side(
        lambda part: _run(study, windows[part], tracks),
        list(batches(study, len(windows))),
        study,
        desc="streams with and without track",
    )
    layers, biosamples = sorted(study.blocks), range(len(study.design))
    found = {}
    for track in tracks:
        streams = [
            {
                layer: torch.cat([part[track, b][k] for part in parts])
                for k, layer in enumerate(layers)
            }
            for b in biosamples
        ]
        predicted = [torch.cat([p[track, b][-1] for p in parts]) for b in biosamples]
        found[track] = TrackRun(streams, predicted)
    return found


@torch.no_grad()
def _run(
    study: Study, windows: np.ndarray, tracks: Sequence[str]
) -> dict[tuple[str, int], list[torch.Tensor]]:
    """Return streams of all blocks, then the log1p prediction, per track, biosample."""
    dataset, model = study.dataset, study.model
    motif = torch.from_numpy(dataset.motif_activity).to(study.device)
    sequence = torch.from_numpy(dataset.sequence(windows)).to(study.device)
    features = model.encode_sequence(sequence)
    everything = np.ones((len(windows), dataset.n_tokens), dtype=bool)
    found = {}
    for b in range(len(study.design)):
        visible = np.asarray(dataset.atac(windows, b))
        activity = motif[b].expand(len(windows), -1)
        for track in tracks:
            shown = visible if track == "visible" else hide(visible, everything)
            atac = torch.from_numpy(np.asarray(shown)).float().to(study.device)
            x = model.encode_context(features, atac, activity)
            outputs, done = [], 0
            for layer in sorted(study.blocks):
                x = model.run_blocks(x, done, layer + 1)
                done = layer + 1
                outputs.append(x)
            outputs.append(model.head(model.run_blocks(x, done)).log1p())
            found[track, b] = outputs
    return found
