"""Tissue files: what is read, and that every mistake is named at once."""

import pytest
import yaml

from helpers.tissues import (
    CONTEXTS,
    check_together,
    companions,
    read_tissue,
    read_tissues,
)

FILES = ["hg38.fa", "windows.tsv", "motifs.meme", "genes.bed", "go.gmt"]


def sample(name):
    for suffix in ("bw", "peaks.bed", "motifs.tsv", "states.bed"):
        FILES.append(f"{name}.{suffix}")
    return {
        "name": name,
        "signal": f"../{name}.bw",
        "peaks": f"../{name}.peaks.bed",
        "motif_activity": f"../{name}.motifs.tsv",
    }


LIVER = {
    "tissue": "liver",
    "assembly": "hg38",
    "genome": "../hg38.fa",
    "windows": "../windows.tsv",
    "motifs": "../motifs.meme",
    "in_vitro": sample("HepG2"),
    "in_vivo": sample("hepatocytes"),
}
BLOOD = LIVER | {
    "tissue": "blood",
    "in_vitro": sample("K562"),
    "in_vivo": sample("leukocytes"),
}


@pytest.fixture
def folder(tmp_path):
    """A data folder with a folder of tissue files in it."""
    for name in FILES:
        (tmp_path / name).touch()
    (tmp_path / "tissues").mkdir()
    return tmp_path / "tissues"


def write(path, content):
    text = content if isinstance(content, str) else yaml.safe_dump(content)
    path.write_text(text)
    return path


def with_sample(where="in_vitro", **changes):
    return LIVER | {where: LIVER[where] | changes}


# --- Reading ---


def test_read_tissue_fills_in_what_is_not_said(folder):
    tissue = read_tissue(write(folder / "liver.yml", LIVER))
    assert (tissue.name, tissue.assembly, tissue.notes) == ("liver", "hg38", "")
    assert tissue.genome == folder.parent / "hg38.fa"
    assert (tissue.genes, tissue.gene_sets, tissue.replicates) == (None, None, ())
    assert [b.name for b in tissue.biosamples] == ["HepG2", "hepatocytes"]
    for context, biosample in zip(CONTEXTS, tissue.biosamples, strict=True):
        assert (biosample.context, biosample.lineage) == (context, "liver")
        assert (biosample.signal_kind, biosample.scale) == ("coverage", 1.0)
        assert (biosample.states, biosample.seen_in_training) == (None, None)
        assert biosample.signal == folder.parent / f"{biosample.name}.bw"


def test_read_tissue_takes_all_keys(folder):
    content = with_sample(
        states="../HepG2.states.bed",
        signal_kind="cut_sites",
        scale=2,
        seen_in_training=False,
        accession="ENCSR042AWH",
        description="hepatoblastoma line",
        context="in_vitro",
    )
    content |= {"genes": "../genes.bed", "gene_sets": "../go.gmt", "notes": "loose"}
    again = LIVER["in_vivo"] | {"name": "second donor", "context": "in_vivo"}
    content["replicates"] = [again]
    tissue = read_tissue(write(folder / "liver.yml", content))
    line = tissue.pair[0]
    assert (line.signal_kind, line.scale) == ("cut_sites", 2.0)
    assert isinstance(line.scale, float)
    assert line.states == folder.parent / "HepG2.states.bed"
    assert line.seen_in_training is False
    assert (line.accession, line.description) == ("ENCSR042AWH", "hepatoblastoma line")
    assert (tissue.genes.name, tissue.gene_sets.name) == ("genes.bed", "go.gmt")
    assert tissue.notes == "loose"
    (replicate,) = tissue.replicates
    assert (replicate.context, replicate.replicate) == ("in_vivo", 1)
    assert tissue.biosamples == (*tissue.pair, replicate)


def test_contexts_may_have_other_names(folder):
    """Differences are the second less the first, in the order of ``contrast``."""
    content = {k: v for k, v in LIVER.items() if k not in CONTEXTS}
    content |= {
        "contrast": ["healthy", "diseased"],
        "diseased": sample("HepG2"),
        "healthy": sample("hepatocytes"),
        "replicates": [sample("K562") | {"context": "diseased"}],
    }
    tissue = read_tissue(write(folder / "liver.yml", content))
    assert tissue.contrast == ("healthy", "diseased")
    assert [b.name for b in tissue.biosamples] == ["hepatocytes", "HepG2", "K562"]
    assert [b.context for b in tissue.pair] == ["healthy", "diseased"]
    assert tissue.replicates[0].context == "diseased"


def test_parameters_of_notebooks_may_stand_beside(folder):
    content = LIVER | {"run": "_build/runs/liver", "data": "tissues/liver.yml"}
    path = write(folder / "liver.yml", content)
    assert read_tissue(path).name == "liver"
    assert read_tissues(path) == [read_tissue(path)]


def test_empty_optional_keys_are_as_if_absent(folder):
    content = LIVER | {"genes": None, "notes": None, "replicates": None}
    assert read_tissue(write(folder / "a.yml", content)) == read_tissue(
        write(folder / "a.yml", LIVER)
    )


def test_paths_expand_variables_and_the_home_folder(folder, monkeypatch):
    monkeypatch.setenv("GENOMES", str(folder.parent))
    monkeypatch.setenv("HOME", str(folder.parent))
    content = LIVER | {"genome": "$GENOMES/hg38.fa", "windows": "~/windows.tsv"}
    tissue = read_tissue(write(folder / "liver.yml", content))
    assert tissue.genome == folder.parent / "hg38.fa"
    assert tissue.windows == folder.parent / "windows.tsv"


def test_simulated_tissues_are_read_like_any_other(small_world):
    tissues = read_tissues(small_world.folder / "tissues")
    assert [t.name for t in tissues] == ["blood", "liver"]
    assert tissues[0].pair[0].signal_kind == "cut_sites"
    assert [b.name for b in tissues[0].replicates] == [
        "blood_in_vitro_r1",
        "blood_in_vivo_r1",
    ]
    assert [b.context for b in tissues[0].replicates] == list(CONTEXTS)


# --- Mistakes in one file ---


def test_missing_tissue_file_is_named(folder):
    with pytest.raises(FileNotFoundError, match=r"tissue file not found: .*liver\.yml"):
        read_tissue(folder / "liver.yml")


def test_all_missing_files_are_named_at_once(folder):
    (folder.parent / "HepG2.bw").unlink()
    content = LIVER | {"genome": "hg19.fa"}
    path = write(folder / "liver.yml", content)
    with pytest.raises(FileNotFoundError) as error:
        read_tissue(path)
    assert str(error.value) == (
        f"{path}: files not found: genome: {folder / 'hg19.fa'}; "
        f"signal: {folder.parent / 'HepG2.bw'}"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", "not valid YAML"),
        ("just text", "expected the keys .*'tissue'.*; found 'just text'"),
        ("", "expected the keys .*; found None"),
        (LIVER | {"genom": "x"}, r"unknown key 'genom' \(did you mean 'genome'\?\)"),
        (LIVER | {"zzz": 1}, r"unknown key 'zzz' \(known: .*'assembly'"),
        (with_sample(signl="x"), "in_vitro: unknown key 'signl' .*'signal'"),
        (with_sample(peaks=None), "in_vitro: key 'peaks' is missing"),
        ({k: v for k, v in LIVER.items() if k != "in_vivo"}, "key 'in_vivo' is missi"),
        (LIVER | {"in_vivo": "x.bw"}, "in_vivo: expected a biosample .*; got 'x.bw'"),
        (with_sample(scale=0), "in_vitro: key 'scale' must be a number above 0; got 0"),
        (with_sample(scale="1e-3"), "key 'scale' must be a number above 0; got '1e-3'"),
        (with_sample(scale=float("nan")), "key 'scale' must be a number .* got nan"),
        (with_sample(scale=True), "key 'scale' must be a number .* got True"),
        (with_sample(signal_kind="cuts"), "'cut_sites' or 'coverage'; got 'cuts'"),
        (with_sample(seen_in_training="no"), "'seen_in_training' must be true or fal"),
        (with_sample(context="in_vivo"), "'context' must be 'in_vitro'; got 'in_vivo'"),
        (with_sample(name=5), "in_vitro: key 'name' must be text; got 5"),
        (LIVER | {"genome": ["a", "b"]}, r"key 'genome' must be text; got \['a', 'b'"),
        (LIVER | {"tissue": False}, "key 'tissue' must be text; got False"),
        (LIVER | {"replicates": "x"}, "key 'replicates' must be a list; got 'x'"),
        (
            LIVER | {"replicates": [LIVER["in_vivo"] | {"name": "again"}]},
            r"replicates\[0\]: key 'context' must be 'in_vitro' or 'in_vivo'; got None",
        ),
        (with_sample("in_vivo", name="HepG2"), "name 'HepG2' is used twice"),
        (LIVER | {"contrast": "healthy"}, "must list two names .*; got 'healthy'"),
        (LIVER | {"contrast": ["a", "a"]}, "two names that differ"),
        (LIVER | {"contrast": ["notes", "b"]}, "mean nothing else in this file"),
        (LIVER | {"contrast": ["a b", "c"]}, "letters, digits and underscores"),
        (
            LIVER | {"contrast": ["a", "b"]},
            "(?s)'a' is missing.*unknown key 'in_vitro'",
        ),
        ("a: &x [1]\nb: *x", r"line 2: references \(\*x\) are not read"),
        ("[" * 5000, "not valid YAML"),
    ],
)
def test_mistakes_raise_one_error_that_names_file_and_key(folder, content, message):
    path = write(folder / "liver.yml", content)
    with pytest.raises(ValueError, match=message) as error:
        read_tissue(path)
    assert type(error.value) is ValueError
    assert str(error.value).startswith(f"{path}: ")


def test_all_mistakes_are_named_at_once(folder):
    content = with_sample(scale=-1, signl="x") | {"genom": "x"}
    with pytest.raises(ValueError, match="(?s)genom.*scale.*signl"):
        read_tissue(write(folder / "liver.yml", content))


def test_lines_are_named_in_their_order(folder):
    text = yaml.safe_dump(with_sample(scale=-1), sort_keys=False) + "genom: x\n"
    text += "assembly: hg19\n"
    lines = text.splitlines()
    path = write(folder / "liver.yml", text)
    with pytest.raises(ValueError) as error:
        read_tissue(path)
    first, *rest = str(error.value).splitlines()
    assert first == f"{path}: 3 problems"
    expected = [
        ("  scale: -1", "in_vitro: key 'scale' must be a number above 0; got -1"),
        ("genom: x", "unknown key 'genom' (did you mean 'genome'?)"),
        ("assembly: hg19", "key 'assembly' stands on line 2 too"),
    ]
    for line, (entry, problem) in zip(rest, expected, strict=True):
        assert line == f"  line {lines.index(entry) + 1}: {problem}"


def test_a_huge_file_is_refused_unread(folder):
    path = write(folder / "liver.yml", "#" * 2**21)
    with pytest.raises(ValueError, match="expected a file of at most"):
        read_tissue(path)


def test_bytes_that_are_no_text_are_named(folder):
    path = folder / "liver.yml"
    path.write_bytes(b"\x89PNG\xff")
    with pytest.raises(ValueError, match=r"liver\.yml: not valid YAML"):
        read_tissue(path)


# --- Several files ---


def test_read_tissues_reads_both_endings_in_the_order_asked_for(folder):
    write(folder / "liver.yml", LIVER)
    write(folder / "blood.yaml", BLOOD)
    assert [t.name for t in read_tissues(folder)] == ["blood", "liver"]
    assert [t.name for t in read_tissues(folder, ["liver", "blood"])] == [
        "liver",
        "blood",
    ]
    assert [t.name for t in read_tissues(folder, ["blood"])] == ["blood"]


def test_read_tissues_names_what_is_not_there(folder):
    with pytest.raises(FileNotFoundError, match=r"no tissue files .* in .*tissues"):
        read_tissues(folder)
    write(folder / "liver.yml", LIVER)
    with pytest.raises(FileNotFoundError, match=r"\['lver'\].*it has \['liver'\]"):
        read_tissues(folder, ["lver"])


def test_read_tissues_refuses_two_files_of_one_name(folder):
    write(folder / "liver.yml", LIVER)
    write(folder / "liver.yaml", BLOOD)
    with pytest.raises(ValueError, match=r"liver\.yml and .*liver\.yaml are the same"):
        read_tissues(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"assembly": "hg19"}, "must share assembly; found .*hg19.*blood.yml"),
        ({"genome": "../HepG2.bw"}, "must share genome"),
        ({"windows": "../HepG2.bw"}, "must share windows"),
        ({"motifs": "../HepG2.bw"}, "must share motifs"),
        ({"tissue": "liver"}, r"tissue names used by two tissue files: \['liver'\]"),
        ({"in_vivo": LIVER["in_vivo"]}, r"biosample names .* \['hepatocytes'\]"),
    ],
)
def test_tissues_of_one_run_must_fit_together(folder, changes, message):
    write(folder / "liver.yml", LIVER)
    write(folder / "blood.yml", BLOOD | changes)
    with pytest.raises(ValueError, match=message):
        read_tissues(folder)


def test_check_together_refuses_nothing():
    with pytest.raises(ValueError, match="at least one tissue"):
        check_together([])


def test_companions_are_those_of_the_folder_that_fit(folder):
    write(folder / "liver.yml", LIVER)
    write(folder / "blood.yml", BLOOD)
    write(folder / "other.yml", BLOOD | {"tissue": "other", "assembly": "mm10"})
    write(folder / "again.yml", LIVER | {"tissue": "again"})  # biosamples of liver
    write(folder / "parameters.yml", {"data": "simulated", "tissues": ["kidney"]})
    own = [read_tissue(folder / "liver.yml")]
    assert [tissue.name for tissue in companions(own)] == ["liver", "blood"]
