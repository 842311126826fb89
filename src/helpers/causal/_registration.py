"""Write down what will be reported before any edit is measured on test chromosomes.

A registration is a file of the run folder: endpoint, chosen blocks and doses, features,
splits and random sets, with a time stamp and a digest. Whatever edits test windows
asks for them by `registered_windows`, which refuses if the file is absent, damaged or
says something else than the run would do now.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd

from helpers.causal._moves import DIRECTIONS, LINEAR, POOLED
from helpers.causal._selection import context_features, input_recipe
from helpers.causal._sweep import (
    EVERY_BLOCK,
    RANDOM_TUNED,
    best_dose,
    steering_sweep,
)
from helpers.causal._windows import spread_windows
from helpers.stages import Study

__all__ = [
    "ABLATION",
    "ENDPOINT",
    "REGISTRATION",
    "register",
    "registered",
    "registered_rows",
    "registered_windows",
]

REGISTRATION = "causal_registration.json"
_ADVICE = "bring back the file that was written, or remove it to register anew"
ENDPOINT = {
    "measure": "GC2, model gap, log1p predictions, all tokens",
    "method": "SAE",
    "direction": "vitro-to-vivo",
    "lineage": POOLED,
    "rivals": ["output rescale", "DiffMean", RANDOM_TUNED],
    "beaten": "95 % interval of the paired difference lies above 0; of a random rival, "
    "permutation p over its draws <= 0.05 as well",
    "interval": "2,000 paired draws of genomic blocks",
}
ABLATION = {
    "measure": "mean log1p prediction at tokens of the class, by block and lineage",
    "track": "visible",
    "outcome": "vivo-up",
    "direction": "vivo-to-vitro",
    "value": "resample",
    "control": "any other",
    "n_random_sets": 199,
    "beaten": "two-sided permutation p <= 0.05 and larger than the random mean",
}
_RESULTS = (
    *("steering", "ablation", "dose_response", "other_sets", "forward_selection"),
    *("lineage_matrix", "factor_specificity", "seeds_steering"),
)


def register(study: Study) -> dict:
    """Write the registration of a run, or keep the one that says the same.

    One that says something else is kept in the new file under ``superseded``, with its
    time and whether results had been computed: a changed mind stays visible.

    Parameters
    ----------
    study : Study
        The run. The sweep on ``tune`` windows is made if absent.

    Returns
    -------
    dict
        The content of the file: ``plan``, ``digest``, ``written`` (UTC),
        ``results_before``, the tables of results that lay in the run when it was
        written, and ``superseded``, a list.

    Raises
    ------
    ValueError
        If a chromosome is in two splits.
    """
    plan = _plan(study)
    path = study.run.path(REGISTRATION)
    results, superseded = _results(study), []
    if path.is_file():
        known = _read(path)
        if known["digest"] == _digest(plan):
            return known
        before = {k: known[k] for k in ("digest", "written")}
        before["results_computed"] = bool(results)
        superseded = [*known["superseded"], before]
    record = {
        "plan": plan,
        "digest": _digest(plan),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "results_before": results,
        "superseded": superseded,
    }
    draft = path.with_name(f".{path.name}.partial")
    draft.write_text(json.dumps(record, indent=1), encoding="utf-8")
    draft.rename(path)
    return record


def registered(study: Study) -> dict:
    """Return the registration of a run if it says what the run would do now.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If the file was altered, or inputs, choices or plan have changed since.
    """
    path = study.run.path(REGISTRATION)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: the endpoint must be registered before test "
            "windows are edited; call helpers.causal.register(study)"
        )
    record = _read(path)
    plan = _plan(study)
    if record["digest"] != _digest(plan):
        differing = [k for k in plan if plan[k] != record["plan"].get(k)]
        raise ValueError(
            f"{path} registers another analysis than the run would do now: {differing} "
            "differ; no test window is edited. Call helpers.causal.register(study) to "
            "register the new one, which keeps a trace of the old"
        )
    return record


def registered_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Keep the rows of a table of `helpers.causal.ablation` that are registered."""
    names = ("track", "direction", "value", "outcome", "control")
    return table[np.logical_and.reduce([table[n] == ABLATION[n] for n in names])]


def registered_windows(study: Study, n: int) -> np.ndarray:
    """Return windows of the ``test`` split, spread over its blocks, if registered.

    Parameters
    ----------
    study : Study
        The run.
    n : int
        At most so many.

    Raises
    ------
    FileNotFoundError, ValueError
        As `registered` does.
    """
    registered(study)
    return spread_windows(study, "test", n)


def _plan(study: Study) -> dict:
    """Return what would be registered now."""
    windows = study.dataset.windows
    splits = windows.groupby("chrom")["split"].nunique()
    if (splits > 1).any():
        raise ValueError(
            "every chromosome must be in one split; these are in several: "
            f"{list(splits.index[splits > 1])}"
        )
    sweep = steering_sweep(study)
    doses = {
        method: {d: list(best_dose(sweep, method, d)) for d in DIRECTIONS}
        for method in (*LINEAR, RANDOM_TUNED, *EVERY_BLOCK)
    }
    plan = {
        "endpoint": ENDPOINT,
        "ablation": ABLATION,
        "block_and_dose": doses,
        "features": {
            str(layer): [int(j) for j in features.selected]
            for layer, features in context_features(study).items()
        },
        "windows": {split: _windows_digest(g) for split, g in windows.groupby("split")},
        "biosamples": list(study.design["biosample"]),
        "inputs": input_recipe(study),
    }
    return json.loads(json.dumps(plan))


def _windows_digest(windows: pd.DataFrame) -> dict:
    text = windows[["chrom", "start", "end"]].to_csv(index=False)
    return {
        "chromosomes": sorted(set(windows["chrom"])),
        "n": len(windows),
        "digest": hashlib.sha256(text.encode()).hexdigest()[:16],
    }


def _read(path: Path) -> dict:
    """Read a registration and check that its digest is that of its plan."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        plan, digest = record["plan"], record["digest"]
        record["written"], record["superseded"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a registration: {error!r}; {_ADVICE}"
        ) from None
    if _digest(plan) != digest:
        raise ValueError(
            f"{path} was altered after it was written: its plan has digest "
            f"{_digest(plan)}, the file states {digest}; {_ADVICE}"
        )
    return record


def _results(study: Study) -> list[str]:
    """Return the tables of effects on test windows that a run holds."""
    return [name for name in _RESULTS if study.run.path(f"{name}.parquet").exists()]


def _digest(plan: dict) -> str:
    text = json.dumps(plan, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
