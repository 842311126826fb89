"""Reconstruction of a batch from its sparse code, and gradients of its log error.

Autograd would spend six dense (n_rows, d_sae, d_in) products on a step of which n * k
of n * d_sae entries matter. Here every product but one visits the active entries only:
weighted sums of rows, by token or by feature. The exception is the slope of the active
entries: units for bfloat16 multiply all of them faster than a core gathers a few.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from helpers.sae._peers import ALONE, Peers
from helpers.sae._selection import Code, sort_by_feature

__all__ = [
    "Gradients",
    "Parameters",
    "Prefixes",
    "Scratch",
    "reconstruct",
    "weighted_sums",
]


class Parameters(NamedTuple):
    """Weights, or their gradients, with features as rows: what sparse products want.

    Attributes
    ----------
    encoder, decoder : torch.Tensor, shape (d_sae, d_in)
    b_enc : torch.Tensor, shape (d_sae,)
    b_dec : torch.Tensor, shape (d_in,)
    """

    encoder: torch.Tensor
    b_enc: torch.Tensor
    decoder: torch.Tensor
    b_dec: torch.Tensor


class Prefixes(NamedTuple):
    """Nested parts of a dictionary that reconstruct on their own.

    Attributes
    ----------
    sizes : tuple of int
        Number of features of each prefix, ascending to d_sae.
    part : torch.Tensor, shape (d_sae,)
        Number of the first prefix that holds each feature, int32.
    """

    sizes: tuple[int, ...]
    part: torch.Tensor

    @classmethod
    def of(cls, sizes: tuple[int, ...], device: torch.device) -> Prefixes:
        """Return the prefixes of these sizes."""
        edges = torch.tensor(sizes, device=device)
        features = torch.arange(sizes[-1], device=device)
        return cls(sizes, torch.searchsorted(edges, features, right=True).int())

    def columns(self) -> list[slice]:
        """Return which features each prefix adds to the one before."""
        starts = (0, *self.sizes[:-1])
        return [slice(a, b) for a, b in zip(starts, self.sizes, strict=True)]


class Scratch:
    """Named tensors that are kept from step to step.

    A CPU has no caching allocator: large tensors made anew page-fault every time, which
    costs as much as the products that fill them.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._held: dict[str, torch.Tensor] = {}

    def __call__(self, name: str, shape: tuple, dtype: torch.dtype) -> torch.Tensor:
        """Return the tensor of this name, with whatever it holds."""
        held = self._held.get(name)
        if held is None or held.shape != shape or held.dtype != dtype:
            held = torch.empty(shape, dtype=dtype, device=self.device)
            self._held[name] = held
        return held

    def cast(self, name: str, value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return a tensor in another precision, itself if it has that already."""
        if value.dtype == dtype:
            return value
        return self(name, value.shape, dtype).copy_(value)


class Gradients(NamedTuple):
    """What a batch says about the weights.

    Attributes
    ----------
    error : torch.Tensor, shape (n_rows, d_in)
        Reconstruction by the whole dictionary less the row; overwritten next time.
    loss, square : torch.Tensor, scalars
        Squared error of a row of the whole batch, mean over prefixes and of the whole
        dictionary.
    slopes : Parameters
        Gradients of the logarithm of the loss, this process's part.
    along : torch.Tensor, shape (d_sae,)
        Dot product of each decoder row and its gradient.
    n_fired : torch.Tensor, shape (d_sae,)
        Rows on which each feature is active.
    """

    error: torch.Tensor
    loss: torch.Tensor
    square: torch.Tensor
    slopes: Parameters
    along: torch.Tensor
    n_fired: torch.Tensor


def weighted_sums(
    table: torch.Tensor,
    indices: torch.Tensor,
    n_terms: torch.Tensor,
    coefficients: torch.Tensor,
) -> torch.Tensor:
    """Sum coefficient * table[index] over consecutive terms.

    Parameters
    ----------
    table : torch.Tensor, shape (n, d_in)
        Rows to sum; its precision is that of the result, sums are float32.
    indices : torch.Tensor, shape (n_all_terms,)
        Row of each term, int32.
    n_terms : torch.Tensor, shape (n_sums,)
        Number of terms of each sum.
    coefficients : torch.Tensor, shape (n_all_terms,)
        Factors, rounded to the precision of the table.
    """
    return F.embedding_bag(
        indices,
        table,
        (n_terms.cumsum(0) - n_terms).int(),
        mode="sum",
        per_sample_weights=coefficients.to(table.dtype),
    )


@torch.no_grad()
def reconstruct(
    weights: Parameters,
    decoder: torch.Tensor,
    centered: torch.Tensor,
    code: Code,
    prefixes: Prefixes,
    scratch: Scratch,
    *,
    n_rows: int,
    scores: torch.Tensor,
    peers: Peers = ALONE,
) -> Gradients:
    """Reconstruct rows from their code; return gradients of the log squared error.

    The logarithm keeps gradients at one size while the error falls a hundredfold;
    otherwise the optimizer's memory of the first ones holds the later steps back. The
    selection is constant, as in autograd through a top-k.

    Parameters
    ----------
    weights : Parameters
        In full precision.
    decoder : torch.Tensor, shape (d_sae, d_in)
        The decoder, or a copy in the precision to compute in.
    centered : torch.Tensor, shape (n, d_in)
        Rows less `b_dec`.
    code : Code
        Their active entries.
    prefixes : Prefixes
        Parts of the dictionary that share the loss.
    scratch : Scratch
        Space for intermediate results.
    n_rows : int
        Rows of the whole batch; `centered` may be one process's part of them.
    scores : torch.Tensor, shape (n, d_sae)
        Space in the precision of `decoder`, overwritten if that is bfloat16.
    peers : Peers
        Processes that hold the other rows.
    """
    n_parts, (n, d_in), d_sae = len(prefixes.sizes), centered.shape, len(decoder)
    full, low = centered.dtype, decoder.dtype
    dense = low == torch.bfloat16
    bag = code.rows
    if n_parts > 1:  # a token's features ascend, so its prefixes do
        bag = bag * n_parts + prefixes.part.index_select(0, code.features)
    n_active = torch.bincount(bag, minlength=n * n_parts)
    with torch.enable_grad():  # only for the slope of the active entries
        acts = code.acts.detach().requires_grad_(not dense)
        written = weighted_sums(decoder, code.features, n_active, acts)
    errors = torch.sub(
        written.detach().view(n, n_parts, d_in),
        centered[:, None],
        out=scratch("errors", (n, n_parts, d_in), full),
    )
    for part in range(1, n_parts):
        errors[:, part] += errors[:, part - 1]
        errors[:, part] += centered
    loss = _sum_of_squares(errors) / (n_rows * n_parts)
    error, square = errors[:, 0], loss
    if n_parts > 1:
        error = scratch("error", (n, d_in), full).copy_(errors[:, -1])
        square = _sum_of_squares(error) / n_rows
        for part in reversed(range(n_parts - 1)):  # later prefixes hold a feature too
            errors[:, part] += errors[:, part + 1]
    totals = torch.stack([loss, square])
    peers.add(totals)
    loss, square = totals
    tiny = torch.finfo(full).tiny  # a perfect reconstruction has no slope
    step = 2 / (n_rows * n_parts * loss.clamp_min(tiny))
    slopes = scratch("slopes", (n * n_parts, d_in), low)
    torch.mul(errors.view(n * n_parts, d_in), step, out=slopes)

    if dense:
        by_part = slopes.view(n, n_parts, d_in)
        for part, columns in enumerate(prefixes.columns()):
            torch.mm(by_part[:, part], decoder[columns].T, out=scores[:, columns])
        acts_slope = scores.view(-1).index_select(0, code.flat).to(full)
    else:
        (acts_slope,) = torch.autograd.grad(written, acts, slopes)
    acts = acts.detach()

    n_fired = torch.bincount(code.features, minlength=d_sae)
    b_enc = torch.bincount(code.features, acts_slope, d_sae).to(full)
    order = sort_by_feature(code, d_sae)
    encoder_slope = weighted_sums(
        scratch.cast("centered", centered, low),
        code.rows.index_select(0, order),
        n_fired,
        acts_slope.index_select(0, order),
    )
    decoder_slope = weighted_sums(
        slopes, bag.index_select(0, order), n_fired, acts.index_select(0, order)
    )
    return Gradients(
        error=error,
        loss=loss,
        square=square,
        slopes=Parameters(
            encoder=scratch.cast("encoder slope", encoder_slope, full),
            b_enc=b_enc,
            decoder=scratch.cast("decoder slope", decoder_slope, full),
            # b_dec is added to the output and subtracted from the input.
            b_dec=errors[:, 0].sum(0) * step - b_enc @ weights.encoder,
        ),
        along=torch.bincount(code.features, acts * acts_slope, d_sae).to(full),
        n_fired=n_fired,
    )


def _sum_of_squares(values: torch.Tensor) -> torch.Tensor:
    flat = values.reshape(-1)
    return torch.dot(flat, flat)
