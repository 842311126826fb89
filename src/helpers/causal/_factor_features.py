"""Which features speak for a planted factor: chosen on ``tune`` windows."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from helpers.causal._factor_tokens import Split
from helpers.causal._selection import Dictionary
from helpers.causal._side_by_side import side_by_side
from helpers.stages import Study
from helpers.truth import match_features

__all__ = ["LIMITS", "WANTED", "Choice", "choose", "is_specific", "named_by_contrast"]

WANTED = 5.0  # times more at sites than elsewhere
_SMALLEST = 0.002  # change at sites, log1p, for a feature to count
_N_TRIED = (4, 2)  # features per factor and block: specific ones, strong ones
_MOST = 5  # features zeroed per block
LIMITS = [WANTED, _SMALLEST, _N_TRIED, _MOST]


class Choice(NamedTuple):
    """What is zeroed for a factor: per block some features, and what tune promised."""

    features: dict[int, np.ndarray]
    at_sites: float
    elsewhere: float


def choose(
    study: Study,
    known: dict[int, Dictionary],
    named: dict[tuple[int, str], np.ndarray],
    split: Split,
) -> dict[str, dict[str, Choice]]:
    """Choose features and block of every factor on the windows of a split.

    Parameters
    ----------
    study : Study
        A run on simulated data.
    known : dict of int to Dictionary
        Per block.
    named : dict
        Features of `named_by_contrast`.
    split : Split
        Windows with the track visible or hidden.

    Returns
    -------
    dict of str to dict of str to Choice
        Per selection and factor.
    """
    guessed = _estimate(study, known, split)
    alone = _one_by_one(study, known, split, _candidates(guessed))
    return {"contrast": _best_block(named, guessed), **_by_output(alone)}


def is_specific(at_sites: np.ndarray, elsewhere: np.ndarray) -> np.ndarray:
    """Return whether a change lowers sites, five times more than it moves others."""
    return (at_sites < -_SMALLEST) & (-at_sites >= WANTED * np.abs(elsewhere))


def named_by_contrast(
    study: Study, known: dict[int, Dictionary]
) -> dict[tuple[int, str], np.ndarray]:
    """Name significant features by the sites at which they differ most."""

    def of_layer(layer: int) -> pd.DataFrame:
        features = known[layer].features.significant
        return match_features(study, layer, features, split="tune")

    named = side_by_side(of_layer, list(known), study, desc="features by contrast")
    return {
        (layer, factor): rows["feature"].to_numpy()
        for layer, table in zip(known, named, strict=True)
        for factor, rows in table[table["factor"] != ""].groupby("factor")
    }


def _estimate(
    study: Study, known: dict[int, Dictionary], split: Split
) -> dict[tuple[int, str], np.ndarray]:
    """Guess what zeroing each feature does at each factor's tokens, (2, d_sae).

    To first order, and as if what is removed at a token acted at that token alone: one
    backward pass for all factors. Good enough to say which features to try.
    """
    crop = study.model.config.crop

    def of_biosample(b: int) -> dict[tuple[int, str], np.ndarray]:
        factors = _factors_of(split, b)
        found = {}
        for layer, slope in _slopes(study, known, split.streams[b]) if factors else ():
            sae, x = known[layer].sae, split.streams[b][layer]
            inner = slice(crop, x.shape[1] - crop)
            acts = sae.encode(x[:, inner].flatten(0, 1))
            written = slope[:, inner].flatten(0, 1) @ sae.decoder_directions.T
            weights = torch.cat(list(factors.values())).flatten(1)
            removed = weights @ (-acts * written)
            for factor, sums in zip(factors, removed.split(2), strict=True):
                found[layer, factor] = sums.cpu().numpy()
        return found

    every = list(range(len(study.design)))
    found = side_by_side(of_biosample, every, study, desc="features to try")
    return _per_token(found, split)


def _factors_of(split: Split, biosample: int) -> dict[str, torch.Tensor]:
    """Return weights at sites and elsewhere of the factors at work in a biosample."""
    return {
        factor: tokens.weights[:2]
        for factor, of_factor in split.tokens.items()
        for tokens in of_factor
        if tokens.biosample == biosample
    }


def _slopes(
    study: Study, known: dict[int, Dictionary], streams: dict[int, torch.Tensor]
) -> list[tuple[int, torch.Tensor]]:
    """Return per block the slope of the summed log1p prediction along the stream."""
    model, first = study.model, min(known)
    with torch.enable_grad():
        x = streams[first].clone().requires_grad_()
        kept, done = {first: x}, first + 1
        for layer in sorted(known)[1:]:
            x = model.run_blocks(x, done, layer + 1)
            kept[layer], done = x, layer + 1
        y = model.head(model.run_blocks(x, done)).log1p()
        slopes = torch.autograd.grad(y.sum(), list(kept.values()))
    return list(zip(kept, slopes, strict=True))


def _per_token(
    sums: list[dict[tuple[int, str], np.ndarray]], split: Split
) -> dict[tuple[int, str], np.ndarray]:
    """Add up sums (2, n_features) over biosamples and divide by the tokens' weights."""
    total: dict[tuple[int, str], np.ndarray] = {}
    for of_biosample in sums:
        for key, of_key in of_biosample.items():
            total[key] = total.get(key, 0.0) + of_key
    counts = {
        factor: sum(t.weights[:2].sum(dim=(1, 2)).cpu().numpy() for t in of_factor)
        for factor, of_factor in split.tokens.items()
    }
    return {
        (layer, factor): of_key / counts[factor][:, None]
        for (layer, factor), of_key in total.items()
    }


def _candidates(guessed: dict[tuple[int, str], np.ndarray]) -> dict[int, np.ndarray]:
    """Return the features of every block that look specific or strong to a factor."""
    tried: dict[int, set[int]] = {}
    for (layer, _), (at_sites, elsewhere) in guessed.items():
        specific = np.argsort(at_sites + 2 * np.abs(elsewhere), kind="stable")
        strong = np.argsort(at_sites, kind="stable")
        best = [*specific[: _N_TRIED[0]], *strong[: _N_TRIED[1]]]
        tried.setdefault(layer, set()).update(int(j) for j in best if at_sites[j] < 0)
    return {layer: np.array(sorted(of)) for layer, of in tried.items() if of}


def _one_by_one(
    study: Study,
    known: dict[int, Dictionary],
    split: Split,
    candidates: dict[int, np.ndarray],
) -> dict[tuple[int, str], tuple[np.ndarray, np.ndarray]]:
    """Zero every candidate alone.

    Returns
    -------
    dict
        Per block and factor the candidates, and the mean change at sites and elsewhere,
        (2, n_candidates).
    """

    def of_condition(condition: tuple[int, int]) -> dict[tuple[int, str], np.ndarray]:
        layer, b = condition
        factors = _factors_of(split, b)
        if not factors:
            return {}
        weights = torch.cat(list(factors.values()))
        sums = _zero_alone(study, known[layer], split, b, candidates[layer], weights)
        return {
            (layer, factor): of_factor.cpu().numpy()
            for factor, of_factor in zip(factors, sums.split(2), strict=True)
        }

    conditions = list(product(candidates, range(len(study.design))))
    found = side_by_side(of_condition, conditions, study, desc="features one by one")
    return {
        (layer, factor): (candidates[layer], change)
        for (layer, factor), change in _per_token(found, split).items()
    }


@torch.inference_mode()
def _zero_alone(
    study: Study,
    of_block: Dictionary,
    split: Split,
    biosample: int,
    features: np.ndarray,
    weights: torch.Tensor,
) -> torch.Tensor:
    """Return weighted sums of the change by each feature, (n_weights, n_features)."""
    model, start = study.model, of_block.layer + 1
    x, base = split.streams[biosample][of_block.layer], split.predicted[biosample]
    acts = of_block.sae.encode(x.flatten(0, 1))[:, features].T.contiguous()
    sums = x.new_zeros(len(weights), len(features))
    for k, (j, of_tokens) in enumerate(zip(features, acts, strict=True)):
        act = of_tokens.view(x.shape[:2])
        fires = act.any(dim=1)  # windows where there is something to zero
        if not fires.any():
            continue
        written = act[fires][..., None] * of_block.sae.decoder_directions[j]
        edited = model.head(model.run_blocks(x[fires] - written, start)).log1p()
        change = (edited - base[fires]).flatten()
        sums[:, k] = weights[:, fires].flatten(1) @ change
    return sums


def _by_output(
    alone: dict[tuple[int, str], tuple[np.ndarray, np.ndarray]],
) -> dict[str, dict[str, Choice]]:
    """Choose the features of every factor by what each does alone."""
    sets, sums = {}, {}
    for (layer, factor), (features, change) in alone.items():
        kept = _specific(*change)
        if len(kept):
            sets[layer, factor] = features[kept]
            sums[layer, factor] = change[:, kept].sum(axis=1)
    one, every = {}, {}
    for factor in dict.fromkeys(factor for _, factor in sets):
        layers = [layer for layer, name in sets if name == factor]
        merit = {b: _merit(*sums[b, factor]) for b in layers}
        best = max(merit, key=merit.get)
        one[factor] = Choice({best: sets[best, factor]}, *sums[best, factor])
        total = np.sum([sums[b, factor] for b in layers], axis=0)
        every[factor] = Choice({b: sets[b, factor] for b in layers}, *total)
    return {"output": one, "output, every block": every}


def _merit(at_sites: np.ndarray, elsewhere: np.ndarray) -> np.ndarray:
    """Return by how much the change at sites exceeds the wanted multiple of others."""
    return -at_sites - WANTED * np.abs(elsewhere)


def _specific(at_sites: np.ndarray, elsewhere: np.ndarray) -> np.ndarray:
    """Return the positions of the features that are specific, each on its own.

    Features that are specific only together, because what they do elsewhere cancels,
    would not be so on other windows.

    Parameters
    ----------
    at_sites, elsewhere : numpy.ndarray, shape (n_features,)
        Mean change by zeroing each feature.
    """
    best = np.argsort(-_merit(at_sites, elsewhere), kind="stable")[:_MOST]
    return best[is_specific(at_sites[best], elsewhere[best])]


def _best_block(
    sets: dict[tuple[int, str], np.ndarray],
    guessed: dict[tuple[int, str], np.ndarray],
) -> dict[str, Choice]:
    """Choose the block of every factor in which its features should act most."""
    best: dict[str, Choice] = {}
    for (layer, factor), features in sets.items():
        if (layer, factor) not in guessed:
            continue
        sums = guessed[layer, factor][:, features].sum(axis=1)
        if factor not in best or sums[0] < best[factor].at_sites:
            best[factor] = Choice({layer: features}, *sums)
    return best
