"""Some of the cases of ``python tests/faults.py``, and whether it notices faults."""

import os

import pandas as pd
import pytest

import faults as suite
from helpers import runs
from helpers.downloads import _transfer

STAGES = ("downloads", "pre-training", "residual streams")


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    cases = suite.Faults(tmp_path_factory.mktemp("faults"), STAGES)
    cases.prepare()
    yield cases
    cases.server.stop()


@pytest.mark.parametrize("moment", [0.3, 0.8])
def test_a_killed_stage_is_made_whole(faults, moment):
    assert faults.kill("residual streams", moment) == "same"


def test_a_stage_killed_between_two_files_is_made_whole(faults):
    for number in (0, faults.n_renames["residual streams"] - 1):
        assert faults.kill_at_rename("residual streams", number) == "same"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_named_and_loses_nothing(faults):
    assert faults.fill_disk("residual streams", 0.5) == "same"


def test_processes_share_a_folder_or_are_told_apart(faults):
    assert faults.run_two("residual streams") == "same"
    assert faults.run_different("residual streams").startswith("refused: RuntimeError")


def test_a_damaged_checkpoint_of_a_training_is_refused(faults):
    outcome = faults.damage_checkpoint("pre-training")
    assert outcome.startswith("refused: ValueError") and "training.pt" in outcome


def test_a_network_that_fails_is_waited_for_or_named(faults):
    (path, *_) = sorted(faults.server.folder.rglob("*.bam"))
    name = str(path.relative_to(faults.server.folder))
    assert faults.misbehave({"cut_after": {name: 10_000}, "unavailable": 2}) == "same"
    outcome = faults.misbehave({"vanish_at": 4}, faults.server.url)
    assert outcome.startswith("refused: ConnectionError")
    assert faults.misbehave({"corrupt": [name]}, name).startswith("refused: ValueError")


def test_what_goes_wrong_is_noticed(faults, monkeypatch):
    with monkeypatch.context() as patch:  # half of a download is taken for all of it
        patch.setattr(_transfer, "_read_state", lambda *arguments: {"size": 0})
        patch.setattr(_transfer, "_transfer", lambda *arguments: None)
        assert faults.misbehave({}).startswith("WRONG")
    with monkeypatch.context() as patch:  # a damaged artifact is taken for good
        patch.setattr(
            runs.Run, "is_current", lambda run, name, _: run.path(name).exists()
        )
        (name,) = (n for n in faults.produced["pre-training", 0] if "config" in n)
        assert faults.damage("pre-training", name, lambda _: b"{}").startswith("WRONG")


def test_the_page_counts_how_cases_ended():
    rows = [
        ("scores", "killed", "at 5%", "same"),
        ("scores", "killed", "at 9%", "same"),
        ("downloads", "network", "vanishes", "refused: ConnectionError: a|b"),
        ("scores", "cut", "*.parquet", "WRONG: x"),
    ]
    table = pd.DataFrame(rows, columns=["stage", "fault", "detail", "outcome"])
    text = suite.page(table, "python tests/faults.py")
    assert "4 cases, 3 ended right: 2 same, 1 refused, 1 WRONG." in text
    assert "| scores | 2 same |  | 1 WRONG |" in text
    assert "| downloads | network | vanishes | `ConnectionError: a/b` |" in text
