"""The notebooks on a fresh runtime, such as Colab's: no checkout, only the first cell.

The runtime is imitated by a virtual environment that holds torch, numpy and ipykernel
and nothing of this project; the project is installed from a local git repository by the
first code cell of the notebooks itself.
"""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import jupytext
import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
ADDRESS = "git+https://github.com/OWNER/chromatin-context@main"
PRESENT = ["torch", "numpy", "ipykernel"]


def first_cell(path):
    cells = jupytext.read(path).cells
    return next(cell.source for cell in cells if cell.cell_type == "code")


def run(*command, **options):
    """Run a command that must not see this checkout; return what it printed."""
    hidden = {"PYTHONPATH", "VIRTUAL_ENV", "PIP_CONSTRAINT"}
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    environment |= options.pop("env", {})
    done = subprocess.run(
        list(map(str, command)),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        **options,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


# --- The first cell -------------------------------------------------------------------


def test_first_cell_is_the_same_everywhere():
    assert len({first_cell(path) for path in NOTEBOOKS}) == 1


def test_first_cell_installs_nothing_where_the_package_is(monkeypatch):
    monkeypatch.setattr(
        subprocess, "check_call", lambda command: pytest.fail(f"ran {command}")
    )
    exec(first_cell(NOTEBOOKS[0]), {})


def test_first_cell_says_that_the_address_is_not_set(monkeypatch):
    cell = first_cell(NOTEBOOKS[0])
    if ADDRESS not in cell:
        pytest.skip("the owner has set the address")
    monkeypatch.setattr(
        subprocess, "check_call", lambda command: pytest.fail(f"ran {command}")
    )
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="owner for OWNER"):
        exec(cell, {})


# --- A repository to install from, and what is installed ------------------------------


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A git repository whose only commit is the working tree as it is."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    folder = tmp_path_factory.mktemp("repository")
    listed = run(
        "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT
    )
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    author = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    run("git", "init", "--quiet", "--initial-branch=main", cwd=folder)
    run("git", "add", "--all", cwd=folder)
    run("git", *author, "commit", "--quiet", "--message", "Copy", cwd=folder)
    return folder


@pytest.mark.slow
def test_wheel_holds_the_package_and_its_resources(repository, tmp_path):
    run(
        *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"),
        *("--no-build-isolation", "--wheel-dir", tmp_path, repository),
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    inside = {name for name in names if ".dist-info/" not in name}
    source = repository / "src"
    listed = run("git", "ls-files", "-z", "helpers", cwd=source).split("\0")
    assert inside == set(filter(None, listed))
    assert any(name.startswith("helpers/resources/") for name in inside)


# --- The runtime ----------------------------------------------------------------------


def with_dependencies(names):
    """List distributions and everything that they need on this machine."""
    found, waiting = {}, list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found[name] = distribution(name)
        for line in found[name].requires or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return found.values()


def link_or_copy(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy(source, target)


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    """The Python of an environment with torch, numpy and ipykernel only."""
    folder = tmp_path_factory.mktemp("runtime")
    run(sys.executable, "-m", "venv", folder)
    python = folder / "bin" / "python"
    site = Path(run(python, "-c", "import site; print(site.getsitepackages()[0])")[:-1])
    # Files are hard links: pip would replace, not change, them.
    for installed in with_dependencies(PRESENT):
        for file in installed.files:
            inside = ".." not in file.parts and file.suffix != ".pyc"
            if inside and not (site / file).exists():
                link_or_copy(file.locate(), site / file)
    reached = subprocess.run(
        [python, "-m", "pip", "download", "--quiet", "--no-deps", "lightmotif"],
        cwd=tmp_path_factory.mktemp("download"),
        check=False,
        capture_output=True,
    )
    if reached.returncode != 0:
        pytest.skip("no package index can be reached")
    return python


def versions(python):
    listed = run(python, "-m", "pip", "list", "--format", "json")
    return {entry["name"].lower(): entry["version"] for entry in json.loads(listed)}


@pytest.mark.slow
def test_notebooks_run_on_a_fresh_runtime(repository, runtime, tmp_path):
    pytest.importorskip("papermill")
    before = versions(runtime)
    assert "chromatin-context" not in before
    assert not {"pandas", "zarr", "jupyter-book"} & set(before)

    kernels = tmp_path / "kernels"
    run(
        *(runtime, "-m", "ipykernel", "install", "--name", "fresh"),
        *("--prefix", kernels),
    )
    empty = tmp_path / "content"  # as Colab calls its folder
    empty.mkdir()
    smaller = {"01_extraction": "{tissues: [blood, liver], blocks: [3]}"}
    for name in ["01_extraction", "07_any_transformer"]:
        notebook = (ROOT / "notebooks" / f"{name}.ipynb").read_text()
        assert notebook.count(ADDRESS) == 1
        copy = tmp_path / f"{name}.ipynb"
        copy.write_text(notebook.replace(ADDRESS, f"git+{repository.as_uri()}@main"))
        run(
            *(sys.executable, "-m", "papermill", copy, tmp_path / f"ran_{name}.ipynb"),
            *("--kernel", "fresh", "--no-progress-bar"),
            *("-y", smaller.get(name, "{}")),
            cwd=empty,
            env={
                "JUPYTER_PATH": str(kernels / "share" / "jupyter"),
                "OMP_NUM_THREADS": "1",
                "OMP_WAIT_POLICY": "PASSIVE",
            },
        )

    after = versions(runtime)
    assert {name: after.get(name) for name in before} == before
    assert "chromatin-context" in after
    assert not {"jupyter-book", "papermill", "pytest", "sphinx"} & set(after)
    assert (empty / "_build" / "runs" / "simulated" / "masked.parquet").is_file()
