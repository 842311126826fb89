"""What a reconstruction of the stream does to the model's prediction.

The reconstruction replaces the stream after a block and the model goes on from there.
Loss recovered is ``1 - (L_edited - L_own) / (L_mean - L_own)`` with Poisson losses
against the measured track: 1 if nothing is lost, 0 if the mean stream would do as well.
It is signed and never clipped, and all four losses stand beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from helpers.pretrain._batches import draw_mask, hide
from helpers.probe import restart
from helpers.runs import code_digest
from helpers.stages import Study, train_saes
from helpers.windows import token_targets

__all__ = ["loss_recovered", "splice_losses", "with_recovery"]

Reconstruction = Callable[[torch.Tensor], torch.Tensor]

_N_WINDOWS = 32
_BATCH_TOKENS = 2048  # tokens of a forward pass
_SUMS = ["loss", "loss_edited", "loss_mean", "loss_zero", "change", "gap"]


def loss_recovered(
    study: Study, by: tuple[str, ...] = ("layer", "tokens", "biosample")
) -> pd.DataFrame:
    """Score every dictionary by the prediction loss its reconstruction recovers.

    Parameters
    ----------
    study : Study
        The run.
    by : tuple of str
        Columns that name a row: some of layer, tokens, biosample and context.

    Returns
    -------
    pandas.DataFrame
        From `with_recovery`.
    """
    saes = train_saes(study)

    def build() -> pd.DataFrame:
        means = {layer: sae.mean for layer, sae in saes.items()}
        edits = {layer: {"dictionary": sae} for layer, sae in saes.items()}
        sums = splice_losses(study, edits, means).drop(columns="name")
        return sums.merge(study.design[["biosample", "context"]], on="biosample")

    recipe = {
        "saes": [study.run.key(f"sae/block{b}") for b in study.blocks],
        "seed": study.seed,
        "n_windows": _N_WINDOWS,
        "code": code_digest("fidelity", "probe", "epibert", "windows"),
    }
    sums = study.run.table("loss_recovered.parquet", recipe, build)
    return with_recovery(sums, by)


@torch.no_grad()
def splice_losses(
    study: Study,
    edits: Mapping[int, Mapping[str, Reconstruction]],
    means: Mapping[int, torch.Tensor],
) -> pd.DataFrame:
    """Put reconstructions in the place of streams and sum the prediction losses.

    Up to 32 evenly spaced ``test`` windows are predicted twice: with the whole track as
    input, scored on ``all`` inner tokens, which is how streams are extracted; and with
    runs of tokens hidden as in pre-training, scored on the ``hidden`` ones, which is
    what the model was trained to do. Dictionaries have seen no hidden tokens.

    Parameters
    ----------
    study : Study
        The run.
    edits : mapping of int to mapping of str to callable
        By layer and name, what replaces a stream of shape (batch, n_tokens, d_model).
    means : mapping of int to torch.Tensor, shape (d_model,)
        By layer the mean of the training rows, the ablation.

    Returns
    -------
    pandas.DataFrame
        One row per layer, name, ``tokens`` and biosample: ``n_tokens`` scored and sums
        over them. ``loss``, ``loss_edited``, ``loss_mean`` and ``loss_zero`` are
        Poisson losses of the model itself, with the reconstruction, with the mean and
        with zeros; ``change`` is the squared change of log1p predictions, ``gap`` their
        squared distance from the prediction for the other biosample of the lineage.

    Raises
    ------
    ValueError
        If a layer has no mean.
    """
    absent = sorted(set(edits) - set(means))
    if absent:
        raise ValueError(f"means must hold a vector for each layer; {absent} lack one")
    partner = {}
    for lineage in study.lineages:
        low, high = study.pair(lineage)
        partner |= {low: high, high: low}
    sums: dict[tuple, np.ndarray] = {}
    for run in _runs(study, sorted(edits)):
        for b, streams in run.streams.items():
            biosample = study.design["biosample"][b]
            target, scored, own = run.target[b], run.scored[b], run.own[b]
            gap = _squared_change(run.own[partner[b]], own, scored)
            before = [float(scored.sum()), _loss(own, target, scored)]
            for layer, x in streams.items():
                mean = means[layer].to(x).expand_as(x).contiguous()
                ablated = [
                    _loss(restart(study.model, stream, layer), target, scored)
                    for stream in (mean, torch.zeros_like(x))
                ]
                for name, edit in edits[layer].items():
                    edited = restart(study.model, edit(x).contiguous(), layer)
                    found = [*before, _loss(edited, target, scored), *ablated]
                    found += [_squared_change(edited, own, scored), gap]
                    key = (layer, name, run.tokens, biosample)
                    sums[key] = sums.get(key, 0) + np.array(found)
    index = pd.MultiIndex.from_tuples(
        sums, names=["layer", "name", "tokens", "biosample"]
    )
    columns = ["n_tokens", *_SUMS]
    return pd.DataFrame(list(sums.values()), index, columns).reset_index()


def with_recovery(sums: pd.DataFrame, by: tuple[str, ...]) -> pd.DataFrame:
    """Turn sums of losses into means, and into the shares recovered.

    Parameters
    ----------
    sums : pandas.DataFrame
        From `splice_losses`, all of it or some rows.
    by : tuple of str
        Columns that name a row of the result; over what is left out, sums are added.

    Returns
    -------
    pandas.DataFrame
        Columns ``by``, ``n_tokens``, the four losses per token, ``recovered`` (against
        the mean) and ``recovered_from_zero``, and ``gap_closed``: what patching the
        reconstruction into the other biosample's run closes of the gap between the two
        predictions, 1 - change / gap on log1p predictions (GC2).
    """
    table = sums.groupby(list(by), sort=False)[["n_tokens", *_SUMS]].sum()
    table = table.reset_index()
    damage = table["loss_edited"] - table["loss"]
    table["recovered"] = 1 - damage / (table["loss_mean"] - table["loss"])
    table["recovered_from_zero"] = 1 - damage / (table["loss_zero"] - table["loss"])
    table["gap_closed"] = 1 - table["change"] / table["gap"]
    for name in ("loss", "loss_edited", "loss_mean", "loss_zero"):
        table[name] /= table["n_tokens"]
    return table.drop(columns=["change", "gap"]).astype({"n_tokens": int})


def _loss(predicted: torch.Tensor, target: torch.Tensor, scored: torch.Tensor) -> float:
    """Return the Poisson loss summed over the tokens that are scored."""
    loss = predicted - target * torch.log(predicted + 1e-7)
    return float((loss * scored).double().sum())


def _squared_change(
    first: torch.Tensor, second: torch.Tensor, scored: torch.Tensor
) -> float:
    """Return the squared distance of two predictions on the log1p scale."""
    change = (torch.log1p(first) - torch.log1p(second)).square()
    return float((change * scored).double().sum())


class _Batch(NamedTuple):
    """Streams of some windows; dictionaries are by biosample, streams by layer too."""

    tokens: str
    streams: dict[int, dict[int, torch.Tensor]]
    own: dict[int, torch.Tensor]
    target: dict[int, torch.Tensor]
    scored: dict[int, torch.Tensor]


def _runs(study: Study, layers: list[int]) -> Iterator[_Batch]:
    """Yield the streams of the windows scored, with and without hidden tokens."""
    dataset, model = study.dataset, study.model
    crop = model.config.crop
    inner = slice(crop, dataset.n_tokens - crop)
    test = dataset.windows_of("test")
    chosen = np.linspace(0, len(test) - 1, min(_N_WINDOWS, len(test))).astype(int)
    everyone = range(len(dataset.biosamples))
    in_peak = [dataset.in_peak(b) for b in everyone]
    motif = torch.from_numpy(dataset.motif_activity).to(study.device)

    def tensor(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).float().to(study.device)

    size = max(1, _BATCH_TOKENS // dataset.n_tokens)
    for first in range(0, len(chosen), size):
        windows = test[chosen[first : first + size]]
        features = model.encode_sequence(tensor(dataset.sequence(windows)))
        batches: dict[str, _Batch] = {
            tokens: _Batch(tokens, {}, {}, {}, {}) for tokens in ("all", "hidden")
        }
        for b in everyone:
            track = dataset.track(windows, b)
            rng = np.random.default_rng([study.seed, b, first])
            mask = draw_mask(in_peak[b][windows], rng, crop=crop, triple=False)
            for tokens, batch in batches.items():
                hidden = mask if tokens == "hidden" else np.zeros_like(mask)
                scored = mask if tokens == "hidden" else np.ones_like(mask)
                atac = tensor(hide(track, hidden))
                x = model.encode_context(features, atac, motif[b].expand(len(atac), -1))
                batch.streams[b], start = {}, 0
                for layer in layers:
                    x = model.run_blocks(x, start, layer + 1)
                    batch.streams[b][layer], start = x, layer + 1
                batch.own[b] = model.head(model.run_blocks(x, start))
                batch.target[b] = tensor(token_targets(track)[:, inner])
                batch.scored[b] = tensor(scored[:, inner])
        yield from batches.values()
