"""Several runs side by side, from the tables that each of them left.

Nothing is computed anew and no data are read: a run that is not complete is listed with
the page that would complete it, and left out.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from helpers.annotation import Annotation
from helpers.calibration import claim_ladder
from helpers.calibration._evidence import read_evidence
from helpers.causal import seed_spread
from helpers.fidelity import with_recovery
from helpers.findings import top_items
from helpers.runs import Run

__all__ = ["STEERING_METHODS", "Comparison", "compare_runs"]

STEERING_METHODS = ("SAE", "random features, tuned", "DiffMean")
_MADE_BY = {
    "dictionaries/card.parquet": "02_sae",
    "loss_recovered.parquet": "02_sae",
    "cds.parquet": "03_cds",
    "steering.parquet": "04_causal",
    "seeds_steering.parquet": "04_causal",
    "annotation.parquet": "05_annotation",
    "annotation_features.parquet": "05_annotation",
    "evidence_select": "results",
}


class Comparison(NamedTuple):
    """What several runs found.

    Attributes
    ----------
    runs : pandas.DataFrame
        Indexed by ``run`` (the part of the path that tells it from the others):
        ``pairs`` (names of the lineages), ``dictionaries`` (``own``, or of which run),
        ``model`` (digest).
    fidelity : pandas.DataFrame
        One row per ``run`` and ``layer``: ``fvu``, ``l0_mean``, ``dead_percent`` on
        ``test`` windows, ``recovered`` and ``recovered_hidden``, the shares of the
        prediction loss that the reconstruction recovers.
    ladder : pandas.DataFrame
        From `helpers.calibration.claim_ladder`: indexed by ``claim``, for each run the
        context features of all its blocks; missing where a run has no such claim.
    tested : pandas.Series
        Features tested, by run.
    steering : pandas.DataFrame
        One row per ``run``, ``lineage`` (and ``pooled`` over them) and ``method``:
        share of the gap from in vitro to in vivo that is closed, ``gc2``, with ``low``
        and ``high`` (95 %, genomic blocks resampled), of the run's own dictionaries.
    trainings : pandas.DataFrame
        From `helpers.causal.seed_spread`, with ``run`` in front: the same share of all
        lineages over several trainings of the dictionary, ``estimate`` with ``low`` and
        ``high``, which hold what another training would change.
    motifs : pandas.DataFrame
        From `helpers.findings.top_items`, with ``run`` in front: archetypes by the
        number of called features enriched for them, and ``n_matched``, the same count
        for random regions matched to those of each feature.
    missing : pandas.DataFrame
        One row per ``run`` that is not complete: ``absent`` tables and the ``pages``
        that make them.
    """

    runs: pd.DataFrame
    fidelity: pd.DataFrame
    ladder: pd.DataFrame
    tested: pd.Series
    steering: pd.DataFrame
    trainings: pd.DataFrame
    motifs: pd.DataFrame
    missing: pd.DataFrame


def compare_runs(folders: Sequence[str | Path]) -> Comparison:
    """Read what runs found.

    Parameters
    ----------
    folders : sequence of str or Path
        Run folders, in the order in which they are shown.

    Returns
    -------
    Comparison

    Raises
    ------
    ValueError
        If no folder is given, or one twice.
    FileNotFoundError
        If none of the runs is complete; all that is absent is listed.
    """
    paths = _named(folders)
    missing = pd.DataFrame(
        [(name, *found) for name, path in paths.items() if (found := _missing(path))],
        columns=["run", "absent", "pages"],
    )
    complete = {n: path for n, path in paths.items() if n not in set(missing["run"])}
    if not complete:
        told = "; ".join(f"{r.run} lacks {r.absent}" for r in missing.itertuples())
        raise FileNotFoundError(f"no run is complete: {told}")
    origins = {key: name for name, path in complete.items() for key in _own_keys(path)}
    runs, fidelity, ladders, tested = {}, {}, {}, {}
    steering, trainings, motifs = {}, {}, {}
    for name, path in complete.items():
        scores = pd.read_parquet(path / "cds.parquet")
        steering[name] = _steering(path)
        runs[name] = _about(path, steering[name], origins)
        fidelity[name] = _fidelity(path)
        evidence = read_evidence(path / "evidence_select")
        ladders[name] = claim_ladder(scores, evidence)["all"]
        tested[name] = int((scores["class"] != "untested").sum())
        trainings[name] = _trainings(path)
        motifs[name] = _motifs(path)
    # The order of the longest ladder: a run without replicates lacks the last claims.
    claims = max(ladders.values(), key=len).index
    return Comparison(
        pd.DataFrame(runs).T.rename_axis("run"),
        _joined(fidelity),
        pd.DataFrame(ladders).reindex(claims).rename_axis("claim"),
        pd.Series(tested, name="tested").rename_axis("run"),
        _joined(steering),
        _joined(trainings),
        _joined(motifs),
        missing,
    )


def _named(folders: Sequence[str | Path]) -> dict[str, Path]:
    """Name folders by what their paths do not share."""
    paths = [Path(folder).resolve() for folder in folders]
    if not paths or len(set(paths)) < len(paths):
        raise ValueError(f"runs must be folders, each of them once; got {folders}")
    shared = os.path.commonpath([path.parent for path in paths])
    return {path.relative_to(shared).as_posix(): path for path in paths}


def _joined(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(tables, names=["run"]).reset_index("run").reset_index(drop=True)


def _missing(folder: Path) -> tuple[str, str] | None:
    absent = [name for name in _MADE_BY if not (folder / name).exists()]
    pages = dict.fromkeys(_MADE_BY[name] for name in absent)
    return (", ".join(absent), ", ".join(pages)) if absent else None


def _blocks(folder: Path) -> list[int]:
    card = pd.read_parquet(folder / "dictionaries" / "card.parquet")
    return sorted(set(card.index.get_level_values("layer")))


def _own_keys(folder: Path) -> list[str]:
    run = Run(folder)
    return [run.key(f"sae/block{layer}") for layer in _blocks(folder)]


def _about(folder: Path, steering: pd.DataFrame, origins: dict[str, str]) -> dict:
    run = Run(folder)
    recipes = [run.recipe(f"sae/block{layer}") for layer in _blocks(folder)]
    # A dictionary that was taken over has the key of the one it is a copy of.
    taken = {r["sae"] for r in recipes if isinstance(r["sae"], str)}
    sources = sorted({origins.get(key, "another run") for key in taken})
    lineages = steering["lineage"].unique()
    return {
        "pairs": ", ".join(name for name in lineages if name != "pooled"),
        "dictionaries": f"of {', '.join(sources)}" if taken else "own",
        "model": ", ".join(sorted({recipe["model"] for recipe in recipes})),
    }


def _fidelity(folder: Path) -> pd.DataFrame:
    card = pd.read_parquet(folder / "dictionaries" / "card.parquet")
    card = card.xs("all", level="rows")[["fvu", "l0_mean", "dead_percent"]]
    sums = pd.read_parquet(folder / "loss_recovered.parquet")
    losses = with_recovery(sums, ("layer", "tokens"))
    shares = losses.pivot_table("recovered", "layer", "tokens")
    shares = shares.rename(columns={"all": "recovered", "hidden": "recovered_hidden"})
    return card.join(shares[["recovered", "recovered_hidden"]]).reset_index()


def _steering(folder: Path) -> pd.DataFrame:
    table = pd.read_parquet(folder / "steering.parquet")
    shown = (
        (table["direction"] == "vitro-to-vivo")
        & (table["tokens"] == "all")
        & table["method"].isin(STEERING_METHODS)
    )
    columns = ["lineage", "method", "layer", "alpha", "gc2", "low", "high"]
    return table.loc[shown, columns]


def _trainings(folder: Path) -> pd.DataFrame:
    table = pd.read_parquet(folder / "seeds_steering.parquet")
    return seed_spread(table, seed=int(table["training"].iloc[0]))


def _motifs(folder: Path) -> pd.DataFrame:
    features = pd.read_parquet(folder / "annotation_features.parquet")
    table = pd.read_parquet(folder / "annotation.parquet")
    called = top_items(Annotation(features, table, {}), "motif")
    # Random regions bear the number of the called feature they were matched to.
    matched = table[table["set"] == "matched"].assign(set="called")
    chance = top_items(Annotation(features, matched, {}), "motif")
    chance = chance.rename(columns={"n_features": "n_matched"})
    keys = ["group", "item"]
    found = called.merge(chance[[*keys, "n_matched"]], on=keys, how="left")
    return found.fillna({"n_matched": 0}).astype({"n_matched": int})
