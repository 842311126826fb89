"""What an SAE must beat: the principal components of its rows.

Dense, the first n components are n numbers of a token; sparse, its n largest scores are
n numbers as well, of a basis that was not learned for sparsity.

The other controls are SAEs themselves: of random directions (`frozen_decoder` of the
config), and of the activations of a model with random weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from helpers.sae._rows import Matrix, check_matrix, stream

__all__ = ["PrincipalComponents", "pca_fvu", "principal_components"]


class PrincipalComponents(NamedTuple):
    """An orthonormal basis of rows, directions of largest variance first.

    Attributes
    ----------
    mean : torch.Tensor, shape (d_in,)
        Mean row.
    components : torch.Tensor, shape (d_in, d_in)
        Directions, of norm 1.
    """

    mean: torch.Tensor
    components: torch.Tensor

    def encode(self, activations: torch.Tensor) -> torch.Tensor:
        """Return the scores of rows (..., d_in) on all components, (..., d_in)."""
        return (activations - self.mean) @ self.components.T

    def first(self, activations: torch.Tensor, n: int) -> torch.Tensor:
        """Reconstruct rows (..., d_in) from their scores on the first n components."""
        kept = self.components[:n]
        return (activations - self.mean) @ kept.T @ kept + self.mean

    def largest(self, activations: torch.Tensor, n: int) -> torch.Tensor:
        """Reconstruct rows (..., d_in) from the n largest scores of each."""
        scores = self.encode(activations)
        kept = scores.abs().topk(n, dim=-1).indices
        sparse = torch.zeros_like(scores).scatter(-1, kept, scores.gather(-1, kept))
        return sparse @ self.components + self.mean


def principal_components(activations: Matrix) -> PrincipalComponents:
    """Return the principal components of rows, in single precision on the CPU.

    Parameters
    ----------
    activations : torch.Tensor or array-like, shape (n_tokens, d_in)
        Raw activations; read in chunks.

    Raises
    ------
    ValueError
        If a row is not finite.
    """
    check_matrix("activations", activations)
    mean, covariance = _mean_and_covariance(activations)
    _, vectors = torch.linalg.eigh(covariance)
    return PrincipalComponents(mean.float(), vectors.flip(1).T.contiguous().float())


def pca_fvu(
    activations: Matrix, heldout: Matrix, n_components: Sequence[int]
) -> pd.Series:
    """Return what principal components leave unexplained of held-out rows.

    With k components it is the dense code of as many numbers as the SAE's sparse one;
    with all d_in it is 0, however wide an SAE is.

    Parameters
    ----------
    activations : torch.Tensor or array-like, shape (n_tokens, d_in)
        Rows the SAE is trained on; mean and components are theirs.
    heldout : torch.Tensor or array-like, shape (n_heldout, d_in)
        Rows of the card.
    n_components : sequence of int
        Numbers of components, 0 to d_in.

    Returns
    -------
    pandas.Series
        FVU by number of components: squared error over the squared distance from the
        held-out mean, both summed over the whole set.

    Raises
    ------
    ValueError
        If widths differ, a row is not finite, or a number lies outside 0 to d_in.
    """
    _, d_in = check_matrix("activations", activations)
    check_matrix("heldout", heldout, d_in)
    outside = [n for n in n_components if not 0 <= n <= d_in]
    if outside:
        raise ValueError(f"n_components must lie in 0 to {d_in}; got {outside[0]}")
    mean, covariance = _mean_and_covariance(activations)
    _, vectors = torch.linalg.eigh(covariance)
    vectors = vectors.flip(1)  # columns, largest variance first
    heldout_mean, heldout_covariance = _mean_and_covariance(heldout)
    offset = heldout_mean - mean
    second_moment = heldout_covariance + offset[:, None] * offset
    kept = ((vectors.T @ second_moment) * vectors.T).sum(1).cumsum(0)
    kept = torch.cat([torch.zeros(1, dtype=kept.dtype), kept])
    left = (second_moment.trace() - kept) / heldout_covariance.trace()
    numbers = np.asarray(list(n_components), dtype=int)
    return pd.Series(left.clamp_min(0).numpy()[numbers], numbers, name="fvu")


def _mean_and_covariance(matrix: Matrix) -> tuple[torch.Tensor, torch.Tensor]:
    shift, total, products, n_rows = None, 0, 0, len(matrix)
    for _, rows in stream("activations", matrix, "cpu"):
        rows = rows.double()
        shift = rows.mean(0) if shift is None else shift
        rows -= shift
        total = total + rows.sum(0)
        products = products + rows.T @ rows
    drift = total / n_rows
    return shift + drift, products / n_rows - drift[:, None] * drift
