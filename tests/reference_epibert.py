"""EpiBERT's forward pass in plain numpy: slow, float64, and sharing no layer with ours.

Written from a description of the authors' TensorFlow model, in its layout and with its
tensors, for one window. Arrays are (position, channel). Only the two constants that
TensorFlow rounds in its own way come from the package: projection and rotary table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from scipy.special import erf, softmax

from helpers.epibert import projection_matrix, rotary_table

Tensors = Mapping[str, np.ndarray]

TOKEN_BP = 128
EPS = 1e-5  # of batch norms and layer norms alike
N_FEATURES = 256
STABILIZER = 1e-3
# The sequence trunk sees 7 bp to either side in its stem and two positions of 2, 4, ...
# 64 bp in its blocks: 259 bp in all. A cut four tokens away leaves a token as it was.
HALO_BP = 4 * TOKEN_BP


class Forward(NamedTuple):
    """The stream before the first block and after every one, and the outputs."""

    residuals: list[np.ndarray]  # n_blocks + 1 of (n_tokens, d_model)
    uncropped: np.ndarray  # (n_tokens,)
    output: np.ndarray  # (n_tokens - 2 * crop,)


def forward(
    tensors: Tensors,
    sequence: np.ndarray,  # (input_length, 4)
    atac: np.ndarray,  # (input_length / 4,)
    motif_activity: np.ndarray,  # (n_motifs,)
    *,
    crop: int,
    seed: int,
    piece_bp: int | None = None,
) -> Forward:
    """Run the model; ``piece_bp`` bounds the memory of the sequence trunk."""
    tensors = {key: tensor.astype(np.float64) for key, tensor in tensors.items()}
    sequence, atac, motif_activity = (
        x.astype(np.float64) for x in (sequence, atac[:, None], motif_activity[None])
    )
    bases = in_pieces(lambda x: sequence_trunk(tensors, x), sequence, piece_bp)
    motifs = motif_perceptron(tensors, motif_activity).repeat(len(bases), axis=0)
    inputs = np.concatenate([bases, atac_trunk(tensors, atac), motifs], axis=1)
    stream = dense(below(tensors, "pre_transformer_projection"), inputs)
    residuals = [stream]
    while layer := below(tensors, f"performer/layers/{len(residuals) - 1}"):
        stream = transformer_layer(layer, stream, seed)
        residuals.append(stream)
    uncropped = head(tensors, stream)
    return Forward(residuals, uncropped, uncropped[crop : len(uncropped) - crop])


def below(tensors: Tensors, path: str) -> Tensors:
    """Select the tensors of one layer, by their keys inside it."""
    path += "/"
    return {k.removeprefix(path): t for k, t in tensors.items() if k.startswith(path)}


def in_pieces(
    trunk: Callable[[np.ndarray], np.ndarray], x: np.ndarray, piece_bp: int | None
) -> np.ndarray:
    """Run a trunk over stretches of a window, with a halo that is then dropped."""
    tokens = []
    for start in range(0, len(x), piece_bp or len(x)):
        stop = start + (piece_bp or len(x))
        first = max(0, start - HALO_BP)
        kept = slice((start - first) // TOKEN_BP, (stop - first) // TOKEN_BP)
        tokens.append(trunk(x[first : stop + HALO_BP])[kept])
    return np.concatenate(tokens)


def sequence_trunk(tensors: Tensors, x: np.ndarray) -> np.ndarray:
    x = convolution(below(tensors, "stem_conv"), x)
    x = x + conv_block(below(tensors, "stem_res_conv/_layer"), x)
    x = softmax_pool(below(tensors, "stem_pool"), x)
    for i in range(6):
        block = below(tensors, f"conv_tower/layer_with_weights-{i}")
        x = conv_block(below(block, "layer_with_weights-0"), x)
        x = softmax_pool(below(block, "layer_with_weights-1"), x)
    return x


def atac_trunk(tensors: Tensors, x: np.ndarray) -> np.ndarray:
    x = convolution(below(tensors, "stem_conv_atac"), x)
    x = x + conv_block(below(tensors, "stem_res_conv_atac/_layer"), x)
    x = max_pool(x, 2)
    for i in range(2):
        path = f"conv_tower_atac/layer_with_weights-{i}/layer_with_weights-0"
        x = max_pool(conv_block(below(tensors, path), x), 4)
    return x


def motif_perceptron(tensors: Tensors, x: np.ndarray) -> np.ndarray:
    hidden = dense(below(tensors, "motif_activity_fc1"), x)
    hidden = hidden * (1 + erf(hidden / np.sqrt(2))) / 2  # the one exact GELU
    return dense(below(tensors, "motif_activity_fc2"), hidden)


def transformer_layer(layer: Tensors, x: np.ndarray, seed: int) -> np.ndarray:
    normalized = layer_norm(below(layer, "layer_norm"), x)
    x = x + attention(below(layer, "self_attention"), normalized, seed)
    ffn = below(layer, "FFN")
    hidden = layer_norm(below(ffn, "FFN_layer_norm"), x)
    hidden = np.maximum(dense(below(ffn, "FFN_dense_wide"), hidden), 0)
    return x + dense(below(ffn, "FFN_dense_narrow"), hidden)


def attention(layer: Tensors, x: np.ndarray, seed: int) -> np.ndarray:
    """Add up what each head writes into the stream."""
    query, key, value, output = (
        layer[f"{name}_dense_layer/kernel"]
        for name in ("query", "key", "value", "output")
    )
    mixed = np.zeros_like(x)
    for i in range(query.shape[1]):
        queries = features(rotate(x @ query[:, i]), seed)
        keys = features(rotate(x @ key[:, i]), seed)
        total = queries @ keys.sum(axis=0)
        mixed += queries @ (keys.T @ (x @ value[:, i])) / total[:, None] @ output[i]
    return mixed


def rotate(x: np.ndarray) -> np.ndarray:
    """Turn channels 2j and 2j + 1 together, by an angle that grows with position."""
    sine, cosine = (table.double().numpy() for table in rotary_table(*x.shape))
    even, odd = x[:, 0::2], x[:, 1::2]
    turned = [even * cosine - odd * sine, odd * cosine + even * sine]
    return np.stack(turned, axis=2).reshape(x.shape)


def features(x: np.ndarray, seed: int) -> np.ndarray:
    projection = projection_matrix(N_FEATURES, x.shape[1], seed).astype(np.float64)
    return np.maximum(x @ projection.T / np.sqrt(N_FEATURES), 0) + STABILIZER


def head(tensors: Tensors, x: np.ndarray) -> np.ndarray:
    if final_norm := below(tensors, "performer/layer_norm"):
        x = layer_norm(final_norm, x)
    x = gelu(conv_block(below(tensors, "final_pointwise_conv"), x))
    return np.logaddexp(0, dense(below(tensors, "final_dense_profile"), x)[:, 0])


def conv_block(block: Tensors, x: np.ndarray) -> np.ndarray:
    x = gelu(batch_norm(below(block, "layer_with_weights-0"), x))
    return convolution(below(block, "layer_with_weights-1"), x)


def convolution(layer: Tensors, x: np.ndarray) -> np.ndarray:
    kernel = layer["kernel"]  # (width, in, out)
    width = len(kernel)
    left = (width - 1) // 2  # an even width has one more zero on the right
    padded = np.pad(x, ((left, width - 1 - left), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, width, axis=0)
    return np.tensordot(windows, kernel, axes=((2, 1), (0, 1))) + layer["bias"]


def dense(layer: Tensors, x: np.ndarray) -> np.ndarray:
    return x @ layer["kernel"] + layer.get("bias", 0)


def batch_norm(layer: Tensors, x: np.ndarray) -> np.ndarray:
    scale = layer["gamma"] / np.sqrt(layer["moving_variance"] + EPS)
    return (x - layer["moving_mean"]) * scale + layer["beta"]


def layer_norm(layer: Tensors, x: np.ndarray) -> np.ndarray:
    centered = x - x.mean(axis=1, keepdims=True)
    deviation = np.sqrt(x.var(axis=1, keepdims=True) + EPS)
    return centered / deviation * layer["gamma"] + layer["beta"]


def gelu(x: np.ndarray) -> np.ndarray:
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * x * (1 + 0.044715 * x * x)))


def softmax_pool(layer: Tensors, x: np.ndarray) -> np.ndarray:
    pairs = x.reshape(-1, 2, x.shape[1])
    return (pairs * softmax(pairs @ layer["dense/kernel"], axis=1)).sum(axis=1)


def max_pool(x: np.ndarray, size: int) -> np.ndarray:
    return x.reshape(-1, size, x.shape[1]).max(axis=1)
