"""Which windows are looked at, the classes of their tokens, and their streams.

Arrays of tokens hold inner tokens, the ones the model predicts.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch

from helpers.masked import DIFFERENTIAL_FOLD
from helpers.stages import Study

__all__ = [
    "CLASSES",
    "batches",
    "blocks_of",
    "read_streams",
    "spread_windows",
    "token_classes",
]

CLASSES = ("vivo-up", "vitro-up", "invariant", "background")
INVARIANT_FOLD = 1.5  # of signal + 1, below which an accessible token does not change
_BATCH_TOKENS = 2048  # tokens of a forward pass: edits share caches, not memory


def token_classes(study: Study, windows: np.ndarray) -> dict[str, np.ndarray]:
    """Class the tokens of every lineage by their measured accessibility.

    With s the scaled signal of a token, a token is ``vivo-up`` if it lies in a peak of
    the in vivo biosample and (s_vivo + 1) / (s_vitro + 1) >= 3, ``vitro-up`` the other
    way round, ``invariant`` if it lies in a peak of both and the ratio is below 1.5
    either way, ``background`` if it lies in a peak of neither. The 1 is a floor, the
    peak the smallest signal that counts; what is left over has no class.

    Parameters
    ----------
    study : Study
        The run.
    windows : numpy.ndarray of int
        Which windows.

    Returns
    -------
    dict of str to numpy.ndarray, shape (n_windows, n_outputs)
        Per lineage the class of every inner token, one of `CLASSES` or empty.
    """
    dataset, crop = study.dataset, study.model.config.crop
    inner = slice(crop, dataset.n_tokens - crop)
    found = {}
    for lineage in study.lineages:
        pair = study.pair(lineage)
        low, high = (dataset.target(windows, b)[:, inner] + 1 for b in pair)
        in_low, in_high = (dataset.in_peak(b)[windows][:, inner] for b in pair)
        fold = np.log2(high / low)
        differs = np.log2(DIFFERENTIAL_FOLD)
        found[lineage] = np.select(
            [
                in_high & (fold >= differs),
                in_low & (fold <= -differs),
                in_low & in_high & (np.abs(fold) < np.log2(INVARIANT_FOLD)),
                ~in_low & ~in_high,
            ],
            CLASSES,
            default="",
        )
    return found


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
