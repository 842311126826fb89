"""Where features fire: the universe of regions, and the strongest of every feature.

A region is a token of 128 bp that the model predicts. `helpers.annotation` is the
public face of this module.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from helpers.stages import Study, feature_acts
from helpers.windows import TOKEN_BP

__all__ = ["inner_tokens", "openness_of", "region_codes", "top_regions", "universe"]

N_TOP = 200  # strongest tokens of a feature
_CHUNK = 32  # windows whose activations are held at a time


def universe(study: Study, *splits: str) -> pd.DataFrame:
    """Return all regions: the tokens of windows that the model predicts.

    Parameters
    ----------
    study : Study
        The run.
    *splits : str
        Which windows; ``test`` if none is named.

    Returns
    -------
    pandas.DataFrame
        ``chrom``, ``start``, ``end``, ``window``, ``token``, ``block``.
    """
    tokens = study.dataset.token_table(study.dataset.windows_of(*splits or ("test",)))
    inner = inner_tokens(study)
    predicted = tokens["token"].between(inner.start, inner.stop, inclusive="left")
    return tokens[predicted].reset_index(drop=True)


def top_regions(study: Study, features: pd.DataFrame, *splits: str) -> list[np.ndarray]:
    """Return where features fire most, each in its biosample.

    Of neighboring tokens only the strongest counts: they are one event, and tests take
    regions for independent.

    Parameters
    ----------
    study : Study
        The run.
    features : pandas.DataFrame
        Columns ``layer``, ``feature`` and ``biosample``.
    *splits : str
        Windows to look at; ``test`` if none is named.

    Returns
    -------
    list of numpy.ndarray of int
        Rows of `universe` for every feature, sorted, at most 200.
    """
    windows = study.dataset.windows_of(*splits or ("test",))
    found: list[np.ndarray] = [np.empty(0, dtype=np.int64)] * len(features)
    for layer, where in features.groupby("layer").indices.items():
        numbers, biosamples = (
            features[column].to_numpy()[where] for column in ("feature", "biosample")
        )
        regions = _top_of_layer(study, int(layer), numbers, biosamples, windows)
        for row, own in zip(where, regions, strict=True):
            found[row] = own
    return found


def _top_of_layer(
    study: Study,
    layer: int,
    numbers: np.ndarray,
    biosamples: np.ndarray,
    windows: np.ndarray,
) -> list[np.ndarray]:
    values = np.zeros((len(numbers), 0), dtype=np.float32)
    regions = np.zeros((len(numbers), 0), dtype=np.int64)
    for first in range(0, len(windows), _CHUNK):
        acts = feature_acts(study, layer, numbers, windows[first : first + _CHUNK])
        own = acts[biosamples, :, :, np.arange(len(numbers))]  # feature, window, token
        around = np.pad(own, ((0, 0), (0, 0), (1, 1)))
        is_peak = (own > around[..., :-2]) & (own >= around[..., 2:])
        peaks = np.where(is_peak, own, 0)[..., inner_tokens(study)]
        index = first * peaks.shape[2] + np.arange(peaks[0].size)
        peaks = peaks.reshape(len(numbers), -1)
        values = np.concatenate([values, peaks], axis=1)
        regions = np.concatenate([regions, np.broadcast_to(index, peaks.shape)], axis=1)
        if values.shape[1] > N_TOP:
            keep = np.argpartition(-values, N_TOP - 1, axis=1)[:, :N_TOP]
            values = np.take_along_axis(values, keep, axis=1)
            regions = np.take_along_axis(regions, keep, axis=1)
    return [np.sort(r[v > 0]) for r, v in zip(regions, values, strict=True)]


def openness_of(study: Study, biosample: int, *splits: str) -> np.ndarray:
    """Return the measured signal of every region of the universe."""
    windows = study.dataset.windows_of(*splits or ("test",))
    return study.dataset.target(windows, biosample)[:, inner_tokens(study)].ravel()


def inner_tokens(study: Study) -> slice:
    """Return the tokens of a window that the model predicts."""
    crop = study.model.config.crop
    return slice(crop, study.dataset.n_tokens - crop)


def region_codes(study: Study, *splits: str) -> np.ndarray:
    """Return the sequence of every region of a universe, ``(n_regions, 128)`` codes."""
    inner, dataset = inner_tokens(study), study.dataset
    windows = dataset.windows_of(*splits)
    return np.concatenate(
        [dataset.codes(w).reshape(-1, TOKEN_BP)[inner] for w in windows]
    )
