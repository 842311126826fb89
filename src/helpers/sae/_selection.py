"""Batch top-k: the largest pre-activations of a whole batch, exactly and in one scan.

A threshold guessed from the last batch leaves a few candidates; only these are compared
with one another. On a CPU the scan runs in numpy, whose loops over plain integers are
several times faster than torch's: positive bfloat16 numbers order like their bits.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from helpers.sae._peers import ALONE, Peers

__all__ = ["Code", "batch_top_k", "sort_by_feature"]

_SCAN_ENTRIES = 2**20  # a block and its mask stay in a core's cache
_SAMPLE_ENTRIES = 2**16
_SAFETY = 0.95  # the next batch's cut seldom lies lower than this share of the last


class Code(NamedTuple):
    """Active entries of a batch in row-major order.

    Attributes
    ----------
    flat : torch.Tensor, shape (n_active,)
        Positions in the flattened (n_rows, d_sae) matrix, int64.
    rows, features : torch.Tensor, shape (n_active,)
        The same as coordinates, int32.
    acts : torch.Tensor, shape (n_active,)
        Values, in at least single precision.
    cut : float
        Largest value that was not kept, as far as known: a guess for the next batch.
    """

    flat: torch.Tensor
    rows: torch.Tensor
    features: torch.Tensor
    acts: torch.Tensor
    cut: float


@torch.no_grad()
def batch_top_k(
    pre: torch.Tensor, k: int, cut: float | None = None, *, peers: Peers = ALONE
) -> Code:
    """Keep the n_rows * k largest positive entries of a batch.

    Parameters
    ----------
    pre : torch.Tensor, shape (n_rows, d_sae)
        Pre-activations, contiguous.
    k : int
        Entries kept per row, on average over the batch.
    cut : float, optional
        The cut of a similar batch. A bad one costs a second scan, never an entry.
    peers : Peers
        Processes that hold other rows of the same batch; the cut is common to all.
    """
    n_kept = len(pre) * k * peers.size
    flat = _candidates(pre, n_kept, cut, peers)
    acts = pre.view(-1).index_select(0, flat)
    acts = acts.to(torch.promote_types(acts.dtype, torch.float32))
    kept, cut = _largest(acts, n_kept, peers)
    if kept is not None:
        kept = _true(kept)
        flat, acts = flat.index_select(0, kept), acts.index_select(0, kept)
    rows, features = _coordinates(flat, pre.shape[1])
    return Code(flat, rows, features, acts, cut)


def _candidates(
    pre: torch.Tensor, n_kept: int, cut: float | None, peers: Peers
) -> torch.Tensor:
    """Return the positions of all entries above some value that n_kept or more top."""
    share = 1.5 * n_kept / (pre.numel() * peers.size)
    floors = [
        lambda: _SAFETY * (cut or 0.0),
        lambda: peers.least(_sampled_quantile(pre, share)),
    ]
    for guess in floors:
        floor = guess()
        if floor > 0:
            flat = _above(pre, floor)
            if peers.total(len(flat)) >= n_kept:
                return flat
    return _above(pre, 0.0)


def _above(pre: torch.Tensor, floor: float) -> torch.Tensor:
    """Return the positions of entries greater than a value, ascending."""
    if pre.device.type != "cpu":
        return torch.nonzero(pre.view(-1) > floor).squeeze(1)
    if pre.dtype == torch.bfloat16:
        values = pre.view(-1).view(torch.int16).numpy()
        limit = torch.tensor(floor, dtype=torch.bfloat16).view(torch.int16).numpy()
    else:
        values = pre.view(-1).numpy()
        limit = np.asarray(floor, dtype=values.dtype)
    mask = np.empty(min(_SCAN_ENTRIES, len(values)), dtype=bool)
    found = []
    for first in range(0, len(values), _SCAN_ENTRIES):
        block = values[first : first + _SCAN_ENTRIES]
        inside = mask[: len(block)]
        np.greater(block, limit, out=inside)
        found.append(np.flatnonzero(inside) + first)
    return torch.from_numpy(np.concatenate(found))


def _sampled_quantile(pre: torch.Tensor, share: float) -> float:
    """Return about the value that a share of all entries exceed."""
    flat = pre.view(-1)
    # An odd step visits all columns although their number is often a power of two.
    sample = flat[:: max(1, len(flat) // _SAMPLE_ENTRIES) | 1].float()
    return float(
        sample.kthvalue(max(1, int((1 - min(share, 1.0)) * len(sample)))).values
    )


def _largest(
    acts: torch.Tensor, n_kept: int, peers: Peers
) -> tuple[torch.Tensor | None, float]:
    """Return which of the candidates are kept, None for all, and where the cut lies.

    Ties at the cut, frequent in bfloat16, are kept evenly over the batch: by position,
    the last rows would lose their features.
    """
    everyone = peers.gather(acts)
    excess = len(everyone) - n_kept
    if excess <= 0:
        return None, float(everyone.min()) if len(everyone) else 0.0
    cut = _kth_smallest(everyone, excess)
    kept = everyone > cut
    n_ties = n_kept - int(kept.sum())
    if n_ties:
        ties = _true(everyone == cut)
        spread = torch.arange(n_ties, device=ties.device) * len(ties) // n_ties
        kept[ties[spread]] = True
    return peers.own(kept, len(acts)), float(cut)


def _kth_smallest(values: torch.Tensor, k: int) -> torch.Tensor:
    if values.device.type == "cpu":  # numpy selects ten times faster
        return torch.from_numpy(np.partition(values.numpy(), k - 1))[k - 1]
    return values.kthvalue(k).values


def _true(mask: torch.Tensor) -> torch.Tensor:
    """Return where a mask is true."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return torch.nonzero(mask).squeeze(1)


def _coordinates(flat: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows and columns of flat positions, int32."""
    if flat.device.type == "cpu":  # numpy divides by multiplying
        positions = flat.numpy()
        if len(positions) and positions[-1] < 2**31:
            positions = positions.astype(np.int32)
        rows = positions // width
        columns = (positions - rows * width).astype(np.int32)
        return torch.from_numpy(rows.astype(np.int32)), torch.from_numpy(columns)
    rows = torch.div(flat, width, rounding_mode="floor")
    return rows.int(), (flat - rows * width).int()


def sort_by_feature(code: Code, d_sae: int) -> torch.Tensor:
    """Return the order that groups active entries by feature, rows still ascending."""
    if code.features.device.type == "cpu" and d_sae <= 2**16:
        narrow = code.features.numpy().astype(np.uint16)  # sorted by counting
        return torch.from_numpy(narrow.argsort(kind="stable"))
    return code.features.argsort(stable=True)
