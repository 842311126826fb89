"""Open a run: find its data and model, and check that they fit each other."""

from __future__ import annotations

import json
import logging
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm.std import tqdm

from helpers import simulate
from helpers.epibert import EpiBERT
from helpers.pretrain import PretrainConfig, load_arrays, predict_masked, pretrain
from helpers.public_data import ENCODE_TISSUES, is_public, localize
from helpers.published_weights import published_weights
from helpers.runs import Run, code_digest
from helpers.small_model import SMALL_WINDOW_BP, load_small_model, small_config
from helpers.stages._study import Study, data_recipe
from helpers.tissues import read_tissues, tissue_files
from helpers.windows import WindowDataset

__all__ = ["open_study", "precision_error"]

_log = logging.getLogger("helpers.stages")
SIMULATED_TISSUES = ["blood", "liver", "lymph"]
_OWN_TRAINING = PretrainConfig(n_steps=1200, warmup_steps=100)  # minutes on a CPU
_BLIND_R = 0.1  # masked-token correlation of a model that does not fit its inputs
_GLANCE_WINDOWS = 2
_PRECISIONS = ("float32", "bfloat16")


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
        "data": data_recipe(dataset),
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
        "data": data_recipe(dataset),
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
