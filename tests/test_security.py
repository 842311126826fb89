"""What SECURITY.md says about the code holds."""

import ast
import gzip
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from helpers import _text_files, downloads, runs
from helpers.figures.dose_slider import dose_slider
from helpers.new_tissue import write_template
from helpers.ontology import read_gmt
from helpers.tissues import read_tissue

ROOT = Path(__file__).parent.parent
SOURCES = sorted(
    path
    for name in ("src", "scripts", "benchmarks", "notebooks")
    for path in (ROOT / name).rglob("*.py")
)
FORBIDDEN_CALLS = {
    "eval", "exec", "os.system", "os.popen", "pd.read_pickle",
}  # fmt: skip
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve"}
YAML_CALLS = {"yaml.safe_load", "yaml.safe_dump", "yaml.compose", "yaml.parse"}


@cache
def nodes(path):
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def calls(path):
    for node in nodes(path):
        if isinstance(node, ast.Call):
            yield (
                ast.unparse(node.func),
                node.args,
                {k.arg: k.value for k in node.keywords},
            )


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_nothing_read_can_run(path):
    for name, arguments, keywords in calls(path):
        assert name not in FORBIDDEN_CALLS, name
        if name.startswith("yaml."):
            assert name in YAML_CALLS, name
            if name in ("yaml.compose", "yaml.parse"):
                assert ast.unparse(arguments[1]) == "yaml.SafeLoader"
        if name == "torch.load":
            assert ast.unparse(keywords["weights_only"]) == "True"
        if name == "np.load":
            allowed = keywords.get("allow_pickle", ast.Constant(False))
            assert ast.unparse(allowed) == "False"
        if name.startswith("subprocess."):
            assert "shell" not in keywords


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_nothing_is_pickled(path):
    forbidden = set(FORBIDDEN_MODULES)
    if path.name == "_side_by_side.py":
        forbidden.remove("pickle")  # what a process hands to the one it is a copy of
    for node in nodes(path):
        if isinstance(node, ast.Import):
            names = {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {(node.module or "").partition(".")[0]}
        else:
            continue
        assert not names & forbidden


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_addresses_in_the_code_are_encrypted(path):
    for node in nodes(path):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not re.search(r"http://[a-z0-9-]+\.[a-z]", node.value), node.value


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/elsewhere/x", "", "..", "."])
def test_artifacts_stay_in_the_run_folder(tmp_path, name):
    run = runs.Run(tmp_path / "run")
    with pytest.raises(ValueError, match="inside the run folder"):
        run.artefact(name, {}, lambda path: path.write_text("x"))
    assert not list(tmp_path.glob("x"))


@pytest.mark.parametrize("name", ["../x.bed", "a/b", "..", "/elsewhere/x"])
def test_downloads_stay_in_their_folder(tmp_path, name):
    with pytest.raises(ValueError, match="name must be that of a file"):
        downloads.fetch("https://example.org/a.bed", tmp_path / "kept", name=name)


@pytest.mark.parametrize("name", ["../x", "a b", "a;b", "$(x)", "a'b", "", "-x"])
def test_templates_stay_in_their_folder(tmp_path, name):
    with pytest.raises(ValueError, match="name must consist of letters"):
        write_template(name, tmp_path / "tissues")


def test_yaml_runs_nothing_and_fills_no_memory(tmp_path):
    path = tmp_path / "liver.yml"
    mark = tmp_path / "mark"
    path.write_text(f"tissue: !!python/object/apply:os.mkdir ['{mark}']\n")
    with pytest.raises(ValueError, match="not valid YAML"):
        read_tissue(path)
    assert not mark.exists()
    laughs = ["a0: &a0 [x, x]"]
    laughs += [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40)]
    path.write_text("\n".join(laughs))
    with pytest.raises(ValueError, match="references"):
        read_tissue(path)


def test_archives_unpack_to_a_bounded_size(tmp_path, monkeypatch):
    monkeypatch.setattr(_text_files, "_MAX_BYTES", 2**20)
    path = tmp_path / "go.gmt.gz"
    path.write_bytes(gzip.compress(bytes(2**24)))
    with pytest.raises(ValueError, match=rf"{path}.*more than 1,048,576 bytes"):
        read_gmt(path)


def test_text_in_widgets_is_escaped():
    evil = '"><script>alert(1)</script>'
    html = dose_slider({1.0: b""}, start=1.0, label=evil, descriptions=[evil])
    assert evil not in html and "alert(1)" in html


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("goal", ["tissue NAME", "run TISSUE", "book DATA"])
@pytest.mark.parametrize(
    "value",
    ["$(shell touch {0})", "`touch {0}`", "a'; touch {0}; '", '"; touch {0}; "'],
)
def test_names_given_to_make_run_nothing(tmp_path, goal, value):
    goal, _, variable = goal.partition(" ")
    mark = tmp_path / "mark"
    done = subprocess.run(
        ["make", "-C", ROOT, goal, f"{variable}={value.format(mark)}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and f"*** {variable} must" in done.stderr
    assert not mark.exists()


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("value", ["../../x", "/etc/x", "a/b"])
def test_tissues_given_to_make_stay_in_their_folder(value):
    done = subprocess.run(
        ["make", "-C", ROOT, "-n", "run", f"TISSUE={value}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and "*** TISSUE must be the name" in done.stderr


def test_names_in_the_workflow_are_quoted():
    text = (ROOT / "workflow" / "Snakefile").read_text(encoding="utf-8")
    command = text[text.index("RUN_NOTEBOOK = (") : text.index("wildcard_constraints")]
    braces = {part.split("}")[0] for part in command.split("{")[1:]}
    assert {name for name in braces if not name.endswith(":q")} == {"threads"}


def test_known_flaws_are_listed_where_tests_run():
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert "pip-audit --requirement constraints.txt" in text
    assert "continue-on-error: true" in text
