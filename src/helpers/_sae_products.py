"""Reconstruction of a batch from its sparse code, and the gradients of its error.

Autograd would spend six dense (n_rows, d_sae, d_in) products on a step of which n * k
of n * d_sae entries matter. Here every product but one visits the active entries only:
weighted sums of rows, by token or by feature. The exception is the slope of the active
entries: units for bfloat16 multiply all of them faster than a core gathers a few.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from helpers._sae_selection import Code, sort_by_feature

__all__ = ["Gradients", "Parameters", "Prefixes", "reconstruct", "weighted_sums"]


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


class Gradients(NamedTuple):
    """What a batch says about the weights.

    Attributes
    ----------
    error : torch.Tensor, shape (n_rows, d_in)
        Reconstruction by the whole dictionary less the row.
    loss : torch.Tensor, scalar
        Squared error of a row, mean over prefixes, summed over rows and divided by the
        rows of the whole batch.
    slopes : Parameters
        Gradients of the loss.
    along : torch.Tensor, shape (d_sae,)
        Dot product of each decoder row and its gradient.
    n_fired : torch.Tensor, shape (d_sae,)
        Rows on which each feature is active.
    """

    error: torch.Tensor
    loss: torch.Tensor
    slopes: Parameters
    along: torch.Tensor
    n_fired: torch.Tensor


def weighted_sums(
    table: torch.Tensor,
    indices: torch.Tensor,
    bags: torch.Tensor,
    coefficients: torch.Tensor,
    n_bags: int,
) -> torch.Tensor:
    """Sum coefficient * table[index] within each bag.

    Parameters
    ----------
    table : torch.Tensor, shape (n, d_in)
        Rows to sum; its precision is that of the result, sums are float32.
    indices, bags : torch.Tensor, shape (n_terms,)
        Row of each term and the sum it belongs to, int32; `bags` must ascend.
    coefficients : torch.Tensor, shape (n_terms,)
        Factors, rounded to the precision of the table.
    n_bags : int
        Number of sums.
    """
    starts = torch.searchsorted(
        bags, torch.arange(n_bags, device=bags.device, dtype=bags.dtype), out_int32=True
    )
    return F.embedding_bag(
        indices,
        table,
        starts,
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
    *,
    n_rows: int,
    scores: torch.Tensor,
) -> Gradients:
    """Reconstruct rows from their code and return the gradients of the squared error.

    The selection is constant, as in autograd through a top-k.

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
    n_rows : int
        Rows of the whole batch; `centered` may be one process's part of them.
    scores : torch.Tensor, shape (n, d_sae)
        Scratch space in the precision of `decoder`, overwritten if that is bfloat16.
    """
    n_parts, (n, d_in) = len(prefixes.sizes), centered.shape
    dense = decoder.dtype == torch.bfloat16
    bag = code.rows
    if n_parts > 1:  # a token's features ascend, so its prefixes do
        bag = bag * n_parts + prefixes.part[code.features]
    with torch.enable_grad():  # only for the slope of the active entries
        acts = code.acts.detach().requires_grad_(not dense)
        written = weighted_sums(decoder, code.features, bag, acts, n * n_parts)
    errors = written.detach().to(centered.dtype).view(n, n_parts, d_in)
    for part in range(1, n_parts):
        errors[:, part] += errors[:, part - 1]
    errors = errors - centered[:, None]
    loss = errors.square().sum() / (n_rows * n_parts)
    slopes = errors * (2 / (n_rows * n_parts))
    for part in reversed(range(n_parts - 1)):  # a feature is in all later prefixes too
        slopes[:, part] += slopes[:, part + 1]
    table = slopes.view(n * n_parts, d_in).to(decoder.dtype)

    if dense:
        by_part = table.view(n, n_parts, d_in)
        for part, columns in enumerate(prefixes.columns()):
            torch.mm(by_part[:, part], decoder[columns].T, out=scores[:, columns])
        acts_slope = scores.view(-1)[code.flat].to(centered.dtype)
    else:
        (acts_slope,) = torch.autograd.grad(written, acts, table)
    acts = acts.detach()

    d_sae, order = len(decoder), sort_by_feature(code, len(decoder))
    features = code.features[order]
    b_enc = torch.bincount(code.features, acts_slope, d_sae).to(centered.dtype)
    return Gradients(
        error=errors[:, -1],
        loss=loss,
        slopes=Parameters(
            encoder=weighted_sums(
                centered.to(decoder.dtype),
                code.rows[order],
                features,
                acts_slope[order],
                d_sae,
            ).to(centered.dtype),
            b_enc=b_enc,
            decoder=weighted_sums(table, bag[order], features, acts[order], d_sae).to(
                centered.dtype
            ),
            # b_dec is added to the output and subtracted from the input.
            b_dec=slopes[:, 0].sum(0) - b_enc @ weights.encoder,
        ),
        along=torch.bincount(code.features, acts * acts_slope, d_sae).to(b_enc.dtype),
        n_fired=torch.bincount(code.features, minlength=d_sae),
    )
