"""Arithmetic against the published count, and against what the layers do."""

import pytest
import torch

from helpers.costs import forward_flop, study_costs
from helpers.epibert import EpiBERT, EpiBERTConfig
from helpers.sae import SAEConfig

SMALL = EpiBERTConfig(
    input_length=2048,
    n_heads=2,
    n_blocks=3,
    sequence_filters=(8, 12, 12, 16, 16, 24),
    atac_filters=(8, 12),
    n_motifs=20,
    motif_units=8,
    n_random_features=16,
    head_scale=4,
)


def test_forward_flop_is_the_published_count():
    flop = forward_flop(EpiBERTConfig()) / 1e9
    published = {"sequence_stem": 307.6, "sequence_tower": 1734.7, "projection": 9.2}
    for part, count in published.items():
        assert flop[part] == pytest.approx(count, abs=0.05)
    assert flop.sum() == pytest.approx(2673, abs=0.5)


def test_forward_flop_is_what_the_layers_do():
    model = EpiBERT(SMALL).eval()
    count = 0

    def add(module, inputs, output):
        nonlocal count
        weight = module.weight
        positions = output.numel() // weight.shape[0]
        count += 2 * positions * weight.numel()

    for module in model.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv1d):
            module.register_forward_hook(add)
    sequence = torch.zeros(1, SMALL.input_length, 4)
    model(sequence, torch.zeros(1, SMALL.input_length // 4), torch.zeros(1, 20))
    flop = forward_flop(SMALL)
    # Hooks see layers only: add the mixing of tokens.
    mixing = 2 * SMALL.n_blocks * SMALL.n_tokens * 4 * SMALL.d_model * 16
    assert flop.sum() == pytest.approx(count + mixing, rel=1e-6)


def test_study_costs_grow_with_what_is_studied():
    def costs(**changes):
        given = {"n_biosamples": 6, "n_windows": 96, "sae": SAEConfig(d_sae=64, k=4)}
        given |= {"n_random_sets": 199, "n_ablation_windows": 24}
        return study_costs(SMALL, **(given | changes))

    base, double = costs(), costs(n_windows=192)
    assert (double["pflop"] >= base["pflop"]).all()
    streams = base.loc["residual streams", "disk_gb"]
    assert streams == pytest.approx(96 * 6 * 3 * 16 * 24 * 2 / 1e9)
    assert double.loc["residual streams"].to_list() == pytest.approx(
        [2 * value for value in base.loc["residual streams"]]
    )
