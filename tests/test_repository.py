"""What must agree between files that no program reads together."""

import ast
import os
import re
import tomllib
from dataclasses import fields
from pathlib import Path

import jupytext
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

import helpers
from helpers import public_data, simulate
from helpers.tissues import (
    CONTEXTS,
    NOTEBOOK_PARAMETERS,
    Biosample,
    Tissue,
    read_tissue,
)

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SOURCES = sorted((ROOT / "notebooks").glob("*.py"))
NAMES = [path.stem for path in SOURCES]
REPORTS = {"compare_tissues"}  # of finished runs: no chapter of the book

# Parameters that every notebook has, so that one papermill call serves them all.
COMMON_PARAMETERS = {
    "run": ("str", "_build/runs/simulated"),
    "data": ("str", "simulated"),
    "tissues": ("list", []),
    "blocks": ("list", []),
    "seed": ("int", 0),
    "device": ("str", "cpu"),
}


def text_files():
    """Yield the text files of the repository, whether or not git is at hand."""
    unread = {".git", ".venv", "_build", "__pycache__", "data", "resources"}
    suffixes = {".cff", ".ipynb", ".md", ".py", ".toml", ".txt", ".yaml", ".yml", ""}
    for folder, subfolders, names in os.walk(ROOT):
        subfolders[:] = sorted(
            name
            for name in set(subfolders) - unread
            if not name.endswith(("_cache", ".egg-info"))
        )
        for name in sorted(names):
            if Path(name).suffix in suffixes:
                yield Path(folder, name)


def notebook(name):
    return jupytext.read(ROOT / "notebooks" / f"{name}.ipynb")


def content(cells):
    """Reduce cells to what a reader of either file of a pair can see."""
    return [
        (
            cell.cell_type,
            cell.source,
            {k: v for k, v in cell.metadata.items() if k in ("tags", "mystnb")},
        )
        for cell in cells
    ]


def parameters_cell(name):
    tagged = [
        cell
        for cell in notebook(name).cells
        if "parameters" in cell.metadata.get("tags", [])
    ]
    assert len(tagged) == 1, f"{len(tagged)} cells are tagged 'parameters'"
    return tagged[0]


def makefile_notebooks():
    (line,) = re.findall(r"^NOTEBOOKS := (.*)$", (ROOT / "Makefile").read_text(), re.M)
    return line.split()


def toc_entries():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    pages = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    return [toc["root"], *pages]


# --- Notebooks ------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_notebook_pair_agrees(name):
    source = jupytext.read(ROOT / "notebooks" / f"{name}.py")
    paired = notebook(name)
    for index, (expected, found) in enumerate(
        zip(content(source.cells), content(paired.cells), strict=False)
    ):
        assert found == expected, f"cell {index} differs: run `make notebooks`"
    assert len(paired.cells) == len(source.cells), "run `make notebooks`"


def test_notebooks_all_have_a_pair():
    paired = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert paired == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_notebook_has_no_outputs(name):
    for cell in notebook(name).cells:
        if cell.cell_type == "code":
            assert not cell.outputs
            assert cell.execution_count is None


@pytest.mark.parametrize("name", NAMES)
def test_notebook_kernel_is_the_default_python(name):
    kernel = notebook(name).metadata.kernelspec
    assert (kernel.name, kernel.language) == ("python3", "python")


@pytest.mark.parametrize("name", NAMES)
def test_notebook_parameters_are_annotated_literals(name):
    found = {}
    for statement in ast.parse(parameters_cell(name).source).body:
        assert isinstance(statement, ast.AnnAssign), ast.unparse(statement)
        value = ast.literal_eval(statement.value)
        found[statement.target.id] = (ast.unparse(statement.annotation), value)
    for parameter, expected in COMMON_PARAMETERS.items():
        assert name in REPORTS or found.get(parameter) == expected, parameter
    assert len(found) <= 12


@pytest.mark.parametrize("name", NAMES)
def test_notebook_headings_skip_no_level(name):
    prose = "\n".join(
        cell.source for cell in notebook(name).cells if cell.cell_type == "markdown"
    )
    levels = [len(marks) for marks in re.findall(r"^(#+) ", prose, re.M)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    for before, after in zip(levels, levels[1:], strict=False):
        assert after <= before + 1


@pytest.mark.parametrize("name", NAMES)
def test_notebook_code_is_plain_python(name):
    for cell in notebook(name).cells:
        if cell.cell_type == "code":
            ast.parse(cell.source)  # a magic would not parse
            assert "sys.path" not in cell.source


@pytest.mark.parametrize("name", NAMES)
def test_notebook_opens_its_run_once(name):
    # A second study in one folder, with other parameters, keeps out the notebooks that
    # run beside this one.
    text = (ROOT / "notebooks" / f"{name}.py").read_text()
    assert len(re.findall(r"open_study\(\s*run,", text)) <= 1


@pytest.mark.parametrize("name", NAMES)
def test_notebook_badge_opens_the_notebook_itself(name):
    repository = PROJECT["urls"]["Repository"].removeprefix("https://")
    target = f"research.google.com/{repository.replace('.com', '', 1)}"
    first = "\n".join(cell.source for cell in notebook(name).cells[:2])
    assert f"{target}/blob/main/notebooks/{name}.ipynb" in first


def test_notebooks_are_in_the_book_and_run_by_make():
    in_book = {Path(e).name for e in toc_entries() if e.startswith("notebooks/")}
    assert set(NAMES) - REPORTS == in_book == set(makefile_notebooks())


def test_toc_entries_exist():
    for entry in toc_entries():
        suffix = ".ipynb" if entry.startswith("notebooks/") else ".md"
        assert (ROOT / f"{entry}{suffix}").is_file(), entry


# --- The project ----------------------------------------------------------------------


def test_helpers_is_this_package():
    # The import name is generic: another distribution could shadow it.
    assert Path(helpers.__file__).is_relative_to(ROOT / "src")


def test_version_is_written_once():
    assert PROJECT["dynamic"] == ["version"]  # read from the package
    version = re.compile(
        rf"""version.{{1,8}}{re.escape(helpers.__version__)}\b""", re.I
    )
    found = [path for path in text_files() if version.search(path.read_text())]
    assert found == [ROOT / "src" / "helpers" / "__init__.py"]


def test_address_is_the_one_in_pyproject():
    expected = PROJECT["urls"]["Repository"]
    mention = re.compile(r"github(?:\.com)?/([\w.-]+)/chromatin-context")
    for path in text_files():
        for owner in mention.findall(path.read_text()):
            address = f"https://github.com/{owner}/chromatin-context"
            assert address == expected, path.relative_to(ROOT)


def test_no_file_names_a_place_on_one_machine():
    absolute = re.compile(
        r"""(?:^|[\s"'(=`])(?:/(?:home|Users|root|tmp)/|[A-Z]:\\)\w"""
    )
    for path in text_files():
        found = absolute.search(path.read_text())
        assert not found, f"{path.relative_to(ROOT)}: {found.group()!r}"


def test_constraints_satisfy_every_requirement():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    versions = {}
    for pin in pins:
        (specifier,) = pin.specifier
        assert specifier.operator == "==" and "+" not in specifier.version, pin
        versions[pin.name.lower()] = Version(specifier.version)

    extras = PROJECT["optional-dependencies"]
    for line in PROJECT["dependencies"] + extras["book"] + extras["test"]:
        requirement = Requirement(line)
        assert requirement.name in versions, f"{line} has no pin"
        assert versions[requirement.name] in requirement.specifier, line


def test_dependencies_of_users_are_not_pinned():
    # A Colab runtime must keep the torch and numpy that it has.
    for line in PROJECT["dependencies"]:
        assert "==" not in line


def test_conda_environment_is_in_step_with_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == PROJECT["name"]

    packages = environment["dependencies"]
    (python,) = [p for p in packages if isinstance(p, str) and p.startswith("python=")]
    assert python.partition("=")[2] in SpecifierSet(PROJECT["requires-python"])

    (by_pip,) = [entry["pip"] for entry in packages if isinstance(entry, dict)]
    index, constraint, project = by_pip
    makefile = (ROOT / "Makefile").read_text()
    assert f"TORCH_INDEX ?= {index.removeprefix('--extra-index-url ')}\n" in makefile
    assert constraint == "-c constraints.txt"
    extras = re.fullmatch(r"-e \.\[([\w,]+)\]", project).group(1)
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])


# --- Pages that describe the code ---


def test_page_on_simulated_data_lists_the_planted_factors():
    planted = {}
    for factor in simulate.factor_table().itertuples():
        planted.setdefault(factor.role, set()).add(factor.name)
    page = (ROOT / "book" / "simulated-data.md").read_text()
    rows = re.findall(r"^\| `([\w-]+)` \|[^|]*\|([^|]*)\|", page, re.M)
    listed = {role: set(re.findall(r"[A-Z][A-Z0-9-]+", names)) for role, names in rows}
    assert {role: listed.get(role) for role in planted} == planted


def test_page_on_simulated_data_lists_the_kinds_of_world():
    page = (ROOT / "book" / "simulated-data.md").read_text()
    for kind in simulate.KINDS:
        assert f"| `{kind}` |" in page


def test_example_tissue_file_has_valid_keys(tmp_path):
    page = (ROOT / "book" / "real-data.md").read_text()
    (example,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.M | re.S)
    path = tmp_path / "brain.yml"
    path.write_text(example)
    # Keys and values are checked first: only the files it names are missing.
    with pytest.raises(FileNotFoundError, match=r"glioma_line\.bw.*cortex\.bw"):
        read_tissue(path)


def test_page_on_real_data_explains_every_key():
    page = (ROOT / "book" / "real-data.md").read_text()
    explained = set(
        re.findall(r"`(\w+)`", "".join(re.findall(r"^\|[^|]*", page, re.M)))
    )
    keys = {field.name for field in fields(Biosample)} - {"context", "lineage"}
    keys |= {field.name for field in fields(Tissue)} | {"tissue", *CONTEXTS}
    public = public_data.TISSUE_KEYS | public_data.SAMPLE_KEYS
    public -= set(NOTEBOOK_PARAMETERS)
    elsewhere = {"path", "pair", "replicate", "context", "files"}
    assert explained == (keys | public) - elsewhere
