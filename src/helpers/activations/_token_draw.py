"""Which tokens of a store to use: classes of tokens, sampled at rates of their own.

Nine tokens of ten lie outside every peak and teach a dictionary little that is new.
Sampling them less, with the weight of each class kept, sees more places at equal cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from helpers.windows import WindowDataset

__all__ = ["TokenClass", "TokenDraw", "draw_tokens", "peak_classes"]


class TokenClass(IntEnum):
    """Where a token lies in the peaks of the two biosamples of a lineage."""

    BACKGROUND = 0  # in a peak of neither
    PEAK = 1  # in a peak of both
    DIFFERENTIAL = 2  # in a peak of one of them

    def __str__(self) -> str:
        """Return the name in lower case."""
        return self.name.lower()


class TokenDraw(NamedTuple):
    """Tokens drawn from the windows of a store.

    Attributes
    ----------
    kept : numpy.ndarray of bool, shape (n_biosamples, n_windows, n_tokens)
        Which tokens; the same number for every biosample.
    strata : pandas.DataFrame
        One line per biosample and class: biosample, token_class (as text), n_available,
        n_drawn and weight, how many tokens each drawn one stands for.
    """

    kept: np.ndarray
    strata: pd.DataFrame


def peak_classes(dataset: WindowDataset) -> np.ndarray:
    """Class every token by the peaks of the pair of its lineage.

    Both biosamples of a pair, and their replicates, have the same classes, so that
    sampling by class keeps the contexts balanced. Only peaks decide; how much the
    signal differs does not.

    Returns
    -------
    numpy.ndarray of uint8, shape (n_biosamples, n_windows, n_tokens)
        Values of `TokenClass`.
    """
    table = dataset.biosamples
    found = np.empty((len(table), len(dataset.windows), dataset.n_tokens), np.uint8)
    for _, lineage in table.groupby("lineage"):
        pair = lineage.index[lineage["replicate"] == 0]
        inside = sum(dataset.in_peak(b).astype(np.uint8) for b in pair)
        # None, one or both of the pair have a peak there.
        by_count = [TokenClass.BACKGROUND, TokenClass.DIFFERENTIAL, TokenClass.PEAK]
        found[lineage.index] = np.array(by_count, np.uint8)[inside]
    return found


def draw_tokens(
    classes: np.ndarray,
    rates: Mapping[int | str, float],
    names: Sequence[str],
    *,
    random_state: int = 0,
) -> TokenDraw:
    """Draw tokens of each class at its rate, equally many from every biosample.

    Each token is drawn on its own. Biosamples that end up with more tokens than another
    lose a random excess; the weights say what came of the rates.

    Parameters
    ----------
    classes : numpy.ndarray, shape (n_windows, n_tokens) or with n_biosamples in front
        Label of each token, integers or text.
    rates : mapping of label to float
        Share of each class to draw, above 0 and at most 1. Every label has one.
    names : sequence of str
        Biosamples.
    random_state : int
        Seed of the draw.

    Raises
    ------
    ValueError
        If a rate is missing or out of range, or a biosample keeps no token.
    """
    for label, rate in rates.items():
        if not 0 < rate <= 1:
            raise ValueError(
                f"rates must be above 0 and at most 1; got {rate!r} for {label!s}"
            )
    labels = np.broadcast_to(classes, (len(names), *classes.shape[-2:]))
    kept = np.zeros(labels.shape, dtype=bool)
    for b in range(len(names)):
        rng = np.random.default_rng((random_state, b))
        for window, of_tokens in enumerate(labels[b]):  # a window at a time: memory
            rate = _rate_of(of_tokens, rates)
            kept[b, window] = rng.random(rate.shape, np.float32) < rate
    n_each = int(kept.sum((1, 2)).min())
    if n_each == 0:
        empty = names[int(kept.sum((1, 2)).argmin())]
        raise ValueError(f"rates leave no token of biosample {empty!r}")
    for b in range(len(names)):
        rng = np.random.default_rng((random_state, len(names) + b))
        drawn = np.flatnonzero(kept[b])
        excess = rng.choice(len(drawn), len(drawn) - n_each, replace=False)
        kept[b].reshape(-1)[drawn[excess]] = False
    return TokenDraw(kept, _strata(labels, kept, rates, names))


def _rate_of(labels: np.ndarray, rates: Mapping[int | str, float]) -> np.ndarray:
    """Return the rate of each token, NaN-free."""
    found = np.zeros(labels.shape, np.float32)
    for label, rate in rates.items():
        found[labels == label] = rate
    if not found.all():
        label = labels[found == 0][0]
        raise ValueError(
            f"rates must have every class of token; {label.item()!r} is missing from "
            f"{[str(known) for known in rates]}"
        )
    return found


def _strata(
    labels: np.ndarray,
    kept: np.ndarray,
    rates: Mapping[int | str, float],
    names: Sequence[str],
) -> pd.DataFrame:
    """Count the tokens of each biosample and class."""
    lines = []
    for b, name in enumerate(names):
        for label in rates:
            of_class = labels[b] == label
            n_available = int(of_class.sum())
            n_drawn = int((of_class & kept[b]).sum())
            weight = n_available / n_drawn if n_drawn else np.nan
            lines.append((name, str(label), n_available, n_drawn, weight))
    columns = ["biosample", "token_class", "n_available", "n_drawn", "weight"]
    return pd.DataFrame(lines, columns=columns)
