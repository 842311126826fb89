"""The local files of a tissue whose data are public; `helpers.public_data` uses it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pysam
import yaml

from helpers import motifs, tissues
from helpers.cut_sites import genome_sizes, write_cut_sites
from helpers.downloads import fetch, fetch_genome
from helpers.encode import EncodeFile, Resolved, provenance
from helpers.remote_tracks import copy_windows
from helpers.runs import Run, code_digest, file_stamps
from helpers.window_sets import choose_windows, write_windows
from helpers.windows import Genome, read_windows

__all__ = ["SHARED_FILES", "LocalTissue", "is_address"]

SHARED_FILES = ("motifs", "motif_background", "genes", "gene_sets")
_SCHEMES = ("http://", "https://", "file://")
_AUTOSOMES = tuple(f"chr{i}" for i in range(1, 23))
_WINDOWS_SEED = 0


def is_address(value: object) -> bool:
    """Return whether a value of a tissue file is an address, and not a path."""
    return isinstance(value, str) and value.startswith(_SCHEMES)


def chromosomes(value: str | Sequence[str]) -> tuple[str, ...]:
    """Return the chromosomes that a rule for windows names, ``autosomes`` or a list.

    Raises
    ------
    ValueError
        If it is neither.
    """
    if value == "autosomes":
        return _AUTOSOMES
    if isinstance(value, str) or not value:
        raise ValueError(
            f"chromosomes must be 'autosomes' or a list of names; got {value!r}"
        )
    return tuple(value)


class LocalTissue:
    """The local files of one tissue, made on demand.

    Parameters
    ----------
    store : Run
        Where they are kept.
    content : dict
        The tissue file.
    path : Path
        Where it lies; its relative paths start there.
    resolved : mapping of str to Resolved
        What the portal has for each biosample.
    window_bp : int
        Window length of the model.
    """

    def __init__(
        self,
        store: Run,
        content: dict,
        path: Path,
        resolved: Mapping[str, Resolved],
        window_bp: int,
    ) -> None:
        self.store = store
        self.content = content
        self.path = path
        self.resolved = resolved
        self.window_bp = window_bp
        self.downloads = store.path("downloads")
        self.record: dict[str, Any] = {}

    def write(self, output: Path) -> None:
        """Make all files, and write the tissue file that names them."""
        content = self.content
        plain = {key: content[key] for key in ("tissue", "assembly")}
        plain["genome"] = self._genome()
        plain |= {k: self._file(content[k]) for k in SHARED_FILES if k in content}
        plain["windows"] = self._windows(plain["genome"])
        contrast = tuple(content.get("contrast") or tissues.CONTEXTS)
        if contrast != tissues.CONTEXTS:
            plain["contrast"] = list(contrast)
        plain |= {c: self._biosample(content[c], plain) for c in contrast}
        plain["replicates"] = [
            self._biosample(entry, plain) for entry in content.get("replicates") or []
        ]
        plain["notes"] = content.get("notes", "")
        plain.pop("motif_background", None)
        self.store.artefact(
            f"{output.parent.name}/{self.path.stem}.provenance.json",
            self.record,
            lambda path: path.write_text(json.dumps(self.record, indent=1), "utf-8"),
        )
        plain = _relative(plain, output.parent)
        text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
        output.write_text(text, encoding="utf-8")

    def _file(self, value: str) -> Path:
        """Return a path: of what is fetched from an address, or as it is given."""
        if not is_address(value):
            return (self.path.parent / Path(value).expanduser()).absolute()
        path = fetch(value, self.downloads)
        self._note(path, path.with_name(f"{path.name}.json"))
        return path

    def _note(self, path: Path, record: Path) -> None:
        """Take over what was recorded of a download."""
        self.record[path.name] = json.loads(record.read_text(encoding="utf-8"))

    def _genome(self) -> Path:
        value = self.content["genome"]
        if not is_address(value):
            return self._file(value)
        path = fetch_genome(self.content["assembly"], self.downloads, source=value)
        self.record[path.name] = {"url": value}
        return path

    def _windows(self, genome: Path) -> Path:
        """Return the list of windows, drawn by the rule if there is one."""
        rule = self.content["windows"]
        if not isinstance(rule, dict):
            return self._file(rule)
        candidates = self._file(rule["candidates"])  # noted, also if all is there

        def build(partial: Path) -> None:
            windows = choose_windows(
                candidates,
                chromosomes=chromosomes(rule["chromosomes"]),
                window_bp=self.window_bp,
                n_windows=rule["n_windows"],
                random_state=_WINDOWS_SEED,
                genome=Genome(genome),
                drop_overlaps=True,
            )
            write_windows(windows, partial)

        recipe = {
            "rule": rule,
            "bp": self.window_bp,
            "code": code_digest("window_sets"),
        }
        return self.store.artefact(f"windows_{self.window_bp}.tsv", recipe, build)

    def _biosample(self, entry: dict, shared: dict) -> dict:
        """Return the entry of a biosample with files in place of accessions."""
        kept = ("name", "context", "description", "seen_in_training")
        plain = {key: entry[key] for key in kept if key in entry}
        if entry["name"] in self.resolved:
            item = self.resolved[entry["name"]]
            plain |= self._experiment(entry["name"], item, shared["genome"])
        else:
            plain |= {k: entry[k] for k in ("signal_kind", "scale") if k in entry}
            plain["signal"] = self._signal(entry, shared["windows"])
            plain["peaks"] = self._file(entry["peaks"])
        for key in ("motif_activity", "states"):
            if key in entry:
                plain[key] = self._file(entry[key])
        if "motif_activity" not in plain:
            plain["motif_activity"] = self._motif_activity(plain, shared)
        return plain

    def _experiment(self, name: str, item: Resolved, genome: Path) -> dict:
        """Return track, scale and peaks of an experiment of the portal."""
        self.record[name] = {
            "biosample": item.experiment.summary,
            "files": provenance((*item.alignments, item.peaks)),
        }

        def build(partial: Path) -> None:
            partial.mkdir()
            bams = [self._indexed(file) for file in item.alignments]
            made = write_cut_sites(
                bams, partial / "cut_sites.bw", genome_sizes=genome_sizes(genome)
            )
            facts = {"scale": made.scale} | asdict(made) | {"path": "cut_sites.bw"}
            text = json.dumps(facts, indent=1)
            (partial / "cut_sites.json").write_text(text, encoding="utf-8")

        recipe = {
            "files": {file.accession: file.md5 for file in item.alignments},
            "genome": genome.name,
            "code": code_digest("cut_sites"),
        }
        folder = self.store.artefact(f"signal/{name}", recipe, build)
        facts = json.loads((folder / "cut_sites.json").read_text(encoding="utf-8"))
        self.record[name]["cut_sites"] = facts
        return {
            "accession": item.experiment.accession,
            "signal": folder / facts["path"],
            "signal_kind": "cut_sites",
            "scale": facts["scale"],
            "peaks": self._fetch(item.peaks),
        }

    def _fetch(self, file: EncodeFile) -> Path:
        return fetch(file.url, self.downloads, md5=file.md5, size=file.size)

    def _indexed(self, file: EncodeFile) -> Path:
        """Fetch alignments, and index them, as the portal keeps no indices."""
        path = self._fetch(file)
        index = Path(f"{path}.bai")
        if not index.is_file():
            partial = index.with_name(f".{index.name}.partial")
            pysam.index(str(path), str(partial))
            partial.replace(index)
        return path

    def _signal(self, entry: dict, windows: Path) -> Path:
        """Return a bigWig: a local one, or the windows of a remote one."""
        value = entry["signal"]
        if not is_address(value):
            return self._file(value)

        def build(partial: Path) -> None:
            table = read_windows(windows, window_bp=self.window_bp)
            copy_windows(value, table, partial)

        self.record[entry["name"]] = {"url": value, "read": "windows only"}
        recipe = {
            "url": value,
            "windows": file_stamps([windows]),
            "code": code_digest("remote_tracks"),
        }
        name = f"signal/{entry['name']}_{self.window_bp}.bw"
        return self.store.artefact(name, recipe, build)

    def _motif_activity(self, plain: dict, shared: dict) -> Path:
        """Return the table of the motifs in the peaks of a biosample."""
        inputs = (plain["peaks"], shared["motif_background"], shared["motifs"])

        def build(partial: Path) -> None:
            motifs.peak_motif_activity(
                plain["peaks"],
                shared["motif_background"],
                Genome(shared["genome"]),
                shared["motifs"],
                partial,
            )

        recipe = {
            "files": file_stamps(inputs),
            "genome": shared["genome"].name,
            "program": shutil.which("sea") or "",
            "code": code_digest("motifs"),
        }
        name = f"motif_activity/{plain['name']}.tsv"
        path = self.store.artefact(name, recipe, build)
        lines = path.read_text(encoding="utf-8").splitlines()
        notes = [line.strip("# ") for line in lines if line.startswith("#")]
        self.record[f"{plain['name']}, motif activity"] = notes
        return path


def _relative(value: Any, folder: Path) -> Any:
    """Replace paths, at any depth, by text that starts at a folder.

    All of it can then be moved as a whole.
    """
    if isinstance(value, dict):
        return {key: _relative(item, folder) for key, item in value.items()}
    if isinstance(value, list):
        return [_relative(item, folder) for item in value]
    return os.path.relpath(value, folder) if isinstance(value, Path) else value
