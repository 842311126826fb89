"""The run folder: built once, rebuilt when due, never half, whenever it is killed."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import helpers
from helpers import runs
from helpers.runs import Run, code_digest, file_stamps


class Builder:
    """Writes text, or a folder that holds it, and counts how often."""

    def __init__(self, text="content", folder=False):
        self.text, self.folder, self.calls = text, folder, 0

    def __call__(self, path):
        self.calls += 1
        if self.folder:
            path.mkdir()
            path = path / "inside.txt"
        path.write_text(self.text)


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / "runs" / "first")


def names(run):
    inside = (p.relative_to(run.folder) for p in run.folder.rglob("*"))
    return sorted(str(p) for p in inside if p.parts[0] != ".locks")


class Killed(BaseException):
    """Stands for the end of the process."""


def kill_in(monkeypatch, method, after=0):
    """Let the process die when a path is about to be renamed, removed or written."""
    original, count = getattr(Path, method), [0]

    def die(self, *args, **kwargs):
        if count[0] == after:
            raise Killed
        count[0] += 1
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Path, method, die)


# --- Building ---


@pytest.mark.parametrize("folder", [False, True])
def test_artefact_is_built_once(run, folder):
    build = Builder(folder=folder)
    paths = [run.artefact("cds.parquet", {"alpha": 0.05}, build) for _ in range(3)]
    assert paths == [run.folder / "cds.parquet"] * 3
    assert build.calls == 1
    inside = paths[0] / "inside.txt" if folder else paths[0]
    assert inside.read_text() == "content"
    again = Run(run.folder)  # another process
    again.artefact("cds.parquet", {"alpha": 0.05}, build)
    assert build.calls == 1


@pytest.mark.parametrize(("first", "second"), [(False, True), (True, False)])
def test_artefact_of_another_recipe_is_replaced(run, first, second):
    run.artefact("model", {"seed": 0}, Builder("old", folder=first))
    key = run.key("model")
    new = Builder("new", folder=second)
    path = run.artefact("model", {"seed": 1}, new)
    assert new.calls == 1
    assert run.key("model") != key
    assert (path / "inside.txt" if second else path).read_text() == "new"
    expected = ["model", "model.recipe.json"] + ["model/inside.txt"] * second
    assert names(run) == sorted(expected)


def test_order_and_type_of_recipe_values_do_not_matter(run):
    build = Builder()
    run.artefact("a", {"x": [1, 2], "y": {"z": 1.5}, "p": "here"}, build)
    same = {"p": Path("here"), "y": {"z": np.float64(1.5)}, "x": np.array([1, 2])}
    run.artefact("a", same, build)
    run.artefact("a", same | {"x": (np.int64(1), 2)}, build)
    assert build.calls == 1
    run.artefact("a", same | {"x": [2, 1]}, build)
    assert build.calls == 2


def test_recipe_and_versions_lie_beside_the_artefact(run):
    run.artefact("a", {"k": np.int64(16)}, Builder())
    provenance = json.loads((run.folder / "a.recipe.json").read_text())
    assert provenance["recipe"] == {"k": 16}
    assert provenance["package"] == f"chromatin-context {helpers.__version__}"
    assert provenance["key"] == run.key("a")
    assert len(provenance["key"]) == 16


def test_artefacts_may_lie_in_folders(run):
    build = Builder()
    path = run.artefact("sae/block0/card.parquet", {}, build)
    assert path == run.folder / "sae" / "block0" / "card.parquet"
    assert path.is_file()
    run.artefact("sae/block0/card.parquet", {}, build)
    assert build.calls == 1


def test_table_is_computed_once_and_kept_as_parquet(run):
    calls = []
    table = pd.DataFrame({"feature": [1, 2], "class": ["shared", "none"]})

    def build():
        calls.append(1)
        return table

    for _ in range(2):
        pd.testing.assert_frame_equal(run.table("cds.parquet", {}, build), table)
    assert len(calls) == 1
    pd.testing.assert_frame_equal(pd.read_parquet(run.path("cds.parquet")), table)


def test_tables_of_one_measurement_are_measured_once(run):
    calls, names = [], ["effects.parquet", "random.parquet"]
    expected = [pd.DataFrame({"effect": [1.0]}), pd.DataFrame({"random": [2.0, 3.0]})]

    def measure():
        calls.append(1)
        return expected

    def read():
        for found, table in zip(run.tables(names, {}, measure), expected, strict=True):
            pd.testing.assert_frame_equal(found, table)

    read()
    read()
    assert len(calls) == 1
    run.path("random.parquet").unlink()
    read()
    assert len(calls) == 2


def test_key_changes_with_the_recipe_only(run):
    run.artefact("a", {"x": 1}, Builder("one"))
    run.artefact("b", {"x": 1}, Builder("two"))
    assert run.key("a") == run.key("b")
    with pytest.raises(FileNotFoundError, match="artefact 'c' is not in .*first"):
        run.key("c")


def test_deleted_artefacts_are_absent_and_rebuilt(run):
    build = Builder()
    run.artefact("a", {}, build).unlink()
    with pytest.raises(FileNotFoundError, match="artefact 'a' is not in"):
        run.key("a")
    run.artefact("a", {}, build)
    (run.folder / "a.recipe.json").unlink()
    run.artefact("a", {}, build)
    assert build.calls == 3


@pytest.mark.parametrize("name", ["../a", "sae/../../a", "/a", ""])
def test_artefacts_stay_in_the_run_folder(run, name):
    with pytest.raises(ValueError, match="name must lie inside the run folder; got"):
        run.artefact(name, {}, Builder())


def test_a_build_that_writes_nothing_is_an_error(run):
    old = run.artefact("a", {"x": 1}, Builder("old"))
    with pytest.raises(RuntimeError, match="build of 'a' wrote nothing to"):
        run.artefact("a", {"x": 2}, lambda path: None)
    assert old.read_text() == "old"
    assert run.artefact("a", {"x": 1}, Builder("new")).read_text() == "old"


# --- Interruption ---


def test_half_an_artefact_is_never_seen(run):
    def half(path):
        path.mkdir()
        (path / "inside.txt").write_text("con")
        assert not run.path("a").exists()
        raise Killed

    with pytest.raises(Killed):
        run.artefact("a", {}, half)
    assert names(run) == []
    old = run.artefact("a", {"x": 1}, Builder("old"))
    with pytest.raises(Killed):
        run.artefact("a", {"x": 2}, half_beside(old))
    assert names(run) == ["a", "a.recipe.json"]
    assert run.artefact("a", {"x": 1}, Builder("new")).read_text() == "old"


def half_beside(old):
    def half(path):
        path.write_text("con")
        assert old.read_text() == "old"
        raise Killed

    return half


def test_what_a_killed_process_left_is_removed(run):
    """A signal leaves no time to tidy up."""
    recipe = {"x": 1}
    run.artefact("a", recipe, Builder())
    key = run.key("a")
    run.path("a").unlink()
    for leftover in (f".a.{key}.partial", ".a.0123456789abcdef.partial"):
        (run.folder / leftover).mkdir()
        (run.folder / leftover / "half.txt").write_text("con")
    (run.folder / ".a.0123456789abcdef.partial.partial").touch()  # of the builder
    path = run.artefact("a", recipe, Builder(folder=True))
    assert (path / "inside.txt").read_text() == "content"
    assert names(run) == ["a", "a.recipe.json", "a/inside.txt"]


def test_tidying_leaves_other_artefacts_alone(run):
    """``cds`` is the beginning of ``cds.parquet``."""

    def interrupted(path):
        path.write_text("1")
        raise Killed

    with pytest.raises(Killed):
        run.artefact("cds.parquet", {}, interrupted, resumable=True)
    (kept,) = names(run)
    run.artefact("cds", {}, Builder())
    assert names(run) == [kept, "cds", "cds.recipe.json"]


class Counter:
    """Writes one number per step to its folder, and dies before some step."""

    def __init__(self, die_at=None):
        self.die_at, self.steps = die_at, []

    def __call__(self, path):
        path.mkdir(exist_ok=True)
        for step in range(4):
            if step == self.die_at:
                raise Killed
            if not (path / str(step)).exists():
                self.steps.append(step)
                (path / str(step)).write_text(str(step))


def test_resumable_builds_continue(run):
    first, second = Counter(die_at=2), Counter()
    with pytest.raises(Killed):
        run.artefact("store", {"x": 1}, first, resumable=True)
    assert not run.path("store").exists()
    path = run.artefact("store", {"x": 1}, second, resumable=True)
    assert (first.steps, second.steps) == ([0, 1], [2, 3])
    assert sorted(p.name for p in path.iterdir()) == ["0", "1", "2", "3"]
    assert [n for n in names(run) if "partial" in n] == []


def test_resumable_builds_start_over_for_another_recipe(run):
    with pytest.raises(Killed):
        run.artefact("store", {"x": 1}, Counter(die_at=2), resumable=True)
    other = Counter()
    run.artefact("store", {"x": 2}, other, resumable=True)
    assert other.steps == [0, 1, 2, 3]
    assert [n for n in names(run) if "partial" in n] == []


@pytest.mark.parametrize(
    ("method", "after"),
    [
        ("unlink", 0),  # before the recipe of the old artefact is removed
        ("unlink", 1),  # before the old artefact is removed
        ("rename", 0),  # before the new one takes its place
        ("write_text", 1),  # before its recipe is written (the builder writes once)
        ("rename", 1),  # before its recipe appears
    ],
)
def test_killed_between_renames_is_rebuilt_or_still_old(
    run, monkeypatch, method, after
):
    run.artefact("a", {"x": 1}, Builder("old"))
    with monkeypatch.context() as patch:
        kill_in(patch, method, after)
        with pytest.raises(Killed):
            run.artefact("a", {"x": 2}, Builder("new"))
    # Whatever is there now, no recipe vouches for the wrong content.
    if (run.folder / "a.recipe.json").exists():
        assert run.path("a").read_text() == "old"
        assert json.loads((run.folder / "a.recipe.json").read_text())["recipe"] == {
            "x": 1
        }
    again = Builder("new")
    assert run.artefact("a", {"x": 2}, again).read_text() == "new"
    assert again.calls == 1
    assert run.artefact("a", {"x": 2}, again).read_text() == "new"
    assert again.calls == 1
    assert names(run) == ["a", "a.recipe.json"]


# --- What recipes are made of ---


def test_file_stamps_change_with_the_file(tmp_path):
    path = tmp_path / "track.bw"
    path.write_bytes(b"12345")
    (stamp,) = file_stamps([path])
    assert stamp[:2] == ["track.bw", 5]
    assert file_stamps([str(path)]) == [stamp]
    path.write_bytes(b"123456")
    assert file_stamps([path]) != [stamp]
    with pytest.raises(FileNotFoundError, match=r"gone\.bw"):
        file_stamps([tmp_path / "gone.bw"])


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package named helpers whose source a test may edit."""
    sources = {
        "motifs": "from helpers._files import read\nfrom helpers.states import x\n",
        "_files": "from helpers import _formats, windows\n",
        "_formats": "WIDTH = 4\n",
        "states": "x = 1\n",
        "windows": "y = 1\n",
        "loose": "from helpers import __version__\n",
    }
    for name, source in sources.items():
        (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.setattr(
        runs, "_source", lambda name: (tmp_path / f"{name}.py").read_bytes()
    )
    return tmp_path


def test_code_digest_covers_private_modules_behind_a_public_one(package):
    before = code_digest("motifs")
    assert len(before) == 16
    for name, counts in (
        ("motifs", True),
        ("_files", True),
        ("_formats", True),
        ("states", False),
        ("windows", False),
        ("loose", False),
    ):
        path = package / f"{name}.py"
        source = path.read_text()
        path.write_text(source + "# edited\n")
        assert (code_digest("motifs") != before) == counts, name
        path.write_text(source)
    assert code_digest("motifs") == before
    assert code_digest("motifs", "states") == code_digest("states", "motifs") != before
    assert code_digest("loose") != before


def test_code_digest_reads_the_installed_modules():
    assert code_digest("windows") != code_digest("tissues")
    assert code_digest("motifs") == code_digest("motifs", "motifs._scan")
    with pytest.raises(ValueError, match=r"no module helpers\.window"):
        code_digest("window")


# --- Damage ---


@pytest.mark.parametrize("position", [0, 3, -1])
def test_a_changed_byte_of_a_file_is_noticed(run, position, caplog):
    path = run.artefact("table", {}, Builder())
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    assert run.artefact("table", {}, Builder()).read_text() == "content"
    assert "table: not what was written; making it again" in caplog.text


@pytest.mark.parametrize("change", ["byte", "gone", "more"])
def test_a_folder_that_is_not_what_was_written_is_made_again(run, change):
    made = []

    def build(partial):
        made.append(partial)
        (partial / "inner").mkdir(parents=True)
        (partial / "inner" / "a.txt").write_text("content")

    path = run.artefact("folder", {}, build) / "inner" / "a.txt"
    run.artefact("folder", {}, build)
    assert len(made) == 1
    if change == "byte":
        path.write_text("contend")
    elif change == "gone":
        path.unlink()
    else:
        path.with_name("b.txt").touch()
    run.artefact("folder", {}, build)
    assert len(made) == 2 and [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_what_a_killed_process_was_writing_is_cleared_away(run):
    def build(partial):
        partial.mkdir(exist_ok=True)
        (partial / ".weights.77.partial").touch()
        if not (partial / "begun").exists():
            (partial / "begun").touch()
            raise KeyboardInterrupt
        (partial / ".weights.77.partial").unlink()

    with pytest.raises(KeyboardInterrupt):
        run.artefact("folder", {}, build, resumable=True)
    (leftover,) = run.folder.glob(".folder.*.partial")
    (leftover / "x.12.partial").touch()
    path = run.artefact("folder", {}, build, resumable=True)
    assert [p.name for p in path.iterdir()] == ["begun"]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "\x00"])
def test_a_damaged_record_is_noticed(run, text, caplog):
    run.artefact("table", {}, Builder())
    (run.folder / "table.recipe.json").write_text(text)
    with pytest.raises(ValueError, match=r"table\.recipe\.json: damaged record"):
        run.key("table")
    again = Builder()
    run.artefact("table", {}, again)
    assert again.calls == 1
    assert "damaged record" in caplog.text
