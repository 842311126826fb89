"""A small number of the inputs of ``python tests/fuzz.py``; they never end unnamed."""

import numpy as np
import pandas as pd
import pytest

import fuzz
import fuzz_readers

N_INPUTS = 60
# What is damaged is fetched, or made, again.
MENDED = ("artifacts", "record of a download", "unfinished download")


@pytest.mark.parametrize("name", fuzz.READERS)
def test_damaged_files_are_read_or_refused_by_name(name):
    found = fuzz.fuzz(name, range(N_INPUTS))
    assert len(found) == N_INPUTS
    assert fuzz.findings(found).empty, fuzz.findings(found).to_string()
    assert (found["outcome"] == "read").all() == name.startswith(MENDED)


# Inputs that once ended otherwise.
FOUND = [
    ("motifs (HOMER)", 4383),  # a second motif without threshold
    ("alignments, inside (BAM)", 5681),  # a header that can be read once
    ("alignments, inside (BAM)", 12963),  # a mapped read without CIGAR
    ("alignments, inside (BAM)", 79381),  # a header that announces gigabytes
    ("alignments (BAM)", 421),  # a block that is none, for which HTSlib waits for ever
    ("alignments (BAM)", 3636),  # gzip, and nearly BGZF
    ("model, forged (safetensors)", 10853),  # a size that would take all memory
    ("model, forged (safetensors)", 34747),  # a list for a number
    ("activations (zarr)", 2076),  # chunks larger than any window number
    ("activations (zarr)", 37222),  # chunks of nothing
    ("experiment of ENCODE (JSON)", 82417),  # a list for a kind of output
    ("unfinished download (JSON)", 11552),  # a size that is no whole number
]


@pytest.mark.parametrize(("name", "seed"), FOUND)
def test_inputs_that_were_findings_are_none(name, seed):
    found = fuzz.fuzz(name, range(seed, seed + 1))
    assert len(found) == 1
    assert fuzz.findings(found).empty, found["outcome"].tolist()


def test_a_seed_gives_the_same_damage():
    content = b"chr1\t0\t10\n" * 5
    first, again = (fuzz.mutated(content, np.random.default_rng(7)) for _ in range(2))
    assert first == again != content


@pytest.fixture
def strange(monkeypatch):
    """Add a reader that crashes, or raises what it should not."""

    def read(folder):
        text = (folder / "a.txt").read_bytes()
        if text != b"good":
            fuzz.os.abort() if len(text) % 2 else text["no such key"]

    reader = fuzz_readers.Reader(fuzz_readers.text_file("a.txt", "good"), read)
    monkeypatch.setitem(fuzz.READERS, "strange", reader)


def test_crashes_and_strange_errors_are_findings(strange):
    found = fuzz.fuzz("strange", range(20))
    assert len(found) == 20
    outcomes = set(found["outcome"].str.split("(").str[0])
    assert {"died: SIGABRT", "a.txt: TypeError"} <= outcomes
    row = fuzz.summary("strange", found)
    assert row["inputs"] == 20 and row["findings"] == len(fuzz.findings(found)) > 0


def test_inputs_that_take_too_long_are_findings(monkeypatch):
    def read(folder):
        while (folder / "a.txt").read_bytes() != b"good":
            pass

    reader = fuzz_readers.Reader(fuzz_readers.text_file("a.txt", "good"), read)
    monkeypatch.setitem(fuzz.READERS, "endless", reader)
    monkeypatch.setattr(fuzz, "SECONDS", 1)
    assert list(fuzz.fuzz("endless", range(1))["outcome"]) == ["died: SIGALRM"]


def test_a_long_run_goes_on_where_it_stopped(strange, monkeypatch, tmp_path, capsys):
    path = tmp_path / "fuzz.tsv"
    done = {"reader": "strange", "inputs": 7}
    pd.DataFrame([done]).to_csv(path, sep="\t", index=False)
    arguments = ["fuzz", "strange", "genes (BED)", "--inputs", "5", "--output"]
    monkeypatch.setattr("sys.argv", [*arguments, str(path)])
    with pytest.raises(SystemExit) as end:
        fuzz.main()
    assert end.value.code == 0 and "genes (BED)" in capsys.readouterr().out
    table = pd.read_csv(path, sep="\t")
    assert list(table["reader"]) == ["strange", "genes (BED)"]
    assert list(table["inputs"]) == [7, 5]
