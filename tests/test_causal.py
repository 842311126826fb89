"""Causal tests on a planted model, whose answers follow by hand, and on a real one.

The planted stream has one channel per feature, features are the channels themselves,
and the log1p prediction is the sum of the channels the model reads.
"""

import os
import signal
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import nn

from helpers import causal, stages
from helpers.activations import WindowSummary
from helpers.causal import (
    _ablation,
    _dose,
    _factor_features,
    _factor_tokens,
    _gap_scores,
    _greedy,
    _locus,
    _moves,
    _other_sets,
    _registration,
    _seeds,
    _selection,
    _specificity,
    _steering,
    _sweep,
    _tracks,
    _windows,
)
from helpers.causal._side_by_side import side_by_side
from helpers.runs import Run
from helpers.sae import SAEConfig
from helpers.tissues import read_tissues
from helpers.token_classes import token_classes
from helpers.windows import WindowDataset
from toy import ToySAE

N_FEATURES = 24
LEVEL, DRIVER, IDLE = 0, 1, 2  # read, read, not read; the rest is noise nobody reads
SHIFTS = (0.7, 1.4)  # of the two lineages
FEW = {  # random sets
    ("visible", "resample"): {"any other": 19, "not significant": 9},
    ("visible", "zero"): {"any other": 9},
    ("hidden", "resample"): {"any other": 19},
}
UNSEEN = 0.5  # of the level that is left where the track is hidden


MODULES = (_ablation, _dose, _greedy, _locus, _moves, _registration, _seeds, _selection)
MODULES += (_other_sets, _specificity, _steering, _sweep)


class PlantedSAE(ToySAE):
    """Whose reconstruction is the sum of what its features write."""

    def forward(self, x):
        return self.encode(x) @ self.decoder_directions


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
        return x[:, 2:-2, self.read].sum(dim=2).clamp(min=-10).expm1()


def plant(study, folder, monkeypatch, streams, significant, read=(LEVEL, DRIVER)):
    """Return a study in which every stage before the causal tests is planted."""
    n_bio, n_windows, n_tokens, d = streams.shape
    streams = torch.from_numpy(streams.astype(np.float32))
    sae = PlantedSAE(torch.eye(d))
    acts = sae.encode(streams)
    summary = WindowSummary(
        acts.mean(dim=2).numpy(), (acts > 0).float().mean(dim=2).numpy()
    )
    store = SimpleNamespace(layer=lambda _: streams.numpy(), chunk_windows=5)

    cds = np.zeros(d)
    cds[significant] = 10.0 * np.arange(len(significant), 0, -1)
    cds[significant[-1:]] *= -1
    scores = pd.DataFrame(
        {
            "layer": np.repeat(study.blocks, d),
            "feature": np.tile(np.arange(d), len(study.blocks)),
            "cds": np.tile(cds, len(study.blocks)),
            "p_bonferroni": np.tile(np.where(cds == 0, 1.0, 1e-6), len(study.blocks)),
            "class": np.tile(
                np.where(cds == 0, "none", "lineage-only"), len(study.blocks)
            ),
            "lineages": study.lineages[0],
        }
    )
    for lineage in study.lineages:
        scores[f"delta_{lineage}"] = scores["cds"]
    planted = {
        "train_saes": lambda _: dict.fromkeys(study.blocks, sae),
        "summaries": lambda _: dict.fromkeys(study.blocks, summary),
        "score_context": lambda _: scores,
    }
    for module in MODULES:
        for name, stage in planted.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, stage)
    run = Run(folder)
    made = ["activations.zarr", "cds.parquet", *(f"sae/block{b}" for b in study.blocks)]
    for name in made:
        run.artefact(name, {}, lambda path: path.mkdir())
    model = Planted(n_tokens, read)

    def swapped(study, windows):
        """The motif activity does nothing here."""
        log1p = [model.head(of[windows]).log1p().numpy() for of in streams]
        pairs = [study.pair(lineage) for lineage in study.lineages]
        return {(t, m): log1p[t] for pair in pairs for t in pair for m in pair}

    def hidden(study, windows, tracks):
        """Half of what LEVEL holds needs the track."""
        assert list(tracks) == ["hidden"]
        unseen = streams[:, windows].clone()
        unseen[..., LEVEL] *= UNSEEN
        of = [dict.fromkeys(study.blocks, x) for x in unseen]
        predicted = [model.head(x).log1p() for x in unseen]
        return {"hidden": _tracks.TrackRun(of, predicted)}

    monkeypatch.setattr(_steering, "_swapped_inputs", swapped)
    monkeypatch.setattr(_ablation, "run_tracks", hidden)
    monkeypatch.setattr(_moves, "N_SETS", 8)
    monkeypatch.setattr(_moves, "N_OTHER", 4)
    monkeypatch.setattr(_ablation, "N_RANDOM", FEW)
    n_main = FEW["visible", "resample"]["any other"]
    monkeypatch.setitem(_registration.ABLATION, "n_random_sets", n_main)
    monkeypatch.setattr(_sweep, "DOSES", (-1.0, 0.5, 1.0, 2.0))
    monkeypatch.setattr(_seeds, "N_SEEDS", 2)
    monkeypatch.setattr(_gap_scores, "N_DRAWS", 200)
    monkeypatch.setattr(_greedy, "N_RANDOM", 4)
    monkeypatch.setattr(_greedy, "N_STEPS", 3)
    planted = replace(study, run=run, model=model)
    planted.__dict__["store"] = store
    return planted


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
        causal.register(study)
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
        causal.register(study)
        sweep, table = causal.steering_sweep(study), causal.steering(study)
        growth, singles = causal.dose_response(study), causal.single_features(study)
        others = causal.other_sets(study)
        features = causal.context_features(study)[0]
        matrix, agreement = causal.lineage_matrix(study), causal.coherence(study)
        forward = causal.forward_selection(study)
        locus = causal.steered_locus(study, study.lineages[0], [0.0, 1.0])
    return SimpleNamespace(
        study=study,
        sweep=sweep,
        table=table,
        growth=growth,
        singles=singles,
        forward=forward,
        others=others,
        features=features,
        matrix=matrix,
        agreement=agreement,
        locus=locus,
    )


def means_over_windows(values, member):
    """Average over tokens of a class within windows, then over windows."""
    per_window = [v[m].mean() for v, m in zip(values, member, strict=True) if m.any()]
    return np.mean(per_window)


# --- What is chosen -------------------------------------------------------------------


def test_token_classes_follow_the_rule(small_study):
    dataset, windows = small_study.dataset, np.array([3, 11, 60])
    classes = token_classes(small_study, windows)
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
    forward = token_classes(small_study, windows)
    backward = token_classes(swapped, windows)
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

    def fits(features, n):
        chosen = features._replace(selected=features.significant[:n])
        chosen = chosen._replace(
            pools=_selection._pools(chosen.selected, chosen.significant, chosen.density)
        )
        match = _selection.matched_sets(chosen, "any other", 49, study.seed)
        return min(match.density_p, match.norm_p) >= 0.1

    monkeypatch.setattr(_selection, "SIZES", (8, 7, 6, 5, 4, 3))
    for features in causal.context_features(study).values():
        n = len(features.selected)
        # Those of no match, then those of a match: the first that fits is taken.
        assert not any(fits(features, larger) for larger in range(n + 1, 9))
        assert n == 3 or fits(features, n)
        assert n < 8, "five features stand out: eight cannot be matched"


def test_context_features_come_back_from_their_table():
    density = np.array([0.5, 0.0, 0.1, 0.3, 0.2, 0.4, 0.1, 0.2])  # feature 1 is dead
    significant, selected = np.array([4, 0, 6]), np.array([4, 0])
    pools = {
        "any other": np.array([2, 3, 5, 6, 7]),
        "not significant": np.array([2, 3, 5, 7]),
    }
    known = causal.ContextFeatures(
        selected, significant, pools, density, np.arange(8.0)
    )
    found = _selection._from_table(_selection._to_table(known))
    assert found.pools.keys() == pools.keys()
    for name, pool in pools.items():
        np.testing.assert_array_equal(found.pools[name], pool)
    for name in ("selected", "significant", "density", "written_norm"):
        np.testing.assert_array_equal(getattr(found, name), getattr(known, name))


def test_context_features_say_when_there_is_nothing(small_study, tmp_path, monkeypatch):
    study = plant(small_study, tmp_path, monkeypatch, noise(small_study), [])
    with pytest.raises(ValueError, match="nothing to edit"):
        causal.context_features(study)
    with pytest.raises(ValueError, match="nothing to edit"):
        causal.register(study)


# --- Ablation -------------------------------------------------------------------------


def test_ablation_effects_are_those_of_the_feature_that_is_read(ablated):
    table = ablated.table
    windows = causal.spread_windows(ablated.study, "test", causal.N_WINDOWS)
    classes = token_classes(ablated.study, windows)
    level = log_signal(ablated.study)[:, windows, 2:-2]
    assert set(table["track"]) == {"visible", "hidden"}
    for row in table.itertuples():
        if row.outcome == "loss":
            continue
        signal = level * (UNSEEN if row.track == "hidden" else 1)
        in_vitro, in_vivo = (signal[b] for b in ablated.study.pair(row.lineage))
        own, other = in_vivo, in_vitro
        if row.direction == "vitro-to-vivo":
            own, other = in_vitro, in_vivo
        if row.outcome.endswith("counts"):
            own, other = np.expm1(own), np.expm1(other)
        change = -own if row.value == "zero" else other - own
        member = classes[row.lineage] == row.outcome.removesuffix(" counts")
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
        "track == 'visible' and outcome == 'loss' and value == 'resample'"
        " and direction == 'vivo-to-vitro'"
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
    causal.register(idle)
    table = causal.ablation(idle)
    assert (table["effect"] == 0).all()
    resampled = table[table["value"] == "resample"]
    assert (resampled["norm_ratio"] > 5).all()
    assert (table["p"] == 1).all()


def test_ablation_keeps_every_random_set(ablated):
    table, random = ablated.table, ablated.random
    keys = ["track", "layer", "lineage", "direction", "value", "outcome", "control"]
    sizes = random.groupby(keys).size()
    for key, n in sizes.items():
        assert n == FEW[key[0], key[4]][key[6]]
    mean = random.groupby(keys)["effect"].mean()
    found = table.set_index(keys)["random"]
    pd.testing.assert_series_equal(
        found.sort_index(), mean.sort_index(), check_names=False
    )
    # Nobody reads the noise: a real effect beats every one of the sets.
    differential = table["outcome"].isin(["vivo-up", "vitro-up"])
    expected = [
        1 / (1 + FEW[t, v][c])
        for t, v, c in zip(
            table["track"], table["value"], table["control"], strict=True
        )
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
    monkeypatch.setattr(_moves, "N_SETS", 6)
    monkeypatch.setattr(_moves, "N_OTHER", 3)
    known = _selection.dictionaries(study)
    assert _selection.held_out_features(study, "liver", known) == {}
    causal.register(study)
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
        forward = _moves.pair_of(small_study, lineage, "vitro-to-vivo")
        assert forward == vitro_vivo
        backward = _moves.pair_of(small_study, lineage, "vivo-to-vitro")
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
    of_random = table["method"].str.contains("random|shuffled")
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
    known = _selection.dictionaries(shifted)
    before = _selection.held_out_features(shifted, lineage, known)
    summary = _selection.summaries(shifted)[0]
    own = list(shifted.pair(lineage))
    summary.mean_acts[own] = np.random.default_rng(5).random(
        summary.mean_acts[own].shape
    )
    after = _selection.held_out_features(shifted, lineage, known)
    for layer, features in before.items():
        assert DRIVER in features.significant
        np.testing.assert_array_equal(features.significant, after[layer].significant)


# --- Planted factors ------------------------------------------------------------------


def test_factor_specificity_refuses_real_data(small_study):
    with pytest.raises(ValueError, match="simulated data only"):
        causal.factor_specificity(replace(small_study, truth=None))


# --- Registration ---------------------------------------------------------------------


def test_nothing_reads_the_test_split_before_it_is_registered(shifted):
    readers = (
        causal.ablation,
        causal.ablation_random,
        causal.dose_response,
        causal.factor_specificity,
        causal.headline_over_seeds,
        causal.forward_selection,
        causal.lineage_matrix,
        causal.other_sets,
        causal.single_features,
        causal.steering,
        lambda s: causal.steered_locus(s, s.lineages[0], [1.0]),
    )
    for read in readers:
        with pytest.raises(FileNotFoundError, match="must be registered"):
            read(shifted)


def test_register_keeps_what_says_the_same_and_traces_what_changed(
    shifted, monkeypatch
):
    first = causal.register(shifted)
    assert causal.register(shifted) == first == causal.registered(shifted)
    assert first["superseded"] == []
    monkeypatch.setitem(_registration.ENDPOINT, "direction", "vivo-to-vitro")
    with pytest.raises(ValueError, match=r"another analysis .*\['endpoint'\] differ"):
        causal.steering(shifted)
    second = causal.register(shifted)
    assert [old["digest"] for old in second["superseded"]] == [first["digest"]]
    assert second["superseded"][0]["results_computed"] is False
    assert second["results_before"] == []
    assert causal.registered(shifted) == second


def test_registration_says_which_results_were_there_before(shifted):
    causal.register(shifted)
    causal.lineage_matrix(shifted)
    shifted.run.path(causal.REGISTRATION).unlink()  # and with it every trace
    assert causal.register(shifted)["results_before"] == ["lineage_matrix"]


def test_registered_rows_are_those_of_the_plan(ablated):
    rows = causal.registered_rows(ablated.table)
    plan = _registration.ABLATION
    assert len(rows) == len(ablated.study.blocks) * len(ablated.study.lineages)
    for name in ("track", "direction", "value", "outcome", "control"):
        assert set(rows[name]) == {plan[name]}


def test_registered_refuses_an_altered_file(shifted):
    causal.register(shifted)
    path = shifted.run.path(causal.REGISTRATION)
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"alpha', '"beta').replace("0.05", "0.5"), "utf-8")
    with pytest.raises(ValueError, match="altered after it was written"):
        causal.ablation(shifted)
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="not a registration"):
        causal.register(shifted)


def test_register_refuses_a_chromosome_in_two_splits(shifted):
    windows = shifted.dataset.windows.copy()
    windows.loc[windows.index[0], "split"] = "test"
    dataset = SimpleNamespace(
        **{k: v for k, v in vars(shifted.dataset).items() if k != "windows"},
        windows=windows,
        windows_of=shifted.dataset.windows_of,
    )
    with pytest.raises(ValueError, match="in several"):
        _registration._plan(replace(shifted, dataset=dataset))


# --- Doses, single features, lineages -------------------------------------------------


def test_dose_response_of_a_linear_model_is_linear_and_additive(steered):
    study, growth = steered.study, steered.growth
    for lineage, shift in zip(study.lineages, SHIFTS, strict=True):
        rows = growth[growth["lineage"] == lineage]
        expected = -shift * rows["strength"]
        np.testing.assert_allclose(rows["effect"], expected, atol=0.02 * shift * 2)
        assert (rows["low"] <= rows["effect"] + 1e-9).all()
        assert (rows["effect"] <= rows["high"] + 1e-9).all()
    whole = growth.dropna(subset="additivity")
    np.testing.assert_allclose(whole["additivity"], 1, atol=1e-5)
    assert set(growth["strength"]) == set(_dose.STRENGTHS)
    trend = causal.growth_trend(growth)
    by_dose = trend[trend["grows"] == "strength"]
    assert by_dose["monotone"].all()
    np.testing.assert_allclose(by_dose["spearman"], 1)


def test_growth_that_turns_back_is_not_monotone():
    head = {"layer": 0, "lineage": "a", "outcome": "vivo-up"}
    rows = [head | {"n_features": n, "strength": 1.0} for n in (1, 2, 5)]
    rows += [head | {"n_features": 5, "strength": x} for x in (-1.0, 0.0, 2.0)]
    growth = pd.DataFrame(rows).assign(effect=[-1.0, -3.0, -2.0, 1.0, 0.0, -4.0])
    trend = causal.growth_trend(growth).set_index("grows")
    assert not trend.loc["n_features", "monotone"]
    assert trend.loc["n_features", "spearman"] == pytest.approx(0.5)
    assert trend.loc["strength", "monotone"]


def test_additivity_is_missing_where_the_singles_add_up_to_nothing():
    change = np.tile([1.0, -1.0], 6)
    row = _dose.with_interval(change, np.repeat(np.arange(6), 2), 0, change)
    assert np.isnan([row[f"additivity{x}"] for x in ("", "_low", "_high")]).all()


def test_other_sets_are_as_large_and_chosen_by_their_rule(steered):
    others, study = steered.others, steered.study
    assert set(others["features"]) == set(causal.OTHER_SETS)
    assert (others["n_features"] == 1).all()
    by_rule = others[others["outcome"] == "vivo-up"].groupby("features")
    # One feature is significant: shuffled ranks find it again, the others need not.
    for rule in ("context", "ranks shuffled"):
        for lineage, shift in zip(study.lineages, SHIFTS, strict=True):
            rows = by_rule.get_group(rule)
            found = rows.loc[rows["lineage"] == lineage, "effect"]
            np.testing.assert_allclose(found, -shift, rtol=0.05)
    assert (by_rule.get_group("context")["n_shared"] == 1).all()
    features = steered.features
    for rule, of in (
        ("longest written", features.written_norm),
        ("most often firing", features.density),
    ):
        largest = int(of.argmax())
        shared = by_rule.get_group(rule)["n_shared"]
        assert (shared == (largest in features.selected)).all()


def test_single_features_name_the_feature_that_carries_the_gap(steered):
    singles = steered.singles
    assert set(singles["feature"]) == {DRIVER}
    assert (singles["rank"] == 1).all()
    assert (singles["high"] < 0).all()


def test_lineage_matrix_edits_every_lineage(steered):
    matrix, study = steered.matrix, steered.study
    assert set(matrix["features"]) == {study.lineages[0]}
    found = matrix.groupby("lineage")["effect"].mean()
    for lineage, shift in zip(study.lineages, SHIFTS, strict=True):
        assert found[lineage] == pytest.approx(-shift, rel=0.05)


def test_coherence_of_a_constant_shift_is_one(steered):
    assert (steered.agreement["cosine"] > 0.5).all()
    np.testing.assert_allclose(steered.agreement["cos2_selected"], 1, atol=0.02)


def test_steered_locus_starts_at_the_base_and_ends_at_the_target(steered):
    locus = steered.locus
    np.testing.assert_array_equal(locus.steered[0.0], locus.base)
    np.testing.assert_allclose(locus.steered[1.0], locus.target, atol=0.05)
    assert locus.classes.shape == locus.base.shape == locus.position.shape
    with pytest.raises(ValueError, match="at least one dose"):
        causal.steered_locus(steered.study, steered.study.lineages[0], [])


def test_doses_must_be_finite(shifted):
    causal.register(shifted)
    with pytest.raises(ValueError, match="alpha must be finite; got nan"):
        causal.steered_locus(shifted, shifted.lineages[0], [np.nan])
    moves = _moves.Moves(shifted, _selection.dictionaries(shifted))
    with pytest.raises(ValueError, match="alpha must be finite; got inf"):
        _sweep.every_block(
            moves, "SAE", shifted.lineages[0], "vitro-to-vivo", float("inf")
        )


# --- Trainings ------------------------------------------------------------------------


def test_over_seeds_adds_both_variances():
    found = causal.over_seeds([0.1, 0.2, 0.3], within=0.0)
    low, high = stats.t.interval(0.95, 2, 0.2, 0.1 / np.sqrt(3))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.between == pytest.approx(0.1)
    same = causal.over_seeds([0.2, 0.2, 0.2], within=0.05)
    assert same.high - same.estimate == pytest.approx(1.959964 * 0.05)
    both = causal.over_seeds([0.1, 0.2, 0.3], within=0.05)
    assert both.high - both.low > same.high - same.low
    with pytest.raises(ValueError, match="at least two trainings"):
        causal.over_seeds([0.1], within=0.1)


def test_headline_over_seeds_of_equal_trainings(shifted, monkeypatch):
    known = _selection.dictionaries(shifted)
    monkeypatch.setattr(_seeds, "other_training", lambda _, layer, seed: known[layer])
    causal.register(shifted)
    steering, ablation = causal.headline_over_seeds(shifted)
    spread = causal.seed_spread(steering, 0).set_index("method")
    assert spread.loc["SAE", "estimate"] == pytest.approx(1, abs=1e-3)
    assert spread["between"].max() == pytest.approx(0, abs=1e-12)
    whole = causal.steering(shifted).query(
        "method == 'SAE' and lineage == 'pooled' and tokens == 'all'"
        " and direction == 'vitro-to-vivo'"
    )
    assert spread.loc["SAE", "estimate"] == pytest.approx(whole["gc2"].item())
    assert (ablation["p"] == 1 / 20).all()
    # The study's own from the table of the main ablation, the other measured anew
    own, other = (
        rows.drop(columns="training") for _, rows in ablation.groupby("training")
    )
    pd.testing.assert_frame_equal(
        own.reset_index(drop=True), other.reset_index(drop=True)
    )


# --- Moves ----------------------------------------------------------------------------


def test_moves_hit_the_moments_they_promise(shifted):
    moves = _moves.Moves(shifted, _selection.dictionaries(shifted))
    lineage = shifted.lineages[0]
    pair = _moves.pair_of(shifted, lineage, "vitro-to-vivo")
    moments = moves.moments(0)
    windows = shifted.dataset.windows_of("select")
    x0, x1 = (_windows.read_streams(shifted, 0, b, windows) for b in pair)
    reached = x0 + moves.of("affine map", 0, lineage, "vitro-to-vivo")(x0)
    target = x1.flatten(0, 1).mean(dim=0)
    torch.testing.assert_close(
        reached.flatten(0, 1).mean(dim=0), target, atol=1e-3, rtol=0
    )
    found = torch.cov(reached.flatten(0, 1).T)
    wanted = moments.covariance[pair[1]]
    before = (moments.covariance[pair[0]] - wanted).norm()
    assert (found - wanted).norm() < 0.2 * before + 1e-2
    axis = moves.of("first PC", 0, lineage, "vitro-to-vivo")(x0)[0, 0]
    values, vectors = torch.linalg.eigh(moments.paired[0])
    assert abs(float(vectors[:, -1] @ axis)) == pytest.approx(
        float(axis.norm()), rel=1e-4
    )
    lda = moves.of("LDA", 0, lineage, "vitro-to-vivo")(x0)[0, 0]
    assert int(lda.abs().argmax()) == DRIVER
    for method in ("SAE", "SAE, all significant", "SAE, output-filtered"):
        move = moves.of(method, 0, lineage, "vitro-to-vivo")(x0)[0, 0]
        assert int(move.abs().argmax()) == DRIVER
        assert float(move.abs().sum()) == pytest.approx(SHIFTS[0], rel=0.05)


def test_active_tokens_are_scaled_and_silent_ones_left(shifted):
    moves = _moves.Moves(shifted, _selection.dictionaries(shifted))
    lineage, direction = shifted.lineages[0], "vivo-to-vitro"
    pair = _moves.pair_of(shifted, lineage, direction)
    x = _windows.read_streams(shifted, 0, pair[0], np.arange(3))
    x[:, ::2, DRIVER] = 0
    delta = moves.of("SAE, active tokens", 0, lineage, direction)(x)
    # The cell line has none of it: an active feature is scaled to nothing.
    torch.testing.assert_close(delta[..., DRIVER], -x[..., DRIVER])
    assert (delta[:, ::2] == 0).all()


def test_output_scores_of_a_linear_model_are_exact(shifted):
    moves = _moves.Moves(shifted, _selection.dictionaries(shifted))
    scores = moves.output_scores(0, "vitro-to-vivo")
    windows = _windows.spread_windows(shifted, "tune", _moves.N_OUTPUT)
    total = 0.0
    for lineage in shifted.lineages:
        pair = _moves.pair_of(shifted, lineage, "vitro-to-vivo")
        y0, y1 = (
            _sweep.predict(shifted, 0, _windows.read_streams(shifted, 0, b, windows))
            for b in pair
        )
        base, target = moves._mean_acts(0)[pair]
        total += (y1 - y0).sum() * float(target[DRIVER] - base[DRIVER])
    assert scores[DRIVER] == pytest.approx(total, rel=1e-3)
    assert scores[IDLE] == 0, "nobody reads it"


# --- Features of a planted factor -----------------------------------------------------


def test_matched_weights_spread_predictions_alike():
    rng = np.random.default_rng(0)
    base = rng.normal(size=(40, 60))
    at = (base + rng.normal(size=base.shape)) > 1.5  # sites are predicted higher
    away = ~at & (rng.random(base.shape) < 0.5)
    weights = _factor_tokens._matched(base, at, away)
    assert (weights[~away] == 0).all()
    assert weights.sum() == pytest.approx(at.sum(), rel=0.01)
    assert np.average(base, weights=weights) == pytest.approx(base[at].mean(), abs=0.1)
    assert base[away].mean() < base[at].mean() - 0.3
    assert not _factor_tokens._matched(base, at & False, away).any()


def test_specific_features_are_so_on_their_own():
    at_sites = np.array([-0.5, -0.4, -0.4, 0.2, -0.001, -0.3])
    elsewhere = np.array([-0.05, -0.3, 0.3, 0.0, 0.0, 0.01])
    chosen = _factor_features._specific(at_sites, elsewhere)
    assert list(chosen) == [0, 5], "the second and third only cancel each other"
    assert len(_factor_features._specific(np.zeros(3), np.zeros(3))) == 0
    many = _factor_features._specific(-np.arange(1.0, 10.0), np.zeros(9))
    assert list(many) == [8, 7, 6, 5, 4], "the strongest, and no more than five"


def test_features_by_output_are_chosen_block_by_block_and_together():
    alone = {
        (0, "A"): (np.array([7, 8]), np.array([[-1.0, -0.1], [-0.9, 0.0]])),
        (1, "A"): (np.array([5]), np.array([[-0.2], [0.01]])),
        (2, "A"): (np.array([6]), np.array([[-0.5], [0.3]])),
        (2, "B"): (np.array([6]), np.array([[0.5], [0.0]])),
    }
    chosen = _factor_features._by_output(alone)
    assert {name: set(of) for name, of in chosen.items()} == {
        "output": {"A"},
        "output, every block": {"A"},
    }
    one, every = (of["A"] for of in chosen.values())
    assert {b: list(f) for b, f in one.features.items()} == {1: [5]}
    assert {b: list(f) for b, f in every.features.items()} == {0: [8], 1: [5]}
    assert every.at_sites == pytest.approx(-0.3)
    assert every.elsewhere == pytest.approx(0.01)


def test_specific_factors_are_counted_with_the_draws():
    table = pd.DataFrame(
        {
            "track": "visible",
            "selection": "output",
            "at_sites": [-1.0, -1.0, 0.5],
            "elsewhere": [-0.1, 0.5, 0.0],
            "anywhere": [0.0, 0.0, 0.0],
        }
    )
    draws = table[["at_sites", "elsewhere", "anywhere"]].to_numpy()[..., None]
    draws = np.repeat(draws, 4, axis=2)
    draws[0, 1] = [-0.1, -0.1, -0.1, -0.9]
    counts = _specificity._count(table, draws, {"visible": 4}).set_index("control")
    assert (counts["n_planted"] == 4).all()
    columns = ["n_factors", "n_specific", "n_sure", "n_possible"]
    assert counts.loc["elsewhere", columns].tolist() == [3, 1, 0, 1]
    assert counts.loc["anywhere", columns].tolist() == [3, 2, 2, 2]


def test_zeroing_features_of_a_linear_model_is_what_was_estimated(shifted):
    known = _selection.dictionaries(shifted)
    windows = np.arange(6)
    x = _windows.read_streams(shifted, 0, 0, windows)
    shape = (6, x.shape[1] - 4)
    rng = np.random.default_rng(0)
    weights = torch.from_numpy((rng.random((3, *shape)) < 0.3).astype(np.float32))
    predicted = shifted.model.head(x).log1p()
    tokens = _factor_tokens.FactorTokens(0, weights)
    streams = [dict.fromkeys(known, x)] * len(shifted.design)
    split = _factor_tokens.Split(windows, streams, [predicted], {"A": [tokens]})
    guessed = _factor_features._estimate(shifted, known, split)[0, "A"][:, LEVEL]
    some = {0: np.array([LEVEL, IDLE])}
    tried, alone = _factor_features._one_by_one(shifted, known, split, some)[0, "A"]
    assert list(tried) == [LEVEL, IDLE]
    np.testing.assert_allclose(alone[:, 0], guessed, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(alone[:, 1], 0, atol=1e-6)
    choice = _factor_features.Choice({0: np.array([LEVEL])}, *alone[:, 0])
    row, draws = _specificity._measure(shifted, known, "A", choice, split)
    np.testing.assert_allclose(
        [row["at_sites"], row["elsewhere"]], guessed, rtol=1e-4, atol=1e-6
    )
    inner = x[:, 2:-2, LEVEL]
    for group, of_group in zip(_factor_tokens.GROUPS, weights, strict=True):
        expected = -(of_group * inner).sum() / of_group.sum()
        assert row[group] == pytest.approx(float(expected), rel=1e-4)
    assert row["n_sites"] == int(weights[0].sum())
    assert draws.shape[0] == 3
    # Zeroed after the first block, there is nothing left to zero after the second.
    twice = choice._replace(features=dict.fromkeys((0, 1), np.array([LEVEL])))
    again, _ = _specificity._measure(shifted, known, "A", twice, split)
    assert again["at_sites"] == pytest.approx(row["at_sites"])
    assert again["layer"] is None


# --- One by one, and at every block ---------------------------------------------------


def test_forward_selection_takes_the_feature_that_carries_the_gap(steered):
    found = steered.forward.set_index(["order", "n_features"])
    first = found.loc["greedy", 1]
    assert (first["feature"], first["rank"]) == (DRIVER, 1)
    assert first["gc2"] == pytest.approx(1, abs=1e-3)
    assert found.loc["CDS", 1]["gc2"] == pytest.approx(first["gc2"])
    random = found.loc["random"]
    assert (random["gc2"].abs() < 1e-6).all(), "nobody reads the noise"
    greedy = found.loc["greedy"]
    assert greedy["feature"].is_unique
    assert (greedy["low"] <= greedy["gc2"] + 1e-9).all()


def test_features_without_a_match_are_not_taken_one_by_one(shifted):
    """What does not fire on select windows has no random sets to be compared with."""
    of_block = _selection.dictionaries(shifted)[0]
    density = of_block.features.density.copy()
    density[DRIVER] = 0
    quiet = of_block._replace(features=of_block.features._replace(density=density))
    for known, expected in ((of_block, True), (quiet, False)):
        order, _ = _greedy._greedy(shifted, known, np.arange(4))
        assert (DRIVER in order) == expected


def test_a_dose_is_spread_over_the_blocks(steered):
    """The blocks of the planted model leave the stream alone: shares add up."""
    table = steered.table.query("lineage == 'pooled' and tokens == 'all'")
    table = table.set_index(["direction", "method"])["gc2"]
    for direction in _moves.DIRECTIONS:
        one, every = table[direction, "SAE"], table[direction, "SAE, every block"]
        assert every == pytest.approx(one, abs=1e-6)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_conditions_run_side_by_side_in_order(small_study, two_threads):
    def where(item):
        return item, torch.get_num_threads(), os.getpid()

    found = side_by_side(where, range(20), small_study, desc="test")
    assert [item for item, _, _ in found] == list(range(20))
    if sys.platform == "linux":
        assert {n for _, n, _ in found} == {1}, "cores are shared out"
        assert os.getpid() not in {process for _, _, process in found}
    large = SimpleNamespace(
        device="cpu", model=SimpleNamespace(config=SimpleNamespace(n_tokens=4096))
    )
    alone = side_by_side(where, range(3), large, desc="test")
    assert {(n, process) for _, n, process in alone} == {(2, os.getpid())}


def test_conditions_return_tensors_and_read_files(small_study, two_threads):
    """Copies of a process share positions in files unless files are opened anew."""
    windows = np.arange(len(small_study.dataset.windows))

    def read(turn):
        model, dataset = small_study.model, small_study.dataset
        few = np.roll(windows, turn)[:4]
        features = model.encode_sequence(torch.from_numpy(dataset.sequence(few)))
        return features.detach(), dataset.track(few, turn % len(small_study.design))

    together = side_by_side(read, range(12), small_study, desc="test")
    for turn, (features, track) in enumerate(together):
        expected = read(turn)
        torch.testing.assert_close(features, expected[0], rtol=0, atol=1e-5)
        np.testing.assert_array_equal(track, expected[1])


def test_errors_of_conditions_are_raised(small_study, two_threads):
    def refuse(item):
        if item == 3:
            raise ValueError("three is refused")

    with pytest.raises(ValueError, match="three is refused"):
        side_by_side(refuse, range(6), small_study, desc="test")


@pytest.mark.skipif(sys.platform != "linux", reason="one process elsewhere")
def test_a_killed_process_is_noticed(small_study, two_threads):
    def die(item):
        if item == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(RuntimeError, match="test: 1 not done"):
        side_by_side(die, range(6), small_study, desc="test")


# --- The whole chain on a real model --------------------------------------------------


@pytest.mark.slow
def test_causal_tests_of_an_untrained_model(small_study, tmp_path, monkeypatch):
    few = SAEConfig(d_sae=48, k=4, n_epochs=2, batch_size=512)
    monkeypatch.setattr(stages.train_saes, "__defaults__", (few,))
    monkeypatch.setattr(_ablation, "N_RANDOM", FEW)
    monkeypatch.setattr(_ablation, "N_WINDOWS", 8)
    monkeypatch.setattr(_steering, "N_TEST", 8)
    monkeypatch.setattr(_sweep, "N_TUNE", 4)
    study = replace(small_study, run=Run(tmp_path / "run"), blocks=[1])
    causal.register(study)
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
