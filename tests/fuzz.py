"""Damage files at random and read them: ``python tests/fuzz.py --inputs 100000``.

A reader may return, or raise one of the two exceptions that it documents, naming the
file. Anything else is a finding: another exception, a crash of the process, more
memory or time than a small file can need. The tests run a small number of inputs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pybigtools
import pysam
import torch
import yaml

from helpers._genome import Genome
from helpers._motif_activity import read_sea
from helpers._motif_files import read_motifs
from helpers._tracks import Track
from helpers._window_files import read_bed, read_windows
from helpers.activations import ActivationStore
from helpers.checkpoints import read_tf_checkpoint
from helpers.epibert import EpiBERT, EpiBERTConfig
from helpers.ontology import read_genes, read_gmt
from helpers.sae import BatchTopKSAE
from helpers.states import read_segmentation
from helpers.tissues import Biosample, read_tissue

MEMORY = 4 * 2**30  # bytes of address space beyond those in use
SECONDS = 20  # for one input
_TOKENS = [b"-1", b"0", b"nan", b"inf", b"1e309", b"99999999999999999999", b"\t", b"\n"]
_TOKENS += [b"\x00", b"\xff", b" ", b"#", b">", b"{", b"[", b"'", b":", b"\r\n", b"-"]


@dataclass(frozen=True)
class Reader:
    """How to make a good file, and how to read one.

    Attributes
    ----------
    make : callable
        Writes files into a folder and returns those that may be damaged.
    read : callable
        Reads what lies in the folder.
    """

    make: Callable[[Path], list[Path]]
    read: Callable[[Path], object]


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """Return content with one to four random changes."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(len(data) + 1))
        length = int(2 ** rng.uniform(0, 6))
        change = rng.integers(7)
        if change == 0 and len(data):  # flip a bit
            data[at % len(data)] ^= 1 << int(rng.integers(8))
        elif change == 1:
            data[at : at + length] = rng.bytes(length)
        elif change == 2:
            del data[at : at + length]
        elif change == 3:
            data[at:at] = _TOKENS[rng.integers(len(_TOKENS))]
        elif change == 4:  # repeat or move a piece
            source = int(rng.integers(len(data) + 1))
            data[at:at] = data[source : source + length]
        elif change == 5:
            del data[at:]
        elif change == 6:  # replace a word
            words = bytes(data).split()
            if words:
                word = words[rng.integers(len(words))]
                new = _TOKENS[rng.integers(len(_TOKENS))]
                data = bytearray(bytes(data).replace(word, new, 1))
    return bytes(data)


def text_file(name: str, text: str) -> Callable[[Path], list[Path]]:
    """Return a maker of one text file."""

    def make(folder: Path) -> list[Path]:
        (folder / name).write_text(text)
        return [folder / name]

    return make


def make_tissue(folder: Path) -> list[Path]:
    sample = {"peaks": "a.bed", "motif_activity": "a.tsv", "signal": "a.bw"}
    for name in [*sample.values(), "g.fa", "w.tsv", "m.meme"]:
        (folder / name).touch()
    content = {
        **{"tissue": "liver", "assembly": "hg38", "notes": "none"},
        **{"genome": "g.fa", "windows": "w.tsv", "motifs": "m.meme"},
        "in_vitro": {"name": "a", "scale": 0.5, "seen_in_training": True, **sample},
        "in_vivo": {"name": "b", "signal_kind": "cut_sites", **sample},
        "replicates": [{"name": "c", "context": "in_vivo", **sample}],
    }
    (folder / "liver.yml").write_text(yaml.safe_dump(content, sort_keys=False))
    return [folder / "liver.yml"]


def make_fasta(folder: Path) -> list[Path]:
    path = folder / "genome.fa"
    path.write_text(">chr1\nACGTNACGTA\nACGTACGTAC\nGGG\n>chr2:10-15\nACGTA\n")
    pysam.faidx(str(path))
    return [path, path.with_name("genome.fa.fai")]


def read_fasta(folder: Path) -> None:
    genome = Genome(folder / "genome.fa")
    for chrom in genome.chromosomes:
        genome.codes(chrom, 2, 13)


def make_bigwig(folder: Path) -> list[Path]:
    make_fasta(folder)
    entries = [("chr1", 3 * i, 3 * i + 2, float(i % 5)) for i in range(300)]
    path = folder / "track.bw"
    pybigtools.open(str(path), "w").write({"chr1": 2000}, iter(entries))
    return [path]


def read_bigwig(folder: Path) -> None:
    names = dict.fromkeys(("peaks", "motif_activity"), folder / "none")
    sample = Biosample("a", folder / "track.bw", **names, signal_kind="cut_sites")
    (folder / "long.fa").write_text(">other\nACGT\n")
    pysam.faidx(str(folder / "long.fa"))
    track = Track(sample, {"chr1": 1000}, Genome(folder / "long.fa"))
    for start in range(0, 1000, 200):
        track.bins("chr1", start, start + 200)


def make_checkpoint(folder: Path) -> list[Path]:
    tiny = Path(__file__).parent / "data" / "epibert_tiny"
    return [Path(shutil.copy(path, folder)) for path in tiny.glob("ckpt-1.*")]


def make_sae(folder: Path) -> list[Path]:
    BatchTopKSAE(8, 16, 2).save(folder / "sae")
    return sorted((folder / "sae").iterdir())


def make_model(folder: Path) -> list[Path]:
    tiny = Path(__file__).parent / "data" / "epibert_tiny"
    config = json.loads((tiny / "tiny_config.json").read_text())
    config = EpiBERTConfig.from_authors(config)
    EpiBERT.from_pretrained(tiny / "ckpt-1", config).save_pretrained(folder / "model")
    return sorted((folder / "model").iterdir())


def make_store(folder: Path) -> list[Path]:
    windows = {"chrom": ["chr1"] * 3, "start": [0, 8, 16], "end": [8, 16, 24]}
    windows |= {"split": ["select", "tune", "test"], "block": ["a", "b", "c"]}
    store = ActivationStore.create(
        folder / "store",
        biosamples=["a", "b"],
        windows=pd.DataFrame(windows),
        layers=[0],
        n_tokens=2,
        d_model=4,
        model_hash="x",
    )
    for batch in store.pending():
        for name in store.biosamples:
            n_windows = batch.stop - batch.start
            store.write(0, name, batch, torch.ones(n_windows, 2, 4))
        store.mark_complete(batch)
    return sorted(path for path in (folder / "store").rglob("*") if path.is_file())


def read_store(folder: Path) -> None:
    ActivationStore.open(folder / "store", model_hash="x").rows(0)


def _pwm(rows: str) -> str:
    return "\n".join(" ".join(row) for row in rows.split("|"))


_BED = "chr1\t0\t200\tE1\nchr1\t200\t600\tE2\nchr2\t0\t400\tE1\n"
_WINDOWS = "chrom\tstart\tend\tsplit\tblock\nchr1\t0\t8\tselect\tb1\n"
_WINDOWS += "chr2\t8\t16\ttune\tb2\nchr3\t0\t8\ttest\tb3\n"
_MATRIX = "0.1 0.2 0.3 0.4\n0.25 0.25 0.25 0.25\n0.7 0.1 0.1 0.1\n"
_MEME = (
    "MEME version 4\n\nALPHABET= ACGT\n\nstrands: + -\n\n"
    "Background letter frequencies\n"
    "A 0.25 C 0.25 G 0.25 T 0.25\n\nMOTIF MA1.1 FOX\nletter-probability matrix: "
    f"alength= 4 w= 3 nsites= 20 E= 0\n{_MATRIX}\nMOTIF MA2.1 SPI\n"
    f"letter-probability matrix: alength= 4 w= 3 nsites= 20 E= 0\n{_MATRIX}"
)
_JASPAR = ">MA1.1 FOX\n" + "".join(f"{b} [ 4 10 2 ]\n" for b in "ACGT")
_HOMER = f">ACG\tFOX(Forkhead)\t5.2\t-10\t0\n{_MATRIX}".replace(" ", "\t")
_SEA = (
    "RANK\tDB\tID\tALT_ID\tCONSENSUS\tTP\tTP%\tFP\tFP%\tENR_RATIO\tSCORE_THR\tPVALUE\t"
    "LOG_PVALUE\tEVALUE\tLOG_EVALUE\tQVALUE\tLOG_QVALUE\n"
    "1\t1\tMA1.1\tFOX\tACG\t5\t10\t1\t2\t3.1\t5.5\t1e-9\t-9\t1e-8\t-8\t1e-8\t-8\n"
    "2\t1\tMA2.1\tSPI\tACG\t5\t10\t1\t2\t1.1\t5.5\t1e-2\t-2\t1e-1\t-1\t1e-1\t-1\n"
)
READERS = {
    "tissue (YAML)": Reader(make_tissue, lambda f: read_tissue(f / "liver.yml")),
    "windows (TSV)": Reader(
        text_file("w.tsv", _WINDOWS), lambda f: read_windows(f / "w.tsv", window_bp=8)
    ),
    "peaks (BED)": Reader(text_file("p.bed", _BED), lambda f: read_bed(f / "p.bed")),
    "states (BED)": Reader(
        text_file("s.bed", _BED), lambda f: read_segmentation(f / "s.bed")
    ),
    "genes (BED)": Reader(
        text_file("g.bed", "chr1\t5\t90\tFOXA2\t0\t+\nchr2\t1\t7\tSPI1\t0\t-\n"),
        lambda f: read_genes(f / "g.bed"),
    ),
    "gene sets (GMT)": Reader(
        text_file("go.gmt", "GO:1\tdevelopment\tFOXA2\tSPI1\nGO:2\tdeath\tEBF1\n"),
        lambda f: read_gmt(f / "go.gmt"),
    ),
    "motifs (MEME)": Reader(
        text_file("m.meme", _MEME), lambda f: read_motifs(f / "m.meme")
    ),
    "motifs (JASPAR)": Reader(
        text_file("m.jaspar", _JASPAR), lambda f: read_motifs(f / "m.jaspar")
    ),
    "motifs (HOMER)": Reader(
        text_file("m.motif", _HOMER), lambda f: read_motifs(f / "m.motif")
    ),
    "motif activity (SEA)": Reader(
        text_file("sea.tsv", _SEA), lambda f: read_sea(f / "sea.tsv")
    ),
    "genome (FASTA)": Reader(make_fasta, read_fasta),
    "track (bigWig)": Reader(make_bigwig, read_bigwig),
    "checkpoint (TensorFlow)": Reader(
        make_checkpoint, lambda f: read_tf_checkpoint(f / "ckpt-1")
    ),
    "model (safetensors)": Reader(
        make_model, lambda f: EpiBERT.from_pretrained(f / "model")
    ),
    "dictionary (safetensors)": Reader(
        make_sae, lambda f: BatchTopKSAE.load(f / "sae")
    ),
    "activations (zarr)": Reader(make_store, read_store),
}


def attempt(reader: Reader, files: list[Path], folder: Path, seed: int) -> str:
    """Read one damaged input; return ``read``, ``refused`` or what went wrong."""
    rng = np.random.default_rng(seed)
    path = files[rng.integers(len(files))]
    good = path.read_bytes()
    path.write_bytes(mutated(good, rng))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader.read(folder)
        return "read"
    except (ValueError, FileNotFoundError) as error:
        named = str(folder) in str(error)
        return "refused" if named else f"{path.name} not named: {error!r}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{path.name}: {error!r}"
    finally:
        path.write_bytes(good)


def _work(name: str, seeds: range, report) -> None:
    """Try seeds in a process of its own, which may crash."""
    in_use = int(Path("/proc/self/statm").read_text().split()[0])
    limit = in_use * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries report on their own
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        files = READERS[name].make(Path(folder))
        READERS[name].read(Path(folder))  # undamaged, it must be readable
        for seed in seeds:
            report.send((seed, "crashed"))
            signal.alarm(SECONDS)
            outcome = attempt(READERS[name], files, Path(folder), seed)
            signal.alarm(0)
            report.send((seed, outcome))


def fuzz(name: str, seeds: range) -> pd.DataFrame:
    """Read damaged inputs; return one row for each: ``seed`` and ``outcome``."""
    found: dict[int, str] = {}
    context = multiprocessing.get_context("fork")
    while len(found) < len(seeds):
        receiver, sender = context.Pipe(duplex=False)
        rest = seeds[len(found) :]
        process = context.Process(target=_work, args=(name, rest, sender))
        process.start()
        sender.close()
        try:
            while True:
                seed, outcome = receiver.recv()
                found[seed] = outcome
        except EOFError:
            process.join()
        if not found:
            raise RuntimeError(f"{name}: the undamaged input could not be read")
    return pd.DataFrame(found.items(), columns=["seed", "outcome"])


def main() -> None:
    """Fuzz readers from the command line and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("readers", nargs="*", default=list(READERS))
    parser.add_argument("--inputs", type=int, default=1000, help="for each reader")
    parser.add_argument("--first", type=int, default=0, help="seed of the first")
    arguments = parser.parse_args()
    seeds = range(arguments.first, arguments.first + arguments.inputs)
    n_findings = 0
    print(f"{'reader':26}{'inputs':>8}{'read':>8}{'refused':>8}{'findings':>9}{'s':>7}")
    for name in arguments.readers:
        start = time.monotonic()
        table = fuzz(name, seeds)
        counts = table["outcome"].value_counts()
        findings = table[~table["outcome"].isin(["read", "refused"])]
        n_findings += len(findings)
        print(
            f"{name:26}{len(table):>8}{counts.get('read', 0):>8}"
            f"{counts.get('refused', 0):>8}{len(findings):>9}"
            f"{time.monotonic() - start:>7.0f}",
            flush=True,
        )
        for row in findings.drop_duplicates("outcome").head(5).itertuples():
            print(f"    seed {row.seed}: {row.outcome[:300]}")
    sys.exit(n_findings > 0)


if __name__ == "__main__":
    main()
