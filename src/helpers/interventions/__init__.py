"""Ablate and steer SAE features, and measure what that does to the prediction.

Streams are torch tensors (batch, tokens, d); outcomes are arrays, windows first.
Every edit keeps the SAE's error: x' = x + (z' - z) W, with z the feature activations
and W the decoder directions in units of the stream. Replacing x by a reconstruction
would mix the SAE's own damage into the effect.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import nn

from helpers.blockstats import BlockBootstrap, block_bootstrap
from helpers.interventions._matched_sets import (
    MatchedSets,
    matched_random_sets,
    written_norm,
)
from helpers.outcomes import (
    EffectSize,
    GapClosed,
    OutputRescale,
    effect_size,
    gap_closed,
    gap_terms,
    output_rescale,
)
from helpers.probe import evaluating, restart

__all__ = [
    "BlockBootstrap",
    "EffectSize",
    "Effects",
    "GapClosed",
    "MatchedSets",
    "OutputRescale",
    "ablate",
    "ablation_deltas",
    "block_bootstrap",
    "check_finite",
    "diff_mean",
    "edit_blocks",
    "effect_size",
    "effects",
    "gap_closed",
    "gap_terms",
    "matched_random_sets",
    "output_rescale",
    "steer",
    "steering_direction",
    "written_norm",
]

VALUES = ("zero", "mean", "resample")


class SAE(Protocol):
    """What an intervention needs of a dictionary."""

    decoder_directions: torch.Tensor  # (d_sae, d), units of the stream

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Map streams (n, d) to feature activations (n, d_sae)."""


@torch.no_grad()
def ablate(
    x: torch.Tensor,
    sae: SAE,
    features: Sequence[int] | np.ndarray | torch.Tensor,
    *,
    value: str = "resample",
    reference: torch.Tensor | None = None,
    strength: float = 1.0,
) -> torch.Tensor:
    """Give features another value at every token and leave all else as it is.

    Parameters
    ----------
    x : torch.Tensor, shape (batch, tokens, d)
        Stream to edit; never changed in place.
    sae : SAE
        Dictionary of this layer.
    features : sequence of int
        Features to edit.
    value : {"resample", "mean", "zero"}, default "resample"
        New activations: those of `reference`, the same windows in the other condition
        (in distribution, hence the default); a mean; or none.
    reference : torch.Tensor, optional
        For "resample" a stream shaped like `x`, for "mean" activations (d_sae,).
    strength : float, default 1.0
        Share of the change z' - z that is made.

    Returns
    -------
    torch.Tensor, shape (batch, tokens, d)
        Edited stream. Tokens whose features do not change keep their bits; if none
        changes, this is `x` itself.

    Raises
    ------
    ValueError
        If a feature does not exist in this SAE or is named twice, the set is empty, the
        reference does not fit the value, or `strength` is not finite.
    """
    check_finite("strength", strength)
    chosen = _feature_indices(features, sae.decoder_directions)
    change = _change(x, sae, value, reference)[..., chosen] * strength
    touched = change.ne(0).any(dim=-1)  # (batch, tokens)
    if not touched.any():
        return x
    delta = change[touched] @ sae.decoder_directions[chosen]
    out = x.clone()
    out[touched] = (x[touched].to(delta.dtype) + delta).to(x.dtype)
    return out


@torch.no_grad()
def ablation_deltas(
    x: torch.Tensor,
    sae: SAE,
    sets: Iterable[Sequence[int] | np.ndarray],
    *,
    value: str = "resample",
    reference: torch.Tensor | None = None,
    strength: float = 1.0,
) -> Iterator[torch.Tensor]:
    """Yield the change of the stream for each of many feature sets.

    The stream is encoded once for all sets. ``x + delta`` is `ablate` up to rounding;
    parameters are those of `ablate`, with `sets` a sequence of feature sets.

    Yields
    ------
    torch.Tensor, shape (batch, tokens, d)
        (z' - z) W restricted to the set, times `strength`.
    """
    check_finite("strength", strength)
    change = _change(x, sae, value, reference)
    # One row per feature: gathering a set is then a copy of whole rows.
    by_feature = change.flatten(0, 1).T.contiguous()  # (d_sae, batch * tokens)
    directions = sae.decoder_directions * strength
    for features in sets:
        chosen = _feature_indices(features, directions)
        # Faster than brackets, whose cost shows at a late block
        acts, written = (of.index_select(0, chosen) for of in (by_feature, directions))
        delta = acts.T @ written
        yield delta.reshape(x.shape).to(x.dtype)


def steer(x: torch.Tensor, direction: torch.Tensor, alpha: float) -> torch.Tensor:
    """Add ``alpha * direction`` to every token of a stream.

    Parameters
    ----------
    x : torch.Tensor, shape (batch, tokens, d)
        Stream; returned as it is if nothing is added.
    direction : torch.Tensor, shape (d,)
        For example from `steering_direction` or `diff_mean`.
    alpha : float
        Dose; 1 moves by the whole difference, negative values the other way.

    Raises
    ------
    ValueError
        If the direction does not fit the stream, or a number is not finite.
    """
    check_finite("alpha", alpha)
    if direction.shape != x.shape[-1:] or not direction.isfinite().all():
        raise ValueError(
            f"direction must be a finite vector of shape {tuple(x.shape[-1:])}; got "
            f"shape {tuple(direction.shape)}"
        )
    if alpha == 0 or not direction.any():
        return x
    return x + (alpha * direction).to(x.dtype)


@torch.no_grad()
def steering_direction(
    mean0: torch.Tensor,
    mean1: torch.Tensor,
    sae: SAE,
    features: Sequence[int] | np.ndarray | torch.Tensor,
) -> torch.Tensor:
    """Sum the decoder directions of features, weighted by their mean differences.

    With all features this is `diff_mean` of the reconstructions: a sparse part of it.

    Parameters
    ----------
    mean0, mean1 : torch.Tensor, shape (d_sae,)
        Mean feature activations in the context left and in the context aimed at.
    sae : SAE
        Dictionary of this layer.
    features : sequence of int
        Features to move.

    Returns
    -------
    torch.Tensor, shape (d,)
        Direction for `steer`.

    Raises
    ------
    ValueError
        If the means are not those of this SAE's features, or a feature does not exist.
    """
    chosen = _feature_indices(features, sae.decoder_directions)
    expected = (len(sae.decoder_directions),)
    for name, mean in (("mean0", mean0), ("mean1", mean1)):
        if tuple(mean.shape) != expected:
            raise ValueError(
                f"{name} must have shape {expected}, one number per feature of this "
                f"SAE; got {tuple(mean.shape)}"
            )
    return (mean1 - mean0)[chosen] @ sae.decoder_directions[chosen]


def diff_mean(x0: torch.Tensor, x1: torch.Tensor) -> torch.Tensor:
    """Return the difference of the mean streams, (..., d) -> (d,), towards `x1`."""
    return x1.flatten(0, -2).mean(dim=0) - x0.flatten(0, -2).mean(dim=0)


def _change(
    x: torch.Tensor, sae: SAE, value: str, reference: torch.Tensor | None
) -> torch.Tensor:
    """Compute z' - z for all features, shape (batch, tokens, d_sae)."""
    if value not in VALUES:
        raise ValueError(f"value must be one of {VALUES}; got {value!r}")
    d_sae = len(sae.decoder_directions)
    expected = {"zero": None, "mean": (d_sae,), "resample": tuple(x.shape)}[value]
    found = None if reference is None else tuple(reference.shape)
    if found != expected:
        raise ValueError(
            f"reference must have shape {expected} for value={value!r}; got {found}"
        )
    feature_acts = _encode(sae, x)
    if value == "zero":
        return -feature_acts
    if value == "mean":
        return reference.to(feature_acts) - feature_acts
    return _encode(sae, reference) - feature_acts


def _encode(sae: SAE, x: torch.Tensor) -> torch.Tensor:
    """Encode a stream token by token, in the precision of the SAE."""
    tokens = x.flatten(0, -2).to(sae.decoder_directions.dtype)
    return sae.encode(tokens).unflatten(0, x.shape[:-1])


def _feature_indices(
    features: Sequence[int] | np.ndarray | torch.Tensor, directions: torch.Tensor
) -> torch.Tensor:
    """Check a set of features and return it as an index tensor."""
    index = np.asarray(features)
    d_sae = len(directions)
    if index.ndim != 1 or len(index) == 0:
        raise ValueError(
            f"features must be a non-empty list of indices; got shape {index.shape}"
        )
    if index.dtype.kind not in "iu":
        raise ValueError(f"features must be integer indices; got {index.dtype}")
    ordered = np.sort(index)
    if ordered[0] < 0 or ordered[-1] >= d_sae:
        raise ValueError(
            f"features must lie in 0 … {d_sae - 1}, this SAE's; got "
            f"{ordered[0]} … {ordered[-1]} (indices of another SAE?)"
        )
    if (ordered[1:] == ordered[:-1]).any():
        raise ValueError("features must be distinct; got repeated indices")
    return torch.from_numpy(index.astype(np.int64)).to(directions.device)


def check_finite(name: str, number: float) -> None:
    """Refuse a dose or strength that is not finite, naming the argument."""
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite; got {number}")


class Effects(NamedTuple):
    """Outcomes without and with edits.

    Attributes
    ----------
    baseline : torch.Tensor, shape (batch, ...)
        Outcome of the unedited stream.
    edited : torch.Tensor, shape (n_edits, batch, ...)
        Outcome of every edit; the effect is ``edited - baseline``.
    norm : torch.Tensor, shape (n_edits, batch)
        Norm of the change of the stream, over the tokens of a window.
    """

    baseline: torch.Tensor
    edited: torch.Tensor
    norm: torch.Tensor


@torch.no_grad()
def effects(
    model: nn.Module,
    x: torch.Tensor,
    layer: int,
    deltas: Iterable[torch.Tensor],
    *,
    outcome: Callable[[torch.Tensor], torch.Tensor] | None = None,
    batch_tokens: int = 8192,
) -> Effects:
    """Evaluate many edits of one layer, restarting from the captured stream.

    Edits share batches, and nothing before the layer is run again.

    Parameters
    ----------
    model : torch.nn.Module
        EpiBERT, or any model `probe.restart` can start midway.
    x : torch.Tensor, shape (batch, tokens, d)
        Stream captured after `layer`.
    layer : int
        Block number, 0-based.
    deltas : iterable of torch.Tensor
        Changes of the stream, broadcastable to `x`, e.g. from `ablation_deltas`. Taken
        as they come: a generator never has more than a batch in memory.
    outcome : callable, optional
        What to keep of the model's output (batch, n_outputs), e.g. the mean over a
        class of tokens; by default all of it.
    batch_tokens : int, default 8192
        Tokens per forward pass, of whole windows and of as many edits as fit: where
        little of the model is left to run, the price of a call tells.

    Returns
    -------
    Effects
        On the device of `x`.

    Raises
    ------
    ValueError
        If there is no edit, or `batch_tokens` is not positive.
    """
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens must be positive; got {batch_tokens}")
    n_windows = max(1, batch_tokens // x.shape[1])
    outcome = outcome or (lambda output: output)

    def run(streams: torch.Tensor) -> torch.Tensor:
        parts = [restart(model, part, layer) for part in streams.split(n_windows)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    edited, norms = [], []
    deltas = iter(deltas)
    # As many edits as share one forward pass, in memory that serves all of them.
    n_together = max(1, n_windows // len(x))
    space = x.new_empty(n_together, *x.shape)
    with torch.inference_mode():  # no_grad would still count versions of tensors
        baseline = outcome(run(x))
        while group := list(islice(deltas, n_together)):
            for slot, delta in zip(space, group, strict=False):
                torch.add(x, delta, out=slot)
                norm = torch.linalg.vector_norm(
                    delta.expand_as(x), dim=(1, 2), dtype=torch.float32
                )
                norms.append(norm)
            outputs = run(space[: len(group)].flatten(0, 1))
            edited += [outcome(output) for output in outputs.split(len(x))]
    if not edited:
        raise ValueError("deltas must hold at least one edit; got none")
    return Effects(baseline.clone(), torch.stack(edited), torch.stack(norms))


@torch.no_grad()
def edit_blocks(
    model: nn.Module,
    x: torch.Tensor,
    edits: Mapping[int, Callable[[torch.Tensor], torch.Tensor]],
) -> torch.Tensor:
    """Predict with the streams of several blocks edited, restarted at the first.

    Each edit sees what the edits before it left, as in one forward pass.

    Parameters
    ----------
    model : torch.nn.Module
        EpiBERT, or any model `probe.restart` can start midway.
    x : torch.Tensor, shape (batch, tokens, d)
        Stream captured after the first block edited.
    edits : mapping of int to callable
        Per block a function of its stream, such as `ablate` or `steer`.

    Returns
    -------
    torch.Tensor
        Output of the model.

    Raises
    ------
    ValueError
        If there is no edit, or a block does not exist.
    """
    if not edits:
        raise ValueError("edits must name at least one block; got none")
    n_blocks = len(model.blocks)
    if outside := [block for block in edits if not 0 <= block < n_blocks]:
        raise ValueError(f"blocks must lie in 0 … {n_blocks - 1}; got {outside[0]}")
    # Without hooks, so that several threads may share the model.
    with evaluating(model):
        done = None
        for block in sorted(edits):
            x = edits[block](
                x if done is None else model.run_blocks(x, done, block + 1)
            )
            done = block + 1
        return model.head(model.run_blocks(x, done))
