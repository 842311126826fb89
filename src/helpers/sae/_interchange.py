"""SAEs of other packages: SAELens folders out and in, dictionary_learning files in.

SAELens stores an SAE that fires above a threshold as ``jumprelu`` with one threshold
for each feature; centering and scale fold into its weights exactly. Imported SAEs get
unit decoder rows: activations are then in units of what a feature writes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_save

from helpers import __version__
from helpers.sae._model import BatchTopKSAE, write_atomically
from helpers.sae._threshold import calibrate_threshold

__all__ = ["export_saelens", "import_dictionary_learning", "import_saelens"]

logger = logging.getLogger("helpers.sae")

_WEIGHTS_FILE, _CONFIG_FILE = "sae_weights.safetensors", "cfg.json"
_MATRICES = ("W_enc", "W_dec", "b_enc", "b_dec")
_AXES = {
    "W_enc": ("d_in", "d_sae"),
    "W_dec": ("d_sae", "d_in"),
    "b_enc": ("d_sae",),
    "b_dec": ("d_in",),
    "encoder.weight": ("d_sae", "d_in"),
    "decoder.weight": ("d_in", "d_sae"),
    "encoder.bias": ("d_sae",),
}
_THRESHOLDS = ("threshold", "topk_threshold")  # one for all features, or one for each
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
    config = _read_config(folder / _CONFIG_FILE)
    architecture = config.get("architecture")
    if architecture not in _ARCHITECTURES:
        raise ValueError(
            f"{folder}: architecture must be one of {_ARCHITECTURES}; "
            f"got {architecture!r}"
        )
    for name in ("normalize_activations", "reshape_activations"):
        if config.get(name, "none") != "none":
            raise ValueError(f"{folder}: {name} must be 'none'; got {config[name]!r}")
    try:
        weights = safetensors_load((folder / _WEIGHTS_FILE).read_bytes())
    except SafetensorError as error:
        raise ValueError(f"{folder / _WEIGHTS_FILE}: {error}") from None
    weights = _tensors(folder / _WEIGHTS_FILE, weights, _MATRICES)
    norm = weights["W_dec"].norm(dim=1)
    threshold = weights.get("threshold")
    if "topk_threshold" in weights:  # of a training checkpoint; it acts on these norms
        threshold = weights["topk_threshold"].expand(len(norm))
        if config.get("rescale_acts_by_decoder_norm", True):
            threshold = threshold / norm
    if not config.get("apply_b_dec_to_input", True):
        weights["b_enc"] = weights["b_enc"] + weights["b_dec"] @ weights["W_enc"]
    k = config.get("k", (config.get("metadata") or {}).get("k"))
    return _assemble(
        str(folder),
        weights,
        threshold,
        k=_number(folder / _CONFIG_FILE, k),
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
    state = _read_state(path)
    if "encoder.weight" in state:
        names = ("encoder.weight", "decoder.weight", "encoder.bias", "b_dec")
        held = _tensors(path, state, names)
        weights = {
            "W_enc": held["encoder.weight"].T,
            "W_dec": held["decoder.weight"].T,
            "b_enc": held["encoder.bias"],
            "b_dec": held["b_dec"],
        }
    else:
        held = weights = _tensors(path, state, (*_MATRICES, "threshold"))
        if held["threshold"].ndim == 1:  # its JumpReLU does not subtract b_dec
            bias = held["b_enc"] + held["b_dec"] @ held["W_enc"]
            weights = held | {"b_enc": bias}
    threshold = held.get("threshold")
    if threshold is not None and (threshold < 0).any():  # never set
        threshold = None
    return _assemble(
        str(path),
        weights,
        threshold,
        k=_number(path, state.get("k")),
        by_norm=False,
        origin="dictionary_learning",
        activations=activations,
    )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected a JSON object; got {config!r}")
    if not isinstance(config.get("metadata"), dict | None):
        raise ValueError(f"{path}: metadata must be an object; got {config!r}")
    return config


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, where a file is damaged
        raise ValueError(f"{path}: not a file of torch ({error})") from None
    if not isinstance(state, dict):
        raise ValueError(f"{path}: expected a dictionary of tensors; got {state!r}")
    return state


def _tensors(
    path: Path, state: dict[str, Any], expected: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Return the tensors of an SAE in single precision, if their shapes fit."""
    missing = sorted(set(expected) - set(state))
    if missing:
        raise ValueError(f"{path}: not a known SAE; lacks {missing}, has {list(state)}")
    sizes: dict[str, int] = {}
    found = {}
    for name in dict.fromkeys([*expected, *(n for n in _THRESHOLDS if n in state)]):
        value = state[name]
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            raise ValueError(f"{path}: {name} must be a tensor of floats; got {value}")
        axes = _AXES.get(name, ("d_sae",) if value.ndim else ())
        if value.ndim == len(axes):
            sizes = dict(zip(axes, value.shape, strict=True)) | sizes
        shape = tuple(sizes.get(axis, axis) for axis in axes)
        if value.shape != shape:
            raise ValueError(
                f"{path}: {name} must have shape {shape}; got {tuple(value.shape)}"
            )
        found[name] = value.float()
    return found


def _number(path: Path, k: object) -> int | None:
    """Return the k of an SAE as an integer."""
    if isinstance(k, torch.Tensor):
        k = k.tolist()
    if k is not None and not (isinstance(k, int | float) and 1 <= k < 2**31):
        raise ValueError(f"{path}: k must be a number of at least 1; got {k!r}")
    return None if k is None else round(k)


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
    w_enc, w_dec, b_enc, b_dec = (weights[name] for name in _MATRICES)
    d_in, d_sae = w_enc.shape
    if activations is None and (k is None or threshold is None):
        lacking = "k" if k is None else "threshold"
        raise ValueError(
            f"{source}: the SAE has no {lacking}; give activations to measure it"
        )
    norm = w_dec.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    try:
        sae = BatchTopKSAE(d_in, d_sae, 1 if k is None else k)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
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
        limits = (threshold.clamp_min(0) * norm).expand(d_sae)
        same = torch.allclose(limits, limits.mean(), rtol=1e-6)
        sae.threshold = limits.mean() if same else limits.clone()
    if k is None:
        n_active = torch.count_nonzero(sae.encode(torch.as_tensor(activations)))
        sae.k = max(1, round(float(n_active) / len(activations)))
    sae.provenance = {"imported_from": origin}
    logger.info("%s: %s, %d features, k = %d", source, origin, d_sae, sae.k)
    return sae
