"""Forward passes with chosen inputs: whose track, at which gain, whose motif activity.

The sequence tower runs once per window and serves every pass, so that asking what an
input does costs a fifth of a full pass. `helpers.confounders` is the public face of
this module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from helpers.epibert import EpiBERT
from helpers.sae import BatchTopKSAE
from helpers.windows import INPUT_CLIP, WindowDataset, soft_clip

__all__ = ["Codes", "PassInput", "PassSummary", "stream_codes", "summarize_passes"]

_BATCH_WINDOWS = 16


class PassInput(NamedTuple):
    """What one pass sees beside the sequence.

    Attributes
    ----------
    track : int
        Biosample whose track is read.
    motif_activity : tuple of int
        Biosamples whose motif activity is averaged: one, or the pair for a vector that
        both contexts share.
    gain : float
        Factor on the track, before the soft clip.
    """

    track: int
    motif_activity: tuple[int, ...]
    gain: float = 1.0


class Codes(NamedTuple):
    """Feature activations of one pass, layer and batch of windows.

    Attributes
    ----------
    index : int
        Position in the list of passes.
    layer : int
        Layer.
    windows : slice
        Positions in the list of windows.
    feature_acts : torch.Tensor, shape (n, n_tokens, d_sae)
        Codes, on the device of the model.
    """

    index: int
    layer: int
    windows: slice
    feature_acts: torch.Tensor


class PassSummary(NamedTuple):
    """What is kept of the passes through one layer.

    Attributes
    ----------
    mean_acts, firing : numpy.ndarray, float32, shape (n_passes, n_windows, d_sae)
        Mean activation, and share of the tokens on which a feature fires.
    squares : numpy.ndarray, float64, shape (n_passes, d_sae)
        Sum over all tokens of the squared activation, for token-level variances.
    weighted : numpy.ndarray, float64, shape (n_passes, n_weights, d_sae)
        Sums over all tokens of the activation times each weight that was given.
    """

    mean_acts: np.ndarray
    firing: np.ndarray
    squares: np.ndarray
    weighted: np.ndarray


@torch.no_grad()
def stream_codes(
    model: EpiBERT,
    saes: Mapping[int, BatchTopKSAE],
    dataset: WindowDataset,
    windows: Sequence[int] | np.ndarray,
    passes: Sequence[PassInput],
    *,
    factors: Mapping[int, np.ndarray] | None = None,
) -> Iterator[Codes]:
    """Run the passes and yield feature activations, a batch of windows at a time.

    Parameters
    ----------
    model : EpiBERT
        In evaluation mode.
    saes : mapping of int to BatchTopKSAE
        Dictionary of each layer wanted.
    dataset : WindowDataset
        Inputs; passes name its biosamples.
    windows : sequence of int
        Windows to run.
    passes : sequence of PassInput
        What each pass sees.
    factors : mapping of int to array, shape (n_passes,), optional
        Multiply the stream of a layer before it is encoded, e.g. to give all
        biosamples the same mean norm.

    Yields
    ------
    Codes
        By window batch, then pass, then layer.

    Raises
    ------
    ValueError
        If a pass names a biosample that the data set lacks, a gain is not positive, or
        the model is in training mode.
    """
    _check_passes(passes, len(dataset.biosamples))
    if model.training:
        raise ValueError("model must be in evaluation mode; call model.eval()")
    device = next(model.parameters()).device
    motifs = torch.from_numpy(dataset.motif_activity).to(device)
    windows = np.asarray(windows)
    for first in range(0, len(windows), _BATCH_WINDOWS):
        batch = windows[first : first + _BATCH_WINDOWS]
        sequence = torch.from_numpy(dataset.sequence(batch)).to(device)
        features = model.encode_sequence(sequence)
        tracks = {p.track: dataset.track(batch, p.track) for p in passes}
        for index, given in enumerate(passes):
            atac = soft_clip(given.gain * tracks[given.track], INPUT_CLIP)
            stream = model.encode_context(
                features,
                torch.from_numpy(atac).float().to(device),
                motifs[list(given.motif_activity)].mean(0).expand(len(batch), -1),
            )
            start = 0
            for layer in sorted(saes):
                stream = model.run_blocks(stream, start, layer + 1)
                start = layer + 1
                # What a store would hand to the dictionary: half precision.
                x = stream.half().float()
                if factors is not None:
                    x = x * float(factors[layer][index])
                rows = slice(first, first + len(batch))
                yield Codes(index, layer, rows, saes[layer].encode(x))


def _check_passes(passes: Sequence[PassInput], n_biosamples: int) -> None:
    for given in passes:
        named = [given.track, *given.motif_activity]
        if not given.motif_activity or not set(named) <= set(range(n_biosamples)):
            raise ValueError(
                f"passes must name biosamples 0 to {n_biosamples - 1}; got {given}"
            )
        if not given.gain > 0:
            raise ValueError(f"the gain of a pass must be positive; got {given}")


def summarize_passes(
    model: EpiBERT,
    saes: Mapping[int, BatchTopKSAE],
    dataset: WindowDataset,
    windows: Sequence[int] | np.ndarray,
    passes: Sequence[PassInput],
    *,
    factors: Mapping[int, np.ndarray] | None = None,
    weights: np.ndarray | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[int, PassSummary]:
    """Average the feature activations of passes over each window.

    Parameters
    ----------
    model, saes, dataset, windows, passes, factors
        As in `stream_codes`.
    weights : numpy.ndarray, shape (n_windows, n_tokens, n_weights), optional
        Weights of the tokens for ``weighted``, such as where a motif lies.
    progress : callable, optional
        Called with the number of windows done after each batch.

    Returns
    -------
    dict of int to PassSummary
        One for each layer.
    """
    shape = (len(passes), len(windows))
    n_weights = 0 if weights is None else weights.shape[2]
    found = {
        layer: PassSummary(
            np.empty((*shape, sae.d_sae), np.float32),
            np.empty((*shape, sae.d_sae), np.float32),
            np.zeros((len(passes), sae.d_sae)),
            np.zeros((len(passes), n_weights, sae.d_sae)),
        )
        for layer, sae in saes.items()
    }
    last = (len(passes) - 1, max(saes))
    for codes in stream_codes(model, saes, dataset, windows, passes, factors=factors):
        summary, acts = found[codes.layer], codes.feature_acts
        summary.mean_acts[codes.index, codes.windows] = acts.mean(1).cpu()
        fired = torch.count_nonzero(acts, dim=1) / acts.shape[1]
        summary.firing[codes.index, codes.windows] = fired.cpu()
        squares = acts.square().sum(1).double().sum(0)
        summary.squares[codes.index] += squares.cpu().numpy()
        if weights is not None:
            rows = torch.from_numpy(weights[codes.windows]).to(acts).flatten(0, 1)
            summary.weighted[codes.index] += (rows.T @ acts.flatten(0, 1)).cpu().numpy()
        if progress is not None and (codes.index, codes.layer) == last:
            progress(codes.windows.stop)
    return found
