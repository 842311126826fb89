"""The dictionaries of a small study on trial: contracts, nulls, planted answers."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from helpers import dictionaries, stages
from helpers.dictionaries import _front as fronts
from helpers.dictionaries import _training as training
from helpers.runs import Run
from helpers.sae import SAEConfig, planted_world, train
from helpers.token_classes import token_classes

CONFIG = SAEConfig(d_sae=48, k=4, n_epochs=2, batch_size=512)
pytestmark = pytest.mark.filterwarnings("ignore:mean L0 differs:UserWarning")


@pytest.fixture(scope="module", autouse=True)
def small_dictionaries():
    """Use dictionaries that train in a second."""
    original = stages.train_saes.__defaults__
    stages.train_saes.__defaults__ = (CONFIG,)
    yield
    stages.train_saes.__defaults__ = original


@pytest.fixture(scope="module")
def study(small_study, tmp_path_factory):
    return replace(small_study, run=Run(tmp_path_factory.mktemp("dictionaries")))


@pytest.fixture(scope="module")
def rows(study):
    return dictionaries.front_rows(study, 1)


@pytest.mark.filterwarnings("ignore:block:UserWarning")
def test_full_card_has_a_line_for_every_condition(study):
    card = dictionaries.full_card(study)
    samples = list(study.design["biosample"])
    for layer in study.blocks:
        lines = list(card.loc[layer].index)
        assert lines == ["all", "in_vitro", "in_vivo", *samples]
        by_context = card.loc[layer].loc[["in_vitro", "in_vivo"]]
        assert by_context["n_rows"].sum() == card.loc[(layer, "all"), "n_rows"]
        assert by_context["l0_mean"].mean() == pytest.approx(
            card.loc[(layer, "all"), "l0_mean"]
        )
    beside = stages.read_cards(study)
    for name in samples:
        assert card.loc[(0, name), "fvu"] == beside.loc[(0, name), "fvu"]
    shares = card[["recovered", "recovered_hidden", "gap_closed"]]
    assert np.isfinite(shares).all(axis=None)
    damage = card["loss_edited"] - card["loss"]
    expected = 1 - damage / (card["loss_mean"] - card["loss"])
    np.testing.assert_allclose(card["recovered"], expected, rtol=1e-6)


def test_full_card_warns_with_the_block_of_an_uneven_l0(study, monkeypatch):
    monkeypatch.setattr(dictionaries, "L0_TOLERANCE", 1.0)
    with pytest.warns(UserWarning, match=r"block [01]: mean L0 differs .* in '\w+'"):
        dictionaries.full_card(study)


def test_l0_spread_by_hand():
    index = pd.MultiIndex.from_product(
        [[3], ["all", "a", "b"]], names=["layer", "rows"]
    )
    card = pd.DataFrame({"l0_mean": [10.0, 8.0, 12.0]}, index)
    line = dictionaries.l0_spread(card).loc[3]
    assert (line["least"], line["most"]) == ("a", "b")
    assert line["ratio"] == 1.5


def test_probes_cover_targets_codes_and_sizes(study):
    table = dictionaries.probes(study)
    assert set(table["target"]) == {"context", "lineage", "token class"}
    assert set(table["code"]) == {"features", "principal components", "raw stream"}
    assert table["auc"].between(0.3, 1).all()
    width = study.model.config.d_model
    whole = table[table["n_numbers"] == width]
    raw, turned = (
        whole[whole["code"] == code].set_index(["layer", "target"])["auc"]
        for code in ("raw stream", "principal components")
    )
    # The same numbers in another basis: only the penalty tells them apart.
    np.testing.assert_allclose(raw, turned, atol=0.03)


def test_labels_are_those_of_the_tokens(study):
    index = stages.extract(study).rows(0, splits=["test"]).index
    labels = dictionaries._labels(study, index)
    windows = study.dataset.windows_of("test")
    classes = token_classes(study, windows)
    crop = study.model.config.crop
    for row in np.random.default_rng(0).integers(0, len(index), 60):
        b, window, token = index.iloc[row]
        sample = study.design.iloc[b]
        assert labels["context"][row] == sample["context"]
        column = token - crop
        known = classes[sample["lineage"]][list(windows).index(window)]
        expected = known[column] if 0 <= column < len(known) else ""
        assert labels["token class"][row] == expected


def test_stability_of_seeds_and_of_equal_dictionaries(study, monkeypatch):
    found = dictionaries.stability(study, 0)
    assert list(found.pairs["second"]) == ["1", "2", "2", "scrambled"]
    features = found.features
    assert list(features["feature"]) == list(range(CONFIG.d_sae))
    assert set(features["layer"]) == {0}
    both = features[["cosine1", "cosine2"]]
    np.testing.assert_allclose(features["stability"], both.mean(axis=1), rtol=1e-6)
    assert (features["robust"] == (both > 0.7).all(axis=1)).all()
    own = dictionaries.seed_saes(study, 0)
    assert [sae.provenance["config"]["random_state"] for sae in own] == [0, 1, 2]
    rows = stages.extract(study).rows(0, splits=["select"]).rows
    null = dictionaries._scrambled(own[1], rows, 0)
    # Energy along every principal direction stays, direction does not.
    basis = dictionaries.principal_components(rows).components
    np.testing.assert_allclose(
        (null.W_dec @ basis.T).abs(), (own[1].W_dec @ basis.T).abs(), atol=1e-4
    )
    with pytest.raises(ValueError, match=r"blocks \[0, 1\]; got 5"):
        dictionaries.stability(study, 5)


@pytest.mark.slow
def test_controls_rank_as_they_must(study):
    table = dictionaries.controls(study, 1)
    assert table.loc["random directions", "fvu"] > table.loc["seed 0", "fvu"]
    components = table.filter(like="components", axis=0)
    # The largest scores of a token leave the least that so many scores can leave.
    assert components["fvu"].iloc[1] <= components["fvu"].iloc[0]
    assert table["recovered"].drop("untrained model").notna().all()
    assert np.isnan(table.loc["untrained model", "recovered"])
    assert table.filter(like="context").notna().all(axis=None)
    assert len(table) == 9


def test_front_trades_error_for_sparsity(study, monkeypatch):
    monkeypatch.setattr(fronts, "FRONT_KS", (2, 8))
    monkeypatch.setattr(fronts, "FRONT_WIDTHS", (2, 4))
    table = dictionaries.front(study, 1)
    fvu = table.pivot_table("fvu", ["architecture", "d_sae"], "k")
    assert (fvu[2] > fvu[8]).all()
    assert set(table["architecture"]) == {"BatchTopK", "Matryoshka", "PCA"}
    trained = table[table["architecture"] != "PCA"]
    np.testing.assert_allclose(trained["l0_mean"], trained["k"], rtol=0.2)


def test_peer_points_show_on_their_own_rows_only(rows, monkeypatch):
    shipped = fronts.resources.files("helpers") / "resources" / "sae_front"
    provenance = json.loads((shipped / "provenance.json").read_text())
    other = dictionaries.peer_front(rows)
    assert not other.same_rows
    assert not len(other.points)
    assert other.provenance["versions"]["dictionary-learning"]
    stated = provenance["fingerprint"]
    monkeypatch.setattr(fronts, "fingerprint", lambda _: [v * 1.0001 for v in stated])
    same = dictionaries.peer_front(rows)
    assert same.same_rows
    assert set(same.points["contender"]) >= {"helpers", "dictionary_learning"}


def test_fingerprint_sees_order_and_scale_but_not_rounding(rows):
    stated = dictionaries.fingerprint(rows)
    rounded = rows._replace(train=rows.train * (1 + 1e-5))
    np.testing.assert_allclose(dictionaries.fingerprint(rounded), stated, rtol=1e-4)
    for other in (rows.train.flip(0), rows.train * 1.05):
        found = dictionaries.fingerprint(rows._replace(train=other))
        assert not np.allclose(found, stated, rtol=1e-3)


def test_with_gamma_sets_the_ratio_and_keeps_the_spread(rows):
    moved = dictionaries.with_gamma(rows.train, 7.0)
    centered = moved - moved.mean(0)
    gamma = moved.mean(0).norm() / centered.square().sum(1).mean().sqrt()
    assert float(gamma) == pytest.approx(7, rel=1e-3)
    own = rows.train - rows.train.mean(0)
    np.testing.assert_allclose(centered, own, atol=1e-3 * float(own.abs().max()))


def test_centering_wakes_features_at_the_start():
    """512 features of 64 dimensions, k = 16, |mean| / |SD| = 5."""
    world = planted_world(4096).rows
    stretched = dictionaries.with_gamma(world, 5.0)
    assert dictionaries.never_selected(stretched, 512, 16, center=True) < 0.01
    assert dictionaries.never_selected(stretched, 512, 16, center=False) > 0.5


def test_uncentered_training_is_training_where_the_mean_is_0():
    world = planted_world(8_000, offset=0.0).rows
    world = world - world.mean(0)
    config = dictionaries.front_config(96, 6, precision="float32")
    plain = train(world, config, heldout=world)
    other = training._train_uncentered(world, config, heldout=world)
    first, second = (
        dictionaries.score_rows(found.sae, world)["fvu"] for found in (plain, other)
    )
    assert first == pytest.approx(second, rel=0.02)
    assert len(plain.history) == len(other.history)


@pytest.mark.slow
def test_training_choices_name_every_run(study):
    found = dictionaries.training_choices(study, 0)
    assert list(found.table["centered"]) == [True] * 4 + [False] * 3
    assert list(found.table["rescue"][:4]) == list(training.RESCUES)
    assert found.table["never_selected"].between(0, 1).all()
    steps = found.history.groupby(["centered", "gamma", "rescue"]).size()
    assert steps.min() == steps.max()


def test_parent_recovery_by_hand():
    rows = []
    for seed, gain in enumerate((0.1, 0.2, 0.3)):
        for name, more in (("BatchTopK", 0.0), ("Matryoshka", gain)):
            scores = dict.fromkeys(
                ("parent_recall", "parent_f1", "mean_max_cosine"), 0.5 + more
            )
            rows.append(
                {"architecture": name, "d_sae": 8, "k": 2, "seed": seed} | scores
            )
    alone = [row | {"k": 4} for row in rows[:2]]  # one world says nothing
    table = dictionaries.parent_recovery(pd.DataFrame(rows + alone))
    line = table.loc[(2, "parent_recall")]
    assert line["difference"] == pytest.approx(0.2)
    # t(0.975, 2) = 4.303; the standard error is 0.1 / sqrt 3.
    assert line["high"] - line["low"] == pytest.approx(
        2 * 4.303 * 0.1 / 3**0.5, rel=1e-3
    )
    assert set(table.index.get_level_values("k")) == {2}


@pytest.mark.slow
def test_nested_dictionaries_keep_planted_parents_where_sparsity_is_tight(tmp_path):
    table = dictionaries.world_recovery(Run(tmp_path))
    line = dictionaries.parent_recovery(table).loc[(4, "parent_recall")]
    assert line["low"] > 0
    assert line["n"] == 5


@pytest.mark.slow
def test_architectures_have_a_line_per_seed(study):
    table = dictionaries.architectures(study, 0)
    assert table.groupby("architecture")["seed"].apply(list).to_dict() == {
        "BatchTopK": [0, 1, 2],
        "Matryoshka": [0, 1, 2],
    }
    assert table["stability"].between(0, 1).all()
    assert torch.is_tensor(dictionaries.front_rows(study, 0).train)
