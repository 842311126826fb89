"""Accessions to files, against a server that stands in for the ENCODE portal."""

import gzip
import hashlib
import json
import re
import shutil
from pathlib import Path

import pybigtools
import pysam
import pytest
import yaml

import helpers
from helpers.downloads import _transfer
from helpers.downloads._fetched import split_checksum
from helpers.encode import Portal, provenance, resolve
from local_server import LocalServer

RESOURCES = Path(helpers.__file__).parent / "resources" / "encode"
SHARED = Path(__file__).resolve().parent.parent.parent / "shared"
K562, BAMS, PEAKS = "ENCSR868FGK", ("ENCFF077FBI", "ENCFF128WZG"), "ENCFF135AEX"
OLD, NEW = "/analyses/ENCAN000OLD/", "/analyses/ENCAN111NEW/"
SIZES = {"chr1": 1000}


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(_transfer, "_FIRST_WAIT_S", 0.01)


# --- A portal -----------------------------------------------------------------------


def write_bam(path, n_reads):
    header = {"HD": {"SO": "coordinate"}, "SQ": [{"SN": "chr1", "LN": 1000}]}
    with pysam.AlignmentFile(path, "wb", header=header) as bam:
        for i in range(n_reads):
            read = pysam.AlignedSegment(bam.header)
            read.query_name, read.reference_id, read.reference_start = f"r{i}", 0, i
            read.query_sequence, read.cigarstring = "ACGT", "4M"
            read.mapping_quality = 60
            bam.write(read)


def write_peaks(path, n_peaks):
    rows = [f"chr1\t{i}\t{i + 9}\t.\t0\t.\t1\t2\t3\t4\n" for i in range(n_peaks)]
    path.write_bytes(gzip.compress("".join(rows).encode(), mtime=0))


def write_bigwig(path, n_values):
    values = [("chr1", i, i + 1, 1.0) for i in range(n_values)]
    pybigtools.open(str(path), "w").write(SIZES, values)


WRITERS = {
    "bam": (".bam", write_bam),
    "bed narrowPeak": (".bed.gz", write_peaks),
    "bigWig": (".bigWig", write_bigwig),
}


class PortalTree:
    """Writes documents and files under the paths that the portal has them at."""

    def __init__(self, root):
        self.root = root
        self.files = {}
        self.experiments = {}

    def file(self, accession, file_type, output_type, replicates=(1,), **changes):
        """Add a file to the experiment K562, or to that of ``changes``."""
        extension, write = WRITERS[file_type]
        folder = self.root / "files" / accession / "@@download"
        folder.mkdir(parents=True)
        path = folder / f"{accession}{extension}"
        write(path, len(self.files) + 1)
        file_format, _, format_type = file_type.partition(" ")
        document = {
            "@id": f"/files/{accession}/",
            "@type": ["File", "Item"],
            "accession": accession,
            "dataset": f"/experiments/{K562}/",
            "status": "released",
            "assembly": "GRCh38",
            "assay_term_name": "ATAC-seq",
            "output_type": output_type,
            "file_format": file_format,
            "file_format_type": format_type,
            "file_type": file_type,
            "md5sum": hashlib.md5(path.read_bytes()).hexdigest(),
            "file_size": path.stat().st_size,
            "href": f"/files/{accession}/@@download/{path.name}",
            "biological_replicates": list(replicates),
            "biosample_ontology": {"term_name": "K562", "classification": "cell line"},
            "analyses": [{"@id": NEW, "status": "released"}],
            **changes,
        }
        self.files[accession] = document
        self.write("files", document)

    def experiment(self, accession=K562, **changes):
        own = f"/experiments/{accession}/"
        embedded = [
            # In the document of an experiment the ontology term of a file is a link.
            file | {"biosample_ontology": "/biosample-types/cell_line_EFO_0002067/"}
            for file in self.files.values()
            if file["dataset"] == own and file["status"] in ("released", "archived")
        ]
        document = {
            "@id": own,
            "@type": ["Experiment", "Dataset", "Item"],
            "accession": accession,
            "status": "released",
            "assay_term_name": "ATAC-seq",
            "assay_title": "ATAC-seq",
            "biosample_ontology": {"term_name": "K562", "classification": "cell line"},
            "biosample_summary": "Homo sapiens K562",
            "analyses": [
                {
                    "@id": OLD,
                    "status": "released",
                    "date_created": "2019-05-01T00:00:00.000000+00:00",
                },
                {
                    "@id": NEW,
                    "status": "released",
                    "date_created": "2021-05-01T00:00:00.000000+00:00",
                },
            ],
            "default_analysis": NEW,
            "files": embedded,
            **changes,
        }
        self.experiments[accession] = document
        self.write("experiments", document)

    def write(self, kind, document, asked=None):
        folder = self.root / kind / (asked or document["accession"])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "index.json").write_text(json.dumps(document))

    def flatten(self, folder):
        """Write the same as a folder of files."""
        folder.mkdir()
        for document in (*self.files.values(), *self.experiments.values()):
            path = folder / f"{document['accession']}.json"
            path.write_text(json.dumps(document))
            if "href" in document:
                shutil.copy(self.root / document["href"].strip("/"), folder)
        return folder


@pytest.fixture
def tree(tmp_path):
    """A K562 experiment as the portal has it after its second analysis."""
    tree = PortalTree(tmp_path / "portal")
    for replicate, accession in enumerate(BAMS, 1):
        marked = {"preferred_default": replicate == 1}  # says nothing of the other
        tree.file(accession, "bam", "alignments", (replicate,), **marked)
    archived = {"status": "archived", "analyses": [{"@id": OLD}]}
    old, hg19 = {"analyses": [{"@id": OLD}]}, {"assembly": "hg19"}
    tree.file("ENCFF534DCE", "bam", "unfiltered alignments")
    tree.file("ENCFF000AAA", "bam", "alignments", (1,), **old)
    tree.file("ENCFF000AAB", "bam", "alignments", (1,), **hg19)
    tree.file("ENCFF000AAC", "bam", "alignments", (1,), **archived)
    pseudo, idr = "pseudoreplicated peaks", "IDR thresholded peaks"
    preferred = {"preferred_default": True}
    narrow = "bed narrowPeak"
    tree.file("ENCFF223QDM", narrow, pseudo, (1, 2), **preferred)
    tree.file(PEAKS, narrow, idr, (1, 2), **preferred)
    tree.file("ENCFF433EPT", narrow, idr, (2,))
    tree.file("ENCFF771HDN", "bigWig", "signal p-value", (1, 2))
    tree.experiment()
    return tree


@pytest.fixture
def portal(tree, tmp_path):
    with LocalServer(tree.root) as server:
        portal = Portal(server.url, cache=tmp_path / "cache")
        portal.requests = lambda: [request.path for request in server.requests]
        yield portal


def accessions(files):
    return [file.accession for file in files]


# --- What the portal says -----------------------------------------------------------


def test_file_reads_the_document(tree, portal):
    file = portal.file(PEAKS)
    document = tree.files[PEAKS]
    assert (file.experiment, file.assay, file.status) == (K562, "ATAC-seq", "released")
    assert (file.assembly, file.output_type) == ("GRCh38", "IDR thresholded peaks")
    assert (file.file_format, file.biosample) == ("bed narrowPeak", "K562")
    assert (file.md5, file.size) == (document["md5sum"], document["file_size"])
    assert file.biological_replicates == (1, 2) and file.preferred_default
    assert portal.requests() == [f"/files/{PEAKS}/?format=json"]


def test_experiment_reads_the_document(portal):
    experiment = portal.experiment(K562)
    assert experiment.summary == "Homo sapiens K562"
    assert (experiment.status, experiment.biosample) == ("released", "K562")
    assert len(experiment.files) == 10
    assert experiment.analyses == (NEW, OLD)
    assert PEAKS in accessions(experiment.files)


def test_documents_are_asked_for_once_and_again_when_removed(tree, portal, tmp_path):
    first = portal.experiment(K562)
    assert Portal(portal.source, cache=tmp_path / "cache").experiment(K562) == first
    assert len(portal.requests()) == 1
    tree.experiment(status="revoked")
    assert portal.experiment(K562).status == "released"
    (tmp_path / "cache" / f"{K562}.json").unlink()
    assert portal.experiment(K562).status == "revoked"


def test_find_takes_all_replicates_of_the_default_analysis(portal):
    experiment = portal.experiment(K562)
    assert accessions(portal.find(experiment, "alignments", "bam")) == list(BAMS)
    hg19 = portal.find(experiment, "alignments", "bam", "hg19")
    assert accessions(hg19) == ["ENCFF000AAB"]
    assert portal.find(experiment, "alignments", "bigWig") == []


def test_find_takes_what_the_portal_prefers(portal):
    experiment = portal.experiment(K562)
    idr = portal.find(experiment, "IDR thresholded peaks", "bed narrowPeak")
    assert accessions(idr) == [PEAKS]  # not ENCFF433EPT


def test_find_takes_the_newest_analysis_where_the_default_has_none(tree, portal):
    tree.experiment(default_analysis=OLD)
    experiment = portal.experiment(K562)
    assert accessions(portal.find(experiment, "alignments", "bam")) == ["ENCFF000AAA"]
    (portal.cache / f"{K562}.json").unlink()
    tree.experiment(default_analysis=None)
    experiment = portal.experiment(K562)
    assert accessions(portal.find(experiment, "alignments", "bam")) == list(BAMS)


# --- What a biosample is made from --------------------------------------------------


def test_resolve_finds_alignments_and_peaks(portal):
    resolved = resolve(portal, K562)
    assert accessions(resolved.alignments) == list(BAMS)
    assert resolved.peaks.accession == PEAKS
    assert resolved == resolve(portal, K562)
    assert portal.requests() == [f"/experiments/{K562}/?format=json"]


def test_resolve_takes_the_files_it_is_given(portal):
    resolved = resolve(portal, K562, files=BAMS[1:], peaks="ENCFF223QDM")
    assert accessions(resolved.alignments) == list(BAMS[1:])
    assert resolved.peaks.output_type == "pseudoreplicated peaks"


def test_resolve_prefers_idr_then_pseudoreplicated_peaks(tree, portal):
    for accession in (PEAKS, "ENCFF433EPT"):
        del tree.files[accession]
    tree.experiment()
    assert resolve(portal, K562).peaks.accession == "ENCFF223QDM"


def test_resolve_takes_peaks_of_most_replicates(tree, portal):
    for accession in (PEAKS, "ENCFF433EPT"):
        tree.files[accession].pop("preferred_default", None)
    tree.experiment()
    assert resolve(portal, K562).peaks.accession == PEAKS


@pytest.mark.parametrize("status", ["revoked", "archived", "deleted", "in progress"])
def test_resolve_refuses_an_experiment_that_is_not_released(tree, portal, status):
    tree.experiment(status=status)
    with pytest.raises(ValueError, match=f"{K562} is {status}, not released"):
        resolve(portal, K562)


def test_resolve_refuses_a_withdrawn_file_and_names_the_default(tree, portal):
    tree.file("ENCFF000AAD", "bam", "alignments", (3,), status="revoked")
    with pytest.raises(ValueError, match="ENCFF000AAD is revoked") as error:
        resolve(portal, K562, files=[BAMS[0], "ENCFF000AAD"])
    assert str(list(BAMS)) in str(error.value)
    with pytest.raises(ValueError, match="ENCFF000AAC is archived"):
        resolve(portal, K562, files=["ENCFF000AAC"])


def test_resolve_refuses_what_was_replaced(tree, portal):
    successor = tree.experiments[K562]
    tree.write("experiments", successor, asked="ENCSR000ZZZ")
    with pytest.raises(ValueError, match=f"ENCSR000ZZZ was replaced.*{K562}"):
        resolve(portal, "ENCSR000ZZZ")


def test_resolve_refuses_another_assay(tree, portal):
    tree.experiment(assay_term_name="DNase-seq")
    with pytest.raises(ValueError, match=f"{K562} is DNase-seq, not ATAC-seq"):
        resolve(portal, K562)
    allowed = resolve(portal, K562, assays=["ATAC-seq", "DNase-seq"])
    assert allowed.peaks.accession == PEAKS


def test_resolve_names_every_wrong_file(tree, portal):
    other = {"dataset": "/experiments/ENCSR483RKN/"}
    tree.file("ENCFF512VEZ", "bam", "alignments", (2,), **other)
    tree.file("ENCFF000AAE", "bam", "alignments", (3,), no_file_available=True)
    tree.experiment()
    with pytest.raises(ValueError) as error:
        files = ["ENCFF512VEZ", "ENCFF000AAB", "ENCFF534DCE", "ENCFF000AAE"]
        resolve(portal, K562, files=files, peaks="ENCFF771HDN")
    for problem in (
        "ENCFF512VEZ belongs to ENCSR483RKN",
        "ENCFF000AAB is of assembly hg19, not GRCh38",
        "ENCFF534DCE is unfiltered alignments (bam), not alignments (bam)",
        "ENCFF771HDN is signal p-value (bigWig), not bed narrowPeak",
        "ENCFF000AAB and ENCFF534DCE both hold replicate 1",
        "ENCFF000AAE has no file to download",
    ):
        assert problem in str(error.value)


def test_resolve_lists_what_is_there_when_nothing_is_suitable(portal):
    with pytest.raises(ValueError) as error:
        resolve(portal, K562, assembly="mm10")
    assert "no released alignments (bam) on mm10" in str(error.value)
    assert "no released bed narrowPeak on mm10" in str(error.value)
    assert "3 released GRCh38 alignments (bam)" in str(error.value)


@pytest.mark.parametrize("accession", ["ENCFF077FBI", "encsr868fgk", "K562", ""])
def test_resolve_refuses_what_is_not_an_accession(portal, accession):
    with pytest.raises(ValueError, match="accession like ENCSR868FGK"):
        resolve(portal, accession)
    assert portal.requests() == []


def test_portal_names_what_it_does_not_have(portal, monkeypatch):
    with pytest.raises(FileNotFoundError, match="ENCSR000AAA"):
        portal.experiment("ENCSR000AAA")

    def refuse(url, path):
        raise PermissionError(url)

    monkeypatch.setattr("helpers.downloads.fetch_json", refuse)
    with pytest.raises(ValueError, match="ENCSR000AAA is not public"):
        portal.experiment("ENCSR000AAA")


def test_portal_refuses_json_that_is_not_its_own(tree, portal):
    tree.write("experiments", {"accession": K562, "error": "x"})
    with pytest.raises(ValueError, match=r"not the portal's JSON.*\['status'\]"):
        portal.experiment(K562)
    (portal.cache / f"{K562}.json").unlink()
    tree.experiment(files=[f"/files/{PEAKS}/"])
    with pytest.raises(ValueError, match="names its files"):
        portal.experiment(K562)


def test_portal_out_of_reach_points_to_a_folder(tree):
    with LocalServer(tree.root) as server:
        pass
    with pytest.raises(ConnectionError, match="source can be a folder"):
        Portal(server.url).experiment(K562)


# --- Files --------------------------------------------------------------------------


def test_fetch_over_a_bad_network(tree, tmp_path):
    cut = {f"files/{BAMS[0]}/@@download/{BAMS[0]}.bam": 50}
    with LocalServer(tree.root, unavailable=2, cut_after=cut, delay_s=0.02) as server:
        portal = Portal(server.url)
        resolved = resolve(portal, K562)
        paths = [portal.fetch(file, tmp_path) for file in resolved.alignments]
        peaks = portal.fetch(resolved.peaks, tmp_path)
        signal = portal.fetch(portal.file("ENCFF771HDN"), tmp_path)
    assert [path.name for path in paths] == [f"{BAMS[0]}.bam", f"{BAMS[1]}.bam"]
    for path, n_reads in zip(paths, (1, 2), strict=True):
        pysam.index(str(path))
        with pysam.AlignmentFile(path) as bam:
            assert bam.count() == n_reads
    assert gzip.open(peaks, "rt").readline().startswith("chr1\t0\t9\t")
    assert pybigtools.open(str(signal)).chroms() == SIZES


def test_fetch_refuses_a_wrong_checksum(tree, tmp_path):
    corrupt = [f"files/{PEAKS}/@@download/{PEAKS}.bed.gz"]
    with LocalServer(tree.root, corrupt=corrupt) as server:
        portal = Portal(server.url)
        with pytest.raises(ValueError, match=f"{PEAKS}.*{tree.files[PEAKS]['md5sum']}"):
            portal.fetch(portal.file(PEAKS), tmp_path)
    assert not (tmp_path / f"{PEAKS}.bed.gz").exists()


def test_folder_is_a_source(tree, portal, tmp_path):
    mirror = tree.flatten(tmp_path / "mirror")
    local = Portal(mirror)
    from_folder, from_portal = resolve(local, K562), resolve(portal, K562)
    assert accessions(from_folder.alignments) == accessions(from_portal.alignments)
    assert from_folder.peaks.md5 == from_portal.peaks.md5
    path = local.fetch(from_folder.peaks, tmp_path / "run")
    assert path.read_bytes() == (mirror / f"{PEAKS}.bed.gz").read_bytes()
    (mirror / f"{BAMS[1]}.bam").unlink()
    with pytest.raises(FileNotFoundError, match=rf"not in the folder.*{BAMS[1]}\.bam"):
        resolve(local, K562)


def test_cache_is_a_source(tree, portal, tmp_path):
    resolved = resolve(portal, K562)
    for file in (*resolved.alignments, resolved.peaks):
        portal.fetch(file, portal.cache)
    again = resolve(Portal(portal.cache), K562)
    assert provenance([again.peaks])[0]["retrieved"] == resolved.peaks.retrieved != ""


def test_folder_without_json_is_taken_on_trust(tree, tmp_path):
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    for accession in (*BAMS, PEAKS):
        shutil.copy(tree.root / tree.files[accession]["href"].strip("/"), mirror)
    portal = Portal(mirror)
    with pytest.warns(UserWarning, match="portal was not asked"):
        resolved = resolve(portal, K562, files=BAMS, peaks=PEAKS)
    assert resolved.peaks.md5 == tree.files[PEAKS]["md5sum"]
    (record,) = provenance([resolved.peaks])
    assert record["status"] == "portal not asked"
    with (
        pytest.warns(UserWarning, match="portal was not asked"),
        pytest.raises(ValueError, match="it has no files"),
    ):
        resolve(portal, K562)
    with (
        pytest.warns(UserWarning, match="portal was not asked"),
        pytest.raises(FileNotFoundError, match="ENCFF223QDM<suffix>"),
    ):
        resolve(portal, K562, files=BAMS, peaks="ENCFF223QDM")
    with pytest.raises(FileNotFoundError, match="source must be a folder"):
        Portal(tmp_path / "absent")


def test_provenance_names_what_was_used(tree, portal):
    (record,) = provenance([portal.file(PEAKS)])
    document = tree.files[PEAKS]
    assert record["url"] == portal.source + document["href"]
    assert record["retrieved"].endswith("+00:00")
    for key, value in {
        "accession": PEAKS,
        "experiment": K562,
        "assembly": "GRCh38",
        "output_type": "IDR thresholded peaks",
        "md5": document["md5sum"],
        "size": document["file_size"],
        "status": "released",
    }.items():
        assert record[key] == value
    assert json.loads(json.dumps(record)) == record


# --- The tissues that are shipped ---------------------------------------------------


def tissue_files():
    return {
        path.stem: yaml.safe_load(path.read_text()) for path in RESOURCES.glob("*.yml")
    }


def biosamples(tissue):
    return [tissue["in_vitro"], tissue["in_vivo"], *tissue["replicates"]]


def test_tissue_files_have_one_form():
    tissues = tissue_files()
    assert set(tissues) == {"blood", "liver", "lymph"}
    shared = ("assembly", "genome", "windows", "motifs", "motif_background")
    names = []
    for stem, tissue in tissues.items():
        assert tissue["tissue"] == stem
        assert set(tissue) == {
            *("tissue", "in_vitro", "in_vivo", "replicates", "notes"),
            *shared,
        }
        assert [tissue[key] for key in shared] == [tissues["blood"][k] for k in shared]
        contexts = {sample["context"] for sample in tissue["replicates"]}
        assert contexts == {"in_vitro", "in_vivo"}
        for sample in biosamples(tissue):
            names.append(sample["name"])
            assert set(sample) <= {
                *("name", "context", "experiment", "files", "peaks"),
                *("seen_in_training", "description"),
            }
            assert {"name", "experiment", "description"} <= set(sample)
    assert len(set(names)) == len(names)


def test_tissue_files_pin_what_they_download():
    tissue = tissue_files()["blood"]
    for url in (
        tissue["windows"]["candidates"],
        tissue["motifs"],
        tissue["motif_background"],
    ):
        address, checksum = split_checksum(url)
        assert checksum.startswith("sha256:")
        assert re.search(r"/naumanjaved/EpiBERT/[0-9a-f]{40}/", address)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the collected public data")
def test_tissue_files_pin_the_files_that_were_studied():
    tissue = tissue_files()["blood"]
    examples = SHARED / "data" / "epibert_examples"
    background = "all_peaks_merged.counts.shared.centered.bed.gz"
    motifs = SHARED / "data" / "vierstra_motif_archetypes"
    for url, content in (
        (
            tissue["windows"]["candidates"],
            (examples / "hg38_valid_524k_no_overlap.bed").read_bytes(),
        ),
        (tissue["motifs"], (motifs / "consensus_pwms_vierstra.meme").read_bytes()),
        (
            tissue["motif_background"],
            gzip.decompress((examples / background).read_bytes()),
        ),
    ):
        checksum = f"sha256:{hashlib.sha256(content).hexdigest()}"
        assert split_checksum(url)[1] == checksum


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the collected public data")
def test_tissue_files_use_confirmed_accessions_only():
    table = SHARED / "data" / "encode_atac_accessions" / "encode_atac_experiments.tsv"
    rows = table.read_text().splitlines()
    notes = (SHARED / "ANNOTATION.md").read_text()
    sections = [
        section
        for section in re.split(r"^## ", notes, flags=re.M)
        if section.startswith(("5.", "8."))
    ]
    for tissue in tissue_files().values():
        for sample in biosamples(tissue):
            # A file is confirmed where its experiment is: in one row of a table.
            lines = [*rows, *"\n".join(sections).splitlines()]
            lines = [line for line in lines if sample["experiment"] in line]
            assert lines, sample["experiment"]
            for accession in (*sample.get("files", ()), sample.get("peaks")):
                assert accession is None or any(accession in line for line in lines)


@pytest.mark.network
@pytest.mark.parametrize("tissue", ["blood", "liver", "lymph"])
def test_tissue_files_resolve_at_the_portal(tissue, tmp_path):
    portal = Portal(cache=tmp_path)
    problems = []
    for sample in biosamples(tissue_files()[tissue]):
        files, peaks = sample.get("files", ()), sample.get("peaks")
        try:
            resolve(portal, sample["experiment"], files=files, peaks=peaks)
        except ValueError as error:
            problems.append(str(error))
    assert not problems
