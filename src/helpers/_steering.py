"""How much of the gap between the contexts a steered prediction closes, by method.

The base is the prediction from one context's input, the target that from the other
context's, on the same windows, on the log1p scale, restarted from stored streams.
Arrays are (n_windows, ..., n_outputs). Directions are made on ``select`` windows, doses
and blocks chosen on ``tune``, results given on ``test``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from itertools import chain, product
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F
from tqdm.std import tqdm

from helpers._selection import (
    ContextFeatures,
    batches,
    blocks_of,
    context_features,
    held_out_features,
    matched_sets,
    read_streams,
    spread_windows,
    token_classes,
)
from helpers.blockstats import block_bootstrap
from helpers.interventions import (
    ablation_deltas,
    effects,
    steering_direction,
)
from helpers.outcomes import gap_closed, gap_terms, output_rescale
from helpers.probe import restart
from helpers.runs import code_digest
from helpers.sae import BatchTopKSAE
from helpers.stages import Study, score_context, summaries, train_saes

__all__ = ["DOSES", "METHODS", "POOLED", "best_dose", "steering", "steering_sweep"]

METHODS = {
    "nothing": "no intervention (0 by definition)",
    "output rescale": "line through the two predictions, no model inside",
    "SAE": "sum over selected features of mean difference x decoder direction",
    "SAE, all significant": "the same with every significant feature",
    "DiffMean": "difference of the mean streams",
    "SAE, lineage held out": "features, direction and dose from the other lineages",
    "DiffMean, lineage held out": "direction and dose from the other lineages",
    "random features": "matched feature sets at the SAE's block and dose",
    "random features, tuned": "the same, as long as the SAE's, at their best dose",
    "random direction": "isotropic, as long as the SAE's, at its block and dose",
    "clamp": "selected features take their activations of the target run",
    "clamp, significant": "all significant features do",
    "clamp, not significant": "all others do",
    "clamp, all": "all features do: what the dictionary holds of the gap",
    "full patch": "the whole stream does (1 by construction)",
}
TUNED = ("SAE", "SAE, all significant", "DiffMean")
RANDOM_TUNED = "random features, tuned"
HELD_OUT = {f"{method}, lineage held out": method for method in ("SAE", "DiffMean")}
POOLED = "pooled"
DIRECTIONS = {"vitro-to-vivo": (0, 1), "vivo-to-vitro": (1, 0)}  # base, target
TOKENS = ("all", "vivo-up", "vitro-up")
DOSES = (-1.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)  # -1: backwards, a control
N_TUNE, N_TEST, N_FIT = 24, 48, 64  # windows to tune, report and fit the rescaling on
N_SETS, N_OTHER, N_TUNED = 50, 20, 10  # random sets, other random axes, axes to tune
N_DRAWS = 2000
_CODE = ("_steering", "_selection", "interventions", "outcomes", "blockstats", "cds")

# Maps the streams of base and target to changes of the base's.
Edits = Callable[[torch.Tensor, torch.Tensor], Iterable[torch.Tensor]]


def steering_sweep(study: Study) -> pd.DataFrame:
    """Steer by every dose at every block on ``tune`` windows.

    Parameters
    ----------
    study : Study
        The run.

    Returns
    -------
    pandas.DataFrame
        One row per ``direction``, ``lineage``, ``method`` (SAE, SAE with all
        significant features, DiffMean; random features at the SAE's best block),
        ``layer`` and ``alpha``: ``gc2``, ``progress``, ``leakage``, and ``remaining``
        and ``gap``, the sums that make gc2 = 1 - remaining / gap and that add up over
        lineages.

    Raises
    ------
    ValueError
        If no feature is significant in any block.
    """

    def build() -> pd.DataFrame:
        axes = _Axes(study)
        rows = []
        conditions = list(product(DIRECTIONS, study.lineages, axes.chosen))
        for direction, lineage, layer in tqdm(conditions, desc="doses"):
            for method in TUNED:
                axis = axes.of(method, layer, lineage, direction)[None]
                rows += _all_doses(study, method, direction, lineage, layer, axis)
        table = pd.DataFrame(rows)
        rows = []
        for direction, lineage in product(DIRECTIONS, study.lineages):
            layer, _ = best_dose(table, "SAE", direction)
            random = axes.random(layer, lineage, direction)[RANDOM_TUNED][:N_TUNED]
            rows += _all_doses(study, RANDOM_TUNED, direction, lineage, layer, random)
        return pd.concat([table, pd.DataFrame(rows)], ignore_index=True)

    return study.run.table("steering_sweep.parquet", _recipe(study), build)


def _all_doses(
    study: Study,
    method: str,
    direction: str,
    lineage: str,
    layer: int,
    vectors: torch.Tensor,
) -> Iterator[dict]:
    """Score every dose of some directions (n_draws, d), averaged over them."""
    windows = spread_windows(study, "tune", N_TUNE)
    edits = {(method, alpha): _add(alpha * vectors) for alpha in DOSES}
    base, target, steered = _steer(study, layer, lineage, direction, windows, edits)
    for (_, alpha), reached in steered.items():
        outcome = np.broadcast_arrays(base[:, None], target[:, None], reached)
        closed = gap_closed(*outcome)
        remaining, gap = gap_terms(*outcome)
        yield {
            "direction": direction,
            "lineage": lineage,
            "method": method,
            "layer": layer,
            "alpha": alpha,
            "gc2": closed.gc2,
            "progress": closed.progress,
            "leakage": closed.leakage,
            "remaining": remaining.sum(),
            "gap": gap.sum(),
        }


def best_dose(
    sweep: pd.DataFrame, method: str, direction: str, *, without: str = ""
) -> tuple[int, float]:
    """Return the block and positive dose that close most of the gap of all lineages.

    Parameters
    ----------
    sweep : pandas.DataFrame
        Table of `steering_sweep`.
    method, direction : str
        Which rows.
    without : str
        Lineage to leave out of the choice.
    """
    rows = sweep[
        (sweep["method"] == method)
        & (sweep["direction"] == direction)
        & (sweep["lineage"] != without)
        & (sweep["alpha"] > 0)
    ]
    sums = rows.groupby(["layer", "alpha"])[["remaining", "gap"]].sum()
    layer, alpha = (sums["remaining"] / sums["gap"]).idxmin()
    return int(layer), float(alpha)


def steering(study: Study) -> pd.DataFrame:
    """Compare all `METHODS` on ``test`` windows, per lineage and pooled.

    Parameters
    ----------
    study : Study
        The run.

    Returns
    -------
    pandas.DataFrame
        One row per ``direction``, ``lineage`` (and ``pooled``), ``tokens`` (``all``,
        the endpoint, or a class) and ``method``: the ``layer`` and ``alpha`` it uses
        (missing where there is none, or lineages differ), ``n_draws`` random draws;
        ``gc2`` (model gap, log1p scale, mean over draws) with ``low``, ``high`` (95 %,
        2,000 draws of genomic blocks, the same for all methods), ``progress``,
        ``leakage``, ``gc_norm``, ``gc_corr`` with interval; ``collateral``, root mean
        square change at invariant over that at differential tokens; ``difference``, GC2
        of the SAE minus this method's, and ``ratio``, SAE over this method, each with
        an interval. The ratio is missing where the method's own interval does not lie
        above 0: it would mean nothing. ``p_random`` of random methods: (1 + draws at
        least as good as the SAE) / (draws + 1). Methods with a held-out lineage need
        two lineages.

    Raises
    ------
    ValueError
        If no feature is significant in any block.
    """
    sweep = steering_sweep(study)

    def build() -> pd.DataFrame:
        windows = spread_windows(study, "test", N_TEST)
        classes = token_classes(study, windows)
        blocks = blocks_of(study, windows)
        axes = _Axes(study)
        tables = []
        for direction in DIRECTIONS:
            results = {
                lineage: _apply_methods(axes, sweep, direction, lineage, windows)
                for lineage in tqdm(study.lineages, desc=direction)
            }
            results[POOLED] = _pool(list(results.values()))
            for lineage, of_methods in results.items():
                named = study.lineages if lineage == POOLED else [lineage]
                of_tokens = np.stack([classes[x] for x in named], axis=1)
                for tokens in TOKENS:
                    table = _score(of_methods, of_tokens, tokens, blocks, study.seed)
                    head = {"direction": direction, "lineage": lineage}
                    tables.append(table.assign(**head, tokens=tokens))
        joined = pd.concat(tables, ignore_index=True)
        front = ["direction", "lineage", "tokens", "method"]
        return joined[front + [c for c in joined if c not in front]]

    recipe = _recipe(study) | {"sweep": study.run.key("steering_sweep.parquet")}
    return study.run.table("steering.parquet", recipe, build)


def _recipe(study: Study) -> dict:
    score_context(study)  # makes the artefacts named here
    return {
        "activations": study.run.key("activations.zarr"),
        "saes": [study.run.key(f"sae/block{b}") for b in study.blocks],
        "cds": study.run.key("cds.parquet"),
        "methods": list(METHODS),
        "doses": DOSES,
        "windows": [N_TUNE, N_TEST, N_FIT],
        "draws": [N_SETS, N_OTHER, N_TUNED, N_DRAWS],
        "seed": study.seed,
        "code": code_digest(*_CODE),
    }


class _Means(NamedTuple):
    """Means of every biosample over ``select`` windows.

    Attributes
    ----------
    feature_acts : torch.Tensor, shape (n_biosamples, d_sae)
    stream : torch.Tensor, shape (n_biosamples, d)
    """

    feature_acts: torch.Tensor
    stream: torch.Tensor


class _Axes:
    """Directions from one context to the other, made on ``select`` windows.

    Attributes
    ----------
    chosen : dict of int to ContextFeatures
        Features per block.
    held_out : dict of str to dict
        The same by all lineages but one, per lineage left out.
    saes : dict of int to BatchTopKSAE
        Dictionary per block.
    """

    def __init__(self, study: Study) -> None:
        self.study, self.saes = study, train_saes(study)
        self.chosen = context_features(study)
        self._summaries = summaries(study)
        self._windows = study.dataset.windows_of("select")
        self._known: dict[int, _Means] = {}

    @cached_property
    def held_out(self) -> dict[str, dict[int, ContextFeatures]]:
        """Choose features without each lineage in turn."""
        return {x: held_out_features(self.study, x) for x in self.study.lineages}

    def of(self, method: str, layer: int, lineage: str, direction: str) -> torch.Tensor:
        """Return the direction of a `TUNED` method, shape (d,)."""
        return self._of(method, layer, lineage, direction, self.chosen[layer])

    def of_others(
        self, method: str, layer: int, lineage: str, direction: str
    ) -> torch.Tensor:
        """Return the mean direction of the other lineages, by their features."""
        features = self.held_out[lineage][layer]
        others = [x for x in self.study.lineages if x != lineage]
        axes = [self._of(method, layer, x, direction, features) for x in others]
        return torch.stack(axes).mean(dim=0)

    def _of(
        self,
        method: str,
        layer: int,
        lineage: str,
        direction: str,
        features: ContextFeatures,
    ) -> torch.Tensor:
        pair = _pair(self.study, lineage, direction)
        if method == "DiffMean":
            base, target = self._means(layer).stream[pair]
            return target - base
        every = method == "SAE, all significant"
        chosen = features.significant if every else features.selected
        return self._of_features(layer, pair, chosen)

    def _of_features(
        self, layer: int, pair: list[int], features: np.ndarray
    ) -> torch.Tensor:
        """Return the mean difference of some features, written to the stream."""
        base, target = self._means(layer).feature_acts[pair]
        return steering_direction(base, target, self.saes[layer], features)

    def random(
        self, layer: int, lineage: str, direction: str
    ) -> dict[str, torch.Tensor]:
        """Return the directions of the random methods, (n_draws, d) each."""
        seed = self.study.seed
        sets = matched_sets(self.chosen[layer], "any other", N_SETS, seed).sets
        pair = _pair(self.study, lineage, direction)
        of_sets = torch.stack([self._of_features(layer, pair, s) for s in sets])
        shape = (N_OTHER, of_sets.shape[1])
        normal = np.random.default_rng(seed).normal(size=shape)
        isotropic = torch.from_numpy(normal).to(of_sets)
        length = self.of("SAE", layer, lineage, direction).norm()
        return {
            "random features": of_sets,
            RANDOM_TUNED: F.normalize(of_sets[:N_OTHER], dim=1) * length,
            "random direction": F.normalize(isotropic, dim=1) * length,
        }

    def _means(self, layer: int) -> _Means:
        if layer not in self._known:
            study, windows = self.study, self._windows
            acts = self._summaries[layer].mean_acts[:, windows].mean(axis=1)
            streams = []
            for b in range(len(study.design)):
                total = sum(
                    read_streams(study, layer, b, windows[part]).sum(dim=(0, 1))
                    for part in batches(study, len(windows))
                )
                streams.append(total / (len(windows) * study.dataset.n_tokens))
            means = torch.from_numpy(acts).to(study.device), torch.stack(streams)
            self._known[layer] = _Means(*means)
        return self._known[layer]


class _Result(NamedTuple):
    """Outcomes of a method on the log1p scale, (n_windows, n_lineages, n_draws, n_out).

    Attributes
    ----------
    base, target, steered : numpy.ndarray
        Base and target have one draw.
    layer : int or None
        Block that was edited.
    alpha : float
        Dose; NaN where there is none.
    """

    base: np.ndarray
    target: np.ndarray
    steered: np.ndarray
    layer: int | None = None
    alpha: float = np.nan


def _add(vectors: Iterable[torch.Tensor]) -> Edits:
    return lambda x0, x1: vectors


def _pair(study: Study, lineage: str, direction: str) -> list[int]:
    """Return the positions of base and target."""
    return [study.pair(lineage)[i] for i in DIRECTIONS[direction]]


def _apply_methods(
    axes: _Axes,
    sweep: pd.DataFrame,
    direction: str,
    lineage: str,
    windows: np.ndarray,
) -> dict[str, _Result]:
    """Return what every method predicts for one lineage."""
    study, held_out = axes.study, axes.held_out[lineage]
    edits: dict[int, dict[tuple[str, float], Edits]] = {}

    def plan(method: str, layer: int, alpha: float, edit: Edits) -> None:
        edits.setdefault(layer, {})[method, alpha] = edit

    for method in TUNED:
        layer, alpha = best_dose(sweep, method, direction)
        axis = axes.of(method, layer, lineage, direction)
        plan(method, layer, alpha, _add([alpha * axis]))
    for method, like in HELD_OUT.items() if held_out else ():
        elsewhere = sweep[sweep["layer"].isin(held_out)]
        layer, alpha = best_dose(elsewhere, like, direction, without=lineage)
        axis = axes.of_others(like, layer, lineage, direction)
        plan(method, layer, alpha, _add([alpha * axis]))
    layer, alpha = best_dose(sweep, RANDOM_TUNED, direction)
    random = axes.random(layer, lineage, direction)
    plan(RANDOM_TUNED, layer, alpha, _add(alpha * random[RANDOM_TUNED]))
    layer, alpha = best_dose(sweep, "SAE", direction)
    random = axes.random(layer, lineage, direction)
    for method in ("random features", "random direction"):
        plan(method, layer, alpha, _add(alpha * random[method]))
    sae = axes.saes[layer]
    every, features = np.arange(len(sae.decoder_directions)), axes.chosen[layer]
    rest = np.setdiff1d(every, features.significant)
    plan("clamp", layer, np.nan, _clamp(sae, features.selected))
    plan("clamp, significant", layer, np.nan, _clamp(sae, features.significant))
    plan("clamp, not significant", layer, np.nan, _clamp(sae, rest))
    plan("clamp, all", layer, np.nan, _clamp(sae, every))
    plan("full patch", layer, np.nan, lambda x0, x1: [x1 - x0])

    results = _without_edit(study, lineage, direction, windows)
    for layer, of_layer in edits.items():
        base, target, steered = _steer(
            study, layer, lineage, direction, windows, of_layer
        )
        for (method, alpha), reached in steered.items():
            outcome = base[:, None, None], target[:, None, None], reached[:, None]
            results[method] = _Result(*outcome, layer, alpha)
    return {method: results[method] for method in METHODS if method in results}


def _clamp(sae: BatchTopKSAE, features: np.ndarray) -> Edits:
    return lambda x0, x1: ablation_deltas(x0, sae, [features], reference=x1)


# --- Predictions ----------------------------------------------------------------------


def _steer(
    study: Study,
    layer: int,
    lineage: str,
    direction: str,
    windows: np.ndarray,
    edits: Mapping[tuple[str, float], Edits],
) -> tuple[np.ndarray, np.ndarray, dict[tuple[str, float], np.ndarray]]:
    """Predict base, target and every edit of the base's stream, on the log1p scale.

    Returns
    -------
    base, target : numpy.ndarray, shape (n_windows, n_outputs)
        Predictions from the unedited streams of the two contexts.
    steered : dict
        Per key of `edits`, (n_windows, n_draws, n_outputs).
    """
    pair = _pair(study, lineage, direction)
    x0, x1 = (read_streams(study, layer, b, windows) for b in pair)
    parts = []
    for part in batches(study, len(windows)):
        of_edit = {key: list(edit(x0[part], x1[part])) for key, edit in edits.items()}
        found = effects(
            study.model,
            x0[part],
            layer,
            chain.from_iterable(of_edit.values()),
            outcome=torch.log1p,
            batch_size=part.stop - part.start,
        )
        edges = np.cumsum([len(deltas) for deltas in of_edit.values()])[:-1]
        steered = np.split(found.edited.cpu().numpy().swapaxes(0, 1), edges, axis=1)
        parts.append((found.baseline.cpu().numpy(), *steered))
    base, *steered = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return base, _predict(study, layer, x1), dict(zip(edits, steered, strict=True))


def _predict(study: Study, layer: int, x: torch.Tensor) -> np.ndarray:
    """Return the log1p prediction from streams, (n_windows, n_outputs)."""
    parts = [restart(study.model, x[p], layer).log1p() for p in batches(study, len(x))]
    return torch.cat(parts).cpu().numpy()


def _without_edit(
    study: Study, lineage: str, direction: str, windows: np.ndarray
) -> dict[str, _Result]:
    """Return what needs no stream: nothing, and a line through the predictions."""
    last = max(study.blocks)

    def predictions(of: np.ndarray) -> list[np.ndarray]:
        pair = _pair(study, lineage, direction)
        return [
            _predict(study, last, read_streams(study, last, b, of))[:, None, None]
            for b in pair
        ]

    fit = [np.expm1(y) for y in predictions(spread_windows(study, "select", N_FIT))]
    base, target = predictions(windows)
    rescaled = np.log1p(output_rescale(*fit)(np.expm1(base)))
    return {
        "nothing": _Result(base, target, base),
        "output rescale": _Result(base, target, rescaled),
    }


# --- Scores ---------------------------------------------------------------------------


def _pool(results: list[dict[str, _Result]]) -> dict[str, _Result]:
    """Join the lineages of methods that all of them have."""
    pooled = {}
    for method in results[0]:
        if not all(method in of_lineage for of_lineage in results):
            continue
        every = [of_lineage[method] for of_lineage in results]
        layers, doses = {r.layer for r in every}, {r.alpha for r in every}
        pooled[method] = _Result(
            *(np.concatenate([r[i] for r in every], axis=1) for i in range(3)),
            layers.pop() if len(layers) == 1 else None,
            doses.pop() if len(doses) == 1 else np.nan,
        )
    return pooled


def _score(
    results: dict[str, _Result],
    classes: np.ndarray,
    tokens: str,
    blocks: np.ndarray,
    seed: int,
) -> pd.DataFrame:
    """Return one row per method; classes are (n_windows, n_lineages, n_outputs)."""
    here = np.ones(classes.shape) if tokens == "all" else classes == tokens
    if not here.any():
        return pd.DataFrame()
    rows, terms, moments, of_draws = [], [], [], {}
    for method, result in results.items():
        outcome = np.broadcast_arrays(*result[:3], here[:, :, None])
        base, target, steered, _ = outcome
        closed = gap_closed(*outcome)
        terms.append(gap_terms(*outcome))
        by_draw = gap_terms(*(x.swapaxes(0, 2) for x in outcome))
        of_draws[method] = 1 - by_draw[0] / by_draw[1]
        moments.append(_moments(*outcome))
        rows.append(
            {
                "method": method,
                "layer": result.layer,
                "alpha": result.alpha,
                "n_draws": base.shape[2],
                "n_windows": len(base),
                **closed._asdict(),
                "collateral": _collateral(steered - base, classes),
            }
        )
    table = pd.DataFrame(rows).astype({"layer": "Int64"})
    table["p_random"] = [
        (1 + (d >= of_draws["SAE"]).sum()) / (len(d) + 1) if len(d) > 1 else np.nan
        for d in of_draws.values()
    ]
    remaining, gap = np.stack(terms, axis=1)  # (n_methods, n_windows)
    boot = block_bootstrap(
        remaining, blocks, denominators=gap, n_draws=N_DRAWS, random_state=seed
    )
    table["gc_corr_low"], table["gc_corr_high"] = _correlation_intervals(
        np.stack(moments), blocks, seed
    )
    return _intervals(table, 1 - boot.draws)


def _intervals(table: pd.DataFrame, drawn: np.ndarray) -> pd.DataFrame:
    """Add intervals and comparisons with the SAE from draws (n_methods, N_DRAWS)."""
    sae = int(np.flatnonzero(table["method"] == "SAE")[0])
    table["low"], table["high"] = _percentiles(drawn)
    table["difference"] = table["gc2"][sae] - table["gc2"]
    low, high = _percentiles(drawn[sae] - drawn)
    table["difference_low"], table["difference_high"] = low, high
    table[["ratio", "ratio_low", "ratio_high"]] = np.nan
    for row in np.flatnonzero(table["low"] > 0):
        table.loc[row, "ratio"] = table["gc2"][sae] / table["gc2"][row]
        with np.errstate(divide="ignore", invalid="ignore"):
            bounds = _percentiles(drawn[sae] / drawn[row])
        table.loc[row, ["ratio_low", "ratio_high"]] = bounds
    return table


def _moments(
    base: np.ndarray, target: np.ndarray, steered: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Return per window the sums behind the correlations, shape (9, n_windows)."""
    b, t, s = (np.asarray(x, dtype=np.float64) for x in (base, target, steered))
    products = [np.ones_like(b), b, t, s, b * b, t * t, s * s, b * t, s * t]
    axes = tuple(range(1, b.ndim))
    return np.stack([(weights * x).sum(axis=axes) for x in products])


def _correlation_intervals(
    moments: np.ndarray, blocks: np.ndarray, seed: int
) -> np.ndarray:
    """Return the 95 % interval of gc_corr of every method, shape (2, n_methods)."""
    boot = block_bootstrap(
        moments,
        blocks,
        denominators=moments[:, :1],
        n_draws=N_DRAWS,
        random_state=seed,
    )
    _, b, t, s, bb, tt, ss, bt, st = boot.draws.swapaxes(0, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        before = (bt - b * t) / np.sqrt((bb - b * b) * (tt - t * t))
        after = (st - s * t) / np.sqrt((ss - s * s) * (tt - t * t))
        gained = (after - before) / (1 - before)
    return _percentiles(gained)


def _percentiles(draws: np.ndarray) -> np.ndarray:
    """Return the 2.5 and 97.5 percentiles of the defined draws, along the last axis.

    A draw of blocks without a token of the class, or without variance, defines nothing.
    """
    defined = np.where(np.isfinite(draws), draws, np.nan)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="All-NaN slice")
        return np.nanquantile(defined, [0.025, 0.975], axis=-1)


def _collateral(moved: np.ndarray, classes: np.ndarray) -> float:
    """Return the RMS change at invariant over that at differential tokens."""
    square = (moved**2).mean(axis=2)  # over draws
    invariant = square[classes == "invariant"]
    differential = square[np.isin(classes, ["vivo-up", "vitro-up"])]
    if not len(invariant) or not differential.any():
        return np.nan
    return float(np.sqrt(invariant.mean() / differential.mean()))
