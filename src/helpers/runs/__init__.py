"""The run folder: artefacts that are made once, carry their recipe, and are never half.

An artefact is a file or folder of a run with a recipe beside it
(``<name>.recipe.json``): the parameters, inputs and code that made it. It is rebuilt
when the recipe changes and appears only when complete, so killing a run at any moment
loses no finished work.
"""

from __future__ import annotations

import ast
import hashlib
import json
import logging
import platform
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd

import helpers
from helpers.runs._locks import claim, one_at_a_time

__all__ = ["Run", "code_digest", "file_stamps"]

_log = logging.getLogger(__name__)
_PRIVATE = re.compile(r"(?:^|\.)_[a-z]\w*$")  # last part of a private module's name
_KEY_LENGTH = 16  # hexadecimal digits: 64 bits tell recipes apart


def code_digest(*modules: str) -> str:
    """Return a digest of the source of modules of this package.

    Artefacts depend on the code that made them: naming the modules in the recipe
    rebuilds them when that code changes. A module stands for the private modules
    (``helpers.*._*``) behind it too.

    Parameters
    ----------
    *modules : str
        Names within the package, such as ``"windows"``.

    Raises
    ------
    ValueError
        If there is no such module.
    """
    sources: dict[str, bytes] = {}
    pending = list(modules)
    while pending:
        name = pending.pop()
        if name not in sources:
            sources[name] = _source(name)
            pending += _private_imports(sources[name])
    digest = hashlib.sha256()
    for name in sorted(sources):
        digest.update(sources[name])
    return digest.hexdigest()[:_KEY_LENGTH]


def _source(module: str) -> bytes:
    spec = find_spec(f"helpers.{module}")
    if spec is None or spec.origin is None:
        raise ValueError(f"there is no module helpers.{module}")
    return Path(spec.origin).read_bytes()


@cache  # stages ask for the same digest again and again
def _private_imports(source: bytes) -> list[str]:
    """Return the private modules of this package that a module imports."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            package, *within = node.module.split(".")
            if package == "helpers":
                found.append(".".join(within))
                found += [".".join([*within, alias.name]) for alias in node.names]
    return [name for name in found if _PRIVATE.search(name)]


def file_stamps(paths: Iterable[str | Path]) -> list[list]:
    """Return name, size and modification time of input files, for a recipe."""
    stats = [(Path(p), Path(p).stat()) for p in paths]
    return [[p.name, s.st_size, s.st_mtime_ns] for p, s in stats]


def _plain(value: object) -> object:
    """Turn numpy scalars, arrays, tuples and paths into JSON types."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return value.item()
    return str(value) if isinstance(value, Path) else value


class Run:
    """A folder of artefacts.

    Parameters
    ----------
    folder : str or Path
        The folder; made if absent.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def claim(self, **parameters: object) -> None:
        """Hold the folder for a run of these parameters until the process ends.

        Processes of the same parameters may share it; artefacts they both need are made
        by one of them.

        Raises
        ------
        RuntimeError
            If a process of other parameters is at work in the folder.
        """
        claim(self.folder, _plain(parameters))

    def path(self, name: str) -> Path:
        """Return where an artefact lies, or will lie.

        Raises
        ------
        ValueError
            If the name leads out of the run folder.
        """
        parts = Path(name).parts
        if not parts or Path(name).is_absolute() or ".." in parts:
            raise ValueError(f"name must lie inside the run folder; got {name!r}")
        return self.folder / name

    def key(self, name: str) -> str:
        """Return the digest of an artefact's recipe, for recipes that build on it.

        Raises
        ------
        FileNotFoundError
            If the artefact has not been made.
        ValueError
            If what was recorded of it cannot be read.
        """
        return self._record(name)["key"]

    def _record(self, name: str) -> dict:
        path = self.path(name)
        sidecar = _sidecar(path)
        if not path.exists() or not sidecar.is_file():
            raise FileNotFoundError(f"artefact {name!r} is not in {self.folder}")
        try:
            record = json.loads(sidecar.read_text(encoding="utf-8"))
            return {"key": record["key"], "sha256": record["sha256"]}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{sidecar}: damaged record: {error!r}") from None

    def recipe(self, name: str) -> dict:
        """Return what an artefact was made from.

        Raises
        ------
        FileNotFoundError
            If the artefact has not been made.
        """
        self.key(name)
        text = _sidecar(self.path(name)).read_text(encoding="utf-8")
        return json.loads(text)["recipe"]

    def is_current(self, name: str, recipe: dict) -> bool:
        """Return whether an artefact is there, was made by a recipe, and is whole.

        Files are compared with their checksums, those of a folder too; stores of
        activations have checksums of their own in every chunk.
        """
        return self.is_whole(name) and self.key(name) == _digest(_plain(recipe))

    def is_whole(self, name: str) -> bool:
        """Return whether an artefact is there, and is what was written."""
        try:
            record = self._record(name)
        except FileNotFoundError:
            return False
        except ValueError as error:
            _log.warning("%s; making %r again", error, name)
            return False
        path = self.path(name)
        if record["sha256"] and _checksum(path) != record["sha256"]:
            _log.warning("%s: not what was written; making it again", path)
            return False
        return True

    def artefact(
        self,
        name: str,
        recipe: dict,
        build: Callable[[Path], None],
        *,
        resumable: bool = False,
    ) -> Path:
        """Return an artefact, building it if it is absent or of another recipe.

        Parameters
        ----------
        name : str
            File or folder name inside the run folder.
        recipe : dict
            Everything the content depends on: JSON types, numpy values, paths.
        build : callable
            Writes the artefact, a file or a folder, to exactly the path it is given.
        resumable : bool
            Whether ``build`` continues what an interrupted call left at that path. What
            a call that is not resumable leaves is removed.

        Returns
        -------
        Path

        Raises
        ------
        RuntimeError
            If ``build`` wrote nothing to its path.
        """
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not self.is_current(name, recipe):
            with one_at_a_time(path):
                if not self.is_current(name, recipe):  # another process made it
                    _build(path, name, _plain(recipe), build, resumable)
        return path

    def table(
        self, name: str, recipe: dict, build: Callable[[], pd.DataFrame]
    ) -> pd.DataFrame:
        """Return a table kept as parquet, computing it if needed.

        ``name`` and ``recipe`` are those of `artefact`; ``build`` returns the table.
        """
        path = self.artefact(name, recipe, lambda partial: build().to_parquet(partial))
        return pd.read_parquet(path)

    def tables(
        self,
        names: Sequence[str],
        recipe: dict,
        measure: Callable[[], Sequence[pd.DataFrame]],
    ) -> list[pd.DataFrame]:
        """Return tables that one measurement makes, in order.

        If one of them is missing or of another recipe, they are measured once.
        """
        found: list[pd.DataFrame] = []

        def measured(k: int) -> pd.DataFrame:
            if not found:
                found.extend(measure())
            return found[k]

        return [
            self.table(name, recipe, lambda k=k: measured(k))
            for k, name in enumerate(names)
        ]


def _build(
    path: Path,
    name: str,
    recipe: object,
    build: Callable[[Path], None],
    resumable: bool,
) -> None:
    """Build an artefact beside its place and move it there with its recipe."""
    key = _digest(recipe)
    partial = path.with_name(f".{path.name}.{key}.partial")
    for leftover in _partials(path):
        if not (resumable and leftover == partial):
            _remove(leftover)
    for unfinished in partial.rglob("*.partial"):  # files that a killed process began
        _remove(unfinished)
    try:
        build(partial)
    except BaseException:
        if not resumable:
            _remove(partial)
        raise
    if not partial.exists():
        raise RuntimeError(f"the build of {name!r} wrote nothing to {partial}")
    sidecar = _sidecar(path)
    sidecar.unlink(missing_ok=True)  # no recipe, no artefact: safe between renames
    _remove(path)
    partial.rename(path)
    provenance = {
        "key": key,
        "sha256": _checksum(path),
        "recipe": recipe,
        "package": f"chromatin-context {helpers.__version__}",
        "python": platform.python_version(),
    }
    draft = sidecar.with_name(f".{sidecar.name}.partial")
    draft.write_text(json.dumps(provenance, indent=1), encoding="utf-8")
    draft.rename(sidecar)


def _digest(recipe: object) -> str:
    text = json.dumps(recipe, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY_LENGTH]


def _checksum(path: Path) -> str | None:
    """Return the SHA-256 of a file, or of names and files of a folder.

    None for a store, which grows, and has its own. A file that has not changed is read
    once.
    """
    if path.is_dir():
        if (path / "zarr.json").is_file():
            return None
        files = sorted(p for p in path.rglob("*") if p.is_file())
        sums = [[p.relative_to(path).as_posix(), _checksum(p)] for p in files]
        return hashlib.sha256(json.dumps(sums).encode()).hexdigest()
    stat = path.stat()
    return _checksum_of(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)


@lru_cache(maxsize=1024)
def _checksum_of(path: Path, size: int, modified: int, inode: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name}.recipe.json")


def _partials(path: Path) -> list[Path]:
    """Return what interrupted builds of an artefact left, of any recipe."""
    partial = re.compile(
        rf"\.{re.escape(path.name)}\.[0-9a-f]{{{_KEY_LENGTH}}}\.partial"
    )
    return [p for p in path.parent.iterdir() if partial.match(p.name)]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
