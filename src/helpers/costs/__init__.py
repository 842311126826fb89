"""What a study takes before it is run: arithmetic, disk, memory, jobs and time.

Arithmetic counts a multiplication and an addition as two operations and leaves out
norms, activations, softmaxes and sparse products. Divided by what a device sustains
(``benchmarks/epibert_full_size.py`` measures it), it is time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import pandas as pd
import torch

from helpers.costs._terms import (
    COUNTS,
    DERIVED,
    SELECTED,
    STAGES,
    TERMS,
    UNITS,
    all_sizes,
    product,
)
from helpers.epibert import ATAC_BIN_BP, EpiBERT, EpiBERTConfig
from helpers.stages import sae_config

__all__ = [
    "COUNTS",
    "STAGES",
    "Plan",
    "calculator",
    "count_flop",
    "count_passes",
    "forward_flop",
    "plan",
]

_ATAC_STEM = (50, 32)  # width and channels
_TERA, _GIGA, _HOUR = 1e12, 1e9, 3600.0


def forward_flop(config: EpiBERTConfig) -> pd.Series:
    """Count the operations of one forward pass, batch 1.

    Returns
    -------
    pandas.Series
        Operations of ``sequence_stem``, ``sequence_tower`` (both once per window),
        ``atac``, ``motifs``, ``projection``, ``blocks`` and ``head`` (once per
        biosample).

    Notes
    -----
    In evaluation the first layers of the sequence tower work on pieces that overlap;
    what is computed twice there, 0.2 % of a pass, is left out.
    """
    bp, tokens, d_model = config.input_length, config.n_tokens, config.d_model
    filters = (config.sequence_filters[0], *config.sequence_filters)
    stem = bp * (4 * 15 * filters[0] + filters[0] ** 2 + filters[0])
    tower, length = 0, bp // 2
    for d_in, d_out in zip(filters, filters[1:], strict=False):
        tower += length * (5 * d_in * d_out + d_out)
        length //= 2
    width, channels = _ATAC_STEM
    bins = bp // ATAC_BIN_BP
    atac = bins * (width * channels + channels**2)
    bins //= 2
    for d_in, d_out in zip(
        (channels, *config.atac_filters), config.atac_filters, strict=False
    ):
        atac += bins * 5 * d_in * d_out
        bins //= 4
    d_motif = config.motif_units // 4
    motifs = config.motif_units * (config.n_motifs + d_motif)
    projection = tokens * (d_model + config.atac_filters[-1] + d_motif) * d_model
    features = config.n_random_features
    mixing = features * (4 * d_model + config.n_heads)
    block = tokens * (4 * d_model**2 + mixing + 4 * d_model**2)
    channels = d_model // config.head_scale
    head = tokens * channels * (d_model + 1)
    counts = {
        "sequence_stem": stem,
        "sequence_tower": tower,
        "atac": atac,
        "motifs": motifs,
        "projection": projection,
        "blocks": config.n_blocks * block,
        "head": head,
    }
    return 2 * pd.Series(counts, name="flop", dtype=float)


def count_flop(config: EpiBERTConfig) -> dict[str, float]:
    """Return the operations behind one unit of each of `COUNTS`.

    Training multiplies two dense matrices: the encoder, and the slopes of the active
    entries (in bfloat16, where all are multiplied since that is faster).
    """
    flop = forward_flop(config)
    block = flop["blocks"] / config.n_blocks
    return {
        "towers": flop["sequence_stem"] + flop["sequence_tower"],
        "inputs": flop["atac"] + flop["motifs"] + flop["projection"],
        "blocks": block,
        "heads": flop["head"],
        "gradients": block,  # with respect to the stream alone
        "encoded": 2.0 * config.d_model,
        "trained": 4.0 * config.d_model,
    }


@contextmanager
def count_passes(model: EpiBERT) -> Iterator[dict[str, int]]:
    """Count the windows that go through each part of a model.

    Yields
    ------
    dict of str to int
        ``towers``, ``inputs``, ``blocks`` and ``heads`` of `COUNTS`, growing.

    Examples
    --------
    >>> from helpers.epibert import EpiBERT, EpiBERTConfig
    >>> sizes = {"input_length": 2048, "n_blocks": 3, "n_motifs": 5}
    >>> sizes |= {"sequence_filters": (16,) * 6, "n_random_features": 16}
    >>> model = EpiBERT(EpiBERTConfig(**sizes)).eval()
    >>> with count_passes(model) as found:
    ...     _ = model.run_blocks(torch.zeros(2, 16, 16), 1)
    >>> found["blocks"]
    4
    """
    found = dict.fromkeys(("towers", "inputs", "blocks", "heads"), 0)
    parts = {
        "towers": [model.sequence_tower[-1]],
        "inputs": [model.input_projection],
        "blocks": list(model.blocks),
        "heads": [model.head_output],
    }

    def counter(name: str) -> Callable[..., None]:
        def add(module: object, inputs: tuple, output: torch.Tensor) -> None:
            found[name] += len(output)

        return add

    handles = [
        module.register_forward_hook(counter(name))
        for name, modules in parts.items()
        for module in modules
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


class Plan(NamedTuple):
    """What a study takes.

    Attributes
    ----------
    table : pandas.DataFrame
        Indexed by stage: ``pflop`` (1e15 operations), ``device_hours``, ``kept_gb``
        (stays on disk), ``moved_gb`` (written or read), ``memory_gb`` (largest array
        that a job holds), ``jobs``, ``wall_hours``.
    totals : pandas.Series
        ``pflop``, ``device_hours``, ``kept_gb``, ``jobs`` and ``wall_hours`` of all
        stages, one after the other; ``memory_gb``, the largest.
    counts : pandas.DataFrame
        Indexed by stage, a column for each of `COUNTS`: what it does how often.
    bottleneck : str
        The stage that takes longest, and what holds it up: ``arithmetic``, ``disk``,
        or ``too few jobs`` for the devices.
    """

    table: pd.DataFrame
    totals: pd.Series
    counts: pd.DataFrame
    bottleneck: str


def plan(
    config: EpiBERTConfig | None = None,
    *,
    tissues: int,
    windows: int,
    biosamples: int = 2,
    blocks: int | None = None,
    widths: Sequence[int] = (),
    seeds: int = 1,
    stages: Sequence[str] = tuple(STAGES),
    training_tokens: float = math.inf,
    causal_tissues: int | None = None,
    keep_streams: bool = True,
    fan_out: bool = False,
    shards: int = 1,
    devices: int = 1,
    peak_tflops: float = 312.0,
    efficiency: float = 0.3,
    disk_gb_per_s: float = 1.0,
) -> Plan:
    """Turn the sizes of a study into device hours, storage, jobs and wall time.

    Parameters
    ----------
    config : EpiBERTConfig, optional
        The model; the published one if absent.
    tissues : int
        Pairs of biosamples.
    windows : int
        Of all splits: half to select, a quarter to tune, a quarter to test.
    biosamples : int, default 2
        Of a tissue, replicates included; the pair itself is two.
    blocks : int, optional
        Blocks studied, the last ones of the model; all if absent.
    widths : sequence of int, optional
        Features of the dictionaries; each is a run of its own. Eight per dimension of
        the stream if empty.
    seeds : int, default 1
        Seeds of each dictionary; each is a run of its own.
    stages : sequence of str
        Some of `STAGES`.
    training_tokens : float, default infinity
        Tokens that a dictionary is trained on, drawn from the ``select`` windows; the
        stages as they are take all.
    causal_tissues : int, optional
        Pairs that causal tests are made on; the stage as it is takes all.
    keep_streams : bool, default True
        Store residual streams, as the stages do. Otherwise two sweeps of the model: one
        keeps the training tokens, the other summarizes features as they are made.
    fan_out : bool, default False
        A run for each block, as `workflow/Snakefile` makes them, in place of one of all
        blocks. Passes that start from the inputs are then made for every block.
    shards : int, default 1
        Parts into which windows are cut, each a job; the workflow makes one.
    devices : int, default 1
        That work at the same time, one on each job.
    peak_tflops : float, default 312
        Of a device, 1e12 operations per second; the default is what its maker states of
        an A100 in bfloat16.
    efficiency : float, default 0.3
        Share of it that is sustained: an assumption, to be replaced by a measurement.
    disk_gb_per_s : float, default 1
        Of the storage that all devices share.

    Returns
    -------
    Plan

    Raises
    ------
    ValueError
        If a number is out of range or a stage is unknown.
    """
    config = EpiBERTConfig() if config is None else config
    blocks = config.n_blocks if blocks is None else blocks
    settings = sae_config(config.d_model)
    widths = list(widths) or [settings.d_sae]
    given = {"tissues": tissues, "windows": windows, "biosamples": biosamples}
    given |= {"blocks": blocks, "seeds": seeds, "shards": shards, "devices": devices}
    given["causal_tissues"] = tissues if causal_tissues is None else causal_tissues
    _check(given, widths, config, stages)
    numbers = {
        "training_tokens": training_tokens,
        "peak_tflops": peak_tflops,
        "efficiency": efficiency,
        "disk_gb_per_s": disk_gb_per_s,
    }
    for name, value in numbers.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive; got {value}")
    sizes = all_sizes(
        {k: v for k, v in given.items() if k not in ("seeds", "devices")}
        | _constants(config)
        | {
            "dictionaries": seeds * len(widths),
            "features": seeds * sum(widths),
            "d_sae": max(widths),
            "training_tokens": training_tokens,
            "keep_streams": int(keep_streams),
            "fan_out": int(fan_out),
        }
    )
    rate = peak_tflops * _TERA * efficiency
    counts = pd.DataFrame({stage: _counts(stage, sizes) for stage in stages}).T
    flop_of, rows, causes = count_flop(config), {}, {}
    for stage, found in counts.iterrows():
        flop = sum(found[count] * each for count, each in flop_of.items())
        jobs = product(1, UNITS[stage], sizes)
        hours = flop / rate / _HOUR
        disk = found["moved"] / (disk_gb_per_s * _GIGA) / _HOUR
        busy = math.ceil(jobs / devices) * hours / jobs
        if disk > busy:
            causes[stage] = "disk"
        else:
            causes[stage] = "too few jobs" if jobs < devices else "arithmetic"
        rows[stage] = {
            "pflop": flop / 1e15,
            "device_hours": hours,
            "kept_gb": found["kept"] / _GIGA,
            "moved_gb": found["moved"] / _GIGA,
            "memory_gb": found["memory"] / _GIGA,
            "jobs": jobs,
            "wall_hours": max(busy, disk),
        }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("stage")
    totals = table.drop(columns=["moved_gb", "memory_gb"]).sum()
    totals["memory_gb"] = table["memory_gb"].max()
    slowest = table["wall_hours"].idxmax()
    return Plan(table, totals, counts, f"{slowest}: {causes[slowest]}")


def _counts(stage: str, sizes: dict[str, float]) -> dict[str, float]:
    """Add up the terms of a stage; of arrays in memory the largest counts."""
    found = dict.fromkeys(COUNTS, 0.0)
    for of, count, factor, names in TERMS:
        if of == stage:
            value = product(factor, names, sizes)
            if count == "memory":
                found[count] = max(found[count], value)
            else:
                found[count] += value
    return found


def _constants(config: EpiBERTConfig) -> dict[str, float]:
    """Return the sizes that follow from the model."""
    return {
        "n_blocks": config.n_blocks,
        "n_tokens": config.n_tokens,
        "d_model": config.d_model,
        "n_epochs": sae_config(config.d_model).n_epochs,
        "selected": SELECTED,
    }


def _check(
    counts: dict[str, int],
    widths: Sequence[int],
    config: EpiBERTConfig,
    stages: Sequence[str],
) -> None:
    smallest = {"biosamples": 2, "windows": 4}  # a window of each split at least
    for name, value in counts.items():
        least = smallest.get(name, 1)
        if value != int(value) or value < least:
            raise ValueError(
                f"{name} must be a whole number of at least {least}; got {value}"
            )
    if counts["blocks"] > config.n_blocks:
        raise ValueError(
            f"blocks must be at most the model's {config.n_blocks}; got "
            f"{counts['blocks']}"
        )
    if counts["causal_tissues"] > counts["tissues"]:
        raise ValueError(
            f"causal_tissues must be at most the {counts['tissues']} tissues; got "
            f"{counts['causal_tissues']}"
        )
    if any(width != int(width) or width < 1 for width in widths):
        raise ValueError(f"widths must be whole positive numbers; got {list(widths)}")
    if unknown := [name for name in stages if name not in STAGES] or not stages:
        raise ValueError(f"stages must be some of {list(STAGES)}; got {unknown}")


def calculator(config: EpiBERTConfig | None = None) -> dict:
    """Return all that `plan` multiplies, as JSON-ready values.

    A calculator in another language needs no number of its own.

    Returns
    -------
    dict
        ``constants`` (sizes that follow from the model), ``derived`` (each the smallest
        of some sums of products), ``terms`` (stage, count, factor, sizes), ``units``
        (sizes whose product is a stage's jobs), ``flop`` (operations per count) and
        ``stages``.
    """
    config = EpiBERTConfig() if config is None else config
    return {
        "constants": _constants(config) | {"d_sae": sae_config(config.d_model).d_sae},
        "derived": DERIVED,
        "terms": TERMS,
        "units": UNITS,
        "flop": count_flop(config),
        "stages": STAGES,
    }
