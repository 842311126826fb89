"""SAEs of other packages: SAELens folders out and in, dictionary_learning files in.

SAELens stores an SAE that fires above a threshold as ``jumprelu`` with one threshold
for each feature; centering and scale fold into its weights exactly. Imported SAEs get
unit decoder rows: activations are then in units of what a feature writes.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_save

from helpers import __version__
from helpers._sae_model import BatchTopKSAE, write_atomically
from helpers._sae_threshold import calibrate_threshold

__all__ = ["export_saelens", "import_dictionary_learning", "import_saelens"]

logger = logging.getLogger("helpers.sae")

_WEIGHTS_FILE, _CONFIG_FILE = "sae_weights.safetensors", "cfg.json"
_ARCHITECTURES = ("batchtopk", "jumprelu", "matryoshka_batchtopk", "topk")


def export_saelens(
    sae: BatchTopKSAE, folder: str | Path, *, metadata: dict[str, Any] | None = None
) -> None:
    """Write an SAE as a folder that SAELens loads with ``SAE.load_from_disk``.

    It encodes raw activations to the same feature activations, up to rounding; decoder
    rows have the length of `sae.scale`.

    Parameters
    ----------
    sae : BatchTopKSAE
        Trained, with its threshold.
    folder : str or pathlib.Path
        Made where missing.
    metadata : dict, optional
        JSON-compatible entries for SAELens' metadata, such as ``hook_name``.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    scale = sae.scale
    weights = {
        "W_enc": sae.W_enc / scale,
        "b_enc": sae.b_enc,
        "W_dec": sae.decoder_directions,
        "b_dec": sae.mean + scale * sae.b_dec,
        "threshold": sae.threshold.expand(sae.d_sae),
    }
    config = {
        "architecture": "jumprelu",
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "k": sae.k,
            "trained_with": f"chromatin-context {__version__}",
            "provenance": sae.provenance,
            **(metadata or {}),
        },
    }
    write_atomically(
        folder / _WEIGHTS_FILE,
        safetensors_save(
            {n: w.detach().cpu().contiguous() for n, w in weights.items()}
        ),
    )
    write_atomically(folder / _CONFIG_FILE, (json.dumps(config, indent=1)).encode())


def import_saelens(
    folder: str | Path, *, activations: torch.Tensor | np.ndarray | None = None
) -> BatchTopKSAE:
    """Read a SAELens folder: BatchTopK, JumpReLU, Matryoshka or TopK.

    Parameters
    ----------
    folder : str or pathlib.Path
        With ``cfg.json`` and ``sae_weights.safetensors``.
    activations : torch.Tensor or array-like, shape (n_tokens, d_in), optional
        Raw activations. A TopK SAE needs them to set the fixed threshold at which k
        features fire on average; of a JumpReLU SAE that does not name its k they tell
        the mean number of features.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If the architecture or normalization is another, the files do not fit together,
        or `activations` are needed and not given.
    """
    folder = Path(folder)
    for name in (_CONFIG_FILE, _WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}: no such file; expected an SAE")
    config = json.loads((folder / _CONFIG_FILE).read_text())
    architecture = config.get("architecture")
    if architecture not in _ARCHITECTURES:
        raise ValueError(
            f"{folder}: architecture must be one of {_ARCHITECTURES}; "
            f"got {architecture!r}"
        )
    for name in ("normalize_activations", "reshape_activations"):
        if config.get(name, "none") != "none":
            raise ValueError(f"{folder}: {name} must be 'none'; got {config[name]!r}")
    weights = safetensors_load((folder / _WEIGHTS_FILE).read_bytes())
    _check_keys(folder, weights, {"W_enc", "W_dec", "b_enc", "b_dec"})
    norm = weights["W_dec"].norm(dim=1)
    threshold = weights.get("threshold")
    if "topk_threshold" in weights:  # of a training checkpoint; it acts on these norms
        threshold = weights["topk_threshold"].expand(len(norm))
        if config.get("rescale_acts_by_decoder_norm", True):
            threshold = threshold / norm
    if not config.get("apply_b_dec_to_input", True):
        weights["b_enc"] = weights["b_enc"] + weights["b_dec"] @ weights["W_enc"]
    metadata = config.get("metadata") or {}
    k = config.get("k", metadata.get("k"))
    return _assemble(
        str(folder),
        weights,
        threshold,
        k=None if k is None else round(k),
        by_norm=config.get("rescale_acts_by_decoder_norm", False),
        origin=f"SAELens {architecture}",
        activations=activations,
    )


def import_dictionary_learning(
    path: str | Path, *, activations: torch.Tensor | np.ndarray | None = None
) -> BatchTopKSAE:
    """Read an ``ae.pt`` of dictionary_learning, thresholded or TopK.

    Parameters
    ----------
    path : str or pathlib.Path
        The file.
    activations : torch.Tensor or array-like, shape (n_tokens, d_in), optional
        As in :func:`import_saelens`; also needed where a run was too short for the
        package's running threshold to have been set.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it holds something else, or `activations` are needed and not given.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected an SAE")
    state = torch.load(path, map_location="cpu", weights_only=True)
    if "encoder.weight" in state:
        _check_keys(path, state, {"encoder.bias", "decoder.weight", "b_dec"})
        weights = {
            "W_enc": state["encoder.weight"].T,
            "W_dec": state["decoder.weight"].T,
            "b_enc": state["encoder.bias"],
            "b_dec": state["b_dec"],
        }
    else:
        _check_keys(path, state, {"W_enc", "W_dec", "b_enc", "b_dec", "threshold"})
        weights = dict(state)
        if state["threshold"].ndim == 1:  # its JumpReLU does not subtract b_dec
            weights["b_enc"] = state["b_enc"] + state["b_dec"] @ state["W_enc"]
    threshold = state.get("threshold")
    if threshold is not None and (threshold < 0).any():  # never set
        threshold = None
    k = state.get("k")
    return _assemble(
        str(path),
        weights,
        threshold,
        k=None if k is None else int(k),
        by_norm=False,
        origin="dictionary_learning",
        activations=activations,
    )


def _check_keys(path: Path, state: dict[str, Any], expected: set[str]) -> None:
    missing = sorted(expected - set(state))
    if missing:
        raise ValueError(f"{path}: not a known SAE; lacks {missing}, has {list(state)}")


def _assemble(
    source: str,
    weights: dict[str, torch.Tensor],
    threshold: torch.Tensor | None,
    *,
    k: int | None,
    by_norm: bool,
    origin: str,
    activations: torch.Tensor | np.ndarray | None,
) -> BatchTopKSAE:
    """Return an SAE with unit decoder rows and these weights.

    `by_norm` tells whether a threshold to be measured compares activations in units of
    what features write, as after this, or as the encoder returned them before.
    """
    w_enc, w_dec, b_enc, b_dec = (
        weights[name].float() for name in ("W_enc", "W_dec", "b_enc", "b_dec")
    )
    d_in, d_sae = w_enc.shape
    if w_dec.shape != (d_sae, d_in):
        raise ValueError(
            f"{source}: W_dec must have shape ({d_sae}, {d_in}); got "
            f"{tuple(w_dec.shape)}"
        )
    if activations is None and (k is None or threshold is None):
        lacking = "k" if k is None else "threshold"
        raise ValueError(
            f"{source}: the SAE has no {lacking}; give activations to measure it"
        )
    norm = w_dec.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    sae = BatchTopKSAE(d_in, d_sae, 1 if k is None else k)
    sae.W_enc.copy_(w_enc)
    sae.b_enc.copy_(b_enc)
    sae.W_dec.copy_(w_dec / norm[:, None])
    sae.b_dec.copy_(b_dec)
    if threshold is None and not by_norm:
        calibrate_threshold(sae, activations)
        threshold = sae.threshold
    sae.W_enc.mul_(norm)
    sae.b_enc.mul_(norm)
    if threshold is None:
        calibrate_threshold(sae, activations)
    else:
        limits = (threshold.float().clamp_min(0) * norm).expand(d_sae)
        same = torch.allclose(limits, limits.mean(), rtol=1e-6)
        sae.threshold = limits.mean() if same else limits.clone()
    if k is None:
        n_active = torch.count_nonzero(sae.encode(torch.as_tensor(activations)))
        sae.k = max(1, round(float(n_active) / len(activations)))
    sae.provenance = {"imported_from": origin}
    logger.info("%s: %s, %d features, k = %d", source, origin, d_sae, sae.k)
    return sae
