import copy
import json
import logging
import math

import numpy as np
import pytest
import torch

from helpers.sae import BatchTopKSAE, calibrate_threshold, evaluate, train
from helpers.sae import _card as _sae_card
from helpers.sae import _threshold as _sae_threshold
from sae_rows import planted_rows, small_config


def mirror_sae(d_in=4, gain=1.0):
    """The SAE that returns gain * x: one feature for each sign of each coordinate."""
    sae = BatchTopKSAE(d_in, 2 * d_in, d_in)
    eye = torch.eye(d_in)
    sae.W_enc.copy_(torch.cat([eye, -eye], dim=1))
    sae.W_dec.copy_(gain * torch.cat([eye, -eye]))
    return sae


@pytest.fixture(scope="module")
def trained():
    rows, directions = planted_rows(32_000, offset=3.0)
    config = small_config(n_epochs=8)
    sae, history = train(rows[:16_000], config, heldout=rows[16_000:24_000])
    return sae, history, rows, directions


# --- the model ---------------------------------------------------------------------


def test_encode_follows_the_formula_in_raw_units():
    sae = BatchTopKSAE(2, 3, 1)
    sae.W_enc.copy_(torch.tensor([[1.0, 0.0, -1.0], [0.0, 1.0, 0.0]]))
    sae.W_dec.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
    sae.b_enc.copy_(torch.tensor([0.0, 0.5, 0.0]))
    sae.b_dec.copy_(torch.tensor([0.25, 0.0]))
    sae.mean.copy_(torch.tensor([10.0, 20.0]))
    sae.scale.fill_(2.0)
    sae.threshold.fill_(0.75)
    x = torch.tensor([[12.5, 20.0], [12.0, 20.5], [7.5, 19.0]])
    # (x - mean) / scale - b_dec = (1, 0), (0.75, 0.25), (-1.5, -0.5)
    h = torch.tensor([[1.0, 0.5, 0.0], [0.75, 0.75, 0.0], [0.0, 0.0, 1.5]])
    torch.testing.assert_close(sae.pre_activations(x), h)
    z = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.5]])
    torch.testing.assert_close(sae.encode(x), z)  # 0.75 itself does not fire
    expected = torch.tensor([[12.5, 20.0], [10.5, 20.0], [7.5, 20.0]])
    torch.testing.assert_close(sae(x), expected)


def test_encode_does_not_depend_on_neighbors(trained):
    sae, _, rows, _ = trained
    together = sae.encode(rows[:512])
    alone = torch.cat([sae.encode(row[None]) for row in rows[:512]])
    among_giants = sae.encode(torch.cat([rows[:512], 1e3 * rows[512:1024]]))[:512]
    torch.testing.assert_close(alone, together)
    torch.testing.assert_close(among_giants, together)


def test_decoder_directions_are_what_one_unit_writes(trained):
    sae, _, rows, _ = trained
    feature_acts = sae.encode(rows[:8])
    more = feature_acts.clone()
    more[:, 5] += 1
    written = sae.decode(more) - sae.decode(feature_acts)
    expected = sae.decoder_directions[5].expand(8, -1)
    torch.testing.assert_close(written, expected, atol=1e-5, rtol=1e-4)


def test_encode_passes_gradients_to_activations_only(trained):
    sae, _, rows, _ = trained
    x = rows[:4].clone().requires_grad_()
    feature_acts = sae.encode(x)
    feature_acts.sum().backward()
    fires = (feature_acts > 0).float()
    torch.testing.assert_close(x.grad, fires @ sae.W_enc.T / sae.scale)
    assert not any(parameter.requires_grad for parameter in sae.parameters())


def test_encode_rejects_another_width():
    with pytest.raises(ValueError, match=r"\(\.\.\., 4\); got \(3, 5\)"):
        mirror_sae().encode(torch.zeros(3, 5))


def test_save_and_load_round_trip(trained, tmp_path):
    sae, _, rows, _ = trained
    sae.save(tmp_path / "block0")
    loaded = BatchTopKSAE.load(tmp_path / "block0")
    assert torch.equal(loaded.encode(rows[:64]), sae.encode(rows[:64]))
    assert loaded.provenance == sae.provenance
    assert sorted(path.name for path in (tmp_path / "block0").iterdir()) == [
        "sae.json",
        "sae.safetensors",
    ]


def test_load_names_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match="sae.json"):
        BatchTopKSAE.load(tmp_path)
    mirror_sae().save(tmp_path)
    weights = tmp_path / "sae.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match="sae.safetensors: damaged"):
        BatchTopKSAE.load(tmp_path)
    mirror_sae().save(tmp_path)
    (tmp_path / "sae.json").write_text(json.dumps({"d_in": 4}))
    with pytest.raises(ValueError, match="sae.json.*d_sae"):
        BatchTopKSAE.load(tmp_path)


# --- training ----------------------------------------------------------------------


def test_train_recovers_planted_directions(trained):
    sae, history, _, directions = trained
    cosine = (directions @ sae.W_dec.T).max(dim=1).values
    assert cosine.min() > 0.8  # a random dictionary of this size reaches 0.5
    assert cosine.quantile(0.3) > 0.99
    assert history["fvu"].iloc[-1] < 0.02


def test_training_batches_hold_exactly_k_and_unit_decoder_rows(trained):
    sae, history, _, _ = trained
    assert (history["l0"] == 3).all()
    assert len(history) == sae.provenance["n_steps"] == 8 * (16_000 // 256)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(32))


def test_threshold_gives_k_features_on_rows_never_seen(trained):
    sae, _, rows, _ = trained
    calibrated = (sae.encode(rows[16_000:24_000]) > 0).sum(1).float().mean()
    fresh = (sae.encode(rows[24_000:]) > 0).sum(1).float().mean()
    assert float(calibrated) == pytest.approx(3, rel=1e-3)
    assert float(fresh) == pytest.approx(3, rel=0.02)


def test_threshold_holds_after_a_short_run_and_without_heldout_rows():
    rows, _ = planted_rows(40_000)
    sae, history = train(rows[:20_000], small_config(n_epochs=1, batch_size=2048))
    assert len(history) < 10
    fresh = (sae.encode(rows[20_000:]) > 0).sum(1).float().mean()
    assert float(fresh) == pytest.approx(3, rel=0.02)


def test_threshold_is_streamed_exactly(trained, monkeypatch):
    sae, _, rows, _ = trained
    expected = sae.pre_activations(rows).flatten().sort(descending=True).values
    sae = copy.deepcopy(sae)
    for chunk_entries in (100 * sae.d_sae, 10**8):
        monkeypatch.setattr(_sae_threshold, "_ENTRIES", chunk_entries)
        sae.threshold.fill_(-1)
        calibrate_threshold(sae, rows)
        found = float(sae.threshold)
        assert found == pytest.approx(float(expected[len(rows) * 3]), abs=1e-6)


def test_train_is_blind_to_offset_and_unit():
    rows, _ = planted_rows(4_000)
    config = small_config(n_epochs=2)
    plain, history = train(rows, config)
    moved, moved_history = train(8 * rows + 64, config)
    np.testing.assert_allclose(history["fvu"], moved_history["fvu"], rtol=0.02)
    assert moved.provenance["gamma"] > 10 > plain.provenance["gamma"]
    assert float(moved.scale) == pytest.approx(8 * float(plain.scale), rel=1e-5)


def test_train_reports_gamma():
    rows, _ = planted_rows(1_000, offset=2.0)
    sae, _ = train(rows, small_config(n_epochs=1))
    gamma = rows.mean(0).norm() / rows.var(0, correction=0).sum().sqrt()
    assert sae.provenance["gamma"] == pytest.approx(float(gamma), rel=1e-5)


def test_train_repeats_itself_from_the_seed():
    rows, _ = planted_rows(1_000)
    first, _ = train(rows, small_config(n_epochs=2))
    again, _ = train(rows, small_config(n_epochs=2))
    other, _ = train(rows, small_config(n_epochs=2, random_state=1))
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert not torch.allclose(first.W_dec, other.W_dec)


def test_train_leaves_the_global_generators_alone():
    rows, _ = planted_rows(1_000)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    train(rows, small_config(n_epochs=1))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_train_reads_half_precision_from_a_memory_map(tmp_path):
    rows = planted_rows(2_000)[0].numpy().astype(np.float16)
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    from_disk, _ = train(mapped, small_config(n_epochs=1))
    from_memory, _ = train(torch.from_numpy(rows), small_config(n_epochs=1))
    assert torch.equal(from_disk.W_dec, from_memory.W_dec)
    assert torch.equal(from_disk.threshold, from_memory.threshold)


def test_train_survives_repeated_rows():
    rows = planted_rows(64)[0].repeat(8, 1)
    sae, history = train(rows, small_config(n_epochs=3))
    assert math.isfinite(history["fvu"].iloc[-1])
    assert torch.isfinite(sae.W_dec).all()


def test_progress_sees_every_step(caplog):
    seen = []
    with caplog.at_level(logging.INFO, logger="helpers.sae"):
        _, history = train(planted_rows(1_000)[0], small_config(), progress=seen.append)
    assert [record["step"] for record in seen] == history["step"].tolist()
    assert seen[-1]["step"] == seen[-1]["n_steps"] == 4 * 3
    assert sum("epoch" in message for message in caplog.messages) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 32}, "k must be below d_sae = 32; got 32"),
        ({"k": 0}, "k must be an integer of at least 1; got 0"),
        ({"batch_size": 2.5}, "batch_size"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"warmup": 1.5}, "warmup must be a fraction"),
        ({"aux_coefficient": -1.0}, "aux_coefficient"),
    ],
)
def test_config_rejects(changes, message):
    with pytest.raises(ValueError, match=message):
        small_config(**changes)


def test_train_rejects_unusable_rows():
    rows, _ = planted_rows(1_000)
    config = small_config()
    with pytest.raises(ValueError, match="255 rows, fewer than a batch of 256"):
        train(rows[:255], config)
    with pytest.raises(ValueError, match=r"activations must have shape .*\(1000,\)"):
        train(rows[:, 0], config)
    with pytest.raises(ValueError, match="heldout must have shape .*32"):
        train(rows, config, heldout=rows[:, :4])
    with pytest.raises(ValueError, match="floating dtype; got torch.int64"):
        train(rows.long(), config)
    with pytest.raises(ValueError, match="constant"):
        train(torch.full((300, 4), 0.1), config)
    for bad in (math.nan, math.inf):
        broken = rows.clone()
        broken[777, 3] = bad
        with pytest.raises(ValueError, match="activations .* row 777"):
            train(broken, config)
        with pytest.raises(ValueError, match="heldout .* row 777"):
            train(rows, config, heldout=broken)


# --- the card ----------------------------------------------------------------------


def test_evaluate_equals_the_definitions(trained, monkeypatch):
    sae, _, rows, _ = trained
    rows = rows[20_000:21_000]
    groups = np.where(np.arange(1_000) < 300, "in_vitro", "in_vivo")
    monkeypatch.setattr(_sae_card, "CHUNK_ROWS", 77)
    card = evaluate(sae, rows, groups=groups)
    assert card.table.index.tolist() == ["all", "in_vitro", "in_vivo"]
    for name, part in {
        "all": rows,
        "in_vitro": rows[:300],
        "in_vivo": rows[300:],
    }.items():
        z, x_hat = sae.encode(part), sae(part)
        x, centered = part.double(), (part - part.mean(0)).double()
        fvu = (x - x_hat).square().sum() / centered.square().sum()
        l0 = (z > 0).sum(1).double()
        line = card.table.loc[name]
        assert line["n_rows"] == len(part)
        assert line["fvu"] == pytest.approx(float(fvu), rel=1e-4)
        assert line["l0_mean"] == pytest.approx(float(l0.mean()))
        assert line["l0_sd"] == pytest.approx(float(l0.std(correction=0)))
        assert line["norm_mean"] == pytest.approx(float(x.norm(dim=1).mean()))
        dead = 100 * float((z == 0).all(0).double().mean())
        assert line["dead_percent"] == pytest.approx(dead)
    density = (sae.encode(rows) > 0).double().mean(0)
    np.testing.assert_allclose(card.density, density)
    cosine = (sae.W_dec @ sae.W_dec.T).fill_diagonal_(-1).max(1).values
    np.testing.assert_allclose(card.decoder_cosine, cosine, atol=1e-6)


@pytest.mark.parametrize(("gain", "fvu"), [(1.0, 0.0), (0.5, 0.25), (1.25, 0.0625)])
def test_evaluate_measures_shrinkage_of_a_known_gain(gain, fvu):
    rows = torch.randn(500, 4, generator=torch.Generator().manual_seed(1))
    rows -= rows.mean(0)
    table = evaluate(mirror_sae(gain=gain), rows).table
    assert table.loc["all", "fvu"] == pytest.approx(fvu, abs=1e-6)
    assert table.loc["all", "shrinkage"] == pytest.approx(1 - gain, abs=1e-6)


def test_mean_of_a_group_counts_as_unexplained_variance_of_none():
    rows = torch.randn(1_000, 4, generator=torch.Generator().manual_seed(2))
    rows[500:] += 100
    sae = mirror_sae(gain=0.5)
    sae.mean.copy_(rows.mean(0))
    table = evaluate(sae, rows, groups=[0] * 500 + [1] * 500).table
    assert table.loc["all", "fvu"] == pytest.approx(0.25, rel=1e-4)
    assert table.loc[0, "fvu"] > 100  # misses the group's own offset by half


def test_evaluate_warns_of_unequal_sparsity():
    rows = torch.randn(1_000, 4, generator=torch.Generator().manual_seed(3))
    rows[:500] *= 2
    sae = mirror_sae()
    sae.threshold.fill_(1.0)
    with pytest.warns(UserWarning, match="mean L0 differs .* 'b', .* 'a'"):
        evaluate(sae, rows, groups=["a"] * 500 + ["b"] * 500)


def test_evaluate_rejects_unusable_input():
    sae, rows = mirror_sae(), torch.zeros(10, 4)
    with pytest.raises(ValueError, match=r"groups must have shape \(10,\)"):
        evaluate(sae, rows, groups=["a"])
    with pytest.raises(ValueError, match="groups: row 2 has no label"):
        evaluate(sae, rows, groups=["a", "b", None, *"abababa"])
    with pytest.raises(ValueError, match="must not contain 'all'"):
        evaluate(sae, rows, groups=["all"] * 10)
    with pytest.raises(ValueError, match=r"shape \(n_tokens, 4\); got \(10, 5\)"):
        evaluate(sae, torch.zeros(10, 5))
    rows[3, 1] = math.nan
    with pytest.raises(ValueError, match="row 3"):
        evaluate(sae, rows)
