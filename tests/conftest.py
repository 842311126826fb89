"""Fixtures that several test modules share."""

import random
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from helpers import simulate, stages
from helpers.epibert import EpiBERT, EpiBERTConfig
from helpers.tissues import read_tissues
from helpers.windows import WindowDataset


@pytest.fixture(autouse=True)
def seeded():
    """Let a test that draws from a global generator draw the same each time."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)


class WrittenWorld(NamedTuple):
    world: simulate.World
    folder: Path


@pytest.fixture(scope="session")
def small_world(tmp_path_factory):
    """Two pairs of the planted world with a replicate each; read, never written."""
    world = simulate.World(
        n_chromosomes=20,
        windows_per_chromosome=4,
        window_bp=4096,
        n_replicates=1,
        seed=7,
    )
    folder = tmp_path_factory.mktemp("simulated") / "world"
    simulate.write_world(folder, world, lineages=["blood", "liver"])
    return WrittenWorld(world, folder)


@pytest.fixture(scope="session")
def small_dataset(small_world):
    tissues = read_tissues(small_world.folder / "tissues")
    return WindowDataset(tissues, window_bp=small_world.world.window_bp)


@pytest.fixture(scope="session")
def small_model_folder(small_dataset, tmp_path_factory):
    """An untrained EpiBERT that fits the small world."""
    config = EpiBERTConfig(
        input_length=small_dataset.window_bp,
        n_heads=2,
        n_blocks=2,
        sequence_filters=(16,) * 6,
        n_motifs=small_dataset.motif_activity.shape[1],
        n_random_features=32,
    )
    folder = tmp_path_factory.mktemp("model")
    EpiBERT(config, random_state=3).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small_study(small_world, small_model_folder, tmp_path_factory):
    """A study of the small world whose stages run in seconds."""
    study = stages.open_study(
        tmp_path_factory.mktemp("study") / "run",
        data=str(small_world.folder / "tissues"),
        model=str(small_model_folder),
    )
    return replace(study, truth=small_world.folder / "truth")
