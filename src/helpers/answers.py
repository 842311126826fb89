"""The answers of a run in three small tables, for the first page and the README.

Does the model know the difference between the contexts, does it use what it knows, and
can we read it? Each table has one row per claim or method, with its control beside it;
each answer is a sentence that follows from its table and from nothing else.
"""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from helpers.annotation import annotate
from helpers.calibration import claim_ladder, gather_evidence
from helpers.causal import headline_over_seeds, register, seed_spread, steering
from helpers.findings import null_shares
from helpers.stages import Study, score_context
from helpers.tissues import CONTEXTS

__all__ = ["Answer", "answers", "called_answer", "named_answer", "steered_answer"]

_COLUMNS = ["label", "kind", "value", "low", "high"]
_STEERED = {  # method of `helpers.causal.steering`: how a newcomer would call it
    "random features": ("as many random features", "control"),
    "SAE, output-filtered": ("features chosen by effect", "sae"),
    "DiffMean": ("mean difference of streams", "baseline"),
    "output rescale": ("rescaled output", "baseline"),
}
_NAMED = {
    "called": ("context features", "sae"),
    "other": ("other features", "baseline"),
    "matched": ("random places", "control"),
}


class Answer(NamedTuple):
    """An answer and what it rests on.

    Attributes
    ----------
    question : str
        What is asked, in few words.
    verdict : str
        The answer in one sentence.
    unit : str
        Of the values.
    table : pandas.DataFrame
        ``label``, ``kind`` (a color of `helpers.figures.COLORS`), ``value``, ``low``
        and ``high`` (95%; missing where a count has no interval).
    """

    question: str
    verdict: str
    unit: str
    table: pd.DataFrame


def answers(study: Study) -> list[Answer]:
    """Return what a run answers; stages that are missing are made.

    Returns
    -------
    list of Answer
        Does the model know, use, and show the difference between the contexts. The last
        is missing where no feature could be tested for motifs.
    """
    evidence = gather_evidence(study)
    ladder = claim_ladder(score_context(study), evidence)
    register(study)  # steering reads test windows
    trainings = seed_spread(headline_over_seeds(study)[0], study.seed)
    found = [
        called_answer(ladder, evidence.counts, evidence.placebo),
        steered_answer(steering(study), trainings, study.dataset.tissues[0].contrast),
    ]
    shares = null_shares(annotate(study))
    if ("motif", "called") in set(zip(shares["level"], shares["set"], strict=True)):
        found.append(named_answer(shares))
    return found


def called_answer(
    ladder: pd.DataFrame, counts: pd.DataFrame, placebo: pd.DataFrame
) -> Answer:
    """Say how many features differ, and how many still do after two objections.

    Parameters
    ----------
    ladder : pandas.DataFrame
        From `helpers.calibration.claim_ladder`.
    counts, placebo : pandas.DataFrame
        Of `helpers.calibration.Evidence`.
    """
    total, unknown = counts.sum(), (float("nan"), float("nan"))
    rows = [
        ("windows as replicates", "baseline", ladder["all"].iloc[0], *unknown),
        ("genomic blocks as replicates", "sae", total["E1"], *unknown),
        ("the same, one input held", "sae", total["E1, held"], *unknown),
    ]
    if not total["E1"]:
        table = _numeric(pd.DataFrame(rows, columns=_COLUMNS))
        verdict = "No: no feature differs with genomic blocks as replicates."
        return Answer("Does it know?", verdict, "features that differ", table)
    share = total["motif-driven"] / total["E1"]
    verdict = (
        f"{'Mostly what it is told' if share > 0.5 else 'Yes'}: of {total['E1']:,.0f} "
        f"features that differ, {share:.0%} follow the motif activity, an input that "
        "is the same all over the genome. "
        f"With it held, {total['E1, held']:,.0f} differ"
    )
    if "E3" in counts:
        false, real = total["placebo, held"], total["E3, held"]
        per_contrast = placebo.groupby("contrast")["n_called"].sum()
        spread = per_contrast.quantile([0.025, 0.975])
        rows += [
            ("between replicates: false", "control", false, *spread),
            ("biosamples as replicates", "sae", real, *unknown),
        ]
        verdict += (
            f"; between mere replicates {false:,.0f} do. "
            f"{real:,.0f} stand out from how biosamples vary."
        )
    else:
        verdict += "; without replicates nobody knows how many would by chance."
    table = _numeric(pd.DataFrame(rows, columns=_COLUMNS))
    return Answer("Does it know?", verdict, "features that differ", table)


def steered_answer(
    steered: pd.DataFrame,
    trainings: pd.DataFrame,
    contrast: tuple[str, str] = CONTEXTS,
) -> Answer:
    """Say how far context features move a prediction, and what moves it farther.

    Parameters
    ----------
    steered : pandas.DataFrame
        From `helpers.causal.steering`.
    trainings : pandas.DataFrame
        From `helpers.causal.seed_spread`; taken for the methods that it holds.
    contrast : tuple of str
        What the two contexts stand for.
    """
    pooled = steered[
        (steered["lineage"] == "pooled")
        & (steered["direction"] == "vitro-to-vivo")
        & (steered["tokens"] == "all")
    ].set_index("method")
    over_seeds = trainings.set_index("method")[["estimate", "low", "high"]]
    own = over_seeds.loc["SAE"]
    rows = [("context features", "sae", *own)]
    for method, named in _STEERED.items():
        if method in over_seeds.index:
            rows.append((*named, *over_seeds.loc[method]))
        elif method in pooled.index:
            rows.append((*named, *pooled.loc[method, ["gc2", "low", "high"]]))
    table = pd.DataFrame(rows, columns=_COLUMNS)
    table[["value", "low", "high"]] *= 100
    table = _numeric(table)
    value = table.set_index("label")["value"]
    first, last = ("cell line", "tissue") if contrast == CONTEXTS else contrast
    verdict = (
        f"{'In part' if own['low'] > 0 else 'Not for sure'}: the features that differ "
        f"most close {_percent(own['estimate'])} ({_number(100 * own['low'])} to "
        f"{_number(100 * own['high'])}) of the gap from {first} to {last}, "
        f"as many random ones {_percent(value['as many random features'] / 100)}. "
    )
    if "features chosen by effect" in value:
        chosen = _percent(value["features chosen by effect"] / 100)
        verdict += f"Chosen by effect, {chosen}. "
    simple = table.loc[table["kind"] == "baseline", "label"]
    verdict += "Without a dictionary: " + ", ".join(
        f"{_percent(value[label] / 100)} by the {label}" for label in simple
    )
    return Answer("Does it use it?", f"{verdict}.", "gap closed, %", table)


def named_answer(shares: pd.DataFrame) -> Answer:
    """Say how many context features have a motif, beside features that should not.

    Parameters
    ----------
    shares : pandas.DataFrame
        From `helpers.findings.null_shares`.
    """
    of = shares[shares["level"] == "motif"].set_index("set")
    rows = [
        (*_NAMED[name], *(100 * of.loc[name, ["share", "low", "high"]]))
        for name in _NAMED
        if name in of.index
    ]
    table = _numeric(pd.DataFrame(rows, columns=_COLUMNS))
    value = table.set_index("label")["value"]
    beside = " and ".join(
        f"{value[label]:.0f}% of {label}"
        for label, kind in zip(table["label"], table["kind"], strict=True)
        if kind != "sae"
    )
    verdict = (
        f"{'In part' if value['context features'] else 'No'}: "
        f"{value['context features']:.0f}% of context features fire where a known "
        f"motif is, more often than chance allows; so do {beside}. "
        "The others stay unnamed."
    )
    return Answer("Can we read it?", verdict, "with a motif, %", table)


def _numeric(table: pd.DataFrame) -> pd.DataFrame:
    return table.astype(dict.fromkeys(["value", "low", "high"], float))


def _percent(share: float) -> str:
    return f"{_number(100 * share)}%"


def _number(value: float) -> str:
    return f"{value:.1f}".replace("-", "\N{MINUS SIGN}")
