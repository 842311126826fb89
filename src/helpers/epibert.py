"""EpiBERT: DNA sequence and ATAC-seq in, accessibility of every 128-bp token out.

A PyTorch re-implementation of the ATAC pre-training model of Javed et al. (2025),
at any size. Public tensors are channels-last, (batch, position, channel);
convolutions work channels-first inside. Weights of the authors' TensorFlow
checkpoints fit as they are (see :mod:`helpers.checkpoints`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "ATAC_BIN_BP",
    "TOKEN_BP",
    "EpiBERT",
    "EpiBERTConfig",
    "projection_matrix",
    "rotary_table",
]

TOKEN_BP = 128  # seven poolings by two, in the sequence stem and its six tower blocks
ATAC_BIN_BP = 4
_ATAC_STEM_CHANNELS = 32  # hard-wired by the authors, like the four constants below
_ATAC_STEM_WIDTH = 50
_ATAC_TOWER_POOL = 4
_MOTIF_DROPOUT = (0.25, 0.0625)
_FFN_WIDENING = 2
_NORM_EPS = 1e-5


@dataclasses.dataclass(frozen=True)
class EpiBERTConfig:
    """Sizes and switches of an EpiBERT; the defaults are the published model.

    Attributes
    ----------
    input_length : int
        Window length in bp, a multiple of 128.
    n_heads, n_blocks : int
        Attention heads per block and number of transformer blocks.
    sequence_filters : tuple of int
        Output channels of the six sequence tower blocks; the last is ``d_model``.
    atac_filters : tuple of int
        Output channels of the two ATAC tower blocks.
    n_motifs : int
        Number of motif activities of a biosample.
    motif_units : int
        Hidden units of the motif perceptron, which ends in a quarter as many.
    n_random_features : int
        Random features per head of the Performer attention.
    projection_seed : int
        Seed of the random projection, which no checkpoint stores: a wrong seed
        gives wrong outputs without any error.
    feature_stabilizer : float
        Added to every random feature, after its ReLU.
    crop : int
        Tokens without an output at either end of the window.
    head_scale : int
        The output head has ``d_model // head_scale`` channels.
    dropout, head_dropout : float
        Dropout probability in the blocks and in the head, when training.
    final_norm : bool
        Whether a layer norm follows the last block.
    """

    input_length: int = 524_288
    n_heads: int = 8
    n_blocks: int = 8
    sequence_filters: tuple[int, ...] = (512, 640, 640, 768, 896, 1024)
    atac_filters: tuple[int, ...] = (32, 64)
    n_motifs: int = 693
    motif_units: int = 32
    n_random_features: int = 256
    projection_seed: int = 19
    feature_stabilizer: float = 1e-3
    crop: int = 2
    head_scale: int = 6
    dropout: float = 0.2
    head_dropout: float = 0.1
    final_norm: bool = True

    def __post_init__(self) -> None:
        """Check every field; lists (from JSON) become tuples."""
        for name, n_layers in (("sequence_filters", 6), ("atac_filters", 2)):
            filters = tuple(getattr(self, name))
            object.__setattr__(self, name, filters)
            if len(filters) != n_layers or any(f < 1 for f in filters):
                raise ValueError(
                    f"{name} must hold {n_layers} positive sizes; got {filters}"
                )
        for name in ("n_heads", "n_blocks", "n_motifs", "n_random_features"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 1; got {getattr(self, name)}"
                )
        if self.input_length < TOKEN_BP or self.input_length % TOKEN_BP:
            raise ValueError(
                f"input_length must be a positive multiple of {TOKEN_BP} bp; "
                f"got {self.input_length}"
            )
        if self.motif_units < 4:
            raise ValueError(f"motif_units must be at least 4; got {self.motif_units}")
        if self.d_model % (2 * self.n_heads):
            raise ValueError(
                "the last of sequence_filters must be a multiple of 2 * n_heads, as "
                "rotation pairs the channels of a head; got "
                f"{self.d_model} channels for {self.n_heads} heads"
            )
        if not 1 <= self.head_scale <= self.d_model:
            raise ValueError(
                f"head_scale must lie in 1..{self.d_model}; got {self.head_scale}"
            )
        if not 0 <= 2 * self.crop < self.n_tokens:
            raise ValueError(
                f"crop must leave some of {self.n_tokens} tokens; got {self.crop}"
            )
        if self.feature_stabilizer <= 0:
            raise ValueError(
                f"feature_stabilizer must be positive; got {self.feature_stabilizer}"
            )
        for name in ("dropout", "head_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must lie in [0, 1); got {getattr(self, name)}"
                )

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.sequence_filters[-1]

    @property
    def n_tokens(self) -> int:
        """Tokens of 128 bp in a window."""
        return self.input_length // TOKEN_BP

    @property
    def n_outputs(self) -> int:
        """Tokens that get an output; output ``i`` is token ``i + crop``."""
        return self.n_tokens - 2 * self.crop

    @classmethod
    def from_authors(cls, arguments: Mapping[str, Any]) -> EpiBERTConfig:
        """Translate the constructor arguments of the authors' TensorFlow model.

        Parameters
        ----------
        arguments : mapping
            Arguments by the authors' names; those left out keep the published value.

        Returns
        -------
        EpiBERTConfig

        Raises
        ------
        ValueError
            On an unknown argument or a variant that is not implemented.

        Notes
        -----
        The authors' ``numerical_stabilizer`` never reaches their feature map, whose
        own 1e-3 applies; ``normalize``, ``max_seq_length`` have no effect either.
        """
        arguments = dict(arguments)
        for name in ("numerical_stabilizer", "normalize", "max_seq_length"):
            arguments.pop(name, None)
        required = {
            "use_rot_emb": True,
            "kernel_transformation": "relu_kernel_transformation",
            "BN_momentum": 0.9,
        }
        for name, value in required.items():
            if arguments.pop(name, value) != value:
                raise ValueError(f"only {name}={value!r} is implemented")
        n_tokens = arguments.pop("output_length", None)
        n_outputs = arguments.pop("final_output_length", None)
        if unknown := sorted(set(arguments) - set(_AUTHORS_ARGUMENTS)):
            raise ValueError(
                f"unknown arguments {unknown}; known are {sorted(_AUTHORS_ARGUMENTS)}"
            )
        fields = {_AUTHORS_ARGUMENTS[name]: v for name, v in arguments.items()}
        config = cls(**fields)
        if n_tokens not in (None, config.n_tokens):
            raise ValueError(
                f"output_length must be input_length / {TOKEN_BP} = "
                f"{config.n_tokens}; got {n_tokens}"
            )
        if n_outputs is None:
            return config
        if n_outputs > config.n_tokens or (config.n_tokens - n_outputs) % 2:
            raise ValueError(
                f"final_output_length must be {config.n_tokens} less an even number; "
                f"got {n_outputs}"
            )
        return dataclasses.replace(config, crop=(config.n_tokens - n_outputs) // 2)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> EpiBERTConfig:
        """Build a configuration from what :meth:`to_dict` returned."""
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(fields) - known):
            raise ValueError(f"unknown fields {unknown}; known are {sorted(known)}")
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        fields = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}


_AUTHORS_ARGUMENTS = {
    "input_length": "input_length",
    "num_heads": "n_heads",
    "num_transformer_layers": "n_blocks",
    "filter_list_seq": "sequence_filters",
    "filter_list_atac": "atac_filters",
    "num_motifs": "n_motifs",
    "motif_units_fc": "motif_units",
    "seed": "projection_seed",
    "final_point_scale": "head_scale",
    "dropout_rate": "dropout",
    "pointwise_dropout_rate": "head_dropout",
    "norm": "final_norm",
}


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


class ConvBlock(nn.Module):
    """Batch norm, tanh-approximated GELU and a convolution, in this order."""

    def __init__(self, d_in: int, d_out: int, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(d_in, eps=_NORM_EPS, momentum=0.1)
        self.conv = nn.Conv1d(d_in, d_out, width, padding=width // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, d_in, position) to (batch, d_out, position)."""
        return self.conv(F.gelu(self.norm(x), approximate="tanh"))


class SoftmaxPool(nn.Module):
    """Pool pairs of positions by a softmax over one learned logit per position.

    Unlike Enformer's attention pooling, all channels share the logit.
    """

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.logit = nn.Linear(n_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channel, position) to (batch, channel, position / 2)."""
        logit = self.logit.weight @ x  # (batch, 1, position)
        # The softmax over two positions is the sigmoid of their difference.
        weight = torch.sigmoid(logit[..., 0::2] - logit[..., 1::2])
        left, right = x[..., 0::2], x[..., 1::2]
        return right + weight * (left - right)


class PerformerAttention(nn.Module):
    """Linear attention over ReLU random features, with rotary positions.

    Each head replaces the softmax kernel by phi(q) . phi(k), where
    phi(u) = relu(P u / sqrt(m)) + s, so that its cost is linear in the tokens
    (Choromanski et al. 2021, Rethinking attention with Performers).
    """

    def __init__(self, config: EpiBERTConfig) -> None:
        super().__init__()
        d_model, head_width = config.d_model, config.d_model // config.n_heads
        self.n_heads = config.n_heads
        self.stabilizer = config.feature_stabilizer
        self.query = nn.Linear(d_model, d_model, bias=False)
        self.key = nn.Linear(d_model, d_model, bias=False)
        self.value = nn.Linear(d_model, d_model, bias=False)
        self.output = nn.Linear(d_model, d_model, bias=False)
        n_features = config.n_random_features
        matrix = projection_matrix(n_features, head_width, config.projection_seed)
        features = torch.from_numpy(matrix * np.float32(n_features**-0.5))
        sine, cosine = rotary_table(config.n_tokens, head_width)
        # Derived from the configuration, hence not part of the saved state.
        self.register_buffer("projection", features, persistent=False)
        self.register_buffer("sine", sine, persistent=False)
        self.register_buffer("cosine", cosine, persistent=False)

    def _heads(self, x: Tensor) -> Tensor:
        """Split (batch, token, d_model) into (batch, head, token, head width)."""
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)

    def _features(self, x: Tensor) -> Tensor:
        """Rotate queries or keys by position, then map them to random features."""
        sine, cosine = self.sine[: x.shape[2]], self.cosine[: x.shape[2]]
        even, odd = x[..., 0::2], x[..., 1::2]
        turned = (even * cosine - odd * sine, odd * cosine + even * sine)
        rotated = torch.stack(turned, dim=-1).flatten(-2)
        return F.relu(rotated @ self.projection.T) + self.stabilizer

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens: (batch, token, d_model) to the same shape."""
        query = self._features(self._heads(self.query(x)))  # (B, H, T, m)
        key = self._features(self._heads(self.key(x)))
        value = self._heads(self.value(x))  # (B, H, T, width)
        summary = key.transpose(2, 3) @ value  # (B, H, m, width)
        total = query @ key.sum(dim=2).unsqueeze(-1)  # (B, H, T, 1), positive by s
        mixed = (query @ summary) / total
        return self.output(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Layer norm and a two-layer ReLU perceptron, twice as wide inside."""

    def __init__(self, d_model: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model, eps=_NORM_EPS)
        self.wide = nn.Linear(d_model, _FFN_WIDENING * d_model)
        self.narrow = nn.Linear(_FFN_WIDENING * d_model, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, token, d_model) to the same shape."""
        hidden = F.relu(self.dropout(self.wide(self.norm(x))))
        return self.dropout(self.narrow(hidden))


class TransformerBlock(nn.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream."""

    def __init__(self, config: EpiBERTConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.d_model, eps=_NORM_EPS)
        self.attention = PerformerAttention(config)
        self.dropout = nn.Dropout(config.dropout)
        self.ffn = FeedForward(config.d_model, config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map the stream before the block to the stream after it."""
        x = x + self.dropout(self.attention(self.norm(x)))
        return x + self.ffn(x)


class EpiBERT(nn.Module):
    """The EpiBERT model, in parts that can be called one by one.

    The sequence tower costs three quarters of a forward pass and does not depend on
    the biosample: run :meth:`encode_sequence` once per window and
    :meth:`encode_context` once per biosample. "Layer ``i``" is the residual stream
    after ``blocks[i]``, before the final layer norm, which belongs to :meth:`head`.

    Parameters
    ----------
    config : EpiBERTConfig
        Sizes and switches.
    random_state : int, default 0
        Seed of the initial weights; the global generator is left as it was.
    """

    def __init__(self, config: EpiBERTConfig, *, random_state: int = 0) -> None:
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):
            self._build(config)
        self._initialize(torch.Generator().manual_seed(random_state))

    def _build(self, config: EpiBERTConfig) -> None:
        filters = config.sequence_filters
        self.sequence_stem = nn.Conv1d(4, filters[0], 15, padding=7)
        self.sequence_residual = ConvBlock(filters[0], filters[0], 1)
        self.sequence_pool = SoftmaxPool(filters[0])
        self.sequence_tower = nn.ModuleList(
            nn.Sequential(ConvBlock(d_in, d_out, 5), SoftmaxPool(d_out))
            for d_in, d_out in zip((filters[0], *filters), filters, strict=False)
        )
        filters = config.atac_filters
        self.atac_stem = nn.Conv1d(1, _ATAC_STEM_CHANNELS, _ATAC_STEM_WIDTH)
        self.atac_residual = ConvBlock(_ATAC_STEM_CHANNELS, _ATAC_STEM_CHANNELS, 1)
        self.atac_tower = nn.ModuleList(
            ConvBlock(d_in, d_out, 5)
            for d_in, d_out in zip(
                (_ATAC_STEM_CHANNELS, *filters), filters, strict=False
            )
        )
        d_motif = config.motif_units // 4
        self.motif_hidden = nn.Linear(config.n_motifs, config.motif_units)
        self.motif_output = nn.Linear(config.motif_units, d_motif)
        d_model = config.d_model
        d_inputs = d_model + filters[-1] + d_motif
        self.input_projection = nn.Linear(d_inputs, d_model, bias=False)
        self.blocks = nn.ModuleList(
            TransformerBlock(config) for _ in range(config.n_blocks)
        )
        self.final_norm = (
            nn.LayerNorm(d_model, eps=_NORM_EPS) if config.final_norm else nn.Identity()
        )
        self.head_block = ConvBlock(d_model, d_model // config.head_scale, 1)
        self.head_dropout = nn.Dropout(config.head_dropout)
        self.head_output = nn.Linear(d_model // config.head_scale, 1)

    @torch.no_grad()
    def _initialize(self, generator: torch.Generator) -> None:
        """Draw kernels as Keras does by default (Glorot uniform, zero biases)."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv1d) and not module.weight.is_meta:
                # Drawn on the CPU, so that a seed means the same on every device.
                weight = torch.empty(module.weight.shape, device="cpu")
                nn.init.xavier_uniform_(weight, generator=generator)
                module.weight.copy_(weight)
                if module.bias is not None:
                    module.bias.zero_()

    def encode_sequence(self, sequence: Tensor) -> Tensor:
        """Run the sequence tower, the part that all biosamples share.

        Parameters
        ----------
        sequence : torch.Tensor, shape (batch, input_length, 4)
            One-hot, channels A, C, G, T; an unknown base is all zeros.

        Returns
        -------
        torch.Tensor, shape (batch, n_tokens, d_model)
        """
        _check_shape("sequence", sequence, (self.config.input_length, 4))
        x = self.sequence_stem(sequence.transpose(1, 2))
        x = self.sequence_pool(x + self.sequence_residual(x))
        for block in self.sequence_tower:
            x = block(x)
        return x.transpose(1, 2)

    def encode_context(
        self, sequence_features: Tensor, atac: Tensor, motif_activity: Tensor
    ) -> Tensor:
        """Join sequence features with what is known of a biosample.

        Parameters
        ----------
        sequence_features : torch.Tensor, shape (batch, n_tokens, d_model)
            From :meth:`encode_sequence`, repeated over the biosamples.
        atac : torch.Tensor, shape (batch, input_length / 4)
            ATAC signal summed in bins of 4 bp; masked bins are zero.
        motif_activity : torch.Tensor, shape (batch, n_motifs)
            Motif activities of the biosample, scaled to [0, 1].

        Returns
        -------
        torch.Tensor, shape (batch, n_tokens, d_model)
            The residual stream before block 0.
        """
        config = self.config
        _check_shape(
            "sequence_features", sequence_features, (config.n_tokens, config.d_model)
        )
        _check_shape("atac", atac, (config.input_length // ATAC_BIN_BP,))
        _check_shape("motif_activity", motif_activity, (config.n_motifs,))
        motifs = self._encode_motifs(motif_activity)
        motifs = motifs.unsqueeze(1).expand(-1, config.n_tokens, -1)
        parts = (sequence_features, self._encode_atac(atac), motifs)
        return self.input_projection(torch.cat(parts, dim=-1))

    def _encode_atac(self, atac: Tensor) -> Tensor:
        """Map (batch, bin) to (batch, token, channel)."""
        # An even width pads one more on the right, as TensorFlow does.
        margin = _ATAC_STEM_WIDTH - 1
        padded = F.pad(atac.unsqueeze(1), (margin // 2, margin - margin // 2))
        x = self.atac_stem(padded)
        x = F.max_pool1d(x + self.atac_residual(x), 2)
        for block in self.atac_tower:
            x = F.max_pool1d(block(x), _ATAC_TOWER_POOL)
        return x.transpose(1, 2)

    def _encode_motifs(self, motif_activity: Tensor) -> Tensor:
        """Map (batch, motif) to (batch, motif_units // 4)."""
        # The one exact GELU of the model; all others are the tanh approximation.
        hidden = F.gelu(self.motif_hidden(motif_activity))
        hidden = F.dropout(hidden, _MOTIF_DROPOUT[0], self.training)
        return F.dropout(self.motif_output(hidden), _MOTIF_DROPOUT[1], self.training)

    def run_blocks(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Run transformer blocks ``start`` to ``stop`` (exclusive; all by default).

        Parameters
        ----------
        x : torch.Tensor, shape (batch, n_tokens, d_model)
            The residual stream before block ``start``.
        start, stop : int
            To restart after layer ``i``, pass ``start=i + 1``.

        Returns
        -------
        torch.Tensor, shape (batch, n_tokens, d_model)
            The residual stream after block ``stop - 1``.
        """
        stop = len(self.blocks) if stop is None else stop
        if not 0 <= start <= stop <= len(self.blocks):
            raise ValueError(
                f"start and stop must satisfy 0 <= start <= stop <= "
                f"{len(self.blocks)}; got {start} and {stop}"
            )
        for i in range(start, stop):
            x = self.blocks[i](x)
        return x

    def head(self, x: Tensor) -> Tensor:
        """Predict accessibility from the residual stream after the last block.

        Parameters
        ----------
        x : torch.Tensor, shape (batch, n_tokens, d_model)

        Returns
        -------
        torch.Tensor, shape (batch, n_outputs)
            Expected ATAC signal, summed over each inner token; float32 or wider.
        """
        x = self.head_block(self.final_norm(x).transpose(1, 2)).transpose(1, 2)
        x = F.gelu(self.head_dropout(x), approximate="tanh")
        logit = self.head_output(x).squeeze(-1)
        if logit.dtype != torch.float64:  # half-precision outputs would be coarse
            logit = logit.float()
        crop = self.config.crop
        return F.softplus(logit[:, crop : logit.shape[1] - crop])

    def forward(self, sequence: Tensor, atac: Tensor, motif_activity: Tensor) -> Tensor:
        """Predict the ATAC signal of every inner token.

        Parameters
        ----------
        sequence : torch.Tensor, shape (batch, input_length, 4)
            One-hot, channels A, C, G, T; an unknown base is all zeros.
        atac : torch.Tensor, shape (batch, input_length / 4)
            ATAC signal summed in bins of 4 bp; masked bins are zero.
        motif_activity : torch.Tensor, shape (batch, n_motifs)
            Motif activities of the biosample, scaled to [0, 1].

        Returns
        -------
        torch.Tensor, shape (batch, n_outputs)
            Expected ATAC signal of tokens ``crop`` to ``n_tokens - crop - 1``.
        """
        features = self.encode_sequence(sequence)
        x = self.encode_context(features, atac, motif_activity)
        return self.head(self.run_blocks(x))

    @classmethod
    def from_pretrained(
        cls, path: str | Path, config: EpiBERTConfig | None = None
    ) -> EpiBERT:
        """Load a model, in evaluation mode.

        Parameters
        ----------
        path : str or Path
            A folder written by :meth:`save_pretrained`, or the prefix of one of the
            authors' TensorFlow checkpoints, e.g. ``model1/ckpt-45``.
        config : EpiBERTConfig, optional
            Replaces the stored configuration of a folder. For a checkpoint, which
            stores none, the default is what the tensor shapes tell and published
            values for the rest (input length and projection seed among them).

        Returns
        -------
        EpiBERT

        Raises
        ------
        FileNotFoundError
            If there is no model under ``path``.
        ValueError
            If files are damaged, or tensors are missing, left over or misshapen.
        """
        # Imported here because checkpoints imports this module.
        from helpers.checkpoints import load_model

        return load_model(path, config)

    def save_pretrained(
        self, directory: str | Path, metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Write ``model.safetensors`` and ``config.json`` into a folder.

        Parameters
        ----------
        directory : str or Path
            Made if needed; files of the same names are replaced in one step each.
        metadata : mapping, optional
            JSON-ready facts to keep with the weights, e.g. the training recipe.
        """
        from helpers.checkpoints import save_model

        save_model(self, directory, metadata)


def _check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.ndim != len(shape) + 1 or tuple(tensor.shape[1:]) != shape:
        expected = ", ".join(("batch", *map(str, shape)))
        raise ValueError(
            f"{name} must have shape ({expected}); got {tuple(tensor.shape)}"
        )
