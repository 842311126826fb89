"""Edit one biosample's stream by many feature sets and read what changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from helpers.causal._windows import batches
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
    x: torch.Tensor,
    sets: Sequence[np.ndarray],
    readout: Readout,
    *,
    reference: torch.Tensor | None = None,
    strength: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Edit the streams of one biosample by every feature set.

    Parameters
    ----------
    study : Study
        The run.
    layer : int
        Block after which `x` was read.
    sae : BatchTopKSAE
        Its dictionary.
    x : torch.Tensor, shape (n_windows, n_tokens, d)
        Streams to edit.
    sets : sequence of numpy.ndarray
        Feature sets.
    readout : Readout
        What to keep of a prediction.
    reference : torch.Tensor, shape as `x`, optional
        Streams whose activations the features take; zero without.
    strength : float
        Share of that change.

    Returns
    -------
    change : numpy.ndarray, shape (n_sets, n_windows, n_outcomes)
        Edited minus unedited outcome.
    norm : numpy.ndarray, shape (n_sets, n_windows)
        Length of the change of the stream.
    """
    changes, norms = [], []
    for part in batches(study, len(x)):
        deltas = ablation_deltas(
            x[part],
            sae,
            sets,
            value="zero" if reference is None else "resample",
            reference=None if reference is None else reference[part],
            strength=strength,
        )
        found = effects(study.model, x[part], layer, deltas, outcome=readout(part))
        changes.append((found.edited - found.baseline).cpu().numpy())
        norms.append(found.norm.cpu().numpy())
    return np.concatenate(changes, axis=1), np.concatenate(norms, axis=1)


def class_means(masks: Sequence[np.ndarray], device: str) -> Readout:
    """Read the mean of a prediction over each mask (n_windows, n_outputs).

    Windows without a token of the mask read NaN.
    """
    member = np.stack(masks, axis=-1).astype(np.float32)
    with np.errstate(invalid="ignore"):
        member /= member.sum(axis=1, keepdims=True)
    weights = torch.from_numpy(member).to(device)

    def of(part: slice) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda y: torch.einsum("wt,wtk->wk", y, weights[part])

    return of
