"""Rows with a planted dictionary, for the tests of sparse autoencoders."""

import numpy as np
import torch

from helpers.sae import SAEConfig


def planted_rows(n_rows, *, n_directions=24, d_in=32, offset=0.0, seed=11):
    """Sparse sums of unit directions, and the directions."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(n_directions, d_in))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    fires = rng.random((n_rows, n_directions)) < 2 / n_directions
    coefficients = fires * rng.uniform(1, 2, size=fires.shape)
    rows = coefficients @ directions + 0.01 * rng.normal(size=(n_rows, d_in)) + offset
    return torch.from_numpy(rows).float(), torch.from_numpy(directions).float()


def small_config(**changes):
    settings = {"d_sae": 32, "k": 3, "batch_size": 256, "n_epochs": 4} | changes
    return SAEConfig(**settings)
