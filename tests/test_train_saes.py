"""Dictionaries trained from the command line, by one process and by two together."""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import yaml

from helpers import stages
from helpers.train_saes import main, read_parameters

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def test_parameters_are_those_papermill_would_set(tmp_path):
    file = tmp_path / "heart.yml"
    content = {
        "run": "runs/heart",
        "data": "heart.yml",
        "seed": None,
        "tissue": "heart",
    }
    file.write_text(yaml.safe_dump(content))
    given = read_parameters(file, [("blocks", "[1, 3]"), ("run", "elsewhere")])
    assert given == {"run": "elsewhere", "data": "heart.yml", "blocks": [1, 3]}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([("run", "x"), ("block", "3")], "unknown parameters .'block'."),
        ([("seed", "3")], "run must name the run folder"),
    ],
)
def test_wrong_parameters_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        read_parameters(None, values)


def test_a_file_without_parameters_is_refused(tmp_path, capsys):
    file = tmp_path / "list.yml"
    file.write_text("- run\n")
    with pytest.raises(SystemExit):
        main(["-f", str(file)])
    assert "expected parameters by name" in capsys.readouterr().err


def saved(run):
    return {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}


@pytest.mark.slow
def test_two_processes_make_the_dictionaries_of_one(
    small_world, small_model_folder, tmp_path
):
    settings = {
        "data": str(small_world.folder / "tissues"),
        "model": str(small_model_folder),
        "blocks": [0, 1],
        "tissues": ["blood"],
    }
    file = tmp_path / "parameters.yml"
    file.write_text(yaml.safe_dump(settings))
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "OMP_NUM_THREADS": "1",
    }

    def launch(name, launcher):
        command = [sys.executable, *launcher, "-m", "helpers.train_saes"]
        command += ["-f", str(file), "-p", "run", str(tmp_path / name)]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    launch("one", ())
    launch("two", TORCHRUN)
    one, two = tmp_path / "one", tmp_path / "two"
    for block in settings["blocks"]:
        folder = f"sae/block{block}"
        alone, shared = (
            pd.read_parquet(run / folder / "history.parquet") for run in (one, two)
        )
        assert len(alone) == len(shared)
        # The same rows and first weights; then sums in another order. Rounding grows
        # fast on the streams of an untrained model, where features at the edge of the
        # largest k change places: one process with other vector instructions differs
        # as much. On rows with structure, test_sae_runs compares to rounding.
        np.testing.assert_allclose(alone["loss"][:1], shared["loss"][:1], rtol=1e-5)
        np.testing.assert_allclose(alone["loss"][:9], shared["loss"][:9], rtol=0.1)
        cards = [
            pd.read_parquet(run / folder / "card.parquet").loc["all"]
            for run in (one, two)
        ]
        assert cards[1]["n_rows"] == cards[0]["n_rows"]
        assert cards[1]["fvu"] == pytest.approx(cards[0]["fvu"], rel=0.3)
        assert cards[1]["l0_mean"] == pytest.approx(cards[0]["l0_mean"], rel=0.05)
        assert not list((two / folder).glob("*.pt"))
    before = saved(two)
    assert len(before) == len(settings["blocks"])
    # What is there is taken as it is, by processes together and by a notebook.
    launch("two", TORCHRUN)
    study = stages.open_study(two, **settings)
    assert set(stages.train_saes(study)) == set(settings["blocks"])
    assert saved(two) == before
