"""What features do in each window: every token encoded, averaged as it is made.

Feature activations of a layer are a hundred times its streams. Here a few hundred
tokens' exist at a time, in one buffer that stays in the processor's cache, and threads
read what comes next meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from helpers.activations._store import ActivationStore
from helpers.sae._model import BatchTopKSAE

__all__ = ["WindowSummary", "summarize"]

_ENCODE_TOKENS = {"cpu": 512, "cuda": 8192}  # whose feature activations exist at a time
_READ_VALUES = 2**22  # of streams read at a time


class WindowSummary(NamedTuple):
    """Feature activity of windows, both float32 (n_biosamples, n_windows, n_features).

    Attributes
    ----------
    mean_acts : numpy.ndarray
        Mean feature activation over the tokens of a window.
    firing : numpy.ndarray
        Share of the tokens of a window on which the feature fires.
    """

    mean_acts: np.ndarray
    firing: np.ndarray


@torch.no_grad()
def summarize(
    store: ActivationStore,
    layer: int,
    sae: BatchTopKSAE,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> WindowSummary:
    """Encode every token of a layer and average the features over each window.

    Parameters
    ----------
    store : ActivationStore
        With every window complete.
    layer : int
        Layer the SAE was trained on.
    sae : BatchTopKSAE
        On the device to compute on.
    progress : callable, optional
        Called with the number of (biosample, window) pairs done and their total.

    Returns
    -------
    WindowSummary
        Mean activation and firing share, float32 (n_biosamples, n_windows, n_features).

    Raises
    ------
    ValueError
        If the widths of SAE and store differ, or windows are incomplete or damaged.
    """
    if sae.d_in != store.d_model:
        raise ValueError(
            f"sae expects activations of width {sae.d_in}; {store.path} has "
            f"{store.d_model}"
        )
    n_biosamples, n_windows = len(store.biosamples), len(store.positions())
    shape = (n_biosamples, n_windows, sae.d_sae)
    summary = WindowSummary(np.empty(shape, np.float32), np.empty(shape, np.float32))
    device = sae.W_enc.device
    most = _ENCODE_TOKENS[device.type]
    tokens = min(store.n_tokens, most)
    together = max(1, most // store.n_tokens)  # windows
    space = torch.empty(together * tokens, sae.d_sae, device=device)
    for row, first, streams in _streams(store, layer):
        for begin in range(0, len(streams), together):
            x = streams[begin : begin + together].to(device)
            total = torch.zeros(2, len(x), sae.d_sae, device=device)
            for part in x.split(tokens, dim=1):
                feature_acts = _encode(sae, part.flatten(0, 1), space)
                feature_acts = feature_acts.unflatten(0, part.shape[:2])
                total[0] += feature_acts.sum(1)
                total[1] += feature_acts.sign_().sum(1)  # 1 where a feature fires
            windows = slice(first + begin, first + begin + len(x))
            for values, found in zip(summary, total / store.n_tokens, strict=True):
                values[row, windows] = found.cpu().numpy()
        if progress is not None:
            done = row * n_windows + first + len(streams)
            progress(done, n_biosamples * n_windows)
    return summary


def _encode(sae: BatchTopKSAE, x: torch.Tensor, space: torch.Tensor) -> torch.Tensor:
    """Return `sae.encode(x)`, written into a buffer: fresh memory costs as much."""
    x = (x.to(sae.W_enc.dtype) - sae.mean).div_(sae.scale).sub_(sae.b_dec)
    h = torch.addmm(sae.b_enc, x, sae.W_enc, out=space[: len(x)])
    if sae.threshold.ndim == 0:
        return F.threshold_(h, float(sae.threshold), 0.0)
    return h.masked_fill_(h <= sae.threshold, 0.0)


def _streams(
    store: ActivationStore, layer: int
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Yield biosample, first window and streams (n_windows, n_tokens, d_model)."""
    source, n_windows = store.layer(layer), len(store.windows)
    step = max(1, _READ_VALUES // (store.n_tokens * store.d_model))
    step = -(-step // store.chunk_windows) * store.chunk_windows
    places = [
        (row, first)
        for row in range(len(store.biosamples))
        for first in range(0, n_windows, step)
    ]

    def read(row: int, first: int) -> torch.Tensor:
        return torch.from_numpy(source[row, first : min(first + step, n_windows)])

    pool = ThreadPoolExecutor(1, "helpers-read")
    try:
        ahead = pool.submit(read, *places[0])
        for place, following in zip(places, [*places[1:], None], strict=True):
            streams = ahead.result()
            if following is not None:
                ahead = pool.submit(read, *following)
            yield *place, streams
    finally:
        # Without waiting: an abandoned generator may end in any thread.
        pool.shutdown(wait=False, cancel_futures=True)
