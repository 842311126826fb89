"""The small EpiBERT that ships with the package, and the recipe that made it.

It has the published architecture at 1/280 of the size and learned to predict masked
accessibility in a simulated world whose genome is not that of the book's default data:
every chromosome of the default is new to it. ``python -m helpers.small_model`` trains
it again; the weights carry a hash of their recipe, checked when they are loaded.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
from dataclasses import asdict
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from tqdm.std import tqdm

from helpers import simulate
from helpers.checkpoints import CONFIG_FILE
from helpers.epibert import EpiBERT, EpiBERTConfig
from helpers.pretrain import PretrainConfig, load_arrays, pretrain
from helpers.tissues import read_tissues
from helpers.windows import WindowDataset

__all__ = [
    "SMALL_WINDOW_BP",
    "load_small_model",
    "small_config",
    "small_recipe",
    "train_small_model",
]

_log = logging.getLogger(__name__)
SMALL_WINDOW_BP = 8192
_FOLDER = resources.files("helpers") / "resources" / "small_model"
_WORLD = simulate.World(windows_per_chromosome=128, n_replicates=0, seed=1000)
_TRAINING = PretrainConfig(n_steps=4000, bfloat16=True)
_SPLITS = ("select", "tune")  # of the training world; its test chromosomes stay unseen
_N_MOTIFS = 55  # of a simulated world's motif file


def small_config(n_motifs: int) -> EpiBERTConfig:
    """Return the configuration of small models: 64 tokens, 4 blocks of width 64."""
    return EpiBERTConfig(
        input_length=SMALL_WINDOW_BP,
        n_heads=4,
        n_blocks=4,
        sequence_filters=(64,) * 6,
        n_motifs=n_motifs,
        n_random_features=64,
        dropout=0.05,
        head_dropout=0.0,
    )


def small_recipe() -> dict:
    """Return everything the shipped weights depend on, as JSON types."""
    return {
        "world": simulate.recipe(_WORLD),
        "lineages": "all but the unseen pair",
        "splits": list(_SPLITS),
        "model": small_config(_N_MOTIFS).to_dict(),
        "training": asdict(_TRAINING),
    }


def _recipe_hash() -> str:
    text = json.dumps(small_recipe(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def load_small_model() -> EpiBERT:
    """Load the shipped model.

    Returns
    -------
    EpiBERT
        In inference mode.

    Raises
    ------
    FileNotFoundError
        If the package holds no weights.
    ValueError
        If the weights were made by another recipe than this version's.
    """
    with resources.as_file(_FOLDER) as folder:
        model = EpiBERT.from_pretrained(folder)
        card = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    found = card["metadata"].get("recipe_hash")
    if found != _recipe_hash():
        raise ValueError(
            f"the shipped model was made by recipe {found}; this version's recipe is "
            f"{_recipe_hash()}: simulator, model or training changed; train it again "
            "with `make pretrain`"
        )
    return model


def train_small_model(output: str | Path, scratch: str | Path) -> Path:
    """Train the shipped model from its recipe; an interrupted training continues.

    Parameters
    ----------
    output : str or Path
        Folder for weights and configuration.
    scratch : str or Path
        Folder for the training world and checkpoints.

    Returns
    -------
    Path
        ``output``.
    """
    world = Path(scratch) / "world"
    lineages = sorted(set(simulate.biosample_table(_WORLD)["lineage"]) - {"kidney"})
    recipe = json.dumps(simulate.recipe(_WORLD), sort_keys=True)
    stamp = Path(scratch) / "world.recipe.json"
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != recipe:
        simulate.write_world(world, _WORLD, lineages=lineages, progress=_log.info)
        stamp.write_text(recipe, encoding="utf-8")
    tissues = read_tissues(world / "tissues")
    dataset = WindowDataset(tissues, window_bp=SMALL_WINDOW_BP)
    everyone = np.arange(len(dataset.biosamples))
    data = load_arrays(dataset, dataset.windows_of(*_SPLITS), everyone)
    with tqdm(total=_TRAINING.n_steps, desc="pre-training") as bar:

        def progress(record: dict) -> None:
            bar.update(record["step"] - bar.n)
            bar.set_postfix(loss=f"{record['loss']:.3f}")

        model = pretrain(
            data,
            small_config(_N_MOTIFS),
            _TRAINING,
            checkpoint=Path(scratch) / "training.pt",
            progress=progress,
        )
    recipe = {"recipe": small_recipe(), "recipe_hash": _recipe_hash()}
    model.save_pretrained(output, recipe)
    return Path(output)


def main() -> None:
    """Train the shipped model from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="src/helpers/resources/small_model")
    parser.add_argument("--scratch", default="_build/pretraining")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    train_small_model(arguments.output, arguments.scratch)


if __name__ == "__main__":
    main()
