"""Which windows are looked at, and their streams."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch

from helpers.stages import Study

__all__ = ["batches", "blocks_of", "read_streams", "spread_windows"]

_BATCH_TOKENS = 2048  # tokens of a forward pass: edits share caches, not memory


def spread_windows(study: Study, split: str, n: int) -> np.ndarray:
    """Draw windows of a split, as evenly over its genomic blocks as possible.

    Returns
    -------
    numpy.ndarray of int
        At most ``n`` sorted window positions.
    """
    rng = np.random.default_rng(study.seed)
    windows = rng.permutation(study.dataset.windows_of(split))
    # First one window of every block, then a second of each, and so on.
    turn = pd.Series(windows).groupby(blocks_of(study, windows)).cumcount()
    order = np.argsort(turn.to_numpy(), kind="stable")
    return np.sort(windows[order[:n]])


def blocks_of(study: Study, windows: np.ndarray) -> np.ndarray:
    """Return the genomic block of each window."""
    return study.dataset.windows["block"].to_numpy()[windows]


def batches(study: Study, n_windows: int) -> Iterator[slice]:
    """Yield slices of windows that share a forward pass."""
    step = max(1, _BATCH_TOKENS // study.model.config.n_tokens)
    for first in range(0, n_windows, step):
        yield slice(first, min(first + step, n_windows))


def read_streams(
    study: Study, layer: int, biosample: int, windows: np.ndarray
) -> torch.Tensor:
    """Return streams of sorted windows, float32 (n_windows, n_tokens, d_model)."""
    array, step = study.store.layer(layer), study.store.chunk_windows
    found = np.empty((len(windows), *array.shape[2:]), np.float32)
    # One request for as many chunks as follow each other
    apart = np.flatnonzero(np.diff(windows // step) > 1) + 1
    for here in np.split(np.arange(len(windows)), apart):
        low, high = windows[here[0]], windows[here[-1]] + 1
        found[here] = array[biosample, low:high][windows[here] - low]
    return torch.from_numpy(found).to(study.device)
