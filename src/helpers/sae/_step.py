"""One training run's weights, optimizer and dead features, advanced batch by batch."""

from __future__ import annotations

import logging
import math
import warnings
from typing import Any

import torch
import torch.nn.functional as F

from helpers.sae._config import SAEConfig
from helpers.sae._model import BatchTopKSAE
from helpers.sae._peers import ALONE, Peers
from helpers.sae._products import (
    Gradients,
    Parameters,
    Prefixes,
    Scratch,
    reconstruct,
    weighted_sums,
)
from helpers.sae._selection import batch_top_k

__all__ = ["Trainer"]

logger = logging.getLogger("helpers.sae")

_VERIFIED_ROWS = 512  # of the first batch, on which bfloat16 must agree with float32
_LEAST_VARIANCE = 1e-3  # at the start; rows have mean variance 1
_GAIN_ROWS = 1024  # of the first batch, enough for one number
_LOSS_TOLERANCE = 0.01
_COSINE_TOLERANCE = 0.05  # of gradients: entries near the cut change sides
_RESTARTS = 20  # at most in a run, each followed by
_STEPS_TO_SETTLE = 70  # at least
_ROWS_PER_RESTART = 8  # of a batch, for each feature that starts anew


class Trainer:
    """Weights, optimizer and counters of one run.

    Parameters
    ----------
    d_in : int
        Width of the rows.
    config : SAEConfig
        Settings.
    n_steps : int
        Length of the run; :meth:`end_early` shortens it.
    dead_after_rows : float
        Rows without firing after which a feature is dead.
    device, dtype : torch.device, torch.dtype
        Of the weights.
    peers : Peers
        Processes that share each batch.
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
        peers: Peers = ALONE,
    ) -> None:
        self.config, self.peers = config, peers
        self.n_steps, self.n_done, self.end = n_steps, 0, n_steps
        self.dead_after_rows = dead_after_rows
        self.n_revived = 0
        self.cut: float | None = None
        like = {"device": device, "dtype": dtype}
        self.weights = Parameters(
            encoder=torch.zeros(config.d_sae, d_in, **like),
            b_enc=torch.zeros(config.d_sae, **like),
            decoder=torch.zeros(config.d_sae, d_in, **like),
            b_dec=torch.zeros(d_in, **like),
        )
        self.rows_since_fired = torch.zeros(
            config.d_sae, dtype=torch.long, device=device
        )
        self.optimizer = torch.optim.Adam(
            self.weights, lr=config.learning_rate, fused=True
        )
        self.prefixes = Prefixes.of(config.matryoshka or (config.d_sae,), device)
        low = config.precision == "bfloat16" or (
            config.precision == "auto" and _multiplies_bfloat16(device)
        )
        self._set_precision(torch.bfloat16 if low else dtype)

    def _set_precision(self, dtype: torch.dtype) -> None:
        """Choose the format of the operands of large products."""
        self.precision = dtype
        self._scratch = Scratch(self.weights.encoder.device)

    def step(self, x: torch.Tensor) -> dict[str, float]:
        """Update the weights on one batch.

        Parameters
        ----------
        x : torch.Tensor, shape (n_rows, d_in)
            Normalized rows; with several processes, this one's.

        Returns
        -------
        dict of str to float
            loss (squared error per coordinate, mean over prefixes), fvu (that of the
            whole dictionary), aux_loss, l0, dead (fraction), revived (features that
            started anew), learning_rate.
        """
        if self.n_done == 0:
            self._begin(x)
        config, peers = self.config, self.peers
        n_rows = len(x) * peers.size
        gradients, l0 = self._gradients(x, n_rows)
        peers.add(gradients.n_fired, gradients.along, *gradients.slopes)

        dead = self.rows_since_fired > self.dead_after_rows
        n_dead, aux_loss = int(dead.sum()), 0.0
        slopes = gradients.slopes
        # The step follows the sphere on which a decoder row lies.
        slopes.decoder.addcmul_(
            self.weights.decoder, gradients.along[:, None], value=-1
        )
        if config.aux_coefficient and n_dead:
            aux_loss = self._add_auxiliary(x, gradients.error, dead, slopes)
        self.rows_since_fired += n_rows
        self.rows_since_fired[gradients.n_fired > 0] = 0

        learning_rate = self._update(slopes)
        n_revived = self._revive(x, gradients.error) if n_dead else 0
        errors = torch.stack([gradients.loss, gradients.square])
        loss, error = (errors / x.shape[1]).tolist()
        return {
            "loss": loss,
            "fvu": error,
            "aux_loss": aux_loss,
            "l0": l0,
            "dead": n_dead / config.d_sae,
            "revived": n_revived,
            "learning_rate": learning_rate,
        }

    def _gradients(self, x: torch.Tensor, n_rows: int) -> tuple[Gradients, float]:
        """Return the gradients of the reconstruction, and mean L0."""
        weights, peers, scratch = self.weights, self.peers, self._scratch
        low, shape = self.precision, (len(x), self.config.d_sae)
        encoder = scratch.cast("encoder", weights.encoder, low)
        centered = torch.sub(
            x, weights.b_dec, out=scratch("full centered", x.shape, x.dtype)
        )
        scores = torch.addmm(
            weights.b_enc.to(low),
            scratch.cast("centered", centered, low),
            encoder.T,
            out=scratch("scores", shape, low),
        )
        code = batch_top_k(scores, self.config.k, self.cut, peers=peers)
        self.cut = code.cut
        gradients = reconstruct(
            weights,
            scratch.cast("decoder", weights.decoder, low),
            centered,
            code,
            self.prefixes,
            scratch,
            n_rows=n_rows,
            scores=scores,
            peers=peers,
        )
        return gradients, peers.total(len(code.acts)) / n_rows

    def _add_auxiliary(
        self,
        x: torch.Tensor,
        error: torch.Tensor,
        dead: torch.Tensor,
        slopes: Parameters,
    ) -> float:
        """Add the gradients of the auxiliary loss in place; return the loss.

        Per token, the `aux_k` largest dead features reconstruct what the living missed;
        the loss is the part of that error's square they leave, times `aux_coefficient`
        (Gao et al. 2024, arXiv 2406.04093). Only the columns of dead features and some
        evenly spaced rows take part.
        """
        config, peers, weights = self.config, self.peers, self.weights
        step = max(1, len(x) * peers.size // config.aux_rows)
        chosen = slice(-peers.rank * len(x) % step, None, step)
        centered, error = x[chosen] - weights.b_dec, error[chosen]
        dead = dead.nonzero().squeeze(1)
        encoder, decoder = weights.encoder[dead], weights.decoder[dead]
        pre = F.relu(self._product(centered, encoder.T) + weights.b_enc[dead])
        top = pre.topk(min(config.aux_k, len(dead)), dim=1)
        acts = torch.zeros_like(pre).scatter_(1, top.indices, top.values)
        missed = self._product(acts, decoder) + error
        squares = torch.stack([missed.square().sum(), error.square().sum()])
        peers.add(squares)
        slope = missed * (2 * config.aux_coefficient / squares[1])
        acts_slope = self._product(slope, decoder.T) * (acts > 0)
        decoder_slope = self._product(acts.T, slope)
        decoder_slope -= (decoder_slope * decoder).sum(1, keepdim=True) * decoder
        encoder_slope = self._product(acts_slope.T, centered)
        bias_slope = acts_slope.sum(0)
        peers.add(encoder_slope, bias_slope, decoder_slope)
        slopes.encoder.index_add_(0, dead, encoder_slope)
        slopes.b_enc.index_add_(0, dead, bias_slope)
        slopes.decoder.index_add_(0, dead, decoder_slope)
        slopes.b_dec.sub_(bias_slope @ encoder)
        return float(config.aux_coefficient * squares[0] / squares[1])

    def _product(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Multiply matrices with operands in the precision chosen."""
        low = self.precision
        return (first.to(low) @ second.to(low)).to(first.dtype)

    def _update(self, slopes: Parameters) -> float:
        """Take one Adam step; decoder rows return to norm 1."""
        weights, config = self.weights, self.config
        rise = (self.n_done + 1) / max(1.0, config.warmup * self.n_steps)
        fall = (self.end - self.n_done) / max(1.0, config.decay * self.n_steps)
        learning_rate = config.learning_rate * min(1.0, rise, fall)
        self.optimizer.param_groups[0]["lr"] = learning_rate
        for weight, slope in zip(weights, slopes, strict=True):
            weight.grad = slope
        if config.frozen_decoder:
            weights.decoder.grad = None
        self.optimizer.step()
        weights.decoder.div_(
            torch.linalg.vector_norm(weights.decoder, dim=1, keepdim=True)
        )
        self.n_done += 1
        return learning_rate

    def end_early(self) -> None:
        """Let the step size fall to zero from here on."""
        steps = math.ceil(self.config.decay * self.n_steps)
        self.end = min(self.end, self.n_done + max(1, steps))

    def _begin(self, x: torch.Tensor) -> None:
        """Set the first weights; see whether low precision serves."""
        x = self.peers.gather(x)
        self._initialize(x)
        if self.precision != self.weights.encoder.dtype:
            self._verify(x[:_VERIFIED_ROWS])

    def _initialize(self, x: torch.Tensor) -> None:
        """Start the decoder from differences of rows, the encoder from the decoder.

        Differences are free of any offset and plentiful. Whitened, they spread over all
        directions in which rows vary, not the few in which they vary most. A little
        noise tells apart those that coincide, as between the equal rows of masked
        sequence. The encoder is the decoder times the least-squares scale of the first
        reconstruction.
        """
        weights, config = self.weights, self.config
        generator = torch.Generator().manual_seed(config.random_state)
        pairs = torch.randint(len(x), (2, config.d_sae), generator=generator)
        noise = torch.randn(weights.decoder.shape, generator=generator).to(x)
        if config.frozen_decoder:
            start = noise
        else:
            first, second = pairs.to(x.device)
            start = (x[first] - x[second]) @ _whitening(x, _LEAST_VARIANCE)
            start += 0.01 * noise
        weights.decoder.copy_(F.normalize(start, dim=1))
        x = x[:_GAIN_ROWS]
        code = batch_top_k(x @ weights.decoder.T, config.k)
        n_active = torch.bincount(code.rows, minlength=len(x))
        sae_out = weighted_sums(weights.decoder, code.features, n_active, code.acts)
        gain = (x * sae_out).sum() / sae_out.square().sum()
        weights.encoder.copy_(weights.decoder * gain)

    def _verify(self, x: torch.Tensor) -> None:
        """Go back to full precision if low precision gives another first step."""
        found = []
        low = self.precision
        peers, self.peers = self.peers, ALONE  # all hold the same rows here
        for dtype in (self.weights.encoder.dtype, low):
            self._set_precision(dtype)
            found.append(self._gradients(x, len(x))[0])
        self.peers, self.cut = peers, None
        exact, rounded = found
        ratio = float(rounded.loss / exact.loss)
        cosines = [
            float(F.cosine_similarity(a.flatten(), b.flatten(), dim=0))
            for a, b in (
                (exact.slopes.encoder, rounded.slopes.encoder),
                (exact.slopes.decoder, rounded.slopes.decoder),
            )
        ]
        logger.info(
            "%s against float32: loss x %.5f, cosine of gradients %.5f",
            low,
            ratio,
            min(cosines),
        )
        if (
            not abs(ratio - 1) < _LOSS_TOLERANCE
            or not min(cosines) > 1 - _COSINE_TOLERANCE
        ):
            warnings.warn(
                f"{low} disagrees with float32 on the first batch: loss x {ratio:.4f}, "
                f"cosine of gradients {min(cosines):.4f}; training in float32",
                stacklevel=2,
            )
            self._set_precision(self.weights.encoder.dtype)

    def _revive(self, x: torch.Tensor, error: torch.Tensor) -> int:
        """Start dead features anew from time to time; return how many.

        Their directions are residuals of different rows, drawn in proportion to the
        error (after Bricken et al. 2023, transformer-circuits.pub/2023/
        monosemantic-features). Read along its own direction, a feature would answer to
        the strongest variation of rows, which others explain; its encoder is the
        direction whitened down to the level of the error, as strong as those of the
        living. Few start at a time, far enough apart to find their place, the last
        well before the end.
        """
        config, peers, weights = self.config, self.peers, self.weights
        every = max(
            round(self.dead_after_rows / (len(x) * peers.size)),
            math.ceil(self.n_steps / _RESTARTS),
            _STEPS_TO_SETTLE,
        )
        if (
            self.n_done % every
            or self.n_done > config.revive_until * self.end
            or config.frozen_decoder
        ):
            return 0
        is_dead = self.rows_since_fired > self.dead_after_rows
        living = ~is_dead
        x, error = peers.gather(x), peers.gather(error)
        chances = error.norm(dim=1).double().cpu()
        n_revived = min(
            int(is_dead.sum()), len(x) // _ROWS_PER_RESTART, int((chances > 0).sum())
        )
        if not n_revived or not living.any():
            return 0
        dead = self.rows_since_fired.topk(n_revived).indices
        generator = torch.Generator().manual_seed(config.random_state + self.n_done)
        drawn = torch.multinomial(chances, n_revived, generator=generator)
        direction = F.normalize(-error[drawn.to(error.device)], dim=1)
        whitening = _whitening(x, float(error.square().mean()))
        strength = weights.encoder[living].norm(dim=1).median()
        weights.decoder[dead] = direction
        weights.encoder[dead] = strength * F.normalize(
            direction @ whitening @ whitening, dim=1
        )
        weights.b_enc[dead] = 0
        for weight in (weights.encoder, weights.b_enc, weights.decoder):
            state = self.optimizer.state[weight]
            state["exp_avg"][dead] = 0
            state["exp_avg_sq"][dead] = state["exp_avg_sq"][living].mean(0)
        self.rows_since_fired[dead] = 0
        self.n_revived += n_revived
        return n_revived

    def state_dict(self) -> dict[str, Any]:
        """Return all that :meth:`load_state_dict` needs to go on exactly."""
        return {
            "weights": self.weights._asdict(),
            "optimizer": self.optimizer.state_dict(),
            "rows_since_fired": self.rows_since_fired,
            "n_done": self.n_done,
            "n_revived": self.n_revived,
            "end": self.end,
            "cut": self.cut,
            "low_precision": self.precision == torch.bfloat16,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where another trainer's :meth:`state_dict` was taken."""
        for name, value in state["weights"].items():
            getattr(self.weights, name).copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.rows_since_fired.copy_(state["rows_since_fired"])
        for name in ("n_done", "n_revived", "end", "cut"):
            setattr(self, name, state[name])
        low = state["low_precision"]
        self._set_precision(torch.bfloat16 if low else self.weights.encoder.dtype)

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


def _whitening(x: torch.Tensor, least: float) -> torch.Tensor:
    """Return the matrix that gives rows variance 1 along all axes.

    Axes along which they vary less than a `least` variance are scaled as if it were
    that.
    """
    centered = x - x.mean(0)
    variance, axes = torch.linalg.eigh(centered.T @ centered / len(x))
    return (axes / variance.clamp_min(least).sqrt()) @ axes.T


def _multiplies_bfloat16(device: torch.device) -> bool:
    """Tell whether a device has units for products of bfloat16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    # Older torch cannot tell; emulated products would be slower than float32.
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
