"""The published numbers beside ours, one row per claim.

The papers (two workshop posters of 2026) could be read in abstract only, so for most
numbers the definition behind them is unknown; each row says whether ours is the same
quantity. Nothing here is typed: every value of ours is read from the tables of the run.
"""

from __future__ import annotations

import pandas as pd

from helpers.annotation import annotate
from helpers.calibration import claim_ladder, gather_evidence
from helpers.causal import (
    ablation,
    headline_over_seeds,
    register,
    registered_rows,
    seed_spread,
    steering,
)
from helpers.findings import PAPER_CLAIM, claim_table
from helpers.masked import masked_scores
from helpers.stages import Study, late_early_ratio, score_context
from helpers.truth import score_recovery

__all__ = ["claim_ledger", "headline"]

_COLUMNS = ["claim", "published", "here", "interval", "same quantity?", "verdict"]


def _interval(low: float, high: float, spec: str = ".2f") -> str:
    return f"{low:{spec}} to {high:{spec}}"


def claim_ledger(study: Study) -> pd.DataFrame:
    """Return the published claims beside the results of a run.

    Parameters
    ----------
    study : Study
        The run; stages that are missing are made.

    Returns
    -------
    pandas.DataFrame
        Text columns ``claim``, ``published``, ``here``, ``interval`` (95%, genomic
        blocks resampled), ``same quantity?`` and ``verdict``.
    """
    register(study)  # what is there already stays
    rows = [_layer_row(study), _evidence_row(study)]
    rows += [*_ablation_rows(study), *_steering_rows(study)]
    return pd.DataFrame([*rows, *_motif_rows(study)], columns=_COLUMNS)


def _layer_row(study: Study) -> tuple:
    ratio = late_early_ratio(study).iloc[0]
    rises = ratio["low"] > 1
    return (
        "context features, first block to last",
        "57 to 215, 3.8-fold",
        f"{ratio['early']:.0f} to {ratio['late']:.0f}, {ratio['ratio']:.2f}-fold",
        _interval(ratio["low"], ratio["high"]),
        "alike: Bonferroni counts, but over genomic blocks and in another model",
        "rises with depth" if rises else "no rise with depth",
    )


def _evidence_row(study: Study) -> tuple:
    """Context features that hold: those of the naive score, then of the strictest."""
    ladder = claim_ladder(score_context(study), gather_evidence(study))["all"]
    naive, strictest = ladder.iloc[0], ladder.iloc[-1]
    return (
        "context features, by the naive t and by the strictest rule",
        "all by the naive t",
        f"{naive:.0f}; {strictest:.0f} by the rule '{ladder.index[-1].lstrip('. ')}'",
        "",
        "alike for the first number",
        f"{100 * strictest / naive:.0f}% hold" if strictest else "not one holds",
    )


def _ablation_rows(study: Study) -> list[tuple]:
    rows = []
    for layer, group in registered_rows(ablation(study)).groupby("layer"):
        larger = (group["p"] <= 0.05) & (group["effect"].abs() > group["random"].abs())
        effects = ", ".join(
            f"{r.lineage} {r.effect:+.2f} (random {r.random:+.2f}, d_z {r.d_z:+.1f}, "
            f"p = {r.p:.3f})"
            for r in group.itertuples()
        )
        intervals = "; ".join(
            _interval(r.low, r.high, "+.2f") for r in group.itertuples()
        )
        verdict = f"larger than random in {larger.sum()} of {len(group)} lineages"
        rows.append(
            (
                f"ablation in block {layer}, log1p signal of tissue-only tokens",
                "large effect",
                effects,
                intervals,
                "unknown: outcome, value and control of the published effect",
                verdict if larger.any() else "not larger than random in any lineage",
            )
        )
    return rows


def _steering_rows(study: Study) -> list[tuple]:
    table = steering(study)
    pooled = table[
        (table["lineage"] == "pooled")
        & (table["direction"] == "vitro-to-vivo")
        & (table["tokens"] == "all")
    ].set_index("method")
    sae = pooled.loc["SAE"]
    trainings = seed_spread(headline_over_seeds(study)[0], study.seed)
    trainings = trainings.set_index("method").loc["SAE"]
    rows = [
        (
            "steering in vitro to in vivo, share of the gap closed",
            "11.2%",
            f"{100 * trainings['estimate']:.1f}%, mean of trainings with "
            f"{trainings['of_trainings']}% (the first as a length "
            f"{100 * sae['gc_norm']:.1f}%)",
            _interval(100 * trainings["low"], 100 * trainings["high"], ".1f"),
            "unknown: squared or length, held out or not",
            "closes part of the gap" if trainings["low"] > 0 else "closes nothing sure",
        )
    ]
    for method in ("random features, tuned", "random features"):
        row = pooled.loc[method]
        ratio = f"no ratio, since random closes {100 * row['gc2']:.1f}%"
        if pd.notna(row["ratio"]):
            spread = _interval(row["ratio_low"], row["ratio_high"], ".1f")
            ratio = f"{row['ratio']:.1f}-fold ({spread})"
        rows.append(
            (
                f"steering against {method}",
                "4.5-fold",
                f"{ratio}; difference {100 * row['difference']:.1f} points",
                _interval(
                    100 * row["difference_low"], 100 * row["difference_high"], ".1f"
                )
                + " points",
                "unknown: how random was drawn",
                "beats random" if row["difference_low"] > 0 else "does not beat random",
            )
        )
    for method in ("DiffMean", "output rescale"):
        row = pooled.loc[method]
        rows.append(
            (
                f"steering against {method}",
                "not reported",
                f"{100 * row['gc2']:.1f}% closed by {method}",
                _interval(100 * row["low"], 100 * row["high"], ".1f"),
                "no published counterpart",
                "the SAE is better"
                if row["difference_low"] > 0
                else "the SAE is not better",
            )
        )
    return rows


def _motif_rows(study: Study) -> list[tuple]:
    annotation = annotate(study)
    found = claim_table(study, annotation, PAPER_CLAIM)
    if found.empty:
        named = "motifs of blood, liver and lymph tissue features"
        here = f"these pairs are {', '.join(study.lineages)}"
        return [(named, "enriched", here, "", "no: other tissues", "no comparison")]
    blocks = ", ".join(map(str, sorted(set(annotation.features["layer"]))))
    rows = []
    for (lineage, motif), group in found.groupby(["lineage", "motif"], sort=False):
        vivo = group[group["context"] == "in_vivo"].iloc[0]
        planted = vivo["planted"] or "not planted"
        share = (
            f"{vivo['n_enriched']} of {vivo['n_features']} features higher in vivo; in "
            f"other lineages {100 * vivo['elsewhere']:.0f}%"
        )
        rows.append(
            (
                f"{motif} in {lineage} tissue features, blocks {blocks}",
                "enriched",
                share,
                "",
                f"alike; truth here: {planted}" if study.truth else "alike",
                _motif_verdict(vivo),
            )
        )
    return rows


def _motif_verdict(row: pd.Series) -> str:
    if not row["n_enriched"]:
        return "not found"
    more = row["p_value"] <= 0.05
    return "found, more than elsewhere" if more else "not more than in other lineages"


def headline(study: Study) -> dict[str, str]:
    """Return the run's main numbers as text, for prose and README.

    Returns
    -------
    dict of str to str
        Masked-token correlation of the model and its rivals, share of planted context
        factors found (simulated data only).
    """
    mean = masked_scores(study).groupby(["tokens", "method"], sort=False)["r"].mean()
    lines = {f"r, {t} hidden tokens, {m}": f"{r:.3f}" for (t, m), r in mean.items()}
    if study.truth is not None:
        recovery = score_recovery(study, score_context(study))
        planted = recovery[recovery["higher_in"] != ""]
        decoys = recovery[recovery["higher_in"] == ""]
        found = f"{planted['found'].sum()} of {len(planted)}"
        lines["planted context factors found"] = found
        wrong = f"{decoys['found'].sum()} of {len(decoys)}"
        lines["factors without context effect called"] = wrong
    return lines
