"""Random feature sets that fire and write like a chosen set."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from scipy import stats

__all__ = ["MatchedSets", "matched_random_sets", "written_norm"]

_KS_LIMIT = 0.1  # a matched control whose p is below this is not matched


class _Dictionary(Protocol):
    decoder_directions: torch.Tensor  # (d_sae, d)


class MatchedSets(NamedTuple):
    """Random feature sets that look like the selected one.

    Attributes
    ----------
    sets : numpy.ndarray, shape (n_sets, n_selected)
        Feature indices; column j holds the partners of the j-th selected feature.
    widened : float
        Largest distance between a feature and a partner, in deciles of the alive
        features (of density or of written norm, whichever is larger).
    density_p, norm_p : float
        Kolmogorov-Smirnov p of selected against random features; small means that the
        match failed.
    """

    sets: np.ndarray
    widened: float
    density_p: float
    norm_p: float


@torch.no_grad()
def written_norm(feature_acts: torch.Tensor, sae: _Dictionary) -> torch.Tensor:
    """Return the mean length each feature writes, E|z_j| ||W_j||, from (..., d_sae)."""
    size = feature_acts.abs().flatten(0, -2).mean(dim=0)
    return size * sae.decoder_directions.norm(dim=1)


def matched_random_sets(
    selected: Sequence[int] | np.ndarray,
    candidates: Sequence[int] | np.ndarray,
    density: np.ndarray,
    written_norm: np.ndarray,
    *,
    n_sets: int = 199,
    n_neighbors: int = 10,
    max_widened: float | None = None,
    random_state: int | np.random.Generator = 0,
) -> MatchedSets:
    """Draw random feature sets matched on firing density and on written norm.

    Each selected feature gets a partner from its nearest free candidates, without
    replacement within a set. Nearness is the larger difference of the two percentiles
    among alive features: bins of fixed width would fail in the top decile, where
    context features gather.

    Parameters
    ----------
    selected : sequence of int
        The features whose effect is asked about; never drawn.
    candidates : sequence of int
        Alive, non-significant features of the same layer.
    density, written_norm : numpy.ndarray, shape (d_sae,)
        Share of tokens in which each feature fires, and the length it writes. Features
        of density 0 are dead.
    n_sets : int, default 199
        Number of sets; p-values cannot go below 1 / (n_sets + 1).
    n_neighbors : int, default 10
        Candidates to choose from for each partner: more make the sets less alike, fewer
        match better.
    max_widened : float, optional
        Largest distance allowed between a feature and a partner, in deciles; by default
        any, with a warning above one.
    random_state : int or numpy.random.Generator, default 0
        Source of the draws.

    Returns
    -------
    MatchedSets
        A warning is issued if a partner is more than one decile away or a property
        differs (Kolmogorov-Smirnov p < 0.1).

    Raises
    ------
    ValueError
        If a feature is no integer, does not exist or is dead, `selected` is empty, the
        candidates are fewer than the selected, or a partner lies further away than
        `max_widened`.
    """
    rng = np.random.default_rng(random_state)
    density, written_norm = np.asarray(density), np.asarray(written_norm)
    selected = _indices("selected", selected)
    pool = np.setdiff1d(_indices("candidates", candidates), selected)
    alive = np.flatnonzero(density > 0)
    if len(selected) > len(alive):
        raise ValueError(
            f"selected must not be larger than the alive features; got {len(selected)} "
            f"selected and {len(alive)} alive"
        )
    if len(selected) == 0 or len(pool) < len(selected):
        raise ValueError(
            "no matched random set exists, however far the match is widened: it needs "
            "a selection and as many candidates beside it; got "
            f"{len(selected)} selected and {len(pool)} candidates"
        )
    unknown = np.setdiff1d(np.concatenate([selected, pool]), alive)
    if len(unknown) or len(np.unique(selected)) < len(selected):
        raise ValueError(
            "selected and candidates must be distinct alive features, 0 … "
            f"{len(density) - 1}; got dead or foreign {unknown[:5].tolist()} or repeats"
        )
    percentile = np.zeros((len(density), 2))
    for column, x in enumerate((density, written_norm)):
        percentile[alive, column] = stats.rankdata(x[alive]) / len(alive)
    # The larger difference of the two percentiles, (n_selected, n_pool)
    distance = np.abs(percentile[selected][:, None] - percentile[pool]).max(axis=2)
    # Others can take at most n_selected - 1 of the nearest before a feature's turn.
    reach = min(n_neighbors + len(selected) - 1, len(pool))
    nearest = np.argsort(distance, axis=1, kind="stable")[:, :reach]

    partners = np.empty((n_sets, len(selected)), dtype=int)
    for row in partners:
        free = np.ones(len(pool), dtype=bool)
        for j in rng.permutation(len(selected)):
            near = nearest[j][free[nearest[j]]][:n_neighbors]
            row[j] = near[rng.integers(len(near))]
            free[row[j]] = False
    sets = pool[partners]
    widened = 10 * float(distance[np.arange(len(selected)), partners].max())
    if max_widened is not None and widened > max_widened:
        raise ValueError(
            f"no matched random set exists within {max_widened:g} deciles of density "
            f"and written norm: matching had to widen to {widened:.1f}"
        )
    density_p, norm_p = (
        float(stats.ks_2samp(x[selected], x[sets].ravel()).pvalue)
        for x in (density, written_norm)
    )
    if widened > 1 or min(density_p, norm_p) < _KS_LIMIT:
        warnings.warn(
            f"random sets are loosely matched: up to {widened:.1f} deciles away, "
            f"Kolmogorov-Smirnov p = {density_p:.2g} (density), {norm_p:.2g} (norm)",
            stacklevel=2,
        )
    return MatchedSets(sets, widened, density_p, norm_p)


def _indices(name: str, features: Sequence[int] | np.ndarray) -> np.ndarray:
    found = np.asarray(features)
    if found.size and found.dtype.kind not in "iu":
        raise ValueError(f"{name} must be integer indices; got {found.dtype}")
    return found.astype(int)
