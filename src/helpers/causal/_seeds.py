"""The headline numbers over several trainings of the dictionary.

A block bootstrap resamples windows; it knows nothing of what another seed of the
dictionary would have found. Here the block of the endpoint gets a dictionary per seed,
each with its own features, dose and random sets, and intervals hold both sources.
What the study's own dictionary does is taken from the tables of the main analysis.
"""

from __future__ import annotations

from itertools import chain
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from helpers.blockstats import block_bootstrap
from helpers.causal._ablation import (
    N_WINDOWS,
    ablate_condition,
    ablation,
    match_controls,
)
from helpers.causal._gap_scores import N_DRAWS
from helpers.causal._moves import POOLED, Moves, constant
from helpers.causal._registration import (
    ABLATION,
    ENDPOINT,
    registered,
    registered_rows,
    registered_windows,
)
from helpers.causal._selection import (
    Dictionary,
    dictionaries,
    input_recipe,
    other_training,
)
from helpers.causal._side_by_side import side_by_side
from helpers.causal._steering import N_TEST
from helpers.causal._sweep import (
    RANDOM_TUNED,
    best_dose,
    moved,
    steer_all,
    steering_sweep,
    sweep_rows,
)
from helpers.causal._windows import blocks_of, read_streams
from helpers.outcomes import gap_terms
from helpers.runs import code_digest
from helpers.stages import Study
from helpers.token_classes import token_classes

__all__ = ["OverSeeds", "headline_over_seeds", "over_seeds", "seed_spread"]

N_SEEDS = 3
METHODS = ("SAE", "SAE, all significant", "SAE, output-filtered", RANDOM_TUNED)
_DIRECTION = ENDPOINT["direction"]
_CODE = ("causal._seeds", "dictionaries", "interventions", "probe")
_CODE += ("token_classes", "masked", "outcomes", "blockstats", "cds", "sae")


def headline_over_seeds(study: Study) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Repeat endpoint and main ablation with other trainings of the endpoint's block.

    The study's own dictionary may come from another run (`Study.saes`); the others are
    trained on this one's rows, and what differs then is more than a seed.

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
        One row per ``training`` and ``lineage``, with the columns of
        `helpers.causal.ablation` but ``q_bh``: paired resampling in the in vivo input,
        vivo-up tokens, random sets of any other features.

    Raises
    ------
    FileNotFoundError, ValueError
        If the analysis is not registered, or a training has no significant feature.
    """
    plan = registered(study)["plan"]
    layer, _ = plan["block_and_dose"]["SAE"][_DIRECTION]
    sweep = steering_sweep(study)
    ablated = ablation(study).drop(columns="q_bh")  # which is over all blocks
    recipe = input_recipe(study) | {
        "layer": layer,
        "sizes": [N_SEEDS, N_TEST],
        "main": [study.run.key(f"{x}.parquet") for x in ("steering_sweep", "ablation")],
        "code": code_digest(*_CODE),
    }

    def of_seed(seed: int) -> list[pd.DataFrame]:
        own = seed == study.seed
        known = (
            dictionaries(study)[layer] if own else other_training(study, layer, seed)
        )
        moves = Moves(study, {layer: known})
        doses = sweep[sweep["layer"] == layer] if own else _sweep(moves, layer)
        effects = ablated[ablated["layer"] == layer] if own else _ablate(study, known)
        effects = registered_rows(effects)
        steered = _steer(moves, layer, doses)
        return [table.assign(training=seed) for table in (steered, effects)]

    def build() -> list[pd.DataFrame]:
        # The study's own last: it needs no training and fills up what time is left.
        seeds = [study.seed + k for k in (*range(1, N_SEEDS), 0)]
        *others, own = side_by_side(of_seed, seeds, study, desc="trainings")
        of_tables = zip(own, *others, strict=True)
        return [pd.concat(tables, ignore_index=True) for tables in of_tables]

    names = ["seeds_steering.parquet", "seeds_ablation.parquet"]
    of_steering, of_ablation = study.run.tables(names, recipe, build)
    return of_steering, of_ablation


def _sweep(moves: Moves, layer: int) -> pd.DataFrame:
    """Steer by every dose on ``tune`` windows, as `steering_sweep` does."""
    rows = [
        sweep_rows(moves, METHODS, _DIRECTION, lineage, layer)
        for lineage in moves.study.lineages
    ]
    return pd.DataFrame(chain.from_iterable(rows))


def _steer(moves: Moves, layer: int, sweep: pd.DataFrame) -> pd.DataFrame:
    """Steer ``test`` windows by the doses that are best on ``tune``."""
    study = moves.study
    doses = {m: best_dose(sweep, m, _DIRECTION)[1] for m in METHODS}
    windows = registered_windows(study, N_TEST)
    blocks = blocks_of(study, windows)
    sums = {m: np.zeros((2, len(windows))) for m in METHODS}
    for lineage in study.lineages:
        edits = {}
        for method, alpha in doses.items():
            if method == RANDOM_TUNED:
                vectors = moves.random(layer, lineage, _DIRECTION)[method]
                of_method = [constant(vector) for vector in vectors]
            else:
                of_method = [moves.of(method, layer, lineage, _DIRECTION)]
            edits[method, alpha] = moved(of_method, alpha)
        base, target, steered = steer_all(
            study, layer, lineage, _DIRECTION, windows, edits
        )
        for (method, _), reached in steered.items():
            outcome = np.broadcast_arrays(base[:, None], target[:, None], reached)
            sums[method] += np.stack(gap_terms(*outcome)) / reached.shape[1]
    rows = [
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
    return pd.DataFrame(rows)


def _ablate(study: Study, of_seed: Dictionary) -> pd.DataFrame:
    """Repeat the main ablation, with rows as in the table of `ablation`."""
    windows = registered_windows(study, N_WINDOWS)
    classes = token_classes(study, windows)
    n_random = {ABLATION["control"]: ABLATION["n_random_sets"]}
    match = match_controls(of_seed.features, n_random, study.seed)
    rows = [
        ablate_condition(
            study,
            of_seed,
            match,
            windows,
            classes,
            lineage,
            ABLATION["direction"],
            ABLATION["value"],
            lambda layer, b: read_streams(study, layer, b, windows),
        )[0]
        for lineage in study.lineages
    ]
    return pd.DataFrame(chain.from_iterable(rows)).assign(track=ABLATION["track"])


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
