"""Zero the features of a planted factor: the prediction should fall at its sites.

The features of a factor are chosen on ``tune`` windows, the effect is measured on
``test``. A site is a token in a peak with the factor's motif, in a biosample where the
factor is at work; it is compared with tokens in peaks away from every such site, in the
same windows, weighted so that the unedited predictions are distributed alike.
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

N_WINDOWS = {"tune": 64, "test": 96}
TRACKS = ("visible", "hidden")
WANTED = 5.0  # times more at sites than elsewhere
_MARGIN = 2 * WANTED  # asked of features on tune windows, as estimates shrink
_SMALLEST = 0.002  # change at sites, log1p, for a feature to count
_MOST = 40  # features considered per factor
_ACTIVE = 0.5  # activity from which a planted factor is at work
_NEAR_TOKENS = 2  # tokens this near to a site of the factor are not elsewhere
_FEWEST = 10  # sites for an effect to be given
_BINS = 10  # of the unedited prediction
_CODE = ("_specificity", "interventions", "blockstats", "truth")


class _Tokens(NamedTuple):
    """Tokens of a factor in a biosample; windows without a site are left out.

    Attributes
    ----------
    biosample : int
    rows : numpy.ndarray of int
        Positions among the windows.
    weights : torch.Tensor, shape (2, n_rows, n_outputs)
        Of sites and of matched tokens elsewhere.
    """

    biosample: int
    rows: np.ndarray
    weights: torch.Tensor


class _Split(NamedTuple):
    """Streams of a split, with the tokens to look at.

    Attributes
    ----------
    windows : numpy.ndarray of int
    streams : list of dict of int to torch.Tensor
        Per biosample and block, (n_windows, n_tokens, d).
    tokens : dict of str to list of _Tokens
        Per factor with enough sites.
    """

    windows: np.ndarray
    streams: list[dict[int, torch.Tensor]]
    tokens: dict[str, list[_Tokens]]


def factor_specificity(study: Study) -> pd.DataFrame:
    """Zero the features of each planted factor; look at its sites and elsewhere.

    Features are chosen in two ways. By ``contrast``: significant features whose
    strongest differences between the contexts lie at the factor's sites
    (`helpers.truth.match_features`). By ``output``: features whose removal, to first
    order, lowers the prediction at the sites at least ten times more than elsewhere.
    Each is done with the ``visible`` track, of which the model copies most, and with
    the track ``hidden``, where it has to read the sequence.

    Parameters
    ----------
    study : Study
        A run on simulated data; `helpers.causal.register` must have been called.

    Returns
    -------
    pandas.DataFrame
        One row per ``track``, ``selection``, ``layer`` and ``factor`` with a feature of
        its own: ``n_features``; ``n_sites``, tokens over all active biosamples;
        ``at_sites``, mean change of the log1p prediction there; ``elsewhere``, the same
        at matched tokens; ``specificity``, the ratio of their sizes; each with a 95 %
        block-bootstrap interval; ``tune_at_sites`` and ``tune_specificity``; and
        ``chosen``, whether this is the factor's block by the ``tune`` windows.

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
            splits = {
                name: _read(study, of_split, track)
                for name, of_split in windows.items()
            }
            selections = {
                "contrast": by_contrast,
                "output": _by_output(study, known, splits["tune"], track),
            }
            for selection, chosen in selections.items():
                for (layer, factor), features in chosen.items():
                    row = _measure(study, known[layer], factor, features, splits)
                    if row is not None:
                        head = {"track": track, "selection": selection}
                        rows.append(head | {"layer": layer, "factor": factor} | row)
        return _with_choice(pd.DataFrame(rows))

    recipe = input_recipe(study) | {
        "windows": N_WINDOWS,
        "code": code_digest(*_CODE),
    }
    return study.run.table("factor_specificity.parquet", recipe, build)


def _with_choice(table: pd.DataFrame) -> pd.DataFrame:
    """Mark the block of every factor that is most specific enough and strongest."""
    lowers = table["tune_at_sites"] < 0
    good = lowers & (table["tune_specificity"] >= WANTED)
    merit = -table["tune_at_sites"] + 100.0 * good
    best = merit.groupby([table["track"], table["selection"], table["factor"]])
    table["chosen"] = table.index.isin(best.idxmax())
    return table


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
            rows = np.flatnonzero((sites & peak)[:, inner].any(axis=1))
            at, away = ((mask & peak)[rows][:, inner] for mask in (sites, far))
            base = torch.cat(predicted[b])[rows].cpu().numpy()
            weights = np.stack([at.astype(np.float32), _matched(base, at, away)])
            if weights[1].any():
                found = torch.from_numpy(weights).to(study.device)
                of_factor.append(_Tokens(b, rows, found))
        if sum(float(t.weights[0].sum()) for t in of_factor) >= _FEWEST:
            tokens[factor] = of_factor
    joined = [{layer: torch.cat(x) for layer, x in of.items()} for of in streams]
    return _Split(windows, joined, tokens)


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


def _by_output(
    study: Study, known: dict[int, Dictionary], split: _Split, track: str
) -> dict[tuple[int, str], np.ndarray]:
    """Find the features of every block and factor whose removal is specific."""
    chosen = {}
    progress = tqdm(split.tokens.items(), desc=f"features by output, track {track}")
    for factor, of_factor in progress:
        totals = {layer: 0.0 for layer in known}
        counts = 0.0
        for tokens in of_factor:
            counts = counts + tokens.weights.sum(dim=(1, 2)).cpu().numpy()
            for layer, removed in _attribute(study, known, split, tokens):
                totals[layer] = totals[layer] + removed
        for layer, total in totals.items():
            features = _specific(*(total / counts[:, None]))
            if len(features):
                chosen[layer, factor] = features
    return chosen


def _attribute(
    study: Study, known: dict[int, Dictionary], split: _Split, tokens: _Tokens
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield per block what zeroing each feature does, to first order, (2, d_sae).

    One backward pass per kind of token serves all blocks.
    """
    model, first = study.model, min(known)
    x = split.streams[tokens.biosample][first][tokens.rows].clone().requires_grad_()
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
    order = np.argsort(at_sites + _MARGIN * np.abs(elsewhere), kind="stable")[:_MOST]
    kept, sums = [], np.zeros(2)
    for j in order:
        added = sums + (at_sites[j], elsewhere[j])
        if at_sites[j] < -_SMALLEST and -added[0] >= _MARGIN * abs(added[1]):
            kept.append(int(j))
            sums = added
    return np.array(kept, dtype=int)


def _measure(
    study: Study,
    of_block: Dictionary,
    factor: str,
    features: np.ndarray,
    splits: dict[str, _Split],
) -> dict | None:
    """Measure a factor's features on both splits, if it has sites there."""
    if not all(factor in split.tokens for split in splits.values()):
        return None
    tune, _ = _zeroed(study, of_block, factor, features, splits["tune"])
    changes, blocks = _zeroed(study, of_block, factor, features, splits["test"])
    # (2, n_rows) each: sums of changes, and of weights
    if not changes[0].any():
        return None
    drawn = block_bootstrap(
        changes[0], blocks, denominators=changes[1], random_state=study.seed
    )
    at_sites, elsewhere = drawn.estimate
    on_tune = tune[0].sum(axis=1) / tune[1].sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.abs(at_sites / elsewhere)
        low, high = np.nanquantile(
            np.abs(drawn.draws[0] / drawn.draws[1]), [0.025, 0.975]
        )
        tune_ratio = np.abs(on_tune[0] / on_tune[1])
    return {
        "n_features": len(features),
        "n_sites": int(changes[1][0].sum()),
        "at_sites": at_sites,
        "at_sites_low": drawn.low[0],
        "at_sites_high": drawn.high[0],
        "elsewhere": elsewhere,
        "elsewhere_low": drawn.low[1],
        "elsewhere_high": drawn.high[1],
        "specificity": ratio,
        "specificity_low": low,
        "specificity_high": high,
        "tune_at_sites": on_tune[0],
        "tune_specificity": tune_ratio,
    }


@torch.no_grad()
def _zeroed(
    study: Study,
    of_block: Dictionary,
    factor: str,
    features: np.ndarray,
    split: _Split,
) -> tuple[np.ndarray, np.ndarray]:
    """Zero features; return sums of change and of weight, and the genomic blocks.

    Returns
    -------
    sums : numpy.ndarray, shape (2, 2, n_rows)
        Changes and weights of sites and tokens elsewhere, per biosample and window.
    blocks : numpy.ndarray, shape (n_rows,)
    """
    model, layer = study.model, of_block.layer
    sums, blocks = [], []
    for tokens in split.tokens[factor]:
        x = split.streams[tokens.biosample][layer][tokens.rows]
        (delta,) = ablation_deltas(x, of_block.sae, [features], value="zero")
        y, edited = (
            model.head(model.run_blocks(s, start=layer + 1)).log1p()
            for s in (x, x + delta)
        )
        changes = (tokens.weights * (edited - y)).sum(dim=2)
        sums.append(torch.stack([changes, tokens.weights.sum(dim=2)]).cpu().numpy())
        blocks.append(blocks_of(study, split.windows[tokens.rows]))
    return np.concatenate(sums, axis=2).astype(float), np.concatenate(blocks)


def _dilate(mask: np.ndarray, reach: int) -> np.ndarray:
    """Extend True along the tokens, the second axis, by some tokens both ways."""
    wide = mask.copy()
    for step in range(1, reach + 1):
        wide[:, step:] |= mask[:, :-step]
        wide[:, :-step] |= mask[:, step:]
    return wide
