"""Another model, another contrast: the same functions, with known truth."""

import numpy as np
import pytest
import torch

from helpers import probe
from helpers.cds import context_divergence
from helpers.dna_contrast import (
    CODONS,
    LEVELS,
    MASK,
    MotifContrast,
    SmallEncoder,
    draw_contrast,
    logits_of,
    make_encoder,
    site_folds,
    train_masked,
)

CONTRAST = MotifContrast(n_windows=60)


def words(tokens, where):
    return {
        "".join(CODONS[t] for t in row[at])
        for row, at in zip(tokens, where, strict=True)
    }


def test_draw_contrast_writes_motif_and_decoy_where_it_says():
    drawn = draw_contrast(CONTRAST, 0)
    assert drawn.tokens.shape == (6, 60, 32)
    assert drawn.design["context"].tolist() == list(LEVELS) * 3
    for row, level in enumerate(drawn.design["context"]):
        written = words(drawn.tokens[row].numpy(), drawn.sites[row])
        assert (written == {CONTRAST.motif}) == (level == "with")
        assert words(drawn.tokens[row].numpy(), drawn.decoy_sites[row]) == {
            CONTRAST.decoy
        }
    np.testing.assert_array_equal(drawn.sites[0], drawn.sites[1])
    outside = ~(drawn.sites[0] | drawn.decoy_sites[0])
    changed = (drawn.tokens[0] != drawn.tokens[1]).numpy()[outside].mean()
    assert changed == pytest.approx(1 - 0.95**2, abs=0.03)
    gc = [
        np.mean([set("GC") & set(CODONS[t][0]) != set() for t in x.ravel()])
        for x in drawn.tokens[::2]
    ]
    assert gc == sorted(gc)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"motif": "TGAXXX"}, "motif must be letters of ACGT.*'TGAXXX'"),
        ({"decoy": "TGAC"}, "decoy must be.*multiple of 3; got 'TGAC'"),
        ({"length": 9}, "twice the motifs together, in codons; got 9"),
    ],
)
def test_contrast_refuses_words_that_are_no_motif(changed, message):
    with pytest.raises(ValueError, match=message):
        MotifContrast(**changed)


def test_train_masked_learns_and_leaves_the_global_generator():
    tokens = torch.arange(8).repeat(50, 4)
    model = SmallEncoder(32, d_model=16, n_layers=1)
    before = torch.random.get_rng_state()
    losses = train_masked(model, tokens, n_steps=80, batch_size=16)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert losses[-1] < 0.5 * losses[0]
    assert not model.training
    with pytest.raises(ValueError, match=f"codons 0 to {MASK - 1}"):
        train_masked(model, tokens + MASK, n_steps=1)


@pytest.mark.parametrize("kind", ["plain PyTorch", "whatever is installed"])
def test_swapping_a_whole_stream_reproduces_the_other_run(kind):
    model, layers = SmallEncoder(32), [f"layers.{i}" for i in range(3)]
    if kind != "plain PyTorch":
        model, layers, _ = make_encoder(32)
    model.eval()
    first, second = draw_contrast(CONTRAST, 1).tokens[:2, :4]
    with torch.no_grad():
        wanted = logits_of(model(input_ids=second))
        other = logits_of(model(input_ids=first))
    for layer in layers:
        stream = probe.capture(model, {"input_ids": second}, [layer])[layer]
        swapped = probe.restart(model, stream, layer, inputs={"input_ids": first})
        torch.testing.assert_close(logits_of(swapped), wanted, rtol=0, atol=1e-5)
        assert not torch.allclose(other, wanted, atol=1e-3)


def test_hugging_face_models_are_probed_by_name():
    pytest.importorskip("transformers", reason="the extra 'any' is not installed")
    encoder = make_encoder(32)
    assert encoder.library.startswith("Hugging Face")
    tokens = draw_contrast(CONTRAST, 2).tokens[0, :3]
    streams = probe.capture(encoder.model, {"input_ids": tokens}, encoder.layers)
    assert [x.shape for x in streams.values()] == [(3, 32, 64)] * 3


def test_score_finds_units_of_a_planted_motif():
    """One-hot units instead of a dictionary: the codons of the motif are known."""
    drawn = draw_contrast(CONTRAST, 3)
    units = torch.nn.functional.one_hot(drawn.tokens, MASK).float().numpy()
    table = context_divergence(
        units.mean(axis=2), drawn.design, np.repeat(np.arange(20), 3), levels=LEVELS
    )
    motif = [CODONS.index(CONTRAST.motif[i : i + 3]) for i in range(0, 12, 3)]
    decoy = [CODONS.index(CONTRAST.decoy[i : i + 3]) for i in range(0, 12, 3)]
    assert (table.loc[motif, "class"] == "shared-with").all()
    assert table.loc[motif, "cds"].min() > table["cds"].drop(motif).max()
    assert (table.loc[decoy, "log2_fold"].abs() < 0.5).all()
    folds = site_folds(units, drawn)
    assert set(folds["motif"].nlargest(4).index) == set(motif)
    assert set(folds["decoy"].nlargest(4).index) == set(decoy)
