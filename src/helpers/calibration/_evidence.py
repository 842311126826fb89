"""How much of what a study calls survives one objection after the other.

`helpers.calibration` is the public face of this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from helpers.calibration._placebo import placebo_contrasts, placebo_fdr
from helpers.calibration._runs import (
    attribute_calls,
    factor_contributions,
    read_passes,
    run_passes,
    samples_of,
    with_replicates,
)
from helpers.cds import context_divergence
from helpers.cds._replicates import replicate_divergence, study_rows
from helpers.confounders._input_swap import held_passes, input_swap, swap_passes
from helpers.confounders._passes import PassInput, PassSummary
from helpers.confounders._track_height import partial_divergence
from helpers.runs import code_digest
from helpers.stages import Study, called_features, layer_counts, score_context

__all__ = ["Evidence", "claim_ladder", "gather_evidence", "read_evidence"]

_ALPHA = 0.05

_SWAP = ["total", "track", "motif", "interaction"]
_HELD = ["class", "lineages", "cds", "p", "p_bonferroni", "d_z", "d_z_low", "d_z_high"]
_E3 = ["class", "lineages", "t", "p", "p_bonferroni"]


class Evidence(NamedTuple):
    """What a study can say of its features, one objection after the other.

    Attributes
    ----------
    counts : pandas.DataFrame
        Indexed by ``layer``: features ``tested``; called by the track contrast of the
        pairs (``E1``), how many of these are driven by the motif activity
        (``motif-driven``) and its share of their effect (``motif_share``); called
        with the motif activity held fixed (``E1, held``), and at equal signal of the
        window besides (``partial, held``; shared effect, Bonferroni). With replicates,
        also those called on average by the rule of E1 between replicates
        (``placebo, held``), those of a placebo rate of at most 5% (``q_placebo``),
        and those called against the variation between biosamples, as they are and
        with the motif activity held (``E3``, ``E3, held``).
    features : pandas.DataFrame
        One row per ``layer`` and ``feature``, in the order of
        `helpers.stages.score_context`: its ``class`` there (E1); from `input_swap`
        ``delta_`` of total, track, motif and interaction, ``motif_share`` and
        ``driver``; from `context_divergence` with the motif activity held
        ``class_held``, ``lineages_held``, ``cds_held``, ``p_held``,
        ``p_bonferroni_held``, ``d_z_held`` with ``_low`` and ``_high``, and from
        `partial_divergence` ``delta_partial_held``, ``p_partial_held``; with
        replicates the placebo rate ``q_placebo`` of the latter, and from
        `replicate_divergence` ``class_e3``, ``lineages_e3``, ``t_e3``, ``p_e3``,
        ``p_bonferroni_e3``, the same with the motif activity held under ``e3_held``,
        and ``delta_<lineage>_e3_held``.
    placebo : pandas.DataFrame
        ``layer``, ``contrast``, ``n_called`` between replicates with the motif
        activity held; empty without replicates.
    carried : pandas.DataFrame
        For simulated data with replicates, `attribute_calls` of E3 with the motif
        activity held, with column ``layer``; else empty.
    """

    counts: pd.DataFrame
    features: pd.DataFrame
    placebo: pd.DataFrame
    carried: pd.DataFrame


def gather_evidence(
    study: Study, *, split: str = "select", n_contrasts: int = 20
) -> Evidence:
    """Run pairs and replicates with chosen inputs and score them in every way.

    Made once and kept in the run; without replicates in the tissue files, placebo
    contrasts and E3 are left out.

    Parameters
    ----------
    study : Study
        The run.
    split : str, default "select"
        Windows to score on.
    n_contrasts : int, default 20
        Placebo contrasts.

    Returns
    -------
    Evidence
    """
    replicated = any(tissue.replicates for tissue in study.dataset.tissues)
    dataset = with_replicates(study) if replicated else study.dataset
    samples, windows = samples_of(dataset), dataset.windows_of(split)
    scores = score_context(study, split)
    # The pairs come first, so that their rows are the same with replicates.
    own = [PassInput(row, (row,)) for row in range(len(samples))]
    swaps = swap_passes(samples.iloc[study_rows(samples)])
    passes = [*own, *held_passes(samples), *swaps]
    name = f"evidence_{split}"
    made = run_passes(
        study,
        name,
        dataset,
        windows,
        passes,
        layers=study.blocks,
        sites=study.truth is not None and replicated,
    )

    def build(partial: Path) -> None:
        pairs = [study.dataset.track(windows, b) for b in range(len(study.design))]
        log_signal = np.log(np.stack([track.sum(axis=1) for track in pairs]) + 1)
        found = [
            _of_layer(
                study,
                scores[scores["layer"] == layer].set_index("feature"),
                read_passes(made, passes, layer),
                samples,
                windows,
                log_signal,
                n_contrasts,
            )
            for layer in study.blocks
        ]
        partial.mkdir()
        for field in Evidence._fields:
            parts = [
                getattr(part, field).assign(layer=layer)
                for layer, part in zip(study.blocks, found, strict=True)
            ]
            table = pd.concat(parts, ignore_index=True)
            table = table[["layer", *table.columns.drop("layer")]]
            table.to_parquet(partial / f"{field}.parquet")

    table = "cds.parquet" if split == "select" else f"cds_{split}.parquet"
    recipe = {
        "passes": study.run.key(f"passes/{name}"),
        "scores": study.run.key(table),
        "n_contrasts": n_contrasts,
        "seed": study.seed,
        "code": code_digest(
            "calibration._evidence", "cds", "pairing", "blockstats", "truth"
        ),
    }
    folder = study.run.artefact(name, recipe, build)
    return read_evidence(folder)


def read_evidence(folder: Path) -> Evidence:
    """Read the artefact of `gather_evidence`."""
    tables = [
        pd.read_parquet(folder / f"{field}.parquet") for field in Evidence._fields
    ]
    return Evidence(tables[0].set_index("layer"), *tables[1:])


def _of_layer(
    study: Study,
    scores: pd.DataFrame,
    summary: PassSummary,
    samples: pd.DataFrame,
    windows: np.ndarray,
    log_signal: np.ndarray,
    n_contrasts: int,
) -> Evidence:
    """Score one layer; passes as `gather_evidence` orders them."""
    n, rows = len(samples), study_rows(samples)
    acts, held, swapped = np.split(summary.mean_acts, [n, 2 * n])
    design = samples.iloc[rows]
    blocks = study.dataset.windows["block"].to_numpy()[windows]
    swap = input_swap(swapped, design, blocks)
    tracks = context_divergence(held[rows], design, blocks)
    partial = partial_divergence(held[rows], design, blocks, log_signal[rows])
    called = swap.loc[called_features(scores).index]
    size = called[["delta_motif", "delta_track"]].abs().sum()
    counts = {
        "tested": int((scores["class"] != "untested").sum()),
        "E1": len(called),
        "motif-driven": int((called["driver"] == "motif").sum()),
        "motif_share": size["delta_motif"] / size.sum(),
        "E1, held": len(called_features(tracks)),
        "partial, held": int(partial["called"].sum()),
    }
    features = scores[["class"]].join(
        swap[[*(f"delta_{x}" for x in _SWAP), "motif_share", "driver"]]
    )
    features = features.join(tracks[_HELD].add_suffix("_held"))
    features = features.rename(
        columns={f"d_z_{end}_held": f"d_z_held_{end}" for end in ("low", "high")}
    )
    features = features.join(
        partial[["delta_partial", "p_partial"]].add_suffix("_held")
    )
    placebo, carried = pd.DataFrame(), pd.DataFrame()
    if len(samples) > len(rows):
        own = replicate_divergence(acts, samples, blocks)
        replicates = replicate_divergence(held, samples, blocks)
        decoys = _placebo_scores(held, samples, blocks, n_contrasts, study.seed)
        placebo = pd.DataFrame(
            {
                "contrast": range(len(decoys)),
                "n_called": [len(called_features(table)) for table in decoys],
            }
        )
        lineages = [f"delta_{lineage}" for lineage in study.lineages]
        features["q_placebo"] = placebo_fdr(
            tracks["cds"].to_numpy(), [table["cds"].to_numpy() for table in decoys]
        )
        features = features.join(own[_E3].add_suffix("_e3")).join(
            replicates[[*_E3, *lineages]].add_suffix("_e3_held")
        )
        counts |= {
            "placebo, held": placebo["n_called"].mean(),
            "q_placebo": int((features["q_placebo"] <= _ALPHA).sum()),
            "E3": len(called_features(own)),
            "E3, held": len(called_features(replicates)),
        }
        if study.truth is not None:
            part = PassSummary(*(values[n : 2 * n] for values in summary))
            parts = factor_contributions(study, windows, part)
            carried = attribute_calls(study, parts, samples, replicates)
    return Evidence(pd.DataFrame([counts]), features.reset_index(), placebo, carried)


def _placebo_scores(
    held: np.ndarray,
    samples: pd.DataFrame,
    blocks: Sequence[str],
    n_contrasts: int,
    seed: int,
) -> list[pd.DataFrame]:
    """Score replicates against each other as the study scores its contexts."""
    contrasts = placebo_contrasts(samples, n_contrasts=n_contrasts, random_state=seed)
    return [context_divergence(held[c.rows], c.design, blocks) for c in contrasts]


def claim_ladder(scores: pd.DataFrame, evidence: Evidence) -> pd.DataFrame:
    """Count what would be claimed of a study, each row with one objection more.

    Parameters
    ----------
    scores : pandas.DataFrame
        From `helpers.stages.score_context`.
    evidence : Evidence
        From `gather_evidence`, of the same run and windows.

    Returns
    -------
    pandas.DataFrame
        Indexed by ``claim``, a column for each layer and their sum in ``all``;
        ``replicates`` says what is counted as independent. Rows that need replicates
        of biosamples are missing where there are none.

    Raises
    ------
    ValueError
        If scores and evidence are not of the same features.
    """
    keys = ["layer", "feature"]
    if not scores[keys].reset_index(drop=True).equals(evidence.features[keys]):
        raise ValueError("scores and evidence must be of the same layers and features")
    first, counts = layer_counts(scores), evidence.counts
    rows = {"naive t, Bonferroni": ("windows", first["naive"])}
    rows["paired over blocks, Bonferroni"] = "genomic blocks", first["shared"]
    if "max_t" in first:
        rows["paired over blocks, sign-flip max-T"] = "genomic blocks", first["max_t"]
    rows |= {
        "E1: in any class": ("genomic blocks", counts["E1"]),
        "E1, not driven by the motif activity": (
            "genomic blocks",
            counts["E1"] - counts["motif-driven"],
        ),
        "E1, motif activity held": ("genomic blocks", counts["E1, held"]),
        "... at equal signal too": ("genomic blocks", counts["partial, held"]),
    }
    if "E3" in counts:
        rows |= {
            "placebo: E1 held, between replicates": (
                "genomic blocks",
                counts["placebo, held"],
            ),
            "E1 held, placebo rate at most 5%": ("placebo", counts["q_placebo"]),
            "E3, motif activity held": ("biosamples", counts["E3, held"]),
        }
    table = pd.DataFrame({name: count for name, (_, count) in rows.items()}).T
    table["all"] = table.sum(axis=1)
    table.insert(0, "replicates", [unit for unit, _ in rows.values()])
    return table.rename_axis("claim")
