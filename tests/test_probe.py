import pytest
import torch
from torch import nn

from helpers.epibert import EpiBERT, EpiBERTConfig
from helpers.probe import capture, edited, restart
from toy import TOKEN_BP, ToyEpiBERT, TupleModel, toy_inputs


def zero_inputs(n_tokens=4):
    return (
        torch.zeros(1, n_tokens * TOKEN_BP, 4),
        torch.zeros(1, n_tokens),
        torch.zeros(1, 3),
    )


def small_epibert():
    config = EpiBERTConfig(
        input_length=1024,
        n_heads=2,
        n_blocks=3,
        sequence_filters=(8, 8, 8, 8, 8, 16),
        atac_filters=(4, 8),
        n_motifs=5,
        n_random_features=8,
    )
    generator = torch.Generator().manual_seed(0)

    def inputs():
        bases = torch.randint(4, (2, config.input_length), generator=generator)
        return (
            nn.functional.one_hot(bases, 4).float(),
            torch.rand(2, config.input_length // 4, generator=generator),
            torch.rand(2, 5, generator=generator),
        )

    return EpiBERT(config).eval(), inputs(), inputs()


def test_capture_returns_the_stream_after_each_block():
    streams = capture(ToyEpiBERT.place_value(), zero_inputs(), [2, 0])
    assert list(streams) == [2, 0]
    assert torch.equal(streams[0], torch.full((1, 4, 4), 1.0))
    assert torch.equal(streams[2], torch.full((1, 4, 4), 111.0))


def test_capture_takes_names_mappings_and_tuple_outputs():
    x = torch.rand(2, 3, 5)
    streams = capture(TupleModel(), {"inputs_embeds": x}, ["encoder.0", "encoder.1"])
    assert torch.equal(streams["encoder.0"], 2 * x)
    assert torch.equal(streams["encoder.1"], 4 * x)
    assert torch.equal(capture(TupleModel(), x, ["encoder.0"])["encoder.0"], 2 * x)


def test_capture_is_a_copy_untouched_by_later_blocks_in_place():
    class InPlace(nn.Module):
        def forward(self, x):
            return x.add_(1)

    model = nn.Sequential(InPlace(), InPlace())
    streams = capture(model, torch.zeros(1, 2, 3), ["0", "1"])
    assert streams["0"].unique().item() == 1
    assert streams["1"].unique().item() == 2


def test_capture_evaluates_and_restores_each_mode():
    model = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5).eval())
    x = torch.rand(1, 2, 3)
    assert torch.equal(capture(model, x, ["1"])["1"], x)
    assert [model.training, model[0].training, model[1].training] == [True, True, False]


def test_capture_and_edited_leave_no_hooks_behind_after_an_error():
    def fail(x):
        raise RuntimeError("planned")

    model = ToyEpiBERT.place_value()
    with pytest.raises(RuntimeError, match="planned"), edited(model, {1: fail}):
        capture(model, zero_inputs(), [0])
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], "at least one layer"),
        ([3], "0 … 2; got 3"),
        ([-1], "0 … 2; got -1"),
        (["block"], "'block' is not a module of ToyEpiBERT"),
    ],
)
def test_capture_refuses_layers_that_do_not_exist(layers, message):
    with pytest.raises(ValueError, match=message):
        capture(ToyEpiBERT.place_value(), zero_inputs(), layers)


def test_capture_refuses_unused_and_shared_modules_and_other_outputs():
    with pytest.raises(ValueError, match="'unused' must run exactly once.*0 times"):
        capture(TupleModel(), torch.zeros(1, 2, 3), ["unused"])
    shared = nn.Identity()
    with pytest.raises(ValueError, match="ran 2 times"):
        capture(nn.Sequential(shared, shared), torch.zeros(1, 2, 3), ["0"])
    with pytest.raises(ValueError, match=r"stream \(batch, tokens, d\); got shape"):
        capture(nn.Sequential(nn.Flatten()), torch.zeros(1, 2, 3), ["0"])


def test_edited_replaces_the_stream_only_inside_the_context():
    model, inputs = ToyEpiBERT.place_value(), zero_inputs()
    with edited(model, {0: torch.zeros_like, 1: lambda x: x + 0.5}):
        assert torch.equal(model(*inputs), torch.full((1, 2), 4 * 110.5))
    assert torch.equal(model(*inputs), torch.full((1, 2), 4 * 111.0))


def test_edited_passes_the_rest_of_a_tuple_through():
    model = TupleModel()
    with edited(model, {"encoder.0": lambda x: x + 1}):
        assert torch.equal(model(torch.zeros(1, 2, 3)), torch.full((1, 2), 6.0))


@pytest.mark.parametrize("edit", [lambda x: x[:, :1], lambda x: x.double()])
def test_edited_refuses_another_shape_or_dtype(edit):
    model = ToyEpiBERT.place_value()
    with pytest.raises(ValueError, match="must keep shape"), edited(model, {0: edit}):
        model(*zero_inputs())


def test_restart_continues_after_the_layer():
    model = ToyEpiBERT.place_value()
    stream = torch.zeros(1, 4, 4)
    assert torch.equal(restart(model, stream, 0), torch.full((1, 2), 4 * 110.0))
    assert torch.equal(restart(model, stream, 2), torch.zeros(1, 2))


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_residual_swap_reproduces_the_other_run_exactly(layer):
    model = ToyEpiBERT.mixing()
    run, other = toy_inputs(seed=1), toy_inputs(seed=2)
    stream = capture(model, other, [layer])[layer]
    with torch.no_grad(), edited(model, {layer: lambda _: stream}):
        assert torch.equal(model(*run), model(*other))
    assert torch.equal(restart(model, stream, layer), model(*other))
    assert torch.equal(restart(model, stream, layer, inputs=run), model(*other))


def test_residual_swap_holds_in_epibert():
    model, run, other = small_epibert()
    streams = capture(model, other, range(3))
    with torch.no_grad():
        expected = model(*other)
        assert not torch.allclose(model(*run), expected)
    for layer, stream in streams.items():
        assert torch.equal(restart(model, stream, layer), expected)
        with torch.no_grad(), edited(model, {layer: lambda _, s=stream: s}):
            assert torch.equal(model(*run), expected)


def test_restart_of_another_model_needs_inputs():
    stream, x = torch.ones(1, 2, 3), torch.zeros(1, 2, 3)
    with pytest.raises(ValueError, match="TupleModel cannot start after"):
        restart(TupleModel(), stream, "encoder.0")
    output = restart(TupleModel(), stream, "encoder.0", inputs=x)
    assert torch.equal(output, torch.full((1, 2), 6.0))


def test_restart_refuses_a_layer_that_ran_never_or_twice():
    stream = torch.ones(1, 2, 3)
    with pytest.raises(ValueError, match="'unused' must run exactly once.*0 times"):
        restart(TupleModel(), stream, "unused", inputs=stream)
    shared = nn.Identity()
    with pytest.raises(ValueError, match="ran 2 times"):
        restart(nn.Sequential(shared, shared), stream, "0", inputs=stream)
