"""Training batches: windows in memory, which tokens are hidden, augmentation.

Sampling follows the authors' pre-training (Javed et al. 2025, Cell Genomics 5:100762);
where it does not, the docstring says so. `helpers.pretrain` is the public face of this
module.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from helpers.windows import (
    BIN_BP,
    INPUT_CLIP,
    TOKEN_BP,
    WindowDataset,
    soft_clip,
    token_targets,
)

__all__ = ["TrainingArrays", "draw_batch", "draw_mask", "hide", "load_arrays"]

_MARGIN_BP = 3  # on both sides of stored sequence, for the jitter
_NOISE = 1e-4  # of the inputs, as the authors add it
_PEAK_HALF_TOKENS = 6  # 13 tokens, 1,536 bp and the middle one
_RUN_TOKENS, _RUN_RATE = 12, 0.15
_TRIPLE_ODDS = 15  # one example in 15 is masked at three times the rate
_COMPLEMENT = np.array([3, 2, 1, 0, 4], dtype=np.uint8)


@dataclass(frozen=True)
class TrainingArrays:
    """A data set held in memory.

    Attributes
    ----------
    codes : numpy.ndarray, shape (n_windows, window_bp + 2 * margin), uint8
        Base codes with a margin for the jitter of the sequence.
    tracks : numpy.ndarray, shape (n_biosamples, n_windows, n_bins), float16
        Scaled tracks without soft clip.
    in_peak : numpy.ndarray, shape (n_biosamples, n_windows, n_tokens), bool
        Tokens that overlap a peak.
    motif_activity : numpy.ndarray, shape (n_biosamples, n_motifs)
        Scaled motif activity.
    margin : int
        Bases before and after the window in ``codes``.
    """

    codes: np.ndarray
    tracks: np.ndarray
    in_peak: np.ndarray
    motif_activity: np.ndarray
    margin: int = _MARGIN_BP

    def digest(self) -> str:
        """Return a digest of the content, which tells data sets apart."""
        content = hashlib.sha256()
        for values in (self.codes, self.tracks, self.in_peak, self.motif_activity):
            content.update(repr((values.shape, values.dtype.str)).encode())
            content.update(np.ascontiguousarray(values).data)
        return content.hexdigest()[:16]


def load_arrays(
    dataset: WindowDataset, windows: Sequence[int], biosamples: Sequence[int]
) -> TrainingArrays:
    """Read windows x biosamples into memory.

    Parameters
    ----------
    dataset : WindowDataset
        The data set.
    windows, biosamples : sequence of int
        Which to read.

    Returns
    -------
    TrainingArrays
        Signal beyond the range of float16 (65,504 in a 4-bp bin) is cut off.

    Raises
    ------
    ValueError
        If there is no window or no biosample, or a file is damaged.
    """
    windows, biosamples = np.asarray(windows), np.asarray(biosamples)
    if windows.size == 0 or biosamples.size == 0:
        raise ValueError(
            "windows and biosamples must not be empty; got "
            f"{windows.size} windows, {biosamples.size} biosamples"
        )
    highest = np.finfo(np.float16).max
    tracks = [
        np.minimum(dataset.track(windows, b), highest).astype(np.float16)
        for b in biosamples
    ]
    return TrainingArrays(
        codes=np.stack([dataset.codes(w, margin=_MARGIN_BP) for w in windows]),
        tracks=np.stack(tracks),
        in_peak=np.stack([dataset.in_peak(b)[windows] for b in biosamples]),
        motif_activity=dataset.motif_activity[biosamples],
    )


def draw_mask(
    in_peak: np.ndarray,
    random_state: np.random.Generator,
    *,
    crop: int,
    triple: bool = True,
) -> np.ndarray:
    """Draw the tokens whose track is hidden.

    The mask is the union of 13 tokens around one random token inside a peak, and of
    runs of 12 inner tokens, each hidden with probability 0.15 (0.45 in one example of
    15 while training).

    Parameters
    ----------
    in_peak : numpy.ndarray, shape (n, n_tokens), bool
        Tokens that overlap a peak.
    random_state : numpy.random.Generator
        Source of randomness.
    crop : int
        Tokens at each end that the model does not predict; runs avoid them, the
        tokens around a peak do not.
    triple : bool
        Whether to triple the rate now and then (off in validation).

    Returns
    -------
    numpy.ndarray, shape (n, n_tokens), bool
        True where the track is hidden. A window without peaks may have none.

    Notes
    -----
    The authors center the 13 tokens on a peak's center. A peak of several tokens is
    centered on any of them here, and drawn in proportion to its length.
    """
    n, n_tokens = in_peak.shape
    inner = n_tokens - 2 * crop
    rate = np.full(n, _RUN_RATE)
    if triple:
        rate[random_state.random(n) < 1 / _TRIPLE_ODDS] *= 3
    runs = random_state.random((n, -(-inner // _RUN_TOKENS))) < rate[:, None]
    mask = np.zeros_like(in_peak)
    mask[:, crop : n_tokens - crop] = np.repeat(runs, _RUN_TOKENS, axis=1)[:, :inner]
    order = random_state.random(in_peak.shape) * in_peak
    center = order.argmax(axis=1)
    token = np.arange(n_tokens)
    near = np.abs(token[None] - center[:, None]) <= _PEAK_HALF_TOKENS
    return mask | (near & in_peak.any(axis=1)[:, None])


def hide(track: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the model's input: a track with hidden tokens set to 0, soft-clipped.

    Parameters
    ----------
    track : numpy.ndarray, shape (..., n_bins)
        Scaled track without soft clip.
    mask : numpy.ndarray, shape (..., n_tokens), bool
        Tokens to hide.
    """
    visible = track * ~np.repeat(mask, TOKEN_BP // BIN_BP, axis=-1)
    return soft_clip(visible, INPUT_CLIP)


def draw_batch(
    data: TrainingArrays,
    random_state: np.random.Generator,
    *,
    n_windows: int,
    n_biosamples: int,
    crop: int,
) -> dict[str, np.ndarray]:
    """Draw one augmented batch; the examples of a window follow each other.

    Sequence is shifted by up to 3 bases against the track, half of the windows are
    reverse-complemented with their tracks and masks, and inputs get a little noise.

    Parameters
    ----------
    data : TrainingArrays
        Windows and biosamples to draw from.
    random_state : numpy.random.Generator
        Source of randomness.
    n_windows, n_biosamples : int
        Windows, and biosamples of each, without replacement as far as there are enough.
    crop : int
        As in `draw_mask`.

    Returns
    -------
    dict of numpy.ndarray
        ``codes`` (n_windows, window_bp), and per example ``atac`` (..., n_bins),
        ``target`` and ``mask`` (..., n_tokens), ``motif_activity`` (..., n_motifs).
    """
    n_all, n_bins = data.tracks.shape[0], data.tracks.shape[2]
    window = random_state.choice(data.tracks.shape[1], n_windows, replace=False)
    again = n_biosamples > n_all
    biosample = np.stack(
        [random_state.choice(n_all, n_biosamples, replace=again) for _ in window]
    )
    shift = data.margin + random_state.integers(0, _MARGIN_BP + 1, n_windows)
    length = n_bins * BIN_BP
    codes = np.stack(
        [data.codes[w, s : s + length] for w, s in zip(window, shift, strict=True)]
    )
    pick = (biosample, window[:, None])
    track = data.tracks[pick].astype(np.float32)  # (n_windows, n_biosamples, n_bins)
    noise = random_state.normal(_NOISE, _NOISE, track.shape).astype(np.float32)
    track += np.abs(noise)  # in input and target; hidden bins are exactly 0
    peak = data.in_peak[pick]
    mask = draw_mask(peak.reshape(-1, peak.shape[-1]), random_state, crop=crop)
    mask = mask.reshape(peak.shape)
    flip = random_state.random(n_windows) < 0.5
    codes[flip] = _COMPLEMENT[codes[flip, ::-1]]
    track[flip], mask[flip] = track[flip, :, ::-1], mask[flip, :, ::-1]
    motif = data.motif_activity[biosample]
    motif = motif + np.abs(random_state.normal(0, _NOISE, motif.shape))
    examples = {
        "target": token_targets(track),
        "atac": hide(track, mask),
        "mask": mask,
        "motif_activity": motif.astype(np.float32),
    }
    flat = {name: x.reshape(-1, x.shape[-1]) for name, x in examples.items()}
    return {"codes": codes, **flat}
