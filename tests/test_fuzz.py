"""A small number of the inputs of ``python tests/fuzz.py``; they never end unnamed."""

import numpy as np
import pytest

import fuzz

N_INPUTS = 150


@pytest.mark.parametrize("name", fuzz.READERS)
def test_damaged_files_are_read_or_refused_by_name(name):
    found = fuzz.fuzz(name, range(N_INPUTS))
    assert len(found) == N_INPUTS
    findings = found[~found["outcome"].isin(["read", "refused"])]
    assert findings.empty, findings.to_string()
    assert (found["outcome"] == "refused").any()


def test_a_seed_gives_the_same_damage():
    content = b"chr1\t0\t10\n" * 5
    first, again = (fuzz.mutated(content, np.random.default_rng(7)) for _ in range(2))
    assert first == again != content


def test_crashes_and_strange_errors_are_findings(monkeypatch, tmp_path):
    def read(folder):
        text = (folder / "a.txt").read_bytes()
        if text != b"good":
            fuzz.os.abort() if len(text) % 2 else text["no such key"]

    reader = fuzz.Reader(fuzz.text_file("a.txt", "good"), read)
    monkeypatch.setitem(fuzz.READERS, "strange", reader)
    outcomes = set(fuzz.fuzz("strange", range(20))["outcome"].str.split("(").str[0])
    assert {"crashed", "a.txt: TypeError"} <= outcomes
