"""The commands in Python of the chapter on real data do what it says."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pysam
import pytest

from helpers import motifs
from helpers.windows import read_windows

CHAPTER = Path(__file__).resolve().parent.parent / "book" / "real-data.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", CHAPTER.read_text("utf-8"), re.M | re.S)
CHROM_BP = 3 * 8192 + 100


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a small genome of 22 chromosomes, where the commands run."""
    rng = np.random.default_rng(0)
    with (tmp_path / "hg38.fa").open("w") as fasta:
        for i in range(1, 23):
            fasta.write(f">chr{i}\n{''.join(rng.choice(list('ACGT'), CHROM_BP))}\n")
    pysam.faidx(str(tmp_path / "hg38.fa"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def block_about(name):
    (found,) = (block for block in BLOCKS if name in block)
    return found


def test_windows_are_drawn_as_the_chapter_says(folder):
    exec(block_about("choose_windows").replace("n_windows=2000", "n_windows=44"), {})
    windows = read_windows(folder / "windows.tsv", window_bp=8192)
    assert len(windows) == 44
    assert set(windows["split"]) == {"select", "tune", "test"}


def test_motif_activity_is_made_as_the_chapter_says(folder):
    rows = [
        (f"chr{i}", start, start + 200, f"p{i}_{start}", 10 + i)
        for i in range(1, 23)
        for start in range(1000, 20000, 2000)
    ]
    table = pd.DataFrame(rows)
    for name, part in (("cortex.narrowPeak", table[::3]), ("background.bed", table)):
        part.to_csv(folder / name, sep="\t", header=False, index=False)
    motifs.write_meme(folder / "motifs.meme", motifs.jaspar_vertebrates()[:5])
    exec(block_about("peak_motif_activity"), {})
    made = pd.read_csv(folder / "cortex.sea.tsv", sep="\t", comment="#")
    assert len(made) == 5
