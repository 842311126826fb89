"""Moves from one context to the other, made on ``select`` windows.

A move maps streams (batch, tokens, d) to the change that goes all the way, dose 1:
one direction for every token, or a change that depends on the token. Features of a
dictionary, plain means and affine maps all come in this form.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

from helpers.causal._selection import (
    ContextFeatures,
    Dictionary,
    held_out_features,
    matched_sets,
)
from helpers.causal._side_by_side import side_by_side
from helpers.causal._windows import batches, read_streams, spread_windows
from helpers.interventions import steering_direction
from helpers.stages import Study

__all__ = [
    "DIRECTIONS",
    "LINEAR",
    "POOLED",
    "Moments",
    "Move",
    "Moves",
    "constant",
    "pair_of",
]

POOLED = "pooled"
DIRECTIONS = {"vitro-to-vivo": (0, 1), "vivo-to-vitro": (1, 0)}  # base, target
LINEAR = (
    "SAE",
    "SAE, all significant",
    "SAE, output-filtered",
    "SAE, active tokens",
    "DiffMean",
    "first PC",
    "LDA",
    "affine map",
)
N_SETS, N_OTHER = 30, 20  # random feature sets, other random directions
N_OUTPUT = 16  # tune windows on which features are filtered by their output
_MAX_RATIO = 10.0  # by which an active feature may grow
_RIDGE = 0.01  # of the mean variance, added to every covariance

Move = Callable[[torch.Tensor], torch.Tensor]


def pair_of(study: Study, lineage: str, direction: str) -> list[int]:
    """Return the positions of the base and the target of a direction."""
    return [study.pair(lineage)[i] for i in DIRECTIONS[direction]]


class Moments(NamedTuple):
    """Moments of the streams of a block over ``select`` windows.

    Attributes
    ----------
    mean : torch.Tensor, shape (n_biosamples, d)
        Over windows and tokens.
    covariance : torch.Tensor, shape (n_biosamples, d, d)
        Within a biosample.
    windows : torch.Tensor, shape (n_biosamples, n_windows, d)
        Mean of every window.
    paired : torch.Tensor, shape (n_lineages, d, d)
        Covariance of in vivo minus in vitro, token by token.
    """

    mean: torch.Tensor
    covariance: torch.Tensor
    windows: torch.Tensor
    paired: torch.Tensor


class Moves:
    """Moves of every method at every block.

    Parameters
    ----------
    study : Study
        The run.
    dictionaries : dict of int to Dictionary
        Per block; several trainings of one block need one object each.
    """

    def __init__(self, study: Study, dictionaries: dict[int, Dictionary]) -> None:
        self.study, self.dictionaries = study, dictionaries
        self._windows = study.dataset.windows_of("select")
        self._moments: dict[int, Moments] = {}
        self._acts: dict[int, torch.Tensor] = {}
        self._scored: dict[tuple[int, str], np.ndarray] = {}
        self._sets: dict[int, np.ndarray] = {}

    def prepared(self) -> Moves:
        """Measure what conditions share before several processes ask for it."""

        def prepare(layer: int) -> tuple[Moments, np.ndarray, list[np.ndarray]]:
            scores = [self.output_scores(layer, direction) for direction in DIRECTIONS]
            return self.moments(layer), self._random_sets(layer), scores

        layers = list(self.dictionaries)
        found = side_by_side(prepare, layers, self.study, desc="moves")
        for layer, (moments, sets, scores) in zip(layers, found, strict=True):
            self._moments[layer], self._sets[layer] = moments, sets
            for direction, of_direction in zip(DIRECTIONS, scores, strict=True):
                self._scored[layer, direction] = of_direction
        return self

    @cached_property
    def held_out(self) -> dict[str, dict[int, ContextFeatures]]:
        """Features chosen without each lineage in turn."""
        study = self.study
        return {
            x: held_out_features(study, x, self.dictionaries) for x in study.lineages
        }

    def of(self, method: str, layer: int, lineage: str, direction: str) -> Move:
        """Return the move of one of `LINEAR`."""
        pair = pair_of(self.study, lineage, direction)
        features = self.dictionaries[layer].features
        if method == "SAE, active tokens":
            return self._scaled(layer, pair, features.selected)
        if method == "SAE, output-filtered":
            kept = self.output_filtered(layer, direction)
            return constant(self.of_features(layer, pair, kept))
        if method == "affine map":
            return self._affine(layer, pair)
        return constant(self._direction(method, layer, lineage, pair, features))

    def of_others(self, method: str, layer: int, lineage: str, direction: str) -> Move:
        """Return the mean direction of the other lineages, by their features."""
        features = self.held_out[lineage][layer]
        axes = [
            self._direction(
                method, layer, x, pair_of(self.study, x, direction), features
            )
            for x in self.study.lineages
            if x != lineage
        ]
        return constant(torch.stack(axes).mean(dim=0))

    def _direction(
        self,
        method: str,
        layer: int,
        lineage: str,
        pair: list[int],
        features: ContextFeatures,
    ) -> torch.Tensor:
        """Return a direction for all tokens, shape (d,)."""
        if method == "SAE":
            return self.of_features(layer, pair, features.selected)
        if method == "SAE, all significant":
            return self.of_features(layer, pair, features.significant)
        moments = self.moments(layer)
        base, target = moments.mean[pair]
        difference = target - base
        if method == "DiffMean":
            return difference
        if method == "first PC":
            of_lineage = moments.paired[self.study.lineages.index(lineage)]
            axis = torch.linalg.eigh(of_lineage)[1][:, -1]
            return axis * (axis @ difference)
        # LDA: the direction that separates best, as long as the mean difference
        within = _ridge(moments.covariance[pair].mean(dim=0))
        axis = torch.linalg.solve(within, difference)
        return F.normalize(axis, dim=0) * difference.norm()

    def of_features(
        self, layer: int, pair: list[int], features: np.ndarray
    ) -> torch.Tensor:
        """Return the mean difference of some features, written to the stream."""
        base, target = self._mean_acts(layer)[pair]
        return steering_direction(base, target, self.dictionaries[layer].sae, features)

    def _mean_acts(self, layer: int) -> torch.Tensor:
        """Return mean feature activations, (n_biosamples, d_sae)."""
        if layer not in self._acts:
            acts = self.dictionaries[layer].summary.mean_acts
            mean = acts[:, self._windows].mean(axis=1)
            self._acts[layer] = torch.from_numpy(mean).to(self.study.device)
        return self._acts[layer]

    def _random_sets(self, layer: int) -> np.ndarray:
        """Return feature sets like the selected one, (N_SETS, n_selected)."""
        if layer not in self._sets:
            features = self.dictionaries[layer].features
            match = matched_sets(features, "any other", N_SETS, self.study.seed)
            self._sets[layer] = match.sets
        return self._sets[layer]

    def _scaled(self, layer: int, pair: list[int], features: np.ndarray) -> Move:
        """Multiply active features by the ratio of their means."""
        base, target = self._mean_acts(layer)[pair][:, features]
        ratio = torch.where(base > 0, target / base, 1.0).clamp(max=_MAX_RATIO)
        sae = self.dictionaries[layer].sae
        written = (ratio - 1)[:, None] * sae.decoder_directions[features]

        def move(x: torch.Tensor) -> torch.Tensor:
            acts = sae.encode(x.flatten(0, -2))[:, features]
            return (acts @ written).reshape(x.shape)

        return move

    def _affine(self, layer: int, pair: list[int]) -> Move:
        """Map mean and covariance of the base to the target's, by the shortest way.

        The optimal transport between the two normal distributions.
        """
        moments = self.moments(layer)
        (base, target), (c0, c1) = moments.mean[pair], moments.covariance[pair].double()
        root, inverse = _root(_ridge(c0), 0.5), _root(_ridge(c0), -0.5)
        matrix = inverse @ _root(root @ _ridge(c1) @ root, 0.5) @ inverse
        matrix = matrix.to(base)
        return lambda x: (x - base) @ matrix + target - x

    def random(
        self, layer: int, lineage: str, direction: str
    ) -> dict[str, torch.Tensor]:
        """Return the directions of the random methods, (n_draws, d) each.

        Random features write what their own means differ by; the tuned ones and the
        isotropic are as long as the SAE's direction, shuffled labels as DiffMean.
        """
        study, seed = self.study, self.study.seed
        features = self.dictionaries[layer].features
        pair = pair_of(study, lineage, direction)
        sets = self._random_sets(layer)
        of_sets = torch.stack([self.of_features(layer, pair, s) for s in sets])
        rng = np.random.default_rng(seed)
        normal = rng.normal(size=(N_OTHER, of_sets.shape[1]))
        isotropic = torch.from_numpy(normal).to(of_sets)
        length = self.of_features(layer, pair, features.selected).norm()
        moments = self.moments(layer)
        base, target = moments.windows[pair]
        flips = rng.choice([-1.0, 1.0], size=(N_OTHER, len(base)))
        shuffled = torch.from_numpy(flips).to(base) @ (target - base)
        whole = (moments.mean[pair[1]] - moments.mean[pair[0]]).norm()
        return {
            "random features": of_sets,
            "random features, tuned": F.normalize(of_sets[:N_OTHER], dim=1) * length,
            "random direction": F.normalize(isotropic, dim=1) * length,
            "DiffMean, labels shuffled": F.normalize(shuffled, dim=1) * whole,
        }

    def output_scores(self, layer: int, direction: str) -> np.ndarray:
        """Return how far the output moves along the gap per feature, to first order.

        Every feature is moved by its own mean difference; lineages are added up over
        ``tune`` windows. Many features that differ between inputs do not change the
        output (Arad et al. 2025, arXiv 2505.20063).

        Returns
        -------
        numpy.ndarray, shape (d_sae,)
        """
        study, model = self.study, self.study.model
        windows = spread_windows(study, "tune", N_OUTPUT)
        directions = self.dictionaries[layer].sae.decoder_directions
        total = torch.zeros(len(directions), device=study.device)
        for lineage in study.lineages:
            pair = pair_of(study, lineage, direction)
            base, target = self._mean_acts(layer)[pair]
            streams = [read_streams(study, layer, b, windows) for b in pair]
            for part in batches(study, len(windows)):
                x0 = streams[0][part].requires_grad_()
                y0, y1 = (
                    model.head(model.run_blocks(x, start=layer + 1)).log1p()
                    for x in (x0, streams[1][part])
                )
                along = (y0 * (y1 - y0).detach()).sum()
                (slope,) = torch.autograd.grad(along, x0)
                written = directions @ slope.sum(dim=(0, 1))
                total += (target - base) * written
        return total.cpu().numpy()

    def output_filtered(self, layer: int, direction: str) -> np.ndarray:
        """Return the significant features that move the output the right way."""
        significant = self.dictionaries[layer].features.significant
        if (layer, direction) not in self._scored:
            self._scored[layer, direction] = self.output_scores(layer, direction)
        score = self._scored[layer, direction][significant]
        kept = significant[score > 0]
        return kept if len(kept) else significant[[score.argmax()]]

    def moments(self, layer: int) -> Moments:
        """Return the moments of a block's streams."""
        if layer not in self._moments:
            self._moments[layer] = self._measure(layer)
        return self._moments[layer]

    def _measure(self, layer: int) -> Moments:
        study = self.study
        means, covariances, windows, paired = [], [], [], []
        for lineage in study.lineages:
            x0, x1 = (
                read_streams(study, layer, b, self._windows)
                for b in study.pair(lineage)
            )
            difference = (x1 - x0).flatten(0, 1)
            paired.append(torch.cov(difference.T))
            for x in (x0, x1):
                flat = x.flatten(0, 1)
                means.append(flat.mean(dim=0))
                covariances.append(torch.cov(flat.T))
                windows.append(x.mean(dim=1))
        # Lineage by lineage, in vitro first, back to the order of the biosamples
        order = np.argsort([b for x in study.lineages for b in study.pair(x)])
        return Moments(
            *(torch.stack(of)[order] for of in (means, covariances, windows)),
            torch.stack(paired),
        )

    def coherence(self) -> pd.DataFrame:
        """Say how alike the differences of windows are, and what the SAE holds of them.

        Steering fails where the differences do not agree (Braun et al. 2025, arXiv
        2505.22637).

        Returns
        -------
        pandas.DataFrame
            One row per ``layer`` and ``lineage``: ``cosine``, the mean over pairs of
            windows between their mean differences; ``cos2_selected`` and
            ``cos2_significant``, the squared cosine of the SAE's directions with
            DiffMean.
        """
        rows = []
        for layer, lineage in [
            (b, x) for b in self.dictionaries for x in self.study.lineages
        ]:
            pair = pair_of(self.study, lineage, "vitro-to-vivo")
            base, target = self.moments(layer).windows[pair]
            unit = F.normalize(target - base, dim=1)
            n = len(unit)
            features = self.dictionaries[layer].features
            whole = (target - base).mean(dim=0)
            row = {"layer": layer, "lineage": lineage}
            row["cosine"] = float((unit.sum(dim=0).square().sum() - n) / (n * (n - 1)))
            for name in ("selected", "significant"):
                axis = self.of_features(layer, pair, getattr(features, name))
                cosine = F.cosine_similarity(axis, whole, dim=0)
                row[f"cos2_{name}"] = float(cosine**2)
            rows.append(row)
        return pd.DataFrame(rows)


def constant(vector: torch.Tensor) -> Move:
    """Return the move by one vector for every token."""
    return lambda x: vector.expand_as(x)


def _ridge(covariance: torch.Tensor) -> torch.Tensor:
    """Add a share of the mean variance to the diagonal."""
    extra = _RIDGE * covariance.diagonal().mean()
    return covariance + extra * torch.eye(len(covariance)).to(covariance)


def _root(matrix: torch.Tensor, power: float) -> torch.Tensor:
    """Raise a symmetric positive matrix to a power."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=1e-12) ** power) @ vectors.T
