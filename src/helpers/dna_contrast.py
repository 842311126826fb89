"""A contrast with known truth for any DNA language model, and a small model to try.

The same random reading frames are read with and without one motif written into them.
Backgrounds of different GC content play the part of lineages, a second motif that is in
both conditions is the decoy. Tokens are the 64 codons, in the order of the letters
ACGT; token 64 hides one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn

__all__ = [
    "CODONS",
    "LEVELS",
    "MASK",
    "ContrastDraw",
    "Encoder",
    "MotifContrast",
    "SmallEncoder",
    "draw_contrast",
    "logits_of",
    "make_encoder",
    "site_folds",
    "train_masked",
]

LEVELS = ("without", "with")
CODONS = tuple("".join(letters) for letters in product("ACGT", repeat=3))
MASK = len(CODONS)
_IGNORED = -100  # label of tokens that are not scored, as in torch's cross-entropy


@dataclass(frozen=True)
class MotifContrast:
    """What is written where.

    Attributes
    ----------
    motif : str
        In-frame word written into the second condition only.
    decoy : str
        In-frame word written into both conditions.
    gc : tuple of float
        GC content of each background, the lineages of the contrast.
    n_windows, length : int
        Sequences of a background, and their length in codons.
    mutated : float
        Share of codons redrawn independently in each condition: two conditions of one
        window are never quite the same outside of the motif either.
    """

    motif: str = "TGACTCATCGGA"
    decoy: str = "CCGCGTTGGCAC"
    gc: tuple[float, ...] = (0.35, 0.45, 0.55)
    n_windows: int = 240
    length: int = 32
    mutated: float = 0.05

    def __post_init__(self) -> None:
        """Check that motifs are DNA in frame, and fit."""
        for name in ("motif", "decoy"):
            word = getattr(self, name)
            if not word or set(word) - set("ACGT") or len(word) % 3:
                raise ValueError(
                    f"{name} must be letters of ACGT, a multiple of 3; got {word!r}"
                )
        if 2 * (len(self.motif) + len(self.decoy)) > 3 * self.length:
            raise ValueError(
                "length must be at least twice the motifs together, in codons; got "
                f"{self.length}"
            )


class ContrastDraw(NamedTuple):
    """Sequences of all conditions.

    Attributes
    ----------
    tokens : torch.Tensor, int64, shape (n_biosamples, n_windows, length)
        Codons.
    sites : numpy.ndarray of bool, shape (n_biosamples, n_windows, length)
        Where the motif was written; the second condition of a background has its sites,
        the first one marks the same places, where it has none.
    decoy_sites : numpy.ndarray of bool, of the same shape
        Where the decoy was written.
    design : pandas.DataFrame
        Columns biosample, lineage, context; for `helpers.cds.context_divergence` with
        ``levels=LEVELS``.
    """

    tokens: torch.Tensor
    sites: np.ndarray
    decoy_sites: np.ndarray
    design: pd.DataFrame


def draw_contrast(
    contrast: MotifContrast, random_state: int | np.random.Generator
) -> ContrastDraw:
    """Draw sequences with and without the motif.

    Parameters
    ----------
    contrast : MotifContrast
        What to write.
    random_state : int or numpy.random.Generator
        Source of the codons.

    Returns
    -------
    ContrastDraw
        Two conditions for each background, in the order of its ``design``.
    """
    rng = np.random.default_rng(random_state)
    shape = (contrast.n_windows, contrast.length)
    half = contrast.length // 2
    tokens, sites, decoy_sites, rows = [], [], [], []
    for gc in contrast.gc:
        letter = dict(zip("ACGT", np.array([1 - gc, gc, gc, 1 - gc]) / 2, strict=True))
        chance = [np.prod([letter[x] for x in codon]) for codon in CODONS]
        base = rng.choice(len(CODONS), size=shape, p=chance)
        last = contrast.length - len(contrast.decoy) // 3
        at = [  # the motif in one half of the window, the decoy in the other
            rng.integers(0, half - len(contrast.motif) // 3, contrast.n_windows),
            rng.integers(half, last, contrast.n_windows),
        ]
        for level in LEVELS:
            redrawn = rng.random(shape) < contrast.mutated
            fresh = rng.choice(len(CODONS), size=shape, p=chance)
            one = np.where(redrawn, fresh, base)
            where = _write(one, contrast.motif, at[0], level == LEVELS[1])
            decoy = _write(one, contrast.decoy, at[1], True)
            tokens.append(one)
            sites.append(where)
            decoy_sites.append(decoy)
            rows.append((f"GC {gc:.0%} {level}", f"GC {gc:.0%}", level))
    return ContrastDraw(
        torch.from_numpy(np.stack(tokens)),
        np.stack(sites),
        np.stack(decoy_sites),
        pd.DataFrame(rows, columns=["biosample", "lineage", "context"]),
    )


def _write(
    tokens: np.ndarray, word: str, start: np.ndarray, really: bool
) -> np.ndarray:
    """Write a word into every row in place; return where it lies."""
    codes = [CODONS.index(word[i : i + 3]) for i in range(0, len(word), 3)]
    columns = start[:, None] + np.arange(len(codes))
    if really:
        np.put_along_axis(tokens, columns, np.broadcast_to(codes, columns.shape), 1)
    where = np.zeros(tokens.shape, dtype=bool)
    np.put_along_axis(where, columns, True, 1)
    return where


def site_folds(feature_acts: np.ndarray, drawn: ContrastDraw) -> pd.DataFrame:
    """Return how much more strongly features fire at sites than elsewhere.

    Parameters
    ----------
    feature_acts : numpy.ndarray, shape (n_biosamples, n_windows, length, n_features)
        Activations on the sequences drawn.
    drawn : ContrastDraw
        The sequences; the second condition is looked at, which has both words.

    Returns
    -------
    pandas.DataFrame
        One row per feature: log2 fold at ``motif`` and ``decoy`` sites, over all
        positions that are neither; 0.001 is added to both means.
    """
    second = (drawn.design["context"] == LEVELS[1]).to_numpy()
    acts = feature_acts[second]
    sites = {"motif": drawn.sites[second], "decoy": drawn.decoy_sites[second]}
    elsewhere = acts[~(sites["motif"] | sites["decoy"])].mean(axis=0)
    floor = 1e-3
    return pd.DataFrame(
        {
            name: np.log2((acts[where].mean(axis=0) + floor) / (elsewhere + floor))
            for name, where in sites.items()
        }
    ).rename_axis("feature")


class SmallEncoder(nn.Module):
    """A BERT-like model of plain PyTorch, for where no other library is installed.

    Parameters
    ----------
    n_tokens : int
        Longest sequence.
    d_model, n_layers, n_heads : int
        Sizes.
    """

    def __init__(
        self, n_tokens: int, *, d_model: int = 64, n_layers: int = 3, n_heads: int = 4
    ) -> None:
        super().__init__()
        self.token = nn.Embedding(MASK + 1, d_model)
        self.position = nn.Embedding(n_tokens, d_model)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                d_model, n_heads, 2 * d_model, dropout=0.0, batch_first=True
            )
            for _ in range(n_layers)
        )
        self.head = nn.Linear(d_model, MASK + 1)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Map codons (batch, n_tokens) to logits (batch, n_tokens, MASK + 1)."""
        where = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.token(input_ids) + self.position(where)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Encoder(NamedTuple):
    """A masked language model and where its residual stream can be read.

    Attributes
    ----------
    model : torch.nn.Module
        Called as ``model(input_ids=...)``.
    layers : list of str
        Names of its blocks, for `helpers.probe`.
    library : str
        Who wrote it.
    """

    model: nn.Module
    layers: list[str]
    library: str


def make_encoder(n_tokens: int, *, random_state: int = 0) -> Encoder:
    """Make a small BERT from a configuration, without any download.

    Hugging Face's where ``transformers`` is installed, `SmallEncoder` where it is not;
    three blocks of width 64 either way.

    Parameters
    ----------
    n_tokens : int
        Longest sequence.
    random_state : int, default 0
        Seed of the weights; the global generator is left as it was.

    Returns
    -------
    Encoder
    """
    n_layers, d_model = 3, 64
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(random_state)
        if find_spec("transformers") is None:
            model = SmallEncoder(n_tokens, d_model=d_model, n_layers=n_layers)
            names = [f"layers.{i}" for i in range(n_layers)]
            return Encoder(model, names, "PyTorch")
        from transformers import BertConfig, BertForMaskedLM

        config = BertConfig(
            vocab_size=MASK + 1,
            hidden_size=d_model,
            num_hidden_layers=n_layers,
            num_attention_heads=4,
            intermediate_size=2 * d_model,
            max_position_embeddings=n_tokens,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        names = [f"bert.encoder.layer.{i}" for i in range(n_layers)]
        return Encoder(BertForMaskedLM(config), names, "Hugging Face transformers")


def train_masked(
    model: nn.Module,
    tokens: torch.Tensor,
    *,
    n_steps: int,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    masked: float = 0.15,
    random_state: int = 0,
    progress: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train a model to guess hidden codons, in place; leave it in evaluation mode.

    Parameters
    ----------
    model : torch.nn.Module
        Called as ``model(input_ids=...)``; returns logits, or an object that has them
        (Hugging Face).
    tokens : torch.Tensor, shape (n_sequences, length)
        Codons.
    n_steps : int
        Batches.
    batch_size : int, default 64
        Sequences per batch.
    learning_rate : float, default 2e-3
        Peak of a one-cycle schedule for Adam.
    masked : float, default 0.15
        Share of codons hidden.
    random_state : int, default 0
        Seed of batches and masks; weights must be initialized before.
    progress : callable, optional
        Called with step and loss.

    Returns
    -------
    list of float
        Loss of every step, in nats per hidden codon.

    Raises
    ------
    ValueError
        If tokens are not codons, or the share is not between 0 and 1.
    """
    if tokens.ndim != 2 or tokens.min() < 0 or tokens.max() >= MASK:
        raise ValueError(
            f"tokens must be codons 0 to {MASK - 1}, shape (n_sequences, length)"
        )
    if not 0 < masked < 1:
        raise ValueError(f"masked must lie between 0 and 1; got {masked}")
    generator = torch.Generator().manual_seed(random_state)
    device = next(model.parameters()).device
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=n_steps
    )
    model.train()
    losses = []
    for step in range(n_steps):
        chosen = torch.randint(len(tokens), (batch_size,), generator=generator)
        batch = tokens[chosen]
        hidden = torch.rand(batch.shape, generator=generator) < masked
        shown = batch.masked_fill(hidden, MASK).to(device)
        wanted = batch.masked_fill(~hidden, _IGNORED).to(device)
        logits = logits_of(model(input_ids=shown))
        loss = nn.functional.cross_entropy(
            logits.flatten(0, 1), wanted.flatten(), ignore_index=_IGNORED
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if progress is not None:
            progress(step, losses[-1])
    model.eval()
    return losses


def logits_of(output: Any) -> torch.Tensor:
    """Return the logits of a model's output, whichever library made it."""
    return output if isinstance(output, torch.Tensor) else output.logits
