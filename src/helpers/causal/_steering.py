"""All ways to close the gap between the contexts, on ``test`` windows, in one table.

Moves come from ``select`` windows, blocks and doses from ``tune``; the registration
says which before a test window is read. Methods without a stream (lines through the
predictions, swapped inputs, what the simulator planted) stand in the same table.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import torch

from helpers.causal._gap_scores import N_DRAWS, Result, pool, score
from helpers.causal._moves import (
    DIRECTIONS,
    LINEAR,
    N_OTHER,
    N_SETS,
    POOLED,
    Moves,
    pair_of,
)
from helpers.causal._registration import registered_windows
from helpers.causal._selection import dictionaries, input_recipe
from helpers.causal._side_by_side import side_by_side
from helpers.causal._sweep import (
    EVERY_BLOCK,
    RANDOM_TUNED,
    Edits,
    best_dose,
    every_block,
    moved,
    predict,
    steer_all,
    steer_blocks,
    steering_sweep,
)
from helpers.causal._windows import batches, blocks_of, read_streams, spread_windows
from helpers.interventions import ablation_deltas
from helpers.outcomes import output_rescale
from helpers.runs import code_digest
from helpers.sae import BatchTopKSAE
from helpers.stages import Study
from helpers.token_classes import CLASSES, token_classes

__all__ = ["METHODS", "ORACLES", "coherence", "steering"]

METHODS = {
    "nothing": "no intervention (0 by definition)",
    "output rescale": "line through the two predictions, no model inside",
    "class shift": "mean change of the prediction per class of token; knows the class",
    "motif swap": "motif activity of the other context, own track",
    "track swap": "track of the other context, own motif activity",
    "DiffMean": "difference of the mean streams",
    "first PC": "first principal axis of the paired differences of tokens",
    "LDA": "direction that separates the contexts best, as long as DiffMean",
    "affine map": "mean and covariance of the stream moved to the other context's",
    "SAE": "sum over selected features of mean difference x decoder direction",
    "SAE, all significant": "the same with every significant feature",
    "SAE, output-filtered": "those of them that move the output the right way on tune",
    "SAE, active tokens": "selected features scaled where they fire",
    "SAE, every block": "the SAE's directions, a share of the dose after every block",
    "DiffMean, every block": "the same with differences of means",
    "SAE, lineage held out": "features, direction and dose from the other lineages",
    "DiffMean, lineage held out": "direction and dose from the other lineages",
    "SAE, reversed": "minus its direction, same dose",
    "random features": "matched feature sets at the SAE's block and dose",
    RANDOM_TUNED: "the same, as long as the SAE's, at their best dose",
    "random direction": "isotropic, as long as the SAE's, at its block and dose",
    "DiffMean, labels shuffled": "contexts exchanged at random per window",
    "planted signal": "linear fit on the simulator's expected signals: the ceiling of "
    "what can be known",
    "clamp": "selected features take their activations of the target run",
    "clamp, significant": "all significant features do",
    "clamp, not significant": "all others do",
    "clamp, all": "all features do: what the dictionary holds of the gap",
    "reconstruction": "the dictionary's copy of the base: its damage alone",
    "reconstruction of target": "the dictionary's copy of the target: 1 - damage",
    "full patch": "the whole stream of the target (1 by construction)",
}
ORACLES = ("class", "motif", "track", "planted", "clamp", "reconstruction", "full")
HELD_OUT = {f"{method}, lineage held out": method for method in ("SAE", "DiffMean")}
TOKENS = ("all", "vivo-up", "vitro-up")
N_TEST, N_FIT = 48, 64  # windows to report on, and to fit output lines on
_CODE = ("causal._steering", "interventions", "probe", "token_classes", "masked")
_CODE += ("outcomes", "blockstats", "cds")


def steering(study: Study) -> pd.DataFrame:
    """Compare all `METHODS` on ``test`` windows, per lineage and pooled.

    Parameters
    ----------
    study : Study
        The run; `helpers.causal.register` must have been called.

    Returns
    -------
    pandas.DataFrame
        One row per ``direction``, ``lineage`` (and ``pooled``), ``tokens`` (``all``,
        the endpoint, or a class) and ``method``: the ``layer`` and ``alpha`` it uses
        (missing where there is none, or lineages differ), ``n_draws`` random draws;
        ``gc2`` (model gap, log1p scale, mean over draws) with ``low``, ``high`` (95 %,
        2,000 draws of genomic blocks, the same for all methods), ``progress``,
        ``leakage``, ``gc_norm``; ``gc_corr``, ``gc2_data`` (gap to the measured track
        of the target) and ``gc_loss`` (Poisson loss against it; 1 is the target's
        prediction), with intervals; ``collateral``, root mean square change at
        invariant over that at differential tokens; ``difference``, GC2 of the SAE minus
        this method's, and ``ratio``, SAE over this method, each with an interval. The
        ratio is missing where the method's own interval does not lie above 0: it would
        mean nothing. ``p_random`` of random methods: (1 + draws at least as good as the
        SAE) / (draws + 1). Methods with a held-out lineage need two lineages, planted
        ones simulated data.

    Raises
    ------
    FileNotFoundError, ValueError
        If the analysis is not registered, or nothing is significant in any block.
    """
    return _tables(study)[0]


def coherence(study: Study) -> pd.DataFrame:
    """Return `Moves.coherence` of the study's dictionaries (``select`` windows)."""
    return _tables(study)[1]


def _tables(study: Study) -> list[pd.DataFrame]:
    windows = registered_windows(study, N_TEST)
    sweep = steering_sweep(study)
    recipe = input_recipe(study) | {
        "sweep": study.run.key("steering_sweep.parquet"),
        "methods": list(METHODS),
        "sizes": [N_TEST, N_FIT, N_SETS, N_OTHER, N_DRAWS],
        "code": code_digest(*_CODE),
    }
    names = ["steering.parquet", "steering_coherence.parquet"]
    return study.run.tables(names, recipe, lambda: _measure(study, sweep, windows))


def _measure(
    study: Study, sweep: pd.DataFrame, windows: np.ndarray
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the tables of `steering` and `coherence`."""
    classes = token_classes(study, windows)
    blocks = blocks_of(study, windows)
    moves = Moves(study, dictionaries(study)).prepared()
    swapped = _swapped_inputs(study, windows)

    def apply(condition: tuple[str, str]) -> dict[str, Result]:
        return _apply_methods(moves, sweep, *condition, windows, swapped)

    conditions = list(product(DIRECTIONS, study.lineages))
    applied = side_by_side(apply, conditions, study, desc="methods")
    results = dict(zip(conditions, applied, strict=True))
    for direction in DIRECTIONS:
        of_lineages = [results[direction, x] for x in study.lineages]
        results[direction, POOLED] = pool(of_lineages)

    def scored(condition: tuple[tuple[str, str], str]) -> pd.DataFrame:
        (direction, lineage), tokens = condition
        named = study.lineages if lineage == POOLED else [lineage]
        table = score(
            results[direction, lineage],
            _measured(study, named, direction, windows),
            np.stack([classes[x] for x in named], axis=1),
            tokens,
            blocks,
            study.seed,
        )
        return table.assign(direction=direction, lineage=lineage, tokens=tokens)

    questions = list(product(results, TOKENS))
    tables = side_by_side(scored, questions, study, desc="scores")
    joined = pd.concat(tables, ignore_index=True)
    front = ["direction", "lineage", "tokens", "method"]
    joined = joined[front + [c for c in joined if c not in front]]
    return joined, moves.coherence()


def _measured(
    study: Study, lineages: list[str], direction: str, windows: np.ndarray
) -> np.ndarray:
    """Return the measured signal of the targets, (n_windows, n_lineages, n_outputs)."""
    crop, n_tokens = study.model.config.crop, study.dataset.n_tokens
    targets = [pair_of(study, lineage, direction)[1] for lineage in lineages]
    of = [study.dataset.target(windows, b)[:, crop : n_tokens - crop] for b in targets]
    return np.stack(of, axis=1)


def _apply_methods(
    moves: Moves,
    sweep: pd.DataFrame,
    direction: str,
    lineage: str,
    windows: np.ndarray,
    swapped: dict[tuple, np.ndarray],
) -> dict[str, Result]:
    """Return what every method predicts for one lineage."""
    study = moves.study
    edits = _planned_edits(moves, sweep, direction, lineage)
    results = _without_edit(study, lineage, direction, windows)
    results |= _swaps(swapped, study, lineage, direction)
    for layer, of_layer in edits.items():
        base, target, steered = steer_all(
            study, layer, lineage, direction, windows, of_layer
        )
        for (method, alpha), reached in steered.items():
            outcome = base[:, None, None], target[:, None, None], reached[:, None]
            results[method] = Result(*outcome, layer, alpha)
    results |= _at_every_block(moves, sweep, direction, lineage, windows)
    return {method: results[method] for method in METHODS if method in results}


def _at_every_block(
    moves: Moves,
    sweep: pd.DataFrame,
    direction: str,
    lineage: str,
    windows: np.ndarray,
) -> dict[str, Result]:
    """Return what moving every block does, each method at its best dose."""
    doses = {name: best_dose(sweep, name, direction)[1] for name in EVERY_BLOCK}
    edits = {
        (name, alpha): every_block(moves, EVERY_BLOCK[name], lineage, direction, alpha)
        for name, alpha in doses.items()
    }
    *ends, steered = steer_blocks(moves.study, lineage, direction, windows, edits)
    ends = [y[:, None, None] for y in ends]
    return {
        name: Result(*ends, reached[:, None], None, alpha)
        for (name, alpha), reached in steered.items()
    }


def _planned_edits(
    moves: Moves, sweep: pd.DataFrame, direction: str, lineage: str
) -> dict[int, dict[tuple[str, float], Edits]]:
    """Return the edits of every block."""
    held_out = moves.held_out[lineage]
    edits: dict[int, dict[tuple[str, float], Edits]] = {}

    def plan(method: str, layer: int, alpha: float, edit: Edits) -> None:
        edits.setdefault(layer, {})[method, alpha] = edit

    for method in LINEAR:
        layer, alpha = best_dose(sweep, method, direction)
        move = moves.of(method, layer, lineage, direction)
        plan(method, layer, alpha, moved([move], alpha))
    for method, like in HELD_OUT.items() if held_out else ():
        elsewhere = sweep[sweep["layer"].isin(held_out)]
        layer, alpha = best_dose(elsewhere, like, direction, without=lineage)
        move = moves.of_others(like, layer, lineage, direction)
        plan(method, layer, alpha, moved([move], alpha))
    for method, like in (
        (RANDOM_TUNED, RANDOM_TUNED),
        ("random features", "SAE"),
        ("random direction", "SAE"),
        ("DiffMean, labels shuffled", "DiffMean"),
    ):
        layer, alpha = best_dose(sweep, like, direction)
        vectors = moves.random(layer, lineage, direction)[method]
        plan(method, layer, alpha, _add(alpha * vectors))
    layer, alpha = best_dose(sweep, "SAE", direction)
    back = moves.of("SAE", layer, lineage, direction)
    plan("SAE, reversed", layer, -alpha, moved([back], -alpha))
    of_block = moves.dictionaries[layer]
    sae, features = of_block.sae, of_block.features
    every = np.arange(len(sae.decoder_directions))
    rest = np.setdiff1d(every, features.significant)
    plan("clamp", layer, np.nan, _clamp(sae, features.selected))
    plan("clamp, significant", layer, np.nan, _clamp(sae, features.significant))
    plan("clamp, not significant", layer, np.nan, _clamp(sae, rest))
    plan("clamp, all", layer, np.nan, _clamp(sae, every))
    plan("reconstruction", layer, np.nan, lambda x0, x1: [sae(x0) - x0])
    plan("reconstruction of target", layer, np.nan, lambda x0, x1: [sae(x1) - x0])
    plan("full patch", layer, np.nan, lambda x0, x1: [x1 - x0])
    return edits


def _add(vectors: torch.Tensor) -> Edits:
    return lambda x0, x1: vectors


def _clamp(sae: BatchTopKSAE, features: np.ndarray) -> Edits:
    return lambda x0, x1: ablation_deltas(x0, sae, [features], reference=x1)


def _without_edit(
    study: Study, lineage: str, direction: str, windows: np.ndarray
) -> dict[str, Result]:
    """Return what needs predictions only: nothing, lines, a shift of every class."""
    last = max(study.blocks)
    pair = pair_of(study, lineage, direction)

    def predictions(of: np.ndarray) -> list[np.ndarray]:
        return [predict(study, last, read_streams(study, last, b, of)) for b in pair]

    fit_windows = spread_windows(study, "select", N_FIT)
    fit = predictions(fit_windows)
    base, target = (y[:, None, None] for y in predictions(windows))
    rescaled = np.log1p(output_rescale(*map(np.expm1, fit))(np.expm1(base)))
    known = token_classes(study, fit_windows)[lineage]
    classes = token_classes(study, windows)[lineage]
    shift = np.zeros(classes.shape)
    for name in (*CLASSES, ""):
        of_class = known == name
        if of_class.any():
            shift[classes == name] = (fit[1] - fit[0])[of_class].mean()
    found = {
        "nothing": Result(base, target, base),
        "output rescale": Result(base, target, rescaled),
        "class shift": Result(base, target, base + shift[:, None, None]),
    }
    if study.truth is not None:
        found["planted signal"] = _planted(
            study, lineage, direction, windows, fit, found["nothing"]
        )
    return found


@torch.no_grad()
def _swapped_inputs(study: Study, windows: np.ndarray) -> dict[tuple, np.ndarray]:
    """Predict in full passes from the track and the motif activity of any context.

    The sequence tower runs once for all of them.

    Returns
    -------
    dict
        Per pair of biosamples of a lineage (track, motif activity), the log1p
        prediction, (n_windows, n_outputs).
    """
    dataset, model = study.dataset, study.model
    found: dict[tuple, list[np.ndarray]] = {}
    motif = torch.from_numpy(dataset.motif_activity).to(study.device)
    for part in batches(study, len(windows)):
        sequence = torch.from_numpy(dataset.sequence(windows[part])).to(study.device)
        features = model.encode_sequence(sequence)
        for lineage in study.lineages:
            for track, of_motif in product(study.pair(lineage), repeat=2):
                atac = torch.from_numpy(dataset.atac(windows[part], track))
                stream = model.encode_context(
                    features,
                    atac.float().to(study.device),
                    motif[of_motif].expand(len(features), -1),
                )
                predicted = model.head(model.run_blocks(stream)).log1p()
                found.setdefault((track, of_motif), []).append(predicted.cpu().numpy())
    return {key: np.concatenate(of_pass) for key, of_pass in found.items()}


def _swaps(
    swapped: dict[tuple, np.ndarray], study: Study, lineage: str, direction: str
) -> dict[str, Result]:
    """Return what exchanging one of the two inputs does."""
    base, target = pair_of(study, lineage, direction)
    inputs = {"motif swap": (base, target), "track swap": (target, base)}
    ends = [swapped[b, b][:, None, None] for b in (base, target)]
    return {
        name: Result(*ends, swapped[key][:, None, None]) for name, key in inputs.items()
    }


def _planted(
    study: Study,
    lineage: str,
    direction: str,
    windows: np.ndarray,
    fit: tuple[np.ndarray, np.ndarray],
    unedited: Result,
) -> Result:
    """Return the best linear guess of one who knows the simulator's expected signals.

    The gap between two predictions holds count noise copied from two tracks; what is
    left of it here, nobody can know from one context's input.
    """
    fit_windows = spread_windows(study, "select", N_FIT)
    known = _expected(study, lineage, direction, fit_windows)
    y0, y1 = (y.ravel() for y in fit)
    columns = np.stack([np.ones_like(y0), y0, *(e.ravel() for e in known)], axis=1)
    weights = np.linalg.lstsq(columns, y1, rcond=None)[0]
    known = [e[:, None, None] for e in _expected(study, lineage, direction, windows)]
    inputs = (1.0, unedited.base, *known)
    guess = sum(w * x for w, x in zip(weights, inputs, strict=True))
    return Result(unedited.base, unedited.target, guess)


def _expected(
    study: Study, lineage: str, direction: str, windows: np.ndarray
) -> list[np.ndarray]:
    """Return the log1p expected signal of base and target, (n_windows, n_outputs)."""
    table = pd.read_parquet(study.truth / "expected.parquet")
    table = table.set_index(["chrom", "start"])
    tokens = study.dataset.token_table(windows)[["chrom", "start"]]
    names = study.design["biosample"].to_numpy()[pair_of(study, lineage, direction)]
    rows = np.log1p(table.loc[pd.MultiIndex.from_frame(tokens), names].to_numpy())
    crop, n_tokens = study.model.config.crop, study.dataset.n_tokens
    inner = rows.reshape(len(windows), n_tokens, 2)[:, crop : n_tokens - crop]
    return [inner[..., k] for k in (0, 1)]
