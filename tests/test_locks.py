"""Several processes in one run folder: they share, wait, or are refused."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from helpers.runs import Run, _locks

PARAMETERS = {"data": "simulated", "seed": 0}


@pytest.fixture
def process(tmp_path):
    """Start Python programs that work in the run folder ``tmp_path / "run"``."""
    started = []

    def start(program):
        text = "from helpers.runs import Run; import time\n" + textwrap.dedent(program)
        child = subprocess.Popen(
            [sys.executable, "-u", "-c", text],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(child)
        return child

    yield start
    for child in started:
        child.kill()
        child.wait()
        child.stdout.close()


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / "run")


@pytest.fixture
def holder(process):
    child = process(
        """
        Run("run").claim(data="simulated", seed=0)
        print("claimed")
        time.sleep(60)
        """
    )
    assert child.stdout.readline() == "claimed\n"
    return child


def test_a_run_of_other_parameters_is_refused_and_told_why(run, holder):
    expected = rf"in use by process {holder.pid} on .*seed = 0, here 1.*run folder"
    with pytest.raises(RuntimeError, match=expected):
        run.claim(**PARAMETERS | {"seed": 1})
    run.claim(**PARAMETERS)  # it has not become ours, nor is it spoilt


def test_a_run_of_the_same_parameters_shares_the_folder(run, holder, process):
    run.claim(**PARAMETERS)
    holder.kill()
    holder.wait()
    other = process(
        """
        try:
            Run("run").claim(data="simulated", seed=2)
        except RuntimeError as error:
            print(error)
        """
    )  # still refused: the second of two holders is alive
    assert "seed = 0, here 2" in other.stdout.read()


def test_the_folder_of_a_killed_run_is_free(run, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    run.claim(**PARAMETERS | {"seed": 1})


def test_a_process_may_change_its_mind(run):
    run.claim(**PARAMETERS)
    run.claim(**PARAMETERS | {"seed": 1})


def test_an_artefact_is_built_by_one_process_while_others_wait(run, process, caplog):
    program = """
        def build(path):
            print("building")
            time.sleep(1)
            path.write_text("by the first")
        Run("run").artefact("table", {}, build)
        """
    first = process(program)
    assert first.stdout.readline() == "building\n"
    path = run.artefact("table", {}, lambda path: path.write_text("by the second"))
    assert path.read_text() == "by the first"
    assert "another process is making it; waiting" in caplog.text


def test_an_artefact_of_a_killed_process_is_built_by_the_next(run, process):
    program = """
        def build(path):
            path.write_text("half")
            print("building")
            time.sleep(60)
        Run("run").artefact("table", {}, build)
        """
    first = process(program)
    assert first.stdout.readline() == "building\n"
    first.kill()
    path = run.artefact("table", {}, lambda path: path.write_text("whole"))
    assert path.read_text() == "whole"


def test_file_systems_without_locks_are_named_and_used(run, monkeypatch, caplog):
    def refuse(*_):
        raise OSError("Function not implemented")

    monkeypatch.setattr(_locks.fcntl, "flock", refuse)
    run.claim(**PARAMETERS)
    assert "no locks on this file system" in caplog.text
