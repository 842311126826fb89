"""Which features come back with another seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment

from helpers.sae._model import BatchTopKSAE

__all__ = ["Match", "match_features", "seed_stability", "subspace_overlap"]


class Match(NamedTuple):
    """The one-to-one matching of two dictionaries.

    Attributes
    ----------
    partner : numpy.ndarray, shape (d_sae,)
        Feature of the second SAE for each of the first.
    cosine : numpy.ndarray, shape (d_sae,)
        Cosine of their decoder rows.
    """

    partner: np.ndarray
    cosine: np.ndarray


def match_features(first: BatchTopKSAE, second: BatchTopKSAE) -> Match:
    """Match the features of two SAEs so that the sum of decoder cosines is largest.

    Parameters
    ----------
    first, second : BatchTopKSAE
        Of the same width, trained on the same activations.

    Raises
    ------
    ValueError
        If their widths differ.
    """
    if first.W_dec.shape != second.W_dec.shape:
        raise ValueError(
            "SAEs must have the same shape; got W_dec of "
            f"{tuple(first.W_dec.shape)} and {tuple(second.W_dec.shape)}"
        )
    cosine = F.normalize(first.W_dec, dim=1) @ F.normalize(second.W_dec, dim=1).T
    cosine = cosine.cpu().numpy()
    rows, partner = linear_sum_assignment(-cosine)  # rows are 0, 1, 2, ...
    return Match(partner, cosine[rows, partner])


def seed_stability(saes: Sequence[BatchTopKSAE]) -> pd.DataFrame:
    """Match the first of several SAEs with each of the others.

    Parameters
    ----------
    saes : sequence of BatchTopKSAE
        At least two, of one width, from different seeds. The first is the one studied.

    Returns
    -------
    pandas.DataFrame
        Row i: feature i of the first SAE. Columns ``partner1``, ``cosine1``, ... for
        each of the others, and ``stability``, the mean of the cosines. Its mean over
        features is the stability of the dictionary (PW-MCC, arXiv 2505.20254).

    Raises
    ------
    ValueError
        If there are fewer than two SAEs or their widths differ.
    """
    if len(saes) < 2:
        raise ValueError(f"seed_stability needs at least two SAEs; got {len(saes)}")
    columns: dict[str, np.ndarray] = {}
    for number, other in enumerate(saes[1:], start=1):
        match = match_features(saes[0], other)
        columns[f"partner{number}"] = match.partner
        columns[f"cosine{number}"] = match.cosine
    table = pd.DataFrame(columns).rename_axis("feature")
    table["stability"] = table.filter(like="cosine").mean(axis=1)
    return table


def subspace_overlap(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return how far the spans of two sets of directions agree.

    Unstable features may lie in a subspace that every seed finds (arXiv 2606.12138).

    Parameters
    ----------
    first, second : torch.Tensor, shapes (n, d_in) and (m, d_in)
        Directions, such as decoder rows of the context features of two seeds.

    Returns
    -------
    float
        Mean squared cosine of the principal angles: 1 for equal spans, about
        max(n, m) / d_in for random ones.
    """
    bases = [_basis(directions) for directions in (first, second)]
    cosines = torch.linalg.svdvals(bases[0] @ bases[1].T)
    return float(cosines.square().mean())


def _basis(directions: torch.Tensor) -> torch.Tensor:
    """Return orthonormal rows with the same span."""
    _, sizes, basis = torch.linalg.svd(directions.double(), full_matrices=False)
    return basis[sizes > 1e-6 * sizes[0]]
