"""EpiBERT: DNA sequence and ATAC-seq in, accessibility of every 128-bp token out.

A PyTorch re-implementation of the ATAC pre-training model of Javed et al. (2025),
at any size. Tensors are channels-last, (batch, position, channel). Weights of the
authors' TensorFlow checkpoints fit as they are (see :mod:`helpers.checkpoints`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import wraps
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.epibert._convolution import (
    NORM_EPS,
    ConvBlock,
    Convolution,
    SoftmaxPool,
    in_pieces,
    max_pool,
)
from helpers.epibert._performer import (
    PerformerAttention,
    projection_matrix,
    rotary_table,
)

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
# Numbers in projections and rotations of all blocks, which are made before weights are
# looked at. The published model has 2^22; a damaged size would take all memory.
_MAX_CONSTANTS = 2**28

# In evaluation mode, the layers with the longest activations work on pieces of a
# window: the stem and the first blocks of the sequence tower, whose activations then
# stay in the cache and in memory that is used again. A piece reads a halo on either
# side. The stem reaches 7 bp and block i two positions of 2^(i+1) bp: together 35 bp
# for three blocks (259 bp, or 2.02 tokens, for all six).
_PIECED_BLOCKS = 3
_HALO_BP = TOKEN_BP
_PIECE_BP = 64 * TOKEN_BP
_GPU_PIECE_BP = 8 * _PIECE_BP  # a small piece would take as long to launch as to run


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
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not _is_like(value, field.default):
                raise ValueError(
                    f"{field.name} must be a value like {field.default!r}; "
                    f"got {value!r}"
                )
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
        width = self.d_model // self.n_heads
        per_block = width * (max(width, self.n_random_features) + self.n_tokens)
        n_constants = self.n_blocks * per_block
        if n_constants > _MAX_CONSTANTS:
            raise ValueError(
                "n_blocks, n_heads, n_random_features and input_length make "
                f"{n_constants:,} numbers of projections and rotations; expected at "
                f"most {_MAX_CONSTANTS:,}"
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


def _is_like(value: object, default: object) -> bool:
    """Return whether a value is of the kind of a default, (nested) item by item."""
    if isinstance(default, tuple):
        return isinstance(value, list | tuple) and all(
            _is_like(item, default[0]) for item in value
        )
    if isinstance(value, bool) or isinstance(default, bool):
        return type(value) is type(default)
    return isinstance(value, Integral if isinstance(default, int) else Real)


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


class FeedForward(nn.Module):
    """Layer norm and a two-layer ReLU perceptron, twice as wide inside."""

    def __init__(self, d_model: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model, eps=NORM_EPS)
        self.wide = nn.Linear(d_model, _FFN_WIDENING * d_model)
        self.narrow = nn.Linear(_FFN_WIDENING * d_model, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, token, d_model) to the same shape."""
        hidden = F.relu(self.dropout(self.wide(self.norm(x))), inplace=True)
        return self.dropout(self.narrow(hidden))


class TransformerBlock(nn.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream."""

    def __init__(self, config: EpiBERTConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.d_model, eps=NORM_EPS)
        self.attention = PerformerAttention(
            config.d_model,
            config.n_heads,
            n_tokens=config.n_tokens,
            n_features=config.n_random_features,
            seed=config.projection_seed,
            stabilizer=config.feature_stabilizer,
        )
        self.dropout = nn.Dropout(config.dropout)
        self.ffn = FeedForward(config.d_model, config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map the stream before the block to the stream after it."""
        x = x + self.dropout(self.attention(self.norm(x)))
        return x + self.ffn(x)


def _in_precision(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Run a method of the model in the precision that the model is set to."""

    @wraps(method)
    def run(self: EpiBERT, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not self.bfloat16:  # whatever the caller has set
            return method(self, x, *args, **kwargs)
        with torch.autocast(x.device.type, torch.bfloat16):
            return method(self, x, *args, **kwargs)

    return run


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

    Attributes
    ----------
    config : EpiBERTConfig
    bfloat16 : bool
        Whether large products are computed in bfloat16, as the authors trained and
        scored; weights, norms, sums and the output stay float32. False at first.
    """

    def __init__(self, config: EpiBERTConfig, *, random_state: int = 0) -> None:
        super().__init__()
        self.config = config
        self.bfloat16 = False
        with torch.random.fork_rng(devices=[]):
            self._build(config)
        self._initialize(torch.Generator().manual_seed(random_state))

    def _build(self, config: EpiBERTConfig) -> None:
        filters = config.sequence_filters
        self.sequence_stem = Convolution(4, filters[0], 15)
        self.sequence_residual = ConvBlock(filters[0], filters[0], 1)
        self.sequence_pool = SoftmaxPool(filters[0])
        self.sequence_tower = nn.ModuleList(
            nn.Sequential(ConvBlock(d_in, d_out, 5), SoftmaxPool(d_out))
            for d_in, d_out in zip((filters[0], *filters), filters, strict=False)
        )
        filters = config.atac_filters
        self.atac_stem = Convolution(1, _ATAC_STEM_CHANNELS, _ATAC_STEM_WIDTH)
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
            nn.LayerNorm(d_model, eps=NORM_EPS) if config.final_norm else nn.Identity()
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

    @_in_precision
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
        if self.training:  # batch norm needs the statistics of whole windows
            size = self.config.input_length
        else:
            size = _PIECE_BP if sequence.device.type == "cpu" else _GPU_PIECE_BP
        x = in_pieces(self._start_sequence, sequence, size=size, halo=_HALO_BP)
        for block in self.sequence_tower[_PIECED_BLOCKS:]:
            x = block(x)
        return x

    def _start_sequence(self, sequence: Tensor) -> Tensor:
        """Run the layers of the sequence tower that work on pieces of a window."""
        x = self.sequence_stem(sequence)
        x = self.sequence_pool(x + self.sequence_residual(x))
        for block in self.sequence_tower[:_PIECED_BLOCKS]:
            x = block(x)
        return x

    @_in_precision
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
        stream = self.input_projection(torch.cat(parts, dim=-1))
        # Blocks add to the stream in the precision that it starts with.
        return stream.to(torch.promote_types(stream.dtype, torch.float32))

    def _encode_atac(self, atac: Tensor) -> Tensor:
        """Map (batch, bin) to (batch, token, channel)."""
        x = self.atac_stem(atac.unsqueeze(-1))
        x = max_pool(x + self.atac_residual(x), 2)
        for block in self.atac_tower:
            x = max_pool(block(x), _ATAC_TOWER_POOL)
        return x

    def _encode_motifs(self, motif_activity: Tensor) -> Tensor:
        """Map (batch, motif) to (batch, motif_units // 4)."""
        # The one exact GELU of the model; all others are the tanh approximation.
        hidden = F.gelu(self.motif_hidden(motif_activity))
        hidden = F.dropout(hidden, _MOTIF_DROPOUT[0], self.training)
        return F.dropout(self.motif_output(hidden), _MOTIF_DROPOUT[1], self.training)

    @_in_precision
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

    @_in_precision
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
        x = self.head_dropout(self.head_block(self.final_norm(x)))
        x = F.gelu(x, approximate="tanh")
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
