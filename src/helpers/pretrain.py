"""Pre-training of EpiBERT by masked accessibility, as its authors do it.

Tracks of masked tokens are set to zero, the model predicts their signal from sequence,
neighbors and motif activity, and the loss is Poisson over masked tokens only (Javed et
al. 2025, Cell Genomics 5:100762). A step takes a few windows and several biosamples of
each, so that the sequence tower, three quarters of the cost, runs once per window.

``python -m helpers.pretrain --help`` trains a model from tissue files.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from helpers.epibert import EpiBERT, EpiBERTConfig
from helpers.tissues import read_tissues
from helpers.windows import BIN_BP, TOKEN_BP, WindowDataset, soft_clip, token_targets

__all__ = [
    "PretrainConfig",
    "TrainingArrays",
    "draw_mask",
    "load_arrays",
    "masked_poisson_loss",
    "predict_masked",
    "pretrain",
]

_log = logging.getLogger(__name__)
_PEAK_HALF_TOKENS = 6  # 13 tokens around a peak center: mask size 1,536 bp
_RUN_TOKENS, _RUN_RATE = 12, 0.15
_TRIPLE_ODDS = 15  # one example in 15 is masked at three times the rate
_BINS = TOKEN_BP // BIN_BP
_INPUT_CLIP = 150.0


@dataclass(frozen=True)
class PretrainConfig:
    """How long and how fast to train.

    Attributes
    ----------
    n_steps : int
        Optimizer steps.
    windows_per_step, biosamples_per_window : int
        A step sees their product of examples.
    learning_rate : float
        Peak of the schedule: linear warm-up, then cosine to 10 %.
    warmup_steps : int
        Steps of warm-up.
    bfloat16 : bool
        Compute in bfloat16 (the authors do); weights and optimizer stay float32.
    seed : int
        Seed of initial weights, order, masks and augmentation.
    """

    n_steps: int = 20_000
    windows_per_step: int = 8
    biosamples_per_window: int = 8
    learning_rate: float = 2e-3
    warmup_steps: int = 300
    bfloat16: bool = False
    seed: int = 0


@dataclass(frozen=True)
class TrainingArrays:
    """A data set held in memory.

    Attributes
    ----------
    codes : numpy.ndarray, shape (n_windows, window_bp + 2 * margin), uint8
        Base codes with a margin for the jitter of the sequence.
    tracks : numpy.ndarray, shape (n_biosamples, n_windows, n_bins), float16
        Scaled tracks without soft clip.
    in_peak : numpy.ndarray, shape (n_biosamples, n_windows, n_tokens), bool
        Tokens that overlap a peak.
    motif_activity : numpy.ndarray, shape (n_biosamples, n_motifs)
        Scaled motif activity.
    """

    codes: np.ndarray
    tracks: np.ndarray
    in_peak: np.ndarray
    motif_activity: np.ndarray
    margin: int = 3


def load_arrays(
    dataset: WindowDataset, windows: np.ndarray, biosamples: np.ndarray
) -> TrainingArrays:
    """Read windows x biosamples into memory.

    Parameters
    ----------
    dataset : WindowDataset
        The data set.
    windows, biosamples : numpy.ndarray of int
        Which to read.
    """
    margin = 3
    codes = [dataset.codes(w, margin=margin) for w in windows]
    return TrainingArrays(
        codes=np.stack(codes),
        tracks=np.stack(
            [dataset.track(windows, b).astype(np.float16) for b in biosamples]
        ),
        in_peak=np.stack([dataset.in_peak(b)[windows] for b in biosamples]),
        motif_activity=dataset.motif_activity[biosamples],
        margin=margin,
    )


def draw_mask(
    in_peak: np.ndarray,
    random_state: np.random.Generator,
    *,
    crop: int,
    triple: bool = True,
) -> np.ndarray:
    """Draw the tokens whose track is hidden.

    The mask is the union of 13 tokens around one random peak of the window and of runs
    of 12 inner tokens, each hidden with probability 0.15 (0.45 in one example of 15
    while training).

    Parameters
    ----------
    in_peak : numpy.ndarray, shape (n, n_tokens), bool
        Tokens that overlap a peak.
    random_state : numpy.random.Generator
        Source of randomness.
    crop : int
        Tokens at each end that the model does not predict; runs avoid them.
    triple : bool
        Whether to triple the rate now and then (off in validation).

    Returns
    -------
    numpy.ndarray, shape (n, n_tokens), bool
    """
    n, n_tokens = in_peak.shape
    inner = n_tokens - 2 * crop
    rate = np.full(n, _RUN_RATE)
    if triple:
        rate[random_state.random(n) < 1 / _TRIPLE_ODDS] *= 3
    runs = random_state.random((n, -(-inner // _RUN_TOKENS))) < rate[:, None]
    mask = np.zeros_like(in_peak)
    mask[:, crop : n_tokens - crop] = np.repeat(runs, _RUN_TOKENS, axis=1)[:, :inner]
    order = random_state.random(in_peak.shape) * in_peak
    center = order.argmax(axis=1)
    token = np.arange(n_tokens)
    near = np.abs(token[None] - center[:, None]) <= _PEAK_HALF_TOKENS
    return mask | (near & in_peak.any(axis=1)[:, None])


def masked_poisson_loss(predicted: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of ``pred - true * log(pred)`` over masked tokens.

    Parameters
    ----------
    predicted, target, mask : torch.Tensor, shape (batch, n_outputs)
        Prediction, measured signal, and which tokens were hidden.
    """
    loss = predicted - target * torch.log(predicted + 1e-7)
    return (loss * mask).sum() / mask.sum().clamp(min=1)


def _batch(
    data: TrainingArrays, config: PretrainConfig, rng: np.random.Generator, crop: int
) -> dict[str, np.ndarray]:
    """Draw one augmented batch."""
    n_bio, n_windows, n_bins = data.tracks.shape
    window = rng.choice(n_windows, config.windows_per_step, replace=False)
    per = config.biosamples_per_window
    biosample = np.stack(
        [rng.choice(n_bio, per, replace=per > n_bio) for _ in window]
    )
    length = n_bins * BIN_BP
    shift = rng.integers(0, 4, len(window))
    codes = np.stack(
        [
            data.codes[w, data.margin + s : data.margin + s + length]
            for w, s in zip(window, shift, strict=True)
        ]
    )
    track = data.tracks[biosample, window[:, None]].astype(np.float32)
    track += np.abs(rng.normal(1e-4, 1e-4, track.shape).astype(np.float32))
    peak = data.in_peak[biosample, window[:, None]]
    mask = draw_mask(peak.reshape(-1, peak.shape[-1]), rng, crop=crop)
    mask = mask.reshape(peak.shape)
    flip = rng.random(len(window)) < 0.5
    complement = np.array([3, 2, 1, 0, 4], dtype=np.uint8)
    codes[flip] = complement[codes[flip, ::-1]]
    track[flip], mask[flip] = track[flip, :, ::-1], mask[flip, :, ::-1]
    motif = data.motif_activity[biosample]
    motif = motif + np.abs(rng.normal(0, 1e-4, motif.shape))
    return {
        "codes": codes,
        "target": token_targets(track).reshape(-1, mask.shape[-1]),
        "atac": soft_clip(track * ~np.repeat(mask, _BINS, axis=-1), _INPUT_CLIP).reshape(
            -1, n_bins
        ),
        "mask": mask.reshape(-1, mask.shape[-1]),
        "motif_activity": motif.reshape(-1, motif.shape[-1]),
    }


def _one_hot(codes: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(codes.long(), 5)[..., :4].float()


def _forward(model: EpiBERT, batch: dict[str, Tensor], per_window: int) -> Tensor:
    features = model.encode_sequence(_one_hot(batch["codes"]))
    features = features.repeat_interleave(per_window, dim=0)
    stream = model.encode_context(features, batch["atac"], batch["motif_activity"])
    return model.head(model.run_blocks(stream))


def _rate(step: int, config: PretrainConfig) -> float:
    """Return the learning rate of a step: warm-up, then cosine to a tenth."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.n_steps - config.warmup_steps)
    return config.learning_rate * (0.55 + 0.45 * math.cos(math.pi * min(done, 1)))


def pretrain(
    data: TrainingArrays,
    model_config: EpiBERTConfig,
    config: PretrainConfig,
    *,
    device: str = "cpu",
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 500,
    progress: Callable[[dict], None] | None = None,
) -> EpiBERT:
    """Train EpiBERT on masked accessibility.

    Parameters
    ----------
    data : TrainingArrays
        Training windows and biosamples.
    model_config : EpiBERTConfig
        Size of the model.
    config : PretrainConfig
        Schedule, batch and seed.
    device : str
        Where to compute.
    checkpoint : path, optional
        File that holds the state every ``checkpoint_every`` steps. If it exists, the
        run continues from it and ends as an undisturbed run would.
    progress : callable, optional
        Receives ``{"step", "loss", "learning_rate", "seconds"}`` every 100 steps.

    Returns
    -------
    EpiBERT
        The trained model, in inference mode.

    Raises
    ------
    ValueError
        If data and model disagree in size, there are fewer windows than a step takes,
        or the checkpoint is of another recipe.
    """
    n_bins = model_config.input_length // BIN_BP
    if data.tracks.shape[-1] != n_bins or data.tracks.shape[1] < config.windows_per_step:
        raise ValueError(
            f"training needs >= {config.windows_per_step} windows of {n_bins} bins; "
            f"got tracks of shape {data.tracks.shape}"
        )
    if data.motif_activity.shape[1] != model_config.n_motifs:
        raise ValueError(
            f"the model expects {model_config.n_motifs} motifs; the data have "
            f"{data.motif_activity.shape[1]}"
        )
    model = EpiBERT(model_config, random_state=config.seed).to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), eps=1e-8, fused=True)
    recipe = {"model": model_config.to_dict(), "training": asdict(config)}
    first, mean_loss = 0, 0.0
    if checkpoint is not None and Path(checkpoint).exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        if state["recipe"] != recipe:
            raise ValueError(f"{checkpoint}: made by another recipe; remove it to start over")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, mean_loss = state["step"], state["loss"]
    start = time.monotonic()
    for step in range(first, config.n_steps):
        # Each step has its own generators, so a resumed run repeats nothing.
        rng = np.random.default_rng([config.seed, step])
        torch.manual_seed(config.seed * 1_000_003 + step)
        arrays = _batch(data, config, rng, model_config.crop)
        batch = {k: torch.from_numpy(v).to(device) for k, v in arrays.items()}
        batch = {k: v.float() if v.is_floating_point() else v for k, v in batch.items()}
        for group in optimizer.param_groups:
            group["lr"] = _rate(step, config)
        kind = torch.device(device).type
        with torch.autocast(kind, torch.bfloat16, enabled=config.bfloat16):
            predicted = _forward(model, batch, config.biosamples_per_window)
        inner = slice(model_config.crop, model_config.n_tokens - model_config.crop)
        loss = masked_poisson_loss(
            predicted.float(), batch["target"][:, inner], batch["mask"][:, inner]
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        mean_loss += (loss.item() - mean_loss) * (1.0 if step == 0 else 0.01)
        if progress and (step + 1) % 100 == 0:
            progress(
                {
                    "step": step + 1,
                    "loss": mean_loss,
                    "learning_rate": _rate(step, config),
                    "seconds": time.monotonic() - start,
                }
            )
        if checkpoint is not None and (step + 1) % checkpoint_every == 0:
            partial = Path(f"{checkpoint}.partial")
            torch.save(
                {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step + 1,
                    "loss": mean_loss,
                    "recipe": recipe,
                },
                partial,
            )
            partial.rename(checkpoint)
    return model.eval()


class MaskedPrediction(NamedTuple):
    """Predictions of hidden tokens.

    Attributes
    ----------
    predicted, target : numpy.ndarray, shape (n_biosamples, n_windows, n_outputs)
        Predicted and measured signal per token, edge tokens left out.
    mask : numpy.ndarray, shape (n_biosamples, n_windows, n_outputs), bool
        Tokens whose track was hidden from the model.
    """

    predicted: np.ndarray
    target: np.ndarray
    mask: np.ndarray


@torch.no_grad()
def predict_masked(
    model: EpiBERT,
    data: TrainingArrays,
    *,
    without: str | None = None,
    batch_size: int = 16,
    device: str = "cpu",
    random_state: int = 0,
) -> MaskedPrediction:
    """Predict the signal of hidden tokens, one draw of the mask per example.

    Parameters
    ----------
    model : EpiBERT
        In inference mode.
    data : TrainingArrays
        Windows x biosamples.
    without : str, optional
        Input to take away: ``motif_activity`` (every biosample gets the mean vector)
        or ``neighbors`` (the whole track is hidden).
    batch_size : int
        Windows at a time.
    device : str
        Where to compute.
    random_state : int
        Seed of the masks; equal seeds hide equal tokens.

    Raises
    ------
    ValueError
        If ``without`` is none of the above.
    """
    if without not in (None, "motif_activity", "neighbors"):
        raise ValueError(
            f"without must be 'motif_activity' or 'neighbors'; got {without!r}"
        )
    config = model.config
    inner = slice(config.crop, config.n_tokens - config.crop)
    n_bio, n_windows, _ = data.tracks.shape
    rng = np.random.default_rng(random_state)
    flat = data.in_peak.reshape(-1, config.n_tokens)
    mask = draw_mask(flat, rng, crop=config.crop, triple=False)
    mask = mask.reshape(data.in_peak.shape)
    motif = data.motif_activity
    if without == "motif_activity":
        motif = np.broadcast_to(motif.mean(axis=0), motif.shape)
    motif = torch.tensor(np.ascontiguousarray(motif), device=device).float()
    predicted = np.empty((n_bio, n_windows, config.n_outputs), dtype=np.float32)
    target = token_targets(data.tracks.astype(np.float32))[..., inner]
    for first in range(0, n_windows, batch_size):
        part = slice(first, first + batch_size)
        codes = data.codes[part, data.margin : -data.margin or None]
        features = model.encode_sequence(_one_hot(torch.from_numpy(codes).to(device)))
        for b in range(n_bio):
            hidden = mask[b, part] if without != "neighbors" else np.ones_like(mask[b, part])
            visible = data.tracks[b, part].astype(np.float32) * ~np.repeat(hidden, _BINS, -1)
            atac = torch.from_numpy(soft_clip(visible, _INPUT_CLIP)).float().to(device)
            vector = motif[b].expand(len(atac), -1)
            stream = model.encode_context(features, atac, vector)
            predicted[b, part] = model.head(model.run_blocks(stream)).cpu().numpy()
    return MaskedPrediction(predicted, target, mask[..., inner])
