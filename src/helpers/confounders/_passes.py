"""Forward passes with chosen inputs: whose track, at which gain, whose motif activity.

The sequence tower runs once per window and serves every pass, the tower of the tracks
once per track and gain, so that asking what an input does costs a sixth of a full pass.
`helpers.confounders` is the public face of this module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from helpers.epibert import ATAC_BIN_BP, EpiBERT
from helpers.sae import BatchTopKSAE
from helpers.windows import INPUT_CLIP, WindowDataset, soft_clip

__all__ = ["Codes", "PassInput", "PassSummary", "stream_codes", "summarize_passes"]

_BATCH_TOKENS = 1024  # windows of 64 tokens by sixteen, those of 4,096 one by one


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
    mean_acts : numpy.ndarray, float32, shape (n_passes, n_windows, d_sae)
        Mean activation over the tokens of each window.
    squares : numpy.ndarray, float64, shape (n_passes, d_sae)
        Sum over all tokens of the squared activation, for token-level variances.
    weighted : numpy.ndarray, float64, shape (n_passes, n_weights, d_sae)
        Sums over all tokens of the activation times each weight that was given.
    """

    mean_acts: np.ndarray
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
        By window batch; within it, passes of one track and gain together.

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
    shifts = _motif_shifts(model, motifs, {p.motif_activity for p in passes})
    groups: dict[tuple[int, float], list[int]] = {}
    for index, given in enumerate(passes):
        groups.setdefault((given.track, given.gain), []).append(index)
    windows = np.asarray(windows)
    n_batch = max(1, _BATCH_TOKENS // dataset.n_tokens)
    for first in range(0, len(windows), n_batch):
        batch = windows[first : first + n_batch]
        rows = slice(first, first + len(batch))
        sequence = torch.from_numpy(dataset.sequence(batch)).to(device)
        features = model.encode_sequence(sequence)
        tracks = {track: dataset.track(batch, track) for track, _ in groups}
        for (track, gain), members in groups.items():
            atac = torch.from_numpy(soft_clip(gain * tracks[track], INPUT_CLIP))
            nothing = motifs.new_zeros(len(batch), motifs.shape[1])
            base = model.encode_context(features, atac.float().to(device), nothing)
            for index in members:
                stream = base + shifts[passes[index].motif_activity]
                start = 0
                for layer in sorted(saes):
                    stream = model.run_blocks(stream, start, layer + 1)
                    start = layer + 1
                    # What a store would hand to the dictionary: half precision.
                    x = stream.half().float()
                    if factors is not None:
                        x = x * float(factors[layer][index])
                    yield Codes(index, layer, rows, saes[layer].encode(x))


def _motif_shifts(
    model: EpiBERT, motifs: torch.Tensor, vectors: set[tuple[int, ...]]
) -> dict[tuple[int, ...], torch.Tensor]:
    """Return what each motif activity adds to the stream, beside that of zeros.

    It enters through a linear layer, alike for all tokens: one vector of the width of
    the stream, whatever the window and its track.
    """
    config = model.config
    nothing = motifs.new_zeros(1, config.n_tokens, config.d_model)
    track = motifs.new_zeros(1, config.input_length // ATAC_BIN_BP)

    def stream(motif_activity: torch.Tensor) -> torch.Tensor:
        return model.encode_context(nothing, track, motif_activity[None])[0, 0]

    zero = stream(torch.zeros_like(motifs[0]))
    return {rows: stream(motifs[list(rows)].mean(0)) - zero for rows in vectors}


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
    folder: Path | None = None,
) -> dict[int, PassSummary]:
    """Average the feature activations of passes over each window.

    Parameters
    ----------
    model, saes, dataset, windows, passes, factors
        As in `stream_codes`.
    weights : numpy.ndarray, shape (n_windows, n_tokens, n_weights), optional
        Weights of the tokens for ``weighted``, such as where a motif lies.
    folder : Path, optional
        Keep the mean activations there, in files ``mean_acts_<layer>.npy``, and not in
        memory: at published size they are gigabytes.

    Returns
    -------
    dict of int to PassSummary
        One for each layer.
    """
    shape = (len(passes), len(windows))
    n_weights = 0 if weights is None else weights.shape[2]
    found = {
        layer: PassSummary(
            _empty((*shape, sae.d_sae), folder, layer),
            np.zeros((len(passes), sae.d_sae)),
            np.zeros((len(passes), n_weights, sae.d_sae)),
        )
        for layer, sae in saes.items()
    }
    for codes in stream_codes(model, saes, dataset, windows, passes, factors=factors):
        summary, acts = found[codes.layer], codes.feature_acts
        summary.mean_acts[codes.index, codes.windows] = acts.mean(1).cpu().numpy()
        squares = acts.square().sum(1).double().sum(0)
        summary.squares[codes.index] += squares.cpu().numpy()
        if weights is not None:
            rows = torch.from_numpy(weights[codes.windows]).to(acts).flatten(0, 1)
            summary.weighted[codes.index] += (rows.T @ acts.flatten(0, 1)).cpu().numpy()
    return found


def _empty(shape: tuple[int, ...], folder: Path | None, layer: int) -> np.ndarray:
    """Return an array to fill, in memory or in a file."""
    if folder is None:
        return np.empty(shape, np.float32)
    path = folder / f"mean_acts_{layer}.npy"
    mapped = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    # A mapped file with holes ends the process where the disk is full: fill them first.
    with open(path, "r+b") as file:
        file.seek(mapped.offset)
        for row in mapped:
            file.write(bytes(row.nbytes))
    return mapped
