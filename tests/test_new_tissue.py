"""A tissue file is begun from a template, checked, and known to editors."""

import json
import sys

import jsonschema
import pytest
import yaml

from helpers import new_tissue, public_data, tissues
from helpers.new_tissue import FOLDER, check, write_template
from helpers.public_data import ENCODE_TISSUES

SCHEMA = json.loads(
    (new_tissue._RESOURCES / "tissue.schema.json").read_text(encoding="utf-8")
)


@pytest.fixture
def template(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_template("heart")


def touch_files(entry, folder):
    for value in entry.values():
        if isinstance(value, dict):
            touch_files(value, folder)
        elif isinstance(value, str) and "." in value and not {" ", "/"} & set(value):
            (folder / value).touch()


def test_a_template_lacks_nothing_but_the_files(template):
    assert template == FOLDER / "heart.yml"
    with pytest.raises(FileNotFoundError, match="(?s)genome.*cell_line.motifs.tsv"):
        check(template)
    touch_files(yaml.safe_load(template.read_text()), template.parent)
    check(template)
    tissue = tissues.read_tissue(template)
    assert (tissue.name, tissue.pair[1].name) == ("heart", "heart_tissue")


def test_a_template_names_all_parameters_of_the_notebooks(template):
    text = template.read_text()
    for key in {*tissues.NOTEBOOK_PARAMETERS} - {"tissues"}:
        assert f"\n{key}: " in text or f"\n# {key}: " in text, key
    content = yaml.safe_load(text)
    assert content["data"] == str(template)


def test_comments_of_the_template_hold_true(template):
    """Every key it shows, commented out or not, is one that is read."""
    text = template.read_text()
    shown = "\n".join(
        line.replace("# ", "", 1) if line.lstrip().startswith("# ") else line
        for line in text[text.index("# --- The tissue") :].splitlines()
    )
    keys = {line.split(":")[0].strip(" #-") for line in shown.splitlines()}
    for key in tissues._TISSUE_KEYS - {*tissues.NOTEBOOK_PARAMETERS}:
        assert key in keys, key
    for key in tissues._SAMPLE_KEYS:
        assert key in keys, key


def test_a_file_is_never_overwritten(template):
    template.write_text("mine")
    with pytest.raises(FileExistsError):
        write_template("heart")
    assert template.read_text() == "mine"


@pytest.mark.parametrize("name", ["", "../heart", "a/b", "-x", "two words", ".hidden"])
def test_names_that_lead_elsewhere_are_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="name must consist of"):
        write_template(name)
    assert not list(tmp_path.iterdir())


# --- The schema ---


def valid(content):
    return jsonschema.Draft7Validator(SCHEMA).is_valid(content)


def test_the_schema_knows_the_keys_that_are_read():
    keys = tissues._TISSUE_KEYS | public_data.TISSUE_KEYS
    assert set(SCHEMA["properties"]) == keys | set(tissues.CONTEXTS)
    sample = SCHEMA["definitions"]["biosample"]["properties"]
    assert set(sample) == tissues._SAMPLE_KEYS | public_data.SAMPLE_KEYS


def test_the_schema_takes_what_is_right(template):
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    files = [template, *ENCODE_TISSUES.glob("*.yml")]
    repository = new_tissue._RESOURCES.parents[2] / FOLDER
    files += repository.rglob("*.yml")
    assert len(files) > 5
    for path in files:
        jsonschema.validate(yaml.safe_load(path.read_text()), SCHEMA)


@pytest.mark.parametrize(
    "change",
    [
        {"genom": "x"},
        {"in_vitro": None},
        {"in_vitro": {"name": "a", "scale": 0}},
        {"in_vitro": {"name": "a", "signl": "x"}},
        {"replicates": "x"},
        {"contrast": ["a", "a"]},
        {"precision": "float16"},
    ],
)
def test_the_schema_refuses_what_is_wrong(template, change):
    content = yaml.safe_load(template.read_text())
    assert valid(content)
    content |= change
    content = {key: value for key, value in content.items() if value is not None}
    assert not valid(content)


# --- The command ---


def test_the_command_writes_and_checks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["new_tissue", "heart"])
    new_tissue.main()
    path = FOLDER / "heart.yml"
    assert str(path) in capsys.readouterr().out
    path.write_text(path.read_text().replace("assembly", "asembly"))
    monkeypatch.setattr(sys, "argv", ["new_tissue", "--check", str(path)])
    with pytest.raises(SystemExit):
        new_tissue.main()
    assert "did you mean 'assembly'" in capsys.readouterr().err


def test_a_file_of_parameters_alone_is_checked_as_such(tmp_path):
    path = tmp_path / "kidney.yml"
    path.write_text("run: _build/runs/kidney\ndata: simulated\ntissues: [kidney]\n")
    new_tissue.check(path)
    path.write_text("run: _build/runs/kidney\ndata: simulated\ntisues: [kidney]\n")
    with pytest.raises(ValueError, match="line 3: unknown key 'tisues'"):
        new_tissue.check(path)
