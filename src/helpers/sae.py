"""BatchTopK sparse autoencoders: model, training and evaluation card.

Activations are rows ``(n_tokens, d_in)`` in raw residual-stream units everywhere in
the public API; centering and scaling are buffers of the model. In training a batch
keeps its ``n_tokens * k`` largest pre-activations (Bussmann et al. 2024, arXiv
2412.06410). Outside training one fixed threshold decides, token by token.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_save

from . import __version__

__all__ = ["BatchTopKSAE", "Card", "SAEConfig", "evaluate", "train"]

logger = logging.getLogger(__name__)

_CHUNK_ROWS = 4096  # rows held densely at a time outside training
_CALIBRATION_ROWS = 2**17  # enough for a standard error of L0 well below 1 % of k
_WEIGHTS_FILE, _METADATA_FILE = "sae.safetensors", "sae.json"


@dataclass(frozen=True)
class SAEConfig:
    """Width, sparsity and training schedule of a BatchTopK SAE.

    Parameters
    ----------
    d_sae : int
        Number of features.
    k : int
        Mean number of active features per token; below `d_sae`.
    batch_size : int
        Rows per step.
    n_epochs : int
        Passes over the rows, each in a fresh order; the incomplete last batch of a pass
        is left out.
    learning_rate : float
        Peak of Adam's step size. The default suits runs of hundreds to thousands of
        steps; published runs of 10^5 steps use 3e-4.
    warmup, decay : float
        Fractions of all steps over which the step size rises from and falls to zero.
    dead_after : float
        A feature is dead once it has not fired for this many epochs' worth of rows. A
        rule in rows would never apply in a short run.
    aux_k : int, optional
        Dead features used per token to reconstruct what the others missed. Default:
        twice k.
    aux_coefficient : float
        Weight of that auxiliary loss; 0 turns it off.
    aux_rows : int
        Rows of each batch the auxiliary loss looks at.
    random_state : int
        Seed of the initial decoder and of the order of the rows.

    Raises
    ------
    ValueError
        If a field is out of range.
    """

    d_sae: int
    k: int
    batch_size: int = 2048
    n_epochs: int = 5
    learning_rate: float = 4e-3
    warmup: float = 0.05
    decay: float = 0.25
    dead_after: float = 0.1
    aux_k: int | None = None
    aux_coefficient: float = 1 / 32
    aux_rows: int = 1024
    random_state: int = 0

    def __post_init__(self) -> None:
        """Fill in defaults and check every field."""
        if self.aux_k is None:
            object.__setattr__(self, "aux_k", 2 * self.k)
        for name in ("d_sae", "k", "batch_size", "n_epochs", "aux_k", "aux_rows"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"{name} must be an integer of at least 1; got {value!r}"
                )
        if self.random_state < 0:
            raise ValueError(
                f"random_state must not be negative; got {self.random_state}"
            )
        if self.k >= self.d_sae:
            raise ValueError(f"k must be below d_sae = {self.d_sae}; got {self.k}")
        for name in ("learning_rate", "dead_after"):
            if not getattr(self, name) > 0:
                raise ValueError(
                    f"{name} must be positive; got {getattr(self, name)!r}"
                )
        if not self.aux_coefficient >= 0:
            raise ValueError(
                f"aux_coefficient must not be negative; got {self.aux_coefficient!r}"
            )
        for name in ("warmup", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"{name} must be a fraction of the run in [0, 1]; "
                    f"got {getattr(self, name)!r}"
                )


class BatchTopKSAE(torch.nn.Module):
    """Sparse autoencoder whose features fire above one fixed threshold.

    With u = (x - mean) / scale the code is z = h * 1[h > threshold],
    h = ReLU((u - b_dec) W_enc + b_enc), and the reconstruction is
    (z W_dec + b_dec) * scale + mean. The weights do not require gradients, as
    :func:`train` has its own; gradients by activations pass through.

    Parameters
    ----------
    d_in, d_sae, k : int
        Width of the activations, number of features, mean number of active features.
    random_state : int
        Seed of the initial weights: unit decoder rows, tied encoder, threshold 0.

    Attributes
    ----------
    W_enc, W_dec : torch.Tensor, shapes (d_in, d_sae) and (d_sae, d_in)
        Encoder and decoder; decoder rows have norm 1.
    b_enc, b_dec : torch.Tensor, shapes (d_sae,) and (d_in,)
        Biases, in normalized units.
    threshold : torch.Tensor, scalar
        Smallest pre-activation that counts as firing, exclusive.
    mean : torch.Tensor, shape (d_in,)
        Mean of the training rows, raw units.
    scale : torch.Tensor, scalar
        Root mean square of the centered training rows over all coordinates, raw units.
    provenance : dict
        What made the weights; JSON-compatible, saved with them.
    """

    def __init__(self, d_in: int, d_sae: int, k: int, *, random_state: int = 0) -> None:
        super().__init__()
        if min(d_in, k) < 1 or k >= d_sae:
            raise ValueError(
                "d_in and k must be at least 1 and k below d_sae; "
                f"got d_in = {d_in}, d_sae = {d_sae}, k = {k}"
            )
        self.d_in, self.d_sae, self.k = d_in, d_sae, k
        self.provenance: dict[str, Any] = {}
        generator = torch.Generator().manual_seed(random_state)
        decoder = F.normalize(torch.randn(d_sae, d_in, generator=generator), dim=1)
        self.W_enc = _frozen(decoder.T.contiguous())
        self.b_enc = _frozen(torch.zeros(d_sae))
        self.W_dec = _frozen(decoder)
        self.b_dec = _frozen(torch.zeros(d_in))
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(d_in))
        self.register_buffer("scale", torch.ones(()))

    @property
    def decoder_directions(self) -> torch.Tensor:
        """What one unit of each feature adds to raw activations, (d_sae, d_in)."""
        return self.W_dec * self.scale

    def pre_activations(self, activations: torch.Tensor) -> torch.Tensor:
        """Return h, the feature values before thresholding.

        Parameters
        ----------
        activations : torch.Tensor, shape (..., d_in)
            Raw activations of any floating dtype.

        Returns
        -------
        torch.Tensor, shape (..., d_sae)
            Non-negative values in the precision of the weights.

        Raises
        ------
        ValueError
            If the last axis is not `d_in` long.
        """
        return F.relu(self._affine(activations))

    def encode(self, activations: torch.Tensor) -> torch.Tensor:
        """Return the feature activations of raw activations.

        Every token is thresholded on its own: the tokens beside it do not matter.

        Parameters
        ----------
        activations : torch.Tensor, shape (..., d_in)
            Raw activations of any floating dtype.

        Returns
        -------
        torch.Tensor, shape (..., d_sae)
            Feature activations, zero where a feature does not fire.

        Raises
        ------
        ValueError
            If the last axis is not `d_in` long.
        """
        return F.threshold(self._affine(activations), float(self.threshold), 0.0)

    def _affine(self, activations: torch.Tensor) -> torch.Tensor:
        if activations.shape[-1] != self.d_in:
            raise ValueError(
                f"activations must have shape (..., {self.d_in}); "
                f"got {tuple(activations.shape)}"
            )
        normalized = (activations.to(self.W_enc.dtype) - self.mean) / self.scale
        return F.linear(normalized - self.b_dec, self.W_enc.T, self.b_enc)

    def decode(self, feature_acts: torch.Tensor) -> torch.Tensor:
        """Return raw activations, (..., d_in), from codes, (..., d_sae)."""
        normalized = feature_acts @ self.W_dec + self.b_dec
        return normalized * self.scale + self.mean

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        """Reconstruct raw activations, (..., d_in)."""
        return self.decode(self.encode(activations))

    def save(self, folder: str | Path) -> None:
        """Write weights (safetensors) and metadata (JSON) into a folder.

        Each file is written under another name and renamed. The metadata hold the
        checksum of the weights, so a pair of different runs cannot be loaded.

        Parameters
        ----------
        folder : str or pathlib.Path
            Made where missing; other files in it are left alone.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = safetensors_save(
            {
                name: value.contiguous().cpu()
                for name, value in self.state_dict().items()
            }
        )
        metadata = {
            "class": type(self).__name__,
            "d_in": self.d_in,
            "d_sae": self.d_sae,
            "k": self.k,
            "sha256": hashlib.sha256(weights).hexdigest(),
            "provenance": self.provenance,
        }
        _write_atomically(folder / _WEIGHTS_FILE, weights)
        text = json.dumps(metadata, indent=1) + "\n"
        _write_atomically(folder / _METADATA_FILE, text.encode())

    @classmethod
    def load(
        cls, folder: str | Path, *, device: str | torch.device = "cpu"
    ) -> BatchTopKSAE:
        """Read what :meth:`save` wrote.

        Raises
        ------
        FileNotFoundError
            If the folder lacks one of the two files.
        ValueError
            If the metadata are not an SAE's, or the weights are not those they name.
        """
        folder = Path(folder)
        for path in (folder / _METADATA_FILE, folder / _WEIGHTS_FILE):
            if not path.is_file():
                raise FileNotFoundError(f"{path}: no such file; expected a saved SAE")
        path = folder / _METADATA_FILE
        try:
            metadata = json.loads(path.read_text())
            sizes = [metadata[name] for name in ("d_in", "d_sae", "k")]
            checksum, provenance = metadata["sha256"], metadata["provenance"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}: not the metadata of an SAE ({error!r})"
            ) from error
        weights = (folder / _WEIGHTS_FILE).read_bytes()
        found = hashlib.sha256(weights).hexdigest()
        if found != checksum:
            raise ValueError(
                f"{folder / _WEIGHTS_FILE}: damaged, or of another run than "
                f"{path.name}: SHA-256 is {found}, expected {checksum}"
            )
        sae = cls(*sizes)
        sae.load_state_dict(safetensors_load(weights))
        sae.provenance = provenance
        return sae.to(device)


def train(
    activations: torch.Tensor | np.ndarray,
    config: SAEConfig,
    *,
    heldout: torch.Tensor | np.ndarray | None = None,
    device: str | torch.device | None = None,
    progress: Callable[[dict[str, float]], None] | None = None,
) -> tuple[BatchTopKSAE, pd.DataFrame]:
    """Train a BatchTopK SAE on rows of activations.

    Rows are centered on their mean and divided by one global scale, fixed before the
    first step; balance the conditions among the rows, or the mean leans to one of them.
    The decoder starts from differences of rows, the encoder from the decoder times the
    least-squares scale of the first reconstruction. After training the threshold is set
    so that a token has k active features on average.

    Parameters
    ----------
    activations : torch.Tensor or array-like, shape (n_tokens, d_in)
        Raw activations; a memory-mapped array is read batch by batch.
    config : SAEConfig
        Width, sparsity and schedule.
    heldout : torch.Tensor or array-like, shape (n_heldout, d_in), optional
        Rows of chromosomes not trained on, for the threshold. Default: training rows.
    device : str or torch.device, optional
        Where to train. Default: where `activations` are, the CPU for arrays.
    progress : callable, optional
        Called after every step with its line of the history.

    Returns
    -------
    sae : BatchTopKSAE
        The trained model, its `provenance` filled in; gamma = |mean| / |SD| of the rows
        is part of it, since it predicts feature death without centering
        (arXiv 2605.31518).
    history : pandas.DataFrame
        One row per step: step, n_steps, epoch, fvu (of the batch, against the variance
        of all rows), aux_loss, l0, dead (fraction), learning_rate.

    Raises
    ------
    ValueError
        If there are fewer rows than a batch, or rows that are constant, of the wrong
        shape or not finite, or if training diverges.
    """
    n_rows, d_in = _check_matrix("activations", activations)
    if n_rows < config.batch_size:
        raise ValueError(
            f"activations have {n_rows} rows, fewer than a batch of {config.batch_size}"
        )
    if heldout is not None:
        _check_matrix("heldout", heldout, d_in)
    if device is None:
        is_tensor = isinstance(activations, torch.Tensor)
        device = activations.device if is_tensor else "cpu"
    device = torch.device(device)

    mean, scale, gamma = _moments(activations)
    logger.info("%d rows, |mean| / |SD| = %.3g", n_rows, gamma)
    mean = mean.to(device)
    steps_per_epoch = n_rows // config.batch_size
    n_steps = config.n_epochs * steps_per_epoch
    trainer = _Trainer(
        d_in,
        config,
        n_steps=n_steps,
        dead_after_rows=config.dead_after * n_rows,
        device=device,
    )
    history = []
    for epoch in range(config.n_epochs):
        # One generator per epoch: the order of any epoch follows from the seed alone.
        order = np.random.default_rng((config.random_state, epoch)).permutation(n_rows)
        for batch in range(steps_per_epoch):
            rows = order[batch * config.batch_size :][: config.batch_size]
            x = (_gather(activations, rows, device) - mean) / scale
            record = {"step": trainer.n_done + 1, "n_steps": n_steps, "epoch": epoch}
            record |= trainer.step(x)
            if not math.isfinite(record["fvu"]):
                raise ValueError(
                    f"training diverged at step {record['step']} of {n_steps}; "
                    f"learning_rate = {config.learning_rate} may be too high"
                )
            history.append(record)
            if progress is not None:
                progress(record)
        logger.info("epoch %d: %s", epoch, record)

    sae = trainer.model()
    sae.mean.copy_(mean)
    sae.scale.fill_(scale)
    rng = np.random.default_rng((config.random_state, config.n_epochs))
    calibration = activations if heldout is None else heldout
    sae.threshold.fill_(_threshold_for_k(sae, calibration, rng))
    sae.provenance = {
        "config": asdict(config),
        "n_rows": n_rows,
        "n_steps": n_steps,
        "gamma": gamma,
        "threshold_from": "activations" if heldout is None else "heldout",
        "version": __version__,
        "torch": torch.__version__,
    }
    return sae, pd.DataFrame(history)


class _Parameters(NamedTuple):
    """Weights, or their gradients, with features as rows: what sparse products want."""

    encoder: torch.Tensor  # (d_sae, d_in)
    b_enc: torch.Tensor  # (d_sae,)
    decoder: torch.Tensor  # (d_sae, d_in)
    b_dec: torch.Tensor  # (d_in,)


class _Code(NamedTuple):
    """Active entries of a batch in row-major order."""

    rows: torch.Tensor  # (n_active,)
    features: torch.Tensor  # (n_active,)
    acts: torch.Tensor  # (n_active,)


class _Trainer:
    """Weights, optimizer and dead-feature counters of one run.

    Autograd would spend six dense (batch, d_sae, d_in) products on a step of which
    n * k of n * d_sae entries matter. Here only the encoder product is dense; decoding
    and the gradients visit the active entries.
    """

    def __init__(
        self,
        d_in: int,
        config: SAEConfig,
        *,
        n_steps: int,
        dead_after_rows: float,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.config = config
        self.n_steps, self.n_done = n_steps, 0
        self.dead_after_rows = dead_after_rows
        self.rows_since_fired = torch.zeros(
            config.d_sae, dtype=torch.long, device=device
        )
        self.cut = 0.0  # smallest pre-activation the last batch kept
        like = {"device": device, "dtype": dtype}
        self.weights = _Parameters(
            encoder=torch.zeros(config.d_sae, d_in, **like),
            b_enc=torch.zeros(config.d_sae, **like),
            decoder=torch.zeros(config.d_sae, d_in, **like),
            b_dec=torch.zeros(d_in, **like),
        )
        # A CPU has no caching allocator: a fresh (batch, d_sae) page-faults every step.
        self.workspace = torch.empty(config.batch_size, config.d_sae, **like)
        self.optimizer = torch.optim.Adam(
            self.weights, lr=config.learning_rate, fused=True
        )

    def step(self, x: torch.Tensor) -> dict[str, float]:
        """Update the weights on one batch of normalized rows, (batch_size, d_in)."""
        if self.n_done == 0:
            self._initialize(x)
        weights, config = self.weights, self.config
        pre = torch.addmm(
            weights.b_enc, x - weights.b_dec, weights.encoder.T, out=self.workspace
        )
        code = _batch_top_k(pre, config.k, floor=0.97 * self.cut)
        self.cut = float(code.acts.min()) if len(code.acts) else 0.0
        error, gradients = _reconstruction(weights, x, code)

        dead = self.rows_since_fired > self.dead_after_rows
        aux_loss = 0.0
        if config.aux_coefficient and dead.any():
            rows = slice(config.aux_rows)
            aux_loss = _add_auxiliary(
                weights, x[rows], pre[rows], error[rows], dead, config, gradients
            )
        fired = torch.bincount(code.features, minlength=config.d_sae) > 0
        self.rows_since_fired += len(x)
        self.rows_since_fired[fired] = 0

        learning_rate = self._update(gradients)
        return {
            "fvu": float(error.square().mean()),
            "aux_loss": aux_loss,
            "l0": len(code.acts) / len(x),
            "dead": float(dead.float().mean()),
            "learning_rate": learning_rate,
        }

    def _initialize(self, x: torch.Tensor) -> None:
        """Start the decoder from differences of rows, the encoder from the decoder.

        Differences are free of any offset and plentiful. A little noise tells apart
        those that coincide, as between the equal rows of masked sequence.
        """
        weights, config = self.weights, self.config
        generator = torch.Generator().manual_seed(config.random_state)
        pairs = torch.randint(len(x), (2, config.d_sae), generator=generator)
        noise = torch.randn(weights.decoder.shape, generator=generator)
        first, second = x[pairs.to(x.device)]
        difference = first - second + 0.01 * noise.to(x)
        weights.decoder.copy_(F.normalize(difference, dim=1))
        code = _batch_top_k(x @ weights.decoder.T, config.k, floor=0.0)
        sae_out = _weighted_sums(
            weights.decoder, code.features, code.rows, code.acts, len(x)
        )
        weights.encoder.copy_(
            weights.decoder * ((x * sae_out).sum() / sae_out.square().sum())
        )

    def _update(self, gradients: _Parameters) -> float:
        """Take one Adam step along the unit spheres of the decoder rows."""
        weights, config = self.weights, self.config
        decoder, slope = weights.decoder, gradients.decoder
        slope -= (slope * decoder).sum(1, keepdim=True) * decoder
        rise = (self.n_done + 1) / max(1.0, config.warmup * self.n_steps)
        fall = (self.n_steps - self.n_done) / max(1.0, config.decay * self.n_steps)
        learning_rate = config.learning_rate * min(1.0, rise, fall)
        self.optimizer.param_groups[0]["lr"] = learning_rate
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        self.optimizer.step()
        decoder /= decoder.norm(dim=1, keepdim=True)
        self.n_done += 1
        return learning_rate

    def model(self) -> BatchTopKSAE:
        """Return the SAE of the present weights, without normalization or threshold."""
        weights = self.weights
        d_sae, d_in = weights.decoder.shape
        sae = BatchTopKSAE(d_in, d_sae, self.config.k).to(weights.decoder.device)
        sae.W_enc.copy_(weights.encoder.T)
        sae.b_enc.copy_(weights.b_enc)
        sae.W_dec.copy_(weights.decoder)
        sae.b_dec.copy_(weights.b_dec)
        return sae


def _frozen(value: torch.Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(value, requires_grad=False)


def _batch_top_k(pre: torch.Tensor, k: int, floor: float) -> _Code:
    """Keep the len(pre) * k largest positive entries of a batch, exactly.

    Parameters
    ----------
    pre : torch.Tensor, shape (n_rows, d_sae)
        Pre-activations, contiguous.
    k : int
        Kept entries per row, on average over the batch.
    floor : float
        Guess from below at the smallest kept entry: only larger entries are compared
        with one another. A guess too high costs a second look, never an entry.
    """
    flat = pre.view(-1)
    n_kept = len(pre) * k
    active = torch.nonzero(flat > floor).squeeze(1)
    if len(active) < n_kept and floor > 0:
        active = torch.nonzero(flat > 0).squeeze(1)
    acts = flat[active]
    excess = len(active) - n_kept
    if excess > 0:
        # Dropping the few in excess keeps the order; a top-k of the rest would not.
        kept = torch.ones_like(active, dtype=torch.bool)
        kept[acts.topk(excess, largest=False, sorted=False).indices] = False
        kept = torch.nonzero(kept).squeeze(1)
        active, acts = active[kept], acts[kept]
    d_sae = pre.shape[1]
    # 32-bit indices halve the sort in `_reconstruction`.
    return _Code((active // d_sae).int(), (active % d_sae).int(), acts)


def _weighted_sums(
    table: torch.Tensor,
    indices: torch.Tensor,
    bags: torch.Tensor,
    coefficients: torch.Tensor,
    n_bags: int,
) -> torch.Tensor:
    """Sum coefficient * table[index] within each bag; `bags` must ascend."""
    starts = torch.searchsorted(
        bags, torch.arange(n_bags, device=bags.device, dtype=bags.dtype), out_int32=True
    )
    return F.embedding_bag(
        indices, table, starts, mode="sum", per_sample_weights=coefficients
    )


def _reconstruction(
    weights: _Parameters, x: torch.Tensor, code: _Code
) -> tuple[torch.Tensor, _Parameters]:
    """Return reconstruction minus x, and the gradients of its mean square.

    The selection is constant, as in autograd through a top-k. Every product below is a
    weighted sum of at most k rows per token, or of a feature's tokens per feature.
    """
    rows, features, acts = code
    with torch.enable_grad():  # only for the gradient of the active entries
        acts = acts.detach().requires_grad_()
        decoded = _weighted_sums(weights.decoder, features, rows, acts, len(x))
    error = decoded.detach() + weights.b_dec - x
    slope = error * (2 / error.numel())  # of the loss by the reconstruction
    (acts_slope,) = torch.autograd.grad(decoded, acts, slope)
    acts = acts.detach()

    features, order = features.sort(stable=True)
    rows, d_sae = rows[order], len(weights.decoder)
    centered = x - weights.b_dec
    b_enc_slope = torch.zeros_like(weights.b_enc).index_add_(
        0, features, acts_slope[order]
    )
    return error, _Parameters(
        encoder=_weighted_sums(centered, rows, features, acts_slope[order], d_sae),
        b_enc=b_enc_slope,
        decoder=_weighted_sums(slope, rows, features, acts[order], d_sae),
        # b_dec is added to the output and subtracted from the input.
        b_dec=slope.sum(0) - b_enc_slope @ weights.encoder,
    )


def _add_auxiliary(
    weights: _Parameters,
    x: torch.Tensor,
    pre: torch.Tensor,
    error: torch.Tensor,
    dead: torch.Tensor,
    config: SAEConfig,
    gradients: _Parameters,
) -> float:
    """Add the gradients of the auxiliary loss in place; return the loss.

    Per token, the `aux_k` largest dead features reconstruct what the living missed; the
    loss is the part of that error's square they leave, times `aux_coefficient` (Gao et
    al. 2024, arXiv 2406.04093). Only the columns of dead features take part.
    """
    dead = dead.nonzero().squeeze(1)
    encoder, decoder = weights.encoder[dead], weights.decoder[dead]
    top = F.relu(pre[:, dead]).topk(min(config.aux_k, len(dead)), dim=1)
    acts = torch.zeros(len(x), len(dead), dtype=x.dtype, device=x.device)
    acts.scatter_(1, top.indices, top.values)
    missed = acts @ decoder + error
    weight = config.aux_coefficient / error.square().sum()
    slope = missed * (2 * weight)
    acts_slope = (slope @ decoder.T) * (acts > 0)
    gradients.encoder[dead] += acts_slope.T @ (x - weights.b_dec)
    gradients.b_enc[dead] += acts_slope.sum(0)
    gradients.decoder[dead] += acts.T @ slope
    gradients.b_dec.sub_(acts_slope.sum(0) @ encoder)
    return float(weight * missed.square().sum())


def _threshold_for_k(
    sae: BatchTopKSAE,
    activations: torch.Tensor | np.ndarray,
    rng: np.random.Generator,
) -> float:
    """Return the threshold at which rows have k active features on average.

    This is the order statistic itself: of N rows, the (N k + 1)-th largest
    pre-activation. A running mean over training is still off after thousands of steps.
    """
    n_rows = min(len(activations), _CALIBRATION_ROWS)
    chosen = np.sort(rng.permutation(len(activations))[:n_rows])
    n_largest = n_rows * sae.k + 1
    largest = torch.empty(0, device=sae.threshold.device)
    floor = 0.0
    for first in range(0, n_rows, _CHUNK_ROWS):
        rows = chosen[first : first + _CHUNK_ROWS]
        x = _gather(activations, rows, sae.threshold.device)
        _check_finite("heldout", x, rows)
        h = sae.pre_activations(x)
        largest = torch.cat([largest, h[h > floor]])
        if len(largest) > n_largest:
            largest, _ = largest.topk(n_largest, sorted=False)
            floor = float(largest.min())
    return floor


@dataclass(frozen=True)
class Card:
    """What an SAE does to a set of rows.

    Attributes
    ----------
    table : pandas.DataFrame
        One line for ``all`` rows and one for each group: n_rows; norm_mean and norm_sd
        of the raw activations; fvu; shrinkage; l0_mean and l0_sd; dead_percent. A
        group's fvu is relative to the variance around that group's own mean, so an
        offset between the groups flatters none of them.
    density : numpy.ndarray, shape (d_sae,)
        Share of all rows on which each feature fires.
    decoder_cosine : numpy.ndarray, shape (d_sae,)
        Cosine between each decoder row and the one nearest to it.
    """

    table: pd.DataFrame
    density: np.ndarray
    decoder_cosine: np.ndarray


def evaluate(
    sae: BatchTopKSAE,
    activations: torch.Tensor | np.ndarray,
    *,
    groups: Sequence[Any] | np.ndarray | pd.Series | None = None,
) -> Card:
    """Measure sparsity and fidelity of an SAE, over all rows and per group.

    Parameters
    ----------
    sae : BatchTopKSAE
        Evaluated with its fixed threshold.
    activations : torch.Tensor or array-like, shape (n_tokens, d_in)
        Raw activations, held out from training for an honest card; read in chunks.
    groups : sequence of length n_tokens, optional
        Label of each row, such as its context or biosample.

    Returns
    -------
    Card
        See there.

    Raises
    ------
    ValueError
        If shapes disagree or a row is not finite.

    Warns
    -----
    UserWarning
        If mean L0 differs between groups by more than 20 %: a threshold lets tokens of
        larger norm take more features, and a contrast of the groups then says so too.

    Notes
    -----
    FVU = sum |x - x_hat|^2 / sum |x - mean(x)|^2 over the whole set; an average over
    batches has another denominator in each. Shrinkage is
    1 - sum |y|^2 / sum <y, u> with u and y input and reconstruction less mean(x): 0
    when no rescaling improves the reconstruction, positive when it is too short.
    """
    n_rows, d_in = _check_matrix("activations", activations, sae.d_in)
    labels = np.zeros(n_rows, dtype=int) if groups is None else np.asarray(groups)
    if labels.shape != (n_rows,):
        raise ValueError(f"groups must have shape ({n_rows},); got {labels.shape}")
    codes, names = pd.factorize(labels, sort=True)
    if (codes < 0).any():
        raise ValueError(f"groups: row {int(np.argmax(codes < 0))} has no label")
    if groups is not None and "all" in list(names):
        raise ValueError("groups must not contain 'all', the name of the first line")

    device = sae.mean.device
    per_row = np.empty((n_rows, 6))
    u_sum = torch.zeros(len(names), d_in, dtype=torch.float64, device=device)
    y_sum = torch.zeros_like(u_sum)
    n_fired = torch.zeros(len(names), sae.d_sae, dtype=torch.float64, device=device)
    for rows, x in _stream("activations", activations, device):
        feature_acts = sae.encode(x)
        fires = feature_acts > 0
        # Less the training mean, sums of squares keep their precision.
        u = (x - sae.mean).double()
        y = (sae.decode(feature_acts) - sae.mean).double()
        columns = [x.norm(dim=1), fires.sum(1), (u - y).square().sum(1)]
        columns += [u.square().sum(1), y.square().sum(1), (u * y).sum(1)]
        per_row[rows] = torch.stack(columns, dim=1).cpu()
        group = torch.from_numpy(codes[rows]).to(device)
        u_sum.index_add_(0, group, u)
        y_sum.index_add_(0, group, y)
        n_fired.index_add_(0, group, fires.double())

    frame = pd.DataFrame(per_row, columns=["norm", "l0", "error2", "u2", "y2", "uy"])
    sums = [value.cpu().numpy() for value in (u_sum, y_sum, n_fired)]
    lines = {"all": _card_line(frame, *(value.sum(0) for value in sums))}
    if groups is not None:
        for code, name in enumerate(names):
            lines[name] = _card_line(frame[codes == code], *(v[code] for v in sums))
    table = pd.DataFrame.from_dict(lines, orient="index").astype({"n_rows": int})
    l0 = table["l0_mean"].drop("all")
    if len(l0) > 1 and l0.max() > 1.2 * l0.min():
        warnings.warn(
            f"mean L0 differs between groups by more than 20 %: {l0.min():.1f} in "
            f"{l0.idxmin()!r}, {l0.max():.1f} in {l0.idxmax()!r}",
            stacklevel=2,
        )
    return Card(
        table=table,
        density=sums[2].sum(0) / n_rows,
        decoder_cosine=_nearest_cosine(sae.W_dec).cpu().numpy(),
    )


def _card_line(
    rows: pd.DataFrame, u_sum: np.ndarray, y_sum: np.ndarray, n_fired: np.ndarray
) -> dict[str, float]:
    """Return one line of the card from the row-wise numbers of :func:`evaluate`."""
    n_rows, total = len(rows), rows.sum()
    offset, cross = u_sum @ u_sum / n_rows, u_sum @ y_sum / n_rows
    return {
        "n_rows": n_rows,
        "norm_mean": rows["norm"].mean(),
        "norm_sd": rows["norm"].std(ddof=0),
        "fvu": total["error2"] / (total["u2"] - offset),
        "shrinkage": 1 - (total["y2"] - 2 * cross + offset) / (total["uy"] - cross),
        "l0_mean": rows["l0"].mean(),
        "l0_sd": rows["l0"].std(ddof=0),
        "dead_percent": 100 * (n_fired == 0).mean(),
    }


def _nearest_cosine(directions: torch.Tensor) -> torch.Tensor:
    """Return each row's largest cosine with another row, a block of rows at a time."""
    unit = F.normalize(directions, dim=1)
    nearest = []
    for first in range(0, len(unit), _CHUNK_ROWS):
        cosine = unit[first : first + _CHUNK_ROWS] @ unit.T
        row = torch.arange(len(cosine), device=unit.device)
        cosine[row, first + row] = -1.0
        nearest.append(cosine.max(1).values)
    return torch.cat(nearest)


def _check_matrix(name: str, matrix: Any, d_in: int | None = None) -> tuple[int, int]:
    """Return the shape of a matrix of rows, or say what is wrong with it."""
    shape = tuple(matrix.shape)
    if len(shape) != 2 or 0 in shape or (d_in is not None and shape[1] != d_in):
        wanted = "d_in" if d_in is None else d_in
        raise ValueError(f"{name} must have shape (n_tokens, {wanted}); got {shape}")
    if isinstance(matrix, torch.Tensor):
        floating = matrix.is_floating_point()
    else:
        floating = np.issubdtype(matrix.dtype, np.floating)
    if not floating:
        raise ValueError(f"{name} must be of a floating dtype; got {matrix.dtype}")
    return shape


def _gather(
    matrix: torch.Tensor | np.ndarray, rows: np.ndarray | slice, device: torch.device
) -> torch.Tensor:
    """Return some rows of a matrix as float32 on a device."""
    if isinstance(matrix, torch.Tensor):
        if not isinstance(rows, slice):
            rows = torch.from_numpy(rows).to(matrix.device)
        return matrix[rows].detach().to(device, torch.float32)
    return torch.from_numpy(np.array(matrix[rows], dtype=np.float32)).to(device)


def _stream(
    name: str, matrix: torch.Tensor | np.ndarray, device: torch.device
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield consecutive rows and where they lie; raise ValueError at NaN or inf."""
    for first in range(0, len(matrix), _CHUNK_ROWS):
        rows = slice(first, min(first + _CHUNK_ROWS, len(matrix)))
        x = _gather(matrix, rows, device)
        _check_finite(name, x, np.arange(rows.start, rows.stop))
        yield rows, x


def _check_finite(name: str, x: torch.Tensor, rows: np.ndarray) -> None:
    finite = torch.isfinite(x).all(1)
    if not finite.all():
        row = int(rows[int((~finite).nonzero()[0])])
        raise ValueError(f"{name} must be finite; row {row} holds NaN or infinity")


def _moments(
    activations: torch.Tensor | np.ndarray,
) -> tuple[torch.Tensor, float, float]:
    """Return mean, root mean square around it, and gamma = |mean| / |SD|.

    Two passes: where gamma is large, a difference of sums of squares loses its digits.
    """
    n_rows, d_in = activations.shape
    cpu = torch.device("cpu")
    mean = torch.zeros(d_in, dtype=torch.float64)
    for _, x in _stream("activations", activations, cpu):
        mean += x.sum(0, dtype=torch.float64)
    mean /= n_rows
    variance = 0.0
    for _, x in _stream("activations", activations, cpu):
        variance += float((x.double() - mean).square().sum()) / n_rows
    offset = float(mean.square().sum())
    if variance <= 1e-14 * offset:  # what rounding to single precision leaves
        raise ValueError("activations are constant: every row is the same")
    gamma = math.sqrt(offset / variance)
    return mean.float(), math.sqrt(variance / d_in), gamma


def _write_atomically(path: Path, content: bytes) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)
