"""EpiBERT against a numpy implementation that shares none of its layers."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import reference_epibert
from helpers.checkpoints import authors_layout, read_tf_checkpoint
from helpers.epibert import _PIECE_BP, TOKEN_BP, EpiBERT, EpiBERTConfig
from test_checkpoints import write_checkpoint

TINY = Path(__file__).parent / "data" / "epibert_tiny"

# Head widths that no power of two divides evenly among 256 random features, one wider
# than 256; windows that a piece of the sequence tower neither holds nor divides.
CONFIGS = {
    "2 heads of 22": EpiBERTConfig(
        input_length=113 * TOKEN_BP,
        n_heads=2,
        n_blocks=1,
        sequence_filters=(7, 9, 11, 13, 15, 44),
        atac_filters=(3, 5),
        n_motifs=1,
        motif_units=4,
        projection_seed=0,
        crop=0,
        head_scale=1,
    ),
    "3 heads of 10": EpiBERTConfig(
        input_length=150 * TOKEN_BP,
        n_heads=3,
        n_blocks=5,
        sequence_filters=(33, 17, 21, 5, 19, 30),
        atac_filters=(48, 7),
        n_motifs=29,
        motif_units=11,
        projection_seed=3,
        crop=1,
        head_scale=7,
    ),
    "4 heads of 6": EpiBERTConfig(
        input_length=225 * TOKEN_BP,
        n_heads=4,
        n_blocks=2,
        sequence_filters=(5, 6, 12, 12, 18, 24),
        atac_filters=(1, 3),
        n_motifs=7,
        motif_units=9,
        projection_seed=21,
        crop=5,
        head_scale=5,
        final_norm=False,
    ),
    "6 heads of 14": EpiBERTConfig(
        input_length=239 * TOKEN_BP,
        n_heads=6,
        n_blocks=3,
        sequence_filters=(15, 16, 24, 32, 48, 84),
        atac_filters=(9, 70),
        n_motifs=693,
        motif_units=50,
        projection_seed=1234,
        crop=2,
        head_scale=6,
    ),
    "2 heads of 300": EpiBERTConfig(
        input_length=127 * TOKEN_BP,
        n_heads=2,
        n_blocks=2,
        sequence_filters=(8, 8, 10, 12, 14, 600),
        atac_filters=(32, 64),
        n_motifs=40,
        motif_units=32,
        projection_seed=5,
        crop=61,
        head_scale=11,
    ),
    "1 head of 50": EpiBERTConfig(
        input_length=341 * TOKEN_BP,
        n_heads=1,
        n_blocks=4,
        sequence_filters=(20, 3, 20, 3, 20, 50),
        atac_filters=(5, 13),
        n_motifs=3,
        motif_units=6,
        projection_seed=2**33 + 1,
        crop=5,
        head_scale=50,
        final_norm=False,
    ),
}

# Standard deviation of a kernel times the square root of its inputs, by a part of its
# key: near those of the TensorFlow fixture, whose residuals reach about 20.
GAINS = {
    "/dense/": 2.0,
    "conv_tower/": 1.7,
    "stem_conv/": 1.7,
    "stem_conv_atac/": 0.15,
    "motif_activity": 4.0,
    "pre_transformer_projection": 1.5,
    "query_dense_layer": 3.0,
    "key_dense_layer": 3.0,
    "output_dense_layer": 2.0,
    "final_pointwise_conv": 2.0,
    "final_dense_profile": 2.0,
}


def random_tensors(config, seed):
    """Draw the authors' tensors of a model, none of them at its default."""
    rng = np.random.default_rng(seed)

    def draw(key, shape):
        leaf = key.rsplit("/", 1)[-1]
        if leaf == "moving_variance":
            # Without a final norm the head gets the stream as it is, and scales it.
            spread = 5 if key.startswith("final") and not config.final_norm else 1
            return rng.uniform(0.5, 2.0, shape).astype(np.float32) * spread**2
        normal = rng.standard_normal(shape, np.float32)
        if leaf == "kernel":
            # Queries, keys and values read the stream, the first axis; others all
            # axes but the last.
            is_read = "self_attention" in key and "output" not in key
            n_inputs = shape[0] if is_read else math.prod(shape[:-1])
            gain = next((g for part, g in GAINS.items() if part in key), 1.0)
            return normal * np.float32(gain / math.sqrt(n_inputs))
        center, spread = {
            "gamma": (1.0, 0.25),
            "beta": (0.0, 0.25),
            "moving_mean": (0.0, 0.3),
            "bias": (0.0, 0.1),
        }[leaf]
        return np.float32(center) + np.float32(spread) * normal

    with torch.device("meta"):
        layout = authors_layout(EpiBERT(config))
    tensors = {key: draw(key, layout[key].shape) for key in sorted(layout)}
    tensors["final_dense_profile/bias"] += 3.0  # keeps outputs away from zero
    return tensors


def random_inputs(config, seed):
    """Draw a window with unknown bases, masked bins and soft-clipped peaks."""
    rng = np.random.default_rng(seed)
    n_tokens = config.n_tokens
    sequence = np.eye(4, dtype=np.float32)[rng.integers(0, 4, config.input_length)]
    sequence[rng.random(config.input_length) < 0.01] = 0
    gap = rng.integers(0, config.input_length)
    sequence[gap : gap + 1000] = 0
    atac = rng.exponential(1.0, (n_tokens, 32)) * rng.choice([0, 1, 300], (n_tokens, 1))
    atac *= rng.random((n_tokens, 32)) < 0.3
    atac = np.where(atac > 150, 150 + np.sqrt(np.maximum(atac - 150, 0)), atac)
    atac[rng.random(n_tokens) < 0.15] = 0
    return (
        sequence,
        atac.ravel().astype(np.float32),
        rng.random(config.n_motifs, np.float32),
    )


@torch.no_grad()
def run_model(model, inputs):
    """Return residual streams and output of one forward pass over one window."""
    residuals = []

    def keep(module, arguments, stream):
        residuals.append(stream.squeeze(0).clone().numpy())

    for module in (model.input_projection, *model.blocks):
        module.register_forward_hook(keep)
    output = model(*(torch.from_numpy(x).unsqueeze(0) for x in inputs))
    return residuals, output.squeeze(0).numpy()


def run_reference(tensors, config, inputs, **options):
    return reference_epibert.forward(
        tensors, *inputs, crop=config.crop, seed=config.projection_seed, **options
    )


def load(name, folder):
    """Return a model of ``CONFIGS``, read from a checkpoint, its tensors and inputs."""
    config, seed = CONFIGS[name], 10 + list(CONFIGS).index(name)
    tensors = random_tensors(config, seed)
    write_checkpoint(folder / "ckpt-1", tensors, n_shards=2)
    model = EpiBERT.from_pretrained(folder / "ckpt-1", config)
    return model, tensors, random_inputs(config, seed)


def assert_close(found, expected, atol):
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("window", [0, 1])
@pytest.mark.parametrize("piece_bp", [None, 17 * TOKEN_BP])
def test_reference_agrees_with_tensorflow(window, piece_bp):
    arguments = json.loads((TINY / "tiny_config.json").read_text())
    config = EpiBERTConfig.from_authors(arguments)
    with np.load(TINY / "tiny.npz") as file:
        fixture = {
            name: array[window].squeeze()
            for name, array in file.items()
            if array.dtype == np.float32 and len(array) == 2
        }
    inputs = [fixture[name] for name in ("sequence", "atac", "motif_activity")]
    tensors = read_tf_checkpoint(TINY / "ckpt-1")
    found = run_reference(tensors, config, inputs, piece_bp=piece_bp)
    names = ["resid_0_pre_transformer_projection"]
    names += [f"resid_{i + 1}_after_layer_{i}" for i in range(config.n_blocks)]
    for name, residual in zip(names, found.residuals, strict=True):
        assert_close(residual, fixture[name], 1e-4)
    assert_close(found.uncropped, fixture["uncropped_output"], 5e-5)
    assert_close(found.output, fixture["output"], 5e-5)


def test_configurations_cut_the_window_into_uneven_pieces():
    for config in CONFIGS.values():
        assert config.input_length > _PIECE_BP
        assert config.input_length % _PIECE_BP


@pytest.mark.parametrize("name", CONFIGS)
def test_model_agrees_with_reference(name, tmp_path):
    model, tensors, inputs = load(name, tmp_path)
    residuals, output = run_model(model, inputs)
    expected = run_reference(tensors, model.config, inputs)
    assert len(output) == model.config.n_outputs
    for residual, truth in zip(residuals, expected.residuals, strict=True):
        assert 5 < np.abs(truth).max() < 60  # or the tolerance would mean little
        assert_close(residual, truth, 1e-4)
    assert output.std() > 0.1
    assert_close(output, expected.output, 5e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_model_in_double_precision_is_the_reference(name, tmp_path):
    """What float32 rounds away, such as the epsilon of a layer norm, shows here."""
    model, tensors, inputs = load(name, tmp_path)
    inputs = [x.astype(np.float64) for x in inputs]
    residuals, output = run_model(model.double(), inputs)
    expected = run_reference(tensors, model.config, inputs)
    for residual, truth in zip(residuals, expected.residuals, strict=True):
        assert_close(residual, truth, 1e-10)
    assert_close(output, expected.output, 1e-10)


SMALL = EpiBERTConfig(
    input_length=8 * TOKEN_BP,
    n_heads=3,
    n_blocks=2,
    sequence_filters=(4, 5, 6, 7, 8, 12),
    atac_filters=(3, 5),
    n_motifs=4,
)


def test_every_tensor_moves_the_reference_from_its_layer_on():
    tensors, inputs = random_tensors(SMALL, 0), random_inputs(SMALL, 0)
    before = run_reference(tensors, SMALL, inputs)
    for key, tensor in tensors.items():
        change = 0.01 * np.random.default_rng(1).standard_normal(tensor.shape)
        after = run_reference(tensors | {key: tensor + change}, SMALL, inputs)
        assert not np.array_equal(after.output, before.output), key
        changed = [
            not np.array_equal(a, b)
            for a, b in zip(after.residuals, before.residuals, strict=True)
        ]
        path = key.split("/")
        if path[:2] == ["performer", "layers"]:
            first = int(path[2]) + 1
        else:
            is_head = path[0].startswith(("final", "performer"))
            first = len(changed) if is_head else 0
        assert changed == [i >= first for i in range(len(changed))], key


@pytest.mark.parametrize("position", range(3))
def test_every_input_moves_the_reference(position):
    tensors, inputs = random_tensors(SMALL, 0), random_inputs(SMALL, 0)
    before = run_reference(tensors, SMALL, inputs)
    changed = list(inputs)
    changed[position] = changed[position][::-1].copy()
    after = run_reference(tensors, SMALL, changed)
    assert not np.array_equal(after.output, before.output)


def test_projection_seed_moves_the_reference():
    tensors, inputs = random_tensors(SMALL, 0), random_inputs(SMALL, 0)
    other = dataclasses.replace(SMALL, projection_seed=20)
    before = run_reference(tensors, SMALL, inputs)
    after = run_reference(tensors, other, inputs)
    assert np.array_equal(after.residuals[0], before.residuals[0])
    assert not np.array_equal(after.output, before.output)
