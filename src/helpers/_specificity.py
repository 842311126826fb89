"""Zero the features of a planted factor: the prediction should fall at its sites.

The features and the block of a factor are chosen on ``tune`` windows, the effect is
measured on ``test``. A site is a token in a peak with the factor's motif, in a
biosample where the factor is at work; it is compared with tokens in peaks away from
every such site, weighted so that the unedited predictions are distributed alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from tqdm.std import tqdm

from helpers._batches import hide
from helpers._registration import registered_windows
from helpers._selection import (
    Dictionary,
    batches,
    blocks_of,
    dictionaries,
    spread_windows,
)
from helpers._sweep import input_recipe
from helpers.blockstats import block_bootstrap
from helpers.interventions import ablation_deltas
from helpers.runs import code_digest
from helpers.stages import Study
from helpers.truth import factor_sites, match_features, read_factors

__all__ = ["factor_specificity"]

N_WINDOWS = {"tune": 64, "test": 64}
TRACKS = ("visible", "hidden")
WANTED = 5.0  # times more at sites than elsewhere
_SMALLEST = 0.002  # change at sites, log1p, for a feature to count
_MOST = 40  # features considered per factor
_ACTIVE = 0.5  # activity from which a planted factor is at work
_NEAR_TOKENS = 2  # tokens this near to a site of the factor are not elsewhere
_FEWEST = 10  # sites for an effect to be given
_BINS = 10  # of the unedited prediction
_CODE = ("_specificity", "interventions", "blockstats", "truth")


class _Tokens(NamedTuple):
    """Tokens of a factor in a biosample.

    Attributes
    ----------
    biosample : int
    weights : torch.Tensor, shape (2, n_windows, n_outputs)
        Of sites and of matched tokens elsewhere.
    """

    biosample: int
    weights: torch.Tensor


class _Split(NamedTuple):
    """Streams of a split, with the tokens to look at.

    Attributes
    ----------
    windows : numpy.ndarray of int
    streams : list of dict of int to torch.Tensor
        Per biosample and block, (n_windows, n_tokens, d).
    predicted : list of torch.Tensor
        Unedited log1p prediction per biosample, (n_windows, n_outputs).
    tokens : dict of str to list of _Tokens
        Per factor with enough sites.
    """

    windows: np.ndarray
    streams: list[dict[int, torch.Tensor]]
    predicted: list[torch.Tensor]
    tokens: dict[str, list[_Tokens]]


def factor_specificity(study: Study) -> pd.DataFrame:
    """Zero the features of each planted factor; look at its sites and elsewhere.

    Features are chosen in two ways. By ``contrast``: significant features whose
    strongest differences between the contexts lie at the factor's sites
    (`helpers.truth.match_features`). By ``output``: features whose removal, to first
    order, lowers the prediction at the sites at least five times more than elsewhere.
    Each is done with the ``visible`` track, of which the model copies most, and with
    the track ``hidden``, where it has to read the sequence.

    Parameters
    ----------
    study : Study
        A run on simulated data; `helpers.causal.register` must have been called.

    Returns
    -------
    pandas.DataFrame
        One row per ``track``, ``selection`` and ``factor`` with a feature of its own:
        the ``layer``, in which the estimated effect on ``tune`` is most specific and
        largest; ``n_features``; ``n_sites``, tokens over all active biosamples;
        ``at_sites``, mean change of the log1p prediction there; ``elsewhere``, the same
        at matched tokens; ``specificity``, the ratio of their sizes; each with a 95 %
        block-bootstrap interval; and the first-order estimates ``tune_at_sites`` and
        ``tune_specificity``.

    Raises
    ------
    FileNotFoundError, ValueError
        If the analysis is not registered, or the data are not simulated.
    """
    if study.truth is None:
        raise ValueError("planted factors are known for simulated data only")
    windows = {
        "tune": spread_windows(study, "tune", N_WINDOWS["tune"]),
        "test": registered_windows(study, N_WINDOWS["test"]),
    }

    def build() -> pd.DataFrame:
        known = dictionaries(study)
        by_contrast = _by_contrast(study, known)
        rows = []
        for track in TRACKS:
            tune, test = (_read(study, windows[x], track) for x in ("tune", "test"))
            removed = _estimate(study, known, tune, track)
            by_output = {key: _specific(*of) for key, of in removed.items()}
            for selection, sets in (("contrast", by_contrast), ("output", by_output)):
                for factor, of_factor in _best_block(sets, removed).items():
                    layer, features, estimate = of_factor
                    if factor not in test.tokens:
                        continue
                    head = {"track": track, "selection": selection, "factor": factor}
                    row = _measure(study, known[layer], factor, features, test)
                    rows.append(head | {"layer": layer} | row | estimate)
        return pd.DataFrame(rows)

    recipe = input_recipe(study) | {
        "windows": N_WINDOWS,
        "code": code_digest(*_CODE),
    }
    return study.run.table("factor_specificity.parquet", recipe, build)


@torch.no_grad()
def _read(study: Study, windows: np.ndarray, track: str) -> _Split:
    """Run the model on windows, the whole track hidden or not, and find the sites."""
    dataset, model = study.dataset, study.model
    n_tokens, crop = dataset.n_tokens, model.config.crop
    inner = slice(crop, n_tokens - crop)
    motif = torch.from_numpy(dataset.motif_activity).to(study.device)
    streams: list[dict[int, list[torch.Tensor]]] = [{} for _ in motif]
    predicted: list[list[torch.Tensor]] = [[] for _ in motif]
    for part in batches(study, len(windows)):
        sequence = torch.from_numpy(dataset.sequence(windows[part])).to(study.device)
        features = model.encode_sequence(sequence)
        for b in range(len(motif)):
            atac = dataset.atac(windows[part], b)
            if track == "hidden":
                atac = hide(atac, np.ones((len(atac), n_tokens), dtype=bool))
            atac = torch.from_numpy(np.asarray(atac)).float().to(study.device)
            x = model.encode_context(features, atac, motif[b].expand(len(atac), -1))
            done = 0
            for layer in sorted(study.blocks):
                x = model.run_blocks(x, done, layer + 1)
                done = layer + 1
                streams[b].setdefault(layer, []).append(x)
            predicted[b].append(model.head(model.run_blocks(x, done)).log1p())
    activity = pd.read_csv(study.truth / "activity.tsv", sep="\t", index_col=0)
    table = factor_sites(study, windows)
    tokens = {}
    for factor in read_factors(study)["name"]:
        sites = table[factor].to_numpy().reshape(-1, n_tokens)
        far = ~_dilate(sites, _NEAR_TOKENS)
        of_factor = []
        for b, name in enumerate(study.design["biosample"]):
            if activity.loc[factor, name] < _ACTIVE:
                continue
            peak = dataset.in_peak(b)[windows]
            at, away = ((mask & peak)[:, inner] for mask in (sites, far))
            base = torch.cat(predicted[b]).cpu().numpy()
            weights = np.stack([at.astype(np.float32), _matched(base, at, away)])
            if weights[1].any():
                found = torch.from_numpy(weights).to(study.device)
                of_factor.append(_Tokens(b, found))
        if sum(float(t.weights[0].sum()) for t in of_factor) >= _FEWEST:
            tokens[factor] = of_factor
    joined = [{layer: torch.cat(x) for layer, x in of.items()} for of in streams]
    return _Split(windows, joined, [torch.cat(y) for y in predicted], tokens)


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


def _by_contrast(
    study: Study, known: dict[int, Dictionary]
) -> dict[tuple[int, str], np.ndarray]:
    """Name significant features by the sites at which they differ most."""
    chosen = {}
    for layer, of_block in tqdm(known.items(), desc="features by contrast"):
        named = match_features(
            study, layer, of_block.features.significant, split="tune"
        )
        for factor, rows in named[named["factor"] != ""].groupby("factor"):
            chosen[layer, factor] = rows["feature"].to_numpy()
    return chosen


def _estimate(
    study: Study, known: dict[int, Dictionary], split: _Split, track: str
) -> dict[tuple[int, str], np.ndarray]:
    """Estimate what zeroing each feature does, per block and factor.

    Returns
    -------
    dict
        Mean change at sites and elsewhere, to first order, (2, d_sae).
    """
    found = {}
    progress = tqdm(split.tokens.items(), desc=f"factors, track {track}")
    for factor, of_factor in progress:
        totals: dict[int, np.ndarray] = {}
        counts = 0.0
        for tokens in of_factor:
            counts = counts + tokens.weights.sum(dim=(1, 2)).cpu().numpy()
            for layer, removed in _attribute(study, known, split, tokens):
                totals[layer] = totals.get(layer, 0.0) + removed
        for layer, total in totals.items():
            found[layer, factor] = total / counts[:, None]
    return found


def _best_block(
    sets: dict[tuple[int, str], np.ndarray],
    removed: dict[tuple[int, str], np.ndarray],
) -> dict[str, tuple[int, np.ndarray, dict[str, float]]]:
    """Choose the block of every factor: specific enough first, then largest effect.

    Returns
    -------
    dict
        Per factor the block, its features and the estimated effect.
    """
    best: dict[str, tuple] = {}
    for (layer, factor), features in sets.items():
        if not len(features) or (layer, factor) not in removed:
            continue
        at_sites, elsewhere = removed[layer, factor][:, features].sum(axis=1)
        ratio = abs(at_sites) / max(abs(elsewhere), 1e-12)
        merit = (at_sites < 0 and ratio >= WANTED, -at_sites)
        if factor not in best or merit > best[factor][0]:
            estimate = {"tune_at_sites": at_sites, "tune_specificity": ratio}
            best[factor] = merit, (layer, features, estimate)
    return {factor: choice for factor, (_, choice) in best.items()}


def _attribute(
    study: Study, known: dict[int, Dictionary], split: _Split, tokens: _Tokens
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield per block what zeroing each feature does, to first order, (2, d_sae).

    One backward pass per kind of token serves all blocks.
    """
    model, first = study.model, min(known)
    x = split.streams[tokens.biosample][first].clone().requires_grad_()
    streams, done = {first: x}, first + 1
    for layer in sorted(known)[1:]:
        x = model.run_blocks(x, done, layer + 1)
        streams[layer], done = x, layer + 1
    y = model.head(model.run_blocks(x, done)).log1p()
    slopes = [
        torch.autograd.grad(
            (weights * y).sum(), list(streams.values()), retain_graph=True
        )
        for weights in tokens.weights
    ]
    with torch.no_grad():
        for layer, *of_layer in zip(streams, *slopes, strict=True):
            sae = known[layer].sae
            acts = sae.encode(streams[layer].detach().flatten(0, 1))
            written = [g.flatten(0, 1) @ sae.decoder_directions.T for g in of_layer]
            removed = [-(acts * w).sum(dim=0) for w in written]
            yield layer, torch.stack(removed).cpu().numpy()


def _specific(at_sites: np.ndarray, elsewhere: np.ndarray) -> np.ndarray:
    """Collect features while their joint effect stays at the sites.

    Parameters
    ----------
    at_sites, elsewhere : numpy.ndarray, shape (d_sae,)
        Mean change by zeroing each feature.
    """
    order = np.argsort(at_sites + WANTED * np.abs(elsewhere), kind="stable")[:_MOST]
    kept, sums = [], np.zeros(2)
    for j in order:
        added = sums + (at_sites[j], elsewhere[j])
        if at_sites[j] < -_SMALLEST and -added[0] >= WANTED * abs(added[1]):
            kept.append(int(j))
            sums = added
    return np.array(kept, dtype=int)


@torch.no_grad()
def _measure(
    study: Study,
    of_block: Dictionary,
    factor: str,
    features: np.ndarray,
    split: _Split,
) -> dict[str, float]:
    """Zero features in every biosample where the factor is at work."""
    model, layer = study.model, of_block.layer
    changes, weights = [], []
    for tokens in split.tokens[factor]:
        x = split.streams[tokens.biosample][layer]
        (delta,) = ablation_deltas(x, of_block.sae, [features], value="zero")
        edited = model.head(model.run_blocks(x + delta, start=layer + 1)).log1p()
        change = tokens.weights * (edited - split.predicted[tokens.biosample])
        changes.append(change.sum(dim=2).cpu().numpy())
        weights.append(tokens.weights.sum(dim=2).cpu().numpy())
    n = np.concatenate(weights, axis=1).astype(float)  # (2, n_windows * n_biosamples)
    drawn = block_bootstrap(
        np.concatenate(changes, axis=1).astype(float),
        np.tile(blocks_of(study, split.windows), len(changes)),
        denominators=n,
        random_state=study.seed,
    )
    at_sites, elsewhere = drawn.estimate
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.abs(drawn.draws[0] / drawn.draws[1])
        specificity = np.abs(at_sites / elsewhere)
    low, high = np.nanquantile(ratios, [0.025, 0.975])
    return {
        "n_features": len(features),
        "n_sites": int(n[0].sum()),
        "at_sites": at_sites,
        "at_sites_low": drawn.low[0],
        "at_sites_high": drawn.high[0],
        "elsewhere": elsewhere,
        "elsewhere_low": drawn.low[1],
        "elsewhere_high": drawn.high[1],
        "specificity": specificity,
        "specificity_low": low,
        "specificity_high": high,
    }


def _dilate(mask: np.ndarray, reach: int) -> np.ndarray:
    """Extend True along the tokens, the second axis, by some tokens both ways."""
    wide = mask.copy()
    for step in range(1, reach + 1):
        wide[:, step:] |= mask[:, :-step]
        wide[:, :-step] |= mask[:, step:]
    return wide
