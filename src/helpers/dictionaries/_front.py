"""Error against sparsity: dictionaries of many widths and k, on the same rows.

One short budget for all, so that widths, architectures and the packages of others can
be compared at equal rows, batch and steps. `helpers.dictionaries` is the public face.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, replace
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from tqdm.std import tqdm

from helpers.runs import code_digest
from helpers.sae import (
    BatchTopKSAE,
    SAEConfig,
    evaluate,
    principal_components,
    train,
)
from helpers.stages import Study, extract

__all__ = [
    "FRONT_KS",
    "FRONT_WIDTHS",
    "FrontRows",
    "PeerFront",
    "fingerprint",
    "front",
    "front_config",
    "front_rows",
    "nested_sizes",
    "peer_front",
    "rows_recipe",
]

FRONT_KS = (4, 8, 16, 32, 64)
FRONT_WIDTHS = (2, 4, 8, 16)  # features per dimension of the stream
NESTED_WIDTH = 8  # at which Matryoshka and the peers are compared
BROAD = 0.1  # share of tokens above which a feature fires broadly
_N_TRAIN, _N_HELDOUT = 49_152, 12_288  # rows of the short budget
_FINGERPRINT_RTOL = 1e-3  # other processors round the streams otherwise

logger = logging.getLogger("helpers.sae")


class FrontRows(NamedTuple):
    """Rows of one block for runs of the short budget.

    Attributes
    ----------
    train, tune, test : torch.Tensor, shapes (n, d_in)
        Of ``select``, ``tune`` and ``test`` windows, every biosample alike.
    """

    train: torch.Tensor
    tune: torch.Tensor
    test: torch.Tensor


def front_rows(study: Study, layer: int) -> FrontRows:
    """Draw the rows of the short budget: at most 49,152 to train, 12,288 held out."""
    store = study.store

    def draw(split: str, n_rows: int) -> torch.Tensor:
        drawn = store.rows(
            layer, splits=[split], max_tokens=n_rows, random_state=study.seed
        )
        return drawn.rows.to(study.device)

    return FrontRows(
        draw("select", _N_TRAIN), draw("tune", _N_HELDOUT), draw("test", _N_HELDOUT)
    )


def rows_recipe(study: Study, layer: int) -> dict[str, Any]:
    """Return what the rows of the short budget depend on, for recipes."""
    extract(study)  # or its key would be missing
    return {
        "activations": study.streams_run.key("activations.zarr"),
        "layer": layer,
        "n_rows": [_N_TRAIN, _N_HELDOUT],
        "seed": study.seed,
    }


def front_config(d_sae: int, k: int, **options: Any) -> SAEConfig:
    """Return the settings of the short budget: four epochs in batches of 512."""
    options = {"batch_size": 512, "n_epochs": 4} | options
    return SAEConfig(d_sae=d_sae, k=k, **options)


def nested_sizes(d_sae: int) -> tuple[int, ...]:
    """Return Matryoshka prefixes: groups of 1/16, 1/8, 1/4 and 9/16 of the features."""
    return tuple(d_sae * part // 16 for part in (1, 3, 7, 16))


def front(study: Study, layer: int) -> pd.DataFrame:
    """Train widths x k on one block, and score them on ``test`` rows.

    Returns
    -------
    pandas.DataFrame
        One row per run: ``architecture`` (BatchTopK; Matryoshka, at eight features per
        dimension; PCA, the k largest scores of a token), ``d_sae``, ``k``, ``l0_mean``,
        ``fvu``, ``dead_percent``, ``n_broad`` and ``decoder_cosine`` of `score_rows`.
    """
    d_model = study.model.config.d_model
    plan = [
        ("BatchTopK", width * d_model, k)
        for width in FRONT_WIDTHS
        for k in FRONT_KS
        if k < width * d_model
    ]
    plan += [("Matryoshka", NESTED_WIDTH * d_model, k) for k in FRONT_KS]

    def build() -> pd.DataFrame:
        rows = front_rows(study, layer)
        lines = []
        for architecture, d_sae, k in tqdm(plan, desc="front"):
            nested = nested_sizes(d_sae) if architecture == "Matryoshka" else ()
            config = front_config(d_sae, k, matryoshka=nested, random_state=study.seed)
            sae = train(rows.train, config, heldout=rows.tune).sae
            line = {"architecture": architecture, "d_sae": d_sae, "k": k}
            lines.append(line | score_rows(sae, rows.test))
        basis = principal_components(rows.train.cpu())
        test = rows.test.cpu()
        variance = (test - test.mean(0)).square().sum()
        for k in FRONT_KS:
            if k > d_model:
                continue
            left = (basis.largest(test, k) - test).square().sum() / variance
            line = {"architecture": "PCA", "d_sae": d_model, "k": k}
            lines.append(line | {"l0_mean": float(k), "fvu": float(left)})
        return pd.DataFrame(lines)

    recipe = rows_recipe(study, layer) | {
        "config": asdict(front_config(16, 4)),
        "plan": plan,
        "code": code_digest("sae", "dictionaries._front"),
    }
    return study.run.table("dictionaries/front.parquet", recipe, build)


def score_rows(sae: BatchTopKSAE, rows: torch.Tensor) -> dict[str, float]:
    """Return the card of rows not trained on, in one line.

    ``l0_mean``, ``fvu``, ``dead_percent``; ``n_broad``, features that fire on more than
    a tenth of the rows; ``decoder_cosine``, the median over features.
    """
    card = evaluate(sae, rows)
    line = card.table.loc["all", ["l0_mean", "fvu", "dead_percent"]].to_dict()
    line["n_broad"] = int((card.density > BROAD).sum())
    return line | {"decoder_cosine": float(np.median(card.decoder_cosine))}


def fingerprint(rows: FrontRows) -> list[float]:
    """Return sizes, mean norms and spreads of rows, equal where the rows are.

    A digest would tell apart what two processors round differently.
    """
    found = [float(rows.train.shape[1])]
    for part in rows:
        x = part.double()
        centered = x - x.mean(0)
        first = centered[:1000].norm(dim=1)  # of the first rows in their order
        found += [len(x), x.norm(dim=1).mean(), centered.norm(dim=1).mean()]
        found += [first.mean(), (first * torch.arange(len(first)).to(first)).mean()]
    return [float(value) for value in found]


class PeerFront(NamedTuple):
    """What other packages reach on the same rows, if they are the same.

    Attributes
    ----------
    points : pandas.DataFrame
        One row per contender, k and rule: see ``benchmarks/sae_front.py``, which made
        the file; empty if the rows are others.
    provenance : dict
        ``date``, ``versions``, ``settings``, ``fingerprint``.
    same_rows : bool
        Whether the rows are those the points were computed on.
    """

    points: pd.DataFrame
    provenance: dict[str, Any]
    same_rows: bool


def peer_front(rows: FrontRows) -> PeerFront:
    """Read the points of other packages, computed beforehand by the benchmark."""
    folder = resources.files("helpers") / "resources" / "sae_front"
    provenance = json.loads((folder / "provenance.json").read_text("utf-8"))
    with (folder / "points.csv").open(encoding="utf-8") as file:
        points = pd.read_csv(file)
    ours, theirs = fingerprint(rows), provenance["fingerprint"]
    same = len(ours) == len(theirs) and np.allclose(
        ours, theirs, rtol=_FINGERPRINT_RTOL
    )
    return PeerFront(points if same else points.iloc[:0], provenance, bool(same))


def short_seeds(
    rows: FrontRows, config: SAEConfig, seeds: tuple[int, ...]
) -> list[BatchTopKSAE]:
    """Train one dictionary of the short budget per seed."""
    return [
        train(rows.train, replace(config, random_state=seed), heldout=rows.tune).sae
        for seed in seeds
    ]
