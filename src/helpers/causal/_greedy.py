"""Which single features carry the difference between the contexts: forward selection.

Features of the in vitro input take their in vivo activations one after the other, each
time the one that closes most of the gap together with those taken before. The order is
found on ``tune`` windows; what it is worth is measured on ``test``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd
import torch

from helpers.blockstats import block_bootstrap
from helpers.causal._moves import pair_of
from helpers.causal._registration import (
    ENDPOINT,
    registered,
    registered_windows,
)
from helpers.causal._selection import (
    Dictionary,
    dictionaries,
    input_recipe,
    matched_sets,
)
from helpers.causal._side_by_side import side_by_side
from helpers.causal._sweep import steer_all
from helpers.causal._windows import blocks_of, read_streams, spread_windows
from helpers.interventions import ablation_deltas
from helpers.outcomes import gap_terms
from helpers.runs import code_digest
from helpers.stages import Study

__all__ = ["forward_selection"]

N_STEPS = 10  # features taken
N_CANDIDATES = 24  # by first-order output effect
N_RANDOM = 20  # sets per size, like the features taken
SIZES = {"tune": 16, "test": 48}  # windows
_TOGETHER = 8  # windows edited by one process
_DIRECTION = ENDPOINT["direction"]
_CODE = ("causal._greedy", "interventions", "probe", "outcomes", "blockstats")


def forward_selection(study: Study) -> pd.DataFrame:
    """Take over one feature after the other, and see how much of the gap closes.

    At the block of the endpoint, in all lineages at once, without a dose: features of
    the in vitro input get the activations they have on the same window in vivo.
    Candidates are 24 of the features that fire on select windows, significant or not:
    those that move the output most along the gap to first order.

    Parameters
    ----------
    study : Study
        The run; `helpers.causal.register` must have been called.

    Returns
    -------
    pandas.DataFrame
        One row per ``order`` and ``n_features`` (1 to 10): ``gc2`` on test windows with
        ``low``, ``high`` (95 %, genomic blocks), ``feature``, the one taken last, its
        ``rank`` by absolute CDS (missing if not significant), and ``layer``. Orders are
        ``greedy`` (chosen by GC2 on tune windows, there ``gc2_tune``), ``CDS``
        (strongest first) and ``random`` (mean of 20 sets matched to the greedy ones in
        density and written length, with the 2.5 and 97.5 percentiles over sets; no
        feature; ``widened``, ``density_p`` and ``norm_p`` say how well they match, as
        in `helpers.interventions.MatchedSets`). Row ``all significant`` has every
        significant feature.

    Raises
    ------
    FileNotFoundError, ValueError
        If the analysis is not registered, or nothing is significant in any block.
    """
    layer, _ = registered(study)["plan"]["block_and_dose"]["SAE"][_DIRECTION]
    windows = {
        "tune": spread_windows(study, "tune", SIZES["tune"]),
        "test": registered_windows(study, SIZES["test"]),
    }

    def build() -> pd.DataFrame:
        of_block = dictionaries(study)[layer]
        order, on_tune = _greedy(study, of_block, windows["tune"])
        return _evaluate(study, of_block, order, on_tune, windows["test"])

    recipe = input_recipe(study) | {
        "layer": layer,
        "sizes": [N_STEPS, N_CANDIDATES, N_RANDOM, SIZES],
        "code": code_digest(*_CODE),
    }
    return study.run.table("forward_selection.parquet", recipe, build)


def _greedy(
    study: Study, of_block: Dictionary, windows: np.ndarray
) -> tuple[list[int], list[float]]:
    """Return features in the order in which they close most, and GC2 after each."""
    score = _first_order(study, of_block, windows)
    firing = np.flatnonzero(of_block.features.density > 0)
    order = np.argsort(-score[firing], kind="stable")
    left = firing[order][:N_CANDIDATES].tolist()
    taken: list[int] = []
    closed: list[float] = []
    while left and len(taken) < N_STEPS:
        sets = [[*taken, j] for j in left]
        remaining, gap = _remaining(study, of_block, sets, windows)
        of_sets = 1 - remaining.sum(axis=1) / gap.sum()
        best = int(of_sets.argmax())
        taken.append(left.pop(best))
        closed.append(float(of_sets[best]))
    return taken, closed


def _first_order(study: Study, of_block: Dictionary, windows: np.ndarray) -> np.ndarray:
    """Return how far the output moves along the gap by each feature alone, (d_sae,).

    To first order, features taking their in vivo activations token by token.
    """
    sae, model, start = of_block.sae, study.model, of_block.layer + 1

    def of_lineage(lineage: str) -> np.ndarray:
        pair = pair_of(study, lineage, _DIRECTION)
        x0, x1 = (read_streams(study, of_block.layer, b, windows) for b in pair)
        x0.requires_grad_()
        y0, y1 = (model.head(model.run_blocks(x, start)).log1p() for x in (x0, x1))
        (slope,) = torch.autograd.grad((y0 * (y1 - y0).detach()).sum(), x0)
        before, after = (sae.encode(x.detach().flatten(0, 1)) for x in (x0, x1))
        written = slope.flatten(0, 1) @ sae.decoder_directions.T
        return ((after - before) * written).sum(dim=0).cpu().numpy()

    return sum(of_lineage(lineage) for lineage in study.lineages)


def _evaluate(
    study: Study,
    of_block: Dictionary,
    order: list[int],
    on_tune: list[float],
    windows: np.ndarray,
) -> pd.DataFrame:
    """Measure the nested sets of every order on test windows."""
    features = of_block.features
    significant = features.significant.tolist()
    orders = {"greedy": order, "CDS": significant[: len(order)]}
    of_order = features._replace(selected=np.array(order))
    pool = np.setdiff1d(features.pools["any other"], order)
    of_order = of_order._replace(pools={"any other": pool})
    match = matched_sets(of_order, "any other", N_RANDOM, study.seed)
    sizes = range(1, len(order) + 1)
    steps = [(name, n) for name, own in orders.items() for n in sizes if n <= len(own)]
    nested = [orders[name][:n] for name, n in steps]
    drawn = [own[:n].tolist() for n in sizes for own in match.sets]
    sets = [*nested, significant, *drawn]
    remaining, gap = _remaining(study, of_block, sets, windows)
    boot = block_bootstrap(
        remaining,
        blocks_of(study, windows),
        denominators=gap,
        random_state=study.seed,
    )
    gc2, low, high = 1 - boot.estimate, 1 - boot.high, 1 - boot.low
    rows = []
    for k, (name, n) in enumerate(steps):
        last = orders[name][n - 1]
        row = {"order": name, "n_features": n, "feature": last}
        if last in significant:
            row["rank"] = significant.index(last) + 1
        row |= {"gc2": gc2[k], "low": low[k], "high": high[k]}
        rows.append(row | ({"gc2_tune": on_tune[n - 1]} if name == "greedy" else {}))
    k = len(nested)
    row = {"order": "all significant", "n_features": len(significant)}
    rows.append(row | {"gc2": gc2[k], "low": low[k], "high": high[k]})
    for n, of_size in zip(sizes, gc2[k + 1 :].reshape(len(order), -1), strict=True):
        bounds = np.quantile(of_size, [0.025, 0.975])
        row = {"order": "random", "n_features": n, "gc2": of_size.mean()}
        row |= {k: v for k, v in match._asdict().items() if k != "sets"}
        rows.append(row | dict(zip(("low", "high"), bounds, strict=True)))
    table = pd.DataFrame(rows).assign(layer=of_block.layer)
    return table.astype({"feature": "Int64", "rank": "Int64"})


def _remaining(
    study: Study,
    of_block: Dictionary,
    sets: Sequence[Sequence[int]],
    windows: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return what is left of the gap by set, (n_sets, n_windows), and the gap.

    Lineages are added up.
    """
    parts = np.array_split(np.arange(len(windows)), -(-len(windows) // _TOGETHER))

    def of_part(lineage: str, part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        edits = {
            ("clamp", np.nan): lambda x0, x1: ablation_deltas(
                x0, of_block.sae, sets, reference=x1
            )
        }
        base, target, steered = steer_all(
            study, of_block.layer, lineage, _DIRECTION, windows[part], edits
        )
        (reached,) = steered.values()
        terms = [
            gap_terms(base, target, reached[:, k]) for k in range(reached.shape[1])
        ]
        return np.stack([of_set[0] for of_set in terms]), terms[0][1]

    jobs = list(product(study.lineages, parts))
    found = side_by_side(lambda job: of_part(*job), jobs, study, desc="one by one")
    remaining, gap = np.zeros((len(sets), len(windows))), np.zeros(len(windows))
    for (_, part), (of_sets, whole) in zip(jobs, found, strict=True):
        remaining[:, part] += of_sets
        gap[part] += whole
    return remaining, gap
