"""Score steered predictions: gap closed in its versions, intervals, comparisons.

Arrays are (n_windows, n_lineages, n_draws, n_outputs) on the log1p scale. Block
bootstraps draw the same blocks for every method, so differences are paired.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import pandas as pd

from helpers.blockstats import block_bootstrap
from helpers.outcomes import gap_closed, gap_terms, poisson_loss

__all__ = ["N_DRAWS", "Result", "percentiles", "pool", "score"]

N_DRAWS = 2000


class Result(NamedTuple):
    """Outcomes of a method.

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


def pool(results: list[dict[str, Result]]) -> dict[str, Result]:
    """Join the lineages of methods that all of them have."""
    pooled = {}
    for method in results[0]:
        if not all(method in of_lineage for of_lineage in results):
            continue
        every = [of_lineage[method] for of_lineage in results]
        layers, doses = {r.layer for r in every}, {r.alpha for r in every}
        pooled[method] = Result(
            *(np.concatenate([r[i] for r in every], axis=1) for i in range(3)),
            layers.pop() if len(layers) == 1 else None,
            doses.pop() if len(doses) == 1 else np.nan,
        )
    return pooled


def score(
    results: dict[str, Result],
    measured: np.ndarray,
    classes: np.ndarray,
    tokens: str,
    blocks: np.ndarray,
    seed: int,
) -> pd.DataFrame:
    """Return one row per method.

    Parameters
    ----------
    results : dict of str to Result
        Per method; ``SAE`` is the one that others are compared with.
    measured : numpy.ndarray, shape (n_windows, n_lineages, n_outputs)
        Measured signal of the target, counts: what the data gap ends at.
    classes : numpy.ndarray of str, shape as `measured`
        Class of every token.
    tokens : str
        Class to score, or ``all``.
    blocks : numpy.ndarray, shape (n_windows,)
        Genomic block of each window.
    seed : int
        Of the bootstrap.
    """
    here = np.ones(classes.shape) if tokens == "all" else classes == tokens
    if not here.any():
        return pd.DataFrame()
    rows, terms, moments, of_draws = [], [], [], {}
    for method, result in results.items():
        outcome = np.broadcast_arrays(
            *result[:3], here[:, :, None], measured[:, :, None]
        )
        *outcome, signal = outcome
        base, target, steered, weights = outcome
        floor = base.min()  # what shifts an output may predict negative counts
        to_data = base, np.log1p(signal), steered, weights
        losses = [
            (weights * poisson_loss(np.expm1(np.maximum(y, floor)), signal)).sum(
                axis=(1, 2, 3)
            )
            for y in (base, target, steered)
        ]
        closed, of_data = gap_closed(*outcome), gap_closed(*to_data)
        terms.append([*gap_terms(*outcome), *gap_terms(*to_data), *losses])
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
                "gc2_data": of_data.gc2,
                "collateral": _collateral(steered - base, classes),
            }
        )
    table = pd.DataFrame(rows).astype({"layer": "Int64"})
    table["p_random"] = [
        (1 + (d >= of_draws["SAE"]).sum()) / (len(d) + 1) if len(d) > 1 else np.nan
        for d in of_draws.values()
    ]
    # remaining and gap to the model's target, to the data's; losses of base, target,
    # steered: (7, n_methods, n_windows)
    sums = np.stack([np.stack(of_method) for of_method in terms], axis=1)
    counts = np.ones(sums.shape[-1])
    drawn = block_bootstrap(
        sums.reshape(-1, len(counts)),
        blocks,
        denominators=counts,
        n_draws=N_DRAWS,
        random_state=seed,
    ).draws.reshape(*sums.shape[:2], -1)
    table["gc2_data_low"], table["gc2_data_high"] = percentiles(1 - drawn[2] / drawn[3])
    table["gc_loss"] = _loss_closed(sums.sum(axis=-1))
    table["gc_loss_low"], table["gc_loss_high"] = percentiles(_loss_closed(drawn))
    table["gc_corr_low"], table["gc_corr_high"] = _correlation_intervals(
        np.stack(moments), blocks, seed
    )
    return _intervals(table, 1 - drawn[0] / drawn[1])


def _loss_closed(sums: np.ndarray) -> np.ndarray:
    """Return the share of the loss that the target's prediction spares the base's."""
    base, ceiling, steered = sums[4:]
    with np.errstate(divide="ignore", invalid="ignore"):
        return (base - steered) / (base - ceiling)


def _intervals(table: pd.DataFrame, drawn: np.ndarray) -> pd.DataFrame:
    """Add intervals and comparisons with the SAE from draws (n_methods, N_DRAWS)."""
    sae = int(np.flatnonzero(table["method"] == "SAE")[0])
    table["low"], table["high"] = percentiles(drawn)
    table["difference"] = table["gc2"][sae] - table["gc2"]
    low, high = percentiles(drawn[sae] - drawn)
    table["difference_low"], table["difference_high"] = low, high
    with np.errstate(divide="ignore", invalid="ignore"):
        table["ratio"] = table["gc2"][sae] / table["gc2"]
        table["ratio_low"], table["ratio_high"] = percentiles(drawn[sae] / drawn)
    means_nothing = ~(table["low"] > 0)
    table.loc[means_nothing, ["ratio", "ratio_low", "ratio_high"]] = np.nan
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
    return percentiles(gained)


def percentiles(draws: np.ndarray) -> np.ndarray:
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
