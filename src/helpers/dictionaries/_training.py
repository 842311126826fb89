"""What centering and the rescue of dead features do, with a known and unknown truth.

Runs of the short budget of `helpers.dictionaries._front`; activations with a planted
dictionary are those of `helpers.sae.planted_world`. `helpers.dictionaries` is the
public face.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from scipy import stats
from tqdm.std import tqdm

from helpers.dictionaries._front import (
    FrontRows,
    front_config,
    front_rows,
    nested_sizes,
    rows_recipe,
    score_rows,
    short_seeds,
)
from helpers.runs import Run, code_digest
from helpers.sae import (
    BatchTopKSAE,
    SAEConfig,
    Trained,
    calibrate_threshold,
    planted_world,
    recovery,
    seed_stability,
    train,
)
from helpers.sae._rows import MatrixRows
from helpers.sae._step import Trainer
from helpers.stages import Study, sae_config

__all__ = [
    "TrainingChoices",
    "architectures",
    "never_selected",
    "parent_recovery",
    "training_choices",
    "with_gamma",
    "world_recovery",
]

GAMMAS = (5.0, 15.0)  # |mean| / |SD| beside that of the data
RESCUES = {
    "both": {},
    "auxiliary loss": {"revive_until": 0.0},
    "starting anew": {"aux_coefficient": 0.0},
    "neither": {"revive_until": 0.0, "aux_coefficient": 0.0},
}
WORLD_KS = (4, 8, 16)  # 8 features are active on average
WORLD_WIDTHS = (96, 192, 384)  # 192 directions are planted
_WORLD_ROWS, _WORLD_TEST = 24_000, 8_000
_WORLD_SEEDS = 5  # at the true width, of the two sparser settings
_SHORT_SEEDS = (0, 1, 2)
_START_ROWS = 4096


def with_gamma(rows: torch.Tensor, gamma: float) -> torch.Tensor:
    """Stretch the mean of rows (n, d_in) until |mean| / |SD| is gamma."""
    mean = rows.mean(0)
    sd = (rows - mean).square().sum(1).mean().sqrt()
    return rows + mean * (gamma * sd / mean.norm() - 1)


def never_selected(rows: torch.Tensor, d_sae: int, k: int, *, center: bool) -> float:
    """Return the share of features that no row selects before any training.

    Random unit directions, decoder tied to the encoder, no bias, the n k largest
    pre-activations of the n rows kept: how trainers start that neither center nor look
    at the data. What no row selects gets no gradient.

    Parameters
    ----------
    rows : torch.Tensor, shape (n, d_in)
        A batch of activations.
    d_sae, k : int
        Width and sparsity.
    center : bool
        Whether to subtract the mean first.
    """
    sae = BatchTopKSAE(rows.shape[1], d_sae, k)
    x = rows.cpu() - rows.cpu().mean(0) if center else rows.cpu()
    h = sae.pre_activations(x)
    cut = torch.topk(h.flatten(), len(h) * k)[0][-1]
    return float((h < cut.clamp_min(1e-30)).all(0).double().mean())


class TrainingChoices(NamedTuple):
    """What runs of the short budget come to under different choices.

    Attributes
    ----------
    table : pandas.DataFrame
        One row per run: ``centered``, ``gamma``, ``rescue`` (of dead features),
        ``never_selected`` (at a random start), ``l0_mean``, ``fvu``, ``dead_percent``.
    history : pandas.DataFrame
        One row per run and step: the first three columns, ``step`` and ``dead``, the
        share of features silent for a tenth of an epoch.
    """

    table: pd.DataFrame
    history: pd.DataFrame


def training_choices(study: Study, layer: int) -> TrainingChoices:
    """Train with and without centering, and with and without rescue of dead features.

    Rows with a larger mean are the data's own with the mean stretched. Centered runs
    see the same rows whatever the mean was, so there is one for each rescue.
    """
    shipped = sae_config(study.model.config.d_model)
    config = front_config(shipped.d_sae, shipped.k, random_state=study.seed)

    def run_all() -> tuple[pd.DataFrame, pd.DataFrame]:
        rows = front_rows(study, layer)
        mean = rows.train.mean(0)
        sd = (rows.train - mean).square().sum(1).mean().sqrt()
        own = float(mean.norm() / sd)
        plan = [(True, own, rescue) for rescue in RESCUES]
        plan += [(False, g, "auxiliary loss") for g in (own, *GAMMAS)]
        lines, histories = [], []
        for centered, gamma, rescue in tqdm(plan, desc="training choices"):
            shift = mean * (gamma / own - 1)
            moved = FrontRows(*(part + shift for part in rows))
            chosen = replace(config, **RESCUES[rescue])
            fit = train if centered else _train_uncentered
            sae, history = fit(moved.train, chosen, heldout=moved.tune)
            start = never_selected(
                moved.train[:: max(1, len(moved.train) // _START_ROWS)],
                config.d_sae,
                config.k,
                center=centered,
            )
            name = {"centered": centered, "gamma": gamma, "rescue": rescue}
            line = name | {"never_selected": start} | score_rows(sae, moved.test)
            lines.append(line)
            histories.append(history[["step", "dead", "fvu"]].assign(**name))
        return pd.DataFrame(lines), pd.concat(histories, ignore_index=True)

    recipe = rows_recipe(study, layer) | {
        "config": asdict(config),
        "gammas": GAMMAS,
        "rescues": RESCUES,
        "code": code_digest("sae", "dictionaries._training"),
    }

    def build(partial: Path) -> None:
        partial.mkdir()
        table, history = run_all()
        table.to_parquet(partial / "table.parquet")
        history.to_parquet(partial / "history.parquet")

    folder = study.run.artefact("dictionaries/training_choices", recipe, build)
    return TrainingChoices(
        pd.read_parquet(folder / "table.parquet"),
        pd.read_parquet(folder / "history.parquet"),
    )


def _train_uncentered(
    activations: torch.Tensor, config: SAEConfig, *, heldout: torch.Tensor
) -> Trained:
    """Train on rows divided by their root mean square, the mean left in."""
    scale = activations.square().mean().sqrt()
    source = MatrixRows({None: activations / scale})
    steps_per_epoch = source.n_rows // config.batch_size
    trainer = Trainer(
        source.d_in,
        config,
        n_steps=config.n_epochs * steps_per_epoch,
        dead_after_rows=config.dead_after * source.n_rows,
        device=activations.device,
    )
    history = []
    for epoch in range(config.n_epochs):
        for batch in source.batches(
            config.batch_size, epoch=epoch, random_state=config.random_state
        ):
            history.append({"step": trainer.n_done + 1} | trainer.step(batch[None]))
    sae = trainer.model()
    sae.scale.fill_(float(scale))
    calibrate_threshold(sae, heldout, random_state=config.random_state)
    return Trained(sae, pd.DataFrame(history))


def architectures(study: Study, layer: int) -> pd.DataFrame:
    """Compare BatchTopK and Matryoshka over three seeds of the short budget.

    Returns
    -------
    pandas.DataFrame
        One row per ``architecture`` and ``seed``: ``fvu``, ``l0_mean``,
        ``dead_percent``, ``n_broad``, and ``stability``, the mean cosine of matched
        features with those of the other seeds.
    """
    shipped = sae_config(study.model.config.d_model)
    plain = front_config(shipped.d_sae, shipped.k)
    nested = replace(plain, matryoshka=nested_sizes(plain.d_sae))
    seeds = tuple(study.seed + s for s in _SHORT_SEEDS)

    def build() -> pd.DataFrame:
        rows = front_rows(study, layer)
        lines = []
        for name, config in (("BatchTopK", plain), ("Matryoshka", nested)):
            saes = short_seeds(rows, config, seeds)
            for i, sae in enumerate(saes):
                others = [sae, *saes[:i], *saes[i + 1 :]]
                stable = seed_stability(others)["stability"].mean()
                line = {"architecture": name, "seed": seeds[i], "stability": stable}
                lines.append(line | score_rows(sae, rows.test))
        return pd.DataFrame(lines)

    recipe = rows_recipe(study, layer) | {
        "configs": [asdict(plain), asdict(nested)],
        "seeds": seeds,
        "code": code_digest("sae", "dictionaries._training"),
    }
    return study.run.table("dictionaries/architectures.parquet", recipe, build)


def world_recovery(run: Run) -> pd.DataFrame:
    """Train on activations with a planted dictionary, by width, k and architecture.

    Returns
    -------
    pandas.DataFrame
        One row per ``architecture``, ``d_sae``, ``k`` and ``seed`` (of world and
        training), with the summary of `helpers.sae.recovery`. The true width has every
        k and the true k every width; those of k = 4 and 8 at the true width have five
        seeds.
    """
    _, true_k, _ = WORLD_KS
    _, true_width, _ = WORLD_WIDTHS
    plan = [(true_width, k, 0) for k in WORLD_KS]
    plan += [(d, true_k, 0) for d in WORLD_WIDTHS if d != true_width]
    plan += [
        (true_width, k, seed) for k in WORLD_KS[:2] for seed in range(1, _WORLD_SEEDS)
    ]

    def build() -> pd.DataFrame:
        lines = []
        for d_sae, k, seed in tqdm(plan, desc="planted dictionaries"):
            world = planted_world(_WORLD_ROWS, random_state=seed)
            heldout = planted_world(_WORLD_TEST, random_state=seed, draw=1)
            for name in ("BatchTopK", "Matryoshka"):
                sizes = nested_sizes(d_sae) if name == "Matryoshka" else ()
                config = front_config(d_sae, k, matryoshka=sizes, random_state=seed)
                sae = train(world.rows, config).sae
                line = {"architecture": name, "d_sae": d_sae, "k": k, "seed": seed}
                lines.append(line | recovery(sae, heldout).summary.to_dict())
        return pd.DataFrame(lines)

    recipe = {
        "plan": plan,
        "n_rows": [_WORLD_ROWS, _WORLD_TEST],
        "config": asdict(front_config(16, 4)),
        "code": code_digest("sae", "dictionaries._training"),
    }
    return run.table("dictionaries/planted.parquet", recipe, build)


def parent_recovery(table: pd.DataFrame) -> pd.DataFrame:
    """Compare how whole the two architectures keep planted parents, world by world.

    Parameters
    ----------
    table : pandas.DataFrame
        From `world_recovery`.

    Returns
    -------
    pandas.DataFrame
        Indexed by ``k`` and ``score`` (parent_recall, parent_f1, mean_max_cosine): mean
        over worlds of ``BatchTopK`` and ``Matryoshka``, their ``difference`` with
        ``low`` and ``high`` (95 %, t over worlds), and the number of worlds ``n``.
    """
    several = table.groupby(["d_sae", "k"])["seed"].transform("nunique") > 1
    rows = {}
    for k, worlds in table[several].groupby("k"):
        for score in ("parent_recall", "parent_f1", "mean_max_cosine"):
            wide = worlds.pivot_table(score, "seed", "architecture")
            change = (wide["Matryoshka"] - wide["BatchTopK"]).to_numpy()
            reach = stats.t.isf(0.025, len(change) - 1) * stats.sem(change)
            rows[k, score] = wide.mean().to_dict() | {
                "difference": change.mean(),
                "low": change.mean() - reach,
                "high": change.mean() + reach,
                "n": len(change),
            }
    found = pd.DataFrame.from_dict(rows, orient="index")
    return found.rename_axis(index=["k", "score"])
