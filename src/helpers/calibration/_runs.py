"""Passes and control models of a run, made once and kept in its folder.

`helpers.calibration` is the public face of this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from helpers import truth
from helpers.confounders._passes import PassInput, PassSummary, summarize_passes
from helpers.epibert import EpiBERT
from helpers.runs import Run, code_digest, file_stamps
from helpers.stages import Study, called_features, train_saes
from helpers.tissues import CONTEXTS, Tissue
from helpers.windows import WindowDataset

__all__ = [
    "FactorContributions",
    "attribute_calls",
    "factor_contributions",
    "inputs_of",
    "pass_summaries",
    "random_weights",
    "read_passes",
    "run_passes",
    "samples_of",
    "stream_means",
    "with_replicates",
]

_CODE = ("confounders._passes", "epibert", "sae", "windows")
_BATCH_WINDOWS = 64


def samples_of(dataset: WindowDataset) -> pd.DataFrame:
    """Return the biosamples of a data set as a design with replicates."""
    return dataset.biosamples.rename(columns={"name": "biosample"})


def with_replicates(study: Study) -> WindowDataset:
    """Return the data of a study with the replicates of its biosamples.

    Raises
    ------
    ValueError
        If the tissue files name none.
    """
    tissues = study.dataset.tissues
    if not any(tissue.replicates for tissue in tissues):
        raise ValueError(
            f"{tissues[0].path}: no replicates are named there or in the other tissue "
            "files; E3 and placebo contrasts need them"
        )
    return WindowDataset(tissues, window_bp=study.dataset.window_bp, replicates=True)


def pass_summaries(
    study: Study,
    name: str,
    dataset: WindowDataset,
    windows: Sequence[int] | np.ndarray,
    passes: Sequence[PassInput],
    *,
    layers: Sequence[int] | None = None,
    sites: bool = False,
) -> dict[int, PassSummary]:
    """Return window summaries of passes through the model and dictionaries of a study.

    Parameters
    ----------
    study : Study
        The run; dictionaries are made if absent.
    name : str
        Name of the artefact, the folder ``passes/<name>``.
    dataset : WindowDataset
        Inputs: the study's, with or without replicates, or those of another world.
    windows : sequence of int
        Windows to run.
    passes : sequence of PassInput
        What each pass sees. Equal passes run once.
    layers : sequence of int, optional
        Blocks; all of the study if absent.
    sites : bool, default False
        Weigh tokens by the sites of the planted factors, for `factor_contributions`;
        simulated data.

    Returns
    -------
    dict of int to PassSummary
        One for each layer; first axis as `passes`.
    """
    chosen = list(study.blocks if layers is None else layers)
    folder = run_passes(
        study, name, dataset, windows, passes, layers=chosen, sites=sites
    )
    return {layer: read_passes(folder, passes, layer) for layer in chosen}


def run_passes(
    study: Study,
    name: str,
    dataset: WindowDataset,
    windows: Sequence[int] | np.ndarray,
    passes: Sequence[PassInput],
    *,
    layers: Sequence[int],
    sites: bool = False,
) -> Path:
    """Return the folder behind `pass_summaries`, made if absent."""
    saes = {layer: train_saes(study)[layer] for layer in layers}
    distinct = list(dict.fromkeys(passes))
    recipe = {
        "data": inputs_of(dataset.tissues),
        "windows": list(map(int, windows)),
        "passes": [[p.track, list(p.motif_activity), p.gain] for p in distinct],
        "sites": sites,
        "saes": [study.run.key(f"sae/block{layer}") for layer in layers],
        "model": study.model_hash,
        "code": code_digest(*_CODE, "truth"),
    }

    def build(partial: Path) -> None:
        weights = None
        if sites:
            regressors = _regressors(study, windows)
            weights = regressors.reshape(len(windows), -1, regressors.shape[1])
        partial.mkdir()
        found = summarize_passes(
            study.model,
            saes,
            dataset,
            windows,
            distinct,
            weights=weights,
            folder=partial,
        )
        for layer, summary in found.items():
            summary.mean_acts.flush()
            np.save(partial / f"squares_{layer}.npy", summary.squares)
            np.save(partial / f"weighted_{layer}.npy", summary.weighted)

    return study.run.artefact(f"passes/{name}", recipe, build)


def read_passes(folder: Path, passes: Sequence[PassInput], layer: int) -> PassSummary:
    """Return one layer of a folder of `run_passes`, in the order of its passes."""
    distinct = list(dict.fromkeys(passes))
    position = [distinct.index(given) for given in passes]
    found = {}
    for name in PassSummary._fields:
        values = np.load(folder / f"{name}_{layer}.npy", mmap_mode="r")
        found[name] = values[position]  # in memory, one layer at a time
    return PassSummary(**found)


def inputs_of(tissues: Sequence[Tissue]) -> dict:
    """Identify all input files of some tissues, replicates included, for a recipe."""
    first = tissues[0]
    samples = [sample for tissue in tissues for sample in tissue.biosamples]
    paths = [first.genome, first.windows, first.motifs]
    paths += [p for s in samples for p in (s.signal, s.motif_activity)]
    scales = [[s.name, s.scale, s.signal_kind] for s in samples]
    return {"files": file_stamps(paths), "biosamples": scales}


class FactorContributions(NamedTuple):
    """How much the sites of each planted factor add to the mean of a feature.

    Attributes
    ----------
    factors : list of str
        ``""`` for what no site explains, then every planted factor.
    parts : numpy.ndarray, shape (n_passes, n_factors + 1, d_sae)
        They sum over factors to the mean activation of the pass.
    """

    factors: list[str]
    parts: np.ndarray


def factor_contributions(
    study: Study, windows: Sequence[int] | np.ndarray, summary: PassSummary
) -> FactorContributions:
    """Regress feature activations on the sites of all planted factors at once.

    Least squares over all tokens shares out what lies on tokens with several motifs;
    what no site explains stays with the intercept, a shift of all tokens alike.

    Parameters
    ----------
    study : Study
        A run on simulated data.
    windows : sequence of int
        Windows of the passes.
    summary : PassSummary
        From `pass_summaries` with ``sites=True``.

    Returns
    -------
    FactorContributions

    Raises
    ------
    ValueError
        If the summary was made without sites.
    """
    regressors = _regressors(study, windows)
    if summary.weighted.shape[1] != regressors.shape[1]:
        raise ValueError(
            "summary must come from pass_summaries(..., sites=True); it holds "
            f"{summary.weighted.shape[1]} weights, expected {regressors.shape[1]}"
        )
    gram = regressors.T.astype(float) @ regressors
    shares = regressors.mean(axis=0, dtype=float)[:, None]
    names = list(truth.read_factors(study)["name"])
    return FactorContributions(
        ["", *names], np.linalg.solve(gram, summary.weighted) * shares
    )


def attribute_calls(
    study: Study,
    contributions: FactorContributions,
    samples: pd.DataFrame,
    table: pd.DataFrame,
) -> pd.DataFrame:
    """Name what carries the difference of every called feature.

    Parameters
    ----------
    study : Study
        A run on simulated data.
    contributions : FactorContributions
        Of passes in the order of `samples`.
    samples : pandas.DataFrame
        Pairs and replicates; means over replicates are compared.
    table : pandas.DataFrame
        From `replicate_divergence` or `context_divergence`, indexed by feature.

    Returns
    -------
    pandas.DataFrame
        One row per called feature: ``feature``, ``class``, ``factor`` whose sites
        contribute most to the difference, in its direction, in the lineages behind the
        class; its ``role``, ``shift`` where no factor's sites do but all tokens alike;
        and the ``share`` of the difference.
    """
    roles = truth.read_factors(study).set_index("name")["role"].to_dict() | {
        "": "shift"
    }
    vivo = (samples["context"] == CONTEXTS[1]).to_numpy()
    change = {}
    for lineage in study.lineages:
        own = (samples["lineage"] == lineage).to_numpy()
        high, low = contributions.parts[own & vivo], contributions.parts[own & ~vivo]
        change[lineage] = high.mean(axis=0) - low.mean(axis=0)
    rows = []
    for feature, row in called_features(table).iterrows():
        signed = [
            np.sign(row[f"delta_{lineage}"]) * change[lineage][:, feature]
            for lineage in row["lineages"].split(",")
        ]
        carried = np.mean(signed, axis=0)
        best = int(np.argmax(carried))
        factor = contributions.factors[best]
        rows.append(
            {
                "feature": feature,
                "class": row["class"],
                "factor": factor,
                "role": roles[factor],
                "share": carried[best] / carried.sum(),
            }
        )
    return pd.DataFrame(rows, columns=["feature", "class", "factor", "role", "share"])


def _regressors(study: Study, windows: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return a constant and the sites of every factor, (n_tokens, n_factors + 1)."""
    sites = truth.factor_sites(study, np.asarray(windows)).to_numpy(np.float32)
    return np.column_stack([np.ones(len(sites), np.float32), sites])


def random_weights(study: Study, *, layers: Sequence[int] | None = None) -> Study:
    """Return the study with a model that was never trained, in a folder of its own.

    Every later stage runs as for the real model: extraction, dictionaries, scores.

    Parameters
    ----------
    study : Study
        The run.
    layers : sequence of int, optional
        Blocks to study; those of the run if absent.
    """
    model = EpiBERT(study.model.config, random_state=study.seed).eval()
    return replace(
        study,
        run=Run(study.run.folder / "random_weights"),
        streams=None,  # what other runs hold is of the trained model
        saes=None,
        model=model.to(study.device),
        blocks=list(study.blocks if layers is None else layers),
    )


def stream_means(study: Study) -> dict[int, np.ndarray]:
    """Return the mean residual stream of every window, for curves without dictionary.

    Returns
    -------
    dict of int to numpy.ndarray, float32, shape (n_biosamples, n_windows, d_model)
        By layer.
    """
    store = study.store
    found = {}
    for layer in study.blocks:
        source = store.layer(layer)
        n_biosamples, n_windows, _, d_model = source.shape
        found[layer] = np.empty((n_biosamples, n_windows, d_model), np.float32)
        for row in range(n_biosamples):
            for first in range(0, n_windows, _BATCH_WINDOWS):
                part = slice(first, first + _BATCH_WINDOWS)
                values = source[row, part].astype(np.float32)
                found[layer][row, part] = values.mean(axis=1)
    return found
