"""Pre-training: masks, batches and loss by closed forms; resuming bit for bit."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers import pretrain as pretrain_module
from helpers.epibert import EpiBERT, EpiBERTConfig
from helpers.pretrain import (
    PretrainConfig,
    TrainingArrays,
    draw_mask,
    load_arrays,
    masked_poisson_loss,
    predict_masked,
    pretrain,
)
from helpers.pretrain._batches import draw_batch, hide
from helpers.windows import WindowDataset, soft_clip, token_targets

N_TOKENS, N_MOTIFS, CROP = 32, 5, 2
MODEL = EpiBERTConfig(
    input_length=128 * N_TOKENS,
    n_heads=2,
    n_blocks=1,
    sequence_filters=(4,) * 6,
    atac_filters=(4, 4),
    n_motifs=N_MOTIFS,
    n_random_features=8,
    head_scale=1,
)
SHORT = PretrainConfig(
    n_steps=6, windows_per_step=2, biosamples_per_window=3, warmup_steps=2
)


@pytest.fixture(scope="module")
def arrays():
    """Random sequence and tracks of 3 biosamples and 4 windows, with a margin."""
    rng = np.random.default_rng(0)
    n_bp = 128 * N_TOKENS
    return TrainingArrays(
        codes=rng.integers(0, 4, (4, n_bp + 6), dtype=np.uint8),
        tracks=rng.gamma(0.2, 2.0, (3, 4, n_bp // 4)).astype(np.float16),
        in_peak=rng.random((3, 4, N_TOKENS)) < 0.1,
        motif_activity=rng.random((3, N_MOTIFS)).astype(np.float32),
    )


@pytest.fixture(scope="module")
def model():
    return EpiBERT(MODEL, random_state=1).eval()


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


# --- Masks ---


def published_mask(n, rng, triple=True, in_peak=None):
    """Masks of the published size: 4,096 tokens, 4,092 of them inner."""
    if in_peak is None:
        in_peak = np.zeros((n, 4096), dtype=bool)
    return draw_mask(in_peak, rng, crop=2, triple=triple)


def test_runs_of_twelve_are_hidden_with_probability_015():
    mask = published_mask(200, np.random.default_rng(0), triple=False)
    assert not mask[:, [0, 1, 4094, 4095]].any()
    runs = mask[:, 2:-2].reshape(200, 341, 12)
    assert np.array_equal(runs.any(axis=2), runs.all(axis=2))
    rate = runs.all(axis=2).mean()
    assert abs(rate - 0.15) < 4 * np.sqrt(0.15 * 0.85 / runs[..., 0].size)


def test_one_example_in_fifteen_is_tripled():
    mask = published_mask(1500, np.random.default_rng(1))
    rate = mask[:, 2:-2].mean(axis=1)
    tripled = rate > 0.3  # 8 SD from 0.15, 5 from 0.45
    assert abs(tripled.mean() - 1 / 15) < 4 * np.sqrt(14 / 15**2 / 1500)
    assert rate[~tripled].mean() == pytest.approx(0.15, abs=0.002)
    assert rate[tripled].mean() == pytest.approx(0.45, abs=0.01)
    alone = published_mask(300, np.random.default_rng(1), triple=False)
    assert alone[:, 2:-2].mean(axis=1).max() < 0.3


def test_thirteen_tokens_around_one_peak_are_hidden():
    rng = np.random.default_rng(2)
    in_peak = np.zeros((2000, 64), dtype=bool)
    in_peak[:, [20, 45]] = True
    mask = draw_mask(in_peak, rng, crop=2)
    first, second = mask[:, 14:27].all(axis=1), mask[:, 39:52].all(axis=1)
    assert (first | second).all()
    # The other one is only hidden by chance, its three runs together.
    only = first & ~second
    assert only.mean() == pytest.approx(0.5, abs=0.06)
    # Beside the peak and out of its runs, tokens are hidden at the rate of runs.
    assert mask[only][:, 2:14].mean() == pytest.approx(0.17, abs=0.04)


def test_peaks_at_the_edge_hide_what_there_is():
    in_peak = np.zeros((400, 64), dtype=bool)
    in_peak[:200, 1] = True
    in_peak[200:, 63] = True
    mask = draw_mask(in_peak, np.random.default_rng(3), crop=2)
    assert mask[:200, :8].all()
    assert mask[200:, 57:].all()
    assert not mask[:200, 62:].any()
    assert not mask[200:, :2].any()


def test_windows_without_peaks_have_runs_only():
    mask = draw_mask(
        np.zeros((500, 29), dtype=bool), np.random.default_rng(4), crop=2, triple=False
    )
    runs = [mask[:, 2:14], mask[:, 14:26], mask[:, 26:27]]  # the last one is cut short
    for run in runs:
        assert np.array_equal(run.any(axis=1), run.all(axis=1))
        assert run[:, 0].mean() == pytest.approx(0.15, abs=0.07)
    assert (~mask.any(axis=1)).mean() == pytest.approx(0.85**3, abs=0.1)


# --- Loss and schedule ---


def test_loss_is_the_poisson_mean_over_masked_tokens():
    predicted = torch.tensor([[1.0, 2.0, 9.0], [4.0, 9.0, 9.0]])
    target = torch.tensor([[3.0, 0.0, 5.0], [4.0, 5.0, 5.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    expected = ((1 - 3 * np.log(1)) + (2 - 0) + (4 - 4 * np.log(4))) / 3
    assert masked_poisson_loss(predicted, target, mask).item() == pytest.approx(
        expected, abs=1e-6
    )
    assert masked_poisson_loss(predicted, target, mask & False) == 0


def test_loss_is_least_where_prediction_is_truth():
    target = torch.tensor([[0.5, 3.0, 40.0]], dtype=torch.float64)
    predicted = target.clone().requires_grad_()
    mask = torch.tensor([[True, True, False]])
    masked_poisson_loss(predicted, target, mask).backward()
    assert predicted.grad[0].tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    predicted = (target + 1).requires_grad_()
    masked_poisson_loss(predicted, target, mask).backward()
    expected = [(1 - t / (t + 1)) / 2 for t in (0.5, 3.0)] + [0.0]
    assert predicted.grad[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_rate_warms_up_and_falls_to_a_tenth():
    config = PretrainConfig(n_steps=1100, warmup_steps=100, learning_rate=1e-3)
    rates = [pretrain_module._rate(step, config) for step in range(1101)]
    assert rates[:2] == pytest.approx([1e-5, 2e-5])
    assert rates[99] == rates[100] == pytest.approx(1e-3)
    assert rates[600] == pytest.approx(0.55e-3)
    assert rates[1100] == pytest.approx(1e-4)
    assert (np.diff(rates[100:]) <= 0).all()
    assert pretrain_module._rate(0, replace(config, warmup_steps=0)) == 1e-3


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_steps", 0),
        ("windows_per_step", 0),
        ("biosamples_per_window", -1),
        ("warmup_steps", -1),
        ("seed", -1),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
    ],
)
def test_config_rejects_values_out_of_range(field, value):
    with pytest.raises(ValueError, match=f"{field} must be .*; got {value}"):
        PretrainConfig(**{field: value})


# --- Batches ---


def test_hide_sets_tokens_to_zero_and_clips_the_rest():
    track = np.full((1, 3 * 32), 154.0, dtype=np.float32)
    shown = hide(track, np.array([[False, True, False]]))
    assert shown.dtype == np.float32
    assert shown.reshape(3, 32).tolist() == [[152.0] * 32, [0.0] * 32, [152.0] * 32]


COMPLEMENT = {0: 3, 1: 2, 2: 1, 3: 0}


def locate(codes, arrays):
    """Find window, shift and strand of a sequence in a batch, by trying all."""
    length = len(codes)
    reverse = np.array([COMPLEMENT[c] for c in codes[::-1]])
    for window, stored in enumerate(arrays.codes):
        for shift in range(4):
            there = stored[3 + shift : 3 + shift + length]
            if np.array_equal(there, codes):
                return window, shift, False
            if np.array_equal(there, reverse):
                return window, shift, True
    raise AssertionError("the sequence is not in the data")


def test_batches_keep_sequence_track_and_mask_together(arrays):
    seen, bins = set(), arrays.tracks.shape[-1]
    for seed in range(20):
        rng = np.random.default_rng(seed)
        batch = draw_batch(arrays, rng, n_windows=3, n_biosamples=3, crop=CROP)
        windows = []
        for i, codes in enumerate(batch["codes"]):
            window, shift, flipped = locate(codes, arrays)
            windows.append(window)
            seen.add((shift, flipped))
            biosamples = []
            for j in range(3 * i, 3 * i + 3):
                vector = batch["motif_activity"][j]
                difference = np.abs(arrays.motif_activity - vector).max(axis=1)
                assert difference.min() < 1e-3  # noise of 1e-4
                biosamples.append(difference.argmin())
                track = arrays.tracks[biosamples[-1], window].astype(np.float32)
                track = track[::-1] if flipped else track
                target = token_targets(track)
                assert np.allclose(batch["target"][j], target, atol=0.02)
                assert (batch["target"][j] > target).all()  # the noise is there too
                shown = batch["atac"][j].reshape(N_TOKENS, 32)
                hidden = batch["mask"][j]
                assert (shown[hidden] == 0).all()
                clipped = soft_clip(track, 150.0).reshape(N_TOKENS, 32)
                assert np.allclose(shown[~hidden], clipped[~hidden], atol=1e-3)
                assert (shown[~hidden] > 0).all()
            assert len(set(biosamples)) == 3
        assert len(set(windows)) == 3
    assert seen == {(shift, flip) for shift in range(4) for flip in (False, True)}
    assert batch["atac"].shape == (9, bins)
    assert {k: v.dtype.str[1:] for k, v in batch.items()} == {
        "codes": "u1",
        "target": "f4",
        "atac": "f4",
        "mask": "b1",
        "motif_activity": "f4",
    }


def test_masks_are_reversed_with_their_windows(arrays):
    """The only peak of every window is at token 8; 13 tokens around it are hidden."""
    in_peak = np.zeros_like(arrays.in_peak)
    in_peak[:, :, 8] = True
    marked = replace(arrays, in_peak=in_peak)
    rng = np.random.default_rng(0)
    batch = draw_batch(marked, rng, n_windows=4, n_biosamples=1, crop=CROP)
    flips = [locate(codes, arrays)[2] for codes in batch["codes"]]
    assert len(set(flips)) == 2
    for flipped, mask in zip(flips, batch["mask"], strict=True):
        center = N_TOKENS - 1 - 8 if flipped else 8
        assert mask[center - 6 : center + 7].all()


def test_more_biosamples_than_there_are_repeat(arrays):
    rng = np.random.default_rng(0)
    batch = draw_batch(arrays, rng, n_windows=1, n_biosamples=5, crop=CROP)
    assert batch["target"].shape == (5, N_TOKENS)


def test_load_arrays_reads_what_the_data_set_holds(small_dataset):
    windows, biosamples = np.array([4, 79, 0]), np.array([3, 0])
    data = load_arrays(small_dataset, windows, biosamples)
    assert np.array_equal(
        data.codes[:, 3:-3], [small_dataset.codes(w) for w in windows]
    )
    assert (data.codes[2, :3] == 4).all()  # before the start of a chromosome
    for i, b in enumerate(biosamples):
        track = small_dataset.track(windows, b).astype(np.float16)
        assert np.array_equal(data.tracks[i], track)
        assert np.array_equal(data.in_peak[i], small_dataset.in_peak(b)[windows])
    assert np.array_equal(data.motif_activity, small_dataset.motif_activity[biosamples])
    assert data.margin == 3
    with pytest.raises(ValueError, match="0 windows, 2 biosamples"):
        load_arrays(small_dataset, [], biosamples)


def test_load_arrays_keeps_signal_finite(small_dataset, monkeypatch):
    def track(self, windows, biosample):
        return np.full((len(windows), 1024), 1e6, dtype=np.float32)

    monkeypatch.setattr(WindowDataset, "track", track)
    data = load_arrays(small_dataset, [0], [0])
    assert (data.tracks == np.finfo(np.float16).max).all()


def test_digest_tells_data_apart(arrays):
    again = TrainingArrays(**vars(arrays))
    assert again.digest() == arrays.digest()
    for name in ("codes", "tracks", "in_peak", "motif_activity"):
        values = getattr(arrays, name).copy()
        values.flat[0] = 1 - values.flat[0]
        assert replace(arrays, **{name: values}).digest() != arrays.digest()


# --- Training ---


def test_pretraining_learns_what_the_track_shows(arrays):
    """Every token of biosample 1 has signal 32, of biosample 0 none."""
    tracks = np.zeros((2, 4, arrays.tracks.shape[-1]), dtype=np.float16)
    tracks[1] = 1.0
    easy = TrainingArrays(
        codes=arrays.codes,
        tracks=tracks,
        in_peak=arrays.in_peak[:2],
        motif_activity=np.eye(2, N_MOTIFS, dtype=np.float32),
    )
    config = PretrainConfig(
        n_steps=100,
        windows_per_step=1,
        biosamples_per_window=2,
        learning_rate=0.02,
        warmup_steps=5,
    )
    records = []
    trained = pretrain(
        easy, replace(MODEL, dropout=0.0), config, progress=records.append
    )
    assert not trained.training
    assert [r["step"] for r in records] == [100]
    assert set(records[0]) == {"step", "loss", "learning_rate", "seconds"}
    result = predict_masked(trained, easy)
    assert (result.target == np.array([0, 32]).reshape(2, 1, 1)).all()
    off, on = (result.predicted[b][result.mask[b]] for b in (0, 1))
    assert np.median(off) < 4
    assert np.median(on) == pytest.approx(32, abs=8)


def test_pretraining_is_reproducible_and_leaves_global_generators_alone(arrays):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = state_of(pretrain(arrays, MODEL, SHORT))
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(6)
    assert same(first, state_of(pretrain(arrays, MODEL, SHORT)))
    other = replace(SHORT, seed=1)
    assert not same(first, state_of(pretrain(arrays, MODEL, other)))


def kill_at(monkeypatch, step):
    """Let the training be killed before it takes its step of this number.

    Returns the list in which the batches of the steps taken will be.
    """
    take, done = pretrain_module._step, []

    def killed(model, optimizer, batch, rate, **options):
        if len(done) == step:
            raise KeyboardInterrupt
        done.append(batch)
        return take(model, optimizer, batch, rate, **options)

    monkeypatch.setattr(pretrain_module, "_step", killed)
    return done


def test_every_step_draws_its_own_batch(arrays, monkeypatch):
    batches = kill_at(monkeypatch, None)
    pretrain(arrays, MODEL, SHORT)
    assert len({batch["target"].tobytes() for batch in batches}) == 6


@pytest.mark.parametrize("step", [1, 2, 5])
def test_killed_training_continues_to_the_same_weights(
    arrays, tmp_path, monkeypatch, step
):
    undisturbed = state_of(pretrain(arrays, MODEL, SHORT))
    path = tmp_path / "made" / "training.pt"
    resumable = {"checkpoint": path, "checkpoint_every": 2}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        kill_at(patch, step)
        pretrain(arrays, MODEL, SHORT, **resumable)
    assert path.exists() == (step >= 2)
    (tmp_path / "made" / "training.pt.partial").write_bytes(b"half a checkpoint")
    with monkeypatch.context() as patch:
        done = kill_at(patch, None)
        resumed = pretrain(arrays, MODEL, SHORT, **resumable)
    assert len(done) == 6 - step + step % 2  # steps after the last checkpoint, again
    assert same(state_of(resumed), undisturbed)
    with monkeypatch.context() as patch:
        done = kill_at(patch, None)
        finished = pretrain(arrays, MODEL, SHORT, **resumable)
    assert done == []  # a checkpoint stands at the end
    assert same(state_of(finished), undisturbed)
    assert [p.name for p in path.parent.iterdir()] == ["training.pt"]


def test_checkpoints_of_another_recipe_or_data_are_refused(arrays, tmp_path):
    path = tmp_path / "training.pt"
    config = replace(SHORT, n_steps=1)
    pretrain(arrays, MODEL, config, checkpoint=path)
    content = path.read_bytes()
    other = TrainingArrays(**vars(arrays) | {"in_peak": ~arrays.in_peak})
    for data, model, training, what in (
        (arrays, MODEL, replace(config, learning_rate=1e-4), "training"),
        (arrays, MODEL, replace(config, n_steps=2), "training"),
        (arrays, replace(MODEL, dropout=0.1), config, "model"),
        (other, MODEL, config, "data"),
        (other, MODEL, replace(config, seed=3), "training"),
    ):
        with pytest.raises(
            ValueError,
            match=rf"training\.pt: checkpoint of another run, with another {what}:",
        ):
            pretrain(data, model, training, checkpoint=path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_damaged_checkpoints_are_named(arrays, tmp_path, share):
    path = tmp_path / "training.pt"
    pretrain(arrays, MODEL, replace(SHORT, n_steps=1), checkpoint=path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"training\.pt: not a checkpoint"):
        pretrain(arrays, MODEL, SHORT, checkpoint=path)


def test_files_that_are_no_checkpoint_are_named(arrays, tmp_path):
    path = tmp_path / "training.pt"
    for content in ({"weights": torch.zeros(3)}, [1, 2]):
        torch.save(content, path)
        with pytest.raises(ValueError, match=r"training\.pt: not a checkpoint"):
            pretrain(arrays, MODEL, SHORT, checkpoint=path)


def test_a_loss_that_is_not_finite_ends_the_training(arrays, tmp_path):
    wrong = TrainingArrays(
        **vars(arrays) | {"tracks": np.full_like(arrays.tracks, np.nan)}
    )
    path = tmp_path / "training.pt"
    with pytest.raises(FloatingPointError, match="the loss is nan at step 0"):
        pretrain(wrong, MODEL, SHORT, checkpoint=path, checkpoint_every=1)
    assert not path.exists()


def test_sizes_are_checked_before_training(arrays):
    with pytest.raises(ValueError, match=r"takes 5 windows; the data have 4"):
        pretrain(arrays, MODEL, replace(SHORT, windows_per_step=5))
    with pytest.raises(ValueError, match=r"expects 6 motifs; the data have 5"):
        pretrain(arrays, replace(MODEL, n_motifs=6), SHORT)
    with pytest.raises(ValueError, match=r"windows of 2048 bins; .* \(3, 4, 1024\)"):
        pretrain(arrays, replace(MODEL, input_length=8192), SHORT)
    with pytest.raises(ValueError, match="checkpoint_every must be at least 1; got 0"):
        pretrain(arrays, MODEL, SHORT, checkpoint_every=0)


# --- Masked prediction ---


def test_predictions_do_not_depend_on_what_was_hidden(arrays, model):
    result = predict_masked(model, arrays, random_state=3)
    assert result.predicted.shape == (3, 4, N_TOKENS - 2 * CROP)
    assert 0.1 < result.mask.mean() < 0.7
    full = draw_mask(
        arrays.in_peak.reshape(-1, N_TOKENS),
        np.random.default_rng(3),
        crop=CROP,
        triple=False,
    ).reshape(3, 4, N_TOKENS)
    assert np.array_equal(result.mask, full[..., CROP:-CROP])
    tracks = arrays.tracks.copy()
    tracks[np.repeat(full, 32, axis=-1)] += 7
    again = predict_masked(model, replace(arrays, tracks=tracks), random_state=3)
    assert np.array_equal(again.predicted, result.predicted)
    gain = again.target - result.target
    assert np.allclose(gain, 7 * 32 * result.mask, rtol=0.01)
    other = predict_masked(model, arrays, random_state=4)
    assert not np.array_equal(other.mask, result.mask)


def test_masked_prediction_is_the_forward_pass(arrays, model):
    result = predict_masked(model, arrays, random_state=3)
    full = np.zeros((3, 4, N_TOKENS), dtype=bool)
    full[..., CROP:-CROP] = result.mask
    # Tokens at the edge can be hidden by a peak; draw them as they were drawn.
    full |= draw_mask(
        arrays.in_peak.reshape(-1, N_TOKENS),
        np.random.default_rng(3),
        crop=CROP,
        triple=False,
    ).reshape(full.shape)
    codes = torch.from_numpy(arrays.codes[[2], 3:-3]).long()
    sequence = torch.nn.functional.one_hot(codes, 4).float()
    track = arrays.tracks[1, 2].astype(np.float32)
    shown = np.where(np.repeat(full[1, 2], 32), 0, soft_clip(track, 150.0))
    motif = torch.from_numpy(arrays.motif_activity[[1]])
    with torch.no_grad():
        expected = model(sequence, torch.from_numpy(shown)[None].float(), motif)
    assert np.allclose(result.predicted[1, 2], expected[0], atol=1e-5)
    target = token_targets(track)[CROP:-CROP]
    assert np.array_equal(result.target[1, 2], target)


def test_batch_size_does_not_matter(arrays, model):
    one, all_at_once = (predict_masked(model, arrays, batch_size=b) for b in (1, 99))
    assert np.allclose(one.predicted, all_at_once.predicted, atol=1e-5)
    assert np.array_equal(one.mask, all_at_once.mask)


def test_without_neighbors_the_track_is_not_seen(arrays, model):
    plain = predict_masked(model, arrays)
    result = predict_masked(model, arrays, without="neighbors")
    assert np.array_equal(result.mask, plain.mask)
    assert np.array_equal(result.target, plain.target)
    assert not np.allclose(result.predicted, plain.predicted)
    empty = replace(arrays, tracks=np.zeros_like(arrays.tracks))
    unseen = predict_masked(model, empty, without="neighbors")
    assert np.array_equal(unseen.predicted, result.predicted)


def test_without_motif_activity_biosamples_share_the_mean(arrays, model):
    plain = predict_masked(model, arrays)
    result = predict_masked(model, arrays, without="motif_activity")
    assert np.array_equal(result.mask, plain.mask)
    assert not np.allclose(result.predicted, plain.predicted)
    mean = np.broadcast_to(arrays.motif_activity.mean(axis=0), (3, N_MOTIFS))
    averaged = predict_masked(model, replace(arrays, motif_activity=mean.copy()))
    assert np.allclose(result.predicted, averaged.predicted, atol=1e-6)


def test_masked_prediction_checks_its_arguments(arrays, model):
    with pytest.raises(ValueError, match="without must be .*; got 'sequence'"):
        predict_masked(model, arrays, without="sequence")
    with pytest.raises(ValueError, match="batch_size must be at least 1; got 0"):
        predict_masked(model, arrays, batch_size=0)
    with pytest.raises(ValueError, match="in inference mode"):
        predict_masked(EpiBERT(MODEL).train(), arrays)
    with pytest.raises(ValueError, match="expects 6 motifs; the data have 5"):
        predict_masked(EpiBERT(replace(MODEL, n_motifs=6)).eval(), arrays)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pretraining_on_a_gpu_resumes_and_predicts(arrays, tmp_path, monkeypatch):
    path = tmp_path / "training.pt"
    config = replace(SHORT, bfloat16=True)
    state = torch.cuda.get_rng_state()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        kill_at(patch, 4)
        pretrain(
            arrays, MODEL, config, device="cuda", checkpoint=path, checkpoint_every=2
        )
    trained = pretrain(arrays, MODEL, config, device="cuda", checkpoint=path)
    assert torch.equal(torch.cuda.get_rng_state(), state)
    on_gpu = predict_masked(trained, arrays, device="cuda")
    on_cpu = predict_masked(trained.cpu(), arrays)
    assert np.allclose(on_gpu.predicted, on_cpu.predicted, rtol=1e-2, atol=1e-2)
