"""Performer attention: its random features, its rotary positions, and the layer.

Neither the random projection nor the rotary table is a weight: both are regenerated, to
the bit where that matters, as TensorFlow made them for the published model. Tensors are
channels-last, (batch, token, channel).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["PerformerAttention", "projection_matrix", "rotary_table"]


def _philox(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Philox 4x32-10 of counters of shape (n, 4), as (n, 4) words of 32 bits."""
    low = np.uint64(0xFFFFFFFF)
    shift = np.uint64(32)
    c0, c1, c2, c3 = (counter[:, i].astype(np.uint64) for i in range(4))
    key0, key1 = key
    for _ in range(10):
        product0 = c0 * np.uint64(0xD2511F53)
        product1 = c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (
            (product1 >> shift) ^ c1 ^ np.uint64(key0),
            product1 & low,
            (product0 >> shift) ^ c3 ^ np.uint64(key1),
            product0 & low,
        )
        key0 = (key0 + 0x9E3779B9) & 0xFFFFFFFF
        key1 = (key1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def _stateless_normal(shape: tuple[int, int], seed: tuple[int, int]) -> np.ndarray:
    """Draw TensorFlow's stateless standard normals, float32, by Box-Muller."""
    mask = 0xFFFFFFFF
    seed_words = [word for s in seed for word in (s & mask, (s >> 32) & mask)]
    scramble_key = (0x3EC8F720, 0x02461E29)
    w0, w1, w2, w3 = _philox(np.array([seed_words], np.uint32), scramble_key)[0]
    n_groups = -(-shape[0] * shape[1] // 4)
    counter = np.zeros((n_groups, 4), np.uint32)
    counter[:, 0] = np.arange(n_groups)
    counter[:, 2:] = w2, w3
    words = _philox(counter, (int(w0), int(w1)))
    uniform = (words & np.uint32(0x7FFFFF)).astype(np.float32) * np.float32(2**-23)
    first, second = uniform[:, 0::2], uniform[:, 1::2]
    radius = np.sqrt(-2 * np.log(np.maximum(first, np.float32(1e-7))))
    angle = np.float32(2 * np.pi) * second
    normals = np.stack([radius * np.sin(angle), radius * np.cos(angle)], axis=-1)
    return normals.reshape(-1)[: shape[0] * shape[1]].reshape(shape)


@lru_cache(maxsize=8)
def projection_matrix(n_features: int, head_width: int, seed: int) -> np.ndarray:
    """Regenerate the random projection of the Performer attention.

    Blocks of orthonormal rows, each row stretched to the length of a Gaussian vector.
    The matrix is no weight and no checkpoint holds it: all heads and blocks of a
    model share the one that its seed gives.

    Parameters
    ----------
    n_features : int
        Random features per head, the number of rows.
    head_width : int
        Channels per head, the number of columns.
    seed : int
        Seed, as the authors pass it (19 for the published model).

    Returns
    -------
    numpy.ndarray, shape (n_features, head_width)
        Float32, read-only.

    Notes
    -----
    TensorFlow's stateless normal generator (Philox 4x32-10 [1]_ and Box-Muller) and
    Householder QR without sign fixing, reproduced in numpy.

    .. [1] Salmon et al. (2011), Parallel random numbers: as easy as 1, 2, 3.
    """
    n_blocks, n_rest = divmod(n_features, head_width)
    square = (head_width, head_width)
    seeds = [(seed + i, 2) for i in range(n_blocks)]
    if n_rest:
        seeds.append((seed + n_blocks, 5))
    rows = [np.linalg.qr(_stateless_normal(square, pair)).Q.T for pair in seeds]
    directions = np.concatenate(rows)[:n_features]
    gaussian = _stateless_normal((n_features, head_width), (seed + n_blocks + 4, 6))
    matrix = np.linalg.norm(gaussian, axis=1, keepdims=True) * directions
    matrix = np.ascontiguousarray(matrix, dtype=np.float32)
    matrix.setflags(write=False)
    return matrix


# TensorFlow's float32 power 10000^x is not always the nearest float32 number. Among the
# multiples of 1/64, the exponents of the published head width of 128, it is one unit in
# the last place too low (-inf) or too high (inf) at these three.
_POWER_CORRECTIONS = {2 / 64: -np.inf, 47 / 64: np.inf, 50 / 64: -np.inf}


def _rotary_frequency(head_width: int) -> np.ndarray:
    """Compute TensorFlow's 1 / 10000^(2j/d), float32 of shape (head_width // 2,)."""
    exponent = np.arange(0, head_width, 2, dtype=np.float32) / np.float32(head_width)
    power = np.power(10_000.0, exponent.astype(np.float64)).astype(np.float32)
    for value, direction in _POWER_CORRECTIONS.items():
        at = exponent == np.float32(value)
        power[at] = np.nextafter(power[at], np.float32(direction))
    return np.float32(1) / power


def rotary_table(n_tokens: int, head_width: int) -> tuple[Tensor, Tensor]:
    """Compute sines and cosines of the rotary position embedding.

    Parameters
    ----------
    n_tokens : int
        Number of positions.
    head_width : int
        Channels per head; channels ``2j`` and ``2j + 1`` turn together.

    Returns
    -------
    sine, cosine : torch.Tensor, shape (n_tokens, head_width // 2)
        Float32 numbers rounded to bfloat16, as the authors' model rounds them
        under every precision policy.
    """
    position = np.arange(n_tokens, dtype=np.float32)[:, None]
    angle = position * _rotary_frequency(head_width)
    # Double precision from here to the rounding is the same on every platform.
    angle = torch.from_numpy(angle.astype(np.float64))
    sine, cosine = angle.sin().float(), angle.cos().float()
    return sine.bfloat16().float(), cosine.bfloat16().float()


_CACHED_FEATURES = 2**18  # numbers, 1 MiB in single precision


class PerformerAttention(nn.Module):
    """Linear attention over ReLU random features, with rotary positions.

    Each head replaces the softmax kernel by phi(q) . phi(k), where
    phi(u) = relu(P u / sqrt(m)) + s, so that its cost is linear in the tokens
    (Choromanski et al. 2021, Rethinking attention with Performers).

    Parameters
    ----------
    d_model, n_heads : int
        Width of the stream, split evenly over the heads.
    n_tokens : int
        Longest sequence of tokens.
    n_features : int
        Random features m per head.
    seed : int
        Seed of the random projection P.
    stabilizer : float
        The constant s.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        n_tokens: int,
        n_features: int,
        seed: int,
        stabilizer: float,
    ) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.stabilizer = stabilizer
        self.query = nn.Linear(d_model, d_model, bias=False)
        self.key = nn.Linear(d_model, d_model, bias=False)
        self.value = nn.Linear(d_model, d_model, bias=False)
        self.output = nn.Linear(d_model, d_model, bias=False)
        matrix = projection_matrix(n_features, d_model // n_heads, seed)
        features = torch.from_numpy(matrix * np.float32(n_features**-0.5))
        sine, cosine = rotary_table(n_tokens, d_model // n_heads)
        # Derived from the configuration, hence not part of the saved state.
        self.register_buffer("projection", features, persistent=False)
        self.register_buffer("sine", sine, persistent=False)
        self.register_buffer("cosine", cosine, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens: (batch, token, d_model) to the same shape."""
        n_tokens = x.shape[1]
        turns = torch.complex(self.cosine[:n_tokens], self.sine[:n_tokens])
        inputs = (self.query(x), self.key(x), self.value(x))
        heads = [u.unflatten(-1, (self.n_heads, -1)) for u in inputs]
        # As many windows at a time as keep the random features of a head in a cache.
        n_together = max(1, _CACHED_FEATURES // (n_tokens * len(self.projection)))
        parts = zip(*(u.split(n_together) for u in heads), strict=True)
        mixed = [self._mix(*part, turns) for part in parts]
        return self.output(mixed[0] if len(mixed) == 1 else torch.cat(mixed))

    def _mix(self, query: Tensor, key: Tensor, value: Tensor, turns: Tensor) -> Tensor:
        """Mix the tokens of (window, token, head, head width); heads are joined."""
        # Head by head on views, since putting heads first would copy every input.
        heads = zip(*(u.unbind(dim=2) for u in (query, key, value)), strict=True)
        return torch.cat([self._attend(*head, turns) for head in heads], dim=-1)

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, turns: Tensor
    ) -> Tensor:
        """Mix the tokens of a head, (window, token, head width)."""
        query = self._features(query, turns)  # (window, token, m)
        key = self._features(key, turns)
        summary = key.transpose(1, 2) @ value  # (window, m, head width)
        total = query @ key.sum(dim=1).unsqueeze(-1)  # positive by s
        return (query @ summary) / total

    def _features(self, x: Tensor, turns: Tensor) -> Tensor:
        """Rotate queries or keys by position, then map them to random features."""
        # Pairs of channels are complex numbers, which have no half precision.
        x = x.to(torch.promote_types(x.dtype, self.sine.dtype))
        turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turns
        rotated = torch.view_as_real(turned).flatten(-2)
        # In place of a product with a bias, which would be copied to every row.
        return F.linear(rotated, self.projection).clamp_min_(0).add_(self.stabilizer)
