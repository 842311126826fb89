import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from helpers import epibert
from helpers.epibert import (
    _PIECE_BP,
    TOKEN_BP,
    EpiBERT,
    EpiBERTConfig,
    projection_matrix,
    rotary_table,
)
from helpers.epibert._convolution import SoftmaxPool, max_pool
from helpers.epibert._performer import PerformerAttention, _philox, _rotary_frequency

DATA = Path(__file__).parent / "data"
TINY = DATA / "epibert_tiny"
SMALL = EpiBERTConfig(
    input_length=1024,
    n_heads=2,
    n_blocks=3,
    sequence_filters=(4, 4, 6, 6, 8, 16),
    atac_filters=(4, 8),
    n_motifs=5,
)


@pytest.fixture(scope="module")
def reference():
    """Everything the TensorFlow model computed on the fixture."""
    with np.load(TINY / "tiny.npz") as file:
        return {
            name: torch.from_numpy(file[name])
            for name in file.files
            if file[name].dtype == np.float32
        }


@pytest.fixture(scope="module")
def inputs(reference):
    return (
        reference["sequence"],
        reference["atac"].squeeze(-1),
        reference["motif_activity"].squeeze(1),
    )


@pytest.fixture(scope="module")
def tiny():
    arguments = json.loads((TINY / "tiny_config.json").read_text())
    return EpiBERT.from_pretrained(
        TINY / "ckpt-1", EpiBERTConfig.from_authors(arguments)
    )


@pytest.fixture
def small_inputs():
    return random_inputs(SMALL, batch=3)


def random_inputs(config, batch, seed=0):
    rng = np.random.default_rng(seed)
    bases = rng.integers(0, 4, size=(batch, config.input_length))
    atac = rng.exponential(size=(batch, config.input_length // 4))
    motifs = rng.random((batch, config.n_motifs))
    return (
        torch.from_numpy(np.eye(4, dtype=np.float32)[bases]),
        torch.from_numpy(atac.astype(np.float32)),
        torch.from_numpy(motifs.astype(np.float32)),
    )


@torch.no_grad()
def intermediates(model, inputs):
    """Named as in the fixture, channels last."""
    sequence, atac, motif_activity = inputs
    stem = model.sequence_stem(sequence)
    stem = model.sequence_pool(stem + model.sequence_residual(stem))
    found = {"seq_after_stem": stem}
    found["seq_after_tower"] = features = model.encode_sequence(sequence)
    stem = model.atac_stem(atac.unsqueeze(-1))
    found["atac_after_stem"] = max_pool(stem + model.atac_residual(stem), 2)
    found["atac_after_tower"] = model._encode_atac(atac)
    found["motif_embedding"] = model._encode_motifs(motif_activity).unsqueeze(1)
    x = model.encode_context(features, atac, motif_activity)
    found["resid_0_pre_transformer_projection"] = x
    for i in range(len(model.blocks)):
        x = model.run_blocks(x, i, i + 1)
        found[f"resid_{i + 1}_after_layer_{i}"] = x
    found["final_layer_norm"] = model.final_norm(x)
    found["output"] = model.head(x).unsqueeze(-1)
    return found


def largest_error(found, reference, name):
    assert found[name].shape == reference[name].shape
    return (found[name] - reference[name]).abs().max().item()


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("seq_after_stem", 1e-5),
        ("seq_after_tower", 2e-5),
        ("atac_after_stem", 3e-5),
        ("atac_after_tower", 3e-5),
        ("motif_embedding", 1e-5),
        ("resid_0_pre_transformer_projection", 1e-4),
        ("resid_1_after_layer_0", 1e-4),
        ("resid_2_after_layer_1", 1e-4),
        ("resid_3_after_layer_2", 1e-4),
        ("final_layer_norm", 1e-5),
        ("output", 5e-5),
    ],
)
def test_forward_agrees_with_tensorflow(tiny, reference, inputs, name, tolerance):
    assert largest_error(intermediates(tiny, inputs), reference, name) <= tolerance


def test_head_without_crop_agrees_with_tensorflow(tiny, reference):
    whole = copy.deepcopy(tiny)
    whole.config = dataclasses.replace(tiny.config, crop=0)
    with torch.no_grad():
        output = whole.head(reference["resid_3_after_layer_2"])
    expected = reference["uncropped_output"].squeeze(-1)
    torch.testing.assert_close(output, expected, rtol=0, atol=5e-5)


def set_attention(**changes):
    def change(model):
        for block in model.blocks:
            for name, function in changes.items():
                old = getattr(block.attention, name)
                setattr(block.attention, name, function(old))

    return change


def set_eps(kind, eps):
    def change(model):
        for module in model.modules():
            if isinstance(module, kind):
                module.eps = eps

    return change


def swap_sine_and_cosine(model):
    for block in model.blocks:
        attention = block.attention
        attention.sine, attention.cosine = attention.cosine, attention.sine


def project_from_seed_20(model):
    matrix = torch.from_numpy(projection_matrix(256, 16, 20) / 16)
    set_attention(projection=lambda _: matrix)(model)


@pytest.mark.parametrize(
    ("mistake", "residual", "output"),
    [
        (set_attention(stabilizer=lambda _: 1e-7), 2.6e-3, 9e-4),
        (set_attention(projection=lambda p: 16 * p), 2.5e-3, 9e-4),
        (set_attention(projection=torch.neg), 0.21, 0.067),
        (set_attention(sine=torch.zeros_like, cosine=torch.ones_like), 0.30, 0.14),
        (set_attention(sine=torch.neg), 0.35, 0.16),
        (swap_sine_and_cosine, 0.52, 0.16),
        (project_from_seed_20, 0.11, 0.045),
        (set_eps(nn.BatchNorm1d, 1e-3), 0.029, 0.020),
        (set_eps(nn.LayerNorm, 1e-3), 2.0e-3, 3e-4),
    ],
    ids=[
        "stabilizer",
        "feature scale",
        "projection sign",
        "no rotation",
        "rotation reversed",
        "sine for cosine",
        "projection seed",
        "batch norm eps",
        "layer norm eps",
    ],
)
def test_mistakes_cost_what_they_cost_in_tensorflow(
    tiny, reference, inputs, mistake, residual, output
):
    wrong = copy.deepcopy(tiny)
    mistake(wrong)
    found = intermediates(wrong, inputs)
    last = largest_error(found, reference, "resid_3_after_layer_2")
    assert last == pytest.approx(residual, rel=0.1)
    assert largest_error(found, reference, "output") == pytest.approx(output, rel=0.2)


def test_forward_with_unrounded_rotary_table_agrees_with_tensorflow(
    tiny, reference, inputs
):
    unrounded = copy.deepcopy(tiny)
    sine, cosine = reference["rotary_table_unrounded"].chunk(2, dim=1)
    set_attention(sine=lambda _: sine, cosine=lambda _: cosine)(unrounded)
    found = intermediates(unrounded, inputs)
    for name in ("resid_1_after_layer_0", "resid_3_after_layer_2"):
        expected = reference[f"{name}__unrounded_tables"]
        torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-4)


def test_forward_under_autocast_stays_near_the_authors_bfloat16(
    tiny, reference, inputs
):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        output = tiny(*inputs)
    assert output.dtype == torch.float32
    exact = reference["output"].squeeze(-1)
    assert (output - exact).abs().max() < 0.25  # theirs is off by 0.18
    assert torch.corrcoef(torch.stack([output.ravel(), exact.ravel()]))[0, 1] > 0.999


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0, 0, 0, 0], (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (
            [0xFFFFFFFF] * 4,
            (0xFFFFFFFF, 0xFFFFFFFF),
            "408f276d 41c83b0e a20bc7c6 6d5451fd",
        ),
    ],
)
def test_philox_gives_the_published_known_answers(counter, key, words):
    (found,) = _philox(np.array([counter], np.uint32), key)
    assert [f"{word:08x}" for word in found] == words.split()


def test_projection_matrix_agrees_with_tensorflow(reference):
    with np.load(DATA / "projection_heads8_seed19.npz") as file:
        published = file["projection_matrix"]
    np.testing.assert_allclose(projection_matrix(256, 128, 19), published, atol=5e-5)
    tiny = reference["projection_matrix"].numpy()
    np.testing.assert_allclose(projection_matrix(256, 16, 19), tiny, atol=5e-5)


def test_projection_matrix_has_orthogonal_blocks_and_a_partial_last_one():
    matrix = projection_matrix(100, 24, 3)
    assert matrix.shape == (100, 24)
    lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
    rows = matrix / lengths
    for start in range(0, 100, 24):
        block = rows[start : start + 24]
        np.testing.assert_allclose(block @ block.T, np.eye(len(block)), atol=1e-5)
    # Lengths are those of Gaussian vectors, not all alike.
    assert 0.05 < lengths.std() / np.sqrt(24) < 0.25
    assert lengths.mean() == pytest.approx(np.sqrt(24), rel=0.05)


def test_rotary_table_agrees_with_tensorflow_to_the_bit(reference):
    with np.load(DATA / "rotary_heads8.npz") as file:
        sample = {name: file[name] for name in file.files}
    np.testing.assert_array_equal(_rotary_frequency(128), sample["inv_freq"])
    table = torch.cat(rotary_table(4096, 128), dim=1)
    bits = table.bfloat16().view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(
        bits[sample["positions"]], sample["table_bfloat16_bits"]
    )
    tiny = torch.cat(rotary_table(64, 16), dim=1)
    assert torch.equal(tiny, reference["rotary_table_bf16_rounded"])


def test_softmax_pool_weighs_pairs_by_their_logits():
    torch.manual_seed(0)
    pool, x = SoftmaxPool(3), torch.randn(2, 8, 3)
    pairs = x.unflatten(1, (4, 2))
    weights = torch.einsum("c,bptc->bpt", pool.logit.weight[0], pairs).softmax(-1)
    expected = torch.einsum("bpt,bptc->bpc", weights, pairs)
    torch.testing.assert_close(pool(x), expected)


def test_attention_equals_its_quadratic_form():
    torch.manual_seed(0)
    attention = PerformerAttention(
        16, 2, n_tokens=8, n_features=256, seed=19, stabilizer=1e-3
    ).double()
    x = torch.randn(2, 8, 16, dtype=torch.float64)
    turns = torch.complex(attention.cosine, attention.sine)
    mixed = []
    for head in range(2):
        channels = slice(8 * head, 8 * head + 8)
        query, key = (
            torch.view_as_real(
                torch.view_as_complex((x @ w[channels].T).unflatten(-1, (4, 2))) * turns
            ).flatten(-2)
            for w in (attention.query.weight, attention.key.weight)
        )
        query, key = (
            (u @ attention.projection.T).relu() + attention.stabilizer
            for u in (query, key)
        )
        weights = query @ key.transpose(1, 2)
        weights = weights / weights.sum(-1, keepdim=True)
        mixed.append(weights @ x @ attention.value.weight[channels].T)
    expected = torch.cat(mixed, dim=-1) @ attention.output.weight.T
    torch.testing.assert_close(attention(x), expected)


def test_parts_compose_to_forward(small_inputs):
    model = EpiBERT(SMALL).eval()
    sequence, atac, motif_activity = small_inputs
    with torch.no_grad():
        stream = model.encode_context(
            model.encode_sequence(sequence), atac, motif_activity
        )
        middle = model.run_blocks(stream, stop=1)
        restarted = model.head(model.run_blocks(middle, start=1))
        whole = model(*small_inputs)
    assert stream.shape == (3, 8, 16)
    assert whole.shape == (3, SMALL.n_outputs) == (3, 4)
    assert (whole > 0).all()
    torch.testing.assert_close(restarted, whole)
    assert torch.equal(model.run_blocks(stream, 2, 2), stream)


LONG = dataclasses.replace(SMALL, input_length=2 * _PIECE_BP + 37 * TOKEN_BP)


def long_model(dtype=torch.float64):
    """Double precision tells what is cut from what is rounded."""
    model = EpiBERT(LONG, random_state=1).to(dtype).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.ndim == 1:
                noise = torch.rand(tensor.shape, generator=generator)
                tensor.add_(noise if name.endswith("running_var") else noise - 0.5)
    return model


def long_sequence(dtype=torch.float64):
    return random_inputs(LONG, batch=2)[0].to(dtype)


def stem_lengths(model):
    """Return a list that fills with the lengths that the stem of a model is given."""
    lengths = []
    model.sequence_stem.register_forward_hook(
        lambda module, inputs, output: lengths.append(inputs[0].shape[1])
    )
    return lengths


@pytest.mark.parametrize(
    ("dtype", "atol"), [(torch.float64, 1e-13), (torch.float32, 1e-5)]
)
def test_pieces_join_to_the_whole(monkeypatch, dtype, atol):
    model, sequence = long_model(dtype), long_sequence(dtype)
    lengths = stem_lengths(model)
    pieced = model.encode_sequence(sequence)
    assert lengths == [_PIECE_BP + 128, _PIECE_BP + 256, 38 * TOKEN_BP]
    monkeypatch.setattr(epibert, "_PIECE_BP", LONG.input_length)
    whole = model.encode_sequence(sequence)
    assert lengths[3:] == [LONG.input_length]
    torch.testing.assert_close(pieced, whole, rtol=0, atol=atol)


def test_pieces_without_a_halo_do_not_join(monkeypatch):
    model, sequence = long_model(), long_sequence()
    with torch.no_grad():
        expected = model.encode_sequence(sequence)
        monkeypatch.setattr(epibert, "_HALO_BP", 0)
        wrong = (model.encode_sequence(sequence) - expected).abs().amax((0, 2)) > 1e-6
    cuts = [_PIECE_BP // TOKEN_BP, 2 * _PIECE_BP // TOKEN_BP]
    assert {token for cut in cuts for token in (cut - 1, cut)} <= set(
        wrong.nonzero().flatten().tolist()
    )


def test_sequence_layers_reach_as_far_as_the_halo_allows_for():
    model = EpiBERT(SMALL).double().eval()
    sequence = torch.rand(1, SMALL.input_length, 4, dtype=torch.float64)

    def reach(layers):
        """Return how many bp the middle token's features reach beyond it."""
        inputs = sequence.clone().requires_grad_()
        features = layers(inputs)
        width = SMALL.input_length // features.shape[1]
        features[:, 512 // width : 640 // width].square().sum().backward()
        used = inputs.grad.abs().sum((0, 2)).nonzero().flatten()
        return 512 - int(used.min()), int(used.max()) - 639

    assert reach(model._start_sequence) == (35, 35)
    assert reach(model.encode_sequence) == (259, 259)
    assert epibert._HALO_BP >= 35


def test_pieces_pass_the_gradients_of_the_whole(monkeypatch):
    model, gradients = long_model(), []
    for size in (_PIECE_BP, LONG.input_length):
        monkeypatch.setattr(epibert, "_PIECE_BP", size)
        model.zero_grad()
        sequence = long_sequence().requires_grad_()
        model.encode_sequence(sequence).square().mean().backward()
        weights = [
            parameter.grad
            for name, parameter in model.named_parameters()
            if name.startswith("sequence")
        ]
        gradients.append([sequence.grad, *weights])
    for pieced, whole in zip(*gradients, strict=True):
        assert whole.abs().max() > 0
        torch.testing.assert_close(pieced, whole)


def test_training_and_windows_of_the_shipped_length_are_never_cut():
    model = long_model().train()
    lengths = stem_lengths(model)
    model.encode_sequence(long_sequence())
    assert lengths == [LONG.input_length]
    config = dataclasses.replace(SMALL, input_length=8192)
    model = EpiBERT(config).eval()
    lengths = stem_lengths(model)
    model.encode_sequence(random_inputs(config, batch=1)[0])
    assert lengths == [8192]


def test_bfloat16_is_autocast_with_a_float32_stream(small_inputs):
    model = EpiBERT(SMALL).eval()
    with torch.no_grad():
        exact = model(*small_inputs)
        with torch.autocast("cpu", torch.bfloat16):
            expected = model(*small_inputs)
        model.bfloat16 = True
        found = model(*small_inputs)
        stream = model.encode_context(
            model.encode_sequence(small_inputs[0]), *small_inputs[1:]
        )
        late = model.run_blocks(stream)
    assert torch.equal(found, expected)
    assert not torch.equal(found, exact)
    assert {x.dtype for x in (found, stream, late)} == {torch.float32}


def test_sequence_features_serve_every_biosample(small_inputs):
    model = EpiBERT(SMALL).eval()
    sequence, atac, motif_activity = small_inputs
    with torch.no_grad():
        features = model.encode_sequence(sequence[:1]).expand(3, -1, -1)
        shared = model.encode_context(features, atac, motif_activity)
        for i in range(3):
            single = model.encode_context(
                model.encode_sequence(sequence[:1]), atac[[i]], motif_activity[[i]]
            )
            torch.testing.assert_close(shared[[i]], single)


def test_output_belongs_to_the_token_after_the_crop(small_inputs):
    model = EpiBERT(SMALL).eval()
    stream = torch.randn(1, 8, 16, generator=torch.Generator().manual_seed(0))
    changed = stream.clone()
    changed[:, 3].neg_()
    with torch.no_grad():
        moved = (model.head(changed) != model.head(stream)).squeeze(0)
    assert moved.tolist() == [False, True, False, False]


def test_training_mode_drops_out_and_updates_statistics(small_inputs):
    model = EpiBERT(SMALL).train()
    before = model.sequence_residual.norm.running_mean.clone()
    assert not torch.equal(model(*small_inputs), model(*small_inputs))
    assert not torch.equal(model.sequence_residual.norm.running_mean, before)
    model.eval()
    assert torch.equal(model(*small_inputs), model(*small_inputs))


@pytest.mark.parametrize("autocast", [False, True])
def test_every_parameter_receives_a_finite_gradient(small_inputs, autocast):
    model = EpiBERT(SMALL).train()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = model(*small_inputs)
    (output - torch.log(output)).mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_random_state_decides_weights_and_spares_the_global_generator():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = (EpiBERT(SMALL, random_state=s) for s in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    pairs = zip(first.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(first.sequence_stem.weight, other.sequence_stem.weight)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_forward_on_cuda_agrees_with_tensorflow(tiny, reference, inputs):
    with torch.no_grad():
        output = copy.deepcopy(tiny).cuda()(*(x.cuda() for x in inputs)).cpu()
    expected = reference["output"].squeeze(-1)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("position", "shape", "message"),
    [
        (0, (3, 4, 1024), r"sequence must have shape \(batch, 1024, 4\)"),
        (1, (3, 256, 1), r"atac must have shape \(batch, 256\)"),
        (2, (3, 6), r"motif_activity must have shape \(batch, 5\)"),
    ],
)
def test_forward_names_a_misshapen_input(small_inputs, position, shape, message):
    arguments = list(small_inputs)
    arguments[position] = torch.zeros(shape)
    with pytest.raises(ValueError, match=message):
        EpiBERT(SMALL)(*arguments)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (2, 1), (0, 4)])
def test_run_blocks_rejects_an_impossible_range(start, stop):
    with pytest.raises(ValueError, match="start and stop"):
        EpiBERT(SMALL).run_blocks(torch.zeros(1, 8, 16), start, stop)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("input_length", 1000),
        ("n_heads", 3),
        ("n_blocks", 0),
        ("sequence_filters", (4, 8, 16)),
        ("atac_filters", (4, 0)),
        ("motif_units", 2),
        ("head_scale", 17),
        ("crop", 4),
        ("feature_stabilizer", 0.0),
        ("dropout", 1.0),
    ],
)
def test_config_rejects_impossible_values(field, value):
    name = "sequence_filters" if field == "n_heads" else field
    with pytest.raises(ValueError, match=name):
        dataclasses.replace(SMALL, **{field: value})


def test_config_defaults_are_the_published_model():
    config = EpiBERTConfig()
    assert (config.n_tokens, config.n_outputs, config.d_model) == (4096, 4092, 1024)


def test_config_survives_json():
    fields = json.loads(json.dumps(SMALL.to_dict()))
    assert EpiBERTConfig.from_dict(fields) == SMALL
    with pytest.raises(ValueError, match="unknown fields.*n_layers"):
        EpiBERTConfig.from_dict(fields | {"n_layers": 2})


def test_config_from_authors_translates_every_argument():
    arguments = json.loads((TINY / "tiny_config.json").read_text())
    assert EpiBERTConfig.from_authors(arguments) == EpiBERTConfig(
        input_length=8192,
        n_heads=3,
        n_blocks=3,
        sequence_filters=(16, 24, 24, 32, 40, 48),
        n_motifs=12,
    )
    assert EpiBERTConfig.from_authors({}) == EpiBERTConfig()
    longer = arguments | {"final_output_length": 58}
    assert EpiBERTConfig.from_authors(longer).crop == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("heads", 3),
        ("use_rot_emb", False),
        ("kernel_transformation", "softmax_kernel_transformation"),
        ("output_length", 32),
        ("final_output_length", 59),
    ],
)
def test_config_from_authors_rejects_what_is_not_implemented(name, value):
    arguments = json.loads((TINY / "tiny_config.json").read_text())
    with pytest.raises(ValueError, match=name):
        EpiBERTConfig.from_authors(arguments | {name: value})
