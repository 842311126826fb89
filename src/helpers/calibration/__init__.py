"""Compared with what? Placebo contrasts, replicates, and worlds without any effect.

Samples are a design with replicates: columns biosample, lineage, context, one row per
biosample in the order of the features (n_biosamples, n_windows, n_features). The first
biosample of a lineage and context is the study's own. Positive means higher in the
second context, in vivo.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import optimize, stats

from helpers.blockstats import max_t_p_values, moderated_t
from helpers.calibration._block_length import (
    block_length_curve,
    candidate_lengths,
    choose_block_length,
)
from helpers.calibration._depth_runs import (
    DepthSensitivity,
    depth_sensitivity,
    held_means,
)
from helpers.calibration._evidence import Evidence, claim_ladder, gather_evidence
from helpers.calibration._null_runs import (
    NullCalls,
    NullData,
    equal_depth_data,
    null_calls,
    null_data,
)
from helpers.calibration._placebo import PlaceboContrast, placebo_contrasts, placebo_fdr
from helpers.calibration._runs import (
    FactorContributions,
    attribute_calls,
    factor_contributions,
    pass_summaries,
    random_weights,
    samples_of,
    stream_means,
    with_replicates,
)
from helpers.calibration._summary_worlds import (
    SUMMARY_KINDS,
    SummaryDraw,
    SummaryWorld,
    draw_summaries,
)
from helpers.calibration._units import calls_by_unit
from helpers.cds import MIN_FLIP_BLOCKS
from helpers.cds._replicates import replicate_divergence, study_rows
from helpers.pairing import paired_blocks

__all__ = [
    "SUMMARY_KINDS",
    "DepthSensitivity",
    "Evidence",
    "FactorContributions",
    "NullCalls",
    "NullData",
    "PlaceboContrast",
    "SummaryDraw",
    "SummaryWorld",
    "attribute_calls",
    "block_length_curve",
    "calls_by_unit",
    "candidate_lengths",
    "choose_block_length",
    "claim_ladder",
    "depth_sensitivity",
    "detectable_effect",
    "draw_summaries",
    "equal_depth_data",
    "factor_contributions",
    "gather_evidence",
    "held_means",
    "null_calls",
    "null_data",
    "null_draws",
    "pass_summaries",
    "placebo_contrasts",
    "placebo_fdr",
    "power",
    "random_weights",
    "replicate_divergence",
    "samples_of",
    "stream_means",
    "study_rows",
    "with_replicates",
]


def null_draws(
    world: SummaryWorld,
    *,
    n_draws: int = 200,
    n_flips: int = 499,
    alpha: float = 0.05,
    random_state: int = 0,
) -> pd.DataFrame:
    """Draw a world many times and record what each unit of replication calls.

    Parameters
    ----------
    world : SummaryWorld
        A world without context effect, for error rates.
    n_draws : int, default 200
        Draws.
    n_flips : int, default 499
        Sign flips of the max-T at the level of blocks.
    alpha : float, default 0.05
        Level of a single test, and family-wise.
    random_state : int, default 0
        Seed; draw i depends on it and on i alone.

    Returns
    -------
    pandas.DataFrame
        One row per ``draw`` and ``unit``, with the columns of `calls_by_unit`. The unit
        ``block, max-T`` counts features with an adjusted p <= alpha.

    Raises
    ------
    ValueError
        If there are sign flips, and fewer than 20 blocks.
    """
    if n_flips and world.n_blocks < MIN_FLIP_BLOCKS:
        raise ValueError(
            f"n_flips: sign-flip max-T needs at least {MIN_FLIP_BLOCKS} blocks; the "
            f"world has {world.n_blocks}. Draw more of them, or use n_flips=0"
        )
    found = []
    for draw in range(n_draws):
        rng = np.random.default_rng([random_state, draw])
        drawn = draw_summaries(world, rng)
        counts = calls_by_unit(
            drawn.features,
            drawn.samples,
            drawn.blocks,
            squares=drawn.squares,
            n_tokens=world.n_tokens,
            alpha=alpha,
        )
        if n_flips:
            rows = study_rows(drawn.samples)
            data = paired_blocks(
                drawn.features[rows], drawn.samples.iloc[rows], drawn.blocks
            )
            shared = data.differences.mean(axis=0)
            test = moderated_t(shared, data.sizes)
            p = max_t_p_values(
                shared, data.sizes, test, n_flips=n_flips, random_state=rng
            )
            flips = {
                "n_tested": len(p),
                "share": np.mean(test.p < alpha),
                "n_called": int((p <= alpha).sum()),
            }
            counts.loc["block, max-T"] = flips
        found.append(counts.assign(draw=draw).reset_index())
    return pd.concat(found, ignore_index=True)


def power(
    d_z: float | np.ndarray, n_blocks: int, *, n_tests: int, alpha: float = 0.05
) -> np.ndarray:
    """Return the power of a paired t-test over blocks after Bonferroni.

    Parameters
    ----------
    d_z : float or numpy.ndarray
        Mean block difference over its SD.
    n_blocks : int
        Genomic blocks, at least 2.
    n_tests : int
        Features tested.
    alpha : float, default 0.05
        Family-wise error rate.

    Returns
    -------
    numpy.ndarray, shape of d_z
        From the noncentral t with n_blocks - 1 degrees of freedom; calls with the
        wrong sign do not count.
    """
    df = n_blocks - 1
    critical = stats.t.isf(alpha / 2 / n_tests, df)
    shift = np.abs(np.asarray(d_z, dtype=float)) * np.sqrt(n_blocks)
    return stats.nct.sf(critical, df, shift)


def detectable_effect(
    n_blocks: int, *, n_tests: int, target: float = 0.8, alpha: float = 0.05
) -> float:
    """Return the smallest paired d_z that a design finds with a given power.

    Parameters
    ----------
    n_blocks, n_tests, alpha
        As in `power`.
    target : float, default 0.8
        Power wanted.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If the target is not between alpha and 1.
    """
    if not alpha < target < 1:
        raise ValueError(f"target must lie between alpha and 1; got {target}")

    def gap(d_z: float) -> float:
        return float(power(d_z, n_blocks, n_tests=n_tests, alpha=alpha)) - target

    critical = stats.t.isf(alpha / 2 / n_tests, n_blocks - 1)
    return float(optimize.brentq(gap, 0, 2 * (critical + 5) / np.sqrt(n_blocks)))
