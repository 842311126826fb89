"""The dictionaries of a study on trial: cards, seeds, controls, and other settings.

Everything is measured on ``test`` windows and kept in the run folder under
``dictionaries/``. Runs beyond the dictionaries themselves look at one block, the last
one unless told otherwise.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from helpers.calibration import random_weights
from helpers.dictionaries._front import (
    FRONT_KS,
    FRONT_WIDTHS,
    FrontRows,
    PeerFront,
    fingerprint,
    front,
    front_config,
    front_rows,
    nested_sizes,
    peer_front,
    score_rows,
)
from helpers.dictionaries._training import (
    TrainingChoices,
    architectures,
    never_selected,
    parent_recovery,
    training_choices,
    with_gamma,
    world_recovery,
)
from helpers.fidelity import loss_recovered, splice_losses, with_recovery
from helpers.runs import code_digest
from helpers.sae import (
    BatchTopKSAE,
    SAEConfig,
    evaluate,
    match_features,
    principal_components,
    seed_stability,
    train,
)
from helpers.sparse_probes import sparse_probe
from helpers.stages import Study, extract, held_out_rows, read_cards, train_saes
from helpers.token_classes import token_classes

__all__ = [
    "FRONT_KS",
    "FRONT_WIDTHS",
    "L0_TOLERANCE",
    "STABLE_COSINE",
    "FrontRows",
    "PeerFront",
    "Stability",
    "TrainingChoices",
    "architectures",
    "controls",
    "fingerprint",
    "front",
    "front_config",
    "front_rows",
    "full_card",
    "l0_spread",
    "never_selected",
    "parent_recovery",
    "peer_front",
    "probes",
    "score_rows",
    "seed_sae",
    "seed_saes",
    "stability",
    "training_choices",
    "with_gamma",
    "world_recovery",
]

STABLE_COSINE = 0.7  # of decoder rows, above which two seeds found the same feature
L0_TOLERANCE = 1.2  # largest mean L0 of a condition over the smallest
N_SEEDS = 3
_PROBE_ROWS = 6_000  # to learn from, and as many to be judged on
_PROBE_SIZES = (1, 2, 4, 8, 16)  # and as many as the stream is wide
_PROBE_SHOWN = (1, 16)  # beside the controls
_TARGETS = ("context", "lineage", "token class")


def full_card(study: Study) -> pd.DataFrame:
    """Return the card of every dictionary: all tokens, each context, each biosample.

    Returns
    -------
    pandas.DataFrame
        Indexed by ``layer`` and ``rows``: the columns of `helpers.sae.evaluate`;
        ``decoder_cosine``, the median over features of the cosine with the nearest
        other decoder row, and ``density``, the median share of tokens (both of ``all``
        only); and from `helpers.fidelity` the losses per token, unedited, with the
        reconstruction and with the mean stream, ``recovered`` and ``gap_closed`` with
        the whole track as input and scored on all tokens; ``recovered_hidden``, the
        same share with tokens hidden and scored on those.

    Warns
    -----
    UserWarning
        If mean L0 of the contexts or of two biosamples differs by more than 20 % in a
        block, which is named.
    """
    losses = _losses_by_rows(study)

    def build() -> pd.DataFrame:
        store, cards = study.store, read_cards(study)
        contexts = study.design["context"].to_numpy()
        lines = {}
        for layer, sae in train_saes(study).items():
            test = store.rows(layer, splits=["test"])
            with warnings.catch_warnings():  # given below, with the block's name
                warnings.simplefilter("ignore", UserWarning)
                card = evaluate(
                    sae,
                    test.rows.to(study.device),
                    groups=contexts[test.index["biosample_idx"]],
                )
            table = card.table.copy()
            table.loc["all", "decoder_cosine"] = np.median(card.decoder_cosine)
            table.loc["all", "density"] = np.median(card.density)
            lines[layer] = pd.concat([table, cards.loc[layer].drop("all")])
        return pd.concat(lines, names=["layer", "rows"])

    recipe = {
        "saes": [study.run.key(f"sae/block{b}") for b in study.blocks],
        "code": code_digest("sae", "dictionaries"),
    }
    table = study.run.table("dictionaries/card.parquet", recipe, build).join(losses)
    spread = l0_spread(table)
    for layer, line in spread[spread["ratio"] > L0_TOLERANCE].iterrows():
        warnings.warn(
            f"block {layer}: mean L0 differs between conditions by more than "
            f"{100 * (L0_TOLERANCE - 1):.0f} %: {line['smallest']:.1f} in "
            f"{line['least']!r}, {line['largest']:.1f} in {line['most']!r}",
            stacklevel=2,
        )
    return table


def _losses_by_rows(study: Study) -> pd.DataFrame:
    """Return losses and shares by layer and rows of the card."""
    parts = []
    for group in ("all", "context", "biosample"):
        by = ("layer", "tokens") if group == "all" else ("layer", "tokens", group)
        found = loss_recovered(study, by).rename(columns={group: "rows"})
        if group == "all":
            found["rows"] = "all"
        parts.append(found.set_index(["layer", "rows"]))
    table = pd.concat(parts).drop(columns=["n_tokens", "loss_zero"])
    hidden = table.loc[table["tokens"] == "hidden", "recovered"]
    seen = table[table["tokens"] == "all"].drop(
        columns=["tokens", "recovered_from_zero"]
    )
    return seen.join(hidden.rename("recovered_hidden"))


def l0_spread(card: pd.DataFrame) -> pd.DataFrame:
    """Return how far mean L0 differs between the conditions of each block.

    Parameters
    ----------
    card : pandas.DataFrame
        From `full_card` or `helpers.stages.read_cards`.

    Returns
    -------
    pandas.DataFrame
        Indexed by ``layer``: ``smallest`` and ``largest`` mean L0, ``least`` and
        ``most``, where they are, and their ``ratio``.
    """
    conditions = card.drop("all", level="rows")
    l0 = conditions.pivot_table("l0_mean", "layer", "rows")
    spread = pd.DataFrame(
        {
            "smallest": l0.min(axis=1),
            "least": l0.idxmin(axis=1),
            "largest": l0.max(axis=1),
            "most": l0.idxmax(axis=1),
        }
    )
    return spread.assign(ratio=spread["largest"] / spread["smallest"])


def _own_layer(study: Study, layer: int | None) -> int:
    """Return the block that runs beyond the dictionaries look at."""
    if layer is None:
        return max(study.blocks)
    if layer not in study.blocks:
        raise ValueError(f"layer must be one of the blocks {study.blocks}; got {layer}")
    return layer


def _settings(sae: BatchTopKSAE) -> SAEConfig:
    """Return the settings a dictionary was trained with."""
    return SAEConfig(**sae.provenance["config"])


def _trained(study: Study, layer: int, name: str, config: SAEConfig) -> BatchTopKSAE:
    """Return a further dictionary of a block, on the rows of the study's own."""

    def build(partial: Path) -> None:
        store = study.store
        partial.mkdir(exist_ok=True)
        checkpoint = partial / "training.pt"
        trained = train(
            store.rows(layer, splits=["select"]).rows,
            config,
            heldout=held_out_rows(study, layer, "tune").rows,
            device=study.device,
            checkpoint=checkpoint,
        )
        trained.sae.save(partial)
        checkpoint.unlink()

    extract(study)
    recipe = {
        "sae": asdict(config),
        "activations": study.streams_run.key("activations.zarr"),
        "layer": layer,
        "code": code_digest("sae"),
    }
    folder = study.run.artefact(_path(layer, name), recipe, build, resumable=True)
    return BatchTopKSAE.load(folder, device=study.device)


def _path(layer: int, name: str) -> str:
    return f"dictionaries/block{layer}_{name.replace(' ', '_')}"


def seed_sae(study: Study, layer: int, seed: int) -> BatchTopKSAE:
    """Return a dictionary of a block that is like the study's own but for its seed.

    It is trained on the rows of this study, also where the study's own dictionary comes
    from another run (`Study.saes`).

    Parameters
    ----------
    study : Study
        The run.
    layer : int
        Block.
    seed : int
        Of the initial weights and of the order of the rows.
    """
    config = replace(_settings(train_saes(study)[layer]), random_state=seed)
    return _trained(study, layer, f"seed {seed}", config)


def seed_saes(study: Study, layer: int | None = None) -> list[BatchTopKSAE]:
    """Return the dictionary of a block and two more, alike but for the seed.

    Parameters
    ----------
    study : Study
        The run; its dictionary is the first.
    layer : int, optional
        Block; the last one if absent.

    Raises
    ------
    ValueError
        If the block is not one of the study's.
    """
    layer = _own_layer(study, layer)
    first = train_saes(study)[layer]
    seed = _settings(first).random_state
    return [first, *(seed_sae(study, layer, seed + i) for i in range(1, N_SEEDS))]


class Stability(NamedTuple):
    """Which features of a dictionary other seeds find again.

    Attributes
    ----------
    features : pandas.DataFrame
        One row per feature of the study's own dictionary: ``layer``, ``feature``;
        ``cosine1`` and ``cosine2`` with its partners in the other seeds, ``stability``,
        their mean; ``null``, the cosine with its partner among scrambled features;
        ``density`` on ``test``; ``robust``, whether both cosines exceed 0.7.
    pairs : pandas.DataFrame
        One row per pair of seeds: ``first``, ``second``, ``cosine`` (mean of matched
        decoder rows, PW-MCC), ``encoder_cosine`` of the same pairs of features,
        ``share`` of cosines above 0.7; and the same for scrambled features
        (``second`` is ``scrambled``).
    """

    features: pd.DataFrame
    pairs: pd.DataFrame


def stability(study: Study, layer: int | None = None) -> Stability:
    """Match the features of three seeds, and with features that mean nothing.

    Scrambled features are those of another seed with random signs of their principal
    coordinates: each keeps how much of it lies in directions of large variance, where
    features crowd, and nothing else.

    Parameters
    ----------
    study : Study
        The run.
    layer : int, optional
        Block; the last one if absent.
    """
    layer = _own_layer(study, layer)
    saes = seed_saes(study, layer)

    def build(partial: Path) -> None:
        partial.mkdir()
        store = study.store
        rows = store.rows(
            layer, splits=["select"], max_tokens=_PROBE_ROWS, random_state=study.seed
        ).rows
        null = _scrambled(saes[1], rows, study.seed)
        table = seed_stability(saes).drop(columns=["partner1", "partner2"])
        table["null"] = match_features(saes[0], null).cosine
        card = read_cards(study, "features").loc[layer]
        table["density"] = card["density"].to_numpy()
        both = table[["cosine1", "cosine2"]]
        table["robust"] = (both > STABLE_COSINE).all(axis=1)
        table.insert(0, "layer", layer)
        table.reset_index().to_parquet(partial / "features.parquet")
        seeds = [_settings(sae).random_state for sae in saes]
        pairs = [
            _pair(saes[i], saes[j], seeds[i], str(seeds[j]))
            for i in range(N_SEEDS)
            for j in range(i + 1, N_SEEDS)
        ]
        pairs.append(_pair(saes[0], null, seeds[0], "scrambled"))
        pd.DataFrame(pairs).to_parquet(partial / "pairs.parquet")

    others = [_path(layer, f"seed {_settings(s).random_state}") for s in saes[1:]]
    recipe = {
        "saes": [study.run.key(n) for n in [f"sae/block{layer}", *others]],
        "code": code_digest("sae", "dictionaries"),
    }
    path = f"dictionaries/block{layer}_stability"
    folder = study.run.artefact(path, recipe, build)
    return Stability(
        pd.read_parquet(folder / "features.parquet"),
        pd.read_parquet(folder / "pairs.parquet"),
    )


def _pair(
    first: BatchTopKSAE, second: BatchTopKSAE, seed: int, name: str
) -> dict[str, object]:
    match = match_features(first, second)
    encoders = torch.nn.functional.cosine_similarity(
        first.W_enc.T, second.W_enc.T[torch.from_numpy(match.partner)], dim=1
    )
    return {
        "first": seed,
        "second": name,
        "cosine": match.cosine.mean(),
        "encoder_cosine": float(encoders.mean()),
        "share": (match.cosine > STABLE_COSINE).mean(),
    }


def _scrambled(sae: BatchTopKSAE, rows: torch.Tensor, seed: int) -> BatchTopKSAE:
    """Return a dictionary with random signs of the principal coordinates."""
    basis = principal_components(rows).components
    rng = np.random.default_rng([seed, 61])
    directions = {}
    for name, rows_of in (("W_dec", sae.W_dec), ("W_enc", sae.W_enc.T)):
        signs = torch.from_numpy(rng.choice([-1.0, 1.0], size=tuple(rows_of.shape)))
        directions[name] = (rows_of.cpu() @ basis.T * signs.float()) @ basis
    null = BatchTopKSAE(sae.d_in, sae.d_sae, sae.k).to(sae.mean.device)
    null.W_dec.copy_(directions["W_dec"])
    null.W_enc.copy_(directions["W_enc"].T)
    return null


def probes(study: Study) -> pd.DataFrame:
    """Probe the codes of every block for context, lineage and class of the token.

    Learned on ``select`` windows, judged on ``test`` windows: other chromosomes. Token
    classes are those of `helpers.token_classes`, each against the rest; tokens
    without a class take no part in that target. Lineage is left out where there is one.

    Returns
    -------
    pandas.DataFrame
        One row per ``layer``, ``code`` (features, principal components, raw stream),
        ``target`` and ``n_numbers`` read: ``auc``, the mean over classes.
    """
    saes = train_saes(study)

    def build() -> pd.DataFrame:
        tables = []
        for layer, sae in saes.items():
            table = _probe_codes(study, layer, {"features": sae.encode})
            tables.append(table.assign(layer=layer))
        return pd.concat(tables, ignore_index=True)

    recipe = {
        "saes": [study.run.key(f"sae/block{b}") for b in study.blocks],
        "sizes": [_PROBE_ROWS, *_PROBE_SIZES],
        "seed": study.seed,
        "code": code_digest("sparse_probes", "dictionaries", "sae"),
    }
    return study.run.table("dictionaries/probes.parquet", recipe, build)


@torch.no_grad()
def _probe_codes(
    study: Study,
    layer: int,
    codes: dict[str, Callable[[torch.Tensor], torch.Tensor]],
) -> pd.DataFrame:
    """Probe codes of a block, and beside them raw stream and principal components."""
    store = study.store
    drawn = {
        split: store.rows(
            layer, splits=[split], max_tokens=_PROBE_ROWS, random_state=study.seed
        )
        for split in ("select", "test")
    }
    basis = principal_components(drawn["select"].rows)
    codes = codes | {
        "principal components": lambda x: basis.encode(x.cpu()),
        "raw stream": lambda x: x,
    }
    labels = {split: _labels(study, rows.index) for split, rows in drawn.items()}
    tables = []
    for name, code in codes.items():
        values = {
            split: code(rows.rows.to(study.device)).cpu().numpy()
            for split, rows in drawn.items()
        }
        for target in _TARGETS:
            known = {s: (labels[s][target] != "").to_numpy() for s in drawn}
            if labels["select"][target][known["select"]].nunique() < 2:
                continue  # one lineage: nothing to tell apart
            found = sparse_probe(
                values["select"][known["select"]],
                labels["select"][target][known["select"]],
                values["test"][known["test"]],
                labels["test"][target][known["test"]],
                n_numbers=(*_PROBE_SIZES, study.model.config.d_model),
            )
            mean = found.groupby("n_numbers")["auc"].mean().reset_index()
            tables.append(mean.assign(code=name, target=target))
    return pd.concat(tables, ignore_index=True)


def _labels(study: Study, index: pd.DataFrame) -> pd.DataFrame:
    """Return context, lineage and class of drawn tokens; the class may be empty."""
    crop = study.model.config.crop
    windows = np.unique(index["window_idx"])
    design = study.design.iloc[index["biosample_idx"]].reset_index(drop=True)
    labels = design[["context", "lineage"]].astype(object)
    labels["token class"] = ""
    inner = index["token_idx"].to_numpy() - crop
    position = np.searchsorted(windows, index["window_idx"])
    for lineage, classes in token_classes(study, windows).items():
        scored = (inner >= 0) & (inner < classes.shape[1])
        chosen = scored & (design["lineage"] == lineage).to_numpy()
        labels.loc[chosen, "token class"] = classes[position[chosen], inner[chosen]]
    return labels


def controls(study: Study, layer: int | None = None) -> pd.DataFrame:
    """Set the dictionary of a block beside what it must beat.

    The same card for: the study's own dictionary and two fresh seeds; Matryoshka; one
    whose dead features are left to the auxiliary loss and never started anew; one whose
    directions are random and stay so; principal components, the first k and the k
    largest scores of each token, which are as many numbers; and a dictionary of the
    same block of a model that was never trained.

    Returns
    -------
    pandas.DataFrame
        Indexed by ``dictionary``: ``l0_mean``, ``fvu``, ``dead_percent``, ``n_broad``,
        ``decoder_cosine`` (median over features), ``recovered``, ``recovered_hidden``
        and ``gap_closed`` (of the model's own prediction; not defined for the untrained
        model), and the AUC of probes that read 1 and 16 numbers for each target.
    """
    layer = _own_layer(study, layer)
    saes = seed_saes(study, layer)
    config = _settings(saes[0])
    others = {
        "Matryoshka": {"matryoshka": nested_sizes(config.d_sae)},
        "no restarts": {"revive_until": 0.0},
        "random directions": {"frozen_decoder": True},
    }
    names = [f"seed {_settings(sae).random_state}" for sae in saes]
    own = dict(zip(names, saes, strict=True)) | {
        name: _trained(study, layer, name, replace(config, **change))
        for name, change in others.items()
    }
    untrained = random_weights(study, layers=[layer])
    stranger = train_saes(untrained)[layer]

    def build() -> pd.DataFrame:
        k = config.k
        basis = principal_components(study.store.rows(layer, splits=["select"]).rows)
        dense = {
            f"first {k} components": lambda x: basis.first(x.cpu(), k).to(x),
            f"largest {k} components": lambda x: basis.largest(x.cpu(), k).to(x),
        }
        test = study.store.rows(layer, splits=["test"]).rows.to(study.device)
        lines = {name: score_rows(sae, test) for name, sae in own.items()}
        variance = (test - test.mean(0)).square().sum()
        for name, reconstruct in dense.items():
            left = (reconstruct(test) - test).square().sum() / variance
            lines[name] = {"l0_mean": float(k), "fvu": float(left)}
        test = untrained.store.rows(layer, splits=["test"]).rows
        lines["untrained model"] = score_rows(stranger, test.to(study.device))
        table = pd.DataFrame.from_dict(lines, orient="index")
        table.index.name = "dictionary"
        sums = splice_losses(study, {layer: own | dense}, {layer: saes[0].mean})
        shares = with_recovery(sums, ("tokens", "name")).set_index(["tokens", "name"])
        table["recovered"] = shares.loc["all", "recovered"]
        table["recovered_hidden"] = shares.loc["hidden", "recovered"]
        table["gap_closed"] = shares.loc["all", "gap_closed"]
        codes = {name: sae.encode for name, sae in own.items()}
        scores = _probe_codes(study, layer, codes)
        foreign = _probe_codes(untrained, layer, {"untrained model": stranger.encode})
        scores = pd.concat([scores, foreign[foreign["code"] == "untrained model"]])
        few = scores[scores["n_numbers"].isin(_PROBE_SHOWN)]
        wide = few.pivot_table("auc", "code", ["target", "n_numbers"])
        wide.columns = [f"{target}, {n}" for target, n in wide.columns]
        for name in dense:  # both are read from all components
            wide.loc[name] = wide.loc["principal components"]
        return table.join(wide)

    recipe = {
        "saes": [study.run.key(f"sae/block{layer}")]
        + [study.run.key(_path(layer, name)) for name in list(own)[1:]],
        "untrained": untrained.run.key(f"sae/block{layer}"),
        "seed": study.seed,
        "code": code_digest("sae", "dictionaries", "fidelity", "sparse_probes"),
    }
    path = f"dictionaries/block{layer}_controls.parquet"
    return study.run.table(path, recipe, build)
