"""Planted dictionaries, stability over seeds, and controls."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.sae import (
    BatchTopKSAE,
    SAEConfig,
    evaluate,
    match_features,
    pca_fvu,
    planted_world,
    recovery,
    seed_stability,
    subspace_overlap,
    train,
)
from sae_rows import planted_rows

CONFIG = SAEConfig(d_sae=192, k=6, batch_size=512, n_epochs=5)


@pytest.fixture(scope="module")
def worlds():
    return planted_world(60_000), planted_world(10_000, draw=1)


@pytest.fixture(scope="module")
def trained(worlds):
    rows = worlds[0].rows
    nested = replace(CONFIG, matryoshka=(48, 192))
    return {
        "plain": train(rows, CONFIG).sae,
        "seed 1": train(rows, replace(CONFIG, random_state=1)).sae,
        "nested": train(rows, nested).sae,
        "frozen": train(rows, replace(CONFIG, frozen_decoder=True)).sae,
    }


def perfect_sae(world):
    """One that knows the dictionary and reads it from an orthogonal encoder."""
    sae = BatchTopKSAE(world.directions.shape[1], len(world.directions), 1)
    sae.W_dec.copy_(world.directions)
    sae.W_enc.copy_(torch.linalg.pinv(world.directions))
    sae.threshold.fill_(1e-3)
    return sae


def test_planted_world_is_what_it_says(worlds):
    world, again = worlds[0], planted_world(60_000)
    assert torch.equal(world.rows, again.rows)
    assert torch.equal(world.directions, worlds[1].directions)
    assert not torch.equal(world.rows[:10], worlds[1].rows[:10])
    fires = (world.acts > 0).numpy()
    assert fires.sum(1).mean() == pytest.approx(8, rel=0.02)
    children = np.flatnonzero(world.parent >= 0)
    assert len(children) == 64
    assert not (fires[:, children] & ~fires[:, world.parent[children]]).any()
    for family in range(16):  # one child at a time
        assert fires[:, world.parent == family].sum(1).max() == 1
    assert not torch.equal(
        planted_world(10, random_state=1).directions, world.directions
    )
    with pytest.raises(ValueError, match="n_features must be at least 80"):
        planted_world(10, n_features=79)


def test_recovery_of_a_known_answer():
    world = planted_world(
        2_000, d_in=16, n_features=12, n_parents=2, n_children=2, n_active=2, noise=0.0
    )
    centered = world._replace(rows=world.acts @ world.directions)
    sae = perfect_sae(centered)
    found = recovery(sae, centered)
    assert found.summary.min() > 0.999
    assert (
        list(found.features["kind"]) == ["parent"] * 2 + ["child"] * 4 + ["loner"] * 6
    )
    absorbed = copy.deepcopy(sae)
    # Features of children take over where they fire; that of the parent keeps silent.
    children = np.flatnonzero(world.parent == 0)
    absorbed.W_enc[:, 0] -= 20 * absorbed.W_enc[:, children].sum(1)
    lost = recovery(absorbed, centered).features
    assert lost.loc[0, "recall"] < 0.5
    assert lost.loc[0, "f1"] < 0.8
    assert lost.loc[1:, "f1"].min() > 0.999
    narrow = BatchTopKSAE(16, 5, 1)
    narrow.W_dec.copy_(world.directions[:5])
    part = recovery(narrow, centered).features
    np.testing.assert_allclose(part["matched"][:5], 1, rtol=1e-5)
    assert part["matched"][5:].isna().all()


def test_training_recovers_the_dictionary_and_random_directions_do_not(trained, worlds):
    found = {name: recovery(sae, worlds[1]).summary for name, sae in trained.items()}
    assert found["plain"]["mean_max_cosine"] > 0.8
    assert found["frozen"]["mean_max_cosine"] < 0.5
    fvu = {
        name: evaluate(sae, worlds[1].rows).table.loc["all", "fvu"]
        for name, sae in trained.items()
    }
    assert fvu["plain"] < 0.7 * fvu["frozen"]


def test_nested_prefixes_keep_parents_whole(trained, worlds):
    plain, nested = (
        recovery(trained[n], worlds[1]).summary for n in ("plain", "nested")
    )
    assert nested["parent_recall"] > plain["parent_recall"] + 0.03
    assert nested["parent_f1"] > plain["parent_f1"]


def test_training_leaves_few_features_dead(trained, worlds):
    for name in ("plain", "seed 1", "nested"):
        line = evaluate(trained[name], worlds[1].rows).table.loc["all"]
        assert line["dead_percent"] < 2  # three features
        assert line["l0_mean"] == pytest.approx(6, rel=0.02)


def test_match_features_undoes_a_permutation():
    first = BatchTopKSAE(8, 20, 2)
    second = copy.deepcopy(first)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    second.W_dec.copy_(first.W_dec[order])
    match = match_features(first, second)
    assert np.array_equal(order.numpy()[match.partner], np.arange(20))
    np.testing.assert_allclose(match.cosine, 1, rtol=1e-6)
    with pytest.raises(ValueError, match=r"same shape; got .*\(20, 8\) and \(21, 8\)"):
        match_features(first, BatchTopKSAE(8, 21, 2))


def test_seed_stability_tells_training_from_chance(trained):
    table = seed_stability([trained["plain"], trained["seed 1"], trained["nested"]])
    assert list(table) == ["partner1", "cosine1", "partner2", "cosine2", "stability"]
    np.testing.assert_allclose(
        table["stability"], (table["cosine1"] + table["cosine2"]) / 2, rtol=1e-6
    )
    assert sorted(table["partner1"]) == list(range(192))
    random = [BatchTopKSAE(64, 192, 6, random_state=s) for s in (0, 1)]
    assert table["stability"].mean() > seed_stability(random)["stability"].mean() + 0.2
    with pytest.raises(ValueError, match="at least two SAEs; got 1"):
        seed_stability(random[:1])


def test_subspace_overlap_of_equal_random_and_orthogonal_spans():
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(5, 200, generator=generator)
    mixed = torch.randn(7, 5, generator=generator) @ first
    assert subspace_overlap(first, mixed) == pytest.approx(1, abs=1e-6)
    other = torch.randn(5, 200, generator=generator)
    assert subspace_overlap(first, other) < 0.1
    eye = torch.eye(6)
    assert subspace_overlap(eye[:3], eye[3:]) == pytest.approx(0, abs=1e-12)


def test_pca_fvu_equals_projection(worlds):
    rows, heldout = (planted_rows(3_000, seed=s, offset=4.0)[0] for s in (1, 2))
    found = pca_fvu(rows, heldout, [0, 3, 32])
    mean = rows.mean(0)
    _, _, components = torch.linalg.svd(rows - mean, full_matrices=False)
    for n in (0, 3, 32):
        basis = components[:n]
        x_hat = (heldout - mean) @ basis.T @ basis + mean
        error = (heldout - x_hat).square().sum()
        expected = error / (heldout - heldout.mean(0)).square().sum()
        assert found[n] == pytest.approx(float(expected), rel=1e-3, abs=1e-5)
    with pytest.raises(ValueError, match="0 to 32; got 33"):
        pca_fvu(rows, heldout, [1, 33])
    with pytest.raises(ValueError, match="heldout must have shape"):
        pca_fvu(rows, heldout[:, :5], [1])
