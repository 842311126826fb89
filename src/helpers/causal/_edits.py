"""Edit one biosample's stream by many feature sets and read what changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from helpers.causal._windows import batches, read_streams
from helpers.interventions import ablation_deltas, effects
from helpers.sae import BatchTopKSAE
from helpers.stages import Study

__all__ = ["Readout", "class_means", "edit"]

# Maps a slice of windows to the outcome of a forward pass over them.
Readout = Callable[[slice], Callable[[torch.Tensor], torch.Tensor]]


def edit(
    study: Study,
    layer: int,
    sae: BatchTopKSAE,
    windows: np.ndarray,
    sets: Sequence[np.ndarray],
    readout: Readout,
    *,
    edited: int,
    reference: int | None,
    strength: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Edit one biosample's stream by every feature set.

    With a reference, features take its activations; without one, zero. `strength` is
    the share of that change.

    Returns
    -------
    change : numpy.ndarray, shape (n_sets, n_windows, n_outcomes)
        Edited minus unedited outcome.
    norm : numpy.ndarray, shape (n_sets, n_windows)
        Length of the change of the stream.
    """
    x = read_streams(study, layer, edited, windows)
    other = (
        None if reference is None else read_streams(study, layer, reference, windows)
    )
    changes, norms = [], []
    for part in batches(study, len(windows)):
        deltas = ablation_deltas(
            x[part],
            sae,
            sets,
            value="zero" if other is None else "resample",
            reference=None if other is None else other[part],
            strength=strength,
        )
        found = effects(
            study.model,
            x[part],
            layer,
            deltas,
            outcome=readout(part),
        )
        changes.append((found.edited - found.baseline).cpu().numpy())
        norms.append(found.norm.cpu().numpy())
    return np.concatenate(changes, axis=1), np.concatenate(norms, axis=1)


def class_means(masks: Sequence[np.ndarray], device: str) -> Readout:
    """Read the mean log1p prediction over each mask (n_windows, n_outputs).

    Windows without a token of the mask read NaN.
    """
    member = np.stack(masks, axis=-1).astype(np.float32)
    with np.errstate(invalid="ignore"):
        member /= member.sum(axis=1, keepdims=True)
    weights = torch.from_numpy(member).to(device)

    def of(part: slice) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda y: torch.einsum("wt,wtk->wk", y.log1p(), weights[part])

    return of
