"""The notebooks on real sequence and real accessibility, in a short version.

The default data run in `make book`; here the same notebooks run on two pairs of the
prepared hg38 DNase-seq windows with a model that trained for a few steps only, so what
is asserted is that every page works on real files, not what it finds.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from helpers import pretrain, small_model
from helpers.tissues import read_tissues
from helpers.windows import WindowDataset

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("CHROMATIN_SHARED_DATA", ROOT.parent / "shared" / "data"))
TISSUES = ["brain", "muscle"]
PAGES = [
    "01_extraction",
    "02_sae",
    "03_cds",
    "04_causal",
    "05_annotation",
    "explorer",
    "06_calibration",
    "07_any_transformer",
    "scaling",
    "results",
]
SHORTER = {
    "06_calibration": {"n_draws": 100},
    "07_any_transformer": {"n_steps": 800},  # its planted truth needs a trained model
    "scaling": {"repeats": 2},
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("papermill") is None, reason="needs papermill"
    ),
    pytest.mark.skipif(
        not (SHARED / "hg38_dnase_windows65").is_dir(),
        reason="the real DNase-seq windows are not here (CHROMATIN_SHARED_DATA)",
    ),
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Tissue files beside freshly prepared data, and a hardly trained model."""
    root = tmp_path_factory.mktemp("real")
    data = root / "_build" / "data" / "hg38_dnase"
    script = ROOT / "scripts" / "prepare_hg38_dnase.py"
    subprocess.run([sys.executable, script, SHARED, data], check=True)
    folder = root / "notebooks" / "tissues" / "hg38_dnase"
    folder.mkdir(parents=True)
    for name in TISSUES:
        source = ROOT / "notebooks" / "tissues" / "hg38_dnase" / f"{name}.yml"
        (folder / source.name).write_text(source.read_text())
    dataset = WindowDataset(read_tissues(folder), window_bp=small_model.SMALL_WINDOW_BP)
    windows = dataset.windows_of("select")
    arrays = pretrain.load_arrays(dataset, windows, np.arange(len(dataset.biosamples)))
    model = pretrain.pretrain(
        arrays,
        small_model.small_config(dataset.motif_activity.shape[1]),
        pretrain.PretrainConfig(n_steps=25, warmup_steps=5, windows_per_step=4),
    )
    model.save_pretrained(root / "model")
    return root, folder


def test_every_page_runs_on_real_data(prepared):
    import papermill

    root, folder = prepared
    run = root / "runs" / "dnase"
    for page in PAGES:
        papermill.execute_notebook(
            ROOT / "notebooks" / f"{page}.ipynb",
            root / f"{page}.ipynb",
            parameters={
                "run": str(run),
                "data": str(folder),
                "blocks": [3],
                "model": str(root / "model"),
            }
            | SHORTER.get(page, {}),
            kernel_name="python3",
            progress_bar=False,
        )
    masked = pd.read_parquet(run / "masked.parquet")
    assert set(masked["lineage"]) == set(TISSUES)
    assert "noise ceiling" not in set(masked["method"])
    evidence = pd.read_parquet(run / "evidence_select" / "counts.parquet")
    assert {"E1", "motif-driven", "E1, held"} <= set(evidence)
    assert "E3, held" not in evidence  # the files name no replicates
    claims = pd.read_parquet(run / "claims.parquet")
    assert claims["verdict"].str.len().min() > 0
