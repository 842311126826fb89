"""A run with its data and model, and the residual streams of the model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm.std import tqdm

from helpers.activations import ActivationStore
from helpers.epibert import EpiBERT
from helpers.runs import Run, code_digest, file_stamps
from helpers.runs._locks import one_at_a_time
from helpers.tissues import CONTEXTS
from helpers.windows import Inputs, WindowDataset

__all__ = ["Study", "data_recipe", "extract"]


@dataclass(frozen=True)
class Study:
    """One run: its folder, its data and the model under study.

    Attributes
    ----------
    run : Run
        Folder of artefacts.
    dataset : WindowDataset
        The pairs (no replicates).
    model : EpiBERT
        In inference mode.
    blocks : list of int
        Transformer blocks studied; layer ``i`` is the stream after block ``i``.
    seed : int
        Seed of everything random after the model.
    device : str
        Where to compute.
    truth : Path or None
        Folder of what was planted, if the data are simulated.
    streams : Run or None
        The run that keeps the residual streams; None for ``run``.
    saes : Run or None
        The run whose dictionaries are used; None to train new ones.
    """

    run: Run
    dataset: WindowDataset
    model: EpiBERT
    blocks: list[int]
    seed: int
    device: str
    truth: Path | None
    streams: Run | None = None
    saes: Run | None = None

    @property
    def streams_run(self) -> Run:
        """The run that keeps the residual streams."""
        return self.streams or self.run

    @cached_property
    def model_hash(self) -> str:
        """Digest of configuration, precision and weights of the model."""
        facts = [self.model.config.to_dict()] + ["bfloat16"] * self.model.bfloat16
        digest = hashlib.sha256(repr(facts).encode())
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    @cached_property
    def store(self) -> ActivationStore:
        """The residual streams, checked and opened once."""
        return extract(self)

    @cached_property
    def design(self) -> pd.DataFrame:
        """Columns ``biosample``, ``lineage``, ``context`` in store order.

        The two contexts of any contrast are called ``in_vitro`` and ``in_vivo``.
        """
        table = self.dataset.biosamples
        design = table.rename(columns={"name": "biosample"})
        names = dict(zip(self.dataset.tissues[0].contrast, CONTEXTS, strict=True))
        design["context"] = design["context"].map(names)
        return design[["biosample", "lineage", "context"]]

    @property
    def lineages(self) -> list[str]:
        """Names of the pairs, in order."""
        return list(dict.fromkeys(self.design["lineage"]))

    @property
    def description(self) -> str:
        """What the data are and what their tissue files warn of, for every page."""
        if self.truth is not None:
            return "SIMULATED data: a planted world, no real cells"
        notes = [
            f"{t.name}: {t.notes.strip()}" for t in self.dataset.tissues if t.notes
        ]
        contrast = self.dataset.tissues[0].contrast
        if contrast != CONTEXTS:
            pairs = zip(CONTEXTS, contrast, strict=True)
            notes += [f"{ours} stands for {theirs} below" for ours, theirs in pairs]
        return "\n".join(notes) or "the tissue files carry no notes"

    def pair(self, lineage: str) -> tuple[int, int]:
        """Return the positions of the in vitro and in vivo biosample of a lineage."""
        return self._pairs[lineage]

    @cached_property
    def _pairs(self) -> dict[str, tuple[int, int]]:
        position: dict[str, dict[str, int]] = {}
        for b, row in enumerate(self.design.itertuples()):
            position.setdefault(row.lineage, {})[row.context] = b
        return {x: (of["in_vitro"], of["in_vivo"]) for x, of in position.items()}


def data_recipe(dataset: WindowDataset) -> dict:
    """Identify the input files of a data set."""
    first = dataset.tissues[0]
    samples = [b for t in dataset.tissues for b in t.pair]
    paths = [first.genome, first.windows, first.motifs]
    paths += [p for b in samples for p in (b.signal, b.peaks, b.motif_activity)]
    scales = [[b.name, b.context, b.lineage, b.scale, b.signal_kind] for b in samples]
    return {"files": file_stamps(paths), "biosamples": scales}


def extract(study: Study) -> ActivationStore:
    """Return the residual streams of every block, window and biosample.

    The sequence tower runs once per window and serves all biosamples. Inputs are
    unmasked.
    """
    dataset, model = study.dataset, study.model
    config = model.config

    def fill(path: Path, blocks: list[int]) -> None:
        store = ActivationStore.create(
            path,
            biosamples=list(dataset.biosamples["name"]),
            windows=dataset.windows,
            layers=blocks,
            n_tokens=config.n_tokens,
            d_model=config.d_model,
            model_hash=study.model_hash,
        )
        pending = list(store.pending())
        motif = torch.from_numpy(dataset.motif_activity).to(study.device)
        read = dataset.batches(np.arange(b.start, b.stop) for b in pending)
        progress = tqdm(pending, desc="residual streams")
        for batch, inputs in zip(progress, read, strict=True):
            _extract_batch(study, store, batch, inputs, motif)

    recipe = {
        "data": data_recipe(dataset),
        "model": study.model_hash,
        # How rows are read later on is no part of what is stored.
        "code": code_digest("activations._store", "epibert", "windows"),
    }
    path = study.streams_run.artefact(
        "activations.zarr", recipe, lambda p: fill(p, study.blocks), resumable=True
    )
    if _blocks_to_extract(path, study.blocks):  # that an earlier study did without
        with one_at_a_time(path):
            if missing := _blocks_to_extract(path, study.blocks):
                fill(path, missing)
    return ActivationStore.open(path, model_hash=study.model_hash, layers=study.blocks)


def _blocks_to_extract(path: Path, blocks: list[int]) -> list[int]:
    """Return the blocks that a store lacks, or has in part."""
    held = ActivationStore.open(path).layers
    return [
        block
        for block in blocks
        if block not in held
        or not ActivationStore.open(path, layers=[block]).complete.all()
    ]


@torch.no_grad()
def _extract_batch(
    study: Study,
    store: ActivationStore,
    batch: slice,
    inputs: Inputs,
    motif: torch.Tensor,
) -> None:
    model = study.model
    sequence = torch.from_numpy(inputs.sequence).to(study.device)
    features = model.encode_sequence(sequence)
    for b, name in enumerate(store.biosamples):
        atac = torch.from_numpy(inputs.atac[b]).to(study.device)
        stream = model.encode_context(features, atac, motif[b].expand(len(atac), -1))
        start = 0
        for layer in sorted(store.layers):
            stream = model.run_blocks(stream, start, layer + 1)
            start = layer + 1
            store.write(layer, name, batch, stream)
    store.mark_complete(batch)
