import numpy as np
import pytest
import torch
from scipy import stats

from helpers.interventions import (
    ablate,
    ablation_deltas,
    block_bootstrap,
    diff_mean,
    edit_blocks,
    effect_size,
    effects,
    gap_closed,
    gap_terms,
    matched_random_sets,
    output_rescale,
    steer,
    steering_direction,
    written_norm,
)
from helpers.probe import capture, edited
from helpers.sae import BatchTopKSAE
from toy import ToyEpiBERT, ToySAE, toy_inputs


def orthonormal_sae(threshold=0.0):
    """Feature j reads and writes channel j, with 2 units of stream per unit."""
    sae = ToySAE(torch.eye(4), threshold)
    return sae


def random_sae(d=4, d_sae=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return ToySAE(torch.randn(d_sae, d, generator=generator), threshold=0.3)


def random_stream(seed=0, shape=(2, 6, 4)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_ablate_zero_removes_what_the_feature_wrote_and_keeps_the_error():
    x = torch.tensor([[[3.0, -2.0, 0.5, 1.0], [0.0, 4.0, 1.0, 0.0]]])
    edited_stream = ablate(x, orthonormal_sae(threshold=0.8), [0, 2], value="zero")
    # Channel 2 at 0.5 is below the threshold: not the feature's, so it stays.
    expected = torch.tensor([[[0.0, -2.0, 0.5, 1.0], [0.0, 4.0, 0.0, 0.0]]])
    assert torch.equal(edited_stream, expected)


def test_ablate_mean_and_resample_set_the_given_values():
    x, other = torch.ones(1, 2, 4), torch.full((1, 2, 4), 3.0)
    other[0, 1] = -1.0  # features silent there
    sae = orthonormal_sae()
    mean = ablate(x, sae, [1], value="mean", reference=torch.tensor([9.0, 7, 9, 9]))
    assert torch.equal(mean, torch.tensor([[[1.0, 7, 1, 1]] * 2]))
    resampled = ablate(x, sae, [1, 2], reference=other)
    assert torch.equal(resampled, torch.tensor([[[1.0, 3, 3, 1], [1, 0, 0, 1]]]))
    half = ablate(x, sae, [1, 2], reference=other, strength=0.5)
    assert torch.equal(half, (x + resampled) / 2)


def test_ablate_adds_the_change_times_the_decoder():
    x, other, sae = random_stream(1), random_stream(2), random_sae()
    features = [7, 2, 3]
    z, z_other = (sae.encode(v.flatten(0, 1)).unflatten(0, (2, 6)) for v in (x, other))
    expected = x + (z_other - z)[..., features] @ sae.decoder_directions[features]
    torch.testing.assert_close(ablate(x, sae, features, reference=other), expected)
    assert not torch.equal(expected, x)


def test_no_edit_returns_the_same_bits():
    x = random_stream(3)
    x[0, 0, 0] = -0.0
    sae = random_sae()
    before = x.clone()
    assert ablate(x, sae, [0, 5], reference=x) is x
    assert ablate(x, sae, [0, 5], value="zero", strength=0) is x
    assert steer(x, torch.ones(4), 0) is x and steer(x, torch.zeros(4), 3) is x
    # An edit of one token leaves the bits of the others, -0.0 included.
    other = x.clone()
    other[1, 2] += 1
    changed = ablate(x, sae, range(12), reference=other)
    rest = torch.ones(2, 6, dtype=torch.bool)
    rest[1, 2] = False
    bits = [v[rest].view(torch.int32) for v in (changed, x)]
    assert torch.equal(*bits) and not torch.equal(changed[1, 2], x[1, 2])
    assert torch.equal(x.view(torch.int32), before.view(torch.int32))


def test_ablate_keeps_half_precision_streams():
    x, sae = random_stream(4).half(), random_sae()
    edited_stream = ablate(x, sae, [1], value="zero")
    assert edited_stream.dtype == torch.float16
    exact = ablate(x.float(), sae, [1], value="zero")
    assert torch.equal(edited_stream, exact.half())


def test_ablation_deltas_agree_with_ablate_set_by_set():
    x, other, sae = random_stream(5), random_stream(6), random_sae()
    sets = [[0], [3, 8, 1], list(range(12))]
    deltas = list(ablation_deltas(x, sae, sets, reference=other, strength=0.5))
    for features, delta in zip(sets, deltas, strict=True):
        expected = ablate(x, sae, features, reference=other, strength=0.5)
        torch.testing.assert_close(x + delta, expected)


def test_edits_work_with_the_trained_sae_class():
    sae = BatchTopKSAE(4, 12, k=3)
    x, other = random_stream(7), random_stream(8)
    assert ablate(x, sae, [0], reference=x) is x
    everything = ablate(x, sae, range(12), reference=other)
    decoded = [sae.decode(sae.encode(v.flatten(0, 1))) for v in (x, other)]
    expected = x + (decoded[1] - decoded[0]).unflatten(0, (2, 6))
    torch.testing.assert_close(everything, expected.detach())


def test_steering_with_all_features_is_diff_mean_where_the_sae_is_exact():
    x0, x1 = random_stream(9).abs(), random_stream(10).abs() + 1
    sae = orthonormal_sae()
    means = [sae.encode(x.flatten(0, 1)).mean(dim=0) for x in (x0, x1)]
    direction = steering_direction(*means, sae, range(4))
    torch.testing.assert_close(direction, diff_mean(x0, x1))
    only = steering_direction(*means, sae, [2])
    torch.testing.assert_close(only, direction * torch.tensor([0.0, 0, 1, 0]))
    moved = steer(x0, direction, 1.0)
    torch.testing.assert_close(moved.mean(dim=(0, 1)), x1.mean(dim=(0, 1)))
    wider = torch.zeros(len(means[1]) + 1)
    with pytest.raises(ValueError, match=r"mean1 must have shape \(4,\).*got \(5,\)"):
        steering_direction(means[0], wider, sae, [2])


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ([], "non-empty"),
        ([12], "0 … 11, this SAE's; got 12 … 12"),
        ([-1, 2], "got -1 … 2"),
        ([1, 1], "distinct"),
        ([0.5], "integer"),
        (np.ones(12, dtype=bool), "integer"),
    ],
)
def test_edits_refuse_bad_features(features, message):
    x, sae = random_stream(), random_sae()
    with pytest.raises(ValueError, match=message):
        ablate(x, sae, features, value="zero")
    with pytest.raises(ValueError, match=message):
        list(ablation_deltas(x, sae, [features], value="zero"))
    with pytest.raises(ValueError, match=message):
        steering_direction(torch.zeros(12), torch.ones(12), sae, features)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"value": "median"}, "value must be one of"),
        ({"value": "resample"}, r"shape \(2, 6, 4\) for value='resample'; got None"),
        ({"value": "mean", "reference": torch.zeros(4)}, r"\(12,\).*got \(4,\)"),
        ({"value": "zero", "reference": torch.zeros(12)}, "None for value='zero'"),
        ({"value": "zero", "strength": float("nan")}, "strength must be finite"),
    ],
)
def test_ablate_refuses_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        ablate(random_stream(), random_sae(), [0], **options)


def test_steer_refuses_bad_doses_and_directions():
    with pytest.raises(ValueError, match="alpha must be finite; got inf"):
        steer(random_stream(), torch.ones(4), float("inf"))
    with pytest.raises(ValueError, match=r"finite vector of shape \(4,\)"):
        steer(random_stream(), torch.ones(3), 1.0)
    with pytest.raises(ValueError, match="finite vector"):
        steer(random_stream(), torch.full((4,), torch.nan), 1.0)


@pytest.mark.parametrize("batch_tokens", [1, 18, 1000])
def test_effects_equal_edited_full_passes(batch_tokens):
    model, inputs, layer = ToyEpiBERT.mixing(4), toy_inputs(), 1
    x = capture(model, inputs, [layer])[layer]
    sae, other = random_sae(), random_stream(11)
    sets = [[0, 1], [5], [2, 9, 11]]
    deltas = ablation_deltas(x, sae, sets, reference=other)
    result = effects(model, x, layer, deltas, batch_tokens=batch_tokens)
    with torch.no_grad():
        torch.testing.assert_close(result.baseline, model(*inputs))
        for i, features in enumerate(sets):
            stream = ablate(x, sae, features, reference=other)
            with edited(model, {layer: lambda _, s=stream: s}):
                torch.testing.assert_close(result.edited[i], model(*inputs))
            norm = (stream - x).flatten(1).norm(dim=1)
            torch.testing.assert_close(result.norm[i], norm)


def test_effects_measures_what_it_is_told_and_broadcasts_directions():
    model = ToyEpiBERT.place_value()
    x = torch.zeros(2, 6, 4)
    result = effects(
        model, x, 0, [torch.ones(4), torch.zeros(4)], outcome=lambda y: y.mean(dim=1)
    )
    assert result.baseline.tolist() == [440.0, 440.0]
    assert result.edited.tolist() == [[444.0, 444.0], [440.0, 440.0]]
    torch.testing.assert_close(result.norm, torch.tensor([[24.0, 24], [0, 0]]).sqrt())


def test_effects_never_holds_more_edits_than_a_batch():
    taken = []

    def deltas():
        for i in range(7):
            taken.append(i)
            yield torch.zeros(4)

    class Watching(ToyEpiBERT):
        def head(self, x):
            seen.append(len(taken))
            return super().head(x)

    seen: list[int] = []
    model = Watching([])
    model.blocks.append(torch.nn.Identity())
    effects(model, torch.zeros(2, 6, 4), 0, deltas(), batch_tokens=24)
    assert seen == [0, 2, 4, 6, 7]


def test_effects_refuses_no_edits_and_bad_layers():
    model, x = ToyEpiBERT.place_value(), torch.zeros(1, 6, 4)
    with pytest.raises(ValueError, match="at least one edit"):
        effects(model, x, 0, [])
    with pytest.raises(ValueError, match="0 … 2; got 3"):
        effects(model, x, 3, [torch.zeros(4)])
    with pytest.raises(ValueError, match="batch_tokens must be positive"):
        effects(model, x, 0, [torch.zeros(4)], batch_tokens=0)


def test_effects_equal_hooks_on_full_passes_without_running_the_tower():
    model = ToyEpiBERT.mixing(12, d=4)
    inputs, layer = toy_inputs(1), 10
    x = capture(model, inputs, [layer])[layer]
    sae, sets = random_sae(), [[i % 12, (i + 1) % 12] for i in range(20)]
    slow = []
    for features in sets:
        edit = {layer: lambda s, f=features: ablate(s, sae, f, value="zero")}
        with torch.no_grad(), edited(model, edit):
            slow.append(model(*inputs))
    calls = []
    for block in model.blocks:
        block.register_forward_hook(lambda *_, block=block: calls.append(block))
    model.encode_sequence = None  # would fail if it were called
    deltas = ablation_deltas(x, sae, sets, value="zero")
    fast = effects(model, x, layer, deltas).edited
    torch.testing.assert_close(fast, torch.stack(slow))
    assert set(calls) == {model.blocks[11]}
    assert len(calls) == 2, "once without an edit, once with all of them"


def test_edit_blocks_equals_one_forward_pass_with_both_edits():
    model, inputs = ToyEpiBERT.mixing(4, d=4), toy_inputs(2)
    sae = random_sae()
    edits = {
        block: lambda s, f=features: ablate(s, sae, f, value="zero")
        for block, features in ((1, [0, 3]), (2, [5]))
    }
    x = capture(model, inputs, [1])[1]
    with torch.no_grad(), edited(model, edits):
        expected = model(*inputs)
    torch.testing.assert_close(edit_blocks(model, x, edits), expected)
    unedited = edit_blocks(model, x, {1: lambda s: s})
    with torch.no_grad():
        assert torch.equal(unedited, model(*inputs))
    with pytest.raises(ValueError, match="at least one block"):
        edit_blocks(model, x, {})
    with pytest.raises(ValueError, match="0 … 3; got 4"):
        edit_blocks(model, x, {4: lambda s: s})


def feature_table(n=2000, seed=0):
    rng = np.random.default_rng(seed)
    density = rng.lognormal(-4, 1, size=n)
    return density, density * rng.lognormal(0, 1, size=n), rng


def test_written_norm_by_hand():
    sae = ToySAE(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
    feature_acts = torch.tensor([[[2.0, 0.0], [0.0, 4.0]]])
    assert written_norm(feature_acts, sae).tolist() == [5.0, 2.0]


def test_matched_random_sets_match_density_and_norm():
    density, norm, rng = feature_table()
    weight = np.sqrt(norm)
    selected = rng.choice(2000, size=60, replace=False, p=weight / weight.sum())
    candidates = np.setdiff1d(np.arange(2000), selected)
    matched = matched_random_sets(selected, candidates, density, norm)
    assert matched.sets.shape == (199, 60)
    assert not np.isin(matched.sets, selected).any()
    assert all(len(set(row)) == 60 for row in matched.sets)
    assert matched.density_p > 0.1 and matched.norm_p > 0.1
    # Unmatched draws would differ: the selection favors strong features.
    random = rng.choice(candidates, size=5000)
    assert stats.ks_2samp(norm[selected], norm[random]).pvalue < 1e-3
    again = matched_random_sets(selected, candidates, density, norm)
    assert np.array_equal(matched.sets, again.sets)
    assert len({tuple(sorted(row)) for row in matched.sets}) == 199


def test_matched_random_sets_take_the_nearest_where_there_is_room():
    level = np.repeat(np.arange(1.0, 11.0), 50)
    selected = np.array([499, 0, 130, 131])
    matched = matched_random_sets(selected, np.arange(500), level, level)
    assert matched.widened == 0
    assert (level[matched.sets] == level[selected]).all()


def test_matched_random_sets_say_how_far_they_widened():
    level = np.repeat(np.arange(1.0, 11.0), 50)
    selected, candidates = np.arange(450, 470), np.flatnonzero(level <= 7)
    with pytest.warns(UserWarning, match="loosely matched: up to 3.0 deciles away"):
        matched = matched_random_sets(selected, candidates, level, level, n_sets=20)
    assert matched.widened == pytest.approx(3)
    assert (level[matched.sets] == 7).all()


def test_matched_random_sets_use_every_candidate_if_they_must():
    level = np.arange(1.0, 21.0)
    with pytest.warns(UserWarning, match="loosely matched"):
        matched = matched_random_sets(np.arange(10), np.arange(20), level, level)
    assert (np.sort(matched.sets, axis=1) == np.arange(10, 20)).all()


def test_matched_random_sets_refuse_what_cannot_be_matched():
    density, norm, _ = feature_table(20)
    with pytest.raises(ValueError, match="larger than the alive .* 30 .* 20 alive"):
        matched_random_sets(np.arange(30), np.arange(20), density, norm)
    level = np.repeat(np.arange(1.0, 11.0), 50)
    far = np.arange(450, 470), np.flatnonzero(level <= 7), level, level
    with pytest.raises(ValueError, match="within 2 deciles .* widen to 3.0"):
        matched_random_sets(*far, n_sets=5, max_widened=2)
    with pytest.raises(ValueError, match="15 selected and 5 candidates"):
        matched_random_sets(np.arange(15), np.arange(20), density, norm)
    with pytest.raises(ValueError, match="selected must be integer .* float64"):
        matched_random_sets([0.5, 2.7], np.arange(20), density, norm)
    with pytest.raises(ValueError, match="0 selected"):
        matched_random_sets([], np.arange(20), density, norm)
    with pytest.raises(ValueError, match=r"dead or foreign \[20\]"):
        matched_random_sets([20], np.arange(20), density, norm)
    density[3] = 0
    with pytest.raises(ValueError, match=r"dead or foreign \[3\]"):
        matched_random_sets([1], np.arange(20), density, norm)


def outcomes(seed=0, shape=(8, 5)):
    rng = np.random.default_rng(seed)
    base, target = rng.gamma(2, size=shape), rng.gamma(3, size=shape)
    return base, target, base + 0.4 * (target - base) + 0.2 * rng.normal(size=shape)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_gap_closed_identity(seed, weighted):
    base, target, steered = outcomes(seed)
    weights = np.random.default_rng(seed).random(base.shape) if weighted else None
    result = gap_closed(base, target, steered, weights)
    p, q = result.progress, result.leakage
    assert result.gc2 == pytest.approx(2 * p - p**2 - q**2, abs=1e-8)
    assert result.gc_norm == pytest.approx(1 - np.sqrt(1 - result.gc2), abs=1e-12)


def test_gap_closed_of_known_steps():
    base, target, _ = outcomes()
    ceiling = gap_closed(base, target, target)
    np.testing.assert_allclose(ceiling, [1, 1, 1, 0, 1], atol=1e-12)
    np.testing.assert_allclose(gap_closed(base, target, base), 0, atol=1e-12)
    half = gap_closed(base, target, (base + target) / 2)
    np.testing.assert_allclose(half[:4], [0.75, 0.5, 0.5, 0], atol=1e-7)
    assert gap_closed(base, target, 2 * base - target).gc2 == pytest.approx(-3)


def test_gap_closed_is_a_weighted_ratio_of_sums():
    base, target = np.zeros((2, 2)), np.array([[1.0, 1.0], [3.0, 100.0]])
    steered = np.array([[1.0, 1.0], [0.0, 7.0]])
    weights = np.array([[1.0, 1.0], [1.0, 0.0]])
    result = gap_closed(base, target, steered, weights)
    assert result.gc2 == pytest.approx(1 - 9 / 11)
    remaining, gap = gap_terms(base, target, steered, weights)
    assert remaining.tolist() == [0, 9] and gap.tolist() == [2, 9]
    bootstrap = block_bootstrap(remaining, ["a", "b"], denominators=gap)
    assert 1 - bootstrap.estimate == pytest.approx(result.gc2)


def test_gap_closed_takes_tensors_and_constant_predictions():
    base, target = torch.zeros(3, 2), torch.rand(3, 2)
    result = gap_closed(base, target, target)
    assert result.gc2 == 1 and np.isnan(result.gc_corr)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": np.zeros((2, 2))}, "no gap to close"),
        ({"steered": np.zeros((2, 3))}, "one shape"),
        ({"steered": np.full((2, 2), np.nan)}, "steered must be finite"),
        ({"weights": -np.ones((2, 2))}, "non-negative"),
        ({"weights": np.zeros((2, 2))}, "no gap to close"),
    ],
)
def test_gap_closed_refuses(change, message):
    arguments = {
        "base": np.zeros((2, 2)),
        "target": np.ones((2, 2)),
        "steered": np.ones((2, 2)),
    }
    with pytest.raises(ValueError, match=message):
        gap_closed(**(arguments | change))


def test_output_rescale_closes_a_gap_of_scale_alone():
    base, _, _ = outcomes()
    target = np.expm1(0.3 + 1.5 * np.log1p(base))
    rescale = output_rescale(base[:4], target[:4])
    assert rescale == pytest.approx((0.3, 1.5))
    assert gap_closed(base, target, rescale(base)).gc2 == pytest.approx(1)
    with pytest.raises(ValueError, match="base must vary"):
        output_rescale(np.ones(5), np.arange(5))


def test_effect_size_by_hand():
    rng = np.random.default_rng(1)
    selected, random = rng.normal(1, 1, size=30), rng.normal(0, 1, size=(99, 30))
    result = effect_size(
        selected,
        random,
        selected_norm=np.full(30, 4.0),
        random_norm=np.full((99, 30), 2.0),
    )
    difference = selected - random.mean(axis=0)
    hedges = 1 - 3 / (4 * 29 - 1)
    assert result.effect == pytest.approx(selected.mean())
    assert result.d_z == pytest.approx(
        hedges * difference.mean() / difference.std(ddof=1)
    )
    null = random.mean(axis=1)
    assert result.z == pytest.approx((selected.mean() - null.mean()) / null.std(ddof=1))
    assert result.p == 1 / 100
    assert result.per_norm == pytest.approx(selected.mean() / 4)
    hits = (np.abs(null / 2) >= selected.mean() / 4).sum()
    assert result.p_per_norm == (1 + hits) / 100


def test_effect_size_separates_causal_from_big():
    rng = np.random.default_rng(2)
    norm = rng.lognormal(0, 0.2, size=(199, 40))
    random = norm * rng.normal(1, 0.3, size=(199, 1))
    big = effect_size(5 * norm[0], random, selected_norm=5 * norm[0], random_norm=norm)
    assert big.p == 1 / 200 and big.p_per_norm > 0.2


def test_effect_size_alternatives_and_null_p():
    rng = np.random.default_rng(3)
    selected, random = rng.normal(-1, 1, size=20), rng.normal(size=(99, 20))
    p = {
        side: effect_size(selected, random, alternative=side).p
        for side in ("two-sided", "greater", "less")
    }
    assert p == {"two-sided": 0.01, "greater": 1.0, "less": 0.01}
    null = [
        effect_size(rng.normal(size=10), rng.normal(size=(19, 10))).p
        for _ in range(400)
    ]
    assert np.mean(np.array(null) <= 0.05) == pytest.approx(0.05, abs=0.025)
    with pytest.raises(ValueError, match="alternative must be one of"):
        effect_size(selected, random, alternative="both")
    with pytest.raises(ValueError, match=r"random \(n_sets, n_windows\)"):
        effect_size(selected, random[:, :5])
