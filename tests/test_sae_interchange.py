"""Exchange with other packages.

The packages themselves are not among the test requirements: they bring a language-model
stack. Where they are importable the tests use them; elsewhere the formats are written
by hand, as those packages write them.
"""

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from helpers.sae import (
    export_saelens,
    import_dictionary_learning,
    import_saelens,
    train,
)
from sae_rows import planted_rows, small_config

D_IN, D_SAE, K = 32, 48, 3


@pytest.fixture(scope="module")
def trained():
    rows, _ = planted_rows(8_000, offset=3.0)
    sae, _ = train(rows, small_config(d_sae=D_SAE, n_epochs=3))
    return sae, rows


def random_weights(seed=0):
    """Weights whose decoder rows have different lengths."""
    generator = torch.Generator().manual_seed(seed)
    w_dec = torch.randn(D_SAE, D_IN, generator=generator)
    return {
        "W_enc": torch.randn(D_IN, D_SAE, generator=generator) / 4,
        "W_dec": w_dec,
        "b_enc": 0.1 * torch.randn(D_SAE, generator=generator),
        "b_dec": 0.1 * torch.randn(D_IN, generator=generator),
    }


def jump(weights, threshold, x, *, subtract=True):
    """Encode and decode as a JumpReLU SAE."""
    centered = x - weights["b_dec"] if subtract else x
    h = torch.relu(centered @ weights["W_enc"] + weights["b_enc"])
    z = h * (h > threshold)
    return z, z @ weights["W_dec"] + weights["b_dec"]


def write_saelens(folder, weights, architecture, **config):
    folder.mkdir(exist_ok=True)
    contiguous = {name: value.contiguous() for name, value in weights.items()}
    save_file(contiguous, folder / "sae_weights.safetensors")
    config = {"architecture": architecture, "d_in": D_IN, "d_sae": D_SAE} | config
    (folder / "cfg.json").write_text(json.dumps(config))


def assert_same(sae, weights, z, x_hat, x):
    torch.testing.assert_close(sae(x), x_hat, rtol=1e-4, atol=1e-4)
    norm = weights["W_dec"].norm(dim=1)
    torch.testing.assert_close(sae.encode(x), z * norm, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(D_SAE))


def test_export_folds_normalization_into_the_weights(trained, tmp_path):
    sae, rows = trained
    export_saelens(sae, tmp_path, metadata={"hook_name": "block 2"})
    back = import_saelens(tmp_path)
    # A value within rounding of the threshold may fall on either side.
    clear = ((sae.pre_activations(rows) - sae.threshold).abs() > 1e-5).all(1)
    assert clear.float().mean() > 0.99
    x = rows[clear]
    torch.testing.assert_close(back(x), sae(x), rtol=1e-4, atol=1e-4)
    # Imported features write unit rows: theirs are in raw units, ours in the scale's.
    torch.testing.assert_close(back.encode(x) / sae.scale, sae.encode(x))
    assert back.k == K
    config = json.loads((tmp_path / "cfg.json").read_text())
    assert config["metadata"]["hook_name"] == "block 2"


def test_import_saelens_jumprelu(tmp_path):
    weights, x = random_weights(), planted_rows(200)[0]
    threshold = torch.rand(D_SAE, generator=torch.Generator().manual_seed(1))
    held = weights | {"threshold": threshold}
    write_saelens(tmp_path / "a", held, "jumprelu", metadata={"k": 5})
    sae = import_saelens(tmp_path / "a")
    assert sae.k == 5 and sae.threshold.shape == (D_SAE,)
    assert_same(sae, weights, *jump(weights, threshold, x), x)
    sae.save(tmp_path / "saved")
    loaded = type(sae).load(tmp_path / "saved")
    assert torch.equal(loaded.encode(x), sae.encode(x))
    write_saelens(tmp_path / "b", held, "jumprelu", apply_b_dec_to_input=False)
    with pytest.raises(ValueError, match="no k; give activations"):
        import_saelens(tmp_path / "b")
    sae = import_saelens(tmp_path / "b", activations=x)
    z, x_hat = jump(weights, threshold, x, subtract=False)
    assert_same(sae, weights, z, x_hat, x)
    assert sae.k == round(float((z > 0).sum(1).float().mean()))


def test_import_saelens_batchtopk_checkpoint(tmp_path):
    weights, x = random_weights(), planted_rows(200)[0]
    held = weights | {"topk_threshold": torch.tensor(0.7, dtype=torch.double)}
    write_saelens(tmp_path, held, "batchtopk", k=K, rescale_acts_by_decoder_norm=True)
    limit = 0.7 / weights["W_dec"].norm(dim=1)
    sae = import_saelens(tmp_path)
    assert sae.threshold.ndim == 0 and float(sae.threshold) == pytest.approx(0.7)
    assert_same(sae, weights, *jump(weights, limit, x), x)


@pytest.mark.parametrize("rescale", [False, True])
def test_import_topk_needs_rows_for_its_threshold(tmp_path, rescale):
    weights, x = random_weights(), planted_rows(2_000)[0]
    settings = {"k": K, "rescale_acts_by_decoder_norm": rescale}
    write_saelens(tmp_path, weights, "topk", **settings)
    with pytest.raises(ValueError, match="no threshold"):
        import_saelens(tmp_path)
    sae = import_saelens(tmp_path, activations=x)
    assert float((sae.encode(x) > 0).sum()) / len(x) == pytest.approx(K, rel=0.01)
    assert sae.threshold.ndim == (0 if rescale else 1)


def test_import_dictionary_learning(tmp_path):
    weights, x = random_weights(), planted_rows(500)[0]
    state = {
        "encoder.weight": weights["W_enc"].T,
        "encoder.bias": weights["b_enc"],
        "decoder.weight": weights["W_dec"].T,
        "b_dec": weights["b_dec"],
        "k": torch.tensor(K, dtype=torch.int),
        "threshold": torch.tensor(0.4),
    }
    torch.save(state, tmp_path / "ae.pt")
    sae = import_dictionary_learning(tmp_path / "ae.pt")
    assert sae.k == K
    assert_same(sae, weights, *jump(weights, 0.4, x), x)
    state["threshold"] = torch.tensor(-1.0)  # a run too short for it to be set
    torch.save(state, tmp_path / "ae.pt")
    with pytest.raises(ValueError, match="threshold; give activations"):
        import_dictionary_learning(tmp_path / "ae.pt")
    sae = import_dictionary_learning(tmp_path / "ae.pt", activations=x)
    assert float((sae.encode(x) > 0).sum()) / len(x) == pytest.approx(K, rel=0.01)
    torch.save(weights | {"threshold": torch.full((D_SAE,), 0.3)}, tmp_path / "j.pt")
    sae = import_dictionary_learning(tmp_path / "j.pt", activations=x)
    assert_same(sae, weights, *jump(weights, 0.3, x, subtract=False), x)


def test_import_names_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match="cfg.json"):
        import_saelens(tmp_path)
    write_saelens(tmp_path, random_weights(), "gated")
    with pytest.raises(ValueError, match="architecture must be .* 'gated'"):
        import_saelens(tmp_path)
    write_saelens(
        tmp_path, random_weights(), "jumprelu", normalize_activations="layer_norm"
    )
    with pytest.raises(ValueError, match="normalize_activations .* 'layer_norm'"):
        import_saelens(tmp_path)
    with pytest.raises(FileNotFoundError, match="ae.pt"):
        import_dictionary_learning(tmp_path / "ae.pt")
    torch.save({"weights": torch.zeros(3)}, tmp_path / "ae.pt")
    with pytest.raises(ValueError, match="not a known SAE; lacks"):
        import_dictionary_learning(tmp_path / "ae.pt")


def run_with(package, script, *arguments):
    """Run a script where a package is importable: here, or in SAE_PEERS_PYTHON."""
    python = os.environ.get("SAE_PEERS_PYTHON", sys.executable)
    script = textwrap.dedent(script)
    probe = subprocess.run(
        [
            python,
            "-c",
            f"import importlib.util as u; raise SystemExit(u.find_spec('{package}') "
            "is None)",
        ]
    )
    if probe.returncode:
        pytest.skip(f"{package} is not installed; SAE_PEERS_PYTHON may name a Python")
    done = subprocess.run(
        [python, "-c", script, *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_sae_lens_encodes_an_export_identically(trained, tmp_path):
    sae, rows = trained
    export_saelens(sae, tmp_path / "sae")
    np.save(tmp_path / "rows.npy", rows[:1_000].numpy())
    run_with(
        "sae_lens",
        """
        import sys, numpy, torch
        from sae_lens import SAE
        sae = SAE.load_from_disk(sys.argv[1] + "/sae")
        rows = torch.from_numpy(numpy.load(sys.argv[1] + "/rows.npy"))
        with torch.no_grad():
            numpy.save(sys.argv[1] + "/z.npy", sae.encode(rows).numpy())
            numpy.save(sys.argv[1] + "/x.npy", sae(rows).numpy())
        """,
        tmp_path,
    )
    z = torch.from_numpy(np.load(tmp_path / "z.npy"))
    x_hat = torch.from_numpy(np.load(tmp_path / "x.npy"))
    expected = sae.encode(rows[:1_000])
    # A value within rounding of the threshold may fall on either side.
    near = (sae.pre_activations(rows[:1_000]) - sae.threshold).abs() < 1e-5
    torch.testing.assert_close(z[~near], expected[~near], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(x_hat, sae(rows[:1_000]), rtol=1e-4, atol=1e-3)
    assert near.float().mean() < 1e-3


@pytest.mark.slow
def test_saes_that_sae_lens_writes_are_read(tmp_path):
    rows, _ = planted_rows(1_000)
    np.save(tmp_path / "rows.npy", rows.numpy())
    run_with(
        "sae_lens",
        """
        import sys, numpy, torch
        from sae_lens import JumpReLUSAE, JumpReLUSAEConfig, TopKSAE, TopKSAEConfig
        torch.manual_seed(0)
        rows = torch.from_numpy(numpy.load(sys.argv[1] + "/rows.npy"))
        for name, make in {
            "jump": lambda: JumpReLUSAE(JumpReLUSAEConfig(d_in=32, d_sae=48)),
            "top": lambda: TopKSAE(TopKSAEConfig(d_in=32, d_sae=48, k=3)),
        }.items():
            sae = make()
            with torch.no_grad():
                for value in sae.parameters():
                    value.copy_(torch.rand_like(value) - 0.3)
                sae.save_model(f"{sys.argv[1]}/{name}")
                numpy.save(f"{sys.argv[1]}/{name}.npy", sae(rows).numpy())
        """,
        tmp_path,
    )
    sae = import_saelens(tmp_path / "jump", activations=rows)
    expected = torch.from_numpy(np.load(tmp_path / "jump.npy"))
    torch.testing.assert_close(sae(rows), expected, rtol=1e-3, atol=1e-3)
    sae = import_saelens(tmp_path / "top", activations=rows)
    assert sae.k == 3


@pytest.mark.slow
def test_saes_that_dictionary_learning_writes_are_read(tmp_path):
    rows, _ = planted_rows(1_000)
    np.save(tmp_path / "rows.npy", rows.numpy())
    run_with(
        "dictionary_learning",
        """
        import sys, numpy, torch
        from dictionary_learning.dictionary import JumpReluAutoEncoder
        from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
        torch.manual_seed(0)
        rows = torch.from_numpy(numpy.load(sys.argv[1] + "/rows.npy"))
        for name, sae in {
            "batch": BatchTopKSAE(32, 48, 3),
            "jump": JumpReluAutoEncoder(32, 48),
        }.items():
            with torch.no_grad():
                if name == "batch":
                    sae.threshold.fill_(0.4)
                sae.b_dec.copy_(torch.rand(32) - 0.5)
                torch.save(sae.state_dict(), f"{sys.argv[1]}/{name}.pt")
                numpy.save(f"{sys.argv[1]}/{name}.npy", sae(rows).numpy())
        """,
        tmp_path,
    )
    for name in ("batch", "jump"):
        sae = import_dictionary_learning(tmp_path / f"{name}.pt", activations=rows)
        expected = torch.from_numpy(np.load(tmp_path / f"{name}.npy"))
        torch.testing.assert_close(sae(rows), expected, rtol=1e-3, atol=1e-4)
