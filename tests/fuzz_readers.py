"""A small good file of every format that is read from others, and its reader."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pybigtools
import pysam
import torch
import yaml

from helpers import runs
from helpers.activations import ActivationStore
from helpers.checkpoints import read_tf_checkpoint
from helpers.cut_sites import genome_sizes, write_cut_sites
from helpers.downloads import _transfer, fetch, zenodo_files
from helpers.encode import Portal, resolve
from helpers.epibert import EpiBERT, EpiBERTConfig
from helpers.motifs._activity import read_sea
from helpers.motifs._files import read_motifs
from helpers.ontology import read_genes, read_gmt
from helpers.public_data import read_public
from helpers.runs import Run
from helpers.sae import (
    BatchTopKSAE,
    export_saelens,
    import_dictionary_learning,
    import_saelens,
)
from helpers.sae._checkpoint import read_checkpoint, write_checkpoint
from helpers.states import read_segmentation
from helpers.tissues import Biosample, read_tissue
from helpers.windows._files import read_bed, read_windows
from helpers.windows._genome import Genome
from helpers.windows._tracks import Track
from test_cut_sites import molecules, pair, shifted, write_bam, write_fragments

__all__ = ["READERS", "Reader", "text_file"]


@dataclass(frozen=True)
class Reader:
    """How to make a good file, and how to read one.

    Attributes
    ----------
    make : callable
        Writes files into a folder and returns those that may be damaged.
    read : callable
        Reads what lies in the folder.
    named : str
        What errors may call the file instead of its path.
    """

    make: Callable[[Path], list[Path]]
    read: Callable[[Path], object]
    named: str = ""


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


def mend(card: Path, key: str, weights: Path) -> None:
    """Write the checksum of damaged weights where it belongs, as a forger would."""
    try:
        content = json.loads(card.read_text(encoding="utf-8"))
        content[key] = hashlib.sha256(weights.read_bytes()).hexdigest()
    except (ValueError, TypeError):
        return  # the card itself is damaged
    card.write_text(json.dumps(content), encoding="utf-8")


def read_forged_sae(folder: Path) -> None:
    mend(folder / "sae" / "sae.json", "sha256", folder / "sae" / "sae.safetensors")
    BatchTopKSAE.load(folder / "sae")


def read_forged_model(folder: Path) -> None:
    model = folder / "model"
    mend(model / "config.json", "weights_sha256", model / "model.safetensors")
    EpiBERT.from_pretrained(model)


def read_forged_checkpoint(folder: Path) -> None:
    """Read as if every checksum were right."""
    crc = "helpers.checkpoints._tensorflow._masked_crc32c"
    with mock.patch(crc, return_value=mock.ANY):
        read_tf_checkpoint(folder / "ckpt-1")


def make_saelens(folder: Path) -> list[Path]:
    export_saelens(BatchTopKSAE(8, 16, 2), folder / "other")
    return sorted((folder / "other").iterdir())


def make_dictionary_learning(folder: Path) -> list[Path]:
    state = {
        "encoder.weight": torch.ones(16, 8),
        "encoder.bias": torch.zeros(16),
        "decoder.weight": torch.ones(8, 16),
        "b_dec": torch.zeros(8),
        "threshold": torch.tensor(0.5),
        "k": torch.tensor(2),
    }
    torch.save(state, folder / "ae.pt")
    return [folder / "ae.pt"]


_IDENTITY = {"config": {"d_sae": 16}, "world_size": 1}
_STATE = {"identity": _IDENTITY, "step": 7, "rows": torch.arange(40.0)}


def make_training(folder: Path) -> list[Path]:
    write_checkpoint(folder / "training.pt", _STATE)
    return [folder / "training.pt"]


def read_training(folder: Path) -> None:
    state = read_checkpoint(folder / "training.pt", _IDENTITY)
    assert state["step"] == 7 and torch.equal(state["rows"], _STATE["rows"])


_TABLE = pd.DataFrame({"feature": range(40), "score": np.linspace(0, 1, 40)})


def make_artifacts(folder: Path) -> list[Path]:
    read_artifacts(folder)
    return sorted(path for path in (folder / "run").iterdir() if path.is_file())


def read_artifacts(folder: Path) -> None:
    """Read a table and arrays of a run: as they were, or made again."""
    # Files change here more often than the clock of a file system ticks.
    runs._checksum_of.cache_clear()
    run, recipe = Run(folder / "run"), {"seed": 0}
    assert run.table("table.parquet", recipe, _TABLE.copy).equals(_TABLE)

    def build(path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, scores=_TABLE["score"])

    with np.load(run.artefact("scores.npz", recipe, build)) as arrays:
        assert (arrays["scores"] == _TABLE["score"]).all()


_CONTENT = b"what was fetched\n"


def make_fetched(folder: Path) -> list[Path]:
    (folder / "original.txt").write_bytes(_CONTENT)
    read_fetched(folder)
    return [folder / "kept" / "original.txt.json"]


def read_fetched(folder: Path) -> None:
    digest = hashlib.md5(_CONTENT).hexdigest()
    path = fetch(str(folder / "original.txt"), folder / "kept", md5=digest)
    assert path.read_bytes() == _CONTENT


_ADDRESS = "https://example.org/file"


def make_unfinished(folder: Path) -> list[Path]:
    (folder / "file.part").write_bytes(_CONTENT)
    state = {"url": _ADDRESS, "size": 2 * len(_CONTENT), "validator": "x"}
    (folder / "file.part.json").write_text(json.dumps(state))
    return [folder / "file.part.json"]


def read_unfinished(folder: Path) -> None:
    state = _transfer._read_state(folder / "file.part", _ADDRESS, None)
    assert state is None or isinstance(state["size"], int | None)


def make_experiment(folder: Path) -> list[Path]:
    facts = {
        **{"status": "released", "assembly": "GRCh38", "assay_term_name": "ATAC-seq"},
        **{"dataset": "/experiments/ENCSR000AAA/", "md5sum": "0" * 32, "file_size": 1},
    }
    analysis = {"@id": "/analyses/ENCAN000AAA/", "status": "released"}
    kinds = {
        "ENCFF000AAA.bam": ("bam", "bam", "alignments"),
        "ENCFF000AAB.bed.gz": ("bed", "bed narrowPeak", "IDR thresholded peaks"),
    }
    files = []
    for name, (file_format, file_type, output_type) in kinds.items():
        (folder / name).touch()
        accession = name.partition(".")[0]
        kind = {"file_format": file_format, "file_type": file_type}
        kind |= {"output_type": output_type, "biological_replicates": [1]}
        where = {"href": f"/files/{accession}/@@download/{name}"}
        files.append({"accession": accession, **facts, **kind, **where})
    document = {
        **{"accession": "ENCSR000AAA", "files": files, "analyses": [analysis]},
        **{"status": "released", "assay_term_name": "ATAC-seq"},
        **{"default_analysis": analysis["@id"], "biosample_summary": "K562"},
        "biosample_ontology": {"term_name": "K562"},
    }
    (folder / "ENCSR000AAA.json").write_text(json.dumps(document))
    return [folder / "ENCSR000AAA.json"]


def make_zenodo(folder: Path) -> list[Path]:
    links = {"self": "https://example.org/weights.zip"}
    file = {"key": "weights.zip", "size": 7, "checksum": "md5:" + "0" * 32}
    content = {"files": [file | {"links": links}]}
    (folder / "7.json").write_text(json.dumps(content))
    return [folder / "7.json"]


_SIZES = {"chr1": 6000, "chr2": 5000}
_FRAGMENTS = molecules(12, 0, sizes=_SIZES)


def make_alignments(folder: Path) -> list[Path]:
    reads = [
        read
        for i, fragment in enumerate(_FRAGMENTS)
        for read in pair(f"read{i}", fragment)
    ]
    path = write_bam(folder / "a.bam", reads, sizes=_SIZES)
    return [path, folder / "a.bam.bai"]


def make_fragments(folder: Path) -> list[Path]:
    path = write_fragments(folder / "a.tsv.gz", shifted(_FRAGMENTS), sizes=_SIZES)
    return [path, folder / "a.tsv.gz.tbi"]


def unpacked(make: Callable[[Path], list[Path]]) -> Callable[[Path], list[Path]]:
    """Return a maker of what is inside of the first file that a maker makes."""

    def make_inside(folder: Path) -> list[Path]:
        path, index = make(folder)
        inside = path.with_name(f"{path.name}.inside")
        inside.write_bytes(gzip.decompress(path.read_bytes()))
        pack(inside)
        if index.suffix == ".bai":
            pysam.index(str(path))
        else:
            pysam.tabix_index(str(path), preset="bed", force=True)
        return [inside]

    return make_inside


def pack(inside: Path) -> None:
    """Compress a file by blocks, as BAMs and fragment files are."""
    with pysam.BGZFile(str(inside.with_suffix("")), "wb") as file:
        file.write(inside.read_bytes())


def read_cuts(name: str, folder: Path) -> None:
    """Read alignments or fragments; damaged insides are compressed first."""
    inside = folder / f"{name}.inside"
    if inside.is_file():
        pack(inside)
    write_cut_sites(folder / name, folder / "out.bw", genome_sizes=_SIZES)


def gzipped(name: str, text: str) -> Callable[[Path], list[Path]]:
    """Return a maker of one gzipped text file."""

    def make(folder: Path) -> list[Path]:
        (folder / name).write_bytes(gzip.compress(text.encode(), mtime=0))
        return [folder / name]

    return make


def make_public(folder: Path) -> list[Path]:
    content = {
        **{"tissue": "liver", "assembly": "hg38", "portal": "https://example.org"},
        **{"genome": "https://example.org/{assembly}.fa.gz", "notes": "none"},
        "windows": {"candidates": "c.bed", "n_windows": 40, "chromosomes": ["chr1"]},
        **{"motifs": "m.meme", "motif_background": "b.bed"},
        "in_vitro": {"name": "a", "experiment": "ENCSR000AAA"},
        "in_vivo": {"name": "b", "experiment": "ENCSR000AAB", "files": ["ENCFF1"]},
    }
    (folder / "liver.yml").write_text(yaml.safe_dump(content, sort_keys=False))
    return [folder / "liver.yml"]


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
_GMT = "GO:1\tdevelopment\tFOXA2\tSPI1\nGO:2\tdeath\tEBF1\n"
READERS = {
    "tissue (YAML)": Reader(make_tissue, lambda f: read_tissue(f / "liver.yml")),
    "tissue of public data (YAML)": Reader(
        make_public, lambda f: read_public(f / "liver.yml")
    ),
    "windows (TSV)": Reader(
        text_file("w.tsv", _WINDOWS), lambda f: read_windows(f / "w.tsv", window_bp=8)
    ),
    "peaks (BED)": Reader(text_file("p.bed", _BED), lambda f: read_bed(f / "p.bed")),
    "peaks, gzipped (BED)": Reader(
        gzipped("p.bed.gz", _BED), lambda f: read_bed(f / "p.bed.gz")
    ),
    "states (BED)": Reader(
        text_file("s.bed", _BED), lambda f: read_segmentation(f / "s.bed")
    ),
    "genes (BED)": Reader(
        text_file("g.bed", "chr1\t5\t90\tFOXA2\t0\t+\nchr2\t1\t7\tSPI1\t0\t-\n"),
        lambda f: read_genes(f / "g.bed"),
    ),
    "gene sets (GMT)": Reader(
        text_file("go.gmt", _GMT), lambda f: read_gmt(f / "go.gmt")
    ),
    "gene sets, gzipped (GMT)": Reader(
        gzipped("go.gmt.gz", _GMT), lambda f: read_gmt(f / "go.gmt.gz")
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
    "motif activity (TSV of SEA)": Reader(
        text_file("sea.tsv", _SEA), lambda f: read_sea(f / "sea.tsv")
    ),
    "genome (FASTA)": Reader(make_fasta, read_fasta),
    "chromosome lengths (FASTA index)": Reader(
        make_fasta, lambda f: genome_sizes(f / "genome.fa")
    ),
    "track (bigWig)": Reader(make_bigwig, read_bigwig),
    "alignments (BAM)": Reader(make_alignments, partial(read_cuts, "a.bam")),
    "alignments, inside (BAM)": Reader(
        unpacked(make_alignments), partial(read_cuts, "a.bam")
    ),
    "fragments (TSV)": Reader(make_fragments, partial(read_cuts, "a.tsv.gz")),
    "fragments, inside (TSV)": Reader(
        unpacked(make_fragments), partial(read_cuts, "a.tsv.gz")
    ),
    "checkpoint (TensorFlow)": Reader(
        make_checkpoint, lambda f: read_tf_checkpoint(f / "ckpt-1")
    ),
    "checkpoint, forged (TensorFlow)": Reader(make_checkpoint, read_forged_checkpoint),
    "model (safetensors)": Reader(
        make_model, lambda f: EpiBERT.from_pretrained(f / "model")
    ),
    "model, forged (safetensors)": Reader(make_model, read_forged_model),
    "dictionary (safetensors)": Reader(
        make_sae, lambda f: BatchTopKSAE.load(f / "sae")
    ),
    "dictionary, forged (safetensors)": Reader(make_sae, read_forged_sae),
    "SAELens (safetensors)": Reader(
        make_saelens, lambda f: import_saelens(f / "other")
    ),
    "dictionary_learning (torch)": Reader(
        make_dictionary_learning, lambda f: import_dictionary_learning(f / "ae.pt")
    ),
    "unfinished training (torch)": Reader(make_training, read_training),
    "activations (zarr)": Reader(make_store, read_store),
    "artifacts (parquet, npz, JSON)": Reader(make_artifacts, read_artifacts),
    "record of a download (JSON)": Reader(make_fetched, read_fetched),
    "unfinished download (JSON)": Reader(make_unfinished, read_unfinished),
    "experiment of ENCODE (JSON)": Reader(
        make_experiment, lambda f: resolve(Portal(f), "ENCSR000AAA"), "ENCSR000AAA"
    ),
    "record of Zenodo (JSON)": Reader(make_zenodo, lambda f: zenodo_files(7, source=f)),
}
