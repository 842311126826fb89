"""What a study costs before it is run: arithmetic and disk, from sizes alone.

Arithmetic counts a multiplication and an addition as two operations and leaves out
norms, activations and softmaxes. Divide by what a machine sustains
(``benchmarks/epibert_full_size.py`` measures it) to get its time.
"""

from __future__ import annotations

import pandas as pd

from helpers.epibert import ATAC_BIN_BP, EpiBERTConfig
from helpers.sae import SAEConfig

__all__ = ["forward_flop", "study_costs"]

_HALF_BYTES = 2
_ATAC_STEM = (50, 32)  # width and channels


def forward_flop(config: EpiBERTConfig) -> pd.Series:
    """Count the operations of one forward pass, batch 1.

    Returns
    -------
    pandas.Series
        Operations of ``sequence_stem``, ``sequence_tower`` (both once per window),
        ``atac``, ``motifs``, ``projection``, ``blocks`` and ``head`` (once per
        biosample).
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
    block = tokens * (4 * d_model**2 + 4 * d_model * features + 4 * d_model**2)
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


def study_costs(
    config: EpiBERTConfig,
    *,
    n_biosamples: int,
    n_windows: int,
    sae: SAEConfig,
    n_random_sets: int,
    n_ablation_windows: int,
) -> pd.DataFrame:
    """Count what the stages of a study take; steering and annotation are left out.

    Parameters
    ----------
    config : EpiBERTConfig
        The model.
    n_biosamples, n_windows : int
        Of all pairs; windows of all splits, half of which train dictionaries and a
        quarter of which are for tests.
    sae : SAEConfig
        The dictionary of every block.
    n_random_sets, n_ablation_windows : int
        Random feature sets beside the chosen one, and windows they are tried on.

    Returns
    -------
    pandas.DataFrame
        Indexed by stage: ``pflop`` (1e15 operations) and ``disk_gb``.
    """
    flop = forward_flop(config)
    per_window = flop["sequence_stem"] + flop["sequence_tower"]
    per_biosample = flop.sum() - per_window
    values = config.n_tokens * config.d_model  # of one block, window and biosample
    streams = n_windows * n_biosamples * config.n_blocks
    encode = 2 * values * sae.d_sae
    # Only the encoder is dense: k of d_sae entries are decoded and have gradients.
    training = encode * (streams / 2) * sae.n_epochs
    block = flop["blocks"] / config.n_blocks
    after = block * (config.n_blocks - 1) / 2 + flop["head"]  # on average over blocks
    edits = (1 + n_random_sets) * n_ablation_windows * n_biosamples * config.n_blocks
    masked = n_windows / 4 * (per_window + 3 * n_biosamples * per_biosample)
    extraction = n_windows * (per_window + n_biosamples * per_biosample)
    weights = 2 * config.d_model * sae.d_sae * 4 * config.n_blocks
    rows = {
        "hidden tokens, three variants": (masked, 0),
        "residual streams": (extraction, streams * values * _HALF_BYTES),
        "dictionaries": (training, weights),
        "features of every token": (encode * streams, 0),
        "ablations": (edits * after, 0),
    }
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["pflop", "disk_gb"])
    return table.rename_axis("stage") / [1e15, 1e9]
