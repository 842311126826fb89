"""The dictionaries of a run and their cards: trained, taken over, or read."""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
from tqdm.std import tqdm

from helpers.activations import ActivationStore, StoredRows, TokenRows
from helpers.runs import code_digest
from helpers.sae import BatchTopKSAE, SAEConfig, Trained, evaluate, train
from helpers.sae._peers import Peers
from helpers.stages._study import Study

__all__ = ["held_out_rows", "read_cards", "sae_config", "train_saes"]

_HELD_OUT_TOKENS = 2**18  # enough for the threshold and the card


def sae_config(d_model: int) -> SAEConfig:
    """Return the settings of a dictionary for streams of a width.

    Eight features per dimension, and as many at a time as twice the root of the width:
    512 and 16 for the small model, 8,192 and 64 for the published one.
    """
    k = round(2 * d_model**0.5)
    return SAEConfig(d_sae=8 * d_model, k=k, batch_size=512, n_epochs=10)


def train_saes(
    study: Study, config: SAEConfig | None = None
) -> dict[int, BatchTopKSAE]:
    """Return one dictionary per block, trained on ``select`` windows.

    Every biosample gives the same number of tokens, streamed from disk where they are
    more than memory; the threshold is set on ``tune`` windows. The training history and
    the card on ``test`` windows lie beside the weights.

    Where torch.distributed is initialized (`helpers.train_saes`), the first process
    makes the artefacts and the others take part in the training.
    """
    store, peers = study.store, Peers.present()
    config = config or sae_config(study.model.config.d_model)
    config = replace(config, random_state=study.seed)
    recipe = {
        "sae": asdict(config),
        "model": study.model_hash,
        "activations": study.streams_run.key("activations.zarr"),
        "code": code_digest("sae", "activations._rows"),
    }
    saes = {}
    for layer in study.blocks:
        if study.saes:
            recipe |= {"sae": study.saes.key(f"sae/block{layer}")}

        def build(partial: Path, layer: int = layer) -> None:
            if study.saes:
                _take_over_sae(study, layer, partial)
            else:
                peers.first(True)  # calls those who wait below
                _train_sae(study, store, layer, config, partial)

        name = f"sae/block{layer}"
        if peers.rank == 0:
            study.run.artefact(name, recipe | {"layer": layer}, build, resumable=True)
            peers.first(False)
        elif peers.first(None):
            _fit_sae(study, store, layer, config, study.run.path(name))
            peers.first(None)
        saes[layer] = BatchTopKSAE.load(study.run.path(name), device=study.device)
    return saes


def _train_sae(
    study: Study, store: ActivationStore, layer: int, config: SAEConfig, folder: Path
) -> None:
    folder.mkdir(exist_ok=True)
    checkpoint = folder / "training.pt"
    sae, history = _fit_sae(study, store, layer, config, checkpoint)
    sae.save(folder)
    checkpoint.unlink()
    history.to_parquet(folder / "history.parquet")
    _write_card(study, layer, sae, folder)


def _fit_sae(
    study: Study,
    store: ActivationStore,
    layer: int,
    config: SAEConfig,
    checkpoint: Path,
) -> Trained:
    """Train a dictionary; the first of several processes keeps the checkpoint."""
    tune = held_out_rows(study, layer, "tune").rows
    rows = StoredRows(store, [layer], splits=["select"])
    with rows, tqdm(desc=f"dictionary of block {layer}") as bar:

        def progress(record: dict[str, float]) -> None:
            bar.total = record["n_steps"]
            bar.update()

        return train(
            rows,
            config,
            heldout=tune,
            device=study.device,
            progress=progress,
            checkpoint=checkpoint,
        )


def held_out_rows(study: Study, layer: int, split: str) -> TokenRows:
    """Return the rows of a split that thresholds are set on and cards written of."""
    return study.store.rows(
        layer, splits=[split], max_tokens=_HELD_OUT_TOKENS, random_state=study.seed
    )


def _take_over_sae(study: Study, layer: int, folder: Path) -> None:
    """Copy a dictionary of another run and write its card on the data of this one."""
    source = study.saes.path(f"sae/block{layer}")
    sae = BatchTopKSAE.load(source, device=study.device)
    folder.mkdir(exist_ok=True)
    sae.save(folder)
    shutil.copy(source / "history.parquet", folder)
    _write_card(study, layer, sae, folder)


def _write_card(study: Study, layer: int, sae: BatchTopKSAE, folder: Path) -> None:
    test = held_out_rows(study, layer, "test")
    names = study.dataset.biosamples["name"].to_numpy()
    card = evaluate(
        sae,
        test.rows.to(study.device),
        groups=names[test.index["biosample_idx"]],
    )
    card.table.rename_axis("rows").to_parquet(folder / "card.parquet")
    per_feature = {"density": card.density, "decoder_cosine": card.decoder_cosine}
    pd.DataFrame(per_feature).to_parquet(folder / "features.parquet")


def read_cards(study: Study, name: str = "card") -> pd.DataFrame:
    """Return the cards (or ``history``, ``features``) of all blocks, one table."""
    return pd.concat(
        {
            layer: pd.read_parquet(study.run.path(f"sae/block{layer}/{name}.parquet"))
            for layer in study.blocks
        },
        names=["layer"],
    )
