"""Tissue files: which biosamples form a pair, and where their data lie.

A tissue is one YAML file that names a genome, annotation files, and one biosample in
vitro and one in vivo (plus replicates). Paths are relative to the YAML file; ``~`` and
environment variables are expanded. Everything is checked before any work begins.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

import yaml

__all__ = [
    "CONTEXTS",
    "SIGNAL_KINDS",
    "Biosample",
    "Tissue",
    "check_together",
    "read_tissue",
    "read_tissues",
    "tissue_files",
]

CONTEXTS = ("in_vitro", "in_vivo")
SIGNAL_KINDS = ("cut_sites", "coverage")


@dataclass(frozen=True)
class Biosample:
    """One ATAC-seq (or DNase-seq) sample.

    Attributes
    ----------
    name : str
        Unique name.
    signal : Path
        bigWig of the track.
    peaks : Path
        BED of peaks.
    motif_activity : Path
        MEME SEA table, one row per motif of the tissue's motif file.
    signal_kind : str
        ``cut_sites``: counts of Tn5 cut sites per base, widened by 5 bp on both sides
        when read, as the authors of EpiBERT do; ``coverage``: used as it is.
    scale : float
        Factor that brings the track to the common depth (20 M fragments for the
        published model).
    states : Path or None
        BED of chromatin states.
    context : str
        ``in_vitro`` or ``in_vivo``.
    lineage : str
        Name of the tissue whose pair it belongs to.
    replicate : int
        0 for the biosample of the pair, 1, 2, ... for further ones of its context.
    seen_in_training : bool or None
        Whether the model was trained on it; None if unknown.
    accession, description : str
        Where it comes from.
    """

    name: str
    signal: Path
    peaks: Path
    motif_activity: Path
    signal_kind: str = "coverage"
    scale: float = 1.0
    states: Path | None = None
    context: str = ""
    lineage: str = ""
    replicate: int = 0
    seen_in_training: bool | None = None
    accession: str = ""
    description: str = ""


@dataclass(frozen=True)
class Tissue:
    """A matched pair of biosamples with its genome and annotation.

    Attributes
    ----------
    name : str
        Name of the tissue, also the lineage of its biosamples.
    path : Path
        The YAML file.
    assembly : str
        Genome assembly; tissues of one run must share it.
    genome : Path
        FASTA with ``.fai``; records are chromosomes or regions ``chrom:start-end``.
    windows : Path
        TSV with columns ``chrom``, ``start``, ``end``, ``split``, ``block``.
    motifs : Path
        Motifs in MEME format, of the motif activity and of the annotation.
    in_vitro, in_vivo : Biosample
        The pair.
    replicates : tuple of Biosample
        Further samples of either context.
    genes, gene_sets : Path or None
        Genes (BED6 with symbols) and gene sets (GMT).
    notes : str
        Caveats that every page about this tissue must show.
    """

    name: str
    path: Path
    assembly: str
    genome: Path
    windows: Path
    motifs: Path
    in_vitro: Biosample
    in_vivo: Biosample
    replicates: tuple[Biosample, ...] = ()
    genes: Path | None = None
    gene_sets: Path | None = None
    notes: str = ""

    @property
    def biosamples(self) -> tuple[Biosample, ...]:
        """The pair and the replicates."""
        return (self.in_vitro, self.in_vivo, *self.replicates)


_TISSUE_FILES = ("genome", "windows", "motifs", "genes", "gene_sets")
_TISSUE_TEXT = (*_TISSUE_FILES, "tissue", "assembly", "notes")
_TISSUE_REQUIRED = ("tissue", "assembly", "genome", "windows", "motifs", *CONTEXTS)
_TISSUE_KEYS = {*_TISSUE_TEXT, *CONTEXTS, "replicates"}
_SAMPLE_FILES = ("signal", "peaks", "motif_activity", "states")
_SAMPLE_TEXT = (*_SAMPLE_FILES, "name", "accession", "description")
_SAMPLE_REQUIRED = [f.name for f in fields(Biosample) if f.default is MISSING]
_SAMPLE_KEYS = {f.name for f in fields(Biosample)} - {"lineage", "replicate"}
_SHARED = ("assembly", "genome", "windows", "motifs")


def read_tissue(path: str | Path) -> Tissue:
    """Read and check one tissue file.

    Parameters
    ----------
    path : str or Path
        YAML file.

    Returns
    -------
    Tissue
        With absolute or working-directory-relative paths that exist.

    Raises
    ------
    FileNotFoundError
        If the YAML file or files it names do not exist; all missing ones are listed.
    ValueError
        If the YAML is malformed, a key is unknown or missing, or a value is of the
        wrong type or out of range; all problems are listed.
    """
    path = Path(path)
    content = read_yaml(path)
    problems = entry_problems(content, _TISSUE_KEYS, _TISSUE_REQUIRED, _TISSUE_TEXT)
    replicates = content.get("replicates") or []
    if not isinstance(replicates, list):
        problems.append(f"key 'replicates' must be a list; got {replicates!r}")
        replicates = []
    samples = [(c, content[c]) for c in CONTEXTS if content.get(c) is not None]
    samples += [(f"replicates[{i}]", entry) for i, entry in enumerate(replicates)]
    for where, entry in samples:
        problems += [f"{where}: {text}" for text in _sample_problems(where, entry)]
    names = [str(e["name"]) for _, e in samples if isinstance(e, dict) and "name" in e]
    twice = sorted({name for name in names if names.count(name) > 1})
    problems += [f"name {name!r} is used twice" for name in twice]
    if problems:
        raise ValueError(f"{path}: " + "; ".join(problems))

    missing = []

    def resolved(entry: dict, files: Sequence[str]) -> dict:
        """Replace names of files by paths, and drop empty keys."""
        entry = {k: v for k, v in entry.items() if v is not None}
        for key in files:
            if key in entry:
                entry[key] = _resolve(entry[key], path.parent)
                if not entry[key].is_file():
                    missing.append(f"{key}: {entry[key]}")
        return entry

    def biosample(entry: dict, context: str, replicate: int) -> Biosample:
        values = resolved(entry, _SAMPLE_FILES)
        values["scale"] = float(values.get("scale", 1.0))
        values |= {"context": context, "lineage": content["tissue"]}
        return Biosample(**values, replicate=replicate)

    own = resolved(content, _TISSUE_FILES)
    own["name"] = own.pop("tissue")
    own |= {context: biosample(own[context], context, 0) for context in CONTEXTS}
    counts = dict.fromkeys(CONTEXTS, 0)
    further = []
    for entry in replicates:
        context = entry["context"]
        counts[context] += 1
        further.append(biosample(entry, context, counts[context]))
    own["replicates"] = tuple(further)
    if missing:
        raise FileNotFoundError(f"{path}: files not found: " + "; ".join(missing))
    return Tissue(path=path, **own)


def tissue_files(folder: str | Path, names: Sequence[str] | None = None) -> list[Path]:
    """Return the tissue files of a folder.

    Parameters
    ----------
    folder : str or Path
        Folder of tissue files, ``*.yml`` or ``*.yaml``.
    names : sequence of str, optional
        File stems; all files in alphabetical order if empty.

    Raises
    ------
    FileNotFoundError
        If the folder has no tissue file or lacks one of ``names``.
    ValueError
        If two files have one stem.
    """
    folder = Path(folder)
    found = sorted([*folder.glob("*.yml"), *folder.glob("*.yaml")])
    if not found:
        raise FileNotFoundError(f"no tissue files (*.yml, *.yaml) in {folder}")
    by_stem: dict[str, Path] = {}
    for path in found:
        if path.stem in by_stem:
            raise ValueError(f"{path} and {by_stem[path.stem]} are the same tissue")
        by_stem[path.stem] = path
    unknown = sorted(set(names or []) - by_stem.keys())
    if unknown:
        raise FileNotFoundError(
            f"no tissue files for {unknown} in {folder}; it has {sorted(by_stem)}"
        )
    return [by_stem[name] for name in (names or by_stem)]


def read_tissues(
    folder: str | Path, names: Sequence[str] | None = None
) -> list[Tissue]:
    """Read tissues of a folder that can be studied together.

    Parameters
    ----------
    folder : str or Path
        Folder of tissue files, ``*.yml`` or ``*.yaml``.
    names : sequence of str, optional
        File stems to read; all files in alphabetical order if empty.

    Returns
    -------
    list of Tissue
        In the order of ``names``.

    Raises
    ------
    FileNotFoundError
        If the folder has no tissue file or lacks one of ``names``.
    ValueError
        If a file is not valid, two files have one stem, or the tissues do not fit
        together (`check_together`).
    """
    tissues = [read_tissue(path) for path in tissue_files(folder, names)]
    check_together(tissues)
    return tissues


def check_together(tissues: Sequence[Tissue]) -> None:
    """Check that tissues can be studied together.

    Raises
    ------
    ValueError
        If there is none, or they differ in assembly, genome, windows or motifs, or
        share a name or the name of a biosample.
    """
    if not tissues:
        raise ValueError("tissues must hold at least one tissue; got none")
    for key in _SHARED:
        values = {str(getattr(tissue, key)): tissue.path.name for tissue in tissues}
        if len(values) > 1:
            raise ValueError(f"tissues of one run must share {key}; found {values}")
    lineages = [tissue.name for tissue in tissues]
    samples = [b.name for tissue in tissues for b in tissue.biosamples]
    for what, used in (("tissue", lineages), ("biosample", samples)):
        twice = sorted({name for name in used if used.count(name) > 1})
        if twice:
            raise ValueError(f"{what} names used by two tissue files: {twice}")


def read_yaml(path: Path) -> dict:
    if not path.is_file():
        raise FileNotFoundError(f"tissue file not found: {path}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(
            f"{path}: expected the keys {list(_TISSUE_REQUIRED)}; found {content!r}"
        )
    return content


def _resolve(value: str, base: Path) -> Path:
    expanded = os.path.expanduser(os.path.expandvars(value))
    return Path(os.path.normpath(base / expanded))


def entry_problems(
    entry: dict, known: set[str], required: Sequence[str], text: Sequence[str]
) -> list[str]:
    """Check the keys of an entry, and that values which should be text are."""
    problems = []
    for key in entry:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {sorted(known)}"
            problems.append(f"unknown key {key!r} ({hint})")
    problems += [
        f"key {key!r} is missing" for key in required if entry.get(key) is None
    ]
    problems += [
        f"key {key!r} must be text; got {entry[key]!r}"
        for key in text
        if not isinstance(entry.get(key, ""), str | None)
    ]
    return problems


def _sample_problems(where: str, entry: object) -> list[str]:
    if not isinstance(entry, dict):
        return [f"expected a biosample (name, signal, ...); got {entry!r}"]
    problems = entry_problems(entry, _SAMPLE_KEYS, _SAMPLE_REQUIRED, _SAMPLE_TEXT)
    in_pair = where in CONTEXTS
    context = entry.get("context", where if in_pair else None)
    kind = entry.get("signal_kind", "coverage")
    for key, value, allowed in (
        ("context", context, (where,) if in_pair else CONTEXTS),
        ("signal_kind", kind, SIGNAL_KINDS),
    ):
        if value not in allowed:
            wanted = " or ".join(map(repr, allowed))
            problems.append(f"key {key!r} must be {wanted}; got {value!r}")
    scale = entry.get("scale", 1.0)
    number = isinstance(scale, int | float) and not isinstance(scale, bool)
    if not number or not math.isfinite(scale) or scale <= 0:
        problems.append(f"key 'scale' must be a number above 0; got {scale!r}")
    seen = entry.get("seen_in_training")
    if not isinstance(seen, bool | None):
        problems.append(f"key 'seen_in_training' must be true or false; got {seen!r}")
    return problems
