"""Ask whether predictions depend on the features that tell contexts apart.

`ablation` edits the context features of each block and compares what happens with
matched random features; `steering` asks how much of the gap between the contexts a
direction closes, beside simpler methods. Edits restart from stored streams, keep the
SAE's error, and share forward passes. Features come from ``select`` windows, doses from
``tune``, every number reported from ``test``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import pandas as pd
import torch
from tqdm.std import tqdm

from helpers._selection import (
    CLASSES,
    ContextFeatures,
    batches,
    blocks_of,
    context_features,
    held_out_features,
    matched_sets,
    read_streams,
    spread_windows,
    token_classes,
)
from helpers._steering import METHODS, best_dose, steering, steering_sweep
from helpers.blockstats import adjust_p_values, block_bootstrap
from helpers.interventions import (
    ablation_deltas,
    effect_size,
    effects,
)
from helpers.runs import code_digest
from helpers.stages import Study, score_context, train_saes
from helpers.truth import factor_sites, match_features

__all__ = [
    "CLASSES",
    "METHODS",
    "OUTCOMES",
    "ContextFeatures",
    "ablation",
    "ablation_random",
    "best_dose",
    "context_features",
    "factor_specificity",
    "held_out_features",
    "spread_windows",
    "steering",
    "steering_sweep",
    "token_classes",
]

N_WINDOWS = 24  # of the test split, spread over its genomic blocks
# Random sets per value and control; zero, and features that differ in more than their
# significance, are the second look.
N_RANDOM = {
    "resample": {"any other": 199, "not significant": 49},
    "zero": {"any other": 49},
}
OUTCOMES = ("vivo-up", "vitro-up", "invariant", "loss")
_DIRECTIONS = {"vivo-to-vitro": (1, 0), "vitro-to-vivo": (0, 1)}  # edited, reference
_LEVEL = [0.025, 0.975]
_MIN_WINDOWS = 3  # with a token of the class, for an effect to be given
N_SITE_WINDOWS = 64  # test windows on which planted factors are looked at
_ACTIVE = 0.5  # activity from which a planted factor is at work
_NEAR_TOKENS = 2  # tokens this near to a site of the factor are not elsewhere

_CODE = ("causal", "_selection", "interventions", "outcomes", "blockstats")

# Maps a slice of windows to the outcome of a forward pass over them.
Readout = Callable[[slice], Callable[[torch.Tensor], torch.Tensor]]


def ablation(study: Study) -> pd.DataFrame:
    """Replace the context features of every block and measure what changes.

    The selected features of a block (`context_features`) take the activations they have
    on the same window in the other context (``resample``), or none (``zero``), on 24
    test windows, and so do random sets matched on density and written norm. An effect
    is the mean over windows of edited minus unedited.

    Parameters
    ----------
    study : Study
        The run.

    Returns
    -------
    pandas.DataFrame
        One row per ``layer``, ``lineage``, ``direction`` (``vivo-to-vitro``: the in
        vivo input is edited), ``value``, ``outcome`` and ``control``, the pool of the
        random sets. Outcomes are the mean log1p prediction at tokens of a class, and
        the Poisson ``loss`` against the measured track of the edited input. ``effect``
        with its 95 % interval (2,000 draws of genomic blocks), ``random`` the mean
        effect of random sets, ``difference`` the paired difference with its interval;
        ``d_z`` (paired over windows), ``z``, ``p`` and ``q_bh`` (over the tests of a
        value and control); ``per_norm`` and ``p_per_norm``, the effect per length of
        changed stream; ``norm_ratio``, that length over the random sets';
        ``n_features``, ``n_windows``, and how well random sets match: ``widened``
        (deciles), ``density_p``, ``norm_p`` (Kolmogorov-Smirnov). Rows of fewer than 3
        windows with a token of the class are left out.

    Raises
    ------
    ValueError
        If no feature is significant in any block.
    """
    recipe = _recipe(study)

    def build() -> pd.DataFrame:
        table, random = _ablate(study)
        study.run.table("ablation_random.parquet", recipe, lambda: random)
        return table

    return study.run.table("ablation.parquet", recipe, build)


def ablation_random(study: Study) -> pd.DataFrame:
    """Return the mean effect of every random set of `ablation`.

    Returns
    -------
    pandas.DataFrame
        One row per random set: ``layer``, ``lineage``, ``direction``, ``value``,
        ``outcome``, ``control``, ``effect``, ``per_norm``.
    """
    recipe = _recipe(study)
    ablation(study)
    return study.run.table("ablation_random.parquet", recipe, lambda: _ablate(study)[1])


def _recipe(study: Study) -> dict:
    score_context(study)  # makes the artefacts named here
    return {
        "activations": study.run.key("activations.zarr"),
        "saes": [study.run.key(f"sae/block{b}") for b in study.blocks],
        "cds": study.run.key("cds.parquet"),
        "windows": N_WINDOWS,
        "random": N_RANDOM,
        "seed": study.seed,
        "code": code_digest(*_CODE),
    }


def _ablate(study: Study) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the tables of `ablation` and `ablation_random`."""
    windows = spread_windows(study, "test", N_WINDOWS)
    blocks = blocks_of(study, windows)
    classes = token_classes(study, windows)
    chosen = context_features(study)
    rows, random = [], []
    conditions = list(product(chosen, study.lineages, _DIRECTIONS, N_RANDOM))
    for layer, lineage, direction, value in tqdm(conditions, desc="ablation"):
        edited, other = (study.pair(lineage)[i] for i in _DIRECTIONS[direction])
        features = chosen[layer]
        matched = {
            control: matched_sets(features, control, n, study.seed)
            for control, n in N_RANDOM[value].items()
            if control in features.pools
        }
        change, norm = _edit(
            study,
            layer,
            windows,
            [features.selected, *np.concatenate([m.sets for m in matched.values()])],
            _context_readout(study, windows, edited, classes[lineage]),
            edited=edited,
            reference=other if value == "resample" else None,
        )
        first = 1
        for control, match in matched.items():
            of_control = [0, *range(first, first + len(match.sets))]
            first += len(match.sets)
            for k, outcome in enumerate(OUTCOMES):
                if np.isfinite(change[0, :, k]).sum() < _MIN_WINDOWS:
                    continue
                summary, null = _compare(
                    change[of_control, :, k], norm[of_control], blocks, study.seed
                )
                head = {
                    "layer": layer,
                    "lineage": lineage,
                    "direction": direction,
                    "value": value,
                    "outcome": outcome,
                    "control": control,
                }
                fit = {k: v for k, v in match._asdict().items() if k != "sets"}
                fit["n_features"] = len(features.selected)
                rows.append(head | summary | fit)
                random.append(null.assign(**head))
    if not rows:
        raise ValueError(
            f"ablation needs at least {_MIN_WINDOWS} test windows; got {len(windows)}"
        )
    table = pd.DataFrame(rows)
    family = table.groupby(["value", "control"])["p"]
    table["q_bh"] = family.transform(lambda p: adjust_p_values(p.to_numpy(), "bh"))
    return table, pd.concat(random, ignore_index=True)


def _edit(
    study: Study,
    layer: int,
    windows: np.ndarray,
    sets: Sequence[np.ndarray],
    readout: Readout,
    *,
    edited: int,
    reference: int | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Edit one biosample's stream by every feature set.

    With a reference, features take its activations; without one, zero.

    Returns
    -------
    change : numpy.ndarray, shape (n_sets, n_windows, n_outcomes)
        Edited minus unedited outcome.
    norm : numpy.ndarray, shape (n_sets, n_windows)
        Length of the change of the stream.
    """
    sae = train_saes(study)[layer]
    x = read_streams(study, layer, edited, windows)
    other = (
        None if reference is None else read_streams(study, layer, reference, windows)
    )
    changes, norms = [], []
    for part in batches(study, len(windows)):
        deltas = ablation_deltas(
            x[part],
            sae,
            sets,
            value="zero" if other is None else "resample",
            reference=None if other is None else other[part],
        )
        found = effects(
            study.model,
            x[part],
            layer,
            deltas,
            outcome=readout(part),
            batch_size=part.stop - part.start,
        )
        changes.append((found.edited - found.baseline).cpu().numpy())
        norms.append(found.norm.cpu().numpy())
    return np.concatenate(changes, axis=1), np.concatenate(norms, axis=1)


def _class_means(masks: Sequence[np.ndarray], device: str) -> Readout:
    """Read the mean log1p prediction over each mask (n_windows, n_outputs).

    Windows without a token of the mask read NaN.
    """
    member = np.stack(masks, axis=-1).astype(np.float32)
    with np.errstate(invalid="ignore"):
        member /= member.sum(axis=1, keepdims=True)
    weights = torch.from_numpy(member).to(device)

    def of(part: slice) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda y: torch.einsum("wt,wtk->wk", y.log1p(), weights[part])

    return of


def _context_readout(
    study: Study, windows: np.ndarray, biosample: int, classes: np.ndarray
) -> Readout:
    """Read the `OUTCOMES` of a biosample."""
    means = _class_means([classes == name for name in OUTCOMES[:-1]], study.device)
    crop = study.model.config.crop
    target = study.dataset.target(windows, biosample)[:, crop : crop + classes.shape[1]]
    measured = torch.from_numpy(target).to(study.device)

    def of(part: slice) -> Callable[[torch.Tensor], torch.Tensor]:
        of_classes = means(part)

        def outcome(predicted: torch.Tensor) -> torch.Tensor:
            # The loss the model was trained with
            loss = predicted - measured[part] * torch.log(predicted + 1e-7)
            return torch.cat([of_classes(predicted), loss.mean(1, keepdim=True)], dim=1)

        return outcome

    return of


def _compare(
    change: np.ndarray, norm: np.ndarray, blocks: np.ndarray, seed: int
) -> tuple[dict[str, float], pd.DataFrame]:
    """Set the first row of ``change`` (n_sets, n_windows) against the others."""
    here = np.isfinite(change[0])
    change, norm = change[:, here].astype(float), norm[:, here].astype(float)
    selected, random = change[0], change[1:]
    size = effect_size(selected, random, selected_norm=norm[0], random_norm=norm[1:])
    paired = np.stack([selected, selected - random.mean(axis=0)])
    drawn = block_bootstrap(paired, blocks[here], random_state=seed)
    summary = size._asdict() | {
        "low": drawn.low[0],
        "high": drawn.high[0],
        "random": random.mean(),
        "difference": drawn.estimate[1],
        "difference_low": drawn.low[1],
        "difference_high": drawn.high[1],
        "norm_ratio": norm[0].mean() / norm[1:].mean() if norm[1:].any() else np.nan,
        "n_windows": int(here.sum()),
    }
    length = norm[1:].sum(axis=1)
    null = {
        "effect": random.mean(axis=1),
        "per_norm": random.sum(axis=1) / np.where(length > 0, length, np.nan),
    }
    return summary, pd.DataFrame(null)


def factor_specificity(study: Study) -> pd.DataFrame:
    """Zero the features of each planted factor; look at its sites and elsewhere.

    Significant features are matched with factors on ``tune`` windows
    (`helpers.truth.match_features`); the effect is measured on 64 ``test`` windows of
    the biosamples in which the factor is active.

    Parameters
    ----------
    study : Study
        A run on simulated data.

    Returns
    -------
    pandas.DataFrame
        One row per ``layer`` and ``factor`` with a feature of its own: ``n_features``;
        ``n_sites``, tokens over all active biosamples; ``at_sites``, mean change of the
        log1p prediction there; ``elsewhere``, the same at tokens in peaks more than 2
        tokens away from every site; ``specificity``, the ratio of their sizes; each
        with a 95 % block-bootstrap interval. Features silent on these windows are left
        out.

    Raises
    ------
    ValueError
        If the data are not simulated, or no feature matches a factor.
    """
    if study.truth is None:
        raise ValueError("planted factors are known for simulated data only")

    def build() -> pd.DataFrame:
        windows = spread_windows(study, "test", N_SITE_WINDOWS)
        rows = []
        chosen = context_features(study).items()
        for layer, features in tqdm(chosen, desc="planted factors"):
            named = match_features(study, layer, features.significant, split="tune")
            matched = named[named["factor"] != ""].groupby("factor")["feature"]
            own = {factor: ids.to_numpy() for factor, ids in matched}
            rows += [
                {"layer": layer} | row
                for row in _specificity(study, layer, own, windows)
            ]
        if not rows:
            raise ValueError("no significant feature matches a planted factor")
        return pd.DataFrame(rows)

    recipe = _recipe(study) | {"truth": code_digest("truth")}
    return study.run.table("factor_specificity.parquet", recipe, build)


def _specificity(
    study: Study, layer: int, own: dict[str, np.ndarray], windows: np.ndarray
) -> list[dict]:
    """Measure every factor that has features, in the biosamples where it is active."""
    n_tokens, crop = study.dataset.n_tokens, study.model.config.crop
    inner = slice(crop, n_tokens - crop)
    table = factor_sites(study, windows)
    sites = {f: table[f].to_numpy().reshape(-1, n_tokens) for f in own}
    far = {f: ~_dilate(mask, _NEAR_TOKENS)[:, inner] for f, mask in sites.items()}
    activity = pd.read_csv(study.truth / "activity.tsv", sep="\t", index_col=0)
    changes = {f: [] for f in own}  # per biosample: (2, n_windows), sites and elsewhere
    counts = {f: [] for f in own}
    for b, name in enumerate(study.design["biosample"]):
        active = [f for f in own if activity.loc[f, name] >= _ACTIVE]
        if not active:
            continue
        accessible = study.dataset.in_peak(b)[windows][:, inner]
        masks = [sites[f][:, inner] for f in active]
        masks += [accessible & far[f] for f in active]
        sets = [own[f] for f in active]
        readout = _class_means(masks, study.device)
        change, _ = _edit(
            study, layer, windows, sets, readout, edited=b, reference=None
        )
        for i, factor in enumerate(active):
            both = [i, len(active) + i]
            counts[factor].append(np.stack([masks[k].sum(axis=1) for k in both]))
            changes[factor].append(np.nan_to_num(change[i][:, both].T))
    rows = []
    for factor, of_factor in changes.items():
        n = np.concatenate(counts[factor], axis=1) if of_factor else np.zeros((2, 1))
        if not n.sum(axis=1).all() or not np.any(of_factor):
            continue
        drawn = block_bootstrap(
            np.concatenate(of_factor, axis=1) * n,
            np.tile(blocks_of(study, windows), len(of_factor)),
            denominators=n,
            random_state=study.seed,
        )
        at_sites, elsewhere = drawn.estimate
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.abs(at_sites / elsewhere)
            low, high = np.quantile(np.abs(drawn.draws[0] / drawn.draws[1]), _LEVEL)
        rows.append(
            {
                "factor": factor,
                "n_features": len(own[factor]),
                "n_sites": int(n[0].sum()),
                "at_sites": at_sites,
                "at_sites_low": drawn.low[0],
                "at_sites_high": drawn.high[0],
                "elsewhere": elsewhere,
                "elsewhere_low": drawn.low[1],
                "elsewhere_high": drawn.high[1],
                "specificity": ratio,
                "specificity_low": low,
                "specificity_high": high,
            }
        )
    return rows


def _dilate(mask: np.ndarray, reach: int) -> np.ndarray:
    """Extend True along the tokens, the second axis, by some tokens both ways."""
    wide = mask.copy()
    for step in range(1, reach + 1):
        wide[:, step:] |= mask[:, :-step]
        wide[:, :-step] |= mask[:, step:]
    return wide
