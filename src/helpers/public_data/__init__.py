"""From accessions and addresses to files: tissue files of public data made local.

A tissue file may name public data instead of files: an ENCODE experiment for a
biosample, and addresses for genome, windows, motifs and annotation. `localize`
downloads and checks them, makes tracks and motif activity, and writes tissue files of
plain paths, which is all that later stages read. ``python -m helpers.public_data`` does
the same ahead of time, for machines without network.

Every accession is asked for, and all answers are checked, before the first download.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import pandas as pd

from helpers import tissues
from helpers._yaml_file import YamlFile
from helpers.downloads._fetched import read_record
from helpers.encode import PORTAL, Portal, Resolved, resolve
from helpers.epibert import EpiBERTConfig
from helpers.public_data._local_tissue import SHARED_FILES, LocalTissue, is_address
from helpers.runs import Run, code_digest

__all__ = [
    "ENCODE_TISSUES",
    "is_public",
    "localize",
    "planned_downloads",
    "read_public",
]

ENCODE_TISSUES = Path(str(resources.files("helpers") / "resources" / "encode"))
_REQUIRED = ("tissue", "assembly", "genome", "windows", "motifs")
TISSUE_KEYS = {
    *(*_REQUIRED, *SHARED_FILES, "portal", "contrast", "replicates", "notes"),
    *tissues.NOTEBOOK_PARAMETERS,
}
SAMPLE_KEYS = {
    *("name", "description", "context", "seen_in_training"),
    *("experiment", "files", "signal", "signal_kind", "scale"),
    *("peaks", "motif_activity", "states"),
}
_WINDOW_KEYS = {"candidates", "n_windows", "chromosomes"}


def is_public(folder: str | Path) -> bool:
    """Return whether any tissue file of a folder names public data."""
    return any(_names_public(path) for path in tissues.tissue_files(folder))


def _names_public(path: Path) -> bool:
    file = YamlFile(path, (*_REQUIRED, *tissues.CONTEXTS))
    content, contrast = file.content, tissues.contrast_of(file)
    entries = (entry for _, entry in _entries(content, contrast))
    return (
        isinstance(content.get("windows"), dict)
        or any(is_address(content.get(key)) for key in ("genome", *SHARED_FILES))
        or any(isinstance(entry, dict) and "experiment" in entry for entry in entries)
    )


def localize(
    folder: str | Path,
    output: str | Path,
    *,
    window_bp: int,
    names: Sequence[str] = (),
    portal: str | Path | None = None,
) -> Path:
    """Make public data local: download, check, convert, and write plain tissue files.

    What is there is not made again, and an interrupted call goes on where it stopped.
    Downloads may be deleted once the tissue files are written.

    Parameters
    ----------
    folder : str or Path
        Folder of tissue files that may name public data.
    output : str or Path
        Where everything is kept: ``downloads/``, ``signal/``, ``motif_activity/``,
        and for each window length ``windows_<bp>.tsv`` and ``tissues_<bp>/``.
    window_bp : int
        Window length of the model.
    names : sequence of str, optional
        File stems of the tissues; all by default.
    portal : str or Path, optional
        A mirror of the ENCODE portal, or a folder of its files, in place of the one
        that the tissue files name.

    Returns
    -------
    Path
        Folder of plain tissue files. ``<tissue>.provenance.json`` beside each lists
        accession, assembly, output type, MD5 and date of every file, and what was made
        of it.

    Raises
    ------
    FileNotFoundError
        If a tissue file does not exist, or a server lacks a file.
    ValueError
        If a tissue file is malformed, or an accession is withdrawn, of another assay or
        assembly, or without suitable files; the problems of all tissues are listed.
    ConnectionError
        If a server cannot be reached.
    """
    store = Run(output)
    paths = tissues.tissue_files(folder, names)
    made = f"tissues_{window_bp}"
    code = code_digest("public_data", "cut_sites", "motifs", "window_sets")
    recipes = {
        path: {"tissue": read_public(path), "window_bp": window_bp, "code": code}
        for path in paths
    }
    missing = [
        path
        for path in paths
        if not store.is_current(f"{made}/{path.stem}.yml", recipes[path])
        or not _is_whole(store, f"{made}/{path.stem}.yml")
    ]
    found = _resolve_all(missing, store.path("downloads"), portal)
    for path in missing:
        content = recipes[path]["tissue"]
        local = LocalTissue(store, content, path, found[path], window_bp)
        store.path(f"{made}/{path.stem}.yml").unlink(missing_ok=True)
        store.artefact(f"{made}/{path.stem}.yml", recipes[path], local.write)
    return store.path(made)


def _is_whole(store: Run, name: str) -> bool:
    """Return whether the files that a plain tissue file names are as they were made."""
    try:
        tissue = tissues.read_tissue(store.path(name))
    except (FileNotFoundError, ValueError):  # a file is gone
        return False
    files = {Path(f"{tissue.genome}.fai")}
    for entry in (tissue, *tissue.biosamples):
        files |= {value for value in vars(entry).values() if isinstance(value, Path)}
    root = store.folder.absolute()
    for path in files - {tissue.path}:
        path = Path(os.path.normpath(path.absolute()))
        if not path.is_relative_to(root):
            continue  # of somebody else
        artefact = "/".join(path.relative_to(root).parts[:2])
        recorded = Path(f"{root / artefact}.recipe.json").is_file()
        record = read_record(path)
        if (record and not record.is_current) or (
            recorded and not store.is_whole(artefact)
        ):
            return False
    return True


def planned_downloads(
    folder: str | Path, output: str | Path, portal: str | Path | None = None
) -> pd.DataFrame:
    """List what `localize` would download for the tissue files of a folder.

    Parameters are those of `localize`.

    Returns
    -------
    pandas.DataFrame
        ``tissue``, ``for`` (key or biosample), ``accession``, ``what``, ``bytes``
        (missing where the portal did not tell) and ``url``.

    Raises
    ------
    FileNotFoundError, ValueError, ConnectionError
        As `localize`.
    """
    rows = []
    paths = tissues.tissue_files(folder)
    for path, by_name in _resolve_all(
        paths, Path(output) / "downloads", portal
    ).items():
        content = read_public(path)
        tissue = content["tissue"]
        for key in ("genome", *SHARED_FILES):
            if is_address(content.get(key)):
                rows.append((tissue, key, "", "", None, content[key]))
        for name, item in by_name.items():
            for file in (*item.alignments, item.peaks):
                told = (file.accession, file.output_type, file.size, file.url)
                rows.append((tissue, name, *told))
    columns = ["tissue", "for", "accession", "what", "bytes", "url"]
    table = pd.DataFrame(rows, columns=columns)
    return table.drop_duplicates("url", ignore_index=True)


def read_public(path: Path) -> dict:
    """Read a tissue file that may name public data, and check its keys.

    Raises
    ------
    FileNotFoundError
        If it does not exist.
    ValueError
        Listing every unknown or missing key.
    """
    file = YamlFile(path, (*_REQUIRED, *tissues.CONTEXTS))
    content = file.content
    contrast = tissues.contrast_of(file)
    file.check_keys(
        content,
        (),
        known=TISSUE_KEYS | set(contrast),
        required=(*_REQUIRED, *contrast),
        text=(*SHARED_FILES, "tissue", "assembly", "genome", "portal", "notes"),
    )
    rule = content.get("windows")
    if isinstance(rule, dict) and set(rule) != _WINDOW_KEYS:
        file.complain(
            f"windows must be a path or the keys {sorted(_WINDOW_KEYS)}; got "
            f"{sorted(rule)}",
            "windows",
        )
    for at, entry in _entries(content, contrast):
        _check_entry(file, at, entry)
    file.raise_if_wrong()
    return content


def _check_entry(file: YamlFile, at: tuple, entry: object) -> None:
    """Note what is wrong with a biosample that may name an experiment."""
    where = ".".join(map(str, at))
    if not isinstance(entry, dict):
        file.complain(
            f"{where}: expected a biosample (name, experiment, ...); got {entry!r}", *at
        )
        return
    file.check_keys(
        entry,
        at,
        known=SAMPLE_KEYS,
        required=("name",),
        text=("name", "experiment", "signal", "peaks"),
    )
    if ("experiment" in entry) == ("signal" in entry):
        file.complain(f"{where}: give either 'experiment' or 'signal'", *at)
    if "signal" in entry and "peaks" not in entry:
        file.complain(f"{where}: key 'peaks' is missing", *at)
    if "motif_activity" not in entry and "motif_background" not in file.content:
        file.complain(
            f"{where}: key 'motif_activity' is missing, and the tissue has no "
            "'motif_background' to compute it against",
            *at,
        )


def _entries(content: dict, contrast: Sequence[str]) -> list[tuple[tuple, object]]:
    """Return the biosamples of a tissue file and the keys that lead to them."""
    pair = [((c,), content[c]) for c in contrast if content.get(c) is not None]
    replicates = content.get("replicates") or []
    return pair + [(("replicates", i), entry) for i, entry in enumerate(replicates)]


def _resolve_all(
    paths: Sequence[Path], cache: Path, portal: str | Path | None
) -> dict[Path, dict[str, Resolved]]:
    """Ask for every accession of some tissue files; raise once, with all problems."""
    found: dict[Path, dict[str, Resolved]] = {}
    problems = []
    for path in paths:
        content = read_public(path)
        source = Portal(portal or content.get("portal", PORTAL), cache=cache)
        found[path] = {}
        contrast = content.get("contrast") or tissues.CONTEXTS
        for _, entry in _entries(content, contrast):
            if "experiment" not in entry:
                continue
            try:
                found[path][entry["name"]] = resolve(
                    source,
                    entry["experiment"],
                    files=entry.get("files", ()),
                    peaks=entry.get("peaks"),
                    assembly=content["assembly"],
                )
            except ValueError as error:
                problems.append(f"{path.name}, {entry['name']}: {error}")
    if problems:
        raise ValueError("unsuitable accessions:\n" + "\n".join(problems))
    return found


def main() -> None:
    """Fetch public data ahead of time, from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m helpers.public_data", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=ENCODE_TISSUES,
        help="folder of tissue files; the ENCODE tissues of the package by default",
    )
    parser.add_argument("--output", type=Path, default=Path("_build/data/encode"))
    parser.add_argument("--tissues", nargs="*", default=[], help="all by default")
    parser.add_argument("--window-bp", type=int, default=EpiBERTConfig().input_length)
    parser.add_argument("--portal", help="mirror of the ENCODE portal, or a folder")
    parser.add_argument("--plan", action="store_true", help="list, download nothing")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if arguments.plan:
            table = planned_downloads(
                arguments.folder, arguments.output, arguments.portal
            )
            print(table.to_string(index=False))
            print(f"{table['bytes'].sum() / 1e9:.1f} GB and what has no size")
            return
        made = localize(
            arguments.folder,
            arguments.output,
            window_bp=arguments.window_bp,
            names=arguments.tissues,
            portal=arguments.portal,
        )
        print(f"tissue files: {made}")
    except (OSError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")
