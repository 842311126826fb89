"""Weights of EpiBERT on disk: the authors' TensorFlow checkpoints, and safetensors.

A TensorFlow checkpoint is ``PREFIX.index`` and ``PREFIX.data-0000i-of-0000n``, read
here without TensorFlow. A saved model is ``model.safetensors`` beside ``config.json``.
Both are verified by their checksums, and no more than one copy of the weights is held.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from importlib import metadata as package_metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize_safetensors
from torch import Tensor, nn

from helpers.checkpoints._tensorflow import (
    TensorEntry,
    describe_path,
    list_tensors,
    read_tensor,
)
from helpers.epibert import EpiBERT, EpiBERTConfig

__all__ = [
    "AuthorsTensor",
    "authors_layout",
    "infer_config",
    "load_model",
    "load_state",
    "read_tf_checkpoint",
    "save_model",
]

logger = logging.getLogger(__name__)

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"


def read_tf_checkpoint(prefix: str | Path) -> dict[str, np.ndarray]:
    """Read the model tensors of one of the authors' TensorFlow checkpoints.

    Keys outside ``model/`` (optimizer slots, counters, the object graph) are ignored.
    The checksums of the index and of every tensor read are verified.

    Parameters
    ----------
    prefix : str or Path
        Path without ``.index`` or ``.data-0000i-of-0000n``.

    Returns
    -------
    dict of str to numpy.ndarray
        Float32, by key without ``model/`` and ``/.ATTRIBUTES/VARIABLE_VALUE``.

    Raises
    ------
    FileNotFoundError
        If the index or a data file is missing.
    ValueError
        If a file is no checkpoint, damaged or too short, or a tensor not float32.
    """
    return {key: read_tensor(entry) for key, entry in list_tensors(prefix).items()}


_KERNEL_LEAVES = {"weight": "kernel", "bias": "bias"}
_NORM_LEAVES = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}


class AuthorsTensor(NamedTuple):
    """Our name of one of the authors' tensors, and its shape in their layout."""

    name: str
    shape: tuple[int, ...]


def _authors_modules(config: EpiBERTConfig) -> dict[str, str]:
    """Map our modules that own tensors to the authors' attribute paths."""

    def conv_block(ours: str, theirs: str) -> dict[str, str]:
        # Keras numbers the children of a Sequential that own weights.
        return {
            f"{ours}.norm": f"{theirs}/layer_with_weights-0",
            f"{ours}.conv": f"{theirs}/layer_with_weights-1",
        }

    paths = {
        "sequence_stem": "stem_conv",
        **conv_block("sequence_residual", "stem_res_conv/_layer"),
        "sequence_pool.logit": "stem_pool/dense",
        "atac_stem": "stem_conv_atac",
        **conv_block("atac_residual", "stem_res_conv_atac/_layer"),
        "motif_hidden": "motif_activity_fc1",
        "motif_output": "motif_activity_fc2",
        "input_projection": "pre_transformer_projection",
        **conv_block("head_block", "final_pointwise_conv"),
        "head_output": "final_dense_profile",
    }
    for i in range(len(config.sequence_filters)):
        theirs = f"conv_tower/layer_with_weights-{i}/layer_with_weights"
        paths |= conv_block(f"sequence_tower.{i}.0", f"{theirs}-0")
        paths[f"sequence_tower.{i}.1.logit"] = f"{theirs}-1/dense"
    for i in range(len(config.atac_filters)):
        theirs = f"conv_tower_atac/layer_with_weights-{i}/layer_with_weights-0"
        paths |= conv_block(f"atac_tower.{i}", theirs)
    for i in range(config.n_blocks):
        ours, theirs = f"blocks.{i}", f"performer/layers/{i}"
        paths[f"{ours}.norm"] = f"{theirs}/layer_norm"
        for name in ("query", "key", "value", "output"):
            path = f"{theirs}/self_attention/{name}_dense_layer"
            paths[f"{ours}.attention.{name}"] = path
        paths[f"{ours}.ffn.norm"] = f"{theirs}/FFN/FFN_layer_norm"
        paths[f"{ours}.ffn.wide"] = f"{theirs}/FFN/FFN_dense_wide"
        paths[f"{ours}.ffn.narrow"] = f"{theirs}/FFN/FFN_dense_narrow"
    if config.final_norm:
        paths["final_norm"] = "performer/layer_norm"
    return paths


def authors_layout(model: EpiBERT) -> dict[str, AuthorsTensor]:
    """List the tensors that the authors' checkpoint of a model holds.

    Parameters
    ----------
    model : EpiBERT
        May be on the ``meta`` device.

    Returns
    -------
    dict of str to (name, shape)
        By the authors' key: our name in ``model.state_dict()``, and the shape in
        TensorFlow's layout (convolutions ``[width, in, out]``, dense ``[in, out]``,
        query, key and value ``[model, head, width]``, output ``[head, width, model]``).
    """
    n_heads, d_model = model.config.n_heads, model.config.d_model
    head_shape = (n_heads, d_model // n_heads)
    tensors = model.state_dict()
    layout = {}
    for ours, theirs in _authors_modules(model.config).items():
        is_norm = isinstance(model.get_submodule(ours), nn.BatchNorm1d | nn.LayerNorm)
        leaves = _NORM_LEAVES if is_norm else _KERNEL_LEAVES
        for leaf, authors_leaf in leaves.items():
            name = f"{ours}.{leaf}"
            if name not in tensors:
                continue
            shape = tuple(tensors[name].shape)[::-1]
            if name.endswith(("query.weight", "key.weight", "value.weight")):
                shape = (d_model, *head_shape)
            elif name.endswith("attention.output.weight"):
                shape = (*head_shape, d_model)
            layout[f"{theirs}/{authors_leaf}"] = AuthorsTensor(name, shape)
    return layout


def infer_config(tensors: Mapping[str, np.ndarray | TensorEntry]) -> EpiBERTConfig:
    """Read the sizes of a model off the tensors of the authors' checkpoint.

    What no shape tells keeps its published value: input length, projection seed and
    number of random features, stabilizer, crop, and dropout. Replace those that differ
    with ``dataclasses.replace``.

    Parameters
    ----------
    tensors : mapping of str to numpy.ndarray
        From :func:`read_tf_checkpoint`; anything with a shape will do.

    Returns
    -------
    EpiBERTConfig

    Raises
    ------
    ValueError
        If a tensor needed for this is missing or of another rank.
    """

    def shape(key: str, n_axes: int) -> tuple[int, ...]:
        found = tensors[key].shape if key in tensors else None
        if found is None or len(found) != n_axes:
            raise ValueError(
                f"cannot infer the configuration: {key} should have {n_axes} axes; "
                f"got {'no such tensor' if found is None else found}"
            )
        return found

    def filters(tower: str, n_layers: int) -> tuple[int, ...]:
        kernel = "layer_with_weights-0/layer_with_weights-1/kernel"
        keys = (f"{tower}/layer_with_weights-{i}/{kernel}" for i in range(n_layers))
        return tuple(shape(key, 3)[-1] for key in keys)

    n_blocks = len(
        {key.split("/")[2] for key in tensors if key.startswith("performer/layers/")}
    )
    query = shape("performer/layers/0/self_attention/query_dense_layer/kernel", 3)
    d_model, n_heads, _ = query
    n_motifs, motif_units = shape("motif_activity_fc1/kernel", 2)
    head_channels = shape("final_dense_profile/kernel", 2)[0]
    return EpiBERTConfig(
        n_heads=n_heads,
        n_blocks=n_blocks,
        sequence_filters=filters("conv_tower", 6),
        atac_filters=filters("conv_tower_atac", 2),
        n_motifs=n_motifs,
        motif_units=motif_units,
        head_scale=d_model // head_channels,
        final_norm="performer/layer_norm/gamma" in tensors,
    )


def _state_from_authors(
    entries: Mapping[str, TensorEntry], model: EpiBERT
) -> dict[str, Tensor]:
    """Read, rename and transpose the authors' tensors for ``load_state``."""
    layout = authors_layout(model)
    shapes = {key: entry.shape for key, entry in entries.items()}
    _check_tensors(shapes, {key: entry.shape for key, entry in layout.items()})
    state, ours = {}, model.state_dict()
    for key, (name, _) in layout.items():
        # Reversing the axes suits kernels of every kind, once heads are merged. One
        # tensor is read at a time, lest all be in memory in both layouts.
        kernel = read_tensor(entries[key]).reshape(tuple(ours[name].shape)[::-1]).T
        state[name] = torch.from_numpy(np.ascontiguousarray(kernel, np.float32))
    return state


def _check_tensors(
    found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise a ValueError that names missing, unknown and misshapen tensors."""
    problems = []
    if missing := sorted(expected.keys() - found.keys()):
        problems.append(f"missing: {', '.join(missing)}")
    if unknown := sorted(found.keys() - expected.keys()):
        problems.append(f"not part of the model: {', '.join(unknown)}")
    problems.extend(
        f"{key} must have shape {expected[key]}; got {found[key]}"
        for key in sorted(expected.keys() & found.keys())
        if tuple(found[key]) != tuple(expected[key])
    )
    if problems:
        raise ValueError("tensors do not fit the model: " + "; ".join(problems))


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the state without the batch-norm call counters, which nothing reads."""
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }


def load_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Fill a model, in place, from tensors by name.

    Parameters
    ----------
    model : nn.Module
        On any device; one on the ``meta`` device takes the tensors over as they are.
    state : mapping of str to torch.Tensor
        Exactly one tensor for each parameter and running statistic.

    Raises
    ------
    ValueError
        Naming every tensor that is missing, not part of the model or misshapen.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    weights = _weights(model)
    _check_tensors(shapes, {name: tuple(t.shape) for name, t in weights.items()})
    on_meta = any(tensor.is_meta for tensor in weights.values())
    model.load_state_dict(state, assign=on_meta)


def load_model(path: str | Path, config: EpiBERTConfig | None = None) -> EpiBERT:
    """Load a saved model or one of the authors' checkpoints.

    See :meth:`helpers.epibert.EpiBERT.from_pretrained`, which calls this.
    """
    path = Path(path)
    is_checkpoint = Path(f"{path}.index").is_file()
    is_saved = (path / WEIGHTS_FILE).is_file() or (path / CONFIG_FILE).is_file()
    if not is_checkpoint and not is_saved:
        raise FileNotFoundError(
            f"{path} is neither a folder with {WEIGHTS_FILE} nor the prefix of a "
            f"TensorFlow checkpoint: {describe_path(path)}"
        )
    try:
        if is_checkpoint:
            entries = list_tensors(path)
            if config is None:
                config = infer_config(entries)
                logger.info("%s stores no configuration; assuming %s", path, config)
            model = _empty_model(config)
            state = _state_from_authors(entries, model)
        else:
            config, state = _read_folder(path, config)
            model = _empty_model(config)
        load_state(model, state)
    except ValueError as error:
        raise ValueError(f"cannot load {path}: {error}") from error
    return model.eval()


def _empty_model(config: EpiBERTConfig) -> EpiBERT:
    """Build a model without memory or initial values for its weights."""
    try:
        with torch.device("meta"):
            return EpiBERT(config)
    except (RuntimeError, TypeError, OverflowError) as error:  # sizes beyond any memory
        raise ValueError(f"no model can be built of {config}: {error}") from None


def _read_folder(
    folder: Path, config: EpiBERTConfig | None
) -> tuple[EpiBERTConfig, dict[str, Tensor]]:
    weights_path, config_path = folder / WEIGHTS_FILE, folder / CONFIG_FILE
    for path in (weights_path, config_path):
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist")
    try:
        card = json.loads(config_path.read_text(encoding="utf-8"))
        stored, digest = card["config"], card["weights_sha256"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{config_path} is no model card: {error!r}") from error
    with weights_path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != digest:
        raise ValueError(f"{weights_path} is not the file that {config_path} describes")
    try:
        with safe_open(weights_path, framework="pt") as file:
            # Mapped tensors would follow whoever overwrites the file.
            state = {name: file.get_tensor(name).clone() for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{weights_path} is no safetensors file: {error}") from error
    config = EpiBERTConfig.from_dict(stored) if config is None else config
    if config.n_blocks > len(state):  # would take forever to build
        raise ValueError(
            f"{config_path}: n_blocks must be at most {len(state)}, the tensors in "
            f"{WEIGHTS_FILE}; got {config.n_blocks}"
        )
    return config, state


def save_model(
    model: EpiBERT,
    directory: str | Path,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write weights and configuration of a model into a folder.

    See :meth:`helpers.epibert.EpiBERT.save_pretrained`, which calls this.
    """
    state = {
        name: tensor.cpu().contiguous() for name, tensor in _weights(model).items()
    }
    weights = serialize_safetensors(state)
    card = {
        "config": model.config.to_dict(),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "package_version": _package_version(),
        "metadata": dict(metadata or {}),
    }
    text = json.dumps(card, indent=2) + "\n"  # before any file is touched
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    _write_atomically(folder / WEIGHTS_FILE, weights)
    _write_atomically(folder / CONFIG_FILE, text.encode())


def _package_version() -> str:
    try:
        return package_metadata.version("chromatin-context")
    except package_metadata.PackageNotFoundError:
        return "not installed"


def _write_atomically(path: Path, content: bytes) -> None:
    """Write under a temporary name and rename, so no reader sees half a file."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
