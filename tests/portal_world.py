"""The small simulated world as public data: what ENCODE and UCSC would serve."""

import gzip
import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pybigtools
import pysam
import yaml

from helpers.cut_sites import genome_sizes

READ_BP = 30
APART = 20  # cuts between those of a fragment
ANALYSIS = {"@id": "/analyses/ENCAN000AAA/", "status": "released", "date_created": "1"}


def cut_pairs(bigwig, chrom, size):
    """Pair the cuts of a chromosome with others further on: first and last cut."""
    counts = pybigtools.open(str(bigwig)).values(chrom, 0, size, fillna=0.0)
    cuts = np.repeat(np.arange(size), counts.astype(int))
    groups = cuts[: len(cuts) // (2 * APART) * 2 * APART].reshape(-1, 2, APART)
    first, last = groups[:, 0].ravel(), groups[:, 1].ravel()
    inside = (first >= 4) & (last + 5 <= size) & (first < last)
    return first[inside], last[inside]


def write_bam(path, bigwig, sizes):
    """Write read pairs whose fragments were cut where the bigWig says.

    Returns the cuts per base that a reader of the BAM should find, by chromosome.
    """
    contigs = sizes | {"chrEBV": 171_823}
    header = {
        "HD": {"VN": "1.6", "SO": "coordinate"},
        "SQ": [{"SN": chrom, "LN": length} for chrom, length in contigs.items()],
    }
    expected, reads = {}, []
    for index, (chrom, size) in enumerate(sizes.items()):
        first, last = cut_pairs(bigwig, chrom, size)
        expected[chrom] = np.bincount(np.concatenate([first, last]), minlength=size)
        for i, (a, b) in enumerate(zip(first - 4, last + 5, strict=True)):
            length = int(min(READ_BP, b - a))
            name = f"{chrom}_{i}"
            reads.append((index, int(a), int(b - length), length, name, int(b - a), 0))
            reads.append((index, int(b - length), int(a), length, name, -int(b - a), 1))
    reads.sort(key=lambda read: read[:2])
    with pysam.AlignmentFile(str(path), "wb", header=header) as bam:
        for index, start, mate, length, name, template, is_second in reads:
            read = pysam.AlignedSegment(bam.header)
            read.query_name, read.query_sequence = name, "A" * length
            read.flag = 147 if is_second else 99  # a proper pair, facing inwards
            read.reference_id = read.next_reference_id = index
            read.reference_start, read.next_reference_start = start, mate
            read.mapping_quality, read.cigarstring = 60, f"{length}M"
            read.template_length = template
            bam.write(read)
    return expected


class PortalWorld:
    """Serve the pairs of a simulated world as experiments.

    Parameters
    ----------
    root : Path
        Folder that a server will serve.
    world : Path
        Folder of the simulated world.
    url : str
        Address of the server.
    """

    def __init__(self, root, world, url):
        self.root, self.world, self.url = root, world, url
        self.sizes = genome_sizes(world / "genome.fa")
        self.expected = {}  # cuts by biosample and chromosome
        self.fragments = {}
        self._count = 0
        self._write_genome()
        self._write("motifs.meme", (world / "motifs.meme").read_bytes())
        windows = pd.read_csv(world / "windows.tsv", sep="\t")
        bed = windows[["chrom", "start", "end"]].to_csv(sep="\t", header=0, index=0)
        self._write("candidates.bed", bed.encode())
        peaks = [p.read_text() for p in sorted(world.glob("*.peaks.bed"))]
        self._write("background.bed.gz", gzip.compress("".join(peaks).encode()))

    def _write(self, name, content):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def _write_genome(self):
        content = gzip.compress((self.world / "genome.fa").read_bytes(), mtime=0)
        self._write("genome/hg38.fa.gz", content)
        sums = f"{hashlib.md5(content).hexdigest()}  hg38.fa.gz\n"
        self._write("genome/md5sum.txt", sums.encode())

    def address(self, name):
        digest = hashlib.sha256((self.root / name).read_bytes()).hexdigest()
        return f"{self.url}/{name}#sha256={digest}"

    def _accession(self, prefix):
        self._count += 1
        return f"{prefix}{self._count:03d}AAA"

    def _file(self, experiment, suffix, write, **facts):
        accession = self._accession("ENCFF")
        path = self.root / "files" / accession / "@@download" / f"{accession}{suffix}"
        path.parent.mkdir(parents=True)
        write(path)
        content = path.read_bytes()
        return {
            "@id": f"/files/{accession}/",
            "accession": accession,
            "dataset": f"/experiments/{experiment}/",
            "status": "released",
            "assembly": "GRCh38",
            "assay_term_name": "ATAC-seq",
            "md5sum": hashlib.md5(content).hexdigest(),
            "file_size": len(content),
            "href": f"/{path.relative_to(self.root)}",
            "biological_replicates": [1],
            "analyses": [ANALYSIS],
            **facts,
        }

    def experiment(self, name, **changes):
        """Publish a biosample of the world; return its accession."""
        accession = self._accession("ENCSR")

        def write_alignments(path):
            cuts = write_bam(path, self.world / f"{name}.bw", self.sizes)
            self.expected[name] = cuts
            self.fragments[name] = sum(c.sum() for c in cuts.values()) // 2

        def write_peaks(path):
            bed = pd.read_csv(self.world / f"{name}.peaks.bed", sep="\t", header=None)
            narrow = bed[[0, 1, 2, 3]].assign(a=0, b=".", c=bed[4], d=-1, e=-1, f=64)
            path.write_bytes(
                gzip.compress(narrow.to_csv(None, sep="\t", header=0, index=0).encode())
            )

        bam = {"file_format": "bam", "file_type": "bam", "output_type": "alignments"}
        peaks = {
            "file_format": "bed",
            "file_type": "bed narrowPeak",
            "output_type": "IDR thresholded peaks",
            "preferred_default": True,
        }
        document = {
            "@id": f"/experiments/{accession}/",
            "accession": accession,
            "status": "released",
            "assay_term_name": "ATAC-seq",
            "biosample_ontology": {"term_name": name},
            "biosample_summary": f"simulated {name}",
            "analyses": [ANALYSIS],
            "default_analysis": ANALYSIS["@id"],
            "files": [
                self._file(accession, ".bam", write_alignments, **bam),
                self._file(accession, ".bed.gz", write_peaks, **peaks),
            ],
            **changes,
        }
        index = f"experiments/{accession}/index.json"
        self._write(index, json.dumps(document).encode())
        return accession

    def tissue(self, folder, lineage, **changes):
        """Publish a pair and write the tissue file that names it."""
        content = {
            "tissue": lineage,
            "assembly": "hg38",
            "portal": self.url,
            "genome": f"{self.url}/genome/{{assembly}}.fa.gz",
            "windows": {
                "candidates": self.address("candidates.bed"),
                "n_windows": 40,
                "chromosomes": list(self.sizes),
            },
            "motifs": self.address("motifs.meme"),
            "motif_background": self.address("background.bed.gz"),
            "notes": f"{lineage} from a server",
        }
        for context in ("in_vitro", "in_vivo"):
            name = f"{lineage}_{context}"
            content[context] = {"name": name, "experiment": self.experiment(name)}
        content |= changes
        folder.mkdir(exist_ok=True)
        path = Path(folder) / f"{lineage}.yml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path
