"""Try every move at every dose and block on ``tune`` windows, and choose.

The base is the prediction from one context's input, the target that from the other
context's, on the same windows, on the log1p scale, restarted from stored streams.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, product

import numpy as np
import pandas as pd
import torch

from helpers.causal._moves import DIRECTIONS, LINEAR, Move, Moves, constant, pair_of
from helpers.causal._selection import dictionaries, input_recipe
from helpers.causal._side_by_side import side_by_side
from helpers.causal._windows import batches, read_streams, spread_windows
from helpers.interventions import check_finite, edit_blocks, effects
from helpers.outcomes import gap_closed, gap_terms
from helpers.probe import restart
from helpers.runs import code_digest
from helpers.stages import Study

__all__ = [
    "DOSES",
    "EVERY_BLOCK",
    "RANDOM_TUNED",
    "Edits",
    "best_dose",
    "every_block",
    "moved",
    "predict",
    "steer_all",
    "steer_blocks",
    "steering_sweep",
    "sweep_rows",
]

RANDOM_TUNED = "random features, tuned"
EVERY_BLOCK = {f"{method}, every block": method for method in ("SAE", "DiffMean")}
DOSES = (-1.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # -1: backwards, a control
N_TUNE = 32  # windows
N_TUNED = 10  # random directions whose dose is tuned
_CODE = ("causal._sweep", "interventions", "probe", "outcomes", "blockstats")
_CODE += ("cds",)

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
        One row per ``direction``, ``lineage``, ``method`` (those of
        `helpers.causal._moves.LINEAR`; random features at the SAE's best block; two
        methods at every block at once, ``layer`` being the first), ``layer`` and
        ``alpha``: ``gc2``, ``progress``, ``leakage``, and ``remaining`` and ``gap``,
        the sums that make gc2 = 1 - remaining / gap and that add up over lineages.

    Raises
    ------
    ValueError
        If no feature is significant in any block.
    """

    def build() -> pd.DataFrame:
        moves = Moves(study, dictionaries(study)).prepared()
        pairs = list(product(DIRECTIONS, study.lineages))

        def of_linear(direction: str, lineage: str, layer: int) -> list[dict]:
            return sweep_rows(moves, LINEAR, direction, lineage, layer)

        def of_random(direction: str, lineage: str) -> list[dict]:
            layer, _ = best_dose(table, "SAE", direction)
            return sweep_rows(moves, [RANDOM_TUNED], direction, lineage, layer)

        conditions = [(*pair, layer) for pair in pairs for layer in moves.dictionaries]
        rows = side_by_side(lambda c: of_linear(*c), conditions, study, desc="doses")
        table = pd.DataFrame(chain.from_iterable(rows))

        def of_blocks(direction: str, lineage: str) -> list[dict]:
            return block_sweep_rows(moves, direction, lineage)

        jobs = [(of, *pair) for of in (of_random, of_blocks) for pair in pairs]
        rows = side_by_side(lambda j: j[0](*j[1:]), jobs, study, desc="more doses")
        others = pd.DataFrame(chain.from_iterable(rows))
        return pd.concat([table, others], ignore_index=True)

    recipe = input_recipe(study) | {
        "methods": [*LINEAR, *EVERY_BLOCK],
        "doses": DOSES,
        "sizes": [N_TUNE, N_TUNED],
        "code": code_digest(*_CODE),
    }
    return study.run.table("steering_sweep.parquet", recipe, build)


def sweep_rows(
    moves: Moves, methods: Iterable[str], direction: str, lineage: str, layer: int
) -> list[dict]:
    """Score every dose of some methods at a block, random ones averaged over draws."""
    study = moves.study
    edits: dict[tuple[str, float], Edits] = {}
    for method in methods:
        if method == RANDOM_TUNED:
            vectors = moves.random(layer, lineage, direction)[method][:N_TUNED]
            of_method = [constant(vector) for vector in vectors]
        else:
            of_method = [moves.of(method, layer, lineage, direction)]
        edits |= {(method, alpha): moved(of_method, alpha) for alpha in DOSES}
    windows = spread_windows(study, "tune", N_TUNE)
    found = steer_all(study, layer, lineage, direction, windows, edits)
    return _rows_of_doses(direction, lineage, layer, *found)


def block_sweep_rows(moves: Moves, direction: str, lineage: str) -> list[dict]:
    """Score every dose of the methods that move every block."""
    windows = spread_windows(moves.study, "tune", N_TUNE)
    edits = {
        (method, alpha): every_block(moves, like, lineage, direction, alpha)
        for method, like in EVERY_BLOCK.items()
        for alpha in DOSES
    }
    found = steer_blocks(moves.study, lineage, direction, windows, edits)
    return _rows_of_doses(direction, lineage, min(moves.dictionaries), *found)


def _rows_of_doses(
    direction: str,
    lineage: str,
    layer: int,
    base: np.ndarray,
    target: np.ndarray,
    steered: dict[tuple[str, float], np.ndarray],
) -> list[dict]:
    """Score what `steer_all` returns."""
    rows = []
    for (method, alpha), reached in steered.items():
        outcome = np.broadcast_arrays(base[:, None], target[:, None], reached)
        closed = gap_closed(*outcome)
        remaining, gap = gap_terms(*outcome)
        row = {
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
        rows.append(row)
    return rows


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


def moved(moves: Iterable[Move], alpha: float) -> Edits:
    """Return the edit that makes each of some moves by a dose.

    Raises
    ------
    ValueError
        If the dose is not finite.
    """
    check_finite("alpha", alpha)
    return lambda x0, x1: (alpha * move(x0) for move in moves)


def steer_all(
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
    pair = pair_of(study, lineage, direction)
    x0, x1 = (read_streams(study, layer, b, windows) for b in pair)
    parts = []
    for part in batches(study, len(windows)):
        n_draws: Counter[tuple[str, float]] = Counter()
        deltas = _counted(edits, x0[part], x1[part], n_draws)
        found = effects(study.model, x0[part], layer, deltas, outcome=torch.log1p)
        edges = np.cumsum([n_draws[key] for key in edits])[:-1]
        steered = np.split(found.edited.cpu().numpy().swapaxes(0, 1), edges, axis=1)
        parts.append((found.baseline.cpu().numpy(), *steered))
    base, *steered = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return base, predict(study, layer, x1), dict(zip(edits, steered, strict=True))


def _counted(
    edits: Mapping[tuple[str, float], Edits],
    x0: torch.Tensor,
    x1: torch.Tensor,
    n_draws: Counter[tuple[str, float]],
) -> Iterator[torch.Tensor]:
    """Make one change of the stream after the other, and count those of every edit."""
    for key, edit in edits.items():
        for delta in edit(x0, x1):
            n_draws[key] += 1
            yield delta


def every_block(
    moves: Moves, method: str, lineage: str, direction: str, alpha: float
) -> dict[int, Move]:
    """Return edits that spread a dose evenly over all blocks: each makes its part.

    What a block adds reaches the blocks after it, so that whole moves at every block
    would add up to as many times the difference.

    Raises
    ------
    ValueError
        If the dose is not finite.
    """
    check_finite("alpha", alpha)
    share = alpha / len(moves.dictionaries)
    made = {b: moves.of(method, b, lineage, direction) for b in moves.dictionaries}
    return {b: lambda x, move=move: x + share * move(x) for b, move in made.items()}


def steer_blocks(
    study: Study,
    lineage: str,
    direction: str,
    windows: np.ndarray,
    edits: Mapping[tuple[str, float], Mapping[int, Move]],
) -> tuple[np.ndarray, np.ndarray, dict[tuple[str, float], np.ndarray]]:
    """Predict base, target and every edit of several blocks, as `steer_all` does."""
    first = min(block for of_blocks in edits.values() for block in of_blocks)
    pair = pair_of(study, lineage, direction)
    x0, x1 = (read_streams(study, first, b, windows) for b in pair)

    def steered(of_blocks: Mapping[int, Move]) -> np.ndarray:
        parts = [
            edit_blocks(study.model, x0[part], of_blocks).log1p()
            for part in batches(study, len(x0))
        ]
        return torch.cat(parts).cpu().numpy()[:, None]

    reached = {key: steered(of_blocks) for key, of_blocks in edits.items()}
    return predict(study, first, x0), predict(study, first, x1), reached


def predict(study: Study, layer: int, x: torch.Tensor) -> np.ndarray:
    """Return the log1p prediction from streams, (n_windows, n_outputs)."""
    parts = [restart(study.model, x[p], layer).log1p() for p in batches(study, len(x))]
    return torch.cat(parts).cpu().numpy()
