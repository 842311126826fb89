"""The run folder: artefacts that are made once, carry their recipe, and are never half.

An artefact is a file or folder of a run with a recipe beside it (``<name>.recipe.json``):
the parameters, inputs and code that made it. It is rebuilt when the recipe changes and
appears only when complete, so killing a run at any moment loses no finished work.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd

import helpers

__all__ = ["Run", "code_digest", "file_stamps"]


def code_digest(*modules: str) -> str:
    """Return a digest of the source of modules of this package.

    Artefacts depend on the code that made them: naming the modules in the recipe
    rebuilds them when that code changes.
    """
    digest = hashlib.sha256()
    for name in sorted(modules):
        source = import_module(f"helpers.{name}").__file__
        digest.update(Path(source).read_bytes())
    return digest.hexdigest()[:16]


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

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        """Return where an artefact lies, or will lie."""
        return self.folder / name

    def key(self, name: str) -> str:
        """Return the digest of an artefact's recipe, for recipes that build on it.

        Raises
        ------
        FileNotFoundError
            If the artefact has not been made.
        """
        recipe = self.path(f"{name}.recipe.json")
        if not recipe.is_file():
            raise FileNotFoundError(f"artefact {name!r} is not in {self.folder}")
        return json.loads(recipe.read_text(encoding="utf-8"))["key"]

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
            Everything the content depends on, as JSON types.
        build : callable
            Writes the artefact to the path it is given.
        resumable : bool
            Whether ``build`` continues what an interrupted call left at that path.

        Returns
        -------
        Path
        """
        path, sidecar = self.path(name), self.path(f"{name}.recipe.json")
        recipe = _plain(recipe)
        text = json.dumps(recipe, sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        if path.exists() and sidecar.is_file() and self.key(name) == key:
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{key}.partial")
        for stale in path.parent.glob(f".{path.name}.*.partial"):
            if stale != partial or not resumable:
                _remove(stale)
        build(partial)
        sidecar.unlink(missing_ok=True)  # no recipe, no artefact: safe between renames
        _remove(path)
        partial.rename(path)
        provenance = {
            "key": key,
            "recipe": recipe,
            "package": f"chromatin-context {helpers.__version__}",
            "python": platform.python_version(),
        }
        draft = sidecar.with_name(f".{sidecar.name}.partial")
        draft.write_text(json.dumps(provenance, indent=1), encoding="utf-8")
        draft.rename(sidecar)
        return path

    def table(
        self, name: str, recipe: dict, build: Callable[[], pd.DataFrame]
    ) -> pd.DataFrame:
        """Return a table kept as parquet, computing it if needed."""
        path = self.artefact(name, recipe, lambda partial: build().to_parquet(partial))
        return pd.read_parquet(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
