"""How well the model predicts hidden tokens, beside baselines and the noise ceiling.

The measure is Pearson's r of log1p signal over hidden tokens of held-out chromosomes,
for all of them and for those whose measured signal differs between the contexts.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from helpers.pretrain import load_arrays, predict_masked
from helpers.pretrain._batches import hide
from helpers.runs import code_digest
from helpers.stages import Study
from helpers.tissues import companions
from helpers.windows import WindowDataset, token_targets

__all__ = [
    "DIFFERENTIAL_FOLD",
    "METHODS",
    "correlation_interval",
    "locus",
    "masked_scores",
]

DIFFERENTIAL_FOLD = 3.0  # of signal + 1 between the two contexts of a lineage
METHODS = {
    "model": "EpiBERT",
    "no motif activity": "EpiBERT, mean motif activity",
    "no neighbors": "EpiBERT, whole track hidden",
    "average track": "mean of the other training biosamples at the locus",
    "noise ceiling": "expected signal of the simulator",
}
_WITHOUT = {
    "model": None,
    "no motif activity": "motif_activity",
    "no neighbors": "neighbors",
}
_N_DRAWS = 2000
_RUN_TOKENS = 12  # hidden together, as in training


def correlation_interval(
    x: np.ndarray, y: np.ndarray, blocks: np.ndarray, *, random_state: int = 0
) -> tuple[float, float, float]:
    """Return Pearson's r and its 95 % block-bootstrap interval.

    Parameters
    ----------
    x, y : numpy.ndarray, shape (n,)
        Paired values.
    blocks : numpy.ndarray, shape (n,)
        Genomic block of each pair; blocks are drawn with replacement.
    random_state : int
        Seed of the draws.
    """
    columns = np.stack([np.ones(len(x)), x, y, x * x, y * y, x * y])
    code, names = pd.factorize(blocks)
    sums = np.stack([np.bincount(code, c, len(names)) for c in columns])
    rng = np.random.default_rng(random_state)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), _N_DRAWS)
    weights = np.vstack([np.ones(len(names)), drawn])
    n, sx, sy, sxx, syy, sxy = sums @ weights.T
    with np.errstate(invalid="ignore", divide="ignore"):
        r = (n * sxy - sx * sy) / np.sqrt((n * sxx - sx * sx) * (n * syy - sy * sy))
    low, high = np.nanquantile(r[1:], [0.025, 0.975])
    return float(r[0]), float(low), float(high)


def masked_scores(study: Study) -> pd.DataFrame:
    """Score the model and its rivals on hidden tokens of the ``test`` windows.

    Returns
    -------
    pandas.DataFrame
        One row per lineage, set of tokens (``all`` or ``differential``) and method:
        ``r``, ``low``, ``high`` (95 %, blocks resampled), ``n`` tokens. Both biosamples
        of a lineage are pooled, and all methods are scored on the same tokens. The
        noise ceiling exists only where the expected signal is known (simulated data).
    """

    def build() -> pd.DataFrame:
        signal = _signals(study)
        rows = []
        for lineage in study.lineages:
            pair = list(study.pair(lineage))
            target, mask = signal["target"][pair], signal["mask"][pair]
            low, high = target + 1
            differs = np.abs(np.log(high / low)) >= np.log(DIFFERENTIAL_FOLD)
            for tokens, chosen in (("all", mask), ("differential", mask & differs)):
                blocks = np.broadcast_to(signal["block"], mask.shape)[chosen]
                for method, value in signal["predicted"].items():
                    r, *interval = correlation_interval(
                        np.log1p(value[pair][chosen]),
                        np.log1p(target[chosen]),
                        blocks,
                        random_state=study.seed,
                    )
                    rows.append((lineage, tokens, method, r, *interval, chosen.sum()))
        columns = ["lineage", "tokens", "method", "r", "low", "high", "n"]
        return pd.DataFrame(rows, columns=columns)

    recipe = {
        "model": study.model_hash,
        "biosamples": list(study.design["biosample"]),
        "windows": study.dataset.windows.to_dict("list"),
        "seed": study.seed,
        "code": code_digest("masked", "pretrain", "epibert", "windows"),
    }
    return study.run.table("masked.parquet", recipe, build)


def _signals(study: Study) -> dict:
    """Predict and gather every method on the test windows, inner tokens."""
    dataset, config = study.dataset, study.model.config
    windows = dataset.windows_of("test")
    data = load_arrays(dataset, windows, np.arange(len(dataset.biosamples)))
    inner = slice(config.crop, config.n_tokens - config.crop)
    predicted = {}
    for method, without in _WITHOUT.items():
        result = predict_masked(
            study.model,
            data,
            without=without,
            device=study.device,
            random_state=study.seed,
        )
        predicted[method] = result.predicted
    predicted["average track"] = _average_track(dataset, windows)[..., inner]
    if study.truth is not None:
        predicted["noise ceiling"] = _expected(study, windows)[..., inner]
    block = dataset.windows["block"].to_numpy()[windows]
    return {
        "predicted": predicted,
        "target": result.target,
        "mask": result.mask,
        "block": block[:, None],
    }


def _average_track(dataset: WindowDataset, windows: np.ndarray) -> np.ndarray:
    """Return the mean signal of the training biosamples other than each one.

    Of all others in the folder of tissue files where none is of the training.
    """
    everyone = WindowDataset(companions(dataset.tissues), window_bp=dataset.window_bp)
    table = everyone.biosamples
    seen = np.flatnonzero(table["seen_in_training"].map(lambda s: s is not False))
    seen = seen if len(seen) else np.arange(len(table))
    signal = {table["name"][b]: token_targets(everyone.track(windows, b)) for b in seen}
    total = sum(signal.values())
    averages = []
    for name in dataset.biosamples["name"]:
        others = len(signal) - (name in signal)
        averages.append((total - signal.get(name, 0.0)) / others)
    return np.stack(averages)


def _expected(study: Study, windows: np.ndarray) -> np.ndarray:
    """Return the simulator's expected signal per token, without count noise."""
    names = list(study.design["biosample"])
    table = pd.read_parquet(study.truth / "expected.parquet").set_index(
        ["chrom", "start"]
    )
    tokens = study.dataset.token_table(windows)
    values = table.loc[pd.MultiIndex.from_frame(tokens[["chrom", "start"]]), names]
    shape = (len(windows), study.dataset.n_tokens, len(names))
    return values.to_numpy().reshape(shape).transpose(2, 0, 1)


@torch.no_grad()
def locus(study: Study, window: int, lineage: str) -> pd.DataFrame:
    """Return measured and predicted signal along a window for both contexts.

    Every token is predicted while it and the rest of its run of 12 were hidden.

    Returns
    -------
    pandas.DataFrame
        ``chrom``, ``position`` (center of the token, bp), ``biosample``, ``context``,
        ``measured``, ``predicted``; inner tokens.
    """
    dataset, config = study.dataset, study.model.config
    inner = slice(config.crop, config.n_tokens - config.crop)
    tokens = dataset.token_table([window]).iloc[inner]
    run_of = np.arange(config.n_tokens) // _RUN_TOKENS
    hidden = run_of == np.arange(run_of.max() + 1)[:, None]  # (n_runs, n_tokens)
    sequence = torch.from_numpy(dataset.sequence([window])).to(study.device)
    features = study.model.encode_sequence(sequence).expand(len(hidden), -1, -1)
    tables = []
    for b in study.pair(lineage):
        visible = hide(dataset.track([window], b), hidden)
        atac = torch.from_numpy(visible).float().to(study.device)
        motif = torch.from_numpy(dataset.motif_activity[b]).to(study.device)
        stream = study.model.encode_context(
            features, atac, motif.expand(len(hidden), -1)
        )
        predicted = study.model.head(study.model.run_blocks(stream)).cpu().numpy()
        table = pd.DataFrame(
            {
                "chrom": tokens["chrom"].to_numpy(),
                "position": (tokens["start"] + tokens["end"]).to_numpy() / 2,
                "biosample": study.design["biosample"][b],
                "context": study.design["context"][b],
                "measured": dataset.target([window], b)[0, inner],
                "predicted": predicted[run_of[inner], np.arange(predicted.shape[1])],
            }
        )
        tables.append(table)
    return pd.concat(tables, ignore_index=True)
