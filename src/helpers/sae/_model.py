"""The BatchTopK sparse autoencoder itself: encode, decode, save, load."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_save

__all__ = ["BatchTopKSAE", "write_atomically"]

_WEIGHTS_FILE, _METADATA_FILE = "sae.safetensors", "sae.json"


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
    threshold : torch.Tensor, scalar or shape (d_sae,)
        Smallest pre-activation that counts as firing, exclusive; not negative. One for
        all features after training; imported SAEs may have one for each.
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
        h = self._affine(activations)
        if self.threshold.ndim == 0:
            return F.threshold(h, float(self.threshold), 0.0)
        return h * (h > self.threshold)

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
        write_atomically(folder / _WEIGHTS_FILE, weights)
        text = json.dumps(metadata, indent=1) + "\n"
        write_atomically(folder / _METADATA_FILE, text.encode())

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
            metadata = json.loads(path.read_text(encoding="utf-8"))
            sizes = [metadata[name] for name in ("d_in", "d_sae", "k")]
            checksum, provenance = metadata["sha256"], metadata["provenance"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
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
        try:
            state = safetensors_load(weights)
            d_sae, d_in = state["W_dec"].shape
            threshold = state["threshold"]
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(
                f"{folder / _WEIGHTS_FILE}: not the weights of an SAE ({error!r})"
            ) from None
        if sizes[:2] != [d_in, d_sae]:
            raise ValueError(
                f"{path}: d_in and d_sae must be {d_in} and {d_sae}, as in "
                f"{_WEIGHTS_FILE}; found {sizes[0]!r} and {sizes[1]!r}"
            )
        try:
            sae = cls(*sizes)
            sae.threshold = torch.zeros_like(threshold)
            sae.load_state_dict(state)
        except (ValueError, TypeError, RuntimeError) as error:  # torch: other shapes
            raise ValueError(f"{path}: {error}") from None
        sae.provenance = provenance
        return sae.to(device)


def _frozen(value: torch.Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(value, requires_grad=False)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under another name and rename it; nothing is left if that fails."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
