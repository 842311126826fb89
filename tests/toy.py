"""Tiny models with answers that can be checked by hand, in the shape of EpiBERT."""

from __future__ import annotations

import torch
from torch import nn

TOKEN_BP = 4  # bases per token, and per bin of the ATAC track
CROP = 1


class PlaceValueBlock(nn.Module):
    """Add 10^i: the digits of a stream of zeros tell which blocks it went through."""

    def __init__(self, i: int) -> None:
        super().__init__()
        self.amount = 10.0**i

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.amount


class MixingBlock(nn.Module):
    """Mix tokens and channels nonlinearly, as attention and feed-forward do."""

    def __init__(self, d: int, generator: torch.Generator) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.randn(d, d, generator=generator))
        self.all = nn.Parameter(torch.randn(d, d, generator=generator))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(x @ self.own + x.mean(dim=1, keepdim=True) @ self.all)


class ToyEpiBERT(nn.Module):
    """EpiBERT's interface: towers, ``blocks``, ``run_blocks``, ``head``.

    Before block 0 a token holds its counts of A, C, G, T, plus its ATAC value, plus the
    sum of the motif vector. The head adds the channels up and drops a token at each
    end.
    """

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    @classmethod
    def place_value(cls, n_blocks: int = 3) -> ToyEpiBERT:
        return cls([PlaceValueBlock(i) for i in range(n_blocks)])

    @classmethod
    def mixing(cls, n_blocks: int = 3, d: int = 4, seed: int = 0) -> ToyEpiBERT:
        generator = torch.Generator().manual_seed(seed)
        return cls([MixingBlock(d, generator) for _ in range(n_blocks)])

    def encode_sequence(self, sequence: torch.Tensor) -> torch.Tensor:
        return sequence.unflatten(1, (-1, TOKEN_BP)).sum(dim=2)

    def encode_context(
        self,
        sequence_features: torch.Tensor,
        atac: torch.Tensor,
        motif_activity: torch.Tensor,
    ) -> torch.Tensor:
        return (
            sequence_features + atac[..., None] + motif_activity.sum(1)[:, None, None]
        )

    def run_blocks(
        self, x: torch.Tensor, start: int = 0, stop: int | None = None
    ) -> torch.Tensor:
        for block in self.blocks[start:stop]:
            x = block(x)
        return x

    def head(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(dim=2)[:, CROP:-CROP]

    def forward(
        self, sequence: torch.Tensor, atac: torch.Tensor, motif_activity: torch.Tensor
    ) -> torch.Tensor:
        x = self.encode_context(self.encode_sequence(sequence), atac, motif_activity)
        return self.head(self.run_blocks(x))


def toy_inputs(
    n_windows: int = 2, n_tokens: int = 6, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random (sequence, atac, motif_activity) for `ToyEpiBERT`."""
    generator = torch.Generator().manual_seed(seed)
    bases = torch.randint(4, (n_windows, n_tokens * TOKEN_BP), generator=generator)
    return (
        nn.functional.one_hot(bases, 4).float(),
        torch.rand(n_windows, n_tokens, generator=generator),
        torch.rand(n_windows, 3, generator=generator),
    )


class TupleLayer(nn.Module):
    """Return (stream, weights), as attention layers of other libraries do."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, str]:
        return 2 * x, "weights"


class TupleModel(nn.Module):
    """A transformer of another library: named layers with tuple outputs."""

    def __init__(self, n_layers: int = 2) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(TupleLayer() for _ in range(n_layers))
        self.unused = nn.Identity()

    def forward(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
        x = inputs_embeds
        for layer in self.encoder:
            x, weights = layer(x)
            assert weights == "weights"
        return x.sum(dim=2)


class ToySAE(nn.Module):
    """Thresholded projections on given directions: exact if they are orthonormal."""

    def __init__(self, directions: torch.Tensor, threshold: float = 0.0) -> None:
        super().__init__()
        self.decoder_directions = directions
        self.threshold = threshold

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        hidden_pre = x @ self.decoder_directions.T
        return hidden_pre * (hidden_pre > self.threshold)
