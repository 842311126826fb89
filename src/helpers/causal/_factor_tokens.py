"""Streams of simulated windows, and which of their tokens are whose sites.

A site of a planted factor is a token in a peak with the factor's motif, in a biosample
where the factor is at work. It is compared with tokens in peaks away from every such
site, weighted so that the unedited predictions are distributed alike, and with all
tokens away from sites, in peaks or not.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import binary_dilation

from helpers.causal._tracks import run_tracks
from helpers.stages import Study
from helpers.truth import factor_sites, read_factors

__all__ = ["GROUPS", "FactorTokens", "Split", "read_splits"]

GROUPS = ("at_sites", "elsewhere", "anywhere")
_ACTIVE = 0.5  # activity from which a planted factor is at work
_NEAR_TOKENS = 2  # tokens this near to a site of the factor are not elsewhere
_FEWEST = 10  # sites for an effect to be given
_BINS = 10  # of the unedited prediction


class FactorTokens(NamedTuple):
    """Tokens of a factor in a biosample.

    Attributes
    ----------
    biosample : int
    weights : torch.Tensor, shape (3, n_windows, n_outputs)
        Of sites, of matched tokens elsewhere, and of all tokens away from sites.
    """

    biosample: int
    weights: torch.Tensor


class Split(NamedTuple):
    """Streams of a split, with the tokens to look at.

    Attributes
    ----------
    windows : numpy.ndarray of int
    streams : list of dict of int to torch.Tensor
        Per biosample and block, (n_windows, n_tokens, d).
    predicted : list of torch.Tensor
        Unedited log1p prediction per biosample, (n_windows, n_outputs).
    tokens : dict of str to list of FactorTokens
        Per factor with enough sites.
    """

    windows: np.ndarray
    streams: list[dict[int, torch.Tensor]]
    predicted: list[torch.Tensor]
    tokens: dict[str, list[FactorTokens]]


def read_splits(study: Study, windows: np.ndarray) -> dict[str, Split]:
    """Run the model on windows with the track visible and hidden, and find the sites.

    Returns
    -------
    dict of str to Split
        Per entry of `helpers.causal._tracks.TRACKS`.
    """
    found = {}
    for track, run in run_tracks(study, windows).items():
        tokens = _tokens(study, windows, [y.cpu().numpy() for y in run.predicted])
        found[track] = Split(windows, *run, tokens)
    return found


def _tokens(
    study: Study, windows: np.ndarray, predicted: list[np.ndarray]
) -> dict[str, list[FactorTokens]]:
    dataset, crop = study.dataset, study.model.config.crop
    n_tokens = dataset.n_tokens
    inner = slice(crop, n_tokens - crop)
    activity = pd.read_csv(study.truth / "activity.tsv", sep="\t", index_col=0)
    table = factor_sites(study, windows)
    peaks = [dataset.in_peak(b)[windows] for b in range(len(study.design))]
    near = np.ones((1, 2 * _NEAR_TOKENS + 1), dtype=bool)  # along the tokens
    tokens = {}
    for factor in read_factors(study)["name"]:
        sites = table[factor].to_numpy().reshape(-1, n_tokens)
        far = ~binary_dilation(sites, near)
        of_factor = []
        for b, name in enumerate(study.design["biosample"]):
            if activity.loc[factor, name] < _ACTIVE:
                continue
            at, away = ((mask & peaks[b])[:, inner] for mask in (sites, far))
            matched = _matched(predicted[b], at, away)
            weights = np.stack([at, matched, far[:, inner]]).astype(np.float32)
            if matched.any():
                found = torch.from_numpy(weights).to(study.device)
                of_factor.append(FactorTokens(b, found))
        if sum(float(t.weights[0].sum()) for t in of_factor) >= _FEWEST:
            tokens[factor] = of_factor
    return tokens


def _matched(base: np.ndarray, at: np.ndarray, away: np.ndarray) -> np.ndarray:
    """Weight tokens away from sites so that their predictions are spread alike.

    Parameters
    ----------
    base : numpy.ndarray, shape (n_windows, n_outputs)
        Unedited prediction.
    at, away : numpy.ndarray of bool, shape as `base`
        Sites, and the tokens to weight.

    Returns
    -------
    numpy.ndarray, float32, shape as `base`
        Zero outside ``away``; summing, per decile of the predictions at sites, to the
        number of sites if there are tokens to stand for them.
    """
    weights = np.zeros(base.shape, np.float32)
    if not at.any() or not away.any():
        return weights
    edges = np.quantile(base[at], np.linspace(0, 1, _BINS + 1)[1:-1])
    bins = np.digitize(base, edges)
    n_at = np.bincount(bins[at], minlength=_BINS)
    n_away = np.bincount(bins[away], minlength=_BINS)
    share = n_at / np.maximum(n_away, 1)
    weights[away] = share[bins[away]]
    return weights
