"""The headline numbers over several trainings of the dictionary.

A block bootstrap resamples windows; it knows nothing of what another seed of the
dictionary would have found. Here the block of the endpoint gets a dictionary per seed,
each with its own features, dose and random sets, and intervals hold both sources.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from helpers.blockstats import block_bootstrap
from helpers.causal._ablation import INPUTS, context_readout
from helpers.causal._edits import edit
from helpers.causal._gap_scores import N_DRAWS
from helpers.causal._moves import POOLED, Moves
from helpers.causal._registration import registered, registered_windows
from helpers.causal._selection import (
    Dictionary,
    blocks_of,
    dictionaries,
    matched_sets,
    other_training,
    tables_of,
    token_classes,
)
from helpers.causal._side_by_side import side_by_side
from helpers.causal._sweep import (
    RANDOM_TUNED,
    best_dose,
    input_recipe,
    moved,
    steer_all,
    sweep_rows,
)
from helpers.interventions import effect_size
from helpers.outcomes import gap_terms
from helpers.runs import code_digest
from helpers.stages import Study

__all__ = ["OverSeeds", "headline_over_seeds", "over_seeds", "seed_spread"]

N_SEEDS = 3
N_RANDOM = 199
METHODS = ("SAE", "SAE, all significant", "SAE, output-filtered", RANDOM_TUNED)
_DIRECTION = "vitro-to-vivo"
_SIZES = {"steering": 48, "ablation": 16}  # test windows
Measure = Callable[[Study, Dictionary], list[dict]]
_CODE = ("causal._seeds", "interventions", "outcomes", "blockstats", "cds", "sae")


def headline_over_seeds(study: Study) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Repeat endpoint and main ablation with other trainings of the endpoint's block.

    Parameters
    ----------
    study : Study
        The run; `helpers.causal.register` must have been called.

    Returns
    -------
    steering : pandas.DataFrame
        One row per ``training`` (seed; the first is the study's own), ``method`` and
        test window: ``remaining`` and ``gap``, ``alpha``, ``layer``, the genomic
        ``block``.
    ablation : pandas.DataFrame
        One row per ``training`` and ``lineage``: ``effect`` at vivo-up tokens of the
        in vivo input, ``random``, ``p`` against 199 matched sets, ``d_z``,
        ``norm_ratio``, ``n_features``.

    Raises
    ------
    FileNotFoundError, ValueError
        If the analysis is not registered, or a training has no significant feature.
    """
    plan = registered(study)["plan"]
    layer, _ = plan["block_and_dose"]["SAE"][_DIRECTION]
    recipe = input_recipe(study) | {
        "layer": layer,
        "sizes": [N_SEEDS, N_RANDOM, _SIZES],
        "code": code_digest(*_CODE),
    }
    names = ["seeds_steering.parquet", "seeds_ablation.parquet"]
    steering, ablation = tables_of(study, names, recipe, lambda: _measure(study, layer))
    return steering, ablation


def _measure(study: Study, layer: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    def of_seed(job: tuple[int, tuple[Measure, ...]]) -> list[pd.DataFrame]:
        seed, measures = job
        known = (
            dictionaries(study)[layer]
            if seed == study.seed
            else other_training(study, layer, seed)
        )
        return [
            pd.DataFrame(measure(study, known)).assign(training=seed)
            for measure in measures
        ]

    # The study's own last: it needs no training and fills up what time is left.
    seeds = [study.seed + k for k in range(1, N_SEEDS)]
    jobs = [(seed, (_steer, _ablate)) for seed in seeds]
    jobs += [(study.seed, (_steer,)), (study.seed, (_ablate,))]
    found = side_by_side(of_seed, jobs, study, desc="trainings")
    *others, (steered,), (ablated,) = found
    tables = zip((steered, ablated), *others, strict=True)
    steering, ablation = (pd.concat(of, ignore_index=True) for of in tables)
    return steering, ablation


def _steer(study: Study, of_seed: Dictionary) -> list[dict]:
    """Tune the dose at this block on ``tune`` windows, measure on ``test``."""
    layer = of_seed.layer
    moves = Moves(study, {layer: of_seed})
    sweep = pd.DataFrame(
        [
            row
            for lineage in study.lineages
            for row in sweep_rows(moves, METHODS, _DIRECTION, lineage, layer)
        ]
    )
    doses = {m: best_dose(sweep, m, _DIRECTION)[1] for m in METHODS}
    windows = registered_windows(study, _SIZES["steering"])
    blocks = blocks_of(study, windows)
    sums = {m: np.zeros((2, len(windows))) for m in METHODS}
    for lineage in study.lineages:
        edits = {}
        for method, alpha in doses.items():
            if method == RANDOM_TUNED:
                vectors = moves.random(layer, lineage, _DIRECTION)[method]
                of_method = [lambda x, v=v: v.expand_as(x) for v in vectors]
            else:
                of_method = [moves.of(method, layer, lineage, _DIRECTION)]
            edits[method, alpha] = moved(of_method, alpha)
        base, target, steered = steer_all(
            study, layer, lineage, _DIRECTION, windows, edits
        )
        for (method, _), reached in steered.items():
            outcome = np.broadcast_arrays(base[:, None], target[:, None], reached)
            sums[method] += np.stack(gap_terms(*outcome)) / reached.shape[1]
    return [
        {
            "method": method,
            "layer": layer,
            "alpha": doses[method],
            "lineage": POOLED,
            "window": int(window),
            "block": block,
            "remaining": remaining,
            "gap": gap,
        }
        for method, of_method in sums.items()
        for window, block, remaining, gap in zip(
            windows, blocks, *of_method, strict=True
        )
    ]


def _ablate(study: Study, of_seed: Dictionary) -> list[dict]:
    """Compare the selected features with matched random ones, at vivo-up tokens."""
    windows = registered_windows(study, _SIZES["ablation"])
    classes = token_classes(study, windows)
    features = of_seed.features
    match = matched_sets(features, "any other", N_RANDOM, study.seed)
    rows = []
    for lineage in study.lineages:
        edited, other = (study.pair(lineage)[i] for i in INPUTS["vivo-to-vitro"])
        change, norm = edit(
            study,
            of_seed.layer,
            of_seed.sae,
            windows,
            [features.selected, *match.sets],
            context_readout(study, windows, edited, classes[lineage]),
            edited=edited,
            reference=other,
        )
        here = np.isfinite(change[0, :, 0])
        if here.sum() < 3:
            continue
        own, random = change[0, here, 0], change[1:, here, 0]
        size = effect_size(own.astype(float), random.astype(float))
        rows.append(
            {
                "lineage": lineage,
                "effect": size.effect,
                "random": float(random.mean()),
                "p": size.p,
                "d_z": size.d_z,
                "norm_ratio": float(norm[0].mean() / norm[1:].mean()),
                "n_features": len(features.selected),
                "density_p": match.density_p,
                "norm_p": match.norm_p,
            }
        )
    return rows


class OverSeeds(NamedTuple):
    """A number over trainings.

    Attributes
    ----------
    estimate : float
        Mean over trainings.
    low, high : float
        95 % interval of the mean that would be seen over many trainings and blocks.
    between : float
        Standard deviation between trainings.
    within : float
        Standard error of the mean by genomic blocks, given the trainings.
    """

    estimate: float
    low: float
    high: float
    between: float
    within: float


def over_seeds(estimates: np.ndarray, within: float) -> OverSeeds:
    """Join the variation between trainings with that between genomic blocks.

    The variances of the mean add up; the degrees of freedom are Satterthwaite's, with
    those of the blocks taken as infinite. With few trainings the interval is wide, and
    should be.

    Parameters
    ----------
    estimates : array, shape (n_trainings,)
        The number from every training, on the same windows.
    within : float
        Standard error, by genomic blocks, of their mean.

    Raises
    ------
    ValueError
        If there are fewer than two trainings.
    """
    estimates = np.asarray(estimates, dtype=float)
    n = len(estimates)
    if estimates.ndim != 1 or n < 2:
        raise ValueError(
            f"estimates must hold at least two trainings; got shape {estimates.shape}"
        )
    between = float(estimates.std(ddof=1))
    of_seeds, of_blocks = between**2 / n, within**2
    total = of_seeds + of_blocks
    freedom = np.inf if of_seeds == 0 else (n - 1) * (total / of_seeds) ** 2
    half = stats.t.ppf(0.975, freedom) * np.sqrt(total)
    mean = float(estimates.mean())
    return OverSeeds(mean, mean - half, mean + half, between, float(within))


def seed_spread(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Summarize the steering table of `headline_over_seeds`.

    Returns
    -------
    pandas.DataFrame
        One row per ``method``, and ``SAE - random features, tuned``: the fields of
        `OverSeeds` for GC2, ``of_trainings`` the value of each, ``n_trainings``.
    """
    terms = {
        method: [
            rows.pivot_table(name, "training", "window").to_numpy()
            for name in ("remaining", "gap")
        ]
        for method, rows in table.groupby("method", sort=False)
    }
    first = table[
        (table["method"] == table["method"].iloc[0])
        & (table["training"] == table["training"].iloc[0])
    ]
    blocks = first.sort_values("window")["block"].to_numpy()
    values, draws = {}, {}
    for method, (remaining, gap) in terms.items():
        drawn = block_bootstrap(
            remaining, blocks, denominators=gap, n_draws=N_DRAWS, random_state=seed
        )
        values[method], draws[method] = 1 - drawn.estimate, 1 - drawn.draws
    difference = f"SAE - {RANDOM_TUNED}"
    values[difference] = values["SAE"] - values[RANDOM_TUNED]
    draws[difference] = draws["SAE"] - draws[RANDOM_TUNED]
    rows = []
    for method, of_trainings in values.items():
        within = draws[method].mean(axis=0).std(ddof=1)
        rows.append(
            {
                "method": method,
                **over_seeds(of_trainings, within)._asdict(),
                "of_trainings": ", ".join(f"{100 * v:.1f}" for v in of_trainings),
                "n_trainings": len(of_trainings),
            }
        )
    return pd.DataFrame(rows)
