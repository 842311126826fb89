"""The stages that notebooks share: each returns its artefact, or makes it first.

A notebook opened alone calls the stages before its own; what is in the run folder is
loaded, what is missing is made. Stages hand each other artefacts, nothing else.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import warnings
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm.std import tqdm

from helpers import simulate
from helpers.activations import (
    ActivationStore,
    StoredRows,
    WindowSummary,
    summarize,
)
from helpers.cds import context_divergence, layer_curve
from helpers.epibert import EpiBERT
from helpers.pretrain import PretrainConfig, load_arrays, predict_masked, pretrain
from helpers.public_data import ENCODE_TISSUES, is_public, localize
from helpers.published_weights import published_weights
from helpers.runs import Run, code_digest, file_stamps
from helpers.runs._locks import one_at_a_time
from helpers.sae import BatchTopKSAE, SAEConfig, Trained, evaluate, train
from helpers.sae._peers import Peers
from helpers.small_model import SMALL_WINDOW_BP, load_small_model, small_config
from helpers.tissues import CONTEXTS, read_tissues, tissue_files
from helpers.windows import Inputs, WindowDataset

__all__ = [
    "Study",
    "called_features",
    "extract",
    "feature_acts",
    "late_early_ratio",
    "layer_counts",
    "open_study",
    "precision_error",
    "read_cards",
    "sae_config",
    "score_context",
    "summaries",
    "train_saes",
]

_log = logging.getLogger(__name__)
SIMULATED_TISSUES = ["blood", "liver", "lymph"]
N_FLIPS = 2000
ALPHA = 0.05  # family-wise, per block
_OWN_TRAINING = PretrainConfig(n_steps=1200, warmup_steps=100)  # minutes on a CPU
_BLIND_R = 0.1  # masked-token correlation of a model that does not fit its inputs
_GLANCE_WINDOWS = 2
_HELD_OUT_TOKENS = 2**18  # enough for the threshold and the card
_PRECISIONS = ("float32", "bfloat16")


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

    @property
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
        rows = self.design[self.design["lineage"] == lineage]
        position = {c: i for i, c in rows["context"].items()}
        return position["in_vitro"], position["in_vivo"]


def open_study(
    run: str | Path,
    *,
    data: str = "simulated",
    tissues: list[str] | None = None,
    blocks: list[int] | None = None,
    seed: int = 0,
    device: str = "cpu",
    model: str = "",
    precision: str = "float32",
    streams: str = "",
    saes: str = "",
) -> Study:
    """Open a run: read and check its data, load its model.

    Parameters
    ----------
    run : str or Path
        Run folder, made if absent.
    data : str
        ``simulated``; ``encode``, the public ATAC-seq of the published study; a tissue
        file; or a folder of them. They may name public data.
    tissues : list of str, optional
        Which tissues; the study's three of the simulated world, or all files of the
        folder, if empty.
    blocks : list of int, optional
        Transformer blocks; all if empty.
    seed : int
        Seed of dictionaries, controls and resampling.
    device : str
        Torch device.
    model : str
        Folder or checkpoint prefix of a model. If empty, the small model that ships
        with the package for simulated data, the published weights for ``encode``, and
        for other data a small model trained on their ``select`` windows (minutes, kept
        in the run folder).
    precision : str
        ``float32``, or ``bfloat16`` for the products of the model, faster where the
        hardware has it; `precision_error` measures what it costs.
    streams : str
        Folder of a run that keeps the residual streams, for several runs that differ in
        what comes after them; the run itself if empty.
    saes : str
        Folder of a run of the same model whose dictionaries to use, on data they were
        not trained on; new ones are trained if empty.

    Raises
    ------
    FileNotFoundError, ValueError
        If data, tissues, blocks, device, model or precision do not exist or do not fit.
    RuntimeError
        If another process is at work in the run folder, with other parameters.
    """
    _check_device(device)
    if precision not in _PRECISIONS:
        raise ValueError(f"precision must be one of {_PRECISIONS}; got {precision!r}")
    run = Run(run)
    run.claim(
        data=str(data),
        tissues=list(tissues or []),
        model=str(model),
        precision=precision,
        streams=str(streams),
        saes=str(saes),
        seed=seed,
    )
    # Beside the runs; one that shares its streams may lie deeper.
    kept = Path(streams or run.folder).parent.parent / "data"
    if data == "encode" and not model:
        model = str(published_weights(kept / "encode" / "weights"))
    loaded = EpiBERT.from_pretrained(model) if model else None
    window_bp = loaded.config.input_length if loaded else SMALL_WINDOW_BP
    truth = None
    if data == "simulated":
        folder = _simulated(Run(kept))
        truth, folder = folder / "truth", folder / "tissues"
        tissues = list(tissues or SIMULATED_TISSUES)
    else:
        folder = ENCODE_TISSUES if data == "encode" else Path(data)
        tissues = [path.stem for path in tissue_files(folder, tissues)]
        if is_public(folder):
            output = kept / (folder.name if folder.is_dir() else folder.stem)
            folder = localize(folder, output, window_bp=window_bp, names=tissues)
            _keep_provenance(run, folder, tissues)
    pairs = read_tissues(folder, tissues)
    dataset = WindowDataset(pairs, window_bp=window_bp)
    if loaded is None and data == "simulated":
        loaded = load_small_model()
    elif loaded is None:
        loaded = _own_model(run, dataset, seed, device)
    n_motifs = dataset.motif_activity.shape[1]
    if loaded.config.n_motifs != n_motifs:
        raise ValueError(
            f"the model expects {loaded.config.n_motifs} motifs; {pairs[0].motifs} has "
            f"{n_motifs}"
        )
    chosen = list(blocks or range(loaded.config.n_blocks))
    last = loaded.config.n_blocks - 1
    outside = [b for b in chosen if b not in range(last + 1)]
    if outside:
        raise ValueError(f"blocks {outside} do not exist; the model has 0 to {last}")
    loaded.bfloat16 = precision == "bfloat16"
    study = Study(
        run,
        dataset,
        loaded.to(device),
        chosen,
        seed,
        device,
        truth,
        streams=Run(streams) if streams else None,
        saes=Run(saes) if saes else None,
    )
    if study.saes:
        _check_dictionaries(study)
    if model:
        _warn_if_blind(study)
    return study


def _check_dictionaries(study: Study) -> None:
    """Check that another run has dictionaries of this model's blocks."""
    others, problems = study.saes, []
    for layer in study.blocks:
        try:
            model = others.recipe(f"sae/block{layer}")["model"]
        except (FileNotFoundError, KeyError):
            problems.append(f"no dictionary of block {layer}")
        else:
            if model != study.model_hash:
                problems.append(
                    f"the dictionary of block {layer} belongs to model {model}, not to "
                    f"{study.model_hash}"
                )
    if problems:
        raise ValueError(
            f"saes {others.folder}: " + "; ".join(problems) + "; run page 02 there, or "
            "leave saes empty"
        )


def _simulated(kept: Run) -> Path:
    """Return the folder of the simulated world."""
    world = simulate.World()
    return kept.artefact(
        "simulated",
        {"world": simulate.recipe(world)},
        lambda partial: simulate.write_world(partial, world, progress=_log.info),
    )


def _keep_provenance(run: Run, folder: Path, tissues: list[str]) -> None:
    """Keep with the run which public files its data were made from."""
    records = {
        name: json.loads((folder / f"{name}.provenance.json").read_text("utf-8"))
        for name in tissues
    }
    text = json.dumps(records, indent=1)
    run.artefact(
        "provenance.json", records, lambda path: path.write_text(text, "utf-8")
    )


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} is not usable: {error}") from None


def _own_model(run: Run, dataset: WindowDataset, seed: int, device: str) -> EpiBERT:
    """Return a small model trained on the data's own training windows."""
    config = small_config(dataset.motif_activity.shape[1])
    training = replace(_OWN_TRAINING, seed=seed)
    everyone = np.arange(len(dataset.biosamples))

    def build(partial: Path) -> None:
        partial.mkdir(exist_ok=True)
        data = load_arrays(dataset, dataset.windows_of("select"), everyone)
        with tqdm(total=training.n_steps, desc="small model") as bar:
            trained = pretrain(
                data,
                config,
                training,
                device=device,
                checkpoint=partial / "training.pt",
                progress=lambda x: bar.update(x["step"] - bar.n),
            )
        trained.cpu().save_pretrained(partial, {"training": asdict(training)})
        (partial / "training.pt").unlink()

    recipe = {
        "model": config.to_dict(),
        "training": asdict(training),
        "data": _data_recipe(dataset),
        "code": code_digest("epibert", "pretrain", "windows"),
    }
    return EpiBERT.from_pretrained(run.artefact("model", recipe, build, resumable=True))


def _warn_if_blind(study: Study) -> None:
    """Warn if the model cannot predict hidden tokens of a few windows.

    Shapes tell nothing about the projection seed, which no checkpoint stores, the scale
    of the tracks or the order of the motifs; this is what notices before long work.
    """
    dataset = study.dataset
    select = dataset.windows_of("select")
    windows = select[:: max(1, len(select) // _GLANCE_WINDOWS)][:_GLANCE_WINDOWS]

    def build() -> pd.DataFrame:
        data = load_arrays(dataset, windows, np.arange(len(dataset.biosamples)))
        found = predict_masked(
            study.model, data, device=study.device, random_state=study.seed
        )
        hidden = (
            np.log1p(found.predicted[found.mask]),
            np.log1p(found.target[found.mask]),
        )
        constant = any(np.ptp(values) == 0 for values in hidden)
        r = 0.0 if constant else np.corrcoef(*hidden)[0, 1]
        return pd.DataFrame({"r": [r], "n_tokens": [found.mask.sum()]})

    recipe = {
        "model": study.model_hash,
        "data": _data_recipe(dataset),
        "seed": study.seed,
        "code": code_digest("pretrain", "epibert", "windows"),
    }
    glance = study.run.table("glance.parquet", recipe, build).iloc[0]
    if not glance["r"] > _BLIND_R:
        seed = study.model.config.projection_seed
        warnings.warn(
            f"the model hardly predicts hidden tokens of this data: r = "
            f"{glance['r']:.2f} over {glance['n_tokens']:.0f} tokens. Is its "
            f"projection seed {seed}? Are tracks scaled as in its training, and motif "
            "activities in its order?",
            stacklevel=3,
        )


@torch.no_grad()
def precision_error(study: Study) -> pd.DataFrame:
    """Compare the model in bfloat16 with itself in float32, on one window.

    Returns
    -------
    pandas.DataFrame
        Rows ``stream after the last block`` and ``output``: largest absolute
        difference ``max_error``, largest value ``max_value``, and ``correlation``.
    """
    dataset, model = study.dataset, study.model
    sequence = torch.from_numpy(dataset.sequence([0])).to(study.device)
    atac = torch.from_numpy(dataset.atac([0], 0)).float().to(study.device)
    motif = torch.from_numpy(dataset.motif_activity[[0]]).to(study.device)
    found = {}
    stated = model.bfloat16
    for model.bfloat16 in (False, True):
        features = model.encode_sequence(sequence)
        stream = model.run_blocks(model.encode_context(features, atac, motif))
        found[model.bfloat16] = {
            "stream after the last block": stream.float(),
            "output": model.head(stream),
        }
    model.bfloat16 = stated
    rows = {}
    for name, exact in found[False].items():
        pair = torch.stack([exact.flatten(), found[True][name].flatten()])
        rows[name] = {
            "max_error": (pair[0] - pair[1]).abs().max().item(),
            "max_value": exact.abs().max().item(),
            "correlation": torch.corrcoef(pair.double())[0, 1].item(),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _data_recipe(dataset: WindowDataset) -> dict:
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
        "data": _data_recipe(dataset),
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
    store, peers = extract(study), Peers.present()
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
                _take_over_sae(study, store, layer, partial)
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
    _write_card(study, store, layer, sae, folder)


def _fit_sae(
    study: Study,
    store: ActivationStore,
    layer: int,
    config: SAEConfig,
    checkpoint: Path,
) -> Trained:
    """Train a dictionary; the first of several processes keeps the checkpoint."""
    held_out = {"max_tokens": _HELD_OUT_TOKENS, "random_state": study.seed}
    tune = store.rows(layer, splits=["tune"], **held_out).rows
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


def _take_over_sae(
    study: Study, store: ActivationStore, layer: int, folder: Path
) -> None:
    """Copy a dictionary of another run and write its card on the data of this one."""
    source = study.saes.path(f"sae/block{layer}")
    sae = BatchTopKSAE.load(source, device=study.device)
    folder.mkdir(exist_ok=True)
    sae.save(folder)
    shutil.copy(source / "history.parquet", folder)
    _write_card(study, store, layer, sae, folder)


def _write_card(
    study: Study,
    store: ActivationStore,
    layer: int,
    sae: BatchTopKSAE,
    folder: Path,
) -> None:
    held_out = {"max_tokens": _HELD_OUT_TOKENS, "random_state": study.seed}
    test = store.rows(layer, splits=["test"], **held_out)
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


def summaries(study: Study) -> dict[int, WindowSummary]:
    """Return mean activation and firing rate of every feature per window."""
    saes = train_saes(study)
    store = extract(study)
    found = {}
    for layer in study.blocks:

        def build(partial: Path, layer: int = layer) -> None:
            summary = summarize(store, layer, saes[layer])
            with open(partial, "wb") as file:
                np.savez(file, **summary._asdict())

        recipe = {
            "sae": study.run.key(f"sae/block{layer}"),
            "code": code_digest("activations._summary"),
        }
        path = study.run.artefact(f"summaries/block{layer}.npz", recipe, build)
        with np.load(path) as arrays:
            found[layer] = WindowSummary(**arrays)
    return found


def score_context(study: Study, split: str = "select") -> pd.DataFrame:
    """Return the Context Divergence Score of every feature of every block.

    Parameters
    ----------
    study : Study
        The run.
    split : str
        Windows to score on: ``select`` chooses features, ``test`` estimates what was
        chosen.

    Returns
    -------
    pandas.DataFrame
        The table of `helpers.cds.context_divergence` with columns ``layer`` and
        ``feature`` in front.
    """
    by_layer = summaries(study)
    windows = study.dataset.windows_of(split)
    blocks = study.dataset.windows["block"].to_numpy()[windows]

    def build() -> pd.DataFrame:
        tables = []
        for layer, summary in by_layer.items():
            table = context_divergence(
                summary.mean_acts[:, windows],
                study.design,
                blocks,
                firing_rates=summary.firing[:, windows],
                n_flips=N_FLIPS if len(set(blocks)) >= 20 else 0,
                random_state=study.seed,
            )
            tables.append(table.reset_index().assign(layer=layer))
        joined = pd.concat(tables, ignore_index=True)
        joined.attrs = {}
        front = ["layer", "feature"]
        return joined[front + [c for c in joined if c not in front]]

    recipe = {
        "summaries": [study.run.key(f"summaries/block{b}.npz") for b in study.blocks],
        "split": split,
        "n_flips": N_FLIPS,
        "seed": study.seed,
        "code": code_digest("cds", "pairing", "blockstats"),
    }
    name = "cds.parquet" if split == "select" else f"cds_{split}.parquet"
    return study.run.table(name, recipe, build)


def called_features(table: pd.DataFrame) -> pd.DataFrame:
    """Return the features that `context_divergence` put in a class of context."""
    return table[~table["class"].isin(["none", "untested"])]


def layer_counts(table: pd.DataFrame) -> pd.DataFrame:
    """Count significant features per block.

    Parameters
    ----------
    table : pandas.DataFrame
        From `score_context`.

    Returns
    -------
    pandas.DataFrame
        Indexed by ``layer``: ``tested``; ``naive`` (Welch over windows, Bonferroni),
        ``shared`` (paired blocks, Bonferroni), ``max_t`` (the same by sign flips) and
        the number of features of each class.
    """
    tested = table["class"] != "untested"
    flags = pd.DataFrame(
        {
            "layer": table["layer"],
            "tested": tested,
            "shared": table["p_bonferroni"] <= ALPHA,
        }
    )
    n_tested = tested.groupby(table["layer"]).transform("sum")
    flags["naive"] = table["p_naive"] * n_tested <= ALPHA
    if "p_max_t" in table:
        flags["max_t"] = table["p_max_t"] <= ALPHA
    classes = pd.get_dummies(called_features(table)["class"]).reindex(
        table.index, fill_value=False
    )
    return pd.concat([flags, classes], axis=1).groupby("layer").sum()


def late_early_ratio(study: Study) -> pd.DataFrame:
    """Return the ratio of significant features, last block over first.

    Returns
    -------
    pandas.DataFrame
        One row: ``early``, ``late`` (counts by Bonferroni over equally many tests in
        every block, see `helpers.cds.layer_curve`), ``ratio``, ``low``, ``high``
        (95 %, genomic blocks resampled), ``early_layer``, ``late_layer``. A single
        block is compared with itself.
    """
    by_layer = summaries(study)
    windows = study.dataset.windows_of("select")
    blocks = study.dataset.windows["block"].to_numpy()[windows]
    layers = sorted(study.blocks)

    def build() -> pd.DataFrame:
        compared = layers if len(layers) > 1 else layers * 2
        acts = [by_layer[layer].mean_acts[:, windows] for layer in compared]
        curve = layer_curve(
            dict(enumerate(acts)),
            study.design,
            blocks,
            alpha=ALPHA,
            random_state=study.seed,
        )
        row = {k: v for k, v in curve.ratio._asdict().items() if k != "draws"}
        ends = {"early_layer": layers[0], "late_layer": layers[-1]}
        return pd.DataFrame([row | ends])

    recipe = {
        "summaries": [study.run.key(f"summaries/block{b}.npz") for b in layers],
        "alpha": ALPHA,
        "seed": study.seed,
        "code": code_digest("cds", "pairing", "blockstats"),
    }
    return study.run.table("layer_ratio.parquet", recipe, build)


@torch.no_grad()
def feature_acts(
    study: Study, layer: int, features: np.ndarray, windows: np.ndarray
) -> np.ndarray:
    """Return the activations of some features, token by token.

    Parameters
    ----------
    study : Study
        The run.
    layer : int
        Block.
    features, windows : numpy.ndarray of int
        Which features, which windows.

    Returns
    -------
    numpy.ndarray, shape (n_biosamples, n_windows, n_tokens, n_features), float32
    """
    sae = train_saes(study)[layer]
    store = extract(study)
    array, step = store.layer(layer), store.chunk_windows
    windows = np.asarray(windows)
    chosen = torch.tensor(np.asarray(features), device=study.device)
    found = np.empty(
        (array.shape[0], len(windows), array.shape[2], len(features)), np.float32
    )
    for b in range(array.shape[0]):
        for chunk in np.unique(windows // step):
            here = np.flatnonzero(windows // step == chunk)
            low, high = windows[here].min(), windows[here].max() + 1
            streams = torch.from_numpy(array[b, low:high][windows[here] - low])
            for i, x in zip(here, streams.to(study.device), strict=True):
                found[b, i] = sae.encode(x)[:, chosen].cpu().numpy()
    return found
