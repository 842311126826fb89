"""Small worlds of feature activations with known truth, drawn in milliseconds.

What a sparse feature looks like to a statistician: rectified, alike in neighboring
tokens, following the sequence of its window, sharing noise within a genomic block and
within a biosample. Many draws of them show what the error rates of a test are.
`helpers.calibration` is the public face of this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from helpers.pairing import CONTEXTS

__all__ = ["SUMMARY_KINDS", "SummaryDraw", "SummaryWorld", "draw_summaries"]

SUMMARY_KINDS = (
    "no-effect",
    "depth-only",
    "motif-vector-only",
    "composition-only",
    "planted",
)
_LINEAGES = ("blood", "liver", "lymph", "kidney", "gut", "skin")
_TOKEN_CORRELATION = 0.8  # of neighboring tokens
_SPARSITY = 1.0  # SD by which the threshold exceeds the mean of an activation
_DEPTH_RATIO, _LEVEL_SD, _DEPTH_ANSWER = 1.6, 0.7, 0.3
_MOTIF_SD = 0.3
_FRACTION = 0.4  # of a tissue that is another lineage


@dataclass(frozen=True)
class SummaryWorld:
    """Size and noise of a world; amplitudes are SDs before the threshold.

    Attributes
    ----------
    kind : str
        ``no-effect``; ``depth-only`` (tissue tracks are 1.6 times as high, features
        answer to the log); ``motif-vector-only`` (every biosample has an offset of its
        own in every feature, alike in all windows); ``composition-only`` (tissues are
        40 % another lineage); ``planted`` (context effects of all classes).
    n_lineages, n_replicates : int
        Pairs, and further biosamples per lineage and context.
    n_features, n_blocks, windows_per_block, n_tokens : int
        Sizes; tokens of a window are an autoregressive series.
    block_sd, biosample_sd : float
        Noise shared by the windows of a block, and by those of a biosample.
    effect : float
        Shift of planted features.
    """

    kind: str = "no-effect"
    n_lineages: int = 3
    n_replicates: int = 2
    n_features: int = 60
    n_blocks: int = 40
    windows_per_block: int = 10
    n_tokens: int = 32
    block_sd: float = 0.3
    biosample_sd: float = 0.0
    effect: float = 1.0

    def __post_init__(self) -> None:
        """Check the kind and the sizes."""
        if self.kind not in SUMMARY_KINDS:
            raise ValueError(f"kind must be one of {SUMMARY_KINDS}; got {self.kind!r}")
        if not 1 <= self.n_lineages <= len(_LINEAGES):
            raise ValueError(
                f"n_lineages must lie in 1 … {len(_LINEAGES)}; got {self.n_lineages}"
            )


class SummaryDraw(NamedTuple):
    """One draw of a world.

    Attributes
    ----------
    features : numpy.ndarray, float32, shape (n_biosamples, n_windows, n_features)
        Window means of the thresholded activation.
    squares : numpy.ndarray, shape (n_biosamples, n_features)
        Sum of squared activations over all tokens.
    samples : pandas.DataFrame
        Columns biosample, lineage, context, replicate; the pairs come first.
    blocks : numpy.ndarray of int, shape (n_windows,)
        Genomic block of each window.
    log_signal : numpy.ndarray, shape (n_biosamples, n_windows)
        Log height of the track.
    truth : numpy.ndarray of str, shape (n_features,)
        Class that was planted; ``none`` for features without a context effect.
    """

    features: np.ndarray
    squares: np.ndarray
    samples: pd.DataFrame
    blocks: np.ndarray
    log_signal: np.ndarray
    truth: np.ndarray


def draw_summaries(
    world: SummaryWorld, random_state: int | np.random.Generator
) -> SummaryDraw:
    """Draw the feature activations of a world.

    Parameters
    ----------
    world : SummaryWorld
        The world.
    random_state : int or numpy.random.Generator
        Source of everything.

    Returns
    -------
    SummaryDraw
    """
    rng = np.random.default_rng(random_state)
    samples = _samples(world)
    blocks = np.repeat(np.arange(world.n_blocks), world.windows_per_block)
    n_windows, n_features = len(blocks), world.n_features
    shift, truth = _shifts(world, samples, rng)
    in_vivo = (samples["context"] == CONTEXTS[1]).to_numpy()
    log_signal = np.zeros((len(samples), n_windows))
    answer = np.zeros(n_features)
    if world.kind == "depth-only":
        log_signal = rng.normal(0, _LEVEL_SD, log_signal.shape)
        log_signal[in_vivo] += np.log(_DEPTH_RATIO)
        answer = _DEPTH_ANSWER * rng.random(n_features)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    sequence = normal(n_windows, n_features) - np.float32(_SPARSITY)
    features = np.empty((len(samples), n_windows, n_features), np.float32)
    squares = np.empty((len(samples), n_features))
    for s in range(len(samples)):
        level = sequence + shift[s].astype(np.float32)
        level += (log_signal[s][:, None] * answer).astype(np.float32)
        level += np.float32(world.block_sd) * normal(world.n_blocks, n_features)[blocks]
        total, square = np.zeros_like(level), np.zeros(n_features)
        noise = normal(n_windows, n_features)
        fresh = np.float32(np.sqrt(1 - _TOKEN_CORRELATION**2))
        for token in range(world.n_tokens):
            if token:
                noise *= np.float32(_TOKEN_CORRELATION)
                noise += fresh * normal(n_windows, n_features)
            acts = np.maximum(level + noise, 0)
            total += acts
            square += np.einsum("wj,wj->j", acts, acts, dtype=np.float64)
        features[s], squares[s] = total / world.n_tokens, square
    return SummaryDraw(features, squares, samples, blocks, log_signal, truth)


def _samples(world: SummaryWorld) -> pd.DataFrame:
    rows = [
        (f"{lineage}_{context}" + (f"_r{r}" if r else ""), lineage, context, r)
        for r in range(world.n_replicates + 1)
        for lineage in _LINEAGES[: world.n_lineages]
        for context in CONTEXTS
    ]
    return pd.DataFrame(rows, columns=["biosample", "lineage", "context", "replicate"])


def _shifts(
    world: SummaryWorld, samples: pd.DataFrame, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return what is added to each feature in each biosample, and the classes."""
    shape = (len(samples), world.n_features)
    shift = world.biosample_sd * rng.normal(size=shape)
    truth = np.full(world.n_features, "none", dtype=object)
    in_vivo = (samples["context"] == CONTEXTS[1]).to_numpy()
    number = samples["lineage"].map(_LINEAGES.index).to_numpy()
    if world.kind == "motif-vector-only":
        shift += _MOTIF_SD * rng.normal(size=shape)
    elif world.kind == "composition-only":
        # Each feature is at work in one lineage; a tissue holds some of the next one.
        own = np.eye(world.n_lineages)[:, np.arange(shape[1]) % world.n_lineages]
        other = own[(number + 1) % world.n_lineages]
        fraction = np.where(in_vivo, _FRACTION, 0.0)[:, None]
        shift += world.effect * ((1 - fraction) * own[number] + fraction * other)
    elif world.kind == "planted":
        tenth = world.n_features // 10
        sign = np.where(in_vivo, 1.0, 0.0)[:, None]
        first = (number == 0)[:, None]
        classes = {
            "shared-vivo": sign,
            "shared-vitro": 1 - sign,
            "lineage-only": sign * first,
            "discordant": np.where(first, 1 - sign, sign),
        }
        for position, (name, pattern) in enumerate(classes.items()):
            chosen = slice(position * tenth, (position + 1) * tenth)
            shift[:, chosen] += world.effect * pattern
            truth[chosen] = name
    return shift, truth
