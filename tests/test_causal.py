"""Causal tests on a planted model, whose answers follow by hand, and on a real one.

The planted stream has one channel per feature, features are the channels themselves,
and the log1p prediction is the sum of the channels the model reads.
"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from helpers import _selection, _steering, causal, stages
from helpers.activations import WindowSummary
from helpers.runs import Run
from helpers.sae import SAEConfig
from helpers.tissues import read_tissues
from helpers.windows import WindowDataset
from toy import ToySAE

N_FEATURES = 24
LEVEL, DRIVER, IDLE = 0, 1, 2  # read, read, not read; the rest is noise nobody reads
SHIFTS = (0.7, 1.4)  # of the two lineages


class Planted(nn.Module):
    """Reads some channels of a stream that its two blocks leave alone."""

    def __init__(self, n_tokens, read=(LEVEL, DRIVER)):
        super().__init__()
        self.config = SimpleNamespace(n_tokens=n_tokens, crop=2)
        self.blocks = nn.ModuleList([nn.Identity(), nn.Identity()])
        self.read = list(read)

    def run_blocks(self, x, start=0, stop=None):
        return x

    def head(self, x):
        return x[:, 2:-2, self.read].sum(dim=2).expm1()


def plant(study, folder, monkeypatch, streams, significant, read=(LEVEL, DRIVER)):
    """Return a study in which every stage before the causal tests is planted."""
    n_bio, n_windows, n_tokens, d = streams.shape
    streams = torch.from_numpy(streams.astype(np.float32))
    sae = ToySAE(torch.eye(d))
    acts = sae.encode(streams)
    summary = WindowSummary(
        acts.mean(dim=2).numpy(), (acts > 0).float().mean(dim=2).numpy()
    )
    names = list(study.design["biosample"])

    def rows(layer, *, biosamples, windows):
        assert list(windows) == sorted(set(windows)), "a store sorts what it is asked"
        (name,) = biosamples
        return SimpleNamespace(rows=streams[names.index(name), windows].flatten(0, 1))

    cds = np.zeros(d)
    cds[significant] = 10.0 * np.arange(len(significant), 0, -1)
    cds[significant[-1:]] *= -1
    scores = pd.DataFrame(
        {
            "layer": np.repeat(study.blocks, d),
            "feature": np.tile(np.arange(d), len(study.blocks)),
            "cds": np.tile(cds, len(study.blocks)),
            "p_bonferroni": np.tile(np.where(cds == 0, 1.0, 1e-6), len(study.blocks)),
        }
    )
    planted = {
        "extract": lambda _: SimpleNamespace(rows=rows),
        "train_saes": lambda _: dict.fromkeys(study.blocks, sae),
        "summaries": lambda _: dict.fromkeys(study.blocks, summary),
        "score_context": lambda _: scores,
    }
    for module in (_selection, _steering, causal):
        for name, stage in planted.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, stage)
    run = Run(folder)
    made = ["activations.zarr", "cds.parquet", *(f"sae/block{b}" for b in study.blocks)]
    for name in made:
        run.artefact(name, {}, lambda path: path.mkdir())
    return replace(study, run=run, model=Planted(n_tokens, read))


def noise(study, seed=0):
    """Return streams of positive noise, alike in both contexts, sparse or dense."""
    dataset = study.dataset
    shape = (len(study.design), len(dataset.windows), dataset.n_tokens, N_FEATURES)
    rng = np.random.default_rng(seed)
    fires = rng.random(shape) < np.linspace(0.2, 0.9, N_FEATURES)
    return rng.gamma(2.0, 0.2, shape) * fires


def log_signal(study):
    dataset, windows = study.dataset, np.arange(len(study.dataset.windows))
    of = [dataset.target(windows, b) for b in range(len(study.design))]
    return np.log1p(np.stack(of))


def is_vivo(study):
    return (study.design["context"] == "in_vivo").to_numpy()


def plant_copy(study, folder, monkeypatch):
    """A model that copies the measured track; LEVEL holds it, IDLE is only large."""
    streams = noise(study)
    streams[..., LEVEL] = log_signal(study)
    streams[..., DRIVER] = 0
    streams[..., IDLE] += 9 * is_vivo(study)[:, None, None]
    return plant(study, folder, monkeypatch, streams, [IDLE, LEVEL])


def plant_shift(study, folder, monkeypatch):
    """Contexts that differ by a constant per lineage, which DRIVER alone carries."""
    streams = noise(study)
    signal = log_signal(study)
    streams[..., DRIVER] = 0
    wobble = np.random.default_rng(1).normal(0, 0.01, streams.shape[1])
    for lineage, shift in zip(study.lineages, SHIFTS, strict=False):
        pair = list(study.pair(lineage))
        streams[pair, ..., LEVEL] = signal[pair].mean(axis=0)
        streams[pair[1], ..., DRIVER] = shift * (1 + wobble[:, None])
    return plant(study, folder, monkeypatch, streams, [DRIVER])


@pytest.fixture
def copied(small_study, tmp_path, monkeypatch):
    return plant_copy(small_study, tmp_path, monkeypatch)


@pytest.fixture
def shifted(small_study, tmp_path, monkeypatch):
    return plant_shift(small_study, tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def ablated(small_study, tmp_path_factory):
    """The copying model with its tables."""
    with pytest.MonkeyPatch.context() as patch:
        study = plant_copy(small_study, tmp_path_factory.mktemp("ablated"), patch)
        table, random = causal.ablation(study), causal.ablation_random(study)
        study.run.path("ablation_random.parquet").unlink()
        again = causal.ablation_random(study)
    pd.testing.assert_frame_equal(again, random)
    return SimpleNamespace(study=study, table=table, random=random)


@pytest.fixture(scope="module")
def steered(small_study, tmp_path_factory):
    """The model whose contexts differ by constants, with its tables."""
    with pytest.MonkeyPatch.context() as patch:
        study = plant_shift(small_study, tmp_path_factory.mktemp("steered"), patch)
        sweep, table = causal.steering_sweep(study), causal.steering(study)
    return SimpleNamespace(study=study, sweep=sweep, table=table)


def means_over_windows(values, member):
    """Average over tokens of a class within windows, then over windows."""
    per_window = [v[m].mean() for v, m in zip(values, member, strict=True) if m.any()]
    return np.mean(per_window)


# --- What is chosen -------------------------------------------------------------------


def test_token_classes_follow_the_rule(small_study):
    dataset, windows = small_study.dataset, np.array([3, 11, 60])
    classes = causal.token_classes(small_study, windows)
    crop = small_study.model.config.crop
    for lineage, found in classes.items():
        low, high = (dataset.target(windows, b) + 1 for b in small_study.pair(lineage))
        peak0, peak1 = (dataset.in_peak(b)[windows] for b in small_study.pair(lineage))
        for w in range(len(windows)):
            for t, name in enumerate(found[w]):
                a, b = low[w, t + crop], high[w, t + crop]
                in0, in1 = peak0[w, t + crop], peak1[w, t + crop]
                expected = {
                    "vivo-up": in1 and b / a >= 3,
                    "vitro-up": in0 and a / b >= 3,
                    "invariant": in0 and in1 and max(a / b, b / a) < 1.5,
                    "background": not in0 and not in1,
                }
                assert [k for k, v in expected.items() if v] == ([name] if name else [])
        assert found.shape == (3, dataset.n_tokens - 2 * crop)


def test_token_classes_swap_with_the_contexts(small_study):
    windows = np.arange(8)
    swapped = SimpleNamespace(
        dataset=small_study.dataset,
        model=small_study.model,
        lineages=small_study.lineages,
        pair=lambda lineage: small_study.pair(lineage)[::-1],
    )
    forward = causal.token_classes(small_study, windows)
    backward = causal.token_classes(swapped, windows)
    for lineage, classes in forward.items():
        up, down = classes == "vivo-up", classes == "vitro-up"
        assert np.array_equal(backward[lineage] == "vitro-up", up)
        assert np.array_equal(backward[lineage] == "vivo-up", down)
        same = ~up & ~down
        assert np.array_equal(backward[lineage][same], classes[same])


def test_spread_windows_takes_blocks_in_turn(small_study):
    windows = small_study.dataset.windows.copy()
    windows["block"] = windows["chrom"]  # 4 windows per block
    dataset = SimpleNamespace(
        windows=windows, windows_of=small_study.dataset.windows_of
    )
    study = replace(small_study, dataset=dataset)
    n_blocks = windows.query("split == 'test'")["block"].nunique()
    for n in (2, n_blocks, n_blocks + 3, 1000):
        drawn = causal.spread_windows(study, "test", n)
        assert set(windows["split"].iloc[drawn]) == {"test"}
        assert list(drawn) == sorted(set(drawn))
        counts = windows["block"].iloc[drawn].value_counts()
        assert len(drawn) == min(n, 4 * n_blocks)
        assert counts.max() - counts.reindex(windows["block"].iloc[drawn]).min() <= 1
        assert len(counts) == min(n, n_blocks)
        assert np.array_equal(drawn, causal.spread_windows(study, "test", n))


def test_context_features_are_the_strongest_and_pools_exclude_them(shifted):
    for features in causal.context_features(shifted).values():
        assert list(features.selected) == list(features.significant) == [DRIVER]
        assert DRIVER not in features.pools["any other"]
        assert len(features.pools["any other"]) == N_FEATURES - 1


def test_context_features_rank_by_absolute_score(copied):
    # Scores 20 and -10: the negative one comes second, not first or never.
    for features in causal.context_features(copied).values():
        assert list(features.significant) == [IDLE, LEVEL]


def test_context_features_are_as_many_as_random_sets_match(
    small_study, tmp_path, monkeypatch
):
    streams = noise(small_study)
    # Five features that fire and write like no other ones come first in rank.
    streams[..., :5] = 50.0
    study = plant(small_study, tmp_path, monkeypatch, streams, list(range(12)))
    for features in causal.context_features(study).values():
        match = _selection.matched_sets(features, "any other", 49, study.seed)
        assert len(features.selected) in (5, 10, 12)
        assert min(match.density_p, match.norm_p) < 0.1 or len(features.selected) > 5


def test_context_features_say_when_there_is_nothing(small_study, tmp_path, monkeypatch):
    study = plant(small_study, tmp_path, monkeypatch, noise(small_study), [])
    with pytest.raises(ValueError, match="nothing to edit"):
        causal.context_features(study)
    with pytest.raises(ValueError, match="nothing to edit"):
        causal.ablation(study)


# --- Ablation -------------------------------------------------------------------------


def test_ablation_effects_are_those_of_the_feature_that_is_read(ablated):
    table = ablated.table
    windows = causal.spread_windows(ablated.study, "test", causal.N_WINDOWS)
    classes = causal.token_classes(ablated.study, windows)
    signal = log_signal(ablated.study)[:, windows, 2:-2]
    for row in table.itertuples():
        if row.outcome == "loss":
            continue
        in_vitro, in_vivo = (signal[b] for b in ablated.study.pair(row.lineage))
        own, other = in_vivo, in_vitro
        if row.direction == "vitro-to-vivo":
            own, other = in_vitro, in_vivo
        change = -own if row.value == "zero" else other - own
        member = classes[row.lineage] == row.outcome
        expected = means_over_windows(change, member)
        assert row.effect == pytest.approx(expected, abs=1e-5)
        assert row.low - 1e-9 <= row.effect <= row.high + 1e-9
        assert row.n_windows == member.any(axis=1).sum()
    up = table[(table["outcome"] == "vivo-up") & (table["value"] == "resample")]
    assert (up[up["direction"] == "vivo-to-vitro"]["effect"] < 0).all()
    assert (up[up["direction"] == "vitro-to-vivo"]["effect"] > 0).all()


def test_ablation_loss_is_the_poisson_loss_of_the_edited_input(ablated):
    table = ablated.table
    windows = causal.spread_windows(ablated.study, "test", causal.N_WINDOWS)
    signal = np.expm1(log_signal(ablated.study)[:, windows, 2:-2])
    row = table.query(
        "outcome == 'loss' and value == 'resample' and direction == 'vivo-to-vitro'"
    ).iloc[0]
    other, own = (signal[b] for b in ablated.study.pair(row["lineage"]))

    def loss(predicted):
        return (predicted - own * np.log(predicted + 1e-7)).mean()

    assert row["effect"] == pytest.approx(loss(other) - loss(own), rel=1e-3)
    assert row["effect"] > 0, "the true track is the best prediction of itself"


def test_ablation_of_what_is_not_read_is_told_apart_from_big(
    small_study, tmp_path, monkeypatch
):
    streams = noise(small_study)
    streams[..., LEVEL] = log_signal(small_study)
    streams[..., IDLE] += 9 * is_vivo(small_study)[:, None, None]
    idle = plant(
        small_study, tmp_path / "idle", monkeypatch, streams, [IDLE], read=[LEVEL]
    )
    table = causal.ablation(idle)
    assert (table["effect"] == 0).all()
    resampled = table[table["value"] == "resample"]
    assert (resampled["norm_ratio"] > 5).all()
    assert (table["p"] == 1).all()


def test_ablation_keeps_every_random_set(ablated):
    table, random = ablated.table, ablated.random
    keys = ["layer", "lineage", "direction", "value", "outcome", "control"]
    sizes = random.groupby(keys).size()
    for key, n in sizes.items():
        assert n == causal.N_RANDOM[key[3]][key[5]]
    mean = random.groupby(keys)["effect"].mean()
    found = table.set_index(keys)["random"]
    pd.testing.assert_series_equal(
        found.sort_index(), mean.sort_index(), check_names=False
    )
    # Nobody reads the noise: a real effect beats every one of the sets.
    differential = table["outcome"].isin(["vivo-up", "vitro-up"])
    expected = [
        1 / (1 + causal.N_RANDOM[v][c])
        for v, c in zip(table["value"], table["control"], strict=True)
    ]
    assert (random["effect"] == 0).all()
    np.testing.assert_allclose(
        table["p"][differential], np.array(expected)[differential]
    )


# --- Steering -------------------------------------------------------------------------


def test_steering_closes_a_gap_that_one_feature_carries(steered):
    sweep, table = steered.sweep, steered.table
    for method in ("SAE", "SAE, all significant", "DiffMean"):
        for direction in ("vitro-to-vivo", "vivo-to-vitro"):
            _, alpha = causal.best_dose(sweep, method, direction)
            assert alpha == 1
    # Walking twice as far ends as far from the target as the start was.
    of_sae = sweep[sweep["method"] == "SAE"].set_index("alpha")["gc2"]
    np.testing.assert_allclose(of_sae[2.0], 0, atol=0.01)
    np.testing.assert_allclose(of_sae[0.5], 0.75, atol=0.01)
    np.testing.assert_allclose(of_sae[-1.0], -3, atol=0.05)
    made = 1 - sweep["remaining"] / sweep["gap"]
    np.testing.assert_allclose(made, sweep["gc2"], atol=1e-12)

    value = table.set_index("method")["gc2"]
    for method in ("SAE", "DiffMean", "clamp", "clamp, all", "full patch"):
        np.testing.assert_allclose(value[method], 1, atol=1e-3)
    # A constant on the log scale is what a line can do as well.
    np.testing.assert_allclose(value["output rescale"], 1, atol=1e-3)
    for method in ("nothing", "random features", "clamp, not significant"):
        np.testing.assert_allclose(value[method], 0, atol=1e-9)


def test_steering_holds_a_lineage_out(steered):
    # The other lineage's shift is twice, or half, what is needed.
    table = steered.table.query("tokens == 'all'").set_index(["method", "lineage"])
    for method in ("SAE, lineage held out", "DiffMean, lineage held out"):
        for lineage, other, own in zip(
            steered.study.lineages, SHIFTS[::-1], SHIFTS, strict=True
        ):
            expected = 1 - (other / own - 1) ** 2
            found = table.loc[(method, lineage), "gc2"]
            np.testing.assert_allclose(found, expected, atol=0.03)


def test_steering_of_one_lineage_has_nothing_to_hold_out(
    small_study, small_world, tmp_path, monkeypatch
):
    pairs = read_tissues(small_world.folder / "tissues", ["liver"])
    dataset = WindowDataset(pairs, window_bp=small_world.world.window_bp)
    alone = replace(small_study, dataset=dataset, blocks=[0])
    study = plant_shift(alone, tmp_path, monkeypatch)
    monkeypatch.setattr(_steering, "N_SETS", 6)
    monkeypatch.setattr(_steering, "N_OTHER", 3)
    assert causal.held_out_features(study, "liver") == {}
    table = causal.steering(study)
    assert set(causal.METHODS) - set(table["method"]) == set(_steering.HELD_OUT)
    own, pooled = (
        table[table["lineage"] == x].drop(columns="lineage").reset_index(drop=True)
        for x in ("liver", "pooled")
    )
    pd.testing.assert_frame_equal(own, pooled)


def test_steering_starts_from_the_context_it_names(small_study):
    for lineage in small_study.lineages:
        vitro_vivo = list(small_study.pair(lineage))
        forward = _steering._pair(small_study, lineage, "vitro-to-vivo")
        assert forward == vitro_vivo
        backward = _steering._pair(small_study, lineage, "vivo-to-vitro")
        assert backward == vitro_vivo[::-1]


def test_steering_rows_obey_their_identities(steered):
    table = steered.table
    p, q = table["progress"], table["leakage"]
    np.testing.assert_allclose(table["gc2"], 2 * p - p**2 - q**2, rtol=0, atol=1e-8)
    np.testing.assert_allclose(
        table["gc_norm"], 1 - np.sqrt(1 - table["gc2"]), atol=1e-12
    )
    assert (table["low"] <= table["gc2"] + 1e-9).all()
    assert (table["gc2"] <= table["high"] + 1e-9).all()
    sae = table[table["method"] == "SAE"]
    assert (sae["difference"] == 0).all()
    assert (sae["ratio"] == 1).all()
    assert table.loc[table["low"] <= 0, "ratio"].isna().all()
    of_random = table["method"].str.startswith("random")
    assert (table["n_draws"] > 1).eq(of_random).all()
    assert table["p_random"].notna().eq(of_random).all()
    pooled = table[(table["lineage"] == "pooled") & (table["tokens"] == "all")]
    assert list(pooled["method"]) == 2 * list(causal.METHODS)


def test_steering_of_the_pool_lies_between_the_lineages(steered):
    table = steered.table.query("tokens == 'all'")
    wide = table.set_index(["direction", "method", "lineage"])["gc2"].unstack()  # noqa: PD010
    lineages = wide[steered.study.lineages]
    assert (wide["pooled"] >= lineages.min(axis=1) - 1e-9).all()
    assert (wide["pooled"] <= lineages.max(axis=1) + 1e-9).all()


def test_best_dose_leaves_out_what_it_must():
    rows = []
    for lineage, best in (("a", 1.0), ("b", 2.0), ("c", 2.0)):
        for layer, extra in ((0, 0.1), (1, 0.0)):
            for alpha in (-1.0, 1.0, 2.0):
                remaining = extra + (alpha != best) * (10.0 if lineage == "a" else 3.0)
                remaining -= 50 * (alpha < 0)  # backwards would win if it were let
                rows.append(("x", lineage, "SAE", layer, alpha, remaining, 20.0))
    columns = ["direction", "lineage", "method", "layer", "alpha", "remaining", "gap"]
    sweep = pd.DataFrame(rows, columns=columns)
    assert causal.best_dose(sweep, "SAE", "x") == (1, 1.0)
    assert causal.best_dose(sweep, "SAE", "x", without="a") == (1, 2.0)


def test_held_out_features_do_not_see_the_lineage(shifted):
    lineage = shifted.lineages[0]
    before = causal.held_out_features(shifted, lineage)
    summary = _selection.summaries(shifted)[0]
    own = list(shifted.pair(lineage))
    summary.mean_acts[own] = np.random.default_rng(5).random(
        summary.mean_acts[own].shape
    )
    after = causal.held_out_features(shifted, lineage)
    for layer, features in before.items():
        assert DRIVER in features.significant
        np.testing.assert_array_equal(features.significant, after[layer].significant)


# --- Planted factors ------------------------------------------------------------------


def test_factor_specificity_is_the_planted_ratio(small_study, tmp_path, monkeypatch):
    windows = np.arange(len(small_study.dataset.windows))
    sites = causal.factor_sites(small_study, windows)["NRF1"].to_numpy()
    shape = (len(windows), small_study.dataset.n_tokens)
    streams = noise(small_study)
    streams[..., DRIVER] = np.where(sites.reshape(shape), 1.0, 0.1)
    study = plant(small_study, tmp_path, monkeypatch, streams, [DRIVER], read=[DRIVER])
    named = pd.DataFrame({"feature": [DRIVER], "factor": ["NRF1"]})
    monkeypatch.setattr(causal, "match_features", lambda *_, **__: named)
    table = causal.factor_specificity(study)
    assert list(table["factor"]) == ["NRF1"] * len(study.blocks)
    np.testing.assert_allclose(table["at_sites"], -1, atol=1e-6)
    np.testing.assert_allclose(table["elsewhere"], -0.1, atol=1e-6)
    np.testing.assert_allclose(table["specificity"], 10, rtol=1e-4)
    np.testing.assert_allclose(table["specificity_low"], 10, rtol=1e-4)


def test_factor_specificity_refuses_real_data(small_study):
    with pytest.raises(ValueError, match="simulated data only"):
        causal.factor_specificity(replace(small_study, truth=None))


# --- The whole chain on a real model --------------------------------------------------


@pytest.mark.slow
def test_causal_tests_of_an_untrained_model(small_study, tmp_path, monkeypatch):
    few = SAEConfig(d_sae=48, k=4, n_epochs=2, batch_size=512)
    monkeypatch.setattr(stages.train_saes, "__defaults__", (few,))
    counts = {"resample": {"any other": 19, "not significant": 9}, "zero": {}}
    counts["zero"] = {"any other": 5}
    monkeypatch.setattr(causal, "N_RANDOM", counts)
    monkeypatch.setattr(causal, "N_WINDOWS", 8)
    monkeypatch.setattr(_steering, "N_TEST", 8)
    monkeypatch.setattr(_steering, "N_TUNE", 4)
    study = replace(small_study, run=Run(tmp_path / "run"), blocks=[1])
    effects = causal.ablation(study)
    assert set(effects["layer"]) <= set(study.blocks)
    assert effects["q_bh"].between(0, 1).all()
    assert effects["p"].between(1 / 20, 1).all()
    table = causal.steering(study)
    ceiling = table.loc[table["method"] == "full patch", "gc2"]
    np.testing.assert_allclose(ceiling, 1, atol=1e-6)
    p, q = table["progress"], table["leakage"]
    np.testing.assert_allclose(table["gc2"], 2 * p - p**2 - q**2, atol=1e-8)
    stamps = {f: f.stat().st_mtime_ns for f in study.run.folder.glob("*.parquet")}
    pd.testing.assert_frame_equal(causal.steering(study), table)
    pd.testing.assert_frame_equal(causal.ablation(study), effects)
    assert stamps == {f: f.stat().st_mtime_ns for f in stamps}
