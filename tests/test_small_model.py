"""The shipped model belongs to the recipe of this version."""

import pytest
import torch

from helpers import small_model


def test_load_small_model_fits_its_recipe():
    model = small_model.load_small_model()
    assert not model.training
    assert model.config == small_model.small_config(model.config.n_motifs)
    size = sum(p.numel() for p in model.parameters())
    assert 250_000 < size < 1_000_000
    x = torch.zeros(1, small_model.SMALL_WINDOW_BP, 4)
    out = model(x, torch.zeros(1, 2048), torch.zeros(1, model.config.n_motifs))
    assert out.shape == (1, 60)


def test_load_small_model_refuses_another_recipe(monkeypatch):
    monkeypatch.setattr(small_model, "_recipe_hash", lambda: "of another version")
    with pytest.raises(ValueError, match="make pretrain"):
        small_model.load_small_model()


def test_recipe_changes_with_the_simulator(monkeypatch):
    before = small_model._recipe_hash()
    monkeypatch.setattr("helpers.simulate._tracks.AMPLITUDE", 41.0)
    assert small_model._recipe_hash() != before
