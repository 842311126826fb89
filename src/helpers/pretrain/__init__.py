"""Pre-training of EpiBERT by masked accessibility, as its authors do it.

Tracks of masked tokens are set to zero, the model predicts their signal from sequence,
neighbors and motif activity, and the loss is Poisson over masked tokens only (Javed et
al. 2025, Cell Genomics 5:100762). A step takes a few windows and several biosamples of
each, so that the sequence tower, three quarters of the cost, runs once per window.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from helpers.epibert import EpiBERT, EpiBERTConfig
from helpers.pretrain._batches import (
    TrainingArrays,
    draw_batch,
    draw_mask,
    hide,
    load_arrays,
)
from helpers.sae._checkpoint import read_checkpoint, write_checkpoint
from helpers.windows import BIN_BP, token_targets

__all__ = [
    "MaskedPrediction",
    "PretrainConfig",
    "TrainingArrays",
    "draw_mask",
    "load_arrays",
    "masked_poisson_loss",
    "predict_masked",
    "pretrain",
]

_PROGRESS_EVERY = 100


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
        Seed of initial weights, order, masks, augmentation and dropout.
    """

    n_steps: int = 20_000
    windows_per_step: int = 8
    biosamples_per_window: int = 8
    learning_rate: float = 2e-3
    warmup_steps: int = 300
    bfloat16: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every field."""
        for name in ("n_steps", "windows_per_step", "biosamples_per_window"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 1; got {getattr(self, name)}"
                )
        for name in ("warmup_steps", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0; got {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(
                f"learning_rate must be positive and finite; got {self.learning_rate}"
            )


def masked_poisson_loss(predicted: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of ``pred - true * log(pred)`` over masked tokens.

    Parameters
    ----------
    predicted, target, mask : torch.Tensor, shape (batch, n_outputs)
        Prediction, measured signal, and which tokens were hidden.

    Returns
    -------
    torch.Tensor
        A scalar; 0 if no token was hidden.
    """
    loss = predicted - target * torch.log(predicted + 1e-7)
    return (loss * mask).sum() / mask.sum().clamp(min=1)


def _one_hot(codes: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(codes.long(), 5)[..., :4].float()


def _inner(config: EpiBERTConfig) -> slice:
    """Return the tokens that get an output."""
    return slice(config.crop, config.n_tokens - config.crop)


def _forward(model: EpiBERT, batch: dict[str, Tensor]) -> Tensor:
    """Predict a batch; the sequence tower runs once per window."""
    features = model.encode_sequence(_one_hot(batch["codes"]))
    per_window = len(batch["atac"]) // len(features)
    features = features.repeat_interleave(per_window, dim=0)
    stream = model.encode_context(features, batch["atac"], batch["motif_activity"])
    return model.head(model.run_blocks(stream))


def _rate(step: int, config: PretrainConfig) -> float:
    """Return the learning rate of a step: warm-up, then cosine to a tenth."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.n_steps - config.warmup_steps)
    return config.learning_rate * (0.55 + 0.45 * math.cos(math.pi * min(done, 1)))


def _check_sizes(data: TrainingArrays, config: EpiBERTConfig) -> None:
    n_bins = config.input_length // BIN_BP
    if data.tracks.shape[-1] != n_bins:
        raise ValueError(
            f"the model expects windows of {n_bins} bins; the data have tracks of "
            f"shape {data.tracks.shape}"
        )
    if data.motif_activity.shape[1] != config.n_motifs:
        raise ValueError(
            f"the model expects {config.n_motifs} motifs; the data have "
            f"{data.motif_activity.shape[1]}"
        )


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
        File that holds the state every ``checkpoint_every`` steps and at the end. If
        it exists, the run continues from it and ends as an undisturbed run would.
    checkpoint_every : int
        Steps between checkpoints.
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
        or the checkpoint is damaged, of another recipe or of other data.
    OSError
        If the checkpoint cannot be written.
    FloatingPointError
        If the loss is no longer finite.
    """
    _check_sizes(data, model_config)
    if data.tracks.shape[1] < config.windows_per_step:
        raise ValueError(
            f"a step takes {config.windows_per_step} windows; the data have "
            f"{data.tracks.shape[1]}"
        )
    if checkpoint_every < 1:
        raise ValueError(f"checkpoint_every must be at least 1; got {checkpoint_every}")
    recipe = {"model": model_config.to_dict(), "training": asdict(config)}
    if checkpoint is not None:
        recipe["data"] = data.digest()
        checkpoint = Path(checkpoint)
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
    model = EpiBERT(model_config, random_state=config.seed).to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), eps=1e-8, fused=True)
    first, mean_loss = 0, 0.0
    if checkpoint is not None:
        first, mean_loss = _restore(checkpoint, model, optimizer, recipe)
    start = time.monotonic()
    with _own_random_state(device):
        for step in range(first, config.n_steps):
            # Each step has its own generators, so a resumed run repeats nothing.
            random_state = np.random.default_rng([config.seed, step])
            torch.manual_seed(config.seed * 1_000_003 + step)  # of dropout
            batch = draw_batch(
                data,
                random_state,
                n_windows=config.windows_per_step,
                n_biosamples=config.biosamples_per_window,
                crop=model_config.crop,
            )
            rate = _rate(step, config)
            loss = _step(model, optimizer, batch, rate, bfloat16=config.bfloat16)
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"the loss is {loss} at step {step}; a lower learning_rate than "
                    f"{config.learning_rate} may help"
                )
            mean_loss += (loss - mean_loss) * (1.0 if step == 0 else 0.01)
            done = step + 1
            if progress and done % _PROGRESS_EVERY == 0:
                seconds = time.monotonic() - start
                progress(
                    {
                        "step": done,
                        "loss": mean_loss,
                        "learning_rate": rate,
                        "seconds": seconds,
                    }
                )
            last = done == config.n_steps
            if checkpoint is not None and (last or done % checkpoint_every == 0):
                _save(checkpoint, model, optimizer, done, mean_loss, recipe)
    return model.eval()


def _step(
    model: EpiBERT,
    optimizer: torch.optim.Optimizer,
    batch: dict[str, np.ndarray],
    rate: float,
    *,
    bfloat16: bool,
) -> float:
    """Take one optimizer step and return the loss before it."""
    device = next(model.parameters()).device
    tensors = {name: torch.from_numpy(x).to(device) for name, x in batch.items()}
    for group in optimizer.param_groups:
        group["lr"] = rate
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        predicted = _forward(model, tensors)
    inner = _inner(model.config)
    loss = masked_poisson_loss(
        predicted.float(), tensors["target"][:, inner], tensors["mask"][:, inner]
    )
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def _save(
    path: Path,
    model: EpiBERT,
    optimizer: torch.optim.Optimizer,
    step: int,
    mean_loss: float,
    recipe: dict,
) -> None:
    """Replace the checkpoint in one step."""
    state = {
        "identity": recipe,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "loss": mean_loss,
    }
    write_checkpoint(path, state)


def _restore(
    path: Path, model: EpiBERT, optimizer: torch.optim.Optimizer, recipe: dict
) -> tuple[int, float]:
    """Load a checkpoint, if there is one; return steps done and the mean loss."""
    state = read_checkpoint(path, recipe)
    if state is None:
        return 0, 0.0
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["loss"]


@contextmanager
def _own_random_state(device: str) -> Iterator[None]:
    """Leave the global generators of torch, which dropout draws from, as they were."""
    cuda = torch.device(device).type == "cuda"
    devices = range(torch.cuda.device_count()) if cuda else []
    with torch.random.fork_rng(devices):
        yield


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
        Input to take away: ``motif_activity`` (every biosample gets the mean vector of
        all in ``data``) or ``neighbors`` (the whole track is hidden).
    batch_size : int
        Windows at a time.
    device : str
        Where to compute.
    random_state : int
        Seed of the masks; equal seeds hide equal tokens, whatever ``without`` is.

    Returns
    -------
    MaskedPrediction

    Raises
    ------
    ValueError
        If ``without`` is none of the above, the model is in training mode, or data and
        model disagree in size.
    """
    if without not in (None, "motif_activity", "neighbors"):
        raise ValueError(
            f"without must be 'motif_activity' or 'neighbors'; got {without!r}"
        )
    if model.training:
        raise ValueError("model must be in inference mode; call model.eval() first")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    config = model.config
    _check_sizes(data, config)
    n_biosamples, n_windows, _ = data.tracks.shape
    mask = draw_mask(
        data.in_peak.reshape(-1, config.n_tokens),
        np.random.default_rng(random_state),
        crop=config.crop,
        triple=False,
    ).reshape(data.in_peak.shape)
    hidden = np.ones_like(mask) if without == "neighbors" else mask
    motif = data.motif_activity
    if without == "motif_activity":
        motif = np.broadcast_to(motif.mean(axis=0), motif.shape)
    motif = torch.tensor(np.ascontiguousarray(motif), device=device).float()
    predicted = np.empty((n_biosamples, n_windows, config.n_outputs), dtype=np.float32)
    for first in range(0, n_windows, batch_size):
        part = slice(first, first + batch_size)
        codes = data.codes[part, data.margin : data.margin + config.input_length]
        features = model.encode_sequence(_one_hot(torch.from_numpy(codes).to(device)))
        for b in range(n_biosamples):
            track = data.tracks[b, part].astype(np.float32)
            atac = torch.from_numpy(hide(track, hidden[b, part])).to(device)
            vector = motif[b].expand(len(atac), -1)
            stream = model.encode_context(features, atac, vector)
            predicted[b, part] = model.head(model.run_blocks(stream)).cpu().numpy()
    inner = _inner(config)
    target = token_targets(data.tracks.astype(np.float32))
    return MaskedPrediction(predicted, target[..., inner], mask[..., inner])
