"""The fixed threshold that stands in for the batch's top-k outside training."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from helpers.sae._model import BatchTopKSAE
from helpers.sae._rows import Matrix, check_finite, check_matrix, gather

__all__ = ["CALIBRATION_ROWS", "calibrate_threshold", "set_threshold"]

CALIBRATION_ROWS = 2**17  # enough for a standard error of L0 well below 1 % of k
_ENTRIES = 2**24  # pre-activations held at a time


def calibrate_threshold(
    sae: BatchTopKSAE, activations: Matrix, *, random_state: int = 0
) -> None:
    """Set the threshold so that rows have `sae.k` active features on average.

    Parameters
    ----------
    sae : BatchTopKSAE
        Changed in place.
    activations : torch.Tensor or array-like, shape (n_tokens, d_in)
        Raw activations; of more than 131,072 rows a random subset of that size counts.
    random_state : int
        Seed of that subset.

    Raises
    ------
    ValueError
        If the rows have another width or are not finite.
    """
    n_rows, _ = check_matrix("heldout", activations, sae.d_in)
    rng = np.random.default_rng(random_state)
    chosen = np.sort(rng.permutation(n_rows)[:CALIBRATION_ROWS])
    chunk = _chunk_rows(sae)

    def chunks() -> Iterator[torch.Tensor]:
        for first in range(0, len(chosen), chunk):
            rows = chosen[first : first + chunk]
            x = gather(activations, rows)
            if not torch.isfinite(x.sum()):
                check_finite("heldout", gather(activations, slice(None)), 0)
            yield x

    set_threshold(sae, chunks(), len(chosen))


@torch.no_grad()
def set_threshold(
    sae: BatchTopKSAE, chunks: Iterator[torch.Tensor], n_rows: int
) -> None:
    """Set the threshold at which n_rows rows have k active features on average.

    This is the order statistic itself: of N rows, the (N k + 1)-th largest
    pre-activation. A running mean over training is still off after thousands of steps.
    """
    n_largest, n_seen = n_rows * sae.k + 1, 0
    largest = torch.empty(0, device=sae.W_enc.device)
    floor = 0.0
    while n_seen < n_rows:
        for x in next(chunks)[: n_rows - n_seen].split(_chunk_rows(sae)):
            h = sae.pre_activations(x.to(largest.device))
            largest = torch.cat([largest, h[h > floor]])
            if len(largest) > n_largest:
                largest, _ = largest.topk(n_largest, sorted=False)
                floor = float(largest.min())
            n_seen += len(x)
    sae.threshold = torch.tensor(floor, device=largest.device)


def _chunk_rows(sae: BatchTopKSAE) -> int:
    return max(1, _ENTRIES // sae.d_sae)
