"""Activations with a known dictionary, and how much of it an SAE recovers."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.optimize import linear_sum_assignment

from helpers.sae._model import BatchTopKSAE

__all__ = ["PlantedWorld", "Recovery", "planted_world", "recovery"]

_IN_FAMILIES = 0.5  # share of all activations that families make, if there are any
_WITH_CHILD = 0.8  # share of a parent's that come with one of its children


class PlantedWorld(NamedTuple):
    """Rows of activations and the features they are made of.

    Attributes
    ----------
    rows : torch.Tensor, shape (n_rows, d_in)
        Activations, float32.
    acts : torch.Tensor, shape (n_rows, n_features)
        Activation of each planted feature, float32; mostly zero.
    directions : torch.Tensor, shape (n_features, d_in)
        What one unit of each feature adds; unit norm.
    parent : numpy.ndarray, shape (n_features,)
        Which feature is active whenever this one is; -1 for parents and loners.
    """

    rows: torch.Tensor
    acts: torch.Tensor
    directions: torch.Tensor
    parent: np.ndarray


def planted_world(
    n_rows: int,
    *,
    d_in: int = 64,
    n_features: int = 192,
    n_active: float = 8.0,
    n_parents: int = 16,
    n_children: int = 4,
    noise: float = 0.05,
    offset: float = 2.0,
    random_state: int = 0,
    draw: int = 0,
) -> PlantedWorld:
    """Draw rows that are sparse sums of known directions.

    Frequencies of loners fall like a power of the rank, activations are log-normal, and
    half of them come from families: a child is active only with its parent, one child
    at a time, and points partly along it, as a cell type's features may with those of a
    tissue. Such parents are what sparsity alone lets children absorb.

    Parameters
    ----------
    n_rows, d_in, n_features : int
        Sizes.
    n_active : float
        Mean number of active features per row.
    n_parents, n_children : int
        Number of families and of children in each; the other features are on their own.
    noise : float
        Standard deviation of each coordinate beside the features.
    offset : float
        Length of a vector common to all rows.
    random_state : int
        Seed of the dictionary.
    draw : int
        Seed of the rows, given the dictionary: another draw is held-out data.

    Raises
    ------
    ValueError
        If the families need more features than there are.
    """
    n_family = n_parents * (1 + n_children)
    if n_family > n_features:
        raise ValueError(
            f"n_features must be at least {n_family} for {n_parents} families of "
            f"{1 + n_children}; got {n_features}"
        )
    # Apart from the seeds of any trainer, which may be as small.
    rng = np.random.default_rng([random_state, 20_240_917])
    directions = rng.normal(size=(n_features, d_in))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    parent = np.full(n_features, -1)
    for family in range(n_parents):
        children = n_parents + family * n_children + np.arange(n_children)
        parent[children] = family
        directions[children] += 0.5 * directions[family]
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    common = rng.normal(size=d_in)
    common *= offset / np.linalg.norm(common)

    loners = np.arange(n_family, n_features)
    rates = np.zeros(n_features)
    rates[loners] = (1.0 + rng.permutation(len(loners))) ** -0.7
    by_families = _IN_FAMILIES * n_active if n_parents else 0.0
    rates[loners] *= (n_active - by_families) / max(rates.sum(), 1e-12)
    rates[:n_parents] = by_families / (1 + _WITH_CHILD) / max(1, n_parents)
    rates = rates.clip(max=0.5)

    rng = np.random.default_rng([random_state, 20_240_917, 1 + draw])
    fires = rng.random((n_rows, n_features)) < rates
    for family in range(n_parents):
        chosen = rng.integers(0, n_children, n_rows) if n_children else None
        with_child = fires[:, family] & (rng.random(n_rows) < _WITH_CHILD)
        for child in range(n_children):
            column = n_parents + family * n_children + child
            fires[:, column] = with_child & (chosen == child)
    acts = fires * rng.lognormal(0.0, 0.3, size=fires.shape)
    rows = acts @ directions + common + noise * rng.normal(size=(n_rows, d_in))
    return PlantedWorld(
        torch.from_numpy(rows).float(),
        torch.from_numpy(acts).float(),
        torch.from_numpy(directions).float(),
        parent,
    )


class Recovery(NamedTuple):
    """How an SAE describes a planted dictionary.

    Attributes
    ----------
    features : pandas.DataFrame
        One row per planted feature: ``kind`` (parent, child or loner); ``cosine`` of
        the nearest decoder row; ``matched``, that of the row that one-to-one matching
        gives it, NaN where the SAE is too narrow; ``f1`` of the SAE feature whose
        firing agrees best with the planted one's, and its ``recall``: low where
        children have absorbed their parent.
    summary : pandas.Series
        mean_max_cosine, mean_matched_cosine, mean_f1, parent_f1, parent_recall.
    """

    features: pd.DataFrame
    summary: pd.Series


@torch.no_grad()
def recovery(sae: BatchTopKSAE, world: PlantedWorld) -> Recovery:
    """Compare an SAE with the dictionary that made its rows.

    Parameters
    ----------
    sae : BatchTopKSAE
        With its threshold.
    world : PlantedWorld
        Rows not trained on, of the same dictionary.
    """
    unit = (sae.W_dec / sae.W_dec.norm(dim=1, keepdim=True)).cpu()
    cosine = (world.directions @ unit.T).numpy()  # (n_features, d_sae)
    planted, found = linear_sum_assignment(-cosine)
    matched = np.full(len(cosine), np.nan)
    matched[planted] = cosine[planted, found]

    both = torch.zeros(cosine.shape, dtype=torch.float64)
    n_planted, n_found = torch.zeros(len(cosine)), torch.zeros(sae.d_sae)
    for rows, acts in zip(world.rows.split(4096), world.acts.split(4096), strict=True):
        fires = (sae.encode(rows.to(sae.mean.device)) > 0).float().cpu()
        true = (acts > 0).float()
        both += (true.T @ fires).double()
        n_planted += true.sum(0)
        n_found += fires.sum(0)
    agreement = (2 * both / (n_planted[:, None] + n_found).clamp_min(1)).numpy()
    best = agreement.argmax(1)
    every = np.arange(len(cosine))
    kind = np.where(world.parent >= 0, "child", "loner").astype(object)
    kind[np.unique(world.parent[world.parent >= 0])] = "parent"
    recall = both.numpy()[every, best] / n_planted.clamp_min(1).numpy()
    features = pd.DataFrame(
        {
            "kind": kind,
            "cosine": cosine.max(1),
            "matched": matched,
            "f1": agreement[every, best],
            "recall": recall,
        }
    )
    parents = features[features["kind"] == "parent"]
    summary: dict[str, Any] = {
        "mean_max_cosine": features["cosine"].mean(),
        "mean_matched_cosine": features["matched"].mean(),
        "mean_f1": features["f1"].mean(),
        "parent_f1": parents["f1"].mean(),
        "parent_recall": parents["recall"].mean(),
    }
    return Recovery(features, pd.Series(summary))
