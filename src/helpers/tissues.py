"""Tissue files: which biosamples form a pair, and where their data lie.

A tissue is one YAML file that names a genome, annotation files, and one biosample in vitro
and one in vivo (plus replicates). Paths are relative to the YAML file; ``~`` and
environment variables are expanded. Everything is checked before any work begins.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, fields
from pathlib import Path

import yaml

__all__ = ["CONTEXTS", "Biosample", "Tissue", "read_tissue", "read_tissues"]

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
        0 for the biosample of the pair, 1, 2, ... for replicates.
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
    genes, gene_sets : Path or None
        Genes (BED6 with symbols) and gene sets (GMT).
    in_vitro, in_vivo : Biosample
        The pair.
    replicates : tuple of Biosample
        Further samples of either context.
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


_TISSUE_PATHS = {"genome", "windows", "motifs", "genes", "gene_sets"}
_BIOSAMPLE_PATHS = {"signal", "peaks", "motif_activity", "states"}
_TISSUE_REQUIRED = {"tissue", "assembly", "genome", "windows", "motifs", *CONTEXTS}
_TISSUE_KEYS = _TISSUE_REQUIRED | {"genes", "gene_sets", "replicates", "notes"}
_BIOSAMPLE_REQUIRED = {"name", "signal", "peaks", "motif_activity"}
_BIOSAMPLE_KEYS = {f.name for f in fields(Biosample)} - {"lineage", "replicate"}


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
        If the YAML is malformed, a key is unknown or missing, or a value is out of
        range; all problems are listed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"tissue file not found: {path}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected keys {sorted(_TISSUE_REQUIRED)}; found none")
    problems = _key_problems(content, "", _TISSUE_KEYS, _TISSUE_REQUIRED)
    samples = [(c, content.get(c)) for c in CONTEXTS if c in content]
    replicates = content.get("replicates") or []
    if not isinstance(replicates, list):
        problems.append(f"replicates: expected a list; found {replicates!r}")
        replicates = []
    samples += [(f"replicates[{i}]", entry) for i, entry in enumerate(replicates)]
    for where, entry in samples:
        problems += _biosample_problems(where, entry)
    names = [e.get("name") for _, e in samples if isinstance(e, dict)]
    problems += [f"name {n!r} is used twice" for n in set(names) if names.count(n) > 1]
    if problems:
        raise ValueError(f"{path}: " + "; ".join(problems))

    base, missing = path.parent, []

    def resolve(entry: dict, keys: set[str]) -> dict:
        resolved = dict(entry)
        for key in keys & entry.keys():
            if entry[key] is not None:
                resolved[key] = _resolve(str(entry[key]), base)
                if not resolved[key].is_file():
                    missing.append(f"{key}: {resolved[key]}")
        return resolved

    def biosample(entry: dict, context: str, replicate: int) -> Biosample:
        values = resolve(entry, _BIOSAMPLE_PATHS)
        values["scale"] = float(values.get("scale", 1.0))
        values |= {"context": context, "lineage": content["tissue"]}
        return Biosample(**values, replicate=replicate)

    own = resolve(content, _TISSUE_PATHS)
    name = own.pop("tissue")
    pair = {c: biosample(own.pop(c), c, 0) for c in CONTEXTS}
    own["replicates"] = tuple(
        biosample(entry, entry["context"], i + 1) for i, entry in enumerate(replicates)
    )
    if missing:
        raise FileNotFoundError(f"{path}: files not found: " + "; ".join(missing))
    return Tissue(name=name, path=path, **own, **pair)


def read_tissues(folder: str | Path, names: list[str] | None = None) -> list[Tissue]:
    """Read tissues of a folder that can be studied together.

    Parameters
    ----------
    folder : str or Path
        Folder of tissue YAMLs.
    names : list of str, optional
        File stems to read; all files in alphabetical order if empty.

    Returns
    -------
    list of Tissue
        In the order of ``names``.

    Raises
    ------
    FileNotFoundError
        If the folder has no YAML or lacks one of ``names``.
    ValueError
        If tissues differ in assembly, genome, windows or motifs, or share a biosample
        name.
    """
    folder = Path(folder)
    found = sorted(folder.glob("*.yml"))
    if not found:
        raise FileNotFoundError(f"no tissue files (*.yml) in {folder}")
    stems = {p.stem: p for p in found}
    unknown = sorted(set(names or []) - stems.keys())
    if unknown:
        raise FileNotFoundError(
            f"no tissue files for {unknown} in {folder}; it has {sorted(stems)}"
        )
    tissues = [read_tissue(stems[n]) for n in (names or stems)]
    for key in ("assembly", "genome", "windows", "motifs"):
        values = {str(getattr(t, key)): t.path.name for t in tissues}
        if len(values) > 1:
            raise ValueError(f"tissues of one run must share {key}; found {values}")
    samples = [b.name for t in tissues for b in t.biosamples]
    twice = sorted({n for n in samples if samples.count(n) > 1})
    if twice:
        raise ValueError(f"biosample names used by two tissues: {twice}")
    return tissues


def _resolve(value: str, base: Path) -> Path:
    expanded = os.path.expanduser(os.path.expandvars(value))
    return Path(os.path.normpath(base / expanded))


def _key_problems(entry: dict, where: str, known: set, required: set) -> list[str]:
    prefix = f"{where}: " if where else ""
    problems = [
        f"{prefix}unknown key {key!r} (known: {sorted(known)})"
        for key in entry
        if key not in known
    ]
    absent = sorted(k for k in required if entry.get(k) is None)
    return problems + [f"{prefix}key {key!r} is missing" for key in absent]


def _biosample_problems(where: str, entry: object) -> list[str]:
    if not isinstance(entry, dict):
        return [f"{where}: expected a biosample (name, signal, ...); found {entry!r}"]
    problems = _key_problems(entry, where, _BIOSAMPLE_KEYS, _BIOSAMPLE_REQUIRED)
    kind = entry.get("signal_kind", "coverage")
    if kind not in SIGNAL_KINDS:
        problems.append(f"{where}: signal_kind must be one of {SIGNAL_KINDS}; got {kind!r}")
    scale = entry.get("scale", 1.0)
    number = isinstance(scale, int | float) and not isinstance(scale, bool)
    if not number or not math.isfinite(scale) or scale <= 0:
        problems.append(f"{where}: scale must be a number above 0; got {scale!r}")
    context = entry.get("context", where)
    wanted = (where,) if where in CONTEXTS else CONTEXTS
    if context not in wanted:
        problems.append(f"{where}: context must be one of {wanted}; got {context!r}")
    return problems
