"""Opening bigWigs: any damage is an error that begins with their name."""

import io

import numpy as np
import pybigtools
import pytest

from helpers.windows._bigwig import named_errors, open_bigwig

LENGTHS = {"chr1": 10_000, "chr10": 5_000}


@pytest.fixture
def content(tmp_path):
    rows = [("chr1", start, start + 1, start / 7) for start in range(0, 9_000, 3)]
    rows.append(("chr10", 5, 700, 1.5))
    path = tmp_path / "signal.bw"
    pybigtools.open(str(path), "w").write(LENGTHS, iter(rows))
    return path.read_bytes()


def read(content):
    reader = open_bigwig(io.BytesIO(content), "signal")
    found = []
    for chrom in LENGTHS:
        with named_errors(f"signal: cannot read {chrom}"):
            found.append(reader.values(chrom, 0, LENGTHS[chrom], fillna=0.0, oob=0.0))
    return found


def test_any_file_object_is_read(content):
    chr1, chr10 = read(content)
    expected = np.where(np.arange(10_000) % 3, 0, np.arange(10_000) / 7)
    expected[9_000:] = 0
    assert np.array_equal(chr1, expected.astype(np.float32))
    assert chr10.sum() == 695 * 1.5


@pytest.mark.parametrize("size", [0, 3, 5, 100, -4, -1])
def test_what_is_cut_off_is_refused(content, size):
    with pytest.raises(ValueError, match=r"^signal: truncated, or not a bigWig: .*fo"):
        open_bigwig(io.BytesIO(content[:size]), "signal")


def test_damage_never_ends_in_another_error(content):
    rng = np.random.default_rng(3)
    n_refused = 0
    for position in rng.integers(len(content), size=400).tolist():
        damaged = bytearray(content)
        damaged[position] ^= int(rng.integers(1, 256))
        try:
            read(bytes(damaged))
        except ValueError as error:
            assert str(error).startswith("signal: ")
            n_refused += 1
    assert n_refused > 100


def test_sizes_beyond_the_file_are_refused_before_they_are_believed(content):
    """Believed, they would end the process."""
    index = int.from_bytes(content[24:32], "little")
    first = index + 48 + 4  # items of its first node, a leaf or a branch
    for at, message in ((first + 16, "outside|bytes"), (index, "no tree of regions")):
        damaged = bytearray(content)
        damaged[at : at + 8] = (2**62).to_bytes(8, "little")
        with pytest.raises(ValueError, match=f"signal: damaged index: .*({message})"):
            open_bigwig(io.BytesIO(bytes(damaged)), "signal")
    damaged = bytearray(content)
    n_chromosomes = int.from_bytes(content[8:16], "little") + 16
    damaged[n_chromosomes : n_chromosomes + 8] = (2**38).to_bytes(8, "little")
    with pytest.raises(ValueError, match=f"signal: damaged index: {2**38} chromosomes"):
        open_bigwig(io.BytesIO(bytes(damaged)), "signal")


def test_interruptions_are_no_damage():
    for kind in (KeyboardInterrupt, SystemExit, MemoryError):
        with pytest.raises(kind), named_errors("signal"):
            raise kind
