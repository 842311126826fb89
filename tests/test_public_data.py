"""Accessions to model inputs: the simulated world, served as ENCODE and UCSC would."""

import json

import numpy as np
import pytest
import yaml

from helpers import public_data, stages
from helpers.tissues import read_tissue, read_tissues
from helpers.windows import WindowDataset, soft_clip
from local_server import LocalServer
from portal_world import PortalWorld


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with LocalServer(tmp_path_factory.mktemp("served")) as running:
        yield running


@pytest.fixture(scope="module")
def portal(server, small_world):
    return PortalWorld(server.folder, small_world.folder, server.url)


@pytest.fixture(scope="module")
def tissues(portal, tmp_path_factory):
    folder = tmp_path_factory.mktemp("public") / "tissues"
    for lineage in ("blood", "liver"):
        portal.tissue(folder, lineage)
    return folder


@pytest.fixture(scope="module")
def local(tissues, small_world, tmp_path_factory):
    output = tmp_path_factory.mktemp("local")
    window_bp = small_world.world.window_bp
    return public_data.localize(tissues, output, window_bp=window_bp)


def test_tracks_are_those_of_the_molecules(local, portal, small_world):
    dataset = WindowDataset(read_tissues(local), window_bp=small_world.world.window_bp)
    assert len(dataset.windows) == 40
    for b, name in enumerate(dataset.biosamples["name"]):
        scale = 20e6 / portal.fragments[name]
        for window in (0, 17, 39):
            row = dataset.windows.iloc[window]
            cuts = portal.expected[name][row["chrom"]].astype(float)
            widened = np.convolve(cuts, np.ones(11))[5:-5]  # 5 bp on both sides
            bins = widened[row["start"] : row["end"]].reshape(-1, 4).sum(axis=1)
            found = dataset.atac([window], b)[0]
            np.testing.assert_allclose(found, soft_clip(bins * scale, 150), rtol=1e-5)
    assert dataset.motif_activity.min() == 0 and dataset.motif_activity.max() == 1


def test_provenance_names_every_file(local, portal):
    tissue = read_tissue(local / "blood.yml")
    assert tissue.notes == "blood from a server"
    record = json.loads((local / "blood.provenance.json").read_text())
    assert record["motifs.meme"]["sha256"] in portal.address("motifs.meme")
    for sample in tissue.pair:
        alignments, peaks = record[sample.name]["files"]
        assert alignments["experiment"] == sample.accession
        assert alignments["assembly"] == peaks["assembly"] == "GRCh38"
        assert alignments["output_type"] == "alignments"
        assert len(alignments["md5"]) == 32 and alignments["retrieved"]
        made = record[sample.name]["cut_sites"]
        assert made["n_fragments"] == portal.fragments[sample.name]
        assert sample.scale == pytest.approx(20e6 / made["n_fragments"])


def test_nothing_is_made_or_asked_for_twice(local, tissues, server, small_world):
    before = len(server.requests)
    stamps = {path: path.stat().st_mtime_ns for path in local.iterdir()}
    window_bp = small_world.world.window_bp
    again = public_data.localize(tissues, local.parent, window_bp=window_bp)
    assert again == local and len(server.requests) == before
    assert stamps == {path: path.stat().st_mtime_ns for path in local.iterdir()}


@pytest.mark.parametrize(
    "name",
    [
        "downloads/motifs.meme",
        "downloads/hg38.fa",
        "downloads/hg38.fa.fai",
        "signal/blood_in_vitro/cut_sites.bw",
        "motif_activity/liver_in_vivo.tsv",
        "windows_4096.tsv",
    ],
)
def test_local_files_that_changed_are_made_again(local, tissues, server, name):
    path = local.parent / name
    content = path.read_bytes()
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 1
    path.write_bytes(damaged)
    public_data.localize(tissues, local.parent, window_bp=4096)
    assert path.read_bytes() == content


@pytest.mark.filterwarnings("ignore:the model hardly predicts")  # it is untrained
def test_open_study_runs_on_public_data(tissues, small_model_folder, tmp_path, server):
    study = stages.open_study(
        tmp_path / "runs" / "public",
        data=str(tissues),
        tissues=["liver"],
        model=str(small_model_folder),
    )
    assert study.lineages == ["liver"]
    assert "liver from a server" in study.description
    record = json.loads(study.run.path("provenance.json").read_text())
    assert list(record) == ["liver"]
    assert (tmp_path / "data" / "tissues" / "downloads").is_dir()


def test_planned_downloads_tell_sizes_and_fetch_nothing(
    tissues, server, tmp_path, portal
):
    before = len(server.requests)
    table = public_data.planned_downloads(tissues, tmp_path)
    paths = [request.path for request in server.requests[before:]]
    assert paths and all(path.startswith("/experiments/") for path in paths)
    files = table[table["accession"].str.startswith("ENCFF")]
    assert len(files) == 8 and (files["bytes"] > 0).all()
    assert set(table["for"]) >= {"genome", "motifs", "blood_in_vivo", "liver_in_vitro"}


def test_all_unsuitable_accessions_are_named_before_any_download(
    portal, server, tmp_path
):
    folder = tmp_path / "tissues"
    path = portal.tissue(folder, "blood")
    content = yaml.safe_load(path.read_text())
    revoked = portal.experiment("blood_in_vitro", status="revoked")
    dnase = portal.experiment("blood_in_vivo", assay_term_name="DNase-seq")
    content["in_vitro"]["experiment"] = revoked
    content["in_vivo"]["experiment"] = dnase
    path.write_text(yaml.safe_dump(content))
    before = len(server.requests)
    with pytest.raises(ValueError) as error:
        public_data.localize(folder, tmp_path / "out", window_bp=4096)
    assert f"{revoked} is revoked" in str(error.value)
    assert f"{dnase} is DNase-seq" in str(error.value)
    assert all("experiments" in r.path for r in server.requests[before:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_vitro": {"name": "a"}}, "either 'experiment' or 'signal'"),
        ({"in_vitro": {"experiment": "ENCSR868FGK"}}, "key 'name' is missing"),
        ({"in_vitro": {"name": "a", "signal": "http://x/a.bw"}}, "'peaks' is missing"),
        ({"in_vitro": {"name": "a", "experment": "x"}}, "did you mean 'experiment'"),
        ({"windows": {"candidates": "a.bed"}}, "'n_windows'"),
        ({"motif_background": None}, "'motif_background' to compute it against"),
        ({"genme": "x"}, "did you mean 'genome'"),
    ],
)
def test_tissue_files_of_public_data_are_checked(tissues, tmp_path, change, message):
    content = yaml.safe_load((tissues / "blood.yml").read_text()) | change
    content = {key: value for key, value in content.items() if value is not None}
    path = tmp_path / "blood.yml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=message):
        public_data.read_public(path)


def test_packaged_tissues_are_valid_and_share_what_they_must():
    contents = [
        public_data.read_public(path)
        for path in sorted(public_data.ENCODE_TISSUES.glob("*.yml"))
    ]
    assert [content["tissue"] for content in contents] == ["blood", "liver", "lymph"]
    for key in ("assembly", "genome", "windows", "motifs", "motif_background"):
        assert all(content[key] == contents[0][key] for content in contents)
    assert public_data.is_public(public_data.ENCODE_TISSUES)
